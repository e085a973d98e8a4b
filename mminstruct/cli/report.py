"""``mminstruct report``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mminstruct import sources
from mminstruct.cli.arguments import Parser
from mminstruct.cli.console import print_text, quiet_libraries
from mminstruct.cli.flags import CONTENT_FLAGS, DEFAULT_DIR, add_flags, flags_of_options
from mminstruct.cli.runs import check_source_options, choose_source_options, name_places
from mminstruct.errors import UsageError
from mminstruct.reports import quality_text
from mminstruct.reports.contexts import Contexts, open_contexts
from mminstruct.reports.quality import Judged, Meter, Quality
from mminstruct.reports.rows import read_rejected, read_rows


def add_arguments(parser: Parser) -> None:
    """Add those of the command."""
    parser.description = (
        "Measures the rows of a release, or of any file or folder with conversations as LLaVA, "
        "ShareGPT and messages have them: lengths, questions, repetition, what annotations say to "
        "what is said, and which benchmarks ask about the same images. Two and more are shown side "
        "by side."
    )
    parser.set_defaults(command=_report)
    parser.add_argument("paths", nargs="+", metavar="OUT", help="folder, or Parquet or JSON file")
    add_flags(parser, {"json": {"action": "store_true", "help": "for machines"}})
    names = ("splits", "dataset_storage_path")
    about = {
        "annotations": {
            "metavar": "SOURCE",
            "help": "what the images are annotated with, as generate takes it: what rows say is "
            "held against it (default: what releases say of their rows)",
        },
        **{name: CONTENT_FLAGS[name] for name in names},
    }
    add_flags(parser.add_argument_group("annotations"), about)
    add_flags(parser.add_argument_group("source"), flags_of_options(sources.options()))


def _report(args: argparse.Namespace) -> int:
    quiet_libraries()
    contexts = _open_annotations(args)
    found = {path: _measure(Path(path), contexts) for path in args.paths}
    if args.json:
        return print_text(json.dumps({p: q.as_json() for p, q in found.items()}, indent=2) + "\n")
    return print_text(quality_text.as_text(found))


def _open_annotations(args: argparse.Namespace) -> Contexts | None:
    """The contexts that were asked for, read once for all data sets."""
    import datasets

    named = [args.annotations] if args.annotations else []
    check_source_options(args, named)
    if not named:
        if args.splits or args.dataset_storage_path != DEFAULT_DIR:
            raise UsageError(
                "splits, dataset_storage_path: expected the annotations that are there, got none; "
                "add --annotations SOURCE, or leave them out"
            )
        return None
    given: Mapping[str, Any] = {**name_places(args), **choose_source_options(args, *named)}
    given = {**given, "splits": args.splits} if args.splits else given
    return open_contexts(args.annotations, given, Path(datasets.config.HF_DATASETS_CACHE))


def _measure(path: Path, contexts: Contexts | None) -> Quality:
    meter = Meter()
    for row in read_rows(path, _is_wanted):
        meter.add(contexts.judge(row) if contexts else Judged.of(row))
    return meter.read(read_rejected(path))


def _is_wanted(names: list[str]) -> bool:
    """Whether a column is looked at; the bytes of images aren't."""
    return names[0] not in ("provenance", "image_credit") and "bytes" not in names
