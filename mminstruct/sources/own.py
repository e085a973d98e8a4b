"""Data of your own: a source that a file describes, or that a look at the data does.

A YAML file says what there is: format, files of each split, columns, licences, whom to name. A bare
file, a folder or a data set of the Hub is looked at first and then goes the same way. What isn't
declared isn't known; so without a licence nothing is commercial.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import msgspec
import xxhash
import yaml
from pydantic import Field, model_validator

from mminstruct import strict_yaml
from mminstruct.errors import SourceError, UsageError, did_you_mean, lacking
from mminstruct.resources import shown
from mminstruct.schema import Context, Option, decode_context, encode_context
from mminstruct.sources import _records
from mminstruct.sources._annotation_file import files_of, open_text
from mminstruct.sources._base import Download, Files, ReadReport, SourceInfo
from mminstruct.sources._coco import Image, Reading, read_own
from mminstruct.sources._tolerance import BoxFormat, Order, Unit, find_format, published_name
from mminstruct.strict_yaml import Strict

_log = logging.getLogger(__name__)

TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_SUFFIXES = (*TABLES, ".json", ".yaml", ".yml", ".gz")
_VALIDATION = {"val", "valid", "dev"}

OPTIONS = {
    "source_name": Option(str, "name in rows and cards (default: the file's)"),
    "source_license": Option(str, "licence of the annotations (default: not known)"),
    "image_license": Option(str, "licence of images of which the files don't say it"),
    "attribution": Option(str, "the sentence by which to name whoever made the annotations"),
    "captions": Option(str, "COCO format: file of captions beside the one of boxes"),
    "image_column": Option(str, "tables: column with the image's name"),
    "captions_column": Option(str, "tables: column with captions"),
    "boxes_column": Option(str, "tables: column with boxes and their labels"),
    "box_format": Option(str, "what a box's four numbers are", ("xywh", "xyxy", "cxcywh", "yxyx")),
    "box_unit": Option(str, "what they are counted in", ("pixels", "fractions")),
    "image_folder": Option(str, "folder with the images, which have to be there"),
    "image_url": Option(str, "where the images are published: what is before their names"),
}
_PLACES = {"source_name": "name", "source_license": "license"}


class Description(Strict):
    """What data of one's own is, and where; paths are relative to the description."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    title: str = ""
    description: str = ""
    homepage: str = ""
    citation: str = ""
    attribution: str = ""
    license: str = ""
    image_license: str = ""
    prompt_config: str = "llava"
    format: Literal["coco", "table", "contexts"]
    files: dict[str, str | tuple[str, ...] | dict[str, str]] = Field(min_length=1)
    captions: str = ""
    columns: _records.Columns = _records.Columns()
    box_format: Order | None = None
    box_unit: Unit | None = None
    categories: dict[str, str] = {}
    image_folder: str = ""
    image_url: str = ""
    join_on: Literal["id", "image"] = "id"

    @model_validator(mode="before")
    @classmethod
    def _write_out(cls, data: Any) -> Any:
        """One file is the split train, and numbers of categories are texts."""
        if isinstance(data, dict):
            data = dict(data)
            if isinstance(data.get("files"), str | list):
                data["files"] = {"train": data["files"]}
            if isinstance(data.get("categories"), dict):
                data["categories"] = {str(old): new for old, new in data["categories"].items()}
        return data


