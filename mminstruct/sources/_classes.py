"""The classes of Open Images: their names, codes for these, and which is a kind of which.

**Source:** https://storage.googleapis.com/openimages/2018_04/bbox_labels_600_hierarchy.json, a tree
of ``LabelName`` and ``Subcategory`` (CC BY 4.0, Google LLC).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mminstruct.checks.vocabulary import Vocabulary
from mminstruct.errors import SourceError
from mminstruct.sources._annotation_file import open_text
from mminstruct.sources._tables import Column, names


class ClassNames:
    """Codes for the names of labels, so that a label costs two bytes a row.

    Attributes:
        known: label id -> code.
        texts: name by code.
    """

    def __init__(self, by_id: dict[str, str]) -> None:
        self.known = {label_id: code for code, label_id in enumerate(by_id)}
        self.texts = list(by_id.values())

    def under(self, by_id: dict[str, str]) -> ClassNames:
        """These names with their codes, under others that go before them where an id has both."""
        both = ClassNames({})
        both.texts = [*self.texts, *by_id.values()]
        both.known = self.known | {id_: code for code, id_ in enumerate(by_id, len(self.texts))}
        return both

    def codes(self, column: pa.DictionaryArray) -> NDArray[np.int16]:
        """The codes of a column of label ids; -1 for those that have no name."""
        table = [self.known.get(label.strip(), -1) for label in column.dictionary.to_pylist()]
        return by_index(column, [*table, -1], np.int16)


def by_index(column: pa.DictionaryArray, values: list[Any], dtype: Any) -> Column:
    """The column with its dictionary's values replaced; the last one is for null."""
    indices = column.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False)
    replaced: Column = np.array(values, dtype=dtype)[indices]
    return replaced


class _Class(msgspec.Struct):
    """A class of the hierarchy's tree, with its kinds."""

    id: str = msgspec.field(name="LabelName")
    kinds: list[_Class] = msgspec.field(name="Subcategory", default_factory=list)


def vocabulary_in(
    paths: Mapping[str, Path], renamed: Mapping[str, str] | None = None
) -> Vocabulary:
    """The classes that have boxes, each with those of which it is a kind.

    Args:
        paths: only ``hierarchy`` and ``classes`` are read; without the first nothing is known.
        renamed: label -> what it is called instead.

    Raises:
        SourceError: a file is damaged.
    """
    if "hierarchy" not in paths:
        return Vocabulary()
    with open_text(paths["hierarchy"]) as file:
        try:
            root = msgspec.json.decode(file.read(), type=_Class)
        except msgspec.DecodeError as error:
            raise SourceError(
                f"{paths['hierarchy'].name}: got no tree of classes ({error}) against one "
                "expected. Download the file again."
            ) from error
    called = {id: (renamed or {}).get(name, name) for id, name in names(paths["classes"]).items()}
    waiting, pairs = [root], []
    while waiting:
        above = waiting.pop()
        waiting += above.kinds
        pairs += [(above.id, kind.id) for kind in above.kinds]
    known = [(above, kind) for above, kind in pairs if above in called and kind in called]
    labels = {called[id] for pair in pairs for id in pair if id in called}
    return Vocabulary.of(
        dict.fromkeys(labels, ()), parents=[(called[kind], called[above]) for above, kind in known]
    )
