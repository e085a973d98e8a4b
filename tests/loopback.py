"""An OpenAI-compatible server on loopback, in a thread, that does what a test tells it to."""

from __future__ import annotations

import asyncio
import json
import threading
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

Answer = Callable[["LoopbackServer", dict[str, Any]], Awaitable[web.StreamResponse]]

DROP = "drop"


def chat_completion(text: str, *, finish_reason: str = "stop", **extra: Any) -> dict[str, Any]:
    """The body of a 200."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "loopback-model",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": finish_reason,
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
        **extra,
    }


def turns_for(body: dict[str, Any]) -> str:
    """An answer every prompt config accepts, which depends on the last message alone."""
    shown = body["messages"][-1]["content"]
    mark = zlib.crc32(shown.encode())
    sentences = " ".join(
        f"Sentence {number} about scene {mark} has quite a few plain words in it."
        for number in range(1, 6)
    )
    if any("Question:" in m["content"] for m in body["messages"] if m["role"] != "user"):
        return f"Question: What is scene {mark}?\nAnswer: {sentences}"
    return sentences


class LoopbackServer:
    """Counts what it is asked and answers as `answer` says.

    Attributes:
        bodies: the decoded bodies of all requests, in order of arrival.
        headers: their headers.
        queries: their query strings.
        in_flight: requests being answered now.
        max_in_flight: the most there have been.
        answer: called with the server and the body; gives a body for a 200, a (status, headers,
            body) triple, or DROP to close the connection without an answer. May sleep.
    """

    def __init__(self, answer: Callable[..., Any] | None = None) -> None:
        self.answer = answer or (lambda server, body: chat_completion(turns_for(body)))
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.queries: list[str] = []
        self.in_flight = 0
        self.max_in_flight = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """The API root."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def asked(self) -> list[str]:
        """The last message of each request."""
        return [body["messages"][-1]["content"] for body in self.bodies]

    def __enter__(self) -> LoopbackServer:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        self._add_routes(app)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    def _add_routes(self, app: web.Application) -> None:
        app.router.add_post("/v1/chat/completions", self._handle)
        self.add_routes(app)

    def add_routes(self, app: web.Application) -> None:
        """For servers that offer more than chat completions."""

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.queries.append(request.query_string)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            result = self.answer(self, body)
            if asyncio.iscoroutine(result):
                result = await result
        finally:
            self.in_flight -= 1
        if result == DROP:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        status, headers, content = result if isinstance(result, tuple) else (200, {}, result)
        text = content if isinstance(content, str) else json.dumps(content)
        return web.Response(
            status=status, headers=headers, text=text, content_type="application/json"
        )
