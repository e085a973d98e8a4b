"""Rows by way of Ray: on each node, or GPU, of a cluster an actor asks for ranges of the requests.

Ray Data deals out the ranges, starts actors that died again, and puts the results in order. Answers
are kept by one more actor, on the machine where the run was started: in the run's own response
store. An answer counts once it is on that disk, and what is there is asked for by nobody. So
whatever dies, with its disk or without, an actor loses no more than what it had in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import math
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from mminstruct import backends
from mminstruct.backends import BackendOptions, Remote
from mminstruct.completions.buckets import Rates
from mminstruct.completions.budget import Budget, Spent
from mminstruct.completions.client import Client
from mminstruct.completions.stats import Stats
from mminstruct.completions.store import Lengths, ResponseStore, Scope
from mminstruct.errors import MMInstructError, RunStopped, StoreError, to_tell
from mminstruct.recipe import Recipe
from mminstruct.rows.columns import RESULT_SCHEMA
from mminstruct.rows.mapping import complete, run_in_thread
from mminstruct.rows.plan import Plan
from mminstruct.schema import Completion
from mminstruct.transport import RetryPolicy

_CALLS = 8  # ranges that an actor has in hand, so that the slow answers of one hold up no other
_LEAST_RANGE = 32
_COUNTED = (
    *("stored", "answered", "sent", "retries", "rejected", "failed"),
    *("prompt_tokens", "completion_tokens"),
)


@dataclass(frozen=True, slots=True)
class _Work:
    """What an actor has to know.

    Attributes:
        plan: as for rows that are made in this process.
        backend: its name.
        options: the backend's, with one actor's share of what may be in flight.
        identity: that the backend must have on each node.
        policy: retries.
        rates: one actor's share of what may be sent a minute.
        bounded: whether the run has a budget.
        types: how many requests of each instruction type one actor is to expect.
    """

    plan: Plan
    backend: str
    options: BackendOptions
    identity: Mapping[str, str]
    policy: RetryPolicy
    rates: Rates
    bounded: bool
    types: Mapping[str, int]


class _Desk:
    """What all actors share, an actor itself: the run's store, its budget, counts, and its end."""

    def __init__(self, store: Path, budget: Budget) -> None:
        self._store, self._budget = ResponseStore(store), budget
        self._counts: dict[str, dict[str, Any]] = {}
        self._end = asyncio.Event()
        self._why: BaseException | None = None

    async def open(self) -> None:
        self._store.__enter__()

    async def close(self) -> None:
        self._store.__exit__(None, None, None)

    async def store(self, method: str, *args: Any) -> Any:
        found = getattr(self._store, method)(*args)
        return await found if inspect.isawaitable(found) else found

    async def budget(self, method: str, *args: Any) -> Any:
        found = getattr(self._budget, method)
        return found(*args) if callable(found) else found

    async def count(self, actor: str, counts: dict[str, Any]) -> None:
        self._counts[actor] = counts

    async def counts(self) -> list[dict[str, Any]]:
        return list(self._counts.values())

    async def end(self, why: BaseException) -> None:
        """Have all actors send nothing more; the first reason counts."""
        self._why = self._why or why
        self._end.set()

    async def why(self) -> BaseException | None:
        """Why the run ends, if it does."""
        return self._why

    async def ended(self) -> BaseException | None:
        """`why`, as soon as it ends."""
        await self._end.wait()
        return self._why


@contextlib.contextmanager
def _unwrapped() -> Iterator[None]:
    """Raise an error of the desk as it was there; none of it is left where the desk is gone."""
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise StoreError(
            f"the response store is out of reach, on the machine of the run: {error}; what it has "
            "is kept, run the same command again"
        ) from error


def _ask(method: Any, *args: Any) -> Any:
    """What a method of an actor gives."""
    import ray

    with _unwrapped():
        return ray.get(method.remote(*args))


class _Store:
    """The run's store, from elsewhere."""

    def __init__(self, desk: Any) -> None:
        self._desk = desk

    def __enter__(self) -> _Store:
        return self

    def __exit__(self, *raised: object) -> None: ...

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Completion]:
        found: dict[bytes, Completion] = _ask(self._desk.store, "get_many", keys)
        return found

    def lengths(self, scope: Scope) -> Lengths:
        found: Lengths = _ask(self._desk.store, "lengths", scope)
        return found

    def lower_limits(self, scope: Scope) -> list[int]:
        found: list[int] = _ask(self._desk.store, "lower_limits", scope)
        return found

    async def put(self, key: bytes, completion: Completion, scope: Scope | None = None) -> None:
        with _unwrapped():
            await self._desk.store.remote("put", key, completion, scope)


class _Budget(Budget):
    """The run's budget, from elsewhere."""

    def __init__(self, desk: Any) -> None:
        bounds = (_ask(desk.budget, name) for name in ("max_requests", "max_cost_usd"))
        prices = (_ask(desk.budget, f"usd_per_{kind}_token") for kind in ("prompt", "completion"))
        super().__init__(*bounds, *prices)
        self._desk = desk

    @property
    def spent(self) -> Spent:
        found: Spent = _ask(self._desk.budget, "spent")
        return found

    def admit(self, most_usd: float) -> bool:
        return bool(_ask(self._desk.budget, "admit", most_usd))

    def settle(self, most_usd: float, paid_usd: float | None) -> None:
        _ask(self._desk.budget, "settle", most_usd, paid_usd)


