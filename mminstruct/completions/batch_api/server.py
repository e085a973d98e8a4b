"""The provider's files and batches: calls of its API, with retries.

A call whose answer got lost is not made again blindly: what it has made is looked up, files by
their name, which holds the digest of their content, batches by their metadata.

**Source:** https://developers.openai.com/api/docs/guides/batch
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import IO, Any

import httpx2
import openai
from openai.pagination import AsyncCursorPage
from openai.types import Batch

from mminstruct.backends._refusals import WORDS_SHOWN
from mminstruct.backends.openai import OpenAIBackend
from mminstruct.completions.batch_api.drafts import (
    CHAT_PATH,
    DIGEST_NAME,
    INTENT_NAME,
    STORE_NAME,
    Draft,
    Limits,
)
from mminstruct.completions.stats import Stats
from mminstruct.completions.stopping import too_long_a_pause
from mminstruct.errors import BackendUnusable, RequestRefused, TransientError
from mminstruct.transport import RetryPolicy

# Gets the SDK's client, and the options that go with every call.
_ApiCall = Callable[[openai.AsyncOpenAI, dict[str, Any]], Awaitable[Any]]

QUEUE_FULL = re.compile(r"token_limit_exceeded|enqueued token", re.IGNORECASE)
_FEW_TRIES = 3
# A batch takes up to a day; for this long the server may be away, or the machine asleep.
_LONGEST_OUTAGE_S = 3600.0
_SLOWEST_BYTES_PER_S = 50_000


class Server:
    """The provider, through an open backend.

    Attributes:
        backend: whose SDK client, key and time limit are used.
        identity: the backend's.
    """

    def __init__(
        self, backend: OpenAIBackend, policy: RetryPolicy, limits: Limits, stats: Stats
    ) -> None:
        self.backend = backend
        self.identity = backend.identity()
        self._policy = policy
        self._limits = limits
        self._stats = stats
        self._rng = random.Random()  # noqa: S311 (spreads retries, keeps no secret)
        self._was_reached = False

    async def upload(self, draft: Draft) -> str:
        """The id of a draft's file, once the server has it."""

        async def upload(api: openai.AsyncOpenAI, options: dict[str, Any]) -> Any:
            draft.file.seek(0)
            file = (draft.name, draft.file, "application/jsonl")
            return await api.files.create(file=file, purpose="batch", **options)

        async def look() -> Any:
            return (await self.list_files()).get(draft.name)

        timeout_s = self.backend.timeout_s + draft.bytes / _SLOWEST_BYTES_PER_S
        made = await self._call(upload, look, timeout_s=timeout_s)
        return made if isinstance(made, str) else str(made.id)

    async def create(
        self, intent: str, draft: Draft, file_id: str, note: Callable[[], None]
    ) -> Any:
        """The batch made of an uploaded file; `note` is called before each try."""
        names = {INTENT_NAME: intent, DIGEST_NAME: draft.digest, STORE_NAME: draft.store}
        pause_s = min(5.0, self._limits.settle_s / 10)

        async def create(api: openai.AsyncOpenAI, options: dict[str, Any]) -> Any:
            note()
            return await api.batches.create(
                completion_window="24h",
                endpoint=CHAT_PATH,
                input_file_id=file_id,
                metadata=names,
                **options,
            )

        async def look() -> Any:
            deadline_s = time.monotonic() + self._limits.settle_s
            while True:
                found = find_batch(await self.list_batches(), intent, file_id)
                if found is not None or time.monotonic() > deadline_s:
                    return found
                await asyncio.sleep(pause_s)

        deadline_s = time.monotonic() + self._limits.settle_s
        while True:
            try:
                return await self._call(create, look)
            except RequestRefused as error:
                # Right after its upload a file may still be unknown.
                if file_id not in str(error) or time.monotonic() > deadline_s:
                    raise
                await asyncio.sleep(pause_s)

    async def retrieve(self, batch_id: str, *, patient: bool = True) -> Any:
        """A batch as it stands now."""
        return await self._call(
            lambda api, options: api.batches.retrieve(batch_id, **options), patient=patient
        )

    async def download(self, file_id: str, file: IO[bytes]) -> None:
        """Write what a file at the server holds, and go back to its start."""
        timeout = httpx2.Timeout(self.backend.timeout_s)  # of each part, not of the whole

        async def download(api: openai.AsyncOpenAI, options: dict[str, Any]) -> bool:
            file.seek(0)
            file.truncate()
            content = api.files.with_streaming_response.content(file_id, timeout=timeout, **options)
            try:
                async with content as response:
                    async for chunk in response.iter_bytes():
                        file.write(chunk)
            except httpx2.HTTPError as error:
                words = f"download of {file_id}: {error or type(error).__name__}"
                raise TransientError(words, cause="dropped") from error
            file.seek(0)
            return True

        await self._call(download, timeout_s=math.inf)

    async def delete(self, file_id: str) -> None:
        """Delete a file, without much patience."""
        await self._call(lambda api, options: api.files.delete(file_id, **options), patient=False)

    async def list_batches(self) -> list[Any]:
        """All batches that the server lists, of others too."""
        try:
            return await self._list(lambda api, options: api.batches.list(limit=100, **options))
        except RequestRefused as error:
            raise BackendUnusable(
                f"{error}; no Batch API can be used there: run without batch_api"
            ) from error

    async def list_files(self) -> dict[str, str]:
        """Ids of uploaded files by name; none where the server doesn't list them."""
        try:
            found = await self._list(
                lambda api, options: api.files.list(purpose="batch", **options)
            )
        except RequestRefused:
            return {}
        return {file.filename: file.id for file in found if file.status != "error"}

    async def _list(self, list_some: _ApiCall) -> list[Any]:
        found: dict[str, Any] = {}
        after: dict[str, str] = {}
        while True:
            page = await self._call(
                lambda api, options: list_some(api, options | after)  # noqa: B023 (awaited here)
            )
            new = {entry.id: entry for entry in page.data if entry.id not in found}
            found.update(new)
            # A server that knows no pages gives the same one again.
            if not new or not page.has_more:
                return list(found.values())
            after = {"after": next(reversed(new))}

    async def _call(
        self,
        api_call: _ApiCall,
        look: Callable[[], Awaitable[Any]] | None = None,
        *,
        patient: bool = True,
        timeout_s: float | None = None,
    ) -> Any:
        """What a call gives, with retries.

        Args:
            api_call: what to call.
            look: looks for what a call has made whose answer got lost.
            patient: whether the run can't go on without.
            timeout_s: of a single call; None is as long as for an answer, or short.
        """
        if not patient:
            timeout_s = min(self._limits.impatient_s, self.backend.timeout_s)
        retry, failing_since_s = 0, time.monotonic()
        while True:
            try:
                result = await self._once(api_call, timeout_s)
            except TransientError as error:
                wait_s = self._policy.wait_s(min(retry, 30), error.retry_after_s, self._rng)
                if patient and (error.retry_after_s or 0.0) > self._policy.max_pause_s:
                    raise too_long_a_pause(error) from error
                if not patient and wait_s > self._limits.impatient_s:
                    raise
                failing_s = time.monotonic() + wait_s - failing_since_s
                if self._is_over(error, retry, failing_s, patient):
                    raise
                self._stats.waiting_for = (f"server: {error.cause}, tries again",)
            else:
                self._was_reached = True
                return result
            retry += 1
            self._stats.retries += 1
            await asyncio.sleep(wait_s)
            if look is not None and (found := await look()) is not None:
                return found

    async def _once(self, api_call: _ApiCall, timeout_s: float | None) -> Any:
        """What a single call gives; the SDK makes its types of any JSON, so that is looked at."""
        try:
            result = await self.backend.call(
                lambda api, headers: api_call(api, {"extra_headers": headers}), timeout_s=timeout_s
            )
        except (ValueError, AttributeError) as error:  # the latter where the SDK expects a page
            raise TransientError(f"not JSON: {error}", cause="bad_body") from error
        if result is True:  # a download, which is in its file
            return result
        entries = result.data if isinstance(result, AsyncCursorPage) else [result]
        are_named = isinstance(entries, list) and all(getattr(it, "id", None) for it in entries)
        if are_named and (result.status if isinstance(result, Batch) else True):
            return result
        text = result.to_json(indent=None) if isinstance(result, openai.BaseModel) else repr(result)
        words = self.backend.redacted(text)[:WORDS_SHOWN]
        raise TransientError(f"not what was asked for: {words}", cause="bad_body")

    def _is_over(self, error: TransientError, retry: int, failing_s: float, patient: bool) -> bool:
        """Whether to give up; a server that has answered before gets an hour."""
        if QUEUE_FULL.search(str(error)):
            return True
        if self._was_reached and patient:
            return failing_s > _LONGEST_OUTAGE_S
        few = error.cause == "unreachable" or not patient
        tries = _FEW_TRIES if few else self._policy.max_retries + 1
        return retry + 1 >= min(tries, self._policy.max_retries + 1)


def find_batch(batches: Iterable[Any], intent: str, file_id: str | None) -> Any:
    """The batch of an intent; where a server keeps no metadata, the one of its file."""
    for batch in batches:
        metadata = batch.metadata or {}
        if metadata.get(INTENT_NAME) == intent or (
            not metadata and file_id is not None and batch.input_file_id == file_id
        ):
            return batch
    return None
