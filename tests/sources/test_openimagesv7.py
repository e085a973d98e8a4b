"""Open Images V7: each trap of its formats, on small hand-made files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mminstruct.annotations import labels, narratives, relations
from mminstruct.errors import SourceError, UsageError
from mminstruct.schema import Box, Context, decode_context, encode_context
from mminstruct.sources import Files, ReadReport
from mminstruct.sources.openimagesv7 import SOURCE, OpenImagesSource, turn_upright

ONE, TWO, THREE = "000000000000aaaa", "000000000000bbbb", "ffffffffffff0001"
DOG, CAT, TABLE, GEESE, PERSON = "/m/0bt9lr", "/m/01yrx", "/m/04bcr3", "/g/1geese", "/m/01g317"
ANIMAL = "/m/0jbk"
WOODEN, MADE_OF = "/m/083vt", "/m/0dnr7"

CLASSES = "\n".join(
    [
        "LabelName,DisplayName",
        f"{DOG},Dog",
        f"{CAT},Cat",
        f"{TABLE},Table",
        f'{GEESE},"Ducks, geese and ""others"""',
        f"{PERSON},Persoña",
        f"{ANIMAL},Animal",
    ]
)
BOXES_HEAD = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,"
    "IsDepiction,IsInside"
)
LABELS_HEAD = "ImageID,Source,LabelName,Confidence"
RELATIONS_HEAD = (
    "ImageID,LabelName1,LabelName2,XMin1,XMax1,YMin1,YMax1,XMin2,XMax2,YMin2,YMax2,"
    "RelationshipLabel"
)
IMAGES_HEAD = (
    "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,"
    "OriginalSize,OriginalMD5,Thumbnail300KURL,Rotation"
)
HIERARCHY = {
    "LabelName": "/m/0bl9f",
    "Subcategory": [{"LabelName": ANIMAL, "Subcategory": [{"LabelName": DOG}, {"LabelName": CAT}]}],
}
BY = "https://creativecommons.org/licenses/by/2.0/"


def narrative(image_id: str, caption: str, **more: Any) -> dict[str, Any]:
    return {"dataset_id": "x", "image_id": image_id, "annotator_id": 1, "caption": caption, **more}


