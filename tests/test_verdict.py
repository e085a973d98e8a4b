"""The sentence about commercial use: its forms, and that all places say the same one."""

from __future__ import annotations

import json
import logging
import shlex
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import coco_files
from instruct_rows import dataset, row
from loopback import LoopbackServer
from origins import origin

import mminstruct.sources
from mminstruct import cli, export, licenses
from mminstruct.cli.arguments import USAGE
from mminstruct.cli.console import DONE
from mminstruct.errors import UsageError
from mminstruct.licenses import Tally, Use
from mminstruct.releases import hub, notices, repository

FREE, BARRED = 4, 2  # COCO's ids of CC BY and CC BY-NC
LLAMA2 = "meta-llama/Llama-2-7b-chat-hf"
ALLOWS = licenses.load().allows


@pytest.mark.parametrize(
    ("text", "images", "said"),
    [
        (
            True,
            {"CC-BY-2.0": 26, "CC-BY-NC-2.0": 30, "CC-BY-ND-2.0": 24},
            "text: yes; images: 54 of 80 may not be used commercially, so 162 of 240 rows may "
            "not; --commercial leaves them out",
        ),
        (
            True,
            {"CC-BY-2.0": 1200},
            "text: yes; images: all 1,200 may be used commercially, so all 3,600 rows may",
        ),
        (
            True,
            {"CC-BY-NC-2.0": 2},
            "text: yes; images: none of 2 may be used commercially, so none of 6 rows may",
        ),
        (
            True,
            {"CC-BY-2.0": 5, "CC-BY-NC-2.0": 2, None: 1},
            "text: yes; images: 2 of 8 may not be used commercially, 1 unknown, so 6 of 24 rows "
            "may not, 3 unknown; --commercial leaves them out",
        ),
        (
            True,
            {"CC-BY-2.0": 5, "Own": 1},
            "text: yes; images: 1 of 6 unknown, so 3 of 18 rows unknown; --commercial leaves "
            "them out",
        ),
        (
            True,
            {None: 3},
            "text: yes; images: none of 3 is known to be free, so none of 9 rows is known to be "
            "free",
        ),
        (
            False,
            {"CC-BY-2.0": 5, "CC-BY-NC-2.0": 2},
            "text: no; images: 2 of 7 may not be used commercially, so none of 21 rows may",
        ),
        (
            None,
            {"CC-BY-2.0": 5, "CC-BY-NC-2.0": 2},
            "text: not known; images: 2 of 7 may not be used commercially, so 6 of 21 rows may "
            "not, 15 unknown",
        ),
        (True, {}, "text: yes"),
    ],
)
def test_the_sentence_tells_text_then_images_then_rows(
    text: bool | None, images: dict[str | None, int], said: str
) -> None:
    tally = Tally(kinds={"image"})
    tally.expect(images, 3, text, ALLOWS)
    assert str(tally.use(text, ALLOWS)) == said


def test_what_nobody_counted_is_told_of_all_or_not_at_all() -> None:
    tally = Tally(kinds={"motion"})
    tally.expect({"LicenseRef-AMASS": 1}, 3, True, ALLOWS)
    assert str(tally.use(True, ALLOWS, is_counted=False)) == (
        "text: yes; motions: none of them may be used commercially, so none of the rows may"
    )
    tally.kinds.add("image")
    tally.expect({"CC-BY-2.0": 1}, 3, True, ALLOWS)
    assert str(tally.use(True, ALLOWS, is_counted=False)) == (
        "text: yes; media: known once the annotations are read"
    )


def test_the_rows_of_a_source_whose_text_is_free_stay_free_beside_another() -> None:
    tally = Tally(kinds={"image", "motion"})
    tally.expect({"CC0-1.0": 4}, 1, True, ALLOWS)
    tally.expect({"CC0-1.0": 6}, 1, False, ALLOWS)
    assert str(tally.use(False, ALLOWS)) == (
        "text: not all of it; media: all 10 may be used commercially, so 6 of 10 rows may not"
    )


