"""Contexts -> requests -> completions -> rows, with `Dataset.map` or as a stream.

The contexts of a split become one Arrow file, written once. The requests of a run are that file's
rows, once for each instruction type and ordered by type, so that few-shot prefixes stay hot in
engines that cache them. An async `Dataset.map` turns chunks of requests into rows; chunks
overlap, and a slow answer holds up nobody. The fingerprint of the result is computed from what the
rows depend on, never from pickled functions.
"""

from __future__ import annotations

import asyncio
import gc
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from mminstruct.completions.client import Client, close_loop
from mminstruct.rows.assembly import make_results
from mminstruct.rows.columns import RESULT
from mminstruct.rows.judging import ask
from mminstruct.rows.plan import Plan
from mminstruct.rows.requests import jobs, read_chunk

_T = TypeVar("_T")

_MAX_CHUNK = 32
_STORED_CHUNK = 1000
_SAMPLE = 64
_MIN_WINDOW = 8


def chunk_size(requests: datasets.Dataset, plan: Plan, client: Client) -> int:
    """Requests that one call of the mapped function handles.

    Each costs a hop between threads, a table and some bookkeeping, so a chunk holds several; but
    not so many that one slow answer keeps many finished ones waiting. Where the store seems to
    hold all answers there is nothing to wait for.
    """
    sample = {len(requests) * part // _SAMPLE for part in range(_SAMPLE)} if len(requests) else ()
    if client.has_answers(list(jobs(requests.select(sorted(sample)), plan))):
        return _STORED_CHUNK
    return max(1, min(_MAX_CHUNK, client.backend.parallel // 8))


def _announce(requests: datasets.Dataset, client: Client) -> None:
    """Tell the client how many requests of each instruction type are to come."""
    types = requests.select_columns("type").with_format("arrow")[:].column("type")
    client.row_rules.expect(
        {kind["values"]: kind["counts"] for kind in pc.value_counts(types).to_pylist()}
    )


def window(parallel: int, size: int) -> int:
    """Chunks under way at once: enough to keep the backend busy behind a few slow answers."""
    return max(_MIN_WINDOW, math.ceil(8 * parallel / size))


def map_requests(
    requests: datasets.Dataset, plan: Plan, client: Client, *, fingerprint: str, cache_file: Path
) -> datasets.Dataset:
    """The results of all requests, in their order, through `Dataset.map`.

    A result is a row, or the reason why there is none (column ``reason``).
    """
    cache_file.parent.mkdir(parents=True, exist_ok=True)
    _announce(requests, client)
    size = chunk_size(requests, plan, client)
    under_way = asyncio.Semaphore(window(client.backend.parallel, size))
    loops: set[asyncio.AbstractEventLoop] = set()

    async def complete_here(table: pa.Table) -> pa.Table:
        loops.add(asyncio.get_running_loop())
        async with under_way:
            return await complete(table, plan, client)

    map_all = partial(
        requests.with_format("arrow").map,
        complete_here,
        batched=True,
        batch_size=size,
        features=RESULT,
        remove_columns=requests.column_names,
        cache_file_name=str(cache_file),
        new_fingerprint=fingerprint,
    )
    # What is there now will stay. Looking through it for garbage, again and again while requests
    # come and go, would take a fifth of a rerun from the store.
    gc.freeze()
    try:
        with _allow_tasks(len(requests) // size + 2):
            mapped = run_in_thread(map_all, client.stop)
    finally:
        gc.unfreeze()
        for loop in loops:
            close_loop(loop)  # `map` makes one and leaves it open
    return mapped.with_format(None)


# `_allow_tasks` alone writes these, in the threads of all maps that run, and holds the lock.
_bounds: list[int] = []
_usual_bound = 0
_bounding = threading.Lock()


@contextmanager
def _allow_tasks(tasks: int) -> Iterator[None]:
    """Let `map` have so many tasks at once, in whichever threads it runs.

    At its own bound it spins: it waits for the first of all its tasks, done ones included. So the
    bound is ours, and a task that waits for it holds a slice of a memory-mapped table.
    """
    global _usual_bound
    config = datasets.config
    with _bounding:
        if not _bounds:
            _usual_bound = config.MAX_NUM_RUNNING_ASYNC_MAP_FUNCTIONS_IN_PARALLEL
        _bounds.append(tasks)
        config.MAX_NUM_RUNNING_ASYNC_MAP_FUNCTIONS_IN_PARALLEL = max(_bounds)
    try:
        yield
    finally:
        with _bounding:
            _bounds.remove(tasks)
            most = max(_bounds, default=_usual_bound)
            config.MAX_NUM_RUNNING_ASYNC_MAP_FUNCTIONS_IN_PARALLEL = most


def run_in_thread(work: Callable[[], _T], stop: Callable[[], None]) -> _T:
    """The result of some work in a thread of its own; whatever ends the wait stops the work.

    `map` runs an event loop. In this thread a notebook may run one already, and a KeyboardInterrupt
    would hit it between any two of its steps, after which `map` may wait for a task forever.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="map")
    future = thread.submit(work)
    try:
        return future.result()
    except BaseException:
        stop()
        raise
    finally:
        _join(thread)


def _join(thread: ThreadPoolExecutor) -> None:
    """Wait for the end of what it does, also when interrupted meanwhile: it takes no time."""
    interrupt = None
    while True:
        try:
            thread.shutdown()
            break
        except KeyboardInterrupt as again:
            interrupt = again
    if interrupt is not None:
        raise interrupt


def stream_requests(
    requests: datasets.Dataset, plan: Plan, client: Client
) -> Iterator[dict[str, Any]]:
    """The results of all requests, in their order, each as soon as those before it are there."""
    _announce(requests, client)
    size = chunk_size(requests, plan, client)
    ahead = window(client.backend.parallel, size)
    under_way: deque[Future[pa.Table]] = deque()
    for table in requests.with_format("arrow").iter(size):
        under_way.append(client.start(complete(table, plan, client)))
        while under_way and (len(under_way) >= ahead or under_way[0].done()):
            yield from under_way.popleft().result().to_pylist()
    while under_way:
        yield from under_way.popleft().result().to_pylist()


async def complete(table: pa.Table, plan: Plan, client: Client) -> pa.Table:
    """The results of some requests."""
    chunk = read_chunk(table, plan)
    return make_results(chunk, await ask(chunk, plan, client), plan, client)
