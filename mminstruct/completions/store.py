"""Durable store of finished completions, keyed by what was asked.

`Dataset.map` throws its partial output away when a run dies, and completions cost money, so every
single one is on disk before it counts as finished. Writers queue up for one thread, which commits
whatever is waiting in one transaction.

The file is SQLite in WAL mode, safe for several processes. It holds the key, the answer and a
checksum of both, not the prompt; an answer that was damaged since is as good as none. Beside the
answers are their number and lengths by prompt config, type and model, from which the lengths of
further answers are estimated.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import queue
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import xxhash
from filelock import FileLock, Timeout

from mminstruct.errors import StoreError, StoreUnusable, fault_of
from mminstruct.resources import count_of, shown
from mminstruct.schema import Completion, Message, Request, canonical_json

_log = logging.getLogger(__name__)

KEY_VERSION = 1
_APPLICATION_ID = 0x6D6D6966  # "mmif"
_SCHEMA_VERSION = 3
_PAGE_BYTES = 16384  # answers of 2-4 kB would waste up to half of the usual 4 KiB
_WAL_PAGES = 64  # so that what was written last takes two megabytes of the -wal file at most
_MAX_GROUP = 2000
_MAX_VARIABLES = 500

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Completion)


def key_of(identity: Mapping[str, str], request: Request) -> bytes:
    """SHA-256 of everything that the answer depends on, 32 bytes.

    Timeouts, retries, concurrency, paths and keys are not among it. What is hashed is the canonical
    JSON of ``{"identity", "key_version", "messages", "sampling"}``; all but the last message is
    mostly the same from request to request and is then hashed once.
    """
    *opening, last = request.messages
    asked = _hash_opening(identity, opening).copy()
    asked.update(b'%b],"sampling":%b}' % (canonical_json(last), canonical_json(request.sampling)))
    return asked.digest()


_last_hashed: tuple[dict[str, str], list[Message], hashlib._Hash] | None = None


def _hash_opening(identity: Mapping[str, str], opening: list[Message]) -> hashlib._Hash:
    """The hash of the canonical JSON up to the last message; the latest one is kept."""
    global _last_hashed
    last = _last_hashed  # another thread may replace it
    if last is not None and last[0] == identity and last[1] == opening:
        return last[2]
    head = canonical_json({"identity": identity, "key_version": KEY_VERSION})[:-1]
    asked = hashlib.sha256(head + b',"messages":[')
    for message in opening:
        asked.update(canonical_json(message) + b",")
    _last_hashed = (dict(identity), opening, asked)
    return asked


@dataclass(frozen=True, slots=True)
class Scope:
    """What the length of an answer goes by: answers of one scope are of a kind.

    Attributes:
        prompt_config: its hash.
        type: instruction type.
        model: its name.
        max_tokens: where answers are cut at the latest.
    """

    prompt_config: str
    type: str
    model: str
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long the finished answers of a scope are, in tokens.

    Attributes:
        count: answers.
        total: sum of their tokens.
        squares: sum of the squares of their tokens.
    """

    count: int = 0
    total: int = 0
    squares: int = 0


