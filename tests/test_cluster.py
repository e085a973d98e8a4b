"""Runs by way of Ray, on two nodes: what ends before its time costs what was in flight."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import psutil
import pytest
from conftest import coco_files
from loopback import LoopbackServer, chat_completion, turns_for
from running import Ended, Place, finish

from mminstruct.errors import UsageError

pytest.importorskip("ray", reason="the extra ray isn't installed")

REQUESTS = 600
IN_FLIGHT = 20
RAY = ("--engine", "ray", "--max_concurrency", str(IN_FLIGHT))
# To start workers takes long where others do, too; bounds hangs, nothing else.
PATIENCE_S = 300


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[dict[str, str], psutil.Process]]:
    """The environment of its drivers, and the process that is above all of its nodes."""
    script = Path(__file__).parent / "ray_cluster.py"
    asked = {"RAY_USAGE_STATS_ENABLED": "0"}
    # Workers have the lowest priority otherwise, and some are started to spare.
    asked |= {"RAY_worker_niceness": "0", "RAY_prestart_worker_first_driver": "0"}
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env={**os.environ, **asked},
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdin is not None
        address = process.stdout.readline().strip()
        yield {"RAY_ADDRESS": address, **asked}, psutil.Process(process.pid)
        process.stdin.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_files(tmp_path_factory.mktemp("data") / "coco", REQUESTS // 3)


def mark(body: dict[str, Any]) -> str:
    """What tells one request from all others."""
    return body["messages"][0]["content"][:80] + body["messages"][-1]["content"]


def is_refused(asked: str) -> bool:
    """Whether the server refuses it: one in twenty, always the same."""
    return sum(asked.encode()) % 20 == 0


def find_answered(server: LoopbackServer, limit: int) -> set[str]:
    """Which of the first requests were answered, once the gate holds all others."""
    return {asked for asked in map(mark, server.bodies[:limit]) if not is_refused(asked)}


class Gate:
    """Answers what comes first, and holds what comes after `limit` requests."""

    limit: float = math.inf

    async def answer(self, server: LoopbackServer, body: dict[str, Any]) -> Any:
        number = len(server.bodies)
        await asyncio.sleep(0.02)
        while number > self.limit:
            await asyncio.sleep(0.02)
        if is_refused(mark(body)):
            return (400, {}, {"error": {"message": "not this one"}})
        return chat_completion(turns_for(body))


@pytest.fixture(scope="module")
def shared() -> Iterator[LoopbackServer]:
    """One server for all runs, as its address is in what they write."""
    with LoopbackServer(Gate().answer) as running:
        yield running


@pytest.fixture
def gate(shared: LoopbackServer) -> Gate:
    gate = Gate()
    shared.answer = gate.answer
    return gate


@pytest.fixture
def server(shared: LoopbackServer, gate: Gate) -> LoopbackServer:
    shared.bodies.clear()
    shared.max_in_flight = 0
    return shared


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, data: Path, shared: LoopbackServer
) -> tuple[dict[str, str], list[str]]:
    """The output of a run without Ray, and what it said at its end."""
    place = Place(tmp_path_factory.mktemp("undisturbed"), data)
    ended = place.run(shared.url)
    assert ended.code == 1, ended.err
    return place.output_digest(), told(place, ended)


def told(place: Place, ended: Ended) -> list[str]:
    """What a run said at its end, wherever its output is."""
    lines = [line for line in ended.err.splitlines() if line.startswith("mminstruct: ")]
    return [line.replace(str(place.output), "OUT") for line in lines]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Return once it holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def workers(nodes: psutil.Process) -> list[psutil.Process]:
    """The processes that ask."""
    found = []
    for process in nodes.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end meanwhile
            if "_Asker" in "".join(process.cmdline()):
                found.append(process)
    return found


def asking(nodes: psutil.Process, server: LoopbackServer) -> list[psutil.Process]:
    """Those of them that wait for an answer, where all answers are held."""
    found = []
    for process in workers(nodes):
        with contextlib.suppress(psutil.Error):
            links = process.net_connections("tcp")
            if server.port in [link.raddr.port for link in links if link.raddr]:
                found.append(process)
    return found


def test_rows_report_and_release_are_those_of_a_run_without_ray(
    undisturbed: tuple[dict[str, str], list[str]],
    tmp_path: Path,
    data: Path,
    server: LoopbackServer,
    cluster: tuple[dict[str, str], psutil.Process],
) -> None:
    place = Place(tmp_path / "place", data)
    ended = finish(place.start(server.url, *RAY, env=cluster[0]), PATIENCE_S)
    assert ended.code == 1, ended.err
    assert place.output_digest() == undisturbed[0]
    assert told(place, ended) == undisturbed[1]
    assert max(Counter(map(mark, server.bodies)).values()) == 1
    assert len(server.bodies) == REQUESTS
    assert server.max_in_flight <= IN_FLIGHT
    assert "Traceback" not in ended.err


def test_what_was_answered_is_asked_by_nobody_again_whoever_is_killed(
    undisturbed: tuple[dict[str, str], list[str]],
    tmp_path: Path,
    data: Path,
    server: LoopbackServer,
    gate: Gate,
    cluster: tuple[dict[str, str], psutil.Process],
) -> None:
    env, nodes = cluster
    place = Place(tmp_path / "place", data)

    answered = partial(find_answered, server, 200)
    gate.limit = 200
    driver = place.start(server.url, *RAY, env=env)
    wait_until(lambda: len(server.bodies) > 200 and place.stored() == len(answered()), driver)
    driver.kill()
    finish(driver)
    before = answered()
    deadline = time.monotonic() + PATIENCE_S
    while workers(nodes):  # Ray ends them a while after it
        assert time.monotonic() < deadline
        time.sleep(0.05)

    server.bodies.clear()
    gate.limit = 0
    driver = place.start(server.url, *RAY, env=env)
    wait_until(lambda: len(asking(nodes, server)) == 2, driver)  # one on each node
    gate.limit = 200
    stored = len(before)
    wait_until(
        lambda: len(server.bodies) > 200 and place.stored() == stored + len(answered()), driver
    )
    asking(nodes, server)[0].kill()
    gate.limit = math.inf
    ended = finish(driver, PATIENCE_S)
    assert ended.code == 1, ended.err
    assert place.output_digest() == undisturbed[0]
    asked = Counter(map(mark, server.bodies))
    assert not before & asked.keys()
    assert len(asked) == REQUESTS - stored
    assert {asked[one] for one in answered()} == {1}
    # What the worker had in flight; and what was refused is no answer.
    assert max(asked.values()) == 2
    again = [one for one, times in asked.items() if times == 2 and not is_refused(one)]
    assert len(again) <= IN_FLIGHT // 2


def test_a_bound_holds_for_all_nodes_together_also_where_a_worker_is_killed(
    tmp_path: Path,
    data: Path,
    server: LoopbackServer,
    gate: Gate,
    cluster: tuple[dict[str, str], psutil.Process],
) -> None:
    env, nodes = cluster
    place = Place(tmp_path / "place", data)
    gate.limit = 40
    driver = place.start(server.url, *RAY, "--max_requests", "90", env=env)
    wait_until(lambda: len(server.bodies) > 40 and len(asking(nodes, server)) == 2, driver)
    wait_until(lambda: place.stored() == len(find_answered(server, 40)), driver)
    asking(nodes, server)[0].kill()
    gate.limit = math.inf
    ended = finish(driver, PATIENCE_S)
    assert ended.code == 3, ended.err
    assert "max_requests 90" in ended.err
    assert "Traceback" not in ended.err
    # What the worker had in flight may be paid for, and counts.
    assert 90 - IN_FLIGHT // 2 <= place.stored() <= 90


def test_an_engine_in_the_process_runs_where_ray_has_gpus(
    tmp_path: Path, cluster: tuple[dict[str, str], psutil.Process]
) -> None:
    places = [Place(tmp_path / name, tmp_path) for name in ("without", "with")]
    for place, more, env in zip(places, ([], ["--engine", "ray"]), ({}, cluster[0]), strict=True):
        place.folder.mkdir()
        done = subprocess.run(
            [*place.command, "generate", "SAMPLE", "--model_source", "fake", *more,
             "--output_path", str(place.output)],
            env={**place.environment(), **env}, timeout=PATIENCE_S, check=False,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert places[1].output_digest() == places[0].output_digest()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"batch_api": True, "model_source": "openai", "model": "m"},
            "leave out engine or batch_api",
        ),
        ({"streaming": True}, "leave out streaming or engine ray"),
    ],
    ids=["batch_api", "streaming"],
)
def test_what_ray_can_not_do_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], words: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    given = {"model_source": "fake", **arguments}
    with pytest.raises(UsageError, match=words):
        datasets.load_dataset(
            "builders/sample_llava", split="train", engine="ray", cache_dir=str(tmp_path), **given
        )
