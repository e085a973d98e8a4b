"""What the engines in this process make of chat messages, whatever the template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from mminstruct.backends._templates import ChatTokenizer, measure_room, read_seed
from mminstruct.errors import BackendUnusable, ContextTooLong
from mminstruct.schema import Message, Request, Sampling

FEW = (Message("system", "Name it."), Message("user", "A bush?"), Message("assistant", "No."))


class Letters(ChatTokenizer):
    """A token for each letter, after what the template writes first."""

    start = ""

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        text = self.start + "".join(f"{m.role}:{m.content}|" for m in messages)
        return tuple(map(ord, text))

    def special_texts(self) -> Iterable[str]:
        return ["<end>"]


def said(tokens: tuple[int, ...]) -> str:
    return "".join(map(chr, tokens))


def test_an_opening_is_what_prompts_share_and_the_same_object_for_all() -> None:
    letters = Letters("letters", "take another")
    one, other = (letters.opening((*FEW, Message("user", text))) for text in ("Who?", "7 of them"))
    assert said(one) == "system:Name it.|user:A bush?|assistant:No.|user:"
    assert one is other


def test_an_opening_that_is_no_more_what_prompts_begin_with_is_worked_out_anew() -> None:
    letters = Letters("letters", "take another")
    letters.opening((*FEW, Message("user", "Yesterday?")))
    letters.start = "1 May|"
    assert said(letters.opening((*FEW, Message("user", "Today?")))).startswith("1 May|system:")


def test_a_prompt_that_ends_within_its_opening_shares_all_but_its_last_token() -> None:
    letters = Letters("letters", "take another")
    letters.opening((*FEW, Message("user", "Who?")))
    short = (Message("user", ""),)
    assert said(letters.opening(short)) == "user:"


def test_a_template_that_writes_no_messages_is_of_no_use() -> None:
    letters = Letters("letters", "take another")
    letters.encode = lambda messages: (1, 2, 3)  # type: ignore[method-assign]
    with pytest.raises(BackendUnusable, match="'letters'.*what messages say; take another"):
        letters.opening((Message("user", "Who?"),))


def test_the_room_for_an_answer_is_what_the_window_leaves() -> None:
    assert measure_room(10, None, 30) == 30
    assert measure_room(10, 25, 30) == 15
    with pytest.raises(ContextTooLong, match="prompt of 25 tokens, window of 25: no room"):
        measure_room(25, 25, 30)


def test_a_seed_that_is_not_given_follows_from_the_prompt() -> None:
    (one, again, other) = (
        Request((Message("user", text),), Sampling(0.7, 1.0, 10, None)) for text in "aab"
    )
    assert read_seed(one) == read_seed(again) != read_seed(other)
    assert read_seed(Request(one.messages, Sampling(0.7, 1.0, 10, 5))) == 5
