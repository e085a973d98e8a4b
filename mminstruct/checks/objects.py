"""What a context knows of things, and what it says to a mention of one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest

from mminstruct.annotations import items, lines
from mminstruct.checks.findings import Finding, Kind, Verdict
from mminstruct.checks.mentions import Mention, find_mentions, find_number
from mminstruct.checks.vocabulary import Index, Vocabulary, english, name_of
from mminstruct.schema import Box, Context

_YES_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_WHETHER = re.compile(
    r"""(?P<there>(?:is|are)\ (?:there\b|(?=(?:an?|any|anyone|anybody)\ )))
        |(?:do|does|can)\ (?P<who>you|the\ (?:image|picture|photo|photograph|scene))
         \ (?P<verb>see|show|contain|have|include|feature)\b""",
    re.IGNORECASE | re.VERBOSE,
)


@dataclass
class Known:
    """What the annotations of one image, motion ... say.

    Attributes:
        context: the annotations.
        vocabulary: the names of things.
        index: the same with those of labels of this context that it doesn't have.
        boxes: label -> how many boxes.
        uncounted: labels of which there may be more than boxes: a group, or not each has a box.
        labels: those of the whole image that are there.
        absent: those that people looked for in vain.
        told: labels that captions and other texts name.
        names: the words that they use.
        numbers: label -> the highest number that a text says.
        heard: a thing that a text names, and what it says behind it.
        described: what `describe` said.
    """

    context: Context
    vocabulary: Vocabulary
    index: Index
    boxes: Counter[str] = field(default_factory=Counter)
    uncounted: set[str] = field(default_factory=set)
    labels: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    numbers: dict[str, int] = field(default_factory=dict)
    heard: list[tuple[Mention, str]] = field(default_factory=list)
    described: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, context: Context, vocabulary: Vocabulary) -> Known:
        """What is known in a context."""
        checked = items("labels", context.annotations.get("labels", ()))
        called = {label: name_of(label) for label in {b.label for b in context.boxes}}
        named = {item.label: name_of(item.label) for item in checked}
        index = vocabulary.index_with({*called.values(), *named.values()})
        known = cls(context, vocabulary, index)
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
        return find_mentions(text, self.index)

    def _listen(self, text: str) -> None:
        """Take in what a text of the annotations says to be there."""
        mentions = self.find_mentions(text)
        for mention, after in zip_longest(mentions, mentions[1:]):
            if mention.negated:
                continue
            self.heard.append((mention, text[mention.end : after.end if after else None]))
            self.names.add(mention.name)
            clear = [s.label for s in mention.senses if s.is_sure]
            if len(mention.senses) == 1:
                clear = [mention.label]
            self.told.update(clear)
            for label in clear if mention.number else ():
                self.numbers[label] = max(self.numbers.get(label, 0), mention.number or 0)

    @cached_property
    def alone(self) -> dict[str, Box]:
        """Label -> the box of what is there once."""
        named = {name_of(box.label): box for box in self.context.boxes}
        return {
            label: box
            for label, box in named.items()
            if self.boxes[label] == 1
            and label not in self.uncounted
            and self.numbers.get(label, 1) == 1
        }

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
        if label not in self.described:
            self.described[label] = self._describe(label)
        return self.described[label]

    def _describe(self, label: str) -> str:
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


def judge_local(known: Known, mention: Mention, after: str) -> tuple[Verdict, str]:
    """The verdict on a thing that is said not to be where, or do what, is said behind it."""
    verdict, label = judge_absent(known, mention)
    if verdict != "contradicted":
        return verdict, label
    said = "(?: [a-z]+)? ".join(words := _say_shortly(after))
    labels = {sense.label for sense in mention.senses if sense.relation in ("same", "wider")}
    for other, text in known.heard if words and words[-1] not in english().prepositions else ():
        is_it = any(sense.is_sure and sense.label in labels for sense in other.senses)
        if is_it and re.search(rf"\b{said}\b", " ".join(_say_shortly(text))):
            return "contradicted", label
    return "unknown", label


def _say_shortly(text: str) -> list[str]:
    """The stems of the words up to the next sign, without articles and auxiliaries."""
    idle = (english().articles | english().shown) - english().prepositions
    words = re.findall("[a-z]+", re.split(r"[.!?\n,;:]", text, maxsplit=1)[0].lower())
    stems = (re.sub("(?:ing|es|ed|s|e)$", "", word) for word in words if word not in idle)
    return [re.sub(r"(.)\1$", r"\1", stem) for stem in stems if stem]


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
        if mention.absent or mention.local or " not " not in stated:
            yield from _judge(known, turn, stated, mention)
    for mention in mentions:
        yield from _judge(known, turn, answer, mention)
    if question.lower().startswith("how many") and not any(m.number for m in mentions):
        asked, number = known.find_mentions(question), find_number(answer)
        if asked and number:
            verdict, label = judge_count(known, asked[0], number[0])
            yield Finding(turn, "count", verdict, number[1], label, known.describe(label))


def _judge(known: Known, turn: int, text: str, mention: Mention) -> Iterator[Finding]:
    judged: list[tuple[Kind, Verdict, str]] = []
    if mention.absent and not mention.supposed:
        judged.append(("presence", *judge_absent(known, mention)))
    if mention.local and not mention.supposed:
        found = judge_local(known, mention, text[mention.end :])
        judged += [("presence", *found)] if found[0] != "unknown" else []
    if not (mention.negated or mention.likeness):
        verdict, label = judge_named(known, mention)
        if verdict == "supported" or any(s.is_sure for s in mention.senses):
            judged.append(("object", verdict, label))  # "furniture" alone may be anything
        if mention.number is not None and mention.number > 1:
            judged.append(("count", *judge_count(known, mention, mention.number)))
    for kind, verdict, label in judged:
        told = known.describe(label) if verdict != "unknown" or known.has(label) else ""
        yield Finding(turn, kind, verdict, text[mention.start : mention.end], label, told)


def restate(question: str, answer: str) -> str:
    """What a yes or no to a question whether something is there says, as a sentence, or nothing."""
    answered = _YES_NO.match(answer)
    asked = _WHETHER.match(question) if answered else None
    if not answered or not asked:
        return ""
    is_no, rest = answered[1].lower() == "no", question[asked.end() :]
    if not is_no and " or " in rest:
        return ""
    start = "There is" if asked["there"] else f"{asked['who'].replace('you', 'I')} do"
    verb = asked["verb"] or ""
    return f"{start}{' not' * is_no} {verb} {rest}"
