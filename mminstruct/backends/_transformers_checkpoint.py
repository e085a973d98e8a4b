"""Which files a model of `transformers` is loaded from, its configuration and its tokenizer."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mminstruct.backends import BackendOptions
from mminstruct.backends._gguf import check_gguf, fingerprint
from mminstruct.backends._templates import ChatTokenizer, strftime_now, wrap_model_errors
from mminstruct.errors import BackendUnusable, UsageError, lacking
from mminstruct.schema import Message, digest

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


@dataclass(frozen=True, slots=True)
class Checkpoint:
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


def find_checkpoint(options: BackendOptions) -> Checkpoint:
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
        return Checkpoint(name, name, commit, on_hub=True, trusted=trusted)
    if revision:
        raise UsageError(f"revision: {path.name!r} is on this machine and has none")
    if name.endswith(".gguf"):
        check_gguf(path)
        folder = str(path.resolve().parent)
        return Checkpoint(path.name, folder, fingerprint(path), gguf_file=path.resolve().name)
    if not (path / "config.json").is_file():
        raise UsageError(
            f"model {name!r}{lacking(path)}: expected a folder with config.json, weights and "
            "tokenizer, a GGUF file, or a Hugging Face repository such as org/name"
        )
    version = _digest_folder(path.resolve())
    return Checkpoint(path.resolve().name, str(path.resolve()), version, trusted=trusted)


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
def load_config(checkpoint: Checkpoint) -> Any:
    """The model's configuration, read once in a process.

    Raises:
        BackendUnusable: the library can't read it.
    """
    from transformers import AutoConfig

    with checkpoint.loading("configuration"):
        return AutoConfig.from_pretrained(**checkpoint.arguments())


@lru_cache(maxsize=4)
def load_tokenizer(checkpoint: Checkpoint, template: str | None) -> Tokenizer:
    """The model's tokenizer with its own template or another, read once in a process.

    Raises:
        BackendUnusable: the library can't read it, or there is no template.
    """
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
    return Tokenizer(checkpoint.name, tokenizer, written)


class Tokenizer(ChatTokenizer):
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
