"""Tables of images: JSON lines, a JSON list, CSV or Parquet, a row an image or a row an annotation.

Rows of one image add up, wherever they are. A table ends in the columns that COCO's files end in,
and is checked as these are; of its own are the names of its columns, and how a cell is written.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import msgspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from mminstruct.errors import SourceError, did_you_mean
from mminstruct.schema import Context
from mminstruct.sources._annotation_file import open_text
from mminstruct.sources._base import ReadReport
from mminstruct.sources._coco import Captions, Image, Instances, Reading, make_contexts
from mminstruct.sources._image_licenses import Licenses, spdx_of
from mminstruct.sources._tolerance import Order, loads, published_url
from mminstruct.strict_yaml import Strict

_HEAD = 1000  # rows that say which columns there are
_BATCH_ROWS = 4096
_CORNERS = (
    *(("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max")),
    *(("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom")),
)
_BY_SIZE = (("bbox_x", "bbox_y", "bbox_width", "bbox_height"), ("x", "y", "width", "height"))
_LABELS = ("label", "category", "class", "name", "category_name", "class_name", "labels")
_BOXES = ("bbox", "box", "bboxes", "boxes", "xywh", "xyxy")
_TEXTS = ("caption", "text", "raw", "sentence")


class Columns(Strict):
    """Which column has what; what isn't stated is found by its name, if it has a usual one."""

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

    def found_in(self, names: list[str], where: str) -> Columns:
        """All of them, as stated or found among the names.

        Raises:
            SourceError: one that is stated isn't there, or none says what a row is about.
        """
        stated = {role: value for role, value in self if value is not None}
        for value in chain(*([v] if isinstance(v, str) else v for v in stated.values())):
            if value not in names:
                raise SourceError(
                    f"{where}: no column {value!r}{did_you_mean(value, names)}, got "
                    f"{', '.join(names)}. Name one of these."
                )
        known = {name.casefold(): name for name in names}
        free = {name: known[name] for name in known if known[name] not in stated.values()}
        found: dict[str, Any] = {}
        for role, usual in _USUAL.items():
            if (name := next((free[n] for n in usual if n in free), None)) is not None:
                found[role] = name
        for corners in (*_CORNERS, *_BY_SIZE):
            if free.keys() >= set(corners) and "boxes" not in {**found, **stated}:
                found.setdefault("bbox", tuple(free[name] for name in corners))
                for role in ("width", "height"):
                    if found.get(role) in found["bbox"]:
                        del found[role]
        columns = Columns(**{**found, **stated})
        if columns.image is None and columns.id is None:
            raise SourceError(
                f"{where}: no column with the image's name, got {', '.join(names)} against image, "
                "file_name or the like expected. Say which it is (--image_column)."
            )
        return columns

    def names(self) -> list[str]:
        """All columns that are read."""
        values = (value for _, value in self if value is not None)
        return list(dict.fromkeys(chain(*([v] if isinstance(v, str) else v for v in values))))


# What else a description may say of columns isn't guessed: `split` least of all.
_USUAL = {
    "image": ("image", "file_name", "filename", "image_path", "image_name", "img", "file", "path"),
    "id": ("image_id", "imageid"),
    "captions": ("captions", "caption", "text", "texts", "sentences", "description"),
    "boxes": ("boxes", "objects", "annotations"),
    "bbox": ("bbox", "box", "bboxes"),
    "label": _LABELS,
    "width": ("width", "image_width", "img_width"),
    "height": ("height", "image_height", "img_height"),
    "license": ("image_license", "license", "licence"),
    "url": ("image_url", "url", "coco_url"),
    "author": ("author",),
    "title": ("title",),
}


