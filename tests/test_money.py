"""No money without a word: splits, the line before the first request, the question, the probe."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from aiohttp import web
from batch_server import BatchServer
from conftest import coco_files
from datasets import load_dataset
from loopback import LoopbackServer, chat_completion, turns_for
from running import COMMAND, PATIENCE_S

from mminstruct import cli
from mminstruct.cli.arguments import USAGE
from mminstruct.cli.console import DONE, STOPPED
from mminstruct.config import InstructConfig
from mminstruct.errors import BackendUnusable, DownloadError, UsageError
from mminstruct.recipe import Recipe
from mminstruct.reports.estimate import Estimate, Part
from mminstruct.reports.intervals import Interval

COCO = "builders/coco2017_llava"
TRAIN, VALIDATION = 3, 2
DEARLY = ["--price_in", "1e6", "--price_out", "1e6"]
MANNERS = [{}, {"num_proc": 2}, {"streaming": True}]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an empty cache, and three images to train with and two others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    coco_files(tmp_path / "cache", TRAIN)

    coco_files(tmp_path / "cache", VALIDATION, split="val", edit=other)
    return tmp_path


def other(captions: Any, instances: Any) -> None:
    for one in captions["annotations"]:
        one["caption"] = f"Another scene {one['id']}."


def load(server: LoopbackServer, cache: str = "hf", **more: Any) -> Any:
    """Load one instruction type, from the first to the last row."""
    given = {"backend": "openai", "model": "m", "base_url": server.url, "data_dir": "cache"}
    given |= {"cache_dir": cache, "response_store": "r.sqlite", **more}
    loaded = load_dataset(COCO, "conversation", **given)
    if more.get("streaming"):
        return list(loaded)
    return loaded


def generate(server: LoopbackServer, *more: str, source: str = "COCO2017") -> int:
    """The exit code of `mminstruct generate` of one instruction type."""
    where = ["--model_source", "openai", "--model", "m", "--openai_base_url", server.url]
    kept = ["--types", "conversation", "--response_store", "r.sqlite"]
    return cli.run(["generate", *source.split(), *where, *kept, *more])


PARTS = [
    "train[:2]",
    "train[:10%]",
    "validation[1:]",
    "train+validation[:1]",
    ["train[:1]", "train[1:]"],
    {"some": "train[:1]"},
    datasets.ReadInstruction("train", to=50, unit="%"),
    "train[5",
]


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("split", PARTS, ids=str)
def test_a_part_of_a_split_that_is_not_there_is_refused_before_anything_is_sent(
    split: Any, manner: dict[str, Any], folder: Path, server: LoopbackServer
) -> None:
    with pytest.raises(UsageError, match=r"split: '.*\[.*' is a part .* limit=N for its first N"):
        load(server, split=split, **manner)
    assert server.bodies == []


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize(
    ("split", "paid"),
    [("train", TRAIN), ("validation", VALIDATION), (datasets.Split.VALIDATION, VALIDATION)],
)
def test_a_split_is_paid_for_alone(
    split: Any, paid: int, manner: dict[str, Any], folder: Path, server: LoopbackServer
) -> None:
    assert len(load(server, split=split, **manner)) == len(server.bodies) == paid


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        (None, [TRAIN]),
        ("train+validation", [TRAIN + VALIDATION]),
        ("all", [TRAIN + VALIDATION]),
        (datasets.Split.ALL, [TRAIN + VALIDATION]),
        (["validation", "train"], [VALIDATION, TRAIN]),
        (datasets.ReadInstruction("validation"), [VALIDATION]),
    ],
    ids=str,
)
def test_several_splits_are_paid_for_once_each(
    split: Any, rows: list[int], folder: Path, server: LoopbackServer
) -> None:
    loaded = load(server, split=split)
    if isinstance(loaded, datasets.Dataset):
        loaded = [loaded]
    parts = loaded.values() if isinstance(loaded, dict) else loaded
    assert [len(part) for part in parts] == rows
    assert len(server.bodies) == sum(rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "tset"}, "COCO2017 has no split 'tset'"),
        ({"split": ""}, "COCO2017 has no split ''"),
        ({"split": 5}, "COCO2017 has no split '5'"),
        (
            {"split": "validation", "splits": ["train"]},
            r"split: expected some of splits=\['train'\], got 'validation'; leave out splits",
        ),
    ],
)
def test_a_split_that_is_not_generated_is_named_before_anything_is_sent(
    arguments: dict[str, Any], words: str, folder: Path, server: LoopbackServer
) -> None:
    with pytest.raises(UsageError, match=words):
        load(server, **arguments)
    assert server.bodies == []


def test_a_part_of_what_is_there_costs_nothing(folder: Path, server: LoopbackServer) -> None:
    assert len(load(server, split="train")) == len(server.bodies) == TRAIN
    assert len(load(server, split="train[:2]")) == 2
    first, rest = load(server, split=["train[:1]", "train[1:]"], splits=["train"])
    assert (len(first), len(rest)) == (1, 2)
    both = load(server, splits=["train", "validation"])
    assert {split: len(rows) for split, rows in both.items()} == {
        "train": TRAIN,
        "validation": VALIDATION,
    }
    assert len(server.bodies) == TRAIN + VALIDATION


@pytest.mark.parametrize("manner", MANNERS)
def test_a_load_says_once_what_it_will_ask_for(
    manner: dict[str, Any], folder: Path, server: LoopbackServer, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> list[str]:
        said = [r.getMessage() for r in caplog.records if " to m, " in r.getMessage()]
        caplog.clear()
        return said

    load(server, split="train", limit=1, **manner)
    assert told() == ["1 request to m, 0 stored, cost unknown"]
    load(server, split="train", limit=1, cache="another", **manner)
    assert told() == ["1 request to m, 1 stored: none is left to send"]


def test_a_load_is_heard_by_who_has_set_up_no_logging(folder: Path, server: LoopbackServer) -> None:
    code = """
