"""The command line: arguments, environment, progress, exit codes.

Exit codes:

    0    everything asked for is there
    1    done, but some requests got no answer (run the same command again to ask for those), or a
         trainer's file lacks rows (PATH.missing.jsonl names them)
    2    a wrong argument, prompt config or annotation file, or a question answered with no: nothing
         was sent; or an argument by which no answer gives a row
    3    the run had to stop (server, key, Hub, disk, budget); run the same command again to go on
    130  Ctrl-C (143: terminated, 129: hung up); run the same command again to go on
    141  who reads the output of list, show, license or estimate left before its end, as head does
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import logging
import math
import os
import shlex
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import datasets
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

from mminstruct import (
    __version__,
    backends,
    cards,
    estimate,
    export,
    hub,
    licenses,
    loading,
    preview,
    prompts,
    release,
    replacing,
    resources,
    sources,
)
from mminstruct.arguments import USAGE, Parser
from mminstruct.builder import (
    ALIASES,
    IncompleteWarning,
    InstructBuilder,
    InstructConfig,
    announce,
    cost,
    make,
    summary,
    use_of,
    verdict_of,
)
from mminstruct.errors import (
    BackendError,
    DownloadError,
    HubError,
    NoRows,
    RunStopped,
    StoreError,
    StoreUnusable,
    TransientError,
    UsageError,
    causes,
    lacking,
    to_tell,
)
from mminstruct.estimate import Estimate
from mminstruct.generate import Plan, Report, media_licenses
from mminstruct.pricing import price_of
from mminstruct.progress import ProgressLine
from mminstruct.release import Origin
from mminstruct.sources import SourceInfo

if TYPE_CHECKING:
    from mminstruct.images import Fetching

DONE, INCOMPLETE, STOPPED, INTERRUPTED, TERMINATED, HUNG_UP = 0, 1, 3, 130, 143, 129
# As a shell has it for what a broken pipe ends.
UNREAD = 141
_ENDED_BY = {"SIGTERM": TERMINATED, "SIGHUP": HUNG_UP}
# Who ends a job may tell the process and its group, a moment apart.
_ONE_SIGNAL_S = 1.0

_FORMAT_OF_SUFFIX = {".jsonl": "jsonl", ".json": "llava-instruct"}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    if sys.stderr is None:  # closed from the start: the next file to be opened would become it
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    try:
        sys.exit(run(sys.argv[1:] if arguments is None else arguments))
    finally:
        # Else Python says at its end that nobody reads the help.
        with contextlib.suppress(OSError, ValueError):
            _print("")


def run(arguments: Sequence[str]) -> int:
    """Run the command line; the exit code."""
    args = argparse.Namespace()
    # Who calls this from Python has it back afterwards: processes forked later would inherit it.
    ended = _once_in_a_while()
    before = {number: signal.signal(number, ended) for number in _heard()}
    try:
        args = _parser().parse_args(arguments)
        code: int = args.command(args)
        return code
    except KeyboardInterrupt as interrupt:
        _say(f"stopped. {_kept(args)}{_how_to_go_on(args, interrupt)}.")
        return _ENDED_BY.get("".join(interrupt.args), INTERRUPTED)
    except Exception as error:  # noqa: BLE001 (the one place: below here it is a traceback)
        known = to_tell(error)
        if known is None:
            raise
        _say(f"error: {known}")
        if isinstance(known, NoRows | StoreUnusable):
            return USAGE
        if isinstance(known, DownloadError):  # which says how to go on
            return STOPPED
        if isinstance(known, RunStopped | BackendError | HubError | StoreError | OSError):
            kept = "What was stored is kept" if isinstance(known, StoreError) else _kept(args)
            _say(f"{kept}{_how_to_go_on(args, error)}.")
            return STOPPED
        return USAGE
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _kept(args: argparse.Namespace) -> str:
    """What a run that stopped has not lost, as a sentence without its end."""
    kept: str = getattr(args, "kept", "Everything that was answered is kept")
    return kept


def _how_to_go_on(args: argparse.Namespace, error: BaseException) -> str:
    """What to do after a run that stopped, as the rest of a sentence."""
    ways = [] if _is_refusal(error) else ["run the same command again to go on"]
    if any(stats.answered or stats.stored for stats in getattr(args, "stats", ())):
        ways.append("run it with --partial to write what is complete")
    return f"; {', or '.join(ways)}" if ways else ""


def _is_refusal(error: BaseException) -> bool:
    """Whether a server said no to what would be asked again in the same words."""
    first = next((e for e in reversed(causes(error)) if isinstance(e, BackendError)), None)
    if isinstance(first, TransientError):
        return first.cause in ("bad_body", "no_api")
    return first is not None


def _heard() -> Iterator[signal.Signals]:
    """The signals besides Ctrl-C that end a run in good order."""
    for name in _ENDED_BY:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            yield number


def _once_in_a_while() -> Callable[[int, FrameType | None], None]:
    """A handler that takes several signals at nearly the same time for one."""
    last_s = -math.inf

    def ended(number: int, frame: FrameType | None) -> None:
        nonlocal last_s
        before_s, last_s = last_s, time.monotonic()
        if last_s - before_s > _ONE_SIGNAL_S:
            raise KeyboardInterrupt(signal.Signals(number).name)

    return ended


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that hung up
        sys.stderr.write(f"mminstruct: {resources.printable(text)}\n")
        sys.stderr.flush()


def _print(text: str) -> int:
    """Write to stdout, with escapes for controls and what its encoding lacks; the exit code.

    Where nobody reads on, as after ``| head``, this and all that follows goes nowhere.
    """
    if not sys.stdout:  # it was closed from the start
        return DONE
    text, encoding = resources.printable(text), getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer is flushed at the interpreter's end once more.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if isinstance(error, BrokenPipeError):
            return UNREAD
        raise
    return DONE


def _parser() -> Parser:
    parser = Parser(
        prog="mminstruct",
        description="Multimodal instruction data from annotations, with any LLM. @FILE among words "
        "stands for the words in the file.",
        epilog="exit codes:" + (__doc__ or "").partition("Exit codes:")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mminstruct {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_estimate(commands)
    _add_show(commands)
    _add_license(commands)
    _add_export(commands)
    _add_push(commands)
    listing = commands.add_parser("list", help="builders, sources, prompt configs and backends")
    listing.set_defaults(command=_list)
    _add_completion(commands)
    return parser


def _add_generate(commands: Any) -> None:
    parser: Parser = commands.add_parser(
        "generate",
        help="generate a dataset",
        description="Generate instruction data for one or more annotation sources.",
        allow_abbrev=False,
    )
    parser.set_defaults(command=_generate)
    _add_run_arguments(parser)


def _add_estimate(commands: Any) -> None:
    parser: Parser = commands.add_parser(
        "estimate",
        help="what a run would ask for, take and cost",
        description="Takes the arguments of generate and sends nothing to any model: how many "
        "requests, how many answers are in the store already, tokens, cost and time. Figures are "
        "for the whole run; cost and time are for what is not in the store.",
        allow_abbrev=False,
    )
    parser.set_defaults(command=_estimate)
    _add_run_arguments(parser)
    _flags(parser.add_argument_group("estimate"), _ESTIMATE_FLAGS)


def _add_show(commands: Any) -> None:
    parser: Parser = commands.add_parser(
        "show",
        help="one context, and its messages as a model gets them",
        description="Prints one image, motion ... with its annotations as a model gets them, "
        "for each instruction type.",
        allow_abbrev=False,
    )
    parser.set_defaults(command=_show)
    parser.add_argument("sources", nargs=1, metavar="SOURCE", help="such as COCO2017")
    parser.add_argument("id", metavar="ID", nargs="?", help="of the image (default: the first)")
    names = ("prompt_config", "types", "splits", "dataset_storage_path")
    _flags(parser, {**_CONFIG_FLAG, **{name: _CONTENT_FLAGS[name] for name in names}})
    _flags(parser.add_argument_group("source"), _own_flags(sources.options()))
    _flags(parser, {"json": {"action": "store_true", "help": "for machines: context, messages"}})


def _add_run_arguments(parser: Parser) -> None:
    """What generate and estimate are told alike."""
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help=f"one or more of {', '.join(sources.names())}"
    )
    _flags(parser, _CONFIG_FLAG)
    _flags(parser.add_argument_group("model"), _MODEL_FLAGS)
    _flags(parser.add_argument_group("engine"), _own_flags(backends.engine_options()))
    _flags(parser.add_argument_group("source"), _own_flags(sources.options()))
    _flags(parser.add_argument_group("what to generate"), _CONTENT_FLAGS)
    _flags(parser.add_argument_group("sampling"), _SAMPLING_FLAGS)
    _flags(parser.add_argument_group("output"), _OUTPUT_FLAGS)
    _flags(parser.add_argument_group("how to run (changes no row)"), _RUNTIME_FLAGS)
    _flags(parser.add_argument_group("budget (run again to go on after it)"), _BUDGET_FLAGS)


_SEVERAL = {"nargs": "+", "action": "extend"}
_CONFIG_FLAG: dict[str, dict[str, Any]] = {
    "config": {
        "metavar": "FILE",
        "help": "YAML with sources and flags; those of the line go before",
    },
}
_MODEL_FLAGS: dict[str, dict[str, Any]] = {
    "model_source": {
        "default": "llama.cpp",
        "metavar": "NAME",
        "help": "openai (any OpenAI-compatible server), tgi (text-generation-inference), "
        "llama.cpp (a GGUF file; default), huggingface (transformers) or fake",
    },
    "model": {
        "help": "model name, GGUF file, Hugging Face repository or folder, or TGI server; "
        "llama.cpp without one runs SmolLM2-135M"
    },
    "base_url": {
        "metavar": "URL",
        "action": "append",
        "help": "server of the model source, as --openai_base_url or --tgi_url have it",
    },
    "openai_base_url": {
        "metavar": "URL",
        "action": "append",
        "help": "server, with or without /v1, or, where the API isn't there, its whole address "
        "with /chat/completions (default: OpenAI's, with the key in OPENAI_API_KEY); "
        "given again: one more with the same model",
    },
    "tgi_url": {
        "metavar": "URL",
        "action": "append",
        "help": "TGI server, such as http://localhost:8080 (a key, if it wants one, comes from "
        "TGI_API_KEY, or from HF_TOKEN for an endpoint at Hugging Face)",
    },
    "model_id": {
        "metavar": "ORG/NAME",
        "help": "the model's exact id on the Hub, if its terms can't be found by name or file",
    },
    "licenses": {
        "metavar": "FILE",
        "help": "YAML with licences and terms of your own, over those that are known here",
    },
    "context_window": {
        "type": int,
        "metavar": "TOKENS",
        "help": "room for prompt and answer together (default: the model's, as far as it is known)",
    },
    "dry_run": {
        "action": "store_true",
        "help": "a scripted stand-in answers: no model, no cost, rows of no use",
    },
}
# And the model sources that have a server.
_SERVER_FLAGS = {
    "base_url": ("openai", "tgi"),
    "openai_base_url": ("openai",),
    "tgi_url": ("tgi",),
}
_DEFAULT_DIR = "./cache"
_CONTENT_FLAGS: dict[str, dict[str, Any]] = {
    "prompt_config": {
        "metavar": "NAME",
        "help": "name or YAML file (default: the source's own; llava for COCO)",
    },
    "types": {**_SEVERAL, "metavar": "TYPE", "help": "instruction types (default: all)"},
    "splits": {**_SEVERAL, "metavar": "SPLIT", "help": "splits (default: train alone)"},
    "limit": {"type": int, "metavar": "N", "help": "first N images of each split"},
    "commercial": {
        "action": "store_const",
        "const": True,
        "help": "only images that may be used commercially, and only if the model's terms and all "
        "other licences allow the same of the rows",
    },
    "dataset_storage_path": {
        "default": _DEFAULT_DIR,
        "metavar": "DIR",
        "help": "where the annotation files are, one file or a folder; the published ones are "
        "downloaded only without it, and looked for in ./cache before",
    },
}
_SAMPLING_FLAGS: dict[str, dict[str, Any]] = {
    "temperature": {"type": float, "help": "0 is greedy (default: 0.7)"},
    "top_p": {"type": float, "help": "nucleus mass (default: 1)"},
    "max_tokens": {"type": int, "help": "longest answer (default: 1024)"},
    "seed": {"type": int, "help": "for sampling and choice of questions (default: none)"},
}
_RATE_FLAGS = ("requests_per_minute", "tokens_per_minute")
_OUTPUT_FLAGS: dict[str, dict[str, Any]] = {
    "output_path": {"metavar": "PATH", "help": "folder or file (default: by format)"},
    "output_format": {
        "choices": ("dataset", *export.FILE_FORMATS),
        "help": "dataset (a folder for the Hub; default), or the form of a trainer, as export "
        "writes it; .jsonl paths choose jsonl, .json paths llava-instruct",
    },
    "overwrite": {"action": "store_true", "help": "replace what another model, prompt config or "
                  "sampling made there, or what has more"},
    "show": {"type": int, "default": 0, "metavar": "N", "help": "print N rows at the end"},
}  # fmt: skip
_RUNTIME_FLAGS: dict[str, dict[str, Any]] = {
    "max_concurrency": {"type": int, "metavar": "N", "help": "requests in flight at most; a server "
                        "gets as many of them as it is found to take (default: 256)"},
    "requests_per_minute": {"type": float, "metavar": "N", "help": "requests sent a minute at most "
                            "(default: what the server is found to take)"},
    "tokens_per_minute": {"type": float, "metavar": "N", "help": "tokens of prompts and answers a "
                          "minute at most (default: what the server says)"},
    "timeout": {"type": float, "metavar": "S", "dest": "timeout_s", "help": "longest wait for one "
                "answer in seconds (default: 600)"},
    "max_retries": {"type": int, "metavar": "N", "help": "tries after the first (default: 8)"},
    "max_pause": {"type": float, "metavar": "S", "dest": "max_pause_s", "help": "longest pause "
                  "a server may ask for in seconds; a longer one ends the run (default: 3600)"},
    "batch_api": {"action": "store_const", "const": True, "help": "openai: through the Batch API, "
                  "half the price, within a day; may be stopped and run again at any time"},
    "yes": {"action": "store_true", "help": "go on without a question, whatever it may cost"},
    "partial": {"action": "store_const", "const": True, "help": "send nothing: write what is "
                "complete by now; the same command without it makes the rest"},
    "response_store": {
        "metavar": "FILE",
        "help": "finished answers (default: mminstruct/responses.sqlite in the Hugging Face cache)",
    },
}  # fmt: skip


_BUDGET_FLAGS: dict[str, dict[str, Any]] = {
    "max_requests": {"type": int, "metavar": "N", "help": "stop after N paid answers"},
    "max_cost": {"type": float, "metavar": "USD", "help": "stop before a run costs more"},
    "price_in": {"type": float, "metavar": "USD", "help": "price of a million prompt tokens "
                 "(default: from a price list, for the APIs that it knows)"},
    "price_out": {"type": float, "metavar": "USD", "help": "price of a million answer tokens"},
}  # fmt: skip
_ESTIMATE_FLAGS: dict[str, dict[str, Any]] = {
    "exact": {
        "action": "store_true",
        "help": "look at every request (default: a sample where there are over 2,000)",
    },
    "requests_per_second": {"type": float, "metavar": "N", "help": "throughput to expect"},
    "json": {"action": "store_true", "help": "for machines; ranges are [low, high], unknown null"},
}


def _own_flags(options: Mapping[str, tuple[Any, tuple[str, ...]]]) -> dict[str, dict[str, Any]]:
    """The flags for what backends, or sources, declare as their own options."""
    flags: dict[str, dict[str, Any]] = {}
    for name, (option, owners) in options.items():
        settings: dict[str, Any] = {"help": f"{', '.join(owners)}: {option.help}"}
        if option.type is bool:
            settings.update(action="store_const", const=True)
        elif option.type is list:
            settings.update(action="append", metavar="TEXT")
        else:
            kind = str if option.type is dict else option.type
            settings.update(type=kind, choices=option.choices)
            if option.choices is None:
                settings["metavar"] = "N" if option.type in (int, float) else "TEXT"
        flags[name] = settings
    return flags


def _flags(group: Any, flags: Mapping[str, dict[str, Any]]) -> None:
    """Add flags by all names that they have in Python too, with underscores and with dashes."""
    for name, settings in flags.items():
        kwargs = dict(settings)
        names = [n for n in (name, ALIASES.get(name, name)) if n == name or n not in flags]
        spellings = dict.fromkeys(
            f"--{n}" for name in names for n in (name, name.replace("_", "-"))
        )
        group.add_argument(*spellings, dest=kwargs.pop("dest", name), **kwargs)


def _generate(args: argparse.Namespace) -> int:
    output_format, path = _output(args)
    today = _today()
    if output_format == "dataset":
        release.check_output(path)
    else:
        export.check_output(path, output_format)
    for info in _source_infos(args):
        form = export.FORMATS.get(output_format)
        if form is not None and info.modality != "image" and not form.any_modality:
            raise UsageError(
                f"--output_format {output_format} holds images, and {info.name} is about "
                f"{info.modality}; use jsonl or dataset"
            )
    _quiet()
    with tempfile.TemporaryDirectory() as scratch:
        builders = _builders(args, scratch)
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
            _say("nothing was sent; --limit 100 asks for less, --yes goes on")
            return USAGE
        for builder in builders:
            builder.budget = budget
            try:
                _prepare(builder)
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
            release.write(splits, path, origin, report, overwrite=args.overwrite)
        else:
            terms = export.Terms(
                partial(cards.license_text, origin), verdict.commercial, origin.registry.allows
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
            if _print(_sample(row)) != DONE:
                break
    _say(f"{summary(report, export.summary(outcome))}{cost(builders)}; written to {path}")
    if args.dry_run:
        _say("a dry run: the text is a stand-in's, to look at the form and not to train on")
    code = _left_out(outcome)
    if report.unsent:
        _say("partial: the same command without --partial makes the rest")
        return INCOMPLETE
    if report.failures:
        first = next(entry for entry in report.entries() if entry["outcome"] == "failed")
        refused = report.failures["refused"]
        left = report.failures.total() - refused
        told = [f"{left} requests got no answer; run the same command again to ask for those"]
        told = told if left else []
        told += [f"{refused} requests were refused, as they would be again"] if refused else []
        _say(f"{'. '.join(told)}. The first: {first['detail']}")
        return INCOMPLETE
    return code


def _agreed(found: Estimate, yes: bool) -> bool:
    """Whether a run may go on: a large one is asked about where somebody can answer."""
    if yes or not found.is_large:
        return True
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        _say("a large run goes on unasked, as there is no terminal; see --max_cost")
        return True
    sys.stderr.write("mminstruct: go on? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _where_answers_are(path: Path, report: Report) -> str:
    """Where the answers of a run can be read that gave no row at all."""
    if report.files:
        return f"The answers are in {export.write_rejected(path, report)}"
    return "To read the answers, run the same command with --partial, which sends nothing"


def _left_out(outcome: export.Outcome) -> int:
    """Say where the rows are named that are not in a file, if there are any; the exit code."""
    if not outcome.missing:
        return DONE
    _say(f"what was left out, and why, is in {outcome.path}.missing.jsonl")
    return INCOMPLETE


def _made(builders: Sequence[InstructBuilder]) -> replacing.Made:
    """How the rows will be made, as far as it is known before anything is read."""
    plans, configs = [b.plan() for b in builders], [b.config for b in builders]
    plan, asked = plans[0], configs[0].type_names()
    values = {name: [str(getattr(plan.sampling, name))] for name in replacing.SAMPLING}
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


def _output(args: argparse.Namespace) -> tuple[str, Path]:
    suffix = Path(args.output_path or "").suffix
    chosen = args.output_format or _FORMAT_OF_SUFFIX.get(suffix, "dataset")
    if chosen == "dataset":
        export.check_folder_name(Path(args.output_path or ""), chosen)
    name = "instruct"
    default = Path(name) if chosen == "dataset" else export.default_output(name, chosen)
    return chosen, Path(args.output_path or default)


def _builders(args: argparse.Namespace, scratch: str) -> list[InstructBuilder]:
    """A builder for each source that was asked for."""
    if args.show < 0:
        raise UsageError(f"show: expected at least 0, got {args.show}")
    wanted = [info.name for info in _source_infos(args)]
    _check_source_options(args, wanted)
    return [_builder(name, args, scratch) for name in wanted]


def _source_infos(args: argparse.Namespace) -> list[SourceInfo]:
    """The sources that were asked for, each once, however it was written."""
    infos = (sources.get(name).info for name in args.sources)
    return list({info.name: info for info in infos}.values())


def _check_source_options(args: argparse.Namespace, wanted: Sequence[str]) -> None:
    """Raise UsageError for an option that none of the sources has."""
    for option, (_, owners) in sources.options().items():
        if getattr(args, option) is not None and not any(
            option in sources.options_of(name) for name in wanted
        ):
            raise UsageError(
                f"--{option} is an option of {', '.join(owners)}, got {', '.join(wanted)}; "
                "leave it out"
            )


def _builder(source: str, args: argparse.Namespace, scratch: str) -> InstructBuilder:
    """The builder for a source with the prompt config that was asked for."""
    given = {**_config(args, scratch), **_source_options(args, source)}
    return _builder_class(source, args.prompt_config)(config_name="default", **given)


def _source_options(args: argparse.Namespace, source: str) -> dict[str, Any]:
    """What was asked of a source beyond its defaults."""
    given = {option: getattr(args, option) for option in sources.options_of(source)}
    return {option: value for option, value in given.items() if value is not None}


def _builder_class(source: str, prompt_config: str | None) -> Callable[..., InstructBuilder]:
    """What makes the builder for a source with a prompt config, or with the source's own."""
    info = sources.get(source).info
    asked = prompt_config or info.prompt_config
    prompt_name = prompts.load(asked).name
    own = prompts.find(asked).parent == resources.folder("prompt_configs")
    script = loading.find(info.name, prompt_name) if own else None
    if script is not None:
        return partial(loading.builder_class(script), hash=loading.script_hash(script))
    return make(info.name, asked, f"{info.name}_{prompt_name}".lower().replace("+", "_"))


