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
from mminstruct.checks import Checker, Vocabulary
from mminstruct.config import InstructConfig, read_arguments
from mminstruct.errors import SourceError
from mminstruct.recipe import Recipe
from mminstruct.reports.quality import Judged
from mminstruct.reports.rows import Row
from mminstruct.rows.contexts import read_contexts, read_vocabulary
from mminstruct.schema import Context, decode_context


class _Media(msgspec.Struct):
    file_name: str


class _Named(msgspec.Struct):
    id: str
    media: _Media


class Contexts:
    """What annotations say of images, found by a row's image."""

    def __init__(self, checker: Checker, tables: Iterable[datasets.Dataset]) -> None:
        self._checker = checker
        self._chunks = [chunk for t in tables for chunk in t.data.column("context").chunks]
        by_name: dict[str, tuple[int, int]] = {}
        by_id: dict[str, tuple[int, int]] = {}
        decode = msgspec.json.Decoder(_Named).decode
        for number, chunk in enumerate(self._chunks):
            for at, named in enumerate(map(decode, chunk.to_pylist())):
                by_name[image_key(named.media.file_name)] = number, at
                by_id[image_key(named.id)] = number, at
        self._places = by_id | by_name

    def __len__(self) -> int:
        return sum(map(len, self._chunks))

    def find(self, row: Row) -> Context | None:
        """The context of a row's image, or None."""
        place = next((self._places[key] for key in row.keys if key in self._places), None)
        return decode_context(self._chunks[place[0]][place[1]].as_py()) if place else None

    def judge(self, row: Row) -> Judged:
        """A row, held against the context of its image."""
        context = self.find(row)
        if context is None:
            return Judged(row, is_lost=True)
        boxes = frozenset(self._checker.know(context).boxes)
        return Judged(row, self._checker.check(context, row.turns), boxes)


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
    recipe = _resolve(source, arguments)
    names = recipe.splits
    if not arguments.get("splits"):
        names = _list_splits(recipe) or names[:1]
    return _read(recipe, names, cache_dir)


def find_contexts(source: str, arguments: Mapping[str, Any], cache_dir: Path) -> Contexts | None:
    """The contexts of those splits whose files are at hand, or None; nothing is downloaded."""
    recipe = _resolve(source, arguments)
    names = _list_splits(recipe)
    return _read(recipe, names, cache_dir) if names else None


def _resolve(source: str, arguments: Mapping[str, Any]) -> Recipe:
    asked = {"source": source, "splits": [splits.ALL], "backend": "fake", **arguments}
    config = InstructConfig(**read_arguments(asked))
    info = sources.get(source, config.source_options).info
    return Recipe.of(replace(config, prompt_config=info.prompt_config))


def _read(recipe: Recipe, names: Iterable[str], cache_dir: Path) -> Contexts:
    found, vocabulary = [], Vocabulary()
    for name in names:
        files = recipe.fetch(name, Path(datasets.config.DOWNLOADED_DATASETS_PATH))
        vocabulary |= read_vocabulary(recipe.source, files, name, cache_dir)
        found.append(read_contexts(recipe.source, files, name, cache_dir).dataset())
    return Contexts(Checker(vocabulary), found)


def _list_splits(recipe: Recipe) -> tuple[str, ...]:
    """Those whose files are at hand."""
    return tuple(name for name in recipe.splits if _is_there(recipe, name))


def _is_there(recipe: Recipe, split: str) -> bool:
    try:
        return recipe.locate(split) is not None
    except SourceError:  # of several splits in a given folder one may be missing
        return False
