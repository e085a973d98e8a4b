"""What all HTTP shares: retries, what servers say of waits and allowances, keys, public URLs."""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

from mminstruct.errors import UsageError

_T = TypeVar("_T")


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
        if spelling.format("limit") not in headers:
            continue
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


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: ``retry-after-ms``, else ``Retry-After``, else None.

    **Source:** RFC 9110 section 10.2.3 (seconds or an HTTP date).
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit_s
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        when = parsedate_to_datetime(headers.get("retry-after", ""))
    except (TypeError, ValueError):
        return None
    return max(0.0, when.timestamp() - time.time())


def until(seconds: float) -> str:
    """When a wait ends, as a clock shows it: ``07:00``, or with the day if that is another."""
    now = datetime.now()
    end = now + timedelta(seconds=min(seconds, _LONGEST_TOLD_S))
    return end.strftime("%H:%M" if end.date() == now.date() else "%Y-%m-%d %H:%M")


LONGEST_WAIT_S = 3600.0
PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses under which the same request may be answered the next time."""


class Passing(Exception):
    """An attempt that failed and is worth another; its text is the reason.

    Attributes:
        retry_after_s: seconds the server asked to wait, or None.
    """

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When and how often a request that failed is sent again.

    Attributes:
        max_retries: tries after the first one.
        base_s: mean wait before the first retry; it doubles with each.
        cap_s: longest wait of our own choosing; a server's Retry-After may be longer.
        max_pause_s: longest pause that a server may ask for; a longer one ends a run, and is cut
            short for a file.
        drain_s: how long an interrupted run waits for the answers in flight, which are paid for.
        finish_s: how long a run does so that stopped by itself, and that nobody waits for.
        patience_s: how long others wait for the very first answer before they try beside it.
        gateway_waits_s: a gateway that waited so long in vain may have been paid for.
    """

    max_retries: int = 8
    base_s: float = 0.5
    cap_s: float = 60.0
    max_pause_s: float = LONGEST_WAIT_S
    drain_s: float = 60.0
    finish_s: float = 600.0
    patience_s: float = 15.0
    gateway_waits_s: float = 10.0

    def wait_s(self, retry: int, retry_after_s: float | None, rng: random.Random | None) -> float:
        """Seconds before retry number ``retry`` (from 0); at least what a Retry-After says.

        With random numbers a quarter more or less, so that not all come back at once.
        """
        own_s = min(self.cap_s, self.base_s * 2.0**retry)
        told_s = retry_after_s or 0.0
        if rng is not None:
            own_s *= rng.uniform(0.75, 1.25)
            if retry_after_s is not None:
                told_s += rng.uniform(0.0, min(1.0, 0.1 + 0.1 * retry_after_s))
        return max(own_s, told_s)


@dataclass(slots=True)
class Retries:
    """The attempts at one thing at one server, of which ``failures`` in a row failed so far.

    Whoever sees that one got somewhere sets that to 0. Without ``rng`` waits are exact.
    """

    policy: RetryPolicy
    rng: random.Random | None = None
    failures: int = 0

    def wait_s(self, failure: Passing) -> float | None:
        """Seconds until the next attempt, or None if there is to be none."""
        self.failures += 1
        if self.failures > self.policy.max_retries:
            return None
        wait_s = self.policy.wait_s(self.failures - 1, failure.retry_after_s, self.rng)
        return min(wait_s, self.policy.max_pause_s)

    def run(
        self, attempt: Callable[[], _T], sleep: Callable[[float], None], tell: Callable[[str], None]
    ) -> _T:
        """What an attempt gives at last; raises the `Passing` of the last one if it never does."""
        while True:
            try:
                return attempt()
            except Passing as failure:
                wait_s = self.wait_s(failure)
                if wait_s is None:
                    raise
                tell(f"{failure}; next attempt in {wait_s:.0f} s")
            sleep(wait_s)


def key_from(environment: Mapping[str, str], name: str) -> str | None:
    """The key in a variable, or None if there is none.

    Raises:
        UsageError: it can't be part of a header.
    """
    key = environment.get(name, "").strip()
    if key and not re.fullmatch(r"[!-~]+", key):
        raise UsageError(
            f"{name}: expected letters, digits and signs of ASCII without a space, got something "
            "else among them; copy the key anew"
        )
    return key or None


def public_url(url: str) -> str:
    """The URL without user, password, query and fragment, fit for rows, keys and logs."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2].lower()
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
