"""Rows that are answered together, and their cache of keys and values."""

from __future__ import annotations

import inspect
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from mminstruct.backends._transformers_attention import Opening, Pass
from mminstruct.errors import BackendError
from mminstruct.schema import FinishReason, Sampling

_PREFILL_TOKENS = {"cpu": 512, "mps": 1024, "cuda": 4096}
# Times as many where a prompt can't be divided: less would leave hardly any rows together.
_WHOLE_PROMPTS = 8
_OPENINGS_KEPT = 4
_COLUMNS = 64
CLOSED = "the backend was closed before the answer was finished"
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "alloc_failed",  # of cuBLAS and cuDNN
    "bad_alloc",
)


@dataclass(slots=True, eq=False)
class Row:
    """A request being answered.

    Attributes:
        prompt: its tokens.
        opening: the first of them, which requests with the same first messages share; fewer than
            the prompt's, and the same object for all of them.
        sampling: how to draw.
        limit: tokens of the answer at most.
        rng: draws for this row alone, so that its neighbours don't matter.
        finish: called once, in the engine's thread.
        answer: tokens so far.
        drawn: the random number for the next one, once it is drawn.
        cancelled: nobody waits any more; set from any thread.
    """

    prompt: list[int]
    opening: tuple[int, ...]
    sampling: Sampling
    limit: int
    rng: random.Random
    finish: Callable[[FinishReason | BackendError], None]
    answer: list[int] = field(default_factory=list)
    drawn: float | None = None
    cancelled: bool = False

    def random(self) -> float:
        """The random number for the next token: the same one until that is appended."""
        if self.drawn is None:
            self.drawn = self.rng.random()
        return self.drawn

    def append(self, token: int) -> None:
        """Go on behind this token."""
        self.answer.append(token)
        self.drawn = None

    @property
    def tokens(self) -> list[int]:
        """Prompt and answer so far; the last one is what the model is fed next."""
        return self.prompt + self.answer

    @property
    def computed(self) -> int:
        """Tokens whose keys and values are in the cache."""
        return len(self.prompt) + len(self.answer) - 1

    @property
    def longest(self) -> int:
        """Tokens that prompt and answer take at most."""
        return len(self.prompt) + self.limit


class Closed(Exception):
    """The engine is being closed."""


