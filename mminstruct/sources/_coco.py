"""What the COCO releases share: where their files are, and how captions and boxes are read.

A split is two JSON files, ``captions_*`` and ``instances_*``, side by side in one published zip.
Nine tenths of the bytes are outlines (``segmentation``), which no prompt shows: a typed decoder
steps over them and gets a file in pieces, so that a split is read in a fraction of the time and
memory that `json.load` takes. The zip is read as it is, nothing is extracted beside it.

**Source:** https://cocodataset.org/#format-data (format) and
https://cocodataset.org/#termsofuse (annotations: CC BY 4.0; images: each has its own licence).
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, TypedDict, TypeVar

import msgspec
import xxhash

from mminstruct.errors import SourceError, UsageError, did_you_mean
from mminstruct.schema import Box, Context, Media
from mminstruct.sources import Download, Files, ReadReport, SourceInfo

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
_CHUNK_BYTES = 1 << 22
_CUT_WINDOW_BYTES = 1 << 16
_ANNOTATIONS_START = re.compile(rb'"annotations"\s*:\s*\[')
_ANNOTATION_BORDER = re.compile(rb"\}\s*,\s*\{")
_IDS_OF_12_DIGITS = range(10**12)

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
                "The images are from Flickr under one of eight licences each, many of them "
                "non-commercial; the COCO Consortium does not own them."
            ),
            splits=tuple(_FILE_SPLIT),
            version="1.0.0",
        )

    def download(self, split: str) -> Download:
        """The published zip; it holds both splits."""
        self._file_names(split)
        return self.archive

    def locate(self, data_dir: Path | None, split: str) -> Files | None:
        """The split's two files in a folder, its ``annotations`` folder or the zip in either.

        ``data_dir`` may also be the zip itself. A file in the zip has the path
        ``<zip>/annotations/<name>``. The fingerprint is the same for the zip and what it extracts
        to.

        Raises:
            SourceError: one of the files is there and the other is not, or the zip is damaged.
        """
        wanted = self._file_names(split)
        places = self._places(data_dir) if data_dir else []
        found = {
            role: path
            for role, name in wanted.items()
            if (path := next((p for place in places for p in _find(place, name)), None))
        }
        if not found:
            return None
        if missing := [wanted[role] for role in wanted if role not in found]:
            raise SourceError(
                f"{missing[0]}: missing, got only {next(iter(found.values()))} against both "
                f"{' and '.join(wanted.values())} expected; looked in "
                f"{', '.join(str(place) for place in places)}. Put the missing file there, or "
                f"the whole {self._archive_name}."
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
    objects = _Objects.of(_decode(instances_path, _INSTANCES), instances_path.name)
    captions_file = _decode(captions_path, _CAPTIONS)
    captions = _captions_by_image(captions_file, captions_path.name)
    images, licenses = captions_file.images, _Licenses.of(captions_file.licenses)
    del captions_file
    _check_same_images(images, objects, captions_path.name, instances_path.name)
    if boxes_only := objects.sizes.keys() - captions.keys():
        report.skip("image without captions", len(boxes_only))
    images.sort(key=lambda image: image.id, reverse=True)
    while images:
        # The records of an image are dropped with it: memory falls while contexts are taken.
        image = images.pop()
        texts = _clean_captions(captions.pop(image.id), report)
        instances = objects.instances.pop(image.id, ())
        if not texts:
            report.skip("image without captions")
            continue
        boxes = _boxes(instances, objects.categories, image, report)
        report.contexts += 1
        yield Context(f"{image.id:012d}", licenses.media(image), texts, boxes)


class _ImageSize(msgspec.Struct, gc=False):
    id: int
    width: int
    height: int


class _Image(_ImageSize, gc=False):
    file_name: str
    coco_url: str | None = None
    flickr_url: str | None = None
    license: int | None = None


class _Xywh(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """Pixels; x and y are the top left corner."""

    x: float
    y: float
    width: float
    height: float


class _Instance(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: _Xywh
    iscrowd: int = 0


class _Category(msgspec.Struct, gc=False):
    id: int
    name: str


class _InstancesFile(msgspec.Struct, gc=False):
    images: list[_ImageSize]
    annotations: list[_Instance]
    categories: list[_Category]


class _Caption(msgspec.Struct, gc=False):
    id: int
    image_id: int
    caption: str


class _License(msgspec.Struct, gc=False):
    id: int
    url: str | None = None


class _CaptionsFile(msgspec.Struct, gc=False):
    images: list[_Image]
    annotations: list[_Caption]
    licenses: list[_License] = []


_SizedImage = TypeVar("_SizedImage", bound=_ImageSize)
_File = TypeVar("_File", bound=msgspec.Struct)


class _Decoders(Generic[_File]):
    """Decoders of a whole file, of either end of it with some of its keys, and of annotations."""

    def __init__(self, file_type: type[_File], annotation_type: type[msgspec.Struct]) -> None:
        types = {field.name: field.type for field in msgspec.structs.fields(file_type)}
        end_type: Any = TypedDict("_End", types, total=False)  # type: ignore[misc]
        self.file_type = file_type
        self.whole: msgspec.json.Decoder[_File] = msgspec.json.Decoder(file_type)
        self.end: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(end_type)
        self.annotations: msgspec.json.Decoder[list[Any]] = msgspec.json.Decoder(
            list[annotation_type]  # type: ignore[valid-type]
        )


_INSTANCES = _Decoders(_InstancesFile, _Instance)
_CAPTIONS = _Decoders(_CaptionsFile, _Caption)


@dataclass(frozen=True, slots=True)
class _Objects:
    """An instances file, grouped by image.

    Attributes:
        sizes: image id -> width and height, pixels.
        categories: category id -> name.
        instances: image id -> instances in the file's order; images without any have an empty list.
    """

    sizes: dict[int, tuple[int, int]]
    categories: dict[int, str]
    instances: dict[int, list[_Instance]]

    @classmethod
    def of(cls, file: _InstancesFile, file_name: str) -> _Objects:
        sizes = _sizes(file.images, file_name)
        categories = _categories(file.categories, file_name)
        instances: dict[int, list[_Instance]] = {image_id: [] for image_id in sizes}
        for instance in file.annotations:
            group = instances.get(instance.image_id)
            if group is None:
                raise _unknown_image(file_name, instance, len(sizes))
            if instance.category_id not in categories:
                raise SourceError(
                    f"{file_name}: annotation {instance.id} names an unknown category, got "
                    f"category id {instance.category_id} against one of the {len(categories)} "
                    "ids in 'categories' expected. Fix the annotation or download the file again."
                )
            group.append(instance)
        return cls(sizes, categories, instances)


@dataclass(frozen=True, slots=True)
class _Licenses:
    """Image licences that are known: by id, where the file's own table doesn't say otherwise."""

    known: dict[int, tuple[str, str]]
    urls: dict[int, str]

    @classmethod
    def of(cls, table: Iterable[_License]) -> _Licenses:
        urls = {entry.id: entry.url for entry in table if entry.url}
        known = {
            license_id: (spdx, url)
            for license_id, (spdx, url) in IMAGE_LICENSES.items()
            if _same_page(urls.get(license_id, url), url)
        }
        return cls(known, urls)

    def media(self, image: _Image) -> Media:
        """The image's record, with the page on Flickr that names its author."""
        license_id = -1 if image.license is None else image.license
        license, license_url = self.known.get(license_id, (None, self.urls.get(license_id)))
        photo = _FLICKR_FILE.fullmatch(image.flickr_url or "")
        return Media(
            file_name=image.file_name,
            url=image.coco_url or None,
            landing_url=f"https://www.flickr.com/photo.gne?id={photo[1]}" if photo else None,
            width=image.width,
            height=image.height,
            license=license,
            license_url=license_url,
        )


