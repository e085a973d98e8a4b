"""Several sources as one, joined on the image: ``COCO2017+LVIS+LN``.

The first says which images there are, in which splits; the others add what they know of those, from
whichever of their own splits. All of them give contexts in ascending order of the image's id, so
joining is one pass over them; only own data, and what is joined by the images' names, is sorted.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, repeat
from pathlib import Path
from typing import Any

import msgspec

from mminstruct.errors import SourceError
from mminstruct.resources import count_of
from mminstruct.schema import Box, Context, Media, digest
from mminstruct.sources._base import Download, Files, ReadReport, Source, SourceInfo

SAME_OBJECT_IOU = 0.5
"""Two boxes of one label and two sources are the same object if they overlap by more than this."""

ALIKE_IOU = 0.8
"""The same of two boxes whose labels are merely alike: they have to coincide nearly."""

_SEPARATOR = "|"
# Of an image: a licence of one source with the address of another's would be neither's.
_TOLD_TOGETHER = (
    ("url",),
    ("landing_url",),
    ("width", "height"),
    ("license", "license_url"),
    ("author", "author_url"),
    ("title",),
    ("duration_s",),
)


@dataclass(frozen=True, slots=True)
class JoinedSource:
    """A source whose contexts hold what several sources know of the same image.

    Attributes:
        first: says which images there are.
        others: add their annotations to those.
    """

    first: Source
    others: tuple[Source, ...]

    @property
    def info(self) -> SourceInfo:
        """Follows from those of the parts."""
        parts = tuple(part.info for part in (self.first, *self.others))
        first = parts[0]
        return SourceInfo(
            name="+".join(part.name for part in parts),
            title=f"{first.title} with {' and '.join(part.title for part in parts[1:])}",
            description=" ".join(part.description for part in parts),
            homepage=first.homepage,
            citation="\n".join(dict.fromkeys(part.citation for part in parts if part.citation)),
            license=" AND ".join(sorted({part.license for part in parts})),
            license_url=first.license_url,
            attribution=" ".join(f"{part.attribution.rstrip('.')}." for part in parts),
            media_license=first.media_license,
            splits=first.splits,
            version=first.version,
            prompt_config=next(
                (p.prompt_config for p in parts if p.prompt_config != "llava"), "llava_joined"
            ),
            modality=first.modality,
            parts=parts,
            fitted=any(part.fitted for part in parts),
            exhaustive=any(part.exhaustive for part in parts),
            alike=tuple(dict.fromkeys(pair for part in parts for pair in part.alike)),
        )

    def members(self, split: str) -> tuple[tuple[Source, str], ...]:
        """The parts with the splits of theirs that a split of the whole needs."""
        return (
            (self.first, split),
            *((other, own) for other in self.others for own in other.info.splits),
        )

    def file_names(self, split: str) -> dict[str, str]:
        """Those of all parts."""
        return {
            f"{number}{_SEPARATOR}{role}": name
            for number, (source, own) in enumerate(self.members(split))
            for role, name in source.file_names(own).items()
        }

    def downloads(self, split: str) -> tuple[Download, ...]:
        """Those of all parts."""
        every = (d for source, own in self.members(split) for d in source.downloads(own))
        return tuple(dict.fromkeys(every))

    def locate(self, places: Sequence[Path], split: str) -> Files | None:
        """The files of all parts, or None if one of them isn't there."""
        paths: dict[str, Path] = {}
        fingerprints = []
        for number, (source, own) in enumerate(self.members(split)):
            files = source.locate(places, own)
            if files is None:
                return None
            fingerprints.append([source.info.name, own, files.fingerprint])
            paths |= {f"{number}{_SEPARATOR}{role}": path for role, path in files.paths.items()}
        return Files(paths, digest(fingerprints)[:32])

    def parts_with(self, files: Files) -> list[tuple[Source, Files]]:
        """The parts, each with its own of the files."""
        found = []
        # Which files belong to which part is in the numbers; any split has the same parts.
        for number, (source, _) in enumerate(self.members(self.first.info.splits[0])):
            roles = (role.partition(_SEPARATOR) for role in files.paths)
            own = {r: files.paths[f"{n}{s}{r}"] for n, s, r in roles if n == str(number)}
            found.append((source, Files(own, files.fingerprint)))
        return found

    def read(self, files: Files, report: ReadReport) -> Iterator[Context]:
        """The first source's contexts, each with what the others know of its image.

        Raises:
            SourceError: as in the parts, or a part knows none of the images.
        """
        streams, reports, parts = [], [], self.parts_with(files)
        on = [getattr(part, "join_on", None) for part, _ in parts]
        key = _by_name if "image" in on else _by_id
        alike = frozenset(self.info.alike)
        for number, (source, own) in enumerate(parts):
            reports.append(ReadReport())
            contexts = source.read(own, reports[-1])
            is_sorted = key is _by_id and on[number] is None
            stream = contexts if is_sorted else iter(sorted(contexts, key=key))
            streams.append(zip(repeat(number), stream))  # noqa: B905 (repeat has no end)
        names = [source.info.name for source, _ in parts]
        matched, unmatched = Counter[str](), Counter[str]()
        in_step = heapq.merge(*streams, key=lambda pair: (key(pair[1]), pair[0]))
        for _, same in groupby(in_step, key=lambda pair: key(pair[1])):
            of_image = list(same)
            known = [context for number, context in of_image if not number]
            more = [(names[number], context) for number, context in of_image if number]
            (matched if known else unmatched).update(name for name, _ in more)
            for _, other in more if known else ():
                known[0] = join_contexts(known[0], other, report, alike=alike)
            report.contexts += len(known)
            yield from known
        for name, count in unmatched.items():
            if not matched[name]:
                raise SourceError(
                    f"{names[0]}+{name}: no image in common, got {count_of(count, 'image')} of "
                    f"{name} against at least one of {names[0]} expected. Join sources of the same "
                    "images."
                )
            reason = f"{name}: image that is not among those of {names[0]}"
            report.skip(reason, count, harmless=True)
        for name, own_report in zip(["", *names[1:]], reports, strict=True):
            report.add(own_report, name)


