"""Which kind of batch a model's own code answers rightly."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from mminstruct.backends._transformers_attention import ATTENTION, attend
from mminstruct.backends._transformers_batches import (
    PaddedBatch,
    Row,
    SharedOpeningBatch,
    cache_name,
    count_prefill_tokens,
    first_line,
    is_out_of_memory,
)
from mminstruct.errors import BackendUnusable
from mminstruct.schema import Sampling

_PROBE_ERROR = 0.05
# Of padded batches in float32, where even pads that aren't quite hidden tell.
_PADDED_ERROR = 0.02
# Of whole prompts in half precision, which there is nothing instead of: recurrent states that are
# right are rounded by up to 0.11 there, and a wrong cache is off by 0.4 and more.
_WHOLE_ERROR_ROUNDED = 0.25
# What models raise that don't know a cache, an argument or a shape.
_MISFITS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@torch.inference_mode()  # type: ignore[untyped-decorator]  # torch has no types for it
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
    bytes_per_token = _count_bytes(output.get(cache_name(model))) // tokens.numel()
    probe, plain = tokens[0].tolist(), output.logits[0].float()
    usual = model.config._attn_implementation
    reason = _try(lambda: _find_other_layers(model, window)) or _try(
        lambda: _try_sharing(model, probe, plain)
    )
    if reason is None:
        return SharedOpeningBatch(model, closing), bytes_per_token, None
    model.set_attn_implementation(usual)
    # Layers with a recurrent state may begin anew with every pass of several tokens.
    whole = _try(lambda: _try_padding(model, probe, plain, whole=False)) is not None
    wrong = _try(lambda: _try_padding(model, probe, plain, whole=True)) if whole else None
    if wrong is not None:
        raise BackendUnusable(
            f"{type(model).__name__} isn't supported, as it can't be computed for several prompts "
            f"at once ({wrong}); use a GGUF file of it with llama_cpp, or a server"
        )
    batch = PaddedBatch(model, closing, prefill_tokens=count_prefill_tokens(model), whole=whole)
    return batch, bytes_per_token, reason


def _try(check: Callable[[], str | None]) -> str | None:
    """What the check finds wrong, or the error that the model meets in it."""
    try:
        return check()
    except _MISFITS as error:
        if is_out_of_memory(error):
            raise
        return first_line(error)


def _count_bytes(cache: Cache | None) -> int:
    layers = getattr(cache, "layers", [])
    kept = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    return sum(tensor.nbytes for tensor in kept if tensor is not None)


def _find_other_layers(model: Any, window: int) -> str | None:
    for layer in DynamicCache(config=model.config).layers:
        wide = getattr(layer, "is_sliding", False) and layer.sliding_window >= window
        if type(layer) is not DynamicLayer and not wide:
            return f"it has layers other than full attention ({type(layer).__name__})"
    return None


def _try_sharing(model: Any, tokens: list[int], plain: Tensor) -> str | None:
    """What is wrong with its logits if prompts share an opening.

    Args:
        model: its attention is replaced.
        tokens: of a probe.
        plain: (tokens, vocabulary) the logits after each of them.
    """
    AttentionInterface.register(ATTENTION, attend)
    model.set_attn_implementation(ATTENTION)
    if model.config._attn_implementation != ATTENTION:
        return "its attention can't be replaced"
    batch = SharedOpeningBatch(model, threading.Event())
    # Prompts of two lengths, so that one of them is padded.
    batch.add([_make_row(tokens[:length], tuple(tokens[:5])) for length in (12, 9)])
    return _compare(batch, plain, _PROBE_ERROR)


def _try_padding(model: Any, tokens: list[int], plain: Tensor, *, whole: bool) -> str | None:
    """What is wrong with its logits in a padded batch, of which a row then leaves."""
    if model.dtype == torch.float32:
        bound = _PADDED_ERROR
    else:
        bound = _WHOLE_ERROR_ROUNDED if whole else _PROBE_ERROR
    # Three tokens of each row at once, so that some are pads only.
    batch = PaddedBatch(model, threading.Event(), prefill_tokens=9, whole=whole)
    batch.add([_make_row(tokens[:length], ()) for length in (10, 11, 5)])
    wrong = _compare(batch, plain, bound)
    if wrong is not None:
        return wrong
    batch.keep([0, 2])
    for row in batch.rows:
        row.answer.append(tokens[len(row.prompt)])
    return _compare(batch, plain, bound)


def _compare(batch: SharedOpeningBatch | PaddedBatch, plain: Tensor, bound: float) -> str | None:
    ours = batch.step().float()
    usual = plain[[row.computed for row in batch.rows]]
    off = float((ours - usual).abs().max() / (plain.max() - plain.min()))
    return None if off < bound else f"its logits would be off by {off:.0%}"


def _make_row(prompt: list[int], opening: tuple[int, ...]) -> Row:
    return Row(prompt, opening, Sampling(), 1, random.Random(0), lambda end: None)  # noqa: S311 (drawn again alike, no secret)
