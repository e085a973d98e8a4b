"""``mminstruct list``."""

from __future__ import annotations

import argparse

from mminstruct import backends, loading, prompts, sources
from mminstruct.cli.console import print_text


def list_builders(args: argparse.Namespace) -> int:
    """Print all that has a name; the exit code."""
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
    script = loading.script_of(f"builders/{builder}")
    return (loading.builder_class(script).__doc__ or "") if script else ""
