"""Services by their hosts, what their terms say, and what their names for models stand for."""

from __future__ import annotations

import datetime
import itertools
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from mminstruct import licenses
from mminstruct.errors import ConfigError
from mminstruct.licenses import Part
from mminstruct.licenses.entries import OutputTraining
from mminstruct.licenses.services import name_at

REGISTRY = licenses.load()
FACT = {"source_url": "https://acme.example/terms", "checked_on": datetime.date(2026, 11, 30)}
SERVICE = {**FACT, "id": "acme", "name": "Acme", "hosts": ["api.acme.example"]}


def load(folder: Path, *services: dict[str, Any]) -> licenses.Registry:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"endpoints": list(services)}))
    return licenses.load(path)


def parts_at(url: str, name: str, **more: Any) -> tuple[Part, ...]:
    registry = more.pop("registry", REGISTRY)
    return licenses.model_parts(registry, name=name, repo_id=name, endpoints=[url], **more)


def verdict(parts: tuple[Part, ...]) -> OutputTraining:
    text = Part("annotations", "captions", REGISTRY.license("cc-by-4.0"))
    return licenses.compose(REGISTRY, [text, *parts]).output_training


# A host of each service -> what its terms alone come to with a model that is free.
SERVICES: dict[str, OutputTraining] = {
    "api.openai.com": "forbidden",
    "kr.api.openai.com": "forbidden",
    "api.anthropic.com": "forbidden",
    "generativelanguage.googleapis.com": "forbidden",
    "api.deepseek.com": "allowed",
    "api.x.ai": "forbidden",
    "us-east-1.api.x.ai": "forbidden",
    "api.cohere.com": "forbidden",
    "api.perplexity.ai": "forbidden",
    "api.moonshot.ai": "forbidden",
    "api.moonshot.cn": "unknown",
    "api.z.ai": "forbidden",
    "open.bigmodel.cn": "unknown",
    "dashscope-intl.aliyuncs.com": "forbidden",
    "ws-1.ap-southeast-1.maas.aliyuncs.com": "forbidden",
    "dashscope.aliyuncs.com": "unknown",
    "api.minimax.io": "unknown",
    "integrate.api.nvidia.com": "forbidden",
    "acme.openai.azure.com": "forbidden",
    "acme.services.ai.azure.com": "unknown",
    "acme.cognitiveservices.azure.com": "unknown",
    "us-central1-aiplatform.googleapis.com": "unknown",
    "aiplatform.googleapis.com": "unknown",
    "bedrock-runtime.us-east-1.amazonaws.com": "unknown",
    "bedrock-mantle.eu-west-1.api.aws": "unknown",
    "openrouter.ai": "unknown",
    "api.together.xyz": "unknown",
    "api.fireworks.ai": "unknown",
    "api.deepinfra.com": "unknown",
    "api.novita.ai": "unknown",
    "api.groq.com": "unknown",
    "api.cerebras.ai": "unknown",
    "api.sambanova.ai": "unknown",
    "router.huggingface.co": "unknown",
    "x1.us-east-1.aws.endpoints.huggingface.cloud": "unknown",
    "api.ai21.com": "forbidden",
    "api.nova.amazon.com": "forbidden",
    "ark.cn-beijing.volces.com": "unknown",
}


@pytest.mark.parametrize(("host", "expected"), SERVICES.items())
def test_a_service_says_what_its_terms_say(host: str, expected: OutputTraining) -> None:
    parts = parts_at(f"https://{host}/v1", "Qwen/Qwen3-8B")
    assert verdict(parts) == expected
    assert parts[0].role == "service"
    assert parts[0].what != "an unregistered public service"


def test_the_mistral_api_frees_what_it_is_known_to_call_so_and_nothing_else() -> None:
    url = "https://api.mistral.ai/v1"
    assert verdict(parts_at(url, "mistral-large-latest")) == "allowed"
    assert verdict(parts_at(url, "Mistral-Small-2409")) == "allowed"
    assert verdict(parts_at(url, "mistral-large-of-next-year")) == "unknown"
    assert verdict(parts_at(url, "zai-glm-5-3-flash-of-others")) == "unknown"
    assert verdict(parts_at(url, "gpt-4o")) == "forbidden"


