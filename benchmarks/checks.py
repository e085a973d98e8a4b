"""Plants errors in true rows and counts how many of them the checks find, and what else they find.

Contexts are invented, as COCO, Open Images and LVIS have them. Of each a true row is written, with
much in it that only looks like an error, and of that row one with an error of each kind: a thing
that isn't there, a count above the boxes, a thing there that is said not to be, a side swapped. The
sentences have words of their own, not those of the checks. Printed are, for each kind, how many of
the planted errors were found (recall) and how many of the findings were planted (precision), and
rows a second of a core (the best of three rounds).

    python benchmarks/checks.py [--rows 2000] [--show 20]
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from typing import NamedTuple

from mminstruct.annotations import labels, narratives
from mminstruct.checks import Checker, Vocabulary
from mminstruct.checks.vocabulary import common_things
from mminstruct.schema import Box, Context, Media, Turn

# What people say for a thing, in the singular and the plural.
KINDS = {
    *("man", "woman", "boy", "child", "puppy", "kitten", "pony", "seagull", "pigeon", "taxi"),
    *(
        "smartphone",
        "sedan",
        "double-decker bus",
        "fire truck",
        "locomotive",
        "jet",
        "sailboat",
        "canoe",
    ),
    *("scooter", "wine bottle", "mug", "burger", "birthday cake", "armchair"),
}  # who says that there is none of these doesn't say that there is nothing of the label
SAID = {
    "person": ["person/people", "man/men", "woman/women", "boy/boys", "child/children"],
    "dog": ["dog/dogs", "puppy/puppies"],
    "cat": ["cat/cats", "kitten/kittens"],
    "horse": ["horse/horses", "pony/ponies"],
    "cow": ["cow/cows"],
    "sheep": ["sheep/sheep"],
    "elephant": ["elephant/elephants"],
    "giraffe": ["giraffe/giraffes"],
    "zebra": ["zebra/zebras"],
    "bear": ["bear/bears"],
    "bird": ["bird/birds", "seagull/seagulls", "pigeon/pigeons"],
    "car": ["car/cars", "taxi/taxis", "sedan/sedans"],
    "bus": ["bus/buses", "double-decker bus/double-decker buses"],
    "truck": ["truck/trucks", "fire truck/fire trucks", "lorry/lorries"],
    "train": ["train/trains", "locomotive/locomotives"],
    "airplane": ["airplane/airplanes", "plane/planes", "jet/jets"],
    "boat": ["boat/boats", "sailboat/sailboats", "canoe/canoes"],
    "bicycle": ["bicycle/bicycles"],
    "motorcycle": ["motorcycle/motorcycles", "motorbike/motorbikes", "scooter/scooters"],
    "traffic light": ["traffic light/traffic lights", "stoplight/stoplights"],
    "fire hydrant": ["fire hydrant/fire hydrants"],
    "umbrella": ["umbrella/umbrellas", "parasol/parasols"],
    "backpack": ["backpack/backpacks", "rucksack/rucksacks"],
    "suitcase": ["suitcase/suitcases"],
    "tie": ["necktie/neckties", "tie/ties"],
    "kite": ["kite/kites"],
    "surfboard": ["surfboard/surfboards"],
    "skateboard": ["skateboard/skateboards"],
    "tennis racket": ["tennis racket/tennis rackets", "tennis racquet/tennis racquets"],
    "bottle": ["bottle/bottles", "wine bottle/wine bottles"],
    "cup": ["cup/cups", "mug/mugs"],
    "bowl": ["bowl/bowls"],
    "banana": ["banana/bananas"],
    "apple": ["apple/apples"],
    "orange": ["orange/oranges"],
    "sandwich": ["sandwich/sandwiches", "burger/burgers"],
    "pizza": ["pizza/pizzas"],
    "donut": ["donut/donuts", "doughnut/doughnuts"],
    "cake": ["cake/cakes", "birthday cake/birthday cakes"],
    "chair": ["chair/chairs", "armchair/armchairs"],
    "couch": ["couch/couches", "sofa/sofas"],
    "bed": ["bed/beds"],
    "toilet": ["toilet/toilets"],
    "tv": ["television/televisions", "TV/TVs"],
    "laptop": ["laptop/laptops"],
    "cell phone": ["cell phone/cell phones", "smartphone/smartphones"],
    "refrigerator": ["refrigerator/refrigerators", "fridge/fridges"],
    "clock": ["clock/clocks"],
    "vase": ["vase/vases"],
    "book": ["book/books"],
    "teddy bear": ["teddy bear/teddy bears"],
}
# Open Images' names of the same, and some that COCO doesn't have.
OPEN_IMAGES = {
    "Man": ["man/men"], "Woman": ["woman/women"], "Boy": ["boy/boys"], "Dog": ["dog/dogs"],
    "Cat": ["cat/cats"], "Horse": ["horse/horses"], "Tiger": ["tiger/tigers"],
    "Penguin": ["penguin/penguins"], "Tree": ["tree/trees"], "House": ["house/houses"],
    "Tower": ["tower/towers"], "Guitar": ["guitar/guitars"], "Drum": ["drum/drums"],
    "Car": ["car/cars"], "Bus": ["bus/buses"], "Bicycle": ["bicycle/bicycles"],
    "Helicopter": ["helicopter/helicopters"], "Palm tree": ["palm tree/palm trees"],
    "Football helmet": ["football helmet/football helmets"], "Strawberry":
    ["strawberry/strawberries"], "Lighthouse": ["lighthouse/lighthouses"],
    "Wheelchair": ["wheelchair/wheelchairs"], "Sunglasses": ["pair of sunglasses/sunglasses"],
    "Camera": ["camera/cameras"], "Flag": ["flag/flags"], "Tent": ["tent/tents"],
    "Candle": ["candle/candles"], "Balloon": ["balloon/balloons"],
}  # fmt: skip
PARENTS = [
    *((kind, "Person") for kind in ("Man", "Woman", "Boy")),
    *((kind, "Animal") for kind in ("Dog", "Cat", "Horse", "Tiger", "Penguin")),
    *((kind, "Vehicle") for kind in ("Car", "Bus", "Bicycle", "Helicopter")),
    ("Palm tree", "Tree"), ("Lighthouse", "Tower"),
]  # fmt: skip
# LVIS's names with the synonyms that its file has, and what people say.
LVIS = {
    "person": ["man/men", "woman/women", "person/people"],
    "baby buggy": ["stroller/strollers", "pram/prams"],
    "trash can": ["trash can/trash cans", "garbage can/garbage cans"],
    "wheel": ["wheel/wheels"], "street sign": ["street sign/street signs"],
    "pillow": ["pillow/pillows"], "lampshade": ["lampshade/lampshades"],
    "bath towel": ["bath towel/bath towels"], "bagel": ["bagel/bagels"],
    "ax": ["axe/axes"], "armor": ["suit of armor/suits of armor"], "awning": ["awning/awnings"],
    "baguet": ["baguette/baguettes"], "bandanna": ["bandana/bandanas"],
    "beanie": ["beanie/beanies"], "bathtub": ["bathtub/bathtubs"], "duffel bag":
    ["duffel bag/duffel bags"], "goose": ["goose/geese"], "knife": ["knife/knives"],
    "scarecrow": ["scarecrow/scarecrows"], "zebra": ["zebra/zebras"], "dog": ["dog/dogs"],
    "hammock": ["hammock/hammocks"], "parrot": ["parrot/parrots"], "wagon": ["wagon/wagons"],
}  # fmt: skip
LVIS_SYNONYMS = {
    "baby buggy": ["baby carriage", "perambulator", "pram", "stroller"],
    "trash can": ["garbage can", "wastebin", "dustbin"], "ax": ["axe"], "armor": ["armour"],
    "baguet": ["baguette"], "bandanna": ["bandana"], "beanie": ["beany"],
    "bathtub": ["bathing tub"], "armour": [], "duffel bag": ["duffle bag", "duffel"],
}  # fmt: skip

# {a} a thing, {A} at a sentence's beginning, {s} things, {t} the thing.
NAMING = """\
There is {a} in the background.
{A} can be seen close to the fence.
Next to it stands {a}.
In the foreground, {a} catches the eye.
I can also see {a} nearby.
The scene also includes {a}, adding interest to the composition.
Close by, there is a large {n} as well.
{A} is partially visible at the edge of the frame.
Somewhat further away, one can make out {a}.
The image features {a} too.
Behind all this, {a} completes the picture.
Several {s} are scattered around the area.
Some {s} are visible in the distance.
A few {s} can be spotted here and there.
{T} in the corner is small but easy to notice.
{A}, slightly blurred, appears in the haze.
One more detail is the old {n} by the side.
Beside them is {a}.
There are {s} everywhere.
Also present is {a}, which looks rather new.
A beautiful {n} rounds off the scene.
Not far from there, {a} waits.
Additionally, {a} is part of the scene.
Two {s} are in view, too.
To the side there's a single {n}.
Many {s} fill the rest of the picture.
On closer inspection, you notice {a}.
The photo was taken near {a}.
What stands out most is {a}.
A group of {s} is gathered at the back.
It shows {a} in bright daylight.
The small {n} over there is white and gray.
We see {a} as well.
At the edge of the photo is {a}, partly cut off.
The composition is balanced by a dark {n}.
There seem to be {s} around.
Apart from that, {a} has been captured in the shot.
{A} and its shadow can be made out.
The most striking element is perhaps the color of the {n}.
This is a photo with {a} in it.""".splitlines()
DENYING = """\
There is no {n} in the image.
There are no {s} in the picture.
There isn't {a} in this photo.
There aren't any {s} in the scene.
No {s} are visible.
No {n} can be seen anywhere.
I don't see any {s} here.
I can't see {a} in the picture.
The image does not show any {s}.
The photo doesn't contain {a}.
{P} are not present in the image.
{A} is not visible in the photo.
We cannot spot a single {n} in the scene.
The scene is without any {s}.
It's a quiet scene with no {s} in sight.
Interestingly, there are no {s} at all.
The picture shows no {s}.
You won't find any {s} in this image.
Neither {s} nor other distractions are in the picture.
There is not a single {n} to be seen.
The absence of any {s} is striking.
{P} cannot be seen in the image.
No visible {s} are in the frame.
The picture does not include {s}.""".splitlines()
COUNTING = """\
There are {k} {s} in the image.
{K} {s} can be seen.
I count {k} {s} in total.
The picture shows {k} large {s}.
A total of {k} {s} are visible.
At least {k} {s} are in the scene.
{K} of the {s} are close to the camera.
The {k} {s} are spread out across the area.
We can see {k} {s} together.
All {k} {s} are clearly recognizable.
In the scene, {k} different {s} are present.
More than {k} {s} fill the frame.
Exactly {k} {s} appear here.
It has {k} {s} in it.
You can spot {k} {s} around.
Among other things there are {k} {s}.
Altogether, {k} {s} make up the scene.
The group consists of {k} {s}.
One of the {k} {s} is partly hidden.
The photo captures {k} {s} from above.""".splitlines()
SIDES = """\
The {x} is to the left of the {y}.
The {x} is on the left side of the {y}.
To the left of the {y}, there is the {x}.
The {x} can be seen left of the {y}.
You can see the {x} standing to the left of the {y}.
The {x} is located to the left of the {y}.
The {y} is positioned to the right of the {x}.
Further away, and to the right of the {x}, one can see the {y}.
The {y} can be found on the right-hand side of the {x}.
The old {x}, which is in good shape, is just left of the {y}.
It is a quiet day: the {x} stays to the left of the {y}.
Compared with the {y}, the {x} is further left.
From left to right there are the {x} and the {y}.
The {x} rests at the left of the {y}, near a wall.""".splitlines()
# True of any photo, and easily taken for an error.
TRAPS = """\
The wall has been painted orange.
Somebody might have brought an umbrella, in case it rains.
A woman without a helmet would not be safe here.
People often bring their dogs to such places.
It suggests that a train could arrive soon.
A painting of a horse hangs on the wall.
The sign points to the bus stop.
The fence bears a warning.
A cloud shaped like an elephant drifts by.
In general, cars are not allowed in such areas.
The atmosphere is calm and relaxed.
It is likely that the owner of the place has a cat.
No one else is around.
There is no doubt that it was taken in the afternoon.
The shadows are long, which implies that the sun is low.
The dog food brand on the poster is well known.
They booked the place two years ago.
It is not a boat trip that one would forget.
A chair lift may be somewhere behind the hill.
Perhaps there is a pizza place around the corner.
The sun glasses over the whole scene.
For a picnic, sandwiches and apples would be a good idea.
If there were a bear nearby, one would have to be careful.
It has been left in the middle of the road.
The light comes from the left.""".splitlines()
NUMBERS = """\
zero
one
two
three
four
five
six
seven
eight
nine
ten
eleven
twelve
thirteen""".splitlines()


class Place(NamedTuple):
    """A kind of source: what people say for its labels, and how it knows what isn't there."""

    name: str
    said: dict[str, list[str]]
    vocabulary: Vocabulary


