"""Answer text -> turns, or the reason why there are none.

Every defect that models show has one defined result:

    preamble before the first label       ignored, noted
    separators (===, ---) on their own    ignored; unlabelled text after one is ignored, noted; of
    and headings such as "Turn 2:"        a text that they divide, the longest part is kept
    code fences around the answer         the inside is read; one within an answer is left alone
    special tokens (<|im_end|>, </s>)     leading ones are removed, with the role that they name;
                                          the text ends at the first other
    <think> ... </think>, [THINK] ...     removed; unfinished: rejected
    channels (<|channel|>analysis, final) the final one is read; without one: rejected
    Windows newlines                      read as newlines
    question without an answer            that turn is left out, noted
    answer without a question             the turns before it are kept, noted
    cut by the token limit                the unfinished last turn is left out, noted ``truncated``
    a turn that gives the annotations
    away, repeats a question or a long
    answer, or copies a few-shot example  the turns before it are kept, noted
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
    r"""^(?:[\s>#-]|[*+\u2022]\s)*(?P<open>[*_]{0,3})(?:\d+[.)][*_]{0,3}\s*(?P<inner>[*_]{0,3}))?
        (?:(?P<question>question|user|human|(?<![-+*\u2022>]\s)q)
          |(?P<answer>answer|assistant|gpt|(?<![-+*\u2022>]\s)a))
        (?:\s*\#?\d+)?(?P<close>[*_]{0,3}\s*(?!(?<=\d):\d):[*_]{0,3})\s?""",
    re.IGNORECASE | re.VERBOSE,
)
_SEPARATOR = re.compile(
    r"^\s*(?:={3,}|-{3,}|\*{3,}|_{3,})\s*$"
    r"|^\W*(?:turn|round|exchange|pair|conversation|dialogue)\s*#?\d+\W*$",
    re.IGNORECASE,
)
_FENCE = re.compile(r"^\s*(?:```|~~~)\s*[\w-]*\s*$")
_EMPHASISED = re.compile(r"(\*{1,3})(?=\S)([^*]+)(?<=\S)\1")
_THINK = re.compile(
    r"(?:<(?=/?think(?:ing)?>)|(?-i:\[(?=/?THINK\])))(?P<end>/?)think(?:ing)?[>\]]", re.IGNORECASE
)
# https://cookbook.openai.com/articles/openai-harmony, the format of gpt-oss.
_CHANNEL = "<|channel|>"
_FINAL_CHANNEL = re.compile(r"<\|channel\|>\s*final\b[^<]*<\|message\|>")
_SPECIAL = re.compile(
    # DeepSeek writes them with other bars and blanks.
    r"<\|[a-z0-9_ ]{1,40}\|>|<\uff5c[a-z0-9_ \u2581]{1,40}\uff5c>"
    r"|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
    r"|\[/?INST\]|<</?SYS>>",
    re.IGNORECASE,
)
_ROLE = re.compile(
    r"(?:<\|(?:im_start|start_header_id|start)\|>|<start_of_turn>)(?:assistant|model)\b",
    re.IGNORECASE,
)
_PREAMBLE = re.compile(
    r"^(?:(?:sure|certainly|of course|okay|ok|absolutely)\b[^\n]{0,120}"
    r"|here(?:['\u2019]s| is| are)\b[^\n]{0,120}:"
    r"|(?:detailed )?(?:description|answer)\s*:)\s*(?:\n+|$)",
    re.IGNORECASE,
)
_TEXT_LABEL = re.compile(
    r"^[#*\s]*(?:detailed )?(?:image )?(?:description|answer|assistant)\**(?::\**\s*|\s*\n)", re.I
)
# In words. "It is on the left." may well be said twice.
_SHORT_ANSWER = 5
_SHORT_SENTENCE = 15
_REPEATS = 4
# Of 40 words of prose, more than 25 are distinct; of 400, more than 160. Loops go below a fifth.
_MANY_WORDS = 40
_LEAST_DISTINCT = 0.25


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
    # Most answers lack what a step looks for, and to look for one character costs next to nothing.
    text = completion.text
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    spoken = _without_reasoning(text) if "<" in text or "[" in text else text
    if spoken is None:
        return Rejected("unfinished_reasoning", "the reasoning block is not closed")
    if "<" in spoken or "[" in spoken:
        spoken = _without_special_tokens(spoken)
    text = (_unfenced(spoken) if "`" in spoken or "~" in spoken else spoken).strip()
    truncated = completion.finish_reason == "length"
    if not text and truncated:
        return Rejected("truncated", "the token limit was used up before there was any text")
    if not text:
        return Rejected("empty", "the answer is empty")
    if kind.answer_form == "text":
        return _parse_text(text, config, kind, question or "", truncated=truncated)
    return _parse_turns(text, config, kind, truncated=truncated)


def _parse_text(
    text: str, config: PromptConfig, kind: InstructionType, question: str, *, truncated: bool
) -> Parsed | Rejected:
    if truncated:
        return Rejected("truncated", "the token limit cut the text")
    notes = []
    body = text
    while preamble := _PREAMBLE.match(body):
        body = body[preamble.end() :]
    if body != text:
        notes.append("preamble")
    parts = _parts(body)
    if len(parts) > 1:
        notes.append("stray_text")
    body = max(parts, key=len, default="")
    if label := _TEXT_LABEL.match(body):
        body = body[label.end() :].strip()
    if not body:
        return Rejected("empty", "nothing but a preamble")
    if any((m := _LABEL.match(line)) and m.group("question") for line in body.split("\n")):
        return Rejected("wrong_form", "questions and answers where a text was asked for")
    flaw = _leak(config, body) or _flaw(body, kind)
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
    leaky = find_leak(config, text) is not None
    kept: list[Turn] = []
    seen: set[str] = set()
    answers: set[str] = set()
    for turn in turns:
        problem = _leak(config, f"{turn.question}\n{turn.answer}") if leaky else None
        problem = problem or _flaw(turn.answer, kind, question=turn.question)
        normal = " ".join(turn.question.lower().split())
        if problem is None and normal in seen:
            problem = Rejected("repetition", f"question asked twice: {turn.question!r}")
        if problem is None and turn.answer in answers and _is_long(turn.answer):
            problem = Rejected("repetition", f"answer given twice: {turn.answer!r}")
        if problem is not None:
            notes.append(problem.reason)
            flaw = problem  # comes before what ended the pairing
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
    segments: list[tuple[str, re.Match[str] | None, list[str]]] = []
    notes: list[str] = []
    stray = "preamble"
    listening = False
    for line in text.split("\n"):
        # The two spellings asked for, and empty lines, need no pattern: nearly all lines are such.
        if line.startswith("Question: "):
            segments.append((_QUESTION, None, [line[10:]]))
            listening = True
        elif line.startswith("Answer: "):
            segments.append((_ANSWER, None, [line[8:]]))
            listening = True
        elif not line:
            if listening:
                segments[-1][2].append(line)
        elif _SEPARATOR.match(line):
            # "Question:" and its text may stand on both sides of a separator line.
            listening = listening and not "".join(segments[-1][2]).strip()
            stray = "stray_text"
        elif match := _LABEL.match(line):
            role = _QUESTION if match.group("question") else _ANSWER
            segments.append((role, match, [line[match.end() :]]))
            listening = True
        elif listening:
            segments[-1][2].append(line)
        elif line.strip():
            notes.append(stray)
    return [
        (role, _without_emphasis(label, "\n".join(lines).strip()))
        for role, label, lines in segments
    ], notes


def _without_emphasis(label: re.Match[str] | None, text: str) -> str:
    """The text without markers that are around all of it, or that began at its label."""
    opened = label and (label.group("inner") or label.group("open"))
    if label and opened and label.group("close").strip() == ":" and text.count(opened) % 2:
        text = text.replace(opened, "", 1).strip()
    if text.startswith("*") and (whole := _EMPHASISED.fullmatch(text)):
        text = whole.group(2)
    return text if text.strip("*_ \n") else ""


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


def _is_long(answer: str) -> bool:
    """Whether an answer says enough that nobody would say it twice, unlike "Yes."."""
    return len(answer.split()) > _SHORT_ANSWER


def _leak(config: PromptConfig, text: str) -> Rejected | None:
    leak = find_leak(config, text)
    return Rejected("leak", leak) if leak else None


def _flaw(answer: str, kind: InstructionType, *, question: str = "") -> Rejected | None:
    lower = answer.lower()
    words = lower.split()
    if len(words) < kind.min_words:
        return Rejected("too_short", f"{len(words)} words, at least {kind.min_words}")
    if (count := len(words)) >= _MANY_WORDS:
        least = _LEAST_DISTINCT * count
        # Half of nearly every text has enough.
        if len(set(words[: count // 2])) < least and (distinct := len(set(words))) < least:
            return Rejected("repetition", f"{distinct} distinct words among {count}")
    # A pattern that splits at any of these takes ten times as long.
    pieces = lower.replace("!", ".").replace("?", ".").replace("\n", ".").split(".")
    sentences = (
        [s for s in map(str.lstrip, pieces) if len(s) > _SHORT_SENTENCE]
        if len(pieces) >= _REPEATS
        else []
    )
    if len(sentences) - len(set(sentences)) >= _REPEATS - 1:
        most = max(Counter(sentences).values())
        if most >= _REPEATS:
            return Rejected("repetition", f"one sentence {most} times")
    if (question, answer) in kind.example_turns:
        return Rejected("copied_example", "the answer is a few-shot example's")
    return None


def _without_reasoning(text: str) -> str | None:
    """The text outside of reasoning blocks and channels, or None if those do not end."""
    if _CHANNEL in text:
        _, *finals = _FINAL_CHANNEL.split(text)
        if not finals:
            return None
        text = finals[-1]
    spoken: list[str] = []
    thinking = False
    position = 0
    for tag in _THINK.finditer(text):
        if tag.group("end"):
            if not thinking:
                spoken.clear()  # the start was part of the prompt
            thinking = False
            position = tag.end()
        elif not thinking:
            spoken.append(text[position : tag.start()])
            thinking = True
    return None if thinking else "".join([*spoken, text[position:]])


def _without_special_tokens(text: str) -> str:
    text = text.lstrip()
    while match := _ROLE.match(text) or _SPECIAL.match(text):
        text = text[match.end() :].lstrip()
    match = _SPECIAL.search(text)
    return text[: match.start()] if match else text


def _unfenced(text: str) -> str:
    """The inside of code fences, open-ended if one never closes; the text itself without any.

    Fences are around the answer if the labels are inside or, where labels don't tell, if most of
    the text is. Otherwise they belong to the answer.
    """
    outside: list[str] = []
    inside: list[str] = []
    lines = outside
    for line in text.split("\n"):
        if _FENCE.match(line):
            lines = inside if lines is outside else outside
        else:
            lines.append(line)
    inner, outer = "\n".join(inside).strip(), "\n".join(outside).strip()
    ranks = [
        (any(map(_LABEL.match, part)), len(whole))
        for part, whole in ((inside, inner), (outside, outer))
    ]
    if inner and ranks[0] >= ranks[1]:
        return inner
    return text if inner and lines is outside else outer


def _parts(text: str) -> list[str]:
    """What stands between separators, without what is empty."""
    parts: list[list[str]] = [[]]
    for line in text.split("\n"):
        if _SEPARATOR.match(line):
            parts.append([])
        else:
            parts[-1].append(line)
    return [part for part in ("\n".join(lines).strip() for lines in parts) if part]
