"""Open Images V7: narratives, boxes with flags, labels that people checked, relations, authors.

Only images with a narrative become contexts. The tables are read in columns and pieces, and of each
only the rows of those images are kept, packed into a few bytes each: what train needs of its 14.6
million boxes fits into a fraction of a gigabyte. Boxes are turned with the image where its file is
not upright. The column ``Confidence`` of boxes is constant and not read.

**Source:** https://storage.googleapis.com/openimages/web/download_v7.html (tables),
https://storage.googleapis.com/openimages/web/2018-05-17-rotation-information.html (rotation),
https://google.github.io/localized-narratives/ (narratives). Annotations: CC BY 4.0, Google LLC.
Images: listed as CC BY 2.0, each with its author.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mminstruct.annotations import labels, narratives, relations
from mminstruct.errors import SourceError, UsageError, did_you_mean
from mminstruct.resources import shown
from mminstruct.schema import Box, Context, Media
from mminstruct.sources import Download, Files, ReadReport, SourceInfo, SourceOption, _narratives
from mminstruct.sources._annotation_file import fingerprint
from mminstruct.sources._coco import spdx_of
from mminstruct.sources._tables import Ids, batches, image_id, image_ids, names

OPTIONS = {
    "machine_labels": SourceOption(
        bool, "also labels that only a program found, with its score (up to 7.4 GB more)"
    ),
}

_URL = "https://storage.googleapis.com/openimages"
_IMAGES_URL = "https://open-images-dataset.s3.amazonaws.com"
_SPLITS = ("train", "validation", "test")
_SHORT_SPLIT = {"train": "train", "validation": "val", "test": "test"}
_SPLIT_MD5 = {("boxes", "train"): (2_258_447_590, "3c3e70cfaba5757ea5c2604b19cac3b2")}
_IMAGES_PER_PIECE = 4096
_FLAGS = ("IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside")
# 0, 1 and, from the end, -1: nobody said.
_TRI_STATE = (False, True, None)
_ATTRIBUTE = "is"

_CODES = pa.dictionary(pa.int32(), pa.string())

_CITATION = (
    """\
