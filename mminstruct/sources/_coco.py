"""What the COCO releases share: where their files are, and how captions and boxes are read.

A split is two JSON files, ``captions_*`` and ``instances_*``, side by side in one published zip.
The zip is read as it is, nothing is extracted beside it.

**Source:** https://cocodataset.org/#format-data (format) and
https://cocodataset.org/#termsofuse (annotations: CC BY 4.0; images: each has its own licence).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

import msgspec

from mminstruct.errors import SourceError
from mminstruct.late import Late
from mminstruct.schema import Box, Context
from mminstruct.sources._annotation_file import (
    AnnotationFile,
    Layout,
    decode,
    files_of,
    find_first,
    folders,
)
from mminstruct.sources._base import Download, Files, ReadReport, SourceInfo, word_for
from mminstruct.sources._coco_own import check_own
from mminstruct.sources._image_licenses import ImageSize, License, Licenses, Photo
from mminstruct.sources._tolerance import (
    OWN_DATA,
    BoxFormat,
    FloatColumns,
    Mask,
    check_pixels,
    find_repeated,
    published_name,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = Late("numpy")

IntColumn: TypeAlias = "NDArray[np.int64]"
FindFormat: TypeAlias = Callable[[FloatColumns, FloatColumns, FloatColumns, str], BoxFormat]
"""Boxes, their areas as the file says, their images' sizes and the file -> what the numbers are."""

Id = Annotated[int, msgspec.Meta(ge=0, lt=10**12)]

_FILE_SPLIT = {"train": "train", "validation": "val"}
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
            fitted=False,
            exhaustive=True,
        )

    def downloads(self, split: str) -> tuple[Download, ...]:
        """The published zip; it holds both splits."""
        self.file_names(split)
        return (self.archive,)

    def locate(self, places: Sequence[Path], split: str) -> Files | None:
        """The split's two files in a folder, its ``annotations`` folder or the zip in either.

        A place may also be the zip itself. A file in the zip has the path
        ``<zip>/annotations/<name>``. The fingerprint is the same for the zip and what it extracts
        to.

        Raises:
            SourceError: one of the files is there and the other is not, or the zip is damaged.
        """
        wanted = self.file_names(split)
        places = [inside for place in places for inside in self._places(place)]
        found = {role: path for role, name in wanted.items() if (path := find_first(places, name))}
        missing = [wanted[role] for role in wanted if role not in found]
        if found and missing:
            only = next(iter(found.values()))
            way_out = (
                "Give the folder with both" if only in places else "Put the missing file there"
            )
            raise SourceError(
                f"{missing[0]}: missing, got only {only} against both "
                f"{' and '.join(wanted.values())} expected; looked in "
                f"{', '.join(str(place) for place in places)}. {way_out}, or the whole "
                f"{self._archive_name}. {OWN_DATA}"
            )
        return files_of(found)

    def read(self, files: Files, report: ReadReport) -> Iterator[Context]:
        """As `read_contexts`, of COCO's own files alone."""
        return read_contexts(files, report, check_own)

    @property
    def _archive_name(self) -> str:
        return f"annotations_trainval{self.year}.zip"

    def file_names(self, split: str) -> dict[str, str]:
        """Role -> name."""
        tail = f"{word_for(split, self.info.name, _FILE_SPLIT)}{self.year}.json"
        return {role: f"{role}_{tail}" for role in ("captions", "instances")}

    def _places(self, data_dir: Path) -> list[Path]:
        """Folders and archives to look into, the preferred one first."""
        if data_dir.is_file():
            return [data_dir]
        inside = sorted(folders([data_dir], "annotations"), key=lambda p: p.name != "annotations")
        return inside + [folder / self._archive_name for folder in inside]


