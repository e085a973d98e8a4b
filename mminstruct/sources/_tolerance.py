"""What all sources tolerate in the files of people, and what they doubt, written once.

Readers decode strictly first, which costs nothing. Only where that fails is a file read a second
time by `loads` and `tidy`: numbers and fields that are merely written in another way are taken
for what they are, and an entry of which that can't be said is left out and counted. The checks of
geometry look at all boxes of a file at once and say which other reading would fit them.

**Source:** what exporters write was looked up in the files and loaders of pycocotools, FiftyOne,
CVAT, Roboflow, VIA and Label Studio.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar, get_args
from urllib.parse import unquote, urlsplit

import msgspec

from mminstruct.errors import SourceError
from mminstruct.late import Late
from mminstruct.sources._base import ReadReport

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = Late("numpy")

FloatColumns: TypeAlias = "NDArray[np.float64]"
Mask: TypeAlias = "NDArray[np.bool_]"

OWN_DATA = (
    "Data of your own goes by its own name: give its path in the place of the source, and see what "
    "becomes of it by mminstruct describe PATH."
)

_Struct = TypeVar("_Struct", bound=msgspec.Struct)
_WHOLE = re.compile(r"\s*([+-]?)0*(\d+)(?:\.0*)?\s*")
_PLAIN_NAME = re.compile(r"\w[\w.-]*")
_PLAIN_URL = re.compile(r"https?://[^?#@\s]+")
_FIELD = re.compile(r"`\$\.(\w+)|field `(\w+)`")
_MOST = 0.5
# Of boxes that leave their images: from here on another reading of them is looked for.
_MANY = 0.25
# Without one that fits, a few odd boxes say nothing.
_ENOUGH_BOXES = 8
_NEARLY_ALL = 0.95
# Ids that are no numbers get those from here on, of twelve digits.
_FIRST_GIVEN = 9 * 10**11


def loads(data: bytes | bytearray | memoryview) -> Any:
    """The JSON value, as Python's own decoder has it: NaN and Infinity, which are None, too.

    Raises:
        ValueError: it is no JSON.
        RecursionError: it is nested too deep.
    """
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        try:
            return json.loads(bytes(data), parse_constant=lambda _: None, strict=False)
        except json.JSONDecodeError:
            raise error from None  # which names the byte


def tidy(
    entries: Any,
    entry_type: type[_Struct],
    noun: str,
    report: ReadReport,
    *,
    other: str = "",
    harmless: bool = False,
) -> list[_Struct]:
    """The entries of a list that can be read, each as the type says; the others are counted.

    Args:
        entries: decoded JSON.
        entry_type: only its fields are looked at.
        noun: what an entry is, for the reasons.
        report: counts.
        other: a field that only entries of another kind have, which are no fault.
        harmless: rows can do without these entries.

    Raises:
        ValueError: it is no list.
    """
    if not isinstance(entries, list):
        if harmless:
            report.skip(f"{noun} table that is no list", harmless=True)
            return []
        raise ValueError(f"got {_shape(entries)} against a list of each {noun} expected")
    found: list[_Struct] = []
    for number, entry in enumerate(entries):
        named = str(entry.get("id", number) if isinstance(entry, dict) else number)
        try:
            found.append(convert(entry, entry_type, noun, report, named))
        except msgspec.ValidationError as error:
            if other and isinstance(entry, dict) and entry.get(other) is not None:
                report.skip(f"entry with a '{other}' beside each {noun}", harmless=True)
            else:
                report.skip(f"{noun} {_why(error)}", example=named, harmless=harmless)
    return found


@cache
def _fields_of(entry_type: type[msgspec.Struct]) -> dict[str, tuple[bool, bool]]:
    """Field -> whether it is required, and whether it is a text."""
    fields = msgspec.structs.fields(entry_type)
    return {f.name: (f.required, str in (f.type, *get_args(f.type))) for f in fields}


def convert(
    entry: Any, entry_type: type[_Struct], noun: str, report: ReadReport, named: str
) -> _Struct:
    """One entry as the type says; a field that has a default is left out if it can't be read.

    Raises:
        msgspec.ValidationError: another field can't be read.
    """
    if not isinstance(entry, dict):
        return msgspec.convert(entry, entry_type)
    fields = _fields_of(entry_type)
    values = {
        name: _plain(value, fields[name][1])
        for name, value in entry.items()
        if name in fields and value is not None
    }
    while True:
        try:
            return msgspec.convert(values, entry_type, strict=False)
        except msgspec.ValidationError as error:
            found = _FIELD.search(str(error))
            if found is None or found[1] not in values or fields[found[1]][0]:
                raise
            del values[found[1]]
            article = "an" if noun[0] in "aeiou" else "a"
            report.skip(f"'{found[1]}' of {article} {noun}", example=named, harmless=True)


class Numbers:
    """Ids of any form as numbers: whole numbers of up to twelve digits are what they are."""

    def __init__(self) -> None:
        self._known: dict[str | int, int] = {}
        self._texts: list[str] = []

    def number(self, value: Any) -> Any:
        """The number for an id, always the same; anything that can't be one as it is."""
        if type(value) not in (str, int):
            return _plain(value, False)
        if (known := self._known.get(value)) is None:
            known = _plain(value, False)
            if not (isinstance(known, int) and 0 <= known < _FIRST_GIVEN):
                known = _FIRST_GIVEN + len(self._texts)
                self._texts.append(str(value).strip())
            self._known[value] = known
        return known

    def replace(self, entry: Any, fields: Iterable[str]) -> Any:
        """The entry of a list with numbers in some of its fields."""
        if not isinstance(entry, dict):
            return entry
        return entry | {name: self.number(entry[name]) for name in fields if name in entry}

    def text(self, number: int) -> str:
        """The id that a number stands for."""
        is_given = number >= _FIRST_GIVEN
        return self._texts[number - _FIRST_GIVEN] if is_given else f"{number:012d}"


