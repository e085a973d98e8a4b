"""Answers through OpenAI's Batch API: half the price, within a day, without a request sent twice.

Requests that the store lacks go up as files, the server makes batches of them, and what comes back
lands in the store; after that the usual run finds all of it there. `state` has the table of a
batch's states. What submits or collects does so under a file lock; the wait between two looks
doesn't hold it. So several runs, of the same requests too, share their batches.

Where a run has a bound, requests go up as far as their worst cases fit, those that an earlier run
left under way included. What their answers leave of it goes into further batches, until the bound
is nearly reached: a batch of a few requests may take hours, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mminstruct.backends.openai import OpenAIBackend
from mminstruct.completions.batch_api.collecting import Collector
from mminstruct.completions.batch_api.drafts import Limits
from mminstruct.completions.batch_api.journal import Journal
from mminstruct.completions.batch_api.server import Server
from mminstruct.completions.batch_api.state import Costs, Queue, Run
from mminstruct.completions.batch_api.submitting import Submitter
from mminstruct.completions.budget import Budget
from mminstruct.completions.job import Failed, Job
from mminstruct.completions.stats import Stats
from mminstruct.completions.store import ResponseStore
from mminstruct.errors import RunStopped
from mminstruct.transport import RetryPolicy

_log = logging.getLogger(__name__)


def answer(
    jobs: Callable[[], Iterator[Job]],
    backend: OpenAIBackend,
    store_path: Path,
    *,
    policy: RetryPolicy,
    limits: Limits,
    stats: Stats,
    budget: Budget | None = None,
) -> dict[bytes, Failed]:
    """The failures by response key, once all other requests have their answers in the store.

    Args:
        jobs: starts an iterator over all requests, in an order that never changes.
        backend: not yet opened.
        store_path: of the response store; the journal lies beside it.
        policy: retries.
        limits: of the provider.
        stats: where to count.
        budget: what the run may ask for, at the prices of the Batch API.

    Raises:
        BackendError: the server can't be reached, or has no Batch API.
        RunStopped: the budget is used up, nothing at all was answered, or the account has no
            credit.
        StoreError: store or journal can't be written.
    """
    started: Future[Callable[[], object]] = Future()

    async def work() -> dict[bytes, Failed]:
        task: Any = asyncio.current_task()
        started.set_result(partial(task.get_loop().call_soon_threadsafe, task.cancel))
        stats.started_s = time.monotonic()
        server, costs = Server(backend, policy, limits, stats), Costs(budget)
        journal = Journal(store_path.with_name(f"{store_path.name}.batches"))
        with ResponseStore(store_path) as store, journal:
            run = Run(server, store, journal, limits, stats, costs, Queue(limits.requests))
            async with backend:
                await _go_through(run, jobs)
        if costs.at_bound and costs.budget is not None:
            raise RunStopped(costs.budget.reached("another batch would exceed or nearly reach"))
        if run.failures and not stats.stored + stats.answered:
            last = next(reversed(run.failures.values()))
            if not last.rejected:
                raise RunStopped(f"no request was answered; one of the failures: {last.message}")
        return run.failures

    # A thread of its own: a notebook runs an event loop in this one, and an interrupt would hit
    # the loop between any two of its steps.
    with ThreadPoolExecutor(1, thread_name_prefix="batch") as thread:
        future = thread.submit(asyncio.run, work())
        try:
            return future.result()
        except BaseException:
            if not future.done():
                started.result()()  # cancel it; batches go on at the server
            raise


async def _go_through(run: Run, jobs: Callable[[], Iterator[Job]]) -> None:
    """Submit, wait and collect until a look at all requests finds none left to wait for.

    What was refused as too long is submitted in its next length, so there may be several rounds;
    what failed is left to the next run.
    """
    others, where = len(run.server.backend.endpoints) - 1, run.server.identity["endpoint"]
    if others:
        _log.info(f"batches go to {where} alone, not to the {others} other URLs")
    collector, started_s, changed = Collector(run), time.monotonic(), True
    try:
        while True:
            async with _hold_lock(run):
                changed |= await collector.look()
                if changed:
                    await Submitter(run).submit(jobs())
                    changed = False
                await collector.clean_up()
            if not run.open and not run.queue.held_back:
                return
            # A batch that takes hours needs no look every other second.
            elapsed_s = time.monotonic() - started_s
            await asyncio.sleep(min(run.limits.poll_s, max(2.0, elapsed_s / 10)))
            changed |= run.queue.held_back and not run.open
    except BaseException:
        if rows := [row for row in run.journal.rows(run.open) if row.batch_id]:
            _log.warning(
                f"{sum(row.requests for row in rows):,} requests go on at the provider. Run the "
                "same command again for their answers. To cancel a batch: curl -X POST -H "
                f'"Authorization: Bearer $OPENAI_API_KEY" {where}/batches/ID/cancel with one of '
                f"{', '.join(str(row.batch_id) for row in rows)}"
            )
        raise
    finally:
        run.stats.waiting_for = ()


@contextlib.asynccontextmanager
async def _hold_lock(run: Run) -> AsyncIterator[None]:
    lock = FileLock(f"{run.journal.path}.lock")
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            run.stats.waiting_for = ("another run is at its batches",)
            await asyncio.sleep(min(1.0, run.limits.poll_s))
    try:
        yield
    finally:
        lock.release()
