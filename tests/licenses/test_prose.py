"""What cards say in sentences, and what was merged or packed, may bar, and frees nothing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mminstruct import licenses
from mminstruct.licenses import Verdict
from mminstruct.licenses.composition import STRICTNESS
from mminstruct.licenses.prose import drop_comparisons, find_limit, list_claims

REGISTRY = licenses.load()
FREE = "---\nlicense: mit\n---\n"


def judge(folder: Path) -> Verdict:
    parts = licenses.named_model(REGISTRY, str(folder))
    text = licenses.Part("annotations", "annotations", REGISTRY.license("cc-by-4.0"))
    return licenses.compose(REGISTRY, [text, *parts])


def write(folder: Path, **files: str) -> Path:
    """A model's folder with these files; two underscores are a point."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


BODIES = [
    # against some use
    ("For **non-commercial** use only.", "unknown"),
    ("The weights are intended for academic and research purposes only.", "unknown"),
    ("You may not use the model for any commercial purpose.", "unknown"),
    ("## Licence\n\nCommercial use is strictly prohibited.", "unknown"),
    ("For commercial use, please contact us at a@b.example.", "unknown"),
    ("A research preview.", "unknown"),
    ("| Licence | CC BY-NC-SA |\n|---|---|", "unknown"),
    # a licence by its name
    ("Released under the [Llama 2 Community License](https://a.example/).", "same-family-only"),
    ("License: CC-BY-NC-4.0", "research-only"),
    ("Use is subject to the Meta Llama 3 license.", "same-family-only"),
    ("It has the same license as Llama 2.", "same-family-only"),
    # what it was made from
    ("This is a fine-tuned version of [Llama-2-7b](https://a.example/).", "same-family-only"),
    ("Acme is based on Vicuna 7B v1.5\nand has seen much.", "same-family-only"),
    ("- Original model: Llama 2 13B", "same-family-only"),
    ("Distilled from Qwen2.5-3B-Instruct by us.", "research-only"),
    ("It outperforms Llama 2 and is trained from Llama 2 7B weights.", "same-family-only"),
    ("It outperforms its base Llama 2 7B.", "same-family-only"),
    ("# Llama 2 7B, tuned\n\nHello.", "same-family-only"),
    # what says nothing of this model
    ("Free for academic research. No restrictions on commercial use.", "allowed"),
    ("It is not as good as commercial models. For evaluation we only use 5 shots.", "allowed"),
    ("Based on Qwen3-8B, it outperforms Llama 2 13B and Llama 3 8B on MMLU.", "allowed"),
    ("Better than Llama 2 7B. The same architecture as Llama 2. Trained unlike it.", "allowed"),
    ("Compared with Llama 2, which was trained on 2T tokens, ours saw more.", "allowed"),
    ("| Model | MMLU |\n|---|---|\n| Llama 2 7B fine-tuned | 45 |", "allowed"),
    ("```\nllama-2-7b fine-tuned, non-commercial\n```\n<!-- research only -->", "allowed"),
    ("We thank the authors of Llama 2.", "allowed"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), BODIES)
def test_the_sentences_of_a_card_bar_what_its_front_matter_frees(
    body: str, expected: str, tmp_path: Path
) -> None:
    found = judge(write(tmp_path / "model", README__md=f"{FREE}\n{body}\n"))
    assert found.output_training == expected
    if expected != "allowed":
        assert "model model, licence mit: MIT" in str(found.reasons), "both are quoted"
        assert "in model/README.md" in str(found.reasons)


def test_a_sentence_frees_nothing(tmp_path: Path) -> None:
    body = "Licence: MIT. Released under the Apache 2.0 license. Fine-tuned from Qwen3-8B."
    assert judge(write(tmp_path / "a", README__md=body)).output_training == "unknown"
    nc = "---\nlicense: cc-by-nc-4.0\n---\n"
    assert judge(write(tmp_path / "b", README__md=nc + body)).output_training == "research-only"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("non-commercial", True),
        ("Only for scientific research.", True),
        ("only available to academic researchers", True),
        ("It must not be used commercially.", True),
        ("personal use by students only", True),
        ("free not only for research but for commercial use", False),
        ("Unlike commercial models, which are not open", False),
        ("We only report evaluation results.", False),
        ("commercial use is not restricted", False),
        ("Intended for broad commercial and research use", False),
    ],
)
def test_a_limit_is_about_use(text: str, expected: bool) -> None:
    assert (find_limit(text) is not None) is expected


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("better than Llama 2", ""),
        ("Tuned from Qwen3; outperforms GPT-4.", "Tuned from Qwen3;"),
        ("Faster than Llama 3 8B: a distilled version of Qwen3", "distilled version of Qwen3"),
        ("On par with GPT-4, and trained on outputs of Claude", "trained on outputs of Claude"),
        # Not clear, so that all of it counts.
        ("An improvement over Llama 2, which it is fine-tuned from", None),
        ("Better than Llama 2 it was made from", None),
        ("It rivals the tuned Llama 2", None),
        ("The terms are like those of Llama 2", None),
    ],
)
def test_what_is_only_compared_with_is_no_evidence(text: str, left: str | None) -> None:
    assert drop_comparisons(text).strip() == (text if left is None else left)


