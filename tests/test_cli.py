"""The command line as a user types it; most tests run it in the test process."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import coco_files
from dummy_data import write_all
from loopback import LoopbackServer, chat_completion, turns_for
from running import COMMAND

from mminstruct import cli
from mminstruct.cli.arguments import USAGE
from mminstruct.cli.console import DONE, INCOMPLETE, STOPPED, UNREAD


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an empty Hugging Face cache and invented COCO files in ./cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    for year in (2014, 2017):
        coco_files(tmp_path / "cache", 2, year=year)
    return tmp_path


def other_captions(captions: dict[str, Any], instances: dict[str, Any]) -> None:
    for annotation in captions["annotations"]:
        annotation["caption"] = "A zeppelin over a lake."


def generate(*arguments: str, server: LoopbackServer | None = None) -> int:
    """The exit code of `mminstruct generate`, against the loopback server if there is one."""
    more = []
    if server is not None:
        more = ["--model_source", "openai", "--model", "m", "--openai_base_url", server.url]
    return cli.run(["generate", *arguments, *more, "--response_store", "responses.sqlite"])


def test_a_dataset_repository_is_the_default(folder: Path, server: LoopbackServer) -> None:
    assert generate("COCO2017", "--output_path", "out", server=server) == 0
    rows = datasets.load_dataset("out", split="train", cache_dir="hf")
    assert len(rows) == 6
    assert len(datasets.load_dataset("out", "conversation", split="train", cache_dir="hf")) == 2
    assert (folder / "out" / "LICENSE").is_file()


def test_several_sources_go_into_one_output(folder: Path, server: LoopbackServer) -> None:
    assert generate("COCO2014", "COCO2017", "--output_path", "all.jsonl", server=server) == 0
    rows = [json.loads(line) for line in (folder / "all.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == ["COCO2014"] * 6 + ["COCO2017"] * 6
    assert len({row["id"] for row in rows}) == 12


def test_a_source_that_is_given_twice_is_taken_once(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = ["COCO2017", "coco2017", " Coco2017"]
    assert generate(*twice, "--output_path", "all.jsonl", server=server) == 0
    assert len((folder / "all.jsonl").read_text().splitlines()) == 6
    for command, *more in (("estimate", "--dry_run"), ("license",)):
        told = []
        for names in (["COCO2017"], twice):
            capsys.readouterr()
            assert cli.run([command, *names, *more, "--json"]) == DONE
            told.append(capsys.readouterr().out)
        assert told[0] == told[1]


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ([], "instruct/README.md"),
        (["--output_format", "jsonl"], "instruct.jsonl"),
        (["--output_format", "llava-instruct"], "instruct.llava-instruct.json"),
        (["--output_path", "x.jsonl"], "x.jsonl"),
        (["--output-path", "x.json"], "x.json"),
        (["--output_path", "x", "--output-format", "jsonl"], "x"),
    ],
)
def test_the_output_goes_where_it_should(
    arguments: list[str], written: str, folder: Path, server: LoopbackServer
) -> None:
    assert generate("coco2017", *arguments, server=server) == 0
    assert (folder / written).is_file()


def test_every_flag_reaches_what_it_is_for(folder: Path, server: LoopbackServer) -> None:
    arguments = "--temperature 0.25 --top-p 0.5 --max-tokens 77 --seed 5 --limit 1 --types"
    code = generate("COCO2017", *arguments.split(), "detail_description", server=server)
    assert code == 0
    (body,) = server.bodies
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.25, 0.5, 77)
    assert isinstance(body["seed"], int)
    assert "Authorization" not in server.headers[0] or "None" not in str(server.headers[0])


def test_a_context_window_shortens_prompts_and_says_so(
    folder: Path, server: LoopbackServer
) -> None:
    arguments = ["--context_window", "2000", "--max_tokens", "1900", "--limit", "1"]
    assert generate("COCO2017", *arguments, "--output_path", "o.jsonl", server=server) == 0
    rows = [json.loads(line) for line in (folder / "o.jsonl").read_text().splitlines()]
    assert all(row["provenance"]["dropped_few_shots"] > 0 for row in rows)
    assert all(body["max_tokens"] < 1900 for body in server.bodies)


@pytest.mark.parametrize("check", ["drop", "reask"])
def test_a_dry_run_has_rows_to_look_at_whatever_becomes_of_contradicted_turns(
    check: str, tmp_path: Path
) -> None:
    # What the stand-in names is in no image.
    out = tmp_path / "o.jsonl"
    run = ["generate", "SAMPLE", "--dry_run", "--limit", "1", "--output_path", str(out)]
    assert cli.run([*run, "--check", check]) == DONE
    assert len(out.read_text("utf-8").splitlines()) == 3


def test_a_dry_run_asks_nobody_and_keeps_nothing(folder: Path) -> None:
    assert cli.run(["generate", "COCO2017", "--dry_run", "--output_path", "o.jsonl"]) == 0
    rows = [json.loads(line) for line in (folder / "o.jsonl").read_text().splitlines()]
    assert {row["provenance"]["backend"] for row in rows} == {"fake"}
    assert not (folder / "hf").exists()


def test_rows_are_shown_on_request(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("COCO2017", "--show", "3", server=server) == 0
    shown = capsys.readouterr().out
    for kind in ("conversation", "detail_description", "complex_reasoning"):
        assert f"--- {1:012d}.jpg ({kind})" in shown


def test_a_shown_row_does_not_control_the_terminal(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = lambda server, body: chat_completion("Question: Red?\nAnswer: \x1b[31mYes.")
    assert generate("COCO2017", "--types", "conversation", "--show", "1", server=server) == 0
    assert "\nA: \\x1b[31mYes.\n" in capsys.readouterr().out


HOSTILE = "\x1b]0;owned\x07\x9b31m\x08\x7f\u2028\u202e\u2066\u200f\r"


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "COCO2017"),
        ("generate", "COCO2017", "--types", HOSTILE),
        ("generate", "COCO2017", "--dataset_storage_path", HOSTILE),
        ("generate", "COCO2017", f"--{HOSTILE}"),
        ("generate", "COCO2017", "--limit", HOSTILE),
        ("export", HOSTILE, "--format", "jsonl"),
        ("show", "COCO2017", HOSTILE),
        (HOSTILE,),
    ],
    ids=str,
)
def test_nothing_that_is_printed_controls_the_terminal(
    folder: Path,
    server: LoopbackServer,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
) -> None:
    server.answer = lambda server, body: (400, {}, {"error": {"message": f"no {HOSTILE}"}})
    given = ["--model_source", "openai", "--model", HOSTILE, "--openai_base_url", server.url]
    try:
        code = cli.run([*arguments, *(given if arguments[0] == "generate" else [])])
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    assert code in (2, 3)
    assert "\\x1b]0;owned" in err or HOSTILE not in arguments
    assert re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066\u200f]", out + err) == []


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "2>&- >&-"])
def test_a_closed_stream_is_no_traceback(tmp_path: Path, closed: str) -> None:
    script = "import sys; from mminstruct.cli import main; main()"
    command = f'"$0" -c "{script}" generate SAMPLE --dry_run --limit 1 {closed}'
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf")}
    ended = subprocess.run(
        ["sh", "-c", command, sys.executable], cwd=tmp_path, env=environment, capture_output=True
    )
    assert (ended.returncode, b"Traceback" in ended.stderr) == (0, False), ended.stderr
    assert (tmp_path / "instruct" / "README.md").exists()


def test_the_licence_is_told_before_anything_is_sent(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("COCO2017", server=server) == 0
    first, second = capsys.readouterr().err.splitlines()[:2]
    assert first.startswith("mminstruct: text: not known; images: all 2 may be used commercially")
    assert second.endswith("licence of the text: unknown")


def test_everything_there_is_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["list"]) == 0
    listed = capsys.readouterr().out
    for name in ("COCO2014", "SAMPLE", "llava_smallcontext", "coco2017_llava", "llama_cpp"):
        assert name in listed


UNREAD = {
    "list": UNREAD,
    "show COCO2017": UNREAD,
    "license SAMPLE": UNREAD,
    "estimate COCO2017 --dry_run": UNREAD,
    "generate COCO2017 --dry_run --show 6": DONE,
    "generate --help": DONE,
}


@pytest.mark.parametrize("arguments", UNREAD)
def test_output_that_nobody_reads_on_ends_in_peace(arguments: str, folder: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [*COMMAND, *arguments.split()], stdout=write, stderr=subprocess.PIPE, text=True, cwd=folder
    )
    os.close(write)
    assert ended.returncode == UNREAD[arguments]
    for word in ("Traceback", "Broken pipe", "again", "Exception"):
        assert word not in ended.stderr
    assert (folder / "instruct" / "README.md").exists() == ("--show" in arguments)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_a_terminal_has_no_character_for_is_escaped(encoding: str, folder: Path) -> None:
    def edit(captions: dict[str, Any], instances: dict[str, Any]) -> None:
        captions["annotations"][0]["caption"] = "A caf\u00e9, \u8d64\u3044."

    coco_files(folder / "cache", 2, edit=edit)
    for more in ((), ("--json",)):
        ended = subprocess.run(
            [*COMMAND, "show", "COCO2017", *more],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
            cwd=folder,
        )
        assert (ended.returncode, ended.stderr) == (DONE, b"")
        out = ended.stdout.decode(encoding)
        if more:
            assert json.loads(out)["context"]["captions"][0] == "A caf\u00e9, \u8d64\u3044."
        else:
            said = "A caf\u00e9, \u8d64\u3044.".encode(encoding, "backslashreplace")
            assert f"- {said.decode(encoding)}\n" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "COCO2017", "--modle", "x"], "did you mean '--model'"),
        (["generate", "COCO2017", "--output_fromat", "jsonl"], "did you mean '--output_format'"),
        (["generate"], "SOURCE"),
        (["generate", "COCO2017", "--output_format", "xml"], "jsonl"),
        (["generate", "COCO2017", "--limit", "many"], "--limit"),
        (["genrate"], "generate"),
        ([], "COMMAND"),
    ],
)
def test_a_wrong_command_line_exits_2_and_says_what_is_right(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.run(arguments)
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("generate SAMPLE --exact", " generate: %s--exact (--exact is a flag of estimate)"),
        ("list --splits=a", " list: %s--splits=a (--splits is a flag of generate, estimate, show,"),
        ("generate SAMPLE --frob 3", " generate: %s--frob; see mminstruct generate --help"),
        ("push out me/it --privat", " push: %s--privat (did you mean '--private'?); see"),
        ("push out me/it --timeuot", " push: %s--timeuot; see mminstruct push --help"),
        ("show SAMPLE 1 2", " show: %s2; see mminstruct show --help"),
        ("--dry-run generate SAMPLE", ": %s--dry-run (--dry-run has its place after"),
    ],
)
def test_a_wrong_flag_is_answered_from_its_commands_own_in_a_line(
    arguments: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.run(arguments.split())
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mminstruct{said % 'error: unrecognized arguments: '}")
    assert len(line) < 200


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["COCO2015"], "unknown source 'COCO2015' (did you mean 'COCO201"),
        (["COCO2017", "--types", "chat"], "has no instruction type 'chat'"),
        (["COCO2017", "--splits", "tset"], "has no split 'tset'"),
        (["COCO2017", "--prompt_config", "lava"], "did you mean 'llava'"),
        (["COCO2017", "--model_source", "opneai"], "did you mean 'openai'"),
        (["COCO2017", "--model_source", "openai"], "--model"),
        (["COCO2017", "--tgi_url", "http://h"], "--tgi_url is for --model_source tgi, got"),
        (["COCO2017", "--openai_base_url", "http://h"], "is for --model_source openai, got"),
        (["COCO2017", "--model_source", "llama.cpp", "--model", "no.gguf"], "No such file"),
        (["COCO2017", "--output_path", "full"], "not written by mminstruct"),
        (["COCO2017", "--limit", "-1"], "limit: expected at least 1"),
        # Without annotations there: before anything is fetched.
        (["COCO2014", "--model_source", "openai", "--model", "m"], "OPENAI_API_KEY is not set"),
        (["SAMPLE", "--model_source", "openai", "--model", "m"], "OPENAI_API_KEY is not set"),
        (["COCO2017", "--response_store", "full"], "give a writable SQLite file or a new one"),
        (["COCO2017", "--response_store", "junk"], "give a writable SQLite file or a new one"),
        (["COCO2017", "--show", "-1"], "show: expected at least 0, got -1"),
    ],
)
def test_what_a_user_can_fix_prints_one_line_and_exits_2(
    arguments: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "full").mkdir()
    (folder / "junk").write_text("no store " * 500)
    (folder / "full" / "thesis.txt").write_text("mine")
    assert cli.run(["generate", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not (folder / "instruct" / "README.md").exists()


def test_a_file_that_is_no_gguf_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "x.gguf").write_bytes(b"<html>not found</html>")
    assert cli.run(["generate", "COCO2017", "--model", "x.gguf"]) == 2
    assert "not a GGUF file" in capsys.readouterr().err


def test_a_damaged_annotation_file_is_named(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "cache" / "annotations" / "captions_train2017.json"
    file.write_text(file.read_text()[:200])
    assert generate("COCO2017", server=server) == 2
    assert "captions_train2017.json" in capsys.readouterr().err
    assert not server.bodies


def test_a_server_that_is_down_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LoopbackServer() as gone:
        url = gone.url
    arguments = ["--model_source", "openai", "--model", "m", "--openai_base_url", url]
    assert cli.run(["generate", "COCO2017", *arguments]) == 3
    error = capsys.readouterr().err
    assert url in error
    assert "Traceback" not in error


@pytest.mark.parametrize("output", ["a/b", "a/b.jsonl"])
def test_a_run_that_is_refused_or_fails_leaves_no_folder_behind(
    output: str, folder: Path, server: LoopbackServer
) -> None:
    server.answer = lambda server, body: (401, {}, {"error": {"message": "no"}})
    assert generate("COCO2017", "--types", "chat", "--output_path", output, server=server) == 2
    assert generate("COCO2017", "--output_path", output, server=server) == 3
    assert not (folder / "a").exists()


def test_a_wrong_key_ends_the_run_with_the_servers_words(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}
    server.answer = lambda server, body: (401, {}, words)
    assert generate("COCO2017", server=server) == 3
    assert "Incorrect API key provided" in capsys.readouterr().err
    assert len(server.bodies) == 1


def test_answers_that_give_no_row_are_no_reason_to_run_again(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = lambda server, body: chat_completion("I would rather not.")
    assert generate("COCO2017", server=server) == 2
    said = capsys.readouterr().err
    assert "no row in split 'train': 0 rows, 6 rejected" in said
    assert "; the first: " in said
    assert "The same run gives the same again" in said
    assert "run the same command again" not in said


@pytest.mark.parametrize("status", [200, 400])
def test_a_split_without_a_row_costs_no_other_split(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    coco_files(folder / "cache", 1, split="val", edit=other_captions)

    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        if "zeppelin" not in body["messages"][-1]["content"]:
            return chat_completion(turns_for(body))
        if status == 200:
            return chat_completion("I would rather not.")
        return (status, {}, {"error": {"message": "not with me"}})

    server.answer = answer
    arguments = ("COCO2017", "--splits", "train", "validation")
    for _ in range(2):
        assert generate(*arguments, server=server) == (0 if status == 200 else 1)
        said = capsys.readouterr().err
        assert "no row in split 'validation': 0 rows, 3 " in said
        assert "the split is left out" in said
        if status == 400:
            assert "; the first: " in said and "not with me" in said
        made = datasets.load_dataset("instruct")
        assert {split: len(rows) for split, rows in made.items()} == {"train": 6}


def test_a_verbose_run_says_what_slows_it_down(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        if len(server.bodies) in (1, 3):
            return (429, {"Retry-After": "0.2"}, {"error": {"message": "slow down"}})
        return chat_completion(turns_for(body))

    server.answer = answer
    why = "mminstruct: pause 0.0 -> 0.2 s: the server's Retry-After"
    assert generate("COCO2017", "-v", server=server) == 0
    assert why in capsys.readouterr().err.splitlines()
    server.bodies.clear()
    assert generate("COCO2017", "--seed", "1", "--overwrite", server=server) == 0
    assert "pause 0.0" not in capsys.readouterr().err


@pytest.mark.parametrize("is_there", [True, False])
def test_where_a_place_is_given_nothing_else_is_read(
    folder: Path,
    is_there: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    if is_there:
        (folder / "own" / "deep").mkdir(parents=True)
        (folder / "own" / "deep" / "_annotations.coco.json").write_text("{}")
        (folder / "own" / "image.jpg").write_bytes(b"")
    arguments = ["--model_source", "fake", "--dataset_storage_path", "own"]
    assert cli.run(["generate", "COCO2017", *arguments]) == USAGE
    said = capsys.readouterr().err
    got = "has deep/_annotations.coco.json" if is_there else "isn't there"
    assert (
        f"COCO2017, split 'train': {folder / 'own'} {got}, against captions_train2017.json" in said
    )
    assert "nothing is downloaded" in said and "mminstruct describe PATH" in said


def test_another_split_that_is_there_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_files(folder / "own", 2, split="val")
    arguments = ["--model_source", "fake", "--dataset_storage_path", "own"]
    assert cli.run(["generate", "COCO2017", *arguments]) == USAGE
    said = capsys.readouterr().err
    assert "The split 'validation' is there (--splits validation)." in said
    assert cli.run(["generate", "COCO2017+LVIS", *arguments, "--splits", "validation"]) == USAGE
    assert "LVIS, split 'train': " in capsys.readouterr().err


def test_without_a_place_what_is_missing_in_the_default_one_is_downloaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert cli.run(["generate", "LN", "--model_source", "fake"]) == STOPPED
    said = capsys.readouterr().err
    assert f"LN: no annotation files of split 'train' in {folder / 'cache'}; taking down" in said
    assert "not fetched, because HF_HUB_OFFLINE" in said


def test_failed_requests_give_exit_code_1_a_count_and_the_rest(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    good = server.answer

    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        bad = "scene 2" in body["messages"][-1]["content"]
        return (400, {}, {"error": {"message": "not this one"}}) if bad else good(server, body)

    server.answer = answer
    assert generate("COCO2017", "--output_path", "o.jsonl", server=server) == 1
    error = capsys.readouterr().err
    assert "3 failed (refused 3)" in error
    assert "3 requests were refused, as they would be again" in error
    assert "run the same command again" not in error
    assert f"The first: {server.url} answered 400: not this one" in error
    assert len((folder / "o.jsonl").read_text().splitlines()) == 3
    assert len((folder / "o.jsonl.rejected.jsonl").read_text().splitlines()) == 3


def test_rows_that_a_file_for_trainers_lacks_are_not_counted_as_written(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    good = server.answer

    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        tagged = "scene 2" in body["messages"][-1]["content"]
        text = "Question: <image>\nAnswer: It is red, I would say."
        return chat_completion(text) if tagged else good(server, body)

    server.answer = answer
    free = "extends: llava\nname: free\nversion: 1.0.0\ndescription: All.\nfilters: []\n"
    (folder / "free.yaml").write_text(free, encoding="utf-8")
    arguments = ["COCO2017", "--types", "conversation", "--prompt_config", "free.yaml"]
    for path in ("o.json", "o.json"):
        assert generate(*arguments, "--output_path", path, server=server) == INCOMPLETE
        said = capsys.readouterr().err
        assert "1 row, 1 left out (an empty message 1); written to o.json" in said
        assert "what was left out, and why, is in o.json.missing.jsonl" in said
        assert len(json.loads((folder / path).read_text())) == 1
    assert generate(*arguments, "--output_path", "o.jsonl", server=server) == DONE
    assert "2 rows; written to o.jsonl" in capsys.readouterr().err


def test_a_model_that_thinks_for_all_its_tokens_ends_the_run_with_what_to_change(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = lambda server, body: chat_completion("", finish_reason="length")
    assert generate("SAMPLE", "--output_path", "o.jsonl", server=server) == USAGE
    error = capsys.readouterr().err
    assert "30 answers in a row were empty; the model used up max_tokens (1,024)" in error
    assert "raise --max_tokens" in error
    assert "run the same command again" not in error
    assert not (folder / "o.jsonl").exists()


def test_answers_that_never_give_a_row_end_the_run_before_all_are_paid_for(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_files(folder / "cache", 400)
    server.answer = lambda server, body: chat_completion("A nice text, but no conversation.")
    types = ["--types", "conversation", "--max_concurrency", "8"]
    assert generate("COCO2017", "--output_path", "o.jsonl", *types, server=server) == USAGE
    error = capsys.readouterr().err
    assert (
        "the first 100 answers of type 'conversation' gave no row (no_labels 100; the last" in error
    )
    assert "leave the type out with --types" in error
    assert 100 <= (asked := len(server.bodies)) < 140
    # The same again is told sooner, and nothing is paid for twice.
    assert generate("COCO2017", "--output_path", "o.jsonl", *types, server=server) == USAGE
    assert asked < len(server.bodies) < asked + 40
    assert len({json.dumps(body["messages"]) for body in server.bodies}) == len(server.bodies)


def test_a_run_that_is_nearly_through_is_not_ended_for_a_type_without_rows(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_files(folder / "cache", 130)
    good = server.answer

    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        made = good(server, body)
        if made["choices"][0]["message"]["content"].startswith("Question"):
            return chat_completion("Nothing of the kind.")
        return made

    server.answer = answer
    types = ["--types", "conversation", "detail_description", "--max_concurrency", "8"]
    assert generate("COCO2017", "--output_path", "o.jsonl", *types, server=server) == DONE
    assert "130 rows, 130 rejected (no_labels 130)" in capsys.readouterr().err


def test_one_answer_that_gives_a_row_lets_a_run_go_on(folder: Path, server: LoopbackServer) -> None:
    coco_files(folder / "cache", 150)
    good, asked = server.answer, itertools.count()

    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        return good(server, body) if next(asked) == 50 else chat_completion("Nothing of the kind.")

    server.answer = answer
    types = ["--types", "conversation", "--max_concurrency", "8"]
    assert generate("COCO2017", "--output_path", "o.jsonl", *types, server=server) == DONE
    assert len((folder / "o.jsonl").read_text().splitlines()) == 1


def test_sources_are_all_read_before_any_of_them_costs_something(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = folder / "cache" / "annotations" / "captions_train2017.json"
    annotations.write_bytes(annotations.read_bytes()[:-20])
    assert generate("COCO2014", "COCO2017", "--output_path", "o", server=server) == USAGE
    assert "captions_train2017.json" in capsys.readouterr().err
    assert server.bodies == []


def test_a_file_of_one_of_several_sources_is_not_joined_by_downloads_of_the_others(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    archive = folder / "annotations_trainval2017.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (folder / "cache" / "annotations").glob("*2017.json"):
            file.write(path, f"annotations/{path.name}")
    arguments = ["--dataset_storage_path", str(archive), "--output_path", "o"]
    assert generate("COCO2017", *arguments, server=server) == DONE
    server.bodies.clear()
    assert generate("COCO2017", "LVIS", *arguments, server=server) == USAGE
    said = capsys.readouterr().err
    assert f"LVIS, split 'train': {archive} is another file, against lvis_v1_train.json" in said
    assert server.bodies == []


def test_a_rerun_writes_the_same_files(folder: Path, server: LoopbackServer) -> None:
    def no_caption(captions: dict[str, Any], instances: dict[str, Any]) -> None:
        captions["annotations"] = captions["annotations"][:2]

    coco_files(folder / "cache", 2, edit=no_caption)
    written = []
    for _ in range(2):
        assert generate("COCO2017", "--output_path", "out", server=server) == 0
        files = sorted(p for p in (folder / "out").rglob("*") if p.is_file())
        written.append({str(p): p.read_bytes() for p in files})
    assert written[0] == written[1]
    assert b"1 x image without captions" in written[0][str(folder / "out" / "README.md")]


def test_a_release_that_is_replaced_by_another_is_named(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for more in ("COCO2017", "COCO2017", "COCO2017 --limit 1", "COCO2014 --limit 1"):
        asked = [*more.split(), "--output_path", "out", "--overwrite"]
        assert generate(*asked, server=server) == DONE
        said += [line for line in capsys.readouterr().err.splitlines() if "replaces" in line]
    assert said == [
        "mminstruct: out: replaces a release of 6 rows of COCO2017 (model m) by one of 3 rows of "
        "COCO2017 (model m)",
        "mminstruct: out: replaces a release of 3 rows of COCO2017 (model m) by one of 3 rows of "
        "COCO2014 (model m)",
    ]


@pytest.mark.parametrize("output", ["out", "out.json", "out.jsonl"])
def test_a_dry_run_replaces_what_a_dry_run_wrote_and_nothing_else(
    output: str, folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def contents() -> dict[str, bytes]:
        found = (p for p in folder.rglob("out*") for p in (p, *p.rglob("*")) if p.is_file())
        return {str(path): path.read_bytes() for path in found}

    arguments = ["--output_path", output, "--limit", "1"]
    assert generate("COCO2017", *arguments, server=server) == 0
    before = contents()
    capsys.readouterr()
    for more in ([], ["--model_id", "m"]):
        assert generate("COCO2017", *arguments, *more, "--dry_run") == USAGE
        error = capsys.readouterr().err
        assert f"output path {output}: a dry run would replace " in error
        assert "; give another path" in error
        assert contents() == before
    dry = ["--output_path", f"dry-{output}", "--dry_run"]
    for source in ("COCO2017", "COCO2014"):
        assert generate(source, *dry) == 0
    assert generate("COCO2017", *dry[:-1], server=server) == 0
    assert generate("COCO2017", *dry) == USAGE


def test_a_pair_without_a_script_is_generated_as_well(tmp_path: Path) -> None:
    config = tmp_path / "own.yaml"
    text = "extends: llava\nname: own\nversion: 1.0.0\ndescription: Ours.\n"
    config.write_text(text, encoding="utf-8")
    for prompt_config in ("llava_smallcontext", str(config)):
        out = tmp_path / "out.jsonl"
        arguments = ["generate", "SAMPLE", "--dry_run", "--limit", "1", "--output_path", str(out)]
        assert cli.run([*arguments, "--prompt_config", prompt_config]) == DONE
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        assert [row["type"] for row in rows] == [
            "conversation",
            "detail_description",
            "complex_reasoning",
        ]


def test_a_source_brings_its_own_prompt_config_and_options(tmp_path: Path) -> None:
    data, out = write_all(tmp_path / "data", 2), tmp_path / "out.jsonl"
    arguments = ["--dry_run", "--dataset_storage_path", str(data), "--output_path", str(out)]
    for source, prompt_config in (
        ("OPENIMAGESV7", "openimagesv7"),
        ("coco2017+ln", "llava_joined"),
        ("HUMANML3D", "motion"),
    ):
        assert cli.run(["generate", source, *arguments]) == DONE
        row = json.loads(out.read_text(encoding="utf-8").splitlines()[0])
        assert row["provenance"]["prompt_config"] == prompt_config


def test_an_option_of_another_source_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["generate", "SAMPLE", "--dry_run", "--motion_facts"]) == USAGE
    assert "--motion_facts is an option of HUMANML3D, got SAMPLE" in capsys.readouterr().err


def test_motions_in_the_form_for_images_are_an_error_before_anything_is_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["generate", "HUMANML3D", "--dry_run", "--output_path", "x.json"]
    assert cli.run(arguments) == USAGE
    assert "llava-instruct holds images, and HUMANML3D is about motion" in capsys.readouterr().err


def test_whoever_calls_it_has_the_signals_handled_as_before(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Else processes that are forked later inherit a handler that their pool can't end.
    def mine(number: int, frame: object) -> None: ...

    before = signal.signal(signal.SIGTERM, mine)
    try:
        assert cli.run(["list"]) == DONE
        assert cli.run(["show", "NOWHERE"]) == USAGE
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