def _place(args: argparse.Namespace) -> dict[str, str]:
    """Where annotation files are, or where they may be before they are downloaded."""
    given: str = args.dataset_storage_path
    return {"default_dir" if given == _DEFAULT_DIR else "data_dir": given}


def _config(args: argparse.Namespace, scratch: str) -> dict[str, Any]:
    """The builder's arguments; what was not given is left to its defaults."""
    given = {
        **_place(args),
        "backend": "fake" if args.dry_run else args.model_source,
        "model": None if args.dry_run else args.model,
        "base_url": _base_urls(args),
        "response_store": str(Path(scratch) / "dry.sqlite")
        if args.dry_run
        else args.response_store,
        **{
            name: getattr(args, name)
            for name in ("context_window", "types", "splits", "limit", "temperature", "top_p")
            + ("model_id", "licenses", "commercial")
            + ("max_tokens", "seed", "max_concurrency", "timeout_s", "max_retries", "max_pause_s")
            + ("partial", *_BUDGET_FLAGS)
            + (() if args.dry_run else ("batch_api", *_RATE_FLAGS, *backends.engine_options()))
        },
    }
    if args.dry_run:
        given["cache_dir"] = scratch
    return {name: value for name, value in given.items() if value is not None}


def _base_urls(args: argparse.Namespace) -> list[str] | None:
    """The servers of the model source.

    Raises:
        UsageError: a flag for the servers of another one was given.
    """
    for flag, owners in _SERVER_FLAGS.items():
        if getattr(args, flag) and args.model_source.lower() not in owners:
            raise UsageError(
                f"--{flag} is for --model_source {' or '.join(owners)}, got --model_source "
                f"{args.model_source}; change the one or leave out the other"
            )
    return [url for flag in _SERVER_FLAGS for url in getattr(args, flag) or ()] or None


