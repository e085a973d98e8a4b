"""Large CSV files: only the columns that are needed, in pieces that several threads read at once.

**Source:** the tables of Open Images, https://storage.googleapis.com/openimages/web/download_v7.html
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import os
import re
from binascii import unhexlify
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from mminstruct.errors import SourceError
from mminstruct.late import Late
from mminstruct.sources._annotation_file import open_text
from mminstruct.sources._base import ReadReport
from mminstruct.sources._tolerance import Mask

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv as arrow_csv
    from numpy.typing import NDArray
else:
    np, pa, arrow_csv = Late("numpy"), Late("pyarrow"), Late("pyarrow.csv")

Ids: TypeAlias = "NDArray[np.uint64]"
Column: TypeAlias = "NDArray[Any]"

_Kept = TypeVar("_Kept")

# Longer than all pieces but one with an endless field.
_BLOCK_BYTES = 64 << 20
# More of them hardly help, and each has pieces in memory.
_THREADS = min(8, os.cpu_count() or 1)
_ID_CHARACTERS = 16
ID_FORM = f"{_ID_CHARACTERS} hexadecimal digits"
_CHARACTERS = frozenset("0123456789abcdef")


def scan(
    path: Path,
    columns: Mapping[str, pa.DataType],
    keep: Callable[[pa.RecordBatch], _Kept],
    *,
    optional: Collection[str] = (),
    piece_bytes: int = 4 << 20,
) -> Iterator[_Kept]:
    """What ``keep`` makes of each of the pieces of a CSV file with a header, in the file's order.

    Pieces are parsed and kept in threads, several at once.

    Args:
        path: the file, UTF-8; a quoted field may go over several lines.
        columns: name as in the header -> type, of those that are needed; an empty field is null,
            and one that can't be read as its type.
        keep: called with some thousand rows, and not always from the same thread.
        optional: those of them that may be missing, and are null then.
        piece_bytes: about how long a piece is; what is read of it fits the processor's cache.

    Raises:
        SourceError: a column is missing, a row is cut off.
    """

    def read_piece(piece: bytes) -> list[_Kept]:
        with _explain_errors(path, columns):
            try:
                table = _parse(piece, columns)
            except pa.ArrowInvalid:
                table = _parse(piece, dict.fromkeys(columns, pa.string()))
                read = {n: _read_as(t, table.column(n)) for n, t in columns.items()}
                table = pa.table(read).combine_chunks()
        empty = pa.RecordBatch.from_pylist([], table.schema)
        return [keep(batch) for batch in table.to_batches() or [empty]]

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="table") as threads:
        running: deque[Future[list[_Kept]]] = deque()
        try:
            for piece in _pieces(path, piece_bytes, columns, optional):
                running.append(threads.submit(read_piece, piece))
                if len(running) > _THREADS:
                    yield from running.popleft().result()
            while running:
                yield from running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def _parse(piece: bytes, columns: Mapping[str, pa.DataType]) -> pa.Table:
    return arrow_csv.read_csv(
        pa.BufferReader(piece),
        read_options=arrow_csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
        parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
        convert_options=arrow_csv.ConvertOptions(
            include_columns=list(columns),
            include_missing_columns=True,
            column_types=dict(columns),
            strings_can_be_null=True,
            null_values=[""],
        ),
    )


def _read_as(kind: pa.DataType, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts as what they look like: 1.0 is a whole number; null for all that is none."""
    if pa.types.is_dictionary(kind):
        return column.dictionary_encode().cast(kind)
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        return column
    bits = kind.bit_width if pa.types.is_integer(kind) else None
    values = [_number(text, bits) for text in column.to_pylist()]
    return pa.chunked_array([pa.array(values, kind)])


def _number(text: str | None, bits: int | None) -> float | None:
    """A number, or a whole one of that many bits."""
    try:
        number = float(_WORDS.get((text or "").strip().lower(), text or ""))
    except ValueError:
        return None
    if bits is None:
        return number
    is_whole = math.isfinite(number) and number.is_integer() and abs(number) < 2 ** (bits - 1)
    return int(number) if is_whole else None


_WORDS = {"true": "1", "false": "0"}


