"""Data sets made elsewhere: who they say wrote them, and what that implies."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mminstruct import cli, licenses
from mminstruct.errors import UsageError
from mminstruct.export.output import note_beside
from mminstruct.licenses import Verdict, elsewhere, services

REGISTRY = licenses.load()
TURNS = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
LLAMA2, QWEN3 = "meta-llama/Llama-2-70b-chat-hf", "Qwen/Qwen3-8B"
GPT4 = {"id": "1", "conversations": TURNS, "model": "gpt-4"}
FREE = {"conversations": TURNS, "license": "cc-by-4.0", "model": QWEN3}


def judged(path: Path) -> Verdict:
    parts = licenses.parts_of(REGISTRY, licenses.read_data_set(path))
    return licenses.compose(REGISTRY, parts)


def write(path: Path, rows: Any) -> Path:
    """Rows in the form that the file's name tells."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    is_lines = path.name.removesuffix(".gz").endswith("l")
    text = "".join(f"{json.dumps(row)}\n" for row in rows) if is_lines else json.dumps(rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def card(folder: Path, **front: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text(f"---\n{json.dumps(front)}\n---\nby gemini\n", "utf-8")
    return folder


@pytest.mark.parametrize(
    "name", ["a.json", "a.jsonl", "a.ndjson.jsonl", "a.json.gz", "a.jsonl.gz", "a.parquet"]
)
@pytest.mark.parametrize(
    ("field", "commercial"),
    [
        ({"model": "gpt-4o-2024-05-13"}, False),
        ({"generator": "claude-3-opus"}, False),
        ({"teacher_model": "gemini-1.5-pro"}, False),
        ({"metadata": {"source_model": LLAMA2}}, False),
        ({"metadata": {"generatorModel": LLAMA2.upper()}}, False),
        ({"completions": [{"model": QWEN3, "text": "a"}, {"model": "GPT-4", "text": "b"}]}, False),
        ({"generator_model": QWEN3}, True),
        ({"model": QWEN3, "models": ["gpt-4"]}, False),
        ({"generated_by": "Qwen3-8B"}, True),
        ({"model": "google/gemma-3-4b-it"}, True),
        ({"model": "nobody/such-7b"}, None),
        ({"reward_model": "gpt-4"}, None),
        ({"caption": "gpt-4"}, None),
        # Beside a model that is free.
        *(
            ({"model": QWEN3, **more}, False)
            for more in (
                {"annotator": "gpt-4o"},
                {"captioner": "claude-3-haiku"},
                {"annotated_by": "gemini-1.5-pro"},
                {"source": "gpt-4o"},
                {"source": "vicgalle/alpaca-gpt4"},
                {"dataset": "llava_instruct_150k"},
                {"metadata": json.dumps({"model": "gpt-4"})},
                {"meta": json.dumps([{"steps": {"llm": LLAMA2}}])},
                {"extra_info": json.dumps({"license": "cc-by-nc-4.0"})},
                {"metadata": {"license": "cc-by-nc-4.0"}},
                {"info": {"origin": {"id": "x", "licence": "CC-BY-NC-4.0", "engine": "gpt-4"}}},
                {"licenses": ["cc-by-nc-4.0"]},
                {"license_link": "https://creativecommons.org/licenses/by-nc/4.0/deed.en"},
            )
        ),
        ({"model": QWEN3, "captioner": "nobody/such-7b"}, None),
        ({"model": QWEN3, "annotator": "A17", "source": "coco/train2017"}, True),
        ({"model": QWEN3, "text": "{not JSON", "images": [{"license": "cc-by-nc-4.0"}]}, True),
        ({"model": QWEN3, "metadata": json.dumps({"source": "page 3"})}, True),
    ],
)
def test_a_field_of_rows_tells_who_wrote_them_whatever_the_form(
    name: str, field: Mapping[str, Any], commercial: bool | None, tmp_path: Path
) -> None:
    rows = [{"messages": TURNS, "license": "cc-by-4.0", **field}] * 3
    assert judged(write(tmp_path / name, rows)).commercial is commercial


def test_rows_are_counted_by_who_wrote_them(tmp_path: Path) -> None:
    rows = [{**GPT4, "model": name} for name in ["gpt-4"] * 3 + [QWEN3, None]]
    found = licenses.read_data_set(write(tmp_path / "mixed.json", rows))
    assert found.told() == [
        "gpt-4: 3 of 5 rows (model)",
        f"{QWEN3}: 1 of 5 rows (model)",
        "no field names a generator: 1 of 5 rows",
    ]


def test_one_row_that_names_nobody_leaves_free_rows_unknown(tmp_path: Path) -> None:
    assert judged(write(tmp_path / "a.jsonl", [FREE, FREE])).commercial is True
    assert judged(write(tmp_path / "b.jsonl", [FREE, {**FREE, "model": ""}])).commercial is None


def test_free_rows_without_a_licence_are_unknown(tmp_path: Path) -> None:
    verdict = judged(write(tmp_path / "a.jsonl", [{"text": "x", "model": QWEN3}]))
    assert (verdict.license, verdict.commercial) == ("unknown", None)


def test_one_row_without_a_licence_leaves_free_rows_unknown(tmp_path: Path) -> None:
    rows = [FREE, {**FREE, "license": None}]
    assert judged(write(tmp_path / "a.jsonl", rows)).commercial is None
    folder = card(tmp_path / "ours", license="cc-by-4.0")
    write(folder / "a.jsonl", rows)
    assert judged(folder).commercial is True


def test_the_top_of_a_file_tells_it_of_all_rows(tmp_path: Path) -> None:
    top = {"info": {"generator": "gpt-4"}, "license": "mit", "data": [{"q": 1}, {"q": 2}]}
    for file in (write(tmp_path / "a.json", top), tmp_path / "b.json"):
        file.write_text(json.dumps(top, indent=1), "utf-8")
        found = licenses.read_data_set(file)
        assert (found.rows, found.silent) == (2, 0)
        assert judged(file).commercial is False
    table = pa.table({"q": [1, 2]}).replace_schema_metadata({"teacher": QWEN3, "license": "mit"})
    pq.write_table(table, tmp_path / "c.parquet")
    assert judged(tmp_path / "c.parquet").commercial is True


@pytest.mark.parametrize(
    ("front", "commercial"),
    [
        ({"license": "apache-2.0", "tags": ["synthetic", "gpt-4"]}, False),
        ({"license": "apache-2.0", "tags": ["claude"]}, False),
        ({"license": "mit", "tags": [LLAMA2]}, False),
        ({"license": "mit", "source_datasets": ["liuhaotian/LLaVA-Instruct-150K"]}, False),
        ({"license": "mit", "pretty_name": "LLaVA Visual Instruct 150K"}, False),
        ({"license": "mit", "generator": "gemini-2.0-flash"}, False),
        ({"license": "other", "license_name": "cc-by-4.0-and-llama2", "model": QWEN3}, False),
        ({"license": "apache-2.0", "license_name": "cc-by-nc-4.0", "model": QWEN3}, False),
        ({"license": "apache-2.0", "license_name": "my-own", "model": QWEN3}, None),
        ({"license": "mit", "model": QWEN3, "source_datasets": ["nobody/knows"]}, None),
        *(
            ({"license": "cc-by-4.0", "model": QWEN3, **more}, expected)
            for more, expected in (
                ({"license_link": "https://creativecommons.org/licenses/by-nc/4.0/"}, False),
                (
                    {"license_link": "http://creativecommons.org/licenses/by-nc-sa/4.0/legalcode"},
                    False,
                ),
                ({"license-link": "https://acme.example/terms-nc"}, None),
                ({"license_link": "https://creativecommons.org/licenses/by/4.0/deed.de"}, True),
                ({"license_link": "LICENSE.md"}, True),
                ({"licence": "cc-by-nc-4.0"}, False),
                ({"annotator": "gpt-4o"}, False),
                ({"captioner": "gemini"}, False),
                ({"source": "gpt-4o"}, False),
                ({"datasets": ["tatsu-lab/alpaca"]}, False),
                ({"datasets": ["nobody/knows"]}, None),
                ({"description": "Answers by GPT-4 about images."}, False),
                ({"tags": ["non-commercial"]}, None),
                ({"extra_gated_fields": {"I agree to non-commercial use ONLY": "checkbox"}}, None),
                ({"extra_gated_prompt": "For research purposes only."}, None),
                ({"description": "Boxes with names", "task_categories": ["other"]}, True),
            )
        ),
        ({"license": "mit", "tags": [QWEN3]}, None),
        ({"license": "mit", "tags": ["alpaca", "sharegpt"]}, None),
        ({"license": "mit"}, None),
        ({"model": QWEN3}, None),
        ({"license": "mit", "model": QWEN3, "source_datasets": ["original"]}, True),
    ],
)
def test_a_card_is_read_by_its_fields_and_what_a_tag_tells_only_bars(
    front: Mapping[str, Any], commercial: bool | None, tmp_path: Path
) -> None:
    folder = card(tmp_path / "of-ours", **front)
    assert judged(folder).commercial is commercial
    assert judged(folder / "README.md").commercial is commercial


@pytest.mark.parametrize(
    "place",
    [
        "llava_instruct_150k.json",
        "LLaVA-Instruct-150K.jsonl",
        "datasets--liuhaotian--LLaVA-Instruct-150K/snapshots/0/data.json",
        "sharegpt4v_instruct_gpt4-vision_cap100k.json",
        "our_gpt4_answers.json",
    ],
)
def test_a_name_that_is_known_bars(place: str, tmp_path: Path) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    assert judged(write(path, [{"conversations": TURNS}])).commercial is False


def test_a_folder_is_its_card_and_its_rows(tmp_path: Path) -> None:
    folder = card(tmp_path / "ours", license="mit")
    write(folder / "rows.json", [{"model": LLAMA2}] * 2)
    write(folder / "dataset_infos.json", {"default": {"features": []}})
    assert licenses.read_data_set(folder).rows == 2
    assert judged(folder).commercial is False
    write(folder / "train.parquet", [{"model": QWEN3}] * 3)  # the same rows, converted
    assert licenses.read_data_set(folder).rows == 3


def test_words_against_some_use_do_not_hide_the_licence_that_says_so(tmp_path: Path) -> None:
    for tags in ([], ["non-commercial"]):
        found = judged(card(tmp_path, license="cc-by-nc-4.0", model=QWEN3, tags=tags))
        assert (found.license, found.commercial) == ("cc-by-nc-4.0", False)


def test_a_field_of_ever_new_sources_leaves_free_rows_unknown(tmp_path: Path) -> None:
    for more, commercial in (("", None), ("https://acme.example/", True)):
        rows = [{**FREE, "source": f"{more}{n}"} for n in range(1200)] + [FREE]
        assert judged(write(tmp_path / "a.jsonl", rows)).commercial is commercial
        rows += [{**FREE, "source": "gpt-4o"}]
        assert judged(write(tmp_path / "a.jsonl", rows[-20:])).commercial is False


def test_our_own_release_is_judged_as_when_it_was_made(tmp_path: Path) -> None:
    """Where a service answered, its terms count, whatever the model's name is."""
    rows = [
        {
            "license": "other",
            "provenance": {"model": QWEN3, "endpoint": "https://api.openai.com/v1", "top_p": 1.0},
        }
    ]
    folder = card(tmp_path / "r", license="other", license_name="cc-by-4.0-and-openai-terms")
    write(folder / "a.parquet", rows)
    verdict = judged(folder)
    assert (verdict.license_name, verdict.commercial) == ("cc-by-4.0-and-openai-terms", False)
    assert {p.role for p in verdict.parts} == {"annotations", "service"}


def test_the_note_beside_an_export_tells_who_wrote_its_rows(tmp_path: Path) -> None:
    rows = [{"conversations": TURNS, "license": "cc-by-4.0"}]
    file = write(tmp_path / "export.json", rows)
    assert judged(file).commercial is None
    note_beside(file).write_text(json.dumps({"model": QWEN3, "sources": ["SAMPLE"]}), "utf-8")
    assert judged(file).commercial is True
    note_beside(file).write_text(json.dumps({"model": "gpt-4"}), "utf-8")
    assert judged(file).commercial is False
    note_beside(file).write_text("[]", "utf-8")
    with pytest.raises(UsageError, match=r"export.json: can't be read"):
        judged(file)


@pytest.mark.parametrize("is_noted", [False, True])
def test_what_one_file_says_of_its_rows_is_not_said_of_anothers(
    tmp_path: Path, is_noted: bool
) -> None:
    said = {"model": QWEN3, "license": "cc-by-4.0"}
    rows = [{"conversations": TURNS}] * 2
    first = write(tmp_path / "a.parquet", rows)
    if is_noted:
        (tmp_path / "a.parquet.provenance.json").write_text(json.dumps(said), "utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(said), first)
    assert judged(first).commercial is True
    assert judged(tmp_path).commercial is True
    write(tmp_path / "b.parquet", rows[:1])
    found = licenses.read_data_set(tmp_path)
    assert (found.rows, found.unnamed, found.unlicensed) == (3, 1, 1)
    assert set(found.writers.values()) == {2}
    assert judged(tmp_path).commercial is None


DATA = [{"split": "train", "path": ["data/a.parquet"]}]


@pytest.mark.parametrize(
    ("configs", "commercial"),
    [
        ([{"config_name": "x", "data_files": DATA}], True),
        ([{"config_name": "x", "data_files": "data/*.parquet"}], True),
        ([{"config_name": "x", "data_files": {"train": "data/a.parquet"}}], True),
        ([{"config_name": "x", "data_files": DATA}, {"config_name": "y"}], False),
        ([{"config_name": "x", "data_files": DATA}, {"data_files": ["b.parquet"]}], False),
        ([{"config_name": "x", "data_files": ["data/a.parquet", "none.parquet"]}], False),
        ([{"config_name": "x", "data_files": DATA}, {"data_files": []}], False),
        ([{"config_name": "x", "data_files": "data"}], False),
        ([{"config_name": "x", "data_files": "https://example.org/a.parquet"}], False),
        ([{"config_name": "x", "data_files": "/data/a.parquet"}], False),
        ([{"config_name": "x", "data_files": "../r/data/a.parquet"}], False),
        ([{"config_name": "x", "data_dir": "data"}], False),
        (None, False),
        ("data", False),
    ],
)
def test_rows_are_in_the_files_that_a_card_calls_the_data(
    tmp_path: Path, configs: Any, commercial: bool
) -> None:
    """Beside them may be a list of images with licences of their own."""
    folder = card(tmp_path / "r", license="cc-by-4.0", generator=QWEN3, configs=configs)
    (folder / "data").mkdir()
    write(folder / "data" / "a.parquet", [FREE])
    write(folder / "b.parquet", [{"image": "1.jpg", "license": "CC-BY-NC-2.0"}])
    assert judged(folder).commercial is commercial


def test_of_a_table_only_the_columns_are_read_that_tell_something(tmp_path: Path) -> None:
    rows = [{"text": "x" * 50, "messages": [{"role": "user", "model": "gpt-4"}]}]
    write(tmp_path / "a.parquet", rows)
    found = licenses.read_data_set(tmp_path / "a.parquet")
    assert found.writers == {elsewhere.Writer("gpt-4", "model"): 1}
    assert elsewhere._is_telling(["messages", "list", "element", "model"])
    assert not elsewhere._is_telling(["text"])


def test_a_field_of_ever_new_texts_takes_bounded_memory(tmp_path: Path) -> None:
    rows = [{"model": f"car {n}"} for n in range(1500)]
    found = licenses.read_data_set(write(tmp_path / "cars.jsonl", rows))
    assert (found.rows, len(found.writers)) == (1500, 1001)
    assert sum(found.writers.values()) == 1500


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[{"a": 1}, 2]', "expected rows that are objects, got int"),
        ("a.json", b'[{"a": 1}', "can't be read: "),
        ("a.jsonl", b'{"a": 1}\n{"a"\n', "can't be read: "),
        ("a.json.gz", b"not gzip", "can't be read: "),
        ("a.json.gz", gzip.compress(b"[{}]", mtime=0)[:10] + b"\xff" * 20, "can't be read: "),
        ("a.json", b"[" * 5000 + b"]" * 5000, "expected rows that are objects|can't be read: "),
        ("a.parquet", b"PAR1", "can't be read: "),
        ("a.md", b"---\n- a\n---\n", "expected a mapping as front matter, got list"),
        ("a.gguf", b"GGUF", "a model is given with --model"),
        *(
            (f"a.{kind}", content, f"a.{kind}: expected rows, got none; give what has some, or a")
            for kind, content in (
                ("jsonl", b""),
                ("json", b""),
                ("json", b"[]"),
                ("json", b'{"license": "mit", "train": []}'),
                ("jsonl.gz", gzip.compress(b"\n", mtime=0)),
            )
        ),
    ],
)
def test_what_is_damaged_or_of_another_kind_is_told(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        licenses.read_data_set(tmp_path / name)


def test_the_command_tells_what_a_file_implies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(tmp_path / "a.json", [GPT4] * 2))
    assert cli.run(["license", path]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0] == "commercial use: text: no"
    assert "gpt-4: the OpenAI services agreement, outputs may not train" in said
    assert "who wrote the rows:\n  - gpt-4: 2 of 2 rows (model)\n" in said
    assert cli.run(["license", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["commercial"], found["said"]) == (False, "text: no")
    (made,) = found["data_sets"]
    generator = {"name": "gpt-4", "field": "model", "endpoint": None, "rows": 2}
    assert made == {"name": "a.json", "rows": 2, "generators": [generator], "unnamed": 0}


def test_a_known_data_set_is_judged_by_its_id(capsys: pytest.CaptureFixture[str]) -> None:
    for known in REGISTRY.datasets.values():
        assert cli.run(["license", known.id, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["commercial"] is (False if known.generators else None), known.id


def test_a_users_entries_hold_for_files_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    day = {"source_url": "https://acme.example", "checked_on": "2026-11-30", "evidence": "primary"}
    model = {"name": "Acme", "vendor": "acme", "terms": "mit", "chat": {"acme/writer-1": 7}, **day}
    entries = tmp_path / "own.yaml"
    entries.write_text(json.dumps({"models": [model]}), "utf-8")
    path = str(write(tmp_path / "a.jsonl", [{"model": "writer-1", "license": "mit"}]))
    for more, commercial in (([], None), (["--licenses", str(entries)], True)):
        assert cli.run(["license", path, "--json", *more]) == 0
        assert json.loads(capsys.readouterr().out)["commercial"] is commercial


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.json", "COCO2017"], "got COCO2017 and a.json: expected sources, whose rows a model"),
        (["a.json", "--model", QWEN3], "--model is about rows to come, got a.json"),
        (["a.json", "--limit", "3"], "--limit is about rows to come"),
        (["absent.json"], "absent.json: expected a source, a file of rows, a card or a folder"),
        (["nobody/knows"], "nor a data set that is known by its id"),
        (["a.json", "--why", "--json"], "not allowed with"),
    ],
)
def test_a_wrong_question_about_a_file_exits_2(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.json", [GPT4])
    try:
        code = cli.run(["license", *words])
    except SystemExit as ended:
        code = int(ended.code or 0)
    assert code == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split())
    assert all(len(line) <= 80 for line in said.splitlines())


@pytest.mark.parametrize(
    ("name", "family"),
    [
        *((name, "OpenAI") for name in ("gpt-4", "GPT4V", "gpt-4.1-mini", "openai/gpt-4o")),
        *((name, "OpenAI") for name in ("gpt-35-turbo", "ChatGPT", "openrouter/openai/gpt-5")),
        *((name, "Anthropic") for name in ("claude", "Claude-3", "anthropic/claude-sonnet-4.5")),
        *((name, "Google") for name in ("gemini", "google/gemini-2.5-pro", "gemini_pro")),
        *((name, None) for name in ("gpt-2", "gpt-oss-20b", "gpt-j-6b", "EleutherAI/gpt-neox-20b")),
        *((name, None) for name in ("minigpt-4", "sharegpt", "me/qwen-claude-distill", "gpt")),
    ],
)
def test_a_closed_family_is_known_by_its_words(name: str, family: str | None) -> None:
    found = services.find_family(REGISTRY, name)
    assert (found.title.partition("'")[0] if found else None) == family


def test_a_family_frees_nothing() -> None:
    assert REGISTRY.families
    for family in REGISTRY.families:
        assert REGISTRY.terms[family.terms].output_training == "forbidden"
