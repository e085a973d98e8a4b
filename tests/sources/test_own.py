"""Data of your own: tables, descriptions, folders, datasets, joins, cards."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import coco_files
from dummy_data import open_images_files
from PIL import Image

import mminstruct
from mminstruct import cli, sources
from mminstruct.errors import ConfigError, MMInstructError, SourceError, UsageError
from mminstruct.releases import hub
from mminstruct.schema import Box, Context, Media
from mminstruct.sources import ReadReport
from mminstruct.sources.own import of_rows

PHOTOS: list[dict[str, Any]] = [
    {
        "image": "hall/a.jpg",
        "captions": ["A dog lies on a sofa.", " A dog  at rest. "],
        "boxes": [{"label": "dog", "bbox": [64, 48, 320, 240]}],
        "width": 640,
        "height": 480,
    },
    {
        "image": "b.jpg",
        "captions": "A cat.",
        "boxes": [{"label": "cat", "bbox": [320, 24, 320, 24]}],
        "width": 640,
        "height": 480,
    },
]
DOG = Box("dog", (0.1, 0.1, 0.6, 0.6))
CAT = Box("cat", (0.5, 0.05, 1.0, 0.1))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    return tmp_path


def lines(path: str, rows: Any) -> str:
    """Write JSON lines; the path."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def described(**keys: Any) -> str:
    """Write a description; its path."""
    data = {"name": "photos", "format": "table", "files": "photos.jsonl", **keys}
    Path("d.yaml").write_text(yaml.safe_dump(data, sort_keys=False), "utf-8")
    return "d.yaml"


def read(name: str, split: str | None = None, **chosen: Any) -> list[Context]:
    """The contexts of a split, or the first one."""
    return report_of(name, split, **chosen)[0]


def report_of(
    name: str, split: str | None = None, **chosen: Any
) -> tuple[list[Context], ReadReport]:
    source = sources.get(name, chosen)
    report = ReadReport.of("image")
    files = source.locate([], split or source.info.splits[0])
    assert files is not None
    return list(map(report.keep, source.read(files, report))), report


def generate(*arguments: str) -> int:
    return cli.run(["generate", *arguments, "--dry_run", "--output_path", "out"])


def rows() -> list[dict[str, Any]]:
    return list(datasets.load_dataset("out", split="train", cache_dir="hf"))


def test_json_lines_give_rows_under_their_own_name() -> None:
    lines("photos.jsonl", PHOTOS)
    assert generate("./photos.jsonl") == 0
    made = rows()
    assert len(made) == 6
    assert {row["source"] for row in made} == {"photos"}
    assert made[0]["id"] == "photos-hall/a.jpg-conversation"
    assert [row["media"] for row in made[:2]] == ["hall/a.jpg", "b.jpg"]
    assert {(row["license"], row["commercial_use"], row["image_license"]) for row in made} == {
        ("unknown", None, None)
    }


def test_the_same_table_in_any_form_is_the_same_contexts() -> None:
    first, second = read(lines("photos.jsonl", PHOTOS))
    assert (first.id, first.captions, first.boxes) == (
        *("hall/a.jpg", ("A dog lies on a sofa.", "A dog at rest.")),
        (DOG,),
    )
    assert (second.captions, second.boxes) == (("A cat.",), (CAT,))
    assert first.media == Media("hall/a.jpg", width=640, height=480)
    Path("photos.json").write_text(json.dumps(PHOTOS), "utf-8")
    listed = [
        {**p, "captions": [p["captions"]] * (p is PHOTOS[1]) or p["captions"]} for p in PHOTOS
    ]
    datasets.Dataset.from_list(listed).to_parquet("photos.parquet")
    flat = [{**p, **{key: json.dumps(p[key]) for key in ("captions", "boxes")}} for p in listed]
    datasets.Dataset.from_list(flat).to_csv("photos.csv", index=False)
    with gzip.open("photos.jsonl.gz", "wb") as packed:
        packed.write(Path("photos.jsonl").read_bytes())
    for name in ("photos.json", "photos.parquet", "photos.csv", "photos.jsonl.gz"):
        assert read(name) == [first, second], name


def test_a_row_may_be_a_box_or_a_caption_and_rows_of_an_image_add_up() -> None:
    Path("boxes.csv").write_text(
        "\ufefffilename,width,height,class,xmin,ymin,xmax,ymax\n"
        "a.jpg,640,480,dog,64,48,384,288\n"
        "b.jpg,640,480,cat,320,24,640,48\n"
        "a.jpg,640,480,cat,320,24,640,48\n"
        "c.jpg,640,480,,,,,\n"
    )
    a, b = read("boxes.csv")
    assert (a.id, a.boxes, b.boxes) == ("a.jpg", (DOG, CAT), (CAT,))
    Path("said.tsv").write_text("image\tcaption\nx.jpg\tOne.\ny.jpg\tTwo.\nx.jpg\tThree.\n")
    assert [(c.id, c.captions) for c in read("said.tsv")] == [
        ("x.jpg", ("One.", "Three.")),
        ("y.jpg", ("Two.",)),
    ]


