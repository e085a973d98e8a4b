"""Annotation sources: what to download, how to read it into Contexts, whose licence it is.

A module ``sources/foo.py`` with a ``SOURCE`` object is the registration; modules whose name starts
with an underscore hold what several sources share. A module may also have ``OPTIONS``, what the
source can be asked for beyond its defaults: each is a field of the (dataclass) object, a flag and
an argument of `load_dataset`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from mminstruct.errors import UsageError, did_you_mean
from mminstruct.schema import Option
from mminstruct.sources._base import Download, Files, ReadReport, Source, SourceInfo
from mminstruct.sources._joined import JoinedSource, join

__all__ = [
    "Download",
    "Files",
    "ReadReport",
    "Source",
    "SourceInfo",
    "chosen_options",
    "find_infos",
    "get",
    "members",
    "names",
    "options",
    "options_of",
    "shipped_image",
]


def names() -> dict[str, str]:
    """Source name as typed -> module name, of all sources."""
    found = (m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return {name.upper(): name for name in sorted(found)}


def find_infos(names: Sequence[str]) -> list[SourceInfo]:
    """The sources that were asked for, each once, however it was written."""
    if not names:
        raise UsageError("sources: expected at least one, got none; mminstruct list shows all")
    infos = (get(name).info for name in names)
    return list({info.name: info for info in infos}.values())


def options() -> dict[str, tuple[Option, tuple[str, ...]]]:
    """All sources' own options by name, each with the sources that have it."""
    found: dict[str, tuple[Option, tuple[str, ...]]] = {}
    for name, module in names().items():
        for option_name, option in _options(module).items():
            _, owners = found.get(option_name, (option, ()))
            found[option_name] = (option, (*owners, name))
    return found


def options_of(name: str) -> set[str]:
    """The own options of a source, or of all parts of a joined one."""
    modules = names()
    return {o for part in name.split("+") for o in _options(modules[part.strip().upper()])}


def members(source: Source, split: str) -> tuple[tuple[Source, str], ...]:
    """The source and its split, or of a joined one its parts with theirs."""
    return source.members(split) if isinstance(source, JoinedSource) else ((source, split),)


def shipped_image(source: str, file: str) -> Path | None:
    """An image of a source, as rows name both, if its module has it in its folder ``IMAGES``."""
    module = names().get(source)
    folder = module and getattr(_module(module), "IMAGES", None)
    return folder / file if folder and (folder / file).is_file() else None


def chosen_options(source: Source) -> list[tuple[str, dict[str, Any]]]:
    """What a source, or each part of a joined one, was asked for: all its own options by name."""
    if isinstance(source, JoinedSource):
        return [own for part in (source.first, *source.others) for own in chosen_options(part)]
    values = {name: getattr(source, name) for name in options() if hasattr(source, name)}
    return [(source.info.name, values)]


def get(name: str, chosen: Mapping[str, Any] | None = None) -> Source:
    """The source of that name, or several joined by ``+``; case does not matter.

    Args:
        name: as in `names`, such as ``COCO2017`` or ``COCO2017+LVIS``.
        chosen: values for some of the sources' own options.

    Raises:
        UsageError: there is none, or none of them has such an option.
    """
    parts = [_one(part.strip(), chosen or {}) for part in name.split("+")]
    known = options_of(name)
    for option in chosen or {}:
        if option not in known:
            has = f"; it has {', '.join(sorted(known))}" if known else ""
            raise UsageError(f"the source {name!r} has no option {option!r}{has}")
    if len(parts) == 1:
        return parts[0]
    return join(parts)


def _one(name: str, chosen: Mapping[str, Any]) -> Source:
    known = names()
    if name.upper() not in known:
        raise UsageError(f"unknown source {name!r}{did_you_mean(name.upper(), known)}")
    module = known[name.upper()]
    source: Any = _module(module).SOURCE
    own = {option: value for option, value in chosen.items() if option in _options(module)}
    found: Source = replace(source, **own) if own else source
    return found


def _options(module: str) -> Mapping[str, Option]:
    options: Mapping[str, Option] = getattr(_module(module), "OPTIONS", {})
    return options


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
