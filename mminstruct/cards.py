"""What is said about a release: card, licence file, attribution, provenance and Croissant.

Values in, text out: `mminstruct.release` reads the rows and the templates and writes the files.
Whatever comes from outside (a model's name or words, an author's title) is escaped for where it
goes: Markdown, a fenced block, YAML or JSON.

**Source:** https://github.com/huggingface/hub-docs/blob/main/datasetcard.md (the front matter),
https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html (croissant.json).
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import shlex
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from string import Template
from typing import Any
from urllib.parse import quote

import pyarrow as pa
from datasets import DatasetInfo, Features, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from mminstruct import licenses
from mminstruct.errors import ConfigError, did_you_mean
from mminstruct.generate import Report
from mminstruct.licenses import License, Part, Registry, Use, Verdict
from mminstruct.prompts import PromptConfig
from mminstruct.sources import SourceInfo

LISTED_CREDITS = 1000
"""As many images are credited in ATTRIBUTION.md; more than that in a Parquet file beside it."""

COLUMNS = {
    "id": "unique: source, image and type; the same in every run",
    "source": "whose annotations",
    "image_id": "the image's (motion's ...) identifier in its source",
    "modality": "what the annotations describe: `image`, `motion` ...",
    "media": "the file's name in its release",
    "image": "the same, of an image; null otherwise",
    "image_url": "where the publisher serves it, if anywhere",
    "width": "in pixels, if known",
    "height": "in pixels, if known",
    "rotation_deg": "degrees counter-clockwise by which the published file has to be turned; "
    "width, height and text are about the upright image",
    "image_license": "the image's own licence (SPDX where there is an id); null is not known",
    "image_credit": "author, title and pages, as far as the release of the images tells",
    "type": "the type of instruction, which is also the name of a config",
    "messages": "the conversation: `role` is `user` or `assistant`",
    "license": "of the text, as the Hub calls it",
    "commercial_use": "whether text and image together may train any model commercially; "
    "null is not known",
    "provenance": "backend, model, prompt config and its hash, sampling, examples shown, "
    "finish reason, tokens",
}
"""What the columns of a row hold."""

CREDIT_COLUMNS = (
    *("source", "image_id", "media", "title", "author", "author_url"),
    *("landing_url", "image_url", "license", "license_url"),
)
"""What is said of an image that has to be credited; each is text or None."""

_TASKS = {
    "image": ["visual-question-answering", "image-text-to-text"],
    "video": ["video-text-to-text", "text-generation"],
}
_SIZES = tuple(
    (f"{low}<n<{high}" if low else f"n<{high}", bound)
    for low, high, bound in (
        *(("", "1K", 10**3), ("1K", "10K", 10**4), ("10K", "100K", 10**5)),
        *(("100K", "1M", 10**6), ("1M", "10M", 10**7), ("10M", "100M", 10**8)),
        *(("100M", "1B", 10**9), ("1B", "10B", 10**10)),
    )
)
_YES_NO = {True: "yes", False: "no", None: "not known"}
_DRY_RUN = (
    "**This is a dry run**: the text is a scripted stand-in's, to look at the form and not to "
    "train on.\n\n"
)
_COMMAND_WIDTH = 88
_EXAMPLES = 3
_EXAMPLE_CHARACTERS = 1200
_EXAMPLE_WIDTH = 90
_URL = re.compile(r"https?://[^\s<>|\\`\"\])}]+[^\s<>|\\`\"\])};,.:!?]")
# Overrides of the direction of text would show other words than there are.
_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Origin:
    """How a release came about.

    Attributes:
        sources: whose annotations.
        configs: the prompt config of each source.
        types: instruction types that were asked for, in order.
        backend: name of the backend.
        model: name of the model.
        verdict: what the text may be used for, and why.
        registry: what is known about licences.
        settings: what else the rows depend on, in words.
        skipped: what reading the annotations left out, counted by reason.
        left_out: the same with examples, an entry a reason, for this machine alone.
        command: what makes the rows again, or None if that isn't known.
        written_on: the day on which the rows were first written as a release, UTC.
        repo_id: where on the Hub it will be; None is a folder.
    """

    sources: tuple[SourceInfo, ...]
    configs: tuple[PromptConfig, ...]
    types: tuple[str, ...]
    backend: str
    model: str
    verdict: Verdict
    registry: Registry = field(default_factory=licenses.load)
    settings: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    left_out: Sequence[Mapping[str, Any]] = ()
    command: str | None = None
    written_on: datetime.date | None = None
    repo_id: str | None = None

    @property
    def title(self) -> str:
        """The release in a line."""
        titles = dict.fromkeys(source.title for source in self.sources)
        start = "Dry run: " if self.is_dry_run else ""
        return f"{start}{' + '.join(titles)} instructions by {_line(self.model)}"

    @property
    def is_dry_run(self) -> bool:
        """Whether a scripted stand-in wrote the text, and no model."""
        return self.backend == "fake"

    @property
    def media(self) -> str:
        """What the annotations describe, in a word and in the plural."""
        kinds = {source.modality for source in self.sources}
        return f"{kinds.pop()}s" if len(kinds) == 1 else "media"


@dataclass(frozen=True, slots=True)
class DataFile:
    """A Parquet file of a release.

    Attributes:
        path: relative to the release.
        type: instruction type of all its rows.
        split: of all its rows.
        rows: how many.
        num_bytes: of the rows in memory.
        size_bytes: of the file.
        sha256: of the file, in hex.
    """

    path: str
    type: str
    split: str
    rows: int
    num_bytes: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a release.

    Attributes:
        features: of its rows.
        files: its rows, by type and then by split.
        media: licence of images (motions ...) -> how many of them, and how many rows about them.
        use: what text, images and rows may be used for.
        truncated: rows whose last turn was cut off and left out, by type.
        generation: what rows say of how they were made -> the values that occur.
        examples: type -> a row of it.
        credits: images that have to be credited, with `CREDIT_COLUMNS`, if they are few.
        credit_count: how many have to be.
        credits_file: where they are listed if they are many, relative to the release.
    """

    features: Features
    files: tuple[DataFile, ...]
    media: Mapping[str | None, tuple[int, int]] = field(default_factory=dict)
    use: Use = field(default_factory=lambda: Use(None))
    truncated: Mapping[str, int] = field(default_factory=dict)
    generation: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    examples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    credits: tuple[Mapping[str, str | None], ...] = ()
    credit_count: int = 0
    credits_file: str | None = None

    @property
    def rows(self) -> Counter[str]:
        """Rows by type."""
        counts: Counter[str] = Counter()
        for file in self.files:
            counts[file.type] += file.rows
        return counts