def _same_page(url: str, other: str) -> bool:
    return url.split("://")[-1].rstrip("/") == other.split("://")[-1].rstrip("/")


def _sizes(images: list[_SizedImage], file_name: str) -> dict[int, tuple[int, int]]:
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
        sizes[image.id] = image.width, image.height
    return sizes


def _categories(categories: list[_Category], file_name: str) -> dict[int, str]:
    names = {category.id: " ".join(category.name.split()) for category in categories}
    if len(names) < len(categories) or "" in names.values():
        raise SourceError(
            f"{file_name}: 'categories' is ambiguous, got {len(categories)} entries with "
            f"{len(names)} ids and names {sorted(names.values())} against one name for each id "
            "expected. Fix the entries or download the file again."
        )
    return names


def _captions_by_image(file: _CaptionsFile, file_name: str) -> dict[int, list[str]]:
    captions: dict[int, list[str]] = {image_id: [] for image_id in _sizes(file.images, file_name)}
    for annotation in file.annotations:
        group = captions.get(annotation.image_id)
        if group is None:
            raise _unknown_image(file_name, annotation, len(captions))
        group.append(annotation.caption)
    return captions


def _unknown_image(file_name: str, annotation: _Instance | _Caption, images: int) -> SourceError:
    return SourceError(
        f"{file_name}: annotation {annotation.id} names an unknown image, got image id "
        f"{annotation.image_id} against one of the {images} ids in 'images' expected. "
        "Fix the annotation or download the file again."
    )


