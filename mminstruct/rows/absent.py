"""Things that aren't in an image though they would fit in, for questions whose answer is no.

Where every object of some classes has a box, what has none and isn't named by anybody is absent.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

from msgspec.structs import replace

from mminstruct import annotations as kinds
from mminstruct.annotations import labels
from mminstruct.checks.vocabulary import Vocabulary
from mminstruct.schema import Context

# COCO's 80 classes by where they are found together; a person is found everywhere.
_PLACES = tuple(
    frozenset(place.split(", "))
    for place in (
        "bicycle, car, motorcycle, bus, truck, train, traffic light, stop sign, parking meter, "
        "fire hydrant, bench, backpack, handbag, suitcase, umbrella, dog",
        "airplane, bus, truck, car, suitcase, backpack",
        "boat, surfboard, kite, bird, bench, umbrella, dog, chair",
        "bird, dog, cat, horse, sheep, cow, truck",
        "bear, elephant, zebra, giraffe, bird",
        "frisbee, kite, sports ball, baseball bat, baseball glove, tennis racket, skateboard, "
        "bench, bottle, backpack, dog, bicycle",
        "skis, snowboard, backpack, dog, bench",
        "dining table, bottle, wine glass, cup, fork, knife, spoon, bowl, chair, banana, apple, "
        "sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, vase",
        "refrigerator, oven, microwave, toaster, sink, bottle, bowl, cup, knife, spoon, cat",
        "couch, chair, bed, tv, remote, potted plant, book, clock, vase, laptop, teddy bear, cat, "
        "dog, dining table",
        "laptop, keyboard, mouse, cell phone, tv, book, cup, chair, scissors, clock, potted plant",
        "toilet, sink, toothbrush, hair drier, bottle, cup, vase, cat",
        "tie, handbag, cell phone, suitcase, wine glass, umbrella, book",
    )
)
_ANYWHERE = frozenset({"person"})
_WORD = re.compile(r"[^\W_]+")
_VOCABULARY = Vocabulary()


def add_absent(context: Context, most: int, chance: random.Random) -> Context:
    """The context of an exhaustive source with some of the labels that it lacks.

    A context that has such labels already, which people checked, stays as it is; so does one
    without boxes, which may be one that nobody drew any in.
    """
    known: tuple[labels.Item, ...] = kinds.items("labels", context.annotations.get("labels", ()))
    boxed = {box.label for box in context.boxes}
    if not boxed or any(not item.present for item in known):
        return context
    most_alike = max(len(place & boxed) for place in _PLACES)
    places = (place for place in _PLACES if len(place & boxed) == most_alike)
    fitting = sorted(_ANYWHERE.union(*places) - boxed)
    chance.shuffle(fitting)
    said = " ".join(_WORD.findall(" ".join(_say_all(context)).lower()))
    absent = (label for label in fitting if not _is_named(label, f" {said} "))
    added = (labels.Item(label, present=False) for label in islice(absent, most))
    if not (items := (*known, *added)):
        return context
    return replace(context, annotations={**context.annotations, "labels": items})


def _say_all(context: Context) -> Iterator[str]:
    yield from context.captions
    yield from (box.label for box in context.boxes)
    for kind, items in context.annotations.items():
        yield from kinds.lines(kind, items)


def _is_named(label: str, said: str) -> bool:
    """Whether something is said that may mean the label, in words with a blank around each."""
    return any(words in said for words in _find_words(label))


@lru_cache(maxsize=128)
def _find_words(label: str) -> tuple[str, ...]:
    return tuple(f" {' '.join(name.words)} " for name in _VOCABULARY.names_of(label))
