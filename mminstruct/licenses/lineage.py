"""What a model is: an exact repository id, or what its own files say about it.

A GGUF file carries its licence and where it is from in its header, a model folder in the front
matter of its README.md. Only a full address on the Hub, or an exact id, names a model: "Llama 2 by
Meta" does not. A fine-tune inherits from what it was made from.

**Source:** https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (GGUF: layout, and the keys
``general.*``); https://huggingface.co/docs/hub/model-cards (``license``, ``base_model``).
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mminstruct import strict_yaml
from mminstruct.errors import UsageError
from mminstruct.licenses.composition import EVIDENCE, Part
from mminstruct.licenses.registry import Registry, Terms
from mminstruct.licenses.services import find_services

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS[12] = "d"
_STRING, _ARRAY = 8, 9
_HUB_ADDRESS = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+?)/?"
    r"(?:/(?:tree|blob|resolve)/.*)?"
)
_BASE = re.compile(r"general\.base_model\.(\d+)\.")
_REPO_ID = re.compile(r"[\w][\w.-]*/[\w.-]+")
_FRONT_MATTER = re.compile(r"\A\ufeff?---\r?\n(.*?)\r?\n---\s*(?:\n|\Z)", re.DOTALL)
_LONGEST_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Declared:
    """What a model's own files say about it.

    Attributes:
        where: the file that says it.
        repo_id: the model's own exact id, or None.
        licenses: names of its licences.
        parents: exact ids of what it was made from.
        unnamed_parents: parents without an exact id, as they are called.
    """

    where: str
    repo_id: str | None = None
    licenses: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    unnamed_parents: tuple[str, ...] = ()


def declared(path: Path) -> Declared:
    """What a GGUF file's header or a model folder's README.md says; a file of another kind nothing.

    Raises:
        UsageError: it can't be read, or is damaged.
    """
    try:
        if path.is_dir():
            card = path / "README.md"
            if not card.is_file():
                return Declared(f"{path.name}/ (without a README.md)")
            return _read_card(card.read_text(encoding="utf-8"), f"{path.name}/README.md")
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                return Declared(path.name)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _read_gguf(dict(gguf_metadata(content, path.name)), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"model {path.name!r}: can't be read: {error}") from error


def gguf_metadata(content: bytes | mmap.mmap, name: str) -> Iterator[tuple[str, Any]]:
    """(key, value) of a GGUF header; arrays are skipped and come as None.

    Raises:
        UsageError: it is cut off, of another version, or no GGUF header at all.
    """
    at = 0

    def skip(size: float) -> int:
        """Where what is skipped begins."""
        nonlocal at
        if at + size > len(content):
            raise UsageError(f"model {name!r}: the GGUF header is cut off after {at} bytes")
        start, at = at, at + int(size)
        return start

    def take(layout: str) -> int | float:
        size = struct.calcsize(f"<{layout}")
        number: int | float = struct.unpack_from(f"<{layout}", content, skip(size))[0]
        return number

    def text() -> str:
        start = skip(take("Q"))
        return bytes(content[start:at]).decode("utf-8", errors="replace")

    def value(kind: float) -> Any:
        if kind == _STRING:
            return text()
        if kind == _ARRAY:
            inner, count = take("I"), take("Q")
            if inner == _STRING:
                for _ in range(int(count)):
                    skip(take("Q"))
                return None
            if inner in _SCALARS:
                skip(count * struct.calcsize(f"<{_SCALARS[int(inner)]}"))
                return None
            kind = inner  # arrays of arrays are in no file that llama.cpp reads
        if kind in _SCALARS:
            return take(_SCALARS[int(kind)])
        raise UsageError(f"model {name!r}: the GGUF header has a value of unknown type {kind}")

    if bytes(content[: len(_MAGIC)]) != _MAGIC:
        raise UsageError(f"model {name!r}: not a GGUF file")
    skip(len(_MAGIC))
    version = take("I")
    if version not in _VERSIONS:
        raise UsageError(
            f"model {name!r}: GGUF version {version}, expected {' or '.join(map(str, _VERSIONS))}; "
            "convert it anew, or name the model with --model_id"
        )
    take("Q")  # tensors
    for _ in range(int(take("Q"))):
        key = text()
        yield key, value(take("I"))


def _read_gguf(metadata: Mapping[str, Any], where: str) -> Declared:
    def words(*keys: str) -> list[str]:
        values = (metadata.get(f"general.{key}") for key in keys)
        return [_clean(value) for value in values if isinstance(value, str) and value.strip()]

    names = words("license")
    if names and names[0].lower() == "other":
        names = words("license.name") or names
    parents, unnamed = [], []
    sources = words("source.repo_url", "source.url", "source.huggingface.repository")
    parents += [found for source in sources if (found := _repo_id(source))]
    if sources and not parents:
        unnamed.append(sources[0])
    bases = sorted({int(key[1]) for key in map(_BASE.match, metadata) if key})
    count = metadata.get("general.base_model.count", 0)
    if isinstance(count, int) and count > len(bases):
        unnamed.append("a model")
    for number in bases:
        base = f"base_model.{number}"
        exact = next(filter(None, map(_repo_id, words(f"{base}.repo_url", f"{base}.url"))), None)
        if exact:
            parents.append(exact)
        else:
            unnamed.append(" by ".join(words(f"{base}.name", f"{base}.organization")) or "a model")
    own = next(filter(None, map(_repo_id, words("repo_url", "url"))), None)
    return Declared(where, own, tuple(names), tuple(dict.fromkeys(parents)), tuple(unnamed))


def front_matter(text: str, where: str) -> dict[str, Any]:
    """The mapping at the top of a card; empty where there is none.

    Raises:
        UsageError: it can't be read, or is no mapping.
    """
    front = _FRONT_MATTER.match(text)
    try:
        data = strict_yaml.load(front[1]) if front else {}
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: its front matter is not readable as YAML: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{where}: expected a mapping as front matter, got {type(data).__name__}")
    return data


def _read_card(text: str, where: str) -> Declared:
    data = front_matter(text, where)
    names = _list_words(data.get("license"))
    if [name.lower() for name in names] == ["other"]:
        names = _list_words(data.get("license_name")) or names
    bases = _list_words(data.get("base_model"))
    exact = {base: _repo_id(base) for base in bases}
    return Declared(
        where,
        licenses=tuple(names),
        parents=tuple(found for found in exact.values() if found),
        unnamed_parents=tuple(base for base, found in exact.items() if not found),
    )


def _list_words(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [_clean(str(item)) for item in values if item not in (None, "")]


def _clean(text: str) -> str:
    """One short line of printable characters: it comes from a stranger's file."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(shown.split())[:_LONGEST_SHOWN]


