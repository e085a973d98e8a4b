"""What rows are like, measured: lengths, questions, repetition, and what their checks found.

Rows come one by one, and none is kept: what is remembered of a text is its hash.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from random import Random
from typing import Any, NamedTuple

import msgspec
import numpy as np

from mminstruct import benchmarks
from mminstruct.answers.filters import find_suspects, reject_form
from mminstruct.checks.findings import Finding
from mminstruct.reports.rows import Row
from mminstruct.schema import Turn

SAMPLE_ROWS = 111
"""Rows of a sample of which pairs of words are counted: the more there are, the more they repeat
each other. As many as the reference has."""
_SAMPLES = 10
_PERCENTILES = (5, 50, 95)
_SHOWN = 10  # of the most frequent
_LONGEST_SHOWN = 60
_OPENING_WORDS = 3
_ON_THE_IMAGE = re.compile(r"(?:in |on |at |from )?(?:the|this) (?:image|picture|photo|scene)")
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_WHETHER = "is are was were do does did has have can could will would should"
_KINDS = (
    ("request", re.compile(r"(?:can|could|would|will) you |[^?]*$")),
    ("how many", re.compile(r"(?:.*[, ])?how many\b")),
    *((w, re.compile(rf"(?:.*[, ])?{w}\b")) for w in ("why", "where", "who", "which", "when")),
    ("what", re.compile(r"(?:.*[, ])?what(?:'s|\b)")),
    ("how", re.compile(r"(?:.*[, ])?how\b")),
    ("yes or no", re.compile(rf"(?:.*, )?(?:{'|'.join(_WHETHER.split())})(?:n't)?\b")),
)
_FLAWS = ("refusal", "as_ai", "cannot_see", "leak", "markup")


class Judged(NamedTuple):
    """A row with what is known of its truth.

    Attributes:
        row: as it was read.
        findings: of the checks, or None if it wasn't checked.
        boxes: the names of the things that have boxes, or None if that isn't known.
        is_lost: annotations of its image were looked for, and there are none.
    """

    row: Row
    findings: Sequence[Finding] | None = None
    boxes: frozenset[str] | None = None
    is_lost: bool = False

    @classmethod
    def of(cls, row: Row) -> Judged:
        """A row with what it says of itself."""
        return cls(row, row.checks)


class Measures(msgspec.Struct, frozen=True, kw_only=True):
    """What some rows are like.

    Attributes:
        rows: how many.
        turns: how many, of all rows.
        words: of an answer: the 5th, 50th and 95th percentile.
        questions: by kind, the most frequent first.
        yes: questions answered with yes.
        no: questions answered with no.
        asked: questions, without rows that have none.
        distinct_questions: of these; case and punctuation aside.
        repeated_rows: whose answers are all those of a row before it.
        most_repeated: the answers that most rows have, cut, and how many have them.
        distinct_2: share of pairs of words in answers that are distinct, in samples of
            `SAMPLE_ROWS` rows, or of all if there are fewer.
        openings: first words of answers, the most frequent first, with the answers that have them.
        on_the_image: answers that begin with "The image", "In this picture" or the like.
        flaws: rows by what a filter finds in them.
        checked_rows: those that were checked; all that follows is of these.
        verdicts: kind of a finding -> verdict -> how many.
        unknown_rows: with one that annotations don't have, known to be wrong or only supposed.
        contradicted_rows: with anything that annotations contradict.
        named: labels that are named most, with how often.
        boxed: names of things with boxes, summed over rows, or None if boxes aren't known.
        unmentioned: of these, those that no turn names.
    """

    rows: int = 0
    turns: int = 0
    words: tuple[int, ...] = (0, 0, 0)
    questions: dict[str, int] = {}
    yes: int = 0
    no: int = 0
    asked: int = 0
    distinct_questions: int = 0
    repeated_rows: int = 0
    most_repeated: tuple[str, int] = ("", 0)
    distinct_2: float | None = None
    openings: dict[str, int] = {}
    on_the_image: int = 0
    flaws: dict[str, int] = {}
    checked_rows: int = 0
    verdicts: dict[str, dict[str, int]] = {}
    unknown_rows: int = 0
    contradicted_rows: int = 0
    named: dict[str, int] = {}
    boxed: int | None = None
    unmentioned: int = 0


class Overlap(msgspec.Struct, frozen=True):
    """Images of a benchmark that rows are about.

    Attributes:
        title: of the benchmark.
        images: of its images, those that rows are about.
        of: how many it has.
        source_url: of its list.
    """

    title: str
    images: int
    of: int
    source_url: str


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """What the rows of a data set are like.

    Attributes:
        all: all rows.
        types: type of instruction -> its rows, if there are types.
        images: distinct ones that rows are about.
        without_context: rows about images of which annotations were looked for in vain.
        benchmarks: by name, those that share images with it.
        rejected: answers that gave no row: type -> reason -> how many, if that is known.
    """

    all: Measures = Measures()
    types: dict[str, Measures] = {}
    images: int = 0
    without_context: int = 0
    benchmarks: dict[str, Overlap] = {}
    rejected: dict[str, dict[str, int]] = {}

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


class Meter:
    """Measures rows, given one by one in a fixed order: the same rows give the same figures."""

    def __init__(self) -> None:
        self._types: dict[str, _Tally] = {}
        self._seen: set[int] = set()
        self._sample = _Sample()
        self._images: set[str] = set()
        self._lost = 0

    def add(self, judged: Judged) -> None:
        """Count a row."""
        row = judged.row
        if row.type not in self._types:
            self._types[row.type] = _Tally(seen=self._seen)
        self._types[row.type].add(judged)
        self._sample.add(row.turns)
        self._lost += judged.is_lost
        if row.image:
            self._images.add(benchmarks.image_key(row.image))

    def read(self, rejected: Mapping[str, Mapping[str, int]]) -> Quality:
        """What the rows are like.

        Args:
            rejected: answers that gave no row, by type and reason.
        """
        whole = _Tally(sample=self._sample, seen=self._seen)
        for tally in self._types.values():
            whole.add_all(tally)
        overlaps = {
            name: Overlap(one.title, len(one.keys & self._images), len(one.keys), one.source_url)
            for name, one in benchmarks.known().items()
        }
        return Quality(
            all=whole.measures(),
            types={name: tally.measures() for name, tally in self._types.items() if name},
            images=len(self._images),
            without_context=self._lost,
            benchmarks={name: one for name, one in overlaps.items() if one.images},
            rejected={kind: dict(counts) for kind, counts in rejected.items() if counts},
        )


class _Sample:
    """Rows drawn evenly from all, by a generator that is always the same."""

    def __init__(self) -> None:
        self._seen, self._random = 0, Random(0)
        self._rows: list[Sequence[Turn]] = []

    def add(self, turns: Sequence[Turn]) -> None:
        """Take a row, maybe."""
        self._seen += 1
        if len(self._rows) < _SAMPLES * SAMPLE_ROWS:
            self._rows.append(turns)
        elif (place := self._random.randrange(self._seen)) < len(self._rows):
            self._rows[place] = turns

    def distinct_2(self) -> float | None:
        """Distinct pairs of neighbouring words among all, the mean of several samples."""
        rows = list(self._rows)
        Random(0).shuffle(rows)
        size = min(len(rows), SAMPLE_ROWS)
        starts = range(0, len(rows) - size + 1, size) if size else ()
        shares = [_share_of_distinct_pairs(rows[start : start + size]) for start in starts]
        found = [share for share in shares if share is not None]
        return round(sum(found) / len(found), 3) if found else None


def _share_of_distinct_pairs(rows: Iterable[Sequence[Turn]]) -> float | None:
    pairs: Counter[tuple[str, str]] = Counter()
    for turn in (turn for turns in rows for turn in turns):
        words = _WORD.findall(turn.answer.lower())
        pairs.update(zip(words, words[1:], strict=False))
    return len(pairs) / pairs.total() if pairs else None


def _no_hashes() -> array[int]:
    return array("q")


def _count_each(hashes: array[int]) -> Any:
    """The distinct ones and how often each is there, by sorting, which takes little memory."""
    return np.unique(np.array(hashes), return_counts=True)


@dataclass(slots=True)
class _Tally:
    """What is counted of rows; of several it is added up, and they share what was ``seen`` before.

    ``counts`` are fields of `Measures`; of questions and answers there are hashes, one after the
    other: eight bytes each, where a set or a dict takes a hundred.
    """

    counts: Counter[str] = field(default_factory=Counter)
    words: Counter[int] = field(default_factory=Counter)
    questions: Counter[str] = field(default_factory=Counter)
    asked: array[int] = field(default_factory=_no_hashes)
    answers: array[int] = field(default_factory=_no_hashes)
    repeated: dict[int, str] = field(default_factory=dict)
    openings: Counter[str] = field(default_factory=Counter)
    flaws: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)
    named: Counter[str] = field(default_factory=Counter)
    sample: _Sample = field(default_factory=_Sample)
    seen: set[int] = field(default_factory=set)

    def add(self, judged: Judged) -> None:
        """Count a row."""
        turns = judged.row.turns
        self.counts["rows"] += 1
        self.counts["turns"] += len(turns)
        for turn in turns:
            self._add_turn(turn)
        said = hash(tuple(turn.answer for turn in turns))
        self.answers.append(said)
        if said in self.seen and said not in self.repeated:
            self.repeated[said] = " ".join(turn.answer for turn in turns)[:_LONGEST_SHOWN]
        self.seen.add(said)
        for name in find_suspects(turns, _FLAWS):
            self.flaws[name] += any(reject_form(turn, (name,), frozenset()) for turn in turns)
        self.sample.add(turns)
        if judged.findings is not None:
            self._add_findings(judged.findings, judged.boxes)

    def _add_turn(self, turn: Turn) -> None:
        answer = turn.answer.lower()
        self.words[len(answer.split())] += 1
        first = _WORD.findall(answer[:_LONGEST_SHOWN])[:_OPENING_WORDS]
        self.openings[" ".join(first)] += 1
        self.counts["on_the_image"] += _ON_THE_IMAGE.match(answer) is not None
        if turn.question:
            question = turn.question.lower()
            kind = kind_of(question)
            self.questions[kind] += 1
            self.asked.append(hash(tuple(_WORD.findall(question))))
            if kind == "yes or no" and first and first[0] in ("yes", "no"):
                self.counts[first[0]] += 1  # yes, no

    def _add_findings(self, findings: Sequence[Finding], boxes: frozenset[str] | None) -> None:
        self.counts["checked_rows"] += 1
        self.verdicts.update((found.kind, found.verdict) for found in findings)
        named = [found.label for found in findings if found.kind == "object"]
        self.named.update(named)
        self.counts["unknown_rows"] += any(
            found.kind == "object" and found.verdict != "supported" for found in findings
        )
        self.counts["contradicted_rows"] += any(f.verdict == "contradicted" for f in findings)
        if boxes is not None:
            self.counts["boxed"] += len(boxes)
            self.counts["unmentioned"] += len(boxes.difference(f.label for f in findings))

    def add_all(self, other: _Tally) -> None:
        """Add up all of both but the sample."""
        for name in (one.name for one in fields(self) if one.name != "sample"):
            mine = getattr(self, name)
            add = mine.extend if isinstance(mine, array) else mine.update
            add(getattr(other, name))

    def measures(self) -> Measures:
        """What the rows are like."""
        answers, times = _count_each(self.answers)
        often = dict(zip(answers[times > 1].tolist(), times[times > 1].tolist(), strict=True))
        repeated = [said for said in self.repeated if said in often]
        most = max(repeated, key=often.__getitem__, default=None)
        verdicts: dict[str, dict[str, int]] = {}
        for (kind, verdict), number in self.verdicts.most_common():
            verdicts.setdefault(kind, {})[verdict] = number
        return Measures(
            **self.counts,
            words=_percentiles(self.words),
            questions=dict(self.questions.most_common()),
            asked=self.questions.total(),
            distinct_questions=len(_count_each(self.asked)[0]),
            repeated_rows=self.counts["rows"] - len(answers),
            most_repeated=(self.repeated[most], often[most]) if most else ("", 0),
            distinct_2=self.sample.distinct_2(),
            openings=dict(self.openings.most_common(_SHOWN)),
            flaws=dict(self.flaws.most_common()),
            verdicts=verdicts,
            named=dict(self.named.most_common(_SHOWN)),
        )


def kind_of(question: str) -> str:
    """What kind of question it is, in lower case: by its question word, or a request."""
    return next((kind for kind, form in _KINDS if form.match(question)), "other")


def _percentiles(counts: Counter[int]) -> tuple[int, ...]:
    """Of numbers, each counted: the smallest that so many per cent are not above."""
    found, below, total = [], 0, counts.total()
    ordered = sorted(counts.items())
    for share in _PERCENTILES:
        while ordered and (below + ordered[0][1]) * 100 < share * total:
            below += ordered.pop(0)[1]
        found.append(ordered[0][0] if ordered else 0)
    return tuple(found)
