"""Reads a whole train split of Open Images, beside row-by-row Python with the csv module.

The stand-ins have the true formats and sizes (see open_images_files.py). Time and peak memory of
each way are those of a process of its own.

    python benchmarks/open_images_reader.py [--scale 1.0] [--folder bench_out/open_images]
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import open_images_files

FLAGS = ("IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside")


def main() -> None:
    """Write the files if they aren't there, read them both ways, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("bench_out/open_images"))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--way", choices=["ours", "again", "csv"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = args.folder / f"scale-{args.scale:g}"
    if args.way:
        print(json.dumps({"ours": _ours, "again": _ours, "csv": _row_by_row}[args.way](folder)))
        return
    if not (folder / "complete").exists():
        open_images_files.write(folder, "train", args.scale)
        (folder / "complete").touch()
    size_gb = sum(path.stat().st_size for path in folder.glob("*.*")) / 1e9
    found = {way: _in_a_process(way, args) for way in ("ours", "again", "csv")}
    ours, again, rows = found["ours"], found["again"], found["csv"]
    print(f"Open Images train, {size_gb:.1f} GB of tables, {ours['contexts']:,} contexts")
    print(f"  row by row, csv module   {rows['seconds']:7.1f} s  {rows['memory_gb']:5.2f} GB")
    print(
        f"  mminstruct, first start  {ours['seconds']:7.1f} s  {ours['memory_gb']:5.2f} GB"
        f"   {rows['seconds'] / ours['seconds']:.1f} x as fast"
    )
    print(f"  mminstruct, second start {again['seconds']:7.1f} s  {again['memory_gb']:5.2f} GB")


def _in_a_process(way: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--folder", str(args.folder), "--way", way]
    done = subprocess.run(
        [*command, "--scale", str(args.scale)], check=True, capture_output=True, text=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _measured(started_s: float, contexts: int) -> dict[str, Any]:
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = time.perf_counter() - started_s
    return {"seconds": seconds, "memory_gb": peak_kb / 1e6, "contexts": contexts}


def _ours(folder: Path) -> dict[str, Any]:
    """What a run does before its first request; the first time it writes the contexts."""
    started_s = time.perf_counter()
    from mminstruct import generate, sources

    source = sources.get("OPENIMAGESV7")
    files = source.locate([folder], "train")
    if files is None:
        raise SystemExit(f"no files in {folder}")
    contexts, _ = generate.contexts_dataset(source, files, "train", folder / "cache")
    return _measured(started_s, len(contexts))


def _row_by_row(folder: Path) -> dict[str, Any]:
    """The same contexts as plain Python would make them, one JSON line each."""
    started_s = time.perf_counter()
    narratives: dict[str, list[str]] = defaultdict(list)
    with (folder / "open_images_train_v6_captions.jsonl").open(encoding="utf-8") as file:
        for line in file:
            narrative = json.loads(line)
            narratives[narrative["image_id"]].append(narrative["caption"])
    names = dict(_pairs(folder / "oidv7-class-descriptions.csv"))
    names.update(_pairs(folder / "oidv6-attributes-description.csv"))
    images = {}
    for row in _rows(folder / "train-images-boxable-with-rotation.csv"):
        if row["ImageID"] in narratives:
            images[row["ImageID"]] = {
                key: row[key]
                for key in ("OriginalLandingURL", "License", "Author", "Title", "Rotation")
            }
    boxes = defaultdict(list)
    for row in _rows(folder / "oidv6-train-annotations-bbox.csv"):
        if row["ImageID"] in narratives:
            corners = [float(row[key]) for key in ("XMin", "YMin", "XMax", "YMax")]
            flags = {key: {"1": True, "0": False}.get(row[key]) for key in FLAGS}
            boxes[row["ImageID"]].append({"label": names[row["LabelName"]], "box": corners} | flags)
    labels = defaultdict(list)
    for row in _rows(folder / "train-annotations-human-imagelabels-boxable.csv"):
        if row["ImageID"] in narratives:
            labels[row["ImageID"]].append((names[row["LabelName"]], row["Confidence"] == "1"))
    relations = defaultdict(list)
    for row in _rows(folder / "oidv6-train-annotations-vrd.csv"):
        if row["ImageID"] in narratives:
            words = (names[row["LabelName1"]], row["RelationshipLabel"], names[row["LabelName2"]])
            relations[row["ImageID"]].append(words)
    with (folder / "contexts.jsonl").open("w", encoding="utf-8") as out:
        for image in sorted(narratives):
            context = {
                "id": image,
                "media": images.get(image),
                "narratives": narratives[image],
                "boxes": boxes[image],
                "labels": labels[image],
                "relations": relations[image],
            }
            out.write(json.dumps(context) + "\n")
    (folder / "contexts.jsonl").unlink()
    return _measured(started_s, len(narratives))


def _rows(path: Path) -> Any:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _pairs(path: Path) -> Any:
    with path.open(encoding="utf-8", newline="") as file:
        yield from (row[:2] for row in csv.reader(file))


if __name__ == "__main__":
    main()
