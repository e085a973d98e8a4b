"""Rows -> the files that trainers read, one `Format` each, with or without images.

Rows are read as a stream and written as they come, so memory doesn't grow with their number.
Everything is written beside its destination first and then moved: an interrupted run leaves what
was there. A row that a trainer could not use, because its image is missing or a turn is empty, is
left out, counted, and named with the reason in ``<output>.missing.jsonl``. What the exported rows
may be used for stands in ``<output>.LICENSE``, and of each row in its record.

Trainers count ``<image>``, and some ``<video>`` and ``<audio>``, in all text. A model that wrote
one itself would ask for an image that isn't there, so these three are taken out of turns.

**Source** of the forms, as facts:
LLaVA, docs/Finetune_Custom_Data.md and llava/train/train.py;
LLaMA-Factory, data/README.md and src/llamafactory/data/mm_plugin.py;
TRL, ``prepare_multimodal_messages`` in trl/data_utils.py;
Axolotl, docs/multimodal.qmd;
ms-swift, docs/source_en/Customization/Custom-dataset.md;
LaVIN, util/datasets.py and tools/data_processing.py;
WebDataset, a sample's files are ``<key>.<extension>``, with no dot in the key.
Keys that they don't know: LLaVA, LaVIN (``self.data[idx]["image"]`` ...), LLaMA-Factory
(``columns`` of the entry), TRL (the trainer's signature columns) and ms-swift
(``StdTemplateInputs.from_dict``) read theirs by name; Axolotl, ``ProcessingStrategy.__call__`` in
src/axolotl/processing_strategies.py, opens whatever has "image" in its key as an image.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetsError
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
)
from tqdm.auto import tqdm

from mminstruct import cards, licenses, replacing, resources, sources
from mminstruct.builder import LEFT_OUT, REJECTED
from mminstruct.errors import HubError, UsageError, did_you_mean, lacking
from mminstruct.generate import FEATURES, Report
from mminstruct.licenses import Tally, Use

if TYPE_CHECKING:
    from mminstruct.images import Fetching, Wanted  # with an HTTP client, for fetching alone

Row = Mapping[str, Any]
_Rows: TypeAlias = "datasets.Dataset | datasets.IterableDataset | list[str]"  # Parquet files
Images = Literal["none", "url", "path", "embed"]
IMAGES: tuple[Images, ...] = get_args(Images)
"""``none``: file names as rows have them; ``url``: their addresses; ``path``: files in a folder;
``embed``: files fetched into a folder."""

_NEEDED = ("id", "type", "modality", "image", "image_url", "image_license", "messages")
_ROWS_PER_BATCH = 1000
_SHARD_ROWS = 10_000
_SHARD_BYTES = 2**30
_ROWS_PER_GROUP = 100
_SHARD = re.compile(r".+-\d{6}(\.tar|-[0-9a-f]{16}\.parquet)")
_PARTIAL = ".partial"
_TAGS = re.compile("<(?:image|video|audio)>")
_SIGNATURES = (
    (re.compile(rb"\xff\xd8\xff"), "jpg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "png"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "webp"),
)
_BRACKETS = {"lines": ("", ""), "array": ("[", "\n]\n"), "all": ('{"all": [', "\n]}\n")}


class _LeftOut(Exception):
    """A row that can't be exported; its text is the reason."""


class _Excluded(_LeftOut):
    """A row whose image's licence, or use, was not asked for; its text is the licence."""


