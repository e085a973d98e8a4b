"""COCO files as the releases have them, and as they shouldn't be. All of them are invented here."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mminstruct.errors import SourceError, UsageError
from mminstruct.schema import Box, Context, Media
from mminstruct.sources import ReadReport
from mminstruct.sources._annotation_file import fingerprint
from mminstruct.sources._coco import CocoSource
from mminstruct.sources._image_licenses import IMAGE_LICENSES
from mminstruct.sources.coco2014 import SOURCE as COCO2014
from mminstruct.sources.coco2017 import SOURCE as COCO2017

Document = dict[str, Any]
CAPTIONS, INSTANCES = "captions_train2017.json", "instances_train2017.json"


def image(image_id: int, **changes: Any) -> Document:
    name = f"{image_id:012d}.jpg"
    return {
        "license": 4,
        "file_name": name,
        "coco_url": f"http://images.cocodataset.org/train2017/{name}",
        "height": 200,
        "width": 400,
        "date_captured": "2013-11-14 16:28:13",
        "flickr_url": f"http://farm1.staticflickr.com/12/{image_id}77_0a1b2c_z.jpg",
        "id": image_id,
    } | changes


def caption(annotation_id: int, image_id: int, text: str) -> Document:
    return {"image_id": image_id, "id": annotation_id, "caption": text}


def instance(annotation_id: int, image_id: int, bbox: list[Any], **changes: Any) -> Document:
    return {
        "segmentation": [[1.5, 2.5, 30.0, 2.5, 30.0, 40.25]],
        "area": 12.5,
        "iscrowd": 0,
        "image_id": image_id,
        "bbox": bbox,
        "category_id": 18,
        "id": annotation_id,
    } | changes


def captions_document(annotations: list[Document] | None = None, **changes: Any) -> Document:
    default = [
        caption(1, 42, "A tram waits."),
        caption(2, 7, "Two kites over a field."),
        caption(3, 42, "An old tram at a stop."),
    ]
    return {
        "info": {"description": "invented", "year": 2017},
        "licenses": [
            {"url": url, "id": license_id, "name": spdx}
            for license_id, (spdx, url) in IMAGE_LICENSES.items()
        ],
        "images": [image(42), image(7)],
        "annotations": default if annotations is None else annotations,
    } | changes


def instances_document(annotations: list[Document] | None = None, **changes: Any) -> Document:
    default = [
        instance(1, 42, [100, 50, 200, 100]),
        instance(2, 7, [0.0, 0.0, 40.0, 20.0], category_id=90),
        instance(3, 42, [0, 0, 400, 200], iscrowd=1, segmentation={"counts": [9], "size": [3, 3]}),
    ]
    return captions_document([]) | {
        "annotations": default if annotations is None else annotations,
        "categories": [
            {"supercategory": "animal", "id": 18, "name": "dog"},
            {"supercategory": "outdoor", "id": 90, "name": "traffic  light"},
        ],
        **changes,
    }


def write(
    folder: Path, captions: Document | str | bytes = "", instances: Document | str | bytes = ""
) -> Path:
    """The pair of train2017; what isn't given is the default document."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        (CAPTIONS, captions or captions_document()),
        (INSTANCES, instances or instances_document()),
    ):
        data = json.dumps(content) if isinstance(content, dict) else content
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def write_zip(target: Path, **documents: Document) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for role, document in documents.items():
            archive.writestr(f"annotations/{role}_train2017.json", json.dumps(document))
    return target


def read(
    data_dir: Path, source: CocoSource = COCO2017, report: ReadReport | None = None
) -> list[Context]:
    files = source.locate([data_dir], "train")
    assert files is not None
    return list(source.read(files, report or ReadReport()))


def read_one(tmp_path: Path, **documents: Document) -> tuple[Context, ReadReport]:
    """The only context of a pair that describes one image."""
    report = ReadReport()
    [context] = read(write(tmp_path, **documents), report=report)
    return context, report


def failure(tmp_path: Path, **documents: Document | str | bytes) -> str:
    with pytest.raises(SourceError) as caught:
        read(write(tmp_path, **documents))
    return str(caught.value)


# What contexts hold


def test_an_image_becomes_a_context_with_its_captions_boxes_and_media(tmp_path: Path) -> None:
    report = ReadReport()
    contexts = read(write(tmp_path), report=report)
    assert contexts[1] == Context(
        id="000000000042",
        media=Media(
            file_name="000000000042.jpg",
            url="http://images.cocodataset.org/train2017/000000000042.jpg",
            landing_url="https://www.flickr.com/photo.gne?id=4277",
            width=400,
            height=200,
            license="CC-BY-2.0",
            license_url="http://creativecommons.org/licenses/by/2.0/",
        ),
        captions=("A tram waits.", "An old tram at a stop."),
        boxes=(
            Box("dog", (0.25, 0.25, 0.75, 0.75)),
            Box("dog", (0.0, 0.0, 1.0, 1.0), is_group=True),
        ),
    )
    assert contexts[0].boxes == (Box("traffic light", (0.0, 0.0, 0.1, 0.1)),)
    assert report == ReadReport(contexts=2)


def test_contexts_come_in_ascending_order_of_their_ids(tmp_path: Path) -> None:
    ids = [9, 100, 10, 2]
    images = [image(n) for n in ids]
    texts = captions_document([caption(n, n, "Something.") for n in ids], images=images)
    write(tmp_path, texts, instances_document([], images=images))
    found = [context.id for context in read(tmp_path)]
    assert found == ["000000000002", "000000000009", "000000000010", "000000000100"]


