"""Many requests at once through one llama.cpp context, in a thread of its own."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from mminstruct.backends import _trial
from mminstruct.errors import (
    BackendError,
    BackendUnusable,
    ContextTooLong,
    RequestRefused,
    TransientError,
    fault_of,
)
from mminstruct.schema import FinishReason, Sampling

_log = logging.getLogger(__name__)

# Sequences that keep openings; requests come by type, so more than two are rarely in use.
OPENINGS = 4
# Tokens of an answer for which there has to be room before its request joins the batch.
AHEAD = 64
# Tokens computed in one step at most.
_BATCH = 512
# What llama_decode returns when it finds no free cells, having changed nothing.
_NO_ROOM = 1
# llama.cpp takes this seed as "choose one".
_RANDOM_SEED = 0xFFFFFFFF


@dataclass(eq=False, slots=True)
class Task:
    """A request on its way through the engine.

    Attributes:
        prompt: its tokens.
        opening: how many of them it shares with others of its type.
        sampling: how to draw.
        seed: of its own random generator.
        length_limit: tokens of prompt and answer together at most.
        answer: gets the tokens of the answer and why it ended.
        tokens: prompt and what has been drawn so far.
        sampler: while it runs or waits to go on.
        sequence: its slot, while it has one.
        cached: how many of its tokens are in the cache.
    """

    prompt: list[int]
    opening: int
    sampling: Sampling
    seed: int
    length_limit: int
    answer: Future[tuple[list[int], FinishReason]] = field(default_factory=Future)
    tokens: list[int] = field(init=False)
    sampler: Any = None
    sequence: int = -1
    cached: int = 0

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    def precedence(self) -> tuple[bool, int]:
        """Where it comes in a batch, whose end prompts may not fit into."""
        is_prompt = len(self.tokens) - self.cached > 1
        return is_prompt, 0 if is_prompt else self.sequence

    @property
    def shared(self) -> tuple[int, ...]:
        """The tokens of its opening."""
        return tuple(self.prompt[: self.opening])


class Engine:
    """A model, its key-value cache and the thread that steps through batches.

    Where there is no memory for ``cells``, the cache has fewer, down to ``fewest_cells``.

    Raises:
        BackendUnusable: there is no memory for these either.
    """

    def __init__(
        self,
        model: Any,
        *,
        model_name: str,
        slots: int,
        cells: int,
        fewest_cells: int,
        is_pool: bool,
        threads: int,
    ) -> None:
        import llama_cpp

        self._lib = llama_cpp
        self._model = model
        params = llama_cpp.llama_context_default_params()
        least = slots + OPENINGS  # with fewer cells llama.cpp ends the process
        params.n_ctx = wanted = max(cells, least)
        params.n_batch = params.n_ubatch = _BATCH
        params.n_seq_max = slots + OPENINGS
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = is_pool  # there, copying an opening copies no data
        self.context = _new_context(model, params, max(fewest_cells, least))
        if not self.context:
            model.close()
            raise BackendUnusable(
                f"model {model_name!r}: llama.cpp can't make a cache of {params.n_ctx} cells for it"
                f"{_quote_errors()}; lower --n_ctx, --parallel or --context_window"
            )
        if params.n_ctx < wanted:
            tell_fewer(model_name, params.n_ctx, wanted)
        self._memory = llama_cpp.llama_get_memory(self.context)
        self._cells = llama_cpp.llama_n_ctx(self.context)
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        self._free_slots = list(range(slots))
        self._free_openings = list(range(slots, slots + OPENINGS))
        self.openings: dict[tuple[int, ...], int] = {}  # tokens -> sequence, the oldest use first
        self.running: list[Task] = []  # the oldest first
        # The engine's thread owns all of it; others put into `_waiting` and set `_closing`, under
        # `_changed`.
        self._waiting: deque[Task] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="llama-cpp", daemon=True)
        self._thread.start()

    def submit(self, task: Task) -> None:
        """Queue a task; its answer comes through its future."""
        with self._changed:
            if self._closing:
                raise BackendUnusable("the engine has ended")
            self._waiting.append(task)
            self._changed.notify()

    def close(self) -> None:
        """Stop after the present step; who still waits for an answer is told so."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        reason = "the engine ended before the answer was there"
        try:
            fault = fault_of(self._work)
            if fault is not None:
                reason += f": {type(fault).__name__}: {fault}"
                _log.debug("llama.cpp's engine has ended", exc_info=fault)
        finally:
            with self._changed:
                self._closing = True
            for task in (*self.running, *self._waiting):
                self._fail(task, BackendUnusable(reason))
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self.context)
            self._model.close()

    def _work(self) -> None:
        while self._wait_for_work():
            self._step()

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._waiting or self.running)
            return not self._closing

    def _step(self) -> None:
        """Compute one batch and draw a token for every request whose prompt is complete."""
        for task in [task for task in self.running if task.answer.cancelled()]:
            self._leave(task)
        self._admit()
        pieces = self._fill()
        if not pieces or not self._decode():
            return
        for task, count, index in pieces:
            task.cached += count
            if task.cached == len(task.tokens):
                self._draw(task, index)

    def _admit(self) -> None:
        """Let waiting requests in, in their order, as far as there are slots and cells."""
        while self._free_slots and self._waiting and not self._closing:
            task = self._waiting[0]
            if task.answer.cancelled():
                self._waiting.popleft()
            elif not self._has_room_for(task) or not self._join(task):
                return

    def _has_room_for(self, task: Task) -> bool:
        """Whether a request fits beside the running ones; openings out of use make room for it."""
        while self.running and self._reckon_cells([*self.running, task]) > self._cells:
            if not self._drop_an_opening([*self.running, task]):
                return False
        return True

    def _reckon_cells(self, tasks: Sequence[Task]) -> int:
        """Cells that openings and requests will soon take."""
        openings = {*self.openings, *(task.shared for task in tasks)}
        own = (min(len(t.tokens) + AHEAD, t.length_limit) - t.opening for t in tasks)
        return sum(map(len, openings)) + sum(own)

    def _join(self, task: Task) -> bool:
        """Give the first waiting request a slot; False if its opening can't be computed now."""
        shared = task.shared
        if shared and shared not in self.openings and not self._compute_opening(shared, task):
            return False
        self._waiting.popleft()
        # Sequences are computed together where their numbers follow each other.
        task.sequence = min(self._free_slots)
        self._free_slots.remove(task.sequence)
        if shared:
            opening = self.openings[shared] = self.openings.pop(shared)
            self._lib.llama_memory_seq_cp(self._memory, opening, task.sequence, -1, -1)
        task.cached = len(shared)
        if task.sampler is None:
            task.sampler = make_sampler(task)
        self.running.append(task)
        return True

    def _leave(self, task: Task) -> None:
        """Free a request's slot and cells."""
        self.running.remove(task)
        self._forget(task.sequence)
        self._free_slots.append(task.sequence)
        task.sequence, task.cached = -1, 0

    def _make_room(self) -> None:
        """Free cells after a batch that found none: openings out of use, else the youngest."""
        if self._drop_an_opening(self.running):
            return
        task = self.running[-1]
        self._leave(task)
        if self.running:
            self._waiting.appendleft(task)  # with its tokens and its generator, to go on later
        else:
            self._fail(task, self._tell_too_long(len(task.tokens)))

    def _tell_too_long(self, tokens: int) -> ContextTooLong:
        return ContextTooLong(
            f"{tokens} tokens don't fit the cache of {self._cells} cells; raise --n_ctx"
        )

    def _compute_opening(self, shared: tuple[int, ...], task: Task) -> bool:
        """Put an opening into the cache, in batches of its own; False if there is no room."""
        if not self._free_openings:
            self._drop_an_opening([])
        sequence = self._free_openings.pop()
        for start in range(0, len(shared), _BATCH):
            chunk = shared[start : start + _BATCH]
            self._batch.n_tokens = 0
            self._put(sequence, chunk, start, False)
            code = self._lib.llama_decode(self.context, self._batch)
            if code or self._closing:
                self._forget(sequence)
                self._free_openings.append(sequence)
                self._opening_failed(task, code)
                return False
        self.openings[shared] = sequence
        return True

    def _opening_failed(self, task: Task, code: int) -> None:
        """Make room for an opening, or wait until others finish, or give the request up."""
        if code == _NO_ROOM:
            if not self.running and not self._drop_an_opening([task]):
                self._waiting.popleft()
                self._fail(task, self._tell_too_long(task.opening))
        elif code:
            self._start_over(code, self._waiting.popleft())

    def _drop_an_opening(self, tasks: Sequence[Task]) -> bool:
        """Forget the opening that was used longest ago and that none of the tasks has."""
        used = {task.shared for task in tasks}
        unused = next((shared for shared in self.openings if shared not in used), None)
        if unused is None:
            return False
        sequence = self.openings.pop(unused)
        self._forget(sequence)
        self._free_openings.append(sequence)
        return True

    def _fill(self) -> list[tuple[Task, int, int]]:
        """Fill the batch: each request, how many of its tokens are in, and where the last is.

        Answers first, one token each and by sequence, then as much of the prompts as fits.
        """
        self._batch.n_tokens = 0
        pieces = []
        for task in sorted(self.running, key=Task.precedence):
            stop = min(len(task.tokens), task.cached + _BATCH - self._batch.n_tokens)
            chunk = task.tokens[task.cached : stop]
            if chunk:
                self._put(task.sequence, chunk, task.cached, stop == len(task.tokens))
                pieces.append((task, len(chunk), self._batch.n_tokens - 1))
        return pieces

    def _put(self, sequence: int, tokens: Sequence[int], position: int, draws: bool) -> None:
        """Append some tokens of a sequence; ``draws`` asks for what follows the last of them."""
        batch, start = self._batch, self._batch.n_tokens
        for i, token in enumerate(tokens, start):
            batch.token[i] = token
            batch.pos[i] = position + i - start
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = False
        batch.n_tokens = start + len(tokens)
        batch.logits[batch.n_tokens - 1] = draws

    def _decode(self) -> bool:
        """Whether the batch could be computed; if not, something was done about it."""
        code = self._lib.llama_decode(self.context, self._batch)
        if code == _NO_ROOM:
            self._make_room()
        elif code:
            self._start_over(code)
        return bool(code == 0)

    def _start_over(self, code: int, *joining: Task) -> None:
        """Empty the cache after an error that leaves it undefined; requests are tried again."""
        error = TransientError(f"llama.cpp can't compute ({code}){_quote_errors()}", cause="engine")
        for task in list(self.running):
            self._leave(task)
            self._fail(task, error)
        for task in joining:
            self._fail(task, error)
        self._lib.llama_memory_clear(self._memory, True)
        self._free_openings += self.openings.values()
        self.openings.clear()

    def _draw(self, task: Task, index: int) -> None:
        """Draw the next token of an answer and end it if that was the last."""
        token = self._lib.llama_sampler_sample(task.sampler.sampler, self.context, index)
        if not math.isfinite(self._lib.llama_get_logits_ith(self.context, index)[token]):
            self._leave(task)
            self._fail(task, RequestRefused("the model's logits are not finite"))
            return
        if self._lib.llama_vocab_is_eog(self._model.vocab, token):
            self._finish(task, "stop")
            return
        task.tokens.append(token)
        if len(task.tokens) >= task.length_limit:
            self._finish(task, "length")

    def _finish(self, task: Task, reason: FinishReason) -> None:
        self._leave(task)
        task.sampler.close()
        with contextlib.suppress(InvalidStateError):  # cancelled just now
            task.answer.set_result((task.tokens[len(task.prompt) :], reason))

    def _fail(self, task: Task, error: BackendError) -> None:
        if task.sampler is not None:
            task.sampler.close()
        with contextlib.suppress(InvalidStateError):
            task.answer.set_exception(error)

    def _forget(self, sequence: int) -> None:
        self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)


