"""Time and memory of merging the parts of a release: COCO's train2017 with three types, 64 shards.

The parts are invented: rows as long as a 7B writes them, each with other words, and the stores of
their answers. They are merged in a process of its own. What it holds itself and what of the rows'
files is mapped into it at the most are told apart, as the system takes the latter back as it likes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import datasets

from mminstruct import generation, licenses, prompts, sources
from mminstruct.completions.store import ResponseStore
from mminstruct.recipe import find_annotation_parts
from mminstruct.releases import parts
from mminstruct.releases.origin import Origin
from mminstruct.rows.columns import FEATURES
from mminstruct.rows.report import Report
from mminstruct.schema import Completion, digest
from mminstruct.splits import Shard

TYPES = ("conversation", "detail_description", "complex_reasoning")
SYLLABLES = ("ban", "der", "fil", "go", "ku", "lane", "ster", "mo")
WORDS = [a + b for a in SYLLABLES for b in ("", *SYLLABLES)]


def main() -> None:
    """Invent parts, merge them, and print what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        print(json.dumps(_merge(args.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="mminstruct-bench-") as name:
        folder = Path(name)
        _invent(folder, args.images, args.shards)
        command = [sys.executable, __file__, "--folder", name]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        size = sum(file.stat().st_size for file in (folder / "out").rglob("*") if file.is_file())
    print(
        f"{found['rows']:,} rows of {args.shards} parts: {found['wall_s']:.0f} s "
        f"({found['cpu_s']:.0f} s CPU), memory {found['own_mb']:,} MB, with mapped files "
        f"{found['peak_mb']:,} MB; the release has {size / 1e6:,.0f} MB"
    )


def _merge(folder: Path) -> dict[str, Any]:
    datasets.disable_progress_bars()
    own_kb, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            status = Path("/proc/self/status").read_text("utf-8")
            own_kb[0] = max(own_kb[0], int(re.findall(r"RssAnon:\s+(\d+)", status)[0]))

    watching = threading.Thread(target=watch)
    watching.start()
    begun = time.perf_counter()
    merged = generation.merge(
        sorted((folder / "out.parts").iterdir()),
        folder / "out",
        response_store=folder / "all.sqlite",
    )
    wall_s = time.perf_counter() - begun
    ended.set()
    watching.join()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "rows": len(merged),
        "wall_s": wall_s,
        "cpu_s": used.ru_utime + used.ru_stime,
        "own_mb": own_kb[0] // 1024,
        "peak_mb": used.ru_maxrss // 1024,
    }


def _invent(folder: Path, images: int, shards: int) -> None:
    datasets.disable_progress_bars()
    registry, info = licenses.load(None, sources.names()), sources.get("COCO2017").info
    model = "mistralai/Mistral-7B-Instruct-v0.2"
    terms = licenses.model_parts(registry, name=model, repo_id=model)
    terms += tuple(find_annotation_parts(registry, info))
    verdict = licenses.compose(registry, terms)
    origin = Origin((info,), (prompts.load("llava"),), TYPES, "openai", model, verdict, registry)
    for index in range(shards):
        mine = Shard(index, shards).cut(images)
        piece = parts.Piece("COCO2017", "train", TYPES, mine.start, mine.stop, images)
        part = parts.Part({}, f"{index}/{shards}", (piece,))
        place = parts.find_place(folder / "out", Shard(index, shards))
        rows = [_row(image, kind) for kind in TYPES for image in mine]
        report = Report()
        report.rows.update(row["type"] for row in rows)
        with parts.claim(place, part, overwrite=False) as write_part:
            write_part(origin, [(datasets.Dataset.from_list(rows, features=FEATURES), report)])
        asyncio.run(_store(place / parts.STORE, rows))


async def _store(path: Path, rows: list[dict[str, Any]]) -> None:
    async def put(row: dict[str, Any]) -> None:
        answer = Completion(row["messages"][-1]["content"], "stop")
        await store.put(bytes.fromhex(digest(row["id"])), answer)

    with ResponseStore(path) as store:
        await asyncio.gather(*map(put, rows))


def _row(image: int, kind: str) -> dict[str, Any]:
    draw = random.Random(f"{image}/{kind}")

    def say(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words)).capitalize() + "."

    turns, words = (4, 25) if kind == "conversation" else (1, 120)
    texts = [text for _ in range(turns) for text in (f"What is {say(6)[:-1]}?", say(words))]
    name = f"{image:012d}.jpg"
    provenance = dict.fromkeys(FEATURES["provenance"])
    provenance |= {"backend": "openai", "model": "mistralai/Mistral-7B-Instruct-v0.2"}
    provenance |= {"prompt_config": "llava", "prompt_hash": "0" * 16, "notes": [], "few_shots": 3}
    return {
        **dict.fromkeys(FEATURES),
        "id": f"coco2017-{image:012d}-{kind}",
        "source": "COCO2017",
        "image_id": f"{image:012d}",
        "modality": "image",
        "media": name,
        "image": name,
        "image_url": f"http://images.cocodataset.org/train2017/{name}",
        "width": 640,
        "height": 480,
        "image_license": draw.choice(["CC-BY-2.0", "CC-BY-NC-2.0", "CC-BY-SA-2.0"]),
        "image_credit": dict.fromkeys(FEATURES["image_credit"])
        | {"landing_url": f"http://www.flickr.com/photo.gne?id={image}"},
        "type": kind,
        "messages": [
            {"role": role, "content": text}
            for role, text in zip(("user", "assistant") * turns, texts, strict=True)
        ],
        "checks": {"version": "1", "verdicts": ["supported"] * turns, "findings": []},
        "license": "cc-by-4.0",
        "commercial_use": True,
        "provenance": provenance,
    }


if __name__ == "__main__":
    main()
