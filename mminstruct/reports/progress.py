"""One line about a run: rewritten in place on a terminal, repeated now and then in a log."""

from __future__ import annotations

import contextlib
import math
import shutil
import threading
import time
from collections import deque
from types import TracebackType
from typing import TextIO

from mminstruct.completions.stats import NOT_SENT, Stats
from mminstruct.resources import count_of, printable
from mminstruct.transport import until

_REFRESH_S = 0.2
_LOG_EVERY_S = 30.0
_RATE_OVER_S = 30.0
# Fewer answers say little of how long the rest will take.
_TELLING = 3
# For shorter an answer, or a pause, is not worth a word.
_LONG_S = 15.0
# In this time the end that is told comes near to a new guess, all but a third of the way.
_SMOOTH_S = 30.0


class Pace:
    """How fast answers come, and when the last one will.

    What an engine computes side by side is done at nearly the same time, and the first of it takes
    longest. So a rate is over one answer for each request in flight at least, an end is told when
    the rate is no more one since the start, and moves evenly from one guess to the next.
    """

    def __init__(self, started_s: float) -> None:
        self._seen = deque([(started_s, 0)])
        self._started_s = started_s
        self._side_by_side = 0
        self._end_s: float | None = None
        self._told_s = started_s

    def rate(self, stats: Stats, now: float) -> float | None:
        """Answers per second lately, or None; what the store had is not a rate."""
        answered = stats.answered
        self._side_by_side = max(self._side_by_side, stats.in_flight)
        if answered > self._seen[-1][1]:
            self._seen.append((now, answered))
        while len(self._seen) > 2 and (
            now - self._seen[0][0] > _RATE_OVER_S
            and answered - self._seen[1][1] >= self._side_by_side
        ):
            self._seen.popleft()
        then, before = self._seen[0]
        return (answered - before) / (now - then) if answered >= _TELLING and now > then else None

    def left_s(self, stats: Stats, rate: float | None, now: float) -> float | None:
        """Seconds until all have come to an end, or None where that isn't known."""
        if not rate or stats.total is None:
            return None
        guess_s = now + (stats.total - stats.done) / rate
        if self._end_s is None:
            if self._seen[0][0] == self._started_s:
                return None
            self._end_s = guess_s
        self._end_s += (guess_s - self._end_s) * -math.expm1((self._told_s - now) / _SMOOTH_S)
        self._told_s = now
        return max(0.0, self._end_s - now)


def describe(
    stats: Stats, *, rate: float | None, left_s: float | None = None, width: int = 200
) -> str:
    """The line: as many of its parts as fit into ``width`` columns, the most important first.

    Args:
        stats: the counters.
        rate: answers per second lately, or None if there was none yet.
        left_s: until all have come to an end, or None where that isn't known.
        width: columns.
    """
    total = "?" if stats.total is None else f"{stats.total:,}"
    parts = [f"{stats.done:,}/{total}", *stats.waiting_for]
    if rate and not stats.waiting_for:
        parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{rate * 60:.1f}/min")
        if left_s is not None and stats.total != stats.done:
            parts.append(f"{duration(left_s)} left")
    if stats.in_flight:
        parts.append(f"{stats.in_flight} in flight")
    if stats.oldest_s >= _LONG_S:
        parts.append(f"oldest has waited {duration(stats.oldest_s)}")
    paused_s = stats.paused_until_s - time.monotonic()
    if paused_s >= _LONG_S:
        parts.insert(1, f"paused until {until(paused_s)}, {duration(paused_s)}")
    elif stats.held_by:
        parts.append(stats.held_by)
    why = f": {stats.retried_for}" if stats.retried_for else ""
    for count, *words in (
        (stats.failed.total() - stats.failed[NOT_SENT], "failed", "failed"),
        (stats.failed[NOT_SENT], "not asked", "not asked"),
        (stats.rejected.total(), "rejected", "rejected"),
        (stats.stored, "stored", "stored"),
        (stats.retries, f"retry{why}", f"retries{why}"),
    ):
        if count:
            parts.append(count_of(count, *words))
    if stats.completion_tokens:
        parts.append(f"{short(stats.prompt_tokens)}+{short(stats.completion_tokens)} tokens")
    line = parts[0]
    for part in parts[1:]:
        if len(line) + 2 + len(part) <= width:
            line += f", {part}" if line != parts[0] else f"  {part}"
    return printable(line)[:width]


def duration(seconds: float) -> str:
    """``42s``, ``3m20s``, ``5h07m`` or ``12d03h``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def short(count: int) -> str:
    """``950``, ``12.3k``, ``4.5M``."""
    for bound, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if round(count / bound, 4) >= 1:  # 999,950 is 1.0M, not 1000.0k
            return f"{count / bound:.1f}{unit}"
    return str(count)


class ProgressLine:
    """Shows `Stats` while they grow; a context manager.

    Args:
        stats: the counters of the run.
        stream: where to write; in place if it is a terminal.
    """

    def __init__(self, stats: Stats, stream: TextIO) -> None:
        self._stats = stats
        self._stream = stream
        self._terminal = stream.isatty()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="progress", daemon=True)
        self._pace: Pace | None = None  # the thread's, and after its end the caller's

    def __enter__(self) -> ProgressLine:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._stats.started_s is not None:
            self._write(final=True)

    def _loop(self) -> None:
        last_log_s = time.monotonic()
        while not self._stop.wait(_REFRESH_S):
            if self._stats.started_s is None:
                continue
            if self._terminal:
                self._write()
            elif time.monotonic() - last_log_s >= _LOG_EVERY_S:
                last_log_s = time.monotonic()
                self._write()

    def _write(self, *, final: bool = False) -> None:
        now, started_s = time.monotonic(), self._stats.started_s
        assert started_s is not None
        if self._pace is None:
            self._pace = Pace(started_s)
        rate, left_s = self._pace.rate(self._stats, now), None
        if final:
            rate = self._stats.answered / max(now - started_s, 1e-6)
        else:
            left_s = self._pace.left_s(self._stats, rate, now)
        line = describe(self._stats, rate=rate, left_s=left_s, width=self._width())
        shown = f"\r\x1b[K{line}" + ("\n" if final else "") if self._terminal else f"{line}\n"
        with contextlib.suppress(OSError):  # a terminal that hung up ends no run
            self._stream.write(shown)
            self._stream.flush()

    def _width(self) -> int:
        return shutil.get_terminal_size((80, 24)).columns - 1 if self._terminal else 200