def make_sampler(task: Task) -> Any:
    """llama.cpp's chain for what was asked, and nothing that wasn't."""
    from llama_cpp._internals import LlamaSampler

    sampler, sampling = LlamaSampler(), task.sampling
    if sampling.temperature == 0.0:
        sampler.add_greedy()
        return sampler
    sampler.add_temp(sampling.temperature)
    if sampling.top_p < 1.0:  # of what the temperature left, as in the other engines
        sampler.add_top_p(sampling.top_p)
    sampler.add_dist(task.seed % _RANDOM_SEED)
    return sampler


def load_model(path: Path, *, vocab_only: bool, gpu_layers: int = 0) -> Any:
    """The model file, or of it what concerns text and tokens.

    Raises:
        BackendUnusable: llama.cpp can't load it.
    """
    import llama_cpp
    from llama_cpp._internals import LlamaModel

    llama_cpp.llama_log_set(_make_log_callback(), None)
    params = _trial.model_params()
    params.vocab_only = vocab_only
    params.n_gpu_layers = gpu_layers
    _errors.clear()
    try:
        return LlamaModel(path_model=str(path), params=params, verbose=True)
    except ValueError as error:
        reason = _quote_errors().replace(str(path), path.name)
        raise BackendUnusable(
            f"model {path.name!r}: llama.cpp can't load it{reason}; is the file complete, "
            "and is there memory for it?"
        ) from error