@dataclass(frozen=True, slots=True)
class Page:
    """Prose about a builder, in Markdown: what it is, what it is good for, its known limits."""

    about: str
    uses: str
    limits: str


_SECTIONS = {"What it is": "about", "Good for": "uses", "Known limits": "limits"}


def page(text: str, where: str) -> Page:
    """A builder's page from its text.

    Raises:
        ConfigError: it doesn't have exactly the sections of a page, each with some text.
    """
    _, *parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    found = {name.strip(): body.strip() for name, body in zip(parts[::2], parts[1::2], strict=True)}
    if list(found) != list(_SECTIONS) or not all(found.values()) or not text.startswith("## "):
        raise ConfigError(
            f"{where}: got the sections {', '.join(found) or 'none'} against "
            f"{', '.join(_SECTIONS)} expected, each with text; write them"
        )
    return Page(**{_SECTIONS[name]: body for name, body in found.items()})


def general_page(source: SourceInfo, config: PromptConfig) -> Page:
    """A page for a pair of source and prompt config that has no builder of its own."""
    parts = source.parts or (source,)
    media = f"{source.modality}s"
    return Page(
        about=" ".join(
            [*(_markdown(part.description) for part in parts), _markdown(config.description)]
        ),
        uses=f"Teaching a model to talk about {media} of this kind, and experiments with what a "
        f"writer makes of the annotations of {_markdown(source.title)}.",
        limits=f"What nobody annotated is missing or guessed, and mistakes of the annotations are "
        f"passed on. The {media} themselves are not included and have licences of their own.",
    )


def _types_held(origin: Origin, types: Sequence[str]) -> str:
    """Which types there are rows of, unless there are of all that the prompt configs have."""
    every = dict.fromkeys(kind for config in origin.configs for kind in config.types)
    if set(every) <= set(types):
        return ""
    return (
        f" This release has rows of the type {' and '.join(f'`{kind}`' for kind in types)} alone."
    )


