"""All that is known of a model counts, and the strictest of it: its files, its names, its bases."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from gguf_files import HUB, gguf

from mminstruct import licenses
from mminstruct.errors import UsageError
from mminstruct.licenses import Part, Registry, Verdict
from mminstruct.licenses.composition import STRICTNESS
from mminstruct.licenses.names import find_phrases, is_packed

REGISTRY = licenses.load()
R1_LLAMA = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
CACHED = f"/home/x/.cache/huggingface/hub/models--meta-llama--Llama-2-7b-hf/snapshots/{'f5' * 20}"


def folder(where: Path, *, adapter: Any = None, config: Any = None, **front: Any) -> Path:
    """A model's folder with a card and configurations."""
    where.mkdir(parents=True)
    if front:
        (where / "README.md").write_text(f"---\n{yaml.safe_dump(front)}---\n# A model\n")
    for name, value in (("adapter_config", adapter), ("config", config)):
        if value is not None:
            (where / f"{name}.json").write_text(json.dumps(value))
    return where


def file(path: Path, **general: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gguf(**general))
    return path


def judge(parts: tuple[Part, ...], registry: Registry = REGISTRY) -> Verdict:
    text = [Part("annotations", "annotations", registry.license("cc-by-4.0"))]
    return licenses.compose(registry, [*text, *parts])


def verdict(path: Path | str, registry: Registry = REGISTRY) -> Verdict:
    return judge(licenses.named_model(registry, str(path)), registry)


def duties(found: Verdict) -> set[str]:
    return {duty.text for duty in found.obligations}


