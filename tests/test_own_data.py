"""docs/own_data.md: its commands, on files in each tool's layout, in the working folder."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from mminstruct import cli
from mminstruct.cli.console import DONE
from mminstruct.schema import Box

PAGE = Path(__file__).parents[1] / "docs" / "own_data.md"
BLOCK = re.compile(r"(?:^`([\w./]+)`\n\n)?^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CRANE, SHIP = [64, 48, 320, 240], [16.5, 200.25, 600.0, 270.5]
SIZE = {"width": 640, "height": 480}


def section(title: str) -> list[tuple[str, str, str]]:
    """(file, language, text) of the blocks under a heading."""
    text = PAGE.read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return [match for match in BLOCK.findall(text)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the page's own files."""
    for name, _, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if name:
            (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, document: dict[str, Any]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(document), encoding="utf-8")


def roboflow() -> None:
    about = {
        "year": "2026",
        "version": "3",
        "description": "Exported from roboflow.com",
        "contributor": "",
        "url": "https://public.roboflow.com/object-detection/undefined",
        "date_created": "2026-01-02T03:04:05+00:00",
    }
    licenses = [
        {"id": 1, "url": "https://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"}
    ]
    for split, count in (("train", 2), ("valid", 1), ("test", 1)):
        images = [
            {
                "id": n,
                "license": 1,
                "file_name": f"quay-{n}_jpg.rf.0a1b2c3d4e5f{n}.jpg",
                "height": 480,
                "width": 640,
                "date_captured": "2026-01-02T03:04:05+00:00",
                "extra": {"name": f"quay-{n}.jpg"},
            }
            for n in range(count)
        ]
        boxes = [
            {
                "id": n,
                "image_id": n,
                "category_id": 1,
                "bbox": CRANE,
                "area": 76800,
                "segmentation": [],
                "iscrowd": 0,
            }
            for n in range(count)
        ]
        names = [(0, "harbour", "none"), (1, "crane", "harbour"), (2, "ship", "harbour")]
        write(
            f"export/{split}/_annotations.coco.json",
            {
                "info": about,
                "licenses": licenses,
                "categories": [{"id": i, "name": n, "supercategory": s} for i, n, s in names],
                "images": images,
                "annotations": boxes,
            },
        )
        for image in images:
            Image.new("RGB", (4, 3)).save(f"export/{split}/{image['file_name']}")
    Path("export/README.dataset.txt").write_text("# harbour > v3\n", encoding="utf-8")


def cvat() -> None:
    empty = ("contributor", "date_created", "description", "url", "version", "year")
    about = {"file_name": "quay_1.jpg", "license": 0, "flickr_url": "", "coco_url": ""}
    write(
        "task/annotations/instances_default.json",
        {
            "licenses": [{"name": "", "id": 0, "url": ""}],
            "info": dict.fromkeys(empty, ""),
            "categories": [
                {"id": 1, "name": "crane", "supercategory": ""},
                {"id": 2, "name": "ship", "supercategory": ""},
            ],
            "images": [{"id": 1, **SIZE, **about, "date_captured": 0}],
            "annotations": [
                {
                    "id": 1,
                    "image_id": 1,
                    "category_id": 1,
                    "bbox": CRANE,
                    "area": 76800.0,
                    "segmentation": [],
                    "iscrowd": 0,
                    "attributes": {"occluded": False, "rotation": 0.0},
                },
                {
                    "id": 2,
                    "image_id": 1,
                    "category_id": 2,
                    "bbox": SHIP,
                    "area": 162300.0,
                    "segmentation": {"counts": [307199, 1], "size": [480, 640]},
                    "iscrowd": 1,
                    "attributes": {"occluded": True},
                },
            ],
        },
    )


