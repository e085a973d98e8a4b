"""Rehearses a full release: COCO train2017 by Mistral-7B, from the annotations to the Hub.

Files of COCO's size (`coco_files`) and a server with a 7B's ways (`mistral_server`) stand in for
the real ones. The run is cut into four shards: two are killed (kill -9) half way and run again, one
after the other, so that their requests can be counted; then two at once, which meet an outage.
They are merged, measured, written for LLaVA, and pushed to a Hub on loopback.

It fails if a step fails, if anything is asked again that was answered and stored, or if a request's
outcome, a row or a file is missing at the end.

    python benchmarks/rehearse.py [--share 0.01] [--speed 10]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import coco_files

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
from hub_server import TOKEN, HubServer  # noqa: E402

MODEL = "mistralai/Mistral-7B-Instruct-v0.2"
REPO = "user/mistral-coco2017"
SHARDS, KILLED = 4, (0, 1)
PARTS = [f"out.parts/{index}-of-{SHARDS}" for index in range(SHARDS)]
EXPORTED = "out.llava-instruct.json"
USD_A_MILLION = {"prompt_tokens": 0.05, "completion_tokens": 0.15}
MIB = 2**20
# Linux counts KiB, macOS bytes.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024


class Ended(NamedTuple):
    """A command that has come to its end."""

    step: str
    out: str
    wall_s: float
    cpu_s: float
    peak_mib: float


class Place(NamedTuple):
    """Where commands run, what their environment tells them, and those that have run."""

    folder: Path
    env: dict[str, str]
    ended: list[Ended]

    def run(self, *words: str, kill_when: Callable[[], bool] | None = None, **env: str) -> str:
        """The output of mminstruct in a process of its own, killed as soon as a condition holds.

        Raises:
            SystemExit: it failed, or ended before it was killed.
        """
        start = time.monotonic()
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "mminstruct", *words],
                cwd=self.folder, env={**self.env, **env}, stdout=out, stderr=log,
            )  # fmt: skip
            while not (waited := os.wait4(process.pid, os.WNOHANG))[0]:
                if kill_when is not None and kill_when():
                    os.kill(process.pid, signal.SIGKILL)  # Popen's own might wait for its end
                time.sleep(0.05)
            process.returncode = os.waitstatus_to_exitcode(waited[1])
            out.seek(0)
            log.seek(0)
            if process.returncode != (-signal.SIGKILL if kill_when else 0):
                sys.exit(f"{' '.join(words)}: exit code {process.returncode}\n{log.read()}")
            step = f"{words[0]}, killed" if kill_when else words[0]
            usage = waited[2]
            took = (time.monotonic() - start, usage.ru_utime + usage.ru_stime)
            peak_mib = usage.ru_maxrss * RSS_UNIT / MIB
            self.ended.append(Ended(step, out.read(), *took, peak_mib))
            return self.ended[-1].out


def main() -> None:
    """Rehearse, and print what it took as rows of a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of COCO train2017")
    parser.add_argument("--speed", type=float, default=10, help="of the server, in GPUs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mminstruct-rehearsal-") as folder:
        for name, value in rehearse(Path(folder), args.share, args.speed).items():
            print(f"| {name} | {value} |")


