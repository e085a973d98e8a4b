"""The words by which labels are called, with their plurals and with what each of them may mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BeforeValidator

from mminstruct import strict_yaml
from mminstruct.strict_yaml import Strict

Relation = Literal["same", "kind", "wider", "near"]

_CLOSEST: tuple[Relation, ...] = ("same", "kind", "wider", "near")

_FOLDER = Path(__file__).parent
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


class Words(Strict):
    """How a label is called besides its name.

    Attributes:
        same: words that mean the same.
        kinds: words for some of its kinds: a boy is a person, a person may be no boy.
        wider: words that mean other things, too: a dining table is a table.
        near: words for what is easily taken for it: a desk may have the box of a dining table.
    """

    same: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    wider: tuple[str, ...] = ()
    near: tuple[str, ...] = ()


_Set = Annotated[frozenset[str], BeforeValidator(str.split)]


class English(Strict):
    """What is to be known of the language itself; the file says what each key is for."""

    plurals: dict[str, str]
    doubtful: frozenset[str]
    phrases: tuple[str, ...]
    numbers: dict[str, int]
    articles: _Set
    several: _Set
    definite: _Set
    prepositions: _Set
    verbs: _Set
    connectives: _Set
    clauses: _Set
    bare: _Set
    scene: _Set
    view: _Set
    shown: _Set
    see: _Set
    watchers: _Set
    supposing: _Set
    inferring: _Set
    real: _Set
    nots: _Set
    denying: _Set
    lacking: _Set
    subjects: _Set
    likeness: _Set
    depictions: _Set
    unreal: _Set
    shaping: _Set
    pictures: _Set
    rough: _Set
    units: _Set

    @cached_property
    def function(self) -> frozenset[str]:
        """Words and signs that end the words that belong to a name."""
        signs = frozenset(".%")
        words = self.articles | self.prepositions | self.verbs | self.connectives | self.clauses
        return signs | words

    @cached_property
    def counts(self) -> dict[str, int]:
        """Numbers in words and in digits."""
        return {**{str(number): number for number in range(10_000)}, **self.numbers}

    @cached_property
    def negators(self) -> frozenset[str]:
        """Words without one of which nothing is denied."""
        return self.nots | self.lacking | self.denying

    @cached_property
    def marks(self) -> frozenset[str]:
        """Words without one of which a sentence denies, supposes and likens nothing."""
        likening = self.likeness | self.depictions | self.pictures | self.unreal | self.shaping
        return self.negators | self.guesses | likening

    @cached_property
    def guesses(self) -> frozenset[str]:
        """Words behind which all is supposed."""
        return self.supposing | self.inferring


class Sense(NamedTuple):
    """A label that a name may stand for, and how the name's meaning stands to the label's."""

    label: str
    relation: Relation

    @property
    def is_sure(self) -> bool:
        """Whether what has the name has the label, as far as the word goes."""
        return self.relation in ("same", "kind")


class Name(NamedTuple):
    """Words that may be said.

    Attributes:
        words: in lower case.
        name: the same in the singular.
        plural: whether they are a plural; None where it looks like the singular.
        doubtful: they may be no noun.
        senses: none where they only look like something else.
    """

    words: tuple[str, ...]
    name: str
    plural: bool | None
    doubtful: bool
    senses: tuple[Sense, ...]


Index = dict[str, dict[str, tuple[Name, ...]]]
"""First word -> second word, or nothing -> the names that begin with these, the longest first."""


@lru_cache(1 << 14)
def name_of(label: str) -> str:
    """A label as it is called here: ``Hard_Hat`` is ``hard hat``, ``bat (animal)`` stays."""
    return " ".join(label.lower().replace("_", " ").split())


def split_words(text: str) -> tuple[str, ...]:
    """The words of a name in lower case; what is in brackets only explains it."""
    found = _WORD.findall(text.lower().replace("\u2019", "'").partition("(")[0])
    return tuple(word.removesuffix("'s") for word in found)


@lru_cache(1)
def english() -> English:
    """The language's own facts."""
    data = strict_yaml.read(_FOLDER / "english.yaml")
    return strict_yaml.validate(English, data, where="english.yaml")


@lru_cache(1)
def common_things() -> dict[str, Words]:
    """The words for the things that most sources have, by COCO's 80 names."""
    data = strict_yaml.read(_FOLDER / "things.yaml")
    return {
        label: strict_yaml.validate(Words, words or {}, where=f"things.yaml: {label}")
        for label, words in data.items()
    }