def _partly(report: Report | None) -> str:
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
    types = [kind for kind in _types(origin, contents) if contents.rows[kind]] or origin.types
    path = json.dumps(origin.repo_id or name, ensure_ascii=False)
    body = fill(
        template,
        {
            "title": _markdown(origin.title),
            "summary": (_DRY_RUN if origin.is_dry_run else "")
            + " ".join(dict.fromkeys(_markdown(c.description) for c in origin.configs))
            + _types_held(origin, types)
            + _partly(report),
            "model": _markdown(origin.model),
            "about": _prose(origin, [page.about for page in pages]),
            "uses": _prose(origin, [page.uses for page in pages]),
            "limits": _prose(origin, [page.limits for page in pages]),
            "left_out": "were left out and are listed with their reasons in `rejected.jsonl`, if "
            "there were any"
            if report
            else "were left out before these rows were put together",
            "usage": _fenced(
                "from datasets import load_dataset\n\n"
                f"everything = load_dataset({path})\n"
                f"one_type = load_dataset({path}, {json.dumps(types[0], ensure_ascii=False)})",
                "python",
            ),
            "media": origin.media,
            "column_table": "\n".join(
                f"| `{column}` | {COLUMNS[column]} |"
                for column in contents.features
                if column in COLUMNS
            ),
            "license_table": _license_table(origin.verdict),
            "license": _markdown(_license_name(origin.verdict)),
            "use": _markdown(str(contents.use)),
            "reasons": _items(map(_linked, origin.verdict.reasons)),
            "obligations": _items(map(_linked, map(str, origin.verdict.obligations)))
            or "None that are known.",
            "media_licenses": " ".join(
                dict.fromkeys(_linked(s.media_license) for s in origin.sources)
            ),
            "media_table": _media_table(origin, contents),
            "attribution": "\n\n".join(dict.fromkeys(_linked(s.attribution) for s in _all(origin))),
            "count_table": _count_table(origin, contents, report),
            "drop_notes": _drop_notes(origin),
            "examples": "\n\n".join(
                _example(contents.examples[kind])
                for kind in types[:_EXAMPLES]
                if kind in contents.examples
            )
            or "There are no rows.",
            "generation_table": _generation_table(origin, contents),
            "rebuild": _rebuild(origin),
            "citation": "\n\n".join(_fenced(citation, "bibtex") for citation in citations)
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
    data = DatasetCardData(
        language=["en"],
        **terms,
        pretty_name=origin.title,
        annotations_creators=["machine-generated"],
        language_creators=["machine-generated"],
        multilinguality=["monolingual"],
        size_categories=[_size_category(contents.rows.total())],
        source_datasets=list(dict.fromkeys(source.name.lower() for source in _all(origin))),
        task_categories=list(dict.fromkeys(tasks)),
        tags=["mminstruct", "synthetic", "instruction-tuning", *modalities],
        configs=[
            {
                "config_name": config,
                "data_files": [
                    {"split": split, "path": [file.path for file in files if file.split == split]}
                    for split in dict.fromkeys(file.split for file in files)
                ],
            }
            for config, files in _configs(contents).items()
        ],
    )
    infos = {name: _info(contents.features, files) for name, files in _configs(contents).items()}
    DatasetInfosDict(infos).to_dataset_card_data(data)
    return data


def license_text(origin: Origin, use: Use) -> str:
    """The file LICENSE, of rows that may be used as ``use`` says."""
    verdict = origin.verdict
    lists = {"Why": verdict.reasons, "Obligations": map(str, verdict.obligations)}
    parts = [
        use_line(use),
        f"The text of this dataset: {_license_name(verdict)}",
        *(
            f"{title}:\n\n" + "\n".join(f"- {_line(entry)}" for entry in entries)
            for title, entries in ((title, list(entries)) for title, entries in lists.items())
            if entries
        ),
        *dict.fromkeys(_line(source.attribution) for source in _all(origin)),
        *(
            f"The {source.modality}s of {source.title} are not included. {source.media_license}"
            for source in _all(origin)
        ),
        *_licenses_to_keep(origin.verdict),
    ]
    return "\n\n".join(parts) + "\n"


def _licenses_to_keep(verdict: Verdict) -> Iterator[str]:
    """The texts that have to go with the rows, where a licence asks for itself to be kept."""
    for license in dict.fromkeys(
        part.by for part in verdict.parts if isinstance(part.by, License) and part.role != "images"
    ):
        asks = any((o.when, o.kind) == ("rows-shared", "notice") for o in license.obligations)
        if asks and (text := licenses.text_of(license)):
            yield f"The text of {license.title}:\n\n{text.strip()}"


def use_line(use: Use) -> str:
    """What is said first in a file LICENSE."""
    return f"Commercial use: {use}."


def noted_use(noted: Mapping[str, Any]) -> str:
    """The line of a release's LICENSE about commercial use, by what its provenance.json notes.

    Older releases note no counts, and their line is about the text alone.

    Raises:
        KeyError, TypeError, AttributeError: it is no provenance.json of ours.
    """
    commercial = noted["licensing"]["commercial"]
    if "use" not in noted:
        return f"Commercial use: {_YES_NO[commercial]}."
    return use_line(Use(commercial, **noted["use"]))


def unsaid(license_text: str, noted: Mapping[str, Any]) -> str | None:
    """What a file LICENSE doesn't say, though provenance.json does, or None.

    Raises:
        KeyError, TypeError, AttributeError: as in `noted_use`.
    """
    licensing = noted["licensing"]
    text = f"The text of this dataset: {licensing['license_name'] or licensing['license']}"
    lines = license_text.splitlines()
    return next((line for line in (text, noted_use(noted)) if line not in lines), None)


def attribution(origin: Origin, contents: Contents) -> str:
    """The file ATTRIBUTION.md: whom to name, and for which image."""
    cited = dict.fromkeys(s.citation.strip() for s in origin.sources if s.citation)
    parts = [
        "# Attribution",
        *dict.fromkeys(_linked(source.attribution) for source in _all(origin)),
        *(_fenced(citation, "bibtex") for citation in cited),
        f"## {origin.media.capitalize()}",
        f"The {origin.media} are not part of this dataset. Whoever shows or shares them has to "
        "keep to their licences; these are what is known of those that ask for attribution, or "
        "whose licence is not known.",
    ]
    if contents.credits_file:
        parts.append(
            f"{contents.credit_count:,} of them are listed in "
            f"[{contents.credits_file}]({contents.credits_file})."
        )
    else:
        parts.append(_items(map(_credit, contents.credits)) or "None.")
    return "\n\n".join(parts) + "\n"


def provenance(origin: Origin, contents: Contents, report: Report | None = None) -> str:
    """The file provenance.json: the same for machines, and the mark of our folders."""
    verdict = origin.verdict
    value = {
        "tool": "mminstruct",
        "sources": [source.name for source in origin.sources],
        "backend": origin.backend,
        "model": origin.model,
        "dry_run": origin.is_dry_run,
        "licensing": verdict.as_json(),
        "use": contents.use.as_json(),
        "licenses_checked": {
            part.what: part.by.checked_on.isoformat() if part.by else None for part in verdict.parts
        },
        "prompt_configs": [
            {"name": c.name, "version": c.version, "hash": c.hash, "license": c.license}
            for c in {c.hash: c for c in origin.configs}.values()
        ],
        "generation": {key: list(values) for key, values in contents.generation.items()},
        "settings": dict(origin.settings),
        "command": origin.command,
        "written_on": origin.written_on.isoformat() if origin.written_on else None,
        "rows": contents.rows,
        "truncated": dict(contents.truncated),
        "partial": {"answered": report.requests - report.unsent, "requests": report.requests}
        if report is not None and report.unsent
        else None,
        "rejected": None if report is None else report.rejected,
        "failed": None if report is None else report.failed,
        "skipped": dict(origin.skipped),
        "media_licenses": [
            {
                "license": name,
                "media": count,
                "rows": rows,
                "commercial": origin.registry.allows(name),
            }
            for name, (count, rows) in contents.media.items()
        ],
        "files": {f.path: {"rows": f.rows, "sha256": f.sha256} for f in contents.files},
    }
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def croissant(pages: Sequence[Page], name: str, origin: Origin, contents: Contents) -> str:
    """The file croissant.json: Croissant 1.1 with the fields of its RAI extension that apply.

    Columns of types that Croissant has no word for are left out.
    """
    version = hashlib.sha256("".join(sorted(f.sha256 for f in contents.files)).encode())
    owner = (origin.repo_id or "").partition("/")[0]
    value = {
        "@context": _CROISSANT_CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": [
            "http://mlcommons.org/croissant/1.1",
            "http://mlcommons.org/croissant/RAI/1.0",
        ],
        "name": _line(origin.repo_id or name),
        "description": " ".join([origin.title + ".", *(_line(page.about) for page in pages)]),
        "license": _license_urls(origin),
        "creator": {"@type": "sc:Organization", "name": owner}
        if owner
        else {
            "@type": "sc:Organization",
            "name": "mminstruct",
            "url": "https://pypi.org/project/mminstruct/",
        },
        "citeAs": "\n\n".join(dict.fromkeys(s.citation for s in origin.sources if s.citation))
        or _line(origin.title),
        "url": f"https://huggingface.co/datasets/{origin.repo_id}" if origin.repo_id else None,
        "datePublished": origin.written_on.isoformat() if origin.written_on else None,
        "version": f"1.0.0+{version.hexdigest()[:12]}",
        "inLanguage": "en",
        "keywords": [
            "synthetic",
            "instruction-tuning",
            *sorted({s.modality for s in origin.sources}),
        ],
        "isBasedOn": list(dict.fromkeys(source.homepage for source in _all(origin))),
        "rai:dataCollection": "A language model was shown annotations that people made of "
        f"{origin.media}, and wrote conversations as if it saw them. Answers that could not be "
        "read, gave the annotations away or repeated themselves were left out.",
        "rai:dataCollectionType": ["Synthetic data"],
        "rai:machineAnnotationTools": [f"{_line(origin.model)} ({origin.backend})", "mminstruct"],
        "rai:dataUseCases": [_line(page.uses) for page in pages],
        "rai:dataLimitations": [
            *(_line(page.limits) for page in pages),
            "Machine-written, and by a writer that saw no pixels: expect mistakes.",
            use_line(contents.use),
        ],
        "rai:dataBiases": [
            f"Those of the annotations of {' and '.join(s.title for s in _all(origin))}, and "
            f"those of {_line(origin.model)}."
        ],
        "rai:personalSensitiveInformation": [
            "Annotations describe people in photos or motions by their looks and doings. Credits "
            "of images name their authors where the source does."
        ],
        "distribution": _distribution(contents),
        "recordSet": [_record_set(kind, contents.features.arrow_schema) for kind in contents.rows],
    }
    return json.dumps(_without_empty(value), indent=2, ensure_ascii=False) + "\n"


_CROISSANT_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_PARQUET = "application/x-parquet"


def _license_urls(origin: Origin) -> list[str]:
    """The licence's text, or what each part is under."""
    entry = origin.registry.license(origin.verdict.license)
    if entry is not None:
        return [entry.url]
    return list(
        dict.fromkeys(part.by.url if part.by else "LICENSE" for part in origin.verdict.parts)
    )


def _distribution(contents: Contents) -> list[dict[str, Any]]:
    """Every file with its digest, and the files of each type as one."""
    files = [
        {
            "@type": "cr:FileObject",
            "@id": file.path,
            "name": file.path.rpartition("/")[2],
            "description": f"{file.rows} rows of type {file.type}, split {file.split}",
            "contentUrl": file.path,
            "contentSize": f"{file.size_bytes} B",
            "encodingFormat": _PARQUET,
            "sha256": file.sha256,
        }
        for file in contents.files
    ]
    sets = [
        {
            "@type": "cr:FileSet",
            "@id": f"{kind}-files",
            "name": f"{kind}-files",
            "description": f"all Parquet files of type {kind}",
            "encodingFormat": _PARQUET,
            "includes": f"data/{kind}/*.parquet",
        }
        for kind in contents.rows
    ]
    return [*files, *sets]


def _record_set(kind: str, schema: pa.Schema) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": kind,
        "name": kind,
        "description": f"rows of type {kind}",
        "key": {"@id": f"{kind}/id"},
        "field": [
            described
            for column in schema
            if (described := _field(kind, column.name, (), column.type)) is not None
        ],
    }


