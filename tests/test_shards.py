"""Shards of a run, and the release that their parts make together."""

from __future__ import annotations

import asyncio
import json
import pickle
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pytest
from conftest import coco_files
from datasets.distributed import split_dataset_by_node
from instruct_rows import row
from loopback import LoopbackServer, chat_completion, turns_for
from origins import origin
from running import Place, finish
from test_kill import mark, wait_until

import mminstruct
from mminstruct import cli
from mminstruct.cli.arguments import USAGE
from mminstruct.cli.console import DONE, INCOMPLETE
from mminstruct.cli.runs import find_shard
from mminstruct.completions.store import ResponseStore
from mminstruct.errors import NoRows, RunStopped, UsageError
from mminstruct.releases import repository
from mminstruct.rows.columns import FEATURES

SMALL = 3 * (4 + 2 + 4)  # requests to two splits of COCO and one of SAMPLE


def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
    """Most answers are good; some give no row, and some requests are refused."""
    kind = sum(mark(body).encode()) % 8
    if kind == 1:
        return chat_completion("I'm sorry, but I can't help with that.")
    if kind == 2:
        return (400, {}, {"error": {"message": "not this one"}})
    return chat_completion(turns_for(body), finish_reason="length" if kind == 3 else "stop")


@pytest.fixture(scope="module")
def running() -> Iterator[LoopbackServer]:
    """One server for all, as its address is in the keys of answers."""
    with LoopbackServer(answer) as server:
        yield server


@pytest.fixture
def server(running: LoopbackServer, monkeypatch: pytest.MonkeyPatch) -> LoopbackServer:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767225600")
    running.answer = answer
    running.bodies.clear()
    return running


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "coco"
    coco_files(folder, 5)

    def edit(captions: Any, instances: Any) -> None:
        for entry in captions["annotations"]:
            entry["caption"] = f"Once more: {entry['caption']}"

    return coco_files(folder, 2, split="val", edit=edit)