def label_studio() -> None:
    name = "..\\..\\label-studio\\data\\media\\upload\\7\\1a2b3c4d-quay_1.jpg"
    about = {"year": 2026, "version": "1.0", "description": "", "contributor": "Label Studio"}
    box = {"image_id": 0, "segmentation": [], "ignore": 0, "iscrowd": 0}
    write(
        "project/result.json",
        {
            "images": [{**SIZE, "id": 0, "file_name": name}],
            "categories": [{"id": 0, "name": "crane"}, {"id": 1, "name": "ship"}],
            "annotations": [
                {"id": 0, "category_id": 0, "bbox": CRANE, "area": 76800, **box},
                {"id": 1, "category_id": 1, "bbox": SHIP, "area": 162300.0, **box},
            ],
            "info": {**about, "url": "", "date_created": "2026-01-02 03:04:05.678901"},
        },
    )
    Path("project/images").mkdir()


def fiftyone() -> None:
    about = {"year": "", "version": "", "description": "Exported from FiftyOne"}
    image = {"file_name": "quay_1.jpg", "height": 480, "width": 640}
    write(
        "fifty/labels.json",
        {
            "info": {**about, "contributor": "", "url": "https://voxel51.com/fiftyone"},
            "licenses": [],
            "categories": [
                {"id": 0, "name": "crane", "supercategory": None},
                {"id": 1, "name": "ship", "supercategory": None},
            ],
            "images": [{"id": 1, **image, "license": None, "coco_url": None}],
            "annotations": [
                {"id": n + 1, "image_id": 1, "category_id": n, "bbox": box, "iscrowd": 0}
                | {"area": box[2] * box[3]}
                for n, box in enumerate((CRANE, SHIP))
            ],
        },
    )
    Path("fifty/data").mkdir()


def via() -> None:
    addresses = dict.fromkeys(("file_name", "flickr_url", "coco_url"), "quay_1.jpg")
    write(
        "via_export_coco.json",
        {
            "info": {
                "year": 2026,
                "version": "1.0",
                "contributor": "",
                "description": "VIA project exported to COCO format using VGG Image Annotator",
                "url": "http://www.robots.ox.ac.uk/~vgg/software/via/",
                "date_created": "",
            },
            "images": [{"id": 0, **SIZE, **addresses, "license": 1, "date_captured": ""}],
            "annotations": [
                {
                    "id": 0,
                    "image_id": "0",
                    "category_id": n,
                    "bbox": box,
                    "iscrowd": 0,
                    "segmentation": [box[0], box[1], box[0] + box[2], box[1] + box[3]],
                    "area": box[2] * box[3],
                }
                for n, box in ((1, CRANE), (2, SHIP))
            ],
            "licenses": [{"id": 1, "name": "Unknown", "url": ""}],
            "categories": [
                {"id": 1, "name": "crane", "supercategory": "thing"},
                {"id": 2, "name": "ship", "supercategory": "thing"},
            ],
        },
    )