class _Table:
    """The rows of a table in columns, by image."""

    def __init__(self, columns: Columns, where: str, report: ReadReport) -> None:
        self.columns, self.where, self.report = columns, where, report
        self.numbers: dict[str, int] = {}
        self.images: dict[int, Image] = {}
        self.captions, self.boxes = Captions(), Instances()
        self.labels: dict[str, int] = {}
        self.licenses: dict[tuple[str | None, str], int] = {}

    def add(self, row: Mapping[str, Any], named: str) -> None:
        """Take a row in; what can't be read of it is counted."""
        columns = self.columns
        name = _text(_path_of(row.get(columns.image or "")))
        id = _text(row.get(columns.id or "")) or name
        if not id:
            self.report.skip("image without a name", example=named)
            return
        image = self._image(row, name or id)
        number = self.numbers.setdefault(id, len(self.numbers))
        image.id = number
        if (known := self.images.setdefault(number, image)) != image:
            raise SourceError(
                f"{self.where}, {named}: what it says of the image {id!r} differs from another row "
                f"about it, got {_differences(image, known)} expected. Give one of them "
                "another id, or mend the row."
            )
        captions = (columns.captions,) if isinstance(columns.captions, str) else columns.captions
        texts = [text for column in captions or () for text in _texts(row.get(column))]
        self.captions.image_ids.extend([number] * len(texts))
        self.captions.texts.extend(texts)
        self._add_boxes(row, number, id)

    def _image(self, row: Mapping[str, Any], name: str) -> Image:
        columns = self.columns
        license = _text(row.get(columns.license or ""))
        is_url = "://" in license
        key = (spdx_of(license) if is_url else license, license if is_url else "")
        url = _text(row.get(columns.url or "")) or (name if "://" in name else "")
        return Image(
            id=0,
            file_name=name,
            width=_side(row.get(columns.width or "")),
            height=_side(row.get(columns.height or "")),
            coco_url=published_url(url),
            license=self.licenses.setdefault(key, len(self.licenses)) if license else None,
            author=_text(row.get(columns.author or "")) or None,
            title=_text(row.get(columns.title or "")) or None,
        )

    def _add_boxes(self, row: Mapping[str, Any], number: int, id: str) -> None:
        boxes, columns = self.boxes, self.columns
        label = row.get(columns.label or "")
        if isinstance(columns.bbox, tuple):
            found: Any = [(label, [row.get(name) for name in columns.bbox])]
        elif columns.boxes:
            found = _boxes(row.get(columns.boxes), label)
        else:
            found = _boxes(row.get(columns.bbox or ""), label)
        for name, numbers in found:
            if not (text := " ".join(_text(name).split())):
                if any(n not in (None, "") for n in numbers or ()):
                    self.report.skip("box without a label", example=id)
                continue
            try:
                a, b, c, d = map(float, numbers)
            except (TypeError, ValueError):
                self.report.skip("box that isn't four numbers", example=id)
                continue
            boxes.image_ids.append(number)
            boxes.category_ids.append(self.labels.setdefault(text, len(self.labels)))
            boxes.xywh.extend((a, b, c, d))
            boxes.areas.append(math.nan)
            boxes.is_group.append(0)

    @property
    def order(self) -> Order | None:
        """What the names of the boxes' columns say of them."""
        names = tuple(map(str.casefold, self.columns.bbox or ()))
        return "xyxy" if names in _CORNERS else "xywh" if names in _BY_SIZE else None


def read_table(
    paths: list[Path], stated: Columns, reading: Reading, report: ReadReport, split: str = ""
) -> Iterator[Context]:
    """The images of some tables with the same columns, in the order of their first rows.

    Args:
        paths: the tables.
        stated: their columns, as far as they are stated.
        reading: how they are read.
        report: counts what is left out.
        split: the rows that have it in the column of that name.

    Raises:
        SourceError: a column isn't there, rows of one image contradict each other, or most boxes
            can't be right.
    """
    where = ", ".join(path.name for path in paths)
    columns = stated.found_in(names_in(paths[0]), where)
    table = _Table(columns, where, report)
    needed = columns.names()
    for path in paths:
        for number, row in enumerate(rows_in(path, needed, report), 1):
            if columns.split is None or _text(row.get(columns.split)) == split:
                table.add(row, f"row {number}")
    numbered = [label for label in table.labels if label.isdigit()]
    if numbered and not any(map(reading.renamed, numbered)):
        raise SourceError(
            f"{where}: labels that are numbers, got {', '.join(numbered[:5])} against names "
            "expected. Say what they mean in a description (categories: {0: dog})."
        )
    ids = list(table.numbers)
    images = reading.usable(table.images, where, report)
    named = {n: reading.label(label) for label, n in table.labels.items()}
    find = partial(reading.find_format, order=table.order)
    groups = table.boxes.group(images, sorted(images), named, where, report, find)
    licenses = Licenses({n: key for key, n in table.licenses.items()})
    yield from make_contexts(
        images, table.captions, groups, licenses, report, ids.__getitem__, needs="either"
    )


def names_in(path: Path) -> list[str]:
    """The names of a table's columns."""
    kind = _kind(path)
    if kind == "parquet":
        return list(pyarrow.parquet.read_schema(path).names)
    if kind == "csv":
        return _header(path)[0]
    head = islice(_json_rows(path, ReadReport()), _HEAD)
    return list(dict.fromkeys(name for row in head for name in row))


def rows_in(path: Path, columns: list[str], report: ReadReport) -> Iterator[Mapping[str, Any]]:
    """The rows of a table, one after the other, with at least these columns.

    Raises:
        SourceError: it can't be read, or is no table.
    """
    kind = _kind(path)
    if kind == "json":
        yield from _json_rows(path, report)
        return
    try:
        with open_text(path) as file:
            if kind == "parquet":
                parquet = pyarrow.parquet.ParquetFile(file)
                batches: Any = parquet.iter_batches(_BATCH_ROWS, columns=columns)
            else:
                batches = _open_csv(path, file, columns)
            for batch in batches:
                cells = (batch.column(name).to_pylist() for name in columns)
                yield from (
                    dict(zip(columns, row, strict=True)) for row in zip(*cells, strict=True)
                )
    except pa.ArrowException as error:
        raise SourceError(
            f"{path.name}: not readable, got {str(error)!r} against a table in UTF-8 expected. "
            "Give another file, or mend it."
        ) from error


