"""docs/scaling.md and the recipes: every command and script, on this machine in small.

What is changed, and only that: the address of the server, the number of machines, and folders
outside the working one. `vllm`, `curl` and `sbatch` are stand-ins, the last a local executor.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest
import yaml
from conftest import coco_files
from dummy_data import write_all
from hub_server import TOKEN, HubServer
from loopback import LoopbackServer
from running import COMMAND, PATIENCE_S

from mminstruct import cli
from mminstruct.cli.console import DONE

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {
    page.stem: page.read_text(encoding="utf-8")
    for page in (DOCS / "scaling.md", *sorted((DOCS / "recipes").glob("*.md")))
}
BLOCK = re.compile(r"(?:^`([\w.]+)`\n\n)?^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SERVER = "http://localhost:8000/v1"

# Runs the tasks of an array one after the other, as Slurm tells them what they are.
SBATCH = """#!/bin/bash
if [[ $* == *--wrap* ]]; then exec bash -c "${@: -1}"; fi
last=$(sed -n 's/^#SBATCH --array=0-//p' "${@: -1}")
for task in $(seq 0 "$last"); do
    export SLURM_ARRAY_TASK_ID=$task SLURM_ARRAY_TASK_COUNT=$((last + 1))
    export SLURM_ARRAY_TASK_MIN=0 SLURM_ARRAY_TASK_MAX=$last SLURM_ARRAY_TASK_STEP=1
    bash "${@: -1}" >&2 || exit 1
done
echo 17
"""
PROGRAMS = {
    "sbatch": SBATCH,
    "vllm": "#!/bin/bash\nexec sleep 600\n",
    "curl": "#!/bin/bash\n",
    "mminstruct": f'#!/bin/bash\nexec {shlex.join(COMMAND)} "$@"\n',
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with annotations of four images, and stand-ins for programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    write_all(tmp_path / "cache", 1)
    coco_files(tmp_path / "cache", 8)
    (tmp_path / "coco").symlink_to("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf" / "datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(page: str, language: str, name: str = "") -> list[str]:
    """The blocks of a language that are no files, or those of a file."""
    found = BLOCK.findall(PAGES[page])
    return [text for of, kind, text in found if (of, kind) == (name, language)]


def run_script(script: str, **env: str) -> None:
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_about_large_runs_work_in_its_order(
    page: str, folder: Path, server: LoopbackServer
) -> None:
    lines = "\n".join(blocks(page, "bash")).splitlines()
    commands = [line for line in lines if line.startswith("mminstruct ")]
    assert len(commands) >= 4
    with LoopbackServer() as node1, LoopbackServer() as node2, HubServer() as hub:
        of = {"localhost": server, "node1": node1, "node2": node2}
        for command in commands:
            here = re.sub(r"http://(\w+):8000/v1", lambda host: of[host[1]].url, command)
            if "push" in command:  # the client reads its endpoint when it is imported
                run_script(here, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN, HF_HUB_OFFLINE="0")
                assert list(hub.repos["user/mistral-coco2017"].tags) == ["v1.0"]
            else:
                assert cli.run(shlex.split(here)[1:]) == DONE, command
        if "node2" in PAGES[page]:
            assert len(node1.bodies) + len(node2.bodies) == 24
            assert node1.bodies and node2.bodies


def test_the_array_for_slurm_makes_a_release_of_all_images(
    folder: Path, server: LoopbackServer
) -> None:
    (script,) = blocks("scaling", "bash", "release.sh")
    (submit,) = (text for text in blocks("scaling", "bash") if "sbatch" in text)
    script = script.replace(SERVER, server.url).replace("--array=0-3", "--array=0-1")
    (folder / "release.sh").write_text(script)
    run_script(submit.replace("*-of-4", "*-of-2"))
    assert datasets.load_dataset("release", split="train").num_rows == len(server.bodies) == 24


def test_the_machines_of_skypilot_make_parts_of_a_release(
    folder: Path, server: LoopbackServer
) -> None:
    (text,) = blocks("scaling", "yaml", "release.yaml")
    task = yaml.safe_load(text)
    assert set(task) == {"num_nodes", "resources", "file_mounts", "setup", "run"}
    script = task["run"].replace(SERVER, server.url).replace("/bucket/", f"{folder}/bucket/")
    for rank in range(2):
        machine = folder / f"machine{rank}"
        machine.mkdir()
        (machine / "cache").symlink_to("../cache")
        of_machine = {"SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NUM_NODES": "2"}
        run_script(f"cd {machine}\n{script}", **of_machine)
    parts = sorted(map(str, Path("bucket/release.parts").iterdir()))
    assert cli.run(["merge", *parts, "release"]) == DONE
    assert datasets.load_dataset("release", split="train").num_rows == len(server.bodies) == 24


def test_a_rehearsal_ends_with_every_row_and_nothing_asked_twice(tmp_path: Path) -> None:
    benchmarks = Path(__file__).parents[1] / "benchmarks"
    command = [sys.executable, str(benchmarks / "rehearse.py"), "--share", "0.1"]
    done = subprocess.run(
        [*command, "--speed", "20"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=15 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    figures = dict(re.findall(r"^\| (.*?) \| (.*) \|$", done.stdout, re.MULTILINE))
    assert figures["requests needed"] == "35,487"
    counts = [figures["rows"], *re.findall(r"[a-z] (\d+)", figures["answers that are no rows"])]
    assert sum(int(count.replace(",", "")) for count in counts) == 35_487
    assert figures["verdict"].startswith("text: yes; images: ")