@article{OpenImages,
  title   = {The Open Images Dataset {V4}: Unified image classification, object detection, and
             visual relationship detection at scale},
  author  = {Kuznetsova, Alina and Rom, Hassan and Alldrin, Neil and Uijlings, Jasper and
             Krasin, Ivan and Pont-Tuset, Jordi and Kamali, Shahab and Popov, Stefan and
             Malloci, Matteo and Kolesnikov, Alexander and Duerig, Tom and Ferrari, Vittorio},
  journal = {International Journal of Computer Vision},
  year    = {2020}
}
"""
    + _narratives.CITATION
)

Column: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True)
class OpenImagesSource:
    """Open Images V7.

    Attributes:
        machine_labels: read the labels that only a program found, too.
    """

    machine_labels: bool = False

    @property
    def info(self) -> SourceInfo:
        """Facts about the release."""
        return SourceInfo(
            name="OPENIMAGESV7",
            title="Open Images V7",
            description=(
                "Photos from Flickr. Every image has a description that somebody spoke while "
                "pointing at what they saw, boxes of 600 classes with flags, labels that people "
                "checked to be present or absent, and relations between objects."
            ),
            homepage="https://storage.googleapis.com/openimages/web/index.html",
            citation=_CITATION,
            license="CC-BY-4.0",
            license_url="https://creativecommons.org/licenses/by/4.0/",
            attribution=(
                "Boxes, labels and relations are from Open Images V7 "
                "(https://storage.googleapis.com/openimages/web/index.html), descriptions from "
                "Localized Narratives (https://google.github.io/localized-narratives/), both by "
                "Google LLC, licensed under CC BY 4.0 "
                "(https://creativecommons.org/licenses/by/4.0/); white space was cleaned and "
                "boxes were turned with their images."
            ),
            media_license=(
                "The images are from Flickr and listed as CC BY 2.0; Google gives no warranty, so "
                "check each on its landing page."
            ),
            splits=_SPLITS,
            version="1.0.0",
            prompt_config="openimagesv7",
        )

    def downloads(self, split: str) -> tuple[Download, ...]:
        """The published tables and narratives."""
        return tuple(
            Download(url, *_SPLIT_MD5.get((role, split), (None, None)))
            for role, url in self._urls(split).items()
        )

    def locate(self, places: Sequence[Path], split: str) -> Files | None:
        """The split's files by their published names, in a folder or in the publisher's folders.

        Raises:
            SourceError: some of them are there and others are not.
        """
        urls = self._urls(split)
        found = {role: path for role, url in urls.items() if (path := _find(places, url))}
        # The class names are shared by all splits.
        if not found.keys() - _SHARED_ROLES:
            return None
        if missing := [urls[role] for role in urls if role not in found]:
            raise SourceError(
                f"{PurePosixPath(missing[0]).name}: missing, got {len(found)} of the {len(urls)} "
                f"files of OPENIMAGESV7, split {split!r}, in {', '.join(map(shown, places))}. "
                f"Put there: {' '.join(missing)}"
            )
        return Files(found, fingerprint(found))

    def read(self, files: Files, report: ReadReport) -> Iterator[Context]:
        """The images that have a narrative, in ascending order of their id.

        Raises:
            SourceError: a file is damaged.
        """
        paths = files.paths
        texts = _texts(paths["narratives"], report)
        ids = np.array(sorted(texts), dtype=np.uint64)
        classes = _Names(names(paths["classes"]))
        media = _media(paths["images"], ids)
        boxes = _boxes(paths["boxes"], ids, classes, media.rotation_deg, report)
        checked = _labels(paths["labels"], ids, classes, report)
        guessed = _labels(paths["machine"], ids, classes, report) if "machine" in paths else None
        related = _relations(paths, ids, classes, report)
        for start in range(0, len(ids), _IMAGES_PER_PIECE):
            stop = min(start + _IMAGES_PER_PIECE, len(ids))
            pieces = zip(
                range(start, stop),
                media.piece(start, stop),
                boxes.piece(start, stop, lambda rows: _as_boxes(rows, classes)),
                checked.piece(start, stop, lambda rows: list(_as_labels(rows, classes))),
                _scored(guessed, start, stop, classes),
                related.piece(start, stop, lambda rows: list(_as_relations(rows, classes))),
                strict=True,
            )
            for index, medium, own_boxes, own_labels, own_guesses, own_relations in pieces:
                report.contexts += 1
                agreeing, doubtful = labels.agreeing(
                    [*own_labels, *own_guesses], {box.label for box in own_boxes}
                )
                if doubtful:
                    report.skip("label both present and absent", len(doubtful))
                found = {
                    "narratives": tuple(narratives.Item(text) for text in texts[int(ids[index])]),
                    "labels": agreeing,
                    "relations": tuple(own_relations),
                }
                yield Context(
                    f"{ids[index]:016x}",
                    medium,
                    boxes=tuple(own_boxes),
                    annotations={kind: items for kind, items in found.items() if items},
                )

    def _urls(self, split: str) -> dict[str, str]:
        """Role -> URL."""
        if split not in _SPLITS:
            raise UsageError(f"OPENIMAGESV7 has no split {split!r}{did_you_mean(split, _SPLITS)}")
        short = _SHORT_SPLIT[split]
        is_train = split == "train"
        folder = "v6/oidv6-train" if is_train else f"v5/{split}"
        images = "train-images-boxable" if is_train else f"{split}-images"
        spoken = "train_v6" if is_train else split
        urls = {
            "narratives": f"{_narratives.URL}/open_images_{spoken}_captions.jsonl",
            "boxes": f"{_URL}/{folder}-annotations-bbox.csv",
            "labels": f"{_URL}/v5/{split}-annotations-human-imagelabels-boxable.csv",
            "relations": f"{_URL}/v6/oidv6-{split}-annotations-vrd.csv",
            "images": f"{_URL}/2018_04/{split}/{images}-with-rotation.csv",
            "classes": f"{_URL}/v7/oidv7-class-descriptions.csv",
            "attributes": f"{_URL}/v6/oidv6-attributes-description.csv",
            "predicates": f"{_URL}/v6/oidv6-relationships-description.csv",
        }
        if self.machine_labels:
            urls["machine"] = f"{_URL}/v7/oidv7-{short}-annotations-machine-imagelabels.csv"
        return urls


SOURCE = OpenImagesSource()

_SHARED_ROLES = {"classes", "attributes", "predicates"}


def _find(places: Sequence[Path], url: str) -> Path | None:
    """The file of that name in one of the places, or where its publisher has it below them."""
    below = PurePosixPath(url.removeprefix(f"{_URL}/").removeprefix(f"{_narratives.URL}/"))
    for place in places:
        for folder in (place, place / "openimagesv7"):
            for path in (folder / below.name, folder / below):
                if path.is_file():
                    return path
    return None


def _texts(path: Path, report: ReadReport) -> dict[int, list[str]]:
    """Image id -> its narratives, distinct, in the file's order."""
    texts: dict[int, list[str]] = {}
    for narrative in _narratives.read(path):
        if not narrative.caption:
            report.skip("empty narrative")
            continue
        own = texts.setdefault(image_id(narrative.image_id, path.name), [])
        if narrative.caption in own:
            report.skip("repeated narrative")
        else:
            own.append(narrative.caption)
    return texts