def read_contexts(
    files: Files, report: ReadReport, check: Callable[..., None] | None = None
) -> Iterator[Context]:
    """The images that have a caption, in ascending order of their id.

    Both files are decoded and checked against each other before the first context appears.

    Args:
        files: with the roles ``captions`` and ``instances``.
        report: counts what is left out.
        check: called with names, images, names of categories and infos, to refuse the files.

    Raises:
        SourceError: a file is damaged, or it contradicts itself or the other one.
    """
    instances_path, captions_path = files.paths["instances"], files.paths["captions"]
    instances_file, instances = decode(instances_path, _INSTANCES, report)
    captions_file, captions = decode(captions_path, _CAPTIONS, report)
    categories = categories_of(instances_file.categories, instances_path.name)
    if check is not None:
        where = f"{instances_path.name}, {captions_path.name}"
        infos = (instances_file.info, captions_file.info)
        check(where, captions_file.images, categories.values(), infos)
    images = usable_images(captions_file.images, captions_path.name, report)
    # What is wrong with an image in both files counts once.
    boxed = usable_images(instances_file.images, instances_path.name, ReadReport())
    check_same_images(images, boxed, captions_path.name, instances_path.name)
    listed = {image.id for image in captions_file.images}
    if boxes_only := sorted(boxed.keys() - listed):
        reason = "image that the captions file doesn't have"
        report.skip(reason, len(boxes_only), example=str(boxes_only[0]), harmless=True)
    captions.count_strays(listed, report)
    instances.count_strays(listed | boxed.keys(), report)
    licenses = Licenses.of(captions_file.licenses)
    del instances_file, captions_file
    name = instances_path.name
    groups = instances.group(boxed | images, sorted(images), categories, name, report)
    yield from make_contexts(images, captions, groups, licenses, report)


def make_contexts(
    images: Mapping[int, Image],
    captions: Captions,
    boxes: Iterator[list[Box]],
    licenses: Licenses,
    report: ReadReport,
    id_of: Callable[[int], str] | None = None,
) -> Iterator[Context]:
    """The images in the order of their numbers, each with its captions and boxes.

    Each has to have captions, as COCO's own have, or with ``id_of``, which gives a number's id,
    either.
    """
    wanted = sorted(images)
    names: set[str] = set()
    for image_id, texts, own in zip(wanted, captions.group(wanted), boxes, strict=True):
        image = images[image_id]
        context_id = id_of(image_id) if id_of else f"{image_id:012d}"
        cleaned = _clean_captions(texts, context_id, report)
        file_name = published_name(image.file_name)
        if file_name != image.file_name:
            report.skip("path before a file's name", example=context_id, harmless=True)
        if id_of and not cleaned and not own:  # tools list images in which there is nothing, too
            report.skip("image without captions and boxes", example=context_id, harmless=True)
            continue
        if not (cleaned or id_of) or not file_name or file_name in names:
            named = "whose name another image has" if file_name in names else "without a file name"
            is_named = cleaned or id_of
            report.skip(f"image {named if is_named else 'without captions'}", example=context_id)
            continue
        names.add(file_name)
        report.contexts += 1
        yield Context(context_id, licenses.media(image, file_name, report), cleaned, tuple(own))


class Image(Photo, kw_only=True, gc=False):
    """An image with a name."""

    file_name: str


class Annotation(msgspec.Struct, gc=False):
    """What all have."""

    image_id: Id


class Instance(Annotation, gc=False):
    """Its box has the top left corner, width and height in pixels."""

    category_id: Id
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0
    area: float = math.nan


class _Caption(Annotation, gc=False):
    caption: str


class Category(msgspec.Struct, gc=False):
    """A category of objects."""

    id: Id
    name: str
    keypoints: Any = None


class _InstancesFile(AnnotationFile, kw_only=True, gc=False):
    images: list[ImageSize]
    annotations: list[Instance]
    categories: list[Category]


class _CaptionsFile(AnnotationFile, kw_only=True, gc=False):
    images: list[Image]
    annotations: list[_Caption]
    licenses: list[License] = []


class _Annotations:
    """Columns of annotations in the file's order."""

    noun: str

    def __init__(self) -> None:
        self.image_ids = array("q")

    def add(self, annotations: list[Any]) -> None:
        self.image_ids.extend([annotation.image_id for annotation in annotations])

    def count_strays(self, images: set[int], report: ReadReport) -> None:
        """Count what is of no image in the file."""
        owners = np.asarray(self.image_ids)
        known = np.array([i for i in images if 0 <= i < 10**12], dtype=np.int64)
        strays = owners[~np.isin(owners, known)]
        if len(strays):
            reason = f"{self.noun} of an image that isn't in the file"
            report.skip(reason, len(strays), example=str(strays[0]))

    def order(self) -> IntColumn:
        """Row numbers sorted by image, within an image in the file's order."""
        return np.argsort(np.asarray(self.image_ids), kind="stable")

    def spans(self, order: IntColumn, image_ids: list[int]) -> Iterator[tuple[int, int]]:
        """Where each image's rows begin and end in that order."""
        owners = np.asarray(self.image_ids)[order]
        begins, ends = (np.searchsorted(owners, image_ids, side) for side in ("left", "right"))
        return zip(begins.tolist(), ends.tolist(), strict=True)


