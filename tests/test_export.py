"""Exports: each form is read back as what it is for reads it, with and without images."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import webdataset
import yaml
from aiohttp import web
from conftest import coco_files
from fsspec.implementations.local import LocalFileOpener
from hub_server import TOKEN, HubServer
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st
from image_server import ImageServer, dropped, endless, picture, served, until_gone
from instruct_rows import ANSWER, QUESTION, dataset, lines, row, rows_of
from PIL import Image
from public_network import NOT_ALLOWED
from running import COMMAND, PATIENCE_S, finish

from mminstruct import cli, export, licenses
from mminstruct.cli.arguments import USAGE
from mminstruct.cli.console import DONE, INCOMPLETE, INTERRUPTED, STOPPED, TERMINATED
from mminstruct.errors import HubError, RunStopped, UsageError
from mminstruct.export import reading
from mminstruct.export.formats import llava_records
from mminstruct.fetching.images import Fetching, _make_public_socket
from mminstruct.rows import replacing
from mminstruct.rows.report import Report
from mminstruct.transport import RetryPolicy

TRAINERS = sorted(export.FORMATS.keys() - {"jsonl", "webdataset", "parquet"})
USES = ("license", "image_license", "commercial_use")
TERMS = export.Terms(lambda use: "CC0\n")
MADE: replacing.Made = {"sources": ["COCO2017"], "backend": "openai", "model": "m", "requests": 1}
AT_ONCE = Fetching(private_addresses=True, retry=RetryPolicy(max_retries=2, base_s=0.0))


def write(
    path: Path,
    splits: dict[str, datasets.Dataset],
    output_format: str,
    *,
    made: replacing.Made = MADE,
    overwrite: bool = False,
    **report: Any,
) -> Path:
    export.check_output(path, output_format)
    export.write(splits, path, output_format, Report(**report), TERMS, made, overwrite=overwrite)
    return path


def repository(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> Path:
    """A dataset repository with these rows: a config a type, and all of them together."""
    configs: dict[str, dict[str, list[str]]] = {}
    for split, rows in splits.items():
        for kind in dict.fromkeys(one["type"] for one in rows):
            file = folder / "data" / kind / f"{split}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            dataset([one for one in rows if one["type"] == kind]).to_parquet(file)
            for name in ("default", kind):
                paths = configs.setdefault(name, {}).setdefault(split, [])
                paths.append(f"data/{kind}/{split}.parquet")
    card = [
        {"config_name": name, "data_files": [{"split": s, "path": p} for s, p in files.items()]}
        for name, files in configs.items()
    ]
    (folder / "README.md").write_text(
        f"---\n{yaml.safe_dump({'license': 'unknown', 'configs': card})}---\n"
    )
    return folder


def rejected(number: int) -> dict[str, Any]:
    return {"id": f"{number}", "type": "conversation", "outcome": "rejected", "reason": "leak"}


def json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def files_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with ImageServer() as running:
        yield running


class Interrupted(dict[str, datasets.Dataset]):
    """Splits whose second one never comes."""

    def items(self) -> Any:
        yield "train", dataset([row(8)])
        raise KeyboardInterrupt


def test_json_lines_hold_all_rows_of_all_splits_in_order(tmp_path: Path) -> None:
    train, validation = rows_of(range(1, 4)), rows_of(range(7, 9))
    path = write(
        tmp_path / "out.jsonl",
        {"train": dataset(train), "validation": dataset(validation)},
        "jsonl",
    )
    assert json_lines(path) == [*train, *validation]


def test_a_line_of_json_is_readable_in_any_language(tmp_path: Path) -> None:
    path = write(tmp_path / "out.jsonl", {"train": dataset([row(1)])}, "jsonl")
    assert ANSWER in path.read_text(encoding="utf-8")


def test_the_file_for_llava_is_one_array_of_alternating_turns(tmp_path: Path) -> None:
    path = write(tmp_path / "out.json", {"train": dataset([row(33471), row(42)])}, "llava-instruct")
    assert json.loads(path.read_text(encoding="utf-8")) == [
        {
            "id": f"coco2017-{image:012d}-conversation",
            "image": f"{image:012d}.jpg",
            "conversations": [
                {"from": "human", "value": f"<image>\n{QUESTION} 1"},
                {"from": "gpt", "value": f"{ANSWER} 1"},
                {"from": "human", "value": f"{QUESTION} 2"},
                {"from": "gpt", "value": f"{ANSWER} 2"},
            ],
            "license": "cc-by-4.0",
            "image_license": "CC-BY-2.0",
            "commercial_use": True,
        }
        for image in (33471, 42)
    ]
    assert ANSWER in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("turns", [1, 2, 7])
def test_a_record_for_llava_shows_its_image_once_at_the_start_of_the_first_turn(turns: int) -> None:
    (record,) = llava_records(row(1, turns=turns), "1.jpg")
    conversations = record["conversations"]
    assert [turn["from"] for turn in conversations] == ["human", "gpt"] * turns
    assert conversations[0]["value"].startswith("<image>\n")
    assert "".join(turn["value"] for turn in conversations).count("<image>") == 1


def test_an_image_placeholder_that_a_model_wrote_itself_does_not_ask_for_another_image() -> None:
    messages = [
        {"role": "user", "content": "<image>\nWhat is in this <image>?"},
        {"role": "assistant", "content": "A bus. <image>"},
    ]
    (record,) = llava_records(row(1, messages=messages), "1.jpg")
    assert [turn["value"] for turn in record["conversations"]] == [
        "<image>\nWhat is in this ?",
        "A bus.",
    ]


def test_the_ids_of_all_splits_and_types_are_unique_in_the_file_for_llava(tmp_path: Path) -> None:
    splits = {"train": dataset(rows_of(range(1, 9))), "validation": dataset(rows_of(range(9, 12)))}
    path = write(tmp_path / "out.json", splits, "llava-instruct")
    records = json.loads(path.read_text(encoding="utf-8"))
    assert len({record["id"] for record in records}) == len(records) == 33


@pytest.mark.parametrize("output_format", ["jsonl", "llava-instruct"])
def test_no_rows_are_still_a_valid_file(tmp_path: Path, output_format: str) -> None:
    path = write(tmp_path / "out", {"train": dataset([])}, output_format)
    text = path.read_text(encoding="utf-8")
    assert (json.loads(text) == []) if output_format == "llava-instruct" else (text == "")


@pytest.mark.parametrize("output_format", ["jsonl", "llava-instruct"])
def test_what_gave_no_row_stands_beside_the_file_until_a_run_without_any(
    tmp_path: Path, output_format: str
) -> None:
    splits = {"train": dataset([row(1)])}
    path = write(tmp_path / "out.x", splits, output_format, files=lines([rejected(2), rejected(3)]))
    beside = tmp_path / "out.x.rejected.jsonl"
    assert json_lines(beside) == [rejected(2), rejected(3)]
    write(path, splits, output_format)
    assert files_below(tmp_path) == ["out.x", "out.x.LICENSE", "out.x.provenance.json"]


@pytest.mark.parametrize("output_format", ["jsonl", "llava-instruct"])
def test_an_interrupted_write_of_a_file_leaves_the_old_one(
    tmp_path: Path, output_format: str
) -> None:
    path = write(tmp_path / "out.x", {"train": dataset([row(1)])}, output_format)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        export.write(Interrupted(), path, output_format, Report(), TERMS, MADE)
    assert path.read_bytes() == before
    assert files_below(tmp_path) == ["out.x", "out.x.LICENSE", "out.x.provenance.json"]
    write(path, {"train": dataset([row(2)])}, output_format)
    assert files_below(tmp_path) == ["out.x", "out.x.LICENSE", "out.x.provenance.json"]
    assert path.read_bytes() != before


def test_a_file_may_be_in_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    path = write(tmp_path / "new" / "out.jsonl", {"train": dataset([row(1)])}, "jsonl")
    assert files_below(tmp_path) == [
        *("new/out.jsonl", "new/out.jsonl.LICENSE", "new/out.jsonl.provenance.json")
    ]
    assert len(json_lines(path)) == 1


@pytest.mark.parametrize("output_format", sorted(export.FILE_FORMATS))
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, output_format: str) -> None:
    path = tmp_path / export.default_output("out", output_format)
    path.write_text("mine\n")
    with pytest.raises(UsageError, match="not written by mminstruct.*move it away or give"):
        write(path, {"train": dataset([row(1)])}, output_format)
    assert (path.read_text(), files_below(tmp_path)) == ("mine\n", [path.name])
    path.write_text("")  # as mktemp makes it
    for _ in range(2):
        write(path, {"train": dataset([row(1)])}, output_format)
    assert path.stat().st_size


def test_shards_of_somebody_else_are_left_alone(tmp_path: Path) -> None:
    out = repository(tmp_path / "out", {"train": [row(1)]})
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / f"{1:012d}.jpg").write_bytes(picture())
    shards = tmp_path / "shards"
    shards.mkdir()
    images = {"images": "path", "image_folder": tmp_path / "images", "output_path": shards}
    for _ in range(2):
        assert export.export(out, "webdataset", **images).rows == 1
    (tmp_path / "shards.LICENSE").unlink()  # as if they were of another program
    with pytest.raises(UsageError, match="not written by mminstruct.*move it away or give"):
        export.export(out, "webdataset", **images)
    assert files_below(shards) == ["train-000000.tar"]


@pytest.mark.parametrize("output_format", sorted(export.FILE_FORMATS))
def test_an_export_of_a_release_without_a_licence_may_be_repeated(
    tmp_path: Path, output_format: str
) -> None:
    out = repository(tmp_path / "out", {"train": rows_of(range(1, 3))})
    path = tmp_path / export.default_output("out", output_format)
    for _ in range(2):
        assert export.export(out, output_format, output_path=path).rows == 6
    assert "isn't known here" in (tmp_path / f"{path.name}.LICENSE").read_text()


@pytest.mark.parametrize("output", ["README.md", "new.jsonl", "data/new.jsonl", "data"])
def test_nothing_is_written_into_the_release_itself(tmp_path: Path, output: str) -> None:
    out = repository(tmp_path / "out", {"train": [row(1)]})
    (tmp_path / "link.jsonl").symlink_to(out / output)
    before = files_below(tmp_path)
    for path in (out / output, tmp_path / "link.jsonl"):
        with pytest.raises(UsageError, match=r"inside the release .*outside of it"):
            export.export(out, "jsonl", output_path=path)
    (tmp_path / "images").mkdir()
    shards = {"images": "path", "image_folder": tmp_path / "images"}
    with pytest.raises(UsageError, match="inside the release"):
        export.export(out, "webdataset", output_path=out / "shards", **shards)
    assert files_below(tmp_path) == before


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="expected a file, got a pipe"):
        write(pipe, {"train": dataset([row(1)])}, "jsonl")
    assert pipe.is_fifo()
    pipe = pipe.rename(tmp_path / "pipe")
    with pytest.raises(UsageError, match="expected a folder, got a pipe"):
        export.check_output(pipe, "webdataset")
    with pytest.raises(UsageError, match="expected a file, got a device"):
        export.check_output(Path("/dev/null"), "jsonl")


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link, target = tmp_path / "link.jsonl", tmp_path / "far" / "rows.jsonl"
    link.symlink_to(target)
    for number in (1, 2):
        write(link, {"train": dataset([row(number)])}, "jsonl")
        assert link.readlink() == target
        assert json_lines(target) == [row(number)]
    assert files_below(tmp_path) == [
        *("far/rows.jsonl", "link.jsonl", "link.jsonl.LICENSE", "link.jsonl.provenance.json")
    ]


def test_a_link_may_lead_into_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "far" / "rows.jsonl")
    write(tmp_path / "link.jsonl", {"train": dataset([row(1)])}, "jsonl")
    assert json_lines(tmp_path / "far" / "rows.jsonl") == [row(1)]


@pytest.mark.parametrize("output_format", ["jsonl", "webdataset"])
def test_an_export_without_a_row_leaves_no_folder_behind(
    tmp_path: Path, output_format: str
) -> None:
    out = repository(tmp_path / "out", {"train": [row(1)]})
    (tmp_path / "images").mkdir()
    images = {"images": "path", "image_folder": tmp_path / "images"}
    for folder in (tmp_path, tmp_path / "a" / "b"):
        with pytest.raises(UsageError, match="no row would be left"):
            export.export(out, output_format, output_path=folder / "new", **images)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out"]


Read = list[tuple[list[tuple[str, str]], str | None]]
"""For each conversation its questions with their answers, and its image."""


def as_llava_reads(path: Path, folder: Path | None) -> Read:
    """Its LazySupervisedDataset and preprocess_multimodal: what is named is opened."""
    read: Read = []
    for sample in json.loads(path.read_text(encoding="utf-8")):
        turns = [turn["value"] for turn in sample["conversations"]]
        speakers = [turn["from"] for turn in sample["conversations"]]
        assert speakers == ["human", "gpt"] * (len(turns) // 2)
        assert speakers
        assert sample.keys() - {"image"} == {"id", "conversations", *USES}
        assert "".join(turns).count("<image>") == ("image" in sample)
        if "image" in sample:
            assert turns[0].startswith("<image>\n")
            turns[0] = turns[0].removeprefix("<image>\n")
            if folder is not None:
                shape(folder / sample["image"])
        read.append((pairs(turns), sample.get("image")))
    return read


def as_llama_factory_reads(path: Path, folder: Path | None) -> Read:
    """Its SharegptDatasetConverter and _validate_messages, by the entry in dataset_info.json."""
    entry = json.loads((path.parent / "dataset_info.json").read_text())[path.stem]
    assert entry["file_name"] == path.name
    assert entry["formatting"] == "sharegpt"
    tags, columns = entry["tags"], entry["columns"]
    read: Read = []
    for sample in json.loads(path.read_text(encoding="utf-8")):
        messages, images = sample[columns["messages"]], sample[columns["images"]]
        expected = [tags["user_tag"], tags["assistant_tag"]]
        assert len(messages) % 2 == 0
        for number, message in enumerate(messages):
            assert message[tags["role_tag"]] == expected[number % 2]
        turns = [message[tags["content_tag"]] for message in messages]
        text = "".join(turns)
        assert text.count("<image>") == len(images)
        assert text.count("<video>") == text.count("<audio>") == 0
        if folder is not None:
            assert all((path.parent / image).is_file() for image in images)
        read.append((pairs([turns[0].removeprefix("<image>"), *turns[1:]]), first(images)))
    return read


def as_swift_reads(path: Path, folder: Path | None) -> Read:
    """Its standard form: as many images as there are ``<image>`` in the messages."""
    read: Read = []
    for sample in json_lines(path):
        turns = [message["content"] for message in sample["messages"]]
        assert [m["role"] for m in sample["messages"]] == ["user", "assistant"] * (len(turns) // 2)
        text = "".join(turns)
        assert text.count("<image>") == len(sample["images"])
        assert text.count("<video>") == text.count("<audio>") == 0
        if folder is not None:
            assert all(Path(image).is_file() for image in sample["images"])
        read.append(
            (pairs([turns[0].removeprefix("<image>"), *turns[1:]]), first(sample["images"]))
        )
    return read


def as_trl_reads(path: Path, folder: Path | None) -> Read:
    """Its prepare_multimodal_messages: places for images are filled in their order."""
    read: Read = []
    for sample in json_lines(path):
        places, texts = parts_of(sample["messages"])
        assert len(places) == len(sample["images"])
        assert all(place == {"type": "image"} for place in places)
        if folder is not None:
            assert all(Path(image).is_file() for image in sample["images"])
        read.append((pairs(texts), first(sample["images"])))
    return read


def as_axolotl_reads(path: Path, folder: Path | None) -> Read:
    """Its ProcessingStrategy: an image's part has its path or its address."""
    read: Read = []
    for sample in json_lines(path):
        places, texts = parts_of(sample["messages"])
        images = [place.get("path") or place["url"] for place in places]
        assert all(place.keys() - {"type"} in ({"path"}, {"url"}) for place in places)
        assert not [key for key in sample if "image" in key]  # it would be opened as one
        if folder is not None:
            assert all(Path(image).is_file() for image in images)
        read.append((pairs(texts), first(images)))
    return read


