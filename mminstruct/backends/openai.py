"""Chat completions of any OpenAI-compatible server.

**Wire format:** https://platform.openai.com/docs/api-reference/chat/create

The SDK says what a request is like: its address and its headers. It is sent without it, as its
layers cost four times what the request does. The client above all backends does the retries.

Token counts are OpenAI's own for its models (within 1 %: some add a token or two) and approximate
for any other. What has to fit a context window is judged by a bound on the high side.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import aiohttp
import httpx2
import msgspec
import openai

from mminstruct.backends import BackendOptions, Opened, _names, _tokens
from mminstruct.backends._chat import read_body
from mminstruct.backends._http import (
    CONNECT_TIMEOUT_S,
    MOST_LESSONS,
    REDIRECTS,
    Answer,
    Endpoint,
    Post,
    bounded,
    no_answer,
    open_session,
    redirect_of,
    shown_name,
    split_url,
)
from mminstruct.backends._refusals import Dialect, Refusal, error_of, kind_of, read_refusal
from mminstruct.backends._templates import without_system
from mminstruct.errors import (
    BackendError,
    BackendUnusable,
    TransientError,
    UsageError,
)
from mminstruct.resources import shown
from mminstruct.schema import Completion, Message, Option, Request, canonical_json
from mminstruct.transport import (
    Quotas,
    key_from,
    public_url,
    read_quotas,
)

_T = TypeVar("_T")

_OFFICIAL_URL = "https://api.openai.com/v1"
# Longer than connecting may take, which is to be told from a slow answer.
_PROBE_TIMEOUT_S = CONNECT_TIMEOUT_S + 10.0
_NEWS_SHOWN = 200
# What a request says in its own words, and by what flag it is said otherwise.
_OURS = {
    "model": "--model",
    "messages": "--prompt_config",
    "temperature": "--temperature",
    "top_p": "--top_p",
    "max_tokens": "--max_tokens",
    "max_completion_tokens": "--max_tokens",
    "seed": "--seed",
}
# Headers that whoever sends a request writes itself, unless a user does.
_OF_CONNECTIONS = ("host", "connection", "accept-encoding", "content-length")
_SECRET_NAME = re.compile(r"key|token|auth|secret|cookie|password|credential", re.IGNORECASE)

OPTIONS = {
    "extra_body": Option(dict, "further fields of every request, as JSON or in a JSON file, "
                         """such as '{"chat_template_kwargs": {"enable_thinking": false}}'"""),
    "header": Option(list, "NAME=VALUE, sent with every request; may be given again; a secret is "
                     "'NAME=$VARIABLE', and its value is written nowhere"),
}  # fmt: skip

_log = logging.getLogger(__name__)
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
    parts = split_url(url, "base URL", "http://localhost:8000/v1")
    path = parts.path.rstrip("/")
    if path.endswith("/chat/completions"):
        path = path.removesuffix("/chat/completions")
    else:
        path = path.removesuffix("/completions")
        if not re.search(r"/v\d[\w.]*(?:/|$)", path):
            path += "/v1"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def payload(
    model: str,
    request: Request,
    *,
    dialect: Dialect | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The body of the POST, with a seed only if there is one: some servers refuse the field.

    Args:
        model: its name at the server.
        request: what to ask.
        dialect: how the server wants to be asked.
        extra: further fields.
    """
    sampling, dialect = request.sampling, dialect or Dialect()
    body: dict[str, Any] = {
        "model": model,
        "messages": request.messages if dialect.system else without_system(request.messages),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        dialect.limit_field: sampling.max_tokens,
    }
    for name in dialect.implied:
        if body[name] == 1.0:
            del body[name]
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if dialect.stream:
        body["stream"] = True
    return {**body, **(extra or {})}