def write(folder: Path, **changed: Any) -> Path:
    """A validation split; by role, rows or whole texts may be changed."""
    contents: dict[str, Any] = {
        "narratives": [narrative(ONE, "In this image I can see a dog.")],
        "boxes": [f"{ONE},xclick,{DOG},1,0.1,0.5,0.2,0.9,0,0,0,0,0"],
        "labels": [f"{ONE},verification,{CAT},0"],
        "relations": [],
        "images": [f"{ONE},validation,o,https://flickr.test/1,{BY},p,Ann,Title,1,x==,,0.0"],
        "classes": CLASSES,
        "attributes": f"{WOODEN},Wooden\n{MADE_OF},(made of)Textile\n",
        "predicates": "at,at\ninside_of,inside_of\n",
        "hierarchy": json.dumps(HIERARCHY),
        "machine": [],
    } | changed
    heads = {
        "boxes": BOXES_HEAD,
        "labels": LABELS_HEAD,
        "relations": RELATIONS_HEAD,
        "images": IMAGES_HEAD,
        "machine": LABELS_HEAD,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for role, url in OpenImagesSource(machine_labels=True).urls("validation").items():
        content = contents[role]
        if role in heads and isinstance(content, list):
            content = "\n".join([heads[role], *content]) + "\n"
        elif role == "narratives" and isinstance(content, list):
            content = "".join(json.dumps(line) + "\n" for line in content)
        (folder / url.rpartition("/")[2]).write_text(content, encoding="utf-8")
    return folder


def located(folder: Path, source: OpenImagesSource = SOURCE) -> Files:
    files = source.locate([folder], "validation")
    assert files is not None
    return files


def read(folder: Path, *, source: OpenImagesSource = SOURCE, **changed: Any) -> list[Context]:
    contexts, _ = read_and_report(folder, source=source, **changed)
    return contexts


def read_and_report(
    folder: Path, *, source: OpenImagesSource = SOURCE, **changed: Any
) -> tuple[list[Context], ReadReport]:
    report = ReadReport()
    contexts = list(source.read(located(write(folder, **changed), source), report))
    assert report.contexts == len(contexts)
    for context in contexts:
        assert decode_context(encode_context(context)).id == context.id
    return contexts, report


def box(row: str, image: str = ONE) -> str:
    return f"{image},xclick,{row}"


def test_a_context_has_narrative_boxes_labels_and_where_the_image_is_from(tmp_path: Path) -> None:
    (context,) = read(tmp_path)
    assert context.id == ONE
    assert context.captions == ()
    assert context.annotations == {
        "narratives": (narratives.Item("In this image I can see a dog."),),
        "labels": (labels.Item("Cat", present=False),),
    }
    media = context.media
    assert media.file_name == f"{ONE}.jpg"
    assert media.url is not None and media.url.endswith(f"/validation/{ONE}.jpg")
    assert media.landing_url == "https://flickr.test/1"
    assert (media.license, media.license_url) == ("CC-BY-2.0", BY)
    assert (media.author, media.author_url, media.title) == ("Ann", "p", "Title")


def test_box_columns_are_min_max_per_axis_and_become_corners(tmp_path: Path) -> None:
    (context,) = read(tmp_path)
    assert context.boxes[0].bbox_xyxy_norm == (0.1, 0.2, 0.5, 0.9)


def test_minus_one_is_unknown_and_never_true(tmp_path: Path) -> None:
    rows = [
        box(f"{DOG},1,0.1,0.5,0.2,0.9,-1,-1,-1,-1,-1"),
        box(f"{DOG},1,0.1,0.5,0.2,0.9,1,0,1,0,1"),
    ]
    (context,) = read(tmp_path, boxes=rows)
    place = (0.1, 0.2, 0.5, 0.9)
    assert context.boxes[0] == Box(
        "Dog", place, is_group=None, is_occluded=None, is_truncated=None, is_depiction=None,
        is_inside=None,
    )  # fmt: skip
    assert context.boxes[1] == Box(
        "Dog", place, is_group=True, is_occluded=True, is_truncated=False, is_depiction=False,
        is_inside=True,
    )  # fmt: skip


def test_extra_columns_of_train_and_another_order_of_columns_do_no_harm(tmp_path: Path) -> None:
    head = (
        "XClick1X,YMax,YMin,XMax,XMin,LabelName,ImageID,IsInside,IsDepiction,IsGroupOf,"
        "IsTruncated,IsOccluded"
    )
    text = f"{head}\n-1,0.9,0.2,0.5,0.1,{DOG},{ONE},0,0,0,0,1\n"
    (context,) = read(tmp_path, boxes=text)
    assert context.boxes[0].bbox_xyxy_norm == (0.1, 0.2, 0.5, 0.9)
    assert context.boxes[0].is_occluded is True


def test_class_names_may_hold_commas_quotes_and_letters_beyond_ascii(tmp_path: Path) -> None:
    rows = [box(f"{label},1,0.1,0.5,0.2,0.9,0,0,0,0,0") for label in (GEESE, PERSON)]
    (context,) = read(tmp_path, boxes=rows)
    assert [b.label for b in context.boxes] == ['Ducks, geese and "others"', "Persoña"]


@pytest.mark.parametrize("head", ["", "LabelName,DisplayName\n", "id,name\n", "\ufeff"])
def test_class_files_come_with_a_header_or_without(tmp_path: Path, head: str) -> None:
    (context,) = read(tmp_path, classes=f"{head}{DOG},Dog\n{CAT},Cat\n")
    assert [b.label for b in context.boxes] == ["Dog"]


def test_an_unknown_label_id_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [box(f"{label},1,0.1,0.5,0.2,0.9,0,0,0,0,0") for label in ("/m/nobody", DOG)]
    checked = [f"{ONE},verification,{label},1" for label in ("/m/nobody", CAT)]
    (context,), report = read_and_report(tmp_path, boxes=rows, labels=checked)
    assert [b.label for b in context.boxes] == ["Dog"]
    assert report.skipped == {"box of a label without a name": 1, "label without a name": 1}


def test_several_narratives_of_an_image_are_kept_and_repeated_ones_counted(tmp_path: Path) -> None:
    texts = ["A dog.", " A \n dog. ", "There is a dog.", "  "]
    (context,), report = read_and_report(
        tmp_path, narratives=[narrative(ONE, text) for text in texts]
    )
    spoken = context.annotations["narratives"]
    assert [item.text for item in spoken] == ["A dog.", "There is a dog."]
    assert report.skipped == {"repeated narrative": 1, "empty narrative": 1}


def test_narratives_with_traces_outside_the_image_are_read_as_well(tmp_path: Path) -> None:
    trace = {
        "timed_caption": [{"utterance": "A", "start_time": 0.0, "end_time": 0.8}],
        "traces": [[{"x": -0.21, "y": 1.8, "t": 0.02}]],
        "voice_recording": "x.ogg",
    }
    (context,) = read(tmp_path, narratives=[narrative(ONE, 'A sign: "CAFÉ"', **trace)])
    assert context.annotations["narratives"][0].text == 'A sign: "CAFÉ"'


def test_images_without_a_narrative_are_no_contexts_and_ids_ascend(tmp_path: Path) -> None:
    rows = [box(f"{DOG},1,0.1,0.5,0.2,0.9,0,0,0,0,0", image) for image in (THREE, TWO, ONE, TWO)]
    contexts = read(
        tmp_path, boxes=rows, narratives=[narrative(THREE, "A sea."), narrative(ONE, "A hill.")]
    )
    assert [c.id for c in contexts] == [ONE, THREE]
    assert [len(c.boxes) for c in contexts] == [1, 1]


def test_an_image_that_the_table_of_images_lacks_has_no_known_licence(tmp_path: Path) -> None:
    (context,) = read(tmp_path, images=[])
    assert context.media.license is None
    assert context.media.author is None


def about(image: str, **changes: str) -> str:
    facts = {"license": BY, "author": "Ann", "title": "Title", "thumb": "", "turn": "0.0"} | changes
    return (
        f"{image},validation,o,https://flickr.test/1,{facts['license']},p,{facts['author']},"
        f"{facts['title']},1,x==,{facts['thumb']},{facts['turn']}"
    )


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"license": "https://creativecommons.org/licenses/by-nc/2.0/"}, "License"),
        ({"license": ""}, "License"),
        ({"author": "Bea"}, "Author"),
        ({"turn": "90.0"}, "Rotation"),
    ],
)
def test_rows_about_one_image_that_contradict_each_other_are_an_error(
    tmp_path: Path, change: dict[str, str], column: str
) -> None:
    title = '"Two\nlines"'
    rows = [about(TWO, title=title), about(ONE), about(THREE), about(TWO), about(ONE, **change)]
    with pytest.raises(SourceError) as caught:
        read(tmp_path, images=rows)
    (said,) = str(caught.value).splitlines()
    assert (
        f"validation-images-with-rotation.csv, lines 4, 7: several rows about image {ONE}" in said
    )
    assert f"whose {column} differ" in said


