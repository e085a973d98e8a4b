"""Rows -> a dataset repository: Parquet, card, licence, attribution, provenance, Croissant.

Everything is written beside its destination first and then moved, so that an interrupted run leaves
what was there: the new rows stand beside the old ones until the card, which names the files to
load, is replaced in one step. The names of Parquet files end in a digest of their content, as
`load_dataset` caches a folder by its name and its files' names. A release names the day on which
its rows were first written: the same command gives the same files, however often it is run.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from filelock import FileLock

from mminstruct import resources
from mminstruct.errors import RunStopped, UsageError
from mminstruct.releases import cards, croissant, notices
from mminstruct.releases.contents import CREDITS, count_contents
from mminstruct.releases.origin import DataFile, Origin
from mminstruct.releases.pages import find_page
from mminstruct.reports.quality import Quality
from mminstruct.rows import replacing
from mminstruct.rows.columns import NEEDED_BY_RELEASES
from mminstruct.rows.report import LEFT_OUT, REJECTED, VIEW, Report

ROWS = re.compile(r"data/[^/]+/[^/]+-\d{5}-of-\d{5}(-[0-9a-f]{16})?\.parquet")
"""How files of rows are named, in releases that don't list them, too."""

_log = logging.getLogger(__name__)
_MARKER = "provenance.json"
_PARTIAL = ".partial"
_OPTIONAL = (CREDITS, REJECTED, LEFT_OUT, VIEW)
_ROWS_PER_FILE = 100_000
_ROWS_PER_GROUP = 10_000
_NOT_WRITABLE = (errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EROFS)


def check_output(path: Path) -> None:
    """Raise UsageError if the folder can't be written; to be asked before money is spent."""
    if path.is_file():
        raise UsageError(f"output path {path}: expected a folder, got a file")
    found = {child.name for child in path.iterdir()} if path.is_dir() else set()
    if found - {_PARTIAL} and _MARKER not in found:
        raise UsageError(
            f"output path {path}: the folder is not empty and was not written by mminstruct; "
            "give another one"
        )
    resources.check_writable(path, path)


def made_at(path: Path) -> replacing.Made | None:
    """How the release that is there was made, or None if there is none."""
    return replacing.made(_read_noted(path)) if (path / _MARKER).is_file() else None


def write(
    splits: Mapping[str, datasets.Dataset],
    path: Path,
    origin: Origin,
    report: Report | None = None,
    *,
    overwrite: bool = False,
) -> Quality:
    """Write the rows of all splits as a dataset repository, and beside them what gave no row.

    What the rows are like, as the card tells it, is returned.

    Args:
        splits: split -> rows.
        path: the folder; what it holds of an older release is replaced.
        origin: how the rows came about.
        report: what became of the requests; None if that wasn't recorded.
        overwrite: replace a release that was made in another way, or from more requests, too.

    Another run of the same user that writes the same folder is waited for, if both have the same
    folder for temporary files.

    Raises:
        UsageError: the rows lack a column, hold images, or are there twice; or another release is
            there.
        RunStopped: the folder can't be written.
    """
    partial = path / _PARTIAL
    try:
        path.mkdir(parents=True, exist_ok=True)
        with FileLock(_lock_file(path)):
            killed = _read_noted(partial)  # a run that was may have moved some of its rows
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                quality = _write(splits, path, partial, origin, report, overwrite)
                _replace(path, partial, killed)
                return quality
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        raise RunStopped(
            f"output path {path} can't be written: {error.strerror or error}; is there room, and "
            "is it yours?"
        ) from error


def _lock_file(path: Path) -> Path:
    """What two runs on one machine that write the same folder wait for."""
    user = os.getuid() if hasattr(os, "getuid") else ""  # nobody else can write its file
    name = hashlib.sha256(f"{user}:{path.resolve()}".encode()).hexdigest()[:24]
    return Path(tempfile.gettempdir()) / f"mminstruct-{name}.lock"


