"""The line about a run."""

from __future__ import annotations

import io
import re
import threading
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mminstruct.client import Stats
from mminstruct.progress import ProgressLine, describe, duration, short

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
    line = describe(busy(size), rate=rate, width=width)
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
    line = describe(stats, rate=rate, width=80)
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
        failed=Counter(http_500=3),
        prompt_tokens=95_000,
        completion_tokens=15_000,
    )
    assert describe(stats, rate=2.5) == (
        "254/1,000  2.5/s, 4m58s left, 64 in flight, 3 failed, 3 rejected, 200 stored, 4 retries, "
        "95.0k+15.0k tokens"
    )


def test_what_holds_requests_back_is_shown() -> None:
    stats = Stats(total=1000, answered=50, in_flight=64, held_by="paced 5.0/s", retries=4)
    assert describe(stats, rate=4.9, width=80) == (
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
    assert re.fullmatch(r"5/12  paused until (\d{4}-\d\d-\d\d )?\d\d:\d\d, 6h12m, 1 retries", line)


def test_a_line_without_news_is_short() -> None:
    assert describe(Stats(total=12), rate=None) == "0/12"
    assert describe(Stats(), rate=None) == "0/?"


def test_a_slow_rate_is_one_per_minute() -> None:
    assert describe(Stats(total=10, answered=4), rate=0.1) == "4/10  6.0/min, 1m00s left"
    assert describe(Stats(answered=4), rate=1.0) == "4/?  1.0/s"


def test_how_long_it_takes_is_not_guessed_from_an_answer_or_two() -> None:
    stats = Stats(total=12, answered=2, started_s=time.monotonic() - 60)
    line = ProgressLine(stats, Terminal())
    assert line._rate() is None
    stats.answered = 3
    assert line._rate() is not None


def test_nothing_is_left_at_the_end() -> None:
    assert "left" not in describe(Stats(total=4, answered=4), rate=3.0)


def test_what_does_not_fit_is_left_out_as_a_whole() -> None:
    stats = busy(1_000)
    whole = describe(stats, rate=2.0).replace("  ", ", ").split(", ")
    for width in range(30, 120):
        parts = describe(stats, rate=2.0, width=width).replace("  ", ", ").split(", ")
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