def test_repeated_rows_about_an_image_are_counted(tmp_path: Path) -> None:
    spoken = [narrative(image, "I can see a dog.") for image in (ONE, TWO)]
    rows = [about(ONE, license=""), about(ONE, license="", thumb="t"), about(TWO), about(THREE)]
    rows += [about(ONE, license=""), about(THREE, author="Bea")]  # nobody asks for the last one
    contexts, report = read_and_report(tmp_path, narratives=spoken, images=rows)
    assert [context.media.license for context in contexts] == [None, "CC-BY-2.0"]
    assert report.skipped == {"repeated row about an image": 2}


def test_titles_may_hold_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    row = f'{ONE},train,o,l,{BY},p,"Bo, ""B"" Lee","one\ntwo, three",1,x==,,'
    (context,) = read(tmp_path, images=[row])
    assert context.media.author == 'Bo, "B" Lee'
    assert context.media.title == "one two, three"
    assert context.media.rotation_deg == 0


@pytest.mark.parametrize(
    ("rotation", "degrees", "corners"),
    [
        ("", 0, (0.1, 0.2, 0.5, 0.9)),
        ("nan", 0, (0.1, 0.2, 0.5, 0.9)),
        ("0.0", 0, (0.1, 0.2, 0.5, 0.9)),
        ("90.0", 90, (0.2, 0.5, 0.9, 0.9)),
        ("180.0", 180, (0.5, 0.1, 0.9, 0.8)),
        ("270", 270, (0.1, 0.1, 0.8, 0.5)),
    ],
)
def test_boxes_turn_with_the_image(
    tmp_path: Path, rotation: str, degrees: int, corners: tuple[float, ...]
) -> None:
    row = f"{ONE},train,o,l,{BY},p,a,t,1,x==,,{rotation}"
    (context,) = read(tmp_path, images=[row])
    assert context.media.rotation_deg == degrees
    assert context.boxes[0].bbox_xyxy_norm == pytest.approx(corners)


