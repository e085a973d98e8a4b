"""Where a text names things: how many of them, whether they are there, and how surely.

A text is read once, word by word; a word that begins a name of the vocabulary is looked up, the
longest name first. What stands around a name within its sentence says the rest.
"""

from __future__ import annotations

import re
from bisect import bisect_left

import msgspec

from mminstruct.checks.vocabulary import Index, Name, Sense, Vocabulary, english

_TOKEN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|\d+(?:[.,]\d+)*|[.!?\n,;:()\u2013\u2014%]")


_ENDS = frozenset({".", "!", "?", "\n"})
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
    supposed: bool = False
    likeness: bool = False


def find_mentions(text: str, vocabulary: Vocabulary, extra: Index | None = None) -> list[Mention]:
    """The things that a text names, in its order.

    Args:
        text: some sentences.
        vocabulary: the names that are looked for.
        extra: more of them, as `Vocabulary.index_of` has them.
    """
    return _Reader(text).read(vocabulary.index, extra or {})


def find_number(text: str) -> tuple[int, str] | None:
    """The number, and its words, that an answer to "How many ...?" begins with."""
    reader = _Reader(text)
    for at, word in enumerate(reader.words[:_FAR]):
        if word in _ENDS:
            return None
        ends = at + 1 == len(reader.words) or reader.number_at(at + 1) is None
        if ends and reader.number_at(at) is not None:
            number, first = reader._count(at)
            said = text[reader.matches[first].start() : reader.matches[at].end()]
            return None if number is None else (number, said)
    return None


