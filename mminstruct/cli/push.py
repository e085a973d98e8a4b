"""``mminstruct push``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # not in its __all__

from mminstruct.cli.arguments import Parser
from mminstruct.cli.console import DONE, quiet_libraries, say
from mminstruct.cli.flags import add_flags
from mminstruct.releases import hub


def add_arguments(parser: Parser) -> None:
    """Add those of the command."""
    parser.description = (
        "Puts a folder that generate wrote on the Hub: rows, card, licence and all, in "
        "one commit, which also takes away what was there of an older release. What was sent is "
        "not sent again: after a stop, run the same command. The token comes from HF_TOKEN or from "
        "'hf auth login', another Hub than Hugging Face's from HF_ENDPOINT."
    )
    parser.set_defaults(command=_push, kept="What was sent stays at the Hub")
    parser.add_argument("folder", metavar="OUT", help="the --output_path of generate")
    parser.add_argument("repo_id", metavar="USER/NAME", help="made if it isn't there")
    add_flags(parser, _PUSH_FLAGS)


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
    quiet_libraries()
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
    say(f"{made} {pushed.url} (commit {pushed.commit[:8]}{tag})")
    return DONE
