"""Contexts -> requests -> completions -> rows, with `Dataset.map` or as a stream.

The contexts of a split become one Arrow file, written once. The requests of a run are that file's
rows, once for each instruction type and ordered by type, so that few-shot prefixes stay hot in
engines that cache them. An async `Dataset.map` turns batches of requests into rows; batches
overlap, and a slow answer holds up nobody. The fingerprint of the result is computed from what the
rows depend on, never from pickled functions.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import IO, Any

import datasets
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Features, Value
from filelock import FileLock

from mminstruct import licenses, prompts, sources
from mminstruct.client import NOT_SENT, Answered, Client, Job, Outcome, close_loop
from mminstruct.parse import Parsed, Rejected, parse
from mminstruct.prompts import PromptConfig
from mminstruct.responses import Scope
from mminstruct.schema import Context, Sampling, append_context, decode_context, digest
from mminstruct.sources import Files, ReadReport, Source, SourceInfo

_MAX_BATCH = 32
_STORED_BATCH = 1000
_SAMPLE = 64
_MIN_WINDOW = 8


class _RowFeatures(Features):
    """Features that take Arrow arrays in the place of values as they are.

    `ArrowWriter` concatenates such arrays, while encoding and casting Python values again would
    cost as much as all the rest of a rerun from the store.
    """

    def __reduce__(self) -> tuple[type[_RowFeatures], tuple[dict[str, Any]]]:
        """Those of a builder that goes to another process stay what they are."""
        return _RowFeatures, (dict(self),)

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
        "modality": Value("string"),
        # The file's name in its release; of an image in ``image`` too, as trainers want it.
        "media": Value("string"),
        "image": Value("string"),
        "image_url": Value("string"),
        "width": Value("int32"),
        "height": Value("int32"),
        # By which the published file has to be turned; all else is about the upright image.
        "rotation_deg": Value("int32"),
        "image_license": Value("string"),
        # What naming the image's author takes, as far as its release tells.
        "image_credit": {
            "author": Value("string"),
            "author_url": Value("string"),
            "title": Value("string"),
            "landing_url": Value("string"),
            "license_url": Value("string"),
        },
        "type": Value("string"),
        "messages": [{"role": Value("string"), "content": Value("string")}],
        "license": Value("string"),
        # Text and image together, to train any model; None is not known.
        "commercial_use": Value("bool"),
        "provenance": {
            "backend": Value("string"),
            "model": Value("string"),
            "endpoint": Value("string"),
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
        # The answer, if there was one.
        "answer": Value("string"),
        "rejected": Value("bool"),
        "truncated": Value("bool"),
    }
)
_COUNTED = ["id", "type", "reason", "detail", "answer", "rejected", "truncated"]
_RESULT_SCHEMA = _RESULT.arrow_schema
_MESSAGE = list(_RESULT_SCHEMA.field("messages").type.value_type)
_PROVENANCE = list(_RESULT_SCHEMA.field("provenance").type)
_CREDIT = list(_RESULT_SCHEMA.field("image_credit").type)
_CONTEXT_SCHEMA = pa.schema([("id", pa.string()), ("context", pa.string())])
_CONTEXTS_PER_BATCH = 1000
MAKES_ROWS = (
    *("annotations/*.py", "sources/*.py", "prompts.py", "parse.py", "generate.py"),
    *("schema.py", "strict_yaml.py", "splits.py", "client.py", "builder.py"),
)
"""The code between annotation files and rows, relative to the package."""


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
        commercial: whether the text may be used commercially; None is unknown.
        image_use: image licence in lower case -> whether the image may be used commercially.
        endpoint: the APIs that answer, as `Registry.endpoint_names` has them; None in this process.
    """

    source: SourceInfo
    config: PromptConfig
    sampling: Sampling
    backend: str
    model: str
    license: str
    commercial: bool | None = None
    image_use: Mapping[str, bool | None] = field(default_factory=dict)
    endpoint: str | None = None

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
                self.commercial,
                self.image_use,
                self.endpoint,
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
        files: JSON lines about what gave no row; see `entries`.
    """

    rows: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    rejected: dict[str, Counter[str]] = field(default_factory=dict)
    failed: dict[str, Counter[str]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    def count(self, result: dict[str, Any], lines: IO[str] | None = None) -> None:
        """Count one result, and write why it is no row.

        Args:
            result: a row of the result table.
            lines: where to write; what wasn't sent has nothing to tell.
        """
        kind, reason = result["type"], result["reason"]
        if reason is None:
            self.rows[kind] += 1
            self.truncated += result["truncated"]
            return
        side = self.rejected if result["rejected"] else self.failed
        side.setdefault(kind, Counter())[reason] += 1
        if lines is not None and reason != NOT_SENT:
            outcome = "rejected" if result["rejected"] else "failed"
            entry = {"id": result["id"], "type": kind, "outcome": outcome, "reason": reason}
            entry["detail"] = result["detail"]
            if result["answer"] is not None:
                entry["answer"] = result["answer"]
            lines.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def entries(self) -> Iterator[dict[str, str]]:
        """What gave no row: id, type, outcome, reason, detail, and the answer if there was one."""
        for file in self.files:
            with file.open(encoding="utf-8") as lines:
                yield from map(json.loads, lines)

    def count_rows(self, results: pa.Table) -> None:
        """Count results that are all rows."""
        for kind in pc.value_counts(results.column("type")).to_pylist():
            self.rows[kind["values"]] += kind["counts"]
        self.truncated += pc.sum(results.column("truncated"), min_count=0).as_py()

    @property
    def failures(self) -> Counter[str]:
        """Requests without an answer, by cause."""
        return sum(self.failed.values(), Counter())

    @property
    def unsent(self) -> int:
        """Requests of a partial run that were left for later."""
        return self.failures[NOT_SENT]

    @property
    def requests(self) -> int:
        """All of them."""
        return self.rows.total() + self.rejections.total() + self.failures.total()

    @property
    def rejections(self) -> Counter[str]:
        """Answers that gave no row, by reason."""
        return sum(self.rejected.values(), Counter())

    def add(self, other: Report) -> None:
        """Add another report's counts and files to this one's."""
        self.rows.update(other.rows)
        self.truncated += other.truncated
        for mine, theirs in ((self.rejected, other.rejected), (self.failed, other.failed)):
            for kind, counts in theirs.items():
                mine.setdefault(kind, Counter()).update(counts)
        self.files.extend(other.files)

    def write(self, path: Path) -> None:
        """The counts, as JSON."""
        counts = ("rows", "truncated", "rejected", "failed")
        text = json.dumps({name: getattr(self, name) for name in counts})
        path.write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Report:
        """What `write` wrote, and the lines beside it."""
        data = json.loads(path.read_text(encoding="utf-8"))
        lines = path.with_suffix(".jsonl")
        return cls(
            files=[lines] if lines.is_file() else [],
            rows=Counter(data["rows"]),
            truncated=data["truncated"],
            rejected={kind: Counter(counts) for kind, counts in data["rejected"].items()},
            failed={kind: Counter(counts) for kind, counts in data["failed"].items()},
        )


@lru_cache(maxsize=1)
def code_version() -> str:
    """Digest of `MAKES_ROWS`, so that no cache goes stale.

    Of backends and licences rows take values, which are in keys themselves. Stored answers don't
    depend on it: what was paid for survives any change of the code.
    """
    return digest_of_code(Path(__file__).parent)


def digest_of_code(package: Path) -> str:
    """As `code_version`, of the package in a folder."""
    files = {f for pattern in MAKES_ROWS for f in package.glob(pattern)}
    return digest({str(f.relative_to(package)): f.read_text("utf-8") for f in sorted(files)})[:16]


def contexts_key(source: Source, files: Files) -> str:
    """Digest of what the contexts in some files depend on: these, the code and the options."""
    return digest([code_version(), files.fingerprint, sources.chosen_options(source)])[:16]


def contexts_dataset(
    source: Source, files: Files, split: str, cache_dir: Path
) -> tuple[datasets.Dataset, ReadReport]:
    """The split's contexts (columns ``id`` and ``context``, JSON), read once and then mapped.

    Raises:
        SourceError: a file is damaged or contradicts another, or more than half can't be used.
    """
    name = f"{source.info.name.lower()}-{split}"
    folder = cache_dir / "mminstruct" / "contexts" / f"{name}-{contexts_key(source, files)}"
    folder.mkdir(parents=True, exist_ok=True)
    arrow, counts = folder / "contexts.arrow", folder / "read.json"
    with FileLock(folder / "lock"):
        if not (arrow.is_file() and counts.is_file()):
            report = ReadReport.of(source.info.modality)
            partial = arrow.with_suffix(".part")
            with _no_garbage():
                _write_contexts(map(report.keep, source.read(files, report)), partial)
            report.write(counts)
            partial.replace(arrow)
    report = ReadReport.read(counts)
    report.check(f"{source.info.name}, split {split!r}")
    return datasets.Dataset.from_file(str(arrow)), report


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Doesn't look for cycles meanwhile: among millions of records there are none to be found."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _write_contexts(contexts: Iterator[Context], path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, _CONTEXT_SCHEMA) as writer:
        more = True
        while more:
            ids: list[str] = []
            # Texts stay where they are encoded: as strings they would be copied twice.
            text, ends = bytearray(), [0]
            for context in islice(contexts, _CONTEXTS_PER_BATCH):
                ids.append(context.id)
                ends.append(append_context(context, text))
            offsets = pa.py_buffer(np.array(ends, dtype=np.int32))
            texts = pa.StringArray.from_buffers(len(ids), offsets, pa.py_buffer(text))
            writer.write_batch(
                pa.record_batch([pa.array(ids, pa.string()), texts], schema=_CONTEXT_SCHEMA)
            )
            more = len(ids) == _CONTEXTS_PER_BATCH


class _MediaLicense(msgspec.Struct):
    license: str | None = None


class _Licensed(msgspec.Struct):
    media: _MediaLicense


def media_licenses(contexts: datasets.Dataset) -> Iterator[str | None]:
    """The licence of each context's image (motion ...), as `contexts_dataset` gives them."""
    decode = msgspec.json.Decoder(_Licensed).decode
    for part in contexts.select_columns("context").with_format("arrow").iter(_CONTEXTS_PER_BATCH):
        yield from (decode(text).media.license for text in part["context"].to_pylist())


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