def as_lavin_reads(path: Path, folder: Path | None) -> Read:
    """Its InstrcutDataSet of the split "all": COCO_train2014_ stands before an image's name."""
    records = json.loads(path.read_text(encoding="utf-8"))["all"]
    assert len({record["qid"] for record in records}) == len(records)
    read: dict[str, tuple[list[tuple[str, str]], str | None]] = {}
    for record in records:
        question = re.fullmatch(r"Instruction: (.*)\nResponse:", record["instruction"], re.DOTALL)
        assert question
        if record["image"] is not None:
            assert record["image_source"] not in (None, "sqa")
            if folder is not None:
                shape(folder / f"COCO_train2014_{record['image']}")
        name, _, number = record["qid"].rpartition("-")
        turns, _ = read.setdefault(name, ([], record["image"]))
        assert int(number) == len(turns)
        turns.append((question[1], record["answer"]))
    return list(read.values())


def pairs(turns: list[str]) -> list[tuple[str, str]]:
    return list(zip(turns[::2], turns[1::2], strict=True))


def first(images: list[str]) -> str | None:
    return images[0] if images else None


def parts_of(messages: list[dict[str, Any]]) -> tuple[list[dict[str, str]], list[str]]:
    """The images' parts, which are in the first message before its text, and the texts."""
    assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
    kinds = [[part["type"] for part in message["content"]] for message in messages]
    assert kinds[0] in (["text"], ["image", "text"])
    assert all(kind == ["text"] for kind in kinds[1:])
    texts = [message["content"][-1]["text"] for message in messages]
    return messages[0]["content"][:-1], texts


READERS = {
    "llava-instruct": as_llava_reads,
    "sharegpt": as_llama_factory_reads,
    "ms-swift": as_swift_reads,
    "messages": as_trl_reads,
    "axolotl": as_axolotl_reads,
    "lavin": as_lavin_reads,
}


def turns_of(row: dict[str, Any]) -> list[tuple[str, str]]:
    return pairs([message["content"] for message in row["messages"]])


def test_every_form_has_a_reader_here() -> None:
    assert READERS.keys() == set(TRAINERS)