CARDS: list[tuple[dict[str, Any], str]] = [
    # name of the folder, what is in it -> what is said of training on outputs
    ({"name": "a", "license": "mit", "tags": ["llama-2", "chat"]}, "same-family-only"),
    ({"name": "a", "license": "apache-2.0", "tags": ["Llama2"]}, "same-family-only"),
    ({"name": "a", "license": "mit", "tags": ["text", "meta-llama-3"]}, "same-family-only"),
    ({"name": "a", "license": "mit", "tags": ["Qwen2.5-3B"]}, "research-only"),
    ({"name": "my-llama-2-7b-tune", "license": "mit"}, "same-family-only"),
    ({"name": "Llama2_13b_mix", "license": "apache-2.0"}, "same-family-only"),
    ({"name": "SuperLlama-2-13B", "license": "mit"}, "same-family-only"),
    ({"name": "acme.qwen2.5-3b.v7", "license": "mit"}, "research-only"),
    ({"name": "vicuna-7b-v1.5-mine", "license": "mit"}, "same-family-only"),
    ({"name": "codestral-22b-fast", "license": "apache-2.0"}, "research-only"),
    (
        {"name": "a", "license": "mit", "config": {"_name_or_path": "meta-llama/Llama-2-7b-hf"}},
        "same-family-only",
    ),
    (
        {"name": "a", "license": "mit", "config": {"_name_or_path": "/home/x/llama-2-7b"}},
        "same-family-only",
    ),
    (
        {"name": "a", "license": "mit", "config": {"_name_or_path": "nousless/llama-2-13b-fork"}},
        "same-family-only",
    ),
    (
        {
            "name": "a",
            "license": "mit",
            "adapter": {"base_model_name_or_path": "meta-llama/Meta-Llama-3-8B"},
        },
        "same-family-only",
    ),
    (
        {
            "name": "a",
            "license": "mit",
            "base_model": "Qwen/Qwen3-8B",
            "adapter": {"base_model_name_or_path": "/data/Llama-2-7b"},
        },
        "same-family-only",
    ),
    (
        {
            "name": "a",
            "license": "mit",
            "base_model": "Qwen/Qwen3-8B",
            "config": {"_name_or_path": "lmsys/vicuna-7b-v1.5"},
        },
        "same-family-only",
    ),
    # A model of images names that of its text further down.
    (
        {
            "name": "a",
            "license": "mit",
            "config": {"text_config": {"_name_or_path": "lmsys/vicuna-7b-v1.5"}},
        },
        "same-family-only",
    ),
    (
        {
            "name": "a",
            "license": "apache-2.0",
            "config": {"llm_config": {"_name_or_path": "./pretrained/Qwen2.5-3B-Instruct"}},
        },
        "research-only",
    ),
    # A path into the Hub's cache ends with a commit.
    ({"name": "a", "license": "mit", "config": {"_name_or_path": CACHED}}, "same-family-only"),
    (
        {
            "name": "a",
            "license": "mit",
            "base_model": "Qwen/Qwen3-8B",
            "adapter": {"base_model_name_or_path": CACHED},
        },
        "same-family-only",
    ),
    (
        {
            "name": "a",
            "license": "mit",
            "config": {"_name_or_path": f"/home/x/{'deep/' * 20}llama-2-7b"},
        },
        "same-family-only",
    ),
    ({"name": "a", "license": "mit", "tags": ["license:cc-by-nc-4.0"]}, "research-only"),
    ({"name": "a", "license": "mit", "tags": ["base_model:adapter:who/knows"]}, "unknown"),
    ({"name": "a", "license": "mit", "model_name": "Llama-2-7b-tune"}, "same-family-only"),
    # As peft writes them.
    (
        {
            "name": "a",
            "license": "mit",
            "base_model": "Qwen/Qwen3-8B",
            "tags": ["base_model:adapter:Qwen/Qwen3-8B", "lora"],
            "adapter": {"base_model_name_or_path": "/x/hub/models--Qwen--Qwen3-8B/snapshots/1"},
        },
        "allowed",
    ),
    # A name that stands for nothing, or for what is declared anyway, changes nothing.
    (
        {"name": "outputs", "license": "mit", "config": {"_name_or_path": "o/checkpoint-5"}},
        "allowed",
    ),
    ({"name": "my-falcon", "license": "mit", "tags": ["falcon", "c4", "nova", "phi"]}, "allowed"),
    ({"name": "gemmology-2", "license": "mit", "tags": ["gpt-4", "claude-3", "r1"]}, "allowed"),
    ({"name": "openllama-3b-v2", "license": "mit", "tags": ["llama"]}, "allowed"),
    ({"name": "a-13b-chat-hf", "license": "mit"}, "allowed"),
    ({"name": "mistral-7b-tune", "license": "apache-2.0", "tags": ["mistral"]}, "allowed"),
    ({"name": "qwen2.5-7b-tune", "license": "apache-2.0", "tags": ["qwen2.5"]}, "allowed"),
    (
        {
            "name": "a",
            "license": "llama3.1",
            "base_model": "meta-llama/Llama-3.1-8B",
            "tags": ["llama", "llama-3"],
        },
        "conditional",
    ),
    ({"name": "Llama-3_1-8B-tune", "license": "mit"}, "conditional"),
    ({"name": "Llama-3.1-8B-tune", "license": "mit", "tags": ["llama-3"]}, "same-family-only"),
    ({"name": "Llama-3-8B-x", "license": "llama3.1", "tags": ["llama-3.1"]}, "same-family-only"),
    ({"name": "Qwen3-SuperLlama-2", "license": "mit"}, "same-family-only"),
    ({"name": "a", "license": "mit", "tags": ["llama-v2-7b"]}, "same-family-only"),
    ({"name": "llama_2_8_bit", "license": "mit"}, "same-family-only"),
    ({"name": "llama-3-1-8b-tune", "license": "mit"}, "conditional"),
]


