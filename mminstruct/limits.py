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

import asyncio
import contextlib
import json
import math
import re
import statistics
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from filelock import FileLock

from mminstruct.errors import RunStopped
from mminstruct.resources import shown

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


@dataclass(frozen=True, slots=True)
class Rates:
    """What may be sent a minute, as the user knows it.

    Attributes:
        requests_per_minute: None is unknown.
        tokens_per_minute: of prompts and answers together; None is unknown.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


@dataclass(frozen=True, slots=True)
class Quota:
    """An allowance as a server tells it with an answer.

    Attributes:
        limit: how much there is when nothing is used.
        remaining: how much is left.
        reset_s: seconds until nothing is used.
    """

    limit: float
    remaining: float
    reset_s: float


@dataclass(frozen=True, slots=True)
class Quotas:
    """The allowances that a server told: of requests, and of tokens."""

    requests: Quota | None = None
    tokens: Quota | None = None


def read_quotas(headers: Mapping[str, str], now_s: float) -> Quotas | None:
    """The allowances in a response's headers, or None if there are none.

    Known are ``x-ratelimit-limit-requests`` and so on (OpenAI and who copies it), the same without
    ``-requests`` (Together), and ``anthropic-ratelimit-requests-limit``.

    Args:
        headers: of a response.
        now_s: seconds since the epoch, for resets that are points in time.
    """
    found = {kind: _quota(headers, kind, now_s) for kind in ("requests", "tokens")}
    return Quotas(**found) if any(found.values()) else None


def _quota(headers: Mapping[str, str], kind: str, now_s: float) -> Quota | None:
    spellings = [f"x-ratelimit-{{}}-{kind}", f"anthropic-ratelimit-{kind}-{{}}"]
    if kind == "requests":
        spellings.append("x-ratelimit-{}")
    for spelling in spellings:
        limit, remaining = (
            _number(headers.get(spelling.format(n))) for n in ("limit", "remaining")
        )
        reset_s = read_seconds(headers.get(spelling.format("reset")), now_s)
        if limit and remaining is not None and reset_s is not None:
            return Quota(limit, min(remaining, limit), reset_s)
    return None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


_LONGEST_TOLD_S = 366 * 86400.0
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def read_seconds(text: str | None, now_s: float) -> float | None:
    """``6m0s``, ``12ms``, seconds, seconds or milliseconds since the epoch, or an ISO time."""
    if not text:
        return None
    number = _number(text)
    if number is not None:
        if number < 1e8:
            return number
        return max(0.0, (number / 1000 if number > 1e11 else number) - now_s)
    parts = _PART.findall(text)
    if parts and "".join(value + unit for value, unit in parts) == text:
        return sum(float(value) * _UNITS_S[unit] for value, unit in parts)
    try:
        when_s = datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    return max(0.0, when_s - now_s)


def until(seconds: float) -> str:
    """When a wait ends, as a clock shows it: ``07:00``, or with the day if that is another."""
    now = datetime.now()
    end = now + timedelta(seconds=min(seconds, _LONGEST_TOLD_S))
    return end.strftime("%H:%M" if end.date() == now.date() else "%Y-%m-%d %H:%M")


class _Bucket:
    """A known allowance that refills continuously.

    What needs more than it holds is let through when it is full, and paid for afterwards.
    """

    __slots__ = ("_at_s", "_capacity", "_level", "_per_s")

    def __init__(self, per_s: float, capacity: float) -> None:
        self._per_s, self._capacity = per_s, capacity
        self._level = capacity
        self._at_s: float | None = None

    def wait_s(self, now: float, amount: float) -> float:
        """Seconds until so much may be taken."""
        if self._at_s is not None:
            grown = self._level + (now - self._at_s) * self._per_s
            self._level = min(self._capacity, grown)
        self._at_s = now
        missing = min(amount, self._capacity) - self._level
        # What rounding leaves missing would take no time to refill.
        return missing / self._per_s if missing > 1e-9 else 0.0

    def take(self, amount: float) -> None:
        """Use some; a negative amount gives it back."""
        self._level = min(self._capacity, self._level - amount)

    def told(self, now: float, quota: Quota, under_way: float) -> None:
        """Correct it by what the server says, who may have seen what is under way or not."""
        self.wait_s(now, 0.0)
        self._capacity = quota.limit
        used = quota.limit - quota.remaining
        if used and quota.reset_s > 0.1:
            self._per_s = used / quota.reset_s
        self._level = min(max(self._level, quota.remaining - under_way), quota.remaining)


def _declared(per_minute: float | None) -> _Bucket | None:
    """An allowance of which no more than a second's worth is used at once."""
    return _Bucket(per_minute / 60, max(1.0, per_minute / 60)) if per_minute else None


