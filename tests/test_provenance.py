"""Rows without anything else: what they were made from, and what they may be used for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from instruct_rows import dataset, row

from mminstruct import licenses, prompts, sources
from mminstruct.errors import UsageError
from mminstruct.releases import tracing
from mminstruct.releases.origin import Origin

MISTRAL, LLAMA2 = "mistralai/Mistral-7B-Instruct-v0.2", "meta-llama/Llama-2-70b-chat-hf"
BUNDLED = "HuggingFaceTB/SmolLM2-135M-Instruct"
OPENAI = "https://api.openai.com/v1"


def made(number: int = 1, kind: str = "conversation", **changes: Any) -> dict[str, Any]:
    """A row by Mistral and the package's own prompts, but for what is changed."""
    found = row(number, kind)
    config = prompts.load(changes.get("prompt_config", "llava"))
    by = {"backend": "tgi", "model": MISTRAL, "prompt_hash": config.hash}
    by |= {"prompt_version": config.version}
    for name, value in changes.items():
        (found if name in found else by)[name] = value
    return {**found, "provenance": {**found["provenance"], **by}}


def traced(*rows: dict[str, Any], **options: Any) -> Origin:
    return tracing.trace({"train": dataset(list(rows))}, **options)


def license_of(origin: Origin) -> str:
    return origin.verdict.license_name or origin.verdict.license


def test_rows_tell_their_sources_prompts_types_backend_and_model() -> None:
    origin = traced(made(1, "detail"), made(2), made(1), repo_id="user/name")
    assert origin.sources == (sources.get("COCO2017").info,)
    assert origin.configs == (prompts.load("llava"),)
    # In the order of the prompt config, and those that it doesn't have after them.
    assert origin.types == ("conversation", "detail")
    assert (origin.backend, origin.model, origin.repo_id) == ("tgi", MISTRAL, "user/name")
    assert license_of(origin) == "cc-by-4.0"
    assert origin.verdict.commercial
    assert origin.command is None


def test_rows_of_several_models_are_under_the_strictest_of_all() -> None:
    free = made(1)
    bound = made(2, model=LLAMA2, license="other", commercial_use=False)
    origin = traced(free, bound)
    assert origin.model == f"{MISTRAL}, {LLAMA2}"
    assert license_of(origin) == "cc-by-4.0-and-llama2"
    assert origin.verdict.commercial is False
    # Each by itself keeps what it may.
    assert traced(free).verdict.commercial


def test_rows_of_several_sources_name_each_with_its_prompts() -> None:
    small = "llava_smallcontext"
    origin = traced(made(1), made(2, source="COCO2014"), made(3, prompt_config=small))
    pairs = [(s.name, c.name) for s, c in zip(origin.sources, origin.configs, strict=True)]
    assert origin.title.startswith("COCO 2017 + COCO 2014 instructions by")
    assert pairs == [("COCO2017", "llava"), ("COCO2014", "llava"), ("COCO2017", small)]


def test_the_terms_of_the_service_that_answered_count() -> None:
    rows = made(model="gpt-4o", backend="openai", endpoint=OPENAI, license="other")
    origin = traced({**rows, "commercial_use": False})
    assert license_of(origin) == "cc-by-4.0-and-openai-terms"
    assert origin.verdict.output_training == "forbidden"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": LLAMA2}, "rows say: cc-by-4.0, commercial use: yes; got"),
        (
            {"model": LLAMA2, "commercial_use": False},
            "rows say: cc-by-4.0, commercial use: no; got",
        ),
        ({"license": "cc0-1.0"}, "rows say: cc0-1.0"),
        ({"license": "unknown", "model": LLAMA2}, "rows say: unknown, commercial use: yes"),
        ({"model": "model.gguf"}, "model model.gguf: the terms are not known here"),
        ({"prompt_hash": "0" * 16}, "no prompt config of this content"),
        (
            {"prompt_config": "llava", "model": "x", "backend": "openai", "endpoint": OPENAI},
            "OpenAI",
        ),
    ],
)
def test_rows_that_claim_more_than_follows_from_what_they_were_made_from_are_refused(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError) as refused:
        traced(made(1), made(2, **changes))
    assert words in str(refused.value)
    assert "licenses, prompt_config, source_options, model_id" in str(refused.value)


def test_rows_whose_licence_was_not_known_may_be_known_better_now() -> None:
    rows = made(license="unknown", commercial_use=None)
    assert license_of(traced(rows)) == "cc-by-4.0"


def test_a_model_file_is_what_its_owner_says_it_is() -> None:
    rows = made(model="model.gguf", backend="llama_cpp")
    origin = traced(rows, model_id=BUNDLED)
    assert license_of(origin) == "cc-by-4.0"
    assert any("by your word" in reason for reason in origin.verdict.reasons)
    with pytest.raises(UsageError, match="got other.gguf, some.gguf; push the rows of each"):
        traced(made(model="some.gguf"), made(2, model="other.gguf"), model_id=BUNDLED)
    with pytest.raises(UsageError, match="got none"):
        traced(made(), model_id=BUNDLED)


