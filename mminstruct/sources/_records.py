"""What people's own files say: COCO's format in any of its kinds, and tables of images.

A table is JSON lines, a JSON list, CSV or Parquet, a row an image or a row an annotation. Rows
become what COCO's files have, so that the same is tolerated and doubted in both.
"""

from __future__ import annotations

import ast
import codecs
import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from mminstruct.errors import SourceError, did_you_mean
from mminstruct.late import Late
from mminstruct.resources import count_of
from mminstruct.sources._annotation_file import AnnotationFile, Layout, decode, open_text
from mminstruct.sources._base import ReadReport
from mminstruct.sources._coco import (
    Annotation,
    Captions,
    Category,
    Id,
    Image,
    Instances,
    categories_of,
    check_same_images,
    usable_images,
)
from mminstruct.sources._image_licenses import License, Licenses, spdx_of
from mminstruct.sources._tolerance import Numbers, Order, convert, loads, published_name
from mminstruct.strict_yaml import Strict

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet
else:
    pa, parquet = Late("pyarrow"), Late("pyarrow.parquet")

_HEAD = 1000  # rows that say which columns there are
_CHUNK = 2000
_NEW = -1
_OF_IMAGE = ("image", "id", "width", "height", "url", "license", "author", "title")
# What four numbers in cells of their own are called, in lower case.
_CORNERS = "xmin ymin xmax ymax, x_min y_min x_max y_max, x1 y1 x2 y2, left top right bottom"
_SIDES = (
    "bbox_x bbox_y bbox_width bbox_height, x y w h, x y width height, xmin ymin width height, "
    "left top width height"
)
_CENTRES = "x_center y_center w h, x_center y_center width height, cx cy w h, xc yc w h"
_FOUR: dict[tuple[str, ...], Order] = {
    **{tuple(names.split()): "xyxy" for names in _CORNERS.split(",")},
    **{tuple(names.split()): "xywh" for names in _SIDES.split(",")},
    **{tuple(names.split()): "cxcywh" for names in _CENTRES.split(",")},
}
_EITHER = "xywh or cxcywh"  # of x and y in a list, as some call the centre, too: the numbers tell
_LABEL = (
    *("label", "category", "class", "name", "category_name", "class_name", "label_name"),
    *("labels", "categories"),
)
_BBOX = ("bbox", "box", "bboxes", "boxes")
_TEXT = ("caption", "text", "raw")
_USUAL = {
    "image": ("image", "file_name", "filename", "image_path", "image_name", "img", "file", "path"),
    "id": ("image_id", "imageid"),
    "captions": ("captions", *_TEXT, "texts", "sentences", "description"),
    "boxes": ("boxes", "objects", "annotations"),
    "bbox": _BBOX,
    "label": _LABEL,
    "width": ("width", "image_width"),
    "height": ("height", "image_height"),
    "license": ("image_license", "license"),
    "url": ("image_url", "url", "coco_url"),
    "author": ("author",),
    "title": ("title",),
}


class Parts(NamedTuple):
    """What was read of somebody's own data; ``id_of`` gives a number's id."""

    images: Mapping[int, Image]
    captions: Captions
    boxes: Instances
    categories: dict[int, str]
    licenses: Licenses
    id_of: Callable[[int], str]


class AnyImage(Image, kw_only=True, gc=False):
    """One whose size may be unknown, which is 0, or whose name is in its address, as LVIS's are."""

    file_name: str = ""
    width: int = 0
    height: int = 0

    def __post_init__(self) -> None:
        self.file_name = self.file_name or published_name(self.coco_url or "")


class _Any(Annotation, gc=False):
    category_id: Id = -1
    bbox: tuple[float, float, float, float] | None = None
    iscrowd: int = 0
    area: float = math.nan
    caption: str | None = None


class _AnyFile(AnnotationFile, kw_only=True, gc=False):
    images: list[AnyImage]
    annotations: list[_Any]
    categories: list[Category] = []
    licenses: list[License] = []


class _Both:
    """Columns of annotations each of which is a caption, a box or both."""

    def __init__(self) -> None:
        self.captions, self.boxes, self.others = Captions(), Instances(), 0

    def add(self, annotations: list[Any]) -> None:
        """As the columns do."""
        boxes = [a for a in annotations if a.bbox is not None]
        self.boxes.add(boxes)
        if len(boxes) < len(annotations) or any(a.caption is not None for a in boxes):
            self.captions.add([a for a in annotations if a.caption is not None])
            self.others += sum(a.caption is None and a.bbox is None for a in annotations)

    def extend(self, other: _Both) -> None:
        """Add those of another file."""
        for mine, theirs in ((self.captions, other.captions), (self.boxes, other.boxes)):
            for name, column in vars(mine).items():
                column.extend(getattr(theirs, name))
        self.others += other.others


