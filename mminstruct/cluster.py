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
import signal
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from mminstruct import backends
from mminstruct.backends import Backend, Remote
from mminstruct.completions.budget import Budget, Spent
from mminstruct.completions.client import Client
from mminstruct.completions.stats import Stats
from mminstruct.completions.store import ResponseStore
from mminstruct.errors import MMInstructError, RunStopped, StoreError, to_tell
from mminstruct.recipe import Recipe
from mminstruct.rows.columns import RESULT_SCHEMA
from mminstruct.rows.mapping import complete, run_in_thread
from mminstruct.rows.plan import Plan
from mminstruct.rows.requests import read_chunk
from mminstruct.transport import RetryPolicy

_CALLS = 8  # ranges that an actor has in hand, so that the slow answers of one hold up no other
_COUNTED = (
    *("stored", "answered", "sent", "retries", "rejected", "failed"),
    *("prompt_tokens", "completion_tokens"),
)


class _Desk:
    """What all actors share, an actor itself: the run's store, its budget, counts, and its end."""

    def __init__(self, store: Path, budget: Budget) -> None:
        self.store, self.budget = ResponseStore(store), budget
        self.counts: dict[str, dict[str, Any]] = {}
        self.why: BaseException | None = None
        self._reserved: defaultdict[str, list[float]] = defaultdict(list)
        self._over = asyncio.Event()

    async def open(self) -> None:
        self.store.__enter__()

    async def close(self) -> None:
        self.store.__exit__(None, None, None)

    async def ask(self, name: str, *args: Any) -> Any:
        """What an attribute is, or gives for some arguments: ``why``, or ``store.put``."""
        found: Any = self
        for part in name.split("."):
            found = getattr(found, part)
        found = found(*args) if callable(found) else found
        return await found if inspect.isawaitable(found) else found

    async def begin(self, actor: str, parallel: int) -> None:
        """Take for paid what an actor had in flight when it died; a new one has its id.

        Of what it had reserved that is no more than what it sends at once; the rest waited.
        """
        for number, most_usd in enumerate(sorted(self._reserved.pop(actor, ()), reverse=True)):
            self.budget.settle(most_usd, most_usd if number < parallel else None)

    async def admit(self, actor: str, most_usd: float) -> bool:
        is_in = self.budget.admit(most_usd)
        self._reserved[actor] += [most_usd] * is_in
        return is_in

    async def settle(self, actor: str, most_usd: float, paid_usd: float | None) -> None:
        self._reserved[actor].remove(most_usd)
        self.budget.settle(most_usd, paid_usd)

    async def count(self, actor: str, counts: dict[str, Any]) -> None:
        self.counts[actor] = counts

    async def end(self, why: BaseException) -> None:
        """Have all actors send nothing more; the first reason counts."""
        self.why = self.why or why
        self._over.set()

    async def wait(self) -> None:
        """Return once the run ends before its time."""
        await self._over.wait()


@contextlib.contextmanager
def _unwrapped() -> Iterator[None]:
    """Raise an error of the desk as it was there, or that there is no desk."""
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


def _ask(desk: Any, name: str, *args: Any) -> Any:
    import ray

    with _unwrapped():
        return ray.get(desk.ask.remote(name, *args))


class _Store:
    """The run's store, from elsewhere: what it is asked, the desk is asked."""

    def __init__(self, desk: Any) -> None:
        self._desk = desk

    def __enter__(self) -> _Store:
        return self

    def __exit__(self, *raised: object) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return partial(_ask, self._desk, f"store.{name}")

    async def put(self, *answer: Any) -> None:
        """As the store's own, without a pause for all other work."""
        with _unwrapped():
            await self._desk.ask.remote("store.put", *answer)


class _Budget(Budget):
    """The run's budget, from elsewhere."""

    desk: Any
    actor: str

    @property
    def spent(self) -> Spent:
        found: Spent = _ask(self.desk, "budget.spent")
        return found

    def admit(self, most_usd: float) -> bool:
        return bool(_ask(self.desk, "admit", self.actor, most_usd))

    def is_used_up(self, most_usd: float) -> bool:
        return bool(_ask(self.desk, "budget.is_used_up", most_usd))

    def settle(self, most_usd: float, paid_usd: float | None) -> None:
        _ask(self.desk, "settle", self.actor, most_usd, paid_usd)


