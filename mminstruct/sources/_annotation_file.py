"""Large JSON files with one long list of ``annotations``: opened in a zip or not, read in pieces.

A COCO file has up to half a gigabyte, and most of it is outlines that nobody asks for. The typed
decoder of msgspec steps over them, and gets the list in pieces of a megabyte, each of which goes
into columns at once: neither the file's bytes nor an object per annotation are ever all in memory.
"""

from __future__ import annotations

import codecs
import gzip
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeAlias, TypedDict, TypeVar, cast

import msgspec
import xxhash

from mminstruct.errors import SourceError
from mminstruct.resources import keep, shown
from mminstruct.sources._base import Files, ReadReport
from mminstruct.sources._tolerance import (
    OWN_DATA,
    Numbers,
    kind_of,
    loads,
    tidy,
)
from mminstruct.sources._unpacked import bound_unpacking

_CHUNK_BYTES = 1 << 20
_LARGE_BYTES = 1 << 26
_CUT_WINDOW_BYTES = 1 << 16
_LONGEST_BORDER_BYTES = 1 << 10
_OPENING, _CLOSING = b"[]"
# Of a zip (RuntimeError: encrypted) and a gzip.
_DAMAGED = (
    *(zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError),
    *(NotImplementedError, RuntimeError, KeyError),
)
# What a folder has is shown by these.
_SUFFIXES = {".json", ".jsonl", ".csv", ".txt", ".gz", ".zip", ".xml", ".tsv", ".parquet"}
_NAMED, _LOOKED_AT = 8, 10_000
_UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError)
PART = re.compile(r"(.+)-(\d{5})-of-(00\d{3})(\..+)")
"""The name of a part of a file, ``name-00000-of-00010.jsonl``: stem, number, how many, suffixes."""
_ANNOTATIONS_START = re.compile(rb'"annotations"\s*:\s*\[')
_ANNOTATION_BORDER = re.compile(rb"\}\s*,\s*\{")


class AnnotationFile(msgspec.Struct, kw_only=True, gc=False):
    """What is declared of a file; subclasses say what an annotation is and add other keys."""

    annotations: list[Any]
    info: Any = None


class Columns(Protocol):
    """Where annotations are kept, in the file's order."""

    def add(self, annotations: list[Any]) -> None: ...


_File = TypeVar("_File", bound=AnnotationFile)
_Columns = TypeVar("_Columns", bound=Columns)
_Bytes: TypeAlias = bytes | bytearray | memoryview


class Layout(Generic[_File, _Columns]):
    """How a kind of file is decoded, and into which columns.

    Attributes:
        noun: what an annotation is, in a word.
        own: a field that each of them has.
        other: one that annotations of another kind have, which may lie among them.
    """

    def __init__(
        self, file_type: type[_File], columns_type: type[_Columns], noun: str, own: str, other: str
    ) -> None:
        fields = msgspec.structs.fields(file_type)
        self.types = {field.name: field.type for field in fields}
        self.required = {field.name for field in fields if field.required}
        some_keys: Any = TypedDict("_SomeKeys", self.types, total=False)  # type: ignore[misc]  # its name and fields are known at run time alone
        self.file_type = file_type
        self.columns_type = columns_type
        self.noun, self.own, self.other = noun, own, other
        keys: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(some_keys)
        self.keys: Callable[[_Bytes], dict[str, Any]] = keys.decode
        self.annotations: Callable[[_Bytes], list[Any]] = msgspec.json.Decoder(
            self.types["annotations"]
        ).decode


class _Tolerant:
    """The same, of what is written in another way; what can't be read is left out and counted."""

    def __init__(self, layout: Layout[Any, Any], ids: Numbers | None) -> None:
        self.layout = layout
        self.ids = ids
        self.report = ReadReport()
        self.first: Any = None  # annotation

    def keys(self, data: _Bytes) -> dict[str, Any]:
        return self.tidy(loads(data))

    def annotations(self, data: _Bytes) -> list[Any]:
        found: list[Any] = self.tidy({"annotations": loads(data)})["annotations"]
        return found

    def tidy(self, document: Any) -> dict[str, Any]:
        """The keys that matter, each with its list of entries."""
        layout, found = self.layout, {}
        for key in document.keys() & layout.types.keys():
            if key == "info":
                found[key] = document[key]
                continue
            (entry_type,) = layout.types[key].__args__
            is_main, entries = key == "annotations", document[key] or []
            noun = layout.noun if is_main else _NOUNS[key]
            if self.ids is not None and isinstance(entries, list):
                entries = [self.ids.replace(entry, _IDS[key]) for entry in entries]
            found[key] = tidy(
                entries,
                entry_type,
                noun,
                self.report,
                other=layout.other if is_main else "",
                harmless=noun == "licence",
            )
            if is_main and entries and self.first is None:
                self.first = entries[0]
            self.report.kept[noun] = self.report.kept.get(noun, 0) + len(found[key])
        return found


