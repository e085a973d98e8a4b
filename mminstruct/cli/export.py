"""``mminstruct export``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mminstruct import export
from mminstruct.cli.arguments import Parser
from mminstruct.cli.console import DONE, INCOMPLETE, quiet_libraries, say
from mminstruct.cli.flags import CONFIG_FLAG, MODEL_FLAGS, SEVERAL, add_flags

if TYPE_CHECKING:
    from mminstruct.fetching.images import Fetching


def tell_left_out(outcome: export.Outcome) -> int:
    """Say where the rows are named that are not in a file, if there are any; the exit code."""
    if not outcome.missing:
        return DONE
    say(f"what was left out, and why, is in {outcome.path}.missing.jsonl")
    return INCOMPLETE


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
    "types": {**SEVERAL, "metavar": "TYPE", "help": "instruction types (default: all)"},
    "splits": {**SEVERAL, "metavar": "SPLIT", "help": "splits (default: all)"},
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
        **SEVERAL,
        "metavar": "ID",
        "help": "only rows whose image is under one of these; commercial: one that allows "
        "commercial use (default with embed); any (default else)",
    },
    "licenses": MODEL_FLAGS["licenses"],
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


def add_arguments(parser: Parser) -> None:
    """Add those of the command."""
    parser.description = (
        "Writes a dataset repository for a trainer. Rows that the trainer could not "
        "use are left out, counted, and named in PATH.missing.jsonl; the exit code is 1 then."
    )
    parser.set_defaults(command=_export, kept="every image that was fetched is kept")
    parser.add_argument(
        "dataset", metavar="OUT", help="folder that generate wrote, or id on the Hub"
    )
    add_flags(parser, {**CONFIG_FLAG, **_EXPORT_FLAGS})
    add_flags(parser.add_argument_group("images"), _IMAGE_FLAGS)


def _export(args: argparse.Namespace) -> int:
    quiet_libraries()
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
    )
    say(f"{export.summary(outcome)}; written to {outcome.path}")
    say(str(outcome.use))
    return tell_left_out(outcome)


def _fetching(args: argparse.Namespace) -> Fetching | None:
    """How images are fetched, or None if nothing was said about it."""
    names = ("max_size", "max_concurrency", "timeout_s", "private_addresses")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if not given and args.max_retries is None:
        return None
    from mminstruct.fetching.images import Fetching

    if args.max_retries is not None:
        given["retry"] = replace(Fetching().retry, max_retries=args.max_retries)
    return Fetching(**given)
