"""What is said of things, held against boxes, labels and texts."""

from __future__ import annotations

from typing import Any

import pytest

from mminstruct.annotations import labels, narratives, relations, timed
from mminstruct.checks import Checker, Finding, Vocabulary, verdict_of
from mminstruct.checks.vocabulary import common_things
from mminstruct.schema import Box, Context, Media, Turn, decode_context, encode_context

COCO = Checker(Vocabulary(exhaustive=frozenset(common_things())))
PLACE = (0.1, 0.1, 0.4, 0.5)


def boxes(*names: str, **more: Any) -> tuple[Box, ...]:
    return tuple(Box(name, PLACE, **more) for name in names)


TABLE = Context(
    "1",
    Media("1.jpg"),
    captions=("Two men sit at a table with a dog.",),
    boxes=boxes("person", "person", "dog", "cup"),
)


def findings(answer: str, question: str = "What is there?") -> list[Finding]:
    return COCO.check(TABLE, [Turn(question, answer)])


def verdicts(answer: str, question: str = "What is there?") -> list[tuple[str, str, str]]:
    return [(f.kind, f.label, f.verdict) for f in findings(answer, question)]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A puppy sleeps.", ("object", "dog", "supported")),
        ("The gentlemen are talking.", ("object", "person", "supported")),
        ("They sit at a table.", ("object", "dining table", "supported")),
        ("There is an elephant.", ("object", "elephant", "contradicted")),
        ("He wears a necktie.", ("object", "tie", "contradicted")),
        ("A teddy bear lies there.", ("object", "teddy bear", "contradicted")),
        ("They eat hot dogs.", ("object", "hot dog", "contradicted")),
        ("He peels an orange.", ("object", "orange", "contradicted")),
        ("A cat might be nearby.", ("object", "cat", "supposed")),
        ("It suggests that they own a car.", ("object", "car", "supposed")),
        ("People often use umbrellas here.", ("object", "umbrella", "supposed")),
        ("In general, horses are shy.", ("object", "horse", "supposed")),
        ("It is a good place to read a book.", ("object", "book", "supposed")),
        ("He wants to ride a horse.", ("object", "horse", "supposed")),
        ("There is room for a cat.", ("object", "cat", "supposed")),
        ("He goes up to a horse.", ("object", "horse", "contradicted")),
        ("They sit next to a cow.", ("object", "cow", "contradicted")),
        ("The dog begins to eat a pizza.", ("object", "pizza", "contradicted")),
        ("The room is empty except for a cat.", ("object", "cat", "contradicted")),
        ("There is a dog as well as a horse.", ("object", "horse", "contradicted")),
        ("There are as many as ten people.", ("count", "person", "contradicted")),
        ("Many sheep pass.", ("object", "sheep", "contradicted")),
        ("As a cat passes, they talk.", ("object", "cat", "contradicted")),
        ("Five sheep graze.", ("object", "sheep", "contradicted")),
        ("Several sheep graze.", ("object", "sheep", "contradicted")),
    ],
)
def test_a_thing_is_held_against_boxes_and_captions(
    answer: str, expected: tuple[str, str, str]
) -> None:
    assert expected in verdicts(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "The wall is orange, and an orange and white flag hangs there.",
        "He ties his shoes while she watches.",
        "We should bear in mind that it is late.",
        "A painting of a horse hangs on the wall.",
        "A cloud looks like an elephant.",
        "They wait at the bus stop beside a tennis court.",
        "A bag of cat food and horse hair.",
        "It is a remote place on the train tracks.",
        "A helmet without a bird on it, and no other horses.",
        "They look at the camera with the glasses on.",
        "There is some furniture and a vehicle.",
        "The wall is as red as a fire truck.",
        "The table is set for six people.",
        "Two sheep farmers talk.",
        "Some broccoli soup is hot.",
        "The dog looks out of the frame.",
        "A man stands out in the image.",
        "The dog is out of place here.",
        "The head of the dog is out of view.",
        "The dog is not out of view.",
    ],
)
def test_what_only_sounds_like_a_thing_is_no_contradiction(answer: str) -> None:
    assert [f for f in findings(answer) if f.verdict == "contradicted"] == []


