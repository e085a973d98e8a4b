"""A verdict for people: what it is, what it rests on, and models that would leave the rows free."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

from mminstruct.errors import UsageError
from mminstruct.licenses.composition import Part, Verdict, compose
from mminstruct.licenses.entries import OutputTraining, Terms
from mminstruct.licenses.registry import Model, Registry
from mminstruct.licenses.use import Use

WIDTH = 80
"""Columns, where nobody knows how many there are."""
_MOST_LINES = 5
_NEAREST = 3
# Billions of parameters to suggest around where the model's own size isn't known.
_SOME_SIZES = (8.0, 30.0, 120.0)


def alternatives(registry: Registry, verdict: Verdict) -> list[str]:
    """Models of other makers whose terms leave outputs free, each with its terms in a line.

    The nearest in size, of different makers, none made from another's; none if the rows are free as
    they are, or wouldn't be with any model.
    """
    rest = [part for part in verdict.parts if part.role not in ("model", "service")]
    if verdict.commercial or not compose(registry, rest).commercial:
        return []
    models = [registry.models.get(part.repo_id or "") for part in verdict.parts]
    known = next((model for model in models if model and model.size_b), None)
    sizes = (known.size_b,) * _NEAREST if known and known.size_b else _SOME_SIZES
    free = [model for model in registry.models.values() if model.chat and _is_free(registry, model)]
    chosen: list[Model] = []
    for size in sizes:
        others = [m for m in free if m.size_b and m.vendor not in {c.vendor for c in chosen}]
        if others:
            chosen.append(min(others, key=lambda m: (_distance(m, size), m is not known)))
    served = any(part.role == "service" for part in verdict.parts)
    where = ", on a server of your own" if served else ""
    return [
        f"{m.repo_id}{where}: {registry.terms[m.terms].title}, no duty on outputs" for m in chosen
    ]


def _is_free(registry: Registry, model: Model) -> bool:
    terms = registry.terms[model.terms]
    allowed = terms.output_training == "allowed" and terms.redistribution
    return allowed and not terms.obligations and model.base is None


def _distance(model: Model, size_b: float) -> float:
    return abs(math.log((model.size_b or math.inf) / size_b))


def rests_on(verdict: Verdict) -> list[str]:
    """The parts and what their terms say, the strictest first; those under the same terms once."""
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for part in sorted(verdict.parts, key=_freedom):
        note = part.note if part.by is None else ""
        groups.setdefault((part.role, part.terms), {}).setdefault(part.what, note)
    found = []
    for (_, terms), whats in groups.items():
        (what, note), *more = whats.items()
        others = f" and {len(more)} more" if more else ""
        found.append(f"{what}{others}: {terms}{note}")
    return found


def _freedom(part: Part) -> tuple[int, int, bool]:
    """The more, the less it binds."""
    says = part.by.output_training if isinstance(part.by, Terms) else "allowed"
    return (
        (False, None, True).index(part.commercial),
        -get_args(OutputTraining).index(says),
        not (part.by and part.by.obligations),
    )


def explanation(
    verdict: Verdict,
    use: Use,
    found: Mapping[str, Sequence[str]],
    others: Sequence[str],
    *,
    width: int = WIDTH,
    why: bool = False,
) -> str:
    """What rows may be used for, what that rests on and obliges to, and alternatives.

    Args:
        verdict: on their text.
        use: of text and images.
        found: what else there is to tell, by title.
        others: the alternatives.
        width: of a line, columns.
        why: every part with its clause, source and day, in the place of what decides.
    """
    shared = "" if verdict.redistribution else "; it may not be passed on to everyone everywhere"
    sections: dict[str, Sequence[str]] = {
        **found,
        "duties": [str(duty) for duty in verdict.obligations] or ["none that are known"],
        "near alternatives that would be free": others,
    }
    lines = [
        *_fill(f"commercial use: {use}", width, "  "),
        *_fill(f"licence of the text: {verdict.name}{shared}", width, "  "),
    ]
    if why:
        lines += ["reasons:", *list_lines(verdict.reasons, width, cut=False)]
    else:
        lines += ["it rests on:", *decisive_lines(verdict, width)]
    for title, entries in sections.items():
        if entries:
            lines += [f"{title}:", *list_lines(entries, width)]
    if not why:
        lines += _fill("every clause with its source and the day it was read: --why", width, "")
    return "\n".join(lines) + "\n"


def decisive_lines(verdict: Verdict, width: int = WIDTH) -> list[str]:
    """What a verdict rests on in a few lines; what they have no room for is counted."""
    entries = rests_on(verdict)
    lines: list[str] = []
    for number, entry in enumerate(entries):
        left = len(entries) - number
        room = _MOST_LINES - len(lines) - (left > 1)
        if lines and len(list_lines([entry], width)) > room:
            return [*lines, f"  - and {left} more, which bind no more"]
        lines += list_lines([entry], width, most=room)
    return lines


def list_lines(
    entries: Iterable[str], width: int = WIDTH, *, cut: bool = True, most: int | None = None
) -> list[str]:
    """Each entry with a dash before it, in lines; ``most`` of one, and words longer are cut."""
    lines = (_fill(entry, width, "    ", "  - ", cut=cut, most=most) for entry in entries)
    return [line for wrapped in lines for line in wrapped]


def _fill(
    text: str, width: int, next: str, first: str = "", *, cut: bool = True, most: int | None = None
) -> list[str]:
    """The text in lines; ``cut`` is whether a word longer than a line is, too."""
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=next,
        break_on_hyphens=False,
        break_long_words=cut,
        max_lines=most,
        placeholder=" ...",
    )


def check_commercial(registry: Registry, verdict: Verdict) -> None:
    """Raise UsageError, with reasons and alternatives, unless the rows may be used commercially."""
    if verdict.commercial:
        return
    others = alternatives(registry, verdict)
    lines = [
        f"--commercial: {verdict}; nothing was sent",
        *decisive_lines(verdict),
        *(["free would be:", *list_lines(others, WIDTH)] if others else ()),
        "terms that you know can be entered with --licenses FILE",
    ]
    raise UsageError("\n".join(lines))
