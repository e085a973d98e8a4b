"""The LICENSE beside an export that has images: each of their licences is a part of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from image_server import ImageServer, picture
from instruct_rows import dataset, row
from origins import origin

from mminstruct import export
from mminstruct.errors import UsageError
from mminstruct.fetching.images import Fetching
from mminstruct.releases import repository
from mminstruct.sources._image_licenses import IMAGE_LICENSES

# What a LICENSE says of images under each licence, by COCO's id; 9 is unknown, 10 not registered.
SAID = {
    1: "1 image under CC-BY-NC-SA-2.0: CC BY-NC-SA 2.0, without commercial use [",
    2: "2 images under CC-BY-NC-2.0: CC BY-NC 2.0, without commercial use [",
    3: "1 image under CC-BY-NC-ND-2.0: CC BY-NC-ND 2.0, without commercial use and changes [",
    4: "1 image under CC-BY-2.0: CC BY 2.0, free for commercial use [",
    5: "1 image under CC-BY-SA-2.0: CC BY-SA 2.0, free for commercial use [",
    6: "1 image under CC-BY-ND-2.0: CC BY-ND 2.0, without changes [",
    7: "1 image under LicenseRef-flickr-commons: no known copyright restrictions (Flickr Commons), "
    "free for commercial use [",
    8: "1 image under LicenseRef-US-Government-Work: United States government work, free for "
    "commercial use [",
    9: "1 image under unknown licences: the terms are not known here",
    10: "1 image under own-1.0: the terms are not known here; no licence is registered as 'own-1.0",
}
NAMES: dict[int, str | None] = {n: spdx for n, (spdx, _) in IMAGE_LICENSES.items()}
NAMES |= {9: None, 10: "own-1.0"}
FREE = {4, 5, 7, 8}
SHOWN = [2, 9, 4, 3, 1, 6, 5, 8, 7, 10]  # by number, then by name
OWN = {
    "id": "own-1.0", "title": "our own licence", "hub": "other", "url": "https://example.org/own",
    "commercial": True, "derivatives": True, "source_url": "https://example.org/own",
    "clause": "1", "checked_on": "2026-11-22", "evidence": "primary",
}  # fmt: skip
USE = "Commercial use: text: yes; images: 5 of 11 may not be used commercially, 2 unknown, so 6 of "
USE += "12 rows may not, 2 unknown; --commercial leaves them out."


def rows_under(names: dict[int, str | None], **changes: Any) -> list[dict[str, Any]]:
    uses = {n: True if n in FREE else None if n > 8 else False for n in names}
    return [
        row(n, image_license=name, commercial_use=uses[n], **changes) for n, name in names.items()
    ]


def eleven() -> list[dict[str, Any]]:
    """Rows about an image under each licence, two under CC BY-NC, of which one has two rows."""
    (second,) = rows_under({2: NAMES[2]})
    another = {**second, "image_id": "11", "image": "11.jpg", "id": "eleven"}
    return [*rows_under(NAMES), another, {**second, "id": "again"}]


def released(folder: Path, rows: list[dict[str, Any]]) -> Path:
    repository.write({"train": dataset(rows)}, folder, origin())
    return folder


def with_files(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows' images in a folder."""
    folder.mkdir(exist_ok=True)
    for one in rows:
        (folder / one["image"]).write_bytes(picture())
    return folder


def images_in(text: str) -> list[str]:
    """What a LICENSE says of each licence of its images."""
    _, section = text.split("\nImages that are included, each under its own licence:\n\n")
    return [line.removeprefix("- ") for line in section.partition("\n\n")[0].splitlines()]


def starts(lines: list[str], numbers: list[int]) -> list[str]:
    """The lines, as far as `SAID` goes."""
    return [line[: len(SAID[n])] for n, line in zip(numbers, lines, strict=True)]


def credits_beside(path: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, Path(f"{path}.credits.jsonl").read_text().splitlines()))


@pytest.mark.parametrize("output_format", ["webdataset", "parquet"])
def test_images_in_shards_are_parts_of_what_is_shipped(tmp_path: Path, output_format: str) -> None:
    rows = eleven()
    outcome = export.export(
        released(tmp_path / "out", rows), output_format, output_path=tmp_path / "shards",
        images="path", image_folder=with_files(tmp_path / "images", rows),
    )  # fmt: skip
    assert (outcome.rows, outcome.missing) == (12, {})
    text = (tmp_path / "shards.LICENSE").read_text()
    assert text.startswith(f"{USE}\n\nThe text of this dataset: cc-by-4.0\n")
    assert starts(images_in(text), SHOWN) == [SAID[n] for n in SHOWN]
    assert "not included" not in text
    assert "\nThe images of COCO 2017 are included where rows are about them, as listed" in text
    for duty in ("name the author", "under CC BY-SA 2.0 or", "under CC BY-NC-SA 2.0 or"):
        assert text.count(duty) >= 1
    assert "shards.credits.jsonl names the author" in text
    assert [(c["image"], c["image_license"]) for c in credits_beside(tmp_path / "shards")] == [
        (one["image"], one["image_license"]) for one in rows[:-1]
    ]