def _prepare(builder: InstructBuilder) -> None:
    """Generate, with the progress line; the first Ctrl-C waits for the answers in flight."""
    before = signal.getsignal(signal.SIGINT)

    def interrupted(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        in_flight = builder.stats.in_flight
        if in_flight:
            with contextlib.suppress(OSError):
                sys.stderr.write("\n")
            _say(f"stopping; {in_flight} answers are on their way (Ctrl-C again: leave now)")
        if builder.stats.retries:
            _say(f"{builder.stats.retries:,} retries, the last for: {builder.stats.retried_for}")
        raise KeyboardInterrupt

    builder.tells = False
    is_heard = before is not signal.SIG_IGN  # a shell has jobs in its background ignore it
    if is_heard:
        signal.signal(signal.SIGINT, interrupted)
    try:
        with warnings.catch_warnings(), ProgressLine(builder.stats, sys.stderr):
            warnings.simplefilter("ignore", IncompleteWarning)
            # A dry run throws its rows away, but not what it had to download.
            downloads = datasets.DownloadConfig(cache_dir=datasets.config.DOWNLOADED_DATASETS_PATH)
            builder.download_and_prepare(download_config=downloads)
    finally:
        if is_heard:
            signal.signal(signal.SIGINT, before)


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
        command=_command_again(args, registry, plan.endpoint),
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


def _command_again(
    args: argparse.Namespace, registry: licenses.Registry, endpoint: str | None
) -> str:
    """What makes the same rows, without keys, private servers and places on this machine.

    Args:
        args: as they were given.
        registry: tells which services may be named.
        endpoint: as rows have it; it may be from the environment, which nobody else has.
    """
    defaults = _parser().parse_args(["generate", *args.sources])
    words = ["mminstruct", "generate", *args.sources]
    own = (*backends.engine_options(), *sources.options())
    for name in (*_MODEL_FLAGS, *own, *_CONTENT_FLAGS, *_SAMPLING_FLAGS, "output_path"):
        value = getattr(args, name)
        if value == getattr(defaults, name):
            continue
        words.append(f"--{name}")
        if name in _SERVER_FLAGS:
            value = value[0]  # the others are replicas
        if value is not True:
            values = value if isinstance(value, list) else [value]
            words += [_public(name, str(one), registry) for one in values]
    from_environment = os.environ.get("OPENAI_BASE_URL") and not _base_urls(args)
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


def _quiet() -> None:
    """Our own line shows progress; warnings of libraries about it would tear it apart."""
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    notes = logging.getLogger("mminstruct")
    notes.handlers, notes.propagate = [_Notes(logging.INFO)], False
    notes.setLevel(logging.WARNING)
    for name in ("backends", "batch", "builder", "client", "hub", "release"):
        logging.getLogger(f"mminstruct.{name}").setLevel(logging.INFO)


class _Notes(logging.Handler):
    """Says what is logged, in place of the progress line, which comes again below it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say it."""
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
        _say(record.getMessage())


def _add_license(commands: Any) -> None:
    parser: Parser = commands.add_parser(
        "license",
        help="what rows may be used for, and why, before any money is spent",
        description="What the rows of sources and a model may be used for, and why. Nothing is "
        "asked of any model, and nothing is downloaded: images are counted where annotation files "
        "are at hand. Without --model_source, the model is one of your own: a GGUF file, a "
        "folder, or what the exact id on the Hub stands for.",
        allow_abbrev=False,
    )
    parser.set_defaults(command=_license)
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help=", ".join(sources.names()))
    names = ("model_source", "model", *_SERVER_FLAGS, "model_id", "licenses")
    flags = {**_CONFIG_FLAG, **{name: dict(_MODEL_FLAGS[name]) for name in names}}
    flags |= _CONTENT_FLAGS
    flags["model_source"]["default"] = None
    flags["json"] = {"action": "store_true", "help": "the same for machines"}
    _flags(parser, flags)
    _flags(parser.add_argument_group("source"), _own_flags(sources.options()))


