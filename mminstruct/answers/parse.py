"""Answer text -> turns, or the reason why there are none.

Every defect that models show has one defined result; docs/answers.md lists them. Turns after a bad
one are left out as well, since they may refer to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from mminstruct.answers.asides import PREAMBLE, TEXT_LABEL, drop_tail, find_title, split_parts
from mminstruct.answers.filters import (
    drop_emphasis,
    find_suspects,
    reject_again,
    reject_form,
    reject_whole,
)
from mminstruct.answers.flaws import Rejected, find_flaw, reject_cut, reject_leak
from mminstruct.answers.forms import BLOCK_OF_YAML, read_form, read_json
from mminstruct.answers.turns import (
    DOUBTFUL_LABEL,
    find_certain,
    match_sure_label,
    pair_turns,
    read_segments,
)
from mminstruct.answers.wrapping import (
    INVISIBLE,
    LEAKED,
    LEAKING,
    drop_fence,
    drop_next_sample,
    drop_reasoning,
    drop_special_tokens,
    unwrap,
)
from mminstruct.prompts.config import InstructionType, PromptConfig
from mminstruct.schema import Completion, Turn

ONLY_THOUGHTS = (
    "the server gave what the model thought (reasoning_content) and no answer; give --extra_body "
    """'{"chat_template_kwargs": {"enable_thinking": false}}' or '{"reasoning_effort": "low"}', """
    "or a higher --max_tokens"
)
_SAID = 300


@dataclass(frozen=True, slots=True)
class Parsed:
    """The turns that were read, never none, and what was noted on the way."""

    turns: tuple[Turn, ...]
    notes: tuple[str, ...] = ()


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
    if "\\n" in text and "\n" not in text:
        text = text.replace("\\n", "\n").replace('\\"', '"')
        if text[0] == text[-1] == '"':
            text = text[1:-1]  # a string of JSON
    if "\ufeff" in text or "\u200b" in text:
        text = INVISIBLE.sub("", text)
    notes: list[str] = []
    spoken: str | None = LEAKED.sub("", text)
    if LEAKING.match(text) and spoken == text:
        spoken = None
    elif any(map(text.__contains__, "<[\u25c1")):
        spoken = drop_reasoning(spoken or "")
    if spoken is None:
        return Rejected("unfinished_reasoning", "the reasoning block is not closed")
    if "<" in spoken or "[" in spoken:
        spoken = drop_special_tokens(spoken, notes)
    text = (drop_fence(spoken) if "`" in spoken or "~" in spoken else spoken).strip()
    whole = text
    if "<" in text:
        text = unwrap(text, notes).strip()
    headings = (
        "### Instruction:",
        config.rendering.captions_heading,
        config.rendering.boxes_heading,
        *filter(None, [config.rendering.question_heading]),
    )
    text, whole = (drop_next_sample(each, headings, notes) for each in (text, whole))
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
    return _parse_turns(text, whole, config, kind, notes, truncated=truncated)


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
    if text.startswith("{") and (words := [words for _, words in read_json(text)]):
        text = max(words, key=len)
    while preamble := PREAMBLE.match(text, start) or find_title(text, start):
        start = preamble.end()
    if start:
        notes.append("preamble")
    parts = split_parts(text[start:])
    if len(parts) > 1:
        notes.append("stray_text")
    body = max(parts, key=len, default="")
    if label := TEXT_LABEL.match(body):
        body = body[label.end() :].strip()
    body = "\n".join(drop_tail(body.split("\n"), notes)).strip()
    if body[:1] == body[-1:] == '"' and body.count('"') == 2:
        body = body[1:-1]
    if not body:
        return Rejected("empty", "nothing but a preamble")
    if _has_turns(body):
        return Rejected("wrong_form", "questions and answers where a text was asked for")
    turns = _clean([Turn(question, body)], config)
    return (
        reject_leak(config, body)
        or find_flaw(body, kind)
        or reject_cut(body)
        or reject_form(turns[0], find_suspects(turns, config.filters), kind.example_turns)
        or reject_whole(turns, config.filters)
        or Parsed(tuple(turns), tuple(dict.fromkeys(notes)))
    )


def _clean(turns: list[Turn], config: PromptConfig) -> list[Turn]:
    """The turns without bold type, unless the prompt config lets markup through."""
    if "markup" not in config.filters:
        return turns
    return [Turn(drop_emphasis(turn.question), drop_emphasis(turn.answer)) for turn in turns]


def _has_turns(text: str) -> bool:
    """Whether a question is labelled by words that are no part of a text."""
    lines = text.split("\n")
    if any((label := match_sure_label(line)) and label["question"] for line in lines):
        return True
    return bool(DOUBTFUL_LABEL.match(lines[0])) and 0 in find_certain(lines)


def _parse_turns(
    text: str,
    whole: str,
    config: PromptConfig,
    kind: InstructionType,
    notes: list[str],
    *,
    truncated: bool,
) -> Parsed | Rejected:
    """``whole`` is the text with the tags that were around it."""
    segments, noted = read_segments(text)
    # Labels as asked for come first; an answer in another form hasn't both of them.
    is_labelled = len({role for role, _ in segments}) == 2 and not any(
        BLOCK_OF_YAML.match(words) for _, words in segments
    )
    if not is_labelled and (other := read_form(text) or read_form(whole)):
        segments, noted = other, ["other_form"]
    notes += noted
    if not segments:
        return Rejected("no_labels", "no line starts with 'Question:' or 'Answer:'")
    if truncated:
        notes.append("truncated")
    turns, flaw = pair_turns(segments, notes, truncated=truncated)
    if all(
        words[0] == words[-1] == '"' for turn in turns for words in (turn.question, turn.answer)
    ):
        turns = [Turn(turn.question[1:-1], turn.answer[1:-1]) for turn in turns]  # YAML
    turns = _clean(turns, config)
    leaky = config.find_leak(text) is not None
    suspects = find_suspects(turns, config.filters)
    kept: list[Turn] = []
    for turn in turns:
        problem = (
            (reject_leak(config, f"{turn.question}\n{turn.answer}") if leaky else None)
            or find_flaw(turn.answer, kind, question=turn.question)
            or (reject_cut(turn.answer) if len(kept) == len(turns) - 1 else None)
            or reject_form(turn, suspects, kind.example_turns)
            or reject_again(turn, kept, alike="repeated_question" in config.filters)
        )
        if problem is not None:
            notes.append(problem.reason)
            flaw = problem  # comes before what ended the pairing
            break
        kept.append(turn)
    if not kept:
        return flaw or Rejected("no_complete_turn", "no question has an answer")
    if kind.answer_form == "turn" and len(kept) > 1:
        kept = kept[:1]
        notes.append("extra_turns")
    return reject_whole(kept, config.filters) or Parsed(tuple(kept), tuple(dict.fromkeys(notes)))
