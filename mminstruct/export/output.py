"""Files and shards of an export, each put in place whole."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from mminstruct.export.formats import Format, LeftOut, Row
from mminstruct.export.pictures import Pictures

_SHARD_ROWS = 10_000
_SHARD_BYTES = 2**30
_ROWS_PER_GROUP = 100
SHARD = re.compile(r".+-\d{6}(\.tar|-[0-9a-f]{16}\.parquet)")
PARTIAL = ".partial"
_SIGNATURES = (
    (re.compile(rb"\xff\xd8\xff"), "jpg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "png"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "webp"),
)
_BRACKETS = {"lines": ("", ""), "array": ("[", "\n]\n"), "all": ('{"all": [', "\n]}\n")}


def license_beside(path: Path) -> Path:
    """Where the licence of an export goes."""
    return path.with_name(f"{path.name}.LICENSE")


def note_beside(path: Path) -> Path:
    """Where the note goes that says how an export was made."""
    return path.with_name(f"{path.name}.provenance.json")


def target_of(path: Path) -> Path:
    """The path, or what it leads to if it is a link, whether that exists or not."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


_Add = Callable[[str, Row, list[dict[str, Any]]], None]


@contextmanager
def open_file(path: Path, form: Format, pictures: Pictures) -> Iterator[_Add]:
    """The function that adds the records of a row to one file."""
    opening, closing_ = _BRACKETS[form.layout]
    with replace_file(path) as file:
        separator = ["\n"]

        def add(split: str, row: Row, records: list[dict[str, Any]]) -> None:
            for record in records:
                if form.layout == "lines":
                    file.write(encode_line(record))
                else:
                    file.write(separator[0] + json.dumps(record, ensure_ascii=False))
                    separator[0] = ",\n"

        file.write(opening)
        yield add
        file.write(closing_)


@contextmanager
def open_shards(path: Path, form: Format, pictures: Pictures) -> Iterator[_Add]:
    """The function that adds a row, and the bytes of its image, to files of bounded size."""
    partial = path / PARTIAL
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
            raise LeftOut("not an image (JPEG, PNG, WEBP)")
        shards.add(split, record, image, ending)

    with make_folder(path):
        partial.mkdir()
        try:
            with closing(shards):
                yield add
            written = {new.name: new.replace(path / new.name) for new in sorted(partial.iterdir())}
            for old in path.iterdir():
                if SHARD.fullmatch(old.name) and old.name not in written:
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
        line = encode_line(record).encode()
        self._file.add(record, line, image, ending)
        self._bytes += len(line) + len(image)
        self._rows += 1

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _Tar:
    """A shard for webdataset: an image and its row have names of one stem."""

    def __init__(self, stem: Path) -> None:
        self._tar = tarfile.open(f"{stem}.tar", "w")  # noqa: SIM115 (closed by close)

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


def encode_line(value: Mapping[str, Any]) -> str:
    """A record as a line of JSON."""
    return json.dumps(value, ensure_ascii=False) + "\n"


@contextmanager
def make_folder(folder: Path) -> Iterator[None]:
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
def replace_file(path: Path) -> Iterator[IO[str]]:
    """A file to write, which takes the path's place, or its target's, when all went well."""
    path = target_of(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
