"""The rows of a release, wherever it is, and its terms."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetsError
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from mminstruct import licenses
from mminstruct.errors import HubError, UsageError, did_you_mean, lacking
from mminstruct.licenses import Use
from mminstruct.releases import notices
from mminstruct.rows import replacing
from mminstruct.rows.columns import FEATURES, NEEDED_BY_EXPORTS

_Rows: TypeAlias = "datasets.Dataset | datasets.IterableDataset | list[str]"  # Parquet files
_ROWS_PER_CHUNK = 1000


@dataclass(frozen=True, slots=True)
class Terms:
    """What is known of a release that rows are from.

    Attributes:
        license_text: of the file LICENSE, of rows that may be used so.
        text: whether their text may be used commercially; None is not known.
        allows: whether an image under a licence may be used commercially; None is not known.
    """

    license_text: Callable[[Use], str]
    text: bool | None = None
    allows: Callable[[str | None], bool | None] = lambda license: None


def open_streams(
    dataset: str, types: Sequence[str] | None, splits: Sequence[str] | None
) -> list[tuple[str, _Rows]]:
    """Name and rows of each split, one instruction type after the other."""
    try:
        if Path(dataset).is_file():
            raise UsageError(f"{dataset}: expected the folder of a dataset repository, got a file")
        name = Path(dataset).name
        if (Path(dataset) / f"{name}.py").is_file() or dataset == f"builders/{name}":
            raise UsageError(
                f"{dataset}: expected rows, got what makes them; run `mminstruct generate` first"
            )
        configs = datasets.get_dataset_config_names(dataset)
        known = [name for name in configs if name != "default"]
        for name in types or ():
            if name not in known:
                raise UsageError(
                    f"{dataset} has no instruction type {name!r}{did_you_mean(name, known)}"
                )
        chosen = dict.fromkeys(types or (["default"] if "default" in configs else known))
        found = [_find_splits(datasets.load_dataset_builder(dataset, name)) for name in chosen]
    except (OSError, ValueError, DatasetsError, HfHubHTTPError) as error:
        raise UsageError(
            f"{dataset}: expected a dataset repository, as `mminstruct generate` writes it, or "
            f"the id of one on the Hub, got: {error}"
            f"{lacking(Path(dataset)) if dataset.count('/') > 1 else ''}"  # else it may be an id
        ) from error
    names = list(dict.fromkeys(split for parts in found for split in parts))
    for split in splits or ():
        if split not in names:
            raise UsageError(f"{dataset} has no split {split!r}{did_you_mean(split, names)}")
    wanted = dict.fromkeys(splits or names)
    return [(split, parts[split]) for split in wanted for parts in found if split in parts]


def _find_splits(builder: datasets.DatasetBuilder) -> Mapping[str, _Rows]:
    """The rows of each split of one instruction type."""
    named = builder.config.data_files or {}
    files = {str(split): list(map(str, of)) for split, of in named.items()}
    if files and all(file.endswith(".parquet") for of in files.values() for file in of):
        return files
    return builder.as_streaming_dataset()  # type: ignore[no-any-return]  # datasets has no types


def features_of(rows: _Rows) -> datasets.Features:
    """The columns of some rows; those of `FEATURES` where the rows don't say."""
    if not isinstance(rows, list):
        return rows.features or FEATURES
    try:
        with fsspec.open(rows[0], "rb") as opened:
            return datasets.Features.from_arrow_schema(pq.read_schema(opened))
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{rows[0]}: can't be read as Parquet, got: {error}") from error


def _read_chunks(rows: _Rows) -> Iterator[pa.RecordBatch | pa.Table]:
    """Rows a thousand at a time.

    Parquet is read by this thread alone: streamed by `datasets`, it is read by threads of Arrow's
    that call Python, and where one still does when the process ends, that dies by SIGABRT.
    **Source:** https://github.com/huggingface/datasets/issues/7566
    """
    if not isinstance(rows, list):
        yield from rows.with_format("arrow").iter(_ROWS_PER_CHUNK)
        return
    for file in rows:
        with fsspec.open(file, "rb") as opened:
            parquet = pq.ParquetFile(opened, pre_buffer=False)
            yield from parquet.iter_batches(_ROWS_PER_CHUNK, use_threads=False)


