"""The contexts of the images that rows are about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import msgspec

from mminstruct import sources, splits
from mminstruct.benchmarks import image_key
from mminstruct.config import InstructConfig, read_arguments
from mminstruct.errors import SourceError
from mminstruct.recipe import Recipe
from mminstruct.reports.rows import Row
from mminstruct.rows.contexts import contexts_dataset
from mminstruct.schema import Context, decode_context
from mminstruct.sources import Source

_PER_BATCH = 1000


class _Media(msgspec.Struct):
    file_name: str


class _Named(msgspec.Struct):
    id: str
    media: _Media


class Contexts:
    """What annotations say of images, found by a row's image.

    Attributes:
        source: whose they are.
    """

    def __init__(self, source: Source, tables: Iterable[datasets.Dataset]) -> None:
        self.source = source
        self._tables = list(tables)
        # Of both an id and a file's name; a file's name goes before.
        self._places: dict[str, tuple[int, int]] = {}
        by_id: dict[str, tuple[int, int]] = {}
        decode = msgspec.json.Decoder(_Named).decode
        for number, table in enumerate(self._tables):
            at = 0
            texts = table.select_columns("context").with_format("arrow")
            for part in texts.iter(_PER_BATCH):
                for named in map(decode, part["context"].to_pylist()):
                    self._places[image_key(named.media.file_name)] = number, at
                    by_id[image_key(named.id)] = number, at
                    at += 1
        self._places = by_id | self._places

    def __len__(self) -> int:
        return sum(map(len, self._tables))

    def find(self, row: Row) -> Context | None:
        """The context of a row's image, or None."""
        place = next((self._places[key] for key in row.keys if key in self._places), None)
        return decode_context(self._tables[place[0]][place[1]]["context"]) if place else None


def open_contexts(source: str, arguments: Mapping[str, Any], cache_dir: Path) -> Contexts:
    """The contexts of a source.

    Args:
        source: its name, several joined, or the path of own data or of a description of it.
        arguments: as `load_dataset` takes them: ``data_dir`` or ``default_dir``, ``splits``, and
            the source's options. A ``data_dir`` is never completed by downloads. Without
            ``splits`` these are all of which the files are there, or else the first.
        cache_dir: where they are kept once they were read.

    Raises:
        UsageError: there is no such source, or split.
        SourceError: its files are missing or damaged.
    """
    asked = {"source": source, "splits": [splits.ALL], "backend": "fake", **arguments}
    config = InstructConfig(**read_arguments(asked))
    info = sources.get(source, config.source_options).info
    recipe = Recipe.of(replace(config, prompt_config=info.prompt_config))
    names = recipe.splits
    if not arguments.get("splits"):
        names = tuple(name for name in names if _is_there(recipe, name)) or names[:1]
    found = []
    for name in names:
        files = recipe.fetch(name, Path(datasets.config.DOWNLOADED_DATASETS_PATH))
        found.append(contexts_dataset(recipe.source, files, name, cache_dir)[0])
    return Contexts(recipe.source, found)


def _is_there(recipe: Recipe, split: str) -> bool:
    try:
        return recipe.locate(split) is not None
    except SourceError:  # of several splits in a given folder one may be missing
        return False
