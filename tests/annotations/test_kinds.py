"""Kinds of annotation: each module in ``mminstruct/annotations``, and what each writes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mminstruct import annotations
from mminstruct.annotations import facts, labels, narratives, relations, timed
from mminstruct.errors import UsageError
from mminstruct.schema import Context, Media, decode_context, encode_context

EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "facts": [{"name": "Length", "value": "4.2 s"}],
    "labels": [{"label": "Dog"}, {"label": "Cat", "present": False}],
    "narratives": [{"text": "In the front there is a dog on a rug."}],
    "relations": [{"subject": "Dog", "predicate": "on", "object": "Rug"}],
    "timed": [{"text": "A person bows."}, {"text": "They sit.", "start_s": 1, "end_s": 2.5}],
}


@pytest.mark.parametrize("kind", annotations.names())
def test_every_kind_writes_lines_that_are_the_same_after_a_trip_through_json(kind: str) -> None:
    items = annotations.items(kind, EXAMPLES[kind])
    context = Context("1", Media("1.jpg"), annotations={kind: items})
    travelled = decode_context(encode_context(context)).annotations[kind]
    assert annotations.lines(kind, items) == annotations.lines(kind, travelled)
    assert annotations.items(kind, travelled) == items
    assert all(line.strip() == line != "" for line in annotations.lines(kind, items))
    assert annotations.heading(kind).endswith(":")


@pytest.mark.parametrize("kind", annotations.names())
def test_an_unknown_field_is_an_error_that_names_the_known_ones(kind: str) -> None:
    with pytest.raises(UsageError, match=rf"{kind}.*colour.*an item has"):
        annotations.items(kind, [{**EXAMPLES[kind][0], "colour": "red"}])


def test_an_unknown_kind_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="'label'.*labels"):
        annotations.lines("label", [])


def test_sections_stand_in_an_order_of_their_own() -> None:
    assert annotations.names() == ["timed", "narratives", "labels", "relations", "facts"]


def test_labels_say_what_is_there_what_is_not_and_who_says_so() -> None:
    items = [
        labels.Item("Dog"),
        labels.Item("Cat", present=False),
        labels.Item("Rug"),
        labels.Item("Dog"),
        labels.Item("Lamp", score=0.834),
        labels.Item("Book", not_all_boxed=True),
    ]
    assert labels.lines(items) == [
        "- There: Dog; Rug",
        "- Not there: Cat",
        "- There, but not each of them has a box: Book",
        "- Perhaps there, found by a program: Lamp (83% sure)",
    ]


def test_a_relation_that_holds_several_times_is_one_line() -> None:
    ride = relations.Item("Person", "on", "Horse")
    made_of = relations.Item("Table", "is", "wooden")
    assert relations.lines([ride, made_of, ride]) == [
        "- Person on Horse (2 times)",
        "- Table is wooden",
    ]


def test_a_span_stands_in_front_of_its_text() -> None:
    assert timed.lines([timed.Item("They turn.", 0.5, 2)]) == ["- from 0.5 to 2.0 s: They turn."]


@pytest.mark.parametrize("span", [{"start_s": 1}, {"end_s": 1}, {"start_s": 2, "end_s": 1}])
def test_a_span_has_two_ends_in_order(span: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="timed"):
        annotations.items("timed", [{"text": "They turn.", **span}])


def test_a_score_is_a_fraction() -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        annotations.items("labels", [{"label": "Dog", "score": 83}])


def test_items_can_be_made_directly() -> None:
    for item in (facts.Item("Length", "4 s"), narratives.Item("A dog.")):
        assert msgspec.json.decode(msgspec.json.encode(item), type=type(item)) == item
