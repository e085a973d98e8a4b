"""A server of images on loopback, with all that a server of images can do wrong."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from loopback import LoopbackServer
from PIL import Image

Answer = Callable[[web.Request], web.StreamResponse | Awaitable[web.StreamResponse]]


def picture(width: int = 64, height: int = 48, form: str = "JPEG", **options: Any) -> bytes:
    """An image's bytes."""
    target = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(target, form, **options)
    return target.getvalue()


def served(body: bytes, kind: str = "image/jpeg", **options: Any) -> Answer:
    """Answers with these bytes."""
    return lambda request: web.Response(body=body, content_type=kind, **options)


class ImageServer(LoopbackServer):
    """Serves ``/images/<name>`` as `answers` says, else a picture.

    Attributes:
        answers: by name; a list is used up, its last answer stays.
        asked_for: how often each name was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, list[Answer]] = {}
        self.asked_for: Counter[str] = Counter()

    def add_routes(self, app: web.Application) -> None:
        app.router.add_get("/images/{name}", self._image)

    def address(self, name: str) -> str:
        """Of an image."""
        return f"http://127.0.0.1:{self.port}/images/{name}"

    async def _image(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        self.asked_for[name] += 1
        answers = self.answers.get(name) or [served(picture())]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            response = answer(request)
            return response if isinstance(response, web.StreamResponse) else await response
        finally:
            self.in_flight -= 1


async def endless(request: web.Request) -> web.StreamResponse:
    """A body that has no end."""
    response = web.StreamResponse(headers={"Content-Type": "image/jpeg"})
    await response.prepare(request)
    while request.transport is not None:
        await response.write(b"\xff\xd8\xff" + bytes(1 << 16))
    return response


def dropped(body: bytes) -> Answer:
    """Half of the bytes, and the connection is gone."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        assert request.transport is not None
        request.transport.abort()
        return response

    return answer


async def until_gone(request: web.Request) -> None:
    """Wait until the client has closed the connection."""
    while request.transport is not None:
        await asyncio.sleep(0.02)
