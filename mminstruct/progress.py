"""One line about a run: rewritten in place on a terminal, repeated now and then in a log."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections import deque
from types import TracebackType
from typing import TextIO

from mminstruct.client import Stats
from mminstruct.limits import until
from mminstruct.resources import printable

_REFRESH_S = 0.2
_LOG_EVERY_S = 30.0
_RATE_OVER_S = 30.0
# Fewer answers say little of how long the rest will take.
_TELLING = 3
# For shorter an answer, or a pause, is not worth a word.
_LONG_S = 15.0


def describe(stats: Stats, *, rate: float | None, width: int = 200) -> str:
    """The line: as many of its parts as fit into ``width`` columns, the most important first.

    Args:
        stats: the counters.
        rate: answers per second lately, or None if there was none yet.
        width: columns.
    """
    total = "?" if stats.total is None else f"{stats.total:,}"
    parts = [f"{stats.done:,}/{total}", *stats.waiting_for]
    if rate and not stats.waiting_for:
        parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{rate * 60:.1f}/min")
        if stats.total is not None and stats.total > stats.done:
            parts.append(f"{duration((stats.total - stats.done) / rate)} left")
    if stats.in_flight:
        parts.append(f"{stats.in_flight} in flight")
    if stats.oldest_s >= _LONG_S:
        parts.append(f"oldest has waited {duration(stats.oldest_s)}")
    paused_s = stats.paused_until_s - time.monotonic()
    if paused_s >= _LONG_S:
        parts.insert(1, f"paused until {until(paused_s)}, {duration(paused_s)}")
    elif stats.held_by:
        parts.append(stats.held_by)
    for count, word in (
        (stats.failed.total(), "failed"),
        (stats.rejected.total(), "rejected"),
        (stats.stored, "stored"),
        (stats.retries, f"retries: {stats.retried_for}" if stats.retried_for else "retries"),
    ):
        if count:
            parts.append(f"{count:,} {word}")
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
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

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
        rate = self._mean_rate() if final else self._rate()
        line = describe(self._stats, rate=rate, width=self._width())
        shown = f"\r\x1b[K{line}" + ("\n" if final else "") if self._terminal else f"{line}\n"
        with contextlib.suppress(OSError):  # a terminal that hung up ends no run
            self._stream.write(shown)
            self._stream.flush()

    def _width(self) -> int:
        return shutil.get_terminal_size((80, 24)).columns - 1 if self._terminal else 200

    def _mean_rate(self) -> float | None:
        started_s, answered = self._stats.started_s, self._stats.answered
        elapsed_s = time.monotonic() - started_s if started_s is not None else 0.0
        return answered / elapsed_s if answered and elapsed_s else None

    def _rate(self) -> float | None:
        """Answers per second over the last half minute; what the store had is not a rate."""
        now, answered = time.monotonic(), self._stats.answered
        self._seen.append((now, answered))
        while len(self._seen) > 2 and now - self._seen[0][0] > _RATE_OVER_S:
            self._seen.popleft()
        if answered < _TELLING:
            return None
        then, before = self._seen[0]
        if answered > before and now > then:
            return (answered - before) / (now - then)
        return self._mean_rate()
