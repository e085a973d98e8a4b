"""What rows are like, in words: a table of measures, with GPT-4's beside them.

**Source:** the figures of GPT-4 were measured by us, on 111 rows that LLaVA published about 37
images of COCO val2014 (https://github.com/haotian-liu/LLaVA, ``playground/data``; those for
LLaVA-Bench and the examples of its prompts). On so few rows they are right to about 5 points.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from mminstruct.reports.quality import Measures, Quality
from mminstruct.resources import count_of

REFERENCE_TITLE = "GPT-4 with LLaVA's recipe, 111 published rows, ± 5 points"
ALL = "all"
_BY_TYPE = ("conversation", "detail_description", "complex_reasoning", ALL)
_WIDTH = 80
_LABEL, _CELL = 24, 14
_COLUMNS = (_WIDTH - _LABEL) // _CELL
_REPEATED = "rows said before"
_SHOWN = 5  # of what is most frequent


class Measure(NamedTuple):
    """A line of the table: a part of a whole.

    Attributes:
        label: what it is.
        part: of some rows.
        whole: in which the part is; where that is nothing, there is nothing to measure.
        unit: ``%``, or nothing.
        reference: what GPT-4 has, by type; `ALL` is all of them.
        tolerable: all that is above is to be looked at, the more so the higher; None for what has
            no wrong side.
    """

    label: str
    part: Callable[[Measures], float]
    whole: Callable[[Measures], float | None]
    unit: str = ""
    reference: Mapping[str, float] = {}
    tolerable: float | None = None

    def value(self, measures: Measures) -> float | None:
        """That of some rows; None where it isn't known, or there is nothing to measure."""
        whole = self.whole(measures)
        return (100 if self.unit else 1) * self.part(measures) / whole if whole else None


def _reference(*values: float) -> dict[str, float]:
    """By type, and of all rows; or of all rows alone."""
    return dict(zip(_BY_TYPE[-len(values) :], values, strict=True))


def _count(kind: str, *verdicts: str) -> Callable[[Measures], float]:
    return lambda m: sum(m.verdicts.get(kind, {}).get(verdict, 0) for verdict in verdicts)


def _wrong(label: str, kind: str, tolerable: float) -> Measure:
    judged = _count(kind, "supported", "contradicted")
    return Measure(label, _count(kind, "contradicted"), judged, "%", {}, tolerable)


def _rows(m: Measures) -> int:
    return m.rows


def _turns(m: Measures) -> int:
    return m.turns


def _checked(m: Measures) -> int:
    return m.checked_rows


_named = _count("object", "supported", "unknown", "contradicted", "supposed")

MEASURES = (
    Measure("rows", _rows, lambda m: 1),
    Measure("turns a row", _turns, _rows),
    Measure(
        "words of an answer",
        lambda m: m.words[1],
        lambda m: m.turns > 0,
        reference=dict(zip(_BY_TYPE, (16, 78, 109), strict=False)),
    ),
    Measure("  5 % have at most", lambda m: m.words[0], lambda m: m.turns > 0),
    Measure("  95 % have at most", lambda m: m.words[2], lambda m: m.turns > 0),
    Measure(
        "distinct questions",
        lambda m: m.distinct_questions,
        lambda m: m.asked,
        "%",
        _reference(73.0),
    ),
    Measure(
        "yes or no questions",
        lambda m: m.questions.get("yes or no", 0),
        lambda m: m.asked,
        "%",
        _reference(1.8),
    ),
    Measure("  answered with no", lambda m: m.no, lambda m: m.yes + m.no, "%", _reference(0.0)),
    Measure(
        "distinct word pairs",
        lambda m: m.distinct_2 or 0,
        lambda m: m.distinct_2 is not None,
        "%",
        _reference(66.5),
    ),
    Measure(_REPEATED, lambda m: m.repeated_rows, _rows, "%", {}, 5.0),
    Measure("open with the image", lambda m: m.on_the_image, _turns, "%", _reference(32.0), 32.0),
    Measure("rows with a leak", lambda m: m.flaws.get("leak", 0), _rows, "%", _reference(0.9), 0.9),
    Measure("rows checked", _checked, _rows, "%"),
    Measure("objects a row", _named, _checked),
    Measure(
        "  not annotated",
        _count("object", "unknown", "contradicted", "supposed"),
        _named,
        "%",
        _reference(1.9, 1.9, 10.5, 5.1),
        5.1,
    ),
    Measure("  supposed", _count("object", "supposed"), _named, "%"),
    Measure("  contradicted", _count("object", "contradicted"), _named, "%", {}, 1.0),
    Measure(
        "rows with unannotated",
        lambda m: m.unknown_rows,
        _checked,
        "%",
        _reference(2.7, 5.4, 24.3, 10.8),
        10.8,
    ),
    Measure("rows contradicted", lambda m: m.contradicted_rows, _checked, "%", {}, 2.0),
    _wrong("said absent, wrongly", "presence", 5.0),
    _wrong("counts wrong", "count", 5.0),
    _wrong("sides wrong", "side", 10.0),
    _wrong("sizes wrong", "size", 10.0),
    Measure("boxes never mentioned", lambda m: m.unmentioned, lambda m: m.boxed, "%"),
)
"""The lines of the table, in their order."""