_ANY = Layout(_AnyFile, _Both, "annotation", "bbox or caption", "")


def read_own(paths: Sequence[Path], report: ReadReport, *, only_first: bool) -> Parts:
    """What files in COCO's format say, each of captions, boxes or both, with ids of any form.

    Args:
        paths: what they say of an image adds up.
        report: counts what is left out.
        only_first: the first says which images there are; else each does.

    Raises:
        SourceError: a file is damaged, or it contradicts itself or another one.
    """
    ids = Numbers()
    read = [(path.name, *decode(path, _ANY, report, ids)) for path in paths]
    (first, file, found), *others = read
    images = usable_images(file.images, first, report, any_size=True)
    for name, file, columns in others:
        # What is wrong with an image in several files counts once.
        more = usable_images(file.images, name, ReadReport(), any_size=True)
        check_same_images(more, images, name, first)
        images = images if only_first else more | images
        found.extend(columns)
    listed = {image.id for _, file, _ in read for image in file.images}
    found.captions.count_strays(listed, report)
    found.boxes.count_strays(listed, report)
    if found.others:
        report.skip("box that isn't there or can't be read, and no caption", found.others)
    named = [category for _, file, _ in read for category in file.categories]
    licenses = Licenses.of([entry for _, file, _ in read for entry in file.licenses])
    categories = categories_of(named, first)
    return Parts(images, found.captions, found.boxes, categories, licenses, ids.text)


class Columns(Strict):
    """Which column has what; what isn't stated is found by a usual name, but for ``split``."""

    image: str | None = None
    id: str | None = None
    captions: str | tuple[str, ...] | None = None
    boxes: str | None = None
    bbox: str | tuple[str, str, str, str] | None = None
    label: str | None = None
    width: str | None = None
    height: str | None = None
    license: str | None = None
    url: str | None = None
    author: str | None = None
    title: str | None = None
    split: str | None = None

    def found_in(self, names: list[str], where: str) -> dict[str, Any]:
        """Role -> column, or several, as stated or found among the names of a table's columns.

        Raises:
            SourceError: one that is stated isn't there, or none has names, or what is said.
        """
        stated = self.model_dump(exclude_none=True)
        wanted = chain.from_iterable([c] if isinstance(c, str) else c for c in stated.values())
        for name in wanted:
            if name not in names:
                raise SourceError(
                    f"{where}: no column {name!r}, got {', '.join(names)} against it expected"
                    f"{did_you_mean(name, names)}. Name one of these."
                )
        free = {name.casefold(): name for name in names if name not in stated.values()}
        found: dict[str, Any] = {}
        four = next((four for four in _FOUR if free.keys() >= set(four)), ())
        for role, usual in _USUAL.items():
            if own := [free.pop(name) for name in usual if name in free and name not in four]:
                # Some rows may have several captions, and others one.
                has_both = [name.casefold() for name in own[:2]] == ["captions", "caption"]
                found[role] = tuple(own[:2]) if has_both else own[0]
        if four and not {"boxes", "bbox"} & {**found, **stated}.keys():
            found["bbox"] = tuple(free[name] for name in four)
        found |= stated
        got = ", ".join(names) or "no columns"
        if "image" not in found and "id" not in found:
            raise SourceError(
                f"{where}: no column with the image's name, got {got} against image, file_name or "
                "the like expected. Say which it is (image_column)."
            )
        if not {"captions", "boxes"} & found.keys() and not {"bbox", "label"} <= found.keys():
            raise SourceError(
                f"{where}: no column with captions, nor with boxes and their labels, got {got} "
                "against caption, or bbox and label, or the like expected. Say which it is "
                "(captions_column, boxes_column, or columns in a description)."
            )
        return found


