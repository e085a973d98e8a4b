"""The flags of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mminstruct import backends, export, sources
from mminstruct.cli.arguments import Parser
from mminstruct.config import ALIASES


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
    add_flags(parser.add_argument_group("output"), _OUTPUT_FLAGS)
    add_flags(parser.add_argument_group("how to run (changes no row)"), _RUNTIME_FLAGS)
    add_flags(parser.add_argument_group("budget (run again to go on after it)"), BUDGET_FLAGS)


SEVERAL = {"nargs": "+", "action": "extend"}
CONFIG_FLAG: dict[str, dict[str, Any]] = {
    "config": {
        "metavar": "FILE",
        "help": "YAML with sources and flags; those of the line go before",
    },
}
MODEL_FLAGS: dict[str, dict[str, Any]] = {
    "model_source": {
        "default": "llama.cpp",
        "metavar": "NAME",
        "help": "openai (any OpenAI-compatible server), tgi (text-generation-inference), "
        "llama.cpp (a GGUF file; default), huggingface (transformers) or fake",
    },
    "model": {
        "help": "model name, GGUF file, Hugging Face repository or folder, or TGI server; "
        "llama.cpp without one runs SmolLM2-135M"
    },
    "base_url": {
        "metavar": "URL",
        "action": "append",
        "help": "server of the model source, as --openai_base_url or --tgi_url have it",
    },
    "openai_base_url": {
        "metavar": "URL",
        "action": "append",
        "help": "server, with or without /v1, or, where the API isn't there, its whole address "
        "with /chat/completions (default: OpenAI's, with the key in OPENAI_API_KEY); "
        "given again: one more with the same model",
    },
    "tgi_url": {
        "metavar": "URL",
        "action": "append",
        "help": "TGI server, such as http://localhost:8080 (a key, if it wants one, comes from "
        "TGI_API_KEY, or from HF_TOKEN for an endpoint at Hugging Face)",
    },
    "model_id": {
        "metavar": "ORG/NAME",
        "help": "the model's exact id on the Hub, if its terms can't be found by name or file",
    },
    "licenses": {
        "metavar": "FILE",
        "help": "YAML with licences and terms of your own, over those that are known here",
    },
    "context_window": {
        "type": int,
        "metavar": "TOKENS",
        "help": "room for prompt and answer together (default: the model's, as far as it is known)",
    },
    "dry_run": {
        "action": "store_true",
        "help": "a scripted stand-in answers: no model, no cost, rows of no use",
    },
}
# And the model sources that have a server.
SERVER_FLAGS = {
    "base_url": ("openai", "tgi"),
    "openai_base_url": ("openai",),
    "tgi_url": ("tgi",),
}
DEFAULT_DIR = "./cache"
CONTENT_FLAGS: dict[str, dict[str, Any]] = {
    "prompt_config": {
        "metavar": "NAME",
        "help": "name or YAML file (default: the source's own; llava for COCO)",
    },
    "types": {**SEVERAL, "metavar": "TYPE", "help": "instruction types (default: all)"},
    "splits": {**SEVERAL, "metavar": "SPLIT", "help": "splits (default: train alone)"},
    "limit": {"type": int, "metavar": "N", "help": "first N images of each split"},
    "commercial": {
        "action": "store_const",
        "const": True,
        "help": "only images that may be used commercially, and only if the model's terms and all "
        "other licences allow the same of the rows",
    },
    "dataset_storage_path": {
        "default": DEFAULT_DIR,
        "metavar": "DIR",
        "help": "where the annotation files are, one file or a folder; the published ones are "
        "downloaded only without it, and looked for in ./cache before",
    },
}
SAMPLING_FLAGS: dict[str, dict[str, Any]] = {
    "temperature": {"type": float, "help": "0 is greedy (default: 0.7)"},
    "top_p": {"type": float, "help": "nucleus mass (default: 1)"},
    "max_tokens": {"type": int, "help": "longest answer (default: 1024)"},
    "seed": {"type": int, "help": "for sampling and choice of questions (default: none)"},
}
RATE_FLAGS = ("requests_per_minute", "tokens_per_minute")
_OUTPUT_FLAGS: dict[str, dict[str, Any]] = {
    "output_path": {"metavar": "PATH", "help": "folder or file (default: by format)"},
    "output_format": {
        "choices": ("dataset", *export.FILE_FORMATS),
        "help": "dataset (a folder for the Hub; default), or the form of a trainer, as export "
        "writes it; .jsonl paths choose jsonl, .json paths llava-instruct",
    },
    "overwrite": {"action": "store_true", "help": "replace what another model, prompt config or "
                  "sampling made there, or what has more"},
    "show": {"type": int, "default": 0, "metavar": "N", "help": "print N rows at the end"},
}  # fmt: skip
_RUNTIME_FLAGS: dict[str, dict[str, Any]] = {
    "max_concurrency": {"type": int, "metavar": "N", "help": "requests in flight at most; a server "
                        "gets as many of them as it is found to take (default: 256)"},
    "requests_per_minute": {"type": float, "metavar": "N", "help": "requests sent a minute at most "
                            "(default: what the server is found to take)"},
    "tokens_per_minute": {"type": float, "metavar": "N", "help": "tokens of prompts and answers a "
                          "minute at most (default: what the server says)"},
    "timeout": {"type": float, "metavar": "S", "dest": "timeout_s", "help": "longest wait for one "
                "answer in seconds (default: 600)"},
    "max_retries": {"type": int, "metavar": "N", "help": "tries after the first (default: 8)"},
    "max_pause": {"type": float, "metavar": "S", "dest": "max_pause_s", "help": "longest pause "
                  "a server may ask for in seconds; a longer one ends the run (default: 3600)"},
    "batch_api": {"action": "store_const", "const": True, "help": "openai: through the Batch API, "
                  "half the price, within a day; may be stopped and run again at any time"},
    "yes": {"action": "store_true", "help": "go on without a question, whatever it may cost"},
    "partial": {"action": "store_const", "const": True, "help": "send nothing: write what is "
                "complete by now; the same command without it makes the rest"},
    "response_store": {
        "metavar": "FILE",
        "help": "finished answers (default: mminstruct/responses.sqlite in the Hugging Face cache)",
    },
}  # fmt: skip
BUDGET_FLAGS: dict[str, dict[str, Any]] = {
    "max_requests": {"type": int, "metavar": "N", "help": "stop after N paid answers"},
    "max_cost": {"type": float, "metavar": "USD", "help": "stop before a run costs more"},
    "price_in": {"type": float, "metavar": "USD", "help": "price of a million prompt tokens "
                 "(default: from a price list, for the APIs that it knows)"},
    "price_out": {"type": float, "metavar": "USD", "help": "price of a million answer tokens"},
}  # fmt: skip


def flags_of_options(
    options: Mapping[str, tuple[Any, tuple[str, ...]]],
) -> dict[str, dict[str, Any]]:
    """The flags for what backends, or sources, declare as their own options."""
    flags: dict[str, dict[str, Any]] = {}
    for name, (option, owners) in options.items():
        settings: dict[str, Any] = {"help": f"{', '.join(owners)}: {option.help}"}
        if option.type is bool:
            settings.update(action="store_const", const=True)
        elif option.type is list:
            settings.update(action="append", metavar="TEXT")
        else:
            kind = str if option.type is dict else option.type
            settings.update(type=kind, choices=option.choices)
            if option.choices is None:
                settings["metavar"] = "N" if option.type in (int, float) else "TEXT"
        flags[name] = settings
    return flags


def add_flags(group: Any, flags: Mapping[str, dict[str, Any]]) -> None:
    """Add flags by all names that they have in Python too, with underscores and with dashes."""
    for name, settings in flags.items():
        kwargs = dict(settings)
        names = [n for n in (name, ALIASES.get(name, name)) if n == name or n not in flags]
        spellings = dict.fromkeys(
            f"--{n}" for name in names for n in (name, name.replace("_", "-"))
        )
        group.add_argument(*spellings, dest=kwargs.pop("dest", name), **kwargs)
