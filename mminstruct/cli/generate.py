"""``mminstruct generate``."""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import datasets

from mminstruct import __version__, backends, export, licenses, prompts, sources
from mminstruct.builder import (
    InstructBuilder,
    announce,
    cost,
    verdict_of,
)
from mminstruct.cli.arguments import USAGE, Parser
from mminstruct.cli.console import DONE, INCOMPLETE, print_text, quiet_libraries, say
from mminstruct.cli.export import tell_left_out
from mminstruct.cli.flags import (
    CONTENT_FLAGS,
    MODEL_FLAGS,
    SAMPLING_FLAGS,
    SERVER_FLAGS,
    add_run_arguments,
)
from mminstruct.cli.runs import load_source_infos, make_builders, prepare_builder, read_base_urls
from mminstruct.errors import (
    NoRows,
    UsageError,
)
from mminstruct.releases import notices, repository
from mminstruct.releases import repository as release
from mminstruct.releases.origin import Origin
from mminstruct.reports.estimate import Estimate
from mminstruct.rows import columns, replacing
from mminstruct.rows.plan import Plan
from mminstruct.rows.report import Report, summary

# Who ends a job may tell the process and its group, a moment apart.
ONE_SIGNAL_S = 1.0
_FORMAT_OF_SUFFIX = {".jsonl": "jsonl", ".json": "llava-instruct"}


def add_generate(commands: Any) -> None:
    """Add the command."""
    parser: Parser = commands.add_parser(
        "generate",
        help="generate a dataset",
        description="Generate instruction data for one or more annotation sources.",
        allow_abbrev=False,
    )
    parser.set_defaults(command=_generate)
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="say what slows a run down, too, and why"
    )
    add_run_arguments(parser)


def _generate(args: argparse.Namespace) -> int:
    output_format, path = choose_output(args)
    today = _today()
    if output_format == "dataset":
        repository.check_output(path)
    else:
        export.check_output(path, output_format)
    for info in load_source_infos(args):
        form = export.FORMATS.get(output_format)
        if form is not None and info.modality != "image" and not form.any_modality:
            raise UsageError(
                f"--output_format {output_format} holds images, and {info.name} is about "
                f"{info.modality}; use jsonl or dataset"
            )
    quiet_libraries()
    if args.verbose:
        logging.getLogger("mminstruct").setLevel(logging.DEBUG)
    with tempfile.TemporaryDirectory() as scratch:
        builders = make_builders(args, scratch)
        verdict = verdict_of([builder.config for builder in builders])
        there = (release if output_format == "dataset" else export).made_at(path)
        made = _made(builders)
        replacing.check(path, there, made, overwrite=args.overwrite)
        budget = builders[0].budget
        budget.ledger = Path(scratch) / "spent.json"
        report, parts = Report(), []
        args.stats = [builder.stats for builder in builders]
        # What can't be read, fetched or replaced is told before anything is paid for.
        asked = [b.requests(sending=not args.partial) for b in builders]
        made = {**made, "requests": sum(len(r) for some in asked for r in some.values())}
        replacing.check(path, there, made, overwrite=args.overwrite)
        if not _agreed(announce(builders), args.yes or args.partial):
            say("nothing was sent; --limit 100 asks for less, --yes goes on")
            return USAGE
        for builder in builders:
            builder.budget = budget
            try:
                prepare_builder(builder)
            except NoRows as error:
                raise NoRows(f"{error}. {_where_answers_are(path, builder.report)}") from None
            report.add(builder.report)
            parts.append(builder.as_dataset())
        splits = {
            split: datasets.concatenate_datasets([part[split] for part in parts if split in part])
            for split in dict.fromkeys(split for part in parts for split in part)
        }
        origin = _origin(builders, args, verdict, today)
        made = {**made, "requests": report.requests}
        outcome = export.Outcome(path, report.rows.total())
        if output_format == "dataset":
            repository.write(splits, path, origin, report, overwrite=args.overwrite)
        else:
            terms = export.Terms(
                partial(notices.license_text, origin), verdict.commercial, origin.registry.allows
            )
            outcome = export.write(
                splits,
                path,
                output_format,
                report,
                terms,
                made,
                left_out=origin.left_out,
                overwrite=args.overwrite,
            )
        for row in _first_rows(splits, args.show):
            if print_text(_sample(row)) != DONE:
                break
    say(f"{summary(report, export.summary(outcome))}{cost(builders)}; written to {path}")
    if args.dry_run:
        say("a dry run: the text is a stand-in's, to look at the form and not to train on")
    code = tell_left_out(outcome)
    if report.unsent:
        say("partial: the same command without --partial makes the rest")
        return INCOMPLETE
    if report.failures:
        first = next(entry for entry in report.entries() if entry["outcome"] == "failed")
        refused = report.failures["refused"]
        left = report.failures.total() - refused
        told = [f"{left} requests got no answer; run the same command again to ask for those"]
        told = told if left else []
        told += [f"{refused} requests were refused, as they would be again"] if refused else []
        say(f"{'. '.join(told)}. The first: {first['detail']}")
        return INCOMPLETE
    return code


