"""Contexts -> requests -> completions -> rows, with `Dataset.map` or as a stream.

The contexts of a split become one Arrow file, written once. The requests of a run are that file's
rows, once for each instruction type and ordered by type, so that few-shot prefixes stay hot in
engines that cache them. An async `Dataset.map` turns batches of requests into rows; batches
overlap, and a slow answer holds up nobody. The fingerprint of the result is computed from what the
rows depend on, never from pickled functions.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Features, Value
from filelock import FileLock

from mminstruct import prompts
from mminstruct.client import Answered, Client, Job, Outcome
from mminstruct.parse import Rejected, parse
from mminstruct.prompts import PromptConfig
from mminstruct.schema import Context, Sampling, decode_context, digest, encode_context
from mminstruct.sources import Files, ReadReport, Source, SourceInfo

_MAX_BATCH = 32
_MIN_WINDOW = 8


class _RowFeatures(Features):
    """Features that take a row of one-element Arrow arrays as it is.

    `ArrowWriter` concatenates such arrays, while encoding and casting Python values again would
    cost two thirds of a rerun from the store.
    """

    def encode_example(self, example: dict[str, Any]) -> dict[str, Any]:
        if isinstance(example["id"], pa.Array):
            return example
        encoded: dict[str, Any] = super().encode_example(example)
        return encoded


FEATURES = _RowFeatures(
    {
        "id": Value("string"),
        "source": Value("string"),
        "image_id": Value("string"),
        "image": Value("string"),
        "image_url": Value("string"),
        "width": Value("int32"),
        "height": Value("int32"),
        "image_license": Value("string"),
        "type": Value("string"),
        "messages": [{"role": Value("string"), "content": Value("string")}],
        "license": Value("string"),
        "provenance": {
            "backend": Value("string"),
            "model": Value("string"),
            "prompt_config": Value("string"),
            "prompt_version": Value("string"),
            "prompt_hash": Value("string"),
            "temperature": Value("float64"),
            "top_p": Value("float64"),
            "max_tokens": Value("int32"),
            "seed": Value("int64"),
            "few_shots": Value("int32"),
            "dropped_few_shots": Value("int32"),
            "dropped_boxes": Value("int32"),
            "finish_reason": Value("string"),
            "prompt_tokens": Value("int32"),
            "completion_tokens": Value("int32"),
            "notes": [Value("string")],
        },
    }
)
"""The columns of a row."""

_RESULT = Features(
    {
        **FEATURES,
        # None for a row; else why there is none.
        "reason": Value("string"),
        "detail": Value("string"),
        "rejected": Value("bool"),
        "truncated": Value("bool"),
    }
)
_COUNTED = ["id", "type", "reason", "detail", "rejected", "truncated"]
_RESULT_SCHEMA = _RESULT.arrow_schema
_CONTEXT_SCHEMA = pa.schema([("id", pa.string()), ("context", pa.string())])
_CONTEXTS_PER_BATCH = 1000


@dataclass(frozen=True)
class Plan:
    """All that rows depend on besides contexts and completions.

    Attributes:
        source: where the contexts are from.
        config: the prompt config.
        sampling: as asked for; ``seed`` is the run's, from which each request derives its own.
        backend: name of the backend, for rows.
        model: name of the model, for rows.
        license: of the text, for rows.
    """

    source: SourceInfo
    config: PromptConfig
    sampling: Sampling
    backend: str
    model: str
    license: str

    def digest(self) -> str:
        """Changes whenever the same completions would give other rows."""
        return digest(
            [
                code_version(),
                self.source,
                self.config.hash,
                self.sampling,
                self.backend,
                self.model,
                self.license,
            ]
        )


@dataclass
class Report:
    """What became of the requests of a split.

    Attributes:
        rows: by instruction type.
        truncated: rows whose last turn was cut off and left out.
        rejected: answers that gave no row, by type and reason.
        failed: requests without an answer, by type and cause.
        details: id, type, reason and detail of everything that gave no row.
    """

    rows: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    rejected: dict[str, Counter[str]] = field(default_factory=dict)
    failed: dict[str, Counter[str]] = field(default_factory=dict)
    details: list[dict[str, str]] = field(default_factory=list)

    def count(self, result: dict[str, Any]) -> None:
        """Count one result."""
        kind, reason = result["type"], result["reason"]
        if reason is None:
            self.rows[kind] += 1
            self.truncated += result["truncated"]
            return
        side = self.rejected if result["rejected"] else self.failed
        side.setdefault(kind, Counter())[reason] += 1
        self.details.append(
            {
                "id": result["id"],
                "type": kind,
                "outcome": "rejected" if result["rejected"] else "failed",
                "reason": reason,
                "detail": result["detail"],
            }
        )

    @property
    def failures(self) -> Counter[str]:
        """Requests without an answer, by cause."""
        return sum(self.failed.values(), Counter())

    @property
    def rejections(self) -> Counter[str]:
        """Answers that gave no row, by reason."""
        return sum(self.rejected.values(), Counter())

    def add(self, other: Report) -> None:
        """Add another report's counts and details to this one's."""
        self.rows.update(other.rows)
        self.truncated += other.truncated
        for mine, theirs in ((self.rejected, other.rejected), (self.failed, other.failed)):
            for kind, counts in theirs.items():
                mine.setdefault(kind, Counter()).update(counts)
        self.details.extend(other.details)

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(
            json.dumps(
                {
                    "rows": self.rows,
                    "truncated": self.truncated,
                    "rejected": self.rejected,
                    "failed": self.failed,
                    "details": self.details,
                }
            ),
            encoding="utf-8",
        )

    @classmethod
    def read(cls, path: Path) -> Report:
        """What `write` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            rows=Counter(data["rows"]),
            truncated=data["truncated"],
            rejected={kind: Counter(counts) for kind, counts in data["rejected"].items()},
            failed={kind: Counter(counts) for kind, counts in data["failed"].items()},
            details=data["details"],
        )