# Service -> its name for a model -> the exact id; None is not known.
NAMES: dict[str, dict[str, str | None]] = {
    "groq": {
        "llama-3.3-70b-versatile": "meta-llama/Llama-3.3-70B-Instruct",
        "LLAMA-3.1-8B-instant": "meta-llama/Llama-3.1-8B-Instruct",
        "openai/gpt-oss-120b": "openai/gpt-oss-120b",
        "qwen/qwen3-32b": "Qwen/Qwen3-32B",
        "llama-3.3-70b": None,
    },
    "together": {
        "meta-llama/Llama-3.3-70B-Instruct-Turbo": "meta-llama/Llama-3.3-70B-Instruct",
        "meta-llama/Meta-Llama-3-8B-Instruct-Lite": "meta-llama/Meta-Llama-3-8B-Instruct",
        "meta-llama/Llama-3-70b-chat-hf": "meta-llama/Meta-Llama-3-70B-Instruct",
        "Qwen/Qwen2.5-7B-Instruct-Turbo": "Qwen/Qwen2.5-7B-Instruct",
        "acme/model-Turbo": None,
    },
    "fireworks": {
        "accounts/fireworks/models/llama-v3p1-8b-instruct": "meta-llama/Llama-3.1-8B-Instruct",
        "accounts/fireworks/models/gpt-oss-20b": "openai/gpt-oss-20b",
        "accounts/acme/models/llama-v3p1-8b-instruct": None,
    },
    "openrouter": {
        "meta-llama/llama-3.3-70b-instruct:free": "meta-llama/Llama-3.3-70B-Instruct",
        "deepseek/deepseek-chat": "deepseek-ai/DeepSeek-V3",
        "z-ai/glm-4.6": "zai-org/GLM-4.6",
        "moonshotai/kimi-k2:free": "moonshotai/Kimi-K2-Instruct",
        "openai/gpt-4o": "openai/gpt-4o",
        "acme/llama-3.3-70b-instruct": None,
    },
    "deepinfra": {
        "deepseek-ai/DeepSeek-R1-Turbo": "deepseek-ai/DeepSeek-R1",
        "DeepSeek-V3.1": "deepseek-ai/DeepSeek-V3.1",
    },
    "novita": {
        "deepseek/deepseek_v3": "deepseek-ai/DeepSeek-V3",
        "meta-llama/llama-3.1-8b-instruct": "meta-llama/Llama-3.1-8B-Instruct",
    },
    "cerebras": {
        "llama3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
        "zai-glm-4.7": "zai-org/GLM-4.7",
    },
    "sambanova": {"Meta-Llama-3.3-70B-Instruct": "meta-llama/Llama-3.3-70B-Instruct"},
    "bedrock": {
        "meta.llama3-1-8b-instruct-v1:0": "meta-llama/Llama-3.1-8B-Instruct",
        "us.meta.llama3-3-70b-instruct-v1:0": "meta-llama/Llama-3.3-70B-Instruct",
        "eu.mistral.mixtral-8x7b-instruct-v0:1": "mistralai/Mixtral-8x7B-Instruct-v0.1",
        "global.openai.gpt-oss-120b-1:0": "openai/gpt-oss-120b",
        "mars.meta.llama3-3-70b-instruct-v1:0": None,
    },
    "vertex": {
        "meta/llama-3.3-70b-instruct-maas": "meta-llama/Llama-3.3-70B-Instruct",
        "openai/gpt-oss-120b-maas": "openai/gpt-oss-120b",
    },
    "azure-foundry": {"Llama-3.3-70B-Instruct": "meta-llama/Llama-3.3-70B-Instruct", "ours": None},
    "nvidia": {"meta/llama-3.1-70b-instruct": "meta-llama/Llama-3.1-70B-Instruct"},
    "huggingface": {
        "openai/gpt-oss-120b:groq": "openai/gpt-oss-120b",
        "Qwen/Qwen3-8B:fastest": "Qwen/Qwen3-8B",
        "Qwen/Qwen3-8B:nobody": None,
    },
    "ollama": {
        "llama3.1:8b": "meta-llama/Llama-3.1-8B-Instruct",
        "llama3.1": "meta-llama/Llama-3.1-8B-Instruct",
        "llama3.1:latest": "meta-llama/Llama-3.1-8B-Instruct",
        "llama3.1:8b-instruct-q4_K_M": "meta-llama/Llama-3.1-8B-Instruct",
        "llama3.1:8b-text-q4_0": None,
        "llama2:13b": "meta-llama/Llama-2-13b-chat-hf",
        "qwen3:30b-a3b": "Qwen/Qwen3-30B-A3B",
        "gpt-oss:20b": "openai/gpt-oss-20b",
        "gemma3:12b-it-qat": "google/gemma-3-12b-it",
        "hf.co/Qwen/Qwen3-8B:Q8_0": "Qwen/Qwen3-8B",
        "mistral-small:24b": "mistralai/Mistral-Small-24B-Instruct-2501",
        "mistral-small": None,  # it was of 2409, for research alone
        "llama3.1:9b": None,
    },
    "lm-studio": {
        "qwen2.5-7b-instruct": "Qwen/Qwen2.5-7B-Instruct",
        "meta-llama-3.1-8b-instruct@q4_k_m": "meta-llama/Llama-3.1-8B-Instruct",
        "openai/gpt-oss-20b": "openai/gpt-oss-20b",
        "google/gemma-3-12b": "google/gemma-3-12b-it",
        "qwen2.5-7b-instruct-uncensored": None,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("service", "name", "id"),
    [(service, name, id) for service, names in NAMES.items() for name, id in names.items()],
)
def test_a_services_name_for_a_model_stands_for_an_exact_id(
    service: str, name: str, id: str | None
) -> None:
    assert name_at(REGISTRY, REGISTRY.endpoints[service], name) == id


def test_every_id_in_a_services_table_is_registered() -> None:
    named = {id for service in REGISTRY.endpoints.values() for id in service.models.values()}
    assert len(named) > 180
    assert named <= REGISTRY.models.keys()


def test_no_two_services_have_a_host_in_common() -> None:
    hosts = [
        (e.id, host.replace("*", "x")) for e in REGISTRY.endpoints.values() for host in e.hosts
    ]
    for id, host in hosts:
        assert [e.id for e in REGISTRY.endpoints.values() if e.pattern(host)] == [id]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://openrouter.ai/api/v1", "openai/gpt-4o"),
        ("https://openrouter.ai/api/v1", "anthropic/claude-3.7-sonnet:thinking"),
        ("https://openrouter.ai/api/v1", "x-ai/grok-4"),
        (
            "https://bedrock-runtime.us-east-1.amazonaws.com",
            "anthropic.claude-3-haiku-20240307-v1:0",
        ),
        (
            "https://bedrock-runtime.eu-west-1.amazonaws.com",
            "eu.anthropic.claude-sonnet-4-5-20250929-v1:0",
        ),
        ("https://bedrock-runtime.us-east-1.amazonaws.com", "us.amazon.nova-pro-v1:0"),
        ("https://us-east5-aiplatform.googleapis.com/v1", "claude-3-5-sonnet-v2@20241022"),
        ("https://aiplatform.googleapis.com/v1", "publishers/google/models/gemini-2.5-pro"),
        ("https://acme.services.ai.azure.com/models", "gpt-4.1-mini"),
        ("https://api.together.xyz/v1", "Qwen/Qwen3.7-Max"),
        ("https://gateway.acme.example/v1", "gpt-4o-2024-08-06"),
        ("http://localhost:4000/v1", "claude-sonnet-4-5"),
        ("http://localhost:4000/v1", "gemini/gemini-2.0-flash-001"),
    ],
)  # fmt: skip
def test_a_closed_model_is_barred_wherever_it_is_served(url: str, name: str) -> None:
    assert verdict(parts_at(url, name)) == "forbidden"
    # A word of the user's makes it no freer at a service.
    again = licenses.model_parts(
        REGISTRY, name=name, repo_id="Qwen/Qwen3-8B", endpoints=[url], given=True
    )
    assert verdict(again) == ("allowed" if "localhost" in url else "forbidden")


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("gpt-4o-2024-08-06", "openai/gpt-4o"),
        ("gpt-4-1106-preview", "openai/gpt-4"),
        ("o3-mini-2025-01-31", "openai/o3-mini"),
        ("claude-sonnet-4-5", "anthropic/claude-sonnet-4.5"),
        ("claude-3-5-haiku-latest", "anthropic/claude-3.5-haiku"),
        ("gemini-1.5-pro-002", "google/gemini-1.5-pro"),
        ("gemini-2.5-flash-preview-05-20", "google/gemini-2.5-flash"),
        ("grok-4-0709", "x-ai/grok-4"),
        ("grok-3-mini-beta", "x-ai/grok-3-mini"),
        ("claude-instant-1.2", "anthropic/claude-instant-1.2"),
        ("gpt4", "openai/gpt4"),
        ("command-r-plus-08-2024", "cohere/command-r-plus"),
        ("qwen-max-2025-01-25", "qwen/qwen-max"),
        ("sonar-pro", "perplexity/sonar-pro"),
    ],
)
def test_a_bare_name_of_a_closed_model_is_read_as_its_own(name: str, id: str) -> None:
    (part,) = licenses.named_model(REGISTRY, name)
    assert part.repo_id == id
    assert part.commercial is False
    assert f"{name} is read as it" in part.reason


