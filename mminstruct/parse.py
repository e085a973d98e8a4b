"""Answer text -> turns, or the reason why there are none.

Every defect that models show has one defined result:

    preamble before the first label,      ignored, noted
    opening phrase or only heading of a
    text
    separators (===, ---, * * *)          ignored; unlabelled text after one is ignored, noted; of
    and headings such as "Turn 2:"        a text that they divide, the longest part is kept
    headings of the next turn and         left out, noted, unless the line above ends no sentence
    remarks ("Let me know if ...") at
    the end of an answer or text
    turns that go on within a line        divided where both sides' labels are
    labels that are words, too (Person:,  labels where a question and an answer take turns, and no
    Model:, Q.)                           "Question:" or "Answer:" labels the same side
    code fences around the answer         the inside is read; one within an answer is left alone
    tags around the answer (<answer>)     the inside is read, what is outside is ignored and noted,
                                          unless there are turns; at the edges of an answer they are
                                          removed, within its prose they stay
    special tokens (<|im_end|>, </s>)     leading ones are removed, with the role that they name;
                                          the text ends at the first other; what follows is noted
    <think> ... </think>, [THINK] ...,    removed; unfinished: rejected
    <|START_THINKING|> ..., <details>
    with a summary of thoughts, channels
    whose tokens were taken out
    channels (<|channel|>analysis, final) the final one is read; without one: rejected
    Windows newlines                      read as newlines
    byte order marks and zero-width       removed where a line begins with them
    spaces
    question without an answer            that turn is left out, noted
    answer without a question             the turns before it are kept, noted
    cut by the token limit                the unfinished last turn is left out, noted ``truncated``
    a template that is echoed ("...")     no turn, noted
    a turn that gives the annotations     the turns before it are kept, noted
    away, repeats a question or a long
    answer, gives a short one a fourth
    time, or copies a few-shot example
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
    r"""^(?:[\s>#-]|[*+\u2022]\s)*(?P<open>[*_]{0,3})
        (?:(?:\d+[.)]|(?:turn|round|exchange)\s*\#?\d+(?:\s*[:.)\u2013\u2014-])?)
           [*_]{0,3}\s*(?P<inner>[*_]{0,3}))?
        (?:(?P<question>question(?:\s*\#?\d+)?\s*\([^()]{1,40}\)|question|user|human
             |(?<![-+*\u2022>]\s)q)
          |(?P<answer>answer(?:\s*\#?\d+)?\s*\([^()]{1,40}\)|answer|(?:ai\s+)?assistant|gpt
             |(?<![-+*\u2022>]\s)a))
        (?:\s*\#?\d+)?(?P<close>[*_]{0,3}\s*(?!(?<=\d):\d)[:\uff1a][*_]{0,3})\s?""",
    re.IGNORECASE | re.VERBOSE,
)
# "### Question 1", with the question on the lines below.
_HEADED_LABEL = re.compile(
    r"""^\s*(?:\#{1,6}\s*[*_]{0,3}|\*\*|__)(?:\d+[.)]\s*)?
        (?:(?P<question>question)|(?P<answer>answer))(?:\s*\#?\d+)?[*_]{0,3}\s*$""",
    re.IGNORECASE | re.VERBOSE,
)
# An answer may have a list with "Person: a man" or "A. left" in it.
_DOUBTFUL_LABEL = re.compile(
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
_NUMBERS = "one|two|three|four|five|six|seven|eight|nine|ten"
_ORDINALS = "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|next|last|final"
_TURN = rf"""(?:(?:turn|round|exchange|pair|conversation|dialogue)\s*(?:\#?\d+|{_NUMBERS})
        |(?:{_ORDINALS}|\d+(?:st|nd|rd|th))\s+(?:turn|exchange|conversation|dialogue))\b
        [*_]{{0,3}}(?:\W*|\s*[:(\u2013\u2014-](?!\W*\d).{{0,80}}(?<![.!]))$"""
_SEPARATOR = re.compile(
    rf"""^\s*(?:={{3,}}|-{{3,}}|\*{{3,}}|_{{3,}})\s*$
    |^\W*(?:turn|round|exchange|pair|conversation|dialogue)\s*\#?\d+\W*$
    |^\s*(?P<titled>\#|\*\*|__)\W*{_TURN}""",
    re.IGNORECASE | re.VERBOSE,
)
_HEADING = re.compile(r"^\#{1,6}\s+\S")
_TURN_HEADING = re.compile(rf"^\W*{_TURN}", re.IGNORECASE | re.VERBOSE)
_BOLD_HEADING = re.compile(r"^(?:\d+[.)]\s*)?(\*{2,3}|__)[^*_]{1,80}(?<![.!])\1:?$")
_REMARK = re.compile(
    r"""^(?P<lead>[\s*_(\[>\#-]*)(?:
        (?:please\ )?(?:let\ me\ know|feel\ free\ to\ (?:ask|let|adjust|modify|edit|change|reach))\b
        |(?:I\ )?hope\ (?:this|that|these|it)\b(?:\ [\w'\u2019]{1,20}){0,3}?
          \ (?:meets?\b|what\ you\b
            |(?:help(?:s|ful)?|works?|useful)\b(?=\W*$|[!.,]|\ (?:you|for|with|in)\b))
        |(?:would\ you\ like|do\ you\ want)\ me\ to\b
        |is\ there\ anything\ else\ (?:you|I)\b
        |if\ you(?:['\u2019]d\ like|\ (?:need|want|would\ like|have))\b.{0,120}\b(?:let\ me\ know
          |feel\ free\ to\ (?:ask|let|reach)|just\ ask|I(?:['\u2019]d|\ would)\ be\ happy)\b
        |note[*_]*:.{0,200}?\b(?:I|provided|based\ on|(?:the|this)\ (?:description|conversation))\b
        |(?P<bracketed>note[*_]*:.{0,200}?\b(?:my|given|details|(?:description|conversation|question
          |answer|response|turn|caption|annotation|instruction)s?)\b)
        |word\ count\b[*_:\s]*[~\d]
        |(?:the\ )?end\ of\ (?:the\ )?(?:conversation|dialogue|description|turns?)\W*$)""",
    re.IGNORECASE | re.VERBOSE,
)
_RULE = re.compile(r"(?:[-\u2013\u2014\u2e3b*_=~\#>\u2022.\s]|&nbsp;)*$")
_SENTENCE_ENDS = ".!?\u2026\u3002\uff01\uff1f\u0964)]\"'\u201d\u2019\u00bb\u300d\u300f"
_FENCE = re.compile(r"^\s*(?:```|~~~)\s*(?:[\w-]+\s*)?$")
_EMPHASISED = re.compile(r"(\*{1,3})(?=\S)([^*]+)(?<=\S)\1")
_THINK = re.compile(
    r"<(?P<end>/?)(?:(?:seed:)?think(?:ing)?"
    r"|(?P<name>thoughts?|reasoning|reflection|analysis|scratchpad))>"
    r"|(?-i:\[/?THINK\])|<\|channel>thought\b|<channel\|>"  # the last two are Gemma 4's
    r"|<\|(?:START_THINKING|(?P<ends>END_THINKING))\|>"  # Command A's
    r"|<\|(?:begin|(?P<over>end))_of_thought\|>"
    r"|\u25c1(?P<finished>/?)think\u25b7",  # Kimi's
    re.IGNORECASE,
)
# What servers make of thoughts at the start of an answer: details for a page, Ollama's own words,
# and what is left of gpt-oss's channels without their tokens.
_DETAILS = r"<details\b[^>]*>\s*<summary>[^<]*(?i:thought|thinking|reasoning)"
_LEAKING = re.compile(rf"\s*(?:analysis(?=[A-Z])|{_DETAILS}|Thinking\.\.\.\n)")
_LEAKED = re.compile(
    rf"\A\s*(?:analysis.*?assistantfinal|{_DETAILS}.*?</details>"
    r"|Thinking\.\.\.\n.*?\.\.\.done thinking\.)\s*",
    re.DOTALL,
)
_WRAPPER = re.compile(
    r"<(?P<end>/?)(?P<name>(?:final_)?answer|final|response|output|result|conversation|dialogue"
    r"|description|turns?)>",
    re.IGNORECASE,
)
# https://cookbook.openai.com/articles/openai-harmony, the format of gpt-oss.
_CHANNEL = "<|channel|>"
_FINAL_CHANNEL = re.compile(r"<\|channel\|>\s*final\b[^<]*<\|message\|>")
_SPECIAL = re.compile(
    # DeepSeek writes them with other bars and blanks, Gemma 4 with one bar.
    r"<\|[a-z0-9_ ]{1,40}\|>|<\uff5c[a-z0-9_ \u2581]{1,40}\uff5c>"
    r"|<(?:\|[a-z0-9_]{1,40}|[a-z0-9_]{1,40}\|)>"
    r"|</?s>|<(?:start|end)_of_turn>|<end_of_utterance>|<(?:seed:)?(?:bos|eos|pad|unk)>"
    r"|\[/?INST\]|<</?SYS>>",
    re.IGNORECASE,
)
_ROLE = re.compile(
    r"(?:<\|(?:im_start|start_header_id|start)\|>|<start_of_turn>|<\|turn>)(?:assistant|model)\b",
    re.IGNORECASE,
)
_YES = r"(?:sure|certainly|of\ course|okay|ok|absolutely)"
_PREAMBLE = re.compile(
    rf"""(?:(?:{_YES}\b[!,.]?\s*)?
          (?:here(?:['\u2019]s|\ is)|(?:below|this|the\ following)\ is)\b
          (?:\ (?!(?:with|without|and|of|in|on|by|for)\b)[\w-]+,?){{0,5}}?\ description
          (?:\ of\ (?:the|this|your)\ (?:image|picture|photo(?:graph)?|scene))?:[*_]*\s*
        |I(?:['\u2019]d|\ would)\ be\ (?:happy|glad|pleased|delighted)\ to
          \ (?:help|assist|do|describe|give|provide|write)\b
          [^\n.!:]{{0,120}}(?:[.!:](?:\s+|$)(?!(?-i:[a-z]))|\n+)
        |{_YES}(?:\ thing)?[!,.]*[ \t]*(?:\n\s*|$)
        |{_YES}(?:[!,.]|\ [\u2013\u2014-]|(?=\ (?:here|below|this\ is|I)\b))
          [^\n]{{0,120}}:[*_]*[ \t]*(?:\n\s*|$)
        |{_YES}[!,.]?\ (?:[\u2013\u2014-]\ )?
          (?:I(?:['\u2019]\w+|\ (?:can|will|would|have|am))\b|let\ me\b
          |(?:here(?:['\u2019]s|\ (?:is|are|you|it))|below\ is|the\ following\ is)\b[^\n]{{0,80}}?
            \b(?:descri\w+|image|picture|photo|you\ asked|go|it\ is)\b)[^\n]{{0,120}}\n\s*
        |{_YES}[!,.]\ +(?=[*_"\u201c]{{0,3}}(?-i:[^\W\d_a-z]))
        |(\*\*|__)(?:title:[^*_\n]{{1,80}}|response:?
          |(?:detailed\ )?(?:image\ )?description(?:\ of\ the\ (?:image|scene))?:?)\1:?[ \t]*\n\s*
        |(?:here(?:['\u2019]s|\ is|\ are)\b[^\n]{{0,120}}:
          |(?:detailed\ )?(?:description|answer)\s*[:\uff1a])\s*(?:\n+|$))""",
    re.IGNORECASE | re.VERBOSE,
)
_TITLE = re.compile(
    r"\#{1,6}[ \t]+(?P<title>[^\n]{1,120})\n\s*(?=[*_\"'(\u201c\u2018]{0,3}(?P<next>\w))"
)
_SECTION = re.compile(
    r"^(?:\#{1,6}[ \t]+\S|(\*\*|__)[^*_\n]{1,80}\1:?[ \t]*$|(\*\*|__)[^*_\n]{1,80}:\2)",
    re.MULTILINE,
)
_TEXT_LABEL = re.compile(
    r"^[#*\s]*(?:detailed )?(?:image )?(?:description|answer|assistant)\**"
    r"(?:[:\uff1a]\**\s*|\s*\n)",
    re.IGNORECASE,
)
_BLANK = re.compile(r"\s+")
_INVISIBLE = re.compile(r"^[ \t\ufeff\u200b]*[\ufeff\u200b]", re.MULTILINE)
ONLY_THOUGHTS = (
    "the server gave what the model thought (reasoning_content) and no answer; give --extra_body "
    """'{"chat_template_kwargs": {"enable_thinking": false}}' or '{"reasoning_effort": "low"}', """
    "or a higher --max_tokens"
)
_NEAR = 80  # characters
_SAID = 300
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
        said = f": {completion.text[:_SAID]}" if completion.text else ""
        return Rejected("content_filter", f"the server withheld the answer{said}")
    # Most answers lack what a step looks for, and to look for one character costs next to nothing.
    text = completion.text
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\ufeff" in text or "\u200b" in text:
        text = _INVISIBLE.sub("", text)
    notes: list[str] = []
    spoken: str | None = _LEAKED.sub("", text)
    if _LEAKING.match(text) and spoken == text:
        spoken = None
    elif any(map(text.__contains__, "<[\u25c1")):
        spoken = _without_reasoning(spoken or "")
    if spoken is None:
        return Rejected("unfinished_reasoning", "the reasoning block is not closed")
    if "<" in spoken or "[" in spoken:
        spoken = _without_special_tokens(spoken, notes)
    text = (_unfenced(spoken) if "`" in spoken or "~" in spoken else spoken).strip()
    if "<" in text:
        text = _unwrapped(text, notes).strip()
    truncated = completion.finish_reason == "length"
    if not text and truncated:
        hint = f"; {ONLY_THOUGHTS}" if completion.only_thoughts else ""
        return Rejected("truncated", f"the token limit was used up before there was any text{hint}")
    if not text and completion.only_thoughts:
        return Rejected("only_thoughts", ONLY_THOUGHTS)
    if not text:
        return Rejected("empty", "the answer is empty")
    if kind.answer_form == "text":
        return _parse_text(text, config, kind, question or "", notes, truncated=truncated)
    return _parse_turns(text, config, kind, notes, truncated=truncated)


def _parse_text(
    text: str,
    config: PromptConfig,
    kind: InstructionType,
    question: str,
    notes: list[str],
    *,
    truncated: bool,
) -> Parsed | Rejected:
    if truncated:
        return Rejected("truncated", "the token limit cut the text")
    start = 0
    while preamble := _PREAMBLE.match(text, start) or _title(text, start):
        start = preamble.end()
    if start:
        notes.append("preamble")
    parts = _parts(text[start:])
    if len(parts) > 1:
        notes.append("stray_text")
    body = max(parts, key=len, default="")
    if label := _TEXT_LABEL.match(body):
        body = body[label.end() :].strip()
    body = "\n".join(_without_tail(body.split("\n"), notes)).strip()
    if not body:
        return Rejected("empty", "nothing but a preamble")
    if _has_turns(body):
        return Rejected("wrong_form", "questions and answers where a text was asked for")
    flaw = _leak(config, body) or _flaw(body, kind)
    if flaw:
        return flaw
    return Parsed((Turn(question, body),), tuple(dict.fromkeys(notes)))


def _title(text: str, start: int) -> re.Match[str] | None:
    """The heading that a text begins with, unless it is a sentence or the first of several."""
    title = _TITLE.match(text, start)
    if title is None or not title["next"].isalpha() or title["next"].islower():
        return None
    if title["title"].rstrip(" *_#").endswith((".", "!", "?")):
        return None
    return None if _SECTION.search(text, title.end()) else title


def _has_turns(text: str) -> bool:
    """Whether a question is labelled by words that are no part of a text."""
    lines = text.split("\n")
    if any((label := _sure_label(line)) and label["question"] for line in lines):
        return True
    return bool(_DOUBTFUL_LABEL.match(lines[0])) and 0 in _certain(lines)


def _parse_turns(
    text: str, config: PromptConfig, kind: InstructionType, notes: list[str], *, truncated: bool
) -> Parsed | Rejected:
    segments, noted = _segments(text)
    notes += noted
    if not segments:
        return Rejected("no_labels", "no line starts with 'Question:' or 'Answer:'")
    if truncated:
        notes.append("truncated")
    turns, flaw = _paired(segments, notes, truncated=truncated)
    leaky = find_leak(config, text) is not None
    kept: list[Turn] = []
    seen: set[str] = set()
    answers: Counter[str] = Counter()
    for turn in turns:
        problem = _leak(config, f"{turn.question}\n{turn.answer}") if leaky else None
        problem = problem or _flaw(turn.answer, kind, question=turn.question)
        normal = " ".join(turn.question.lower().split())
        if problem is None and normal in seen:
            problem = Rejected("repetition", f"question asked twice: {turn.question!r}")
        again = answers[turn.answer]
        if problem is None and again >= (1 if _is_long(turn.answer) else _REPEATS - 1):
            problem = Rejected("repetition", f"answer given again: {turn.answer!r}")
        if problem is not None:
            notes.append(problem.reason)
            flaw = problem  # comes before what ended the pairing
            break
        seen.add(normal)
        answers[turn.answer] += 1
        kept.append(turn)
    if not kept:
        return flaw or Rejected("no_complete_turn", "no question has an answer")
    if kind.answer_form == "turn" and len(kept) > 1:
        kept = kept[:1]
        notes.append("extra_turns")
    return Parsed(tuple(kept), tuple(dict.fromkeys(notes)))


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


def _segments(text: str) -> tuple[list[tuple[str, str]], list[str]]:
    """(role, text) in the order of the labels, and notes about text outside of them."""
    segments: list[_Segment] = []
    notes: list[str] = []
    stray = "preamble"
    listening = False
    lines = text.split("\n")
    certain: frozenset[int] | None = None
    for number, line in enumerate(lines):
        # The two spellings asked for, and empty lines, need no pattern: nearly all lines are such.
        if line.startswith("Question: "):
            segments.append(_Segment(_QUESTION, [line[10:]]))
            listening = True
        elif line.startswith("Answer: "):
            segments.append(_Segment(_ANSWER, [line[8:]]))
            listening = True
        elif not line:
            if listening:
                segments[-1].lines.append(line)
        elif match := _sure_label(line, segments[-1].role if segments else ""):
            segments.append(_segment(match, line))
            listening = True
        elif separator := _SEPARATOR.match(line):
            if separator.group("titled"):
                notes.append("stray_text" if segments else stray)
            # "Question:" and its text may stand on both sides of a separator line.
            listening = listening and not "".join(segments[-1].lines).strip()
            if listening:
                segments[-1].lines[:] = [""]  # not more and more empty lines to join
            stray = "stray_text"
        elif match := _DOUBTFUL_LABEL.match(line):
            certain = _certain(lines) if certain is None else certain
            if number in certain:
                segments.append(_segment(match, line))
                listening = True
            elif listening:
                segments[-1].lines.append(line)
            else:
                notes.append(stray)
        elif listening:
            segments[-1].lines.append(line)
        elif line.strip():
            notes.append(stray)
    pieces: list[tuple[str, str]] = []
    for number, segment in enumerate(segments, 1):
        following = segments[number].role if number < len(segments) else None
        if following == segment.role and not "".join(segment.lines).strip():
            continue  # a heading "### Answer 1" above "Answer:"
        if segment.role == _ANSWER and len(segment.lines) > 1:
            segment.lines = _without_tail(segment.lines, notes, between=following == _QUESTION)
        if not segment.opened and len(segment.lines) == 1 and ":" not in segment.lines[0]:
            pieces.append((segment.role, _without_emphasis("", segment.lines[0])))
        else:
            pieces += _pieces(segment, following)
    return pieces, notes


def _sure_label(line: str, last: str = "") -> re.Match[str] | None:
    """The label that the line begins with, or is; ``last`` is the role of the one before."""
    if label := _LABEL.match(line):
        return label
    label = _HEADED_LABEL.match(line)
    # An answer may come to its own "**Answer**".
    return label if label and (label.group("question") or last != _ANSWER) else None


def _segment(label: re.Match[str], line: str) -> _Segment:
    """What begins with the label of this line."""
    groups = label.groupdict()
    word = groups["question"] or groups["answer"]
    role = _QUESTION if groups["question"] or groups.get("q") else _ANSWER
    opened = groups.get("inner") or groups.get("open") or ""
    if opened and (groups.get("close") or "").strip() not in ("", ":", "\uff1a"):
        opened = ""
    return _Segment(role, [line[label.end() :]], opened, short=not word or len(word) == 1)


def _certain(lines: list[str]) -> frozenset[int]:
    """The numbers of the lines whose doubtful label is one, as those around it show."""
    labels: list[tuple[int, str, str]] = []  # number, role, and the word if it is doubtful
    for number, line in enumerate(lines):
        if match := _sure_label(line):
            labels.append((number, _segment(match, line).role, ""))
        elif match := _DOUBTFUL_LABEL.match(line):
            word = match.group("question") or match.group("answer") or "."
            labels.append((number, _segment(match, line).role, word.lower()))
    certain: set[int] = set()
    asking = last = ""
    ends = [*labels[1:], (len(lines), "", "")]
    # A last question that nobody answers says nothing about how the others are labelled.
    sure = {
        role
        for (_, role, word), (_, after, _) in zip(labels, ends, strict=True)
        if not word and (role == _ANSWER or after)
    }
    for (number, role, word), (end, following, next_word) in zip(labels, ends, strict=True):
        surely_next = following == _ANSWER and not next_word
        asks = "".join(lines[number:end]).rstrip(" *_").endswith("?")
        if word and last == _ANSWER and _above(lines, number).endswith(":"):
            continue
        if word and role in sure:
            # Content, unless an answer would have no question, or as a last question.
            ending = not following and asks and number and not lines[number - 1].strip()
            if role == _ANSWER or last == _QUESTION or not (surely_next or ending):
                continue
        elif word and role == _QUESTION:
            # A list of what there is may have "Person: one" above "Model: a Ford".
            answered = following == _ANSWER and next_word != "model"
            if last == _QUESTION or not (asks or answered or word == asking):
                continue
            asking = word
        elif word and (last != _QUESTION or surely_next or (word == "." and asking != ".")):
            continue
        if word:
            certain.add(number)
        last = role
    return frozenset(certain)


def _pieces(segment: _Segment, following: str | None) -> list[tuple[str, str]]:
    """(role, text) of a segment, and of the turns that go on within its lines.

    A label within a line counts only where the other side's label comes next, as the words occur
    in prose, too; or if what it asks ends the segment.
    """
    text = "\n".join(segment.lines).strip()
    role = segment.role
    labels: list[re.Match[str]] = []
    within = role == _ANSWER
    for label in _INLINE_LABEL.finditer(text) if ":" in text else ():
        question = label.group("question")
        if within and not question and not label.group("asks"):
            continue
        if (len(question or label.group("answer")) == 1) == segment.short and bool(question) == (
            role == _ANSWER
        ):
            labels.append(label)
            role = _QUESTION if question else _ANSWER
    unanswered = role == _QUESTION and following != _ANSWER and text.rstrip("*_").endswith("?")
    if labels and role == (following or _QUESTION) and not unanswered:
        labels.pop()
    pieces: list[tuple[str, str]] = []
    role, opened, start = segment.role, segment.opened, 0
    for label in labels:
        pieces.append((role, _without_emphasis(opened, text[start : label.start("gap")])))
        role = _QUESTION if label.group("question") else _ANSWER
        opened = label.group("open") if label.group("close") == ":" else ""
        start = label.end()
    return [*pieces, (role, _without_emphasis(opened, text[start:]))]


def _without_tail(lines: list[str], notes: list[str], *, between: bool = False) -> list[str]:
    """The lines without those at the end that are no part of what is said, which are noted.

    Such are headings of the next turn and remarks to the reader. The first line always stays.

    Args:
        lines: of an answer or text.
        notes: gets the note.
        between: a question follows, so that a bold line or "Turn 2: Place" is its heading, unless
            it belongs to a list.
    """
    first = lines[0].strip()
    asides: list[int] = []
    kept = len(lines)
    for number in range(len(lines) - 1, 0, -1):
        line = lines[number].strip()
        if line and not _RULE.match(line):
            if not _is_aside(lines, number, first, between=between):
                break
            asides.append(number)
        elif not asides:
            kept = number
    opened = _open_quotes(lines) if asides else []
    for number in reversed(asides):
        # What follows an unfinished sentence belongs to it.
        above = _above(lines, number).rstrip("*_ ")
        if not opened[number] and (not above or above[-1] in _SENTENCE_ENDS):
            notes.append("stray_text")
            kept = number
            break
    while kept > 1 and _RULE.match(lines[kept - 1]):
        kept -= 1
    return lines[:kept]


def _above(lines: list[str], number: int) -> str:
    """The nearest line above that isn't empty or a rule, or nothing."""
    above = (lines[n].strip() for n in range(number - 1, -1, -1))
    return next((line for line in above if not _RULE.match(line)), "")


def _open_quotes(lines: list[str]) -> list[bool]:
    """Whether a quotation is open where each line begins."""
    opened: list[bool] = []
    straight = curly = 0
    for line in lines:
        opened.append(bool(straight % 2) or curly > 0)
        straight += line.count('"')
        curly += sum(map(line.count, "\u201c\u00ab")) - sum(map(line.count, "\u201d\u00bb"))
    return opened


def _is_remark(line: str) -> bool:
    remark = _REMARK.match(line)
    if remark is None:
        return False
    return not remark["bracketed"] or "(" in remark["lead"] or "[" in remark["lead"]


def _is_aside(lines: list[str], number: int, first: str, *, between: bool) -> bool:
    """Whether that line is a heading or a remark to the reader rather than a part of a list."""
    line = lines[number].strip()
    above = _above(lines, number)
    if _HEADING.match(line):
        level = "#" * (len(line) - len(line.lstrip("#"))) + " "
        return _TURN_HEADING.match(line) is not None or not above.startswith(level)
    if _is_remark(line):
        return True
    bold = above and not lines[number - 1].strip() and _BOLD_HEADING.match(line)
    pattern = _BOLD_HEADING if bold else _TURN_HEADING
    if not (between and pattern.match(line)):
        return False
    return above == first or not pattern.match(above)


def _without_emphasis(opened: str, text: str) -> str:
    """The text without markers that are around all of it, or that began at its label."""
    text = text.strip()
    if opened and text.count(opened) % 2:
        text = text.replace(opened, "", 1).strip()
    if text.startswith("*") and (whole := _EMPHASISED.fullmatch(text)):
        text = whole.group(2)
    return text if any(map(str.isalnum, text)) else ""  # "..." is a template's


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
        if question is None and not text and number and segments[number - 1] == (_QUESTION, ""):
            notes.append("stray_text")  # a template that was echoed
            continue
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
    for tag in _standing(_THINK, text):
        closing = any(tag.group("end", "ends", "over", "finished"))
        if closing or tag.group() in ("[/THINK]", "<channel|>"):
            if not thinking:
                spoken.clear()  # the start was part of the prompt
            thinking = False
            position = tag.end()
        elif not thinking:
            spoken.append(text[position : tag.start()])
            thinking = True
    return None if thinking else "".join([*spoken, text[position:]])


def _standing(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """The tags that are about the text, as their places show, rather than words of it.

    A tag with a ``name`` opens at the start of the text or of a line, or after a label or another
    tag. One that opened ends anywhere, another at the end of a line or of the text.
    """
    found = list(pattern.finditer(text))
    ends = {tag["name"].lower(): tag.start() for tag in found if tag["name"] and tag["end"]}
    standing: list[re.Match[str]] = []
    opened: set[str] = set()
    mentioned: set[str] = set()
    for tag in found:
        name = (tag["name"] or "").lower()
        edge = standing[-1].end() if standing else -_NEAR
        before = text[max(0, tag.start() - _NEAR) : tag.start()]
        after = text[tag.end() : tag.end() + _NEAR].lstrip(" \t")
        line = before[before.rfind("\n") + 1 :]
        begins = line.strip() == "" and (line != before or tag.start() <= _NEAR)
        stops = not after or after.startswith("\n") or bool(pattern.match(after))
        if not name:
            standing.append(tag)
        elif tag["end"]:
            alone = begins or not after or after.startswith("\n\n")
            if name in opened or (stops and alone and name not in mentioned):
                standing.append(tag)
            opened.discard(name)
            mentioned.discard(name)
        else:
            closed = ends.get(name, 0) > tag.start()
            labelled = (label := _sure_label(line)) is not None and label.end() == len(line)
            near = tag.start() - edge < _NEAR and not text[edge : tag.start()].strip()
            first = begins and not before.strip() and tag.start() <= _NEAR
            behind_token = line.rstrip().endswith(("|>", "\uff5c>", "<s>"))
            about = (closed and (begins or labelled)) or (begins and stops)
            if first or about or near or behind_token:
                standing.append(tag)
                opened.add(name)
            else:
                mentioned.add(name)
    return standing


def _without_special_tokens(text: str, notes: list[str]) -> str:
    """The text up to the first special token within it, without leading ones; a cut is noted."""
    start = 0
    while (
        match := _ROLE.match(text, start)
        or _SPECIAL.match(text, start)
        or _BLANK.match(text, start)
    ):
        start = match.end()
    match = _SPECIAL.search(text, start)
    if match is None:
        return text[start:]
    if _SPECIAL.sub("", _ROLE.sub("", text[match.start() :])).strip():
        notes.append("special_token")
    return text[start : match.start()]


def _unwrapped(text: str, notes: list[str]) -> str:
    """The inside of tags around the answer; what is outside is noted.

    Where the labels, or most of a text without any, are outside, the tags alone are removed.
    """
    tags = _standing(_WRAPPER, text)
    if not tags:
        return text
    inside: list[str] = []
    outside: list[str] = []
    around: list[str] = []
    parts: list[str] = []
    position = 0
    opened = False
    for tag in tags:
        part = text[position : tag.start()]
        # The start may have been part of the prompt.
        within = opened or (bool(tag["end"]) and not position)
        (inside if within else outside).append(part.strip())
        parts.append(part)
        if part.strip() and not within:
            around.append("stray_text" if inside else "preamble")
        opened = not tag["end"]
        position = tag.end()
    rest = text[position:]
    parts.append(rest)
    (inside if opened else outside).append(rest.strip())
    if rest.strip() and not opened:
        around.append("stray_text")
    inner, outer = "\n".join(inside).strip(), "\n".join(outside).strip()
    labelled, labelled_outside = _rank(inner)[0], _rank(outer)[0]
    if labelled and labelled_outside:
        return "\n===\n".join(parts)  # turns on both sides
    if inner and not labelled_outside and _rank(inner) >= _rank(outer):
        notes += around
        return inner
    return "".join(parts)


def _rank(text: str) -> tuple[bool, int]:
    """Orders parts of an answer by how likely they are the answer: labels first, then length."""
    lines = text.split("\n")
    return any(map(_sure_label, lines)), len(text)


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
    if inner and _rank(inner) >= _rank(outer):
        return inner
    return text if inner and lines is outside else outer


def _parts(text: str) -> list[str]:
    """What stands between separators, without what is empty."""
    parts: list[list[str]] = [[]]
    for line in text.split("\n"):
        if (separator := _SEPARATOR.match(line)) and not separator.group("titled"):
            parts.append([])
        else:
            parts[-1].append(line)
    return [part for part in ("\n".join(lines).strip() for lines in parts) if part]