@pytest.mark.parametrize(
    ("order", "numbers"),
    [
        ("xywh", [64, 48, 320, 240]),
        ("xyxy", [64, 48, 384, 288]),
        ("cxcywh", [224, 168, 320, 240]),
        ("yxyx", [48, 64, 288, 384]),
    ],
)
@pytest.mark.parametrize("unit", ["pixels", "fractions"])
def test_boxes_are_read_as_stated(order: str, numbers: list[float], unit: str) -> None:
    photo = dict(PHOTOS[0])
    if unit == "fractions":
        sides = [480, 640] * 2 if order == "yxyx" else [640, 480] * 2
        numbers = [n / side for n, side in zip(numbers, sides, strict=True)]
        del photo["width"], photo["height"]
    photo["boxes"] = [{"label": "dog", "bbox": numbers}]
    (context,) = read(lines("photos.jsonl", [photo]), box_format=order, box_unit=unit)
    (box,) = context.boxes
    assert box.bbox_xyxy_norm == pytest.approx(DOG.bbox_xyxy_norm)


GRID = [(x, y, 40 + x % 7, 30 + y % 5) for x in (5, 200, 400, 590) for y in (4, 150, 300, 440)]
READINGS = {
    "xywh": lambda x, y, w, h: (x, y, w, h),
    "xyxy": lambda x, y, w, h: (x, y, x + w, y + h),
    "cxcywh": lambda x, y, w, h: (x + w / 2, y + h / 2, w, h),
    "yxyx": lambda x, y, w, h: (y, x, y + h, x + w),
}


# In fractions nothing tells x from y.
@pytest.mark.parametrize(
    ("order", "unit"),
    [(o, u) for o in READINGS for u in ("pixels", "fractions") if (o, u) != ("yxyx", "fractions")],
)
def test_what_boxes_are_is_found_by_a_look_at_all_of_them_and_said(
    order: str, unit: str, caplog: pytest.LogCaptureFixture
) -> None:
    divisors = [640, 480] * 2 if unit == "fractions" else [1] * 4
    photos = [
        {
            "image": f"{n}.jpg",
            "boxes": [
                {
                    "label": "box",
                    "bbox": [v / d for v, d in zip(READINGS[order](*box), divisors, strict=True)],
                }
            ],
            "width": 640,
            "height": 480,
        }
        for n, box in enumerate(GRID)
    ]
    contexts = read(lines("photos.jsonl", photos))
    x, y, w, h = GRID[0]
    assert contexts[0].boxes[0].bbox_xyxy_norm == pytest.approx(
        (x / 640, y / 480, (x + w) / 640, (y + h) / 480)
    )
    assert f"photos.jsonl: boxes are read as {order} (" in caplog.text
    named = {"fractions": "fractions of the image"}.get(unit, unit)
    assert f"in {named} (box_format, box_unit: others)" in caplog.text


def test_a_description_says_which_column_is_what_and_whose_it_all_is() -> None:
    photos = [
        {
            "pic": f"{n}.jpg",
            "said": [f"Shelf {n}."],
            "also": f"Rack {n}.",
            "things": {"bbox": [[0.1, 0.1, 0.5, 0.5]], "category": [n % 2]},
            "rights": license,
            "by": "A. Miller",
        }
        for n, license in enumerate(
            ["CC0-1.0", "https://creativecommons.org/licenses/by/4.0/", None]
        )
    ]
    lines("data/train.jsonl", photos[:1])
    lines("data/held-1.jsonl", photos[1:2])
    lines("data/held-2.jsonl", photos[2:])
    name = described(
        title="Shelves of 2024",
        files={"train": "data/train.jsonl", "test": "data/held-*.jsonl"},
        columns={
            "image": "pic",
            "captions": ["said", "also"],
            "boxes": "things",
            "license": "rights",
            "author": "by",
        },
        box_format="xywh",
        box_unit="fractions",
        categories={0: "shelf", 1: "rack"},
        license="cc-by-4.0",
        image_license="cc-by-2.0",
        attribution="Shelves by the people of the warehouse.",
        citation="@misc{shelves}",
        image_url="https://photos.example/2024/",
    )
    info = sources.get(name).info
    assert (info.title, info.license, info.splits) == (
        *("Shelves of 2024", "cc-by-4.0"),
        ("train", "test"),
    )
    (train,) = read(name)
    test = read(name, "test")
    assert train.captions == ("Shelf 0.", "Rack 0.")
    assert [box.label for c in (train, *test) for box in c.boxes] == ["shelf", "rack", "shelf"]
    assert [(c.media.license, c.media.license_url) for c in (train, *test)] == [
        ("CC0-1.0", None),
        ("CC-BY-4.0", "https://creativecommons.org/licenses/by/4.0/"),
        ("cc-by-2.0", None),
    ]
    assert train.media.url == "https://photos.example/2024/0.jpg"
    assert train.media.author == "A. Miller"
    assert generate("./d.yaml", "--commercial", "--splits", "train", "test") in (0, 2)


def test_a_column_may_say_the_split() -> None:
    lines("photos.jsonl", [{**PHOTOS[0], "part": "train"}, {**PHOTOS[1], "part": "test"}])
    name = described(splits=["train", "test"], columns={"split": "part"})
    assert [c.id for split in ("train", "test") for c in read(name, split)] == [
        "hall/a.jpg",
        "b.jpg",
    ]