def _header(head: bytes, path: Path, columns: Collection[str], optional: Collection[str]) -> bytes:
    """The header with the columns' names as they are asked for, whatever their case and spaces.

    Raises:
        SourceError: one is missing that isn't optional.
    """
    known = {name.casefold(): name for name in columns}
    found = [name.strip() for name in next(csv.reader([head.decode()]), [])]
    renamed = [known.get(name.casefold(), name) for name in found]
    if missing := [name for name in columns if name not in (*renamed, *optional)]:
        raise SourceError(
            f"{path.name}: no column {', '.join(missing)}, got {', '.join(found) or 'no header'} "
            f"against {', '.join(columns)} expected. Give the file that this name belongs to."
        )
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(renamed)
    return line.getvalue().encode()


def _pieces(
    path: Path, size_bytes: int, columns: Collection[str], optional: Collection[str]
) -> Iterator[bytes]:
    """The file in pieces that end where a row ends, each under the file's header."""
    with _explain_errors(path, {}), open_text(path) as file:
        head = _header(file.readline(), path, columns, optional)
        rows = file.read(size_bytes)
        while True:
            lines = [rows, file.readline()]
            # Quotes come in pairs, those that stand for themselves in two: a row isn't at its end.
            quotes = sum(map(_quotes, lines))
            while quotes % 2 and lines[-1]:
                lines.append(file.readline())
                quotes += _quotes(lines[-1])
            yield b"".join((head, *lines))
            if not (rows := file.read(size_bytes)):
                return


