"""The registry of model terms, and the rule that fails closed."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from mminstruct import licenses
from mminstruct.licenses import UNKNOWN, ModelTerms, model_terms, text_license

REGISTRY: dict[str, Any] = yaml.safe_load(
    (Path(licenses.__file__).parent / "models.yaml").read_text(encoding="utf-8")
)
ENTRIES: list[dict[str, Any]] = REGISTRY["terms"]
MODELS: list[str] = [model for entry in ENTRIES for model in entry["models"]]
RESTRICTED = ("conditional", "same-family-only", "forbidden")

# https://huggingface.co/docs/hub/repositories-licenses
_LISTED = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause
    bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
    eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research
    intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0
    openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
    deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2
    llama3.3 llama4 grok2-community gemma unknown other
"""
HUB_LICENSES = frozenset(_LISTED.split())


def test_the_registry_says_when_it_was_checked() -> None:
    assert isinstance(REGISTRY["checked_on"], datetime.date)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["license"])
def test_an_entry_is_complete_and_has_known_values(entry: dict[str, Any]) -> None:
    assert entry.keys() == {"license", "output_training", "source_url", "models"}
    assert entry["license"] in HUB_LICENSES - {"unknown"}
    assert entry["output_training"] in ("allowed", *RESTRICTED)
    assert re.fullmatch(r"https://[\w.-]+\.\w+/\S+", entry["source_url"])
    assert entry["models"]


def test_a_model_is_registered_once() -> None:
    assert [model for model, count in Counter(MODELS).items() if count > 1] == []


@pytest.mark.parametrize("model", MODELS)
def test_a_model_is_registered_by_its_repository_id(model: str) -> None:
    assert model == "openai-api" or re.fullmatch(r"[\w.-]+/[\w.-]+", model)


@pytest.mark.parametrize("model", MODELS)
def test_a_registered_model_is_found(model: str) -> None:
    (entry,) = (entry for entry in ENTRIES if model in entry["models"])
    terms = model_terms(model)
    assert (terms.license, terms.output_training) == (entry["license"], entry["output_training"])
    assert terms.source_url == entry["source_url"]
    assert datetime.date.fromisoformat(terms.checked_on) == REGISTRY["checked_on"]


@pytest.mark.parametrize("model", MODELS)
def test_a_model_is_found_by_its_exact_id_only(model: str) -> None:
    name = model.rpartition("/")[2]
    near = [
        *(model.upper(), model.swapcase(), f"{model} ", f" {model}", f"{model}/", f"/{model}"),
        *(f"{model}-GGUF", f"{model}-finetuned", f"someone/{name}", f"{model}@main", model[:-1]),
        *(f"https://huggingface.co/{model}", name if "/" in model else f"openai/{name}"),
    ]
    for spelled in near:
        assert spelled in MODELS or model_terms(spelled) == UNKNOWN


@pytest.mark.parametrize(
    "model",
    [
        "mistralai/mistral-7b-instruct-v0.2",
        "mistralai/Mistral-7B-Instruct-v0.4",
        "TheBloke/Mistral-7B-Instruct-v0.2-GGUF",
        "Mistral-7B-Instruct-v0.2",
        "meta-llama/Llama-3.1-405B",
        "gpt-4o",
        "unknown",
        "",
        None,
    ],
)
def test_what_is_not_registered_is_unknown(model: str | None) -> None:
    assert model_terms(model) == UNKNOWN
    assert text_license("CC-BY-4.0", model_terms(model)) == "unknown"


def terms(output_training: str, license_: str = "other") -> ModelTerms:
    return ModelTerms(license_, output_training, "https://example.org/terms", "2026-01-01")


@pytest.mark.parametrize("annotations", ["CC-BY-4.0", "CC0-1.0", "cc-by-nc-4.0", "MIT"])
def test_text_has_the_licence_of_the_annotations_only_where_outputs_are_free(
    annotations: str,
) -> None:
    assert text_license(annotations, terms("allowed", "mit")) == annotations.lower()
    for restriction in (*RESTRICTED, "a value of tomorrow", "", "Allowed"):
        assert text_license(annotations, terms(restriction, "mit")) == "other"
    assert text_license(annotations, terms("unknown")) == "unknown"


@pytest.mark.parametrize("model", [*MODELS, "no/such-model"])
def test_the_licence_of_a_text_is_one_that_the_hub_knows(model: str) -> None:
    for given in ("CC-BY-4.0", "CC0-1.0"):
        found = text_license(given, model_terms(model))
        assert found in HUB_LICENSES
        assert (found == given.lower()) == (model_terms(model).output_training == "allowed")


@pytest.mark.parametrize(
    ("together", "expected"),
    [
        (["cc-by-4.0", "cc-by-4.0"], "cc-by-4.0"),
        (["cc0-1.0", "cc-by-4.0"], "cc-by-4.0"),
        (["cc-by-4.0", "other"], "other"),
        (["cc0-1.0", "unknown", "other"], "unknown"),
        (["mit", "mit"], "mit"),
        (["mit", "cc0-1.0"], "other"),
    ],
)
def test_several_licences_together_are_never_freer_than_the_strictest(
    together: list[str], expected: str
) -> None:
    assert licenses.strictest(together) == expected
    assert licenses.strictest(reversed(together)) == expected
