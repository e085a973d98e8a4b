"""llama.cpp is tried in a process of its own before it could take a run with it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from running import COMMAND, PATIENCE_S, finish

from mminstruct import backends
from mminstruct.backends import BackendOptions, _machine, _trial
from mminstruct.backends.llama_cpp import bundled_model
from mminstruct.errors import UsageError

WITH_AMX = b"CPU : AVX2 = 1 | AVX512 = 1 | AMX_INT8 = 1 | LLAMAFILE = 1 | REPACK = 1 | "
# What a Python does before its program: here, in place of computing a batch.
INSTEAD = """
import sys
if "-c" in sys.orig_argv and "runpy" in " ".join(sys.orig_argv):
    import os, pathlib, signal, time
    import llama_cpp
    tried = pathlib.Path({tried!r})
    tried.write_text((tried.read_text() if tried.exists() else "") + str(os.getpid()) + " ")
    llama_cpp.llama_decode = lambda *_: {action}
"""
DIE = "os.kill(os.getpid(), signal.{})"


class Trials:
    """Trials that go as a test wants.

    Attributes:
        folder: on the Python path.
        home: the Hugging Face cache.
    """

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.home = folder, home

    def do(self, action: str) -> None:
        """Let a child do something else than compute."""
        text = INSTEAD.format(tried=str(self.folder / "tried"), action=action)
        (self.folder / "sitecustomize.py").write_text(text, encoding="utf-8")

    @property
    def children(self) -> list[int]:
        """Those that there were."""
        tried = self.folder / "tried"
        return [int(pid) for pid in tried.read_text().split()] if tried.exists() else []

    @property
    def kept(self) -> list[str]:
        """Outcomes that are kept."""
        return [file.read_text() for file in (self.home / "mminstruct" / "trials").glob("*")]


@pytest.fixture
def trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trials:
    (tmp_path / "path").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    return Trials(tmp_path / "path", tmp_path / "hf")


def opened(**options: Any) -> None:
    """Load the model with its weights."""

    async def run() -> None:
        engine = {"n_threads": 1, "parallel": 1}
        chosen = BackendOptions(context_window=64, engine=engine, **options)
        async with backends.create("llama.cpp", chosen):
            pass

    asyncio.run(run())


@pytest.mark.parametrize(
    ("system_info", "used"),
    [(WITH_AMX, False), (WITH_AMX.replace(b"AMX_INT8 = 1", b"AMX_INT8 = 0"), True), (b"", True)],
)
def test_weights_go_into_no_buffers_for_amx(system_info: bytes, used: bool) -> None:
    params = _trial.fit(llama_cpp.llama_model_default_params(), system_info)
    assert params.use_extra_bufts is used


def test_every_load_of_a_model_asks_what_the_processor_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_cpp.llama_print_system_info", lambda: WITH_AMX)
    assert _trial.model_params().use_extra_bufts is False
    load, used = llama_cpp.llama_model_load_from_file, []

    def noted(path: bytes, params: Any) -> Any:
        used.append(params.use_extra_bufts)
        return load(path, params)

    monkeypatch.setattr("llama_cpp.llama_cpp.llama_model_load_from_file", noted)
    opened()
    assert used == [False, False]  # the vocabulary, and the whole


def test_a_good_trial_is_kept_and_not_made_again(trials: Trials) -> None:
    trials.do("0")
    opened()
    assert trials.kept == [""]
    opened()
    assert len(trials.children) == 1


def test_a_child_that_dies_says_of_what_and_offers_the_other_engine(trials: Trials) -> None:
    trials.do(DIE.format("SIGSEGV"))
    for _ in range(2):
        with pytest.raises(UsageError) as error:
            opened(model=str(bundled_model()))
        said = str(error.value)
        assert "died of SIGSEGV when it computed" in said
        assert f"llama-cpp-python {llama_cpp.__version__}" in said
        assert "libllama" in said
        assert f"--model_source huggingface --model {bundled_model()} " in said
    assert trials.kept == ["SIGSEGV"]
    assert len(trials.children) == 1  # what is known isn't tried
    Path(said.rpartition("delete ")[2]).unlink()
    trials.do("0")  # repaired
    opened()
    assert trials.kept == [""]


def test_the_words_of_a_failed_assertion_are_told(trials: Trials) -> None:
    trials.do("os.write(2, b'ggml.c:7: GGML_ASSERT(x) failed\\n#1 a frame\\n') and os.abort()")
    with pytest.raises(UsageError, match=r"SIGABRT: ggml.c:7: GGML_ASSERT\(x\) failed when it"):
        opened()


def test_a_child_that_was_killed_from_outside_is_tried_again(trials: Trials) -> None:
    trials.do(DIE.format("SIGKILL"))
    with pytest.raises(UsageError, match="died of SIGKILL"):
        opened()
    assert trials.kept == []
    trials.do("0")
    opened()


def test_another_library_processor_or_kind_of_model_is_tried_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libllama.so"
    library.write_bytes(b"1")
    (tmp_path / "libggml-cpu.so").write_bytes(b"1")
    monkeypatch.setattr(_trial, "find_library", lambda: library)
    places = [_trial.locate_outcome("llama 3 True")]
    places.append(_trial.locate_outcome("llama 2 True"))
    (tmp_path / "libggml-cpu.so").write_bytes(b"22")
    places.append(_trial.locate_outcome("llama 2 True"))
    assert places[-1] == _trial.locate_outcome("llama 2 True")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("cpu MHz : 1000\nmodel name : A\nflags : amx_int8\n\nflags : none\n")
    monkeypatch.setattr(_machine, "PROCESSORS", cpuinfo)
    places.append(_trial.locate_outcome("llama 2 True"))
    cpuinfo.write_text("cpu MHz : 2000\nmodel name : A\nflags : amx_int8\n")
    assert places[-1] == _trial.locate_outcome("llama 2 True")
    assert len(set(places)) == 4


GENERATE = ("generate", "SAMPLE", "--limit", "1", "--max_tokens", "8", "--types", "conversation")


def start(trials: Trials) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(trials.folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [*COMMAND, *GENERATE, "--output_path", str(trials.home / "out")],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HOME": str(trials.home), "PYTHONPATH": path},
    )


def test_on_the_command_line_a_crash_is_an_error_and_no_crash(trials: Trials) -> None:
    trials.do(DIE.format("SIGSEGV"))
    ended = finish(start(trials))
    assert ended.code == 2
    assert "error: model 'SmolLM2-135M-Instruct.Q4_1.gguf': llama.cpp" in ended.err
    assert "died of SIGSEGV" in ended.err
    assert "Traceback" not in ended.err


def test_ctrl_c_ends_a_trial(trials: Trials) -> None:
    trials.do("time.sleep(300)")
    running = start(trials)
    until_s = time.monotonic() + PATIENCE_S
    while not trials.children and time.monotonic() < until_s:
        time.sleep(0.05)
    (child,) = trials.children
    running.send_signal(signal.SIGINT)
    ended = finish(running)
    assert ended.code == 130
    assert "pending" not in ended.err  # nothing is left on a loop
    while time.monotonic() < until_s:  # it dies as fast as the machine allows
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert trials.kept == []
