"""Damages annotation files of every source, thousands of times, and reads what is left.

Each file is read, or refused with words; never with a traceback, never for longer than 20 s, and
never with more than 1.5 GB of memory. The mutations follow from the seed, and one that is met with
anything else is kept with its number.

    python benchmarks/annotation_fuzz.py [--minutes 2] [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from dummy_data import write_all

from mminstruct import sources
from mminstruct.errors import MMInstructError
from mminstruct.sources import ReadReport

PATIENCE_S = 20
MOST_BYTES = 1500 * 10**6
TOKENS = [
    *(b"NaN", b"-1", b"1e400", b"null", b"true", b'""', b"{}", b"[]", b"\x00", b"\x1b[2J"),
    *(b"9" * 5000, b"[" * 5000, b'{"a":' * 5000, b'"../../x.jpg"', b"\xff\xfe", b"\xed\xa0\x80"),
]


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The bytes after one to three mutations."""
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(content) + 1)
        stop = min(len(content), start + rng.choice((1, 4, 40, 4000)))
        some = content[start:stop]
        kind = rng.randrange(6)
        middle = {
            0: b"",
            1: some * 2,
            2: some[::-1],
            3: bytes(byte ^ 1 << rng.randrange(8) for byte in some[:1]) + some[1:],
        }.get(kind, rng.choice(TOKENS))
        content = content[:start] + middle + (b"" if kind == 5 else content[stop:])
    return content


def read(place: Path, name: str) -> str:
    """What becomes of a source's files in a folder: ``read`` or ``refused``."""
    source = sources.get(name)
    try:
        files = source.locate([place], source.info.splits[0])
        if files is None:
            return "not found"
        for _ in source.read(files, ReadReport()):
            pass
    except MMInstructError as error:
        return "refused" if str(error) else "refused without words"
    return "read"


def main() -> int:
    """Print what became of the files; 1 if a file was met with anything else."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    deadline, outcomes, failures, number = time.monotonic() + 60 * args.minutes, Counter(), [], 0
    with tempfile.TemporaryDirectory() as scratch:
        whole, place = Path(scratch) / "whole", Path(scratch) / "damaged"
        write_all(whole, 6)
        files = sorted(path for path in whole.rglob("*") if path.is_file())
        # Read as they are, each source finds something to be damaged.
        names = [name for name in sources.names() if read(whole, name) == "read"]
        while time.monotonic() < deadline:
            rng = random.Random(f"{args.seed}-{number}")
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(whole, place)
            for path in rng.sample(files, 2):
                target = place / path.relative_to(whole)
                target.write_bytes(damaged(path.read_bytes(), rng))
            for name in names:
                signal.alarm(PATIENCE_S)  # its default action ends the process
                try:
                    outcomes[read(place, name)] += 1
                except Exception as error:  # noqa: BLE001 (what is looked for)
                    failures.append(f"seed {args.seed}, number {number}, {name}")
                    frames = "".join(traceback.format_tb(error.__traceback__, -3))
                    sys.stderr.write(f"{failures[-1]}\n{frames}{error!r:.300}\n")
                signal.alarm(0)
            number += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{number} damaged sets of {', '.join(names)}: {dict(outcomes)}")
    print(f"{len(failures)} tracebacks, {peak / 1e6:.0f} MB at most")
    return int(bool(failures) or outcomes["refused without words"] > 0 or peak > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
