"""Hugging Face transformers in process: a Hub repository, a local folder or a GGUF file.

An engine thread batches continuously (`_transformers_engine`): the tokens that all prompts with the
same first messages share are computed once, and a request joins as others finish. How many are
computed at once follows from the memory that the model leaves; where that turns out too little,
half as many go on.

What an answer depends on: the weights, their dtype, the chat template, its prompt, its sampling and
its seed, from which each request draws its own random numbers (without a seed one is derived from
the prompt). Only the sampling that was asked for is applied, not what ``generation_config.json``
suggests, of which only the tokens that end an answer are taken. Neighbours in the batch and the
device change a logit in its last digits, and now and then that tips a choice between two tokens;
less often in float32. Models whose positions are scaled by the longest prompt (rotary ``dynamic``
and ``longrope``) also depend on their neighbours once one of them exceeds the original context.

A template that writes the date is told a fixed day, and where it has no place for a system prompt
the user says it (`_templates`).

By default the dtype is the checkpoint's own on a GPU, and bfloat16 where that is the checkpoint's
own on a CPU that computes it itself; other CPUs get float32. A GGUF file counts as bfloat16. The
dtype is part of the identity, so answers of one aren't taken for the other's; the device itself is
not.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os.path
import random
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mminstruct.backends import BackendOptions, Opened
from mminstruct.backends._gguf import check_gguf, fingerprint
from mminstruct.backends._templates import spelling, strftime_now, unspelt, without_system
from mminstruct.errors import (
    BackendError,
    BackendUnusable,
    ContextTooLong,
    MMInstructError,
    UsageError,
    lacking,
)
from mminstruct.schema import Completion, FinishReason, Message, Option, Request, Role, digest

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
# First words after the opening: what they have in common is not part of it.
_PROBES = ("A", "7", "\n", " (")
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
    return TransformersBackend(_checkpoint(options), options)


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
        try:
            yield
        except MMInstructError:  # says already what it was
            raise
        # Several packages read these files, with errors of their own, and a model may bring code.
        except Exception as error:
            reason = " ".join((str(error) or type(error).__name__).split())
            if not self.on_hub:
                reason = reason.replace(self.where, self.name)
            raise BackendUnusable(
                f"model {self.name!r}: transformers can't load its {what} ({reason})"
            ) from error


def _checkpoint(options: BackendOptions) -> _Checkpoint:
    name = options.model or ""
    path = Path(name).expanduser()
    revision = options.engine.get("revision")
    trusted = bool(options.engine.get("trust_remote_code"))
    local = name.endswith(".gguf") or path.exists() or name.startswith((".", "/", "~"))
    if not local:
        commit = _commit(name, revision)
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
    version = _folder_fingerprint(path.resolve())
    return _Checkpoint(path.resolve().name, str(path.resolve()), version, trusted=trusted)


def _folder_fingerprint(folder: Path) -> str:
    """Digest of what a folder's model answers by; large files are sampled."""
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in _SUFFIXES and not _NOT_THE_MODEL.match(path.name)
    )
    return digest({path.name: fingerprint(path) for path in files if path.is_file()})[:32]


@lru_cache(maxsize=8)
def _commit(repo_id: str, revision: str | None) -> str:
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
def _config(checkpoint: _Checkpoint) -> Any:
    from transformers import AutoConfig

    with checkpoint.loading("configuration"):
        return AutoConfig.from_pretrained(**checkpoint.arguments())