def test_captions_lose_stray_white_space_empty_ones_and_repetitions(tmp_path: Path) -> None:
    texts = ["  A tram\n waits. ", " \n", "a TRAM waits.", "A tram waits", "Straße", "STRASSE"]
    context, report = read_one(
        tmp_path,
        captions=captions_document(
            [caption(n, 42, text) for n, text in enumerate(texts)], images=[image(42)]
        ),
        instances=instances_document([], images=[image(42)]),
    )
    assert context.captions == ("A tram waits.", "A tram waits", "Straße")
    assert report.skipped == {"empty caption": 1, "repeated caption": 2}


def test_quotes_and_accents_in_captions_survive(tmp_path: Path) -> None:
    context, _ = read_one(
        tmp_path,
        captions=captions_document(
            [caption(1, 42, 'A sign says "STOP" at the café. \U0001f6d1')], images=[image(42)]
        ),
        instances=instances_document([], images=[image(42)]),
    )
    assert context.captions == ('A sign says "STOP" at the café. \U0001f6d1',)


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ([-40, -20, 80, 40], (0.0, 0.0, 0.1, 0.1)),
        ([380, 190, 100, 100], (0.95, 0.95, 1.0, 1.0)),
        ([-5, -5, 4000, 4000], (0.0, 0.0, 1.0, 1.0)),
    ],
)
def test_a_box_that_leaves_the_image_is_cut_at_its_border(
    tmp_path: Path, bbox: list[float], expected: tuple[float, ...]
) -> None:
    context, _ = read_one(
        tmp_path,
        captions=captions_document([caption(1, 42, "A dog.")], images=[image(42)]),
        instances=instances_document([instance(1, 42, bbox)], images=[image(42)]),
    )
    [box] = context.boxes
    assert box.bbox_xyxy_norm == pytest.approx(expected)
    min_x, min_y, max_x, max_y = box.bbox_xyxy_norm
    assert 0 <= min_x < max_x <= 1
    assert 0 <= min_y < max_y <= 1


def test_boxes_without_area_inside_the_image_are_skipped_and_counted(tmp_path: Path) -> None:
    bad = [[10, 10, 0, 5], [10, 10, 5, 0], [500, 10, 5, 5], [10, -9, 5, 5], [10, 10, -5, 5]]
    context, report = read_one(
        tmp_path,
        captions=captions_document([caption(1, 42, "A dog.")], images=[image(42)]),
        instances=instances_document(
            [instance(n, 42, bbox) for n, bbox in enumerate([*bad, [0, 0, 40, 20]])],
            images=[image(42)],
        ),
    )
    assert context.boxes == (Box("dog", (0.0, 0.0, 0.1, 0.1)),)
    assert report.skipped == {"box outside the image or empty": 5}
    assert report.examples == {"box outside the image or empty": ["000000000042"]}


def test_images_without_captions_are_skipped_and_counted_in_either_file(tmp_path: Path) -> None:
    report = ReadReport()
    write(
        tmp_path,
        captions_document(
            [caption(1, 42, "A tram."), caption(2, 8, "  ")], images=[image(42), image(7), image(8)]
        ),
        instances_document(images=[image(42), image(7), image(9)]),
    )
    assert [context.id for context in read(tmp_path, report=report)] == ["000000000042"]
    assert report.skipped == {
        "image that the captions file doesn't have": 1,
        "image without captions": 2,
        "empty caption": 1,
    }
    assert report.harmless == {"image that the captions file doesn't have"}
    assert report.contexts == 1


def test_an_image_without_instances_has_no_boxes_but_is_kept(tmp_path: Path) -> None:
    write(tmp_path, "", instances_document([instance(1, 42, [0, 0, 9, 9])], images=[image(42)]))
    assert [len(context.boxes) for context in read(tmp_path)] == [0, 1]


@pytest.mark.parametrize(
    ("flickr_url", "landing_url"),
    [
        (
            "http://farm9.staticflickr.com/8/123_abc_z.jpg",
            "https://www.flickr.com/photo.gne?id=123",
        ),
        (
            "https://live.staticflickr.com/8/123_abc.jpg",
            "https://www.flickr.com/photo.gne?id=123",
        ),
        ("http://example.org/8/123_abc_z.jpg", None),
        ("http://farm9.staticflickr.com/8/nothing.jpg", None),
        ("", None),
        (None, None),
    ],
)
def test_the_landing_page_comes_from_the_photo_id_in_the_flickr_address(
    tmp_path: Path, flickr_url: str | None, landing_url: str | None
) -> None:
    images = [image(42, flickr_url=flickr_url)]
    context, _ = read_one(
        tmp_path,
        captions=captions_document([caption(1, 42, "A tram.")], images=images),
        instances=instances_document([], images=images),
    )
    assert context.media.landing_url == landing_url


def test_each_of_the_eight_image_licences_is_recognised(tmp_path: Path) -> None:
    images = [image(n, license=n) for n in IMAGE_LICENSES]
    texts = captions_document([caption(n, n, "Something.") for n in IMAGE_LICENSES], images=images)
    write(tmp_path, texts, instances_document([], images=images))
    found = [(c.media.license, c.media.license_url) for c in read(tmp_path)]
    assert found == list(IMAGE_LICENSES.values())


