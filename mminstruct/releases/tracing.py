"""Rows -> how they came about, for the card of a release that is made from them alone.

What they may be used for is worked out again, from the source, the model, the endpoint and the
prompt config that each row names. What isn't in a row (what was rejected, what failed, the seed of
the run) can't be told.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import datasets

from mminstruct import licenses, prompts, sources
from mminstruct.errors import UsageError, did_you_mean
from mminstruct.licenses import ENDPOINTS_JOINT, Part, Registry, Verdict
from mminstruct.prompts.config import PromptConfig
from mminstruct.recipe import find_annotation_parts
from mminstruct.releases.origin import Origin
from mminstruct.rows.columns import FEATURES
from mminstruct.sources import SourceInfo
from mminstruct.version import __version__

_ROWS_AT_ONCE = 10_000


class _Making(NamedTuple):
    """What rows were made from, as they say."""

    source: str
    backend: str
    model: str
    endpoint: str | None  # the APIs, as `Registry.endpoint_names` has them
    prompt_config: str
    prompt_version: str
    prompt_hash: str


class _Claim(NamedTuple):
    """What rows say that they may be used for, image and all."""

    license: str
    commercial_use: bool | None
    image_license: str | None


def splits_of(rows: Any) -> dict[str, datasets.Dataset]:
    """The rows by split; those without one are ``train``.

    Raises:
        UsageError: they are no rows of ours, or none at all.
    """
    if isinstance(rows, datasets.DatasetDict):
        splits = {str(name): part for name, part in rows.items() if len(part)}
    elif isinstance(rows, datasets.Dataset):
        name = str(rows.split)
        splits = {name if rows.split and re.fullmatch(r"\w+", name) else "train": rows}
    else:
        raise UsageError(f"rows: expected a Dataset or a DatasetDict, got {type(rows).__name__}")
    if not sum(map(len, splits.values())):
        raise UsageError("rows: expected some, got none")
    for name, part in splits.items():
        # Without the order of the fields of a struct, which Parquet files keep and JSON may not.
        missing = [c for c in FEATURES if c not in part.features]
        lacking = [f for f in FEATURES["provenance"] if f not in part.features.get("provenance", f)]
        if missing or lacking:
            what = missing or [f"provenance.{field}" for field in lacking]
            raise UsageError(
                f"rows of split {name!r}: expected the columns that mminstruct generates, got none "
                f"called {', '.join(what)}; Dataset.push_to_hub takes any columns"
            )
    return splits


def trace(
    splits: Mapping[str, datasets.Dataset],
    *,
    repo_id: str | None = None,
    model_id: str | None = None,
    licenses_file: str | None = None,
    prompt_config: str | None = None,
    source_options: Mapping[str, Any] | None = None,
    source: str | None = None,
) -> Origin:
    """How rows came about.

    Args:
        splits: as `splits_of` gives them.
        repo_id: where on the Hub they will be.
        model_id: exact Hub id of the model, where the rows name a file.
        licenses_file: licence entries of the user's own.
        prompt_config: file that they were generated with, unless it is the package's.
        source_options: what the source was asked for beyond its defaults.
        source: path of the user's own that they were generated from, if there is one.

    Raises:
        UsageError: rows say that they may be used more freely than follows from what they were made
            from, or name a source that there isn't.
    """
    registry = licenses.load(licenses_file, sources.names())
    claims, types = _read(splits)
    makings = list(dict.fromkeys(making for making, _ in claims))
    asked = dict(source_options or {})
    own = sources.get(source, asked).info if source else None
    infos = {m.source: _info(m.source, own, asked) for m in makings}
    configs = {m: _config(m, prompt_config) for m in makings}
    ids = _repo_ids({m.model for m in makings}, model_id)
    # What rows call unknown doesn't come free by a card that nobody read when they were made.
    read = {m for m, claim in claims if claim.license != "unknown" or _is_barred(registry, claim)}
    parts = {
        m: _parts(registry, m, infos[m.source], configs[m], ids, read_cards=m in read)
        for m in makings
    }
    for making, claim in claims:
        _check_claim(registry, making, claim, licenses.compose(registry, parts[making]))
    pairs = {(m.source, m.prompt_hash): m for m in makings}.values()
    order = [name for m in pairs if (config := configs[m]) for name in config.types]
    return Origin(
        sources=tuple(infos[m.source] for m in pairs),
        configs=tuple(configs[m] or _unknown_config(m) for m in pairs),
        types=tuple(sorted(types, key=lambda n: order.index(n) if n in order else len(order))),
        backend=", ".join(dict.fromkeys(m.backend for m in makings)),
        model=", ".join(dict.fromkeys(m.model for m in makings)),
        verdict=licenses.compose(registry, [part for some in parts.values() for part in some]),
        registry=registry,
        settings={"released by": f"mminstruct {__version__}, from rows alone"},
        repo_id=repo_id,
    )


def _read(splits: Mapping[str, datasets.Dataset]) -> tuple[list[tuple[_Making, _Claim]], list[str]]:
    """What rows say of how they were made with what they may be used for, and their types."""
    made_from, claimed = _Making._fields[1:], _Claim._fields
    columns = ["source", *claimed, *(f"provenance.{name}" for name in made_from)]
    said: Counter[tuple[Any, ...]] = Counter()
    types: Counter[str] = Counter()
    for rows in splits.values():
        needed = rows.select_columns(["source", *claimed, "type", "provenance"])
        for batch in needed.with_format("arrow").iter(_ROWS_AT_ONCE):
            flat = batch.flatten()
            said.update(zip(*(flat.column(name).to_pylist() for name in columns), strict=True))
            types.update(flat.column("type").to_pylist())
    n = len(claimed)
    return [(_Making(s, *rest[n:]), _Claim(*rest[:n])) for s, *rest in said], list(types)


def _info(name: str, own: SourceInfo | None, asked: Mapping[str, Any]) -> SourceInfo:
    """The facts about a source that rows name; a name is never taken for a path.

    Raises:
        UsageError: there is no such source.
    """
    if own is not None and own.name == name:
        return own
    known = sources.names()
    for part in name.split("+"):
        if part.upper() not in known:
            raise UsageError(
                f"unknown source {part!r}{did_you_mean(part, known)}; rows from data of your own "
                "need what they were generated from here, too (source)"
            )
    return sources.get(name, asked).info


def _config(making: _Making, given: str | None) -> PromptConfig | None:
    """The prompt config with the content that rows name, or None: then nobody knows its licence."""
    known = [prompts.load(given)] if given else []
    if making.prompt_config in prompts.names():
        known.append(prompts.load(making.prompt_config))
    forms = (form for config in known for form in (config, config.whole))
    return next((form for form in forms if form.hash == making.prompt_hash), None)


def _unknown_config(making: _Making) -> PromptConfig:
    """A stand-in for one that there isn't any more, for cards."""
    config = PromptConfig.model_construct(
        name=making.prompt_config,
        version=making.prompt_version,
        license="not known",
        description=f"The prompt config {making.prompt_config!r} is not at hand.",
        types={},
    )
    # As rows have it; what it would be computed from isn't known.
    config.__dict__["hash"] = making.prompt_hash
    return config


