"""What a source is, and what reading it reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from mminstruct.annotations import labels
from mminstruct.annotations import names as kinds_of_annotations
from mminstruct.errors import SourceError, UsageError, did_you_mean
from mminstruct.resources import count_of
from mminstruct.schema import Box, Context

_EXAMPLES = 100  # ids that are kept of what is left out for one reason
_REASONS = 5  # that an error names


@dataclass(frozen=True, slots=True)
class Download:
    """A published file.

    Attributes:
        url: where it is served.
        size_bytes: its exact size, or None where the publisher doesn't state it.
        md5: its MD5 in hex, or None where the publisher doesn't state it; then the server's own
            figure is checked, if it sends one.
    """

    url: str
    size_bytes: int | None = None
    md5: str | None = None


@dataclass(frozen=True, slots=True)
class Files:
    """The files that hold one split.

    Attributes:
        paths: role -> file, such as ``{"captions": .../captions_train2017.json}``.
        fingerprint: digest of the bytes that will be read; paths and dates don't enter it.
    """

    paths: dict[str, Path]
    fingerprint: str


@dataclass(slots=True)
class ReadReport:
    """What reading left out, counted by reason, so that nothing is dropped silently.

    Attributes:
        contexts: how many were read.
        kept: what they hold, counted by kind: ``image`` (``motion`` ...), ``caption``, ``box``, and
            the other annotations, ``label`` for ``labels``.
        skipped: what was left out, counted by reason.
        examples: ids of some of it, by reason.
        harmless: the reasons that are no faults of the files.
    """

    contexts: int = 0
    kept: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    harmless: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, modality: str) -> ReadReport:
        """One that knows what may be left out of such contexts."""
        others = (kind.removesuffix("s") for kind in kinds_of_annotations())
        return cls(kept=dict.fromkeys((modality, "caption", "box", *others), 0))

    def keep(self, context: Context) -> Context:
        """Count what a context holds; the context."""
        held = {context.media.modality: 1}
        held |= {"caption": len(context.captions), "box": len(context.boxes)}
        held |= {k.removesuffix("s"): len(items) for k, items in context.annotations.items()}
        for kind, count in held.items():
            self.kept[kind] = self.kept.get(kind, 0) + count
        return context

    def skip(
        self, reason: str, count: int = 1, *, example: str | None = None, harmless: bool = False
    ) -> None:
        """Count something that was left out.

        Args:
            reason: what it is and why; its kind, as in ``kept``, is the first or second word, as in
                ``box outside the image`` or ``empty caption``.
            count: how many.
            example: the id of one of them.
            harmless: it is no fault of the file, such as a repetition: it never stops a run.
        """
        self.skipped[reason] = self.skipped.get(reason, 0) + count
        if example is not None:
            known = self.examples.setdefault(reason, [])
            if len(known) < _EXAMPLES:
                known.append(example)
        if harmless:
            self.harmless.add(reason)

    def agreeing(
        self, items: Sequence[labels.Item], boxes: Iterable[Box], *, example: str | None = None
    ) -> tuple[labels.Item, ...]:
        """An image's labels without repetitions; contradictory ones are left out and counted."""
        agreeing, doubtful = labels.agreeing(items, {box.label for box in boxes})
        if doubtful:
            self.skip("label both present and absent", len(doubtful), example=example)
        return agreeing

    def add(self, other: ReadReport, owner: str = "") -> None:
        """Count what another report counts as left out, under the name of its owner if given."""
        start = f"{owner}: " if owner else ""
        for reason, count in other.skipped.items():
            self.skip(start + reason, count, harmless=reason in other.harmless)
            for example in other.examples.get(reason, ()):
                self.skip(start + reason, 0, example=example)

    def check(self, where: str) -> None:
        """Raise SourceError if faults took more than half of the images, boxes or captions ..."""
        lost: Counter[str] = Counter()
        for reason in self.faults():
            words = reason.rpartition(": ")[2].split()[:2]
            lost.update({kind: self.skipped[reason] for kind in words if kind in self.kept})
        gone = [
            f"{count:,} of {count_of(count + self.kept[kind], kind)}"
            for kind, count in lost.items()
            if count > self.kept[kind]
        ]
        if gone:
            raise SourceError(
                f"{where}: {', '.join(gone)} can't be used, more than half: "
                f"{'; '.join(map(self.line, self.faults()[:_REASONS]))}. Nothing was sent. Give "
                "the right files, or mend these, or take what can't be used out of them"
            )

    def entries(self) -> list[dict[str, Any]]:
        """The same for machines, an entry a reason."""
        return [
            {
                "reason": reason,
                "count": count,
                "fault": reason not in self.harmless,
                "examples": self.examples.get(reason, []),
            }
            for reason, count in self.skipped.items()
        ]

    def faults(self) -> list[str]:
        """The reasons that are faults of the files, the most frequent first."""
        found = (reason for reason in self.skipped if reason not in self.harmless)
        return sorted(found, key=lambda reason: -self.skipped[reason])

    def line(self, reason: str) -> str:
        """What was left out for a reason, in words: how much, why, and one of them."""
        examples = self.examples.get(reason)
        return f"{self.skipped[reason]} x {reason}" + (f" ({examples[0]})" if examples else "")

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_bytes(msgspec.json.encode(self))

    @classmethod
    def read(cls, path: Path) -> ReadReport:
        """What `write` wrote."""
        return msgspec.json.decode(path.read_bytes(), type=cls)


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """Facts about a source that rows, cards and `DatasetInfo` carry.

    Attributes:
        name: as typed on the command line, such as ``COCO2014``.
        title: in words.
        description: one paragraph.
        homepage: URL.
        citation: BibTeX.
        license: SPDX identifier of the annotations' licence.
        license_url: its text.
        attribution: the sentence that the licence asks for.
        media_license: whose the images are and how they are licensed, in one sentence; shares of
            them are counted, as a run may leave some out.
        splits: split names, in order.
        version: version of the reading code; raised when contexts change.
        prompt_config: the prompt config that is used if no other is asked for.
        modality: what its contexts are about, in a word, as in their media.
        parts: of a joined source, the facts about its parts.
        alike: pairs of labels, the closer one first, that may be of one object in two sources.
        fitted: whether the prompt's words go by what each context has; in sources that are older
            than that they don't, as what was answered is found by its prompt.
        declared: licences that a user declared, each of which has to be known.
        exhaustive: whether all objects of COCO's 80 classes and of its vocabulary's labels have a
            box, alone or in a group, so that what has none isn't in the image.
    """

    name: str
    title: str
    description: str
    homepage: str
    citation: str
    license: str
    license_url: str
    attribution: str
    media_license: str
    splits: tuple[str, ...]
    version: str = "1.0.0"
    prompt_config: str = "llava"
    modality: str = "image"
    parts: tuple[SourceInfo, ...] = ()
    alike: tuple[tuple[str, str], ...] = ()
    fitted: bool = True
    declared: tuple[str, ...] = ()
    exhaustive: bool = False


