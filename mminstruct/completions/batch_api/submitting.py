"""Requests that the store lacks -> batches at the provider."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from mminstruct.backends._refusals import Dialect
from mminstruct.backends.openai import normal_base_url, payload
from mminstruct.completions.batch_api.drafts import (
    DIGEST_NAME,
    INTENT_NAME,
    STORE_NAME,
    Draft,
    encode_line,
)
from mminstruct.completions.batch_api.server import QUEUE_FULL
from mminstruct.completions.batch_api.state import Run
from mminstruct.completions.job import Attempt, Job
from mminstruct.errors import BackendError, BackendUnusable, RequestRefused
from mminstruct.schema import NEUTRAL_AT_ONE, Request

_log = logging.getLogger(__name__)

_LIVE = ("validating", "in_progress", "finalizing")
_JOBS_AT_A_TIME = 500
# Once a bound was reached, so much of it has to be left for another batch.
_WORTH_A_BATCH = 0.1


class Submitter:
    """One look at all requests: those that are missing are submitted, and all are counted."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._answered = 0
        self._failed: Counter[str] = Counter()
        self._seen: set[bytes] = set()
        self._files: dict[str, str] | None = None  # at the server, listed once it matters
        self._batches: list[Any] = []
        budget, costs = run.costs.budget, run.costs
        self._is_full = costs.at_bound and budget is not None and budget.left < _WORTH_A_BATCH

    async def submit(self, jobs: Iterator[Job]) -> None:
        """Make batches of what is neither stored, nor failed, nor in an open batch."""
        run, backend, identity = self._run, self._run.server.backend, self._run.server.identity
        run.queue.held_back = run.costs.at_bound = False
        dialect, store = self._choose_dialect(), run.store.identifier()
        draft = Draft(store, dialect.limit_field)
        try:
            while chunk := list(islice(jobs, _JOBS_AT_A_TIME)):
                attempts = [Attempt(job, backend, identity) for job in chunk]
                for key, request in self._find_missing(attempts):
                    body = payload(
                        identity["model"], request, dialect=dialect, extra=backend.extra_body
                    )
                    line = encode_line(key, body)
                    if draft.is_full(len(line), run.queue.file_requests, run.limits.file_bytes):
                        await self._submit(draft)
                        draft = Draft(store, dialect.limit_field)
                    draft.add(key, line)
                await asyncio.sleep(0)  # where an interrupt gets through
            if draft.keys:
                await self._submit(draft)
        finally:
            draft.file.close()
        if run.queue.held_back:  # its share of the budget is free again
            run.costs.at_bound = False
        run.stats.stored = self._answered - run.stats.answered
        run.stats.failed = self._failed

    def _choose_dialect(self) -> Dialect:
        """What the model's requests look like.

        Of OpenAI's models, all know the newer name of the limit and some know nothing else, nor
        temperature and top_p, which are 1 for all of them where they are left out.
        """
        endpoint, model = (self._run.server.identity[name] for name in ("endpoint", "model"))
        official = endpoint == normal_base_url(None)
        limit_field = self._run.journal.limit_field(endpoint, model)
        if limit_field is None:
            limit_field = "max_completion_tokens" if official else "max_tokens"
        return Dialect(limit_field, frozenset(NEUTRAL_AT_ONE if official else ()))

    def _find_missing(self, attempts: list[Attempt]) -> Iterator[tuple[bytes, Request]]:
        """Those that are to be submitted, by key; counts the others."""
        run = self._run
        stored = self._shorten(attempts)
        keys = [a.key for a in attempts if a.key is not None and a.key not in stored]
        under_way = run.journal.open_batches(keys)
        for attempt in attempts:
            key, request = attempt.key, attempt.request
            if key is None or request is None:
                continue  # too long for the window; the client counts it
            intent = under_way.get(key)
            if key in stored:
                self._answered += 1
                run.costs.charge(key)  # by another run
            elif intent is not None and intent not in run.unread:
                run.scopes[key] = attempt.scope
                run.open.add(intent)
                run.costs.reserve(key, request, run.server, sent=True)
            elif intent is not None or key in run.failures:
                if intent is not None:
                    run.failures[key] = run.unread[intent]
                self._failed[run.failures[key].cause] += 1
            elif key not in self._seen:
                self._seen.add(key)
                self._is_full = self._is_full or not run.costs.reserve(key, request, run.server)
                if self._is_full:
                    run.costs.at_bound = True
                else:
                    run.scopes[key] = attempt.scope
                    yield key, request

    def _shorten(self, attempts: Sequence[Attempt]) -> set[bytes]:
        """The keys that are stored, after all attempts went on to a length not refused yet."""
        stored: set[bytes] = set()
        while attempts:
            keys = [a.key for a in attempts if a.key is not None]
            stored.update(self._run.store.get_many(keys))
            refused = self._run.journal.refusals([key for key in keys if key not in stored])
            attempts = [a for a in attempts if a.key in refused]
            for attempt in attempts:
                if attempt.key is not None:
                    failure = self._run.failures[attempt.key] = refused[attempt.key]
                    attempt.shorten(failure.room)
        return stored

    async def _submit(self, draft: Draft) -> None:
        """Make a batch of a draft, if the provider has room for it."""
        queue = self._run.queue
        if queue.room == 0 and self._run.open:
            self._run.hold_back(draft.keys)
        else:
            if self._files is None:
                self._batches = await self._run.server.list_batches()
                self._files = await self._run.server.list_files()
            if not self._adopt(draft):
                await self._create(draft, self._files.get(draft.name))
        draft.file.close()

    def _adopt(self, draft: Draft) -> bool:
        """Whether there is a batch of the very same file that the journal has lost; it is ours.

        What another store's run asks for is that one's to fetch and to delete.
        """
        known = self._run.journal.batch_ids()
        for batch in self._batches:
            metadata = batch.metadata or {}
            names = metadata.get(DIGEST_NAME), metadata.get(STORE_NAME)
            is_same = names == (draft.digest, draft.store)
            if is_same and batch.status in _LIVE and batch.id not in known:
                intent = str(metadata.get(INTENT_NAME))
                self._run.journal.add(intent, self._run.server.identity["endpoint"], draft)
                self._run.journal.note(intent, batch_id=batch.id)
                self._run.open.add(intent)
                return True
        return False

    async def _create(self, draft: Draft, file_id: str | None) -> None:
        run, intent = self._run, uuid.uuid4().hex
        run.journal.add(intent, run.server.identity["endpoint"], draft)
        try:
            file_id = file_id or await run.server.upload(draft)
            run.journal.note(intent, file_id=file_id)
            batch = await run.server.create(
                intent, draft, file_id, lambda: run.journal.note(intent, sent_s=time.time())
            )
        except BackendError as error:
            is_queue_full = QUEUE_FULL.search(str(error))
            if is_queue_full or isinstance(error, RequestRefused):
                run.journal.forget(intent)
            if is_queue_full:
                run.meet_full_queue(draft.keys)
                return
            if isinstance(error, RequestRefused):
                raise BackendUnusable(f"{error}; the batch was not created") from error
            raise
        run.journal.note(intent, batch_id=batch.id)
        run.open.add(intent)
        if run.queue.room:
            run.queue.room -= 1
        run.stats.sent += len(draft.keys)
        _log.info(f"batch {batch.id}: {len(draft.keys):,} requests")