def _new_context(model: Any, params: Any, fewest_cells: int) -> Any:
    """A context with ``params.n_ctx`` cells, which is halved while there is no memory for it.

    None if there is none for the fewest either.
    """
    import llama_cpp

    while True:
        _errors.clear()
        context = llama_cpp.llama_init_from_model(model.model, params)
        if context or params.n_ctx <= fewest_cells:
            return context
        params.n_ctx = max(fewest_cells, params.n_ctx // 2)
        params.kv_unified = True  # with cells of its own, no request could fill a window now


def tell_fewer(model_name: str, cells: int, usual: int) -> None:
    _log.info(
        "model %s: there is memory for a cache of %s cells instead of %s, so fewer requests may "
        "be computed at once",
        model_name,
        f"{cells:,}",
        f"{usual:,}",
    )


_ERROR_LEVEL = 4
_errors: deque[str] = deque(maxlen=3)


@lru_cache(maxsize=1)
def _make_log_callback() -> Any:
    """Keeps llama.cpp's last errors for ours; by default it writes to stderr at length."""
    import llama_cpp

    def keep(level: int, text: bytes, _: object) -> None:
        if level == _ERROR_LEVEL:
            _errors.append(text.decode(errors="replace").strip())

    return llama_cpp.llama_log_callback(keep)


def _quote_errors() -> str:
    return f" ({'; '.join(_errors)})" if _errors else ""