class Captions(_Annotations):
    """Texts."""

    noun = "caption"

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def add(self, annotations: list[_Caption]) -> None:
        super().add(annotations)
        self.texts.extend([annotation.caption for annotation in annotations])

    def group(self, image_ids: list[int]) -> Iterator[list[str]]:
        """Each image's captions."""
        order = self.order()
        texts = [self.texts[row] for row in order.tolist()]
        for begin, end in self.spans(order, image_ids):
            yield texts[begin:end]


class Instances(_Annotations):
    """Boxes in columns."""

    noun = "box"

    def __init__(self) -> None:
        super().__init__()
        self.category_ids = array("q")
        self.xywh = array("d")
        self.areas = array("d")
        self.is_group = array("b")

    def add(self, annotations: list[Instance]) -> None:
        super().add(annotations)
        self.category_ids.extend([instance.category_id for instance in annotations])
        self.xywh.extend(chain.from_iterable([instance.bbox for instance in annotations]))
        self.areas.extend([instance.area for instance in annotations])
        self.is_group.extend([instance.iscrowd == 1 for instance in annotations])

    def group(
        self,
        images: Mapping[int, ImageSize],
        wanted: list[int],
        categories: Mapping[int, str],
        where: str,
        report: ReadReport,
        find_format: FindFormat = check_pixels,
        id_of: Callable[[int], str] = "{:012d}".format,
    ) -> Iterator[list[Box]]:
        """Each wanted image's boxes, cut at its border; those without an area are left out.

        Args:
            images: all whose size is known.
            wanted: ids in ascending order.
            categories: id -> name.
            where: the file, for errors.
            report: counts them.
            find_format: says what they are.
            id_of: the id that an image's number stands for.

        Raises:
            SourceError: most boxes can't be where they are.
        """
        owners, category_ids = np.asarray(self.image_ids), np.asarray(self.category_ids)
        xywh = np.asarray(self.xywh).reshape(-1, 4)
        # One more, of no box.
        ids = np.array([*sorted(images), -1])
        sizes = np.array(
            [*((images[i].width, images[i].height) for i in ids[:-1].tolist()), (1, 1)]
        )
        place = np.searchsorted(ids[:-1], owners)
        size = sizes[place].astype(np.float64)
        finite = np.isfinite(xywh).all(axis=1)
        usable = (ids[place] == owners) & finite
        areas = np.asarray(self.areas)[usable]
        found = find_format(xywh[usable], areas, size[usable], where)
        xywh = found.to_xywh(xywh)
        size = np.ones_like(size) if found.unit == "fractions" else size
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            corners = np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])
            corners /= np.hstack([size, size])
        np.clip(corners, 0.0, 1.0, out=corners)
        kept = np.isin(ids, wanted)[place] & (ids[place] == owners)

        def leave_out(mask: Mask, reason: str, harmless: bool = False) -> None:
            nonlocal kept
            if (bad := owners[kept & mask]).size:
                report.skip(reason, len(bad), example=id_of(int(bad[0])), harmless=harmless)
                kept = kept & ~mask

        leave_out(~finite, "box that isn't finite")
        leave_out(np.any(size <= 0, axis=1), "box in an image whose size isn't known")
        known = np.isin(category_ids, np.fromiter(categories, np.int64, len(categories)))
        leave_out(~known, "box of a category that isn't in the file")
        whole = (corners[:, 0] < corners[:, 2]) & (corners[:, 1] < corners[:, 3])
        leave_out(~whole, "box outside the image or empty")
        leave_out(
            find_repeated(owners, category_ids, xywh), "box that is there twice", harmless=True
        )
        order = self.order()
        order = order[kept[order]]
        corners, is_group = corners[order], np.asarray(self.is_group)[order].astype(bool)
        category_ids = category_ids[order]
        for begin, end in self.spans(order, wanted):
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


