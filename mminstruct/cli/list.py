"""``mminstruct list``."""

from __future__ import annotations

import argparse
import ast

from mminstruct import backends, loading, prompts, sources
from mminstruct.cli.arguments import Parser
from mminstruct.cli.console import print_text


def add_arguments(parser: Parser) -> None:
    """Add those of the command."""
    parser.set_defaults(command=_list)


def _list(args: argparse.Namespace) -> int:
    sections: dict[str, dict[str, str]] = {
        "sources": {name: sources.get(name).info.title for name in sources.names()},
        "prompt configs": {name: ", ".join(prompts.load(name).types) for name in prompts.names()},
        "builders": {name: _first_line(name) for name in loading.names()},
        "model sources": {name: backends.describe(name) for name in backends.names()},
    }
    lines = []
    for title, entries in sections.items():
        lines.append(f"{title}:\n")
        lines += [f"  {name:<28}{text}".rstrip() + "\n" for name, text in entries.items()]
    return print_text("".join(lines))


def _first_line(builder: str) -> str:
    """What its script says of it, without running that: it imports what takes a second."""
    script = loading.script_of(f"builders/{builder}")
    parsed = ast.parse(script.read_text("utf-8")) if script else ast.Module([], [])
    classes = (node for node in parsed.body if isinstance(node, ast.ClassDef))
    return next((ast.get_docstring(node) or "" for node in classes), "")