def test_flags_go_before_what_is_described() -> None:
    lines("photos.jsonl", [{"f": "a.jpg", "words": "A dog."}])
    name = described(license="mit", columns={"image": "g"})
    chosen = {
        "source_name": "dogs",
        "source_license": "cc0-1.0",
        "image_license": "cc-by-4.0",
        "image_column": "f",
        "captions_column": "words",
        "attribution": "By us.",
    }
    info = sources.get(name, chosen).info
    assert (info.name, info.license, info.attribution) == ("dogs", "cc0-1.0", "By us.")
    (context,) = read(name, **chosen)
    assert (context.captions, context.media.license) == (("A dog.",), "cc-by-4.0")
    flags = [word for option, value in chosen.items() for word in (f"--{option}", value)]
    assert generate(name, *flags) == 0
    card = Path("out/README.md").read_text("utf-8")
    assert "By us." in card
    assert "annotations of dogs" in card
    with pytest.raises(UsageError, match="the source 'SAMPLE' has no option 'source_name'"):
        sources.get("SAMPLE", {"source_name": "x"})


def test_a_card_says_what_the_user_declared_and_nothing_of_anybody_else() -> None:
    lines("photos.jsonl", PHOTOS)
    described(
        title="Rooms",
        description="Rooms with pets, photographed by night.",
        license="cc-by-4.0",
        image_license="cc0-1.0",
        attribution="Rooms by Night.",
        citation="@misc{rooms, title = {Rooms}}",
    )
    assert generate("./d.yaml") == 0
    files = {f.name: f.read_text("utf-8") for f in Path("out").iterdir() if f.is_file()}
    card = files["README.md"]
    for words in ("Rooms with pets, photographed by night.", "Rooms by Night.", "@misc{rooms"):
        assert words in card
    assert "| annotations of Rooms | [CC BY 4.0](" in card
    assert "- photos\n" in card  # source_datasets
    for text in files.values():
        assert "coco" not in text.casefold()
        assert str(Path.cwd()) not in text
    assert [row["image_license"] for row in rows()] == ["cc0-1.0"] * 6


def test_no_path_of_this_machine_is_in_a_release(folder: Path) -> None:
    lines("secret/photos.jsonl", PHOTOS)
    Image.new("RGB", (8, 8)).save("secret/b.jpg")
    (folder / "secret" / "hall").mkdir()
    Image.new("RGB", (8, 8)).save("secret/hall/a.jpg")
    assert generate(f"{folder}/secret/photos.jsonl", "--image_folder", f"{folder}/secret") == 0
    for file in Path("out").rglob("*"):
        assert b"secret" not in (file.read_bytes() if file.is_file() else b"")
    assert "mminstruct generate photos.jsonl" in Path("out/README.md").read_text()


def test_images_in_a_folder_have_to_be_there_and_tell_their_sizes() -> None:
    for n, size in enumerate([(640, 480), (320, 240)]):
        Image.new("RGB", size).save(f"{n}.png")
    photos = [
        {"image": f"{n}.png", "boxes": [{"label": "dog", "bbox": [0, 0, 160, 120]}]}
        for n in range(2)
    ]
    name = lines("photos.jsonl", photos)
    one, two = read(name, image_folder=".")
    assert (one.media.width, two.media.height) == (640, 240)
    assert two.boxes == (Box("dog", (0.0, 0.0, 0.5, 0.5)),)
    contexts, report = report_of(name)
    assert contexts == []
    assert report.skipped["box in an image whose size isn't known"] == 2
    lost = [{"image": f"x{n}.png", "captions": "x"} for n in range(3)]
    with pytest.raises(SourceError, match=r"photos.jsonl: got none of its images in .* against x0"):
        read(lines("photos.jsonl", lost), image_folder=".")
    contexts, report = report_of(lines("photos.jsonl", photos + lost[:1]), image_folder=".")
    assert len(contexts) == 2
    assert report.examples == {"image that isn't in the image folder": ["x0.png"]}


def test_a_folder_with_a_table_beside_its_images_is_read_as_load_dataset_has_it() -> None:
    for split in ("train", "test"):
        table = [{"file_name": f"{split}{n}.png", "text": f"Square {n}."} for n in range(2)]
        lines(f"pictures/{split}/metadata.jsonl", table)
        for row in table:
            Image.new("RGB", (64, 48)).save(f"pictures/{split}/{row['file_name']}")
    source = sources.get("./pictures")
    assert source.info.splits == ("train", "test")
    assert [(c.id, c.captions, c.media.width) for c in read("./pictures", "test")] == [
        ("test0.png", ("Square 0.",), 64),
        ("test1.png", ("Square 1.",), 64),
    ]
    assert generate("./pictures", "--captions_column", "text") == 0
    assert {row["source"] for row in rows()} == {"pictures"}


def a_dataset(count: int = 2) -> datasets.Dataset:
    for n in range(count):
        Image.new("RGB", (64, 48)).save(f"{n}.png")
    labels = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "objects": {
                "bbox": [[datasets.Value("float32")]],
                "category": [labels],
            },
        }
    )
    found = {
        "image": [f"{n}.png" for n in range(count)],
        "text": [f"Square {n}." for n in range(count)],
        "objects": [{"bbox": [[0, 0, 32, 24]], "category": [n % 2]} for n in range(count)],
    }
    return datasets.Dataset.from_dict(found, features=features)


