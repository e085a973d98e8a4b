"""What a model's own files say about it: the model card, configurations, a GGUF file's header.

The card is the folder's README.md, or that of a repository on the Hub, taken from the cache before
the Hub is asked. Only a full address on the Hub, or an exact id, names a model here: "Llama 2 by
Meta" does not. A key that is misspelt counts as the one that is meant, and whatever else is said in
words may bar, and frees nothing.

**Source:** https://huggingface.co/docs/hub/model-cards (``license``, ``license_name``,
``license_link``, ``base_model``, ``base_model_relation``, ``tags``);
https://huggingface.co/docs/peft/developer_guides/checkpoint (``adapter_config.json``);
https://github.com/arcee-ai/mergekit (``mergekit_config.yml``);
https://docs.ollama.com/modelfile (``Modelfile``);
https://huggingface.co/docs/huggingface_hub/package_reference/file_download.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, cast

import yaml

from mminstruct import strict_yaml
from mminstruct.errors import UsageError
from mminstruct.licenses._gguf import MAGIC, gguf_metadata
from mminstruct.licenses.names import cached_id, hub_id, is_packed, nearest_key, split_words
from mminstruct.licenses.prose import list_claims

_BASE = re.compile(r"base_model\.(\d+)\.")
_FRONT_MATTER = re.compile(r"\A\ufeff?---\r?\n(.*?)\r?\n---\s*(?:\n|\Z)", re.DOTALL)
_KEYS = ("license", "license_name", "license_link", "base_model", "tags", "model_name")
# Words of other keys that name what a model was made from, and of those about something else.
_ORIGINS = {"base", "parent", "parents", "source", "from", "backbone", "foundation", "merged"}
_OTHER_THINGS = {"dataset", "datasets", "widget", "metrics", "results", "version", "doi"}
_LONGEST_SHOWN, _LONGEST_TEXT, _START = 80, 1000, 300
_CARD, _ADAPTER = "README.md", "adapter_config.json"
_MERGED = ("model", "models", "base_model", "source_model", "path")
# A line of a Modelfile, which may go on to three quotation marks; and what is a file in it.
_INSTRUCTION = re.compile(r'^[ \t]*(\w+)[ \t]+(?:"""(.*?)"""|([^\n]*))', re.DOTALL | re.MULTILINE)
_PATH = re.compile(r"[./~]|.*\.(?:gguf|bin|safetensors)$", re.IGNORECASE)
_HUB_HOSTS = ("hf.co/", "huggingface.co/")
# In the address of a file on the Hub.
_REPO_OF_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/")
_PATIENCE_S = 2.0
_MOST_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Declared:
    """What a model's own files say about it.

    Attributes:
        where: the files that say it.
        repo_id: the model's own exact id, or None.
        licenses: names of its licences.
        links: addresses of its licences.
        parents: exact ids of what it was made from.
        unnamed_parents: parents without an exact id, as they are called.
        names: what it is called besides: an exact id, or no more than a name.
        tags: what it is sorted under, and all other texts about it.
        is_copy: it is its parent in another format or precision, so that it needs no licence of
            its own.
    """

    where: str
    repo_id: str | None = None
    licenses: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    unnamed_parents: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    is_copy: bool = False


def declared(path: Path) -> Declared:
    """What a GGUF file's header or the files of a model's folder say; another kind says nothing.

    Raises:
        UsageError: it can't be read, or is damaged.
    """
    path = path.absolute()  # "." has no name
    try:
        said = _read_folder(path) if path.is_dir() else _read_file(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"model {path.name!r}: can't be read: {error}") from error
    # A link, and a folder in the Hub's cache, have another name behind them.
    called = {_name_of_path(str(each)) for each in (path, path.resolve())} - {path.name}
    return replace(said, names=(*said.names, *sorted(called)))


def _read_file(path: Path) -> Declared:
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            is_modelfile = path.name.startswith("Modelfile")
            return _read_modelfile(path) if is_modelfile else Declared(path.name)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _read_gguf(dict(gguf_metadata(content, path.name)), path.name)


def _name_of_path(path: str) -> str:
    """What a path on any machine calls a model: all but its name is nobody's business."""
    return cached_id(path) or PurePosixPath(path).name


def read_hub_card(repo_id: str, revision: str | None = None) -> Declared:
    """What the card of a repository on the Hub says; of one that was renamed, with its new id.

    Raises:
        UsageError: it can't be had, or is damaged; in words that go on from others.
    """
    where = f"{_CARD} of {repo_id}"
    try:
        found, path = _fetch_card(repo_id, revision)
        text = path.read_text(encoding="utf-8")
    except _failures() as error:
        raise UsageError(f"{where}{_describe(error, repo_id, revision)}") from error
    said = _read_card(text, where, name=repo_id)
    return said if found == repo_id else replace(said, repo_id=found)


