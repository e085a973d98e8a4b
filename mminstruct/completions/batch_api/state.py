"""What a run of batches knows, and the states that a batch goes through.

Each step is in the journal before it is made, so that a killed run goes on from there.

========  ================  =====================  ================================================
state     journal has       written by             moves on
========  ================  =====================  ================================================
drafted   intent, requests  Submitter              its file goes up: uploaded; killed: forgotten
uploaded  + file_id         Submitter              about to be created: sent; killed: forgotten
sent      + sent_s          Submitter              the answer, or the server's list, names it: open;
                                                   in no list for ``settle_s``: forgotten
open      + batch_id        Submitter, Collector   it ends and every line is in the store: stored;
                                                   it had no room in the queue: forgotten
unread    the same          Collector, in          its files can't be had: the next run tries
                            ``Run.unread`` alone   again; gone for days: forgotten
stored    stored = 1        Collector              its files are deleted, or are kept: forgotten
========  ================  =====================  ================================================

A request of a forgotten batch that has no answer in the store is free to be submitted again.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from mminstruct.completions.batch_api.drafts import Limits
from mminstruct.completions.batch_api.journal import Journal
from mminstruct.completions.batch_api.server import Server
from mminstruct.completions.budget import Budget, price_usd, worst_case_usd
from mminstruct.completions.job import Failed
from mminstruct.completions.stats import Stats
from mminstruct.completions.store import ResponseStore, Scope
from mminstruct.schema import Completion, Request

_log = logging.getLogger(__name__)


class Costs:
    """The worst cases of the requests under way, counted in the budget; nothing without a bound.

    Attributes:
        budget: if it has a bound.
        at_bound: whether requests are left out because they don't fit.
    """

    def __init__(self, budget: Budget | None) -> None:
        self.budget = budget if budget is not None and budget.bounded else None
        self.at_bound = False
        self._most_usd: dict[bytes, float] = {}

    def reserve(self, key: bytes, request: Request, server: Server, *, sent: bool = False) -> bool:
        """Whether a request fits the budget, which counts its worst case from now on.

        Args:
            key: of the request.
            request: which is about to be submitted.
            server: which is to answer.
            sent: it was submitted before, so it counts whether it fits or not.
        """
        if self.budget is None or (sent and key in self._most_usd):
            return True
        self.release([key])  # it was under way, and came to nothing
        most_usd = worst_case_usd(self.budget, server.backend, request)
        if sent:
            self.budget.count(most_usd)
        elif not self.budget.admit(most_usd):
            return False
        self._most_usd[key] = most_usd
        return True

    def charge(self, key: bytes, completion: Completion | None = None) -> None:
        """Count what a request cost in place of its worst case, which it is if nobody knows."""
        if self.budget is not None and (most_usd := self._most_usd.pop(key, None)) is not None:
            price = price_usd(self.budget, completion, most_usd) if completion else most_usd
            self.budget.settle(most_usd, price)

    def release(self, keys: Iterable[bytes]) -> None:
        """Count requests no longer that cost nothing."""
        for key in keys:
            if self.budget is not None and (most_usd := self._most_usd.pop(key, None)) is not None:
                self.budget.settle(most_usd, None)


@dataclass(slots=True)
class Queue:
    """The provider's limit on enqueued tokens, as far as its refusals tell.

    Attributes:
        file_requests: most requests of a file.
        room: batches that it still takes; None while it has refused none.
        held_back: whether requests wait for room.
    """

    file_requests: int
    room: int | None = None
    held_back: bool = False


@dataclass
class Run:
    """What a run works with, and what it knows so far.

    Submitter and Collector change it; both run in the thread of the event loop. `stats` alone is
    read by another, which shows it.

    Attributes:
        server: the provider.
        store: of the answers.
        journal: of the batches.
        limits: of the provider.
        stats: where to count.
        costs: what is under way, in the budget.
        queue: room at the provider.
        open: intents of the batches to wait for.
        unread: intent -> why, of ended batches whose answers can't be had in this run.
        failures: why a request has no answer, by its key.
        scopes: where a request's length is counted, by its key.
    """

    server: Server
    store: ResponseStore
    journal: Journal
    limits: Limits
    stats: Stats
    costs: Costs
    queue: Queue
    open: set[str] = field(default_factory=set)
    unread: dict[str, Failed] = field(default_factory=dict)
    failures: dict[bytes, Failed] = field(default_factory=dict)
    scopes: dict[bytes, Scope | None] = field(default_factory=dict)

    def forget(self, intent: str) -> None:
        """Strike a batch out; its requests are free again."""
        self.journal.forget(intent)
        self.open.discard(intent)

    def meet_full_queue(self, keys: Collection[bytes]) -> None:
        """Go on with fewer tokens at a time: first of batches, then of requests in each."""
        if not self.open and len(keys) > 1:
            self.queue.file_requests = (len(keys) + 1) // 2
        if self.queue.room is None:
            _log.info("the provider's limit on enqueued tokens is reached; the rest goes up later")
        self.queue.room = 0
        self.hold_back(keys)

    def hold_back(self, keys: Iterable[bytes]) -> None:
        """Leave requests, and their share of the budget, to a later look."""
        self.queue.held_back, self.costs.at_bound = True, False
        self.costs.release(keys)