def _license(args: argparse.Namespace) -> int:
    given: dict[str, Any] = {"licenses": args.licenses, "model_id": args.model_id, **_place(args)}
    wanted = _source_infos(args)
    _check_source_options(args, [info.name for info in wanted])
    by_name = args.model is not None and args.model_source is None
    if by_name and args.model_id is None:
        _check_model_file(args.model)
    if args.model_source is not None:
        given.update(backend=args.model_source, model=args.model, base_url=_base_urls(args))
    elif any(getattr(args, flag) for flag in _SERVER_FLAGS):
        raise UsageError("a server's URL says nothing without --model_source; give both")
    configs = [
        InstructConfig(
            source=info.name,
            source_options=_source_options(args, info.name),
            prompt_config=args.prompt_config or info.prompt_config,
            **{name: getattr(args, name) for name in ("types", "splits", "limit")},
            commercial=bool(args.commercial),
            **given,
        )
        for info in wanted
    ]
    registry = configs[0].registry()
    if by_name:
        model = licenses.named_model(registry, args.model, args.model_id)
        own = [licenses.compose(registry, [*c.text_parts(registry), *model]) for c in configs]
    else:
        own = [config.verdict() for config in configs]
    verdict = licenses.compose(registry, [part for each in own for part in each.parts])
    others = licenses.alternatives(registry, verdict)
    tally, images, are_counted = licenses.Tally(), [], True
    for config, terms in zip(configs, own, strict=True):
        counts, said, is_counted = _images(config, registry)
        config.expect(tally, counts, terms.commercial)
        images.append(said)
        are_counted &= is_counted
    use = tally.use(verdict.commercial, registry.allows, is_counted=are_counted)
    if args.json:
        facts = {"said": str(use), "images": images, "alternatives": others}
        counted = {"use": use.as_json() if are_counted else None}
        text = json.dumps({**verdict.as_json(), **counted, **facts}, indent=2) + "\n"
    else:
        text = licenses.explanation(verdict, use, images, others)
    code = _print(text)
    if by_name and args.model_id is None and (hint := _model_hint(registry, args.model)):
        _say(hint)
    return code


