"""One HTML file that shows rows beside the images and annotations that they are about.

Nobody has looked at the text, so it is data to the page's script and never markup, and a policy in
the page (Content-Security-Policy) runs that script alone and loads nothing but images.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import msgspec

from mminstruct import annotations as kinds
from mminstruct import datafiles, sources
from mminstruct.checks import verdict_of
from mminstruct.reports.contexts import Contexts
from mminstruct.reports.rows import Row
from mminstruct.resources import count_of, is_inside
from mminstruct.rows.columns import ROW
from mminstruct.rows.report import VIEW
from mminstruct.schema import Box, Media

_CREDIT = tuple(ROW["image_credit"].type)


@dataclass(slots=True)
class Sample:
    """Rows of images that are drawn evenly from all that pass by, each image with all its rows.

    The images are those whose names have the lowest digests: the same ones every time, and with a
    higher limit the same and more.

    Attributes:
        limit: rows that are held at most.
        seen: rows that passed by.
        images: the rows held, by image, in the order in which they came.
    """

    limit: int
    seen: int = 0
    images: dict[str, list[Row]] = field(default_factory=dict)
    _held: int = 0
    _highest: list[tuple[int, str]] = field(default_factory=list)
    _bound: int = 2**64

    @property
    def rows(self) -> list[Row]:
        """All that are held."""
        return [row for rows in self.images.values() for row in rows]

    def add(self, row: Row) -> None:
        """Look at a row, and hold it if it is drawn."""
        self.seen += 1
        name = f"{row.source}/{row.image_id or row.image or row.id}"
        place = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
        if place >= self._bound:
            return
        if name not in self.images:
            self.images[name] = []
            heapq.heappush(self._highest, (-place, name))
        if len(self.images[name]) < self.limit:
            self.images[name].append(row)
            self._held += 1
        while self._held > self.limit:
            highest, last = heapq.heappop(self._highest)
            self._bound = -highest
            self._held -= len(self.images.pop(last))


class _Entry(msgspec.Struct, frozen=True):
    """Of what gave no row, as `Report.entries` has it."""

    id: str
    type: str
    outcome: str
    reason: str
    detail: str | None = None
    answer: str | None = None


def read_rejected_rows(file: Path, known: Iterable[str]) -> Iterator[Row]:
    """What gave no row, as rows without turns, whose columns are the entry.

    Args:
        file: ``rejected.jsonl``.
        known: names of sources, which tell the image's identifier from the rest of an id.

    Raises:
        UsageError: it can't be read.
    """
    names = sorted(known, key=len, reverse=True)
    with datafiles.as_usage_errors(file):
        for line in datafiles.read_file(file):
            entry = msgspec.convert(line, _Entry)
            sample = entry.id.removesuffix(f"-{entry.type}")
            source = next((name for name in names if sample.startswith(f"{name.lower()}-")), "")
            image_id = sample[len(source) + 1 :] if source else sample
            columns = msgspec.structs.asdict(entry)
            yield Row(entry.id, entry.type, source, image_id, "", (), None, None, columns)


@dataclass(frozen=True, slots=True)
class Images:
    """Where the page finds images.

    Attributes:
        page: the page's file, which names others from where it is.
        folder: where they were said to be, or None: then they are beside the rows, come with the
            package, or are where their publisher serves them.
        beside: the folder of the rows.
        lost: names of those that `address` looked for in vain.
    """

    page: Path
    folder: Path | None
    beside: Path
    lost: set[str] = field(default_factory=set)

    def tell_lost(self) -> list[str]:
        """A sentence, if any are lost."""
        lost = count_of(len(self.lost), "image is", "images are")
        return [f"{lost} not at hand: --images DIR says where."] if self.lost else []

    def address(self, media: Media, source: str) -> str | None:
        """What the page asks for, or None."""
        name = media.file_name
        where = self.folder or self.beside
        found = [where / name, where / Path(name).name]
        if self.folder is None:
            found += filter(None, [sources.shipped_image(source, name)])
        for file in found if is_inside(name) else ():
            if os.path.isfile(file):  # noqa: PTH113 (is_file() raises for a name that is too long)
                return self._link(file)
        found_on_web = None if self.folder else _web(media.url) or _web(name)
        if name and found_on_web is None:
            self.lost.add(name)
        return found_on_web

    def _link(self, file: Path) -> str:
        try:
            return quote(Path(os.path.relpath(file, self.page.parent)).as_posix())
        except ValueError:  # on Windows, of another drive
            return file.absolute().as_uri()


def render(
    title: str,
    told: Sequence[str],
    sample: Sample,
    contexts: Mapping[str, Contexts],
    images: Images,
) -> str:
    """The page.

    Args:
        title: its heading.
        told: sentences below it.
        sample: the rows to show.
        contexts: those of the rows' images, by the source that rows name, as far as there are some.
            Rows without checks are held against them.
        images: where images are.
    """
    shown = [
        _show_image(rows, contexts.get(rows[0].source), images) for rows in sample.images.values()
    ]
    nouns = {image.pop("noun") for image in shown}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["csp"] = _hash_source
    data = {"images": shown, "noun": nouns.pop() if len(nouns) == 1 else "item"}
    told = [*told, *images.tell_lost()]
    return environment.get_template(VIEW).render(title=title, told=told, data=data)


def _hash_source(text: str) -> str:
    """A script or style that a page may have, as its policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _show_image(rows: Sequence[Row], contexts: Contexts | None, images: Images) -> dict[str, Any]:
    first = rows[0]
    context = contexts.find(first) if contexts else None
    media = context.media if context else _media_of(first)
    others = context.annotations if context else {}
    spans, sections = [], []
    for kind in sorted(others, key=kinds.order):
        items = kinds.items(kind, others[kind])
        with_times = [item for item in items if getattr(item, "start_s", None) is not None]
        spans += [msgspec.to_builtins(item) for item in with_times]
        if rest := [item for item in items if item not in with_times]:
            lines = [line.removeprefix("- ") for line in kinds.lines(kind, rest)]
            sections.append({"heading": kinds.heading(kind), "lines": lines})
    boxes = sorted(context.boxes if context else (), key=lambda box: -box.area)
    is_sized = media.width and media.height
    return {
        "name": f"{first.source} {first.image_id or first.image or first.id}".strip(),
        "noun": media.modality,
        "src": images.address(media, first.source) if media.modality == "image" else None,
        "size": [media.width, media.height] if is_sized else None,
        "turn_deg": media.rotation_deg,
        "length_s": media.duration_s or max((span["end_s"] for span in spans), default=0),
        "license": media.license,
        "credit": _credit(media),
        "captions": context.captions if context else (),
        "boxes": [_show_box(box) for box in boxes],  # the small ones in front
        "spans": spans,
        "sections": sections,
        "rows": [_show_row(row, contexts) for row in rows],
    }