PLACES = (
    Place("COCO", SAID, Vocabulary(exhaustive=frozenset(common_things()))),
    Place(
        "Open Images",
        OPEN_IMAGES,
        Vocabulary.of(
            dict.fromkeys([*OPEN_IMAGES, *(f"Class {n} thing" for n in range(570))], ()),
            parents=PARENTS,
        ),
    ),
    Place(
        "LVIS",
        LVIS,
        Vocabulary.of(
            {**dict.fromkeys([*LVIS, *(f"category {n} item" for n in range(1170))], ())}
            | LVIS_SYNONYMS
        ),
    ),
)


def context_of(place: Place, number: int, rng: random.Random) -> tuple[Context, list[str]]:
    """An invented context, and labels that aren't there and known not to be."""
    present = rng.sample(list(place.said), rng.randint(2, 6))
    absent = [label for label in place.said if label not in present]
    if place.name == "Open Images" and {"Man", "Woman", "Boy"}.intersection(present):
        absent = [label for label in absent if label not in ("Man", "Woman", "Boy")]
    above = {parent for kind, parent in PARENTS if kind in present}
    absent = [label for label in absent if label not in above]
    absent = [label for label in absent if (label, "Tree") not in PARENTS or "Tree" not in present]
    absent = rng.sample(absent, 6)
    boxes = []
    for label in present:
        for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
            x, y = rng.uniform(0, 0.8), rng.uniform(0, 0.8)
            boxes.append(Box(label, (x, y, x + 0.15, y + 0.15)))
    told = " and ".join(f"some {word(place, label, rng)[1]}" for label in present[:2])
    found: dict[str, tuple[object, ...]] = {}
    if place.name != "COCO":
        found["labels"] = tuple(labels.Item(label, present=False) for label in absent)
    if place.name == "Open Images":
        found["narratives"] = (narratives.Item(f"In this image I can see {told}."),)
    captions = () if place.name == "Open Images" else (f"A photo with {told}.",)
    return Context(str(number), Media("x.jpg"), captions, tuple(boxes), found), absent