def _field(
    kind: str, column: str, path: tuple[str, ...], type_: pa.DataType
) -> dict[str, Any] | None:
    """A column, or a member of one, or None if Croissant has no word for its type."""
    where = "/".join((kind, column, *path))
    described: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": where,
        "name": path[-1] if path else column,
        "description": re.sub("[`]", "", COLUMNS.get(column, "")) if not path else "",
    }
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        described |= {"isArray": True, "arrayShape": "-1"}
        type_ = type_.value_type
    if pa.types.is_struct(type_) and not path:
        members = [_field(kind, column, (member.name,), member.type) for member in type_]
        return {**described, "subField": [member for member in members if member]}
    for is_it, name in _DATA_TYPES.items():
        if is_it(type_):
            source: dict[str, Any] = {
                "fileSet": {"@id": f"{kind}-files"},
                "extract": {"column": column},
            }
            if path:
                source["transform"] = {"jsonPath": ".".join(path)}
            return {**described, "dataType": name, "source": source}
    return None


_DATA_TYPES = {
    pa.types.is_string: "sc:Text",
    pa.types.is_large_string: "sc:Text",
    pa.types.is_integer: "sc:Integer",
    pa.types.is_floating: "sc:Float",
    pa.types.is_boolean: "sc:Boolean",
}


