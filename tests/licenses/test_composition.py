"""What rows made of several things may be used for: a table of cases, and what holds for all."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mminstruct import licenses
from mminstruct.errors import UsageError
from mminstruct.licenses import Declared, Part, Verdict

REGISTRY = licenses.load()
OPENAI = "https://api.openai.com/v1"
OWN = "http://localhost:8000/v1"


def works(*names: str | None, role: Any = "annotations") -> list[Part]:
    return [Part(role, f"{role} {name}", REGISTRY.license(name)) for name in names]


def model(repo_id: str | None, **more: Any) -> list[Part]:
    name = repo_id or "file.gguf"
    return list(licenses.model_parts(REGISTRY, name=name, repo_id=repo_id, **more))


def coco(*more: Part) -> Verdict:
    """COCO's annotations and our prompts, with a model's words and whatever else."""
    return licenses.compose(REGISTRY, [*COCO, *more])


COCO = [*works("cc-by-4.0"), *works("cc0-1.0", role="prompts")]
FREE = ("cc-by-4.0", None, True, "allowed")


def other(name: str, commercial: bool, training: str) -> tuple[Any, ...]:
    return ("other", f"cc-by-4.0-and-{name}", commercial, training)


UNKNOWN = ("unknown", None, None, "unknown")
UNKNOWN_AND_BARRED = ("unknown", None, False, "same-family-only")
MODELS: list[tuple[str, tuple[Any, ...]]] = [
    ("meta-llama/Llama-2-7b-chat-hf", other("llama2", False, "same-family-only")),
    ("meta-llama/Llama-2-70b-chat-hf", other("llama2", False, "same-family-only")),
    ("meta-llama/Meta-Llama-3-8B-Instruct", other("llama3", False, "same-family-only")),
    ("meta-llama/Meta-Llama-3-70B-Instruct", other("llama3", False, "same-family-only")),
    ("meta-llama/Llama-3.1-8B-Instruct", other("llama3.1", True, "conditional")),
    ("meta-llama/Meta-Llama-3.1-8B-Instruct", other("llama3.1", True, "conditional")),
    ("meta-llama/Llama-3.2-3B-Instruct", other("llama3.2", True, "conditional")),
    ("meta-llama/Llama-3.3-70B-Instruct", other("llama3.3", True, "conditional")),
    ("meta-llama/Llama-4-Scout-17B-16E-Instruct", other("llama4", True, "conditional")),
    ("lmsys/vicuna-7b-v1.5", other("llama2", False, "same-family-only")),
    ("lmsys/vicuna-13b-v1.5-16k", other("llama2", False, "same-family-only")),
    ("mistralai/Mistral-7B-Instruct-v0.2", FREE),
    ("mistralai/Mixtral-8x7B-Instruct-v0.1", FREE),
    ("mistralai/Mistral-Small-Instruct-2409", other("mrl", False, "research-only")),
    ("mistralai/Mistral-Small-24B-Instruct-2501", FREE),
    ("mistralai/Mistral-Small-3.1-24B-Instruct-2503", FREE),
    ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", FREE),
    ("mistralai/Ministral-8B-Instruct-2410", other("mrl", False, "research-only")),
    ("mistralai/Codestral-22B-v0.1", other("mnpl", False, "research-only")),
    ("Qwen/Qwen2.5-0.5B-Instruct", FREE),
    ("Qwen/Qwen2.5-3B-Instruct", other("qwen-research", False, "research-only")),
    ("Qwen/Qwen2.5-7B-Instruct", FREE),
    ("Qwen/Qwen2.5-32B-Instruct", FREE),
    ("Qwen/Qwen2.5-72B-Instruct", other("qwen", True, "conditional")),
    ("Qwen/Qwen3-8B", FREE),
    ("Qwen/Qwen-72B-Chat", other("tongyi-qianwen", False, "same-family-only")),
    ("google/gemma-2b-it", other("gemma", True, "conditional")),
    ("google/gemma-3-27b-it", other("gemma", True, "conditional")),
    ("google/gemma-4-31B-it", FREE),
    ("microsoft/phi-4", FREE),
    ("deepseek-ai/DeepSeek-R1", FREE),
    ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", other("llama3.1", True, "conditional")),
    ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", other("llama3.3", True, "conditional")),
    ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", FREE),
    ("deepseek-ai/DeepSeek-V3", other("deepseek", True, "conditional")),
    ("openai/gpt-oss-120b", FREE),
    ("HuggingFaceTB/SmolLM2-135M-Instruct", FREE),
    ("zai-org/GLM-4.5", FREE),
    ("moonshotai/Kimi-K2-Instruct", other("kimi-k2-modified-mit", True, "conditional")),
    ("tiiuae/falcon-7b-instruct", FREE),
    ("tiiuae/Falcon3-7B-Instruct", other("falcon-llm-license", True, "conditional")),
    ("tiiuae/falcon-180B-chat", UNKNOWN),
    ("CohereLabs/c4ai-command-r-v01", other("cc-by-nc-4.0", False, "research-only")),
    ("LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct", other("exaone", False, "research-only")),
    (
        "tencent/Hunyuan-A13B-Instruct",
        other("tencent-hunyuan-community", False, "same-family-only"),
    ),
    ("allenai/OLMo-2-1124-13B-Instruct", other("olmo-2-instruct", True, "conditional")),
    ("allenai/OLMo-2-1124-13B", FREE),
    ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", FREE),
    ("nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16", FREE),
    (
        "nvidia/NVIDIA-Nemotron-Nano-12B-v2-VL-BF16",
        other("nvidia-open-model-license-multimodal", True, "conditional"),
    ),
    ("nvidia/Llama-3_3-Nemotron-Super-49B-v1_5", other("llama3.3", True, "conditional")),
    ("mistralai/Pixtral-12B-2409", FREE),
    ("mistralai/Ministral-3-8B-Instruct-2512", FREE),
    (
        "mistralai/Devstral-2-123B-Instruct-2512",
        other("mistral-modified-mit", True, "conditional"),
    ),
    ("Qwen/Qwen2.5-VL-3B-Instruct", other("qwen-research", False, "research-only")),
    ("Qwen/Qwen2.5-VL-7B-Instruct", FREE),
    ("Qwen/Qwen2.5-VL-72B-Instruct", other("qwen", True, "conditional")),
    ("Qwen/Qwen2.5-3B-Instruct-GGUF", other("qwen-research", False, "research-only")),
    ("Qwen/Qwen3-VL-8B-Instruct-FP8", FREE),
    ("Qwen/Qwen1.5-1.8B-Chat", other("tongyi-qianwen-research", False, "forbidden")),
    ("Qwen/Qwen1.5-72B-Chat", other("tongyi-qianwen", False, "same-family-only")),
    ("deepseek-ai/DeepSeek-V3-0324", FREE),
    ("deepseek-ai/DeepSeek-V3.1", FREE),
    ("deepseek-ai/DeepSeek-V2.5", other("deepseek", True, "conditional")),
    ("moonshotai/Kimi-K3", other("kimi-k3", True, "conditional")),
    ("moonshotai/Kimi-Dev-72B", other("qwen", True, "conditional")),
    ("MiniMaxAI/MiniMax-M1-80k", FREE),
    ("MiniMaxAI/MiniMax-M2", other("minimax-m2-modified-mit", True, "conditional")),
    ("MiniMaxAI/MiniMax-M2.5", other("minimax-m2.5-modified-mit", True, "conditional")),
    ("MiniMaxAI/MiniMax-M2.7", other("minimax-m2.7-non-commercial", False, "research-only")),
    ("MiniMaxAI/MiniMax-M3", other("minimax-community", False, "research-only")),
    ("MiniMaxAI/MiniMax-Text-01", UNKNOWN),
    ("zai-org/glm-4-9b-chat", other("glm-4", True, "conditional")),
    ("zai-org/GLM-4.5V", FREE),
    ("tencent/Hy3", FREE),
    ("OpenGVLab/InternVL3-8B", FREE),
    ("OpenGVLab/InternVL3-78B", other("qwen", True, "conditional")),
    ("OpenGVLab/InternVL2_5-4B", other("qwen-research", False, "research-only")),
    ("OpenGVLab/InternVL2-Llama3-76B", other("llama3", False, "same-family-only")),
    ("openbmb/MiniCPM-V-4_5", FREE),
    (
        "allenai/Llama-3.1-Tulu-3-8B",
        other("llama3.1-and-tulu-3", True, "conditional"),
    ),
    ("allenai/Molmo-7B-D-0924", FREE),
    ("allenai/Molmo-72B-0924", other("tongyi-qianwen", False, "same-family-only")),
    ("HuggingFaceM4/Idefics3-8B-Llama3", other("llama3.1", True, "conditional")),
    ("ibm-granite/granite-4.0-h-small", FREE),
    ("xai-org/grok-1", FREE),
    ("xai-org/grok-2", other("grok-2", False, "same-family-only")),
    (
        "databricks/dbrx-instruct",
        other("databricks-open-model-license", False, "same-family-only"),
    ),
    (
        "stabilityai/stablelm-2-12b-chat",
        other("stabilityai-ai-community", False, "same-family-only"),
    ),
    ("LiquidAI/LFM2-1.2B", other("lfm1.0", True, "conditional")),
    ("ai21labs/AI21-Jamba-Large-1.6", UNKNOWN),
    ("CohereLabs/c4ai-command-r7b-12-2024", other("cc-by-nc-4.0", False, "research-only")),
    ("someone/a-model-nobody-knows", UNKNOWN),
    ("TheBloke/Mistral-7B-Instruct-v0.2-GGUF", FREE),
    ("someone/Mistral-7B-Instruct-v0.2-GGUF", UNKNOWN),
]
LLAMA2, QWEN = "meta-llama/Llama-2-7b-hf", "Qwen/Qwen2.5-7B-Instruct"
BY_OTHER_WAYS: dict[str, tuple[list[Part], tuple[Any, ...]]] = {
    "OpenAI": (model("openai-api", endpoints=[OPENAI]), other("openai-terms", False, "forbidden")),
    "OpenAI under the name of a free model": (
        model("openai/gpt-oss-120b", endpoints=[OPENAI]),
        other("openai-terms", False, "forbidden"),
    ),
    "Anthropic": (
        model("claude", endpoints=["https://api.anthropic.com/v1"]),
        other("anthropic-terms", False, "forbidden"),
    ),
    "Mistral's own API": (model("x", endpoints=["https://api.mistral.ai/v1"]), UNKNOWN),
    "a free model at a service": (
        model(QWEN, endpoints=["https://openrouter.ai/api/v1"]),
        UNKNOWN,
    ),
    "a free model at a service without an entry": (
        model(QWEN, endpoints=["https://api.somebody.ai/v1"]),
        UNKNOWN,
    ),
    "a free model at OpenAI in Europe, by its whole name": (
        model(QWEN, endpoints=["https://eu.api.openai.com./v1"]),
        other("openai-terms", False, "forbidden"),
    ),
    "a free model at a server of one's own": (model(QWEN, endpoints=[OWN]), FREE),
    "a free model at one's own server and at OpenAI": (
        model(QWEN, endpoints=[OWN, OPENAI]),
        other("openai-terms", False, "forbidden"),
    ),
    "a GGUF file without metadata": (model(None, files=Declared("f.gguf")), UNKNOWN),
    "a GGUF file with a licence": (model(None, files=Declared("f", licenses=("MIT",))), FREE),
    "a card of a modified MIT licence, whosever": (
        model(None, files=Declared("README.md", licenses=("modified-mit",))),
        UNKNOWN,
    ),
    "a GGUF file of a registered model": (model(None, files=Declared("f", repo_id=QWEN)), FREE),
    "a GGUF file of an unknown base": (
        model(None, files=Declared("f", licenses=("mit",), parents=("some/base",))),
        UNKNOWN,
    ),
    "a free fine-tune of a base that isn't": (
        model(None, files=Declared("f", licenses=("apache-2.0",), parents=(LLAMA2,))),
        other("llama2", False, "same-family-only"),
    ),
    "a fine-tune that says nothing of a free base": (
        model(None, files=Declared("f", parents=(QWEN,))),
        UNKNOWN,
    ),
    "a copy that says nothing of a free base": (
        model(None, files=Declared("f", parents=(QWEN,), is_copy=True)),
        FREE,
    ),
    "a fine-tune that is stricter than its base": (
        model(None, files=Declared("f", licenses=("cc-by-nc-4.0",), parents=(QWEN,))),
        other("cc-by-nc-4.0", False, "research-only"),
    ),
    "a fine-tune of a base without an exact name": (
        model(None, files=Declared("f", licenses=("mit",), unnamed_parents=("Emu by Baai",))),
        UNKNOWN,
    ),
    "a fine-tune of a base that its name bars": (
        model(None, files=Declared("f", licenses=("mit",), unnamed_parents=("Llama 2 by Meta",))),
        UNKNOWN_AND_BARRED,
    ),
    "a licence that nobody knows": (model(None, files=Declared("f", licenses=("wtf",))), UNKNOWN),
    "a model by the user's word": (
        model(QWEN, files=Declared("f", parents=(LLAMA2,)), given=True),
        FREE,
    ),
    "a merge of two": (
        model(None, files=Declared("f", licenses=("mit",), parents=(QWEN, LLAMA2))),
        other("llama2", False, "same-family-only"),
    ),
}


@pytest.mark.parametrize(("repo_id", "expected"), MODELS)
def test_a_models_terms_decide_what_its_rows_may_train(
    repo_id: str, expected: tuple[Any, ...]
) -> None:
    verdict = coco(*model(repo_id))
    assert (
        *(verdict.license, verdict.license_name),
        *(verdict.commercial, verdict.output_training),
    ) == expected


@pytest.mark.parametrize("case", BY_OTHER_WAYS)
def test_a_model_is_judged_by_all_that_is_known_of_it(case: str) -> None:
    parts, expected = BY_OTHER_WAYS[case]
    verdict = coco(*parts)
    assert (
        *(verdict.license, verdict.license_name),
        *(verdict.commercial, verdict.output_training),
    ) == expected


MIXTRAL = model("mistralai/Mixtral-8x7B-Instruct-v0.1")


@pytest.mark.parametrize(
    ("annotations", "prompts", "license", "name", "commercial"),
    [
        (["cc0-1.0"], "CC0-1.0", "cc0-1.0", None, True),
        (["MIT"], "CC0-1.0", "mit", None, True),
        (["MIT", "CC-BY-4.0"], "CC0-1.0", "cc-by-4.0", None, True),
        (["CC-BY-4.0"], "Apache-2.0", "cc-by-4.0", None, True),
        (["CC-BY-4.0"], "All rights reserved", "unknown", None, None),
        (["CC-BY-4.0"], "CC-BY-NC-4.0", "cc-by-nc-4.0", None, False),
        (["CC-BY-4.0", "CC-BY-2.0"], "CC0-1.0", "other", "cc-by-2.0-and-cc-by-4.0", True),
        (["CC-BY-SA-2.0"], "CC0-1.0", "other", "cc-by-sa-2.0", True),
        (["CC-BY-SA-2.0", "CC-BY-SA-4.0"], "CC-BY-4.0", "cc-by-sa-4.0", None, True),
        (["CC-BY-NC-SA-2.0", "CC-BY-NC-4.0"], "CC0-1.0", "cc-by-nc-sa-4.0", None, False),
        (["CC-BY-ND-4.0"], "CC0-1.0", "cc-by-nd-4.0", None, False),
        (["flickr30k-research"], "CC0-1.0", "other", "flickr30k-research", False),
        (["MIT", "LicenseRef-AMASS"], "CC0-1.0", "other", "amass-noncommercial-and-mit", False),
        ([None, "CC-BY-4.0"], "CC0-1.0", "unknown", None, None),
        ([None, "CC-BY-NC-4.0"], "CC0-1.0", "unknown", None, False),
    ],
)
def test_texts_get_the_freest_licence_that_covers_all_of_them(
    annotations: list[str | None], prompts: str, license: str, name: str | None, commercial: Any
) -> None:
    parts = [*works(*annotations), licenses.prompt_part(REGISTRY, name="p", license=prompts)]
    verdict = licenses.compose(REGISTRY, [*parts, *MIXTRAL])
    assert (verdict.license, verdict.license_name, verdict.commercial) == (
        license,
        name,
        commercial,
    )


@pytest.mark.parametrize(
    ("annotations", "against"),
    [
        (["MIT"], None),
        (
            ["MIT", "cc-by-nc-nd-4.0"],
            "commercial use and changes",
        ),  # rows are made of it, so changed
        (["MIT", "LicenseRef-AMASS"], "passing it on"),
    ],
)
def test_what_may_not_be_passed_on_binds_all_text_made_of_it(
    annotations: list[str | None], against: str | None
) -> None:
    verdict = licenses.compose(REGISTRY, [*works(*annotations), *MIXTRAL])
    assert verdict.redistribution is (against is None)
    assert verdict.as_json()["redistribution"] is (against is None)
    assert any(f"{against}" in reason for reason in verdict.reasons) is (against is not None)


@pytest.mark.parametrize(
    "names",
    [
        ("cc-by-sa-4.0", "cc-by-nc-4.0"),
        ("cc-by-sa-4.0", "cc-by-nc-sa-4.0"),
        ("cc-by-sa-2.0", "cc-by-nc-sa-2.0"),
        ("cc-by-sa-2.0", "cc-by-2.0"),
        ("cc-by-nc-sa-4.0", "flickr30k-research"),
    ],
)
def test_texts_whose_licences_exclude_each_other_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="exclude each other.*leave a source out"):
        licenses.compose(REGISTRY, works(*names))


def test_shipped_images_are_works_of_their_own_and_keep_their_licences() -> None:
    images = works("cc-by-sa-2.0", "cc-by-nc-sa-2.0", role="images")
    verdict = coco(*images, *MIXTRAL)
    assert verdict.license == "other"
    assert verdict.license_name == "cc-by-4.0-and-cc-by-nc-sa-2.0-and-cc-by-sa-2.0"
    assert verdict.commercial is False
    free = coco(licenses.image_part(REGISTRY, license="CC-BY-2.0"), *MIXTRAL)
    assert (free.license, free.commercial) == ("other", True)
    assert coco(licenses.image_part(REGISTRY, license=None)).commercial is None
    assert coco(licenses.image_part(REGISTRY, license="CC-BY-ND-2.0")).commercial is False


def test_outputs_that_may_not_be_passed_on_everywhere_bind_the_text() -> None:
    verdict = coco(*model("tencent/Hunyuan-A13B-Instruct"))
    assert verdict.redistribution is False
    assert any("not be passed on to everyone everywhere" in reason for reason in verdict.reasons)
    for free in ("Qwen/Qwen3-8B", "google/gemma-3-27b-it", "meta-llama/Llama-3.1-8B-Instruct"):
        assert coco(*model(free)).redistribution is True


def test_the_duties_of_all_parts_come_along() -> None:
    duties = coco(*model("meta-llama/Llama-3.1-8B-Instruct")).obligations
    assert {(duty.kind, duty.value) for duty in duties} == {
        ("attribution", None),
        ("name-prefix", "Llama"),
        ("display", "Built with Llama"),
        ("use-policy", None),
        ("scale", None),
    }
    gemma = {duty.kind for duty in coco(*model("google/gemma-3-4b-it")).obligations}
    assert gemma == {"attribution", "pass-on", "notice", "use-policy"}
    assert [duty.kind for duty in coco(*MIXTRAL).obligations] == ["attribution"]


def test_the_reasons_name_every_part_with_clause_source_and_day() -> None:
    *reasons, conclusion = coco(*model("lmsys/vicuna-7b-v1.5")).reasons
    assert len(reasons) == 4
    text = "\n".join(reasons)
    for said in ("base model meta-llama/Llama-2-7b-hf", "1.b.v", "2026-11-22", "made from it"):
        assert said in text
    assert "llama-models/blob/main/models/llama2/LICENSE" in text
    assert "may not be used commercially, because of" in conclusion
    assert "COCO" not in conclusion


def test_where_the_users_word_differs_from_the_file_the_reasons_say_so() -> None:
    parts = model(QWEN, files=Declared("f.gguf", parents=(LLAMA2,)), given=True)
    assert "by your word (--model_id), while f.gguf names meta-llama/Llama-2-7b-hf" in (
        parts[0].reason
    )


def test_rows_without_annotations_have_no_verdict() -> None:
    with pytest.raises(ValueError, match="annotations"):
        licenses.compose(REGISTRY, MIXTRAL)


def test_alternatives_are_the_nearest_free_models_of_different_makers() -> None:
    verdict = coco(*model("meta-llama/Llama-2-70b-chat-hf"))
    found = licenses.alternatives(REGISTRY, verdict)
    assert found[0] == "swiss-ai/Apertus-70B-Instruct-2509: Apache-2.0, no duty on outputs"
    names = [line.partition(":")[0] for line in found]
    assert len({name.partition("/")[0] for name in names}) == len(names) == 3
    for name in names:
        assert coco(*model(name)).license == "cc-by-4.0"
        assert 30 < (REGISTRY.models[name].size_b or 0) < 150


def test_there_are_alternatives_only_where_another_model_would_help() -> None:
    assert licenses.alternatives(REGISTRY, coco(*MIXTRAL)) == []
    assert licenses.alternatives(REGISTRY, coco(*model("meta-llama/Llama-3.1-8B-Instruct"))) == []
    barred = licenses.compose(REGISTRY, [*works("cc-by-nc-4.0"), *model(LLAMA2)])
    assert licenses.alternatives(REGISTRY, barred) == []
    assert len(licenses.alternatives(REGISTRY, coco(*model("no/such-model")))) == 3


def test_where_the_service_is_what_is_unknown_a_server_of_ones_own_is_the_way_out() -> None:
    at_a_service = coco(*model("Qwen/Qwen2-7B-Instruct", endpoints=["https://llm.uni.example/v1"]))
    found = licenses.alternatives(REGISTRY, at_a_service)
    assert found[0].startswith("Qwen/Qwen2-7B-Instruct, on a server of your own: Apache-2.0")


ENTRIES = [None, *REGISTRY.licenses.values()]
POOL = [
    *(Part("annotations", f"annotations {n}", by) for n, by in enumerate(ENTRIES)),
    *(Part("prompts", f"prompts {n}", by) for n, by in enumerate(ENTRIES)),
    *(Part("images", f"images {n}", by) for n, by in enumerate(ENTRIES)),
    *(Part("model", f"model {n}", by) for n, by in enumerate([None, *REGISTRY.terms.values()])),
    *(Part("service", f"service {n}", by) for n, by in enumerate([None, *REGISTRY.terms.values()])),
]
ANY_PARTS = st.lists(st.sampled_from(POOL), max_size=5).flatmap(
    lambda parts: st.sampled_from(POOL[: len(ENTRIES)]).map(lambda first: [first, *parts])
)
_ORDER = ("allowed", "conditional", "unknown", "same-family-only", "research-only", "forbidden")


def judged(parts: list[Part]) -> Verdict | None:
    """The verdict, or None if the parts exclude each other."""
    try:
        return licenses.compose(REGISTRY, parts)
    except UsageError:
        return None


def assert_not_freer(after: Verdict | None, before: Verdict | None) -> None:
    if after is None:
        return
    assert before is not None, "what excludes each other stays excluded"
    use = [True, None, False]
    assert use.index(after.commercial) >= use.index(before.commercial)
    assert _ORDER.index(after.output_training) >= _ORDER.index(before.output_training)
    assert set(after.obligations) >= set(before.obligations)
    closed = {"other": 1, "unknown": 2}
    if before.license in closed and before.license_name not in REGISTRY.licenses:
        assert closed.get(after.license, 0) >= closed[before.license]
    ids = [v.license if v.license in REGISTRY.licenses else v.license_name for v in (before, after)]
    if all(name in REGISTRY.licenses for name in ids) and ids[0] != ids[1]:
        assert ids[1] not in REGISTRY.covered[str(ids[0])]


@given(parts=ANY_PARTS, more=st.sampled_from(POOL))
def test_another_part_never_makes_a_verdict_freer(parts: list[Part], more: Part) -> None:
    assert_not_freer(judged([*parts, more]), judged(parts))


@given(parts=ANY_PARTS, data=st.data())
def test_the_order_of_the_parts_and_repetitions_change_nothing(
    parts: list[Part], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations([*parts, parts[0]]))
    assert judged(shuffled) == judged(parts)


@given(parts=ANY_PARTS)
def test_every_verdict_has_fields_that_the_hub_takes_and_is_no_freer_than_any_part(
    parts: list[Part],
) -> None:
    verdict = judged(parts)
    if verdict is None:
        return
    assert verdict.license in REGISTRY.hub_licenses
    assert (verdict.license == "other") == (verdict.license_name is not None)
    assert (verdict.license_name is None) == (verdict.license_link is None)
    assert verdict.hub_metadata["license"] == verdict.license
    json.dumps(verdict.as_json())
    unknown = [part for part in parts if part.commercial is None]
    assert not (unknown and verdict.commercial)
    if any(part.by is None for part in parts):
        assert verdict.license == "unknown"
    if verdict.commercial:
        assert all(part.commercial for part in parts)
    if verdict.license in REGISTRY.licenses:
        entry = REGISTRY.licenses[verdict.license]
        for part in parts:
            if part.role not in ("model", "service"):
                assert part.by is not None
                assert part.by.id in REGISTRY.covered[entry.id]
            else:
                assert part.commercial
                assert getattr(part.by, "output_training", None) == "allowed"


def test_of_any_two_licences_the_result_is_as_strict_as_both() -> None:
    known = [by for by in REGISTRY.licenses.values()]
    for first, second in itertools.combinations_with_replacement(known, 2):
        parts = [Part("annotations", "a", first), Part("annotations", "b", second)]
        verdict = judged(parts)
        for part in parts:
            assert_not_freer(verdict, judged([part]))
