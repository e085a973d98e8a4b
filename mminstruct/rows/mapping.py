"""Contexts -> requests -> completions -> rows, with `Dataset.map` or as a stream.

The contexts of a split become one Arrow file, written once. The requests of a run are that file's
rows, once for each instruction type and ordered by type, so that few-shot prefixes stay hot in
engines that cache them. `Dataset.map` writes what came of them chunk by chunk, in their order;
chunks overlap, and a slow answer holds up nobody. The fingerprint of the result is computed from
what the rows depend on, never from pickled functions.
"""

from __future__ import annotations

import gc
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from mminstruct.completions.client import Client
from mminstruct.completions.job import Outcome
from mminstruct.rows.assembly import make_results
from mminstruct.rows.columns import RESULT
from mminstruct.rows.plan import Plan
from mminstruct.rows.requests import Chunk, jobs, read_chunk

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
    results = _answer(requests, plan, client, size)
    # `map` calls it chunk by chunk, in the order in which the results come.
    map_all = partial(
        requests.with_format("arrow").map,
        lambda table: next(results),
        batched=True,
        batch_size=size,
        features=RESULT,
        remove_columns=requests.column_names,
        cache_file_name=str(cache_file),
        new_fingerprint=fingerprint,
    )
    with _seldom_looking_for_garbage():
        mapped = _run_in_thread(map_all, client)
    return mapped.with_format(None)


# `_seldom_looking_for_garbage` alone writes these, and holds the lock.
_maps = 0
_usual = (0, 0, 0)
_counting = threading.Lock()
# Objects that are made before the youngest are looked through.
_MADE_BETWEEN = 5_000  # more takes memory: 140 MB at 50,000


@contextmanager
def _seldom_looking_for_garbage() -> Iterator[None]:
    """Leave what is there now out of it, and look through the rest less often.

    Requests come and go without a cycle: it would take a fifth of a rerun from the store, and a
    tenth of a run. Maps may run in several threads.
    """
    global _maps, _usual
    with _counting:
        _maps += 1
        if _maps == 1:
            _usual = gc.get_threshold()
            gc.freeze()
            gc.set_threshold(_MADE_BETWEEN, *_usual[1:])
    try:
        yield
    finally:
        with _counting:
            _maps -= 1
            if not _maps:
                gc.unfreeze()
                gc.set_threshold(*_usual)


def _run_in_thread(work: Callable[[], datasets.Dataset], client: Client) -> datasets.Dataset:
    """The result of some work in a thread of its own; whatever ends the wait ends the work.

    `map` runs an event loop. In this thread a notebook may run one already, and a KeyboardInterrupt
    would hit it between any two of its steps, after which `map` may wait for a task forever.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="map")
    future = thread.submit(work)
    try:
        return future.result()
    except BaseException:
        client.stop()
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
    for table in _answer(requests, plan, client, size, ahead):
        yield from table.to_pylist()


@dataclass(slots=True)
class _UnderWay:
    """A chunk that was submitted."""

    chunk: Chunk
    outcomes: Future[list[Outcome]]
    results: pa.Table | None = None


def _answer(
    requests: datasets.Dataset, plan: Plan, client: Client, size: int, ahead: float = math.inf
) -> Iterator[pa.Table]:
    """The results of all requests in their order, chunk by chunk.

    So many chunks are under way that a few slow answers keep the backend no less busy. What was
    answered meanwhile waits for those before it, of ``ahead`` chunks at most.
    """
    at_once = window(client.backend.parallel, size)
    left = requests.with_format("arrow").iter(size)
    table = next(left, None)
    chunks: deque[_UnderWay] = deque()
    answered: SimpleQueue[_UnderWay] = SimpleQueue()
    under_way = 0

    def is_full() -> bool:
        return table is None or under_way >= at_once or len(chunks) >= ahead

    while table is not None or chunks:
        if table is not None and not is_full():
            chunk = read_chunk(table, plan)
            new = _UnderWay(chunk, client.submit(chunk.jobs))
            new.outcomes.add_done_callback(partial(_pass_on, answered, new))
            chunks.append(new)
            under_way += 1
            table = next(left, None)
        while chunks and (is_full() or not answered.empty()):
            one = answered.get()
            under_way -= 1
            one.results = make_results(one.chunk, one.outcomes.result(), plan, client)
            while chunks and chunks[0].results is not None:
                yield chunks.popleft().results


def _pass_on(answered: SimpleQueue[_UnderWay], chunk: _UnderWay, _: Future[Any]) -> None:
    answered.put(chunk)