def _without_empty(value: dict[str, Any]) -> dict[str, Any]:
    """The mapping without what says nothing, at any depth."""
    kept: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, dict):
            inner = _without_empty(inner)
        elif isinstance(inner, list):
            inner = [_without_empty(i) if isinstance(i, dict) else i for i in inner]
        if inner not in (None, "", [], {}):
            kept[key] = inner
    return kept


def _all(origin: Origin) -> list[SourceInfo]:
    """The sources, with the parts in the place of joined ones."""
    return list(dict.fromkeys(part for s in origin.sources for part in s.parts or (s,)))


def _types(origin: Origin, contents: Contents) -> list[str]:
    """The types that were asked for and those that there are, in order."""
    return list(dict.fromkeys([*origin.types, *contents.rows]))


def _prose(origin: Origin, texts: Sequence[str]) -> str:
    """The pages' texts, each under its source's name if there are several."""
    distinct = dict(zip(texts, origin.sources, strict=True))
    if len(distinct) == 1:
        return texts[0]
    return "\n\n".join(f"*{_markdown(s.title)}.* {text}" for text, s in distinct.items())


def _configs(contents: Contents) -> dict[str, list[DataFile]]:
    by_type: dict[str, list[DataFile]] = {}
    for file in contents.files:
        by_type.setdefault(file.type, []).append(file)
    return {"default": list(contents.files), **by_type}