@dataclass(frozen=True, slots=True)
class Format:
    """A form that rows are written in.

    Attributes:
        reader: what reads it.
        suffix: the end of its name unless told.
        records: what a row becomes, given its image as the reader finds it, or None.
        layout: one JSON document a line, one array of them, or an array under the key ``all``;
            or files of several rows with images, which are tar or Parquet.
        root: what image paths are relative to: ``images`` the image folder, which the reader is
            told; ``output`` the folder of the output; ``here`` the working directory.
        prefix: what the reader puts before an image's name, so that files have it.
        images: the ways in which it can have images.
        any_modality: whether it holds motions ... too, whose files no trainer of images opens.
        entry: its entry in a ``dataset_info.json`` beside it, or None.
    """

    reader: str
    suffix: str
    records: Callable[[Row, str | None], list[dict[str, Any]]]
    layout: Literal["lines", "array", "all", "tar", "parquet"]
    root: Literal["images", "output", "here"] = "here"
    prefix: str = ""
    images: tuple[Images, ...] = IMAGES
    any_modality: bool = False
    entry: Mapping[str, Any] | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of shards, with the images in them."""
        return self.layout in ("tar", "parquet")

    def name(self, image: str) -> str:
        """The image as records name it."""
        return re.sub("^COCO_(train|val)2014_", "", image) if self.prefix else image

    def file_name(self, image: str) -> str:
        """The image in its folder."""
        return self.prefix + self.name(image)


@dataclass(slots=True)
class Outcome:
    """What became of the rows.

    Attributes:
        path: what was written.
        rows: how many of them were.
        missing: those left out, by reason; also, each by its id, in ``<path>.missing.jsonl``.
        excluded: those left out as their image's licence was not asked for, by licence.
        use: what those written may be used for; None where that is said elsewhere.
    """

    path: Path
    rows: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    excluded: Counter[str] = field(default_factory=Counter)
    use: Use | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """What is known of a release that rows are from.

    Attributes:
        license_text: of the file LICENSE, of rows that may be used so.
        text: whether their text may be used commercially; None is not known.
        allows: whether an image under a licence may be used commercially; None is not known.
    """

    license_text: Callable[[Use], str]
    text: bool | None = None
    allows: Callable[[str | None], bool | None] = lambda license: None


def row_records(row: Row, image: str | None) -> list[dict[str, Any]]:
    """The row as it is, but for where its image is."""
    return [{**row, "image": image}]


def llava_records(row: Row, image: str | None) -> list[dict[str, Any]]:
    """The row for LLaVA: the image before the first question, on a line of its own."""
    shown = {} if image is None else {"image": image}
    mark = "" if image is None else "<image>\n"
    turns = _turns(row, mark, _FROM_VALUE)
    return [{"id": row["id"], **shown, "conversations": turns, **_uses(row)}]


def sharegpt_records(row: Row, image: str | None) -> list[dict[str, Any]]:
    """The row for LLaMA-Factory: as many images as there are ``<image>``."""
    mark = "" if image is None else "<image>"
    turns = _turns(row, mark, _FROM_VALUE)
    return [{"conversations": turns, "images": _listed(image), **_uses(row)}]


def swift_records(row: Row, image: str | None) -> list[dict[str, Any]]:
    """The row for ms-swift: messages of text, in which ``<image>`` stands for the image."""
    mark = "" if image is None else "<image>"
    turns = _turns(row, mark, _ROLE_CONTENT)
    return [{"messages": turns, "images": _listed(image), **_uses(row)}]


def messages_records(row: Row, image: str | None) -> list[dict[str, Any]]:
    """The row for TRL: messages in parts, one of which is an empty place for the image."""
    places: list[dict[str, str]] = [{"type": "image"}] * len(_listed(image))
    return [{"messages": _parts(row, places), "images": _listed(image), **_uses(row)}]


def axolotl_records(row: Row, image: str | None) -> list[dict[str, Any]]:
    """The row for Axolotl: messages in parts, one of which says where the image is.

    Without ``image_license``, which it would open as an image.
    """
    key = "url" if image and image.startswith(("http://", "https://")) else "path"
    messages = _parts(row, [{"type": "image", key: found} for found in _listed(image)])
    uses = {name: value for name, value in _uses(row).items() if "image" not in name}
    return [{"messages": messages, **uses}]


def lavin_records(row: Row, image: str | None) -> list[dict[str, Any]]:
    """One record a turn: LaVIN has no conversations, and reads no image without a source."""
    texts = [turn["value"] for turn in _turns(row, "", _FROM_VALUE)]
    return [
        {
            "qid": f"{row['id']}-{number}",
            "instruction": f"Instruction: {question}\nResponse:",
            "answer": answer,
            "options": None,
            "image": image,
            "image_source": None if image is None else "mscoco",
            **_uses(row),
        }
        for number, (question, answer) in enumerate(zip(texts[::2], texts[1::2], strict=True))
    ]


def _uses(row: Row) -> dict[str, Any]:
    """The row's licences and use, never null: readers tell a column's type from its first values.

    What isn't known to be free isn't free.
    """
    known = {name: row.get(name) or "unknown" for name in ("license", "image_license")}
    return {**known, "commercial_use": row.get("commercial_use") is True}


_FROM_VALUE = ("from", "value", {"user": "human", "assistant": "gpt"})
_ROLE_CONTENT = ("role", "content", {"user": "user", "assistant": "assistant"})
_FILES: tuple[Images, ...] = ("none", "path", "embed")  # of readers that open no address

FORMATS: dict[str, Format] = {
    "jsonl": Format("anything", ".jsonl", row_records, "lines", any_modality=True),
    "llava-instruct": Format("LLaVA", ".json", llava_records, "array", "images", images=_FILES),
    "sharegpt": Format(
        "LLaMA-Factory",
        ".json",
        sharegpt_records,
        "array",
        "output",
        images=_FILES,
        entry={
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "images": "images"},
            "tags": {
                "role_tag": "from",
                "content_tag": "value",
                "user_tag": "human",
                "assistant_tag": "gpt",
            },
        },
    ),
    "messages": Format("TRL", ".jsonl", messages_records, "lines"),
    "axolotl": Format("Axolotl", ".jsonl", axolotl_records, "lines"),
    "ms-swift": Format("ms-swift", ".jsonl", swift_records, "lines"),
    "lavin": Format(
        "LaVIN",
        ".json",
        lavin_records,
        "all",
        "images",
        prefix="COCO_train2014_",
        images=_FILES,
    ),
    "webdataset": Format("webdataset", "", row_records, "tar", "images", images=("path", "embed")),
    "parquet": Format(
        "load_dataset",
        "",
        row_records,
        "parquet",
        "images",
        images=("path", "embed"),
    ),
}
"""The forms by name; one more is one more entry."""

FILE_FORMATS = tuple(name for name, form in FORMATS.items() if "none" in form.images)
"""Those that need no images."""


_FILE_SUFFIXES = (
    *(".arrow", ".csv", ".feather", ".gz", ".h5", ".json", ".jsonl", ".ndjson", ".npz", ".parquet"),
    *(".pickle", ".pkl", ".sqlite", ".tar", ".tsv", ".txt", ".xlsx", ".xml", ".yaml", ".zip"),
)


def check_folder_name(path: Path, output_format: str) -> None:
    """Raise UsageError if a folder would have the name of a file of data."""
    if path.suffix.lower() in _FILE_SUFFIXES:
        raise UsageError(
            f"output path {path}: the format {output_format} is a folder, got the name of a "
            f"{path.suffix} file; give a folder, or a file with the format "
            f"{', '.join(FILE_FORMATS[:-1])} or {FILE_FORMATS[-1]}"
        )


def check_output(path: Path, output_format: str) -> None:
    """Raise UsageError if the output can't be written; to be asked before money is spent.

    What is there is only replaced if an export wrote it, which the licence beside it tells.
    """
    form = FORMATS[output_format]
    if form.is_folder:
        check_folder_name(path, output_format)
        if path.exists() and not path.is_dir():
            raise UsageError(f"output path {path}: expected a folder, got {_kind(path)}")
        found = {child.name for child in path.iterdir()} if path.is_dir() else set()
        if any(name != _PARTIAL and not _SHARD.fullmatch(name) for name in found):
            raise UsageError(
                f"output path {path}: the folder holds something else than shards; "
                "give another one with --output_path"
            )
        if found - {_PARTIAL}:
            _check_ours(path)
        resources.check_writable(path, path)
        return
    if path.exists() and not path.is_file():
        raise UsageError(
            f"output path {path}: expected a file, got {_kind(path)}; give another path with "
            "--output_path"
        )
    # An empty file holds nothing that could be lost.
    if path.exists() and path.stat().st_size:
        _check_ours(path)
    resources.check_writable(_target(path).parent, path)
    if form.entry is not None:
        if path.suffix != ".json":
            raise UsageError(
                f"output path {path}: {form.reader} tells the form by the file's ending, "
                f"got {path.suffix!r} against '.json' expected"
            )
        _check_entry(path)


def default_output(release: str, output_format: str) -> Path:
    """Where a release goes in a format unless told: a name that has both."""
    form, name = FORMATS[output_format], _with_name(release).name
    if form.is_folder:
        return Path(f"{name}-{output_format}")
    return Path(f"{name}.{output_format}".removesuffix(form.suffix) + form.suffix)


def made_at(path: Path) -> replacing.Made | None:
    """How what is there was made, as noted beside it; None if nothing is there."""
    inside = (child.name != _PARTIAL for child in path.iterdir()) if path.is_dir() else ()
    if not any(inside) and not (path.is_file() and path.stat().st_size):
        return None
    try:
        noted = json.loads(_note_beside(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _check_ours(path: Path) -> None:
    """Raise UsageError for what no export wrote: it has no licence beside it."""
    if not _license_beside(path).is_file():
        raise UsageError(
            f"output path {path}: what is there was not written by mminstruct, as it has no "
            f"{_license_beside(path).name} beside it; move it away or give another path with "
            "--output_path"
        )


def _kind(path: Path) -> str:
    """What is there, in a word or two."""
    kinds = (
        ("a folder", path.is_dir),
        ("a file", path.is_file),
        ("a pipe", path.is_fifo),
        ("a socket", path.is_socket),
        ("a device", lambda: path.is_char_device() or path.is_block_device()),
    )
    return next((name for name, is_it in kinds if is_it()), "something else")


def _license_beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.LICENSE")


def _note_beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.provenance.json")


def _target(path: Path) -> Path:
    """The path, or what it leads to if it is a link, whether that exists or not."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _check_outside(path: Path, dataset: str) -> None:
    """Raise UsageError for an output inside the release itself, whose files it could replace."""
    folder = Path(dataset).resolve()
    if Path(dataset).is_dir() and folder in (path.resolve(), *path.resolve().parents):
        raise UsageError(
            f"output path {path}: it is inside the release {dataset}, whose own files stand "
            "there; give a path outside of it with --output_path"
        )