@pytest.mark.parametrize(
    ("answer", "said", "verdict"),
    [
        ("There are forty-seven people.", "forty-seven people", "contradicted"),
        ("The three large brown dogs sleep.", "The three large brown dogs", "contradicted"),
        ("At least three men stay.", "three men", "contradicted"),
        ("One of the three dogs barks.", "One of the three dogs", "contradicted"),
        ("A dozen cups are left.", "A dozen cups", "contradicted"),
        ("I count 3 to 5 people.", "3 to 5 people", "contradicted"),
        ("Both men are old.", "Both men", "supported"),
        ("A pair of men talk.", "pair of men", "supported"),
        ("Perhaps ten people were there.", "ten people", "supposed"),
    ],
)
def test_more_than_there_are_boxes_is_a_contradiction(answer: str, said: str, verdict: str) -> None:
    counts = [(f.said.lower(), f.verdict) for f in findings(answer) if f.kind == "count"]
    assert counts == [(said.lower(), verdict)]


@pytest.mark.parametrize(
    "answer",
    [
        "One man sits.",
        "Several men sit.",
        "About ten people sit.",
        "Up to ten people fit.",
        "A two-person tent.",
        "A 40 year old man.",
        "Four chairs.",
        "Two pairs of scissors, ten plates.",
    ],
)
def test_fewer_or_unclear_numbers_are_not_judged_wrong(answer: str) -> None:
    counts = [f for f in findings(answer) if f.kind == "count"]
    assert [f for f in counts if f.verdict == "contradicted"] == []


def test_a_number_alone_is_of_what_the_question_asks_for() -> None:
    assert verdicts("There are five.", "How many people are there?") == [
        ("count", "person", "contradicted")
    ]
    assert verdicts("Two.", "How many people are there?") == [("count", "person", "supported")]


@pytest.mark.parametrize(
    "context",
    [
        Context("2", Media("2.jpg"), boxes=boxes("person", is_group=True)),
        Context("2", Media("2.jpg"), boxes=boxes("person", is_group=None)),
        Context(
            "2",
            Media("2.jpg"),
            boxes=boxes("person"),
            annotations={"labels": (labels.Item("person", not_all_boxed=True),)},
        ),
    ],
)
def test_groups_and_incomplete_labels_give_no_verdict_on_numbers(context: Context) -> None:
    (found,) = (f for f in COCO.check(context, [Turn("", "Nine people.")]) if f.kind == "count")
    assert (found.verdict, found.known) == (
        "unknown",
        "1 box of person, some of groups, or not all",
    )


def test_a_caption_may_know_of_more_than_there_are_boxes() -> None:
    context = Context("2", Media("2.jpg"), ("Five dogs run.",), boxes("dog", "dog"))
    said = COCO.check(context, [Turn("", "Five dogs run."), Turn("", "Six dogs run.")])
    assert [f.verdict for f in said if f.kind == "count"] == ["supported", "contradicted"]


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("", "There are no dogs in the image.", ("presence", "dog", "contradicted")),
        ("", "There isn't a dog.", ("presence", "dog", "contradicted")),
        ("", "No dogs are visible.", ("presence", "dog", "contradicted")),
        ("", "The photo does not show any people.", ("presence", "person", "contradicted")),
        ("", "There are no cats or dogs.", ("presence", "dog", "contradicted")),
        ("", "A dog is not visible.", ("presence", "dog", "contradicted")),
        ("", "There are no animals here.", ("presence", "dog", "contradicted")),
        ("", "There are no horses.", ("presence", "horse", "supported")),
        ("", "The dog is out of view.", ("presence", "dog", "contradicted")),
        ("", "A cat is out of the frame.", ("presence", "cat", "supported")),
        ("Is there a dog in the image?", "No.", ("presence", "dog", "contradicted")),
        ("Do you see any people?", "No, I don't.", ("presence", "person", "contradicted")),
        ("Is there a cat?", "No, there isn't.", ("presence", "cat", "supported")),
        ("Is there a cat?", "Yes.", ("object", "cat", "contradicted")),
        ("Is anyone sitting at a table?", "No.", ("presence", "person", "contradicted")),
        ("Is there a dog?", "Yes, there is.", ("object", "dog", "supported")),
    ],
)
def test_what_is_said_not_to_be_there(
    question: str, answer: str, expected: tuple[str, str, str]
) -> None:
    assert expected in verdicts(answer, question)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("", "There is no dog on the couch."),
        ("", "The man has no dog with him."),
        ("", "There are no other people."),
        ("", "No one else is around."),
        ("", "It is not a dog of this breed."),
        ("", "There are no children."),
        ("", "There are no red cups."),
        ("Is there a dog on the couch?", "No."),
        ("Is the dog asleep?", "No, it is awake."),
        ("Is there anything under the dog?", "No."),
    ],
)
def test_a_denial_of_less_than_the_thing_is_no_contradiction(question: str, answer: str) -> None:
    found = findings(answer, question)
    assert [f for f in found if f.kind == "presence" and f.verdict == "contradicted"] == []