@lru_cache(maxsize=4)
def _tokenizer(checkpoint: _Checkpoint, template: str | None) -> _ChatTokenizer:
    from transformers import AutoTokenizer

    with checkpoint.loading("tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(**checkpoint.arguments())
    if template is None and not tokenizer.chat_template:
        raise BackendUnusable(
            f"model {checkpoint.name!r} has no chat template; use an instruction-tuned model, or "
            "give a Jinja file with --chat_template"
        )
    with checkpoint.loading("chat template"):
        written = _on_a_fixed_day(tokenizer.get_chat_template(template))
    return _ChatTokenizer(checkpoint.name, tokenizer, written)


class _ChatTokenizer:
    """Chat messages to tokens and back; from any thread."""

    def __init__(self, model: str, tokenizer: Any, template: str) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._template = template
        self._one_at_a_time = threading.Lock()
        self._openings: dict[tuple[Message, ...], tuple[int, ...]] = {}
        self.tokens = lru_cache(maxsize=256)(self._tokens)
        self.ends: set[int] = {tokenizer.eos_token_id} - {None} | self._ends_of_turn()

    def text(self, tokens: Sequence[int]) -> str:
        """What the tokens say, special ones too: they tell where an answer ends."""
        with self._one_at_a_time:
            text: str = self._tokenizer.decode(
                tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        return text

    def opening(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        """The tokens that this prompt shares with all that have the same first messages.

        The same object for all of them, and never the whole prompt.
        """
        first, role, tokens = messages[:-1], messages[-1].role, self.tokens(messages)
        if first not in self._openings:
            self._openings[first] = self._common(first, role)
        opening = self._openings[first]
        if _begins(tokens, opening):
            return opening
        if not _begins(self._tokens((*first, Message(role, _PROBES[0]))), opening):
            # The template writes another one by now.
            opening = self._openings[first] = self._common(first, role)
        pairs = zip(opening, tokens[:-1], strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return opening if common == len(opening) else opening[:common]

    def _common(self, first: tuple[Message, ...], role: Role) -> tuple[int, ...]:
        """The tokens that these messages begin with, whatever the next one says."""
        probes = [self._tokens((*first, Message(role, text))) for text in _PROBES]
        common = len(os.path.commonprefix(probes))
        if common == min(map(len, probes)):
            raise BackendUnusable(
                f"model {self._model!r}: its chat template doesn't write what messages say; "
                "give another one with --chat_template"
            )
        return probes[0][:common]

    @cached_property
    def _special(self) -> re.Pattern[str] | None:
        known = self._tokenizer.added_tokens_decoder.values()
        return spelling(token.content for token in known if token.special)

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the template writes a system prompt; some raise an error, some leave it out."""
        user = Message("user", _PROBES[0])
        try:
            one, other = (self._written((Message("system", p), user)) for p in _PROBES[:2])
        except BackendUnusable:
            return False
        return one != other

    def _ends_of_turn(self) -> set[int]:
        """The token that the template ends an answer with, if it is a special one."""
        asked = (Message("user", _PROBES[0]), Message("assistant", _ANSWER))
        try:
            _, answer, after = self._written(asked, to_answer=False).rpartition(_ANSWER)
        except BackendUnusable:
            return set()
        tokens = self._tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"]
        known = self._tokenizer.added_tokens_decoder
        return {token for token in tokens[:1] if answer and token in known and known[token].special}

    def _tokens(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        if messages[0].role == "system" and not self._takes_system:
            messages = without_system(messages)
        text = self._written(unspelt(messages, self._special))
        with self._one_at_a_time:
            # The template writes the special tokens itself.
            return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _written(self, messages: tuple[Message, ...], *, to_answer: bool = True) -> str:
        """What the template makes of the messages, up to where an answer begins.

        Raises:
            BackendUnusable: it doesn't take them.
        """
        chat = [{"role": message.role, "content": message.content} for message in messages]
        with self._one_at_a_time:
            try:
                text: str = self._tokenizer.apply_chat_template(
                    chat,
                    chat_template=self._template,
                    add_generation_prompt=to_answer,
                    tokenize=False,
                )
            except Exception as error:  # a template is a program, and may raise anything
                raise BackendUnusable(
                    f"model {self._model!r}: its chat template doesn't take these messages "
                    f"({error}); give another one with --chat_template"
                ) from error
        return text


def _on_a_fixed_day(template: str) -> str:
    """The template with the date that it asks for written out.

    From transformers 5 on, what a template is called with are plain values: a function can't be
    given in place of the library's.
    """
    return _DATE.sub(lambda call: repr(strftime_now(call["pattern"])), template)


def _begins(tokens: tuple[int, ...], opening: tuple[int, ...]) -> bool:
    """Whether the opening is shorter and what the tokens begin with."""
    return len(tokens) > len(opening) and tokens[: len(opening)] == opening


class TransformersBackend(Opened):
    """One model in this process."""

    name: Literal["transformers"] = "transformers"
    token_error = 0.0
    endpoints: tuple[str, ...] = ()

    def __init__(self, checkpoint: _Checkpoint, options: BackendOptions) -> None:
        self._checkpoint = checkpoint
        self._options = options
        self._template = _template(options.engine.get("chat_template"))
        self._thread: ThreadPoolExecutor | None = None
        self._engine: Engine | None = None
        self._serving: Future[None] | None = None
        self.model = checkpoint.name
        self.repo_id = checkpoint.where if checkpoint.on_hub else None
        # Enough that some always wait to join the batch.
        self.parallel = options.max_concurrency

    @cached_property
    def context_window(self) -> int | None:
        """The model's own, or the option's if that is smaller."""
        text = _config(self._checkpoint).get_text_config()
        known = (getattr(text, "max_position_embeddings", None), self._options.context_window)
        return min((length for length in known if length is not None), default=None)

    def identity(self) -> dict[str, str]:
        """The weights, wherever they lie, what they are computed in, and how they are prompted."""
        checkpoint = self._checkpoint
        found = {"backend": self.name, "dtype": self._dtype()}
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
        return len(self._tokenizer().tokens(tuple(messages)))

    async def __aenter__(self) -> TransformersBackend:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="transformers")
        loop = asyncio.get_running_loop()
        try:
            self._engine = await loop.run_in_executor(self._thread, self._load)
        except BaseException:
            self._thread.shutdown()
            raise
        self._serving = self._thread.submit(self._engine.serve)
        return self

    async def close(self) -> None:
        """End the engine and give its memory back; what isn't finished fails."""
        if self._engine is None or self._thread is None or self._serving is None:
            return
        engine, serving, thread = self._engine, self._serving, self._thread
        engine.close()
        try:
            await asyncio.wrap_future(serving)
        finally:
            thread.shutdown()
            self._engine = self._serving = self._thread = None
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

        if self._engine is None:
            raise BackendUnusable("the backend is not open")
        tokenizer, sampling = self._tokenizer(), request.sampling
        prompt = tokenizer.tokens(request.messages)
        window = self.context_window
        room = sampling.max_tokens if window is None else window - len(prompt)
        if room < 1:
            raise ContextTooLong(
                f"prompt of {len(prompt)} tokens, window of {window}: no room for an answer"
            )
        seed = sampling.seed
        if seed is None:
            seed = int(digest(request.messages)[:7], 16)
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[FinishReason] = loop.create_future()
        row = Row(
            prompt=list(prompt),
            opening=tokenizer.opening(request.messages),
            sampling=sampling,
            limit=min(sampling.max_tokens, room),
            rng=random.Random(seed),  # noqa: S311
            finish=lambda end: _tell(loop, ended, end),
        )
        self._engine.submit(row)
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

    def _tokenizer(self) -> _ChatTokenizer:
        return _tokenizer(self._checkpoint, self._template)

    def _device(self) -> str | None:
        """Where the model goes; None leaves it to a device map."""
        if self._options.engine.get("device_map"):
            return None
        return self._options.engine.get("device") or _best_device()

    def _dtype(self) -> str:
        chosen: str | None = self._options.engine.get("dtype")
        if chosen is not None:
            return chosen
        own = "bfloat16"
        if self._checkpoint.gguf_file is None:
            config = _config(self._checkpoint)
            # Its name before transformers 5.
            named = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
            own = str(named or "float32").removeprefix("torch.")
        if not (self._device() or _best_device()).startswith("cpu"):
            return own
        return own if own == "bfloat16" and _cpu_computes_bfloat16() else "float32"

    def _load(self) -> Engine:
        import torch
        import transformers

        from mminstruct.backends._transformers_engine import Engine

        tokenizer = self._tokenizer()
        dtype = getattr(torch, self._dtype())
        arguments = self._checkpoint.arguments()
        arguments |= {"config": _config(self._checkpoint), "dtype": dtype}
        if self._checkpoint.gguf_file is not None and hasattr(transformers, "GgufConfig"):
            # Packed weights would be computed by kernels that the library fetches from the Hub.
            arguments["quantization_config"] = transformers.GgufConfig(dequantize=True)
        device = self._device()
        device_map = self._options.engine.get("device_map")
        with self._checkpoint.loading("weights"), _no_progress_bars():
            if device is not None and not _fits(self._checkpoint, dtype, device):
                if self._options.engine.get("device"):
                    raise BackendUnusable(
                        f"model {self.model!r}: {device} has too little free memory for its "
                        f"weights in {self._dtype()}; free some of it, use a smaller dtype or "
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
                    ends=tokenizer.ends | _ends(model),
                    window=self.context_window or 1 << 30,
                    slots=self._options.engine.get("parallel"),
                )
            except BackendUnusable as error:
                raise BackendUnusable(f"model {self.model!r}: {error}") from error
        spread = sorted({str(place) for place in getattr(model, "hf_device_map", {}).values()})
        opening = f"; no shared opening, as {engine.no_opening}" if engine.no_opening else ""
        _log.info(
            "%s runs on %s in %s, up to %d requests at once%s",
            self.model,
            " and ".join(spread) if device is None else device,
            self._dtype(),
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
def _best_device() -> str:
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
            _config(checkpoint), trust_remote_code=checkpoint.trusted
        )
    needed = sum(parameter.numel() for parameter in empty.parameters()) * dtype.itemsize
    return bool(needed <= _SHARE_FOR_WEIGHTS * torch.cuda.mem_get_info(torch.device(device))[0])


def _ends(model: Any) -> set[int]:
    """The tokens that end an answer, as the model's configurations name them."""
    found: set[int | None] = set()
    for config in (getattr(model, "generation_config", None), model.config.get_text_config()):
        tokens = getattr(config, "eos_token_id", None)
        found.update(tokens if isinstance(tokens, list | tuple) else [tokens])
    return {token for token in found if token is not None}


@contextmanager
def _no_progress_bars() -> Iterator[None]:
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