def _info(features: Features, files: Sequence[DataFile]) -> DatasetInfo:
    splits = SplitDict()
    for name in dict.fromkeys(file.split for file in files):
        own = [file for file in files if file.split == name]
        size, rows = sum(file.num_bytes for file in own), sum(file.rows for file in own)
        splits.add(SplitInfo(name=name, num_bytes=size, num_examples=rows))
    return DatasetInfo(
        features=Features(dict(features)),
        splits=splits,
        download_size=sum(file.size_bytes for file in files),
        dataset_size=sum(file.num_bytes for file in files),
    )


def _size_category(rows: int) -> str:
    return next((name for name, bound in _SIZES if rows < bound), "10B<n<100B")


def _license_name(verdict: Verdict) -> str:
    return verdict.license_name or verdict.license


def _license_table(verdict: Verdict) -> str:
    def line(part: Part) -> str:
        if part.by is None:
            return f"| {_markdown(part.what)} | not known | not known | |"
        seen = licenses.EVIDENCE[part.by.evidence]
        return (
            f"| {_markdown(part.what)} | {_link(part.by.title, part.by.url)} "
            f"| {_YES_NO[part.commercial]} "
            f"| {_link(part.by.checked_on.isoformat(), part.by.source_url)}, {seen} |"
        )

    return "\n".join(map(line, verdict.parts))


