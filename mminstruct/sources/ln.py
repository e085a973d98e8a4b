"""Localized Narratives of COCO images: what people said while they pointed at what they saw.

Mostly of use beside COCO itself, as in ``COCO2017+LN``: the narratives come without boxes.

**Source:** https://google.github.io/localized-narratives/. Annotations: CC BY 4.0, Google LLC.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mminstruct.annotations import narratives
from mminstruct.schema import Context, Media
from mminstruct.sources import _narratives
from mminstruct.sources._annotation_file import files_of, folders
from mminstruct.sources._base import Download, Files, ReadReport, SourceInfo, word_for

_FILE_SPLIT = {"train": "train", "validation": "val"}


@dataclass(frozen=True, slots=True)
class CocoNarrativesSource:
    """The narratives of COCO's images, in the splits of 2017."""

    info = SourceInfo(
        name="LN",
        title="Localized Narratives of COCO",
        description=(
            "Descriptions of COCO's images, each spoken by somebody who pointed at what they "
            "saw, and longer than a caption."
        ),
        homepage="https://google.github.io/localized-narratives/",
        citation=_narratives.CITATION,
        license="CC-BY-4.0",
        license_url="https://creativecommons.org/licenses/by/4.0/",
        attribution=(
            "Spoken descriptions are from Localized Narratives "
            "(https://google.github.io/localized-narratives/) by Google LLC, licensed under "
            "CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/); white space was cleaned."
        ),
        media_license=(
            "The images are COCO's, from Flickr, each under a licence of its own; the "
            "narratives don't say which."
        ),
        splits=tuple(_FILE_SPLIT),
        fitted=False,
        prompt_config="llava_joined",
    )

    def downloads(self, split: str) -> tuple[Download, ...]:
        """The published file with the captions alone."""
        return (Download(f"{_narratives.URL}/{self.file_names(split)['narratives']}"),)

    def locate(self, places: Sequence[Path], split: str) -> Files | None:
        """The split's file or its parts, given itself or in a folder or one folder deeper."""
        name = self.file_names(split)["narratives"]
        near = folders(places, "localized_narratives", "annotations")
        return files_of(_narratives.locate(near, name))

    def read(self, files: Files, report: ReadReport) -> Iterator[Context]:
        """The images that have a narrative, in ascending order of their id.

        Ids have no leading zeros in this file; a context's has COCO's twelve digits.

        Raises:
            SourceError: most lines aren't narratives, or are of other images than COCO's.
        """
        texts = _narratives.read(files, "mscoco_", _number, "up to twelve digits", report)
        for number in sorted(texts):
            report.contexts += 1
            items = tuple(narratives.Item(text) for text in texts[number])
            name = f"{number:012d}"
            yield Context(name, Media(f"{name}.jpg"), annotations={"narratives": items})

    def file_names(self, split: str) -> dict[str, str]:
        """Role -> name."""
        word = word_for(split, self.info.name, _FILE_SPLIT)
        return {"narratives": f"coco_{word}_captions.jsonl"}


SOURCE = CocoNarrativesSource()


def _number(image_id: str) -> int | None:
    """COCO's number of up to twelve digits, also where it is a file's name."""
    text = image_id.strip().removesuffix(".jpg")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else None
