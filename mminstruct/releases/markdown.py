"""Foreign text as Markdown that says what it says and nothing else."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from urllib.parse import quote

_URL = re.compile(r"https?://[^\s<>|\\`\"\])}]+[^\s<>|\\`\"\])};,.:!?]")
# Overrides of the direction of text would show other words than there are.
_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")


def to_line(text: str) -> str:
    """The text in one line, without what a terminal or an editor would act upon."""
    shown = " ".join(_DIRECTION.sub("\ufffd", text).split())
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in shown)


def to_markdown(text: str) -> str:
    """The text for a line or table cell of Markdown, to be read as it is."""
    return _escape_start(_escape(to_line(text)))


def link_urls(text: str) -> str:
    """The text as `to_markdown` gives it, with its URLs as links."""
    text, parts, at = to_line(text), [], 0
    for url in _URL.finditer(text):
        parts += [_escape(text[at : url.start()]), f"<{_escape_url(url[0])}>"]
        at = url.end()
    return _escape_start("".join([*parts, _escape(text[at:])]))


def _escape(text: str) -> str:
    return re.sub(r"([\\`*\[\]<>|&~$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)


def _escape_start(text: str) -> str:
    """The text, escaped where it would begin a list item, a heading or a rule."""
    return re.sub(r"^(\d+(?=[.)](?: |$))|)([-+=#.)])", r"\1\\\2", text)


def link(text: str, url: str | None) -> str:
    """The text as a link, if the URL is one of a page."""
    if not re.match("https?://", url or ""):
        return to_markdown(text)
    return f"[{to_markdown(text)}](<{_escape_url(url or '')}>)"


def _escape_url(url: str) -> str:
    """The URL without anything that could end it before its end."""
    return quote(to_line(url), safe=":/?#@!&+,;=%-._~")


def list_items(entries: Iterable[str]) -> str:
    """A bulleted list."""
    return "\n".join(f"- {entry}" for entry in entries)


def fence(text: str, language: str) -> str:
    """A code block whose fence is longer than any in the text."""
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", text))]))
    return f"{fence}{language}\n{text}\n{fence}"
