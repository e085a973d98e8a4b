"""What becomes of turns that the annotations contradict: reported, left out, or asked for again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from loopback import LoopbackServer, chat_completion

import mminstruct
from mminstruct.errors import NoRows, RunStopped, UsageError
from mminstruct.generation import Generated
from mminstruct.reports.estimate import Estimate
from mminstruct.rows.report import summary

PLAIN = "Question: What is the mood?\nAnswer: Everything seems calm on this day."
WRONG = "\n===\nQuestion: What else is there?\nAnswer: A zebra waits by the fence."
RIGHT = "\n===\nQuestion: What else is there?\nAnswer: Nothing else catches the eye."
MARK = "not true"


def server_saying(first: str, second: str) -> Callable[..., Any]:
    """Answers the one to a request, and the other to whoever says that something isn't true."""

    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        return chat_completion(second if MARK in body["messages"][-1]["content"] else first)

    return answer


@pytest.fixture
def run(server: LoopbackServer, tmp_path: Path) -> Callable[..., Generated]:
    """Makes rows about two images, of the server's answers and of a store that is kept."""

    def generate(**more: Any) -> Generated:
        common = {"backend": "openai", "model": "m", "base_url": server.url, "max_retries": 0}
        paths = {"cache_dir": str(tmp_path / "cache"), "response_store": str(tmp_path / "r.sqlite")}
        asked = {"limit": 2, "types": ["conversation"], **common, **paths, **more}
        return mminstruct.generate("SAMPLE", **asked)

    server.answer = server_saying(PLAIN + WRONG, PLAIN + RIGHT)
    return generate


def turns_of(row: dict[str, Any]) -> list[str]:
    return [m["content"] for m in row["messages"] if m["role"] == "assistant"]


CALM, ZEBRA, NOTHING = (
    "Everything seems calm on this day.",
    "A zebra waits by the fence.",
    "Nothing else catches the eye.",
)


def test_rows_say_what_the_annotations_contradict_and_nothing_is_dropped_unasked(
    run: Callable[..., Generated], server: LoopbackServer
) -> None:
    made = run()
    assert len(server.bodies) == 2
    for row in made:
        assert turns_of(row) == [CALM, ZEBRA]
        assert row["checks"]["verdicts"] == ["supported", "contradicted"]
        (found,) = (f for f in row["checks"]["findings"] if f["verdict"] == "contradicted")
        assert (found["turn"], found["kind"], found["label"]) == (1, "object", "zebra")
        assert (found["said"], found["known"][:15]) == ("zebra", "no box of zebra")
        assert row["checks"]["version"]
    assert made.report.contradicted == 0


def test_dropped_turns_are_counted_and_made_of_what_is_stored(
    run: Callable[..., Generated], server: LoopbackServer
) -> None:
    run()
    made = run(check="drop")
    assert len(server.bodies) == 2
    for row in made:
        assert turns_of(row) == [CALM]
        assert row["checks"] == {**row["checks"], "verdicts": ["supported"], "findings": []}
        assert row["provenance"]["notes"] == ["contradicted"]
    assert (len(made), made.report.contradicted) == (2, 2)


def test_the_turns_after_a_contradicted_one_go_with_it_and_those_before_keep_their_findings(
    run: Callable[..., Generated], server: LoopbackServer
) -> None:
    first = "Question: What comes?\nAnswer: A giraffe might come by later."
    last = "\n===\nQuestion: Why is it there?\nAnswer: Its herd left it behind."
    server.answer = server_saying(f"{first}\n===\n{PLAIN}{WRONG}{last}", "")
    made = run(check="drop")
    for row in made:
        assert turns_of(row) == ["A giraffe might come by later.", CALM]
        assert row["checks"]["verdicts"] == ["supposed", "supported"]
        assert [finding["turn"] for finding in row["checks"]["findings"]] == [0]
    assert made.report.contradicted == 4
    assert summary(made.report) == "2 rows, 4 turns left out from a contradicted one on"


