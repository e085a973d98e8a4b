"""Prompt configs by name, read from YAML with their parents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mminstruct import plugins, resources, strict_yaml
from mminstruct.errors import ConfigError, UsageError, did_you_mean, lacking
from mminstruct.prompts.config import PromptConfig

_IDENTITY = ("name", "version", "description")


def _all() -> plugins.Plugins:
    return plugins.Plugins(resources.folder("prompt_configs"), suffix=".yaml")


def names() -> dict[str, str]:
    """The prompt configs -> where they are from; none is read for it."""
    return _all().names()


def find(name: str) -> Path:
    """The file of a prompt config given by name, path, or the old ``prompt_config_<name>.yaml``.

    Raises:
        UsageError: there is none.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    stem = path.name.removesuffix(".yaml").removesuffix(".yml").removeprefix("prompt_config_")
    found = _all().choose(stem) if path.parent == Path() else None
    if found is not None:
        return found.file(".yaml")
    hint = did_you_mean(stem, names())
    raise UsageError(f"no prompt config {name!r}{lacking(path)}{hint}, or give a file")


def load(name: str) -> PromptConfig:
    """The prompt config of that name or path, validated.

    Raises:
        UsageError: there is none.
        ConfigError: it breaks the schema, has another name than its file, or can't be read.
    """
    path = find(name)
    data = _read_with_parents(path)
    content = (path.name, repr(data))
    if content not in _loaded:
        config = parse(data, where=path.name)
        if config.name != path.stem:
            raise ConfigError(
                f"{path.name}: name: expected {path.stem!r}, as the file is called, got "
                f"{config.name!r}; change the one or the other"
            )
        _loaded[content] = config
    return _loaded[content]


# By what was read: files are read again each time, as they may have been edited.
_loaded: dict[tuple[str, str], PromptConfig] = {}


def parse(data: Mapping[str, Any], *, where: str) -> PromptConfig:
    """A validated prompt config from plain data; ``where`` names it in errors.

    Raises:
        ConfigError: with every violation, one a line.
    """
    return strict_yaml.validate(PromptConfig, data, where=where, more_keys=["extends"])


def type_names(config: PromptConfig, chosen: tuple[str, ...] | None) -> tuple[str, ...]:
    """The instruction types to generate: the chosen ones in the config's order, or all.

    Raises:
        UsageError: one of them isn't in the config.
    """
    for name in chosen or ():
        if name not in config.types:
            raise UsageError(
                f"prompt config {config.name!r} has no instruction type {name!r}"
                f"{did_you_mean(name, config.types)}"
            )
    return tuple(name for name in config.types if not chosen or name in chosen)


def _read_with_parents(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path in seen:
        raise ConfigError(f"{path.name}: 'extends' goes in a circle")
    data = strict_yaml.read(path)
    parent = data.pop("extends", None)
    if parent is None:
        return data
    if isinstance(parent, list | dict):
        raise ConfigError(
            f"{path.name}: extends: expected one prompt config's name or path, got {parent!r}"
        )
    for key in _IDENTITY:
        if key not in data:
            raise ConfigError(f"{path.name}: {key}: this key is missing ('extends' leaves it out)")
    beside = (path.parent / f"{parent}.yaml", path.parent / str(parent))
    parent_path = next((p for p in beside if p.is_file()), None) or find(str(parent))
    return _merge(_read_with_parents(parent_path, (*seen, path)), data)


def _merge(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    """Child over parent: mappings are merged key by key, everything else is replaced."""
    merged = dict(parent)
    for key, value in child.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merge(old, value)
        merged[key] = value
    return merged