class _Names:
    """Codes for the names of labels, so that a label costs two bytes a row.

    Attributes:
        known: label id -> code.
        texts: name by code.
    """

    def __init__(self, by_id: dict[str, str]) -> None:
        self.known = {label_id: code for code, label_id in enumerate(by_id)}
        self.texts = list(by_id.values())

    def add(self, by_id: dict[str, str]) -> None:
        """Take in more names."""
        for label_id, text in by_id.items():
            if label_id not in self.known:
                self.known[label_id] = len(self.texts)
                self.texts.append(text)

    def codes(self, column: pa.DictionaryArray) -> NDArray[np.int32]:
        """The codes of a column of label ids; -1 for those that have no name."""
        table = [self.known.get(label_id, -1) for label_id in column.dictionary.to_pylist()]
        indices = column.indices.fill_null(len(table)).to_numpy(zero_copy_only=False)
        codes: NDArray[np.int32] = np.array([*table, -1], dtype=np.int32)[indices]
        return codes


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of a table, sorted by image.

    Attributes:
        owners: number of the image in the list of ids, ascending.
        columns: of the same length.
    """

    owners: NDArray[np.int32]
    columns: tuple[Column, ...]

    def piece(
        self, start: int, stop: int, as_items: Callable[[list[list[Any]]], list[Any]]
    ) -> Iterator[list[Any]]:
        """The items of each of some images; ``as_items`` makes them of columns as lists."""
        edges = np.searchsorted(self.owners, np.arange(start, stop + 1)).tolist()
        items = as_items([_as_list(column[edges[0] : edges[-1]]) for column in self.columns])
        for begin, end in zip(edges, edges[1:], strict=False):
            yield items[begin - edges[0] : end - edges[0]]


def _as_list(column: Column) -> list[Any]:
    """Plain values, fractions without the digits that float32 makes up."""
    if column.dtype == np.float32:
        column = column.astype(np.float64).round(6)
    values: list[Any] = column.tolist()
    return values


class _Kept:
    """Collects the rows of a table that belong to the wanted images.

    Attributes:
        owners: of the rows that `wanted` returned last, the number of the image in the list of ids.
    """

    def __init__(self, ids: Ids, path: Path) -> None:
        self._ids = ids
        self._path = path
        self.owners = np.zeros(0, dtype=np.int32)
        self._owners: list[NDArray[np.int32]] = []
        self._columns: list[tuple[Column, ...]] = []

    def wanted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch's rows of wanted images."""
        found = image_ids(batch.column("ImageID"), self._path)
        owners = np.searchsorted(self._ids, found).astype(np.int32)
        owners[owners == len(self._ids)] = 0
        mask = self._ids[owners] == found if len(self._ids) else np.zeros(len(found), dtype=bool)
        self.owners = owners[mask]
        return batch.filter(pa.array(mask))

    def keep(self, mask: NDArray[np.bool_], *columns: Column) -> None:
        """Keep those of the rows that `wanted` returned last, with these columns."""
        self._owners.append(self.owners[mask])
        self._columns.append(tuple(column[mask] for column in columns))

    def rows(self, *types: Any) -> _Rows:
        """All that was kept, by image and otherwise in the file's order."""
        owners = np.concatenate([np.zeros(0, dtype=np.int32), *self._owners])
        order = np.argsort(owners, kind="stable")
        columns = []
        for number, dtype in enumerate(types):
            parts = [columns_[number] for columns_ in self._columns]
            shape = (0, *parts[0].shape[1:]) if parts else (0,)
            column = np.concatenate([np.zeros(shape, dtype=dtype), *parts])
            columns.append(column.astype(dtype, copy=False)[order])
        return _Rows(owners[order], tuple(columns))


