"""Answer text -> turns, or the reason why there are none.

Every defect that models show has one defined result:

    preamble before the first label       ignored, noted
    separators (===, ---) on their own    ignored; unlabelled text after one is ignored, noted
    code fence around the answer          the inside is read
    special tokens (<|im_end|>, </s>)     leading ones are removed, the text ends at the first other
    <think> ... </think>                  removed; unfinished: rejected
    Windows newlines                      read as newlines
    question without an answer            that turn is left out, noted
    answer without a question             the turns before it are kept, noted
    cut by the token limit                the unfinished last turn is left out, noted ``truncated``
    a turn that gives the annotations
    away, repeats a question or copies
    a few-shot example                    the turns before it are kept, noted
    nothing left                          rejected with the reason, never dropped silently

Turns after a bad one are left out as well, since they may refer to it.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from mminstruct.prompts import InstructionType, PromptConfig, find_leak
from mminstruct.schema import Completion, Turn

_QUESTION, _ANSWER = "question", "answer"
_LABEL = re.compile(
    r"""^[\s>#*_-]*(?:\d+[.)]\s*)?[*_]*
        (?:(?P<question>question|q|user|human)|(?P<answer>answer|a|assistant|gpt))
        (?:\s*\#?\d+)?[*_]*\s*:[*_]*\s?""",
    re.IGNORECASE | re.VERBOSE,
)
_SEPARATOR = re.compile(r"^\s*(?:={3,}|-{3,}|\*{3,}|_{3,})\s*$")
_FENCE = re.compile(r"^\s*(?:```|~~~)[\w-]*\s*$")
_THINK = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_THINK_START = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_THINK_END = re.compile(r"^.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_SPECIAL = re.compile(
    r"<\|[a-z0-9_ ]{1,40}\|>|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
    r"|\[/?INST\]|<</?SYS>>",
    re.IGNORECASE,
)
_PREAMBLE = re.compile(
    r"^(?:(?:sure|certainly|of course|okay|ok|absolutely)\b[^\n]{0,120}|here(?:'s| is| are)\b"
    r"[^\n]{0,120}:|(?:detailed )?(?:description|answer)\s*:)\s*(?:\n+|$)",
    re.IGNORECASE,
)
_TEXT_LABEL = re.compile(
    r"^\**(?:detailed )?(?:description|answer|image description)\**:\**\s*", re.I
)
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]?")
_REPEATS = 4


