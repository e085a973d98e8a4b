"""What the package notes while it works, for people who have set up no logging."""

from __future__ import annotations

import logging
import sys


class _Shown(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Say it on stderr as it is now, which in a notebook is another one for each cell."""
        if not logging.getLogger().handlers:  # set up meanwhile: those show it
            sys.stderr.write(f"mminstruct: {record.getMessage()}\n")
            sys.stderr.flush()


def show() -> None:
    """Show on stderr what is noted from now on, unless there are handlers that see to it."""
    notes = logging.getLogger("mminstruct")
    if not notes.hasHandlers():
        notes.addHandler(_Shown())
        notes.setLevel(logging.INFO)