class _RowLayer(DynamicLayer):
    """One layer's keys and values of the tokens after the opening, (rows, heads, columns, size)."""

    def __init__(self, batch: SharedOpeningBatch) -> None:
        super().__init__()
        self.is_initialized = False
        self._batch = batch

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the new keys and values; all that the pass attends to."""
        now = self._batch.now
        stop = now.first + key_states.shape[0]
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
            self.keys = key_states.new_zeros(0, key_states.shape[1], 0, key_states.shape[3])
            self.values = value_states.new_zeros(0, value_states.shape[1], 0, value_states.shape[3])
        self.keys = _grow(self.keys, now.rows, now.width)
        self.values = _grow(self.values, now.rows, now.width)
        for kept, new in ((self.keys, key_states), (self.values, value_states)):
            if now.columns is None:
                kept[now.first : stop, :, now.start : now.start + new.shape[2]] = new
            else:
                rows = torch.arange(stop, device=new.device)
                kept[rows, :, now.columns.to(new.device)] = new[:, :, 0]
        width, columns = now.width, self.keys.shape[2]
        # A CPU copies a part of the columns to compute with it, which takes longer than some more.
        if now.columns is not None and self.device.type == "cpu" and columns <= 2 * width:
            width = columns
        seen = (slice(now.first, stop), slice(None), slice(0, width))
        return self.keys[seen], self.values[seen]

    def get_seq_length(self) -> int:
        """Columns in use; positions are given to the model explicitly."""
        return self._batch.now.width


def _grow(kept: Tensor, rows: int, columns: int) -> Tensor:
    """At least that large, with the old content; zeros elsewhere, as NaN would spread."""
    if rows <= kept.shape[0] and columns <= kept.shape[2]:
        return kept
    if columns > kept.shape[2]:
        columns = max(-(-columns // _COLUMNS) * _COLUMNS, kept.shape[2] * 5 // 4)
    shape = (max(rows, kept.shape[0]), kept.shape[1], max(columns, kept.shape[2]), kept.shape[3])
    larger = kept.new_zeros(shape)
    larger[: kept.shape[0], :, : kept.shape[2]] = kept
    return larger


class SharedOpeningBatch:
    """Rows that follow openings kept beside them. Others can join at any time.

    Args:
        model: with `_attend` as its attention.
        closing: tells when to stop in the middle of a long prompt.
    """

    joins = True
    most_prompt_tokens = None
    now: Pass

    def __init__(self, model: Any, closing: threading.Event) -> None:
        self.rows: list[Row] = []
        self._model = model
        self._closing = closing
        self._prefill_tokens = count_prefill_tokens(model)
        self._cache_name = cache_name(model)
        self._no_logits = _no_logits(model)
        self.cache = self._make_cache()
        self.openings: OrderedDict[tuple[int, ...], Opening] = OrderedDict()

    def add(self, new: Sequence[Row]) -> None:
        """Compute the prompts, but for each one's last token."""
        first = len(self.rows)
        # By opening and length. Those that were let in are known, whatever happens next.
        self.rows.extend(sorted(new, key=lambda row: (row.opening, row.computed)))
        self.trim(first)
        while first < len(self.rows):
            opening = self.rows[first].opening
            count = self._count_group(first)
            texts = [row.tokens[len(opening) : -1] for row in self.rows[first : first + count]]
            self._prefill(self.cache, texts, self._compute_opening(opening), len(opening), first)
            first += count

    def trim(self, first: int) -> None:
        """Give up rows and columns of the cache, if with these newcomers most would lie idle.

        What memory there is for is reckoned by the rows there are: many that were short and a few
        that are long may not leave a cache that is as tall as the ones and as wide as the others.
        """
        own = [row.computed - len(row.opening) for row in self.rows[:first]]
        rows = len(self.rows)
        columns = max(row.longest - len(row.opening) for row in self.rows) + _COLUMNS
        for layer in self.cache.layers:
            if not layer.is_initialized:
                continue
            size = max(rows, layer.keys.shape[0]) * max(columns, layer.keys.shape[2])
            if 2 * size > 3 * rows * columns:
                kept = slice(len(own)), slice(None), slice(max(own, default=0))
                layer.keys, layer.values = layer.keys[kept].clone(), layer.values[kept].clone()

    def step(self) -> Tensor:
        """The logits after each row's last token, (rows, vocabulary)."""
        columns = torch.tensor([row.computed - len(row.opening) for row in self.rows])
        device = self._model.device
        self.now = Pass(
            self._find_openings(),
            first=0,
            rows=len(self.rows),
            start=0,
            columns=columns.to(device),
            width=int(columns.max()) + 1,
        )
        positions = torch.tensor([[row.computed] for row in self.rows])
        output = self._run(self.cache, [[row.tokens[-1]] for row in self.rows], positions)
        logits: Tensor = output.logits[:, -1]
        return logits

    def keep(self, indices: Sequence[int]) -> None:
        """Let the other rows go; the last rows move up into their places."""
        kept = set(indices)
        for gone in sorted(set(range(len(self.rows))) - kept):
            if gone >= len(kept):
                break
            last = max(kept)
            kept.remove(last)
            kept.add(gone)
            used = self.rows[last].computed - len(self.rows[last].opening)
            for layer in self.cache.layers:
                if layer.is_initialized:
                    layer.keys[gone, :, :used] = layer.keys[last, :, :used]
                    layer.values[gone, :, :used] = layer.values[last, :, :used]
            self.rows[gone] = self.rows[last]
        del self.rows[len(kept) :]
        if not self.rows:
            self.cache = self._make_cache()

    def blank(self, indices: Sequence[int]) -> None:
        """Overwrite what rows that will go have in the cache: others take their places.

        What isn't attended to has the weight 0, which makes NaN of NaN.
        """
        for layer in self.cache.layers:
            if layer.is_initialized:
                layer.keys[indices] = 0
                layer.values[indices] = 0

    def clear(self, *, openings: bool) -> None:
        """Forget all rows, and with ``openings`` what could be shared."""
        self.rows.clear()
        self.cache = self._make_cache()
        if openings:
            self.openings.clear()

    def _find_openings(self) -> list[tuple[Opening, list[int] | None]]:
        """The openings of the rows, each with its rows."""
        rows: dict[tuple[int, ...], list[int]] = {}
        for index, row in enumerate(self.rows):
            if row.opening:
                rows.setdefault(row.opening, []).append(index)
        return [
            (self.openings[opening], None if len(which) == len(self.rows) else which)
            for opening, which in rows.items()
        ]

    def _make_cache(self) -> Cache:
        return Cache(layer_class_to_replicate=partial(_RowLayer, self))

    def _count_group(self, first: int) -> int:
        """How many rows from there on are computed at once: of one opening, within the bound."""
        count = 0
        for row in self.rows[first:]:
            longest = row.computed - len(row.opening)
            if count and (count + 1) * longest > self._prefill_tokens:
                break
            if row.opening != self.rows[first].opening:
                break
            count += 1
        return count

    def _compute_opening(self, opening: tuple[int, ...]) -> Opening:
        """Its keys and values by layer; computed, unless it is one of those used last."""
        if not opening:
            return []
        if opening not in self.openings:
            needed = {row.opening for row in self.rows}
            idle = [known for known in self.openings if known not in needed]
            for known in idle[: max(0, len(self.openings) + 1 - _OPENINGS_KEPT)]:
                del self.openings[known]
            cache = self._make_cache()
            self._prefill(cache, [list(opening)], [], 0, 0)
            length = len(opening)
            self.openings[opening] = [
                (layer.keys[:, :, :length].clone(), layer.values[:, :, :length].clone())
                for layer in cache.layers
            ]
        self.openings.move_to_end(opening)
        return self.openings[opening]

    def _prefill(
        self,
        cache: Cache,
        texts: Sequence[Sequence[int]],
        opening: Opening,
        length: int,
        first: int,
    ) -> None:
        """Fill the cache with some rows' tokens, from column 0 on.

        Shorter ones are padded on the right: what pads leave in the cache lies behind the row's
        last token, where it isn't attended to until it is overwritten.
        """
        longest = max(len(text) for text in texts)
        padded = [[*text, *[0] * (longest - len(text))] for text in texts]
        at_once = max(1, self._prefill_tokens // len(texts))
        device = self._model.device
        for start in range(0, longest, at_once):
            if self._closing.is_set():
                raise Closed
            stop = min(longest, start + at_once)
            columns = torch.arange(start, stop)
            mask = torch.arange(length + stop) <= (columns + length)[:, None]
            self.now = Pass(
                [(opening, None)] if opening else [],
                first=first,
                rows=max(first + len(texts), len(self.rows)) if cache is self.cache else 1,
                start=start,
                columns=None,
                width=stop,
                mask=mask[None, None].to(device),
            )
            positions = (columns + length).expand(len(texts), -1)
            tokens = [text[start:stop] for text in padded]
            self._run(cache, tokens, positions, **self._no_logits)

    def _run(
        self, cache: Cache, tokens: Sequence[Sequence[int]], positions: Tensor, **arguments: Any
    ) -> Any:
        device = self._model.device
        return self._model(
            input_ids=torch.tensor(tokens, device=device),
            position_ids=positions.to(device),
            use_cache=True,
            mminstruct_batch=self,
            **{self._cache_name: cache},
            **arguments,
        )


class PaddedBatch:
    """Rows that start together, padded on the left, in the library's own cache.

    Args:
        model: as it was loaded.
        closing: tells when to stop in the middle of long prompts.
        prefill_tokens: that one pass computes, of all rows together.
        whole: whether prompts have to be computed in one pass, whatever their length.
    """

    joins = False

    def __init__(
        self, model: Any, closing: threading.Event, *, prefill_tokens: int, whole: bool
    ) -> None:
        self.rows: list[Row] = []
        self.most_prompt_tokens = _WHOLE_PROMPTS * prefill_tokens if whole else None
        self._model = model
        self._closing = closing
        self._prefill_tokens = prefill_tokens
        self._cache_name = cache_name(model)
        self._no_logits = _no_logits(model)
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self.cache: Any = None
        self._mask = torch.zeros(0, 0, dtype=torch.long)

    def add(self, new: Sequence[Row]) -> None:
        """Compute the prompts, but for each one's last token."""
        self.rows = list(new)
        texts = [row.tokens[:-1] for row in self.rows]
        longest = max(len(text) for text in texts)
        padded = [[*[0] * (longest - len(text)), *text] for text in texts]
        self.cache = DynamicCache(config=self._model.config)
        self._mask = torch.tensor(
            [[0] * (longest - len(text)) + [1] * len(text) for text in texts],
            device=self._model.device,
            dtype=torch.long,
        )
        at_once = max(1, self._prefill_tokens // len(texts))
        if self.most_prompt_tokens is not None:
            at_once = max(1, longest)
        for start in range(0, longest, at_once):
            if self._closing.is_set():
                raise Closed
            stop = min(longest, start + at_once)
            tokens = [text[start:stop] for text in padded]
            self._run(tokens, self._mask[:, :stop], **self._no_logits)

    def step(self) -> Tensor:
        """The logits after each row's last token, (rows, vocabulary)."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self.rows), 1)], 1)
        output = self._run([[row.tokens[-1]] for row in self.rows], self._mask)
        logits: Tensor = output.logits[:, -1]
        return logits

    def keep(self, indices: Sequence[int]) -> None:
        """Let the other rows go."""
        chosen = torch.tensor(sorted(indices), device=self._mask.device)
        self.rows = [self.rows[index] for index in sorted(indices)]
        if not self.rows:
            self.clear(openings=False)
            return
        self.cache.reorder_cache(chosen)
        self._mask = self._mask[chosen]

    def blank(self, indices: Sequence[int]) -> None:
        """Nothing: no other row takes the places of those that will go."""

    def clear(self, *, openings: bool) -> None:
        """Forget all rows."""
        self.rows, self.cache = [], None

    def _run(self, tokens: Sequence[Sequence[int]], mask: Tensor, **arguments: Any) -> Any:
        count = len(tokens[0])
        if self._takes_positions:
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            arguments["position_ids"] = positions[:, -count:]
        return self._model(
            input_ids=torch.tensor(tokens, device=self._model.device),
            attention_mask=mask,
            use_cache=True,
            **{self._cache_name: self.cache},
            **arguments,
        )


def count_prefill_tokens(model: Any) -> int:
    return _PREFILL_TOKENS.get(model.device.type, 512)


def cache_name(model: Any) -> str:
    """What a model calls its cache, as an argument and in its output.

    The library renamed it in 5.24; models that bring code of their own may use either name.
    """
    known = inspect.signature(model.forward).parameters
    return "cache" if "cache" in known and "past_key_values" not in known else "past_key_values"


def _no_logits(model: Any) -> dict[str, Any]:
    """The argument that spares a prompt's logits, if the model has it.

    None are needed, as a prompt's last token is computed with the answers. For the last one alone a
    CPU would copy all weights of the vocabulary, once for each row.
    """
    known = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": torch.empty(0, dtype=torch.long)} if known else {}


def is_out_of_memory(error: BaseException) -> bool:
    return any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
