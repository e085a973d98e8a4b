"""A wheel, installed elsewhere, works from any directory and brings its builders along."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel, as `pip install --target` would leave it."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python on the wheel in another directory; the checkout is out of reach."""
    safe_path = ["-P"] if sys.version_info >= (3, 11) else []
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HOME": str(folder / "hf")}
    return subprocess.run(
        [sys.executable, *safe_path, *command],
        cwd=folder, env=environment, check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_builders_prompt_configs_and_cards_are_in_the_wheel(installed: Path) -> None:
    for part in (
        "builders/coco2014_llava/coco2014_llava.py",
        "prompt_configs/llava.yaml",
        "cards/template.md",
        "licenses/models.yaml",
        "sample/annotations/captions_train.json",
    ):
        assert (installed / "mminstruct" / part).is_file(), part


def test_load_dataset_finds_its_builders_from_an_empty_directory(
    installed: Path, tmp_path: Path
) -> None:
    code = (
        "import mminstruct, datasets; from pathlib import Path;"
        f"assert Path(mminstruct.__file__).is_relative_to({str(installed)!r});"
        "rows = datasets.load_dataset('builders/sample_llava', split='train', backend='fake');"
        "print(len(rows))"
    )
    assert run(installed, tmp_path, "-c", code).stdout.split()[-1] == "36"


def test_its_command_line_works_from_an_empty_directory(installed: Path, tmp_path: Path) -> None:
    code = "from mminstruct.cli import main; main()"
    run(installed, tmp_path, "-c", code, "generate", "SAMPLE", "--dry_run", "--limit", "1")
    assert (tmp_path / "instruct" / "README.md").is_file()