def _agreed(found: Estimate, yes: bool) -> bool:
    """Whether a run may go on: a large one is asked about where somebody can answer."""
    if yes or not found.is_large:
        return True
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        say("a large run goes on unasked, as there is no terminal; see --max_cost")
        return True
    sys.stderr.write("mminstruct: go on? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _where_answers_are(path: Path, report: Report) -> str:
    """Where the answers of a run can be read that gave no row at all."""
    if report.files:
        return f"The answers are in {export.write_rejected(path, report)}"
    return "To read the answers, run the same command with --partial, which sends nothing"


def _made(builders: Sequence[InstructBuilder]) -> replacing.Made:
    """How the rows will be made, as far as it is known before anything is read."""
    plans, configs = [b.plan() for b in builders], [b.config for b in builders]
    plan, asked = plans[0], configs[0].type_names()
    values = {name: [str(getattr(plan.sampling, name))] for name in columns.SAMPLING}
    return {
        "sources": [p.source.name for p in plans],
        "backend": plan.backend,
        "model": plan.model,
        "prompt_configs": list(dict.fromkeys(p.config.hash for p in plans)),
        "sampling": replacing.sampling(values, _seed(plan)),
        "types": sorted({n for p in plans for n in prompts.type_names(p.config, asked)}),
        "splits": sorted({split for c in configs for split in c.split_names(c.open_source())}),
    }


def _seed(plan: Plan) -> str:
    return "none" if plan.sampling.seed is None else str(plan.sampling.seed)


def choose_output(args: argparse.Namespace) -> tuple[str, Path]:
    """The form of the output and its path."""
    suffix = Path(args.output_path or "").suffix
    chosen = args.output_format or _FORMAT_OF_SUFFIX.get(suffix, "dataset")
    if chosen == "dataset":
        export.check_folder_name(Path(args.output_path or ""), chosen)
    name = "instruct"
    default = Path(name) if chosen == "dataset" else export.default_output(name, chosen)
    return chosen, Path(args.output_path or default)


def _origin(
    builders: Sequence[InstructBuilder],
    args: argparse.Namespace,
    verdict: licenses.Verdict,
    today: datetime.date,
) -> Origin:
    plans = [builder.plan() for builder in builders]
    plan, config = plans[0], builders[0].config
    registry = config.registry()
    identity = builders[0].identity()
    if plan.endpoint is not None:
        identity["endpoint"] = plan.endpoint
    names = [n for p in plans for n in prompts.type_names(p.config, config.type_names())]
    skipped: Counter[str] = Counter()
    for builder in builders:
        for report in builder.read_report.values():
            skipped.update(report.skipped)
    return Origin(
        sources=tuple(plan.source for plan in plans),
        configs=tuple(plan.config for plan in plans),
        types=tuple(dict.fromkeys(names)),
        backend=plan.backend,
        model=plan.model,
        verdict=verdict,
        registry=registry,
        settings={
            **identity,
            "model": plan.model,
            "seed": _seed(plan),
            "mminstruct": __version__,
        },
        skipped=skipped,
        left_out=[entry for builder in builders for entry in builder.left_out()],
        command=command_again(args, registry, plan.endpoint),
        written_on=today,
    )


def _today() -> datetime.date:
    """The day, UTC; that of SOURCE_DATE_EPOCH where files are to be the same on any day."""
    seconds = os.environ.get("SOURCE_DATE_EPOCH")
    if seconds is None:
        return datetime.datetime.now(datetime.timezone.utc).date()
    try:
        return datetime.datetime.fromtimestamp(int(seconds), datetime.timezone.utc).date()
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(
            f"SOURCE_DATE_EPOCH: expected seconds since 1970, got {seconds!r}; unset it"
        ) from error


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
    words = ["mminstruct", "generate", *args.sources]
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


def _public(flag: str, value: str, registry: licenses.Registry) -> str:
    """A flag's value for everybody to read."""
    path = Path(value).expanduser()
    if "://" in value:
        url = urlsplit(value)
        return f"{url.scheme}://{url.hostname}{url.path}" if registry.endpoint(value) else "URL"
    if flag == "dataset_storage_path" or (flag == "model" and path.is_dir()):
        return "DIR"
    is_path = flag in ("model", "licenses", "prompt_config", *backends.engine_options())
    named = flag == "output_path" or (is_path and (path.is_absolute() or path.is_file()))
    return path.resolve().name if named else value


def _first_rows(splits: Mapping[str, datasets.Dataset], count: int) -> Iterator[dict[str, Any]]:
    """Some rows, of as many types as there are."""
    for rows in list(splits.values())[:1]:
        by_type: dict[str, list[int]] = {}
        for index, name in enumerate(rows["type"][:]):
            by_type.setdefault(name, []).append(index)
        turn = 0
        shown = 0
        while shown < min(count, len(rows)):
            for indices in by_type.values():
                if turn < len(indices) and shown < count:
                    shown += 1
                    yield rows[indices[turn]]
            turn += 1


def _sample(row: Mapping[str, Any]) -> str:
    head = f"\n--- {row['media']} ({row['type']})\n"
    names = {"user": "Q", "assistant": "A"}
    turns = "".join(f"{names[m['role']]}: {m['content']}\n" for m in row["messages"])
    return head + turns
