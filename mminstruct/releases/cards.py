"""What is said about a release: card, licence file, attribution, provenance and Croissant.

Values in, text out: `repository` reads the rows and the templates and writes the files.
Whatever comes from outside (a model's name or words, an author's title) is escaped for where it
goes: Markdown, a fenced block, YAML or JSON.

**Source:** https://github.com/huggingface/hub-docs/blob/main/datasetcard.md (the front matter),
https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html (croissant.json).
"""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

from datasets import DatasetInfo, Features, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from mminstruct import licenses
from mminstruct.errors import ConfigError, did_you_mean
from mminstruct.licenses import Part, Verdict
from mminstruct.licenses.use import YES_NO
from mminstruct.releases.markdown import fence, link, link_urls, list_items, to_line, to_markdown
from mminstruct.releases.origin import Contents, DataFile, Origin, all_sources, types_of
from mminstruct.releases.pages import Page, prose_of
from mminstruct.reports import quality_text
from mminstruct.resources import split_command
from mminstruct.rows.columns import ROW
from mminstruct.rows.report import Report

_TASKS = {
    "image": ["visual-question-answering", "image-text-to-text"],
    "video": ["video-text-to-text", "text-generation"],
}
_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B")
_DRY_RUN = (
    "**This is a dry run**: the text is a scripted stand-in's, to look at the form and not to "
    "train on.\n\n"
)
_COMMAND_WIDTH = 88
_EXAMPLES = 3
_EXAMPLE_CHARACTERS = 1200
_EXAMPLE_WIDTH = 90


def _types_note(origin: Origin, types: Sequence[str]) -> str:
    """Which types there are rows of, unless there are of all that the prompt configs have."""
    every = dict.fromkeys(kind for config in origin.configs for kind in config.types)
    if set(every) <= set(types):
        return ""
    return (
        f" This release has rows of the type {' and '.join(f'`{kind}`' for kind in types)} alone."
    )


def _partial_note(report: Report | None) -> str:
    """That the release isn't complete, if it isn't."""
    if report is None or not report.unsent:
        return ""
    answered = report.requests - report.unsent
    return (
        f"\n\n**Partial**: made when {answered:,} of {report.requests:,} requests were answered; "
        "the same command without `--partial` makes the rest."
    )


def card(
    template: str,
    pages: Sequence[Page],
    name: str,
    origin: Origin,
    contents: Contents,
    report: Report | None = None,
) -> str:
    """The dataset card: metadata for the Hub, then what a person wants to know.

    Args:
        template: Markdown with named slots.
        pages: prose, in the order of the sources.
        name: of the folder, which the examples use.
        origin: how the release came about.
        contents: what is in it.
        report: what became of the requests; None if that wasn't recorded.

    Raises:
        ConfigError: the template lacks a slot, or has one that is unknown.
    """
    citations = dict.fromkeys(s.citation.strip() for s in origin.sources if s.citation)
    types = [kind for kind in types_of(origin, contents) if contents.rows[kind]] or origin.types
    path = json.dumps(origin.repo_id or name, ensure_ascii=False)
    body = fill(
        template,
        {
            "title": to_markdown(origin.title),
            "summary": (_DRY_RUN if origin.is_dry_run else "")
            + " ".join(dict.fromkeys(to_markdown(c.description) for c in origin.configs))
            + _types_note(origin, types)
            + _partial_note(report),
            "model": to_markdown(origin.model),
            "about": prose_of(origin, [page.about for page in pages]),
            "uses": prose_of(origin, [page.uses for page in pages]),
            "limits": prose_of(origin, [page.limits for page in pages]),
            "left_out": "were left out and are listed with their reasons in `rejected.jsonl`, if "
            "there were any"
            if report
            else "were left out before these rows were put together",
            "usage": fence(
                "from datasets import load_dataset\n\n"
                f"everything = load_dataset({path})\n"
                f"one_type = load_dataset({path}, {json.dumps(types[0], ensure_ascii=False)})",
                "python",
            ),
            "media": origin.media,
            "column_table": "\n".join(
                f"| `{name}` | {ROW[name].about} |" for name in contents.features if name in ROW
            ),
            "license_table": _license_table(origin.verdict),
            "license": to_markdown(name_license(origin.verdict)),
            "use": to_markdown(str(contents.use)),
            "reasons": list_items(map(link_urls, origin.verdict.reasons)),
            "obligations": list_items(map(link_urls, map(str, origin.verdict.obligations)))
            or "None that are known.",
            "media_licenses": " ".join(
                dict.fromkeys(link_urls(s.media_license) for s in origin.sources)
            ),
            "media_table": _media_table(origin, contents),
            "attribution": "\n\n".join(
                dict.fromkeys(link_urls(s.attribution) for s in all_sources(origin))
            ),
            "count_table": _count_table(origin, contents, report),
            "drop_notes": _left_out_note(origin),
            "measured": _measured_text(contents),
            "examples": "\n\n".join(
                _example(contents.examples[kind])
                for kind in types[:_EXAMPLES]
                if kind in contents.examples
            )
            or "There are no rows.",
            "generation_table": _generation_table(origin, contents),
            "rebuild": _rebuild_text(origin),
            "citation": "\n\n".join(fence(citation, "bibtex") for citation in citations)
            or "Nothing to cite.",
        },
    )
    return f"---\n{metadata(origin, contents).to_yaml()}\n---\n\n{body}"


