"""``mminstruct estimate``."""

from __future__ import annotations

import argparse
import json
import tempfile
from typing import Any

from mminstruct.cli.arguments import Parser
from mminstruct.cli.console import print_text, quiet_libraries, say
from mminstruct.cli.flags import add_flags, add_run_arguments
from mminstruct.cli.runs import config_arguments
from mminstruct.generation import choose_output, make_builders
from mminstruct.recipe import introduce
from mminstruct.releases.parts import STORE, find_place
from mminstruct.reports import estimate, estimate_text
from mminstruct.sources import find_infos
from mminstruct.splits import Shard


def add_arguments(parser: Parser) -> None:
    """Add those of the command."""
    parser.description = (
        "Takes the arguments of generate and sends nothing to any model: how many "
        "requests, how many answers are in the store already, tokens, cost and time. Figures are "
        "for the whole run; cost and time are for what is not in the store."
    )
    parser.set_defaults(command=_estimate)
    add_run_arguments(parser)
    add_flags(parser.add_argument_group("estimate"), _ESTIMATE_FLAGS)


_ESTIMATE_FLAGS: dict[str, dict[str, Any]] = {
    "exact": {
        "action": "store_true",
        "help": "look at every request (default: a sample where there are over 2,000)",
    },
    "requests_per_second": {"type": float, "metavar": "N", "help": "throughput to expect"},
    "json": {"action": "store_true", "help": "for machines; ranges are [low, high], unknown null"},
}


def _estimate(args: argparse.Namespace) -> int:
    quiet_libraries()
    with tempfile.TemporaryDirectory() as scratch:
        given = config_arguments(args, scratch)
        if shard := given.get("shard"):  # has its answers in its part
            _, path = choose_output(args.output_path, args.output_format)
            given.setdefault("response_store", str(find_place(path, Shard.of(shard)) / STORE))
        builders = make_builders(find_infos(args.sources, given), given)
        asked = [(builder.recipe, list(builder.requests().values())) for builder in builders]
        for line in introduce(asked):
            say(line)
        found = estimate.estimate(
            asked, exact=args.exact, requests_per_second=args.requests_per_second
        )
    text = json.dumps(found.as_json(), indent=2) + "\n" if args.json else estimate_text.table(found)
    return print_text(text)
