"""What a context knows of things, and what it says to a mention of one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mminstruct.annotations import items, lines
from mminstruct.checks.findings import Finding, Kind, Verdict
from mminstruct.checks.mentions import Mention, find_mentions, find_number
from mminstruct.checks.vocabulary import Index, Vocabulary, name_of
from mminstruct.schema import Context

_YES_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_WHETHER = re.compile(
    r"""(?P<there>(?:is|are)\ (?:there\b|(?=(?:a|an|any)\ )))
        |(?:do|does|can)\ (?P<who>you|the\ (?:image|picture|photo|photograph|scene))
         \ (?P<verb>see|show|contain|have|include|feature)\b""",
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(slots=True)
class Known:
    """What the annotations of one image, motion ... say.

    Attributes:
        vocabulary: the names of things.
        extra: names of labels of this context that it doesn't have.
        boxes: label -> how many boxes.
        uncounted: labels of which there may be more than boxes: a group, or not each has a box.
        labels: those of the whole image that are there.
        absent: those that people looked for in vain.
        told: labels that captions and other texts name.
        names: the words that they use.
        numbers: label -> the highest number that a text says.
    """

    vocabulary: Vocabulary
    extra: Index
    boxes: Counter[str] = field(default_factory=Counter)
    uncounted: set[str] = field(default_factory=set)
    labels: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    numbers: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, context: Context, vocabulary: Vocabulary) -> Known:
        """What is known in a context."""
        checked = items("labels", context.annotations.get("labels", ()))
        called = {label: name_of(label) for label in {b.label for b in context.boxes}}
        named = {item.label: name_of(item.label) for item in checked}
        known = cls(vocabulary, vocabulary.index_of({*called.values(), *named.values()}))
        for box in context.boxes:
            known.boxes[called[box.label]] += 1
            if box.is_group is not False:
                known.uncounted.add(called[box.label])
        for item in checked:
            (known.labels if item.present else known.absent).add(named[item.label])
            if item.not_all_boxed:
                known.uncounted.add(named[item.label])
        for text in _texts(context):
            known._listen(text)
        return known

    def find_mentions(self, text: str) -> list[Mention]:
        """The things that a text names."""
        return find_mentions(text, self.vocabulary, self.extra)

    def _listen(self, text: str) -> None:
        """Take in what a text of the annotations says to be there."""
        for mention in self.find_mentions(text):
            if mention.negated:
                continue
            self.names.add(mention.name)
            clear = [s.label for s in mention.senses if s.is_sure]
            if len(mention.senses) == 1:
                clear = [mention.label]
            self.told.update(clear)
            for label in clear if mention.number else ():
                self.numbers[label] = max(self.numbers.get(label, 0), mention.number or 0)

    def has(self, label: str) -> bool:
        """Whether a label is there, by boxes, labels or texts."""
        return label in self.boxes or label in self.labels or label in self.told

    def lacks(self, label: str) -> bool:
        """Whether it is known that nothing of a label is there."""
        if self.has(label):
            return False
        if label in self.vocabulary.exhaustive or label in self.absent:
            return True
        return any(above in self.absent for above in self.vocabulary.ancestors(label))

    def describe(self, label: str) -> str:
        """What is known of a label, in words."""
        if count := self.boxes.get(label, 0):
            whole = "some of groups, or not all" if label in self.uncounted else "none of a group"
            return f"{count} box{'es' * (count > 1)} of {label}, {whole}"
        if label in self.labels:
            return f"label {label}"
        if label in self.told:
            return f"a text names {label}"
        if label in self.absent:
            return f"people checked that there is no {label}"
        if label in self.vocabulary.exhaustive:
            return f"no box of {label}, of which every one has a box"
        return ""


def _texts(context: Context) -> Iterator[str]:
    """The sentences that annotations are, but for labels of the whole image."""
    yield from context.captions
    for kind, found in context.annotations.items():
        if kind != "labels":
            yield from lines(kind, found)


def judge_named(known: Known, mention: Mention) -> tuple[Verdict, str]:
    """The verdict on a thing that is said to be there, and the label it goes by."""
    verdict, label = _judge_named(known, mention)
    return ("supposed" if mention.supposed and verdict != "supported" else verdict), label


def _judge_named(known: Known, mention: Mention) -> tuple[Verdict, str]:
    there = [sense for sense in mention.senses if known.has(sense.label)]
    meant = [sense for sense in mention.senses if sense.is_sure]
    own = [sense for sense in meant if sense.relation == "same"]
    if mention.name in known.names or any(sense in own for sense in there):
        return "supported", (there or mention.senses)[0].label
    # A man isn't there where there is a person and people checked that there is no man.
    for sense in own:
        if sense.label in known.absent and not any(not s.is_sure for s in there):
            return "contradicted", sense.label
    if there:
        return "supported", there[0].label
    if meant and not mention.likeness and all(known.lacks(sense.label) for sense in meant):
        return "contradicted", meant[0].label
    return "unknown", mention.label


def judge_absent(known: Known, mention: Mention) -> tuple[Verdict, str]:
    """The verdict on a thing that is said not to be there, and the label it goes by."""
    for sense in mention.senses:
        if sense.relation in ("same", "wider") and known.has(sense.label):
            return "contradicted", sense.label
    meant = [sense for sense in mention.senses if sense.is_sure]
    if meant and all(known.lacks(sense.label) for sense in meant):
        return "supported", meant[0].label
    return "unknown", mention.label


def judge_count(known: Known, mention: Mention, number: int) -> tuple[Verdict, str]:
    """The verdict on how many there are, and the label it goes by.

    Fewer than there are boxes may be some of them. Boxes of a kind count where the thing itself
    has some.
    """
    meant = [s.label for s in mention.senses if s.is_sure and s.label in known.boxes]
    every = [s.label for s in mention.senses if s.label in known.boxes]
    if not meant:
        return "unknown", mention.label
    told = max((known.numbers.get(label, 0) for label in every), default=0)
    if number <= max(sum(known.boxes[label] for label in every), told):
        return "supported", meant[0]
    if mention.supposed:
        return "supposed", meant[0]
    is_open = any(label in known.uncounted for label in every)
    return ("unknown" if is_open else "contradicted"), meant[0]


def check_objects(
    known: Known, turn: int, question: str, answer: str, mentions: Sequence[Mention]
) -> Iterator[Finding]:
    """What one turn says of things: that they are there, that they aren't, how many they are.

    Args:
        known: what the annotations say.
        turn: index of the turn.
        question: its question.
        answer: its answer.
        mentions: what the answer names.
    """
    stated = restate(question, answer)
    for mention in known.find_mentions(stated) if stated else ():
        if mention.absent or " not " not in stated:
            yield from _judge(known, turn, stated, mention)
    for mention in mentions:
        yield from _judge(known, turn, answer, mention)
    if question.lower().startswith("how many") and not any(m.number for m in mentions):
        asked, number = known.find_mentions(question), find_number(answer)
        if asked and number:
            verdict, label = judge_count(known, asked[0], number[0])
            yield Finding(turn, "count", verdict, number[1], label, known.describe(label))


def _judge(known: Known, turn: int, text: str, mention: Mention) -> Iterator[Finding]:
    def find(kind: Kind, judged: tuple[Verdict, str]) -> Finding:
        verdict, label = judged
        is_known = verdict != "unknown" or known.has(label)
        said = text[mention.start : mention.end]
        return Finding(turn, kind, verdict, said, label, known.describe(label) if is_known else "")

    if mention.absent and not mention.supposed:
        yield find("presence", judge_absent(known, mention))
    if mention.negated or mention.likeness:
        return
    judged = judge_named(known, mention)
    if judged[0] == "supported" or any(s.is_sure for s in mention.senses):
        yield find("object", judged)  # of "furniture" alone nothing can be held against boxes
    if mention.number is not None and mention.number > 1:
        yield find("count", judge_count(known, mention, mention.number))


def restate(question: str, answer: str) -> str:
    """What a yes or no to a question whether something is there says, as a sentence, or nothing."""
    answered, asked = _YES_NO.match(answer), _WHETHER.match(question)
    if not answered or not asked:
        return ""
    is_no, rest = answered[1].lower() == "no", question[asked.end() :]
    if not is_no and " or " in rest:
        return ""
    start = "There is" if asked["there"] else f"{asked['who'].replace('you', 'I')} do"
    verb = asked["verb"] or ""
    return f"{start}{' not' * is_no} {verb} {rest}"