def read_extra(given: dict[str, Any] | str | None) -> dict[str, Any]:
    """The fields in ``--extra_body``: JSON, or the path of a file with it.

    Raises:
        UsageError: it is neither, or says what a flag says.
    """
    if given is None:
        return {}
    found: Any = given
    if isinstance(given, str):
        try:
            text = given if "{" in given else Path(given).expanduser().read_text("utf-8")
            found = json.loads(text)
        except OSError as error:
            raise UsageError(f"extra_body: {shown(Path(given))}: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"extra_body: not JSON ({error}): {given!r}") from error
    if not isinstance(found, dict):
        raise UsageError(f"extra_body: expected a JSON object, got {found!r}")
    for name in sorted(found.keys() & _OURS.keys()):
        raise UsageError(f"extra_body: {name!r} is said with {_OURS[name]}; leave it out here")
    return found


def read_headers(given: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The headers in ``--header``, each ``NAME=VALUE`` or ``NAME=$VARIABLE``.

    Raises:
        UsageError: one isn't, can't be sent, or has a secret written out.
    """
    headers = {}
    for entry in given:
        name, _, value = entry.partition("=")
        if not re.fullmatch(r"[\w-]+", name) or not value:
            raise UsageError(f"header: expected NAME=VALUE or NAME='$VARIABLE', got {name!r}")
        if value.startswith("$"):
            secret = key_from(environment, value[1:].strip("{}"))
            if secret is None:
                raise UsageError(f"header {name}: the variable {value} is not set; set it")
            value = secret
        elif _SECRET_NAME.search(name):
            raise UsageError(
                f"header {name}: a secret comes from an environment variable, in single quotes, "
                f"--header '{name}=$VARIABLE', so that it is written nowhere"
            )
        headers[name] = value
    return headers


class OpenAIBackend(Opened):
    """One model at an OpenAI-compatible server, and at the replicas of that."""

    name: Literal["openai"] = "openai"

    def __init__(self, options: BackendOptions, *, api_key: str | None) -> None:
        self._base_url = normal_base_url(options.base_urls[0] if options.base_urls else None)
        self._official = self._base_url == _OFFICIAL_URL
        self._options = options
        self._api_key = api_key
        self.extra_body = read_extra(options.engine.get("extra_body"))
        own = tuple(options.engine.get("header") or ())
        own_headers = read_headers(own, os.environ)
        self._said = sorted(entry for entry in own if "=$" not in entry)
        hidden = [own_headers[entry.partition("=")[0]] for entry in own if "=$" in entry]
        self._server = Endpoint.at(self._base_url, api_key, hidden)
        self._headers = {
            "Content-Type": "application/json",
            "Authorization": self._server.authorization or openai.Omit(),
            **own_headers,
        }
        self._dialect = Dialect()
        self._path = "/chat/completions"
        self._answers_as: str | None = None
        self._client: openai.AsyncOpenAI | None = None
        self._session: aiohttp.ClientSession
        self._posts: dict[str, Post] = {}  # by path
        self._served_model = options.model or ""
        self.model = shown_name(self._served_model)
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
        return tuple(replica._server.url for replica in self.replicas)

    def identity(self) -> dict[str, str]:
        """Endpoint and model name; what a server loads under that name it alone knows."""
        identity = {
            "backend": self.name,
            "endpoint": self._server.url,
            "model": self._served_model,
        }
        # Absent where nothing was said, so that answers of before count.
        for name, said in (("extra_body", self.extra_body), ("header", self._said)):
            if said:
                identity[name] = canonical_json(said).decode()
        return identity

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """OpenAI's own count for its models, if their tokenizer can be had; else approximate."""
        count = _tokens.openai_counter(self._served_model)
        self.token_error = _tokens.TIKTOKEN_ERROR if count else _tokens.APPROXIMATION_ERROR
        return (count or _tokens.approximate)(messages)

    def redacted(self, text: str) -> str:
        """The text without anything that is secret."""
        return self._server.redacted(text)

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
            base_url=self._server.url,
            default_query=dict(parse_qsl(urlsplit(self._base_url).query, keep_blank_values=True)),
            max_retries=0,
            http_client=openai.DefaultAioHttpClient(
                follow_redirects=False,  # `complete` does it, which keeps the POST
                timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),
                limits=httpx2.Limits(
                    max_connections=connections, max_keepalive_connections=connections
                ),
                event_hooks={"response": [self._read]},
            ),
        )
        self._session = open_session(connections, self.timeout_s)
        return self

    async def close(self) -> None:
        """Let go of the connections."""
        if self._client is not None:
            await self._client.close()
            await self._session.close()
        self._client = None
        self._posts.clear()

    async def complete(self, request: Request) -> Completion:
        """One answer; errors as in `mminstruct.backends.Backend.complete`."""
        for _ in range(MOST_LESSONS):
            before = self._dialect, self._path
            post = self._posts.get(self._path) or await self._draw(self._path)
            answer = await self._send(post, request)
            if 200 <= answer.status < 300:
                return self._read_answer(answer, request)
            refusal = read_refusal(answer.status, answer.body, self._server.redacted)
            location = answer.headers.get("location")
            if answer.status in REDIRECTS and location:
                self._path = redirect_of(post.url, location)
            self._learn(refusal, request)
            if before == (self._dialect, self._path):
                raise self._make_error(refusal, answer.headers, request)
        raise TransientError(f"{self._server.url}: sends requests in a circle", cause="no_api")

    def _learn(self, refusal: Refusal, request: Request) -> None:
        """Note what a refusal says of how the server wants to be asked."""
        before = self._dialect
        self._dialect = before.learn(refusal, request.sampling)
        if self._dialect != before:
            news = self._dialect.news(before)
            _log.info(f"{self._server.url}: {news} (it answered: {refusal.words[:_NEWS_SHOWN]})")

    async def _send(self, post: Post, request: Request) -> Answer:
        body = payload(self._served_model, request, dialect=self._dialect, extra=self.extra_body)
        try:
            return await post.send(self._session, _encoder.encode(body))
        except _FAILURES as error:
            raise self._map_error(error) from error

    async def _draw(self, path: str) -> Post:
        """A POST to a path as the SDK would send it."""
        if self._client is None:
            raise BackendUnusable("the backend is not open")
        drawn: list[httpx2.Request] = []

        def keep(request: httpx2.Request) -> httpx2.Response:
            drawn.append(request)
            raise httpx2.ConnectError("nothing is sent from here")

        async with httpx2.AsyncClient(transport=httpx2.MockTransport(keep)) as nowhere:
            sdk = self._client.with_options(http_client=nowhere)
            options: Any = {"headers": self._headers}
            with suppress(openai.APIConnectionError):
                await sdk.post(path, content=b"{}", cast_to=httpx2.Response, options=options)
        own = {name.lower() for name in self._headers}
        sent = drawn[0].headers.items()
        headers = {name: it for name, it in sent if name in own or name not in _OF_CONNECTIONS}
        self._posts[path] = Post.to(str(drawn[0].url), headers)
        return self._posts[path]

    def _read_answer(self, answer: Answer, request: Request) -> Completion:
        self._hear(answer.headers)
        completion = read_body(
            answer.body,
            redacted=self._server.redacted,
            where=self._server.url,
            lost=self._lost,
            max_tokens=request.sampling.max_tokens,
        )
        self._check_model(completion.model)
        return completion

    @property
    def _lost(self) -> str:
        """What to do where no API is at the address."""
        missing = "/v1" not in self._base_url
        hint = "with /v1?" if missing else "some have it at /api/v1 or /openai/v1"
        return f"no OpenAI API at this address; {hint}"

    def _check_model(self, answers_as: str | None) -> None:
        """Raise BackendUnusable where another model answers than rows would say.

        A server may call its model as it likes, but not by the name of another.
        """
        if answers_as is None:
            return
        for asked in (self._served_model, self._answers_as or ""):
            if _names.contradict(asked, answers_as):
                raise BackendUnusable(
                    f"{self._server.url} was asked for {self._served_model!r}"
                    f"{f' and answered as {asked!r}' if asked != self._served_model else ''}, and "
                    f"now {answers_as!r} answers; rows can name one model and its terms: give "
                    "--model as the server names what really answers"
                )
        if self._answers_as is None and _names.families(answers_as):
            self._answers_as = answers_as

    async def _read(self, response: httpx2.Response) -> None:
        """Read a body before the SDK does, which knows no bound; or refuse to be led elsewhere."""
        asked = response.request.url
        if response.request.method == "POST" and response.has_redirect_location:
            redirect_of(str(asked), response.headers["location"])
        if not asked.path.endswith("/content"):  # of a batch's file, which is streamed to disk
            response._content = await bounded(response.aiter_bytes(), public_url(str(asked)))

    def _hear(self, headers: Mapping[str, str]) -> None:
        told = read_quotas(headers, time.time())
        if told is not None:
            self.rate_limits = told

    def _read_refusal(self, response: httpx2.Response) -> Refusal:
        return read_refusal(response.status_code, response.content, self._server.redacted)

    def _make_error(
        self, refusal: Refusal, headers: Mapping[str, str], request: Request | None = None
    ) -> BackendError:
        self._hear(headers)
        sampling = request.sampling if request else None
        return error_of(
            refusal, headers, where=self._server.url, sampling=sampling, lost=self._lost
        )

    def _map_error(self, error: Exception) -> BackendError:
        """Ours for one of `_FAILURES`."""
        if isinstance(error, openai.APIStatusError):
            refusal = self._read_refusal(error.response)
            return self._make_error(refusal, error.response.headers)
        return no_answer(error, self._server, self.timeout_s)

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
        headers = {name: it for name, it in self._headers.items() if name != "Content-Type"}
        try:
            return await asyncio.wait_for(api_call(self._client, headers), timeout_s)
        except _FAILURES as error:
            raise self._map_error(error) from error

    async def probe(self) -> None:
        """Raise BackendUnusable where no request can succeed, as far as two small ones tell.

        A server needs no list of models, and may be busy or loading one. Where it has no list, a
        request without a word in it, which costs nothing, tells whether the API is there.
        """

        def look(api: openai.AsyncOpenAI, headers: dict[str, Any]) -> Awaitable[httpx2.Response]:
            return api.get("/models", cast_to=httpx2.Response, options={"headers": headers})

        def ask(api: openai.AsyncOpenAI, _: dict[str, Any]) -> Awaitable[httpx2.Response]:
            options: Any = {"headers": self._headers}
            return api.post(self._path, content=b"{}", cast_to=httpx2.Response, options=options)

        async with self:
            if await self._look_for_api(look) and (missing := await self._look_for_api(ask)):
                raise BackendUnusable(str(missing))

    async def _look_for_api(
        self, api_call: Callable[[openai.AsyncOpenAI, Any], Awaitable[httpx2.Response]]
    ) -> BackendError | None:
        """What the answer is if no API is there; a wrong key, and that nobody is, is raised."""
        try:
            response = await self.call(api_call, timeout_s=_PROBE_TIMEOUT_S)
        except BackendError as error:
            if isinstance(error, TransientError) and error.cause == "unreachable":
                raise BackendUnusable(f"{error}; start the server, or give its URL") from error
            refusal = error.__cause__
            if not isinstance(refusal, openai.APIStatusError):
                return None
            # A key may be one for completions alone.
            if refusal.status_code == 401 and "scope" not in str(error):
                raise
            response = refusal.response
        found = self._read_refusal(response)
        return self._make_error(found, response.headers) if kind_of(found) == "no_api" else None


_FAILURES = (openai.OpenAIError, aiohttp.ClientError, asyncio.TimeoutError)


def _without_query(record: logging.LogRecord) -> bool:
    """Every record, without what may be secret in the addresses that it tells."""
    if isinstance(record.args, tuple):
        parts = (public_url(str(a)) if isinstance(a, httpx2.URL) else a for a in record.args)
        record.args = tuple(parts)
    return True
