"""Flags -> arguments, and a run with its progress line."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from mminstruct import backends, sources
from mminstruct.cli.console import say
from mminstruct.cli.flags import DEFAULT_DIR, SERVER_FLAGS, config_of
from mminstruct.errors import UsageError
from mminstruct.reports.progress import ProgressLine
from mminstruct.resources import count_of

if TYPE_CHECKING:
    from mminstruct.builder import InstructBuilder


def config_arguments(args: argparse.Namespace, scratch: str) -> dict[str, Any]:
    """The arguments of `generate`; what was not given is left to its defaults.

    Args:
        args: as they were given.
        scratch: folder for what a dry run throws away.
    """
    if args.show < 0:
        raise UsageError(f"show: expected at least 0, got {args.show}")
    check_source_options(args, args.sources)
    own = (*backends.engine_options(), *sources.options())
    given = {**config_of(args), **{name: getattr(args, name) for name in own}}
    if given["shard"] == "auto":
        given["shard"] = find_shard(os.environ)
    given |= {"backend": args.model_source, "base_url": read_base_urls(args), **name_places(args)}
    if args.dry_run:
        rates = ("requests_per_minute", "tokens_per_minute")
        for name in ("model", "batch_api", *rates, *backends.engine_options()):
            given[name] = None
        given["response_store"] = str(Path(scratch) / "dry.sqlite")
        # What a stand-in says is false everywhere; without it there would be no rows to look at.
        given |= {"backend": "fake", "cache_dir": scratch, "check": "report"}
    return {name: value for name, value in given.items() if value is not None}


def find_shard(environment: Mapping[str, str]) -> str:
    """The shard of a task of a Slurm array, or of a process that has a rank among others.

    Raises:
        UsageError: this is neither, or both, or not all tasks of an array are there.
    """
    of_array = {name: environment.get(f"SLURM_ARRAY_TASK_{name}") for name in _OF_ARRAY}
    rank, world = environment.get("RANK"), environment.get("WORLD_SIZE")
    is_array, is_ranked = of_array["ID"] is not None, rank is not None and world not in (None, "1")
    if is_array == is_ranked:
        given = ("SLURM_ARRAY_TASK_ID", "RANK", "WORLD_SIZE")
        found = [f"{name}={environment[name]}" for name in given if name in environment]
        raise UsageError(
            "--shard auto: expected the variables of a Slurm array (SLURM_ARRAY_TASK_ID), or RANK "
            f"and WORLD_SIZE of several, got {', '.join(found) or 'neither'}; give --shard I/N"
        )
    if is_ranked:
        return f"{rank}/{world}"
    number, count, low, high, step = (int(value or 1) for value in of_array.values())
    if count < 2 or high - low != (count - 1) * step:
        raise UsageError(
            f"--shard auto: expected all tasks of a Slurm array, such as 0-3, got {count} of them, "
            f"{low} to {high}; to run some again, give --shard I/N as they had it"
        )
    return f"{(number - low) // step}/{count}"


_OF_ARRAY = ("ID", "COUNT", "MIN", "MAX", "STEP")


def check_source_options(args: argparse.Namespace, wanted: Sequence[str]) -> None:
    """Raise UsageError for an option that none of the sources has."""
    for option, (_, owners) in sources.options().items():
        if getattr(args, option) is not None and not any(
            option in sources.options_of(name) for name in wanted
        ):
            raise UsageError(
                f"--{option} is an option of {', '.join(owners)}, got "
                f"{', '.join(wanted) or 'no such source'}; leave it out"
            )


def choose_source_options(args: argparse.Namespace, source: str) -> dict[str, Any]:
    """What was asked of a source beyond its defaults."""
    given = {option: getattr(args, option) for option in sources.options_of(source)}
    return {option: value for option, value in given.items() if value is not None}


def name_places(args: argparse.Namespace) -> dict[str, str]:
    """Where annotation files are, or where they may be before they are downloaded."""
    given: str = args.dataset_storage_path
    return {"default_dir" if given == DEFAULT_DIR else "data_dir": given}


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
    import datasets  # which takes a second

    from mminstruct.builder import IncompleteWarning

    before = signal.getsignal(signal.SIGINT)

    def interrupted(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stats = builder.stats
        if stats.in_flight:
            with contextlib.suppress(OSError):
                sys.stderr.write("\n")
            on_their_way = count_of(stats.in_flight, "answer is on its", "answers are on their")
            say(f"stopping; {on_their_way} way (Ctrl-C again: leave now)")
        if stats.retries:
            retries = count_of(stats.retries, "retry", "retries")
            say(f"{retries}, the last for: {stats.retried_for}")
        raise KeyboardInterrupt

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