def generate(folder: Path, server: LoopbackServer, data: Path, **more: Any) -> Any:
    """A run of two sources, one of which has two splits, with nothing to reuse but in a folder."""
    return mminstruct.generate(
        ["COCO2017", "SAMPLE"],
        splits=["all"],
        **{
            "limit": 4,
            "seed": 5,
            "backend": "openai",
            "model": "m",
            "base_url": server.url,
            "data_dir": str(data),
            "cache_dir": str(folder / "cache"),
            "output_path": folder / "out",
            "command": lambda recipe: "as before",
            **more,
        },
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def in_one_piece(
    tmp_path_factory: pytest.TempPathFactory, running: LoopbackServer, data: Path
) -> dict[str, bytes]:
    """The release of the run without shards."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch, pytest.warns(match="Load again"):
        patch.setenv("SOURCE_DATE_EPOCH", "1767225600")
        generate(folder, running, data, response_store=str(folder / "r.sqlite"))
    assert len(running.bodies) == SMALL
    return contents(folder / "out")


@pytest.mark.filterwarnings("ignore:.*Load again")
@pytest.mark.parametrize("count", [1, 3, 7, 64])
def test_merged_parts_are_the_release_of_the_run_in_one_piece_and_nothing_is_asked_twice(
    count: int,
    in_one_piece: dict[str, bytes],
    tmp_path: Path,
    server: LoopbackServer,
    data: Path,
) -> None:
    lines = in_one_piece["rejected.jsonl"].decode()
    assert '"rejected"' in lines and '"failed"' in lines
    for index in reversed(range(count)):
        part = generate(tmp_path, server, data, shard=(index, count))
        assert part.written.path == tmp_path / "out.parts" / f"{index}-of-{count}"
    assert Counter(map(mark, server.bodies)).most_common(1)[0][1] == 1
    assert len(server.bodies) == SMALL
    server.bodies.clear()

    folders = list((tmp_path / "out.parts").iterdir())
    merged = mminstruct.merge(folders, tmp_path / "out", response_store=tmp_path / "all.sqlite")
    assert merged.report.requests == SMALL
    assert contents(tmp_path / "out") == in_one_piece
    shutil.rmtree(tmp_path / "out.parts")
    assert len(list(merged.report.entries())) == SMALL - len(merged)

    if count != 3:
        return
    # Another run with the answers of all parts asks for those alone that were refused.
    whole = generate(tmp_path, server, data, response_store=str(tmp_path / "all.sqlite"))
    assert len(server.bodies) == whole.report.failures["refused"] > 0
    assert contents(tmp_path / "out") == in_one_piece


def test_a_release_is_the_same_in_whichever_pieces_its_rows_were_made(tmp_path: Path) -> None:
    rows = [row(n, image_url=None if n % 400 == 7 else f"http://{n}.org") for n in range(900)]
    for some in rows[::3]:
        some["messages"][1]["content"] = f"{some['id']} " * 200  # pages of over a megabyte
    whole = datasets.Dataset.from_list(rows, features=FEATURES)
    pieces = [
        datasets.Dataset.from_list(rows[start:stop], features=FEATURES)
        for start, stop in ((0, 8), (8, 401), (401, 402), (402, 900))
    ]
    for name, made in (("a", whole), ("b", datasets.concatenate_datasets(pieces))):
        repository.write({"train": made}, tmp_path / name / "out", origin())
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.fixture
def dry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command line in a folder, with a stand-in for a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767225600")

    def run(line: str) -> int:
        more = "" if line.startswith("merge") else " --dry_run --types conversation"
        return cli.run((line + more).split())

    return run


def test_merge_says_which_parts_lack_overlap_are_unfinished_or_of_another_run(
    dry: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(line: str) -> str:
        capfd.readouterr()
        assert dry(line) == USAGE
        assert not (tmp_path / "out").exists()
        return capfd.readouterr().err

    for index in (0, 2):
        line = f"generate SAMPLE --limit 8 --shard {index}/3 --output_path out"
        assert dry(line) == DONE
        said = capfd.readouterr().err
        assert "when all shards are there: mminstruct merge out.parts/*-of-* out" in said
    lacking = refused("merge out.parts/0-of-3 out.parts/2-of-3 out")
    assert "images 2 to 5 of 8 are in none of them: shard 1/3 lacks; merge them all" in lacking

    # Another number of shards, of which one would ask about the same images again.
    beside = refused("generate SAMPLE --limit 8 --shard 3/4 --output_path out")
    assert "2-of-3 beside it has 2 of its 2 images of SAMPLE, split 'train', which" in beside
    assert {part.name for part in (tmp_path / "out.parts").iterdir()} == {"0-of-3", "2-of-3"}
    other = refused("generate SAMPLE --limit 7 --shard 2/3 --output_path out")
    assert 'its number of images {"train":8}, against {"train":7}; give another' in other
    other = refused("generate SAMPLE --limit 8 --shard 2/3 --output_path out --seed 7")
    assert "one of another run is there: its sampling {" in other
    assert dry("generate SAMPLE --limit 8 --shard 1/2 --output_path out --overwrite") == DONE
    twice = refused("merge out.parts/0-of-3 out.parts/1-of-2 out.parts/2-of-3 out")
    assert "1-of-2 and out.parts/2-of-3 both have images 5 to 8 of SAMPLE" in twice
    shutil.rmtree(tmp_path / "out.parts" / "1-of-2")

    # Shards of different sizes are fine where they are next to each other.
    assert dry("generate SAMPLE --limit 8 --shard 3/8 --output_path out") == DONE
    assert dry("generate SAMPLE --limit 8 --shard 4/8 --output_path out") == DONE
    assert dry("generate SAMPLE --limit 8 --shard 2/8 --output_path out --seed 7") == DONE
    those = "out.parts/0-of-3 out.parts/2-of-3 out.parts/3-of-8 out.parts/4-of-8"
    lacking = refused(f"merge {those} out")
    assert "images 2 to 3 of 8 are in none of them; merge them all" in lacking
    other = refused(f"merge {those} out.parts/2-of-8 out")
    assert "part out.parts/2-of-8: expected one of the same run as out.parts/0-of-3, got" in other
    assert (
        'another: its sampling {"temperature":0.7,"top_p":1.0,"max_tokens":1024,"seed":7}' in other
    )
    again = "generate SAMPLE --limit 8 --shard 2/8 --output_path out"
    assert "--overwrite" in refused(again)
    assert dry(f"{again} --overwrite") == DONE

    note = tmp_path / "out.parts" / "2-of-8" / "part.json"
    whole = note.read_text("utf-8")
    note.write_text(whole.replace('"finished":true', '"finished":false'), "utf-8")
    unfinished = refused(f"merge {those} out.parts/2-of-8 out")
    assert "parts that are not finished: out.parts/2-of-8; run their shards again" in unfinished
    note.write_text(whole[:50], "utf-8")
    assert "part out.parts/2-of-8: expected the folder of a shard, got" in refused(
        f"merge {those} out.parts/2-of-8 out"
    )
    note.write_text(whole, "utf-8")

    # A copy that is still under way, or was broken off.
    for name in ("made/0-train/dataset_info.json", "made/0-train.json", "origin.json"):
        file = tmp_path / "out.parts" / "2-of-8" / name
        content = file.read_bytes()
        file.write_bytes(content[:-1])
        lacking = refused(f"merge {those} out.parts/2-of-8 out")
        assert f"got 1 cut short or not at all, such as {name}; copy" in lacking
        file.unlink()
        assert f"such as {name}; copy the part again, or run shard 2/8 again" in refused(
            f"merge {those} out.parts/2-of-8 out"
        )
        file.write_bytes(content)
    shutil.move(tmp_path / "out.parts" / "2-of-8" / "made" / "0-train", tmp_path / "rows")
    assert "files as they were made, got 3 cut short" in refused(
        f"merge {those} out.parts/2-of-8 out"
    )
    shutil.move(tmp_path / "rows", tmp_path / "out.parts" / "2-of-8" / "made" / "0-train")
    capfd.readouterr()
    assert dry(f"merge out.parts/2-of-8 {those} out") == DONE
    assert "a dry run: the text is a stand-in's" in capfd.readouterr().err
    merged = datasets.load_dataset("parquet", data_dir=str(tmp_path / "out"), split="train")
    assert len(merged["id"]) == len(set(merged["id"])) == 8


def test_a_merged_release_says_the_command_that_writes_it_under_its_name(
    dry: Any, tmp_path: Path
) -> None:
    run = "generate SAMPLE --limit 2 --shard 0/1"
    assert dry(run) == dry(f"{run} --output_path a") == DONE
    for parts, name, end in (
        ("instruct.parts", "instruct", "--limit 2"),
        ("instruct.parts", "in/b", "--limit 2 --output_path b"),
        ("a.parts", "a", "--limit 2 --output_path a"),
        ("a.parts", "in/instruct", "--limit 2 --output_path instruct"),
    ):
        assert dry(f"merge {parts}/0-of-1 {name}") == DONE
        noted = json.loads((tmp_path / name / "provenance.json").read_text("utf-8"))
        assert noted["command"].endswith(f" {end}")
        card = (tmp_path / name / "README.md").read_text("utf-8")
        assert end.removeprefix("--limit 2 ") in card
    by_hand = "mminstruct generate it's"
    mminstruct.generate(
        "SAMPLE",
        backend="fake",
        limit=1,
        types=["conversation"],
        shard="0/1",
        output_path="own",
        command=lambda recipe: by_hand,
    )
    mminstruct.merge("own.parts/0-of-1", "own")
    assert f"```bash\n{by_hand}\n```" in (tmp_path / "own" / "README.md").read_text("utf-8")


class NoCredentials(Exception):
    """As of a backend whose errors are of its own kind."""


class Closed(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    protocol = "closed"

    def info(self, path: str, **kwargs: Any) -> Any:
        raise NoCredentials("no key was found")


def test_parts_are_copied_from_where_fsspec_finds_them(
    dry: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for index in range(2):
        assert dry(f"generate SAMPLE --limit 4 --shard {index}/2 --output_path out") == DONE
    assert dry("merge out.parts/0-of-2 out.parts/1-of-2 out.parts/0-of-2/ here") == DONE
    away = fsspec.filesystem("memory")
    away.put(f"{tmp_path / 'out.parts'}/", "/bucket/out.parts/", recursive=True)
    assert dry("merge memory://bucket/out.parts/*-of-2 there") == DONE
    assert dry("merge out.parts/0-of-2 memory://bucket/out.parts/1-of-2 both") == DONE
    here, there, both = (contents(tmp_path / name / "data") for name in ("here", "there", "both"))
    assert there == both == here != {}
    capfd.readouterr()
    mminstruct.merge("memory://bucket/out.parts/*-of-2", tmp_path / "alone")
    assert contents(tmp_path / "alone" / "data") == here
    with pytest.raises(UsageError, match="parts: expected the folders of all shards, got none"):
        mminstruct.merge((tmp_path / "none.parts").glob("*"), tmp_path / "none")
    fsspec.register_implementation("closed", Closed, clobber=True)
    for address, why in (
        ("memory://bucket/none", "FileNotFoundError: /bucket/none; check the address"),
        ("memory://bucket/out.parts/0-of-2/*.json", "NotADirectoryError: there is no such folder"),
        ("nowhere://bucket/out.parts/0-of-2", "ValueError: Protocol not known: nowhere"),
        ("closed://bucket/out.parts/0-of-2", "NoCredentials: no key was found; check the address"),
    ):
        assert dry(f"merge {address} out") == USAGE
        said = " ".join(capfd.readouterr().err.split())
        assert f"error: part {address}: can't be copied from there: {why}" in said
        assert "copy the folder to this machine and give its path" in said
    merged = mminstruct.merge(["memory://bucket/out.parts/*-of-2"], tmp_path / "kept")
    for name, problem in (
        ("responses.sqlite", "its answers can't be read: file is not a database; copy"),
        ("origin.json", "expected 5 files as they were made, got 1 cut short"),
        ("part.json", "expected the folder of a shard, got no part.json of one"),
    ):
        away.pipe(f"/bucket/out.parts/1-of-2/{name}", b"no" * 100)
        assert dry("merge memory://bucket/out.parts/*-of-2 bad --response_store s.sqlite") == USAGE
        said = " ".join(capfd.readouterr().err.split())
        assert f"error: part memory:///bucket/out.parts/1-of-2: {problem}" in said
    away.rm("/bucket", recursive=True)
    rows = pickle.loads(pickle.dumps(merged.rows["train"]))  # as workers get them
    assert len(rows) == 4


def test_a_killed_shard_goes_on_two_share_a_store_and_one_is_not_made_twice_at_once(
    tmp_path: Path, server: LoopbackServer, capfd: pytest.CaptureFixture[str]
) -> None:
    place = Place(tmp_path / "place", coco_files(tmp_path / "coco", 40))
    store = str(tmp_path / "shared.sqlite")
    flags = ("--max_concurrency", "10", "--response_store", store)
    there = ("--dataset_storage_path", str(place.data), "--output_path", str(place.output))
    model = ("--model_source", "openai", "--model", "m", "--openai_base_url", server.url)

    def run(*more: str) -> int:
        """What `Place.run` does, in this process."""
        return cli.run(["generate", "COCO2017", *model, *there, *flags, *more])

    async def answer_some(server: LoopbackServer, body: dict[str, Any]) -> Any:
        if len(server.bodies) > 15:
            await asyncio.Event().wait()
        return chat_completion(turns_for(body))

    server.answer = answer_some
    process = place.start(server.url, *flags, "--shard", "1/4")
    wait_until(lambda: len(server.bodies) == 25, process)
    assert run("--shard", "1/4") == USAGE
    assert "1-of-4: another run is making it; wait for its end" in capfd.readouterr().err
    process.kill()
    finish(process)
    with ResponseStore(Path(store), read_only=True) as answers:
        stored = len(answers)
    assert 5 <= stored <= 15  # others were on their way to the disk

    server.answer = lambda server, body: chat_completion(turns_for(body))
    server.bodies.clear()
    process = place.start(server.url, *flags, "--shard", "1/4")
    assert run("--shard", "0/4") == DONE
    assert finish(process).code == DONE
    assert len(server.bodies) == 30 + 30 - stored
    assert run("--shard", "2/4") == run("--shard", "3/4") == DONE
    assert Counter(map(mark, server.bodies)).most_common(1)[0][1] == 1
    assert len(server.bodies) == 120 - stored
    folders = [tmp_path / "place" / "out.parts" / f"{index}-of-4" for index in range(4)]
    merged = mminstruct.merge(folders, place.output)
    digests = place.output_digest()
    server.bodies.clear()

    # The run in one piece finds all answers in the store, and writes the same.
    shutil.rmtree(place.output)
    assert run() == DONE
    assert server.bodies == []
    assert len(merged) == 120
    assert place.output_digest() == digests


@pytest.mark.filterwarnings("ignore:.*Load again")
def test_a_shard_may_have_no_row_but_not_no_answer(
    tmp_path: Path, server: LoopbackServer, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.answer = lambda server, body: (400, {}, {"error": {"message": "no"}})
    with pytest.raises(RunStopped):
        generate(tmp_path, server, data, shard="0/2")
    folders = [tmp_path / "out.parts" / f"{index}-of-2" for index in (0, 1)]
    with pytest.raises(UsageError, match="not finished: .*0-of-2; run their shards again"):
        mminstruct.merge(folders[:1], tmp_path / "out")

    server.answer = lambda server, body: chat_completion("I'm sorry, but I can't help with that.")
    none = generate(tmp_path, server, data, shard="0/2")
    assert (len(none), dict(none.rows)) == (0, {})
    with pytest.raises(NoRows, match="no row in split 'train': 0 rows, 6 rejected"):
        store = str(folders[0] / "responses.sqlite")
        generate(tmp_path, server, data, shard="0/2", output_path=None, response_store=store)
    generate(tmp_path, server, data, shard="1/2", response_store=str(tmp_path / "bad.sqlite"))
    with pytest.raises(NoRows, match="no row in COCO2017: 0 rows, 18 rejected"):
        mminstruct.merge(folders, tmp_path / "out")

    server.answer = answer
    generate(tmp_path, server, data, shard="1/2")
    words = ["merge", *map(str, folders), str(tmp_path / "out")]
    assert cli.run([*words, "--response_store", str(tmp_path / "all.sqlite")]) == INCOMPLETE
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.endswith(" requests were refused, as they would be again")
    assert "run again" not in said

    server.answer = lambda server, body: chat_completion("")
    generate(tmp_path, server, data, shard="1/2")
    assert cli.run([*words, "--response_store", str(tmp_path / "all.sqlite")]) == INCOMPLETE
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.endswith(" requests got no answer; run again shard 1/2, and merge again")


def test_a_stream_is_split_by_shards_and_not_so_that_each_node_pays_for_all(
    server: LoopbackServer, tmp_path: Path
) -> None:
    def load(**more: Any) -> Any:
        return datasets.load_dataset(
            "builders/sample_llava",
            split="train",
            limit=5,
            cache_dir=str(tmp_path / "cache"),
            response_store=str(tmp_path / "r.sqlite"),
            types=["conversation"],
            base_url=server.url,
            model="m",
            streaming=True,
            **more,
        )

    server.answer = lambda server, body: chat_completion(turns_for(body))
    for dealt in (load(), load().shuffle(seed=1, buffer_size=2)):
        with pytest.raises(UsageError, match=r"give load_dataset shard=\(rank, 2\) instead"):
            next(iter(split_dataset_by_node(dealt, rank=0, world_size=2)))
    assert server.bodies == []

    ids = [[row["id"] for row in load(shard=(rank, 2))] for rank in range(2)]
    assert [len(some) for some in ids] == [2, 3]
    assert len(server.bodies) == 5
    assert sum(ids, []) == [row["id"] for row in load()]
    assert len(server.bodies) == 5
    with pytest.raises(UsageError, match="shard: 0/7 of 5 images is none; take fewer"):
        load(shard=(0, 7))


@pytest.mark.filterwarnings("ignore:.*Load again")
def test_parts_of_what_is_complete_by_now_are_merged_though_a_shard_has_none_of_it(
    server: LoopbackServer, tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.answer = lambda server, body: chat_completion(turns_for(body))
    more: dict[str, Any] = {"limit": 3, "response_store": str(tmp_path / "r.sqlite")}
    generate(tmp_path, server, data, **more | {"limit": 1})
    server.bodies.clear()
    more["partial"] = True
    generate(tmp_path, server, data, **more, overwrite=True)
    for index in range(3):
        generate(tmp_path, server, data, **more, shard=(index, 3))
    assert server.bodies == []
    whole = contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    folders = [str(folder) for folder in (tmp_path / "out.parts").iterdir()]
    assert cli.run(["merge", *folders, str(tmp_path / "out")]) == INCOMPLETE
    said = capfd.readouterr().err.splitlines()[-1]
    assert "got no answer; run again shard 1/3, 2/3 without --partial, and merge again" in said
    assert contents(tmp_path / "out") == whole


@pytest.mark.filterwarnings("ignore:.*Load again")
def test_a_source_without_a_row_ends_a_merge_as_it_ends_the_run_in_one_piece(
    server: LoopbackServer, tmp_path: Path, data: Path
) -> None:
    refuse = chat_completion("I'm sorry, but I can't help with that.")

    def answer_one_split(server: LoopbackServer, body: dict[str, Any]) -> Any:
        is_val = "Once more" in body["messages"][-1]["content"]
        return chat_completion(turns_for(body)) if is_val else refuse

    server.answer = answer_one_split
    more: dict[str, Any] = {"response_store": str(tmp_path / "r.sqlite")}
    with pytest.raises(NoRows) as in_one_piece:
        generate(tmp_path, server, data, **more)
    folders = [tmp_path / "out.parts" / f"{index}-of-2" for index in range(2)]
    made = [generate(tmp_path, server, data, **more, shard=(index, 2)) for index in range(2)]
    assert all(len(part) for part in made)
    with pytest.raises(NoRows) as merged:
        mminstruct.merge(folders, tmp_path / "out")
    said, before = (str(error.value).partition(" The ")[0] for error in (merged, in_one_piece))
    assert said == before.replace("split 'train'", "SAMPLE")
    assert "no row in SAMPLE: 0 rows, 12 rejected (no_labels 8, too_short 4); the first: " in said
    assert "The answers are in made/*.jsonl of the parts. The same run" in str(merged.value)
    texts = [file.read_text("utf-8") for f in folders for file in f.glob("made/*.jsonl")]
    answers = [json.loads(line)["answer"] for text in texts for line in text.splitlines()]
    assert [said[:9] for said in answers] == ["I'm sorry"] * 24  # a split of COCO's among them
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:.*Load again")
def test_parts_without_an_answer_say_which_shards_to_run_again(
    server: LoopbackServer, tmp_path: Path, data: Path
) -> None:
    more = {"partial": True, "response_store": str(tmp_path / "r.sqlite")}
    for index in range(2):
        generate(tmp_path, server, data, **more, shard=(index, 2))
    folders = (tmp_path / "out.parts").iterdir()
    with pytest.raises(UsageError) as error:
        mminstruct.merge(folders, tmp_path / "out")
    assert str(error.value) == (
        "no row in COCO2017: 0 rows, 18 of 18 requests not asked yet; run again shard 0/2, 1/2 "
        "without --partial, and merge again"
    )
    assert server.bodies == []


def test_an_estimate_of_a_shard_counts_the_answers_in_its_part(
    server: LoopbackServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    server.answer = lambda server, body: chat_completion(turns_for(body))
    model = f"--model_source openai --model m --openai_base_url {server.url}"
    run = f"SAMPLE --limit 5 --types conversation {model} --output_path out"
    assert cli.run(f"generate {run} --shard 0/2".split()) == DONE
    for shard, stored in (("0/2", 2), ("1/2", 0)):
        capsys.readouterr()
        assert cli.run(f"estimate {run} --shard {shard} --json".split()) == DONE
        assert json.loads(capsys.readouterr().out)["stored"] == stored
    assert not (tmp_path / "out.parts" / "1-of-2").exists()


def test_a_shard_is_found_in_a_slurm_array_and_among_ranks() -> None:
    def array(**values: int) -> dict[str, str]:
        return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}

    assert find_shard(array(ID=2, COUNT=4, MIN=0, MAX=3, STEP=1)) == "2/4"
    assert find_shard(array(ID=4, COUNT=4, MIN=1, MAX=4)) == "3/4"
    assert find_shard(array(ID=4, COUNT=3, MIN=0, MAX=4, STEP=2)) == "2/3"
    assert find_shard({"RANK": "7", "WORLD_SIZE": "8"}) == "7/8"
    assert find_shard({**array(ID=0, COUNT=2, MIN=0, MAX=1), "RANK": "0", "WORLD_SIZE": "1"})
    for environment, found in (
        ({}, "got neither"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "of several, got RANK=0, WORLD_SIZE=1; give"),
        ({"RANK": "3"}, "got RANK=3; give"),
        (
            {**array(ID=0, COUNT=2, MIN=0, MAX=1), "RANK": "0", "WORLD_SIZE": "2"},
            "TASK_ID=0, RANK=0, WORLD_",
        ),
        (array(ID=2, COUNT=1, MIN=2, MAX=2), "got 1 of them, 2 to 2"),  # run again by itself
        (array(ID=2, COUNT=2, MIN=2, MAX=5), "got 2 of them, 2 to 5"),
    ):
        with pytest.raises(UsageError, match=found):
            find_shard(environment)


@pytest.mark.parametrize("given", ["4/4", "1", "a/b", (1, 2, 3), 5, "-1/4", "auto"])
def test_what_is_no_shard_is_refused_before_anything_is_sent(
    given: Any, tmp_path: Path, server: LoopbackServer, data: Path
) -> None:
    with pytest.raises(UsageError, match="shard: expected I/N"):
        generate(tmp_path, server, data, shard=given)
    assert server.bodies == []
