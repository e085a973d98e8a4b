"""Refusals that have no reason: some servers refuse now and then, whatever is sent.

Between two refusals a limited server has taken what it takes, whatever the pace. So after some
refusals in quick succession more is sent for once (a trial): what takes clearly more then isn't
limited, or not there, and refusals bound nothing (a spell) until clearly more are refused.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Literal

from mminstruct.completions.tuning import Tuning


@dataclass(slots=True)
class _Trial:
    """A time in which more is sent than seemed to be taken."""

    since_s: float
    worth_per_s: float  # requests a second that would be more than was taken before
    sent_s: list[float] = field(default_factory=list)
    refused: int = 0


@dataclass(slots=True)
class _Spell:
    """Requests and refusals of a spell, since it was last looked at and before."""

    sent: int = 0
    refused: int = 0
    sent_before: int = 0
    refused_before: int = 0


class Noise:
    """Whether refusals have a reason; each `Limiter` has one, which alone calls it."""

    def __init__(self, tuning: Tuning) -> None:
        self._tuning = tuning
        # Accepted before each of the last refusals in quick succession, and in how many seconds.
        self._quick: list[tuple[int, float]] = []
        self._trial_after = tuning.quick
        # The same of all refusals since a trial, and how many there may be.
        self._untried: list[tuple[int, float]] = []
        self._untried_most = tuning.untried
        self._trial: _Trial | None = None
        self._spell: _Spell | None = None

    @property
    def tries(self) -> bool:
        """Whether a trial is under way."""
        return self._trial is not None

    @property
    def bounds_nothing(self) -> bool:
        """Whether refusals have been found to have no reason."""
        return self._spell is not None

    def note_sent(self, now: float) -> None:
        """Note that a request is sent."""
        if self._trial is not None:
            self._trial.sent_s.append(now)
            if len(self._trial.sent_s) >= self._tuning.trial_sent:  # next to nothing against it
                self._trial = None
        if self._spell is not None:
            self._spell.sent += 1

    def note_refusal(self) -> None:
        """Note that a request was refused."""
        if self._spell is not None:
            self._spell.refused += 1

    def goes_on(self) -> bool:
        """Whether a spell does; it ends when it is looked at and clearly more was refused."""
        spell, tuning = self._spell, self._tuning
        if spell is None or spell.refused < tuning.spell:
            return spell is not None
        usual = spell.refused_before / spell.sent_before if spell.sent_before else 1.0
        if spell.refused / max(1, spell.sent) > min(tuning.mostly, usual + tuning.more):
            self._spell = None
            return False
        spell.sent_before += spell.sent
        spell.refused_before += spell.refused
        spell.sent = spell.refused = 0
        return True

    def starts_trial(self, now: float, accepted: int, seconds: float, curve_s: float) -> bool:
        """Whether it is time for one, after so many accepted requests in so many seconds.

        Refusals within the curve of the pace are quick.
        """
        tuning = self._tuning
        if seconds < curve_s:
            self._quick.append((accepted, seconds))
        else:
            self._quick, self._trial_after = [], tuning.quick
        self._untried.append((accepted, seconds))
        # Far too soon for a limit that was just found.
        very = sum(count < tuning.curve_requests / 3 for count, _ in self._quick)
        if len(self._quick) + 0.5 * very >= self._trial_after:
            spans = self._quick[-tuning.quick :]
        elif len(self._untried) >= self._untried_most:
            spans, self._untried_most = self._untried[-tuning.quick :], 2 * self._untried_most
        else:
            return False
        per_s = sum(count for count, _ in spans) / sum(passed_s for _, passed_s in spans)
        self._trial = _Trial(now, tuning.worth * per_s)
        self._quick, self._untried = [], []
        return True

    def judge(self, sent_s: float) -> Literal["a reason", "no reason"] | None:
        """What the refusal of a request that was sent then shows in a trial, which that ends."""
        trial, tuning = self._trial, self._tuning
        if trial is None:
            return None
        trial.refused += 1
        taken = bisect_right(trial.sent_s, sent_s) - trial.refused
        worth = trial.worth_per_s * (sent_s - trial.since_s)
        if taken >= worth + tuning.left:
            self._trial, self._spell = None, _Spell()
            return "no reason"
        if trial.refused >= min(taken + 2, 3 if taken < worth else tuning.trial_ends):
            self._trial = None
            self._trial_after += 1
            return "a reason"
        return None