def _boxes(
    path: Path, ids: Ids, classes: _Names, rotation_deg: NDArray[np.int16], report: ReadReport
) -> _Rows:
    """Columns: label code, corners of the upright image (N, 4) xyxy 0..1, flags (N, 5)."""
    kept = _Kept(ids, path)
    columns = {
        "ImageID": pa.string(),
        "LabelName": _CODES,
        **dict.fromkeys(("XMin", "XMax", "YMin", "YMax"), pa.float32()),
        **dict.fromkeys(_FLAGS, pa.int8()),
    }
    for batch in batches(path, columns):
        rows = kept.wanted(batch)
        codes = classes.codes(rows.column("LabelName"))
        x1, x2, y1, y2 = (
            np.clip(rows.column(name).to_numpy(zero_copy_only=False), 0.0, 1.0)
            for name in ("XMin", "XMax", "YMin", "YMax")
        )
        corners = _upright(np.stack([x1, y1, x2, y2], axis=1), rotation_deg[kept.owners])
        flags = [rows.column(n).fill_null(-1).to_numpy(zero_copy_only=False) for n in _FLAGS]
        whole = (corners[:, 0] < corners[:, 2]) & (corners[:, 1] < corners[:, 3])
        _count(report, "box outside the image or empty", ~whole)
        _count(report, "box of a label without a name", whole & (codes < 0))
        kept.keep(whole & (codes >= 0), codes.astype(np.int16), corners, np.stack(flags, axis=1))
    return kept.rows(np.int16, np.float32, np.int8)


# Degrees -> for each coordinate of the turned box, which one it comes from, and whether mirrored.
_TURNED = {
    90: ((1, 2, 3, 0), (False, True, False, True)),
    180: ((2, 3, 0, 1), (True, True, True, True)),
    270: ((3, 0, 1, 2), (True, False, True, False)),
}


def _upright(corners: NDArray[np.float32], rotation_deg: NDArray[np.int16]) -> NDArray[np.float32]:
    """Boxes of images as published, (N, 4) xyxy 0..1, in the images turned counter-clockwise."""
    turned = corners.copy()
    for degrees, (sources, mirrored) in _TURNED.items():
        rows = rotation_deg == degrees
        values = corners[rows][:, sources]
        turned[rows] = np.where(mirrored, 1 - values, values)
    return turned


def _as_boxes(rows: list[list[Any]], classes: _Names) -> list[Box]:
    codes, corners, flags = rows
    texts = classes.texts
    return [
        Box(
            texts[code],
            tuple(corner),
            is_occluded=_TRI_STATE[occluded],
            is_truncated=_TRI_STATE[truncated],
            is_group=_TRI_STATE[group],
            is_depiction=_TRI_STATE[depiction],
            is_inside=_TRI_STATE[inside],
        )
        for code, corner, (
            occluded,
            truncated,
            group,
            depiction,
            inside,
        ) in zip(codes, corners, flags, strict=True)
    ]


