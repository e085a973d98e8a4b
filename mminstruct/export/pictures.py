"""The images of an export: which are wanted, fetched, left out."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from tqdm.auto import tqdm

from mminstruct import licenses, sources
from mminstruct.errors import UsageError, did_you_mean
from mminstruct.resources import is_inside
from mminstruct.rows.columns import FEATURES

if TYPE_CHECKING:
    from mminstruct.fetching.images import Fetching, Wanted
from mminstruct.export.formats import Format, Images, LeftOut, Row
from mminstruct.licenses import Part, together


class Excluded(LeftOut):
    """A row whose image's licence, or use, was not asked for; its text is the licence."""


def filter_by_license(
    registry: licenses.Registry, allowed: Sequence[str]
) -> Callable[[str | None], bool]:
    """Whether an image's licence is among those asked for."""
    words = {"any", "commercial"}
    for name in allowed:
        if name not in words and registry.license(name) is None:
            known = words | registry.licenses.keys()
            raise UsageError(f"image_licenses: unknown licence {name!r}{did_you_mean(name, known)}")
    entries = [registry.license(name) for name in allowed if name not in words]

    def is_allowed(name: str | None) -> bool:
        entry = registry.license(name)
        commercial = "commercial" in allowed and registry.allows(name) is True
        return "any" in allowed or commercial or (entry is not None and entry in entries)

    return is_allowed


class WantedImages:
    """The images to fetch, each once, in a table on disk: there may be millions.

    Args:
        file: the table; a new one.
    """

    def __init__(self, file: Path) -> None:
        # `images.fetch` goes on in a thread, but never while this one does.
        self._table = sqlite3.connect(file, check_same_thread=False)
        self._table.execute(
            "CREATE TABLE image (file TEXT UNIQUE, url TEXT, turn INTEGER, lost TEXT)"
        )

    def __enter__(self) -> WantedImages:
        return self

    def __exit__(self, *exc: object) -> None:
        self._table.close()

    def add(self, file: str, row: Row) -> None:
        """Ask for a row's image, unless that was done before."""
        self._table.execute(
            "INSERT OR IGNORE INTO image VALUES (?, ?, ?, NULL)",
            (file, row["image_url"], _turn(row)),
        )

    def __len__(self) -> int:
        (count,) = self._table.execute("SELECT count(*) FROM image").fetchone()
        return int(count)

    def __iter__(self) -> Iterator[Wanted]:
        """The images; the table may change meanwhile."""
        from mminstruct.fetching.images import Wanted

        last = 0
        query = "SELECT rowid, file, url, turn FROM image WHERE rowid > ? ORDER BY rowid LIMIT 1000"
        while page := self._table.execute(query, (last,)).fetchall():
            last = page[-1][0]
            yield from (Wanted(*image) for _, *image in page)

    def lose(self, file: str, reason: str) -> None:
        """Note why there is no such image."""
        self._table.execute("UPDATE image SET lost = ? WHERE file = ?", (reason, file))

    def lost(self, file: str, url: str) -> str | None:
        """Why the image from that address isn't in the folder under that name, or None."""
        query = "SELECT url, lost FROM image WHERE file = ?"
        first, lost = self._table.execute(query, (file,)).fetchone()
        return lost if first == url else "another image has the same file name"


@dataclass
class Shipped:
    """The images that go along with the rows; the strictest of what is known of each counts.

    Attributes:
        registry: what is known about licences.
        noted: whether the release says that an image under a licence may be used commercially.
        max_size: what they are made smaller to, or None.
        counts: licence -> images.
    """

    registry: licenses.Registry
    noted: Callable[[str | None], bool | None]
    max_size: int | None = None
    counts: Counter[str | None] = field(default_factory=Counter)

    def allows(self, license: str | None) -> bool | None:
        """Whether an image under a licence may be used commercially; None is unknown."""
        return together(self.noted(license), self.registry.allows(license))

    def compose(self, row: Row) -> Row:
        """The row, which may be used as its text and its image may."""
        if row["modality"] != "image" or "commercial_use" not in row:
            return row
        use = together(row["commercial_use"], self.allows(row["image_license"]))
        return {**row, "commercial_use": use}

    def credit(self, row: Row, file: str) -> dict[str, Any]:
        """Count a row's image; what naming its author takes, and what was done to it."""
        self.counts[row["image_license"]] += 1
        known = {name: row.get(name) for name in ("image_url", "image_license", "image_credit")}
        return {"image": file, **known, "turned_deg": _turn(row), "max_size": self.max_size}

    def parts(self) -> Iterator[Part]:
        """The images by licence, the most frequent first."""
        for name, count in sorted(self.counts.items(), key=lambda item: (-item[1], item[0] or "")):
            part = licenses.image_part(self.registry, license=name, count=count)
            if self.allows(name) is not part.commercial:
                known = "without commercial use" if self.noted(name) is False else "not known"
                part = replace(part, note=f"{part.note}; {known}, as the release says")
            yield part


