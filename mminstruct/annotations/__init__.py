"""Kinds of annotation beyond captions and boxes; a module ``annotations/foo.py`` registers one.

A source puts them into ``Context.annotations["foo"]``, a prompt config writes those of its examples
under ``annotations: {foo: ...}``, and the module's own ``lines`` shows both to the model. It has

- ``Item``, a frozen `msgspec.Struct` that forbids unknown fields: one annotation;
- ``HEADING``, the line above them;
- ``ORDER``, where its section stands: captions are at 10, boxes at 20;
- ``lines(items)``, the section's lines without the heading, in words that a model understands.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import msgspec

from mminstruct.errors import UsageError, did_you_mean

CAPTIONS_ORDER = 10
BOXES_ORDER = 20


def names() -> list[str]:
    """All kinds, by the order of their sections."""
    found = (m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return sorted(found, key=lambda name: (order(name), name))


def order(kind: str) -> int:
    """Where the section of a kind stands among the others."""
    return int(_module(kind).ORDER)


def heading(kind: str) -> str:
    """The line above the section, unless a prompt config gives another one."""
    return str(_module(kind).HEADING)


def items(kind: str, data: Sequence[Any]) -> tuple[Any, ...]:
    """The items of a kind from plain mappings, as in YAML or JSON; items are left as they are.

    Raises:
        UsageError: there is no such kind, or a mapping isn't an item of it.
    """
    item = _module(kind).Item
    try:
        return tuple(d if isinstance(d, item) else msgspec.convert(d, item) for d in data)
    except msgspec.ValidationError as error:
        fields = ", ".join(field.name for field in msgspec.structs.fields(item))
        raise UsageError(f"annotations, {kind}: {error}; an item has {fields}") from error


def lines(kind: str, data: Sequence[Any]) -> list[str]:
    """The section's lines for some items, without its heading."""
    written: list[str] = _module(kind).lines(items(kind, data))
    return written


@cache
def _module(kind: str) -> ModuleType:
    found = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    if kind not in found:
        raise UsageError(f"unknown kind of annotation {kind!r}{did_you_mean(kind, found)}")
    return importlib.import_module(f"{__name__}.{kind}")
