"""What a server means by an error: its status, codes and words in, one of our errors out.

Servers of the same API have hardly more than the statuses in common, and use those as they like. So
the words decide: `_SIGNS` is the table, of which the first line that fits counts.

**Source:** the errors that providers document, and public reports of what their servers send.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mminstruct.errors import (
    BackendError,
    BackendUnusable,
    ContextTooLong,
    RequestRefused,
    TransientError,
    Withheld,
)
from mminstruct.schema import NEUTRAL_AT_ONE, Sampling
from mminstruct.transport import read_seconds, retry_after

Kind = Literal["withheld", "spent", "too_long", "key", "no_api", "again", "refused"]

WORDS_SHOWN = 500
# An allowance of a day isn't back within a minute, whenever a server wants to be asked again.
_LEAST_OF_A_DAY_S = 60.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as a server tells it.

    Attributes:
        status: of HTTP; 200 where it came in the place of an answer and names no status.
        words: its message, in one line.
        whole: the body in one line, with the codes and details that the message leaves out.
        is_page: HTML, as of a proxy or a login: no API was reached.
    """

    status: int
    words: str
    whole: str = ""
    is_page: bool = False


def read_refusal(status: int, body: bytes, redacted: Callable[[str], str] = str) -> Refusal:
    """The error in a body, whatever its form; ``redacted`` takes secrets out of its words."""
    text = " ".join(body.decode(errors="replace").split())
    if re.match(r"<(?:!doctype html|html|head|body)\b", text, re.IGNORECASE):
        shown = " ".join(re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", text).split())
        return Refusal(status, redacted(shown) or "an empty page", is_page=True)
    try:
        found = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        found = None
    words = _find_words(found) if isinstance(found, dict | list) else text
    return Refusal(status, redacted(" ".join(words.split())) or "(no words)", text)


def _find_words(found: Any) -> str:
    """The words for people in an error's JSON; all of it where there are none."""
    error = found[0] if isinstance(found, list) and found else found
    while isinstance(error, dict):
        inner = (error.get(name) for name in ("error", "message", "detail", "msg"))
        error = next((value for value in inner if value), None)
    return error if isinstance(error, str) else json.dumps(error or found, ensure_ascii=False)


def _seek(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Sign:
    """How a meaning is known.

    Attributes:
        kind: the meaning.
        statuses: under which it comes.
        text: what message or body have in them; None is anything.
        unless: what they don't.
        is_said: whether the message alone has it, as names in a body may be the same words.
    """

    kind: Kind
    statuses: Collection[int]
    text: re.Pattern[str] | None = None
    unless: re.Pattern[str] | None = None
    is_said: bool = False


_REFUSED = (200, 400, 403, 413, 422, 451)
_PASSING = (408, 409, 424, 425, 429, *range(500, 600))
_MONEY = r"\b(?:credits?|balance|quota|budget|funds|billing|spend|spending|payment)\b"
_GONE = (
    r"insufficient|not (?:enough|sufficient)|too low|exceed|exhausted|used up|not active|inactive"
    r"|depleted|overdue|run(?:s|ning)? out|ran out|\bout of\b|arrears"
)
_A_DAY = _seek(r"per.?(?:day|week|month)|\b[RT]PD\b|\b(?:daily|weekly|monthly)\b")
_A_MINUTE = _seek(r"per.?(?:min|minute|sec|second)(?:\b|per)|\b[RT]PM\b")
# A sentence that names what a model is shown, a bound, and a length, in whatever order.
_WITHIN = r"(?:(?![.!?;]\s).)*?"
_SHOWN = (
    r"\b(?:context|prompt|inputs?(?! (?:validation|should))|messages?|request|payload|sequence)\b"
)
_BOUND = (
    r"too (?:long|large|big)|exceed|(?:longer|larger|greater|more) than|>|maximum|\bmax\b|limit"
    r"|at most|must be <=|less than|reduce|shorten|overflow|\brange of\b"
)
_LENGTH = r"tokens?\b|length|\blong\b|context (?:size|window)|too (?:large|big)|\bn_ctx\b"
_TOO_LONG = (
    rf"(?:^|[.!?;]\s)(?={_WITHIN}{_SHOWN})(?={_WITHIN}(?:{_BOUND}))(?={_WITHIN}(?:{_LENGTH}))"
)
_SIGNS = (
    _Sign(
        "withheld",
        (*_REFUSED, 500),
        _seek(
            r"content.?filter|content (?:\w+ )?polic|responsibleai|data_inspection|inappropriate"
            r"|content exists risk|considered high risk|new_sensitive|\W1301\W|safety system"
            r"|(?:input|prompt) was flagged|usage polic"
        ),
        unless=_seek(r"\baccount\b|organization|deactivated"),
    ),
    _Sign("spent", (402,)),
    _Sign(
        "spent",
        (*_REFUSED, 429),
        _seek(
            r"insufficient_\w|billing_\w|budget_exceeded|exceeded_current_quota|arrearage"
            r"|\W1113\W|\W30001\W|\brecharge\b"
        ),
    ),
    _Sign(
        "spent",
        (*_REFUSED, 429),
        _seek(rf"{_MONEY}.{{0,60}}(?:{_GONE})|(?:{_GONE}).{{0,40}}{_MONEY}"),
        unless=_A_MINUTE,
    ),
    _Sign(
        "spent",
        (*_REFUSED, 429),
        _seek(rf"(?:limit|quota|exceed|allowance).{{0,80}}(?:{_A_DAY.pattern})"),
    ),
    _Sign("too_long", (200, 400, 413, 422), _seek("context_length_exceeded")),
    _Sign("too_long", (200, 400, 413, 422), _seek(_TOO_LONG), is_said=True),
    # What a window leaves for the answer: nobody asked for less than one token.
    _Sign("too_long", (200, 400, 422), _seek(r"max_(?:\w+_)?tokens must be (?:at least|>=?) [01]")),
    _Sign("too_long", (413,), _seek(_BOUND), is_said=True),
    _Sign("too_long", (500,), _seek(rf"(?=.*(?:tokens|prompt|context)){_TOO_LONG}"), is_said=True),
    _Sign("key", (401,)),
    _Sign("no_api", (404,), unless=_seek("model|deployment|resource")),
    _Sign("no_api", (405, 501)),
    _Sign("again", _PASSING),
    # FastChat's and others' own codes for what passes; a request that was damaged on its way.
    _Sign("again", _REFUSED, _seek(r'"code": ?"?5\d{4}\b|\bpars(?:e|ing)\b.{0,20}\b(?:body|json)')),
    _Sign("again", (200,)),
)


def kind_of(refusal: Refusal) -> Kind:
    """What a refusal means."""
    if refusal.is_page and refusal.status not in (401, *_PASSING):
        return "again" if refusal.status == 403 else "no_api"
    beyond = _BEYOND.search(refusal.words)
    if beyond and int(beyond[2]) > int(beyond[1]):
        return "too_long"  # it will never fit, though it came as a rate limit
    for sign in _SIGNS:
        text = refusal.words if sign.is_said else f"{refusal.words} {refusal.whole}"
        fits = refusal.status in sign.statuses and (sign.text is None or sign.text.search(text))
        if fits and not (sign.unless and sign.unless.search(text)):
            return sign.kind
    return "refused"


def error_of(
    refusal: Refusal,
    headers: Mapping[str, str],
    *,
    where: str,
    sampling: Sampling | None = None,
    lost: str = "",
) -> BackendError:
    """The error that a refusal is here.

    Args:
        refusal: without secrets.
        headers: that came with it.
        where: who answered.
        sampling: what was asked for; None where that isn't known.
        lost: what to do where no API is there.
    """
    status, words = refusal.status, refusal.words[:WORDS_SHOWN]
    message = f"{where} answered {status}: {words}"
    kind = kind_of(refusal)
    if kind == "withheld":
        return Withheld(message, words=words)
    if kind == "too_long":
        window, room = _read_numbers(words, sampling.max_tokens if sampling else 0)
        return ContextTooLong(message, window=window, room=room)
    if kind == "spent":
        wait_s = _read_wait_s(refusal, headers)
        if not _A_DAY.search(f"{words} {refusal.whole}"):
            if wait_s is None or status != 429 or "insufficient_quota" in refusal.whole:
                return BackendUnusable(f"{message}; the account has no credit left")
        elif wait_s is None or wait_s < _LEAST_OF_A_DAY_S:
            return BackendUnusable(f"{message}; go on when there is a new allowance")
        return TransientError(message, cause=f"http_{status}", retry_after_s=wait_s)
    if kind == "key":
        return BackendUnusable(f"{message}; check OPENAI_API_KEY")
    if kind == "no_api":
        message = f"{message}; {lost}"
        if status == 200:
            return TransientError(message, cause="no_api")
        return RequestRefused(message, unknown_here=True, status=status)
    if kind == "again":
        cause = f"http_{status if status != 200 else 502}"
        wait_s = _read_wait_s(refusal, headers)
        return TransientError(message, cause=cause, retry_after_s=wait_s)
    flag = advice(refusal, sampling) if sampling is not None else ""
    of_all = _NO_TEMPLATE.search(refusal.whole) or _NO_STREAM.search(refusal.whole)
    hopeless = bool(flag or of_all) or status in (403, 404)
    return RequestRefused(message + flag, unknown_here=hopeless, status=status)


# Where a refusal says how long window and prompt are. "At least 3073 input tokens" is what the
# answer that was asked for leaves, not the prompt's length.
_BEYOND = _seek(r"limit:? (\d+)\D+requested:? (\d+)")
_WINDOW = _seek(r"context length (?:is|of)(?: only)? (\d+)|must be <= (\d+)\. Given")
_PROMPT = _seek(
    r"(?<!at least )\b(\d+) (?:input tokens|in the (?:messages|prompt|input)|of text input"
    r"|`inputs` tokens)"
)


def _read_numbers(words: str, max_tokens: int) -> tuple[int | None, int | None]:
    """Tokens of the window, and what the prompt leaves of them, where a refusal says both."""
    if beyond := _BEYOND.search(words):
        return int(beyond[1]), int(beyond[1]) - int(beyond[2]) + max_tokens
    found, prompt = _WINDOW.search(words), _PROMPT.search(words)
    if not (found and prompt):
        return None, None
    window = int(found[found.lastindex or 0])
    return window, window - int(prompt[1])


_NO_SYSTEM = _seek(
    r"system.{0,3} (?:role|message|prompt)|role.{0,40}\bsystem\b|roles must alternate"
    r"|only user\b.{0,20}\bassistant\b|developer instruction is not"
)
_NO_TEMPLATE = _seek(rf"chat.?template|template_error|{_NO_SYSTEM.pattern}")
_NO_STREAM = _seek(r"only supports? stream|enable the stream|stream.{0,20}must be (?:set to )?true")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a server wants to be asked where that is no other question.

    Attributes:
        limit_field: name of the field for the answer's longest length.
        implied: of `NEUTRAL_AT_ONE` those that are left out where they are 1.
        system: whether it takes a system prompt, which else comes before the user's first words.
        stream: whether it answers in pieces alone.
    """

    limit_field: str = "max_tokens"
    implied: frozenset[str] = frozenset()
    system: bool = True
    stream: bool = False

    def learn(self, refusal: Refusal, sampling: Sampling) -> Dialect:
        """As a refusal asks for; the same where nothing of it would help."""
        text = f"{refusal.words} {refusal.whole}"
        if refusal.status not in (400, 422, 500) or kind_of(refusal) not in ("refused", "again"):
            return self
        renamed = "max_completion_tokens" in text
        implied = {n for n in NEUTRAL_AT_ONE if n in text and getattr(sampling, n) == 1.0}
        return Dialect(
            limit_field="max_completion_tokens" if renamed else self.limit_field,
            implied=self.implied | implied,
            system=self.system and not _NO_TEMPLATE.search(text),
            stream=self.stream or bool(_NO_STREAM.search(text)),
        )

    def news(self, before: Dialect) -> str:
        """What became of another dialect, in words."""
        told = [
            f"{name} is left out, as 1 is its default" for name in self.implied - before.implied
        ]
        for is_new, words in (
            (self.limit_field != before.limit_field, f"max_tokens is sent as {self.limit_field}"),
            (self.system != before.system, "the system prompt comes before the user's first words"),
            (self.stream != before.stream, "answers are asked for in pieces"),
        ):
            told += [words] if is_new else []
        return ", ".join(sorted(told))


def advice(refusal: Refusal, sampling: Sampling) -> str:
    """The flag that a refused parameter asks for, in brackets; empty if it's about none."""
    text, words = f"{refusal.words} {refusal.whole}", refusal.words
    if "enable_thinking" in text:
        return """ (give --extra_body '{"enable_thinking": false}')"""
    for name in reversed(NEUTRAL_AT_ONE):
        if name in text and getattr(sampling, name) != 1.0:
            only = re.search(r"\bonly\D{0,40}?(\d+(?:\.\d+)?)", words)
            return f" (give --{name} {only[1] if only else 1})"
    if re.search(r"\bseed\b", text) and sampling.seed is not None:
        return " (leave --seed out)"
    if "max_tokens" in text or "max_completion_tokens" in text or "max_new_tokens" in text:
        numbers = (int(n) for n in re.findall(r"\b\d+\b", words))
        most = max((n for n in numbers if 0 < n < sampling.max_tokens), default=None)
        return f" (give --max_tokens {most})" if most else ""
    return ""


def _read_wait_s(refusal: Refusal, headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, in a header or in its words, or None."""
    told = retry_after(headers)
    for pattern in (
        r"ratelimit-reset\W{1,4}(\d+)",
        r"retryDelay\W{1,4}([\d.]+s)",
        r"(?:try again|retry)\D{0,12} (?:in|after) ((?:[\d.]+ ?(?:ms|[dhms]))+)",
    ):
        if told is None and (found := re.search(pattern, refusal.whole, re.IGNORECASE)):
            told = read_seconds(found[1].replace(" ", ""), time.time())
    return told
