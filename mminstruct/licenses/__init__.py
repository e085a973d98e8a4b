"""What the licence of a row's text may be: facts in YAML, and the rule that combines them.

It fails closed. What isn't known is not "commercial": an unknown model gives ``unknown``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml


@dataclass(frozen=True, slots=True)
class ModelTerms:
    """What a model's terms say about its outputs.

    Attributes:
        license: Hub identifier of the terms.
        output_training: ``allowed``, ``conditional``, ``same-family-only``, ``forbidden`` or
            ``unknown``.
        source_url: where the terms are.
        checked_on: ISO date of the last look.
    """

    license: str
    output_training: str
    source_url: str
    checked_on: str


UNKNOWN = ModelTerms("unknown", "unknown", "", "")


@lru_cache(maxsize=1)
def _registry() -> dict[str, ModelTerms]:
    data = yaml.safe_load((Path(__file__).parent / "models.yaml").read_text(encoding="utf-8"))
    return {
        repo_id: ModelTerms(
            entry["license"], entry["output_training"], entry["source_url"], str(data["checked_on"])
        )
        for entry in data["terms"]
        for repo_id in entry["models"]
    }


def model_terms(repo_id: str | None) -> ModelTerms:
    """The terms of a model by its exact Hub id (or ``openai-api``), never by family name."""
    return _registry().get(repo_id or "", UNKNOWN)


def text_license(annotation_license: str, terms: ModelTerms) -> str:
    """Hub licence id of text that a model wrote from annotations: the strictest part decides.

    The annotations' licence where the model's terms leave its outputs free, ``unknown`` where they
    are not known, ``other`` everywhere else.
    """
    if terms.output_training == "allowed":
        return annotation_license.lower()
    return "unknown" if terms.output_training == "unknown" else "other"


_BY_STRICTNESS = ("cc0-1.0", "cc-by-4.0", "other", "unknown")


def strictest(license_ids: Iterable[str]) -> str:
    """The licence of rows under several licences taken together; never the freer one.

    Licences that aren't ranked here make ``other`` of anything but themselves.
    """
    distinct = set(license_ids)
    if len(distinct) == 1:
        return distinct.pop()
    ranks = [_BY_STRICTNESS.index(name if name in _BY_STRICTNESS else "other") for name in distinct]
    return _BY_STRICTNESS[max(ranks)]