def word_for(split: str, source: str, words: Mapping[str, str]) -> str:
    """The word for a split in a source's file names.

    Raises:
        UsageError: it has no such split.
    """
    if split not in words:
        raise UsageError(f"{source} has no split {split!r}{did_you_mean(split, words)}")
    return words[split]


class Source(Protocol):
    """What every annotation source offers."""

    @property
    def info(self) -> SourceInfo:
        """Facts about the source."""
        ...

    def downloads(self, split: str) -> tuple[Download, ...]:
        """The published files that hold a split's annotations; none if they are shipped.

        Raises:
            SourceError: they can't be downloaded; the message says how to get them.
        """
        ...

    def file_names(self, split: str) -> Mapping[str, str]:
        """The names of the files that hold a split, by their role in `Files`."""
        ...

    def locate(self, places: Sequence[Path], split: str) -> Files | None:
        """The split's files in some folders (extracted, or as published), or None.

        A place may also be a published file itself. Sources that ship with the package are found
        whatever the places.

        Raises:
            SourceError: some of the files are there and others are not.
        """
        ...

    def read(self, files: Files, report: ReadReport) -> Iterator[Context]:
        """The split's contexts in ascending order of their id.

        Raises:
            SourceError: a file is damaged or contradicts another.
        """
        ...