def read_rows(splits: Iterable[tuple[str, _Rows]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row, after the name of its split."""
    for split, rows in splits:
        try:
            for batch in _read_chunks(rows):
                lacking = [name for name in NEEDED_BY_EXPORTS if name not in batch.schema.names]
                if lacking:
                    raise UsageError(
                        f"split {split!r}: expected rows as `mminstruct generate` writes them, "
                        f"got none of the columns {', '.join(lacking)}"
                    )
                for row in batch.to_pylist():
                    yield split, row
        except (pa.ArrowInvalid, OSError, DatasetsError, HfHubHTTPError) as error:
            raise UsageError(f"split {split!r}: its rows can't be read, got: {error}") from error


def read_terms(dataset: str, registry: licenses.Registry) -> Terms:
    """What is known of a release; one that mminstruct didn't write may have no LICENSE.

    Raises:
        UsageError: it is missing, or isn't what mminstruct wrote.
    """
    text, noted = _read_text(dataset, "LICENSE"), _read_noted(dataset)
    if noted is None:
        own = text or f"{dataset} has no LICENSE: what its rows may be used for isn't known here.\n"
        return Terms(lambda use: own, allows=registry.allows)
    if text is None:
        raise UsageError(
            f"{dataset}: LICENSE is missing; put it back or run mminstruct generate again"
        )
    if unsaid := notices.find_unsaid(text, noted):
        raise UsageError(
            f"{dataset}: LICENSE doesn't say {unsaid!r}, which is the verdict in provenance.json; "
            "put it back or run mminstruct generate again"
        )
    whole, old = text, notices.read_use(noted)
    # As its rows were made: they may rest on entries of its maker's own.
    uses = {image["license"]: image["commercial"] for image in noted["media_licenses"]}
    return Terms(
        lambda use: whole.replace(old, notices.use_line(use), 1),
        noted["licensing"]["commercial"],
        uses.get,
    )


def _read_noted(dataset: str) -> Mapping[str, Any] | None:
    """What was noted when the release was written, or None if mminstruct didn't."""
    noted = _read_text(dataset, "provenance.json")
    try:
        found = json.loads(noted or "{}")
        if found.get("tool") != "mminstruct":
            return None
        notices.find_unsaid("", found)
        [(image["license"], image["commercial"]) for image in found["media_licenses"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{dataset}: provenance.json: expected what mminstruct generate notes there, got "
            "something else; put it back or run mminstruct generate again"
        ) from error
    return found  # type: ignore[no-any-return]  # JSON, checked above


def made_of(
    dataset: str,
    types: Sequence[str] | None,
    splits: Sequence[str] | None,
    image_licenses: Sequence[str],
) -> replacing.Made:
    """How the rows of an export are made: as those of the release, of which these are chosen."""
    noted = _read_text(dataset, "provenance.json")
    made = dict(replacing.made(json.loads(noted or "{}"))) or {"sources": [dataset]}
    chosen = {"types": types, "splits": splits}
    made |= {name: sorted(set(some)) for name, some in chosen.items() if some}
    limits = sorted({*image_licenses} - {"any"})
    return {**made, "image_licenses": limits} if limits else made


def _read_text(dataset: str, name: str) -> str | None:
    """A text file of a release in a folder or on the Hub, or None if there is none."""
    path = Path(dataset) / name
    try:
        if not Path(dataset).is_dir():
            path = Path(hf_hub_download(dataset, name, repo_type="dataset"))
        return path.read_text(encoding="utf-8", errors="replace")
    except LocalEntryNotFoundError as error:  # which is an EntryNotFoundError as well
        raise HubError(
            f"{dataset}: {name} can't be fetched ({error}); run again once the Hub can be reached"
        ) from error
    except (FileNotFoundError, EntryNotFoundError):
        return None