@pytest.mark.parametrize("license_id", [0, 9, None])
def test_an_unknown_image_licence_stays_unknown(tmp_path: Path, license_id: int | None) -> None:
    images = [image(42, license=license_id)]
    context, _ = read_one(
        tmp_path,
        captions=captions_document([caption(1, 42, "A tram.")], images=images),
        instances=instances_document([], images=images),
    )
    assert (context.media.license, context.media.license_url) == (None, None)


def test_a_file_with_its_own_licence_numbers_is_not_read_with_those_of_coco(
    tmp_path: Path,
) -> None:
    images = [image(42, license=4), image(43, license=5)]
    table = [
        {"id": 4, "url": "https://example.org/terms", "name": "House rules"},
        {"id": 5, "url": "https://creativecommons.org/licenses/by-sa/2.0", "name": "BY-SA"},
    ]
    texts = [caption(n, n, "A tram.") for n in (42, 43)]
    write(
        tmp_path,
        captions_document(texts, images=images, licenses=table),
        instances_document([], images=images),
    )
    first, second = (context.media for context in read(tmp_path))
    assert (first.license, first.license_url) == (None, "https://example.org/terms")
    assert second.license == "CC-BY-SA-2.0"


def test_optional_fields_of_an_image_may_be_missing(tmp_path: Path) -> None:
    bare = {"id": 42, "file_name": "42.jpg", "width": 10, "height": 10}
    context, _ = read_one(
        tmp_path,
        captions={"images": [bare], "annotations": [caption(1, 42, "A tram.")]},
        instances={"images": [bare], "annotations": [], "categories": []},
    )
    assert context.media == Media("42.jpg", width=10, height=10)


# Where files are found


@pytest.mark.parametrize("folder", [".", "annotations"])
def test_extracted_files_are_found_in_the_folder_and_in_annotations(
    tmp_path: Path, folder: str
) -> None:
    write(tmp_path / folder)
    assert len(read(tmp_path)) == 2


@pytest.mark.parametrize("folder", [".", "annotations"])
def test_the_official_zip_is_read_without_leaving_anything_beside_it(
    tmp_path: Path, folder: str
) -> None:
    documents = {"captions": captions_document(), "instances": instances_document()}
    archive = write_zip(tmp_path / folder / "annotations_trainval2017.zip", **documents)
    write(tmp_path / "extracted")
    before = sorted(tmp_path.rglob("*"))
    assert read(tmp_path) == read(tmp_path / "extracted")
    assert read(archive) == read(tmp_path / "extracted")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_zip_and_what_it_extracts_to_have_one_fingerprint(tmp_path: Path) -> None:
    documents = {"captions": captions_document(), "instances": instances_document()}
    write_zip(tmp_path / "a" / "annotations_trainval2017.zip", **documents)
    write(tmp_path / "b" / "annotations")
    zipped, extracted = (COCO2017.locate([tmp_path / name], "train") for name in "ab")
    assert zipped is not None
    assert extracted is not None
    assert zipped.fingerprint == extracted.fingerprint


def test_the_fingerprint_follows_the_bytes_and_the_role_of_each_file(tmp_path: Path) -> None:
    one, other = captions_document([]), captions_document([caption(1, 42, "A tram.")])
    fingerprints = set()
    for name, (captions, instances) in {
        "a": (one, other),
        "b": (other, one),
        "c": (one, one),
    }.items():
        files = COCO2017.locate([write(tmp_path / name, captions, instances)], "train")
        assert files is not None
        fingerprints.add(files.fingerprint)
    assert len(fingerprints) == 3


def test_extracted_files_are_preferred_to_the_zip(tmp_path: Path) -> None:
    write(tmp_path, captions_document([caption(1, 42, "Extracted.")]))
    (tmp_path / "annotations_trainval2017.zip").write_bytes(b"not even looked at")
    assert [context.captions for context in read(tmp_path)] == [("Extracted.",)]


def test_nothing_is_located_where_nothing_is(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "empty").mkdir()
    assert COCO2017.locate([tmp_path / "empty"], "train") is None
    assert COCO2017.locate([tmp_path / "absent"], "train") is None
    assert COCO2017.locate([], "train") is None
    assert COCO2017.locate([tmp_path], "validation") is None
    assert COCO2014.locate([tmp_path], "train") is None


@pytest.mark.parametrize(("gone", "left"), [(CAPTIONS, INSTANCES), (INSTANCES, CAPTIONS)])
def test_half_a_pair_is_an_error_that_names_the_missing_file(
    tmp_path: Path, gone: str, left: str
) -> None:
    (write(tmp_path) / gone).unlink()
    with pytest.raises(SourceError) as caught:
        COCO2017.locate([tmp_path], "train")
    message = str(caught.value)
    assert message.startswith(f"{gone}: missing, got only {tmp_path / left}")
    assert f"looked in {tmp_path / 'annotations'}, {tmp_path}, " in message


def test_one_file_of_a_pair_given_itself_is_answered_with_the_folder(tmp_path: Path) -> None:
    path = write(tmp_path) / CAPTIONS
    with pytest.raises(SourceError, match=f"^{INSTANCES}: missing.* Give the folder with both"):
        COCO2017.locate([path], "train")


def test_half_a_pair_in_a_zip_is_an_error_too(tmp_path: Path) -> None:
    write_zip(tmp_path / "annotations_trainval2017.zip", captions=captions_document())
    with pytest.raises(SourceError, match=f"^{INSTANCES}: missing"):
        COCO2017.locate([tmp_path], "train")


