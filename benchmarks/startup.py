"""How long the command line takes to say what it is, and a verdict, beside the least it needs.

Each is the CPU time of the best of several runs of a Python of its own, taken in turns.
"""

from __future__ import annotations

import resource
import subprocess
import sys

TURNS = 15
MAIN = "from mminstruct.cli import main; main()"
MODEL = ("--model", "Qwen/Qwen3-8B")
COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "import argparse, msgspec": ("-c", "import argparse, msgspec"),
    "mminstruct --version": ("-c", MAIN, "--version"),
    "mminstruct --help": ("-c", MAIN, "--help"),
    # Of a source whose annotations aren't at hand, and of one whose images are counted.
    "mminstruct license COCO2017": ("-c", MAIN, "license", "COCO2017", *MODEL),
    "mminstruct license SAMPLE": ("-c", MAIN, "license", "SAMPLE", *MODEL),
}
MOST = {
    "mminstruct --version": 8.0,
    "mminstruct --help": 10.0,
    "mminstruct license COCO2017": 12.0,
    "mminstruct license SAMPLE": 17.0,
}


def seconds(words: tuple[str, ...]) -> float:
    """The CPU time of a Python with these arguments."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the times; fail where one is over its bound."""
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(TURNS):
        for name, words in COMMANDS.items():
            found[name].append(seconds(words))
    best = {name: min(times) for name, times in found.items()}
    least = best["import argparse, msgspec"]
    for name, time_s in best.items():
        bound = f" (at most {MOST[name]:.0f} x)" if name in MOST else ""
        print(f"{name:<29}{time_s:8.3f} s {time_s / least:6.1f} x{bound}")
    sys.exit(any(best[name] > bound * least for name, bound in MOST.items()))


if __name__ == "__main__":
    main()
