"""How many may be in flight and how fast they go to one server, as its refusals teach it.

Both bounds double until something is refused (429), which bounds the one that stood in the way of
more. From then on a bound goes along a cubic curve about what was last known to be too much: fast
towards it, slowly past it, and ever faster from there on. So a capacity that has risen is found,
and one that hasn't costs a refusal in some hundred requests. How much a server takes is seen in
what it accepted between two refusals, at both of which its allowance was used up.

**Source:** Ha, Rhee and Xu, "CUBIC: a new TCP-friendly high-speed TCP variant" (2008).
"""

from __future__ import annotations

import logging
import math
from collections import deque
from copy import copy
from dataclasses import dataclass

from mminstruct.completions.noise import Noise
from mminstruct.completions.tuning import Tuning, bounded

_log = logging.getLogger(__name__)

_CHANGES_KEPT = 200
_UNITS = {"pace": "/s", "window": " at once", "pause": " s"}


@dataclass(frozen=True, slots=True)
class Change:
    """Something that a limiter changed."""

    at_s: float  # by the limiter's clock
    what: str  # "pace" (requests a second), "window" (requests in flight) or "pause" (seconds)
    before: float
    after: float
    why: str  # in words


class History:
    """The last changes of the limiter of a server: why a run is slow, which ``--verbose`` shows."""

    def __init__(self, server: str = "") -> None:
        self.changes: deque[Change] = deque(maxlen=_CHANGES_KEPT)
        self._server = f"{server}: " if server else ""

    def note(self, now: float, what: str, before: float, after: float, why: str) -> None:
        """Keep and log a `Change`."""
        self.changes.append(Change(now, what, before, after, why))
        words, unit = "%s%s %.1f -> %.1f%s: %s", _UNITS[what]
        _log.debug(words, self._server, what, before, after, unit, why)


class Bound:
    """A bound that is learnt: doubling while nothing is known, then along the curve.

    Attributes:
        known: what was too much, or None.
        doubles_s: seconds in which it doubles while nothing is known.
        curve_s: seconds to reach what is known.
    """

    def __init__(
        self, name: str, start: float, doubles_s: float, tuning: Tuning, history: History
    ) -> None:
        self._name, self._tuning, self._history = name, tuning, history
        self._start, self.doubles_s, self._clock_s = start, doubles_s, 0.0
        self.known: float | None = None
        self.curve_s = 0.0

    def search(self, now: float, start: float, doubles_s: float, why: str) -> None:
        """Double from here on."""
        before, self.known = self.value, None
        self._start, self.doubles_s, self._clock_s = start, doubles_s, 0.0
        self.note_change(now, before, why)

    def learn(
        self, now: float, known: float, curve_s: float, why: str, *, sure: bool = True
    ) -> None:
        """Follow the curve about this from here on; about a mere guess, from near to it."""
        before, self.known, self.curve_s = self.value, known, curve_s
        self._clock_s = 0.0 if sure else self._tuning.curve_guess * curve_s
        self.note_change(now, before, why)

    def note_change(self, now: float, before: float, why: str) -> None:
        """Note that it was another one."""
        self._history.note(now, self._name, before, self.value, why)

    def advance(self, seconds: float) -> None:
        """Let time go by in which it stood in the way of more."""
        self._clock_s += seconds

    @property
    def value(self) -> float:
        """The bound as of now."""
        if self.known is None:
            return self._start * math.pow(2.0, min(30.0, self._clock_s / self.doubles_s))
        way = self._clock_s / self.curve_s - 1
        return self.known * (1 + self._tuning.curve_depth * way**3)