def test_a_dataset_is_read_with_the_names_of_its_classes_and_without_decoding_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("set/data").mkdir(parents=True)
    a_dataset().to_parquet("set/data/train-00000-of-00001.parquet")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    Path("s.yaml").write_text("name: s\nformat: datasets\ndataset: set\nbox_format: xywh\n")
    contexts = read("s.yaml", captions_column="text", boxes_column="objects")
    assert [(c.id, c.captions, c.boxes) for c in contexts] == [
        ("0.png", ("Square 0.",), (Box("cat", (0.0, 0.0, 0.5, 0.5)),)),
        ("1.png", ("Square 1.",), (Box("dog", (0.0, 0.0, 0.5, 0.5)),)),
    ]
    assert contexts[0].media == Media("0.png", width=64, height=48)
    flags = ["--captions_column", "text", "--boxes_column", "objects", "--box_format", "xywh"]
    assert generate("s.yaml", *flags) == 0
    assert len(rows()) == 6


def test_a_dataset_that_has_changed_is_another_one() -> None:
    Path("s.yaml").write_text("name: s\nformat: datasets\ndataset: set\nsplits: [train]\n")
    prints = []
    for text in ("One.", "One and two."):
        lines("set/train.jsonl", [{"image": "a.jpg", "text": text}])
        prints.append(sources.get("s.yaml").locate([], "train"))
        assert read("s.yaml")[0].captions == (text,)
    assert prints[0] != prints[1]


def test_images_that_are_put_into_a_folder_later_are_found() -> None:
    name = lines("photos.jsonl", [{"image": f"{n}.png", "text": "x"} for n in range(2)])
    Path("images").mkdir()
    prints = []
    for n in range(2):
        Image.new("RGB", (8, 8)).save(f"images/{n}.png")
        prints.append(sources.get(name, {"image_folder": "images"}).locate([], "train"))
    assert prints[0] != prints[1]


def test_open_images_files_of_any_name_are_read_without_narratives_too(tmp_path: Path) -> None:
    open_images_files(tmp_path, 3)
    roles = {
        "boxes": "oidv6-train-annotations-bbox.csv",
        "labels": "train-annotations-human-imagelabels-boxable.csv",
        "classes": "oidv7-class-descriptions.csv",
    }
    for role, name in roles.items():
        Path(name).rename(f"my_{role}.csv")
    files = {"train": {role: f"my_{role}.csv" for role in roles}}
    name = described(format="open_images", files=files, categories={"Boat": "ferry"})
    contexts = read(name)
    assert [c.id for c in contexts] == [f"{n:016x}" for n in (1, 2, 3)]
    assert [box.label for box in contexts[0].boxes] == ["ferry", "Person"]
    labels = contexts[0].annotations["labels"]
    assert {(label.label, label.present) for label in labels} == {
        ("Bridge", False),
        ("Water", True),
    }
    assert generate(name) == 0


def test_narratives_of_any_images_are_read_and_joined_on_id_or_name() -> None:
    said = [{"image_id": "42", "caption": "In this image I can see a dog."}]
    lines("said.jsonl", said)
    name = described(name="said", format="localized_narratives", files="said.jsonl")
    (context,) = read(name)
    assert context.id == "42"
    assert context.annotations["narratives"][0].text == "In this image I can see a dog."
    lines("photos.jsonl", [{"image": "42.jpg", "id": 42, "captions": "A dog.", "n": 1}])
    Path("p.yaml").write_text(
        "name: photos\nformat: table\nfiles: photos.jsonl\ncolumns: {id: id, image: image}\n"
    )
    (joined,) = read("./p.yaml+./d.yaml")
    assert (joined.captions, len(joined.annotations["narratives"])) == (("A dog.",), 1)
    assert sources.get("./p.yaml+./d.yaml").info.name == "photos+said"
    described(name="said", format="localized_narratives", files="said.jsonl", join_on="image")
    (joined,) = read("./p.yaml+./d.yaml")
    assert len(joined.annotations["narratives"]) == 1
    assert generate("./p.yaml+./d.yaml") == 0
    assert {row["source"] for row in rows()} == {"photos+said"}


def test_own_data_adds_to_a_registered_source_whatever_its_order(tmp_path: Path) -> None:
    coco = coco_files(tmp_path / "coco", 3)
    more = [{"image_id": n, "captions": f"More about {n}."} for n in (3, 1, 77)]
    lines("more.jsonl", more)
    flags = ["--dataset_storage_path", str(coco), "--types", "conversation"]
    assert generate("COCO2017+./more.jsonl", *flags) == 0
    assert {row["source"] for row in rows()} == {"COCO2017+more"}
    source = sources.get("COCO2017+./more.jsonl")
    report = ReadReport()
    files = source.locate([coco], "train")
    assert files is not None
    contexts = list(source.read(files, report))
    assert [c.captions[-1] for c in contexts] == [
        *("More about 1.", "Invented scene 2, seen by writer 1."),
        "More about 3.",
    ]
    assert report.skipped["more: image that is not among those of COCO2017"] == 1


def test_a_path_with_a_plus_in_it_is_one_source() -> None:
    lines("a+b/c+d.jsonl", PHOTOS)
    assert sources.parts_of("./a+b/c+d.jsonl") == ["./a+b/c+d.jsonl"]
    assert sources.parts_of("SAMPLE+./a+b/c+d.jsonl + LN") == ["SAMPLE", "./a+b/c+d.jsonl", "LN"]
    assert len(read("./a+b/c+d.jsonl")) == 2


