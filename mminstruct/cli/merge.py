"""``mminstruct merge``."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from mminstruct import export, generation
from mminstruct.cli.arguments import Parser
from mminstruct.cli.console import DONE, DRY_RUN, INCOMPLETE, quiet_libraries, say
from mminstruct.cli.flags import add_flags
from mminstruct.reports import quality_text
from mminstruct.rows.report import explain_failures, summary


def add_arguments(parser: Parser) -> None:
    """Add those of the command."""
    parser.description = (
        "Puts the parts of a release together that generate --shard wrote: the release that the "
        "run in one piece writes, file by file. Nothing is sent. The answers in the parts' folders "
        "go to the response store, so that no run asks for them again."
    )
    parser.set_defaults(command=_merge, kept="The parts are as they were")
    parser.add_argument(
        "parts",
        nargs="+",
        metavar="PART",
        help="OUT.parts/I-of-N of all shards; or an address of such, s3://bucket/OUT.parts/*-of-N",
    )
    parser.add_argument("output_path", metavar="OUT", help="folder of the release")
    add_flags(parser, _MERGE_FLAGS)


_MERGE_FLAGS: dict[str, dict[str, Any]] = {
    "response_store": {
        "metavar": "FILE",
        "help": "where the answers go (default: mminstruct/responses.sqlite in the Hugging Face "
        "cache)",
    },
    "overwrite": {"action": "store_true", "help": "replace what another run made there, or more"},
}


def _merge(args: argparse.Namespace) -> int:
    quiet_libraries()
    merged = generation.merge(
        args.parts,
        args.output_path,
        response_store=args.response_store,
        overwrite=args.overwrite,
    )
    assert merged.written is not None and merged.quality is not None  # as it has a path
    rows, path = (
        summary(merged.report, export.summary(merged.written)),
        shlex.quote(args.output_path),
    )
    say(f"{rows}; written to {merged.written.path}")
    in_short = quality_text.in_short(merged.quality, f"mminstruct report {path}")
    for line in [DRY_RUN] if merged.origin.is_dry_run else in_short:
        say(line)
    say(f"look: mminstruct view {path}")
    if merged.report.failures:
        without = " without --partial" if merged.report.unsent else ""
        shards = ", ".join(merged.unfinished)
        say(explain_failures(merged.report, f"run again shard {shards}{without}, and merge again"))
        return INCOMPLETE
    return DONE