def _labels(path: Path, ids: Ids, classes: _Names, report: ReadReport) -> _Rows:
    """Columns: label code, confidence (of people 1 for present and 0 for absent)."""
    kept = _Kept(ids, path)
    columns = {"ImageID": pa.string(), "LabelName": _CODES, "Confidence": pa.float32()}
    for batch in batches(path, columns):
        rows = kept.wanted(batch)
        codes = classes.codes(rows.column("LabelName"))
        scores = rows.column("Confidence").to_numpy(zero_copy_only=False)
        _count(report, "label without a name", codes < 0)
        kept.keep((codes >= 0) & ~np.isnan(scores), codes.astype(np.int16), scores)
    return kept.rows(np.int16, np.float32)


def _as_labels(rows: list[list[Any]], classes: _Names) -> Iterator[labels.Item]:
    for code, confidence in zip(*rows, strict=True):
        yield labels.Item(classes.texts[code], present=confidence >= 0.5)


def _scored(
    guessed: _Rows | None, start: int, stop: int, classes: _Names
) -> Iterator[list[labels.Item]]:
    """What a program found in each of some images, the surest first."""
    if guessed is None:
        yield from ([] for _ in range(start, stop))
        return

    def as_items(rows: list[list[Any]]) -> list[labels.Item]:
        pairs = zip(*rows, strict=True)
        return [labels.Item(classes.texts[code], score=score) for code, score in pairs]

    for items in guessed.piece(start, stop, as_items):
        yield sorted(items, key=lambda item: -(item.score or 0.0))


def _relations(paths: dict[str, Path], ids: Ids, classes: _Names, report: ReadReport) -> _Rows:
    """Columns: codes of the first and the second label, predicate in words."""
    # Attributes have ids of their own, which no class has.
    attributes = names(paths["attributes"])
    classes.add({label_id: _attribute(text) for label_id, text in attributes.items()})
    words = _predicates(paths["predicates"])
    path = paths["relations"]
    kept = _Kept(ids, path)
    columns = {
        "ImageID": pa.string(),
        "LabelName1": _CODES,
        "LabelName2": _CODES,
        "RelationshipLabel": pa.string(),
    }
    for batch in batches(path, columns):
        rows = kept.wanted(batch)
        first, second = (classes.codes(rows.column(f"LabelName{n}")) for n in (1, 2))
        predicates = rows.column("RelationshipLabel").fill_null("").to_pylist()
        spoken = np.array(
            [words.get(p, _SPOKEN.get(p, p.replace("_", " "))) for p in predicates], dtype=object
        )
        named = (first >= 0) & (second >= 0) & (spoken != "")
        _count(report, "relation with a label without a name", ~named)
        kept.keep(named, first.astype(np.int16), second.astype(np.int16), spoken)
    return kept.rows(np.int16, np.int16, object)


def _attribute(text: str) -> str:
    """``(made of)Textile`` -> ``made of textile``, ``Wooden`` -> ``wooden``."""
    return text.replace("(made of)", "made of ").lower()


# The release's own names of relations, most of them bare verbs, as they are read in a sentence.
_SPOKEN = {
    "catch": "catches", "contain": "contains", "cut": "cuts", "dance": "dances with",
    "drink": "drinks", "eat": "eats", "handshake": "shakes hands with", "hang": "hangs from",
    "highfive": "high-fives", "holding_hands": "holds hands with", "hug": "hugs",
    "inside_of": "is inside", "interacts_with": "interacts with", "kick": "kicks",
    "kiss": "kisses", "read": "reads", "ride": "rides", "skateboard": "rides",
    "ski": "skis on", "snowboard": "rides", "surf": "surfs on",
    "talk_on_phone": "talks on", "throw": "throws",
}  # fmt: skip