def test_rows_in_memory_are_a_source_of_the_same_name_each_time(tmp_path: Path) -> None:
    paths = {of_rows(iter(PHOTOS), cache_dir=tmp_path, name="mine", license="mit") for _ in "ab"}
    (path,) = paths
    assert read(path) == read(lines("photos.jsonl", PHOTOS))
    assert sources.get(path).info.license == "mit"
    assert of_rows(PHOTOS[:1], cache_dir=tmp_path) not in paths
    contexts = [Context("7", Media("7.jpg"), ("Seven.",), (DOG,))]
    assert read(of_rows(contexts, cache_dir=tmp_path)) == contexts
    for wrong in ([], ["a"], [contexts[0], PHOTOS[0]], [{"image": object()}]):
        with pytest.raises(UsageError, match="^row"):
            of_rows(wrong, cache_dir=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown key 'licence' \\(did you mean 'license'"):
        of_rows(PHOTOS, cache_dir=tmp_path, licence="mit")
    assert not list(tmp_path.rglob("*.partial"))


def test_load_dataset_takes_a_description(tmp_path: Path) -> None:
    lines("photos.jsonl", PHOTOS)
    described(license="cc-by-4.0")
    given = {"backend": "fake", "cache_dir": "hf", "response_store": "r.sqlite"}
    load = datasets.load_dataset
    made = load("builders/own_llava", "conversation", source="./d.yaml", **given)
    assert made["train"]["source"][:] == ["photos"] * 2
    named = load("builders/own_llava", source="./d.yaml", source_name="pets", limit=1, **given)
    assert named["train"]["source"][:] == ["pets"] * 3
    with pytest.raises(UsageError, match="unknown source ''"):
        load("builders/own_llava", "conversation", **given)


def test_python_and_the_command_line_make_the_same_rows() -> None:
    lines("photos.jsonl", PHOTOS)
    made = mminstruct.generate(
        "./photos.jsonl", backend="fake", cache_dir="c", response_store="r.sqlite"
    )
    assert generate("./photos.jsonl") == 0
    assert made.rows["train"].to_list() == rows()


def test_rows_are_pushed_with_what_they_were_generated_from() -> None:
    lines("photos.jsonl", PHOTOS)
    made = mminstruct.generate(
        described(license="mit"), backend="fake", cache_dir="c", response_store="r.sqlite"
    )
    splits = hub.tracing.splits_of(made.rows)
    with pytest.raises(UsageError, match=r"unknown source 'photos'.*generated from here, too"):
        hub.tracing.trace(splits)
    origin = hub.tracing.trace(splits, source="d.yaml")
    assert origin.sources == made.origin.sources
    assert [part.what for part in origin.verdict.parts] == [
        part.what for part in made.origin.verdict.parts
    ]


def test_describe_says_nothing_of_boxes_that_are_not_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines("said.jsonl", [{"image": "a.jpg", "caption": "A dog."}])
    assert cli.run(["describe", "said.jsonl"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == {
        "name": "said",
        "format": "table",
        "files": {"train": "said.jsonl"},
        "columns": {"image": "image", "captions": "caption"},
    }


def test_a_known_source_needs_no_description(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["describe", "sample"]) == 2
    assert "sample: expected a path of your own data, got a source" in capsys.readouterr().err
    lines("sample/said.jsonl", [{"image": "a.jpg", "caption": "A dog."}])
    assert cli.run(["describe", "sample"]) == 0


def test_describe_prints_what_generate_would_use(capsys: pytest.CaptureFixture[str]) -> None:
    lines("export/photos.jsonl", PHOTOS)
    assert cli.run(["describe", "./export", "--source_license", "mit"]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text) == {
        "name": "export",
        "format": "table",
        "files": {"train": "export/photos.jsonl"},
        "license": "mit",
        "columns": {name: name for name in ("image", "captions", "boxes", "width", "height")},
        "box_format": "xywh",
        "box_unit": "pixels",
    }
    assert "# train: 2 x image, 3 x caption, 2 x box\n# image_license: not declared" in text
    Path("export.yaml").write_text(text)
    assert read("export.yaml") == read("./export")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"licence": "mit"}, r"d.yaml: unknown key 'licence' \(did you mean 'license'\?\)"),
        ({"columns": {"imge": "x"}}, r"unknown key 'imge' in columns \(did you mean 'image'"),
        ({"format": "voc"}, r"d.yaml: format: .*'coco'.*got 'voc'"),
        ({"files": {}}, r"format 'table' needs 'files', and no 'dataset'"),
        ({"columns": {"captions": "captoins"}}, r"photos.jsonl: no column 'captoins', .*'captions"),
        ({"files": "nowhere.jsonl"}, r"photos, split 'train': got no file .*nowhere.jsonl"),
        ({"box_format": "cxcywh"}, r"photos.jsonl: 100% of the boxes leave .*cxcywh .* xywh"),
        ({"box_unit": "fractions"}, r"100% of the boxes leave .*fractions.*xywh.*pixels"),
        (
            {"image_folder": "nowhere"},
            r"got none of its images in (.*nowhere) \(there is no folder \1\) against",
        ),
        ({"license": "cc-by-9.0"}, r"photos: got the licence 'cc-by-9.0' against .*mean 'cc-by-"),
        ({"image_license": "own"}, r"photos: got the licence 'own' against one that is known"),
        ({"name": "COCO2017"}, r"got the name 'COCO2017' against one of its own expected"),
        ({"name": "../x"}, r"d.yaml: name: "),
    ],
)  # fmt: skip
def test_a_wrong_description_is_told(
    keys: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = [
        {**PHOTOS[0], "image": f"{n}.jpg", "boxes": [{"label": "dog", "bbox": [2, 2, 300, 200]}]}
        for n in range(3)
    ]
    lines("photos.jsonl", photos)
    assert generate(described(**keys)) == 2
    assert re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("photos", "words"),
    [
        (
            [{"image": "a.jpg", "id": 1, "text": "x"}, {"image": "a.jpg", "id": 2, "text": "y"}],
            "two images of one name, got 'a.jpg' for 0+1 and 0+2",
        ),
        (
            [{"image": "a.jpg", "width": 1, "text": "x"}, {"image": "a.jpg", "width": 2}],
            "1 row with another size.* such as of 'a.jpg'",
        ),
        (
            [{"image": "a.jpg", "boxes": [{"label": 3, "bbox": [0, 0, 1, 1]}]}],
            "labels that are numbers, got 3",
        ),
        ([{"text": "A dog."}], "no column with the image's name, got text"),
    ],
)  # fmt: skip
def test_a_table_that_contradicts_itself_is_told(photos: list[dict[str, Any]], words: str) -> None:
    lines("photos.jsonl", photos)
    columns = {"id": "id"} if "id" in photos[0] else {}
    with pytest.raises(SourceError, match=words):
        read(described(columns=columns))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"image,text\na.jpg,caf\xe9\n", "photos.csv: not readable, got .*utf-8"),
        (b'image,text\r\na.jpg,"a\r\nb"\r\n', None),
        (b"", "photos.csv: got no row against one for each image expected"),
        (b"image,text\n", "photos.csv: got no row against"),
        (b"image,text,text\na.jpg,x,y\n", "photos.csv: not readable, got .*column 'text' twice"),
        (b",image,text,\n0,a.jpg,a b,\n", None),
    ],
)
def test_a_table_that_cannot_be_read_is_told(content: bytes, words: str | None) -> None:
    Path("photos.csv").write_bytes(content)
    if words is None:
        assert read("photos.csv")[0].captions == ("a b",)
        return
    with pytest.raises(SourceError, match=words):
        read("photos.csv")