@pytest.mark.parametrize(("said", "expected"), CARDS)
def test_a_folders_names_and_configurations_bar_what_its_card_frees(
    said: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    found = verdict(folder(tmp_path / said.pop("name"), **said))
    assert found.output_training == expected
    assert "/home/" not in str(found.reasons)
    declared = [reason for reason in found.reasons if f"licence {said['license']}" in reason]
    assert len(declared) == 1, "what was contradicted is quoted, too"


LLAMA2, ABSENT = "meta-llama/Llama-2-7b-hf", "acme/nobody-knows"
GATE = {"I agree to use this model for non-commercial use ONLY": "checkbox"}


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        # Words against some use name no licence: unknown, as the card says two things.
        *(({"tags": [tag]}, "unknown") for tag in ("non-commercial", "Non Commercial")),
        *(({"tags": [tag]}, "unknown") for tag in ("cc-by-nc", "research-only", "非商用")),
        ({"tags": ["x", "for_research_use_only"]}, "unknown"),
        ({"merged_models": [ABSENT]}, "unknown"),
        *(({"tags": [tag]}, "research-only") for tag in ("cc-by-nc-4.0", "CC-BY-NC-4.0")),
        ({"tags": ["llama2"]}, "same-family-only"),
        ({"extra_gated_fields": GATE}, "unknown"),
        ({"extra_gated_prompt": "You agree not to use it commercially."}, "unknown"),
        ({"license_details": "Free for academic purposes only"}, "unknown"),
        ({"license_url": "https://creativecommons.org/licenses/by-nc/4.0/"}, "unknown"),
        # Another spelling of a key, or another key.
        *(({key: LLAMA2}, "same-family-only") for key in ("base_models", "base-model")),
        *(({key: [ABSENT]}, "unknown") for key in ("baseModel", "Base Model", "base_modle")),
        *(({key: ABSENT}, "unknown") for key in ("parent_model", "finetuned_from")),
        *(({key: "cc-by-nc-4.0"}, "research-only") for key in ("licence", "License", "licenses")),
        ({"licence_name": "acme"}, "unknown"),
        ({"Tags": ["llama-2"]}, "same-family-only"),
        ({"model-name": "Llama 2 13B tune"}, "same-family-only"),
        ({"description": "Made from Llama 2 7b by me/us."}, "same-family-only"),
        ({"model-index": [{"name": "llama-2-7b-tune", "results": []}]}, "same-family-only"),
        # What is about something else, or against no use.
        ({"tags": ["commercial", "research", "gemma", "not-for-all-audiences"]}, "allowed"),
        ({"description": "No restrictions on commercial use. Not by Meta."}, "allowed"),
        ({"datasets": ["acme/llama-2-7b"], "widget": [{"text": "Is Llama 2 7b good?"}]}, "allowed"),
        ({"new_version": LLAMA2, "language": ["en"], "pipeline_tag": "text-generation"}, "allowed"),
        ({"model-index": [{"name": "x", "results": [{"name": "llama-2-7b"}]}]}, "allowed"),
    ],
)  # fmt: skip
def test_all_that_a_card_says_beside_a_free_licence_may_bar(
    front: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    found = verdict(folder(tmp_path / "model", license="mit", **front))
    assert found.output_training == expected
    if expected != "allowed":
        assert "licence mit" in str(found.reasons), "what was contradicted is quoted, too"


def test_words_against_some_use_are_quoted_and_add_nothing_to_a_licence_that_bars(
    tmp_path: Path,
) -> None:
    found = verdict(folder(tmp_path / "a", license="mit", tags=["non-commercial"]))
    assert "model, with 'non-commercial' in a/README.md: the terms are not" in str(found.reasons)
    barred = [
        verdict(folder(tmp_path / f"b{len(tags)}" / "m", license="cc-by-nc-4.0", tags=tags))
        for tags in ([], ["non-commercial"])
    ]
    assert barred[0] == barred[1]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("LICENSE", "LLAMA 2 COMMUNITY LICENSE AGREEMENT\n", "same-family-only"),
        ("LICENSE.txt", "Creative Commons Attribution-NonCommercial 4.0", "unknown"),
        ("Licence.md", "# Acme Research License\n", "unknown"),
        ("LICENSE", "MIT License\n\nCopyright (c) 2026 Acme", "allowed"),
        ("LICENSE", "Apache License\nVersion 2.0, January 2004", "allowed"),
        ("licensing", "non-commercial", "allowed"),
    ],
)
def test_the_text_of_a_licence_in_a_folder_may_bar(
    name: str, text: str, expected: str, tmp_path: Path
) -> None:
    where = folder(tmp_path / "m", license="mit")
    (where / name).write_text(text)
    assert verdict(where).output_training == expected


