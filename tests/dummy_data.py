"""Invented annotation files of every source, for tests that go over all builders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import coco_files

_BY = "https://creativecommons.org/licenses/by/2.0/"

# What is in three invented photos, taken in turns: spoken text, boxes (label, xyxy, flags), labels
# and relations.
SCENES: list[dict[str, Any]] = [
    {
        "said": "In this image I can see a ferry on the water, and there are people on its deck.",
        "boxes": [("Boat", (0.1, 0.3, 0.8, 0.9), ""), ("Person", (0.3, 0.35, 0.5, 0.5), "group")],
        "labels": {"Water": 1, "Bridge": 0},
        "relations": [("Person", "on", "Boat"), ("Boat", "is", "Wooden")],
        "collar": (300, 30, 40, 50),
    },
    {
        "said": 'There is a cat on a shelf between "old" books; it looks at a toy bird.',
        "boxes": [
            ("Cat", (0.4, 0.2, 0.6, 0.5), ""),
            ("Bookcase", (0.0, 0.0, 0.9, 1.0), "cut"),
            ("Bird", (0.7, 0.3, 0.8, 0.4), "toy"),
        ],
        "labels": {"Furniture": 1, "Dog": 0, "Person": 0},
        "relations": [("Cat", "inside_of", "Bookcase")],
        "collar": (10, 200, 90, 70),
    },
    {
        "said": "A woman is riding a bicycle. At the back, ducks, geese and trees can be seen.",
        "boxes": [
            ("Woman", (0.35, 0.1, 0.6, 0.8), ""),
            ("Bicycle", (0.3, 0.4, 0.7, 0.95), "hidden"),
            ("Ducks, geese and swans", (0.05, 0.2, 0.2, 0.3), "unknown"),
        ],
        "labels": {"Tree": 1, "Car": 0},
        "relations": [("Woman", "ride", "Bicycle"), ("Bicycle", "under", "Woman")],
        "collar": (400, 300, 60, 30),
    },
]
_NAMES = sorted(
    {box[0] for scene in SCENES for box in scene["boxes"]}
    | {label for scene in SCENES for label in scene["labels"]}
)
_ID_OF = {name: f"/m/0{number:04d}" for number, name in enumerate(_NAMES)} | {"Wooden": "/m/083vt"}
# IsOccluded, IsTruncated, IsGroupOf, IsDepiction, IsInside
_FLAGS = {
    "": "0,0,0,0,0",
    "hidden": "1,0,0,0,0",
    "cut": "0,1,0,0,0",
    "group": "0,0,1,0,0",
    "toy": "0,0,0,1,0",
    "unknown": "-1,-1,-1,-1,-1",
}
MOTIONS = [
    ["a person takes three steps forward#a/DET#0.0#0.0", "somebody walks ahead.#a/DET#nan#nan"],
    ["they bow twice#they/PRON#0.0#0.0", "the person stands still#a/DET#2.0#3.5"],
    ["pose #2: arms out to the sides#pose/NOUN#0.0#0.0"],
]


def write_all(folder: Path, count: int) -> Path:
    """Files of all sources, with ``count`` images or motions each; returns the folder."""
    for year in (2014, 2017):
        for split in ("train", "val"):
            coco_files(folder, count, year=year, split=split)
    coco_narratives(folder, count)
    lvis_files(folder, count)
    open_images_files(folder, count)
    motion_files(folder, count)
    own_files(folder, count)
    return folder


def own_files(folder: Path, count: int) -> Path:
    """A table with its description, whose path is returned."""
    rows: list[Any] = [
        {
            "photo": f"{n:04d}.jpg",
            "said": [scene(n)["said"]],
            "objects": [{"label": label, "bbox": box} for label, box, _ in scene(n)["boxes"]],
        }
        for n in range(1, count + 1)
    ]
    _jsonl(folder / "own.jsonl", rows)
    text = (
        "name: warehouse\ntitle: The warehouse\nformat: table\nfiles: own.jsonl\n"
        "columns: {image: photo, captions: said, boxes: objects}\n"
        "box_format: xyxy\nbox_unit: fractions\n"
        "license: cc-by-4.0\nimage_license: cc-by-2.0\n"
        "attribution: Annotations by the people of the warehouse, CC BY 4.0.\n"
        "homepage: https://warehouse.example/\n"
    )
    (folder / "own.yaml").write_text(text, encoding="utf-8")
    return folder / "own.yaml"


def scene(number: int) -> dict[str, Any]:
    """The scene of image number 1, 2, ..."""
    return SCENES[(number - 1) % len(SCENES)]


def coco_narratives(folder: Path, count: int) -> None:
    """Narratives of the first images of COCO."""
    for split, numbers in (("train", range(1, count + 1)), ("val", range(0))):
        lines = [{"image_id": str(n), "caption": scene(n)["said"]} for n in numbers]
        _jsonl(folder / f"coco_{split}_captions.jsonl", lines)


def lvis_files(folder: Path, count: int) -> None:
    """LVIS for the first images of COCO."""
    for split, numbers in (("train", range(1, count + 1)), ("val", range(0))):
        document = {
            "images": [
                {
                    "id": n,
                    "width": 640,
                    "height": 480,
                    "neg_category_ids": [2, 3][: n % 3],
                    "not_exhaustive_category_ids": [1] if n % 2 else [],
                }
                for n in numbers
            ],
            "annotations": [
                {"id": n, "image_id": n, "category_id": 1, "bbox": scene(n)["collar"]}
                for n in numbers
            ],
            "categories": [
                {"id": 1, "name": "dog_collar"},
                {"id": 2, "name": "wet_suit"},
                {"id": 3, "name": "bat_(animal)"},
            ],
        }
        (folder / f"lvis_v1_{split}.json").write_text(json.dumps(document))


def open_images_files(folder: Path, count: int) -> None:
    """The train split of Open Images V7."""
    images = [(f"{n:016x}", scene(n)) for n in range(1, count + 1)]
    corners = ",".join(["0.1"] * 8)
    rows = {
        "oidv6-train-annotations-bbox.csv": [
            "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,"
            "IsGroupOf,IsDepiction,IsInside",
            *(
                f"{i},xclick,{_ID_OF[label]},1,{x1},{x2},{y1},{y2},{_FLAGS[flag]}"
                for i, found in images
                for label, (x1, y1, x2, y2), flag in found["boxes"]
            ),
        ],
        "train-annotations-human-imagelabels-boxable.csv": [
            "ImageID,Source,LabelName,Confidence",
            *(
                f"{i},verification,{_ID_OF[label]},{there}"
                for i, found in images
                for label, there in found["labels"].items()
            ),
        ],
        "oidv6-train-annotations-vrd.csv": [
            "ImageID,LabelName1,LabelName2,XMin1,XMax1,YMin1,YMax1,XMin2,XMax2,YMin2,YMax2,"
            "RelationshipLabel",
            *(
                f"{i},{_ID_OF[one]},{_ID_OF[other]},{corners},{predicate}"
                for i, found in images
                for one, predicate, other in found["relations"]
            ),
        ],
        "train-images-boxable-with-rotation.csv": [
            "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,"
            "OriginalSize,OriginalMD5,Thumbnail300KURL,Rotation",
            *(f'{i},train,o,https://flickr.test/{i},{_BY},p,"A, B",T,1,x==,,' for i, _ in images),
        ],
        "oidv7-class-descriptions.csv": [
            "LabelName,DisplayName",
            *(f'{_ID_OF[name]},"{name}"' for name in _NAMES),
        ],
        "oidv6-attributes-description.csv": [f"{_ID_OF['Wooden']},Wooden"],
        "oidv6-relationships-description.csv": ["on,on", "inside_of,inside_of", "under,under"],
    }
    for name, lines in rows.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    narratives = [{"image_id": i, "caption": found["said"]} for i, found in images]
    _jsonl(folder / "open_images_train_v6_captions.jsonl", narratives)


def motion_files(folder: Path, count: int) -> None:
    """The train split of HumanML3D."""
    data = folder / "HumanML3D"
    (data / "texts").mkdir(parents=True, exist_ok=True)
    names = [f"{n:06d}" for n in range(count)]
    for number, name in enumerate(names):
        lines = MOTIONS[number % len(MOTIONS)]
        (data / "texts" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (data / "train.txt").write_text("\n".join(names) + "\n")
    index = "".join(
        f"./pose_data/x/{name}.npy,0,{70 + n},{name}.npy\n" for n, name in enumerate(names)
    )
    (data / "index.csv").write_text(f"source_path,start_frame,end_frame,new_name\n{index}")


def _jsonl(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