def test_the_validation_split_is_called_val_in_file_names(tmp_path: Path) -> None:
    write(tmp_path)
    for name in (CAPTIONS, INSTANCES):
        (tmp_path / name).rename(tmp_path / name.replace("train", "val"))
    files = COCO2017.locate([tmp_path], "validation")
    assert files is not None
    assert len(list(COCO2017.read(files, ReadReport()))) == 2


def test_an_unknown_split_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match=r"no split 'valid' \(did you mean 'validation'\?\)"):
        COCO2014.downloads("valid")
    with pytest.raises(UsageError, match="choose from: train, validation"):
        COCO2014.locate([Path()], "")


def test_the_releases_differ_in_their_archive_and_name() -> None:
    assert (COCO2014.info.name, COCO2017.info.name) == ("COCO2014", "COCO2017")
    assert COCO2014.downloads("train") == COCO2014.downloads("validation")
    assert COCO2014.downloads("train") != COCO2017.downloads("train")


# Files of several megabytes, which are decoded in pieces


def long_instances(count: int, **changes: Any) -> Document:
    outline = [round(n * 0.37 % 400, 2) for n in range(8_000)]
    return instances_document(
        [
            instance(n, (42, 7)[n % 2], [n, 1.5, 10, 10], segmentation=[outline])
            for n in range(count)
        ],
        **changes,
    )


def reordered(document: Document, *keys: str) -> Document:
    """Those keys first, the others in their order."""
    return {key: document[key] for key in keys} | document


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("first", ["info", "annotations", "categories"])
def test_long_files_are_read_whatever_their_layout(
    tmp_path: Path, indent: int | None, first: str
) -> None:
    document = long_instances(200)
    data = json.dumps(reordered(document, first), indent=indent)
    assert len(data) > 9_000_000
    contexts = read(write(tmp_path, "", data))
    expected = [
        [x / 400 for x, *_ in (a["bbox"] for a in document["annotations"] if a["image_id"] == n)]
        for n in (7, 42)
    ]
    assert [[box.bbox_xyxy_norm[0] for box in c.boxes] for c in contexts] == expected


@pytest.mark.parametrize("zipped", [False, True])
def test_reading_a_long_file_takes_less_memory_than_the_file(tmp_path: Path, zipped: bool) -> None:
    document = long_instances(200)
    size = len(json.dumps(document))
    if zipped:
        name = "annotations_trainval2017.zip"
        write_zip(tmp_path / name, captions=captions_document(), instances=document)
    else:
        write(tmp_path, "", document)
    files = COCO2017.locate([tmp_path], "train")
    assert files is not None
    tracemalloc.start()
    try:
        assert len(list(COCO2017.read(files, ReadReport()))) == 2
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size / 2


def test_text_that_looks_like_the_border_of_two_annotations_is_kept(tmp_path: Path) -> None:
    text = '"annotations": [' + "}, {" * 50 + "x"
    texts = [caption(n, 42, f"{text}{n}") for n in range(60_000)]
    contexts = read(write(tmp_path, captions_document([*texts, caption(60_000, 7, text)])))
    assert contexts[0].captions == (text,)
    assert contexts[1].captions == tuple(annotation["caption"] for annotation in texts)


def test_nested_keys_and_objects_do_not_mislead(tmp_path: Path) -> None:
    strange = {'"annotations': [{"id": 1}, {"id": 2}], "info": {"annotations": [{"id": 1}]}}
    document = strange | long_instances(200, **strange)
    for annotation in document["annotations"][::20]:
        annotation["parts"] = [{"n": n} for n in range(90_000)]
    contexts = read(write(tmp_path, "", document))
    assert [len(context.boxes) for context in contexts] == [100, 100]


