"""Whether llama.cpp can compute on this machine, tried once in a process of its own.

A library built for another processor dies by a signal and would take the run with it. So a child
loads the model first, as the types of its weights choose the kernels, and computes a prompt and a
token. The outcome is kept by all that it depends on: library, processor, kind of model, CPU or GPU.

This file is the child's program, too, and then imports nothing of mminstruct, which takes seconds.

**Source:** https://github.com/ggml-org/llama.cpp/pull/26954 for the crash with AMX.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

# A prompt of so many tokens fills the tiles of AMX twice.
_TOKENS = 32
_LONGEST_S = 600.0
# What a program does to itself; others come from outside, where no memory is left for example.
_FAULTS = ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGTRAP")
_CHILD = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"


def model_params() -> Any:
    """llama.cpp's default parameters of a model, changed where this processor asks for it."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    return fit(llama_cpp.llama_model_default_params(), llama_cpp.llama_print_system_info())


def fit(params: Any, system_info: bytes) -> Any:
    """The parameters without buffers for AMX, whose kernel crashes, where there would be any."""
    if re.search(rb"\bAMX_INT8 = 1\b", system_info):
        params.use_extra_bufts = False
    return params


async def run(path: Path, *, model: str, kind: str, gpu_layers: int, threads: int) -> None:
    """Try a model, unless the outcome is known.

    Args:
        path: a GGUF file.
        model: how the user names it.
        kind: what chooses kernels: its architecture and the type of its weights.
        gpu_layers: layers on the GPU.
        threads: on the CPU.

    Raises:
        UsageError: llama.cpp dies of it.
    """
    from mminstruct import resources

    kept = locate_outcome(f"{kind} {gpu_layers != 0}")
    if kept.is_file():
        died = kept.read_text(encoding="utf-8")
    else:
        _log.info("model %s: trying once whether llama.cpp can compute it here", path.name)
        outcome = await _try(str(path), str(gpu_layers), str(threads))
        if outcome is None:
            return  # the load that follows says what is wrong with the file
        died = outcome
        if not died or died.split(":")[0] in _FAULTS:
            resources.keep(kept, died)
    if died:
        raise _tell_death(died, model, kept)


def _tell_death(died: str, model: str, kept: Path) -> Exception:
    import llama_cpp

    from mminstruct.errors import UsageError
    from mminstruct.resources import shown

    return UsageError(
        f"model {Path(model).name!r}: llama.cpp (llama-cpp-python {llama_cpp.__version__}, "
        f"{shown(find_library())}) died of {died} when it computed it in a trial. Run the same "
        f"file with --model_source huggingface --model {model} (pip install "
        "'mminstruct[transformers]'), or install another build of llama-cpp-python. To try it "
        f"again, delete {shown(kept)}"
    )


async def _try(*arguments: str) -> str | None:
    """What a child died of, the empty string if it computed, or None if it did neither."""
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, __file__, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        return await asyncio.to_thread(_wait, child)
    finally:
        child.kill()  # where the wait was cancelled


def _wait(child: subprocess.Popen[str]) -> str | None:
    with child:
        try:
            _, said = child.communicate(timeout=_LONGEST_S)
        except subprocess.TimeoutExpired:
            child.kill()
            return None
    if child.returncode >= 0:
        return None if child.returncode else ""
    reason = said.strip().partition("\n")[0]  # what an assertion says; then come its frames
    return f"{signal.Signals(-child.returncode).name}{reason and f': {reason:.200}'}"


def find_library() -> Path:
    """The file of llama.cpp that is loaded."""
    import llama_cpp.llama_cpp

    return Path(llama_cpp.llama_cpp._lib._name)


def locate_outcome(settings: str) -> Path:
    """Where an outcome is kept: whatever could change it changes this place."""
    import xxhash
    from huggingface_hub.constants import HF_HOME

    from mminstruct.backends import _machine

    every = sorted(find_library().parent.iterdir())
    files = [file for file in every if re.search("ggml|llama", file.name)]
    state = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    name = xxhash.xxh3_128_hexdigest(f"{state} {_machine.processor()} {settings}".encode())
    return Path(HF_HOME) / "mminstruct" / "trials" / name


def _compute(path: str, gpu_layers: str, threads: str) -> int:
    """Compute a prompt and a token; 0 if that went well."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, None)
    params = model_params()
    params.n_gpu_layers = int(gpu_layers)
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        return 1
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = 2 * _TOKENS
    params.n_threads = params.n_threads_batch = int(threads)
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        return 1
    tokens = (llama_cpp.llama_token * _TOKENS)(*range(_TOKENS))
    for count in (_TOKENS, 1):
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, count)):
            return 1
        llama_cpp.llama_get_logits(context)  # waits for a GPU
    return 0


if __name__ == "__main__":
    sys.exit(_compute(*sys.argv[2:]))
