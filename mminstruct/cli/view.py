"""``mminstruct view``."""

from __future__ import annotations

import argparse
import textwrap
import webbrowser
from pathlib import Path
from typing import Any

import datasets

from mminstruct import sources
from mminstruct.cli.arguments import Parser
from mminstruct.cli.console import DONE, quiet_libraries, say
from mminstruct.cli.flags import CONFIG_FLAG, CONTENT_FLAGS, add_flags, flags_of_options
from mminstruct.cli.runs import check_source_options, choose_source_options, name_places
from mminstruct.errors import UsageError, lacking
from mminstruct.reports import page
from mminstruct.reports.contexts import Contexts, find_contexts, open_contexts
from mminstruct.reports.rows import read_rows
from mminstruct.resources import check_writable, count_of
from mminstruct.rows.report import REJECTED, VIEW

_FLAGS: dict[str, dict[str, Any]] = {
    "annotations": {
        "metavar": "SOURCE",
        "help": "whose boxes and captions are shown (default: those of the rows' source, where its "
        "files are at hand)",
    },
    "dataset_storage_path": CONTENT_FLAGS["dataset_storage_path"],
    "images": {
        "metavar": "DIR",
        "help": "where images are (default: beside the rows, or at their publisher)",
    },
    "limit": {
        "type": int,
        "default": 500,
        "metavar": "N",
        "help": "rows, and answers that gave none, at most, drawn evenly by image (default: 500)",
    },
    "output_path": {"metavar": "FILE", "help": "the page (default: view.html, with the rows)"},
    "open": {"action": "store_true", "help": "in a browser, too"},
}


def add_arguments(parser: Parser) -> None:
    """Add those of the command."""
    parser.description = (
        "Writes a page to look at rows: each image with its boxes and captions, the conversations "
        "about it, and what gave no row, with the answer. It is one file, for a browser on this "
        "machine; it loads nothing but images."
    )
    parser.set_defaults(command=_view)
    parser.add_argument(
        "rows",
        metavar="OUT",
        help="folder that generate wrote, or rows in JSON, JSON lines or Parquet, or a "
        "rejected.jsonl",
    )
    add_flags(parser, {**CONFIG_FLAG, **_FLAGS})
    add_flags(parser.add_argument_group("source"), flags_of_options(sources.options()))


def _view(args: argparse.Namespace) -> int:
    quiet_libraries()
    path = Path(args.rows).expanduser()
    folder = path if path.is_dir() else path.parent
    output = _choose_output(args.output_path, path)
    images = Path(args.images).expanduser() if args.images else None
    if images is not None and not images.is_dir():
        raise UsageError(
            f"images: expected a folder, got {images}{lacking(images)}; give the one they are in"
        )
    if args.limit < 1:
        raise UsageError(f"limit: expected at least 1, got {args.limit}")
    check_writable(output.parent, output)
    sample, told = _draw(path, args.limit)
    contexts, said = _open_annotations(args, {row.source for row in sample.rows})
    places = page.Images(output, images, folder)
    text = page.render(path.absolute().name, [told, *said], sample, contexts, places)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8", newline="\n")
    for sentence in (told, *said, *places.tell_lost()):
        say(sentence)
    address = output.absolute().as_uri()
    if args.open and not webbrowser.open(address):
        say("there is no browser here to open it in")
    say(f"look: {address}")
    return DONE


def _choose_output(given: str | None, rows: Path) -> Path:
    """Where the page goes."""
    if given is None:
        return rows / VIEW if rows.is_dir() else rows.with_name(f"{rows.name}.html")
    if not given.lower().endswith((".html", ".htm")):
        raise UsageError(f"output_path: expected a file with the end .html, got {given}")
    return Path(given).expanduser()


def _draw(path: Path, limit: int) -> tuple[page.Sample, str]:
    """The rows to show, and what they are, as a sentence."""
    sample, known = page.Sample(limit), set(sources.names())
    is_rejected = path.name.endswith(REJECTED) and path.is_file()
    beside = path / REJECTED if path.is_dir() else path.with_name(f"{path.name}.{REJECTED}")
    rejected = path if is_rejected else beside
    for row in () if is_rejected else read_rows(path, lambda names: "bytes" not in names):
        known.add(row.source)
        sample.add(row)
    rows = sample.seen
    if rejected.is_file():
        for row in page.read_rejected_rows(rejected, known - {""}):
            sample.add(row)
    shown = sample.rows
    with_turns = sum(1 for row in shown if row.turns)
    told = f"{with_turns:,} of {count_of(rows, 'row')}"
    if sample.seen > rows:
        told += (
            f", and {len(shown) - with_turns:,} of {count_of(sample.seen - rows, 'answer')} that "
            "gave none: nobody has looked at those, so keep the page to yourself"
        )
    drawn = f"; drawn evenly, --limit {sample.seen} shows all" if len(shown) < sample.seen else ""
    return sample, f"{told}{drawn}."


def _open_annotations(
    args: argparse.Namespace, named: set[str]
) -> tuple[dict[str, Contexts], list[str]]:
    """The contexts by the source that rows name, and sentences on what there is and isn't."""
    cache_dir = Path(datasets.config.HF_DATASETS_CACHE)
    places = name_places(args)
    if given := args.annotations:
        check_source_options(args, [given])
        contexts = open_contexts(given, places | choose_source_options(args, given), cache_dir)
        return dict.fromkeys(named, contexts), [f"Boxes and captions are those of {given}."]
    found: dict[str, Contexts] = {}
    # Rows may name a path, too, which nobody has asked to open.
    known = [n for n in named if all(p.upper() in sources.names() for p in n.split("+"))]
    check_source_options(args, known)
    for name in known:
        at_hand = find_contexts(name, places | choose_source_options(args, name), cache_dir)
        found |= {name: at_hand} if at_hand else {}
    lost = textwrap.shorten(", ".join(sorted(named - found.keys())), 80) or "the images"
    said = (
        f"Without boxes and captions of {lost}: --annotations SOURCE --dataset_storage_path DIR "
        "shows them."
    )
    return found, [said] if named - found.keys() else []