def test_turning_four_times_by_90_degrees_brings_every_box_back() -> None:
    boxes = np.random.default_rng(1).random((50, 2, 2)).astype(np.float32)
    corners = np.concatenate([boxes.min(axis=1), boxes.max(axis=1)], axis=1)
    turned = corners
    for _ in range(4):
        turned = turn_upright(turned, np.full(50, 90, dtype=np.int16))
    assert turned == pytest.approx(corners, abs=1e-6)
    twice = turn_upright(
        turn_upright(corners, np.full(50, 90, np.int16)), np.full(50, 90, np.int16)
    )
    assert twice == pytest.approx(turn_upright(corners, np.full(50, 180, np.int16)), abs=1e-6)


def test_a_rotation_that_is_none_is_taken_asturn_upright_and_counted(tmp_path: Path) -> None:
    (context,), report = read_and_report(tmp_path, images=[f"{ONE},train,o,l,{BY},p,a,t,1,x==,,45"])
    assert context.media.rotation_deg == 0
    assert report.skipped == {"rotation that is none, taken as upright": 1}


def test_boxes_without_an_area_inside_the_image_are_counted(tmp_path: Path) -> None:
    rows = [
        box(f"{DOG},1,{corners},0,0,0,0,0")
        for corners in (
            *("0.5,0.5,0.2,0.9", "0.1,nan,0.2,0.9", "1.2,1.4,0,1"),
            *("-0.5,0.5,0.2,7", "0,0.1,0,0.1", "0,0.2,0,0.2"),
        )
    ]
    (context,), report = read_and_report(tmp_path, boxes=rows)
    corners = [b.bbox_xyxy_norm for b in context.boxes]
    assert corners == [(0.0, 0.2, 0.5, 1.0), (0.0, 0.0, 0.1, 0.1), (0.0, 0.0, 0.2, 0.2)]
    assert report.skipped == {"box outside the image or empty": 3}


def test_people_say_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    rows = [f"{ONE},verification,{TABLE},1", f"{ONE},crowdsource-verification,{CAT},0"]
    (context,) = read(tmp_path, labels=rows)
    assert context.annotations["labels"] == (
        labels.Item("Table"),
        labels.Item("Cat", present=False),
    )


def test_a_label_that_has_a_box_or_that_others_saw_is_not_absent(tmp_path: Path) -> None:
    rows = [
        f"{ONE},verification,{DOG},0",
        f"{ONE},verification,{CAT},0",
        f"{ONE},crowdsource-verification,{CAT},1",
    ]
    (context,), report = read_and_report(tmp_path, labels=rows)
    assert "labels" not in context.annotations
    assert report.skipped == {"label both present and absent": 2}


def test_machine_labels_come_on_request_with_their_score_and_behind_those_of_people(
    tmp_path: Path,
) -> None:
    scores = {TABLE: 0.6, PERSON: 0.9, CAT: 0.7}
    machine = [f"{ONE},machine,{label},{score}" for label, score in scores.items()]
    (usual,) = read(tmp_path / "usual", machine=machine)
    assert [item.label for item in usual.annotations["labels"]] == ["Cat"]
    (asked,) = read(tmp_path / "asked", machine=machine, source=OpenImagesSource(True))
    assert asked.annotations["labels"] == (
        labels.Item("Cat", present=False),
        labels.Item("Persoña", score=0.9),
        labels.Item("Table", score=0.6),
    )


