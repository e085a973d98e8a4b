"""Sources, backends and prompt configs of the user's own: in the working folder, or installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from running import COMMAND

import mminstruct
from mminstruct import backends, cli, plugins, prompts, sources
from mminstruct.cli.arguments import USAGE
from mminstruct.cli.console import DONE
from mminstruct.errors import UsageError

SOURCE = """
from dataclasses import dataclass
from mminstruct.schema import Context, Media, Option
from mminstruct.sources import SourceInfo, files_of, find_first

OPTIONS = {"loudness": Option(int, "of the songs")}

@dataclass(frozen=True, slots=True)
class Birds:
    loudness: int = 1

    info = SourceInfo(
        name="BIRDS", title="Birds", description="Birds.", homepage="https://example.org/birds",
        citation="", license="CC0-1.0", license_url="https://example.org/cc0", attribution="Birds.",
        media_license="CC0-1.0.", splits=("train",), version="1.0.0",
    )

    def file_names(self, split):
        return {"table": "birds.txt"}

    def downloads(self, split):
        return ()

    def locate(self, places, split):
        table = find_first(places, "birds.txt")
        return table and files_of({"table": table})

    def read(self, files, report):
        for number, line in enumerate(files.paths["table"].read_text().splitlines()):
            caption = f"A {line}" + "." * self.loudness
            yield Context(f"{number:02}", Media(f"{number}.jpg"), (caption,))

SOURCE = Birds()
"""
BACKEND = '''"""A parrot."""
from mminstruct.backends.fake import FakeBackend
from mminstruct.schema import Option

OPTIONS = {"feathers": Option(int, "how many")}

class Parrot(FakeBackend):
    name = "parrot"

def create(options):
    assert options.engine.get("feathers", 7) == 7
    return Parrot(options)
'''
PROMPTS = """name: colours
version: 1.0.0
license: CC0-1.0
description: Colours.
types:
  colours:
    answer_form: turns
    system: |
      Write lines like these:
      Question: ...
      Answer: ...
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with data, and one of each kind; what is called broken is never run."""
    files = {
        "birds.txt": "heron\ngull\n",
        "sources/birds.py": SOURCE,
        "sources/broken.py": "raise SystemError('run without being asked for')",
        "backends/parrot.py": BACKEND,
        "backends/broken.py": "raise SystemError('run without being asked for')",
        "prompt_configs/colours.yaml": PROMPTS,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for every in (sources._all, backends._all):
        every.asked.clear()


def captions(**arguments: object) -> list[str]:
    """What models were shown of the birds, through all that makes rows."""
    made = mminstruct.generate("BIRDS", backend="fake", data_dir=".", **arguments)
    (builder,) = made.builders
    contexts = [m for part in builder.requests().values() for m in part["context"][:]]
    return [text.partition("A ")[2].partition('"')[0] for text in contexts[:2]]


@pytest.mark.parametrize("name", ["BIRDS", "birds", "./sources/birds.py", "bird.py"])
def test_a_source_of_the_working_folder_goes_by_its_name_and_by_its_path(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "bird.py":
        text = SOURCE.replace('name="BIRDS"', 'name="BIRD"')
        (folder / name).write_text(text, encoding="utf-8")
    given = ["generate", name, "--dataset_storage_path", ".", "--dry_run", "--output_path", "out"]
    assert cli.run(given) == DONE
    rows = datasets.load_dataset("parquet", data_dir="out/data", split="train")
    assert set(rows["source"]) == {"BIRD" if name == "bird.py" else "BIRDS"}
    assert len(rows) == 6
    assert "Captions" not in capsys.readouterr().out


def test_options_of_named_sources_and_backends_are_flags(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["show", "BIRDS", "--loudness", "3", "--dataset_storage_path", "."]
    assert cli.run(given) == DONE
    assert "A heron...\n" in capsys.readouterr().out
    assert captions(loudness=2) == ["heron..", "gull.."]
    flags = ["--dataset_storage_path", ".", "--model_source", "parrot", "--feathers", "7"]
    assert cli.run(["generate", "BIRDS", *flags, "--limit", "1", "--output_path", "out"]) == DONE
    rows = datasets.load_dataset("parquet", data_dir="out/data", split="train")
    assert {by["backend"] for by in rows["provenance"]} == {"parrot"}


def test_a_prompt_config_of_the_working_folder_goes_by_its_name(folder: Path) -> None:
    assert prompts.find("colours") == Path("prompt_configs/colours.yaml")
    made = mminstruct.generate("SAMPLE", backend="fake", prompt_config="colours", limit=2)
    assert made.rows["train"]["type"][:] == ["colours"] * 2


def test_list_says_where_each_is_from_and_runs_none_of_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["list"]) == DONE
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "BIRDS (from sources/birds.py)",
        "BROKEN (from sources/broken.py)",
        "colours (from prompt_configs/colours.yaml)",
        "parrot (from backends/parrot.py)",
        "SAMPLE the mminstruct sample",
    ):
        assert line in lines


@pytest.mark.parametrize("name", ["COCO2017", "sources/coco2017.py", "COCO2017+LVIS"])
def test_a_name_of_the_package_is_not_taken_over(folder: Path, name: str) -> None:
    (folder / "sources" / "coco2017.py").write_text(SOURCE, encoding="utf-8")
    with pytest.raises(UsageError, match=r"in mminstruct and in sources.coco2017\.py; rename"):
        sources.get(name)
    assert sources.get("SAMPLE").info.name == "SAMPLE"


def test_a_prompt_config_and_a_backend_are_not_taken_over_either(folder: Path) -> None:
    (folder / "prompt_configs" / "llava.yaml").write_text(PROMPTS, encoding="utf-8")
    with pytest.raises(UsageError, match=r"llava: this name is in mminstruct and in prompt_conf"):
        prompts.load("llava")
    (folder / "backends" / "fake.py").write_text(BACKEND, encoding="utf-8")
    with pytest.raises(UsageError, match=r"fake: this name is in mminstruct and in backends.fake"):
        backends.create("fake", backends.BackendOptions())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nx = 1 +\n", r"sources.bad\.py, line 2: SyntaxError: invalid syntax\. Mend it"),
        ("\n\nnowhere\n", r"sources.bad\.py, line 3: NameError: name 'nowhere' is not defined"),
        ("import nosuchthing", r"bad\.py, line 1: ModuleNotFoundError: No module named 'nosucht"),
        ("import json\njson.loads('{')", r"bad\.py, line 2: JSONDecodeError: "),
        ("x = 1", r"sources.bad\.py: expected SOURCE in it, got none"),
        ("SOURCE = 3", r"sources.bad\.py: SOURCE\.info\.name: expected 'BAD'.*, got None"),
        (SOURCE, r"sources.bad\.py: SOURCE\.info\.name: expected 'BAD', as the file is called"),
    ],
)
def test_a_fault_of_the_users_module_is_told_with_its_line(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (folder / "sources" / "bad.py").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        sources.get("bad")
    assert cli.run(["show", "BAD"]) == USAGE
    assert "Traceback" not in capsys.readouterr().err


def test_a_source_that_is_edited_makes_its_rows_stale_and_the_same_again_does_not(
    folder: Path,
) -> None:
    path = folder / "sources" / "birds.py"
    assert captions() == ["heron.", "gull."]
    module = sys.modules["mminstruct_sources.birds"]
    assert captions() == ["heron.", "gull."]
    assert sys.modules["mminstruct_sources.birds"] is module
    # As long, in the same second: what was compiled of the file before would do for a loader.
    path.write_text(SOURCE.replace('"." *', '"!" *'), encoding="utf-8")
    assert captions() == ["heron!", "gull!"]


def test_an_edited_prompt_config_makes_rows_stale(folder: Path) -> None:
    def builder_id() -> str:
        made = mminstruct.generate("BIRDS", backend="fake", data_dir=".", prompt_config="colours")
        return str(made.builders[0].config_id)

    before = builder_id()
    assert builder_id() == before
    path = folder / "prompt_configs" / "colours.yaml"
    path.write_text(PROMPTS.replace("Write lines", "Write two lines"), encoding="utf-8")
    assert builder_id() != before


def test_other_processes_have_the_users_source(folder: Path) -> None:
    made = mminstruct.generate(
        "BIRDS",
        backend="fake",
        data_dir=".",
        prepare=lambda builder: builder.download_and_prepare(num_proc=2),
    )
    assert made.rows["train"]["source"][:] == ["BIRDS"] * 6


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages, with one that has a source, a backend and a prompt config."""
    site = tmp_path / "site"
    (site / "owls").mkdir(parents=True)
    files = {
        "owls/__init__.py": "",
        "owls/owls.py": SOURCE.replace("BIRDS", "OWLS"),
        "owls/hoot.py": BACKEND.replace("parrot", "hoot"),
        "owls/night.yaml": PROMPTS.replace("name: colours", "name: night"),
        "owls_data-2.1.dist-info/METADATA": "Name: owls-data\nVersion: 2.1\n",
        "owls_data-2.1.dist-info/entry_points.txt": "[mminstruct.sources]\nowls = owls.owls\n"
        "lost = owls.lost\n[mminstruct.backends]\nhoot = owls.hoot\n"
        "[mminstruct.prompt_configs]\nnight = owls\n",
    }
    for name, text in files.items():
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "birds.txt").write_text("owl", encoding="utf-8")
    plugins._installed.cache_clear()
    yield site
    plugins._installed.cache_clear()
    for every in (sources._all, backends._all):
        every.asked.clear()