def _write(
    splits: Mapping[str, datasets.Dataset],
    path: Path,
    partial: Path,
    origin: Origin,
    report: Report | None,
    overwrite: bool,
) -> Quality:
    files = _write_parquet(splits, partial, origin.types)
    contents = count_contents(splits, files, partial, origin, report)
    older = _read_noted(path)
    origin = replace(origin, written_on=_day_first_written(older, files) or origin.written_on)
    pages = [find_page(*pair) for pair in zip(origin.sources, origin.configs, strict=True)]
    template = (resources.folder("cards") / "template.md").read_text(encoding="utf-8")
    name = path.resolve().name
    for file, text in {
        "README.md": cards.card(template, pages, name, origin, contents, report),
        "LICENSE": notices.license_text(origin, contents.use),
        "ATTRIBUTION.md": notices.attribution(origin, contents),
        "croissant.json": croissant.croissant(pages, name, origin, contents),
        _MARKER: notices.provenance(origin, contents, report),
    }.items():
        (partial / file).write_text(text, encoding="utf-8")
    replacing.check(path, made_at(path), replacing.made(_read_noted(partial)), overwrite=overwrite)
    entries = report.entries() if report is not None else iter(())
    for name, listed in (
        (REJECTED, map(_drop_server_words, entries)),
        (LEFT_OUT, iter(origin.left_out)),
    ):
        resources.write_lines(partial / name, listed)
    return contents.quality


def _replace(path: Path, partial: Path, killed: Mapping[str, Any]) -> None:
    """Move a new release into the place of an older one, if there is one.

    Wherever this is killed, the one or the other can be loaded.
    """
    older, new = _read_noted(path), _read_noted(partial)
    before, now = _describe(older), _describe(new)
    if before not in (None, now):
        _log.info(f"{path}: replaces a release of {before} by one of {now}")
    if not (path / _MARKER).exists():  # a folder that is half filled is known to be ours
        shutil.copy(partial / _MARKER, path / _MARKER)
    for part in sorted((partial / "data").rglob("*.parquet")):
        _move(part, partial, path)
    _move(partial / "README.md", partial, path)
    _remove_rows(path, older, killed, keep=new["files"])
    for optional in _OPTIONAL:
        if not (partial / optional).exists():
            (path / optional).unlink(missing_ok=True)
    # The marker last: until then, the one in the partial folder says whose the new rows are.
    parts = [part for part in partial.rglob("*") if part.is_file()]
    for part in sorted(parts, key=lambda part: (part.name == _MARKER, part)):
        _move(part, partial, path)


def _move(part: Path, partial: Path, path: Path) -> None:
    target = path / part.relative_to(partial)
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)


def _remove_rows(
    path: Path, older: Mapping[str, Any], killed: Mapping[str, Any], keep: Mapping[str, Any]
) -> None:
    """Remove the rows of older releases, and nothing that somebody else put beside them."""
    found = sorted(part for part in (path / "data").rglob("*") if not part.is_dir())
    listed = older.get("files")
    others = []
    for file in found:
        name = file.relative_to(path).as_posix()
        if name in keep:
            continue
        is_older = name in listed if isinstance(listed, dict) else ROWS.fullmatch(name)
        if is_older or name in (killed.get("files") or ()):
            file.unlink()
            with contextlib.suppress(OSError):  # it isn't empty
                file.parent.rmdir()
        else:
            others.append(name)
    if others:
        _log.info(f"{path}: kept, as mminstruct did not write them: {', '.join(others)}")


def _drop_server_words(entry: Mapping[str, str]) -> dict[str, str]:
    """What gave no row, without the words of a server, which may name whatever it knows.

    The answer is the model's; it is left out where a release is passed on.
    """
    is_servers = entry["outcome"] == "failed" or entry["reason"] == "too_long"
    told = "as the server said, whose words stay out of a release"
    return {**entry, "detail": told} if is_servers else dict(entry)