def test_labels_checked_to_be_absent_are_contradictions_also_of_their_kinds() -> None:
    vocabulary = Vocabulary.of(
        dict.fromkeys(("Animal", "Dog", "Person", "Man"), ()),
        parents=[("Dog", "Animal"), ("Man", "Person")],
    )
    items = (labels.Item("Animal", present=False), labels.Item("Man", present=False))
    context = Context("3", Media("3.jpg"), (), boxes("Person"), {"labels": items})
    said = "A dog barks at a man and a woman beside a zebra."
    found = {f.label: f.verdict for f in Checker(vocabulary).check(context, [Turn("", said)])}
    assert found == {
        "dog": "contradicted",
        "man": "contradicted",
        "person": "supported",
        "zebra": "unknown",
    }


def test_a_kind_is_one_of_its_parents() -> None:
    vocabulary = Vocabulary.of({"Dog": (), "Animal": ()}, parents=[("Dog", "Animal")])
    context = Context("3", Media("3.jpg"), (), boxes("Dog", "Dog"))
    turns = [Turn("", "Two animals."), Turn("", "There are no animals."), Turn("", "Three dogs.")]
    found = [(f.kind, f.verdict) for f in Checker(vocabulary).check(context, turns)]
    assert found == [
        ("object", "supported"),
        ("count", "unknown"),
        ("presence", "contradicted"),
        ("object", "supported"),
        ("count", "contradicted"),
    ]


def test_texts_of_all_kinds_tell_what_is_there() -> None:
    context = Context(
        "4",
        Media("4.jpg"),
        annotations={
            "narratives": (narratives.Item("I can see a cat."),),
            "relations": (relations.Item("horse", "near", "truck"),),
            "timed": (timed.Item("a ball is thrown"),),
        },
    )
    said = "A cat, a horse, a truck and a ball. A zebra."
    for stored in (context, decode_context(encode_context(context))):
        found = {f.label: f.verdict for f in COCO.check(stored, [Turn("", said)])}
        assert found.pop("zebra") == "contradicted"
        assert found == dict.fromkeys(("cat", "horse", "truck", "sports ball"), "supported")


def test_a_motion_has_no_boxes_and_is_judged_all_the_same() -> None:
    context = Context("m", Media("m.npy", "motion"), ("a person walks forward",))
    found = Checker(Vocabulary()).check(context, [Turn("", "A man walks, perhaps to a chair.")])
    assert [(f.label, f.verdict) for f in found] == [
        ("person", "supported"),
        ("chair", "supposed"),
    ]


def test_own_labels_are_known_by_their_names_and_plurals() -> None:
    context = Context("5", Media("5.jpg"), boxes=boxes("Hard_Hat", "forklift"))
    found = Checker(Vocabulary.of({"forklift": ["lift truck"]})).check(
        context, [Turn("", "Two lift trucks and a hard hat. There are no hard hats.")]
    )
    assert [(f.kind, f.label, f.verdict) for f in found] == [
        ("object", "forklift", "supported"),
        ("count", "forklift", "contradicted"),
        ("object", "hard hat", "supported"),
        ("presence", "hard hat", "contradicted"),
    ]


def test_the_worst_finding_is_the_verdict_of_a_turn() -> None:
    turns = [Turn("", "A dog."), Turn("", "Perhaps a cat."), Turn("", "A cow."), Turn("", "Hm.")]
    found = COCO.check(TABLE, turns)
    assert [verdict_of(found, n) for n in range(4)] == [
        "supported",
        "supposed",
        "contradicted",
        "supported",
    ]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Nobody is there.", "contradicted"),
        ("No one sits at the table.", "contradicted"),
        ("There is nobody at the table.", "contradicted"),
        ("No zebra waits in the kitchen.", "supported"),
        ("Nobody is under the table.", None),
        ("No one stands at the window.", None),
        ("No one else is there.", None),
        ("Nobody might sit at the table.", None),
    ],
)
def test_what_is_denied_of_a_place_is_held_against_texts(answer: str, verdict: str | None) -> None:
    found = [f.verdict for f in findings(answer) if f.kind == "presence"]
    assert found == ([verdict] if verdict else [])
