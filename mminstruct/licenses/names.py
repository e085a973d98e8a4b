"""Ids, addresses and names of models and licences: what they stand for, and how they are alike.

An id names a model. A name is weak evidence: it may bar and oblige, and never frees. So what it
says is the least that all the models say that it may mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import product
from typing import NamedTuple, TypeVar

_T = TypeVar("_T")
Words = tuple[str, ...]
"""Runs of letters in lower case, and numbers with their points: ``Llama-3.1`` is llama, 3.1."""

_WORD = re.compile(r"[A-Za-z]+|\d+(?:\.\d+)*")
# `llama_3_1-8b` and `phi-3-5-mini` write a point otherwise; `llama-2-7b` doesn't.
_POINT = re.compile(r"(?<=\d)[-_](?=\d(?:[-_]|$))")
_VERSION = re.compile(r"(?<![A-Za-z])[Vv](?=\d)")  # `llama-v2` is `llama-2`
_MOST_WORDS = 24  # of a name that are looked at
_HUMP = re.compile(r"(?<=[a-z])(?=([A-Z].*))")
# What is put behind a model's name where it is packed anew and not trained, piece by piece.
_PACKING = re.compile(
    r"gguf|ggml|awq|gptq|exl[23]|bnb|mlx|hqq|(?:nv|mx)?fp\d+|b?f16|int\d|\dbit|w\da\d+|quantized|"
    r"dynamic|imatrix|i1|unsloth|autoround"
)
_ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<id>[\w.-]+/[\w.-]+?)/?"
    r"(?:/(?:tree|blob|resolve)/(?P<revision>[^/]+)(?:/.*)?)?"
)
_REPO_ID = re.compile(r"(?P<id>\w[\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
# https://huggingface.co/docs/huggingface_hub/guides/manage-cache: models--meta-llama--Llama-2-7b
_CACHED = re.compile(r"(?:^|[/\\])(?:models|datasets)--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)")
# What says nothing in the name of a licence, and what may stand around its address.
_FILLERS = {"a", "the", "license", "licence", "agreement", "community", "terms", "of"}
_AROUND = re.compile(
    r"^https?://(?:www\.)?|(?:/legalcode|/deed)?(?:\.(?:[a-z]{2}|txt|html|md|pdf))?/*(?:[?#].*)?$"
)
# us.anthropic.claude-sonnet-4-5-20250929-v1:0, publishers/google/models/gemini-2.0-flash-001
_LAST_PART = re.compile(r"(?:.*/)?(?:[a-z-]+\.(?=[a-z]))*(.*)")
_DATED = re.compile(
    r"(?:[:@].*|-(?:20\d{6}|20\d\d-\d\d-\d\d|\d\d-\d{2,4}|\d{3,4}|v\d|latest|preview|exp|beta))+$"
)


def hub_id(text: str) -> tuple[str, str | None] | None:
    """Repository id and revision that an id or an address on the Hub stands for, or None."""
    text = text.strip()
    found = _ADDRESS.fullmatch(text) or _REPO_ID.fullmatch(text)
    return (found["id"], found["revision"]) if found else None


def cached_id(path: str) -> str | None:
    """The id of the repository that a path is of in a cache of the Hub, or None."""
    found = _CACHED.search(path)
    return f"{found['owner']}/{found['name']}" if found else None


def plain_name(model: str) -> str:
    """A model's name without vendor, region, date, version and tag, and with hyphens only."""
    bare = _LAST_PART.fullmatch(model.strip().casefold())
    return re.sub(r"[._]", "-", _DATED.sub("", bare[1])) if bare else ""


def plain_words(name: str) -> Words:
    """Runs of letters in lower case, and of digits."""
    return tuple(re.findall(r"[a-z]+|\d+", name.casefold()))


def bare_address(link: str) -> str:
    """An address without what may stand around it."""
    return _AROUND.sub("", link)


def nearest_key(key: str, known: Iterable[str]) -> str | None:
    """The key that is meant by one in another spelling (``licence``, ``base-models``), or None."""
    asked = re.sub(r"[\s.-]", "_", _HUMP.sub("_", key).casefold())
    return next(iter(get_close_matches(asked, list(known), n=1, cutoff=0.85)), None)


