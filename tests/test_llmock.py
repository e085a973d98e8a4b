"""What `llmock` says of us: a server that breaks on demand, and judges how its client took it.

Its verdict has errors (a Retry-After not obeyed, a refusal sent again, more than ten attempts at a
request) and warnings (no growing backoff, no retry at all); `llmock report` exits with 1 for the
first, with ``--strict`` for both.

**Source:** https://pypi.org/project/llmock/ (MIT)
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import coco_files
from running import PATIENCE_S, Place, finish

pytest.importorskip("llmock")

IMAGES = 40
# llmock has one answer for all; these two types accept the same.
TYPES = ("--types", "conversation", "complex_reasoning")
REQUESTS = 2 * IMAGES
ANSWER = """Question: Why might the street be so quiet?
Answer: The low sun and the long shadows point to an early morning, before most people are up. \
Shutters are still down over every shop, and only one bicycle leans against the wall. A baker's \
van stands with its doors open, which fits a delivery at that hour. All of this together makes a \
calm start of a working day the most likely reason."""
LLMOCK = [sys.executable, "-c", "from llmock.cli import app; app()"]


class Mock:
    """A running llmock.

    Attributes:
        url: its root.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One call of its control API."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data=data, method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def script(self, *behaviors: dict[str, Any]) -> None:
        """What the next requests meet, and good answers for all others."""
        reply = {"type": "reply", "text": ANSWER, "times": None}
        self.call("POST", "/_llmock/scenario", {"behaviors": [*behaviors, reply]})

    def requests(self) -> list[dict[str, Any]]:
        """All requests there were."""
        found: list[dict[str, Any]] = self.call("GET", "/_llmock/requests")["requests"]
        return found

    def report(self, *flags: str) -> tuple[int, str]:
        """Exit code and words of the verdict."""
        done = subprocess.run(
            [*LLMOCK, "report", "--url", self.url, *flags],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr


@contextmanager
def llmock(folder: Path, *flags: str) -> Iterator[Mock]:
    """Run one on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (folder / "llmock.log").open("w") as log:
        process = subprocess.Popen(
            [*LLMOCK, "serve", "--port", str(port), "--log-level", "warning", *flags],
            stdout=log,
            stderr=log,
            env={**os.environ, "NO_COLOR": "1"},
        )
        mock = Mock(f"http://127.0.0.1:{port}")
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    mock.call("GET", "/health")
                    break
                except OSError:
                    assert process.poll() is None, (folder / "llmock.log").read_text()
                    assert time.monotonic() < deadline, "llmock does not start"
                    time.sleep(0.05)
            yield mock
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "place", coco_files(tmp_path / "coco", IMAGES))


def fail(status: int, times: int, **more: Any) -> dict[str, Any]:
    """The next requests get an error."""
    return {"type": "fail", "status": status, "times": times, **more}


def test_the_verdict_on_a_run_through_random_errors_is_clean(tmp_path: Path, place: Place) -> None:
    rates = {429: 0.1, 500: 0.06, 502: 0.02, 503: 0.04}
    flags = [f"--error-rate={status}={rate}" for status, rate in rates.items()]
    with llmock(tmp_path, *flags, "--latency-ms", "20") as mock:
        mock.script()
        # How far the errors slow it down is up to chance: from 19 to 60 s were seen.
        ended = finish(place.start(mock.url, *TYPES, "--max_concurrency", "16"), 3 * PATIENCE_S)
        assert ended.code == 0, ended.err
        requests = mock.requests()
        code, words = mock.report()
    assert code == 0, words
    assert "0 error(s)" in words or "PASS" in words
    assert place.stored() == REQUESTS
    statuses = Counter(r["status"] for r in requests)
    assert statuses[200] == REQUESTS
    assert set(statuses) >= {200, 429, 500}


def test_the_verdict_on_rate_limits_refusals_and_slow_answers_is_clean(
    tmp_path: Path, place: Place
) -> None:
    with llmock(tmp_path, "--latency-ms", "300") as mock:
        mock.script({"type": "reply", "text": ANSWER, "times": 3})
        process = place.start(mock.url, *TYPES, "--max_concurrency", "8", "--timeout", "2")
        # Not before the first answer: until then, requests go one by one.
        while len(mock.call("GET", "/_llmock/scenario")["pending"]) > 1:
            assert process.poll() is None, finish(process)
            time.sleep(0.02)
        mock.call("DELETE", "/_llmock/scenario")
        mock.script(
            fail(429, 3, retry_after=0.8),
            fail(503, 2, retry_after=0.3),
            fail(500, 4),
            fail(429, 6, retry_after=0.2),
            fail(408, 1),
            fail(409, 1),
            fail(504, 1),
            fail(529, 1),
            fail(400, 2, message="not this one"),
            fail(422, 1, message="nor this one"),
            {"type": "delay", "seconds": 3.0, "times": 1},
        )
        ended = finish(process)
        assert ended.code == 1, ended.err
        assert "3 failed (refused 3)" in ended.err
        requests = mock.requests()
        code, words = mock.report()
    assert code == 0, words
    assert place.stored() == REQUESTS - 3
    refused = [r["fingerprint"] for r in requests if r["status"] in (400, 422)]
    assert len(refused) == len(set(refused)) == 3
    # The slow one went on alone and was asked for again.
    assert Counter(r["status"] for r in requests)[200] >= REQUESTS - 3


