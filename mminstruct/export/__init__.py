"""Rows -> the files that trainers read, one `Format` each, with or without images.

Rows are read as a stream and written as they come, so memory doesn't grow with their number.
Everything is written beside its destination first and then moved: an interrupted run leaves what
was there. A row that a trainer could not use, because its image is missing or a turn is empty, is
left out, counted, and named with the reason in ``<output>.missing.jsonl``. What the exported rows
may be used for stands in ``<output>.LICENSE``, and of each row in its record.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets

from mminstruct import licenses, resources, sources
from mminstruct.errors import UsageError, did_you_mean, lacking
from mminstruct.export import checks, output, reading
from mminstruct.export.checks import check_folder_name, check_output, default_output, made_at
from mminstruct.export.formats import FILE_FORMATS, FORMATS, IMAGES, Format, Images, LeftOut, Row
from mminstruct.export.pictures import (
    Excluded,
    Pictures,
    Shipped,
    WantedImages,
    fetch_images,
    filter_by_license,
)
from mminstruct.export.reading import Terms
from mminstruct.licenses import Tally, Use
from mminstruct.releases import notices
from mminstruct.rows import replacing
from mminstruct.rows.report import LEFT_OUT, REJECTED, Report

if TYPE_CHECKING:
    from mminstruct.fetching.images import Fetching

__all__ = [
    "FILE_FORMATS",
    "FORMATS",
    "IMAGES",
    "Format",
    "Images",
    "Outcome",
    "Row",
    "Terms",
    "check_folder_name",
    "check_output",
    "default_output",
    "export",
    "made_at",
    "summary",
    "write",
    "write_rejected",
]


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
    outcome = _write(reading.read_rows(splits.items()), path, form, Pictures(), terms, made)
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
        fetching: how images are fetched; a terminal shows a bar meanwhile.
        overwrite: replace rows of another model, prompt config ..., or of more types or splits.

    Raises:
        UsageError: there is no such release, type, split, format or licence; an argument doesn't
            go with the others; the format can't hold such rows; commercial rows are asked for of
            a release whose text isn't free; no row would be left; or something else is there.
        RunStopped: images can't be reached. Those that were fetched are kept.
    """
    dataset = str(dataset)
    form = FORMATS.get(output_format)
    if form is None:
        raise UsageError(f"format {output_format!r}{did_you_mean(output_format, FORMATS)}")
    checks.check_images(output_format, images, image_folder, fetching)
    path = checks.resolve_name(output_path or default_output(dataset, output_format))
    checks.check_outside(path, dataset)
    check_output(path, output_format)
    allowed = image_licenses or (["commercial"] if images == "embed" else ["any"])
    is_shipped = images == "embed" or form.is_folder
    if licenses_file is not None and "any" in allowed and not is_shipped:
        raise UsageError(
            "licenses: of no use where images under any licence are asked for, and none go along; "
            "leave it out, or name some with image_licenses"
        )
    registry = licenses.load(licenses_file, sources.names())
    pictures = Pictures(images, filter_by_license(registry, allowed), commercial)
    if image_folder is not None:
        pictures.folder = Path(image_folder).expanduser()
    if images == "path" and not pictures.folder.is_dir():
        raise UsageError(
            f"image_folder {pictures.folder}: no such folder{lacking(pictures.folder)}"
        )
    streams = reading.open_streams(dataset, types, splits)
    pictures.features = reading.features_of(streams[0][1])
    terms = reading.read_terms(dataset, registry)
    if is_shipped:
        max_size = None if fetching is None else fetching.max_size
        pictures.shipped = Shipped(registry, terms.allows, max_size)
        terms = replace(terms, allows=pictures.shipped.allows)

    def read_rows() -> Iterator[tuple[str, Row]]:
        for split, row in reading.read_rows(streams):
            yield split, pictures.shipped.compose(row) if pictures.shipped else row

    if commercial and not terms.text:
        why = "may not be used commercially" if terms.text is False else "is not known to be free"
        raise UsageError(
            f"commercial: the text of {dataset} {why}, whatever its images, as its LICENSE says; "
            "leave commercial out, or generate with a model whose terms leave the text free "
            "(mminstruct license names some)"
        )
    made = reading.made_of(dataset, types, splits, [*allowed, *(["commercial rows"] * commercial)])
    if fetching is not None and fetching.max_size is not None:
        made = {**made, "max_size": fetching.max_size}
    replacing.check(path, made_at(path), made, overwrite=overwrite)
    if images != "embed":
        return _write(read_rows(), path, form, pictures, terms, made)
    from mminstruct.fetching.images import Fetching

    fetching = fetching or Fetching()
    folder = path.parent / "images" if image_folder is None else checks.resolve_name(image_folder)
    pictures.folder = folder
    if fetching.max_size is not None:
        pictures.folder = folder.with_name(f"{folder.name}-{fetching.max_size}px")
    with (
        tempfile.TemporaryDirectory() as scratch,
        WantedImages(Path(scratch) / "images") as wanted,
    ):
        pictures.wanted = wanted
        fetch_images(read_rows(), form, pictures, fetching)
        return _write(read_rows(), path, form, pictures, terms, made)


