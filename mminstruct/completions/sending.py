"""One request on its way to a server, through retries, limits and the budget, until it is answered.

A request that waits for its retry holds up nobody; when a server says Retry-After, nobody asks it
before. What a server that dies was asked goes to the others at once, and it is left out until it
answers again. No attempt is sent that could exceed the budget, whatever the answers in flight turn
out to cost, as long as max_tokens bounds what a model thinks, too. What a refusal says of a window
is kept in mind: prompts that are longer for sure aren't sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mminstruct.backends import Backend, Remote, rough_tokens
from mminstruct.completions.budget import Budget, price_usd, used_tokens, worst_case_usd
from mminstruct.completions.gate import Gate
from mminstruct.completions.job import Attempt
from mminstruct.completions.limiter import Sent
from mminstruct.completions.stats import Stats
from mminstruct.completions.stopping import (
    FAILED_AT_START,
    Ending,
    StopRules,
    too_long_a_pause,
)
from mminstruct.completions.store import ResponseStore, Scope
from mminstruct.errors import (
    BackendUnusable,
    ContextTooLong,
    RequestRefused,
    RunStopped,
    TransientError,
    Withheld,
)
from mminstruct.schema import Completion, Request
from mminstruct.transport import LONGEST_WAIT_S, Quotas, RetryPolicy, until

_log = logging.getLogger(__name__)

_CONNECTION_TRIES_AT_START = 3
# At the start, of what is the same at the next try, mostly.
_TRIES_AT_START = 2
_SAME_AGAIN = ("bad_body", "no_api", "http_500")
# Of a failure of one such cause, while others are answered.
_OWN_TRIES = 5
# Each of these may be paid for, and none of them more than the next one.
_TIMEOUTS = 3
# What is longer than a refused prompt by so much, in our count, is refused, too.
_SURELY = 1.05
_BUDGET_POLL_S = 0.05
# A server may have written, and charge for, an answer that didn't arrive.
MAYBE_PAID = ("timeout", "dropped", "bad_body", "unfinished")
# So may one behind a gateway that waited for it in vain; one that says so at once has no server.
_GATEWAY_TIMEOUTS = ("http_408", "http_504", "http_524")
# Not this request's fault, most likely.
_SERVER_GONE = ("unreachable", "dropped", "timeout", "unknown_here")


@dataclass(slots=True)
class Tries:
    """The attempts at a request."""

    answers_before: int  # that had come when it was first sent
    wanted: int  # tokens that its answer has to have room for
    sent: int = 0  # attempts
    retries: int = 0  # attempts after a failure that may be the request's own
    timeouts: int = 0  # of all of them
    gone: set[int] = field(default_factory=set)  # servers without an answer, since the last retry
    refused_by: int | None = None  # the server that refused the last one for now, if that is so
    in_vain: bool = False  # whether a gateway waited for the last one in vain: it may be paid for
    failed_by: str = ""  # cause of the last failure
    alike: int = 0  # failures of the same cause, up to it
    is_over: bool = False  # whether it was the last attempt


@dataclass(eq=False)
class Sender:
    """Sends requests to the servers of a run; on the client's loop alone.

    Attributes:
        servers: open, as the gate numbers them.
        gate: of these servers.
        parallel: answers that may wait for the disk; more hold back what is sent.
        policy: retries.
        stats: where to count.
        budget: None is no bound.
        rules: told what comes back.
        ending: of the run.
        unsaved: answers that are on their way to the disk.
    """

    servers: Sequence[Backend]
    gate: Gate
    parallel: int
    policy: RetryPolicy
    stats: Stats
    budget: Budget | None
    rules: StopRules
    ending: Ending
    unsaved: int = 0

    def __post_init__(self) -> None:
        self._remotes = [server if isinstance(server, Remote) else None for server in self.servers]
        self._saved = asyncio.Event()
        self._paying = asyncio.Lock()
        self._rng = random.Random()  # noqa: S311 (spreads retries, keeps no secret)
        self._unknown_at: set[int] = set()
        # Tokens, by our count, from which a prompt is too long for sure, by what its answer needs.
        self._too_long_from: dict[int, float] = {}
        self._why_too_long = ""
        self.ending.listeners += [self.gate.close, lambda _: self._saved.set()]

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Hold back what is sent while too many answers are being saved."""
        self.unsaved += 1
        try:
            yield
        finally:
            self.unsaved -= 1
            self._saved.set()

    def note_window(self, request: Request, wanted: int, error: ContextTooLong) -> None:
        """Keep in mind how long a prompt is that is too long for sure, by our own count."""
        if error.room is not None and error.room >= wanted:
            return
        tokens = float(rough_tokens(request.messages))
        if error.window is not None and error.room is not None:
            tokens *= (error.window - wanted) / (error.window - error.room)
        if _SURELY * tokens < self._too_long_from.get(wanted, math.inf):
            self._too_long_from[wanted] = _SURELY * tokens
            self._why_too_long = str(error)

    async def send(self, request: Request, tries: Tries) -> Completion:
        """The answer to a request, after as many attempts as it takes.

        Raises:
            RunStopped: the run has ended.
            RequestRefused: as a backend has it, which `ContextTooLong` is, too.
            TransientError: the last one.
        """
        too_long_from = self._too_long_from.get(tries.wanted)
        if too_long_from is not None and rough_tokens(request.messages) >= too_long_from:
            raise ContextTooLong(self._why_too_long)
        while True:
            try:
                completion = await self._pay(request, tries)
            except BackendUnusable as error:
                raise self.ending.stop(error) from error
            except ContextTooLong:
                raise
            except RequestRefused as error:
                self._count_failure(error, tries)
                raise
            except TransientError as error:
                wait_s = self._wait_s(error, tries)
            else:
                self.rules.count_answer()
                return completion
            self.stats.retries += 1
            self.stats.retried_for = tries.failed_by.removeprefix("http_").replace("_", " ")
            if wait_s > 0:
                await self.ending.pause(wait_s)

    async def pause(self, tries: Tries) -> None:
        """Count a retry, and wait for as long as before any other."""
        tries.retries += 1
        self.stats.retries += 1
        await self.ending.pause(self.policy.wait_s(tries.retries - 1, None, self._rng))

    def _count_failure(self, error: RequestRefused | TransientError, tries: Tries) -> None:
        end = self.rules.count_failure(error, tries.answers_before, self.stats.stored)
        if end is not None:
            raise self.ending.stop(end) from error

    def _wait_s(self, error: TransientError, tries: Tries) -> float:
        """Seconds before the next attempt; raises what a request that is given up ends with."""
        tries.alike = tries.alike + 1 if tries.failed_by == error.cause else 1
        tries.failed_by = error.cause
        if error.cause == "timeout" or tries.in_vain:
            tries.timeouts += 1
        is_gone = error.cause in _SERVER_GONE and tries.timeouts < _TIMEOUTS
        if is_gone and self.gate.others(tries.gone):
            return 0.0  # another server has not been asked yet
        retry_after_s, refused_by = error.retry_after_s, tries.refused_by
        if refused_by is not None and self.gate.resumes_s({refused_by}) <= LONGEST_WAIT_S:
            retry_after_s = None  # that server is paused anyway, and another one will take it
        if (retry_after_s or 0.0) > self.policy.max_pause_s:
            raise self.ending.stop(too_long_a_pause(error)) from error
        if retry_after_s is not None:
            paused_until_s = time.monotonic() + retry_after_s
            self.stats.paused_until_s = max(self.stats.paused_until_s, paused_until_s)
        tries.is_over = (
            tries.retries >= self.policy.max_retries
            or tries.timeouts >= _TIMEOUTS
            or (self.rules.answers > tries.answers_before and _is_its_own(error, tries))
        )
        if tries.is_over or (not self.rules.started and _is_enough(error, tries)):
            self._count_failure(error, tries)
            raise error
        tries.gone.clear()
        tries.retries += 1
        return self.policy.wait_s(tries.retries - 1, retry_after_s, self._rng)

    async def _pay(self, request: Request, tries: Tries) -> Completion:
        """One attempt, whose worst case is reserved until its price is known."""
        most_usd = await self._reserve(request)
        paid_usd: float | None = None
        try:
            tokens = 0.0
            if self.gate.counts_tokens:  # nearly; the answer tells exactly
                tokens = rough_tokens(request.messages) + request.sampling.max_tokens
            sent = await self.gate.enter(tokens=tokens, avoid=tries.gone, first=tries.sent > 0)
            try:
                completion = await self._ask(request, sent, tries)
                paid_usd = price_usd(self.budget, completion, most_usd)
            except TransientError as error:
                if error.cause in MAYBE_PAID or tries.in_vain:
                    paid_usd = most_usd
                raise
            except asyncio.CancelledError:
                paid_usd = most_usd
                raise
            return completion
        finally:
            if self.budget is not None:
                try:
                    self.budget.settle(most_usd, paid_usd)
                except RunStopped as error:  # the answer is still to be stored
                    self.ending.stop(error)

    async def _ask(self, request: Request, sent: Sent, tries: Tries) -> Completion:
        """The answer of the server that the gate chose, which hears of whatever comes of it."""
        stats, server = self.stats, self.servers[sent.server]
        if tries.sent == 0:
            tries.answers_before = self.rules.answers
        tries.sent += 1
        stats.sent += 1
        stats.in_flight += 1
        before = self._told(sent.server)
        cause, this = "not_sent", object()
        try:
            # A slow disk holds back what is sent: no more than this is lost if the machine dies.
            while self.unsaved >= self.parallel:
                self._saved.clear()
                await self._saved.wait()
                self.ending.check()
            begun_s, tries.refused_by, tries.in_vain = time.monotonic(), None, False
            stats.waiting_since_s[this] = begun_s
            completion = await server.complete(request)
        except TransientError as error:
            cause = error.cause
            waits_s = self.policy.gateway_waits_s
            tries.in_vain = cause in _GATEWAY_TIMEOUTS and time.monotonic() - begun_s >= waits_s
            if cause in _SERVER_GONE:
                tries.gone.add(sent.server)
            if cause == "http_429" or error.retry_after_s is not None:
                cause = ""
                tries.refused_by = sent.server
                told = self._told(sent.server)
                news = None if told is before else told
                if news is not None and error.retry_after_s is None:
                    error.retry_after_s = _used_up_s(news)
                self.gate.note_refusal(sent, error.retry_after_s, news)
            raise
        except Withheld as error:  # an answer, too, which would be the same again
            cause = ""
            self.gate.note_answer(sent, used=0.0)
            return Completion(error.words, "content_filter", 0, 0)
        except RequestRefused as error:
            if error.unknown_here and self._is_left_out(sent.server, error, tries):
                cause = "unknown_here"
                raise TransientError(str(error), cause=cause) from error
            cause = ""
            self.gate.note_answer(sent, used=0.0)
            raise
        else:
            cause = ""
            used, told = used_tokens(completion), self._told(sent.server)
            self.gate.note_answer(sent, used=used, quotas=None if told is before else told)
            if told is not None and len(self.servers) == 1:
                self._mind_allowance(told)
            return completion
        finally:
            stats.in_flight -= 1
            stats.waiting_since_s.pop(this, None)
            if cause:
                self.gate.note_failure(sent, cause)
            stats.held_by = self.gate.words()

    def _is_left_out(self, server: int, error: RequestRefused, tries: Tries) -> bool:
        """Whether others can answer what a server refused that doesn't know model or key."""
        if not self.gate.others({*tries.gone, server}):
            return False
        tries.gone.add(server)
        if server not in self._unknown_at:
            self._unknown_at.add(server)
            _log.warning("left out for now: %s", error)
        return True

    def _told(self, server: int) -> Quotas | None:
        """The allowances that a server told last."""
        remote = self._remotes[server]
        return remote.rate_limits if remote is not None else None

    def _mind_allowance(self, told: Quotas) -> None:
        """Stop the run where an allowance is used up for longer than it may pause."""
        used_up_s = _used_up_s(told) or 0.0
        if used_up_s > self.policy.max_pause_s:
            words = f"the server's allowance is used up until {until(used_up_s)}"
            self.ending.stop(RunStopped(f"{words}; --max_pause {used_up_s:.0f} waits for it"))

    async def _reserve(self, request: Request) -> float:
        """What the next attempt costs at most, in USD, once the budget has room for it."""
        budget = self.budget
        if budget is None:
            return 0.0
        most_usd = worst_case_usd(budget, self.servers[0], request)
        async with self._paying:
            while not self._admits(budget, most_usd):
                self.ending.check()
                if budget.is_used_up(most_usd):
                    raise self.ending.stop(RunStopped(budget.reached()))
                await self.ending.pause(_BUDGET_POLL_S)
        return most_usd

    def _admits(self, budget: Budget, most_usd: float) -> bool:
        try:
            return budget.admit(most_usd)
        except RunStopped as error:
            raise self.ending.stop(error) from error


