"""``mminstruct show``."""

from __future__ import annotations

import argparse

from mminstruct import sources
from mminstruct.cli.arguments import Parser
from mminstruct.cli.console import print_text, quiet_libraries
from mminstruct.cli.flags import (
    CONFIG_FLAG,
    CONTENT_FLAGS,
    SAMPLING_FLAGS,
    add_flags,
    flags_of_options,
)
from mminstruct.cli.runs import check_source_options, name_places
from mminstruct.generation import make_builders
from mminstruct.reports import preview
from mminstruct.sources import find_infos


def add_arguments(parser: Parser) -> None:
    """Add those of the command."""
    parser.description = (
        "Prints one image, motion ... with its annotations as a model gets them, "
        "for each instruction type."
    )
    parser.set_defaults(command=_show)
    parser.add_argument("sources", nargs=1, metavar="SOURCE", help="such as COCO2017")
    parser.add_argument("id", metavar="ID", nargs="?", help="of the image (default: the first)")
    names = ("prompt_config", "types", "splits", "dataset_storage_path", "seed")
    known = {**CONTENT_FLAGS, **SAMPLING_FLAGS}
    add_flags(parser, {**CONFIG_FLAG, **{name: known[name] for name in names}})
    add_flags(parser.add_argument_group("source"), flags_of_options(sources.options()))
    add_flags(parser, {"json": {"action": "store_true", "help": "for machines: context, messages"}})


def _show(args: argparse.Namespace) -> int:
    quiet_libraries()
    check_source_options(args, args.sources)
    names = ("prompt_config", "types", "splits", "seed", *sources.options())
    given = {"backend": "fake", **name_places(args), **{n: getattr(args, n) for n in names}}
    given = {name: value for name, value in given.items() if value is not None}
    (builder,) = make_builders(find_infos(args.sources, given), given)
    found = preview.preview(builder.recipe, builder.requests().values(), args.id)
    return print_text(found.as_json() + "\n" if args.json else found.as_text())
