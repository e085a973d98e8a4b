"""What one server takes, learnt from its answers and refusals alone.

A state machine without a clock of its own: tests run hours of it in virtual time. `Bounds` learns
from refusals, `Noise` finds those that have no reason; here are the pauses and allowances that a
server states, the latencies and timeouts that shrink what is in flight, and servers that are dead.
A Retry-After holds back everything, and what follows comes at the learnt pace, not as a herd.
`Tuning` has the numbers.

**Source:** https://platform.openai.com/docs/guides/rate-limits for what servers state.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Literal

from mminstruct.completions.bounds import Bound, Bounds, History
from mminstruct.completions.buckets import Allowance
from mminstruct.completions.tuning import Tuning, bounded
from mminstruct.transport import Quotas

_OVERLOADED = ("timeout", "http_408", "http_503", "http_504", "http_529")


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that was let out."""

    at_s: float
    in_flight: int  # with it
    tokens: float = 0.0  # that were taken for it
    server: int = 0  # of the gate's


class _Latencies:
    """Whether answers come slower, and no more of them a second, than with fewer in flight.

    A median doesn't see a few slow answers.

    Attributes:
        since_s: begin of the time in question.
        best: median latency, answers a second, and how many were in flight for them.
        median_s: of the last ones; 0 before the first.
    """

    def __init__(self, tuning: Tuning) -> None:
        self._tuning = tuning
        self.best: tuple[float, float, float] | None = None
        self._slow: tuple[float, float] | None = None  # answers a second, in flight: the last slow
        self.median_s = 0.0
        self.since_s = 0.0
        self._all_s: list[float] = []

    def weigh(
        self, now: float, latency_s: float
    ) -> Literal["first", "well", "slow", "no sooner"] | None:
        """Compare the answers of some latencies' time with the best before; None is too few."""
        tuning = self._tuning
        self._all_s.append(latency_s)
        if len(self._all_s) < tuning.least_answers:
            if self.median_s:
                return None
            self.median_s = latency_s  # no measure: it may be of another kind than all that follow
            return "first"
        seconds = now - self.since_s
        median_s = statistics.median(self._all_s)
        if seconds < median_s:
            return None
        per_s = len(self._all_s) / seconds
        width = per_s * sum(self._all_s) / len(self._all_s)
        self._all_s, self.since_s, self.median_s = [], now, median_s
        if self.best is None:
            self.best = (median_s, per_s, width)
        best_s, best_per_s, best_width = self.best
        slow, self._slow = self._slow, None
        if median_s < max(tuning.slower * best_s, best_s + tuning.hardly_s):
            if median_s < best_s or per_s > best_per_s:
                self.best = (min(median_s, best_s), per_s, width)
            return "well"
        more, gain = width / best_width, per_s / best_per_s
        if more > 1.1 and gain > more**0.5:  # many at once are worth their latency
            self.best = (median_s, per_s, width)
            return "well" if slow is None else "no sooner"
        for then_per_s, then_width in ((best_per_s, best_width), slow or (per_s, width)):
            more, gain = width / then_width, per_s / then_per_s
            if more < 0.9 and gain < more**0.5:  # fewer at once don't help against it
                self.best = (median_s, per_s, width)
                return "no sooner"
        self._slow = (per_s, width)
        return "slow"


