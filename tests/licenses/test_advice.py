"""How a verdict reads: first what it is, then what it rests on, in lines that fit."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from pathlib import Path

import pytest

from mminstruct import cli, licenses
from mminstruct.cli.arguments import USAGE
from mminstruct.licenses import Part, Use, Verdict
from mminstruct.licenses.advice import decisive_lines

REGISTRY = licenses.load()
LLAMA2 = "meta-llama/Llama-2-70b-chat-hf"
COMMANDS = [
    f"COCO2017 --model {LLAMA2}",
    "COCO2014 COCO2017 LVIS LN OPENIMAGESV7 SAMPLE --model lmsys/vicuna-13b-v1.5",
    "COCO2017+LVIS+LN --model google/gemma-3-4b-it",
    "HUMANML3D --motion_facts --model moonshotai/Kimi-K2-Instruct",
    "OPENIMAGESV7 --model deepseek-ai/DeepSeek-R1-Distill-Llama-70B",
    "COCO2017 --model gpt-4o --model_source openai",
    "SAMPLE --model nobody/such-a-model-with-a-name-of-more-letters-than-a-line-of-80-columns",
]


def asked(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.run(["license", *shlex.split(command)]) == 0
    return capsys.readouterr().out


def section(text: str, title: str) -> list[str]:
    """The lines below a title."""
    lines = text.splitlines()
    start = lines.index(f"{title}:") + 1
    end = next(n for n, line in enumerate([*lines[start:], ""]) if not line.startswith("  "))
    return lines[start : start + end]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_verdict_fits_eighty_columns_and_what_it_rests_on_five_lines(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = tmp_path / ("deep" * 30)
    deep.mkdir()
    for place in ("", f" --dataset_storage_path {deep}" if "SAMPLE" not in command else ""):
        code = cli.run(["license", *shlex.split(command + place)])
        said = capsys.readouterr().out
        assert code == 0 or place
        assert max(map(len, said.splitlines()), default=0) <= 80
        if code == 0:
            assert 1 <= len(section(said, "it rests on")) <= 5


def test_the_verdict_comes_first_then_what_binds_most(capsys: pytest.CaptureFixture[str]) -> None:
    lines = asked(f"COCO2017 LVIS --model {LLAMA2}", capsys).splitlines()
    assert lines[0].startswith("commercial use: text: no; ")
    assert lines[2:8] == [
        "licence of the text: other (cc-by-4.0-and-llama2)",
        "it rests on:",
        f"  - model {LLAMA2}: the Llama 2 licence, outputs may train",
        "    models of the same family only",
        "  - annotations of COCO 2017 and 1 more: CC BY 4.0, free for commercial use",
        "  - prompts and examples of 'llava' and 1 more: CC0 1.0, free for commercial use",
    ]


def test_why_tells_every_clause_with_source_day_and_evidence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = f"COCO2017 --model {LLAMA2}"
    reasons = json.loads(asked(f"{command} --json", capsys))["reasons"]
    said = asked(f"{command} --why", capsys)
    assert section(said, "reasons")
    text = " ".join(said.split())
    assert all(f" - {reason}" in text for reason in reasons)
    assert "1.b.v" in text and "2026-" in text and "read there" in text
    assert not [line for line in said.splitlines() if len(line) > 80 and "://" not in line]
    assert "it rests on" not in said


def test_for_machines_there_is_what_there_was_and_what_it_rests_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = json.loads(asked(f"COCO2017 --model {LLAMA2} --json", capsys))
    assert list(found) == [
        *("license", "license_name", "license_link", "commercial", "output_training"),
        *("redistribution", "obligations", "reasons", "rests_on"),
        *("use", "images", "alternatives", "said"),
    ]
    assert found["rests_on"][0].startswith(f"model {LLAMA2}: the Llama 2 licence, outputs may ")


def test_a_terminal_has_lines_of_its_own_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for columns in (50, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        said = asked(f"COCO2017 --model {LLAMA2}", capsys)
        assert columns - 40 < max(map(len, said.splitlines())) <= columns
    assert os.environ["COLUMNS"] == "200"


def composed(*names: str) -> Verdict:
    annotations = licenses.annotation_parts(
        REGISTRY, source="COCO2017", title="COCO 2017", license="CC-BY-4.0"
    )
    models = [part for name in names for part in licenses.named_model(REGISTRY, name)]
    return licenses.compose(REGISTRY, [*annotations, *models])


def test_parts_are_told_from_barred_to_free() -> None:
    verdict = composed("Qwen/Qwen3-8B", "google/gemma-3-4b-it", "nobody/x", LLAMA2)
    told = [entry.partition(":")[0] for entry in licenses.rests_on(verdict)]
    assert told == [
        f"model {LLAMA2}",
        "model nobody/x",
        "model google/gemma-3-4b-it",
        "annotations of COCO 2017",
        "model Qwen/Qwen3-8B",
    ]


def test_parts_without_room_are_counted() -> None:
    verdict = composed("Qwen/Qwen3-8B", "google/gemma-3-4b-it", "nobody-x", LLAMA2)
    assert decisive_lines(verdict)[-1] == "  - and 3 more, which bind no more"
    assert len(decisive_lines(verdict)) == 4  # the next one needs two
    narrow = decisive_lines(verdict, 30)
    assert len(narrow) == 5
    assert narrow[3].endswith(" ...")


def test_text_that_may_not_be_passed_on_says_so() -> None:
    kept = REGISTRY.licenses["amass-noncommercial"]
    verdict = licenses.compose(REGISTRY, [Part("annotations", "labels", kept)])
    assert verdict.redistribution is False
    said = licenses.explanation(verdict, Use(False), {}, ())
    assert "; it may not be passed on" in " ".join(said.split())


@pytest.mark.parametrize(
    "command",
    [
        "export nowhere --format jsonl",
        "generate COCO2017 --model_source fake --types no_such_type",
        "license COCO2017 --model ./no/such/model.gguf",
        "estimate COCO2017 --no_such_flag_of_any_command",
    ],
)
def test_an_error_fits_the_terminal_that_it_is_shown_on(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    with contextlib.suppress(SystemExit):
        assert cli.run(command.split()) == USAGE
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 50
