"""Chat completions of any OpenAI-compatible server.

**Wire format:** https://platform.openai.com/docs/api-reference/chat/create

The SDK runs over its aiohttp transport and without its typed layer (`post(cast_to=Response)`):
with 500 requests in flight the default transport answers at about half the rate, and the typed
layer costs as much CPU again as the request itself. Its own retries are off; the client above all
backends does them.

Token counts are OpenAI's own for its models (within 1 %: some add a token or two) and approximate
for any other. What has to fit a context window is judged by a bound on the high side.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import math
import os
import re
import time
from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qsl, unquote, urljoin, urlsplit, urlunsplit

import aiohttp
import httpx2
import msgspec
import openai

from mminstruct.backends import BackendOptions, _tokens
from mminstruct.errors import (
    BackendError,
    BackendUnusable,
    ContextTooLong,
    RequestRefused,
    TransientError,
    UsageError,
)
from mminstruct.limits import Quotas, read_quotas
from mminstruct.schema import Completion, FinishReason, Message, Request

_T = TypeVar("_T")

_OFFICIAL_URL = "https://api.openai.com/v1"
_WORDS_SHOWN = 500
_CONNECT_TIMEOUT_S = 30.0
# Longer than connecting may take, which is to be told from a slow answer.
_PROBE_TIMEOUT_S = _CONNECT_TIMEOUT_S + 10.0
# A long answer has a megabyte.
_MOST_BYTES = 32 * 2**20
# Shorter values of a query are hardly secret, and would blot out ordinary words.
_SHORTEST_SECRET = 6
_TOO_LONG = re.compile(
    r"context_length_exceeded|maximum context length|context (?:length|window|size)"
    r"|prompt is too long|too many (?:input )?tokens|max_model_len"
    r"|`inputs` tokens \+ `max_new_tokens` must be <=",
    re.IGNORECASE,
)
# Where a refusal says how long the window and the prompt are. "At least 3073 input tokens" is what
# the answer that was asked for leaves, not the prompt's length.
_WINDOW = re.compile(r"maximum context length (?:is|of) (\d+)", re.IGNORECASE)
_PROMPT = re.compile(
    r"(?<!at least )\b(\d+) (?:input tokens|in the (?:messages|prompt|input)|of text input)",
    re.IGNORECASE,
)
# What servers call the ends of an answer, in lower case.
_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_length": "length",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "sensitive": "content_filter",
    "model_context_window_exceeded": "length",
}
# The server gave up half-way: what there is of the answer isn't one.
_UNFINISHED = (
    "error",
    "abort",
    "aborted",
    "cancelled",
    "insufficient_system_resource",
    "network_error",
)


class _Part(msgspec.Struct):
    type: str = "text"
    text: str | None = None


class _Message(msgspec.Struct):
    # Some reasoning models answer with parts: what was thought, and the text.
    content: str | list[_Part] | None = None
    refusal: str | None = None

    @property
    def text(self) -> str:
        """The answer alone."""
        if isinstance(self.content, list):
            return "".join(part.text or "" for part in self.content if part.type == "text")
        return self.content or ""


class _Choice(msgspec.Struct):
    # Some services leave it out where a filter has taken the answer.
    message: _Message | None = None
    finish_reason: str | None = None
    # Of a gateway that lost its upstream half-way, after it had sent the 200.
    error: msgspec.Raw = msgspec.Raw(b"null")


class _Usage(msgspec.Struct):
    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    total_tokens: float | None = None


class _Error(msgspec.Struct):
    code: str | int | None = None
    message: str | None = None


class _Body(msgspec.Struct):
    choices: list[_Choice] | None = None
    model: str | None = None
    # Read apart: an answer that was paid for isn't worth less for a count that makes no sense.
    usage: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


_decoder = msgspec.json.Decoder(_Body)
_error_decoder = msgspec.json.Decoder(_Error | str | None)
_usage_decoder = msgspec.json.Decoder(_Usage | None)
_encoder = msgspec.json.Encoder()


def create(options: BackendOptions) -> OpenAIBackend:
    """The backend for a model at a server.

    The key comes from ``OPENAI_API_KEY`` alone; without a URL, ``OPENAI_BASE_URL`` is asked.

    Raises:
        UsageError: no model is named, the URL isn't one, or the key can't be sent.
    """
    if not options.model:
        raise UsageError("the model source 'openai' needs a model name; give one with --model")
    api_key = key_from(os.environ, "OPENAI_API_KEY")
    from_environment = os.environ.get("OPENAI_BASE_URL")
    if not options.base_urls and from_environment:
        options = replace(options, base_urls=(from_environment,))
    return OpenAIBackend(options, api_key=api_key)


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


def check(options: BackendOptions) -> None:
    """Raise UsageError where OpenAI's own server is to be asked without a key."""
    create(options).require_key()