def test_an_odd_entry_of_a_long_file_is_left_out_and_damage_named_with_its_place(
    tmp_path: Path,
) -> None:
    document = long_instances(200)
    document["annotations"][150]["bbox"] = [1, 2, 3, None]
    report = ReadReport()
    contexts = read(write(tmp_path, "", document), report=report)
    assert [len(context.boxes) for context in contexts] == [100, 99]
    assert report.examples == {"box whose 'bbox' can't be read": ["150"]}
    data = json.dumps(document)
    assert f"got {len(data) // 2} bytes" in failure(tmp_path, instances=data[: len(data) // 2])
    place = data.index("null")
    damaged = data.replace("null", "@")
    assert f"got b'@], \"cat' at byte {place}" in failure(tmp_path, instances=damaged)


# Files that are damaged or contradict themselves


def test_truncated_json_is_an_error_that_says_how_much_is_there(tmp_path: Path) -> None:
    data = json.dumps(instances_document())[:300]
    message = failure(tmp_path, instances=data)
    assert message == (
        f"{INSTANCES}: the JSON ends early, got 300 bytes against a closing bracket at the end "
        f"expected. Fix it, or download the file again and put it at {tmp_path / INSTANCES}."
    )


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / CAPTIONS).write_bytes(b"")
    with pytest.raises(SourceError, match=f"^{CAPTIONS}: the JSON ends early, got 0 bytes"):
        read(tmp_path)


def test_bytes_that_are_not_json_are_named_with_their_place(tmp_path: Path) -> None:
    assert "damaged JSON, got b'<html>' at byte 0" in failure(tmp_path, captions="<html>")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have_are_read_where_nothing_needs_them(
    tmp_path: Path, number: str
) -> None:
    boxes = [instance(n, 42, [n, 2, 3, 4], area=float(number)) for n in range(3)]
    boxes[1]["bbox"][2] = float(number)
    texts = [caption(1, 42, f"A sign, {number}, here.")]
    context, report = read_one(
        tmp_path,
        captions=captions_document(texts, images=[image(42)], extra=float(number)),
        instances=instances_document(boxes, images=[image(42)]),
    )
    assert [box.bbox_xyxy_norm[0] for box in context.boxes] == [0.0, 2 / 400]
    assert context.captions == (f"A sign, {number}, here.",)
    assert report.skipped == {"box whose 'bbox' can't be read": 1}


@pytest.mark.parametrize(
    "bbox", [[1, 2, 3, None], [1, 2, 3, "x"], [1, 2, 3], [1, 2, 3, 4, 5], None, "box", {"x": 1}]
)
def test_a_box_that_is_not_four_numbers_is_left_out_and_named(tmp_path: Path, bbox: Any) -> None:
    boxes = [instance(n, 42, [n, 2, 30, 40]) for n in (7, 8, 9)]
    boxes[1]["bbox"] = bbox
    context, report = read_one(
        tmp_path,
        captions=captions_document([caption(1, 42, "A dog.")], images=[image(42)]),
        instances=instances_document(boxes, images=[image(42)]),
    )
    assert [box.bbox_xyxy_norm[0] for box in context.boxes] == [7 / 400, 9 / 400]
    why = "without 'bbox'" if bbox is None else "whose 'bbox' can't be read"
    assert report.examples == {f"box {why}": ["8"]}


def test_where_most_entries_cannot_be_read_the_run_stops_with_five_reasons(tmp_path: Path) -> None:
    bad: list[Document] = [
        instance(1, 42, [1, 2, 3]),
        instance(2, 42, [1, 2, 3, 4], category_id="dog"),
        instance(3, -5, [1, 2, 3, 4]),
        {"id": 4, "image_id": 42, "bbox": [1, 2, 3, 4]},
        {"id": 5, "category_id": 18, "bbox": [1, 2, 3, 4]},
        instance(6, 42, None),  # type: ignore[arg-type]
    ]
    good = [instance(9, 42, [1, 2, 30, 40])]
    message = failure(tmp_path, instances=instances_document([*bad, *good]))
    assert message.startswith(f"{INSTANCES}: 6 of 7 boxes can't be used, more than half: ")
    for reason in (
        "1 x box whose 'bbox' can't be read (1)",
        "1 x box whose 'category_id' can't be read (2)",
        "1 x box whose 'image_id' can't be read (3)",
        "1 x box without 'category_id' (4)",
        "1 x box without 'image_id' (5)",
    ):
        assert reason in message


def test_a_number_too_large_for_a_float_is_left_out(tmp_path: Path) -> None:
    boxes = [instance(1, 42, [1, 2, 3, 777]), instance(2, 42, [2, 2, 30, 40])]
    write(tmp_path, "", json.dumps(instances_document(boxes)).replace("777", "1e999"))
    report = ReadReport()
    assert [len(context.boxes) for context in read(tmp_path, report=report)] == [0, 1]
    assert report.skipped == {"box that isn't finite": 1}


# Other ways to write the same


def other_ways(captions: Document, instances: Document) -> None:
    for number, entry in enumerate(captions["images"]):
        entry |= {"id": str(entry["id"]), "license": "4", "width": 400.0}
        instances["images"][number] = entry | {"height": "200"}
    for entry in captions["annotations"]:
        del entry["id"]
        entry["image_id"] = f"{entry['image_id']:012d}"
    for entry in instances["annotations"]:
        del entry["id"]
        entry |= {
            "image_id": float(entry["image_id"]),
            "category_id": str(entry["category_id"]),
            "bbox": [str(value) for value in entry["bbox"]],
            "iscrowd": {0: False, 1: "1"}[entry["iscrowd"]],
            "area": None,
            "segmentation": None,
        }
    instances["categories"][0] |= {"id": "18", "supercategory": 5}


def test_numbers_are_read_as_what_they_look_like(tmp_path: Path) -> None:
    captions, instances = captions_document(), instances_document()
    plain = read(write(tmp_path / "plain", captions, instances))
    other_ways(captions, instances)
    report = ReadReport()
    assert read(write(tmp_path / "other", captions, instances), report=report) == plain
    assert report.skipped == {}


def test_a_field_that_rows_can_do_without_never_stops_a_run(tmp_path: Path) -> None:
    images = [image(42, license="CC BY", flickr_url=[]), image(7, license=None)]
    table = [{"id": "by", "url": "http://creativecommons.org/licenses/by/2.0/"}]
    boxes = [instance(1, 42, [100, 50, 200, 100], iscrowd="no", area="large")]
    report = ReadReport()
    write(
        tmp_path,
        captions_document(images=images, licenses=table),
        instances_document(boxes, images=images),
    )
    contexts = read(tmp_path, report=report)
    assert contexts[1].boxes == (Box("dog", (0.25, 0.25, 0.75, 0.75)),)
    assert [context.media.license for context in contexts] == [None, None]
    assert report.skipped == {
        "'iscrowd' of a box": 1,
        "'area' of a box": 1,
        "licence whose 'id' can't be read": 1,
        "'license' of an image": 1,
        "'flickr_url' of an image": 1,
    }
    assert report.harmless == set(report.skipped)


def test_captions_and_boxes_may_lie_in_one_file(tmp_path: Path) -> None:
    plain = read(write(tmp_path / "two"))
    both = instances_document()
    both["annotations"] += captions_document()["annotations"] * 3
    report = ReadReport()
    assert read(write(tmp_path / "one", both, both), report=report) == plain
    assert report.harmless >= {"entry with a 'caption' beside each box"}
    assert "box" not in "".join(set(report.skipped) - report.harmless)


# Files from elsewhere


@pytest.mark.parametrize(
    ("instances", "kind"),
    [
        ({"imgs": {}, "anns": {}, "cats": {}}, "a file of COCO-Text"),
        ([{"image": "0001.jpg", "caption": "A kite."}], "a list, whose first entry is an object"),
        ({"_via_img_metadata": {}}, "a project of the VGG Image Annotator"),
        ({"shapes": [], "imagePath": ""}, "a file of labelme"),
        (
            instances_document([{"image_id": 42, "segments_info": [], "file_name": "a.png"}]),
            "a file of panoptic segmentation",
        ),
        (instances_document(captions_document()["annotations"]), "a file of captions"),
        (instances_document() | {"categories": None, "annotations": {"7": {}}}, "keys 7 against a"),
    ],
)
def test_a_file_of_another_kind_is_named_as_what_it_is(
    tmp_path: Path, instances: Any, kind: str
) -> None:
    message = failure(tmp_path, instances=json.dumps(instances))
    assert message.startswith(f"{INSTANCES}: got ")
    assert kind in message


def test_a_file_of_keypoints_is_named_as_what_it_is(tmp_path: Path) -> None:
    person = [{"id": 1, "name": "person", "keypoints": ["nose"], "skeleton": []}]
    document = instances_document([instance(1, 42, [0, 0, 9, 9], category_id=1)], categories=person)
    assert "got a file of keypoints" in failure(tmp_path, instances=document)


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        (
            {"categories": [{"id": 18, "name": "orchard"}]},
            "categories that COCO doesn't have, orchard",
        ),
        (
            {"images": [image(42, file_name="IMG_2041.jpg"), image(7, file_name="shot.png")]},
            "ids that aren't the numbers in their images' names, 42 of 'IMG_2041.jpg'",
        ),
        ({"info": {"contributor": "Orchard Ltd"}}, "the contributor 'Orchard Ltd'"),
    ],
)
def test_data_that_is_not_cocos_own_is_refused_with_a_pointer(
    tmp_path: Path, changes: Document, got: str
) -> None:
    write(tmp_path, captions_document() | changes, instances_document() | changes)
    with pytest.raises(SourceError, match=f"^{INSTANCES}, {CAPTIONS}: got {got}") as caught:
        read(tmp_path)
    assert "mminstruct describe PATH" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"info": {"contributor": "COCO Consortium", "year": 2017}},
        {"images": [image(42, file_name="COCO_train2014_000000000042.jpg"), image(7)]},
        {"images": [image(42, file_name="train2017/42.png"), image(7, file_name="other.jpg")]},
    ],
)
def test_a_part_of_coco_is_coco_wherever_it_came_through(tmp_path: Path, changes: Document) -> None:
    write(tmp_path, captions_document() | changes, instances_document() | changes)
    assert len(read(tmp_path)) == 2


