"""Measured facts about a whole recording, such as its length or how far somebody walks."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

HEADING = "Measured:"
ORDER = 50


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One fact: what was measured, and the value with its unit, in words."""

    name: str
    value: str


def lines(items: Sequence[Item]) -> list[str]:
    """A line for each."""
    return [f"- {item.name}: {item.value}" for item in items]
