"""Which requests are in which batch, on disk, so that a killed run finds them again."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mminstruct.completions.batch_api.drafts import Draft
from mminstruct.completions.batch_api.results import Results
from mminstruct.completions.job import Failed
from mminstruct.completions.store import select_by_key
from mminstruct.errors import StoreError
from mminstruct.resources import shown


@dataclass(frozen=True, slots=True)
class JournalRow:
    """A batch that is not at its end.

    Attributes:
        intent: our name for it, made before it was created.
        requests: how many.
        limit_field: name of the field for the answer's longest length.
        file_id: of the uploaded file, once known.
        sent_s: wall-clock time of the last attempt to create it.
        batch_id: the server's name for it, once known.
    """

    intent: str
    requests: int
    limit_field: str
    file_id: str | None
    sent_s: float | None
    batch_id: str | None


class Journal:
    """What was submitted and has not come back, on disk; a context manager.

    To be changed under the file lock only. A key that is in two batches breaks a constraint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> Journal:
        with self._explain_errors():
            self._connection = sqlite3.connect(self.path, isolation_level="IMMEDIATE", timeout=60.0)
            self._connection.execute("PRAGMA synchronous = FULL")
            for table in _TABLES:
                self._connection.execute(f"CREATE TABLE IF NOT EXISTS {table}")
        return self

    def __exit__(self, *exc: object) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def add(self, intent: str, endpoint: str, draft: Draft) -> None:
        """Note a batch and its requests, before anything of it is sent."""
        with self._transaction() as execute:
            execute(
                "INSERT INTO batches (intent, endpoint, requests, limit_field) VALUES (?, ?, ?, ?)",
                [(intent, endpoint, len(draft.keys), draft.limit_field)],
            )
            execute(
                "INSERT INTO requests (key, intent) VALUES (?, ?)",
                [(key, intent) for key in draft.keys],
            )

    def note(
        self,
        intent: str,
        *,
        file_id: str | None = None,
        sent_s: float | None = None,
        batch_id: str | None = None,
    ) -> None:
        """Note what is new of a batch, named as in `JournalRow`."""
        with self._transaction() as execute:
            execute(
                "UPDATE batches SET file_id = coalesce(?, file_id), sent_s = coalesce(?, sent_s), "
                "batch_id = coalesce(?, batch_id) WHERE intent = ?",
                [(file_id, sent_s, batch_id, intent)],
            )

    def close(
        self, intent: str, identity: dict[str, str], results: Results, *, keep_files: bool
    ) -> None:
        """Note what came of a batch whose answers are stored; its other requests are free again."""
        with self._transaction() as execute:
            execute("DELETE FROM requests WHERE intent = ?", [(intent,)])
            execute(
                "INSERT OR REPLACE INTO refusals VALUES (?, ?, ?)",
                [(key, str(error), error.room) for key, error in results.refusals.items()],
            )
            if results.wants_other_field:
                execute(
                    "INSERT OR REPLACE INTO limit_fields VALUES (?, ?, ?)",
                    [(identity["endpoint"], identity["model"], "max_completion_tokens")],
                )
            if keep_files:
                execute("DELETE FROM batches WHERE intent = ?", [(intent,)])
            else:
                execute("UPDATE batches SET stored = 1 WHERE intent = ?", [(intent,)])

    def forget(self, intent: str) -> None:
        """Strike a batch out; its requests are free again."""
        with self._transaction() as execute:
            execute("DELETE FROM requests WHERE intent = ?", [(intent,)])
            execute("DELETE FROM batches WHERE intent = ?", [(intent,)])

    def rows(self, intents: Iterable[str]) -> list[JournalRow]:
        """Those of some batches that are not at their end, oldest first."""
        wanted = set(intents)
        found = self._read(
            "SELECT intent, requests, limit_field, file_id, sent_s, batch_id FROM batches "
            "WHERE stored = 0 ORDER BY rowid"
        )
        return [JournalRow(*row) for row in found if row[0] in wanted]

    def stored_batches(self, endpoint: str) -> list[tuple[str, str]]:
        """(intent, batch id) of batches whose files may still be at the server."""
        return self._read(
            "SELECT intent, batch_id FROM batches WHERE stored = 1 AND endpoint = ?", (endpoint,)
        )

    def batch_ids(self) -> set[str]:
        """The server's names of all batches in the journal."""
        return {row[0] for row in self._read("SELECT batch_id FROM batches")}

    def file_ids(self) -> set[str]:
        """The uploaded files of batches that are not at their end."""
        return {row[0] for row in self._read("SELECT file_id FROM batches WHERE stored = 0")}

    def keys(self, intent: str) -> set[bytes]:
        """The requests of a batch."""
        rows = self._read("SELECT key FROM requests WHERE intent = ?", (intent,))
        return {bytes(row[0]) for row in rows}

    def open_batches(self, keys: Sequence[bytes]) -> dict[bytes, str]:
        """The batches that some requests are in, by key."""
        found = self._by_key("SELECT key, intent FROM requests", keys)
        return {bytes(key): intent for key, intent in found}

    def refusals(self, keys: Sequence[bytes]) -> dict[bytes, Failed]:
        """Which requests were refused as too long."""
        found = self._by_key("SELECT key, message, room FROM refusals", keys)
        return {
            bytes(key): Failed("too_long", message, rejected=True, room=room)
            for key, message, room in found
        }

    def limit_field(self, endpoint: str, model: str) -> str | None:
        """The field for an answer's longest length that a model insists on, if it does."""
        rows = self._read(
            "SELECT field FROM limit_fields WHERE endpoint = ? AND model = ?", (endpoint, model)
        )
        return str(rows[0][0]) if rows else None

    def _by_key(self, select: str, keys: Sequence[bytes]) -> list[tuple[Any, ...]]:
        with self._explain_errors() as connection:
            return list(select_by_key(connection, select, keys))

    def _read(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._explain_errors() as connection:
            return connection.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Callable[[str, list[Any]], object]]:
        with self._explain_errors() as connection, connection:
            yield connection.executemany

    @contextlib.contextmanager
    def _explain_errors(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._connection  # type: ignore[misc]  # open while it is asked
        except sqlite3.Error as error:
            raise StoreError(
                f"journal of batches {shown(self.path)}: {error}; every batch it knows goes on"
            ) from error


_TABLES = (
    "batches (intent TEXT PRIMARY KEY, endpoint TEXT NOT NULL, requests INTEGER NOT NULL, "
    "limit_field TEXT NOT NULL, file_id TEXT, sent_s REAL, batch_id TEXT, "
    "stored INTEGER NOT NULL DEFAULT 0)",
    "requests (key BLOB PRIMARY KEY, intent TEXT NOT NULL) WITHOUT ROWID",
    "refusals (key BLOB PRIMARY KEY, message TEXT NOT NULL, room INTEGER) WITHOUT ROWID",
    "limit_fields (endpoint TEXT, model TEXT, field TEXT NOT NULL, PRIMARY KEY (endpoint, model))",
)
