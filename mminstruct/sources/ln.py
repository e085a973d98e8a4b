"""Localized Narratives of COCO images: what people said while they pointed at what they saw.

Mostly of use beside COCO itself, as in ``COCO2017+LN``: the narratives come without boxes.

**Source:** https://google.github.io/localized-narratives/. Annotations: CC BY 4.0, Google LLC.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mminstruct.annotations import narratives
from mminstruct.errors import SourceError, UsageError, did_you_mean
from mminstruct.schema import Context, Media
from mminstruct.sources import Download, Files, ReadReport, SourceInfo, _narratives
from mminstruct.sources._annotation_file import find, fingerprint

_FILE_SPLIT = {"train": "train", "validation": "val"}


@dataclass(frozen=True, slots=True)
class CocoNarrativesSource:
    """The narratives of COCO's images, in the splits of 2017."""

    @property
    def info(self) -> SourceInfo:
        """Facts about the release."""
        return SourceInfo(
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
            version="1.0.0",
            prompt_config="llava_joined",
        )

    def downloads(self, split: str) -> tuple[Download, ...]:
        """The published file with the captions alone."""
        return (Download(f"{_narratives.URL}/{self._file_name(split)}"),)

    def locate(self, places: Sequence[Path], split: str) -> Files | None:
        """The split's file, given itself or in a folder or its ``localized_narratives``."""
        name = self._file_name(split)
        for place in places:
            for folder in (place, place / "localized_narratives", place / "annotations"):
                # A zip may be one of COCO's; narratives are published without.
                found = (p for p in find(folder, name) if folder.is_dir() or p == place)
                if path := next(found, None):
                    return Files({"narratives": path}, fingerprint({"narratives": path}))
        return None

    def read(self, files: Files, report: ReadReport) -> Iterator[Context]:
        """The images that have a narrative, in ascending order of their id.

        Ids have no leading zeros in this file; a context's has COCO's twelve digits.

        Raises:
            SourceError: a line isn't a narrative of a COCO image.
        """
        path = files.paths["narratives"]
        texts: dict[int, dict[str, None]] = {}
        for narrative in _narratives.read(path):
            if not narrative.caption:
                report.skip("empty narrative")
                continue
            own = texts.setdefault(_number(narrative.image_id, path.name), {})
            if narrative.caption in own:
                report.skip("repeated narrative")
            own[narrative.caption] = None
        for number in sorted(texts):
            report.contexts += 1
            items = tuple(narratives.Item(text) for text in texts[number])
            name = f"{number:012d}"
            yield Context(name, Media(f"{name}.jpg"), annotations={"narratives": items})

    def _file_name(self, split: str) -> str:
        if split not in _FILE_SPLIT:
            raise UsageError(f"LN has no split {split!r}{did_you_mean(split, _FILE_SPLIT)}")
        return f"coco_{_FILE_SPLIT[split]}_captions.jsonl"


SOURCE = CocoNarrativesSource()


def _number(image_id: str, where: str) -> int:
    if not (image_id.isascii() and image_id.isdigit() and len(image_id) <= 12):
        raise SourceError(
            f"{where}: got the image id {image_id!r} against a COCO number of up to twelve digits "
            "expected. Fix that line or download the file again."
        )
    return int(image_id)
