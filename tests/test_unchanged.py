"""Rows, cards and exports of SAMPLE are, byte for byte, what an earlier commit wrote.

The answers come from a store that it wrote as well, and no server is there to be asked. After
a wanted change: ``python tests/test_unchanged.py`` writes all but the store anew; read the
difference. ``python tests/test_unchanged.py --store`` answers everything again, which no change
but a new SAMPLE or prompt wants.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from loopback import LoopbackServer, chat_completion, turns_for
from running import COMMAND, Place, finish

from mminstruct import cli
from mminstruct.export.checks import default_output
from mminstruct.export.formats import FORMATS

FOLDER = Path(__file__).parent / "goldens" / "release"
STORE = FOLDER / "responses.sqlite"
# The prompts that were answered then; the package's own are newer.
PROMPTS = Path(__file__).parent / "goldens" / "prompts" / "llava.yaml"
PORT = 18457  # part of the key of an answer
URL = f"http://127.0.0.1:{PORT}/v1"
FLAGS = (
    *("--model_source", "openai", "--model", "m", "--openai_base_url", URL),
    *("--seed", "7", "--temperature", "0.5", "--prompt_config", str(PROMPTS)),
)
RELEASED = ("README.md", "ATTRIBUTION.md", "LICENSE", "croissant.json", "provenance.json")


def scripted(server: LoopbackServer, body: dict[str, Any]) -> Any:
    """An answer that depends on the messages; of nine kinds, of which some give no row."""
    text = turns_for(body)
    kind = hashlib.sha256(json.dumps(body["messages"]).encode()).digest()[0] % 9
    if "Question:" in text and kind in (1, 2):
        text += f"\n===\nQuestion: Why?\nAnswer: {text.rpartition('Answer: ')[2]}"
    edited = {
        3: f"<think>Let me see.</think>\n\n{text}",
        4: f"```\n{text}\n```",
        5: "Sure! Here you are:\n\n" + text,
        6: text + " The bounding box [0.12, 0.34, 0.56, 0.78] shows it.",
        7: "I'm sorry, but I can't help with that.",
    }
    return chat_completion(edited.get(kind, text), finish_reason="length" if kind == 8 else "stop")


def written(folder: Path, store: Path | None) -> dict[str, str]:
    """What a run over SAMPLE and exports of its release write: texts, or digests of the rest."""
    place = Place(folder / "place", folder / "no-data")
    if store is not None:
        place.store.parent.mkdir(parents=True)
        shutil.copy(store, place.store)
    run(place, "generate", "SAMPLE", *FLAGS, "--output_path", str(place.output))
    tables = sorted((place.output / "data").rglob("*.parquet"))
    found = {name: _steady((place.output / name).read_text("utf-8"), tables) for name in RELEASED}
    rows = [row for table in tables for row in pq.read_table(table).to_pylist()]
    found["rows.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    digests = {}
    for name in sorted(FORMATS):
        ways = FORMATS[name].images
        images = "none" if "none" in ways else "embed" if "embed" in ways else ways[0]
        path = folder / "exports" / default_output("sample", name)
        path.parent.mkdir(exist_ok=True)
        flags = ("--format", name, "--images", images, "--output_path", str(path))
        assert cli.run(["export", str(place.output), *flags]) in (0, 1)
    for path in sorted((folder / "exports").rglob("*")):
        if path.suffix == ".parquet":
            content = repr(pq.read_table(path).to_pylist())
            digests[f"{path.parent.name}/*.parquet"] = hashlib.sha256(content.encode()).hexdigest()
        elif path.is_file():
            digests[str(path.relative_to(folder))] = digest_of(path)
    found["exports.json"] = json.dumps(digests, indent=1) + "\n"
    if store is None:
        shutil.copy(place.store, STORE)
    return found


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _steady(text: str, tables: list[Path]) -> str:
    """The text without the digests and sizes of Parquet files, which go by pyarrow's version."""
    for table in tables:
        digest, kind = digest_of(table), table.parent.name
        text = text.replace(digest, f"<SHA-256 of {kind}>").replace(digest[:16], f"<{kind}>")
    sizes = r'(contentSize": "|(?:download_size|dataset_size|num_bytes): )\d+'
    return re.sub(sizes, r"\1<bytes>", text)


def run(place: Place, *arguments: str) -> None:
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=place.environment(),
    )
    ended = finish(process)
    assert ended.code in (0, 1), ended.err


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return written(tmp_path_factory.mktemp("unchanged"), STORE)


@pytest.mark.parametrize("name", [*RELEASED, "rows.jsonl", "exports.json"])
def test_what_is_written_is_what_an_earlier_commit_wrote(found: dict[str, str], name: str) -> None:
    assert found[name] == (FOLDER / name).read_text(encoding="utf-8")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    loopback = LoopbackServer(scripted)
    loopback.port = PORT
    anew = "--store" in sys.argv
    with tempfile.TemporaryDirectory() as temporary, loopback if anew else nullcontext():
        texts = written(Path(temporary), None if anew else STORE)
        for name, text in texts.items():
            (FOLDER / name).write_text(text, encoding="utf-8")
