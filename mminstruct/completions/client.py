"""The LLM client: a backend, the response store, and between them retries and limits.

It owns an event loop on a thread of its own, so that requests go on while the caller writes Arrow
files, and so that callers need no loop. A completion is in the store before anyone hears of it, and
what is in the store is never asked for. The same request is asked for once, however many rows need
its answer at the same time. One request that is refused costs itself and nothing else. An empty
answer of a server counts as none: the next run asks again. `starting`, `sending` and `stopping`
have the rest: the first requests, each one's way to a server, and what ends a run.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import logging
import os
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar

from mminstruct.backends import Backend, Remote, rough_tokens
from mminstruct.completions.buckets import Rates
from mminstruct.completions.budget import Budget
from mminstruct.completions.gate import Gate
from mminstruct.completions.job import Answered, Attempt, Failed, Job, Outcome
from mminstruct.completions.limiter import Limiter
from mminstruct.completions.sending import Sender, Start
from mminstruct.completions.stats import NOT_SENT, Stats
from mminstruct.completions.stopping import Ending, RowRules, StopRules
from mminstruct.completions.store import ResponseStore, Scope, key_of
from mminstruct.errors import (
    ContextTooLong,
    MMInstructError,
    RequestRefused,
    RunStopped,
    StoreError,
    TransientError,
)
from mminstruct.schema import Completion, Request
from mminstruct.transport import RetryPolicy

_T = TypeVar("_T")

_log = logging.getLogger(__name__)

_DRAIN_STREAM_S = 5.0


def close_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what is left on a loop that doesn't run, and close it."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left))
    loop.close()


class _LoopThread:
    """An event loop on a thread of its own, and its tasks."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._tasks: set[asyncio.Task[Any]] = set()  # written on the loop alone

    def start(self) -> None:
        """Let it run."""
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What some work gives, for a caller on another thread."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def stop(self) -> None:
        """Close it, from another thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()

    def spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Begin some work, on the loop."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    async def cancel_spawned(self) -> None:
        """End what was spawned."""
        tasks = {task for task in self._tasks if not task.done()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # mark as seen: whoever waited may have gone

    def _serve(self) -> None:
        self.loop.run_forever()
        close_loop(self.loop)


class Client:
    """An open backend with its store; a context manager.

    Args:
        backend: not yet opened; the client opens and closes it.
        store: not yet opened; likewise.
        policy: retries.
        stats: where to count.
        rates: what may be sent a minute; None leaves it to what the server says and does.
        budget: what the run may cost; None is no bound.
        failures: if given, nothing is sent: what the store lacks fails as it says here, by key.

    Attributes:
        row_rules: are told on the loop what became of answers.
    """

    def __init__(
        self,
        backend: Backend,
        store: ResponseStore,
        *,
        policy: RetryPolicy | None = None,
        stats: Stats | None = None,
        rates: Rates | None = None,
        budget: Budget | None = None,
        failures: Mapping[bytes, Failed] | None = None,
    ) -> None:
        self.backend, self.store, self.stats = backend, store, stats or Stats()
        self._policy = policy or RetryPolicy()
        self._rates = rates
        self._budget = budget if budget is not None and budget.bounded else None
        self._failures = failures
        self._remotes = backend.replicas if isinstance(backend, Remote) else ()
        self._identities = identities_of(backend)
        self._loop = _LoopThread("llm-client")
        self.row_rules = RowRules(self.stats, self._stop_soon)
        # What follows, and most of the stats, is written on the loop alone.
        self._rules, self._ending = StopRules(), Ending(self._loop.loop)
        self._open_servers: contextlib.AsyncExitStack
        self._sender: Sender
        self._start: Start
        self._asking: dict[bytes, asyncio.Future[Completion]] = {}

    def __enter__(self) -> Client:
        self._opened_by = threading.current_thread()
        self._loop.start()
        try:
            self.store.__enter__()
            self._loop.run(self._open())
        except BaseException:
            self.store.__exit__(None, None, None)
            self._loop.stop()
            raise
        _clients.add(self)
        return self

    async def _open(self) -> None:
        servers = self._remotes or (self.backend,)
        async with contextlib.AsyncExitStack() as opened:
            for server in servers if self._failures is None else ():
                await opened.enter_async_context(server)
            self._open_servers = opened.pop_all()
        most, adaptive, spare = self.backend.parallel, bool(self._remotes), len(servers) > 1
        names = self.backend.endpoints if spare else ("",)
        limiters = [Limiter(most, adaptive=adaptive, spare=spare, server=name) for name in names]
        self._sender = Sender(
            servers,
            Gate(limiters, most, self._rates),
            parallel=most,
            policy=self._policy,
            stats=self.stats,
            budget=self._budget,
            rules=self._rules,
            ending=self._ending,
        )
        self._start = Start(self._sender, self.store)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self not in _clients:  # closed at the interpreter's exit, or a parent process's
            return
        _clients.discard(self)
        if threading.current_thread() is not self._opened_by:
            # The garbage collector found a stream, maybe in a thread that has to be waited for.
            threading.Thread(target=self._finish, args=(kind, error)).start()
            return
        self._finish(kind, error)

    def _finish(self, kind: type[BaseException] | None, error: BaseException | None) -> None:
        drain_s = self._policy.drain_s
        if isinstance(self._ending.reason, StoreError):
            drain_s = 0.0  # answers that can't be stored aren't worth waiting for
        elif kind is GeneratorExit:
            drain_s = min(drain_s, _DRAIN_STREAM_S)  # whoever leaves a stream waits unawares
        elif kind is not None and issubclass(kind, Exception):
            drain_s = max(drain_s, self._policy.finish_s)
        try:
            self._loop.run(self._close(drain_s))
        except KeyboardInterrupt:
            self._loop.run(self._close(0.0))
            raise
        finally:
            try:
                self.store.__exit__(kind, error, None)
            finally:
                self._loop.stop()

    def start(self, work: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        """Begin some work that awaits outcomes, for callers without an event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop.loop)

    def submit(self, jobs: Sequence[Job]) -> concurrent.futures.Future[list[Outcome]]:
        """The outcomes of some jobs, in their order.

        Cancelling the future leaves the requests to run on, as they may be paid for already.

        Raises (through the future):
            RunStopped: the run can't go on; the reason is its cause.
            StoreError: likewise.
        """
        return self.start(self._shield(jobs))

    async def complete(self, jobs: Sequence[Job]) -> list[Outcome]:
        """`submit` for callers that have an event loop of their own."""
        return await asyncio.wrap_future(self.submit(jobs))

    def has_answers(self, jobs: Sequence[Job]) -> bool:
        """Whether none of these jobs would be sent as things stand.

        Raises:
            StoreError: the store can't be read.
        """
        return self._loop.run(self._has_answers(jobs))

    def stop(self) -> None:
        """Send nothing more. Whoever waits hears of it at once; answers in flight are kept."""
        self._stop_soon(RunStopped("the run was stopped"))

    def _stop_soon(self, error: MMInstructError) -> None:
        self._loop.loop.call_soon_threadsafe(self._ending.stop, error)

    async def _shield(self, jobs: Sequence[Job]) -> list[Outcome]:
        self._check()  # once it has ended, the store may be closed at any moment
        work = self._loop.spawn(self._complete_many(jobs))
        ends: list[asyncio.Future[Any]] = [work, self._ending.come]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            self._check()
        return work.result()

    def _check(self) -> None:
        if isinstance(self._ending.reason, StoreError):
            raise self._ending.reason
        self._ending.check()

    async def _complete_many(self, jobs: Sequence[Job]) -> list[Outcome]:
        if self.stats.started_s is None:
            self.stats.started_s = time.monotonic()
        attempts = [Attempt(job, self.backend, self._identities[0]) for job in jobs]
        outcomes = self._find(attempts)
        waiting = [i for i, outcome in enumerate(outcomes) if outcome is None]
        # A failure of one ends the wait, not the others: they may be paid for.
        tasks = [self._loop.spawn(self._outcome(attempts[i])) for i in waiting]
        for i, outcome in zip(waiting, await asyncio.gather(*tasks), strict=True):
            outcomes[i] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    async def _has_answers(self, jobs: Sequence[Job]) -> bool:
        keys = {Attempt(job, self.backend, self._identities[0]).key for job in jobs} - {None}
        with self._stop_at_store_errors():
            return len(self.store.get_many([key for key in keys if key is not None])) == len(keys)

    def _find(self, attempts: Sequence[Attempt]) -> list[Outcome | None]:
        """What the store has of some attempts."""
        with self._stop_at_store_errors():
            found = find_stored(self.store, attempts, self._identities)
        self.stats.stored += sum(completion is not None for completion in found)
        return [
            Answered(attempt.prompt, completion) if attempt.prompt and completion else None
            for attempt, completion in zip(attempts, found, strict=True)
        ]

    @contextlib.contextmanager
    def _stop_at_store_errors(self) -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            self._ending.stop(error)
            raise

    async def _outcome(self, attempt: Attempt) -> Outcome:
        if self._failures is not None:
            return self._find_shorter(attempt, self._failures)
        try:
            return await self._ask(attempt)
        finally:
            self._start.pass_on(attempt)

    def _find_shorter(self, attempt: Attempt, failures: Mapping[bytes, Failed]) -> Outcome:
        """What is known of an attempt where nothing is sent: of its shorter forms, too.

        Those come into question that a server found the longer ones too long for, or, where
        nothing is known of one, any that has an answer.
        """
        is_known = True
        while attempt.key is not None:
            failure = failures.get(attempt.key) if is_known else None
            if failure is None:
                is_known = False
                attempt.shorten()
            elif failure.rejected:
                attempt.shorten(failure.room, failure.message)
            else:
                return self._fail(failure.cause, failure.message)
            (stored,) = self._find([attempt])
            if stored is not None:
                return stored
        if is_known:
            return self._too_long(attempt)
        return self._fail(NOT_SENT, "its answer is not in the store, and nothing was sent")

    async def _ask(self, attempt: Attempt) -> Outcome:
        """The outcome of an attempt in the longest form that the server takes."""
        while attempt.prompt and attempt.request and attempt.key:
            try:
                completion = await self._answer(attempt.key, attempt.request, attempt)
            except ContextTooLong as error:
                self._sender.note_window(attempt.request, attempt.wanted, error)
                attempt.shorten(error.room, str(error))
                (stored,) = self._find([attempt])
                if stored is not None:
                    return stored
                continue
            except RequestRefused as error:
                return self._fail("refused", error)
            except TransientError as error:
                return self._fail(error.cause, error)
            return Answered(attempt.prompt, completion)
        return self._too_long(attempt)

    async def _answer(self, key: bytes, request: Request, attempt: Attempt) -> Completion:
        """One answer, stored; whoever needs the same one meanwhile waits for it, too."""
        under_way = self._asking.get(key)
        if under_way is not None:
            self._start.pass_on(attempt)  # whoever asks for it may wait for this one's turn
            completion = await asyncio.shield(under_way)
            self.stats.stored += 1
            return completion
        mine = self._asking[key] = self._loop.loop.create_future()
        try:
            with self._stop_at_store_errors():
                completion = await self._start.send(request, attempt)
            self.stats.prompt_tokens += completion.prompt_tokens or 0
            self.stats.completion_tokens += completion.completion_tokens or 0
            is_void, most = self._remotes and _is_void(completion), request.sampling.max_tokens
            stored = self.stats.stored if is_void else 0
            self._stop_if(self._rules.look_for_text(completion, most, stored))
            if is_void:
                raise TransientError("the server's answer is empty", cause="empty")
            with self._sender.saving(), self._stop_at_store_errors():
                scope = attempt.scope if completion.completion_tokens else None
                await self.store.put(key, completion, scope)
            mine.set_result(completion)
        except MMInstructError as error:
            mine.set_exception(error)
            mine.exception()  # mark as seen: mostly nobody waits
            raise
        finally:
            del self._asking[key]
            mine.cancel()  # nothing happens if it has a result
        self.stats.answered += 1
        if self._remotes:
            ours = rough_tokens(request.messages)
            self._stop_if(self._rules.look_for_cuts(completion.prompt_tokens or 0, ours))
        return completion

    def _stop_if(self, error: MMInstructError | None) -> None:
        if error is not None:
            self._ending.stop(error)

    def _too_long(self, attempt: Attempt) -> Failed:
        self.stats.rejected["too_long"] += 1
        return Failed("too_long", attempt.why_too_long, rejected=True)

    def _fail(self, cause: str, error: object) -> Failed:
        self.stats.failed[cause] += 1
        # Half a character, as in words that were cut off, is none that Arrow takes.
        return Failed(cause, str(error).encode("utf-8", "replace").decode())

    async def _close(self, drain_s: float) -> None:
        self._ending.stop(RunStopped("the run was stopped"))
        deadline = time.monotonic() + drain_s
        while self.stats.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        if self.stats.in_flight and drain_s > 0:
            _log.warning(
                "answers given up on their way, after %.0f s: %s; a server may charge for them",
                drain_s,
                f"{self.stats.in_flight:,}",
            )
        await asyncio.sleep(0)  # lets the last answers reach the store's queue
        while self._sender.unsaved and drain_s > 0:  # and the disk, to be counted
            await asyncio.sleep(0.01)
        await self._loop.cancel_spawned()
        await self._open_servers.aclose()


