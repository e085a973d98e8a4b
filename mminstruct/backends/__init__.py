"""Ways to reach an LLM; a module ``backends/foo.py`` with a ``create`` is the registration.

It may be here, in the working folder, or be named by an installed package's entry point in
``mminstruct.backends``.

A backend is ``async complete(Request) -> Completion`` and what goes with it. Retries, limits and
the response store live once, above all backends (`mminstruct.completions.client`).

Besides ``create`` a module may have ``ALIASES``, other names for it, and ``OPTIONS``, what it can
be told beyond `BackendOptions`: each becomes a flag and an argument of `load_dataset`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mminstruct import plugins
from mminstruct.backends import _tokens
from mminstruct.backends._servers import SERVERS, usual_flags
from mminstruct.errors import UsageError, did_you_mean
from mminstruct.schema import Completion, Message, Option, Request
from mminstruct.transport import Quotas

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SERVERS", "Backend", "BackendOptions", "Opened", "Remote"]


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """How to reach and run a model; each backend reads what concerns it.

    Attributes:
        model: model name at a server, or a path; None is the backend's default, if it has one.
        base_urls: the servers, with or without ``/v1`` and a trailing slash; the first is the one
            that answers are known by, the others are replicas of it. Empty is the default server.
        context_window: tokens that prompt and answer may take together; None asks the model.
        timeout_s: longest wait for one answer, seconds.
        max_concurrency: requests in flight at most.
        engine: the backend's own options, by their names in its ``OPTIONS``.
    """

    model: str | None = None
    base_urls: tuple[str, ...] = field(default=(), repr=False)  # they may have secrets in them
    context_window: int | None = None
    timeout_s: float = 600.0
    max_concurrency: int = 256
    engine: Mapping[str, Any] = field(default_factory=dict)


class Opened:
    """How backends are opened and closed: as an async context manager, as often as need be."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Nothing, where nothing is held."""


class Counting(Protocol):
    """What tells whether a prompt fits a model's window."""

    @property
    def context_window(self) -> int | None:
        """Tokens that prompt and answer may take together, or None if unknown.

        Keys of answers depend on it, and opening must not change those.
        """
        ...

    @property
    def token_error(self) -> float | None:
        """By how much `count_tokens` may be off: 0 is exact, 0.01 is 1 %.

        None is unknown, which it may be before the first count.
        """
        ...

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the whole prompt, as the engine counts them; works before opening, too.

        Raises:
            BackendUnusable: the tokenizer can't be had.
        """
        ...


class Backend(Counting, Protocol):
    """What every backend offers. It is opened and closed as an async context manager."""

    @property
    def name(self) -> str:
        """As in rows and on the command line."""
        ...

    @property
    def model(self) -> str:
        """The model's name for rows and cards; never a path."""
        ...

    @property
    def repo_id(self) -> str | None:
        """What the terms of its outputs are looked up by: an exact Hub id, or None if unknown."""
        ...

    @property
    def parallel(self) -> int:
        """How many requests it makes sense to have in flight at most."""
        ...

    @property
    def endpoints(self) -> tuple[str, ...]:
        """URLs, fit for logs, of the servers that are asked; none if the model runs in process."""
        ...

    def identity(self) -> dict[str, str]:
        """What the answers depend on besides messages and sampling; known before opening."""
        ...

    async def complete(self, request: Request) -> Completion:
        """One answer.

        Raises:
            TransientError: worth another try.
            RequestRefused: this request will never be answered.
            BackendUnusable: no request will.
        """
        ...

    async def __aenter__(self) -> Backend: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...


@runtime_checkable
class Remote(Backend, Protocol):
    """A backend at a server, which the client above learns the limits of."""

    @property
    def replicas(self) -> tuple[Remote, ...]:
        """One backend for each server that has the model, to be opened one by one.

        The first is this one, whose identity is that of all.
        """
        ...

    @property
    def rate_limits(self) -> Quotas | None:
        """The allowances that the server told last."""
        ...


def most_tokens(backend: Counting, messages: Sequence[Message]) -> int:
    """Tokens that a prompt hardly exceeds: the engine's own count, or a bound on the high side.

    What fits a window depends on it and so do the keys of answers: it never changes between runs.
    """
    if backend.token_error == 0.0:
        return backend.count_tokens(messages)
    return _tokens.upper_bound(messages)


ROUGH_ERROR = _tokens.APPROXIMATION_ERROR
"""By how much `rough_tokens` may be off."""


def rough_tokens(messages: Sequence[Message]) -> int:
    """Tokens of a prompt for any model, without asking anybody."""
    return _tokens.approximate(messages)


_all = plugins.Plugins(Path(__file__).parent, "create")
names = _all.names


def load_named(name: str) -> None:
    """Let `engine_options` know those of the user's own backend of that name, if there is one."""
    _all.load(name)


def engine_options() -> dict[str, tuple[Option, tuple[str, ...]]]:
    """All own options by name, each with the backends that have it."""
    return plugins.collect_options(_all.modules())


def describe(name: str) -> str:
    """What a backend of the package is, in a line."""
    return (_all.modules()[name].__doc__ or "").partition("\n")[0]


def create(name: str, options: BackendOptions) -> Backend:
    """The backend of that name or alias, not yet opened.

    Raises:
        UsageError: there is none, the options don't fit it, or its package isn't installed.
    """
    found = _find(name, options)
    known = plugins.options_of(found.module)
    for option in options.engine:
        if option not in known:
            has = f"; it has {', '.join(sorted(known))}" if known else ""
            raise UsageError(f"the model source {found.found.name!r} has no option {option!r}{has}")
    backend: Backend = found.module.create(options)
    return backend


def create_again(name: str, options: BackendOptions, before: Mapping[str, str]) -> Backend:
    """`create`, where another process or an earlier look knows the backend's identity.

    Raises:
        UsageError: server or environment have changed, and rows would name another model.
    """
    made = create(name, options)
    now = made.identity()
    if changed := [name for name in {**before, **now} if before.get(name) != now.get(name)]:
        raise UsageError(
            f"model source {made.name!r}: {' and '.join(changed)} changed since it was looked "
            "up; load again"
        )
    return made


def check(name: str, options: BackendOptions) -> None:
    """Raise UsageError for what a run lacks that no server has to be asked for, such as a key."""
    missing: Callable[[BackendOptions], None] | None
    missing = getattr(_find(name, options).module, "check", None)
    if missing is not None:
        missing(options)


def probe(name: str, options: BackendOptions) -> None:
    """Ask the servers, at no cost, whether they are there; other backends have none to ask.

    Raises:
        BackendUnusable: none is an API that takes the key.
    """
    ask: Callable[[BackendOptions], None] | None
    ask = getattr(_find(name, options).module, "probe", None)
    if ask is not None:
        ask(options)


def _find(name: str, options: BackendOptions) -> plugins.Loaded:
    wanted = name.replace(".", "_").replace("-", "_").lower()
    loaded = _all.load(name) or _all.load(wanted)  # a path has signs of its own
    if loaded is None:
        known = _all.modules().items()
        aliased = (n for n, module in known if wanted in getattr(module, "ALIASES", ()))
        loaded = _all.load(next(aliased, wanted))
    if loaded is not None:
        return loaded
    if (flags := usual_flags(wanted, options.model)) is not None:
        raise UsageError(f"model source {name!r}: it speaks OpenAI's API; give {flags}")
    raise UsageError(f"unknown model source {name!r}{did_you_mean(wanted, names())}")