def default_path() -> Path:
    """``mminstruct/responses.sqlite`` under the Hugging Face cache home."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "mminstruct" / "responses.sqlite"


class ResponseStore:
    """The store, opened as a context manager.

    Args:
        path: of the file; it is made if it isn't there.
        read_only: neither make nor change it; a missing file is an empty store.
        busy_timeout_s: how long to wait at a time for another program that locks the file.

    Raises:
        StoreUnusable: the file can't be opened, is something else, or comes from a newer version.
        StoreError: another program locks it, or the disk is full.
    """

    def __init__(
        self, path: Path, *, read_only: bool = False, busy_timeout_s: float = 60.0
    ) -> None:
        self.path = path
        self._read_only = read_only
        self._busy_timeout_s = busy_timeout_s
        self._thread: threading.Thread | None = None
        self._reader: sqlite3.Connection | None = None
        # Shared by threads. The writing one takes from the queue, and alone sets the failure and
        # the count; the one that opened the store alone adds to what is damaged.
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._failure: StoreError | None = None
        self._unheard = 0  # failures that nobody waits to hear of
        self._damaged: set[bytes] = set()

    def __enter__(self) -> ResponseStore:
        if self._read_only:
            self._reader = _connect_read_only(self.path, self._busy_timeout_s)
            return self
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            kind = StoreError if _is_fault_of_machine(error) else StoreUnusable
            raise kind(f"response store {shown(self.path)}: {error.strerror}") from error
        self._reader = _connect(self.path, self._busy_timeout_s)
        self._opened = _file_id(self.path)
        self._closing.clear()
        self._thread = threading.Thread(target=self._write_loop, name="response-store", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._closing.set()
            self._queue.put(None)
            self._thread.join()
        if self._reader is not None:
            self._reader.close()
        self._thread = self._reader = None
        if self._unheard and not isinstance(error, StoreError):
            lost = count_of(self._unheard, "answer was", "answers were")
            raise StoreError(f"{self._failure}; {lost} not stored")

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Completion]:
        """The completions that are there and whole, by key.

        To be called from the opening thread only.
        """
        with self._use_reader() as reader:
            rows = list(select_by_key(reader, "SELECT key, value, checksum FROM completions", keys))
        entries = {key: _decode(key, value, checksum) for key, value, checksum in rows}
        found = {key: completion for key, completion in entries.items() if completion is not None}
        if new := entries.keys() - found.keys() - self._damaged:
            self._damaged |= new
            _log.warning(
                f"response store {shown(self.path)}: {count_of(len(new), 'damaged answer')}, "
                "taken for not stored; has the disk a fault?"
            )
        return found

    def identifier(self) -> str:
        """A name that no other store has, and that the file keeps wherever it goes."""
        if self._read_only:
            raise StoreError("the response store is not open for writing")
        with self._use_reader() as reader:
            reader.execute("CREATE TABLE IF NOT EXISTS identifiers (name TEXT NOT NULL)")
            reader.execute(
                "INSERT INTO identifiers SELECT ? WHERE NOT EXISTS (SELECT * FROM identifiers)",
                (uuid.uuid4().hex[:16],),
            )
            (name,) = reader.execute("SELECT name FROM identifiers").fetchone()
        return str(name)

    def copy(self, other: Path) -> None:
        """Add the answers of another store that this one lacks.

        Their lengths go along where none of them was here: others would count twice.

        Raises:
            StoreError: the other can't be read, or this one written.
        """

        def read(query: str) -> Iterator[Any]:
            try:
                yield from source.execute(query)
            except sqlite3.Error as error:
                raise _explain_refusal(other, error) from error

        source = _connect_read_only(other, self._busy_timeout_s)
        with closing(source), self._use_reader() as here, _write_all(here):
            added = here.executemany(
                "INSERT OR IGNORE INTO completions (key, value, checksum) VALUES (?, ?, ?)",
                read("SELECT key, value, checksum FROM completions"),
            )
            if (added.rowcount,) == next(read("SELECT count(*) FROM completions")):
                here.executemany(_ADD_LENGTHS, read("SELECT * FROM lengths"))

    def lengths(self, scope: Scope) -> Lengths:
        """How long the answers of a scope are that came with a token count."""
        with self._use_reader() as reader:
            row = reader.execute(
                "SELECT count, total, squares FROM lengths WHERE (prompt_config, type, model, "
                "max_tokens) = (?, ?, ?, ?)",
                astuple(scope),
            ).fetchone()
        return Lengths(*row) if row else Lengths()

    def lower_limits(self, scope: Scope) -> list[int]:
        """The lower max_tokens under which there are answers of a scope's kind."""
        with self._use_reader() as reader:
            rows = reader.execute(
                "SELECT max_tokens FROM lengths WHERE (prompt_config, type, model) = (?, ?, ?) "
                "AND max_tokens < ?",
                astuple(scope),
            )
            return [limit for (limit,) in rows]

    def __len__(self) -> int:
        with self._use_reader() as reader:
            (count,) = reader.execute("SELECT count(*) FROM completions").fetchone()
        return int(count)

    @contextmanager
    def _use_reader(self) -> Iterator[sqlite3.Connection]:
        if self._reader is None:
            raise StoreError("the response store is not open")
        try:
            yield self._reader
        except sqlite3.Error as error:
            raise self._explain(error) from error

    async def put(self, key: bytes, completion: Completion, scope: Scope | None = None) -> None:
        """Return once the completion is on disk, and its length added to those of its scope.

        Raises:
            StoreError: it could not be written; nothing stored before is lost.
        """
        if self._failure is not None:
            raise self._failure
        if self._read_only:
            raise StoreError(f"response store {shown(self.path)} is open for reading only")
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] = loop.create_future()
        tokens = completion.completion_tokens
        length = None if scope is None or tokens is None else (scope, tokens)
        value = _encoder.encode(completion)
        replaces = key in self._damaged
        self._queue.put(_Write(key, value, length, replaces, loop, written))
        await written

    def _write_loop(self) -> None:
        connection: sqlite3.Connection | None = None
        try:
            connection = _connect(self.path, self._busy_timeout_s)
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
                fault = fault_of(partial(self._commit, connection, writes))
                if fault is not None:
                    self._failure = self._explain(fault)
                    self._failure.__cause__ = fault
            if self._failure is not None:
                self._unheard += sum(w.written.cancelled() or w.loop.is_closed() for w in writes)
            _resolve(writes, self._failure)
        if connection is not None:
            connection.close()

    def _commit(self, connection: sqlite3.Connection, writes: Sequence[_Write]) -> None:
        """Write them, however long another program locks the file while the store is open.

        Once it is to be closed, for as long as one wait takes.
        """
        while True:
            closing = self._closing.is_set()
            try:
                _commit(connection, writes)
                self._check_there()
            except sqlite3.OperationalError as error:
                if closing or not _is_locked(error):
                    raise
                _log.warning(
                    f"response store {shown(self.path)}: locked by another program for "
                    f"{self._busy_timeout_s:g} s; {count_of(len(writes), 'answer')} to be stored"
                )
            else:
                return

    def _check_there(self) -> None:
        """Raise StoreError if the path no longer leads to the file that is open."""
        try:
            is_there = _file_id(self.path) == self._opened
        except FileNotFoundError:
            is_there = False
        if not is_there:
            raise StoreError(
                f"response store {shown(self.path)}: the file was moved, deleted or replaced while "
                "the run went on; move it back together with the -wal file beside it, or what was "
                "answered since is lost"
            )

    def _explain(self, error: Exception) -> StoreError:
        if isinstance(error, StoreError):
            return error
        reason = str(error) or type(error).__name__
        advice = "nothing stored before is lost"
        if "full" in reason or "I/O" in reason:
            advice = f"free some space and run the same command again; {advice}"
        elif "malformed" in reason or "not a database" in reason:
            advice = "move the file away or give another one with --response_store"
        return StoreError(f"response store {shown(self.path)}: {reason}; {advice}")