@pytest.mark.parametrize(
    ("where", "way"),
    [
        ("llama-2-7b-mine", "."),
        ("llama-2-7b-mine/weights", ".."),
        ("llama-2-7b-mine", "link"),
        ("models--acme--llama-2-7b-mine/snapshots/0123abc", "."),
        ("models--acme--llama-2-7b-mine/snapshots/0123abc", "link"),
    ],
)
def test_a_folder_is_called_the_same_whatever_way_leads_to_it(
    where: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    within = tmp_path / where
    folder((within / way).resolve() if way != "link" else within, license="mit")
    within.mkdir(exist_ok=True)
    (tmp_path / "link").symlink_to(within)
    monkeypatch.chdir(within if way != "link" else tmp_path)
    found = verdict(way)
    assert found.output_training == "same-family-only"
    assert "model called 'llama-2-7b-mine'" in str(found.reasons)


def test_a_card_that_says_two_things_under_one_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: llama2\nlicense: mit\n---\n")
    with pytest.raises(UsageError, match="key 'license' is given twice"):
        verdict(tmp_path)


@pytest.mark.parametrize(
    ("name", "general", "expected"),
    [
        ("x.gguf", {"license": "mit", "tags": ["llama-2"]}, "same-family-only"),
        ("x.gguf", {"license": "mit", "name": "Vicuna 7b V1.5"}, "same-family-only"),
        ("x.gguf", {"license": "mit", "basename": "Qwen2.5-3B"}, "research-only"),
        ("llama-2-7b-chat.Q4_K_M.gguf", {"license": "apache-2.0"}, "same-family-only"),
        ("x.gguf", {"license": "mit", "base_model__count": 1,
                    "base_model__0__name": "Llama 2 7b"}, "same-family-only"),
        ("x.gguf", {"license": "mit", "base_model__count": 1,
                    "base_model__0__repo_url": f"{HUB}lmsys/vicuna-7b-v1.5"}, "same-family-only"),
        ("x.gguf", {"license": "mit", "base_model__0__repo_url": f"{HUB}Qwen/Qwen3-8B",
                    "base_model__0__url": f"{HUB}lmsys/vicuna-7b-v1.5"}, "same-family-only"),
        ("x.gguf", {"license": "mit", "base_model__0__repo_url": f"{HUB}Qwen/Qwen3-8B",
                    "base_model__0__name": "Llama 2 7b"}, "same-family-only"),
        ("x.gguf", {"license": "mit", "repo_url": f"{HUB}Qwen/Qwen3-8B",
                    "url": f"{HUB}meta-llama/Llama-2-7b-hf"}, "same-family-only"),
        ("x.gguf", {"license": "mit", "tags": ["license:cc-by-nc-4.0"]}, "research-only"),
        ("x.gguf", {"license": "mit", "license__name": "acme-nc"}, "unknown"),
        ("qwen3-8b-q4_k_m.gguf", {"license": "apache-2.0", "name": "Qwen3 8B"}, "allowed"),
        ("x.gguf", {"base_model__0__repo_url": f"{HUB}Qwen/Qwen3-8B"}, "unknown"),
        ("Qwen3-8B-F16.gguf", {"base_model__0__repo_url": f"{HUB}Qwen/Qwen3-8B"}, "unknown"),
        ("x.gguf", {"source__repo_url": f"{HUB}Qwen/Qwen3-8B"}, "allowed"),
        ("x.gguf", {"source__repo_url": f"{HUB}meta-llama/Llama-2-7b-hf"}, "same-family-only"),
        ("x.gguf", {"source__repo_url": f"{HUB}Qwen/Qwen3-8B", "license": "cc-by-nc-4.0"},
         "research-only"),
        ("x.gguf", {"repo_url": f"{HUB}Qwen/Qwen3-8B"}, "allowed"),
        ("x.gguf", {"repo_url": f"{HUB}nobody/knows"}, "unknown"),
        ("x.gguf", {"license": "mit", "description": "For non-commercial use."}, "unknown"),
        ("x.gguf", {"license": "mit", "description": "Llama 2 13B, tuned"}, "same-family-only"),
        ("x.gguf", {"license": "mit", "author": "Acme (research only)"}, "unknown"),
        ("x.gguf", {"license": "mit", "tags": ["non-commercial"]}, "unknown"),
        ("x.gguf", {"license": "mit", "licence": "cc-by-nc-4.0"}, "research-only"),
        ("x.gguf", {"license": "mit", "license__names": "acme"}, "unknown"),
        ("x.gguf", {"license": "mit", "base_models__0__repo_url": f"{HUB}nobody/knows"}, "unknown"),
        ("x.gguf", {"license": "mit", "parent": "lmsys/vicuna-7b-v1.5"}, "same-family-only"),
        ("x.gguf", {"license": "mit", "base_model__0__repo_url": f"{HUB}Qwen/Qwen3-8B",
                    "base_model__0__description": "research purposes only"}, "unknown"),
        ("x.gguf", {"license": "mit", "base_model__0__repo_url": f"{HUB}Qwen/Qwen3-8B",
                    "base_model__0__doi": "10.1/x", "datasets": ["a/llama-2-7b"],
                    "description": "A chat model", "author": "Acme"}, "allowed"),
    ],
)  # fmt: skip
def test_a_gguf_file_is_as_free_as_its_strictest_key(
    name: str, general: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    assert verdict(file(tmp_path / name, **general)).output_training == expected


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ({"license": "apache-2.0", "license_name": "acme-non-commercial"}, "unknown"),
        ({"license": "mit", "license_name": "x-nc-1.0"}, "unknown"),
        ({"license": "llama3.1", "license_name": "acme research only"}, "unknown"),
        ({"license": "apache-2.0", "license_name": "qwen-research"}, "research-only"),
        ({"license": "mit", "license_name": "llama2"}, "same-family-only"),
        ({"license": "mit", "license_link": "https://acme.example/terms"}, "unknown"),
        (
            {"license": "apache-2.0", "license_link": "https://acme.example/apache-2.0-nc"},
            "unknown",
        ),
        ({"license": "mit", "license_link": "https://github.com/a/b/blob/main/LICENSE"}, "unknown"),
        ({"license": "mit", "license_link": f"{HUB}a/b/blob/main/LICENSE"}, "unknown"),
        (
            {"license": "mit", "license_link": f"{HUB}meta-llama/Llama-2-7b-hf/blob/main/L.txt"},
            "same-family-only",
        ),
        (
            {
                "license": "mit",
                "license_link": "https://github.com/meta-llama/llama-models/blob/main/models/llama2/"
                "LICENSE",
            },
            "same-family-only",
        ),
        ({"license_link": f"{HUB}a/model/blob/main/LICENSE"}, "unknown"),
        # The same said twice is no contradiction.
        ({"license": "apache-2.0", "license_name": "Apache License 2.0"}, "allowed"),
        ({"license": "apache-2.0", "license_link": "LICENSE"}, "allowed"),
        ({"license": "apache-2.0", "license_link": f"{HUB}a/model/blob/main/LICENSE"}, "allowed"),
        ({"license": "apache-2.0", "license_link": f"{HUB}Qwen/Qwen3-8B/blob/main/L"}, "allowed"),
        ({"license": "mit", "license_link": "https://opensource.org/licenses/MIT"}, "allowed"),
        (
            {"license": "apache-2.0", "license_link": "http://apache.org/licenses/LICENSE-2.0.txt"},
            "allowed",
        ),
        ({"license": "other", "license_name": "llama-3.1"}, "conditional"),
    ],
)
def test_a_licence_by_another_name_or_at_another_address_counts_beside_the_first(
    front: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    found = verdict(folder(tmp_path / "model", **front))
    assert found.output_training == expected
    if expected == "unknown" and "license" in front:
        assert all(str(value) in str(found.reasons) for value in front.values())


@pytest.mark.parametrize(
    ("name", "front", "expected"),
    [
        ("tune", {"base_model": "Qwen/Qwen3-8B"}, "unknown"),
        ("tune", {"base_model": ["Qwen/Qwen3-8B"], "base_model_relation": "finetune"}, "unknown"),
        ("merge", {"base_model": ["Qwen/Qwen3-8B", "Qwen/Qwen3-14B"]}, "unknown"),
        ("lora", {"base_model": "Qwen/Qwen3-8B", "base_model_relation": "adapter"}, "unknown"),
        ("lora", {"adapter": {"base_model_name_or_path": "Qwen/Qwen3-8B"}}, "unknown"),
        ("tune", {"base_model": "meta-llama/Llama-2-7b-hf"}, "same-family-only"),
        ("Qwen3-8B-mine", {"base_model": "Qwen/Qwen3-8B"}, "unknown"),
        ("Qwen3-8B", {"base_model": "Qwen/Qwen3-8B-Base"}, "unknown"),
        ("q", {"base_model": ["Qwen/Qwen3-8B", "Qwen/Qwen3-14B"],
               "base_model_relation": "quantized"}, "unknown"),
        ("q", {"base_model": "Qwen/Qwen3-8B", "base_model_relation": "quantized",
               "adapter": {"base_model_name_or_path": "Qwen/Qwen3-8B"}}, "unknown"),
        # A copy inherits exactly.
        ("q", {"base_model": "Qwen/Qwen3-8B", "base_model_relation": "quantized"}, "allowed"),
        ("Qwen3-8B-GGUF", {"base_model": "Qwen/Qwen3-8B"}, "allowed"),
        ("Qwen_Qwen3-8B-gguf", {"base_model": ["Qwen/Qwen3-8B"]}, "allowed"),
        ("Meta-Llama-3.1-8B-Instruct-AWQ-INT4",
         {"base_model": "meta-llama/Meta-Llama-3.1-8B-Instruct"}, "conditional"),
        ("q", {"base_model": "meta-llama/Llama-2-7b-hf", "base_model_relation": "quantized"},
         "same-family-only"),
        ("Qwen3-8B-AWQ", {"base_model": "Qwen/Qwen3-8B", "license": "cc-by-nc-4.0"},
         "research-only"),
    ],
)  # fmt: skip
def test_who_names_no_licence_grants_nothing_unless_it_is_a_copy(
    name: str, front: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    found = verdict(folder(tmp_path / name, **front))
    assert found.output_training == expected
    if expected in ("allowed", "conditional"):
        base = front["base_model"]
        exact = verdict(base if isinstance(base, str) else base[0])
        assert (found.license_name, found.obligations) == (exact.license_name, exact.obligations)


@pytest.mark.parametrize(
    ("name", "base", "expected"),
    [
        ("x/Qwen3-8B-FP8", "Qwen/Qwen3-8B", True),
        ("x/Qwen3-8B-bnb-4bit", "Qwen/Qwen3-8B", True),
        ("x/qwen3-8b-quantized.w4a16", "Qwen/Qwen3-8B", True),
        ("x/Qwen3-8B", "Qwen/Qwen3-8B", False),
        ("x/Qwen3-8B-Chat-GGUF", "Qwen/Qwen3-8B", False),
        ("x/Qwen3-80B-GGUF", "Qwen/Qwen3-8", False),
        ("x/GGUF", "Qwen/Qwen3-8B", False),
    ],
)
def test_a_copys_name_is_its_base_and_packings(name: str, base: str, expected: bool) -> None:
    assert is_packed(name, base) is expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (R1_LLAMA, {"license": "mit"}),
        ("deepseek-r1-distill-llama-8b-ft", {"license": "mit"}),
        ("a", {"license": "mit", "config": {"_name_or_path": R1_LLAMA}}),
        ("a", {"license": "mit", "tags": ["DeepSeek-R1-Distill-Llama-8B"]}),
    ],
)
def test_what_is_called_like_a_distilled_llama_has_the_duties_of_llama(
    name: str, said: dict[str, Any], tmp_path: Path
) -> None:
    exact, found = verdict(R1_LLAMA), verdict(folder(tmp_path / name, **said))
    assert (found.output_training, duties(found)) == (exact.output_training, duties(exact))
    assert len(duties(exact)) > 3


