"""When a run ends by itself: the rules, which need no client."""

from __future__ import annotations

import asyncio

import pytest

from mminstruct.answers.parse import ONLY_THOUGHTS
from mminstruct.completions.stats import Stats
from mminstruct.completions.stopping import Ending, RowRules, StopRules
from mminstruct.errors import MMInstructError, NoRows, RequestRefused, RunStopped, TransientError
from mminstruct.schema import Completion, FinishReason, Turn

BROKEN = TransientError("broken", cause="http_500")


@pytest.mark.parametrize(
    ("error", "hopeless", "hopeless_after_answers"),
    [
        (TransientError("no one there", cause="unreachable"), True, True),
        (TransientError("slow", cause="timeout"), True, False),
        (TransientError("a page", cause="no_api"), True, False),
        (BROKEN, False, False),
        (RequestRefused("not this one"), False, False),
        (RequestRefused("no such model", status=404, unknown_here=True), True, True),
        (RequestRefused("forbidden", status=403, unknown_here=True), True, False),
    ],
)
def test_a_first_failure_is_hopeless_if_no_request_can_succeed(
    error: RequestRefused | TransientError, hopeless: bool, hopeless_after_answers: bool
) -> None:
    assert StopRules().is_hopeless(error, False) is hopeless
    assert StopRules().is_hopeless(error, True) is hopeless_after_answers


def test_three_failures_of_any_kind_at_the_start_are_hopeless_unless_others_were_answered() -> None:
    new, before = StopRules(), StopRules()
    assert [new.is_hopeless(BROKEN, False) for _ in range(3)] == [False, False, True]
    assert not any(before.is_hopeless(BROKEN, True) for _ in range(200))


def test_a_hundred_failures_in_a_row_end_a_run_and_a_tenth_of_a_full_store() -> None:
    for stored, enough in ((0, 100), (5000, 500)):
        rules = StopRules()
        ends = [rules.count_failure(BROKEN, 0, stored) for _ in range(enough)]
        assert ends[:-1] == [None] * (enough - 1)
        assert str(ends[-1]) == f"{enough} requests in a row failed; the last: broken"


def test_a_rerun_ends_as_the_run_did_unless_more_is_refused_than_was_answered() -> None:
    for stored, enough in ((0, 100), (70, 100), (900, 900)):
        rules = StopRules()
        refused = RequestRefused("not this one", status=400)
        ends = [rules.count_failure(refused, 0, stored) for _ in range(enough)]
        assert ends[:-1] == [None] * (enough - 1)
        assert str(ends[-1]) == f"{enough} requests in a row failed; the last: not this one"


def test_what_fails_otherwise_after_many_refusals_is_counted_by_itself() -> None:
    rules = StopRules()
    refused = RequestRefused("not this one", status=400)
    assert not any(rules.count_failure(refused, 0, 20_000) for _ in range(2500))
    gone = RequestRefused("no such model", unknown_here=True, status=404)
    late = TransientError("timed out", cause="timeout")
    ends = [rules.count_failure((gone, late)[n % 2], 0, 20_000) for n in range(2000)]
    assert ends[:-1] == [None] * 1999
    assert str(ends[-1]) == "2000 requests in a row failed; the last: timed out"


def test_failures_between_answers_end_nothing() -> None:
    rules = StopRules()
    for _ in range(99):
        assert rules.count_failure(BROKEN, 0, 0) is None
    rules.count_answer()
    # Sent before the answer: it tells nothing of the server, however often.
    assert all(rules.count_failure(BROKEN, 0, 0) is None for _ in range(300))
    # Sent after it: these are counted anew.
    assert [rules.count_failure(BROKEN, 1, 0) is None for _ in range(100)] == [True] * 99 + [False]


def empty(finish_reason: FinishReason, only_thoughts: bool = False) -> Completion:
    """An answer without a text."""
    return Completion(" \n", finish_reason, 10, 10, only_thoughts=only_thoughts)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (empty("length"), "max_tokens (1,234) before it wrote any text"),
        (empty("stop", only_thoughts=True), f"were empty; {ONLY_THOUGHTS} (finish"),
        (empty("stop"), "has the server the chat template of its model?"),
    ],
)
def test_thirty_empty_answers_in_a_row_end_a_run(answer: Completion, words: str) -> None:
    rules = StopRules()
    assert [rules.look_for_text(answer, 1234) for _ in range(29)] == [None] * 29
    assert rules.look_for_text(Completion("a text", "stop", 10, 10), 1234) is None
    assert [rules.look_for_text(answer, 1234) for _ in range(29)] == [None] * 29
    end = rules.look_for_text(answer, 1234)
    assert isinstance(end, NoRows)
    assert words in str(end)
    rules = StopRules()
    assert [rules.look_for_text(answer, 1234, 9999) is None for _ in range(99)] == [True] * 98 + [
        False
    ]