def as_text(named: Mapping[str, Quality]) -> str:
    """One or more data sets side by side, in lines of 80 columns.

    Args:
        named: what is measured, by the name of the data set.
    """
    lines = []
    for name, quality in named.items():
        lines += _wrap(f"{name}: {_facts(quality)}")
    lines += ["", f"(in brackets: {REFERENCE_TITLE})"]
    kinds = dict.fromkeys([ALL, *(kind for quality in named.values() for kind in quality.types)])
    columns = [
        (name if len(named) > 1 else "", kind, _of(quality, kind))
        for kind in kinds
        for name, quality in named.items()
    ]
    for start in range(0, len(columns), _COLUMNS):
        lines += ["", *_table(columns[start : start + _COLUMNS])]
    for name, quality in named.items():
        lines += ["", *(_wrap(f"{name}:") if len(named) > 1 else [])]
        lines += [line for told in details(quality) for line in _wrap(told)]
    return "\n".join(lines) + "\n"


def as_markdown(quality: Quality) -> str:
    """The table for a card.

    The figure in brackets is GPT-4's. Names of types have no markup.
    """
    kinds = [ALL, *quality.types]
    head = [f"| | {' | '.join(kinds)} |", f"|---|{'---|' * len(kinds)}"]
    rows = [
        f"| {label.strip()} | {' | '.join(cells)} |"
        for label, cells in _cells([(kind, _of(quality, kind)) for kind in kinds])
    ]
    note = (
        f"In brackets: {REFERENCE_TITLE}. What is not annotated, neither as a box nor in words, "
        "may be there all the same."
    )
    return "\n".join([*head, *rows, "", note])


def in_short(quality: Quality, more: str) -> list[str]:
    """Three lines for the end of a run: lengths, truth, and what to look at first.

    Args:
        quality: of its rows.
        more: the command that tells more, if one can.
    """
    kinds = quality.types or {ALL: quality.all}
    lengths = (f"{kind} {m.rows:,} of {m.words[1]} words" for kind, m in kinds.items())
    truth = [
        f"{measure.label.strip()} {_format(value, measure)}"
        for measure in MEASURES
        if measure.label in _IN_SHORT and (value := measure.value(quality.all)) is not None
    ]
    worst = find_worst(quality)
    look = f"look at {worst}" if worst else "nothing stands out"
    return [
        f"rows: {', '.join(lengths)}",
        f"checks: {', '.join(truth) or 'nothing was checked'}",
        f"{look}; more: {more}" if more else look,
    ]


_LEAST = 3  # so often, or it is chance
_IN_SHORT = ("  not annotated", "  contradicted", "counts wrong", "sides wrong")


def find_worst(quality: Quality) -> str | None:
    """What is furthest above what is tolerable, in words, or None; a few cases are nothing yet."""
    found = [
        (value / measure.tolerable, measure, value, kind)
        for kind, measures in {ALL: quality.all, **quality.types}.items()
        for measure in MEASURES
        if measure.tolerable and measure.part(measures) >= _LEAST
        if (value := measure.value(measures)) is not None
    ]
    far, measure, value, kind = max(found, key=lambda one: one[0], default=(0.0, None, 0.0, ""))
    if measure is None or far <= 1:
        return None
    said, times = quality.all.most_repeated
    example = f" ({times} x {said!r})" if measure.label == _REPEATED else ""
    where = "" if kind == ALL else f" of {kind}"
    return f"{measure.label.strip()}{where}: {_format(value, measure)}{example}"