def read_tables(
    tables: Iterable[tuple[str, Iterator[Mapping[str, Any]]]],
    stated: Columns,
    split: str,
    report: ReadReport,
) -> tuple[Parts, Order | None, dict[str, Any]]:
    """What tables say, what the names of their boxes' columns say of the numbers, and the columns.

    Args:
        tables: names and rows; those of one image add up, wherever they are.
        stated: columns.
        split: only rows with it in the column of that name, if there is one.
        report: counts what is left out.

    Raises:
        SourceError: a column isn't there, or rows contradict each other.
    """
    ids, said, boxes = Numbers(), Captions(), Instances()
    order: str | None = None
    columns: dict[str, Any] = {}
    images: dict[int, Any] = {}
    contradicting: list[Any] = []
    labels: dict[Any, int | None] = {}
    licenses: dict[int | None, tuple[str | None, str]] = {}
    unnamed: set[int] = set()

    def id_of(number: int) -> str:
        text = ids.text(number)  # a name, where there is no id: without folders of a machine
        return published_name(text) if number in unnamed else text

    for where, rows in tables:
        head = list(islice(rows, _HEAD))
        if not head:
            raise SourceError(
                f"{where}: got no row against one for each image expected. Leave it out, or give "
                "another file."
            )
        names = dict.fromkeys(n for row in head for n in row)
        columns = stated.found_in(list(names), where)
        of_image = {role: columns[role] for role in _OF_IMAGE if role in columns}
        captions = columns.get("captions", ())
        captions = [captions] if isinstance(captions, str) else captions
        seen: dict[str, int] = {}
        for place, row in enumerate(chain(head, rows), 1):
            if not row.keys() <= names.keys():
                late = [name for name in row if name not in names]
                names |= dict.fromkeys(late)
                report.skip("column that the first rows don't have", len(late), example=late[0])
            if "split" in columns and str(row.get(columns["split"])) != split:
                continue
            cells = {role: row.get(column) for role, column in of_image.items()}
            if (number := seen.get(key := str(cells))) is None:
                try:
                    image = _image(cells, licenses, ids, report)
                except msgspec.ValidationError:
                    report.skip("image whose id can't be read", example=f"row {place} of {where}")
                    continue
                number = seen[key] = image.id
                if cells.get("id") in (None, "", image.file_name):
                    unnamed.add(number)
                if images.setdefault(number, image) != image:
                    contradicting.append(image)
            texts = [text for column in captions for text in _texts(row.get(column))]
            said.image_ids.extend([number] * len(texts))
            said.texts.extend(texts)
            for label, numbers, told in _boxes(row, columns):
                if told and (order := order or told) != told:
                    raise SourceError(
                        f"{where}: boxes of {id_of(number)}, got {told} by the names of their "
                        f"numbers against {order} as before expected. Write all in one form, or "
                        "say which it is (box_format)."
                    )
                label = None if isinstance(label, list | Mapping) else label
                if (kind := labels.get(label, _NEW)) is _NEW:
                    name = "" if label is None else " ".join(str(label).split())
                    kind = labels[label] = ids.number(name) if name else None
                try:
                    left, top, right, low = map(float, numbers)
                except (TypeError, ValueError):
                    report.skip("box that isn't four numbers", example=id_of(number))
                    continue
                if kind is None:
                    report.skip("box without a label", example=id_of(number))
                    continue
                boxes.image_ids.append(number)
                boxes.category_ids.append(kind)
                boxes.xywh.extend((left, top, right, low))
    boxes.areas.extend([math.nan] * len(boxes.image_ids))
    boxes.is_group.extend(bytes(len(boxes.image_ids)))
    if contradicting:
        raise SourceError(
            f"{where}: got {count_of(len(contradicting), 'row')} with another size, licence, "
            f"address or author of an image than one before, such as of "
            f"{contradicting[0].file_name!r}, against the same in all rows of an image expected. "
            "Put one of them right."
        )
    known = usable_images(list(images.values()), where, report, any_size=True)
    named = {n: " ".join(str(label).split()) for label, n in labels.items() if n is not None}
    parts = Parts(known, said, boxes, named, Licenses(licenses), id_of)
    return parts, None if order == _EITHER else cast(Order, order), columns


def _image(cells: Mapping[str, Any], licenses: Any, ids: Numbers, report: ReadReport) -> Any:
    """What a row says of its image, as an entry of a file in COCO's format."""
    name, id = cells.get("image"), cells.get("id")
    name = name.get("path") if isinstance(name, Mapping) else name  # as `datasets` has images
    name = str(id if name is None and id is not None else name or "")
    entry = {key: cells.get(key) for key in ("width", "height", "author", "title")}
    entry |= {"file_name": name, "id": ids.number(name if id in (None, "") else id)}
    entry["coco_url"] = cells.get("url") or (name if "://" in name else None)
    if license := str(cells.get("license") or ""):
        entry["license"] = n = ids.number(license)
        is_url = "://" in license
        licenses[n] = (spdx_of(license), license) if is_url else (license, "")
    return convert(entry, AnyImage, "image", report, published_name(name))


