"""Requests/s and CPU of the whole pipeline, beside what it is built on, in one run.

All four go to the same loopback server (200 ms latency, or ``--latency_s``) with 500 requests in
flight (or ``--in_flight``) and send the same prompts: bare aiohttp, the OpenAI SDK's typed call
over its aiohttp transport, the pipeline (annotations to a prepared dataset, response store on), and
the pipeline again with 1 % of the answers taking 5 s. Then it is rerun from the store. Each runs in
a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=40_000)
    parser.add_argument("--in_flight", type=int, default=500)
    parser.add_argument("--latency_s", type=float, default=0.2)
    parser.add_argument("--only", choices=sorted(_PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(_PARTS[args.only](args)))
        return
    with tempfile.TemporaryDirectory(prefix="mminstruct-bench-") as folder:
        _report(_measure(args, Path(folder)))


def _measure(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    _annotations(folder / "coco", -(-args.requests // 3))
    results: dict[str, dict[str, Any]] = {}
    latency = ("--latency_s", str(args.latency_s))
    with _server(*latency) as port:
        for part in ("aiohttp", "sdk", "pipeline"):
            results[part] = _child(part, args, port, folder / "fast")
        sent = _count(port)
        for part in ("rerun", "rerun_store", "rerun_store_2"):
            results[part] = _child(part, args, port, folder / "fast")
            results[part]["sent"] = _count(port) - sent
    with _server(*latency, "--slow_share", "0.01") as port:
        results["slow"] = _child("pipeline", args, port, folder / "slow")
    return results


def _report(results: dict[str, dict[str, Any]]) -> None:
    names = {
        "aiohttp": "bare aiohttp",
        "sdk": "openai SDK, typed call, aiohttp transport",
        "pipeline": "mminstruct, whole pipeline, store on",
        "slow": "  the same, 1 % of the answers take 5 s",
        "rerun": "  rerun of the same command",
        "rerun_store": "  rerun from the store alone (other caches removed)",
        "rerun_store_2": "  the same with num_proc=2",
    }
    print(f"{'':<52}{'requests/s':>12}{'CPU ms/request':>16}")
    for part, name in names.items():
        result = results[part]
        rate, cpu = result["requests"] / result["wall_s"], result["cpu_s"] / result["requests"]
        sent = f"   sent {result['sent']}" if "sent" in result else ""
        print(f"{name:<52}{rate:>12,.0f}{cpu * 1000:>16.2f}{sent}")

    def ratio(one: str, other: str) -> float:
        a, b = results[one], results[other]
        return (a["requests"] / a["wall_s"]) / (b["requests"] / b["wall_s"])

    print(f"pipeline : bare aiohttp              {ratio('pipeline', 'aiohttp'):.2f}  (aim: 0.55)")
    print(f"pipeline : SDK typed call alone      {ratio('pipeline', 'sdk'):.2f}  (aim: 1)")
    print(f"with slow answers : without          {ratio('slow', 'pipeline'):.2f}  (aim: 0.9)")
    print(f"rerun : run                          {ratio('rerun', 'pipeline'):.1f}  (aim: 20)")
    print(f"rerun from the store alone : run     {ratio('rerun_store', 'pipeline'):.1f}  (aim: 20)")
    print(f"  with num_proc=2 : run              {ratio('rerun_store_2', 'pipeline'):.1f}")


# --- the parts, each in its own process ---------------------------------------------------------


def _aiohttp(args: argparse.Namespace) -> dict[str, Any]:
    import aiohttp

    payloads = [json.dumps(p).encode() for p in _payloads(args)]

    async def run() -> None:
        connector = aiohttp.TCPConnector(limit=args.in_flight)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def ask(payload: bytes) -> None:
                headers = {"Content-Type": "application/json"}
                url = f"http://127.0.0.1:{args.port}/v1/chat/completions"
                async with session.post(url, data=payload, headers=headers) as response:
                    json.loads(await response.read())

            await _in_flight(args.in_flight, ask, payloads)

    return _timed(lambda: asyncio.run(run()), len(payloads))


def _sdk(args: argparse.Namespace) -> dict[str, Any]:
    import httpx2
    import openai

    payloads = list(_payloads(args))

    async def run() -> None:
        async with openai.AsyncOpenAI(
            api_key="none",
            base_url=f"http://127.0.0.1:{args.port}/v1",
            max_retries=0,
            http_client=openai.DefaultAioHttpClient(
                timeout=60, limits=httpx2.Limits(max_connections=args.in_flight)
            ),
        ) as client:

            async def ask(payload: dict[str, Any]) -> None:
                await client.chat.completions.create(**payload)

            await _in_flight(args.in_flight, ask, payloads)

    return _timed(lambda: asyncio.run(run()), len(payloads))


async def _in_flight(most: int, ask: Any, payloads: list[Any]) -> None:
    """Ask for all, so many at a time, as a careful user would write it."""
    waiting = iter(payloads)

    async def worker() -> None:
        for payload in waiting:
            await ask(payload)

    await asyncio.gather(*(worker() for _ in range(most)))


def _pipeline(args: argparse.Namespace) -> dict[str, Any]:
    return _timed(lambda: _load(args), args.requests)


def _rerun_store(args: argparse.Namespace, num_proc: int | None = None) -> dict[str, Any]:
    import shutil

    shutil.rmtree(args.folder / "hf" / "datasets")
    return _timed(lambda: _load(args, num_proc), args.requests)


def _load(args: argparse.Namespace, num_proc: int | None = None) -> None:
    import datasets

    datasets.disable_progress_bars()
    dataset = datasets.load_dataset(
        "builders/coco2017_llava",
        split="train",
        data_dir=str(args.folder.parent / "coco"),
        cache_dir=str(args.folder / "hf" / "datasets"),
        response_store=str(args.folder / "responses.sqlite"),
        backend="openai",
        model="bench",
        # The port is the endpoint's name: the same in a run and its rerun.
        base_url=f"http://127.0.0.1:{args.port}/v1",
        max_concurrency=args.in_flight,
        limit=args.requests // 3,
        num_proc=num_proc,
    )
    if len(dataset) < args.requests * 0.6:
        raise SystemExit(f"{len(dataset)} rows of {args.requests} requests")


_PARTS = {
    "aiohttp": _aiohttp,
    "sdk": _sdk,
    "pipeline": _pipeline,
    "rerun": _pipeline,
    "rerun_store": _rerun_store,
    "rerun_store_2": lambda args: _rerun_store(args, 2),
}


def _payloads(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The prompts that the pipeline sends, rendered beforehand."""
    from mminstruct import prompts, sources
    from mminstruct.sources import ReadReport

    source, config = sources.get("COCO2017"), prompts.load("llava")
    files = source.locate([args.folder.parent / "coco"], "train")
    contexts = list(source.read(files, ReadReport()))[: args.requests // 3]
    for kind in config.types:
        for context in contexts:
            messages = prompts.render(context, config, kind).messages
            yield {
                "model": "bench",
                "messages": [{"role": m.role, "content": m.content} for m in messages],
                "temperature": 0.7,
                "top_p": 1.0,
                "max_tokens": 1024,
            }


def _timed(work: Any, requests: int) -> dict[str, Any]:
    # Imports and registration are not what is measured.
    import openai  # noqa: F401

    import mminstruct  # noqa: F401

    before, start = _cpu_s(), time.perf_counter()
    work()
    wall, cpu = time.perf_counter() - start, _cpu_s() - before
    return {"requests": requests, "wall_s": wall, "cpu_s": cpu}


def _cpu_s() -> float:
    """CPU time of this process and those that it has waited for."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _child(part: str, args: argparse.Namespace, port: int, folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, __file__, "--only", part, "--requests", str(args.requests)]
    command += ["--in_flight", str(args.in_flight), "--port", str(port), "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise SystemExit(f"{part} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@contextmanager
def _server(*flags: str) -> Iterator[int]:
    command = [sys.executable, str(HERE / "server.py"), *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield int(process.stdout.readline())  # type: ignore[union-attr]
    finally:
        process.terminate()
        process.wait(10)


def _count(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/count", timeout=10) as response:
        return int(json.load(response)["requests"])


def _annotations(folder: Path, images: int) -> None:
    """Invented COCO annotations: five captions and seven boxes an image."""
    (folder / "annotations").mkdir(parents=True)
    records = [
        {"id": n, "file_name": f"{n:012d}.jpg", "width": 640, "height": 480, "license": 4}
        for n in range(1, images + 1)
    ]
    captions = [
        {"id": 5 * n + k, "image_id": n, "caption": f"Writer {k} sees invented scene {n} outside."}
        for n in range(1, images + 1)
        for k in range(5)
    ]
    boxes = [
        {
            "id": 7 * n + k,
            "image_id": n,
            "category_id": 1 + k % 3,
            "bbox": [20.0 * k, 10.0 + n % 40, 100.0, 50.0 + k],
            "iscrowd": 0,
        }
        for n in range(1, images + 1)
        for k in range(7)
    ]
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "kite"}]
    for role, entries in (("captions", captions), ("instances", boxes)):
        content = {"images": records, "annotations": entries, "categories": categories}
        path = folder / "annotations" / f"{role}_train2017.json"
        path.write_text(json.dumps(content))


if __name__ == "__main__":
    main()