def test_an_x_in_a_list_of_boxes_may_be_a_corner_or_the_centre() -> None:
    photos = [
        {
            "image": f"{n}.jpg", "width": 100, "height": 100,
            "boxes": [{"class": "dog", "x": 90, "y": 90, "width": 20, "height": 20}],
        }
        for n in range(4)
    ]  # fmt: skip
    lines("photos.jsonl", photos)
    (box,) = read("photos.jsonl")[0].boxes
    assert box.bbox_xyxy_norm == pytest.approx((0.8, 0.8, 1.0, 1.0))


def test_a_file_in_cocos_format_may_have_more_at_its_top() -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40]}],
        "categories": [{"id": 1, "name": "dog"}],
    }
    Path("set.json").write_text(json.dumps({"path": "x", "caption": "y", **content}), "utf-8")
    (context,) = read("set.json")
    assert [box.label for box in context.boxes] == ["dog"]


def test_some_rows_may_have_several_captions_and_others_one() -> None:
    photos = [
        {"image": "a.jpg", "captions": ["A dog.", "A wet dog."]},
        {"image": "b.jpg", "Caption": "A cat."},
        {"image": "c.jpg", "captions": ["A cow."], "Caption": "Two cows.", "text": "Acme"},
    ]
    lines("photos.jsonl", photos)
    captions = [context.captions for context in read("photos.jsonl")]
    assert captions == [("A dog.", "A wet dog."), ("A cat.",), ("A cow.", "Two cows.")]


def test_a_column_that_is_there_twice_is_told_in_parquet_too() -> None:
    columns = [pa.array(["a.jpg"]), pa.array(["x"]), pa.array(["y"])]
    pq.write_table(pa.table(columns, names=["image", "text", "text"]), "photos.parquet")
    with pytest.raises(SourceError, match="photos.parquet: not readable, got .*'text' twice"):
        read("photos.parquet")


def test_what_cannot_be_used_of_a_table_is_left_out_and_counted() -> None:
    photos = [
        {**PHOTOS[0], "width": "640", "height": 480.0},
        {"image": "b.jpg", "captions": [None, "", "A cat.", float("nan")], "boxes": None},
        {"image": "c.jpg", "captions": ["x"], "boxes": [{"label": "dog"}, {"bbox": [1, 2, 3, 4]}]},
        {"image": "d.jpg", "captions": ["x"], "boxes": [{"label": "dog", "bbox": [1, 2, "x", 4]}]},
        {"image": None, "captions": ["x"]},
        {"image": "e.jpg"},
    ]
    lines("photos.jsonl", photos)
    with Path("photos.jsonl").open("a") as file:
        file.write("{broken\n")
    contexts, report = report_of("photos.jsonl", box_format="xywh")
    assert [(c.id, c.captions, len(c.boxes)) for c in contexts] == [
        ("hall/a.jpg", ("A dog lies on a sofa.", "A dog at rest."), 1),
        *[(f"{name}.jpg", (text,), 0) for name, text in (("b", "A cat."), ("c", "x"), ("d", "x"))],
    ]
    assert contexts[0].media.width == 640
    assert sum(report.skipped[reason] for reason in report.faults()) == 5