def _boxes(
    row: Mapping[str, Any], columns: Mapping[str, Any]
) -> Iterator[tuple[Any, Any, str | None]]:
    """Label, numbers and what their names say of them, of each box of a row.

    It has a list of boxes, lists side by side, or a single one.
    """
    bbox = columns.get("bbox")
    boxes = _opened(row.get(columns.get("boxes", "")))
    if "boxes" not in columns and isinstance(bbox, tuple):
        four = [row.get(column) for column in bbox]
        if any(four):
            yield row.get(columns.get("label", "")), four, _FOUR.get(tuple(map(str.casefold, bbox)))
        return
    if isinstance(boxes, list) and boxes and isinstance(boxes[0], Mapping):
        names: Any = next((names for names in _FOUR if boxes[0].keys() >= set(names)), ())
        for one in boxes:
            label, box = _keys_of(one)
            numbers = one.get(box) if box else [one.get(name) for name in names]
            told = _EITHER if "x" in names else _FOUR.get(names)
            yield one.get(label), numbers, None if box else told
        return
    if not isinstance(boxes, Mapping):
        cells = {role: _opened(row.get(columns.get(role, ""))) for role in ("label", "bbox")}
        boxes = cells | ({"bbox": boxes} if "boxes" in columns else {})
    label, box = _keys_of(boxes)
    labels, numbers = boxes.get(label), boxes.get(box) if box or not boxes else "none known"
    if isinstance(numbers, list) and numbers and isinstance(numbers[0], list):
        of_each = labels if isinstance(labels, list) else [labels] * len(numbers)
        yield from ((label, box, None) for label, box in zip_longest(of_each, numbers))
    elif numbers not in (None, "", []) and numbers == numbers:  # NaN is none
        yield labels, numbers, None


def _keys_of(box: Mapping[str, Any]) -> tuple[str, str]:
    label, bbox = (next((k for k in keys if k in box), "") for keys in (_LABEL, _BBOX))
    return label, bbox


def _texts(cell: Any) -> Iterator[str]:
    """The captions in a cell: one, a list, or a list of objects with one each."""
    cell = _opened(cell)
    for text in cell if isinstance(cell, list) else [cell]:
        if isinstance(text, Mapping):
            text = next((text[key] for key in _TEXT if key in text), None)
        if text not in (None, "") and text == text:  # NaN is none
            yield str(text)


def _opened(cell: Any) -> Any:
    """A list or object that is written as JSON or by Python in a cell of text, or the cell."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        with suppress(ValueError, RecursionError):
            return loads(cell.encode())
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            if repr(value := ast.literal_eval(cell)) == cell:  # as pandas writes lists
                return value
    return cell


def rows_in(path: Path, report: ReadReport) -> Iterator[Mapping[str, Any]]:
    """The rows of a table, one after the other.

    Raises:
        SourceError: it can't be read, or is no table.
    """
    name = path.name.lower().removesuffix(".gz")
    try:
        with open_text(path) as file:
            if name.endswith(".parquet"):
                table = parquet.ParquetFile(file)
                _check_names(table.schema_arrow.names)
                for batch in table.iter_batches(_CHUNK):
                    yield from batch.to_pylist()
            elif name.endswith((".csv", ".tsv")):
                text = codecs.iterdecode(file, "utf-8")
                first = next(text, "")
                delimiter = max(",;\t", key=first.count)
                rows = csv.reader(chain([first], text), delimiter=delimiter)
                header = next(rows, [])
                _check_names(header)
                for row in rows:
                    if any(row[len(header) :]):
                        report.skip("row with more cells than columns", example=row[0])
                    else:
                        yield dict(zip_longest(header, row[: len(header)], fillvalue=""))
            else:
                yield from _json_rows(file, report, is_json=name.endswith(".json"))
    except (pa.ArrowException, ValueError, csv.Error, RecursionError) as error:
        raise SourceError(
            f"{path.name}: not readable, got {str(error)!r:.200} against a table in UTF-8 "
            "expected. Mend it, or give another file."
        ) from error


def _check_names(columns: Sequence[str]) -> None:
    """Raise ValueError if two columns have one name."""
    if twice := [name for name in columns if name and columns.count(name) > 1]:
        raise ValueError(f"the column {twice[0]!r} twice")


def _json_rows(
    file: IO[bytes], report: ReadReport, *, is_json: bool
) -> Iterator[Mapping[str, Any]]:
    """The objects of a JSON list or of lines, or a single one; what is none is counted."""
    is_list = cast(Any, file).peek(1).lstrip()[:1] == b"["
    if is_list or is_json:
        content = file.read()
        try:
            found = loads(content)
        except (ValueError, RecursionError):
            if is_list:
                raise
            file = io.BytesIO(content)  # of lines, which are often called .json
        else:
            for number, row in enumerate(found if is_list else [found], 1):
                if isinstance(row, dict):
                    yield row
                else:
                    report.skip("image in a row that is no object", example=f"row {number}")
            return
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    for number, line in enumerate(file, 1):
        try:
            yield decode(line)
        except msgspec.DecodeError:
            try:
                yield dict(loads(line))
            except (ValueError, TypeError, RecursionError):
                if not line.isspace():
                    report.skip("image in a line that can't be read", example=f"line {number}")
