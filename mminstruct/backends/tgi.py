"""Chat completions of a text-generation-inference (TGI) server of Hugging Face, from 2.0.2 on.

**Wire format:** https://huggingface.github.io/text-generation-inference/ (Messages API, ``/info``,
``/health``, ``/chat_tokenize``), in the types of the client package, ``text-generation``. Its own
client isn't used: it opens a connection for every request, and sends ``null`` for what is left out.

The model is known by its Hub id and revision, as ``/info`` says them, so that an answer counts
wherever the same weights are served; of weights from a folder the endpoint is part of the identity.
A run counts no tokens: what a refusal says of the room that a prompt leaves is as good.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import re
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import httpx2
import msgspec

from mminstruct.backends import BackendOptions, Opened
from mminstruct.backends._chat import read_body
from mminstruct.backends._http import (
    MOST_LESSONS,
    Answer,
    Endpoint,
    Post,
    check_length,
    is_folder,
    no_answer,
    open_session,
    redirect_of,
    shown_name,
    split_url,
)
from mminstruct.backends._refusals import (
    WORDS_SHOWN,
    Dialect,
    Refusal,
    error_of,
    read_refusal,
)
from mminstruct.backends._templates import without_system
from mminstruct.errors import (
    BackendError,
    BackendUnusable,
    RequestRefused,
    TransientError,
    UsageError,
)
from mminstruct.schema import Completion, Message, Request, Sampling
from mminstruct.transport import (
    PASSING_STATUS,
    Passing,
    Retries,
    RetryPolicy,
    key_from,
    public_url,
    retry_after,
)

if TYPE_CHECKING:
    from text_generation.types import ChatRequest

_INSTALL = "pip install 'mminstruct[tgi]'"
_HUGGING_FACE = ".endpoints.huggingface.cloud"
_ASKING_TIMEOUT_S = 30.0
# An estimate counts thousands of prompts; one refusal by a busy server doesn't end it.
_COUNTING = RetryPolicy(max_retries=4, max_pause_s=_ASKING_TIMEOUT_S)
_log = logging.getLogger(__name__)
_LOST = "no TGI server at this address; others are reached with --model_source openai"


class Served(msgspec.Struct, frozen=True):
    """What a server's ``/info`` says of it, as far as it matters here."""

    model_id: str
    max_total_tokens: int | None = None
    model_sha: str | None = None
    model_dtype: str | None = None
    max_concurrent_requests: int = 128
    version: str = "unknown"


class _Tokenized(msgspec.Struct):
    tokenize_response: list[Any]


_served_decoder = msgspec.json.Decoder(Served)
_tokenized_decoder = msgspec.json.Decoder(_Tokenized)


def create(options: BackendOptions) -> TGIBackend:
    """The backend for a TGI server and its replicas, which are not asked anything yet.

    Raises:
        UsageError: no URL is given or one isn't, an option doesn't fit, or the client package isn't
            installed.
    """
    if importlib.util.find_spec("text_generation") is None:
        raise UsageError(f"the client package text-generation is not installed; {_INSTALL}")
    if options.context_window is not None:
        raise UsageError(
            "the model source 'tgi' takes no context window: a TGI server has its own, set with "
            "its --max-total-tokens, and cuts prompts and answers to it; leave it out"
        )
    named, urls = options.model, options.base_urls
    if named is not None and "://" in named:
        if urls:
            raise UsageError(
                f"TGI server: got {public_url(named)} as the model and {public_url(urls[0])} as "
                "the server; give all servers with --tgi_url"
            )
        urls, named = (named,), None
    if not urls:
        raise UsageError(
            "the model source 'tgi' needs a server; give one with --tgi_url, such as "
            "http://localhost:8080"
        )
    return TGIBackend([endpoint(url, os.environ) for url in urls], options, named=named)