def test_a_name_frees_nothing(tmp_path: Path) -> None:
    for name in ("Qwen3-8B", "Mistral-7B-Instruct-v0.2", "phi-4"):
        assert verdict(folder(tmp_path / name, tags=[name])).output_training == "unknown"
        assert verdict(f"someone/{name}").output_training == "unknown"
        assert verdict(name).output_training == "unknown"


def test_no_free_model_is_barred_by_its_own_name() -> None:
    free = ("allowed", "conditional")
    for model in (m for id, m in REGISTRY.models.items() if id not in REGISTRY.repacks):
        terms = [REGISTRY.terms[each.terms] for each in REGISTRY.chain_of(model)]
        if all(each.output_training in free for each in terms):
            declared = licenses.Declared("card", licenses=tuple(each.id for each in terms))
            name = f"my-{model.repo_id.rpartition('/')[2]}-mine"
            for part in licenses.model_parts(REGISTRY, name=name, files=declared):
                assert part.commercial, part.reason


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Odd9-Llama-3-Acme", ["llama 3"]),
        ("SuperLLaMA-2", ["llama 2"]),
        ("Meta-Llama-3-1-70B", ["meta llama 3.1 70 b"]),
        ("DeepSeek-R1-Distill-Qwen-7B-x", ["deepseek r 1 distill qwen 7 b"]),
        ("MyQwen-7b", ["qwen 7 b"]),
        ("gemma-3b", []),
        ("llama-30", []),
        ("xllama2", []),
        ("2llama2", []),
        ("llama", []),
        ("7b-chat-hf", []),
    ],
)
def test_a_name_names_whole_models_and_families_with_a_number(name: str, said: list[str]) -> None:
    assert [" ".join(words) for words in find_phrases(name, REGISTRY.phrases)] == said


