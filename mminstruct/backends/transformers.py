"""Hugging Face transformers in process: a Hub repository, a local folder or a GGUF file.

Requests are computed side by side, and what their prompts begin with once (`_transformers_engine`).
The dtype, part of the identity, is by default the checkpoint's own, and float32 on a CPU that lacks
it. Only the sampling that was asked for is applied. docs/engines.md says what answers depend on.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mminstruct.backends import BackendOptions, Opened
from mminstruct.backends._templates import (
    measure_room,
    read_seed,
)
from mminstruct.backends._transformers_checkpoint import (
    Checkpoint,
    Tokenizer,
    find_checkpoint,
    load_config,
    load_tokenizer,
)
from mminstruct.errors import (
    BackendError,
    BackendUnusable,
    UsageError,
    lacking,
)
from mminstruct.schema import Completion, FinishReason, Message, Option, Request, digest

if TYPE_CHECKING:
    from mminstruct.backends._transformers_engine import Engine

ALIASES = ("huggingface", "hf")
OPTIONS = {
    "parallel": Option(int, "requests computed at once (default: as the machine allows)"),
    "device": Option(str, "cpu, cuda, cuda:1, mps ... (default: the best there is)"),
    "device_map": Option(
        str,
        "spread the model over devices with accelerate (default: only if one is too small)",
        ("auto", "balanced", "sequential"),
    ),
    "dtype": Option(
        str,
        "of weights and activations (default: the checkpoint's, but for CPUs that lack it)",
        ("bfloat16", "float16", "float32"),
    ),
    "chat_template": Option(str, "Jinja file, instead of the model's own template"),
    "revision": Option(str, "branch, tag or commit on the Hub (default: main)"),
    "trust_remote_code": Option(bool, "run the Python code that the model's files contain"),
}

_INSTALL = "pip install 'mminstruct[transformers]'"
_NEEDED = ("torch", "transformers", "accelerate")
_SHARE_FOR_WEIGHTS = 0.85

_log = logging.getLogger(__name__)


def create(options: BackendOptions) -> TransformersBackend:
    """The backend for a repository, a folder or a GGUF file.

    Raises:
        UsageError: no model is named, or there is none of that name; a package is not installed; an
            option doesn't fit.
    """
    if not options.model:
        raise UsageError(
            "no model was named; give a Hugging Face repository, a folder or a GGUF file with "
            "--model"
        )
    gguf = options.model.endswith(".gguf")
    for package in (*_NEEDED, *(("gguf",) if gguf else ())):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"the package {package!r} is not installed; {_INSTALL}")
    if options.engine.get("device") and options.engine.get("device_map"):
        raise UsageError("device and device_map: give one of them, the map chooses devices itself")
    if options.engine.get("parallel", 1) < 1:
        raise UsageError(f"parallel: expected at least 1, got {options.engine['parallel']}")
    return TransformersBackend(find_checkpoint(options), options)


class TransformersBackend(Opened):
    """One model in this process."""

    name: Literal["transformers"] = "transformers"
    token_error = 0.0
    endpoints: tuple[str, ...] = ()

    def __init__(self, checkpoint: Checkpoint, options: BackendOptions) -> None:
        self._checkpoint = checkpoint
        self.options = options
        self._template = _template(options.engine.get("chat_template"))
        self._thread: ThreadPoolExecutor | None = None
        self.engine: Engine | None = None
        self._serving: Future[None] | None = None
        self.model = checkpoint.name
        self.repo_id = checkpoint.where if checkpoint.on_hub else None
        # Enough that some always wait to join the batch.
        self.parallel = options.max_concurrency

    @cached_property
    def context_window(self) -> int | None:
        """The model's own, or the option's if that is smaller."""
        text = load_config(self._checkpoint).get_text_config()
        known = (getattr(text, "max_position_embeddings", None), self.options.context_window)
        return min((length for length in known if length is not None), default=None)

    def identity(self) -> dict[str, str]:
        """The weights, wherever they lie, what they are computed in, and how they are prompted."""
        checkpoint = self._checkpoint
        found = {"backend": self.name, "dtype": self._find_dtype()}
        if checkpoint.on_hub:
            found |= {"model": checkpoint.where, "revision": checkpoint.version}
        else:
            found["weights"] = checkpoint.version
        if checkpoint.trusted:
            found["trust_remote_code"] = "true"
        if self._template is not None:
            found["chat_template"] = digest(self._template)[:32]
        return found

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Exact: the template applied, then the model's own tokenizer."""
        return len(self.tokenizer().tokens(tuple(messages)))

    async def __aenter__(self) -> TransformersBackend:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="transformers")
        loop = asyncio.get_running_loop()
        try:
            self.engine = await loop.run_in_executor(self._thread, self._load)
        except BaseException:
            self._thread.shutdown()
            raise
        self._serving = self._thread.submit(self.engine.serve)
        return self

    async def close(self) -> None:
        """End the engine and give its memory back; what isn't finished fails."""
        if self.engine is None or self._thread is None or self._serving is None:
            return
        engine, serving, thread = self.engine, self._serving, self._thread
        engine.close()
        try:
            await asyncio.wrap_future(serving)
        finally:
            thread.shutdown()
            self.engine = self._serving = self._thread = None
            # The next one, of another split, has to find the memory free.
            engine.release()

    async def complete(self, request: Request) -> Completion:
        """One answer, computed together with others.

        Raises:
            ContextTooLong: the prompt leaves no room in the window.
            RequestRefused: it doesn't fit the device's memory, even alone.
            BackendUnusable: the engine isn't open, or was closed meanwhile.
        """
        from mminstruct.backends._transformers_batches import Row

        if self.engine is None:
            raise BackendUnusable("the backend is not open")
        tokenizer, sampling = self.tokenizer(), request.sampling
        prompt = tokenizer.tokens(request.messages)
        room = measure_room(len(prompt), self.context_window, sampling.max_tokens)
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[FinishReason] = loop.create_future()
        row = Row(
            prompt=list(prompt),
            opening=tokenizer.opening(request.messages),
            sampling=sampling,
            limit=room,
            rng=random.Random(read_seed(request)),  # noqa: S311 (drawn again alike, no secret)
            finish=lambda end: _tell(loop, ended, end),
        )
        self.engine.submit(row)
        try:
            reason = await ended
        finally:
            row.cancelled = True
        return Completion(
            text=tokenizer.text(row.answer),
            finish_reason=reason,
            prompt_tokens=len(prompt),
            completion_tokens=len(row.answer),
            model=self.model,
        )

    def tokenizer(self) -> Tokenizer:
        """The model's, loaded once in a process."""
        return load_tokenizer(self._checkpoint, self._template)

    def _choose_device(self) -> str | None:
        """Where the model goes; None leaves it to a device map."""
        if self.options.engine.get("device_map"):
            return None
        return self.options.engine.get("device") or best_device()

    def _find_dtype(self) -> str:
        chosen: str | None = self.options.engine.get("dtype")
        if chosen is not None:
            return chosen
        own = "bfloat16"
        if self._checkpoint.gguf_file is None:
            config = load_config(self._checkpoint)
            # Its name before transformers 5.
            named = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
            own = str(named or "float32").removeprefix("torch.")
        if not (self._choose_device() or best_device()).startswith("cpu"):
            return own
        return own if own == "bfloat16" and _cpu_computes_bfloat16() else "float32"

    def _load(self) -> Engine:
        import torch
        import transformers

        from mminstruct.backends._transformers_engine import Engine

        tokenizer = self.tokenizer()
        dtype = getattr(torch, self._find_dtype())
        arguments = self._checkpoint.arguments()
        arguments |= {"config": load_config(self._checkpoint), "dtype": dtype}
        if self._checkpoint.gguf_file is not None and hasattr(transformers, "GgufConfig"):
            # Packed weights would be computed by kernels that the library fetches from the Hub.
            arguments["quantization_config"] = transformers.GgufConfig(dequantize=True)
        device = self._choose_device()
        device_map = self.options.engine.get("device_map")
        with self._checkpoint.loading("weights"), _hide_progress_bars():
            if device is not None and not _fits(self._checkpoint, dtype, device):
                if self.options.engine.get("device"):
                    raise BackendUnusable(
                        f"model {self.model!r}: {device} has too little free memory for its "
                        f"weights in {self._find_dtype()}; free some of it, use a smaller dtype or "
                        "model, or give --device_map auto, which spreads it over all devices"
                    )
                _log.warning(
                    "%s has too little free memory for %s, which is spread over all devices; that "
                    "may be much slower",
                    device,
                    self.model,
                )
                device, device_map = None, "auto"
            arguments["device_map"] = device_map or {"": torch.device(device or "cpu")}
            model = transformers.AutoModelForCausalLM.from_pretrained(**arguments).eval()
            model.requires_grad_(False)
            try:
                engine = Engine(
                    model,
                    ends=tokenizer.ends | _find_ends(model),
                    window=self.context_window or 1 << 30,
                    slots=self.options.engine.get("parallel"),
                )
            except BackendUnusable as error:
                raise BackendUnusable(f"model {self.model!r}: {error}") from error
        spread = sorted({str(place) for place in getattr(model, "hf_device_map", {}).values()})
        opening = f"; no shared opening, as {engine.no_opening}" if engine.no_opening else ""
        _log.info(
            "%s runs on %s in %s, up to %d requests at once%s",
            self.model,
            " and ".join(spread) if device is None else device,
            self._find_dtype(),
            engine.slots,
            opening,
        )
        return engine


