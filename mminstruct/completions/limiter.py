"""Limits on what is sent: how fast, how many at once, and what a run may cost.

A `Limiter` learns what one server takes, from its answers and refusals alone. It bounds two things,
the requests in flight (window) and the requests per second (pace):

- both begin low and double, the window with each usual latency, until something is refused;
- a refusal (429) bounds the one that stood in the way of more. From then on a bound goes along a
  cubic curve about what was last known to be too much: fast towards it, slowly past it, and ever
  faster from there on, so that a capacity that has risen is found and one that hasn't costs a
  refusal in some hundred requests;
- how much a server takes is seen in what it accepted between two refusals, at both of which its
  allowance was used up, whatever burst it grants;
- refusals of requests that were sent before the last one are the same event;
- some servers refuse now and then without a reason. After some refusals in quick succession more is
  sent for once; where more is taken then, refusals bound nothing until clearly more are refused;
- a Retry-After holds back everything, and what follows comes at the learnt pace, not as a herd;
- timeouts and a median latency that has doubled without more answers for it shrink the window. A
  median doesn't see a few slow answers.

It is a state machine without a clock of its own: tests run hours of it in virtual time. A `Gate`
lets requests out to one or more servers as their limiters allow. A `Budget` bounds the bill.

**Source:** Ha, Rhee and Xu, "CUBIC: a new TCP-friendly high-speed TCP variant" (2008), for the
curve; https://platform.openai.com/docs/guides/rate-limits for the headers.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field

from mminstruct.completions.buckets import Bucket, told_bucket
from mminstruct.transport import Quotas

_START_IN_FLIGHT = 64.0
_START_PER_S = 100.0
_PACE_DOUBLES_S = 0.5
_WINDOW_DOUBLES_S = (0.25, 60.0)
# The curve: from 12 % below what is known to it, and by as much beyond in the same time again. That
# time is what 50 requests take, and at least 8 times what a refusal costs.
_DEPTH = 0.12
_CURVE_REQUESTS = 50.0
_CURVE_PAUSES = 8.0
_CURVE_S = 0.7
# The first refusal tells least; where it costs a pause, another one is put off for longer.
_CURVE_PAUSES_FIRST = 20.0
_FIRST_SHARE = 0.95
_LEAST_FIRST_PER_S = 10.0
# What is sent of what a server seems to take: a refusal that doesn't say when to come again is
# guessed about, and costs more of them.
_SHARE = 0.98
_SHARE_TOLD = 0.99
# Fewer accepted requests between two refusals tell nothing, or after some refusals in a row little.
_TELLING = 6
_LEAST_CUT = 0.5
_SENT_KEPT = 1500
_SENT_AT_ONCE_S = 0.05
_LONGEST_PAUSE_S = 60.0
# Quick refusals before a trial, how many times as much is sent in it, how many requests at least in
# the time of a Retry-After (or pauses would hide what is taken), how many times as much has to be
# taken then, and by how many requests more, as something may have been left of an allowance.
_QUICK = 3
_TRIAL = 3.0
_TRIAL_LEAST = 20.0
_WORTH = 1.3
_LEFT = 4
# A trial that is undecided has failed after so many refusals.
_TRIAL_ENDS = 10
_TRIAL_SENT = 1000
# Refusals without a trial: one that has failed doubles them.
_UNTRIED = 20
# Refusals after which it is looked at again whether they have no reason, how much more of all may
# be refused than before, and at all, and how many in a row without a pause.
_SPELL = 20
_MORE = 0.15
_MOSTLY = 0.5
_IN_A_ROW = 3
_LEAST_SEARCH = 16.0
_STRAIN = 2.0
_STRAIN_KEPT = 0.95
_OVERLOADED = ("timeout", "http_408", "http_503", "http_504", "http_529")
_SLOWER = 2.0
_HARDLY_S = 0.2
_LEAST_ANSWERS = 16
_LEAST_WINDOW = 4.0
_SHRUNK = 0.7
_DEAD_AFTER = 3
_PROBE_S = (1.0, 30.0)


class _Bound:
    """A bound that is learnt: doubling while nothing is known, then along the curve.

    Attributes:
        known: what was too much, or None.
        doubles_s: seconds in which it doubles while nothing is known.
        curve_s: seconds to reach what is known.
    """

    __slots__ = ("_clock_s", "_start", "curve_s", "doubles_s", "known")

    def __init__(self, start: float, doubles_s: float) -> None:
        self.known: float | None = None
        self.curve_s = 0.0
        self.search(start, doubles_s)

    def search(self, start: float, doubles_s: float) -> None:
        """Double from here on."""
        self._start, self.doubles_s, self._clock_s, self.known = start, doubles_s, 0.0, None

    def learn(self, known: float, curve_s: float, *, sure: bool = True) -> None:
        """Follow the curve about this from here on; about a mere guess, from near to it."""
        self.known, self.curve_s = known, curve_s
        self._clock_s = 0.0 if sure else 0.7 * curve_s

    def advance(self, seconds: float) -> None:
        """Let time go by in which it stood in the way of more."""
        self._clock_s += seconds

    @property
    def value(self) -> float:
        """The bound as of now."""
        if self.known is None:
            return self._start * math.pow(2.0, min(30.0, self._clock_s / self.doubles_s))
        return self.known * (1 + _DEPTH * (self._clock_s / self.curve_s - 1) ** 3)


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that was let out.

    Attributes:
        at_s: when.
        in_flight: with it.
        tokens: that were taken for it.
        server: to which of the gate's.
    """

    at_s: float
    in_flight: int
    tokens: float = 0.0
    server: int = 0


