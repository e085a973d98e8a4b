"""LICENSE, ATTRIBUTION.md and provenance.json of a release."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mminstruct import licenses
from mminstruct.licenses import License, Part, Use
from mminstruct.licenses.use import YES_NO
from mminstruct.releases.cards import name_license
from mminstruct.releases.markdown import fence, link, link_urls, list_items, to_line, to_markdown
from mminstruct.releases.origin import Contents, Origin, all_sources
from mminstruct.rows.report import Report

_NOT_INCLUDED = " are not included. "
_INCLUDED = " are included where rows are about them, as listed below. "


def license_text(origin: Origin, use: Use) -> str:
    """The file LICENSE, of rows that may be used as ``use`` says."""
    verdict = origin.verdict
    parts = [
        use_line(use),
        f"The text of this dataset: {name_license(verdict)}",
        *_lists({"Why": verdict.reasons, "Obligations": map(str, verdict.obligations)}),
        *dict.fromkeys(to_line(source.attribution) for source in all_sources(origin)),
        *(
            f"The {source.modality}s of {source.title}{_NOT_INCLUDED}{source.media_license}"
            for source in all_sources(origin)
        ),
        *_licenses_to_keep(verdict.parts),
    ]
    return "\n\n".join(parts) + "\n"


def add_images(text: str, images: Sequence[Part], credits: str) -> str:
    """The file LICENSE of rows with their images, from that of rows without.

    Args:
        text: of the rows without.
        images: a part for each licence of theirs.
        credits: name of the file that names the author of each.
    """
    told = re.sub(f"^(The images of .+?){_NOT_INCLUDED}", rf"\1{_INCLUDED}", text, flags=re.M)
    duties = dict.fromkeys(str(duty) for p in images if p.by for duty in p.by.obligations)
    lists = {
        "Images that are included, each under its own licence": [part.reason for part in images],
        "Obligations of the images": duties,
    }
    parts = [
        told.rstrip(),
        *_lists(lists),
        f"{credits} names the author, title and page of each image, as far as they are known, its "
        "licence, and how it was changed.",
        *_licenses_to_keep(images),
    ]
    return "\n\n".join(parts) + "\n"


def _lists(sections: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """What there is under each title, an entry a line."""
    for title, entries in sections.items():
        if items := list_items(map(to_line, entries)):
            yield f"{title}:\n\n{items}"


def _licenses_to_keep(parts: Iterable[Part]) -> Iterator[str]:
    """The texts that have to go along, where a licence asks for itself to be kept."""
    for license in dict.fromkeys(part.by for part in parts if isinstance(part.by, License)):
        asks = any((o.when, o.kind) == ("rows-shared", "notice") for o in license.obligations)
        if asks and (text := licenses.text_of(license)):
            yield f"The text of {license.title}:\n\n{text.strip()}"


def use_line(use: Use) -> str:
    """What is said first in a file LICENSE."""
    return f"Commercial use: {use}."


def read_use(noted: Mapping[str, Any]) -> str:
    """The line of a release's LICENSE about commercial use, by what its provenance.json notes.

    Older releases note no counts, and their line is about the text alone.

    Raises:
        KeyError, TypeError, AttributeError: it is no provenance.json of ours.
    """
    commercial = noted["licensing"]["commercial"]
    if "use" not in noted:
        return f"Commercial use: {YES_NO[commercial]}."
    return use_line(Use(commercial, **noted["use"]))


def find_unsaid(license_text: str, noted: Mapping[str, Any]) -> str | None:
    """What a file LICENSE doesn't say, though provenance.json does, or None.

    Raises:
        KeyError, TypeError, AttributeError: as in `read_use`.
    """
    licensing = noted["licensing"]
    text = f"The text of this dataset: {licensing['license_name'] or licensing['license']}"
    lines = license_text.splitlines()
    return next((line for line in (text, read_use(noted)) if line not in lines), None)


def attribution(origin: Origin, contents: Contents) -> str:
    """The file ATTRIBUTION.md: whom to name, and for which image."""
    cited = dict.fromkeys(s.citation.strip() for s in origin.sources if s.citation)
    parts = [
        "# Attribution",
        *dict.fromkeys(link_urls(source.attribution) for source in all_sources(origin)),
        *(fence(citation, "bibtex") for citation in cited),
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
        parts.append(list_items(map(_credit, contents.credits)) or "None.")
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


def _credit(image: Mapping[str, str | None]) -> str:
    """Title, author, licence and pages of an image, as Markdown."""
    name, title, author = image["media"] or image["image_id"] or "", image["title"], image["author"]
    shown = link(title or name, image["landing_url"] or image["image_url"])
    shown += f" ({to_markdown(name)})" if title else ""
    shown += f" by {link(author, image['author_url'])}" if author else ""
    return f"{shown}, {link(image['image_license'] or 'licence not known', image['license_url'])}"
