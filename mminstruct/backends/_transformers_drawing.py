"""The next token, drawn from logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from mminstruct.backends._transformers_batches import Row
from mminstruct.schema import Sampling


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
        groups.setdefault(_choose(row.sampling), []).append(index)
    tokens = [0] * len(rows)
    for way, group in groups.items():
        chosen = logits if len(group) == len(rows) else logits[group]
        for index, token in zip(group, way(chosen, [rows[i] for i in group]), strict=True):
            tokens[index] = token
    return tokens


def _choose(sampling: Sampling) -> Callable[[Tensor, Sequence[Row]], list[int]]:
    if sampling.temperature <= 0:
        return _take_likeliest
    return draw_from_nucleus if sampling.top_p < 1 else _draw_freely


def _take_likeliest(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    tokens: list[int] = logits.argmax(-1).tolist()
    return tokens


def draw_from_nucleus(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    return _draw_freely(logits, rows, nucleus=True)


def _draw_freely(logits: Tensor, rows: Sequence[Row], *, nucleus: bool = False) -> list[int]:
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