def _model_hint(registry: licenses.Registry, model: str) -> str | None:
    """What may be meant by a model that is neither a registered id nor on this machine."""
    if model in registry.models or Path(model).expanduser().exists():
        return None
    if near := registry.near(model):
        return f"no entry has the exact id {model}; did you mean {' or '.join(near[:3])}?"
    for name, url in backends.SERVERS.items():
        if price_of(model, [url]) is not None:
            more = "" if name == "openai" else f" --openai_base_url {url}"
            return f"{model} is at a service; for its terms, add --model_source openai{more}"
    return None


def _images(
    config: InstructConfig, registry: licenses.Registry
) -> tuple[Mapping[str | None, int], str, bool]:
    """Licence -> images of a source, in words too, and whether they were counted.

    They are where its annotation files are at hand; else these are the licences that its publisher
    names, each once, or None for nobody knows.
    """
    config.check()
    source = config.open_source()
    splits = config.split_names(source)
    where = f"{source.info.name}, {' and '.join(splits)}"
    files = {split: config.locate(source, split) for split in splits}
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    found = [config.contexts(source, f, s, cache)[0] for s, f in files.items() if f is not None]
    if len(found) == len(splits):
        counts = Counter(chain.from_iterable(map(media_licenses, found)))
        shares = ", ".join(f"{name or 'not known'} {n:,}" for name, n in counts.most_common())
        return counts, f"{where}: {shares}, counted in the annotation files", True
    first = (source.info.parts or (source.info,))[0]
    works = registry.image_works(first.name)
    names = [work.license for work in works] or [None]
    said = " or ".join(name or "a licence that is not known here" for name in names)
    notes = dict.fromkeys(f"; {work.note}" for work in works if work.note)
    return (
        dict.fromkeys(names, 1),
        f"{where}: {said}, as published{''.join(notes)}; not counted, as the annotation files are "
        f"not in {resources.shown(config.places()[0])} (--dataset_storage_path)",
        False,
    )


