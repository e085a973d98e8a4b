"""What isn't in an image, though it would fit in, is drawn where it is surely known."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from mminstruct import prompts, sources
from mminstruct.annotations import labels, narratives, relations
from mminstruct.checks.vocabulary import common_things
from mminstruct.rows.absent import add_absent
from mminstruct.rows.requests import prompts_of
from mminstruct.schema import Box, Context, Media

CORNERS = (0.1, 0.2, 0.3, 0.4)


def context(
    *boxed: str, captions: tuple[str, ...] = (), **annotations: tuple[object, ...]
) -> Context:
    boxes = tuple(Box(label, CORNERS) for label in boxed)
    return Context("000000000042", Media("42.jpg"), captions, boxes, annotations)


def draw_often(about: Context, most: int = 3) -> Counter[str]:
    """How often each label is absent in many draws."""
    found: Counter[str] = Counter()
    for seed in range(200):
        items = add_absent(about, most, random.Random(seed)).annotations.get("labels", ())
        absent = [item.label for item in items if not item.present]
        assert len(set(absent)) == len(absent) <= most
        found.update(absent)
    return found


def test_what_would_fit_in_is_absent_and_other_things_are_not_asked_about() -> None:
    found = draw_often(context("fork", "pizza", "person"))
    assert {"knife", "wine glass", "cake", "spoon"} < found.keys() < common_things().keys()
    assert not found.keys() & {"fork", "pizza", "person", "giraffe", "snowboard", "bus"}
    assert max(found.values()) < 100


def test_no_class_is_out_of_reach() -> None:
    reached = set().union(*(draw_often(context(label)) for label in common_things()))
    assert reached == common_things().keys()


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("A young woman looks at a shop.", "person"),
        ("Two kids play.", "person"),
        ("a sofa by the wall", "couch"),
        ("A man on his motorbike", "motorcycle"),
        ("The tv's remote control lies there", "remote"),
        ("Some wineglasses stand in a row", "wine glass"),
        ("Puppies in a basket.", "dog"),
        ("a busy table", "dining table"),
        ("An animal hides.", "cat"),
    ],
)
def test_what_anybody_names_by_any_word_is_not_absent(said: str, label: str) -> None:
    near = next(
        other
        for other in common_things()
        if draw_often(context(other))[label] and label != other and other not in said
    )
    assert label not in draw_often(context(near, captions=(said,)))
    assert label not in draw_often(context(near, narratives=(narratives.Item(said),)))
    told = relations.Item("somebody", "sees", said)
    assert label not in draw_often(context(near, relations=(told,)))


def test_a_box_under_another_name_is_no_absence() -> None:
    assert "couch" not in draw_often(context("chair", "sofa"))
    assert "couch" in draw_often(context("chair", "lamp"))


def test_nothing_is_absent_where_nobody_drew_boxes_or_people_have_checked_already() -> None:
    for about in (
        context(captions=("A gull.",)),
        context("chair", labels=(labels.Item("zebra", present=False),)),
    ):
        assert add_absent(about, 3, random.Random(1)) is about


def test_labels_that_are_there_stay_and_there_are_as_many_as_asked_for() -> None:
    about = context("chair", labels=(labels.Item("room"),))
    for most in (1, 2, 5):
        items = add_absent(about, most, random.Random(1)).annotations["labels"]
        assert [item.present for item in items] == [True, *[False] * most]


def test_only_prompts_of_sources_that_box_everything_say_what_is_absent() -> None:
    config, about = prompts.load("llava"), context("chair", "cup", captions=("A chair.",))
    exhaustive = {name: sources.get(name).info.exhaustive for name in sources.names()}
    assert {name for name, is_so in exhaustive.items() if is_so} == {
        "COCO2014",
        "COCO2017",
        "SAMPLE",
    }
    for name, is_so in (*exhaustive.items(), ("COCO2017+LN", True), ("LVIS+LN", False)):
        for kind in config.types:
            made = sources.get(name).info, config, 7
            prompt, again = (next(prompts_of(about, kind, *made)) for _ in range(2))
            assert prompt == again
            assert ("\n- Not there: " in prompt.messages[-1].content) == is_so


def test_rows_of_one_image_and_of_other_seeds_have_other_absences() -> None:
    config, about = prompts.load("llava"), context("chair", "cup")
    found = {
        next(prompts_of(about, kind, sources.get("COCO2017").info, config, seed))
        .messages[-1]
        .content.partition("Not there: ")[2]
        .partition("\n")[0]
        for kind in config.types
        for seed in range(5)
    }
    assert len(found) > 10