def batch_size(requests: datasets.Dataset, plan: Plan, client: Client) -> int:
    """Requests that one call of the mapped function handles.

    Each costs a hop between threads, a table and some bookkeeping, so a batch holds several; but
    not so many that one slow answer keeps many finished ones waiting. Where the store seems to
    hold all answers there is nothing to wait for.
    """
    sample = {len(requests) * part // _SAMPLE for part in range(_SAMPLE)} if len(requests) else ()
    if client.has_answers(list(jobs(requests.select(sorted(sample)), plan))):
        return _STORED_BATCH
    return max(1, min(_MAX_BATCH, client.backend.parallel // 8))


def _announce(requests: datasets.Dataset, client: Client) -> None:
    """Tell the client how many requests of each instruction type are to come."""
    types = requests.select_columns("type").with_format("arrow")[:].column("type")
    client.expect({kind["values"]: kind["counts"] for kind in pc.value_counts(types).to_pylist()})


def window(parallel: int, size: int) -> int:
    """Batches under way at once: enough to keep the backend busy behind a few slow answers."""
    return max(_MIN_WINDOW, math.ceil(8 * parallel / size))


def map_requests(
    requests: datasets.Dataset, plan: Plan, client: Client, *, fingerprint: str, cache_file: Path
) -> datasets.Dataset:
    """The results of all requests, in their order, through `Dataset.map`.

    A result is a row, or the reason why there is none (column ``reason``).
    """
    cache_file.parent.mkdir(parents=True, exist_ok=True)
    _announce(requests, client)
    size = batch_size(requests, plan, client)
    under_way = asyncio.Semaphore(window(client.backend.parallel, size))
    loops: set[asyncio.AbstractEventLoop] = set()

    async def complete(batch: pa.Table) -> pa.Table:
        loops.add(asyncio.get_running_loop())
        async with under_way:
            asked = _asked(batch, plan)
            return _results(asked, await client.complete(asked.jobs), plan, client)

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
    # What is there now will stay. Looking through it for garbage, again and again while requests
    # come and go, would take a fifth of a rerun from the store.
    gc.freeze()
    try:
        with _running(len(requests) // size + 2):
            mapped = _in_a_thread(map_all, client)
    finally:
        gc.unfreeze()
        for loop in loops:
            close_loop(loop)  # `map` makes one and leaves it open
    return mapped.with_format(None)


_bounds: list[int] = []  # of the maps that run
_usual_bound = 0
_bounding = threading.Lock()


@contextmanager
def _running(tasks: int) -> Iterator[None]:
    """Lets `map` have so many tasks at once, in whichever threads it runs.

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


def _in_a_thread(work: Callable[[], datasets.Dataset], client: Client) -> datasets.Dataset:
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
    size = batch_size(requests, plan, client)
    ahead = window(client.backend.parallel, size)
    under_way: deque[tuple[_Asked, Future[list[Outcome]]]] = deque()
    for batch in requests.with_format("arrow").iter(size):
        asked = _asked(batch, plan)
        under_way.append((asked, client.submit(asked.jobs)))
        while under_way and (len(under_way) >= ahead or under_way[0][1].done()):
            yield from _finished(under_way.popleft(), plan, client)
    while under_way:
        yield from _finished(under_way.popleft(), plan, client)


def rows_from(
    results: datasets.Dataset, report: Report, features: Features, lines: IO[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(id, row) of all results that are rows; the others are counted, and written as ``lines``.

    If ``features`` are ours, a row's values are Arrow arrays, and the first row of many holds the
    elements of all: the others are empty. That is what `ArrowWriter` concatenates fastest.
    """
    for batch in results.with_format("arrow").iter(1000):
        is_row = pc.is_null(batch.column("reason"))
        for result in batch.filter(pc.invert(is_row)).select(_COUNTED).to_pylist():
            report.count(result, lines)
        rows = batch.filter(is_row)
        report.count_rows(rows)
        ids = rows.column("id").to_pylist()
        rows = rows.select(list(FEATURES))
        if not isinstance(features, _RowFeatures):
            yield from zip(ids, rows.to_pylist(), strict=True)
            continue
        whole = {name: rows.column(name).combine_chunks() for name in FEATURES}
        empty = {name: column.slice(0, 0) for name, column in whole.items()}
        yield from zip(ids, chain([whole], repeat(empty)), strict=False)


def has_failures(results: datasets.Dataset) -> bool:
    """Whether some requests got no answer."""
    rejected = results.data.column("rejected")
    return bool(pc.any(pc.invert(rejected), min_count=0).as_py())


def row_from(result: dict[str, Any]) -> dict[str, Any]:
    """The columns of a row from a result that is one."""
    return {name: result[name] for name in FEATURES}


@dataclass(frozen=True, slots=True)
class _Asked:
    """Requests of a batch, by column.

    Attributes:
        ids: of the rows that they lead to.
        types: instruction types.
        contexts: what they are about.
        jobs: for the client.
    """

    ids: list[str]
    types: list[str]
    contexts: list[Context]
    jobs: list[Job]


def jobs(requests: datasets.Dataset, plan: Plan) -> Iterator[Job]:
    """All requests as they would be asked, in their order."""
    for batch in requests.with_format("arrow").iter(1000):
        yield from _asked(batch, plan).jobs


def _asked(batch: pa.Table, plan: Plan) -> _Asked:
    types = batch.column("type").to_pylist()
    contexts = [decode_context(text) for text in batch.column("context").to_pylist()]
    ids = [sample_id(plan.source, c, t) for c, t in zip(contexts, types, strict=True)]
    asked = zip(contexts, types, ids, strict=True)
    return _Asked(ids, types, contexts, [_job(plan, *request) for request in asked])


def _job(plan: Plan, context: Context, name: str, sample: str) -> Job:
    sampling = plan.sampling
    if sampling.seed is not None:
        sampling = replace(sampling, seed=int(digest([sampling.seed, sample])[:7], 16))
    return Job(
        prompts=lambda: prompts.reductions(context, plan.config, name),
        sampling=sampling,
        min_answer_tokens=plan.config.min_answer_tokens,
        scope=Scope(plan.config.hash, name, plan.model, sampling.max_tokens),
    )


def sample_id(source: SourceInfo, context: Context, type_name: str) -> str:
    """The id of a row: source, image and type; the same in every run."""
    return f"{source.name.lower()}-{context.id}-{type_name}"


def _finished(
    entry: tuple[_Asked, Future[list[Outcome]]], plan: Plan, client: Client
) -> Iterator[dict[str, Any]]:
    asked, outcomes = entry
    yield from _results(asked, outcomes.result(), plan, client).to_pylist()


_Read = tuple[Answered, Parsed]


def _results(asked: _Asked, outcomes: list[Outcome], plan: Plan, client: Client) -> pa.Table:
    """The results of a batch, put together by column: by row it takes four times as long."""
    read: list[_Read | None] = []
    reasons: list[tuple[str, str, str | None, bool] | tuple[None, None, None, None]] = []
    for sample, name, outcome in zip(asked.ids, asked.types, outcomes, strict=True):
        if not isinstance(outcome, Answered):
            read.append(None)
            reasons.append((outcome.cause, outcome.message, None, outcome.rejected))
            continue
        parsed = _parsed(plan, sample, name, outcome)
        if isinstance(parsed, Rejected):
            # too_long was counted by the client, before any answer.
            client.stats.rejected[parsed.reason] += 1
            client.count_useless(name, parsed.reason, parsed.detail)
            read.append(None)
            reasons.append((parsed.reason, parsed.detail, outcome.completion.text, True))
        else:
            client.count_useful(name)
            read.append((outcome, parsed))
            reasons.append((None, None, None, None))
    media = [context.media for context in asked.contexts]
    commercial = {
        name: licenses.together(plan.commercial, plan.image_use.get((name or "").lower()))
        for name in {m.license for m in media}
    }
    reason, detail, answer, rejected = zip(*reasons, strict=True)
    columns: dict[str, Any] = {
        "id": asked.ids,
        "source": [plan.source.name] * len(read),
        "image_id": [context.id for context in asked.contexts],
        "modality": [m.modality for m in media],
        "media": [m.file_name for m in media],
        "image": [m.file_name if m.modality == "image" else None for m in media],
        "image_url": [m.url for m in media],
        "width": [m.width for m in media],
        "height": [m.height for m in media],
        "rotation_deg": [m.rotation_deg for m in media],
        "image_license": [m.license for m in media],
        "image_credit": pa.StructArray.from_arrays(
            [pa.array([getattr(m, f.name) for m in media], f.type) for f in _CREDIT], fields=_CREDIT
        ),
        "type": asked.types,
        "messages": _messages(read),
        "license": [plan.license] * len(read),
        "commercial_use": [commercial[m.license] for m in media],
        "provenance": _provenance(plan, asked.jobs, read),
        "reason": reason,
        "detail": detail,
        "answer": answer,
        "rejected": rejected,
        "truncated": [entry is not None and "truncated" in entry[1].notes for entry in read],
    }
    return pa.table(columns, schema=_RESULT_SCHEMA)


def _parsed(plan: Plan, sample: str, name: str, outcome: Answered) -> Parsed | Rejected:
    question = None
    if plan.config.types[name].answer_form == "text":
        seed = plan.sampling.seed or 0
        question = prompts.question_for(plan.config, name, sample_id=sample, seed=seed)
    return parse(outcome.completion, plan.config, name, question=question)


def _messages(read: list[_Read | None]) -> pa.Array:
    contents: list[str] = []
    offsets = []
    for entry in read:
        offsets.append(len(contents) if entry else None)
        for turn in entry[1].turns if entry else ():
            contents += (turn.question, turn.answer)
    roles = ["user", "assistant"] * (len(contents) // 2)
    columns = [pa.array(column, pa.string()) for column in (roles, contents)]
    messages = pa.StructArray.from_arrays(columns, fields=_MESSAGE)
    return pa.ListArray.from_arrays(pa.array([*offsets, len(contents)], pa.int32()), messages)


def _provenance(plan: Plan, asked: list[Job], read: list[_Read | None]) -> pa.Array:
    same = {
        "backend": plan.backend,
        "model": plan.model,
        "endpoint": plan.endpoint,
        "prompt_config": plan.config.name,
        "prompt_version": plan.config.version,
        "prompt_hash": plan.config.hash,
        "temperature": plan.sampling.temperature,
        "top_p": plan.sampling.top_p,
        "max_tokens": plan.sampling.max_tokens,
    }
    answers = [entry and entry[0] for entry in read]
    own: dict[str, list[Any]] = {
        "seed": [job.sampling.seed for job in asked],
        "few_shots": [a and a.prompt.few_shots for a in answers],
        "dropped_few_shots": [a and a.prompt.dropped_few_shots for a in answers],
        "dropped_boxes": [a and a.prompt.dropped_boxes for a in answers],
        "finish_reason": [a and a.completion.finish_reason for a in answers],
        "prompt_tokens": [a and a.completion.prompt_tokens for a in answers],
        "completion_tokens": [a and a.completion.completion_tokens for a in answers],
        "notes": [entry and entry[1].notes for entry in read],
    }
    arrays = [
        pa.array(own[f.name], f.type)
        if f.name in own
        else pa.repeat(pa.scalar(same[f.name], f.type), len(read))
        for f in _PROVENANCE
    ]
    absent = pa.array([entry is None for entry in read])
    return pa.StructArray.from_arrays(arrays, fields=_PROVENANCE, mask=absent)
