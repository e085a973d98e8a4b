"""Writes stand-ins for the files of Open Images V7 in their true formats, by default of full size.

Ids, boxes, labels, authors and narratives are drawn at random. Quotes, commas, -1, empty fields,
rotations, several narratives for one image and images without one occur as in the real files.

    python benchmarks/open_images_files.py FOLDER [--scale 0.01] [--split train]
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

IMAGES = {"train": 1_743_042, "validation": 41_620, "test": 125_436}
NARRATIVES = {"train": 507_444, "validation": 41_691, "test": 126_020}
BOXES = {"train": 14_610_229, "validation": 303_980, "test": 937_327}
LABELS = {"train": 8_996_795, "validation": 256_707, "test": 763_801}
RELATIONS = {"train": 3_174_291, "validation": 27_243, "test": 82_746}
CLASSES, BOXABLE, ATTRIBUTES = 20_638, 600, 15
ROWS_PER_PIECE = 200_000

WORDS = (
    "harbour", "lantern", "meadow", "bicycle", "window", "orchard", "puddle", "bench",
    "kettle", "scarf", "railing", "pebble", "staircase", "awning", "market", "ferry",
    "hillside", "blanket", "mirror", "fountain", "ladder", "teapot", "crane", "tunnel",
)  # fmt: skip
PREDICATES = ("at", "on", "holds", "plays", "interacts_with", "inside_of", "wears", "is", "under")
BY = "https://creativecommons.org/licenses/by/2.0/"


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the full size")
    parser.add_argument("--split", default="train", choices=sorted(IMAGES))
    args = parser.parse_args()
    write(args.folder, args.split, args.scale)


def write(folder: Path, split: str, scale: float) -> None:
    """All files of a split."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    count = {name: max(10, int(table[split] * scale)) for name, table in _COUNTS.items()}
    ids = np.sort(rng.choice(2**50, count["images"], replace=False)) * 11 + 3
    names = [f"{i:016x}" for i in ids.tolist()]
    _classes(folder)
    _narratives(folder, split, names, count["narratives"], rng)
    _boxes(folder, split, names, count["boxes"], rng)
    _labels(folder, split, names, count["labels"], rng)
    _relations(folder, split, names, count["relations"], rng)
    _images(folder, split, names, rng)


_COUNTS = {
    "images": IMAGES, "narratives": NARRATIVES, "boxes": BOXES, "labels": LABELS,
    "relations": RELATIONS,
}  # fmt: skip


def label_id(number: int) -> str:
    """The id of a label by its number."""
    return f"/m/0{number:05x}"