_NOUNS = {"images": "image", "categories": "category", "licenses": "licence"}
_IDS = {
    "images": ("id", "license"),
    "annotations": ("image_id", "category_id"),
    "categories": ("id",),
    "licenses": ("id",),
}


def folders(places: Iterable[Path], *known: str) -> list[Path]:
    """Each place and the folders in it, those of known names first; of a file, itself."""
    found = []
    for place in places:
        found.append(place)
        if place.is_dir():
            first = [place / name for name in known]
            found += [*first, *sorted(p for p in place.iterdir() if p.is_dir() and p not in first)]
    return found


def find_first(places: Iterable[Path], *names: str) -> Path | None:
    """The first file of one of these names, or packed as ``.gz``, in folders and zips, or None.

    In a zip it may lie in any folder, and its path goes through the zip's; a place may be the file.
    """
    for place in places:
        for name in names:
            both = (name, f"{name}.gz")
            found = _find(place, both.__contains__, (place / one for one in both))
            if (path := next(found, None)) is not None:
                return path
    return None


def find_parts(place: Path, name: str) -> Iterator[Path]:
    """The parts of a file of that name that are there, as `PART` says, like `find_first`."""

    def is_part(file_name: str) -> bool:
        part = PART.fullmatch(file_name)
        return part is not None and part[1] + part[4] in (name, f"{name}.gz")

    near = place.glob(f"{name.partition('.')[0]}-*")
    return _find(place, is_part, (path for path in near if is_part(path.name)))


def _find(place: Path, is_wanted: Callable[[str], bool], near: Iterable[Path]) -> Iterator[Path]:
    """The wanted file that a place is, the wanted members of it, or the files in a folder."""
    if not place.is_file():
        yield from filter(Path.is_file, near)
    elif is_wanted(place.name):
        yield place
    elif place.suffix.lower() == ".zip" or zipfile.is_zipfile(place):
        with wrap_errors(place), zipfile.ZipFile(place) as archive:
            members = [m for m in archive.namelist() if is_wanted(m.rpartition("/")[2])]
        # The published folder first; "__MACOSX/._name" has another name.
        members.sort(key=lambda m: (m.rpartition("/")[0] != "annotations", m))
        yield from (place / m for m in members)


def not_found(
    name: str, places: Iterable[Path], wanted: Iterable[str], splits: Iterable[str]
) -> SourceError:
    """The error about places that were given and don't have the wanted files of a source's split.

    The splits are there instead.
    """
    instead = "".join(f"The split {split!r} is there (--splits {split}). " for split in splits)
    return SourceError(
        f"{name}: {'; '.join(f'{shown(place)} {_content(place)}' for place in places)}, against "
        f"{', '.join(wanted)} expected there or one folder deeper, as they are or as .gz. Where a "
        "place is given (--dataset_storage_path, data_dir), nothing is downloaded: give the folder "
        f"that has them, or none for the published ones. {instead}{OWN_DATA}"
    )


def _content(place: Path) -> str:
    if place.is_file():
        return "is another file"
    if not place.is_dir():
        return "isn't there"
    # There may be a million of images beside them.
    near = chain.from_iterable(place.glob(pattern) for pattern in ("*", "*/*", "*/*/*"))
    found = (p for p in islice(near, _LOOKED_AT) if p.suffix.lower() in _SUFFIXES)
    names = sorted(path.relative_to(place).as_posix() for path in islice(found, _NAMED))
    return f"has {', '.join(names)}" if names else "has no annotation files"


def fingerprint(paths: dict[str, Path]) -> str:
    """Digest of the roles and bytes of files; the same whether they are in a zip or not.

    That of a large file is kept in the Hugging Face cache for as long as the file stays as it is.
    """
    whole = xxhash.xxh3_128()
    for role in sorted(paths):
        whole.update(f"{role} {_digest(paths[role])}\n".encode())
    return whole.hexdigest()


def files_of(paths: dict[str, Path]) -> Files | None:
    """Files that were found, or None if none were."""
    return Files(paths, fingerprint(paths)) if paths else None


