"""Where the folders beside the package are found, and how paths and texts are shown.

Builders, prompt configs and cards stand beside ``mminstruct/`` in a checkout; a wheel carries them
inside it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import tempfile
import textwrap
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from mminstruct.errors import UsageError

_PACKAGE = Path(__file__).parent
# What a path makes of s3://bucket; Windows' drives have one letter.
_ADDRESS = re.compile(r"[A-Za-z][\w+.-]+:/")
# All but line breaks and tabs; also what turns the direction of text (UAX 9) and other line ends.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def folder(name: Literal["builders", "prompt_configs", "cards"]) -> Path:
    """The folder as installed with the package, else the one of the checkout."""
    packaged = _PACKAGE / name
    return packaged if packaged.is_dir() else _PACKAGE.parent / name


def check_writable(folder: Path, output: Path) -> None:
    """Raise UsageError about the output if nothing can be written there; the folder isn't made."""
    if _ADDRESS.match(output.as_posix()):
        address = output.as_posix().replace(":/", "://", 1)  # as it was before it became a path
        raise UsageError(
            f"output path {address}: expected one on this machine, got an address; write to a "
            "folder or file, and copy it there"
        )
    try:
        there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        where = "" if there == output else f" in {there}"
        raise UsageError(f"output path {output}: {error.strerror}{where}") from error


def is_inside(name: str) -> bool:
    """Whether a file of that name is inside the folder that it is joined to."""
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name
    return bool(path.parts) and not outside


def write_lines(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines in the place of what is there; no file where there is no entry."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        if partial.stat().st_size:
            partial.replace(path)
        else:
            path.unlink(missing_ok=True)
    finally:
        partial.unlink(missing_ok=True)


def keep(file: Path, text: str) -> None:
    """Write a small file of a cache; one that can't be written costs time and nothing else."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)


def shown(path: Path) -> str:
    """A path for people and logs, with the home folder as ``~``."""
    text = os.path.abspath(path)  # noqa: PTH100 (resolve() would follow links)
    home = os.path.expanduser("~")  # noqa: PTH111 (Path.home raises where nobody is at home)
    return "~" + text[len(home) :] if home != "/" and text.startswith(home + os.sep) else text


def count_of(number: int, one: str, many: str | None = None) -> str:
    """A number of things, as ``1 row`` or ``2,000 boxes``; ``many`` is for what takes no ``s``."""
    more = many or f"{one}{'es' if one.endswith('x') else 's'}"
    return f"{number:,} {one if number == 1 else more}"


def split_command(command: str) -> list[str]:
    """The words of a command that is no more than these; none of one that a shell has to read."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quote without its pair
        return []
    return words if shlex.join(words) == command else []


def fit(text: str, width: int | None, name: str = "mminstruct: ") -> str:
    """The text in lines of so many columns behind a name; None is no limit.

    A word that is longer, such as a path, stays whole.
    """
    if width is None:
        return text
    wrap = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    before = " " * len(name)
    return "\n".join(map(wrap.fill, (before + text).splitlines())).removeprefix(before)


def printable(text: str) -> str:
    r"""A text for a terminal: what would control it is written as ``\x1b`` and the like."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
