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
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mminstruct.backends import BackendOptions, Opened
from mminstruct.backends._gguf import check_gguf, fingerprint
from mminstruct.backends._templates import (
    ChatTokenizer,
    measure_room,
    read_seed,
    strftime_now,
    wrap_model_errors,
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
# What an answer can depend on in a model's folder: weights, configuration, tokenizer, template.
_SUFFIXES = {".bin", ".jinja", ".json", ".model", ".py", ".safetensors", ".tiktoken", ".txt"}
# ... and what it can't, though it is named like that.
_NOT_THE_MODEL = re.compile(
    r"(license|licence|notice|readme|use_policy)|(all|train|eval)_results\.json$|trainer_state\.json$"
    r"|(training_args|optimizer|scheduler)\.bin$",
    re.IGNORECASE,
)
_ANOTHER_TEMPLATE = "give another one with --chat_template"
# An answer by which to find what a template writes after one.
_ANSWER = "mminstruct"
_DATE = re.compile(r"""\bstrftime_now\(\s*(["'])(?P<pattern>[^"'\\]*)\1\s*\)""")
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


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """Which files a model is loaded from.

    Attributes:
        name: public name of the model.
        where: Hub id or folder.
        version: commit on the Hub, or fingerprint of the files.
        on_hub: whether ``where`` is a Hub id.
        gguf_file: name of the file in the folder, or None.
        trusted: whether code in the files may run.
    """

    name: str
    where: str
    version: str
    on_hub: bool = False
    gguf_file: str | None = None
    trusted: bool = False

    def arguments(self) -> dict[str, Any]:
        """For the library's ``from_pretrained``."""
        found: dict[str, Any] = {
            "pretrained_model_name_or_path": self.where,
            "trust_remote_code": self.trusted,
        }
        if self.on_hub:
            found["revision"] = self.version
        if self.gguf_file is not None:
            found["gguf_file"] = self.gguf_file
        return found

    @contextmanager
    def loading(self, what: str) -> Iterator[None]:
        """Errors of the library become `BackendUnusable`, without the folder's path."""

        def words(error: Exception) -> str:
            reason = " ".join((str(error) or type(error).__name__).split())
            if not self.on_hub:
                reason = reason.replace(self.where, self.name)
            return f"transformers can't load its {what} ({reason})"

        with wrap_model_errors(self.name, words):
            yield


def find_checkpoint(options: BackendOptions) -> _Checkpoint:
    """The files of the model that is named.

    Raises:
        UsageError: there are none, or they aren't a model's.
    """
    name = options.model or ""
    path = Path(name).expanduser()
    revision = options.engine.get("revision")
    trusted = bool(options.engine.get("trust_remote_code"))
    local = name.endswith(".gguf") or path.exists() or name.startswith((".", "/", "~"))
    if not local:
        commit = _find_commit(name, revision)
        return _Checkpoint(name, name, commit, on_hub=True, trusted=trusted)
    if revision:
        raise UsageError(f"revision: {path.name!r} is on this machine and has none")
    if name.endswith(".gguf"):
        check_gguf(path)
        folder = str(path.resolve().parent)
        return _Checkpoint(path.name, folder, fingerprint(path), gguf_file=path.resolve().name)
    if not (path / "config.json").is_file():
        raise UsageError(
            f"model {name!r}{lacking(path)}: expected a folder with config.json, weights and "
            "tokenizer, a GGUF file, or a Hugging Face repository such as org/name"
        )
    version = _digest_folder(path.resolve())
    return _Checkpoint(path.resolve().name, str(path.resolve()), version, trusted=trusted)


def _digest_folder(folder: Path) -> str:
    """Digest of what a folder's model answers by; large files are sampled."""
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in _SUFFIXES and not _NOT_THE_MODEL.match(path.name)
    )
    return digest({path.name: fingerprint(path) for path in files if path.is_file()})[:32]


