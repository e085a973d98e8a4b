"""Questions and answers without the labels that were asked for.

Each form is a recogniser: a text -> (name, words) in the order of the text, where the name is
whatever stands for a speaker: a label, a key, a tag, a column. `read_form` finds out which name
asks and which one answers, and takes the form that has most turns.
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import yaml

from mminstruct import strict_yaml
from mminstruct.answers.asides import NUMBERS, SEPARATOR
from mminstruct.answers.turns import ANSWER, QUESTION

Named = tuple[str, str]
"""A name, and what is said under it."""

# A label is one to three words in whatever dress: "> **Ans:**", "Q1.1)", "[Q]:", "Frage:".
_WORD = r"(?:[^\W\d_]|[\u0900-\u109f])+"  # vowels of Indic scripts are no letters to `re`
_LABEL = re.compile(
    rf"""^[^\w"'\u201c\u2018]*?(?:\d+[.)]\s*[^\w"']*)?
        (?P<name>{_WORD}(?:[ .'-]{_WORD}){{0,2}})\.?
        \s*\#?(?:\d+(?:\.\d+)*)?[^\w\s"':\uff1a)\]]*\s?
        [:\uff1a)\]](?!//)[^\w\s"'(\u201c\u2018]*\s?""",
    re.VERBOSE,
)
_HEADED_LABEL = re.compile(r"^(?:#{1,6} +|(?=\*\*|__))[*_]*(?P<name>[A-Za-z]+)[*_]*:?$")
BLOCK_OF_YAML = re.compile(r"[>|]-?\n[ \t]+\S")
_QUOTED = re.compile(r"^(?:\s*>)+ ?")
_JOINT = re.compile(
    r"(?<![ \t])[ \t]+[\u2014\u2013|/]+[ \t]+(?=\W{0,3}[^\W\d_]{1,12}\W{0,3}[:\uff1a])"
)
_COUNTED = re.compile(rf"\s(?:{NUMBERS})$")
_OPENING = re.compile(r"(?:^|(?<=[\[,]))[ \t]*([\[{])", re.MULTILINE)
_JSON = json.JSONDecoder(strict=False)
_TAG = re.compile(r"<(?P<name>[A-Za-z]\w*)>(?P<words>[^<]*)</(?P=name)>")
_MARKUP = re.compile(r"</?(?:p|div|li|ul|ol|dl|dt|dd|h[1-6]|br)\b[^<>]*>", re.IGNORECASE)
_INLINE_MARKUP = re.compile(r"</?(?:b|i|em|strong|span|u)\b[^<>]*>", re.IGNORECASE)
_TABLE_ROW = re.compile(r"^\s*\|(.+)\|\s*$")
_TABLE_RULE = re.compile(r"^[\s|:-]+$")
_DRESS = re.compile(r"^\W*(?:\d+[.)]\s*)?\W*")
_BULLET = re.compile(r"[-*+\u2022] +")
_QUESTION_MARKS = "?\uff1f\u061f\u037e"
_ASKED = re.compile(rf"^(?P<question>[^\n]*?[{_QUESTION_MARKS}])[*_\"\u201d]*(?:\s+|$)(?P<rest>.*)")
_WHO, _WHAT = ("role", "from", "speaker"), ("content", "value", "text")


def read_form(text: str) -> list[tuple[str, str]]:
    """(role, words) of the form that has most turns; nothing if none has any."""
    lines = (_QUOTED.sub("", line) for line in text.split("\n"))
    text = "\n".join(line for line in lines if not SEPARATOR.match(line))
    found = (_find_sides(list(recognise(text))) for recognise in FORMS)
    return max(found, key=_count_pairs)


def _count_pairs(sides: Sequence[tuple[str, str]]) -> int:
    """How many questions have an answer right behind them."""
    pairs = pairwise(sides)
    return sum(
        bool(first[0] == QUESTION and second[0] == ANSWER and second[1]) for first, second in pairs
    )


def _find_sides(named: list[Named]) -> list[tuple[str, str]]:
    """Which of two names asks: most of what it says are questions, and the other one follows it."""
    said: Counter[str] = Counter(name for name, _ in named)
    asks: Counter[str] = Counter(name for name, words in named if _is_question(words))
    follows = Counter(
        (first[0], second[0]) for first, second in pairwise(named) if first[0] != second[0]
    )
    for (asking, answering), _ in follows.most_common():
        if asks[asking] * 2 > said[asking] and asks[answering] * 2 <= said[answering]:
            roles = {asking: QUESTION, answering: ANSWER}
            return [(roles[name], words) for name, words in named if name in roles]
    return []


def _is_question(words: str) -> bool:
    return words.rstrip(" *_\"'\u201d\u2019").endswith(tuple(_QUESTION_MARKS))


def read_json(text: str) -> Iterator[Named]:
    """All documents that begin a line: one, one a line, or one amid other words."""
    position = 0
    while opening := _OPENING.search(text, position):
        try:
            document, position = _JSON.raw_decode(text, opening.start(1))
        except ValueError:
            position = opening.end()
        except RecursionError:
            return
        else:
            yield from _walk(document)


def _read_yaml(text: str) -> Iterator[Named]:
    try:
        document = strict_yaml.load(text, keys_once=False)
    except (yaml.YAMLError, ValueError):
        return
    yield from _walk(document)


def _walk(value: Any) -> Iterator[Named]:
    """The texts in a document by their keys or places; of a chat's messages by their roles."""
    if isinstance(value, list):
        for number, inner in enumerate(value):
            yield from [(str(number % 2), inner)] if isinstance(inner, str) else _walk(inner)
    elif isinstance(value, dict):
        who = next((value[key] for key in _WHO if isinstance(value.get(key), str)), None)
        what = next((value[key] for key in _WHAT if isinstance(value.get(key), str)), None)
        if who is not None and what is not None:
            yield who.casefold(), what.strip()
            return
        for key, inner in value.items():
            name = str(key).casefold()
            if isinstance(inner, str) and _is_question(name):
                yield from ((QUESTION, key), (ANSWER, inner.strip()))
            elif isinstance(inner, str):
                yield name.rstrip("_- 0123456789"), inner.strip()
            else:
                yield from _walk(inner)


def _read_table(text: str) -> Iterator[Named]:
    rows = [match[1].split("|") for line in text.split("\n") if (match := _TABLE_ROW.match(line))]
    if not rows:
        return
    head = [cell.strip().casefold() for cell in rows[0]]
    for row in rows[1:]:
        if len(row) == len(head) and not _TABLE_RULE.match("|".join(row)):
            yield from zip(head, (cell.strip() for cell in row), strict=True)


def _read_tags(text: str) -> Iterator[Named]:
    for tag in _TAG.finditer(text):
        yield tag["name"].casefold().rstrip("0123456789"), html.unescape(tag["words"]).strip()


def _read_labels(text: str) -> Iterator[Named]:
    """Lines that begin with a label, and what follows up to the next one."""
    lines = _JOINT.sub("\n", _drop_markup(text)).split("\n")
    labels = [_LABEL.match(line) or _HEADED_LABEL.match(line) for line in lines]
    names = [_COUNTED.sub("", label["name"].casefold()) if label else "" for label in labels]
    if len({*names} - {""}) == 1:  # "Speaker 1:", "Speaker 2:"
        names = [label.group() if label else "" for label in labels]
    uses = Counter(filter(None, names))
    speaker, words = "", [""]
    for line, label, name in zip(lines, labels, names, strict=True):
        # What is there once in a longer text is somebody's list.
        if label and (uses[name] > 1 or len(uses) == 2):
            yield speaker, "\n".join(words).strip()
            speaker, words = name, [line[label.end() :]]
        else:
            words.append(line)
    yield speaker, "\n".join(words).strip()


def _drop_markup(text: str) -> str:
    """The words of a page, each block on a line of its own."""
    if "<" not in text:
        return text
    return html.unescape(_INLINE_MARKUP.sub("", _MARKUP.sub("\n", text)))


def _read_questions(text: str) -> Iterator[Named]:
    """Lines that end with a question mark, or have one behind a number, each with what follows."""
    question, answer = "", [""]
    for line in _drop_markup(text).split("\n"):
        dress = _DRESS.match(line)
        start = dress.end() if dress else 0
        asked = _ASKED.match(line[start:])
        begins = not answer[-1].strip() or start > 0
        if asked and begins and (start or not asked["rest"].strip()):
            if question:
                yield from _pair(question, answer)
            question, answer = asked["question"].strip(), [asked["rest"]]
        else:
            answer.append(line)
    if question:
        yield from _pair(question, answer)


def _pair(question: str, lines: list[str]) -> Iterator[Named]:
    """A question, and its answer without the bullet before it, unless it is a list."""
    answer = "\n".join(lines).strip()
    bullet = _BULLET.match(answer)
    is_list = bullet is None or f"\n{bullet.group()}" in "\n".join(map(str.lstrip, lines[1:]))
    yield QUESTION, question
    yield ANSWER, answer if bullet is None or is_list else answer[bullet.end() :]


FORMS: tuple[Callable[[str], Iterator[Named]], ...] = (
    read_json,
    _read_yaml,
    _read_table,
    _read_tags,
    _read_labels,
    _read_questions,
)
"""In the order in which they are preferred where two have as many turns."""