# Where things are and what they are called


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("day1/cam0/42.jpg", "day1/cam0/42.jpg"),
        ("./day1//42.jpg", "day1/42.jpg"),
        ("day1/../42.jpg", "42.jpg"),
        ("day1\\cam0\\42.jpg", "day1/cam0/42.jpg"),
        ("..\\..\\upload\\4\\42.jpg", "42.jpg"),
        ("a/../../b/42.jpg", "42.jpg"),
        ("/home/anna/private/42.jpg", "42.jpg"),
        ("~/private/42.jpg", "42.jpg"),
        ("C:\\Users\\anna\\42.jpg", "42.jpg"),
        ("C:42.jpg", "42.jpg"),
        ("\\\\server\\share\\42.jpg", "42.jpg"),
        ("file:///home/anna/42.jpg", "42.jpg"),
        ("s3://bucket/private/42.jpg", "42.jpg"),
        ("https://x.test/private/42.jpg?X-Amz-Signature=abc", "42.jpg"),
    ],
)
def test_only_paths_that_stay_inside_their_folder_are_published(
    tmp_path: Path, name: str, published: str
) -> None:
    images = [image(42, file_name=name)]
    context, report = read_one(
        tmp_path,
        captions=captions_document([caption(1, 42, "A tram.")], images=images),
        instances=instances_document([], images=images),
    )
    assert context.media.file_name == published
    changed = {"path before a file's name": 1} if name != published else {}
    assert report.skipped == changed


@pytest.mark.parametrize(
    "url",
    [
        "shot_1.png",
        "/home/anna/1.png",
        "https://u:p@x.test/1.png",
        "https://x.test/1?sig=a",
        "s3://b/1",
    ],
)
def test_an_address_that_is_none_or_signed_is_not_published(tmp_path: Path, url: str) -> None:
    images = [image(42, coco_url=url, flickr_url=url)]
    context, report = read_one(
        tmp_path,
        captions=captions_document([caption(1, 42, "A tram.")], images=images),
        instances=instances_document([], images=images),
    )
    assert (context.media.url, context.media.landing_url) == (None, None)
    assert report.skipped == {"address of an image that is none or has a signature": 1}


