"""The facts: complete, dated, exact, and strictly read; a user's own over ours."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from mminstruct import licenses, sources
from mminstruct.errors import ConfigError
from mminstruct.licenses.entries import License, Terms
from mminstruct.licenses.hosts import is_public
from mminstruct.recipe import find_annotation_parts
from mminstruct.sources._image_licenses import IMAGE_LICENSES

REGISTRY = licenses.load()
FACTS: list[Any] = [
    *(entry for name in ("licenses", "terms", "annotations", "images", "endpoints")
      for entry in getattr(REGISTRY, name).values()),
]  # fmt: skip

# What was looked at: (where it is, its id) of everything, so that a lost entry is noticed.
LOOKED_AT = {
    "annotations": "coco localized-narratives open-images humanml3d-texts amass humanact12 kit-ml "
    "motion-x babel motion-million lvis visual-genome vqa-v2 flickr30k objects365 sa-1b "
    "densepose-coco",
    "images": "coco-1 coco-2 coco-3 coco-4 coco-5 coco-6 coco-7 coco-8 open-images amass flickr30k "
    "sa-1b",
    "endpoints": "openai anthropic gemini mistral openrouter together deepseek xai cohere groq "
    "cerebras deepinfra fireworks huggingface nvidia perplexity moonshot moonshot-cn zai zhipu-cn "
    "dashscope dashscope-cn minimax azure-openai azure-foundry vertex bedrock novita sambanova "
    "huggingface-endpoints ai21 siliconflow nebius hyperbolic featherless baseten replicate "
    "stepfun volcengine qianfan upstage writer inception amazon-nova ollama lm-studio",
    "models": "lmsys/vicuna-7b-v1.5 meta-llama/Llama-2-7b-chat-hf meta-llama/Meta-Llama-3-8B "
    "meta-llama/Llama-3.1-8B-Instruct meta-llama/Llama-3.2-1B-Instruct "
    "meta-llama/Llama-3.3-70B-Instruct meta-llama/Llama-4-Scout-17B-16E-Instruct "
    "mistralai/Mistral-7B-Instruct-v0.3 mistralai/Mixtral-8x7B-Instruct-v0.1 "
    "mistralai/Mixtral-8x22B-Instruct-v0.1 mistralai/Mistral-Small-3.2-24B-Instruct-2506 "
    "mistralai/Mistral-Nemo-Instruct-2407 mistralai/Ministral-8B-Instruct-2410 "
    "mistralai/Mistral-Large-Instruct-2411 mistralai/Pixtral-Large-Instruct-2411 "
    "mistralai/Mistral-Small-Instruct-2409 mistralai/Codestral-22B-v0.1 Qwen/Qwen2-7B-Instruct "
    "Qwen/Qwen2.5-0.5B-Instruct Qwen/Qwen2.5-1.5B-Instruct Qwen/Qwen2.5-7B-Instruct "
    "Qwen/Qwen2.5-14B-Instruct Qwen/Qwen2.5-32B-Instruct Qwen/Qwen3-8B Qwen/Qwen3.5-27B "
    "Qwen/Qwen2.5-72B-Instruct Qwen/Qwen2.5-3B-Instruct Qwen/Qwen-72B-Chat google/gemma-2b-it "
    "google/gemma-2-9b-it google/gemma-3-27b-it google/gemma-3n-E4B-it google/gemma-4-31B-it "
    "microsoft/Phi-3-mini-4k-instruct microsoft/Phi-3.5-mini-instruct microsoft/phi-4 "
    "deepseek-ai/DeepSeek-R1 deepseek-ai/DeepSeek-V3.2 deepseek-ai/DeepSeek-V4-Pro "
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B deepseek-ai/DeepSeek-R1-Distill-Qwen-7B "
    "deepseek-ai/DeepSeek-V3 openai/gpt-oss-20b openai/gpt-oss-120b "
    "HuggingFaceTB/SmolLM2-135M-Instruct HuggingFaceTB/SmolLM-135M-Instruct "
    "HuggingFaceTB/SmolLM3-3B TinyLlama/TinyLlama-1.1B-Chat-v0.3 allenai/OLMo-2-1124-7B-Instruct "
    "allenai/Olmo-3-7B-Instruct zai-org/GLM-4.5 moonshotai/Kimi-K2-Instruct MiniMaxAI/MiniMax-M2 "
    "tiiuae/falcon-7b-instruct tiiuae/falcon-40b-instruct tiiuae/falcon-11B "
    "tiiuae/Falcon3-7B-Instruct tiiuae/falcon-180B-chat CohereLabs/c4ai-command-r-v01 "
    "CohereLabs/aya-expanse-8b nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16 "
    "nvidia/NVIDIA-Nemotron-Nano-12B-v2 LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct "
    "tencent/Hunyuan-A13B-Instruct",
    "left_out": "coco-api open-images-repository llava-instruct-150k flickr-all-rights-reserved "
    "humanml3d-source-mix anything-else",
}  # fmt: skip


@pytest.mark.parametrize("section", LOOKED_AT)
def test_all_that_was_looked_at_is_registered_or_left_out_with_a_reason(section: str) -> None:
    there = getattr(REGISTRY, section)
    assert [name for name in LOOKED_AT[section].split() if name not in there] == []
    if section != "models":
        assert set(there) == set(LOOKED_AT[section].split())
    for reason in REGISTRY.left_out.values():
        assert len(reason.split()) > 3


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: f"{type(fact).__name__}-{fact.id}")
def test_every_fact_has_a_source(fact: Any) -> None:
    assert re.fullmatch(r"https?://[\w.-]+\.\w+/\S*", fact.source_url)
    if isinstance(fact, License | Terms):
        assert re.fullmatch(r"https?://[\w.-]+\.\w+/\S*", fact.url)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: f"{type(fact).__name__}-{fact.id}")
def test_what_was_not_found_is_never_free(fact: Any) -> None:
    if getattr(fact, "evidence", None) != "not-found":
        return
    if isinstance(fact, License):
        assert licenses.usable(fact) is not True
    elif isinstance(fact, Terms):
        assert fact.output_training == "unknown"
    else:
        assert licenses.usable(REGISTRY.license(fact.license)) is not True


def test_the_hub_has_the_83_licence_ids_of_its_documentation() -> None:
    assert len(REGISTRY.hub_licenses) == 83
    assert {"cc-by-4.0", "llama3.1", "gemma", "other", "unknown"} <= REGISTRY.hub_licenses


@pytest.mark.parametrize("entry", REGISTRY.licenses.values(), ids=lambda entry: entry.id)
def test_a_licence_with_an_id_on_the_hub_is_released_under_that_id_and_no_other(
    entry: License,
) -> None:
    assert entry.hub == (entry.id if entry.id in REGISTRY.hub_licenses else "other")


@pytest.mark.parametrize("name", REGISTRY.licenses)
def test_text_is_never_released_under_a_freer_licence_than_its_own(name: str) -> None:
    outer = REGISTRY.licenses[name]
    for inner in (REGISTRY.licenses[covered] for covered in REGISTRY.covered[name]):
        assert inner.derivatives or inner is outer
        assert inner.commercial or not outer.commercial
        kinds = {duty.kind for duty in outer.obligations}
        assert "share-alike" in kinds or not inner.share_alike
        assert "attribution" in kinds or not any(
            duty.kind == "attribution" for duty in inner.obligations
        )
    for other in REGISTRY.covered[name] - {name}:
        assert name not in REGISTRY.covered[other], "no two cover each other"


def test_every_base_of_a_registered_model_is_registered_too() -> None:
    bases = {model.base for model in REGISTRY.models.values() if model.base}
    assert len(bases) > 6
    assert bases <= REGISTRY.models.keys()


def test_a_model_is_found_by_its_id_as_the_hub_takes_it_and_nothing_is_freed_by_another() -> None:
    free = {"allowed", "conditional"}
    for repo_id, model in REGISTRY.models.items():
        for spelled in (
            *(repo_id.upper(), repo_id.lower(), f" {repo_id} ", f"{repo_id}@main"),
            *(f"https://huggingface.co/{repo_id}", f"hf.co/{repo_id}/tree/v1/sub"),
        ):
            assert REGISTRY.find_model(spelled) is model, spelled
    for repo_id in sorted(REGISTRY.models)[::10]:
        name = repo_id.rpartition("/")[2]
        near = (f"{repo_id}-GGUF", f"{repo_id}-finetuned", f"someone/{name}", repo_id[:-1], name)
        for spelled in near:
            if REGISTRY.find_model(spelled) is None:
                parts = licenses.model_parts(REGISTRY, name="m", repo_id=spelled)
                assert parts[0].by is None or not parts[0].commercial, spelled
                assert {part.output_training for part in parts} - free, spelled


def test_cocos_eight_image_licences_are_those_that_its_files_are_read_with() -> None:
    for number, (spdx, url) in IMAGE_LICENSES.items():
        work = REGISTRY.images[f"coco-{number}"]
        entry = REGISTRY.licenses[work.license or ""]
        assert entry.spdx == spdx
        assert url.rpartition("//")[2].removeprefix("www.").rstrip("/") in entry.url
    use = REGISTRY.image_use()
    verdicts = {number: use[spdx.lower()] for number, (spdx, _) in IMAGE_LICENSES.items()}
    assert [number for number, free in verdicts.items() if free] == [4, 5, 7, 8]
    assert None not in verdicts.values()


def test_what_a_source_says_of_its_own_licence_agrees_with_its_entry() -> None:
    listed = {name for work in REGISTRY.annotations.values() for name in work.sources}
    shipped = [sources.get(name).info for name in sources.names()]
    assert {"COCO2014", "COCO2017", "OPENIMAGESV7"} <= listed
    for info in shipped:
        work = REGISTRY.annotation(info.name)
        if work is not None:
            assert REGISTRY.license(work.license) == REGISTRY.license(info.license)


FACT = {"source_url": "our contract of 2026-02-01", "checked_on": "2026-02-01"}
TERMS = {
    **FACT, "id": "acme-terms", "title": "the terms of Acme", "hub": "other",
    "url": "https://acme.example/terms", "output_training": "allowed", "clause": "7",
    "evidence": "primary",
}  # fmt: skip
GROUP = {
    **FACT, "name": "Acme", "vendor": "acme", "terms": "acme-terms", "evidence": "primary",
    "chat": {"acme/model-1": 7},
}  # fmt: skip


def user_file(folder: Path, **sections: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def test_a_users_model_is_known_and_says_who_entered_it(tmp_path: Path) -> None:
    registry = licenses.load(user_file(tmp_path, terms=[TERMS], models=[GROUP]))
    (part,) = licenses.model_parts(registry, name="m", repo_id="acme/model-1")
    assert part.commercial is True
    assert part.reason.endswith("(entered in mine.yaml)")
    assert "acme/model-1" not in licenses.load().models


def test_a_users_entry_replaces_ours_and_says_so(tmp_path: Path) -> None:
    group = {**GROUP, "chat": {"meta-llama/Llama-2-7b-chat-hf": 7}}
    registry = licenses.load(user_file(tmp_path, terms=[TERMS], models=[group]))
    (part,) = licenses.model_parts(registry, name="m", repo_id="meta-llama/Llama-2-7b-chat-hf")
    assert part.commercial is True
    assert "(entered in mine.yaml)" in part.reason
    (other,) = licenses.model_parts(registry, name="m", repo_id="meta-llama/Llama-2-7b-hf")
    assert other.commercial is False
    assert "mine.yaml" not in other.reason


def test_a_users_terms_hold_for_all_models_under_them(tmp_path: Path) -> None:
    stricter = {**TERMS, "id": "apache-2.0", "output_training": "forbidden"}
    registry = licenses.load(user_file(tmp_path, terms=[stricter]))
    (part,) = licenses.model_parts(registry, name="m", repo_id="Qwen/Qwen3-8B")
    assert part.commercial is False
    assert "(entered in mine.yaml)" in part.reason


def test_a_user_can_say_what_licence_annotations_are_under(tmp_path: Path) -> None:
    work = {
        **FACT, "id": "our-coco", "title": "our agreement", "license": "cc-by-nc-4.0",
        "sources": ["COCO2017"], "clause": "1", "evidence": "primary",
    }  # fmt: skip
    for name in ("COCO2017", "coco2017", " Coco2017 "):
        file = user_file(tmp_path, annotations=[{**work, "sources": [name]}])
        registry = licenses.load(file, sources.names())
        (part,) = find_annotation_parts(registry, sources.get("COCO2017").info)
        assert part.commercial is False
        assert "(entered in mine.yaml)" in part.reason


def copied(section: str, id: str, /, **changes: Any) -> dict[str, Any]:
    """An entry of ours as a user would copy it."""
    entry = {**getattr(REGISTRY, section)[id].model_dump(mode="json"), **changes}
    return {name: value for name, value in entry.items() if value is not None}


TEXTS = "humanml3d-texts"


@pytest.mark.parametrize(
    "work",
    [
        copied("annotations", TEXTS),
        copied("annotations", TEXTS, id="our-texts", license="cc0-1.0"),
        copied("annotations", TEXTS, id="ours", sources=["coco2017", "humanml3d"]),
        copied("annotations", TEXTS, license="cc-by-nc-4.0"),
    ],
    ids=["a copy of ours", "a freer one", "one for another source, too", "a stricter one"],
)
def test_what_was_asked_for_beyond_the_texts_stays_a_part(
    tmp_path: Path, work: dict[str, Any]
) -> None:
    registry = licenses.load(user_file(tmp_path, annotations=[work]), sources.names())
    for name in ("HUMANML3D", "COCO2017+HUMANML3D"):
        texts = sources.get(name).info
        asked = sources.get(name, {"motion_facts": True}).info
        plain = {part.by.id for part in find_annotation_parts(registry, texts) if part.by}
        more = {part.by.id for part in find_annotation_parts(registry, asked) if part.by}
        assert more == plain | {"amass-noncommercial"}
        assert work["license"] in plain
        assert "amass-noncommercial" not in plain


OURS = {
    **FACT, "id": "ours", "title": "t", "license": "cc0-1.0", "clause": "1", "evidence": "primary",
}  # fmt: skip


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"annotations": ["COCO_2017"]}, r"'COCO_2017'.*\(did you mean 'COCO2017'\?\)"),
        ({"annotations": ["humanml"]}, r"annotations: 'ours' .*\(did you mean 'HUMANML3D'\?\)"),
        ({"images": ["VISUALGENOME"]}, "images: 'ours' has the source 'VISUALGENOME', which is"),
        ({"annotations": ["COCO2017", ""]}, "annotations.0.sources.1.*at least 1 character"),
        (
            {"annotations": ["COCO2017+LVIS+LN"]},
            "'COCO2017\\+LVIS\\+LN'.* of their own; name COCO2017 or LVIS or LN",
        ),
        ({"images": ["coco2014+ln"]}, "has the joined source .*; name COCO2014 or LN"),
        ({"annotations": []}, "'ours' has no sources, so nothing is under it; name some"),
        ({"images": []}, "images: 'ours' has no sources"),
    ],
)
def test_an_entry_for_what_is_no_source_is_refused(
    tmp_path: Path, sections: dict[str, list[str]], message: str
) -> None:
    entries = {name: [{**OURS, "sources": named}] for name, named in sections.items()}
    with pytest.raises(ConfigError, match=f"^mine.yaml: .*{message}"):
        licenses.load(user_file(tmp_path, **entries), sources.names())


def test_of_two_entries_for_one_thing_none_is_dropped_in_silence(tmp_path: Path) -> None:
    two = [{**OURS, "sources": ["LN"]}, {**OURS, "id": "o2", "sources": ["ln", "LVIS"]}]
    with pytest.raises(ConfigError, match="'ours' has the source 'LN', as 'o2' has; keep one of"):
        licenses.load(user_file(tmp_path, annotations=two), sources.names())
    for section, id in (("licenses", "cc-by-2.0"), ("terms", "apache-2.0")):
        entry = copied(section, id, id="mine-1.0")
        with pytest.raises(ConfigError, match=f"'mine-1.0' and '{id}' are both called '{id}'"):
            licenses.load(user_file(tmp_path, **{section: [entry]}))
        assert licenses.load(user_file(tmp_path, **{section: [copied(section, id)]})).entered


def test_entries_that_may_change_nothing_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [{**OURS, "sources": ["LN"]}]
    licenses.load(user_file(tmp_path, terms=[TERMS], images=images), sources.names())
    licenses.load(user_file(tmp_path, terms=[TERMS], models=[GROUP]))
    assert caplog.messages == [
        "mine.yaml: images: 'ours': for 'mminstruct license' alone; rows have what their files "
        "name",
        "mine.yaml: terms: 'acme-terms': no model or service is under them; a model's own files "
        "may be",
    ]


def test_a_user_can_enter_a_service(tmp_path: Path) -> None:
    service = {**FACT, "id": "inhouse", "name": "our gateway", "hosts": ["gw.example"],
               "own_models": False, "terms": "acme-terms"}  # fmt: skip
    registry = licenses.load(user_file(tmp_path, terms=[TERMS], endpoints=[service]))
    parts = licenses.model_parts(
        registry, name="m", repo_id="Qwen/Qwen3-8B", endpoints=["https://gw.example/v1"]
    )
    assert [part.role for part in parts] == ["service", "model"]
    assert "(entered in mine.yaml)" in parts[0].reason


def test_a_service_without_an_entry_is_unknown_and_a_users_own_server_can_be_entered(
    tmp_path: Path,
) -> None:
    url = "https://llm.acme.example/v1"
    unknown = licenses.model_parts(REGISTRY, name="m", repo_id="Qwen/Qwen3-8B", endpoints=[url])
    assert [part.commercial for part in unknown] == [None, True]
    assert "acme" not in str(unknown)
    own = {**FACT, "id": "ours", "name": "our machine", "hosts": ["llm.acme.example"],
           "own_server": True}  # fmt: skip
    registry = licenses.load(user_file(tmp_path, endpoints=[own]))
    (part,) = licenses.model_parts(registry, name="m", repo_id="Qwen/Qwen3-8B", endpoints=[url])
    assert part.commercial is True
    assert "adds no terms that are known here (entered in mine.yaml)" in part.reason
    assert registry.endpoint_name(url) == "an unregistered server"


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("http://localhost:8000/v1", False),
        ("http://127.0.0.1:8000/v1", False),
        ("http://[::1]:8000/v1", False),
        ("http://34.5.6.7:8000/v1", False),  # a machine, as services have names
        ("http://gpu-box:8000/v1", False),
        ("http://gpu.local/v1", False),
        ("http://vllm.ml.svc.cluster.local/v1", False),
        ("http://vllm.ml.svc/v1", False),
        ("http://gpu.acme.corp/v1", False),
        ("https://api.somebody.ai/v1", True),
        ("https://acme.openai.azure.com/openai/v1", True),
        ("https://api.somebody.ai./v1", True),
        ("an unregistered server", False),
    ],
)
def test_a_host_with_a_public_name_is_a_service(url: str, public: bool) -> None:
    assert is_public(url) is public


def test_a_note_on_a_model_is_told() -> None:
    (part,) = licenses.model_parts(REGISTRY, name="m", repo_id="TinyLlama/TinyLlama-1.1B-Chat-v1.0")
    assert "its fine-tuning data includes sets written by GPT models" in part.reason


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {
                "endpoints": [
                    {
                        **FACT,
                        "id": "e",
                        "name": "n",
                        "hosts": ["h.example"],
                        "own_server": True,
                        "terms": "openai-terms",
                    }  # fmt: skip
                ]
            },
            "own_server: it has neither terms",
        ),
        ({"model": []}, r"mine.yaml: unknown key 'model' \(did you mean 'models'\?\)"),
        (
            {"terms": [{**TERMS, "output_trainin": "allowed"}]},
            r"unknown key 'output_trainin' in terms.0 \(did you mean 'output_training'\?\)",
        ),
        (
            {
                "terms": [
                    {**TERMS, "obligations": [{"when": "always", "knd": "notice", "text": "x"}]}
                ]
            },
            r"unknown key 'knd' in terms.0.obligations.0 \(did you mean 'kind'\?\)",
        ),
        ({"terms": [{k: v for k, v in TERMS.items() if k != "clause"}]}, "clause: this key is mis"),
        ({"terms": [{**TERMS, "output_training": "free"}]}, "terms.0.output_training.*'free'"),
        ({"terms": [{**TERMS, "hub": "llama9"}]}, r"'acme-terms' has hub 'llama9'.*did you mean"),
        ({"terms": [TERMS, deepcopy(TERMS)]}, "terms: 'acme-terms' is given twice"),
        ({"models": [GROUP]}, "'acme/model-1' has terms 'acme-terms', which is not known"),
        ({"terms": [TERMS], "models": [{**GROUP, "chat": {"model-1": 7}}]}, "models.0.chat"),
        ({"terms": [TERMS], "models": [{**GROUP, "chat": {"a/b": -1}}]}, "greater than 0"),
        (
            {"terms": [TERMS], "models": [{**GROUP, "bases": {"acme/model-2": "a/b"}}]},
            "has a base for 'acme/model-2', which is neither in its",
        ),
        (
            {"terms": [TERMS], "models": [{**GROUP, "bases": {"acme/model-1": "acme/model-1"}}]},
            "go in a circle",
        ),
        ({"hub_licenses": {}}, "unknown key 'hub_licenses'"),
    ],
)
def test_a_users_file_that_breaks_the_schema_is_refused_with_the_place(
    tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        licenses.load(user_file(tmp_path, **sections))


@pytest.mark.parametrize("text", ["- a list", "terms: [", "terms: []\nterms: []\n", "\udc80"])
def test_a_users_file_that_is_no_yaml_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match="^mine.yaml: "):
        licenses.load(path)
    with pytest.raises(ConfigError, match=r"/absent\.yaml: there is no such file$"):
        licenses.load(tmp_path / "absent.yaml")


def test_the_example_of_the_documentation_is_an_entry_that_works(tmp_path: Path) -> None:
    documentation = Path(__file__).parents[2] / "docs" / "licences.md"
    (example,) = re.findall(r"```yaml\n(.*?)```", documentation.read_text("utf-8"), re.DOTALL)
    (tmp_path / "mine.yaml").write_text(example)
    registry = licenses.load(tmp_path / "mine.yaml")
    own, base = licenses.model_parts(registry, name="m", repo_id="acme/model-1")
    assert (own.commercial, base.repo_id) == (True, "Qwen/Qwen3-8B")
    assert "Built with Acme" in str(own.by.obligations[0] if own.by else "")
