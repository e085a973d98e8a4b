"""Licences that compose: facts, what a model is, and what rows made of them may be used for.

    names        ids, addresses and names, and models' names inside other names
    prose        what sentences say against some use, or of what a model was made from
    hosts        whose server a host is, and patterns of hosts
    registry     entries by id, strictly read; a user's own over ours
    cards        what a model's own files, or its card on the Hub, say about it
    services     the service behind a URL, its terms, and what its models' names stand for
    lineage      a model's terms, its bases' and its service's, from an exact id or all evidence
    composition  annotations x prompts x model (x images) -> `Verdict`
    use          text, images and both together, in the sentence that is said everywhere
    elsewhere    what a data set that others made says of who wrote it
    advice       the verdict in words, and free alternatives

It fails closed: what isn't known is never "commercial".
"""

from __future__ import annotations

from mminstruct.licenses.advice import (
    WIDTH,
    alternatives,
    check_commercial,
    explanation,
    list_lines,
    rests_on,
)
from mminstruct.licenses.cards import Declared, declared
from mminstruct.licenses.composition import EVIDENCE, Part, Role, Verdict, compose, why_not
from mminstruct.licenses.elsewhere import DataSet, parts_of, read_data_set
from mminstruct.licenses.entries import License
from mminstruct.licenses.hosts import is_public
from mminstruct.licenses.lineage import model_parts, named_model
from mminstruct.licenses.names import hub_id
from mminstruct.licenses.registry import ENDPOINTS_JOINT, Registry, load, text_of, together, usable
from mminstruct.licenses.use import Tally, Use
from mminstruct.resources import count_of

__all__ = [
    "ENDPOINTS_JOINT",
    "EVIDENCE",
    "WIDTH",
    "DataSet",
    "Declared",
    "License",
    "Part",
    "Registry",
    "Tally",
    "Use",
    "Verdict",
    "alternatives",
    "annotation_parts",
    "check_commercial",
    "compose",
    "declared",
    "explanation",
    "hub_id",
    "image_part",
    "is_public",
    "list_lines",
    "load",
    "model_parts",
    "named_model",
    "parts_of",
    "prompt_part",
    "read_data_set",
    "rests_on",
    "text_of",
    "together",
    "usable",
    "why_not",
]


def annotation_parts(
    registry: Registry, *, source: str, title: str, license: str, plain: str | None = None
) -> list[Part]:
    """The annotations of a source: as registered, and under the licence that it names itself.

    The two differ where the source was asked for more than its licence covers. A user's entry for
    the source takes the place of both, but never of what more was asked for.

    Args:
        registry: the facts.
        source: name on the command line, such as ``COCO2017``.
        title: in words.
        license: SPDX identifier, as the source names it.
        plain: the one that it names when nothing more is asked for.
    """
    what = f"annotations of {title}"
    named = _look_up(registry, "annotations", what, license)
    work = registry.annotation(source)
    if work is None:
        return [named]
    entry = registry.licenses[work.license] if work.license else None
    said = f"; {work.note}" if work.note else ""
    origin = registry.origin("annotations", work.id)
    seen = f"; see {work.source_url} ({EVIDENCE[work.evidence]})"
    listed = Part("annotations", what, entry, f"{seen}{said}{origin}")
    is_whole = named.by == entry or (origin and license == plain)
    return [listed] if is_whole else [listed, named]


def prompt_part(registry: Registry, *, name: str, license: str) -> Part:
    """Prompts and few-shot examples under the licence that their config names."""
    return _look_up(registry, "prompts", f"prompts and examples of {name!r}", license)


def image_part(registry: Registry, *, license: str | None, count: int | None = None) -> Part:
    """Shipped images under one licence, as rows name it; None is unknown."""
    what = "images" if count is None else count_of(count, "image")
    return _look_up(registry, "images", f"{what} under {license or 'unknown licences'}", license)


def _look_up(registry: Registry, role: Role, what: str, license: str | None) -> Part:
    entry = registry.license(license)
    if entry is None:
        note = f"; no licence is registered as {license!r}" if license else ""
        return Part(role, what, None, note)
    return Part(role, what, entry, registry.origin("licenses", entry.id))