def _digest(path: Path) -> str:
    from huggingface_hub.constants import HF_HOME

    with wrap_errors(path):
        archive = _archive_of(path)
        status = (archive or path).stat()
    # Whatever changes a file changes the place where its digest is kept.
    member = path.relative_to(archive).as_posix() if archive else ""
    facts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    name = xxhash.xxh3_128_hexdigest(f"{facts} {member}".encode())
    kept = Path(HF_HOME) / "mminstruct" / "fingerprints" / name
    is_large = status.st_size >= _LARGE_BYTES
    if is_large and kept.is_file():
        return kept.read_text(encoding="ascii")
    digest = xxhash.xxh3_128()
    with _unpack(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    if is_large:
        keep(kept, digest.hexdigest())
    return digest.hexdigest()


def decode(
    path: Path, layout: Layout[_File, _Columns], report: ReadReport, ids: Numbers | None = None
) -> tuple[_File, _Columns]:
    """A file with an empty list of annotations, and these in columns.

    Args:
        path: the file.
        layout: what it has to be.
        report: counts what is left out.
        ids: gets those that are no numbers; None is that there may be none.

    Raises:
        SourceError: it can't be read, is not JSON, has another structure, or most of its entries
            can't be read.
    """
    tolerant = _Tolerant(layout, ids)
    for way in (layout, tolerant):
        with open_text(path) as file:
            decoded = _decode_in_pieces(file, way, layout)
        if decoded is not None:
            break
    else:
        # An unusual order of the keys, or damage: decoded at once, it is read or its place known.
        tolerant = _Tolerant(layout, ids)
        decoded = _decode_whole(path, layout, tolerant)
    file_of, columns = decoded
    if tolerant.report.skipped:
        none_left = not tolerant.report.kept[layout.noun]
        if none_left and isinstance(tolerant.first, dict) and layout.own not in tolerant.first:
            raise _mistake(path, kind_of({"annotations": [tolerant.first]}), layout)
        tolerant.report.check(path.name)
        report.add(tolerant.report)
    return file_of, columns


def _decode_whole(
    path: Path, layout: Layout[_File, _Columns], tolerant: _Tolerant
) -> tuple[_File, _Columns]:
    with open_text(path) as file:
        content = file.read()
    document = _document(path, content)
    if not isinstance(document, dict) or not layout.required <= document.keys():
        raise _mistake(path, kind_of(document), layout)
    try:
        whole = layout.file_type(**tolerant.tidy(document))
    except ValueError as error:
        raise SourceError(f"{path.name}: {error}. Fix it or download the file again.") from error
    columns = layout.columns_type()
    columns.add(whole.annotations)
    whole.annotations = []
    return whole, columns


def _document(path: Path, content: bytes) -> Any:
    try:
        return loads(content)
    except UnicodeDecodeError as error:
        raise _not_utf8(path.name, error) from error
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"{path.name}: {_json_damage(error, content)} expected. Fix it, or download "
            f"the file again and put it at {shown(_archive_of(path) or path)}."
        ) from error


def _mistake(path: Path, got: str, layout: Layout[Any, Any]) -> SourceError:
    return SourceError(
        f"{path.name}: got {got} against an object with the keys "
        f"{', '.join(sorted(layout.required))} and a {layout.own} in each of the "
        "annotations expected. Give the file that has them."
    )


def _decode_in_pieces(
    file: IO[bytes],
    way: Layout[_File, _Columns] | _Tolerant,
    layout: Layout[_File, _Columns],
) -> tuple[_File, _Columns] | None:
    """The same without ever holding all bytes, or None if the file doesn't come apart.

    It is cut behind ``"annotations": [`` and then wherever ``}, {`` looks like the border of two
    annotations. Where that is inside a string or a nested object, the piece before it has an open
    quote or bracket and is not valid JSON: if all pieces decode, all cuts were right.
    """
    buffer = bytearray()
    if (bracket := _read_up_to_annotations(file, buffer)) is None:
        return None
    columns = layout.columns_type()
    try:
        # The keys before the annotations, as if there were none of them.
        rest = buffer[bracket:]
        buffer[bracket:] = b"[]}"
        head = way.keys(buffer)
        if head.pop("annotations", None) is None:
            return None
        buffer = rest
        while chunk := file.read(_CHUNK_BYTES):
            buffer += chunk
            if (cut := _last_cut(buffer, len(chunk))) is None:
                continue
            # The characters between two annotations become the brackets that a list needs.
            end, start, between = cut.start() + 1, cut.end() - 2, buffer[cut.start() + 1]
            buffer[end] = _CLOSING
            try:
                with memoryview(buffer) as view, view[: end + 1] as piece:
                    annotations = way.annotations(piece)
            except _UNREADABLE:
                # Most likely the list ends before the cut, and other keys follow.
                buffer[end] = between
                buffer += file.read()
                break
            columns.add(annotations)
            buffer[start] = _OPENING
            del buffer[:start]
        tail = way.keys(b'{"annotations":' + buffer)
    except (*_UNREADABLE, AttributeError):
        return None
    columns.add(tail.pop("annotations"))
    if head.keys() & tail.keys():
        return None
    try:
        return layout.file_type(annotations=[], **head, **tail), columns
    except TypeError:
        return None