def test_a_server_that_counts_the_same_for_all_long_prompts_cuts_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rules = StopRules()
    for counted, ours in ((100, 4000), (3900, 4000)):  # says nothing; counts as we do
        assert all(rules.look_for_cuts(counted, ours) is None for _ in range(50))
    assert [rules.look_for_cuts(2048, 4000 + n) for n in range(29)] == [None] * 29
    assert [record.message.partition(" tokens")[0] for record in caplog.records] == [
        "the server counts 2,048"
    ]
    end = rules.look_for_cuts(2048, 5000)
    assert "give --context_window 2048; a new --response_store" in str(end)
    assert rules.look_for_cuts(2049, 5000) is None


def test_a_type_whose_first_hundred_answers_give_no_row_ends_a_run_that_pays_for_more() -> None:
    ends: list[MMInstructError] = []
    stats = Stats()
    rules = RowRules(stats, ends.append)
    rules.expect({"detail": 300, "conversation": 1000, "reasoning": 150})
    for _ in range(300):
        rules.count_useless("detail", "leak", "a number")
    assert not ends  # nothing was paid for
    stats.answered = 1
    rules.count_useful("conversation", [Turn("What is it?", "A bus.")])
    for _ in range(999):
        rules.count_useless("conversation", "leak", "a number")
    assert not ends  # one gave a row
    for _ in range(149):
        rules.count_useless("reasoning", "too_short", "a word")
    assert not ends  # fewer than a hundred are still to come
    rules.expect({"reasoning": 101})
    rules.count_useless("reasoning", "leak", "a number")
    (end,) = ends
    assert str(end).startswith(
        "the first 150 answers of type 'reasoning' gave no row "
        "(too_short 149, leak 1; the last: a number)"
    )


def test_answers_that_are_the_same_are_told_once_and_end_a_run_that_pays_for_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ends: list[MMInstructError] = []
    stats = Stats()
    rules = RowRules(stats, ends.append)
    rules.expect({"detail": 302, "short": 1000})
    same, short = Turn("What is it?", "A red bus stands in a street."), Turn("A bus?", "Yes.")
    for number in range(194):
        rules.count_useful("detail", [same, Turn("And now?", f"Number {number} can be seen.")])
    assert not caplog.records  # together they differ
    for _ in range(11):
        rules.count_useful("detail", [same])
    assert not caplog.records  # ten of 205 repeat another one
    rules.count_useful("detail", [same])
    for _ in range(90):
        rules.count_useful("detail", [same])
    assert [record.message for record in caplog.records] == [
        "11 of the first 206 rows of type 'detail' have another row's answers, word for word; look "
        "at them before you pay for more"
    ]
    assert not ends  # nothing was paid for
    stats.answered = 1
    rules.count_useful("detail", [same])
    assert str(ends[0]).startswith(
        "102 of the first 297 rows of type 'detail' have another row's answers, word for word. Try "
        "another model"
    )
    for _ in range(300):
        rules.count_useful("short", [short])
    assert len(ends) == len(caplog.records) == 1  # a short answer may be true of many
    for _ in range(5):
        rules.count_useful("detail", [same])
    assert len(ends) == 5  # nothing would be paid for after the last


def test_the_first_reason_to_end_a_run_is_the_one_that_all_hear_of() -> None:
    async def run() -> None:
        ending, heard = Ending(asyncio.get_running_loop()), []
        ending.listeners.append(heard.append)
        await ending.pause(0.001)
        waiting = asyncio.ensure_future(ending.pause(3600.0))
        await asyncio.sleep(0)
        first = NoRows("all are empty")
        ending.stop(first)
        assert str(ending.stop(RunStopped("too late"))) == "all are empty"
        with pytest.raises(RunStopped, match="all are empty") as caught:
            await waiting
        assert caught.value.__cause__ is first
        assert [str(error) for error in heard] == ["all are empty"]

    asyncio.run(run())
