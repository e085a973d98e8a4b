"""Tables of images: JSON lines, a JSON list, CSV or Parquet, a row an image or a row an annotation.

Rows become entries as COCO's files have them, so one reader tolerates and doubts the same in both;
of a table's own are the names of columns, and how boxes are written in a cell.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, cast

import msgspec
import pyarrow as pa
import pyarrow.parquet

from mminstruct.errors import SourceError, did_you_mean
from mminstruct.sources._annotation_file import Tolerant, open_text
from mminstruct.sources._base import ReadReport
from mminstruct.sources._coco import ANY, Both, Parts, usable_images
from mminstruct.sources._image_licenses import Licenses, spdx_of
from mminstruct.sources._tolerance import Numbers, Order, loads
from mminstruct.strict_yaml import Strict

_HEAD = 1000  # rows that say which columns there are
_CHUNK = 2000
# What four numbers in cells of their own are called, in lower case.
_FOUR: dict[tuple[str, ...], Order] = {
    ("xmin", "ymin", "xmax", "ymax"): "xyxy",
    ("x_min", "y_min", "x_max", "y_max"): "xyxy",
    ("x1", "y1", "x2", "y2"): "xyxy",
    ("left", "top", "right", "bottom"): "xyxy",
    ("bbox_x", "bbox_y", "bbox_width", "bbox_height"): "xywh",
    ("x", "y", "width", "height"): "xywh",
}
_LABEL = (
    "label",
    "category",
    "class",
    "name",
    "category_name",
    "class_name",
    "labels",
    "categories",
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
            SourceError: one that is stated isn't there, or none has the image's name.
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
            if own := [free.pop(name) for name in usual if name in free and name not in four][:1]:
                found[role] = own[0]
        if four and not {"boxes", "bbox"} & {**found, **stated}.keys():
            found["bbox"] = tuple(free[name] for name in four)
        found |= stated
        if "image" not in found and "id" not in found:
            raise SourceError(
                f"{where}: no column with the image's name, got {', '.join(names)} against image, "
                "file_name or the like expected. Say which it is (image_column)."
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
    ids, found = Numbers(), Both()
    order: Order | None = None
    columns: dict[str, Any] = {}
    images: dict[int, Any] = {}
    contradicting: list[Any] = []
    labels: dict[int, str] = {}
    licenses: dict[int | None, tuple[str | None, str]] = {}
    for where, rows in tables:
        head = list(islice(rows, _HEAD))
        rows = chain(head, rows)
        columns = stated.found_in(list(dict.fromkeys(n for row in head for n in row)), where)
        bbox = columns.get("bbox")
        order = _FOUR.get(tuple(map(str.casefold, bbox))) if isinstance(bbox, tuple) else None
        if "split" in columns:
            rows = (row for row in rows if str(row.get(columns["split"])) == split)
        while chunk := list(islice(rows, _CHUNK)):
            entries: dict[str, list[Any]] = {"images": [], "annotations": []}
            for row in chunk:
                image, annotations = _entries(row, columns)
                image["id"] = number = ids.number(image["id"])
                if (license := image["license"]) is not None:
                    image["license"] = ids.number(license)
                    spdx = spdx_of(license) if "://" in license else license
                    licenses[image["license"]] = spdx, license if "://" in license else ""
                for entry in annotations:
                    label = entry.pop("label", None)
                    label = "" if label is None else " ".join(str(label).split())
                    if "bbox" in entry and not label:
                        report.skip("box without a label", example=ids.text(number))
                        continue
                    entry["image_id"] = number
                    if label:
                        entry["category_id"] = ids.number(label)
                        labels[entry["category_id"]] = label
                    entries["annotations"].append(entry)
                entries["images"].append(image)
            read = _typed(entries, report)
            for one in read["images"]:
                if images.setdefault(one.id, one) != one:
                    contradicting.append(one)
            found.add(read["annotations"])
    known = usable_images([*images.values(), *contradicting], where, report, any_size=True)
    found.count_others(report)
    table = Licenses(licenses)
    return Parts(known, found.captions, found.boxes, labels, table, ids.text), order, columns


def _typed(entries: dict[str, list[Any]], report: ReadReport) -> dict[str, list[Any]]:
    """The same entries as the reader of COCO's format has them."""
    try:
        return {key: msgspec.convert(entries[key], ANY.types[key]) for key in entries}
    except msgspec.ValidationError:
        tolerant = Tolerant(ANY, None)
        read = tolerant.tidy(entries)
        report.add(tolerant.report)
        return read


