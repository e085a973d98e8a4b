"""What reading left out, which answers were rejected and what is missing is told, never silent."""

from __future__ import annotations

import json
import logging
import traceback
import warnings
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import coco_files
from loopback import LoopbackServer, chat_completion, turns_for

from mminstruct import cli
from mminstruct.builder import IncompleteWarning
from mminstruct.cli.arguments import USAGE
from mminstruct.cli.console import DONE, INCOMPLETE, STOPPED
from mminstruct.errors import NoRows, RunStopped, SourceError
from mminstruct.sources import ReadReport

COCO = "builders/coco2017_llava"


def json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def uncaptioned(*numbers: int) -> Any:
    """An edit of a COCO split by which some images have no caption."""

    def edit(captions: dict[str, Any], instances: dict[str, Any]) -> None:
        kept = [a for a in captions["annotations"] if a["image_id"] not in numbers]
        captions["annotations"] = kept

    return edit


def ends_badly(*numbers: int, good: Any = turns_for) -> Any:
    """Answers that are cut off after nothing usable where some scenes are shown."""

    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        shown = body["messages"][-1]["content"]
        bad = any(f"scene {number}," in shown for number in numbers)
        return chat_completion(f"No: {shown[:40]}" if bad else good(body))

    return answer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def generate(server: LoopbackServer, *more: str) -> int:
    where = ["--model_source", "openai", "--model", "m", "--openai_base_url", server.url]
    kind = ["--types", "conversation", "--response_store", "store.sqlite"]
    return cli.run(["generate", "COCO2017", *where, *kind, *more])


def load(server: LoopbackServer, cache: Path, **more: Any) -> Any:
    given = {"backend": "openai", "model": "m", "base_url": server.url, "max_retries": 0}
    given |= {"response_store": str(cache / "store.sqlite"), "data_dir": str(cache / "coco")}
    return datasets.load_dataset(
        COCO, "conversation", split="train", cache_dir=str(cache / "hf"), **{**given, **more}
    )


def test_a_report_keeps_some_examples_of_each_reason_and_which_are_faults(tmp_path: Path) -> None:
    report = ReadReport.of("image")
    for number in range(250):
        report.skip("empty caption", example=str(number))
    report.skip("repeated caption", 7, harmless=True)
    report.skip("box outside the image", 300)
    report.write(tmp_path / "read.json")
    again = ReadReport.read(tmp_path / "read.json")
    assert again.skipped == {
        "empty caption": 250,
        "repeated caption": 7,
        "box outside the image": 300,
    }
    assert again.examples == {"empty caption": [str(number) for number in range(100)]}
    assert again.faults() == ["box outside the image", "empty caption"]
    assert [again.line(reason) for reason in again.skipped] == [
        *("250 x empty caption (0)", "7 x repeated caption", "300 x box outside the image"),
    ]


def test_a_report_of_another_time_is_read(tmp_path: Path) -> None:
    (tmp_path / "read.json").write_text('{"contexts": 3, "skipped": {"empty caption": 2}}')
    again = ReadReport.read(tmp_path / "read.json")
    assert (again.contexts, again.skipped, again.examples) == (3, {"empty caption": 2}, {})


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("image without captions", "images"),
        ("LVIS: image without captions", "images"),
        ("box outside the image", "boxes"),
        ("empty caption", "captions"),
        ("label without a name", "labels"),
    ],
)
def test_more_than_half_lost_to_faults_is_an_error_by_kind(reason: str, kind: str) -> None:
    report = ReadReport.of("image")
    report.kept |= {"image": 10, "box": 10, "caption": 10, "label": 10}
    report.skip(reason, 10, example="42")
    report.check("X, split 'train'")
    report.skip(reason, 1)
    with pytest.raises(SourceError) as stopped:
        report.check("X, split 'train'")
    assert f"X, split 'train': 11 of 21 {kind} can't be used, more than half: 11" in str(
        stopped.value
    )
    assert f": 11 x {reason} (42). Nothing was sent." in str(stopped.value)


def test_cleaning_never_stops_a_run_however_much_it_is() -> None:
    report = ReadReport.of("image")
    report.kept["caption"] = 1
    report.skip("repeated caption", 99, harmless=True)
    report.skip("line that isn't a narrative", 99)
    report.check("X")


