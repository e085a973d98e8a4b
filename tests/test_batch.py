"""The Batch API: killed at any step and run again, no request is submitted twice."""

from __future__ import annotations

import json
import logging
import signal
import socket
import sqlite3
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from batch_server import KILL, BatchServer, error_body
from conftest import coco_files
from loopback import DROP, LoopbackServer, chat_completion, turns_for
from running import Place, finish
from test_llmock import llmock

from mminstruct import loading
from mminstruct.builder import IncompleteWarning, InstructBuilder
from mminstruct.completions.batch_api import submitting
from mminstruct.completions.batch_api.drafts import Limits
from mminstruct.completions.batch_api.results import read_lines
from mminstruct.completions.stats import Stats
from mminstruct.errors import BackendUnusable, MMInstructError, RunStopped, UsageError
from mminstruct.reports.progress import describe
from mminstruct.transport import RetryPolicy

IMAGES = 6
REQUESTS = 3 * IMAGES
QUICK = Limits(requests=7, poll_s=0.02, settle_s=1.0)
FILES = 3  # of seven, seven and four requests
COMMAND = (
    sys.executable,
    "-c",
    "from mminstruct.completions.batch_api.drafts import Limits; "
    "from mminstruct.builder import InstructBuilder; "
    f"InstructBuilder.batch_limits = {QUICK!r}; from mminstruct.cli import main; main()",
)
PATIENCE_S = 60


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with BatchServer() as running:
        yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_files(tmp_path_factory.mktemp("data") / "coco", IMAGES)


@pytest.fixture
def place(tmp_path: Path, data: Path) -> Place:
    return Place(tmp_path / "place", data, COMMAND)


def builder(
    server: LoopbackServer | str, folder: Path, data: Path, limits: Limits = QUICK, **kwargs: Any
) -> InstructBuilder:
    """One that has a cache and a store of its own below ``folder``."""
    script = loading.script_of("builders/coco2017_llava")
    assert script is not None
    kwargs = {
        "batch_api": True,
        "backend": "openai",
        "model": "m",
        "cache_dir": str(folder / "cache"),
        "response_store": str(folder / "responses.sqlite"),
        **kwargs,
    }
    made = loading.builder_class(script)(
        config_name="default",
        base_url=server if isinstance(server, str) else server.url,
        data_dir=str(data),
        **kwargs,
    )
    made.batch_limits = limits
    made.policy = RetryPolicy(base_s=0.01, cap_s=0.05)
    return made


def prepared(made: InstructBuilder, **kwargs: Any) -> list[dict[str, Any]]:
    """The rows."""
    made.download_and_prepare(**kwargs)
    rows: list[dict[str, Any]] = made.as_dataset(split="train").to_list()
    return rows


def incomplete(made: InstructBuilder) -> list[dict[str, Any]]:
    """The rows where some requests got no answer."""
    with pytest.warns(IncompleteWarning):
        return prepared(made)


def journal(folder: Path, table: str) -> list[Any]:
    """The rows of a table of the journal."""
    connection = sqlite3.connect(folder / "responses.sqlite.batches")
    try:
        return connection.execute(f"SELECT * FROM {table}").fetchall()
    finally:
        connection.close()


def submissions(server: BatchServer) -> list[str]:
    """All custom ids, as often as they went into a batch."""
    return [custom_id for ids in server.submitted for custom_id in ids]


def counted(stats: Stats) -> int:
    assert stats.done == stats.total
    return stats.done