@dataclass(frozen=True, slots=True)
class Parsed:
    """The turns that were read, never none, and what was noted on the way."""

    turns: tuple[Turn, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why an answer gives no row: a reason to count by, and the detail of this one."""

    reason: str
    detail: str = ""


def parse(
    completion: Completion, config: PromptConfig, type_name: str, *, question: str | None = None
) -> Parsed | Rejected:
    """The turns of an answer.

    Args:
        completion: the finished answer.
        config: the prompt config that it was asked with.
        type_name: the instruction type that it was asked for.
        question: what a ``text`` answer is paired with; unused for the other forms.
    """
    kind = config.types[type_name]
    if completion.finish_reason == "content_filter":
        return Rejected("content_filter", "the server withheld the answer")
    text = completion.text.replace("\r\n", "\n").replace("\r", "\n")
    text = _THINK_END.sub("", _THINK.sub("", text))
    if _THINK_START.search(text):
        return Rejected("unfinished_reasoning", "the reasoning block is not closed")
    text = _unfenced(_without_special_tokens(text)).strip()
    if not text:
        return Rejected("empty", "the answer is empty")
    truncated = completion.finish_reason == "length"
    if kind.answer_form == "text":
        return _parse_text(text, config, kind, question or "", truncated=truncated)
    return _parse_turns(text, config, kind, truncated=truncated)


def _parse_text(
    text: str, config: PromptConfig, kind: InstructionType, question: str, *, truncated: bool
) -> Parsed | Rejected:
    if truncated:
        return Rejected("truncated", "the token limit cut the text")
    notes = []
    body = _PREAMBLE.sub("", text, count=1)
    if body != text:
        notes.append("preamble")
    body = _TEXT_LABEL.sub("", body).strip()
    if not body:
        return Rejected("empty", "nothing but a preamble")
    if any((m := _LABEL.match(line)) and m.group("question") for line in body.split("\n")):
        return Rejected("wrong_form", "questions and answers where a text was asked for")
    flaw = _flaw(body, config, kind)
    if flaw:
        return flaw
    return Parsed((Turn(question, body),), tuple(notes))


def _parse_turns(
    text: str, config: PromptConfig, kind: InstructionType, *, truncated: bool
) -> Parsed | Rejected:
    segments, notes = _segments(text)
    if not segments:
        return Rejected("no_labels", "no line starts with 'Question:' or 'Answer:'")
    if truncated:
        notes.append("truncated")
    turns, flaw = _paired(segments, notes, truncated=truncated)
    kept: list[Turn] = []
    seen: set[str] = set()
    answers: set[str] = set()
    for turn in turns:
        problem = _flaw(turn.answer, config, kind, question=turn.question)
        normal = " ".join(turn.question.lower().split())
        if problem is None and normal in seen:
            problem = Rejected("repetition", f"question asked twice: {turn.question!r}")
        if problem is None and turn.answer in answers:
            problem = Rejected("repetition", f"answer given twice: {turn.answer!r}")
        if problem is not None:
            notes.append(problem.reason)
            flaw = flaw or problem
            break
        seen.add(normal)
        answers.add(turn.answer)
        kept.append(turn)
    if not kept:
        return flaw or Rejected("no_complete_turn", "no question has an answer")
    if kind.answer_form == "turn" and len(kept) > 1:
        kept = kept[:1]
        notes.append("extra_turns")
    return Parsed(tuple(kept), tuple(dict.fromkeys(notes)))


def _segments(text: str) -> tuple[list[tuple[str, str]], list[str]]:
    """(role, text) in the order of the labels, and notes about text outside of them."""
    segments: list[tuple[str, list[str]]] = []
    notes: list[str] = []
    stray = "preamble"
    listening = False
    for line in text.split("\n"):
        if _SEPARATOR.match(line):
            # "Question:" and its text may stand on both sides of a separator line.
            listening = listening and not "".join(segments[-1][1]).strip()
            stray = "stray_text"
        elif match := _LABEL.match(line):
            role = _QUESTION if match.group("question") else _ANSWER
            segments.append((role, [line[match.end() :]]))
            listening = True
        elif listening:
            segments[-1][1].append(line)
        elif line.strip():
            notes.append(stray)
    return [(role, "\n".join(lines).strip().strip("*").strip()) for role, lines in segments], notes


def _paired(
    segments: list[tuple[str, str]], notes: list[str], *, truncated: bool
) -> tuple[list[Turn], Rejected | None]:
    turns: list[Turn] = []
    question: str | None = None
    last = len(segments) - 1
    for number, (role, text) in enumerate(segments):
        if role == _QUESTION:
            if question is not None:
                notes.append("unanswered_question")
            question = text or None
            continue
        if truncated and number == last:
            return turns, Rejected("truncated", "the token limit cut the first answer")
        if question is None:
            notes.append("answer_without_question")
            return turns, Rejected("answer_without_question", f"an answer comes first: {text!r}")
        if not text:
            notes.append("empty_answer")
            return turns, Rejected("empty_answer", f"no answer to {question!r}")
        turns.append(Turn(question, text))
        question = None
    if question is not None:
        notes.append("unanswered_question")
    return turns, Rejected("truncated", "the token limit cut it") if truncated else None


def _flaw(
    answer: str, config: PromptConfig, kind: InstructionType, *, question: str = ""
) -> Rejected | None:
    if leak := find_leak(config, f"{question}\n{answer}"):
        return Rejected("leak", leak)
    if len(answer.split()) < kind.min_words:
        return Rejected("too_short", f"{len(answer.split())} words, at least {kind.min_words}")
    sentences = Counter(s.strip().lower() for s in _SENTENCE.findall(answer) if len(s) > 15)
    if sentences and max(sentences.values()) >= _REPEATS:
        return Rejected("repetition", f"one sentence {max(sentences.values())} times")
    for example in kind.examples:
        if answer == example.text or any(
            answer == t.answer and question == t.question for t in example.turns
        ):
            return Rejected("copied_example", "the answer is a few-shot example's")
    return None


def _without_special_tokens(text: str) -> str:
    text = text.lstrip()
    while match := _SPECIAL.match(text):
        text = text[match.end() :].lstrip()
    match = _SPECIAL.search(text)
    return text[: match.start()] if match else text


def _unfenced(text: str) -> str:
    """The inside of a code fence, open-ended if it never closes; the text itself without one."""
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if _FENCE.match(line)]
    if not fences:
        return text
    if len(fences) == 1 and any(line.strip() for line in lines[: fences[0]]):
        before, after = lines[: fences[0]], lines[fences[0] + 1 :]
        return "\n".join(before if len("".join(before)) >= len("".join(after)) else after)
    end = fences[1] if len(fences) > 1 else len(lines)
    return "\n".join(lines[fences[0] + 1 : end])