def test_relations_and_attributes_read_like_words(tmp_path: Path) -> None:
    corners = ",".join(["0.1"] * 8)
    rows = [
        f"{ONE},{DOG},{TABLE},{corners},inside_of",
        f"{ONE},{TABLE},{WOODEN},{corners},is",
        f"{ONE},{TABLE},{MADE_OF},{corners},is",
        f"{ONE},{DOG},/m/nobody,{corners},at",
        f"{TWO},{DOG},{TABLE},{corners},at",
        f"{ONE},{PERSON},{DOG},{corners},talk_to",
        f"{ONE},{PERSON},{DOG},{corners},ride",
    ]
    (context,), report = read_and_report(tmp_path, relations=rows)
    assert context.annotations["relations"] == (
        relations.Item("Dog", "is inside", "Table"),
        relations.Item("Table", "is", "wooden"),
        relations.Item("Table", "is", "made of textile"),
        relations.Item("Persoña", "talk to", "Dog"),
        relations.Item("Persoña", "rides", "Dog"),
    )
    assert report.skipped == {"relation with a label without a name": 1}


def test_an_attribute_goes_by_its_own_name_where_a_class_has_the_same_id(tmp_path: Path) -> None:
    corners = ",".join(["0.1"] * 8)
    rows = [
        f"{ONE},{TABLE},{WOODEN},{corners},is",
        f"{ONE},{DOG},{WOODEN},{corners},at",
        f"{ONE},{WOODEN},{PERSON},{corners},is",
    ]
    (context,) = read(tmp_path, relations=rows, classes=f"{CLASSES}\n{WOODEN},Wood\n")
    assert context.annotations["relations"] == (
        relations.Item("Table", "is", "wooden"),
        relations.Item("Dog", "at", "Wood"),
        relations.Item("Wood", "is", "Persoña"),
    )


@pytest.mark.parametrize("value", ["2", "-2", "-128", "often", "300"])
def test_a_flag_that_is_none_is_unknown(tmp_path: Path, value: str) -> None:
    rows = [
        box(f"{DOG},1,0.1,0.5,0.2,0.9,0,1,-1,,0"),
        box(f"{DOG},1,0.1,0.5,0.2,0.9,1,0,{value},0,0"),
    ]
    (context,), report = read_and_report(tmp_path, boxes=rows)
    assert [b.is_group for b in context.boxes] == [None, None]
    assert [b.is_occluded for b in context.boxes] == [False, True]
    counted = {"flag of a box that is none of 1, 0 and -1": 1} if value[-1].isdigit() else {}
    assert report.skipped == (counted if value != "300" else {})


def test_labels_with_an_impossible_confidence_are_left_out_and_counted(tmp_path: Path) -> None:
    values = ("0.7", "0.2", "2", "-1", *["1"] * 4)
    checked = [f"{ONE},verification,{TABLE},{value}" for value in values]
    machine = [f"{ONE},machine,{PERSON},{value}" for value in ("1.5", "-0.5", "0.5", "0.5")]
    (context,), report = read_and_report(
        tmp_path, labels=checked, machine=machine, source=OpenImagesSource(True)
    )
    assert context.annotations["labels"] == (
        labels.Item("Table"),
        labels.Item("Persoña", score=0.5),
    )
    assert report.skipped == {
        "label that people didn't decide about": 4,
        "label with a score beyond 0 and 1": 2,
    }


def test_files_are_found_under_their_publishers_folders_too(tmp_path: Path) -> None:
    flat = write(tmp_path / "flat")
    for url in SOURCE.urls("validation").values():
        below = url.removeprefix("https://storage.googleapis.com/openimages/")
        target = tmp_path / "tree" / "openimagesv7" / below.rpartition("annotations/")[2]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((flat / target.name).read_bytes())
    one, other = (SOURCE.locate([tmp_path / name], "validation") for name in ("flat", "tree"))
    assert one is not None and other is not None
    assert one.fingerprint == other.fingerprint
    assert SOURCE.locate([flat], "train") is None  # shared class names alone are not a split


def test_a_missing_file_is_named_with_its_address(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "validation-annotations-bbox.csv").unlink()
    with pytest.raises(SourceError, match=r"validation-annotations-bbox.csv: missing.*https://"):
        SOURCE.locate([tmp_path], "validation")


