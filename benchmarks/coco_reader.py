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
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from mminstruct.sources._coco_own import CATEGORIES

IMAGES, INSTANCES, CAPTIONS = 82_783, 604_907, 414_113
SKIPPED_CATEGORY_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
CATEGORY_IDS = [n for n in range(1, 91) if n not in SKIPPED_CATEGORY_IDS]
WORDS = ["a", "the", "red", "old", "small", "dog", "tram", "sofa", "stands", "near", "beside"]
TARGET_TIME, TARGET_MEMORY = 1 / 4, 1 / 3


def generate(folder: Path) -> None:
    """Writes the pair, unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(2014)
    ids = rng.sample(range(1, 600_000), IMAGES)
    for name, write in (("captions", write_captions), ("instances", write_instances)):
        target = folder / f"{name}_train2014.json"
        if target.exists():
            continue
        part = target.with_suffix(".part")
        with part.open("w", encoding="ascii") as file:
            file.write('{"info": {"description": "invented"}, "images": ')
            json.dump([image(i) for i in ids], file)
            file.write(', "licenses": [], "annotations": [')
            write(file, ids, random.Random(name))
            file.write("]")
            if name == "instances":
                file.write(', "categories": ')
                named = zip(CATEGORY_IDS, sorted(CATEGORIES), strict=True)
                json.dump([{"id": i, "name": name} for i, name in named], file)
            file.write("}")
        part.replace(target)


def image(image_id: int) -> dict[str, object]:
    """An entry of ``images``."""
    file_name = f"COCO_train2014_{image_id:012d}.jpg"
    return {
        "license": image_id % 8 + 1,
        "file_name": file_name,
        "coco_url": f"http://images.cocodataset.org/train2014/{file_name}",
        "height": 480,
        "width": 640,
        "date_captured": "2013-11-14 16:28:13",
        "flickr_url": f"http://farm1.staticflickr.com/1/{image_id}_{image_id:010x}_z.jpg",
        "id": image_id,
    }


def write_captions(file: IO[str], ids: list[int], rng: random.Random) -> None:
    """Five captions or a few more for each image."""
    for n in range(CAPTIONS):
        caption = " ".join(rng.choices(WORDS, k=10)).capitalize()
        entry = {"image_id": ids[n % IMAGES], "id": n + 1, "caption": f"{caption} {n}."}
        file.write((", " if n else "") + json.dumps(entry))


def write_instances(file: IO[str], ids: list[int], rng: random.Random) -> None:
    """One outline of 4 to 43 points for each box, as long on average as in the real file."""
    pool = [f"{rng.uniform(0, 640):.2f}" for _ in range(100_000)]
    for n in range(INSTANCES):
        start, length = rng.randrange(len(pool) - 100), 2 * rng.randint(4, 43)
        x, y = rng.uniform(0, 400), rng.uniform(0, 300)
        w, h = rng.uniform(5, 240), rng.uniform(5, 180)
        file.write(
            f'{", " if n else ""}{{"segmentation": [[{", ".join(pool[start : start + length])}]], '
            f'"area": {w * h:.5f}, "iscrowd": {int(n % 80 == 0)}, '
            f'"image_id": {ids[rng.randrange(IMAGES)]}, '
            f'"bbox": [{x:.2f}, {y:.2f}, {w:.2f}, {h:.2f}], '
            f'"category_id": {rng.choice(CATEGORY_IDS)}, "id": {n + 1}}}'
        )


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
    generate(arguments.folder)
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
