"""Continuous batching for a causal language model of `transformers`; imported when one is opened.

The tokens that all prompts with the same first messages share (system prompt and few-shot examples:
most of the prompt) are computed once. Their keys and values are kept once, too: attention over them
is one matrix product for all rows that have them, and only what follows is kept for each row, at
its own columns, so that a row joins and leaves without moving the others. Models whose layers
aren't plain attention (sliding windows shorter than the context, recurrent states, attention sinks
...) go through the library's own cache in left-padded batches instead, without a shared opening.
Both are tried out as a model is loaded; one that gives other logits there, as those do that keep
their states elsewhere (Mamba, RWKV), is refused.
"""

from __future__ import annotations

import gc
import inspect
import logging
import math
import random
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from mminstruct.backends import _machine
from mminstruct.errors import BackendError, BackendUnusable, RequestRefused
from mminstruct.schema import FinishReason, Sampling

_log = logging.getLogger(__name__)

_ATTENTION = "mminstruct_shared_opening"
_PREFILL_TOKENS = {"cpu": 512, "mps": 1024, "cuda": 4096}
# Times as many where a prompt can't be divided: less would leave hardly any rows together.
_WHOLE_PROMPTS = 8
_SLOTS = {"cpu": 32, "mps": 32, "cuda": 64}
# Of the memory that is free once the model is loaded; the rest is for activations and for others.
_SHARE_OF_MEMORY = {"cpu": 0.4, "mps": 0.6, "cuda": 0.7}
_OPENINGS_KEPT = 4
_COLUMNS = 64
_PIECE_OF_SCORES = 1 << 21
# Tokens for which reading all keys is worth it.
_LEAST_PIECE = 8
_STEPS_BEFORE_GROWTH = 512
_PROBE_ERROR = 0.05
# Of padded batches in float32, where even pads that aren't quite hidden tell.
_PADDED_ERROR = 0.02
# Of whole prompts in half precision, which there is nothing instead of: recurrent states that are
# right are rounded by up to 0.11 there, and a wrong cache is off by 0.4 and more.
_WHOLE_ERROR_ROUNDED = 0.25
_CLOSED = "the backend was closed before the answer was finished"
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "alloc_failed",  # of cuBLAS and cuDNN
    "bad_alloc",
)
# What models raise that don't know a cache, an argument or a shape.
_MISFITS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


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


class _Closed(Exception):
    """The engine is being closed."""


class _Unsupported(ValueError):
    """The model's attention does more than is computed here."""


_Opening = Sequence[tuple[Tensor, Tensor]]


@dataclass(slots=True)
class _Pass:
    """What one pass through the model computes.

    Attributes:
        openings: keys and values by layer, each (1, heads, tokens, size), and the rows that follow
            them; None is all.
        first: the row that the first input row is.
        rows: that there will be.
        start: column of the first token, where several tokens of each row are computed.
        columns: (rows,) column of each row's token, where one of each row is.
        width: columns that there have to be.
        mask: True where attention goes, (1, 1, tokens, opening and columns), or where it does not,
            (rows, 1, 1, columns), in the same two cases; the latter comes of `hidden`.
    """

    openings: Sequence[tuple[_Opening, list[int] | None]]
    first: int
    rows: int
    start: int
    columns: Tensor | None
    width: int
    mask: Tensor | None = None

    def hidden(self, width: int) -> Tensor:
        """The mask for one token of each row, with as many columns as are attended to."""
        assert self.columns is not None
        if self.mask is None or self.mask.shape[-1] != width:
            later = torch.arange(width, device=self.columns.device) > self.columns[:, None]
            self.mask = later[:, None, None]
        return self.mask


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
        self.keys = _grown(self.keys, now.rows, now.width)
        self.values = _grown(self.values, now.rows, now.width)
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


