"""``mminstruct describe``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import yaml

from mminstruct import sources
from mminstruct.cli.arguments import Parser
from mminstruct.cli.console import print_text, quiet_libraries
from mminstruct.cli.flags import add_flags, flags_of_options
from mminstruct.errors import UsageError
from mminstruct.sources import ReadReport, own


def add_arguments(parser: Parser) -> None:
    """Add those of the command."""
    parser.description = (
        "Looks at a file, a folder or a dataset of the Hub and prints the description that would "
        "be used of it, for a YAML file to go on from: mminstruct describe ./export > mine.yaml"
    )
    parser.set_defaults(command=_describe)
    parser.add_argument("path", metavar="PATH", help="what generate would be given")
    options = {n: option for n, option in sources.options().items() if n in own.OPTIONS}
    add_flags(parser.add_argument_group("source"), flags_of_options(options))


def _describe(args: argparse.Namespace) -> int:
    quiet_libraries()
    logging.getLogger("mminstruct").setLevel(logging.ERROR)  # what it finds is in what it prints
    if args.path.upper() in sources.names() and not Path(args.path).exists():
        raise UsageError(
            f"{args.path}: expected a path of your own data, got a source that needs no "
            f"description; see mminstruct show {args.path}"
        )
    given = {option: getattr(args, option) for option in own.OPTIONS}
    chosen = {option: value for option, value in given.items() if value is not None}
    source = own.open_source(args.path, chosen)
    lines = []
    for split in source.info.splits:
        report = ReadReport.of(source.info.modality)
        for _ in map(report.keep, source.read(source.locate([], split), report)):
            pass
        kept = ", ".join(f"{count:,} x {kind}" for kind, count in report.kept.items() if count)
        lines.append(f"# {split}: {kept or 'nothing'}")
        lines += [f"# left out: {report.line(reason)}" for reason in report.skipped]
    data = {**own.describe(args.path, chosen)[0], **source.found}
    lines += [f"# {key}: not declared" for key in _DECLARED if not data.get(key)]
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
    return print_text(text + "".join(f"{line}\n" for line in lines))


_DECLARED = ("license", "image_license", "attribution")
