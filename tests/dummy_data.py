"""Invented annotation files of every source, for tests that go over all builders."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import coco_files

_BY = "https://creativecommons.org/licenses/by/2.0/"
DOG, CAT, TABLE, WOODEN = "/m/0bt9lr", "/m/01yrx", "/m/04bcr3", "/m/083vt"


def write_all(folder: Path, count: int) -> Path:
    """Files of all sources, with ``count`` images or motions each; returns the folder."""
    for year in (2014, 2017):
        for split in ("train", "val"):
            coco_files(folder, count, year=year, split=split)
    coco_narratives(folder, count)
    lvis_files(folder, count)
    open_images_files(folder, count)
    motion_files(folder, count)
    return folder


def coco_narratives(folder: Path, count: int) -> None:
    """Narratives of the first images of COCO."""
    for split, numbers in (("train", range(1, count + 1)), ("val", range(0))):
        lines = [
            {"dataset_id": "x", "image_id": str(n), "caption": f"In scene {n} I see a dog."}
            for n in numbers
        ]
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
                    "neg_category_ids": [2],
                    "not_exhaustive_category_ids": [1],
                }
                for n in numbers
            ],
            "annotations": [
                {"id": n, "image_id": n, "category_id": 1, "bbox": [300, 30, 40, 50]}
                for n in numbers
            ],
            "categories": [{"id": 1, "name": "dog_collar"}, {"id": 2, "name": "wet_suit"}],
        }
        (folder / f"lvis_v1_{split}.json").write_text(json.dumps(document))


def open_images_files(folder: Path, count: int) -> None:
    """The train split of Open Images V7."""
    ids = [f"{n:016x}" for n in range(1, count + 1)]
    corners = ",".join(["0.1"] * 8)
    rows = {
        "open_images_train_v6_captions.jsonl": [],
        "oidv6-train-annotations-bbox.csv": [
            "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,"
            "IsGroupOf,IsDepiction,IsInside",
            *(f"{i},xclick,{DOG},1,0.1,0.5,0.2,0.9,1,0,0,0,-1" for i in ids),
        ],
        "train-annotations-human-imagelabels-boxable.csv": [
            "ImageID,Source,LabelName,Confidence",
            *(f"{i},verification,{CAT},0" for i in ids),
        ],
        "oidv6-train-annotations-vrd.csv": [
            "ImageID,LabelName1,LabelName2,XMin1,XMax1,YMin1,YMax1,XMin2,XMax2,YMin2,YMax2,"
            "RelationshipLabel",
            *(f"{i},{TABLE},{WOODEN},{corners},is" for i in ids),
        ],
        "train-images-boxable-with-rotation.csv": [
            "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,"
            "OriginalSize,OriginalMD5,Thumbnail300KURL,Rotation",
            *(f'{i},train,o,https://flickr.test/{i},{_BY},p,"A, B",T,1,x==,,0.0' for i in ids),
        ],
        "oidv7-class-descriptions.csv": [
            "LabelName,DisplayName",
            f"{DOG},Dog",
            f"{CAT},Cat",
            f"{TABLE},Table",
        ],
        "oidv6-attributes-description.csv": [f"{WOODEN},Wooden"],
        "oidv6-relationships-description.csv": ["at,at"],
    }
    for name, lines in rows.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    narratives = [{"image_id": i, "caption": f"I can see a dog in scene {i}."} for i in ids]
    _jsonl(folder / "open_images_train_v6_captions.jsonl", narratives)


def motion_files(folder: Path, count: int) -> None:
    """The train split of HumanML3D."""
    data = folder / "HumanML3D"
    (data / "texts").mkdir(parents=True, exist_ok=True)
    names = [f"{n:06d}" for n in range(count)]
    for number, name in enumerate(names):
        text = f"a person takes {number + 2} steps forward#a/DET#0.0#0.0\n"
        (data / "texts" / f"{name}.txt").write_text(text)
    (data / "train.txt").write_text("\n".join(names) + "\n")


def _jsonl(path: Path, lines: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
