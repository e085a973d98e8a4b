"""Attention of rows that share an opening."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

ATTENTION = "mminstruct_shared_opening"
PIECE_OF_SCORES = 1 << 21
# Tokens for which reading all keys is worth it.
_LEAST_PIECE = 8


class _Unsupported(ValueError):
    """The model's attention does more than is computed here."""


Opening = Sequence[tuple[Tensor, Tensor]]


@dataclass(slots=True)
class Pass:
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

    openings: Sequence[tuple[Opening, list[int] | None]]
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


class _Batch(Protocol):
    now: Pass


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    mminstruct_batch: _Batch | None = None,
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
    out, own_total = _weigh(own, value)
    for (common_key, common_value), which in openings:
        chosen = slice(None) if which is None else torch.tensor(which, device=query.device)
        some = query[chosen].transpose(0, 1)  # (key heads, rows, group, size)
        common = (some.reshape(key_heads, -1, size) @ common_key[0].transpose(1, 2)).float()
        seen, total = _weigh(common, common_value[0])
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
    at_once = max(_LEAST_PIECE, PIECE_OF_SCORES // (rows * heads * columns))
    for start in range(0, tokens, at_once):
        piece = query[:, :, start : start + at_once]
        scores = piece.flatten(1, 2) @ key.transpose(1, 2)
        own = scores.view(*piece.shape[:3], columns)[..., -tokens:]
        own.masked_fill_(later[start : start + at_once], -torch.inf)
        seen = scores.softmax(-1) @ value
        out[:, :, start : start + at_once] = seen.view(*piece.shape[:3], -1)
    return out.view(rows, heads, tokens, -1)


def _weigh(scores: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The values' mean, weighted by the softmax of scores, and the logarithm of the weights' sum.

    ``scores`` is written over.
    """
    most = scores.amax(-1, keepdim=True)
    weights = scores.sub_(most).exp_()
    total = weights.sum(-1, keepdim=True)
    return (weights.to(value.dtype) @ value) / total.to(value.dtype), total.log() + most
