"""Runs that end before their time: what was finished is kept, and the end is as if nothing was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import coco_files
from loopback import LoopbackServer, chat_completion, turns_for
from running import Ended, Place, finish

IMAGES = 667
REQUESTS = 3 * IMAGES
IN_FLIGHT = 50
FLAGS = ("--max_concurrency", str(IN_FLIGHT))


def mark(body: dict[str, Any]) -> str:
    """What tells one request from all others: its type's system prompt and its scene."""
    return body["messages"][0]["content"][:80] + body["messages"][-1]["content"]


async def answer_well(server: LoopbackServer, body: dict[str, Any]) -> Any:
    """A good answer after some milliseconds."""
    await asyncio.sleep(0.03)
    return chat_completion(turns_for(body))


async def refuse_some(server: LoopbackServer, body: dict[str, Any]) -> Any:
    """Five in a hundred are refused, always the same."""
    await asyncio.sleep(0.03)
    if sum(mark(body).encode()) % 20 == 0:
        return (400, {}, {"error": {"message": "not this one"}})
    return chat_completion(turns_for(body))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotations that make about 2,000 requests."""
    return coco_files(tmp_path_factory.mktemp("data") / "coco", IMAGES)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotations that make 300 requests."""
    return coco_files(tmp_path_factory.mktemp("data") / "coco", 100)


@pytest.fixture(scope="module")
def shared() -> Iterator[LoopbackServer]:
    """One server for all runs, as its address is in what they write."""
    with LoopbackServer(answer_well) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, data: Path, shared: LoopbackServer
) -> dict[str, str]:
    """The output of a run that nothing happened to."""
    place = Place(tmp_path_factory.mktemp("undisturbed"), data)
    ended = place.run(shared.url, *FLAGS)
    assert ended.code == 0, ended.err
    assert len(shared.bodies) == REQUESTS
    return place.output_digest()


@pytest.fixture
def place(tmp_path: Path, data: Path) -> Place:
    return Place(tmp_path / "place", data)


@pytest.fixture
def small(tmp_path: Path, few: Path) -> Place:
    return Place(tmp_path / "place", few)


@pytest.fixture
def server(shared: LoopbackServer) -> LoopbackServer:
    shared.answer = answer_well
    shared.bodies.clear()
    return shared


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Return once it holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def interrupted(
    place: Place, server: LoopbackServer, after: int, number: int, *more: str
) -> tuple[Ended, int]:
    """A run that gets a signal after some requests, and how many requests it had sent."""
    process = place.start(server.url, *FLAGS, *more)
    wait_until(lambda: len(server.bodies) >= after, process)
    process.send_signal(number)
    ended = finish(process)
    time.sleep(0.1)  # what was on its way to the server when the process died arrives
    sent = len(server.bodies)
    server.bodies.clear()
    return ended, sent


def test_after_kill_9_nothing_stored_is_asked_for_again_and_the_output_is_the_same(
    undisturbed: dict[str, str], place: Place, server: LoopbackServer
) -> None:
    sent = 0
    for after in (700, 400):
        before = place.stored()
        ended, sent = interrupted(place, server, after, signal.SIGKILL)
        assert ended.code == -signal.SIGKILL
        stored = place.stored()
        assert after - 2 * IN_FLIGHT <= stored - before <= sent
        # All but what was in flight, and as many answers on their way to the disk.
        assert sent - (stored - before) <= 2 * IN_FLIGHT
    assert not any(place.output.glob("[!.]*"))

    ended = place.run(server.url, *FLAGS)
    assert ended.code == 0, ended.err
    assert len(server.bodies) == REQUESTS - stored
    assert max(Counter(map(mark, server.bodies)).values()) == 1
    assert place.output_digest() == undisturbed

    server.bodies.clear()
    shutil.rmtree(place.output)
    assert place.run(server.url, *FLAGS).code == 0
    assert server.bodies == []
    assert place.output_digest() == undisturbed


def test_the_same_holds_where_some_requests_fail_for_good(
    tmp_path: Path, data: Path, place: Place, server: LoopbackServer
) -> None:
    server.answer = refuse_some
    calm = Place(tmp_path / "calm", data)
    ended = calm.run(server.url, *FLAGS)
    refused = [body for body in server.bodies if sum(mark(body).encode()) % 20 == 0]
    assert len(server.bodies) == REQUESTS
    assert 60 < len(refused) < 140
    assert ended.code == 1
    rows = f"{REQUESTS - len(refused):,} rows, {len(refused)} failed (refused {len(refused)})"
    assert rows in ended.err
    assert f"{len(refused)} requests were refused, as they would be again" in ended.err
    server.bodies.clear()

    # Again: each of those once, no other, and the same output.
    expected = calm.output_digest()
    assert calm.run(server.url, *FLAGS).code == 1
    assert sorted(map(mark, server.bodies)) == sorted(map(mark, refused))
    assert calm.output_digest() == expected
    server.bodies.clear()

    ended, sent = interrupted(place, server, 1000, signal.SIGKILL)
    stored = place.stored()
    ended = place.run(server.url, *FLAGS)
    assert ended.code == 1
    assert rows in ended.err
    assert len(server.bodies) == REQUESTS - stored
    assert place.output_digest() == expected
    server.bodies.clear()

    # The server has changed its mind.
    server.answer = answer_well
    ended = place.run(server.url, *FLAGS)
    assert ended.code == 0, ended.err
    assert sorted(map(mark, server.bodies)) == sorted(map(mark, refused))