@pytest.mark.parametrize("output_format", TRAINERS)
def test_a_trainer_reads_all_rows_with_their_images(output_format: str, tmp_path: Path) -> None:
    rows = rows_of(range(1, 4))
    out = repository(tmp_path / "out", {"train": rows[:5], "validation": rows[5:]})
    folder = tmp_path / "pictures"
    folder.mkdir()
    prefix = export.FORMATS[output_format].prefix
    for number in range(1, 4):
        (folder / f"{prefix}{number:012d}.jpg").write_bytes(picture())
    path = tmp_path / "exports" / export.default_output("out", output_format)
    outcome = export.export(
        out, output_format, output_path=path, images="path", image_folder=folder
    )
    assert (outcome.rows, outcome.missing, outcome.excluded) == (9, {}, {})
    read = READERS[output_format](path, folder)
    assert [turns for turns, _ in read] == [turns_of(row) for row in rows]
    assert [Path(image or "").name for _, image in read] == [row["image"] for row in rows]
    assert not [name for name in files_below(tmp_path / "exports") if "missing" in name]


@pytest.mark.parametrize("output_format", TRAINERS)
def test_text_without_an_image_asks_for_none(output_format: str, tmp_path: Path) -> None:
    text = row(1, modality="text", image=None, image_url=None)
    path = write(tmp_path / "out.json", {"train": dataset([text, row(2)])}, output_format)
    read = READERS[output_format](path, None)
    assert read == [(turns_of(text), None), (turns_of(row(2)), row(2)["image"])]


@pytest.mark.parametrize("output_format", sorted(export.FORMATS.keys() - {"jsonl"}))
def test_motions_are_refused_by_what_reads_images(output_format: str, tmp_path: Path) -> None:
    motion = row(1, modality="motion", media="000001.npy", image=None, image_url=None)
    out = repository(tmp_path / "out", {"train": [motion]})
    path = tmp_path / ("exported" if export.FORMATS[output_format].is_folder else "exported.json")
    more: dict[str, Any] = {"images": "path", "image_folder": tmp_path}
    with pytest.raises(UsageError, match="is about motion; use the format jsonl"):
        export.export(out, output_format, output_path=path, **more)
    assert not path.exists()


def test_motions_stay_as_they_are_in_json_lines(tmp_path: Path) -> None:
    motion = row(1, modality="motion", media="000001.npy", image=None, image_url=None)
    out = repository(tmp_path / "out", {"train": [motion]})
    for number, images in enumerate(("none", "url", "path")):
        path = tmp_path / f"{number}.jsonl"
        folder = tmp_path if images == "path" else None
        export.export(out, "jsonl", output_path=path, images=images, image_folder=folder)
        assert json_lines(path) == [motion]


def test_datasets_and_pillow_read_the_file_for_trl(tmp_path: Path) -> None:
    out = repository(tmp_path / "out", {"train": [row(1), row(2)]})
    for number in (1, 2):
        (tmp_path / f"{number:012d}.jpg").write_bytes(picture(80, 60))
    path = tmp_path / "messages.jsonl"
    export.export(out, "messages", output_path=path, images="path", image_folder=tmp_path)
    rows = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "hf")
    )
    rows = rows.cast_column("images", datasets.List(datasets.Image()))
    assert [image.size for image in rows[1]["images"]] == [(80, 60)]
    places, texts = parts_of(rows[1]["messages"])
    assert [place["type"] for place in places] == ["image"]
    assert "image" not in places[0]
    assert pairs(texts) == turns_of(row(2))


def test_an_address_stands_where_a_trainer_looks_for_it(tmp_path: Path) -> None:
    out = repository(tmp_path / "out", {"train": [row(1), row(2, image_url=None)]})
    url = row(1)["image_url"]
    for output_format in ("messages", "ms-swift", "axolotl"):
        path = tmp_path / output_format
        outcome = export.export(out, output_format, output_path=path, images="url")
        assert READERS[output_format](path, None) == [(turns_of(row(1)), url)]
        assert outcome.missing == {"no address for its image": 1}
    assert '{"type": "image", "url": "http' in (tmp_path / "axolotl").read_text()


@pytest.mark.parametrize("output_format", ["llava-instruct", "sharegpt", "lavin", "webdataset"])
def test_an_address_is_refused_by_what_opens_files(output_format: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"for {output_format}, got 'url'"):
        export.export(tmp_path, output_format, images="url")


def test_names_of_coco_2014_lose_what_lavin_adds_itself(tmp_path: Path) -> None:
    rows = [row(7, image="COCO_train2014_000000000007.jpg"), row(8)]
    path = write(tmp_path / "all_data.json", {"train": dataset(rows)}, "lavin")
    assert [image for _, image in as_lavin_reads(path, None)] == [
        "000000000007.jpg",
        "000000000008.jpg",
    ]


def test_an_entry_is_added_to_the_datasets_that_llama_factory_knows(tmp_path: Path) -> None:
    info = tmp_path / "dataset_info.json"
    info.write_text('{"mine": {"file_name": "mine.json"}}')
    for name in ("a", "b", "a"):
        write(tmp_path / f"{name}.json", {"train": dataset([row(1)])}, "sharegpt")
    assert json.loads(info.read_text()).keys() == {"mine", "a", "b"}
    for damaged in ("[1]", "{"):
        info.write_text(damaged)
        with pytest.raises(UsageError, match="dataset_info.json: expected"):
            export.check_output(tmp_path / "c.json", "sharegpt")
    with pytest.raises(UsageError, match="got '.txt' against '.json'"):
        export.check_output(tmp_path / "c.txt", "sharegpt")


@pytest.mark.parametrize(
    "entry", [{"file_name": "b.json"}, {"hf_hub_url": "me/mine"}, {"script_url": "a"}, 3]
)
def test_an_entry_of_another_dataset_is_not_replaced(tmp_path: Path, entry: Any) -> None:
    info = tmp_path / "dataset_info.json"
    info.write_text(json.dumps({"a": entry}))
    with pytest.raises(UsageError, match=r"dataset_info.json has another dataset 'a' \("):
        export.check_output(tmp_path / "a.json", "sharegpt")
    assert files_below(tmp_path) == ["dataset_info.json"]


FRAGMENTS = [
    '"', "'", "\\", "\n", "\r\n", "\u2028", "\x85", "\x00", "\x1b[31m", "\t", "---", "...", "```",
    "# ", "| a |", "[x](http://h)", "<b>", "</script>", "&amp;", "<image>", "<im", "age>",
    "<video>", "<audio>", "<Image>", "</s>", "<|im_end|>", "USER: ", "{", "}", "]", ",", "null",
    "\U0001f68c", "\u0645\u0631\u062d\u0628\u0627", "\u202e", "\u05d0", "e\u0301", "\ufeff", " ",
]  # fmt: skip
TEXT = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=5)), max_size=8).map("".join)


def readable(text: str) -> str:
    """What is documented: the three tags are taken out, and blanks at the ends with them."""
    while found := [tag for tag in ("<image>", "<video>", "<audio>") if tag in text]:
        for tag in found:
            text = text.replace(tag, "")
        text = text.strip()
    return text


@settings(max_examples=60, deadline=None)
@given(conversations=st.lists(st.lists(st.tuples(TEXT, TEXT), max_size=3), min_size=1, max_size=3))
def test_no_text_breaks_what_a_trainer_reads(
    conversations: list[list[tuple[str, str]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    rows = [
        row(
            number,
            messages=[
                {"role": role, "content": content}
                for turn in turns
                for role, content in zip(("user", "assistant"), turn, strict=True)
            ],
        )
        for number, turns in enumerate(conversations)
    ]
    usable = [
        (turns, row["image"])
        for row in rows
        if (turns := [(readable(q), readable(a)) for q, a in turns_of(row)])
        and all(text.strip() for turn in turns for text in turn)
    ]
    splits = {"train": dataset(rows)}
    assert json_lines(write(folder / "rows.jsonl", splits, "jsonl")) == rows
    for output_format, read in READERS.items():
        path = folder / f"{output_format}.json"
        if not usable:
            with pytest.raises(UsageError, match="no row would be left"):
                write(path, splits, output_format)
            continue
        write(path, splits, output_format)
        assert read(path, None) == usable
        missing = folder / f"{output_format}.json.missing.jsonl"
        left_out = json_lines(missing) if missing.exists() else []
        assert len(left_out) == len(rows) - len(usable)


@settings(max_examples=10, deadline=None)
@given(turns=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), id=TEXT.filter(bool))
def test_no_text_breaks_a_shard(
    turns: list[tuple[str, str]], id: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    messages = [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]
    rows = [row(1, id=id, messages=messages), row(1, id=f"{id}.", messages=messages)]
    out = repository(folder / "out", {"train": rows})
    (folder / "000000000001.jpg").write_bytes(picture())
    shards = folder / "shards"
    export.export(out, "webdataset", output_path=shards, images="path", image_folder=folder)
    assert [sample["json"] for sample in samples(shards)] == rows


def test_rows_cannot_hold_half_of_a_character() -> None:
    with pytest.raises(UnicodeEncodeError):
        dataset([row(1, id="\ud83d")])


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "messages don't alternate between user and assistant"),
        ([("user", "a")], "messages don't alternate between user and assistant"),
        (
            [("assistant", "a"), ("user", "b")],
            "messages don't alternate between user and assistant",
        ),
        ([("system", "s"), ("user", "a")], "messages don't alternate between user and assistant"),
        ([("user", "a"), ("assistant", " <image>\n")], "an empty message"),
        ([("user", "a"), ("assistant", None)], "an empty message"),
    ],
)
def test_a_row_that_is_no_conversation_is_left_out_and_named(
    messages: list[tuple[str, str | None]], reason: str, tmp_path: Path
) -> None:
    damaged = row(1, messages=[{"role": r, "content": c} for r, c in messages])
    for output_format in TRAINERS:
        path = tmp_path / f"{output_format}.json"
        splits = {"train": dataset([damaged, row(2)])}
        outcome = export.write(splits, path, output_format, Report(), TERMS, MADE)
        assert (outcome.rows, outcome.missing) == (1, {reason: 1})
        assert json_lines(tmp_path / f"{output_format}.json.missing.jsonl") == [
            {**{name: damaged[name] for name in ("id", "image", "image_url")}, "reason": reason}
        ]


