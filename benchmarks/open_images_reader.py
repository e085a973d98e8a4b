"""Reads a whole train split of Open Images, beside row-by-row Python with the csv module.

The stand-ins have the true formats and sizes (see open_images_files.py). Time and peak memory of
each way are those of a process of its own. Both make the same contexts in an Arrow file each, which
is checked; the plain way does no more for it than these files call for.

    python benchmarks/open_images_reader.py [--scale 1.0] [--folder bench_out/open_images]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import open_images_files
import pyarrow as pa

FLAGS = {
    "is_group": "IsGroupOf", "is_occluded": "IsOccluded", "is_truncated": "IsTruncated",
    "is_depiction": "IsDepiction", "is_inside": "IsInside",
}  # fmt: skip
TRI_STATE = {"0": False, "1": True, "-1": None}
SPOKEN = {"inside_of": "is inside", "interacts_with": "interacts with"}
BY_ROW = "contexts-by-row.arrow"


def main() -> None:
    """Write the files if they aren't there, read them both ways, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("bench_out/open_images"))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--way", choices=sorted(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = args.folder / f"scale-{args.scale:g}"
    if args.way:
        print(json.dumps(WAYS[args.way](folder)))
        return
    if not (folder / "complete").exists():
        open_images_files.write(folder, "train", args.scale)
        (folder / "complete").touch()
    # Whoever reads first would wait for the disk, and the others not.
    size_gb = sum(_read(path) for path in folder.glob("*.*")) / 1e9
    # What is kept of files that were read before, and the digests that tell them, is kept there.
    shutil.rmtree(folder / "cache", ignore_errors=True)
    environment = {**os.environ, "HF_HOME": str(folder / "cache")}
    found = {way: _in_a_process(way, args, environment) for way in WAYS}
    ours, again, rows = found["ours"], found["again"], found["csv"]
    print(f"Open Images train, {size_gb:.1f} GB of tables, {ours['contexts']:,} contexts")
    print(f"  row by row, csv module   {rows['seconds']:7.1f} s  {rows['memory_gb']:5.2f} GB")
    print(
        f"  mminstruct, first start  {ours['seconds']:7.1f} s  {ours['memory_gb']:5.2f} GB"
        f"   {rows['seconds'] / ours['seconds']:.1f} x as fast"
    )
    print(f"  mminstruct, second start {again['seconds']:7.1f} s  {again['memory_gb']:5.2f} GB")


def _read(path: Path) -> int:
    """The file's size, in bytes; it is in the page cache from then on."""
    with path.open("rb") as file:
        return sum(map(len, iter(lambda: file.read(2**24), b"")))


