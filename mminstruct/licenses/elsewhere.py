"""A data set that was made elsewhere: who it says wrote it, and what that implies.

Rows name their writer in a field such as ``model`` or ``generator``, at any depth, and in JSON
that is kept as a text; so may the top of a file or the front matter of a card. What a name, a tag,
a source or words against some use tell can only bar.

**Source:** https://huggingface.co/docs/hub/datasets-cards (``license``, ``source_datasets``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.json import decode

from mminstruct.datafiles import SUFFIXES, as_usage_errors, list_files, read_file
from mminstruct.errors import UsageError
from mminstruct.licenses.cards import front_matter, sort_keys
from mminstruct.licenses.composition import EVIDENCE, Part
from mminstruct.licenses.entries import License, MadeElsewhere, Terms
from mminstruct.licenses.lineage import find_terms, find_terms_at, model_parts
from mminstruct.licenses.names import bare_address, cached_id, nearest_key, plain_words
from mminstruct.licenses.prose import WRITES, drop_comparisons, find_limit, list_claims
from mminstruct.licenses.registry import ENDPOINTS_JOINT, Registry
from mminstruct.licenses.services import find_family
from mminstruct.resources import count_of

# The last word of a field that names a writer, and words of those that name another kind of model.
_WRITERS = {"model", "generator", "teacher", "llm", "captioner"}
_OTHERS = {"base", "reward", "judge", "embedding", "tokenizer"}
_NAME_OF_IT = ("name", "id")
# Those of fields that may name a writer, or anything else: they bar, and free nothing.
_HINTS = {"source", "origin", "engine", "provider", "creator", "author", "dataset", "by", "via"}
_HINTS |= {"annotator", "labeler", "labeller", "writer", "assistant", "bot"}
# Of those that hold what is said of a row.
_ABOUT = {"metadata", "meta", "info", "provenance", "extra", "details", "generation", "config"}
_LICENSES = ("license", "license_name", "license_link")
_NESTED = (dict, list)
_MOST_NAMES = 1000
_LONGEST_NAME, _LONGEST_TEXT = 120, 2000


class Writer(NamedTuple):
    """Who wrote rows, as a field names it, and at which endpoint, if that is told."""

    name: str
    field: str
    endpoint: str | None = None


@dataclass(slots=True)
class DataSet:
    """What a data set says of where it is from.

    Attributes:
        name: of its file or folder, or its id.
        rows: how many were read.
        unnamed: of these, those that name nobody.
        unlicensed: and those that name no licence.
        is_licensed: whether all have one by a card, or by the top of a file.
        writers: who is named, by how many rows; 0 is for all.
        licenses: names of its licences, and how many rows have them; 0 is for all.
        sources: ids of data sets that it was made from, or that it is.
        hints: names, tags and other texts, and where they are.
    """

    name: str
    rows: int = 0
    unnamed: int = 0
    unlicensed: int = 0
    is_licensed: bool = False
    writers: Counter[Writer] = field(default_factory=Counter)
    licenses: Counter[str] = field(default_factory=Counter)
    sources: list[str] = field(default_factory=list)
    hints: dict[str, str] = field(default_factory=dict)

    @property
    def silent(self) -> int:
        """Rows of which nothing tells who wrote them."""
        return 0 if 0 in self.writers.values() else self.unnamed

    def told(self) -> list[str]:
        """Who wrote how many rows, a line each."""
        rows = count_of(self.rows, "row")
        lines = [
            f"{who.name}: {f'{count:,} of {rows}' if count else 'all rows'} ({who.field})"
            for who, count in self.writers.most_common()
        ]
        if self.silent:
            lines.append(f"no field names a generator: {self.silent:,} of {rows}")
        return lines or [f"no field of {self.name} names a generator"]

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        named = [
            {**writer._asdict(), "rows": count or None} for writer, count in self.writers.items()
        ]
        return {"name": self.name, "rows": self.rows, "generators": named, "unnamed": self.silent}

    def add_row(self, row: Any) -> None:
        """Count a row by who wrote it, and by its licence."""
        if not isinstance(row, dict):
            raise ValueError(f"expected rows that are objects, got {type(row).__name__}")
        writers, names = self._find(row, "")
        self.rows += 1
        self.unnamed += not writers
        for writer in writers:
            is_one_more = len(self.writers) < _MOST_NAMES or writer in self.writers
            self.writers[writer if is_one_more else Writer("others", writer.field)] += 1
        self.unlicensed += not names
        for name in names:
            self.licenses[name if len(self.licenses) < _MOST_NAMES else "unknown"] += 1

    def add_facts(self, data: Mapping[str, Any], where: str, before: DataSet | None = None) -> None:
        """Take what the top of a file, or of a card, says of all rows.

        Args:
            data: what it says.
            where: its name.
            before: what was known before the rows that it is about; None if it is about all.
        """
        writers, names = self._find(dict(data), f"{where}: ")
        rows = self.rows - before.rows if before else 0
        if before is None or rows:
            self.writers.update(dict.fromkeys(writers, rows))
            self.licenses.update(dict.fromkeys(names, rows))
        if before is None:
            self.is_licensed |= bool(names)
        else:
            self.unnamed = before.unnamed if writers else self.unnamed
            self.unlicensed = before.unlicensed if names else self.unlicensed
        for key, value in data.items():
            if nearest_key(str(key), ("source_datasets", "datasets", "dataset")):
                self.sources += [text for text in _list_texts(value) if "/" in text]
        known, _, texts = sort_keys(data)
        self.hints |= dict.fromkeys(_list_texts(known["tags"]), f"{where}: tags")
        self.hints |= dict.fromkeys((t for t in texts if t[0] not in "{["), where)

    def _find(self, value: dict[str, Any], where: str) -> tuple[list[Writer], list[str]]:
        """Who is named in the fields of a value, at any depth, and its licences; keep hints."""
        writers, names = dict[Writer, None](), dict[str, None]()
        inside: list[tuple[bool, Any]] = [(True, value)]
        for is_about, part in inside:  # grows
            if isinstance(part, list):
                inside += [(is_about, inner) for inner in part if isinstance(inner, _NESTED)]
                continue
            for key, inner in part.items():
                kind = _kind_of(str(key))
                if isinstance(inner, str):
                    if inner[:1] in ("{", "["):
                        inner = _decode_text(inner)
                    elif kind is None:  # as most are
                        continue
                texts = _list_texts(inner) if kind else []
                if kind == "writer":
                    place = part.get("endpoint")
                    endpoint = next(iter(_list_texts(place)), None) if place else None
                    writers |= {Writer(name, f"{where}{key}", endpoint): None for name in texts}
                elif kind == "hint":
                    self._add_hints(texts, f"{where}the field {key}")
                elif is_about and (kind == "license" or (kind == "link" and "://" in str(inner))):
                    names |= dict.fromkeys(texts)
                if isinstance(inner, _NESTED):
                    inside.append((is_about and kind == "about", inner))
        return list(writers), list(names)

    def _add_hints(self, texts: list[str], where: str) -> None:
        for text in texts:
            if len(self.hints) < _MOST_NAMES or text in self.hints:
                self.hints.setdefault(text, where)
            elif "://" not in text:
                self.writers[Writer("others", where)] += 1


def read_data_set(path: Path) -> DataSet:
    """What a file of rows, a card, or a folder with both says of itself.

    Raises:
        UsageError: it can't be read, is damaged, or of another kind.
    """
    path = path.absolute()  # "." has no name
    found = DataSet(path.name)
    id = cached_id(str(path))
    found.hints |= dict.fromkeys([path.name, *([id] if id else [])], "the folder's name")
    with as_usage_errors(path):
        card, files = _list_files(path)
        if card:
            text = card.read_text("utf-8")
            front = front_matter(text, card.name)
            found.add_facts(front, card.name)
            found.hints |= dict.fromkeys(list_claims(text, WRITES), card.name)
            files = (_find_data(path, front) if card != path else []) or files
        for file in files:
            found.hints[file.name.partition(".")[0]] = "the file's name"
            tops = dict[str, Mapping[str, Any]]()
            before = replace(found)
            for row in read_file(file, partial(tops.__setitem__, file.name), _is_telling):
                found.add_row(row)
            noted = file.with_name(f"{file.name}.provenance.json")  # of an export
            if noted.is_file():
                tops[noted.name] = decode(noted.read_bytes(), type=dict[str, Any])
            for where, top in tops.items():
                found.add_facts(top, where, None if len(files) == 1 else before)
        if not (card or found.rows):
            raise UsageError(f"{path}: expected rows, got none; give what has some, or a card")
    return found


def parts_of(registry: Registry, found: DataSet) -> Iterator[Part]:
    """The licences of a data set, and the terms of whoever wrote it.

    What only a hint tells is there where it is known: it frees nothing.
    """
    what = f"data set {found.name}"
    names = {name for name in found.licenses if name.lower() != "other"} or {*found.licenses}
    is_free = True
    for name in sorted(names):
        count = found.licenses[name]
        rows = f"; so {count_of(count, 'row says', 'rows say')}" if count else ""
        for part in _look_up(registry, what, name, rows):
            is_free &= part.commercial is not False
            yield part
    for source in found.sources:
        known = _find_data_set(registry, source)
        if known:
            yield from _describe(registry, known, "")
        else:
            yield Part("annotations", f"data set {source}", None, f"; {found.name} is made of it")
    is_known = found.sources == [found.name]
    if not (found.is_licensed or is_known or (names and not found.unlicensed)):
        rows = f" by {count_of(found.unlicensed, 'row')}" if found.unlicensed else ""
        yield Part("annotations", what, None, f"; no licence is named{rows}")
    for who, count in found.writers.items():
        rows = (
            f"{count:,} of {count_of(found.rows, 'row names', 'rows name')} it"
            if count
            else "named"
        )
        yield from _trace(registry, who, f"; {rows} in {who.field}")
    if found.silent or not (found.writers or is_known):
        rows = count_of(found.silent, "row") if found.silent else "rows"
        yield Part("model", f"{rows} of {found.name}", None, "; no generator is named")
    for text, where in found.hints.items():
        said = f"; {where} says {text}"
        if known := _find_data_set(registry, text):
            yield from _describe(registry, known, said)
        elif registry.named(text) or find_family(registry, drop_comparisons(text)):
            yield from _trace(registry, Writer(drop_comparisons(text), where), said)
        elif is_free and (limit := find_limit(text)):
            yield Part("annotations", f"{what}, with {limit!r} in {where}", None)


def _describe(registry: Registry, known: MadeElsewhere, said: str) -> Iterator[Part]:
    said += f"; see {known.source_url} ({EVIDENCE[known.evidence]}, {known.checked_on})"
    said += f"; {known.note}" if known.note else ""
    entry = registry.licenses[known.license] if known.license else None
    yield Part("annotations", f"data set {known.id}", entry, said)
    for name in known.generators:
        yield from _trace(registry, Writer(name, ""), f"; it wrote {known.id}{said}")


def _trace(registry: Registry, who: Writer, said: str) -> Iterator[Part]:
    """The terms of all models that a name may stand for; of a closed family, its maker's."""
    ids = registry.named(who.name)
    family = None if ids else find_family(registry, who.name)
    if family:
        terms = registry.terms[family.terms]
        called = f"model {who.name[:_LONGEST_NAME]}"
        yield Part("model", called, terms, f"; one of {family.title}{said}")
        return
    endpoints = who.endpoint.split(ENDPOINTS_JOINT) if who.endpoint else ()
    own = who.name if who.name.count("/") == 1 else None
    for id in ids or (own,):
        # Rows may name a thousand ids: no card of theirs is asked for.
        for part in model_parts(
            registry, name=who.name, repo_id=id, endpoints=endpoints, read_cards=False
        ):
            yield replace(part, note=part.note + said)


