"""What the package says while it works, on stderr, a line each.

One handler of the logger ``mminstruct`` shows what all modules log. Whoever has set up logging sees
to that alone; the command line is the only one to show it itself in any case.
"""

from __future__ import annotations

import contextlib
import logging
import sys

from mminstruct.resources import printable


def say(text: str, *, over: str = "") -> None:
    """Write a line after the program's name, at once, as others write to the terminal too.

    Args:
        text: the line.
        over: what ends the line that is there on a terminal.
    """
    with contextlib.suppress(OSError):  # a terminal that hung up
        start = over if sys.stderr.isatty() else ""
        sys.stderr.write(f"{start}mminstruct: {printable(text)}\n")
        sys.stderr.flush()


class _Shown(logging.Handler):
    def __init__(self, *, is_alone: bool) -> None:
        super().__init__()
        self._is_alone = is_alone

    def emit(self, record: logging.LogRecord) -> None:
        """Say it in the place of a progress line, which comes again below it.

        stderr is looked up, as in a notebook it is another one for each cell.
        """
        if self._is_alone or not logging.getLogger().handlers:  # set up meanwhile: those show it
            say(record.getMessage(), over="\r\x1b[K")


def show(*, alone: bool = False) -> None:
    """Show what is logged from now on.

    Args:
        alone: also where others have handlers, which don't get it then; else those see to it.
    """
    logger = logging.getLogger("mminstruct")
    if alone or not logger.hasHandlers():
        logger.handlers, logger.propagate = [_Shown(is_alone=alone)], not alone
        logger.setLevel(logging.INFO)
