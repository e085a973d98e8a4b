"""Runs the command line in a process of its own, as a user does."""

from __future__ import annotations

import hashlib
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Bounds hangs, nothing else.
PATIENCE_S = 240
# On the event loop that the tests themselves are on.
_LOOP = (
    "import asyncio, uvloop; asyncio.set_event_loop_policy(uvloop.EventLoopPolicy()); "
    if "TESTS_ON_UVLOOP" in os.environ
    else ""
)
COMMAND = (sys.executable, "-c", f"{_LOOP}from mminstruct.cli import main; main()")


@dataclass(frozen=True)
class Ended:
    """A run that has come to its end."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Place:
    """Where a run keeps things: its caches, its store and its output.

    Attributes:
        folder: a new one has nothing to reuse.
        data: annotation files.
        command: how the command line is started.
    """

    folder: Path
    data: Path
    command: tuple[str, ...] = COMMAND

    @property
    def store(self) -> Path:
        """The file of finished answers."""
        return self.folder / "hf" / "mminstruct" / "responses.sqlite"

    @property
    def output(self) -> Path:
        """The dataset."""
        return self.folder / "out"

    def start(
        self,
        url: str,
        *more: str,
        env: Mapping[str, str] | None = None,
        file_size_limit: int | None = None,
    ) -> subprocess.Popen[str]:
        """Start ``mminstruct generate COCO2017`` against a server."""
        self.folder.mkdir(exist_ok=True)
        arguments = [
            *("generate", "COCO2017", "--model_source", "openai", "--model", "m"),
            *("--openai_base_url", url, "--dataset_storage_path", str(self.data)),
            *("--output_path", str(self.output), *more),
        ]

        def limit() -> None:
            if file_size_limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, file_size_limit))

        return subprocess.Popen(
            [*self.command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**self.environment(), **(env or {})},
            preexec_fn=limit,
        )

    def environment(self) -> dict[str, str]:
        """Environment variables of a run, with the caches here."""
        base = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "OPENAI_"))}
        return {
            **base,
            "HF_HOME": str(self.folder / "hf"),
            "HF_HUB_OFFLINE": "1",
            "SOURCE_DATE_EPOCH": "1767225600",  # or a test that runs at midnight fails
        }

    def run(
        self,
        url: str,
        *more: str,
        env: Mapping[str, str] | None = None,
        file_size_limit: int | None = None,
    ) -> Ended:
        """`start` it and wait for its end."""
        return finish(self.start(url, *more, env=env, file_size_limit=file_size_limit))

    def stored(self) -> int:
        """How many answers are durable, read as another program would."""
        if not self.store.exists():
            return 0
        connection = sqlite3.connect(self.store)
        try:
            (count,) = connection.execute("SELECT count(*) FROM completions").fetchone()
            return int(count)
        finally:
            connection.close()

    def output_digest(self) -> dict[str, str]:
        """SHA-256 of every output file."""
        return {
            str(path.relative_to(self.output)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.output.rglob("*"))
            if path.is_file()
        }


def finish(process: subprocess.Popen[str], patience_s: float = PATIENCE_S) -> Ended:
    """Wait for a process; one that hangs is killed and fails the test."""
    try:
        out, err = process.communicate(timeout=patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"the run hangs:\n{out}\n{err}") from None
    return Ended(process.returncode, out, err)
