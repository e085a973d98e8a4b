"""What the COCO releases share: where their files are, and how captions and boxes are read.

A split is two JSON files, ``captions_*`` and ``instances_*``, side by side in one published zip.
The zip is read as it is, nothing is extracted beside it.

**Source:** https://cocodataset.org/#format-data (format) and
https://cocodataset.org/#termsofuse (annotations: CC BY 4.0; images: each has its own licence).
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from mminstruct.errors import SourceError, UsageError, did_you_mean
from mminstruct.schema import Box, Context, Media
from mminstruct.sources import Download, Files, ReadReport, SourceInfo
from mminstruct.sources._annotation_file import AnnotationFile, Layout, decode, find
from mminstruct.sources._annotation_file import fingerprint as fingerprint

IntColumn: TypeAlias = NDArray[np.int64]
FloatColumns: TypeAlias = NDArray[np.float64]

_Id = Annotated[int, msgspec.Meta(ge=0, lt=10**12)]

# Licence id of an image -> (SPDX identifier, URL), as in the ``licenses`` table of every release.
# https://spdx.org/licenses/ has none for the last two.
IMAGE_LICENSES = {
    1: ("CC-BY-NC-SA-2.0", "http://creativecommons.org/licenses/by-nc-sa/2.0/"),
    2: ("CC-BY-NC-2.0", "http://creativecommons.org/licenses/by-nc/2.0/"),
    3: ("CC-BY-NC-ND-2.0", "http://creativecommons.org/licenses/by-nc-nd/2.0/"),
    4: ("CC-BY-2.0", "http://creativecommons.org/licenses/by/2.0/"),
    5: ("CC-BY-SA-2.0", "http://creativecommons.org/licenses/by-sa/2.0/"),
    6: ("CC-BY-ND-2.0", "http://creativecommons.org/licenses/by-nd/2.0/"),
    7: ("LicenseRef-flickr-commons", "http://flickr.com/commons/usage/"),
    8: ("LicenseRef-US-Government-Work", "http://www.usa.gov/copyright.shtml"),
}

# http://farm1.staticflickr.com/<server>/<photo id>_<secret>_<size>.jpg
_FLICKR_FILE = re.compile(r"https?://[\w.-]*flickr\.com/\d+/(\d+)_[0-9a-f]+(?:_\w)?\.jpg")

_FILE_SPLIT = {"train": "train", "validation": "val"}
_IDS_OF_12_DIGITS = range(10**12)
# What a column of sizes holds.
_MAX_SIDE_PX = 2**31 - 1

_CITATION = """\
@inproceedings{lin2014microsoft,
  title     = {Microsoft {COCO}: Common Objects in Context},
  author    = {Lin, Tsung-Yi and Maire, Michael and Belongie, Serge and Hays, James and
               Perona, Pietro and Ramanan, Deva and Doll{\\'a}r, Piotr and Zitnick, C. Lawrence},
  booktitle = {European Conference on Computer Vision},
  pages     = {740--755},
  year      = {2014}
}
@article{chen2015microsoft,
  title   = {Microsoft {COCO} Captions: Data Collection and Evaluation Server},
  author  = {Chen, Xinlei and Fang, Hao and Lin, Tsung-Yi and Vedantam, Ramakrishna and
             Gupta, Saurabh and Doll{\\'a}r, Piotr and Zitnick, C. Lawrence},
  journal = {arXiv preprint arXiv:1504.00325},
  year    = {2015}
}"""


@dataclass(frozen=True, slots=True)
class CocoSource:
    """Captions and object boxes of one COCO release.

    Attributes:
        year: of the release, as in its file names.
        archive: the published zip with the annotations of both splits.
    """

    year: int
    archive: Download

    @property
    def info(self) -> SourceInfo:
        """Facts about the release."""
        return SourceInfo(
            name=f"COCO{self.year}",
            title=f"COCO {self.year}",
            description=(
                f"Everyday scenes from Flickr in the split of {self.year}. Every image has about "
                "five captions written by different people, and boxes around all objects of "
                "80 categories."
            ),
            homepage="https://cocodataset.org/",
            citation=_CITATION,
            license="CC-BY-4.0",
            license_url="https://creativecommons.org/licenses/by/4.0/",
            attribution=(
                f"Captions and boxes are from COCO {self.year} (https://cocodataset.org/) by the "
                "COCO Consortium, licensed under CC BY 4.0 "
                "(https://creativecommons.org/licenses/by/4.0/); white space in captions was "
                "cleaned and boxes were rescaled to fractions of the image."
            ),
            media_license=(
                "The images are from Flickr, each under a licence of its own; the COCO Consortium "
                "does not own them."
            ),
            splits=tuple(_FILE_SPLIT),
            version="1.0.0",
        )

    def downloads(self, split: str) -> tuple[Download, ...]:
        """The published zip; it holds both splits."""
        self._file_names(split)
        return (self.archive,)

    def locate(self, places: Sequence[Path], split: str) -> Files | None:
        """The split's two files in a folder, its ``annotations`` folder or the zip in either.

        A place may also be the zip itself. A file in the zip has the path
        ``<zip>/annotations/<name>``. The fingerprint is the same for the zip and what it extracts
        to.

        Raises:
            SourceError: one of the files is there and the other is not, or the zip is damaged.
        """
        wanted = self._file_names(split)
        places = [inside for place in places for inside in self._places(place)]
        found = {
            role: path
            for role, name in wanted.items()
            if (path := next((p for place in places for p in find(place, name)), None))
        }
        if not found:
            return None
        if missing := [wanted[role] for role in wanted if role not in found]:
            only = next(iter(found.values()))
            way_out = (
                "Give the folder with both" if only in places else "Put the missing file there"
            )
            raise SourceError(
                f"{missing[0]}: missing, got only {only} against both "
                f"{' and '.join(wanted.values())} expected; looked in "
                f"{', '.join(str(place) for place in places)}. {way_out}, or the whole "
                f"{self._archive_name}."
            )
        return Files(found, fingerprint(found))

    def read(self, files: Files, report: ReadReport) -> Iterator[Context]:
        """The images that have a caption, in ascending order of their id.

        Both files are decoded and checked against each other before the first context appears.

        Raises:
            SourceError: a file is damaged, or it contradicts itself or the other one.
        """
        return read_contexts(files, report)

    @property
    def _archive_name(self) -> str:
        return f"annotations_trainval{self.year}.zip"

    def _file_names(self, split: str) -> dict[str, str]:
        if split not in _FILE_SPLIT:
            raise UsageError(
                f"COCO{self.year}: unknown split {split!r}{did_you_mean(split, _FILE_SPLIT)}"
            )
        tail = f"{_FILE_SPLIT[split]}{self.year}.json"
        return {role: f"{role}_{tail}" for role in ("captions", "instances")}

    def _places(self, data_dir: Path) -> list[Path]:
        """Folders and archives to look into, the preferred one first."""
        if data_dir.is_file():
            return [data_dir]
        folders = [data_dir / "annotations", data_dir]
        return folders + [folder / self._archive_name for folder in reversed(folders)]


def read_contexts(files: Files, report: ReadReport) -> Iterator[Context]:
    """The images that have a caption, in ascending order of their id.

    Both files are decoded and checked against each other before the first context appears.

    Args:
        files: with the roles ``captions`` and ``instances``.
        report: counts what is left out.

    Raises:
        SourceError: a file is damaged, or it contradicts itself or the other one.
    """
    instances_path, captions_path = files.paths["instances"], files.paths["captions"]
    instances_file, instances = decode(instances_path, _INSTANCES)
    captions_file, captions = decode(captions_path, _CAPTIONS)
    sizes = sizes_of(instances_file.images, instances_path.name)
    caption_sizes = sizes_of(captions_file.images, captions_path.name)
    categories = _categories(instances_file.categories, instances_path.name)
    instances.check(sizes, instances_path.name)
    instances.check_categories(categories, instances_path.name)
    captions.check(caption_sizes, captions_path.name)
    _check_same_images(caption_sizes, sizes, captions_path.name, instances_path.name)
    if boxes_only := sizes.keys() - caption_sizes.keys():
        report.skip("image without captions", len(boxes_only))
    licenses = Licenses.of(captions_file.licenses)
    images = sorted(captions_file.images, key=lambda image: image.id)
    del instances_file, captions_file
    caption_groups = captions.grouped([image.id for image in images])
    box_groups = instances.grouped([image.id for image in images], sizes, categories)
    for image, texts, boxes in zip(images, caption_groups, box_groups, strict=True):
        cleaned = _clean_captions(texts, report)
        if not cleaned:
            report.skip("image without captions")
            continue
        report.contexts += 1
        media = licenses.media(image, image.file_name)
        yield Context(f"{image.id:012d}", media, cleaned, whole_boxes(boxes, report))


class ImageSize(msgspec.Struct, gc=False):
    """Width and height in pixels."""

    id: int
    width: int
    height: int


class Photo(ImageSize, gc=False):
    """Where the image is from, as far as the file says."""

    coco_url: str | None = None
    flickr_url: str | None = None
    license: int | None = None


class _Image(Photo, kw_only=True, gc=False):
    file_name: str


class _Annotation(msgspec.Struct, gc=False):
    id: _Id
    image_id: _Id


class Instance(_Annotation, gc=False):
    """Its box has the top left corner, width and height in pixels."""

    category_id: _Id
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


class _Caption(_Annotation, gc=False):
    caption: str


class Category(msgspec.Struct, gc=False):
    """A category of objects."""

    id: _Id
    name: str


class License(msgspec.Struct, gc=False):
    """A licence of images, in a file's own table."""

    id: int
    url: str | None = None


class _InstancesFile(AnnotationFile, kw_only=True, gc=False):
    images: list[ImageSize]
    annotations: list[Instance]
    categories: list[Category]


class _CaptionsFile(AnnotationFile, kw_only=True, gc=False):
    images: list[_Image]
    annotations: list[_Caption]
    licenses: list[License] = []


class _Annotations:
    """Columns of annotations in the file's order."""

    def __init__(self) -> None:
        self.ids = array("q")
        self.image_ids = array("q")

    def add(self, annotations: list[Any]) -> None:
        self.ids.extend([annotation.id for annotation in annotations])
        self.image_ids.extend([annotation.image_id for annotation in annotations])

    def check(self, images: Collection[int], file_name: str) -> None:
        if (at := _first_unknown(self.image_ids, images)) is not None:
            raise SourceError(
                f"{file_name}: annotation {self.ids[at]} names an unknown image, got image id "
                f"{self.image_ids[at]} against one of the {len(images)} ids in 'images' expected. "
                "Fix the annotation or download the file again."
            )

    def order(self) -> IntColumn:
        """Row numbers sorted by image, within an image in the file's order."""
        return np.argsort(np.asarray(self.image_ids), kind="stable")

    def spans(self, order: IntColumn, image_ids: list[int]) -> Iterator[tuple[int, int]]:
        """Where each image's rows begin and end in that order."""
        owners = np.asarray(self.image_ids)[order]
        begins, ends = (np.searchsorted(owners, image_ids, side) for side in ("left", "right"))
        return zip(begins.tolist(), ends.tolist(), strict=True)


class _Captions(_Annotations):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def add(self, annotations: list[_Caption]) -> None:
        super().add(annotations)
        self.texts.extend([annotation.caption for annotation in annotations])

    def grouped(self, image_ids: list[int]) -> Iterator[list[str]]:
        """Each image's captions."""
        order = self.order()
        for begin, end in self.spans(order, image_ids):
            yield [self.texts[row] for row in order[begin:end].tolist()]


class Instances(_Annotations):
    """Boxes in columns."""

    def __init__(self) -> None:
        super().__init__()
        self.category_ids = array("q")
        self.xywh = array("d")
        self.is_group = array("b")

    def add(self, annotations: list[Instance]) -> None:
        super().add(annotations)
        self.category_ids.extend([instance.category_id for instance in annotations])
        self.xywh.extend(chain.from_iterable([instance.bbox for instance in annotations]))
        self.is_group.extend([instance.iscrowd == 1 for instance in annotations])

    def check_categories(self, categories: Collection[int], file_name: str) -> None:
        if (at := _first_unknown(self.category_ids, categories)) is not None:
            raise SourceError(
                f"{file_name}: annotation {self.ids[at]} names an unknown category, got "
                f"category id {self.category_ids[at]} against one of the {len(categories)} "
                "ids in 'categories' expected. Fix the annotation or download the file again."
            )

    def grouped(
        self, image_ids: list[int], sizes: dict[int, tuple[int, int]], categories: dict[int, str]
    ) -> Iterator[list[Box]]:
        """Each image's boxes, cut at its border; some may have no area."""
        order = self.order()
        corners = self._xyxy_norm(sizes)[order]
        category_ids = np.asarray(self.category_ids)[order]
        is_group = np.asarray(self.is_group)[order].astype(bool)
        for begin, end in self.spans(order, image_ids):
            rows = slice(begin, end)
            yield [
                Box(categories[category_id], tuple(box), group)
                for category_id, box, group in zip(
                    category_ids[rows].tolist(),
                    corners[rows].tolist(),
                    is_group[rows].tolist(),
                    strict=True,
                )
            ]

    def _xyxy_norm(self, sizes: dict[int, tuple[int, int]]) -> FloatColumns:
        """(N, 4) float64, xyxy, 0..1."""
        ids = np.array(sorted(sizes), dtype=np.int64)
        by_id = np.array([sizes[i] for i in ids.tolist()], dtype=np.float64).reshape(-1, 2)
        size = by_id[np.searchsorted(ids, np.asarray(self.image_ids))]
        xywh = np.asarray(self.xywh).reshape(-1, 4)
        with np.errstate(over="ignore"):
            corners = np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])
        corners /= np.hstack([size, size])
        return np.clip(corners, 0.0, 1.0, out=corners)


_INSTANCES = Layout(_InstancesFile, Instances)
_CAPTIONS = Layout(_CaptionsFile, _Captions)

_SizedImage = TypeVar("_SizedImage", bound=ImageSize)


def _first_unknown(ids: array[int], known: Collection[int]) -> int | None:
    """The first row whose id is not among the known ones."""
    unknown = ~np.isin(np.asarray(ids), np.fromiter(known, np.int64, len(known)))
    return int(unknown.argmax()) if unknown.any() else None


@dataclass(frozen=True, slots=True)
class Licenses:
    """Image licences that are known: by id, where the file's own table doesn't say otherwise."""

    known: dict[int, tuple[str, str]]
    urls: dict[int, str]

    @classmethod
    def of(cls, table: Iterable[License]) -> Licenses:
        """Those of a file with that table."""
        urls = {entry.id: entry.url for entry in table if entry.url}
        known = {
            license_id: (spdx, url)
            for license_id, (spdx, url) in IMAGE_LICENSES.items()
            if _same_page(urls.get(license_id, url), url)
        }
        return cls(known, urls)

    def media(self, image: Photo, file_name: str) -> Media:
        """The image's record, with the page on Flickr that names its author."""
        license_id = -1 if image.license is None else image.license
        license, license_url = self.known.get(license_id, (None, self.urls.get(license_id)))
        photo = _FLICKR_FILE.fullmatch(image.flickr_url or "")
        return Media(
            file_name=file_name,
            url=image.coco_url or None,
            landing_url=f"https://www.flickr.com/photo.gne?id={photo[1]}" if photo else None,
            width=image.width,
            height=image.height,
            license=license,
            license_url=license_url,
        )


@lru_cache(maxsize=1024)
def spdx_of(url: str | None) -> str | None:
    """The SPDX identifier for the page of one of these licences, or None."""
    if url is None:
        return None
    return next((spdx for spdx, page in IMAGE_LICENSES.values() if _same_page(url, page)), None)


def _same_page(url: str, other: str) -> bool:
    return url.split("://")[-1].rstrip("/") == other.split("://")[-1].rstrip("/")


def sizes_of(images: list[_SizedImage], file_name: str) -> dict[int, tuple[int, int]]:
    """Image id -> width and height in pixels.

    Raises:
        SourceError: an id is given twice or out of range, or an image has no area or an
            impossible size.
    """
    sizes: dict[int, tuple[int, int]] = {}
    for image in images:
        if image.id in sizes:
            raise SourceError(
                f"{file_name}: image id {image.id} appears twice, got {len(images)} images against "
                "one of each id expected. Remove one of them or download the file again."
            )
        if image.id not in _IDS_OF_12_DIGITS:
            raise SourceError(
                f"{file_name}: image id out of range, got {image.id} against 0 to 999999999999 "
                "expected. Renumber the image."
            )
        if image.width <= 0 or image.height <= 0:
            raise SourceError(
                f"{file_name}: image {image.id} has no area, got {image.width} x {image.height} "
                "pixels against at least 1 x 1 expected. Fix its width and height or download the "
                "file again."
            )
        if max(image.width, image.height) > _MAX_SIDE_PX:
            raise SourceError(
                f"{file_name}: image {image.id} has an impossible size, got {image.width} x "
                f"{image.height} pixels against at most {_MAX_SIDE_PX} on a side expected. Fix its "
                "width and height or download the file again."
            )
        sizes[image.id] = image.width, image.height
    return sizes


def _categories(categories: list[Category], file_name: str) -> dict[int, str]:
    names = {category.id: " ".join(category.name.split()) for category in categories}
    if len(names) < len(categories) or "" in names.values():
        raise SourceError(
            f"{file_name}: 'categories' is ambiguous, got {len(categories)} entries with "
            f"{len(names)} ids and names {sorted(names.values())} against one name for each id "
            "expected. Fix the entries or download the file again."
        )
    return names


def _check_same_images(
    caption_sizes: dict[int, tuple[int, int]],
    sizes: dict[int, tuple[int, int]],
    captions_name: str,
    instances_name: str,
) -> None:
    shared = caption_sizes.keys() & sizes.keys()
    for image_id in sorted(shared):
        got, expected = caption_sizes[image_id], sizes[image_id]
        if got != expected:
            raise SourceError(
                f"{captions_name}: image {image_id} differs from {instances_name}, got "
                f"{got[0]} x {got[1]} against {expected[0]} x {expected[1]} pixels expected. "
                "Take both files from one release."
            )
    if caption_sizes and sizes and not shared:
        raise SourceError(
            f"{captions_name}: other images than in {instances_name}, got none of its "
            f"{len(sizes)} ids against the same ids expected. "
            "Take both files from one release and split."
        )


def _clean_captions(captions: list[str], report: ReadReport) -> tuple[str, ...]:
    """Without stray white space (13 % have some), empty ones and repetitions."""
    distinct: dict[str, str] = {}
    for caption in captions:
        text = " ".join(caption.split())
        if not text:
            report.skip("empty caption")
        elif distinct.setdefault(text.casefold(), text) is not text:
            report.skip("repeated caption")
    return tuple(distinct.values())


def whole_boxes(boxes: list[Box], report: ReadReport) -> tuple[Box, ...]:
    """The boxes that have an area inside the image."""
    kept = []
    for box in boxes:
        min_x, min_y, max_x, max_y = box.bbox_xyxy_norm
        if min_x < max_x and min_y < max_y:
            kept.append(box)
    if len(kept) < len(boxes):
        report.skip("box outside the image or empty", len(boxes) - len(kept))
    return tuple(kept)
