"""Which class of Open Images is a kind of which.

**Source:** https://storage.googleapis.com/openimages/2018_04/bbox_labels_600_hierarchy.json, a tree
of ``LabelName`` and ``Subcategory`` (CC BY 4.0, Google LLC).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from mminstruct.checks.vocabulary import Vocabulary
from mminstruct.errors import SourceError
from mminstruct.sources._annotation_file import open_text
from mminstruct.sources._tables import names


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
