"""What an export may write, and where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mminstruct import resources
from mminstruct.errors import UsageError
from mminstruct.rows import replacing

if TYPE_CHECKING:
    from mminstruct.fetching.images import Fetching
from mminstruct.export.formats import FILE_FORMATS, FORMATS
from mminstruct.export.output import PARTIAL, SHARD, license_beside, note_beside, target_of

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
        if any(name != PARTIAL and not SHARD.fullmatch(name) for name in found):
            raise UsageError(
                f"output path {path}: the folder holds something else than shards; "
                "give another one with --output_path"
            )
        if found - {PARTIAL}:
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
    resources.check_writable(target_of(path).parent, path)
    if form.entry is not None:
        if path.suffix != ".json":
            raise UsageError(
                f"output path {path}: {form.reader} tells the form by the file's ending, "
                f"got {path.suffix!r} against '.json' expected"
            )
        _check_entry(path)


def default_output(release: str, output_format: str) -> Path:
    """Where a release goes in a format unless told: a name that has both."""
    form, name = FORMATS[output_format], resolve_name(release).name
    if form.is_folder:
        return Path(f"{name}-{output_format}")
    return Path(f"{name}.{output_format}".removesuffix(form.suffix) + form.suffix)


def made_at(path: Path) -> replacing.Made | None:
    """How what is there was made, as noted beside it; None if nothing is there."""
    inside = (child.name != PARTIAL for child in path.iterdir()) if path.is_dir() else ()
    if not any(inside) and not (path.is_file() and path.stat().st_size):
        return None
    try:
        noted = json.loads(note_beside(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _check_ours(path: Path) -> None:
    """Raise UsageError for what no export wrote: it has no licence beside it."""
    if not license_beside(path).is_file():
        raise UsageError(
            f"output path {path}: what is there was not written by mminstruct, as it has no "
            f"{license_beside(path).name} beside it; move it away or give another path with "
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


def check_outside(path: Path, dataset: str) -> None:
    """Raise UsageError for an output inside the release itself, whose files it could replace."""
    folder = Path(dataset).resolve()
    if Path(dataset).is_dir() and folder in (path.resolve(), *path.resolve().parents):
        raise UsageError(
            f"output path {path}: it is inside the release {dataset}, whose own files stand "
            "there; give a path outside of it with --output_path"
        )


def check_images(
    output_format: str,
    images: str,
    image_folder: str | Path | None,
    fetching: Fetching | None,
) -> None:
    """Raise UsageError if a form can't have its images in this way."""
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


def read_dataset_info(path: Path) -> dict[str, Any]:
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
    entry = read_dataset_info(path).get(path.stem)
    named = entry.get("file_name") if isinstance(entry, dict) else None
    if entry is not None and named != path.name:
        raise UsageError(
            f"output path {path}: {path.with_name('dataset_info.json')} has another dataset "
            f"{path.stem!r} ({named or entry!r:.60}); give a file of another name with "
            "--output_path"
        )


def resolve_name(path: str | Path) -> Path:
    """The path with a name at its end, beside which others can stand; ``.`` has none."""
    path = Path(path).expanduser()
    return path.resolve() if path.name in ("", "..") else path
