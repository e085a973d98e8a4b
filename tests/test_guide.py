"""docs/adding_a_source.md, followed to the letter in an empty folder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from mminstruct import cli, sources
from mminstruct.cli.console import DONE
from mminstruct.errors import SourceError

GUIDE = Path(__file__).parents[1] / "docs" / "adding_a_source.md"
BLOCK = re.compile(r"(?:^`([\w./]+)`\n\n)?^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """The guide's files are written into the working folder; (language, text) of the rest."""
    rest = []
    for name, language, text in BLOCK.findall(GUIDE.read_text(encoding="utf-8")):
        if name:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        else:
            rest.append((language, text))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.chdir(tmp_path)
    yield rest
    sources._all.asked.clear()


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


def test_a_builder_that_has_no_page_gets_a_release_with_general_words(
    blocks: list[tuple[str, str]], tmp_path: Path
) -> None:
    command = "generate BIRDS --dataset_storage_path . --dry_run --output_path out"
    assert cli.run(shlex.split(command)) == DONE
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Photos of birds with a caption each" in card


def test_the_tests_of_the_guide_pass_and_the_guide_imports_nothing_private(
    blocks: list[tuple[str, str]], tmp_path: Path
) -> None:
    names: dict[str, Any] = {}
    exec((tmp_path / "test_birds.py").read_text(encoding="utf-8"), names)  # noqa: S102
    names["test_birds_offers_what_every_source_must"]()
    for path in tmp_path.rglob("*.py"):
        assert not re.search(r"^(from|import) .*\b_\w", path.read_text("utf-8"), re.MULTILINE)


def test_the_source_of_the_guide_says_how_to_get_its_files(
    blocks: list[tuple[str, str]], tmp_path: Path
) -> None:
    assert sources.get("BIRDS").locate([tmp_path / "elsewhere"], "train") is None
    with pytest.raises(SourceError, match="https://example.org/birds"):
        sources.get("BIRDS").downloads("train")
