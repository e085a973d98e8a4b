"""The command line: a file a command."""

from mminstruct.cli.app import main, run

__all__ = ["main", "run"]
