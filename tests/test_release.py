"""Releases as files: what is written, where, and what reads it back."""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import yaml
from instruct_rows import TYPES, dataset, lines, row, rows_of
from origins import COCO, DAY, origin

from mminstruct import licenses, prompts
from mminstruct.errors import RunStopped, UsageError
from mminstruct.licenses import Part
from mminstruct.releases import contents, repository
from mminstruct.releases.origin import Origin
from mminstruct.rows import columns
from mminstruct.rows.columns import FEATURES
from mminstruct.rows.report import Report


def report_of(splits: dict[str, datasets.Dataset], **changes: Any) -> Report:
    report = Report(**changes)
    for rows in splits.values():
        report.rows.update(rows["type"])
    return report


def write(
    path: Path,
    splits: dict[str, datasets.Dataset],
    *,
    by: Origin | None = None,
    overwrite: bool = True,
    **report: Any,
) -> Path:
    repository.check_output(path)
    repository.write(splits, path, by or origin(), report_of(splits, **report), overwrite=overwrite)
    return path


def rejected(number: int, reason: str = "leak", kind: str = "conversation") -> dict[str, Any]:
    return {
        "id": f"coco2017-{number:012d}-{kind}",
        "type": kind,
        "outcome": "rejected",
        "reason": reason,
        "detail": f"phrase 'the caption' \u2013 {number}",
    }


def json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def sorted_rows(rows: Any) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda r: r["id"])


def files_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def without_digests(files: list[str]) -> list[str]:
    return [re.sub(r"-[0-9a-f]{16}\.parquet$", ".parquet", file) for file in files]


class Interrupted(dict[str, datasets.Dataset]):
    """Splits whose second one never comes."""

    def values(self) -> Iterator[datasets.Dataset]:  # type: ignore[override]
        yield dataset([row(8)])
        raise KeyboardInterrupt

    def items(self) -> Iterator[tuple[str, datasets.Dataset]]:  # type: ignore[override]
        yield "train", dataset([row(8)])
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["notes.txt", ".git/config", "data/train.parquet", "README.md"])
def test_a_foreign_folder_that_is_not_empty_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="not empty and was not written by mminstruct"):
        repository.check_output(tmp_path)
    assert files_below(tmp_path) == [name]


def test_an_empty_or_absent_folder_is_taken_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b"):
        repository.check_output(folder)
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


def test_a_folder_in_which_a_first_run_was_interrupted_is_taken(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        repository.write(Interrupted(), tmp_path, origin(), Report())
    assert write(tmp_path, {"train": dataset([row(1)])}) == tmp_path
    assert len(datasets.load_dataset(str(tmp_path), split="train")) == 1


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UsageError, match="expected a folder, got a file"):
        repository.check_output(file)
    with pytest.raises(UsageError, match="output path"):
        repository.check_output(file / "below")
    assert file.read_text() == "mine"


def test_a_repository_is_read_back_whole_and_by_type(tmp_path: Path) -> None:
    rows = rows_of(range(1, 6))
    path = write(tmp_path / "out", {"train": dataset(rows)})
    everything = datasets.load_dataset(str(path))
    assert list(everything) == ["train"]
    assert everything["train"].features == FEATURES
    assert sorted_rows(everything["train"]) == sorted_rows(rows)
    assert set(datasets.get_dataset_config_names(str(path))) == {"default", *TYPES}
    for kind in TYPES:
        found = list(datasets.load_dataset(str(path), kind, split="train"))
        assert found == [r for r in rows if r["type"] == kind]


def test_a_repository_holds_rows_and_what_is_said_of_them_and_nothing_else(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "out", {"train": dataset(rows_of(range(1, 3)))})
    assert without_digests(files_below(path)) == [
        "ATTRIBUTION.md",
        "LICENSE",
        "README.md",
        "croissant.json",
        *(f"data/{kind}/train-00000-of-00001.parquet" for kind in sorted(TYPES)),
        "provenance.json",
    ]


