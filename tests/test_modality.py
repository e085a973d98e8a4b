"""A fourth modality takes a source, a prompt config and a kind of annotation, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mminstruct import annotations, cli
from mminstruct.cli.arguments import USAGE
from mminstruct.cli.console import DONE

SOURCE = '''
"""Recordings with timed sound events, a toy."""

from mminstruct.schema import Context, Media
from mminstruct.sources import Files, SourceInfo


class ToyAudio:
    info = SourceInfo(
        name="TOYAUDIO", title="toy recordings", description="Recordings with sound events.",
        homepage="https://example.org/", citation="", license="CC0-1.0",
        license_url="https://creativecommons.org/publicdomain/zero/1.0/", attribution="By us.",
        media_license="CC0-1.0.", splits=("train",), version="1.0.0", prompt_config="toy",
    )

    def downloads(self, split):
        return ()

    def locate(self, places, split):
        return Files({}, "one")

    def read(self, files, report):
        report.contexts += 1
        yield Context(
            "clip-1",
            Media("clip-1.wav", modality="audio", license="CC0-1.0", duration_s=9.5),
            annotations={
                "sounds": (
                    {"name": "dog barking", "onset_s": 1.25, "times": 3},
                    {"name": "door", "onset_s": 4.0},
                )
            },
        )


SOURCE = ToyAudio()
'''

KIND = '''
"""Sound events with their onsets."""

import msgspec

HEADING = "Sounds:"
ORDER = 10


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    onset_s: float
    times: int = 1


def lines(items):
    return [f"- at {i.onset_s:.1f} s: {i.name}" + (f", {i.times} times" if i.times > 1 else "")
            for i in items]
'''

PROMPTS = """
name: toy
version: 1.0.0
license: CC0-1.0
description: One question about sounds.
rendering:
  headings: {sounds: "What is to be heard:"}
types:
  sounds:
    answer_form: turn
    system: |
      Write one question about a recording and its answer, as two lines:
      Question: ...
      Answer: ...
    examples:
      - annotations:
          sounds:
            - {name: a kettle whistling, onset_s: 2.0}
        turns:
          - {question: What whistles?, answer: A kettle whistles.}
"""


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A source in the working folder, a kind of annotation, and a prompt config."""
    for folder, name, text in (("sources", "toyaudio", SOURCE), ("kinds", "sounds", KIND)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    kinds = [*annotations.__path__, str(tmp_path / "kinds")]
    monkeypatch.setattr(annotations, "__path__", kinds)
    (tmp_path / "toy.yaml").write_text(PROMPTS, encoding="utf-8")
    return ["TOYAUDIO", "--prompt_config", str(tmp_path / "toy.yaml")]


def test_a_new_modality_is_shown_as_a_model_gets_it(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["show", *arguments]) == DONE
    text = capsys.readouterr().out
    assert text.startswith("audio clip-1 (clip-1.wav)\n")
    assert "What is to be heard:\n- at 2.0 s: a kettle whistling\n" in text
    assert text.rstrip().endswith(
        "What is to be heard:\n- at 1.2 s: dog barking, 3 times\n- at 4.0 s: door"
    )


def test_a_new_modality_becomes_rows_that_name_its_file(
    arguments: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    assert cli.run(["generate", *arguments, "--dry_run", "--output_path", str(out)]) == DONE
    (row,) = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert row["id"] == "toyaudio-clip-1-sounds"
    assert (row["modality"], row["media"], row["image"]) == ("audio", "clip-1.wav", None)


def test_an_annotation_that_its_kind_does_not_know_is_an_error(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(PROMPTS.replace("onset_s: 2.0", "start: 2.0"), encoding="utf-8")
    assert cli.run(["show", *arguments]) == USAGE
    assert "an item has name, onset_s, times" in capsys.readouterr().err
