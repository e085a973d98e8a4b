"""What every backend keeps to; a new file in backends/ is tested by existing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import LoopbackServer, chat_completion

from mminstruct import backends
from mminstruct.backends import BackendOptions
from mminstruct.schema import Completion, Message, Request, Sampling

MESSAGES = (
    Message("system", "You answer in short sentences."),
    Message("user", "What is an apple?"),
    Message("assistant", "An apple is a fruit."),
    Message("user", "What is a carrot?"),
)


@pytest.fixture(params=backends.names())
def options(request: pytest.FixtureRequest) -> Iterator[tuple[str, BackendOptions]]:
    """Each backend's name, and options with which it runs here."""
    if request.param != "openai":
        yield request.param, BackendOptions(context_window=512)
        return

    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        words = ["A", "carrot", "is", "a", "root", "that", "people", "eat."]
        limit = body["max_tokens"]
        reason = "length" if limit < len(words) else "stop"
        return chat_completion(" ".join(words[:limit]), finish_reason=reason)

    with LoopbackServer(answer) as server:
        yield "openai", BackendOptions(model="org/model", base_url=server.url, context_window=512)


def complete(options: tuple[str, BackendOptions], *requests: Request) -> list[Completion]:
    async def run() -> list[Completion]:
        async with backends.create(*options) as backend:
            return [await backend.complete(request) for request in requests]

    return asyncio.run(run())


def test_it_answers_and_counts(options: tuple[str, BackendOptions]) -> None:
    (answer,) = complete(options, Request(MESSAGES, Sampling(0.0, max_tokens=40)))
    assert answer.text.strip()
    assert answer.finish_reason in ("stop", "length")
    assert answer.prompt_tokens and answer.completion_tokens


def test_a_token_limit_is_obeyed_and_told(options: tuple[str, BackendOptions]) -> None:
    if options[0] == "fake":
        pytest.skip("a script has no limit")
    (answer,) = complete(options, Request(MESSAGES, Sampling(0.0, max_tokens=3)))
    assert answer.finish_reason == "length"
    assert len(answer.text.split()) <= 3


def test_identity_is_known_before_opening_and_names_no_place(
    options: tuple[str, BackendOptions],
) -> None:
    backend = backends.create(*options)
    identity = backend.identity()
    assert identity["backend"] == backend.name == options[0]
    assert identity == backends.create(*options).identity()
    for text in (*identity.values(), backend.model):
        assert str(Path.home()) not in text
        assert "site-packages" not in text


def test_tokens_are_counted_as_the_engine_counts_them(
    options: tuple[str, BackendOptions],
) -> None:
    async def run() -> tuple[int, int | None]:
        async with backends.create(*options) as backend:
            answer = await backend.complete(Request(MESSAGES, Sampling(0.0, max_tokens=2)))
            return backend.count_tokens(MESSAGES), answer.prompt_tokens

    ours, theirs = asyncio.run(run())
    if options[0] == "openai":
        assert ours > 0  # an approximation, on the high side
    else:
        assert ours == theirs


def test_a_seed_fixes_the_answer(options: tuple[str, BackendOptions]) -> None:
    if options[0] == "openai":
        pytest.skip("whether a seed is honoured is the server's business")
    asked = [Request(MESSAGES, Sampling(1.0, max_tokens=12, seed=seed)) for seed in (1, 2, 1)]
    one, other, again = complete(options, *asked)
    assert one == again
    assert one.text != other.text


def test_it_closes_while_an_answer_is_under_way(options: tuple[str, BackendOptions]) -> None:
    async def run() -> None:
        async with backends.create(*options) as backend:
            asking = asyncio.ensure_future(
                backend.complete(Request(MESSAGES, Sampling(0.0, max_tokens=400)))
            )
            await asyncio.sleep(0.05)
            asking.cancel()
            await asyncio.wait([asking])

    asyncio.run(asyncio.wait_for(run(), 60))


def test_several_questions_at_once_are_all_answered(
    options: tuple[str, BackendOptions],
) -> None:
    async def run() -> list[Completion]:
        async with backends.create(*options) as backend:
            asked = [Request(MESSAGES, Sampling(0.0, max_tokens=n)) for n in (4, 5, 6)]
            return await asyncio.gather(*(backend.complete(request) for request in asked))

    assert len(asyncio.run(run())) == 3
