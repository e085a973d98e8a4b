"""The builders through `datasets.load_dataset`; also what `make compat` runs on older versions."""

from __future__ import annotations

import asyncio
import gc
import pickle
import shutil
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from conftest import coco_files
from dummy_data import write_all
from loopback import LoopbackServer, chat_completion, turns_for

import mminstruct
from mminstruct import loading, prompts, resources, sources
from mminstruct.builder import IncompleteWarning
from mminstruct.checks import Checker, Vocabulary
from mminstruct.completions.client import Client
from mminstruct.completions.store import ResponseStore
from mminstruct.errors import MMInstructError, RunStopped, UsageError
from mminstruct.rows.columns import FEATURES
from mminstruct.rows.mapping import stream_requests

COCO = "builders/coco2017_llava"
TYPES = ["conversation", "detail_description", "complex_reasoning"]


@pytest.fixture
def data_dir(tmp_path: Path) -> str:
    return str(write_all(tmp_path / "data", 6))


def load(path: str, *args: Any, cache: Path, **kwargs: Any) -> Any:
    """`load_dataset` with caches and a store of its own."""
    kwargs.setdefault("backend", "fake")
    kwargs.setdefault("response_store", str(cache / "responses.sqlite"))
    return datasets.load_dataset(path, *args, cache_dir=str(cache / "cache"), **kwargs)


@pytest.mark.parametrize("streaming", [False, True])
def test_where_a_place_is_given_from_python_nothing_else_is_read(
    streaming: bool, data_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    for place in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(MMInstructError, match="COCO2017, split 'train': .*is downloaded"):
            load(COCO, split="train", data_dir=str(place), cache=tmp_path, streaming=streaming)
    with pytest.raises(UsageError, match=r"^data_files: .* as data_dir"):
        load(COCO, split="train", data_files="x.json", cache=tmp_path, streaming=streaming)
    file = Path(data_dir) / "class-descriptions.csv"
    file.write_text("a,b", encoding="utf-8")
    with pytest.raises(MMInstructError, match=r"class-descriptions.csv is another file, against"):
        load(COCO, split="train", data_dir=str(file), cache=tmp_path, streaming=streaming)


def source_of(name: str, data_dir: str) -> dict[str, Any]:
    """Where the annotations of a builder are; your own are a description of theirs."""
    return {"source": f"{data_dir}/own.yaml"} if name == "own_llava" else {"data_dir": data_dir}


@pytest.mark.parametrize("name", loading.names())
def test_a_builder_gives_complete_unique_and_stable_rows(
    name: str, data_dir: str, tmp_path: Path
) -> None:
    given = {"split": "train", "limit": 3, **source_of(name, data_dir)}
    rows = load(f"builders/{name}", cache=tmp_path, **given)
    again = load(f"builders/{name}", cache=tmp_path / "again", **given)
    assert rows.features == FEATURES
    assert len(rows) == 9
    assert len(set(rows["id"])) == 9
    assert list(rows["type"]) == [kind for kind in TYPES for _ in range(3)]
    assert list(rows["image_id"])[:3] == sorted(rows["image_id"][:3])
    assert rows.to_list() == again.to_list()
    for row in rows:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) != []
        assert all(message["content"].strip() for message in row["messages"])
        kind = prompts.load(row["provenance"]["prompt_config"]).types[row["type"]]
        assert row["provenance"]["few_shots"] == kind.examples_shown
        assert row["provenance"]["finish_reason"] == "stop"


@pytest.mark.parametrize("name", loading.names())
def test_a_builder_says_what_it_is(name: str, data_dir: str) -> None:
    given = source_of(name, data_dir)
    builder = datasets.load_dataset_builder(f"builders/{name}", backend="fake", **given)
    script = loading.script_of(f"builders/{name}")
    assert script is not None
    cls = loading.builder_class(script)
    source = sources.get(given.get("source", cls.SOURCE)).info
    if cls.SOURCE:
        assert name.startswith(f"{cls.SOURCE.lower().replace('+', '_')}_")
        assert loading.find(cls.SOURCE, cls.PROMPT_CONFIG) == script
    assert builder.name == name
    assert source.title in builder.info.description
    assert builder.info.homepage == source.homepage
    assert builder.info.citation == source.citation
    assert builder.info.license == "unknown"  # the stand-in has no terms


