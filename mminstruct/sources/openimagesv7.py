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

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mminstruct.annotations import labels, narratives, relations
from mminstruct.checks.vocabulary import Vocabulary
from mminstruct.errors import SourceError
from mminstruct.late import Late
from mminstruct.resources import shown
from mminstruct.schema import Box, Context, Media, Option
from mminstruct.sources import _narratives
from mminstruct.sources._annotation_file import files_of, find_first, folders
from mminstruct.sources._base import Download, Files, ReadReport, SourceInfo, word_for
from mminstruct.sources._classes import vocabulary_in
from mminstruct.sources._image_licenses import spdx_of
from mminstruct.sources._tables import (
    ID_FORM,
    Column,
    Ids,
    Judged,
    Rows,
    image_id,
    image_ids,
    lines_of,
    names,
    rows_of,
    scan,
    select_wanted,
)
from mminstruct.sources._tolerance import check_fractions, find_repeated

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
else:
    np, pa = Late("numpy"), Late("pyarrow")

OPTIONS = {
    "machine_labels": Option(
        bool, "also labels that only a program found, with its score (up to 7.4 GB more)"
    ),
}

_URL = "https://storage.googleapis.com/openimages"
_IMAGES_URL = "https://open-images-dataset.s3.amazonaws.com"
_FILE_SPLIT = {"train": "train", "validation": "val", "test": "test"}
_SPLIT_MD5 = {("boxes", "train"): (2_258_447_590, "3c3e70cfaba5757ea5c2604b19cac3b2")}
_IMAGES_PER_PIECE = 4096
# In the order of `Box`.
_FLAGS = ("IsGroupOf", "IsOccluded", "IsTruncated", "IsDepiction", "IsInside")
_ATTRIBUTE = "is"
# No corner is so far beyond the image; many have 1.000001.
_FAR = 1.5

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


@dataclass(frozen=True, slots=True)
class OpenImagesSource:
    """Open Images V7.

    Attributes:
        machine_labels: read the labels that only a program found, too.
    """

    machine_labels: bool = False

    info = SourceInfo(
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
        splits=tuple(_FILE_SPLIT),
        fitted=False,
        prompt_config="openimagesv7",
    )

    def downloads(self, split: str) -> tuple[Download, ...]:
        """The published tables and narratives."""
        return tuple(
            Download(url, *_SPLIT_MD5.get((role, split), (None, None)))
            for role, url in self.urls(split).items()
        )

    def locate(self, places: Sequence[Path], split: str) -> Files | None:
        """The split's files by their published names, in a folder or in the publisher's folders.

        Raises:
            SourceError: some of them are there and others are not.
        """
        urls = self.urls(split)
        near = folders(places, "openimagesv7")
        found = _narratives.locate(near, self.file_names(split)["narratives"])
        found |= {role: path for role, url in urls.items() if (path := _find(near, url))}
        # The class names are shared by all splits.
        if not found.keys() - _SHARED_ROLES:
            return None
        needed = [role for role in urls if role not in _OPTIONAL or found.keys() & _OPTIONAL[role]]
        if missing := [urls[role] for role in needed if role not in found]:
            name, there = PurePosixPath(missing[0]).name, len(urls.keys() & found)
            raise SourceError(
                f"{name}: missing, got {there} of the {len(urls)} files of OPENIMAGESV7, "
                f"split {split!r}, in {', '.join(map(shown, places))}. "
                f"Put there: {' '.join(missing)}"
            )
        return files_of(found)

    def read(self, files: Files, report: ReadReport) -> Iterator[Context]:
        """The images that have a narrative, in ascending order of their id.

        Raises:
            SourceError: a file is damaged.
        """
        return read_files(files.paths, report)

    def vocabulary(self, files: Files) -> Vocabulary:
        """The boxed classes, each with those that it is a kind of, if the hierarchy is there.

        Raises:
            SourceError: a file is damaged.
        """
        return vocabulary_in(files.paths)

    def file_names(self, split: str) -> dict[str, str]:
        """Role -> name."""
        return {role: PurePosixPath(url).name for role, url in self.urls(split).items()}

    def urls(self, split: str) -> dict[str, str]:
        """Role -> URL."""
        short = word_for(split, self.info.name, _FILE_SPLIT)
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
            "hierarchy": f"{_URL}/2018_04/bbox_labels_600_hierarchy.json",
        }
        if self.machine_labels:
            urls["machine"] = f"{_URL}/v7/oidv7-{short}-annotations-machine-imagelabels.csv"
        return urls


