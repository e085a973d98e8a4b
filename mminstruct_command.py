"""The command ``mminstruct``: Ctrl-C while its modules are loaded ends it without a word.

Beside the package, as importing anything in the package loads most of it, which takes seconds.
"""

import os
import signal

INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit."""
    usual = signal.default_int_handler
    is_heard = signal.getsignal(signal.SIGINT) is usual  # not in the background of a shell
    if is_heard:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    from mminstruct.cli import main as run

    if is_heard:
        signal.signal(signal.SIGINT, usual)
    run()