def test_narratives_with_traces_in_parts_are_read_as_far_as_they_are_there(tmp_path: Path) -> None:
    write(tmp_path)
    alone = tmp_path / "open_images_validation_captions.jsonl"
    stem = "open_images_validation_localized_narratives"
    parts = {
        2: [narrative(TWO, "A cat.", traces=[[{"x": 0.1, "y": 0.2, "t": 0.0}]])],
        0: [narrative(ONE, "A dog."), narrative(TWO, "A cat.")],
    }
    for number, lines in parts.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{stem}-0000{number}-of-00004.jsonl").write_text(text)
    files, report = located(tmp_path), ReadReport()
    assert files.paths["narratives"] == alone  # all of it, and shorter
    alone.rename(tmp_path / "elsewhere.jsonl")
    files = located(tmp_path)
    assert [
        (context.id, [item.text for item in context.annotations["narratives"]])
        for context in SOURCE.read(files, report)
    ] == [(ONE, ["A dog."]), (TWO, ["A cat."])]
    missing = "file of narratives that isn't there"
    assert report.skipped[missing] == 2
    assert report.examples[missing] == [f"{stem}: 00001, 00003 of 00004"]
    assert missing in report.faults()
    assert report.skipped["repeated narrative"] == 1
    # Without the second part, they are others.
    (tmp_path / f"{stem}-00002-of-00004.jsonl").unlink()
    assert located(tmp_path).fingerprint != files.fingerprint
    alone.with_name(f"{stem}.jsonl").write_text(json.dumps(narrative(ONE, "The whole.")))
    assert located(tmp_path).paths["narratives"].name == f"{stem}.jsonl"


def test_an_unknown_split_is_an_error() -> None:
    with pytest.raises(UsageError, match="'val'.*validation"):
        SOURCE.downloads("val")


@pytest.mark.parametrize(
    ("role", "content", "message"),
    [
        ("narratives", '{"image_id": "000000000000aaaa", "cap', "that can't be read .line 1"),
        ("narratives", '{"image_id": 7, "caption": "A dog."}\n', "16 hexadecimal digits .7"),
        ("narratives", [narrative("137576", "A dog.")], "16 hexadecimal digits .137576"),
        ("boxes", "ImageId,LabelName\nx,y\n", "ImageID"),
        ("boxes", [f"{ONE[:-1]},xclick,{DOG},1,0.1,0.5,0.2,0.9,0,0,0,0,0"], "16 hexadecimal"),
        ("boxes", [f"{ONE},xclick,{DOG},1,zero,0.5,0.2,0.9,0,0,0,0,0"], "1 of 1 box"),
        ("boxes", [f"{ONE},xclick,{DOG}"], "columns"),
        ("classes", "LabelName,DisplayName\n/m/only\n", "row 2"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(
    tmp_path: Path, role: str, content: Any, message: str
) -> None:
    name = SOURCE.urls("validation")[role].rpartition("/")[2]
    with pytest.raises(SourceError, match=message) as error:
        read(tmp_path, **{role: content})
    assert name in str(error.value)


def test_classes_are_kinds_of_others_as_the_hierarchy_says(tmp_path: Path) -> None:
    files = SOURCE.locate([write(tmp_path)], "validation")
    assert files is not None
    vocabulary = SOURCE.vocabulary(files)
    assert vocabulary.parents == {"dog": ("animal",), "cat": ("animal",)}
    assert set(vocabulary.labels) == {"dog", "cat", "animal"}


def test_a_folder_without_the_hierarchy_is_read_as_before(tmp_path: Path) -> None:
    (write(tmp_path) / "bbox_labels_600_hierarchy.json").unlink()
    files, report = SOURCE.locate([tmp_path], "validation"), ReadReport()
    assert files is not None and SOURCE.vocabulary(files).labels == {}
    assert len(list(SOURCE.read(files, report))) == 1
    assert not any("hierarchy" in reason for reason in report.skipped)


def test_a_damaged_hierarchy_is_told(tmp_path: Path) -> None:
    files = SOURCE.locate([write(tmp_path, hierarchy="[]")], "validation")
    assert files is not None
    with pytest.raises(SourceError, match="no tree of classes"):
        SOURCE.vocabulary(files)
