"""Chat completions of any OpenAI-compatible server.

**Wire format:** https://platform.openai.com/docs/api-reference/chat/create

The SDK runs over its aiohttp transport and without its typed layer (`post(cast_to=Response)`):
with 500 requests in flight the default transport answers at about half the rate, and the typed
layer costs as much CPU again as the request itself. Its own retries are off; the client above all
backends does them.

Token counts are an approximation here, deliberately on the high side: three UTF-8 bytes a token,
four tokens a message. They only matter when a context window was given.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import httpx2
import msgspec
import openai

from mminstruct.backends import BackendOptions
from mminstruct.errors import (
    BackendError,
    BackendUnusable,
    ContextTooLong,
    RequestRefused,
    TransientError,
    UsageError,
)
from mminstruct.schema import Completion, FinishReason, Message, Request

_OFFICIAL_URL = "https://api.openai.com/v1"
_BYTES_PER_TOKEN = 3.0
_TOKENS_PER_MESSAGE = 4
_WORDS_SHOWN = 500
_TOO_LONG = re.compile(
    r"context_length_exceeded|maximum context length|context (?:length|window|size)"
    r"|prompt is too long|too many (?:input )?tokens|max_model_len",
    re.IGNORECASE,
)
_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
}


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Body(msgspec.Struct):
    choices: list[_Choice]
    model: str | None = None
    usage: _Usage | None = None


_decoder = msgspec.json.Decoder(_Body)
_encoder = msgspec.json.Encoder()


def create(options: BackendOptions) -> OpenAIBackend:
    """The backend for a model at a server.

    The key comes from ``OPENAI_API_KEY`` alone; without a URL, ``OPENAI_BASE_URL`` is asked.

    Raises:
        UsageError: no model is named, or the URL isn't one.
    """
    if not options.model:
        raise UsageError("the model source 'openai' needs a model name; give one with --model")
    if options.base_url is None:
        options = replace(options, base_url=os.environ.get("OPENAI_BASE_URL") or None)
    return OpenAIBackend(options, api_key=os.environ.get("OPENAI_API_KEY") or None)


def normal_base_url(url: str | None) -> str:
    """The API root: with scheme, without trailing slash, ending in a version such as ``/v1``.

    Raises:
        UsageError: it isn't an http(s) URL.
    """
    if url is None:
        return _OFFICIAL_URL
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            "base URL: expected something like http://localhost:8000/v1, "
            f"got {public_url(url.strip())!r}"
        )
    path = parts.path.rstrip("/")
    for tail in ("/chat/completions", "/completions"):
        path = path.removesuffix(tail)
    if not re.search(r"/v\d+\w*(?:/|$)", path):
        path += "/v1"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def public_url(url: str) -> str:
    """The URL without user, password, query and fragment, fit for rows, keys and logs."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2].lower()
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def payload(model: str, request: Request, *, limit_field: str = "max_tokens") -> dict[str, Any]:
    """The body of the POST, with a seed only if there is one: some servers refuse the field."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": model,
        "messages": request.messages,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        limit_field: sampling.max_tokens,
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    return body


def read_body(body: bytes) -> Completion:
    """The completion in a response's body.

    Raises:
        TransientError: it isn't one: damaged JSON, no choices.
    """
    try:
        answer = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        words = body[:_WORDS_SHOWN].decode(errors="replace")
        raise TransientError(
            f"the server's answer is not a chat completion ({error}): {words!r}", cause="bad_body"
        ) from error
    if not answer.choices:
        raise TransientError("the server's answer has no choices", cause="bad_body")
    choice = answer.choices[0]
    usage = answer.usage or _Usage()
    finish = _FINISH.get(choice.finish_reason or "stop", "other")
    if choice.message.refusal and not choice.message.content:
        finish = "content_filter"
    return Completion(
        text=choice.message.content or "",
        finish_reason=finish,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        model=answer.model,
    )


class OpenAIBackend:
    """One model at one OpenAI-compatible server."""

    name: Literal["openai"] = "openai"

    def __init__(self, options: BackendOptions, *, api_key: str | None) -> None:
        self._base_url = normal_base_url(options.base_url)
        self._official = self._base_url == _OFFICIAL_URL
        self._options = options
        self._api_key = api_key
        self._limit_field = "max_tokens"
        self._client: openai.AsyncOpenAI | None = None
        self.model = options.model or ""
        # A server of one's own knows models by their Hub id; the official one has terms of its own.
        self.repo_id = "openai-api" if self._official else self.model
        self.parallel = options.max_concurrency
        self.context_window = options.context_window

    def identity(self) -> dict[str, str]:
        """Endpoint and model name; what a server loads under that name it alone knows."""
        return {"backend": self.name, "endpoint": public_url(self._base_url), "model": self.model}

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """An approximation on the high side, see above."""
        content_bytes = sum(len(m.content.encode()) for m in messages)
        return int(content_bytes / _BYTES_PER_TOKEN) + _TOKENS_PER_MESSAGE * len(messages)

    async def __aenter__(self) -> OpenAIBackend:
        if self._official and self._api_key is None:
            raise BackendUnusable(
                "OPENAI_API_KEY is not set; set it, or give your own server with --openai_base_url"
            )
        connections = self._options.max_concurrency
        self._client = openai.AsyncOpenAI(
            # The SDK insists on a key; servers without authentication ignore it.
            api_key=self._api_key or "none",
            base_url=self._base_url,
            max_retries=0,
            http_client=openai.DefaultAioHttpClient(
                timeout=httpx2.Timeout(self._options.timeout_s, connect=30.0, pool=None),
                limits=httpx2.Limits(
                    max_connections=connections, max_keepalive_connections=connections
                ),
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
        limit_field = self._limit_field
        try:
            return await self._post(request, limit_field)
        except openai.BadRequestError as error:
            # Reasoning models of OpenAI know the limit only under its newer name.
            if limit_field != "max_tokens" or "max_completion_tokens" not in str(error):
                raise self._mapped(error) from error
        except openai.OpenAIError as error:
            raise self._mapped(error) from error
        self._limit_field = "max_completion_tokens"
        try:
            return await self._post(request, self._limit_field)
        except openai.OpenAIError as error:
            raise self._mapped(error) from error

    async def _post(self, request: Request, limit_field: str) -> Completion:
        if self._client is None:
            raise BackendUnusable("the backend is not open")
        response = await self._client.post(
            "/chat/completions",
            content=_encoder.encode(payload(self.model, request, limit_field=limit_field)),
            options={"headers": {"Content-Type": "application/json"}},
            cast_to=httpx2.Response,
        )
        return read_body(response.content)

    def _mapped(self, error: openai.OpenAIError) -> BackendError:
        """Ours for one of the SDK's."""
        where = public_url(self._base_url)
        if isinstance(error, openai.APIStatusError):
            return status_error(
                error.status_code,
                _words(error, self._api_key),
                error.response.headers,
                where=where,
                code=str(error.code or ""),
            )
        if isinstance(error, openai.APITimeoutError):
            seconds = self._options.timeout_s
            return TransientError(f"{where}: no answer within {seconds:g} s", cause="timeout")
        cause = error.__cause__ or error
        return TransientError(
            f"{where}: {_redacted(str(cause) or type(cause).__name__, self._api_key)}",
            cause="unreachable" if isinstance(cause, httpx2.ConnectError) else "dropped",
        )


