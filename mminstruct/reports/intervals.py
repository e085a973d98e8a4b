"""Figures that are known between two bounds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_Z = 1.96


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure that lies between two bounds, both included."""

    low: float = 0.0
    high: float = 0.0

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.high + other.high)

    def times(self, other: Interval) -> Interval:
        """The product; both are not negative."""
        return Interval(self.low * other.low, self.high * other.high)

    def plain(self, digits: int | None = None) -> float | list[float]:
        """A number if it is known exactly, else ``[low, high]``; whole unless digits are given."""
        if digits is None:
            low, high = math.floor(self.low + 1e-6), math.ceil(self.high - 1e-6)
        else:
            low, high = round(self.low, digits), round(self.high, digits)  # type: ignore[assignment]  # whole numbers above, others here
        return low if low == high else [low, high]


def exactly(value: float) -> Interval:
    """The interval of one point."""
    return Interval(value, value)


def spread_sample(total: int, size: int, *, seed: str) -> list[int]:
    """Indices of a sample: one from each of ``size`` equal stretches, the same in every run."""
    if size >= total:
        return list(range(total))
    rng = random.Random(seed)  # noqa: S311 (drawn again alike, no secret)
    edges = [total * part // max(1, size) for part in range(size + 1)]
    return [rng.randrange(edges[part], edges[part + 1]) for part in range(size)]


def estimate_count(flags: Sequence[bool], total: int) -> Interval:
    """How many of ``total`` have what some of them were looked at for (Wilson's interval)."""
    if not flags:
        return Interval(0, total)
    size, share, square = len(flags), sum(flags) / len(flags), _Z * _Z
    centre = share + square / (2 * size)
    half = _Z * math.sqrt(share * (1 - share) / size + square / (4 * size * size))
    low, high = ((centre + sign * half) / (1 + square / size) * total for sign in (-1, 1))
    return Interval(max(0.0, low), min(high, total))


def estimate_mean(values: Sequence[float]) -> Interval:
    """The mean of all that some values are a sample of."""
    size = len(values)
    if not size:
        return Interval()
    mean = sum(values) / size
    variance = sum((value - mean) ** 2 for value in values) / max(1, size - 1)
    half = t_quantile(size - 1) * math.sqrt(variance / size)
    return Interval(max(0.0, mean - half), mean + half)


def t_quantile(freedom: int) -> float:
    """The 97.5 % point of Student's distribution (its expansion in 1/freedom)."""
    one = (_Z**3 + _Z) / 4
    two = (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96
    freedom = max(1, freedom)
    return _Z + one / freedom + two / freedom**2


def format_whole(interval: Interval) -> str:
    """The interval in whole numbers."""
    found = interval.plain()
    return " to ".join(f"{value:,}" for value in (found if isinstance(found, list) else [found]))


def format_interval(interval: Interval, shown: Callable[[float], str]) -> str:
    """Both bounds, or the one value that both show."""
    return " to ".join(dict.fromkeys((shown(interval.low), shown(interval.high))))


def format_usd(amount: float) -> str:
    """An amount of money."""
    return f"${amount:,.2f}" if amount >= 1 or not amount else f"${amount:.4f}"