@pytest.mark.parametrize(
    "name", ["qwen3-8b", "llama3.1:8b", "gpt-oss-120b", "gpt-4o-mini-killer", "phi-4"]
)
def test_no_name_that_is_no_exact_id_frees_a_model_of_ones_own(name: str) -> None:
    assert verdict(licenses.named_model(REGISTRY, name)) not in ("allowed", "conditional")


def test_a_tag_at_a_server_of_ones_own_is_read_as_its_library_has_it() -> None:
    url = "http://localhost:11434/v1"
    (part,) = parts_at(url, "llama3.1:8b")
    assert (part.repo_id, part.commercial) == ("meta-llama/Llama-3.1-8B-Instruct", True)
    assert "Ollama's library has llama3.1:8b as it" in part.reason
    (barred,) = parts_at(url, "llama2")
    assert barred.commercial is False
    (studio,) = parts_at("http://gpu-box:1234/v1", "qwen2.5-7b-instruct")
    assert studio.repo_id == "Qwen/Qwen2.5-7B-Instruct"
    (word,) = licenses.model_parts(
        REGISTRY, name="llama2", repo_id="Qwen/Qwen3-8B", endpoints=[url], given=True
    )
    assert word.repo_id == "Qwen/Qwen3-8B"
    # Whoever serves everybody has no library of its own.
    assert verdict(parts_at("https://llm.acme.example/v1", "llama3.1:8b")) == "unknown"


