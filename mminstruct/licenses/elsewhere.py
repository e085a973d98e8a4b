"""A data set that was made elsewhere: who it says wrote it, and what that implies.

Rows name their writer in a field such as ``model`` or ``generator``, at any depth, and in JSON
that is kept as a text; so may the top of a file or the front matter of a card. What a name, a tag,
a source or words against some use tell can only bar. Files are read row by row, or by the columns
that matter, whatever their size.

**Source:** https://huggingface.co/docs/hub/datasets-cards (``license``, ``source_datasets``).
"""

from __future__ import annotations

import gzip
import mmap
import re
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

from msgspec import Raw
from msgspec.json import decode

from mminstruct.errors import UsageError
from mminstruct.licenses.cards import front_matter, sort_keys
from mminstruct.licenses.composition import EVIDENCE, Part
from mminstruct.licenses.entries import License, MadeElsewhere, Terms
from mminstruct.licenses.lineage import find_terms, find_terms_at, model_parts
from mminstruct.licenses.names import bare_address, cached_id, find_limit, nearest_key, plain_words
from mminstruct.licenses.registry import ENDPOINTS_JOINT, Registry
from mminstruct.licenses.services import find_family

_ROWS = (".parquet", ".jsonl", ".ndjson", ".json", ".jsonl.gz", ".json.gz")
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
_LONGEST_NAME = 120
_ROWS_PER_BATCH = 10_000
_START = 4096
_MARK = b"\xef\xbb\xbf"  # of UTF-8
_OBJECTS = re.compile(rb"\s*\{[^\n]*\}\s*\n\s*\{")
_FIELDS = dict[str, Raw]


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
        lines = [
            f"{who.name}: {f'{count:,} of {self.rows:,}' if count else 'all'} rows ({who.field})"
            for who, count in self.writers.most_common()
        ]
        if self.silent:
            lines.append(f"no field names a generator: {self.silent:,} of {self.rows:,} rows")
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

    def add_facts(self, data: Mapping[str, Any], where: str) -> None:
        """Take what the top of a file, or of a card, says of all rows."""
        writers, names = self._find(dict(data), f"{where}: ")
        self.writers.update(dict.fromkeys(writers, 0))
        self.licenses.update(dict.fromkeys(names, 0))
        self.is_licensed |= bool(names)
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
                if isinstance(inner, str) and inner[:1] in ("{", "["):
                    inner = _decode_text(inner)
                kind = _kind_of(str(key))
                texts = _list_texts(inner) if kind else []
                if kind == "writer":
                    endpoint = next(iter(_list_texts(part.get("endpoint"))), None)
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
    try:
        for file in _list_files(path):
            found.hints[file.name.partition(".")[0]] = "the file's name"
            if file.suffix == ".md":
                found.add_facts(front_matter(file.read_text("utf-8"), file.name), file.name)
            elif file.suffix == ".parquet":
                _read_parquet(file, found)
            else:
                with file.open("rb") as content:
                    _read_json(content, file, found)
    # Those of pyarrow and msgspec are among them.
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error) as error:
        raise UsageError(f"{path}: can't be read: {error}") from error
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
        for part in _look_up(registry, what, name, f"; so {count:,} rows say" if count else ""):
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
        rows = f" by {found.unlicensed:,} rows" if found.unlicensed else ""
        yield Part("annotations", what, None, f"; no licence is named{rows}")
    for who, count in found.writers.items():
        rows = f"{count:,} of {found.rows:,} rows name it" if count else "named"
        yield from _trace(registry, who, f"; {rows} in {who.field}")
    if found.silent or not (found.writers or is_known):
        rows = f"{found.silent:,} rows" if found.silent else "rows"
        yield Part("model", f"{rows} of {found.name}", None, "; no generator is named")
    for text, where in found.hints.items():
        said = f"; {where} says {text}"
        if known := _find_data_set(registry, text):
            yield from _describe(registry, known, said)
        elif registry.named(text) or find_family(registry, text):
            yield from _trace(registry, Writer(text, where), said)
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
        yield Part("model", f"model {who.name}", terms, f"; one of {family.title}{said}")
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


def _list_files(path: Path) -> list[Path]:
    """A file alone; of a folder the card, and Parquet or else JSON files, as rows are in one."""
    if path.is_file():
        found = [path] if path.name.endswith((*_ROWS, ".md")) else []
    else:
        rows = [file for file in sorted(path.rglob("*")) if file.name.endswith(_ROWS)]
        tables = [file for file in rows if file.suffix == ".parquet"]
        found = [f for f in (path / "README.md",) if f.is_file()]
        found += tables or [f for f in rows if f.suffix != ".json" or _is_array(f)]
    if not found:
        raise UsageError(
            f"{path}: expected a data set: rows ({', '.join(_ROWS)}), a README.md, or a folder "
            "with these; a model is given with --model"
        )
    return found


def _is_array(file: Path) -> bool:
    with file.open("rb") as content:
        return _start_of(content.read(_START))[:1] == b"["


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
    lines = (re.sub(r"[^\S ]+|[^ -~\w]+", " ", v).strip() for v in values if isinstance(v, str))
    return [line[:_LONGEST_NAME] for line in lines if line]


def _read_json(file: IO[bytes], path: Path, found: DataSet) -> None:
    """Read rows in lines, in an array, or in the arrays of an object with more at its top."""
    if path.suffix == ".gz":
        with tempfile.TemporaryFile() as unpacked, gzip.open(file) as content:
            shutil.copyfileobj(content, unpacked)
            unpacked.flush()
            return _read_json(unpacked, path.with_suffix(""), found)
    if not file.seek(0, 2):
        return None
    # Paged in and out by the system, so that a file may be larger than the memory.
    text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    text.seek(3 if text[:3] == _MARK else 0)
    rows = [memoryview(text)[text.tell() :]]
    if _start_of(rows[0])[:1] == b"{":
        if path.suffix != ".json" or _OBJECTS.match(text, text.tell()):
            for line in iter(text.readline, b""):
                if line.strip():
                    found.add_row(decode(line))
            return None
        views = {key: memoryview(raw) for key, raw in decode(rows[0], type=_FIELDS).items()}
        arrays = {key for key, view in views.items() if _start_of(view) == b"[{"}
        found.add_facts({k: decode(v) for k, v in views.items() if k not in arrays}, path.name)
        rows = [views[key] for key in views if key in arrays]
    for view in rows:
        for raw in decode(view, type=list[Raw]):
            found.add_row(decode(raw))
    return None


def _start_of(text: bytes | memoryview) -> bytes:
    """The first characters that are no blanks, up to two."""
    return b"".join(bytes(text[:_START]).removeprefix(_MARK).split())[:2]


def _read_parquet(file: Path, found: DataSet) -> None:
    """Count rows by the columns that tell something; no other is read."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        said = table.schema_arrow.metadata or {}
        found.add_facts(
            {k.decode(): v.decode(errors="replace") for k, v in said.items()}, file.name
        )
        paths = [table.schema.column(n).path for n in range(len(table.schema))]
        told = [path for path in paths if _is_telling(path.split("."))]
        batches = table.iter_batches(_ROWS_PER_BATCH, columns=told)
        for row in (row for batch in batches for row in _list_rows(batch)):
            found.add_row(row)


def _list_rows(batch: Any) -> Iterable[dict[str, Any]]:
    return batch.to_pylist() if batch.num_columns else ({} for _ in range(batch.num_rows))


def _is_telling(names: list[str]) -> bool:
    return any(name == "endpoint" or _kind_of(name) for name in names)
