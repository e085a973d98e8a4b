"""Large CSV files in pieces: the same rows in the same order, wherever the file is cut."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mminstruct.errors import SourceError
from mminstruct.sources._tables import scan

COLUMNS = {"text": pa.string(), "number": pa.int32()}
TEXTS = st.text(st.sampled_from('ab,"\n é'), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables") / "table.csv"


def write(path: Path, rows: list[tuple[str, int]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerows([("text", "left out", "number"), *((t, "x,\ny", n) for t, n in rows)])


def read(path: Path, piece_bytes: int) -> list[tuple[str, int]]:
    pieces = scan(path, COLUMNS, lambda rows: rows.to_pylist(), piece_bytes=piece_bytes)
    return [(row["text"], row["number"]) for piece in pieces for row in piece]


@settings(deadline=None, max_examples=100, derandomize=True, database=None)
@given(
    rows=st.lists(st.tuples(TEXTS, st.integers(-99, 99)), max_size=40),
    piece_bytes=st.integers(1, 300),
)
def test_rows_are_the_same_in_pieces_of_any_size_with_quotes_and_line_breaks(
    table: Path, rows: list[tuple[str, int]], piece_bytes: int
) -> None:
    write(table, rows)
    assert read(table, piece_bytes) == rows


def test_rows_keep_their_order_over_many_pieces_that_threads_read_at_once(table: Path) -> None:
    rows = [(f"row {number}", number) for number in range(20_000)]
    write(table, rows)
    assert read(table, 1000) == rows


def test_a_value_that_is_none_of_its_column_is_null_like_an_empty_one(table: Path) -> None:
    write(table, [("fine", number) for number in range(5000)])
    with table.open("a", encoding="utf-8") as file:
        file.write("bad,x,many\nempty,x,\nfloat,x,7.0\nbool,x,True\nlarge,x,99999999999\n")
    tail = read(table, 1000)[-5:]
    assert tail == [("bad", None), ("empty", None), ("float", 7), ("bool", 1), ("large", None)]


def test_columns_are_found_whatever_their_case_and_spaces(table: Path) -> None:
    table.write_bytes(b"\xef\xbb\xbf Number , other,TEXT\r\n7,x,a\r\n")
    assert read(table, 100) == [("a", 7)]


def test_a_table_without_a_needed_column_is_an_error_that_names_what_is_there(table: Path) -> None:
    table.write_text("text,count\na,1\n", encoding="utf-8")
    with pytest.raises(SourceError, match=r"table\.csv: no column number, got text, count"):
        read(table, 100)
    pieces = scan(table, COLUMNS, lambda rows: rows.to_pylist(), optional=("number",))
    assert [row for piece in pieces for row in piece] == [{"text": "a", "number": None}]


def test_a_quote_without_its_end_is_an_error(table: Path) -> None:
    write(table, [("fine", number) for number in range(5000)])
    with table.open("a", encoding="utf-8") as file:
        file.write('"open,x,1\n' + "more,x,1\n" * 100)
    with pytest.raises(SourceError, match=r"table\.csv"):
        read(table, 1000)


def test_an_error_in_what_is_kept_comes_out_and_ends_the_reading(table: Path) -> None:
    write(table, [("fine", number) for number in range(5000)])
    seen = []

    def keep(rows: pa.RecordBatch) -> None:
        seen.append(rows)
        raise SourceError("enough")

    with pytest.raises(SourceError, match="enough"):
        list(scan(table, COLUMNS, keep, piece_bytes=100))
    assert len(seen) < 100


def test_a_table_of_a_header_alone_has_no_rows(table: Path) -> None:
    table.write_text("text,number\n", encoding="utf-8")
    assert read(table, 100) == []


@pytest.mark.parametrize("content", ["", "\n", "text,num"])
def test_a_file_that_is_empty_or_cut_off_in_its_header_is_an_error(
    table: Path, content: str
) -> None:
    table.write_text(content, encoding="utf-8")
    with pytest.raises(SourceError, match=r"table\.csv"):
        read(table, 100)