def word(place: Place, label: str, rng: random.Random) -> tuple[str, str]:
    """What somebody says for a label, in the singular and the plural."""
    one, _, more = rng.choice(place.said[label]).partition("/")
    return one, more


def fill(frame: str, one: str, more: str, **others: str) -> str:
    """A frame with a thing in it."""
    a = f"{'an' if one[0] in 'aeiou' else 'a'} {one}"
    return frame.format(
        a=a, A=a.capitalize(), s=more, P=more.capitalize(), n=one, T=f"The {one}", **others
    )


def naming(place: Place, label: str, rng: random.Random, *, many: bool) -> str:
    """A sentence that names a thing, of which there are several or one."""
    frames = [f for f in NAMING if many or "{s}" not in f] if not many else NAMING
    frames = [f for f in frames if not f.startswith("Two") or many]
    return fill(rng.choice(frames), *word(place, label, rng))


def counting(place: Place, label: str, number: int, rng: random.Random) -> str:
    """A sentence that says a number of things."""
    k = NUMBERS[number] if number < len(NUMBERS) and rng.random() < 0.8 else str(number)
    frame = rng.choice(COUNTING)
    return fill(frame, *word(place, label, rng), k=k, K=k.capitalize())


def denying(place: Place, label: str, rng: random.Random) -> Turn:
    """A turn in which something is said not to be there."""
    one, more = word(place, label, rng)
    while one in KINDS and place.name != "Open Images":
        one, more = word(place, label, rng)
    if rng.random() < 0.3:
        asked = rng.choice(("Is there {a} in the image?", "Are there any {s} in the picture?",
                            "Can you see {a}?", "Does the image show any {s}?"))  # fmt: skip
        answer = rng.choice(("No.", "No, there isn't.", "No, not in this image."))
        return Turn(fill(asked, one, more), answer)
    return Turn("What can you say about it?", fill(rng.choice(DENYING), one, more))