_INSTANCES = Layout(_InstancesFile, Instances, "box", "bbox", "caption")
_CAPTIONS = Layout(_CaptionsFile, Captions, "caption", "caption", "bbox")

_SizedImage = TypeVar("_SizedImage", bound=ImageSize)


def usable_images(
    images: list[_SizedImage], file_name: str, report: ReadReport, *, any_size: bool = False
) -> dict[int, _SizedImage]:
    """Image id -> image, of those that have a size, or any; the others are counted.

    Raises:
        SourceError: there are different images of one id.
    """
    found: dict[int, _SizedImage] = {}
    twice = []
    for image in images:
        side = max(image.width, image.height)
        if not 0 <= image.id < 10**12:
            report.skip("image whose id isn't a number of up to 12 digits", example=str(image.id))
        elif not (any_size or 0 < min(image.width, image.height) <= side <= _MAX_SIDE_PX):
            report.skip("image without a possible size", example=f"{image.id:012d}")
        elif (known := found.setdefault(image.id, image)) is image:
            continue
        elif known != image:
            twice.append(str(image.id))
        else:
            report.skip("image that is listed twice", example=f"{image.id:012d}", harmless=True)
    if twice:
        raise SourceError(
            f"{file_name}: image id {', '.join(twice[:5])} appears twice, got {len(twice)} images "
            "that differ from another of their id against one of each id expected. Remove one of "
            "them or download the file again."
        )
    return found


def categories_of(
    categories: list[Category], file_name: str, label: Callable[[str], str] = str
) -> dict[int, str]:
    """Category id -> name, of those that have one; ``label`` makes it of the file's.

    Raises:
        SourceError: an id has two names, or the categories are of another kind of file.
    """
    names: dict[int, str] = {}
    for category in categories:
        name = " ".join(label(category.name).split())
        if names.setdefault(category.id, name) != name:
            raise SourceError(
                f"{file_name}: 'categories' is ambiguous, got {names[category.id]!r} and {name!r} "
                f"for id {category.id} against one name for each id expected. Fix the entries or "
                "download the file again."
            )
    if categories and all(category.keypoints for category in categories):
        raise SourceError(
            f"{file_name}: got a file of keypoints, which has people alone, against a file of "
            "boxes expected. Give the file that this name belongs to."
        )
    return {category_id: name for category_id, name in names.items() if name}


def check_same_images(
    captioned: Mapping[int, ImageSize],
    boxed: Mapping[int, ImageSize],
    captions_name: str,
    instances_name: str,
) -> None:
    """Raise SourceError if files are about other images, or say other sizes of them."""
    pairs = [(image, boxed[i]) for i, image in captioned.items() if i in boxed]
    if other := [(a, b) for a, b in pairs if a.width != b.width or a.height != b.height]:
        named = "; ".join(
            f"image {a.id} differs from {instances_name}, got {a.width} x {a.height} against "
            f"{b.width} x {b.height} pixels expected"
            for a, b in sorted(other, key=lambda pair: pair[0].id)[:5]
        )
        more = f" ({len(other)} in all)" if len(other) > 5 else ""
        raise SourceError(f"{captions_name}: {named}{more}. Take both files from one release.")
    if captioned and boxed and not pairs:
        raise SourceError(
            f"{captions_name}: other images than in {instances_name}, got none of its "
            f"{len(boxed)} ids against the same ids expected. "
            "Take both files from one release and split."
        )


def _clean_captions(captions: list[str], owner: str, report: ReadReport) -> tuple[str, ...]:
    """Without stray white space (13 % have some), empty ones and repetitions."""
    texts = [" ".join(caption.split()) for caption in captions]
    if all(texts) and len({text.casefold() for text in texts}) == len(texts):
        return tuple(texts)
    distinct: dict[str, str] = {}
    for text in texts:
        if not text:
            report.skip("empty caption", example=owner)
        elif distinct.setdefault(text.casefold(), text) is not text:
            report.skip("repeated caption", example=owner, harmless=True)
    return tuple(distinct.values())