def test_every_split_has_its_own_files(tmp_path: Path) -> None:
    train = rows_of(range(1, 4))
    validation = rows_of(range(7, 9), ("detail",))
    path = write(tmp_path / "out", {"train": dataset(train), "validation": dataset(validation)})
    everything = datasets.load_dataset(str(path))
    assert sorted_rows(everything["train"]) == sorted_rows(train)
    assert list(everything["validation"]) == validation
    assert set(datasets.load_dataset(str(path), "detail")) == {"train", "validation"}
    assert set(datasets.load_dataset(str(path), "conversation")) == {"train"}


def test_a_type_without_rows_has_no_files_but_is_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "out",
        {"train": dataset(rows_of(range(1, 3), ("detail",)))},
        rejected={"conversation": Counter(leak=2)},
    )
    assert set(datasets.get_dataset_config_names(str(path))) == {"default", "detail"}
    card = (path / "README.md").read_text(encoding="utf-8")
    assert 'load_dataset("out", "detail")' in card
    assert "| conversation | 0 | 0 | leak 2 | none |" in card
    assert "| detail | 2 | 0 | none | none |" in card


def test_rows_that_were_selected_or_shuffled_go_to_the_files_of_their_type(tmp_path: Path) -> None:
    rows = rows_of(range(1, 6))
    some = dataset(rows).select([14, 3, 7, 0, 11])
    path = write(tmp_path / "out", {"train": some})
    for kind in TYPES:
        found = list(datasets.load_dataset(str(path), kind, split="train"))
        assert found == [r for r in (rows[i] for i in (14, 3, 7, 0, 11)) if r["type"] == kind]


def test_many_rows_are_spread_over_files(tmp_path: Path) -> None:
    few = dataset([row(number, "detail") for number in range(1000)])
    same = datasets.concatenate_datasets([few] * 100 + [dataset([row(1, "detail")])])
    ids = [f"coco2017-{number:012}-detail" for number in range(len(same))]
    many = same.remove_columns("id").add_column("id", ids).select_columns(few.column_names)
    path = write(tmp_path / "out", {"train": many})
    assert without_digests(files_below(path / "data" / "detail")) == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    found = datasets.load_dataset(str(path), split="train")
    assert (len(found), found[99_999], found[100_000]) == (100_001, many[99_999], many[100_000])


def test_a_row_twice_is_refused(tmp_path: Path) -> None:
    rows = dataset([row(1, "detail"), row(2, "detail")])
    with pytest.raises(
        UsageError, match="'train': expected each row once, got 'coco2017-0+1-detail' with"
    ):
        write(tmp_path / "out", {"train": datasets.concatenate_datasets([rows, rows])})
    # Splits are apart, and models may write about the same images.
    write(tmp_path / "out", {"train": rows, "validation": rows})
    others = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    theirs = dataset([{**row(1, "detail"), "messages": others}])
    write(tmp_path / "out", {"train": datasets.concatenate_datasets([rows, theirs])})


@pytest.mark.parametrize(
    "column",
    [
        [b"bytes", b"more"],
        [{"pixels": {"bytes": b"PNG", "path": None}}] * 2,
        [[b"bytes"], []],
    ],
)
def test_images_within_rows_are_refused(tmp_path: Path, column: list[Any]) -> None:
    rows = dataset([row(1, "detail"), row(2, "detail")]).add_column("pixels", column)
    with pytest.raises(UsageError, match="got 'pixels' with images or other files"):
        write(tmp_path / "out", {"train": rows})
    cast = dataset([row(1, "detail")]).cast_column("image", datasets.Image(decode=False))
    with pytest.raises(UsageError, match="got 'image' with images"):
        write(tmp_path / "out", {"train": cast})