@lru_cache(maxsize=8)
def _find_commit(repo_id: str, revision: str | None) -> str:
    """The commit that a repository's branch or tag points to; offline, as it was last fetched.

    Raises:
        UsageError: there is no such repository or revision, it is gated, or it isn't a model for
            transformers; offline, none of it was fetched before.
    """
    from huggingface_hub import errors, hf_hub_download

    shown = f"model {repo_id!r}" + (f", revision {revision!r}" if revision else "")
    try:
        # `snapshots/<commit>/config.json`
        config = hf_hub_download(repo_id, "config.json", revision=revision)
    except errors.HFValidationError as error:
        raise UsageError(
            f"{shown}: neither a file, a folder nor a Hugging Face repository such as org/name"
        ) from error
    except errors.GatedRepoError as error:
        raise UsageError(
            f"{shown} is gated; ask for access at https://huggingface.co/{repo_id} and set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UsageError(f"{shown}: no such repository, or a private one (HF_TOKEN)") from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(f"{shown}: the repository has no such revision") from error
    except errors.LocalEntryNotFoundError as error:
        raise UsageError(
            f"{shown}: not in the local cache, and the Hugging Face Hub can't be reached; check "
            "the name and the connection (HF_HUB_OFFLINE), or name a local folder"
        ) from error
    except errors.EntryNotFoundError as error:
        raise UsageError(f"{shown} is no model for transformers: it has no config.json") from error
    except (errors.HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{shown}: the Hugging Face Hub refuses it ({reason})") from error
    return Path(config).parent.name


@lru_cache(maxsize=4)
def _load_config(checkpoint: _Checkpoint) -> Any:
    from transformers import AutoConfig

    with checkpoint.loading("configuration"):
        return AutoConfig.from_pretrained(**checkpoint.arguments())


@lru_cache(maxsize=4)
def _load_tokenizer(checkpoint: _Checkpoint, template: str | None) -> _Tokenizer:
    from transformers import AutoTokenizer

    with checkpoint.loading("tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(**checkpoint.arguments())
    if template is None and not tokenizer.chat_template:
        raise BackendUnusable(
            f"model {checkpoint.name!r} has no chat template; use an instruction-tuned model, or "
            "give a Jinja file with --chat_template"
        )
    with checkpoint.loading("chat template"):
        written = _fix_day(tokenizer.get_chat_template(template))
    return _Tokenizer(checkpoint.name, tokenizer, written)


class _Tokenizer(ChatTokenizer):
    """A library's tokenizer, which is used by one thread at a time."""

    def __init__(self, model: str, tokenizer: Any, template: str) -> None:
        super().__init__(model, _ANOTHER_TEMPLATE, probes=("A", "7", "\n", " ("))
        self.library = tokenizer
        self._template = template
        self._one_at_a_time = threading.Lock()
        self.ends: set[int] = {tokenizer.eos_token_id} - {None} | self._ends_of_turn()

    def text(self, tokens: Sequence[int]) -> str:
        """What the tokens say, special ones too: they tell where an answer ends."""
        with self._one_at_a_time:
            text: str = self.library.decode(
                tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        return text

    def _ends_of_turn(self) -> set[int]:
        """The token that the template ends an answer with, if it is a special one."""
        asked = (Message("user", "A"), Message("assistant", _ANSWER))
        try:
            _, answer, after = self._write(asked, to_answer=False).rpartition(_ANSWER)
        except BackendUnusable:
            return set()
        tokens = self.library(after.lstrip(), add_special_tokens=False)["input_ids"]
        known = self.library.added_tokens_decoder
        return {token for token in tokens[:1] if answer and token in known and known[token].special}

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """As the template writes the messages, with its special tokens."""
        text = self._write(messages)
        with self._one_at_a_time:
            return tuple(self.library(text, add_special_tokens=False)["input_ids"])

    def special_texts(self) -> Iterable[str]:
        """Of the tokens that were added as special ones."""
        known = self.library.added_tokens_decoder.values()
        return [token.content for token in known if token.special]

    def _write(self, messages: Sequence[Message], *, to_answer: bool = True) -> str:
        """What the template makes of the messages, up to where an answer begins.

        Raises:
            BackendUnusable: it doesn't take them.
        """
        chat = [{"role": message.role, "content": message.content} for message in messages]

        def words(error: Exception) -> str:
            return f"its chat template doesn't take these messages ({error}); {_ANOTHER_TEMPLATE}"

        with self._one_at_a_time, wrap_model_errors(self._name, words):
            text: str = self.library.apply_chat_template(
                chat,
                chat_template=self._template,
                add_generation_prompt=to_answer,
                tokenize=False,
            )
        return text


def _fix_day(template: str) -> str:
    """The template with the date that it asks for written out.

    From transformers 5 on, what a template is called with are plain values: a function can't be
    given in place of the library's.
    """
    return _DATE.sub(lambda call: repr(strftime_now(call["pattern"])), template)


class TransformersBackend(Opened):
    """One model in this process."""

    name: Literal["transformers"] = "transformers"
    token_error = 0.0
    endpoints: tuple[str, ...] = ()

    def __init__(self, checkpoint: _Checkpoint, options: BackendOptions) -> None:
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
        text = _load_config(self._checkpoint).get_text_config()
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
            rng=random.Random(read_seed(request)),  # noqa: S311
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

    def tokenizer(self) -> _Tokenizer:
        """The model's, loaded once in a process."""
        return _load_tokenizer(self._checkpoint, self._template)

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
            config = _load_config(self._checkpoint)
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
        arguments |= {"config": _load_config(self._checkpoint), "dtype": dtype}
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


def _fits(checkpoint: _Checkpoint, dtype: Any, device: str) -> bool:
    """Whether the weights fit one GPU; the CPU's memory is the only one there is without."""
    import torch
    from transformers import AutoModelForCausalLM

    if not device.startswith("cuda"):
        return True
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(
            _load_config(checkpoint), trust_remote_code=checkpoint.trusted
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