def licence_words(name: str) -> Words:
    """The words of a licence's name that say something."""
    return tuple(word for word in split_words(name) if word not in _FILLERS)


class _Word(NamedTuple):
    """A word of a name.

    Attributes:
        forms: it, and what it ends with after a hump: SuperLlama is superllama, llama.
        begins: whether a piece between separators begins with it.
        ends: whether one ends with it.
    """

    forms: tuple[str, ...]
    begins: bool
    ends: bool


def _split(text: str) -> list[_Word]:
    text = _VERSION.sub("", text)
    return [
        _Word(
            (found[0].casefold(), *(part.casefold() for part in _HUMP.findall(found[0]))),
            not text[: found.start()][-1:].isalnum(),
            not text[found.end() :][:1].isalnum(),
        )
        for found in _WORD.finditer(text)
    ]


def _plain(words: list[_Word]) -> Words:
    return tuple(word.forms[0] for word in words)


def split_words(text: str) -> Words:
    """The words of a name."""
    return _plain(_split(_POINT.sub(".", text)))


def is_packed(repo_id: str, base: str) -> bool:
    """Whether a repository's name is its base's with nothing but packings behind."""
    owner, _, whole = base.casefold().partition("/")
    name = repo_id.casefold().rpartition("/")[2]
    for start in (whole, f"{owner}_{whole}"):
        pieces = re.split(r"[-_.]", name.removeprefix(start).lstrip("-_."))
        if name.startswith(start) and name != start and all(map(_PACKING.fullmatch, pieces)):
            return True
    return False


def _phrases_of(name: str, *, with_family: bool) -> Iterator[Words]:
    """What of a model's name names it elsewhere: the whole, if it is more than a word.

    Its family is named by its beginnings with a number, up to a separator, and by its size: of
    ``Llama-2-7b-hf`` "Llama 2", "Llama 2 7b" and "Llama 7b".
    """
    words = _split(_POINT.sub(".", name))
    whole = _plain(words)
    for count in range(2, min(len(words), _MOST_WORDS) + 1):
        has_number = words[count - 1].ends and any(word[0].isdigit() for word in whole[1:count])
        if count == len(words) or (has_number and with_family):
            yield whole[:count]
        if has_number and with_family and whole[count - 1] in ("b", "m"):
            family = (word for word in whole[: count - 2] if not word[0].isdigit())
            yield (*family, *whole[count - 2 : count])


def index_phrases(models: Iterable[tuple[_T, str, str, bool]]) -> dict[Words, list[_T]]:
    """What names models -> the models that may be meant; what families are called goes first.

    Args:
        models: each with its name, what its family is called, and whether its name is its own
            family's and not that of what it was made from.
    """
    by_name: dict[Words, list[_T]] = {}
    by_family: dict[Words, list[_T]] = {}
    for model, name, family, is_own in models:
        for phrase in _phrases_of(name, with_family=is_own):
            by_name.setdefault(phrase, []).append(model)
        called = split_words(family)
        if any(word[0].isdigit() for word in called[1:]):
            by_family.setdefault(called, []).append(model)
    return by_name | by_family


def find_phrases(name: str, known: Mapping[Words, object]) -> list[Words]:
    """The known phrases in a name, at each place the longest, and the finest there."""
    readings = (_POINT.sub(".", name), name)
    found = dict.fromkeys(phrase for text in readings for phrase in _find(_split(text), known))
    return [phrase for phrase in found if not any(is_finer(phrase, other) for other in found)]


def _find(words: list[_Word], known: Mapping[Words, object]) -> Iterator[Words]:
    start = 0
    while start < len(words):
        after, last = start + 1, min(start + _MOST_WORDS, len(words))
        ends = (end for end in range(last, start, -1) if words[end - 1].ends)
        for end, form in product(ends if words[start].begins else (), words[start].forms):
            phrase = (form, *_plain(words[after:end]))
            if phrase in known:
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
