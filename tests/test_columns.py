"""A column of a row is described once, and a sampling parameter named by few."""

from __future__ import annotations

import ast
import functools
import json
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
from running import COMMAND, Place, finish

import mminstruct

PACKAGE = Path(mminstruct.__file__).parent


def insert_before(path: Path, line: str, new: str) -> None:
    """Insert a line before one that is there once."""
    text = path.read_text(encoding="utf-8")
    assert text.count(f"\n{line}") == 1
    path.write_text(text.replace(f"\n{line}", f"\n{new}\n{line}"), encoding="utf-8")


def test_a_column_described_and_filled_is_in_rows_card_croissant_and_exports(
    tmp_path: Path,
) -> None:
    code = tmp_path / "code"
    for name in ("mminstruct", "builders", "cards", "prompt_configs"):
        left_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PACKAGE.parent / name, code / name, ignore=left_out)
    rows = code / "mminstruct" / "rows"
    insert_before(
        rows / "columns.py",
        '    "license": Column(',
        '    "lens": Column(_TEXT, "what it was seen through"),',
    )
    insert_before(
        rows / "assembly.py",
        '        "license": [plan.license]',
        '        "lens": ["glass"] * len(read),',
    )
    place = Place(tmp_path / "place", tmp_path / "no-data")
    export = tmp_path / "rows.jsonl"
    for arguments in (
        ("generate", "SAMPLE", "--dry_run", "--limit", "1", "--output_path", str(place.output)),
        ("export", str(place.output), "--format", "jsonl", "--output_path", str(export)),
    ):
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=code,
            env={**place.environment(), "PYTHONPATH": str(code)},
        )
        ended = finish(process)
        assert ended.code == 0, ended.err
    tables = sorted(place.output.rglob("*.parquet"))
    released = [row["lens"] for table in tables for row in pq.read_table(table).to_pylist()]
    exported = [json.loads(line)["lens"] for line in export.read_text("utf-8").splitlines()]
    assert set(released) == set(exported) == {"glass"}
    assert len(released) == len(exported)
    card = (place.output / "README.md").read_text(encoding="utf-8")
    assert "| `lens` | what it was seen through |" in card
    described = json.loads((place.output / "croissant.json").read_text(encoding="utf-8"))
    (field,) = (f for f in described["recordSet"][0]["field"] if f["name"] == "lens")
    assert (field["dataType"], field["description"]) == ("sc:Text", "what it was seen through")


@functools.cache
def named() -> dict[str, set[str]]:
    """Module -> what its code names: variables, fields, arguments, and texts that are one word."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        names = found[path.relative_to(PACKAGE).as_posix()] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = (getattr(node, part, None) for part in ("id", "attr", "arg", "value"))
            names |= {part for part in parts if isinstance(part, str)}
    return found


def naming(name: str) -> list[str]:
    """The modules whose code names something."""
    return sorted(module for module, names in named().items() if name in names)


def test_what_only_tells_about_a_row_is_named_where_it_is_described_and_filled() -> None:
    for name in ("prompt_hash", "few_shots", "dropped_boxes"):
        in_rows = {m for m in naming(name) if m.startswith(("rows/", "releases/", "export/"))}
        assert in_rows - {"releases/tracing.py"} == {"rows/columns.py", "rows/assembly.py"}, name


def test_a_sampling_parameter_is_named_by_six_modules_of_which_four_are_engines() -> None:
    modules = naming("top_p")
    assert {"schema.py", "config.py"} <= set(modules)
    assert len(modules) <= 6, modules
    assert not [m for m in modules if m.startswith(("rows/", "releases/", "export/"))]
