"""Durable store of finished completions, keyed by what was asked.

`Dataset.map` throws its partial output away when a run dies, and completions cost money, so every
single one is on disk before it counts as finished. Writers queue up for one thread, which commits
whatever is waiting in one transaction: at a thousand completions a second that is a few dozen
commits, at one a second it is one each.

The file is SQLite in WAL mode, safe for several processes. It holds the key and the answer, not
the prompt. Pages are 16 KiB, since answers of 2-4 kB would waste up to half of the usual 4 KiB.
"""

from __future__ import annotations

import asyncio
import hashlib
import queue
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import msgspec
from filelock import FileLock, Timeout

from mminstruct.errors import StoreError
from mminstruct.resources import shown
from mminstruct.schema import Completion, Request, canonical_json

KEY_VERSION = 1
_APPLICATION_ID = 0x6D6D6966  # "mmif"
_SCHEMA_VERSION = 1
_PAGE_BYTES = 16384
_BUSY_TIMEOUT_S = 60.0
_MAX_GROUP = 2000
_MAX_VARIABLES = 500

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Completion)


def key_of(identity: Mapping[str, str], request: Request) -> bytes:
    """SHA-256 of everything that the answer depends on, 32 bytes.

    Timeouts, retries, concurrency, paths and keys are not among it.
    """
    asked = {
        "key_version": KEY_VERSION,
        "identity": identity,
        "messages": request.messages,
        "sampling": request.sampling,
    }
    return hashlib.sha256(canonical_json(asked)).digest()


def default_path() -> Path:
    """``mminstruct/responses.sqlite`` under the Hugging Face cache home."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "mminstruct" / "responses.sqlite"


class ResponseStore:
    """The store, opened as a context manager.

    Raises:
        StoreError: the file can't be opened, is something else, or comes from a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._reader: sqlite3.Connection | None = None
        self._failure: StoreError | None = None

    def __enter__(self) -> ResponseStore:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"response store {shown(self.path)}: {error.strerror}") from error
        self._reader = _connect(self.path)
        self._thread = threading.Thread(target=self._write_loop, name="response-store", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()
        if self._reader is not None:
            self._reader.close()
        self._thread = self._reader = None

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Completion]:
        """The completions that are there, by key. To be called from the opening thread only."""
        if self._reader is None:
            raise StoreError("the response store is not open")
        found: dict[bytes, Completion] = {}
        try:
            for start in range(0, len(keys), _MAX_VARIABLES):
                some = keys[start : start + _MAX_VARIABLES]
                marks = ",".join("?" * len(some))
                rows = self._reader.execute(
                    f"SELECT key, value FROM completions WHERE key IN ({marks})",  # noqa: S608
                    some,
                )
                found.update((bytes(key), _decoder.decode(value)) for key, value in rows)
        except (sqlite3.Error, msgspec.DecodeError) as error:
            raise self._explained(error) from error
        return found

    async def put(self, key: bytes, completion: Completion) -> None:
        """Return once the completion is on disk.

        Raises:
            StoreError: it could not be written; nothing stored before is lost.
        """
        if self._failure is not None:
            raise self._failure
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] = loop.create_future()
        self._queue.put(_Write(key, _encoder.encode(completion), loop, written))
        await written

    def __len__(self) -> int:
        if self._reader is None:
            raise StoreError("the response store is not open")
        (count,) = self._reader.execute("SELECT count(*) FROM completions").fetchone()
        return int(count)

    def _write_loop(self) -> None:
        connection: sqlite3.Connection | None = None
        try:
            connection = _connect(self.path)
        except StoreError as error:
            self._failure = error
        closing = False
        while not closing:
            group = [self._queue.get()]
            while len(group) < _MAX_GROUP and not self._queue.empty():
                group.append(self._queue.get())
            closing = None in group
            writes = [write for write in group if write is not None]
            if connection is not None and writes and self._failure is None:
                try:
                    _commit(connection, writes)
                except sqlite3.Error as error:
                    self._failure = self._explained(error)
            _resolve(writes, self._failure)
        if connection is not None:
            connection.close()

    def _explained(self, error: Exception) -> StoreError:
        reason = str(error)
        advice = "nothing stored before is lost"
        if "full" in reason or "I/O" in reason:
            advice = f"free some space and run the same command again; {advice}"
        elif "malformed" in reason or "not a database" in reason:
            advice = "move the file away or give another one with --response_store"
        return StoreError(f"response store {shown(self.path)}: {reason}; {advice}")


class _Write:
    """One completion on its way to disk, and whoever waits for it."""

    __slots__ = ("key", "loop", "value", "written")

    def __init__(
        self,
        key: bytes,
        value: bytes,
        loop: asyncio.AbstractEventLoop,
        written: asyncio.Future[None],
    ) -> None:
        self.key = key
        self.value = value
        self.loop = loop
        self.written = written


def _commit(connection: sqlite3.Connection, writes: Iterable[_Write]) -> None:
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "INSERT OR IGNORE INTO completions (key, value) VALUES (?, ?)",
            [(write.key, write.value) for write in writes],
        )
        connection.execute("COMMIT")
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _resolve(writes: Iterable[_Write], failure: StoreError | None) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for write in writes:
        by_loop.setdefault(write.loop, []).append(write.written)
    for loop, futures in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_settle, futures, failure)


def _settle(futures: Iterable[asyncio.Future[None]], failure: StoreError | None) -> None:
    for future in futures:
        if future.done():
            continue
        if failure is None:
            future.set_result(None)
        else:
            future.set_exception(failure)


def _connect(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(
            path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            # SQLite waits for no lock while it changes the journal mode, so ours is needed here.
            with FileLock(f"{path}.lock", timeout=_BUSY_TIMEOUT_S):
                is_new = _check(connection, path)
                connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                if is_new:
                    _create(connection)
        except BaseException:
            connection.close()
            raise
    except (sqlite3.Error, OSError) as error:
        # The words of an OSError name the file with the home folder in full.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        if isinstance(error, Timeout):
            reason = f"another process has held it for {_BUSY_TIMEOUT_S:g} s"
        raise StoreError(
            f"response store {shown(path)}: {reason}; "
            "give a writable SQLite file or a new one with --response_store"
        ) from error
    return connection


def _check(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the file is new; another's is refused before anything is written to it."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application_id == 0 and version == 0:
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables:
            raise StoreError(
                f"response store {shown(path)}: this SQLite file belongs to another program; "
                "give another one with --response_store"
            )
        return True
    if application_id != _APPLICATION_ID:
        raise StoreError(
            f"response store {shown(path)}: this SQLite file belongs to another program; "
            "give another one with --response_store"
        )
    if version > _SCHEMA_VERSION:
        raise StoreError(
            f"response store {shown(path)}: written by a newer mminstruct (format {version}, "
            f"this one reads {_SCHEMA_VERSION}); upgrade mminstruct"
        )
    return False


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS completions (key BLOB PRIMARY KEY, value BLOB NOT NULL)"
    )
    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    connection.execute("COMMIT")
