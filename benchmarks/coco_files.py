"""Writes stand-ins for COCO's annotation files of train, by default of their full size.

Numbers of images, captions, boxes, groups, empty images and of each category's boxes are those of
the real files; ids, boxes and texts are drawn at random, the same each time. A caption names what
has a box in its image.

**Source:** images, captions and boxes of each file as its readers count them; boxes that are no
groups by category, https://github.com/facebookresearch/detectron2/issues/1134 (849,949, as in
https://github.com/cocodataset/cocoapi/issues/117); 1,021 images without any,
https://github.com/cocodataset/cocoapi/issues/76. Of image licences no count is published: their
shares are rounded from 86 real images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Size(NamedTuple):
    """How much a release's split train has."""

    images: int
    captions: int
    boxes: int


SIZES = {2014: Size(82_783, 414_113, 604_907), 2017: Size(118_287, 591_753, 860_001)}
EMPTY, GROUPS = 1_021 / 118_287, 10_052 / 860_001
# In the order of their ids, which skip some numbers.
BOXES_OF = {
    "person": 257253, "bicycle": 7056, "car": 43533, "motorcycle": 8654, "airplane": 5129,
    "bus": 6061, "train": 4570, "truck": 9970, "boat": 10576, "traffic light": 12842,
    "fire hydrant": 1865, "stop sign": 1983, "parking meter": 1283, "bench": 9820, "bird": 10542,
    "cat": 4766, "dog": 5500, "horse": 6567, "sheep": 9223, "cow": 8014, "elephant": 5484,
    "bear": 1294, "zebra": 5269, "giraffe": 5128, "backpack": 8714, "umbrella": 11265,
    "handbag": 12342, "tie": 6448, "suitcase": 6112, "frisbee": 2681, "skis": 6623,
    "snowboard": 2681, "sports ball": 6299, "kite": 8802, "baseball bat": 3273,
    "baseball glove": 3747, "skateboard": 5536, "surfboard": 6095, "tennis racket": 4807,
    "bottle": 24070, "wine glass": 7839, "cup": 20574, "fork": 5474, "knife": 7760, "spoon": 6159,
    "bowl": 14323, "banana": 9195, "apple": 5776, "sandwich": 4356, "orange": 6302,
    "broccoli": 7261, "carrot": 7758, "hot dog": 2884, "pizza": 5807, "donut": 7005, "cake": 6296,
    "chair": 38073, "couch": 5779, "potted plant": 8631, "bed": 4192, "dining table": 15695,
    "toilet": 4149, "tv": 5803, "laptop": 4960, "mouse": 2261, "remote": 5700, "keyboard": 2854,
    "cell phone": 6422, "microwave": 1672, "oven": 3334, "toaster": 225, "sink": 5609,
    "refrigerator": 2634, "book": 24077, "clock": 6320, "vase": 6577, "scissors": 1464,
    "teddy bear": 4729, "hair drier": 198, "toothbrush": 1945,
}  # fmt: skip
_UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
CATEGORY_IDS = [number for number in range(1, 91) if number not in _UNUSED_IDS]
LABELS = tuple(BOXES_OF)
# Of the file's eight, in their order: NC-SA, NC, NC-ND, BY, SA, ND, no known restrictions, US.
LICENSE_SHARES = (0.2, 0.12, 0.32, 0.14, 0.175, 0.04, 0.003, 0.002)
_PAGES = [
    *(f"creativecommons.org/licenses/{kind}/2.0/"
      for kind in ("by-nc-sa", "by-nc", "by-nc-nd", "by", "by-sa", "by-nd")),
    *("flickr.com/commons/usage/", "www.usa.gov/copyright.shtml"),
]  # fmt: skip
_SIDES_PX = ((640, 480), (640, 427), (480, 640), (427, 640), (640, 360), (500, 375))
_SIGHTS = ("", "small ", "large ", "dark ", "bright ", "plain ", "worn ", "single ")
_DOINGS = ("is seen", "stands out", "is in view", "takes up the middle", "is close", "fills a part")
_WHERE = (
    "of a quiet street", "of a bright room", "of a wide field", "near the water", "on a clear day",
    "under a gray sky", "late in the evening", "of a busy place", "by a white wall", "in the shade",
)  # fmt: skip


def write(folder: Path, year: int, share: float) -> None:
    """Both files of a share of the split, unless they are there."""
    targets = [folder / f"{role}_train{year}.json" for role in ("captions", "instances")]
    if all(target.exists() for target in targets):
        return
    folder.mkdir(parents=True, exist_ok=True)
    size = Size(*(max(20, round(count * share)) for count in SIZES[year]))
    rng = np.random.default_rng(year)
    ids = rng.choice(581_929, size.images, replace=False) + 1
    owners, categories = _draw_categories(size, rng)
    images = _images(ids, year, rng)
    labels: list[list[str]] = [[] for _ in ids]
    for owner, category in zip(owners.tolist(), categories.tolist(), strict=True):
        if LABELS[category] not in labels[owner]:
            labels[owner].append(LABELS[category])
    head = {
        "info": {"description": "invented", "contributor": "COCO Consortium"},
        "licenses": [{"id": n, "url": f"http://{page}"} for n, page in enumerate(_PAGES, 1)],
        "images": images,
    }
    named = zip(CATEGORY_IDS, LABELS, strict=True)
    listed = {"categories": [{"id": number, "name": name} for number, name in named]}
    captions = _captions(ids, labels, size.captions, rng)
    _write(targets[0], head, captions)
    boxes = _boxes(ids, images, owners, categories, rng)
    _write(targets[1], {**head, **listed}, boxes)