def endpoint(url: str, environment: Mapping[str, str]) -> Endpoint:
    """The server at a URL, with the key that is meant for it.

    ``HF_TOKEN`` opens an account, so it goes nowhere but to Hugging Face and never in the clear.

    Raises:
        UsageError: it isn't an http(s) URL, or has a query; the key can't be sent.
    """
    parts = split_url(url, "TGI URL", "http://localhost:8080", takes_query=False)
    path = re.sub(r"(/v1(/chat/completions)?|/generate(_stream)?)?/*$", "", parts.path)
    key = key_from(environment, "TGI_API_KEY")
    if key is None and parts.scheme == "https" and (parts.hostname or "").endswith(_HUGGING_FACE):
        key = key_from(environment, "HF_TOKEN")
    whole = urlunsplit((parts.scheme, parts.netloc, path, "", ""))
    return Endpoint.at(whole, key)


@lru_cache(maxsize=64)
def served(servers: tuple[Endpoint, ...]) -> Served:
    """What the first of these servers that is up says it runs; asked once in a process.

    Raises:
        BackendUnusable: none is up, or the first that answers isn't a TGI server or wants a key.
    """
    absent = []
    for server in servers:
        try:
            return ask_served(server)
        except TransientError as error:
            absent.append(str(error))
    raise BackendUnusable("; ".join(absent))


