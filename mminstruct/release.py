"""Rows -> files: a dataset repository (Parquet, card, licence), JSON lines, or LLaVA's JSON.

A dataset repository is what the Hub holds: `load_dataset(DIR)` reads everything in it,
`load_dataset(DIR, "conversation")` one instruction type. Everything is written beside its
destination first and then moved, so that an interrupted run leaves what was there.

The names of Parquet files end in a digest of their content: `load_dataset` caches a local folder by
its name and its files' names, and would give the rows of an older release of that name back.

**Source:** the LLaVA form is the one in the facts of LLaVA's docs/Finetune_Custom_Data.md: one JSON
array; turns alternate human, gpt; ``<image>`` once, at the start of the first.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import IO, Any, Literal

import datasets
import yaml

from mminstruct import resources
from mminstruct.errors import UsageError
from mminstruct.generate import Report
from mminstruct.licenses import Verdict
from mminstruct.prompts import PromptConfig
from mminstruct.sources import SourceInfo

OutputFormat = Literal["dataset", "jsonl", "llava-instruct"]
FORMATS: tuple[OutputFormat, ...] = ("dataset", "jsonl", "llava-instruct")

_MARKER = "provenance.json"
_PARTIAL = ".partial"
_ROWS_PER_FILE = 100_000
_SIZES = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6))


@dataclass(frozen=True, slots=True)
class Origin:
    """How a release came about, for its card.

    Attributes:
        sources: whose annotations.
        config: the prompt config.
        types: instruction types that were asked for, in order.
        backend: name of the backend.
        model: name of the model.
        verdict: what the text may be used for, and why.
        settings: what else the rows depend on, in words.
        skipped: what reading the annotations left out, counted by reason.
    """

    sources: tuple[SourceInfo, ...]
    config: PromptConfig
    types: tuple[str, ...]
    backend: str
    model: str
    verdict: Verdict
    settings: Mapping[str, str]
    skipped: Mapping[str, int]


def check_output(path: Path, output_format: OutputFormat) -> None:
    """Raise UsageError if the output can't be written there; to be asked before money is spent."""
    if output_format == "dataset":
        if path.is_file():
            raise UsageError(f"output path {path}: expected a folder, got a file")
        found = {child.name for child in path.iterdir()} if path.is_dir() else set()
        if found - {_PARTIAL} and _MARKER not in found:
            raise UsageError(
                f"output path {path}: the folder is not empty and was not written by mminstruct; "
                "give another one with --output_path"
            )
    elif path.is_dir():
        raise UsageError(f"output path {path}: expected a file, got a folder")
    folder = path if output_format == "dataset" else path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".mminstruct-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"output path {path}: {error.strerror}") from error


def write(
    splits: Mapping[str, datasets.Dataset],
    path: Path,
    output_format: OutputFormat,
    origin: Origin,
    report: Report,
) -> None:
    """Write the rows of all splits in one of the forms, and beside them what gave no row."""
    if output_format == "dataset":
        _write_repository(splits, path, origin, report)
        return
    writer = _write_jsonl if output_format == "jsonl" else _write_llava
    _replace(path, lambda file: writer(_all_rows(splits), file))
    rejected = path.with_name(f"{path.name}.rejected.jsonl")
    rejected.unlink(missing_ok=True)
    if report.details:
        _replace(rejected, lambda file: _write_jsonl(report.details, file))