def test_the_verdict_is_clean_to_the_letter_where_the_first_request_fails_again(
    tmp_path: Path, place: Place
) -> None:
    with llmock(tmp_path) as mock:
        # The first request goes alone; after the second failure of one kind others may try.
        mock.script(fail(500, 2))
        assert place.run(mock.url, *TYPES).code == 0
        first = mock.requests()[:2]
        code, words = mock.report("--strict")
    assert len({r["fingerprint"] for r in first}) == 1
    assert code == 0, words


def test_the_verdict_on_a_run_within_a_quota_is_clean(tmp_path: Path, place: Place) -> None:
    # 80 requests at 1,800 a minute: llmock says how long to wait, to the hundredth of a second.
    with llmock(tmp_path, "--rpm", "1800") as mock:
        mock.script()
        ended = place.run(mock.url, *TYPES, "--max_concurrency", "16")
        assert ended.code == 0, ended.err
        code, words = mock.report()
    assert code == 0, words
    assert place.stored() == REQUESTS


def check_nothing_was_sent_twice(requests: list[dict[str, Any]]) -> None:
    """No request was sent again after its answer."""
    answered = Counter(r["fingerprint"] for r in requests if r["status"] == 200)
    assert len(answered) == REQUESTS
    assert set(answered.values()) == {1}


@pytest.mark.parametrize("told", [True, False], ids=["flag given", "headers alone"])
def test_the_verdict_on_a_run_within_a_quota_of_tokens_is_clean(
    tmp_path: Path, place: Place, told: bool
) -> None:
    # A request takes some 2,000 tokens: 80 of them, of which 40 at once, last a good 10 seconds.
    with llmock(tmp_path, "--tpm", "240000") as mock:
        mock.script()
        flags = ("--tokens_per_minute", "240000") if told else ()
        ended = place.run(mock.url, *TYPES, "--max_tokens", "1000", *flags)
        assert ended.code == 0, ended.err
        requests = mock.requests()
        code, words = mock.report()
    assert code == 0, words
    assert place.stored() == REQUESTS
    check_nothing_was_sent_twice(requests)


def test_the_verdict_on_a_run_within_a_quota_and_through_errors_is_clean(
    tmp_path: Path, place: Place
) -> None:
    flags = ["--rpm", "1800", "--error-rate=500=0.05", "--error-rate=503=0.05"]
    with llmock(tmp_path, *flags) as mock:
        mock.script()
        ended = place.run(mock.url, *TYPES)
        assert ended.code == 0, ended.err
        requests = mock.requests()
        code, words = mock.report()
    assert code == 0, words
    assert place.stored() == REQUESTS
    check_nothing_was_sent_twice(requests)


def test_the_verdict_on_a_run_through_an_outage_is_clean(tmp_path: Path, place: Place) -> None:
    with llmock(tmp_path, "--latency-ms", "500") as mock:
        mock.script()
        process = place.start(mock.url, *TYPES, "--max_concurrency", "8")
        while len(mock.requests()) < 5:
            assert process.poll() is None, finish(process)
            time.sleep(0.02)
        mock.call("DELETE", "/_llmock/scenario")
        mock.script(fail(503, 12), fail(429, 12))
        ended = finish(process)
        assert ended.code == 0, ended.err
        requests = mock.requests()
        code, words = mock.report()
    assert code == 0, words
    assert place.stored() == REQUESTS
    check_nothing_was_sent_twice(requests)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_the_verdict_on_a_run_that_cannot_succeed_is_clean(
    tmp_path: Path, place: Place, status: int
) -> None:
    with llmock(tmp_path) as mock:
        mock.script(fail(status, 1000, message="the server's words"))
        ended = place.run(mock.url)
        assert ended.code == 3
        assert f"answered {status}: the server's words" in ended.err
        assert len(mock.requests()) == 1
        code, words = mock.report("--strict")
    assert code == 0, words
