"""How objects stand to each other, and what they are like: "person on horse", "table is wooden"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

HEADING = "Relations:"
ORDER = 40


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One relation between two objects, or between an object and its attribute (predicate is)."""

    subject: str
    predicate: str
    object: str


def lines(items: Sequence[Item]) -> list[str]:
    """A line for each that differs, with how many pairs of objects it holds for."""
    counted = Counter(f"{item.subject} {item.predicate} {item.object}" for item in items)
    return [f"- {text}" if n == 1 else f"- {text} ({n} times)" for text, n in counted.items()]
