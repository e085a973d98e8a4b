"""How the conformance tests run each backend here; what isn't listed needs nothing special."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from loopback import LoopbackServer, chat_completion

from mminstruct.backends import BackendOptions


@dataclass(frozen=True)
class Engine:
    """A backend as it runs in tests.

    Attributes:
        options: with which it is created.
        counts_exactly: whether its token count is the engine's own.
        honours_seed: whether a seed fixes the answer, and another one changes it.
        obeys_limit: whether max_tokens cuts an answer.
    """

    options: BackendOptions = BackendOptions(context_window=512)
    counts_exactly: bool = True
    honours_seed: bool = True
    obeys_limit: bool = True


@contextlib.contextmanager
def _openai() -> Iterator[Engine]:
    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        words = ["A", "carrot", "is", "a", "root", "that", "people", "eat."]
        limit = body["max_tokens"]
        reason = "length" if limit < len(words) else "stop"
        return chat_completion(" ".join(words[:limit]), finish_reason=reason)

    with LoopbackServer(answer) as server:
        options = BackendOptions(model="org/model", base_urls=(server.url,), context_window=512)
        yield Engine(options, counts_exactly=False, honours_seed=False)


_ENGINES: dict[str, Callable[[], AbstractContextManager[Engine]]] = {
    "fake": lambda: contextlib.nullcontext(Engine(obeys_limit=False)),
    "openai": _openai,
}


def engine(name: str) -> AbstractContextManager[Engine]:
    """The backend of that name, with what it needs running."""
    return _ENGINES.get(name, lambda: contextlib.nullcontext(Engine()))()