def probe(options: BackendOptions) -> None:
    """Look whether one of the servers is an API that takes the key, at no cost.

    Raises:
        BackendUnusable: none is.
    """
    faults = []
    with ThreadPoolExecutor(1) as apart:  # in a notebook, this thread runs a loop already
        for replica in create(options).replicas:
            try:
                return apart.submit(asyncio.run, replica.probe()).result()
            except BackendUnusable as fault:
                faults.append(str(fault))
    raise BackendUnusable("; ".join(faults))


def normal_base_url(url: str | None) -> str:
    """The API root: with scheme, without trailing slash, ending in a version such as ``/v1``.

    Of a URL that is complete, ending in ``/chat/completions``, it is what comes before that: some
    services have no version there.

    Raises:
        UsageError: it isn't an http(s) URL.
    """
    if url is None:
        return _OFFICIAL_URL
    try:
        parts = urlsplit(url.strip())
        is_http = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        (parts.hostname or "").encode("idna")
    except ValueError:  # no number as the port, half an IPv6 address, an empty part of a name
        is_http = False
    if not is_http:
        shown = url.strip().partition("?")[0].rpartition("@")[2]
        raise UsageError(
            f"base URL: expected something like http://localhost:8000/v1, got {shown!r}"
        )
    path = parts.path.rstrip("/")
    if path.endswith("/chat/completions"):
        path = path.removesuffix("/chat/completions")
    else:
        path = path.removesuffix("/completions")
        if not re.search(r"/v\d[\w.]*(?:/|$)", path):
            path += "/v1"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _public_name(served: str) -> str:
    """The model's name; of a folder, by which some servers know theirs, the last part."""
    return served.rstrip("/").rpartition("/")[2] if served.startswith(("/", "~", ".")) else served


