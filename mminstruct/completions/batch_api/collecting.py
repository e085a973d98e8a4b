"""What batches have come to -> answers in the store, and failures.

A batch is open until as many lines were read as the provider says it answered, whatever a proxy or
a provider gives instead of its files. Those are deleted at the server once every line of them is
in the store.

**Source:** https://developers.openai.com/api/docs/guides/batch (statuses, line formats)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mminstruct.backends._refusals import WORDS_SHOWN
from mminstruct.completions.batch_api.journal import JournalRow
from mminstruct.completions.batch_api.results import Results, read_lines
from mminstruct.completions.batch_api.server import QUEUE_FULL, find_batch
from mminstruct.completions.batch_api.state import Run
from mminstruct.completions.job import Failed
from mminstruct.errors import RequestRefused, RunStopped, TransientError
from mminstruct.resources import count_of, shown

_log = logging.getLogger(__name__)

_ENDED = ("completed", "failed", "expired", "cancelled")
_NO_CREDIT = re.compile(r"insufficient_quota|billing_hard_limit", re.IGNORECASE)


class Collector:
    """Looks after a run's open batches."""

    def __init__(self, run: Run) -> None:
        self._run = run
        # Since when something is missing that an ended batch promises, by batch and what it is.
        self._missing_since_s: dict[tuple[str, str], float] = {}

    async def look(self) -> bool:
        """Collect what has ended; whether a new look at the requests is worth it."""
        run = self._run
        rows = run.journal.rows(run.open)
        changed = len(rows) < len(run.open)  # another run has collected some
        run.open.intersection_update(row.intent for row in rows)
        statuses: Counter[str] = Counter()
        counted: Counter[str] = Counter()
        listed: list[Any] | None = None
        unknown: dict[str, RunStopped] = {}
        for row in rows:
            if row.batch_id is None:
                listed = await run.server.list_batches() if listed is None else listed
                changed |= self._recover(row, listed)
                continue
            try:
                batch = await self._retrieve(row)
            except RunStopped as error:
                if not isinstance(error.__cause__, RequestRefused):
                    raise
                unknown[row.intent] = error  # what the others have comes first
                continue
            if batch is None:
                statuses["validating"] += 1
            elif not self._has_ended(batch):
                statuses[batch.status] += 1
                counts = batch.request_counts
                counted["done"] += (counts.completed or 0) if counts else 0
                counted["failed"] += (counts.failed or 0) if counts else 0
            elif await self._collect(row, batch):
                changed = True
            else:
                statuses["not readable yet"] += 1
        words = [f"{count} {status.replace('_', ' ')}" for status, count in statuses.items()]
        run.stats.waiting_for = (
            *([f"batches: {', '.join(words)}"] if words else []),
            *(f"{count:,} {what} there" for what, count in counted.items() if count),
            *(["waits for room in the queue"] if run.queue.held_back else []),
        )
        if unknown and run.open <= unknown.keys():
            raise next(iter(unknown.values()))
        return changed

    def _recover(self, row: JournalRow, listed: Sequence[Any]) -> bool:
        """Find a batch that was perhaps created; whether the row has come to its end."""
        found = find_batch(listed, row.intent, row.file_id)
        if found is not None:
            self._run.journal.note(row.intent, batch_id=found.id)
            return False
        if self._is_new(row):
            return False
        self._run.forget(row.intent)
        return True

    async def _retrieve(self, row: JournalRow) -> Any:
        """The batch, or None if it is so new that the server doesn't know it everywhere."""
        batch_id = str(row.batch_id)
        try:
            return await self._run.server.retrieve(batch_id)
        except RequestRefused as error:
            if self._is_new(row):
                return None
            raise RunStopped(
                f"{error}; batch {batch_id} holds {row.requests:,} requests of this run. Use the "
                "key of the account that created it, or, to give it up and submit them again, "
                f"delete {shown(self._run.journal.path)}"
            ) from error

    def _is_new(self, row: JournalRow) -> bool:
        sent_s = row.sent_s or -math.inf
        return abs(time.time() - sent_s) <= self._run.limits.settle_s

    def _has_ended(self, batch: Any) -> bool:
        """Whether nothing more will come; an output file may appear a little later."""
        if batch.status not in _ENDED:
            return False
        is_named = not _count_promised(batch) or batch.output_file_id
        return bool(is_named or self._has_waited(batch, "name"))

    def _has_waited(self, batch: Any, what: str) -> bool:
        """Whether something that an ended batch promises has been missing for long."""
        since_s = self._missing_since_s.setdefault((batch.id, what), time.monotonic())
        return time.monotonic() - since_s > self._run.limits.settle_s

    async def _collect(self, row: JournalRow, batch: Any) -> bool:
        """Store a batch's answers, note its failures, and close it in the journal.

        Returns:
            Whether it is at its end for this run; else it is worth another look.
        """
        run = self._run
        errors = "; ".join(
            f"{error.code or 'error'}: {error.message}"
            + (f" (line {error.line})" if error.line is not None else "")
            for error in (batch.errors.data if batch.errors else None) or []
        )
        keys = run.journal.keys(row.intent)
        if batch.status == "failed" and QUEUE_FULL.search(errors):
            run.forget(row.intent)
            run.meet_full_queue(keys)
            return True
        results, promised = Results(keys, row.limit_field), _count_promised(batch)
        refusal = await self._read(batch.output_file_id, results)
        answers, lines = len(results.seen), results.lines  # of the output file alone
        error_refusal = await self._read(batch.error_file_id, results)
        is_short = bool(results.without_line()) and answers < promised
        if (refusal or error_refusal or is_short) and not self._has_waited(batch, "lines"):
            return False
        # Lines that stay damaged are left out below, but a proxy's page has no others.
        if refusal or (is_short and not (answers and lines >= promised)):
            self._leave_unread(row, batch, results, refusal)
            return True
        is_unread = error_refusal or (batch.output_file_id and not answers)
        is_empty = not (promised or batch.output_file_id)
        # Without a single line nobody knows whether there is something to be deleted.
        is_unsure = not (lines or is_empty)
        is_damaged = results.is_damaged() or results.unreadable
        keep = bool(is_damaged or is_unread or is_unsure)
        self._close(row, batch, results, errors, keep_files=keep)
        if _NO_CREDIT.search(errors):
            raise RunStopped(f"batch {batch.id}: {errors}; the account has no credit left")
        return True

    async def _read(self, file_id: str | None, results: Results) -> RequestRefused | None:
        """Store the answers in a file, if there is one; what the server says if it refuses it."""
        if not file_id:
            return None
        run = self._run
        with tempfile.TemporaryFile() as file:
            try:
                await run.server.download(file_id, file)
            except RequestRefused as error:
                return error
            for lines in read_lines(file):
                answers = dict(results.read(lines, run.server.backend.redacted))
                there = run.store.get_many(list(answers))
                new = {key: value for key, value in answers.items() if key not in there}
                await asyncio.gather(
                    *(run.store.put(key, new[key], run.scopes.get(key)) for key in new)
                )
                for key, completion in answers.items():
                    run.costs.charge(key, completion)
                run.stats.answered += len(new)
                for completion in new.values():
                    run.stats.prompt_tokens += completion.prompt_tokens or 0
                    run.stats.completion_tokens += completion.completion_tokens or 0
        return None

    def _leave_unread(
        self, row: JournalRow, batch: Any, results: Results, refusal: RequestRefused | None
    ) -> None:
        """Go on without answers that are paid for and can't be had now; the next run tries again.

        Only where there is no file long after the batch was made are the requests free again.
        """
        run = self._run
        age_s = time.time() - (row.sent_s or batch.created_at or math.inf)
        is_missing = refusal is not None and refusal.status in (404, 410)
        is_gone = is_missing and age_s > run.limits.gone_after_s
        why = refusal or (
            f"the provider counts at least {_count_promised(batch):,} answers, its files have "
            f"{len(results.seen):,} that can be read"
        )
        advice = (
            "they are gone, and the next run submits these requests again"
            if is_gone
            else "run the same command again for them, or, to give them up and submit again what "
            f"all open batches hold, delete {shown(run.journal.path)}"
        )
        left = results.keys - results.answered
        failure = Failed("unread", f"answers of batch {batch.id}: {why}; {advice}")
        _log.warning(f"{count_of(len(left), 'request')} got no answer: {failure.message}")
        run.failures.update(dict.fromkeys(left, failure))
        for key in left:
            run.costs.charge(key)  # paid for, as it seems
        if is_gone:
            run.forget(row.intent)
        else:
            run.unread[row.intent] = failure
            run.open.discard(row.intent)

    def _close(
        self, row: JournalRow, batch: Any, results: Results, errors: str, *, keep_files: bool
    ) -> None:
        """Note what came of a batch whose answers are stored, and say so."""
        run, without = self._run, results.without_line()
        words = errors or f"batch {batch.id} {batch.status} without an answer to this request"
        cause = "no_answer" if batch.status == "completed" else f"batch_{batch.status}"
        missing = Failed(cause, f"batch {batch.id}: {words}"[:WORDS_SHOWN])
        run.failures.update(dict.fromkeys(without, missing))
        run.failures.update(results.failures)
        # What lines cost that can't be read, nobody knows.
        paid = results.unreadable | (without if results.is_damaged() else set())
        for key in paid:
            run.costs.charge(key)
        run.costs.release(results.keys - paid)
        run.journal.close(row.intent, run.server.identity, results, keep_files=keep_files)
        run.open.discard(row.intent)
        if run.queue.room is not None:
            run.queue.room += 1
        kept = "its files are kept at the server"
        if without:
            _log.warning(f"{count_of(len(without), 'request')} got no answer: {missing.message}")
        if results.unreadable:
            first = results.failures[min(results.unreadable)].message
            words = f"{count_of(len(results.unreadable), 'answer')} can't be read"
            _log.warning(f"batch {batch.id}: {words}, the first: {first}; {kept}")
        if results.is_damaged():
            _log.warning(
                f"batch {batch.id}: left out {results.unknown} lines about unknown requests and "
                f"{results.damaged} damaged lines; {kept}"
            )
        _log.info(f"batch {batch.id}: {batch.status}, {count_of(len(results.answered), 'answer')}")

    async def clean_up(self) -> None:
        """Delete the files of batches whose answers are stored; what fails is left to later."""
        journal = self._run.journal
        for intent, batch_id in journal.stored_batches(self._run.server.identity["endpoint"]):
            try:
                await self._delete_files(batch_id)
            except TransientError as error:
                _log.debug("files of batch %s are left at the server: %s", batch_id, error)
                return
            journal.forget(intent)

    async def _delete_files(self, batch_id: str) -> None:
        server = self._run.server
        in_use = self._run.journal.file_ids()  # of a new batch of the same requests
        with contextlib.suppress(RequestRefused):  # gone already, or no right to
            batch = await server.retrieve(batch_id, patient=False)
            for file_id in (batch.input_file_id, batch.output_file_id, batch.error_file_id):
                if file_id and file_id not in in_use:
                    with contextlib.suppress(RequestRefused):
                        await server.delete(file_id)


def _count_promised(batch: Any) -> int:
    """Answers that the files of an ended batch have at least.

    Some servers count nothing, or not yet.
    """
    counts = batch.request_counts
    if counts is not None and ((counts.completed or 0) + (counts.failed or 0)):
        return int(counts.completed or 0)
    return int(batch.status == "completed")
