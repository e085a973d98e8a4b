"""`mminstruct show`: one context, and its messages as a model gets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import coco_files
from dummy_data import write_all

from mminstruct import cli, prompts
from mminstruct.cli.arguments import USAGE
from mminstruct.cli.console import DONE
from mminstruct.schema import decode_context


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_all(tmp_path / "data", 3)


def show(data: Path, *arguments: str) -> int:
    return cli.run(["show", *arguments, "--dataset_storage_path", str(data)])


def test_the_json_holds_the_context_and_what_a_model_gets(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(data, "OPENIMAGESV7", "0000000000000002", "--json", "--seed", "7") == DONE
    shown = json.loads(capsys.readouterr().out)
    context = decode_context(json.dumps(shown["context"]))
    config = prompts.load("openimagesv7")
    assert context.id == "0000000000000002"
    assert context.media.author == "A, B"
    assert list(shown["messages"]) == list(config.types)
    for name, messages in shown["messages"].items():
        draw = prompts.Draw(f"openimagesv7-0000000000000002-{name}", 7)
        expected = prompts.render(context, config, name, draw).messages
        assert [(m["role"], m["content"]) for m in messages] == [
            (m.role, m.content) for m in expected
        ]


def test_without_an_id_the_first_context_is_shown_for_people(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(data, "coco2017+ln", "--types", "conversation") == DONE
    text = capsys.readouterr().out
    assert text.startswith("image 000000000001 (000000000001.jpg)\n  licence: CC-BY-2.0\n")
    assert text.count("\n=== ") == 1
    assert text.count("\n--- user") == 4
    assert "[0.017, 0.042, 0.173, 0.458]\n\nChecked for the whole image:\n- Not there: " in text
    assert "Spoken descriptions:\n- In this image I can see a ferry" in text


def test_another_split_and_prompt_config_can_be_shown(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["COCO2014", "--splits", "validation", "--prompt_config", "llava_smallcontext"]
    assert show(data, *arguments) == DONE
    assert "COCO_val2014_000000000001.jpg" in capsys.readouterr().out


def test_a_motion_says_what_it_is(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(data, "HUMANML3D", "000001") == DONE
    text = capsys.readouterr().out
    assert text.startswith("motion 000001 (000001.npy)\n")
    assert text.rstrip().endswith("Measured:\n- Length: 3.5 s")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["COCO2017", "000000000009"], "COCO2017 has no context '000000000009' (did you mean"),
        (["COCO2017", "--machine_labels"], "--machine_labels is an option of OPENIMAGESV7"),
        (["COCO"], "unknown source 'COCO'"),
    ],
)
def test_a_wrong_id_or_source_is_an_error(
    data: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert show(data, *arguments) == USAGE
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "number", "id"),
    [("COCO2017", "2", "000000000002"), ("HUMANML3D", "0001", "000001")],
)
def test_an_id_may_lack_its_leading_zeros(
    data: Path, capsys: pytest.CaptureFixture[str], source: str, number: str, id: str
) -> None:
    assert show(data, source, number) == DONE
    assert capsys.readouterr().out.split()[1] == id


@pytest.mark.parametrize("id", ["790", "zzz", "000000000790"])
def test_few_of_many_ids_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], id: str
) -> None:
    assert show(coco_files(tmp_path, 300), "COCO2017", id) == USAGE
    error = capsys.readouterr().err
    assert f"COCO2017 has no context {id!r}" in error
    assert 1 <= error.count("'000000000") - (id in error and id.startswith("0")) <= 3


def test_captions_do_not_control_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def edit(captions: dict[str, Any], instances: dict[str, Any]) -> None:
        captions["annotations"][0]["caption"] = "A \x1b[31mred\x00 caf\u00e9\x9b\u202e\u2066."

    data = coco_files(tmp_path, 1, edit=edit)
    assert show(data, "COCO2017") == DONE
    assert "- A \\x1b[31mred\\x00 caf\u00e9\\x9b\\u202e\\u2066.\n" in capsys.readouterr().out
    assert show(data, "COCO2017", "--json") == DONE
    shown = json.loads(capsys.readouterr().out)
    assert shown["context"]["captions"][0] == "A \x1b[31mred\x00 caf\u00e9\x9b\u202e\u2066."
