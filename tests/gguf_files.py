"""Headers of GGUF files, invented."""

from __future__ import annotations

import struct
from typing import Any

HUB = "https://huggingface.co/"


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, value: Any) -> bytes:
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        items = b"".join(text(item) for item in value)
        return text(key) + struct.pack("<IIQ", 9, 8, len(value)) + items
    if isinstance(value, list):
        return text(key) + struct.pack(f"<IIQ{len(value)}f", 9, 6, len(value), *value)
    return text(key) + struct.pack("<II", 4, value)


def gguf(version: int = 3, **general: Any) -> bytes:
    pairs: dict[str, Any] = {
        "tokenizer.ggml.tokens": ["a", "b\u00e9", ""],
        "tokenizer.ggml.scores": [0.5, 1.0, 2.0],
        "llama.context_length": 2048,
        **{f"general.{key.replace('__', '.')}": value for key, value in general.items()},
    }
    body = b"".join(pair(key, value) for key, value in pairs.items())
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(pairs)) + body