def _plain(value: Any, is_text: bool) -> Any:
    """1.0, "1", "0001" and true as the whole numbers that they look like, or as text."""
    if is_text:
        return str(value) if type(value) in (int, float) else value
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str) and (whole := _WHOLE.fullmatch(value)):
        return int(whole[1] + whole[2])
    return [_plain(item, False) for item in value] if isinstance(value, list) else value


def _why(error: msgspec.ValidationError) -> str:
    field = _FIELD.search(str(error))
    if field is None:
        return "that is none"
    return f"whose '{field[1]}' can't be read" if field[1] else f"without '{field[2]}'"


def _shape(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"an object with the keys {', '.join(map(str, list(value)[:8])) or 'none'}"
    return "a list" if isinstance(value, list) else f"{value!r:.40}"


def kind_of(document: Any) -> str:
    """What a JSON file is, in words, from its keys and those of its first annotation."""
    if isinstance(document, list):
        return f"a list, whose first entry is {_shape(next(iter(document), None))}"
    if not isinstance(document, dict):
        return _shape(document)
    annotations = document.get("annotations")
    first = next(iter(annotations), None) if isinstance(annotations, list) else None
    other = f"annotations of which each is {_shape(first)}"
    if not isinstance(first, dict):
        first, other = {}, _shape(document)
    known = (words for key, words in _KINDS.items() if key in document or key in first)
    return next(known, other)


_KINDS = {
    "imgs": "a file of COCO-Text (imgs, anns, cats)",
    **dict.fromkeys(("_via_settings", "_via_img_metadata"), "a project of the VGG Image Annotator"),
    "shapes": "a file of labelme",
    "segments_info": "a file of panoptic segmentation",
    "caption": "a file of captions",
    "keypoints": "a file of keypoints",
    "bbox": "a file of boxes",
}


def published_name(name: str) -> str:
    """A file's name as a relative POSIX path that stays inside its folder.

    Of a path that leads out, of an absolute one, one with a drive and an address, only the file's
    own name is left: folders and signatures are nobody's business.
    """
    if _PLAIN_NAME.fullmatch(name):
        return name
    path = name.replace("\\", "/")
    if re.match(r"[A-Za-z][\w+.-]+:", path):  # an address of whatever scheme
        return PurePosixPath(unquote(urlsplit(path).path)).name
    parts: list[str] = []
    leads_out = bool(re.match("[/~]|[A-Za-z]:", path))
    for part in re.sub("^[A-Za-z]:", "", path).split("/"):
        if part == "..":
            leads_out = leads_out or not parts
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts[-1:] if leads_out else parts)


