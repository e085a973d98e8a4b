"""The LLM client: a backend, the response store, and between them retries and limits.

It owns an event loop on a thread of its own, so that requests go on while the caller writes Arrow
files, and so that callers need no loop. What it promises:

- a completion is in the store before anyone hears of it; what is in the store is never asked for;
- at most ``backend.parallel`` requests are in flight, to servers no more and no faster than they
  are found to take (`limiter`), and a request that waits for its retry holds up nobody;
  when a server says Retry-After, nobody asks it before, and the run ends if that is over an hour
  for all servers;
- of several servers each gets what it has room for, and what one that dies was asked goes to the
  others at once; it is left out until it answers again;
- no attempt is sent that could exceed the budget, whatever the answers in flight turn out to cost,
  as long as max_tokens bounds what a model thinks, too;
- the same request is asked for once, however many rows need its answer at the same time;
- one request that is refused costs itself and nothing else;
- answers that are all empty, because the model thinks for longer than its answers may be, and
  prompts that a server cuts without a word end the run after some of them;
- what a refusal says of a window is kept in mind: prompts that are longer for sure aren't sent;
- an empty answer of a server counts as none: the next run asks again;
- requests go one by one until the first answer. A wrong key, an unknown model, a server that is
  down or one that is no such server thus ends the run after a few attempts instead of after
  thousands. A request that hangs holds up no other. Where the store holds answers of this model,
  the ones left may be those that fail for good, and only a server that can't be reached or that
  knows neither key nor model ends the run.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import logging
import math
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, TypeVar

from mminstruct.answers.parse import ONLY_THOUGHTS
from mminstruct.backends import Backend, Remote, rough_tokens
from mminstruct.completions.buckets import Rates
from mminstruct.completions.budget import Budget, price_usd, used_tokens, worst_case_usd
from mminstruct.completions.gate import Gate
from mminstruct.completions.job import Answered, Attempt, Failed, Job, Outcome
from mminstruct.completions.limiter import Limiter, Sent
from mminstruct.completions.stats import Stats
from mminstruct.completions.store import ResponseStore, Scope, key_of
from mminstruct.errors import (
    BackendError,
    BackendUnusable,
    ContextTooLong,
    MMInstructError,
    NoRows,
    RequestRefused,
    RunStopped,
    StoreError,
    TransientError,
    Withheld,
)
from mminstruct.schema import Completion, Request
from mminstruct.transport import LONGEST_WAIT_S, Quotas, RetryPolicy, until

_T = TypeVar("_T")

_log = logging.getLogger(__name__)

_FAILED_AT_START = 3
_FAILED_IN_A_ROW = 100
_CONNECTION_TRIES_AT_START = 3
# At the start, of what is the same at the next try, mostly; and how long others wait for the first.
_TRIES_AT_START = 2
_SAME_AGAIN = ("bad_body", "no_api", "http_500")
_PATIENCE_S = 15.0
# Of a failure of one such cause, while others are answered.
_OWN_TRIES = 5
# Each of these may be paid for, and none of them more than the next one.
_TIMEOUTS = 3
_EMPTY_IN_A_ROW = 30
# Prompts in a row of which a server counts the same, no more than this share of our count, and no
# less than the smallest window: one that says 100 each time doesn't count.
_CUT_SHARE = 0.7
_LEAST_WINDOW = 512
_CUT_TOLD = 5
_CUT_IN_A_ROW = 30
# What is longer than a refused prompt by so much, in our count, is refused, too.
_SURELY = 1.05
_USELESS = 100
_DRAIN_STREAM_S = 5.0
_BUDGET_POLL_S = 0.05
# A server may have written, and charge for, an answer that didn't arrive.
MAYBE_PAID = ("timeout", "dropped", "bad_body", "unfinished")
# So may one behind a gateway that waited for it in vain; one that says so at once has no server.
_GATEWAY_TIMEOUTS = ("http_408", "http_504", "http_524")
_GATEWAY_WAITS_S = 10.0
# Not this request's fault, most likely.
_SERVER_GONE = ("unreachable", "dropped", "timeout", "unknown_here")


NOT_SENT = "not_sent"
_NOT_SENT = Failed(NOT_SENT, "its answer is not in the store, and nothing was sent")


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
        self.backend = backend
        self.store = store
        self.stats = stats or Stats()
        self._policy = policy or RetryPolicy()
        self._failures = failures
        self._identity = backend.identity()
        self._rng = random.Random()  # noqa: S311
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="llm-client", daemon=True)
        self._budget = budget if budget is not None and budget.bounded else None
        self._paying = asyncio.Lock()
        self._rates = rates
        self._servers: tuple[Backend, ...] = ()
        self._remotes: tuple[Remote, ...] = ()
        self._identities = identities_of(backend)
        self._unknown_at: set[int] = set()
        self._gate: Gate
        self._unsaved = 0
        self._saved = asyncio.Event()
        self._start = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._end: asyncio.Future[None] = self._loop.create_future()
        self._started = False
        self._failed_at_start = 0
        self._starting: Attempt | None = None
        self._hanging = 0
        self._failed_in_a_row = 0
        self._empty_in_a_row = 0
        self._cut_at, self._cut_in_a_row = 0, 0
        # Tokens, by our count, from which a prompt is too long for sure, by what its answer needs.
        self._too_long_from: dict[int, float] = {}
        self._why_too_long = ""
        self._answered_before = self.stats.answered
        self._left: Counter[str] = Counter()
        self._useless: dict[str, Counter[str]] = {}
        self._useful: set[str] = set()
        self._answers = 0
        self._stopped: MMInstructError | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._asking: dict[bytes, asyncio.Future[Completion]] = {}

    def __enter__(self) -> Client:
        self._opened_by = threading.current_thread()
        self._thread.start()
        try:
            self.store.__enter__()
            self._run(self._open())
        except BaseException:
            self.store.__exit__(None, None, None)
            self._stop_loop()
            raise
        _clients.add(self)
        return self

    async def _open(self) -> None:
        if isinstance(self.backend, Remote):
            self._remotes = self.backend.replicas
        servers = self._remotes or (self.backend,)
        try:
            for server in servers if self._failures is None else ():
                await server.__aenter__()
                self._servers += (server,)
        except BaseException:
            await self._close_servers()
            raise
        most = self.backend.parallel
        adaptive, spare = bool(self._remotes), len(servers) > 1
        limiters = [Limiter(most, adaptive=adaptive, spare=spare) for _ in servers]
        self._gate = Gate(limiters, most, self._rates)

    async def _close_servers(self) -> None:
        for server in self._servers:
            await server.__aexit__(None, None, None)

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
        if isinstance(self._stopped, StoreError):
            drain_s = 0.0  # answers that can't be stored aren't worth waiting for
        elif kind is GeneratorExit:
            drain_s = min(drain_s, _DRAIN_STREAM_S)  # whoever leaves a stream waits unawares
        elif kind is not None and issubclass(kind, Exception):
            drain_s = max(drain_s, self._policy.finish_s)
        try:
            self._run(self._close(drain_s))
        except KeyboardInterrupt:
            self._run(self._close(0.0))
            raise
        finally:
            try:
                self.store.__exit__(kind, error, None)
            finally:
                self._stop_loop()

    def submit(self, jobs: Sequence[Job]) -> concurrent.futures.Future[list[Outcome]]:
        """The outcomes of some jobs, in their order.

        Cancelling the future leaves the requests to run on, as they may be paid for already.

        Raises (through the future):
            RunStopped: the run can't go on; the reason is its cause.
            StoreError: likewise.
        """
        return asyncio.run_coroutine_threadsafe(self._shielded(jobs), self._loop)

    def has_answers(self, jobs: Sequence[Job]) -> bool:
        """Whether none of these jobs would be sent as things stand.

        Raises:
            StoreError: the store can't be read.
        """
        return self._run(self._has_answers(jobs))

    async def complete(self, jobs: Sequence[Job]) -> list[Outcome]:
        """`submit` for callers that have an event loop of their own."""
        return await asyncio.wrap_future(self.submit(jobs))

    def stop(self) -> None:
        """Send nothing more. Whoever waits hears of it at once; answers in flight are kept."""
        self._loop.call_soon_threadsafe(self._stop, RunStopped("the run was stopped"))

    def expect(self, kinds: Mapping[str, int]) -> None:
        """Note how many requests there are of each instruction type."""
        self._left.update(kinds)

    def count_useful(self, kind: str) -> None:
        """Note that an answer of an instruction type gave a row."""
        self._left[kind] -= 1
        self._useful.add(kind)

    def count_useless(self, kind: str, reason: str, detail: str) -> None:
        """Note that an answer of an instruction type gave no row.

        If none of the first hundred did and as many are still to come, the run ends: they would be
        paid for in vain. Answers of other runs count, but don't end one that buys nothing.
        """
        self._left[kind] -= 1
        if kind in self._useful:
            return
        reasons = self._useless.setdefault(kind, Counter())
        reasons[reason] += 1
        buys = self.stats.answered > self._answered_before
        if not buys or min(reasons.total(), self._left[kind]) < _USELESS:
            return
        words = ", ".join(f"{name} {count}" for name, count in reasons.most_common())
        error = NoRows(
            f"the first {reasons.total()} answers of type {kind!r} gave no row ({words}; the last: "
            f"{detail}). Try another model, prompt config or sampling with --limit 5, or leave the "
            "type out with --types"
        )
        self._loop.call_soon_threadsafe(self._stop, error)

    async def _shielded(self, jobs: Sequence[Job]) -> list[Outcome]:
        work = self._spawn(self._complete_many(jobs))
        ends: list[asyncio.Future[Any]] = [work, self._end]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if isinstance(self._stopped, StoreError):
            raise self._stopped
        raise RunStopped(str(self._stopped)) from self._stopped

    def _spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # mark as seen: whoever waited may have gone

    async def _complete_many(self, jobs: Sequence[Job]) -> list[Outcome]:
        if self.stats.started_s is None:
            self.stats.started_s = time.monotonic()
        attempts = [Attempt(job, self.backend, self._identity) for job in jobs]
        outcomes = self._stored(attempts)
        waiting = [i for i, outcome in enumerate(outcomes) if outcome is None]
        # A failure of one ends the wait, not the others: they may be paid for.
        tasks = [self._spawn(self._outcome(attempts[i])) for i in waiting]
        for i, outcome in zip(waiting, await asyncio.gather(*tasks), strict=True):
            outcomes[i] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    async def _has_answers(self, jobs: Sequence[Job]) -> bool:
        keys = {Attempt(job, self.backend, self._identity).key for job in jobs} - {None}
        return len(self._look_up([key for key in keys if key is not None])) == len(keys)

    def _stored(self, attempts: Sequence[Attempt]) -> list[Outcome | None]:
        """What the store has of some attempts."""
        try:
            found = find_stored(self.store, attempts, self._identities)
        except StoreError as error:
            self._stop(error)
            raise
        self.stats.stored += sum(completion is not None for completion in found)
        return [
            Answered(attempt.prompt, completion) if attempt.prompt and completion else None
            for attempt, completion in zip(attempts, found, strict=True)
        ]

    def _look_up(self, keys: Sequence[bytes]) -> dict[bytes, Completion]:
        try:
            return self.store.get_many(keys)
        except StoreError as error:
            self._stop(error)
            raise

    async def _outcome(self, attempt: Attempt) -> Outcome:
        try:
            return await self._shortened(attempt)
        finally:
            self._let_start(attempt)

    async def _shortened(self, attempt: Attempt) -> Outcome:
        """The outcome of an attempt in the longest form that the server takes."""
        while attempt.prompt and attempt.request and attempt.key:
            if self._failures is not None and attempt.key not in self._failures:
                return self._shorter(attempt) or self._unsent()
            try:
                completion = await self._answer(attempt.key, attempt.request, attempt)
            except ContextTooLong as error:
                self._note_window(attempt, error)
                attempt.why_too_long = f"even the shortest prompt is too long: {error}"
                attempt.shorten(error.room)
                (stored,) = self._stored([attempt])
                if stored is not None:
                    return stored
                continue
            except RequestRefused as error:
                return self._failed("refused", error)
            except TransientError as error:
                return self._failed(error.cause, error)
            return Answered(attempt.prompt, completion)
        self.stats.rejected["too_long"] += 1
        return Failed("too_long", attempt.why_too_long, rejected=True)

    def _shorter(self, attempt: Attempt) -> Outcome | None:
        """The answer to a shorter prompt, where a server found the longer ones too long."""
        while attempt.key is not None:
            attempt.shorten()
            (stored,) = self._stored([attempt])
            if stored is not None:
                return stored
        return None

    def _unsent(self) -> Failed:
        self.stats.failed[NOT_SENT] += 1
        return _NOT_SENT

    def _note_window(self, attempt: Attempt, error: ContextTooLong) -> None:
        """Keep in mind how long a prompt is that is too long for sure, by our own count."""
        if attempt.request is None or (error.room is not None and error.room >= attempt.wanted):
            return
        tokens = float(rough_tokens(attempt.request.messages))
        if error.window is not None and error.room is not None:
            tokens *= (error.window - attempt.wanted) / (error.window - error.room)
        known = self._too_long_from.get(attempt.wanted, math.inf)
        if _SURELY * tokens < known:
            self._too_long_from[attempt.wanted] = _SURELY * tokens
            self._why_too_long = str(error)

    async def _answer(self, key: bytes, request: Request, attempt: Attempt) -> Completion:
        """One answer, stored; whoever needs the same one meanwhile waits for it, too."""
        if self._failures is not None:
            failure = self._failures[key]
            if failure.rejected:
                raise ContextTooLong(failure.message, room=failure.room)
            raise TransientError(failure.message, cause=failure.cause)
        under_way = self._asking.get(key)
        if under_way is not None:
            completion = await asyncio.shield(under_way)
            self.stats.stored += 1
            return completion
        mine = self._asking[key] = self._loop.create_future()
        try:
            completion = await self._ask(request, attempt)
            self.stats.prompt_tokens += completion.prompt_tokens or 0
            self.stats.completion_tokens += completion.completion_tokens or 0
            self._look_for_text(completion, request)
            if self._remotes and _is_void(completion):
                raise TransientError("the server's answer is empty", cause="empty")
            self._unsaved += 1
            try:
                scope = attempt.scope if completion.completion_tokens else None
                await self.store.put(key, completion, scope)
            finally:
                self._unsaved -= 1
                self._saved.set()
            mine.set_result(completion)
        except MMInstructError as error:
            if isinstance(error, StoreError):
                self._stop(error)
            mine.set_exception(error)
            mine.exception()  # mark as seen: mostly nobody waits
            raise
        finally:
            del self._asking[key]
            mine.cancel()  # nothing happens if it has a result
        self.stats.answered += 1
        self._look_for_cuts(completion, request)
        return completion

    def _look_for_text(self, completion: Completion, request: Request) -> None:
        """Stop the run if one answer after another is empty: they are paid for, and give no row."""
        self._empty_in_a_row = 0 if completion.text.strip() else self._empty_in_a_row + 1
        if self._empty_in_a_row < _EMPTY_IN_A_ROW:
            return
        words = f"{self._empty_in_a_row} answers in a row were empty"
        if completion.finish_reason == "length":
            words += (
                f"; the model used up max_tokens ({request.sampling.max_tokens:,}) before it wrote "
                "any text, as models do that think first: raise --max_tokens"
            )
        elif completion.only_thoughts:
            words += f"; {ONLY_THOUGHTS}"
        else:
            words += "; has the server the chat template of its model?"
        self._stop(NoRows(f"{words} (finish reason {completion.finish_reason!r})"))

    def _look_for_cuts(self, completion: Completion, request: Request) -> None:
        """Warn, then stop, where a server counts the same for prompts that are far longer."""
        counted, ours = completion.prompt_tokens, rough_tokens(request.messages)
        if not self._remotes or not _LEAST_WINDOW <= (counted or 0) <= _CUT_SHARE * ours:
            return
        self._cut_in_a_row = self._cut_in_a_row + 1 if counted == self._cut_at else 1
        self._cut_at = counted or 0
        words = (
            f"the server counts {counted:,} tokens in every prompt, where there are about {ours:,}:"
            " it leaves the rest out. Start it with a larger context (OLLAMA_CONTEXT_LENGTH for "
            f"Ollama), or give --context_window {counted}"
        )
        if self._cut_in_a_row == _CUT_TOLD:
            _log.warning(words)
        if self._cut_in_a_row == _CUT_IN_A_ROW:
            self._stop(NoRows(f"{words}; a new --response_store asks again for what was answered"))

    async def _ask(self, request: Request, attempt: Attempt) -> Completion:
        """One answer, with retries; until there has been one, requests go one by one.

        One that is too long goes on in its shorter form. One that hangs, or fails as it may alone,
        lets others try before it goes on.
        """
        tries = _Tries(self._answers, attempt.wanted)
        while not self._started:
            if self._starting is not attempt:
                await self._start.acquire()
                self._starting = attempt
            if self._started:
                break
            patience = self._loop.call_later(_PATIENCE_S, self._lose_patience, attempt)
            try:  # what is too long keeps its turn
                completion = await self._first(request, attempt.scope, tries)
            finally:
                patience.cancel()
            # Once one is answered, none has to wait for whose turn it is.
            self._let_start(self._starting if self._started else attempt)
            if completion is not None:
                return completion
            tries.retries += 1
            self.stats.retries += 1
            await self._pause(self._policy.wait_s(tries.retries - 1, None, self._rng))
        self._let_start(attempt)
        return await self._with_retries(request, tries)

    def _lose_patience(self, attempt: Attempt) -> None:
        """Let another request try beside one that hangs, but no herd of them."""
        if self._hanging < _FAILED_AT_START - 1:
            self._hanging += 1
            self._let_start(attempt)

    def _let_start(self, attempt: Attempt | None) -> None:
        """Let the next request try, if it was this one's turn."""
        if attempt is not None and self._starting is attempt:
            self._starting = None
            self._start.release()

    async def _first(
        self, request: Request, scope: Scope | None, tries: _Tries
    ) -> Completion | None:
        """The answer of a request at the start, or None if it is to go on later."""
        try:
            completion = await self._with_retries(request, tries)
        except ContextTooLong:
            raise
        except (RequestRefused, TransientError) as error:
            is_left = isinstance(error, TransientError) and not tries.is_over
            if not self._started:
                self._failed_at_start += 1
                before = self._was_answered(scope)
                if self._is_hopeless(error, before):
                    raise self._stop(error) from error
                self._started = before
            if is_left:
                return None
            raise
        self._started = True
        return completion

    def _is_hopeless(self, error: RequestRefused | TransientError, before: bool) -> bool:
        """Whether a failure at the start says that no request can succeed."""
        if isinstance(error, TransientError):
            known = error.cause == "unreachable" or (
                error.cause in ("timeout", "bad_body", "no_api") and not before
            )
        else:
            # Moderation refuses single requests with a 403, too, which a rerun may begin with.
            known = error.unknown_here and not (before and error.status == 403)
        return known or (not before and self._failed_at_start >= _FAILED_AT_START)

    def _was_answered(self, scope: Scope | None) -> bool:
        """Whether this model answered such requests before: in another run, or another split."""
        if self.stats.stored or self.stats.answered:
            return True
        return scope is not None and self.store.lengths(scope).count > 0

    async def _with_retries(self, request: Request, attempts: _Tries) -> Completion:
        too_long_from = self._too_long_from.get(attempts.wanted)
        if too_long_from is not None and rough_tokens(request.messages) >= too_long_from:
            raise ContextTooLong(self._why_too_long)
        while True:
            try:
                completion = await self._once(request, attempts)
            except BackendUnusable as error:
                raise self._stop(error) from error
            except ContextTooLong:
                raise
            except RequestRefused as error:
                self._count_failure(error, attempts.answers_before)
                raise
            except TransientError as error:
                wait_s = self._wait_s(error, attempts)
            else:
                self._answers += 1
                self._failed_in_a_row = 0
                return completion
            self.stats.retries += 1
            self.stats.retried_for = attempts.failed_by.removeprefix("http_").replace("_", " ")
            if wait_s > 0:
                await self._pause(wait_s)

    def _wait_s(self, error: TransientError, attempts: _Tries) -> float:
        """Seconds before the next attempt; raises what a request that is given up ends with."""
        attempts.alike = attempts.alike + 1 if attempts.failed_by == error.cause else 1
        attempts.failed_by = error.cause
        if error.cause == "timeout" or attempts.in_vain:
            attempts.timeouts += 1
        if (
            error.cause in _SERVER_GONE
            and attempts.timeouts < _TIMEOUTS
            and self._gate.others(attempts.gone)
        ):
            return 0.0  # another server has not been asked yet
        retry_after_s = error.retry_after_s
        if (
            attempts.refused_by is not None
            and self._gate.resumes_s({attempts.refused_by}) <= LONGEST_WAIT_S
        ):
            retry_after_s = None  # that server is paused anyway, and another one will take it
        if (retry_after_s or 0.0) > self._policy.max_pause_s:
            raise self._stop(too_long_a_pause(error)) from error
        if retry_after_s is not None:
            paused_until_s = time.monotonic() + retry_after_s
            self.stats.paused_until_s = max(self.stats.paused_until_s, paused_until_s)
        attempts.is_over = (
            attempts.retries >= self._policy.max_retries
            or attempts.timeouts >= _TIMEOUTS
            or (self._answers > attempts.answers_before and _is_its_own(error, attempts))
        )
        if attempts.is_over or (not self._started and self._is_enough(error, attempts)):
            self._count_failure(error, attempts.answers_before)
            raise error
        attempts.gone.clear()
        attempts.retries += 1
        return self._policy.wait_s(attempts.retries - 1, retry_after_s, self._rng)

    def _is_enough(self, error: TransientError, attempts: _Tries) -> bool:
        """Whether a request at the start has been tried often enough to try another."""
        if error.cause == "timeout" or attempts.in_vain:
            return True  # however often, each may be paid for
        if error.cause == "unreachable":
            return attempts.retries + 1 >= _CONNECTION_TRIES_AT_START
        return error.cause in _SAME_AGAIN and attempts.alike >= _TRIES_AT_START

    async def _once(self, request: Request, attempts: _Tries) -> Completion:
        most_usd = await self._reserve(request)
        paid_usd: float | None = None
        try:
            sent = await self._gate.enter(
                tokens=self._tokens(request) if self._gate.counts_tokens else 0.0,
                avoid=attempts.gone,
                first=attempts.sent > 0,
            )
            try:
                completion = await self._send(request, sent, attempts)
                paid_usd = price_usd(self._budget, completion, most_usd)
            except TransientError as error:
                if error.cause in MAYBE_PAID or attempts.in_vain:
                    paid_usd = most_usd
                raise
            except asyncio.CancelledError:
                paid_usd = most_usd
                raise
            return completion
        finally:
            if self._budget is not None:
                try:
                    self._budget.settle(most_usd, paid_usd)
                except RunStopped as error:  # the answer is still to be stored
                    self._stop(error)

    async def _send(self, request: Request, sent: Sent, attempts: _Tries) -> Completion:
        """The answer of the server that the gate chose, which hears of whatever comes of it."""
        if attempts.sent == 0:
            attempts.answers_before = self._answers
        attempts.sent += 1
        self.stats.sent += 1
        self.stats.in_flight += 1
        server = self._servers[sent.server]
        before = self._told(sent.server)
        cause, this = "not_sent", object()
        try:
            # A slow disk holds back what is sent: no more than this is lost if the machine dies.
            while self._unsaved >= self.backend.parallel:
                self._saved.clear()
                await self._saved.wait()
                if self._stopped is not None:
                    raise RunStopped(str(self._stopped)) from self._stopped
            begun_s, attempts.refused_by, attempts.in_vain = time.monotonic(), None, False
            self.stats.waiting_since_s[this] = begun_s
            completion = await server.complete(request)
        except TransientError as error:
            cause = error.cause
            waited_s = time.monotonic() - begun_s
            attempts.in_vain = cause in _GATEWAY_TIMEOUTS and waited_s >= _GATEWAY_WAITS_S
            if cause in _SERVER_GONE:
                attempts.gone.add(sent.server)
            if cause == "http_429" or error.retry_after_s is not None:
                cause = ""
                attempts.refused_by = sent.server
                told = self._told(sent.server)
                news = None if told is before else told
                if news is not None and error.retry_after_s is None:
                    error.retry_after_s = _used_up_s(news)
                self._gate.refused(sent, error.retry_after_s, news)
            raise
        except Withheld as error:  # an answer, too, which would be the same again
            cause = ""
            self._gate.answered(sent, used=0.0)
            return Completion(error.words, "content_filter", 0, 0)
        except RequestRefused as error:
            if error.unknown_here and self._is_left_out(sent.server, error, attempts):
                cause = "unknown_here"
                raise TransientError(str(error), cause=cause) from error
            cause = ""
            self._gate.answered(sent, used=0.0)
            raise
        else:
            cause = ""
            used, told = used_tokens(completion), self._told(sent.server)
            self._gate.answered(sent, used=used, quotas=None if told is before else told)
            if told is not None and len(self._remotes) == 1:
                self._mind_allowance(told)
            return completion
        finally:
            self.stats.in_flight -= 1
            self.stats.waiting_since_s.pop(this, None)
            if cause:
                self._gate.failed(sent, cause)
            self.stats.held_by = self._gate.words()

    def _is_left_out(self, server: int, error: RequestRefused, attempts: _Tries) -> bool:
        """Whether others can answer what a server refused that doesn't know model or key."""
        if not self._gate.others({*attempts.gone, server}):
            return False
        attempts.gone.add(server)
        if server not in self._unknown_at:
            self._unknown_at.add(server)
            _log.warning("left out for now: %s", error)
        return True

    def _mind_allowance(self, told: Quotas) -> None:
        """Stop the run where an allowance is used up for longer than it may pause."""
        used_up_s = _used_up_s(told) or 0.0
        if used_up_s > self._policy.max_pause_s:
            words = f"the server's allowance is used up until {until(used_up_s)}"
            self._stop(RunStopped(f"{words}; --max_pause {used_up_s:.0f} waits for it"))

    def _told(self, server: int) -> Quotas | None:
        return self._remotes[server].rate_limits if self._remotes else None

    def _tokens(self, request: Request) -> float:
        """Tokens that prompt and answer take together at most, nearly; the answer tells exactly."""
        return rough_tokens(request.messages) + request.sampling.max_tokens

    async def _reserve(self, request: Request) -> float:
        """What the next attempt costs at most, in USD, once the budget has room for it."""
        budget = self._budget
        if budget is None:
            return 0.0
        most_usd = worst_case_usd(budget, self.backend, request)
        async with self._paying:
            while not self._admits(budget, most_usd):
                if self._stopped is not None:
                    raise RunStopped(str(self._stopped)) from self._stopped
                if not budget.spent.in_flight:
                    raise self._stop(RunStopped(budget.reached()))
                await self._pause(_BUDGET_POLL_S)
        return most_usd

    def _admits(self, budget: Budget, most_usd: float) -> bool:
        try:
            return budget.admit(most_usd)
        except RunStopped as error:
            raise self._stop(error) from error

    async def _pause(self, seconds: float) -> None:
        """Sleep, unless the run is stopped meanwhile."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
            raise RunStopped(str(self._stopped)) from self._stopped

    def _failed(self, cause: str, error: BackendError) -> Failed:
        self.stats.failed[cause] += 1
        # Half a character, as in words that were cut off, is none that Arrow takes.
        return Failed(cause, str(error).encode("utf-8", "replace").decode())

    def _count_failure(self, error: BackendError, answers_before: int) -> None:
        """Stop the run if nothing but failures has come back for long.

        A failure tells nothing about the server if another request was answered since its first
        attempt: what fails again and again comes to its end last. And a rerun asks for nothing but
        what failed before, so the more there is in the store, the more of that there may be.
        """
        if self._answers > answers_before:
            return
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= max(_FAILED_IN_A_ROW, self.stats.stored // 10):
            last = f"{self._failed_in_a_row} requests in a row failed; the last: {error}"
            raise self._stop(RunStopped(last)) from error

    def _stop(self, error: MMInstructError) -> RunStopped:
        """No more requests from here on."""
        if self._stopped is None:
            self._stopped = error
            self._stopping.set()
            self._saved.set()
            self._end.set_result(None)
            self._gate.close(RunStopped(str(error)))
        return RunStopped(str(self._stopped))

    async def _close(self, drain_s: float) -> None:
        self._stop(RunStopped("the run was stopped"))
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
        while self._unsaved and drain_s > 0:  # and the disk, to be counted
            await asyncio.sleep(0.01)
        tasks = {task for task in self._tasks if not task.done()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._close_servers()

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def _run_loop(self) -> None:
        self._loop.run_forever()
        close_loop(self._loop)

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


def close_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what is left on a loop that doesn't run, and close it."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left))
    loop.close()


# The open ones. They know nothing of who uses them, so a stream is garbage all the same.
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


@dataclass(slots=True)
class _Tries:
    """The attempts at a request.

    Attributes:
        answers_before: answers that had come when it was first sent.
        wanted: tokens that its answer has to have room for.
        sent: attempts.
        retries: attempts after a failure that may be the request's own.
        timeouts: of all of them.
        gone: servers that didn't answer it, since the last of those.
        refused_by: the server that refused the last one for now, if that is how it ended.
        in_vain: whether a gateway waited for the last one's answer in vain, which may be paid for.
        failed_by: cause of the last failure.
        alike: failures of the same cause, up to it.
        is_over: whether it was the last attempt.
    """

    answers_before: int
    wanted: int
    sent: int = 0
    retries: int = 0
    timeouts: int = 0
    gone: set[int] = field(default_factory=set)
    refused_by: int | None = None
    in_vain: bool = False
    failed_by: str = ""
    alike: int = 0
    is_over: bool = False


def _is_its_own(error: TransientError, attempts: _Tries) -> bool:
    """Whether what failed has failed often enough, where others are answered meanwhile."""
    if attempts.timeouts:
        return attempts.timeouts >= _TIMEOUTS - 1
    return error.cause in _SAME_AGAIN and attempts.alike >= _OWN_TRIES


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


def _used_up_s(told: Quotas) -> float | None:
    """Seconds until there is any of an allowance again that is used up for hours, else None.

    Of shorter ones the server refills some all the time.
    """
    used_up = (q for q in (told.requests, told.tokens) if q is not None and q.remaining < 1)
    return max((q.reset_s for q in used_up if q.reset_s > LONGEST_WAIT_S), default=None)


def too_long_a_pause(error: TransientError) -> RunStopped:
    """What a run ends with whose server asks for hours."""
    wait_s = error.retry_after_s or 0.0
    return RunStopped(
        f"{error}; the server asks for a pause of {wait_s / 3600:.1f} hours, until "
        f"{until(wait_s)}; --max_pause {math.ceil(wait_s)} waits for it"
    )