def _by_id(context: Context) -> str:
    """The id, a number with the zeros before it that COCO's have."""
    return context.id.zfill(12) if context.id.isdigit() else context.id


def _by_name(context: Context) -> str:
    return context.media.file_name


def join_contexts(
    one: Context,
    other: Context,
    report: ReadReport,
    *,
    alike: Collection[tuple[str, str]] = frozenset(),
) -> Context:
    """What two sources know of one image.

    Of the image itself, what the first says, and the other where the first says nothing. Captions
    follow each other, without repetitions. Of two boxes of the same object the first's is kept, or
    the one with the closer label. Other annotations follow each other by kind, and labels that
    contradict the other source's are left out.

    ``alike`` is as in `SourceInfo`.
    """
    captions = {caption.casefold(): caption for caption in (*other.captions, *one.captions)}
    ordered = dict.fromkeys(caption.casefold() for caption in (*one.captions, *other.captions))
    boxes = _merged_boxes(one.boxes, other.boxes, alike)
    annotations = dict(one.annotations)
    for kind, items in other.annotations.items():
        annotations[kind] = tuple(dict.fromkeys((*annotations.get(kind, ()), *items)))
    if found := annotations.get("labels"):
        annotations["labels"] = report.agreeing(found, boxes)
    return Context(
        one.id,
        _media(one.media, other.media),
        captions=tuple(captions[key] for key in ordered),
        boxes=boxes,
        annotations={kind: items for kind, items in annotations.items() if items},
    )


def _media(one: Media, other: Media) -> Media:
    filled: dict[str, Any] = {}
    for names in _TOLD_TOGETHER:
        if all(getattr(one, name) is None for name in names):
            filled |= {name: getattr(other, name) for name in names}
    return msgspec.structs.replace(one, **filled) if any(filled.values()) else one


def _merged_boxes(
    one: Sequence[Box], other: Sequence[Box], alike: Collection[tuple[str, str]]
) -> tuple[Box, ...]:
    """The boxes of the first, then those of the second that are other objects.

    Each box of the first takes at most one of the second, the one that overlaps most; it gives way
    to it where that has the closer label.
    """
    pairs = sorted(
        (-overlap, i, j)
        for i, mine in enumerate(one)
        for j, theirs in enumerate(other)
        if (least := _least_iou(mine.label, theirs.label, alike)) is not None
        and (overlap := iou(mine, theirs)) > least
    )
    merged = list(one)
    taken: set[int] = set()
    same: set[int] = set()
    for _, i, j in pairs:
        if i not in taken and j not in same:
            taken.add(i)
            same.add(j)
            if (other[j].label, one[i].label) in alike:
                merged[i] = other[j]
    return (*merged, *(box for j, box in enumerate(other) if j not in same))


def _least_iou(one: str, other: str, alike: Collection[tuple[str, str]]) -> float | None:
    """The overlap from which on boxes with these labels are one object; None if they never are."""
    if one.casefold() == other.casefold():
        return SAME_OBJECT_IOU
    return ALIKE_IOU if (one, other) in alike or (other, one) in alike else None


def iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes, 0..1."""
    a, b = one.bbox_xyxy_norm, other.bbox_xyxy_norm
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    union = one.area + other.area - shared
    # The area of a box may be too small for a float.
    return shared / union if union > 0 else float(a == b)


def join(parts: Iterable[Source]) -> JoinedSource:
    """The parts as one source.

    Raises:
        SourceError: a part is named twice.
    """
    first, *others = parts
    known = [part.info.name for part in (first, *others)]
    if twice := next((name for name in known if known.count(name) > 1), None):
        raise SourceError(f"{'+'.join(known)}: {twice} is named twice; name each source once")
    return JoinedSource(first, tuple(others))