SOURCE = OpenImagesSource()


def read_files(
    paths: Mapping[str, Path], report: ReadReport, renamed: Mapping[str, str] | None = None
) -> Iterator[Context]:
    """The images that have a narrative, or without any narratives those with a box or a label.

    Args:
        paths: as `OpenImagesSource.file_names` has them; only ``classes`` has to be there.
        report: counts what is left out.
        renamed: label -> what it is called instead.

    Raises:
        SourceError: a file is damaged.
    """
    spoken = {role: path for role, path in paths.items() if role.startswith("narratives")}
    texts = _narratives.read(Files(spoken, ""), "open_images_", image_id, ID_FORM, report)
    ids = np.array(sorted(texts), dtype=np.uint64) if spoken else _ids_in(paths)
    called = {id: (renamed or {}).get(name, name) for id, name in names(paths["classes"]).items()}
    classes = _Names(called)
    rotation_deg, facts = _media(paths.get("images"), ids, report)
    readers = {
        "boxes": partial(_boxes, rotation_deg),
        "labels": partial(_labels, True),
        "machine": partial(_labels, False),
        "relations": partial(_relations, paths),
    }
    tables = [
        read(paths[role], ids, classes, report) if role in paths else None
        for role, read in readers.items()
    ]
    for role in _OPTIONAL.keys() - _UNREAD:
        if role not in paths:
            report.skip(f"file of {role} that isn't there", harmless=True)
    for start in range(0, len(ids), _IMAGES_PER_PIECE):
        stop = min(start + _IMAGES_PER_PIECE, len(ids))
        piece = slice(start, stop)
        media = _records(facts.slice(start, stop - start), rotation_deg[piece], ids[piece])
        found = (rows.piece(start, stop) if rows else repeat([], stop - start) for rows in tables)
        for number, medium, own_boxes, checked, guessed, related in zip(
            ids[piece].tolist(), media, *found, strict=True
        ):
            report.contexts += 1
            own_labels = [*checked, *sorted(guessed, key=lambda item: -(item.score or 0.0))]
            items = {
                "narratives": tuple(map(narratives.Item, texts.get(number, ()))),
                "labels": report.agreeing(own_labels, own_boxes, example=f"{number:016x}"),
                "relations": tuple(related),
            }
            yield Context(
                f"{number:016x}",
                medium,
                boxes=tuple(own_boxes),
                annotations={kind: own for kind, own in items.items() if own},
            )


def _ids_in(paths: Mapping[str, Path]) -> Ids:
    """The images that have a box or a label."""
    found = [np.zeros(0, dtype=np.uint64)]
    for role in ("boxes", "labels"):
        if role in paths:
            found += scan(paths[role], {"ImageID": pa.string()}, _ids_of)
    return np.unique(np.concatenate(found))


def _ids_of(batch: pa.RecordBatch) -> Ids:
    found, readable = image_ids(batch.column("ImageID"))
    return np.unique(found if readable is None else found[readable])


_SHARED_ROLES = {"classes", "attributes", "predicates", "hierarchy"}
# Role that rows can do without -> whichever of its kind is there, all have to be.
_OPTIONAL: dict[str, set[str]] = {
    "labels": set(),
    "relations": {"relations"},
    "attributes": {"relations"},
    "predicates": {"relations"},
    "hierarchy": set(),
}
# Contexts don't need it: it only says what answers may call a class.
_UNREAD = {"hierarchy"}


def _find(places: Iterable[Path], url: str) -> Path | None:
    """The file of that name in one of the places, or where its publisher has it below them."""
    below = PurePosixPath(url.removeprefix(f"{_URL}/").removeprefix(f"{_narratives.URL}/"))
    return find_first(places, below.name, str(below))