class Limiter:
    """What one server takes.

    Args:
        most: in flight at most.
        adaptive: whether to learn; else only pauses are obeyed.
        spare: whether there are other servers, so that this one can be left out when it is dead.
        server: its name, for what is logged where there are several.
        tuning: the numbers it goes by.

    Attributes:
        in_flight: requests without an end yet.
        dead: whether it is left out, but for a probe now and then.
        history: the last changes, with their reasons.
    """

    def __init__(
        self,
        most: int,
        *,
        adaptive: bool = True,
        spare: bool = False,
        server: str = "",
        tuning: Tuning | None = None,
    ) -> None:
        self._most, self._adaptive, self._spare = most, adaptive, spare
        self._tuning = tuning = tuning or Tuning()
        self.in_flight = 0
        self.history = History(server)
        self._bounds = Bounds(tuning.start_in_flight if adaptive else most, tuning, self.history)
        self._latencies = _Latencies(tuning)
        self._in_the_way: Bound | None = None
        self._credit = 1.0
        self._now_s: float | None = None
        self._strain, self._strained_s = 0.0, -math.inf
        self.dead = self._has_answered = False
        self._failures_in_a_row = 0
        self._probe_s, self._probe_after_s = -math.inf, tuning.probe_s[0]
        self._allowance = Allowance()
        self._tokens_under_way = 0.0
        self._allowed_s = -math.inf

    @property
    def room(self) -> float:
        """Requests that could be in flight beyond those that are."""
        return min(self._most, int(self._bounds.window.value)) - self.in_flight

    @property
    def counts_tokens(self) -> bool:
        """Whether the server told an allowance of tokens."""
        return self._allowance.counts_tokens

    def paused_s(self, now: float) -> float:
        """Seconds that are left of a pause that the server asked for."""
        return max(0.0, self._bounds.resume_s - now)

    def words(self, now: float) -> str | None:
        """What holds requests back, for the progress line."""
        if self.paused_s(now) > 1.0:
            return f"paused {self.paused_s(now):.0f}s"
        if self._allowed_s - now > 1.0:
            return f"allowance used up for {self._allowed_s - now:.0f}s"
        if self._in_the_way is None or self._in_the_way.known is None:
            return None
        if self._in_the_way is self._bounds.window:
            return f"at most {int(self._in_the_way.value)} at once"
        return f"paced {self._bounds.pace.value:.1f}/s"

    def wait_s(self, now: float, tokens: float = 0.0) -> float:
        """Seconds until a request may be sent: 0 is now, infinite is not before another's end."""
        self._advance(now)
        self._in_the_way = None
        if now < self._bounds.resume_s:
            return self._bounds.resume_s - now
        if self.dead:
            return math.inf if self.in_flight else max(0.0, self._probe_s - now)
        # One at a time to a server that has only failed, or many are lost to it at the start.
        doubted = self._spare and self._failures_in_a_row and not self._has_answered
        if self.in_flight >= (1 if doubted else self._most):
            return math.inf
        if not self._adaptive:
            return 0.0
        if self.room < 1:
            self._in_the_way = self._bounds.window
            return 0.05  # it grows with time
        if self._credit < 1 - 1e-9:  # what rounding leaves
            self._in_the_way = self._bounds.pace
            return (1 - self._credit) / self._bounds.pace.value
        wait_s = self._allowance.wait_s(now, tokens)
        if wait_s > 1.0 and self._allowed_s <= now:
            self.history.note(now, "pause", 0.0, wait_s, "the server's allowance is used up")
        self._allowed_s = now + wait_s
        return wait_s

    def _advance(self, now: float) -> None:
        window, pace = self._bounds.window, self._bounds.pace
        if self._now_s is None:
            self._now_s = self._bounds.since_s = self._latencies.since_s = now
        before, self._now_s = self._now_s, now
        passed_s = now - before - max(0.0, min(self._bounds.resume_s, now) - before)
        at_once = max(1.0, self._tuning.sent_at_once_s * pace.value)
        self._credit = min(at_once, self._credit + pace.value * passed_s)
        if self._in_the_way is None:
            return
        # While nothing is known neither holds up the search for the other, and each goes no
        # further than twice what was answered, or what the other lets through.
        best = self._latencies.best
        latency_s = (best[0] if best is not None else self._latencies.median_s) or math.inf
        most_per_s = max(self._tuning.start_per_s, 2 * window.value / latency_s)
        most_at_once = 2 * max(self._tuning.start_in_flight, self._bounds.proven)
        for bound, most in ((window, most_at_once), (pace, most_per_s)):
            if bound.value < most if bound.known is None else bound is self._in_the_way:
                bound.advance(passed_s)

    def note_sent(self, now: float, tokens: float = 0.0, server: int = 0) -> Sent:
        """Note that a request is sent."""
        self._credit -= 1
        self.in_flight += 1
        self._bounds.note_sent(now)
        self._tokens_under_way += tokens
        self._allowance.take(tokens)
        return Sent(now, self.in_flight, tokens, server)

    def note_answer(self, sent: Sent, now: float, *, used: float | None = None) -> None:
        """A request was answered, with so many tokens; one refused for good counts as well."""
        self._end(sent, used)
        self._revive(now)
        self._probe_after_s = self._tuning.probe_s[0]
        self._strain *= self._tuning.strain_kept
        self._bounds.note_answer(sent.at_s, sent.in_flight)
        if self._adaptive:
            self._weigh(now, max(1e-6, now - sent.at_s))

    def _weigh(self, now: float, latency_s: float) -> None:
        window, latencies, tuning = self._bounds.window, self._latencies, self._tuning
        width = latencies.best[2] if latencies.best is not None else 0.0
        found = latencies.weigh(now, latency_s)
        if found == "first":
            window.doubles_s = bounded(latency_s, tuning.window_doubles_s)
        elif found is not None and self._bounds.knows_nothing:
            window.doubles_s = bounded(latencies.median_s, tuning.window_doubles_s)
        if found == "no sooner":
            why = "fewer at once are answered no sooner"
            window.search(now, max(width, tuning.least_window), window.doubles_s, why)
        elif found == "slow":
            why = f"answers take {latencies.median_s:.1f} s, and no more of them come a second"
            self._shrink(now, width, why)

    def _shrink(self, now: float, least: float, why: str) -> None:
        width = max(self._tuning.least_window, least, self._tuning.shrunk * self.in_flight)
        self._bounds.window.learn(now, width, max(15.0, 5 * self._latencies.median_s), why)

    def note_quotas(self, now: float, quotas: Quotas) -> None:
        """What the server says about its allowances."""
        self._allowance.note_quotas(now, quotas, self.in_flight, self._tokens_under_way)

    def note_failure(self, sent: Sent, now: float, cause: str) -> None:
        """A request failed otherwise than by a refusal."""
        tuning = self._tuning
        self._end(sent, None)
        self._failures_in_a_row += 1
        if self._spare and self._failures_in_a_row >= tuning.dead_after:
            if self.dead:
                self._probe_after_s = min(tuning.probe_s[1], 2 * self._probe_after_s)
            else:
                why = f"left out after {self._failures_in_a_row} failures in a row ({cause})"
                self.history.note(now, "window", self._bounds.window.value, 0.0, why)
            self.dead = True
            self._probe_s = now + self._probe_after_s
        if self._adaptive and cause in _OVERLOADED and sent.at_s > self._strained_s:
            self._strain += 1
            if self._strain >= tuning.strain:
                self._strain, self._strained_s = 0.0, now
                self._shrink(now, 0.0, f"failures that tell of too much at once ({cause})")

    def note_refusal(self, sent: Sent, now: float, retry_after_s: float | None) -> None:
        """A request was refused for now."""
        self._advance(now)
        self._end(sent, 0.0)
        self._revive(now)
        if retry_after_s is not None:
            self._bounds.pause(now, retry_after_s, "the server's Retry-After")
        if self._adaptive and self._bounds.note_refusal(
            now, sent.at_s, self.in_flight, retry_after_s
        ):
            self._credit = 0.0

    def _end(self, sent: Sent, used: float | None) -> None:
        self.in_flight -= 1
        self._tokens_under_way -= sent.tokens
        if used is not None:
            self._allowance.correct_tokens(used - sent.tokens)

    def _revive(self, now: float) -> None:
        if self.dead:
            why = "the server answers again"
            self.history.note(now, "window", 0.0, self._bounds.window.value, why)
        self.dead, self._failures_in_a_row, self._has_answered = False, 0, True