def test_threads_that_load_at_once_all_get_their_rows_and_leave_nothing_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "builders" / "slow" / "slow.py"
    script.parent.mkdir(parents=True)
    script.write_text(
        "from __future__ import annotations\nimport dataclasses, time\n"
        "from mminstruct.builder import InstructBuilder\n"
        "@dataclasses.dataclass\nclass Own:\n    number: int = 1\n"
        "time.sleep(0.02)  # a look at it now finds no builder\n"
        "class Slow(InstructBuilder):\n    SOURCE, PROMPT_CONFIG = 'SAMPLE', 'llava'\n"
    )
    monkeypatch.chdir(tmp_path)
    looks_for_garbage = gc.get_threshold()
    load("builders/slow", "conversation", limit=1, cache=tmp_path / "first")

    def rows(number: int) -> int:
        cache = tmp_path / str(number)
        kinds = {"name": "conversation", "split": "train"}
        return len(load("builders/slow", limit=1 + number % 3, cache=cache, **kinds))

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(rows, range(12))) == [1, 2, 3] * 4
    assert (gc.get_freeze_count(), gc.get_threshold()) == (0, looks_for_garbage)


def test_a_misspelt_builder_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="no builder 'coco2017_lava'.*'coco2017_llava'"):
        datasets.load_dataset("builders/coco2017_lava", "conversation")


def test_a_fresh_store_is_asked_for_with_everything_and_a_number_is_one_in_both_spellings(
    data_dir: str, tmp_path: Path, server: LoopbackServer
) -> None:
    settings = {"backend": "openai", "model": "m", "base_url": server.url, "data_dir": data_dir}
    settings |= {"split": "train", "cache": tmp_path}
    load(COCO, temperature=0.0, top_p=1.0, **settings)
    asked = len(server.bodies)
    load(COCO, temperature=0, top_p=1, **settings)
    assert len(server.bodies) == asked > 0
    server.answer = lambda server, body: chat_completion(f"{turns_for(body)} Anew.")
    fresh = load(COCO, temperature=0, response_store=str(tmp_path / "fresh.sqlite"), **settings)
    assert len(server.bodies) == 2 * asked
    assert all(row["messages"][-1]["content"].endswith("Anew.") for row in fresh)


def test_a_builder_offers_a_config_for_all_types_and_one_for_each() -> None:
    assert datasets.get_dataset_config_names(COCO) == ["default", *TYPES]


