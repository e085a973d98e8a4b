"""The command line: arguments, environment, progress, exit codes.

Exit codes:

    0    everything asked for is there
    1    done, but some requests got no answer; run the same command again to ask for those
    2    a wrong argument, prompt config or annotation file; nothing was sent
    3    the run had to stop (server, key, disk); run the same command again to go on
    130  Ctrl-C (143: terminated); run the same command again to go on
"""

from __future__ import annotations

import argparse
import logging
import re
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import datasets

from mminstruct import (
    __version__,
    backends,
    licenses,
    loading,
    prompts,
    release,
    resources,
    sources,
)
from mminstruct.builder import IncompleteWarning, InstructBuilder, make, summary
from mminstruct.errors import (
    BackendError,
    MMInstructError,
    RunStopped,
    StoreError,
    did_you_mean,
)
from mminstruct.generate import Report
from mminstruct.progress import ProgressLine
from mminstruct.release import Origin

DONE, INCOMPLETE, USAGE, STOPPED, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143

_DEFAULT_OUTPUT = {
    "dataset": "instruct",
    "jsonl": "instruct.jsonl",
    "llava-instruct": "llava_instruct.json",
}
_FORMAT_OF_SUFFIX: dict[str, release.OutputFormat] = {".jsonl": "jsonl", ".json": "llava-instruct"}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line; the exit code."""
    args = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code: int = args.command(args)
        return code
    except KeyboardInterrupt as interrupt:
        _say("stopped. Everything that was answered is kept; run the same command again to go on.")
        return TERMINATED if interrupt.args == ("SIGTERM",) else INTERRUPTED
    except Exception as error:  # noqa: BLE001 (the one place: below here it is a traceback)
        known = _known(error)
        if known is None:
            raise
        _say(f"error: {known}")
        if isinstance(known, RunStopped | BackendError | StoreError | OSError):
            _say("everything that was answered is kept; run the same command again to go on.")
            return STOPPED
        return USAGE


def _known(error: BaseException) -> Exception | None:
    """The error to tell the user among an exception and what caused it, or None."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        current = current.__cause__ or current.__context__
    ours = [e for e in seen if isinstance(e, MMInstructError)]
    if ours:
        return next((e for e in ours if isinstance(e, StoreError)), ours[0])
    return next((e for e in seen if isinstance(e, OSError) and e.errno is not None), None)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt("SIGTERM")


def _say(text: str) -> None:
    sys.stderr.write(f"mminstruct: {text}\n")
    sys.stderr.flush()