@dataclass(frozen=True)
class Vocabulary:
    """The labels that answers may be about.

    Labels of a context that aren't here are known in that context by their own names.

    Attributes:
        labels: label -> its words, beside those of the things that most sources have.
        parents: label -> the labels of which it is a kind.
        exhaustive: labels of which every object in every image has a box.
    """

    labels: Mapping[str, Words] = field(default_factory=dict)
    parents: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    exhaustive: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls, synonyms: Mapping[str, Iterable[str]], *, parents: Iterable[tuple[str, str]] = ()
    ) -> Vocabulary:
        """One of labels as a source writes them.

        Args:
            synonyms: label -> words that mean the same.
            parents: pairs of a label and one that it is a kind of.
        """
        above: dict[str, tuple[str, ...]] = {}
        for label, parent in parents:
            above[name_of(label)] = (*above.get(name_of(label), ()), name_of(parent))
        labels = {name_of(label): Words(same=tuple(words)) for label, words in synonyms.items()}
        return cls(labels, above)

    def __or__(self, other: Vocabulary) -> Vocabulary:
        """What both know."""
        return Vocabulary(
            {
                label: _merge(self.labels.get(label), other.labels.get(label))
                for label in {**self.labels, **other.labels}
            },
            {
                label: tuple(
                    dict.fromkeys((*self.parents.get(label, ()), *other.parents.get(label, ())))
                )
                for label in {**self.parents, **other.parents}
            },
            self.exhaustive | other.exhaustive,
        )

    @cached_property
    def index(self) -> Index:
        """The names of all labels."""
        named = [name for label in self._known for name in self.names_of(label)]
        for label in self.parents:
            for above in self.ancestors(label):
                wider = (Sense(label, "wider"),)
                named += [n._replace(senses=wider) for n in _names(above, None) if n.senses]
        others = {words for phrase in english().phrases for words, _, _ in _forms(phrase)}
        named += [Name(words, "", None, False, ()) for words in others]
        return _by_first_word(named)

    def names_of(self, label: str) -> tuple[Name, ...]:
        """The names of one label."""
        return _names(label, self.labels.get(label))

    def index_with(self, labels: Iterable[str]) -> Index:
        """The names of all labels, and of some more."""
        new = [label for label in labels if label not in self._known]
        if not new:
            return self.index
        found = dict(self.index)
        for first, named in _by_first_word(n for label in new for n in _names(label, None)).items():
            known = found.get(first, {})
            both = {second: (*names, *known.get(second, ())) for second, names in named.items()}
            found[first] = {**known, **both}
        return found

    @cached_property
    def _known(self) -> dict[str, None]:
        """All labels, in the order in which they were named."""
        parents = chain.from_iterable(self.parents.values())
        return dict.fromkeys((*common_things(), *self.labels, *self.parents, *parents))

    def ancestors(self, label: str) -> tuple[str, ...]:
        """The labels of which a label is a kind, near and far."""
        found: dict[str, None] = {}
        waiting = list(self.parents.get(label, ()))
        while waiting:
            if (above := waiting.pop()) not in found and above != label:
                found[above] = None
                waiting += self.parents.get(above, ())
        return tuple(found)


def _merge(one: Words | None, other: Words | None) -> Words:
    both = [words for words in (one, other) if words]
    return Words(
        **{
            key: tuple(dict.fromkeys(word for words in both for word in getattr(words, key)))
            for key in Words.model_fields
        }
    )


@lru_cache(1 << 14)
def _names(label: str, words: Words | None) -> tuple[Name, ...]:
    words = _merge(common_things().get(label), words)
    by_relation: dict[Relation, tuple[str, ...]] = {
        "same": (label, *words.same),
        "kind": words.kinds,
        "wider": words.wider,
        "near": words.near,
    }
    doubtful = english().doubtful
    return tuple(
        Name(form, name, plural, name in doubtful, (Sense(label, relation),))
        for relation, called in by_relation.items()
        for text in called
        for form, name, plural in _forms(text)
    )


def _by_first_word(names: Iterable[Name]) -> Index:
    """The names, each once with all its senses; of two of one label, the first."""
    merged: dict[tuple[str, ...], Name] = {}
    for name in names:
        known = merged.setdefault(name.words, name)
        labels = {sense.label for sense in known.senses}
        if more := tuple(sense for sense in name.senses if sense.label not in labels):
            merged[name.words] = known._replace(
                name=known.name or name.name, senses=known.senses + more
            )
    index: Index = {}
    for name in sorted(merged.values(), key=lambda name: -len(name.words)):
        senses = tuple(sorted(name.senses, key=lambda sense: _CLOSEST.index(sense.relation)))
        first, second = (*name.words, "")[:2]
        found = index.setdefault(first, {})
        found[second] = (*found.get(second, ()), name._replace(senses=senses))
    return index


def _forms(text: str) -> Iterator[tuple[tuple[str, ...], str, bool | None]]:
    """Words, the singular and whether it is a plural, of a name and of its plurals."""
    words = split_words(text)
    if not words:
        return
    at = words.index("of") - 1 if "of" in words[1:] else len(words) - 1  # cups of coffee
    name, found = " ".join(words), plurals_of(words[at])
    yield words, name, None if words[at] in found else False
    for plural in found - {words[at]}:
        yield (*words[:at], plural, *words[at + 1 :]), name, True


def plurals_of(word: str) -> frozenset[str]:
    """How the plural of a noun may be spelled; the noun itself, if it may be a plural."""
    irregular = english().plurals
    if word in irregular:
        return frozenset(irregular[word].split())
    if word.endswith("man"):
        return frozenset({f"{word[:-3]}men"})
    if word.endswith(("ss", "us", "is", "x", "z", "ch", "sh")):
        return frozenset({f"{word}es"})
    if word.endswith("s"):
        return frozenset({word})
    if re.search(r"[^aeiou]y$", word):
        return frozenset({f"{word[:-1]}ies"})
    if word.endswith("o"):
        return frozenset({f"{word}s", f"{word}es"})
    return frozenset({f"{word}s"})