def _fetch_card(repo_id: str, revision: str | None) -> tuple[str, Path]:
    """The id that the Hub has a repository under, and the file of its card."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

    try:
        path = hf_hub_download(repo_id, _CARD, revision=revision, local_files_only=True)
        return repo_id, Path(path)
    except errors.LocalEntryNotFoundError:
        url = hf_hub_url(repo_id, _CARD, revision=revision)
    card = get_hf_file_metadata(url, timeout=_PATIENCE_S)
    if (card.size or 0) > _MOST_BYTES:
        raise UsageError(f"{_CARD} of {repo_id} is too long for a card: {card.size:,} bytes")
    moved = _REPO_OF_FILE.search(card.location)
    found = moved[1] if moved else repo_id
    path = hf_hub_download(found, _CARD, revision=revision, etag_timeout=_PATIENCE_S)
    return found, Path(path)


def _failures() -> tuple[type[Exception], ...]:
    """What the Hub's client raises: its own, and those of the HTTP library below it."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, ValueError, *cast(tuple[type[Exception], ...], HfHubHTTPError.__bases__))


def _describe(error: Exception, repo_id: str, revision: str | None) -> str:
    """Why there is no card, after what it is the card of."""
    from huggingface_hub import errors

    elsewhere = ", which would settle it, is not in the cache, and"
    unreachable = f"{elsewhere} the Hub can't be reached; check the network and HF_ENDPOINT"
    kinds: dict[type[Exception], str] = {  # some are kinds of those below them
        errors.OfflineModeIsEnabled: f"{elsewhere} HF_HUB_OFFLINE is set",
        errors.LocalEntryNotFoundError: unreachable,
        errors.EntryNotFoundError: ": the repository has none",
        errors.RevisionNotFoundError: f": the repository has no revision {revision!r}",
        errors.GatedRepoError: f" is gated: ask for access at https://huggingface.co/{repo_id} and "
        "set HF_TOKEN",
        errors.RepositoryNotFoundError: ": the Hub shows no such repository; one that is private "
        "or gated takes a token (HF_TOKEN)",
        errors.HFValidationError: ": no repository can be called so",
        UnicodeDecodeError: " is damaged: it is no text in UTF-8",
    }
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        other = f": the Hub answers {status}; a token with access is needed (HF_TOKEN)"
    else:
        other = f": the Hub answers {status}; ask again later" if status else unreachable
    return next((words for kind, words in kinds.items() if isinstance(error, kind)), other)


def _read_folder(folder: Path) -> Declared:
    """What all its files say together; a copy is of one model, which one of them names."""
    card, files = folder / _CARD, [file for file in sorted(folder.iterdir()) if file.is_file()]
    found = {
        file.name: read(file)
        for form, read in _OTHERS.items()
        for file in files
        if re.fullmatch(form, file.name, re.IGNORECASE)
    }
    names = [name for name, said in found.items() if said != Declared(said.where)]
    if card.is_file():
        names.insert(0, _CARD)
    where = f"{folder.name}/{' and '.join(names) or f' (without a {_CARD})'}"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    parts = [_read_card(text, where, name=folder.name), *found.values()]
    parents, unnamed, called, tags = (
        tuple(dict.fromkeys(text for part in parts for text in getattr(part, field)))
        for field in ("parents", "unnamed_parents", "names", "tags")
    )
    adapted = found[_ADAPTER].names if _ADAPTER in found else ()
    origins = [part for part in parts if part.parents or part.unnamed_parents]
    return replace(
        parts[0],
        parents=parents,
        # Where an adapter's base is a path, it is the one that the card names.
        unnamed_parents=unnamed if parents else (*unnamed, *adapted),
        names=called,
        tags=tags,
        is_copy=not adapted and [part.is_copy for part in origins] == [True],
    )


def _read_adapter(file: Path) -> Declared:
    bases = _find_names(_read_mapping(file, json.loads), ["base_model_name_or_path"])
    return Declared(file.name, parents=tuple(_exact_ids(bases)), names=bases)


def _read_configuration(file: Path) -> Declared:
    return Declared(
        file.name, names=_find_names(_read_mapping(file, json.loads), ["_name_or_path"])
    )


def _read_merge(file: Path) -> Declared:
    return _made_from(file.name, _find_names(_read_mapping(file, strict_yaml.load), _MERGED))


