"""Answers through OpenAI's Batch API: half the price, within a day, without a request sent twice.

Requests that the store lacks go up as files, the server makes batches of them, and what comes back
lands in the store; after that the usual run finds all of it there. What makes it safe to kill at
any moment is a journal beside the store. It is written before every step, and a request is in one
open batch of it at most (its key is the table's). A step whose outcome got lost is looked up at the
server: files by their name, which holds the digest of their content, batches by their metadata.

All that submits or collects happens under a file lock; the wait between two looks doesn't hold it.
So several runs, of the same requests too, share their batches.

Where a run has a bound, requests go up as far as their worst cases fit, those that an earlier run
left under way included. What their answers leave of it goes into further batches, until the bound
is nearly reached: a batch of a few requests may take hours, too.

A batch stays open until as many lines were read as the provider says it answered, whatever a proxy
or a provider gives instead of its files. Input, output and error files are deleted at the server
once every line of them is in the store.

**Source:** https://developers.openai.com/api/docs/guides/batch (statuses, limits, line formats)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import re
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

import httpx2
import openai
from filelock import FileLock, Timeout
from openai.types import Batch, FileDeleted, FileObject

from mminstruct.backends._http import MOST_BYTES
from mminstruct.backends._refusals import Dialect
from mminstruct.backends.openai import OpenAIBackend, normal_base_url, payload
from mminstruct.completions.batch_api.drafts import (
    CHAT_PATH,
    DIGEST_NAME,
    INTENT_NAME,
    STORE_NAME,
    Draft,
    Limits,
    encode_line,
)
from mminstruct.completions.batch_api.journal import Journal, JournalRow
from mminstruct.completions.batch_api.results import WORDS_SHOWN, Results
from mminstruct.completions.budget import Budget, price_usd, worst_case_usd
from mminstruct.completions.client import too_long_a_pause
from mminstruct.completions.job import Attempt, Failed, Job
from mminstruct.completions.stats import Stats
from mminstruct.completions.store import ResponseStore, Scope
from mminstruct.errors import (
    BackendError,
    BackendUnusable,
    RequestRefused,
    RunStopped,
    TransientError,
)
from mminstruct.resources import shown
from mminstruct.schema import Request
from mminstruct.transport import RetryPolicy

_T = TypeVar("_T")
_ListCall = Callable[[openai.AsyncOpenAI, dict[str, Any], str | openai.Omit], Awaitable[Any]]
_ApiCall = Callable[[openai.AsyncOpenAI, dict[str, Any]], Awaitable[_T]]

_log = logging.getLogger(__name__)

_LIVE = ("validating", "in_progress", "finalizing")
_ENDED = ("completed", "failed", "expired", "cancelled")
_JOBS_AT_A_TIME = 500
_LINES_AT_A_TIME = 1000
_FEW_TRIES = 3
# A batch takes up to a day; for this long the server may be away, or the machine asleep.
_LONGEST_OUTAGE_S = 3600.0
# A call that the run can do without waits no longer than this.
_IMPATIENT_S = 5.0
_SLOWEST_BYTES_PER_S = 50_000
# A file that isn't there is not there yet, or nobody knows why, for so long.
_GONE_AFTER_S = 2 * 86400.0
# Once a bound was reached, so much of it has to be left for another batch.
_WORTH_A_BATCH = 0.1
_QUEUE_FULL = re.compile(r"token_limit_exceeded|enqueued token", re.IGNORECASE)
_NO_CREDIT = re.compile(r"insufficient_quota|billing_hard_limit", re.IGNORECASE)


def answer(
    jobs: Callable[[], Iterator[Job]],
    backend: OpenAIBackend,
    store_path: Path,
    *,
    policy: RetryPolicy,
    limits: Limits,
    stats: Stats,
    budget: Budget | None = None,
) -> dict[bytes, Failed]:
    """The failures by response key, once all other requests have their answers in the store.

    Args:
        jobs: starts an iterator over all requests, in an order that never changes.
        backend: not yet opened.
        store_path: of the response store; the journal lies beside it.
        policy: retries.
        limits: of the provider.
        stats: where to count.
        budget: what the run may ask for, at the prices of the Batch API.

    Raises:
        BackendError: the server can't be reached, or has no Batch API.
        RunStopped: the budget is used up, nothing at all was answered, or the account has no
            credit.
        StoreError: store or journal can't be written.
    """
    run = _Run(jobs, backend, store_path, policy, limits, stats, budget)
    # A thread of its own: a notebook runs an event loop in this one, and an interrupt would hit
    # the loop between any two of its steps.
    with ThreadPoolExecutor(1, thread_name_prefix="batch") as thread:
        future = thread.submit(asyncio.run, run.to_the_end())
        try:
            return future.result()
        except BaseException:
            if not future.done():
                run.cancel()
            raise


class _Run:
    """One run over all requests."""

    def __init__(
        self,
        jobs: Callable[[], Iterator[Job]],
        backend: OpenAIBackend,
        store_path: Path,
        policy: RetryPolicy,
        limits: Limits,
        stats: Stats,
        budget: Budget | None,
    ) -> None:
        self._jobs = jobs
        self._backend = backend
        self._identity = backend.identity()
        self._store = ResponseStore(store_path)
        self._journal = Journal(store_path.with_name(f"{store_path.name}.batches"))
        self._policy = policy
        self._limits = limits
        self._stats = stats
        self._budget = budget if budget is not None and budget.bounded else None
        self._reserved: dict[bytes, float] = {}  # worst cases of what is under way, if bounded
        self._at_bound = False
        self._rng = random.Random()  # noqa: S311
        self._failures: dict[bytes, Failed] = {}
        self._scopes: dict[bytes, Scope | None] = {}
        self._open: set[str] = set()
        self._missing_since_s: dict[tuple[str, str], float] = {}
        self._unread: dict[str, Failed] = {}
        self._file_requests = limits.requests
        self._room: int | None = None
        self._held_back = False
        self._reached = False
        self._answers = 0
        self._task: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def cancel(self) -> None:
        """End the run from another thread; batches go on at the server."""
        if self._loop is not None and self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)

    async def to_the_end(self) -> dict[bytes, Failed]:
        """As `answer`."""
        self._task, self._loop = asyncio.current_task(), asyncio.get_running_loop()
        self._stats.started_s = time.monotonic()
        with self._store, self._journal, tempfile.TemporaryDirectory() as scratch:
            async with self._backend:
                others = len(self._backend.endpoints) - 1
                if others:
                    where = self._identity["endpoint"]
                    _log.info("batches go to %s alone, not to the %d other URLs", where, others)
                try:
                    await self._rounds(Path(scratch))
                except BaseException:
                    self._say_what_goes_on()
                    raise
                finally:
                    self._stats.waiting_for = ()
        if self._at_bound and self._budget is not None:
            raise RunStopped(self._budget.reached("another batch would exceed or nearly reach"))
        if not self._answers and self._failures:
            last = next(reversed(self._failures.values()))
            if not last.rejected:
                raise RunStopped(f"no request was answered; one of the failures: {last.message}")
        return self._failures

    async def _rounds(self, scratch: Path) -> None:
        """Submit, wait and collect until a look at all requests finds none left to wait for.

        What was refused as too long is submitted in its next length, so there may be several
        rounds; what failed is left to the next run.
        """
        started_s = time.monotonic()
        changed = True
        while True:
            async with self._locked():
                changed |= await self._look(scratch)
                if changed:
                    await self._submit(scratch)
                    changed = False
                await self._clean_up()
            if not self._open and not self._held_back:
                return
            # A batch that takes hours needs no look every other second.
            elapsed_s = time.monotonic() - started_s
            await asyncio.sleep(min(self._limits.poll_s, max(2.0, elapsed_s / 10)))
            changed |= self._held_back and not self._open

    @contextlib.asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        lock = FileLock(f"{self._journal.path}.lock")
        while True:
            try:
                lock.acquire(timeout=0)
                break
            except Timeout:
                self._stats.waiting_for = ("another run is at its batches",)
                await asyncio.sleep(min(1.0, self._limits.poll_s))
        try:
            yield
        finally:
            lock.release()

    # Looking at all requests, and submitting what is missing.

    async def _submit(self, scratch: Path) -> None:
        """Make batches of what is neither stored, nor failed, nor in an open batch."""
        files: dict[str, str] | None = None
        batches: list[Any] = []
        self._held_back = False
        async with contextlib.aclosing(self._drafts(scratch)) as drafts:
            async for draft in drafts:
                if self._room == 0 and self._open:
                    self._hold_back(draft.keys)
                else:
                    if files is None:
                        batches, files = await self._batches(), await self._files()
                    await self._submit_one(draft, files, batches)
                draft.path.unlink()
        if self._held_back:  # its share of the budget is free again
            self._at_bound = False

    async def _drafts(self, scratch: Path) -> AsyncGenerator[Draft, None]:
        """Files of what is missing, one at a time; counts everything else on the way."""
        endpoint, model = self._identity["endpoint"], self._identity["model"]
        limit_field = self._journal.limit_field(endpoint, model)
        # Of OpenAI's models, all know the newer name of the limit and some know nothing else, nor
        # temperature and top_p, which are 1 for all of them where they are left out.
        official = endpoint == normal_base_url(None)
        implied = frozenset(("temperature", "top_p") if official else ())
        if limit_field is None:
            limit_field = "max_completion_tokens" if official else "max_tokens"
        dialect = Dialect(limit_field, implied)
        failed: Counter[str] = Counter()
        seen: set[bytes] = set()
        full = self._at_bound and self._budget is not None and self._budget.left < _WORTH_A_BATCH
        self._at_bound = False
        store = self._store.identifier()
        draft, answered = Draft(scratch, store, limit_field), 0
        jobs = self._jobs()
        with contextlib.ExitStack() as last:
            last.callback(lambda: draft.closed())
            while chunk := list(islice(jobs, _JOBS_AT_A_TIME)):
                attempts = [Attempt(job, self._backend, self._identity) for job in chunk]
                stored = self._shortened(attempts)
                keys = [a.key for a in attempts if a.key is not None and a.key not in stored]
                under_way = self._journal.open_batches(keys)
                for attempt in attempts:
                    key, request = attempt.key, attempt.request
                    if key is None or request is None:
                        continue  # too long for the window; the client counts it
                    if key in stored:
                        answered += 1
                        self._settle(key, self._reserved.get(key))  # by another run
                    elif key in under_way and under_way[key] in self._unread:
                        self._failures[key] = self._unread[under_way[key]]
                        failed[self._failures[key].cause] += 1
                    elif key in under_way:
                        self._scopes[key] = attempt.scope
                        self._open.add(under_way[key])
                        self._reserve(key, request, sent=True)
                    elif key in self._failures:
                        failed[self._failures[key].cause] += 1
                    elif key not in seen:
                        seen.add(key)
                        full = full or not self._reserve(key, request)
                        if full:
                            self._at_bound = True
                            continue
                        self._scopes[key] = attempt.scope
                        body = payload(
                            model, request, dialect=dialect, extra=self._backend.extra_body
                        )
                        line = encode_line(key, body)
                        if draft.is_full(len(line), self._file_requests, self._limits.file_bytes):
                            yield draft.closed()
                            draft = Draft(scratch, store, limit_field)
                        draft.add(key, line)
                await asyncio.sleep(0)  # where an interrupt gets through
            if draft.keys:
                yield draft.closed()
        self._answers = answered
        self._stats.stored = answered - self._stats.answered
        self._stats.failed = failed

    def _shortened(self, attempts: Sequence[Attempt]) -> set[bytes]:
        """The keys that are stored, after all attempts went on to a length not refused yet."""
        stored: set[bytes] = set()
        while attempts:
            keys = [a.key for a in attempts if a.key is not None]
            stored.update(self._store.get_many(keys))
            refused = self._journal.refusals([key for key in keys if key not in stored])
            attempts = [a for a in attempts if a.key in refused]
            for attempt in attempts:
                if attempt.key is not None:
                    failure = self._failures[attempt.key] = refused[attempt.key]
                    attempt.shorten(failure.room)
        return stored

    async def _submit_one(self, draft: Draft, files: dict[str, str], batches: list[Any]) -> None:
        # A batch of the very same file for the same store that its journal doesn't know: it was
        # lost. What another store's run asks for is that one's to fetch and to delete.
        known = self._journal.batch_ids()
        for batch in batches:
            metadata = batch.metadata or {}
            same = (metadata.get(DIGEST_NAME), metadata.get(STORE_NAME)) == (
                draft.digest,
                draft.store,
            )
            if same and batch.status in _LIVE and batch.id not in known:
                intent = str(metadata.get(INTENT_NAME))
                self._journal.add(intent, self._identity["endpoint"], draft)
                self._journal.created(intent, batch.id)
                self._open.add(intent)
                return
        intent = uuid.uuid4().hex
        self._journal.add(intent, self._identity["endpoint"], draft)
        try:
            file_id = files.get(draft.name) or await self._upload(draft)
            self._journal.uploaded(intent, file_id)
            batch = await self._create(intent, draft, file_id)
        except BackendError as error:
            if _QUEUE_FULL.search(str(error)):
                self._journal.forget(intent)
                self._queue_full(draft.keys)
                return
            if isinstance(error, RequestRefused):
                self._journal.forget(intent)
                raise BackendUnusable(f"{error}; the batch was not created") from error
            raise
        self._journal.created(intent, batch.id)
        self._open.add(intent)
        if self._room:
            self._room -= 1
        self._stats.sent += len(draft.keys)
        _log.info("batch %s: %s requests", batch.id, f"{len(draft.keys):,}")

    def _queue_full(self, keys: Collection[bytes]) -> None:
        """Go on with fewer tokens at a time: first of batches, then of requests in each."""
        if not self._open and len(keys) > 1:
            self._file_requests = (len(keys) + 1) // 2
        if self._room is None:
            _log.info("the provider's limit on enqueued tokens is reached; the rest goes up later")
        self._room = 0
        self._hold_back(keys)

    def _hold_back(self, keys: Iterable[bytes]) -> None:
        """Leave some requests, and their share of the budget, to a later look."""
        self._held_back, self._at_bound = True, False
        for key in keys:
            self._settle(key, None)

    def _reserve(self, key: bytes, request: Request, *, sent: bool = False) -> bool:
        """Whether a request fits the budget, which counts its worst case from now on.

        Args:
            key: of the request.
            request: which is about to be submitted.
            sent: it was submitted before, so it counts whether it fits or not.
        """
        if self._budget is None or (sent and key in self._reserved):
            return True
        self._settle(key, None)  # it was under way, and came to nothing
        most_usd = worst_case_usd(self._budget, self._backend, request)
        if sent:
            self._budget.count(most_usd)
        elif not self._budget.admit(most_usd):
            return False
        self._reserved[key] = most_usd
        return True

    def _settle(self, key: bytes, paid_usd: float | None) -> None:
        """Count what a request cost in the place of its worst case; None if it cost nothing."""
        most_usd = self._reserved.pop(key, None)
        if self._budget is not None and most_usd is not None:
            self._budget.settle(most_usd, paid_usd)

    async def _upload(self, draft: Draft) -> str:
        async def upload(client: openai.AsyncOpenAI, headers: dict[str, Any]) -> Any:
            with draft.path.open("rb") as file:
                return await client.files.create(
                    file=(draft.name, file, "application/jsonl"),
                    purpose="batch",
                    extra_headers=headers,
                )

        async def existing() -> Any:
            return (await self._files()).get(draft.name)

        sending_s = draft.path.stat().st_size / _SLOWEST_BYTES_PER_S
        timeout_s = self._backend.timeout_s + sending_s
        done = await self._call(upload, existing, timeout_s=timeout_s)
        return done if isinstance(done, str) else str(done.id)

    async def _create(self, intent: str, draft: Draft, file_id: str) -> Any:
        async def create(client: openai.AsyncOpenAI, headers: dict[str, Any]) -> Any:
            self._journal.creating(intent)
            return await client.batches.create(
                completion_window="24h",
                endpoint=CHAT_PATH,
                input_file_id=file_id,
                metadata={INTENT_NAME: intent, DIGEST_NAME: draft.digest, STORE_NAME: draft.store},
                extra_headers=headers,
            )

        async def existing() -> Any:
            deadline_s = time.monotonic() + self._limits.settle_s
            while True:
                found = _find(await self._batches(), intent, file_id)
                if found is not None or time.monotonic() > deadline_s:
                    return found
                await asyncio.sleep(min(5.0, self._limits.settle_s / 10))

        deadline_s = time.monotonic() + self._limits.settle_s
        while True:
            try:
                return await self._call(create, existing)
            except RequestRefused as error:
                # Right after its upload a file may still be unknown.
                if file_id not in str(error) or time.monotonic() > deadline_s:
                    raise
                await asyncio.sleep(min(5.0, self._limits.settle_s / 10))

    # Looking at the batches, and collecting what has ended.

    async def _look(self, scratch: Path) -> bool:
        """Look after all open batches; whether a new look at the requests is worth it."""
        rows = self._journal.rows(self._open)
        changed = len(rows) < len(self._open)  # another run has collected some
        self._open.intersection_update(row.intent for row in rows)
        statuses: Counter[str] = Counter()
        done = failed = 0
        listed: list[Any] | None = None
        unknown: dict[str, RunStopped] = {}
        for row in rows:
            if row.batch_id is None:
                if listed is None:
                    listed = await self._batches()
                changed |= self._recover(row, listed)
                continue
            try:
                batch = await self._retrieve(row)
            except RunStopped as error:
                if not isinstance(error.__cause__, RequestRefused):
                    raise
                unknown[row.intent] = error  # what the others have comes first
                continue
            if batch is None or not self._has_ended(batch):
                statuses[batch.status if batch is not None else "validating"] += 1
                counts = batch.request_counts if batch is not None else None
                done += (counts.completed or 0) if counts else 0
                failed += (counts.failed or 0) if counts else 0
                continue
            if await self._collect(row, batch, scratch):
                changed = True
            else:
                statuses["not readable yet"] += 1
        words = [f"{count} {status.replace('_', ' ')}" for status, count in statuses.items()]
        self._stats.waiting_for = (
            *([f"batches: {', '.join(words)}"] if words else []),
            *([f"{done:,} done there"] if done else []),
            *([f"{failed:,} failed there"] if failed else []),
            *(["waits for room in the queue"] if self._held_back else []),
        )
        if unknown and self._open <= unknown.keys():
            raise next(iter(unknown.values()))
        return changed

    def _recover(self, row: JournalRow, listed: Sequence[Any]) -> bool:
        """Find a batch that was perhaps created; whether the row has come to its end."""
        found = _find(listed, row.intent, row.file_id)
        if found is not None:
            self._journal.created(row.intent, found.id)
            return False
        if row.sent_s is None or abs(time.time() - row.sent_s) > self._limits.settle_s:
            self._journal.forget(row.intent)
            self._open.discard(row.intent)
            return True
        return False

    async def _retrieve(self, row: JournalRow) -> Any:
        """The batch, or None if it is so new that the server doesn't know it everywhere."""
        batch_id = str(row.batch_id)
        try:
            return await self._call(
                lambda client, headers: client.batches.retrieve(batch_id, extra_headers=headers)
            )
        except RequestRefused as error:
            if row.sent_s and abs(time.time() - row.sent_s) <= self._limits.settle_s:
                return None
            raise RunStopped(
                f"{error}; batch {batch_id} holds {row.requests:,} requests of this run. Use the "
                "key of the account that created it, or, to give it up and submit them again, "
                f"delete {shown(self._journal.path)}"
            ) from error

    def _has_ended(self, batch: Any) -> bool:
        """Whether nothing more will come; an output file may appear a little later."""
        if batch.status not in _ENDED:
            return False
        is_named = not _promised(batch) or batch.output_file_id
        return bool(is_named or self._has_waited(batch, "name"))

    def _has_waited(self, batch: Any, what: str) -> bool:
        """Whether something that an ended batch promises has been missing for long."""
        since_s = self._missing_since_s.setdefault((batch.id, what), time.monotonic())
        return time.monotonic() - since_s > self._limits.settle_s

    async def _collect(self, row: JournalRow, batch: Any, scratch: Path) -> bool:
        """Store a batch's answers, note its failures, and close it in the journal.

        Returns:
            Whether it is at its end for this run; else it is worth another look.
        """
        errors = "; ".join(
            f"{error.code or 'error'}: {error.message}"
            + (f" (line {error.line})" if error.line is not None else "")
            for error in (batch.errors.data if batch.errors else None) or []
        )
        if batch.status == "failed" and _QUEUE_FULL.search(errors):
            self._open.discard(row.intent)
            keys = self._journal.keys(row.intent)
            self._journal.forget(row.intent)
            self._queue_full(keys)
            return True
        results = Results(self._journal.keys(row.intent), row.limit_field)
        refusals: dict[int, RequestRefused] = {}
        answers = lines = 0  # of the output file: requests it is about, and all
        for number, file_id in enumerate((batch.output_file_id, batch.error_file_id)):
            if file_id:
                path = scratch / f"results-{number}.jsonl"
                try:
                    await self._download(file_id, path)
                    await self._store_lines(path, results)
                except RequestRefused as error:
                    refusals[number] = error
                path.unlink(missing_ok=True)
            if number == 0:
                answers, lines = results.about, results.lines
        is_short = bool(results.without_line()) and answers < _promised(batch)
        if (refusals or is_short) and not self._has_waited(batch, "lines"):
            return False
        # Lines that stay damaged are left out below, but a proxy's page has no others.
        if 0 in refusals or (is_short and not (answers and lines >= _promised(batch))):
            self._leave_unread(row, batch, results, refusals.get(0))
            return True
        words = errors or f"batch {batch.id} {batch.status} without an answer to this request"
        cause = "no_answer" if batch.status == "completed" else f"batch_{batch.status}"
        missing = Failed(cause, f"batch {batch.id}: {words}"[:WORDS_SHOWN])
        self._failures.update(dict.fromkeys(results.without_line(), missing))
        self._failures.update(results.failures)
        # What lines cost that can't be read, nobody knows.
        lost = results.without_line() if results.is_damaged() else set()
        for key in results.keys:
            is_paid = key in lost or key in results.unreadable
            self._settle(key, self._reserved.get(key) if is_paid else None)
        # Without a single line nobody knows whether there is something to be deleted.
        nothing = not (_promised(batch) or batch.output_file_id)
        is_unread = batch.output_file_id and not answers
        is_whole = not (results.is_damaged() or results.unreadable or refusals or is_unread)
        keep = not is_whole or not (lines or nothing)
        self._journal.close(row.intent, self._identity, results, keep_files=keep)
        self._open.discard(row.intent)
        if self._room is not None:
            self._room += 1
        self._say_how_it_ended(batch, results, missing)
        if _NO_CREDIT.search(errors):
            raise RunStopped(f"batch {batch.id}: {errors}; the account has no credit left")
        return True

    def _leave_unread(
        self, row: JournalRow, batch: Any, results: Results, refusal: RequestRefused | None
    ) -> None:
        """Go on without answers that are paid for and can't be had now; the next run tries again.

        Only where there is no file long after the batch was made are the requests free again.
        """
        age_s = time.time() - (row.sent_s or batch.created_at or math.inf)
        gone = refusal is not None and refusal.status in (404, 410) and age_s > _GONE_AFTER_S
        why = refusal or (
            f"the provider counts at least {_promised(batch):,} answers, its files have "
            f"{results.about:,} that can be read"
        )
        advice = (
            "they are gone, and the next run submits these requests again"
            if gone
            else "run the same command again for them, or, to give them up and submit again what "
            f"all open batches hold, delete {shown(self._journal.path)}"
        )
        left = results.keys - results.answered
        failure = Failed("unread", f"answers of batch {batch.id}: {why}; {advice}")
        _log.warning("%s requests have no answer: %s", f"{len(left):,}", failure.message)
        self._failures.update(dict.fromkeys(left, failure))
        for key in left:
            self._settle(key, self._reserved.get(key))  # paid for, as it seems
        if gone:
            self._journal.forget(row.intent)
        else:
            self._unread[row.intent] = failure
        self._open.discard(row.intent)

    async def _download(self, file_id: str, path: Path) -> None:
        async def download(client: openai.AsyncOpenAI, headers: dict[str, Any]) -> bool:
            content = client.files.with_streaming_response.content(
                file_id,
                extra_headers=headers,
                # Of each part, not of the whole.
                timeout=httpx2.Timeout(self._backend.timeout_s),
            )
            try:
                with path.open("wb") as file:
                    async with content as response:
                        async for chunk in response.iter_bytes():
                            file.write(chunk)
            except httpx2.HTTPError as error:
                words = f"download of {file_id}: {error or type(error).__name__}"
                raise TransientError(words, cause="dropped") from error
            return True

        await self._call(download, timeout_s=math.inf)

    async def _store_lines(self, path: Path, results: Results) -> None:
        with path.open("rb") as file:
            for chunk in _chunks(file):
                answers = dict(results.read(chunk, self._backend.redacted))
                there = self._store.get_many(list(answers))
                new = {key: value for key, value in answers.items() if key not in there}
                await asyncio.gather(
                    *(self._store.put(key, new[key], self._scopes.get(key)) for key in new)
                )
                for key in answers.keys() & self._reserved.keys():
                    self._settle(key, price_usd(self._budget, answers[key], self._reserved[key]))
                self._stats.answered += len(new)
                for completion in new.values():
                    self._stats.prompt_tokens += completion.prompt_tokens or 0
                    self._stats.completion_tokens += completion.completion_tokens or 0

    async def _clean_up(self) -> None:
        """Delete the files of batches whose answers are stored; what fails is left to later."""
        for intent, batch_id in self._journal.stored(self._identity["endpoint"]):
            try:
                await self._delete_files(batch_id)
            except TransientError as error:
                _log.debug("files of batch %s are left at the server: %s", batch_id, error)
                return
            self._journal.forget(intent)

    async def _delete_files(self, batch_id: str) -> None:
        in_use = self._journal.file_ids()  # of a new batch of the same requests
        with contextlib.suppress(RequestRefused):  # gone already, or no right to
            batch = await self._call(
                lambda client, headers: client.batches.retrieve(batch_id, extra_headers=headers),
                patient=False,
            )
            for file_id in (batch.input_file_id, batch.output_file_id, batch.error_file_id):
                if file_id and file_id not in in_use:
                    await self._delete(file_id)

    async def _delete(self, file_id: str) -> None:
        with contextlib.suppress(RequestRefused):
            await self._call(
                lambda client, headers: client.files.delete(file_id, extra_headers=headers),
                patient=False,
            )

    # Talking to the server.

    async def _batches(self) -> list[Any]:
        """All batches that the server lists, of others too."""
        try:
            return await self._pages(
                lambda client, headers, after: client.batches.list(
                    limit=100, after=after, extra_headers=headers
                )
            )
        except RequestRefused as error:
            raise BackendUnusable(
                f"{error}; no Batch API can be used there: run without batch_api"
            ) from error

    async def _files(self) -> dict[str, str]:
        """Ids of uploaded files by name; none where the server doesn't list them."""
        try:
            found = await self._pages(
                lambda client, headers, after: client.files.list(
                    purpose="batch", after=after, extra_headers=headers
                )
            )
        except RequestRefused:
            return {}
        return {file.filename: file.id for file in found if file.status != "error"}

    async def _pages(self, page_after: _ListCall) -> list[Any]:
        found: dict[str, Any] = {}
        after: str | openai.Omit = openai.omit
        while True:

            async def page(client: openai.AsyncOpenAI, headers: dict[str, Any]) -> Any:
                listed = await page_after(client, headers, after)  # noqa: B023 (awaited right here)
                entries = listed.data
                if not isinstance(entries, list) or not all(
                    getattr(entry, "id", None) for entry in entries
                ):
                    raise TransientError("a list without entries", cause="bad_body")
                return listed

            listed = await self._call(page)
            new = {entry.id: entry for entry in listed.data if entry.id not in found}
            found.update(new)
            # A server that knows no pages gives the same one again.
            if not new or not listed.has_more:
                return list(found.values())
            after = next(reversed(new))

    async def _call(
        self,
        api_call: _ApiCall[_T],
        existing: Callable[[], Awaitable[_T | None]] | None = None,
        *,
        patient: bool = True,
        timeout_s: float | None = None,
    ) -> _T:
        """What a call gives, with retries.

        Args:
            api_call: what to call.
            existing: looks for what a call has made whose answer got lost.
            patient: whether the run can't go on without.
            timeout_s: of a single call; None is as long as for an answer, or short.
        """
        if not patient:
            timeout_s = min(_IMPATIENT_S, self._backend.timeout_s)
        retry, failing_since_s = 0, time.monotonic()
        while True:
            try:
                result = await self._once(api_call, timeout_s)
            except TransientError as error:
                wait_s = self._policy.wait_s(min(retry, 30), error.retry_after_s, self._rng)
                if patient and (error.retry_after_s or 0.0) > self._policy.max_pause_s:
                    raise too_long_a_pause(error) from error
                if not patient and wait_s > _IMPATIENT_S:
                    raise
                failing_s = time.monotonic() + wait_s - failing_since_s
                if self._is_over(error, retry, failing_s, patient):
                    raise
                self._stats.waiting_for = (f"server: {error.cause}, tries again",)
            else:
                self._reached = True
                return result
            retry += 1
            self._stats.retries += 1
            await asyncio.sleep(wait_s)
            if existing is not None:
                found = await existing()
                if found is not None:
                    return found

    async def _once(self, api_call: _ApiCall[_T], timeout_s: float | None) -> _T:
        try:
            result = await self._backend.call(api_call, timeout_s=timeout_s)
        except (ValueError, AttributeError) as error:  # the latter where the SDK expects a page
            raise TransientError(f"not JSON: {error}", cause="bad_body") from error
        if isinstance(result, str):  # what the SDK makes of another content type
            words = self._backend.redacted(result)[:WORDS_SHOWN]
            raise TransientError(f"not JSON: {words!r}", cause="bad_body")
        if result is None or type(result) in (list, int, float):
            raise TransientError(f"not what was asked for: {result!r}", cause="bad_body")
        # Whatever JSON comes, the SDK makes its types of it.
        whole = result.status if isinstance(result, Batch) else True
        if isinstance(result, Batch | FileObject | FileDeleted) and not (result.id and whole):
            words = self._backend.redacted(result.to_json(indent=None))[:WORDS_SHOWN]
            raise TransientError(f"neither file nor batch: {words}", cause="bad_body")
        return result

    def _is_over(self, error: TransientError, retry: int, failing_s: float, patient: bool) -> bool:
        """Whether to give up; a server that has answered before gets an hour."""
        if _QUEUE_FULL.search(str(error)):
            return True
        if self._reached and patient:
            return failing_s > _LONGEST_OUTAGE_S
        few = error.cause == "unreachable" or not patient
        tries = _FEW_TRIES if few else self._policy.max_retries + 1
        return retry + 1 >= min(tries, self._policy.max_retries + 1)

    # Telling the user.

    def _say_how_it_ended(self, batch: Any, results: Results, missing: Failed) -> None:
        without = len(results.without_line())
        if without:
            _log.warning("%s requests got no answer: %s", f"{without:,}", missing.message)
        if results.unreadable:
            _log.warning(
                "batch %s: %s answers can't be read, the first: %s; its files are kept at the "
                "server",
                batch.id,
                f"{len(results.unreadable):,}",
                results.failures[min(results.unreadable)].message,
            )
        if results.unknown or results.damaged:
            _log.warning(
                "batch %s: left out %d lines about unknown requests and %d damaged lines; "
                "its files are kept at the server",
                batch.id,
                results.unknown,
                results.damaged,
            )
        _log.info("batch %s: %s, %s answers", batch.id, batch.status, f"{len(results.answered):,}")

    def _say_what_goes_on(self) -> None:
        rows = [row for row in self._journal.rows(self._open) if row.batch_id]
        if rows:
            url = self._identity["endpoint"]
            _log.warning(
                "%s requests go on at the provider. Run the same command again for their answers. "
                'To cancel a batch: curl -X POST -H "Authorization: Bearer $OPENAI_API_KEY" '
                "%s/batches/ID/cancel with one of %s",
                f"{sum(row.requests for row in rows):,}",
                url,
                ", ".join(str(row.batch_id) for row in rows),
            )


def _promised(batch: Any) -> int:
    """Answers that the files of an ended batch have at least.

    Some servers count nothing, or not yet.
    """
    counts = batch.request_counts
    if counts is not None and ((counts.completed or 0) + (counts.failed or 0)):
        return int(counts.completed or 0)
    return int(batch.status == "completed")


def _find(batches: Iterable[Any], intent: str, file_id: str | None) -> Any:
    """The batch of an intent; where a server keeps no metadata, the one of its file."""
    for batch in batches:
        metadata = batch.metadata or {}
        if metadata.get(INTENT_NAME) == intent or (
            not metadata and file_id is not None and batch.input_file_id == file_id
        ):
            return batch
    return None


def _chunks(file: IO[bytes]) -> Iterator[list[bytes]]:
    """A file's lines, some at a time; of one that is longer than any answer, the start alone."""
    chunk: list[bytes] = []
    left = MOST_BYTES
    while line := file.readline(MOST_BYTES + 1):
        chunk.append(line)
        left -= len(line)
        while line and not line.endswith(b"\n"):
            line = file.readline(MOST_BYTES)
        if left <= 0 or len(chunk) == _LINES_AT_A_TIME:
            yield chunk
            chunk, left = [], MOST_BYTES
    if chunk:
        yield chunk
