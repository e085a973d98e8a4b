"""What every backend keeps to; a new file in backends/ is tested by existing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from engines import Engine, engine

from mminstruct import backends, prompts, sources
from mminstruct.backends import Backend
from mminstruct.schema import Completion, Context, Message, Request, Sampling
from mminstruct.sources import ReadReport

MESSAGES = (
    Message("system", "You answer in short sentences."),
    Message("user", "What is an apple?"),
    Message("assistant", "An apple is a fruit."),
    Message("user", "What is a carrot?"),
)


Named = tuple[str, Engine]


@pytest.fixture(params=backends.names())
def named(request: pytest.FixtureRequest) -> Iterator[Named]:
    """Each backend's name, and how it runs here."""
    with engine(request.param) as running:
        yield request.param, running


def complete(named: Named, *requests: Request) -> list[Completion]:
    async def run() -> list[Completion]:
        async with create(named) as backend:
            return [await backend.complete(request) for request in requests]

    return asyncio.run(run())


def create(named: Named) -> Backend:
    name, running = named
    return backends.create(name, running.options)


def test_it_answers_and_counts(named: Named) -> None:
    (answer,) = complete(named, Request(MESSAGES, Sampling(0.0, max_tokens=40)))
    assert answer.text.strip()
    assert answer.finish_reason in ("stop", "length")
    assert answer.prompt_tokens and answer.completion_tokens


def test_a_token_limit_is_obeyed_and_told(named: Named) -> None:
    if not named[1].obeys_limit:
        pytest.skip("scripted answers are what they are, whatever the limit")
    (answer,) = complete(named, Request(MESSAGES, Sampling(0.0, max_tokens=3)))
    assert answer.finish_reason == "length"
    assert len(answer.text.split()) <= 3


def test_identity_is_known_before_opening_and_names_no_place(
    named: Named,
) -> None:
    backend = create(named)
    identity = backend.identity()
    assert identity["backend"] == backend.name == named[0]
    assert identity == create(named).identity()
    for text in (*identity.values(), backend.model):
        assert str(Path.home()) not in text
        assert "site-packages" not in text


def test_tokens_are_counted_as_the_engine_counts_them_before_it_is_open_and_after(
    named: Named,
) -> None:
    backend = create(named)
    before, window = backend.count_tokens(MESSAGES), backend.context_window

    async def run() -> tuple[int, int | None]:
        async with backend:
            answer = await backend.complete(Request(MESSAGES, Sampling(0.0, max_tokens=2)))
            return backend.count_tokens(MESSAGES), answer.prompt_tokens

    after, theirs = asyncio.run(run())
    assert theirs is not None
    assert backend.token_error is not None
    assert abs(before - theirs) <= backend.token_error * theirs
    assert after == before
    assert backend.context_window == window  # the keys of answers depend on it


def test_a_seed_fixes_the_answer(named: Named) -> None:
    if not named[1].honours_seed:
        pytest.skip("whether a seed is honoured is up to the server")
    asked = [Request(MESSAGES, Sampling(1.0, max_tokens=12, seed=seed)) for seed in (1, 2, 3, 4, 1)]
    one, *others, again = complete(named, *asked)
    assert one == again
    assert any(one.text != other.text for other in others)


def test_it_closes_while_an_answer_is_under_way(named: Named) -> None:
    async def run() -> None:
        async with create(named) as backend:
            asking = asyncio.ensure_future(
                backend.complete(Request(MESSAGES, Sampling(0.0, max_tokens=400)))
            )
            await asyncio.sleep(0.05)
            asking.cancel()
            await asyncio.wait([asking])

    asyncio.run(asyncio.wait_for(run(), 60))


def test_several_questions_at_once_are_all_answered(
    named: Named,
) -> None:
    async def run() -> list[Completion]:
        async with create(named) as backend:
            asked = [Request(MESSAGES, Sampling(0.0, max_tokens=n)) for n in (4, 5, 6)]
            return await asyncio.gather(*(backend.complete(request) for request in asked))

    assert len(asyncio.run(run())) == 3


def contexts() -> list[Context]:
    """Three drawn scenes, or twenty images of the COCO 2017 files in $COCO_ANNOTATIONS."""
    place = os.environ.get("COCO_ANNOTATIONS")
    source = sources.get("COCO2017" if place else "SAMPLE")
    files = source.locate([Path(place)] if place else [], "train")
    assert files is not None
    return list(islice(source.read(files, ReadReport()), 20 if place else 3))


def test_contexts_are_answered_side_by_side_and_counted_to_the_token(named: Named) -> None:
    config = prompts.load("llava_smallcontext")
    window = named[1].options.context_window and 2048
    engine = replace(named[1], options=replace(named[1].options, context_window=window))
    asked = [
        Request(
            prompts.render(context, config, "conversation").messages,
            Sampling(0.0, max_tokens=4, seed=number),
        )
        for number, context in enumerate(contexts())
    ]

    async def run() -> tuple[list[int], float | None, list[Completion]]:
        async with create((named[0], engine)) as backend:
            counts = [backend.count_tokens(request.messages) for request in asked]
            answers = await asyncio.gather(*map(backend.complete, asked))
            return counts, backend.token_error, answers

    counts, error, answers = asyncio.run(run())
    assert error is not None
    assert counts == pytest.approx([answer.prompt_tokens for answer in answers], rel=error, abs=0)
    for answer in answers:
        assert answer.finish_reason == "length" or not engine.obeys_limit
        assert answer.text.strip()