def llava_record(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as LLaVA's trainer reads it."""
    speakers = {"user": "human", "assistant": "gpt"}
    # The trainer counts the placeholders: a model that wrote one itself would ask for more images.
    turns = [
        {"from": speakers[m["role"]], "value": m["content"].replace("<image>", "").strip()}
        for m in row["messages"]
    ]
    turns[0]["value"] = f"<image>\n{turns[0]['value']}"
    return {"id": row["id"], "image": row["image"], "conversations": turns}


def card(path: Path, origin: Origin, report: Report, files: Mapping[str, Mapping[str, Any]]) -> str:
    """The dataset card: metadata for the Hub, then what a person wants to know.

    Args:
        path: the folder, whose name the examples use.
        origin: how the release came about.
        report: what became of the requests.
        files: type -> split -> its Parquet files, relative to the folder.
    """
    model = " ".join(origin.model.split())
    title = f"{' + '.join(s.title for s in origin.sources)} instructions by {model}"
    metadata = {
        "language": ["en"],
        **origin.verdict.hub_metadata,
        "pretty_name": title,
        "annotations_creators": ["machine-generated"],
        "language_creators": ["machine-generated"],
        "size_categories": [_size_category(report.rows.total())],
        "source_datasets": [source.name.lower() for source in origin.sources],
        "task_categories": ["visual-question-answering", "image-text-to-text"],
        "tags": ["mminstruct", "synthetic", "instruction-tuning"],
        "configs": _configs(files),
    }
    origin = _shown(origin)
    template = Template((resources.folder("cards") / "template.md").read_text(encoding="utf-8"))
    body = template.substitute(
        title=_markdown(title),
        summary=origin.config.description,
        model=origin.model,
        prompt_config=origin.config.name,
        prompt_version=origin.config.version,
        prompt_hash=origin.config.hash,
        path=json.dumps(path.resolve().name, ensure_ascii=False)[1:-1],
        first_type=next(iter(files), origin.types[0]),
        license=origin.verdict.license_name or origin.verdict.license,
        license_table=_license_table(origin),
        license_reason=_license_reasons(origin, _markdown),
        attribution="\n\n".join(source.attribution for source in origin.sources),
        count_table=_count_table(origin, report),
        drop_notes=_drop_notes(origin, report),
        generation_table="\n".join(
            f"| {key} | {value} |" for key, value in origin.settings.items()
        ),
        citation="\n\n".join(
            f"```bibtex\n{citation}\n```"
            for citation in dict.fromkeys(s.citation for s in origin.sources if s.citation)
        )
        or "Nothing to cite.",
    )
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{body}"


def _write_repository(
    splits: Mapping[str, datasets.Dataset], path: Path, origin: Origin, report: Report
) -> None:
    partial = path / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = _write_parquet(splits, partial, origin.types)
    _text(partial / "README.md", card(path, origin, report, files))
    _text(partial / "LICENSE", _license_text(origin))
    _text(partial / _MARKER, _provenance(origin, report))
    if report.details:
        with (partial / "rejected.jsonl").open("w", encoding="utf-8") as file:
            _write_jsonl(report.details, file)
    shutil.rmtree(path / "data", ignore_errors=True)
    (path / "rejected.jsonl").unlink(missing_ok=True)
    # The marker first: a folder that was half moved is still known to be ours.
    for part in sorted(partial.iterdir(), key=lambda part: (part.name != _MARKER, part.name)):
        part.replace(path / part.name)
    partial.rmdir()


def _write_parquet(
    splits: Mapping[str, datasets.Dataset], folder: Path, types: tuple[str, ...]
) -> dict[str, dict[str, list[str]]]:
    files: dict[str, dict[str, list[str]]] = {}
    for split, rows in splits.items():
        by_type: dict[str, list[int]] = {}
        for index, name in enumerate(rows["type"][:]):
            by_type.setdefault(name, []).append(index)
        for name in types:
            if name not in by_type:
                continue
            some = rows.select(by_type[name])
            count = -(-len(some) // _ROWS_PER_FILE)
            (folder / "data" / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                file = folder / "data" / name / f"{split}-{number:05d}-of-{count:05d}.parquet"
                some.shard(count, number, contiguous=True).to_parquet(str(file))
                file = file.rename(file.with_stem(f"{file.stem}-{_digest(file)}"))
                paths = files.setdefault(name, {}).setdefault(split, [])
                paths.append(file.relative_to(folder).as_posix())
    return files


def _digest(path: Path) -> str:
    """Digest of a file's content, 16 hex characters."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            content.update(chunk)
    return content.hexdigest()[:16]


def _configs(files: Mapping[str, Mapping[str, list[str]]]) -> list[dict[str, Any]]:
    together: dict[str, list[str]] = {}
    for by_split in files.values():
        for split, paths in by_split.items():
            together.setdefault(split, []).extend(paths)
    return [
        {
            "config_name": name,
            "data_files": [{"split": split, "path": paths} for split, paths in by_split.items()],
        }
        for name, by_split in {"default": together, **files}.items()
    ]


def _markdown(text: str) -> str:
    """The text for a line or table cell of Markdown, to be read as it is."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))


def _shown(origin: Origin) -> Origin:
    """The origin with names that come from outside made safe for Markdown."""
    return replace(
        origin,
        model=_markdown(origin.model),
        settings={_markdown(key): _markdown(value) for key, value in origin.settings.items()},
        skipped={_markdown(reason): count for reason, count in origin.skipped.items()},
    )


def _license_reasons(origin: Origin, escape: Callable[[str], str] = str) -> str:
    """Whether the rows may be used commercially, why, and what that obliges to."""
    verdict = origin.verdict
    use = {True: "yes", False: "no", None: "not known"}[verdict.commercial]
    lists = {"Why": verdict.reasons, "Obligations": [str(duty) for duty in verdict.obligations]}
    return "\n\n".join(
        [f"Commercial use: {use}."]
        + [
            f"{title}:\n\n" + "\n".join(f"- {escape(entry)}" for entry in entries)
            for title, entries in lists.items()
            if entries
        ]
    )


def _license_table(origin: Origin) -> str:
    lines = [
        f"| annotations of {s.title} | [{s.license}]({s.license_url}) |" for s in origin.sources
    ]
    lines += [f"| images of {s.title}, not included | {s.media_license} |" for s in origin.sources]
    for part in origin.verdict.parts:
        if part.role in ("model", "service"):
            by = f"[{_markdown(part.by.title)}]({part.by.source_url})" if part.by else "unknown"
            lines.append(f"| outputs of {_markdown(part.what)} | {by} |")
    lines.append(f"| prompts and few-shot examples | {_markdown(origin.config.license)} |")
    return "\n".join(lines)


def _license_text(origin: Origin) -> str:
    parts = [
        f"The text of this dataset: {origin.verdict.license_name or origin.verdict.license}",
        _license_reasons(origin),
        *(source.attribution for source in origin.sources),
        *(f"Images of {s.title}: {s.media_license}" for s in origin.sources),
    ]
    return "\n\n".join(parts) + "\n"


def _count_table(origin: Origin, report: Report) -> str:
    def reasons(counts: Mapping[str, int]) -> str:
        shown = (f"{_markdown(reason)} {count}" for reason, count in sorted(counts.items()))
        return ", ".join(shown) or "none"

    return "\n".join(
        f"| {name} | {report.rows[name]} | {reasons(report.rejected.get(name, {}))} "
        f"| {reasons(report.failed.get(name, {}))} |"
        for name in origin.types
    )


def _drop_notes(origin: Origin, report: Report) -> str:
    notes = [f"{count} x {reason}" for reason, count in sorted(origin.skipped.items())]
    left_out = f"Left out when reading the annotations: {', '.join(notes)}." if notes else ""
    cut = f"{report.truncated} answers were cut off; their complete turns were kept."
    return " ".join(part for part in (cut, left_out) if part)


def _provenance(origin: Origin, report: Report) -> str:
    value = {
        "tool": "mminstruct",
        "sources": [source.name for source in origin.sources],
        "backend": origin.backend,
        "model": origin.model,
        "licensing": origin.verdict.as_json(),
        "prompt_config": origin.config.name,
        "prompt_version": origin.config.version,
        "prompt_hash": origin.config.hash,
        "settings": dict(origin.settings),
        "rows": report.rows,
        "truncated": report.truncated,
        "rejected": report.rejected,
        "failed": report.failed,
        "skipped": dict(origin.skipped),
    }
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _size_category(rows: int) -> str:
    return next((name for name, bound in _SIZES if rows < bound), "1M<n<10M")


def _all_rows(splits: Mapping[str, datasets.Dataset]) -> Iterator[dict[str, Any]]:
    for rows in splits.values():
        for batch in rows.with_format("arrow").iter(1000):
            yield from batch.to_pylist()


def _write_jsonl(rows: Iterable[Mapping[str, Any]], file: IO[str]) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_llava(rows: Iterable[Mapping[str, Any]], file: IO[str]) -> None:
    file.write("[")
    for number, row in enumerate(rows):
        file.write(",\n" if number else "\n")
        file.write(json.dumps(llava_record(row), ensure_ascii=False))
    file.write("\n]\n")


def _replace(path: Path, write_to: Callable[[IO[str]], None]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        write_to(file)
    partial.replace(path)


def _text(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")