SIZES = {"width": 640, "height": 480}


@pytest.mark.parametrize(
    "columns",
    [
        {**SIZES, "label": "dog", "x": 64, "y": 48, "w": 320, "h": 240},
        {"image_width": 640, "image_height": 480, "label_name": "dog"}
        | {"bbox_x": 64, "bbox_y": 48, "bbox_width": 320, "bbox_height": 240},
        {"image_width": 640, "image_height": 480, "class": "dog"}
        | {"xmin": 64, "ymin": 48, "width": 320, "height": 240},
        {**SIZES, "boxes": [[64, 48, 320, 240]], "labels": ["dog"]},
        {**SIZES, "objects": [{"category": "dog", "x": 64, "y": 48, "w": 320, "h": 240}]},
        {**SIZES, "label": ["dog"], "bbox": "[[64, 48, 320, 240]]"},
    ],
)
def test_a_box_is_where_it_is_whatever_its_columns_are_called(columns: dict[str, Any]) -> None:
    [context] = read(lines("photos.jsonl", [{"image": "a.jpg", **columns}]), box_format="xywh")
    assert (context.media.width, context.boxes) == (640, (DOG,))


@pytest.mark.parametrize(
    "box",
    [
        {"xmin": 64, "ymin": 48, "xmax": 384, "ymax": 288},
        {"x": 64, "y": 48, "w": 320, "h": 240},
        {"cx": 224, "cy": 168, "w": 320, "h": 240},
        {"x_center": 0.35, "y_center": 0.35, "width": 0.5, "height": 0.5},
    ],
)
def test_names_of_numbers_say_what_they_are_in_cells_and_in_lists(box: dict[str, float]) -> None:
    named = {"label": "dog", **box}
    size = {"image_width": 640, "image_height": 480}
    for row in (named, {"objects": [named]}):
        (context,) = read(lines("photos.jsonl", [{"image": "a.jpg", **size, **row}]))
        assert context.boxes[0].bbox_xyxy_norm == pytest.approx(DOG.bbox_xyxy_norm)


def test_names_that_contradict_each_other_are_refused() -> None:
    named = ({"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}, {"x": 1, "y": 2, "w": 3, "h": 4})
    rows = [{"image": "a.jpg", **SIZES, "objects": [{"label": "dog", **one}]} for one in named]
    lines("photos.jsonl", rows)
    with pytest.raises(
        SourceError, match=r"boxes of a.jpg, got xywh or cxcywh by the names .* xyxy as"
    ):
        read("photos.jsonl")


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_file_of_one_object_is_one_row(indent: int | None) -> None:
    photo = {"image": "a.jpg", "caption": "A dog."}
    Path("photo.json").write_text(json.dumps(photo, indent=indent))
    assert [(c.id, c.captions) for c in read("photo.json")] == [("a.jpg", ("A dog.",))]


def test_entries_of_a_list_that_are_no_objects_are_counted() -> None:
    photo = {"image": "a.jpg", "caption": "A dog."}
    Path("photos.json").write_text(json.dumps([photo, 5, {**photo, "image": "b.jpg"}]))
    contexts, report = report_of("photos.json")
    assert len(contexts) == 2
    assert dict(report.skipped) == {"image in a row that is no object": 1}


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        ({"corners": [[1, 2, 3, 4]]}, "box that isn't four numbers"),
        ({"bbox": {"x": 1}, "label": "dog"}, "box that isn't four numbers"),
        ({"bbox": [None], "label": ["dog"]}, "box that isn't four numbers"),
        ("a box", "box that isn't four numbers"),
        ({"bbox": [1, 2, 3, 4], "label": ["dog"]}, "box without a label"),
        ([{"bbox": [1, 2, 3, 4], "category": {"id": 1}}], "box without a label"),
        ({"bbox": [[1, 2, 3, 4], [1, 2, 3, 5]], "label": ["dog"]}, "box without a label"),
        ([], None),
        ({"bbox": [], "label": []}, None),
    ],
)
def test_boxes_of_a_form_that_nobody_knows_are_counted(objects: Any, reason: str | None) -> None:
    lines("photos.jsonl", [{**PHOTOS[0], "boxes": None, "objects": objects}])
    _, report = report_of("photos.jsonl", boxes_column="objects", box_format="xywh")
    assert dict(report.skipped) == ({reason: 1} if reason else {})


def test_boxes_that_may_start_at_a_corner_or_around_a_centre_are_not_guessed() -> None:
    boxes = [{"label": "dog", "bbox": [0.3 + n / 50, 0.4, 0.2, 0.1 + n / 100]} for n in range(9)]
    lines("photos.jsonl", [{"image": f"{n}.jpg", "boxes": [b]} for n, b in enumerate(boxes)])
    with pytest.raises(SourceError, match=r"9 boxes that fit as xywh .* and as cxcywh .* in frac"):
        read("photos.jsonl")
    first = read("photos.jsonl", box_format="cxcywh")[0].boxes[0]
    assert first.bbox_xyxy_norm == pytest.approx((0.2, 0.35, 0.4, 0.45))


