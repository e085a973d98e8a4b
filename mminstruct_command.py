"""The command ``mminstruct``: Ctrl-C while its modules are loaded ends it without a word.

Beside the package, as importing anything in the package loads most of it, which takes seconds.
"""

import os
import signal
from types import FrameType

INTERRUPTED = 130


def end_in_peace() -> None:
    """Let Ctrl-C end the process without a word, until `main` has loaded what it needs."""
    # Otherwise it is in the background of a shell.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


def main() -> None:
    """Run the command line and exit."""
    end_in_peace()
    from mminstruct.cli import main as run

    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()
