"""Data of your own: a source that a file describes, or that a look at the data does.

A YAML file says what there is: format, files of each split, columns, licences, whom to name. A bare
file, a folder or a dataset of the Hub is looked at and then goes the same way. What isn't declared
isn't known, so nothing is commercial without it.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

import msgspec
import xxhash
import yaml
from pydantic import Field, model_validator

from mminstruct import strict_yaml
from mminstruct.annotations import narratives
from mminstruct.checks.vocabulary import Vocabulary
from mminstruct.errors import SourceError, UsageError, lacking
from mminstruct.resources import shown
from mminstruct.schema import Context, Media, Option, decode_context, digest, encode_context
from mminstruct.sources import _narratives, openimagesv7
from mminstruct.sources._annotation_file import fingerprint, open_text
from mminstruct.sources._base import Download, Files, ReadReport, SourceInfo, word_for
from mminstruct.sources._classes import vocabulary_in
from mminstruct.sources._coco import make_contexts
from mminstruct.sources._datasets import digest_of, plain_rows, rows_of, splits_of
from mminstruct.sources._records import Columns, Parts, read_own, read_tables, rows_in
from mminstruct.sources._tolerance import (
    COCOS,
    BoxFormat,
    Order,
    Unit,
    find_format,
    loads,
    published_name,
)
from mminstruct.strict_yaml import Strict

_log = logging.getLogger(__name__)

_TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_DESCRIPTIONS = (".yaml", ".yml")
_ENDS = (*_TABLES, ".json", *_DESCRIPTIONS, ".gz")
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_SPLITS = {
    "train": "train",
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    "test": "test",
}

OPTIONS = {
    "source_name": Option(str, "name in rows and cards (default: the file's)"),
    "source_license": Option(str, "licence of the annotations (default: not known)"),
    "image_license": Option(str, "licence of those images whose own isn't in the data"),
    "attribution": Option(str, "the sentence by which to name who made the annotations"),
    "captions": Option(str, "COCO's format: file with captions of the images"),
    "image_column": Option(str, "tables: column with the image's name"),
    "captions_column": Option(str, "tables: column with captions"),
    "boxes_column": Option(str, "tables: column with boxes and their labels"),
    "box_format": Option(str, "what a box's four numbers are", ("xywh", "xyxy", "cxcywh", "yxyx")),
    "box_unit": Option(str, "what they are counted in", ("pixels", "fractions")),
    "image_folder": Option(str, "folder with the images, which have to be there"),
    "image_url": Option(str, "where the images are published: what is before their names"),
}
_KEYS = {"source_name": "name", "source_license": "license"}


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
    format: Literal["coco", "table", "open_images", "localized_narratives", "datasets", "contexts"]
    files: dict[str, str | tuple[str, ...] | dict[str, str]] = {}
    captions: str = ""
    dataset: str = ""
    subset: str | None = None
    revision: str | None = None
    splits: tuple[str, ...] = ()
    columns: Columns = Columns()
    box_format: Order | None = None
    box_unit: Unit | None = None
    categories: dict[str, str] = {}
    synonyms: dict[str, tuple[str, ...]] = {}
    image_folder: str = ""
    image_url: str = ""
    join_on: Literal["id", "image"] = "id"

    @model_validator(mode="before")
    @classmethod
    def _write_out(cls, data: Any) -> Any:
        """Files without a split are of all of them; numbers of categories are texts."""
        data = dict(data) if isinstance(data, dict) else data
        if isinstance(data, dict) and isinstance(data.get("files"), str | list):
            data["files"] = dict.fromkeys(data.get("splits") or ["train"], data["files"])
        if isinstance(data, dict) and isinstance(data.get("categories"), dict):
            data["categories"] = {str(old): new for old, new in data["categories"].items()}
        return data

    @model_validator(mode="after")
    def _says_where(self) -> Description:
        wanted, other = ("dataset", "files") if self.format == "datasets" else ("files", "dataset")
        if not getattr(self, wanted) or getattr(self, other):
            raise ValueError(f"format {self.format!r} needs {wanted!r}, and no {other!r}")
        return self


@dataclass(frozen=True)
class OwnSource:
    """Data as a description, which is in a folder, says.

    Attributes:
        described: what it says.
        base: the folder.
        found: what else it would say, once the data was read.
    """

    described: Description
    base: Path
    found: dict[str, Any] = field(default_factory=dict, compare=False)

    @cached_property
    def info(self) -> SourceInfo:
        """Facts as far as they are declared."""
        own = self.described
        title = own.title or own.name
        licensed = f"licensed under {own.license}" if own.license else "whose licence isn't known"
        images = f"under {own.image_license}" if own.image_license else "under terms not known here"
        return SourceInfo(
            name=own.name,
            title=title,
            description=own.description or f"Images of {title} with their annotations.",
            homepage=own.homepage,
            citation=own.citation,
            license=own.license,
            license_url="",
            attribution=own.attribution or f"Annotations are from {title}, {licensed}.",
            media_license=f"The images of {title} that name no licence of their own are {images}.",
            splits=own.splits or tuple(own.files),
            prompt_config=own.prompt_config,
            declared=tuple(filter(None, (own.license, own.image_license))),
        )

    @property
    def join_on(self) -> str:
        """By what its images are known to other sources."""
        return self.described.join_on

    @property
    def chosen(self) -> dict[str, Any]:
        """All that contexts depend on besides the content of files."""
        places = {"files", "captions", "dataset", "image_folder"}
        places |= set() if self.described.synonyms else {"synonyms"}
        return self.described.model_dump(mode="json", exclude=places)

    def vocabulary(self, files: Files) -> Vocabulary:
        """What is described of labels' names.

        Raises:
            SourceError: a file is damaged.
        """
        own = self.described
        described = Vocabulary.of(own.synonyms)
        if own.format != "open_images":
            return described
        roles = {role.partition(":")[2]: path for role, path in files.paths.items()}
        return described | vocabulary_in(roles, own.categories)

    def downloads(self, split: str) -> tuple[Download, ...]:
        """None: what is named is read, and nothing in its place."""
        return ()

    def file_names(self, split: str) -> dict[str, str]:
        """Role -> name."""
        return {role: path.name for role, path in self._paths(split).items()}

    def locate(self, places: Sequence[Path], split: str) -> Files:
        """The files that are described, whatever the places.

        Raises:
            SourceError: one isn't there.
        """
        own, paths = self.described, self._paths(split)
        if own.format == "datasets":
            digests = [digest_of(self._dataset, own.subset, own.revision, split)]
        else:
            digests = [fingerprint(paths)]
        if own.image_folder:  # what isn't in it is left out
            folders = self._matching(own.image_folder)
            digests += sorted(str(p.relative_to(f)) for f in folders for p in f.rglob("*"))
        return Files(paths, digests[0] if len(digests) == 1 else digest(digests)[:32])

    def read(self, files: Files, report: ReadReport) -> Iterator[Context]:
        """The contexts in the files' order, or by numbers where the images have some.

        Raises:
            SourceError: a file is damaged, or the description doesn't fit it.
        """
        own, paths = self.described, list(files.paths.values())
        split = next(iter(files.paths)).partition(":")[0]
        if own.format == "contexts":
            contexts = _stored_contexts(paths, report)
        elif own.format == "localized_narratives":
            contexts = _narrated(paths, report)
        elif own.format == "open_images":
            roles = {role.partition(":")[2]: path for role, path in files.paths.items()}
            contexts = openimagesv7.read_files(roles, report, own.categories)
        elif own.format == "coco":
            parts = read_own(paths, report, only_first=len(own.files) > 1)
            contexts = self._contexts(parts, paths[0].name, None, report)
        else:
            if own.format == "datasets":
                rows = rows_of(self._dataset, own.subset, own.revision, split)
                where, folder = own.name, Path(self._dataset)
                if folder.is_dir() and not _files_by_split(folder):
                    where += f" (no {', '.join(_TABLES)} or .json in it, so load_dataset read it)"
                tables: Iterable[tuple[str, Any]] = [(where, rows)]
            else:
                tables = ((path.name, rows_in(path, report)) for path in paths)
            parts, order, columns = read_tables(tables, own.columns, split, report)
            self.found["columns"] = columns
            contexts = self._contexts(parts, paths[0].name, order, report)
        return map(self._declare, contexts)

    @property
    def _dataset(self) -> str:
        return _find_dataset(self.base, self.described.dataset)

    def _paths(self, split: str) -> dict[str, Path]:
        """Split and role -> file.

        Raises:
            UsageError: there is no such split.
            SourceError: there is no such file.
        """
        own = self.described
        word_for(split, own.name, dict.fromkeys(self.info.splits, ""))
        if own.format == "datasets":
            return {f"{split}:dataset": Path(own.dataset)}
        given = own.files[split]
        given = (given,) if isinstance(given, str) else given
        named = dict(given) if isinstance(given, dict) else {f"{n}": f for n, f in enumerate(given)}
        named |= {"captions": own.captions} if own.captions else {}
        found: dict[str, Path] = {}
        for role, name in named.items():
            path = self.base / Path(name).expanduser()
            if not (paths := [found for found in self._matching(name) if found.is_file()]):
                raise SourceError(
                    f"{own.name}, split {split!r}: got no file {shown(path)}{lacking(path)} "
                    "against one expected. Name it as it is, relative to the description."
                )
            found |= {f"{split}:{role}{n or ''}": one for n, one in enumerate(paths)}
        is_one = isinstance(own.files[split], dict) or len(found) <= 1 + bool(own.captions)
        if own.format == "coco" and not is_one:
            raise SourceError(
                f"{own.name}, split {split!r}: got {len(found)} files in COCO's format, "
                f"{', '.join(path.name for path in found.values())}, against one expected, as each "
                "has ids of its own. Give the file, or each a split of its own in a description."
            )
        return found

    def _matching(self, pattern: str) -> list[Path]:
        """The file or folder of that path, whether it is there or not, or those that match it."""
        path = self.base / Path(pattern).expanduser()
        if "*" not in pattern or path.exists():
            return [path]
        return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))

    def _contexts(
        self, parts: Parts, where: str, order: Order | None, report: ReadReport
    ) -> Iterator[Context]:
        """The contexts of what was read, as it is described."""
        own, images = self.described, parts.images
        owners: dict[str, int] = {}
        for number, image in images.items():
            name = published_name(image.file_name)
            if owners.setdefault(name, number) != number:
                names = {n: images[n].file_name for n in (owners[name], number)}
                both = (parts.id_of(n) if given == name else given for n, given in names.items())
                raise SourceError(
                    f"{where}: two images of one name, got {name!r} for {' and '.join(both)} "
                    "against another for each expected. Name them with their folders."
                )
        if own.image_folder:
            images = self._in_folder(owners, parts, where, report)
        labels = {n: own.categories.get(label, label) for n, label in parts.categories.items()}
        numbered = [label for label in labels.values() if label.isdigit()]
        if numbered and own.format != "coco":
            raise SourceError(
                f"{where}: labels that are numbers, got {', '.join(numbered[:5])} against names "
                "expected. Say what they mean (categories: {0: dog})."
            )

        def find(boxes: Any, area: Any, size: Any, where: str) -> BoxFormat:
            found = find_format(boxes, area, size, where, own.box_format or order, own.box_unit)
            if len(boxes):
                self.found.update(box_format=found.order, box_unit=found.unit)
            is_usual = own.format == "coco" and found == COCOS
            if len(boxes) and not is_usual and not own.box_format:
                _log.warning(f"{where}: boxes are read as {found} (box_format, box_unit: others)")
            return found

        groups = parts.boxes.group(images, sorted(images), labels, where, report, find, parts.id_of)
        return make_contexts(images, parts.captions, groups, parts.licenses, report, parts.id_of)

    def _in_folder(
        self, names: Mapping[str, int], parts: Parts, where: str, report: ReadReport
    ) -> dict[int, Any]:
        """The images that are in the folder, with their sizes.

        Raises:
            SourceError: none is.
        """
        from PIL import Image

        given = self.described.image_folder
        folders = self._matching(given)
        found: dict[int, Any] = {}
        for name, number in names.items():
            image = parts.images[number]
            ends = (name, Path(name).name)
            path = next((p for f in folders for e in ends if (p := f / e).is_file()), None)
            if path is None:
                report.skip("image that isn't in the image folder", example=name)
                continue
            if not (image.width and image.height):
                with suppress(OSError, Image.DecompressionBombError), Image.open(path) as opened:
                    image.width, image.height = opened.size
            found[number] = image
        if names and not found:
            raise SourceError(
                f"{where}: got none of its images in {shown(folders[0]) if folders else given}"
                f"{lacking(folders[0] / '*') if folders else ''} "
                f"against {next(iter(names))} and {len(names) - 1} others expected. "
                "Give the folder that they are in (image_folder), or none."
            )
        return found

    def _declare(self, context: Context) -> Context:
        """The context with what is declared of all images."""
        own, media, more = self.described, context.media, {}
        if own.image_license and media.license is None:
            more["license"] = own.image_license
        if own.image_url and media.url is None:
            more["url"] = own.image_url + quote(media.file_name)
        if not more:
            return context
        return msgspec.structs.replace(context, media=msgspec.structs.replace(media, **more))


def _narrated(paths: Sequence[Path], report: ReadReport) -> Iterator[Context]:
    """The images of files of narratives; a name is the id with ``.jpg``, as all of them have it."""
    roles = {f"narratives{n}": path for n, path in enumerate(paths)}
    texts = _narratives.read(Files(roles, ""), "", str.strip, "a text", report)
    for id, own in texts.items():
        report.contexts += 1
        items = tuple(map(narratives.Item, own))
        yield Context(id, Media(f"{published_name(id)}.jpg"), annotations={"narratives": items})


def _stored_contexts(paths: Iterable[Path], report: ReadReport) -> Iterator[Context]:
    """Contexts as `of_rows` wrote them."""
    for path in paths:
        with open_text(path) as file:
            for line in file:
                report.contexts += 1
                yield decode_context(line)


def is_own(name: str) -> bool:
    """Whether a word looks like a path, or like the name of a dataset of the Hub."""
    return "/" in name or os.sep in name or name.lower().endswith(_ENDS)


def open_source(name: str, chosen: Mapping[str, Any]) -> OwnSource:
    """The source that a path names, or a dataset of the Hub.

    Args:
        name: of a description, a file with annotations, a folder or a dataset.
        chosen: values of `OPTIONS`, which go before what is described.

    Raises:
        UsageError: there is no such file, or nothing that is known.
        ConfigError: the description is wrong.
    """
    data, base = describe(name, chosen)
    return OwnSource(strict_yaml.validate(Description, data, where=Path(name).name), base)


def describe(name: str, chosen: Mapping[str, Any]) -> tuple[dict[str, Any], Path]:
    """What is described, or would be by a look, and the folder that its paths start from."""
    path = Path(name).expanduser()
    is_described = path.suffix.lower() in _DESCRIPTIONS
    data = strict_yaml.read(path) if is_described else look(path, name)
    base = path.parent if is_described else Path()
    for option, value in chosen.items():
        if option.endswith("_column"):
            data["columns"] = {**data.get("columns", {}), option.removesuffix("_column"): value}
        else:
            is_path = option in ("captions", "image_folder")
            data[_KEYS.get(option, option)] = str(Path(value).absolute()) if is_path else value
    if data.get("format") == "datasets" and data.get("dataset") and not data.get("splits"):
        found = _find_dataset(base, data["dataset"])
        data["splits"] = splits_of(found, data.get("subset"), data.get("revision"))
    return data, base.absolute()


def _find_dataset(base: Path, name: str) -> str:
    """A folder, or the name of a dataset of the Hub."""
    folder = base / Path(name).expanduser()
    return str(folder) if folder.exists() else name


def look(path: Path, name: str) -> dict[str, Any]:
    """What a description of a file, a folder or a dataset of the Hub would say.

    Raises:
        UsageError: it isn't there, or nothing that is known.
    """
    words = re.sub(r"\W+", "_", path.absolute().name.partition(".")[0]).strip("_") or "own"
    if not path.exists():
        if _HUB_ID.fullmatch(name) and not is_own(PurePosixPath(name).name):
            return {"name": path.name, "format": "datasets", "dataset": name}
        raise UsageError(
            f"{name}: there is no such file{lacking(path)}; give another path, a dataset of the "
            "Hub, or the name of a source (mminstruct list)"
        )
    if path.is_file():
        return {"name": words, "format": _format_of(path), "files": {"train": str(path)}}
    found = _files_by_split(path)
    if not found:
        return {"name": words, "format": "datasets", "dataset": str(path)}
    formats = sorted({_format_of(file) for files in found.values() for file in files})
    if len(formats) > 1:
        raise UsageError(f"{name}: expected one format, got {', '.join(formats)}; give a file")
    files = {split: _write_files(own) for split, own in found.items()}
    data = {"name": words, "format": formats[0], "files": files}
    if any(file.stem != "metadata" for own in found.values() for file in own):
        return data
    return {**data, "image_folder": str(path if any(path.glob("metadata.*")) else path / "*")}


def _files_by_split(folder: Path) -> dict[str, list[Path]]:
    """The annotation files in a folder, in those of its splits or in its ``annotations``."""
    places = {"": folder, "annotations": folder / "annotations"}
    places |= {p.name: p for p in sorted(folder.iterdir()) if p.is_dir()}
    found: dict[str, list[Path]] = {}
    for word, place in places.items():
        for file in sorted(place.glob("*")):
            if not _stem(file).endswith((*_TABLES, ".json")):
                continue
            parts = re.findall(r"[a-z]+", f"{word} {file.stem}".lower())
            split = next((_SPLITS[part] for part in parts if part in _SPLITS), "train")
            if file not in found.setdefault(split, []):
                found[split].append(file)
    return {split: found[split] for split in dict.fromkeys(_SPLITS.values()) if split in found}


def _write_files(files: Sequence[Path]) -> Any:
    """The files of a split as a description has them."""
    spoken = {file for file in files if "caption" in file.name.lower()}
    if len(files) == 2 and len(spoken) == 1:
        roles = {"captions" if file in spoken else "annotations": str(file) for file in files}
        return dict(sorted(roles.items()))
    return [str(file) for file in files] if len(files) > 1 else str(files[0])


def _stem(path: Path) -> str:
    return path.name.lower().removesuffix(".gz")


def _format_of(path: Path) -> str:
    if _stem(path).endswith(_TABLES):
        return "table"
    with open_text(path) as file:
        start = file.read(1 << 20).lstrip()
    if start[:1] not in b"[{":
        raise UsageError(
            f"{path.name}: expected a file in COCO's format, or a table ({', '.join(_TABLES)}), "
            f"got {start[:16]!r} at its start; export it as one of these"
        )
    # JSON lines are often called .json.
    is_lines = re.match(rb"\{[^\n]*\}\s*\n\s*\{", start)
    if start[:1] == b"[" or is_lines:
        return "table"
    with suppress(ValueError, RecursionError, SourceError):  # a single row, or more of COCO's
        found = loads(start)
        if "images" not in found:
            Columns().found_in(list(found), path.name)
            return "table"
    return "coco"


def of_rows(
    rows: Iterable[Mapping[str, Any] | Context], *, cache_dir: Path, **description: Any
) -> str:
    """Data in memory as a source: the path of a description, written with it into a folder.

    The same rows and words give the same path, so that what was asked for them is found again.

    Args:
        rows: a mapping of columns for each image or annotation, contexts, or a `Dataset`. Images
            in it aren't copied: their names and sizes are.
        cache_dir: a folder that stays.
        description: keys of a `Description`, such as ``name``, ``license`` and ``columns``.

    Raises:
        UsageError: there is no row, or one is neither.
        ConfigError: a key of the description is wrong.
    """
    encode = msgspec.json.Encoder(enc_hook=_plain).encode
    kinds, lines = set(), []
    if hasattr(rows, "cast_column"):  # a Dataset, or a stream of one
        rows = plain_rows(rows, "train")
    if not isinstance(rows, Iterable):
        raise UsageError(f"rows: expected dicts, Contexts or a Dataset, got {type(rows).__name__}")
    for number, row in enumerate(rows):
        kinds.add(isinstance(row, Context))
        if not isinstance(row, Context | Mapping) or len(kinds) > 1:
            got = type(row).__name__
            raise UsageError(
                f"row {number}: expected dicts or Contexts, got {got}; of a DataFrame give "
                "df.to_dict('records')"
            )
        if isinstance(row, Context):
            lines.append(encode_context(row).encode())
        else:
            lines.append(encode({name: _without_bytes(value) for name, value in row.items()}))
    if not lines:
        raise UsageError("rows: expected at least one, got none")
    # Errors name it.
    table = f"what generate was given.{xxhash.xxh3_64_hexdigest(b''.join(lines))}.jsonl"
    data = {"name": "own", **description, "files": {"train": table}}
    data["format"] = "contexts" if kinds == {True} else "table"
    strict_yaml.validate(Description, data, where="description")
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True).encode()
    folder = cache_dir / "mminstruct" / "own"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{xxhash.xxh3_128_hexdigest(text)}.yaml"
    for file, content in ((folder / table, b"\n".join(lines)), (path, text)):
        partial = file.with_suffix(f".{os.getpid()}-{id(rows)}")
        partial.write_bytes(content)
        partial.replace(file)
    return str(path)


def _without_bytes(value: Any) -> Any:
    """A cell; of an image, as `datasets` has them, where it is from."""
    if isinstance(value, Mapping) and "bytes" in value:
        return {"path": value.get("path")}
    return _plain(value) if isinstance(value, bytes) else value


def _plain(value: Any) -> Any:
    """Numbers of NumPy as Python's, and paths as texts."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise UsageError(
        f"rows: expected texts, numbers and lists of them, got {type(value).__name__}; of an image "
        "give the name, or a Dataset with the images in it"
    )
