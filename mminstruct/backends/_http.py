"""What backends at a server share: addresses, POSTs, bounded bodies, redirects, and silences."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urljoin, urlsplit

import aiohttp
import httpx2
from httpx2._utils import URLPattern, get_environment_proxies

from mminstruct.errors import BackendUnusable, TransientError, UsageError
from mminstruct.transport import public_url

MOST_BYTES = 32 * 2**20
"""No answer is longer: a long one has a megabyte."""
REDIRECTS = (301, 302, 303, 307, 308)
MOST_LESSONS = 8
"""Redirects and refused fields that one request may teach."""
CONNECT_TIMEOUT_S = 30.0
# Servers close what is idle, most of them after this time or later.
_IDLE_S = 5.0
# Shorter values of a query are hardly secret, and would blot out ordinary words.
_SHORTEST_SECRET = 6
_NO_CONNECTION = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server, and how it is spoken to.

    Attributes:
        url: without user, password and query, fit for messages.
        authorization: the header's value, or None.
        secrets: what no message may show, the longest first.
    """

    url: str
    authorization: str | None = field(default=None, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def at(cls, url: str, api_key: str | None, secrets: Iterable[str] = ()) -> Endpoint:
        """The server at a URL: user and password in it are meant for it, so they go first."""
        parts = urlsplit(url)
        found = [parts.netloc.rpartition("@")[0], parts.password, parts.query, api_key, *secrets]
        found += [value for _, value in parse_qsl(parts.query) if len(value) >= _SHORTEST_SECRET]
        header = f"Bearer {api_key}" if api_key else None
        if parts.username is not None:
            header = _basic(unquote(parts.username), unquote(parts.password or ""))
        hidden = sorted(filter(None, found), key=len, reverse=True)
        return cls(public_url(url), header, tuple(hidden))

    def redacted(self, text: str) -> str:
        """The text without anything that is secret."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


def _basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


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
    try:
        location.encode()
        led = urljoin(asked, location)
        here, there = urlsplit(asked), urlsplit(led)
    except ValueError as error:  # half an IPv6 address, bytes that are no text
        raise BackendUnusable(f"{public_url(asked)} redirects to what is no address") from error
    is_upgrade = (here.scheme, there.scheme) == ("http", "https")
    if here.hostname != there.hostname or not (here[:2] == there[:2] or is_upgrade):
        raise BackendUnusable(
            f"{public_url(asked)} redirects to {public_url(led)}, where the prompts would go; if "
            "that is meant, give that server's URL instead"
        )
    return led


def proxy_of(url: str) -> httpx2.Proxy | None:
    """The proxy that the environment names for an address, as the SDKs' clients read it."""
    proxies = sorted((URLPattern(name), it) for name, it in get_environment_proxies().items())
    there = httpx2.URL(url)
    found = next((proxy for pattern, proxy in proxies if pattern.matches(there)), None)
    return httpx2.Proxy(found) if found else None


class Answer(NamedTuple):
    """What a server answers, of whatever status."""

    status: int
    headers: Mapping[str, str]  # names in any case
    body: bytes


class Post(NamedTuple):
    """All of a POST but its body."""

    url: str
    headers: Mapping[str, str]
    proxy: str | None = None  # without its password, which errors would show
    proxy_headers: Mapping[str, str] | None = None  # for the tunnel to a server with TLS

    @classmethod
    def to(cls, url: str, headers: Mapping[str, str]) -> Post:
        """One to an address, through the proxy that the environment names for it."""
        proxy = proxy_of(url)
        if proxy is None:
            return cls(url, headers)
        access = {"Proxy-Authorization": _basic(*proxy.auth)} if proxy.auth else {}
        if url.startswith("https:"):
            return cls(url, headers, str(proxy.url), access)
        return cls(url, {**headers, **access}, str(proxy.url))

    async def send(self, session: aiohttp.ClientSession, body: bytes) -> Answer:
        """What is answered; aiohttp's errors, and those of `bounded`."""
        url, headers, proxy, proxy_headers = self
        async with session.post(
            url,
            data=body,
            headers=headers,
            proxy=proxy,
            proxy_headers=proxy_headers,
            allow_redirects=False,
        ) as response:
            whole = await bounded(response.content.iter_any(), public_url(url))
            return Answer(response.status, response.headers, whole)


def open_session(connections: int, timeout_s: float) -> aiohttp.ClientSession:
    """A session for `Post`, with the certificates that the SDKs' clients trust.

    A proxy is told with each POST, as a session that looks it up reads ``.netrc`` every time.

    Args:
        connections: open at most.
        timeout_s: of a whole answer.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=connections, keepalive_timeout=_IDLE_S, ssl=httpx2.create_ssl_context()
        ),
        timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S),
    )


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


def no_answer(error: BaseException, server: Endpoint, timeout_s: float) -> TransientError:
    """Ours for an error of aiohttp, or of the SDK above it, that keeps a request unanswered."""
    if isinstance(error, asyncio.TimeoutError) and not isinstance(error, _NO_CONNECTION):
        words = f"{server.url}: no answer within {timeout_s:g} s (--timeout)"
        return TransientError(words, cause="timeout")
    # The SDK's transport calls a refused and a dropped connection a timeout.
    while error.__cause__ is not None and not isinstance(error, aiohttp.ClientError):
        error = error.__cause__
    reason = " ".join(server.redacted(str(error) or type(error).__name__).split())
    cause = "unreachable" if isinstance(error, _NO_CONNECTION) else "dropped"
    return TransientError(f"{server.url}: {reason}", cause=cause)
