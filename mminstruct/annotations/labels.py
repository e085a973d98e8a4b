"""Labels of the whole image: what people checked to be there, and what they checked not to be.

The second kind is what makes a reliable "no" possible: an object that merely has no box may still
be in the image. Labels that only a program found carry its score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

HEADING = "Checked for the whole image:"
ORDER = 30


class Item(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One label.

    Attributes:
        label: its name in words.
        present: whether it is in the image.
        score: a program's confidence, 0..1; None means that people checked it.
    """

    label: str
    present: bool = True
    score: float | None = None

    def __post_init__(self) -> None:
        if self.score is not None and not 0 <= self.score <= 1:
            raise ValueError(f"score is between 0 and 1, got {self.score}")


def lines(items: Sequence[Item]) -> list[str]:
    """One line each for what is there, what isn't, and what a program thinks it saw."""
    return list(_lines(items))


def _lines(items: Sequence[Item]) -> Iterator[str]:
    checked = [item for item in items if item.score is None]
    for words, present in (("There", True), ("Not there", False)):
        if found := dict.fromkeys(item.label for item in checked if item.present is present):
            yield f"- {words}: {', '.join(found)}"
    guessed = {item.label: item.score for item in items if item.score is not None}
    if guessed:
        scored = (f"{label} ({score:.0%} sure)" for label, score in guessed.items())
        yield f"- Perhaps there, found by a program: {', '.join(scored)}"
