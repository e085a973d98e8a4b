"""What is in the rows of a release, counted once while they are written."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mminstruct.errors import UsageError
from mminstruct.licenses import Registry, Tally
from mminstruct.releases.origin import Contents, DataFile, Origin
from mminstruct.reports.quality import Judged, Meter, Quality
from mminstruct.reports.rows import to_row
from mminstruct.rows import columns
from mminstruct.rows.report import Report

CREDITS = "image_credits.parquet"
"""Where images that have to be credited are listed if they are many."""
LISTED_CREDITS = 1000
"""As many are named in ATTRIBUTION.md, of more none."""
_CREDIT_SCHEMA = pa.schema([(name, pa.string()) for name in columns.CREDITS])


def count_contents(
    splits: Mapping[str, datasets.Dataset],
    files: tuple[DataFile, ...],
    folder: Path,
    origin: Origin,
    report: Report | None = None,
) -> Contents:
    """What the rows are, in one pass over them; credits beyond a list's length go to a file.

    Of each row and image no more than a digest is held.

    Raises:
        UsageError: a split has a row twice.
    """
    hashes = array("Q")
    tally = Tally()
    truncated: Counter[str] = Counter()
    generation: dict[str, dict[str, None]] = {name: {} for name in columns.OF_RUN}
    examples: dict[str, dict[str, Any]] = {}
    credits, meter = _Credits(folder / CREDITS), Meter()
    for split, row in _iterate(splits):
        hashes.append(_hash(split, row))
        kind, made = row["type"], row["provenance"]
        truncated[kind] += "truncated" in made["notes"]
        for name, values in generation.items():
            if made[name] is not None:
                values[str(made[name])] = None
        examples.setdefault(kind, row)
        _measure(meter, row)
        if tally.add(row) and _asks_for_credit(origin.registry, row["image_license"]):
            credits.add(row)
    credits.close()
    _check_once(splits, hashes)
    return Contents(
        features=next(iter(splits.values())).features,
        files=files,
        media={name: (count, rows) for name, (count, rows) in tally.media.items()},
        use=tally.use(origin.verdict.commercial, origin.registry.allows),
        truncated=truncated,
        generation={name: tuple(values) for name, values in generation.items() if values},
        examples=examples,
        quality=meter.read(report.rejected if report else {}),
        credits=tuple(credits.listed),
        credit_count=credits.count,
        credits_file=CREDITS if credits.count > len(credits.listed) else None,
    )


def measure(splits: Mapping[str, datasets.Dataset], report: Report) -> Quality:
    """What rows are like that aren't written as a release."""
    meter = Meter()
    for _, row in _iterate(splits):
        _measure(meter, row)
    return meter.read(report.rejected)


def _measure(meter: Meter, columns: Mapping[str, Any]) -> None:
    row = to_row(columns)
    if row is not None:
        meter.add(Judged.of(row))


def _iterate(splits: Mapping[str, datasets.Dataset]) -> Iterator[tuple[str, dict[str, Any]]]:
    for split, rows in splits.items():
        told = {"checks"}.intersection(rows.column_names)  # older rows have none
        needed = rows.select_columns([*columns.NEEDED_BY_RELEASES, *told])
        for batch in needed.with_format("arrow").iter(1000):
            yield from ((split, row) for row in batch.to_pylist())


def _hash(split: str, row: Mapping[str, Any]) -> int:
    """64 bits of what makes a row another one; models may write about the same image."""
    own = repr((split, row["id"], row["messages"])).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(own, digest_size=8).digest(), "little")


def _check_once(splits: Mapping[str, datasets.Dataset], hashes: array[int]) -> None:
    """Raise UsageError if a row is there twice."""
    found, counts = np.unique(np.frombuffer(hashes, np.uint64), return_counts=True)
    again = set(found[counts > 1].tolist())
    for split, row in _iterate(splits) if again else ():
        if _hash(split, row) in again:
            raise UsageError(
                f"split {split!r}: expected each row once, got {row['id']!r} with the same text "
                "again; leave one of them out"
            )


def _asks_for_credit(registry: Registry, license: str | None) -> bool:
    """Whether images under that licence have to be credited; where it isn't known, maybe."""
    entry = registry.license(license)
    return entry is None or any(duty.kind == "attribution" for duty in entry.obligations)


class _Credits:
    """Images to credit: a list of the first, and a file as soon as there are more."""

    def __init__(self, path: Path) -> None:
        self.count = 0
        self.listed: list[dict[str, str | None]] = []
        self._path = path
        self._writer: pq.ParquetWriter | None = None

    def add(self, row: Mapping[str, Any]) -> None:
        """Credit the image of a row."""
        if len(self.listed) == LISTED_CREDITS:
            self._write()
        credit = {
            f"image_credit.{name}": text for name, text in (row["image_credit"] or {}).items()
        }
        facts = {**row, **credit}
        self.listed.append({name: facts.get(place) for name, place in columns.CREDITS.items()})
        self.count += 1

    def close(self) -> None:
        """Finish the file, if there is one."""
        if self._writer is not None:
            self._write()
            self._writer.close()

    def _write(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, _CREDIT_SCHEMA)
        self._writer.write_table(pa.Table.from_pylist(self.listed, _CREDIT_SCHEMA))
        self.listed = []
