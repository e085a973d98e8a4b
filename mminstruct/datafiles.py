"""Rows of data sets, whoever wrote them: Parquet, JSON lines, and JSON, one by one.

Files are read row by row, or by the columns that are asked for, whatever their size.
"""

from __future__ import annotations

import gzip
import mmap
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from msgspec import Raw
from msgspec.json import decode

from mminstruct.errors import UsageError

SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".jsonl.gz", ".json.gz")
"""The ends of the names of files with rows."""
_ROWS_PER_BATCH = 10_000
_START = 4096
_MARK = b"\xef\xbb\xbf"  # of UTF-8
_OBJECTS = re.compile(rb"\s*\{[^\n]*\}\s*\n\s*\{")
_FIELDS = dict[str, Raw]


def list_files(path: Path) -> list[Path]:
    """A file alone, if it may have rows; of a folder Parquet or else JSON files with rows."""
    if path.is_file():
        return [path] if path.name.endswith(SUFFIXES) else []
    rows = [file for file in sorted(path.rglob("*")) if file.name.endswith(SUFFIXES)]
    tables = [file for file in rows if file.suffix == ".parquet"]
    return tables or [f for f in rows if f.suffix != ".json" or _is_array(f)]


@contextmanager
def as_usage_errors(path: Path) -> Iterator[None]:
    """Raise UsageError for what can't be read, is damaged, or is another kind of file."""
    try:
        yield
    # Those of pyarrow and msgspec are among them.
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error) as error:
        raise UsageError(f"{path}: can't be read: {error}") from error


def read_file(
    file: Path,
    top: Callable[[Mapping[str, Any]], None] = lambda top: None,
    is_wanted: Callable[[list[str]], bool] = lambda names: True,
) -> Iterator[Any]:
    """The rows of a file in their order, each as it is there.

    Args:
        file: with one of `SUFFIXES`.
        top: is given what the file says of all of them.
        is_wanted: whether a column of Parquet is read, of which it is given the names on its path.

    Raises:
        ValueError: and its like, as in `as_usage_errors`.
    """
    if file.suffix == ".parquet":
        yield from _read_parquet(file, top, is_wanted)
    else:
        with file.open("rb") as content:
            yield from _read_json(content, file, top)


def _is_array(file: Path) -> bool:
    with file.open("rb") as content:
        return _start_of(content.read(_START))[:1] == b"["


def _read_json(
    file: IO[bytes], path: Path, top: Callable[[Mapping[str, Any]], None]
) -> Iterator[Any]:
    """Read rows in lines, in an array, or in the arrays of an object with more at its top."""
    if path.suffix == ".gz":
        with tempfile.TemporaryFile() as unpacked, gzip.open(file) as content:
            shutil.copyfileobj(content, unpacked)
            unpacked.flush()
            yield from _read_json(unpacked, path.with_suffix(""), top)
        return
    if not file.seek(0, 2):
        return
    # Paged in and out by the system, so that a file may be larger than the memory.
    text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    text.seek(3 if text[:3] == _MARK else 0)
    rows = [memoryview(text)[text.tell() :]]
    if _start_of(rows[0])[:1] != b"[":
        if path.suffix != ".json" or _OBJECTS.match(text, text.tell()):
            yield from _decode_lines(iter(text.readline, b""))
            return
        views = {key: memoryview(raw) for key, raw in decode(rows[0], type=_FIELDS).items()}
        arrays = {key for key, view in views.items() if _start_of(view) == b"[{"}
        top({k: decode(v) for k, v in views.items() if k not in arrays})
        rows = [views[key] for key in views if key in arrays]
    for view in rows:
        yield from map(decode, decode(view, type=list[Raw]))


def _decode_lines(lines: Iterable[bytes]) -> Iterator[Any]:
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                yield decode(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error


def _start_of(text: bytes | memoryview) -> bytes:
    """The first characters that are no blanks, up to two."""
    return b"".join(bytes(text[:_START]).removeprefix(_MARK).split())[:2]


def _read_parquet(
    file: Path,
    top: Callable[[Mapping[str, Any]], None],
    is_wanted: Callable[[list[str]], bool],
) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        said = table.schema_arrow.metadata or {}
        top({k.decode(): v.decode(errors="replace") for k, v in said.items()})
        paths = [table.schema.column(n).path for n in range(len(table.schema))]
        wanted = [path for path in paths if is_wanted(path.split("."))]
        batches = table.iter_batches(_ROWS_PER_BATCH, columns=wanted)
        yield from (row for batch in batches for row in _list_rows(batch))


def _list_rows(batch: Any) -> Iterable[dict[str, Any]]:
    return batch.to_pylist() if batch.num_columns else ({} for _ in range(batch.num_rows))