class _Parser(argparse.ArgumentParser):
    """Names the nearest flag to a wrong one."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown:
            message += did_you_mean(unknown[1], self.flags())
        super().error(message)

    def flags(self) -> list[str]:
        """All long flags of this parser and of its commands."""
        found = [option for action in self._actions for option in action.option_strings]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found += [f for parser in action.choices.values() for f in parser.flags()]
        return [option for option in found if option.startswith("--")]


def _parser() -> _Parser:
    parser = _Parser(
        prog="mminstruct",
        description="Multimodal instruction data from annotations, with any LLM.",
        epilog="exit codes:" + (__doc__ or "").partition("Exit codes:")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mminstruct {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_generate(commands)
    listing = commands.add_parser("list", help="builders, sources, prompt configs and backends")
    listing.set_defaults(command=_list)
    return parser


def _add_generate(commands: Any) -> None:
    parser: _Parser = commands.add_parser(
        "generate",
        help="generate a dataset",
        description="Generate instruction data for one or more annotation sources.",
        allow_abbrev=False,
    )
    parser.set_defaults(command=_generate)
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help=f"one or more of {', '.join(sources.names())}"
    )
    _flags(parser.add_argument_group("model"), _MODEL_FLAGS)
    _flags(parser.add_argument_group("engine"), _engine_flags())
    _flags(parser.add_argument_group("what to generate"), _CONTENT_FLAGS)
    _flags(parser.add_argument_group("sampling"), _SAMPLING_FLAGS)
    _flags(parser.add_argument_group("output"), _OUTPUT_FLAGS)
    _flags(parser.add_argument_group("how to run (changes no row)"), _RUNTIME_FLAGS)


_MODEL_FLAGS: dict[str, dict[str, Any]] = {
    "model_source": {
        "default": "llama.cpp",
        "metavar": "NAME",
        "help": "openai (any OpenAI-compatible server), llama.cpp (a GGUF file; default) or fake",
    },
    "model": {"help": "model name or GGUF file; llama.cpp without one runs SmolLM2-135M"},
    "openai_base_url": {
        "metavar": "URL",
        "action": "append",
        "help": "server, with or without /v1 (default: OpenAI's, with the key in OPENAI_API_KEY)",
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
_CONTENT_FLAGS: dict[str, dict[str, Any]] = {
    "prompt_config": {
        "default": "llava",
        "metavar": "NAME",
        "help": "name or YAML file (default: llava)",
    },
    "types": {"nargs": "+", "metavar": "TYPE", "help": "instruction types (default: all)"},
    "splits": {"nargs": "+", "metavar": "SPLIT", "help": "splits (default: train alone)"},
    "limit": {"type": int, "metavar": "N", "help": "first N images of each split"},
    "dataset_storage_path": {
        "default": "./cache",
        "metavar": "DIR",
        "help": "where annotation files are looked for (default: ./cache) before downloading",
    },
}
_SAMPLING_FLAGS: dict[str, dict[str, Any]] = {
    "temperature": {"type": float, "help": "0 is greedy (default: 0.7)"},
    "top_p": {"type": float, "help": "nucleus mass (default: 1)"},
    "max_tokens": {"type": int, "help": "longest answer (default: 1024)"},
    "seed": {"type": int, "help": "for sampling and choice of questions (default: none)"},
}
_OUTPUT_FLAGS: dict[str, dict[str, Any]] = {
    "output_path": {"metavar": "PATH", "help": "folder or file (default: by format)"},
    "output_format": {
        "choices": release.FORMATS,
        "help": "dataset (a folder for the Hub; default), jsonl, or llava-instruct for LLaVA's "
        "trainer; .jsonl and .json paths choose the latter two",
    },
    "show": {"type": int, "default": 0, "metavar": "N", "help": "print N rows at the end"},
}
_RUNTIME_FLAGS: dict[str, dict[str, Any]] = {
    "max_concurrency": {"type": int, "metavar": "N", "help": "requests in flight (default: 64)"},
    "timeout": {"type": float, "metavar": "S", "dest": "timeout_s", "help": "longest wait for one "
                "answer in seconds (default: 600)"},
    "max_retries": {"type": int, "metavar": "N", "help": "tries after the first (default: 8)"},
    "response_store": {
        "metavar": "FILE",
        "help": "finished answers (default: mminstruct/responses.sqlite in the Hugging Face cache)",
    },
}  # fmt: skip


def _engine_flags() -> dict[str, dict[str, Any]]:
    """The flags for what backends declare as their own options."""
    flags: dict[str, dict[str, Any]] = {}
    for name, (option, owners) in backends.engine_options().items():
        settings: dict[str, Any] = {"help": f"{', '.join(owners)}: {option.help}"}
        if option.type is bool:
            settings.update(action="store_const", const=True)
        else:
            settings.update(type=option.type, choices=option.choices)
            if option.choices is None:
                settings["metavar"] = "N" if option.type in (int, float) else "TEXT"
        flags[name] = settings
    return flags


def _flags(group: Any, flags: Mapping[str, dict[str, Any]]) -> None:
    """Add flags, each in the underscored and in the dashed spelling."""
    for name, settings in flags.items():
        kwargs = dict(settings)
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        group.add_argument(*spellings, dest=kwargs.pop("dest", name), **kwargs)


# --- generate ---------------------------------------------------------------------------------


def _generate(args: argparse.Namespace) -> int:
    output_format, path = _output(args)
    release.check_output(path, output_format)
    _quiet()
    with tempfile.TemporaryDirectory() as scratch:
        builders = [_builder(source, args, scratch) for source in dict.fromkeys(args.sources)]
        terms = builders[0].terms()
        _say(f"model {builders[0].plan().model}; licence of the text: {_verdict(builders)}")
        report, parts = Report(), []
        for builder in builders:
            _prepare(builder)
            report.add(builder.report)
            parts.append(builder.as_dataset())
        splits = {
            split: datasets.concatenate_datasets([part[split] for part in parts if split in part])
            for split in dict.fromkeys(split for part in parts for split in part)
        }
        release.write(splits, path, output_format, _origin(builders, args, terms), report)
        for row in _first_rows(splits, args.show):
            sys.stdout.write(_sample(row))
    _say(f"{summary(report)}; written to {path}")
    if report.failures:
        _say(
            f"{report.failures.total()} requests got no answer; "
            "run the same command again to ask for those, and for no other."
        )
        return INCOMPLETE
    return DONE


def _output(args: argparse.Namespace) -> tuple[release.OutputFormat, Path]:
    suffix = Path(args.output_path or "").suffix
    chosen: release.OutputFormat = args.output_format or _FORMAT_OF_SUFFIX.get(suffix, "dataset")
    return chosen, Path(args.output_path or _DEFAULT_OUTPUT[chosen])


def _builder(source: str, args: argparse.Namespace, scratch: str) -> InstructBuilder:
    """The builder for a source with the prompt config that was asked for."""
    name = sources.get(source).info.name
    found = prompts.find(args.prompt_config)
    prompt_name = prompts.load(args.prompt_config).name
    script = loading.script_of(f"builders/{name.lower()}_{prompt_name}")
    own = found.parent == resources.folder("prompt_configs")
    if script is not None and own:
        cls, code = loading.builder_class(script), loading.script_hash(script)
    else:
        cls, code = make(name, args.prompt_config, f"{name.lower()}_{prompt_name}"), None
    return cls(config_name="default", hash=code, **_config(args, scratch))


def _config(args: argparse.Namespace, scratch: str) -> dict[str, Any]:
    """The builder's arguments; what was not given is left to its defaults."""
    given = {
        "data_dir": args.dataset_storage_path,
        "backend": "fake" if args.dry_run else args.model_source,
        "model": None if args.dry_run else args.model,
        "base_url": args.openai_base_url,
        "response_store": str(Path(scratch) / "dry.sqlite")
        if args.dry_run
        else args.response_store,
        **{
            name: getattr(args, name)
            for name in ("context_window", "types", "splits", "limit", "temperature", "top_p")
            + ("max_tokens", "seed", "max_concurrency", "timeout_s", "max_retries")
            + (() if args.dry_run else tuple(backends.engine_options()))
        },
    }
    if args.dry_run:
        given["cache_dir"] = scratch
    return {name: value for name, value in given.items() if value is not None}


