"""The page of rows: what is on it, what may run on it, and where its images are."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from dummy_data import write_all
from loopback import LoopbackServer

from mminstruct import cli
from mminstruct.cli.console import DONE
from mminstruct.export import FILE_FORMATS, FORMATS
from mminstruct.reports.page import Images, Sample
from mminstruct.reports.rows import Row
from mminstruct.schema import Media
from mminstruct.sources.sample import IMAGES

HOSTILE = "</script><script>document.title=1</script><img src=x onerror='document.title=2'>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def view(*arguments: str) -> dict[str, Any]:
    """The data of the page that the command writes to page.html."""
    assert cli.run(["view", *arguments, "--output_path", "page.html"]) == DONE
    return read_data(Path("page.html"))


def read_data(page: Path) -> dict[str, Any]:
    (text,) = DATA.findall(page.read_text("utf-8"))
    return dict(json.loads(text))


def write_rows(*rows: dict[str, Any]) -> str:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return "rows.jsonl"


def sample_row(number: int = 1, answer: str = "Three boats.", **columns: Any) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": "How many boats are there?"},
        {"role": "assistant", "content": answer},
    ]
    name = f"{number:012d}"
    known = {"id": f"sample-{name}-conversation", "type": "conversation", "source": "SAMPLE"}
    known |= {"image_id": name, "media": f"sample_{name}.png", "modality": "image"}
    return {**known, "messages": messages, **columns}


def test_a_release_is_shown_with_its_images_boxes_and_captions() -> None:
    assert cli.run(["generate", "SAMPLE", "--dry_run", "--output_path", "out"]) == DONE
    assert cli.run(["view", "out"]) == DONE
    data = read_data(Path("out/view.html"))
    assert data["noun"] == "image"
    assert len(data["images"]) == 12
    first = data["images"][0]
    assert (Path("out") / first["src"]).resolve() == IMAGES / "sample_000000000001.png"
    assert first["size"] == [640, 480]
    assert [box["label"] for box in first["boxes"]].count("boat") == 3
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes_of(first)]
    assert areas == sorted(areas, reverse=True)  # else a large one hides a small one
    assert len(first["captions"]) == 5
    assert {row["type"] for row in first["rows"]} == {
        "conversation",
        "detail_description",
        "complex_reasoning",
    }
    assert first["license"] == "CC0-1.0"


def boxes_of(image: dict[str, Any]) -> list[list[float]]:
    return [box["bbox_xyxy_norm"] for box in image["boxes"]]


def test_turns_have_the_verdicts_of_the_run_and_the_words_that_are_wrong() -> None:
    found = {"turn": 0, "kind": "count", "verdict": "contradicted", "said": "forty-seven boats"}
    found |= {"label": "boat", "known": "3 boxes of boat, none a group"}
    checks = {"version": "1", "verdicts": ["contradicted"], "findings": [found]}
    data = view(write_rows(sample_row(answer="There are forty-seven boats.", checks=checks)))
    (turn,) = data["images"][0]["rows"][0]["turns"]
    assert turn["verdict"] == "contradicted"
    assert turn["findings"] == [found]


def test_rows_without_verdicts_are_held_against_annotations_at_hand() -> None:
    data = view(write_rows(sample_row(answer="There are nine boats and a lighthouse.")))
    (turn,) = data["images"][0]["rows"][0]["turns"]
    assert turn["verdict"] == "contradicted"
    assert ("count", "contradicted") in {(f["kind"], f["verdict"]) for f in turn["findings"]}


def test_rows_of_others_are_shown_with_the_annotations_that_are_named() -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A boat."}]
    rows = write_rows({"id": "7", "image": "000000000001.jpg", "conversations": turns})
    folder = write_all(Path("data"), 2)
    data = view(rows, "--annotations", "COCO2017", "--dataset_storage_path", str(folder))
    (image,) = data["images"]
    assert image["name"] == "000000000001.jpg"
    assert image["captions"][0] == "Invented scene 1, seen by writer 0."
    assert image["boxes"]
    assert image["rows"][0]["turns"][0]["question"] == "What?"


def test_without_annotations_and_images_the_page_says_what_would_show_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = sample_row(source="COCO2017", media="000000000001.jpg")
    view(write_rows(row), "--dataset_storage_path", "nowhere")
    told = capsys.readouterr().err
    for words in (
        "of COCO2017: --annotations SOURCE --dataset_storage_path DIR",
        "1 image is not at hand: --images DIR says where.",
    ):
        assert words in told
        assert words in Path("page.html").read_text()


def test_a_column_of_others_called_checks_is_no_verdict() -> None:
    for checks in ({"findings": 1}, ["good"], {"findings": [{"turn": "x"}]}):
        data = view(write_rows(sample_row(source="", checks=checks)))
        assert data["images"][0]["rows"][0]["turns"][0]["verdict"] is None


def test_answers_that_gave_no_row_are_shown_with_their_text() -> None:
    entry = {"id": "sample-000000000012-conversation", "type": "conversation"}
    entry |= {"outcome": "rejected", "reason": "refusal", "detail": "turn 1", "answer": "I'm sorry"}
    rows = write_rows(sample_row())
    Path("rows.jsonl.rejected.jsonl").write_text(json.dumps(entry) + "\n", "utf-8")
    for path, count in ((rows, 2), ("rows.jsonl.rejected.jsonl", 1)):
        image = view(path)["images"][-1]
        assert len(view(path)["images"]) == count
        assert image["name"] == "SAMPLE 000000000012"
        assert len(image["captions"]) == 5
        (shown,) = image["rows"]
        assert shown == entry
        assert "keep the page to yourself" in Path("page.html").read_text()


def test_a_damaged_list_of_rejected_answers_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("rejected.jsonl").write_text('{"id": 1}\n', "utf-8")
    assert cli.run(["view", "rejected.jsonl"]) == 2
    assert "rejected.jsonl: can't be read" in capsys.readouterr().err


def test_a_list_of_rejected_answers_that_is_not_there_is_no_empty_page(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(["view", "out.rejected.jsonl"]) == 2
    assert "out.rejected.jsonl: expected a release, or rows in" in capsys.readouterr().err
    assert not Path("out.rejected.jsonl.html").exists()


def test_motions_have_a_timeline() -> None:
    folder = write_all(Path("data"), 2)
    arguments = ["--dataset_storage_path", str(folder)]
    generate = ["generate", "HUMANML3D", "--dry_run", "--splits", "train", "--output_path", "out"]
    assert cli.run([*generate, *arguments]) == DONE
    data = view("out", *arguments)
    assert data["noun"] == "motion"
    still = data["images"][1]
    assert still["src"] is None
    assert still["spans"] == [{"text": "the person stands still", "start_s": 2.0, "end_s": 3.5}]
    assert still["sections"][0] == {"heading": "Descriptions:", "lines": ["they bow twice"]}
    assert still["length_s"] == 71 / 20


def test_hostile_text_stays_text() -> None:
    credit = dict.fromkeys(("author", "title"), HOSTILE)
    credit |= dict.fromkeys(("author_url", "landing_url", "license_url"), "javascript:alert(1)")
    row = sample_row(answer=HOSTILE, source=HOSTILE, image_license=HOSTILE, image_credit=credit)
    row |= {"image_url": "javascript:alert(1)", "width": HOSTILE, "license": HOSTILE}
    (image,) = view(write_rows(row))["images"]
    text = Path("page.html").read_text("utf-8")
    assert image["rows"][0]["turns"][0]["answer"] == HOSTILE
    assert HOSTILE not in text
    assert text.count("<script") == 2
    assert "<img" not in text
    assert image["src"] is None
    assert {said["url"] for said in image["credit"]} == {None}
    assert image["size"] is None


def test_names_that_are_no_files_or_sources_are_only_names() -> None:
    names = ["a" * 400 + ".png", "a\0.png", ".", "..", "/etc/passwd", ""]
    rows = [
        sample_row(source=source, media=name, image_id=f"x{number}", commercial_use=[1])
        for number, name in enumerate(names)
        for source in ("SAMPLE", f"SAMPLE+{'a' * 400}", "../own.yaml", "a\0+b")
    ]
    images = view(write_rows(*rows))["images"]
    assert len(images) == len(rows)
    assert {image["src"] for image in images} == {None}


def test_a_page_runs_its_own_script_and_loads_images_alone() -> None:
    view(write_rows(sample_row()))
    text = Path("page.html").read_text("utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    rules = dict(rule.split(maxsplit=1) for rule in policy.replace("&#39;", "'").split("; "))
    assert rules.pop("img-src") == "'self' file: https: http:"
    for rule, tag in (("style-src", "style"), ("script-src", "script")):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        hashed = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert rules.pop(rule) == f"'sha256-{hashed}'"
    assert rules == dict.fromkeys(("default-src", "base-uri", "form-action"), "'none'")
    assert not re.search(r"https?://|@import|url\(|innerHTML|\son\w+=", DATA.sub("", text))


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_a_browser_shows_it_without_an_error_and_runs_nothing_of_the_text(tmp_path: Path) -> None:
    answer = f"Nine boats. Nine boats. {HOSTILE}"
    view(write_rows(sample_row(answer=answer), sample_row(2, HOSTILE)))
    done = subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--disable-background-networking"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"),
            *("--virtual-time-budget=5000", "--dump-dom", (tmp_path / "page.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr
    assert "<title>rows.jsonl</title>" in done.stdout
    shown = done.stdout.partition("</main>")[0]
    assert shown.count("<article") == shown.count("<img") == 2
    assert "2 answers on 2 images" in shown
    assert 'class="mark' not in shown
    assert '<mark class="contradicted"' in shown
    assert shown.count("(count):") == 1  # what is found twice is told once
    assert '<option value="contradicted">contradicted (1)</option>' in shown


def rows_of(images: int, each: int) -> list[Row]:
    names = [(f"{i}", f"{i}-{n}") for n in range(each) for i in range(images)]
    return [Row(id, "", "S", image, "", (), None, None, {}) for image, id in names]


def test_images_are_drawn_evenly_and_with_all_their_rows() -> None:
    drawn = {}
    for limit in (30, 300):
        sample = Sample(limit)
        for row in rows_of(1000, 3):
            sample.add(row)
        assert sample.seen == 3000
        assert limit - 3 < len(sample.rows) <= limit
        assert {len(rows) for rows in sample.images.values()} == {3}
        drawn[limit] = set(sample.images)
    assert drawn[30] < drawn[300]
    halves = [int(name.partition("/")[2]) < 500 for name in drawn[300]]
    assert 30 <= sum(halves) <= 70


def test_all_rows_are_held_where_the_limit_allows_it() -> None:
    sample = Sample(30)
    for row in rows_of(10, 3):
        sample.add(row)
    assert list(sample.images) == [f"S/{i}" for i in range(10)]
    assert len(sample.rows) == 30


def test_no_more_rows_of_one_image_are_held_than_the_limit() -> None:
    sample = Sample(5)
    for row in rows_of(1, 50):
        sample.add(row)
    assert len(sample.rows) == 5


def test_what_is_drawn_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    view(write_rows(*(sample_row(n) for n in range(1, 11))), "--limit", "4")
    assert "4 of 10 rows; drawn evenly, --limit 10 shows all." in capsys.readouterr().err
    assert "4 of 10 rows; drawn evenly" in Path("page.html").read_text()


@pytest.mark.parametrize(
    ("given", "name", "address"),
    [
        ("photos", "a b.png", "photos/a%20b.png"),
        ("photos", "train2017/a b.png", "photos/a%20b.png"),
        ("photos", "gone.png", None),  # what is named isn't replaced
        ("photos", "../secret.png", None),
        ("photos", "\\\\server\\share.png", None),
        (None, "beside.png", "beside.png"),
        (None, "gone.png", "https://images.test/1.png"),
    ],
)
def test_images_are_where_they_are_said_to_be(
    given: str | None, name: str, address: str | None, folder: Path
) -> None:
    (folder / "photos").mkdir()
    for file in ("photos/a b.png", "secret.png", "beside.png"):
        (folder / file).write_bytes(b"")
    images = Images(folder / "page.html", folder / given if given else None, folder)
    media = Media(name, url="https://images.test/1.png")
    assert images.address(media, "COCO2017") == address


@pytest.mark.parametrize("name", ["dataset", *FILE_FORMATS])
def test_a_run_ends_with_the_command_that_shows_its_rows(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["generate", "SAMPLE", "--dry_run", "--limit", "1", "--output_format", name]
    path = "my out" + (FORMATS[name].suffix if name in FORMATS else "")
    assert cli.run([*run, "--output_path", path]) == DONE
    last = capsys.readouterr().err.splitlines()[-1]
    is_read = name != "lavin"  # which has no conversations
    assert (last == f"mminstruct: look: mminstruct view '{path}'") is is_read
    if is_read:
        assert len(view(path)["images"]) == 1


def test_a_run_names_no_command_that_could_not_read_its_rows(
    server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = f"--model_source openai --model m --openai_base_url {server.url}"
    run = f"generate SAMPLE --limit 1 --types conversation {asked}".split()
    run += ["--response_store", "r.sqlite"]
    for name, is_read in (("rows.json", True), ("rows", False)):
        arguments = ["--output_format", "llava-instruct", "--output_path", name]
        assert cli.run([*run, *arguments]) == DONE
        said = capsys.readouterr().err
        assert "checks: " in said
        assert (f"mminstruct report {name}" in said) is is_read
        assert (f"mminstruct view {name}" in said) is is_read


def test_a_page_of_older_rows_does_not_outlive_them() -> None:
    run = ["generate", "SAMPLE", "--dry_run", "--output_path", "out"]
    assert cli.run([*run, "--limit", "1"]) == DONE
    assert cli.run(["view", "out"]) == DONE
    assert cli.run([*run, "--limit", "2"]) == DONE
    assert not Path("out/view.html").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--limit", "0"], "limit: expected at least 1, got 0"),
        (["--images", "nowhere"], "images: expected a folder, got nowhere"),
        (["--output_path", "rows.jsonl"], "expected a file with the end .html, got rows.jsonl"),
        (["--annotations", "COCO2018"], "unknown source 'COCO2018' (did you mean 'COCO2017'?)"),
        (["--machine_labels"], "--machine_labels is an option of OPENIMAGESV7, got SAMPLE"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(sample_row())
    before = Path(rows).read_bytes()
    assert cli.run(["view", rows, *arguments]) == 2
    assert words in capsys.readouterr().err
    assert Path(rows).read_bytes() == before
