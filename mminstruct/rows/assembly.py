"""Outcomes -> rows and the reasons of what is none, as Arrow tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import IO, Any

import datasets
import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Features

from mminstruct import checks, licenses
from mminstruct.completions.client import Client
from mminstruct.completions.job import Failed, Job
from mminstruct.rows.columns import FEATURES, OUTCOME, RESULT_SCHEMA, SAMPLING, RowFeatures
from mminstruct.rows.judging import Judged, Useless
from mminstruct.rows.plan import Plan
from mminstruct.rows.report import Report
from mminstruct.rows.requests import Chunk


def rows_from(
    results: datasets.Dataset, report: Report, features: Features, lines: IO[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(id, row) of all results that are rows; the others are counted, and written as ``lines``.

    If ``features`` are ours, a row's values are Arrow arrays, and the first row of many holds the
    elements of all: the others are empty. That is what `ArrowWriter` concatenates fastest.
    """
    counted = ["id", "type", *OUTCOME]
    for batch in results.with_format("arrow").iter(1000):
        is_row = pc.is_null(batch.column("reason"))
        for result in batch.filter(pc.invert(is_row)).select(counted).to_pylist():
            report.count(result, lines)
        rows = batch.filter(is_row)
        report.count_rows(rows)
        ids = rows.column("id").to_pylist()
        rows = rows.select(list(FEATURES))
        if not isinstance(features, RowFeatures):
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


def make_results(
    chunk: Chunk, outcomes: Sequence[Judged | Useless | Failed], plan: Plan, client: Client
) -> pa.Table:
    """The results of a chunk, put together by column: by row it takes four times as long."""
    read: list[Judged | None] = []
    reasons: list[tuple[str, str, str | None, bool] | tuple[None, None, None, None]] = []
    for name, outcome in zip(chunk.types, outcomes, strict=True):
        read.append(outcome if isinstance(outcome, Judged) else None)
        if isinstance(outcome, Judged):
            client.row_rules.count_useful(name)
            reasons.append((None, None, None, None))
        elif isinstance(outcome, Useless):
            why = outcome.why
            # too_long was counted by the client, before any answer.
            client.stats.rejected[why.reason] += 1
            client.row_rules.count_useless(name, why.reason, why.detail)
            reasons.append((why.reason, why.detail, outcome.answered.completion.text, True))
        else:
            reasons.append((outcome.cause, outcome.message, None, outcome.rejected))
    media = [context.media for context in chunk.contexts]
    commercial = {
        name: licenses.together(plan.commercial, plan.image_use.get((name or "").lower()))
        for name in {m.license for m in media}
    }
    reason, detail, answer, rejected = zip(*reasons, strict=True)
    columns: dict[str, Any] = {
        "id": chunk.ids,
        "source": [plan.source.name] * len(read),
        "image_id": [context.id for context in chunk.contexts],
        "modality": [m.modality for m in media],
        "media": [m.file_name for m in media],
        "image": [m.file_name if m.modality == "image" else None for m in media],
        "image_url": [m.url for m in media],
        "width": [m.width for m in media],
        "height": [m.height for m in media],
        "rotation_deg": [m.rotation_deg for m in media],
        "image_license": [m.license for m in media],
        "image_credit": _make_struct(
            RESULT_SCHEMA.field("image_credit").type,
            {name: [getattr(m, name) for m in media] for name in FEATURES["image_credit"]},
        ),
        "type": chunk.types,
        "messages": _make_messages(read),
        "checks": _make_checks(read),
        "license": [plan.license] * len(read),
        "commercial_use": [commercial[m.license] for m in media],
        "provenance": _make_provenance(plan, chunk.jobs, read),
        "reason": reason,
        "detail": detail,
        "answer": answer,
        "rejected": rejected,
        "truncated": [entry is not None and "truncated" in entry.parsed.notes for entry in read],
        "contradicted": [0 if entry is None else entry.left_out for entry in read],
    }
    return pa.table(columns, schema=RESULT_SCHEMA)


def _make_messages(read: list[Judged | None]) -> pa.Array:
    contents: list[str] = []
    offsets = []
    for entry in read:
        offsets.append(len(contents) if entry else None)
        for turn in entry.parsed.turns if entry else ():
            contents += (turn.question, turn.answer)
    roles = ["user", "assistant"] * (len(contents) // 2)
    return pa.ListArray.from_arrays(
        pa.array([*offsets, len(contents)], pa.int32()),
        _make_struct(
            RESULT_SCHEMA.field("messages").type.value_type, {"role": roles, "content": contents}
        ),
    )


def _make_checks(read: list[Judged | None]) -> pa.Array:
    """What is supported is only counted; what the annotations have is in the context."""
    values = [
        entry
        and {
            "version": checks.VERSION,
            "verdicts": [
                checks.verdict_of(entry.findings, turn) for turn in range(len(entry.parsed.turns))
            ],
            "findings": [
                msgspec.structs.asdict(finding) | ({"known": ""} if is_there else {})
                for finding in entry.findings
                for is_there in [finding.verdict == "supported"]
            ],
        }
        for entry in read
    ]
    return pa.array(values, RESULT_SCHEMA.field("checks").type)


def _make_provenance(plan: Plan, jobs: list[Job], read: list[Judged | None]) -> pa.Array:
    of_run = {
        "backend": plan.backend,
        "model": plan.model,
        "endpoint": plan.endpoint,
        "prompt_config": plan.config.name,
        "prompt_version": plan.config.version,
        "prompt_hash": plan.config.hash,
        **{name: getattr(plan.sampling, name) for name in SAMPLING},
    }
    answers = [entry and entry.answered for entry in read]
    values: dict[str, list[Any]] = {
        **{name: [value] * len(read) for name, value in of_run.items()},
        "seed": [job.sampling.seed for job in jobs],
        "few_shots": [a and a.prompt.few_shots for a in answers],
        "dropped_few_shots": [a and a.prompt.dropped_few_shots for a in answers],
        "dropped_boxes": [a and a.prompt.dropped_boxes for a in answers],
        "finish_reason": [a and a.completion.finish_reason for a in answers],
        "prompt_tokens": [a and a.completion.prompt_tokens for a in answers],
        "completion_tokens": [a and a.completion.completion_tokens for a in answers],
        "notes": [entry and entry.parsed.notes for entry in read],
    }
    absent = pa.array([entry is None for entry in read])
    return _make_struct(RESULT_SCHEMA.field("provenance").type, values, absent)


def _make_struct(
    kind: pa.StructType, values: Mapping[str, list[Any]], absent: Any = None
) -> pa.Array:
    arrays = [pa.array(values[field.name], field.type) for field in kind]
    return pa.StructArray.from_arrays(arrays, fields=list(kind), mask=absent)
