"""Whether files are COCO's own: rows of them name the COCO Consortium and its licence.

A part of COCO is, with fewer images, categories or annotations, wherever it came through. What has
categories that COCO doesn't have, other numbers in its images' names than ids, or another
contributor is somebody else's and refused.

**Source:** https://cocodataset.org/#format-data; the 80 categories of ``instances_*.json``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath
from typing import Any, Protocol

from mminstruct.errors import SourceError
from mminstruct.sources._tolerance import OWN_DATA, published_name

_NAMES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe,
backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite,
baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork,
knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake,
chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard,
cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush
"""
CATEGORIES = frozenset(" ".join(name.split()) for name in _NAMES.split(","))


class _Image(Protocol):
    id: int
    file_name: str


def check_own(
    where: str, images: Sequence[_Image], categories: Collection[str], infos: Sequence[Any]
) -> None:
    """Raise SourceError if files of these names aren't COCO's own.

    More than half of their images need to have their id as the last number in their name, as all of
    COCO's have.
    """
    strange = sorted(set(categories) - CATEGORIES)
    others = [image for image in images if not _is_numbered(image)]
    makers = [info.get("contributor") for info in infos if isinstance(info, dict)]
    foreign = [maker for maker in makers if maker and "coco" not in str(maker).casefold()]
    if strange:
        got = f"categories that COCO doesn't have, {', '.join(strange[:5])}"
    elif len(others) * 2 > len(images):
        name = published_name(others[0].file_name)
        got = f"ids that aren't the numbers in their images' names, {others[0].id} of {name!r}"
    elif foreign:
        got = f"the contributor {foreign[0]!r}"
    else:
        return
    raise SourceError(
        f"{where}: got {got} against COCO's own 80 categories, ids and names (42 of "
        "000000000042.jpg) expected, all of them or a part. Rows of other data would name COCO's "
        f"makers and licence. {OWN_DATA}"
    )


def _is_numbered(image: _Image) -> bool:
    if image.file_name.endswith(f"{image.id:012d}.jpg"):
        return True
    numbers = re.findall(r"\d+", PurePosixPath(published_name(image.file_name)).stem)
    return bool(numbers) and int(numbers[-1]) == image.id