def ask_served(server: Endpoint) -> Served:
    """What a server runs now, asked once it is healthy.

    Raises:
        TransientError: nobody answers, or the model isn't ready.
        BackendUnusable: it isn't a TGI server, or wants a key.
    """
    with _open_client(server, follow_redirects=True) as client:
        try:
            health = client.get(f"{server.url}/health")
            info = client.get(f"{server.url}/info") if health.is_success else health
        except httpx2.HTTPError as error:
            raise TransientError(
                f"{server.url}: no TGI server answers ({server.redacted(str(error))}); one that "
                "has just been started listens once the model is loaded. Wait for that, or check "
                "the URL",
                cause="unreachable",
            ) from error
    if info.status_code in (401, 403):
        raise BackendUnusable(_tell_no_access(server, info.status_code))
    if info.status_code >= 500:
        words = " ".join(server.redacted(info.text).split())[:WORDS_SHOWN]
        raise TransientError(
            f"{server.url} answered {info.status_code} ({words}): the server is there, but its "
            "model is still loading or has died; wait until GET /health answers 200, or look at "
            "the server's log",
            cause=f"http_{info.status_code}",
        )
    try:
        return _served_decoder.decode(info.content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BackendUnusable(
            f"{server.url}: not a TGI server ({info.url.path} answered {info.status_code}); one "
            "without /info, or another, is reached with --model_source openai --model NAME "
            f"--openai_base_url {server.url}/v1"
        ) from error


def _headers(server: Endpoint) -> dict[str, str]:
    kind = {"Content-Type": "application/json"}
    return kind | ({"Authorization": server.authorization} if server.authorization else {})


def _open_client(server: Endpoint, **options: Any) -> httpx2.Client:
    """For what is asked beside the answers, with the bounds of these."""
    return httpx2.Client(
        headers=_headers(server),
        timeout=_ASKING_TIMEOUT_S,
        event_hooks={"response": [_read_bounded]},
        **options,
    )


def _read_bounded(response: httpx2.Response) -> None:
    """Read a body before `httpx2` does, which knows no bound."""
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        check_length(len(body), public_url(str(response.request.url)))
    response._content = bytes(body)


def payload(messages: Sequence[Message], sampling: Sampling) -> ChatRequest:
    """The request in the client package's types; ``tgi`` is any server's own model.

    TGI is greedy at a temperature of 0, but only if no top-p comes with it, and refuses one of 1.
    """
    from text_generation import types

    greedy = sampling.temperature == 0.0
    return types.ChatRequest(
        model="tgi",
        messages=[types.Message(role=m.role, content=m.content) for m in messages],
        temperature=sampling.temperature,
        top_p=None if greedy or sampling.top_p >= 1.0 else sampling.top_p,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed,
    )


def error_at(
    server: Endpoint, refusal: Refusal, headers: Mapping[str, str], sampling: Sampling
) -> BackendError:
    """The error that a refusal by a server, or by what stands before it, is here."""
    if refusal.status == 401:
        return BackendUnusable(_tell_no_access(server, 401))
    if refusal.status == 403 and not refusal.is_page:
        return RequestRefused(_tell_no_access(server, 403), unknown_here=True)
    return error_of(refusal, headers, where=server.url, sampling=sampling, lost=_LOST)


def _tell_no_access(server: Endpoint, status: int) -> str:
    host = urlsplit(server.url).hostname or ""
    name = "HF_TOKEN" if host.endswith(_HUGGING_FACE) else "TGI_API_KEY"
    sent = f"the key in {name} is not accepted" if server.authorization else f"set {name} to a key"
    return f"{server.url} answered {status}: {sent}"


class TGIBackend(Opened):
    """One model at one TGI server, and at the replicas of that.

    A server is asked what it runs when it is opened, and again after it couldn't be reached: one
    that has come back with other weights would give answers that are known by the wrong name. Of
    several servers some may be down at the opening.
    """

    name: Literal["tgi"] = "tgi"
    token_error = 0.0
    rate_limits = None  # TGI knows none

    def __init__(
        self,
        servers: Sequence[Endpoint],
        options: BackendOptions,
        *,
        named: str | None = None,
        own: int = 0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._servers = tuple(servers)
        self._server = self._servers[own]
        self._options = options
        self._named = named
        self._sleep = sleep
        self._session: aiohttp.ClientSession | None = None
        self._counting: httpx2.Client | None = None
        # An estimate asks for a chunk of prompts, to see what fits, and then for each again.
        self._count = lru_cache(maxsize=1024)(self._ask_count)
        self._checking: asyncio.Lock | None = None
        self._is_checked = False
        self._chat = Post.to(f"{self._server.url}/v1/chat/completions", _headers(self._server))
        self._dialect = Dialect()
        self._replicas: tuple[TGIBackend, ...] = (self,)
        if own == 0:
            others = range(1, len(servers))
            self._replicas += tuple(
                TGIBackend(servers, options, named=named, own=n) for n in others
            )

    @property
    def replicas(self) -> tuple[TGIBackend, ...]:
        """One for each server; the first is this one."""
        return self._replicas

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The servers' URLs."""
        return tuple(replica._server.url for replica in self._replicas)

    @property
    def model(self) -> str:
        """Its Hub id; of weights in a folder the name given with ``--model``, or the folder's."""
        return shown_name(self._model_id())

    @property
    def repo_id(self) -> str | None:
        """Its Hub id; None for weights in a folder that nobody gave a name."""
        served_id = self._model_id()
        return None if is_folder(served_id) else served_id

    @property
    def parallel(self) -> int:
        """What the servers take at once, at most: they refuse all beyond."""
        most = len(self._replicas) * self._ask_known().max_concurrent_requests
        return min(self._options.max_concurrency, most)

    @property
    def context_window(self) -> int | None:
        """The server's, for an estimate; once open None, as the server then sees to it itself.

        What is sent is the same either way: the room that a refusal tells is what a count leaves.
        """
        return None if self._session else self._ask_known().max_total_tokens

    def identity(self) -> dict[str, str]:
        """Model and revision; the endpoint as well if the server doesn't know the revision."""
        found = self._ask_known()
        identity = {"backend": self.name, "model": self.model}
        if found.model_sha:
            identity["revision"] = found.model_sha
        else:
            identity["endpoint"] = self._servers[0].url
        if found.model_dtype:  # servers before 3.0
            identity["dtype"] = found.model_dtype
        return identity

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """The server's own count, a round trip; a run needs none."""
        return self._count(tuple(messages))

    def _ask_count(self, messages: tuple[Message, ...]) -> int:
        if self._counting is None:
            self._counting = _open_client(self._server, transport=httpx2.HTTPTransport(retries=3))
            weakref.finalize(self, self._counting.close)
        counting, url = self._counting, f"{self._server.url}/chat_tokenize"
        asked = payload(messages, Sampling()).model_dump_json(exclude_none=True)

        def attempt() -> int:
            answer = counting.post(url, content=asked)
            if answer.status_code == 200:
                return len(_tokenized_decoder.decode(answer.content).tokenize_response)
            words = read_refusal(answer.status_code, answer.content, self._server.redacted).words
            failure = f"{url} answered {answer.status_code}: {words}"
            if answer.status_code in PASSING_STATUS:
                raise Passing(failure, retry_after(answer.headers))
            advice = "; a TGI server counts tokens from 2.3 on"
            raise BackendUnusable(failure + (advice if answer.status_code == 404 else ""))

        try:
            return Retries(_COUNTING).run(attempt, self._sleep, _log.debug)
        except Passing as failure:
            raise BackendUnusable(str(failure)) from failure
        except (httpx2.HTTPError, msgspec.DecodeError, UnicodeDecodeError) as error:
            reason = self._server.redacted(str(error))
            raise BackendUnusable(f"{url}: tokens can't be counted: {reason}") from error

    async def __aenter__(self) -> TGIBackend:
        self._checking = asyncio.Lock()
        parallel = self.parallel
        if len(self._servers) == 1:
            try:
                await self._check()
            except TransientError as error:
                raise BackendUnusable(str(error)) from error
        self._session = open_session(parallel, self._options.timeout_s)
        return self

    async def close(self) -> None:
        """Let go of the connections; what the server runs is asked anew at the next opening."""
        if self._session is not None:
            await self._session.close()
        self._session = None
        self._is_checked = False

    async def complete(self, request: Request) -> Completion:
        """One answer; errors as in `mminstruct.backends.Backend.complete`."""
        if self._session is None:
            raise BackendUnusable("the backend is not open")
        await self._check()
        for _ in range(MOST_LESSONS):
            before = self._chat, self._dialect
            status, headers, body = await self._post(request)
            if status == 200:
                break
            refusal = read_refusal(status, body, self._server.redacted)
            self._learn(refusal, headers, request)
            if before == (self._chat, self._dialect):
                raise error_at(self._server, refusal, headers, request.sampling)
        completion = read_body(
            body,
            redacted=self._server.redacted,
            where=self._server.url,
            lost=_LOST,
            max_tokens=request.sampling.max_tokens,
        )
        if completion.model != self._ask_known().model_id:
            raise self._tell_change(completion.model)
        return replace(completion, model=self.model)

    def _learn(self, refusal: Refusal, headers: Mapping[str, str], request: Request) -> None:
        """Take the place that a request was sent on to, and go without a system prompt."""
        if 300 <= refusal.status < 400:
            led = redirect_of(self._chat.url, headers.get("location", ""))
            self._chat = Post.to(led, _headers(self._server))
        learned = self._dialect.learn(refusal, request.sampling)
        if learned.system != self._dialect.system:
            _log.info(f"{self._server.url}: {learned.news(self._dialect)}")
            self._dialect = replace(self._dialect, system=learned.system)

    async def _post(self, request: Request) -> Answer:
        messages = request.messages
        if not self._dialect.system:
            messages = without_system(messages)
        asked = payload(messages, request.sampling).model_dump_json(exclude_none=True).encode()
        assert self._session is not None
        try:
            return await self._chat.send(self._session, asked)
        except (asyncio.TimeoutError, aiohttp.ClientError) as error:
            failure = no_answer(error, self._server, self._options.timeout_s)
            if failure.cause != "timeout":
                self._is_checked = False
            raise failure from error

    def _ask_known(self) -> Served:
        """What the answers are known by, which all servers have to run."""
        return served(self._servers)

    def _model_id(self) -> str:
        found = self._ask_known().model_id
        if self._named and self._named != found:
            if is_folder(found):
                return self._named
            raise UsageError(
                f"model {self._named!r}: {self._server.url} runs {found}; leave --model out, or "
                "start a server with the other model"
            )
        return found

    async def _check(self) -> None:
        """Make sure that the server runs what its answers will be known by.

        Raises:
            TransientError: it isn't up.
            BackendUnusable: it runs something else.
        """
        if self._is_checked or self._checking is None:
            return
        async with self._checking:
            if self._is_checked:
                return
            now = await asyncio.to_thread(ask_served, self._server)
            if _name_weights(now) != _name_weights(self._ask_known()):
                raise self._tell_change(" ".join(filter(None, _name_weights(now))))
            self._is_checked = True

    def _tell_change(self, now: str | None) -> BackendUnusable:
        before = " ".join(filter(None, _name_weights(self._ask_known())))
        served.cache_clear()
        return BackendUnusable(
            f"{self._server.url} runs {now}, and the run began with {before}; run or load again "
            "to take what is run now; all servers have to run the same"
        )


def _name_weights(found: Served) -> tuple[str | None, ...]:
    return found.model_id, found.model_sha, found.model_dtype