class _Asker:
    """An actor of Ray Data: requests in, results out; nothing once the run ends."""

    def __init__(self, work: _Work, desk: Any) -> None:
        self._work, self._desk = work, desk
        self._name, self._stats = uuid.uuid4().hex, Stats()
        self._is_over = False
        self._client: Client
        # Whoever opens a client has to close it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="client")
        self._thread.submit(self._open).result()

    def _open(self) -> None:
        work, desk = self._work, self._desk
        try:
            self._client = Client(
                backends.create_again(work.backend, work.options, work.identity),
                _Store(desk),
                policy=work.policy,
                stats=self._stats,
                rates=work.rates,
                budget=_Budget(desk) if work.bounded else None,
            )
            self._client.__enter__()
        except MMInstructError as error:
            self._is_over = True
            _ask(desk.end, to_tell(error))
        else:
            self._client.row_rules.expect(work.types)
            self._client.start(self._listen())

    async def _listen(self) -> None:
        with contextlib.suppress(StoreError), _unwrapped():  # whoever stores meets it, too
            await self._desk.ended.remote()
        self._client.stop()

    async def __call__(self, requests: pa.Table) -> pa.Table:
        try:
            if not self._is_over:
                return await complete(requests, self._work.plan, self._client)
        except MMInstructError as error:
            self._is_over = True
            await self._desk.end.remote(to_tell(error))
            await asyncio.wrap_future(self._thread.submit(self._close))
        finally:
            counts = {name: getattr(self._stats, name) for name in _COUNTED}
            await self._desk.count.remote(self._name, counts)
        return RESULT_SCHEMA.empty_table()

    def _close(self) -> None:
        """Wait for the answers in flight, as long as a run in one process does."""
        why = _ask(self._desk.why)
        self._client.__exit__(type(why), why, None)


@contextlib.contextmanager
def _connect() -> Iterator[None]:
    """Ray, as the environment says or as the caller has it; started here, it is stopped here."""
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(logging_level=logging.WARNING, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def map_requests(
    requests: datasets.Dataset,
    plan: Plan,
    recipe: Recipe,
    *,
    policy: RetryPolicy,
    budget: Budget,
    stats: Stats,
    cache_file: Path,
) -> datasets.Dataset:
    """The results of all requests, in their order, as `rows.mapping.map_requests` gives them.

    Args:
        requests: as `rows.requests.requests_dataset` has them.
        plan: for rows.
        recipe: what answers.
        policy: retries.
        budget: of the run; its ledger is read on this machine.
        stats: where to count, once a range is done.
        cache_file: where the results are written.

    Raises:
        RunStopped: the run can't go on. What was answered is in the store.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    with _connect():
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        desk = ray.remote(_Desk).options(num_cpus=0, scheduling_strategy=here)
        desk = desk.remote(recipe.store, budget)
        _ask(desk.open)
        try:
            ranges = _deal_out(requests, plan, recipe, policy, budget, desk)
            run_in_thread(
                lambda: _write(ranges, desk, stats, cache_file),
                lambda: _ask(desk.end, KeyboardInterrupt()),
            )
            why = _ask(desk.why)
        except ray.exceptions.RayError as error:
            raise RunStopped(f"ray: {error}; run the same command again to go on") from error
        finally:
            _ask(desk.close)
            ray.kill(desk)
        if why is not None:
            raise why
    return datasets.Dataset.from_file(str(cache_file))


def _deal_out(
    requests: datasets.Dataset,
    plan: Plan,
    recipe: Recipe,
    policy: RetryPolicy,
    budget: Budget,
    desk: Any,
) -> Any:
    """The results of all requests, as a `ray.data.Dataset` that is yet to be run."""
    import ray.data

    is_remote = isinstance(recipe.backend, Remote)
    gpus = 0 if is_remote else int(ray.cluster_resources().get("GPU", 0))
    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) >= 1]
    actors = max(1, gpus or len(nodes))
    types = Counter(requests["type"][:])
    work = _Work(
        plan,
        recipe.config.backend,
        recipe.config.backend_options(1 / actors),
        recipe.backend.identity(),
        policy,
        recipe.config.rates(1 / actors),
        budget.bounded,
        {kind: count // actors for kind, count in types.items()},
    )
    size = min(
        max(_LEAST_RANGE, work.options.max_concurrency),
        math.ceil(len(requests) / (_CALLS * actors)),
    )
    # What an actor that died had reserved of a budget, nobody gives back.
    again = 0 if budget.bounded else -1
    tables = list(requests.with_format("arrow").iter(size))
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # the import has set it
    found = ray.data.from_arrow(tables)
    found.context.execution_options.preserve_order = True
    found.context.enable_progress_bars = False
    return found.map_batches(
        _Asker,
        fn_constructor_args=(work, desk),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            size=min(actors, len(tables)), max_tasks_in_flight_per_actor=2 * _CALLS
        ),
        num_gpus=1 if gpus else None,
        ray_remote_args_fn=lambda: {
            "max_concurrency": _CALLS,
            "scheduling_strategy": "SPREAD",
            "max_restarts": again,
            "max_task_retries": again,
        },
    )


def _write(ranges: Any, desk: Any, stats: Stats, path: Path) -> None:
    """Run it, count, and write the results where the run hasn't ended before."""
    before = {name: getattr(stats, name) for name in _COUNTED}
    stats.started_s = stats.started_s or time.monotonic()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{uuid.uuid4().hex}")
    try:
        with pa.OSFile(str(unfinished), "wb") as file, pa.ipc.new_stream(file, RESULT_SCHEMA) as to:
            for table in ranges.iter_batches(batch_size=None, batch_format="pyarrow"):
                to.write_table(table.cast(RESULT_SCHEMA))
                counts = _ask(desk.counts)
                for name in _COUNTED:
                    setattr(stats, name, sum((one[name] for one in counts), before[name]))
        if _ask(desk.why) is None:
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
