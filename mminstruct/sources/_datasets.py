"""Datasets as rows: those of the Hub, and folders that `load_dataset` reads; images aren't decoded.

They are streamed, so that of a large one nothing but its texts stays.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mminstruct.errors import SourceError


def splits_of(name: str, subset: str | None, revision: str | None) -> list[str]:
    """The splits of a dataset."""
    import datasets

    with _explain_errors(name):
        return list(datasets.get_dataset_split_names(name, subset, revision=revision))


def digest_of(name: str, subset: str | None, revision: str | None, split: str) -> str:
    """Changes with the dataset's commit or files."""
    import datasets

    with _explain_errors(name):
        builder = datasets.load_dataset_builder(name, subset, revision=revision)
        return f"{builder.hash}-{builder.config.name}-{split}"


def rows_of(name: str, subset: str | None, revision: str | None, split: str) -> Iterator[Any]:
    """The rows, with names in the place of classes, and of images name and size.

    Raises:
        SourceError: there is no such dataset, or it can't be read.
    """
    import datasets

    with _explain_errors(name):
        rows = datasets.load_dataset(name, subset, split=split, revision=revision, streaming=True)
        yield from plain_rows(rows, split)


def plain_rows(rows: Any, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a `Dataset` or a stream of one, as `rows_of` has them."""
    import datasets

    features = rows.features or {}
    images = [n for n, feature in features.items() if isinstance(feature, datasets.Image)]
    for name in images:
        rows = rows.cast_column(name, datasets.Image(decode=False))
    for number, row in enumerate(rows):
        plain = {n: _named(value, features.get(n)) for n, value in row.items()}
        for name in images[:1]:
            plain = _image(row[name] or {}, name, f"{split}-{number:09d}", plain)
        yield plain


def _image(
    image: Mapping[str, Any], column: str, default: str, row: Mapping[str, Any]
) -> dict[str, Any]:
    """Name and size, as far as nothing else in the row tells them."""
    from PIL import Image

    content, path = image.get("bytes"), image.get("path")
    found: dict[str, Any] = {}
    with suppress(OSError, Image.DecompressionBombError):
        opened = Image.open(io.BytesIO(content) if content else path or "")
        found = {"width": opened.size[0], "height": opened.size[1]}
        default += f".{(opened.format or '').lower()}"
        opened.close()
    return {**found, **row, column: Path(path or default).name}


def _named(value: Any, feature: Any) -> Any:
    """A value with the names of its classes."""
    if value is None or feature is None:
        return value
    if hasattr(feature, "int2str"):
        return feature.int2str(value) if value >= 0 else None
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    if isinstance(value, list):
        return [_named(one, inner) for one in value]
    if isinstance(value, dict) and isinstance(inner, dict):  # of lists, side by side
        return {key: [_named(one, inner.get(key)) for one in v] for key, v in value.items()}
    if isinstance(value, dict) and isinstance(feature, dict):
        return {key: _named(v, feature.get(key)) for key, v in value.items()}
    return value


@contextmanager
def _explain_errors(name: str) -> Iterator[None]:
    """Raise SourceError for what `datasets` says."""
    import datasets

    try:
        yield
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise SourceError(
            f"{name}: got '{error}' against a dataset that load_dataset reads expected. Give its "
            "name, its folder, or a file: .jsonl, .csv, .tsv, .parquet, or .json in COCO's format."
        ) from error