def _media_of(row: Row) -> Media:
    """What a row tells of its image; of columns that others wrote, what has the right type."""
    credit = row.columns.get("image_credit")

    def read(name: str, kind: type, columns: Any = row.columns) -> Any:
        value = columns.get(name) if isinstance(columns, Mapping) else None
        return value if isinstance(value, kind) else None

    return Media(
        file_name=row.image,
        modality=read("modality", str) or "image",
        url=read("image_url", str),
        width=read("width", int),
        height=read("height", int),
        rotation_deg=read("rotation_deg", int) or 0,
        license=row.image_license,
        **{name: read(name, str, credit) for name in _CREDIT},
    )


def _credit(media: Media) -> list[dict[str, str | None]]:
    """What is said of an image, each with the page that says more."""
    page = _web(media.landing_url)
    said = (
        (media.title or (page and "its page"), page),
        (media.author, media.author_url),
        (media.license or "licence not known", media.license_url),
        (f"{media.width} × {media.height}" if media.width else None, None),
        (f"{media.duration_s:.1f} s" if media.duration_s else None, None),
        (media.file_name, None),
    )
    return [{"text": text, "url": _web(url)} for text, url in said if text]


def _web(address: str | None) -> str | None:
    """An address that may be followed: others, such as ``javascript:``, aren't."""
    found = (address or "").strip()
    return found if found.lower().startswith(("https://", "http://")) else None


def _show_box(box: Box) -> dict[str, Any]:
    flags = msgspec.structs.asdict(box).items()
    held = [name.removeprefix("is_") for name, value in flags if value is True]
    words = f"{box.label} ({', '.join(held)})" if held else box.label
    return {"label": box.label, "words": words, "bbox_xyxy_norm": box.bbox_xyxy_norm}


def _show_row(row: Row, contexts: Contexts | None) -> dict[str, Any]:
    named = {"id": row.id, "type": row.type}
    if not row.turns:
        entry = {"outcome": "empty", "reason": "no answer", **row.columns}
        return named | {name: entry.get(name) for name in ("outcome", "reason", "detail", "answer")}
    found = contexts.judge(row).findings if contexts and row.checks is None else row.checks
    turns = [
        {
            "question": turn.question,
            "answer": turn.answer,
            "verdict": None if found is None else verdict_of(found, number),
            "findings": [msgspec.structs.asdict(f) for f in found or () if f.turn == number],
        }
        for number, turn in enumerate(row.turns)
    ]
    text, use = row.columns.get("license"), row.columns.get("commercial_use")
    words = "not known" if use is None else "yes" if use is True else "no"
    said = (
        f"Text: {text}. Commercial use of all together: {words}." if use is not None or text else ""
    )
    return {**named, "turns": turns, "use": said}