def test_a_size_alone_may_mean_any_version() -> None:
    size = {model.repo_id for model in REGISTRY.phrases["qwen", "7", "b"]}
    assert size >= {"Qwen/Qwen-7B", "Qwen/Qwen2-7B", "Qwen/Qwen2.5-7B-Instruct"}


def test_a_name_alone_bars(tmp_path: Path) -> None:
    for name in ("someone/Llama-2-7b-tune", "llama2-13b-served", "x/vicuna-13b-v1.5-GGUF"):
        found = verdict(name)
        assert (found.commercial, found.output_training) == (False, "same-family-only")


@pytest.mark.parametrize("content", ["{", "[1]", "\x00", '"x"'])
def test_a_damaged_configuration_is_refused_with_its_name(content: str, tmp_path: Path) -> None:
    where = folder(tmp_path / "m", license="mit")
    (where / "config.json").write_text(content)
    with pytest.raises(UsageError, match=r"^m/config\.json: "):
        verdict(where)


# What may be known of a model: evidence -> what it says of training on outputs. Of names, those
# of models that bar; an id stands for its entry with its bases.
LICENCES = {
    "mit": "allowed", "apache-2.0": "allowed", "llama3.1": "conditional", "gemma": "conditional",
    "llama2": "same-family-only", "cc-by-nc-4.0": "research-only", "nobody-knows-1.0": "unknown",
}  # fmt: skip
IDS = {
    "Qwen/Qwen3-8B": "allowed", "google/gemma-3-4b-it": "conditional", R1_LLAMA: "conditional",
    "lmsys/vicuna-7b-v1.5": "same-family-only", "Qwen/Qwen2.5-3B": "research-only",
    "nobody/knows-this": "unknown",
}  # fmt: skip
NAMES = {
    "chat": "allowed", "mistral-7b": "allowed", "llama-2": "same-family-only",
    "Qwen2.5-3B": "research-only", "llama-3.1-8b": "conditional",
}  # fmt: skip


