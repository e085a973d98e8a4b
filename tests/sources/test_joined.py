"""Narratives and LVIS beside COCO, and sources joined on the image."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import coco_files
from hypothesis import given
from hypothesis import strategies as st

from mminstruct import sources
from mminstruct.annotations import labels, narratives
from mminstruct.errors import SourceError, UsageError
from mminstruct.schema import Box, Context, Media
from mminstruct.sources import ReadReport
from mminstruct.sources._joined import iou, join_contexts
from mminstruct.sources.ln import SOURCE as LN
from mminstruct.sources.lvis import COCO_NAMES
from mminstruct.sources.lvis import SOURCE as LVIS

PLACE = (0.1, 0.1, 0.5, 0.5)
NEAR = (0.1, 0.1, 0.5, 0.52)
FAR = (0.6, 0.6, 0.9, 0.9)


def narrative_lines(*pairs: tuple[str, str]) -> str:
    return "".join(
        json.dumps({"dataset_id": "mscoco_val2017", "image_id": image, "caption": text}) + "\n"
        for image, text in pairs
    )


def lvis_document(**changed: Any) -> dict[str, Any]:
    return {
        "info": {},
        "images": [
            {
                "id": 42,
                "width": 100,
                "height": 200,
                "coco_url": "http://images.test/train2017/000000000042.jpg",
                "neg_category_ids": [2],
                "not_exhaustive_category_ids": [1],
            }
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 42,
                "category_id": 1,
                "bbox": [10, 20, 40, 80],
                "segmentation": [],
            }
        ],
        "categories": [
            {"id": 1, "name": "bat_(animal)", "synonyms": ["bat"]},
            {"id": 2, "name": "wet_suit"},
        ],
    } | changed


def read(source: sources.Source, places: list[Path], split: str = "train") -> list[Context]:
    files = source.locate(places, split)
    assert files is not None
    return list(source.read(files, ReadReport()))


def test_narratives_of_coco_have_ids_without_zeros_and_contexts_have_twelve_digits(
    tmp_path: Path,
) -> None:
    (tmp_path / "coco_train_captions.jsonl").write_text(
        narrative_lines(("137576", "A  harbour. "), ("42", "A hill."), ("42", "Some trees.")),
        encoding="utf-8",
    )
    one, other = read(LN, [tmp_path])
    assert (one.id, other.id) == ("000000000042", "000000137576")
    assert [item.text for item in one.annotations["narratives"]] == ["A hill.", "Some trees."]
    assert other.annotations["narratives"] == (narratives.Item("A harbour."),)
    assert other.media.file_name == "000000137576.jpg"


@pytest.mark.parametrize("form", ["folder", "files", "zip"])
def test_parts_of_the_narratives_may_be_packed_or_given_themselves(
    form: str, tmp_path: Path
) -> None:
    parts = [tmp_path / f"coco_train_localized_narratives-0000{n}-of-00002.jsonl" for n in (0, 1)]
    parts[0].write_text(narrative_lines(("42", "A hill.")))
    packed = parts[1].with_name(f"{parts[1].name}.gz")
    packed.write_bytes(gzip.compress(narrative_lines(("42", "Some trees.")).encode()))
    places = {"folder": [tmp_path], "files": [parts[0], packed], "zip": [tmp_path / "both.zip"]}
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        for path in (parts[0], packed):
            archive.write(path, f"narratives/{path.name}")
    if form == "zip":
        parts[0].unlink()
    files, report = LN.locate(places[form], "train"), ReadReport()
    assert files is not None
    (context,) = LN.read(files, report)
    assert [item.text for item in context.annotations["narratives"]] == ["A hill.", "Some trees."]
    assert report.skipped == {}


@pytest.mark.parametrize("image_id", ["00000000aaaa", "", "-1", "1" * 13, "٤٢"])
def test_a_narrative_of_no_coco_image_is_an_error(tmp_path: Path, image_id: str) -> None:
    path = tmp_path / "coco_train_captions.jsonl"
    path.write_text(narrative_lines((image_id, "A hill.")), encoding="utf-8")
    with pytest.raises(SourceError, match="twelve digits"):
        read(LN, [tmp_path])


def test_lvis_says_what_is_absent_and_what_has_more_instances_than_boxes(tmp_path: Path) -> None:
    (tmp_path / "lvis_v1_train.json").write_text(json.dumps(lvis_document()))
    (context,) = read(LVIS, [tmp_path])
    assert context.id == "000000000042"
    assert context.boxes == (Box("bat (animal)", (0.1, 0.1, 0.5, 0.5)),)
    assert context.annotations["labels"] == (
        labels.Item("wet suit", present=False),
        labels.Item("bat (animal)", not_all_boxed=True),
    )


def test_lvis_is_read_from_its_zip_as_well(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "lvis_v1_train.json.zip", "w") as archive:
        archive.writestr("lvis_v1_train.json", json.dumps(lvis_document()))
    assert read(LVIS, [tmp_path])[0].id == "000000000042"


def test_an_unknown_category_in_a_list_of_lvis_is_left_out_and_counted(tmp_path: Path) -> None:
    image = lvis_document()["images"][0] | {"neg_category_ids": [7, 2]}
    (tmp_path / "lvis_v1_train.json").write_text(json.dumps(lvis_document(images=[image])))
    files, report = LVIS.locate([tmp_path], "train"), ReadReport()
    assert files is not None
    (context,) = LVIS.read(files, report)
    assert context.annotations["labels"][0] == labels.Item("wet suit", present=False)
    assert report.skipped == {"label of a category that isn't in the file": 1}
    assert report.examples == {"label of a category that isn't in the file": ["000000000042"]}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """COCO 2017 with three images, and what LVIS and LN know of one and of another one."""
    folder = coco_files(tmp_path / "coco", 3)
    image_ids = [int(c.id) for c in read(sources.get("COCO2017"), [folder])]
    image = lvis_document()["images"][0] | {"id": image_ids[1]}
    box = lvis_document()["annotations"][0] | {"image_id": image_ids[1]}
    for split, document in (
        ("train", lvis_document(images=[], annotations=[])),
        ("val", lvis_document(images=[image], annotations=[box])),
    ):
        (folder / f"lvis_v1_{split}.json").write_text(json.dumps(document))
    lines = narrative_lines((str(image_ids[0]), "A hill."), ("999", "Elsewhere."))
    (folder / "coco_train_captions.jsonl").write_text(lines, encoding="utf-8")
    (folder / "coco_val_captions.jsonl").write_text("", encoding="utf-8")
    return folder


def test_a_join_has_the_first_sources_images_with_what_the_others_know(place: Path) -> None:
    alone = read(sources.get("COCO2017"), [place])
    source = sources.get("coco2017+LVIS+ln")
    files = source.locate([place], "train")
    assert files is not None
    report = ReadReport()
    together = list(source.read(files, report))
    assert [c.id for c in together] == [c.id for c in alone]
    assert [c.media for c in together] == [c.media for c in alone]
    assert together[2] == alone[2]
    assert together[0].annotations == {"narratives": (narratives.Item("A hill."),)}
    assert together[1].boxes == (*alone[1].boxes, Box("bat (animal)", (0.1, 0.1, 0.5, 0.5)))
    assert labels.Item("wet suit", present=False) in together[1].annotations["labels"]
    assert report.contexts == 3
    assert report.skipped["LN: image that is not among those of COCO2017"] == 1


def test_facts_about_a_join_follow_from_those_about_its_parts(place: Path) -> None:
    source = sources.get("COCO2017+LVIS")
    info, parts = source.info, [sources.get(name).info for name in ("COCO2017", "LVIS")]
    assert info.name == "COCO2017+LVIS"
    assert info.parts == tuple(parts)
    assert info.license == "CC-BY-4.0"
    assert all(part.attribution.rstrip(".") in info.attribution for part in parts)
    assert all(part.citation in info.citation for part in parts)
    assert info.splits == parts[0].splits
    assert len(source.downloads("train")) == 3
    one = source.locate([place], "train")
    (place / "lvis_v1_train.json").write_text(json.dumps(lvis_document(images=[], annotations=[])))
    before = one.fingerprint if one else ""
    (place / "lvis_v1_val.json").write_text(json.dumps(lvis_document(images=[], annotations=[])))
    after = source.locate([place], "train")
    assert after is not None and after.fingerprint != before


def test_a_join_is_there_when_all_of_it_is(place: Path) -> None:
    (place / "lvis_v1_val.json").unlink()
    assert sources.get("COCO2017+LVIS").locate([place], "train") is None


def test_sources_without_an_image_in_common_can_not_be_joined(place: Path) -> None:
    (place / "coco_train_captions.jsonl").write_text(narrative_lines(("999", "Elsewhere.")))
    source = sources.get("COCO2017+LN")
    with pytest.raises(SourceError, match=r"COCO2017\+LN: no image in common, got 1 image of LN"):
        read(source, [place])


@pytest.mark.parametrize(
    ("name", "message"), [("COCO2017+LVS", "LVIS"), ("COCO2017+", "unknown source ''")]
)
def test_an_unknown_part_is_an_error(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sources.get(name)


def test_a_source_is_joined_once() -> None:
    with pytest.raises(SourceError, match="LVIS is named twice"):
        sources.get("COCO2017+LVIS+lvis")


def test_an_option_belongs_to_some_part() -> None:
    asked = {"machine_labels": True}
    assert sources.get("OPENIMAGESV7", asked) != sources.get("OPENIMAGESV7")
    with pytest.raises(UsageError, match="COCO2017.*no option 'machine_labels'"):
        sources.get("COCO2017", asked)


def context(*boxes: Box, captions: tuple[str, ...] = (), **found: Any) -> Context:
    return Context("1", Media("1.jpg"), captions=captions, boxes=boxes, annotations=found)


def join(one: Context, other: Context) -> Context:
    return join_contexts(one, other, ReadReport())


def test_the_same_object_in_both_is_one_box_and_the_first_ones() -> None:
    one, other = context(Box("Dog", PLACE)), context(Box("dog", NEAR), Box("dog", FAR))
    assert join(one, other).boxes == (Box("Dog", PLACE), Box("dog", FAR))


def test_another_label_is_another_object_wherever_it_is() -> None:
    assert len(join(context(Box("dog", PLACE)), context(Box("puppy", PLACE))).boxes) == 2


def test_a_box_stands_for_one_object_of_the_other_source() -> None:
    both = join(context(Box("dog", PLACE)), context(Box("dog", NEAR), Box("dog", PLACE)))
    assert both.boxes == (Box("dog", PLACE), Box("dog", NEAR))


def test_two_boxes_of_one_source_are_never_merged() -> None:
    assert len(join(context(Box("dog", PLACE), Box("dog", NEAR)), context()).boxes) == 2


def test_captions_follow_each_other_without_repetitions() -> None:
    both = join(context(captions=("A dog.", "A cat.")), context(captions=("a DOG.", "A cow.")))
    assert both.captions == ("A dog.", "A cat.", "A cow.")


def test_a_box_of_one_source_overrules_an_absence_in_the_other() -> None:
    absent = (labels.Item("dog", present=False), labels.Item("cat", present=False))
    both = join(context(Box("dog", PLACE)), context(labels=absent))
    assert both.annotations == {"labels": absent[1:]}


side = st.floats(0, 1, allow_nan=False)


@given(st.tuples(side, side, side, side), st.tuples(side, side, side, side))
def test_overlap_is_a_fraction_and_the_same_from_both_sides(
    one: tuple[float, ...], other: tuple[float, ...]
) -> None:
    boxes = [Box("x", (min(a, c), min(b, d), max(a, c), max(b, d))) for a, b, c, d in (one, other)]
    assert 0 <= iou(*boxes) <= 1 + 1e-9
    assert iou(*boxes) == pytest.approx(iou(*boxes[::-1]))
    if boxes[0].area > 1e-9:
        assert iou(boxes[0], boxes[0]) == pytest.approx(1)


BY, BY_NC = ("CC-BY-2.0", "by"), ("CC-BY-NC-2.0", "by-nc")


def test_what_the_first_source_does_not_say_of_an_image_comes_from_the_other() -> None:
    known = Media("b.jpg", url="u", landing_url="l", width=1, height=2, author="A", title="T")
    both = join(Context("1", Media("a.jpg", title="Own")), Context("1", known))
    assert both.media == msgspec.structs.replace(known, file_name="a.jpg", title="Own")
    assert join(Context("1", known), Context("1", Media("a.jpg", url="no"))).media == known


def test_a_licence_and_its_address_are_of_one_source() -> None:
    one, other = Media("a", license_url="?"), Media("b", license=BY[0], license_url=BY[1])
    assert join(Context("1", one), Context("1", other)).media == one
    nc = Media("a", license=BY_NC[0], license_url=BY_NC[1])
    assert join(Context("1", nc), Context("1", other)).media == nc
    assert join(Context("1", Media("a")), Context("1", nc)).media == nc


def test_licences_do_not_depend_on_which_source_is_named_first(place: Path) -> None:
    coco_files(place, 0, split="val")
    first = read(sources.get("COCO2017+LN"), [place])[0].media
    second = read(sources.get("LN+COCO2017"), [place])[0].media
    assert second == first
    assert first.license == "CC-BY-2.0"


def test_lvis_says_under_which_licence_an_image_is_and_where_its_page_is(tmp_path: Path) -> None:
    image = lvis_document()["images"][0] | {
        "license": 4,
        "flickr_url": "http://farm1.staticflickr.com/1/42_ab12_z.jpg",
    }
    path = tmp_path / "lvis_v1_train.json"
    by = [{"id": 4, "url": "http://creativecommons.org/licenses/by/2.0/", "name": "Attribution"}]
    path.write_text(json.dumps(lvis_document(images=[image], licenses=by)))
    (context,) = read(LVIS, [tmp_path])
    assert context.media == Media(
        "000000000042.jpg",
        url="http://images.test/train2017/000000000042.jpg",
        landing_url="https://www.flickr.com/photo.gne?id=42",
        width=100,
        height=200,
        license="CC-BY-2.0",
        license_url="http://creativecommons.org/licenses/by/2.0/",
    )
    own = [{"id": 4, "url": "http://example.org/another", "name": "another"}]
    path.write_text(json.dumps(lvis_document(images=[image], licenses=own)))
    (context,) = read(LVIS, [tmp_path])
    assert (context.media.license, context.media.license_url) == (None, own[0]["url"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where all splits of COCO 2017 and LVIS are, without an image."""
    for split in ("train", "val"):
        coco_files(tmp_path, 0, split=split)
        document = lvis_document(images=[], annotations=[], categories=[])
        (tmp_path / f"lvis_v1_{split}.json").write_text(json.dumps(document))
    return tmp_path


