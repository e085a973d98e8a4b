"""What all HTTP shares: retries, allowances that servers state, keys and their redaction."""

from __future__ import annotations

import base64
import math
import random
import re
from collections.abc import (
    Iterator,
    Mapping,
)
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from mminstruct.errors import (
    UsageError,
)


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


LONGEST_WAIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When and how often a request that failed is sent again.

    Attributes:
        max_retries: tries after the first one.
        base_s: mean wait before the first retry; it doubles with each.
        cap_s: longest wait of our own choosing; a server's Retry-After may be longer.
        max_pause_s: longest pause that a server may ask for; a longer one ends the run.
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

    def wait_s(self, retry: int, retry_after_s: float | None, rng: random.Random) -> float:
        """Seconds before retry number ``retry`` (from 0): doubling, and a quarter more or less.

        A Retry-After is a lower bound; a little is added so that not all come back at once.
        """
        own_s = min(self.cap_s, self.base_s * 2.0**retry) * rng.uniform(0.75, 1.25)
        if retry_after_s is None:
            return own_s
        return max(own_s, retry_after_s + rng.uniform(0.0, min(1.0, 0.1 + 0.1 * retry_after_s)))


# Shorter values of a query are hardly secret, and would blot out ordinary words.
_SHORTEST_SECRET = 6


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


def public_name(served: str) -> str:
    """The model's name; of a folder, by which some servers know theirs, the last part."""
    return served.rstrip("/").rpartition("/")[2] if served.startswith(("/", "~", ".")) else served


def public_url(url: str) -> str:
    """The URL without user, password, query and fragment, fit for rows, keys and logs."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2].lower()
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def authorization(base_url: str, api_key: str | None) -> str | None:
    """The header's value: user and password in the URL are meant for it, so they go first."""
    parts = urlsplit(base_url)
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"
    return f"Bearer {api_key}" if api_key else None


def secrets_of(base_url: str, api_key: str | None) -> Iterator[str]:
    """What no message may show."""
    parts = urlsplit(base_url)
    found = [parts.netloc.rpartition("@")[0], parts.password, parts.query]
    found += [value for _, value in parse_qsl(parts.query) if len(value) >= _SHORTEST_SECRET]
    yield from (secret for secret in (*found, api_key) if secret)