# The open ones, written by whatever thread opens or closes one. They know nothing of who uses them,
# so a stream is garbage all the same.
_clients: set[Client] = set()


def _close_left() -> None:
    """End what a stream that was left open has in flight, while threads still run.

    Threads that Python waits for go on with theirs.
    """
    for client in list(_clients):
        thread = client._opened_by
        if thread is threading.main_thread() or thread.daemon or not thread.is_alive():
            _clients.discard(client)
            client._finish(GeneratorExit, None)


# Before pools of threads are closed, where this Python can: engines in process use one in closing.
# Then once more, for what the threads have left that Python waited for.
getattr(threading, "_register_atexit", atexit.register)(_close_left)
atexit.register(_close_left)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_clients.clear)  # they are the parent's


def _is_void(completion: Completion) -> bool:
    """Whether an answer is none, and another time may be one."""
    ended = completion.finish_reason in ("stop", "other")
    return ended and not completion.only_thoughts and not completion.text.strip()


def identities_of(backend: Backend) -> list[dict[str, str]]:
    """What answers are known by: the backend's own, then those of its other servers."""
    others = backend.replicas[1:] if isinstance(backend, Remote) else ()
    return [backend.identity(), *(replica.identity() for replica in others)]


def find_stored(
    store: ResponseStore, attempts: Sequence[Attempt], identities: Sequence[Mapping[str, str]]
) -> list[Completion | None]:
    """What a store has for some attempts, under their keys or under others that are as good.

    Those are the keys of the other servers that the run has, in whatever order they were given
    then, and for answers that ended by themselves those of a lower max_tokens.

    Args:
        store: open.
        attempts: at their present length.
        identities: of all servers; the attempts' own is the first.

    Raises:
        StoreError: it can't be read.
    """
    found = store.get_many([a.key for a in attempts if a.key is not None])
    results = [found.get(a.key) if a.key is not None else None for a in attempts]
    others: dict[bytes, tuple[int, bool]] = {}
    lower: dict[Scope, list[int]] = {}
    for number, (attempt, result) in enumerate(zip(attempts, results, strict=True)):
        request, scope = attempt.request, attempt.scope
        if result is not None or request is None:
            continue
        limits = [request.sampling.max_tokens]
        if scope is not None and limits[0] == scope.max_tokens:
            if scope not in lower:
                lower[scope] = store.lower_limits(scope)
            limits += lower[scope]
        for limit in limits:
            sampling = replace(request.sampling, max_tokens=limit)
            for identity in identities[0 if limit != limits[0] else 1 :]:
                key = key_of(identity, Request(request.messages, sampling))
                others[key] = number, limit != limits[0]
    for key, completion in (store.get_many(list(others)) if others else {}).items():
        number, has_to_end = others[key]
        if completion.finish_reason == "stop" or not has_to_end:
            results[number] = completion
    return results
