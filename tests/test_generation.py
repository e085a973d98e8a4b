"""`mminstruct.generate`: in Python, what the command line does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import coco_files
from loopback import LoopbackServer, chat_completion

import mminstruct
from mminstruct import cli
from mminstruct.cli.console import DONE
from mminstruct.errors import NoRows, RunStopped, UsageError
from mminstruct.reports.estimate import Estimate
from mminstruct.rows.report import summary


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Where a run keeps things, and a stand-in that answers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767225600")
    return {"backend": "fake", "cache_dir": "cache", "response_store": "r.sqlite"}


@pytest.mark.parametrize("name", ["out", "out.jsonl", "out.json"])
def test_python_writes_the_files_that_the_command_line_writes(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    for folder in ("python", "shell"):
        (tmp_path / folder).mkdir()
    made = mminstruct.generate(
        "SAMPLE", limit=2, types=["conversation"], output_path=f"python/{name}", **settings
    )
    line = f"generate SAMPLE --limit 2 --types conversation --dry_run --output_path shell/{name}"
    assert cli.run(line.split()) == DONE
    assert made.written is not None
    assert (made.written.path, made.written.rows) == (Path(f"python/{name}"), 2)
    # A card and what is noted beside it name the command, if there was one.
    files = {
        folder: {
            str(path.relative_to(tmp_path / folder)): path.read_bytes()
            for path in (tmp_path / folder).rglob("*")
            if path.is_file() and path.name not in ("README.md", "provenance.json")
        }
        for folder in ("python", "shell")
    }
    assert files["python"] == files["shell"] != {}
    assert not list((tmp_path / "python").glob("*.missing.jsonl"))


def test_rows_come_with_what_became_of_the_requests_and_how_they_were_made(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    coco = coco_files(tmp_path / "coco", 3)
    made = mminstruct.generate(
        ["COCO2017", "SAMPLE", "sample"], limit=2, seed=7, data_dir=str(coco), **settings
    )
    assert list(made.rows) == ["train"]
    assert made.rows["train"].unique("source") == ["COCO2017", "SAMPLE"]
    assert len(made.rows["train"]) == made.report.rows.total() == made.report.requests == 12
    assert [source.name for source in made.origin.sources] == ["COCO2017", "SAMPLE"]
    assert [config.name for config in made.origin.configs] == ["llava", "llava"]
    assert (made.origin.backend, made.origin.model) == ("fake", "scripted")
    assert made.origin.settings["seed"] == "7"
    assert made.origin.command is None
    assert made.written is None
    names = {path.name.partition(".")[0] for path in tmp_path.iterdir()}
    assert names == {"cache", "coco", "r"}  # nothing but what it was given


def test_a_caller_hears_what_a_run_will_take_and_may_stop_it_before_anything_is_sent(
    settings: dict[str, Any], server: LoopbackServer
) -> None:
    asked = {**settings, "backend": "openai", "model": "m", "base_url": server.url}
    heard: list[int] = []

    def agree(found: Estimate) -> None:
        heard.append(found.requests)
        if len(heard) == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        mminstruct.generate("SAMPLE", limit=1, agree=agree, **asked)
    assert server.bodies == []
    made = mminstruct.generate("SAMPLE", limit=1, agree=agree, **asked)
    assert heard == [3, 3]
    assert len(made.rows["train"]) == len(server.bodies) == 3
    again = mminstruct.generate("SAMPLE", limit=1, **asked)
    assert len(server.bodies) == 3
    assert again.rows["train"].to_list() == made.rows["train"].to_list()


def test_a_bound_holds_for_all_sources_together(
    settings: dict[str, Any], server: LoopbackServer, tmp_path: Path
) -> None:
    coco = coco_files(tmp_path / "coco", 2)
    asked = {**settings, "backend": "openai", "model": "m", "base_url": server.url}
    with pytest.raises(RunStopped, match="max_requests 4"):
        mminstruct.generate(
            ["COCO2017", "SAMPLE"], limit=1, max_requests=4, data_dir=str(coco), **asked
        )
    assert len(server.bodies) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"modle": "m"}, "unknown argument 'modle' (did you mean 'model'?)"),
        ({"sources": []}, "sources: expected at least one, got none"),
        ({"sources": "COCO"}, "unknown source 'COCO'"),
        ({"machine_labels": True}, "the source 'SAMPLE' has no option 'machine_labels'"),
        ({"output_path": "out.parquet"}, "the format dataset is a folder, got the name of a"),
        ({"output_format": "jsnl"}, "format 'jsnl' (did you mean 'jsonl'?)"),
        ({"model_source": "fake"}, "model_source: another name of backend; give one of them"),
    ],
)
def test_a_wrong_argument_is_told_before_anything_is_read(
    arguments: dict[str, Any], words: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as refused:
        mminstruct.generate(**{"sources": "SAMPLE", **settings, **arguments})
    assert words in str(refused.value)
    assert not (tmp_path / "r.sqlite").exists()


def test_answers_of_which_none_gives_a_row_are_where_the_error_says(
    settings: dict[str, Any], server: LoopbackServer
) -> None:
    server.answer = lambda server, body: chat_completion("No.")
    asked = {**settings, "backend": "openai", "model": "m", "base_url": server.url}
    with pytest.raises(NoRows, match=r"The answers are in .*rejected.jsonl. The same run"):
        mminstruct.generate("SAMPLE", limit=1, **asked)
    with pytest.raises(NoRows, match=r"The answers are in out.jsonl.rejected.jsonl"):
        mminstruct.generate("SAMPLE", limit=1, output_path="out.jsonl", **asked)
    assert Path("out.jsonl.rejected.jsonl").is_file()


def test_a_model_that_always_says_the_same_is_told_and_stopped_before_it_is_paid_for_more(
    settings: dict[str, Any],
    server: LoopbackServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    same = "Question: What is there in the image?\nAnswer: A red bus stands in a wide street."
    server.answer = lambda server, body: chat_completion(same)
    asked = {**settings, "backend": "openai", "model": "m", "base_url": server.url}
    asked |= {"data_dir": str(coco_files(tmp_path / "coco", 1000)), "types": ["conversation"]}
    with pytest.raises(NoRows, match="of type 'conversation' have another row's answers, word for"):
        mminstruct.generate("COCO2017", **asked)
    sent = len(server.bodies)
    assert 200 <= sent < 1000
    caplog.clear()
    made = mminstruct.generate("COCO2017", limit=200, **asked)
    assert len(server.bodies) == sent  # all are stored: told, and not ended
    assert sum("look at them before you pay" in line for line in caplog.messages) == 1
    assert made.report.repeated == {"conversation": {"questions": 199, "answers": 199}}
    assert summary(made.report) == "200 rows, 100% of 'conversation' with another row's answers"


def test_rows_that_were_changed_do_not_go_to_the_hub_under_the_verdict_of_the_run(
    settings: dict[str, Any],
) -> None:
    made = mminstruct.generate("SAMPLE", limit=1, **settings)
    made.rows["train"] = made.rows["train"].select([0, 2])
    with pytest.raises(UsageError, match=r"changed since they were generated.*generated\.rows"):
        mminstruct.push_to_hub(made, "user/name", token="hf_x")
    made.rows["train"] = made.rows["train"].select([])
    with pytest.raises(UsageError, match="expected some, got none"):
        mminstruct.push_to_hub(made, "user/name", token="hf_x")


@pytest.mark.parametrize("name", ["config_name", "hash", "like", "source", "config_id"])
def test_what_is_worked_out_for_each_builder_is_no_argument(
    settings: dict[str, Any], name: str
) -> None:
    with pytest.raises(UsageError, match=f"unknown argument '{name}'"):
        mminstruct.generate("SAMPLE", **{name: "x"}, **settings)
