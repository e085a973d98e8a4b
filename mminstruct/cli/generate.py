"""``mminstruct generate``."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import datasets

from mminstruct import backends, datafiles, export, generation, licenses, sources
from mminstruct.builder import InstructBuilder, tell_cost
from mminstruct.cli.arguments import USAGE, Parser
from mminstruct.cli.console import DONE, DRY_RUN, INCOMPLETE, print_text, quiet_libraries, say
from mminstruct.cli.export import tell_left_out
from mminstruct.cli.flags import (
    CONTENT_FLAGS,
    MODEL_FLAGS,
    SAMPLING_FLAGS,
    SERVER_FLAGS,
    add_run_arguments,
)
from mminstruct.cli.runs import config_arguments, prepare_builder, read_base_urls
from mminstruct.generation import Generated
from mminstruct.recipe import Recipe
from mminstruct.reports import quality_text
from mminstruct.reports.estimate import Estimate
from mminstruct.rows.report import explain_failures, summary
from mminstruct.sources.own import is_own


def add_arguments(parser: Parser) -> None:
    """Add those of the command."""
    parser.description = "Generate instruction data for one or more annotation sources."
    parser.set_defaults(command=_generate)
    add_run_arguments(parser)


class _Declined(Exception):
    """Somebody was asked whether to go on, and said no."""


def _generate(args: argparse.Namespace) -> int:
    args.stats = []

    def agree(found: Estimate) -> None:
        if not (args.yes or args.partial) and found.is_large:
            _ask()

    def prepare(builder: InstructBuilder) -> None:
        args.stats.append(builder.stats)
        prepare_builder(builder)

    def command(recipe: Recipe) -> str:
        return command_again(args, recipe.registry, recipe.plan.endpoint)

    output_format, path = generation.choose_output(args.output_path, args.output_format)
    quiet_libraries()
    if args.verbose:
        logging.getLogger("mminstruct").setLevel(logging.DEBUG)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            generated = generation.generate(
                args.sources,
                output_path=path,
                output_format=output_format,
                overwrite=args.overwrite,
                agree=agree,
                prepare=prepare,
                command=command,
                **config_arguments(args, scratch),
            )
        except _Declined:
            say("nothing was sent; --limit 100 asks for less, --yes goes on")
            return USAGE
        for row in _first_rows(generated.rows, args.show):
            if print_text(_sample(row)) != DONE:
                break
        readable = "" if args.shard else _name_readable(generated.written, output_format)
        code = _tell(args, generated, readable)
        if readable:
            say(f"look: mminstruct view {readable}")
        if args.shard and generated.written is not None:
            parts = f"{shlex.quote(str(generated.written.path.parent))}/*-of-*"
            say(f"when all shards are there: mminstruct merge {parts} {shlex.quote(str(path))}")
        return code


def _name_readable(outcome: export.Outcome | None, output_format: str) -> str:
    """What was written, as a shell takes it, or nothing if `view` and `report` can't read it."""
    assert outcome is not None  # a path is always given
    name, form = outcome.path.name, export.FORMATS.get(output_format)
    is_read = form is None or (form.layout != "all" and name.endswith(datafiles.SUFFIXES))
    return shlex.quote(str(outcome.path)) if is_read else ""


def _tell(args: argparse.Namespace, generated: Generated, readable: str) -> int:
    """Say what became of a run; the exit code."""
    report, outcome = generated.report, generated.written
    assert outcome is not None  # a path is always given
    rows = summary(report, export.summary(outcome))
    say(f"{rows}{tell_cost(generated.builders)}; written to {outcome.path}")
    if generated.quality is not None and not args.dry_run:
        more = f"mminstruct report {readable}" if readable else ""
        for line in quality_text.in_short(generated.quality, more):
            say(line)
    if args.dry_run:
        say(DRY_RUN)
    code = tell_left_out(outcome)
    if report.unsent:
        say("partial: the same command without --partial makes the rest")
        return INCOMPLETE
    if report.failures:
        first = next(entry for entry in report.entries() if entry["outcome"] == "failed")
        told = explain_failures(report, "run the same command again to ask for those")
        say(f"{told}. The first: {first['detail']}")
        return INCOMPLETE
    return code


def _ask() -> None:
    """Ask whether a large run may go on, where somebody can answer."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        say("a large run goes on unasked, as there is no terminal; see --max_cost")
        return
    sys.stderr.write("mminstruct: go on? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise _Declined


def command_again(
    args: argparse.Namespace, registry: licenses.Registry, endpoint: str | None
) -> str:
    """What makes the same rows, without keys, private servers and places on this machine.

    Args:
        args: as they were given.
        registry: tells which services may be named.
        endpoint: as rows have it; it may be from the environment, which nobody else has.
    """
    defaults = args.parser.parse_args(["generate", *args.sources])
    public = ["+".join(map(_public_source, sources.parts_of(name))) for name in args.sources]
    words = ["mminstruct", "generate", *public]
    own = (*backends.engine_options(), *sources.options())
    for name in (*MODEL_FLAGS, *own, *CONTENT_FLAGS, *SAMPLING_FLAGS, "output_path"):
        value = getattr(args, name)
        if value == getattr(defaults, name):
            continue
        words.append(f"--{name}")
        if name in SERVER_FLAGS:
            value = value[0]  # the others are replicas
        if value is not True:
            values = value if isinstance(value, list) else [value]
            words += [_public(name, str(one), registry) for one in values]
    from_environment = os.environ.get("OPENAI_BASE_URL") and not read_base_urls(args)
    if endpoint is not None and args.model_source.lower() == "openai" and from_environment:
        words += ["--openai_base_url", endpoint if "://" in endpoint else "URL"]
    return shlex.join(words)


def _public_source(name: str) -> str:
    """A source's name; of a path on this machine, where it ends."""
    path = Path(name).expanduser()
    if name.upper() in sources.names() or not path.exists():
        return name
    end = path.absolute().name
    return end if is_own(end) else f"./{end}"


def _public(flag: str, value: str, registry: licenses.Registry) -> str:
    """A flag's value for everybody to read."""
    path = Path(value).expanduser()
    if "://" in value:
        url = urlsplit(value)
        shown = f"{url.scheme}://{url.hostname}{url.path}"
        is_public = flag == "image_url" or registry.endpoint_name(shown) == shown
        return shown if is_public else "URL"
    if flag == "exclude":
        return ",".join(Path(name).name for name in value.split(","))
    if flag in ("dataset_storage_path", "image_folder") or (flag == "model" and path.is_dir()):
        return "DIR"
    files = (
        "model",
        "licenses",
        "prompt_config",
        "captions",
        "exclude",
        *backends.engine_options(),
    )
    named = flag == "output_path" or (flag in files and (path.is_absolute() or path.is_file()))
    return path.resolve().name if named else value


def _first_rows(splits: Mapping[str, datasets.Dataset], count: int) -> Iterator[dict[str, Any]]:
    """Some rows of the first split, of as many types as there are."""
    if not splits:  # of a shard
        return
    rows = next(iter(splits.values()))
    by_type: dict[str, list[int]] = {}
    for index, name in enumerate(rows["type"][:]):
        by_type.setdefault(name, []).append(index)
    in_turn = (index for turn in zip_longest(*by_type.values()) for index in turn)
    yield from (rows[index] for index in islice((i for i in in_turn if i is not None), count))


def _sample(row: Mapping[str, Any]) -> str:
    head = f"\n--- {row['media']} ({row['type']})\n"
    names = {"user": "Q", "assistant": "A"}
    turns = "".join(f"{names[m['role']]}: {m['content']}\n" for m in row["messages"])
    return head + turns