class _Reader:
    """One text, split into words.

    Attributes:
        english: what words do.
        words: in lower case, punctuation included; a possessive's ending is left out.
        matches: the same, where they are in the text.
        ends: the positions of the ends of sentences.
    """

    def __init__(self, text: str) -> None:
        self.english = english()
        lower = text.lower()
        self.text = (lower if len(lower) == len(text) else text).replace("\u2019", "'")
        self.matches = list(_TOKEN.finditer(self.text))
        self.words = [match[0] for match in self.matches]
        if "'s" in self.text:
            self.words = [word.removesuffix("'s") for word in self.words]
        self.ends = [at for at, word in enumerate(self.words) if word in _ENDS]

    def read(self, index: Index, extra: Index) -> list[Mention]:
        """The mentions in the order of the text."""
        found: list[Mention] = []
        last = stop = 0
        starts = index.keys() | extra.keys() if extra else index
        for at in [n for n, word in enumerate(self.words) if word in starts]:
            name = self._name_at(at, index, extra) if at >= stop else None
            if name is None:
                continue
            stop = at + len(name.words)
            first = self._start_of(at)
            if name.senses and self._is_noun(first, stop, name):
                before = found[-1] if found else None
                found.append(self._mention(at, stop, name, first, before, last))
                last = stop
        return found

    def _name_at(self, at: int, index: Index, extra: Index) -> Name | None:
        word = self.words[at]
        names = index.get(word, ())
        if word in extra:
            names = tuple(sorted((*extra[word], *names), key=lambda name: -len(name.words)))
        following = self.words[at + 1] if at + 1 < len(self.words) else ""
        for name in names:
            wanted = name.words
            if len(wanted) == 1 or (
                wanted[1] == following and tuple(self.words[at : at + len(wanted)]) == wanted
            ):
                return name
        return None

    def _is_noun(self, first: int, stop: int, name: Name) -> bool:
        """Whether a name is a thing here, and no verb, adjective or part of another thing's name.

        "A dog sleeps" and "dogs sleep" are, "dog food" and "the dog owner" aren't.
        """
        said = self.words[first - 1] if first else "."
        has_article = said in self.english.articles or self.number_at(first - 1) is not None
        after = self.words[stop] if stop < len(self.words) else "."
        follows = after not in self.english.function and after not in self.english.shown
        if name.plural is not True:
            if follows:
                is_verb = after.endswith(("ing", "ed", "s", "ly"))
                return is_verb and not name.doubtful and (has_article or said in _ENDS)
            return has_article or not name.doubtful
        if name.doubtful and after not in self.english.articles:
            return has_article or not (follows or said in self.english.subjects)
        return not name.doubtful  # "the fence bears a sign"

    def _start_of(self, at: int) -> int:
        """Where the adjectives before a name begin."""
        start = at
        while start > max(0, at - _MODIFIERS):
            if (
                self.words[start - 1] in self.english.function
                or self.number_at(start - 1) is not None
            ):
                break
            start -= 1
        return start

    def number_at(self, at: int) -> int | None:
        """The number that ends at a word and counts what follows, or None."""
        word = self.words[at] if at >= 0 else ""
        if word.isdecimal() and len(word) < 5:
            value = int(word)
        elif word in self.english.numbers:
            value = self.english.numbers[word]
        else:
            return None
        after = self.words[at + 1] if at + 1 < len(self.words) else ""
        if after in self.english.units or self.text.startswith(
            "-", self.matches[at].end()
        ):  # a two-storey house
            return None
        return value

    def _count(self, at: int) -> tuple[int | None, int]:
        """How many there are at least by a number that ends at a word, and where it begins."""
        value, start = self.number_at(at), at
        before = self.words[at - 1] if at else ""
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
        before = self.words[start - 1] if start else ""
        if before == "than" and start > 1 and self.words[start - 2] == "more":
            return value, start
        return (None if before in self.english.rough else value), start

    def _is_hyphen(self, at: int) -> bool:
        return at >= 0 and self.text.startswith("-", self.matches[at].end())

    def _mention(
        self, at: int, stop: int, name: Name, first: int, before: Mention | None, last: int
    ) -> Mention:
        """The name at some words, with what is said around it.

        Args:
            at: its first word.
            stop: behind its last.
            name: what they are.
            first: where its adjectives begin.
            before: the mention before it.
            last: the word behind that.
        """
        adjective, number, start = first, None, first
        if first and self.number_at(first - 1) is not None:
            number, start = self._count(first - 1)
        article = start - 1 if start and self.words[start - 1] in self.english.articles else start
        said = self.words[article] if article < start else ""
        if not said and number is None:
            start = article = first = at  # "they protect people" has no adjective
        if number is not None and start and self.words[start - 1] in ("a", "the"):
            start -= 1  # a dozen, the two
        of = article - 1
        if of > 0 and self.words[of] == "of" and self.number_at(of - 1) is not None:
            more, start = self._count(of - 1)  # two of the dogs, a pair of dogs
            number = more if number is None else number
        if name.plural is False or (name.plural is None and name.name.endswith("s")):
            number = None  # a pair of skis is one or two
        sentence = bisect_left(self.ends, at)
        opened = self.ends[sentence - 1] + 1 if sentence else 0
        closed = self.ends[sentence] if sentence < len(self.ends) else len(self.words)
        negated = absent = False
        joined = self.words[last:first]
        if before and before.sentence == sentence and before.negated and joined:
            negated = all(w in (",", "or", "nor", "and", "any", "a") for w in joined)
            absent = negated and before.absent
        if not negated and not self.english.negators.isdisjoint(self.words[opened:closed]):
            negated, absent = self._negation(opened, article, first, at, stop, closed)
        likeness = (
            self.matches[stop - 1][0].endswith("'s")  # "a child's room" has no child in it
            or not self.english.unreal.isdisjoint(self.words[adjective:at])
            or self._is_likeness(opened, article, stop, closed)
        )
        return Mention(
            name.senses[0].label,
            name.senses,
            name.name,
            self.matches[min(start, first)].start(),
            self.matches[at].start(),
            self.matches[stop - 1].end(),
            sentence,
            number,
            name.plural,
            said in self.english.definite,
            negated,
            absent,
            self._is_supposed(opened, at, stop, closed),
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
    ) -> tuple[bool, bool]:
        """Whether something is said not to be, and whether not anywhere in the picture."""
        words = self.words
        is_other = first < at and words[first] in ("other", "longer")
        bare = not is_other and all(word in self.english.bare for word in words[first:at])
        said = words[article] if article < first else ""
        clause = self._clause(opened, article)
        before = words[clause:article]
        only = bare and not self._is_local(stop, closed)
        gone = self._is_gone(stop, closed)
        if said in ("no", "neither", "zero") or (before and before[-1] in ("neither", "nor")):
            owner = before[-1] if before else ""
            elsewhere = owner in self.english.see and not self.english.watchers.intersection(before)
            return True, only and not elsewhere
        if before[-1:] == ["without"] or (before[-2:-1] == ["without"] and said == ""):
            return True, only and said == "any"
        if before[-1:] == ["of"] and self.english.lacking.intersection(before[-3:]):
            return True, bare
        if gone:
            return True, bare
        nots = [
            n for n, w in enumerate(before) if w in ("not", "cannot", "never") or w.endswith("n't")
        ]
        if nots and said not in self.english.definite and len(before) - nots[-1] <= _MODIFIERS:
            around = before[: nots[-1]] + before[nots[-1] + 1 :]
            subject = self.english.watchers.intersection(before[: nots[-1]])
            there = "there" in before[: nots[-1]]
            sees = subject and self.english.see.intersection(around)
            return True, bool(only and (there or sees))
        return False, False

    def _is_gone(self, stop: int, closed: int) -> bool:
        """Whether it goes on "is not visible" or "are absent"."""
        after = self.words[stop : min(closed, stop + _FAR)]
        if not after or after[0] not in self.english.verbs:
            return False
        if any(word in ("absent", "missing") for word in after[1:3]):
            return True
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
        if not self.english.guesses.isdisjoint(words[opened:at]) or words[at - 1 : at] == ["for"]:
            return True  # "for visitors"
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
        return bool(after) and (after[0] in ("shaped", "themed", "print", "costume", "pattern"))