def _entries(row: Mapping[str, Any], columns: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """A row's image and annotations, with labels in the place of categories."""
    cells = {role: row.get(columns.get(role, "")) for role in _USUAL if role in columns}
    name = cells.get("image")
    name = name.get("path") if isinstance(name, Mapping) else name  # as `datasets` has images
    name = str(name if name is not None else cells.get("id") or "")
    id = cells.get("id")
    image = {
        "id": name if id in (None, "") else id,
        "file_name": name,
        "width": cells.get("width") or 0,
        "height": cells.get("height") or 0,
        "coco_url": cells.get("url") or (name if "://" in name else None),
        "license": str(cells["license"]) if cells.get("license") else None,
        "author": cells.get("author"),
        "title": cells.get("title"),
    }
    named = columns.get("captions", ())
    texts = (t for c in ([named] if isinstance(named, str) else named) for t in _texts(row.get(c)))
    annotations: list[Any] = [{"caption": text} for text in texts]
    if "boxes" in columns:
        boxes = _opened(cells["boxes"])
    elif isinstance(bbox := columns.get("bbox"), tuple):
        numbers = [row.get(column) for column in bbox]
        boxes = [{"label": cells.get("label"), "bbox": numbers}] if any(map(bool, numbers)) else []
    else:
        boxes = {"label": _opened(cells.get("label")), "bbox": _opened(cells.get("bbox"))}
    return image, annotations + [_box(box) for box in _listed(boxes)]


def _listed(boxes: Any) -> Iterator[Mapping[str, Any]]:
    """Boxes in a list, or in an object of lists side by side, or a single one."""
    if isinstance(boxes, Mapping):
        numbers = next((boxes[key] for key in _BBOX if boxes.get(key)), None)
        if not numbers:
            return
        is_one = not isinstance(numbers[0], list)
        lists = {key: [value] if is_one else value for key, value in boxes.items()}
        lists = {k: v if isinstance(v, list) else [v] * len(numbers) for k, v in lists.items()}
        boxes = [dict(zip(lists, box, strict=True)) for box in zip(*lists.values(), strict=False)]
    yield from (box for box in boxes or () if isinstance(box, Mapping))


def _box(box: Mapping[str, Any]) -> dict[str, Any]:
    label = next((box[key] for key in _LABEL if key in box), None)
    bbox = next((box[key] for key in _BBOX if key in box), None)
    if bbox is None:
        bbox = next(([box[key] for key in four] for four in _FOUR if box.keys() >= set(four)), None)
    return {"label": label, "bbox": bbox}


def _texts(cell: Any) -> Iterator[Any]:
    """The captions in a cell: one, a list, or a list of objects with one each."""
    cell = _opened(cell)
    for text in cell if isinstance(cell, list) else [cell]:
        if isinstance(text, Mapping):
            text = next((text[key] for key in _TEXT if key in text), None)
        if text not in (None, "") and text == text:  # NaN is none
            yield text


def _opened(cell: Any) -> Any:
    """A list or object that is written as JSON in a cell of text, or the cell."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        try:
            return loads(cell.encode())
        except (ValueError, RecursionError):
            return cell
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
                for batch in pyarrow.parquet.ParquetFile(file).iter_batches(_CHUNK):
                    yield from batch.to_pylist()
            elif name.endswith((".csv", ".tsv")):
                text = codecs.iterdecode(file, "utf-8")
                first = next(text, "")
                delimiter = max(",;\t", key=first.count)
                rows = csv.DictReader(chain([first], text), delimiter=delimiter)
                yield from ({k: v for k, v in row.items() if k} for row in rows)
            else:
                yield from _json_rows(file, report)
    except (pa.ArrowException, ValueError, csv.Error, RecursionError) as error:
        raise SourceError(
            f"{path.name}: not readable, got {str(error)!r:.200} against a table in UTF-8 "
            "expected. Mend it, or give another file."
        ) from error


def _json_rows(file: IO[bytes], report: ReadReport) -> Iterator[Mapping[str, Any]]:
    """The objects of a JSON list, or of lines; lines that aren't any are counted."""
    if cast(Any, file).peek(1).lstrip()[:1] == b"[":
        yield from (row for row in loads(file.read()) if isinstance(row, dict))
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