def _write_parquet(
    splits: Mapping[str, datasets.Dataset], folder: Path, types: Sequence[str]
) -> tuple[DataFile, ...]:
    """The files of all rows, by type and then by split."""
    files: list[DataFile] = []
    for split, rows in splits.items():
        if lacking := [name for name in NEEDED_BY_RELEASES if name not in rows.column_names]:
            raise UsageError(
                f"split {split!r}: the column {lacking[0]!r} is missing, got "
                f"{', '.join(rows.column_names)}; keep the columns that mminstruct made"
            )
        _check_text_alone(split, rows.features.arrow_schema)
        by_type: dict[str, list[int]] = {}
        for index, kind in enumerate(rows["type"][:]):
            by_type.setdefault(kind, []).append(index)
        for kind in by_type:
            some = rows.select(by_type[kind])
            count = -(-len(some) // _ROWS_PER_FILE)
            (folder / "data" / kind).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                file = folder / "data" / kind / f"{split}-{number:05d}-of-{count:05d}.parquet"
                shard = some.shard(count, number, contiguous=True)
                with _join(shard, file.with_suffix(".arrow")) as joined:
                    num_bytes = joined.to_parquet(str(file), batch_size=_ROWS_PER_GROUP)
                sha256 = _digest(file)
                file = file.rename(file.with_stem(f"{file.stem}-{sha256[:16]}"))
                path = file.relative_to(folder).as_posix()
                size = file.stat().st_size
                files.append(DataFile(path, kind, split, len(shard), num_bytes, size, sha256))
    order = {kind: number for number, kind in enumerate(types)}
    return tuple(sorted(files, key=lambda file: order.get(file.type, len(order))))


@contextlib.contextmanager
def _join(rows: datasets.Dataset, path: Path) -> Iterator[datasets.Dataset]:
    """The rows with nothing left of the pieces in which they were made, which a file would show.

    They are in a file meanwhile, as they may be too many for the memory.
    """
    schema = rows.features.arrow_schema
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as to:
        for table in rows.with_format("arrow").iter(_ROWS_PER_GROUP):
            to.write_table(table.combine_chunks())
    yield datasets.Dataset.from_file(str(path), info=rows.info)
    path.unlink()


def _check_text_alone(split: str, schema: pa.Schema) -> None:
    """Raise UsageError for columns of images and the like, which have licences of their own."""
    for column in schema:
        if _has_binary(column.type):
            raise UsageError(
                f"split {split!r}: expected columns of text and numbers, got {column.name!r} with "
                "images or other files: a release only names images, as its licence is that of the "
                "text; remove the column or cast it back, and make a copy with images by "
                "'mminstruct export --images embed'"
            )


def _has_binary(kind: pa.DataType) -> bool:
    """Whether bytes are anywhere in it, as they are in `datasets.Image` and all its like."""
    inner = [kind.field(number).type for number in range(kind.num_fields)]
    return (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or any(map(_has_binary, inner))
    )


def _digest(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            content.update(chunk)
    return content.hexdigest()


def _read_noted(path: Path) -> dict[str, Any]:
    """What was noted of the release that is there; nothing if there is none."""
    try:
        noted = json.loads((path / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _describe(noted: Mapping[str, Any]) -> str | None:
    """How many rows a release has, what of and who wrote them; None if that isn't noted."""
    try:
        rows, sources = sum(noted["rows"].values()), ", ".join(noted["sources"])
        return f"{resources.count_of(rows, 'row')} of {sources} (model {noted['model']})"
    except (KeyError, TypeError, AttributeError):
        return None


def _day_first_written(older: Mapping[str, Any], files: Sequence[DataFile]) -> datetime.date | None:
    """The day on which the same rows were written there before, or None."""
    try:
        if older["files"].keys() == {file.path for file in files}:
            return datetime.date.fromisoformat(older["written_on"])
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # nothing is there, or something older than these fields
    return None