@dataclass(frozen=True)
class OwnSource:
    """Data as a description says.

    Attributes:
        described: what the description says.
        base: folder of the description.
    """

    described: Description
    base: Path

    @cached_property
    def info(self) -> SourceInfo:
        """Facts as far as they are declared."""
        own = self.described
        title = own.title or own.name
        licensed = f"licensed under {own.license}" if own.license else "whose licence isn't known"
        images = f"licensed under {own.image_license}" if own.image_license else "not known"
        return SourceInfo(
            name=own.name,
            title=title,
            description=own.description or f"Annotations of {title}.",
            homepage=own.homepage,
            citation=own.citation,
            license=own.license,
            license_url="",
            attribution=own.attribution or f"Annotations are from {title}, {licensed}.",
            media_license=f"The licences of the images are {images} where their own isn't named."
            if not own.image_license
            else f"The images are {images} where no other licence of theirs is named.",
            splits=tuple(own.files),
            version="1.0.0",
            prompt_config=own.prompt_config,
            declared=tuple(filter(None, (own.license, own.image_license))),
        )

    @property
    def chosen(self) -> dict[str, Any]:
        """All that contexts depend on besides the files' content."""
        places = {"files", "captions", "image_folder"}
        return self.described.model_dump(mode="json", exclude=places)

    def downloads(self, split: str) -> tuple[Download, ...]:
        """None: what is named is read, and nothing in its place."""
        return ()

    def file_names(self, split: str) -> dict[str, str]:
        """Role -> name."""
        return {role: path.name for role, path in self._paths(split).items()}

    def locate(self, places: Sequence[Path], split: str) -> Files | None:
        """The files that the description names, whatever the places.

        Raises:
            SourceError: one isn't there.
        """
        return files_of(self._paths(split))

    def read(self, files: Files, report: ReadReport) -> Iterator[Context]:
        """The contexts in the order of the files, or for COCO's format of the ids.

        Raises:
            SourceError: a file is damaged, or the description doesn't fit it.
        """
        own = self.described
        split = next(iter(files.paths)).partition(":")[0]
        reading = Reading(
            lambda label: own.categories.get(label, label),
            own.categories.__contains__,
            self._usable,
            self._find_format,
            only_first=len(own.files) > 1,
        )
        paths = list(files.paths.values())
        if own.format == "coco":
            contexts = read_own(files, reading, report)
        elif own.format == "table":
            contexts = _records.read_table(paths, own.columns, reading, report, split)
        else:
            contexts = _stored_contexts(paths, report)
        return map(self._declare, contexts)

    def _paths(self, split: str) -> dict[str, Path]:
        """Role -> file.

        Raises:
            UsageError: there is no such split.
            SourceError: there is no such file.
        """
        own = self.described
        if split not in own.files:
            raise UsageError(f"{own.name} has no split {split!r}{did_you_mean(split, own.files)}")
        given = own.files[split]
        listed = given if isinstance(given, tuple | dict) else (given,)
        named = listed if isinstance(listed, dict) else {f"{n}": f for n, f in enumerate(listed)}
        named = {**named, **({"captions": own.captions} if own.captions else {})}
        found: dict[str, Path] = {}
        for role, name in named.items():
            path = self.base / Path(name).expanduser()
            is_pattern = not path.is_file() and "*" in name
            paths = sorted(self.base.glob(name)) if is_pattern else [path] * path.is_file()
            if not paths:
                raise SourceError(
                    f"{own.name}, split {split!r}: got no file {shown(path)}{lacking(path)} "
                    "against one that is there expected. Name it as it is, relative to the "
                    "description."
                )
            found |= {f"{split}:{role}-{n:05d}": path for n, path in enumerate(paths)}
        if own.format == "coco" and len(found) > 1 + bool(own.captions):
            raise SourceError(
                f"{own.name}, split {split!r}: got {len(found)} files in COCO's format against one "
                "(and another of captions) expected, as each has ids of its own. Give each a split "
                "of its own."
            )
        return found

    def _usable(self, images: dict[int, Image], where: str, report: ReadReport) -> dict[int, Image]:
        """Those of the images that are in the folder, if one is named, with their sizes."""
        names: dict[str, list[str]] = {}
        for image in images.values():
            names.setdefault(published_name(image.file_name), []).append(image.file_name)
        if twice := [name for name, own in names.items() if len(own) > 1]:
            raise SourceError(
                f"{where}: two images of one name, got {len(names[twice[0]])} called {twice[0]!r} "
                "against names that differ expected. Give their names with their folders."
            )
        return images

    def _find_format(
        self, boxes: Any, size: Any, where: str, order: Order | None = None
    ) -> BoxFormat:
        own = self.described
        found, said = find_format(boxes, size, own.box_format or order, own.box_unit, where)
        if said:
            _log.warning(said)
        return found

    def _declare(self, context: Context) -> Context:
        """The context with what is declared of all images."""
        own, media = self.described, context.media
        declared = {}
        if own.image_license and media.license is None:
            declared["license"] = own.image_license
        if own.image_url and media.url is None:
            declared["url"] = own.image_url + quote(media.file_name)
        if not declared:
            return context
        return msgspec.structs.replace(context, media=msgspec.structs.replace(media, **declared))