def _check_model_file(model: str) -> None:
    """Raise UsageError for a model that is written as a path, and isn't there."""
    is_path = model.endswith(".gguf") or model.startswith(("./", "../", "/", "~"))
    path = Path(model).expanduser()
    if is_path and not path.exists():
        raise UsageError(
            f"model {model}: there is no such file{lacking(path)}; give another path, or the "
            "model's exact id on the Hub"
        )


def _add_push(commands: Any) -> None:
    parser: Parser = commands.add_parser(
        "push",
        help="a dataset repository to the Hub, in one commit",
        description="Puts a folder that generate wrote on the Hub: rows, card, licence and all, in "
        "one commit, which also takes away what was there of an older release. What was sent is "
        "not sent again: after a stop, run the same command. The token comes from HF_TOKEN or from "
        "'hf auth login', another Hub than Hugging Face's from HF_ENDPOINT.",
        allow_abbrev=False,
    )
    parser.set_defaults(command=_push, kept="What was sent stays at the Hub")
    parser.add_argument("folder", metavar="OUT", help="the --output_path of generate")
    parser.add_argument("repo_id", metavar="USER/NAME", help="made if it isn't there")
    _flags(parser, _PUSH_FLAGS)


def _add_completion(commands: Any) -> None:
    parser = commands.add_parser(
        "completion",
        help="a script by which your shell completes commands and flags",
        description="Prints a script for your shell, such as for "
        'eval "$(mminstruct completion bash)" in ~/.bashrc. That of zsh goes into a file '
        "_mminstruct in a folder of $fpath, that of fish into "
        "~/.config/fish/completions/mminstruct.fish.",
    )
    parser.set_defaults(command=_completion)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def _completion(args: argparse.Namespace) -> int:
    import shtab

    parser = _parser()
    for action in (action for command in parser.commands().values() for action in command._actions):
        if action.dest == "sources":
            action.choices = list(sources.names())
        elif action.dest == "model" or action.metavar in ("FILE", "PATH", "DIR", "OUT"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return _print(shtab.complete(parser, args.shell))


_PUSH_FLAGS: dict[str, dict[str, Any]] = {
    "private": {"action": "store_true", "help": "make a private repository"},
    "revision": {"metavar": "TAG", "help": "tag for the new commit, such as v1.0"},
    "accept_license": {
        "metavar": "ID",
        "help": "answer for rows that may not be trained on, or of which that isn't known; ID is "
        "their licence, as the refusal names it",
    },
}


def _push(args: argparse.Namespace) -> int:
    _quiet()
    if not sys.stderr.isatty():
        disable_progress_bars()
    pushed = hub.push(
        args.folder,
        args.repo_id,
        private=args.private,
        revision=args.revision,
        accept_license=args.accept_license,
    )
    tag = f", tag {pushed.tag}" if pushed.tag else ""
    made = "pushed to" if pushed.is_new else "nothing new for"
    _say(f"{made} {pushed.url} (commit {pushed.commit[:8]}{tag})")
    return DONE


_EXPORT_FLAGS: dict[str, dict[str, Any]] = {
    "format": {
        "required": True,
        "choices": export.FORMATS,
        "help": "; ".join(f"{name}: for {form.reader}" for name, form in export.FORMATS.items()),
    },
    "output_path": {
        "metavar": "PATH",
        "help": "file, or folder of shards (default: by release and format)",
    },
    "overwrite": {"action": "store_true", "help": "replace what has other or more rows there"},
    "types": {**_SEVERAL, "metavar": "TYPE", "help": "instruction types (default: all)"},
    "splits": {**_SEVERAL, "metavar": "SPLIT", "help": "splits (default: all)"},
    "commercial": {
        "action": "store_true",
        "help": "only rows that may be used commercially, text and image together",
    },
}
_IMAGE_FLAGS: dict[str, dict[str, Any]] = {
    "images": {
        "default": "none",
        "choices": export.IMAGES,
        "help": "none: file names alone (default); url: addresses; path: files in --image_folder, "
        "which have to be there; embed: fetched from their publisher",
    },
    "image_folder": {
        "metavar": "DIR",
        "help": "where images are, or are fetched to (default then: images, beside the output)",
    },
    "image_licenses": {
        **_SEVERAL,
        "metavar": "ID",
        "help": "only rows whose image is under one of these; commercial: one that allows "
        "commercial use (default with embed); any (default else)",
    },
    "licenses": _MODEL_FLAGS["licenses"],
    "max_size": {"type": int, "metavar": "PX", "help": "embed: make longer sides this at most"},
    "max_concurrency": {"type": int, "metavar": "N", "help": "embed: images under way at once "
                        "(default: 16)"},
    "timeout": {"type": float, "metavar": "S", "dest": "timeout_s", "help": "embed: longest time "
                "for one attempt in seconds (default: 60)"},
    "max_retries": {"type": int, "metavar": "N", "help": "embed: tries after the first "
                    "(default: 5)"},
    "private_addresses": {"action": "store_const", "const": True, "help": "embed: fetch from "
                          "addresses of this machine and of private networks, too"},
}  # fmt: skip


def _add_export(commands: Any) -> None:
    parser: Parser = commands.add_parser(
        "export",
        help="a release in the form that a trainer reads, with or without images",
        description="Writes a dataset repository for a trainer. Rows that the trainer could not "
        "use are left out, counted, and named in PATH.missing.jsonl; the exit code is 1 then.",
        allow_abbrev=False,
    )
    parser.set_defaults(command=_export, kept="every image that was fetched is kept")
    parser.add_argument(
        "dataset", metavar="OUT", help="folder that generate wrote, or id on the Hub"
    )
    _flags(parser, {**_CONFIG_FLAG, **_EXPORT_FLAGS})
    _flags(parser.add_argument_group("images"), _IMAGE_FLAGS)


def _export(args: argparse.Namespace) -> int:
    _quiet()
    outcome = export.export(
        args.dataset,
        args.format,
        output_path=args.output_path,
        types=args.types,
        splits=args.splits,
        images=args.images,
        image_folder=args.image_folder,
        image_licenses=args.image_licenses,
        commercial=args.commercial,
        licenses_file=args.licenses,
        fetching=_fetching(args),
        overwrite=args.overwrite,
        progress=True,
    )
    _say(f"{export.summary(outcome)}; written to {outcome.path}")
    _say(str(outcome.use))
    return _left_out(outcome)


def _fetching(args: argparse.Namespace) -> Fetching | None:
    """How images are fetched, or None if nothing was said about it."""
    names = ("max_size", "max_concurrency", "timeout_s", "private_addresses")
    own = {name: getattr(args, name) for name in names}
    given = {name: value for name, value in own.items() if value is not None}
    if not given and args.max_retries is None:
        return None
    from mminstruct.images import Fetching  # with an HTTP client, which nothing else here needs

    if args.max_retries is not None:
        given["retry"] = replace(Fetching().retry, max_retries=args.max_retries)
    return Fetching(**given)


def _estimate(args: argparse.Namespace) -> int:
    _quiet()
    with tempfile.TemporaryDirectory() as scratch:
        builders = _builders(args, scratch)
        verdict = verdict_of([builder.config for builder in builders])
        _say(str(use_of(builders, verdict)))
        _say(f"model {builders[0].plan().model}; licence of the text: {verdict.name}")
        found = estimate.estimate(
            [part for builder in builders for part in builder.asked()],
            builders[0].terms(),
            exact=args.exact,
            requests_per_second=args.requests_per_second,
        )
    text = json.dumps(found.as_json(), indent=2) + "\n" if args.json else estimate.table(found)
    return _print(text)


def _show(args: argparse.Namespace) -> int:
    _quiet()
    (name,) = args.sources
    _check_source_options(args, [sources.get(name).info.name])
    given = {
        **_place(args),
        "types": args.types,
        "splits": args.splits,
        **{option: getattr(args, option) for option in sources.options_of(name)},
    }
    builder = _builder_class(name, args.prompt_config)(
        config_name="default",
        backend="fake",
        **{field: value for field, value in given.items() if value is not None},
    )
    found = preview.preview(builder, args.id)
    return _print(found.as_json() + "\n" if args.json else found.as_text())


def _list(args: argparse.Namespace) -> int:
    sections: dict[str, dict[str, str]] = {
        "sources": {name: sources.get(name).info.title for name in sources.names()},
        "prompt configs": {name: ", ".join(prompts.load(name).types) for name in prompts.names()},
        "builders": {name: _first_line(name) for name in loading.names()},
        "model sources": {name: backends.describe(name) for name in backends.names()},
    }
    lines = []
    for title, entries in sections.items():
        lines.append(f"{title}:\n")
        lines += [f"  {name:<28}{text}".rstrip() + "\n" for name, text in entries.items()]
    return _print("".join(lines))


def _first_line(builder: str) -> str:
    script = loading.script_of(f"builders/{builder}")
    return (loading.builder_class(script).__doc__ or "") if script else ""
