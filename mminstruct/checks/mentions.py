"""Where a text names things: how many of them, whether they are there, and how surely.

A text is read once, word by word; a word that begins a name of the vocabulary is looked up, the
longest name first. What stands around a name within its sentence says the rest.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import accumulate, compress, count
from typing import NamedTuple

import msgspec

from mminstruct.checks.vocabulary import Index, Name, Sense, english

# Of texts in ASCII, where it is found at half the cost, and of others.
_TOKENS = {
    is_ascii: re.compile(rf"({letter}+(?:'{letter}+)*|\d+(?:[.,]\d+)*|[.,;:()\u2013\u2014%])")
    for is_ascii, letter in ((True, "[a-z]"), (False, r"[^\W\d_]"))
}
# All that ends a sentence is a stop, and all apostrophes are straight.
_ALIKE = (("\u2019", "'"), ("!", "."), ("?", "."), ("\n", "."))
_MODIFIERS = 5  # words between a name and its article, at most
_FAR = 8  # words in which what a name's clause says of it is looked for


class Mention(msgspec.Struct, frozen=True, gc=False):
    """A thing that a text names.

    Attributes:
        label: the first label that the name may stand for.
        senses: all of them.
        name: the words in the singular.
        start: offset of the first character of the phrase, its number and adjectives included.
        noun_start: the same of the name itself.
        end: offset behind the last character.
        sentence: index of the sentence, from 0.
        number: how many there are at least, or None if no number is said.
        plural: whether there is more than one; None where the word doesn't say.
        definite: it has "the", or is somebody's.
        negated: it is said not to be, or not to be so.
        absent: it is said not to be in the picture at all.
        local: it is said not to be, or to do, what is behind it: "no dog on the couch".
        supposed: it is a guess, or a rule about such things.
        likeness: something only looks like it, shows it, or is named after it.
    """

    label: str
    senses: tuple[Sense, ...]
    name: str
    start: int
    noun_start: int
    end: int
    sentence: int
    number: int | None = None
    plural: bool | None = None
    definite: bool = False
    negated: bool = False
    absent: bool = False
    local: bool = False
    supposed: bool = False
    likeness: bool = False


def find_mentions(text: str, index: Index) -> list[Mention]:
    """The things that a text names, in its order.

    Args:
        text: some sentences.
        index: the names that are looked for.
    """
    return _Reader(text).read(index)


def find_number(text: str) -> tuple[int, str] | None:
    """The number, and its words, that an answer to "How many ...?" begins with."""
    reader = _Reader(text)
    at = next((at for at in reader.numbers if at + 1 not in reader.numbers), _FAR)
    if at >= min([_FAR, *reader.ends]):
        return None
    number, first = reader._count(at)
    return (
        None
        if number is None
        else (number, text[reader.offsets[2 * first] : reader.offsets[2 * at + 1]])
    )


class _Sentence(NamedTuple):
    """Where one is: its first word, and that behind its last; plain if it has none of the marks."""

    number: int
    opened: int
    closed: int
    is_plain: bool


class _Reader:
    """One text, split into words.

    Attributes:
        english: what words do.
        words: in lower case, punctuation included; a possessive's ending is left out. A stop that
            the text doesn't have is the last.
        offsets: of the first character of each word and behind its last, in turn.
        ends: the positions of the ends of sentences.
        numbers: position of a number that counts what follows -> the number.
    """

    def __init__(self, text: str) -> None:
        self.english = english()
        lower = text.lower()
        self.text = lower if len(lower) == len(text) else text
        for sign, alike in _ALIKE:
            self.text = self.text.replace(sign, alike)
        # What is between words, and words, in turn.
        parts = _TOKENS[self.text.isascii()].split(self.text)
        self.offsets = list(accumulate(map(len, parts)))
        self.words = parts[1::2]
        if "'s" in self.text:
            self.words = [word.removesuffix("'s") for word in self.words]
        self.words.append(".")
        self.ends = [self.words.index(".")]
        while self.ends[-1] < len(self.words) - 1:
            self.ends.append(self.words.index(".", self.ends[-1] + 1))
        self.numbers: dict[int, int] = {}
        if not self.english.counts.keys().isdisjoint(self.words):
            self.numbers = {
                at: self.english.counts[self.words[at]]
                for at in self._find(self.english.counts)
                if self.words[at + 1] not in self.english.units and not self._is_hyphen(at)
            }

    def _find(self, wanted: Container[str]) -> Iterator[int]:
        """The positions of some words."""
        return compress(count(), map(wanted.__contains__, self.words))

    def read(self, index: Index) -> list[Mention]:
        """The mentions in the order of the text."""
        found: list[Mention] = []
        last = stop = 0
        sentence = _Sentence(-1, 0, -1, True)
        for at in self._find(index):
            if at < stop or (name := self._name_at(at, index[self.words[at]])) is None:
                continue
            stop = at + len(name.words)
            first = self._start_of(at)
            if name.senses and self._is_noun(first, stop, name):
                if at > sentence.closed:
                    sentence = self._sentence_at(at)
                found.append(self._mention(at, stop, name, first, sentence, found[-1:], last))
                last = stop
        return found

    def _sentence_at(self, at: int) -> _Sentence:
        number = bisect_left(self.ends, at)
        opened, closed = self.ends[number - 1] + 1 if number else 0, self.ends[number]
        is_plain = self.english.marks.isdisjoint(self.words[opened:closed])
        return _Sentence(number, opened, closed, is_plain)

    def _name_at(self, at: int, named: Mapping[str, Sequence[Name]]) -> Name | None:
        for name in named.get(self.words[at + 1], ()):
            size = len(name.words)
            if size == 2 or tuple(self.words[at : at + size]) == name.words:
                return name
        return named[""][0] if "" in named else None

    def _is_noun(self, first: int, stop: int, name: Name) -> bool:
        """Whether a name is a thing here, and no verb, adjective or part of another thing's name.

        "A dog sleeps" and "dogs sleep" are, "dog food" and "the dog owner" aren't.
        """
        said, after = self.words[first - 1], self.words[stop]
        has_article = said in self.english.articles or first - 1 in self.numbers
        follows = after not in self.english.function and after not in self.english.shown
        if name.plural is not True:
            if follows:
                are_many = said in self.english.several or self.numbers.get(first - 1, 0) > 1
                if name.plural is None and are_many:
                    # "five sheep graze" or "pass", not "five sheep farmers"
                    return not after.endswith("s") or after.endswith("ss")
                is_verb = after.endswith(("ing", "ed", "s", "ly"))
                begins = said == "." or said in self.english.nots  # "not anyone sitting"
                return is_verb and not name.doubtful and (has_article or begins)
            return has_article or not name.doubtful
        if name.doubtful and after not in self.english.articles:
            return has_article or not (follows or said in self.english.subjects)
        return not name.doubtful  # "the fence bears a sign"

    def _start_of(self, at: int) -> int:
        """Where the adjectives before a name begin."""
        words, function, numbers = self.words, self.english.function, self.numbers
        for start in range(at, max(0, at - _MODIFIERS), -1):
            if words[start - 1] in function or start - 1 in numbers:
                return start
        return max(0, at - _MODIFIERS)

    def _count(self, at: int) -> tuple[int | None, int]:
        """How many there are at least by a number that ends at a word, and where it begins."""
        value, start = self.numbers.get(at), at
        before = self.words[at - 1]
        known = self.english.numbers.get(before, 0)
        if value is not None and value < 10 and 20 <= known < 100:
            value, start = value + known, at - 1
        elif value in (12, 100) and self.words[at] in ("dozen", "hundred") and 0 < known < 20:
            value, start = value * known, at - 1
        elif value is not None and self._is_hyphen(at - 1) and before.isdecimal():
            value, start = int(before), at - 1
        elif before in ("to", "or", "and") and at > 1:
            fewer, first = self._count(at - 2)
            if fewer is not None:  # three to five
                return fewer, first
        before = self.words[start - 1]
        if before == "than" and start > 1 and self.words[start - 2] == "more":
            return value, start
        return (None if before in self.english.rough else value), start

    def _is_hyphen(self, at: int) -> bool:
        return at >= 0 and self.text.startswith("-", self.offsets[2 * at + 1])  # a two-storey house

    def _mention(
        self,
        at: int,
        stop: int,
        name: Name,
        first: int,
        sentence: _Sentence,
        before: Sequence[Mention],
        last: int,
    ) -> Mention:
        """The name at some words, with what is said around it.

        Args:
            at: its first word.
            stop: behind its last.
            name: what they are.
            first: where its adjectives begin.
            sentence: which they are in.
            before: the mention before it.
            last: the word behind that.
        """
        adjective, number, start = first, None, first
        if first - 1 in self.numbers:
            number, start = self._count(first - 1)
        article = start - (self.words[start - 1] in self.english.articles)
        said = self.words[article] if article < start else ""
        if not said and number is None:
            start = article = first = at  # "they protect people" has no adjective
        if number is not None and self.words[start - 1] in ("a", "the"):
            start -= 1  # a dozen, the two
        of = article - 1
        if of - 1 in self.numbers and self.words[of] == "of":
            more, start = self._count(of - 1)  # two of the dogs, a pair of dogs
            number = more if number is None else number
        if name.plural is False or (name.plural is None and name.name.endswith("s")):
            number = None  # a pair of skis is one or two
        number_of, opened, closed, is_plain = sentence
        negated = absent = local = False
        offsets = self.offsets
        likeness = self.text.endswith("'s", 0, offsets[2 * stop - 1])  # "a child's room"
        if self.words[article - 1] == "as":  # "as red as a fire truck"
            by = self.words[article - 3 : article - 1]
            likeness = likeness or (by[:1] == ["as"] and by[1] not in ("well", "many", "soon"))
        # "for visitors", "for a dog", "to read a book", where "to" stands before no noun
        verb = self.words[article - 1]
        supposed = verb == "for" and self.words[article - 2] != "except"
        if article < start and self.words[article - 2] == "to":
            is_done = self.words[article - 3] in self.english.real
            supposed = supposed or not (is_done or verb in self.english.function)
        if not is_plain:
            joined = self.words[last:first]
            if before and before[0].sentence == number_of and before[0].negated and joined:
                negated = all(w in (",", "or", "nor", "and", "any", "a") for w in joined)
                absent = negated and before[0].absent
            if not negated and not self.english.negators.isdisjoint(self.words[opened:closed]):
                negated, absent, local = self._negation(opened, article, first, at, stop, closed)
            likeness = (
                likeness
                or not self.english.unreal.isdisjoint(self.words[adjective:at])
                or self._is_likeness(opened, article, stop, closed)
            )
            supposed = supposed or self._is_supposed(opened, at, stop, closed)
        return Mention(
            name.senses[0].label,
            name.senses,
            name.name,
            offsets[2 * min(start, first)],
            offsets[2 * at],
            offsets[2 * stop - 1],
            number_of,
            number,
            name.plural,
            said in self.english.definite,
            negated,
            absent,
            local,
            supposed,
            likeness,
        )

    def _clause(self, opened: int, at: int) -> int:
        """Where the clause that a word is in begins."""
        while at > opened and self.words[at - 1] not in self.english.clauses:
            at -= 1
        return at

    def _clause_end(self, at: int, closed: int) -> int:
        """Where the clause that goes on at a word ends."""
        while at < min(closed, len(self.words)) and self.words[at] not in self.english.clauses:
            at += 1
        return at

    def _negation(
        self, opened: int, article: int, first: int, at: int, stop: int, closed: int
    ) -> tuple[bool, bool, bool]:
        """Whether it is negated, absent and local, as `Mention` has it."""
        words = self.words
        is_other = words[stop] == "else" or (first < at and words[first] in ("other", "longer"))
        bare = not is_other and all(word in self.english.bare for word in words[first:at])
        said = words[article] if article < first else ""
        clause = self._clause(opened, article)
        before = words[clause:article]
        local = self._is_local(stop, closed)
        is_none = words[at] in ("nobody", "no") or said in ("no", "neither", "zero")
        if is_none or (before and before[-1] in ("neither", "nor")):
            owner = before[-1] if before else ""
            elsewhere = owner in self.english.see and not self.english.watchers.intersection(before)
            bare = bare and not elsewhere
            return True, bare and not local, bare and local
        if before[-1:] == ["without"] or (before[-2:-1] == ["without"] and said == ""):
            return True, bare and not local and said == "any", False
        is_part = before[-1:] == ["of"]  # of which something else may be said
        is_lacking = is_part and self.english.lacking.intersection(before[-3:])
        if is_lacking or (not is_part and self._is_gone(stop, closed)):
            return True, bare, False
        nots = [
            n for n, w in enumerate(before) if w in ("not", "cannot", "never") or w.endswith("n't")
        ]
        if nots and said not in self.english.definite and len(before) - nots[-1] <= _MODIFIERS:
            around = before[: nots[-1]] + before[nots[-1] + 1 :]
            subject = self.english.watchers.intersection(before[: nots[-1]])
            there = "there" in before[: nots[-1]]
            sees = subject and self.english.see.intersection(around)
            bare = bool(bare and (there or sees))
            return True, bare and not local, bare and local
        return False, False, False

    def _is_gone(self, stop: int, closed: int) -> bool:
        """Whether it goes on "is not visible" or "are absent"."""
        after = self.words[stop : min(closed, stop + _FAR)]
        if not after or after[0] not in self.english.verbs:
            return False
        if any(word in ("absent", "missing") for word in after[1:3]):
            return True
        if after[1:3] == ["out", "of"]:
            seen = [word for word in after[3:5] if word not in self.english.articles][:1]
            return after[0] in self.english.shown and self.english.view.issuperset(seen)
        is_not = not self.english.nots.isdisjoint(after[:2])
        shown = after[1 : self._clause_end(stop, stop + 4) - stop]
        return is_not and any(
            w in ("visible", "present", "seen", "shown", "pictured", "there", "be") for w in shown
        )

    def _is_local(self, stop: int, closed: int) -> bool:
        """Whether what follows says which or where: "no dog on the couch", "that barks"."""
        after = self.words[stop : min(closed, stop + _FAR)]
        listed = 0
        for n, word in enumerate(after):
            if word in (",", "or", "nor", "and"):
                listed = 4
            elif word in self.english.shown or word in self.english.articles:
                continue
            elif word in self.english.prepositions:
                place = [w for w in after[n + 1 : n + 5] if w not in self.english.articles]
                return not self.english.scene.intersection(place[:3])
            else:
                if listed <= 0:
                    return True
                listed -= 1
        return False

    def _is_supposed(self, opened: int, at: int, stop: int, closed: int) -> bool:
        words = self.words
        if not self.english.guesses.isdisjoint(words[opened:at]):
            return True
        end = self._clause_end(stop, closed)
        return not self.english.supposing.isdisjoint(words[stop:end])

    def _is_likeness(self, opened: int, article: int, stop: int, closed: int) -> bool:
        """Whether something only looks like it, or shows it."""
        before = self.words[max(opened, article - 3) : article]
        if before and before[-1] in self.english.likeness:
            return True
        if len(before) > 1 and before[-1] == "of":
            if before[-2] in self.english.depictions:
                return True
            if before[-2] in self.english.pictures:
                return article - opened > _MODIFIERS
        after = self.words[stop : min(closed, stop + 2)]
        return bool(after) and after[0] in self.english.shaping
