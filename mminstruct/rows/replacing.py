"""Whether an output may take the place of what is there.

It may if both were made in the same way and nothing gets lost: the same command again, or one that
asks for more. What somebody would miss is replaced only if that is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mminstruct.errors import UsageError
from mminstruct.rows.columns import SAMPLING

Made = Mapping[str, Any]
"""How rows were made and which there are, by the names in `_SAME`, `_NO_LESS` and ``requests``.

``prompt_names`` has what the prompt configs are called, by hash.
"""

# Each with what it is where nothing is noted.
_SAME: dict[str, Any] = {
    **dict.fromkeys(("backend", "model", "sampling", "image_licenses", "max_size")),
    "check": "report",
}
_NO_LESS = ("sources", "prompt_configs", "types", "splits")
_SPLIT = re.compile(r".*/([^/]+)-\d{5}-of-\d{5}")
# The stand-in's rows are of no use to anybody, whoever's output they would replace.
_STAND_IN = "fake"


def made(noted: Mapping[str, Any]) -> Made:
    """How the rows of a release were made, by its provenance.json; nothing if that doesn't tell."""
    try:
        counted = [noted["rejected"] or {}, noted["failed"] or {}]
        seed = noted["settings"].get("seed")
        return {
            "sources": noted["sources"],
            "backend": noted["backend"],
            "model": noted["model"],
            "prompt_configs": [config["hash"] for config in noted["prompt_configs"]],
            "prompt_names": {
                config["hash"]: f"{config['name']} {config['version']}"
                for config in noted["prompt_configs"]
            },
            "sampling": sampling(noted["generation"], seed),
            **{name: value for name, value in noted["settings"].items() if name == "check"},
            "types": sorted({*noted["rows"], *(kind for counts in counted for kind in counts)}),
            "splits": sorted({found[1] for f in noted["files"] if (found := _SPLIT.match(f))}),
            "requests": sum(noted["rows"].values())
            + sum(sum(reasons.values()) for counts in counted for reasons in counts.values()),
        }
    except (KeyError, TypeError, AttributeError):
        return {}


def sampling(values: Mapping[str, Any], seed: str | None) -> dict[str, Any]:
    """How answers were drawn, from the values that rows have in their provenance."""
    return {**{name: list(values.get(name, ())) for name in SAMPLING}, "seed": seed}


def check(path: Path, there: Made | None, new: Made, *, overwrite: bool) -> None:
    """Raise UsageError if what is there is something else than what is to be written, or more.

    Args:
        path: the output, for the error.
        there: how that was made; empty if nobody noted it, None if nothing is there.
        new: how the new rows are made; without ``requests`` where their number isn't known yet.
        overwrite: replace it nevertheless; but never a model's rows by a stand-in's.
    """
    if there is None or there.get("backend") == _STAND_IN:
        return
    if new.get("backend") == _STAND_IN:
        raise UsageError(
            f"output path {path}: a dry run would replace rows of {there.get('model', 'a model')}; "
            "give another path"
        )
    missed = None if overwrite else _find_missed(there, new)
    if missed:
        raise UsageError(
            f"output path {path}: something else is there: {missed}; give another path, or "
            "replace it with --overwrite (from Python, overwrite=True)"
        )


def _find_missed(there: Made, new: Made) -> str | None:
    """What would be lost, in words, or None."""
    if not there:
        return "nothing beside it tells how it was made"
    for name, usual in _SAME.items():
        before, now = there.get(name, usual), new.get(name, usual)
        if before != now:
            return f"its {name} {_describe(before)}, got {_describe(now)}"
    for name in _NO_LESS:
        lost = [one for one in there.get(name, ()) if one not in new.get(name, ())]
        if lost and name == "prompt_configs":
            return _describe_prompts(there, new, lost)
        if lost:
            return f"it has the {name} {_describe(lost)}, which would be lost"
    before, now = there.get("requests", 0), new.get("requests")
    if now is not None and now < before:
        return f"it was made from {before:,} requests, and this run has {now:,}"
    return None


def _describe_prompts(there: Made, new: Made, lost: list[str]) -> str:
    """What it means to go on with other prompts: nothing of what was answered is of use."""
    names, others = (
        " and ".join(made.get("prompt_names", {}).get(one, one) for one in hashes)
        for made, hashes in ((there, lost), (new, new.get("prompt_configs", ())))
    )
    return (
        f"it was made with the prompts of {names}, and this run has those of {others}, so all "
        f"of its {there.get('requests', 0):,} requests would be asked again. To go on with it, "
        f"give the file of {names}, which is in the version of mminstruct that made it "
        "(--prompt_config FILE)"
    )


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_describe(one)}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