def _template(file: str | None) -> str | None:
    if file is None:
        return None
    path = Path(file).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UsageError(
            f"chat_template {file!r}: {reason}{lacking(path)}; expected a Jinja file"
        ) from error


@lru_cache(maxsize=1)
def best_device() -> str:
    """A GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _cpu_computes_bfloat16() -> bool:
    """Whether this CPU multiplies matrices in bfloat16 faster than in float32."""
    import torch

    # From torch 2.11 on; what isn't known counts as no.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _fits(checkpoint: Checkpoint, dtype: Any, device: str) -> bool:
    """Whether the weights fit one GPU; the CPU's memory is the only one there is without."""
    import torch
    from transformers import AutoModelForCausalLM

    if not device.startswith("cuda"):
        return True
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(
            load_config(checkpoint), trust_remote_code=checkpoint.trusted
        )
    needed = sum(parameter.numel() for parameter in empty.parameters()) * dtype.itemsize
    return bool(needed <= _SHARE_FOR_WEIGHTS * torch.cuda.mem_get_info(torch.device(device))[0])


def _find_ends(model: Any) -> set[int]:
    """The tokens that end an answer, as the model's configurations name them."""
    found: set[int | None] = set()
    for config in (getattr(model, "generation_config", None), model.config.get_text_config()):
        tokens = getattr(config, "eos_token_id", None)
        found.update(tokens if isinstance(tokens, list | tuple) else [tokens])
    return {token for token in found if token is not None}


@contextmanager
def _hide_progress_bars() -> Iterator[None]:
    """Without the library's bars for loading, which would tear our own line apart."""
    from transformers.utils import logging as library_logging

    shown = library_logging.is_progress_bar_enabled()
    library_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            library_logging.enable_progress_bar()


def _tell(
    loop: asyncio.AbstractEventLoop,
    ended: asyncio.Future[FinishReason],
    end: FinishReason | BackendError,
) -> None:
    """Pass the end of a request on to who waits, if the loop still runs."""

    def settle() -> None:
        if ended.done():
            return
        if isinstance(end, BackendError):
            ended.set_exception(end)
        else:
            ended.set_result(end)

    if not loop.is_closed():
        loop.call_soon_threadsafe(settle)
