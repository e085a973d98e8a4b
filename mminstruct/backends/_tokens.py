"""Token counts for models whose own tokenizer isn't at hand.

OpenAI's models are counted with ``tiktoken``. Any other is approximated by what all tokenizers have
in common: words, marks and line breaks are about a token each. Digits are where they part: some
make a token of each (Llama 2, Mistral, Qwen, Gemma, SmolLM), some of three (GPT, Llama 3), and our
prompts are full of coordinates. The approximation is the middle of the two: over the requests of 80
COCO images with both prompt configs it is 8 % above the count of GPT-4o's tokenizer and 8 % below
that of SmolLM2's, with single prompts up to 13 % off.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from mminstruct.schema import Message

if TYPE_CHECKING:
    import tiktoken

Counter = Callable[[Sequence[Message]], int]

APPROXIMATION_ERROR = 0.15
TIKTOKEN_ERROR = 0.01
_PER_MESSAGE = 4
_REPLY = 3
_LONGER_WORDS = 1.04
_BYTES_PER_TOKEN = 3.0
_FEWEST = re.compile(r"[A-Za-z]+|[0-9]{1,3}|[^\sA-Za-z0-9]|\n+")
_MOST = re.compile(r"[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]|\n+")
_DOWNLOAD_S = 10.0
_TOO_MANY = 2**31


def plausible(prompt: object, answer: object) -> tuple[int | None, int | None]:
    """A server's count of prompt and answer; None for both if one is missing or can't be true.

    No prompt is empty, and some servers send 0, -1, or -1 without its sign where they don't count.
    """
    counts = [
        int(count)
        for count, least in ((prompt, 1), (answer, 0))
        if isinstance(count, int | float) and least <= count < _TOO_MANY
    ]
    return (counts[0], counts[1]) if len(counts) == 2 else (None, None)


def approximate(messages: Sequence[Message]) -> int:
    """Tokens of a prompt for a model that nothing is known about, see above."""
    middle = sum(_middle(message.content) for message in messages)
    return round(_LONGER_WORDS * middle) + _PER_MESSAGE * len(messages)


@lru_cache(maxsize=4096)
def _middle(text: str) -> float:
    return (len(_FEWEST.findall(text)) + len(_MOST.findall(text))) / 2


def upper_bound(messages: Sequence[Message]) -> int:
    """Tokens that a prompt hardly exceeds with any tokenizer; it never changes between runs."""
    count = sum(_most(message.content) for message in messages)
    return math.ceil(count) + _PER_MESSAGE * len(messages) + _REPLY


@lru_cache(maxsize=4096)
def _most(text: str) -> float:
    length = len(text.encode())
    foreign = length - len(text)  # beyond ASCII a tokenizer may need a token for each byte
    return max(1.1 * len(_MOST.findall(text)) + foreign, length / _BYTES_PER_TOKEN)


@lru_cache(maxsize=8)
def openai_counter(model: str) -> Counter | None:
    """What counts a chat for a model of OpenAI; None if the model isn't one, or no file is there.

    ``tiktoken`` fetches the file of an encoding once and keeps it (``TIKTOKEN_CACHE_DIR``).

    **Source:** https://cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken
    """
    import tiktoken

    name = model.removeprefix("openai/")
    if name.startswith("gpt-oss"):
        return None  # the servers that run it write a system prompt of their own
    try:
        encoding = _encoding(tiktoken.encoding_name_for_model(name))
    except KeyError:
        return None
    if encoding is None:
        return None

    @lru_cache(maxsize=4096)
    def length(text: str) -> int:
        return len(encoding.encode_ordinary(text))

    def count(messages: Sequence[Message]) -> int:
        return sum(3 + length(m.role) + length(m.content) for m in messages) + _REPLY

    return count


def _encoding(name: str) -> tiktoken.Encoding | None:
    """The encoding, or None if its file is neither kept nor to be had.

    ``tiktoken`` sets no time limit for its download; behind some firewalls it would never end.
    """
    import requests
    import tiktoken

    found: list[tiktoken.Encoding] = []

    def load() -> None:
        try:
            found.append(tiktoken.get_encoding(name))
        except (requests.RequestException, OSError, ValueError):
            return

    thread = threading.Thread(target=load, name="tiktoken", daemon=True)
    thread.start()
    thread.join(_DOWNLOAD_S)
    return found[0] if found else None