def test_failures_are_asked_for_again_wherever_the_run_before_was_killed(
    place: Place, server: LoopbackServer
) -> None:
    server.answer = refuse_some
    process = place.start(server.url, *FLAGS)
    maps = place.folder / "hf" / "datasets" / "mminstruct" / "maps"
    # All is answered, but no dataset is written yet.
    wait_until(lambda: any(maps.glob("*.arrow")), process)
    process.kill()
    finish(process)
    refused = REQUESTS - place.stored()
    server.bodies.clear()

    assert place.run(server.url, *FLAGS).code == 1
    assert len(server.bodies) == refused


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_an_interrupted_run_keeps_the_answers_in_flight_and_says_how_to_go_on(
    small: Place, server: LoopbackServer, number: int, code: int
) -> None:
    async def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        await asyncio.sleep(0.5 if len(server.bodies) > 1 else 0)
        return chat_completion(turns_for(body))

    server.answer = answer
    ended, sent = interrupted(small, server, 80, number)
    assert ended.code == code, ended.err
    assert ended.err.splitlines()[-1] == (
        "mminstruct: stopped. Everything that was answered is kept; run the same command again to "
        "go on, or run it with --partial to write what is complete."
    )
    assert "Traceback" not in ended.err
    assert "never" not in ended.err  # awaited, retrieved: asyncio's complaints
    assert sent <= 80 + IN_FLIGHT
    assert small.stored() == sent

    ended = small.run(server.url, *FLAGS)
    assert ended.code == 0, ended.err
    assert len(server.bodies) == 300 - sent


def test_a_second_ctrl_c_does_not_wait_for_the_answers_in_flight(small: Place) -> None:
    async def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        await asyncio.sleep(3600 if len(server.bodies) > 40 else 0)
        return chat_completion(turns_for(body))

    with LoopbackServer(answer) as server:
        process = small.start(server.url, *FLAGS)
        wait_until(lambda: server.in_flight == IN_FLIGHT, process)
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        ended = finish(process)
    assert ended.code == 130
    assert "Ctrl-C again: leave now" in ended.err
    assert "run the same command again" in ended.err
    assert "Traceback" not in ended.err
    assert "destroyed" not in ended.err
    assert small.stored() == 40


def test_a_job_in_a_shells_background_does_not_hear_the_ctrl_c_of_others(
    tmp_path: Path, few: Path, server: LoopbackServer
) -> None:
    ignoring = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    command = (sys.executable, "-c", f"{ignoring}from mminstruct.cli import main; main()")
    place = Place(tmp_path / "place", few, command)
    process = place.start(server.url, *FLAGS)
    wait_until(lambda: len(server.bodies) > 20, process)
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert ended.code == 0, ended.err
    assert place.stored() == 300


def test_a_full_disk_below_the_store_stops_the_run_with_words_and_loses_nothing(
    tmp_path: Path, few: Path, small: Place, server: LoopbackServer
) -> None:
    ended = small.run(server.url, *FLAGS, file_size_limit=200_000)
    assert ended.code == 3
    assert "response store" in ended.err
    assert "free some space and run the same command again" in ended.err
    assert "Traceback" not in ended.err
    sent, stored = len(server.bodies), small.stored()
    assert sent < 300
    server.bodies.clear()

    ended = small.run(server.url, *FLAGS)
    assert ended.code == 0, ended.err
    assert len(server.bodies) == 300 - stored

    calm = Place(tmp_path / "calm", few)
    assert calm.run(server.url, *FLAGS).code == 0
    assert small.output_digest() == calm.output_digest()


@pytest.mark.parametrize("room", [60_000])
def test_whatever_else_cannot_be_written_stops_the_run_with_words_and_loses_nothing(
    small: Place, server: LoopbackServer, room: int
) -> None:
    # The store has everything and need not grow; the caches are new.
    assert small.run(server.url, *FLAGS).code == 0
    expected = small.output_digest()
    shutil.rmtree(small.folder / "hf" / "datasets")
    shutil.rmtree(small.output)
    server.bodies.clear()

    for again in range(2):
        ended = small.run(server.url, *FLAGS, file_size_limit=room)
        assert ended.code == 3, (again, ended)
        assert "run the same command again" in ended.err
        assert "too large" in ended.err or "disk" in ended.err
        assert "Traceback" not in ended.err
        assert not any(small.output.glob("[!.]*"))

    ended = small.run(server.url, *FLAGS)
    assert ended.code == 0, ended.err
    assert server.bodies == []
    assert small.output_digest() == expected


