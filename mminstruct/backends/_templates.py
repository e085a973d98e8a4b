"""What the engines in this process give a model's chat template besides the messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timezone

from mminstruct.schema import Message

# The day that templates are told which write one, such as Llama 3's, whose own default it is. A
# prompt, and with it what is computed once for all prompts, thus doesn't change at midnight.
_TODAY = datetime(2024, 7, 26, tzinfo=timezone.utc)


def strftime_now(pattern: str) -> str:
    """The function of that name which templates know, for a day that is always the same."""
    return _TODAY.strftime(pattern)


def without_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages for a template that has no place for a system prompt.

    Its text comes before that of the first message of the user.
    """
    first, *rest = messages
    if first.role != "system" or not rest or rest[0].role != "user":
        return tuple(messages)
    user, *others = rest
    return (Message("user", f"{first.content}\n\n{user.content}"), *others)


def spelling(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """What finds the texts of special tokens, but for those as short as an ordinary word's part."""
    texts = sorted({text for text in tokens if len(text) > 2}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def unspelt(messages: Sequence[Message], special: re.Pattern[str] | None) -> tuple[Message, ...]:
    """The messages with a space in each text that a tokenizer would take for a special token.

    A caption that happens to say ``</s>`` would else end its turn, and could go on with another.
    """
    if special is None:
        return tuple(messages)
    return tuple(
        replace(m, content=special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", m.content))
        if special.search(m.content)
        else m
        for m in messages
    )
