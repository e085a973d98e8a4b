"""Parts of a release: what shards of a run made, kept until all of them are put together.

A part is a folder beside the release to be, such as ``NAME.parts/2-of-4``:

- ``part.json``: what it is a part of and which images are its own; unfinished until all is there
- ``origin.json``: how its rows came about, as the release will tell it
- ``made/0-train/``: rows of the first source and split, as `Dataset.save_to_disk` has them
- ``made/0-train.json``: what became of its requests; ``made/0-train.TYPE.jsonl`` what gave no row
- ``responses.sqlite``: the answers, if no other store was given
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import datasets
import fsspec
import msgspec
import pyarrow.compute as pc
from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from mminstruct.errors import UsageError, fault_of
from mminstruct.releases.origin import Origin
from mminstruct.resources import count_of, write_lines
from mminstruct.rows.report import Report
from mminstruct.splits import Shard

STORE = "responses.sqlite"
_NOTE, _ORIGIN, _MADE, _LOCK = "part.json", "origin.json", "made", "lock"
_FORMAT = 1


Plan = Mapping[str, Any]
"""What the rows of all parts depend on, by name, in words or as JSON has it."""


class Piece(msgspec.Struct, frozen=True):
    """What a part has of a split of a source.

    Attributes:
        source: its name.
        split: its name.
        types: instruction types, in their order.
        start: the first of the images (motions ...) that it is about, of all that the run is about.
        stop: the one after the last.
        total: how many the run is about.
    """

    source: str
    split: str
    types: tuple[str, ...]
    start: int
    stop: int
    total: int


class Part(msgspec.Struct, frozen=True):
    """What a part is a part of, and which.

    Attributes:
        plan: the same for all.
        shard: as it was asked for, ``2/4``.
        pieces: of all sources and splits, in the order of the release; some may be empty.
        finished: whether all that it says is there.
        files: of what was made, by path in the folder, with their sizes in bytes.
        format: version of the folder's form.
    """

    plan: Plan
    shard: str
    pieces: tuple[Piece, ...]
    finished: bool = False
    files: Mapping[str, int] = {}
    format: int = _FORMAT


Made = Sequence[tuple[datasets.Dataset | None, Report]]
"""The rows of each piece of a part, if there are any, and what became of its requests."""
Writer = Callable[[Origin, Made], None]


class Gathered(msgspec.Struct, frozen=True):
    """What parts are together.

    Attributes:
        rows: by split.
        origin: how they came about.
        report: what became of the requests.
        unfinished: shards that have requests without an answer, and more than refused ones.
        stores: the answers, by the folder's address.
    """

    rows: datasets.DatasetDict
    origin: Origin
    report: Report
    unfinished: tuple[str, ...]
    stores: Mapping[str, Path]


def find_place(release: Path, shard: Shard) -> Path:
    """The folder of a part of a release."""
    return release.with_name(f"{release.name}.parts") / f"{shard.index}-of-{shard.count}"


@contextmanager
def claim(folder: Path, part: Part, *, overwrite: bool) -> Iterator[Writer]:
    """Make a part alone; what writes it.

    Raises:
        UsageError: it is being made already; or one of another plan is there, or beside it one that
            has some of the same images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(folder / _LOCK, timeout=0).acquire()
    except Timeout as error:
        raise UsageError(
            f"part {folder}: another run is making it; wait for its end, or give another --shard"
        ) from error
    with held:
        try:
            beside = (f for f in sorted(folder.parent.iterdir()) if (f / _NOTE).is_file())
            there = {f: read(f, str(f)) for f in beside}
            if not overwrite:
                _check_beside(folder, part, there)
        except UsageError:
            with suppress(OSError):  # it stays with anything in it, or where a held lock can't go
                # Else a merge of all that is there would stumble over it.
                if not (folder / _NOTE).is_file():
                    (folder / _LOCK).unlink()
                    folder.rmdir()
            raise
        if there.get(folder) is None or find_difference(there[folder].plan, part.plan):
            _note(folder, part)
        yield partial(_write, folder, part)


def _check_beside(folder: Path, part: Part, there: Mapping[Path, Part]) -> None:
    for other, before in there.items():
        differs = find_difference(before.plan, part.plan)
        if other == folder and differs:
            raise UsageError(
                f"part {folder}: one of another run is there: {differs}; give another "
                "--output_path, or replace it with --overwrite"
            )
        for mine, others in zip(part.pieces, before.pieces, strict=False):
            both = range(max(mine.start, others.start), min(mine.stop, others.stop))
            if other != folder and not differs and both:
                raise UsageError(
                    f"part {folder}: {other.name} beside it has {len(both):,} of its "
                    f"{count_of(mine.stop - mine.start, 'image')} of {mine.source}, split "
                    f"{mine.split!r}, which would be asked about again; take the same number of "
                    "shards for all, or, to ask again, give --overwrite"
                )


def to_plan(values: Mapping[str, Any]) -> Plan:
    """The values as they are when they come back from a file."""
    plan: Plan = msgspec.json.decode(msgspec.json.encode(values))
    return plan


