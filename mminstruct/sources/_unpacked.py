"""A bound on what a packed file may unfold to: a few megabytes can stand for terabytes."""

from __future__ import annotations

import io
from typing import IO, Any, cast

from mminstruct.errors import SourceError

# Annotations have 3 to 40 times the size of what they are packed to.
_MOST_TIMES = 100
_ALWAYS_BYTES = 1 << 26
_BUFFER_BYTES = 1 << 16


def bound_unpacking(file: IO[bytes], packed_bytes: int, name: str) -> IO[bytes]:
    """A file that is unpacked while it is read.

    Raises (while it is read):
        SourceError: it has more than 64 MiB and a hundred times the packed size.
    """
    raw = _Bounded(file, max(_ALWAYS_BYTES, _MOST_TIMES * packed_bytes), name)
    return cast("IO[bytes]", io.BufferedReader(raw, _BUFFER_BYTES))


class _Bounded(io.RawIOBase):
    def __init__(self, file: IO[bytes], most_bytes: int, name: str) -> None:
        self._file = file
        self._most_bytes = most_bytes
        self._left = most_bytes
        self._name = name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """As in `io.RawIOBase`; an error beyond the bound."""
        chunk = self._file.read(min(len(buffer), _BUFFER_BYTES))  # held twice
        self._left -= len(chunk)
        if self._left < 0:
            raise SourceError(
                f"{self._name}: unpacks to more than {self._most_bytes:,} bytes, which is out of "
                "proportion to its packed size; if that is meant, unpack it and give the folder"
            )
        buffer[: len(chunk)] = chunk
        return len(chunk)