def _predicates(path: Path) -> dict[str, str]:
    """Label of a relation -> its words; the file mostly repeats the label for a name."""
    return {label: _SPOKEN.get(label) or _words(text) for label, text in names(path).items()}


def _words(predicate: str) -> str:
    return _SPOKEN.get(predicate, predicate.replace("_", " "))


def _as_relations(rows: list[list[Any]], classes: _Names) -> Iterator[relations.Item]:
    for first, second, predicate in zip(*rows, strict=True):
        yield relations.Item(classes.texts[first], predicate, classes.texts[second])


@dataclass(frozen=True, slots=True)
class _Media:
    """What the table of images says about the wanted ones.

    Attributes:
        table: its rows of wanted images.
        row: number of the image in the list of ids -> row of the table, or -1.
        rotation_deg: by number of the image, counter-clockwise.
        ids: of the wanted images.
    """

    table: pa.Table
    row: NDArray[np.int64]
    rotation_deg: NDArray[np.int16]
    ids: Ids

    def piece(self, start: int, stop: int) -> Iterator[Media]:
        """The records of some images."""
        rows = self.row[start:stop]
        found = self.table.take(pa.array(rows[rows >= 0])).to_pylist()
        facts = iter(found)
        for index in range(start, stop):
            yield _medium(
                f"{self.ids[index]:016x}",
                next(facts) if self.row[index] >= 0 else {},
                int(self.rotation_deg[index]),
            )


_TEXTS = ("Subset", "OriginalLandingURL", "License", "AuthorProfileURL", "Author", "Title")


def _media(path: Path, ids: Ids) -> _Media:
    kept = _Kept(ids, path)
    columns = {"ImageID": pa.string(), **dict.fromkeys(_TEXTS, pa.string())}
    parts, owners, rotations = [], [], []
    for batch in batches(path, {**columns, "Rotation": pa.string()}, quoted_newlines=True):
        rows = kept.wanted(batch)
        owners.append(kept.owners)
        degrees = rows.column("Rotation").fill_null("").to_pylist()
        rotations.append(np.array([_degrees(text, path) for text in degrees], dtype=np.int16))
        parts.append(rows.select(_TEXTS))
    schema = pa.schema([(name, pa.string()) for name in _TEXTS])
    row = np.full(len(ids), -1, dtype=np.int64)
    rotation_deg = np.zeros(len(ids), dtype=np.int16)
    if owners:
        every = np.concatenate(owners)
        row[every] = np.arange(len(every))
        rotation_deg[every] = np.concatenate(rotations)
    return _Media(pa.Table.from_batches(parts, schema), row, rotation_deg, ids)


def _degrees(text: str, path: Path) -> int:
    """0, 90, 180 or 270; nobody knows where the field is empty or ``nan``."""
    if text in ("", "nan"):
        return 0
    try:
        degrees = float(text)
    except ValueError:
        degrees = -1.0
    if degrees not in (0.0, 90.0, 180.0, 270.0):
        raise SourceError(
            f"{path.name}: got the rotation {text!r} against 0, 90, 180, 270 or nothing expected. "
            "Fix that row or download the file again."
        )
    return int(degrees)


def _medium(name: str, facts: dict[str, str | None], rotation_deg: int) -> Media:
    url = facts.get("License")
    subset = facts.get("Subset")
    return Media(
        f"{name}.jpg",
        url=f"{_IMAGES_URL}/{subset}/{name}.jpg" if subset else None,
        landing_url=facts.get("OriginalLandingURL"),
        license=spdx_of(url),
        license_url=url,
        author=_clean(facts.get("Author")),
        author_url=facts.get("AuthorProfileURL"),
        title=_clean(facts.get("Title")),
        rotation_deg=rotation_deg,
    )


def _clean(text: str | None) -> str | None:
    return " ".join(text.split()) or None if text else None


def _count(report: ReadReport, reason: str, rows: NDArray[np.bool_]) -> None:
    if count := int(rows.sum()):
        report.skip(reason, count)