def _find_data_set(registry: Registry, text: str) -> MadeElsewhere | None:
    """The data set of that id, or of a file of that name, or None."""
    asked, known = plain_words(text), registry.datasets.values()
    return next((d for d in known if asked in map(plain_words, (d.id, *d.names))), None)


def _look_up(registry: Registry, what: str, name: str, said: str) -> Iterator[Part]:
    """The licence or the terms of that name, or of all that ``-and-`` joins, as releases do."""
    by: License | Terms | None = registry.license(name) or find_terms(registry, name)
    if "://" in name:
        works, link = registry.licenses.values(), bare_address(name)
        by = next((work for work in works if bare_address(work.url) == link), None)
        by = by or find_terms_at(registry, name)
    parts = name.split("-and-")
    if by is None and len(parts) > 1:
        for part in parts:
            yield from _look_up(registry, what, part, said)
        return
    missing = "" if by else f"; no licence is registered as {name!r}"
    yield Part("annotations", what, by, missing + said)


def _list_files(path: Path) -> tuple[Path | None, list[Path]]:
    """The card, and files with rows, as `list_files` gives them."""
    card = path if path.suffix == ".md" else path / "README.md"
    files = list_files(path)
    if not (card.is_file() or files):
        raise UsageError(
            f"{path}: expected a data set: rows ({', '.join(SUFFIXES)}), a README.md, or a folder "
            "with these; a model is given with --model"
        )
    return card if card.is_file() else None, files


