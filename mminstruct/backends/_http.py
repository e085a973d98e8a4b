"""What backends at a server share: addresses, bounded bodies, redirects, and silences."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from urllib.parse import SplitResult, urljoin, urlsplit

import aiohttp

from mminstruct.errors import BackendUnusable, TransientError, UsageError
from mminstruct.transport import public_url

MOST_BYTES = 32 * 2**20
"""No answer is longer: a long one has a megabyte."""
MOST_LESSONS = 8
"""Redirects and refused fields that one request may teach."""
_NO_CONNECTION = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


def split_url(url: str, what: str, example: str, *, takes_query: bool = True) -> SplitResult:
    """The parts of an http(s) URL.

    Raises:
        UsageError: it isn't one, as an example would be.
    """
    try:
        parts = urlsplit(url.strip())
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        (parts.hostname or "").encode("idna")
    except ValueError:  # no number as the port, half an IPv6 address, an empty part of a name
        fits = False
    if not fits or (parts.query and not takes_query):
        shown = url.strip().partition("?")[0].rpartition("@")[2]
        raise UsageError(f"{what}: expected something like {example}, got {shown!r}")
    return parts


def is_folder(model: str) -> bool:
    """Whether a server knows its model by the folder that it is in there."""
    return model.startswith(("/", ".", "~"))


def shown_name(model: str) -> str:
    """The model's name; of a folder the last part."""
    return model.rstrip("/").rpartition("/")[2] if is_folder(model) else model


def redirect_of(asked: str, location: str) -> str:
    """Where a server sends a request on to, on the same server.

    Raises:
        BackendUnusable: it is another one, which gets no prompt that nobody meant for it.
    """
    led = urljoin(asked, location)
    here, there = urlsplit(asked), urlsplit(led)
    is_upgrade = (here.scheme, there.scheme) == ("http", "https")
    if here.hostname != there.hostname or not (here[:2] == there[:2] or is_upgrade):
        raise BackendUnusable(
            f"{public_url(asked)} redirects to {public_url(led)}, where the prompts would go; if "
            "that is meant, give that server's URL instead"
        )
    return led


async def bounded(chunks: AsyncIterable[bytes], where: str) -> bytes:
    """A body, decompressed.

    Raises:
        TransientError: it is longer than any answer; the rest isn't read.
    """
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        check_length(len(body), where)
    return bytes(body)


def check_length(length: int, where: str) -> None:
    """Raise TransientError for a body that is longer than any answer, in bytes."""
    if length > MOST_BYTES:
        raise TransientError(
            f"{where}: the answer is longer than {MOST_BYTES:,} bytes", cause="bad_body"
        )


def no_answer(
    error: BaseException, where: str, redacted: Callable[[str], str], timeout_s: float
) -> TransientError:
    """Ours for what keeps a request from being answered.

    Args:
        error: of aiohttp, or of the SDK above it.
        where: who was asked.
        redacted: takes secrets out of its words.
        timeout_s: how long an answer was waited for.
    """
    if isinstance(error, asyncio.TimeoutError) and not isinstance(error, _NO_CONNECTION):
        words = f"{where}: no answer within {timeout_s:g} s (--timeout)"
        return TransientError(words, cause="timeout")
    # The SDK's transport calls a refused and a dropped connection a timeout.
    while error.__cause__ is not None and not isinstance(error, aiohttp.ClientError):
        error = error.__cause__
    reason = " ".join(redacted(str(error) or type(error).__name__).split())
    cause = "unreachable" if isinstance(error, _NO_CONNECTION) else "dropped"
    return TransientError(f"{where}: {reason}", cause=cause)