def _in_a_process(
    way: str, args: argparse.Namespace, environment: dict[str, str]
) -> dict[str, Any]:
    command = [sys.executable, __file__, "--folder", str(args.folder), "--way", way]
    done = subprocess.run(
        [*command, "--scale", str(args.scale)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
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
    from mminstruct import sources
    from mminstruct.rows.contexts import read_contexts

    source = sources.get("OPENIMAGESV7")
    files = source.locate([folder], "train")
    if files is None:
        raise SystemExit(f"no files in {folder}")
    contexts = read_contexts(source, files, "train", folder / "cache").dataset()
    return _measured(started_s, len(contexts))


def _row_by_row(folder: Path) -> dict[str, Any]:
    """The same contexts in the same kind of file, as plain Python would make them."""
    started_s = time.perf_counter()
    narratives = _narratives(folder)
    names = dict(_pairs(folder / "oidv7-class-descriptions.csv"))
    images = {}
    for row in _rows(folder / "train-images-boxable-with-rotation.csv"):
        if row["ImageID"] in narratives:
            images[row["ImageID"]] = _media(row)
    boxes = defaultdict(list)
    for row in _rows(folder / "oidv6-train-annotations-bbox.csv"):
        if row["ImageID"] in narratives and row["LabelName"] in names:
            corners = [float(row[key]) for key in ("XMin", "YMin", "XMax", "YMax")]
            if degrees := images[row["ImageID"]]["rotation_deg"]:
                corners = _turned(degrees, *corners)
            if corners[0] < corners[2] and corners[1] < corners[3]:
                box = {"label": names[row["LabelName"]], "bbox_xyxy_norm": corners}
                for flag, column in FLAGS.items():
                    box[flag] = TRI_STATE[row[column]]
                boxes[row["ImageID"]].append(box)
    labels = defaultdict(list)
    for row in _rows(folder / "train-annotations-human-imagelabels-boxable.csv"):
        if row["ImageID"] in narratives and row["LabelName"] in names:
            labels[row["ImageID"]].append((names[row["LabelName"]], row["Confidence"] == "1"))
    for label_id, text in _pairs(folder / "oidv6-attributes-description.csv"):
        names.setdefault(label_id, text.replace("(made of)", "made of ").lower())
    relations = defaultdict(list)
    for row in _rows(folder / "oidv6-train-annotations-vrd.csv"):
        if row["ImageID"] in narratives:
            predicate = row["RelationshipLabel"]
            relation = {
                "subject": names[row["LabelName1"]],
                "predicate": SPOKEN.get(predicate, predicate),
                "object": names[row["LabelName2"]],
            }
            relations[row["ImageID"]].append(relation)
    with (
        pa.OSFile(str(folder / "cache" / BY_ROW), "wb") as file,
        pa.ipc.new_stream(file, pa.schema([("id", pa.string()), ("context", pa.string())])) as out,
    ):
        ids = sorted(narratives)
        for start in range(0, len(ids), 1000):
            piece = ids[start : start + 1000]
            texts = []
            for image in piece:
                annotations = {
                    "narratives": [{"text": text} for text in narratives[image]],
                    "labels": _agreeing(labels[image], {box["label"] for box in boxes[image]}),
                    "relations": relations[image],
                }
                context = {
                    "id": image,
                    "media": images[image],
                    "boxes": boxes[image],
                    "annotations": {kind: items for kind, items in annotations.items() if items},
                }
                texts.append(json.dumps(context))
            out.write_batch(pa.record_batch([piece, texts], names=["id", "context"]))
    return _measured(started_s, len(ids))


def _narratives(folder: Path) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = defaultdict(list)
    with (folder / "open_images_train_v6_captions.jsonl").open(encoding="utf-8") as file:
        for line in file:
            narrative = json.loads(line)
            text = " ".join(narrative["caption"].split())
            if text and text not in texts[narrative["image_id"]]:
                texts[narrative["image_id"]].append(text)
    return texts


def _media(row: dict[str, str]) -> dict[str, Any]:
    name = f"{row['ImageID']}.jpg"
    degrees = row["Rotation"]
    return {
        "file_name": name,
        "url": f"https://open-images-dataset.s3.amazonaws.com/{row['Subset']}/{name}",
        "landing_url": row["OriginalLandingURL"],
        "license": "CC-BY-2.0" if row["License"] == open_images_files.BY else None,
        "license_url": row["License"],
        "author": " ".join(row["Author"].split()) or None,
        "author_url": row["AuthorProfileURL"],
        "title": " ".join(row["Title"].split()) or None,
        "rotation_deg": 0 if degrees in ("", "nan") else int(float(degrees)),
    }


def _turned(degrees: int, x1: float, y1: float, x2: float, y2: float) -> list[float]:
    if degrees == 90:
        return [y1, round(1 - x2, 6), y2, round(1 - x1, 6)]
    if degrees == 180:
        return [round(1 - x2, 6), round(1 - y2, 6), round(1 - x1, 6), round(1 - y1, 6)]
    return [round(1 - y2, 6), x1, round(1 - y1, 6), x2]


def _agreeing(items: list[tuple[str, bool]], boxed: set[str]) -> list[dict[str, Any]]:
    there = boxed | {label for label, present in items if present}
    doubtful = {label for label, present in items if not present and label in there}
    kept = {label: present for label, present in items if label not in doubtful}
    return [
        {"label": label} if present else {"label": label, "present": False}
        for label, present in kept.items()
    ]


def _compared(folder: Path) -> dict[str, Any]:
    """Counts the contexts; the two ways must have made equal ones."""
    from mminstruct.schema import decode_context

    started_s = time.perf_counter()
    count = 0
    (ours,) = (folder / "cache").rglob("contexts.arrow")
    with pa.OSFile(str(ours)) as one, pa.OSFile(str(folder / "cache" / BY_ROW)) as other:
        batches = zip(pa.ipc.open_stream(one), pa.ipc.open_stream(other), strict=True)
        for pair in batches:
            texts = zip(*(batch.column("context").to_pylist() for batch in pair), strict=True)
            for mine, plain in texts:
                count += 1
                if decode_context(mine) != decode_context(plain):
                    raise SystemExit(f"not the same context:\n{mine}\n{plain}")
    (folder / "cache" / BY_ROW).unlink()
    return _measured(started_s, count)


def _rows(path: Path) -> Any:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _pairs(path: Path) -> Any:
    with path.open(encoding="utf-8", newline="") as file:
        yield from (row[:2] for row in csv.reader(file))


WAYS = {"ours": _ours, "again": _ours, "csv": _row_by_row, "compared": _compared}

if __name__ == "__main__":
    main()
