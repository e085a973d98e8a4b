"""Which requests may go now, and to which of several servers."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from mminstruct.completions.buckets import Allowance, Rates
from mminstruct.completions.limiter import Limiter, Sent
from mminstruct.transport import Quotas


@dataclass(slots=True)
class _Waiter:
    let_out: asyncio.Future[Sent]
    tokens: float
    avoid: Collection[int]


class Gate:
    """Lets requests out to the servers with most room, in the order they came.

    To be used on one event loop.

    Args:
        limiters: one for each server.
        most: in flight at most, over all servers.
        rates: what may be sent a minute to all of them together.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        limiters: Sequence[Limiter],
        most: int,
        rates: Rates | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limiters, self._most, self._clock = limiters, most, clock
        self._allowance = Allowance(rates)
        self._waiting: deque[_Waiter] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_s = math.inf
        self._closed: Exception | None = None

    @property
    def in_flight(self) -> int:
        """Requests that were let out and have not come to an end."""
        return sum(limiter.in_flight for limiter in self._limiters)

    @property
    def counts_tokens(self) -> bool:
        """Whether it matters how many tokens a request may take."""
        return self._allowance.counts_tokens or any(x.counts_tokens for x in self._limiters)

    def words(self) -> str:
        """What holds requests back, for the progress line; empty if nothing does."""
        dead = sum(limiter.dead for limiter in self._limiters)
        if dead:
            return f"{dead} of {len(self._limiters)} servers out"
        now = self._clock()
        return next(filter(None, (limiter.words(now) for limiter in self._limiters)), "")

    def others(self, avoid: Collection[int]) -> bool:
        """Whether there are servers besides these that are not left out."""
        return any(not x.dead for n, x in enumerate(self._limiters) if n not in avoid)

    def resumes_s(self, avoid: Collection[int]) -> float:
        """Seconds for which all servers but these have to be left alone; infinite without any."""
        now = self._clock()
        others = (x for n, x in enumerate(self._limiters) if n not in avoid and not x.dead)
        return min((x.paused_s(now) for x in others), default=math.inf)

    async def enter(
        self, *, tokens: float = 0.0, avoid: Collection[int] = (), first: bool = False
    ) -> Sent:
        """Wait until a request may be sent, and to which server; tell of its end afterwards.

        Args:
            tokens: that prompt and answer may take together.
            avoid: servers to leave alone if there are others.
            first: whether to go before those who wait.

        Raises:
            Exception: what the gate was closed with.
        """
        if self._closed is not None:
            raise self._closed
        waiter = _Waiter(asyncio.get_running_loop().create_future(), tokens, avoid)
        if first:
            self._waiting.appendleft(waiter)
        else:
            self._waiting.append(waiter)
        if self._waiting[0] is waiter or self._waiting[0].avoid:
            self._let_out()
        try:
            return await waiter.let_out
        except asyncio.CancelledError:
            if waiter.let_out.done() and not waiter.let_out.cancelled():
                self.note_failure(waiter.let_out.result(), "not_sent")
            raise

    def close(self, error: Exception) -> None:
        """Let nothing out any more: whoever waits gets the error."""
        self._closed = error
        if self._timer is not None:
            self._timer.cancel()
        for waiter in self._waiting:
            if not waiter.let_out.done():
                waiter.let_out.set_exception(error)
        self._waiting.clear()

    def note_answer(self, sent: Sent, *, used: float | None, quotas: Quotas | None = None) -> None:
        """As `Limiter.note_answer` and `Limiter.note_quotas`."""
        self._limiters[sent.server].note_answer(sent, self._clock(), used=used)
        if used is not None:
            self._allowance.correct_tokens(used - sent.tokens)
        self._told(sent, quotas)

    def note_refusal(self, sent: Sent, retry_after_s: float | None, quotas: Quotas | None) -> None:
        """As `Limiter.note_refusal` and `Limiter.note_quotas`."""
        self._limiters[sent.server].note_refusal(sent, self._clock(), retry_after_s)
        self._told(sent, quotas)

    def _told(self, sent: Sent, quotas: Quotas | None) -> None:
        if quotas is not None:
            self._limiters[sent.server].note_quotas(self._clock(), quotas)
        self._let_out()

    def note_failure(self, sent: Sent, cause: str) -> None:
        """As `Limiter.note_failure`."""
        self._limiters[sent.server].note_failure(sent, self._clock(), cause)
        self._let_out()

    def _let_out(self) -> None:
        now = self._clock()
        # Whoever avoids servers and waits for others holds up nobody who doesn't.
        passed: list[_Waiter] = []
        while self._waiting:
            waiter = self._waiting[0]
            if waiter.let_out.done():  # cancelled
                self._waiting.popleft()
                continue
            server, wait_s = self._choose(now, waiter)
            shared_s = self._allowance.wait_s(now, waiter.tokens)
            if self.in_flight >= self._most:
                shared_s = math.inf
            if max(wait_s, shared_s) > 0:
                self._wake_at(now, now + max(wait_s, shared_s))
                # What all share would never suffice for one that is passed over.
                if not waiter.avoid or shared_s > 0 or len(self._limiters) == 1:
                    break
                passed.append(self._waiting.popleft())
                continue
            self._waiting.popleft()
            self._allowance.take(waiter.tokens)
            waiter.let_out.set_result(self._limiters[server].note_sent(now, waiter.tokens, server))
        self._waiting.extendleft(reversed(passed))

    def _choose(self, now: float, waiter: _Waiter) -> tuple[int, float]:
        """The server to send a request to, and seconds until that takes it."""
        every = range(len(self._limiters))
        servers = [n for n in every if n not in waiter.avoid] or every
        waits = {n: self._limiters[n].wait_s(now, waiter.tokens) for n in servers}
        server = min(servers, key=lambda n: (waits[n], -self._limiters[n].room))
        return server, waits[server]

    def _wake_at(self, now: float, when_s: float) -> None:
        """Look again then, or before; loops differ in what their timers tell."""
        if when_s >= self._wakes_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_s = when_s
        self._timer = asyncio.get_running_loop().call_later(when_s - now, self._wake)

    def _wake(self) -> None:
        self._wakes_s = math.inf
        self._let_out()
