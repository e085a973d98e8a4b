"""Exit codes, and what is printed."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from typing import TextIO

from mminstruct.reports import notes
from mminstruct.reports.notes import say as say
from mminstruct.resources import printable

DONE, INCOMPLETE, STOPPED, INTERRUPTED, TERMINATED, HUNG_UP = 0, 1, 3, 130, 143, 129
DRY_RUN = "a dry run: the text is a stand-in's, to look at the form and not to train on"
# As a shell has it for what a broken pipe ends.
UNREAD = 141


def find_width(stream: TextIO | None) -> int | None:
    """The columns of the terminal that a stream is; None of another one."""
    return shutil.get_terminal_size().columns if stream and stream.isatty() else None


def print_text(text: str) -> int:
    """Write to stdout, with escapes for controls and what its encoding lacks; the exit code.

    Where nobody reads on, as after ``| head``, this and all that follows goes nowhere.
    """
    if not sys.stdout:  # it was closed from the start
        return DONE
    text, encoding = printable(text), getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer is flushed at the interpreter's end once more.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if isinstance(error, BrokenPipeError):
            return UNREAD
        raise
    return DONE


def quiet_libraries() -> None:
    """Our own line shows progress; warnings of libraries about it would tear it apart."""
    import datasets

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    notes.show(alone=True)
    logging.getLogger("mminstruct.fetching").setLevel(logging.WARNING)
