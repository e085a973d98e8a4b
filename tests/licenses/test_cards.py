"""Cards of models without an entry, from a Hub on loopback: good, missing, barred and broken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import TOKEN, HubServer
from instruct_rows import dataset, row
from loopback import DROP

from mminstruct import cli, licenses, prompts
from mminstruct.config import InstructConfig
from mminstruct.errors import UsageError
from mminstruct.licenses import Part, Verdict
from mminstruct.recipe import Recipe
from mminstruct.releases import tracing

REGISTRY = licenses.load()
QWEN, LLAMA2 = "Qwen/Qwen3-8B", "meta-llama/Llama-2-7b-hf"
OWN = "http://localhost:1/v1"


@pytest.fixture(scope="module")
def running() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


def use(server: str, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Let the Hub's client ask there, as HF_ENDPOINT and HF_HOME would."""
    constants = "huggingface_hub.constants"
    patch.setattr(f"{constants}.ENDPOINT", server)
    template = f"{server}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    patch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    patch.setattr(f"{constants}.HF_HUB_CACHE", str(cache))


@pytest.fixture
def hub(running: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A Hub without models, that is asked, with an empty cache."""
    for state in (running.cards, running.gated, running.renamed, running.faults):
        state.clear()
    running.asked_for.clear()
    use(running.url, tmp_path / "cache", monkeypatch)
    return running


def card(**front: Any) -> str:
    return f"---\n{yaml.safe_dump(front)}---\n# A model\n"


def judge(parts: tuple[Part, ...]) -> Verdict:
    text = [Part("annotations", "annotations", REGISTRY.license("cc-by-4.0"))]
    return licenses.compose(REGISTRY, [*text, *parts])


def verdict(model: str) -> Verdict:
    return judge(licenses.named_model(REGISTRY, model))


def why(found: Verdict) -> str:
    return "\n".join(found.reasons)


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ({"license": "mit"}, "allowed"),
        ({"license": "mit", "base_model": QWEN}, "allowed"),
        ({"license": "mit", "base_model": LLAMA2}, "same-family-only"),
        ({"license": "mit", "base_model": "acme/base"}, "research-only"),
        ({"license": "mit", "tags": ["llama-2"]}, "same-family-only"),
        ({"license": "apache-2.0", "license_name": "acme-nc"}, "unknown"),
        ({"base_model": QWEN}, "unknown"),
        ({"base_model": QWEN, "base_model_relation": "adapter"}, "unknown"),
        ({"license": "mit", "base_model": QWEN, "base_model_relation": "adapter"}, "allowed"),
        ({"license": "mit", "base_model": [QWEN, LLAMA2], "base_model_relation": "merge"},
         "same-family-only"),
        ({"license": "mit", "base_model": [QWEN, "acme/base"]}, "research-only"),
        ({"base_model": QWEN, "base_model_relation": "quantized"}, "allowed"),
        ({"base_model": "acme/base", "base_model_relation": "quantized"}, "research-only"),
        ({"base_model": "acme/absent", "base_model_relation": "quantized"}, "unknown"),
        ({"language": "en"}, "unknown"),
    ],
)  # fmt: skip
def test_the_card_of_an_id_without_an_entry_says_what_it_is(
    front: dict[str, Any], expected: str, hub: HubServer
) -> None:
    hub.cards |= {"acme/base": card(license="cc-by-nc-4.0"), "acme/model": card(**front)}
    found = verdict("acme/model")
    assert found.output_training == expected
    assert "acme/model" in why(found)


@pytest.mark.parametrize("name", ["Qwen3-8B-GGUF", "Qwen3-8B-AWQ", "Qwen_Qwen3-8B-fp8-dynamic"])
def test_a_repack_inherits_exactly_its_bases_terms(name: str, hub: HubServer) -> None:
    hub.cards[f"acme/{name}"] = card(base_model=QWEN)
    found, exact = verdict(f"acme/{name}"), verdict(QWEN)
    assert (
        (found.license, found.commercial)
        == (exact.license, exact.commercial)
        == ("cc-by-4.0", True)
    )
    assert found.obligations == exact.obligations


def test_a_card_is_taken_from_the_cache_before_the_hub_is_asked(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.cards["acme/model"] = card(license="mit")
    assert verdict("acme/model").commercial is True
    asked = hub.asked_for["card"]
    hub.cards["acme/model"] = card(license="cc-by-nc-4.0")
    assert verdict("https://huggingface.co/acme/model").commercial is True
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert verdict("acme/model").commercial is True
    assert hub.asked_for["card"] == asked > 0


def test_a_revision_has_a_card_of_its_own(hub: HubServer) -> None:
    hub.cards["acme/model"] = card(license="mit")
    assert verdict("acme/model@v1").commercial is True
    found = verdict("acme/model@v9")
    assert found.commercial is None
    assert "README.md of acme/model: the repository has no revision 'v9'" in why(found)


def test_offline_the_card_that_would_settle_it_is_named(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.cards["acme/model"] = card(license="mit")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = verdict("acme/model")
    assert (found.license, found.commercial) == ("unknown", None)
    assert (
        "README.md of acme/model, which would settle it, is not in the cache, and HF_HUB_OFFLINE"
    ) in why(found)
    assert hub.asked_for["card"] == 0


def test_a_repository_without_a_card_is_unknown(hub: HubServer) -> None:
    hub.cards["acme/model"] = None
    for _ in range(2):
        found = verdict("acme/model")
        assert found.commercial is None
        assert "README.md of acme/model: the repository has none" in why(found)


def test_a_repository_that_is_not_there_may_be_a_private_one(hub: HubServer) -> None:
    found = verdict("acme/model")
    assert found.commercial is None
    assert "the Hub shows no such repository; one that is private or gated takes a token" in why(
        found
    )


def test_a_gated_card_is_read_with_a_token(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.cards["acme/model"], hub.gated = card(license="mit"), {"acme/model"}
    found = verdict("acme/model")
    assert found.commercial is None
    assert "README.md of acme/model is gated: ask for access at https://hugging" in why(found)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert verdict("acme/model").commercial is True
    hub.fail("card", 403)
    assert "the Hub answers 403; a token with access is needed" in why(verdict("acme/other"))


def test_a_renamed_repository_is_what_it_is_called_now(hub: HubServer) -> None:
    hub.renamed = {"acme/old": "acme/new", "acme/llama": LLAMA2, "acme/qwen": QWEN}
    hub.cards |= {"acme/new": card(license="mit", tags=["chat"])}
    hub.renamed["acme/plain"] = "acme/llama-2-7b-tune"
    hub.cards["acme/llama-2-7b-tune"] = card(license="mit")
    # What the Hub has is asked for before the entry is found by it.
    hub.cards |= {LLAMA2: card(license="mit"), QWEN: card(license="other")}
    for _ in range(2):
        assert verdict("acme/old").commercial is True
        assert verdict("acme/plain").output_training == "same-family-only"
        assert verdict("acme/llama").output_training == "same-family-only"
        found = verdict("acme/qwen")
        assert found.license == "cc-by-4.0"
        assert "acme/qwen is called so now" in why(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("---\nlicense: [mit\n---\n", "README.md of acme/model: its front matter is not readable"),
        ("---\n- mit\n---\n", "README.md of acme/model: expected a mapping as front matter"),
        ("# nothing\n", "names neither licence nor base model"),
        ("---\nlicense: mit\n---\n" + "x" * (5 << 20), "is too long for a card: 5,24"),
    ],
)
def test_a_damaged_card_is_unknown_and_no_error(text: str, words: str, hub: HubServer) -> None:
    hub.cards["acme/model"] = text
    found = verdict("acme/model")
    assert (found.license, found.commercial) == ("unknown", None)
    assert words in why(found)


@pytest.mark.parametrize(
    ("fault", "words"), [(500, "the Hub answers 500"), (DROP, "can't be reached")]
)
def test_a_hub_with_a_fault_leaves_a_model_unknown(fault: Any, words: str, hub: HubServer) -> None:
    hub.cards["acme/model"] = card(license="mit")
    hub.fail("card", fault)
    found = verdict("acme/model")
    assert (found.license, found.commercial) == ("unknown", None)
    assert words in why(found)


def test_without_a_network_the_card_that_would_settle_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use("http://127.0.0.1:9", tmp_path, monkeypatch)
    found = verdict("acme/model")
    assert (found.license, found.commercial) == ("unknown", None)
    assert "README.md of acme/model, which would settle it, is not in the cache, and the " in why(
        found
    )
    assert "check the network and HF_ENDPOINT" in why(found)


def test_bases_are_followed_to_a_depth_and_not_round_and_round(hub: HubServer) -> None:
    for number in range(12):
        hub.cards[f"acme/m{number}"] = card(license="mit", base_model=f"acme/m{number + 1}")
    found = verdict("acme/m0")
    assert found.commercial is None
    assert "bases are followed no further" in why(found)
    hub.cards |= {
        "acme/a": card(license="mit", base_model="acme/b"),
        "acme/b": card(base_model="acme/a", base_model_relation="quantized"),
        "acme/c": card(base_model="acme/c", base_model_relation="quantized"),
    }
    for name in ("acme/a", "acme/b", "acme/c"):
        assert verdict(name).commercial is None
        assert "the bases go in a circle" in why(verdict(name))
    # One base by two ways is none.
    hub.cards |= {
        "acme/x": card(license="mit", base_model="acme/z"),
        "acme/y": card(base_model="acme/z", base_model_relation="quantized"),
        "acme/z": card(license="apache-2.0"),
        "acme/merge": card(license="mit", base_model=["acme/x", "acme/y"]),
    }
    assert verdict("acme/merge").commercial is True


@pytest.mark.parametrize(
    "model",
    ["gpt-4o", "claude", "llama3.1:8b", "hf.co/acme/model:Q4_K_M", "a/b/c", QWEN, LLAMA2.lower()],
)
def test_the_hub_is_asked_for_nothing_else(model: str, hub: HubServer) -> None:
    verdict(model)
    licenses.model_parts(
        REGISTRY, name="acme/m", repo_id="acme/m", endpoints=["https://api.openai.com/v1"]
    )
    licenses.load()
    assert hub.asked_for["card"] == 0


MODELS = {
    "acme/free": ({"license": "mit"}, "cc0-1.0", True),
    "acme/Qwen3-8B-GGUF": ({"base_model": QWEN}, "cc0-1.0", True),
    "acme/bound": ({"license": "llama3.1"}, "other", True),
    "acme/barred": ({"license": "mit", "base_model": LLAMA2}, "other", False),
    "acme/tagged": ({"license": "mit", "tags": ["llama-2"]}, "other", False),
    "acme/ungranted": ({"base_model": QWEN}, "unknown", None),
    "acme/llama-2-7b-tune": (None, "unknown", False),
    "acme/nothing": (None, "unknown", None),
    "served-qwen3": (None, "unknown", None),
    "served-llama2": (None, "unknown", False),
    "https://huggingface.co/acme/free": (None, "cc0-1.0", True),
    "acme/free@v1": (None, "cc0-1.0", True),
}  # fmt: skip


def made(model: str, license: str, use: bool | None) -> dict[str, Any]:
    """A row of the sample by a model at a server of one's own."""
    config = prompts.load("llava")
    by = {"backend": "openai", "model": model, "prompt_hash": config.hash}
    by |= {"prompt_version": config.version, "endpoint": "an unregistered server"}
    found = row(1, license=license, commercial_use=use, source="SAMPLE")
    return {**found, "provenance": {**found["provenance"], **by}}


def push(model: str, license: str, use: bool | None) -> Verdict:
    return tracing.trace({"train": dataset([made(model, license, use)])}).verdict


@pytest.mark.parametrize("model", MODELS)
def test_rows_push_and_the_command_say_the_same_of_a_model(
    model: str, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.cards |= {id: card(**front) for id, (front, *_) in MODELS.items() if front}
    _, license, use = MODELS[model]
    server = {"backend": "openai", "model": model, "base_url": OWN}
    rows = Recipe.of(InstructConfig(source="SAMPLE", prompt_config="llava", **server)).verdict
    assert (rows.license, rows.commercial) == (license, use)
    pushed = push(model, rows.license, rows.commercial)
    words = [*("license", "SAMPLE", "--prompt_config", "llava", "--json", "--model", model)]
    answers = []
    for more in ([], ["--model_source", "openai", "--openai_base_url", OWN]):
        assert cli.run([*words, *more]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    for found in (pushed.as_json(), *answers):
        for field in ("license", "license_name", "commercial", "output_training"):
            assert found[field] == getattr(rows, field), field
        assert len(found["obligations"]) == len(rows.obligations)


def test_rows_do_not_come_freer_by_a_card_that_says_more_since(hub: HubServer) -> None:
    assert push("acme/model", "unknown", None).commercial is None
    hub.cards["acme/model"] = card(license="mit")
    assert push("acme/model", "unknown", None).commercial is None
    with pytest.raises(UsageError, match="rows say: other, commercial use: no; got"):
        push("acme/model", "other", False)
    with pytest.raises(UsageError, match="rows say: unknown, commercial use: no; got"):
        push("acme/model", "unknown", False)
    assert push("acme/model", "cc0-1.0", True).commercial is True
    hub.cards["acme/other"] = card(license="cc-by-nc-4.0")
    with pytest.raises(UsageError, match="rows say: cc0-1.0, commercial use: yes; got"):
        push("acme/other", "cc0-1.0", True)
