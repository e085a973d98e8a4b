"""Contexts -> requests: one for each instruction type, ordered by type."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mminstruct import prompts
from mminstruct.completions.job import Job
from mminstruct.completions.store import Scope
from mminstruct.prompts.config import PromptConfig
from mminstruct.rows.absent import add_absent
from mminstruct.rows.plan import Plan
from mminstruct.schema import Context, decode_context, digest
from mminstruct.sources import SourceInfo

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa


def requests_dataset(
    contexts: datasets.Dataset, types: tuple[str, ...], key: str
) -> datasets.Dataset:
    """The contexts once for each type, with a column ``type``; ordered by type, then context.

    Args:
        contexts: as `Contexts.dataset` gives them, or the first of them.
        types: instruction types.
        key: digest of what the contexts depend on, for fingerprints.
    """
    parts = [
        contexts.add_column(
            "type", [name] * len(contexts), new_fingerprint=digest([key, name])[:16]
        )
        for name in types
    ]
    import datasets  # which takes a second

    return datasets.concatenate_datasets(parts)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Requests that are asked together, by column.

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
    for table in requests.with_format("arrow").iter(1000):
        yield from read_chunk(table, plan).jobs


def read_chunk(table: pa.Table, plan: Plan) -> Chunk:
    """The requests that some rows of the dataset stand for."""
    types = table.column("type").to_pylist()
    contexts = [decode_context(text) for text in table.column("context").to_pylist()]
    ids = [sample_id(plan.source, c, t) for c, t in zip(contexts, types, strict=True)]
    requests = zip(contexts, types, ids, strict=True)
    return Chunk(ids, types, contexts, [_make_job(plan, *request) for request in requests])


def prompts_of(
    context: Context, type_name: str, source: SourceInfo, config: PromptConfig, seed: int | None
) -> Iterator[prompts.Prompt]:
    """Ever shorter prompts for a row, as `prompts.reductions` gives them."""
    draw = prompts.Draw(sample_id(source, context, type_name), seed or 0)
    if source.exhaustive and (most := config.rendering.max_absent):
        context = add_absent(context, most, draw.random("/absent"))
    return prompts.reductions(context, config, type_name, draw)


def _make_job(plan: Plan, context: Context, name: str, sample: str) -> Job:
    sampling = plan.sampling
    if sampling.seed is not None:
        sampling = replace(sampling, seed=int(digest([sampling.seed, sample])[:7], 16))
    return Job(
        prompts=lambda: prompts_of(context, name, plan.source, plan.config, plan.sampling.seed),
        sampling=sampling,
        min_answer_tokens=plan.config.min_answer_tokens,
        scope=Scope(plan.config.hash, name, plan.model, sampling.max_tokens),
    )


def sample_id(source: SourceInfo, context: Context, type_name: str) -> str:
    """The id of a row: source, image and type; the same in every run."""
    return f"{source.name.lower()}-{context.id}-{type_name}"
