"""The line about a run."""

from __future__ import annotations

import heapq
import io
import random
import re
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mminstruct.completions.stats import Stats
from mminstruct.reports.progress import Pace, ProgressLine, describe, duration, short

counts = st.one_of(st.integers(0, 20), st.integers(0, 10**13))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def busy(size: int) -> Stats:
    return Stats(
        total=9 * size,
        stored=size,
        answered=size,
        sent=3 * size,
        retries=size,
        in_flight=size,
        rejected=Counter(leak=size),
        failed=Counter(http_429=size),
        prompt_tokens=1900 * size,
        completion_tokens=300 * size,
    )


@pytest.mark.parametrize("size", [1, 12, 999, 1000, 123_456, 10**9, 10**14])
@pytest.mark.parametrize("rate", [None, 1e-9, 0.01, 0.999, 1.0, 87.25, 1e6])
@pytest.mark.parametrize("width", [20, 40, 79, 80])
def test_the_line_fits_the_terminal_whatever_the_counters(
    size: int, rate: float | None, width: int
) -> None:
    line = describe(busy(size), rate=rate, left_s=rate and size / rate, width=width)
    assert 0 < len(line) <= width
    assert "\n" not in line


@settings(deadline=None, max_examples=200, derandomize=True, database=None)
@given(
    st.builds(
        Stats,
        total=st.none() | counts,
        stored=counts,
        answered=counts,
        sent=counts,
        retries=counts,
        in_flight=counts,
        rejected=st.builds(lambda n: Counter(leak=n), counts),
        failed=st.builds(lambda n: Counter(timeout=n), counts),
        prompt_tokens=counts,
        completion_tokens=counts,
    ),
    st.none() | st.floats(0, 1e9),
)
def test_the_line_is_one_line_of_80_columns_for_any_counters(
    stats: Stats, rate: float | None
) -> None:
    line = describe(stats, rate=rate, left_s=rate, width=80)
    assert line.startswith(f"{stats.done:,}/")
    assert len(line) <= 80
    assert line == line.strip()
    assert line.isprintable()


def test_the_line_has_all_that_is_known() -> None:
    stats = Stats(
        total=1000,
        stored=200,
        answered=50,
        retries=4,
        in_flight=64,
        rejected=Counter(leak=2, too_long=1),
        failed=Counter(http_500=3, not_sent=1),
        prompt_tokens=95_000,
        completion_tokens=15_000,
    )
    assert describe(stats, rate=2.5, left_s=298.4) == (
        "255/1,000  2.5/s, 4m58s left, 64 in flight, 3 failed, 1 not asked, 3 rejected, "
        "200 stored, 4 retries, 95.0k+15.0k tokens"
    )


def test_what_holds_requests_back_is_shown() -> None:
    stats = Stats(total=1000, answered=50, in_flight=64, held_by="paced 5.0/s", retries=4)
    assert describe(stats, rate=4.9, left_s=193.9, width=80) == (
        "50/1,000  4.9/s, 3m13s left, 64 in flight, paced 5.0/s, 4 retries"
    )


def test_why_requests_are_retried_and_how_long_the_oldest_waits_is_shown() -> None:
    stats = Stats(total=12, in_flight=2, retries=6, retried_for="501")
    now = time.monotonic()
    stats.waiting_since_s.update(old=now - 75.5, new=now - 1.0)
    assert describe(stats, rate=None) == (
        "0/12  2 in flight, oldest has waited 1m15s, 6 retries: 501"
    )


def test_a_long_pause_is_shown_with_its_end() -> None:
    pause_s = 6 * 3600 + 12 * 60 + 30
    stats = Stats(total=12, answered=5, retries=1, held_by="paused 60s")
    stats.paused_until_s = time.monotonic() + pause_s
    line = describe(stats, rate=None)
    assert re.fullmatch(r"5/12  paused until (\d{4}-\d\d-\d\d )?\d\d:\d\d, 6h12m, 1 retry", line)


def test_a_line_without_news_is_short() -> None:
    assert describe(Stats(total=12), rate=None) == "0/12"
    assert describe(Stats(), rate=None) == "0/?"


def test_a_slow_rate_is_one_per_minute() -> None:
    ten = Stats(total=10, answered=4)
    assert describe(ten, rate=0.1, left_s=60) == "4/10  6.0/min, 1m00s left"
    assert describe(Stats(answered=4), rate=1.0) == "4/?  1.0/s"


def test_how_long_it_takes_is_not_guessed_from_an_answer_or_two() -> None:
    stats, pace = Stats(total=12, answered=2), Pace(0.0)
    assert pace.rate(stats, 10.0) is None
    stats.answered = 3
    assert pace.rate(stats, 20.0) == 3 / 20
    assert pace.left_s(stats, 3 / 20, 20.0) is None


def told(ends_s: Sequence[float], side_by_side: int) -> list[tuple[float, float]]:
    """Each second, the time that is really left and the one that is told, if one is."""
    stats, pace, told = Stats(total=len(ends_s)), Pace(0.0), []
    for tick in range(int(5 * ends_s[-1])):
        now = tick / 5
        stats.answered = bisect_right(ends_s, now)
        stats.in_flight = min(side_by_side, len(ends_s) - stats.answered)
        left_s = pace.left_s(stats, pace.rate(stats, now), now)
        if tick % 5 == 0 and left_s is not None:
            told.append((ends_s[-1] - now, left_s))
    return told


