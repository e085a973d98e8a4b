"""Requests/min of four ways to run one GGUF file, on the same prompts and with the same sampling.

1. llama-cpp-python's ``create_chat_completion``, one call after another in the order image x type,
   with that library's own threads and batches.
2. llama.cpp's own server (package ``xllamacpp``) over loopback, in the order type x image, with as
   many slots as ours; each slot's cache has room for the longest request.
3. Our backend with that number of slots, in the same order.
4. Our backend of transformers on the same file, with its own slots and dtype, likewise.

Each is a process of its own that has loaded the model before the clock starts. They take turns,
round by round, so that other load on the machine hits all alike. CPU time is printed too; with
``--threads 1`` it hardly depends on such load, while several threads wait for each other in loops.
The first is slow, so it gets only a round's images with prompts of middling length.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from mminstruct import backends, prompts, sources
from mminstruct.backends import BackendOptions
from mminstruct.backends._trial import model_params
from mminstruct.backends.llama_cpp import bundled_model
from mminstruct.schema import Request, Sampling
from mminstruct.sources import ReadReport

ENGINES = {
    "serial": "llama-cpp-python, one after another, image x type",
    "server": "llama.cpp's server",
    "ours": "mminstruct, llama_cpp",
    "transformers": "mminstruct, transformers",
}
# Cells of a slot of the server: the longest prompt of COCO and its answer.
SERVER_CELLS_PER_SLOT = 4096


@dataclass(frozen=True)
class Answers:
    """What an engine did in a round.

    Attributes:
        requests: answered.
        prompt_tokens: of all of them.
        answer_tokens: of all of them.
        wall_s: from the first to the last.
        cpu_s: of the process meanwhile.
    """

    requests: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0

    def __add__(self, other: Answers) -> Answers:
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return Answers(*(a + b for a, b in pairs))


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="SAMPLE", help="annotation source (default: SAMPLE)")
    parser.add_argument("--folder", type=Path, help="where the source's annotation files lie")
    parser.add_argument("--model", type=Path, help="GGUF file (default: SmolLM2-135M)")
    parser.add_argument("--images", type=int, default=12, help="of all rounds together")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--serial_images", type=int, default=1, help="of each round")
    parser.add_argument("--parallel", type=int, default=8, help="slots")
    parser.add_argument("--threads", type=int, help="of each engine (default: its own choice)")
    parser.add_argument("--max_tokens", type=int, default=320)
    parser.add_argument("--engine", choices=list(ENGINES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.model = args.model or bundled_model()
    if args.engine:
        _serve_rounds(args)
        return
    results = _measure(args)
    print(f"{'':<52}{'requests':>9}{'/min':>8}{'answer tokens/s':>17}{'CPU s/request':>15}")
    for engine, name in ENGINES.items():
        r = results[engine]
        print(
            f"{name:<52}{r.requests:>9}{60 * r.requests / r.wall_s:>8.1f}"
            f"{r.answer_tokens / r.wall_s:>17.1f}{r.cpu_s / r.requests:>15.1f}"
        )
    aims = {("ours", "serial"): "at least 6", ("ours", "server"): "above 1"}
    for (one, other), aim in (aims | {("transformers", "serial"): "none"}).items():
        ratio = _rate(results[one]) / _rate(results[other])
        pair = f"{ENGINES[one]} : {ENGINES[other]}"
        print(f"{pair:<80}{ratio:>6.1f}  (aim: {aim})")


def _rate(answers: Answers) -> float:
    return answers.requests / answers.wall_s


def _measure(args: argparse.Namespace) -> dict[str, Answers]:
    results = dict.fromkeys(ENGINES, Answers())
    children = {
        engine: subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--engine", engine],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for engine in ENGINES
    }
    for child in children.values():
        _read(child)  # loaded
    for number in range(args.rounds):
        for engine, child in children.items():
            assert child.stdin is not None
            child.stdin.write(f"{number}\n")
            child.stdin.flush()
            answers = Answers(**_read(child))
            print(f"  round {number + 1}, {ENGINES[engine]}: {_describe(answers)}", flush=True)
            results[engine] += answers
    for child in children.values():
        child.communicate()
    return results


def _read(child: subprocess.Popen[str]) -> dict[str, Any]:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise SystemExit(f"{' '.join(map(str, child.args))}: ended with {child.wait()}")
    values: dict[str, Any] = json.loads(line)
    return values


def _describe(a: Answers) -> str:
    return (
        f"{a.requests} requests in {a.wall_s:.1f} s, {a.prompt_tokens / a.requests:.0f} prompt and "
        f"{a.answer_tokens / a.requests:.0f} answer tokens each"
    )


# --- an engine, in its own process --------------------------------------------------------------

Ask = Callable[[list[Request]], list[tuple[int, int]]]
"""Answers requests; gives (prompt tokens, answer tokens) of each."""


def _serve_rounds(args: argparse.Namespace) -> None:
    rounds = _requests(args)
    with contextlib.ExitStack() as opened:
        ways = {
            "serial": _serial,
            "server": _server,
            "ours": partial(_ours, opened),
            "transformers": partial(_transformers, opened),
        }
        _answer_rounds(rounds, ways[args.engine](args), args)


def _answer_rounds(rounds: list[list[list[Request]]], ask: Ask, args: argparse.Namespace) -> None:
    print("{}", flush=True)
    for line in sys.stdin:
        images = rounds[int(line)]
        if args.engine == "serial":
            requests = [request for image in _typical(images, args) for request in image]
        else:
            requests = [request for kind in zip(*images, strict=True) for request in kind]
        wall, cpu = time.perf_counter(), time.process_time()
        counts = ask(requests)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        answers = Answers(len(counts), *map(sum, zip(*counts, strict=True)), wall, cpu)
        print(json.dumps(asdict(answers)), flush=True)


def _requests(args: argparse.Namespace) -> list[list[list[Request]]]:
    """For each round and image, the requests of all types."""
    source, config = sources.get(args.source), prompts.load("llava")
    files = source.locate((args.folder,) if args.folder else (), source.info.splits[0])
    if files is None:
        raise SystemExit(f"--folder {args.folder}: no annotation files of {args.source} there")
    contexts = list(islice(source.read(files, ReadReport()), args.images))
    images = [
        [
            Request(
                next(prompts.reductions(context, config, name)).messages,
                Sampling(max_tokens=args.max_tokens, seed=number),
            )
            for name in config.types
        ]
        for number, context in enumerate(contexts)
    ]
    edges = [len(images) * number // args.rounds for number in range(args.rounds + 1)]
    return [images[start:stop] for start, stop in pairwise(edges)]


def _typical(images: list[list[Request]], args: argparse.Namespace) -> list[list[Request]]:
    """As many images as the slow engine gets: those whose prompts are neither short nor long."""
    by_length = sorted(images, key=lambda image: len(image[0].messages[-1].content))
    start = max(0, (len(images) - args.serial_images) // 2)
    return by_length[start : start + args.serial_images]


def _serial(args: argparse.Namespace) -> Ask:
    import llama_cpp

    llama_cpp.llama_cpp.llama_model_default_params = model_params  # which Llama begins with
    threads = {"n_threads": args.threads, "n_threads_batch": args.threads}
    llama = llama_cpp.Llama(str(args.model), n_ctx=8192, verbose=False, **threads)

    def ask(requests: list[Request]) -> list[tuple[int, int]]:
        return [_usage(llama.create_chat_completion(**_body(request))) for request in requests]

    return ask


def _server(args: argparse.Namespace) -> Ask:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(args.model)
    params.n_parallel = args.parallel
    params.n_ctx = SERVER_CELLS_PER_SLOT * args.parallel
    params.verbosity = -1
    params.no_extra_bufts = not model_params().use_extra_bufts
    if args.threads:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    server = xllamacpp.Server(params)

    def one(request: Request) -> tuple[int, int]:
        url = f"{server.listening_address}/v1/chat/completions"  # gone without a reference to it
        body = json.dumps(_body(request)).encode()
        posted = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(posted) as response:
            return _usage(json.load(response))

    def ask(requests: list[Request]) -> list[tuple[int, int]]:
        with ThreadPoolExecutor(args.parallel + 2) as threads:
            return list(threads.map(one, requests))

    return ask


def _body(request: Request) -> dict[str, Any]:
    """The request as OpenAI's API has it, with what both engines would add switched off."""
    sampling = request.sampling
    return {
        "messages": [asdict(message) for message in request.messages],
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "top_k": 0,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
    }


def _usage(answer: Any) -> tuple[int, int]:
    return answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]


def _ours(opened: contextlib.ExitStack, args: argparse.Namespace) -> Ask:
    engine = {"parallel": args.parallel, "n_threads": args.threads}
    return _asking(opened, "llama_cpp", BackendOptions(model=str(args.model), engine=engine))


def _transformers(opened: contextlib.ExitStack, args: argparse.Namespace) -> Ask:
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    return _asking(opened, "transformers", BackendOptions(model=str(args.model)))


def _asking(opened: contextlib.ExitStack, name: str, options: BackendOptions) -> Ask:
    backend = backends.create(name, options)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(backend.__aenter__())
    opened.callback(lambda: loop.run_until_complete(backend.__aexit__(None, None, None)))

    async def all_of(requests: list[Request]) -> list[tuple[int, int]]:
        slots = asyncio.Semaphore(backend.parallel)

        async def one(request: Request) -> tuple[int, int]:
            async with slots:
                answer = await backend.complete(request)
            return answer.prompt_tokens or 0, answer.completion_tokens or 0

        return await asyncio.gather(*map(one, requests))

    return lambda requests: loop.run_until_complete(all_of(requests))


if __name__ == "__main__":
    main()
