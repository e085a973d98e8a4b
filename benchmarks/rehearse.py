"""Rehearses a full release: COCO train2017 by Mistral-7B, from the annotations to the Hub.

Files of COCO's size (`coco_files`) and a server with a 7B's ways (`mistral_server`) stand in for
the real ones. The run is cut into four shards: two are killed (kill -9) half way and run again, one
after the other, so that their requests can be counted; then two at once, which meet an outage.
They are merged, measured, written for LLaVA, and pushed to a Hub on loopback.

It fails if a step fails, if anything is asked again that was answered and stored, or if a request's
outcome, a row or a file is missing at the end.

    python benchmarks/rehearse.py [--share 0.01] [--speed 10] [--json FILE]
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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import coco_files

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
from hub_server import TOKEN, HubServer  # noqa: E402

MODEL = "mistralai/Mistral-7B-Instruct-v0.2"
REPO = "user/mistral-coco2017"
SHARDS, KILLED = 4, (0, 1)
USD_A_MILLION = {"prompt_tokens": 0.05, "completion_tokens": 0.25}  # a GPU's hour at $2, about
MIB = 2**20
# Linux counts KiB, macOS bytes.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024


class Ended(NamedTuple):
    """A command that has come to its end."""

    step: str
    out: str
    wall_s: float
    peak_mib: float


class Place(NamedTuple):
    """Where commands run, and what their environment tells them."""

    folder: Path
    env: dict[str, str]

    def run(self, *words: str, kill_when: Callable[[], bool] | None = None, **env: str) -> Ended:
        """Run mminstruct in a process of its own, and kill it as soon as a condition holds.

        Raises:
            SystemExit: it failed, or ended before it was killed.
        """
        start = time.monotonic()
        with (
            tempfile.TemporaryFile("w+", encoding="utf-8") as out,
            tempfile.TemporaryFile("w+", encoding="utf-8") as log,
        ):
            process = subprocess.Popen(
                [sys.executable, "-m", "mminstruct", *words],
                cwd=self.folder, env={**self.env, **env}, stdout=out, stderr=log,
            )  # fmt: skip
            while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
                if kill_when is not None and kill_when():
                    process.kill()
                time.sleep(0.05)
            process.returncode = os.waitstatus_to_exitcode(ended[1])
            out.seek(0)
            log.seek(0)
            if process.returncode != (-signal.SIGKILL if kill_when else 0):
                sys.exit(f"{' '.join(words)}: exit code {process.returncode}\n{log.read()}")
            step = f"{words[0]}, killed" if kill_when else words[0]
            peak_mib = ended[2].ru_maxrss * RSS_UNIT / MIB
            return Ended(step, out.read(), time.monotonic() - start, peak_mib)


def main() -> None:
    """Rehearse, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of COCO train2017")
    parser.add_argument("--speed", type=float, default=10, help="of the server, in GPUs")
    parser.add_argument("--json", type=Path, help="where the figures go, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mminstruct-rehearsal-") as folder:
        figures = rehearse(Path(folder), args.share, args.speed)
    print("\n".join(f"| {name} | {value} |" for name, value in figures.items()))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