@contextmanager
def logged() -> Iterator[list[str]]:
    """What the builder logs meanwhile, and nobody else hears."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger = logging.getLogger("mminstruct.builder")
    before = logger.level, logger.handlers
    logger.setLevel(logging.INFO)
    logger.handlers = [Listener()]
    try:
        yield said
    finally:
        logger.setLevel(before[0])
        logger.handlers = before[1]


MIXED = (
    "text: yes; images: 2 of 4 may not be used commercially, so 4 of 8 rows may not; "
    "--commercial leaves them out"
)
ALL = "text: yes; images: all {} may be used commercially, so all {} rows may"
NONE = "text: yes; images: none of 4 may be used commercially, so none of 8 rows may"


@pytest.mark.parametrize(
    ("images", "whole", "commercial"),
    [
        ((FREE, BARRED, FREE, BARRED), MIXED, ALL.format(2, 4)),
        ((FREE,) * 4, ALL.format(4, 8), ALL.format(4, 8)),
        ((BARRED,) * 4, NONE, None),
    ],
)
def test_all_places_say_the_same(
    images: tuple[int, ...],
    whole: str,
    commercial: str | None,
    tmp_path: Path,
    server: LoopbackServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def edit(*files: Any) -> None:
        for file in files:
            for image, license in zip(file["images"], images, strict=True):
                image["license"] = license

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    coco_files(tmp_path / "cache", len(images), edit=edit)
    model = "--model_source openai --model Qwen/Qwen3-8B --types conversation detail_description"
    asked = f"COCO2017 {model} --openai_base_url {server.url}"
    refused = f"0 of {len(images)} images may be used commercially; left out: "
    for flag, said in (("", whole), (" --commercial", commercial)):
        code, out = DONE if said else USAGE, Path(f"out{flag.strip()}")
        assert cli.run(shlex.split(f"license {asked}{flag}")) == code
        printed = capsys.readouterr()
        first = printed.out.partition("licence of the text:")[0]
        assert " ".join(first.split()) == (f"commercial use: {said}" if said else "")
        command = f"generate {asked}{flag} --response_store s.sqlite --output_path {out}"
        assert cli.run(shlex.split(command)) == code
        told = capsys.readouterr().err.splitlines()
        arguments = {
            "types": ["conversation", "detail_description"], "split": "train",
            "backend": "openai", "model": "Qwen/Qwen3-8B", "base_url": server.url,
            "data_dir": "cache", "response_store": "s.sqlite",
            "commercial": bool(flag), "cache_dir": str(tmp_path / f"python{bool(flag)}"),
        }  # fmt: skip
        if said is None:
            assert refused in " ".join(printed.err.split())
            assert refused in told[0]
            with pytest.raises(UsageError, match=refused):
                datasets.load_dataset("builders/coco2017_llava", **arguments)
            assert cli.run(["export", "out", "--format", "jsonl", "--commercial"]) == USAGE
            assert "no row would be left; 0 rows, 8 left out" in capsys.readouterr().err
            assert not Path("out.jsonl").exists()
            continue
        assert f"mminstruct: {said}" in told[: 2 if flag else 1]
        assert f"Commercial use: **{said}**." in (out / "README.md").read_text().splitlines()
        assert (out / "LICENSE").read_text().startswith(f"Commercial use: {said}.\n")
        for source, more in ((out, []), (Path("out"), ["--commercial"] if flag else [])):
            export = ["export", str(source), "--format", "llava-instruct", "--overwrite"]
            assert cli.run([*export, *more]) == DONE
            assert capsys.readouterr().err.splitlines()[-1] == f"mminstruct: {said}"
            beside = Path(f"{source.name}.llava-instruct.json.LICENSE").read_text()
            assert beside.startswith(f"Commercial use: {said}.\n")
        with logged() as noted:
            datasets.load_dataset("builders/coco2017_llava", **arguments)
        assert said in noted
    assert len(server.bodies) == 2 * len(images)  # nothing was asked for twice


def test_license_gives_the_shares_of_a_source_whose_files_are_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def edit(*files: Any) -> None:
        for file in files:
            for image, license in zip(file["images"], (FREE, BARRED, BARRED), strict=True):
                image["license"] = license

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    command = "license COCO2017 OPENIMAGESV7 --model Qwen/Qwen3-8B --json"
    for are_there in (False, True):
        if are_there:
            coco_files(tmp_path / "cache", 3, edit=edit)
        assert cli.run(command.split()) == DONE
        told = json.loads(capsys.readouterr().out)
        coco, open_images = told["images"]
        assert "CC-BY-2.0, as published" in open_images or "cc-by-2.0, as published" in open_images
        if are_there:
            assert coco == (
                "COCO2017, train: CC-BY-NC-2.0 2, CC-BY-2.0 1, counted in the annotation files"
            )
        else:
            assert coco.startswith("COCO2017, train: ")
            assert "; not counted, as the annotation files are not in " in coco
        assert told["use"] is None


def written(folder: Path, *rows: dict[str, Any], **of: Any) -> Path:
    """A release of some rows."""
    repository.write({"train": dataset(list(rows))}, folder, origin(**of))
    return folder


TWO = (row(1), row(2, image_license="CC-BY-NC-2.0", commercial_use=False))


def test_a_commercial_release_does_not_speak_of_images_that_are_not_in_it(tmp_path: Path) -> None:
    for number, rows in enumerate((TWO[:1], TWO)):
        text = (written(tmp_path / str(number), *rows) / "README.md").read_text()
        assert ("may not be used commercially" in text) == (number == 1)
        assert "more than half" not in text
        assert "non-commercial" in text or number == 0


def test_no_page_or_source_claims_shares_of_licences() -> None:
    texts = [path.read_text() for path in Path("cards").glob("*.md")]
    texts += [
        mminstruct.sources.get(name).info.media_license for name in mminstruct.sources.names()
    ]
    assert len(texts) > 12
    for text in texts:
        words = " ".join(text.split())
        for claim in ("than half", "many of them", "most of them", "eight"):
            assert claim not in words


@pytest.mark.parametrize("output_format", export.FILE_FORMATS)
def test_a_record_says_what_its_row_may_be_used_for(tmp_path: Path, output_format: str) -> None:
    rows = (*TWO, row(3, image_license=None, commercial_use=None))
    outcome = export.export(
        written(tmp_path / "out", *rows), output_format, output_path=tmp_path / "x.json"
    )
    text = outcome.path.read_text()
    if export.FORMATS[output_format].layout == "lines":
        records = [json.loads(line) for line in text.splitlines()]
    elif output_format == "lavin":
        records = json.loads(text)["all"][::2]  # one a turn, of two
    else:
        records = json.loads(text)
    unknown = (None, None) if output_format == "jsonl" else ("unknown", False)  # rows as they are
    uses = [("CC-BY-2.0", True), ("CC-BY-NC-2.0", False), unknown]
    if output_format == "axolotl":  # opens whatever is called image_... as an image
        assert not any("image_license" in record for record in records)
        uses = [(None, use) for _, use in uses]
    assert [(r.get("image_license"), r["commercial_use"]) for r in records] == uses
    assert {r["license"] for r in records} == {"cc-by-4.0"}
    assert outcome.use == Use(
        True, Counter(free=1, barred=1, unknown=1), dict(free=1, barred=1, unknown=1)
    )


def test_commercial_and_image_licences_both_have_to_be_met(tmp_path: Path) -> None:
    out = written(tmp_path / "out", *TWO, row(3, image_license="CC-BY-SA-2.0"))
    outcome = export.export(
        out, "jsonl", output_path=tmp_path / "x.jsonl", commercial=True,
        image_licenses=["CC-BY-2.0", "CC-BY-NC-2.0"],
    )  # fmt: skip
    assert (outcome.rows, outcome.excluded) == (1, {"CC-BY-NC-2.0": 1, "CC-BY-SA-2.0": 1})


@pytest.mark.parametrize(
    ("model", "why"),
    [(LLAMA2, "may not be used commercially"), ("someone/finetune", "is not known to be free")],
)
def test_commercial_rows_of_a_text_that_is_not_free_are_refused(
    model: str, why: str, tmp_path: Path
) -> None:
    out = written(tmp_path / "out", *TWO, model=model)
    with pytest.raises(
        UsageError, match=f"commercial: the text of .*out {why}, whatever its images"
    ):
        export.export(out, "jsonl", output_path=tmp_path / "x.jsonl", commercial=True)
    assert not (tmp_path / "x.jsonl").exists()


def as_before(folder: Path) -> None:
    """Turn a release into one that notes no counts, as they were once written."""
    marker, license = folder / "provenance.json", folder / "LICENSE"
    noted = json.loads(marker.read_text())
    line = notices.read_use(noted)
    del noted["use"]
    marker.write_text(json.dumps(noted))
    for file in (license, folder / "README.md"):
        file.write_text(file.read_text().replace(line, "Commercial use: yes."))


def test_an_older_release_is_read_and_told_of_anew(tmp_path: Path) -> None:
    out = written(tmp_path / "out", *TWO)
    as_before(out)
    assert hub.open_release(out, "user/name").license_id == "cc-by-4.0"
    outcome = export.export(out, "jsonl", output_path=tmp_path / "x.jsonl")
    beside = (tmp_path / "x.jsonl.LICENSE").read_text()
    assert beside.startswith(f"Commercial use: {outcome.use}.\n")
    assert "1 of 2 may not be used commercially" in beside


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "provenance.json"])
def test_a_release_that_says_two_things_about_its_use_is_not_pushed(
    name: str, tmp_path: Path
) -> None:
    out = written(tmp_path / "out", *TWO)
    file = out / name
    text = file.read_text()
    changed = text.replace("1 of 2 rows may not", "all 2 rows may").replace(
        '"barred": 1', '"barred": 0'
    )
    assert changed != text
    file.write_text(changed)
    with pytest.raises(UsageError, match="doesn't say 'Commercial use: text: yes; images: "):
        hub.open_release(out, "user/name")