class Bounds:
    """What one server takes; of its `Limiter`, which alone calls it.

    Attributes:
        window: requests in flight.
        pace: requests a second.
        since_s: time of the last refusal that told something, or of the first request.
        resume_s: when a pause ends.
        refused_s: time of the last refusal that was news: of requests sent later.
        knows_nothing: whether there was none yet that told something.
    """

    def __init__(self, start: float, tuning: Tuning, history: History) -> None:
        self._tuning, self._history = tuning, history
        self.window = Bound("window", start, tuning.window_doubles_s[0], tuning, history)
        self.pace = Bound("pace", tuning.start_per_s, tuning.pace_doubles_s, tuning, history)
        self.resume_s = self.refused_s = -math.inf
        self.knows_nothing = True
        # Since the last refusal that told something:
        self.since_s = self._paused_s = 0.0
        self._accepted = self._accepted_then = 0
        self._refusals_in_a_row = 0
        self._noise = Noise(tuning)
        self._before_trial = self.window, self.pace
        self._in_flight_then = -math.inf
        # Most in flight that was answered, before the last refusal and since.
        self._proven = (0, 0)
        self._sent_s: deque[float] = deque(maxlen=tuning.sent_kept)

    @property
    def proven(self) -> int:
        """Most in flight that was answered."""
        return max(self._proven)

    def note_sent(self, now: float) -> None:
        """Note that a request is sent."""
        self._accepted += 1
        self._sent_s.append(now)
        self._noise.note_sent(now)

    def note_answer(self, sent_s: float, in_flight: int) -> None:
        """Note that a request was answered, which was sent then with so many in flight."""
        if sent_s > self.refused_s:
            self._refusals_in_a_row = 0
            self._proven = (self._proven[0], max(self._proven[1], in_flight))

    def pause(self, now: float, seconds: float, why: str) -> None:
        """Send nothing for so long."""
        before_s = max(self.resume_s, now)
        self.resume_s = max(self.resume_s, now + seconds)
        if self.resume_s > before_s:
            self._paused_s += self.resume_s - before_s
            self._history.note(now, "pause", before_s - now, self.resume_s - now, why)

    def note_refusal(
        self, now: float, sent_s: float, in_flight: int, retry_after_s: float | None
    ) -> bool:
        """Learn from a refusal; whether it tells something.

        What was sent before the last one is the same event.
        """
        if sent_s >= self.since_s:
            self._accepted -= 1
        if self._sent_s and self._sent_s[-1] >= sent_s:
            self._sent_s.pop()
        self._noise.note_refusal()
        if sent_s <= self.refused_s:
            return False
        if not self._noise.tries:
            self._learn(now, in_flight, retry_after_s)
        elif self._ends_trial(now, sent_s):
            self.since_s = now
            self._accepted = self._accepted_then = 0
        else:
            return False
        self.refused_s = now
        return True

    def _learn(self, now: float, in_flight: int, retry_after_s: float | None) -> None:
        tuning = self._tuning
        if self._accepted - self._accepted_then >= 2:
            self._refusals_in_a_row = 0
        self._accepted_then = self._accepted
        enough = max(1, tuning.telling - 2 * self._refusals_in_a_row)
        telling = self._accepted >= (tuning.telling if now - self.since_s < 1.0 else enough)
        # It may be that too many are in flight only if there never were clearly more.
        crowded = in_flight >= max(4.0, 0.9 * self.proven)
        off = abs(in_flight - self._in_flight_then)
        self._proven = (self._proven[1], 0)
        if telling:
            alike = off <= max(1.0, 0.07 * in_flight)
            self._cut(now, in_flight, retry_after_s, crowded and alike)
            self._refusals_in_a_row = 0
        elif crowded and not self._noise.bounds_nothing and off <= 1:
            needs_s = tuning.curve_requests / self.pace.value
            self._narrow(now, in_flight, max(tuning.curve_s, needs_s, self.window.curve_s))
            self._in_flight_then = in_flight
        if (retry_after_s is None or self._refusals_in_a_row) and (
            not self._noise.bounds_nothing or self._refusals_in_a_row > tuning.in_a_row
        ):
            own_s = bounded(1 / self.pace.value, (0.1, tuning.longest_pause_s))
            own_s = min(tuning.longest_pause_s, own_s * 2.0 ** min(9, self._refusals_in_a_row))
            why = f"refusals in a row: {self._refusals_in_a_row + 1}"
            self.pause(now, max(own_s, retry_after_s or 0.0), why)
        self._refusals_in_a_row += 1

    def _cut(self, now: float, in_flight: int, retry_after_s: float | None, crowded: bool) -> None:
        """Bound what stood in the way of more, and begin to count anew."""
        tuning, first = self._tuning, self.knows_nothing
        pace, known = self.pace.value, self.pace.known
        share = tuning.share if retry_after_s is None else tuning.share_told
        taken = self._taken_per_s(now, share)
        lower = taken if first else min(taken, share * pace)
        if not first and self._accepted < tuning.telling:
            lower = max(lower, tuning.least_cut * pace)
        sure = known is not None and pace < 1.3 * known
        pauses = tuning.curve_pauses_first if first else tuning.curve_pauses
        costs_s = 0.2 if retry_after_s is None else retry_after_s
        curve_s = max(tuning.curve_s, tuning.curve_requests / lower, costs_s * pauses)
        if not sure and not first:
            curve_s *= 0.5
        elif first and self._accepted < 20:
            curve_s *= 0.3
        if known is not None and 0.85 < lower / known < 1.15:
            curve_s *= 2
        why = f"a refusal after {self._accepted:,} requests in {now - self.since_s:.1f} s"
        if self._is_vain(now, retry_after_s):
            pass
        elif in_flight + 1 >= int(self.window.value):
            if crowded:
                self._narrow(now, in_flight, 0.6 * curve_s)
            else:
                self.window.search(now, max(4.0, in_flight), 1.0, why)
            if pace > 1.02 * taken:
                self.pace.learn(now, max(1.02 * taken, 0.5 * pace), curve_s, why, sure=sure)
        else:
            self.pace.learn(now, lower, curve_s, why, sure=sure)
        self._in_flight_then = in_flight
        self.knows_nothing = False
        self.since_s = now
        self._accepted = self._accepted_then = 0
        # A pause that goes on belongs to what comes.
        self._paused_s = max(0.0, self.resume_s - now)

    def _narrow(self, now: float, in_flight: int, curve_s: float) -> None:
        known, why = min(in_flight, self.window.value - 1), f"a refusal with {in_flight} in flight"
        self.window.learn(now, known, curve_s, why)

    def _is_vain(self, now: float, retry_after_s: float | None) -> bool:
        """Whether a lower bound is no use: refusals have no reason, or it is now being tried."""
        tuning, seconds = self._tuning, now - self.since_s
        if self._noise.goes_on():
            return True
        if not self._noise.starts_trial(now, self._accepted, seconds, self.pace.curve_s):
            return False
        self._before_trial = copy(self.window), copy(self.pace)
        least = 0.0 if retry_after_s is None else tuning.trial_least / max(1.0, retry_after_s)
        why = "a trial whether the refusals have a reason"
        for bound, least_of_it in ((self.window, 0.0), (self.pace, least)):
            most, curve_s = max(least_of_it, tuning.trial * bound.value), bound.curve_s
            bound.learn(now, most, curve_s or tuning.curve_s, why, sure=False)
        return True

    def _ends_trial(self, now: float, sent_s: float) -> bool:
        """Whether a refusal in a trial ends it."""
        tuning, window, pace = self._tuning, self.window, self.pace
        found = self._noise.judge(sent_s)
        if found == "no reason":
            why = "refusals have no reason: more was taken when more was sent"
            window.search(now, max(tuning.least_search, window.value), window.doubles_s, why)
            pace.search(now, pace.value, tuning.pace_doubles_s, why)
        elif found == "a reason":
            why = "refusals have a reason: no more was taken when more was sent"
            self.window, self.pace = self._before_trial
            self.window.note_change(now, window.value, why)
            self.pace.note_change(now, pace.value, why)
            self.pause(now, 1 / self.pace.value, why)
        return found is not None

    def _taken_per_s(self, now: float, share: float) -> float:
        """Requests a second that the server takes, as far as is known, and of these a share."""
        if self.knows_nothing:
            over_s = bounded(now - self._sent_s[0] if self._sent_s else 0.0, (0.5, 1.0))
            sent = sum(at > now - over_s for at in self._sent_s)
            # What pauses cost tells nothing, and few requests little.
            least = 0.1 if self._accepted >= 20 else self._tuning.least_first_per_s
            return max(least, self._tuning.first_share * sent / over_s)
        seconds = now - self.since_s
        while_sending = self._accepted / max(0.05, seconds - self._paused_s)
        fitting = self._fitting(now, self._accepted / max(0.5, seconds))
        return share * min(fitting, 1.07 * while_sending)

    def _fitting(self, now: float, least: float) -> float:
        """The highest rate by which the server had granted the same burst at the last refusals.

        An allowance of some rate and burst is used up at both. What a burst must have been for a
        given rate is the most that any span before the refusal took beyond that rate.
        """
        rate, known = self.pace.value, self.pace.known
        near = known is not None and rate < 1.3 * known and self._accepted >= 20
        least = max(least, (0.75 if near else 0.5) * rate)
        while rate > least:
            before, after = self._burst(rate, self.since_s), self._burst(rate, now)
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