class _Names:
    """Codes for the names of labels, so that a label costs two bytes a row.

    Attributes:
        known: label id -> code.
        texts: name by code.
    """

    def __init__(self, by_id: dict[str, str]) -> None:
        self.known = {label_id: code for code, label_id in enumerate(by_id)}
        self.texts = list(by_id.values())

    def under(self, by_id: dict[str, str]) -> _Names:
        """These names with their codes, under others that go before them where an id has both."""
        both = _Names({})
        both.texts = [*self.texts, *by_id.values()]
        both.known = self.known | {id_: code for code, id_ in enumerate(by_id, len(self.texts))}
        return both

    def codes(self, column: pa.DictionaryArray) -> NDArray[np.int16]:
        """The codes of a column of label ids; -1 for those that have no name."""
        table = [self.known.get(label.strip(), -1) for label in column.dictionary.to_pylist()]
        return _by_index(column, [*table, -1], np.int16)


def _by_index(column: pa.DictionaryArray, values: list[Any], dtype: Any) -> Column:
    """The column with its dictionary's values replaced; the last one is for null."""
    indices = column.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False)
    replaced: Column = np.array(values, dtype=dtype)[indices]
    return replaced


def _boxes(
    rotation_deg: NDArray[np.int16], path: Path, ids: Ids, classes: _Names, report: ReadReport
) -> Rows:
    """Columns: label code, corners of the upright image (N, 4) xyxy 0..1, flags (N, 5)."""
    seen: list[tuple[int, int, int]] = []
    columns = {
        "LabelName": _codes(),
        **dict.fromkeys(("XMin", "XMax", "YMin", "YMax"), pa.float32()),
        **dict.fromkeys(_FLAGS, pa.int8()),
    }

    def judge(owners: NDArray[np.int32], rows: pa.RecordBatch) -> Judged:
        codes = classes.codes(rows.column("LabelName"))
        corners = _matrix(rows.column(name) for name in ("XMin", "YMin", "XMax", "YMax"))
        far = np.count_nonzero((corners > _FAR).any(axis=1))
        corners = turn_upright(np.clip(corners, 0.0, 1.0), rotation_deg[owners])
        # 1, 0, and -1 for unknown, as an empty field is.
        flags = _matrix(rows.column(name).fill_null(-1) for name in _FLAGS)
        odd = flags != np.clip(flags, -1, 1)
        seen.append((len(owners), int(far), int(np.count_nonzero(odd))))
        whole = (corners[:, 0] < corners[:, 2]) & (corners[:, 1] < corners[:, 3])
        left_out = {
            "box outside the image or empty": ~whole,
            "box of a label without a name": whole & (codes < 0),
        }
        return left_out, (codes, corners, np.where(odd, -1, flags))

    as_items = partial(_as_boxes, _objects(classes.texts))

    def check() -> None:
        count, far, odd = (sum(numbers) for numbers in zip(*seen, strict=True))
        check_fractions(far, count, path.name)
        if odd:
            report.skip("flag of a box that is none of 1, 0 and -1", odd, harmless=True)

    found = rows_of(
        "box", path, columns, ids, judge, as_items, report, check=check, optional=_FLAGS
    )
    again = find_repeated(found.owners, *found.columns)
    if not again.any():
        return found
    example = f"{ids[found.owners[again.argmax()]]:016x}"
    report.skip("box that is there twice", int(again.sum()), example=example, harmless=True)
    return Rows(found.owners[~again], tuple(c[~again] for c in found.columns), as_items)


def _matrix(columns: Iterable[pa.Array]) -> Column:
    return np.stack([column.to_numpy(zero_copy_only=False) for column in columns], axis=1)


def _objects(values: list[Any]) -> Column:
    return np.array(values, dtype=object)


# Degrees -> for each coordinate of the turned box, which one it comes from, and whether mirrored.
_TURNED = {
    90: ((1, 2, 3, 0), (False, True, False, True)),
    180: ((2, 3, 0, 1), (True, True, True, True)),
    270: ((3, 0, 1, 2), (True, False, True, False)),
}


def turn_upright(
    corners: NDArray[np.float32], rotation_deg: NDArray[np.int16]
) -> NDArray[np.float32]:
    """Boxes of images as published, (N, 4) xyxy 0..1, in the images turned counter-clockwise."""
    turned = corners.copy()
    for degrees, (sources, mirrored) in _TURNED.items():
        rows = rotation_deg == degrees
        values = corners[rows][:, sources]
        turned[rows] = np.where(mirrored, 1 - values, values)
    return turned


def _plain(column: NDArray[np.float32]) -> Column:
    """Without the digits that float32 makes up."""
    return column.astype(np.float64).round(6)


