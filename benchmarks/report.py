"""Measures rows by ``mminstruct report``, with the annotations of their images and without.

As many rows as LLaVA-Instruct-150K has, three an image, of the three types and of their usual
lengths, in LLaVA's form; the images have COCO's kind of annotations, captions and boxes, and most
of what rows name is there. Each is a process of its own. Printed are seconds and peak memory: the
annotations are read once before, as they would be by a run.

    python benchmarks/report.py [--rows 158000] [--folder bench_out/report]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mminstruct.sources._coco_own import CATEGORIES

LABELS = sorted(CATEGORIES)
ROWS_EACH = 3
BOXES_EACH = 7
CAPTIONS_EACH = 5
WORDS = tuple(f"{a}{b}ish" for a in ("red", "wood", "snow", "glas", "sun") for b in "aeiouy")


def sentence(rng: random.Random, label: str) -> str:
    """One that names a thing, in some words of its own."""
    words = rng.sample(WORDS, 7)
    start = rng.choice(("There is a", "A", "The scene has a", "To one side, a", "Two men and a"))
    return f"{start} {words[0]} {label} {' '.join(words[1:])}."


def answer(rng: random.Random, labels: list[str], sentences: int) -> str:
    """Sentences about some of the labels, one in ten about another."""
    chosen = (rng.choice(LABELS if rng.random() < 0.1 else labels) for _ in range(sentences))
    return " ".join(sentence(rng, label) for label in chosen)


def row(rng: random.Random, image: int, kind: int, labels: list[str]) -> dict[str, Any]:
    """A conversation of four turns, a description, or a turn of reasoning."""
    shape = ((4, 1), (1, 7), (1, 9))[kind]
    turns = []
    for _ in range(shape[0]):
        question = f"What is {rng.choice(WORDS)} about the {rng.choice(labels)}?"
        turns.append({"from": "human", "value": question})
        turns.append({"from": "gpt", "value": answer(rng, labels, shape[1])})
    kinds = ("conversation", "detail_description", "complex_reasoning")
    name = f"{image:012d}.jpg"
    return {"id": f"{image}-{kind}", "image": name, "type": kinds[kind], "conversations": turns}


def generate(folder: Path, count: int) -> None:
    """Write rows and annotations, unless they are there."""
    if (folder / "done").exists():
        return
    annotations = folder / "annotations"
    annotations.mkdir(parents=True, exist_ok=True)
    rng = random.Random(3)
    images, boxes, captions = [], [], []
    with (folder / "rows.json").open("w") as lines:
        for number in range(count):
            image = number // ROWS_EACH + 1
            if number % ROWS_EACH == 0:
                labels = rng.sample(LABELS, 4)
                name = f"{image:012d}.jpg"
                size = {"width": 640, "height": 480, "license": 4}
                images.append({"id": image, "file_name": name, **size})
                for _ in range(BOXES_EACH):
                    bbox = [rng.uniform(0, 400), rng.uniform(0, 300), 120.0, 90.0]
                    found = {"image_id": image, "bbox": bbox, "area": 10800.0, "iscrowd": 0}
                    category = LABELS.index(rng.choice(labels)) + 1
                    boxes.append({"id": len(boxes), "category_id": category, **found})
                for _ in range(CAPTIONS_EACH):
                    text = sentence(rng, rng.choice(labels))
                    captions.append({"id": len(captions), "image_id": image, "caption": text})
            made = row(rng, image, number % ROWS_EACH, labels)
            lines.write(("," if number else "[") + json.dumps(made) + "\n")
        lines.write("]")
    licenses = [{"id": 4, "name": "", "url": "http://creativecommons.org/licenses/by/2.0/"}]
    top: dict[str, Any] = {"images": images, "licenses": licenses}
    categories = [{"id": n, "name": label} for n, label in enumerate(LABELS, 1)]
    for kind, listed in (("instances", boxes), ("captions", captions)):
        more = {"categories": categories} if kind == "instances" else {}
        text = json.dumps({**top, "annotations": listed, **more})
        (annotations / f"{kind}_train2017.json").write_text(text)
    (folder / "done").touch()


def run(folder: Path, *more: str) -> tuple[float, float]:
    """Seconds and peak memory in GB of the command."""
    command = [sys.executable, "-m", "mminstruct", "report", str(folder / "rows.json"), *more]
    environment = {**os.environ, "HF_HOME": str(folder.resolve() / "home")}
    before = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        shown = process.stdout.read() if process.stdout else b""
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(shown.decode())
    scale = 1e9 if sys.platform == "darwin" else 1e6
    return time.perf_counter() - before, used.ru_maxrss / scale


def main() -> None:
    """Generate, and measure both ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=158_000)
    parser.add_argument("--folder", type=Path, default=Path("bench_out/report"))
    args = parser.parse_args()
    generate(args.folder / str(args.rows), args.rows)
    folder = args.folder / str(args.rows)
    about = ("--annotations", "COCO2017", "--dataset_storage_path", str(folder / "annotations"))
    run(folder, *about)
    for name, more in (("alone", ()), ("with annotations", about)):
        seconds, gigabytes = run(folder, *more)
        print(f"{name}: {args.rows:,} rows in {seconds:.1f} s, {gigabytes:.2f} GB")


if __name__ == "__main__":
    main()