def test_a_servers_words_stay_out_of_a_release(tmp_path: Path) -> None:
    said = "http://10.1.2.3/v1 answered 400: the key sk-1 of http://upstream is not accepted"
    own = {**rejected(3), "detail": "question asked twice: 'What is http://example.org?'"}
    details = [
        {**rejected(2), "outcome": "failed", "detail": said},
        own,
        {**rejected(4), "outcome": "failed", "detail": "upstream gpu-17.corp refused key sk-1"},
        {**rejected(5), "reason": "too_long", "detail": "even the shortest: gpu-17.corp said so"},
    ]
    path = write(tmp_path / "out", {"train": dataset([row(1)])}, files=lines(details))
    found = [json.loads(line) for line in (path / "rejected.jsonl").read_text().splitlines()]
    unsaid = "as the server said, whose words stay out of a release"
    assert [entry["detail"] for entry in found] == [unsaid, own["detail"], unsaid, unsaid]
    assert [{**entry, "detail": ""} for entry in found] == [{**d, "detail": ""} for d in details]


@pytest.mark.parametrize("listed", [True, False])
def test_a_file_of_somebody_else_among_the_rows_stays(
    tmp_path: Path, listed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, {"train": dataset(rows_of(range(1, 3)))})
    if not listed:  # as in releases of old
        noted = json.loads((tmp_path / "provenance.json").read_text())
        del noted["files"]
        (tmp_path / "provenance.json").write_text(json.dumps(noted))
    theirs = ["data/conversation/mine.csv", "data/notes.txt", "data/train-00000-of-00001.parquet"]
    for name in theirs:
        (tmp_path / name).write_text("mine")
    with caplog.at_level("INFO", logger="mminstruct.releases.repository"):
        write(tmp_path, {"train": dataset([row(3, "detail")])})
    assert f"kept, as mminstruct did not write them: {', '.join(theirs)}" in caplog.text
    rows = {p for p in files_below(tmp_path) if p.startswith("data/")} - set(theirs)
    assert without_digests(sorted(rows)) == ["data/detail/train-00000-of-00001.parquet"]
    assert [(tmp_path / name).read_text() for name in theirs] == ["mine"] * 3
    assert not (tmp_path / "data" / "complex_reasoning").exists()
    assert len(datasets.load_dataset(str(tmp_path), split="train")) == 1


def test_writing_over_an_own_folder_replaces_everything(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path, {"train": dataset(rows_of(range(1, 9)))}, files=lines([rejected(9)]))
    write(path, {"validation": dataset([row(2, "detail")])})
    assert without_digests(files_below(path)) == [
        "ATTRIBUTION.md",
        "LICENSE",
        "README.md",
        "croissant.json",
        "data/detail/validation-00000-of-00001.parquet",
        "provenance.json",
    ]
    assert list(datasets.load_dataset(str(path))["validation"]) == [row(2, "detail")]