def _write(
    rows: Iterable[tuple[str, Row]],
    path: Path,
    form: Format,
    pictures: Pictures,
    terms: Terms,
    made: replacing.Made,
) -> Outcome:
    """Write rows, and name those left out.

    Raises:
        UsageError: all of them would be. What was there before is left as it was.
    """
    outcome, tally, shipped, lost = Outcome(path), Tally(), pictures.shipped, list[Path]()
    missing, credits = (path.with_name(f"{path.name}.{n}.jsonl") for n in ("missing", "credits"))
    to = output.open_shards if form.is_folder else output.open_file
    with (
        output.make_folder(output.target_of(path).parent),
        output.replace_file(missing) as reasons,
        output.replace_file(credits) as credited,
        to(path, form, pictures) as add,
    ):
        for split, row in rows:
            try:
                pictures.check(row, form)
                image = pictures.path(row, form, path)
                add(split, row, form.records(pictures.as_shown(row), image))
                outcome.rows += 1
                is_first = tally.add(row)
                if shipped is not None and row["modality"] == "image":
                    # Of an image that rows disagree about, all is told.
                    if not is_first and row["image_license"] in shipped.counts:
                        continue
                    credit = shipped.credit(row, form.file_name(row["image"]))
                    credited.write(output.encode_line(credit))
            except Excluded as excluded:
                outcome.excluded[str(excluded)] += 1
            except LeftOut as left_out:
                reason, *about = left_out.args
                lost = lost or about
                outcome.missing[reason] += 1
                named = {name: row[name] for name in ("id", "image", "image_url")}
                reasons.write(output.encode_line({**named, "reason": reason}))
        if not outcome.rows and (outcome.missing or outcome.excluded):
            example = f"; the first is {lost[0]}" if lost else ""
            raise UsageError(
                f"{path}: not written, as no row would be left; {summary(outcome)}{example}"
            )
        # Before the rows: these are never without it, which is how they are known to be ours.
        outcome.use = tally.use(terms.text, terms.allows)
        text = terms.license_text(outcome.use)
        if shipped is not None and shipped.counts:
            text = notices.add_images(text, list(shipped.parts()), credits.name)
        with output.replace_file(output.license_beside(path)) as file:
            file.write(text)
        with output.replace_file(output.note_beside(path)) as file:
            file.write(json.dumps(made, indent=2, ensure_ascii=False) + "\n")
    if not outcome.missing:
        missing.unlink()
    if shipped is None:
        credits.unlink()
    if form.entry is not None:
        entries = {
            **checks.read_dataset_info(path),
            path.stem: {"file_name": path.name, **form.entry},
        }
        with output.replace_file(path.with_name("dataset_info.json")) as file:
            file.write(json.dumps(entries, ensure_ascii=False, indent=2) + "\n")
    return outcome


def summary(outcome: Outcome) -> str:
    """Rows written and left out, in a line."""
    parts = [resources.count_of(outcome.rows, "row")]
    for counts, what in (
        (outcome.missing, "left out"),
        (outcome.excluded, "left out for their images' licences"),
    ):
        if counts:
            causes = ", ".join(f"{cause} {count}" for cause, count in counts.most_common(10))
            parts.append(f"{counts.total()} {what} ({causes})")
    return ", ".join(parts)