def rehearse(folder: Path, share: float, speed: float) -> dict[str, Any]:
    """Name -> figure, of a rehearsal in an empty folder."""
    begun = time.monotonic()
    coco_files.write(folder / "coco", 2017, share)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "OPENAI_"))}
    place = Place(folder, {**env, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"})
    needed = 3 * round(coco_files.SIZES[2017].images * share)
    with _serve(speed, outage_after=round(needed * 0.6)) as url:
        of_run = (
            *("COCO2017", "--dataset_storage_path", "coco", "--model_source", "openai"),
            *("--model", MODEL, "--openai_base_url", f"{url}/v1"),
        )
        before = [place.run("license", *of_run, "--json")]
        prices = [f"{usd:g}" for usd in USD_A_MILLION.values()]
        of_price = ("--price_in", prices[0], "--price_out", prices[1], "--json")
        before.append(place.run("estimate", *of_run, *of_price))
        steps, lost = _generate(place, of_run, url, needed)
        counts = _ask(url)
    steps.append(place.run("merge", *_parts(), "out"))
    steps.append(place.run("report", "out", "--json"))
    steps.append(place.run("export", "out", "--format", "llava-instruct"))
    with HubServer() as hub:
        there = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
        steps.append(place.run("push", "out", REPO, "--revision", "v1.0", **there))
        pushed = {path: file.sha256 for path, file in hub.repos[REPO].head.files.items()}
    made = json.loads((folder / "out" / "provenance.json").read_text(encoding="utf-8"))
    rows = sum(made["rows"].values())
    reasons: dict[str, int] = {}
    for of_type in made["rejected"].values():
        for reason, count in of_type.items():
            reasons[reason] = reasons.get(reason, 0) + count
    _check(counts["asked"] == needed, f"{counts['asked']} requests came of {needed}")
    again = counts["answered"] - counts["asked"]
    _check(again == lost, f"{again} were answered twice, {lost} were in flight at the kills")
    _check(rows + sum(reasons.values()) == needed, f"{rows} rows and {reasons} of {needed}")
    _check(not made["failed"], f"without an answer: {made['failed']}")
    _check(_count_rows(folder / "out.llava-instruct.json") == rows, "rows are not exported")
    sent = {path: pushed.get(path) == file["sha256"] for path, file in made["files"].items()}
    _check(bool(sent) and all(sent.values()), f"pushed whole: {sent}")
    estimated, verdict = json.loads(before[1].out), json.loads(before[0].out)
    used = {name: counts[name] for name in USD_A_MILLION}
    cost = sum(used[name] * usd / 1e6 for name, usd in USD_A_MILLION.items())
    return {
        "images": f"{needed // 3:,}",
        "requests needed": f"{needed:,}",
        "requests sent": f"{counts['requests']:,}: {counts['errors']:,} met an error, "
        f"{counts['dropped']:,} a dropped connection (the outage's among them), and {lost:,} were "
        "in flight at the two kills",
        "rows": f"{rows:,}; no row: {', '.join(f'{r} {n:,}' for r, n in sorted(reasons.items()))}",
        **{
            f"{name.replace('_', ' ')}": f"{used[name]:,}; by estimate {_between(estimated[name])}"
            for name in USD_A_MILLION
        },
        "cost": f"${cost:,.2f}; by estimate {_between(estimated['cost_usd'], '$', '.2f')}",
        "verdict": verdict["said"],
        "time": f"{time.monotonic() - begun:,.0f} s, of which "
        + ", ".join(f"{ended.step} {ended.wall_s:,.0f}" for ended in [*before, *steps]),
        "peak memory of a process": ", ".join(
            f"{step} {max(e.peak_mib for e in [*before, *steps] if e.step == step):,.0f} MiB"
            for step in dict.fromkeys(ended.step for ended in [*before, *steps])
        ),
        "size on disk": ", ".join(
            f"{name} {_size(folder / name) / MIB:,.0f} MiB"
            for name in ("coco", "hf", "out.parts", "out", "out.llava-instruct.json")
        ),
    }


def _generate(
    place: Place, of_run: tuple[str, ...], url: str, needed: int
) -> tuple[list[Ended], int]:
    """Run all shards; what was run, and how many answers were in flight when some were killed."""
    steps, lost, half = [], 0, needed // SHARDS // 2

    def words(index: int) -> tuple[str, ...]:
        return ("generate", *of_run, "--shard", f"{index}/{SHARDS}", "--output_path", "out")

    def is_half_done(store: Path) -> bool:
        return _stored(store) >= half

    for index in KILLED:
        store = place.folder / _parts()[index] / "responses.sqlite"
        answered = _ask(url)["answered"]
        steps.append(place.run(*words(index), kill_when=partial(is_half_done, store)))
        while _ask(url)["in_flight"]:
            time.sleep(0.1)
        lost += _ask(url)["answered"] - answered - _stored(store)
        steps.append(place.run(*words(index)))
    others = [index for index in range(SHARDS) if index not in KILLED]
    with ThreadPoolExecutor(len(others)) as pool:
        steps += pool.map(lambda index: place.run(*words(index)), others)
    return steps, lost


def _parts() -> list[str]:
    return [f"out.parts/{index}-of-{SHARDS}" for index in range(SHARDS)]


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
    """Start the server, and end it."""
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


def _count_rows(exported: Path) -> int:
    with exported.open(encoding="utf-8") as file:
        return sum(line.startswith('{"id"') for line in file)


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def _between(figure: Any, before: str = "", form: str = "") -> str:
    low, high = figure if isinstance(figure, list) else (figure, figure)
    return f"{before}{low:,{form}} to {before}{high:,{form}}"


def _check(holds: bool, words: str) -> None:
    if not holds:
        sys.exit(f"the rehearsal has failed: {words}")


if __name__ == "__main__":
    main()
