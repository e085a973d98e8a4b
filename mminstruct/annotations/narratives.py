"""Long descriptions that people spoke while they pointed at what they spoke of.

**Source:** Localized Narratives, https://google.github.io/localized-narratives/ (CC BY 4.0).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

HEADING = "Spoken descriptions:"
ORDER = 12


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One narrative."""

    text: str


def lines(items: Sequence[Item]) -> list[str]:
    """A line for each."""
    return [f"- {item.text}" for item in items]