def status_error(
    status: int, words: str, headers: Mapping[str, str], *, where: str, code: str = ""
) -> BackendError:
    """The error for an HTTP status, with the server's words."""
    message = f"{where} answered {status}: {words}"
    if status in (400, 413, 422) and _TOO_LONG.search(f"{code} {words}"):
        return ContextTooLong(message)
    if status == 429 and "insufficient_quota" in f"{code} {words}":
        return BackendUnusable(f"{message}; the account has no credit left")
    if status in (408, 409, 425, 429) or status >= 500:
        return TransientError(message, cause=f"http_{status}", retry_after_s=retry_after(headers))
    if status == 401:
        return BackendUnusable(f"{message}; check OPENAI_API_KEY")
    return RequestRefused(message)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: ``retry-after-ms``, else ``Retry-After``, else None.

    **Source:** RFC 9110 section 10.2.3 (seconds or an HTTP date).
    """
    milliseconds = headers.get("retry-after-ms")
    value = headers.get("retry-after")
    try:
        if milliseconds is not None:
            return max(0.0, float(milliseconds) / 1000)
        if value is None:
            return None
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value or "")
    except (TypeError, ValueError):
        return None
    return max(0.0, when.timestamp() - time.time())


def _words(error: openai.APIStatusError, api_key: str | None) -> str:
    body = error.body
    detail: object = body
    if isinstance(body, dict):
        detail = body.get("message") or body.get("detail") or body.get("error") or body
    text = detail if isinstance(detail, str) else str(detail or error.message)
    return _redacted(" ".join(text.split())[:_WORDS_SHOWN], api_key)


def _redacted(text: str, api_key: str | None) -> str:
    return text.replace(api_key, "***") if api_key else text
