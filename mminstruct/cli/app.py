"""The command line: arguments, environment, progress, exit codes.

Exit codes:

    0    everything asked for is there
    1    done, but some requests got no answer (run the same command again to
         ask for those), or a trainer's file lacks rows (PATH.missing.jsonl
         names them)
    2    a wrong argument, prompt config or annotation file, or a question
         answered with no: nothing was sent; or an argument by which no answer
         gives a row
    3    the run had to stop (server, key, Hub, disk, budget); run the same
         command again to go on
    130  Ctrl-C (143: terminated, 129: hung up); run the same command again to
         go on
    141  who reads the output of list, show, license or estimate left before
         its end, as head does
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from mminstruct.cli.arguments import USAGE, Parser
from mminstruct.cli.console import (
    HUNG_UP,
    INTERRUPTED,
    STOPPED,
    TERMINATED,
    find_width,
    print_text,
    say,
)
from mminstruct.errors import (
    BackendError,
    DownloadError,
    HubError,
    NoRows,
    RunStopped,
    StoreError,
    StoreUnusable,
    TransientError,
    causes,
    to_tell,
)
from mminstruct.resources import fit
from mminstruct.version import __version__

COMMANDS = {
    "generate": "generate a dataset",
    "merge": "the parts that generate --shard wrote, to one release",
    "estimate": "what a run would ask for, take and cost",
    "show": "one context, and its messages as a model gets them",
    "license": "what rows may be used for, and why, before any money is spent",
    "report": "what rows are like: lengths, questions, repetition, truth",
    "view": "a page to look at rows: images, boxes, conversations, and what gave no row",
    "export": "a release in the form that a trainer reads, with or without images",
    "push": "a dataset repository to the Hub, in one commit",
    "describe": "a description of your own data, by a look at it",
    "list": "builders, sources, prompt configs and backends",
    "completion": "a script by which your shell completes commands and flags",
}
"""What each is for. The module of that name, imported for it, adds its arguments."""
# Who ends a job may tell the process and its group, a moment apart.
_ONE_SIGNAL_S = 1.0
_ENDED_BY = {"SIGTERM": TERMINATED, "SIGHUP": HUNG_UP}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; Ctrl-C while its modules are loaded ends it without a word."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else in the background
        signal.signal(signal.SIGINT, _end_in_peace)
    if sys.stderr is None:  # closed from the start: the next file to be opened would become it
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (open for as long as the process runs)
    try:
        sys.exit(run(sys.argv[1:] if arguments is None else arguments))
    finally:
        _hear_interrupts()
        # Else Python says at its end that nobody reads the help.
        with contextlib.suppress(OSError, ValueError):
            print_text("")


def run(arguments: Sequence[str]) -> int:
    """Run the command line; the exit code."""
    args = argparse.Namespace()
    before: dict[signal.Signals, Any] = {}
    try:
        args = make_parser().parse_args(arguments)
        _hear_interrupts()
        # The caller has it back afterwards: processes forked later would inherit it.
        ended = _once_in_a_while()
        before = {number: signal.signal(number, ended) for number in _heard()}
        code: int = args.command(args)
        return code
    except KeyboardInterrupt as interrupt:
        say(f"stopped. {_tell_kept(args)}{_how_to_go_on(args, interrupt)}.")
        return _ENDED_BY.get("".join(interrupt.args), INTERRUPTED)
    except Exception as error:  # noqa: BLE001 (what the user can't mend goes on as a traceback)
        known = to_tell(error)
        if known is None:
            raise
        say(fit(f"error: {known}", find_width(sys.stderr) or getattr(args, "width", None)))
        if isinstance(known, NoRows | StoreUnusable):
            return USAGE
        if isinstance(known, DownloadError):  # which says how to go on
            return STOPPED
        if isinstance(known, RunStopped | BackendError | HubError | StoreError | OSError):
            kept = "What was stored is kept" if isinstance(known, StoreError) else _tell_kept(args)
            say(f"{kept}{_how_to_go_on(args, error)}.")
            return STOPPED
        return USAGE
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _tell_kept(args: argparse.Namespace) -> str:
    """What a run that stopped has not lost, as a sentence without its end."""
    kept: str = getattr(args, "kept", "Everything that was answered is kept")
    return kept


def _how_to_go_on(args: argparse.Namespace, error: BaseException) -> str:
    """What to do after a run that stopped, as the rest of a sentence."""
    ways = [] if _is_refusal(error) else ["run the same command again to go on"]
    if any(stats.answered or stats.stored for stats in getattr(args, "stats", ())):
        ways.append("run it with --partial to write what is complete")
    return f"; {', or '.join(ways)}" if ways else ""


def _is_refusal(error: BaseException) -> bool:
    """Whether a server said no to what would be asked again in the same words."""
    first = next((e for e in reversed(causes(error)) if isinstance(e, BackendError)), None)
    if isinstance(first, TransientError):
        return first.cause in ("bad_body", "no_api")
    return first is not None


def _heard() -> Iterator[signal.Signals]:
    """The signals besides Ctrl-C that end a run in good order."""
    for name in _ENDED_BY:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            yield number


def _end_in_peace(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


def _hear_interrupts() -> None:
    if signal.getsignal(signal.SIGINT) is _end_in_peace:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _once_in_a_while() -> Callable[[int, FrameType | None], None]:
    """A handler that takes several signals at nearly the same time for one."""
    last_s = -math.inf

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last_s
        before_s, last_s = last_s, time.monotonic()
        if last_s - before_s > _ONE_SIGNAL_S:
            raise KeyboardInterrupt(signal.Signals(number).name)

    return interrupt


def make_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="mminstruct",
        description="Multimodal instruction data from annotations, with any LLM.\n"
        "@FILE among words stands for the words in the file.",
        epilog="exit codes:" + (__doc__ or "").partition("Exit codes:")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mminstruct {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, purpose in COMMANDS.items():
        module = f"{__package__}.{name}"
        commands.add_parser(name, help=purpose, module=module, allow_abbrev=False)
    return parser
