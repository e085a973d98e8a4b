"""Flags -> builders."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import datasets

from mminstruct import backends, loading, prompts, resources, sources
from mminstruct.builder import (
    IncompleteWarning,
    InstructBuilder,
    make,
)
from mminstruct.cli.console import say
from mminstruct.cli.flags import BUDGET_FLAGS, DEFAULT_DIR, RATE_FLAGS, SERVER_FLAGS
from mminstruct.errors import (
    UsageError,
)
from mminstruct.reports.progress import ProgressLine
from mminstruct.sources import SourceInfo


def make_builders(args: argparse.Namespace, scratch: str) -> list[InstructBuilder]:
    """A builder for each source that was asked for."""
    if args.show < 0:
        raise UsageError(f"show: expected at least 0, got {args.show}")
    wanted = [info.name for info in load_source_infos(args)]
    check_source_options(args, wanted)
    return [_builder(name, args, scratch) for name in wanted]


def load_source_infos(args: argparse.Namespace) -> list[SourceInfo]:
    """The sources that were asked for, each once, however it was written."""
    infos = (sources.get(name).info for name in args.sources)
    return list({info.name: info for info in infos}.values())


def check_source_options(args: argparse.Namespace, wanted: Sequence[str]) -> None:
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
    given = {**_config(args, scratch), **choose_source_options(args, source)}
    return find_builder_class(source, args.prompt_config)(config_name="default", **given)


def choose_source_options(args: argparse.Namespace, source: str) -> dict[str, Any]:
    """What was asked of a source beyond its defaults."""
    given = {option: getattr(args, option) for option in sources.options_of(source)}
    return {option: value for option, value in given.items() if value is not None}


def find_builder_class(source: str, prompt_config: str | None) -> Callable[..., InstructBuilder]:
    """What makes the builder for a source with a prompt config, or with the source's own."""
    info = sources.get(source).info
    asked = prompt_config or info.prompt_config
    prompt_name = prompts.load(asked).name
    own = prompts.find(asked).parent == resources.folder("prompt_configs")
    script = loading.find(info.name, prompt_name) if own else None
    if script is not None:
        return partial(loading.builder_class(script), hash=loading.script_hash(script))
    return make(info.name, asked, f"{info.name}_{prompt_name}".lower().replace("+", "_"))


def name_places(args: argparse.Namespace) -> dict[str, str]:
    """Where annotation files are, or where they may be before they are downloaded."""
    given: str = args.dataset_storage_path
    return {"default_dir" if given == DEFAULT_DIR else "data_dir": given}


def _config(args: argparse.Namespace, scratch: str) -> dict[str, Any]:
    """The builder's arguments; what was not given is left to its defaults."""
    given = {
        **name_places(args),
        "backend": "fake" if args.dry_run else args.model_source,
        "model": None if args.dry_run else args.model,
        "base_url": read_base_urls(args),
        "response_store": str(Path(scratch) / "dry.sqlite")
        if args.dry_run
        else args.response_store,
        **{
            name: getattr(args, name)
            for name in ("context_window", "types", "splits", "limit", "temperature", "top_p")
            + ("model_id", "licenses", "commercial")
            + ("max_tokens", "seed", "max_concurrency", "timeout_s", "max_retries", "max_pause_s")
            + ("partial", *BUDGET_FLAGS)
            + (() if args.dry_run else ("batch_api", *RATE_FLAGS, *backends.engine_options()))
        },
    }
    if args.dry_run:
        given["cache_dir"] = scratch
    return {name: value for name, value in given.items() if value is not None}


def read_base_urls(args: argparse.Namespace) -> list[str] | None:
    """The servers of the model source.

    Raises:
        UsageError: a flag for the servers of another one was given.
    """
    for flag, owners in SERVER_FLAGS.items():
        if getattr(args, flag) and args.model_source.lower() not in owners:
            raise UsageError(
                f"--{flag} is for --model_source {' or '.join(owners)}, got --model_source "
                f"{args.model_source}; change the one or leave out the other"
            )
    return [url for flag in SERVER_FLAGS for url in getattr(args, flag) or ()] or None


def prepare_builder(builder: InstructBuilder) -> None:
    """Generate, with the progress line; the first Ctrl-C waits for the answers in flight."""
    before = signal.getsignal(signal.SIGINT)

    def interrupted(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        in_flight = builder.stats.in_flight
        if in_flight:
            with contextlib.suppress(OSError):
                sys.stderr.write("\n")
            say(f"stopping; {in_flight} answers are on their way (Ctrl-C again: leave now)")
        if builder.stats.retries:
            say(f"{builder.stats.retries:,} retries, the last for: {builder.stats.retried_for}")
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
