"""YAML files that are held to a schema: every violation is named, with its place and a way out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from mminstruct.errors import ConfigError, did_you_mean, lacking


class Strict(BaseModel):
    """Base of what is read from YAML: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, str_strip_whitespace=True, defer_build=True
    )


_Schema = TypeVar("_Schema", bound=Strict)


_MOST_CHARACTERS = 4 * 2**20
_DEEPEST = 100
_MERGE = "tag:yaml.org,2002:merge"


_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class UniqueKeyLoader(_SafeLoader):  # type: ignore[misc,valid-type]
    """SafeLoader that refuses a key given twice, where YAML loaders keep the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping, each key of which is there once."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                raise yaml.constructor.ConstructorError(
                    None, None, "'<<' is not supported; write the keys out", key_node.start_mark
                )
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def load(text: str, loader: Any = _SafeLoader) -> Any:
    """The data in a YAML text whose size is in proportion to the text's.

    Raises:
        yaml.YAMLError: it isn't YAML, too long or deep, or repeats a list or mapping by an alias,
            by which a short text may stand for gigabytes.
    """
    if len(text) > _MOST_CHARACTERS:
        raise yaml.YAMLError(f"longer than {_MOST_CHARACTERS:,} characters")
    depth = 0
    repeatable: set[str | None] = set()
    for event in yaml.parse(text, Loader=loader):
        why = None
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            repeatable.add(event.anchor)
            why = f"more than {_DEEPEST} lists and mappings in each other" * (depth > _DEEPEST)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent) and event.anchor in repeatable:
            why = f"'*{event.anchor}' repeats a list or mapping; write it out"
        if why:
            raise yaml.YAMLError(f"{why}{event.start_mark}")
    try:
        return yaml.load(text, Loader=loader)  # noqa: S506
    except (ValueError, LookupError, AttributeError, TypeError) as error:  # such as 2026-02-31
        raise yaml.YAMLError(f"a value that makes no sense: {error}") from error


def read(path: Path) -> dict[str, Any]:
    """The mapping at the top of a YAML file.

    Raises:
        ConfigError: it can't be read, or is no mapping.
    """
    try:
        with path.open(encoding="utf-8") as file:
            data = load(file.read(_MOST_CHARACTERS + 1), UniqueKeyLoader)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file{lacking(path)}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path.name}: not readable as YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path.name}: expected a mapping at the top, got {type(data).__name__}")
    return data


def validate(
    schema: type[_Schema], data: Any, *, where: str, more_keys: Iterable[str] = ()
) -> _Schema:
    """Plain data as the schema's value.

    Args:
        schema: what is expected.
        data: what is there.
        where: names it in errors.
        more_keys: keys at the top that are known besides the schema's, to be suggested.

    Raises:
        ConfigError: with every violation, one a line.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(schema, error, where, more_keys))) from error


def _explain(
    schema: type[Strict], error: ValidationError, where: str, more_keys: Iterable[str]
) -> Iterator[str]:
    for item in error.errors():
        location = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            key, inside = str(item["loc"][-1]), item["loc"][:-1]
            known = [*(_fields_at(schema, inside)), *(() if inside else more_keys)]
            place = f" in {location.rpartition('.')[0]}" if inside else ""
            yield f"{where}: unknown key {key!r}{place}{did_you_mean(key, known)}"
        elif item["type"] == "missing":
            yield f"{where}: {location}: this key is missing"
        else:
            message = _EXPECTED.get(item["type"], item["msg"].removeprefix("Value error, "))
            shown = _got(item["input"], item["type"])
            # Our own rules about the whole name the place themselves.
            place = location or ("" if item["type"] == "value_error" else "the top")
            yield f"{where}: {place + ': ' if place else ''}{message}{shown}"


# Where pydantic has words for Python alone.
_EXPECTED = {
    "dict_type": "expected a mapping",
    "model_type": "expected a mapping",
    "tuple_type": "expected a list",
}


def _got(value: Any, error: str) -> str:
    """What is there, for the end of an error; of what may be long, its kind where that is wrong."""
    if value is None:
        return ", got nothing"
    if isinstance(value, str | int | float | bool):
        return f", got {value!r}"
    kinds: dict[type, str] = {dict: "a mapping", list: "a list"}
    is_shown = error.endswith("_type") and type(value) in kinds
    return f", got {kinds[type(value)]}" if is_shown else ""


def _fields_at(schema: type[Strict], location: tuple[int | str, ...]) -> list[str]:
    """The keys that the schema knows at a place in the file."""
    here: Any = schema
    for part in location:
        if _is_schema(here):
            field = here.model_fields.get(str(part))
            here = field.annotation if field else None
        else:  # an index of a list, or a key of a mapping to anything
            inner = [kind for kind in get_args(here) if kind is not Ellipsis]
            here = inner[-1] if inner else None
        if type(None) in get_args(here):
            here = next(kind for kind in get_args(here) if kind is not type(None))
    return list(here.model_fields) if _is_schema(here) else []


def _is_schema(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Strict)
