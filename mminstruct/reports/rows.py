"""Rows of releases and of data sets made elsewhere, in one form.

**Source:** the forms are those of `mminstruct.export`: ``conversations`` of ``from`` and ``value``
as LLaVA and ShareGPT have them, ``messages`` of ``role`` and ``content``, a text or parts of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.json import decode

from mminstruct.benchmarks import image_key
from mminstruct.checks import Finding
from mminstruct.datafiles import SUFFIXES, as_usage_errors, list_files, read_file
from mminstruct.errors import UsageError
from mminstruct.schema import Turn

_TURNS = {"messages": ("role", "content"), "conversations": ("from", "value")}
_ASKS, _ANSWERS = {"user", "human"}, {"assistant", "gpt", "model"}
_IMAGE_MARK = re.compile(r"\s*<image>\s*")


class _Noted(Struct):
    rejected: dict[str, dict[str, int]] | None = None


class Row(NamedTuple):
    """A row, whoever wrote it.

    Attributes:
        id: or nothing.
        type: of instruction, or nothing.
        source: whose annotations, or nothing.
        image_id: or nothing.
        image: the file of the image (motion ...), or its address, or nothing.
        turns: questions and answers; what has no question before it has an empty one.
        checks: what the checks of the run found, or None.
        image_license: or None.
        columns: all that was read of it.
    """

    id: str
    type: str
    source: str
    image_id: str
    image: str
    turns: tuple[Turn, ...]
    checks: tuple[Finding, ...] | None
    image_license: str | None
    columns: Mapping[str, Any]

    @property
    def keys(self) -> list[str]:
        """What its image may be found by, as `image_key` has it, the surest first."""
        return [image_key(name) for name in (self.image, self.image_id) if name]


def read_rows(
    path: Path, is_wanted: Callable[[list[str]], bool] = lambda names: True
) -> Iterator[Row]:
    """The rows of a release's folder, or of files made elsewhere, one by one.

    Args:
        path: of a file, or a folder with such.
        is_wanted: which columns are read, as in `read_file`.

    Raises:
        UsageError: there is no such row in it, or it can't be read.
    """
    found = False
    files = list_files(path)
    with as_usage_errors(path):
        for file in files:
            for number, columns in enumerate(read_file(file, is_wanted=is_wanted), 1):
                row = to_row(columns)
                if row is None and number == 1 and file.parent == path and len(files) > 1:
                    break  # a list of credits, or of what was left out
                if row is None:
                    where = "" if file == path else f"{file.name}, "
                    raise ValueError(f"{where}row {number}: {_tell_form(columns)}")
                found = True
                yield row
    if not found:
        got = "none" if files or path.is_dir() else "a file with another name"
        raise UsageError(
            f"{path}: expected a release, or rows in {', '.join(SUFFIXES)}, with a conversation in "
            f"{' or '.join(_TURNS)}; got {got if path.exists() else 'no such file or folder'}"
        )


def _tell_form(columns: Any) -> str:
    got = ", ".join(columns) if isinstance(columns, dict) else type(columns).__name__
    return f"expected {' or '.join(_TURNS)} with a list of messages, got {got or 'nothing'}"


def read_rejected(path: Path) -> dict[str, dict[str, int]]:
    """Answers that gave no row, by type and reason, as the folder of a release tells it."""
    noted = path / "provenance.json"
    if not noted.is_file():
        return {}
    with as_usage_errors(noted):
        return decode(noted.read_bytes(), type=_Noted).rejected or {}


def to_row(columns: Any) -> Row | None:
    """A row as it was read, in the one form; None if it has no conversation."""
    named = [n for n in _TURNS if isinstance(columns, dict) and columns.get(n) is not None]
    name = next((n for n in named if columns[n]), named[0] if named else "")
    messages = columns[name] if name else None
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        return None
    image = columns.get("media") or columns.get("image") or columns.get("images")
    return Row(
        id=_text_of(columns.get("id")),
        type=_text_of(columns.get("type")),
        source=_text_of(columns.get("source")),
        image_id=_text_of(columns.get("image_id")),
        image=_name_of(image) or _find_in_parts(messages),
        turns=tuple(_pair(messages, *_TURNS[name])),
        checks=_read_checks(columns.get("checks")),
        image_license=_text_of(columns.get("image_license")) or None,
        columns=columns,
    )


def _read_checks(column: Any) -> tuple[Finding, ...] | None:
    """What checks found; others may have a column of that name with something else."""
    found = column.get("findings") if isinstance(column, dict) else None
    try:
        return msgspec.convert(found, tuple[Finding, ...] | None)
    except msgspec.ValidationError:
        return None


def _pair(messages: Sequence[Any], by: str, said: str) -> Iterator[Turn]:
    question = ""
    for message in messages:
        role = _text_of(message.get(by)).lower()
        text = _IMAGE_MARK.sub("", _join_parts(message.get(said)))
        if role in _ASKS:
            question = f"{question}\n{text}".strip()
        elif role in _ANSWERS:
            yield Turn(question, text)
            question = ""


def _join_parts(content: Any) -> str:
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict))
        return "\n".join(text for text in texts if text)
    return _text_of(content)


def _find_in_parts(messages: Sequence[Any]) -> str:
    """The image that a part of a message names, or nothing."""
    parts = (p for m in messages if isinstance(m.get("content"), list) for p in m["content"])
    named = (part.get(k) for part in parts for k in ("path", "url", "image"))
    return next((name for name in map(_name_of, named) if name), "")


def _name_of(image: Any) -> str:
    """The file or address of an image, of the first of several, or of one with its bytes."""
    if isinstance(image, list):
        image = image[0] if image else None
    if isinstance(image, dict):
        image = image.get("path") or image.get("url")
    return _text_of(image)


def _text_of(value: Any) -> str:
    return str(value) if isinstance(value, str | int) else ""