def samples(folder: Path) -> list[dict[str, Any]]:
    """What webdataset reads."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files to the collector
        read = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
        gc.collect()
    return read


def test_webdataset_reads_images_and_rows_from_shards(tmp_path: Path) -> None:
    train, validation = rows_of(range(1, 3), ("detail",)), [row(3)]
    out = repository(tmp_path / "out", {"train": train, "validation": validation})
    for number, form in ((1, "JPEG"), (2, "PNG"), (3, "WEBP")):
        (tmp_path / f"{number:012d}.jpg").write_bytes(picture(30 + number, 20, form))
    shards = tmp_path / "shards"
    outcome = export.export(
        out, "webdataset", output_path=shards, images="path", image_folder=tmp_path
    )
    assert files_below(shards) == ["train-000000.tar", "validation-000000.tar"]
    read = samples(shards)
    assert outcome.rows == len(read) == 3
    assert [sample["__key__"] for sample in read] == [row["id"] for row in train + validation]
    assert [sample["json"] for sample in read] == train + validation
    for sample, ending, width in zip(read, ("jpg", "png", "webp"), (31, 32, 33), strict=True):
        assert sample[ending].size == (width, 20)


def test_shards_are_the_same_every_time_and_replace_those_before(tmp_path: Path) -> None:
    out = repository(tmp_path / "out", {"train": rows_of(range(1, 4))})
    for number in (1, 2, 3):
        (tmp_path / f"{number:012d}.jpg").write_bytes(picture())
    shards = tmp_path / "shards"
    more: dict[str, Any] = {"output_path": shards, "images": "path", "image_folder": tmp_path}
    export.export(out, "webdataset", **more)
    before = (shards / "train-000000.tar").read_bytes()
    (shards / "old-000007.tar").write_bytes(b"")
    export.export(out, "webdataset", **more)
    assert files_below(shards) == ["train-000000.tar"]
    assert (shards / "train-000000.tar").read_bytes() == before


def test_full_shards_are_followed_by_others(tmp_path: Path) -> None:
    rows = [row(1, id=f"r{number}") for number in range(10_001)]
    out = repository(tmp_path / "out", {"train": rows, "validation": [row(1)]})
    (tmp_path / "000000000001.jpg").write_bytes(picture(1, 1))
    shards = tmp_path / "shards"
    export.export(out, "webdataset", output_path=shards, images="path", image_folder=tmp_path)
    counts = {}
    for path in sorted(shards.iterdir()):
        with tarfile.open(path) as tar:
            counts[path.name] = len(tar.getnames()) // 2
    assert counts == {"train-000000.tar": 10_000, "train-000001.tar": 1, "validation-000000.tar": 1}


def test_a_file_that_no_shard_has_a_name_for_is_not_put_into_one(tmp_path: Path) -> None:
    out = repository(tmp_path / "out", {"train": [row(1), row(2)]})
    (tmp_path / "000000000001.jpg").write_bytes(picture())
    (tmp_path / "000000000002.jpg").write_bytes(picture(form="GIF"))
    shards = tmp_path / "shards"
    outcome = export.export(
        out, "webdataset", output_path=shards, images="path", image_folder=tmp_path
    )
    assert len(samples(shards)) == outcome.rows == 1
    assert outcome.missing == {"not an image (JPEG, PNG, WEBP)": 1}


FLAWED = {
    "empty": b"",
    "a page": b"<html>not found</html>",
    "half a JPEG": picture()[:-200],
    "a JPEG but for its end": picture()[:-2],
    "a header": picture()[:300],
    "half a PNG": picture(form="PNG")[:-20],
    "half a WebP": picture(form="WEBP")[:-20],
    "half a GIF": picture(form="GIF")[:-500],
}
WHOLE = {
    "JPEG": picture(),
    "JPEG with something after it": picture() + b"\0more",
    "PNG": picture(form="PNG"),
    "WebP": picture(form="WEBP"),
    "GIF": picture(form="GIF"),
}


@pytest.mark.parametrize("name", [*FLAWED, *WHOLE])
def test_a_file_that_is_no_whole_image_is_left_out_and_named(name: str, tmp_path: Path) -> None:
    rows = [row(number, kind) for kind in ("conversation", "detail") for number in (1, 2)]
    out = repository(tmp_path / "out", {"train": rows})
    (tmp_path / "000000000001.jpg").write_bytes(picture())
    (tmp_path / "000000000002.jpg").write_bytes(FLAWED.get(name) or WHOLE.get(name, b""))
    path = tmp_path / "x.json"
    outcome = export.export(
        out, "llava-instruct", output_path=path, images="path", image_folder=tmp_path
    )
    if name in WHOLE:
        assert (outcome.rows, outcome.missing) == (4, {})
        return
    why = "not a whole image (JPEG, PNG, WEBP, BMP, GIF, TIFF)"
    assert (outcome.rows, outcome.missing) == (2, {why: 2})
    named = json_lines(tmp_path / "x.json.missing.jsonl")
    assert [(one["image"], one["reason"]) for one in named] == [(rows[1]["image"], why)] * 2


def test_an_image_of_many_rows_is_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, real = [], Image.open

    def counted(file: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(file)
        return real(file, *args, **kwargs)

    monkeypatch.setattr(Image, "open", counted)
    out = repository(tmp_path / "out", {"train": rows_of(range(1, 3))})
    for number in (1, 2):
        (tmp_path / f"{number:012d}.jpg").write_bytes(picture())
    path = tmp_path / "x.jsonl"
    assert export.export(
        out, "jsonl", output_path=path, images="path", image_folder=tmp_path
    ).rows == 6  # fmt: skip
    assert len(opened) == 2


def test_a_large_image_is_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = repository(tmp_path / "out", {"train": [row(1), row(2)]})
    (tmp_path / "000000000001.jpg").write_bytes(picture())
    (tmp_path / "000000000002.jpg").write_bytes(picture(640, 480))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # Pillow warns, and opens twice as many
    outcome = export.export(
        out, "messages", output_path=tmp_path / "x", images="path", image_folder=tmp_path
    )
    assert (outcome.rows, outcome.missing) == (1, {"more than 2000 pixels": 1})


@pytest.mark.parametrize("images", ["none", "path"])
def test_a_file_that_lies_on_its_side_is_for_no_trainer_as_it_is(
    tmp_path: Path, images: export.Images
) -> None:
    rows = [row(1, rotation_deg=90), row(2, rotation_deg=None), row(3, rotation_deg=45)]
    out = repository(tmp_path / "out", {"train": rows})
    for number in (1, 2, 3):
        (tmp_path / f"{number:012d}.jpg").write_bytes(picture())
    folder = tmp_path if images == "path" else None
    more: dict[str, Any] = {"images": images, "image_folder": folder}
    path = tmp_path / "llava.json"
    outcome = export.export(out, "llava-instruct", output_path=path, **more)
    assert outcome.missing == {
        "its image has to be turned, which --images embed does": 1,
        "its image would have to be turned by 45 degrees": 1,
    }
    assert [record["id"] for record in json.loads(path.read_text())] == [rows[1]["id"]]
    path = tmp_path / "rows.jsonl"
    export.export(out, "jsonl", output_path=path)
    assert [record["rotation_deg"] for record in json_lines(path)] == [90, None, 45]


def test_a_folder_with_something_else_is_no_place_for_shards(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("mine")
    with pytest.raises(UsageError, match="holds something else than shards"):
        export.check_output(tmp_path, "webdataset")
    with pytest.raises(UsageError, match="expected a folder, got a file"):
        export.check_output(tmp_path / "thesis", "webdataset")


def row_at(server: ImageServer, number: int, **changes: Any) -> dict[str, Any]:
    """A row whose image is on the server."""
    address = server.address(f"{number:012d}.jpg")
    return row(number, **{"image_url": address, **changes})


def shape(path: Path) -> tuple[int, int, str | None]:
    """Width, height and form of an image."""
    with Image.open(path) as image:
        return (*image.size, image.format)


def embed(
    tmp_path: Path, rows: list[dict[str, Any]], output_format: str = "llava-instruct", **more: Any
) -> export.Outcome:
    out = repository(tmp_path / "out", {"train": rows})
    more = {"output_path": tmp_path / "x" / "out.json", "fetching": AT_ONCE, **more}
    return export.export(out, output_format, images="embed", **more)


@pytest.mark.parametrize("output_format", TRAINERS)
def test_images_are_fetched_into_a_folder_that_the_trainer_finds(
    output_format: str, tmp_path: Path, server: ImageServer
) -> None:
    rows = [row_at(server, 1), row_at(server, 2)]
    outcome = embed(tmp_path, rows, output_format)
    assert (outcome.rows, outcome.missing) == (2, {})
    read = READERS[output_format](tmp_path / "x" / "out.json", tmp_path / "x" / "images")
    assert [turns for turns, _ in read] == [turns_of(row) for row in rows]


def test_an_image_of_many_rows_is_fetched_once(tmp_path: Path, server: ImageServer) -> None:
    kinds = ("conversation", "detail", "complex_reasoning")
    rows = [row_at(server, n, type=kind, id=f"{kind}{n}") for kind in kinds for n in range(40)]
    together = asyncio.Event()

    async def when_four_wait(request: web.Request) -> web.StreamResponse:
        if server.in_flight == 4:
            together.set()
        await together.wait()
        return web.Response(body=picture())

    server.answers = {f"{number:012d}.jpg": [when_four_wait] for number in range(40)}
    outcome = embed(tmp_path, rows, fetching=replace(AT_ONCE, max_concurrency=4))
    assert outcome.rows == 120
    assert set(server.asked_for.values()) == {1}
    assert server.max_in_flight == 4


def test_what_is_worth_another_attempt_gets_it(tmp_path: Path, server: ImageServer) -> None:
    later = web.Response
    server.answers = {
        f"{1:012d}.jpg": [
            lambda request: later(status=429, headers={"Retry-After": "0"}),
            served(picture(33, 22)),
        ],
        f"{2:012d}.jpg": [lambda request: later(status=503), served(picture())],
        f"{3:012d}.jpg": [dropped(picture()), served(picture())],
        f"{4:012d}.jpg": [lambda request: later(status=500)],
    }
    outcome = embed(tmp_path, [row_at(server, number) for number in range(1, 5)])
    assert (outcome.rows, outcome.missing) == (3, {"HTTP 500": 1})
    assert [server.asked_for[f"{number:012d}.jpg"] for number in range(1, 5)] == [2, 2, 2, 3]
    assert shape(tmp_path / "x" / "images" / f"{1:012d}.jpg") == (33, 22, "JPEG")


def bomb() -> bytes:
    """A PNG of a few kilobytes with a billion pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", 32_000, 32_000, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(10**6))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, content) for kind, content in ((b"IHDR", head), (b"IDAT", body), (b"IEND", b""))
    )


