"""What starting costs: heavy packages are imported for what needs them, and notes have one way."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mminstruct.completions.stats import Stats
from mminstruct.reports import notes
from mminstruct.reports.progress import ProgressLine

PACKAGE = Path(__file__).parents[1] / "mminstruct"
HEAVY = ("datasets", "numpy", "openai", "pydantic", "pyarrow", "mminstruct.backends")
FINDS_OURS = """
try:
    load_dataset("builders/no_such", split="train")
except mminstruct.errors.UsageError as error:
    print(error)
"""


def python(code: str, *arguments: str, **environment: str) -> str:
    """What a Python of its own prints at last."""
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return ended.stdout.splitlines()[-1]


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_saying_what_there_is_imports_nothing_heavy(flag: str) -> None:
    code = (
        "import atexit, sys; from mminstruct.cli import main;"
        f"atexit.register(lambda: print([m for m in {HEAVY!r} if m in sys.modules])); main()"
    )
    assert python(code, flag) == "[]"


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, mminstruct; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert python(code) == "[]"


@pytest.mark.parametrize(
    "question", [["COCO2017", "--model", "Qwen/Qwen3-8B"], ["liuhaotian/LLaVA-Instruct-150K"]]
)
def test_a_verdict_needs_none_of_what_makes_rows(question: list[str]) -> None:
    heavy = ("datasets", "openai", "torch", "transformers", "mminstruct.builder")
    heavy += ("numpy", "pyarrow", "asyncio", "filelock", "httpx2", "sqlite3")
    code = (
        "import sys; from mminstruct import cli; cli.run(['license', *sys.argv[1:]]);"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    assert python(code, *question) == "[]"


def test_images_are_counted_where_datasets_has_its_cache_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    code = (
        "import sys; from mminstruct import cli; from mminstruct.cli.license import _find_cache;"
        "cli.run('license SAMPLE --model Qwen/Qwen3-8B'.split());"
        "assert 'datasets' not in sys.modules; import datasets;"
        "print(str(_find_cache()) == str(datasets.config.HF_DATASETS_CACHE))"
    )
    for given in ({}, {"HF_DATASETS_CACHE": "there"}, {"HF_HOME": "~/there"}):
        assert python(code, **given) == "True"


@pytest.mark.parametrize(
    "imports",
    [
        "import mminstruct.errors; from datasets import load_dataset",
        "from datasets import load_dataset; import mminstruct.errors",
        "import mminstruct.errors, datasets.config; from datasets.load import load_dataset",
    ],
)
def test_builders_are_found_whatever_is_imported_first(imports: str) -> None:
    assert "there is no builder 'no_such'; choose from: coco2014" in python(imports + FINDS_OURS)


class Terminal(io.StringIO):
    """Keeps each write by itself, as another thread's may come between two."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []
        self.has_line = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.writes.append(text)
        self.has_line.set()
        return len(text)


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The package's logger, put back afterwards."""
    logger = logging.getLogger("mminstruct")
    before = logger.handlers, logger.propagate, logger.level
    yield logger
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


@pytest.mark.parametrize(
    "module", ["completions.client", "completions.store", "fetching.archives", "rows.mapping"]
)
def test_a_warning_stands_in_a_line_of_its_own_above_the_progress(
    module: str, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    notes.show(alone=True)
    with ProgressLine(Stats(total=2, started_s=0.0), terminal):
        assert terminal.has_line.wait(60)
        logging.getLogger(f"mminstruct.{module}").warning("the %s of it", "end\x1b]")
    assert "\r\x1b[Kmminstruct: the end\\x1b] of it\n" in terminal.writes
    assert all(text.startswith("\r\x1b[K") for text in terminal.writes)
    assert terminal.writes[-1].endswith("\n")


def test_only_one_module_wires_loggers() -> None:
    wiring = ("addHandler", ".handlers", ".propagate", "StreamHandler", "basicConfig")
    found = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        if any(word in file.read_text("utf-8") for word in wiring)
    }
    assert found == {"reports/notes.py"}
