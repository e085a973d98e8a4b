"""The flags of a run."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from typing import Any

from mminstruct import backends, sources
from mminstruct.cli.arguments import Parser
from mminstruct.config import ALIASES, choices_of, flags, kinds_of
from mminstruct.schema import Option


def add_run_arguments(parser: Parser) -> None:
    """What generate and estimate are told alike."""
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help=f"one or more of {', '.join(sources.names())}"
    )
    add_flags(parser, CONFIG_FLAG)
    add_flags(parser.add_argument_group("model"), MODEL_FLAGS)
    add_flags(parser.add_argument_group("engine"), flags_of_options(backends.engine_options()))
    add_flags(parser.add_argument_group("source"), flags_of_options(sources.options()))
    add_flags(parser.add_argument_group("what to generate"), CONTENT_FLAGS)
    add_flags(parser.add_argument_group("sampling"), SAMPLING_FLAGS)
    add_flags(parser.add_argument_group("output"), _output_flags())
    running = parser.add_argument_group("how to run (changes no row)")
    add_flags(running, _RUNTIME_FLAGS)
    running.add_argument(
        "-v", "--verbose", action="store_true", help="say what slows a run down, too, and why"
    )
    add_flags(
        parser.add_argument_group("budget (run again to go on after it)"),
        _flags_of_fields("budget"),
    )


SEVERAL = {"nargs": "+", "action": "extend"}
CONFIG_FLAG: dict[str, dict[str, Any]] = {
    "config": {
        "metavar": "FILE",
        "help": "YAML with sources and flags; those of the line go before",
    },
}
DEFAULT_DIR = "./cache"


def _settings(
    kinds: Collection[Any], help: str, metavar: str | None, choices: Collection[Any] | None = None
) -> dict[str, Any]:
    """What argparse is told of a value of these types, which is None where it isn't given."""
    if bool in kinds:
        return {"help": help, "action": "store_const", "const": True}
    settings = {"help": help, "metavar": None if choices else metavar, "choices": choices}
    if list[str] in kinds and str not in kinds:
        return settings | SEVERAL
    if list in kinds or list[str] in kinds:
        return settings | {"action": "append"}
    return settings | {"type": next((kind for kind in (int, float) if kind in kinds), str)}


def _flags_of_fields(group: str) -> dict[str, dict[str, Any]]:
    """The flags of a group, for fields of `InstructConfig`."""
    return {
        name: _settings(kinds_of(field), flag.help or "", flag.metavar, choices_of(field))
        | ({"dest": field.name} if name == field.name.removesuffix("_s") else {})
        for name, (field, flag) in flags().items()
        if flag.group == group
    }


MODEL_FLAGS = {
    **_flags_of_fields("model"),
    "dry_run": {
        "action": "store_true",
        "help": "a scripted stand-in answers: no model, no cost, rows of no use",
    },
}
MODEL_FLAGS["model_source"]["default"] = "llama.cpp"
# And the model sources that have a server.
SERVER_FLAGS = {name: flag.owners for name, (_, flag) in flags().items() if flag.owners}
CONTENT_FLAGS = {
    **_flags_of_fields("content"),
    "dataset_storage_path": {
        "default": DEFAULT_DIR,
        "metavar": "DIR",
        "help": "where the annotation files are, one file or a folder; the published ones are "
        "downloaded only without it, and looked for in ./cache before",
    },
}
SAMPLING_FLAGS = _flags_of_fields("sampling")
_RUNTIME_FLAGS = {
    **_flags_of_fields("runtime"),
    "yes": {"action": "store_true", "help": "go on without a question, whatever it may cost"},
}


def _output_flags() -> dict[str, dict[str, Any]]:
    from mminstruct import export  # which takes a second

    return {
        "output_path": {"metavar": "PATH", "help": "folder or file (default: by format)"},
        "output_format": {
            "choices": ("dataset", *export.FILE_FORMATS),
            "help": "dataset (a folder for the Hub; default), or the form of a trainer, as export "
            "writes it; .jsonl paths choose jsonl, .json paths llava-instruct",
        },
        "overwrite": {
            "action": "store_true",
            "help": "replace what another model, prompt config or sampling made there, or what "
            "has more",
        },
        "show": {"type": int, "default": 0, "metavar": "N", "help": "print N rows at the end"},
    }


def config_of(args: argparse.Namespace) -> dict[str, Any]:
    """Field of `InstructConfig` -> what its flag of the same name was given, or None."""
    return {
        field.name: getattr(args, field.name)
        for name, (field, _) in flags().items()
        if name == field.name.removesuffix("_s")
    }


def flags_of_options(
    options: Mapping[str, tuple[Option, tuple[str, ...]]],
) -> dict[str, dict[str, Any]]:
    """The flags for what backends, or sources, declare as their own options."""
    return {
        name: _settings(
            (option.type,),
            f"{', '.join(owners)}: {option.help}",
            "N" if option.type in (int, float) else "TEXT",
            option.choices,
        )
        for name, (option, owners) in options.items()
    }


def add_flags(group: Any, settings: Mapping[str, dict[str, Any]]) -> None:
    """Add flags by all names that they have in Python too, with underscores and with dashes."""
    for name, given in settings.items():
        kwargs = dict(given)
        names = [n for n in (name, ALIASES.get(name, name)) if n == name or n not in settings]
        spellings = dict.fromkeys(
            f"--{n}" for name in names for n in (name, name.replace("_", "-"))
        )
        group.add_argument(*spellings, dest=kwargs.pop("dest", name), **kwargs)