@lru_cache(maxsize=1)
def code_version() -> str:
    """Digest of the code between annotation files and rows, so that no cache goes stale."""
    package = Path(__file__).parent
    files = [*package.glob("*.py"), *package.glob("sources/*.py")]
    return digest({str(f.relative_to(package)): f.read_text("utf-8") for f in sorted(files)})[:16]


def contexts_dataset(
    source: Source, files: Files, split: str, cache_dir: Path
) -> tuple[datasets.Dataset, ReadReport]:
    """The split's contexts (columns ``id`` and ``context``, JSON), read once and then mapped.

    Raises:
        SourceError: a file is damaged or contradicts another.
    """
    name = f"{source.info.name.lower()}-{split}"
    key = digest([code_version(), files.fingerprint])[:16]
    folder = cache_dir / "mminstruct" / "contexts" / f"{name}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    arrow, counts = folder / "contexts.arrow", folder / "read.json"
    with FileLock(folder / "lock"):
        if not (arrow.is_file() and counts.is_file()):
            report = ReadReport()
            partial = arrow.with_suffix(".part")
            _write_contexts(source.read(files, report), partial)
            report.write(counts)
            partial.replace(arrow)
    return datasets.Dataset.from_file(str(arrow)), ReadReport.read(counts)


def _write_contexts(contexts: Iterator[Context], path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, _CONTEXT_SCHEMA) as writer:
        ids: list[str] = []
        texts: list[str] = []
        for context in contexts:
            ids.append(context.id)
            texts.append(encode_context(context))
            if len(ids) == _CONTEXTS_PER_BATCH:
                writer.write_batch(pa.record_batch([ids, texts], schema=_CONTEXT_SCHEMA))
                ids, texts = [], []
        writer.write_batch(pa.record_batch([ids, texts], schema=_CONTEXT_SCHEMA))


def requests_dataset(
    contexts: datasets.Dataset, types: tuple[str, ...], key: str
) -> datasets.Dataset:
    """The contexts once for each type, with a column ``type``; ordered by type, then context.

    Args:
        contexts: as `contexts_dataset` gives them, or the first of them.
        types: instruction types.
        key: digest of what the contexts depend on, for fingerprints.
    """
    parts = [
        contexts.add_column(
            "type", [name] * len(contexts), new_fingerprint=digest([key, name])[:16]
        )
        for name in types
    ]
    return datasets.concatenate_datasets(parts)


