"""What a name says a model is: the names of registered models and families inside other names.

A name is weak evidence: it may bar and oblige, and never frees. So what it says is the least that
all the models say that it may mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

Words = tuple[str, ...]
"""Runs of letters in lower case, and numbers with their points: ``Llama-3.1`` is llama, 3.1."""

_WORD = re.compile(r"[a-z]+|\d+(?:\.\d+)*")
# `llama_3_1-8b` and `phi-3-5-mini` write a point otherwise; `llama-2-7b` doesn't.
_POINT = re.compile(r"(?<=\d)[-_](?=\d(?:[-_]|$))")
_VERSION = re.compile(r"(?<![a-z])v(?=\d)")  # `llama-v2` is `llama-2`
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
# What is put behind a model's name where it is packed anew and not trained, piece by piece.
_PACKING = re.compile(
    r"gguf|ggml|awq|gptq|exl[23]|bnb|mlx|hqq|(?:nv|mx)?fp\d+|b?f16|int\d|\dbit|w\da\d+|quantized|"
    r"dynamic|imatrix|i1|unsloth|autoround"
)


def split_words(text: str) -> Words:
    """The words of a name."""
    return tuple(word for word, *_ in _split(_POINT.sub(".", text)))


def _split(text: str) -> list[tuple[str, bool, bool]]:
    """Each word of a name, and whether a piece between separators begins and ends with it."""
    text = _VERSION.sub("", text.casefold())
    return [
        (
            found[0],
            not text[: found.start()][-1:].isalnum(),
            not text[found.end() :][:1].isalnum(),
        )
        for found in _WORD.finditer(text)
    ]


def is_packed(repo_id: str, base: str) -> bool:
    """Whether a repository's name is its base's with nothing but packings behind."""
    owner, _, whole = base.casefold().partition("/")
    name = repo_id.casefold().rpartition("/")[2]
    for start in (whole, f"{owner}_{whole}"):
        pieces = re.split(r"[-_.]", name.removeprefix(start).lstrip("-_."))
        if name.startswith(start) and name != start and all(map(_PACKING.fullmatch, pieces)):
            return True
    return False


def phrases_of(name: str, *, with_beginnings: bool) -> Iterator[Words]:
    """What of a model's name names it elsewhere: it has a number, or else several words.

    Its beginnings, up to a separator, name its family: ``Llama-2-7b-hf`` is of "Llama 2".
    """
    words = _split(name)
    for count in range(1, len(words) + 1):
        phrase = tuple(word for word, *_ in words[:count])
        is_whole = count == len(words)
        has_number = any(word[0].isdigit() for word in phrase[1:])
        if words[count - 1][2] and (
            (has_number and (is_whole or with_beginnings)) or (is_whole and count > 1)
        ):
            yield phrase


def find_phrases(name: str, known: Mapping[Words, object]) -> list[Words]:
    """The known phrases in a name, at each place the longest, and the finest there."""
    readings = (_POINT.sub(".", name), name, _HUMP.sub("-", name))
    found = dict.fromkeys(phrase for text in readings for phrase in _find(_split(text), known))
    return [phrase for phrase in found if not any(is_finer(phrase, other) for other in found)]


def _find(words: list[tuple[str, bool, bool]], known: Mapping[Words, object]) -> Iterator[Words]:
    start = 0
    while start < len(words):
        for end in range(len(words), start, -1):
            phrase = tuple(word for word, *_ in words[start:end])
            if words[start][1] and words[end - 1][2] and phrase in known:
                yield phrase
                start = end - 1
                break
        start += 1


def is_finer(phrase: Words, name: Words) -> bool:
    """Whether a name says what a phrase says, to the point: "Llama 3.1 8B" of "Llama 3"."""

    def is_so(words: Words) -> bool:
        pairs = list(zip(phrase, words, strict=False))
        return len(pairs) == len(phrase) and all(
            word == said or (said[0].isdigit() and word.startswith(f"{said}."))
            for said, word in pairs
        )

    starts = (name[at:] for at in range(len(name)))
    return any(is_so(words) and words[: len(phrase)] != phrase for words in starts)
