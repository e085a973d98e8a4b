"""``mminstruct completion``."""

from __future__ import annotations

import argparse

from mminstruct import sources
from mminstruct.cli.arguments import Parser
from mminstruct.cli.console import print_text


def add_arguments(parser: Parser) -> None:
    """Add those of the command."""
    parser.description = (
        "Prints a script for your shell, such as for "
        'eval "$(mminstruct completion bash)" in ~/.bashrc. That of zsh goes into a file '
        "_mminstruct in a folder of $fpath, that of fish into "
        "~/.config/fish/completions/mminstruct.fish."
    )
    parser.set_defaults(command=_completion)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def _completion(args: argparse.Namespace) -> int:
    import shtab

    parser: Parser = args.parser
    commands = [command.fill() for command in parser.commands().values()]
    for action in (action for command in commands for action in command._actions):
        if action.dest == "sources":
            action.choices = list(sources.names())
        elif action.dest == "model" or action.metavar in ("FILE", "PATH", "DIR", "OUT"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # an attribute that shtab reads
    return print_text(shtab.complete(parser, args.shell))
