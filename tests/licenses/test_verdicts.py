"""Verdicts on models and services, against a table from facts and against each entry's own terms.

``verdicts.csv`` was written from licences and terms of service, without a look at the registry.
What has no entry is unknown there, which is no wrong answer; a yes that is none, and a no that is
none, are.
"""

from __future__ import annotations

import csv
import datetime
import itertools
from pathlib import Path
from typing import Any, get_args

import pytest

from mminstruct import licenses
from mminstruct.licenses import Verdict
from mminstruct.licenses.entries import OutputTraining
from mminstruct.licenses.registry import Model
from mminstruct.recipe import find_annotation_parts
from mminstruct.sources import get

REGISTRY = licenses.load()
ANNOTATIONS = find_annotation_parts(REGISTRY, get("SAMPLE").info)
_FILE = Path(__file__).parent / "verdicts.csv"
TABLE = list(csv.DictReader(_FILE.read_text(encoding="utf-8").splitlines()))
ANSWERS = ("yes", "conditional", "no")  # from free to barred
LEAST_ANSWERED = 0.8


def answer(verdict: Verdict) -> str:
    if verdict.commercial is None:
        return "unknown"
    is_bound = verdict.output_training == "conditional" or verdict.obligations
    return ("conditional" if is_bound else "yes") if verdict.commercial else "no"


def judged(name: str, endpoint: str) -> str:
    if endpoint:
        parts = licenses.model_parts(REGISTRY, name=name, repo_id=name, endpoints=[endpoint])
    else:
        parts = licenses.named_model(REGISTRY, name)
    return answer(licenses.compose(REGISTRY, [*ANNOTATIONS, *parts]))


def wrong(order: int) -> list[str]:
    """Rows whose answer is freer (1) or stricter (-1) than the table's."""
    found = []
    for row in TABLE:
        got, expected = judged(row["name"], row["endpoint"]), row["expected"]
        if got == "unknown" or got == expected:
            continue
        is_freer = expected == "unknown" or ANSWERS.index(got) < ANSWERS.index(expected)
        if is_freer is (order > 0):
            found.append(f"{row['name']} {row['endpoint']}: {got}, expected {expected}")
    return found


def test_the_table_is_of_eighty_facts_each_once_with_source_and_day() -> None:
    assert len(TABLE) >= 80
    assert len({(row["name"], row["endpoint"]) for row in TABLE}) == len(TABLE)
    for row in TABLE:
        assert row["expected"] in (*ANSWERS, "unknown")
        assert row["source"].startswith("https://")
        assert datetime.date.fromisoformat(row["day"]) <= datetime.date(2027, 1, 1)


def test_no_verdict_is_freer_than_the_facts() -> None:
    assert wrong(1) == []


def test_no_verdict_is_stricter_than_the_facts_but_for_what_is_unknown() -> None:
    assert wrong(-1) == []


def test_four_of_five_facts_are_answered() -> None:
    known = [row for row in TABLE if row["expected"] != "unknown"]
    missing = [r["name"] for r in known if judged(r["name"], r["endpoint"]) == "unknown"]
    share = 1 - len(missing) / len(known)
    assert share >= LEAST_ANSWERED, f"{share:.0%} answered; not: {', '.join(missing)}"


def lineage(model: Model) -> list[Model | None]:
    """A model and what it was made from; None is without entry."""
    found: list[Model | None] = [model]
    while (last := found[-1]) is not None and last.base is not None:
        found.append(REGISTRY.models.get(last.base))
    return found


def strictest(says: list[OutputTraining]) -> Any:
    return max(says, key=get_args(OutputTraining).index)


def test_every_registered_model_is_judged_by_its_own_terms_and_those_of_its_bases() -> None:
    checked = 0
    for model in REGISTRY.models.values():
        terms = [REGISTRY.terms[m.terms] if m else None for m in lineage(model)]
        says: list[OutputTraining] = [t.output_training if t else "unknown" for t in terms]
        parts = licenses.named_model(REGISTRY, model.repo_id)
        verdict = licenses.compose(REGISTRY, [*ANNOTATIONS, *parts])
        assert verdict.output_training == strictest(says), model.repo_id
        barred = not {"same-family-only", "research-only", "forbidden"}.isdisjoint(says)
        expected = False if barred else None if "unknown" in says else True
        assert verdict.commercial is expected, model.repo_id
        duties = set(itertools.chain.from_iterable(t.obligations for t in terms if t))
        assert set(verdict.obligations) == duties, model.repo_id
        checked += 1
    assert checked >= 220


@pytest.mark.parametrize("service", [e for e in REGISTRY.endpoints.values() if e.own_models])
def test_every_service_of_its_own_models_is_judged_by_its_terms(service: Any) -> None:
    host = service.hosts[0].replace("*", "acme")
    parts = licenses.model_parts(REGISTRY, name="any", endpoints=[f"https://{host}/v1"])
    verdict = licenses.compose(REGISTRY, [*ANNOTATIONS, *parts])
    says = REGISTRY.terms[service.terms].output_training if service.terms else "unknown"
    assert verdict.output_training == says
