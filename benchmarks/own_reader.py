"""Reads data of one's own beside what else reads the same: a labelling tool's file, and tables.

The same invented images and boxes are written as a tool exports them (COCO's format, boxes alone),
as COCO itself has them (with a caption each), and as tables. Each reader runs in a process of its
own. Printed are seconds of reading and peak memory, as they are and as ratios: of the tool's
file to COCO2017's own reader and to the index of pycocotools, of tables to a plain read by pyarrow,
which makes nothing of the rows.

    python benchmarks/own_reader.py [--images 100000] [--runs 3] [--folder bench_out/own]

Without pycocotools (``pip install mminstruct[bench]``) that comparison is left out.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mminstruct.sources._coco_own import CATEGORIES

BOXES_EACH = 9
LABELS = sorted(CATEGORIES)


def images(count: int) -> Iterator[tuple[dict[str, Any], list[tuple[int, list[float]]]]]:
    """Images, each with the category and xywh of its boxes."""
    rng = random.Random(21)
    for number in range(1, count + 1):
        boxes = [
            (
                rng.randrange(len(LABELS)),
                [
                    round(v, 2)
                    for v in (rng.uniform(0, 400), rng.uniform(0, 300))
                    + (rng.uniform(5, 240), rng.uniform(5, 180))
                ],
            )
            for _ in range(BOXES_EACH)
        ]
        name = f"{number:012d}.jpg"
        yield {"id": number, "file_name": name, "width": 640, "height": 480, "license": 4}, boxes


def generate(folder: Path, count: int) -> None:
    """Write all files, unless they are there."""
    done = folder / "done"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    listed: list[str] = []
    said: list[str] = []
    number = 0
    with (
        (folder / "instances_train2017.json").open("w") as tool,
        (folder / "photos.jsonl").open("w") as lines,
        (folder / "boxes.csv").open("w", newline="") as table,
    ):
        rows = csv.writer(table)
        rows.writerow(["image", "width", "height", "label", "bbox_x", "bbox_y", "bbox_width",
                       "bbox_height"])  # fmt: skip
        tool.write('{"annotations": [')
        for image, boxes in images(count):
            listed.append(json.dumps(image))
            text = f"Invented scene {image['id']}."
            said.append(json.dumps({"id": image["id"], "image_id": image["id"], "caption": text}))
            size = {"width": 640, "height": 480}
            named = [{"label": LABELS[label], "bbox": bbox} for label, bbox in boxes]
            row = {"image": image["file_name"], "captions": [text], "boxes": named, **size}
            lines.write(json.dumps(row) + "\n")
            for label, bbox in boxes:
                number += 1
                outline = [v for n in range(12) for v in (bbox[0] + n, bbox[1] + n)]
                entry = {"id": number, "image_id": image["id"], "category_id": label + 1,
                         "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0,
                         "segmentation": [outline]}  # fmt: skip
                tool.write((", " if number > 1 else "") + json.dumps(entry))
                rows.writerow([image["file_name"], 640, 480, LABELS[label], *bbox])
        named_categories = [{"id": n + 1, "name": name} for n, name in enumerate(LABELS)]
        head = f'"images": [{", ".join(listed)}], "licenses": [], "info": {{}}'
        tool.write(f'], {head}, "categories": {json.dumps(named_categories)}}}')
    captions = f'{{{head}, "annotations": [{", ".join(said)}]}}'
    (folder / "captions_train2017.json").write_text(captions)
    import pyarrow.json
    import pyarrow.parquet

    pyarrow.parquet.write_table(
        pyarrow.json.read_json(folder / "photos.jsonl"), folder / "photos.parquet"
    )
    done.touch()


def count_contexts(contexts: Iterator[Any]) -> int:
    """The boxes of all contexts."""
    return sum(len(context.boxes) for context in contexts)


def read_own(file: str) -> Callable[[Path], int]:
    """A reader of a file through own data."""

    def read(folder: Path) -> int:
        from mminstruct import sources
        from mminstruct.sources import Files, ReadReport

        source = sources.get(str(folder / file))
        files = Files({"train:0": folder / file}, fingerprint="")
        return count_contexts(source.read(files, ReadReport()))

    return read


def read_coco(folder: Path) -> int:
    """COCO2017's reader, on boxes and a caption each."""
    from mminstruct.sources import Files, ReadReport
    from mminstruct.sources.coco2017 import SOURCE

    paths = {role: folder / f"{role}_train2017.json" for role in ("captions", "instances")}
    return count_contexts(SOURCE.read(Files(paths, fingerprint=""), ReadReport()))


