"""Where the rows of a release come from, and what its files hold."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import DatasetDict, Features

from mminstruct import licenses
from mminstruct.licenses import Registry, Use, Verdict
from mminstruct.prompts.config import PromptConfig
from mminstruct.releases.markdown import to_line
from mminstruct.reports.quality import Quality
from mminstruct.rows.report import Report
from mminstruct.sources import SourceInfo


@dataclass(frozen=True, slots=True)
class Origin:
    """How a release came about.

    Attributes:
        sources: whose annotations.
        configs: the prompt config of each source.
        types: instruction types that were asked for, in order.
        backend: name of the backend.
        model: name of the model.
        verdict: what the text may be used for, and why.
        registry: what is known about licences.
        settings: what else the rows depend on, in words.
        skipped: what reading the annotations left out, counted by reason.
        left_out: the same with examples, an entry a reason, for this machine alone.
        command: what makes the rows again, or None if that isn't known.
        written_on: the day on which the rows were first written as a release, UTC.
        repo_id: where on the Hub it will be; None is a folder.
    """

    sources: tuple[SourceInfo, ...]
    configs: tuple[PromptConfig, ...]
    types: tuple[str, ...]
    backend: str
    model: str
    verdict: Verdict
    registry: Registry = field(default_factory=licenses.load)
    settings: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    left_out: Sequence[Mapping[str, Any]] = ()
    command: str | None = None
    written_on: datetime.date | None = None
    repo_id: str | None = None

    @property
    def title(self) -> str:
        """The release in a line."""
        titles = dict.fromkeys(source.title for source in self.sources)
        start = "Dry run: " if self.is_dry_run else ""
        return f"{start}{' + '.join(titles)} instructions by {to_line(self.model)}"

    @property
    def is_dry_run(self) -> bool:
        """Whether a scripted stand-in wrote the text, and no model."""
        return self.backend == "fake"

    @property
    def media(self) -> str:
        """What the annotations describe, in a word and in the plural."""
        kinds = {source.modality for source in self.sources}
        return f"{kinds.pop()}s" if len(kinds) == 1 else "media"


@dataclass(frozen=True, slots=True)
class MadeRows:
    """Rows that have how they came about with them.

    Attributes:
        rows: by split.
        report: what became of the requests.
        origin: as a release tells it.
        contents: of the rows that this is said of, as `name_contents` gives it.
    """

    rows: DatasetDict
    report: Report
    origin: Origin
    contents: Mapping[str, str]


def name_contents(rows: DatasetDict) -> dict[str, str]:
    """By split what `datasets` calls its content: a split that is replaced has another name."""
    return {str(split): part._fingerprint for split, part in rows.items()}


@dataclass(frozen=True, slots=True)
class DataFile:
    """A Parquet file of a release.

    Attributes:
        path: relative to the release.
        type: instruction type of all its rows.
        split: of all its rows.
        rows: how many.
        num_bytes: of the rows in memory.
        size_bytes: of the file.
        sha256: of the file, in hex.
    """

    path: str
    type: str
    split: str
    rows: int
    num_bytes: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a release.

    Attributes:
        features: of its rows.
        files: its rows, by type and then by split.
        media: licence of images (motions ...) -> how many of them, and how many rows about them.
        use: what text, images and rows may be used for.
        truncated: rows whose last turn was cut off and left out, by type.
        generation: what rows say of how they were made -> the values that occur.
        examples: type -> a row of it.
        quality: what the rows are like.
        credits: images that have to be credited, with `CREDITS`, if they are few.
        credit_count: how many have to be.
        credits_file: where they are listed if they are many, relative to the release.
    """

    features: Features
    files: tuple[DataFile, ...]
    media: Mapping[str | None, tuple[int, int]] = field(default_factory=dict)
    use: Use = field(default_factory=lambda: Use(None))
    truncated: Mapping[str, int] = field(default_factory=dict)
    generation: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    examples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    quality: Quality = field(default_factory=Quality)
    credits: tuple[Mapping[str, str | None], ...] = ()
    credit_count: int = 0
    credits_file: str | None = None

    @property
    def rows(self) -> Counter[str]:
        """Rows by type."""
        counts: Counter[str] = Counter()
        for file in self.files:
            counts[file.type] += file.rows
        return counts


def all_sources(origin: Origin) -> list[SourceInfo]:
    """The sources, with the parts in the place of joined ones."""
    return list(dict.fromkeys(part for s in origin.sources for part in s.parts or (s,)))


def types_of(origin: Origin, contents: Contents) -> list[str]:
    """The types that were asked for and those that there are, in order."""
    return list(dict.fromkeys([*origin.types, *contents.rows]))