def hub() -> None:
    """A folder of that name goes before the Hub."""
    place = Path("user/my-images")
    place.mkdir(parents=True)
    objects = {"bbox": [CRANE, [16, 200, 600, 270]], "categories": ["crane", "ship"]}
    row = {"file_name": "quay_1.png", "text": "A crane and a ship.", "objects": objects}
    (place / "metadata.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    Image.new("RGB", (640, 480)).save(place / "quay_1.png")


def nothing() -> None:
    """The page has the files."""


BOXES = {"crane: [0.100, 0.100, 0.600, 0.600]"}
BOTH = BOXES | {"ship: [0.026, 0.417, 0.963, 0.981]"}


@pytest.mark.parametrize(
    ("title", "prepare", "splits", "media", "source", "shown"),
    [
        (
            *("Roboflow", roboflow, {"train": 2, "validation": 1}),
            *("quay-0_jpg.rf.0a1b2c3d4e5f0.jpg", "export", BOXES),
        ),
        ("CVAT", cvat, {"train": 1}, "quay_1.jpg", "street", BOXES),
        ("Label Studio", label_studio, {"train": 1}, "1a2b3c4d-quay_1.jpg", "project", BOTH),
        ("FiftyOne", fiftyone, {"train": 1}, "quay_1.jpg", "fifty", BOTH),
        ("VIA", via, {"train": 1}, "quay_1.jpg", "harbour", BOTH),
        (
            *("The Hub, and what load_dataset reads", hub, {"train": 1}, "quay_1.png"),
            *("my_images", BOXES | {"- A crane and a ship."}),
        ),
        (
            *("Described once", nothing, {"train": 2, "validation": 2}, "quay_1.jpg", "warehouse"),
            {"gantry crane: [0.100, 0.100, 0.600, 0.600]", "- A crane at a quay."},
        ),
    ],
)
def test_the_export_of_a_tool_becomes_rows_by_the_command_of_the_page(
    title: str,
    prepare: Callable[[], None],
    splits: dict[str, int],
    media: str,
    source: str,
    shown: set[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare()
    (line,) = [text for _, language, text in section(title) if language == "bash"]
    program, command, *arguments = shlex.split(line)
    assert (program, command) == ("mminstruct", "generate")
    assert cli.run([command, *arguments, "--output_path", "out"]) == DONE
    found = datasets.load_dataset("out", cache_dir="hf")
    assert {split: len(set(part["media"])) for split, part in found.items()} == splits
    row = found["train"][0]
    assert (row["media"], row["source"]) == (media, source)
    assert str(Path.cwd()) not in "".join(p.read_text("utf-8") for p in Path("out").glob("*.*"))
    capsys.readouterr()
    flags = [word for word in arguments if word != "--dry_run"]
    if "--splits" in flags:
        flags.remove("validation")
    assert cli.run(["show", *flags]) == DONE
    assert shown <= set(capsys.readouterr().out.splitlines())


def test_licences_are_those_that_were_declared(capsys: pytest.CaptureFixture[str]) -> None:
    roboflow()
    line = "generate ./export --source_license cc-by-4.0 --types conversation --dry_run"
    assert cli.run([*line.split(), "--output_path", "out"]) == DONE
    row = datasets.load_dataset("out", cache_dir="hf", split="train")[0]
    assert row["image_license"] == "CC-BY-4.0"
    card = Path("out/README.md").read_text(encoding="utf-8")
    assert "cc-by-4.0" in card.casefold()
    assert not re.search(r"COCO (2014|2017|Consortium)", card)


def test_tables_of_boxes_and_of_captions_are_read_as_they_are() -> None:
    lines = [text for _, language, text in section("A table") if language == "bash"]
    expected = [
        ({"quay_1.jpg": "640", "quay_2.jpg": "640"}, None),
        ({"quay_1.jpg": "640", "quay_3.jpg": "None"}, "https://example.org/photos/quay_1.jpg"),
    ]
    for number, (line, (images, url)) in enumerate(zip(lines, expected, strict=True)):
        _, *arguments = shlex.split(line)
        assert cli.run([*arguments, "--output_path", f"out{number}"]) == DONE
        rows = datasets.load_dataset(f"out{number}", split="train", cache_dir="hf")
        assert {row["media"]: str(row["width"]) for row in rows} == images
        assert rows[0]["image_url"] == url


@pytest.mark.parametrize("title", ["Described once", "In Python"])
def test_the_code_of_the_page_runs(title: str, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [text for _, language, text in section(title) if language == "python"]
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102
    if title == "In Python":
        assert len(names["rows"]) == 6
        assert capsys.readouterr().out.startswith("6 [{")
        assert len(Path("rows.jsonl").read_text("utf-8").splitlines()) == 6
        assert names["rows"].origin.sources[0].license == "cc0-1.0"
    else:
        assert names["rows"]["train"]["source"][:] == ["warehouse"] * 2


def test_boxes_of_all_tools_are_where_they_were() -> None:
    from mminstruct import sources
    from mminstruct.sources import ReadReport

    for prepare, name in ((cvat, "task"), (label_studio, "project"), (via, "via_export_coco.json")):
        prepare()
        source = sources.get(f"./{name}")
        files = source.locate([], "train")
        assert files is not None
        (context,) = source.read(files, ReadReport())
        assert [box.label for box in context.boxes] == ["crane", "ship"]
        assert context.boxes[0] == Box("crane", (0.1, 0.1, 0.6, 0.6))
