"""Errors planted in true rows are found, and hardly anything else is."""

from __future__ import annotations

import random
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from mminstruct.checks import Checker

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "checks.py"


def test_planted_errors_are_found_and_true_rows_are_left_alone() -> None:
    spec = spec_from_file_location("planted_errors", BENCHMARK)
    assert spec is not None and spec.loader is not None
    benchmark = module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    rng = random.Random(5)
    checkers = {place.name: Checker(place.vocabulary) for place in benchmark.PLACES}
    planted: Counter[str] = Counter()
    found: Counter[str] = Counter()
    alarms = 0
    for number in range(450):
        place, context, turns, wrong = benchmark.rows_of(number, rng)
        check = checkers[place.name].check
        alarms += sum(f.verdict == "contradicted" for f in check(context, turns))
        for kind, turn in wrong.items():
            planted[kind] += 1
            verdicts = {(f.kind, f.verdict) for f in check(context, [turn])}
            found[kind] += (kind, "contradicted") in verdicts
    for kind in ("object", "count", "presence"):
        assert found[kind] >= 0.9 * planted[kind], (kind, found, planted)
    assert found.total() >= 0.95 * (found.total() + alarms)
