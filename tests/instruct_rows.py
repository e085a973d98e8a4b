"""Rows as `generate` makes them, invented."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import datasets

from mminstruct.rows.columns import FEATURES

TYPES = ("conversation", "detail", "complex_reasoning")
QUESTION, ANSWER = (
    "Was steht vor dem Caf\u00e9?",
    "Ein roter Bus \U0001f68c, \u8d64\u3044\u30d0\u30b9.",
)


def row(
    image: int, kind: str = "conversation", /, *, turns: int = 2, **changes: Any
) -> dict[str, Any]:
    """A row as `generate` makes it."""
    messages = [
        {"role": role, "content": f"{text} {number}"}
        for number in range(1, turns + 1)
        for role, text in (("user", QUESTION), ("assistant", ANSWER))
    ]
    return {
        "id": f"coco2017-{image:012d}-{kind}",
        "source": "COCO2017",
        "image_id": f"{image:012d}",
        "modality": "image",
        "media": f"{image:012d}.jpg",
        "image": f"{image:012d}.jpg",
        "image_url": f"http://images.cocodataset.org/train2017/{image:012d}.jpg",
        "width": 640,
        "height": 480,
        "rotation_deg": 0,
        "image_license": "CC-BY-2.0",
        "type": kind,
        "messages": messages,
        "image_credit": dict.fromkeys(
            ("author", "author_url", "title", "landing_url", "license_url"), "somewhere"
        ),
        "checks": {
            "version": "1",
            "verdicts": ["contradicted"] + ["supported"] * (turns - 1),
            "findings": [
                {
                    "turn": 0,
                    "kind": "object",
                    "verdict": "contradicted",
                    "said": "Bus",
                    "label": "bus",
                    "known": "no box of bus",
                }
            ],
        },
        "license": "cc-by-4.0",
        "commercial_use": True,
        "provenance": {
            "backend": "fake",
            "model": "fake",
            "endpoint": None,
            "prompt_config": "llava",
            "prompt_version": "1.0.0",
            "prompt_hash": "0123456789abcdef",
            "temperature": 0.7,
            "top_p": 1.0,
            "max_tokens": 1024,
            "seed": None,
            "few_shots": 3,
            "dropped_few_shots": 0,
            "dropped_boxes": 0,
            "finish_reason": "stop",
            "prompt_tokens": 1900,
            "completion_tokens": 300,
            "notes": [],
        },
        **changes,
    }


def dataset(rows: list[dict[str, Any]]) -> datasets.Dataset:
    if not rows:
        return datasets.Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES)
    return datasets.Dataset.from_list(rows, features=FEATURES)


def lines(entries: list[dict[str, Any]]) -> list[Path]:
    """The files of a report on what gave no row."""
    handle, name = tempfile.mkstemp(suffix=".jsonl", dir=os.environ["HF_HOME"])
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)
    return [Path(name)]


def rows_of(images: range, types: tuple[str, ...] = TYPES) -> list[dict[str, Any]]:
    return [row(image, kind) for kind in types for image in images]