def test_the_second_image_of_one_name_is_left_out(tmp_path: Path) -> None:
    images = [image(42), image(7, file_name=image(42)["file_name"])]
    report = ReadReport()
    write(tmp_path, captions_document(images=images), instances_document(images=images))
    assert [context.id for context in read(tmp_path, report=report)] == ["000000000007"]
    assert report.examples == {"image whose name another image has": ["000000000042"]}


def test_marks_gzip_and_a_folder_more_make_no_difference(tmp_path: Path) -> None:
    write(tmp_path / "plain")
    plain = read(tmp_path / "plain")
    for name, folder in (("marked", "."), ("packed", "."), ("deeper", "coco"), ("zip", ".")):
        target = tmp_path / name / folder
        target.mkdir(parents=True)
        for file in (CAPTIONS, INSTANCES):
            content = (tmp_path / "plain" / file).read_bytes()
            if name == "marked":
                (target / file).write_bytes(b"\xef\xbb\xbf" + content)
            elif name == "packed":
                (target / f"{file}.gz").write_bytes(gzip.compress(content))
            elif name == "deeper":
                (target / file).write_bytes(content)
            else:
                archive = tmp_path / "zip" / "annotations_trainval2017.zip"
                with zipfile.ZipFile(archive, "a") as opened:
                    opened.writestr(f"coco/2017/{file}", content)
        assert read(tmp_path / name) == plain
    packed, unpacked = (COCO2017.locate([tmp_path / n], "train") for n in ("packed", "plain"))
    assert packed is not None and unpacked is not None
    assert packed.fingerprint == unpacked.fingerprint
    path = tmp_path / "packed" / f"{CAPTIONS}.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SourceError, match=f"^{CAPTIONS}.gz: damaged gzip, got "):
        read(tmp_path / "packed")


@pytest.mark.parametrize(
    ("encoding", "hint"), [("utf-16", "iconv -f UTF-16"), ("cp1252", "iconv -f CP1252")]
)
def test_another_encoding_is_named(tmp_path: Path, encoding: str, hint: str) -> None:
    document = captions_document([caption(1, 42, "A café.")])
    data = json.dumps(document, ensure_ascii=False).encode(encoding)
    message = failure(tmp_path, captions=data)
    assert message.startswith(f"{CAPTIONS}: got b")
    assert hint in message


# Boxes that can't be where they are


def boxes_document(boxes: list[list[float]], *, area: float | None = 12.5) -> Document:
    more = {} if area is None else {"area": area}
    return instances_document(
        [instance(n, 42, bbox) | more for n, bbox in enumerate(boxes)], images=[image(42)]
    )


@pytest.mark.parametrize(
    ("boxes", "reading"),
    [
        ([[n, 50, 280 + n, 150] for n in range(100, 110)], "x_min, y_min, x_max, y_max"),
        ([[n, 20, 20 + n, 60] for n in range(8)], "x_min, y_min, x_max, y_max"),
        ([[150, n, 40, 100] for n in range(200, 230)], "width and height exchanged"),
        ([[380, 180, 40, 40 - n] for n in range(9)], "x_center, y_center, width, height"),
        ([[0.1, 0.2, 0.5, 0.25], [0, 0, 1, 1]], "fractions of the image"),
        ([[n * 1e4, 9e5, 5e5, 1] for n in range(8)], "no other reading fits"),
    ],
)
def test_boxes_that_cannot_be_right_stop_the_run_with_the_reading_that_fits(
    tmp_path: Path, boxes: list[list[float]], reading: str
) -> None:
    message = failure(tmp_path, instances=boxes_document(boxes))
    assert message.startswith(f"{INSTANCES}: ")
    assert reading in message


def test_areas_tell_corners_from_width_and_height(tmp_path: Path) -> None:
    corners = [[100, 20, 180, 120], [120, 20, 200, 120]]
    message = failure(tmp_path, instances=boxes_document(corners, area=8_000))
    assert "they would fit as xyxy (x_min, y_min, x_max, y_max)" in message
    write(tmp_path, "", boxes_document(corners, area=7_000))
    assert len(read(tmp_path)[1].boxes) == 2


def test_the_same_box_twice_is_one(tmp_path: Path) -> None:
    boxes = [instance(n, 42, [10, 20, 30, 40]) for n in range(3)]
    boxes += [instance(4, 42, [10, 20, 30, 40], category_id=90), instance(5, 7, [10, 20, 30, 40])]
    report = ReadReport()
    contexts = read(write(tmp_path, "", instances_document(boxes)), report=report)
    assert [len(context.boxes) for context in contexts] == [1, 2]
    assert report.skipped == {"box that is there twice": 2}


# Contradictions


@pytest.mark.parametrize("document", ["[]", "{}", '{"annotations": []}', "7", "null"])
def test_another_structure_is_an_error(tmp_path: Path, document: str) -> None:
    message = failure(tmp_path, captions=document)
    assert message.startswith(f"{CAPTIONS}: got ")
    assert "against an object with the keys annotations, images and a caption in each" in message


def test_invalid_utf8_in_a_caption_is_an_error(tmp_path: Path) -> None:
    data = json.dumps(captions_document()).encode().replace(b"tram", b"tr\xffm")
    assert failure(tmp_path, captions=data).startswith(f"{CAPTIONS}: got b'\\xff' at byte ")


def test_bottomless_nesting_is_an_error(tmp_path: Path) -> None:
    data = '{"info": ' + "[" * 100_000
    assert failure(tmp_path, captions=data).startswith(f"{CAPTIONS}: damaged JSON, got ")