def _read_up_to_annotations(file: IO[bytes], buffer: bytearray) -> int | None:
    """Where the list of annotations opens; the buffer is filled up to there or a bit further."""
    searched = 0
    while (key := _ANNOTATIONS_START.search(buffer, searched)) is None:
        searched = max(0, len(buffer) - _LONGEST_BORDER_BYTES)
        if not (chunk := file.read(_CHUNK_BYTES)):
            return None
        buffer += chunk
    return key.end() - 1


def _last_cut(buffer: bytearray, new_bytes: int) -> re.Match[bytes] | None:
    """The last place among the new bytes that looks like the border of two annotations."""
    for window in (_CUT_WINDOW_BYTES, new_bytes + _LONGEST_BORDER_BYTES):
        *_, last = None, *_ANNOTATION_BORDER.finditer(buffer, max(0, len(buffer) - window))
        if last is not None:
            return last
    return None


def _json_damage(error: Exception, content: bytes) -> str:
    text = str(error)
    if "truncated" in text:
        return f"the JSON ends early, got {len(content)} bytes against a closing bracket at the end"
    if (position := re.search(r"\(byte (\d+)\)", text)) is None:
        return f"damaged JSON, got '{text}' against JSON in UTF-8"
    at = int(position[1])
    return f"damaged JSON, got {content[at : at + 8]!r} at byte {at} against JSON"


def _archive_of(path: Path) -> Path | None:
    """The zip that a path goes through, or None."""
    return next((parent for parent in list(path.parents)[:8] if parent.is_file()), None)


@contextmanager
def open_text(path: Path) -> Iterator[IO[bytes]]:
    """A text file, unpacked, behind the mark that some editors put before the text.

    Raises:
        SourceError: it can't be read, or is in UTF-16 or UTF-32.
    """
    with _unpack(path) as file:
        head = cast(Any, file).peek(4)[:4]
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in head:
            raise SourceError(
                f"{path.name}: got {head!r} at its start, which is UTF-16 or UTF-32, against UTF-8 "
                "expected. Save it as UTF-8, or convert it: iconv -f UTF-16 -t UTF-8."
            )
        if head.startswith(codecs.BOM_UTF8):
            file.read(len(codecs.BOM_UTF8))
        yield file


def text_of(path: Path) -> str:
    """All of a text file.

    Raises:
        SourceError: it can't be read, or is in another encoding than UTF-8.
    """
    with open_text(path) as file:
        try:
            return file.read().decode()
        except UnicodeDecodeError as error:
            raise _not_utf8(path.name, error) from error


def reader(place: Path) -> Callable[[str], bytes | None]:
    """A file's name -> its bytes, from a folder or a zip of small files; None if it isn't there."""
    if place.is_dir():

        def from_folder(name: str) -> bytes | None:
            with wrap_errors(place / name):
                return (place / name).read_bytes() if (place / name).is_file() else None

        return from_folder
    with wrap_errors(place):
        archive = zipfile.ZipFile(place)
    members = {member.rpartition("/")[2]: member for member in archive.namelist()}

    def from_zip(name: str) -> bytes | None:
        with wrap_errors(place):
            return archive.read(members[name]) if name in members else None

    return from_zip


def _not_utf8(name: str, error: UnicodeDecodeError) -> SourceError:
    """The error about a text in another encoding."""
    got = error.object[error.start : error.start + 1]
    return SourceError(
        f"{name}: got {got!r} at byte {error.start}, which is Latin-1 or Windows-1252 perhaps, "
        "against UTF-8 expected. Save it as UTF-8, or convert it: iconv -f CP1252 -t UTF-8."
    )


@contextmanager
def _unpack(path: Path) -> Iterator[IO[bytes]]:
    """A file or what a .gz packs, or the member of a zip if its path goes through one."""
    with wrap_errors(path):
        archive = _archive_of(path)
        is_packed = path.suffix.lower() == ".gz"
        if archive is not None:
            member = path.relative_to(archive).as_posix()
            with zipfile.ZipFile(archive) as whole, whole.open(member) as file:
                inner = cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if is_packed else file
                yield bound_unpacking(inner, whole.getinfo(member).compress_size, path.name)
        elif is_packed:
            with gzip.open(path) as packed:
                yield bound_unpacking(cast("IO[bytes]", packed), path.stat().st_size, path.name)
        else:
            with path.open("rb") as file:
                yield file


@contextmanager
def wrap_errors(path: Path) -> Iterator[None]:
    """Raise SourceError for what goes wrong while a file is read."""
    try:
        yield
    except _DAMAGED as error:
        kind = "gzip" if path.suffix.lower() == ".gz" else "zip"
        raise SourceError(
            f"{path.name}: damaged {kind}, got '{error}' against a readable archive expected. "
            f"Download the archive again and put it at {shown(_archive_of(path) or path)}."
        ) from error
    except OSError as error:
        raise SourceError(
            f"{path.name}: can't be read, got '{error.strerror}' against a readable file expected. "
            "Check that it exists and its permissions."
        ) from error