def draw(chance: random.Random) -> tuple[dict[str, Any], list[str]]:
    """Evidence as a card has it, and what each piece of it says."""
    said: list[str] = []

    def some(choices: dict[str, str], most: int) -> list[str]:
        picked = chance.sample(sorted(choices), chance.randint(0, most))
        said.extend(choices[one] for one in picked)
        return picked

    front: dict[str, Any] = {
        "license": some(LICENCES, 2),
        "base_model": some(IDS, 2),
        "tags": some(NAMES, 2),
    }
    if chance.random() < 0.3:
        front["license_name"] = chance.choice(sorted(LICENCES))
        said.append(LICENCES[front["license_name"]])
    if chance.random() < 0.3:
        front["base_model_relation"] = chance.choice(["quantized", "merge", "adapter"])
    is_copy = front.get("base_model_relation") == "quantized" and len(front["base_model"]) == 1
    if not front["license"] and "license_name" not in front and not is_copy:
        said.append("unknown")
    return {key: value for key, value in front.items() if value}, said


def as_gguf(path: Path, front: dict[str, Any]) -> Path:
    """The same in a header; a copy's base is its source there."""
    bases = front.get("base_model", [])
    general: dict[str, Any] = {"tags": front.get("tags", [])}
    if front.get("base_model_relation") == "quantized" and len(bases) == 1:
        general["source__repo_url"] = f"{HUB}{bases[0]}"
    else:
        general["base_model__count"] = len(bases)
        general |= {f"base_model__{n}__repo_url": HUB + base for n, base in enumerate(bases)}
    if names := front.get("license"):
        general["license"] = names
    if name := front.get("license_name"):
        general["license__name"] = name
    return file(path, **general)


