"""Worker processes that end with the run that started them."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import multiprocess

# A terminal and whoever started the run may both pass a Ctrl-C on.
_SAME_SIGNAL_S = 0.5
_LOOK_AT_PARENT_S = 1.0


@contextlib.contextmanager
def end_in_order() -> Iterator[None]:
    """Let a signal to terminate wait for the answers in flight, as Ctrl-C does.

    A pool whose parent is interrupted terminates its processes at once. They wait as long as a run
    in one process does, also where the parent died. A second Ctrl-C ends the wait.

    Elsewhere than in a pool, a handler of the user's is left as it is.
    """
    in_pool = multiprocess.parent_process() is not None
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not (in_pool or signal.getsignal(signal.SIGTERM) is signal.SIG_DFL):
        yield
        return
    if in_pool and not _watching.is_set():  # a process that was spawned, not forked
        _end_with(multiprocess.parent_process().is_alive)
    heard_s, terminated = -math.inf, False

    def end(number: int, frame: Any) -> None:
        nonlocal heard_s, terminated
        terminated |= number == signal.SIGTERM
        now = time.monotonic()
        is_first, is_new = heard_s == -math.inf, now - heard_s > _SAME_SIGNAL_S
        if is_first or (number == signal.SIGINT and is_new):
            heard_s = now
            raise KeyboardInterrupt

    heard = (signal.SIGTERM, signal.SIGINT) if in_pool else (signal.SIGTERM,)
    before = [(n, signal.signal(n, end)) for n in heard]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler or signal.SIG_DFL)
        if terminated:
            os.kill(os.getpid(), signal.SIGTERM)


# The process whose pool, and its manager, this thread forks.
_pool_of = threading.local()
_watching = threading.Event()  # `_end_with` alone sets it


@contextlib.contextmanager
def end_with_this() -> Iterator[None]:
    """End the processes that this thread forks meanwhile soon after this one has died."""
    _pool_of.pid = os.getpid()
    try:
        yield
    finally:
        _pool_of.pid = None


def watch_parent() -> None:
    """Start to watch the parent, in a process that `end_with_this` is about."""
    parent = getattr(_pool_of, "pid", None)
    if parent is not None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler is for the parent
        _end_with(lambda: os.getppid() == parent)


def _end_with(is_parent_alive: Callable[[], bool]) -> None:
    def watch() -> None:
        while is_parent_alive():
            time.sleep(_LOOK_AT_PARENT_S)
        os.kill(os.getpid(), signal.SIGTERM)

    _watching.set()
    threading.Thread(target=watch, name="parent", daemon=True).start()
