"""Continuous batching for a causal language model of `transformers`; imported when one is opened.

What prompts share is computed and kept once, and each row keeps what follows at its own columns, so
that rows join and leave without moving the others. Models for which that gives other logits go
through the library's own cache in left-padded batches; what suits a model is tried out as it is
loaded (`_transformers_probing`).
"""

from __future__ import annotations

import gc
import logging
import math
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from mminstruct.backends import _machine
from mminstruct.backends._transformers_batches import (
    CLOSED,
    Closed,
    Row,
    first_line,
    is_out_of_memory,
)
from mminstruct.backends._transformers_drawing import draw
from mminstruct.backends._transformers_probing import batch_for
from mminstruct.errors import BackendUnusable, RequestRefused, fault_of
from mminstruct.schema import FinishReason

_log = logging.getLogger(__name__)

_SLOTS = {"cpu": 32, "mps": 32, "cuda": 64}
# Of the memory that is free once the model is loaded; the rest is for activations and for others.
_SHARE_OF_MEMORY = {"cpu": 0.4, "mps": 0.6, "cuda": 0.7}
_STEPS_BEFORE_GROWTH = 512


class Engine:
    """Answers requests until it is closed; `serve` runs in a thread of its own.

    Args:
        model: loaded, in evaluation mode.
        ends: tokens that end an answer.
        window: tokens that prompt and answer may take together.
        slots: rows computed at once, or None for what suits the device.
    """

    def __init__(self, model: Any, *, ends: set[int], window: int, slots: int | None) -> None:
        self.model = model
        self._ends = ends
        # The thread of `serve` owns all of it; others put into `_waiting`, under `_changed`, or
        # set `_closing`.
        self._closing = threading.Event()
        self._changed = threading.Condition()
        self._waiting: deque[Row] = deque()
        self.batch, self._bytes_per_token, self.no_opening = batch_for(model, self._closing, window)
        device = model.device
        self._most = slots or _SLOTS.get(device.type, 32)
        self._slots = self._most
        self._steps = 0
        self._refused = 0
        self._any_finite = False
        self._alone: Row | None = None
        share = _SHARE_OF_MEMORY.get(device.type, 0.4)
        self._room = int(share * free_bytes(device)) // max(1, self._bytes_per_token)

    @property
    def slots(self) -> int:
        """Rows computed at once at most, as memory allows at present."""
        return self._slots

    def submit(self, row: Row) -> None:
        """Have a request answered.

        Raises:
            BackendUnusable: the engine has stopped.
        """
        with self._changed:
            if self._closing.is_set():
                raise BackendUnusable("the model's engine has stopped")
            self._waiting.append(row)
            self._changed.notify()

    def close(self) -> None:
        """Stop within a step; `serve` returns, and what isn't finished fails."""
        self._closing.set()
        with self._changed:
            self._changed.notify()

    @torch.inference_mode()  # type: ignore[untyped-decorator]  # torch has no types for it
    def serve(self) -> None:
        """Answer what is submitted, until closed."""
        reason = "the model's engine has stopped"
        try:
            fault = fault_of(self._work)
            if fault is None:
                reason = CLOSED
            else:
                reason += f": {first_line(fault)}"
                _log.debug("the model's engine has stopped", exc_info=fault)
        finally:
            with self._changed:
                self._closing.set()
                left = [*self.batch.rows, *self._waiting]
                self._waiting.clear()
            self.batch.clear(openings=True)
            for row in left:
                row.finish(BackendUnusable(reason))

    def _work(self) -> None:
        with suppress(Closed):
            while self._has_work():
                full = self._try_step()
                if full is not None:
                    self._back_off(full)

    def release(self) -> None:
        """Give the model's memory back, once `serve` has returned; the engine is of no use then."""
        device = self.model.device
        del self.model, self.batch
        gc.collect()  # a batch and its cache know each other
        _release(device)

    def _has_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(
                lambda: self._closing.is_set() or self._waiting or self.batch.rows
            )
            return not self._closing.is_set()

    def _try_step(self) -> str | None:
        """Advance all rows by a token, and None; or why memory didn't suffice.

        The exception isn't passed on: its frames would hold the memory that is to be freed.
        """
        try:
            new = self._take_newcomers()
            if new:
                self.batch.add(new)
            if self.batch.rows:
                self._advance(self.batch.step())
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return first_line(error)
        return None

    def _take_newcomers(self) -> list[Row]:
        """The waiting requests that join now: the oldest that the batch can take, within memory."""
        rows = self.batch.rows
        with self._changed:
            self._waiting = deque(row for row in self._waiting if not row.cancelled)
            if not self._waiting or (rows and not self.batch.joins):
                return []
            taken: list[Row] = []
            longest = max(map(self._count_own, rows), default=0)
            longest_prompt = 0
            most_prompt_tokens = self.batch.most_prompt_tokens or math.inf
            for row in self._order_candidates():
                longest = max(longest, self._count_own(row))
                longest_prompt = max(longest_prompt, len(row.prompt))
                count = len(rows) + len(taken) + 1
                if count > 1 and (
                    count > self._slots
                    or count * longest > self._room
                    or count * longest_prompt > most_prompt_tokens
                ):
                    break
                taken.append(row)
            chosen = set(map(id, taken))
            self._waiting = deque(row for row in self._waiting if id(row) not in chosen)
        return taken

    def _count_own(self, row: Row) -> int:
        """Tokens that a row may take in the cache for itself."""
        return row.longest - (len(row.opening) if self.batch.joins else 0)

    def _order_candidates(self) -> list[Row]:
        """Waiting requests in the order they should join."""
        if self.batch.joins:
            return list(self._waiting)
        # The oldest and its nearest in length, so that little is padded.
        oldest = len(self._waiting[0].prompt)
        return sorted(self._waiting, key=lambda row: abs(len(row.prompt) - oldest))

    def _advance(self, logits: Tensor) -> None:
        rows = list(self.batch.rows)
        finite = torch.isfinite(logits.amax(-1)).tolist()
        if not all(finite):
            self._refuse([index for index in range(len(rows)) if not finite[index]], logits.dtype)
            logits = logits[finite]
        drawn = [index for index in range(len(rows)) if finite[index]]
        self._any_finite = self._any_finite or bool(drawn)
        kept = []
        for index, token in zip(drawn, draw(logits, [rows[i] for i in drawn]), strict=True):
            row = rows[index]
            end: FinishReason | None = "stop" if token in self._ends else None
            if end is None:
                row.append(token)
                end = "length" if len(row.answer) >= row.limit else None
            if row.cancelled:
                continue
            if end is None:
                kept.append(index)
            else:
                row.finish(end)
        if len(kept) < len(rows):
            self.batch.keep(kept)
        self._steps += 1
        if self._slots < self._most and self._steps >= _STEPS_BEFORE_GROWTH:
            self._slots += max(1, self._slots // 8)
            self._slots = min(self._slots, self._most)
            self._steps = 0

    def _refuse(self, indices: Sequence[int], dtype: Any) -> None:
        """End the rows whose logits aren't finite, which may be due to what is in their prompts.

        Raises:
            RuntimeError: it is due to the model: all of several rows are such, or all since the
                start.
        """
        rows = [self.batch.rows[index] for index in indices]
        why = f"the model's logits are not finite in {str(dtype).removeprefix('torch.')}"
        if dtype != torch.float32:
            why += "; try float32"
        several = len(rows) > 1 and len(rows) == len(self.batch.rows)
        if several or (self._refused and not self._any_finite):
            raise RuntimeError(why)
        self._refused += len(rows)
        self.batch.blank(indices)
        for row in rows:
            row.finish(RequestRefused(f"prompt of {len(row.prompt)} tokens: {why}"))

    def _back_off(self, why: str) -> None:
        """Go on with half as many rows; they are computed again up to where they were."""
        rows = list(self.batch.rows)
        self.batch.clear(openings=len(rows) < 2)
        _release(self.model.device)
        self._steps = 0
        if len(rows) < 2 and (not rows or rows[0] is self._alone):
            for row in rows:
                needed = f"prompt of {len(row.prompt)} tokens and an answer of up to {row.limit}"
                row.finish(RequestRefused(f"{needed} don't fit the device's memory ({why})"))
            return
        if len(rows) < 2:
            # Openings that nobody needed may have been in its way, or another process.
            self._alone = rows[0]
        else:
            self._slots = len(rows) // 2
            _log.info(
                "out of memory with %d requests at once; going on with %d", len(rows), self._slots
            )
        with self._changed:
            self._waiting.extendleft(reversed(rows))


def free_bytes(device: Any) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return _machine.free_bytes()


def _release(device: Any) -> None:
    """Give cached blocks back, so that larger ones can be had."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
