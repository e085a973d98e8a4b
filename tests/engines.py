"""How the conformance tests run each backend here; what isn't listed needs nothing special."""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from loopback import LoopbackServer, chat_completion
from tgi_server import TGIServer
from tokenizer_files import billed_prompt_tokens

from mminstruct.backends import BackendOptions, llama_cpp


@dataclass(frozen=True)
class Engine:
    """A backend as it runs in tests.

    Attributes:
        options: with which it is created.
        honours_seed: whether a seed fixes the answer, and another one changes it.
        obeys_limit: whether max_tokens cuts an answer.
    """

    options: BackendOptions = BackendOptions(context_window=512)
    honours_seed: bool = True
    obeys_limit: bool = True


@contextlib.contextmanager
def _openai() -> Iterator[Engine]:
    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        words = ["A", "carrot", "is", "a", "root", "that", "people", "eat."]
        limit = body["max_tokens"]
        reason = "length" if limit < len(words) else "stop"
        usage = {"prompt_tokens": billed_prompt_tokens(body), "completion_tokens": limit}
        return chat_completion(" ".join(words[:limit]), finish_reason=reason, usage=usage)

    with LoopbackServer(answer) as server:
        options = BackendOptions(model="gpt-4o-mini", base_urls=(server.url,), context_window=512)
        yield Engine(options, honours_seed=False)


@contextlib.contextmanager
def _tgi() -> Iterator[Engine]:
    pytest.importorskip("text_generation", reason="the extra tgi (text-generation) isn't installed")
    with TGIServer() as server:
        yield Engine(BackendOptions(base_urls=(server.url,)))


@contextlib.contextmanager
def _transformers() -> Iterator[Engine]:
    pytest.importorskip("torch", reason="the extra transformers isn't installed")
    yield Engine(BackendOptions(model=str(smollm2_folder()), context_window=512))


@lru_cache(maxsize=1)
def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a folder, which opens in a tenth of the time its GGUF file takes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    file = llama_cpp.bundled_model()
    folder = Path(tempfile.mkdtemp(prefix="mminstruct-smollm2-")) / "SmolLM2-135M-Instruct"
    atexit.register(shutil.rmtree, folder.parent)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    model = LlamaForCausalLM(read.config)  # what was read from GGUF refuses to be saved
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    return folder


_ENGINES: dict[str, Callable[[], AbstractContextManager[Engine]]] = {
    "fake": lambda: contextlib.nullcontext(Engine(obeys_limit=False)),
    "openai": _openai,
    "tgi": _tgi,
    "transformers": _transformers,
}


def engine(name: str) -> AbstractContextManager[Engine]:
    """The backend of that name, with what it needs running."""
    return _ENGINES.get(name, lambda: contextlib.nullcontext(Engine()))()