def _find_data(folder: Path, front: Mapping[str, Any]) -> list[Path]:
    """The files that a card calls the data; none where that isn't clear.

    Others may be there, such as a list of images with their licences.
    """
    found: dict[Path, None] = {}
    for pattern in _list_data_files(front):
        is_inside = ".." not in pattern and "://" not in pattern and not pattern.startswith("/")
        files = sorted(folder.glob(pattern)) if is_inside and pattern else []
        if not files or not all(f.is_file() and f.name.endswith(SUFFIXES) for f in files):
            return []
        found |= dict.fromkeys(files)
    return list(found)


def _list_data_files(front: Mapping[str, Any]) -> list[str]:
    """Patterns of the files that a card calls the data; none where it leaves that open."""
    configs = front.get("configs")
    found: list[str] = []
    for config in configs if isinstance(configs, list) else ():
        is_clear = isinstance(config, dict) and "data_dir" not in config
        inside = [config.get("data_files") if is_clear else None]
        for value in inside:  # grows
            if isinstance(value, str):
                found.append(value)
            elif value and isinstance(value, list):
                inside += value
            elif value and isinstance(value, dict):
                inside += [inner for key, inner in value.items() if key != "split"]
            else:
                return []
    return found


def _decode_text(text: str) -> Any:
    """What a text that looks like JSON holds; another one is as it is."""
    try:
        return decode(text)
    except (ValueError, RecursionError):
        return text