def _repo_id(text: str) -> str | None:
    """The exact id that an address on the Hub, or an id itself, stands for."""
    address = _HUB_ADDRESS.fullmatch(text)
    if address:
        return address[1]
    return text if _REPO_ID.fullmatch(text) else None


def model_parts(
    registry: Registry,
    *,
    name: str,
    repo_id: str | None = None,
    files: Declared | None = None,
    endpoints: Iterable[str] = (),
    given: bool = False,
) -> tuple[Part, ...]:
    """The terms that a model's outputs are under: its own, its bases' and its services'.

    Args:
        registry: the facts.
        name: what the model is called, for people.
        repo_id: its exact id, or None.
        files: what its own files say.
        endpoints: URLs of the APIs that serve it; none if it runs in this process.
        given: the id is the user's word, which stands above what the files say.
    """
    asked = name if given or repo_id is None else repo_id
    served = find_services(registry, endpoints, None if files else asked, given=given)
    if served.is_whole:
        return served.parts
    parts, ids, note = [*served.parts], dict(served.models), served.note
    if repo_id is not None and given:
        word = "; the model is this one by your word (--model_id)"
        if files is not None and (named := [*files.parents, *files.licenses]):
            word += f", while {files.where} names {', '.join(named)}"
        ids[repo_id], files = word, None
    elif repo_id is not None and not ids:
        ids[repo_id] = ""
    if not ids and files is None:
        parts.append(Part("model", f"model {name}", None, note))
    for id, word in ids.items():
        parts += _trace_registered(registry, id, note + word, "")
    if files is not None:
        parts += _trace_declared(registry, name, files, note)
    return tuple(parts)


def named_model(registry: Registry, model: str, model_id: str | None = None) -> tuple[Part, ...]:
    """The terms of a model in this process or on a server of one's own: a path or an exact id.

    Raises:
        UsageError: its files can't be read, or are damaged.
    """
    path = Path(model).expanduser()
    files = declared(path) if path.exists() else None
    repo_id = model_id or (None if files else model)
    name = path.name if files else model
    return model_parts(registry, name=name, repo_id=repo_id, files=files, given=bool(model_id))


def _trace_registered(registry: Registry, repo_id: str, note: str, relation: str) -> Iterator[Part]:
    """The model's terms, then its base's, and so on; unknown if it has no entry."""
    model = registry.models.get(repo_id)
    what = f"{relation}model {repo_id}"
    if model is None:
        yield Part("model", what, None, f"{note}; no entry has this exact id", repo_id)
        return
    terms = registry.terms[model.terms]
    origin = registry.origin("models", repo_id) or registry.origin("terms", terms.id)
    elsewhere = f"; see {model.source_url} ({EVIDENCE[model.evidence]})"
    source = "" if model.source_url == terms.source_url else elsewhere
    source += f"; {model.note}" if model.note else ""
    yield Part("model", what, terms, note + source + origin, repo_id)
    if model.base:
        yield from _trace_registered(registry, model.base, f"; {repo_id} was made from it", "base ")


def _trace_declared(registry: Registry, name: str, files: Declared, note: str) -> Iterator[Part]:
    said = f"{note}; as {files.where} says"
    if files.repo_id in registry.models:
        yield from _trace_registered(registry, str(files.repo_id), said, "")
    for license in files.licenses:
        by: Terms | None = registry.terms_named(license)
        origin = registry.origin("terms", by.id) if by else ""
        yield Part("model", f"model {name}, licence {license}", by, said + origin)
    for parent in files.parents:
        yield from _trace_registered(registry, parent, said, "base ")
    for unnamed in files.unnamed_parents:
        yield Part("model", f"base model {unnamed}", None, f"{said}, which is no exact id")
    if not (files.licenses or files.parents or files.unnamed_parents) and (
        files.repo_id not in registry.models
    ):
        hint = "neither licence nor base model; name the model with --model_id"
        yield Part("model", f"model {name}", None, f"{note}; {files.where} names {hint}")
