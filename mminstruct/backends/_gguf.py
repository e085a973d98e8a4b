"""GGUF files: whether one is whole, and its fingerprint."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path

from mminstruct.errors import (
    UsageError,
    lacking,
)

_MAGIC = b"GGUF"
_SAMPLED_BLOCKS = 64
_BLOCK_BYTES = 1 << 20
# The metadata of a GGUF file with the largest vocabularies there are.
_METADATA_BYTES = 64 << 20
_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")


def check_gguf(path: Path) -> None:
    """Raise UsageError unless the file is there and starts like a GGUF file."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
    except OSError as error:
        raise UsageError(
            f"model {str(path)!r}: {error.strerror}{lacking(path)}; expected a GGUF file"
        ) from error
    if start != _MAGIC:
        raise UsageError(
            f"model {path.name!r}: not a GGUF file (it starts with {start!r}, expected "
            f"{_MAGIC!r}); convert it with llama.cpp's convert_hf_to_gguf.py, or get a .gguf file"
        )


def fingerprint(path: Path) -> str:
    """Digest of a model file that tells models apart in a second however large they are.

    Its size, the metadata if it is a GGUF file (template, tokenizer, tokens that end an answer),
    and blocks spread evenly over it; of a GGUF file in parts, all of them.
    """
    named, parts = _PART.fullmatch(path.name), [path]
    if named is not None:
        parts = sorted(
            part
            for part in path.parent.iterdir()
            if (other := _PART.fullmatch(part.name)) is not None
            and other.groups() == named.groups()
            and part.is_file()
        )
    return "-".join(_fingerprint(part, *_state(part)) for part in parts)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=64)
def _fingerprint(path: Path, size: int, changed_ns: int) -> str:
    sha = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if path.suffix == ".gguf":
            sha.update(file.read(_METADATA_BYTES))
        for number in range(_SAMPLED_BLOCKS):
            file.seek(max(0, size - _BLOCK_BYTES) * number // (_SAMPLED_BLOCKS - 1))
            sha.update(file.read(_BLOCK_BYTES))
    return sha.hexdigest()[:32]