def fill(template: str, slots: Mapping[str, str]) -> str:
    """The card template with its slots filled.

    Raises:
        ConfigError: a slot of the template has no text, or a text has no slot.
    """
    where = "cards/template.md"
    found = {m["named"] or m["braced"] for m in Template.pattern.finditer(template)} - {None}
    for unknown in sorted(found - slots.keys()):
        raise ConfigError(f"{where}: unknown slot '${unknown}'{did_you_mean(unknown, slots)}")
    for missing in sorted(slots.keys() - found):
        raise ConfigError(f"{where}: the slot '${missing}' is missing; put it where it belongs")
    try:
        return Template(template).substitute(slots)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}; write $$ for a dollar sign") from error


def metadata(origin: Origin, contents: Contents) -> DatasetCardData:
    """The card's front matter."""
    modalities = sorted({source.modality for source in origin.sources})
    tasks = [task for kind in modalities for task in _TASKS.get(kind, ["text-generation"])]
    terms: dict[str, Any] = dict(origin.verdict.hub_metadata)
    files: dict[str, dict[str, list[DataFile]]] = {"default": {}}
    for file in contents.files:
        for config in ("default", file.type):
            files.setdefault(config, {}).setdefault(file.split, []).append(file)
    data = DatasetCardData(
        language=["en"],
        **terms,
        pretty_name=origin.title,
        annotations_creators=["machine-generated"],
        language_creators=["machine-generated"],
        multilinguality=["monolingual"],
        size_categories=[_size_category(contents.rows.total())],
        source_datasets=list(dict.fromkeys(source.name.lower() for source in all_sources(origin))),
        task_categories=list(dict.fromkeys(tasks)),
        tags=["mminstruct", "synthetic", "instruction-tuning", *modalities],
        configs=[
            {
                "config_name": config,
                "data_files": [
                    {"split": split, "path": [file.path for file in of_split]}
                    for split, of_split in splits.items()
                ],
            }
            for config, splits in files.items()
        ],
    )
    infos = {config: _info(contents.features, splits) for config, splits in files.items()}
    DatasetInfosDict(infos).to_dataset_card_data(data)
    return data


def _info(features: Features, files: Mapping[str, Sequence[DataFile]]) -> DatasetInfo:
    splits = SplitDict()
    for name, own in files.items():
        size, rows = sum(file.num_bytes for file in own), sum(file.rows for file in own)
        splits.add(SplitInfo(name=name, num_bytes=size, num_examples=rows))
    return DatasetInfo(
        features=Features(dict(features)),
        splits=splits,
        download_size=sum(file.size_bytes for own in files.values() for file in own),
        dataset_size=sum(split.num_bytes for split in splits.values()),
    )


def _size_category(rows: int) -> str:
    number = min(max(len(str(rows)) - 3, 0), len(_SIZES) - 1)
    return f"{_SIZES[number - 1]}<n<{_SIZES[number]}" if number else f"n<{_SIZES[0]}"


def name_license(verdict: Verdict) -> str:
    """The licence's name for people."""
    return verdict.license_name or verdict.license


def _license_table(verdict: Verdict) -> str:
    def line(part: Part) -> str:
        if part.by is None:
            return f"| {to_markdown(part.what)} | not known | not known | |"
        seen = licenses.EVIDENCE[part.by.evidence]
        return (
            f"| {to_markdown(part.what)} | {link(part.by.title, part.by.url)} "
            f"| {YES_NO[part.commercial]} "
            f"| {link(part.by.checked_on.isoformat(), part.by.source_url)}, {seen} |"
        )

    return "\n".join(map(line, verdict.parts))


