"""An estimate as a table for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from mminstruct.reports.estimate import (
    ASKED_TWICE,
    FEWEST_ANSWERS,
    NEGLIGIBLE,
    Estimate,
)
from mminstruct.reports.intervals import format_interval, format_usd, format_whole
from mminstruct.reports.progress import duration

_WIDTH = 80
_LABEL = 16


def table(found: Estimate) -> str:
    """The estimate in aligned lines of at most 80 columns, and what is approximate about it."""
    types: dict[str, int] = {}
    for part in found.parts:
        types[part.type] = types.get(part.type, 0) + part.requests
    each = ", ".join(f"{count:,} {name}" for name, count in types.items())
    left = found.total("left")
    rows = [("requests", f"{found.requests:,}: {each}" if len(types) > 1 else each)]
    if found.total("too_long").high:
        rows.append(("too long", f"{format_whole(found.total('too_long'))} fit no window"))
    rows.append(
        (
            "in the store",
            f"{format_whole(found.total('stored'))}; {format_whole(left)} left to ask for",
        )
    )
    for label, figure in (("prompt", "prompt_tokens"), ("answer", "completion_tokens")):
        text = format_whole(found.total(figure))
        of_left = format_whole(found.total(f"{figure}_left"))
        rows.append((f"{label} tokens", text if of_left == text else f"{text}; left: {of_left}"))
    rows.append(("cost", _cost_text(found)))
    if found.batch_cost_usd is not None:
        rows.append(("Batch API", format_interval(found.batch_cost_usd, format_usd)))
    seconds = found.seconds
    rows.append(
        (
            "time",
            "unknown; give --requests_per_second"
            if seconds is None
            else format_interval(seconds, duration)
            if found.requests_per_second is not None or not left.high
            else f"at least {format_interval(seconds, duration)}, as the rates asked for allow it",
        )
    )
    lines = [_wrapped(f"{label:<{_LABEL}}{text}", " " * _LABEL) for label, text in rows]
    return "\n".join([*lines, *(_wrapped(f"- {note}", "  ") for note in _notes(found))]) + "\n"


def _notes(found: Estimate) -> Iterator[str]:
    """Where the run will stop; what is approximate, and why."""
    if bound := found.stops_at:
        yield f"The run may stop at {bound}; the same command goes on from there."
    if found.recipe.config.check == "reask":
        yield f"{ASKED_TWICE.capitalize()}; these requests are not in the figures."
    if found.sampled:
        yield (
            f"From a sample of {sum(part.looked_at for part in found.parts):,} requests; intervals "
            "hold the true figure with 95 % (--exact looks at all)."
        )
    error, scaled_by = found.token_error, sum(part.scaled_by for part in found.parts)
    if error != 0.0 and scaled_by:
        yield (
            "Prompt tokens are approximate, put right by what the server counted for "
            f"{scaled_by:,} stored answers."
        )
    if error is None:
        yield "Prompt tokens are approximate: the error of the count is not known."
    elif error > NEGLIGIBLE and not all(part.scaled_by for part in found.parts):
        yield (
            f"Prompt tokens are approximate, within {error:.0%}: the model's tokenizer is not at "
            f"hand. {FEWEST_ANSWERS} stored answers of each type put them right (a run with "
            "--limit)."
        )
    elif error and not scaled_by:
        yield f"Prompt tokens are counted with OpenAI's tokenizer, within {error:.0%} of the bill."
    guessed = {part.type: None for part in found.parts if not part.answers and part.left.high}
    if guessed:
        yield (
            f"Answer tokens of {', '.join(guessed)} are a guess from the prompt config's examples "
            "(half the shortest to 1.5 times the longest)."
        )
    measured = {part.type: part.answers for part in found.parts if part.answers and part.left.high}
    if measured:
        yield (
            f"Answer tokens of {', '.join(measured)} are from {sum(measured.values()):,} finished "
            "answers in the store."
        )


def _cost_text(found: Estimate) -> str:
    cost, price, model = found.cost_usd, found.recipe.price, found.recipe.backend.model
    if cost is None:
        return f"unknown: no price of {model} here; give --price_in and --price_out"
    if price is None or not (price.usd_per_prompt_token or price.usd_per_completion_token):
        return f"{format_interval(cost, format_usd)}" + (f" ({price.origin})" if price else "")
    rates = (price.usd_per_prompt_token * 1e6, price.usd_per_completion_token * 1e6)
    return (
        f"{format_interval(cost, format_usd)} at ${rates[0]:g} and ${rates[1]:g} per million "
        f"tokens ({price.origin})"
    )


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=indent, break_on_hyphens=False)