def _read_modelfile(file: Path) -> Declared:
    """What Ollama made it from: a name in its library, an address on the Hub, or a file."""
    said: dict[str, list[str]] = {"FROM": [], "ADAPTER": [], "LICENSE": []}
    for line in _INSTRUCTION.finditer(file.read_text(encoding="utf-8")):
        said.get(line[1].upper(), []).append((line[2] or line[3]).strip().strip('"'))
    bases, paths = list[str](), list[str]()
    for name in map(_clean, said["FROM"]):
        if _PATH.match(name):
            paths.append(name)
        elif name.startswith(_HUB_HOSTS):
            bases.append(name.partition(":")[0])  # a quantisation is behind
        else:
            bases.append(f"ollama.com/{'' if '/' in name else 'library/'}{name}")
    names = [_clean(_name_of_path(path)) for path in (*paths, *said["ADAPTER"])]
    licences = (_clean(text, _START) for text in said["LICENSE"])
    return _made_from(
        file.name, bases, names=names, tags=licences, is_copy=not said["ADAPTER"] and not paths
    )


def _made_from(
    where: str,
    bases: Iterable[str],
    *,
    names: Iterable[str] = (),
    tags: Iterable[str] = (),
    is_copy: bool = False,
) -> Declared:
    """A model of these bases alone, each by its exact id or not."""
    exact = {base: hub_id(base) for base in bases}
    return Declared(
        where,
        parents=tuple(found[0] for found in exact.values() if found),
        unnamed_parents=tuple(base for base, found in exact.items() if not found),
        names=tuple(name for name in names if name not in (".", "")),
        tags=tuple(tags),
        is_copy=is_copy,
    )


def _read_licence(file: Path) -> Declared:
    """What a text begins with: a licence with its name."""
    with file.open(encoding="utf-8", errors="replace") as content:
        return Declared(file.name, tags=tuple(_list_words(content.read(_START), _START)))


def _find_names(data: Mapping[str, Any], keys: Collection[str]) -> tuple[str, ...]:
    """The models under some keys in an object, and in all in it, by ids or the names of paths.

    A model of images names that of its text further down, and mergekit an adapter behind a plus.
    """
    inside, found = [("", data)], list[str]()
    for key, value in inside:  # grows
        if isinstance(value, dict):
            inside += value.items()
        elif isinstance(value, list):
            inside += [(key, inner) for inner in value]
        elif key in keys and value:
            found += str(value).split("+")
    names = (_clean(text if hub_id(text) else _name_of_path(text)) for text in found)
    return tuple(dict.fromkeys(names))