def read_pycocotools(folder: Path) -> int:
    """The index of pycocotools."""
    from pycocotools.coco import COCO

    index = COCO(str(folder / "instances_train2017.json"))
    return sum(len(index.imgToAnns[image]) for image in index.imgs)


def read_pyarrow(file: str) -> Callable[[Path], int]:
    """A plain read of a table."""

    def read(folder: Path) -> int:
        import pyarrow.csv
        import pyarrow.json
        import pyarrow.parquet

        readers = {
            ".jsonl": pyarrow.json.read_json,
            ".csv": pyarrow.csv.read_csv,
            ".parquet": pyarrow.parquet.read_table,
        }
        path = folder / file
        return int(readers[path.suffix](path).num_rows)

    return read


TOOL = "instances_train2017.json"
TABLES = ("photos.jsonl", "boxes.csv", "photos.parquet")
READERS = {
    f"own {TOOL}": read_own(TOOL),
    "COCO2017": read_coco,
    "pycocotools": read_pycocotools,
    **{f"own {file}": read_own(file) for file in TABLES},
    **{f"pyarrow {file}": read_pyarrow(file) for file in TABLES},
}
PAIRS = [
    (f"own {TOOL}", "COCO2017"),
    (f"own {TOOL}", "pycocotools"),
    *((f"own {file}", "COCO2017") for file in TABLES),
    *((f"own {file}", f"pyarrow {file}") for file in TABLES),
]


def measure_here(reader: str, folder: Path) -> None:
    """Run one reader in this process and print what it took as JSON, in the last line."""
    import mminstruct.sources  # noqa: F401 (what it imports is no reading)

    start = time.perf_counter()
    count = READERS[reader](folder)
    wall_s = time.perf_counter() - start
    # Linux counts KiB, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps({"wall_s": wall_s, "peak_bytes": peak, "count": count}))


def measure(reader: str, folder: Path) -> dict[str, float]:
    """Wall time and peak memory of one reader in a new process."""
    command = [sys.executable, __file__, "--folder", str(folder), "--only", reader]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    measured: dict[str, float] = json.loads(output.splitlines()[-1])
    return measured


def main() -> None:
    """Compare the readers, or run the one named by ``--only``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("bench_out/own"))
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=READERS)
    arguments = parser.parse_args()
    if arguments.only:
        measure_here(arguments.only, arguments.folder)
        return
    folder = arguments.folder / str(arguments.images)
    generate(folder, arguments.images)
    readers = dict(READERS)
    if importlib.util.find_spec("pycocotools") is None:
        del readers["pycocotools"]
        print("pycocotools isn't installed: left out")
    # Alternating, so that all meet the same page cache and the same neighbours.
    runs = [{r: measure(r, folder) for r in readers} for _ in range(arguments.runs)]
    medians = {
        reader: tuple(
            statistics.median(run[reader][key] for run in runs) for key in ("wall_s", "peak_bytes")
        )
        for reader in readers
    }
    expected = arguments.images * BOXES_EACH
    for reader, (wall_s, peak_bytes) in medians.items():
        count = int(runs[0][reader]["count"])
        if not reader.startswith("pyarrow") and not 0.9 * expected < count <= expected:
            sys.exit(f"{reader}: got {count} boxes against {expected} expected")
        rate = arguments.images / wall_s
        print(f"{reader:28} {wall_s:6.2f} s {rate:9,.0f} images/s {peak_bytes / 2**20:6.0f} MiB")
    for one, other in PAIRS:
        if one in medians and other in medians:
            ratios = zip(medians[one], medians[other], strict=True)
            time_ratio, memory_ratio = (a / b for a, b in ratios)
            print(f"{one} to {other}: {time_ratio:.2f} of the time, {memory_ratio:.2f} of memory")


if __name__ == "__main__":
    main()