def published_url(url: str | None) -> str | None:
    """A web address without a password or signature in it, or None."""
    return url if url and _PLAIN_URL.fullmatch(url) else None


def find_repeated(*columns: NDArray[Any]) -> Mask:
    """Which rows of columns of numbers are the same in all of them as one before them."""
    mixed = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        for part in column.T if column.ndim > 1 else (column,):
            kind = np.float64 if part.dtype.kind == "f" else np.int64
            mixed ^= np.ascontiguousarray(part, dtype=kind).view(np.uint64)
            mixed *= np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
    in_order = np.sort(mixed)
    again = np.zeros(len(mixed), dtype=bool)
    if (in_order[1:] == in_order[:-1]).any():  # which is slow to find out for each row
        again[:] = True
        again[np.unique(mixed, return_index=True)[1]] = False
    return again


Order: TypeAlias = Literal["xywh", "xyxy", "cxcywh", "yxyx"]
Unit: TypeAlias = Literal["pixels", "fractions"]
_UNITS: dict[Unit, str] = {"pixels": "pixels", "fractions": "fractions of the image"}
_ORDERS: dict[Order, str] = {
    "xywh": "x_min, y_min, width, height",
    "xyxy": "x_min, y_min, x_max, y_max",
    "cxcywh": "x_center, y_center, width, height",
    "yxyx": "y_min, x_min, y_max, x_max",
}


class BoxFormat(NamedTuple):
    """What the four numbers of a box are."""

    order: Order
    unit: Unit

    def __str__(self) -> str:
        return f"{self.order} ({_ORDERS[self.order]}) in {_UNITS[self.unit]}"

    def to_xywh(self, boxes: FloatColumns) -> FloatColumns:
        """(N, 4) left, top, width and height, in the same unit."""
        if self.order == "xywh":
            return boxes
        a, b, c, d = boxes.T
        if self.order == "yxyx":
            a, b, c, d = b, a, d, c
        if self.order in ("xyxy", "yxyx"):
            c, d = c - a, d - b
        elif self.order == "cxcywh":
            a, b = a - c / 2, b - d / 2
        return np.stack([a, b, c, d], axis=1)

    def fits(self, boxes: FloatColumns, size: FloatColumns) -> float:
        """Which share of the boxes lies in their images, read so."""
        # In fractions there is less to round.
        scale = 1.0 if self.unit == "pixels" else 100.0
        with np.errstate(over="ignore", invalid="ignore"):
            x, y, width, height = self.to_xywh(boxes).T
            room = size * 1.01 + 1 if self.unit == "pixels" else np.full_like(size, scale + 1)
            fit = _inside(x * scale, y * scale, (x + width) * scale, (y + height) * scale, room)
        if self.order in ("xyxy", "yxyx"):
            fit &= (width > 0) & (height > 0)
        return float(fit.mean()) if len(fit) else 0.0


def _order_by_area(boxes: FloatColumns, area: FloatColumns) -> Order | None:
    """What the boxes' numbers are by most of the areas that the file says, or None."""
    orders: tuple[Order, ...] = ("xywh", "xyxy")
    for order in orders if len(boxes) else ():
        with np.errstate(over="ignore", invalid="ignore"):
            sides = BoxFormat(order, "pixels").to_xywh(boxes)[:, 2:]
            is_so = np.isclose(area, sides.prod(axis=1), rtol=0.01)
        if is_so.mean() > _MOST:
            return order
    return None


COCOS = BoxFormat("xywh", "pixels")


def check_pixels(
    boxes: FloatColumns, area: FloatColumns, size: FloatColumns, where: str
) -> BoxFormat:
    """As `find_format`, but raise SourceError if most boxes are written in another way than COCO's.

    That is left, top, width and height in pixels.
    """
    found = find_format(boxes, area, size, where)
    if len(boxes) and found != COCOS:
        raise _doubt(where, "boxes that are written in another way", str(found))
    return COCOS