import logging, sys
from datasets import load_dataset
import mminstruct
given = dict(backend="openai", model="m", base_url=sys.argv[1], data_dir="cache", limit=1)
load_dataset(%r, "conversation", **given)
logging.basicConfig(format="theirs: %%(message)s")
load_dataset(%r, **given)
"""
    done = subprocess.run(
        [sys.executable, "-c", code % (COCO, COCO), server.url],
        capture_output=True, text=True, timeout=PATIENCE_S,
        env={**os.environ, "HF_HOME": str(folder / "home")},
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if " to m, " in line]
    assert said == [
        "mminstruct: 1 request to m, 0 stored, cost unknown",
        "theirs: 3 requests to m, 1 stored, cost unknown",
    ]


def test_a_run_says_first_what_it_will_ask_for(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    before: list[str] = []

    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        before.append(capsys.readouterr().err)
        return chat_completion(turns_for(body))

    server.answer = answer
    priced = ["--price_in", "1", "--price_out", "2"]
    assert generate(server, "--limit", "1", *priced, "--max_concurrency", "1") == DONE
    line = "mminstruct: 1 request to m, 0 stored, cost $0.00"
    assert line in before[0].splitlines()[2]
    assert generate(server, *priced, "--max_requests", "1") == STOPPED
    assert "3 requests to m, 1 stored, cost $0.00" in before[1]
    assert ", stops at --max_requests 1\n" in before[1]


def test_a_run_of_batches_says_what_it_will_ask_for_too(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with BatchServer() as server:
        server.complete_after = 0
        generate(server, "--batch_api", "--max_requests", "0")
    said = "3 requests to m, 0 stored, cost unknown, stops at --max_requests 0"
    assert capsys.readouterr().err.count(said) == 1


def test_a_model_in_this_process_costs_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["COCO2017", "--model_source", "fake", "--response_store", "r.sqlite"]
    assert cli.run(["generate", *arguments, "--limit", "2"]) == DONE
    assert "6 requests to scripted, 0 stored, no cost" in capsys.readouterr().err
    assert cli.run(["generate", *arguments]) == DONE
    assert "9 requests to scripted, 0 to 6 stored, no cost" in capsys.readouterr().err


def on_a_terminal(keys: bytes, *arguments: str) -> tuple[int, str]:
    """The exit code of `mminstruct generate` and what it wrote, to somebody who types."""
    here, there = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "generate", *arguments],
        stdin=there,
        stdout=there,
        stderr=there,
        env={**os.environ, "COLUMNS": "80"},
    )
    os.close(there)
    os.write(here, keys)
    shown = b""
    while True:
        try:
            some = os.read(here, 4096)
        except OSError:  # it has ended
            break
        if not some:
            break
        shown += some
    os.close(here)
    return process.wait(PATIENCE_S), shown.decode()


@pytest.mark.parametrize(
    ("keys", "code", "sent"),
    [
        (b"\n", USAGE, 0),
        (b"\x04", USAGE, 0),  # Ctrl-D
        (b"y\n", DONE, TRAIN),
    ],
)
def test_a_large_run_asks_on_a_terminal(
    keys: bytes, code: int, sent: int, folder: Path, server: LoopbackServer
) -> None:
    arguments = ["COCO2017", "--model_source", "openai", "--model", "m", "--types", "conversation"]
    arguments += ["--openai_base_url", server.url, "--response_store", "r.sqlite", *DEARLY]
    found, shown = on_a_terminal(keys, *arguments)
    assert (found, len(server.bodies)) == (code, sent), shown
    before, _, after = shown.partition("mminstruct: go on? [y/N] ")
    line = before.splitlines()[-1].removeprefix("\x1b[K")
    assert re.fullmatch(r"mminstruct: 3 requests to m, 0 stored, cost \$[\d,.]+ to \$[\d,.]+", line)
    assert len(line) <= 80
    refused = "mminstruct: nothing was sent; --limit 100 asks for less, --yes goes on"
    assert (refused in after) == (sent == 0)


def test_a_terminal_shows_why_requests_are_retried(folder: Path, server: LoopbackServer) -> None:
    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        return (503, {}, {"error": "busy"}) if len(server.bodies) < 3 else well(server, body)

    well, server.answer = server.answer, answer
    arguments = ["COCO2017", "--model_source", "openai", "--model", "m", "--types", "conversation"]
    arguments += ["--openai_base_url", server.url, "--response_store", "r.sqlite", "--limit", "1"]
    code, shown = on_a_terminal(b"", *arguments)
    assert code == DONE, shown
    frames = [f.strip() for f in re.split(r"\r|\x1b\[K|\n", shown) if re.match(r"[01]/1\b", f)]
    assert re.fullmatch(r"1/1  .*, 2 retries: 503, 100\+20 tokens", frames[-1])
    assert max(map(len, frames)) < 80


def test_a_large_run_without_a_terminal_goes_on_and_says_so(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "mminstruct: a large run goes on unasked, as there is no terminal; see --max_cost"
    assert generate(server, *DEARLY, "--limit", "1") == DONE
    assert said in capsys.readouterr().err.splitlines()
    assert generate(server, *DEARLY, "--yes") == DONE
    assert said not in capsys.readouterr().err


def test_of_several_sources_the_sum_counts(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_files(folder / "cache", VALIDATION, year=2014, edit=other)
    prices = ["--price_in", "0", "--price_out", "30000", "--max_tokens", "256"]
    for source, is_large in (("COCO2017", False), ("COCO2014 COCO2017", True)):
        assert generate(server, *prices, "--limit", "2", source=source) == DONE
        said = capsys.readouterr().err
        assert ("a large run" in said) == is_large, said
        assert said.count("requests to m") == 1
        (folder / "r.sqlite").unlink()


OWN, PUBLIC = "http://localhost:8000/v1", "https://api.example.com/v1"
PRICE = 1.0  # USD for a million tokens


@pytest.mark.parametrize(
    ("url", "price", "requests", "tokens", "bounds", "is_large"),
    [
        (PUBLIC, None, 20_000, 0, {}, False),
        (PUBLIC, None, 20_001, 0, {}, True),
        (PUBLIC, None, 20_001, 0, {"max_requests": 20_000}, False),
        (OWN, None, 1_000_000, 0, {}, False),
        ("http://192.168.0.7:8000/v1", None, 1_000_000, 0, {}, False),
        (PUBLIC, 0.0, 1_000_000, 10**9, {}, False),
        (OWN, PRICE, 10, 20_000_000, {}, False),
        (OWN, PRICE, 10, 20_000_001, {}, True),
        (OWN, PRICE, 10, 20_000_001, {"max_cost": 20.0}, False),
        (OWN, PRICE, 10, 30_000_000, {"max_cost": 25.0}, True),
        (OWN, PRICE, 20_001, 1, {}, True),
    ],
)
def test_a_run_is_large_above_20_dollars_or_20000_paid_requests(
    url: str, price: float | None, requests: int, tokens: int, bounds: Any, is_large: bool
) -> None:
    none, left = Interval(), Interval(0, requests)
    part = Part(
        "conversation", requests, 0, none, none, left, none, Interval(0, tokens), none, none, 0, 0
    )
    config = InstructConfig(
        source="SAMPLE",
        prompt_config="llava",
        backend="openai",
        model="m",
        base_url=url,
        price_in=price,
        price_out=price,
        **bounds,
    )
    assert Estimate((part,), Recipe.of(config), None, 0).is_large == is_large


class Site(LoopbackServer):
    """Has a list of models as a test says, and no GET of anything else.

    Attributes:
        models: its status and text.
        looked: how often that was asked for.
    """

    models: tuple[int, str] = (405, "Method Not Allowed")
    looked = 0

    def add_routes(self, app: web.Application) -> None:
        app.router.add_get("/v1/models", self._look)

    async def _look(self, request: web.Request) -> web.Response:
        self.looked += 1
        status, text = self.models
        kind = "text/html" if text.startswith("<") else "application/json"
        return web.Response(status=status, content_type=kind, text=text)


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as running:
        yield running


PAGE = "<!doctype html><title>Welcome</title>"
NO_MESSAGES = (400, '{"error": {"message": "messages: field required"}}')
LIST = (200, '{"data": []}')
LOST = "; no OpenAI API at this address; some have it at /api/v1 or /openai/v1"


@pytest.mark.parametrize(
    ("models", "empty", "words"),
    [
        (LIST, None, None),
        ((403, "{}"), None, None),
        ((503, '{"error": "Loading model"}'), None, None),
        ((502, PAGE), None, None),
        ((401, '{"error": {"message": "Missing scopes: api.model.read"}}'), None, None),
        (
            (401, '{"error": {"message": "Incorrect key"}}'),
            None,
            "/v1 answered 401: Incorrect key; check OPENAI_API_KEY",
        ),
        ((405, "Method Not Allowed"), NO_MESSAGES, None),
        ((404, '{"detail": "Not Found"}'), NO_MESSAGES, None),
        ((404, PAGE), NO_MESSAGES, None),  # Express says so of any path that it doesn't know
        ((404, PAGE), (422, '{"detail": "model: field required"}'), None),
        ((404, PAGE), (404, '{"error": "The model does not exist"}'), None),
        ((404, PAGE), (503, '{"error": "Loading model"}'), None),
        ((404, PAGE), (404, PAGE), "/v1 answered 404: Welcome" + LOST),
        ((200, PAGE), (200, PAGE), "/v1 answered 200: Welcome" + LOST),
        ((200, PAGE), (405, '{"detail": "Not Allowed"}'), "/v1 answered 405: Not Allowed" + LOST),
        ((404, '{"detail": "No"}'), (404, '{"detail": "No"}'), "/v1 answered 404: No" + LOST),
        ((501, "Unsupported"), (501, "Unsupported"), "/v1 answered 501: Unsupported" + LOST),
    ],
)
def test_a_server_is_tried_before_annotations_are_fetched(
    models: tuple[int, str],
    empty: tuple[int, str] | None,
    words: str | None,
    folder: Path,
    site: Site,
    capsys: pytest.CaptureFixture[str],
) -> None:
    site.models = models
    site.answer = lambda server, body: empty and (empty[0], {}, empty[1])
    (folder / "cache").rename(folder / "elsewhere")
    assert generate(site) == STOPPED
    said = capsys.readouterr().err
    # Downloads are switched off in tests: who comes to them is told so.
    assert ("not fetched, because HF_HUB_OFFLINE" in said) == (words is None), said
    assert words is None or words in said
    assert site.looked == 1
    assert site.bodies == ([{}] if empty else [])


def test_a_server_that_nobody_answers_at_ends_a_load_before_a_download(
    folder: Path, site: Site
) -> None:
    with LoopbackServer() as gone:
        url = gone.url
    with pytest.raises(BackendUnusable, match=rf"{url}: .*; start the server, or give its URL"):
        load(site, base_url=url, data_dir=None, split="train")
    with pytest.raises(DownloadError, match="not fetched, because HF_HUB_OFFLINE"):
        load(site, base_url=[url, site.url], data_dir=None, split="train")
    assert site.looked == 1


def test_no_server_is_tried_where_nothing_is_fetched_or_sent(
    folder: Path, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(site) == DONE
    where = ["--model_source", "openai", "--model", "m", "--openai_base_url", site.url]
    (folder / "cache").rename(folder / "elsewhere")
    assert cli.run(["estimate", "COCO2017", *where]) == 3
    assert "not fetched, because HF_HUB_OFFLINE" in capsys.readouterr().err
    assert site.looked == 0
