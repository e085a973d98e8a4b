"""Every command and example of the README, run as it stands.

What is added, and only then: the address of a loopback server, a bound on the length of answers
of the real model, and the place of the response store.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import datasets
import pytest
from conftest import coco_files
from loopback import LoopbackServer

from mminstruct import cli
from mminstruct.backends import llama_cpp

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BASH = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for line in BASH.splitlines() if line.startswith("mminstruct ")]
FLAGS = [
    flag
    for row in re.findall(r"^\| (`--.*?) \|", README, re.MULTILINE)
    for flag in re.findall(r"`(.*?)`", row)
]
BOUNDED = "--types conversation --max_tokens 96 --temperature 0 --limit 1"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with annotations in ./cache and a real model where the README has one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-the-loopback-server")
    for year in (2014, 2017):
        coco_files(tmp_path / "cache", 1, year=year)
    (tmp_path / "PATH" / "TO").mkdir(parents=True)
    for name in ("PATH/TO/MODEL.gguf", "M.gguf"):
        (tmp_path / name).symlink_to(llama_cpp.bundled_model())
    return tmp_path


def test_the_readme_shows_commands_flags_and_python() -> None:
    assert len(COMMANDS) >= 5
    assert len(FLAGS) >= 8
    assert PYTHON


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_works(
    command: str, folder: Path, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    command = command.replace("http://localhost:8000/v1", server.url)
    arguments = [*shlex.split(command)[1:], "--response_store", "responses.sqlite"]
    if "openai" not in command:
        arguments += shlex.split(BOUNDED)
    assert cli.run(arguments) == 0
    if "openai" in command:
        assert server.headers[0]["Authorization"] == "Bearer sk-for-the-loopback-server"
    else:
        assert not server.bodies
    written = "instruct.jsonl" if "jsonl" in command else "instruct/README.md"
    assert (folder / written).is_file()


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_of_the_readme_works(flag: str, folder: Path) -> None:
    coco_files(folder / "cache", 1, split="val")
    values = {
        "--temperature": "0.5", "--top_p": "0.9", "--max_tokens": "300", "--seed": "1",
        "--response_store FILE": None, "--output_format jsonl": None,
    }  # fmt: skip
    value = values.get(flag)
    arguments = shlex.split(flag) + ([value] if value else [])
    assert cli.run(["generate", "COCO2017", "--dry_run", *arguments]) == 0


def test_the_python_of_the_readme_works(
    folder: Path, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The README's reader has the annotations downloaded; here they lie in ./cache.
    (code,) = PYTHON
    code = code.replace("http://localhost:8000/v1", server.url)
    code = code.replace("limit=1000", "limit=1000, data_dir='cache', response_store='r.sqlite'")
    names: dict[str, datasets.Dataset] = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102
    assert len(names["ds"]) == 1
    assert names["ds"][0]["license"] == "cc-by-4.0"


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