def test_what_two_parts_leave_out_for_the_same_reason_is_added_up(folder: Path) -> None:
    coco_files(folder, 1)  # a dog and a person
    document = lvis_document(
        images=[lvis_document()["images"][0] | {"id": 1, "neg_category_ids": [1, 3]}],
        annotations=[lvis_document()["annotations"][0] | {"image_id": 1}],
        categories=[*lvis_document()["categories"], {"id": 3, "name": "dog"}],
    )
    (folder / "lvis_v1_train.json").write_text(json.dumps(document))
    source = sources.get("LVIS+COCO2017")
    files = source.locate([folder], "train")
    assert files is not None
    report = ReadReport()
    assert len(list(source.read(files, report))) == 1
    assert report.skipped == {"label both present and absent": 2}


def named_twice(
    folder: Path, coco: str, lvis: str, *, absent: bool = False, height: int = 199
) -> Path:
    """An image of one object with COCO's name, which LVIS has in a box, too, or says is absent."""

    def edit(captions: dict[str, Any], instances: dict[str, Any]) -> None:
        instances["categories"] = [{"id": 1, "name": coco}]
        box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [100, 100, 200, 200]}
        instances["annotations"] = [box]

    coco_files(folder, 1, edit=edit)
    image = {"id": 1, "width": 640, "height": 480, "neg_category_ids": [1] if absent else []}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [100, 100, 200, height]}
    document = lvis_document(
        images=[image],
        annotations=[] if absent else [box],
        categories=[{"id": 1, "name": lvis}],
    )
    (folder / "lvis_v1_train.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(("lvis", "coco"), COCO_NAMES.items())
def test_an_object_that_coco_and_lvis_call_by_two_names_counts_once(
    folder: Path, lvis: str, coco: str
) -> None:
    (context,) = read(sources.get("COCO2017+LVIS"), [named_twice(folder, coco, lvis)])
    assert [box.label for box in context.boxes] == [coco]


def test_what_coco_has_in_a_box_is_not_absent_under_the_name_of_lvis(folder: Path) -> None:
    named_twice(folder, "couch", "sofa", absent=True)
    (context,) = read(sources.get("COCO2017+LVIS"), [folder])
    assert [box.label for box in context.boxes] == ["couch"]
    assert context.annotations == {}


@pytest.mark.parametrize("name", ["COCO2017+LVIS", "LVIS+COCO2017"])
@pytest.mark.parametrize(
    ("coco", "lvis", "kept"),
    [
        ("tie", "necktie", "necktie"),
        ("potted plant", "flowerpot", "potted plant"),
        ("sports ball", "soccer_ball", "soccer ball"),
        ("sports ball", "ball", "sports ball"),
    ],
)
def test_boxes_whose_names_are_merely_alike_count_once_if_they_nearly_coincide(
    folder: Path, name: str, coco: str, lvis: str, kept: str
) -> None:
    (context,) = read(sources.get(name), [named_twice(folder, coco, lvis)])
    assert [box.label for box in context.boxes] == [kept]
    (context,) = read(sources.get(name), [named_twice(folder, coco, lvis, height=150)])
    assert len(context.boxes) == 2


def test_no_two_categories_of_lvis_become_one() -> None:
    assert len(set(COCO_NAMES.values())) == len(COCO_NAMES)


@pytest.mark.parametrize(
    ("source", "name"), [(LVIS, "lvis_v1_val.json"), (LN, "coco_train_captions.jsonl")]
)
def test_a_published_file_may_be_given_itself(
    place: Path, source: sources.Source, name: str
) -> None:
    split = "validation" if "val" in name else "train"
    assert read(source, [place / name], split) == read(source, [place], split) != []
    assert source.locate([place / "annotations" / "captions_train2017.json"], split) is None