def herds(requests: int, slots: int, first_s: float) -> list[float]:
    """When an engine has answered requests that it computes side by side."""
    rng, free = random.Random(0), [first_s] * slots
    ends = []
    for _ in range(requests):
        begun = heapq.heappop(free)
        ends.append(begun + rng.uniform(12, 22))
        heapq.heappush(free, ends[-1])
    return sorted(ends)


@pytest.mark.parametrize(("requests", "slots"), [(30, 8), (60, 8), (300, 8), (300, 32)])
def test_the_time_left_of_an_engine_that_begins_slowly_does_not_jump(
    requests: int, slots: int
) -> None:
    lines = told(herds(requests, slots, first_s=15.0), side_by_side=slots + 2)
    assert len(lines) > 40
    for (_, before_s), (left_s, told_s) in pairwise(lines):
        assert abs(before_s - 1 - told_s) < 0.04 * max(30.0, before_s)
        assert abs(told_s - left_s) < 0.25 * (left_s + 20)


def test_the_end_is_not_guessed_from_the_answers_that_an_engine_began_with() -> None:
    assert told(herds(12, slots=8, first_s=30.0)[:10], side_by_side=10) == []


def test_what_the_store_had_makes_no_time_left_shorter() -> None:
    stats, pace = Stats(total=1000, stored=880), Pace(0.0)
    for stats.answered, now in ((1, 1.0), (20, 11.0), (60, 31.0)):
        rate = pace.rate(stats, now)
    assert rate == 59 / 30
    assert pace.left_s(stats, rate, now) == pytest.approx((1000 - 940) / rate)


def test_a_run_that_stands_still_is_seen_to() -> None:
    stats, pace = Stats(total=100, in_flight=5), Pace(0.0)
    left = []
    for stats.answered, now in ((1, 1.0), (50, 50.0), (50, 60.0), (50, 100.0), (50, 1000.0)):
        left.append(pace.left_s(stats, pace.rate(stats, now), now))
    assert left[:2] == [None, 50.0]
    assert left[2] < left[3] < left[4]
    assert left[4] == pytest.approx(1000, rel=0.05)


def test_nothing_is_left_at_the_end() -> None:
    assert "left" not in describe(Stats(total=4, answered=4), rate=3.0, left_s=2.0)


def test_what_does_not_fit_is_left_out_as_a_whole() -> None:
    stats = busy(1_000)
    whole = describe(stats, rate=2.0, left_s=9.0).replace("  ", ", ").split(", ")
    for width in range(30, 120):
        parts = describe(stats, rate=2.0, left_s=9.0, width=width).replace("  ", ", ").split(", ")
        assert set(parts) <= set(whole)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.9, "0s"),
        (42, "42s"),
        (59.99, "59s"),
        (60, "1m00s"),
        (200, "3m20s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (5 * 3600 + 7 * 60, "5h07m"),
        (86399, "23h59m"),
        (86400, "1d00h"),
        (12 * 86400 + 3 * 3600, "12d03h"),
        (1000 * 86400, "1000d00h"),
    ],
)
def test_a_duration_is_written_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (950, "950"),
        (999, "999"),
        (1000, "1.0k"),
        (12_345, "12.3k"),
        (999_949, "999.9k"),
        (999_950, "1.0M"),
        (999_999, "1.0M"),
        (4_500_000, "4.5M"),
        (999_999_999, "1.0G"),
        (7_250_000_000_000, "7250.0G"),
    ],
)
def test_a_large_count_is_written_with_a_unit(count: int, text: str) -> None:
    assert short(count) == text


def test_a_stream_that_is_no_terminal_gets_whole_lines() -> None:
    stream = io.StringIO()
    stats = Stats(total=12)
    with ProgressLine(stats, stream):
        stats.started_s = time.monotonic()
        stats.answered = 12
    assert stream.getvalue().startswith("12/12")
    assert stream.getvalue().endswith("\n")
    assert not set("\r\x1b") & set(stream.getvalue())
    assert all(line.startswith("12/12") for line in stream.getvalue().splitlines())


def test_a_terminal_gets_one_line_that_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    stats = busy(10**6)
    with ProgressLine(stats, stream):
        stats.started_s = time.monotonic()
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    for line in text.removesuffix("\n").split("\r\x1b[K")[1:]:
        assert 0 < len(line) < 60


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_run_that_sent_nothing_shows_nothing(kind: type[io.StringIO]) -> None:
    stream = kind()
    with ProgressLine(Stats(total=12), stream):
        pass
    assert stream.getvalue() == ""


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_the_last_line_is_written_when_a_run_fails_and_the_thread_ends(
    kind: type[io.StringIO],
) -> None:
    stream = kind()
    stats = Stats(total=12, answered=5)
    with pytest.raises(KeyboardInterrupt), ProgressLine(stats, stream):
        stats.started_s = time.monotonic()
        raise KeyboardInterrupt
    assert "5/12" in stream.getvalue()
    assert stream.getvalue().endswith("\n")
    assert "progress" not in {thread.name for thread in threading.enumerate()}
