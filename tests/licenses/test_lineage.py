"""What a model is, from its own files: GGUF headers and model cards, good, odd and broken."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from gguf_files import HUB, gguf, text
from hypothesis import given
from hypothesis import strategies as st

from mminstruct import licenses
from mminstruct.backends.llama_cpp import bundled_model
from mminstruct.errors import UsageError
from mminstruct.licenses import Declared, declared
from mminstruct.licenses._gguf import gguf_metadata

REGISTRY = licenses.load()


def file(folder: Path, **general: Any) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(gguf(**general))
    return path


@pytest.mark.parametrize(
    ("general", "expected"),
    [
        ({}, Declared("model.gguf")),
        ({"license": "Apache-2.0"}, Declared("model.gguf", licenses=("Apache-2.0",))),
        (
            {"license": "other", "license__name": "qwen-research"},
            Declared("model.gguf", licenses=("qwen-research",)),
        ),
        ({"license": "other"}, Declared("model.gguf", licenses=("other",))),
        ({"repo_url": f"{HUB}org/name"}, Declared("model.gguf", repo_id="org/name")),
        ({"url": f"{HUB}org/name/"}, Declared("model.gguf", repo_id="org/name")),
        (
            {"source__repo_url": f"{HUB}org/name"},
            Declared("model.gguf", parents=("org/name",), is_copy=True),
        ),
        (
            {"base_model__count": 1, "base_model__0__repo_url": f"{HUB}a/b"},
            Declared("model.gguf", parents=("a/b",)),
        ),
        (
            {
                "base_model__count": 2,
                "base_model__0__repo_url": f"{HUB}a/b",
                "base_model__1__name": "Llama 2 7b",
                "base_model__1__organization": "Meta Llama 2",
            },
            Declared(
                "model.gguf",
                parents=("a/b",),
                unnamed_parents=("Llama 2 7b by Meta Llama 2",),
            ),
        ),
        (
            {"base_model__count": 1, "base_model__0__repo_url": "https://example.org/a/b"},
            Declared("model.gguf", unnamed_parents=("a model",)),
        ),
        (
            {"base_model__count": 1, "base_model__0__repo_url": f"{HUB}a/b/tree/main"},
            Declared("model.gguf", parents=("a/b",)),
        ),
        (
            {"source__url": f"{HUB}a/b/blob/main/x.gguf"},
            Declared("model.gguf", parents=("a/b",), is_copy=True),
        ),
        (
            {"license": "mit", "source__url": "https://example.org/a/b"},
            Declared("model.gguf", licenses=("mit",), unnamed_parents=("https://example.org/a/b",)),
        ),
        (
            {"source__url": "https://example.org/a", "source__repo_url": f"{HUB}a/b"},
            Declared("model.gguf", parents=("a/b",), is_copy=True),
        ),
        ({"base_model__0__repo_url": f"{HUB}a/b"}, Declared("model.gguf", parents=("a/b",))),
        (
            {"base_model__count": 2**32 - 1, "base_model__0__repo_url": f"{HUB}a/b"},
            Declared("model.gguf", parents=("a/b",), unnamed_parents=("a model",)),
        ),
        ({"license": 7, "base_model__count": "two"}, Declared("model.gguf")),
        ({"license": "\x1b[31mmit\n"}, Declared("model.gguf", licenses=("[31mmit",))),
        (
            {"license": "mit", "license__name": "Acme", "license__link": "https://acme.example/l"},
            Declared("model.gguf", licenses=("mit", "Acme"), links=("https://acme.example/l",)),
        ),
        (
            {"name": "A b", "basename": "A", "tags": ["llama-2", "", "chat"]},
            Declared("model.gguf", names=("A b", "A"), tags=("llama-2", "chat")),
        ),
    ],
)
def test_a_gguf_file_says_what_it_is_in_its_header(
    tmp_path: Path, general: dict[str, Any], expected: Declared
) -> None:
    assert declared(file(tmp_path, **general)) == expected


def test_a_real_gguf_file_is_read() -> None:
    path = bundled_model()
    found = declared(path)
    assert (found.licenses, found.parents) == (("apache-2.0",), ())
    metadata = dict(gguf_metadata(path.read_bytes()[: 8 << 20], path.name))
    assert metadata["general.architecture"] == "llama"
    assert metadata["tokenizer.ggml.tokens"] is None
    assert len(metadata) > 20
    (part,) = licenses.named_model(REGISTRY, str(path))
    assert part.commercial is True
    assert path.name in part.reason
    assert str(path.parent) not in part.reason


WHOLE = gguf(license="mit", base_model__count=1, base_model__0__repo_url=f"{HUB}a/b")


def test_a_gguf_file_that_is_cut_off_anywhere_is_refused() -> None:
    assert dict(gguf_metadata(WHOLE, "m"))["general.license"] == "mit"
    for length in range(4, len(WHOLE)):
        with pytest.raises(UsageError, match="model 'm': the GGUF header is cut off after"):
            dict(gguf_metadata(WHOLE[:length], "m"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1, expected 2 or 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "GGUF version 50331648"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "cut off"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**64 - 1), "cut off"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<I", 99), "type 99"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 9, 2),
            "unknown type 9",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 2**60),
            "cut off",
        ),
        (b"PK\x03\x04", "not a GGUF file"),
    ],
)
def test_a_bogus_gguf_header_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dict(gguf_metadata(content, "m"))


@given(st.binary(max_size=300), st.integers(0, len(WHOLE) - 1))
def test_no_bytes_do_more_than_being_refused(noise: bytes, at: int) -> None:
    for content in (b"GGUF" + noise, WHOLE[:at] + noise + WHOLE[at + len(noise) :]):
        try:
            dict(gguf_metadata(content, "m"))
        except UsageError as error:
            assert str(error).startswith("model 'm': ")


def card(folder: Path, front: str) -> Path:
    (folder / "README.md").write_text(front, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("front", "licenses_", "parents", "unnamed"),
    [
        ("---\nlicense: mit\n---\n# A model\n", ("mit",), (), ()),
        ("---\nlicense: mit\nbase_model: a/b\n---", ("mit",), ("a/b",), ()),
        ("---\nlicense: [mit, llama2]\nbase_model:\n- a/b\n- c/d\n---\n", ("mit", "llama2"),
         ("a/b", "c/d"), ()),
        ("---\nlicense: other\nlicense_name: mrl\nbase_model: ./local\n---\n", ("mrl",), (),
         ("./local",)),
        ("---\nlicense: other\n---\n", ("other",), (), ()),
        (f"---\nbase_model: {HUB}a/b\n---\n", (), ("a/b",), ()),
        ("---\r\nlicense: mit\r\n---\r\n", ("mit",), (), ()),
        ("# no front matter\n---\nlicense: mit\n---\n", (), (), ()),
        ("---\n\n---\n", (), (), ()),
        ("", (), (), ()),
    ],
)  # fmt: skip
def test_a_folder_says_what_it_is_in_its_model_card(
    tmp_path: Path,
    front: str,
    licenses_: tuple[str, ...],
    parents: tuple[str, ...],
    unnamed: tuple[str, ...],
) -> None:
    found = declared(card(tmp_path, front))
    assert (found.licenses, found.parents, found.unnamed_parents) == (licenses_, parents, unnamed)
    assert found.where == f"{tmp_path.name}/README.md"


@pytest.mark.parametrize("front", ["---\nlicense: [mit\n---\n", "---\n- mit\n---\n"])
def test_a_broken_model_card_is_refused(tmp_path: Path, front: str) -> None:
    with pytest.raises(UsageError, match=r"README.md: .*front matter"):
        declared(card(tmp_path, front))


def test_files_that_say_nothing_leave_a_model_unknown(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\x00" * 10)
    for path in (tmp_path, tmp_path / "weights.bin"):
        (part,) = licenses.named_model(REGISTRY, str(path))
        assert part.by is None
        assert "--model_id" in part.reason
    (by_word,) = licenses.named_model(REGISTRY, str(tmp_path), "Qwen/Qwen3-8B")
    assert by_word.commercial is True
    assert "by your word" in by_word.reason


def test_a_name_that_is_no_path_is_an_exact_id() -> None:
    (part,) = licenses.named_model(REGISTRY, "meta-llama/Llama-2-7b-chat-hf")
    assert part.commercial is False


def test_a_fine_tune_on_disk_inherits_from_its_base(tmp_path: Path) -> None:
    path = file(
        tmp_path,
        license="apache-2.0",
        base_model__count=1,
        base_model__0__repo_url=f"{HUB}lmsys/vicuna-7b-v1.5",
    )
    parts = licenses.named_model(REGISTRY, str(path))
    assert [part.commercial for part in parts] == [True, False, False]
    assert [part.repo_id for part in parts] == [
        *(None, "lmsys/vicuna-7b-v1.5", "meta-llama/Llama-2-7b-hf")
    ]
