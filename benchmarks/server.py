"""A chat-completion server with a fixed latency, for benchmarks; one process of its own.

It parses nothing and knows two answers, labelled turns and plain text, each time with another
number in it, so that it costs as little of the two cores as it can. ``--slow_share`` of the answers
take ``--slow_s`` instead.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any

from aiohttp import web


def body(*, labelled: bool) -> bytes:
    """An answer of about 1.3 kB, as models write them: five turns, or a text."""
    parts = [
        f"Thing number {n} stands out, since it is placed where everybody looks first, and nothing "
        f"else around it has the same size or colour. From here number {n} looks larger than it "
        f"is. Beside it lie {', '.join(_names(n))}."
        for n in range(1, 6)
    ]
    questions = [f"Question: What stands out as number {n} here?\nAnswer: " for n in range(1, 6)]
    pairs = zip(questions, parts, strict=True)
    text = "\n\n".join(q + p for q, p in pairs) if labelled else " ".join(parts)
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "bench",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 2300, "completion_tokens": 250, "total_tokens": 2550},
        }
    ).encode()


def _names(n: int) -> list[str]:
    """Ten things that no other part has; a quarter of the words are English ones, as is usual."""
    return [f"the {a}{b}{n}" for a in ("bra", "cli", "dro", "fle", "gru") for b in ("mel", "tor")]


def main() -> None:
    """Serve until killed; prints the port."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency_s", type=float, default=0.2)
    parser.add_argument("--slow_share", type=float, default=0.0)
    parser.add_argument("--slow_s", type=float, default=5.0)
    args = parser.parse_args()
    turns, text = body(labelled=True), body(labelled=False)
    every = round(1 / args.slow_share) if args.slow_share else 0
    numbers = itertools.count(1)
    counts = {"requests": 0}

    async def chat(request: web.Request) -> web.Response:
        answer = turns if b"Question:" in await request.read() else text
        counts["requests"] += 1
        answer = answer.replace(b"everybody", b"visitor %d" % counts["requests"])
        slow = every and next(numbers) % every == 0
        await asyncio.sleep(args.slow_s if slow else args.latency_s)
        return web.Response(body=answer, content_type="application/json")

    asyncio.run(serve(chat, counts, lambda port: print(port, flush=True)))


async def serve(chat: Any, counts: dict[str, Any], tell: Callable[[int], None]) -> None:
    """Answer chat completions, and GET /count, on a free port for an hour."""

    async def count(request: web.Request) -> web.Response:
        return web.json_response(counts)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/count", count)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
    tell(runner.addresses[0][1])
    await asyncio.sleep(3600)


if __name__ == "__main__":
    main()
