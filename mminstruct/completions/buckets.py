"""Rates that a user or a server states, kept as token buckets."""

from __future__ import annotations

from dataclasses import dataclass

from mminstruct.transport import Quota


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


def declared_bucket(per_minute: float | None) -> Bucket | None:
    """An allowance of which no more than a second's worth is used at once."""
    return Bucket(per_minute / 60, max(1.0, per_minute / 60)) if per_minute else None


def told_bucket(
    now: float, bucket: Bucket | None, quota: Quota | None, under_way: float
) -> Bucket | None:
    """A bucket with what a server says is left until its reset."""
    if quota is None:
        return bucket
    if bucket is None:
        bucket = Bucket(quota.limit / 60, quota.limit)
    bucket.told(now, quota, under_way)
    return bucket