def _kind(path: Path) -> str:
    """csv, parquet or json."""
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    return {".tsv": "csv", ".csv": "csv", ".parquet": "parquet"}.get(suffix, "json")


def _header(path: Path) -> tuple[list[str], str]:
    """The names in the first line of a CSV file, and what is between them."""
    with open_text(path) as file:
        line = file.readline().decode(errors="replace")
    delimiter = max(",;\t", key=line.count)
    return next(csv.reader([line], delimiter=delimiter), []), delimiter


def _open_csv(path: Path, file: Any, columns: list[str]) -> Any:
    names, delimiter = _header(path)
    return pyarrow.csv.open_csv(
        file,
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=columns, column_types=dict.fromkeys(names, pa.string())
        ),
    )


def _json_rows(path: Path, report: ReadReport) -> Iterator[Mapping[str, Any]]:
    """The objects of a JSON list or of JSON lines."""
    with open_text(path) as file:
        if cast(Any, file).peek(1).lstrip()[:1] == b"[":
            rows: Iterator[tuple[int, Any]]
            try:
                rows = enumerate(loads(file.read()), 1)
            except (ValueError, RecursionError) as error:
                raise SourceError(
                    f"{path.name}: damaged, got {str(error)!r} against a list of objects expected. "
                    "Give another file."
                ) from error
        else:
            rows = ((n, line) for n, line in enumerate(file, 1) if not line.isspace())
        decode = msgspec.json.Decoder().decode
        for number, entry in rows:
            try:
                row = decode(entry) if isinstance(entry, bytes) else entry
            except msgspec.DecodeError:
                try:
                    row = loads(entry)
                except (ValueError, RecursionError):
                    row = None
            if isinstance(row, dict):
                yield row
            else:
                report.skip("image that can't be read, a row", example=f"row {number}")


def _text(value: Any) -> str:
    """A cell as text; nothing where there is nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _side(value: Any) -> int:
    """Pixels; 0 where there is no number."""
    try:
        return max(0, int(float(value)))
    except (TypeError, ValueError, OverflowError):
        return 0


def _path_of(image: Any) -> Any:
    """The name in the cell of an image, which `datasets` writes as bytes and path."""
    return image.get("path") if isinstance(image, Mapping) else image


def _opened(cell: Any) -> Any:
    """A list or object that is written as JSON in a cell of text, or the cell."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        try:
            return loads(cell.encode())
        except (ValueError, RecursionError):
            return cell
    return cell


def _texts(cell: Any) -> Iterator[str]:
    """The captions in a cell: one, a list, or a list of objects with one each."""
    cell = _opened(cell)
    for item in cell if isinstance(cell, list) else [cell]:
        if isinstance(item, Mapping):
            item = next((item[name] for name in _TEXTS if name in item), None)
        if item is not None and not (isinstance(item, float) and math.isnan(item)):
            yield str(item)


def _boxes(cell: Any, labels: Any) -> Iterator[tuple[Any, Any]]:
    """Label and numbers of each box in a cell: one, a list of them, or lists side by side."""
    cell, labels = _opened(cell), _opened(labels)
    if isinstance(cell, Mapping):
        label_key, bbox_key = _keys_of(cell)
        numbers, names = cell.get(bbox_key), cell.get(label_key)
        is_list = isinstance(numbers, list) and (not numbers or isinstance(numbers[0], list))
        yield from zip(names or (), numbers or (), strict=False) if is_list else [(names, numbers)]
    elif isinstance(cell, list) and cell and isinstance(cell[0], Mapping):
        label_key, bbox_key = _keys_of(cell[0])
        if bbox_key:
            yield from ((box.get(label_key), box.get(bbox_key)) for box in cell)
            return
        for box in cell:
            corners = next((c for c in (*_CORNERS, *_BY_SIZE) if box.keys() >= set(c)), ())
            yield box.get(label_key), [box[name] for name in corners]
    elif isinstance(cell, list) and cell and isinstance(cell[0], list):
        names = labels if isinstance(labels, list) else [labels] * len(cell)
        yield from zip(names, cell, strict=False)
    elif cell:
        yield labels, cell


def _keys_of(box: Mapping[str, Any]) -> tuple[str, str]:
    return (
        next((name for name in _LABELS if name in box), ""),
        next((name for name in _BOXES if name in box), ""),
    )


def _differences(one: Image, other: Image) -> str:
    fields = msgspec.structs.asdict(one).items()
    got = [(name, value, getattr(other, name)) for name, value in fields]
    return ", ".join(f"{n} {a!r} against {b!r}" for n, a, b in got if a != b)
