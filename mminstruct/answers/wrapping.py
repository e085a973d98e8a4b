"""What stands around an answer: thoughts, special tokens, code fences, roles."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mminstruct.answers.turns import match_sure_label

_FENCE = re.compile(r"^\s*(?:```|~~~)\s*(?:[\w-]+\s*)?$")
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
LEAKING = re.compile(rf"\s*(?:analysis(?=[A-Z])|{_DETAILS}|Thinking\.\.\.\n)")
LEAKED = re.compile(
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
    r"(?:<\|(?:im_start|start_header_id|start_of_role|start)\|>|<start_of_turn>|<\|turn>)(?:assistant|model)\b",
    re.IGNORECASE,
)
_BLANK = re.compile(r"\s+")
INVISIBLE = re.compile(r"^[ \t\ufeff\u200b]*[\ufeff\u200b]", re.MULTILINE)
_NEAR = 80  # characters


def drop_reasoning(text: str) -> str | None:
    """The text outside of reasoning blocks and channels, or None if those do not end."""
    if _CHANNEL in text:
        _, *finals = _FINAL_CHANNEL.split(text)
        if not finals:
            return None
        text = finals[-1]
    spoken: list[str] = []
    thinking = False
    position = 0
    for tag in _find_standing(_THINK, text):
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


def _find_standing(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
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
            labelled = (label := match_sure_label(line)) is not None and label.end() == len(line)
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


def drop_next_sample(text: str, headings: Sequence[str], notes: list[str]) -> str:
    """The text up to where the words of a prompt begin again; one that is echoed stays."""
    for heading in headings:
        position = text.find(f"\n\n{heading}\n")
        if position > 0 and not text.startswith(tuple(headings)):
            notes.append("next_sample")
            text = text[:position]
    return text


def drop_special_tokens(text: str, notes: list[str]) -> str:
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


def unwrap(text: str, notes: list[str]) -> str:
    """The inside of tags around the answer; what is outside is noted.

    Where the labels, or most of a text without any, are outside, the tags alone are removed.
    """
    tags = _find_standing(_WRAPPER, text)
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
    return any(map(match_sure_label, lines)), len(text)


def drop_fence(text: str) -> str:
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