def _of(quality: Quality, kind: str) -> Measures:
    return quality.all if kind == ALL else quality.types.get(kind, Measures())


def _facts(quality: Quality) -> str:
    about = f" about {count_of(quality.images, 'image')}" if quality.images else ""
    lost = quality.without_context
    left = f"; of {count_of(lost, 'row')} the image has no annotations here" if lost else ""
    return f"{count_of(quality.all.rows, 'row')}{about}{left}"


def _table(columns: Sequence[tuple[str, str, Measures]]) -> Iterator[str]:
    """Some columns, each headed by the data set's name and the type's."""
    for head in ([c[0] for c in columns], *zip(*(_halves(c[1]) for c in columns), strict=True)):
        if any(head):
            yield (" " * _LABEL + "".join(_fit(text) for text in head)).rstrip()
    for label, cells in _cells([(kind, measures) for _, kind, measures in columns]):
        yield f"{label:{_LABEL}}{''.join(cell.rjust(_CELL) for cell in cells)}".rstrip()


def _fit(text: str) -> str:
    room = _CELL - 1
    return (text if len(text) <= room else f"…{text[1 - room :]}").rjust(_CELL)


def _halves(kind: str) -> tuple[str, str]:
    """The name of a type in two lines, if one is too short for it."""
    first, _, second = kind.partition("_") if len(kind) >= _CELL else ("", "", kind)
    return first, second


def _cells(columns: Sequence[tuple[str, Measures]]) -> Iterator[tuple[str, list[str]]]:
    """The lines in which there is something: label, and a cell for each column."""
    for measure in MEASURES:
        values = [measure.value(measures) for _, measures in columns]
        if any(value is not None for value in values):
            cells = []
            for (kind, _), value in zip(columns, values, strict=True):
                beside = measure.reference.get(kind)
                shown = f" ({_number(beside)})" if beside is not None else ""
                cells.append(f"{_format(value, measure)}{shown}")
            yield measure.label, cells


def _format(value: float | None, measure: Measure) -> str:
    if value is None:
        return "-"
    if not measure.unit:
        return _number(value)
    return f"{_number(value, 0 if value >= 99.95 else 1)} %"


def _number(value: float, digits: int | None = None) -> str:
    if digits is None:
        digits = 0 if float(value).is_integer() else 1
    return f"{value:,.{digits}f}"


def details(quality: Quality) -> Iterator[str]:
    """What is no number of a table, a line each."""
    whole = quality.all
    for title, counts, total in (
        ("questions", whole.questions, whole.asked),
        ("answers open with", whole.openings, whole.turns),
        ("named most", whole.named, 0),
        ("rows with flaws of form", whole.flaws, 0),
    ):
        if counts:
            most = [
                f"{name or '(nothing)'} {_number(100 * n / total, 1)} %"
                if total
                else f"{name} {n:,}"
                for name, n in list(counts.items())[: _SHOWN if title != "questions" else None]
            ]
            yield f"{title}: {', '.join(most)}"
    said, times = whole.most_repeated
    if times:
        yield f"said most often: {times:,} x {said!r}"
    wrong = [
        f"{kind} {_count(kind, 'contradicted')(whole):,} of {judged:,}"
        for kind in sorted(whole.verdicts.keys() - {"object"})
        if (judged := _count(kind, "supported", "contradicted")(whole))
    ]
    if wrong:
        yield f"checked and wrong: {', '.join(wrong)}"
    for kind, reasons in quality.rejected.items():
        asked = _of(quality, kind).rows + sum(reasons.values())
        told = (f"{why} {n:,} ({_number(100 * n / asked, 1)} %)" for why, n in reasons.items())
        yield f"rejected of {kind}: {', '.join(told)}"
    shared = [f"{one.title} {one.images:,} of {one.of:,}" for one in quality.benchmarks.values()]
    if shared:
        names = ",".join(quality.benchmarks)
        yield f"images of benchmarks: {', '.join(shared)} (leave out: --exclude {names})"


def _wrap(text: str) -> list[str]:
    text = text.replace(" %", "\xa0%")  # a number and its unit stay together
    lines = textwrap.wrap(text, _WIDTH, subsequent_indent="    ", break_on_hyphens=False)
    return [line.replace("\xa0%", " %") for line in lines]