def _media_table(origin: Origin, contents: Contents) -> str:
    lines = []
    by_count = sorted(contents.media.items(), key=lambda item: (-item[1][0], item[0] or ""))
    for name, (count, rows) in by_count:
        entry = origin.registry.license(name)
        shown = _link(entry.title, entry.url) if entry else _markdown(name or "not known")
        use = _YES_NO[origin.registry.allows(name)]
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
        return ", ".join(f"{_markdown(reason)} {count}" for reason, count in found) or "none"

    rejected, failed = (report.rejected, report.failed) if report else (None, None)
    return "\n".join(
        f"| {_markdown(kind)} | {contents.rows[kind]:,} | {contents.truncated.get(kind, 0):,} "
        f"| {reasons(rejected, kind)} | {reasons(failed, kind)} |"
        for kind in _types(origin, contents)
    )


def _drop_notes(origin: Origin) -> str:
    notes = [f"{count:,} x {_markdown(why)}" for why, count in sorted(origin.skipped.items())]
    return f"Left out when reading the annotations: {', '.join(notes) or 'nothing'}."


def _generation_table(origin: Origin, contents: Contents) -> str:
    facts = {name: ", ".join(values) for name, values in contents.generation.items()}
    facts |= dict(origin.settings)
    if origin.written_on:
        facts["first written as a release"] = f"{origin.written_on.isoformat()} (UTC)"
    facts = facts or {"model": origin.model, "backend": origin.backend}
    return "\n".join(f"| {_markdown(name)} | {_linked(value)} |" for name, value in facts.items())


def _rebuild(origin: Origin) -> str:
    if origin.command is None:
        return "The command that made it was not recorded."
    left_out = [f"`{word}`" for word in ("URL", "DIR") if word in origin.command.split()]
    own = f", with your own in the place of {' and '.join(left_out)}" if left_out else ""
    return f"This makes the rows again{own}:\n\n{_fenced(_broken(origin.command), 'bash')}"


def _broken(command: str) -> str:
    """A command in lines that a shell takes for one; they end before flags."""
    words = [shlex.quote(word) for word in shlex.split(command)]
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
            lines += textwrap.wrap(_line(line), _EXAMPLE_WIDTH) or [""]
    about = f"{_markdown(row['type'])}, about {_markdown(row.get('media') or row['id'])}:"
    return f"{about}\n\n{_fenced(chr(10).join(lines), 'text')}"


def _credit(image: Mapping[str, str | None]) -> str:
    """Title, author, licence and pages of an image, as Markdown."""
    name, title, author = image["media"] or image["image_id"] or "", image["title"], image["author"]
    shown = _link(title or name, image["landing_url"] or image["image_url"])
    shown += f" ({_markdown(name)})" if title else ""
    shown += f" by {_link(author, image['author_url'])}" if author else ""
    return f"{shown}, {_link(image['license'] or 'licence not known', image['license_url'])}"


def _line(text: str) -> str:
    """The text in one line, without what a terminal or an editor would act upon."""
    shown = " ".join(_DIRECTION.sub("\ufffd", text).split())
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in shown)


def _markdown(text: str) -> str:
    """The text for a line or table cell of Markdown, to be read as it is."""
    return _opened(_escaped(_line(text)))


def _linked(text: str) -> str:
    """The same with its URLs as links."""
    text, parts, at = _line(text), [], 0
    for url in _URL.finditer(text):
        parts += [_escaped(text[at : url.start()]), f"<{_url(url[0])}>"]
        at = url.end()
    return _opened("".join([*parts, _escaped(text[at:])]))


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*\[\]<>|&~$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)


def _opened(text: str) -> str:
    """The text without a list item, a heading or a rule at its beginning."""
    return re.sub(r"^(\d+(?=[.)](?: |$))|)([-+=#.)])", r"\1\\\2", text)


def _link(text: str, url: str | None) -> str:
    """The text as a link, if the URL is one of a page."""
    if not re.match("https?://", url or ""):
        return _markdown(text)
    return f"[{_markdown(text)}](<{_url(url or '')}>)"


def _url(url: str) -> str:
    """The URL without anything that could end it before its end."""
    return quote(_line(url), safe=":/?#@!&+,;=%-._~")


def _items(entries: Iterable[str]) -> str:
    return "\n".join(f"- {entry}" for entry in entries)


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any in the text."""
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", text))]))
    return f"{fence}{language}\n{text}\n{fence}"