def batch_size(parallel: int) -> int:
    """Requests that one call of the mapped function handles.

    Each costs a hop between threads, a table and some bookkeeping, so a batch holds several; but
    not so many that one slow answer keeps many finished ones waiting.
    """
    return max(1, min(_MAX_BATCH, parallel // 8))


def window(parallel: int) -> int:
    """Batches under way at once: enough to keep the backend busy behind a few slow answers."""
    return max(_MIN_WINDOW, math.ceil(8 * parallel / batch_size(parallel)))


def map_requests(
    requests: datasets.Dataset, plan: Plan, client: Client, *, fingerprint: str, cache_file: Path
) -> datasets.Dataset:
    """The results of all requests, in their order, through `Dataset.map`.

    A result is a row, or the reason why there is none (column ``reason``).
    """
    cache_file.parent.mkdir(parents=True, exist_ok=True)
    size = batch_size(client.backend.parallel)
    under_way = asyncio.Semaphore(window(client.backend.parallel))
    loops: set[asyncio.AbstractEventLoop] = set()

    async def complete(batch: pa.Table) -> pa.Table:
        loops.add(asyncio.get_running_loop())
        async with under_way:
            asked = _asked(batch, plan)
            outcomes = await client.complete([job for *_, job in asked])
            return _results(asked, outcomes, plan, client)

    # At its own bound `map` spins: it waits for the first of all its tasks, done ones included. So
    # the bound is ours, and a task that waits for it holds a slice of a memory-mapped table.
    usual = datasets.config.MAX_NUM_RUNNING_ASYNC_MAP_FUNCTIONS_IN_PARALLEL
    datasets.config.MAX_NUM_RUNNING_ASYNC_MAP_FUNCTIONS_IN_PARALLEL = len(requests) // size + 2
    map_all = partial(
        requests.with_format("arrow").map,
        complete,
        batched=True,
        batch_size=size,
        features=_RESULT,
        remove_columns=requests.column_names,
        cache_file_name=str(cache_file),
        new_fingerprint=fingerprint,
    )
    try:
        mapped = _in_a_thread(map_all, client)
    finally:
        datasets.config.MAX_NUM_RUNNING_ASYNC_MAP_FUNCTIONS_IN_PARALLEL = usual
        for loop in loops:
            _close(loop)  # `map` makes one and leaves it open
    return mapped.with_format(None)


def _in_a_thread(work: Callable[[], datasets.Dataset], client: Client) -> datasets.Dataset:
    """The result of some work in a thread of its own; whatever ends the wait ends the work.

    `map` runs an event loop. In this thread a notebook may run one already, and a KeyboardInterrupt
    would hit it between any two of its steps, after which `map` may wait for a task forever.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="map") as thread:
        future = thread.submit(work)
        try:
            return future.result()
        except BaseException:
            client.stop()
            raise


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what is left on a loop that doesn't run, and close it."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left))
    loop.close()


def stream_requests(
    requests: datasets.Dataset, plan: Plan, client: Client
) -> Iterator[dict[str, Any]]:
    """The results of all requests, in their order, each as soon as those before it are there."""
    size = batch_size(client.backend.parallel)
    ahead = window(client.backend.parallel)
    under_way: deque[tuple[list[_Asked], Future[list[Outcome]]]] = deque()
    for batch in requests.with_format("arrow").iter(size):
        asked = _asked(batch, plan)
        under_way.append((asked, client.submit([job for *_, job in asked])))
        while under_way and (len(under_way) >= ahead or under_way[0][1].done()):
            yield from _finished(under_way.popleft(), plan, client)
    while under_way:
        yield from _finished(under_way.popleft(), plan, client)


def rows_from(
    results: datasets.Dataset, report: Report, features: Features
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(id, row) of all results that are rows; the others are counted in the report.

    A row's values are Arrow arrays of one element if ``features`` are ours, else plain Python.
    """
    arrow = isinstance(features, _RowFeatures)
    for batch in results.with_format("arrow").iter(1000):
        columns = [batch.column(name).combine_chunks() for name in FEATURES]
        rows = None if arrow else batch.select(list(FEATURES)).to_pylist()
        for index, result in enumerate(batch.select(_COUNTED).to_pylist()):
            report.count(result)
            if result["reason"] is not None:
                continue
            if rows is None:
                row = {n: c.slice(index, 1) for n, c in zip(FEATURES, columns, strict=True)}
            else:
                row = rows[index]
            yield result["id"], row


def has_failures(results: datasets.Dataset) -> bool:
    """Whether some requests got no answer."""
    rejected = results.data.column("rejected")
    return bool(pc.any(pc.invert(rejected), min_count=0).as_py())


def row_from(result: dict[str, Any]) -> dict[str, Any]:
    """The columns of a row from a result that is one."""
    return {name: result[name] for name in FEATURES}


_Asked = tuple[Context, str, str | None, Job]


def jobs(requests: datasets.Dataset, plan: Plan) -> Iterator[Job]:
    """All requests as they would be asked, in their order."""
    for batch in requests.with_format("arrow").iter(1000):
        yield from (job for *_, job in _asked(batch, plan))


def _asked(batch: pa.Table, plan: Plan) -> list[_Asked]:
    """(context, type, question of a ``text`` answer, job) of each request of a batch."""
    asked = []
    for text, name in zip(
        batch.column("context").to_pylist(), batch.column("type").to_pylist(), strict=True
    ):
        context = decode_context(text)
        sample = sample_id(plan.source, context, name)
        kind = plan.config.types[name]
        question = None
        if kind.answer_form == "text":
            seed = plan.sampling.seed or 0
            question = prompts.question_for(plan.config, name, sample_id=sample, seed=seed)
        asked.append((context, name, question, _job(plan, context, name, sample)))
    return asked


def _job(plan: Plan, context: Context, name: str, sample: str) -> Job:
    sampling = plan.sampling
    if sampling.seed is not None:
        sampling = replace(sampling, seed=int(digest([sampling.seed, sample])[:7], 16))
    return Job(
        prompts=lambda: prompts.reductions(context, plan.config, name),
        sampling=sampling,
        min_answer_tokens=plan.config.min_answer_tokens,
    )


def sample_id(source: SourceInfo, context: Context, type_name: str) -> str:
    """The id of a row: source, image and type; the same in every run."""
    return f"{source.name.lower()}-{context.id}-{type_name}"


def _finished(
    entry: tuple[list[_Asked], Future[list[Outcome]]], plan: Plan, client: Client
) -> Iterator[dict[str, Any]]:
    asked, outcomes = entry
    yield from _results(asked, outcomes.result(), plan, client).to_pylist()


def _results(asked: list[_Asked], outcomes: list[Outcome], plan: Plan, client: Client) -> pa.Table:
    results = []
    for (context, name, question, job), outcome in zip(asked, outcomes, strict=True):
        result = _result(plan, context, name, question, job, outcome)
        # too_long was counted by the client, before any answer.
        if result["rejected"] and isinstance(outcome, Answered):
            client.stats.rejected[result["reason"]] += 1
        results.append(result)
    return pa.Table.from_pylist(results, schema=_RESULT_SCHEMA)


def _result(
    plan: Plan, context: Context, name: str, question: str | None, job: Job, outcome: Outcome
) -> dict[str, Any]:
    media = context.media
    row: dict[str, Any] = {
        "id": sample_id(plan.source, context, name),
        "source": plan.source.name,
        "image_id": context.id,
        "image": media.file_name,
        "image_url": media.url,
        "width": media.width,
        "height": media.height,
        "image_license": media.license,
        "type": name,
        "license": plan.license,
        "messages": None,
        "provenance": None,
        "reason": None,
        "detail": None,
        "rejected": None,
        "truncated": False,
    }
    if not isinstance(outcome, Answered):
        row.update(reason=outcome.cause, detail=outcome.message, rejected=outcome.rejected)
        return row
    prompt, completion = outcome.prompt, outcome.completion
    parsed = parse(completion, plan.config, name, question=question)
    if isinstance(parsed, Rejected):
        row.update(reason=parsed.reason, detail=parsed.detail, rejected=True)
        return row
    row["truncated"] = "truncated" in parsed.notes
    row["messages"] = [
        {"role": role, "content": content}
        for turn in parsed.turns
        for role, content in (("user", turn.question), ("assistant", turn.answer))
    ]
    row["provenance"] = {
        "backend": plan.backend,
        "model": plan.model,
        "prompt_config": plan.config.name,
        "prompt_version": plan.config.version,
        "prompt_hash": plan.config.hash,
        "temperature": job.sampling.temperature,
        "top_p": job.sampling.top_p,
        "max_tokens": job.sampling.max_tokens,
        "seed": job.sampling.seed,
        "few_shots": prompt.few_shots,
        "dropped_few_shots": prompt.dropped_few_shots,
        "dropped_boxes": prompt.dropped_boxes,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "notes": list(parsed.notes),
    }
    return row
