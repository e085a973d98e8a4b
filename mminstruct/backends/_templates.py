"""Chat messages as the tokens of a prompt, for the engines in this process.

A template that writes the date is told a fixed day, and where it has no place for a system prompt
the user says it.
"""

from __future__ import annotations

import os.path
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from functools import cached_property, lru_cache

from mminstruct.errors import BackendUnusable, ContextTooLong, MMInstructError
from mminstruct.schema import Message, Request, Role, digest

_PROBES = ("A", "7")

# The day that templates are told which write one, such as Llama 3's, whose own default it is. A
# prompt, and with it what is computed once for all prompts, thus doesn't change at midnight.
_TODAY = datetime(2024, 7, 26, tzinfo=timezone.utc)


@contextmanager
def wrap_model_errors(name: str, words: Callable[[Exception], str]) -> Iterator[None]:
    """Errors of what came with a model become `BackendUnusable`, in these words."""
    try:
        yield
    except MMInstructError:  # says already what it was
        raise
    # Templates are programs, several packages read the files, and a model may bring code.
    except Exception as error:
        raise BackendUnusable(f"model {name!r}: {words(error)}") from error


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


def read_seed(request: Request) -> int:
    """The seed that was asked for, else one that follows from the prompt."""
    seed = request.sampling.seed
    return int(digest(request.messages)[:7], 16) if seed is None else seed


def measure_room(prompt_tokens: int, window: int | None, max_tokens: int) -> int:
    """Tokens that an answer may have.

    Raises:
        ContextTooLong: the prompt leaves none.
    """
    if window is None:
        return max_tokens
    if prompt_tokens >= window:
        raise ContextTooLong(
            f"prompt of {prompt_tokens} tokens, window of {window}: no room for an answer"
        )
    return min(max_tokens, window - prompt_tokens)


class ChatTokenizer(ABC):
    """A model's chat template and tokenizer, from any thread.

    Args:
        model: its name.
        advice: what to do about a template that is of no use.
        probes: first words after an opening: what they have in common is not part of it.
    """

    def __init__(self, model: str, advice: str, probes: Sequence[str] = _PROBES) -> None:
        self._name = model
        self._advice = advice
        self._probes = probes
        # Written by any thread: what one finds another would find, too, and the last one counts.
        self._openings: dict[tuple[Message, ...], tuple[int, ...]] = {}
        self.tokens = lru_cache(maxsize=256)(self._tokens)

    @abstractmethod
    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """What template and tokenizer make of the messages, up to where an answer begins.

        Raises:
            BackendUnusable: the template doesn't take them.
        """

    @abstractmethod
    def special_texts(self) -> Iterable[str]:
        """The special tokens as a text may spell them."""

    def opening(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        """The tokens that this prompt shares with all that have the same first messages.

        The same object for all of them, and never the whole prompt.
        """
        first, role, tokens = messages[:-1], messages[-1].role, self.tokens(messages)
        if first not in self._openings:
            self._openings[first] = self._common(first, role)
        opening = self._openings[first]
        if _begins(tokens, opening):
            return opening
        if not _begins(self._tokens((*first, Message(role, self._probes[0]))), opening):
            # The template writes another one by now.
            opening = self._openings[first] = self._common(first, role)
        common = len(os.path.commonprefix([opening, tokens[:-1]]))
        return opening if common == len(opening) else opening[:common]

    def _common(self, first: tuple[Message, ...], role: Role) -> tuple[int, ...]:
        """The tokens that these messages begin with, whatever the next one says."""
        probes = [self._tokens((*first, Message(role, text))) for text in self._probes]
        common = len(os.path.commonprefix(probes))
        if common == min(map(len, probes)):
            raise BackendUnusable(
                f"model {self._name!r}: its chat template doesn't write what messages say; "
                f"{self._advice}"
            )
        return probes[0][:common]

    def _tokens(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        if messages[0].role == "system" and not self._takes_system:
            messages = without_system(messages)
        return self.encode(unspelt(messages, self._special))

    @cached_property
    def _special(self) -> re.Pattern[str] | None:
        return spelling(self.special_texts())

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the template writes a system prompt; some raise an error, some leave it out."""
        user = Message("user", _PROBES[0])
        try:
            one, other = (self.encode((Message("system", p), user)) for p in _PROBES)
        except BackendUnusable:
            return False
        return one != other


def _begins(tokens: tuple[int, ...], opening: tuple[int, ...]) -> bool:
    """Whether the opening is shorter and what the tokens begin with."""
    return len(tokens) > len(opening) and tokens[: len(opening)] == opening