def _media_table(origin: Origin, contents: Contents) -> str:
    lines = []
    by_count = sorted(contents.media.items(), key=lambda item: (-item[1][0], item[0] or ""))
    for name, (count, rows) in by_count:
        entry = origin.registry.license(name)
        shown = link(entry.title, entry.url) if entry else to_markdown(name or "not known")
        use = YES_NO[origin.registry.allows(name)]
        if entry is not None and use == "no":
            against = {"non-commercial": entry.commercial, "no derivatives": entry.derivatives}
            use += f" ({', '.join(why for why, allowed in against.items() if allowed is False)})"
        lines.append(f"| {shown} | {count:,} | {rows:,} | {use} |")
    return "\n".join(lines) or "| none | 0 | 0 | |"


def _count_table(origin: Origin, contents: Contents, report: Report | None) -> str:
    def reasons(counts: Mapping[str, Mapping[str, int]] | None, kind: str) -> str:
        if counts is None:
            return "not recorded"
        found = sorted(counts.get(kind, {}).items())
        return ", ".join(f"{to_markdown(reason)} {count}" for reason, count in found) or "none"

    rejected, failed = (report.rejected, report.failed) if report else (None, None)
    return "\n".join(
        f"| {to_markdown(kind)} | {contents.rows[kind]:,} | {contents.truncated.get(kind, 0):,} "
        f"| {reasons(rejected, kind)} | {reasons(failed, kind)} |"
        for kind in types_of(origin, contents)
    )


def _measured_text(contents: Contents) -> str:
    """What the rows are like, beside what GPT-4's are like."""
    details = list_items(map(to_markdown, quality_text.details(contents.quality)))
    return f"{quality_text.as_markdown(contents.quality)}\n\n{details}".rstrip()


def _left_out_note(origin: Origin) -> str:
    notes = [f"{count:,} x {to_markdown(why)}" for why, count in sorted(origin.skipped.items())]
    return f"Left out when reading the annotations: {', '.join(notes) or 'nothing'}."


def _generation_table(origin: Origin, contents: Contents) -> str:
    facts = {name: ", ".join(values) for name, values in contents.generation.items()}
    facts |= dict(origin.settings)
    if origin.written_on:
        facts["first written as a release"] = f"{origin.written_on.isoformat()} (UTC)"
    facts = facts or {"model": origin.model, "backend": origin.backend}
    return "\n".join(
        f"| {to_markdown(name)} | {link_urls(value)} |" for name, value in facts.items()
    )


def _rebuild_text(origin: Origin) -> str:
    if origin.command is None:
        return "The command that made it was not recorded."
    left_out = [f"`{word}`" for word in ("URL", "DIR") if word in origin.command.split()]
    own = f", with your own in the place of {' and '.join(left_out)}" if left_out else ""
    return f"This makes the rows again{own}:\n\n{fence(_break_lines(origin.command), 'bash')}"


def _break_lines(command: str) -> str:
    """Words in lines that a shell takes for one, ended before flags; all else as it is."""
    words = [shlex.quote(word) for word in split_command(command)]
    if not words:
        return command
    lines = [words[0]]
    flags = [number for number, word in enumerate(words) if word.startswith("--")]
    edges = [1, *flags, len(words)]
    for start, end in zip(edges, edges[1:], strict=False):
        part = " ".join(words[start:end])
        if len(f"{lines[-1]} {part} \\") <= _COMMAND_WIDTH or len(lines) == start == 1:
            lines[-1] += f" {part}"
        else:
            lines.append(f"    {part}")
    return " \\\n".join(lines)


def _example(row: Mapping[str, Any]) -> str:
    """A row's conversation, shortened, in a block that nothing in it can end."""
    lines: list[str] = []
    room = _EXAMPLE_CHARACTERS
    for number, message in enumerate(row["messages"]):
        if room <= 0:
            lines.append(f"[{len(row['messages']) - number} more messages]")
            break
        text = f"{message['role']}: {message['content']}"
        room -= len(text)
        text = text if room >= 0 else f"{text[:room]} [...]"
        for line in text.splitlines():
            lines += textwrap.wrap(to_line(line), _EXAMPLE_WIDTH) or [""]
    about = f"{to_markdown(row['type'])}, about {to_markdown(row.get('media') or row['id'])}:"
    return f"{about}\n\n{fence(chr(10).join(lines), 'text')}"
