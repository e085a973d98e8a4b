"""The bundled sample: twelve drawn scenes with captions and true boxes, CC0-1.0.

It has COCO's file format, needs no download and is what ``make demo`` and many tests run on.
``tests/sample/draw.py`` makes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from mminstruct.checks.vocabulary import Vocabulary
from mminstruct.schema import Context
from mminstruct.sources._annotation_file import files_of
from mminstruct.sources._base import Download, Files, ReadReport, SourceInfo
from mminstruct.sources._coco import read_contexts

IMAGES = Path(__file__).parents[1] / "sample" / "images"

_LICENSE = "CC0-1.0"
_LICENSE_URL = "https://creativecommons.org/publicdomain/zero/1.0/"


@dataclass(frozen=True, slots=True)
class SampleSource:
    """The annotations in ``mminstruct/sample``."""

    folder: Path = Path(__file__).parents[1] / "sample" / "annotations"

    info = SourceInfo(
        name="SAMPLE",
        title="the mminstruct sample",
        description="Twelve drawn scenes with five captions each and boxes around all objects.",
        homepage="https://pypi.org/project/mminstruct/",
        citation="",
        license=_LICENSE,
        license_url=_LICENSE_URL,
        attribution="Captions, boxes and images are from mminstruct, dedicated to the public "
        f"domain under CC0 1.0 ({_LICENSE_URL}).",
        media_license=f"The images are drawings by mminstruct, {_LICENSE}.",
        splits=("train",),
        fitted=False,
        exhaustive=True,
    )

    def vocabulary(self, files: Files) -> Vocabulary:
        """The scenes' categories."""
        drawn = {box.label for context in self.read(files, ReadReport()) for box in context.boxes}
        return Vocabulary.of(dict.fromkeys(drawn, ()))

    def downloads(self, split: str) -> tuple[Download, ...]:
        """None: it ships with the package."""
        return ()

    def file_names(self, split: str) -> dict[str, str]:
        """Role -> name."""
        return {role: f"{role}_{split}.json" for role in ("captions", "instances")}

    def locate(self, places: Sequence[Path], split: str) -> Files | None:
        """The shipped files, whatever the places."""
        paths = {role: self.folder / name for role, name in self.file_names(split).items()}
        return files_of(paths) if all(p.is_file() for p in paths.values()) else None

    def read(self, files: Files, report: ReadReport) -> Iterator[Context]:
        """The twelve scenes in ascending order of their id."""
        for context in read_contexts(files, report):
            media = replace(context.media, license=_LICENSE, license_url=_LICENSE_URL)
            yield replace(context, media=media)


SOURCE = SampleSource()
