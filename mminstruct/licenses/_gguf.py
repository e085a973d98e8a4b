"""The header of a GGUF file: its keys with their values.

**Source:** https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (the layout, and the keys
``general.*``).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from typing import Any

from mminstruct.errors import UsageError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS[12] = "d"
_STRING, _ARRAY = 8, 9


def gguf_metadata(content: bytes | mmap.mmap, name: str) -> Iterator[tuple[str, Any]]:
    """(key, value) of a GGUF header; arrays but those of texts in ``general.*`` come as None.

    Raises:
        UsageError: it is cut off, of another version, or no GGUF header at all.
    """
    at = 0

    def skip(size: float) -> int:
        """Where what is skipped begins."""
        nonlocal at
        if at + size > len(content):
            raise UsageError(f"model {name!r}: the GGUF header is cut off after {at} bytes")
        start, at = at, at + int(size)
        return start

    def take(layout: str) -> int | float:
        size = struct.calcsize(f"<{layout}")
        number: int | float = struct.unpack_from(f"<{layout}", content, skip(size))[0]
        return number

    def text() -> str:
        start = skip(take("Q"))
        return bytes(content[start:at]).decode("utf-8", errors="replace")

    def value(kind: float, key: str) -> Any:
        if kind == _STRING:
            return text()
        if kind == _ARRAY:
            inner, count = take("I"), take("Q")
            if inner == _STRING and key.startswith("general."):
                return [text() for _ in range(int(count))]
            if inner == _STRING:
                for _ in range(int(count)):
                    skip(take("Q"))
                return None
            if inner in _SCALARS:
                skip(count * struct.calcsize(f"<{_SCALARS[int(inner)]}"))
                return None
            kind = inner  # arrays of arrays are in no file that llama.cpp reads
        if kind in _SCALARS:
            return take(_SCALARS[int(kind)])
        raise UsageError(f"model {name!r}: the GGUF header has a value of unknown type {kind}")

    if bytes(content[: len(MAGIC)]) != MAGIC:
        raise UsageError(f"model {name!r}: not a GGUF file")
    skip(len(MAGIC))
    version = take("I")
    if version not in _VERSIONS:
        raise UsageError(
            f"model {name!r}: GGUF version {version}, expected {' or '.join(map(str, _VERSIONS))}; "
            "convert it anew, or name the model with --model_id"
        )
    take("Q")  # tensors
    for _ in range(int(take("Q"))):
        key = text()
        yield key, value(take("I"), key)
