"""How close the adaptive limits come to what a server takes, over sockets, with the ideal beside.

The servers are processes of their own on loopback, and tell nothing but 429s:

- 3,000 requests against 200/s with Retry-After, as a token bucket and as a sliding window;
- 300 requests/min and 40 at once, then twice, then half as much of both;
- no limit, 500 in flight, 200 ms, then with 1 % of the answers taking 5 s;
- two servers of which one is killed in mid-run.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import random
import resource
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from server import serve

from mminstruct.backends import BackendOptions
from mminstruct.backends.openai import OpenAIBackend
from mminstruct.completions.client import Client
from mminstruct.completions.gate import Gate
from mminstruct.completions.job import Answered, Job
from mminstruct.completions.limiter import Limiter
from mminstruct.completions.stats import Stats
from mminstruct.completions.store import ResponseStore
from mminstruct.prompts.messages import Prompt
from mminstruct.schema import Message, Sampling


@dataclass(frozen=True)
class Hidden:
    """What a server takes and doesn't say.

    Attributes:
        per_s: requests a second; None is any.
        burst: as a token bucket with so many tokens; 0 counts the last second instead.
        at_once: requests in flight; None is any.
        retry_after: with a 429, seconds; None sends none.
        latency_s: of an answer, on average.
        spread: of the latency, as a share of it.
        slow_share: of the answers take ``slow_s``.
    """

    per_s: float | None = None
    burst: float = 0.0
    at_once: int | None = None
    retry_after: int | None = None
    latency_s: float = 0.2
    spread: float = 0.0
    slow_share: float = 0.0
    slow_s: float = 5.0


_ANSWER = json.dumps(
    {
        "model": "bench",
        "choices": [{"message": {"content": "word " * 50}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1500, "completion_tokens": 50},
    }
).encode()


def _serve(limits: list[tuple[float, Hidden]], port: Any) -> None:
    """Serve until killed; the limits in force are those of the latest time that has come."""
    sent: deque[float] = deque()
    state = {"in_flight": 0, "level": limits[0][1].burst, "at": time.monotonic()}
    counts: dict[str, Any] = {"refused": [], "answered": []}
    rng, numbers, begun = random.Random(0), itertools.count(1), time.monotonic()

    def takes(hidden: Hidden, now: float) -> bool:
        if hidden.at_once is not None and state["in_flight"] >= hidden.at_once:
            return False
        if hidden.per_s is None:
            return True
        if hidden.burst:
            grown = state["level"] + (now - state["at"]) * hidden.per_s
            state.update(level=min(hidden.burst, grown), at=now)
            if state["level"] < 1:
                return False
            state["level"] -= 1
            return True
        while sent and sent[0] <= now - 1:
            sent.popleft()
        if len(sent) >= hidden.per_s:
            return False
        sent.append(now)
        return True

    async def chat(request: web.Request) -> web.Response:
        await request.read()
        now = time.monotonic()
        hidden = [h for since, h in limits if now - begun >= since][-1]
        if not takes(hidden, now):
            counts["refused"].append(now - begun)
            after = hidden.retry_after
            headers = {} if after is None else {"Retry-After": str(after)}
            return web.json_response(
                {"error": {"message": "slow down"}}, status=429, headers=headers
            )
        state["in_flight"] += 1
        slow = hidden.slow_share and next(numbers) % round(1 / hidden.slow_share) == 0
        mean = hidden.slow_s if slow else hidden.latency_s
        await asyncio.sleep(mean * (1 + hidden.spread * rng.uniform(-1, 1)))
        state["in_flight"] -= 1
        counts["answered"].append(time.monotonic() - begun)
        return web.Response(body=_ANSWER, content_type="application/json")

    asyncio.run(serve(chat, counts, port.send))


class Server:
    """A running server."""

    def __init__(self, limits: list[tuple[float, Hidden]]) -> None:
        mine, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=_serve, args=(limits, theirs), daemon=True)
        self.process.start()
        self.port = mine.recv()

    @property
    def url(self) -> str:
        """The API root."""
        return f"http://127.0.0.1:{self.port}/v1"

    def counts(self) -> dict[str, list[float]]:
        """When it answered and when it refused, seconds since its start."""
        import urllib.request

        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/count", timeout=10) as response:
            found: dict[str, list[float]] = json.load(response)
        return found


@contextmanager
def server(*limits: tuple[float, Hidden] | Hidden) -> Iterator[Server]:
    """Run one."""
    running = Server([limit if isinstance(limit, tuple) else (0.0, limit) for limit in limits])
    try:
        yield running
    finally:
        running.process.kill()
        running.process.join()


@dataclass(frozen=True)
class Run:
    """What came of some requests."""

    wall_s: float
    cpu_s: float
    stats: Stats


def run(
    urls: list[str],
    requests: int,
    most: int,
    after: Callable[[Stats], None],
    *,
    adaptive: bool = True,
) -> Run:
    """Ask for so many answers; ``after`` is called with the counters in a thread of its own."""
    stats = Stats()
    options = BackendOptions(model="bench", base_urls=tuple(urls), max_concurrency=most)
    backend = OpenAIBackend(options, api_key=None)
    if not adaptive:
        del backend.rate_limits  # no `Remote` any more
    with tempfile.TemporaryDirectory() as folder:
        store = ResponseStore(Path(folder) / "responses.sqlite")
        with Client(backend, store, stats=stats) as client:
            threading.Thread(target=after, args=(stats,), daemon=True).start()
            cpu, start = time.process_time(), time.monotonic()
            futures = [
                client.submit([_job(n) for n in range(at, min(at + 32, requests))])
                for at in range(0, requests, 32)
            ]
            outcomes = [outcome for future in futures for outcome in future.result()]
            wall_s, cpu_s = time.monotonic() - start, time.process_time() - cpu
    if not all(isinstance(outcome, Answered) for outcome in outcomes):
        raise SystemExit("some requests got no answer")
    return Run(wall_s, cpu_s, stats)


def _job(number: int) -> Job:
    prompt = Prompt((Message("user", f"Request {number}. " + "word " * 1000),), few_shots=0)
    return Job(lambda: iter([prompt]), Sampling(0.0), min_answer_tokens=1)


def _nothing(stats: Stats) -> None:
    """Let it run."""


def known_rate() -> None:
    """3,000 requests at 200/s."""
    print("3,000 requests, 200/s, Retry-After: 1      seconds (ideal 15, aim 17)  refused (aim 60)")
    for name, burst in (("token bucket of 200", 200.0), ("of 100", 100.0), ("last second", 0.0)):
        with server(Hidden(200, burst, retry_after=1, latency_s=0.05)) as running:
            done = run([running.url], 3000, 256, _nothing)
            refused = len(running.counts()["refused"])
        print(f"  {name:<40}{done.wall_s:>8.1f}{refused:>28}")


def hidden_capacity(minutes: float) -> None:
    """300/min and 40 at once, then changed."""
    print("hidden capacity, given no numbers          of capacity (aim 0.9)  refused (aim 2 %)")
    base = Hidden(5, 10, 40, latency_s=3.0, spread=0.3)
    phases = [
        (0.0, base),
        (60 * minutes, Hidden(10, 10, 80, latency_s=3.0, spread=0.3)),
        (120 * minutes, Hidden(2.5, 10, 20, latency_s=3.0, spread=0.3)),
    ]
    end_s = 180 * minutes
    with server(*phases) as running:
        most = int(60 * minutes * (5 + 10 + 2.5) * 1.2)

        counts: dict[str, list[float]] = {}

        def watch(stats: Stats) -> None:
            time.sleep(end_s - 1)
            counts.update(running.counts())
            stop_client.set()

        stop_client = threading.Event()
        stats = Stats()
        options = BackendOptions(model="bench", base_urls=(running.url,))
        with tempfile.TemporaryDirectory() as folder:
            store = ResponseStore(Path(folder) / "responses.sqlite")
            with Client(OpenAIBackend(options, api_key=None), store, stats=stats) as client:
                threading.Thread(target=watch, args=(stats,), daemon=True).start()
                client.submit([_job(n) for n in range(most)])
                stop_client.wait()
    for (since, hidden), until in zip(
        phases, [p[0] for p in phases[1:]] + [end_s - 1], strict=True
    ):
        low = min(since + 60, until - 10)
        rate = sum(low <= at < until for at in counts["answered"]) / (until - low)
        refused = sum(since <= at < until for at in counts["refused"])
        answered = sum(since <= at < until for at in counts["answered"])
        name = f"{hidden.per_s * 60:.0f}/min, {hidden.at_once} at once, after {low - since:.0f} s"
        share = refused / max(1, refused + answered)
        print(f"  {name:<40}{rate / hidden.per_s:>10.2f}{share:>24.1%}")
    total = len(counts["refused"]) / (len(counts["refused"]) + len(counts["answered"]))
    print(f"  {'all of it':<40}{'':>10}{total:>24.1%}")


def unlimited() -> None:
    """No limit but the machine's; beside it all in flight at once, as for an in-process backend."""
    print("no limit, 500 in flight, 200 ms            requests/s   CPU ms/request")
    rates: dict[tuple[bool, float], float] = {}
    for slow in (0.0, 0.01):
        for adaptive in (False, True):
            with server(Hidden(slow_share=slow)) as running:
                done = run([running.url], 20_000, 500, _nothing, adaptive=adaptive)
                times = sorted(running.counts()["answered"])
            # Without the start, and without the end in which only slow answers are left.
            first, last = len(times) // 10, len(times) * 9 // 10
            rates[adaptive, slow] = (last - first) / (times[last] - times[first])
            name = ("adaptive" if adaptive else "fixed") + (", 1 % take 5 s" if slow else "")
            print(f"  {name:<40}{rates[adaptive, slow]:>10.0f}{done.cpu_s / 20:>14.2f}")
    print(f"  adaptive : fixed             {rates[True, 0.0] / rates[False, 0.0]:.2f}")
    print(f"  with slow answers : without  {rates[True, 0.01] / rates[True, 0.0]:.2f}  (aim: 0.9)")
    print(f"  CPU of the limits alone      {gate_cost_us():.0f} us/request")


