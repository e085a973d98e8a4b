"""Annotation sources: what to download, how to read it into Contexts, whose licence it is.

A module ``sources/foo.py`` with a ``SOURCE`` object is the registration; modules whose name starts
with an underscore hold what several sources share. A module may also have ``OPTIONS``, what the
source can be asked for beyond its defaults: each is a field of the (dataclass) object, a flag and
an argument of `load_dataset`. `own` isn't registered by a name: its sources are named by a path.
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
from mminstruct.sources.own import OwnSource, is_own, open_source

__all__ = [
    "Download",
    "Files",
    "ReadReport",
    "Source",
    "SourceInfo",
    "chosen_options",
    "find_infos",
    "get",
    "is_source",
    "members",
    "names",
    "options",
    "options_of",
    "parts_of",
    "shipped_image",
]

_OWN = "own"


def names() -> dict[str, str]:
    """Source name as typed -> module name, of all sources."""
    found = (m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return {name.upper(): name for name in sorted(found) if name != _OWN}


def parts_of(name: str) -> list[str]:
    """The sources that a name joins, or the one that it is; a path may have a ``+`` in it."""
    words, parts = name.split("+"), []
    while words:
        # The longest path that is there, or the next word.
        longest = range(len(words), 1, -1)
        taken = next((n for n in longest if Path("+".join(words[:n]).strip()).exists()), 1)
        parts.append("+".join(words[:taken]).strip())
        del words[:taken]
    return parts


def is_source(name: str) -> bool:
    """Whether a word names a source, which may not be there."""
    known = names()
    return all(part.upper() in known or is_own(part) for part in parts_of(name))


def find_infos(names: Sequence[str], arguments: Mapping[str, Any]) -> dict[str, SourceInfo]:
    """The sources that were asked for, by their names as given; each once, however it was written.

    Args:
        names: as `get` takes them.
        arguments: those that are options of data of one's own say what there is.

    Raises:
        UsageError: there is no such source, or two of one's own have one name.
    """
    if not names:
        raise UsageError("sources: expected at least one, got none; mminstruct list shows all")
    found: dict[str, tuple[str, SourceInfo]] = {}
    own_options = _options(_OWN).keys()
    for name in names:
        known = own_options & options_of(name)
        own = {option: value for option, value in arguments.items() if option in known}
        info = get(name, own).info
        before, _ = found.setdefault(info.name, (name, info))
        if before != name and known:
            raise UsageError(
                f"{name}: got the name {info.name!r}, which is that of {before}, too; give each a "
                "name of its own in a description (mminstruct describe)"
            )
    return dict(found.values())


def options() -> dict[str, tuple[Option, tuple[str, ...]]]:
    """All sources' own options by name, each with the sources that have it."""
    found: dict[str, tuple[Option, tuple[str, ...]]] = {}
    for name, module in {**names(), "your own data": _OWN}.items():
        for option_name, option in _options(module).items():
            _, owners = found.get(option_name, (option, ()))
            found[option_name] = (option, (*owners, name))
    return found


def options_of(name: str) -> set[str]:
    """The own options of a source, or of all parts of a joined one."""
    return {option for part in parts_of(name) for option in _options(_module_of(part))}


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
    if isinstance(source, OwnSource):
        return [(source.info.name, source.chosen)]
    values = {name: getattr(source, name) for name in options() if hasattr(source, name)}
    return [(source.info.name, values)]


def get(name: str, chosen: Mapping[str, Any] | None = None) -> Source:
    """The source of that name, or several joined by ``+``; case does not matter.

    Args:
        name: as in `names`, such as ``COCO2017`` or ``COCO2017+LVIS``, or a path.
        chosen: values for some of the sources' own options.

    Raises:
        UsageError: there is none, or none of them has such an option.
    """
    parts = [_one(part, chosen or {}) for part in parts_of(name)]
    known = options_of(name)
    for option in chosen or {}:
        if option not in known:
            has = f"; it has {', '.join(sorted(known))}" if known else ""
            raise UsageError(f"the source {name!r} has no option {option!r}{has}")
    if len(parts) == 1:
        return parts[0]
    return join(parts)


def _module_of(name: str) -> str:
    """The module of a source that isn't joined.

    Raises:
        UsageError: there is none.
    """
    known = names()
    if (module := known.get(name.upper())) is not None:
        return module
    if is_own(name) or (name and Path(name).exists()):
        return _OWN
    raise UsageError(f"unknown source {name!r}{did_you_mean(name.upper(), known)}")


def _one(name: str, chosen: Mapping[str, Any]) -> Source:
    module = _module_of(name)
    own = {option: value for option, value in chosen.items() if option in _options(module)}
    if module != _OWN:
        source: Any = _module(module).SOURCE
        registered: Source = replace(source, **own) if own else source
        return registered
    described = open_source(name, own)
    if (shadowed := described.info.name.upper()) in names():
        raise UsageError(
            f"{name}: got the name {described.info.name!r} against one of its own expected, as "
            f"{shadowed} is another source; give it a name (--source_name)"
        )
    return described


def _options(module: str) -> Mapping[str, Option]:
    options: Mapping[str, Option] = getattr(_module(module), "OPTIONS", {})
    return options


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