def test_an_older_release_of_the_same_name_is_not_read_back_from_the_cache(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        path = write(tmp_path / str(number % 2) / "out", {"train": dataset([row(number)])})
        assert list(datasets.load_dataset(str(path), split="train")) == [row(number)]
        found = datasets.load_dataset(str(path), "conversation", split="train")
        assert list(found) == [row(number)]


def contents_of(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in files_below(path)}


def test_the_same_rows_give_the_same_files(tmp_path: Path) -> None:
    one, two = (
        write(tmp_path / name / "out", {"train": dataset(rows_of(range(1, 4)))}) for name in "ab"
    )
    assert contents_of(one) == contents_of(two)


def test_writing_the_same_rows_there_again_on_another_day_changes_no_file(tmp_path: Path) -> None:
    rows, later = rows_of(range(1, 4)), origin(written_on=DAY + datetime.timedelta(40))
    path = write(tmp_path / "out", {"train": dataset(rows)})
    before = contents_of(path)
    write(path, {"train": dataset(rows)}, by=later)
    assert contents_of(path) == before
    assert "2026-01-31 (UTC)" in (path / "README.md").read_text(encoding="utf-8")
    write(path, {"train": dataset(rows[:-1])}, by=later)
    assert "2026-03-12 (UTC)" in (path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("marker", ["", "[]", '{"files": []}', '{"written_on": null}'])
def test_a_marker_of_another_time_is_replaced(tmp_path: Path, marker: str) -> None:
    (tmp_path / "provenance.json").write_text(marker)
    write(tmp_path, {"train": dataset([row(1)])})
    found = json.loads((tmp_path / "provenance.json").read_text(encoding="utf-8"))
    assert found["written_on"] == "2026-01-31"


def test_what_is_said_of_the_files_is_true(tmp_path: Path) -> None:
    splits = {"train": dataset(rows_of(range(1, 5))), "validation": dataset([row(9, "detail")])}
    path = write(tmp_path / "out", splits)
    croissant = json.loads((path / "croissant.json").read_text(encoding="utf-8"))
    files = {f["contentUrl"]: f for f in croissant["distribution"] if "contentUrl" in f}
    assert sorted(files) == [name for name in files_below(path) if name.startswith("data/")]
    for name, said in files.items():
        content = (path / name).read_bytes()
        assert said["sha256"] == hashlib.sha256(content).hexdigest()
        assert said["contentSize"] == f"{len(content)} B"
    card = (path / "README.md").read_text(encoding="utf-8")
    infos = {i["config_name"]: i for i in yaml.safe_load(card.split("---\n")[1])["dataset_info"]}
    for config, info in infos.items():
        loaded = datasets.load_dataset(str(path), config)
        assert {s["name"]: s["num_examples"] for s in info["splits"]} == loaded.num_rows
        sizes = {s["name"]: s["num_bytes"] for s in info["splits"]}
        for split, rows in loaded.items():
            assert rows.data.nbytes * 0.9 < sizes[split] < rows.data.nbytes * 1.1
        assert info["dataset_size"] == sum(sizes.values())
        assert datasets.Features._from_yaml_list(info["features"]) == FEATURES
    assert infos["default"]["download_size"] == sum((path / name).stat().st_size for name in files)


def test_rows_without_a_column_of_ours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="split 'train': the column 'image_credit' is missing"):
        write(tmp_path, {"train": dataset([row(1)]).remove_columns("image_credit")})


def test_images_are_counted_once_and_rows_by_the_licence_of_theirs(tmp_path: Path) -> None:
    rows = [row(number, kind) for kind in TYPES for number in (1, 2, 3)]
    for changed in rows:
        if changed["image_id"].endswith("3"):
            changed["image_license"] = None
    path = write(tmp_path / "out", {"train": dataset(rows), "validation": dataset(rows[:1])})
    found = json.loads((path / "provenance.json").read_text(encoding="utf-8"))
    assert found["media_licenses"] == [
        {"license": "CC-BY-2.0", "media": 2, "rows": 7, "commercial": True},
        {"license": None, "media": 1, "rows": 3, "commercial": None},
    ]


def test_truncated_rows_are_counted_by_type(tmp_path: Path) -> None:
    cut = row(1, "detail")
    cut["provenance"] = {**cut["provenance"], "notes": ["preamble", "truncated"]}
    path = write(tmp_path / "out", {"train": dataset([cut, row(2, "detail"), row(1)])})
    card = (path / "README.md").read_text(encoding="utf-8")
    assert "| conversation | 1 | 0 |" in card
    assert "| detail | 2 | 1 |" in card


def credited(number: int, license: str | None, kind: str = "detail") -> dict[str, Any]:
    credit = {
        "author": f"Author {number}",
        "title": f"Title {number}",
        "landing_url": "https://x.test/",
    }
    return row(
        number, kind, image_license=license, image_credit={**row(1)["image_credit"], **credit}
    )


def test_images_are_credited_once_and_only_those_that_ask_for_it(tmp_path: Path) -> None:
    named = ["CC-BY-2.0", "LicenseRef-US-Government-Work", "CC0-1.0", None, "Terms-Of-Somebody"]
    rows = [credited(n, name, k) for k in TYPES for n, name in enumerate(named)]
    text = (write(tmp_path, {"train": dataset(rows)}) / "ATTRIBUTION.md").read_text("utf-8")
    assert re.findall(r"Title \d", text) == ["Title 0", "Title 3", "Title 4"]
    assert re.findall(r"Author \d", text) == ["Author 0", "Author 3", "Author 4"]


def test_many_images_are_credited_in_a_file_of_their_own(tmp_path: Path) -> None:
    few, many = contents.LISTED_CREDITS, 2 * contents.LISTED_CREDITS + 7
    rows = [credited(number, "CC-BY-2.0") for number in range(many)]
    path = write(tmp_path / "out", {"train": dataset(rows)})
    text = (path / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert f"{many:,} of them are listed in [image_credits.parquet](image_credits.parquet)" in text
    assert "Author 1" not in text
    listed = pq.read_table(path / "image_credits.parquet").to_pylist()
    assert [entry["title"] for entry in listed] == [f"Title {number}" for number in range(many)]
    assert list(listed[0]) == list(columns.CREDITS)
    assert len(datasets.load_dataset(str(path), split="train")) == many
    write(path, {"train": dataset(rows[:few])})
    assert not (path / "image_credits.parquet").exists()
    assert f"Author {few - 1}" in (path / "ATTRIBUTION.md").read_text(encoding="utf-8")


def test_an_interrupted_write_of_a_repository_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path, {"train": dataset([row(1)])}, files=lines([rejected(9)]))
    before = {name: (path / name).read_bytes() for name in files_below(path)}
    with pytest.raises(KeyboardInterrupt):
        repository.write(Interrupted(), path, origin(), Report())
    assert {name: (path / name).read_bytes() for name in before} == before
    assert list(datasets.load_dataset(str(path), split="train")) == [row(1)]
    write(path, {"train": dataset([row(2)])})
    assert not (path / ".partial").exists()
    assert list(datasets.load_dataset(str(path), split="train")) == [row(2)]


# Writes over copies of a release, and dies before the n-th change of a file's name in each.
_KILLED = """
import os, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from instruct_rows import dataset, row
from origins import origin
from mminstruct.releases import repository
from mminstruct.rows.report import Report

def die_at(count):
    left = [count]
    def hook(event, args):
        if event in ("os.rename", "os.remove", "os.rmdir") and sys.argv[1] in str(args[0]):
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)
    sys.addaudithook(hook)

for number in range(1, 100):
    path = Path(sys.argv[1]) / str(number) / "out"
    repository.write({"train": dataset([row(1), row(1, "detail")])}, path, origin(), Report())
    child = os.fork()
    if not child:
        die_at(number)
        new = {"train": dataset([row(2), row(3)])}
        repository.write(new, path, origin(), Report(), overwrite=True)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""


def test_wherever_a_replacement_is_killed_the_old_or_the_new_release_loads(tmp_path: Path) -> None:
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", _KILLED, str(tmp_path)]
    subprocess.run(command, check=True, timeout=120, env={**os.environ, "PYTHONPATH": paths})
    old, new = [row(1), row(1, "detail")], [row(2), row(3)]
    folders = sorted((f / "out" for f in tmp_path.iterdir()), key=lambda f: int(f.parent.name))
    found = [list(datasets.load_dataset(str(folder), split="train")) for folder in folders]
    first = found.index(new)
    assert found == [old] * first + [new] * (len(found) - first)
    assert 0 < first < len(found) - 5
    for folder in folders[first - 1 : first + 4]:
        write(folder, {"train": dataset([row(4)])})
        rows = [file for file in files_below(folder) if file.startswith("data/")]
        assert rows == list(json.loads((folder / "provenance.json").read_text())["files"])
        assert list(datasets.load_dataset(str(folder), split="train")) == [row(4)]


def test_a_card_says_which_types_there_are_rows_of_unless_it_is_all(tmp_path: Path) -> None:
    every = tuple(prompts.load("llava").types)
    for kinds in (every[:1], every[:2], every):
        path = tmp_path / str(len(kinds))
        write(path, {"train": dataset([row(n, kind) for n, kind in enumerate(kinds)])})
        shown = " and ".join(f"`{kind}`" for kind in kinds)
        said = (
            f"This release has rows of the type {shown} alone." in (path / "README.md").read_text()
        )
        assert said == (kinds != every)


def test_runs_that_write_one_folder_at_once_leave_a_whole_release_of_one_of_them(
    tmp_path: Path,
) -> None:
    path, failures = tmp_path / "out", []
    many = [{"train": dataset([row(n) for n in range(size)])} for size in (3, 30, 300, 9)]

    def write_it(splits: dict[str, datasets.Dataset]) -> None:
        try:
            write(path, splits)
        except BaseException as error:  # noqa: BLE001 (shown below)
            failures.append(error)

    threads = [threading.Thread(target=write_it, args=(splits,)) for splits in many]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    held = json.loads((path / "provenance.json").read_text())["files"]
    assert sorted(held) == [f for f in files_below(path) if f.startswith("data/")]
    assert len(datasets.load_dataset(str(path), split="train")) in (3, 9, 30, 300)


def test_a_folder_that_cannot_be_written_is_named_and_holds_nothing_in_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(datasets.Dataset, "to_parquet", fail)
    with pytest.raises(RunStopped, match=r"output path .*out can't be written: No space left"):
        write(tmp_path / "out", {"train": dataset([row(1)])})
    assert files_below(tmp_path / "out") == []


def test_what_gave_no_row_is_listed_in_the_repository(tmp_path: Path) -> None:
    splits = {"train": dataset([row(1)])}
    path = write(tmp_path / "out", splits, files=lines([rejected(2), rejected(3, "too_short")]))
    assert json_lines(path / "rejected.jsonl") == [rejected(2), rejected(3, "too_short")]
    assert len(datasets.load_dataset(str(path), split="train")) == 1
    write(path, splits)
    assert not (path / "rejected.jsonl").exists()


def test_provenance_says_what_the_rows_depend_on(tmp_path: Path) -> None:
    path = write(
        tmp_path / "out",
        {"train": dataset([row(1)])},
        by=origin(skipped={"no captions": 3}),
        failed={"detail": Counter(timeout=4)},
    )
    found = json.loads((path / "provenance.json").read_text(encoding="utf-8"))
    config = prompts.load("llava")
    assert found["prompt_configs"] == [
        {"name": "llava", "version": config.version, "hash": config.hash, "license": "CC0-1.0"}
    ]
    assert found["generation"]["temperature"] == ["0.7"]
    assert found["written_on"] == DAY.isoformat()
    assert found["sources"] == ["COCO2017"]
    assert found["rows"] == {"conversation": 1}
    assert found["failed"] == {"detail": {"timeout": 4}}
    assert found["skipped"] == {"no captions": 3}
    assert found["settings"]["seed"] == "none"
    assert found["licenses_checked"]["annotations of COCO 2017"] == "2026-11-22"


def test_no_file_of_a_repository_names_a_path_of_this_machine(tmp_path: Path) -> None:
    path = write(tmp_path / "out", {"train": dataset([row(1)])}, files=lines([rejected(2)]))
    content = b"".join((path / name).read_bytes() for name in files_below(path))
    for root in (tmp_path, Path.home(), Path(repository.__file__).parents[1]):
        assert str(root).encode() not in content


OPENAI = licenses.load().terms["openai-terms"]


@pytest.mark.parametrize(
    ("by", "reason"),
    [
        (origin(), "so the text may train any model commercially, obligations aside"),
        (origin("someone/finetune"), "the terms are not known here; no entry has this exact id"),
        (
            origin("gpt", terms=[Part("service", "the OpenAI API", OPENAI)]),
            "outputs may not train models of others",
        ),
        (
            origin("meta-llama/Llama-2-7b-chat-hf"),
            "outputs may train models of the same family only",
        ),
    ],
)
def test_card_and_licence_file_say_why(tmp_path: Path, by: Origin, reason: str) -> None:
    path = write(tmp_path / "out", {"train": dataset([row(1)])}, by=by)
    for name in ("README.md", "LICENSE"):
        text = (path / name).read_text(encoding="utf-8")
        assert reason in text
        assert COCO.attribution in text
        assert COCO.media_license in text
        assert by.verdict.license in text
        assert "name the author and the licence" in text
        for part in by.verdict.parts:
            assert part.by is None or part.by.source_url in text
    found = json.loads((path / "provenance.json").read_text(encoding="utf-8"))
    assert found["licensing"] == by.verdict.as_json()
