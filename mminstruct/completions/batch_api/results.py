"""Lines of a batch's result files -> completions and failures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO

import msgspec

from mminstruct.backends._chat import read_body
from mminstruct.backends._http import MOST_BYTES
from mminstruct.backends._refusals import WORDS_SHOWN, error_of, read_refusal
from mminstruct.completions.job import Failed
from mminstruct.completions.sending import MAYBE_PAID
from mminstruct.errors import (
    BackendError,
    BackendUnusable,
    ContextTooLong,
    TransientError,
    Withheld,
)
from mminstruct.schema import Completion

_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*"([0-9a-f]+)"')
_LINES_AT_A_TIME = 1000


class _Response(msgspec.Struct):
    status_code: int
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Error(msgspec.Struct):
    code: str | int | None = None
    message: str | None = None


class _Line(msgspec.Struct):
    custom_id: str
    response: _Response | None = None
    error: _Error | None = None


_line_decoder = msgspec.json.Decoder(_Line)


@dataclass
class Results:
    """What the lines of a batch's files say of its requests.

    Attributes:
        keys: the batch's requests.
        limit_field: name of the field for the answer's longest length.
        seen: those that there were lines about.
        answered: those with an answer.
        unreadable: those with an answer that is none we know, though it was paid for.
        failures: of requests that failed for good.
        refusals: of prompts that are too long.
        wants_other_field: whether the limit is known under its newer name alone.
        unknown: lines about requests that were not in the batch.
        damaged: lines that can't be read.
    """

    keys: set[bytes]
    limit_field: str
    seen: set[bytes] = field(default_factory=set)
    answered: set[bytes] = field(default_factory=set)
    unreadable: set[bytes] = field(default_factory=set)
    failures: dict[bytes, Failed] = field(default_factory=dict)
    refusals: dict[bytes, ContextTooLong] = field(default_factory=dict)
    wants_other_field: bool = False
    unknown: int = 0
    damaged: int = 0

    def read(
        self, lines: Iterable[bytes], redacted: Callable[[str], str]
    ) -> Iterator[tuple[bytes, Completion]]:
        """The answers among some lines; everything else is noted."""
        for line in lines:
            if not line.strip():
                continue
            try:
                entry = _entry(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                self.damaged += 1
                continue
            try:
                key = bytes.fromhex(entry.custom_id)
            except ValueError:
                key = b""
            if key not in self.keys:
                self.unknown += 1
                continue
            self.seen.add(key)
            try:
                completion = _completion(entry, redacted)
            except BackendError as error:
                self._note(key, error)
                continue
            self.answered.add(key)
            yield key, completion

    def _note(self, key: bytes, error: BackendError) -> None:
        message = str(error)[:WORDS_SHOWN]
        if isinstance(error, ContextTooLong):
            self.refusals[key] = error
        elif self.limit_field == "max_tokens" and "max_completion_tokens" in message:
            self.wants_other_field = True
        elif isinstance(error, TransientError):
            self.failures[key] = Failed(error.cause, message)
            if error.cause in MAYBE_PAID:
                self.unreadable.add(key)
        else:
            self.failures[key] = Failed("refused", message)

    def without_line(self) -> set[bytes]:
        """Keys that no line was about."""
        return self.keys - self.seen

    @property
    def lines(self) -> int:
        """How many there were, whatever about."""
        return len(self.seen) + self.unknown + self.damaged

    def is_damaged(self) -> bool:
        """Whether there may be more in the files than could be read."""
        return bool(self.unknown or self.damaged)


def read_lines(file: IO[bytes]) -> Iterator[list[bytes]]:
    """A file's lines, some at a time; of one that is longer than any answer, the start alone."""
    chunk: list[bytes] = []
    left = MOST_BYTES
    while line := file.readline(MOST_BYTES + 1):
        chunk.append(line)
        left -= len(line)
        while line and not line.endswith(b"\n"):
            line = file.readline(MOST_BYTES)
        if left <= 0 or len(chunk) == _LINES_AT_A_TIME:
            yield chunk
            chunk, left = [], MOST_BYTES
    if chunk:
        yield chunk


def _entry(line: bytes) -> _Line:
    """What a line says, or, of the start of one that is too long, whose it is.

    Raises:
        msgspec.DecodeError: nothing that can be read.
    """
    if len(line) > MOST_BYTES and (named := _CUSTOM_ID.search(line)):
        words = f"the answer is longer than {MOST_BYTES:,} bytes"
        return _Line(named[1].decode(), error=_Error("bad_body", words))
    return _line_decoder.decode(line)


def _completion(line: _Line, redacted: Callable[[str], str]) -> Completion:
    """The answer in a line, or the error that it tells of."""
    if line.response is None:
        error = line.error or _Error()
        words = redacted(error.message or "neither an answer nor an error")
        raise TransientError(words, cause=str(error.code or "no_answer"))
    status, body = line.response.status_code, bytes(line.response.body)
    if status == 200:
        return read_body(body, redacted=redacted)
    found = error_of(read_refusal(status, body, redacted), {}, where="the batch")
    if isinstance(found, Withheld):
        return Completion(found.words, "content_filter", 0, 0)
    if isinstance(found, BackendUnusable):
        raise TransientError(str(found), cause=f"http_{status}")
    raise found
