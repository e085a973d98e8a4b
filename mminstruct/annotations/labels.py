"""Labels of the whole image: what people checked to be there, and what they checked not to be.

The second kind is what makes a reliable "no" possible: an object that merely has no box may still
be in the image. Labels that only a program found carry its score.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import msgspec

HEADING = "Checked for the whole image:"
ORDER = 30


class Item(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One label.

    Attributes:
        label: its name in words.
        present: whether it is in the image.
        not_all_boxed: it is there more often than there are boxes of it.
        score: a program's confidence, 0..1; None means that people checked it.
    """

    label: str
    present: bool = True
    score: float | None = None
    not_all_boxed: bool = False

    def __post_init__(self) -> None:
        if self.score is not None and not 0 <= self.score <= 1:
            raise ValueError(f"score is between 0 and 1, got {self.score}")


def lines(items: Sequence[Item]) -> list[str]:
    """One line each for what is there, what isn't, and what a program thinks it saw."""
    return list(_lines(items))


def _lines(items: Sequence[Item]) -> Iterator[str]:
    checked = [item for item in items if item.score is None]
    for words, present in (("There", True), ("Not there", False)):
        known = (i for i in checked if i.present is present and not i.not_all_boxed)
        if found := dict.fromkeys(item.label for item in known):
            yield f"- {words}: {'; '.join(found)}"
    if more := dict.fromkeys(item.label for item in checked if item.not_all_boxed):
        yield f"- There, but not each of them has a box: {'; '.join(more)}"
    guessed = {item.label: item.score for item in items if item.score is not None}
    if guessed:
        scored = (f"{label} ({score:.0%} sure)" for label, score in guessed.items())
        yield f"- Perhaps there, found by a program: {'; '.join(scored)}"


def agreeing(
    items: Sequence[Item], boxed: Collection[str]
) -> tuple[tuple[Item, ...], frozenset[str]]:
    """The labels without repetitions and contradictions, and the labels that were contradictory.

    What people checked goes before what a program found. A label with a box can't be absent, and a
    program's guess about it says nothing more.

    Args:
        items: of one image, from one source or several.
        boxed: labels of its boxes.
    """
    present = {item.label for item in items if item.score is None and item.present}
    absent = {item.label for item in items if not item.present}
    doubtful = frozenset(absent & present | absent.intersection(boxed))
    kept: dict[str, Item] = {}
    for item in items:
        if item.label in doubtful or (item.score is not None and item.label in boxed):
            continue
        kept.setdefault(item.label, item)
    return tuple(kept.values()), doubtful