@pytest.mark.parametrize("number", SAID)
def test_the_licence_of_images_under_one_licence_is_right(tmp_path: Path, number: int) -> None:
    rows = rows_under({number: NAMES[number]})
    outcome = export.export(
        released(tmp_path / "out", rows), "webdataset", output_path=tmp_path / "shards",
        images="path", image_folder=with_files(tmp_path / "images", rows),
    )  # fmt: skip
    (said,) = images_in((tmp_path / "shards.LICENSE").read_text())
    assert said.startswith(SAID[number].replace("2 images", "1 image"))
    use = "free" if number in FREE else "barred" if number < 9 else "unknown"
    assert outcome.use is not None
    assert (outcome.use.text, outcome.use.media, outcome.use.rows) == (True, {use: 1}, {use: 1})


@pytest.mark.parametrize("output_format", ["jsonl", "llava-instruct", "webdataset"])
def test_images_that_are_fetched_are_parts_of_what_is_shipped(
    tmp_path: Path, output_format: str
) -> None:
    with ImageServer() as server:
        rows = [{**one, "image_url": server.address(one["image"])} for one in eleven()]
        for asked in (["any"], None):
            export.export(
                released(tmp_path / "out", rows), output_format, output_path=tmp_path / "x.d",
                images="embed", image_licenses=asked, overwrite=True,
                fetching=Fetching(private_addresses=True),
            )  # fmt: skip
            shown = SHOWN if asked else [n for n in SHOWN if n in FREE]
            found = images_in((tmp_path / "x.d.LICENSE").read_text())
            assert starts(found, shown) == [SAID[n] for n in shown]


@pytest.mark.parametrize("images", ["none", "url", "path"])
def test_rows_that_only_name_their_images_speak_of_none(tmp_path: Path, images: Any) -> None:
    rows = eleven()
    files = with_files(tmp_path / "images", rows) if images == "path" else None
    out = released(tmp_path / "out", rows)
    export.export(
        out, "messages", output_path=tmp_path / "x.jsonl", images=images, image_folder=files
    )
    assert (tmp_path / "x.jsonl.LICENSE").read_text() == (out / "LICENSE").read_text()
    assert not (tmp_path / "x.jsonl.credits.jsonl").exists()


def test_a_licence_of_the_users_own_holds_for_what_is_shipped(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"licenses": [OWN]}))
    rows = rows_under({10: "own-1.0"})
    given: dict[str, Any] = {
        "output_path": tmp_path / "x", "images": "path",
        "image_folder": with_files(tmp_path / "images", rows), "overwrite": True,
    }  # fmt: skip
    out = released(tmp_path / "out", rows)
    entry = "1 image under own-1.0: our own licence, free for commercial use [1; "
    export.export(out, "parquet", licenses_file=tmp_path / "own.yaml", **given)
    (said,) = images_in((tmp_path / "x.LICENSE").read_text())
    assert said.startswith(entry)
    # The release knew no such licence, and what it says is no less true.
    assert said.endswith("(entered in own.yaml); not known, as the release says")
    assert "none of 1 is known to be free" in (tmp_path / "x.LICENSE").read_text()
    with pytest.raises(UsageError, match="licenses: of no use"):
        export.export(out, "jsonl", output_path=tmp_path / "y", licenses_file=tmp_path / "own.yaml")


def test_a_row_is_no_freer_than_its_image_that_goes_along(tmp_path: Path) -> None:
    rows = [row(n, image_license=name, commercial_use=True) for n, name in NAMES.items()]
    export.export(
        released(tmp_path / "out", rows), "webdataset", output_path=tmp_path / "x",
        images="path", image_folder=with_files(tmp_path / "images", rows), commercial=True,
    )  # fmt: skip
    assert len(images_in((tmp_path / "x.LICENSE").read_text())) == len(FREE)


def test_text_and_motions_have_no_image_that_could_go_along(tmp_path: Path) -> None:
    rows = [row(1, modality="text", image=None, image_url=None, image_license=None)]
    out = released(tmp_path / "out", rows)
    export.export(out, "jsonl", output_path=tmp_path / "x.jsonl", images="embed")
    assert (tmp_path / "x.jsonl.LICENSE").read_text() == (out / "LICENSE").read_text()
    assert credits_beside(tmp_path / "x.jsonl") == []


def test_a_release_of_others_gets_its_images_told_of_all_the_same(tmp_path: Path) -> None:
    rows = rows_under({3: NAMES[3]})
    out = released(tmp_path / "out", rows)
    (out / "provenance.json").unlink()
    (out / "LICENSE").write_text("Ours.\n")
    export.export(
        out, "parquet", output_path=tmp_path / "x",
        images="path", image_folder=with_files(tmp_path / "images", rows),
    )  # fmt: skip
    text = (tmp_path / "x.LICENSE").read_text()
    assert text.startswith("Ours.\n\nImages that are included")
    assert [line.startswith(SAID[3]) for line in images_in(text)] == [True]