def test_an_error_names_five_reasons_at_most_the_most_frequent_first() -> None:
    report = ReadReport.of("image")
    for number in range(7):
        report.skip(f"image of kind {number}", number + 1)
    with pytest.raises(SourceError) as stopped:
        report.check("X")
    assert "28 of 28 images" in str(stopped.value)
    assert [str(stopped.value).count(f"kind {n}") for n in range(7)] == [0, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("output", ["out", "out.jsonl"])
def test_what_reading_left_out_is_told_and_listed_beside_the_rows(
    output: str, folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_files(folder / "cache", 4, edit=uncaptioned(2, 3))
    assert generate(server, "--output_path", output) == DONE
    said = capsys.readouterr().err
    words = "COCO2017, split 'train': left out 2 x image without captions (000000000002)"
    assert said.count(f"mminstruct: {words}\n") == 1
    assert said.index(words) < said.index("2 rows; written to")
    listed = "out/left_out.jsonl" if output == "out" else "out.jsonl.left_out.jsonl"
    assert json_lines(folder / listed) == [
        {
            "source": "COCO2017",
            "split": "train",
            "reason": "image without captions",
            "count": 2,
            "fault": True,
            "examples": ["000000000002", "000000000003"],
        }
    ]


def test_a_run_that_lost_more_than_half_of_its_images_stops_before_it_sends_anything(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_files(folder / "cache", 5, edit=uncaptioned(1, 4, 5))
    for _ in range(2):  # what was read is kept, and so is the verdict on it
        assert generate(server) == USAGE
        said = capsys.readouterr().err
        assert "3 of 5 images can't be used, more than half" in said
        assert "3 x image without captions (000000000001)" in said
    assert (server.bodies, Path("instruct").exists()) == ([], False)


@pytest.mark.parametrize("more", [{}, {"num_proc": 2}, {"streaming": True}])
def test_a_load_that_lost_more_than_half_of_its_images_sends_nothing(
    more: dict[str, Any], tmp_path: Path, server: LoopbackServer
) -> None:
    coco_files(tmp_path / "coco", 5, edit=uncaptioned(1, 4, 5))
    with pytest.raises(SourceError, match="3 of 5 images can't be used, more than half"):
        list(load(server, tmp_path, limit=1, **more))
    assert server.bodies == []


@pytest.mark.parametrize("output", ["out", "out.jsonl"])
def test_rejected_answers_can_be_read(
    output: str, folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_files(folder / "cache", 3)
    server.answer = ends_badly(2)
    assert generate(server, "--output_path", output) == DONE
    file = "out/rejected.jsonl" if output == "out" else "out.jsonl.rejected.jsonl"
    (entry,) = json_lines(folder / file)
    assert entry["id"] == f"coco2017-{2:012d}-conversation"
    assert (entry["outcome"], entry["type"]) == ("rejected", "conversation")
    assert entry["answer"].startswith("No: ")
    assert entry["reason"] and entry["detail"]
    assert "2 rows, 1 rejected" in capsys.readouterr().err


def test_the_answers_can_be_read_where_none_gave_a_row(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_files(folder / "cache", 3)
    server.answer = ends_badly(1, 2, 3)
    assert generate(server, "--output_path", "out") == USAGE
    assert "The answers are in out.rejected.jsonl" in capsys.readouterr().err
    assert [entry["answer"][:4] for entry in json_lines(folder / "out.rejected.jsonl")] == (
        ["No: "] * 3
    )
    assert not Path("out").exists()


def test_the_answers_of_a_run_that_ended_early_can_be_read_with_partial(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_files(folder / "cache", 260)
    server.answer = ends_badly(good=lambda body: "No")
    assert generate(server, "--output_path", "out", "--max_concurrency", "4") == USAGE
    assert "run the same command with --partial, which sends nothing" in capsys.readouterr().err
    asked = len(server.bodies)
    assert asked < 260
    assert generate(server, "--output_path", "out", "--partial") == USAGE
    assert "The answers are in out.rejected.jsonl" in capsys.readouterr().err
    assert {entry["answer"] for entry in json_lines(folder / "out.rejected.jsonl")} == {"No"}
    assert len(server.bodies) == asked


def test_from_python_rejects_licence_and_file_are_told(
    tmp_path: Path, server: LoopbackServer, caplog: pytest.LogCaptureFixture
) -> None:
    coco_files(tmp_path / "coco", 4, edit=uncaptioned(4))
    server.answer = ends_badly(2)
    paid = []
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="mminstruct.builder"):
            assert len(load(server, tmp_path, price_in=1000, price_out=1000)) == 2
        said = caplog.records[-1].getMessage()
        assert "coco2017_llava: 2 rows, 1 rejected" in said
        assert "licence of the text: unknown; commercial use of the text: not known; " in said
        rejected, left_out = (Path(path) for path in said.rpartition(": ")[2].split(", "))
        assert [entry["answer"][:4] for entry in json_lines(rejected)] == ["No: "]
        assert [entry["reason"] for entry in json_lines(left_out)] == ["image without captions"]
        paid.append("; 3 answers cost about $0.36; " in said)
    assert paid == [True, False]
    assert len(server.bodies) == 3


def test_what_a_run_cost_is_told(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_files(folder / "cache", 3)
    price = ["--price_in", "1000", "--price_out", "1000"]
    assert generate(server, *price) == DONE
    assert "3 rows; 3 answers cost about $0.36; written to instruct" in capsys.readouterr().err
    assert generate(server, *price) == DONE
    assert "mminstruct: 3 rows; written to instruct" in capsys.readouterr().err
    assert generate(server, "--overwrite", "--temperature", "1") == DONE
    assert "mminstruct: 3 rows; written to instruct" in capsys.readouterr().err  # price not known


def test_what_is_complete_is_written_on_request_and_completed_later(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_files(folder / "cache", 6)
    server.answer = ends_badly(2)
    assert generate(server, "--max_requests", "4", "--max_concurrency", "1") == STOPPED
    assert "go on, or run it with --partial to write what is complete." in capsys.readouterr().err
    assert (len(server.bodies), Path("instruct").exists()) == (4, False)
    assert generate(server, "--partial") == INCOMPLETE
    said = capsys.readouterr().err
    assert "3 rows, 2 of 6 requests not asked yet, 1 rejected" in said
    assert "partial: the same command without --partial makes the rest" in said
    assert len(server.bodies) == 4
    noted = json.loads(Path("instruct/provenance.json").read_text())
    assert noted["partial"] == {"answered": 4, "requests": 6}
    assert noted["rows"] == {"conversation": 3}
    assert len(json_lines(Path("instruct/rejected.jsonl"))) == 1
    card = Path("instruct/README.md").read_text()
    assert "**Partial**: made when 4 of 6 requests were answered" in card
    assert "--partial" not in noted["command"]
    assert generate(server) == DONE
    assert (len(server.bodies), len(datasets.load_dataset("instruct", split="train"))) == (6, 5)
    assert json.loads(Path("instruct/provenance.json").read_text())["partial"] is None
    assert "Partial" not in Path("instruct/README.md").read_text()


def test_partial_needs_no_server_and_finds_answers_to_prompts_that_were_shortened(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_files(folder / "cache", 3)

    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        if len(body["messages"]) > 4:
            message = "This model's maximum context length is 100 tokens, got 200"
            return 400, {}, {"error": {"message": message, "code": "context_length_exceeded"}}
        return chat_completion(turns_for(body))

    server.answer = answer
    assert generate(server, "--limit", "2") == DONE
    server.__exit__(None, None, None)
    try:
        assert generate(server, "--partial") == INCOMPLETE
    finally:
        server.__init__()  # type: ignore[misc]
        server.__enter__()
    assert "2 rows, 1 of 3 requests not asked yet; written" in capsys.readouterr().err


def test_partial_without_a_stored_answer_says_so(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_files(folder / "cache", 2)
    assert generate(server, "--partial") == USAGE
    said = capsys.readouterr().err
    assert "2 of 2 requests not asked yet" in said
    assert "leave out partial (--partial) to ask for them" in said
    assert (server.bodies, Path("instruct").exists()) == ([], False)


@pytest.mark.parametrize("more", [{}, {"num_proc": 2}, {"streaming": True}])
def test_partial_from_python_sends_nothing(
    more: dict[str, Any], tmp_path: Path, server: LoopbackServer
) -> None:
    coco_files(tmp_path / "coco", 4)
    load(server, tmp_path, limit=2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", IncompleteWarning)
        rows = list(load(server, tmp_path, partial=True, **more))
    assert len(rows) == 2
    assert any("2 of 4 requests not asked yet" in str(warning.message) for warning in told)
    assert len(server.bodies) == 2
    assert len(list(load(server, tmp_path, **more))) == 4
    assert len(server.bodies) == 4


@pytest.mark.parametrize("more", [{}, {"num_proc": 2}, {"streaming": True}])
def test_an_error_from_python_is_short_and_ends_with_its_own_words(
    more: dict[str, Any], tmp_path: Path, server: LoopbackServer
) -> None:
    coco_files(tmp_path / "coco", 4)
    server.answer = lambda server, body: (401, {}, {"error": {"message": "no such key"}})
    with pytest.raises(RunStopped) as stopped:
        list(load(server, tmp_path, **more))
    shown = "".join(traceback.format_exception(stopped.value)).rstrip().splitlines()
    assert shown[-1].startswith("mminstruct.errors.RunStopped: ")
    assert "no such key" in shown[-1]
    assert len([line for line in shown if line.startswith("Traceback")]) == 1
    assert len(shown) < 25


def test_where_no_answer_gives_a_row_python_names_the_file_with_them(
    tmp_path: Path, server: LoopbackServer
) -> None:
    coco_files(tmp_path / "coco", 3)
    server.answer = ends_badly(1, 2, 3)
    with pytest.raises(NoRows) as stopped:
        load(server, tmp_path)
    file = Path(str(stopped.value).partition("The answers are in ")[2].partition(". The")[0])
    assert [entry["answer"][:4] for entry in json_lines(file)] == ["No: "] * 3
