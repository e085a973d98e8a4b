"""The bundled sample: what is in the folder is what the script draws, and its boxes are true."""

from __future__ import annotations

import json
from collections import Counter
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import PIL
import pytest
from PIL import Image, ImageChops
from sample import draw

SAMPLE = draw.FOLDER
PILLOW = tuple(int(part) for part in PIL.__version__.split(".")[:2])
drawn_alike = pytest.mark.skipif(PILLOW < (11, 2), reason="older Pillows fill polygons otherwise")


@pytest.fixture(scope="module")
def scenes() -> list[draw.Scene]:
    return [picture.draw() for picture in draw.PICTURES]


def load(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((SAMPLE / "annotations" / name).read_text())
    return document


@pytest.fixture(scope="module")
def captions() -> dict[str, Any]:
    return load("captions_train.json")


@pytest.fixture(scope="module")
def instances() -> dict[str, Any]:
    return load("instances_train.json")


@drawn_alike
def test_the_annotation_files_are_byte_for_byte_what_the_script_draws(
    scenes: list[draw.Scene],
) -> None:
    for name, document in draw.release(scenes).items():
        assert (SAMPLE / "annotations" / name).read_bytes() == draw.to_text(document).encode()


@drawn_alike
@pytest.mark.parametrize("index", range(12))
def test_an_image_has_the_pixels_that_the_script_draws(
    scenes: list[draw.Scene], index: int
) -> None:
    stored = Image.open(SAMPLE / "images" / draw.file_name(index + 1)).convert("RGB")
    drawn = scenes[index].image()
    assert ImageChops.difference(stored, draw.to_palette(drawn).convert("RGB")).getbbox() is None
    off = ImageChops.difference(stored, drawn).tobytes()
    assert sum(value > 16 for value in off) < len(off) / 1000  # few edge pixels lose their colour


def test_main_writes_the_same_folder_and_a_contact_sheet(tmp_path: Path) -> None:
    draw.main([str(tmp_path), "--sheet", str(tmp_path / "sheet.png")])
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    stored = {
        path.relative_to(SAMPLE).as_posix()
        for folder in ("images", "annotations")
        for path in (SAMPLE / folder).iterdir()
    }
    assert written == stored | {"sheet.png"}
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 1200


def test_there_are_twelve_images_and_their_files_have_the_size_that_is_written(
    captions: dict[str, Any], instances: dict[str, Any]
) -> None:
    assert captions["images"] == instances["images"]
    assert [entry["id"] for entry in captions["images"]] == list(range(1, 13))
    for entry in captions["images"]:
        with Image.open(SAMPLE / "images" / entry["file_name"]) as image:
            assert (image.format, image.size) == ("PNG", (entry["width"], entry["height"]))
    assert sum(path.stat().st_size for path in (SAMPLE / "images").iterdir()) < 400_000


def test_every_image_has_five_different_captions(captions: dict[str, Any]) -> None:
    pairs = {(entry["image_id"], entry["caption"]) for entry in captions["annotations"]}
    assert Counter(image_id for image_id, _ in pairs) == dict.fromkeys(range(1, 13), 5)
    assert all(text == text.strip() and len(text) > 20 for _, text in pairs)


def test_every_image_has_three_to_twelve_boxes_and_some_are_groups(
    instances: dict[str, Any],
) -> None:
    counts = Counter(entry["image_id"] for entry in instances["annotations"])
    assert set(counts) == set(range(1, 13))
    assert all(3 <= count <= 12 for count in counts.values())
    groups = Counter(e["image_id"] for e in instances["annotations"] if e["iscrowd"])
    assert groups and set(groups.values()) == {1}


def test_ids_are_unique_and_every_category_and_licence_is_used(
    captions: dict[str, Any], instances: dict[str, Any]
) -> None:
    for document in (captions, instances):
        ids = [entry["id"] for entry in document["annotations"]]
        assert len(ids) == len(set(ids))
        assert {image["license"] for image in document["images"]} == {9}
        assert [entry["id"] for entry in document["licenses"]] == [9]
    used = {entry["category_id"] for entry in instances["annotations"]}
    assert used == {category["id"] for category in instances["categories"]}


def decoded(segmentation: dict[str, Any]) -> Image.Image:
    """The mask of an uncompressed RLE, 0 and 255; its runs go down the columns."""
    height, width = segmentation["size"]
    ends = [0, *accumulate(segmentation["counts"])]
    assert ends[-1] == height * width
    runs = (b"\xff" * (b - a) if i % 2 else bytes(b - a) for i, (a, b) in enumerate(pairwise(ends)))
    columns = Image.frombytes("L", (height, width), b"".join(runs))
    return columns.transpose(Image.Transpose.TRANSPOSE)


def test_every_box_lies_in_its_image_and_is_tight_around_its_mask(
    instances: dict[str, Any],
) -> None:
    sizes = {image["id"]: (image["width"], image["height"]) for image in instances["images"]}
    for entry in instances["annotations"]:
        x, y, width, height = entry["bbox"]
        mask = decoded(entry["segmentation"])
        assert mask.size == sizes[entry["image_id"]]
        assert mask.getbbox() == (x, y, x + width, y + height)
        assert mask.histogram()[255] == entry["area"]
        assert min(width, height) >= 8


def test_a_hidden_part_does_not_count_for_the_box() -> None:
    scene = draw.Scene(100, 60, "#ffffff")
    with scene.place((10, 10), label="book"):
        scene.rect(0, 0, 40, 30, "#ff0000")
    with scene.place((30, 5), label="cup"):
        scene.rect(0, 0, 50, 50, "#0000ff")
    book, cup = scene.things()
    assert book.bbox_xywh == (10, 10, 20, 30)
    assert cup.bbox_xywh == (30, 5, 50, 50)


def test_an_object_that_cannot_be_seen_is_an_error() -> None:
    scene = draw.Scene(20, 20, "#ffffff")
    with scene.place(label="book"):
        scene.rect(5, 5, 9, 9, "#ff0000")
    scene.rect(0, 0, 20, 20, "#000000")
    with pytest.raises(ValueError, match="nothing is visible of a book"):
        scene.things()
