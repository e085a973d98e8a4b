"""Ways to reach an LLM; a module ``backends/foo.py`` with a ``create`` is the registration.

A backend is ``async complete(Request) -> Completion`` and what goes with it. Retries, limits and
the response store live once, above all backends (`mminstruct.client`).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from mminstruct.errors import UsageError, did_you_mean
from mminstruct.schema import Completion, Message, Request


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """How to reach and run a model; each backend reads what concerns it.

    Attributes:
        model: model name at a server, or a path; None is the backend's default, if it has one.
        base_url: the server, with or without ``/v1`` and a trailing slash.
        context_window: tokens that prompt and answer may take together; None asks the model.
        timeout_s: longest wait for one answer, seconds.
        max_concurrency: requests in flight at most.
        n_threads: CPU threads of an in-process engine; None leaves the choice to it.
        n_gpu_layers: layers that an in-process engine puts on the GPU; -1 is all.
    """

    model: str | None = None
    base_url: str | None = None
    context_window: int | None = None
    timeout_s: float = 600.0
    max_concurrency: int = 64
    n_threads: int | None = None
    n_gpu_layers: int = -1


class Backend(Protocol):
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
    def context_window(self) -> int | None:
        """Tokens that prompt and answer may take together, or None if unknown."""
        ...

    def identity(self) -> dict[str, str]:
        """What the answers depend on besides messages and sampling; known before opening."""
        ...

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the whole prompt, exact unless the module says otherwise."""
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
    ) -> None: ...


def names() -> list[str]:
    """All backends, as written in configs and rows."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def describe(name: str) -> str:
    """What a backend is, in a line."""
    module = importlib.import_module(f"{__name__}.{name}")
    return (module.__doc__ or "").partition("\n")[0]


def create(name: str, options: BackendOptions) -> Backend:
    """The backend of that name, not yet opened. ``llama.cpp`` also finds ``llama_cpp``.

    Raises:
        UsageError: there is none, the options don't fit it, or its package isn't installed.
    """
    module = name.replace(".", "_").replace("-", "_").lower()
    if module not in names():
        raise UsageError(f"unknown model source {name!r}{did_you_mean(module, names())}")
    backend: Backend = importlib.import_module(f"{__name__}.{module}").create(options)
    return backend