def _told(
    now: float, bucket: _Bucket | None, quota: Quota | None, under_way: float
) -> _Bucket | None:
    if quota is None:
        return bucket
    if bucket is None:
        bucket = _Bucket(quota.limit / 60, quota.limit)
    bucket.told(now, quota, under_way)
    return bucket


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
        self._requests: _Bucket | None = None
        self._tokens: _Bucket | None = None
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
        self._requests = _told(now, self._requests, quotas.requests, self.in_flight)
        self._tokens = _told(now, self._tokens, quotas.tokens, self._tokens_under_way)

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


@dataclass(slots=True)
class _Waiter:
    let_out: asyncio.Future[Sent]
    tokens: float
    avoid: Collection[int]


class Gate:
    """Lets requests out to the servers with most room, in the order they came.

    To be used on one event loop.

    Args:
        limiters: one for each server.
        most: in flight at most, over all servers.
        rates: what may be sent a minute to all of them together.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        limiters: Sequence[Limiter],
        most: int,
        rates: Rates | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        rates = rates or Rates()
        self._limiters = limiters
        self._most = most
        self._requests = _declared(rates.requests_per_minute)
        self._tokens = _declared(rates.tokens_per_minute)
        self._clock = clock
        self._waiting: deque[_Waiter] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_s = math.inf
        self._closed: Exception | None = None

    @property
    def in_flight(self) -> int:
        """Requests that were let out and have not come to an end."""
        return sum(limiter.in_flight for limiter in self._limiters)

    @property
    def counts_tokens(self) -> bool:
        """Whether it matters how many tokens a request may take."""
        return self._tokens is not None or any(x.counts_tokens for x in self._limiters)

    def words(self) -> str:
        """What holds requests back, for the progress line; empty if nothing does."""
        dead = sum(limiter.dead for limiter in self._limiters)
        if dead:
            return f"{dead} of {len(self._limiters)} servers out"
        now = self._clock()
        return next(filter(None, (limiter.words(now) for limiter in self._limiters)), "")

    def others(self, avoid: Collection[int]) -> bool:
        """Whether there are servers besides these that are not left out."""
        return any(not x.dead for n, x in enumerate(self._limiters) if n not in avoid)

    def resumes_s(self, avoid: Collection[int]) -> float:
        """Seconds for which all servers but these have to be left alone; infinite without any."""
        now = self._clock()
        others = (x for n, x in enumerate(self._limiters) if n not in avoid and not x.dead)
        return min((x.paused_s(now) for x in others), default=math.inf)

    async def enter(
        self, *, tokens: float = 0.0, avoid: Collection[int] = (), first: bool = False
    ) -> Sent:
        """Wait until a request may be sent, and to which server; tell of its end afterwards.

        Args:
            tokens: that prompt and answer may take together.
            avoid: servers to leave alone if there are others.
            first: whether to go before those who wait.

        Raises:
            Exception: what the gate was closed with.
        """
        if self._closed is not None:
            raise self._closed
        waiter = _Waiter(asyncio.get_running_loop().create_future(), tokens, avoid)
        if first:
            self._waiting.appendleft(waiter)
        else:
            self._waiting.append(waiter)
        if self._waiting[0] is waiter or self._waiting[0].avoid:
            self._let_out()
        try:
            return await waiter.let_out
        except asyncio.CancelledError:
            if waiter.let_out.done() and not waiter.let_out.cancelled():
                self.failed(waiter.let_out.result(), "not_sent")
            raise

    def close(self, error: Exception) -> None:
        """Let nothing out any more: whoever waits gets the error."""
        self._closed = error
        if self._timer is not None:
            self._timer.cancel()
        for waiter in self._waiting:
            if not waiter.let_out.done():
                waiter.let_out.set_exception(error)
        self._waiting.clear()

    def answered(self, sent: Sent, *, used: float | None, quotas: Quotas | None = None) -> None:
        """As `Limiter.answered` and `Limiter.told`."""
        now, limiter = self._clock(), self._limiters[sent.server]
        limiter.answered(sent, now, used=used)
        if self._tokens is not None and used is not None:
            self._tokens.take(used - sent.tokens)
        if quotas is not None:
            limiter.told(now, quotas)
        self._let_out()

    def refused(self, sent: Sent, retry_after_s: float | None, quotas: Quotas | None) -> None:
        """As `Limiter.refused` and `Limiter.told`."""
        now, limiter = self._clock(), self._limiters[sent.server]
        limiter.refused(sent, now, retry_after_s)
        if quotas is not None:
            limiter.told(now, quotas)
        self._let_out()

    def failed(self, sent: Sent, cause: str) -> None:
        """As `Limiter.failed`."""
        self._limiters[sent.server].failed(sent, self._clock(), cause)
        self._let_out()

    def _let_out(self) -> None:
        now = self._clock()
        # Whoever avoids servers and waits for others holds up nobody who doesn't.
        passed: list[_Waiter] = []
        while self._waiting:
            waiter = self._waiting[0]
            if waiter.let_out.done():  # cancelled
                self._waiting.popleft()
                continue
            server, wait_s = self._choose(now, waiter)
            shared_s = self._shared_s(now, waiter)
            if max(wait_s, shared_s) > 0:
                self._wake_at(now, now + max(wait_s, shared_s))
                # What all share would never suffice for one that is passed over.
                if not waiter.avoid or shared_s > 0 or len(self._limiters) == 1:
                    break
                passed.append(self._waiting.popleft())
                continue
            self._waiting.popleft()
            for bucket, amount in ((self._requests, 1.0), (self._tokens, waiter.tokens)):
                if bucket is not None:
                    bucket.take(amount)
            waiter.let_out.set_result(self._limiters[server].sent(now, waiter.tokens, server))
        self._waiting.extendleft(reversed(passed))

    def _choose(self, now: float, waiter: _Waiter) -> tuple[int, float]:
        """The server to send a request to, and seconds until that takes it."""
        if len(self._limiters) == 1:
            server, wait_s = 0, self._limiters[0].wait_s(now, waiter.tokens)
        else:
            every = range(len(self._limiters))
            servers = [n for n in every if n not in waiter.avoid] or list(every)
            waits = {n: self._limiters[n].wait_s(now, waiter.tokens) for n in servers}
            server = min(servers, key=lambda n: (waits[n], -self._limiters[n].room))
            wait_s = waits[server]
        return server, wait_s

    def _shared_s(self, now: float, waiter: _Waiter) -> float:
        """Seconds until what all servers share lets a request out."""
        wait_s = math.inf if len(self._limiters) > 1 and self.in_flight >= self._most else 0.0
        for bucket, amount in ((self._requests, 1.0), (self._tokens, waiter.tokens)):
            if bucket is not None:
                wait_s = max(wait_s, bucket.wait_s(now, amount))
        return wait_s

    def _wake_at(self, now: float, when_s: float) -> None:
        """Look again then, or before; loops differ in what their timers tell."""
        if when_s >= self._wakes_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_s = when_s
        self._timer = asyncio.get_running_loop().call_later(when_s - now, self._wake)

    def _wake(self) -> None:
        self._wakes_s = math.inf
        self._let_out()


@dataclass(slots=True)
class Spent:
    """What a run has paid for, and what may still be added by the requests in flight.

    Attributes:
        requests: attempts that were paid for.
        usd: their price.
        in_flight: attempts whose end isn't known yet.
        reserved_usd: what those cost at most.
    """

    requests: int = 0
    usd: float = 0.0
    in_flight: int = 0
    reserved_usd: float = 0.0

    def add(self, most_usd: float) -> None:
        """One more attempt of at most this price is in flight."""
        self.in_flight += 1
        self.reserved_usd += most_usd


@dataclass
class Budget:
    """The most that a run may ask for; one object for all its splits.

    An attempt is admitted only if what was spent, the worst case of all in flight and its own
    fit, so that the bound holds whatever the answers' lengths.

    Attributes:
        max_requests: attempts that are paid for at most; None is any number.
        max_cost_usd: their price at most; None is any.
        usd_per_prompt_token: price.
        usd_per_completion_token: price.
        ledger: file that the totals are kept in where several processes share them; else None.
    """

    max_requests: int | None = None
    max_cost_usd: float | None = None
    usd_per_prompt_token: float = 0.0
    usd_per_completion_token: float = 0.0
    ledger: Path | None = None
    _spent: Spent = field(default_factory=Spent, init=False)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        """All but the lock, which is each process's own."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    @property
    def bounded(self) -> bool:
        """Whether there is a bound at all."""
        return self.max_requests is not None or self.max_cost_usd is not None

    @property
    def spent(self) -> Spent:
        """The totals by now."""
        with self._totals() as totals:
            return totals

    def cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The price of an answer."""
        return (
            prompt_tokens * self.usd_per_prompt_token
            + completion_tokens * self.usd_per_completion_token
        )

    @property
    def left(self) -> float:
        """The share of the bound that is neither spent nor reserved, from 1 down to 0."""
        spent, shares = self.spent, [1.0]
        for bound, used in (
            (self.max_requests, spent.requests + spent.in_flight),
            (self.max_cost_usd, spent.usd + spent.reserved_usd),
        ):
            if bound is not None:
                shares.append(max(0.0, 1.0 - used / bound) if bound else 0.0)
        return min(shares)

    def admit(self, most_usd: float) -> bool:
        """Whether one more attempt of at most this price fits; if so, it is in flight now."""
        with self._totals() as totals:
            if self.max_requests is not None and (
                totals.requests + totals.in_flight >= self.max_requests
            ):
                return False
            most = totals.usd + totals.reserved_usd + most_usd
            # Sums of prices are exact to the picodollar at best.
            if self.max_cost_usd is not None and most > self.max_cost_usd + 1e-12:
                return False
            totals.add(most_usd)
        return True

    def count(self, most_usd: float) -> None:
        """One more attempt is in flight, whether it fits or not: it was sent before."""
        with self._totals() as totals:
            totals.add(most_usd)

    def settle(self, most_usd: float, paid_usd: float | None) -> None:
        """The end of an admitted attempt: its price, or None if it cost nothing."""
        with self._totals() as totals:
            totals.in_flight -= 1
            totals.reserved_usd = max(0.0, totals.reserved_usd - most_usd)
            if paid_usd is not None:
                totals.requests += 1
                totals.usd += paid_usd

    def reached(self, what: str = "the next request would exceed") -> str:
        """The bound, in words, what was spent and how to go on."""
        bounds = []
        if self.max_requests is not None:
            bounds.append(f"max_requests {self.max_requests:,}")
        if self.max_cost_usd is not None:
            bounds.append(f"max_cost ${self.max_cost_usd:,.4g}")
        spent = self.spent
        paid = f"{spent.requests:,} requests"
        if self.max_cost_usd is not None or spent.usd:
            paid += f" for ${spent.usd:,.4f}"
        return (
            f"{what} {' or '.join(bounds)}: this run paid for {paid}; "
            "run again with a fresh or higher bound to go on from there"
        )

    @contextlib.contextmanager
    def _totals(self) -> Iterator[Spent]:
        """The totals, to be read and changed by nobody else meanwhile."""
        with self._lock:
            if self.ledger is None:
                yield self._spent
                return
            try:
                with FileLock(self.ledger.with_suffix(".lock")):
                    totals = Spent()
                    if self.ledger.exists():
                        totals = Spent(**json.loads(self.ledger.read_text("utf-8")))
                    yield totals
                    # At one blow: whoever is killed here leaves a whole one.
                    new = self.ledger.with_suffix(".new")
                    new.write_text(json.dumps(asdict(totals)), encoding="utf-8")
                    new.replace(self.ledger)
            except OSError as error:
                raise RunStopped(
                    f"what was spent can't be written to {shown(self.ledger)}: {error.strerror}; "
                    "the bound could not be kept to"
                ) from error