@lru_cache(maxsize=10_000)
def _kind_of(key: str) -> str | None:
    """What a field tells: a writer, a hint at one, a licence, a link to it, or more of a row."""
    if known := nearest_key(key, _LICENSES):
        return "link" if known == "license_link" else "license"
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", key)]
    if len(words) > 1 and words[-1] in _NAME_OF_IT:
        words.pop()
    last = words[-1].removesuffix("s") if words else ""
    if words == ["generated", "by"] or (last in _WRITERS and not _OTHERS.intersection(words)):
        return "writer"
    return "hint" if last in _HINTS else "about" if _ABOUT.intersection(words) else None


def _list_texts(value: Any) -> list[str]:
    """The texts in a value that is one, several, or has a name: a line each, and a short one."""
    values = value if isinstance(value, list) else [value]
    values = [v.get("name") or v.get("id") if isinstance(v, dict) else v for v in values]
    lines = (_write_line(v[:_LONGEST_TEXT]) for v in values if isinstance(v, str))
    return [line for line in lines if line]


@lru_cache(maxsize=10_000)
def _write_line(text: str) -> str:
    """A text in a line, and a short one."""
    return re.sub(r"[^\S ]+|[^ -~\w]+", " ", text).strip()[:_LONGEST_NAME]


def _is_telling(names: list[str]) -> bool:
    return any(name == "endpoint" or _kind_of(name) for name in names)
