"""What a run's names stand for is looked up once, and stays what it was."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from loopback import LoopbackServer
from running import PATIENCE_S, Place

from mminstruct import prompts
from mminstruct.builder import make
from mminstruct.config import InstructConfig
from mminstruct.errors import UsageError
from mminstruct.recipe import Recipe, compose_verdict

# A source and a backend of one's own, each of which counts how often it is made. The files that
# are opened are counted by the interpreter.
SOURCE = """
from dataclasses import dataclass
from mminstruct.schema import Option
from mminstruct.sources.sample import SampleSource
from msgspec.structs import replace
import dataclasses
import counts

OPTIONS = {"counted_option": Option(bool, "counts")}

@dataclass(frozen=True)
class Counted(SampleSource):
    counted_option: bool = False

    def __post_init__(self):
        counts.made["source"] += self.counted_option

    @property
    def info(self):
        return dataclasses.replace(SampleSource().info, name="COUNTED")

SOURCE = Counted()
"""
BACKEND = """
import counts
from mminstruct.backends.fake import FakeBackend

class Counted(FakeBackend):
    name = "counted"

    def __init__(self, options):
        super().__init__(options)
        counts.made["backend"] += 1
        self.model = "model"

    async def __aenter__(self):
        counts.made["backend opened"] += 1
        return self

def create(options):
    return Counted(options)
"""
COUNTS = """
import collections, json, os, sys
from pathlib import Path
made = collections.Counter()

def count(event, args):
    if event == "open" and isinstance(args[0], (str, os.PathLike)):
        name = "/".join(Path(args[0]).parts[-2:])
        made[name] += name.endswith(("own.yaml", "mine.yaml", "model/README.md"))

sys.addaudithook(count)
from mminstruct import cli
"""
RUN = """
import counts
from mminstruct import cli
code = cli.run({arguments!r})
print("COUNTED", counts.json.dumps({{name: n for name, n in counts.made.items() if n}}))
raise SystemExit(code)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a source, a backend, prompts, licences and a model, all one's own."""
    for name, text in (
        ("counts.py", COUNTS),
        ("sources/counted.py", SOURCE),
        ("backends/counted.py", BACKEND),
        ("own.yaml", "extends: llava\nname: own\nversion: 1.0.0\ndescription: Own.\n"),
        ("mine.yaml", "licenses: []\n"),
        ("model/README.md", "---\nlicense: apache-2.0\n---\n"),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def counted(folder: Path, *arguments: str) -> dict[str, int]:
    """What a command that ended well has made and opened."""
    given = ["--model_source", "counted", "--model", "model", "--prompt_config", "own.yaml"]
    given += ["--licenses", "mine.yaml", "--counted_option", "--response_store", "r.sqlite"]
    ended = subprocess.run(
        [sys.executable, "-c", RUN.format(arguments=[*arguments, *given])],
        cwd=folder,
        env=Place(folder, folder).environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    (line,) = (line for line in ended.stdout.splitlines() if line.startswith("COUNTED "))
    found: dict[str, int] = json.loads(line.removeprefix("COUNTED "))
    return found


def test_a_run_looks_everything_up_once(folder: Path) -> None:
    assert counted(folder, "generate", "COUNTED", "--output_path", "out") == {
        "source": 1,
        "own.yaml": 1,
        "mine.yaml": 1,
        "model/README.md": 1,  # what the model's terms are, for the verdict
        "backend": 2,  # one is asked about the model, the other is opened and answers
        "backend opened": 1,
    }


def test_several_sources_look_the_model_and_the_licences_up_once(folder: Path) -> None:
    assert counted(folder, "generate", "COUNTED", "SAMPLE", "--output_path", "out.jsonl") == {
        "source": 1,
        "own.yaml": 2,
        "mine.yaml": 1,
        "model/README.md": 1,
        "backend": 3,
        "backend opened": 2,
    }


def test_an_estimate_opens_no_backend(folder: Path) -> None:
    found = counted(folder, "estimate", "COUNTED", "SAMPLE")
    assert (found["backend"], found.get("backend opened", 0)) == (1, 0)
    assert (found["own.yaml"], found["mine.yaml"]) == (2, 1)


def test_a_prompt_config_that_is_edited_meanwhile_changes_no_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    options = {"backend": "fake", "limit": 1, "cache_dir": "cache", "response_store": "r.sqlite"}
    builder = make("SAMPLE", "own.yaml", "edited")(**options)
    before = prompts.load("own.yaml").whole
    with (folder / "own.yaml").open("a", encoding="utf-8") as file:
        file.write("min_answer_tokens: 33\n")
    assert prompts.load("own.yaml").whole.hash != before.hash
    builder.download_and_prepare()
    for row in builder.as_dataset(split="train"):
        assert row["provenance"]["prompt_hash"] == before.hash
    again = make("SAMPLE", "own.yaml", "edited")(**options)
    assert again.recipe.prompts.hash != before.hash


def test_another_server_than_rows_would_name_is_not_asked(
    tmp_path: Path, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"backend": "openai", "model": "m", "limit": 1, "cache_dir": str(tmp_path / "cache")}
    options["response_store"] = str(tmp_path / "r.sqlite")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    builder = make("SAMPLE", "llava", "changed")(**options)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    with pytest.raises(UsageError, match="model source 'openai': endpoint changed since it was"):
        builder.download_and_prepare()
    assert server.bodies == []
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    backend = builder.recipe.make_backend()
    assert backend.identity() == builder.recipe.backend.identity()


def test_another_process_gets_what_was_looked_up_and_makes_its_own_backend() -> None:
    config = InstructConfig(source="SAMPLE", prompt_config="llava", backend="fake", seed=3)
    recipe = Recipe.of(config)
    backend, plan = recipe.backend, recipe.plan
    there = pickle.loads(pickle.dumps(recipe))
    assert there.plan == plan
    assert there.verdict == recipe.verdict
    assert there.backend is not backend
    assert there.backend.identity() == backend.identity()
    assert there.digest() == recipe.digest()


def test_sources_of_a_run_share_what_the_model_is() -> None:
    names = {"prompt_config": "llava", "backend": "fake"}
    first = Recipe.of(InstructConfig(source="SAMPLE", **names))
    second = Recipe.of(InstructConfig(source="COCO2017", **names), like=first)
    assert second.backend is first.backend
    assert second.registry is first.registry
    what = [part.what for part in compose_verdict([first, second]).parts]
    assert any("COCO 2017" in part for part in what)
    assert any("sample" in part for part in what)
