"""Large JSON files with one long list of ``annotations``: opened in a zip or not, read in pieces.

A COCO file has up to half a gigabyte, and most of it is outlines that nobody asks for. The typed
decoder of msgspec steps over them, and gets the list in pieces of a megabyte, each of which goes
into columns at once: neither the file's bytes nor an object per annotation are ever all in memory.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypedDict, TypeVar

import msgspec
import xxhash

from mminstruct.errors import SourceError
from mminstruct.resources import keep, shown

_CHUNK_BYTES = 1 << 20
_LARGE_BYTES = 1 << 26
_CUT_WINDOW_BYTES = 1 << 16
_LONGEST_BORDER_BYTES = 1 << 10
_OPENING, _CLOSING = b"[]"
_ANNOTATIONS_START = re.compile(rb'"annotations"\s*:\s*\[')
_ANNOTATION_BORDER = re.compile(rb"\}\s*,\s*\{")


class AnnotationFile(msgspec.Struct, kw_only=True, gc=False):
    """What is declared of a file; subclasses say what an annotation is and add other keys."""

    annotations: list[Any]


class Columns(Protocol):
    """Where annotations are kept."""

    def add(self, annotations: list[Any]) -> None:
        """Keep some more, in the file's order."""
        ...


_File = TypeVar("_File", bound=AnnotationFile)
_Columns = TypeVar("_Columns", bound=Columns)


class Layout(Generic[_File, _Columns]):
    """How a kind of file is decoded: as a whole, in pieces, and into which columns."""

    def __init__(self, file_type: type[_File], columns_type: type[_Columns]) -> None:
        types = {field.name: field.type for field in msgspec.structs.fields(file_type)}
        some_keys: Any = TypedDict("_SomeKeys", types, total=False)  # type: ignore[misc]
        self.file_type = file_type
        self.columns_type = columns_type
        self.whole: msgspec.json.Decoder[_File] = msgspec.json.Decoder(file_type)
        self.some_keys: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(some_keys)
        self.annotations: msgspec.json.Decoder[list[Any]] = msgspec.json.Decoder(
            types["annotations"]
        )


def find(place: Path, name: str) -> Iterator[Path]:
    """The file of that name in a folder or a zip, if it is there, or the place itself if it is it.

    In a zip it is looked for under ``annotations/`` too, and its path goes through the zip's.
    """
    if not place.is_file():
        if (place / name).is_file():
            yield place / name
        return
    if place.name == name:
        yield place
        return
    if place.suffix.lower() != ".zip" and not zipfile.is_zipfile(place):
        return
    with _wrapped_errors(place), zipfile.ZipFile(place) as archive:
        members = set(archive.namelist())
    yield from (place / member for member in (f"annotations/{name}", name) if member in members)


def fingerprint(paths: dict[str, Path]) -> str:
    """Digest of the roles and bytes of files; the same whether they are in a zip or not.

    That of a large file is kept in the Hugging Face cache for as long as the file stays as it is.
    """
    whole = xxhash.xxh3_128()
    for role in sorted(paths):
        whole.update(f"{role} {_digest(paths[role])}\n".encode())
    return whole.hexdigest()


def _digest(path: Path) -> str:
    kept = _kept_digest(path)
    if kept is not None and kept.is_file():
        return kept.read_text(encoding="ascii")
    digest = xxhash.xxh3_128()
    with _opened(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    if kept is not None:
        keep(kept, digest.hexdigest())
    return digest.hexdigest()


def _kept_digest(path: Path) -> Path | None:
    """Where a large file's digest is kept: whatever changes the file changes this place."""
    from huggingface_hub.constants import HF_HOME

    with _wrapped_errors(path):
        archive = _archive_of(path)
        status = (archive or path).stat()
    if status.st_size < _LARGE_BYTES:
        return None
    member = path.relative_to(archive).as_posix() if archive else ""
    facts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    name = xxhash.xxh3_128_hexdigest(f"{facts} {member}".encode())
    return Path(HF_HOME) / "mminstruct" / "fingerprints" / name


def decode(path: Path, layout: Layout[_File, _Columns]) -> tuple[_File, _Columns]:
    """A file with an empty list of annotations, and these in columns.

    Raises:
        SourceError: it can't be read, is not JSON or has another structure.
    """
    with _opened(path) as file:
        decoded = _decode_in_pieces(file, layout)
    if decoded is not None:
        return decoded
    # An unusual order of the keys, or damage: decoded at once, it is read or its place is known.
    with _opened(path) as file:
        content = file.read()
    name = path.name
    try:
        whole = layout.whole.decode(content)
    except msgspec.ValidationError as error:
        raise SourceError(
            f"{name}: not the structure of a COCO {name.split('_')[0]} file: {error}. "
            "Fix that entry or download the file again."
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(
            f"{name}: {_json_damage(error, content)} expected. Download the file again and put it "
            f"at {shown(_archive_of(path) or path)}."
        ) from error
    columns = layout.columns_type()
    columns.add(whole.annotations)
    whole.annotations = []
    return whole, columns


def _decode_in_pieces(
    file: IO[bytes], layout: Layout[_File, _Columns]
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
        head = layout.some_keys.decode(buffer)
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
                    annotations = layout.annotations.decode(piece)
            except msgspec.DecodeError:
                # Most likely the list ends before the cut, and other keys follow.
                buffer[end] = between
                buffer += file.read()
                break
            columns.add(annotations)
            buffer[start] = _OPENING
            del buffer[:start]
        tail = layout.some_keys.decode(b'{"annotations":' + buffer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
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
    got = content[at : at + 8]
    if re.match(rb"(nan|inf(inity)?)\b", got, re.IGNORECASE):
        return f"a number that JSON doesn't have, got {got!r} at byte {at} against a finite number"
    return f"damaged JSON, got {got!r} at byte {at} against JSON"


def _archive_of(path: Path) -> Path | None:
    """The zip that a path goes through, or None."""
    return next((parent for parent in list(path.parents)[:2] if parent.is_file()), None)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A file, or the member of a zip if its path goes through one."""
    with _wrapped_errors(path):
        archive = _archive_of(path)
        if archive is None:
            with path.open("rb") as file:
                yield file
        else:
            member = path.relative_to(archive).as_posix()
            with zipfile.ZipFile(archive) as opened, opened.open(member) as file:
                yield file


@contextmanager
def _wrapped_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, KeyError) as error:
        raise SourceError(
            f"{path.name}: damaged zip, got '{error}' against a readable archive expected. "
            f"Download the archive again and put it at {shown(_archive_of(path) or path)}."
        ) from error
    except OSError as error:
        raise SourceError(
            f"{path.name}: can't be read, got '{error.strerror}' against a readable file expected. "
            "Check that it exists and its permissions."
        ) from error