def test_annotations_of_unknown_images_and_categories_are_left_out_and_named(
    tmp_path: Path,
) -> None:
    captions, instances = captions_document(), instances_document()
    plain = read(write(tmp_path / "plain", captions, instances))
    captions["annotations"].append(caption(900, 99, "A tram."))
    instances["annotations"] += [
        instance(901, 98, [0, 0, 9, 9]),
        instance(902, 42, [0, 0, 9, 9], category_id=12),
    ]
    report = ReadReport()
    assert read(write(tmp_path / "more", captions, instances), report=report) == plain
    assert report.examples == {
        "caption of an image that isn't in the file": ["99"],
        "box of an image that isn't in the file": ["98"],
        "box of a category that isn't in the file": ["000000000042"],
    }


@pytest.mark.parametrize(
    "size",
    [{"width": 0}, {"height": 0}, {"width": -400}, {"width": 2**31}, {"height": 10**12}],
)
def test_an_image_without_a_possible_size_is_left_out_and_named(
    tmp_path: Path, size: dict[str, int]
) -> None:
    images = [image(42, **size), image(7)]
    report = ReadReport()
    write(tmp_path, captions_document(images=images), instances_document(images=images))
    assert [context.id for context in read(tmp_path, report=report)] == ["000000000007"]
    assert report.examples == {"image without a possible size": ["000000000042"]}


@pytest.mark.parametrize("make", [captions_document, instances_document])
def test_different_images_of_one_id_are_an_error(tmp_path: Path, make: Any) -> None:
    role = "captions" if make is captions_document else "instances"
    images = [image(42), image(7), image(42, width=401)]
    message = failure(tmp_path, **{role: make(images=images)})
    assert f"{role}_train2017.json: image id 42 appears twice" in message


def test_an_image_that_is_listed_twice_is_one(tmp_path: Path) -> None:
    report = ReadReport()
    write(tmp_path, captions_document(images=[image(42), image(7), image(42)]))
    assert len(read(tmp_path, report=report)) == 2
    assert report.skipped == {"image that is listed twice": 1}


@pytest.mark.parametrize("image_id", [-1, 10**12, 10**30])
def test_an_image_id_that_does_not_fit_twelve_digits_is_left_out_and_named(
    tmp_path: Path, image_id: int
) -> None:
    images = [image(42), image(7), image(1) | {"id": image_id}]
    report = ReadReport()
    contexts = read(write(tmp_path, captions_document(images=images)), report=report)
    assert len(contexts) == 2
    assert list(report.examples.values()) == [[str(image_id)]]


def test_files_that_disagree_on_the_size_of_an_image_are_an_error(tmp_path: Path) -> None:
    document = instances_document(images=[image(42, width=401), image(7)])
    message = failure(tmp_path, instances=document)
    assert f"image 42 differs from {INSTANCES}, got 400 x 200 against 401 x 200 pixels" in message


def test_files_of_two_different_splits_are_an_error(tmp_path: Path) -> None:
    document = instances_document([], images=[image(1), image(2)])
    assert f"other images than in {INSTANCES}" in failure(tmp_path, instances=document)


@pytest.mark.parametrize(
    "categories",
    [
        [{"id": 18, "name": "dog"}, {"id": 18, "name": "cat"}],
        [{"id": 90, "name": "dog"}, {"id": "90", "name": "person"}],
    ],
)
def test_ambiguous_categories_are_an_error(tmp_path: Path, categories: list[Document]) -> None:
    document = instances_document([], categories=categories)
    assert "'categories' is ambiguous" in failure(tmp_path, instances=document)


def test_a_damaged_zip_is_an_error_that_says_where_to_put_a_whole_one(tmp_path: Path) -> None:
    documents = {"captions": captions_document(), "instances": instances_document()}
    archive = write_zip(tmp_path / "annotations_trainval2017.zip", **documents)
    data = bytearray(archive.read_bytes())
    archive.write_bytes(data[: len(data) // 2])
    advice = f"put it at {archive}"
    with pytest.raises(SourceError, match=f"^{archive.name}: damaged zip, got .* {advice}"):
        COCO2017.locate([tmp_path], "train")
    data[200] ^= 0xFF
    archive.write_bytes(data)
    with pytest.raises(SourceError, match=f"^{CAPTIONS}: damaged zip, got .* {advice}"):
        COCO2017.locate([tmp_path], "train")


def test_files_that_vanish_between_locating_and_reading_are_an_error(tmp_path: Path) -> None:
    files = COCO2017.locate([write(tmp_path)], "train")
    assert files is not None
    (tmp_path / CAPTIONS).unlink()
    with pytest.raises(SourceError, match=f"^{CAPTIONS}: can't be read, got 'No such file"):
        list(COCO2017.read(files, ReadReport()))


def test_the_digest_of_a_large_file_is_kept_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(cache))
    path = tmp_path / "large.csv"
    with path.open("wb") as file:
        file.truncate(1 << 26)
    before = fingerprint({"x": path})
    (kept,) = (cache / "mminstruct" / "fingerprints").iterdir()
    assert str(tmp_path) not in kept.read_text()
    assert fingerprint({"x": path}) == before
    kept.write_text("what is kept is what is used")
    assert fingerprint({"x": path}) != before
    with path.open("r+b") as file:
        file.write(b"a")
    changed = fingerprint({"x": path})
    with path.open("r+b") as file:
        file.write(b"\0")
    assert fingerprint({"x": path}) == before != changed
