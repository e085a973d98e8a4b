"""The labelled questions and answers in a text."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mminstruct.answers.asides import SEPARATOR, drop_tail, line_above
from mminstruct.answers.flaws import Rejected
from mminstruct.schema import Turn

QUESTION, ANSWER = "question", "answer"
_DASHES = r"\u2013\u2014-"
# What a question is about: "Question 1 (Colour):", "**Question 2 \u2013 Objects:**".
_KIND = rf"(?:\([^()]{{1,40}}\)|\ [{_DASHES}]\ [^\n:?*]{{1,40}})"
_LABEL = re.compile(
    rf"""^(?:[\s>#-]|[*+\u2022]\s)*(?P<open>[*_]{{0,3}})
        (?:(?:\d+[.)]|(?:turn|round|exchange)\s*\#?\d+(?:\s*[:.){_DASHES}])?)
           [*_]{{0,3}}\s*(?P<inner>[*_]{{0,3}}))?
        (?:(?P<question>question(?:\s*\#?\d+)?\s*{_KIND}|question|user|human
             |(?<![-+*\u2022>]\s)q)
          |(?P<answer>answer(?:\s*\#?\d+)?\s*{_KIND}|answer|(?:ai\s+)?assistant|gpt
             |(?<![-+*\u2022>]\s)a))
        (?:\s*\#?\d+)?(?P<close>[*_]{{0,3}}
           (?:\s*(?!(?<=\d):\d)[:\uff1a][*_]{{0,3}}|\ [{_DASHES}]\ ))\s?""",
    re.IGNORECASE | re.VERBOSE,
)
# "### Question 1", with the question on the lines below.
_HEADED_LABEL = re.compile(
    r"""^\s*(?:\#{1,6}\s*[*_]{0,3}|\*\*|__)(?:\d+[.)]\s*)?(?:[a-z-]{1,12}\ )?
        (?:(?P<question>question)|(?P<answer>answer))(?:\s*\#?\d+)?[*_]{0,3}\s*$""",
    re.IGNORECASE | re.VERBOSE,
)
# An answer may have a list with "Person: a man" or "A. left" in it.
DOUBTFUL_LABEL = re.compile(
    r"""^[\s>#]*(?P<open>[*_]{0,3})
        (?:(?:(?P<question>person)|(?P<answer>ai|model|(?:chat)?bot|response|reply))
           (?:\s*\#?\d+)?(?P<close>[*_]{0,3}\s*[:\uff1a][*_]{0,3})\s?
          |(?:(?P<q>q)|a)\d*\.[*_]{0,3}\s+(?=\S))""",
    re.IGNORECASE | re.VERBOSE,
)
_INLINE_LABEL = re.compile(
    r"""(?:(?P<asks>[?\uff1f])|[.!\u2026\u3002\uff01])['")\]\u2019\u201d]{0,2}[*_]{0,3}
        (?P<gap>[ \t]+)(?P<open>[*_]{0,3})
        (?:(?P<question>Question|User|Human|Person|Q)|(?P<answer>Answer|Assistant|AI|A))
        (?:[ ]?\#?\d+)?(?P<close>[*_]{0,3}:[*_]{0,3})""",
    re.VERBOSE,
)
_TEMPLATE = re.compile(r"[\[<{](?:\w+ )?(?:question|answer)\b[^\]>}\n]*[\]>}]", re.IGNORECASE)
_EMPHASISED = re.compile(r"(\*{1,3})(?=\S)([^*]+)(?<=\S)\1")


@dataclass(slots=True)
class _Segment:
    """A label and the lines up to the next one.

    Attributes:
        role: which side it is.
        lines: without the label.
        opened: the emphasis that the label began and did not end.
        short: the label is a letter.
    """

    role: str
    lines: list[str]
    opened: str = ""
    short: bool = False


def read_segments(text: str) -> tuple[list[tuple[str, str]], list[str]]:
    """(role, text) in the order of the labels, and notes about text outside of them."""
    segments: list[_Segment] = []
    notes: list[str] = []
    stray = "preamble"
    listening = False
    lines = text.split("\n")
    certain: frozenset[int] | None = None
    for number, line in enumerate(lines):
        begun: _Segment | None = None
        # The two spellings asked for, and empty lines, need no pattern: nearly all lines are such.
        if line.startswith("Question: "):
            begun = _Segment(QUESTION, [line[10:]])
        elif line.startswith("Answer: "):
            begun = _Segment(ANSWER, [line[8:]])
        elif not line:
            pass
        elif match := match_sure_label(line, segments[-1].role if segments else ""):
            begun = _begin_segment(match, line)
        elif separator := SEPARATOR.match(line):
            if separator.group("titled"):
                notes.append("stray_text" if segments else stray)
            # "Question:" and its text may stand on both sides of a separator line.
            listening = listening and not "".join(segments[-1].lines).strip()
            if listening:
                segments[-1].lines[:] = [""]  # not more and more empty lines to join
            stray = "stray_text"
            continue
        elif match := DOUBTFUL_LABEL.match(line):
            certain = find_certain(lines) if certain is None else certain
            begun = _begin_segment(match, line) if number in certain else None
        if begun is not None and _is_option(begun, segments):
            begun = None
        if begun is not None:
            segments.append(begun)
            listening = True
        elif listening:
            segments[-1].lines.append(line)
        elif line.strip():
            notes.append(stray)
    pieces: list[tuple[str, str]] = []
    for number, segment in enumerate(segments, 1):
        following = segments[number].role if number < len(segments) else None
        if following == segment.role and not "".join(segment.lines).strip():
            continue  # a heading "### Answer 1" above "Answer:"
        if len(segment.lines) > 1:
            segment.lines = drop_tail(segment.lines, notes, between=following == QUESTION)
        if not segment.opened and len(segment.lines) == 1 and ":" not in segment.lines[0]:
            pieces.append((segment.role, _drop_emphasis("", segment.lines[0])))
        else:
            pieces += _split_segment(segment, following)
    return pieces, notes


def match_sure_label(line: str, last: str = "") -> re.Match[str] | None:
    """The label that the line begins with, or is; ``last`` is the role of the one before."""
    if label := _LABEL.match(line):
        return label
    label = _HEADED_LABEL.match(line)
    # An answer may come to its own "**Answer**".
    return label if label and (label.group("question") or last != ANSWER) else None


def _begin_segment(label: re.Match[str], line: str) -> _Segment:
    """What begins with the label of this line."""
    groups = label.groupdict()
    word = groups["question"] or groups["answer"]
    role = QUESTION if groups["question"] or groups.get("q") else ANSWER
    opened = groups.get("inner") or groups.get("open") or ""
    if opened and (groups.get("close") or "").startswith(("*", "_")):
        opened = ""
    return _Segment(role, [line[label.end() :]], opened, short=not word or len(word) == 1)


def _is_option(begun: _Segment, segments: list[_Segment]) -> bool:
    """Whether "A: red" within an answer is one of its options, as its own label is a word."""
    return (
        bool(segments)
        and begun.short
        and not segments[-1].short
        and (begun.role == segments[-1].role == ANSWER)
    )


def find_certain(lines: list[str]) -> frozenset[int]:
    """The numbers of the lines whose doubtful label is one, as those around it show."""
    labels: list[tuple[int, str, str]] = []  # number, role, and the word if it is doubtful
    for number, line in enumerate(lines):
        if match := match_sure_label(line):
            labels.append((number, _begin_segment(match, line).role, ""))
        elif match := DOUBTFUL_LABEL.match(line):
            word = match.group("question") or match.group("answer") or "."
            labels.append((number, _begin_segment(match, line).role, word.lower()))
    certain: set[int] = set()
    asking = last = ""
    ends = [*labels[1:], (len(lines), "", "")]
    # A last question that nobody answers says nothing about how the others are labelled.
    sure = {
        role
        for (_, role, word), (_, after, _) in zip(labels, ends, strict=True)
        if not word and (role == ANSWER or after)
    }
    for (number, role, word), (end, following, next_word) in zip(labels, ends, strict=True):
        surely_next = following == ANSWER and not next_word
        asks = "".join(lines[number:end]).rstrip(" *_").endswith("?")
        if word and last == ANSWER and line_above(lines, number).endswith(":"):
            continue
        if word and role in sure:
            # Content, unless an answer would have no question, or as a last question.
            ending = not following and asks and number and not lines[number - 1].strip()
            if role == ANSWER or last == QUESTION or not (surely_next or ending):
                continue
        elif word and role == QUESTION:
            # A list of what there is may have "Person: one" above "Model: a Ford".
            answered = following == ANSWER and next_word != "model"
            if last == QUESTION or not (asks or answered or word == asking):
                continue
            asking = word
        elif word and (last != QUESTION or surely_next or (word == "." and asking != ".")):
            continue
        if word:
            certain.add(number)
        last = role
    return frozenset(certain)


def _split_segment(segment: _Segment, following: str | None) -> list[tuple[str, str]]:
    """(role, text) of a segment, and of the turns that go on within its lines.

    A label within a line counts only where the other side's label comes next, as the words occur
    in prose, too; or if what it asks ends the segment.
    """
    text = "\n".join(segment.lines).strip()
    role = segment.role
    labels: list[re.Match[str]] = []
    within = role == ANSWER
    for label in _INLINE_LABEL.finditer(text) if ":" in text else ():
        question = label.group("question")
        if within and not question and not label.group("asks"):
            continue
        if (len(question or label.group("answer")) == 1) == segment.short and bool(question) == (
            role == ANSWER
        ):
            labels.append(label)
            role = QUESTION if question else ANSWER
    unanswered = role == QUESTION and following != ANSWER and text.rstrip("*_").endswith("?")
    if labels and role == (following or QUESTION) and not unanswered:
        labels.pop()
    pieces: list[tuple[str, str]] = []
    role, opened, start = segment.role, segment.opened, 0
    for label in labels:
        pieces.append((role, _drop_emphasis(opened, text[start : label.start("gap")])))
        role = QUESTION if label.group("question") else ANSWER
        opened = label.group("open") if label.group("close") == ":" else ""
        start = label.end()
    return [*pieces, (role, _drop_emphasis(opened, text[start:]))]


def _drop_emphasis(opened: str, text: str) -> str:
    """The text without markers that are around all of it, or that began at its label."""
    text = text.strip()
    if opened and text.count(opened) % 2:
        text = text.replace(opened, "", 1).strip()
    if text.startswith("*") and (whole := _EMPHASISED.fullmatch(text)):
        text = whole.group(2)
    # "..." and "[your question]" are a template's.
    return "" if _TEMPLATE.fullmatch(text) or not any(map(str.isalnum, text)) else text


def pair_turns(
    segments: list[tuple[str, str]], notes: list[str], *, truncated: bool
) -> tuple[list[Turn], Rejected | None]:
    """Questions and answers in pairs, as they follow each other."""
    turns: list[Turn] = []
    question: str | None = None
    flaw: Rejected | None = None
    last = len(segments) - 1
    for number, (role, text) in enumerate(segments):
        if role == QUESTION:
            if question is not None:
                notes.append("unanswered_question")
            question = text or None
            continue
        if truncated and number == last:
            return turns, Rejected("truncated", "the token limit cut the first answer")
        if question is None and not text and number and segments[number - 1] == (QUESTION, ""):
            notes.append("stray_text")  # a template that was echoed
            continue
        if question is None:
            notes.append("answer_without_question")
            flaw = flaw or Rejected("answer_without_question", f"an answer comes first: {text!r}")
            continue
        if not text:
            notes.append("empty_answer")
            return turns, Rejected("empty_answer", f"no answer to {question!r}")
        turns.append(Turn(question, text))
        question = None
    if question is not None:
        notes.append("unanswered_question")
    return turns, Rejected("truncated", "the token limit cut it") if truncated else flaw