def _read_mapping(path: Path, read: Callable[[str], Any]) -> Mapping[str, Any]:
    where = f"{path.parent.name}/{path.name}"
    try:
        data = read(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        kind = "YAML" if read is strict_yaml.load else "JSON"
        raise UsageError(f"{where}: not readable as {kind}: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{where}: expected an object, got {type(data).__name__}")
    return data


# Beside the card, by the forms of their names.
_OTHERS: dict[str, Callable[[Path], Declared]] = {
    _ADAPTER: _read_adapter,
    r"mergekit.*\.ya?ml": _read_merge,
    r"Modelfile.*": _read_modelfile,
    r"config\.json": _read_configuration,
    r"(?:licen[cs]e|notice)(?:[-_.].*)?": _read_licence,
}


def _read_gguf(metadata: Mapping[str, Any], where: str) -> Declared:
    general = {k.removeprefix("general."): v for k, v in metadata.items() if k[:8] == "general."}
    read = {"base_model.count"}

    def words(*keys: str) -> list[str]:
        read.update(keys)
        values = map(general.get, keys)
        return [word for v in values if isinstance(v, str | list) for word in _list_words(v)]

    sources = words("source.repo_url", "source.url", "source.huggingface.repository")
    parents = _exact_ids(sources)
    unnamed = sources[:1] if sources and not parents else []
    is_copy = bool(parents)
    own = _exact_ids(words("repo_url", "url"))
    names = [*words("name", "basename", "finetune"), *own[1:]]
    bases = sorted({int(key[1]) for key in map(_BASE.match, general) if key})
    count = general.get("base_model.count", 0)
    if isinstance(count, int) and count > len(bases):
        unnamed.append("a model")
    for number in bases:
        base = f"base_model.{number}"
        if exact := _exact_ids(words(f"{base}.repo_url", f"{base}.url")):
            parents += exact
            names += words(f"{base}.name")
        else:
            unnamed.append(" by ".join(words(f"{base}.name", f"{base}.organization")) or "a model")
    data, origins, texts = sort_keys(
        {k: v for k, v in general.items() if k not in read and isinstance(v, str | list)}
    )
    tags = _list_words(data["tags"])
    parents += [*_exact_ids(_list_words(data["base_model"])), *origins]
    return Declared(
        where,
        next(iter(own), None),
        licenses=_name_licenses(
            [*_list_words(data["license"]), *_list_tagged(tags, "license")],
            _list_words(data["license_name"]),
        ),
        links=_list_links(data["license_link"]),
        parents=tuple(dict.fromkeys(parents)),
        unnamed_parents=tuple(unnamed),
        names=tuple(dict.fromkeys(names)),
        tags=tuple(dict.fromkeys((*tags, *texts))),
        is_copy=is_copy,
    )


def front_matter(text: str, where: str) -> dict[str, Any]:
    """The mapping at the top of a card; empty where there is none.

    Raises:
        UsageError: it can't be read, or is no mapping.
    """
    front = _FRONT_MATTER.match(text)
    try:
        data = (strict_yaml.load(front[1]) if front else None) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: its front matter is not readable as YAML: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{where}: expected a mapping as front matter, got {type(data).__name__}")
    return data


def _read_card(text: str, where: str, name: str) -> Declared:
    """What a card says of the model of that name: by its front matter, and in its sentences."""
    front = front_matter(text, where)
    data, origins, texts = sort_keys(front)
    texts += (_clean(each, _LONGEST_TEXT) for each in list_claims(text))
    tags = _list_words(data["tags"])
    said = [*_list_words(data["base_model"]), *_list_tagged(tags, "base_model"), *origins]
    bases = list(dict.fromkeys(said))
    parents = _exact_ids(bases)
    is_quantized = front.get("base_model_relation") == "quantized"
    return Declared(
        where,
        licenses=_name_licenses(
            [*_list_words(data["license"]), *_list_tagged(tags, "license")],
            _list_words(data["license_name"]),
        ),
        links=_list_links(data["license_link"]),
        parents=tuple(dict.fromkeys(parents)),
        unnamed_parents=tuple(base for base in bases if not hub_id(base)),
        names=tuple(_list_words(data["model_name"])),
        tags=tuple(dict.fromkeys((*tags, *texts))),
        is_copy=len(bases) == 1 == len(parents) and (is_quantized or is_packed(name, parents[0])),
    )


def sort_keys(data: Mapping[str, Any]) -> tuple[dict[str, list[Any]], list[str], list[str]]:
    """What is under known keys; other exact ids of what a model was made from; texts about it."""
    known: dict[str, list[Any]] = {key: [] for key in _KEYS}
    other: dict[str, Any] = {}
    for key, value in data.items():
        if meant := nearest_key(str(key), _KEYS):
            known[meant] += value if isinstance(value, list) else [value]
        else:
            other[str(key)] = value
    origins, texts = list[str](), list[str]()
    inside: list[tuple[tuple[str, ...], Any]] = [((), other)]
    for words, value in inside:  # grows
        if isinstance(value, dict):
            inside += [((*words, *split_words(str(key))), inner) for key, inner in value.items()]
            # A question at the gate is a key: "I agree to non-commercial use only".
            texts += [key for key in map(str, value) if " " in key]
        elif isinstance(value, list):
            inside += [(words, inner) for inner in value]
        elif isinstance(value, str) and not _OTHER_THINGS.intersection(words):
            texts += _list_words(value, _LONGEST_TEXT)
            if _ORIGINS.intersection(words):
                origins += _exact_ids([value])
    return known, origins, texts


def _list_tagged(tags: Iterable[str], key: str) -> list[str]:
    """What tags say as the Hub writes them: ``license:mit``, ``base_model:adapter:org/name``."""
    return [tag.rpartition(":")[2] for tag in tags if tag.startswith(f"{key}:")]


def _name_licenses(ids: list[str], names: list[str]) -> tuple[str, ...]:
    """The licences that are named: what ``other`` stands for, or what stands beside an id."""
    if names and [id.lower() for id in ids] == ["other"]:
        ids = []
    return tuple(dict.fromkeys((*ids, *names)))


def _list_links(value: Any) -> tuple[str, ...]:
    """Addresses elsewhere than among the model's own files."""
    return tuple(link for link in _list_words(value, longest=300) if "://" in link)


def _exact_ids(names: Iterable[str]) -> list[str]:
    return [found[0] for found in map(hub_id, names) if found]


def _list_words(value: Any, longest: int = _LONGEST_SHOWN) -> list[str]:
    values = value if isinstance(value, list) else [value]
    words = (_clean(str(item), longest) for item in values if item is not None)
    return [word for word in words if word]


def _clean(text: str, longest: int = _LONGEST_SHOWN) -> str:
    """One short line of printable characters: it comes from a stranger's file."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(shown.split())[:longest]
