"""Reads a file pair of train2014's size with our reader and with pycocotools, side by side.

Each reader runs in a process of its own and ends with the same information per image: file name,
size, licence, captions, labels and boxes. Printed are the wall time of reading (without imports)
and the peak resident memory of the process (with all it imports, on our side `datasets` too).

    python benchmarks/coco_reader.py [--runs 3] [--folder bench_out/coco2014]

Needs ``pip install mminstruct[bench]``. The files are invented, always the same, and kept for the
next run (about 400 MB).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import coco_files

TARGET_TIME, TARGET_MEMORY = 1 / 4, 1 / 3


def read_with_ours(folder: Path) -> tuple[float, tuple[int, int, int]]:
    """Seconds, and counts of images, captions and boxes of all contexts."""
    from mminstruct.sources import Files, ReadReport
    from mminstruct.sources.coco2014 import SOURCE

    start = time.perf_counter()
    paths = {name: folder / f"{name}_train2014.json" for name in ("captions", "instances")}
    images = captions = boxes = 0
    for context in SOURCE.read(Files(paths, fingerprint=""), ReadReport()):
        images += 1
        captions += len(context.captions)
        boxes += len(context.boxes)
    return time.perf_counter() - start, (images, captions, boxes)


def read_with_pycocotools(folder: Path) -> tuple[float, tuple[int, int, int]]:
    """The same with pycocotools: its two indices, then one plain record per image."""
    from pycocotools.coco import COCO

    start = time.perf_counter()
    instances = COCO(str(folder / "instances_train2014.json"))
    captions_index = COCO(str(folder / "captions_train2014.json"))
    images = captions = boxes = 0
    for image_id in sorted(captions_index.imgs):
        entry = captions_index.imgs[image_id]
        record = {
            "file_name": entry["file_name"],
            "size": (entry["width"], entry["height"]),
            "license": entry["license"],
            "captions": [a["caption"] for a in captions_index.imgToAnns[image_id]],
            "boxes": [
                (instances.cats[a["category_id"]]["name"], a["bbox"], a["iscrowd"])
                for a in instances.imgToAnns[image_id]
            ],
        }
        images += 1
        captions += len(record["captions"])
        boxes += len(record["boxes"])
    return time.perf_counter() - start, (images, captions, boxes)


READERS = {"mminstruct": read_with_ours, "pycocotools": read_with_pycocotools}


def measure_here(reader: str, folder: Path) -> None:
    """Runs one reader in this process and prints what it took as JSON, in the last line."""
    wall_s, counts = READERS[reader](folder)
    # Linux counts KiB, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    sys.stdout.write(json.dumps({"wall_s": wall_s, "peak_bytes": peak, "counts": counts}) + "\n")


def measure(reader: str, folder: Path) -> dict[str, float]:
    """Wall time and peak memory of one reader in a new process."""
    command = [sys.executable, __file__, "--folder", str(folder), "--only", reader]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    measured: dict[str, float] = json.loads(output.splitlines()[-1])
    return measured


def main() -> None:
    """Compares the readers, or runs the one named by ``--only``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("bench_out/coco2014"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=READERS)
    arguments = parser.parse_args()
    if arguments.only:
        measure_here(arguments.only, arguments.folder)
        return
    coco_files.write(arguments.folder, 2014, 1.0)
    medians = {}
    # Alternating, so that both meet the same page cache and the same neighbours.
    runs = [{r: measure(r, arguments.folder) for r in READERS} for _ in range(arguments.runs)]
    if len({str(run[reader]["counts"]) for run in runs for reader in READERS}) > 1:
        sys.exit(f"the readers disagree: {runs}")
    for reader in READERS:
        wall_s, peak_bytes = (
            statistics.median(run[reader][key] for run in runs) for key in ("wall_s", "peak_bytes")
        )
        medians[reader] = (wall_s, peak_bytes)
        sys.stdout.write(f"{reader:12} {wall_s:6.2f} s  {peak_bytes / 2**20:7.0f} MiB peak\n")
    for n, (what, target) in enumerate((("time", TARGET_TIME), ("memory", TARGET_MEMORY))):
        ratio = medians["mminstruct"][n] / medians["pycocotools"][n]
        verdict = "met" if ratio <= target else "MISSED"
        sys.stdout.write(f"{what}: {ratio:.3f} of pycocotools (target {target:.3f}: {verdict})\n")


if __name__ == "__main__":
    main()
