"""Contexts -> requests -> completions -> rows, with `Dataset.map` or as a stream.

The contexts of a split become one Arrow file, written once. The requests of a run are that file's
rows, once for each instruction type and ordered by type, so that few-shot prefixes stay hot in
engines that cache them. Chunks of requests become rows on the client's event loop; they overlap,
and a slow answer holds up nobody. `Dataset.map` writes them in their order. The fingerprint of the
result is computed from what the rows depend on, never from pickled functions.
"""

from __future__ import annotations

import asyncio
import gc
import math
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets.iterable_dataset import ExamplesIterable

from mminstruct.completions.client import Client
from mminstruct.errors import UsageError
from mminstruct.rows.assembly import make_results
from mminstruct.rows.columns import RESULT
from mminstruct.rows.judging import ask
from mminstruct.rows.plan import Plan
from mminstruct.rows.requests import Chunk, jobs, read_chunk

_T = TypeVar("_T")

_MAX_CHUNK = 32
_STORED_CHUNK = 1000
_SAMPLE = 64
_MIN_WINDOW = 8
# Requests for each that the backend takes at once. A few slow answers keep it no less busy...
_UNDER_WAY = 8
# ... until so many later ones wait in memory to be written in order, 3 kB each.
_UNWRITTEN = 64


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


def window(requests: int, size: int) -> int:
    """Chunks that hold so many requests."""
    return max(_MIN_WINDOW, math.ceil(requests / size))


def map_requests(
    requests: datasets.Dataset, plan: Plan, client: Client, *, fingerprint: str, cache_file: Path
) -> datasets.Dataset:
    """The results of all requests, in their order, through `Dataset.map`.

    A result is a row, or the reason why there is none (column ``reason``).
    """
    cache_file.parent.mkdir(parents=True, exist_ok=True)
    size = chunk_size(requests, plan, client)
    results = _answer(requests, plan, client, size, _UNWRITTEN)
    map_all = partial(
        requests.with_format("arrow").map,
        lambda _: next(results),  # `map` asks chunk by chunk, in their order
        batched=True,
        batch_size=size,
        features=RESULT,
        remove_columns=requests.column_names,
        cache_file_name=str(cache_file),
        new_fingerprint=fingerprint,
    )
    with _look_for_garbage_less_often():
        mapped = run_in_thread(map_all, client.stop)
    return mapped.with_format(None)


# `_look_for_garbage_less_often` alone writes these, and holds the lock.
_maps = 0
_usual = (0, 0, 0)
_counting = threading.Lock()
# Objects that are made before the youngest are looked through.
_MADE_BETWEEN = 5_000  # more takes memory: 140 MB at 50,000


@contextmanager
def _look_for_garbage_less_often() -> Iterator[None]:
    """Leave out what is there now, in whichever threads maps run: it will stay.

    Requests come and go without a cycle. To look through all that as often as usual takes a fifth
    of a rerun from the store.
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
            if _maps == 0:
                gc.unfreeze()
                gc.set_threshold(*_usual)


def run_in_thread(work: Callable[[], _T], stop: Callable[[], None]) -> _T:
    """The result of some work in a thread of its own; whatever ends the wait stops the work.

    In this thread a KeyboardInterrupt would hit `map` between any two of its steps.
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


class WholeStream(ExamplesIterable):
    """The rows of a stream, which nobody takes a part of.

    Of what can't be dealt out `split_dataset_by_node` has each node take all, and keep one row of
    so many. It asks how many pieces there are when the first row is wanted.
    """

    @property
    def num_shards(self) -> int:
        """One.

        Raises:
            UsageError: several nodes would ask for all rows.
        """
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            nodes = getattr(frame.f_locals.get("self"), "_distributed", None)
            if nodes is not None and nodes.world_size > 1:
                raise UsageError(
                    f"split_dataset_by_node: each of {nodes.world_size} nodes would ask for all "
                    f"rows, and pay for them; give load_dataset shard=(rank, {nodes.world_size}) "
                    "instead"
                )
            frame = frame.f_back
        return 1

    def shuffle_data_sources(self, generator: Any) -> WholeStream:
        """The same: a single piece has no other order."""
        return self


def stream_requests(
    requests: datasets.Dataset, plan: Plan, client: Client
) -> Iterator[dict[str, Any]]:
    """The results of all requests, in their order, each as soon as those before it are there."""
    size = chunk_size(requests, plan, client)
    for table in _answer(requests, plan, client, size, _UNDER_WAY):
        yield from table.to_pylist()


def _answer(
    requests: datasets.Dataset, plan: Plan, client: Client, size: int, ahead: int
) -> Iterator[pa.Table]:
    """The results of all requests in their order, chunk by chunk.

    Args:
        requests: what to ask.
        plan: how.
        client: whom.
        size: of a chunk, requests.
        ahead: chunks that are begun before what was answered is taken, in requests for each that
            the backend takes at once.
    """
    _announce(requests, client)
    parallel = client.backend.parallel
    under_way = asyncio.Semaphore(window(_UNDER_WAY * parallel, size))
    reading = asyncio.Lock()

    async def complete_in_turn(table: pa.Table) -> pa.Table:
        async with under_way:
            async with reading:  # one by one, so that requests are sent meanwhile
                await asyncio.sleep(0)
                chunk = read_chunk(table, plan)
            return await complete(chunk, plan, client)

    begun = (
        client.start(complete_in_turn(table)) for table in requests.with_format("arrow").iter(size)
    )
    chunks = deque(islice(begun, window(ahead * parallel, size)))
    while chunks:
        results = chunks.popleft().result()
        chunks.extend(islice(begun, 1))
        yield results


async def complete(chunk: Chunk, plan: Plan, client: Client) -> pa.Table:
    """The results of some requests; on the client's loop."""
    return make_results(chunk, await ask(chunk, plan, client), plan, client)