def _repo_ids(models: Collection[str], model_id: str | None) -> dict[str, str | None]:
    """Model as rows name it -> its exact id on the Hub, or None.

    Raises:
        UsageError: an id was given and it isn't clear for which model.
    """
    found = {model: model if licenses.hub_id(model) else None for model in models}
    if model_id is None:
        return found
    nameless = sorted(model for model, repo_id in found.items() if repo_id is None)
    if len(nameless) != 1:
        raise UsageError(
            f"model_id: expected rows of one model without an exact id, got "
            f"{', '.join(nameless) or 'none'}; push the rows of each model by themselves"
        )
    return {**found, nameless[0]: model_id}


def _parts(
    registry: Registry,
    making: _Making,
    source: SourceInfo,
    config: PromptConfig | None,
    repo_ids: Mapping[str, str | None],
    *,
    read_cards: bool,
) -> list[Part]:
    """Whatever rows of this making are made of, with its licence."""
    if config:
        prompt = licenses.prompt_part(registry, name=config.name, license=config.license)
    else:
        named = f"{making.prompt_config!r} {making.prompt_version}"
        why = f"; no prompt config of this content ({making.prompt_hash}) is at hand"
        prompt = Part("prompts", f"prompts and examples of {named}", None, why)
    parts = [prompt, *find_annotation_parts(registry, source)]
    repo_id = repo_ids[making.model]
    parts += licenses.model_parts(
        registry,
        name=making.model,
        repo_id=repo_id,
        endpoints=making.endpoint.split(ENDPOINTS_JOINT) if making.endpoint else [],
        given=repo_id not in (None, making.model),
        read_cards=read_cards,
    )
    return parts


def _is_barred(registry: Registry, claim: _Claim) -> bool:
    """Whether rows were barred, and not for their image."""
    is_image = licenses.usable(registry.license(claim.image_license)) is False
    return claim.commercial_use is False and not is_image


def _check_claim(registry: Registry, making: _Making, claim: _Claim, verdict: Verdict) -> None:
    """Raise UsageError if rows claim another licence, or more, than they may have.

    Rows of an unknown licence claim none: what is known by now may be more. But what was barred,
    and not for its image, was so by something that doesn't follow from what they name now.
    """
    is_same = claim.license in (verdict.license, "unknown")
    was_barred = _is_barred(registry, claim) and verdict.commercial is not False
    if is_same and (verdict.commercial or not claim.commercial_use) and not was_barred:
        return
    use = {True: "yes", False: "no", None: "not known"}
    about = ", ".join(f"{name} {value}" for name, value in making._asdict().items())
    raise UsageError(
        f"rows say: {claim.license}, commercial use: {use[claim.commercial_use]}; got from what "
        f"they were made from ({about}): {verdict}\n"
        + "".join(f"  - {reason}\n" for reason in verdict.reasons)
        + "if they were generated with entries or a prompt config of your own, or a model file, "
        "give the same here: licenses, prompt_config, source_options, model_id"
    )