def test_the_command_on_a_card_names_a_folder_as_a_path() -> None:
    lines("export/train/photos.jsonl", PHOTOS)
    assert generate("export", "--box_format", "xywh") == 0
    assert "mminstruct generate ./export --" in Path("out/README.md").read_text()
    Path("SAMPLE").mkdir()
    assert generate("SAMPLE", "--overwrite", "--limit", "1") == 0
    assert "mminstruct generate SAMPLE --" in Path("out/README.md").read_text()


def test_a_table_without_captions_and_boxes_is_told() -> None:
    for row in (
        {"conversations": [{"from": "human"}]},
        {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4, **SIZES},
        {"label": [{"x": 10, "y": 20, "rectanglelabels": ["dog"]}]},
    ):
        lines("photos.jsonl", [{"image": "a.jpg", **row}])
        with pytest.raises(SourceError, match=r"no column with captions, nor with boxes and their"):
            read("photos.jsonl")


def test_cells_that_pandas_writes_as_python_has_them_are_lists() -> None:
    texts = ["A dog.", "It's old."]
    cells = {"image": ["a.jpg", "b.jpg"], "captions": [texts, "[one]"]}
    pd.DataFrame(cells).to_csv("photos.csv", index=False)
    assert [context.captions for context in read("photos.csv")] == [tuple(texts), ("[one]",)]


def test_rows_that_do_not_fit_their_columns_are_counted() -> None:
    Path("photos.csv").write_text("image,caption\na.jpg,A dog, old\nb.jpg\nc.jpg,A cat,,\n")
    contexts, report = report_of("photos.csv")
    assert [context.captions for context in contexts] == [("A cat",)]
    assert report.skipped["row with more cells than columns"] == 1
    photos = [{"image": f"{n}.jpg", "caption": "x"} for n in range(1001)]
    lines(
        "photos.jsonl", [*photos, {"image": "z.jpg", "boxes": []}, {"image": "a.jpg", "text": ""}]
    )
    assert report_of("photos.jsonl")[1].skipped["column that the first rows don't have"] == 2
    lines("photos.jsonl", [{"image": "a.jpg", "image_id": {"$oid": "1"}, "caption": "x"}])
    assert report_of("photos.jsonl")[1].skipped == {"image whose id can't be read": 1}


def test_names_without_an_id_have_no_folders_of_a_machine_in_rows_and_reports() -> None:
    names = ["/home/me/a.jpg", "https://x.org/b.jpg?key=SECRET", "C:\\me\\c.jpg", "d/d.jpg"]
    lines("photos.jsonl", [{"image": name, "caption": "x"} for name in names])
    contexts, report = report_of("photos.jsonl")
    assert sorted(context.id for context in contexts) == ["a.jpg", "b.jpg", "c.jpg", "d/d.jpg"]
    assert generate("photos.jsonl") == 0
    told = [path.read_text() for path in Path("out").glob("*.*")]
    assert not re.search(r"SECRET|/me/|\\me\\", "".join([*told, str(rows()), str(report.examples)]))
    assert read(lines("p.jsonl", [{"image_id": "/me/a.jpg", "text": "x"}]))[0].id == "a.jpg"
    lines("photos.jsonl", [{"image": name, "caption": "x"} for name in ("/u/a.jpg", "/v/a.jpg")])
    with pytest.raises(SourceError, match=r"two images of one name, .*/u/a\.jpg.* and .*/v/a\.jpg"):
        read("photos.jsonl")


def test_json_lines_may_be_called_json_and_other_files_are_not_json() -> None:
    lines("photos.json", PHOTOS)
    assert read("photos.json", box_format="xywh") == read(lines("p.jsonl", PHOTOS))
    Path("photos.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(
        UsageError, match=r"photos.zip: expected a file in COCO's format, or a table"
    ):
        read("./photos.zip")


def test_a_given_path_is_never_replaced_by_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    for name in ("./nowhere.jsonl", "nowhere/", "./nowhere", "/nowhere/x.yaml", "~/nowhere/x"):
        with pytest.raises(MMInstructError, match="there is no such file"):
            sources.get(name)
    assert sources.get("SAMPLE").downloads("train") == ()
    lines("photos.jsonl", PHOTOS)
    assert sources.get("./photos.jsonl").downloads("train") == ()


def test_a_folder_of_images_alone_is_told_what_was_looked_for_in_it() -> None:
    Path("pictures").mkdir()
    Image.new("RGB", (8, 8)).save("pictures/0.png")
    with pytest.raises(SourceError, match=r"^pictures \(no \.jsonl, .* so load_dataset .* caption"):
        read("./pictures")


def test_two_of_one_name_are_not_taken_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("a", "b"):
        lines(f"{folder}/photos.jsonl", PHOTOS)
    assert generate("a/photos.jsonl", "b/photos.jsonl") == 2
    assert "b/photos.jsonl: got the name 'photos', which is that of a/photos.jsonl" in (
        capsys.readouterr().err
    )
    assert generate("a/photos.jsonl", "a/photos.jsonl", "--limit", "1") == 0
    assert len(rows()) == 3


def test_a_word_that_names_nothing_is_an_unknown_source() -> None:
    with pytest.raises(UsageError, match="unknown source 'COCO2015'"):
        sources.get("COCO2015")