def _as_boxes(texts: Column, codes: Column, corners: Column, flags: Column) -> list[Box]:
    # Called from C for each of millions, with values that are in columns up to then.
    corners_xyxy = zip(*_plain(corners).T.tolist(), strict=True)
    # 0, 1 and, from the end, -1: nobody said.
    said = np.array([False, True, None], dtype=object)[flags.T]
    return list(map(Box, texts[codes].tolist(), corners_xyxy, *said.tolist()))


def _codes() -> pa.DataType:
    """The type of a column of words that come again and again."""
    return pa.dictionary(pa.int32(), pa.string())


def _labels(by_people: bool, path: Path, ids: Ids, classes: _Names, report: ReadReport) -> Rows:
    """Columns: label code, confidence, which of people is 1 for present and 0 for absent."""
    # Images share what people say.
    absent, present = (
        _objects([labels.Item(text, present=is_there) for text in classes.texts])
        for is_there in (False, True)
    )
    who = "that people didn't decide about" if by_people else "with a score beyond 0 and 1"

    def judge(_: NDArray[np.int32], rows: pa.RecordBatch) -> Judged:
        codes = classes.codes(rows.column("LabelName"))
        scores = rows.column("Confidence").to_numpy(zero_copy_only=False)
        valid = np.isin(scores, (0, 1)) if by_people else (scores >= 0) & (scores <= 1)
        left_out = {
            "label without a name": codes < 0,
            "label without a confidence": (codes >= 0) & np.isnan(scores),
            f"label {who}": (codes >= 0) & ~np.isnan(scores) & ~valid,
        }
        return left_out, (codes, scores)

    def as_items(codes: Column, scores: Column) -> list[labels.Item]:
        if by_people:
            items: list[labels.Item] = np.where(scores == 1, present[codes], absent[codes]).tolist()
            return items
        pairs = zip(codes.tolist(), _plain(scores).tolist(), strict=True)
        return [labels.Item(classes.texts[code], score=score) for code, score in pairs]

    columns = {"LabelName": _codes(), "Confidence": pa.float32()}
    return rows_of("label", path, columns, ids, judge, as_items, report)


def _relations(
    paths: Mapping[str, Path], path: Path, ids: Ids, classes: _Names, report: ReadReport
) -> Rows:
    """Columns: codes of the first and the second label, predicate in words."""
    # Some of them are classes, too: /m/083vt is the class "Wood" and the attribute "Wooden".
    # (made of)Textile -> made of textile, Wooden -> wooden
    qualities = classes.under(
        {
            label: text.replace("(made of)", "made of ").lower()
            for label, text in names(paths["attributes"]).items()
        }
    )
    # The file mostly repeats the label for a name.
    named_in_file = names(paths["predicates"]).items()
    words = {label: _SPOKEN.get(label) or _words(text) for label, text in named_in_file}
    columns = dict.fromkeys(("LabelName1", "LabelName2", "RelationshipLabel"), _codes())

    def judge(_: NDArray[np.int32], rows: pa.RecordBatch) -> Judged:
        first, second = (classes.codes(rows.column(f"LabelName{n}")) for n in (1, 2))
        predicates = rows.column("RelationshipLabel")
        spelled = predicates.dictionary.to_pylist()
        is_quality = _by_index(predicates, [*(p == _ATTRIBUTE for p in spelled), False], bool)
        second = np.where(is_quality, qualities.codes(rows.column("LabelName2")), second)
        known = [words.get(p, _words(p)) for p in spelled]
        spoken = _by_index(predicates, [*known, ""], object)
        named = (first >= 0) & (second >= 0) & (spoken != "")
        return {"relation with a label without a name": ~named}, (first, second, spoken)

    texts = _objects(qualities.texts)

    def as_items(first: Column, second: Column, spoken: Column) -> list[relations.Item]:
        columns = (texts[first].tolist(), spoken.tolist(), texts[second].tolist())
        return list(map(relations.Item, *columns))

    return rows_of("relation", path, columns, ids, judge, as_items, report)


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


def _words(predicate: str) -> str:
    return _SPOKEN.get(predicate, predicate.replace("_", " "))


