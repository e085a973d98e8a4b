"""``mminstruct license``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mminstruct import backends, licenses, resources, sources
from mminstruct.cli.arguments import Parser
from mminstruct.cli.console import find_width, print_text, say
from mminstruct.cli.flags import (
    CONFIG_FLAG,
    CONTENT_FLAGS,
    MODEL_FLAGS,
    SERVER_FLAGS,
    add_flags,
    flags_of_options,
)
from mminstruct.cli.runs import (
    check_source_options,
    choose_source_options,
    name_places,
    read_base_urls,
)
from mminstruct.completions.prices import price_of
from mminstruct.config import InstructConfig
from mminstruct.errors import UsageError, lacking
from mminstruct.recipe import Recipe
from mminstruct.reports import notes
from mminstruct.sources import find_infos


def add_arguments(parser: Parser) -> None:
    """Add those of the command."""
    parser.description = (
        "What the rows of sources and a model may be used for, and why. Nothing is asked of any "
        "model, and nothing is downloaded but the card of an id on the Hub that has no entry: "
        "images are counted where annotation files are at hand. Without --model_source, the "
        "model is one of your own: a GGUF file, a folder, or what the id on the Hub stands for. A "
        "file of rows, a card or a folder with both is a data set made elsewhere, told by the "
        "generator that it names."
    )
    parser.set_defaults(command=_license, width=licenses.WIDTH)
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help=f"{', '.join(sources.names())}; or FILE: rows in JSON, JSON lines or Parquet, a "
        "README.md, a folder of them, or the id of a well-known data set",
    )
    names = ("model_source", "model", *SERVER_FLAGS, "model_id", "licenses")
    flags = {**CONFIG_FLAG, **{name: dict(MODEL_FLAGS[name]) for name in names}}
    flags |= CONTENT_FLAGS
    flags["model_source"]["default"] = None
    add_flags(parser, flags)
    add_flags(parser.add_mutually_exclusive_group(), _FORM_FLAGS)
    add_flags(parser.add_argument_group("source"), flags_of_options(sources.options()))


_FORM_FLAGS: dict[str, dict[str, Any]] = {
    "json": {"action": "store_true", "help": "the same for machines"},
    "why": {"action": "store_true", "help": "every clause with its source and the day it was read"},
}
# What is told of a data set made elsewhere, too.
_FOR_ALL = {"config", "licenses", "json", "why"}


def _license(args: argparse.Namespace) -> int:
    notes.show(alone=True)
    made = [name for name in args.sources if not _is_source(name) and _is_made(name)]
    if made:
        return _judge_made(args, made)
    given: dict[str, Any] = {
        "licenses": args.licenses,
        "model_id": args.model_id,
        **name_places(args),
    }
    check_source_options(args, args.sources)
    options = {option: getattr(args, option) for option in sources.options()}
    wanted = find_infos(args.sources, {o: v for o, v in options.items() if v is not None})
    by_name = args.model is not None and args.model_source is None
    if by_name and args.model_id is None:
        _check_model_file(args.model)
    if args.model_source is not None:
        given.update(backend=args.model_source, model=args.model, base_url=read_base_urls(args))
    elif any(getattr(args, flag) for flag in SERVER_FLAGS):
        raise UsageError("a server's URL says nothing without --model_source; give both")
    recipes: list[Recipe] = []
    for name, info in wanted.items():
        config = InstructConfig(
            source=name,
            source_options=choose_source_options(args, name),
            prompt_config=args.prompt_config or info.prompt_config,
            **{name: getattr(args, name) for name in ("types", "splits", "limit")},
            commercial=bool(args.commercial),
            **given,
        )
        recipes.append(Recipe.of(config, *recipes[:1]))
    registry = recipes[0].registry
    if by_name:
        model = licenses.named_model(registry, args.model, args.model_id)
        own = [licenses.compose(registry, [*r.text_parts, *model]) for r in recipes]
        is_known = model[0].by is not None
    else:
        own = [recipe.verdict for recipe in recipes]
    verdict = licenses.compose(registry, [part for each in own for part in each.parts])
    others = licenses.alternatives(registry, verdict)
    tally, images, are_counted = licenses.Tally(), [], True
    for recipe, terms in zip(recipes, own, strict=True):
        counts, said, is_counted = _images(recipe)
        recipe.expect(tally, counts, terms.commercial)
        images.append(said)
        are_counted &= is_counted
    use = tally.use(verdict.commercial, registry.allows, is_counted=are_counted)
    counted = use.as_json() if are_counted else None
    facts = {"use": counted, "images": images, "alternatives": others}
    code = _print(args, verdict, use, {use.kind: images}, others, facts)
    is_asked = by_name and args.model_id is None and not is_known
    if is_asked and (hint := _model_hint(registry, args.model)):
        say(resources.fit(hint, find_width(sys.stderr) or args.width))
    return code


def _is_source(name: str) -> bool:
    """Whether it is a source by name or description; other files and folders may be rows."""
    known, parts = sources.names(), sources.parts_of(name)
    return all(p.upper() in known or Path(p).suffix in (".yaml", ".yml", ".py") for p in parts)


def _is_made(name: str) -> bool:
    """Whether it is a data set made elsewhere.

    Raises:
        UsageError: it is written as one, and isn't there.
    """
    path = Path(name).expanduser()
    if path.exists() or name in licenses.load().datasets:
        return True
    if "/" in name or path.suffix:
        raise UsageError(
            f"{name}: expected a source, a file of rows, a card or a folder, got what is neither "
            f"here nor a data set that is known by its id{lacking(path)}; download it, or give "
            "another path"
        )
    return False


def _judge_made(args: argparse.Namespace, names: list[str]) -> int:
    """Tell what data sets made elsewhere may be used for, all together."""
    if others := [name for name in args.sources if name not in names]:
        raise UsageError(
            f"got {', '.join(others)} and {', '.join(names)}: expected sources, whose rows a model "
            "is to write, or data sets made elsewhere; ask for the one, then for the other"
        )
    for flag in args.parser.commands()["license"].given(args) - _FOR_ALL:
        raise UsageError(
            f"--{flag} is about rows to come, got {', '.join(names)}, whose rows are there; leave "
            "it out, or, of annotations, give a description: mminstruct describe PATH > own.yaml"
        )
    registry = licenses.load(args.licenses, sources.names())
    paths = [Path(name).expanduser() for name in names]
    found = [
        licenses.read_data_set(path) if path.exists() else licenses.DataSet(name, sources=[name])
        for name, path in zip(names, paths, strict=True)
    ]
    parts = [part for one in found for part in licenses.parts_of(registry, one)]
    verdict = licenses.compose(registry, parts)
    told = {"who wrote the rows": [line for one in found for line in one.told()]}
    facts = {"data_sets": [one.as_json() for one in found]}
    return _print(args, verdict, licenses.Use(verdict.commercial), told, (), facts)


def _print(
    args: argparse.Namespace,
    verdict: licenses.Verdict,
    use: licenses.Use,
    found: Mapping[str, Sequence[str]],
    others: Sequence[str],
    facts: Mapping[str, Any],
) -> int:
    """Print a verdict for people, or with more facts for machines; the exit code."""
    if args.json:
        known = {**verdict.as_json(), "rests_on": licenses.rests_on(verdict)}
        return print_text(json.dumps({**known, **facts, "said": str(use)}, indent=2) + "\n")
    width = find_width(sys.stdout) or licenses.WIDTH
    return print_text(licenses.explanation(verdict, use, found, others, width=width, why=args.why))


def _model_hint(registry: licenses.Registry, model: str) -> str | None:
    """What may be meant by a model that is neither a registered id nor on this machine."""
    if Path(model).expanduser().exists():
        return None
    if near := registry.near(model):
        return f"no entry has the exact id {model}; did you mean {' or '.join(near[:3])}?"
    for name, url in backends.SERVERS.items():
        if price_of(model, [url]) is not None:
            more = "" if name == "openai" else f" --openai_base_url {url}"
            return f"{model} is at a service; for its terms, add --model_source openai{more}"
    return None


def _images(recipe: Recipe) -> tuple[Mapping[str | None, int], str, bool]:
    """Licence -> images of a source, in words too, and whether they were counted.

    They are where its annotation files are at hand; else these are the licences that its publisher
    names, each once, or None for nobody knows.
    """
    source, splits = recipe.source.info, recipe.splits
    where = f"{source.name}, {' and '.join(splits)}"
    files = {split: recipe.locate(split) for split in splits}
    found = [
        recipe.choose_contexts(f, split, _find_cache())
        for split, f in files.items()
        if f is not None
    ]
    if len(found) == len(splits):
        counts = Counter(media.license for one in found for media in one.read_media())
        shares = ", ".join(f"{name or 'not known'} {n:,}" for name, n in counts.most_common())
        return counts, f"{where}: {shares}, counted in the annotation files", True
    first = (source.parts or (source,))[0]
    works = recipe.registry.image_works(first.name)
    names = [work.license for work in works] or [None]
    said = " or ".join(name or "a licence that is not known here" for name in names)
    notes = dict.fromkeys(f"; {work.note}" for work in works if work.note)
    return (
        dict.fromkeys(names, 1),
        f"{where}: {said}, as published{''.join(notes)}; not counted, as the annotation files are "
        f"not in {resources.shown(recipe.places[0])} (--dataset_storage_path)",
        False,
    )


def _find_cache() -> Path:
    """Where `datasets` has its cache; it isn't asked, as importing it takes half a second."""
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(HF_HOME, "datasets"))


def _check_model_file(model: str) -> None:
    """Raise UsageError for a model that is written as a path, and isn't there."""
    is_path = model.endswith(".gguf") or model.startswith(("./", "../", "/", "~"))
    path = Path(model).expanduser()
    if is_path and not path.exists():
        raise UsageError(
            f"model {model}: there is no such file{lacking(path)}; give another path, or the "
            "model's exact id on the Hub"
        )