def is_own(name: str) -> bool:
    """Whether a word looks like a path, or like the name of a data set of the Hub."""
    return "/" in name or "\\" in name or name.lower().endswith(_SUFFIXES)


def open_source(name: str, chosen: Mapping[str, Any]) -> OwnSource:
    """The source that a path names.

    Args:
        name: a description, a file with annotations, a folder or a data set of the Hub.
        chosen: values of `OPTIONS`, which go before what is described.

    Raises:
        UsageError: there is no such file.
        ConfigError: the description is wrong.
    """
    path = Path(name).expanduser()
    if path.suffix.lower() in (".yaml", ".yml"):
        data, base = strict_yaml.read(path), path.parent
    else:
        data, base = look(path), Path()
    for option, value in chosen.items():
        if option.endswith("_column"):
            columns = {**data.get("columns", {}), option.removesuffix("_column"): value}
            data["columns"] = columns
        else:
            data[_PLACES.get(option, option)] = value
    return OwnSource(strict_yaml.validate(Description, data, where=path.name), base.absolute())


def look(path: Path) -> dict[str, Any]:
    """What a description of a file would say.

    Raises:
        UsageError: it isn't there, or nothing that is known.
    """
    if not path.exists():
        raise UsageError(
            f"{path}: there is no such file or folder{lacking(path)}; give another path, or the "
            "name of a source (mminstruct list)"
        )
    name = "".join(c if c.isalnum() else "_" for c in path.name.partition(".")[0]).strip("_")
    return {
        "name": name or "own",
        "format": _format_of(path),
        "files": {"train": str(path.absolute())},
    }


def _format_of(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(TABLES):
        return "table"
    with open_text(path) as file:
        return "table" if file.read(64).lstrip()[:1] == b"[" else "coco"


def _stored_contexts(paths: Iterable[Path], report: ReadReport) -> Iterator[Context]:
    """Contexts as `of_rows` wrote them."""
    for path in paths:
        with open_text(path) as file:
            for line in file:
                report.contexts += 1
                yield decode_context(line)


def of_rows(
    rows: Iterable[Mapping[str, Any] | Context], *, cache_dir: Path, **description: Any
) -> str:
    """Data in memory as a source: the path of a description, written with it into a folder.

    The same rows and words give the same path, so that what was asked for them is found again.

    Args:
        rows: a mapping of columns for each image (or annotation), or contexts.
        cache_dir: a folder that stays.
        description: keys of a `Description`, such as ``name``, ``license`` and ``columns``.

    Raises:
        UsageError: there is no row, or one is neither.
        ConfigError: a key of the description is wrong.
    """
    folder = cache_dir / "mminstruct" / "own"
    folder.mkdir(parents=True, exist_ok=True)
    partial_file = folder / f"{id(rows)}.partial"
    content, kinds = xxhash.xxh3_128(), set()
    encode = msgspec.json.Encoder(enc_hook=_plain).encode
    try:
        with partial_file.open("wb") as file:
            for number, row in enumerate(rows):
                kinds.add(isinstance(row, Context))
                if not isinstance(row, Context | Mapping) or len(kinds) > 1:
                    raise UsageError(
                        f"row {number}: expected a dict for each image, or a Context for each, got "
                        f"{type(row).__name__}"
                    )
                line = encode_context(row).encode() if isinstance(row, Context) else encode(row)
                content.update(line)
                file.write(line + b"\n")
        if not kinds:
            raise UsageError("rows: expected at least one, got none")
        table = folder / f"{content.hexdigest()}.jsonl"
        partial_file.replace(table)
    finally:
        partial_file.unlink(missing_ok=True)
    data = {"name": "own", **description}
    data |= {"format": "contexts" if kinds == {True} else "table", "files": {"train": table.name}}
    strict_yaml.validate(Description, data, where="description")
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    path = folder / f"{xxhash.xxh3_128_hexdigest(text.encode())}.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def _plain(value: Any) -> Any:
    """What JSON has none of: numbers of NumPy as their own; an image only as its size."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "size") and hasattr(value, "mode"):
        return None
    raise UsageError(f"rows: expected texts, numbers and lists of them, got {type(value).__name__}")
