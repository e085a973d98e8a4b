"""What is sent when: the limiter in virtual time, allowances, several servers, and the budget."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import pickle
import random
import selectors
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mminstruct.completions.bounds import Change, History
from mminstruct.completions.buckets import Rates
from mminstruct.completions.budget import Budget
from mminstruct.completions.gate import Gate
from mminstruct.completions.limiter import Limiter, Sent
from mminstruct.completions.tuning import Tuning
from mminstruct.config import InstructConfig
from mminstruct.errors import UsageError
from mminstruct.transport import Quota, Quotas, read_quotas

RTT_S = 0.003


@dataclass
class Server:
    """A server in virtual time that refuses what it doesn't take.

    Attributes:
        per_s: requests a second, as a token bucket; None is any.
        burst: its size; 0 counts the last second instead.
        at_once: in flight; None is any.
        retry_after_s: with a refusal.
        latency_s: of an answer on average, or a function that draws one.
        slots: requests computed at once while others queue; None is all.
        noise: share of refusals that have no reason.
    """

    per_s: float | None = None
    burst: float = 10.0
    at_once: int | None = None
    retry_after_s: float | None = None
    latency_s: float | Callable[[random.Random], float] = 0.5
    slots: int | None = None
    noise: float = 0.0
    in_flight: int = 0
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    level: float = math.nan
    at_s: float = 0.0
    taken: deque[float] = field(default_factory=deque)
    free_s: list[float] = field(default_factory=list)

    def takes(self, now: float) -> bool:
        """Whether a request that arrives is taken."""
        if self.at_once is not None and self.in_flight >= self.at_once:
            return False
        if self.rng.random() < self.noise:
            return False
        if self.per_s is None:
            return True
        if not self.burst:
            while self.taken and self.taken[0] <= now - 1:
                self.taken.popleft()
            self.taken.append(now)
            if len(self.taken) > self.per_s:
                self.taken.pop()
                return False
            return True
        grown = self.level + (now - self.at_s) * self.per_s
        self.level = self.burst if math.isnan(self.level) else min(self.burst, grown)
        self.at_s = now
        if self.level < 1:
            return False
        self.level -= 1
        return True

    def answer_s(self, now: float) -> float:
        """Seconds until a request that was taken is answered."""
        if callable(self.latency_s):
            return self.latency_s(self.rng)
        drawn_s = self.latency_s * self.rng.uniform(0.7, 1.3)
        if self.slots is None:
            return drawn_s
        self.free_s = self.free_s or [0.0] * self.slots
        begun_s = max(now, heapq.heappop(self.free_s))
        heapq.heappush(self.free_s, begun_s + drawn_s)
        return begun_s + drawn_s - now


@dataclass
class Course:
    """What happened: times of answers and refusals, and latencies, in virtual seconds."""

    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    end_s: float = 0.0

    def per_s(self, since_s: float, until_s: float) -> float:
        """Answers a second in a span."""
        return sum(since_s <= at < until_s for at in self.answered) / (until_s - since_s)

    @property
    def refused_share(self) -> float:
        """Of all attempts."""
        return len(self.refused) / (len(self.refused) + len(self.answered))


def simulate(
    limiter: Limiter,
    server: Server,
    requests: float = math.inf,
    until_s: float = math.inf,
    changes: tuple[tuple[float, Callable[[], None]], ...] = (),
) -> Course:
    """Send requests as fast as the limiter lets them out; what is refused is sent again."""
    course, number, left = Course(), 0, requests
    events: list[tuple[float, int, Callable[[float], None]]] = []
    woken_s = math.inf

    def at(when_s: float, action: Callable[[float], None]) -> None:
        nonlocal number
        number += 1
        heapq.heappush(events, (when_s, number, action))

    def send(now: float) -> None:
        nonlocal left, woken_s
        if woken_s <= now:
            woken_s = math.inf
        while left > 0:
            wait_s = limiter.wait_s(now)
            if wait_s > 0:
                if now + wait_s < woken_s:
                    woken_s = now + max(wait_s, 0.0005)
                    at(woken_s, send)
                return
            left -= 1
            sent = limiter.note_sent(now)
            at(now + RTT_S, lambda then, sent=sent: arrive(then, sent))

    def arrive(now: float, sent: Sent) -> None:
        if server.takes(now):
            server.in_flight += 1
            at(now + server.answer_s(now), lambda then: leave(then, sent))
        else:
            at(now + RTT_S, lambda then: refuse(then, sent))

    def leave(now: float, sent: Sent) -> None:
        server.in_flight -= 1
        course.answered.append(now)
        course.latencies.append(now - sent.at_s)
        limiter.note_answer(sent, now)
        send(now)

    def refuse(now: float, sent: Sent) -> None:
        nonlocal left
        left += 1
        course.refused.append(now)
        limiter.note_refusal(sent, now, server.retry_after_s)
        send(now)

    for when_s, change in changes:
        at(when_s, lambda now, change=change: change())
    at(0.0, send)
    while events and len(course.answered) < requests and events[0][0] < until_s:
        course.end_s, _, action = heapq.heappop(events)
        action(course.end_s)
    return course


@pytest.mark.parametrize("retry_after_s", [None, 1.0])
@pytest.mark.parametrize("latency_s", [0.5, 3.0, 6.0])
@pytest.mark.parametrize("burst", [5.0, 20.0, 60.0])
def test_a_hidden_capacity_is_reached_within_a_minute_and_found_again_when_it_changes(
    burst: float, latency_s: float, retry_after_s: float | None
) -> None:
    server = Server(5.0, burst, 40, retry_after_s, latency_s)

    def becomes(per_s: float, at_once: int) -> Callable[[], None]:
        def change() -> None:
            server.per_s, server.at_once = per_s, at_once

        return change

    changes = ((150.0, becomes(10.0, 80)), (300.0, becomes(5.0, 40)))
    course = simulate(Limiter(256), server, until_s=450.0, changes=changes)
    for since_s, until_s, per_s in ((60, 150, 5.0), (210, 300, 10.0), (360, 450, 5.0)):
        assert course.per_s(since_s, until_s) >= 0.9 * per_s
    assert course.refused_share < 0.025
    steady = sum(60 <= at < 150 for at in course.refused)
    assert steady < 0.02 * 5 * 90 + 1


def test_a_capacity_that_falls_to_a_quarter_costs_few_refusals_whatever_the_latencies() -> None:
    shares = []
    for seed in range(20):
        server = Server(5.0, 10.0, 40, latency_s=3.0, rng=random.Random(seed))

        def becomes(per_s: float, at_once: int, server: Server = server) -> Callable[[], None]:
            def change() -> None:
                server.per_s, server.at_once = per_s, at_once

            return change

        changes = ((150.0, becomes(10.0, 80)), (300.0, becomes(2.5, 20)))
        course = simulate(Limiter(256), server, until_s=450.0, changes=changes)
        for since_s, until_s, per_s in ((60, 150, 5.0), (210, 300, 10.0), (360, 450, 2.5)):
            assert course.per_s(since_s, until_s) >= 0.9 * per_s
        shares.append(course.refused_share)
    assert max(shares) < 0.025
    assert sum(shares) / len(shares) < 0.017


def test_a_bound_on_what_is_in_flight_is_told_from_a_rate() -> None:
    # 40 at once of 10 s each: 4/s, of which no pace below, and no window above, is any use.
    course = simulate(Limiter(256), Server(None, at_once=40, latency_s=10.0), until_s=240.0)
    assert course.per_s(60, 240) >= 0.9 * 4
    assert course.refused_share < 0.03


@pytest.mark.parametrize("latency_s", [0.02, 0.05])
@pytest.mark.parametrize("burst", [100.0, 200.0, 0.0], ids=lambda b: f"burst {b:g}")
def test_3000_requests_at_200_a_second_take_little_longer_than_15_seconds(
    burst: float, latency_s: float
) -> None:
    server = Server(200.0, burst, retry_after_s=1.0, latency_s=latency_s)
    course = simulate(Limiter(256), server, requests=3000)
    assert course.end_s <= 17.0
    assert len(course.refused) <= 60


@pytest.mark.parametrize(
    ("requests", "share", "retry_after_s", "latency_s", "most", "longest_s"),
    [
        (80, 0.1, None, 0.02, 16, 15.0),
        (80, 0.22, None, 0.02, 16, 40.0),
        (80, 0.14, 1.0, 0.02, 16, 60.0),
        (4000, 0.01, None, 0.5, 256, 80.0),
        (4000, 0.1, None, 0.5, 256, 40.0),
        (1000, 0.3, None, 0.5, 256, 130.0),
    ],
)
def test_refusals_that_have_no_reason_do_not_bring_a_run_to_a_standstill(
    requests: int,
    share: float,
    retry_after_s: float | None,
    latency_s: float,
    most: int,
    longest_s: float,
) -> None:
    # A limiter that cuts at each refusal never ends, in most of these.
    for seed in range(30):
        server = Server(None, 10.0, None, retry_after_s, latency_s, noise=share)
        server.rng = random.Random(seed)
        assert simulate(Limiter(most), server, requests=requests).end_s < longest_s


def test_a_limit_is_found_again_after_refusals_that_had_no_reason() -> None:
    server = Server(None, 20.0, noise=0.1, latency_s=0.5, rng=random.Random(1))

    def limited() -> None:
        server.per_s, server.noise, server.level = 20.0, 0.0, 0.0

    course = simulate(Limiter(256), server, until_s=120.0, changes=((40.0, limited),))
    assert course.per_s(30, 40) > 200
    assert course.per_s(60, 120) >= 0.9 * 20
    assert sum(at >= 60 for at in course.refused) < 0.04 * 20 * 60


@pytest.mark.parametrize("seed", [37, 51, 52, 53])
def test_a_bound_on_what_is_in_flight_that_drops_is_not_taken_for_a_low_rate(seed: int) -> None:
    # 60 of 6 s each are in flight, and all is refused until 40 are.
    server = Server(10.0, 20.0, 80, latency_s=6.0, rng=random.Random(seed))

    def becomes_half() -> None:
        server.per_s, server.at_once = 5.0, 40

    course = simulate(Limiter(256), server, until_s=240.0, changes=((120.0, becomes_half),))
    assert course.per_s(180, 240) >= 0.9 * 5


def test_an_unlimited_server_gets_all_that_may_be_in_flight_soon() -> None:
    course = simulate(Limiter(500), Server(latency_s=lambda rng: 0.2), requests=20_000)
    assert course.per_s(2.5, 4.5) >= 0.9 * 2500
    assert not course.refused


def test_what_is_in_flight_doubles_with_every_latency() -> None:
    course = simulate(Limiter(2000), Server(latency_s=2.0), until_s=18.0)
    assert course.per_s(11, 12) >= 0.5 * 1000  # sent up to 10 s
    assert course.per_s(14, 18) >= 0.95 * 1000
    assert not course.refused


def test_one_slow_answer_in_a_hundred_slows_nothing_else() -> None:
    def latency_s(rng: random.Random) -> float:
        return 5.0 if rng.random() < 0.01 else 0.2

    course = simulate(Limiter(500), Server(latency_s=latency_s), requests=20_000)
    mean_s = 0.99 * 0.2 + 0.01 * 5.0
    assert course.per_s(3.0, 6.0) >= 0.9 * 500 / mean_s


@pytest.mark.parametrize("most", [10, 20, 50, 256])
@pytest.mark.parametrize("first_s", [0.005, 0.05, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("quick", [1, 3, 16])
def test_first_answers_that_were_quick_do_not_keep_a_run_small(
    most: int, first_s: float, quick: int
) -> None:
    answers = itertools.count()

    def latency_s(rng: random.Random) -> float:
        return first_s if next(answers) < quick else rng.uniform(0.9, 1.1)

    course = simulate(Limiter(most), Server(latency_s=latency_s), until_s=60.0)
    assert course.per_s(15, 30) >= 0.8 * most
    assert course.per_s(30, 60) >= 0.9 * most


@pytest.mark.parametrize(("slots", "latency_s"), [(4, 10.0), (4, 1.0), (32, 5.0), (64, 0.2)])
def test_a_server_that_queues_is_kept_busy_but_not_flooded(slots: int, latency_s: float) -> None:
    requests = slots * 60
    course = simulate(Limiter(256), Server(latency_s=latency_s, slots=slots), requests=requests)
    assert course.end_s < 1.15 * requests * latency_s / slots + 3 * latency_s
    # With all 256 in flight they would take 256 / slots times as long.
    late = sorted(course.latencies[-requests // 3 :])
    assert late[len(late) // 2] < max(6.0, 0.4 * 256 / slots) * latency_s


def test_many_refusals_at_the_same_time_are_one_event() -> None:
    paces = []
    for refusals in (1, 30):
        limiter = Limiter(256)
        now, sent = 0.0, []
        while len(sent) < 60:
            wait_s = limiter.wait_s(now)
            if wait_s > 0:
                now += wait_s
            else:
                sent.append(limiter.note_sent(now))
        for one in sent[-refusals:]:
            limiter.note_refusal(one, now + 0.01, None)
        limiter.wait_s(now + 10)
        paces.append(limiter.words(now + 10.0) or str(limiter.wait_s(now + 10.0)))
    assert paces[0] == paces[1]


def test_a_retry_after_holds_back_everything_and_no_herd_follows_it() -> None:
    limiter = Limiter(256)
    now, sent = 0.0, []
    while len(sent) < 60:
        wait_s = limiter.wait_s(now)
        now += wait_s
        if not wait_s:
            sent.append(limiter.note_sent(now))
    for one in sent[40:]:
        limiter.note_refusal(one, now, 5.0)
    for one in sent[:40]:
        limiter.note_answer(one, now)
    assert limiter.wait_s(now + 1) == pytest.approx(4.0)
    assert limiter.words(now + 1) == "paused 4s"
    then, again = now + 5.0, 0
    while not limiter.wait_s(then):
        limiter.note_sent(then)
        again += 1
    assert again <= 5


def test_a_backend_in_this_process_gets_all_it_takes_at_once() -> None:
    limiter = Limiter(7, adaptive=False)
    for _ in range(7):
        assert limiter.wait_s(0.0) == 0.0
        last = limiter.note_sent(0.0)
    assert limiter.wait_s(0.0) == math.inf
    limiter.note_refusal(last, 0.0, 2.0)
    assert limiter.wait_s(0.5) == 1.5
    assert limiter.wait_s(2.0) == 0.0


def test_a_limiter_tells_what_it_changed_and_why(caplog: pytest.LogCaptureFixture) -> None:
    limiter, server = Limiter(256, server="http://one"), Server(5.0, 10.0, latency_s=0.5)
    with caplog.at_level("DEBUG", "mminstruct"):
        course = simulate(limiter, server, until_s=2.0)
    pace, pause, *others = limiter.history.changes
    refused_s = course.refused[0]
    why = "a refusal after 10 requests in 0.1 s"
    assert pace == Change(refused_s, "pace", 100.0, pytest.approx(18.94, abs=0.01), why)
    assert pause == Change(refused_s, "pause", 0.0, pytest.approx(0.1), "refusals in a row: 1")
    assert {change.what for change in others} == {"pace", "pause", "window"}
    assert caplog.messages[:2] == [
        "http://one: pace 100.0 -> 18.9/s: a refusal after 10 requests in 0.1 s",
        "http://one: pause 0.0 -> 0.1 s: refusals in a row: 1",
    ]
    assert len(caplog.messages) == 2 + len(others)


def test_a_limiter_tells_of_refusals_without_a_reason_and_of_servers_that_are_left_out() -> None:
    limiter = Limiter(256, spare=True)
    simulate(limiter, Server(None, latency_s=0.5, noise=0.1), requests=400)
    for number in range(3):
        limiter.note_failure(limiter.note_sent(50.0 + number), 50.0 + number, "unreachable")
    limiter.note_answer(limiter.note_sent(60.0), 61.0)
    whys = [change.why.partition(":")[0] for change in limiter.history.changes]
    trial = whys.index("a trial whether the refusals have a reason")
    assert trial < whys.index("refusals have no reason")
    assert whys[-2:] == [
        "left out after 3 failures in a row (unreachable)",
        "the server answers again",
    ]


def test_the_history_of_a_long_run_does_not_grow() -> None:
    history = History()
    for number in range(1000):
        history.note(float(number), "pause", 0.0, 1.0, "a test")
    assert [change.at_s for change in history.changes] == [float(n) for n in range(800, 1000)]


@pytest.mark.parametrize("per_s", [5.0, 100.0])
def test_a_limiter_begins_with_the_pace_that_it_is_given(per_s: float) -> None:
    limiter = Limiter(256, tuning=Tuning(start_per_s=per_s))
    assert limiter.wait_s(0.0) == 0.0
    limiter.note_sent(0.0)
    assert limiter.wait_s(0.0) == pytest.approx(1 / per_s)


def test_timeouts_shrink_what_is_in_flight() -> None:
    limiter = Limiter(64)
    sent = []
    now = 0.0
    while len(sent) < 40:
        wait_s = limiter.wait_s(now)
        now += wait_s
        if not wait_s:
            sent.append(limiter.note_sent(now))
    for one in sent[:2]:
        limiter.note_failure(one, now + 60, "timeout")
    assert limiter.room <= 0
    assert limiter.in_flight == 38


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        (
            {
                "x-ratelimit-limit-requests": "60",
                "x-ratelimit-remaining-requests": "59",
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-limit-tokens": "150000",
                "x-ratelimit-remaining-tokens": "149984",
                "x-ratelimit-reset-tokens": "6m0s",
            },
            Quotas(Quota(60, 59, 1), Quota(150000, 149984, 360)),
        ),
        (
            {
                "x-ratelimit-limit-tokens": "100",
                "x-ratelimit-remaining-tokens": "40",
                "x-ratelimit-reset-tokens": "12ms",
            },
            Quotas(None, Quota(100, 40, 0.012)),
        ),
        (
            {
                "x-ratelimit-limit": "10",
                "x-ratelimit-remaining": "3",
                "x-ratelimit-reset": "7.66",
            },
            Quotas(Quota(10, 3, 7.66)),
        ),
        (
            {
                "x-ratelimit-limit": "10",
                "x-ratelimit-remaining": "0",
                "x-ratelimit-reset": "1700000090000",
            },
            Quotas(Quota(10, 0, 90)),
        ),
        (
            {
                "anthropic-ratelimit-requests-limit": "50",
                "anthropic-ratelimit-requests-remaining": "49",
                "anthropic-ratelimit-requests-reset": "2023-11-14T22:13:30Z",
            },
            Quotas(Quota(50, 49, 10)),
        ),
        (
            {
                "x-ratelimit-limit-requests": "many",
                "x-ratelimit-remaining-requests": "-1",
                "x-ratelimit-reset-requests": "soon",
            },
            None,
        ),
        ({"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "nan"}, None),
        (
            {
                "x-ratelimit-limit-requests": "60",
                "x-ratelimit-remaining-requests": "59",
                "x-ratelimit-reset-requests": "0001-01-01T00:00:00",
            },
            None,
        ),
    ],
)
def test_allowances_are_read_in_every_known_spelling(
    headers: dict[str, str], expected: Quotas | None
) -> None:
    assert read_quotas(headers, now_s=1_700_000_000.0) == expected


def test_an_allowance_that_the_server_tells_is_kept_to_without_a_refusal() -> None:
    limiter, server = Limiter(256), Server(5.0, 60.0, latency_s=0.5)
    told: list[Quotas] = []

    def answered(sent: Sent, now: float, *, used: float | None = None) -> None:
        Limiter.note_answer(limiter, sent, now, used=used)
        remaining = math.floor(server.level)
        told.append(Quotas(Quota(60, remaining, (60 - server.level) / 5)))
        limiter.note_quotas(now, told[-1])

    limiter.note_answer = answered  # type: ignore[method-assign]
    course = simulate(limiter, server, until_s=120.0)
    assert not course.refused
    assert course.per_s(60, 120) >= 0.95 * 5


def run_gate(
    rates: Rates, requests: int, tokens: float, used: float | None
) -> tuple[list[float], float]:
    """When a gate lets requests out, in a clock that only its own waits move."""
    now = 0.0
    out: list[float] = []

    class Idle(selectors.SelectSelector):
        def select(self, timeout: float | None = None) -> Any:
            nonlocal now
            now += timeout or 0.0
            return super().select(0)

    class Loop(asyncio.SelectorEventLoop):
        def time(self) -> float:
            return now

    async def run() -> None:
        gate = Gate([Limiter(64, adaptive=False)], 64, rates, clock=lambda: now)

        async def one() -> None:
            sent = await gate.enter(tokens=tokens)
            out.append(now)
            gate.note_answer(sent, used=used)

        await asyncio.gather(*(one() for _ in range(requests)))

    loop = Loop(Idle())
    loop.run_until_complete(run())
    loop.close()
    return out, now


def test_a_rate_of_requests_that_was_asked_for_is_kept_to_the_second() -> None:
    out, end_s = run_gate(Rates(requests_per_minute=120), 100, 0.0, None)
    assert end_s == pytest.approx(98 / 2, abs=0.01)
    for since_s in range(40):
        assert sum(since_s <= at < since_s + 10 for at in out) <= 22


def test_processes_share_the_rates_of_a_run() -> None:
    config = InstructConfig(requests_per_minute=100.0)
    assert config.rates() == Rates(100.0, None)
    assert config.rates(0.25) == Rates(25.0, None)
    with pytest.raises(UsageError, match="tokens_per_minute: expected at least 1, got 0"):
        InstructConfig(tokens_per_minute=0).validate()


def test_a_rate_of_tokens_counts_what_was_used_and_not_what_might_have_been() -> None:
    # 6,000 a minute are 100 a second; a request may take 500 and takes 200.
    out, _ = run_gate(Rates(tokens_per_minute=6000), 30, 500.0, 200.0)
    used = 200 * sum(at <= 30 for at in out)
    assert 0.7 * 3000 <= used <= 3000 + 600
    out, _ = run_gate(Rates(tokens_per_minute=6000), 30, 500.0, 500.0)
    assert 500 * sum(at <= 60 for at in out) <= 6000 + 600


def test_requests_go_to_the_server_with_most_room_and_never_beyond_the_sum() -> None:
    async def run() -> list[int]:
        gate = Gate([Limiter(8, adaptive=False), Limiter(3, adaptive=False)], 9)
        sent = [await gate.enter() for _ in range(9)]
        blocked = asyncio.ensure_future(gate.enter())
        await asyncio.sleep(0)
        assert not blocked.done()
        gate.note_answer(sent[-1], used=None)
        await blocked
        return [one.server for one in sent]

    servers = asyncio.run(run())
    assert servers.count(1) == 2
    assert servers[:4] == [0] * 4


def test_whoever_waits_for_one_server_holds_up_nobody_who_can_go_to_another() -> None:
    async def run() -> None:
        gate = Gate([Limiter(8, adaptive=False), Limiter(1, adaptive=False)], 9)
        full = await gate.enter(avoid={0})
        waiting = asyncio.ensure_future(gate.enter(avoid={0}, first=True))
        await asyncio.sleep(0)
        others = [await asyncio.wait_for(gate.enter(), 10) for _ in range(7)]
        assert {sent.server for sent in others} == {0}
        assert not waiting.done()
        gate.note_answer(full, used=None)
        assert (await asyncio.wait_for(waiting, 10)).server == 1

    asyncio.run(run())


def test_what_all_servers_share_is_not_used_up_before_a_retry_that_waits_for_it() -> None:
    async def run() -> None:
        limiters = [Limiter(50, adaptive=False), Limiter(50, adaptive=False)]
        gate = Gate(limiters, 100, Rates(tokens_per_minute=60_000))
        await gate.enter(tokens=1000)
        retry = asyncio.ensure_future(gate.enter(tokens=300, avoid={0}, first=True))
        small = [asyncio.ensure_future(gate.enter(tokens=50)) for _ in range(20)]
        await asyncio.wait_for(retry, 10)
        assert not any(one.done() for one in small)
        for one in small:
            one.cancel()

    asyncio.run(run())


def test_a_dead_server_is_left_out_and_probed_until_it_answers() -> None:
    clock = [0.0]

    async def run() -> None:
        dead, alive = Limiter(4, spare=True), Limiter(4, spare=True)
        gate = Gate([dead, alive], 8, clock=lambda: clock[0])
        for _ in range(3):
            clock[0] += 0.1
            sent = await gate.enter(avoid={1})
            assert sent.server == 0
            gate.note_failure(sent, "unreachable")
        assert dead.dead
        assert gate.words() == "1 of 2 servers out"
        assert gate.others({1}) is False
        clock[0] += 0.1
        sent = await gate.enter()
        assert sent.server == 1
        clock[0] += 1.0
        probes = [await gate.enter() for _ in range(3)]
        assert [probe.server for probe in probes].count(0) == 1
        probe = next(probe for probe in probes if probe.server == 0)
        gate.note_answer(probe, used=None)
        assert not dead.dead

    asyncio.run(run())


def test_a_server_that_has_only_failed_gets_one_at_a_time() -> None:
    limiter = Limiter(100, spare=True)
    assert limiter.wait_s(0.0) == 0
    first, second = limiter.note_sent(0.0), limiter.note_sent(0.0)
    assert limiter.wait_s(0.09) == 0
    limiter.note_failure(first, 0.1, "unreachable")
    assert limiter.wait_s(0.5) == math.inf
    limiter.note_failure(second, 0.5, "unreachable")
    third = limiter.note_sent(0.5)
    assert limiter.wait_s(0.6) == math.inf
    limiter.note_answer(third, 0.7)
    limiter.note_failure(limiter.note_sent(1.0), 1.1, "unreachable")
    limiter.note_sent(1.1)
    assert limiter.wait_s(1.2) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop isn't for Windows")
def test_waits_too_short_for_the_timers_of_uvloop_are_waited_for_in_turn() -> None:
    import uvloop

    async def run() -> None:
        gate = Gate([Limiter(8, adaptive=False)], 8, Rates(tokens_per_minute=600_000))
        await gate.enter(tokens=10_000)  # a second's worth: those that follow wait 0.1 ms each
        await asyncio.gather(*(gate.enter(tokens=1) for _ in range(6)))

    loop = uvloop.new_event_loop()
    loop.run_until_complete(asyncio.wait_for(run(), 60))
    loop.close()


def test_whoever_waits_at_a_gate_that_closes_gets_its_error() -> None:
    async def run() -> None:
        gate = Gate([Limiter(1, adaptive=False)], 1)
        await gate.enter()
        waiting = asyncio.ensure_future(gate.enter())
        gone = asyncio.ensure_future(gate.enter())
        await asyncio.sleep(0)
        gone.cancel()
        gate.close(ValueError("over"))
        with pytest.raises(ValueError, match="over"):
            await waiting
        with pytest.raises(ValueError, match="over"):
            await gate.enter()
        with pytest.raises(asyncio.CancelledError):
            await gone

    asyncio.run(run())


def test_a_request_that_is_cancelled_as_it_is_let_out_takes_no_room() -> None:
    async def run() -> None:
        gate = Gate([Limiter(1, adaptive=False)], 1)
        first = await gate.enter()
        waiting = asyncio.ensure_future(gate.enter())
        await asyncio.sleep(0)
        gate.note_answer(first, used=None)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert gate.in_flight == 0

    asyncio.run(run())


def test_a_budget_has_room_for_the_worst_case_of_all_in_flight() -> None:
    budget = Budget(max_cost_usd=1.0, usd_per_prompt_token=0.001, usd_per_completion_token=0.002)
    most = budget.cost_usd(100, 100)
    assert most == pytest.approx(0.3)
    assert [budget.admit(most) for _ in range(4)] == [True, True, True, False]
    budget.settle(most, budget.cost_usd(100, 10))
    assert not budget.admit(most)
    budget.settle(most, None)
    assert budget.admit(most)
    assert budget.spent.in_flight == 2
    assert budget.spent.usd == pytest.approx(0.12)
    assert "max_cost $1" in budget.reached()
    assert "1 request for $0.1200" in budget.reached()


def test_a_budget_of_requests_counts_those_that_were_paid_for() -> None:
    budget = Budget(max_requests=2)
    assert budget.admit(0.0) and budget.admit(0.0) and not budget.admit(0.0)
    budget.settle(0.0, None)
    assert budget.admit(0.0)
    budget.settle(0.0, 0.0)
    assert not budget.admit(0.0) and not budget.is_used_up(0.0)
    budget.settle(0.0, 0.0)
    assert not budget.admit(0.0) and budget.is_used_up(0.0)


def test_several_processes_share_a_budget_through_its_ledger(tmp_path: Path) -> None:
    budget = Budget(max_requests=3, ledger=tmp_path / "spent.json")
    other = pickle.loads(pickle.dumps(budget))
    assert budget.admit(0.0) and other.admit(0.0) and budget.admit(0.0)
    assert not other.admit(0.0) and not other.is_used_up(0.0)
    other.settle(0.0, 0.0)
    assert budget.spent.requests == 1
    assert not budget.admit(0.0)