def test_rows_of_another_choice_of_checks_are_not_replaced_unasked(
    run: Callable[..., Generated], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(output_path=out)
    with pytest.raises(UsageError, match="its check report, got drop"):
        run(check="drop", output_path=out)
    for _ in range(2):
        run(check="drop", output_path=out, overwrite=True)
    with pytest.raises(UsageError, match="its check drop, got report"):
        run(output_path=out)


def test_an_answer_with_nothing_but_contradictions_is_rejected_by_that_name(
    run: Callable[..., Generated], server: LoopbackServer
) -> None:
    only = WRONG.removeprefix("\n===\n")

    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        return chat_completion(only if "boat" in body["messages"][-1]["content"] else PLAIN)

    server.answer = answer
    made = run(check="drop")
    assert made.report.rejected == {"conversation": {"contradicted": 1}}
    (entry,) = made.report.entries()
    assert entry["detail"].startswith('"zebra": no box of zebra')
    server.answer = server_saying(only, only)
    with pytest.raises(NoRows, match="contradicted 2"):
        run(check="drop", seed=1)


def test_who_asks_again_quotes_what_is_wrong_and_pays_once(
    run: Callable[..., Generated], server: LoopbackServer, tmp_path: Path
) -> None:
    run()
    made = run(check="reask")
    first, again = server.bodies[0], server.bodies[2]
    assert len(server.bodies) == 4
    assert [m["role"] for m in again["messages"][-3:]] == ["user", "assistant", "user"]
    assert again["messages"][-2]["content"] == PLAIN + WRONG
    assert '- "zebra": no box of zebra' in again["messages"][-1]["content"]
    assert again["messages"][:-2] in [body["messages"] for body in server.bodies[:2]]
    assert again["max_tokens"] == first["max_tokens"]
    for row in made:
        assert turns_of(row) == [CALM, NOTHING]
        assert row["checks"]["verdicts"] == ["supported", "supported"]
        assert row["provenance"]["notes"] == ["asked_again"]
    (builder,) = made.builders
    stats = builder.stats
    assert (stats.total, stats.done, stats.stored, stats.answered) == (4, 4, 2, 2)
    again_made = run(check="reask", cache_dir=str(tmp_path / "elsewhere"))
    assert len(server.bodies) == 4
    assert list(again_made) == list(made)


def test_what_is_still_wrong_is_dropped_and_an_answer_that_gives_no_row_leaves_the_first(
    run: Callable[..., Generated], server: LoopbackServer
) -> None:
    server.answer = server_saying(PLAIN + WRONG, WRONG.removeprefix("\n===\n"))
    for row in run(check="reask"):
        assert (turns_of(row), row["provenance"]["notes"]) == ([CALM], ["contradicted"])
    server.answer = server_saying(PLAIN + WRONG, PLAIN + WRONG)
    for row in run(check="reask", seed=1):
        assert turns_of(row) == [CALM]
        assert row["provenance"]["notes"] == ["contradicted", "asked_again"]


def test_what_got_no_second_answer_is_asked_for_by_the_next_run(
    run: Callable[..., Generated], server: LoopbackServer
) -> None:
    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        if MARK in body["messages"][-1]["content"]:
            return (400, {}, {"error": {"message": "no"}})
        return chat_completion(PLAIN + (WRONG if len(server.bodies) == 1 else RIGHT))

    server.answer = answer
    with pytest.warns(UserWarning, match="1 failed"):
        made = run(check="reask")
    assert (len(made), made.report.failures) == (1, {"refused": 1})
    server.answer = server_saying("", PLAIN + RIGHT)
    asked = len(server.bodies)
    assert [turns_of(row) for row in run(check="reask")] == [[CALM, NOTHING]] * 2
    assert len(server.bodies) == asked + 1


def test_a_bound_on_requests_holds_for_those_that_ask_again(
    run: Callable[..., Generated], server: LoopbackServer
) -> None:
    with pytest.raises(RunStopped, match="max_requests"):
        run(check="reask", max_requests=3, max_concurrency=1)
    assert len(server.bodies) == 3
    assert len(run(check="reask", max_requests=1)) == 2
    assert len(server.bodies) == 4


def test_a_stream_asks_again_as_well(
    run: Callable[..., Generated], server: LoopbackServer, tmp_path: Path
) -> None:
    rows = datasets.load_dataset(
        "builders/sample_llava",
        "conversation",
        split="train",
        streaming=True,
        backend="openai",
        model="m",
        base_url=server.url,
        limit=3,
        check="reask",
        response_store=str(tmp_path / "r.sqlite"),
    )
    assert [turns_of(row) for row in rows] == [[CALM, NOTHING]] * 3
    assert len(server.bodies) == 6


def test_an_estimate_says_that_some_may_be_asked_for_twice(run: Callable[..., Generated]) -> None:
    heard: list[Estimate] = []
    run(check="reask", agree=heard.append)
    assert "answers that the annotations contradict are asked for once more" in heard[0].line()
    run(agree=heard.append)
    assert "once more" not in heard[1].line()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"check": "dorp"}, r"check 'dorp' \(did you mean 'drop'\?\)"),
        ({"check": "reask", "batch_api": True}, "reask asks again within the run"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(
    run: Callable[..., Generated], server: LoopbackServer, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        run(**arguments)
    assert not server.bodies
