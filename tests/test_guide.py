"""docs/adding_a_source.md, followed to the letter in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import datasets
import pytest
from running import COMMAND

from mminstruct import cli, sources
from mminstruct.cli.console import DONE
from mminstruct.errors import SourceError

CHECKOUT = Path(__file__).parents[1]
GUIDE = CHECKOUT / "docs" / "adding_a_source.md"
BLOCK = re.compile(r"(?:^`([\w./]+)`\n\n)?^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The guide's files are written below the working directory; (language, text) of the rest."""
    rest = []
    for name, language, text in BLOCK.findall(GUIDE.read_text(encoding="utf-8")):
        if name:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        else:
            rest.append((language, text))
    folder = str(tmp_path / "mminstruct" / "sources")
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, folder])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.chdir(tmp_path)
    return rest


def test_the_commands_of_the_guide_run(
    blocks: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for language, text in blocks if language == "bash" for line in text.splitlines()]
    assert len(lines) == 3
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "mminstruct"
        assert cli.run(arguments) == DONE, line
    shown = capsys.readouterr().out
    assert "gull: [0.484, 0.125, 0.625, 0.375]\ngull: [0.125, 0.417, 0.297, 0.604]" in shown


def test_the_builder_of_the_guide_loads(blocks: list[tuple[str, str]]) -> None:
    (code,) = [text for language, text in blocks if language == "python"]
    names: dict[str, datasets.Dataset] = {}
    exec(code, names)  # noqa: S102
    assert names["rows"]["source"][:] == ["BIRDS"] * 6


def test_a_builder_that_has_no_page_yet_gets_a_release_with_general_words(
    blocks: list[tuple[str, str]], tmp_path: Path
) -> None:
    for folder in ("mminstruct", "builders", "prompt_configs", "cards"):
        shutil.copytree(CHECKOUT / folder, tmp_path / folder, dirs_exist_ok=True)
    command = "generate BIRDS --dataset_storage_path . --dry_run --output_path out"
    done = subprocess.run(
        [*COMMAND, *shlex.split(command)],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == DONE, done.stderr
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Photos of birds with a caption each" in card


def test_the_source_of_the_guide_says_how_to_get_its_files(
    blocks: list[tuple[str, str]], tmp_path: Path
) -> None:
    assert sources.get("BIRDS").locate([tmp_path / "elsewhere"], "train") is None
    with pytest.raises(SourceError, match="https://example.org/birds"):
        sources.get("BIRDS").downloads("train")
