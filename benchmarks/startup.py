"""How long the command line takes to say what it is, beside the least that it needs.

Each is the best of several runs of a Python of its own, taken in turns.
"""

from __future__ import annotations

import subprocess
import sys
import time

TURNS = 15
MAIN = "from mminstruct.cli import main; main()"
COMMANDS = {
    "import argparse, msgspec": ("-c", "import argparse, msgspec"),
    "mminstruct --version": ("-c", MAIN, "--version"),
    "mminstruct --help": ("-c", MAIN, "--help"),
}
MOST = {"mminstruct --version": 8.0, "mminstruct --help": 10.0}


def seconds(words: tuple[str, ...]) -> float:
    """How long a Python with these arguments runs."""
    started_s = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started_s


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
        print(f"{name:<28}{time_s:8.3f} s {time_s / least:6.1f} x{bound}")
    sys.exit(any(best[name] > bound * least for name, bound in MOST.items()))


if __name__ == "__main__":
    main()