@dataclass(eq=False)
class Start:
    """Sends requests one by one until one is answered; on the client's loop alone.

    A wrong key, an unknown model, a server that is down or one that is no such server thus ends the
    run after a few attempts instead of after thousands. A request that hangs holds up no other.
    Where the store holds answers of this model, the ones left may be those that fail for good, and
    only a server that can't be reached or that knows neither key nor model ends the run.

    Attributes:
        sender: sends them.
        store: open.
    """

    sender: Sender
    store: ResponseStore

    def __post_init__(self) -> None:
        self._rules = self.sender.rules
        self._whose: Attempt | None = None
        self._next: deque[tuple[Attempt, asyncio.Future[None]]] = deque()
        self._hanging = 0

    async def send(self, request: Request, attempt: Attempt) -> Completion:
        """As `Sender.send`, once it is this request's turn.

        One that is too long goes on in its shorter form. One that hangs, or fails as it may alone,
        lets others try before it goes on.
        """
        tries, loop = Tries(self._rules.answers, attempt.wanted), asyncio.get_running_loop()
        while not self._rules.started:
            if self._whose is None:
                self._whose = attempt
            elif self._whose is not attempt:
                turn = loop.create_future()
                self._next.append((attempt, turn))
                await turn
            if self._rules.started:
                break
            patience = loop.call_later(self.sender.policy.patience_s, self._lose_patience, attempt)
            try:  # what is too long keeps its turn
                completion = await self._send_first(request, attempt.scope, tries)
            finally:
                patience.cancel()
            # Once one is answered, none has to wait for whose turn it is.
            self.pass_on(self._whose if self._rules.started else attempt)
            if completion is not None:
                return completion
            await self.sender.pause(tries)
        self.pass_on(attempt)
        return await self.sender.send(request, tries)

    def pass_on(self, attempt: Attempt | None) -> None:
        """Let the next request try, or all once one is answered, if it was this one's turn."""
        if attempt is None or self._whose is not attempt:
            return
        self._whose = None
        while self._next and (self._whose is None or self._rules.started):
            after, turn = self._next.popleft()
            if not turn.done():  # cancelled
                self._whose = after
                turn.set_result(None)

    def _lose_patience(self, attempt: Attempt) -> None:
        """Let another request try beside one that hangs, but no herd of them."""
        if self._hanging < FAILED_AT_START - 1:
            self._hanging += 1
            self.pass_on(attempt)

    async def _send_first(
        self, request: Request, scope: Scope | None, tries: Tries
    ) -> Completion | None:
        """The answer of a request at the start, or None if it is to go on later."""
        try:
            completion = await self.sender.send(request, tries)
        except ContextTooLong:
            raise
        except (RequestRefused, TransientError) as error:
            if not self._rules.started:
                before = self._was_answered(scope)
                if self._rules.is_hopeless(error, before):
                    raise self.sender.ending.stop(error) from error
                self._rules.started = before
            if isinstance(error, TransientError) and not tries.is_over:
                return None
            raise
        self._rules.started = True
        return completion

    def _was_answered(self, scope: Scope | None) -> bool:
        """Whether this model answered such requests before: in another run, or another split."""
        stats = self.sender.stats
        if stats.stored or stats.answered:
            return True
        return scope is not None and self.store.lengths(scope).count > 0


def _is_enough(error: TransientError, tries: Tries) -> bool:
    """Whether a request at the start has been tried often enough to try another."""
    if error.cause == "timeout" or tries.in_vain:
        return True  # however often, each may be paid for
    if error.cause == "unreachable":
        return tries.retries + 1 >= _CONNECTION_TRIES_AT_START
    return error.cause in _SAME_AGAIN and tries.alike >= _TRIES_AT_START


def _is_its_own(error: TransientError, tries: Tries) -> bool:
    """Whether what failed has failed often enough, where others are answered meanwhile."""
    if tries.timeouts:
        return tries.timeouts >= _TIMEOUTS - 1
    return error.cause in _SAME_AGAIN and tries.alike >= _OWN_TRIES


def _used_up_s(told: Quotas) -> float | None:
    """Seconds until there is any of an allowance again that is used up for hours, else None.

    Of shorter ones the server refills some all the time.
    """
    used_up = (q for q in (told.requests, told.tokens) if q is not None and q.remaining < 1)
    return max((q.reset_s for q in used_up if q.reset_s > LONGEST_WAIT_S), default=None)
