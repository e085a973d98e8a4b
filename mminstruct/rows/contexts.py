"""The contexts of a split as one Arrow file, read once."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pyarrow as pa
from filelock import FileLock
from pydantic import TypeAdapter

from mminstruct import sources
from mminstruct.checks import Vocabulary
from mminstruct.rows.plan import code_version
from mminstruct.schema import Context, append_context, digest
from mminstruct.sources import Files, ReadReport, Source

if TYPE_CHECKING:
    import datasets

_CONTEXT_SCHEMA = pa.schema([("id", pa.string()), ("context", pa.string())])
_CONTEXTS_PER_BATCH = 1000


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
    import datasets  # which takes a second

    folder = _make_folder(source, files, split, cache_dir)
    arrow, counts = folder / "contexts.arrow", folder / "read.json"
    with FileLock(folder / "lock"):
        if not (arrow.is_file() and counts.is_file()):
            report = ReadReport.of(source.info.modality)
            partial = arrow.with_suffix(".part")
            enabled = gc.isenabled()
            gc.disable()  # among millions of records there are no cycles to be found
            try:
                _write_contexts(_telling(source.read(files, report), report), partial)
            finally:
                if enabled:
                    gc.enable()
            report.write(counts)
            partial.replace(arrow)
    report = ReadReport.read(counts)
    report.check(f"{source.info.name}, split {split!r}")
    return datasets.Dataset.from_file(str(arrow)), report


def read_vocabulary(source: Source, files: Files, split: str, cache_dir: Path) -> Vocabulary:
    """How the labels in the split's files are called, read once as the contexts are.

    Raises:
        SourceError: a file is damaged.
    """
    folder, form = _make_folder(source, files, split, cache_dir), TypeAdapter(Vocabulary)
    path = folder / "vocabulary.json"
    with FileLock(folder / "lock"):
        if not path.is_file():
            partial = path.with_suffix(".part")
            partial.write_bytes(form.dump_json(sources.vocabulary_of(source, files)))
            partial.replace(path)
    return form.validate_json(path.read_bytes())


def _make_folder(source: Source, files: Files, split: str, cache_dir: Path) -> Path:
    name = f"{source.info.name.lower()}-{split}-{contexts_key(source, files)}"
    folder = cache_dir / "mminstruct" / "contexts" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _telling(contexts: Iterable[Context], report: ReadReport) -> Iterator[Context]:
    """Those that say something; all are counted."""
    for context in contexts:
        if context.captions or context.boxes or any(context.annotations.values()):
            yield report.keep(context)
        else:
            reason = f"{context.media.modality} without annotations"
            report.skip(reason, example=context.id, harmless=True)


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


class NamedMedia(msgspec.Struct):
    """What tells whether an image (motion ...) is wanted."""

    file_name: str
    license: str | None = None


class _About(msgspec.Struct):
    media: NamedMedia


def read_media(contexts: datasets.Dataset) -> Iterator[NamedMedia]:
    """The image (motion ...) of each context, as `contexts_dataset` gives them."""
    decode = msgspec.json.Decoder(_About).decode
    for part in contexts.select_columns("context").with_format("arrow").iter(_CONTEXTS_PER_BATCH):
        yield from (decode(text).media for text in part["context"].to_pylist())


def media_licenses(contexts: datasets.Dataset) -> Iterator[str | None]:
    """The licence of each context's image (motion ...)."""
    return (media.license for media in read_media(contexts))