def rehearse(folder: Path, share: float, speed: float) -> dict[str, str]:
    """Name -> figure, of a rehearsal in an empty folder."""
    begun = time.monotonic()
    with ProcessPoolExecutor(1, get_context("spawn")) as apart:  # its memory is nobody's else
        apart.submit(coco_files.write, folder / "coco", 2017, share).result()
    needed = 3 * round(coco_files.SIZES[2017].images * share)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "OPENAI_"))}
    place = Place(folder, {**env, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}, [])
    with _serve(speed, outage_after=round(needed * 0.6)) as url:
        of_run = (
            *("COCO2017", "--dataset_storage_path", "coco", "--model_source", "openai"),
            *("--model", MODEL, "--openai_base_url", f"{url}/v1"),
        )
        verdict = json.loads(place.run("license", *of_run, "--json"))
        prices = [str(usd) for usd in USD_A_MILLION.values()]
        of_price = ("--price_in", prices[0], "--price_out", prices[1], "--json")
        estimated = json.loads(place.run("estimate", *of_run, *of_price))
        lost = _generate(place, of_run, url, needed)
        counts = _ask(url)
    place.run("merge", *PARTS, "out")
    place.run("report", "out")
    place.run("export", "out", "--format", "llava-instruct")
    with HubServer() as hub:
        hub.part_size = 32 * MIB
        there = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
        place.run("push", "out", REPO, "--revision", "v1.0", **there)
        pushed = {path: file.sha256 for path, file in hub.repos[REPO].head.files.items()}
    made = json.loads((folder / "out" / "provenance.json").read_text(encoding="utf-8"))
    rows = sum(made["rows"].values())
    rejected = Counter[str]()
    for reasons in made["rejected"].values():
        rejected.update(reasons)
    with (folder / EXPORTED).open(encoding="utf-8") as file:
        exported = sum(line.startswith('{"id"') for line in file)
    unlike = [path for path, file in made["files"].items() if pushed.get(path) != file["sha256"]]
    for what, found, right in (
        ("requests that came", counts["asked"], needed),
        (
            "answers that were in flight at a kill, and given again",
            counts["answered"] - needed,
            lost,
        ),
        ("rows and rejected answers", rows + rejected.total(), needed),
        ("requests without an answer", made["failed"], {}),
        ("rows exported", exported, rows),
        ("files not pushed", unlike, []),
    ):
        if found != right:
            sys.exit(f"the rehearsal has failed: {what}: got {found} against {right} expected")
    used = [counts[name] for name in USD_A_MILLION]
    cost = sum(n * usd / 1e6 for n, usd in zip(used, USD_A_MILLION.values(), strict=True))
    steps = dict.fromkeys(ended.step for ended in place.ended)
    return {
        "images": f"{needed // 3:,}",
        "requests needed": f"{needed:,}",
        "requests sent": f"{counts['requests']:,}; {counts['errors']:,} met an error, "
        f"{counts['dropped']:,} a dropped connection, most in the outage, and {lost:,} were in "
        "flight at the two kills",
        "rows": f"{rows:,}",
        "answers that are no rows": ", ".join(f"{r} {n:,}" for r, n in sorted(rejected.items())),
        "tokens of prompts": f"{used[0]:,}; estimate {_between(estimated['prompt_tokens'])}",
        "tokens of answers": f"{used[1]:,}; estimate {_between(estimated['completion_tokens'])}",
        "cost": f"${cost:,.2f}; estimate {_between(estimated['cost_usd'], '$', '.2f')}, at "
        f"${prices[0]} and ${prices[1]} a million tokens",
        "verdict": verdict["said"],
        "time, seconds (of a CPU)": f"{time.monotonic() - begun:,.0f} "
        f"({sum(ended.cpu_s for ended in place.ended):,.0f} without stand-ins): "
        + ", ".join(f"{e.step} {e.wall_s:,.0f} ({e.cpu_s:,.0f})" for e in place.ended),
        "peak memory, MiB": ", ".join(
            f"{step} {max(e.peak_mib for e in place.ended if e.step == step):,.0f}"
            for step in steps
        ),
        "size on disk, MiB": ", ".join(
            f"{name} {_size(folder / name) / MIB:,.1f}"
            for name in ("coco", "hf", "out.parts", "out", EXPORTED)
        ),
    }


def _generate(place: Place, of_run: tuple[str, ...], url: str, needed: int) -> int:
    """Run all shards; how many answers were in flight when two were killed."""

    def generate(index: int, kill_when: Callable[[], bool] | None = None) -> None:
        of_shard = ("--shard", f"{index}/{SHARDS}", "--output_path", "out")
        place.run("generate", *of_run, *of_shard, kill_when=kill_when)

    def is_half_done(store: Path) -> bool:
        return _stored(store) >= needed // SHARDS // 2

    lost = 0
    for index in KILLED:
        store = place.folder / PARTS[index] / "responses.sqlite"
        answered = _ask(url)["answered"]
        generate(index, partial(is_half_done, store))
        while _ask(url)["in_flight"]:
            time.sleep(0.1)
        lost += _ask(url)["answered"] - answered - _stored(store)
        generate(index)
    others = [index for index in range(SHARDS) if index not in KILLED]
    with ThreadPoolExecutor(len(others)) as pool:
        list(pool.map(generate, others))
    return lost


def _stored(store: Path) -> int:
    """How many answers are durable."""
    if not store.exists():
        return 0
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
        try:
            (count,) = connection.execute("SELECT count(*) FROM completions").fetchone()
        except sqlite3.OperationalError:  # it is being made
            return 0
        return int(count)


@contextmanager
def _serve(speed: float, outage_after: int) -> Iterator[str]:
    """The address of a server that is there meanwhile."""
    command = [sys.executable, str(HERE / "mistral_server.py"), "--speed", str(speed)]
    command += ["--outage_after", str(outage_after)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def _ask(url: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{url}/count") as response:
        counts: dict[str, int] = json.loads(response.read())
    return counts


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _between(figure: Any, before: str = "", form: str = "") -> str:
    low, high = figure if isinstance(figure, list) else (figure, figure)
    return f"{before}{low:,{form}} to {before}{high:,{form}}"


if __name__ == "__main__":
    main()
