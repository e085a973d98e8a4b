"""Shards of a run, and the release that their parts make together."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import coco_files
from instruct_rows import row
from loopback import LoopbackServer, chat_completion, turns_for
from origins import origin
from running import Place, finish
from test_kill import mark, wait_until

import mminstruct
from mminstruct import cli
from mminstruct.cli.arguments import USAGE
from mminstruct.cli.console import DONE, INCOMPLETE
from mminstruct.cli.runs import find_shard
from mminstruct.errors import RunStopped, UsageError
from mminstruct.releases import repository
from mminstruct.rows.columns import FEATURES

SMALL = 3 * (8 + 5 + 8)  # requests to two splits of COCO and one of SAMPLE


def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
    """Most answers are good; some give no row, and some requests are refused."""
    kind = sum(mark(body).encode()) % 8
    if kind == 1:
        return chat_completion("I'm sorry, but I can't help with that.")
    if kind == 2:
        return (400, {}, {"error": {"message": "not this one"}})
    return chat_completion(turns_for(body), finish_reason="length" if kind == 3 else "stop")


@pytest.fixture(scope="module")
def running() -> Iterator[LoopbackServer]:
    """One server for all, as its address is in the keys of answers."""
    with LoopbackServer(answer) as server:
        yield server


@pytest.fixture
def server(running: LoopbackServer, monkeypatch: pytest.MonkeyPatch) -> LoopbackServer:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767225600")
    running.answer = answer
    running.bodies.clear()
    return running


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "coco"
    coco_files(folder, 9)

    def edit(captions: Any, instances: Any) -> None:
        for entry in captions["annotations"]:
            entry["caption"] = f"Once more: {entry['caption']}"

    return coco_files(folder, 5, split="val", edit=edit)


def generate(folder: Path, server: LoopbackServer, data: Path, **more: Any) -> Any:
    """A run of two sources, one of which has two splits, with nothing to reuse but in a folder."""
    return mminstruct.generate(
        ["COCO2017", "SAMPLE"],
        splits=["all"],
        **{
            "limit": 8,
            "seed": 5,
            "backend": "openai",
            "model": "m",
            "base_url": server.url,
            "data_dir": str(data),
            "cache_dir": str(folder / "cache"),
            "output_path": folder / "out",
            "command": lambda recipe: "as before",
            **more,
        },
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def in_one_piece(
    tmp_path_factory: pytest.TempPathFactory, running: LoopbackServer, data: Path
) -> dict[str, bytes]:
    """The release of the run without shards."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch, pytest.warns(match="Load again"):
        patch.setenv("SOURCE_DATE_EPOCH", "1767225600")
        generate(folder, running, data, response_store=str(folder / "r.sqlite"))
    assert len(running.bodies) == SMALL
    return contents(folder / "out")


@pytest.mark.filterwarnings("ignore:.*Load again")
@pytest.mark.parametrize("count", [1, 3, 7, 64])
def test_merged_parts_are_the_release_of_the_run_in_one_piece_and_nothing_is_asked_twice(
    count: int,
    in_one_piece: dict[str, bytes],
    tmp_path: Path,
    server: LoopbackServer,
    data: Path,
) -> None:
    lines = in_one_piece["rejected.jsonl"].decode()
    assert '"rejected"' in lines and '"failed"' in lines
    for index in reversed(range(count)):
        part = generate(tmp_path, server, data, shard=(index, count))
        assert part.written.path == tmp_path / "out.parts" / f"{index}-of-{count}"
    assert Counter(map(mark, server.bodies)).most_common(1)[0][1] == 1
    assert len(server.bodies) == SMALL
    server.bodies.clear()

    folders = list((tmp_path / "out.parts").iterdir())
    merged = mminstruct.merge(folders, tmp_path / "out", response_store=tmp_path / "all.sqlite")
    assert merged.report.requests == SMALL
    assert contents(tmp_path / "out") == in_one_piece

    # Another run with the answers of all parts asks for those alone that were refused.
    whole = generate(tmp_path, server, data, response_store=str(tmp_path / "all.sqlite"))
    assert len(server.bodies) == whole.report.failures["refused"] > 0
    assert contents(tmp_path / "out") == in_one_piece


def test_a_release_is_the_same_in_whichever_pieces_its_rows_were_made(tmp_path: Path) -> None:
    rows = [row(n, image_url=None if n % 900 == 7 else f"http://{n}.org") for n in range(2500)]
    for some in rows[::3]:
        some["messages"][1]["content"] = f"{some['id']} " * 200  # pages of over a megabyte
    whole = datasets.Dataset.from_list(rows, features=FEATURES)
    pieces = [
        datasets.Dataset.from_list(rows[start:stop], features=FEATURES)
        for start, stop in ((0, 8), (8, 1201), (1201, 1202), (1202, 2500))
    ]
    for name, made in (("a", whole), ("b", datasets.concatenate_datasets(pieces))):
        repository.write({"train": made}, tmp_path / name / "out", origin())
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.fixture
def dry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command line in a folder, with a stand-in for a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767225600")

    def run(line: str) -> int:
        more = "" if line.startswith("merge") else " --dry_run --types conversation"
        return cli.run((line + more).split())

    return run


def test_merge_says_which_parts_lack_overlap_are_unfinished_or_of_another_run(
    dry: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(line: str) -> str:
        capfd.readouterr()
        assert dry(line) == USAGE
        assert not (tmp_path / "out").exists()
        return capfd.readouterr().err

    for index in (0, 2):
        line = f"generate SAMPLE --limit 8 --shard {index}/3 --output_path out"
        assert dry(line) == DONE
        said = capfd.readouterr().err
        assert "when all shards are there: mminstruct merge out.parts/*-of-* out" in said
    lacking = refused("merge out.parts/0-of-3 out.parts/2-of-3 out")
    assert "images 2 to 5 of 8 are in none of them: shard 1/3 lacks; merge them all" in lacking

    # The same run in another number of shards would ask about some again.
    beside = refused("generate SAMPLE --limit 8 --shard 1/4 --output_path out")
    assert "0-of-3 beside it has 0 of its" not in beside
    assert beside == "", beside
