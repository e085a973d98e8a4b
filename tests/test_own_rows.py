"""`mminstruct.generate` of data in memory: dicts, contexts, a Dataset."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from loopback import LoopbackServer
from PIL import Image
from running import PATIENCE_S

import mminstruct
from mminstruct import cli
from mminstruct.cli.console import DONE
from mminstruct.config import read_arguments
from mminstruct.errors import SourceError, UsageError
from mminstruct.schema import Box, Context, Media

COUNT = 1000
IN_FLIGHT = 16


def dicts(count: int) -> list[dict[str, Any]]:
    """Invented images with two captions and a box each."""
    return [
        {
            "image": f"{n:06}.jpg",
            "width": 640,
            "height": 480,
            "captions": [f"Boat {n} lies in a harbour.", f"A harbour with boat {n}."],
            "boxes": [{"label": "boat", "bbox": [n % 300, 20, 200, 100 + n % 90]}],
        }
        for n in range(count)
    ]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Where a run keeps things."""
    monkeypatch.chdir(tmp_path)
    return {"cache_dir": "cache", "response_store": "r.sqlite"}


def asking(server: LoopbackServer, settings: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", "base_url": server.url, "types": ["conversation"], **settings}


def test_dicts_give_the_rows_that_the_command_line_gives_of_a_file_and_ask_once(
    server: LoopbackServer, settings: dict[str, Any], tmp_path: Path
) -> None:
    made = mminstruct.generate(dicts(COUNT), **asking(server, settings))
    assert len(made) == len(server.bodies) == COUNT
    again = mminstruct.generate(dicts(COUNT), **asking(server, settings))
    assert len(server.bodies) == COUNT
    assert list(again) == list(made)

    lines = "".join(json.dumps(one) + "\n" for one in dicts(COUNT))
    (tmp_path / "photos.jsonl").write_text(lines, encoding="utf-8")
    flags = f"--types conversation --model_source openai --model m --openai_base_url {server.url}"
    line = f"generate ./photos.jsonl --source_name own {flags} --response_store r.sqlite"
    assert cli.run([*line.split(), "--output_path", "out"]) == DONE
    assert len(server.bodies) == COUNT  # its prompts are the same, too
    rows = datasets.load_dataset("parquet", data_dir="out/data", split="train")
    assert rows.to_list() == made.dataset.to_list()


SCRIPT = """
import sys, json, mminstruct
mminstruct.generate(json.load(open("rows.json")), **json.load(open("arguments.json")))
"""


def test_a_run_that_was_killed_asks_for_the_rest_alone(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    count = 300

    async def slowly(server: LoopbackServer, body: dict[str, Any]) -> Any:
        await asyncio.sleep(0.02)
        return answer(server, body)

    with LoopbackServer() as server:
        answer, server.answer = server.answer, slowly
        arguments = asking(server, settings) | {"max_concurrency": IN_FLIGHT}
        (tmp_path / "rows.json").write_text(json.dumps(dicts(count)), encoding="utf-8")
        (tmp_path / "arguments.json").write_text(json.dumps(arguments), encoding="utf-8")
        run = subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE_S
        while len(server.bodies) < 100 and run.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        run.kill()
        assert run.wait(PATIENCE_S) == -signal.SIGKILL
        asked = len(server.bodies)
        assert 100 <= asked < count
        made = mminstruct.generate(dicts(count), **arguments)
        assert len(made) == len(set(server.asked)) == count
        assert len(server.bodies) - count <= 2 * IN_FLIGHT  # sent, and answered but not yet stored


def test_rows_are_made_while_a_loop_runs_as_in_a_notebook(
    server: LoopbackServer, settings: dict[str, Any]
) -> None:
    async def cell() -> Any:
        return mminstruct.generate(dicts(3), **asking(server, settings))

    assert len(asyncio.run(cell())) == len(server.bodies) == 3


def test_what_is_made_is_a_sequence_of_rows(settings: dict[str, Any]) -> None:
    made = mminstruct.generate(
        iter(dicts(2)),
        backend="fake",
        source_name="harbour",
        source_license="cc-by-4.0",
        image_license="CC0-1.0",
        **settings,
    )
    assert len(made) == len(made.dataset) == 6
    assert [row["media"] for row in made] == ["000000.jpg", "000001.jpg"] * 3
    assert made[0]["source"] == made["source"][5] == "harbour"
    assert made[-1]["type"] == "complex_reasoning"
    assert made[0]["image_license"] == "CC0-1.0"
    assert [source.license for source in made.origin.sources] == ["cc-by-4.0"]


def test_contexts_are_taken_as_they_are(settings: dict[str, Any]) -> None:
    one = Context("a", Media("a.jpg"), ("A gull.",))
    two = Context("b", Media("b.jpg"), boxes=(Box("gull", (0.1, 0.2, 0.3, 0.4)),))
    made = mminstruct.generate([one, two], backend="fake", **settings)
    assert made.dataset.unique("image_id") == ["a", "b"]


def test_captions_alone_and_boxes_alone_are_asked_in_words_that_fit(
    server: LoopbackServer, settings: dict[str, Any]
) -> None:
    captioned, boxed = dicts(2)
    del captioned["boxes"], boxed["captions"]
    mminstruct.generate([captioned, boxed], **asking(server, settings))
    by_shown = {b["messages"][-1]["content"][:8]: b["messages"] for b in server.bodies}
    assert (
        "You get captions, each written by a different person.\n"
        in (by_shown["Captions"][0]["content"])
    )
    assert "You get the objects in the image." in by_shown["Objects:"][0]["content"]
    assert not any("Captions:" in m["content"] for m in by_shown["Objects:"])


def test_of_what_nothing_is_said_nothing_is_asked(settings: dict[str, Any]) -> None:
    one, bare = Context("a", Media("a.jpg"), ("A gull.",)), Context("b", Media("b.jpg"))
    made = mminstruct.generate([one, bare], backend="fake", **settings)
    assert made.dataset.unique("image_id") == ["a"]
    assert made.origin.skipped == {"image without annotations": 1}
    with pytest.raises(UsageError, match=r"no image is left to write about: 1 x image without an"):
        mminstruct.generate([bare], backend="fake", **settings)


def test_of_a_dataset_with_images_names_and_sizes_are_kept_and_no_bytes(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    pixels = np.random.default_rng(7).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "gull.png")
    content = io.BytesIO()
    Image.fromarray(pixels[:20]).save(content, "png")
    data = datasets.Dataset.from_dict(
        {
            "image": [
                {"bytes": None, "path": str(tmp_path / "gull.png")},
                {"bytes": content.getvalue(), "path": None},
            ],
            "captions": [["A gull."], ["Half a gull."]],
            "boxes": [[{"label": "gull", "bbox": [6.0, 4.0, 30.0, 10.0]}]] * 2,
        }
    ).cast_column("image", datasets.Image())
    made = mminstruct.generate(data, backend="fake", types=["conversation"], **settings)
    assert made["image"][:] == ["gull.png", "train-000000001.png"]
    assert [(row["width"], row["height"]) for row in made] == [(60, 40), (60, 20)]
    (table,) = (tmp_path / "cache" / "mminstruct" / "own").glob("*.jsonl")
    assert table.stat().st_size < 500 < len(content.getvalue())
    assert str(tmp_path) not in table.read_text("utf-8")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            datasets.DatasetDict(train=datasets.Dataset.from_dict({"a": [1]})),
            "one split, got train",
        ),
        (None, "expected dicts, Contexts or a Dataset, got NoneType"),
        (dicts(1)[0], "row 0: expected dicts or Contexts, got str"),
        ([dicts(1)[0], "SAMPLE"], "row 1: expected dicts or Contexts, got str"),
        (pd.DataFrame(dicts(1)), r"got str; of a DataFrame give df.to_dict\('records'\)"),
        ([{"image": Image.new("RGB", (4, 4))}], "got Image; of an image give the name"),
        ([{"image": b"\x89PNG"}], "got bytes; of an image give the name"),
        (iter(()), "rows: expected at least one, got none"),
        ([], "sources: expected at least one, got none"),
    ],
)
def test_what_is_no_data_is_told(settings: dict[str, Any], data: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        mminstruct.generate(data, backend="fake", **settings)


def test_an_image_may_be_named_by_a_path(settings: dict[str, Any]) -> None:
    rows = [{**row, "image": Path("boats") / row["image"]} for row in dicts(2)]
    made = mminstruct.generate(rows, backend="fake", types=["conversation"], **settings)
    assert made["image"][:] == ["boats/000000.jpg", "boats/000001.jpg"]


def test_an_error_of_reading_says_that_it_is_about_what_was_given(settings: dict[str, Any]) -> None:
    bad = [{"image": "a.jpg", "image_id": {"$oid": "1"}, "caption": "x"}]
    for rows, message in (
        (
            [{"image": "a.jpg", "x": 1}],
            r"^what generate was given\.\w+\.jsonl: no column with",
        ),
        (bad, r"1 x image whose id can't be read \(row 1 of what generate was given\."),
    ):
        with pytest.raises(SourceError, match=message):
            mminstruct.generate(rows, backend="fake", **settings)


def test_an_address_alone_says_which_model_source_it_is_of() -> None:
    assert read_arguments({"base_url": "http://h"})["backend"] == "openai"
    assert read_arguments({"tgi_url": "http://h"})["backend"] == "tgi"
    assert read_arguments({"tgi_url": "http://h", "backend": "openai"})["backend"] == "openai"
    assert "backend" not in read_arguments({"base_url": None, "model": "m"})
