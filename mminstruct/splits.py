"""What the ``split`` of `load_dataset` stands for, and what ``shard`` does: parts of splits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mminstruct.errors import UsageError

ALL = "all"
"""What `datasets` calls all splits together."""


@dataclass(frozen=True, order=True)
class Shard:
    """One of so many parts of each split, all of nearly the same size, for a machine of its own.

    Attributes:
        index: which, counted from 0.
        count: how many there are.
    """

    index: int
    count: int

    @classmethod
    def of(cls, given: Any) -> Shard:
        """What ``(2, 4)`` or ``"2/4"`` stands for, the third of four.

        Raises:
            UsageError: it is neither.
        """
        numbers = given.split("/") if isinstance(given, str) else given
        try:
            index, count = (int(str(number)) for number in numbers)
        except (TypeError, ValueError):
            raise UsageError(f"shard: expected I/N, such as 0/4, got {given!r}") from None
        if not 0 <= index < count:
            raise UsageError(
                f"shard: expected I/N with I from 0 to N - 1, got {given!r}; shards are counted "
                "from 0"
            )
        return cls(index, count)

    def cut(self, length: int) -> range:
        """Its own of so many things; those of all shards are next to each other."""
        return range(length * self.index // self.count, length * (self.index + 1) // self.count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def specs(split: Any) -> list[str]:
    """The splits and parts of splits, such as ``train[:5]``, in any form that `datasets` takes."""
    if isinstance(split, Mapping):
        split = list(split.values())
    if isinstance(split, (list, tuple)):
        return [spec for one in split for spec in specs(one)]
    if split is None:
        return []
    import datasets  # which takes a second

    text = split.to_spec() if isinstance(split, datasets.ReadInstruction) else str(split)
    return [spec.strip() for spec in text.split("+")]


def name_of(spec: str) -> str:
    """The split that a spec is all of, or a part; it may be a wrong one."""
    return re.split(r"[\[(]", spec)[0]


def check_whole(specs: Iterable[str]) -> None:
    """Raise UsageError for a part of a split: `datasets` would have the whole made for it."""
    for spec in specs:
        if spec != (name := name_of(spec)):
            raise UsageError(
                f"split: {spec!r} is a part of what would have to be generated whole; give "
                f"split={name!r} and limit=N for its first N images, or load it whole once, after "
                "which a part costs nothing"
            )


def check_generated(names: Iterable[str], generated: Sequence[str]) -> None:
    """Raise UsageError for a split that is asked for, and not among those that are generated."""
    for name in names:
        if name not in (*generated, ALL):
            raise UsageError(
                f"split: expected some of splits={list(generated)}, got {name!r}; leave out "
                "splits, or name it there"
            )
