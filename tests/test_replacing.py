"""What is there is replaced by more of the same alone, unless that is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import coco_files
from instruct_rows import dataset, row, rows_of
from loopback import LoopbackServer
from origins import origin

from mminstruct import cli, export
from mminstruct.cli.arguments import USAGE
from mminstruct.cli.console import DONE
from mminstruct.errors import UsageError
from mminstruct.releases import repository
from mminstruct.rows import replacing
from mminstruct.rows.report import Report

MADE: dict[str, Any] = {
    "sources": ["COCO2017"],
    "backend": "openai",
    "model": "m",
    "prompt_configs": ["ab"],
    "prompt_names": {"ab": "llava 1.0.0"},
    "sampling": {"temperature": ["0.7"], "seed": "none"},
    "types": ["conversation", "detail"],
    "splits": ["train"],
    "requests": 6,
}
FAKE = {**MADE, "backend": "fake", "model": "scripted"}


@pytest.mark.parametrize(
    ("there", "new"),
    [
        (None, MADE),
        (MADE, MADE),
        (MADE, {**MADE, "requests": 7, "types": ["conversation", "detail", "more"]}),
        (MADE, {**MADE, "requests": 9, "sources": ["COCO2017", "LVIS"]}),
        (MADE, {name: MADE[name] for name in MADE if name != "requests"}),
        (MADE, {**MADE, "check": "report"}),
        (FAKE, MADE),
        (FAKE, {**FAKE, "sources": ["LVIS"], "requests": 1}),
    ],
)
def test_the_same_or_more_of_it_and_anything_after_a_dry_run_take_the_place(
    there: Any, new: Any
) -> None:
    replacing.check(Path("out"), there, new, overwrite=False)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"sources": ["LVIS"]}, "it has the sources COCO2017, which would be lost"),
        ({"model": "n"}, "its model m, got n"),
        (
            {"prompt_configs": ["cd"], "prompt_names": {"cd": "llava 2.0.0"}},
            "it was made with the prompts of llava 1.0.0, and this run has those of llava 2.0.0, "
            "so all of its 6 requests would be asked again. To go on with it, give the file of "
            "llava 1.0.0, which is in the version of mminstruct that made it (--prompt_config ",
        ),
        (
            {"sampling": {"temperature": ["0.1"], "seed": "none"}},
            "its sampling temperature 0.7, seed none, got temperature 0.1, seed none",
        ),
        ({"types": ["conversation"]}, "it has the types detail, which would be lost"),
        ({"splits": ["validation"]}, "it has the splits train, which would be lost"),
        ({"requests": 5}, "it was made from 6 requests, and this run has 5"),
        ({"image_licenses": ["commercial"]}, "its image_licenses None, got commercial"),
        ({"max_size": 64}, "its max_size None, got 64"),
        ({"check": "drop"}, "its check report, got drop"),
    ],
)
def test_something_else_or_less_takes_the_place_only_if_asked_for(
    changed: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError) as refused:
        replacing.check(Path("out"), MADE, {**MADE, **changed}, overwrite=False)
    assert words in str(refused.value)
    assert "output path out: " in str(refused.value)
    assert "--overwrite (from Python, overwrite=True)" in str(refused.value)
    replacing.check(Path("out"), MADE, {**MADE, **changed}, overwrite=True)


def test_what_nobody_noted_is_not_replaced_unasked() -> None:
    assert replacing.made({"tool": "mminstruct"}) == {}
    with pytest.raises(UsageError, match="nothing beside it tells how it was made"):
        replacing.check(Path("out"), {}, MADE, overwrite=False)
    replacing.check(Path("out"), {}, MADE, overwrite=True)


def test_a_dry_run_never_takes_the_place_of_what_a_model_wrote() -> None:
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="a dry run would replace rows of m; give another"):
            replacing.check(Path("out"), MADE, FAKE, overwrite=overwrite)


def test_a_release_is_replaced_by_one_of_more_rows_and_not_by_one_of_fewer(tmp_path: Path) -> None:
    def write(count: int, **more: Any) -> None:
        rows = rows_of(range(count), ("detail",))
        report = Report()
        report.rows.update(one["type"] for one in rows)
        repository.write({"train": dataset(rows)}, tmp_path, origin(), report, **more)

    def held() -> int:
        return int(json.loads((tmp_path / "provenance.json").read_text())["rows"]["detail"])

    write(2)
    write(3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="made from 3 requests, and this run has 2"):
        write(2)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    write(2, overwrite=True)
    assert held() == 2


def test_exports_of_two_releases_have_names_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("coco14", "coco17"):
        repository.write({"train": dataset([row(1)])}, Path(name), origin())
        assert export.export(name, "llava-instruct").path == Path(f"{name}.llava-instruct.json")
    assert export.export("coco17", "jsonl").path == Path("coco17.jsonl")
    assert export.default_output("user/coco17", "sharegpt") == Path("coco17.sharegpt.json")
    assert export.default_output("coco17", "webdataset") == Path("coco17-webdataset")


def test_an_export_of_another_release_or_of_a_part_is_refused_until_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    repository.write({"train": dataset(rows_of(range(2)))}, Path("one"), origin())
    other = dataset([row(1)])
    repository.write({"train": other}, Path("two"), origin("someone/finetune"))
    one = ["export", "one", "--format", "jsonl", "--output_path", "x.jsonl"]
    for _ in range(2):
        assert cli.run(one) == DONE
    written = Path("x.jsonl").read_bytes()
    for arguments, words in (
        (["export", "two", *one[2:]], "its model"),
        ([*one, "--types", "conversation"], "it has the types complex_reasoning, detail"),
        ([*one, "--image_licenses", "commercial"], "its image_licenses None, got commercial"),
    ):
        capsys.readouterr()
        assert cli.run(arguments) == USAGE
        assert words in capsys.readouterr().err
        assert Path("x.jsonl").read_bytes() == written
    assert cli.run(["export", "two", *one[2:], "--overwrite"]) == DONE
    assert len(Path("x.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("output_format", ["webdataset", "parquet"])
def test_shards_of_another_release_or_of_larger_images_are_not_replaced_unasked(
    output_format: str,
    tmp_path: Path,
    server: LoopbackServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    for model in ("m", "n"):
        where = f"--model {model} --openai_base_url {server.url} --output_path {model}"
        asked = f"generate SAMPLE --limit 1 --types conversation --model_source openai {where}"
        assert cli.run([*asked.split(), "--response_store", "s.sqlite"]) == DONE
    to = ["--format", output_format, "--images", "embed", "--output_path", "x"]
    for _ in range(2):
        assert cli.run(["export", "m", *to]) == DONE
    before = {path: path.read_bytes() for path in Path("x").iterdir()}
    for arguments, words in (
        (["n", *to], "its model m, got n"),
        (["m", *to, "--max_size", "64"], "its max_size None, got 64"),
    ):
        capsys.readouterr()
        assert cli.run(["export", *arguments]) == USAGE
        assert words in capsys.readouterr().err
        assert {path: path.read_bytes() for path in Path("x").iterdir()} == before
        assert cli.run(["export", *arguments, "--overwrite"]) == DONE
        assert {path: path.read_bytes() for path in Path("x").iterdir()} != before
        assert cli.run(["export", "m", *to, "--overwrite"]) == DONE


def test_a_dry_run_is_not_exported_over_the_rows_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    repository.write({"train": dataset([row(1)])}, Path("real"), origin())
    repository.write({"train": dataset([row(1)])}, Path("dry"), origin(backend="fake"))
    to = ["--format", "jsonl", "--output_path", "x.jsonl"]
    assert cli.run(["export", "dry", *to]) == DONE
    assert cli.run(["export", "real", *to]) == DONE
    for more in ([], ["--overwrite"]):
        assert cli.run(["export", "dry", *to, *more]) == USAGE
        assert "a dry run would replace rows of" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["out", "out.jsonl"])
def test_generate_sends_nothing_before_it_refuses_to_replace(
    tmp_path: Path,
    server: LoopbackServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    output: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    coco_files(tmp_path / "cache", 3)

    def generate(*more: str, model: str = "m") -> int:
        capsys.readouterr()
        where = ["--model_source", "openai", "--model", model, "--openai_base_url", server.url]
        store = ["--response_store", "store.sqlite", "--output_path", output]
        return cli.run(["generate", "COCO2017", *where, *store, *more])

    assert generate("--limit", "1", "--types", "conversation") == DONE
    assert generate("--limit", "2", "--types", "conversation") == DONE
    assert generate() == DONE
    asked = len(server.bodies)
    for more, model, words in (
        (["--limit", "2"], "m", "it was made from 9 requests, and this run has 6"),
        (["--types", "conversation"], "m", "it has the types complex_reasoning, detail"),
        ([], "n", "its model m, got n"),
        (["--temperature", "0.1"], "m", "its sampling temperature 0.7"),
        (["--dry_run"], "m", "a dry run would replace rows of m"),
    ):
        assert generate(*more, model=model) == USAGE
        assert words in capsys.readouterr().err
    assert len(server.bodies) == asked == 9
    assert generate("--limit", "2", "--overwrite") == DONE
    assert generate("--limit", "1", "--overwrite", model="n") == DONE
    assert len(server.bodies) == 12


def test_a_run_of_older_prompts_goes_on_with_their_file_alone_and_says_so_before_it_sends(
    tmp_path: Path,
    server: LoopbackServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    older = ["--prompt_config", str(Path(__file__).parent / "goldens" / "prompts" / "llava.yaml")]
    place = ["--response_store", "s.sqlite", "--output_path", "out", "--types", "conversation"]
    where = ["--model_source", "openai", "--model", "m", "--openai_base_url", server.url]

    def generate(*more: str) -> int:
        return cli.run(["generate", "SAMPLE", *where, *place, *more])

    assert generate("--limit", "2", *older) == DONE
    assert generate("--limit", "4") == USAGE
    said = capsys.readouterr().err
    assert "with the prompts of llava 1.0.0, and this run has those of llava 2.0.0" in said
    assert "so all of its 2 requests would be asked again" in said
    assert len(server.bodies) == 2
    assert generate("--limit", "4", *older) == DONE
    assert len(server.bodies) == 4