def _grown(kept: Tensor, rows: int, columns: int) -> Tensor:
    """At least that large, with the old content; zeros elsewhere, as NaN would spread."""
    if rows <= kept.shape[0] and columns <= kept.shape[2]:
        return kept
    if columns > kept.shape[2]:
        columns = max(-(-columns // _COLUMNS) * _COLUMNS, kept.shape[2] * 5 // 4)
    shape = (max(rows, kept.shape[0]), kept.shape[1], max(columns, kept.shape[2]), kept.shape[3])
    larger = kept.new_zeros(shape)
    larger[: kept.shape[0], :, : kept.shape[2]] = kept
    return larger


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    mminstruct_batch: SharedOpeningBatch | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over the shared opening and over each row's own tokens, in `transformers`' form.

    Args:
        module: the attention layer.
        query: (rows, heads, tokens, size).
        key: (rows, key heads, columns, size), of the rows' own tokens.
        value: likewise.
        attention_mask: None; masks are the batch's.
        scaling: of the scores.
        dropout: none at inference.
        mminstruct_batch: passed through the model.
        sliding_window: what the layer would see; none is shorter than the context here.
        kwargs: what models with other kinds of attention pass.
    """
    odd = [n for n in ("softcap", "s_aux", "position_bias") if kwargs.get(n) is not None]
    if odd or mminstruct_batch is None:
        raise _Unsupported(f"its attention has {odd[0]}" if odd else "it passes no arguments on")
    now = mminstruct_batch.now
    rows, heads, tokens, size = query.shape
    key_heads = key.shape[1]
    group = heads // key_heads
    scaling = size**-0.5 if scaling is None else scaling
    openings = [(kept[module.layer_idx], which) for kept, which in now.openings]
    if now.columns is None:
        for (common_key, common_value), _ in openings:
            key = torch.cat([common_key.expand(rows, -1, -1, -1), key], 2)
            value = torch.cat([common_value.expand(rows, -1, -1, -1), value], 2)
        if query.device.type == "cpu" and query.dtype == torch.bfloat16:
            out = _attend_in_pieces(query * scaling, key, value)
        else:
            assert now.mask is not None
            mask = now.mask.to(query.device)
            key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
            out = functional.scaled_dot_product_attention(query, key, value, mask, scale=scaling)
        return out.transpose(1, 2).contiguous(), None
    query = query.reshape(rows, key_heads, group, size) * scaling
    hidden = now.hidden(key.shape[2]).to(query.device)
    own = (query @ key.transpose(2, 3)).masked_fill(hidden, -torch.inf).float()
    out, own_total = _weighted(own, value)
    for (common_key, common_value), which in openings:
        chosen = slice(None) if which is None else torch.tensor(which, device=query.device)
        some = query[chosen].transpose(0, 1)  # (key heads, rows, group, size)
        common = (some.reshape(key_heads, -1, size) @ common_key[0].transpose(1, 2)).float()
        seen, total = _weighted(common, common_value[0])
        seen, total = (t.view(*some.shape[:3], -1).transpose(0, 1) for t in (seen, total))
        # Each part is normalised by itself; their shares follow from the sums of their weights.
        share = (total - own_total[chosen]).sigmoid().to(value.dtype)
        out[chosen] = torch.lerp(out[chosen], seen, share)
    return out.reshape(rows, 1, heads, -1), None


def _attend_in_pieces(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of several tokens to all before them by plain products, in pieces for the caches.

    On CPUs that compute bfloat16 themselves it takes half the time of the library's own attention.

    Args:
        query: (rows, heads, tokens, size), scaled.
        key: (rows, key heads, columns, size); the last columns are those of the tokens.
        value: likewise.
    """
    rows, heads, tokens, size = query.shape
    key_heads, columns = key.shape[1:3]
    query = query.reshape(rows * key_heads, heads // key_heads, tokens, size)
    key, value = key.flatten(0, 1), value.flatten(0, 1)
    later = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    out = query.new_empty(*query.shape[:3], value.shape[-1])
    at_once = max(_LEAST_PIECE, _PIECE_OF_SCORES // (rows * heads * columns))
    for start in range(0, tokens, at_once):
        piece = query[:, :, start : start + at_once]
        scores = piece.flatten(1, 2) @ key.transpose(1, 2)
        own = scores.view(*piece.shape[:3], columns)[..., -tokens:]
        own.masked_fill_(later[start : start + at_once], -torch.inf)
        seen = scores.softmax(-1) @ value
        out[:, :, start : start + at_once] = seen.view(*piece.shape[:3], -1)
    return out.view(rows, heads, tokens, -1)


def _weighted(scores: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The values' mean, weighted by the softmax of scores, and the logarithm of the weights' sum.

    ``scores`` is written over.
    """
    most = scores.amax(-1, keepdim=True)
    weights = scores.sub_(most).exp_()
    total = weights.sum(-1, keepdim=True)
    return (weights.to(value.dtype) @ value) / total.to(value.dtype), total.log() + most


class SharedOpeningBatch:
    """Rows that follow openings kept beside them. Others can join at any time.

    Args:
        model: with `_attend` as its attention.
        closing: tells when to stop in the middle of a long prompt.
    """

    joins = True
    most_prompt_tokens = None
    now: _Pass

    def __init__(self, model: Any, closing: threading.Event) -> None:
        self.rows: list[Row] = []
        self._model = model
        self._closing = closing
        self._prefill_tokens = _prefill_tokens(model)
        self._cache_name = _cache_name(model)
        self._no_logits = _no_logits(model)
        self._cache = self._empty()
        self._openings: OrderedDict[tuple[int, ...], _Opening] = OrderedDict()

    def add(self, new: Sequence[Row]) -> None:
        """Compute the prompts, but for each one's last token."""
        first = len(self.rows)
        # By opening and length. Those that were let in are known, whatever happens next.
        self.rows.extend(sorted(new, key=lambda row: (row.opening, row.computed)))
        self._trim(first)
        while first < len(self.rows):
            opening = self.rows[first].opening
            count = self._group(first)
            texts = [row.tokens[len(opening) : -1] for row in self.rows[first : first + count]]
            self._prefill(self._cache, texts, self._computed_opening(opening), len(opening), first)
            first += count

    def _trim(self, first: int) -> None:
        """Give up rows and columns of the cache, if with these newcomers most would lie idle.

        What memory there is for is reckoned by the rows there are: many that were short and a few
        that are long may not leave a cache that is as tall as the ones and as wide as the others.
        """
        own = [row.computed - len(row.opening) for row in self.rows[:first]]
        rows = len(self.rows)
        columns = max(row.longest - len(row.opening) for row in self.rows) + _COLUMNS
        for layer in self._cache.layers:
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
        self.now = _Pass(
            self._in_use(),
            first=0,
            rows=len(self.rows),
            start=0,
            columns=columns.to(device),
            width=int(columns.max()) + 1,
        )
        positions = torch.tensor([[row.computed] for row in self.rows])
        output = self._run(self._cache, [[row.tokens[-1]] for row in self.rows], positions)
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
            for layer in self._cache.layers:
                if layer.is_initialized:
                    layer.keys[gone, :, :used] = layer.keys[last, :, :used]
                    layer.values[gone, :, :used] = layer.values[last, :, :used]
            self.rows[gone] = self.rows[last]
        del self.rows[len(kept) :]
        if not self.rows:
            self._cache = self._empty()

    def blank(self, indices: Sequence[int]) -> None:
        """Overwrite what rows that will go have in the cache: others take their places.

        What isn't attended to has the weight 0, which makes NaN of NaN.
        """
        for layer in self._cache.layers:
            if layer.is_initialized:
                layer.keys[indices] = 0
                layer.values[indices] = 0

    def clear(self, *, openings: bool) -> None:
        """Forget all rows, and with ``openings`` what could be shared."""
        self.rows.clear()
        self._cache = self._empty()
        if openings:
            self._openings.clear()

    def _in_use(self) -> list[tuple[_Opening, list[int] | None]]:
        """The openings of the rows, each with its rows."""
        rows: dict[tuple[int, ...], list[int]] = {}
        for index, row in enumerate(self.rows):
            if row.opening:
                rows.setdefault(row.opening, []).append(index)
        return [
            (self._openings[opening], None if len(which) == len(self.rows) else which)
            for opening, which in rows.items()
        ]

    def _empty(self) -> Cache:
        return Cache(layer_class_to_replicate=partial(_RowLayer, self))

    def _group(self, first: int) -> int:
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

    def _computed_opening(self, opening: tuple[int, ...]) -> _Opening:
        """Its keys and values by layer; computed, unless it is one of those used last."""
        if not opening:
            return []
        if opening not in self._openings:
            needed = {row.opening for row in self.rows}
            idle = [known for known in self._openings if known not in needed]
            for known in idle[: max(0, len(self._openings) + 1 - _OPENINGS_KEPT)]:
                del self._openings[known]
            cache = self._empty()
            self._prefill(cache, [list(opening)], [], 0, 0)
            length = len(opening)
            self._openings[opening] = [
                (layer.keys[:, :, :length].clone(), layer.values[:, :, :length].clone())
                for layer in cache.layers
            ]
        self._openings.move_to_end(opening)
        return self._openings[opening]

    def _prefill(
        self,
        cache: Cache,
        texts: Sequence[Sequence[int]],
        opening: _Opening,
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
                raise _Closed
            stop = min(longest, start + at_once)
            columns = torch.arange(start, stop)
            mask = torch.arange(length + stop) <= (columns + length)[:, None]
            self.now = _Pass(
                [(opening, None)] if opening else [],
                first=first,
                rows=max(first + len(texts), len(self.rows)) if cache is self._cache else 1,
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
        self._cache_name = _cache_name(model)
        self._no_logits = _no_logits(model)
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._cache: Any = None
        self._mask = torch.zeros(0, 0, dtype=torch.long)

    def add(self, new: Sequence[Row]) -> None:
        """Compute the prompts, but for each one's last token."""
        self.rows = list(new)
        texts = [row.tokens[:-1] for row in self.rows]
        longest = max(len(text) for text in texts)
        padded = [[*[0] * (longest - len(text)), *text] for text in texts]
        self._cache = DynamicCache(config=self._model.config)
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
                raise _Closed
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
        self._cache.reorder_cache(chosen)
        self._mask = self._mask[chosen]

    def blank(self, indices: Sequence[int]) -> None:
        """Nothing: no other row takes the places of those that will go."""

    def clear(self, *, openings: bool) -> None:
        """Forget all rows."""
        self.rows, self._cache = [], None

    def _run(self, tokens: Sequence[Sequence[int]], mask: Tensor, **arguments: Any) -> Any:
        count = len(tokens[0])
        if self._takes_positions:
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            arguments["position_ids"] = positions[:, -count:]
        return self._model(
            input_ids=torch.tensor(tokens, device=self._model.device),
            attention_mask=mask,
            use_cache=True,
            **{self._cache_name: self._cache},
            **arguments,
        )


def _prefill_tokens(model: Any) -> int:
    return _PREFILL_TOKENS.get(model.device.type, 512)


def _cache_name(model: Any) -> str:
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


@torch.inference_mode()  # type: ignore[untyped-decorator]
def batch_for(
    model: Any, closing: threading.Event, window: int
) -> tuple[SharedOpeningBatch | PaddedBatch, int, str | None]:
    """What computes this model, the bytes a token takes in its cache, and why no opening is shared.

    Whether the model can share an opening, and else whether it can be padded, is tried out: its
    logits have to be those of a plain pass.

    Raises:
        BackendUnusable: it can do neither.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(vocabulary, (1, 12), generator=torch.Generator().manual_seed(1))
    output = model(input_ids=tokens.to(model.device), use_cache=True)
    bytes_per_token = _bytes(output.get(_cache_name(model))) // tokens.numel()
    probe, plain = tokens[0].tolist(), output.logits[0].float()
    usual = model.config._attn_implementation
    reason = _tried(lambda: _other_layers(model, window)) or _tried(
        lambda: _shares_badly(model, probe, plain)
    )
    if reason is None:
        return SharedOpeningBatch(model, closing), bytes_per_token, None
    model.set_attn_implementation(usual)
    # Layers with a recurrent state may begin anew with every pass of several tokens.
    whole = _tried(lambda: _pads_badly(model, probe, plain, whole=False)) is not None
    wrong = _tried(lambda: _pads_badly(model, probe, plain, whole=True)) if whole else None
    if wrong is not None:
        raise BackendUnusable(
            f"{type(model).__name__} isn't supported, as it can't be computed for several prompts "
            f"at once ({wrong}); use a GGUF file of it with llama_cpp, or a server"
        )
    batch = PaddedBatch(model, closing, prefill_tokens=_prefill_tokens(model), whole=whole)
    return batch, bytes_per_token, reason


def _tried(check: Callable[[], str | None]) -> str | None:
    """What the check finds wrong, or the error that the model meets in it."""
    try:
        return check()
    except _MISFITS as error:
        if _is_out_of_memory(error):
            raise
        return _first_line(error)


def _bytes(cache: Cache | None) -> int:
    layers = getattr(cache, "layers", [])
    kept = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    return sum(tensor.nbytes for tensor in kept if tensor is not None)


def _other_layers(model: Any, window: int) -> str | None:
    for layer in DynamicCache(config=model.config).layers:
        wide = getattr(layer, "is_sliding", False) and layer.sliding_window >= window
        if type(layer) is not DynamicLayer and not wide:
            return f"it has layers other than full attention ({type(layer).__name__})"
    return None


def _shares_badly(model: Any, tokens: list[int], plain: Tensor) -> str | None:
    """What is wrong with its logits if prompts share an opening.

    Args:
        model: its attention is replaced.
        tokens: of a probe.
        plain: (tokens, vocabulary) the logits after each of them.
    """
    AttentionInterface.register(_ATTENTION, _attend)
    model.set_attn_implementation(_ATTENTION)
    if model.config._attn_implementation != _ATTENTION:
        return "its attention can't be replaced"
    batch = SharedOpeningBatch(model, threading.Event())
    # Prompts of two lengths, so that one of them is padded.
    batch.add([_probe_row(tokens[:length], tuple(tokens[:5])) for length in (12, 9)])
    return _off(batch, plain, _PROBE_ERROR)


def _pads_badly(model: Any, tokens: list[int], plain: Tensor, *, whole: bool) -> str | None:
    """What is wrong with its logits in a padded batch, of which a row then leaves."""
    if model.dtype == torch.float32:
        bound = _PADDED_ERROR
    else:
        bound = _WHOLE_ERROR_ROUNDED if whole else _PROBE_ERROR
    # Three tokens of each row at once, so that some are pads only.
    batch = PaddedBatch(model, threading.Event(), prefill_tokens=9, whole=whole)
    batch.add([_probe_row(tokens[:length], ()) for length in (10, 11, 5)])
    wrong = _off(batch, plain, bound)
    if wrong is not None:
        return wrong
    batch.keep([0, 2])
    for row in batch.rows:
        row.answer.append(tokens[len(row.prompt)])
    return _off(batch, plain, bound)


def _off(batch: SharedOpeningBatch | PaddedBatch, plain: Tensor, bound: float) -> str | None:
    ours = batch.step().float()
    usual = plain[[row.computed for row in batch.rows]]
    off = float((ours - usual).abs().max() / (plain.max() - plain.min()))
    return None if off < bound else f"its logits would be off by {off:.0%}"


def _probe_row(prompt: list[int], opening: tuple[int, ...]) -> Row:
    return Row(prompt, opening, Sampling(), 1, random.Random(0), lambda end: None)  # noqa: S311


def draw(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """The next token of each row, by its own sampling and its own random numbers.

    One uniform number picks the token on the cumulated probabilities, so that a seed means the same
    on every device.

    Args:
        logits: (rows, vocabulary).
        rows: whose random numbers are drawn; `Row.append` lets them go on.
    """
    groups: dict[Callable[[Tensor, Sequence[Row]], list[int]], list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(_way(row.sampling), []).append(index)
    tokens = [0] * len(rows)
    for way, group in groups.items():
        chosen = logits if len(group) == len(rows) else logits[group]
        for index, token in zip(group, way(chosen, [rows[i] for i in group]), strict=True):
            tokens[index] = token
    return tokens


def _way(sampling: Sampling) -> Callable[[Tensor, Sequence[Row]], list[int]]:
    if sampling.temperature <= 0:
        return _likeliest
    return _drawn_from_nucleus if sampling.top_p < 1 else _drawn


def _likeliest(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    tokens: list[int] = logits.argmax(-1).tolist()
    return tokens


def _drawn_from_nucleus(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    return _drawn(logits, rows, nucleus=True)


def _drawn(logits: Tensor, rows: Sequence[Row], *, nucleus: bool = False) -> list[int]:
    if logits.device.type == "mps":
        logits = logits.cpu()  # it has no float64
    of_rows = partial(torch.tensor, device=logits.device, dtype=torch.float64)
    temperature = of_rows([row.sampling.temperature for row in rows]).float().clamp(min=1e-6)
    logits = logits.float() - logits.amax(-1, keepdim=True)
    probability = (logits / temperature[:, None]).softmax(-1)
    order = None
    if nucleus:
        probability, order = probability.sort(dim=-1, descending=True, stable=True)
    cumulated = probability.cumsum(-1, dtype=torch.float64)
    mass = cumulated[:, -1:].contiguous()
    if nucleus:
        top_p = of_rows([row.sampling.top_p for row in rows])
        last = (cumulated < top_p[:, None]).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
        mass = cumulated.gather(-1, last)
    at = of_rows([row.random() for row in rows])[:, None] * mass
    picked = torch.searchsorted(cumulated, at, right=True)
    # The product may round up to the mass itself.
    picked = torch.minimum(picked, torch.searchsorted(cumulated, mass))
    if order is not None:
        picked = order.gather(-1, picked)
    tokens: list[int] = picked[:, 0].tolist()
    return tokens


class Engine:
    """Answers requests until it is closed; `serve` runs in a thread of its own.

    Args:
        model: loaded, in evaluation mode.
        ends: tokens that end an answer.
        window: tokens that prompt and answer may take together.
        slots: rows computed at once, or None for what suits the device.
    """

    def __init__(self, model: Any, *, ends: set[int], window: int, slots: int | None) -> None:
        self._model = model
        self._ends = ends
        self._closing = threading.Event()
        self._changed = threading.Condition()
        self._waiting: deque[Row] = deque()
        self._batch, self._bytes_per_token, self.no_opening = batch_for(
            model, self._closing, window
        )
        device = model.device
        self._most = slots or _SLOTS.get(device.type, 32)
        self._slots = self._most
        self._steps = 0
        self._refused = 0
        self._any_finite = False
        self._alone: Row | None = None
        share = _SHARE_OF_MEMORY.get(device.type, 0.4)
        self._room = int(share * _free_bytes(device)) // max(1, self._bytes_per_token)

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

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def serve(self) -> None:
        """Answer what is submitted, until closed."""
        reason = "the model's engine has stopped"
        try:
            while self._has_work():
                full = self._try_step()
                if full is not None:
                    self._back_off(full)
            reason = _CLOSED
        except _Closed:
            reason = _CLOSED
        # A model may bring code of its own, and who waits for this thread has to hear of its end.
        except Exception as error:  # noqa: BLE001
            reason += f": {_first_line(error)}"
            _log.debug("the model's engine has stopped", exc_info=True)
        finally:
            with self._changed:
                self._closing.set()
                left = [*self._batch.rows, *self._waiting]
                self._waiting.clear()
            self._batch.clear(openings=True)
            for row in left:
                row.finish(BackendUnusable(reason))

    def release(self) -> None:
        """Give the model's memory back, once `serve` has returned; the engine is of no use then."""
        device = self._model.device
        del self._model, self._batch
        gc.collect()  # a batch and its cache know each other
        _release(device)

    def _has_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(
                lambda: self._closing.is_set() or self._waiting or self._batch.rows
            )
            return not self._closing.is_set()

    def _try_step(self) -> str | None:
        """Advance all rows by a token, and None; or why memory didn't suffice.

        The exception isn't passed on: its frames would hold the memory that is to be freed.
        """
        try:
            new = self._newcomers()
            if new:
                self._batch.add(new)
            if self._batch.rows:
                self._advance(self._batch.step())
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            return _first_line(error)
        return None

    def _newcomers(self) -> list[Row]:
        """The waiting requests that join now: the oldest that the batch can take, within memory."""
        rows = self._batch.rows
        with self._changed:
            self._waiting = deque(row for row in self._waiting if not row.cancelled)
            if not self._waiting or (rows and not self._batch.joins):
                return []
            taken: list[Row] = []
            longest = max(map(self._own, rows), default=0)
            longest_prompt = 0
            most_prompt_tokens = self._batch.most_prompt_tokens or math.inf
            for row in self._candidates():
                longest = max(longest, self._own(row))
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

    def _own(self, row: Row) -> int:
        """Tokens that a row may take in the cache for itself."""
        return row.longest - (len(row.opening) if self._batch.joins else 0)

    def _candidates(self) -> list[Row]:
        """Waiting requests in the order they should join."""
        if self._batch.joins:
            return list(self._waiting)
        # The oldest and its nearest in length, so that little is padded.
        oldest = len(self._waiting[0].prompt)
        return sorted(self._waiting, key=lambda row: abs(len(row.prompt) - oldest))

    def _advance(self, logits: Tensor) -> None:
        rows = list(self._batch.rows)
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
            self._batch.keep(kept)
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
        rows = [self._batch.rows[index] for index in indices]
        why = f"the model's logits are not finite in {str(dtype).removeprefix('torch.')}"
        if dtype != torch.float32:
            why += "; try float32"
        several = len(rows) > 1 and len(rows) == len(self._batch.rows)
        if several or (self._refused and not self._any_finite):
            raise RuntimeError(why)
        self._refused += len(rows)
        self._batch.blank(indices)
        for row in rows:
            row.finish(RequestRefused(f"prompt of {len(row.prompt)} tokens: {why}"))

    def _back_off(self, why: str) -> None:
        """Go on with half as many rows; they are computed again up to where they were."""
        rows = list(self._batch.rows)
        self._batch.clear(openings=len(rows) < 2)
        _release(self._model.device)
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


def _free_bytes(device: Any) -> int:
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


def _is_out_of_memory(error: BaseException) -> bool:
    return any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