def sides_of(place: Place, context: Context, rng: random.Random) -> tuple[str, str] | None:
    """Two things with a box each, the left one first, or None."""
    counts = Counter(box.label for box in context.boxes)
    alone = [box for box in context.boxes if counts[box.label] == 1]
    pairs = [
        (one, other)
        for one in alone
        for other in alone
        if one.bbox_xyxy_norm[2] + 0.1 < other.bbox_xyxy_norm[0]
    ]
    if not pairs:
        return None
    one, other = rng.choice(pairs)
    return word(place, one.label, rng)[0], word(place, other.label, rng)[0]


def rows_of(number: int, rng: random.Random) -> tuple[Place, Context, list[Turn], dict[str, Turn]]:
    """A context, a true row about it, and a turn with an error of each kind."""
    place = PLACES[number % len(PLACES)]
    context, absent = context_of(place, number, rng)
    counts = Counter(box.label for box in context.boxes)
    alike = {"Man", "Woman", "Boy"} if place.name == "Open Images" else set()
    sentences = [naming(place, label, rng, many=n > 1) for label, n in counts.items()]
    several = [label for label, n in counts.items() if n > 1]
    sentences += [counting(place, label, counts[label], rng) for label in several[:2]]
    sentences += rng.sample(TRAPS, 3)
    rng.shuffle(sentences)
    turns = [Turn("What is in the image?", " ".join(sentences[:4]))]
    turns.append(Turn("Describe it in detail.", " ".join(sentences[4:])))
    turns.append(denying(place, rng.choice(absent), rng))
    wrong = {"object": Turn("What else?", naming(place, rng.choice(absent), rng, many=True))}
    counted = rng.choice([label for label in counts if label not in alike] or list(counts))
    number = counts[counted] + rng.randint(1, 9)
    wrong["count"] = Turn("How many?", counting(place, counted, max(2, number), rng))
    denied = rng.choice(list(counts))
    wrong["presence"] = denying(place, denied, rng)
    if pair := sides_of(place, context, rng):
        turns.append(Turn("Where?", rng.choice(SIDES).format(x=pair[0], y=pair[1])))
        wrong["side"] = Turn("Where?", rng.choice(SIDES).format(x=pair[1], y=pair[0]))
    return place, context, turns, wrong