@dataclass(frozen=True, slots=True)
class _Write:
    """One completion on its way to disk, and whoever waits for it."""

    key: bytes
    value: bytes
    length: tuple[Scope, int] | None
    replaces: bool  # a damaged one
    loop: asyncio.AbstractEventLoop
    written: asyncio.Future[None]


def select_by_key(
    connection: sqlite3.Connection, select: str, keys: Sequence[bytes]
) -> Iterator[tuple[Any, ...]]:
    """The rows that a SELECT gives for some keys; SQLite takes so many values at a time."""
    for start in range(0, len(keys), _MAX_VARIABLES):
        some = keys[start : start + _MAX_VARIABLES]
        yield from connection.execute(f"{select} WHERE key IN ({','.join('?' * len(some))})", some)


def _commit(connection: sqlite3.Connection, writes: Iterable[_Write]) -> None:
    with _write_all(connection):
        new = [write for write in writes if _insert(connection, write)]
        connection.executemany(
            _ADD_LENGTHS,
            [
                (*astuple(scope), 1, tokens, tokens**2)
                for scope, tokens in (write.length for write in new if write.length is not None)
            ],
        )


@contextmanager
def _write_all(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is written within stays, or nothing of it."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except BaseException:  # passed on; but what was written by then must not stay
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _is_fault_of_machine(error: Exception) -> bool:
    """Whether another path would help no more than this one."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE)
    return getattr(error, "errno", None) in numbers or "full" in str(error)


def _is_locked(error: Exception) -> bool:
    return "locked" in str(error) or "busy" in str(error)


def _insert(connection: sqlite3.Connection, write: _Write) -> bool:
    """Whether the completion is new."""
    inserted = connection.execute(
        f"INSERT OR {'REPLACE' if write.replaces else 'IGNORE'} INTO completions "  # noqa: S608 (one of two words of ours)
        "(key, value, checksum) VALUES (?, ?, ?)",
        (write.key, write.value, _checksum(write.key, write.value)),
    )
    return inserted.rowcount > 0 and not write.replaces


def _checksum(key: bytes, value: bytes) -> bytes:
    return xxhash.xxh3_64_digest(key + value)


def _decode(key: bytes, value: bytes, checksum: bytes | None) -> Completion | None:
    """The completion, or None if it was damaged; older versions wrote no checksum."""
    try:
        if checksum not in (None, _checksum(key, value)):
            return None
        return _decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError):  # a flip may change the type, too
        return None


def _file_id(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


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


def _connect(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    try:
        # SQLite waits for no lock while it changes the journal mode, so ours is needed here, and
        # before there is a file that others could read.
        with FileLock(f"{path}.lock", timeout=busy_timeout_s):
            connection = sqlite3.connect(
                path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
            )
            try:
                version = _check(connection, path)
                connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
                if version < _SCHEMA_VERSION:
                    _create(connection, version)
            except BaseException:
                connection.close()
                raise
    except (sqlite3.Error, OSError) as error:
        raise _explain_refusal(path, error) from error
    return connection


def _connect_read_only(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """A connection that changes nothing; to an empty store in memory if there is none yet."""
    try:
        if not path.exists():
            return _make_empty()
        uri = path.resolve().as_uri() + "?mode=ro"
        # One that is being made is waited for: reading it would keep SQLite from making it.
        with _lock(path, busy_timeout_s):
            try:
                connection, version = _open(uri, path, busy_timeout_s)
            except sqlite3.OperationalError as error:
                if _is_locked(error):
                    raise
                # A folder that can't be written to has no room for the index of the WAL.
                connection, version = _open(f"{uri}&immutable=1", path, busy_timeout_s)
        if version == 0:
            connection.close()
            return _make_empty()
        if version < 2:
            connection.execute(f"CREATE TEMP TABLE {_LENGTHS}")
        if version < 3:
            connection.execute(
                "CREATE TEMP VIEW completions AS "
                "SELECT key, value, NULL AS checksum FROM main.completions"
            )
    except (sqlite3.Error, OSError) as error:
        raise _explain_refusal(path, error) from error
    return connection


def _explain_refusal(path: Path, error: Exception) -> StoreError:
    """The error for a file that can't be opened; one that will pass is no reason for another."""
    is_passing = _is_locked(error) or _is_fault_of_machine(error)
    # The words of an OSError name the file with the home folder in full.
    words = getattr(error, "strerror", None) or error
    if isinstance(error, Timeout):
        is_passing, words = True, "locked by another process"
    return (StoreError if is_passing else StoreUnusable)(
        f"response store {shown(path)}: {words}; "
        "give a writable SQLite file or a new one with --response_store"
    )


def _lock(path: Path, busy_timeout_s: float) -> FileLock | nullcontext[None]:
    """That under which a store is made; none where it isn't ours to take, or nobody has."""
    lock = f"{path}.lock"
    return FileLock(lock, timeout=busy_timeout_s) if os.access(lock, os.W_OK) else nullcontext()


def _make_empty() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    _create(connection, 0)
    return connection


def _open(uri: str, path: Path, busy_timeout_s: float) -> tuple[sqlite3.Connection, int]:
    """A connection to a store of ours, and its format's version."""
    connection = sqlite3.connect(uri, uri=True, timeout=busy_timeout_s, isolation_level=None)
    try:
        return connection, _check(connection, path)
    except BaseException:
        connection.close()
        raise


def _check(connection: sqlite3.Connection, path: Path) -> int:
    """The format's version, 0 in a new file; another's is refused before anything is written."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if (application_id, version, tables) == (0, 0, 0):
        return 0
    if application_id != _APPLICATION_ID:
        raise StoreUnusable(
            f"response store {shown(path)}: this SQLite file belongs to another program; "
            "give another one with --response_store"
        )
    if version > _SCHEMA_VERSION:
        raise StoreUnusable(
            f"response store {shown(path)}: written by a newer mminstruct (format {version}, "
            f"this one reads {_SCHEMA_VERSION}); upgrade mminstruct"
        )
    return int(version)


_LENGTHS = (
    "IF NOT EXISTS lengths (prompt_config TEXT, type TEXT, model TEXT, max_tokens INTEGER, "
    "count INTEGER, total INTEGER, squares INTEGER, "
    "PRIMARY KEY (prompt_config, type, model, max_tokens)) WITHOUT ROWID"
)


_ADD_LENGTHS = (
    "INSERT INTO lengths VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
    "count = count + excluded.count, total = total + excluded.total, "
    "squares = squares + excluded.squares"
)


def _create(connection: sqlite3.Connection, version: int) -> None:
    """Make the tables, or what an older version didn't have."""
    connection.execute("BEGIN IMMEDIATE")
    if version:
        connection.execute("ALTER TABLE completions ADD COLUMN checksum BLOB")
    else:
        connection.execute(
            "CREATE TABLE completions (key BLOB PRIMARY KEY, value BLOB NOT NULL, checksum BLOB)"
        )
    connection.execute(f"CREATE TABLE {_LENGTHS}")
    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    connection.execute("COMMIT")
