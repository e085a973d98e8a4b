"""Sides and sizes are judged by boxes, where there is one thing of a name, and clearly so."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from mminstruct.checks import Checker, Finding, Vocabulary
from mminstruct.schema import Box, Context, Media, Turn

CHECKER = Checker(Vocabulary())
LABELS = {
    "person": ("man", "woman", "boy", "skateboarder"),
    "dog": ("dog", "puppy"),
    "cat": ("cat", "kitten"),
    "car": ("car",),
    "bench": ("bench",),
    "bus": ("bus",),
    "umbrella": ("umbrella",),
    "laptop": ("laptop",),
    "cup": ("cup", "mug"),
    "vase": ("vase",),
    "horse": ("horse",),
    "clock": ("clock",),
}
# {x} is left of (above, smaller than) {y}; a swap makes it untrue.
BESIDE = """\
The {x} is to the left of the {y}.
The {x} is on the left side of the {y}.
To the left of the {y}, there is a {x}.
On the left of the {y} is the {x}.
The {y} is positioned to the right of the {x}.
You can see a {x} left of the {y}.
A red {x} stands to the left of a small {y}, close to the wall.
The {x} and its shadow fall to the left of the {y}.
There is a {x} to the left of the {y}.
The {y} can be found on the right-hand side of the {x}.
A {x}, which looks old, is located to the left of the {y}.
Further away, and to the right of the {x}, one can see a {y}.
The {x} sits just left of the {y}.
The {y} rests at the right of the {x}.
It is a quiet day: the {x} stays to the left of the {y}.
Looking closely, you notice the {x} is on the immediate left of the {y}.
Compared with the {y}, the {x} is further left.
From left to right there are a {x} and a {y}.""".splitlines()
STACKED = """\
The {x} is above the {y}.
Below the {x} there is a {y}.
The {y} is placed underneath the {x}.
A {x} can be seen directly above the {y}.
The {x} hangs above a wide {y}.
The {y} is under the {x}.
There is a {y} beneath the {x}.
The {x} is higher up than the {y}.""".splitlines()
SIZED = """\
The {y} is larger than the {x}.
The {x} is smaller than the {y}.
The {x} looks much smaller than the {y} in the photo.
The {y} appears bigger than the {x}.
The {y} is significantly larger in size than the {x}.
A {x} that is smaller than the {y} completes it.""".splitlines()
# {x} is in the left half, {y} in the right one.
WITHIN = """\
The {x} is on the left side of the image.
On the right side of the picture, there is a {y}.
In the left part of the photo you can see a {x}.
A {y} stands on the right.
The {y} is positioned towards the right side of the scene.
On the left, a {x} is waiting.
The {x} is near the left edge of the frame.
The {y} on the right is in good condition.
The left side of the image shows a {x}.""".splitlines()
# True, whatever stands where.
TRAPS = """\
The {x} has something in its left hand, to the {y}'s right.
To the man's left, there is the {y}, and the {x} is behind it.
Somebody holds the {x} on the right side of her body.
In the middle of the street, the {x} and the {y} wait.
The {x} might be to the left of the {y}, or to the right of the {y}.
The {x} is not to the right of the {y}, nor to the left of the {y}.
The {x} left the {y} right away.
At the top of the hill, there is the {x}; the {y} is at the bottom of it.
The {x} is looking to the right, and the {y} to the left.
On the left wall of the room, and the right wall, there are pictures of the {x}.
If the {x} were to the right of the {y}, it would be seen better.
The light falls from the upper left onto the {x} and the {y}.
The larger one of both is the {x}, a smaller one the {y}.
The {x} is next to the {y}, under the blue sky.""".splitlines()


def context(**boxes: tuple[float, float, float, float]) -> Context:
    found = tuple(Box(label.rstrip("_"), bbox) for label, bbox in boxes.items())
    return Context(id="1", media=Media(file_name="1.jpg"), boxes=found)


SCENE = context(
    dog=(0.05, 0.5, 0.25, 0.8),
    car=(0.5, 0.3, 0.95, 0.8),
    cat=(0.6, 0.05, 0.7, 0.15),
    person=(0.3, 0.2, 0.45, 0.9),
    cup=(0.1, 0.1, 0.2, 0.2),
    cup_=(0.8, 0.1, 0.9, 0.2),
)


def places_in(answer: str, question: str = "What is there?") -> list[Finding]:
    found = CHECKER.check(SCENE, [Turn(question, answer)])
    return [finding for finding in found if finding.kind in ("side", "size")]


def planted() -> list[tuple[str, Context, str, str]]:
    """Kind, context, a true sentence and the untrue one that a swap makes of it."""
    rng, rows = random.Random(22), []
    for kind, frames in (("beside", BESIDE), ("stacked", STACKED), ("sized", SIZED),
                         ("within", WITHIN), ("trap", TRAPS)):  # fmt: skip
        for frame in frames * 6:
            labels = rng.sample(sorted(LABELS), 4)
            first = (rng.uniform(0, 0.1), rng.uniform(0, 0.1), 0.25, 0.3)
            second = (rng.uniform(0.4, 0.5), rng.uniform(0.4, 0.5), 0.95, 0.9)
            others = [tuple(sorted(rng.uniform(0, 1) for _ in range(2))) for _ in range(4)]
            boxes = [Box(labels[0], first), Box(labels[1], second)]
            boxes += [Box(labels[2], (*(a for a, _ in pair), *(b for _, b in pair)))
                      for pair in (others[:2], others[2:])]  # fmt: skip
            x, y = (rng.choice(LABELS[label]) for label in labels[:2])
            scene = Context(id="1", media=Media(file_name="1.jpg"), boxes=tuple(boxes))
            rows.append((kind, scene, frame.format(x=x, y=y), frame.format(x=y, y=x)))
    return rows


def is_contradicted(scene: Context, sentence: str) -> bool:
    found = CHECKER.check(scene, [Turn("What is there?", sentence)])
    return any(f.verdict == "contradicted" and f.kind in ("side", "size") for f in found)


def test_swapped_places_are_found_and_true_ones_are_left_alone() -> None:
    count, found, alarms = Counter[str](), Counter[str](), Counter[str]()
    for kind, scene, true, untrue in planted():
        count[kind] += 1
        alarms[kind] += is_contradicted(scene, true)
        if kind != "trap":
            found[kind] += is_contradicted(scene, untrue)
        elif is_contradicted(scene, untrue):
            alarms[kind] += 1
    for kind in ("beside", "stacked", "sized", "within"):
        assert found[kind] / count[kind] >= 0.6, (kind, found, count)
    assert found.total() / (found.total() + alarms.total()) >= 0.95, alarms


@pytest.mark.parametrize(
    ("question", "answer", "verdicts"),
    [
        ("Where is the dog?", "It is on the right side of the picture.", ["contradicted"]),
        ("Where is the dog?", "To the right of the man.", ["contradicted"]),
        ("Where is the dog?", "To the left of the man.", ["supported"]),
        ("Is the dog to the left of the car?", "No, it is not.", ["contradicted"]),
        ("Is the dog to the right of the car?", "No.", ["supported"]),
        ("Is the dog to the right of the car?", "Yes, it is.", ["contradicted"]),
        ("What is it?", "The cat is in the center of the image.", ["contradicted"]),
        ("What is it?", "The man is near the center of the image.", ["supported"]),
        ("What is it?", "The dog is in the bottom left corner of the image.", ["supported"]),
        ("What is it?", "The dog is in the top left corner of the image.", ["contradicted"]),
        ("What is it?", "The dog might be to the right of the car.", ["supposed"]),
        ("What is it?", "The dog is to the left of the cup.", ["unknown"]),  # there are two
        ("What is it?", "The dog is larger than the man.", ["unknown"]),  # as large, nearly
        ("What is it?", "The dog is below the man.", ["unknown"]),  # beside him
        ("What is it?", "A man near a cat, which is to the left of the car.", ["unknown"]),
        (
            "What is it?",
            "The dog is on the left, while the car is on the right.",
            ["supported"] * 2,
        ),
        ("What is it?", "To the man's left, there is a dog.", []),
        ("What is it?", "The man holds a cup in his right hand.", []),
        ("What is it?", "The dog is on the man's right side.", []),
        ("What is it?", "The dog is to his right.", []),
        ("What is it?", "The dog turns to the right and has left the car.", []),
        ("What is it?", "The dog isn't to the right of the car.", []),
    ],
)
def test_a_claim_has_a_verdict_where_boxes_tell(
    question: str, answer: str, verdicts: list[str]
) -> None:
    assert [finding.verdict for finding in places_in(answer, question)] == verdicts


def test_a_finding_has_the_words_it_is_about_and_what_is_known() -> None:
    (found,) = places_in("A big dog sits to the right of the red car, near a wall.")
    assert (found.kind, found.label) == ("side", "dog")
    assert found.said == "dog sits to the right of the red car"
    assert found.known == "dog is left of car"


def test_several_of_a_name_in_a_caption_are_not_one() -> None:
    told = Context(id="1", media=SCENE.media, boxes=SCENE.boxes, captions=("Two dogs by a car.",))
    found = CHECKER.check(told, [Turn("What?", "The dog is to the right of the car.")])
    assert [f.verdict for f in found if f.kind == "side"] == ["unknown"]


def test_a_motion_without_boxes_has_no_places() -> None:
    motion = Context(id="1", media=Media(file_name="1.npy", modality="motion"), captions=("Go.",))
    assert not [
        f
        for f in CHECKER.check(motion, [Turn("What?", "A person is to the left of the car.")])
        if f.kind == "side"
    ]