@pytest.mark.parametrize("host", SERVICES)
@pytest.mark.parametrize(
    "name", ["meta-llama/Llama-2-7b-chat-hf", "Qwen/Qwen2.5-3B-Instruct", "model-y"]
)
def test_a_service_makes_no_model_freer_unless_its_terms_are_all_there_is(
    host: str, name: str
) -> None:
    order = get_args(OutputTraining)
    alone = verdict(licenses.model_parts(REGISTRY, name=name, repo_id=name))
    served = verdict(parts_at(f"https://{host}/v1", name))
    whole = REGISTRY.endpoint(f"https://{host}")
    assert (whole and whole.own_models) or order.index(served) >= order.index(alone)


@pytest.mark.parametrize(
    "host",
    [
        *("*", "*.example", "*.*", "api.*", "api.*.example", "**.acme.example"),
        *("a.**x.acme.example", "*a**.acme.example", "acme.*.example"),
        *("API.acme.example", "api.Acme.example", "GPU-BOX", "*.ACME.example"),
        *("https://api.acme.example", "http://gpu-box", "//api.acme.example"),
        *("api.acme.example/v1", "api.acme.example/", "gpu-box/v1"),
        *("api.acme.example:443", "gpu-box:8000", "10.0.0.1:8000"),
        *("api.acme.example.", "user@api.acme.example", "api acme.example", ""),
    ],
)  # fmt: skip
def test_a_host_that_could_never_match_is_refused_with_what_one_is(
    tmp_path: Path, host: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(tmp_path, {**SERVICE, "hosts": [host], "terms": "mit"})
    assert str(refusal.value).startswith("mine.yaml: endpoints.0.hosts.0: expected a host in lower")
    assert "without scheme, port and path" in str(refusal.value)


@pytest.mark.parametrize(
    ("host", "there", "elsewhere"),
    [
        ("*.acme.example", "x.acme.example", "acme.example x.y.acme.example xacme.example"),
        ("run-*.acme.example", "run-eu.acme.example", "run.acme.example run-a.b.acme.example"),
        ("api.*.acme.example", "api.eu.acme.example", "api.acme.example api.a.b.acme.example"),
        ("*.*.acme.example", "a.b.acme.example", "b.acme.example"),
        ("gpu-box", "gpu-box", "gpu-box.acme.example"),
        ("10.0.0.1", "10.0.0.1:8000", "10.0.0.2"),
        ("::1", "[::1]:8000", "[::2]:8000"),
    ],
)
def test_each_label_of_a_host_is_matched_by_itself(
    tmp_path: Path, host: str, there: str, elsewhere: str
) -> None:
    registry = load(tmp_path, {**SERVICE, "hosts": [host], "terms": "mit"})
    service = registry.endpoint(f"https://{there}/v1")
    assert service is not None
    assert service.id == "acme"
    for other in elsewhere.split():
        assert registry.endpoint(f"https://{other}/v1") is None


def test_a_service_needs_a_host_and_a_name_stands_for_one_model(tmp_path: Path) -> None:
    for hosts in ({}, {"hosts": []}):
        with pytest.raises(ConfigError, match="hosts: expected the host of its API, got none"):
            load(tmp_path, {**FACT, "id": "acme", "name": "Acme", **hosts})
    with pytest.raises(ConfigError, match="a name is given twice, in lower case and in capitals"):
        load(tmp_path, {**SERVICE, "models": {"one": "a/b", "ONE": "a/c"}})
    with pytest.raises(ConfigError, match=r"endpoints.0.models.one: "):
        load(tmp_path, {**SERVICE, "models": {"one": "no id"}})
    with pytest.raises(ConfigError, match=r"endpoints.0.spellings.0: "):
        load(tmp_path, {**SERVICE, "spellings": ["*"]})


def test_a_users_entry_stands_over_ours_by_pattern_or_by_host(tmp_path: Path) -> None:
    mine = {**SERVICE, "terms": "mit", "models": {"Fast": "Qwen/Qwen3-8B"}}
    for host, url in itertools.product(["api.groq.com", "*.groq.com"], ["https://api.groq.com/v1"]):
        registry = load(tmp_path, {**mine, "hosts": [host]})
        service, model = parts_at(url, "fast", registry=registry)
        assert (service.commercial, model.repo_id) == (True, "Qwen/Qwen3-8B")
        assert "(entered in mine.yaml)" in service.reason
        assert "Acme has fast as it" in model.reason
    own = {
        **SERVICE,
        "hosts": ["llm.acme.example"],
        "own_server": True,
        "models": {"a": "Qwen/Qwen3-8B"},
    }
    registry = load(tmp_path, own)
    (part,) = parts_at("https://llm.acme.example/v1", "a", registry=registry)
    assert part.repo_id == "Qwen/Qwen3-8B"
    (tag,) = parts_at("https://llm.acme.example/v1", "llama3.1:8b", registry=registry)
    assert tag.repo_id == "meta-llama/Llama-3.1-8B-Instruct"


def test_an_accounts_own_host_goes_into_no_release() -> None:
    url = "https://secret-project.openai.azure.com/openai/v1"
    assert REGISTRY.endpoint_name(url) == "https://*.openai.azure.com"
    project = "https://us-central1-aiplatform.googleapis.com/v1/projects/secret/locations/x"
    assert REGISTRY.endpoint_name(project) == "https://*aiplatform.googleapis.com"
    # What rows name is read again when they are traced, with the same result.
    for named in (url, project):
        again = REGISTRY.endpoint_name(named)
        assert REGISTRY.endpoint(again) == REGISTRY.endpoint(named)
        assert verdict(parts_at(again, "gpt-4o")) == "forbidden"
    assert (
        REGISTRY.endpoint_name("https://api.groq.com/openai/v1") == "https://api.groq.com/openai/v1"
    )


ALL_THEIRS = {
    url: service.id
    for service in REGISTRY.endpoints.values()
    if service.own_models
    for url in [f"https://{service.hosts[0].replace('*', 'x')}/v1"]
}


@pytest.mark.parametrize("url", ALL_THEIRS)
@pytest.mark.parametrize(
    "name",
    [
        *("gpt-4o", "gpt-4o-2031-01-01", "openai/gpt-4.1-mini", "gpt-5.9-nova", "o3-mini"),
        *("claude-sonnet-4-5", "claude-next", "gemini-2.5-pro", "models/gemini-9", "grok-4"),
        *("command-r-plus", "sonar-pro", "qwen-max", "kimi-latest"),
        *("meta-llama/Llama-2-70b-chat-hf", "llama-2-70b", "codestral-22b-v0.1", "vicuna-13b-v1.5"),
    ],
)
def test_a_closed_models_name_at_a_service_of_its_own_models_frees_nothing(
    url: str, name: str
) -> None:
    assert verdict(parts_at(url, name)) not in ("allowed", "conditional")


@pytest.mark.parametrize(
    "name", ["deepseek-chat", "deepseek-reasoner", "deepseek-v4-pro", "any-name", "DeepSeek-V3.1"]
)
def test_a_service_of_its_own_models_is_judged_by_its_terms_for_all_other_names(name: str) -> None:
    (part,) = parts_at("https://api.deepseek.com", name)
    assert (part.role, part.output_training) == ("service", "allowed")