def gate_cost_us() -> float:
    """Microseconds of CPU that a request costs in the gate and its limiter."""
    requests = 50_000

    async def cross() -> None:
        gate = Gate([Limiter(500)], 500)

        async def one() -> None:
            gate.note_answer(await gate.enter(), used=None)

        for _ in range(0, requests, 100):
            await asyncio.gather(*(one() for _ in range(100)))

    before = resource.getrusage(resource.RUSAGE_SELF)
    asyncio.run(cross())
    after = resource.getrusage(resource.RUSAGE_SELF)
    return (after.ru_utime - before.ru_utime) / requests * 1e6


def killed() -> None:
    """One of two servers dies."""
    requests, hidden = 4000, Hidden(100, 20, latency_s=0.2, spread=0.2)
    print("two servers of 100/s, one killed after 1,000 answers of 4,000")
    with server(hidden) as one, server(hidden) as other:
        moment: list[float] = []

        def kill(stats: Stats) -> None:
            while stats.answered < 1000:
                time.sleep(0.01)
            other.process.kill()
            moment.extend((time.monotonic(), requests - stats.answered))

        done_before = time.monotonic()
        done = run([one.url, other.url], requests, 256, kill)
        rest_s = done_before + done.wall_s - moment[0]
    ideal_s = moment[1] / 100
    print(
        f"  the rest took {rest_s:.1f} s; the survivor alone would need {ideal_s:.1f} s "
        f"({rest_s / ideal_s:.2f}; aim: 1.1)"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=2.5, help="of each hidden capacity")
    parser.add_argument("--only", choices=("rate", "hidden", "unlimited", "killed"))
    args = parser.parse_args()
    parts: dict[str, Callable[[], None]] = {
        "rate": known_rate,
        "hidden": lambda: hidden_capacity(args.minutes),
        "unlimited": unlimited,
        "killed": killed,
    }
    for name, part in parts.items():
        if args.only in (None, name):
            part()


if __name__ == "__main__":
    main()
