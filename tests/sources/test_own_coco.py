"""COCO's format as people have it: files of labelling tools, under the user's name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from mminstruct import cli, sources
from mminstruct.errors import SourceError, UsageError
from mminstruct.schema import Context
from mminstruct.sources import ReadReport

ROBOFLOW = "_annotations.coco.json"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def document(*, boxes: bool = True, captions: bool = False) -> dict[str, Any]:
    """Three images of a harbour; the last one is empty."""
    found: dict[str, Any] = {
        "info": {"contributor": ""},
        "licenses": [{"id": 1, "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "categories": [{"id": 0, "name": "harbour"}, {"id": 1, "name": "crane"}],
        "images": [
            {"id": n, "file_name": f"quay{n}.jpg", "width": 640, "height": 480, "license": 1}
            for n in range(3)
        ],
        "annotations": [],
    }
    for n in range(2):
        if boxes:
            found["annotations"].append(
                {
                    "id": n,
                    "image_id": n,
                    "category_id": 1,
                    "iscrowd": 0,
                    "bbox": [64, 48, 320 + n, 240],
                    "area": (320 + n) * 240,
                }
            )
        if captions:
            text = f"A crane on quay {n}."
            found["annotations"].append({"id": 9 + n, "image_id": n, "caption": text})
    return found


def write(path: str, content: Any) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(content), "utf-8")
    return path


def read(name: str, split: str = "train", **chosen: Any) -> tuple[list[Context], ReadReport]:
    source = sources.get(name, chosen)
    report = ReadReport.of("image")
    files = source.locate([], split)
    assert files is not None
    return list(map(report.keep, source.read(files, report))), report


def shape(contexts: list[Context]) -> list[tuple[str, tuple[str, ...], list[str]]]:
    return [(c.id, c.captions, [box.label for box in c.boxes]) for c in contexts]


BOXED = [(f"{n:012d}", (), ["crane"]) for n in range(2)]
SAID = [(f"{n:012d}", (f"A crane on quay {n}.",), []) for n in range(2)]
BOTH = [(f"{n:012d}", (f"A crane on quay {n}.",), ["crane"]) for n in range(2)]


def test_boxes_alone_captions_alone_or_both_in_one_file_are_read() -> None:
    for kinds, expected in (
        ({"boxes": True}, BOXED),
        ({"boxes": False, "captions": True}, SAID),
        ({"captions": True}, BOTH),
    ):
        contexts, report = read(write("any name.json", document(**kinds)))
        assert shape(contexts) == expected
        assert report.skipped == {"image without captions and boxes": 1}
        assert report.faults() == []
    assert contexts[0].media.license == "CC0-1.0"
    assert contexts[0].boxes[0].bbox_xyxy_norm == (0.1, 0.1, 0.6, 0.6)


def test_captions_of_another_file_are_added_to_boxes() -> None:
    write("instances.json", document())
    write("said.json", document(boxes=False, captions=True))
    assert shape(read("instances.json", captions="said.json")[0]) == BOTH
    line = "generate ./instances.json --captions ./said.json --dry_run --output_path out"
    assert cli.run(line.split()) == 0
    rows = datasets.load_dataset("out", split="train", cache_dir="hf")
    assert set(rows["source"]) == {"instances"}
    other = document(boxes=False, captions=True)
    for image in other["images"]:
        image["height"] = 400
    write("said.json", other)
    with pytest.raises(SourceError, match="said.json: image 0 differs from instances.json"):
        read("instances.json", captions="said.json")


def test_a_roboflow_export_has_its_splits_by_folder() -> None:
    for folder in ("train", "valid", "test"):
        write(f"export/{folder}/{ROBOFLOW}", document())
    assert sources.get("./export").info.splits == ("train", "validation", "test")
    for split in ("train", "validation", "test"):
        assert shape(read("./export", split)[0]) == BOXED
    line = "generate ./export --source_license cc-by-4.0 --splits train test --dry_run"
    assert cli.run([*line.split(), "--types", "conversation", "--output_path", "out"]) == 0
    made = datasets.load_dataset("out", cache_dir="hf")
    assert {split: len(part) for split, part in made.items()} == {"train": 2, "test": 2}
    assert set(made["test"]["source"]) == {"export"}
    assert "cc-by-4.0" in Path("out/README.md").read_text().casefold()
    single = sources.get(f"./export/valid/{ROBOFLOW}").info
    assert (single.name, single.splits) == ("annotations", ("train",))


@pytest.mark.parametrize(
    "path",
    [
        "task/annotations/instances_default.json",  # CVAT
        "task/labels.json",  # FiftyOne, beside data/
        "task/result.json",  # Label Studio, beside images/
        "task/annotations.json",  # TACO, beside batch_1/
    ],
)
def test_the_folder_of_a_tool_is_enough(path: str) -> None:
    write(path, document())
    Path("task/images").mkdir()
    assert shape(read("./task")[0]) == BOXED
    assert sources.get("./task").info.name == "task"


def test_a_folder_that_has_captions_beside_boxes_is_read_as_both() -> None:
    for split in ("train", "val"):
        write(f"mine/annotations/instances_{split}.json", document())
        write(f"mine/annotations/captions_{split}.json", document(boxes=False, captions=True))
    for split in ("train", "validation"):
        assert shape(read("./mine", split)[0]) == BOTH
    write("mine/annotations/person_keypoints_train.json", document())
    with pytest.raises(SourceError, match="mine, split 'train': got 3 files in COCO's format"):
        read("./mine")


@pytest.mark.parametrize(
    "id_of",
    [str, lambda n: f"{n:04d}", float, lambda n: f"img-{n}", lambda n: 20240000000000 + n],
    ids=["text", "zeros", "float", "word", "long"],
)
def test_ids_of_any_form_are_read(id_of: Callable[[int], Any]) -> None:
    found = document(captions=True)
    for image in found["images"]:
        image["id"] = id_of(image["id"])
    for annotation in found["annotations"]:
        annotation["image_id"] = id_of(annotation["image_id"])
    contexts, report = read(write("x.json", found))
    named = {"img-": "img-{}", "2024": "2024000000000{}"}
    form = named.get(str(id_of(0))[:4], "00000000000{}")
    assert shape(contexts) == [(form.format(n), *rest) for n, (_, *rest) in enumerate(BOTH)]
    assert report.faults() == []


def test_numbers_and_flags_as_tables_write_them_are_read() -> None:
    found = document()
    found["categories"] = [{"id": "crane", "name": "crane"}]
    for annotation in found["annotations"]:
        annotation |= {"category_id": "crane", "iscrowd": False, "bbox": ["64", 48.0, 320.0, "240"]}
        annotation["segmentation"] = {"counts": "PQR", "size": [480, 640]}
    found["images"][0] |= {"width": 640.0, "height": "480", "license": "1"}
    contexts, report = read(write("x.json", found))
    assert [c.boxes[0].bbox_xyxy_norm for c in contexts] == [(0.1, 0.1, 0.6, 0.6)] * 2
    assert contexts[0].media.license == "CC0-1.0"
    assert report.faults() == []


def test_licences_are_those_of_the_files_own_table() -> None:
    found = document()
    found["licenses"] = [
        {"id": 1, "name": "Private, internal use only"},
        {"id": 2, "url": "https://creativecommons.org/licenses/by/4.0/"},
    ]
    found["images"][1]["license"] = 2
    name = write("x.json", found)
    assert [c.media.license for c in read(name)[0]] == [None, "CC-BY-4.0"]
    contexts, _ = read(name, image_license="cc0-1.0")
    assert [c.media.license for c in contexts] == ["cc0-1.0", "CC-BY-4.0"]


def corners(found: dict[str, Any]) -> None:
    for annotation in found["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h]


def test_corners_are_told_by_the_areas_and_taken_as_stated() -> None:
    found = document()
    corners(found)
    name = write("x.json", found)
    assert read(name)[0][0].boxes[0].bbox_xyxy_norm == (0.1, 0.1, 0.6, 0.6)
    for annotation in found["annotations"]:
        del annotation["area"]
    name = write("x.json", found)
    contexts, _ = read(name, box_format="xyxy")
    assert contexts[0].boxes[0].bbox_xyxy_norm == (0.1, 0.1, 0.6, 0.6)
    several = document()
    several["annotations"] = [
        {"id": n, "image_id": n % 2, "category_id": 1, "bbox": [10 + n, 10, 300 + n, 200]}
        for n in range(9)
    ]
    with pytest.raises(SourceError, match=r"x.json: got 9 boxes that fit as xywh .* and as xyxy"):
        read(write("x.json", several))


def exchange(found: dict[str, Any]) -> None:
    for image in found["images"]:
        image |= {"width": 480, "height": 640}
    for n, annotation in enumerate(found["annotations"]):
        annotation |= {"bbox": [400 + n, 100, 200, 30], "area": 6000}


def double(found: dict[str, Any]) -> None:
    found["images"][1]["file_name"] = "quay0.jpg"


def same_id(found: dict[str, Any]) -> None:
    found["images"][1]["id"] = 0


def panoptic(found: dict[str, Any]) -> None:
    found["annotations"] = [{"image_id": 0, "segments_info": [], "file_name": "0.png"}]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (exchange, "100% of the boxes leave their images.*width and height exchanged"),
        (double, "two images of one name, got 'quay0.jpg' for 000000000000 and 000000000001"),
        (same_id, "image id 0 appears twice"),
        (panoptic, "1 of 1 box can't be used"),
    ],
)
def test_a_file_that_contradicts_itself_is_told(
    change: Callable[[dict[str, Any]], None], words: str
) -> None:
    found = document()
    change(found)
    name = write("x.json", found)
    with pytest.raises(SourceError, match=f"(?s){words}"):
        read(name)[1].check("x")


def test_another_kind_of_file_is_named() -> None:
    for content, words in (
        ({"imgs": {}, "anns": {}}, "got a file of COCO-Text"),
        ({"_via_settings": {}}, "got a project of the VGG Image Annotator"),
        ({"shapes": []}, "got a file of labelme"),
    ):
        with pytest.raises(SourceError, match=words):
            read(write("x.json", content))


def test_a_folder_without_annotations_is_told() -> None:
    Path("empty").mkdir()
    with pytest.raises(SourceError, match="against a dataset that load_dataset reads expected"):
        sources.get("./empty")
    write("mixed/a.json", document())
    Path("mixed/b.csv").write_text("image,text\na.jpg,A.\n")
    with pytest.raises(
        UsageError, match="mixed: expected one format, got coco, table; give a file"
    ):
        sources.get("./mixed")