@dataclass(slots=True)
class _Trial:
    """A time in which more is sent than seemed to be taken.

    Attributes:
        since_s: its begin.
        worth_per_s: requests a second that would be more than was taken before.
        before: the bounds of window and pace.
        sent_s: when something was sent.
        refused: how much of it was refused by now.
    """

    since_s: float
    worth_per_s: float
    before: tuple[_Bound, _Bound]
    sent_s: list[float] = field(default_factory=list)
    refused: int = 0


@dataclass(slots=True)
class _Vain:
    """A time in which refusals don't bound anything, for as long as they don't become more.

    Attributes:
        sent: in this spell.
        refused: in this spell.
        sent_before: in the spells before.
        refused_before: in the spells before.
    """

    sent: int = 0
    refused: int = 0
    sent_before: int = 0
    refused_before: int = 0

    def is_over(self) -> bool:
        """Whether a spell has come to its end in which clearly more was refused."""
        if self.refused < _SPELL:
            return False
        usual = self.refused_before / self.sent_before if self.sent_before else 1.0
        over = self.refused / max(1, self.sent) > min(_MOSTLY, usual + _MORE)
        self.sent_before += self.sent
        self.refused_before += self.refused
        self.sent = self.refused = 0
        return over


class Limiter:
    """What one server takes.

    Args:
        most: in flight at most.
        adaptive: whether to learn; else only pauses are obeyed.
        spare: whether there are other servers, so that this one can be left out when it is dead.

    Attributes:
        in_flight: requests without an end yet.
        dead: whether it is left out, but for a probe now and then.
    """

    def __init__(self, most: int, *, adaptive: bool = True, spare: bool = False) -> None:
        self.in_flight = 0
        self.dead = False
        self._most = most
        self._adaptive = adaptive
        self._spare = spare
        self._window = _Bound(_START_IN_FLIGHT if adaptive else most, _WINDOW_DOUBLES_S[0])
        self._pace = _Bound(_START_PER_S, _PACE_DOUBLES_S)
        self._in_the_way: _Bound | None = None
        self._credit = 1.0
        self._now_s: float | None = None
        self._resume_s = -math.inf
        # Since the last refusal that told something:
        self._since_s = 0.0
        self._paused_s = 0.0
        self._accepted = self._accepted_then = 0
        self._refused_s = -math.inf
        self._refusals_in_a_row = 0
        self._told_nothing_yet = True
        # Accepted before each of the last refusals in quick succession, and in how many seconds.
        self._quick: list[tuple[int, float]] = []
        self._trial_after = _QUICK
        # The same of all refusals since a trial, and how many there may be.
        self._untried: list[tuple[int, float]] = []
        self._untried_most = _UNTRIED
        self._trial: _Trial | None = None
        self._vain: _Vain | None = None
        self._in_flight_then = -math.inf
        self._proven = (0, 0)
        self._sent_s: deque[float] = deque(maxlen=_SENT_KEPT)
        self._strain = 0.0
        self._strained_s = -math.inf
        self._latencies: list[float] = []
        self._latency_s = 0.0
        self._weighed_s = 0.0
        self._weighed_width = _START_IN_FLIGHT
        # Median latency, answers a second, and how many were in flight for them.
        self._best: tuple[float, float, float] | None = None
        self._failures_in_a_row = 0
        self._probe_s = -math.inf
        self._probe_after_s = _PROBE_S[0]
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self._tokens_under_way = 0.0
        self._allowed_s = -math.inf

    @property
    def room(self) -> float:
        """Requests that could be in flight beyond those that are."""
        return min(self._most, int(self._window.value)) - self.in_flight

    @property
    def counts_tokens(self) -> bool:
        """Whether the server told an allowance of tokens."""
        return self._tokens is not None

    def paused_s(self, now: float) -> float:
        """Seconds that are left of a pause that the server asked for."""
        return max(0.0, self._resume_s - now)

    def words(self, now: float) -> str | None:
        """What holds requests back, for the progress line."""
        if self._resume_s - now > 1.0:
            return f"paused {self._resume_s - now:.0f}s"
        if self._allowed_s - now > 1.0:
            return f"allowance used up for {self._allowed_s - now:.0f}s"
        if self._in_the_way is None or self._in_the_way.known is None:
            return None
        if self._in_the_way is self._window:
            return f"at most {int(self._window.value)} at once"
        return f"paced {self._pace.value:.1f}/s"

    def wait_s(self, now: float, tokens: float = 0.0) -> float:
        """Seconds until a request may be sent: 0 is now, infinite is not before another's end."""
        self._advance(now)
        self._in_the_way = None
        if now < self._resume_s:
            return self._resume_s - now
        if self.dead:
            return math.inf if self.in_flight else max(0.0, self._probe_s - now)
        if self.in_flight >= self._most:
            return math.inf
        if not self._adaptive:
            return 0.0
        if self.room < 1:
            self._in_the_way = self._window
            # It grows with time.
            return 0.05
        if self._credit < 1 - 1e-9:  # what rounding leaves
            self._in_the_way = self._pace
            return (1 - self._credit) / self._pace.value
        waits = [0.0]
        if self._requests is not None:
            waits.append(self._requests.wait_s(now, 1.0))
        if self._tokens is not None:
            waits.append(self._tokens.wait_s(now, tokens))
        self._allowed_s = now + max(waits)
        return max(waits)

    def _advance(self, now: float) -> None:
        if self._now_s is None:
            self._now_s = self._since_s = self._weighed_s = now
        before, self._now_s = self._now_s, now
        passed_s = now - before - max(0.0, min(self._resume_s, now) - before)
        pace = self._pace.value
        at_once = max(1.0, _SENT_AT_ONCE_S * pace)
        self._credit = min(at_once, self._credit + pace * passed_s)
        if self._in_the_way is not None:
            # While nothing is known neither holds up the search for the other, and each goes no
            # further than twice what the other lets through.
            width = self._window.value
            latency_s = self._best[0] if self._best is not None else math.inf
            for bound, most in (
                (self._window, 2 * self._weighed_width),
                (self._pace, max(_START_PER_S, 2 * width / latency_s)),
            ):
                if bound.value < most if bound.known is None else bound is self._in_the_way:
                    bound.advance(passed_s)

    def sent(self, now: float, tokens: float = 0.0, server: int = 0) -> Sent:
        """Note that a request is sent."""
        self._credit -= 1
        self.in_flight += 1
        self._accepted += 1
        self._sent_s.append(now)
        if self._trial is not None:
            self._trial.sent_s.append(now)
            if len(self._trial.sent_s) >= _TRIAL_SENT:  # next to nothing spoke against it
                self._trial = None
        if self._vain is not None:
            self._vain.sent += 1
        self._tokens_under_way += tokens
        if self._requests is not None:
            self._requests.take(1.0)
        if self._tokens is not None:
            self._tokens.take(tokens)
        return Sent(now, self.in_flight, tokens, server)

    def answered(self, sent: Sent, now: float, *, used: float | None = None) -> None:
        """A request was answered, with so many tokens; one refused for good counts as well."""
        self._ended(sent, used)
        self.dead, self._failures_in_a_row, self._probe_after_s = False, 0, _PROBE_S[0]
        self._strain *= _STRAIN_KEPT
        if sent.at_s > self._refused_s:
            self._refusals_in_a_row = 0
            self._proven = (self._proven[0], max(self._proven[1], sent.in_flight))
        if self._adaptive:
            self._latencies.append(now - sent.at_s)
            if len(self._latencies) >= _LEAST_ANSWERS:
                self._weigh(now)
            elif self._best is None:
                latency_s = max(1e-6, now - sent.at_s)
                self._best = (latency_s, 1 / latency_s, 1.0)
                self._window.doubles_s = _bounded(latency_s, _WINDOW_DOUBLES_S)

    def told(self, now: float, quotas: Quotas) -> None:
        """What the server says about its allowances."""
        self._requests = told_bucket(now, self._requests, quotas.requests, self.in_flight)
        self._tokens = told_bucket(now, self._tokens, quotas.tokens, self._tokens_under_way)

    def failed(self, sent: Sent, now: float, cause: str) -> None:
        """A request failed otherwise than by a refusal."""
        self._ended(sent, None)
        self._failures_in_a_row += 1
        if self._spare and self._failures_in_a_row >= _DEAD_AFTER:
            if self.dead:
                self._probe_after_s = min(_PROBE_S[1], 2 * self._probe_after_s)
            self.dead = True
            self._probe_s = now + self._probe_after_s
        if self._adaptive and cause in _OVERLOADED and sent.at_s > self._strained_s:
            self._strain += 1
            if self._strain >= _STRAIN:
                self._strain, self._strained_s = 0.0, now
                self._shrink()

    def refused(self, sent: Sent, now: float, retry_after_s: float | None) -> None:
        """A request was refused for now."""
        self._advance(now)
        self._ended(sent, 0.0)
        self.dead, self._failures_in_a_row = False, 0
        if retry_after_s is not None:
            self._pause(now, retry_after_s)
        if not self._adaptive:
            return
        if sent.at_s >= self._since_s:
            self._accepted -= 1
        if self._sent_s and self._sent_s[-1] >= sent.at_s:
            self._sent_s.pop()
        if self._vain is not None:
            self._vain.refused += 1
        if self._trial is not None and sent.at_s > self._refused_s:
            self._try(self._trial, sent, now)
            return
        if sent.at_s <= self._refused_s:
            return
        self._learn(now, retry_after_s)
        self._refused_s = now
        self._credit = 0.0

    def _ended(self, sent: Sent, used: float | None) -> None:
        self.in_flight -= 1
        self._tokens_under_way -= sent.tokens
        if self._tokens is not None and used is not None:
            self._tokens.take(used - sent.tokens)

    def _pause(self, now: float, seconds: float) -> None:
        until_s = max(self._resume_s, now + seconds)
        self._paused_s += until_s - max(self._resume_s, now)
        self._resume_s = until_s

    # What a refusal tells.

    def _learn(self, now: float, retry_after_s: float | None) -> None:
        if self._accepted - self._accepted_then >= 2:
            self._refusals_in_a_row = 0
        self._accepted_then = self._accepted
        enough = max(1, _TELLING - 2 * self._refusals_in_a_row)
        telling = self._accepted >= (_TELLING if now - self._since_s < 1.0 else enough)
        # It may be that too many are in flight only if there never were clearly more.
        crowded = self.in_flight >= max(4.0, 0.9 * max(self._proven))
        alike = abs(self.in_flight - self._in_flight_then) <= max(1.0, 0.07 * self.in_flight)
        self._proven = (self._proven[1], 0)
        if telling:
            self._cut(now, retry_after_s, crowded and alike)
            self._refusals_in_a_row = 0
        elif crowded and self._vain is None and abs(self.in_flight - self._in_flight_then) <= 1:
            curve_s = max(_CURVE_S, _CURVE_REQUESTS / self._pace.value, self._window.curve_s)
            self._window.learn(min(self.in_flight, self._window.value - 1), curve_s)
            self._in_flight_then = self.in_flight
        if (retry_after_s is None or self._refusals_in_a_row) and (
            self._vain is None or self._refusals_in_a_row > _IN_A_ROW
        ):
            own_s = _bounded(1 / self._pace.value, (0.1, _LONGEST_PAUSE_S))
            own_s = min(_LONGEST_PAUSE_S, own_s * 2.0 ** min(9, self._refusals_in_a_row))
            self._pause(now, max(own_s, retry_after_s or 0.0))
        self._refusals_in_a_row += 1

    def _cut(self, now: float, retry_after_s: float | None, crowded: bool) -> None:
        """Bound what stood in the way of more, and begin to count anew."""
        pace, first = self._pace.value, self._told_nothing_yet
        known = self._pace.known
        share = _SHARE if retry_after_s is None else _SHARE_TOLD
        taken = self._taken_per_s(now, share)
        lower = taken if first else min(taken, share * pace)
        if not first and self._accepted < _TELLING:
            lower = max(lower, _LEAST_CUT * pace)
        sure = known is not None and pace < 1.3 * known
        costs_s = 0.2 if retry_after_s is None else retry_after_s
        curve_s = max(
            _CURVE_S,
            _CURVE_REQUESTS / lower,
            costs_s * (_CURVE_PAUSES_FIRST if first else _CURVE_PAUSES),
        )
        if not sure and not first:
            curve_s *= 0.5
        elif first and self._accepted < 20:
            curve_s *= 0.3
        if known is not None and 0.85 < lower / known < 1.15:
            curve_s *= 2
        if self._is_vain(now, retry_after_s):
            pass
        elif self.in_flight + 1 >= int(self._window.value):
            if crowded:
                self._window.learn(min(self.in_flight, self._window.value - 1), 0.6 * curve_s)
            else:
                self._window.search(max(4.0, self.in_flight), 1.0)
            if pace > 1.02 * taken:
                self._pace.learn(max(1.02 * taken, 0.5 * pace), curve_s, sure=sure)
        else:
            self._pace.learn(lower, curve_s, sure=sure)
        self._in_flight_then = self.in_flight
        self._told_nothing_yet = False
        self._since_s = now
        self._accepted = self._accepted_then = 0
        # A pause that goes on belongs to what comes.
        self._paused_s = max(0.0, self._resume_s - now)

    def _is_vain(self, now: float, retry_after_s: float | None) -> bool:
        """Whether a lower bound is no use: some servers refuse now and then without a reason.

        Between refusals a limited server has taken what it takes, whatever the pace. So after some
        refusals in quick succession more is sent for once: what takes clearly more then isn't
        limited, or not there.
        """
        if self._vain is not None:
            if not self._vain.is_over():
                return True
            self._vain = None
        span = self._accepted, now - self._since_s
        if span[1] < self._pace.curve_s:
            self._quick.append(span)
        else:
            self._quick, self._trial_after = [], _QUICK
        self._untried.append(span)
        # Far too soon for a limit that was just found.
        very = sum(count < _CURVE_REQUESTS / 3 for count, _ in self._quick)
        if len(self._quick) + 0.5 * very >= self._trial_after:
            spans = self._quick
        elif len(self._untried) >= self._untried_most:
            spans, self._untried_most = self._untried, 2 * self._untried_most
        else:
            return False
        worth_per_s = _WORTH * _per_s(spans[-_QUICK:])
        self._quick, self._untried = [], []
        self._trial = _Trial(now, worth_per_s, (copy(self._window), copy(self._pace)))
        least_per_s = 0.0 if retry_after_s is None else _TRIAL_LEAST / max(1.0, retry_after_s)
        for bound, least in ((self._window, 0.0), (self._pace, least_per_s)):
            bound.learn(max(least, _TRIAL * bound.value), bound.curve_s or _CURVE_S, sure=False)
        return True

    def _try(self, trial: _Trial, sent: Sent, now: float) -> None:
        """Judge a trial by a refusal in it."""
        trial.refused += 1
        taken = bisect_right(trial.sent_s, sent.at_s) - trial.refused
        worth = trial.worth_per_s * (sent.at_s - trial.since_s)
        if taken >= worth + _LEFT:
            self._vain = _Vain()
            self._window.search(max(_LEAST_SEARCH, self._window.value), self._window.doubles_s)
            self._pace.search(self._pace.value, _PACE_DOUBLES_S)
        elif trial.refused >= min(taken + 2, 3 if taken < worth else _TRIAL_ENDS):
            self._window, self._pace = trial.before
            self._trial_after += 1
            self._pause(now, 1 / self._pace.value)
        else:
            return
        self._trial = None
        self._refused_s = self._since_s = now
        self._accepted = self._accepted_then = 0
        self._credit = 0.0

    def _taken_per_s(self, now: float, share: float) -> float:
        """Requests a second that the server takes, as far as is known, and of these a share."""
        if self._told_nothing_yet:
            over_s = _bounded(now - self._sent_s[0] if self._sent_s else 0.0, (0.5, 1.0))
            sent = sum(at > now - over_s for at in self._sent_s)
            # What pauses cost tells nothing, and few requests little.
            least = 0.1 if self._accepted >= 20 else _LEAST_FIRST_PER_S
            return max(least, _FIRST_SHARE * sent / over_s)
        seconds = now - self._since_s
        while_sending = self._accepted / max(0.05, seconds - self._paused_s)
        return share * min(
            self._fitting(now, self._accepted / max(0.5, seconds)), 1.07 * while_sending
        )

    def _fitting(self, now: float, least: float) -> float:
        """The highest rate by which the server had granted the same burst at the last refusals.

        An allowance of some rate and burst is used up at both. What a burst must have been for a
        given rate is the most that any span before the refusal took beyond that rate.
        """
        rate = self._pace.value
        known = self._pace.known
        near = known is not None and rate < 1.3 * known and self._accepted >= 20
        least = max(least, (0.75 if near else 0.5) * rate)
        while rate > least:
            before, after = self._burst(rate, self._since_s), self._burst(rate, now)
            if before <= after + max(2.0, 0.1 * before):
                return rate
            rate *= 0.97
        return least

    def _burst(self, rate: float, end_s: float) -> float:
        most = count = 0.0
        for at_s in reversed(self._sent_s):
            if at_s <= end_s:
                count += 1
                most = max(most, count - rate * (end_s - at_s))
        return most

    # What latencies tell.

    def _weigh(self, now: float) -> None:
        """Compare the answers of some latencies' time with the best before."""
        seconds = now - self._weighed_s
        median_s = statistics.median(self._latencies)
        if seconds < median_s:
            return
        if self._told_nothing_yet:
            self._window.doubles_s = _bounded(median_s, _WINDOW_DOUBLES_S)
        self._latency_s = median_s
        per_s = len(self._latencies) / seconds
        width = per_s * sum(self._latencies) / len(self._latencies)
        self._latencies, self._weighed_s = [], now
        self._weighed_width = max(_START_IN_FLIGHT, width)
        if self._best is None:  # all answers until now were to requests sent one by one
            self._best = (median_s, per_s, width)
        best_s, best_per_s, best_width = self._best
        more, gain = width / best_width, per_s / best_per_s
        if median_s < max(_SLOWER * best_s, best_s + _HARDLY_S):
            if median_s < best_s or per_s > best_per_s:
                self._best = (min(median_s, best_s), per_s, width)
        elif (more > 1.1 and gain > more**0.5) or (more < 0.9 and gain < more**0.5):
            # Many at once are worth their latency, or fewer at once don't help against it.
            self._best = (median_s, per_s, width)
            if more < 0.9:
                self._window.search(max(best_width, _LEAST_WINDOW), self._window.doubles_s)
        else:
            self._shrink(best_width)

    def _shrink(self, least: float = 0.0) -> None:
        curve_s = max(15.0, 5 * self._latency_s)
        self._window.learn(max(_LEAST_WINDOW, least, _SHRUNK * self.in_flight), curve_s)


def _per_s(spans: Sequence[tuple[int, float]]) -> float:
    return sum(count for count, _ in spans) / sum(seconds for _, seconds in spans)


def _bounded(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
