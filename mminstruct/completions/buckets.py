"""Rates that a user or a server states, kept as token buckets."""

from __future__ import annotations

from dataclasses import dataclass

from mminstruct.transport import Quota, Quotas


@dataclass(frozen=True, slots=True)
class Rates:
    """What may be sent a minute, as the user knows it.

    Attributes:
        requests_per_minute: None is unknown.
        tokens_per_minute: of prompts and answers together; None is unknown.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


class Bucket:
    """A known allowance that refills continuously.

    What needs more than it holds is let through when it is full, and paid for afterwards.
    """

    def __init__(self, per_s: float, capacity: float) -> None:
        self._per_s, self._capacity, self._level = per_s, capacity, capacity
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

    def correct(self, now: float, quota: Quota, under_way: float) -> None:
        """Go by what the server says, who may have seen what is under way or not."""
        self.wait_s(now, 0.0)
        self._capacity = quota.limit
        used = quota.limit - quota.remaining
        if used and quota.reset_s > 0.1:
            self._per_s = used / quota.reset_s
        self._level = min(max(self._level, quota.remaining - under_way), quota.remaining)


class Allowance:
    """Buckets of requests and of tokens, as far as there are such bounds."""

    def __init__(self, rates: Rates | None = None) -> None:
        rates = rates or Rates()
        self._requests = _declare(rates.requests_per_minute)
        self._tokens = _declare(rates.tokens_per_minute)

    @property
    def counts_tokens(self) -> bool:
        """Whether it matters how many tokens a request may take."""
        return self._tokens is not None

    def wait_s(self, now: float, tokens: float) -> float:
        """Seconds until a request of so many tokens may go."""
        return max(
            0.0 if self._requests is None else self._requests.wait_s(now, 1.0),
            0.0 if self._tokens is None else self._tokens.wait_s(now, tokens),
        )

    def take(self, tokens: float) -> None:
        """Note that one goes."""
        if self._requests is not None:
            self._requests.take(1.0)
        self.correct_tokens(tokens)

    def correct_tokens(self, more: float) -> None:
        """Note that it took more tokens than was thought, or fewer."""
        if self._tokens is not None:
            self._tokens.take(more)

    def note_quotas(self, now: float, quotas: Quotas, requests: float, tokens: float) -> None:
        """Go by what the server says; so many requests and tokens are under way."""
        self._requests = _correct(now, self._requests, quotas.requests, requests)
        self._tokens = _correct(now, self._tokens, quotas.tokens, tokens)


def _declare(per_minute: float | None) -> Bucket | None:
    """A bucket of which no more than a second's worth is used at once."""
    return Bucket(per_minute / 60, max(1.0, per_minute / 60)) if per_minute else None


def _correct(
    now: float, bucket: Bucket | None, quota: Quota | None, under_way: float
) -> Bucket | None:
    """A bucket with what a server says is left until its reset."""
    if quota is not None:
        bucket = bucket or Bucket(quota.limit / 60, quota.limit)
        bucket.correct(now, quota, under_way)
    return bucket