def find_difference(one: Plan, other: Plan) -> str | None:
    """The first thing in which two plans differ, in words, or None."""
    for name in {**one, **other}:
        if one.get(name) != other.get(name):
            return f"its {name} {_show(one.get(name))}, against {_show(other.get(name))}"
    return None


def _show(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _write(folder: Path, part: Part, origin: Origin, made: Made) -> None:
    _note(folder, part)
    shutil.rmtree(folder / _MADE, ignore_errors=True)
    (folder / _MADE).mkdir()
    for number, (piece, (rows, report)) in enumerate(zip(part.pieces, made, strict=True)):
        place = _place(folder, number, piece)
        if rows is not None:
            rows.save_to_disk(place)
        report.write(place.with_suffix(".json"))
        for kind in piece.types:
            entries = (entry for entry in report.entries() if entry["type"] == kind)
            write_lines(_lines(place, kind), entries)
    # Of what is known about licences, a release looks up those of images alone.
    registry = replace(origin.registry, models={}, repacks={})
    text = TypeAdapter(Origin).dump_json(replace(origin, registry=registry))
    (folder / _ORIGIN).write_bytes(text)
    _note(folder, msgspec.structs.replace(part, finished=True, files=_measure(folder)))


def _measure(folder: Path) -> dict[str, int]:
    """The bytes of each file that was made, by its path in the folder."""
    files = (folder / _ORIGIN, *(folder / _MADE).rglob("*"))
    return {f.relative_to(folder).as_posix(): f.stat().st_size for f in files if f.is_file()}


def _place(folder: Path, number: int, piece: Piece) -> Path:
    return folder / _MADE / f"{number}-{piece.split}"


def _lines(place: Path, kind: str) -> Path:
    return place.with_name(f"{place.name}.{kind}.jsonl")


def _note(folder: Path, part: Part) -> None:
    begun = folder / f"{_NOTE}.partial"
    begun.write_bytes(msgspec.json.encode(part))
    begun.replace(folder / _NOTE)


def read(folder: Path, address: str) -> Part:
    """What a part says of itself; an error names it by its address.

    Raises:
        UsageError: it is none, or one of another version.
    """
    try:
        part = msgspec.json.decode((folder / _NOTE).read_bytes(), type=Part)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"part {address}: expected the folder of a shard, got no {_NOTE} of one: {reason}; "
            "generate --shard writes NAME.parts/I-of-N"
        ) from error
    if part.format != _FORMAT:
        raise UsageError(
            f"part {address}: expected format {_FORMAT}, got {part.format}; merge with the version "
            "of mminstruct that made it"
        )
    return part


def fetch(folders: Iterable[str | Path]) -> dict[str, Path]:
    """Folders by their addresses: copies of those that aren't here, until this process ends.

    Args:
        folders: paths, or addresses and patterns of such as `fsspec` takes them:
            ``s3://bucket/NAME.parts/*-of-4``.

    Raises:
        UsageError: one can't be copied.
    """
    found: dict[str, Path] = {}
    for address in map(str, folders):
        if "://" not in address:
            found[str(Path(address))] = Path(address)
            continue
        place = Path(tempfile.mkdtemp(prefix="mminstruct-"))
        # Rows are read from there as they are wanted.
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        fault = fault_of(partial(_copy, address, place, found))
        if fault is not None:
            raise UsageError(
                f"part {address}: can't be copied from there: {type(fault).__name__}: {fault}; "
                "check the address and your access to it, or copy the folder to this machine and "
                "give its path"
            ) from fault
    return found


def _copy(address: str, place: Path, found: dict[str, Path]) -> None:
    """Copy the folders that an address or a pattern stands for, and add them to those found."""
    files, path = fsspec.url_to_fs(address)
    # `glob` and `isdir` take any fault for an empty place.
    names = files.expand_path(path)
    parts = [name for name in names if files.info(name)["type"] == "directory"]
    if not parts:
        raise NotADirectoryError("there is no such folder")
    for number, part in enumerate(parts):
        files.get(f"{part}/", f"{place / str(number)}/", recursive=True)
        found[files.unstrip_protocol(part)] = place / str(number)


