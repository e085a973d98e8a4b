"""What others made of models: repacks are what was packed, and a tune is no freer than its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mminstruct import licenses
from mminstruct.errors import ConfigError
from mminstruct.licenses import Part, Verdict
from mminstruct.licenses.registry import Registry

REGISTRY = licenses.load()
# From free to barred.
ORDER = ["allowed", "conditional", "unknown", "same-family-only", "research-only", "forbidden"]

# Of what models are made that many use, as their makers, their cards and their bases say.
TUNES = {
    "same-family-only": (
        # Llama 2
        "liuhaotian/llava-v1.5-7b llava-hf/llava-1.5-13b-hf liuhaotian/llava-v1.6-vicuna-7b "
        "llava-hf/LLaVA-NeXT-Video-7B-hf Lin-Chen/ShareGPT4V-7B LanguageBind/Video-LLaVA-7B "
        "nyu-visionx/cambrian-13b zai-org/cogvlm-chat-hf WizardLMTeam/WizardLM-13B-V1.2 "
        "Gryphe/MythoMax-L2-13b NousResearch/Nous-Hermes-Llama2-13b epfl-llm/meditron-7b "
        "Xwin-LM/Xwin-LM-70B-V0.1 upstage/SOLAR-0-70b-16bit microsoft/Orca-2-13b "
        # Llama 3, whatever the card is tagged with
        "lmms-lab/llama3-llava-next-8b xtuner/llava-llama-3-8b-v1_1 nyu-visionx/cambrian-8b "
        "BAAI/Bunny-v1_1-Llama-3-8B-V THUDM/cogvlm2-llama3-chat-19B microsoft/Magma-8B "
        "NousResearch/Hermes-2-Pro-Llama-3-8B NousResearch/Hermes-2-Theta-Llama-3-8B "
        "cognitivecomputations/dolphin-2.9-llama3-8b dphn/dolphin-2.9.1-llama-3-70b "
        "aaditya/Llama3-OpenBioLLM-8B Orenguteng/Llama-3-8B-Lexi-Uncensored "
        "openchat/openchat-3.6-8b-20240522 Salesforce/LLaMA-3-8B-SFR-Iterative-DPO-R "
        "failspy/Meta-Llama-3-8B-Instruct-abliterated-v3 m42-health/Llama3-Med42-8B"
    ),
    "research-only": (
        "lmsys/vicuna-7b-v1.3 lmsys/vicuna-33b-v1.3 tatsu-lab/alpaca-7b-wdiff "
        "Salesforce/instructblip-vicuna-7b mlabonne/NeuralBeagle14-7B mlabonne/AlphaMonarch-7B "
        "Efficient-Large-Model/NVILA-8B Efficient-Large-Model/Llama-3-VILA1.5-8B nvidia/Eagle2-9B "
        "nvidia/NVLM-D-72B AIDC-AI/Ovis2-4B apple/FastVLM-7B facebook/Perception-LM-8B "
        "Salesforce/xLAM-1b-fc-r jinaai/ReaderLM-v2 anthracite-org/magnum-v4-123b "
        "cognitivecomputations/Dolphin3.0-Qwen2.5-3b"
    ),
    "forbidden": "Nexusflow/Starling-LM-7B-beta",
    "unknown": (
        "SkunkworksAI/BakLLaVA-1 NousResearch/Hermes-3-Llama-3.1-8B NousResearch/Hermes-4-70B"
    ),
    "conditional": (
        "cognitivecomputations/Dolphin3.0-Llama3.1-8B dphn/Dolphin3.0-Llama3.2-3B "
        "mlabonne/Meta-Llama-3.1-8B-Instruct-abliterated FreedomIntelligence/HuatuoGPT-o1-8B "
        "perplexity-ai/r1-1776-distill-llama-70b HuggingFaceH4/zephyr-7b-gemma-v0.1 "
        "AIDC-AI/Ovis1.6-Gemma2-9B mlabonne/gemma-3-27b-it-abliterated "
        "anthracite-org/magnum-v4-72b princeton-nlp/gemma-2-9b-it-SimPO"
    ),
    "allowed": (
        "HuggingFaceH4/zephyr-7b-beta teknium/OpenHermes-2.5-Mistral-7B "
        "NousResearch/Nous-Hermes-2-Mixtral-8x7B-DPO NousResearch/Hermes-4-14B "
        "cognitivecomputations/dolphin-2.6-mistral-7b dphn/Dolphin-Mistral-24B-Venice-Edition "
        "openchat/openchat-3.5-0106 Intel/neural-chat-7b-v3-1 Equall/Saul-7B-Instruct-v1 "
        "BioMistral/BioMistral-7B liuhaotian/llava-v1.6-mistral-7b "
        "llava-hf/llava-onevision-qwen2-7b-ov-hf lmms-lab/LLaVA-Video-7B-Qwen2 "
        "rhymes-ai/Aria AIDC-AI/Ovis2-8B vikhyatk/moondream2 microsoft/Florence-2-large "
        "Salesforce/instructblip-flan-t5-xl BAAI/Emu3-Chat NovaSky-AI/Sky-T1-32B-Preview "
        "simplescaling/s1-32B open-thoughts/OpenThinker-7B bespokelabs/Bespoke-Stratos-32B "
        "agentica-org/DeepCoder-14B-Preview perplexity-ai/r1-1776 alpindale/WizardLM-2-8x22B"
    ),
}  # fmt: skip


def verdict(repo_id: str, registry: Registry = REGISTRY) -> Verdict:
    free = Part("annotations", "captions", registry.license("cc0-1.0"))
    parts = licenses.model_parts(registry, name=repo_id, repo_id=repo_id)
    return licenses.compose(registry, [free, *parts])


@pytest.mark.parametrize("training", TUNES)
def test_a_tune_is_under_the_strictest_of_its_card_and_its_bases(training: str) -> None:
    found = {name: verdict(name).output_training for name in TUNES[training].split()}
    assert found == dict.fromkeys(found, training)


def test_no_model_is_freer_than_what_it_was_made_from() -> None:
    made = [model for model in REGISTRY.models.values() if model.base]
    assert len(made) > 1000
    for model in made:
        own, base = verdict(model.repo_id), verdict(model.base or "")
        assert ORDER.index(own.output_training) >= ORDER.index(base.output_training), model
        assert set(own.obligations) >= set(base.obligations), model


def test_a_repack_inherits_exactly_what_was_packed() -> None:
    assert len(REGISTRY.repacks) > 1000
    for repo_id, group in REGISTRY.repacks.items():
        packed, whole = REGISTRY.models[repo_id], REGISTRY.models[group.ids[repo_id]]
        assert (packed.terms, packed.size_b, packed.chat) == (whole.terms, whole.size_b, whole.chat)
        assert packed.base == whole.repo_id not in REGISTRY.repacks
        ours, theirs = verdict(repo_id), verdict(whole.repo_id)
        assert (ours.license, ours.commercial) == (theirs.license, theirs.commercial)
        assert ours.output_training == theirs.output_training
        assert set(ours.obligations) == set(theirs.obligations)


@pytest.mark.parametrize(
    ("repack", "base"),
    [
        ("unsloth/Llama-3.2-3B-Instruct", "meta-llama/Llama-3.2-3B-Instruct"),
        ("unsloth/gemma-2-9b-it", "google/gemma-2-9b-it"),
        ("unsloth/Qwen3-8B-GGUF", "Qwen/Qwen3-8B"),
        ("NousResearch/Meta-Llama-3-8B-Instruct", "meta-llama/Meta-Llama-3-8B-Instruct"),
        ("bartowski/Meta-Llama-3.1-8B-Instruct-GGUF", "meta-llama/Meta-Llama-3.1-8B-Instruct"),
        ("TheBloke/Llama-2-7B-Chat-GGUF", "meta-llama/Llama-2-7b-chat-hf"),
        ("TheBloke/Mistral-7B-Instruct-v0.2-AWQ", "mistralai/Mistral-7B-Instruct-v0.2"),
        ("mlx-community/Qwen2.5-3B-Instruct-4bit", "Qwen/Qwen2.5-3B-Instruct"),
        ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", "meta-llama/Llama-3.3-70B-Instruct"),
        ("mys/ggml_llava-v1.5-7b", "liuhaotian/llava-v1.5-7b"),
    ],
)
def test_a_repack_is_of_the_model_that_it_is_named_after(repack: str, base: str) -> None:
    own, of, *_ = licenses.model_parts(REGISTRY, name="m", repo_id=repack)
    assert f"a repack of {base}" in own.reason
    assert (of.what, of.repo_id) == (f"base model {base}", base)


def test_a_name_alone_stands_for_models_before_their_repacks() -> None:
    assert {"Qwen/Qwen3-8B-GGUF", "unsloth/Qwen3-8B-GGUF"} <= set(REGISTRY.near("Qwen3-8B-GGUF"))
    assert REGISTRY.near("Qwen2.5-32B")[:2] == ["Qwen/Qwen2.5-32B", "unsloth/Qwen2.5-32B"]
    assert REGISTRY.near("qwen3")[0].startswith("Qwen/Qwen3-"), "no service's own, nor a tune"
    longer = REGISTRY.near("Llama-3.2-3B")[2:]
    assert "meta-llama/Llama-3.2-3B-Instruct" in longer
    assert not REGISTRY.repacks.keys() & set(longer)


FACT = {"source_url": "our hub", "checked_on": "2026-02-01", "evidence": "primary"}
TERMS = {
    **FACT, "id": "acme-terms", "title": "the terms of Acme", "hub": "other",
    "url": "https://acme.example/terms", "output_training": "forbidden", "clause": "7",
}  # fmt: skip
QWEN = {**FACT, "name": "ours", "terms": "acme-terms", "chat": {"Qwen/Qwen3-8B": 8}}


def load(folder: Path, **sections: Any) -> Registry:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(sections))
    return licenses.load(path)


def repack(**ids: str) -> list[dict[str, Any]]:
    return [{**FACT, "maker": "acme", "ids": {f"acme/{name}": of for name, of in ids.items()}}]


def test_a_user_can_enter_a_repack(tmp_path: Path) -> None:
    registry = load(tmp_path, repacks=repack(ours="meta-llama/Llama-2-7b-chat-hf"))
    own, _ = licenses.model_parts(registry, name="m", repo_id="acme/ours")
    assert own.commercial is False
    assert own.reason.endswith("(entered in mine.yaml)")
    assert registry.models["acme/ours"].vendor == "acme"
    assert "acme/ours" not in REGISTRY.models


def test_a_users_entry_for_a_model_holds_for_our_repacks_of_it(tmp_path: Path) -> None:
    registry = load(tmp_path, terms=[TERMS], models=[QWEN])
    assert verdict("unsloth/Qwen3-8B-GGUF").output_training == "allowed"
    assert registry.models["unsloth/Qwen3-8B-GGUF"].terms == "acme-terms"
    assert verdict("unsloth/Qwen3-8B-GGUF", registry).output_training == "forbidden"


def test_a_users_entry_for_a_repack_replaces_ours(tmp_path: Path) -> None:
    mine = {**QWEN, "chat": {"unsloth/Qwen3-8B-GGUF": 8}}
    registry = load(tmp_path, terms=[TERMS], models=[mine])
    (own,) = licenses.model_parts(registry, name="m", repo_id="unsloth/Qwen3-8B-GGUF")
    assert "(entered in mine.yaml)" in own.reason
    assert verdict("Qwen/Qwen3-8B", registry).output_training == "allowed"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"repacks": repack(ours="acme/nothing")},
            "^mine.yaml: repacks: 'acme/ours' is of 'acme/nothing', which has no entry in 'models'",
        ),
        (
            {"repacks": repack(ours="acme/theirs", theirs="Qwen/Qwen3-8B")},
            "'acme/ours' is of 'acme/theirs', which has no entry",
        ),
        (
            {"repacks": repack(ours="Qwen/Qwen3-8B") + repack(ours="Qwen/Qwen3-8B")},
            "models: 'acme/ours' is given twice",
        ),
        (
            {
                "repacks": repack(ours="Qwen/Qwen3-8B"),
                "models": [{**QWEN, "terms": "mit", "chat": {"acme/ours": 8}}],
            },
            "models: 'acme/ours' is given twice",
        ),
        ({"repacks": repack(ours="Qwen3-8B")}, "repacks.0.ids"),
    ],
)
def test_a_repack_of_nothing_or_entered_twice_is_refused(
    tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, **sections)


def test_without_a_vendor_a_model_is_of_the_one_whose_name_its_id_begins_with(
    tmp_path: Path,
) -> None:
    registry = load(
        tmp_path, models=[{**QWEN, "terms": "mit", "chat": {"acme/m": 7, "other/m": 7}}]
    )
    assert {registry.models[name].vendor for name in ("acme/m", "other/m")} == {"acme", "other"}