def test_prompts_of_ones_own_are_given_by_their_file(tmp_path: Path) -> None:
    text = "extends: llava\nname: mine\nversion: 3.0.0\nlicense: CC-BY-SA-4.0\ndescription: ours\n"
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    config = prompts.load(str(file))
    by = {"prompt_hash": config.hash, "prompt_version": "3.0.0"}
    rows = made(license="cc-by-sa-4.0", **by)
    rows["provenance"]["prompt_config"] = "mine"
    origin = traced(rows, prompt_config=str(file))
    assert (origin.configs, license_of(origin)) == ((config,), "cc-by-sa-4.0")
    # Without it nobody knows, and what rows say isn't believed.
    with pytest.raises(UsageError, match="rows say: cc-by-sa-4.0"):
        traced(rows)
    origin = traced({**rows, "license": "unknown", "commercial_use": None})
    assert (license_of(origin), origin.configs[0].hash) == ("unknown", config.hash)


def test_a_source_that_was_asked_for_more_is_asked_for_the_same() -> None:
    rows = made(source="HUMANML3D", prompt_config="motion", license="other", commercial_use=False)
    with pytest.raises(UsageError, match="rows say: other, commercial use: no; got"):
        traced(rows)
    origin = traced(rows, source_options={"motion_facts": True})
    assert (origin.verdict.license, origin.verdict.commercial) == ("other", False)


def test_what_was_barred_does_not_come_free_by_leaving_out_what_barred_it() -> None:
    rows = made(source="HUMANML3D", prompt_config="motion", image_license=None)
    rows = {**rows, "license": "unknown", "commercial_use": False}
    with pytest.raises(UsageError, match="rows say: unknown, commercial use: no; got"):
        traced(rows)
    assert traced(rows, source_options={"motion_facts": True}).verdict.commercial is False
    # Of an image that may not be used commercially, text may be.
    rows = made(license="unknown", commercial_use=False, image_license="CC-BY-NC-2.0")
    assert traced(rows).verdict.commercial is True


def test_each_of_several_endpoints_counts() -> None:
    services = ["http://localhost:8000/v1", "https://openrouter.ai/api/v1"]
    endpoint = licenses.load().endpoint_names(services)
    assert endpoint == "an unregistered server, https://openrouter.ai/api/v1"
    rows = made(backend="openai", endpoint=endpoint, license="unknown", commercial_use=None)
    assert license_of(traced(rows)) == "unknown"
    public = licenses.load().endpoint_names(["https://api.somebody.ai/v1"])
    rows = made(backend="openai", endpoint=public, license="unknown", commercial_use=None)
    assert license_of(traced(rows)) == "unknown"


def test_entries_of_ones_own_are_given_by_their_file(tmp_path: Path) -> None:
    entries = tmp_path / "entries.yaml"
    entries.write_text(
        "models:\n- name: ours\n  vendor: us\n  terms: apache-2.0\n  chat: {us/ours: 7}\n"
        "  source_url: https://example.org\n  checked_on: 2026-01-01\n  evidence: primary\n"
    )
    rows = made(model="us/ours")
    origin = traced(rows, licenses_file=str(entries))
    assert license_of(origin) == "cc-by-4.0"
    assert origin.registry.user_file == licenses.load(str(entries)).user_file
    with pytest.raises(UsageError, match="rows say: cc-by-4.0"):
        traced(rows)


def test_a_dataset_without_a_split_is_train_and_empty_splits_are_left_out() -> None:
    rows = dataset([made()])
    assert list(tracing.splits_of(rows)) == ["train"]
    named = datasets.Dataset(rows.data, split=datasets.Split.VALIDATION)
    assert list(tracing.splits_of(named)) == ["validation"]
    both = datasets.DatasetDict({"train": dataset([]), "test": rows})
    assert list(tracing.splits_of(both)) == ["test"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (dataset([]), "rows: expected some, got none"),
        (datasets.DatasetDict(), "rows: expected some, got none"),
        (dataset([made()]).remove_columns(["license", "type"]), "got none called type, license"),
        (
            dataset([made()])
            .remove_columns(["provenance"])
            .add_column("provenance", [{"model": "m"}]),
            "provenance.backend",
        ),
        (dataset([made()]).to_iterable_dataset(), "expected a Dataset or a DatasetDict, got Iter"),
    ],
)
def test_what_is_no_rows_of_ours_is_refused(rows: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        tracing.splits_of(rows)


def test_a_source_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown source 'COCO2015'"):
        traced(made(source="COCO2015"))