def gather(folders: Mapping[str, Path]) -> Gathered:
    """What parts are together: what the run in one piece would have given, in its order.

    Args:
        folders: by their addresses, which errors name.

    Raises:
        UsageError: they are of different runs, are not finished, lack images or have some twice;
            or no answer about a source is there yet.
        NoRows: none of those about a source gave a row.
    """
    if not folders:
        raise UsageError("parts: expected the folders of all shards, got none")
    found = {address: read(folder, address) for address, folder in folders.items()}
    first = next(iter(found.values()))
    _check_alike(found, folders)
    splits: dict[str, list[datasets.Dataset]] = {}
    by_source: dict[str, Report] = {}
    whole = Report()
    may_ask: dict[str, set[str]] = {}
    for number, piece in enumerate(first.pieces):
        in_order = _sort(found, number)
        _check_covered(found, number, in_order)
        places = [_place(folders[address], number, piece) for address in in_order]
        counts = [Report.read(place.with_suffix(".json")) for place in places]
        lacking = [bool(told.failures.keys() - {"refused"}) for told in counts]
        may_ask.setdefault(piece.source, set()).update(
            found[address].shard for address in compress(in_order, lacking)
        )
        report = _add_up(places, counts, piece.types)
        by_source.setdefault(piece.source, Report()).add(report)
        whole.add(report)
        if rows := _read_rows(places, piece.types):
            splits.setdefault(piece.split, []).extend(rows)
    for source, told in by_source.items():
        if not told.rows.total():  # which ends the run in one piece, too
            shards = ", ".join(sorted(may_ask[source]))
            raise told.stop(
                told.explain_no_row(source),
                " The answers are in made/*.jsonl of the parts.",
                f"run again shard {shards} without --partial, and merge again",
            )
    return Gathered(
        datasets.DatasetDict({s: datasets.concatenate_datasets(p) for s, p in splits.items()}),
        TypeAdapter(Origin).validate_json((next(iter(folders.values())) / _ORIGIN).read_bytes()),
        whole,
        tuple(sorted(set().union(*may_ask.values()))),
        {a: store for a, folder in folders.items() if (store := folder / STORE).is_file()},
    )


def _sort(found: Mapping[str, Part], number: int) -> list[str]:
    """The parts in the order of what they have of a piece."""

    def place(address: str) -> tuple[int, int]:
        piece = found[address].pieces[number]
        return piece.start, piece.stop

    return sorted(found, key=place)


def _check_alike(found: Mapping[str, Part], folders: Mapping[str, Path]) -> None:
    if begun := [folder for folder, part in found.items() if not part.finished]:
        raise UsageError(f"parts that are not finished: {', '.join(begun)}; run their shards again")
    for folder, part in found.items():
        if lacking := part.files.items() - _measure(folders[folder]).items():
            raise UsageError(
                f"part {folder}: expected {len(part.files)} files as they were made, got "
                f"{len(lacking)} cut short or not at all, such as {min(lacking)[0]}; copy the part "
                f"again, or run shard {part.shard} again"
            )
    first, *others = found
    for folder in others:
        if differs := find_difference(found[folder].plan, found[first].plan):
            raise UsageError(
                f"part {folder}: expected one of the same run as {first}, got another: {differs}; "
                "leave out the one or the other"
            )


def _check_covered(found: Mapping[str, Part], number: int, in_order: Sequence[str]) -> None:
    """Raise UsageError if a piece has images in no part, or in two."""
    reached, before, lacking = 0, in_order[0], []
    for folder in in_order:
        piece = found[folder].pieces[number]
        where = f"{piece.source}, split {piece.split!r}"
        if piece.start < min(reached, piece.stop):
            raise UsageError(
                f"parts {before} and {folder} both have images {piece.start} to "
                f"{min(reached, piece.stop)} of {where}; leave out one of them"
            )
        if piece.start > reached:
            lacking.append(f"{reached} to {piece.start}")
        if piece.stop > reached:
            reached, before = piece.stop, folder
    if reached < piece.total:
        lacking.append(f"{reached} to {piece.total}")
    if lacking:
        raise UsageError(
            f"parts of {where}: images {', '.join(lacking)} of {piece.total} are in none of them"
            f"{_name_missing(found.values())}; merge them all"
        )


def _name_missing(parts: Collection[Part]) -> str:
    """Which shards lack, if all others are of the same number."""
    shards = [Shard.of(part.shard) for part in parts]
    all_of_them = {Shard(index, shards[0].count) for index in range(shards[0].count)}
    lacking = sorted(all_of_them.difference(shards)) if all_of_them.issuperset(shards) else []
    return f": shard {', '.join(map(str, lacking))} lacks" if lacking else ""


def _add_up(places: Sequence[Path], counts: Sequence[Report], types: Sequence[str]) -> Report:
    """The sum of reports, in the order of types as one run would have met them."""
    whole = Report()
    for told in counts:
        whole.add(told)
    counted: tuple[dict[str, Any], ...] = (whole.rows, whole.rejected, whole.failed)
    for by_type in counted:
        in_order = {kind: by_type[kind] for kind in types if kind in by_type}
        by_type.clear()
        by_type.update(in_order)
    lines = (_lines(place, kind) for kind in types for place in places)
    whole.files = [file for file in lines if file.is_file()]
    return whole


def _read_rows(places: Sequence[Path], types: Sequence[str]) -> list[datasets.Dataset]:
    """The rows of each type, one after the other as the run in one piece has them."""
    by_type: dict[str, list[datasets.Dataset]] = {kind: [] for kind in types}
    for place in places:
        if not place.is_dir():
            continue
        rows, start = datasets.load_from_disk(str(place)), 0
        for kind in pc.value_counts(rows.data.column("type")).to_pylist():
            stop = start + kind["counts"]
            by_type[kind["values"]].append(rows.select(range(start, stop)))
            start = stop
    return [some for kind in types for some in by_type[kind]]
