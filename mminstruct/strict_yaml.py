"""YAML files that are held to a schema: every violation is named, with its place and a way out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

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
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"


def load(text: str, *, keys_once: bool = True) -> Any:
    """The data in a YAML text, whose size is in proportion to the text's.

    It is built while the text is parsed: with PyYAML's nodes in between it takes twice as long.

    Args:
        text: one document.
        keys_once: whether a key that is given twice is an error; else the last one counts.

    Raises:
        yaml.YAMLError: it isn't YAML, too long or deep, or repeats a list or mapping by an alias,
            by which a short text may stand for gigabytes.
    """
    if len(text) > _MOST_CHARACTERS:
        raise yaml.YAMLError(f"longer than {_MOST_CHARACTERS:,} characters")
    document = _Document(keys_once)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            document.add(event)
    except (ValueError, LookupError, AttributeError, TypeError) as error:  # such as 2026-02-31
        raise yaml.YAMLError(f"a value that makes no sense: {error}") from error
    return document.top[0] if document.top else None


class _Document:
    """The data of one document, built event by event.

    Attributes:
        top: a list of it, or of nothing.
    """

    def __init__(self, keys_once: bool) -> None:
        self.top: list[Any] = []
        # What goes on, with its keys so far, and the one whose value comes next.
        self._open: list[tuple[Any, set[str], list[Any]]] = [(self.top, set(), [])]
        self._scalars = yaml.constructor.SafeConstructor()
        self._named: dict[str | None, Any] = {}
        self._keys_once = keys_once

    def add(self, event: Any) -> None:
        """Take the next event; errors are as those of `load`, or of a scalar's kind."""
        if isinstance(event, yaml.ScalarEvent):
            self._put(self._read_scalar(event), event)
        elif isinstance(event, yaml.CollectionStartEvent):
            if event.tag not in (None, "!", f"{_TAG}map", f"{_TAG}seq"):
                self._fail(event, f"the tag {event.tag!r} is not supported")
            if len(self._open) > _DEEPEST:
                self._fail(event, f"more than {_DEEPEST} lists and mappings in each other")
            value: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
            self._put(value, event)
            self._open.append((value, set(), []))
        elif isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._named:
                self._fail(event, f"'*{event.anchor}' stands for nothing")
            if isinstance(self._named[event.anchor], dict | list):
                self._fail(event, f"'*{event.anchor}' repeats a list or mapping; write it out")
            self._put(self._named[event.anchor], event)
        elif isinstance(event, yaml.DocumentStartEvent) and self.top:
            self._fail(event, "expected one document, got more")

    def _put(self, value: Any, event: Any) -> None:
        """Take a value as the next one of a list, or as a key or what it stands for."""
        if event.anchor is not None:
            self._named[event.anchor] = value
        inside, seen, key = self._open[-1]
        if isinstance(inside, list):
            inside.append(value)
        elif key:
            inside[key.pop()] = value
        elif self._keys_once and str(value) in seen:
            self._fail(event, f"key {str(value)!r} is given twice")
        else:
            seen.add(str(value))
            key.append(value)

    def _read_scalar(self, event: yaml.ScalarEvent) -> Any:
        text, tag = event.value, event.tag
        if tag in (None, "!"):
            known = _LOADER.yaml_implicit_resolvers.get(text[:1], ()) if event.implicit[0] else ()
            tag = next((tag for tag, form in known if form.match(text)), f"{_TAG}str")
        if tag == f"{_TAG}str":
            return text
        if tag == f"{_TAG}merge":
            self._fail(event, "'<<' is not supported; write the keys out")
        return self._scalars.construct_object(yaml.ScalarNode(tag, text))

    def _fail(self, event: Any, why: str) -> NoReturn:
        raise yaml.YAMLError(f"{why}{event.start_mark}")


def read(path: Path) -> dict[str, Any]:
    """The mapping at the top of a YAML file.

    Raises:
        ConfigError: it can't be read, or is no mapping.
    """
    try:
        with path.open(encoding="utf-8") as file:
            data = load(file.read(_MOST_CHARACTERS + 1))
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
