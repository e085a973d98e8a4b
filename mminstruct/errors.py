"""The errors a user can meet, each of which says where, what, and what to do.

MMInstructError            anything this package raises on purpose
├── UsageError             an argument, a name or a combination that makes no sense
├── ConfigError            a prompt config or licence file that breaks its schema
├── SourceError            annotation files that are missing, damaged or contradict themselves
│   └── DownloadError      a file that could not be fetched, or arrived with other bytes
├── BackendError           an LLM that could not be reached or did not answer
│   ├── RequestRefused     this one request was refused for good (one row is lost, the run goes on)
│   │   ├── ContextTooLong the prompt does not fit the model's window
│   │   └── Withheld       a filter took the prompt, or its answer
│   ├── TransientError     worth another try: rate limits, 5xx, dropped connections, damaged bodies
│   └── BackendUnusable    no request can succeed: wrong key, unknown model, nobody listening
├── HubError               the Hub refused a release or could not be reached
├── StoreError             the response store can't be read or written (disk full, damaged file)
│   └── StoreUnusable      the file that was given can't be a store; another one has to be
└── RunStopped             a run ended early; what had finished is in the store
    └── NoRows             not early: none of the answers, which are all there, gave a row
"""

from __future__ import annotations

import difflib
import os.path
from collections.abc import Callable, Iterable
from pathlib import Path


class MMInstructError(Exception):
    """Base of all errors raised on purpose; printed without a traceback by the CLI."""


class UsageError(MMInstructError):
    """An argument, a name or a combination of both that makes no sense."""


class ConfigError(MMInstructError):
    """A prompt config or licence file that breaks its schema."""


class SourceError(MMInstructError):
    """Annotation files that are missing, damaged or contradict themselves."""


class DownloadError(SourceError):
    """A file that could not be fetched, or that arrived with other bytes than published."""


class BackendError(MMInstructError):
    """An LLM that could not be reached or did not answer."""


class RequestRefused(BackendError):
    """One request was refused for good; asking again gives the same answer.

    Attributes:
        unknown_here: the refusal is of a kind that mostly concerns the model or the account rather
            than this request (HTTP 403, 404); at the start of a run it says that none will succeed.
        status: the HTTP status, if it was one.
    """

    def __init__(
        self, message: str, *, unknown_here: bool = False, status: int | None = None
    ) -> None:
        super().__init__(message)
        self.unknown_here = unknown_here
        self.status = status


class ContextTooLong(RequestRefused):
    """The prompt and its answer do not fit the model's context window.

    Attributes:
        room: tokens that the window leaves for an answer to this prompt, or None if unknown; less
            than none where the prompt alone is longer.
        window: tokens that it has, or None if unknown.
    """

    def __init__(self, message: str, *, room: int | None = None, window: int | None = None) -> None:
        super().__init__(message)
        self.room = room
        self.window = window


class Withheld(RequestRefused):
    """A filter of the server took the prompt or its answer, and would again.

    Attributes:
        words: the server's alone.
    """

    def __init__(self, message: str, *, words: str) -> None:
        super().__init__(message)
        self.words = words


class TransientError(BackendError):
    """Worth another try.

    Attributes:
        retry_after_s: seconds the server asked to wait, or None.
        cause: a short machine-readable cause: ``http_429`` and the like, ``timeout``, ``dropped``,
            ``bad_body``, or ``unreachable`` where nobody listens.
    """

    def __init__(self, message: str, *, cause: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.cause = cause
        self.retry_after_s = retry_after_s


class BackendUnusable(BackendError):
    """No request of this run can succeed: wrong key, unknown model, nobody listening."""


class StoreError(MMInstructError):
    """The response store can't be read or written."""


class StoreUnusable(StoreError):
    """The file that was given can't be a response store; another one has to be."""


class HubError(MMInstructError):
    """The Hub refused a release, or could not be reached."""


class RunStopped(MMInstructError):
    """A run ended early. Every completion that had finished is in the response store."""


class NoRows(RunStopped):
    """No answer gave a row, and the same again gives the same."""


def lacking(path: Path) -> str:
    """The folder at which a path leaves what is there, in brackets; nothing if only its end does.

    >>> lacking(Path("/no/such/file.txt"))
    ' (there is no folder /no)'
    """
    missing = [folder for folder in path.parents if not os.path.exists(folder)]  # noqa: PTH110 (Path.exists raises where nobody may look)
    return f" (there is no folder {missing[-1]})" if missing else ""


def causes(error: BaseException) -> list[BaseException]:
    """An exception and what caused it, the last cause at the end."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        current = current.__cause__ or current.__context__
    return seen


def fault_of(work: Callable[[], None]) -> Exception | None:
    """What a thread's work or foreign code failed with, if it did: somebody has to hear of it."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 (a driver, an engine, a storage or a plugin raises any)
        return error
    return None


def to_tell(error: BaseException) -> Exception | None:
    """The error to tell the user among an exception and what caused it, or None."""
    seen = causes(error)
    ours = [e for e in seen if isinstance(e, MMInstructError)]
    if ours:
        return next((e for e in ours if isinstance(e, StoreError | NoRows)), ours[0])
    return next((e for e in seen if isinstance(e, OSError) and e.errno is not None), None)


def did_you_mean(got: str, choices: Iterable[str]) -> str:
    """The tail of an error about an unknown name: the nearest choice, else all of them.

    One that begins so is nearer than any other.

    >>> did_you_mean("lava", ["llava", "motion"])
    " (did you mean 'llava'?)"
    """
    known = sorted(choices)
    begun = [name for name in known if got and name.startswith(got)]
    near = begun or difflib.get_close_matches(got, known, n=1)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f"; choose from: {', '.join(known)}" if known else ""
