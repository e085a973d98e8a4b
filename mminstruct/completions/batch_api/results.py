"""Lines of a batch's result files -> completions and failures."""

from __future__ import annotations

import re
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
)

import msgspec

from mminstruct.backends._chat import read_body
from mminstruct.backends._http import MOST_BYTES
from mminstruct.backends._refusals import error_of, read_refusal
from mminstruct.completions.client import MAYBE_PAID
from mminstruct.completions.job import Failed
from mminstruct.errors import (
    BackendError,
    BackendUnusable,
    ContextTooLong,
    TransientError,
    Withheld,
)
from mminstruct.schema import Completion

CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*"([0-9a-f]+)"')
WORDS_SHOWN = 500


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


class Results:
    """What the lines of a batch's files say of its requests.

    Attributes:
        keys: the batch's requests.
        answered: those of them with an answer.
        failures: of requests that failed for good.
        refusals: of prompts that are too long.
        wants_other_field: whether the limit is known under its newer name alone.
        unreadable: requests with an answer that is none we know, though it was paid for.
        unknown: lines about requests that were not in the batch.
        damaged: lines that can't be read.
    """

    def __init__(self, keys: set[bytes], limit_field: str) -> None:
        self.keys = keys
        self._limit_field = limit_field
        self._seen: set[bytes] = set()
        self.answered: set[bytes] = set()
        self.failures: dict[bytes, Failed] = {}
        self.refusals: dict[bytes, ContextTooLong] = {}
        self.wants_other_field = False
        self.unreadable: set[bytes] = set()
        self.unknown = 0
        self.damaged = 0

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
            self._seen.add(key)
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
        elif self._limit_field == "max_tokens" and "max_completion_tokens" in message:
            self.wants_other_field = True
        elif isinstance(error, TransientError):
            self.failures[key] = Failed(error.cause, message)
            if error.cause in MAYBE_PAID:
                self.unreadable.add(key)
        else:
            self.failures[key] = Failed("refused", message)

    def without_line(self) -> set[bytes]:
        """Keys that no line was about."""
        return self.keys - self._seen

    @property
    def about(self) -> int:
        """How many of the requests there were lines about."""
        return len(self._seen)

    @property
    def lines(self) -> int:
        """How many there were, whatever about."""
        return len(self._seen) + self.unknown + self.damaged

    def is_damaged(self) -> bool:
        """Whether there may be more in the files than could be read."""
        return bool(self.unknown or self.damaged)


def _entry(line: bytes) -> _Line:
    """What a line says, or, of the start of one that is too long, whose it is.

    Raises:
        msgspec.DecodeError: nothing that can be read.
    """
    if len(line) > MOST_BYTES and (named := CUSTOM_ID.search(line)):
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