WRONG = {
    "not found": (lambda request: web.Response(status=404), "HTTP 404"),
    "a page": (served(b"<html>gone</html>"), "not a whole image (JPEG, PNG, WEBP)"),
    "half an image": (served(picture(400, 300)[:-3000]), "not a whole image (JPEG, PNG, WEBP)"),
    "nothing": (served(b""), "not a whole image (JPEG, PNG, WEBP)"),
    "another form": (served(picture(form="GIF")), "not a whole image (JPEG, PNG, WEBP)"),
    "a bomb": (served(bomb()), f"more than {Image.MAX_IMAGE_PIXELS} pixels"),
    "no end": (endless, "more than 1000000 bytes"),
    "another scheme": (
        lambda request: web.Response(status=302, headers={"Location": "file:///etc/passwd"}),
        "no http or https address",
    ),
    "a circle": (
        lambda request: web.Response(status=302, headers={"Location": request.path}),
        "too many redirects",
    ),
}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
def test_an_image_in_this_machine_or_a_private_network_is_not_asked_for(
    host: str, tmp_path: Path, server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    rows = [row_at(server, 1, image_url=f"http://{host}:{server.port}/images/1.jpg")]
    with pytest.raises(UsageError, match=r"a private network \(--private_addresses .* 1"):
        embed(tmp_path, rows, fetching=replace(AT_ONCE, private_addresses=False))
    assert server.asked_for == {}


@pytest.mark.skipif(sys.platform != "linux", reason="takes a network of its own")
@pytest.mark.parametrize("allowed", [False, True])
def test_an_image_that_redirects_inwards_is_left_out_without_a_look(
    allowed: bool, tmp_path: Path
) -> None:
    inwards = ("127.0.0.1", "169.254.169.254", "10.1.2.3")
    paths = ["1.jpg", *(f"to/{host}" for host in ("8.8.8.8", *inwards))]
    rows = [row(n, image_url=f"http://8.8.8.8/{path}") for n, path in enumerate(paths)]
    out = repository(tmp_path / "out", {"train": rows})
    more = ["--private_addresses"] if allowed else []
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    script = Path(__file__).with_name("public_network.py")
    process = subprocess.Popen(
        [*(sys.executable, script, "export", out, "--format", "messages"), "--images=embed", *more],
        env={**environment, "HF_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ended = finish(process)
    if ended.code == NOT_ALLOWED:
        pytest.skip(f"no network of its own: {ended.out}")
    assert ended.code == 0, ended.err
    asked = [["8.8.8.8", f"/{path}"] for path in ("1.jpg", *paths)]
    if allowed:
        asked += [[host, "/1.jpg"] for host in inwards]
    assert json.loads(ended.out) == {
        "code": DONE if allowed else INCOMPLETE,
        "asked": sorted(asked),
    }
    left_out = "3 left out (its address leads into this machine or a private network"
    assert (left_out in ended.err) is not allowed
    rows_left = len(json_lines(tmp_path / "out.messages.jsonl"))
    assert rows_left == (5 if allowed else 2)


@pytest.mark.parametrize(
    ("address", "is_public"),
    [
        ("169.254.169.254", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),  # noqa: S104
        ("224.0.0.251", False),
        ("::1", False),
        ("fe80::1%lo", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
    ],
)
def test_sockets_are_for_public_addresses_alone(address: str, is_public: bool) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    info = (family, socket.SOCK_STREAM, 0, "", (address, 80))
    if is_public:
        _make_public_socket(info).close()
        return
    with pytest.raises(OSError, match="a private network"):
        _make_public_socket(info)


def test_images_whose_names_no_file_can_have_are_left_out_alone(
    tmp_path: Path, server: ImageServer
) -> None:
    names = ["ok.jpg", "ok.jpg/inner.jpg", "n" * 300 + ".jpg", "folder/ok.jpg", "folder"]
    rows = [row_at(server, n, image=name, media=name) for n, name in enumerate(names)]
    outcome = embed(tmp_path, rows, fetching=replace(AT_ONCE, max_concurrency=1))
    assert (outcome.rows, outcome.missing.total()) == (2, 3)
    assert all(reason.startswith("its name can't be a file's (") for reason in outcome.missing)
    folder = tmp_path / "x" / "images"
    given = {"output_path": tmp_path / "y.json", "images": "path", "image_folder": folder}
    outcome = export.export(tmp_path / "out", "llava-instruct", **given)
    assert (outcome.rows, outcome.missing.total()) == (2, 3)


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_image_is_left_out_and_named(
    case: str, tmp_path: Path, server: ImageServer
) -> None:
    answer, reason = WRONG[case]
    server.answers[f"{2:012d}.jpg"] = [answer]
    rows = [row_at(server, 1), row_at(server, 2)]
    outcome = embed(tmp_path, rows, fetching=replace(AT_ONCE, max_bytes=1_000_000))
    assert (outcome.rows, outcome.missing) == (1, {reason: 1})
    assert server.asked_for[f"{2:012d}.jpg"] >= 1
    named = {name: rows[1][name] for name in ("id", "image", "image_url")}
    path = tmp_path / "x" / "out.json"
    assert json_lines(path.with_name("out.json.missing.jsonl")) == [{**named, "reason": reason}]
    assert [image for _, image in as_llava_reads(path, path.parent / "images")] == [
        rows[0]["image"]
    ]
    assert files_below(path.parent / "images") == [rows[0]["image"]]


def test_a_server_that_stalls_costs_a_bounded_time(tmp_path: Path, server: ImageServer) -> None:
    async def stall(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(picture()[:10])
        await until_gone(request)
        return response

    server.answers[f"{1:012d}.jpg"] = [stall]
    fetching = replace(AT_ONCE, timeout_s=0.2, retry=RetryPolicy(max_retries=1, base_s=0.0))
    outcome = embed(tmp_path, [row_at(server, 1), row_at(server, 2)], fetching=fetching)
    assert outcome.missing == {"not there after 0.2 s": 1}
    assert server.asked_for[f"{1:012d}.jpg"] == 2


def test_a_server_that_is_down_stops_the_run(tmp_path: Path) -> None:
    with ImageServer() as gone:
        rows = [row_at(gone, number) for number in range(60)]
    with pytest.raises(RunStopped, match="20 in a row could not be fetched"):
        embed(tmp_path, rows)
    assert not (tmp_path / "x" / "out.json").exists()


@pytest.mark.parametrize("name", ["../out.jpg", "/etc/out.jpg", "a/../../out.jpg", "", "a\\b.jpg"])
def test_no_image_is_written_outside_its_folder(
    name: str, tmp_path: Path, server: ImageServer
) -> None:
    outcome = embed(tmp_path, [row_at(server, 1, image=name), row_at(server, 2)])
    reason = "its image has no file name, or one that leads out of a folder"
    assert (outcome.rows, outcome.missing) == (1, {reason: 1})
    assert files_below(tmp_path / "x" / "images") == [f"{2:012d}.jpg"]


def test_of_two_images_with_one_name_the_first_is_taken(
    tmp_path: Path, server: ImageServer
) -> None:
    rows = [row_at(server, 1), row_at(server, 2, image=f"{1:012d}.jpg")]
    outcome = embed(tmp_path, rows)
    assert (outcome.rows, outcome.missing) == (1, {"another image has the same file name": 1})
    assert server.asked_for == {f"{1:012d}.jpg": 1}


def test_larger_images_are_made_smaller_and_turned_upright(
    tmp_path: Path, server: ImageServer
) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # its top is at the right
    server.answers = {
        f"{1:012d}.jpg": [served(picture(400, 200))],
        f"{2:012d}.jpg": [served(picture(400, 200, exif=turned))],
        f"{3:012d}.jpg": [served(small := picture(30, 40))],
        f"{4:012d}.jpg": [served(picture(200, 200, "PNG"))],
    }
    rows = [row_at(server, number) for number in range(1, 5)]
    embed(tmp_path, rows, fetching=replace(AT_ONCE, max_size=50))
    folder = tmp_path / "x" / "images-50px"
    assert [shape(folder / f"{number:012d}.jpg") for number in range(1, 5)] == [
        (50, 25, "JPEG"),
        (25, 50, "JPEG"),
        (30, 40, "JPEG"),
        (50, 50, "PNG"),
    ]
    assert (folder / f"{3:012d}.jpg").read_bytes() == small
    credit = json_lines(tmp_path / "x" / "out.json.credits.jsonl")[0]
    assert credit["max_size"] == 50


@pytest.mark.parametrize(("degrees", "dark"), [(90, "left"), (180, "bottom"), (270, "right")])
def test_a_file_that_lies_on_its_side_is_turned_as_it_is_fetched(
    tmp_path: Path, server: ImageServer, degrees: int, dark: str
) -> None:
    # The picture is dark at the top.
    rows = [row_at(server, 1, rotation_deg=degrees)]
    for size, folder in ((None, "images"), (32, "images-32px")):
        embed(tmp_path, rows, fetching=replace(AT_ONCE, max_size=size), overwrite=True)
        image = Image.open(tmp_path / "x" / folder / f"{1:012d}.jpg").convert("L")
        long, short = (64, 48) if size is None else (32, 24)
        assert image.size == ((short, long) if degrees % 180 else (long, short))
        right, bottom = image.width - 1, image.height - 1
        middle = image.width // 2, image.height // 2
        sides = {
            "left": (0, middle[1]),
            "right": (right, middle[1]),
            "top": (middle[0], 0),
            "bottom": (middle[0], bottom),
        }
        assert min(sides, key=lambda side: image.getpixel(sides[side])) == dark
        credit = json_lines(tmp_path / "x" / "out.json.credits.jsonl")[0]
        assert (credit["turned_deg"], credit["max_size"]) == (degrees, size)


def test_a_row_with_an_image_that_was_turned_asks_for_no_more_turning(
    tmp_path: Path, server: ImageServer
) -> None:
    embed(tmp_path, [row_at(server, 1, rotation_deg=90)], output_format="jsonl")
    (record,) = json_lines(tmp_path / "x" / "out.json")
    assert record["rotation_deg"] == 0
    assert json_lines(tmp_path / "x" / "out.json.credits.jsonl")[0]["turned_deg"] == 90


def test_credits_name_the_author_and_licence_of_every_image(
    tmp_path: Path, server: ImageServer
) -> None:
    server.answers[f"{3:012d}.jpg"] = [lambda request: web.Response(status=404)]
    rows = [row_at(server, number) for number in (1, 2, 3)]
    embed(tmp_path, [*rows, row_at(server, 1, id="again")])
    assert json_lines(tmp_path / "x" / "out.json.credits.jsonl") == [
        {
            "image": row["image"],
            **{name: row[name] for name in ("image_url", "image_license", "image_credit")},
            "turned_deg": 0,
            "max_size": None,
        }
        for row in rows[:2]
    ]


OWN = """
licenses:
  - id: own-1.0
    title: Our own licence
    hub: other
    url: https://example.org/own
    commercial: true
    derivatives: true
    source_url: https://example.org/own
    clause: "1"
    checked_on: 2026-11-22
    evidence: primary
"""
LICENSES = ["CC-BY-2.0", "CC-BY-NC-2.0", "CC-BY-ND-2.0", "CC-BY-SA-2.0", "Own-1.0", None]


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        (None, ["CC-BY-2.0", "CC-BY-SA-2.0"]),
        (["commercial"], ["CC-BY-2.0", "CC-BY-SA-2.0"]),
        (["any"], LICENSES),
        (["cc-by-nc-2.0"], ["CC-BY-NC-2.0"]),
        (["commercial", "CC-BY-ND-2.0"], ["CC-BY-2.0", "CC-BY-ND-2.0", "CC-BY-SA-2.0"]),
    ],
)
def test_only_images_under_the_licences_asked_for_are_fetched(
    asked: list[str] | None, kept: list[str | None], tmp_path: Path, server: ImageServer
) -> None:
    rows = [row_at(server, n, image_license=name) for n, name in enumerate(LICENSES)]
    outcome = embed(tmp_path, rows, "jsonl", image_licenses=asked)
    written = json_lines(tmp_path / "x" / "out.json")
    assert [row["image_license"] for row in written] == kept
    assert server.asked_for.total() == len(kept)
    assert outcome.excluded == {
        name or "an unknown licence": 1 for name in LICENSES if name not in kept
    }
    assert outcome.missing == {}


def test_credits_go_when_another_export_takes_the_place(
    tmp_path: Path, server: ImageServer
) -> None:
    embed(tmp_path, [row_at(server, 1)])
    assert (tmp_path / "x" / "out.json.credits.jsonl").is_file()
    output = tmp_path / "x" / "out.json"
    export.export(tmp_path / "out", "llava-instruct", output_path=output, overwrite=True)
    kept = [f"images/{1:012d}.jpg", "out.json", "out.json.LICENSE", "out.json.provenance.json"]
    assert files_below(tmp_path / "x") == kept


def test_text_has_no_image_whose_licence_could_be_wrong(
    tmp_path: Path, server: ImageServer
) -> None:
    text = row(2, modality="text", image=None, image_url=None, image_license=None)
    outcome = embed(tmp_path, [row_at(server, 1), text])
    assert (outcome.rows, outcome.excluded, outcome.missing) == (2, {}, {})


def test_the_working_directory_is_a_place_too(
    tmp_path: Path, server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shards").mkdir()
    monkeypatch.chdir(tmp_path / "shards")
    small = replace(AT_ONCE, max_size=32)
    rows = [row_at(server, 1)]
    embed(tmp_path, rows, "webdataset", output_path=".", image_folder="..", fetching=small)
    assert [sample["jpg"].size for sample in samples(Path())] == [(32, 24)]
    assert files_below(Path()) == ["train-000000.tar"]
    assert (tmp_path.parent / f"{tmp_path.name}-32px" / f"{1:012d}.jpg").is_file()


def test_damaged_parquet_is_an_error_of_one_line(tmp_path: Path) -> None:
    out = repository(tmp_path / "out", {"train": [row(1)]})
    (file,) = out.rglob("*.parquet")
    for content in (file.read_bytes()[:-20], b"PAR1", b""):
        file.write_bytes(content)
        with pytest.raises(UsageError, match="got: "):
            export.export(out, "jsonl", output_path=tmp_path / "x.jsonl")
    assert files_below(tmp_path) == [f"out/{name}" for name in files_below(out)]


def many_motions(folder: Path) -> Path:
    """A release of several row groups, the second row of which no trainer of images takes."""
    rows = [row(1)] + [row(n, modality="motion", image=None) for n in range(2, 6000)]
    out = repository(folder, {"train": rows[:1]})
    (file,) = out.rglob("*.parquet")
    pq.write_table(dataset(rows).data.table, file, row_group_size=500)
    return out


def test_parquet_is_read_by_the_thread_that_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Arrow's own, in the midst of it when a process ends, would end that by SIGABRT.
    readers, seek = set(), LocalFileOpener.seek

    def noted(file: Any, *where: int) -> Any:
        readers.add(threading.get_ident())
        return seek(file, *where)

    monkeypatch.setattr(LocalFileOpener, "seek", noted)
    out = many_motions(tmp_path / "out")
    assert export.export(out, "jsonl", output_path=tmp_path / "x.jsonl").rows == 5999
    assert readers == {threading.get_ident()}


REFUSED = """
import os, sys
from mminstruct import cli
for _ in range(6):
    if not (child := os.fork()):
        cli.main(["export", sys.argv[1], "--format", "messages", "--output_path", sys.argv[2]])
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_an_export_that_is_refused_in_the_midst_of_its_rows_ends_with_its_exit_code(
    tmp_path: Path,
) -> None:
    out, path = many_motions(tmp_path / "out"), tmp_path / "x.jsonl"
    ended = subprocess.run(
        [sys.executable, "-c", REFUSED, str(out), str(path)], capture_output=True, text=True
    )
    assert ended.stdout.split() == ["2"] * 6
    assert ended.stderr.count("is about motion; use the format jsonl") == 6
    assert "terminate" not in ended.stderr


def test_licences_are_a_choice_without_fetching_too(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(OWN, encoding="utf-8")
    rows = [row(n, image_license=name) for n, name in enumerate(LICENSES)]
    out = repository(tmp_path / "out", {"train": rows})
    path = tmp_path / "x.jsonl"
    for asked, kept in ((None, 6), (["commercial"], 3), (["own-1.0"], 1)):
        more = {"licenses_file": own} if asked else {}
        outcome = export.export(
            out, "jsonl", output_path=path, image_licenses=asked, overwrite=True, **more
        )
        assert outcome.rows == len(json_lines(path)) == kept
    with pytest.raises(UsageError, match="did you mean 'cc-by-2.0'"):
        export.export(out, "jsonl", output_path=path, image_licenses=["cc-by-2"])
    with pytest.raises(UsageError, match="licenses: of no use"):
        export.export(out, "jsonl", output_path=path, licenses_file=own)
    with pytest.raises(UsageError, match="no row would be left; 0 rows, 6 left out for"):
        export.export(out, "jsonl", output_path=path, image_licenses=["CC0-1.0"], overwrite=True)
    assert len(json_lines(path)) == 1


def test_a_second_run_asks_only_for_what_is_missing(tmp_path: Path, server: ImageServer) -> None:
    rows = [row_at(server, number) for number in range(1, 5)]
    server.answers[f"{3:012d}.jpg"] = [lambda request: web.Response(status=404)]
    assert embed(tmp_path, rows).missing == {"HTTP 404": 1}
    server.answers.clear()
    outcome = embed(tmp_path, rows)
    assert (outcome.rows, outcome.missing) == (4, {})
    assert dict(server.asked_for) == {row["image"]: 2 if "3" in row["image"] else 1 for row in rows}
    assert files_below(tmp_path / "x") == [
        *(f"images/{row['image']}" for row in rows),
        "out.json",
        "out.json.LICENSE",
        "out.json.credits.jsonl",
        "out.json.provenance.json",
    ]


@pytest.mark.parametrize("case", FLAWED)
def test_a_file_in_the_folder_that_is_no_whole_image_is_fetched_again(
    case: str, tmp_path: Path, server: ImageServer
) -> None:
    folder = tmp_path / "x" / "images"
    folder.mkdir(parents=True)
    (folder / "000000000001.jpg").write_bytes(picture())
    (folder / "000000000002.jpg").write_bytes(FLAWED[case])
    outcome = embed(tmp_path, [row_at(server, 1), row_at(server, 2)])
    assert (outcome.rows, outcome.missing) == (2, {})
    assert dict(server.asked_for) == {"000000000002.jpg": 1}
    assert (folder / "000000000002.jpg").read_bytes() == picture()


def test_shards_are_filled_with_what_was_fetched(tmp_path: Path, server: ImageServer) -> None:
    rows = [row_at(server, 1), row_at(server, 2)]
    embed(tmp_path, rows, "webdataset", output_path=tmp_path / "x" / "shards")
    read = samples(tmp_path / "x" / "shards")
    assert [sample["json"] for sample in read] == rows
    assert [sample["jpg"].size for sample in read] == [(64, 48)] * 2


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: ImageServer) -> Path:
    """A working directory with a release of two images, in ./out, as generate writes it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")

    def at_server(captions: dict[str, Any], instances: dict[str, Any]) -> None:
        for image in captions["images"]:
            image["coco_url"] = server.address(image["file_name"])

    coco_files(tmp_path / "cache", 2, edit=at_server)
    assert cli.run(["generate", "COCO2017", "--dry_run", "--output_path", "out"]) == DONE
    return tmp_path


@pytest.mark.parametrize("output_format", TRAINERS)
def test_a_command_line_writes_each_form(
    output_format: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["export", "out", "--format", output_format]) == DONE
    path = export.default_output("out", output_format)
    assert f"6 rows; written to {path}" in capsys.readouterr().err
    read = READERS[output_format](path, None)
    assert len(read) == 6
    assert {image for _, image in read} == {f"{1:012d}.jpg", f"{2:012d}.jpg"}


@pytest.mark.parametrize("edit", ["missing", "licence", "use", "garbled"])
def test_a_release_whose_licence_is_not_what_was_written_is_refused(
    edit: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "out" / "LICENSE"
    text = file.read_text()
    if edit == "missing":
        file.unlink()
    elif edit == "garbled":
        (folder / "out" / "provenance.json").write_text('{"tool": "mminstruct", "licensing": 1}')
    else:
        old = "dataset: unknown" if edit == "licence" else "text: not known"
        assert old in text
        file.write_text(
            text.replace(old, old.replace("unknown", "MIT").replace("not known", "yes"))
        )
    assert cli.run(["export", "out", "--format", "jsonl"]) == USAGE
    error = capsys.readouterr().err
    said = {
        "missing": "out: LICENSE is missing; put it back or run mminstruct generate again",
        "licence": "out: LICENSE doesn't say 'The text of this dataset: unknown', which is the",
        "use": "out: LICENSE doesn't say 'Commercial use: text: not known; images: all 2 may be "
        "used commercially, so none of 6 rows is known to be free.', which is the verdict in",
        "garbled": "out: provenance.json: expected what mminstruct generate notes there",
    }
    assert said[edit] in error
    assert not Path("both.jsonl").exists()


def test_a_provenance_file_of_another_program_says_nothing_of_a_licence(tmp_path: Path) -> None:
    out = repository(tmp_path / "out", {"train": [row(1)]})
    (out / "provenance.json").write_text('{"made by": "hand"}')
    assert export.export(out, "jsonl", output_path=tmp_path / "x.jsonl").rows == 1


@pytest.mark.parametrize("output_format", TRAINERS)
def test_generate_writes_the_same_files(output_format: str, folder: Path) -> None:
    cli.run(["export", "out", "--format", output_format, "--output_path", "a/out.json"])
    arguments = ["--output_format", output_format, "--output_path", "b/out.json"]
    assert cli.run(["generate", "COCO2017", "--dry_run", *arguments]) == DONE
    exported, generated = READERS[output_format], READERS[output_format]
    assert sorted(exported(Path("a/out.json"), None)) == sorted(generated(Path("b/out.json"), None))


def test_types_and_splits_are_a_choice(folder: Path) -> None:
    coco_files(folder / "cache", 3, split="val")
    splits = ["--splits", "train", "validation"]
    cli.run(["generate", "COCO2017", "--dry_run", "--output_path", "both", *splits])
    kinds = ["complex_reasoning", "conversation"]
    for dashed in (
        ["--types", *kinds, "--splits", "validation", "--output-path", "some.jsonl"],
        ["--splits", "validation", "--output_path", "some.jsonl", "--types", *kinds],
    ):
        assert cli.run(["export", "both", "--format", "jsonl", *dashed]) == DONE
        rows = json_lines(Path("some.jsonl"))
        assert [row["type"] for row in rows] == [kind for kind in kinds for _ in range(3)]
    assert cli.run(["export", "both", "--format", "jsonl"]) == DONE
    assert len(json_lines(Path("both.jsonl"))) == 15
    twice = ["--types", "conversation", "conversation", "--splits", "train", "train"]
    assert cli.run(["export", "both", "--format", "jsonl", *twice]) == DONE
    assert len({row["id"] for row in json_lines(Path("both.jsonl"))}) == 2
    assert len(json_lines(Path("both.jsonl"))) == 2


def test_images_are_fetched_from_a_command_line(folder: Path, server: ImageServer) -> None:
    arguments = ["--format", "webdataset", "--images", "embed", "--max-size", "32"]
    arguments += ["--private_addresses"]
    more = ["--max_concurrency", "2", "--timeout", "10", "--max_retries", "0"]
    assert cli.run(["export", "out", *arguments, *more]) == DONE
    read = samples(Path("out-webdataset"))
    assert [sample["jpg"].size for sample in read] == [(32, 24)] * 6
    assert set(server.asked_for.values()) == {1}
    arguments[1] = "llava-instruct"
    assert cli.run(["export", "out", *arguments, "--image_folder", "images"]) == DONE
    assert len(as_llava_reads(Path("out.llava-instruct.json"), Path("images-32px"))) == 6
    assert set(server.asked_for.values()) == {1}


def test_a_missing_image_gives_exit_code_1(
    folder: Path, server: ImageServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers[f"{2:012d}.jpg"] = [lambda request: web.Response(status=404)]
    arguments = ["export", "out", "--format", "messages"]
    fetched = ["--images", "embed", "--private_addresses"]
    assert cli.run([*arguments, *fetched]) == INCOMPLETE
    error = capsys.readouterr().err
    assert "3 rows, 3 left out (HTTP 404 3); written to out.messages.jsonl" in error
    assert "out.messages.jsonl.missing.jsonl" in error
    Path("images", f"{1:012d}.jpg").unlink()
    path = ["--images", "path", "--image-folder", "images"]
    assert cli.run([*arguments, *path]) == USAGE
    error = capsys.readouterr().err
    first = Path("images", f"{1:012d}.jpg")
    assert f"would be left; 0 rows, 6 left out (no such file 6); the first is {first}\n" in error
    assert len(as_trl_reads(Path("out.messages.jsonl"), None)) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["out", "--format", "lava"], "got 'lava' (did you mean 'lavin'"),
        (["out"], "--format"),
        (["out", "--format", "jsonl", "--images", "some"], "got 'some'; choose from"),
        (["out", "--format", "jsonl", "--max_sise", "1"], "did you mean '--max_size'"),
        (["out", "--format", "jsonl", "--max_size", "big"], "--max_size"),
    ],
)
def test_a_wrong_flag_exits_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.run(["export", *arguments])
    assert exit_.value.code == USAGE
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: expected a dataset repository"),
        (["./nowhere/at/all"], "expected a dataset repository"),
        (["user/name"], "user/name: expected a dataset repository"),
        (["file.jsonl"], "expected the folder of a dataset repository, got a file"),
        (["empty"], "expected a dataset repository"),
        (["builders/coco2017_llava"], "expected rows, got what makes them"),
        (["foreign"], "got none of the columns id, modality, image, image_url,"),
        (["out", "--types", "detial"], "no instruction type 'detial' (did you mean 'detail'?)"),
        (["out", "--splits", "trian"], "has no split 'trian' (did you mean 'train'?)"),
        (["out", "--images", "path"], "image_folder: expected the folder with the images"),
        (["out", "--images", "path", "--image_folder", "no"], "image_folder no: no such folder"),
        (["out", "--image_folder", "out"], "image_folder: of no use with images 'none'"),
        (["out", "--max_size", "64"], "fetched, got images 'none'"),
        (["out", "--images", "url", "--max_retries", "1"], "fetched, got images 'url'"),
        (["out", "--images", "embed", "--max_size", "0"], "max_size: expected more than 0, got 0"),
        (["out", "--images", "embed", "--max_retries", "-1"], "max_retries: expected 0 or more"),
        (["out", "--image_licenses", "MIT-0"], "unknown licence 'MIT-0'"),
        (["out", "--output_path", "empty"], "expected a file, got a folder"),
        (["out", "--format", "webdataset"], "expected one of path, embed for webdataset"),
        (["out", "--format", "lavin", "--images", "url"], "one of none, path, embed for lavin"),
    ],
)
def test_what_a_user_can_fix_prints_one_line_and_exits_2(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    repository(Path("out"), {"train": [row(1), row(1, "detail")]})
    Path("file.jsonl").write_text("{}\n")
    Path("empty").mkdir()
    Path("foreign").mkdir()
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet("foreign/train.parquet")
    capsys.readouterr()
    assert cli.run(["export", "--format", "jsonl", *arguments]) == USAGE
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not Path("both.jsonl").exists()


def test_a_release_on_the_hub_is_exported_as_one_on_disk(tmp_path: Path) -> None:
    rows = rows_of(range(1, 3))
    out = repository(tmp_path / "out", {"train": rows[:4], "validation": rows[4:]})
    upload = (
        "from huggingface_hub import HfApi; api = HfApi(); "
        "api.create_repo('org/name', repo_type='dataset'); "
        f"api.upload_folder(repo_id='org/name', repo_type='dataset', folder_path={str(out)!r})"
    )
    with HubServer() as hub:
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        env |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf")}
        env["HF_HUB_DISABLE_XET"] = "1"  # which the server doesn't offer
        for command in (
            (sys.executable, "-c", upload),
            (*COMMAND, "export", "org/name", "--format", "sharegpt", "--splits", "train"),
        ):
            process = subprocess.Popen(
                command, stderr=subprocess.PIPE, text=True, env=env, cwd=tmp_path
            )
            ended = finish(process)
            assert ended.code == 0, ended.err
    read = as_llama_factory_reads(tmp_path / "name.sharegpt.json", None)
    assert read == [(turns_of(row), row["image"]) for row in rows[:4]]


def test_a_server_that_is_down_gives_exit_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with ImageServer() as gone:
        repository(tmp_path / "out", {"train": [row_at(gone, number) for number in range(30)]})
    arguments = ["--format", "jsonl", "--images", "embed", "--max_retries", "0"]
    arguments += ["--private_addresses"]
    assert cli.run(["export", "out", *arguments]) == STOPPED
    error = capsys.readouterr().err
    assert "in a row could not be fetched" in error
    assert "every image that was fetched is kept; run the same command again" in error


def test_an_export_that_is_interrupted_keeps_its_images(folder: Path, server: ImageServer) -> None:
    blocked = threading.Event()

    async def block(request: web.Request) -> web.StreamResponse:
        blocked.set()
        await until_gone(request)
        return web.Response()

    server.answers[f"{2:012d}.jpg"] = [block]
    command = (*COMMAND, "export", "out", "--format", "llava-instruct", "--images", "embed")
    command += ("--private_addresses",)
    for number, code in ((signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert blocked.wait(PATIENCE_S)
        while not Path("images", f"{1:012d}.jpg").is_file():
            time.sleep(0.01)
        process.send_signal(number)
        ended = finish(process)
        assert ended.code == code, ended.err
        assert "every image that was fetched is kept" in ended.err.lower()
        assert "Traceback" not in ended.err
        assert not Path("out.llava-instruct.json").exists()
        assert files_below(Path("images")) == [f"{1:012d}.jpg"]
        blocked.clear()
    server.answers.clear()
    assert finish(subprocess.Popen(command, stderr=subprocess.PIPE, text=True)).code == DONE
    assert server.asked_for == {f"{1:012d}.jpg": 1, f"{2:012d}.jpg": 3}
    assert len(as_llava_reads(Path("out.llava-instruct.json"), Path("images"))) == 6


PAGE = (Path(__file__).parents[1] / "docs" / "exports.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^mminstruct export .*|(?<=`)mminstruct export instruct [^`]*", PAGE, re.M)


@pytest.fixture
def instruct(folder: Path, server: ImageServer) -> Path:
    """A release in ./instruct, and its images where the page has them."""
    (folder / "out").rename("instruct")
    for name in ("coco/train2017/", "coco/train2014/COCO_train2014_"):
        for number in (1, 2):
            path = Path(f"{name}{number:012d}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture())
    return folder


def test_the_page_has_a_command_and_a_way_with_images_for_every_form() -> None:
    shown = [command.split()[4] for command in COMMANDS]
    assert set(shown) == export.FORMATS.keys()
    table = re.findall(r"^\| `([\w-]+)` \| (\S+) \| `mminstruct", PAGE, re.M)
    assert table == [(name, form.reader) for name, form in export.FORMATS.items()]
    for images in export.IMAGES:
        assert f"| `{images}` |" in PAGE


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_works(command: str, instruct: Path) -> None:
    arguments = shlex.split(command)[1:]
    own = ["--private_addresses"] if "embed" in arguments else []  # the images are on loopback
    assert cli.run([*arguments, *own]) == DONE
    output = export.default_output("instruct", arguments[3])
    beside, whole = Path(f"{output}.LICENSE").read_text(), Path("instruct/LICENSE").read_text()
    if "--types" in command:
        beside = beside.replace("of 2 rows", "of 6 rows")
    if "embed" in arguments or arguments[3] in ("webdataset", "parquet"):
        assert "The images of COCO 2017 are included where rows" in beside
        whole = whole.replace("not included", "included where rows are about them, as listed below")
        beside = beside[: beside.index("\n\nImages that are included")] + "\n"
    assert beside == whole
    if arguments[3] == "webdataset":
        assert len(samples(output)) == 6
    elif arguments[3] == "parquet":
        rows = datasets.load_dataset(str(output), cache_dir="hf")
        assert [len(part) for part in rows.values()] == [6]
        assert all(row["image"].size for part in rows.values() for row in part)
    elif arguments[3] in READERS:
        folder = (
            Path(arguments[arguments.index("--image_folder") + 1]) if "path" in command else None
        )
        read = READERS[arguments[3]](output, folder)
        assert len(read) == (2 if "--types" in command else 6)


def test_the_page_shows_what_a_row_becomes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = ("What lies on the sofa?", "A brown dog.", "Is it asleep?", "Yes, its eyes are closed.")
    messages = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant") * 2, texts, strict=True)
    ]
    repository(tmp_path / "instruct", {"train": [row(42, messages=messages)]})
    for name in ("000000000042.jpg", "COCO_train2014_000000000042.jpg"):
        (tmp_path / "coco" / "train2017").mkdir(parents=True, exist_ok=True)
        (tmp_path / "coco" / "train2017" / name).write_bytes(picture())
    blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]
    forms = ["llava-instruct", "sharegpt", "messages", "axolotl", "ms-swift", "lavin"]
    for output_format, shown in zip(forms, blocks, strict=True):
        outcome = export.export(
            "instruct", output_format, images="path", image_folder="coco/train2017"
        )
        written = json.loads(outcome.path.read_text(encoding="utf-8"))
        assert (written[0] if isinstance(written, list) else written) == shown


def test_the_python_of_the_page_works(instruct: Path) -> None:
    for output_format in ("messages", "webdataset", "parquet"):
        export.export("instruct", output_format, images="path", image_folder="coco/train2017")
    trl, shards, parquet, python = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(trl, "exports.md", "exec"), names)  # noqa: S102
    assert [image.size for image in names["rows"][0]["images"]] == [(64, 48)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        exec(compile(shards, "exports.md", "exec"), names)  # noqa: S102
        del names["shards"]
        gc.collect()
    assert names["image"].size == (64, 48)
    assert names["messages"][0]["role"] == "user"
    exec(compile(parquet, "exports.md", "exec"), names)  # noqa: S102
    assert (names["image"].size, len(names["rows"])) == ((64, 48), 6)
    exec(compile(python, "exports.md", "exec"), names)  # noqa: S102
    assert names["outcome"].rows == 6


def test_a_hub_that_cannot_be_reached_is_no_release_without_a_licence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(reading, "hf_hub_download", unreachable)
    with pytest.raises(HubError, match="user/name: LICENSE can't be fetched"):
        reading.read_terms("user/name", licenses.load())