def _check_same_images(
    images: list[_Image], objects: _Objects, captions_name: str, instances_name: str
) -> None:
    shared = 0
    for image in images:
        size = objects.sizes.get(image.id)
        if size is None:
            continue
        shared += 1
        if size != (image.width, image.height):
            raise SourceError(
                f"{captions_name}: image {image.id} differs from {instances_name}, got "
                f"{image.width} x {image.height} against {size[0]} x {size[1]} pixels expected. "
                "Take both files from one release."
            )
    if images and objects.sizes and not shared:
        raise SourceError(
            f"{captions_name}: other images than in {instances_name}, got none of its "
            f"{len(objects.sizes)} ids against the same ids expected. "
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


def _boxes(
    instances: Iterable[_Instance], categories: dict[int, str], image: _Image, report: ReadReport
) -> tuple[Box, ...]:
    width, height = image.width, image.height
    boxes: list[Box] = []
    for instance in instances:
        xywh = instance.bbox
        # Comparisons instead of min() and max(): a release has 900,000 boxes.
        min_x = xywh.x / width if xywh.x > 0 else 0.0
        min_y = xywh.y / height if xywh.y > 0 else 0.0
        max_x = (xywh.x + xywh.width) / width
        max_y = (xywh.y + xywh.height) / height
        corners = (min_x, min_y, max_x if max_x < 1 else 1.0, max_y if max_y < 1 else 1.0)
        if min_x < corners[2] and min_y < corners[3]:
            boxes.append(Box(categories[instance.category_id], corners, instance.iscrowd == 1))
        else:
            report.skip("box outside the image or empty")
    return tuple(boxes)


def _find(place: Path, name: str) -> Iterator[Path]:
    """The file of that name in a folder or a zip, if it is there."""
    if not place.is_file():
        if (place / name).is_file():
            yield place / name
        return
    with _wrapped_errors(place), zipfile.ZipFile(place) as archive:
        members = set(archive.namelist())
    yield from (place / member for member in (f"annotations/{name}", name) if member in members)


def fingerprint(paths: dict[str, Path]) -> str:
    """Digest of the roles and bytes of files; the same whether they are in a zip or not."""
    whole = xxhash.xxh3_128()
    for role in sorted(paths):
        digest = xxhash.xxh3_128()
        with _opened(paths[role]) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        whole.update(f"{role} {digest.hexdigest()}\n".encode())
    return whole.hexdigest()


def _decode(path: Path, decoders: _Decoders[_File]) -> _File:
    with _opened(path) as file:
        decoded = _decode_in_pieces(file, decoders)
    if decoded is not None:
        return decoded
    # An unusual order of the keys, or damage: decoded at once, it is read or its place is known.
    with _opened(path) as file:
        content = file.read()
    name = path.name
    try:
        return decoders.whole.decode(content)
    except msgspec.ValidationError as error:
        raise SourceError(
            f"{name}: not the structure of a COCO {name.split('_')[0]} file: {error}. "
            "Fix that entry or download the file again."
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(
            f"{name}: {_json_damage(error, content)} expected. Delete the file and download it "
            "again."
        ) from error


def _decode_in_pieces(file: IO[bytes], decoders: _Decoders[_File]) -> _File | None:
    """The file without ever holding all of its bytes, or None if it doesn't come apart.

    It is cut behind ``"annotations": [`` and then wherever ``}, {`` looks like the border of two
    annotations. Where that is inside a string or a nested object, the piece before it has an open
    quote or bracket and is not valid JSON: if all pieces decode, all cuts were right.
    """
    buffer = bytearray()
    while (start := _ANNOTATIONS_START.search(buffer)) is None:
        if not (chunk := file.read(_CHUNK_BYTES)):
            return None
        buffer += chunk
    try:
        head = decoders.end.decode(buffer[: start.end()] + b"]}")
        del buffer[: start.end()]
        annotations: list[Any] = []
        while chunk := file.read(_CHUNK_BYTES):
            buffer += chunk
            if (cut := _last_cut(buffer)) is None:
                continue
            try:
                annotations += decoders.annotations.decode(b"[" + buffer[: cut.start() + 1] + b"]")
            except msgspec.DecodeError:
                # Most likely the list ends before the cut, and other keys follow.
                buffer += file.read()
                break
            del buffer[: cut.end() - 1]
        tail = decoders.end.decode(b'{"annotations":[' + buffer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    annotations += tail.pop("annotations")
    if head.keys() & tail.keys():
        return None
    try:
        return decoders.file_type(**head | tail | {"annotations": annotations})
    except TypeError:
        return None


def _last_cut(buffer: bytearray) -> re.Match[bytes] | None:
    """The last place in a piece that looks like the border of two annotations."""
    for start in (max(0, len(buffer) - _CUT_WINDOW_BYTES), 0):
        *_, last = None, *_ANNOTATION_BORDER.finditer(buffer, start)
        if last is not None:
            return last
    return None


def _json_damage(error: Exception, content: bytes) -> str:
    text = str(error)
    if "truncated" in text:
        return f"the JSON ends early, got {len(content)} bytes against a closing bracket at the end"
    if (position := re.search(r"\(byte (\d+)\)", text)) is None:
        return f"damaged JSON, got '{text}' against JSON in UTF-8"
    at = int(position[1])
    got = content[at : at + 8]
    if re.match(rb"(nan|inf(inity)?)\b", got, re.IGNORECASE):
        return f"a number that JSON doesn't have, got {got!r} at byte {at} against a finite number"
    return f"damaged JSON, got {got!r} at byte {at} against JSON"


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A file, or the member of a zip if its path goes through one."""
    with _wrapped_errors(path):
        archive = next((parent for parent in list(path.parents)[:2] if parent.is_file()), None)
        if archive is None:
            with path.open("rb") as file:
                yield file
        else:
            member = path.relative_to(archive).as_posix()
            with zipfile.ZipFile(archive) as opened, opened.open(member) as file:
                yield file


@contextmanager
def _wrapped_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, KeyError) as error:
        raise SourceError(
            f"{path.name}: damaged zip, got '{error}' against a readable archive expected. "
            "Delete the archive and download it again."
        ) from error
    except OSError as error:
        raise SourceError(
            f"{path.name}: can't be read, got '{error.strerror}' against a readable file expected. "
            "Check that it exists and its permissions."
        ) from error
