"""A chat completion in the body of an answer, in whatever form servers write it.

**Wire format:** https://platform.openai.com/docs/api-reference/chat/object; what differs from it is
read as far as it says what the answer is: lists of parts, texts in the place of messages, events of
a stream, JSON with control characters, other encodings.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from typing import Any

import msgspec

from mminstruct.backends import _tokens
from mminstruct.backends._refusals import WORDS_SHOWN, Refusal, error_of, read_refusal
from mminstruct.errors import BackendError, TransientError
from mminstruct.schema import Completion, FinishReason

_MOST_BYTES = 1 << 26
# What servers call the ends of an answer, in lower case.
_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "end_turn": "stop",
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_length": "length",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "sensitive": "content_filter",
    "recitation": "content_filter",
    "prohibited_content": "content_filter",
    "blocklist": "content_filter",
    "model_context_window_exceeded": "length",
}
# The server gave up half-way: what there is of the answer isn't one.
_UNFINISHED = (
    "error",
    "abort",
    "aborted",
    "cancelled",
    "insufficient_system_resource",
    "network_error",
)
_NOTHING = (b"null", b'""', b"[]", b"{}")


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    # Two names for what a model thought, of whatever type.
    reasoning_content: msgspec.Raw = msgspec.Raw(b"null")
    reasoning: msgspec.Raw = msgspec.Raw(b"null")


class _Choice(msgspec.Struct):
    # Some services leave it out where a filter has taken the answer.
    message: _Message | None = None
    finish_reason: str | None = None
    # Of a gateway that lost its upstream half-way, after it had sent the 200.
    error: msgspec.Raw = msgspec.Raw(b"null")


class _Piece(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Streamed(msgspec.Struct):
    delta: _Piece = msgspec.field(default_factory=_Piece)
    message: Any = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Streamed] | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    total_tokens: float | None = None


class _Body(msgspec.Struct):
    choices: list[_Choice] | None = None
    model: str | None = None
    # Read apart: an answer that was paid for isn't worth less for a count that makes no sense.
    usage: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


_decoder = msgspec.json.Decoder(_Body)
_usage_decoder = msgspec.json.Decoder(_Usage | None)


def read_body(
    body: bytes,
    *,
    redacted: Callable[[str], str] = str,
    where: str = "the server",
    lost: str = "",
    max_tokens: int | None = None,
) -> Completion:
    """The completion in a response's body.

    Args:
        body: as it came.
        redacted: takes secrets out of what an error shows of the body.
        where: who answered.
        lost: as in `error_of`.
        max_tokens: what the answer was bounded by; None where that isn't known.

    Raises:
        TransientError: it isn't one: damaged JSON, no choices, a page.
        BackendError: it tells of an error, which has the meaning it would have as a status.
    """

    def told(found: bytes | msgspec.Raw) -> BackendError | None:
        return _find_error(bytes(found), redacted, where)

    answer = _decode_body(body)
    if answer is None or not answer.choices:
        refusal = read_refusal(200, body, redacted)
        if refusal.is_page:
            raise error_of(refusal, {}, where=where, lost=lost)
        raise (told(answer.error) if answer else None) or TransientError(
            f"{where}: the answer is not a chat completion: {_quote(body, redacted)!r}",
            cause="bad_body",
        )
    choice = answer.choices[0]
    message = choice.message
    failed = told(choice.error)
    if failed is None and not (message and message.content and choice.finish_reason):
        failed = told(answer.error)
    if failed is not None:
        raise failed
    ended = (choice.finish_reason or "stop").lower()
    if message is None and _FINISH.get(ended) != "content_filter":
        raise TransientError(
            f"{where}: the answer has no message: {_quote(body, redacted)!r}",
            cause="bad_body",
        )
    if ended in _UNFINISHED:
        raise TransientError(f"{where} ended its answer with {ended!r}", cause="unfinished")
    message = message or _Message()
    prompt_tokens, completion_tokens = _read_usage(answer.usage)
    finish = _FINISH.get(ended, "other")
    text = message.content or ""
    if message.refusal and not text:
        finish, text = "content_filter", message.refusal
    if choice.finish_reason is None and _is_cut(text, completion_tokens, max_tokens):
        finish = "length"
    thoughts = (bytes(message.reasoning_content), bytes(message.reasoning))
    return Completion(
        text=text,
        finish_reason=finish,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        model=answer.model,
        only_thoughts=not text.strip() and any(one not in _NOTHING for one in thoughts),
    )


def _quote(body: bytes, redacted: Callable[[str], str]) -> str:
    return redacted(body.decode(errors="replace"))[:WORDS_SHOWN]


def _is_cut(text: str, tokens: int | None, max_tokens: int | None) -> bool:
    """Whether an answer of which nobody says how it ended was cut off."""
    if tokens is not None and max_tokens is not None and tokens >= max_tokens:
        return True
    last = text.rstrip()[-1:]
    return last.isalnum() or last in (",", ";", ":", "-", "(")


def _find_error(body: bytes, redacted: Callable[[str], str], where: str) -> BackendError | None:
    """The error that an answer of status 200 tells of, if it does."""
    if body in (*_NOTHING, b"false"):
        return None
    refusal = read_refusal(200, b'{"error":%b}' % body, redacted)
    found = msgspec.json.decode(body)
    code = str(found.get("code", "")) if isinstance(found, dict) else ""
    status = int(code) if code.isdigit() and 400 <= int(code) < 600 else 200
    return error_of(
        Refusal(status, refusal.words, refusal.whole), {}, where=f"{where}, within a 200,"
    )


def _read_usage(raw: msgspec.Raw) -> tuple[int | None, int | None]:
    """Tokens of prompt and answer that are paid for, as far as the counts make sense.

    Some services leave what a model thought out of the answer's count; in the total it is.
    """
    try:
        usage = _usage_decoder.decode(raw) or _Usage()
    except msgspec.DecodeError:
        return None, None
    prompt, answer = _tokens.plausible(usage.prompt_tokens, usage.completion_tokens)
    if prompt is None or answer is None:
        return None, None
    _, thought_too = _tokens.plausible(prompt, (usage.total_tokens or 0) - prompt)
    return prompt, max(answer, thought_too or 0)


def _decode_body(body: bytes) -> _Body | None:
    """The body in OpenAI's form, or None if there is no JSON in it that could be one."""
    try:
        answer = _decoder.decode(body)
        if answer.choices and answer.choices[0].message is not None:
            return answer
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        usual = json.dumps(_normalize(_read(body)), ensure_ascii=False)
        # Half a character that stands alone becomes U+FFFD.
        text = usual.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return _decoder.decode(text.encode())
    except (ValueError, RecursionError, zlib.error):
        return None


