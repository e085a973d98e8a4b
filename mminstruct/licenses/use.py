"""What rows may be used for, in one sentence: their text, then their images, then both together.

All who say it make it here, from counts of the images and rows that they speak of.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mminstruct.licenses.registry import together

Allows = Callable[[str | None], bool | None]
"""Whether an image under a licence may be used commercially, as `Registry.allows` says."""

YES_NO = {True: "yes", False: "no", None: "not known"}
_SHARES = {True: "free", False: "barred", None: "unknown"}


@dataclass(frozen=True, slots=True)
class Use:
    """What rows may be used for commercially, to train any model, obligations aside.

    Attributes:
        text: whether all text may be; None is not known.
        media: how many images (motions ...) are ``free``, ``barred`` or ``unknown``.
        rows: the same of text and image together.
        kind: what the images are, in the plural.
        is_counted: whether the numbers are true; else only what is said of all of them is.
    """

    text: bool | None
    media: Mapping[str, int] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    kind: str = "images"
    is_counted: bool = True

    def __str__(self) -> str:
        free, total = self.rows.get("free", 0), sum(self.rows.values())
        text = f"text: {'not all of it' if free and not self.text else YES_NO[self.text]}"
        if not total:
            return text
        if self.is_counted or len(self.media) == 1:
            text += f"; {self.kind}: {self._tell_share(self.media, '', ' be used commercially')}"
        else:
            text += f"; {self.kind}: known once the annotations are read"
        if not self.is_counted and len(self.rows) > 1:
            return text
        way_out = "; --commercial leaves them out" if self.text and 0 < free < total else ""
        return f"{text}, so {self._tell_share(self.rows, ' rows')}{way_out}"

    def _tell_share(self, counts: Mapping[str, int], things: str, end: str = "") -> str:
        """Which of them may be used, or may not, or aren't known to."""
        number = f"{sum(counts.values()):,}{things}"
        some = number if self.is_counted else f"the{things}" if things else "them"
        if set(counts) == {"free"}:
            return f"all {'' if self.is_counted else 'of '}{some} may{end}"
        if set(counts) == {"barred"}:
            return f"none of {some} may{end}"
        if set(counts) == {"unknown"}:
            return f"none of {some} is known to be free"
        barred, unknown = counts.get("barred", 0), counts.get("unknown", 0)
        if not barred:
            return f"{unknown:,} of {number} unknown"
        return f"{barred:,} of {number} may not{end}{f', {unknown:,} unknown' if unknown else ''}"

    def as_json(self) -> dict[str, Any]:
        """Plain data: the counts, and what they are of."""
        return {"kind": self.kind, "media": dict(self.media), "rows": dict(self.rows)}


@dataclass(slots=True)
class Tally:
    """Images and rows counted by what they may be used for; of an image a digest is held.

    Attributes:
        media: licence of images (motions ...) -> how many of them, and how many rows about them.
        rows: whether text and image together may be used commercially -> rows.
        kinds: what the images are.
    """

    media: dict[str | None, list[int]] = field(default_factory=dict)
    rows: Counter[bool | None] = field(default_factory=Counter)
    kinds: set[str] = field(default_factory=set)
    _seen: set[bytes] = field(default_factory=set)

    def add(self, row: Mapping[str, Any]) -> bool:
        """Count a row; whether it is the first about its image."""
        name = row.get("image_id") or row.get("image") or row["id"]
        image = hashlib.blake2b(f"{row.get('source')}\0{name}".encode(), digest_size=16).digest()
        is_first = image not in self._seen
        self._seen.add(image)
        self._count(row["image_license"], int(is_first), 1, row.get("commercial_use"))
        self.kinds.add(row["modality"])
        return is_first

    def expect(
        self, licenses: Mapping[str | None, int], types: int, text: bool | None, allows: Allows
    ) -> None:
        """Count rows that are to come: of each type one about every image, by its licence."""
        for license, count in licenses.items():
            self._count(license, count, count * types, together(text, allows(license)))

    def _count(self, license: str | None, images: int, rows: int, use: bool | None) -> None:
        counts = self.media.setdefault(license, [0, 0])
        counts[0] += images
        counts[1] += rows
        self.rows[use] += rows

    def use(self, text: bool | None, allows: Allows, *, is_counted: bool = True) -> Use:
        """What the rows may be used for, with what is known of all their text."""
        media: Counter[str] = Counter()
        for license, (count, _) in self.media.items():
            media[_SHARES[allows(license)]] += count
        rows = {_SHARES[use]: count for use, count in self.rows.items()}
        kind = f"{next(iter(self.kinds))}s" if len(self.kinds) == 1 else "media"
        return Use(text, media, rows, kind, is_counted)
