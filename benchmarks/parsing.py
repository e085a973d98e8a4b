"""How long it takes to read answers and to put them through all filters, beside plain splitting.

Answers are invented, no two alike, as a model writes them that keeps to what it was asked for: of
three turns and of six sentences. Printed are microseconds for each (the best of five rounds), and
beside them how long it takes to split the same text at its labels or sentences.

    python benchmarks/parsing.py [--answers 1000]
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Callable, Sequence

from mminstruct import prompts
from mminstruct.answers.parse import Parsed, parse
from mminstruct.schema import Completion

THINGS = [
    "tram",
    "bicycle",
    "dog",
    "bench",
    "lamp",
    "table",
    "cake",
    "woman",
    "boy",
    "kite",
    "umbrella",
    "truck",
    "clock",
    "wall",
]
COLORS = ["red", "blue", "white", "green", "brown", "yellow", "black", "gray", "striped", "wooden"]
DOES = ["standing", "waiting", "walking", "leaning", "looking", "playing", "resting"]
PLACES = ("on the left", "next to the wall", "behind the fence", "in the street", "under a tree")
LABELS, SENTENCES = re.compile(r"^(?:Question|Answer): ", re.MULTILINE), re.compile(r"(?<=\.) ")


def write_turns(draw: random.Random) -> str:
    """A conversation of three turns."""
    one, two, three = draw.sample(THINGS, 3)
    turns = (
        (f"What color is the {one}?", f"It is {draw.choice(COLORS)} and {draw.choice(COLORS)}."),
        (f"What is near the {two}?", f"A {three} is {draw.choice(DOES)} {draw.choice(PLACES)}."),
        (f"Where is the {three}?", f"The {three} is {draw.choice(PLACES)}, near the {one}."),
    )
    return "\n\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in turns)


def write_text(draw: random.Random) -> str:
    """A description of six sentences in two paragraphs."""
    sentences = [
        f"There is a {draw.choice(COLORS)} {draw.choice(THINGS)} {draw.choice(PLACES)}, and a "
        f"{draw.choice(THINGS)} with a {draw.choice(THINGS)} is {draw.choice(DOES)} there."
        for _ in range(6)
    ]
    return " ".join(sentences[:3]) + "\n\n" + " ".join(sentences[3:])


def measure(run: Callable[[str], object], texts: Sequence[str]) -> float:
    """Microseconds for each text."""
    rounds = []
    for _ in range(5):
        start = time.process_time()
        for text in texts:
            run(text)
        rounds.append(time.process_time() - start)
    return min(rounds) / len(texts) * 1e6


def main() -> None:
    """Print a line for each form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=1000)
    count = parser.parse_args().answers
    config, draw = prompts.load("llava"), random.Random(0)
    forms = (("conversation", write_turns, LABELS), ("detail_description", write_text, SENTENCES))
    for kind, write, splitter in forms:
        texts = [write(draw) for _ in range(count)]

        def read(text: str, kind: str = kind) -> object:
            return parse(Completion(text, "stop"), config, kind, question="What is there?")

        rows = sum(isinstance(read(text), Parsed) for text in texts)
        read_us, split_us = measure(read, texts), measure(splitter.split, texts)
        print(f"{kind}: {read_us:.0f} us, split {split_us:.1f} us; {rows} rows of {count}")


if __name__ == "__main__":
    main()
