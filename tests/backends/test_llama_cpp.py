"""llama.cpp with the real SmolLM2-135M-Instruct."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from mminstruct import backends
from mminstruct.backends import BackendOptions, llama_cpp
from mminstruct.errors import BackendUnusable, ContextTooLong, UsageError
from mminstruct.schema import Completion, Message, Request, Sampling

OPENING = (Message("system", "You name things. " * 12), Message("user", "A fruit?"))
OPENING += (Message("assistant", "An apple."),)


def ask(question: str, seed: int = 1, max_tokens: int = 16) -> Request:
    return Request((*OPENING, Message("user", question)), Sampling(0.9, 1.0, max_tokens, seed))


def complete(*requests: Request, window: int = 512) -> list[Completion]:
    async def run() -> list[Completion]:
        async with backends.create("llama.cpp", BackendOptions(context_window=window)) as backend:
            return [await backend.complete(request) for request in requests]

    return asyncio.run(run())


def test_an_answer_depends_on_its_own_prompt_and_seed_and_not_on_the_one_before() -> None:
    tree, bird = ask("A tree?"), ask("A bird that can't fly?", seed=2)
    alone = complete(tree)[0]
    assert [alone] * 3 == [complete(bird, tree)[1], complete(tree, tree)[1], complete(tree)[0]]


def test_a_prompt_that_leaves_no_room_is_too_long_and_not_fatal() -> None:
    async def run() -> Completion:
        async with backends.create("llama.cpp", BackendOptions(context_window=128)) as backend:
            with pytest.raises(ContextTooLong, match="window of 128"):
                await backend.complete(ask("A tree? " * 60))
            return await backend.complete(ask("A tree?"))

    assert asyncio.run(run()).text


def test_an_answer_ends_where_the_window_does() -> None:
    (answer,) = complete(ask("Tell a story.", max_tokens=4000), window=128)
    assert answer.prompt_tokens and answer.completion_tokens
    assert answer.prompt_tokens + answer.completion_tokens <= 128


def test_the_same_weights_are_the_same_model_wherever_they_lie(tmp_path: Path) -> None:
    copy = tmp_path / "renamed.gguf"
    shutil.copyfile(llama_cpp.bundled_model(), copy)
    bundled = backends.create("llama.cpp", BackendOptions())
    copied = backends.create("llama.cpp", BackendOptions(model=str(copy)))
    assert copied.identity() == bundled.identity()
    assert copied.model == "renamed.gguf"


def test_one_changed_block_is_another_model(tmp_path: Path) -> None:
    copy = tmp_path / "m.gguf"
    shutil.copyfile(llama_cpp.bundled_model(), copy)
    before = llama_cpp.fingerprint(copy)
    with copy.open("r+b") as file:
        file.seek(copy.stat().st_size // 2)
        file.write(bytes(4 << 20))
    assert llama_cpp.fingerprint(copy) != before


def test_only_the_bundled_model_is_known_by_its_hub_id(tmp_path: Path) -> None:
    link = tmp_path / "m.gguf"
    link.symlink_to(llama_cpp.bundled_model())
    bundled = backends.create("llama.cpp", BackendOptions())
    assert bundled.repo_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert backends.create("llama.cpp", BackendOptions(model=str(link))).repo_id is None


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "not a GGUF"), (b"PK\x03\x04", "not a GGUF"), (None, "No such")]
)
def test_a_file_that_is_no_model_is_refused(
    content: bytes | None, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        backends.create("llama.cpp", BackendOptions(model=str(path)))


def test_a_truncated_model_is_named_without_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "half.gguf"
    path.write_bytes(llama_cpp.bundled_model().read_bytes()[: 3 << 20])

    async def run() -> None:
        async with backends.create("llama.cpp", BackendOptions(model=str(path))):
            pass

    with pytest.raises(BackendUnusable, match="half.gguf") as error:
        asyncio.run(run())
    assert str(tmp_path) not in str(error.value)
