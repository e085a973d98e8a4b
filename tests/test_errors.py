from __future__ import annotations

import inspect
from collections import Counter

import pytest

from mminstruct import errors
from mminstruct.errors import MMInstructError, TransientError, did_you_mean
from mminstruct.resources import count_of
from mminstruct.rows.report import Report, explain_failures, summary


@pytest.mark.parametrize(
    ("got", "choices", "tail"),
    [
        ("lava", ["motion", "llava"], " (did you mean 'llava'?)"),
        ("COCO2015", ["COCO2014", "SAMPLE"], " (did you mean 'COCO2014'?)"),
        ("stop_words", {"stopwords": 1}, " (did you mean 'stopwords'?)"),
        ("llava", ["lavin", "llava-instruct"], " (did you mean 'llava-instruct'?)"),
        ("zzz", ["b", "a"], "; choose from: a, b"),
        ("", ["a"], "; choose from: a"),
        ("anything", [], ""),
        ("lava", (name for name in ["llava"]), " (did you mean 'llava'?)"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_or_all_known_ones(
    got: str, choices: list[str], tail: str
) -> None:
    assert did_you_mean(got, choices) == tail


def test_all_errors_have_one_base_and_stand_in_the_tree_of_the_docstring() -> None:
    tree = errors.__doc__ or ""
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]
    found = [cls for cls in classes if cls.__module__ == errors.__name__]
    assert len(found) > 10
    for cls in found:
        assert issubclass(cls, MMInstructError)
        assert cls.__name__ in tree
        assert cls.__doc__


def test_a_transient_error_says_its_cause_and_how_long_to_wait() -> None:
    error = TransientError("busy", cause="http_429", retry_after_s=2.5)
    assert (str(error), error.cause, error.retry_after_s) == ("busy", "http_429", 2.5)
    assert TransientError("gone", cause="dropped").retry_after_s is None


def test_one_thing_is_counted_as_one() -> None:
    told = [count_of(n, "row") for n in (0, 1, 2, 354_861)]
    assert told == ["0 rows", "1 row", "2 rows", "354,861 rows"]
    assert [count_of(n, "box") for n in (1, 2)] == ["1 box", "2 boxes"]
    assert [count_of(n, "answer is", "answers are") for n in (1, 2)] == [
        "1 answer is",
        "2 answers are",
    ]
    report = Report(rows=Counter(a=1), failed={"a": Counter(refused=1, dropped=1)}, contradicted=1)
    assert summary(report).startswith("1 row, 1 turn left out from a contradicted one on, ")
    assert explain_failures(report, "ask again") == (
        "1 request got no answer; ask again. 1 request was refused, as it would be again"
    )