def test_rows_are_those_of_single_requests_and_each_request_goes_up_once(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    single = prepared(builder(server, tmp_path / "single", data, batch_api=False))
    assert len(server.bodies) == REQUESTS
    made = builder(server, tmp_path / "batch", data)
    assert prepared(made) == single
    assert len(server.bodies) == REQUESTS, "nothing was sent at full price"
    assert [len(ids) for ids in server.submitted] == [7, 7, 4]
    assert len(set(submissions(server))) == REQUESTS
    stats = made.stats
    assert (stats.total, stats.answered, stats.stored, stats.sent) == (REQUESTS, REQUESTS, 0, 18)
    assert (stats.prompt_tokens, stats.completion_tokens) == (100 * REQUESTS, 20 * REQUESTS)
    assert stats.waiting_for == ()
    assert counted(stats) == REQUESTS


def test_the_body_of_a_line_is_that_of_a_single_request(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    prepared(builder(server, tmp_path / "single", data, batch_api=False, seed=3))
    prepared(builder(server, tmp_path / "batch", data, seed=3))
    as_text = {json.dumps(body, sort_keys=True) for body in server.bodies}
    assert {json.dumps(b, sort_keys=True) for b in server.bodies_of.values()} == as_text


def test_files_hold_what_the_provider_takes_and_are_the_same_every_time(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    prepared(builder(server, tmp_path / "a", data))
    prepared(builder(server, tmp_path / "b", data))
    digests = [name.rpartition("-")[2] for name in server.uploads]
    assert len(set(digests)) == FILES
    assert digests[FILES:] == digests[:FILES]
    assert len(set(server.uploads)) == 2 * FILES, "no two stores share a file"
    whole = Limits(poll_s=0.02)
    with BatchServer() as third:
        prepared(builder(third, tmp_path / "c", data, whole))
    (lines,) = (batch["lines"] for batch in third.batches.values())
    line_bytes = max(len(json.dumps(line, ensure_ascii=False)) for line in lines)
    small = Limits(file_bytes=4 * line_bytes, poll_s=0.02)
    with BatchServer() as fourth:
        sizes: list[int] = []
        fourth.event = lambda step, number: sizes.extend(
            file["bytes"] for file in fourth.files.values() if step == "create:before"
        )
        prepared(builder(fourth, tmp_path / "d", data, small))
    assert max(sizes) <= small.file_bytes
    assert 4 <= len(fourth.submitted) < REQUESTS
    assert len(set(submissions(fourth))) == len(submissions(fourth)) == REQUESTS


def test_the_limits_are_those_of_the_provider() -> None:
    assert (Limits().requests, Limits().file_bytes) == (50_000, 200_000_000)


def test_a_rerun_and_single_requests_afterwards_ask_for_nothing(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    rows = prepared(builder(server, tmp_path, data))
    for more in ({"batch_api": True}, {"batch_api": False}):
        other = str(tmp_path / f"other{more['batch_api']}")
        again = builder(server, tmp_path, data, cache_dir=other, **more)
        assert prepared(again) == rows
        assert again.stats.stored == REQUESTS
        assert counted(again.stats) == REQUESTS
    assert len(submissions(server)) == REQUESTS
    assert server.bodies == []


def test_only_what_the_store_lacks_goes_up(server: BatchServer, tmp_path: Path, data: Path) -> None:
    prepared(builder(server, tmp_path, data, batch_api=False, limit=4))
    made = builder(server, tmp_path, data)
    prepared(made)
    assert len(submissions(server)) == 6
    assert (made.stats.stored, made.stats.answered) == (12, 6)
    assert counted(made.stats) == REQUESTS


def test_all_files_are_deleted_at_the_server_once_answers_are_stored(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    prepared(builder(server, tmp_path, data))
    assert len(server.uploads) == FILES
    assert server.left == []
    assert journal(tmp_path, "batches") == []
    assert journal(tmp_path, "requests") == []


def test_several_processes_share_the_answers(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    single = prepared(builder(server, tmp_path / "single", data, batch_api=False))
    assert prepared(builder(server, tmp_path / "batch", data), num_proc=2) == single
    assert len(submissions(server)) == REQUESTS
    assert len(server.bodies) == REQUESTS


def test_splits_go_up_together(server: BatchServer, tmp_path: Path, data: Path) -> None:
    coco_files(tmp_path / "coco", 2)
    coco_files(tmp_path / "coco", 3, split="val")
    there: list[int] = []

    def end(batch: dict[str, Any]) -> str:
        there.append(len(server.batches))
        return "completed"

    server.end = end
    made = builder(server, tmp_path, tmp_path / "coco", splits=["train", "validation"])
    made.download_and_prepare()
    lengths = {name: len(rows) for name, rows in made.as_dataset().items()}
    assert lengths == {"train": 6, "validation": 9}
    assert set(there) == {2}, "both were there before the first had ended"
    # Two scenes are the same in both splits, and asked for once.
    assert len(submissions(server)) == len(set(submissions(server))) == 9
    assert (made.stats.answered, made.stats.stored) == (9, 6)
    assert counted(made.stats) == 15


def test_the_key_goes_with_every_call(
    server: BatchServer, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-a-test")
    prepared(builder(server, tmp_path, data))
    assert server.authorizations == {"Bearer sk-of-a-test"}


def test_any_character_of_an_answer_comes_through(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    """Some split lines for Python and for others, but not in JSON."""
    odd = "A wide\u2028 scene\x85 with odd\x1c signs in it. Sentence 1 "

    def line(body: dict[str, Any]) -> Any:
        return 200, chat_completion(turns_for(body).replace("Sentence 1 ", odd))

    server.line = line
    server.answer = lambda _, body: line(body)[1]
    single = prepared(builder(server, tmp_path / "single", data, batch_api=False))
    assert prepared(builder(server, tmp_path / "batch", data)) == single


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[int, dict[str, str]]:
    """A port, and the output of single requests to a server there."""
    place = Place(tmp_path_factory.mktemp("undisturbed"), data)
    with LoopbackServer() as running:
        ended = place.run(running.url)
        assert ended.code == 0, ended.err
        assert len(running.bodies) == REQUESTS
        return running.port, place.output_digest()


@pytest.fixture
def there(undisturbed: tuple[int, dict[str, str]]) -> Iterator[BatchServer]:
    """A server at the address that the undisturbed rows name."""
    running = BatchServer()
    running.port = undisturbed[0]
    with running:
        yield running


def killed(place: Place, server: BatchServer, step: str, number: int) -> None:
    """Run until a step, at which the process is killed."""
    server.event = lambda at, count: KILL if (at, count) == (step, number) else None
    process = place.start(server.url, "--batch_api")
    server.victim = process.pid
    ended = finish(process)
    assert ended.code == -signal.SIGKILL, f"{step} {number} never came: {ended.err}"


LIVES = {
    "first": (
        ("list_batches:before", 1),
        ("upload:before", 1),
        ("upload:after", 1),
        ("create:before", 1),
        ("create:after", 1),
        ("retrieve:before", 1),
        ("content:before", 1),
        ("content:middle", 1),
        ("delete:before", 1),
        ("delete:after", 1),
    ),
    "later": (
        ("upload:before", 2),
        ("upload:after", 1),
        ("create:after", 1),
        ("create:before", 1),
        ("retrieve:after", 2),
        ("content:middle", 2),
        ("content:before", 1),
        ("delete:after", 2),
    ),
}


@pytest.mark.parametrize("life", LIVES)
def test_killed_at_every_step_and_run_again_each_request_is_submitted_once(
    there: BatchServer, undisturbed: tuple[int, dict[str, str]], place: Place, life: str
) -> None:
    there.lag_s = 0.3  # what was created is not in the lists at once
    for step, number in LIVES[life]:
        there.steps.clear()
        killed(place, there, step, number)
    ended = place.run(there.url, "--batch_api")
    assert ended.code == 0, ended.err
    assert place.output_digest() == undisturbed[1]
    assert place.stored() == REQUESTS
    assert len(submissions(there)) == len(set(submissions(there))) == REQUESTS
    assert set(there.answered.values()) == {1}
    assert there.left == []
    assert there.bodies == []


def test_killed_between_its_stores_and_its_journal_a_run_loses_nothing(
    there: BatchServer, undisturbed: tuple[int, dict[str, str]], place: Place
) -> None:
    """Answers are read before errors, so at the second file of a batch some are stored."""
    calls: list[str] = []
    lost = FILES

    def line(body: dict[str, Any]) -> Any:
        calls.append(turns_for(body))
        if len(calls) <= REQUESTS and len(calls) % 7 == 1:
            return 500, error_body("try again")
        return 200, chat_completion(calls[-1])

    there.line = line
    killed(place, there, "content:before", 2)
    assert place.stored() == 6
    assert place.run(there.url, "--batch_api").code == 1
    assert place.stored() == REQUESTS - lost
    ended = place.run(there.url, "--batch_api")
    assert ended.code == 0, ended.err
    assert place.output_digest() == undisturbed[1]
    assert len(submissions(there)) == REQUESTS + lost
    assert set(there.answered.values()) == {1}


def test_killed_in_its_second_round_a_run_does_not_start_with_the_first_again(
    there: BatchServer, place: Place
) -> None:
    there.line = refuse_long
    killed(place, there, "create:before", FILES + 1)
    ended = place.run(there.url, "--batch_api")
    assert ended.code == 0, ended.err
    assert len(submissions(there)) == len(set(submissions(there))) == 2 * REQUESTS
    assert place.stored() == REQUESTS


@pytest.mark.parametrize("more", [(), ("--limit", "4")])
def test_two_runs_at_once_share_their_batches(
    there: BatchServer,
    undisturbed: tuple[int, dict[str, str]],
    tmp_path: Path,
    data: Path,
    more: tuple[str, ...],
) -> None:
    there.polls = 40
    store = ("--batch_api", "--response_store", str(tmp_path / "shared.sqlite"))
    places = [Place(tmp_path / name, data, COMMAND) for name in ("one", "two")]
    runs = [places[0].start(there.url, *store), places[1].start(there.url, *store, *more)]
    ended = [finish(run) for run in runs]
    assert [run.code for run in ended] == [0, 0], "\n".join(run.err for run in ended)
    assert len(submissions(there)) == len(set(submissions(there))) == REQUESTS
    assert places[0].output_digest() == undisturbed[1]
    if not more:
        assert places[1].output_digest() == undisturbed[1]


def test_ctrl_c_leaves_the_batches_running_and_says_how_to_go_on(
    there: BatchServer, undisturbed: tuple[int, dict[str, str]], place: Place
) -> None:
    there.polls = 10**9
    process = place.start(there.url, "--batch_api")
    wait_until(lambda: there.steps["retrieve:after"] >= 2 * FILES)
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert ended.code == 130
    assert "18 requests go on at the provider" in ended.err
    assert "run the same command again" in ended.err.lower()
    assert f"{there.url}/batches/ID/cancel" in ended.err
    assert "batch_1, batch_2, batch_3" in ended.err
    assert "Traceback" not in ended.err
    there.polls = 1
    assert place.run(there.url, "--batch_api").code == 0
    assert place.output_digest() == undisturbed[1]
    assert len(submissions(there)) == REQUESTS


def test_a_lost_journal_costs_no_batch_that_is_still_running(
    there: BatchServer, undisturbed: tuple[int, dict[str, str]], place: Place
) -> None:
    killed(place, there, "retrieve:after", 1)
    place.store.with_name("responses.sqlite.batches").unlink()
    assert place.run(there.url, "--batch_api").code == 0
    assert place.output_digest() == undisturbed[1]
    assert len(submissions(there)) == REQUESTS


def test_another_accounts_key_does_not_submit_everything_again(
    there: BatchServer, place: Place
) -> None:
    killed(place, there, "retrieve:after", 1)
    hidden, there.batches = there.batches, {}
    time.sleep(QUICK.settle_s)
    ended = place.run(there.url, "--batch_api")
    assert ended.code == 3
    assert "batch_1 holds 7 requests of this run" in ended.err
    assert "responses.sqlite.batches" in ended.err
    there.batches = hidden
    assert place.run(there.url, "--batch_api").code == 0
    assert len(submissions(there)) == REQUESTS


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


FAILURES = [
    DROP,
    (429, {"Retry-After": "0.01"}, error_body("slow down")),
    (500, {}, error_body("oops")),
    (502, {}, {}),
    (200, {}, "<html>Please log in</html>"),
    (200, {}, '["half a b'),
    (200, {}, error_body("the upstream failed")),
]


@pytest.mark.parametrize(
    ("when", "failure"),
    [("middle", DROP), *((w, failure) for w in ("before", "after") for failure in FAILURES)],
)
def test_a_call_that_fails_is_made_again_and_what_it_did_is_found(
    server: BatchServer, tmp_path: Path, data: Path, when: str, failure: Any
) -> None:
    def event(step: str, number: int) -> Any:
        # A file that is damaged twice, at looks that are long apart, is given up.
        is_second = step.startswith("content") and number > FILES
        return failure if step.endswith(when) and number % 2 and not is_second else None

    server.event, server.lag_s = event, 0.1
    made = builder(server, tmp_path, data, Limits(requests=7, poll_s=0.02, settle_s=0.3))
    assert len(prepared(made)) == REQUESTS
    assert len(submissions(server)) == len(set(submissions(server))) == REQUESTS
    assert made.stats.retries > 0
    assert server.left == []


def test_lists_are_read_to_their_last_page(server: BatchServer, tmp_path: Path, data: Path) -> None:
    """Batches of others come before ours, and the response to each creation is lost."""
    server.page = 2
    server.event = lambda step, number: DROP if step in ("create:after", "upload:after") else None
    assert len(prepared(builder(server, tmp_path, data, Limits(3, poll_s=0.02)))) == REQUESTS
    assert len(server.submitted) == len(server.uploads) == 6
    assert len(set(submissions(server))) == REQUESTS


def test_a_server_that_keeps_no_metadata_loses_no_batch(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    server.hides_metadata = True
    server.event = lambda step, number: DROP if step == "create:after" else None
    assert len(prepared(builder(server, tmp_path, data))) == REQUESTS
    assert len(submissions(server)) == REQUESTS


@pytest.mark.parametrize(
    "reply",
    [
        (403, {}, "<html>Not from your country</html>"),
        (400, {}, error_body("try later")),
        (404, {}, error_body("no such file yet")),
        (200, {}, ""),
        (200, {}, error_body("the upstream failed")),
        "one line",
    ],
    ids=str,
)
def test_a_file_that_cannot_be_read_at_once_is_read_later(
    server: BatchServer, tmp_path: Path, data: Path, reply: Any
) -> None:
    def event(step: str, number: int) -> Any:
        if step != "content:before" or number > 2:
            return None
        if reply != "one line":
            return reply
        (content,) = (f["content"] for f in server.files.values() if "batch_1_out" in f["filename"])
        return (200, {}, content.decode().partition("\n")[0] + "\n")

    server.event = event
    assert len(prepared(builder(server, tmp_path, data))) == REQUESTS
    assert len(submissions(server)) == REQUESTS
    assert server.steps["content:before"] == 2 + FILES
    assert server.left == []


@pytest.mark.parametrize("reply", [(403, {}, error_body("not yours")), (200, {}, "")], ids=str)
def test_answers_that_cannot_be_read_in_a_run_are_read_in_the_next(
    server: BatchServer, tmp_path: Path, data: Path, reply: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server.event = lambda step, number: reply if step == "content:before" else None
    quick = Limits(requests=18, poll_s=0.02, settle_s=0.2)
    with (
        caplog.at_level(logging.WARNING, "mminstruct.completions.batch_api"),
        pytest.raises(RunStopped),
    ):
        prepared(builder(server, tmp_path, data, quick))
    assert "18 requests got no answer: answers of batch batch_1" in caplog.text
    assert "run the same command again for them" in caplog.text
    assert "batch_1_output.jsonl" in server.left
    server.event = lambda step, number: None
    made = builder(server, tmp_path, data, quick)
    assert len(prepared(made)) == REQUESTS
    assert len(submissions(server)) == REQUESTS
    assert server.left == []


def no_first_output(server: BatchServer) -> None:
    """Let nobody find the answers of the first batch."""

    def event(step: str, number: int) -> None:
        for file_id, file in list(server.files.items()):
            if file["filename"] == "batch_1_output.jsonl":
                del server.files[file_id]

    server.event = event


def test_answers_that_are_not_found_are_not_asked_for_again_at_once(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    no_first_output(server)
    quick = Limits(requests=7, poll_s=0.02, settle_s=0.2)
    for _ in range(2):
        made = builder(server, tmp_path, data, quick)
        assert len(incomplete(made)) == REQUESTS - 7
        assert made.report.failures == {"unread": 7}
    assert len(submissions(server)) == REQUESTS


def test_answers_that_are_gone_are_asked_for_again_by_the_next_run(
    server: BatchServer,
    tmp_path: Path,
    data: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    no_first_output(server)
    quick = Limits(requests=7, poll_s=0.02, settle_s=0.2, gone_after_s=0.0)
    with caplog.at_level(logging.WARNING, "mminstruct.completions.batch_api"):
        made = builder(server, tmp_path, data, quick)
        assert len(incomplete(made)) == REQUESTS - 7
    assert made.report.failures == {"unread": 7}
    assert "7 requests got no answer: answers of batch batch_1" in caplog.text
    assert "they are gone" in caplog.text
    assert len(prepared(builder(server, tmp_path, data, quick))) == REQUESTS
    assert [len(ids) for ids in server.submitted] == [7, 7, 4, 7]


@pytest.mark.parametrize("bad", ["first line", "cut"])
def test_a_file_that_is_damaged_once_is_read_again(
    server: BatchServer, tmp_path: Path, data: Path, bad: str
) -> None:
    def event(step: str, number: int) -> Any:
        if (step, number) != ("content:before", 1):
            return None
        (content,) = (f["content"] for f in server.files.values() if "batch_1_out" in f["filename"])
        text = content.decode()
        return (200, {}, text[5:] if bad == "first line" else text[:-40])

    server.event = event
    assert len(prepared(builder(server, tmp_path, data))) == REQUESTS
    assert len(submissions(server)) == REQUESTS
    assert server.left == []


def test_a_page_in_the_place_of_one_file_holds_up_no_other_batch(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    server.page_for = "batch_1_output.jsonl"
    made = builder(server, tmp_path, data, Limits(requests=7, poll_s=0.02, settle_s=0.2))
    assert len(incomplete(made)) == REQUESTS - 7
    assert made.report.failures == {"unread": 7}
    server.page_for = ""
    assert len(prepared(builder(server, tmp_path, data))) == REQUESTS
    assert len(submissions(server)) == REQUESTS


@pytest.mark.parametrize("looks", [1, 1000])
def test_failed_lines_do_not_stand_for_answers_that_were_not_read(
    server: BatchServer, tmp_path: Path, data: Path, looks: int
) -> None:
    """Though as many lines as answers were counted are in the file of errors."""
    answered: list[int] = []

    def line(body: dict[str, Any]) -> Any:
        answered.append(len(answered) < 5)
        return (
            (200, chat_completion(turns_for(body))) if answered[-1] else (500, error_body("oops"))
        )

    def event(step: str, number: int) -> Any:
        # The output file is the first of the two.
        odd = step == "content:before" and number % 2
        return (200, {}, "") if odd and number < 2 * looks else None

    server.line, server.event = line, event
    quick = Limits(requests=18, poll_s=0.02, settle_s=0.2)
    if looks == 1:
        assert len(incomplete(builder(server, tmp_path, data, quick))) == 5
    else:
        with pytest.raises(RunStopped, match="at least 5 answers"):
            prepared(builder(server, tmp_path, data, quick))
        assert "batch_1_output.jsonl" in server.left
        server.event = lambda step, number: None
        assert len(incomplete(builder(server, tmp_path, data, quick))) == 5
    assert len(submissions(server)) == REQUESTS


def test_counts_that_are_all_zero_are_none(server: BatchServer, tmp_path: Path, data: Path) -> None:
    server.output_looks, server.zero_counts = 5, True
    server.event = lambda step, number: (
        (200, {}, "") if step == "content:before" and number <= 3 else None
    )
    assert len(prepared(builder(server, tmp_path, data))) == REQUESTS
    assert len(submissions(server)) == REQUESTS
    assert server.left == []


def test_an_error_file_that_cannot_be_read_costs_no_answer(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    server.line = lambda body: (
        (500, error_body("oops")) if some(body) else (200, chat_completion(turns_for(body)))
    )

    def event(step: str, number: int) -> None:
        for file_id, file in list(server.files.items()):
            if file["filename"].endswith("error.jsonl"):
                del server.files[file_id]

    server.event = event
    made = builder(server, tmp_path, data, Limits(requests=7, poll_s=0.02, settle_s=0.2))
    lost = REQUESTS - len(incomplete(made))
    assert made.report.failures == {"no_answer": lost}
    assert journal(tmp_path, "requests") == []


def test_a_delete_that_hangs_is_given_up_soon(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    server.event = lambda step, number: time.sleep(0.3) if step == "delete:before" else None
    limits = replace(QUICK, impatient_s=0.1)
    assert len(prepared(builder(server, tmp_path, data, limits))) == REQUESTS
    deletes = server.steps["delete:before"]
    assert 1 <= deletes <= 3 * (FILES + 1)
    urllib.request.urlopen(f"{server.url}/batches").close()  # it has come to the end of them


@pytest.mark.parametrize("counts", [True, False], ids=["counts", "no counts"])
def test_an_output_file_may_appear_after_its_batch_has_ended(
    server: BatchServer, tmp_path: Path, data: Path, counts: bool
) -> None:
    server.output_looks, server.hides_counts = 5, not counts
    assert len(prepared(builder(server, tmp_path, data))) == REQUESTS
    assert len(submissions(server)) == REQUESTS
    assert server.left == []


@pytest.mark.parametrize("counts", [True, False], ids=["counts", "no counts"])
def test_an_output_file_that_never_appears_is_not_deleted(
    server: BatchServer, tmp_path: Path, data: Path, counts: bool
) -> None:
    server.output_looks, server.hides_counts = 1_000_000, not counts
    with pytest.raises(RunStopped, match="files have 0"):
        prepared(builder(server, tmp_path, data, Limits(18, poll_s=0.02, settle_s=0.2)))
    assert "batch_1_output.jsonl" in server.left


def test_a_batch_that_the_server_does_not_know_keeps_no_other_from_being_fetched(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    pause = (429, {"Retry-After": "100000"}, error_body("come back tomorrow"))
    server.event = lambda step, number: pause if step == "retrieve:before" else None
    with pytest.raises(RunStopped, match="a pause of 27.8 hours"):
        prepared(builder(server, tmp_path, data))
    del server.batches["batch_1"]
    server.event = lambda step, number: None
    with pytest.raises(RunStopped, match="no such batch"):
        prepared(builder(server, tmp_path, data))
    store = sqlite3.connect(tmp_path / "responses.sqlite")
    (stored,) = store.execute("SELECT count(*) FROM completions").fetchone()
    store.close()
    assert stored == REQUESTS - len(server.submitted[0])
    assert len(submissions(server)) == REQUESTS


def test_a_list_that_is_none_does_not_make_a_batch_unknown(
    there: BatchServer, undisturbed: tuple[int, dict[str, str]], place: Place
) -> None:
    killed(place, there, "create:after", 1)
    time.sleep(QUICK.settle_s)
    there.steps.clear()
    there.event = lambda step, number: (
        (200, {}, error_body("the upstream failed"))
        if (step, number) == ("list_batches:before", 1)
        else None
    )
    ended = place.run(there.url, "--batch_api")
    assert ended.code == 0, ended.err
    assert len(submissions(there)) == REQUESTS
    assert place.output_digest() == undisturbed[1]


def test_a_file_that_a_new_batch_needs_is_not_deleted_with_the_old_one(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    server.line = lambda body: (500, error_body("oops"))
    server.event = lambda step, number: (
        (500, {}, error_body("oops")) if step == "delete:before" else None
    )
    with pytest.raises(RunStopped):
        prepared(builder(server, tmp_path, data, Limits(18, poll_s=0.02)))
    server.event, server.polls = lambda step, number: None, 3
    server.line = lambda body: (200, chat_completion(turns_for(body)))
    inputs: list[bool] = []

    def event(step: str, number: int) -> None:
        if step == "retrieve:before" and "batch_2" in server.batches:
            new = server.batches["batch_2"]
            inputs.append(new["status"] == "completed" or new["input_file_id"] in server.files)

    server.event = event
    assert len(prepared(builder(server, tmp_path, data, Limits(18, poll_s=0.02)))) == REQUESTS
    assert len(server.uploads) == 1
    assert inputs and all(inputs)
    assert server.left == []


def test_another_stores_batches_are_left_to_its_own_runs(
    there: BatchServer, undisturbed: tuple[int, dict[str, str]], place: Place, tmp_path: Path
) -> None:
    killed(place, there, "retrieve:after", 1)
    # On another machine the path of the store may be the same.
    moved = place.folder.rename(place.folder.with_name("moved"))
    other, place = Place(place.folder, place.data, COMMAND), Place(moved, place.data, COMMAND)
    for one in (other, place):
        ended = one.run(there.url, "--batch_api")
        assert ended.code == 0, ended.err
        assert one.output_digest() == undisturbed[1]
    assert len(submissions(there)) == 2 * REQUESTS
    assert there.left == []


def test_a_pause_of_hours_ends_the_run(server: BatchServer, tmp_path: Path, data: Path) -> None:
    server.event = lambda step, number: (429, {"Retry-After": "86400"}, error_body("enough"))
    with pytest.raises(RunStopped, match=r"enough; the server asks for a pause of 24\.0 hours"):
        prepared(builder(server, tmp_path, data))


def test_no_file_is_worth_a_long_wait_to_delete(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    server.event = lambda step, number: (
        (429, {"Retry-After": "1800"}, error_body("slow")) if step == "delete:before" else None
    )
    assert len(prepared(builder(server, tmp_path, data))) == REQUESTS
    assert server.steps["delete:before"] <= FILES


def test_a_download_may_take_longer_than_an_answer(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    server.event = lambda step, number: time.sleep(0.7) if step.startswith("content") else None
    made = builder(server, tmp_path, data, Limits(18, poll_s=0.02), timeout_s=1.0)
    assert len(prepared(made)) == REQUESTS
    assert server.steps["content:before"] == 1


def test_a_server_without_the_batch_api_is_named(tmp_path: Path, data: Path, place: Place) -> None:
    with LoopbackServer() as plain:
        with pytest.raises(BackendUnusable, match="404.*no Batch API.*without batch_api"):
            prepared(builder(plain, tmp_path, data))
        assert place.run(plain.url, "--batch_api").code == 3
        assert plain.bodies == []


def test_a_server_that_is_down_ends_the_run_at_once(tmp_path: Path, data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    made = builder(f"http://127.0.0.1:{port}/v1", tmp_path, data)
    with pytest.raises(MMInstructError, match="127.0.0.1"):
        prepared(made)
    assert made.stats.retries == 2


def test_a_wrong_key_ends_the_run(server: BatchServer, tmp_path: Path, data: Path) -> None:
    server.event = lambda step, number: (401, {}, error_body("who are you"))
    with pytest.raises(BackendUnusable, match="who are you; check OPENAI_API_KEY"):
        prepared(builder(server, tmp_path, data))
    assert server.steps.total() == 1


@pytest.mark.parametrize("code", ["insufficient_quota", "billing_hard_limit_reached"])
def test_an_account_without_credit_ends_the_run_and_can_go_on_later(
    server: BatchServer, tmp_path: Path, data: Path, code: str
) -> None:
    if code == "insufficient_quota":
        refusal = (429, {}, error_body("pay first", code))
        server.event = lambda step, number: refusal if step == "create:before" else None
    else:
        server.errors = [{"code": code, "message": "pay first", "line": None, "param": None}]
        server.end = lambda batch: "failed"
    with pytest.raises(MMInstructError, match="pay first.*no credit left"):
        prepared(builder(server, tmp_path, data))
    assert server.steps["create:before"] <= FILES
    server.event, server.end = (lambda step, number: None), (lambda batch: "completed")
    assert len(prepared(builder(server, tmp_path, data))) == REQUESTS
    assert set(server.answered.values()) == {1}


def refuse_long(body: dict[str, Any]) -> Any:
    """Only prompts with two examples or fewer are taken."""
    if len(body["messages"]) > 6:
        return 400, error_body("This model's maximum context length is small.")
    return 200, chat_completion(turns_for(body))


def some(body: dict[str, Any]) -> bool:
    """Whether a request is one of about a third."""
    return sum(json.dumps(body["messages"]).encode()) % 3 == 0


@pytest.mark.parametrize("status", ["expired", "cancelled"])
def test_a_batch_that_ends_early_gives_what_it_has_and_a_rerun_submits_the_rest(
    server: BatchServer, tmp_path: Path, data: Path, status: str
) -> None:
    error = {"code": f"batch_{status}", "message": "This request could not be executed in time."}
    server.line = lambda body: error if some(body) else (200, chat_completion(turns_for(body)))
    server.end = lambda batch: status
    made = builder(server, tmp_path, data)
    rows = incomplete(made)
    lost = REQUESTS - len(rows)
    assert 0 < lost < REQUESTS
    assert made.report.failures == {f"batch_{status}": lost}
    assert {entry["detail"] for entry in made.report.entries()} == {error["message"]}
    assert made.stats.failed == {f"batch_{status}": lost}
    assert counted(made.stats) == REQUESTS
    server.line = lambda body: (200, chat_completion(turns_for(body)))
    server.end = lambda batch: "completed"
    again = builder(server, tmp_path, data)
    assert len(prepared(again)) == REQUESTS
    assert len(submissions(server)) == REQUESTS + lost
    assert (again.stats.stored, again.stats.answered) == (REQUESTS - lost, lost)
    assert set(server.answered.values()) == {1}


def test_requests_that_no_line_is_about_are_counted_by_what_became_of_their_batch(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    server.line = lambda body: None if some(body) else (200, chat_completion(turns_for(body)))
    server.end = lambda batch: "cancelling" if batch["looks"] < 4 else "cancelled"
    made = builder(server, tmp_path, data)
    lost = REQUESTS - len(incomplete(made))
    assert made.report.failures == {"batch_cancelled": lost}
    server.end = lambda batch: "completed"
    again = builder(server, tmp_path, data)
    incomplete(again)
    assert again.report.failures == {"no_answer": lost}


def test_lines_that_failed_are_counted_by_cause_in_the_servers_words(
    server: BatchServer, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    results: list[Any] = [
        (400, error_body("not this one, sk-secret")),
        (500, error_body("a bad day")),
        (429, error_body("too many")),
        {"code": "server_error", "message": "who knows"},
        (200, {"choices": []}),
    ]
    bodies: list[dict[str, Any]] = []

    def line(body: dict[str, Any]) -> Any:
        bodies.append(body)
        good = (200, chat_completion(turns_for(body)))
        return results[len(bodies) - 1] if len(bodies) <= len(results) else good

    server.line = line
    made = builder(server, tmp_path, data)
    assert len(incomplete(made)) == REQUESTS - len(results)
    causes = ("refused", "http_500", "http_429", "server_error", "bad_body")
    assert made.report.failures == dict.fromkeys(causes, 1)
    details = "\n".join(entry["detail"] for entry in made.report.entries())
    for words in ("not this one", "a bad day", "too many", "who knows", '{"choices": []}'):
        assert words in details
    assert "sk-secret" not in details
    assert len(prepared(builder(server, tmp_path, data))) == REQUESTS
    assert len(submissions(server)) == REQUESTS + len(results)


def test_where_nothing_at_all_was_answered_the_run_ends_with_the_servers_words(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    server.line = lambda body: (400, error_body("temperature must be 1"))
    with pytest.raises(RunStopped, match="temperature must be 1"):
        prepared(builder(server, tmp_path, data))


def test_prompts_that_are_too_long_go_up_shortened_in_a_further_batch(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    def refuse(_: Any, body: dict[str, Any]) -> Any:
        status, content = refuse_long(body)
        return status, {}, content

    server.answer = refuse
    single = prepared(builder(server, tmp_path / "single", data, batch_api=False))
    server.line = refuse_long
    made = builder(server, tmp_path / "batch", data)
    assert prepared(made) == single
    assert {row["provenance"]["dropped_few_shots"] for row in single} == {1}
    assert [len(ids) for ids in server.submitted] == [7, 7, 4, 7, 7, 4]
    assert made.stats.failed == {}
    assert counted(made.stats) == REQUESTS
    # What was refused is remembered, for it would take another day to hear it again.
    again = builder(server, tmp_path / "batch", data, limit=5)
    assert len(prepared(again)) == 15
    assert len(server.submitted) == 6


def test_a_prompt_too_long_in_every_length_is_rejected(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    too_long = error_body("This model's maximum context length is small.")

    def line(body: dict[str, Any]) -> Any:
        good = (200, chat_completion(turns_for(body)))
        return (400, too_long) if "scene 3," in body["messages"][-1]["content"] else good

    server.line = line
    made = builder(server, tmp_path, data)
    assert len(prepared(made)) == REQUESTS - 3
    assert made.report.rejections == {"too_long": 3}
    assert made.stats.rejected == {"too_long": 3}
    assert counted(made.stats) == REQUESTS


def test_a_model_that_knows_the_limit_by_its_newer_name_gets_it_in_a_further_batch(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    def line(body: dict[str, Any]) -> Any:
        if "max_tokens" in body:
            words = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return 400, error_body(words, "unsupported_parameter")
        assert body["max_completion_tokens"] == 1024
        return 200, chat_completion(turns_for(body))

    server.line = line
    assert len(prepared(builder(server, tmp_path, data, limit=5))) == 15
    assert len(submissions(server)) == 30
    assert set(server.answered.values()) == {1}
    prepared(builder(server, tmp_path, data))
    assert len(submissions(server)) == 33, "remembered"


def test_openais_own_models_get_the_newer_name_at_once_and_no_sampling_that_is_theirs_anyway(
    server: BatchServer, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitting, "normal_base_url", lambda url: server.url)
    bodies: list[dict[str, Any]] = []

    def line(body: dict[str, Any]) -> Any:
        bodies.append(body)
        return 200, chat_completion(turns_for(body))

    server.line = line
    prepared(builder(server, tmp_path, data, limit=1, temperature=1.0))
    prepared(builder(server, tmp_path, data, limit=1, temperature=0.5, top_p=0.9))
    assert len(bodies) == 6
    assert all(body["max_completion_tokens"] == 1024 for body in bodies)
    assert not any({"temperature", "top_p", "max_tokens"} & body.keys() for body in bodies[:3])
    assert all((b["temperature"], b["top_p"]) == (0.5, 0.9) for b in bodies[3:])


def test_answers_of_a_form_nobody_knows_count_as_paid_and_their_files_are_kept(
    server: BatchServer, tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = iter([(200, {"choices": [{"message": {"content": 7}}]})] * 2)
    server.line = lambda body: next(odd, (200, chat_completion(turns_for(body))))
    made = builder(server, tmp_path, data, max_requests=REQUESTS)
    with caplog.at_level(logging.WARNING, "mminstruct.completions.batch_api"):
        assert len(incomplete(made)) == REQUESTS - 2
    assert made.report.failures == {"bad_body": 2}
    assert "batch batch_1: 2 answers can't be read" in caplog.text
    assert "batch_1_output.jsonl" in server.left
    assert made.budget.spent.requests == REQUESTS


def test_damaged_lines_and_lines_about_unknown_requests_are_left_out(
    server: BatchServer, tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = iter(
        [
            '{"custom_id": "half a li',
            json.dumps({"custom_id": "ab" * 32, "response": {"status_code": 200, "body": {}}}),
            json.dumps({"custom_id": "not hex", "response": None}),
            "[]",
        ]
    )
    server.line = lambda body: next(odd, (200, chat_completion(turns_for(body))))
    made = builder(server, tmp_path, data)
    with caplog.at_level(logging.WARNING, "mminstruct.completions.batch_api"):
        assert len(incomplete(made)) == REQUESTS - 4
    assert made.report.failures == {"no_answer": 4}
    assert "left out 2 lines about unknown requests and 2 damaged lines" in caplog.text
    assert "batch_1_output.jsonl" in server.left, "there may be more in it than could be read"
    assert "batch_2_output.jsonl" not in server.left
    assert len(prepared(builder(server, tmp_path, data))) == REQUESTS


def test_a_line_longer_than_any_answer_is_that_requests_failure_alone(
    server: BatchServer, tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = iter([(200, chat_completion("x" * 34 * 2**20))])
    server.line = lambda body: next(odd, (200, chat_completion(turns_for(body))))
    made = builder(server, tmp_path, data, max_requests=REQUESTS)
    with caplog.at_level(logging.WARNING, "mminstruct.completions.batch_api"):
        assert len(incomplete(made)) == REQUESTS - 1
    assert made.report.failures == {"bad_body": 1}
    assert (
        "1 answer can't be read, the first: the answer is longer than 33,554,432 bytes"
        in caplog.text
    )
    assert made.budget.spent.requests == REQUESTS, "it is paid for"


def test_of_a_line_that_has_no_end_only_its_start_is_held(tmp_path: Path) -> None:
    with (tmp_path / "results.jsonl").open("w+b") as file:
        file.write(b"first\n{")
        file.seek(2 * 2**26)  # zeros that take no room
        file.write(b"\nlast")
        file.seek(0)
        chunks = list(read_lines(file))
    assert [[len(line) for line in chunk] for chunk in chunks] == [[6, 2**25 + 1], [4]]


def test_a_batch_that_fails_its_validation_is_shown_and_submitted_again_by_a_rerun(
    server: BatchServer, tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.errors = [{"code": "bad_model", "message": "m has no batches", "line": 3}]
    server.end = lambda batch: "failed" if batch["id"] == "batch_2" else "completed"
    made = builder(server, tmp_path, data)
    with caplog.at_level(logging.WARNING, "mminstruct.completions.batch_api"):
        assert len(incomplete(made)) == REQUESTS - 7
    assert made.report.failures == {"batch_failed": 7}
    assert "7 requests got no answer: batch batch_2: bad_model: m has no batches (line 3)" in (
        caplog.text
    )
    assert len(prepared(builder(server, tmp_path, data))) == REQUESTS
    assert set(server.answered.values()) == {1}


def test_a_batch_that_the_server_will_not_create_ends_the_run_with_its_words(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    refusal = (400, {}, error_body("m has no batches"))
    server.event = lambda step, number: refusal if step == "create:before" else None
    with pytest.raises(BackendUnusable, match="m has no batches; the batch was not created"):
        prepared(builder(server, tmp_path, data))
    assert server.steps["create:before"] == 1
    server.event = lambda step, number: None
    assert len(prepared(builder(server, tmp_path, data))) == REQUESTS
    assert len(server.uploads) == FILES, "the file was still there"


def test_a_file_that_is_not_known_yet_is_tried_again(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    def unknown(step: str, number: int) -> Any:
        if step != "create:before" or number % 2 == 0:
            return None
        return 400, {}, error_body(f"No such file {list(server.files)[-1]}")

    server.event = unknown
    limits = Limits(requests=7, poll_s=0.02, settle_s=5)
    assert len(prepared(builder(server, tmp_path, data, limits))) == REQUESTS
    assert len(submissions(server)) == REQUESTS


QUEUE_FULL = {
    "code": "token_limit_exceeded",
    "message": "Enqueued token limit reached for m. Limit: 90,000 enqueued tokens.",
}


def test_more_tokens_than_may_be_enqueued_go_up_in_smaller_files(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    server.errors = [QUEUE_FULL]
    server.end = lambda batch: "failed" if len(batch["lines"]) > 3 else "completed"
    made = builder(server, tmp_path, data)
    assert len(prepared(made)) == REQUESTS
    assert set(server.answered.values()) == {1}
    assert made.stats.failed == {}
    assert counted(made.stats) == REQUESTS


@pytest.mark.parametrize("status", [400, 429])
def test_a_queue_that_is_full_is_waited_for(
    server: BatchServer, tmp_path: Path, data: Path, status: int
) -> None:
    most = 0

    def full(step: str, number: int) -> Any:
        nonlocal most
        live = [b for b in server.batches.values() if b["status"] in ("validating", "in_progress")]
        most = max(most, len(live))
        if step == "create:before" and len(live) >= 2:
            return status, {}, {"error": QUEUE_FULL}
        return None

    server.event = full
    server.polls = 3
    limits = Limits(requests=3, poll_s=0.02, settle_s=1.0)
    assert len(prepared(builder(server, tmp_path, data, limits))) == REQUESTS
    assert most == 2
    assert len(submissions(server)) == REQUESTS
    assert server.steps["create:before"] < 20
    assert len(set(server.uploads)) == len(server.uploads) == 6, "no file goes up twice"


def stopped(made: InstructBuilder) -> str:
    """Why a run ended before its end."""
    with pytest.raises(MMInstructError) as raised:
        made.download_and_prepare()
    assert isinstance(raised.value, RunStopped)
    return str(raised.value)


def test_a_bound_on_requests_is_kept_and_the_next_run_goes_on_from_there(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    words = stopped(builder(server, tmp_path, data, max_requests=10))
    assert "max_requests 10: this run paid for 10 requests; run again" in words
    assert len(submissions(server)) == 10
    assert "paid for 5" in stopped(builder(server, tmp_path, data, max_requests=5))
    assert len(submissions(server)) == 15
    assert "paid for 0" in stopped(builder(server, tmp_path, data, max_requests=0))
    last = builder(server, tmp_path, data, max_requests=3)
    assert len(prepared(last)) == REQUESTS
    assert counted(last.stats) == REQUESTS
    assert len(submissions(server)) == len(set(submissions(server))) == REQUESTS


def answered_with(tokens: int) -> Callable[[dict[str, Any]], Any]:
    """Answers of so many tokens, to prompts that cost nothing."""
    usage = {"prompt_tokens": 100, "completion_tokens": tokens, "total_tokens": 100 + tokens}
    return lambda body: (200, chat_completion(turns_for(body), usage=usage))


PRICED = {"price_in": 0.0, "price_out": 1.0, "max_tokens": 400}
WORST_USD = 400e-6


def test_what_answers_leave_of_a_cost_goes_into_further_batches(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    server.line = answered_with(100)
    made = builder(server, tmp_path, data, max_cost=10.5 * WORST_USD, **PRICED)
    assert len(prepared(made)) == REQUESTS
    waves = [len(ids) for ids in server.submitted]
    assert waves == [7, 3, 7, 1], "ten by their worst case, then eight for what those left"
    assert made.budget.spent.usd == pytest.approx(REQUESTS * 100e-6)
    assert made.budget.spent.in_flight == 0


def test_a_cost_is_never_exceeded_and_a_handful_is_not_waited_for(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    server.line = answered_with(360)
    made = builder(server, tmp_path, data, max_cost=14.9 * WORST_USD, **PRICED)
    words = stopped(made)
    # 14 cost 12.6 worst cases. Of the 2.3 left, two more cost 1.8; the 0.5 then left is too little.
    assert [len(ids) for ids in server.submitted] == [7, 7, 2]
    assert "another batch would exceed or nearly reach max_cost $0.00596" in words
    assert "this run paid for 16 requests for $0.0058; run again" in words
    # 17 cost 16.15 worst cases. The 1.05 left would do for the last one, after another day.
    server.line = answered_with(380)
    server.submitted.clear()
    made = builder(server, tmp_path / "other", data, max_cost=17.2 * WORST_USD, **PRICED)
    stopped(made)
    assert [len(ids) for ids in server.submitted] == [7, 7, 3]
    assert made.budget.spent.in_flight == 0


def test_what_an_earlier_run_left_under_way_counts_in_a_bound(
    server: BatchServer, tmp_path: Path, data: Path, place: Place
) -> None:
    server.event = lambda at, count: KILL if (at, count) == ("retrieve:before", 1) else None
    process = place.start(server.url, "--batch_api", "--max_requests", "10")
    server.victim = process.pid
    assert finish(process).code == -signal.SIGKILL
    assert len(submissions(server)) == 10
    server.event = lambda at, count: None
    ended = place.run(server.url, "--batch_api", "--max_requests", "12")
    assert ended.code == 3, ended.err
    assert "this run paid for 12 requests" in " ".join(ended.err.split())
    assert len(submissions(server)) == len(set(submissions(server))) == 12


def test_what_failed_or_waits_for_the_queue_takes_nothing_of_a_bound(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    def full(step: str, number: int) -> Any:
        live = [b for b in server.batches.values() if b["status"] in ("validating", "in_progress")]
        return (400, {}, {"error": QUEUE_FULL}) if step == "create:before" and live else None

    server.event, server.polls = full, 2
    limits = Limits(requests=3, poll_s=0.02, settle_s=1.0)
    made = builder(server, tmp_path, data, limits, max_requests=14)
    assert "paid for 14 requests" in stopped(made)
    assert len(submissions(server)) == 14
    server.line = lambda body: {"code": "x", "message": "y"} if some(body) else answered(body)
    again = builder(server, tmp_path / "again", data, max_requests=REQUESTS)
    lost = REQUESTS - len(incomplete(again))
    assert lost
    assert (again.budget.spent.requests, again.budget.spent.in_flight) == (REQUESTS - lost, 0)


def answered(body: dict[str, Any]) -> Any:
    return 200, chat_completion(turns_for(body))


def test_a_bound_on_cost_goes_by_the_prices_of_batches(tmp_path: Path, data: Path) -> None:
    usual, batched = (
        builder(
            "https://api.openai.com/v1", tmp_path, data, model="gpt-4o-mini", batch_api=batch_api
        ).budget
        for batch_api in (False, True)
    )
    assert batched.usd_per_prompt_token == pytest.approx(usual.usd_per_prompt_token / 2)
    assert batched.usd_per_completion_token == pytest.approx(usual.usd_per_completion_token / 2)


def test_other_model_sources_and_streams_are_refused(
    server: BatchServer, tmp_path: Path, data: Path, place: Place
) -> None:
    with pytest.raises(UsageError, match="'fake' has no Batch API"):
        builder(server, tmp_path, data, backend="fake")
    with pytest.raises(UsageError, match="tokens_per_minute: requests of the Batch API"):
        builder(server, tmp_path, data, tokens_per_minute=1000)
    with pytest.raises(UsageError, match="no stream"):
        next(iter(builder(server, tmp_path, data).as_streaming_dataset("train")))
    assert place.run(server.url, "--batch_api", "--model_source", "fake").code == 2
    assert server.steps.total() == 0


def test_a_dry_run_submits_nothing(server: BatchServer, place: Place) -> None:
    assert place.run(server.url, "--batch_api", "--dry_run").code == 0
    assert server.steps.total() == 0


def test_it_is_an_argument_of_load_dataset(server: BatchServer, tmp_path: Path, data: Path) -> None:
    rows = datasets.load_dataset(
        "builders/coco2017_llava",
        split="train",
        backend="openai",
        model="m",
        base_url=server.url,
        data_dir=str(data),
        limit=1,
        cache_dir=str(tmp_path),
        response_store=str(tmp_path / "responses.sqlite"),
        batch_api=True,
    )
    assert len(rows) == len(submissions(server)) == 3


def test_of_several_servers_the_first_is_used_and_it_is_said(
    server: BatchServer, place: Place
) -> None:
    with LoopbackServer() as second:
        ended = place.run(server.url, "--openai_base_url", second.url, "--batch_api")
        assert ended.code == 0, ended.err
        assert f"batches go to {server.url} alone" in ended.err
        assert second.bodies == []
    assert len(submissions(server)) == REQUESTS


def test_the_progress_line_says_what_it_waits_for(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    made = builder(server, tmp_path, data)
    shown: set[str] = set()

    def look(step: str, number: int) -> None:
        shown.add(describe(made.stats, rate=None, width=79))
        for entry in server.batches.values():
            if entry["status"] == "in_progress":
                entry["request_counts"] = {"total": 7, "completed": 1, "failed": 1}

    server.event = look
    server.polls = 5
    prepared(made)
    assert "0/18  batches: 3 in progress, 3 done there, 3 failed there" in shown
    crowded = Stats(total=350_000, answered=120_000)
    crowded.waiting_for = ("batches: 5 in progress, 2 validating", "143,210 done there")
    line = describe(crowded, rate=3.0, width=79)
    assert line == "120,000/350,000  batches: 5 in progress, 2 validating, 143,210 done there"


def test_a_cache_folder_does_not_depend_on_it(
    server: BatchServer, tmp_path: Path, data: Path
) -> None:
    ways = [builder(server, tmp_path, data, batch_api=way) for way in (True, False)]
    assert len({made.config.create_config_id({}) for made in ways}) == 1


def test_llmock_is_served(tmp_path: Path, place: Place) -> None:
    pytest.importorskip("llmock")
    with llmock(tmp_path) as mock:
        process = place.start(f"{mock.url}/v1", "--batch_api", "--types", "conversation")
        finish(process)
        sent = [r for r in mock.requests() if r["path"].endswith("/chat/completions")]
    assert sent == []
    assert place.stored() == IMAGES