class _Asker:
    """An actor of Ray Data: requests in, results out; nothing once the run ends."""

    def __init__(
        self,
        desk: Any,
        plan: Plan,
        make_backend: Callable[[], Backend],
        make_client: Callable[..., Client],
        budget: Budget,
        types: Mapping[str, int],
    ) -> None:
        import ray

        self._desk, self._plan, self._name, self._stats = desk, plan, uuid.uuid4().hex, Stats()
        self._is_over = False
        self._client: Client
        bound = (budget.max_requests, budget.max_cost_usd)
        mine = _Budget(*bound, budget.usd_per_prompt_token, budget.usd_per_completion_token)
        mine.desk, mine.actor = desk, ray.get_runtime_context().get_actor_id()
        # Whoever opens a client has to close it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="client")

        def open_client() -> None:
            try:
                self._client = make_client(
                    make_backend(), _Store(desk), stats=self._stats, budget=mine
                ).__enter__()
            except MMInstructError as error:
                self._is_over = True
                _ask(desk, "end", to_tell(error))
            else:
                _ask(desk, "begin", mine.actor, self._client.backend.parallel)
                self._client.row_rules.expect(types)
                self._client.start(self._listen())

        self._thread.submit(open_client).result()

    async def _listen(self) -> None:
        with contextlib.suppress(StoreError), _unwrapped():  # whoever stores meets it, too
            await self._desk.wait.remote()
        self._client.stop()

    async def __call__(self, requests: pa.Table) -> pa.Table:
        try:
            if not self._is_over:
                chunk = read_chunk(requests, self._plan)
                work = self._client.start(complete(chunk, self._plan, self._client))
                return await asyncio.wrap_future(work)
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
        why = _ask(self._desk, "why")
        self._client.__exit__(type(why), why, None)


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

    Ray is taken as the caller has it, or as the environment says; it stays until this process ends.

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

    if not ray.is_initialized():
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's own waits for no answer
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk = ray.remote(_Desk).options(num_cpus=0, scheduling_strategy=here)
    desk = desk.remote(recipe.store, budget)
    _ask(desk, "open")
    try:
        ranges = _deal_out(requests, recipe, desk, plan, policy, budget)
        run_in_thread(
            partial(_write, ranges, desk, stats, cache_file),
            partial(_ask, desk, "end", KeyboardInterrupt()),
        )
        why = _ask(desk, "why")
    except ray.exceptions.RayError as error:
        raise RunStopped(f"ray: {error}; run the same command again to go on") from error
    finally:
        _ask(desk, "close")
        ray.kill(desk)
    if why is not None:
        raise why
    return datasets.Dataset.from_file(str(cache_file))


def _deal_out(
    requests: datasets.Dataset,
    recipe: Recipe,
    desk: Any,
    plan: Plan,
    policy: RetryPolicy,
    budget: Budget,
) -> Any:
    """The results of all requests, as a `ray.data.Dataset` that is yet to be run."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # the import has set it
    config = recipe.config
    gpus = 0 if isinstance(recipe.backend, Remote) else ray.cluster_resources().get("GPU", 0)
    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) >= 1]
    actors = int(gpus) or len(nodes)
    options = config.backend_options(1 / actors)
    identity = recipe.backend.identity()
    size = min(options.max_concurrency, math.ceil(len(requests) / (_CALLS * actors)))
    found = ray.data.from_arrow(list(requests.with_format("arrow").iter(size)))
    found.context.execution_options.preserve_order = True
    found.context.enable_progress_bars = False
    return found.map_batches(
        _Asker,
        fn_constructor_args=(
            desk,
            plan,
            partial(backends.create_again, config.backend, options, identity),
            partial(Client, policy=policy, rates=config.rates(1 / actors)),
            budget,
            {kind: count // actors for kind, count in Counter(requests["type"][:]).items()},
        ),
        batch_size=size,  # one block; with GPUs Ray wants it said
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            size=actors,
            max_tasks_in_flight_per_actor=2 * _CALLS,
            max_concurrent_calls_per_actor=_CALLS,
        ),
        num_gpus=1 if gpus else None,
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
                counts = _ask(desk, "counts").values()
                for name in _COUNTED:
                    setattr(stats, name, sum((one[name] for one in counts), before[name]))
        if _ask(desk, "why") is None:
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