def test_an_output_that_cannot_be_written_is_not_left_in_half(
    small: Place, server: LoopbackServer
) -> None:
    assert small.run(server.url, *FLAGS).code == 0
    expected = small.output_digest()
    shutil.rmtree(small.output)
    server.bodies.clear()

    ended = small.run(server.url, *FLAGS, file_size_limit=8_000)
    assert ended.code == 3, ended
    assert "run the same command again" in ended.err
    assert "Traceback" not in ended.err
    assert not any(small.output.glob("[!.]*"))

    assert small.run(server.url, *FLAGS).code == 0
    assert server.bodies == []
    assert small.output_digest() == expected


def script(
    server: LoopbackServer, place: Place, body: str, **settings: Any
) -> subprocess.Popen[str]:
    """A program of a user's that loads a builder, in a process group of its own."""
    arguments = {
        "model": "m",
        "backend": "openai",
        "base_url": server.url,
        "data_dir": str(place.data),
        "cache_dir": str(place.folder / "cache"),
        "response_store": str(place.store),
        "max_concurrency": IN_FLIGHT,
        **settings,
    }
    load = f"datasets.load_dataset('builders/coco2017_llava', **{arguments!r})"
    place.store.parent.mkdir(parents=True)
    return subprocess.Popen(
        [sys.executable, "-c", f"import datasets, mminstruct\ndata = {load}\n{body}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=place.environment(),
        start_new_session=True,
    )


@pytest.mark.parametrize("left", ["", "\nraise ValueError('ours')"], ids=["open", "by an error"])
def test_a_program_that_leaves_a_stream_ends_and_what_was_asked_is_stored(
    few: Path, tmp_path: Path, left: str
) -> None:
    async def slowly(server: LoopbackServer, body: dict[str, Any]) -> Any:
        await asyncio.sleep(0.2)
        return chat_completion(turns_for(body))

    place = Place(tmp_path, few)
    with LoopbackServer(slowly) as server:
        body = f"it = iter(data)\nnext(it){left}"
        ended = finish(script(server, place, body, streaming=True, split="train"))
        assert ended.code == ("ValueError" in left), ended.err
        assert ("ours" in ended.err) == ("ValueError" in left)
        assert place.stored() == len(server.bodies) > 0


def test_ctrl_c_with_several_processes_stores_the_answers_in_flight(
    few: Path, tmp_path: Path
) -> None:
    async def slowly(server: LoopbackServer, body: dict[str, Any]) -> Any:
        await asyncio.sleep(0 if len(server.bodies) < 3 else 1)
        return chat_completion(turns_for(body))

    place = Place(tmp_path, few)
    with LoopbackServer(slowly) as server:
        process = script(server, place, "", num_proc=2)
        deadline = time.monotonic() + 60
        while server.in_flight < 30 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.in_flight >= 30
        os.killpg(process.pid, signal.SIGINT)
        ended = finish(process)
        assert ended.code != 0
        assert place.stored() == len(server.bodies) < 300


def group(process: subprocess.Popen[str]) -> list[int]:
    """The processes of its group that are alive."""
    alive = []
    for entry in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            is_alive = entry.status() != psutil.STATUS_ZOMBIE
            if os.getpgid(entry.pid) == process.pid and is_alive:
                alive.append(entry.pid)
    return alive


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_pool_ends_with_its_parent_and_stores_what_was_in_flight(
    few: Path, tmp_path: Path, number: int
) -> None:
    async def slowly(server: LoopbackServer, body: dict[str, Any]) -> Any:
        await asyncio.sleep(0 if len(server.bodies) < 3 else 1)
        return chat_completion(turns_for(body))

    place = Place(tmp_path, few)
    with LoopbackServer(slowly) as server:
        process = script(server, place, "", num_proc=2, max_concurrency=20)
        wait_until(lambda: server.in_flight >= 20, process)
        assert len(group(process)) == 4  # two workers and what hands them their work
        process.send_signal(number)
        assert process.wait(30) == -number
        deadline = time.monotonic() + 30
        while group(process) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert group(process) == []
        assert place.stored() == len(server.bodies) < 150
    finish(process)


def test_a_program_that_is_terminated_stores_what_was_in_flight(few: Path, tmp_path: Path) -> None:
    async def slowly(server: LoopbackServer, body: dict[str, Any]) -> Any:
        await asyncio.sleep(0 if len(server.bodies) < 3 else 1)
        return chat_completion(turns_for(body))

    place = Place(tmp_path, few)
    with LoopbackServer(slowly) as server:
        process = script(server, place, "")
        wait_until(lambda: server.in_flight >= 30, process)
        process.send_signal(signal.SIGTERM)
        ended = finish(process)
        assert ended.code == -signal.SIGTERM
        assert place.stored() == len(server.bodies) < 300