def _draw_categories(size: Size, rng: np.random.Generator) -> tuple[Any, Any]:
    """The image and the category, each by its number from 0, of every box.

    Images have about three categories, and a few of them very many boxes, as in COCO.
    """
    full = np.sort(rng.permutation(size.images)[round(size.images * EMPTY) :])
    weights = rng.exponential(size=len(full))
    counts = 1 + rng.multinomial(size.boxes - len(full), weights / weights.sum())
    owners = np.repeat(full, counts)
    is_new = rng.random(size.boxes) < 0.45
    is_new[np.cumsum(counts) - counts] = True
    shares = np.array(list(BOXES_OF.values()), float)
    drawn = rng.choice(len(LABELS), int(is_new.sum()), p=shares / shares.sum())
    return owners, drawn[np.cumsum(is_new) - 1]


def _images(ids: Any, year: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    prefix = "COCO_train2014_" if year == 2014 else ""
    licenses = rng.choice(len(LICENSE_SHARES), len(ids), p=LICENSE_SHARES).tolist()
    sides = rng.integers(0, len(_SIDES_PX), len(ids)).tolist()
    return [
        {
            "license": license_number + 1,
            "file_name": f"{prefix}{number:012d}.jpg",
            "coco_url": f"http://images.cocodataset.org/train{year}/{prefix}{number:012d}.jpg",
            "height": _SIDES_PX[side][1],
            "width": _SIDES_PX[side][0],
            "date_captured": "2013-11-14 16:28:13",
            "flickr_url": f"http://farm1.staticflickr.com/1/{number}_{number:010x}_z.jpg",
            "id": number,
        }
        for number, license_number, side in zip(ids.tolist(), licenses, sides, strict=True)
    ]


def _captions(
    ids: Any, labels: list[list[str]], count: int, rng: np.random.Generator
) -> Iterator[str]:
    """About ten words each, of an image hardly two alike."""
    picks = rng.integers(0, 2**30, count).tolist()
    for number, pick in enumerate(picks):
        turn, place = divmod(number, len(ids))
        here = labels[place] or ["scene"]
        sight, doing = _SIGHTS[(pick + turn) % len(_SIGHTS)], _DOINGS[pick % len(_DOINGS)]
        other = here[(turn + 1) % len(here)]
        beside = f" beside the {other}" if len(here) > 1 else ""
        text = f"The {sight}{here[turn % len(here)]} {doing}{beside} {_WHERE[pick // 7 % 10]}"
        ending = (".", ".", ".", "", " ")[turn % 5]
        yield f'{{"image_id": {ids[place]}, "id": {number + 1}, "caption": "{text}{ending}"}}'


def _boxes(
    ids: Any, images: list[dict[str, Any]], owners: Any, categories: Any, rng: np.random.Generator
) -> Iterator[str]:
    """Each with an outline of 4 to 43 points, as long on average as the real ones."""
    pool = [f"{number:.2f}" for number in rng.uniform(0, 640, 100_000)]
    count = len(owners)
    sides = np.array([(image["width"], image["height"]) for image in images])[owners]
    sizes = np.clip(rng.lognormal(-2.0, 0.9, (count, 2)), 0.01, 0.95)
    corners = rng.random((count, 2)) * (1 - sizes)
    numbers = (np.concatenate([corners, sizes], axis=1) * np.tile(sides, 2)).tolist()
    starts = rng.integers(0, len(pool) - 100, count).tolist()
    lengths = (2 * rng.integers(4, 44, count)).tolist()
    groups = (rng.random(count) < GROUPS).tolist()
    of = zip(
        ids[owners].tolist(), categories.tolist(), numbers, starts, lengths, groups, strict=True
    )
    for number, (image, category, (x, y, w, h), start, length, group) in enumerate(of, 1):
        yield (
            f'{{"segmentation": [[{", ".join(pool[start : start + length])}]], '
            f'"area": {w * h:.5f}, "iscrowd": {int(group)}, "image_id": {image}, '
            f'"bbox": [{x:.2f}, {y:.2f}, {w:.2f}, {h:.2f}], '
            f'"category_id": {CATEGORY_IDS[category]}, "id": {number}}}'
        )


def _write(target: Path, head: dict[str, Any], annotations: Iterator[str]) -> None:
    part = target.with_suffix(".part")
    with part.open("w", encoding="ascii") as file:
        file.write(json.dumps(head)[:-1] + ', "annotations": [' + next(annotations))
        file.writelines(f", {entry}" for entry in annotations)
        file.write("]}")
    part.replace(target)