def _quotes(text: bytes) -> int:
    # Most tables have none, and looking for one is ten times as fast as counting.
    return text.count(b'"') if b'"' in text else 0


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a table, sorted by image.

    Attributes:
        owners: number of the image in the list of ids, ascending.
        columns: of the same length.
        as_items: makes the items of some rows of the columns.
    """

    owners: NDArray[np.int32]
    columns: tuple[Column, ...]
    as_items: Callable[..., list[Any]]

    def piece(self, start: int, stop: int) -> Iterator[list[Any]]:
        """The items of each of some images."""
        edges = np.searchsorted(self.owners, np.arange(start, stop + 1, dtype=np.int32)).tolist()
        items = self.as_items(*(column[edges[0] : edges[-1]] for column in self.columns))
        for begin, end in zip(edges, edges[1:], strict=False):
            yield items[begin - edges[0] : end - edges[0]]


def select_wanted(batch: pa.RecordBatch, ids: Ids) -> tuple[NDArray[np.int32], pa.RecordBatch, int]:
    """The batch's rows of wanted images, after their owners: numbers in the list of ids.

    And how many rows have an id that can't be read.
    """
    found, readable = image_ids(batch.column("ImageID"))
    if not len(ids):
        return np.zeros(0, dtype=np.int32), batch.slice(0, 0), 0
    owners = np.searchsorted(ids, found).astype(np.int32)
    owners[owners == len(ids)] = 0
    mask = ids[owners] == found
    unreadable = 0
    if readable is not None:
        mask, unreadable = mask & readable, int(np.count_nonzero(~readable))
    return owners[mask], batch.filter(pa.array(mask)), unreadable


# Reason -> which rows are left out for it, and the columns of all.
Judged: TypeAlias = "tuple[dict[str, NDArray[np.bool_]], tuple[Column, ...]]"


def rows_of(
    noun: str,
    path: Path,
    columns: Mapping[str, pa.DataType],
    ids: Ids,
    judge: Callable[[NDArray[np.int32], pa.RecordBatch], Judged],
    as_items: Callable[..., list[Any]],
    report: ReadReport,
    *,
    check: Callable[[], None] = lambda: None,
    optional: Collection[str] = (),
) -> Rows:
    """A table's rows of wanted images, by image and otherwise in the file's order.

    Args:
        noun: what a row is.
        path: the table.
        columns: name -> type.
        ids: of the wanted images.
        judge: says what is kept of some rows; besides them it gets their owners.
        as_items: as in `Rows`.
        report: counts what is left out.
        check: called once all rows were judged.
        optional: columns that may be missing.

    Raises:
        SourceError: the table is damaged, or most of its rows can't be used.
    """

    def keep(batch: pa.RecordBatch) -> tuple[dict[str, tuple[int, str]], tuple[Column, ...]]:
        owners, rows, unreadable = select_wanted(batch, ids)
        left_out, values = judge(owners, rows)
        kept = ~np.logical_or.reduce(tuple(left_out.values()))
        counts = {
            reason: (int(mask.sum()), f"{ids[owners[mask.argmax()]]:016x}")
            for reason, mask in left_out.items()
            if mask.any()
        }
        if unreadable:
            counts[f"{noun} whose image id isn't {ID_FORM}"] = unreadable, path.name
        return counts, tuple(column[kept] for column in (owners, *values))

    parts, found = [], ReadReport()
    for counts, part in scan(path, {"ImageID": pa.string(), **columns}, keep, optional=optional):
        parts.append(part)
        for reason, (count, example) in counts.items():
            found.skip(reason, count, example=example)
    owners, *values = (np.concatenate(column) for column in zip(*parts, strict=True))
    check()
    found.kept[noun] = len(owners)
    found.check(path.name)
    report.add(found)
    order = np.argsort(owners, kind="stable")
    return Rows(owners[order], tuple(column[order] for column in values), as_items)


def names(path: Path) -> dict[str, str]:
    """Label id -> its name in words, from a class description file with a header or without.

    Names with commas and quotes are quoted in these files, and some aren't ASCII.
    """
    with _explain_errors(path, {}), open_text(path) as file:
        rows = [row for row in csv.reader(codecs.iterdecode(file, "utf-8")) if row]
    for number, row in enumerate(rows, 1):
        if len(row) < 2:
            raise SourceError(
                f"{path.name}, row {number}: got {row!r} against an id and a name expected. "
                "Fix that row or download the file again."
            )
    start = 0 if rows and rows[0][0].startswith(("/m/", "/g/")) else 1
    return {row[0]: " ".join(row[1].split()) for row in rows[start:]}


def lines_of(path: Path, column: str, value: str) -> list[int]:
    """The lines, from 1, on which rows begin that have the value in a column.

    For errors: it reads one row after the other.
    """
    found = []
    with _explain_errors(path, {}), open_text(path) as file:
        rows = csv.reader(codecs.iterdecode(file, "utf-8"))
        place = next(rows).index(column)
        line = rows.line_num + 1
        for row in rows:
            if row[place : place + 1] == [value]:
                found.append(line)
            line = rows.line_num + 1
    return found


def image_ids(column: pa.Array) -> tuple[Ids, Mask | None]:
    """The ids of a column, 16 hexadecimal digits each, as numbers, and which can be read, or None.

    None is all of them.
    """
    text = column.cast(pa.binary())
    lengths = np.diff(_offsets(text))
    if column.null_count or (len(lengths) and (lengths != _ID_CHARACTERS).any()):
        return _odd_ids(column)
    start = int(_offsets(text)[0]) if len(text) else 0
    buffer = text.buffers()[2]
    if not len(text) or buffer is None:
        return np.zeros(0, dtype=np.uint64), None
    digits = memoryview(buffer)[start : start + _ID_CHARACTERS * len(text)]
    try:
        return np.frombuffer(unhexlify(digits), ">u8").astype(np.uint64), None
    except ValueError:
        return _odd_ids(column)


def _odd_ids(column: pa.Array) -> tuple[Ids, Mask | None]:
    found = [image_id(text or "") for text in column.to_pylist()]
    readable = np.array([number is not None for number in found], dtype=bool)
    return np.array([number or 0 for number in found], dtype=np.uint64), readable


def image_id(text: str) -> int | None:
    """One such id, also in upper case or where it is a file's name; None if it isn't one."""
    digits = text.strip().lower().removesuffix(".jpg")
    is_id = len(digits) == _ID_CHARACTERS and _CHARACTERS.issuperset(digits)
    return int(digits, 16) if is_id else None


def _offsets(text: pa.Array) -> NDArray[np.int32]:
    buffer = text.buffers()[1]
    if buffer is None:
        return np.zeros(1, dtype=np.int32)
    return np.frombuffer(buffer, np.int32, len(text) + 1, 4 * text.offset)


@contextmanager
def _explain_errors(path: Path, columns: Mapping[str, Any]) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, KeyError, UnicodeDecodeError, csv.Error) as error:
        expected = f"the columns {', '.join(columns)} in UTF-8" if columns else "a table in UTF-8"
        # Arrow counts rows from the start of a piece, which would mislead.
        got = re.sub(r"Row #\d+: ", "", str(error))
        raise SourceError(
            f"{path.name}: not the table that was expected, got '{got}' against {expected}. "
            "Fix the file or download it again."
        ) from error