def _records(facts: pa.Table, rotation_deg: NDArray[np.int16], ids: Ids) -> Iterator[Media]:
    """What the table of images says about some of them."""
    columns = facts.to_pydict()
    licenses = {url: spdx_of(url) for url in set(columns["License"])}
    texts = (columns[name] for name in _TEXTS)
    for number, turn, subset, landing_url, license_url, author_url, author, title in zip(
        ids.tolist(), rotation_deg.tolist(), *texts, strict=True
    ):
        name = f"{number:016x}.jpg"
        yield Media(
            name,
            url=f"{_IMAGES_URL}/{subset}/{name}" if subset else None,
            landing_url=landing_url,
            license=licenses[license_url],
            license_url=license_url,
            author=_clean(author),
            author_url=author_url,
            title=_clean(title),
            rotation_deg=turn,
        )


_TEXTS = ("Subset", "OriginalLandingURL", "License", "AuthorProfileURL", "Author", "Title")


def _media(path: Path | None, ids: Ids, report: ReadReport) -> tuple[NDArray[np.int16], pa.Table]:
    """For each image the degrees to turn it by, and texts, null where the table lacks it."""
    rotation_deg = np.zeros(len(ids), dtype=np.int16)
    if path is None:
        return rotation_deg, pa.table({n: pa.nulls(len(ids), pa.string()) for n in _TEXTS})
    seen: list[tuple[int, int]] = []
    columns = {"ImageID": pa.string(), **dict.fromkeys(_TEXTS, pa.string()), "Rotation": _codes()}

    def keep(batch: pa.RecordBatch) -> tuple[NDArray[np.int32], NDArray[np.int16], pa.RecordBatch]:
        owners, rows, unreadable = select_wanted(batch, ids)
        column = rows.column("Rotation")
        degrees = [_degrees(text) for text in column.dictionary.to_pylist()]
        turns = _by_index(column, [*degrees, 0], np.int16)
        seen.append((unreadable, int(np.count_nonzero(turns < 0))))
        return owners, np.maximum(turns, 0), rows.select(_TEXTS)

    parts = list(scan(path, columns, keep, optional=(*_TEXTS, "Rotation")))
    reasons = ("row about an impossible image id", "rotation that is none, taken as upright")
    for reason, count in zip(reasons, map(sum, zip(*seen, strict=True)), strict=True):
        if count:
            report.skip(reason, count, example=path.name, harmless=True)
    all_owners, all_turns, batches = zip(*parts, strict=True)
    owners, turns = np.concatenate(all_owners), np.concatenate(all_turns)
    facts = pa.Table.from_batches(batches)
    row = np.full(len(ids), -1, dtype=np.int64)
    row[owners] = np.arange(len(owners))
    if repeated := len(owners) - int(np.count_nonzero(row >= 0)):
        _check_repeated(path, ids, owners, facts.append_column("Rotation", pa.array(turns)))
        report.skip("repeated row about an image", repeated)
    rotation_deg[owners] = turns
    return rotation_deg, facts.take(pa.array(row, mask=row < 0))


def _check_repeated(path: Path, ids: Ids, owners: NDArray[np.int32], facts: pa.Table) -> None:
    """Raise SourceError if two rows about one image say different things, a licence maybe."""
    order = np.argsort(owners, kind="stable")
    again = np.flatnonzero(np.diff(owners[order]) == 0)
    one, other = (facts.take(pa.array(order[rows])) for rows in (again, again + 1))
    for name in facts.column_names:
        # As objects, of which None is equal to None.
        differs = one.column(name).to_numpy() != other.column(name).to_numpy()
        if differs.any():
            image = f"{ids[owners[order[again[differs.argmax()]]]]:016x}"
            lines = ", ".join(map(str, lines_of(path, "ImageID", image)))
            raise SourceError(
                f"{path.name}, lines {lines}: several rows about image {image}, whose {name} "
                "differ, against one for each image expected. Remove all but one of them or "
                "download the file again."
            )


def _degrees(text: str) -> int:
    """0, 90, 180 or 270, and -1 for what is none; nobody knows where it is empty or ``nan``."""
    try:
        degrees = float(text)
    except ValueError:
        return -1 if text else 0
    if math.isnan(degrees):
        return 0
    return int(degrees) if degrees in (0.0, 90.0, 180.0, 270.0) else -1


def _clean(text: str | None) -> str | None:
    return " ".join(text.split()) or None if text else None
