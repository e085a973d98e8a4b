"""A chat completion is sent as the SDK would send it, though without the SDK."""

from __future__ import annotations

import asyncio
import gc
import logging

import openai
import pytest
from aiohttp import web
from loopback import LoopbackServer

from mminstruct.backends import BackendOptions
from mminstruct.backends._http import proxy_of, redirect_of
from mminstruct.backends.openai import OpenAIBackend
from mminstruct.errors import BackendUnusable, RequestRefused, TransientError
from mminstruct.schema import Completion, Message, Request, Sampling

REQUEST = Request((Message("user", "Wie heißt du?"),), Sampling(0.5))
NOBODY = "http://user:proxy-secret@127.0.0.1:1"


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is named, unless a test does."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def backend(url: str, *, header: tuple[str, ...] = ()) -> OpenAIBackend:
    """One at an address, with a key."""
    options = BackendOptions(
        model="m", base_urls=(url,), timeout_s=20.0, engine={"header": list(header)}
    )
    return OpenAIBackend(options, api_key="sk-planted")


def ask(asked: OpenAIBackend) -> Completion:
    """One answer, in an event loop of its own."""

    async def run() -> Completion:
        async with asked:
            return await asked.complete(REQUEST)

    return asyncio.run(run())


def test_headers_query_and_body_are_those_that_the_sdk_sends(
    server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "OPENAI_ORG_ID": "org-1",
        "OPENAI_PROJECT_ID": "project-1",
        "OPENAI_CUSTOM_HEADERS": "X-Tenant: blue",
    }.items():
        monkeypatch.setenv(name, value)
    ask(backend(f"{server.url}?api-version=2024%2B1&empty="))

    async def ask_with_the_sdk() -> None:
        async with openai.AsyncOpenAI(
            api_key="sk-planted",
            base_url=server.url,
            default_query={"api-version": "2024+1", "empty": ""},
            timeout=None,
            http_client=openai.DefaultAioHttpClient(),
        ) as sdk:
            await sdk.post("/chat/completions", cast_to=object, body=server.bodies[0])

    asyncio.run(ask_with_the_sdk())
    ours, theirs = ({name.lower(): it for name, it in sent.items()} for sent in server.headers)
    assert ours.pop("content-length") == theirs.pop("content-length")
    assert theirs.pop("connection") == "keep-alive"  # which HTTP/1.1 means anyway
    assert ours == theirs
    assert ours["openai-organization"] == "org-1"
    assert ours["x-tenant"] == "blue"
    assert server.queries == ["api-version=2024%2B1&empty="] * 2


def test_a_header_of_ones_own_goes_before_any_other(server: LoopbackServer) -> None:
    own = {"Host": "llm.example", "Accept-Encoding": "identity", "User-Agent": "me"}
    ask(backend(server.url, header=tuple(f"{name}={value}" for name, value in own.items())))
    sent = {name.lower(): value for name, value in server.headers[0].items()}
    assert [sent[name.lower()] for name in own] == list(own.values())


def test_the_proxy_that_the_environment_names_is_asked_with_its_password(
    server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://user:proxy-secret@127.0.0.1:{server.port}")
    assert "Sentence 1" in ask(backend("http://llm.example/v1")).text
    assert server.headers[0]["Host"] == "llm.example"
    assert server.headers[0]["Proxy-Authorization"] == "Basic dXNlcjpwcm94eS1zZWNyZXQ="
    assert server.headers[0]["Authorization"] == "Bearer sk-planted"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_refuses_gets_its_password_and_nobody_else(
    server: LoopbackServer, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    heads: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 407 Who are you?\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async def run() -> None:
        proxy = await asyncio.start_server(refuse, "127.0.0.1", 0)
        port = proxy.sockets[0].getsockname()[1]
        monkeypatch.setenv("ALL_PROXY", f"http://user:proxy%2Dsecret@127.0.0.1:{port}")
        try:
            async with backend(f"{scheme}://llm.example/v1") as asked:
                await asked.complete(REQUEST)
        finally:
            proxy.close()

    with pytest.raises((TransientError, RequestRefused), match="407") as caught:
        asyncio.run(run())
    assert heads[0].startswith(b"CONNECT" if scheme == "https" else b"POST")
    assert heads[0].count(b"\r\nProxy-Authorization: Basic dXNlcjpwcm94eS1zZWNyZXQ=\r\n") == 1
    assert (b"sk-planted" in heads[0]) == (scheme == "http")
    assert "secret" not in str(caught.value)


def test_a_proxy_that_is_down_is_told_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", NOBODY)
    with pytest.raises(TransientError, match="^http://llm.example/v1: Cannot connect") as caught:
        ask(backend("http://llm.example/v1"))
    assert caught.value.cause == "unreachable"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("past", ["127.0.0.1", "127.0.0.1:{}", "127.0.0.0/8", "h.example, *"])
def test_what_no_proxy_names_is_asked_itself(
    server: LoopbackServer, monkeypatch: pytest.MonkeyPatch, past: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", NOBODY)
    monkeypatch.setenv("NO_PROXY", past.format(server.port))
    assert "Sentence 1" in ask(backend(server.url)).text


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://llm.example/v1", "http://plain:1"),
        ("https://llm.example/v1", "http://safe:2"),
        ("https://gpu.lab.example/v1", None),
        ("https://lab.example/v1", "http://safe:2"),
        ("https://gpu.own.example/v1", None),
        ("http://own.example:8000/v1", None),
        ("http://[::1]:8000/v1", None),
        ("http://localhost:8000/v1", None),
        ("http://10.1.2.3:8000/v1", None),
    ],
)
def test_an_address_has_the_proxy_that_the_sdks_clients_take(
    monkeypatch: pytest.MonkeyPatch, url: str, proxy: str | None
) -> None:
    monkeypatch.setenv("http_proxy", "plain:1")
    monkeypatch.setenv("https_proxy", "http://safe:2")
    monkeypatch.setenv("no_proxy", "*.lab.example,own.example,::1,localhost,10.0.0.0/8")
    found = proxy_of(url)
    assert (str(found.url) if found else None) == proxy


def test_a_backend_answers_in_one_event_loop_after_another_and_leaves_nothing_open(
    server: LoopbackServer,
) -> None:
    asked = backend(server.url)
    assert ask(asked) == ask(asked)
    with pytest.raises(BackendUnusable, match="the backend is not open"):
        asyncio.run(asked.complete(REQUEST))
    gc.collect()  # what was left open would warn, and warnings are errors


def test_nothing_is_said_to_be_sent_before_it_is(
    server: LoopbackServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.answer = lambda server, body: (429, {}, "later")
    with pytest.raises(TransientError):
        ask(backend(server.url))
    assert "200 OK" not in caplog.text


@pytest.mark.parametrize("coding", [web.ContentCoding.gzip, web.ContentCoding.deflate])
def test_a_compressed_answer_is_read(coding: web.ContentCoding) -> None:
    class Packing(LoopbackServer):
        async def _handle(self, request: web.Request) -> web.StreamResponse:
            response = await super()._handle(request)
            response.enable_compression(coding)
            return response

    with Packing() as server:
        assert "Sentence 1" in ask(backend(server.url)).text
    assert "gzip" in server.headers[0]["Accept-Encoding"]


@pytest.mark.parametrize("location", ["http://[half", "/v1/\udcff\udcfe"])
def test_a_redirect_to_what_is_no_address_is_said_so(location: str) -> None:
    with pytest.raises(BackendUnusable, match="^http://h/v1 redirects to what is no address"):
        redirect_of("http://h/v1?token=x", location)
