"""Annotation sources: what to download, how to read it into Contexts, whose licence it is.

A module ``sources/foo.py`` with a ``SOURCE`` object is the registration: here, in the working
folder, or named by an installed package's entry point in ``mminstruct.sources``. Modules whose name
starts with an underscore hold what several sources share. A module may also have ``OPTIONS``, what
the source can be asked for beyond its defaults: each is a field of the (dataclass) object, a flag
and an argument of `load_dataset`. `own` isn't registered by a name: its sources are named by a
path.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from mminstruct import plugins
from mminstruct.checks.vocabulary import Vocabulary, common_things
from mminstruct.errors import UsageError, did_you_mean
from mminstruct.schema import Option
from mminstruct.sources import own
from mminstruct.sources._annotation_file import files_of, find_first, folders, open_text, text_of
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
    "files_of",
    "find_first",
    "folders",
    "find_infos",
    "get",
    "is_source",
    "known_splits",
    "load_named",
    "members",
    "names",
    "open_text",
    "options",
    "options_of",
    "parts_of",
    "shipped_image",
    "text_of",
    "vocabulary_of",
]

_all = plugins.Plugins(Path(__file__).parent, "SOURCE", case=str.upper, others=("own",))
names = _all.names


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


def load_named(word: str) -> None:
    """Let `options` know those of the user's own sources that a word may name."""
    for part in parts_of(word):
        _all.load(part)


def known_splits() -> set[str]:
    """The splits of the package's sources, and of others that were asked for."""
    return {split for m in _all.modules().values() for split in m.SOURCE.info.splits}


def find_infos(names: Sequence[str], arguments: Mapping[str, Any]) -> dict[str, SourceInfo]:
    """The sources that were asked for, by their names as given; each once, however it was written.

    Args:
        names: as `get` takes them.
        arguments: those that are options of own data say what there is.
    """
    if not names:
        raise UsageError("sources: expected at least one, got none; mminstruct list shows all")
    found: dict[str, tuple[str, SourceInfo]] = {}
    for name in names:
        known = own.OPTIONS.keys() & options_of(name)
        given = {option: value for option, value in arguments.items() if option in known}
        info = get(name, given).info
        before, _ = found.setdefault(info.name, (name, info))
        if before != name and known:
            raise UsageError(
                f"{name}: got the name {info.name!r}, which is that of {before}, too; give each a "
                "name of its own in a description (mminstruct describe)"
            )
    return dict(found.values())


def options() -> dict[str, tuple[Option, tuple[str, ...]]]:
    """Their own options by name, each with the sources that have it."""
    return plugins.collect_options({**_all.modules(), "your own data": own})


def options_of(name: str) -> set[str]:
    """The own options of a source, or of all parts of a joined one."""
    return {option for part in parts_of(name) for option in plugins.options_of(_module_of(part))}


def members(source: Source, split: str) -> tuple[tuple[Source, str], ...]:
    """The source and its split, or of a joined one its parts with theirs."""
    return source.members(split) if isinstance(source, JoinedSource) else ((source, split),)


def shipped_image(source: str, file: str) -> Path | None:
    """An image of a source, as rows name both, if the package has it in its folder ``IMAGES``."""
    module = _all.modules()[source] if names().get(source) == plugins.OURS else None
    folder = getattr(module, "IMAGES", None)
    if folder is None or not os.path.isfile(folder / file):  # noqa: PTH113 (is_file() may raise)
        return None
    return Path(folder) / file


def vocabulary_of(source: Source, files: Files) -> Vocabulary:
    """How a source's labels are called; where it doesn't say, by their names and common synonyms.

    A source says so by a method ``vocabulary(files)``, and for a label's own words needs none. In
    an exhaustive one every object of these labels has a box.
    """
    if isinstance(source, JoinedSource):
        parts = source.parts_with(files)
        found = Vocabulary.of({}, parents=source.info.alike)
        for part, own in parts:
            found |= vocabulary_of(part, own)
        return found
    say = getattr(source, "vocabulary", None)
    found = say(files) if say else Vocabulary()
    if not source.info.exhaustive:
        return found
    return found | Vocabulary(exhaustive=frozenset((*found.labels, *common_things())))


def chosen_options(source: Source) -> list[tuple[str, dict[str, Any]]]:
    """What a source, or each part of a joined one, was asked for: all its own options by name.

    For one that isn't the package's, with a digest of its module: other code, other contexts.
    """
    if isinstance(source, JoinedSource):
        return [one for part in (source.first, *source.others) for one in chosen_options(part)]
    if isinstance(source, OwnSource):
        return [(source.info.name, source.chosen)]
    values = {name: getattr(source, name) for name in options() if hasattr(source, name)}
    if (loaded := _all.asked.get(source.info.name.upper())) is not None:
        values["code"] = loaded.code
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


def _one(name: str, chosen: Mapping[str, Any]) -> Source:
    module = _module_of(name)
    given = {o: value for o, value in chosen.items() if o in plugins.options_of(module)}
    if module is not own:
        source: Any = module.SOURCE
        registered: Source = replace(source, **given) if given else source
        return registered
    described = open_source(name, given)
    if (shadowed := described.info.name.upper()) in names():
        raise UsageError(
            f"{name}: got the name {described.info.name!r} against one of its own expected, as "
            f"{shadowed} is another source; give it a name (--source_name)"
        )
    return described


def _module_of(name: str) -> ModuleType:
    """The module of a source that isn't joined.

    Raises:
        UsageError: there is none.
    """
    loaded = _all.load(name)
    if loaded is None:
        if is_own(name) or (name and Path(name).exists()):
            return own
        raise UsageError(f"unknown source {name!r}{did_you_mean(name.upper(), names())}")
    info, expected = getattr(loaded.module.SOURCE, "info", None), loaded.found.name.upper()
    called = getattr(info, "name", None)
    if str(called).upper() != expected:
        raise UsageError(
            f"{loaded.found.where}: SOURCE.info.name: expected {expected!r}, as the file is "
            f"called, got {called!r}; change the one or the other"
        )
    return loaded.module