def main() -> None:
    """Plant, check, count, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--show", type=int, default=0, help="how many misses and alarms to print")
    arguments = parser.parse_args()
    rng = random.Random(22)
    checkers = {place.name: Checker(place.vocabulary) for place in PLACES}
    rows = [rows_of(number, rng) for number in range(arguments.rows)]
    for place, context, turns, _ in rows[:3]:
        checkers[place.name].check(context, turns)  # the vocabularies are made at first use
    took = []
    for _ in range(3):
        begun = time.process_time()
        clean = [checkers[place.name].check(context, turns) for place, context, turns, _ in rows]
        took.append(time.process_time() - begun)
    alarms: Counter[str] = Counter()
    planted: Counter[str] = Counter()
    found: Counter[str] = Counter()
    shown: list[str] = []
    for (place, context, turns, wrong), findings in zip(rows, clean, strict=True):
        for finding in findings:
            if finding.verdict == "contradicted":
                alarms[finding.kind] += 1
                shown.append(f"alarm  {finding} {turns[finding.turn]}")
        for kind, turn in wrong.items():
            planted[kind] += 1
            told = checkers[place.name].check(context, [turn])
            if any(f.kind == kind and f.verdict == "contradicted" for f in told):
                found[kind] += 1
            else:
                shown.append(f"missed {place.name} {kind} {turn} {told}")
    words = sum(len(turn.answer.split()) for _, _, turns, _ in rows for turn in turns)
    speed = len(rows) / min(took)
    print(f"{len(rows)} true rows of {words / len(rows):.0f} words, {speed:,.0f} rows/s")
    for kind, count in planted.items():
        total = found[kind] + alarms[kind]
        precision = f"{found[kind] / total:6.1%}" if total else "     -"
        print(f"{kind:10} recall {found[kind] / count:6.1%} of {count}   precision {precision}")
    total = sum(found.values()) + sum(alarms.values())
    print(f"{'all':10} precision {sum(found.values()) / total:.1%}")
    random.Random(1).shuffle(shown)
    print(*shown[: arguments.show], sep="\n")


if __name__ == "__main__":
    main()