def write(
    splits: Mapping[str, datasets.Dataset],
    path: Path,
    output_format: str,
    report: Report,
    terms: Terms,
    made: replacing.Made,
    *,
    left_out: Iterable[Mapping[str, Any]] = (),
    overwrite: bool = False,
) -> Outcome:
    """Write the rows of all splits without images; beside them what gave none, and the licence.

    Raises:
        UsageError: something else is there, and ``overwrite`` isn't given.
    """
    form = FORMATS[output_format]
    replacing.check(path, made_at(path), made, overwrite=overwrite)
    outcome = _write(_rows(splits.items()), path, form, _Pictures(), terms, made)
    write_rejected(path, report)
    resources.write_lines(path.with_name(f"{path.name}.{LEFT_OUT}"), left_out)
    return outcome


def write_rejected(path: Path, report: Report) -> Path:
    """Write what gave no row beside an output; the file, which isn't there if all did."""
    rejected = path.with_name(f"{path.name}.{REJECTED}")
    resources.write_lines(rejected, report.entries())
    return rejected


def export(
    dataset: str | Path,
    output_format: str,
    *,
    output_path: str | Path | None = None,
    types: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    images: Images = "none",
    image_folder: str | Path | None = None,
    image_licenses: Sequence[str] | None = None,
    commercial: bool = False,
    licenses_file: str | Path | None = None,
    fetching: Fetching | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Outcome:
    """Write a release for a trainer.

    Args:
        dataset: folder of a dataset repository, or its id on the Hub.
        output_format: a name in `FORMATS`.
        output_path: file, or folder of shards; by default the release's name and the format's.
        types: instruction types; all by default.
        splits: all by default.
        images: see `IMAGES`.
        image_folder: where images are, or are fetched to: by default ``images`` beside the output.
            Where they are made smaller, to 512 pixels say, ``-512px`` is added to its name.
        image_licenses: ``commercial``, of images that may be used so; ``any``; or ids of licences.
            By default ``commercial`` where images are fetched, else ``any``.
        commercial: rows that may be used commercially alone, text and image together, as their
            ``commercial_use`` says; of these, those with the images asked for.
        licenses_file: a user's own entries over the known licences.
        fetching: how images are fetched.
        overwrite: replace rows of another model, prompt config ..., or of more types or splits.
        progress: show a bar on stderr while they are.

    Raises:
        UsageError: there is no such release, type, split, format or licence; an argument doesn't
            go with the others; the format can't hold such rows; commercial rows are asked for of
            a release whose text isn't free; no row would be left; or something else is there.
        RunStopped: images can't be reached. Those that were fetched are kept.
    """
    form = FORMATS.get(output_format)
    if form is None:
        raise UsageError(f"format {output_format!r}{did_you_mean(output_format, FORMATS)}")
    _check_images(output_format, images, image_folder, fetching)
    path = _with_name(output_path or default_output(str(dataset), output_format))
    _check_outside(path, str(dataset))
    check_output(path, output_format)
    allowed = image_licenses or (["commercial"] if images == "embed" else ["any"])
    if licenses_file is not None and "any" in allowed:
        raise UsageError(
            "licenses: of no use where images under any licence are asked for; leave it out, or "
            "name some with image_licenses"
        )
    registry = licenses.load(licenses_file)
    pictures = _Pictures(images, _license_filter(registry, allowed), commercial)
    if image_folder is not None:
        pictures.folder = Path(image_folder)
    if images == "path" and not pictures.folder.is_dir():
        raise UsageError(
            f"image_folder {pictures.folder}: no such folder{lacking(pictures.folder)}"
        )
    streams = _streams(str(dataset), types, splits)
    pictures.features = _features(streams[0][1])
    terms = _terms(str(dataset), registry)
    if commercial and not terms.text:
        why = "may not be used commercially" if terms.text is False else "is not known to be free"
        raise UsageError(
            f"commercial: the text of {dataset} {why}, whatever its images, as its LICENSE says; "
            "leave commercial out, or generate with a model whose terms leave the text free "
            "(mminstruct license names some)"
        )
    made = _made_of(str(dataset), types, splits, [*allowed, *(["commercial rows"] * commercial)])
    if fetching is not None and fetching.max_size is not None:
        made = {**made, "max_size": fetching.max_size}
    replacing.check(path, made_at(path), made, overwrite=overwrite)
    if images != "embed":
        return _write(_rows(streams), path, form, pictures, terms, made)
    from mminstruct.images import Fetching

    fetching = fetching or Fetching()
    folder = path.parent / "images" if image_folder is None else _with_name(image_folder)
    pictures.folder = folder
    if fetching.max_size is not None:
        pictures.folder = folder.with_name(f"{folder.name}-{fetching.max_size}px")
    with (
        tempfile.TemporaryDirectory() as scratch,
        _Wanted(Path(scratch) / "images", fetching.max_size) as wanted,
    ):
        pictures.wanted = wanted
        _fetch(_rows(streams), form, pictures, fetching, progress)
        return _write(_rows(streams), path, form, pictures, terms, made)


def _check_images(
    output_format: str,
    images: str,
    image_folder: str | Path | None,
    fetching: Fetching | None,
) -> None:
    ways = FORMATS[output_format].images
    if images not in ways:
        raise UsageError(
            f"images: expected one of {', '.join(ways)} for {output_format}, got {images!r}"
        )
    if images == "path" and image_folder is None:
        raise UsageError("image_folder: expected the folder with the images, got none")
    if images in ("none", "url") and image_folder is not None:
        raise UsageError(
            f"image_folder: of no use with images {images!r}; leave it out, or let images be "
            "'path' or 'embed'"
        )
    if images != "embed" and fetching is not None:
        raise UsageError(
            "max_size, max_concurrency, timeout, max_retries and private_addresses are for images "
            f"that are fetched, got images {images!r}; leave them out, or let images be 'embed'"
        )


def _license_filter(
    registry: licenses.Registry, allowed: Sequence[str]
) -> Callable[[str | None], bool]:
    """Whether an image's licence is among those asked for."""
    words = {"any", "commercial"}
    for name in allowed:
        if name not in words and registry.license(name) is None:
            known = words | registry.licenses.keys()
            raise UsageError(f"image_licenses: unknown licence {name!r}{did_you_mean(name, known)}")
    entries = [registry.license(name) for name in allowed if name not in words]

    def is_allowed(name: str | None) -> bool:
        entry = registry.license(name)
        commercial = "commercial" in allowed and registry.allows(name) is True
        return "any" in allowed or commercial or (entry is not None and entry in entries)

    return is_allowed


def _streams(
    dataset: str, types: Sequence[str] | None, splits: Sequence[str] | None
) -> list[tuple[str, _Rows]]:
    """Name and rows of each split, one instruction type after the other."""
    try:
        if Path(dataset).is_file():
            raise UsageError(f"{dataset}: expected the folder of a dataset repository, got a file")
        name = Path(dataset).name
        if (Path(dataset) / f"{name}.py").is_file() or dataset == f"builders/{name}":
            raise UsageError(
                f"{dataset}: expected rows, got what makes them; run `mminstruct generate` first"
            )
        configs = datasets.get_dataset_config_names(dataset)
        known = [name for name in configs if name != "default"]
        for name in types or ():
            if name not in known:
                raise UsageError(
                    f"{dataset} has no instruction type {name!r}{did_you_mean(name, known)}"
                )
        chosen = dict.fromkeys(types or (["default"] if "default" in configs else known))
        found = [_by_split(datasets.load_dataset_builder(dataset, name)) for name in chosen]
    except (OSError, ValueError, DatasetsError, HfHubHTTPError) as error:
        raise UsageError(
            f"{dataset}: expected a dataset repository, as `mminstruct generate` writes it, or "
            f"the id of one on the Hub, got: {error}"
            f"{lacking(Path(dataset)) if dataset.count('/') > 1 else ''}"  # else it may be an id
        ) from error
    names = list(dict.fromkeys(split for parts in found for split in parts))
    for split in splits or ():
        if split not in names:
            raise UsageError(f"{dataset} has no split {split!r}{did_you_mean(split, names)}")
    wanted = dict.fromkeys(splits or names)
    return [(split, parts[split]) for split in wanted for parts in found if split in parts]


def _by_split(builder: datasets.DatasetBuilder) -> Mapping[str, _Rows]:
    """The rows of each split of one instruction type."""
    named = builder.config.data_files or {}
    files = {str(split): list(map(str, of)) for split, of in named.items()}
    if files and all(file.endswith(".parquet") for of in files.values() for file in of):
        return files
    return builder.as_streaming_dataset()  # type: ignore[no-any-return]


def _features(rows: _Rows) -> datasets.Features:
    """The columns of some rows; those of `FEATURES` where the rows don't say."""
    if not isinstance(rows, list):
        return rows.features or FEATURES
    try:
        with fsspec.open(rows[0], "rb") as opened:
            return datasets.Features.from_arrow_schema(pq.read_schema(opened))
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{rows[0]}: can't be read as Parquet, got: {error}") from error


def _batches(rows: _Rows) -> Iterator[pa.RecordBatch | pa.Table]:
    """Rows a thousand at a time.

    Parquet is read by this thread alone: streamed by `datasets`, it is read by threads of Arrow's
    that call Python, and where one still does when the process ends, that dies by SIGABRT.
    **Source:** https://github.com/huggingface/datasets/issues/7566
    """
    if not isinstance(rows, list):
        yield from rows.with_format("arrow").iter(_ROWS_PER_BATCH)
        return
    for file in rows:
        with fsspec.open(file, "rb") as opened:
            parquet = pq.ParquetFile(opened, pre_buffer=False)
            yield from parquet.iter_batches(_ROWS_PER_BATCH, use_threads=False)


def _rows(splits: Iterable[tuple[str, _Rows]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row, after the name of its split."""
    for split, rows in splits:
        try:
            for batch in _batches(rows):
                lacking = [name for name in _NEEDED if name not in batch.schema.names]
                if lacking:
                    raise UsageError(
                        f"split {split!r}: expected rows as `mminstruct generate` writes them, "
                        f"got none of the columns {', '.join(lacking)}"
                    )
                for row in batch.to_pylist():
                    yield split, row
        except (pa.ArrowInvalid, OSError, DatasetsError, HfHubHTTPError) as error:
            raise UsageError(f"split {split!r}: its rows can't be read, got: {error}") from error


class _Wanted:
    """The images to fetch, each once, in a table on disk: there may be millions.

    Args:
        file: the table; a new one.
        max_size: what they are made smaller to, or None.
    """

    def __init__(self, file: Path, max_size: int | None) -> None:
        self._max_size = max_size
        # `images.fetch` goes on in a thread, but never while this one does.
        self._table = sqlite3.connect(file, check_same_thread=False)
        self._table.execute(
            "CREATE TABLE image (file TEXT UNIQUE, url TEXT, turn INTEGER, credit TEXT, lost TEXT)"
        )

    def __enter__(self) -> _Wanted:
        return self

    def __exit__(self, *exc: object) -> None:
        self._table.close()

    def add(self, file: str, row: Row) -> None:
        """Ask for a row's image, unless that was done before."""
        credit = {name: row.get(name) for name in ("image_url", "image_license", "image_credit")}
        self._table.execute(
            "INSERT OR IGNORE INTO image VALUES (?, ?, ?, ?, NULL)",
            (file, row["image_url"], _turn(row), json.dumps(credit)),
        )

    def __len__(self) -> int:
        (count,) = self._table.execute("SELECT count(*) FROM image").fetchone()
        return int(count)

    def __iter__(self) -> Iterator[Wanted]:
        """The images; the table may change meanwhile."""
        from mminstruct.images import Wanted

        last = 0
        query = "SELECT rowid, file, url, turn FROM image WHERE rowid > ? ORDER BY rowid LIMIT 1000"
        while page := self._table.execute(query, (last,)).fetchall():
            last = page[-1][0]
            yield from (Wanted(*image) for _, *image in page)

    def lose(self, file: str, reason: str) -> None:
        """Note why there is no such image."""
        self._table.execute("UPDATE image SET lost = ? WHERE file = ?", (reason, file))

    def lost(self, file: str, url: str) -> str | None:
        """Why the image from that address isn't in the folder under that name, or None."""
        query = "SELECT url, lost FROM image WHERE file = ?"
        first, lost = self._table.execute(query, (file,)).fetchone()
        return lost if first == url else "another image has the same file name"

    def credits(self) -> Iterator[dict[str, Any]]:
        """What naming the authors of the images takes, and what was done to these."""
        query = "SELECT file, turn, credit FROM image WHERE lost IS NULL ORDER BY rowid"
        for file, turn, credit in self._table.execute(query):
            done = {"turned_deg": turn, "max_size": self._max_size}
            yield {"image": file, **json.loads(credit), **done}


@dataclass
class _Pictures:
    """Where the rows' images are.

    Attributes:
        images: how they get into the output.
        allows: whether an image under that licence is asked for.
        commercial: rows that may be used commercially alone are asked for.
        folder: where they are, or are fetched to.
        wanted: those that were to be fetched.
        flaws: what is wrong with each file that was looked at, by a digest of its name.
        features: of the rows.
    """

    images: Images = "none"
    allows: Callable[[str | None], bool] = lambda license: True
    commercial: bool = False
    folder: Path = Path()
    wanted: _Wanted | None = None
    flaws: dict[bytes, str | None] = field(default_factory=dict)
    features: datasets.Features = field(default_factory=lambda: FEATURES)

    def check(self, row: Row, form: Format) -> None:
        """Raise UsageError for a row that the format can't hold, _LeftOut if it isn't asked for."""
        modality = row["modality"]
        if not (form.any_modality or modality == "image" or self._is_text(row, form)):
            raise UsageError(
                f"{form.reader} reads images, and row {row['id']} is about {modality}; use the "
                "format jsonl"
            )
        is_allowed = modality == "text" or self.allows(row["image_license"])
        if not is_allowed or (self.commercial and row.get("commercial_use") is not True):
            raise _Excluded(row["image_license"] or "an unknown licence")

    def _is_text(self, row: Row, form: Format) -> bool:
        return row["modality"] == "text" and form.layout != "tar"

    def file(self, row: Row, form: Format) -> str | None:
        """The file of a row's image in the folder, or None for a motion, text ..."""
        if row["modality"] != "image":
            return None
        if not _is_inside(row["image"] or ""):
            raise _LeftOut("its image has no file name, or one that leads out of a folder")
        is_shipped = self.images == "embed" and _shipped(row) is not None
        if self.images in ("url", "embed") and not (row["image_url"] or is_shipped):
            raise _LeftOut("no address for its image")
        if _turn(row) % 90:
            raise _LeftOut(f"its image would have to be turned by {_turn(row)} degrees")
        if self.images != "embed" and not form.any_modality and _turn(row):
            raise _LeftOut("its image has to be turned, which --images embed does")
        return form.file_name(row["image"])

    def flaw(self, file: str) -> str | None:
        """Why a file in the folder is no image that a trainer can open, or None."""
        path = self.folder / file
        if not os.path.isfile(path):  # noqa: PTH113 (is_file() raises for a name that is too long)
            return "no such file"
        if self.wanted is not None:  # looked at when it was fetched
            return None
        from PIL import Image

        from mminstruct import images

        digest = hashlib.blake2b(file.encode(), digest_size=16).digest()
        if digest not in self.flaws:
            with warnings.catch_warnings():  # about images that are large, but can be opened
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                self.flaws[digest] = images.flaw(path)
        return self.flaws[digest]

    def as_shown(self, row: Row) -> Row:
        """The row about the file that comes with it: an image that was fetched is upright."""
        return {**row, "rotation_deg": 0} if self.images == "embed" and _turn(row) else row

    def path(self, row: Row, form: Format, output: Path) -> str | None:
        """The row's image as the format's reader finds it."""
        if self.images == "none" and form.any_modality:
            return row["image"]  # type: ignore[no-any-return]
        file = self.file(row, form)
        if file is None:
            return None
        if self.images == "none":
            return form.name(row["image"])
        if self.images == "url":
            return row["image_url"]  # type: ignore[no-any-return]
        if self.wanted is not None:
            lost = self.wanted.lost(file, row["image_url"])
            if lost is not None:
                raise _LeftOut(lost)
        flaw = self.flaw(file)
        if flaw is not None:
            raise _LeftOut(flaw)
        if form.root == "images":
            return form.name(row["image"])
        if form.root == "output":
            return Path(os.path.relpath(self.folder / file, output.parent)).as_posix()
        return (self.folder / file).as_posix()


def _fetch(
    rows: Iterable[tuple[str, Row]],
    form: Format,
    pictures: _Pictures,
    fetching: Fetching,
    progress: bool,
) -> None:
    """Bring the images of all rows into the folder, as far as they can be had."""
    from mminstruct import images

    wanted = pictures.wanted
    assert wanted is not None
    for _, row in rows:
        try:
            pictures.check(row, form)
            file = pictures.file(row, form)
        except _LeftOut:
            continue  # said when rows are written
        if file is not None:
            wanted.add(file, row)
            if (shipped := _shipped(row)) is not None:
                images.place(shipped, pictures.folder / file, fetching.max_size)
    with tqdm(desc="images", total=len(wanted), unit="", disable=None if progress else True) as bar:

        def done(file: str, reason: str | None) -> None:
            if reason is not None:
                wanted.lose(file, reason)
            bar.update()

        images.fetch(wanted, pictures.folder, fetching, done)


def _shipped(row: Row) -> Path | None:
    """The row's image if it comes with the package, as the bundled sample's do."""
    return None if row["image_url"] else sources.shipped_image(row.get("source", ""), row["image"])


def _terms(dataset: str, registry: licenses.Registry) -> Terms:
    """What is known of a release; one that mminstruct didn't write may have no LICENSE.

    Raises:
        UsageError: it is missing, or isn't what mminstruct wrote.
    """
    text, noted = _text(dataset, "LICENSE"), _noted(dataset)
    if noted is None:
        own = text or f"{dataset} has no LICENSE: what its rows may be used for isn't known here.\n"
        return Terms(lambda use: own, allows=registry.allows)
    if text is None:
        raise UsageError(
            f"{dataset}: LICENSE is missing; put it back or run mminstruct generate again"
        )
    if unsaid := cards.unsaid(text, noted):
        raise UsageError(
            f"{dataset}: LICENSE doesn't say {unsaid!r}, which is the verdict in provenance.json; "
            "put it back or run mminstruct generate again"
        )
    whole, old = text, cards.noted_use(noted)
    # As its rows were made: they may rest on entries of its maker's own.
    uses = {image["license"]: image["commercial"] for image in noted["media_licenses"]}
    return Terms(
        lambda use: whole.replace(old, cards.use_line(use), 1),
        noted["licensing"]["commercial"],
        uses.get,
    )


def _noted(dataset: str) -> Mapping[str, Any] | None:
    """What was noted when the release was written, or None if mminstruct didn't."""
    noted = _text(dataset, "provenance.json")
    try:
        found = json.loads(noted or "{}")
        if found.get("tool") != "mminstruct":
            return None
        cards.unsaid("", found)
        [(image["license"], image["commercial"]) for image in found["media_licenses"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{dataset}: provenance.json: expected what mminstruct generate notes there, got "
            "something else; put it back or run mminstruct generate again"
        ) from error
    return found  # type: ignore[no-any-return]


def _made_of(
    dataset: str,
    types: Sequence[str] | None,
    splits: Sequence[str] | None,
    image_licenses: Sequence[str],
) -> replacing.Made:
    """How the rows of an export are made: as those of the release, of which these are chosen."""
    noted = _text(dataset, "provenance.json")
    made = dict(replacing.made(json.loads(noted or "{}"))) or {"sources": [dataset]}
    chosen = {"types": types, "splits": splits}
    made |= {name: sorted(set(some)) for name, some in chosen.items() if some}
    limits = sorted({*image_licenses} - {"any"})
    return {**made, "image_licenses": limits} if limits else made


def _text(dataset: str, name: str) -> str | None:
    """A text file of a release in a folder or on the Hub, or None if there is none."""
    path = Path(dataset) / name
    try:
        if not Path(dataset).is_dir():
            path = Path(hf_hub_download(dataset, name, repo_type="dataset"))
        return path.read_text(encoding="utf-8", errors="replace")
    except LocalEntryNotFoundError as error:  # which is an EntryNotFoundError as well
        raise HubError(
            f"{dataset}: {name} can't be fetched ({error}); run again once the Hub can be reached"
        ) from error
    except (FileNotFoundError, EntryNotFoundError):
        return None


def _write(
    rows: Iterable[tuple[str, Row]],
    path: Path,
    form: Format,
    pictures: _Pictures,
    terms: Terms,
    made: replacing.Made,
) -> Outcome:
    """Write rows, and name those left out.

    Raises:
        UsageError: all of them would be. What was there before is left as it was.
    """
    outcome, tally = Outcome(path), Tally()
    missing = path.with_name(f"{path.name}.missing.jsonl")
    to = _shards if form.is_folder else _file
    with (
        _made(_target(path).parent),
        _replaced(missing) as reasons,
        to(path, form, pictures) as add,
    ):
        for split, row in rows:
            try:
                pictures.check(row, form)
                image = pictures.path(row, form, path)
                add(split, row, form.records(pictures.as_shown(row), image))
                outcome.rows += 1
                tally.add(row)
            except _Excluded as excluded:
                outcome.excluded[str(excluded)] += 1
            except _LeftOut as left_out:
                outcome.missing[str(left_out)] += 1
                named = {name: row[name] for name in ("id", "image", "image_url")}
                reasons.write(_line({**named, "reason": str(left_out)}))
        if not outcome.rows and (outcome.missing or outcome.excluded):
            raise UsageError(f"{path}: not written, as no row would be left; {summary(outcome)}")
        # Before the rows: these are never without it, which is how they are known to be ours.
        outcome.use = tally.use(terms.text, terms.allows)
        with _replaced(_license_beside(path)) as file:
            file.write(terms.license_text(outcome.use))
        with _replaced(_note_beside(path)) as file:
            file.write(json.dumps(made, indent=2, ensure_ascii=False) + "\n")
    if not outcome.missing:
        missing.unlink()
    credits = path.with_name(f"{path.name}.credits.jsonl")
    if pictures.wanted is None:
        credits.unlink(missing_ok=True)
    else:
        with _replaced(credits) as file:
            file.writelines(_line(credit) for credit in pictures.wanted.credits())
    if form.entry is not None:
        entries = {**_dataset_info(path), path.stem: {"file_name": path.name, **form.entry}}
        with _replaced(path.with_name("dataset_info.json")) as file:
            file.write(json.dumps(entries, ensure_ascii=False, indent=2) + "\n")
    return outcome


def summary(outcome: Outcome) -> str:
    """Rows written and left out, in a line."""
    parts = [f"{outcome.rows} rows"]
    for counts, what in (
        (outcome.missing, "left out"),
        (outcome.excluded, "left out for their images' licences"),
    ):
        if counts:
            causes = ", ".join(f"{cause} {count}" for cause, count in counts.most_common(10))
            parts.append(f"{counts.total()} {what} ({causes})")
    return ", ".join(parts)


_Add = Callable[[str, Row, list[dict[str, Any]]], None]


@contextmanager
def _file(path: Path, form: Format, pictures: _Pictures) -> Iterator[_Add]:
    """Takes the records of each row into one file."""
    opening, closing_ = _BRACKETS[form.layout]
    with _replaced(path) as file:
        separator = ["\n"]

        def add(split: str, row: Row, records: list[dict[str, Any]]) -> None:
            for record in records:
                if form.layout == "lines":
                    file.write(_line(record))
                else:
                    file.write(separator[0] + json.dumps(record, ensure_ascii=False))
                    separator[0] = ",\n"

        file.write(opening)
        yield add
        file.write(closing_)


@contextmanager
def _shards(path: Path, form: Format, pictures: _Pictures) -> Iterator[_Add]:
    """Takes each row, and the bytes of its image, into files of bounded size."""
    partial = path / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    to_parquet = functools.partial(_Parquet, features=pictures.features)
    shards = _Shards(partial, _Tar if form.layout == "tar" else to_parquet)

    def add(split: str, row: Row, records: list[dict[str, Any]]) -> None:
        (record,) = records
        if row["modality"] == "text":
            shards.add(split, record, b"", "")
            return
        image = (pictures.folder / form.file_name(row["image"])).read_bytes()
        endings = (ending for signature, ending in _SIGNATURES if signature.match(image))
        ending = next(endings, None)
        if ending is None:
            raise _LeftOut("not an image (JPEG, PNG, WEBP)")
        shards.add(split, record, image, ending)

    with _made(path):
        partial.mkdir()
        try:
            with closing(shards):
                yield add
            written = {new.name: new.replace(path / new.name) for new in sorted(partial.iterdir())}
            for old in path.iterdir():
                if _SHARD.fullmatch(old.name) and old.name not in written:
                    old.unlink()
        finally:
            shutil.rmtree(partial, ignore_errors=True)


class _Shards:
    """The file that rows go into; the next one when it is full or another split begins."""

    def __init__(self, folder: Path, opened: Callable[[Path], _Tar | _Parquet]) -> None:
        self._folder, self._opened = folder, opened
        self._file: _Tar | _Parquet | None = None
        self._split = ""
        self._number = self._rows = self._bytes = 0

    def add(self, split: str, record: Row, image: bytes, ending: str) -> None:
        """One row; its image is of no bytes if it has none."""
        full = self._rows == _SHARD_ROWS or self._bytes >= _SHARD_BYTES
        if self._file is None or full or split != self._split:
            self.close()
            self._number = self._number + 1 if split == self._split and self._file else 0
            self._split, self._rows, self._bytes = split, 0, 0
            self._file = self._opened(self._folder / f"{split}-{self._number:06d}")
        line = _line(record).encode()
        self._file.add(record, line, image, ending)
        self._bytes += len(line) + len(image)
        self._rows += 1

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _Tar:
    """A shard for webdataset: an image and its row have names of one stem."""

    def __init__(self, stem: Path) -> None:
        self._tar = tarfile.open(f"{stem}.tar", "w")  # noqa: SIM115

    def add(self, record: Row, line: bytes, image: bytes, ending: str) -> None:
        for name, content in ((ending, image), ("json", line)):
            info = tarfile.TarInfo(f"{_key(record['id'])}.{name}")
            info.size = len(content)
            self._tar.addfile(info, io.BytesIO(content))

    def close(self) -> None:
        self._tar.close()


class _Parquet:
    """A shard for `load_dataset`, which takes files of one name for the same: a digest is in it."""

    def __init__(self, stem: Path, features: datasets.Features) -> None:
        self._stem, self._digest = stem, hashlib.sha256()
        self._schema = datasets.Features({**features, "image": datasets.Image()}).arrow_schema
        self._writer = pq.ParquetWriter(stem, self._schema)
        self._group: list[Row] = []

    def add(self, record: Row, line: bytes, image: bytes, ending: str) -> None:
        self._digest.update(line + image)
        shown = {"bytes": image, "path": record["image"]} if image else None
        self._group.append({**record, "image": shown})
        if len(self._group) == _ROWS_PER_GROUP:
            self._write()

    def _write(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._group, self._schema))
        self._group = []

    def close(self) -> None:
        self._write()
        self._writer.close()
        self._stem.rename(f"{self._stem}-{self._digest.hexdigest()[:16]}.parquet")


def _key(id: str) -> str:
    """A row's id without dots and slashes, which end a key and make folders; still its own."""
    key = re.sub(r"[^\w+-]", "_", id, flags=re.ASCII)
    return key if key == id else f"{key}-{hashlib.sha256(id.encode()).hexdigest()[:16]}"


def _turns(row: Row, mark: str, names: tuple[str, str, Mapping[str, str]]) -> list[dict[str, str]]:
    """The row's messages under other names, the first one after a mark.

    Raises:
        _LeftOut: they don't alternate, or one is empty.
    """
    messages = row["messages"] or []
    if not messages or [m["role"] for m in messages] != ["user", "assistant"] * (
        len(messages) // 2
    ):
        raise _LeftOut("messages don't alternate between user and assistant")
    texts = [_without_tags(message["content"] or "") for message in messages]
    if not all(text.strip() for text in texts):
        raise _LeftOut("an empty message")
    role, content, roles = names
    texts[0] = mark + texts[0]
    return [
        {role: roles[message["role"]], content: text}
        for message, text in zip(messages, texts, strict=True)
    ]


def _parts(row: Row, images: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The row's messages in parts, the images' before the first text."""
    turns = _turns(row, "", _ROLE_CONTENT)
    return [
        {
            "role": turn["role"],
            "content": [*([] if number else images), {"type": "text", "text": turn["content"]}],
        }
        for number, turn in enumerate(turns)
    ]


def _turn(row: Row) -> int:
    """Degrees by which the row's image has to be turned; older releases don't say."""
    return (row.get("rotation_deg") or 0) % 360


def _listed(image: str | None) -> list[str]:
    return [] if image is None else [image]


def _without_tags(text: str) -> str:
    # What is left may be one again: "<im<image>age>".
    while (shorter := _TAGS.sub("", text)) != text:
        text = shorter.strip()
    return text


def _is_inside(name: str) -> bool:
    """Whether a file of that name is inside the folder that it is joined to."""
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name
    return bool(path.parts) and not outside


def _dataset_info(path: Path) -> dict[str, Any]:
    """The entries of the ``dataset_info.json`` beside an output.

    Raises:
        UsageError: there is such a file, and it has none.
    """
    file = path.with_name("dataset_info.json")
    if not file.exists():
        return {}
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file}: expected JSON to add an entry to, got: {error}") from error
    if not isinstance(entries, dict):
        raise UsageError(f"{file}: expected an object to add an entry to, got {entries!r:.60}")
    return entries


def _check_entry(path: Path) -> None:
    """Raise UsageError if an output's entry beside it would replace that of another dataset."""
    entry = _dataset_info(path).get(path.stem)
    named = entry.get("file_name") if isinstance(entry, dict) else None
    if entry is not None and named != path.name:
        raise UsageError(
            f"output path {path}: {path.with_name('dataset_info.json')} has another dataset "
            f"{path.stem!r} ({named or entry!r:.60}); give a file of another name with "
            "--output_path"
        )


def _with_name(path: str | Path) -> Path:
    """The path with a name at its end, beside which others can stand; ``.`` has none."""
    path = Path(path)
    return path.resolve() if path.name in ("", "..") else path


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Within, the folder is there; if that fails, it goes again with those made for it."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in new:
            with suppress(OSError):  # it isn't empty
                path.rmdir()
        raise


@contextmanager
def _replaced(path: Path) -> Iterator[IO[str]]:
    """A file to write, which takes the path's place, or its target's, when all went well."""
    path = _target(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
