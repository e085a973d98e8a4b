"""Rows that anybody wrote in one form, and the contexts of their images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dummy_data import write_all

from mminstruct.benchmarks import image_key
from mminstruct.errors import SourceError, UsageError
from mminstruct.reports.contexts import open_contexts
from mminstruct.reports.rows import read_rows, to_row
from mminstruct.schema import Turn

ONE = Turn("What is it?", "A cat.")
TWO = Turn("Is it asleep?", "Yes, it is.")
LLAVA = {
    "id": "000000000009",
    "image": "coco/train2017/000000000009.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "Is it asleep?"},
        {"from": "gpt", "value": "Yes, it is."},
    ],
}
SHAREGPT = {**LLAVA, "images": [LLAVA["image"]]}
del SHAREGPT["image"]
PARTS = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image", "path": "train2017/000000000009.jpg"},
                {"type": "text", "text": "What is it?"},
            ],
        },
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Is it asleep?"},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes, it is."}]},
    ]
}
BYTES = {**SHAREGPT, "images": [{"bytes": b"x", "path": "000000000009.jpg"}]}


@pytest.mark.parametrize("row", [LLAVA, SHAREGPT, PARTS, BYTES])
def test_turns_and_image_are_found_in_every_form(row: dict[str, Any]) -> None:
    found = to_row(row)
    assert found is not None
    assert found.turns == (ONE, TWO)
    assert found.keys == ["9"]


def test_what_has_no_conversation_is_no_row() -> None:
    assert to_row({"instruction": "What is it?", "answer": "A cat."}) is None
    assert to_row(["What is it?"]) is None
    assert to_row({"conversations": [["What is it?", "A cat."]]}) is None
    assert to_row({"conversations": "What is it? A cat."}) is None


def test_checks_of_another_kind_are_none_of_ours() -> None:
    found = to_row({**LLAVA, "checks": "passed"})
    assert found is not None
    assert found.checks is None


def test_an_answer_without_a_question_is_a_turn_all_the_same() -> None:
    found = to_row({"conversations": [{"from": "gpt", "value": "A cat."}]})
    assert found is not None
    assert found.turns == (Turn("", "A cat."),)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("COCO_val2014_000000000139.jpg", "139"),
        ("val2017/000000000139.jpg", "139"),
        ("000000000139", "139"),
        ("http://images.cocodataset.org/val2017/000000000139.jpg?x=1", "139"),
        (139, "139"),
        ("139", "139"),
        # Of Visual Genome, whose numbers are others.
        ("VG_100K/139.jpg", "139.jpg"),
        ("0a1b2c.jpg", "0a1b2c.jpg"),
        ("C:\\photos\\party 1.png", "party 1.png"),
    ],
)
def test_an_image_has_one_key_by_all_its_names(name: str | int, key: str) -> None:
    assert image_key(name) == key


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet"])
def test_rows_are_read_from_files_and_from_folders_of_them(name: str, tmp_path: Path) -> None:
    rows = [{**LLAVA, "id": str(n)} for n in range(3)]
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        text = json.dumps(rows) if name == "a.json" else "\n".join(map(json.dumps, rows))
        (tmp_path / name).write_text(text, "utf-8")
    for path in (tmp_path, tmp_path / name):
        assert [row.id for row in read_rows(path)] == ["0", "1", "2"]


def test_a_list_of_credits_beside_rows_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist([LLAVA]), tmp_path / "data" / "a.parquet")
    pq.write_table(pa.Table.from_pylist([{"author": "N. N."}]), tmp_path / "credits.parquet")
    assert [row.id for row in read_rows(tmp_path)] == ["000000000009"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '[{"qid": 1, "answer": "x"}]',
            "row 1: expected messages or conversations with a list of messages, got qid",
        ),
        (f"[{json.dumps(LLAVA)}, {{}}]", "a.json: can't be read: row 2: .*, got nothing"),
        ("[]", "with a conversation in messages or conversations; got none"),
        ("{", "can't be read"),
    ],
)
def test_files_without_conversations_are_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text, "utf-8")
    with pytest.raises(UsageError, match=words):
        list(read_rows(tmp_path / "a.json"))


@pytest.mark.parametrize(("text", "kind"), [('"a"', "str"), ("5\n{}", "int"), ("null", "NoneType")])
def test_a_first_line_that_is_no_object_is_told(text: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(text, "utf-8")
    words = f"row 1: expected messages or conversations with a list of messages, got {kind}"
    with pytest.raises(UsageError, match=words):
        list(read_rows(tmp_path / "a.jsonl"))


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f"\n \n{json.dumps(LLAVA)}\n\n", "utf-8")
    assert len(list(read_rows(tmp_path / "a.jsonl"))) == 1
    (tmp_path / "a.jsonl").write_text("\n \n", "utf-8")
    with pytest.raises(UsageError, match="got none"):
        list(read_rows(tmp_path / "a.jsonl"))


def test_a_row_that_is_none_among_rows_is_never_the_end_of_them(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{json.dumps(LLAVA)}\n{{"text": 1}}\n', "utf-8")
    (tmp_path / "b.jsonl").write_text(json.dumps(LLAVA), "utf-8")
    with pytest.raises(UsageError, match=r"a\.jsonl, row 2: .* got text"):
        list(read_rows(tmp_path))


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{json.dumps(LLAVA)}\n{{"mess', "utf-8")
    with pytest.raises(UsageError, match="line 2: Input data was truncated"):
        list(read_rows(tmp_path / "a.jsonl"))


def test_a_conversation_in_which_nothing_is_said_is_a_row_without_turns(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps([LLAVA, {"id": "2", "conversations": []}, LLAVA]), "utf-8")
    assert [len(row.turns) for row in read_rows(file)] == [2, 0, 2]


def test_roles_are_read_in_any_case() -> None:
    said = [{"from": "USER", "value": "What is it?"}, {"from": "Assistant", "value": "A cat."}]
    found = to_row({"conversations": said})
    assert found is not None
    assert found.turns == (ONE,)


@pytest.mark.parametrize(
    ("name", "words"),
    [("nothing", "got no such file or folder"), ("rows.txt", "got a file with another name")],
)
def test_a_path_without_rows_is_said(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("What is it? A cat.", "utf-8")
    with pytest.raises(UsageError, match=words):
        list(read_rows(tmp_path / name))


def test_contexts_are_found_by_the_images_of_rows(tmp_path: Path) -> None:
    folder = write_all(tmp_path, 3)
    found = open_contexts("COCO2017", {"data_dir": str(folder)}, tmp_path / "cache")
    row = to_row({**LLAVA, "image": "COCO_train2014_000000000001.jpg"})
    assert row is not None
    context = found.find(row)
    assert context is not None
    assert context.id == "000000000001"
    stranger = to_row({**LLAVA, "image": "000000999999.jpg"})
    assert stranger is not None
    assert found.find(stranger) is None


def test_a_given_folder_without_the_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="COCO2017"):
        open_contexts("COCO2017", {"data_dir": str(tmp_path)}, tmp_path / "cache")


def test_contexts_of_own_data_are_found_by_the_files_names(tmp_path: Path) -> None:
    table = tmp_path / "own.jsonl"
    lines = [{"image": f"party {n}.png", "caption": f"Scene {n}."} for n in range(2)]
    table.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    found = open_contexts(str(table), {}, tmp_path / "cache")
    row = to_row({**LLAVA, "image": "photos/party 1.png"})
    assert row is not None
    context = found.find(row)
    assert context is not None
    assert context.captions == ("Scene 1.",)