def _read(body: bytes) -> Any:
    """The JSON in a body, without what some servers write into it that JSON has not.

    Raises:
        ValueError: there is none.
    """
    if body.startswith(b"\x1f\x8b"):  # gzip that no header tells of
        body = zlib.decompressobj(31).decompress(body, _MOST_BYTES)
    text = body.decode(errors="replace").lstrip("\ufeff \r\n\t")
    if text.startswith(("data:", "event:", ":")):
        lines = (line.partition("data:")[2].strip() for line in text.splitlines())
        return _join_events([_json(line) for line in lines if line.startswith("{")])
    return _json(text)


def _json(text: str) -> Any:
    def number(text: str) -> float | None:
        return value if math.isfinite(value := float(text)) else None

    return json.loads(text, strict=False, parse_float=number, parse_constant=lambda name: None)


def _join_events(events: list[Any]) -> Any:
    """The completion that the events of a stream are pieces of; one of them may be all of it."""
    text, thought, ended = "", "", None
    others: dict[str, Any] = {}
    for event, found in zip(msgspec.convert(events, list[_Event]), events, strict=True):
        others |= {name: found[name] for name in ("model", "usage", "error") if found.get(name)}
        for choice in (event.choices or ())[:1]:
            if choice.message:
                return found
            text += choice.delta.content or ""
            thought += choice.delta.reasoning_content or choice.delta.reasoning or ""
            ended = choice.finish_reason or ended
    message = {"content": text, "reasoning": thought}
    return {"choices": [{"message": message, "finish_reason": ended or "aborted"}], **others}


def _normalize(found: Any) -> Any:
    """A body of another form in OpenAI's."""
    if not isinstance(found, dict):
        return found
    choices = found.get("choices")
    if not choices:
        # FastChat's errors, and others', are the whole body.
        told = any(isinstance(found.get(name), str) for name in ("message", "msg", "detail"))
        return {"error": found} if told and not found.get("error") else found
    if not isinstance(choices, list) or not isinstance(choices[0], dict):
        return found
    choice = dict(choices[0])
    message = choice.get("message", choice.get("text"))  # the latter in the API for completions
    if message is not None:
        choice["message"] = _flatten(message if isinstance(message, dict) else {"content": message})
    if isinstance(choice.get("finish_reason"), dict):
        choice["finish_reason"] = choice["finish_reason"].get("type")
    return {**found, "choices": [choice]}


def _flatten(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose content is a text, where it was one or several parts."""
    content = message.get("content")
    if not isinstance(content, list | dict):
        return message
    parts = [
        {"text": part} if isinstance(part, str) else part
        for part in (content if isinstance(content, list) else [content])
        if isinstance(part, str | dict)
    ]
    texts = [
        part.get("text") for part in parts if part.get("type") in (None, "text", "output_text")
    ]
    thoughts = [part for part in parts if part.get("type") in ("thinking", "reasoning")]
    text = "".join(text for text in texts if isinstance(text, str))
    return {"reasoning": thoughts, **message, "content": text}