@pytest.mark.parametrize("name", sorted({*loading.names()} - {"own_llava", "sample_llava"}))
def test_a_file_that_is_no_annotation_file_is_answered_with_the_folder(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "notes.json"
    path.write_text("{}")
    with pytest.raises(MMInstructError, match="give the folder that has"):
        load(f"builders/{name}", split="train", data_dir=str(path), cache=tmp_path)
    assert path.read_text() == "{}"


def test_one_type_can_be_asked_for_by_config_name(data_dir: str, tmp_path: Path) -> None:
    rows = load(COCO, "conversation", split="train", data_dir=data_dir, cache=tmp_path)
    assert set(rows["type"]) == {"conversation"}
    assert len(rows) == 6


@pytest.mark.parametrize("more", [{}, {"prompt_config": "own.yaml"}])
@pytest.mark.parametrize("types", [["detail_description"], "detail_description", TYPES])
def test_types_that_contradict_the_config_are_an_error(
    types: Any, more: dict[str, str], data_dir: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"types: the config 'conversation' is that type alone"):
        load(COCO, "conversation", types=types, data_dir=data_dir, cache=tmp_path, **more)


@pytest.mark.parametrize("types", [["conversation"], "conversation", [], None])
def test_types_that_repeat_the_config_are_none(types: Any, data_dir: str, tmp_path: Path) -> None:
    rows = load(COCO, "conversation", types=types, split="train", data_dir=data_dir, cache=tmp_path)
    assert set(rows["type"]) == {"conversation"}


def test_only_train_is_generated_unless_other_splits_are_asked_for(
    data_dir: str, tmp_path: Path
) -> None:
    assert list(load(COCO, data_dir=data_dir, cache=tmp_path)) == ["train"]
    both = load(COCO, data_dir=data_dir, splits=["validation", "train"], cache=tmp_path)
    assert list(both) == ["train", "validation"]


def test_several_processes_give_the_same_rows_in_the_same_order(
    data_dir: str, tmp_path: Path
) -> None:
    one = load(COCO, split="train", data_dir=data_dir, cache=tmp_path / "one")
    two = load(COCO, split="train", data_dir=data_dir, cache=tmp_path / "two", num_proc=2)
    assert two.to_list() == one.to_list()


def test_columns_that_go_to_another_process_take_arrow_arrays_there() -> None:
    there = pickle.loads(pickle.dumps(FEATURES))
    row = {"id": pa.array(["one"])}
    assert there.encode_example(row) is row


def test_a_stream_gives_the_same_rows_in_the_same_order(data_dir: str, tmp_path: Path) -> None:
    whole = load(COCO, split="train", data_dir=data_dir, cache=tmp_path / "one")
    stream = load(COCO, split="train", data_dir=data_dir, cache=tmp_path / "two", streaming=True)
    assert list(stream) == whole.to_list()


def test_a_stream_yields_rows_while_later_ones_are_not_even_asked_for(
    tmp_path: Path, server: LoopbackServer
) -> None:
    data_dir = coco_files(tmp_path / "coco", 40)
    stream = load(
        COCO,
        split="train",
        data_dir=str(data_dir),
        cache=tmp_path,
        streaming=True,
        backend="openai",
        model="m",
        base_url=server.url,
        max_concurrency=2,
    )
    assert next(iter(stream))["image_id"] == f"{1:012d}"
    assert len(server.bodies) < 60


def test_num_proc_shares_the_concurrency(tmp_path: Path, server: LoopbackServer) -> None:
    async def slow(server: LoopbackServer, body: dict[str, Any]) -> Any:
        await asyncio.sleep(0.02)
        return chat_completion(turns_for(body))

    server.answer = slow
    data_dir = str(coco_files(tmp_path / "coco", 20))
    settings = {"backend": "openai", "model": "m", "base_url": server.url, "max_concurrency": 6}
    rows = load(COCO, split="train", data_dir=data_dir, cache=tmp_path, num_proc=2, **settings)
    assert len(rows) == len(server.bodies) == 60
    assert server.max_in_flight <= 6


def test_an_edited_prompt_config_gives_new_rows(
    data_dir: str, tmp_path: Path, server: LoopbackServer
) -> None:
    own = tmp_path / "own.yaml"
    shipped = (resources.folder("prompt_configs") / "llava.yaml").read_text(encoding="utf-8")
    text = shipped.replace("name: llava", "name: own", 1)
    settings = {"backend": "openai", "model": "m", "base_url": server.url}
    own.write_text(text, encoding="utf-8")
    for sent, content in ((6, text), (6, text), (12, text.replace("version: 1", "version: 2", 1))):
        own.write_text(content.replace("You ", "You  ", sent // 6 - 1), encoding="utf-8")
        rows = load(
            COCO, "conversation", split="train", data_dir=data_dir, cache=tmp_path,
            prompt_config=str(own), **settings,
        )  # fmt: skip
        assert len(server.bodies) == sent
        assert rows[0]["provenance"]["prompt_hash"] == prompts.load(str(own)).whole.hash


@pytest.mark.parametrize(
    "change", [{"model": "other"}, {"temperature": 0.1}, {"top_p": 0.5}, {"max_tokens": 99}]
)
def test_another_model_or_sampling_value_gives_new_rows(
    change: dict[str, Any], data_dir: str, tmp_path: Path, server: LoopbackServer
) -> None:
    settings = {"backend": "openai", "model": "m", "base_url": server.url, "data_dir": data_dir}
    load(COCO, split="train", cache=tmp_path, **settings)
    load(COCO, split="train", cache=tmp_path, **{**settings, **change})
    assert len(server.bodies) == 36


def test_another_concurrency_or_patience_reuses_the_prepared_rows(
    data_dir: str, tmp_path: Path, server: LoopbackServer
) -> None:
    settings = {"backend": "openai", "model": "m", "base_url": server.url, "data_dir": data_dir}
    first = load(COCO, split="train", cache=tmp_path, **settings)
    second = load(
        COCO, split="train", cache=tmp_path, max_concurrency=3, timeout_s=9.0, max_retries=1,
        **settings,
    )  # fmt: skip
    assert first.cache_files == second.cache_files
    assert len(server.bodies) == 18


def test_the_store_alone_gives_the_same_rows_and_counts_again(
    tmp_path: Path, server: LoopbackServer
) -> None:
    refusing = True

    def of_every_kind(server: LoopbackServer, body: dict[str, Any]) -> Any:
        kind = sum(body["messages"][-1]["content"].encode()) % 5
        if kind == 0:
            return chat_completion("?")
        if kind == 1:
            text = f"{turns_for(body)}\n\nQuestion: And?\nAnswer: It is cut"
            return chat_completion(text, finish_reason="length")
        if kind == 2 and refusing:
            return 400, {}, {"error": {"message": "no"}}
        return chat_completion(turns_for(body))

    server.answer = of_every_kind
    settings = {"backend": "openai", "model": "m", "base_url": server.url, "seed": 1}
    data_dir = str(coco_files(tmp_path / "coco", 12))
    runs = []
    for refusing in (True, True, False, False):  # the last one finds all answers in the store
        sent = len(server.bodies)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", IncompleteWarning)
            rows = load(COCO, split="train", data_dir=data_dir, cache=tmp_path, **settings)
        assert bool(warned) == refusing, [str(warning.message) for warning in warned]
        counts = [p.read_text("utf-8") for p in (tmp_path / "cache").rglob("report-*.json")]
        runs.append((rows.to_list(), counts, len(server.bodies) - sent))
        shutil.rmtree(tmp_path / "cache")
    (first, counts, sent), again, whole, from_store = runs
    refused = again[2]
    assert (first, counts) == again[:2]
    assert whole[:2] == from_store[:2]
    assert (sent, whole[2], from_store[2]) == (36, refused, 0)
    assert 0 < refused < 36
    assert [row for row in whole[0] if row in first] == first != whole[0]
    assert any("truncated" in row["provenance"]["notes"] for row in first)
    assert '"rejected": {"conversation": {"no_labels"' in counts[0]


def test_more_rows_than_one_write_takes_come_out_whole_and_in_order(tmp_path: Path) -> None:
    data_dir = str(coco_files(tmp_path / "coco", 700))
    kinds, looks_for_garbage = TYPES[:2], gc.get_threshold()
    settings = {"split": "train", "data_dir": data_dir, "types": kinds, "cache": tmp_path}
    asked = load(COCO, **settings)
    shutil.rmtree(tmp_path / "cache")
    stored = load(COCO, **settings)
    assert list(stored["id"]) == [
        f"coco2017-{n:012d}-{kind}" for kind in kinds for n in range(1, 701)
    ]
    assert stored.to_list() == asked.to_list()
    shutil.rmtree(tmp_path / "cache")
    assert load(COCO, num_proc=2, **settings).to_list() == asked.to_list()
    shutil.rmtree(tmp_path / "cache")
    assert list(load(COCO, streaming=True, **settings)) == asked.to_list()
    assert (gc.get_freeze_count(), gc.get_threshold()) == (0, looks_for_garbage)


def test_a_slow_answer_holds_up_nobody_and_later_rows_wait_for_it(
    tmp_path: Path, server: LoopbackServer
) -> None:
    data_dir = str(coco_files(tmp_path / "coco", 90))
    others = asyncio.Semaphore(0)

    async def answer(server: LoopbackServer, body: dict[str, Any]) -> dict[str, Any]:
        if len(server.bodies) == 2:
            for _ in range(80):
                await asyncio.wait_for(others.acquire(), 60)
        others.release()
        return chat_completion(turns_for(body))

    server.answer = answer
    rows = load(
        COCO,
        "conversation",
        split="train",
        data_dir=data_dir,
        cache=tmp_path,
        backend="openai",
        model="m",
        base_url=server.url,
        max_concurrency=4,
        timeout=120.0,
    )
    assert list(rows["id"]) == [f"coco2017-{n:012d}-conversation" for n in range(1, 91)]
    assert len(server.bodies) == 90


def test_no_more_is_begun_than_is_to_be_taken_soon(tmp_path: Path) -> None:
    class Counting(Client):
        begun = 0

        def start(self, work: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                self.begun += 1
            return super().start(work)

    builder = datasets.load_dataset_builder(
        COCO,
        "conversation",
        split="train",
        data_dir=str(coco_files(tmp_path / "coco", 20)),
        cache_dir=str(tmp_path / "cache"),
        backend="fake",
        max_concurrency=1,
    )
    plan = replace(builder.recipe.plan, checker=Checker(Vocabulary()))
    store = ResponseStore(tmp_path / "responses.sqlite")
    with Counting(builder.recipe.make_backend(1.0), store) as client:
        rows = stream_requests(builder.requests()["train"], plan, client)
        begun = [client.begun for _ in rows]
    assert begun == [*range(9, 21), *[20] * 8]


def test_a_builder_is_found_from_any_directory(
    data_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(load("builders/sample_llava", split="train", limit=1, cache=tmp_path)) == 3


def test_a_builder_in_the_working_directory_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "builders" / "sample_llava"
    folder.mkdir(parents=True)
    original = resources.folder("builders") / "sample_llava" / "sample_llava.py"
    text = original.read_text(encoding="utf-8").replace('"llava"', '"llava_smallcontext"')
    (folder / "sample_llava.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    rows = load("builders/sample_llava", split="train", limit=1, cache=tmp_path)
    assert rows[0]["provenance"]["prompt_config"] == "llava_smallcontext"


def test_rows_can_be_loaded_where_an_event_loop_runs_as_in_a_notebook(tmp_path: Path) -> None:
    async def cell() -> int:
        return len(load("builders/sample_llava", split="train", limit=2, cache=tmp_path))

    assert asyncio.run(cell()) == 6


def test_other_paths_are_none_of_our_business(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    rows = datasets.load_dataset(
        "json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path)
    )
    assert list(rows["a"]) == [1, 2]


@pytest.mark.skipif(
    not datasets.__version__.startswith("3."), reason="later versions run no scripts of their own"
)
def test_datasets_3_also_loads_the_folder_natively(data_dir: str, tmp_path: Path) -> None:
    folder = tmp_path / "coco2017_llava"  # not below builders/, so not ours to resolve
    shutil.copytree(resources.folder("builders") / "coco2017_llava", folder)
    rows = load(
        str(folder), split="train", data_dir=data_dir, cache=tmp_path, trust_remote_code=True
    )
    assert len(rows) == 18


def test_a_revision_is_that_of_the_model(data_dir: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="model source 'fake' has no option 'revision'"):
        load(COCO, split="train", data_dir=data_dir, cache=tmp_path, revision="abc")
    (tmp_path / "model").mkdir()
    pytest.importorskip("transformers", reason="the extra transformers isn't installed")
    with pytest.raises(UsageError, match="revision: 'model' is on this machine and has none"):
        load(
            COCO, split="train", data_dir=data_dir, cache=tmp_path,
            backend="transformers", model=str(tmp_path / "model"), revision="abc",
        )  # fmt: skip


def test_trust_in_a_script_is_no_trust_in_the_code_of_a_model() -> None:
    # Later versions than 3 take it out of the arguments themselves, and say so.
    with pytest.raises(UsageError, match='give engine={"trust_remote_code": True}'):
        datasets.load.dataset_module_factory(COCO, trust_remote_code=True)
    datasets.load.dataset_module_factory(COCO, trust_remote_code=False)


def test_importing_twice_wraps_once() -> None:
    wrapped = datasets.load.dataset_module_factory
    loading.register()
    assert datasets.load.dataset_module_factory is wrapped
    assert mminstruct.__version__


def cause(error: BaseException) -> BaseException:
    """The error of ours that `datasets` wrapped."""
    while not isinstance(error, MMInstructError) and error.__cause__ is not None:
        error = error.__cause__
    return error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"modle": "x"}, "did you mean 'model'"),
        ({"name": "conversatoin"}, "did you mean 'conversation'"),
        ({"types": ["detail"]}, "detail_description"),
        ({"splits": ["test"]}, "train, validation"),
        ({"backend": "opnai"}, "did you mean 'openai'"),
        ({"backend": "openai"}, "needs a model name"),
        ({"limit": 0}, "limit: expected at least 1, got 0"),
        ({"max_tokens": 2**31}, "max_tokens: expected between 1 and 2147483647, got 2147483648"),
        ({"top_p": 1.5}, "top_p: expected between 0.0 and 1.0, got 1.5"),
        ({"backend": "openai", "model": "m", "base_url": "localhost:8000"}, "http://localhost"),
        ({"prompt_config": "lava"}, "did you mean 'llava'"),
    ],
)
def test_a_wrong_argument_says_what_is_right(
    arguments: dict[str, Any], words: str, data_dir: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        load(COCO, split="train", data_dir=data_dir, cache=tmp_path, **arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"limit": "3"}, "limit: expected an integer, got '3'"),
        ({"limit": 2.5}, "limit: expected an integer, got 2.5"),
        ({"limit": np.int64(3)}, f"limit: expected an integer, got {np.int64(3)!r}"),
        ({"limit": True}, "limit: expected an integer, got True"),
        ({"temperature": "hot"}, "temperature: expected a number, got 'hot'"),
        ({"max_tokens": "100"}, "max_tokens: expected an integer, got '100'"),
        ({"seed": "a"}, "seed: expected an integer, got 'a'"),
        ({"seed": False}, "seed: expected an integer, got False"),
        ({"commercial": "no"}, "commercial: expected True or False, got 'no'"),
        ({"model": 7}, "model: expected text, got 7"),
        ({"max_cost": [1]}, "max_cost: expected a number, got [1]"),
        ({"source_options": {"mirrored": 1}}, "mirrored: expected True or False, got 1"),
        ({"engine": 3}, "engine 3; choose from: local, ray"),
        ({"types": 5}, "types: expected a list of texts, got 5"),
        ({"types": [5]}, "types: expected a list of texts, got [5]"),
        ({"splits": {"a": 1}}, "splits: expected a list of texts, got {'a': 1}"),
        ({"base_url": 8080}, "base_url: expected a list of texts, got 8080"),
        ({"engine": {"n_ctx": "4096"}}, "n_ctx: expected an integer, got '4096'"),
        ({"n_threads": 1.5}, "n_threads: expected an integer, got 1.5"),
    ],
)
def test_a_value_of_another_type_is_named(
    arguments: dict[str, Any], words: str, data_dir: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        load(COCO, split="train", data_dir=data_dir, cache=tmp_path, **arguments)
    assert str(caught.value) == words


def test_values_of_the_right_types_are_taken(data_dir: str, tmp_path: Path) -> None:
    given = {"limit": 1, "temperature": 1, "seed": 3, "timeout_s": 5, "commercial": False}
    rows = load(COCO, split="train", data_dir=data_dir, cache=tmp_path, **given)
    assert len(rows) == 3


def test_integers_that_rows_do_not_hold_may_be_of_any_size(data_dir: str, tmp_path: Path) -> None:
    for huge in (2**70, -(2**70)):
        given = {"max_tokens": 2**31 - 1, "seed": huge, "limit": 2**70, "context_window": 2**70}
        rows = load(COCO, split="train", data_dir=data_dir, cache=tmp_path, **given)
        assert {row["max_tokens"] for row in rows["provenance"]} == {2**31 - 1}


def test_a_run_without_a_single_row_says_why(
    data_dir: str, tmp_path: Path, server: LoopbackServer
) -> None:
    server.answer = lambda server, body: chat_completion("I would rather not.")
    with pytest.raises(RunStopped, match=r"no row in split 'train': 0 rows, 6 rejected \(no_label"):
        load(
            COCO, "conversation", split="train", data_dir=data_dir, cache=tmp_path,
            backend="openai", model="m", base_url=server.url,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"data_dir": 7}, "data_dir: expected text, got 7"),
        ({"config_id": "mine"}, "unknown argument 'config_id'"),
        ({"config_kwargs": {}}, "unknown argument 'config_kwargs'"),
        ({"like": "x"}, "unknown argument 'like'"),
    ],
)
def test_an_argument_of_datasets_own_is_checked_as_well(
    arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        datasets.load_dataset_builder("builders/sample_llava", backend="fake", **arguments)


def test_configs_can_be_compared_once_they_are_looked_up() -> None:
    one, other, again = (
        datasets.load_dataset_builder("builders/sample_llava", backend="fake", limit=limit).config
        for limit in (1, 2, 1)
    )
    assert one != other
    assert one == again


def test_what_is_public_is_there_once_the_package_is_imported() -> None:
    names = "annotations backends builder errors export licenses prompts schema sources"
    line = f"import mminstruct; [getattr(mminstruct, n).__name__ for n in {names.split()}]"
    subprocess.run([sys.executable, "-c", line], check=True, timeout=60)
