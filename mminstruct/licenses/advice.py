"""A verdict for people: the whole of it, and models that would leave the rows free."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mminstruct.errors import UsageError
from mminstruct.licenses.composition import Verdict, compose
from mminstruct.licenses.registry import Model, Registry
from mminstruct.licenses.use import Use

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


def explanation(verdict: Verdict, use: Use, images: Sequence[str], others: Sequence[str]) -> str:
    """What rows may be used for, why, what that obliges to, and alternatives, a line each."""
    sections: dict[str, Sequence[str]] = {
        use.kind: images,
        "reasons": list(verdict.reasons),
        "obligations": [str(duty) for duty in verdict.obligations] or ["none that are known"],
        "near alternatives that would be free": others,
    }
    lines = [
        str(use),
        f"licence of the text: {verdict.name}; training on outputs: {verdict.output_training}",
    ]
    for title, entries in sections.items():
        if entries:
            lines += [f"{title}:", *(f"  - {entry}" for entry in entries)]
    return "\n".join(lines) + "\n"


def check_commercial(registry: Registry, verdict: Verdict) -> None:
    """Raise UsageError, with reasons and alternatives, unless the rows may be used commercially."""
    if verdict.commercial:
        return
    others = alternatives(registry, verdict)
    raise UsageError(
        f"--commercial: {verdict}; nothing was sent\n"
        + "".join(f"  - {reason}\n" for reason in verdict.reasons)
        + ("free would be:\n" + "".join(f"  - {other}\n" for other in others) if others else "")
        + "terms that you know can be entered with --licenses FILE"
    )