def _prepare(builder: InstructBuilder) -> None:
    """Generate, with the progress line; the first Ctrl-C waits for the answers in flight."""
    before = signal.getsignal(signal.SIGINT)

    def interrupted(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        in_flight = builder.stats.in_flight
        if in_flight:
            sys.stderr.write("\n")
            _say(f"stopping; {in_flight} answers are on their way (Ctrl-C again: leave now)")
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupted)
    try:
        with warnings.catch_warnings(), ProgressLine(builder.stats, sys.stderr):
            warnings.simplefilter("ignore", IncompleteWarning)
            # A dry run throws its rows away, but not what it had to download.
            downloads = datasets.DownloadConfig(cache_dir=datasets.config.DOWNLOADED_DATASETS_PATH)
            builder.download_and_prepare(download_config=downloads)
    finally:
        signal.signal(signal.SIGINT, before)


def _verdict(builders: Sequence[InstructBuilder]) -> str:
    text = licenses.strictest(builder.plan().license for builder in builders)
    terms = builders[0].terms()
    reasons = {
        "allowed": f"the annotations' own, as {terms.license} puts no duty on outputs",
        "unknown": "what the model's terms say about its outputs is not known here",
    }
    reason = reasons.get(
        terms.output_training,
        f"the model's terms ({terms.license}) restrict what outputs may train",
    )
    return f"{text} ({reason})"


def _origin(builders: Sequence[InstructBuilder], args: argparse.Namespace, terms: Any) -> Origin:
    plan = builders[0].plan()
    config = builders[0].config
    skipped: Counter[str] = Counter()
    for builder in builders:
        for report in builder.read_report.values():
            skipped.update(report.skipped)
    return Origin(
        sources=tuple(builder.plan().source for builder in builders),
        config=plan.config,
        types=prompts.type_names(plan.config, config.type_names()),
        backend=plan.backend,
        model=plan.model,
        license=licenses.strictest(builder.plan().license for builder in builders),
        terms=terms,
        settings={
            **builders[0].identity(),
            "model": plan.model,
            "temperature": f"{plan.sampling.temperature:g}",
            "top_p": f"{plan.sampling.top_p:g}",
            "max_tokens": str(plan.sampling.max_tokens),
            "seed": str(plan.sampling.seed),
            "mminstruct": __version__,
        },
        skipped=skipped,
    )


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
    head = f"\n--- {row['image']} ({row['type']})\n"
    names = {"user": "Q", "assistant": "A"}
    return head + "".join(f"{names[m['role']]}: {m['content']}\n" for m in row["messages"])


def _quiet() -> None:
    """Our own line shows progress; warnings of libraries about it would tear it apart."""
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    logging.getLogger("httpx2").setLevel(logging.WARNING)


# --- list -------------------------------------------------------------------------------------


def _list(args: argparse.Namespace) -> int:
    sections: dict[str, dict[str, str]] = {
        "sources": {name: sources.get(name).info.title for name in sources.names()},
        "prompt configs": {name: ", ".join(prompts.load(name).types) for name in prompts.names()},
        "builders": {name: _first_line(name) for name in loading.names()},
        "model sources": {name: backends.describe(name) for name in backends.names()},
    }
    for title, entries in sections.items():
        sys.stdout.write(f"{title}:\n")
        for name, text in entries.items():
            sys.stdout.write(f"  {name:<28}{text}".rstrip() + "\n")
    return DONE


def _first_line(builder: str) -> str:
    script = loading.script_of(f"builders/{builder}")
    return (loading.builder_class(script).__doc__ or "") if script else ""