def public_url(url: str) -> str:
    """The URL without user, password, query and fragment, fit for rows, keys and logs."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2].lower()
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def payload(
    model: str,
    request: Request,
    *,
    limit_field: str = "max_tokens",
    implied: Collection[str] = (),
) -> dict[str, Any]:
    """The body of the POST, with a seed only if there is one: some servers refuse the field.

    Args:
        model: its name at the server.
        request: what to ask.
        limit_field: name of the field for the answer's longest length.
        implied: of ``temperature`` and ``top_p`` those that are left out where they are 1.
    """
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": model,
        "messages": request.messages,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        limit_field: sampling.max_tokens,
    }
    for name in implied:
        if body[name] == 1.0:
            del body[name]
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    return body


def read_body(body: bytes, *, redacted: Callable[[str], str] = str) -> Completion:
    """The completion in a response's body.

    Args:
        body: as it came.
        redacted: takes secrets out of what an error shows of the body.

    Raises:
        TransientError: it isn't one: damaged JSON, no choices.
        BackendError: it tells of an error, which has the meaning it would have as a status.
    """
    try:
        try:
            answer = _decoder.decode(body)
        except msgspec.DecodeError:
            answer = _decoder.decode(_mended(body))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise TransientError(
            f"the server's answer is not a chat completion ({error}): {_excerpt(body, redacted)!r}",
            cause="bad_body",
        ) from error
    if not answer.choices:
        raise _error_within(answer.error, redacted) or TransientError(
            f"the server's answer has no choices: {_excerpt(body, redacted)!r}", cause="bad_body"
        )
    choice = answer.choices[0]
    message = choice.message
    failed = _error_within(choice.error, redacted)
    if failed is None and not (message and message.text and choice.finish_reason):
        failed = _error_within(answer.error, redacted)
    if failed is not None:
        raise failed
    ended = (choice.finish_reason or "stop").lower()
    if message is None and _FINISH.get(ended) != "content_filter":
        raise TransientError(
            f"the server's answer has no message: {_excerpt(body, redacted)!r}", cause="bad_body"
        )
    message = message or _Message()
    if ended in _UNFINISHED:
        raise TransientError(f"the server ended its answer with {ended!r}", cause="unfinished")
    prompt_tokens, completion_tokens = _usage(answer.usage)
    finish = _FINISH.get(ended, "other")
    text = message.text
    if message.refusal and not text:
        finish = "content_filter"
    return Completion(
        text=text,
        finish_reason=finish,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        model=answer.model,
    )


def _excerpt(body: bytes, redacted: Callable[[str], str]) -> str:
    return redacted(body.decode(errors="replace"))[:_WORDS_SHOWN]


def _error_within(raw: msgspec.Raw, redacted: Callable[[str], str]) -> BackendError | None:
    """The error that an answer of status 200 tells of, if it does."""
    try:
        error = _error_decoder.decode(raw)
    except msgspec.DecodeError:
        error = _excerpt(bytes(raw), redacted)
    if not error:
        return None
    if isinstance(error, str):
        error = _Error(message=error)
    code = str(error.code or "")
    status = int(code) if re.fullmatch(r"[45]\d\d", code) else 502
    words = redacted(error.message or "no words")[:_WORDS_SHOWN]
    return status_error(status, words, {}, where="the server, within a 200,", code=code)


def _usage(raw: msgspec.Raw) -> tuple[int | None, int | None]:
    """Tokens of prompt and answer that are paid for, as far as the counts make sense.

    Some services leave what a model thought out of the answer's count; in the total it is.
    """
    try:
        usage = _usage_decoder.decode(raw) or _Usage()
    except msgspec.DecodeError:
        return None, None
    prompt, answer = _tokens.plausible(usage.prompt_tokens, usage.completion_tokens)
    if prompt is None or answer is None:
        return None, None
    _, thought_too = _tokens.plausible(prompt, (usage.total_tokens or 0) - prompt)
    return prompt, max(answer, thought_too or 0)


def _mended(body: bytes) -> bytes:
    """The JSON without what some servers write into it that JSON has not.

    There is U+FFFD for half a character that stands alone, and null for NaN and infinite numbers.
    """

    def number(text: str) -> float | None:
        return value if math.isfinite(value := float(text)) else None

    read = json.loads(body, parse_float=number, parse_constant=lambda name: None)
    text = json.dumps(read, ensure_ascii=False)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


class OpenAIBackend:
    """One model at an OpenAI-compatible server, and at the replicas of that."""

    name: Literal["openai"] = "openai"

    def __init__(self, options: BackendOptions, *, api_key: str | None) -> None:
        self._base_url = normal_base_url(options.base_urls[0] if options.base_urls else None)
        self._official = self._base_url == _OFFICIAL_URL
        self._options = options
        self._api_key = api_key
        self._secrets = sorted(secrets_of(self._base_url, api_key), key=len, reverse=True)
        self._headers = {
            "Content-Type": "application/json",
            "Authorization": authorization(self._base_url, api_key) or openai.Omit(),
        }
        self._limit_field = "max_tokens"
        self._implied: frozenset[str] = frozenset()
        self._client: openai.AsyncOpenAI | None = None
        self._served_model = options.model or ""
        self.model = _public_name(self._served_model)
        # A server of one's own knows models by their Hub id; the official one has terms of its own.
        self.repo_id = "openai-api" if self._official else self.model
        self.parallel = options.max_concurrency
        self.timeout_s = options.timeout_s
        self.context_window = options.context_window
        self.token_error: float | None = None
        self.rate_limits: Quotas | None = None
        others = (replace(options, base_urls=(url,)) for url in options.base_urls[1:])
        self._others = tuple(OpenAIBackend(other, api_key=api_key) for other in others)

    @property
    def replicas(self) -> tuple[OpenAIBackend, ...]:
        """One for each URL; the first is this one."""
        return (self, *self._others)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The servers' URLs."""
        return tuple(public_url(replica._base_url) for replica in self.replicas)

    def identity(self) -> dict[str, str]:
        """Endpoint and model name; what a server loads under that name it alone knows."""
        return {
            "backend": self.name,
            "endpoint": public_url(self._base_url),
            "model": self._served_model,
        }

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """OpenAI's own count for its models, if their tokenizer can be had; else approximate."""
        count = _tokens.openai_counter(self._served_model)
        self.token_error = _tokens.TIKTOKEN_ERROR if count else _tokens.APPROXIMATION_ERROR
        return (count or _tokens.approximate)(messages)

    def require_key(self) -> None:
        """Raise UsageError if OpenAI's own server is to be asked without a key."""
        if self._official and self._api_key is None:
            raise UsageError(
                "OPENAI_API_KEY is not set; set it, or give your own server with --openai_base_url"
            )

    async def __aenter__(self) -> OpenAIBackend:
        self.require_key()
        logging.getLogger("httpx2").addFilter(_without_query)
        # Reads or even fetches a file, which would hold up all others later.
        await asyncio.to_thread(_tokens.openai_counter, self._served_model)
        connections = self._options.max_concurrency
        self._client = openai.AsyncOpenAI(
            # The SDK insists on a key; which one is sent, if any, is in our own header.
            api_key="unused",
            # With a query in it, the SDK would append its path to that.
            base_url=public_url(self._base_url),
            default_query=dict(parse_qsl(urlsplit(self._base_url).query, keep_blank_values=True)),
            max_retries=0,
            http_client=openai.DefaultAioHttpClient(
                timeout=httpx2.Timeout(None, connect=_CONNECT_TIMEOUT_S),
                limits=httpx2.Limits(
                    max_connections=connections, max_keepalive_connections=connections
                ),
                event_hooks={"response": [self._read]},
            ),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._client is not None:
            await self._client.close()
        self._client = None

    async def complete(self, request: Request) -> Completion:
        """One answer; errors as in `mminstruct.backends.Backend.complete`."""
        while True:
            dialect = self._limit_field, self._implied
            try:
                return await self._post(request)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                self._learn(f"{error} {_words(error)}", request)
                if dialect == (self._limit_field, self._implied):
                    raise self._mapped(error, request) from error
            except _FAILURES as error:
                raise self._mapped(error) from error

    def _learn(self, words: str, request: Request) -> None:
        """Note what a refusal says about the fields that the model knows.

        OpenAI's reasoning models know the answer's limit only under its newer name, and take
        neither temperature nor top_p, not even where it is 1, which is what they do anyway.
        """
        if "max_completion_tokens" in words:
            self._limit_field = "max_completion_tokens"
        sampling = request.sampling
        for name, value in (("temperature", sampling.temperature), ("top_p", sampling.top_p)):
            if value == 1.0 and name in words:
                self._implied |= {name}

    async def _post(self, request: Request) -> Completion:
        if self._client is None:
            raise BackendUnusable("the backend is not open")
        post = self._client.post(
            "/chat/completions",
            content=_encoder.encode(
                payload(
                    self._served_model,
                    request,
                    limit_field=self._limit_field,
                    implied=self._implied,
                )
            ),
            options={"headers": self._headers},
            cast_to=httpx2.Response,
        )
        # Not the transport's timeout: that starts again with every byte.
        response = await asyncio.wait_for(post, self.timeout_s)
        self._hear(response.headers)
        return read_body(response.content, redacted=self.redacted)

    async def _read(self, response: httpx2.Response) -> None:
        """Read a body before the SDK does, which knows no bound; or refuse to be led elsewhere."""
        asked = response.request.url
        if response.request.method == "POST" and response.has_redirect_location:
            check_redirect(str(asked), response.headers["location"])
        if not asked.path.endswith("/content"):  # of a batch's file, which is streamed to disk
            response._content = await bounded(response.aiter_bytes(), public_url(str(asked)))

    def _hear(self, headers: Mapping[str, str]) -> None:
        told = read_quotas(headers, time.time())
        if told is not None:
            self.rate_limits = told

    def _mapped(self, error: Exception, request: Request | None = None) -> BackendError:
        """Ours for one of `_FAILURES`, and for a request that was refused, how to put it."""
        where = public_url(self._base_url)
        if isinstance(error, openai.APIStatusError):
            self._hear(error.response.headers)
            return status_error(
                error.status_code,
                self.redacted(_words(error))[:_WORDS_SHOWN] + _advice(error, request),
                error.response.headers,
                where=where,
                code=f"{error.code or ''} {error.type or ''}",
            )
        if isinstance(error, asyncio.TimeoutError):
            words = f"{where}: no answer within {self.timeout_s:g} s (--timeout)"
            return TransientError(words, cause="timeout")
        root = _root(error)
        reason = self.redacted(str(root) or type(root).__name__)
        return TransientError(
            f"{where}: {' '.join(reason.split())}",
            cause="unreachable" if isinstance(root, _NO_CONNECTION) else "dropped",
        )

    async def call(
        self,
        api_call: Callable[[openai.AsyncOpenAI, dict[str, Any]], Awaitable[_T]],
        *,
        timeout_s: float | None = None,
    ) -> _T:
        """What another call of the API gives; errors as in `complete`.

        Args:
            api_call: gets the open SDK client and the headers that go with every call.
            timeout_s: how long it may take, seconds; None is as long as an answer.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        if self._client is None:
            raise BackendUnusable("the backend is not open")
        headers = {"Authorization": self._headers["Authorization"]}
        try:
            return await asyncio.wait_for(api_call(self._client, headers), timeout_s)
        except _FAILURES as error:
            raise self._mapped(error) from error

    async def probe(self) -> None:
        """Raise BackendUnusable where no request can succeed, as far as a look or two tell.

        A server needs no list of models, and may be busy or loading one. But who has a page for
        people in the place of that list and of the API is no server of models.
        """
        async with self:
            if await self._is_page("/models") and await self._is_page("/chat/completions"):
                raise BackendUnusable(
                    f"{public_url(self._base_url)}: no OpenAI API at this address, which answers "
                    "with a web page; give the API's own, such as http://localhost:8000/v1"
                )

    async def _is_page(self, path: str) -> bool:
        """Whether a GET brings HTML; a wrong key, and that nobody is there, is raised."""

        def get(api: openai.AsyncOpenAI, headers: dict[str, Any]) -> Awaitable[httpx2.Response]:
            return api.get(path, cast_to=httpx2.Response, options={"headers": headers})

        try:
            response = await self.call(get, timeout_s=_PROBE_TIMEOUT_S)
        except BackendError as error:
            if isinstance(error, TransientError) and error.cause == "unreachable":
                raise BackendUnusable(f"{error}; start the server, or give its URL") from error
            refusal = error.__cause__
            if not isinstance(refusal, openai.APIStatusError):
                return False
            # A key may be one for completions alone.
            if refusal.status_code == 401 and "scope" not in str(error):
                raise
            response = refusal.response
        is_html = "html" in response.headers.get("content-type", "")
        return is_html and response.status_code < 500  # a gateway has a page for its failures

    def redacted(self, text: str) -> str:
        """The text without anything that is secret."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


_FAILURES = (openai.OpenAIError, aiohttp.ClientError, asyncio.TimeoutError)
_NO_CONNECTION = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


def _root(error: BaseException) -> BaseException:
    """What happened on the wire.

    The SDK's transport calls a refused and a dropped connection a timeout, and lets some errors of
    aiohttp through as they are.
    """
    while error.__cause__ is not None and not isinstance(error, aiohttp.ClientError):
        error = error.__cause__
    return error


def _without_query(record: logging.LogRecord) -> bool:
    """Every record, without what may be secret in the addresses that it tells."""
    if isinstance(record.args, tuple):
        parts = (public_url(str(a)) if isinstance(a, httpx2.URL) else a for a in record.args)
        record.args = tuple(parts)
    return True


def check_redirect(asked: str, location: str) -> None:
    """Raise BackendUnusable for a redirect that would take prompts to somebody else."""
    led = urljoin(asked, location)
    here, there = urlsplit(asked), urlsplit(led)
    is_upgrade = (here.scheme, there.scheme) == ("http", "https")
    if here.hostname != there.hostname or not (here.netloc == there.netloc or is_upgrade):
        raise BackendUnusable(
            f"{public_url(asked)} redirects to {public_url(led)}, where the prompts would go; if "
            "that is meant, give that server's URL instead"
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
    if length > _MOST_BYTES:
        raise TransientError(
            f"{where}: the answer is longer than {_MOST_BYTES:,} bytes", cause="bad_body"
        )


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


def status_error(
    status: int, words: str, headers: Mapping[str, str], *, where: str, code: str = ""
) -> BackendError:
    """The error for an HTTP status, with the server's words."""
    message = f"{where} answered {status}: {words}"
    if status in (400, 413, 422) and _TOO_LONG.search(f"{code} {words}"):
        return ContextTooLong(message, room=_room(words))
    if status == 429 and "insufficient_quota" in f"{code} {words}":
        return BackendUnusable(f"{message}; the account has no credit left")
    if status in (408, 409, 425, 429) or status >= 500:
        return TransientError(message, cause=f"http_{status}", retry_after_s=retry_after(headers))
    if status == 402:
        return BackendUnusable(f"{message}; the account has no credit left")
    if status == 401:
        return BackendUnusable(f"{message}; check OPENAI_API_KEY")
    return RequestRefused(message, unknown_here=status in (403, 404), status=status)


def _room(words: str) -> int | None:
    """Tokens that the window leaves for the answer, as far as the refusal says."""
    window, prompt = _WINDOW.search(words), _PROMPT.search(words)
    return max(0, int(window[1]) - int(prompt[1])) if window and prompt else None


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


def _advice(error: openai.APIStatusError, request: Request | None) -> str:
    """What to do where a model takes no temperature or top_p but its own."""
    if request is not None and str(error.code).startswith("unsupported_"):
        for name in ("temperature", "top_p"):
            if error.param == name:
                return f" (give --{name} 1)"
    return ""


def _words(error: openai.APIStatusError) -> str:
    body = error.body
    detail: object = body
    if isinstance(body, dict):
        detail = body.get("message") or body.get("detail") or body.get("error") or body
    text = detail if isinstance(detail, str) else str(detail or error.message)
    return " ".join(text.split())
