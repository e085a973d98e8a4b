"""The contexts of a split as one Arrow file, read once."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from pydantic import TypeAdapter

from mminstruct import sources
from mminstruct.checks import Vocabulary
from mminstruct.late import Late
from mminstruct.rows.plan import code_version
from mminstruct.schema import Context, append_context, digest
from mminstruct.sources import Files, ReadReport, Source

if TYPE_CHECKING:
    import datasets
    import filelock
    import numpy as np
    import pyarrow as pa
else:
    datasets, filelock, np, pa = map(Late, ("datasets", "filelock", "numpy", "pyarrow"))

_CONTEXTS_PER_BATCH = 1000


def contexts_key(source: Source, files: Files) -> str:
    """Digest of what the contexts in some files depend on: these, the code and the options."""
    return digest([code_version(), files.fingerprint, sources.chosen_options(source)])[:16]


class NamedMedia(msgspec.Struct):
    """What tells whether an image (motion ...) is wanted."""

    file_name: str
    license: str | None = None


class _About(msgspec.Struct):
    media: NamedMedia


@dataclass(frozen=True, slots=True)
class Contexts:
    """Contexts of a split, in a file that was written once.

    Attributes:
        path: an Arrow stream with columns ``id`` and ``context``, JSON.
        numbers: of those in it that are wanted, ascending.
        report: what reading left out.
    """

    path: Path
    numbers: Sequence[int]
    report: ReadReport

    def dataset(self) -> datasets.Dataset:
        """They, with the file mapped."""
        return datasets.Dataset.from_file(str(self.path)).select(self.numbers)

    def read_media(self) -> Iterator[NamedMedia]:
        """The image (motion ...) of each."""
        with pa.memory_map(str(self.path)) as file, pa.ipc.open_stream(file) as batches:
            media, before = decode_media(batches), -1
            for number in self.numbers:
                yield next(islice(media, number - before - 1, None))
                before = number


def decode_media(parts: Iterable[pa.Table | pa.RecordBatch]) -> Iterator[NamedMedia]:
    """The image (motion ...) of each context in a column ``context``."""
    decode = msgspec.json.Decoder(_About).decode
    for part in parts:
        yield from (decode(text).media for text in part.column("context").to_pylist())


def media_licenses(requests: datasets.Dataset) -> Iterator[str | None]:
    """The licence of each request's image (motion ...)."""
    parts = requests.select_columns("context").with_format("arrow").iter(_CONTEXTS_PER_BATCH)
    return (media.license for media in decode_media(parts))


def read_contexts(source: Source, files: Files, split: str, cache_dir: Path) -> Contexts:
    """All contexts of a split, read once and then mapped.

    Raises:
        SourceError: a file is damaged or contradicts another, or more than half can't be used.
    """
    folder = _make_folder(source, files, split, cache_dir)
    arrow, counts = written = folder / "contexts.arrow", folder / "read.json"
    if not all(map(Path.is_file, written)):
        with filelock.FileLock(folder / "lock"):
            if not all(map(Path.is_file, written)):  # another process may have been faster
                _write(source, files, *written)
    report = ReadReport.read(counts)
    report.check(f"{source.info.name}, split {split!r}")
    with pa.memory_map(str(arrow)) as file, pa.ipc.open_stream(file) as batches:
        return Contexts(arrow, range(sum(batch.num_rows for batch in batches)), report)


def _write(source: Source, files: Files, arrow: Path, counts: Path) -> None:
    """Write contexts, when all else is written."""
    report, partial = ReadReport.of(source.info.modality), arrow.with_suffix(".part")
    enabled = gc.isenabled()
    gc.disable()  # among millions of records there are no cycles to be found
    try:
        _write_contexts(_telling(source.read(files, report), report), partial)
    finally:
        if enabled:
            gc.enable()
    report.write(counts)
    partial.replace(arrow)


def read_vocabulary(source: Source, files: Files, split: str, cache_dir: Path) -> Vocabulary:
    """How the labels in the split's files are called, read once as the contexts are.

    Raises:
        SourceError: a file is damaged.
    """
    folder, form = _make_folder(source, files, split, cache_dir), TypeAdapter(Vocabulary)
    path = folder / "vocabulary.json"
    with filelock.FileLock(folder / "lock"):
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
    schema = pa.schema([("id", pa.string()), ("context", pa.string())])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
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
            columns = [pa.array(ids, pa.string()), texts]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            more = len(ids) == _CONTEXTS_PER_BATCH