@pytest.mark.parametrize("seed", range(60))
def test_a_verdict_is_never_freer_than_the_strictest_evidence(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front, said = draw(random.Random(seed))
    strictest = max(said, key=STRICTNESS.index)  # type: ignore[arg-type]
    where = folder(tmp_path / "acme", **front or {"language": "en"})
    # The same card, as it lies in the Hub's cache.
    cached = tmp_path / "models--someone--acme"
    for part, text in (("refs/main", "0" * 40), (f"snapshots/{'0' * 40}/README.md", None)):
        (cached / part).parent.mkdir(parents=True)
        (cached / part).write_text(text or (where / "README.md").read_text())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    served = licenses.model_parts(
        REGISTRY, name="someone/acme", repo_id="someone/acme", endpoints=["http://localhost:1/v1"]
    )
    found = {
        "folder": verdict(where),
        "GGUF": verdict(as_gguf(tmp_path / "acme.gguf", front)),
        "id": verdict("someone/acme"),
        "service": judge(served),
    }
    for way, each in found.items():
        assert STRICTNESS.index(each.output_training) >= STRICTNESS.index(strictest), way  # type: ignore[arg-type]
    # By its card a model is the same, wherever that is.
    same = {(v.output_training, v.license_name, frozenset(v.obligations)) for v in found.values()}
    assert len(same) == 1