def test_installed_packages_bring_sources_backends_and_prompt_configs(
    installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["list"]) == DONE
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert {f"{name} (from owls-data 2.1)" for name in ("OWLS", "hoot", "night")} <= set(lines)
    assert "owls" not in sys.modules
    made = mminstruct.generate("OWLS", backend="hoot", prompt_config="night", data_dir=".")
    (row,) = made.rows["train"]
    assert (row["source"], row["type"]) == ("OWLS", "colours")
    assert (row["provenance"]["backend"], row["provenance"]["prompt_config"]) == ("hoot", "night")


def test_a_package_that_lacks_what_it_names_is_told(installed: Path) -> None:
    with pytest.raises(UsageError, match="owls-data 2.1: .*ModuleNotFoundError.*owls.lost"):
        sources.get("LOST")


def test_nothing_of_the_working_folder_is_run_for_a_source_of_the_package(folder: Path) -> None:
    for name in ("birds", "broken"):
        trap = f"open('ran', 'w').close()\n{SOURCE}"
        (folder / "sources" / f"{name}.py").write_text(trap, encoding="utf-8")
    (folder / "sources" / "out.py").write_text("open('ran', 'w').close()", encoding="utf-8")
    assert cli.run(["export", "out", "--format", "jsonl"]) == USAGE
    command = ("generate", "SAMPLE", "--dry_run", "--output_path", "rows")
    done = subprocess.run([*COMMAND, *command], capture_output=True, text=True, check=False)
    assert done.returncode == DONE, done.stderr
    assert not (folder / "ran").exists()