def find_format(
    boxes: FloatColumns,
    area: FloatColumns,
    size: FloatColumns,
    where: str,
    order: Order | None = None,
    unit: Unit | None = None,
) -> BoxFormat:
    """What the boxes of a file are, as it is stated, or by a look at all of them.

    Args:
        boxes: (N, 4) finite numbers.
        area: (N,) pixels, as the file says, of the object or the box; NaN if it doesn't.
        size: (N, 2) width and height of their images in pixels; 0 is not known.
        where: the file.
        order: as stated, or None.
        unit: as stated, or None.

    Raises:
        SourceError: most don't fit it.
    """
    is_small = len(boxes) > 0 and bool((np.abs(boxes) <= 1).all())
    order = order or _order_by_area(boxes, area)
    likely: Unit = unit or ("fractions" if is_small else "pixels")
    in_pixels = (size > 0).all(axis=1)

    def shares(unit: Unit, orders: Iterable[Order]) -> dict[BoxFormat, float]:
        seen = (boxes[in_pixels], size[in_pixels]) if unit == "pixels" else (boxes, size)
        is_possible = len(seen[0]) and not (is_small and unit == "pixels")
        readings = [BoxFormat(order, unit) for order in orders] if is_possible else []
        return {reading: reading.fits(*seen) for reading in readings}

    asked = shares(likely, [order] if order else _ORDERS)
    if not asked and not is_small:
        return BoxFormat(order or "xywh", likely)  # no size is known, or there are no boxes
    most = max(asked.values(), default=0.0)
    fitting = [reading for reading in asked if asked[reading] >= most - 0.01]
    found = fitting[0] if fitting else BoxFormat(order or "xywh", likely)
    if (lost := 1 - most) >= _MANY:
        others = shares("pixels", _ORDERS) | shares("fractions", _ORDERS)
        best = max(others, key=lambda reading: (others[reading], reading.unit == likely))
        named, fits = str(best), others[best]
        if (exchanged := found.fits(boxes[in_pixels], size[in_pixels, ::-1])) > fits:
            named, fits = "the image's width and height exchanged", exchanged
        is_odd = lost > _MOST and (fits > _MOST or len(boxes) >= _ENOUGH_BOXES)
        if is_odd or 1 - fits <= lost / 10:
            what = f"{lost:.0%} of the boxes leave their images"
            raise _doubt(where, what, named if fits > _MOST else None, expected=str(found))
    # Pixels are hardly ever counted from a centre, and y first can't be told from x first.
    usual = ("xywh", "xyxy", "cxcywh") if likely == "fractions" else ("xywh", "xyxy")
    doubtful = [reading for reading in fitting if reading.order in usual]
    if len(boxes) >= _ENOUGH_BOXES and len(doubtful) > 1:
        raise SourceError(
            f"{where}: got {len(boxes):,} boxes that fit as {doubtful[0]} and as {doubtful[1]} "
            "against one of them expected. Say which they are (box_format)."
        )
    return found


def _inside(
    left: FloatColumns, top: FloatColumns, right: FloatColumns, low: FloatColumns, room: Any
) -> Mask:
    inside: Mask = (left >= -1) & (top >= -1) & (right <= room[:, 0]) & (low <= room[:, 1])
    return inside


def check_fractions(beyond: int, count: int, where: str) -> None:
    """Raise SourceError if most of some boxes, whose corners are fractions, lie beyond 0..1."""
    if beyond > count * _MOST:
        what = f"{beyond} of {count} boxes lie far beyond 0..1"
        raise _doubt(where, what, "pixels", expected="fractions of the image")


def _doubt(
    where: str,
    what: str,
    reading: str | None,
    *,
    expected: str = "x_min, y_min, width, height in pixels",
) -> SourceError:
    fitting = f"they would fit as {reading}" if reading else "no other reading fits them"
    return SourceError(
        f"{where}: {what}, got boxes that can't be right against {expected} expected; {fitting}. "
        "Convert them, or give the right file."
    )
