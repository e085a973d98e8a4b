"""From licences to rows: columns, ``--commercial``, and ``mminstruct license``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from conftest import coco_files
from instruct_rows import dataset, row
from loopback import LoopbackServer

import mminstruct
from mminstruct import backends, cli, licenses, prompts, sources
from mminstruct.backends import BackendOptions
from mminstruct.backends.llama_cpp import bundled_model
from mminstruct.cli.arguments import USAGE
from mminstruct.completions.client import Client
from mminstruct.completions.store import ResponseStore
from mminstruct.errors import ConfigError
from mminstruct.rows.mapping import stream_requests
from mminstruct.rows.plan import Plan
from mminstruct.rows.requests import requests_dataset
from mminstruct.schema import Context, Media, Sampling, encode_context

FREE = "Qwen/Qwen2.5-7B-Instruct"
ALL_LICENSES = [*range(1, 9), 99]
LICENSE_OF = {
    1: "CC-BY-NC-SA-2.0", 2: "CC-BY-NC-2.0", 3: "CC-BY-NC-ND-2.0", 4: "CC-BY-2.0",
    5: "CC-BY-SA-2.0", 6: "CC-BY-ND-2.0", 7: "LicenseRef-flickr-commons",
    8: "LicenseRef-US-Government-Work", 99: None,
}  # fmt: skip
USABLE = [4, 5, 7, 8]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with COCO files of nine images, one under each licence."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")

    def edit(*files: Any) -> None:
        for file in files:
            for image, license in zip(file["images"], ALL_LICENSES, strict=True):
                image["license"] = license

    coco_files(tmp_path / "cache", len(ALL_LICENSES), edit=edit)
    return tmp_path


def run(server: LoopbackServer, more: str = "", model: str = FREE) -> int:
    """The exit code of a run for one instruction type against the loopback server."""
    return cli.run(
        ["generate", "COCO2017", "--model_source", "openai", "--model", model]
        + ["--openai_base_url", server.url, "--response_store", "responses.sqlite"]
        + ["--types", "conversation", "--output_path", "rows.jsonl", *shlex.split(more)]
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def numbers(folder: Path) -> list[int]:
    return [int(row["image_id"]) for row in rows(folder)]


def test_a_row_says_whether_text_and_image_may_be_used_commercially(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(server) == 0
    found = rows(folder)
    assert [row["image_license"] for row in found] == [LICENSE_OF[n] for n in ALL_LICENSES]
    assert [row["commercial_use"] for row in found] == [
        *(n in USABLE for n in range(1, 9)),
        None,
    ]
    assert {row["license"] for row in found} == {"cc-by-4.0"}
    assert {row["provenance"]["model"] for row in found} == {FREE}
    # Its URL may be private.
    assert {row["provenance"]["endpoint"] for row in found} == {"an unregistered server"}
    assert found[3]["image_credit"] == {
        "author": None,
        "author_url": None,
        "title": None,
        "landing_url": "https://www.flickr.com/photo.gne?id=4",
        "license_url": "http://creativecommons.org/licenses/by/2.0/",
    }
    first, second = capsys.readouterr().err.splitlines()[:2]
    assert first == (
        "mminstruct: text: yes; images: 4 of 9 may not be used commercially, 1 unknown, "
        "so 4 of 9 rows may not, 1 unknown; --commercial leaves them out"
    )
    assert second == f"mminstruct: model {FREE}; licence of the text: cc-by-4.0"


@pytest.mark.parametrize(
    ("model", "license", "use"),
    [("meta-llama/Llama-2-7b-chat-hf", "other", False), ("no/such-model", "unknown", None)],
)
def test_no_image_makes_a_text_free_that_is_not(
    model: str, license: str, use: bool | None, folder: Path, server: LoopbackServer
) -> None:
    assert run(server, model=model) == 0
    found = rows(folder)
    assert {row["license"] for row in found} == {license}
    usable = [row["commercial_use"] for row in found if int(row["image_id"]) in USABLE]
    assert usable == [use] * 4
    barred = [row["commercial_use"] for row in found if int(row["image_id"]) in (1, 2, 3, 6)]
    assert barred == [False] * 4


def test_commercial_asks_for_usable_images_alone_and_says_why_the_others_went(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(server, "--commercial --output_path out") == 0
    assert len(server.bodies) == 4
    found = datasets.load_dataset("out", split="train", cache_dir="hf")
    assert [int(image) for image in found["image_id"]] == USABLE
    assert list(found["commercial_use"]) == [True] * 4
    said = capsys.readouterr().err
    assert "COCO2017, split 'train': 4 of 9 images may be used commercially; left out: " in said
    assert "1 under CC-BY-NC-ND-2.0 (without commercial use and changes)" in said
    assert "1 under CC-BY-ND-2.0 (without changes)" in said
    assert "1 under an unknown licence (terms that are not known here)" in said
    card = (folder / "out" / "README.md").read_text()
    assert "1 x image under CC-BY-NC-2.0 (without commercial use)" in card


def test_a_limit_counts_images_that_may_be_used(folder: Path, server: LoopbackServer) -> None:
    assert run(server, "--commercial --limit 3") == 0
    assert numbers(folder) == USABLE[:3]
    assert len(server.bodies) == 3


def test_commercial_rows_are_not_taken_for_others_and_no_answer_is_paid_twice(
    folder: Path, server: LoopbackServer
) -> None:
    assert run(server, "--commercial") == 0
    assert run(server) == 0
    assert numbers(folder) == list(range(1, 10))
    assert run(server, "--commercial") == USAGE  # rows would be lost
    assert numbers(folder) == list(range(1, 10))
    assert run(server, "--commercial --overwrite") == 0
    assert numbers(folder) == USABLE
    assert len(server.bodies) == 9


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("meta-llama/Llama-2-7b-chat-hf", "models of the same family only"),
        ("Qwen/Qwen2.5-3B-Instruct", "research only"),
        ("no/such-model", "no entry has this exact id"),
    ],
)
def test_commercial_is_refused_before_anything_is_sent_if_the_text_cannot_be_free(
    model: str,
    reason: str,
    folder: Path,
    server: LoopbackServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(server, "--commercial", model=model) == 2
    said = " ".join(capsys.readouterr().err.split())
    for words in ("--commercial", "nothing was sent", reason, "free would be", "--licenses FILE"):
        assert words in said
    assert server.bodies == []


def test_commercial_without_any_usable_image_is_refused(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def edit(*files: Any) -> None:
        for file in files:
            for image in file["images"]:
                image["license"] = 2

    coco_files(folder / "cache", 2, edit=edit)
    assert run(server, "--commercial") == 2
    assert "0 of 2 images may be used commercially; left out: 2 under" in capsys.readouterr().err
    assert server.bodies == []


def test_entries_of_ones_own_change_the_licence_column_and_pay_for_nothing_twice(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fact = {"source_url": "our contract", "checked_on": "2026-02-01", "evidence": "primary"}
    group = {**fact, "name": "ours", "vendor": "us", "terms": "mit", "chat": {"no/such-model": 7}}
    image = {
        **fact, "id": "cc-by-nc-2.0", "title": "our agreement", "spdx": "CC-BY-NC-2.0",
        "hub": "cc-by-nc-2.0", "url": "https://example.org", "commercial": True,
        "derivatives": True, "clause": "1",
    }  # fmt: skip
    (folder / "mine.yaml").write_text(yaml.safe_dump({"models": [group], "licenses": [image]}))
    assert run(server, model="no/such-model") == 0
    assert {row["license"] for row in rows(folder)} == {"unknown"}
    more = "--licenses mine.yaml --commercial --overwrite"
    assert run(server, more, model="no/such-model") == 0
    assert {row["license"] for row in rows(folder)} == {"cc-by-4.0"}
    assert numbers(folder) == [2, *USABLE]
    assert run(server, f"--model_id {FREE}", model="no/such-model") == 0
    assert {row["license"] for row in rows(folder)} == {"cc-by-4.0"}
    assert len(server.bodies) == 9
    assert run(server, "--licenses absent.yaml") == 2
    assert "absent.yaml: there is no such file" in capsys.readouterr().err


def test_a_gguf_file_is_known_by_its_header_through_load_dataset(folder: Path) -> None:
    for model, use in ((bundled_model(), True), (None, True)):
        builder = datasets.load_dataset_builder(
            "builders/coco2017_llava",
            backend="llama_cpp",
            model=str(model) if model else None,
            data_dir="cache",
            cache_dir="hf",
        )
        assert builder.recipe.verdict.commercial is use
        assert builder.info.license == "cc-by-4.0"


def test_a_row_carries_what_naming_an_images_author_takes(tmp_path: Path) -> None:
    credit = {
        "author": 'A "b", c',
        "author_url": "https://example.org/people/a",
        "title": "Two\nlines, \U0001f68c",
        "landing_url": "https://example.org/photos/1",
        "license_url": "https://creativecommons.org/licenses/by/2.0/",
    }
    media = Media(file_name="1.jpg", license="CC-BY-2.0", **credit)
    context = Context(id="1", media=media, captions=("A bus.",))
    contexts = datasets.Dataset.from_dict({"id": ["1"], "context": [encode_context(context)]})
    plan = Plan(
        source=sources.get("SAMPLE").info,
        config=prompts.load("llava"),
        sampling=Sampling(),
        backend="fake",
        model="fake",
        license="cc-by-4.0",
        commercial=True,
        image_use=licenses.load().image_use(),
    )
    store = ResponseStore(tmp_path / "responses.sqlite")
    requests = requests_dataset(contexts, ("conversation",), "key")
    with Client(backends.create("fake", BackendOptions()), store) as client:
        (row,) = stream_requests(requests, plan, client)
    assert row["image_credit"] == credit
    assert (row["commercial_use"], row["provenance"]["endpoint"]) == (True, None)


def asked(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.run(["license", *shlex.split(command)]) == 0
    return capsys.readouterr().out


def test_the_command_answers_with_verdict_reasons_obligations_and_alternatives(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = asked("COCO2017 --model meta-llama/Llama-2-70b-chat-hf", capsys)
    *first, second = said.splitlines()[:3]
    assert first == [
        "commercial use: text: no; images: known once the annotations are read, so none",
        "  of the rows may",
    ]
    assert second == "licence of the text: other (cc-by-4.0-and-llama2)"
    for words in (
        *("it rests on:", "duties:", "near alternatives that would be free:", "--why"),
        "- swiss-ai/Apertus-70B-Instruct-2509: Apache-2.0, no duty on outputs",
        "- keep to the acceptable use policy",
    ):
        assert words in said


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("COCO2017 --model mistralai/Mixtral-8x7B-Instruct-v0.1", ("cc-by-4.0", True, "allowed")),
        ("coco2014 COCO2017 --model google/gemma-3-4b-it", ("other", True, "conditional")),
        ("SAMPLE --model Qwen/Qwen3-8B", ("cc0-1.0", True, "allowed")),
        ("COCO2017 --model gpt-4o --model_source openai", ("other", False, "forbidden")),
        ("COCO2017 --model m/x --model_source openai --openai_base_url http://localhost:1",
         ("unknown", None, "unknown")),
        ("COCO2017 --model served --model_id Qwen/Qwen3-8B", ("cc-by-4.0", True, "allowed")),
        ("COCO2017 --model ./absent --model_id Qwen/Qwen3-8B", ("cc-by-4.0", True, "allowed")),
        ("COCO2017", ("cc-by-4.0", True, "allowed")),
        ("COCO2017+LN --model Qwen/Qwen3-8B", ("cc-by-4.0", True, "allowed")),
        ("HUMANML3D --model Qwen/Qwen3-8B", ("mit", True, "allowed")),
        ("HUMANML3D --motion_facts --model Qwen/Qwen3-8B", ("other", False, "allowed")),
        (f"COCO2017 --model {bundled_model()}", ("cc-by-4.0", True, "allowed")),
        (f"COCO2017 --model_source llama.cpp --model {bundled_model()}",
         ("cc-by-4.0", True, "allowed")),
    ],
)  # fmt: skip
def test_for_machines_the_command_answers_in_json(
    command: str, expected: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(asked(f"{command} --json", capsys))
    assert (found["license"], found["commercial"], found["output_training"]) == expected
    assert found.keys() >= {"license_name", "license_link", "obligations", "reasons"}
    assert (found["license"] == "other") == (found["license_link"] is not None)
    assert all(isinstance(reason, str) for reason in found["reasons"])
    another_model_helps = found["output_training"] not in ("allowed", "conditional")
    assert bool(found["alternatives"]) == another_model_helps


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("COCO2015 --model a/b", "unknown source 'COCO2015' (did you mean"),
        ("COCO2017 --model a/b --licenses absent.yaml", "absent.yaml: there is no such file"),
        ("COCO2017 --model ./absent", "model ./absent: there is no such file; give another path"),
        ("COCO2017 --model absent.gguf", "model absent.gguf: there is no such file"),
        ("COCO2017 --model ~/absent", "model ~/absent: there is no such file"),
        ("COCO2017 --model a/b --openai_base_url http://h", "without --model_source; give both"),
        ("COCO2017 --model_source opneai --model x", "did you mean 'openai'"),
        ("COCO2017 --model a/b --prompt_config lava", "did you mean 'llava'"),
        ("COCO2017 --model a/b --motion_facts", "--motion_facts is an option of HUMANML3D"),
    ],
)
def test_a_wrong_question_exits_2(
    command: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["license", *shlex.split(command)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "generate COCO2017 --dry_run --output_path rows.jsonl",
        "estimate COCO2017 --dry_run",
        "license COCO2017 --model a/b",
        "export out --format jsonl --image_licenses commercial",
    ],
)
def test_all_that_take_entries_of_ones_own_check_what_these_are_about(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = licenses.load().annotations["coco"].model_dump(mode="json", exclude_none=True)
    work |= {"id": "ours", "sources": ["COCO_2017"]}
    (folder / "own.yaml").write_text(yaml.safe_dump({"annotations": [work]}))
    if command.startswith("export"):
        assert cli.run(["generate", "SAMPLE", "--dry_run", "--output_path", "out"]) == 0
    assert cli.run([*shlex.split(command), "--licenses", "own.yaml"]) == USAGE
    assert "own.yaml: annotations: 'ours' has the source 'COCO_2017'" in capsys.readouterr().err


def test_from_python_they_are_checked_too(folder: Path) -> None:
    work = licenses.load().annotations["coco"].model_dump(mode="json", exclude_none=True)
    work |= {"id": "ours", "sources": ["COCO_2017"]}
    (folder / "own.yaml").write_text(yaml.safe_dump({"annotations": [work]}))
    given = {"licenses": "own.yaml", "backend": "fake", "data_dir": "cache"}
    with pytest.raises(ConfigError, match="has the source 'COCO_2017', which is not known"):
        datasets.load_dataset("builders/coco2017_llava", split="train", **given)
    with pytest.raises(ConfigError, match="has the source 'COCO_2017', which is not known"):
        mminstruct.generate("COCO2017", **given)
    with pytest.raises(ConfigError, match="has the source 'COCO_2017', which is not known"):
        mminstruct.push_to_hub(dataset([row(1)]), "a/b", licenses="own.yaml", token="t")


def test_load_dataset_says_at_its_end_what_its_verdict_is_about(
    folder: Path, server: LoopbackServer, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"backend": "openai", "model": FREE, "base_url": server.url, "data_dir": "cache"}
    given |= {"response_store": "responses.sqlite", "cache_dir": "hf", "split": "train"}
    for _ in range(2):  # the second time nothing is announced
        caplog.clear()
        with caplog.at_level("INFO", logger="mminstruct.builder"):
            made = datasets.load_dataset("builders/coco2017_llava", "conversation", **given)
        assert caplog.messages[-1] == (
            "coco2017_llava: 9 rows; licence of the text: cc-by-4.0; commercial use of the text: "
            "yes; of text and image: column commercial_use"
        )
    assert list(made["commercial_use"]).count(True) == 4


def test_what_is_left_out_of_files_is_said_by_the_command_as_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.csv").write_text("image,caption\na.jpg,A heron.\nb.jpg,\n")
    Path("own.yaml").write_text(
        "{name: own, license: cc-by-4.0, format: table, files: {train: own.csv}}"
    )
    for command in ("license", "estimate"):
        assert cli.run([command, "own.yaml", "--model", FREE, "--model_source", "openai"]) == 0
        said = capsys.readouterr().err.splitlines()[0]
        assert said == (
            "mminstruct: own, split 'train': left out 1 x image without captions and boxes (b.jpg)"
        )