def _classes(folder: Path) -> None:
    with (folder / "oidv7-class-descriptions.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["LabelName", "DisplayName"])
        for number in range(CLASSES):
            name = f"{WORDS[number % len(WORDS)].title()} {number}"
            if number % 1500 == 1499:
                name = f'{name}, rows and "heaps"'
            table.writerow([label_id(number), name])
    with (folder / "oidv6-attributes-description.csv").open("w", encoding="utf-8") as file:
        for number in range(ATTRIBUTES):
            file.write(f"{label_id(CLASSES + number)},(made of)Stuff{number}\n")
    with (folder / "oidv6-relationships-description.csv").open("w", encoding="utf-8") as file:
        file.writelines(f"{name},{name}\n" for name in PREDICATES)


def _rows(
    names: list[str], count: int, rng: np.random.Generator
) -> Iterator[tuple[list[str], int]]:
    """Image names for ``count`` rows, sorted as in the real tables, some at a time."""
    owners = np.sort(rng.integers(0, len(names), count))
    for start in range(0, count, ROWS_PER_PIECE):
        piece = owners[start : start + ROWS_PER_PIECE]
        yield [names[i] for i in piece.tolist()], len(piece)


def _boxes(
    folder: Path, split: str, names: list[str], count: int, rng: np.random.Generator
) -> None:
    name = "oidv6-train-annotations-bbox" if split == "train" else f"{split}-annotations-bbox"
    clicks = ",".join(f"XClick{n}{axis}" for axis in "XY" for n in range(1, 5))
    head = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,"
    head += "IsGroupOf,IsDepiction,IsInside"
    with (folder / f"{name}.csv").open("w", encoding="utf-8") as file:
        file.write(f"{head},{clicks}\n" if split == "train" else f"{head}\n")
        for images, size in _rows(names, count, rng):
            low = rng.random((size, 2)) * 0.7
            high = np.minimum(low + 0.02 + rng.random((size, 2)) * 0.4, 1.0)
            flags = rng.choice((0, 1, -1), (size, 5), p=(0.7, 0.25, 0.05)).tolist()
            labels = rng.integers(0, BOXABLE, size).tolist()
            for image, label, (x1, y1), (x2, y2), five in zip(
                images, labels, low.tolist(), high.tolist(), flags, strict=True
            ):
                row = f"{image},xclick,{label_id(label)},1,{x1:.6f},{x2:.6f},{y1:.6f},{y2:.6f},"
                row += ",".join(map(str, five))
                if split == "train":
                    row += (
                        f",{x1:.6f},{x2:.6f},{x1:.6f},{x2:.6f},{y1:.6f},{y2:.6f},{y1:.6f},{y2:.6f}"
                    )
                file.write(row + "\n")


def _labels(
    folder: Path, split: str, names: list[str], count: int, rng: np.random.Generator
) -> None:
    path = folder / f"{split}-annotations-human-imagelabels-boxable.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write("ImageID,Source,LabelName,Confidence\n")
        for images, size in _rows(names, count, rng):
            labels = rng.integers(0, BOXABLE, size).tolist()
            present = rng.integers(0, 2, size).tolist()
            file.writelines(
                f"{image},verification,{label_id(label)},{here}\n"
                for image, label, here in zip(images, labels, present, strict=True)
            )


def _relations(
    folder: Path, split: str, names: list[str], count: int, rng: np.random.Generator
) -> None:
    with (folder / f"oidv6-{split}-annotations-vrd.csv").open("w", encoding="utf-8") as file:
        file.write(
            "ImageID,LabelName1,LabelName2,XMin1,XMax1,YMin1,YMax1,XMin2,XMax2,YMin2,YMax2,"
            "RelationshipLabel\n"
        )
        for images, size in _rows(names, count, rng):
            first, second = rng.integers(0, BOXABLE, (2, size)).tolist()
            kinds = rng.integers(0, len(PREDICATES), size).tolist()
            numbers = np.round(rng.random((size, 8)), 6).tolist()
            for image, one, other, kind, eight in zip(
                images, first, second, kinds, numbers, strict=True
            ):
                predicate = PREDICATES[kind]
                other_id = label_id(CLASSES + other % ATTRIBUTES if predicate == "is" else other)
                corners = ",".join(map(str, eight))
                file.write(f"{image},{label_id(one)},{other_id},{corners},{predicate}\n")


def _images(folder: Path, split: str, names: list[str], rng: np.random.Generator) -> None:
    stem = "train-images-boxable" if split == "train" else f"{split}-images"
    path = folder / f"{stem}-with-rotation.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(
            "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,"
            "OriginalSize,OriginalMD5,Thumbnail300KURL,Rotation\n"
        )
        for start in range(0, len(names), ROWS_PER_PIECE):
            piece = io.StringIO()
            table = csv.writer(piece, lineterminator="\n")
            for number, name in enumerate(names[start : start + ROWS_PER_PIECE], start):
                word = WORDS[number % len(WORDS)]
                host = f"https://farm{number % 9}.staticflickr.com/{number % 7000}/{number}_ab12"
                title = f'A {word}, "seen" twice' if number % 5 == 0 else f"IMG_{number} {word}"
                degrees = ("0.0", "0.0", "0.0", "90.0", "", "nan", "270.0")[number % 7]
                person = f"https://www.flickr.com/people/{number % 90_000}/"
                table.writerow([
                    name, split, f"{host}_o.jpg", f"https://www.flickr.com/photos/{number}", BY,
                    person, f"{word.title()}, the {number % 90_000}th", title,
                    100_000 + number, "q1w2e3r4t5y6u7i8o9p0aA==",
                    f"{host}_z.jpg" if number % 3 else "", degrees,
                ])  # fmt: skip
            file.write(piece.getvalue())


def _narratives(
    folder: Path, split: str, names: list[str], count: int, rng: np.random.Generator
) -> None:
    spoken = "train_v6" if split == "train" else split
    # A few images have two.
    owners = rng.choice(len(names), min(len(names), int(count * 0.99) + 1), replace=False)
    owners = np.concatenate([owners, owners[: max(0, count - len(owners))]]).tolist()
    with (folder / f"open_images_{spoken}_captions.jsonl").open("w", encoding="utf-8") as file:
        for number, owner in enumerate(owners):
            picks = rng.integers(0, len(WORDS), 9).tolist()
            text = "In this image I can see a " + " and a ".join(WORDS[p] for p in picks) + "."
            if number % 9 == 0:
                text += ' A sign says "CAFÉ".'
            line = {
                "dataset_id": f"open_images_{split}",
                "image_id": names[owner],
                "annotator_id": number % 100,
                "caption": text,
            }
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