@dataclass
class Pictures:
    """Where the rows' images are.

    Attributes:
        images: how they get into the output.
        allows: whether an image under that licence is asked for.
        commercial: rows that may be used commercially alone are asked for.
        folder: where they are, or are fetched to.
        wanted: those that were to be fetched.
        shipped: those that go along, or None if the rows only name them.
        flaws: what is wrong with each file that was looked at, by a digest of its name.
        features: of the rows.
    """

    images: Images = "none"
    allows: Callable[[str | None], bool] = lambda license: True
    commercial: bool = False
    folder: Path = Path()
    wanted: WantedImages | None = None
    shipped: Shipped | None = None
    flaws: dict[bytes, str | None] = field(default_factory=dict)
    features: datasets.Features = field(default_factory=lambda: FEATURES)

    def check(self, row: Row, form: Format) -> None:
        """Raise UsageError for a row that the format can't hold, LeftOut if it isn't asked for."""
        modality = row["modality"]
        is_held = modality == "image" or (modality == "text" and form.layout != "tar")
        if not (form.any_modality or is_held):
            raise UsageError(
                f"{form.reader} reads images, and row {row['id']} is about {modality}; use the "
                "format jsonl"
            )
        is_allowed = modality == "text" or self.allows(row["image_license"])
        if not is_allowed or (self.commercial and row.get("commercial_use") is not True):
            raise Excluded(row["image_license"] or "an unknown licence")

    def file(self, row: Row, form: Format) -> str | None:
        """The file of a row's image in the folder, or None for a motion, text ..."""
        if row["modality"] != "image":
            return None
        if not is_inside(row["image"] or ""):
            raise LeftOut("its image has no file name, or one that leads out of a folder")
        is_shipped = self.images == "embed" and _find_shipped(row) is not None
        if self.images in ("url", "embed") and not (row["image_url"] or is_shipped):
            raise LeftOut("no address for its image")
        if _turn(row) % 90:
            raise LeftOut(f"its image would have to be turned by {_turn(row)} degrees")
        if self.images != "embed" and not form.any_modality and _turn(row):
            raise LeftOut("its image has to be turned, which --images embed does")
        return form.file_name(row["image"])

    def flaw(self, file: str) -> str | None:
        """Why a file in the folder is no image that a trainer can open, or None."""
        path = self.folder / file
        if not os.path.isfile(path):  # noqa: PTH113 (is_file() raises for a name that is too long)
            return "no such file"
        if self.wanted is not None:  # looked at when it was fetched
            return None
        from PIL import Image

        from mminstruct.fetching import images

        digest = hashlib.blake2b(file.encode(), digest_size=16).digest()
        if digest not in self.flaws:
            with warnings.catch_warnings():  # about images that are large, but can be opened
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                self.flaws[digest] = images.flaw(path)
        return self.flaws[digest]

    def as_shown(self, row: Row) -> Row:
        """The row about the file that comes with it: an image that was fetched is upright."""
        return {**row, "rotation_deg": 0} if self.images == "embed" and _turn(row) else row

    def path(self, row: Row, form: Format, output: Path) -> str | None:
        """The row's image as the format's reader finds it."""
        if self.images == "none" and form.any_modality:
            return row["image"]  # type: ignore[no-any-return]  # a row is a dict of Any
        file = self.file(row, form)
        if file is None:
            return None
        if self.images == "none":
            return form.name(row["image"])
        if self.images == "url":
            return row["image_url"]  # type: ignore[no-any-return]  # a row is a dict of Any
        lost = self.wanted.lost(file, row["image_url"]) if self.wanted is not None else None
        if flaw := lost or self.flaw(file):
            raise LeftOut(flaw, self.folder / file)
        if form.root == "images":
            return form.name(row["image"])
        if form.root == "output":
            return Path(os.path.relpath(self.folder / file, output.parent)).as_posix()
        return (self.folder / file).as_posix()


def fetch_images(
    rows: Iterable[tuple[str, Row]], form: Format, pictures: Pictures, fetching: Fetching
) -> None:
    """Bring the images of all rows into the folder, as far as they can be had."""
    from mminstruct.fetching import images

    wanted = pictures.wanted
    assert wanted is not None
    for _, row in rows:
        try:
            pictures.check(row, form)
            file = pictures.file(row, form)
        except LeftOut:
            continue  # said when rows are written
        if file is not None:
            wanted.add(file, row)
            if (shipped := _find_shipped(row)) is not None:
                images.place(shipped, pictures.folder / file, fetching.max_size)
    with tqdm(desc="images", total=len(wanted), unit="", disable=None) as bar:

        def done(file: str, reason: str | None) -> None:
            if reason is not None:
                wanted.lose(file, reason)
            bar.update()

        images.fetch(wanted, pictures.folder, fetching, done)


def _find_shipped(row: Row) -> Path | None:
    """The row's image if it comes with the package, as the bundled sample's do."""
    return None if row["image_url"] else sources.shipped_image(row.get("source", ""), row["image"])


def _turn(row: Row) -> int:
    """Degrees by which the row's image has to be turned; older releases don't say."""
    return (row.get("rotation_deg") or 0) % 360