def test_a_card_is_read_in_a_time_that_grows_with_its_length() -> None:
    text = "It is better than what was tuned and for research by those who are not new from " * 3000
    claims = list(map(drop_comparisons, list_claims(text)))
    assert "".join(claims).count("tuned") == 3000
    assert max(map(len, claims)) <= 1000


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("Better than Llama 2 7b.", "allowed"),
        ("Outperforms Vicuna 7b v1.5 on all benchmarks", "allowed"),
        ("Compared to Llama 2 13B it is small", "allowed"),
        ("Llama 2 7b with more words", "same-family-only"),
        ("Better than GPT-4; made from Llama 2 7b", "same-family-only"),
        ("Made from Llama 2 7b, and better than it", "same-family-only"),
    ],
)
def test_a_comparison_in_a_description_is_no_evidence(
    description: str, expected: str, tmp_path: Path
) -> None:
    card = f"---\nlicense: mit\ndescription: '{description}'\n---\n"
    assert judge(write(tmp_path / "m", README__md=card)).output_training == expected


MERGES = [
    ("models:\n- model: Qwen/Qwen3-8B\n- model: acme/unheard-of\n", "unknown"),
    ("models:\n- model: ./my/model\nmerge_method: ties\n", "unknown"),
    ("slices:\n- sources:\n  - model: meta-llama/Llama-2-7b-hf\n", "same-family-only"),
    ("base_model: lmsys/vicuna-7b-v1.5\n", "same-family-only"),
    ("models:\n- model: {model: {path: Qwen/Qwen2.5-3B}}\n", "research-only"),
    ("experts:\n- source_model: Qwen/Qwen3-8B+acme/unheard-of\n", "unknown"),
    ("models:\n- Qwen/Qwen3-8B\n- Qwen/Qwen3-14B\ntokenizer_source: union\n", "allowed"),
]


@pytest.mark.parametrize(("config", "expected"), MERGES)
def test_what_was_merged_are_bases(config: str, expected: str, tmp_path: Path) -> None:
    for name in ("mergekit_config.yml", "mergekit_moe_config.yaml"):
        where = write(tmp_path / name / "m", README__md=FREE)
        (where / name).write_text(config)
        assert judge(where).output_training == expected
        (where / "README.md").unlink()
        alone = judge(where).output_training
        assert alone == ("unknown" if expected == "allowed" else expected), "no licence is named"


MODELFILES = [
    ("FROM llama2:7b", "same-family-only"),
    ("from vicuna", "same-family-only"),
    ("FROM hf.co/acme/unheard-of-GGUF:Q4_K_M", "unknown"),
    ("FROM nobody/knows", "unknown"),
    ("FROM qwen/qwen3-8b", "unknown"),  # somebody's there, whoever has the name on the Hub
    ("FROM /models/llama-2-7b.Q4_0.gguf", "same-family-only"),
    ("FROM .\nADAPTER ./llama-2-7b-lora", "same-family-only"),
    ('FROM .\nLICENSE """\nLLAMA 2 COMMUNITY LICENSE AGREEMENT\n"""', "same-family-only"),
    ("FROM ./x.gguf\nLICENSE CC BY-NC", "unknown"),
    ("FROM qwen3:8b", "allowed"),
    ("FROM hf.co/Qwen/Qwen3-8B-GGUF:Q8_0", "allowed"),
    ('FROM ./x.gguf\nSYSTEM """\nFROM llama2\nLICENSE non-commercial\n"""', "allowed"),
]


@pytest.mark.parametrize(("text", "expected"), MODELFILES)
def test_what_ollama_packed_is_a_base(text: str, expected: str, tmp_path: Path) -> None:
    where = write(tmp_path / "m", README__md=FREE, Modelfile=f"# a comment\n{text}\n")
    assert judge(where).output_training == expected


def test_a_modelfile_alone_is_a_copy_unless_it_adds_an_adapter(tmp_path: Path) -> None:
    for text, expected in (
        ("FROM qwen3:8b\nPARAMETER temperature 1\n", "allowed"),
        ("FROM llama3.2:3b\n", "conditional"),
        ("FROM qwen3:8b\nADAPTER ./lora\n", "unknown"),
        ("FROM ./x.gguf\n", "unknown"),
    ):
        where = write(tmp_path / "m", Modelfile=text)
        assert judge(where).output_training == expected
        assert judge(where / "Modelfile").output_training == expected


SAID = {
    "README.md": [(f"\n{body}\n", says) for body, says in BODIES],
    "mergekit_config.yml": MERGES,
    "Modelfile": MODELFILES,
}


@pytest.mark.parametrize("seed", range(60))
def test_a_folder_is_never_freer_than_the_strictest_of_its_files(seed: int, tmp_path: Path) -> None:
    chance, where = random.Random(seed), write(tmp_path / "acme", README__md=FREE)
    says = ["allowed"]
    for name in chance.sample(sorted(SAID), chance.randint(1, 3)):
        text, said = chance.choice(SAID[name])
        with (where / name).open("a") as file:
            file.write(text)
        says.append(said)
    strictest = max(map(STRICTNESS.index, says))  # type: ignore[arg-type]
    assert STRICTNESS.index(judge(where).output_training) >= strictest
