"""Descriptions of something that takes time, each of the whole or of a span of it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

HEADING = "Descriptions:"
ORDER = 11


class Item(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One description.

    Attributes:
        text: what happens.
        start_s: where its span begins, seconds; None together with end_s for the whole.
        end_s: where it ends, seconds.
    """

    text: str
    start_s: float | None = None
    end_s: float | None = None

    def __post_init__(self) -> None:
        if (self.start_s is None) != (self.end_s is None):
            raise ValueError("start_s and end_s go together")
        if (
            self.start_s is not None
            and self.end_s is not None
            and not (0 <= self.start_s < self.end_s)
        ):
            raise ValueError(f"a span needs 0 <= start < end, got {self.start_s} to {self.end_s}")


def lines(items: Sequence[Item]) -> list[str]:
    """A line for each, the spans in front of their texts."""
    return [f"- {_span(item)}{item.text}" for item in items]


def _span(item: Item) -> str:
    return "" if item.start_s is None else f"from {item.start_s:.1f} to {item.end_s:.1f} s: "
