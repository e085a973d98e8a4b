"""``mminstruct list``."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Mapping

from mminstruct import backends, loading, plugins, prompts, sources
from mminstruct.cli.arguments import Parser
from mminstruct.cli.console import print_text


def add_arguments(parser: Parser) -> None:
    """Add those of the command."""
    parser.set_defaults(command=_list)


def _list(args: argparse.Namespace) -> int:
    sections: dict[str, dict[str, str]] = {
        "sources": _tell(sources.names(), lambda name: sources.get(name).info.title),
        "prompt configs": _tell(prompts.names(), lambda name: ", ".join(prompts.load(name).types)),
        "builders": {name: _first_line(name) for name in loading.names()},
        "model sources": _tell(backends.names(), backends.describe),
    }
    lines = []
    for title, entries in sections.items():
        lines.append(f"{title}:\n")
        lines += [f"  {name:<28}{text}".rstrip() + "\n" for name, text in entries.items()]
    return print_text("".join(lines))


def _tell(names: Mapping[str, str], describe: Callable[[str], str]) -> dict[str, str]:
    """Name -> what it is; of what isn't the package's, where it is from: nothing of it is run."""
    return {
        name: describe(name) if where == plugins.OURS else f"(from {where})"
        for name, where in names.items()
    }


def _first_line(builder: str) -> str:
    """What its script says of it, without running that: it imports what takes a second."""
    script = loading.script_of(f"builders/{builder}")
    parsed = ast.parse(script.read_text("utf-8")) if script else ast.Module([], [])
    classes = (node for node in parsed.body if isinstance(node, ast.ClassDef))
    return next((ast.get_docstring(node) or "" for node in classes), "")
