"""What a server can do to a run, over real sockets: through the openai backend and the client."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from loopback import DROP, LoopbackServer, chat_completion

from mminstruct.backends import BackendOptions
from mminstruct.backends._refusals import retry_after
from mminstruct.backends.openai import OpenAIBackend, create, normal_base_url
from mminstruct.completions.budget import Budget
from mminstruct.completions.client import Client
from mminstruct.completions.job import Answered, Failed, Job, Outcome
from mminstruct.completions.stats import Stats
from mminstruct.completions.stopping import FAILED_AT_START
from mminstruct.completions.store import ResponseStore, Scope
from mminstruct.errors import RunStopped, UsageError
from mminstruct.prompts.messages import Prompt
from mminstruct.schema import Message, Sampling
from mminstruct.transport import RetryPolicy, public_url

QUICK = RetryPolicy(max_retries=3, base_s=0.01, cap_s=0.05)
IMPATIENT = replace(QUICK, patience_s=0.05)
# Bounds hangs, nothing else.
PATIENCE_S = 60
KEY = "sk-planted-in-test-faults"


def job(text: str, *shorter: str, sampling: Sampling | None = None) -> Job:
    """A request for something, and the shorter forms it could take."""
    prompts = [Prompt((Message("user", form),), few_shots=0) for form in (text, *shorter)]
    return Job(lambda: iter(prompts), sampling or Sampling(0.0), min_answer_tokens=1)


def scenes(count: int) -> list[Job]:
    """Some requests; ``first`` is the one that goes alone."""
    return [job("first"), *(job(f"scene {n}") for n in range(1, count))]


def asked(body: dict[str, Any]) -> str:
    """What a request asks."""
    text: str = body["messages"][-1]["content"]
    return text


def well(body: dict[str, Any]) -> dict[str, Any]:
    """The good answer to it."""
    return chat_completion(f"re {asked(body)}")


class Run:
    """What came of some jobs.

    Attributes:
        outcomes: in the order of the jobs.
        stats: the client's counters.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        url: str,
        store: Path,
        *,
        api_key: str | None = None,
        policy: RetryPolicy = QUICK,
        **options: Any,
    ) -> None:
        backend = OpenAIBackend(
            BackendOptions(model="m", base_urls=(url,), **{"timeout_s": 20.0, **options}),
            api_key=api_key,
        )
        self.stats = Stats()
        with Client(backend, ResponseStore(store), policy=policy, stats=self.stats) as client:
            self.outcomes: list[Outcome] = client.submit(jobs).result(PATIENCE_S)

    @property
    def texts(self) -> list[str]:
        """The texts of all answers."""
        return [o.completion.text for o in self.outcomes if isinstance(o, Answered)]

    @property
    def failures(self) -> list[Failed]:
        """What failed."""
        return [o for o in self.outcomes if isinstance(o, Failed)]


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    return tmp_path / "r.sqlite"


def once(fault: Any, *, every: int = 3) -> Callable[..., Any]:
    """An answer that does something bad to the first attempt of every third request."""
    seen: set[str] = set()

    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        text = asked(body)
        if text in seen or (text != "first" and len(seen) % every):
            seen.add(text)
            return well(body)
        seen.add(text)
        return fault

    return answer


def well_but(first: Any) -> Callable[[LoopbackServer, dict[str, Any]], Any]:
    """Good answers but for the first one."""
    left = [first]
    return lambda server, body: left.pop() if left else well(body)


def error_body(words: str, **more: Any) -> dict[str, Any]:
    """The body of an error in OpenAI's form."""
    return {"error": {"message": words, "type": "error", **more}}


@pytest.mark.parametrize(
    "fault",
    [
        (500, {}, error_body("internal")),
        (502, {}, "<html>Bad Gateway</html>"),
        (503, {"Retry-After": "0"}, ""),
        (529, {}, error_body("overloaded")),
        (408, {}, error_body("timeout")),
        (409, {}, error_body("conflict")),
        (429, {"Retry-After": "0.05"}, error_body("slow down")),
        (429, {"retry-after-ms": "50", "Retry-After": "3600"}, error_body("slow down")),
        (429, {"Retry-After": "soon"}, error_body("slow down")),
        (429, {"Retry-After": "inf"}, error_body("slow down")),
        (429, {"Retry-After": "nan"}, error_body("slow down")),
        (429, {"Retry-After": "-5"}, error_body("slow down")),
        (429, {"retry-after-ms": "soon"}, ["not", "an", "object"]),
        DROP,
        (200, {}, ""),
        (200, {}, "not json"),
        (200, {}, '{"choices": [{"message": {"content": "cut o'),
        (200, {}, "null"),
        (200, {}, []),
        (200, {}, {}),
        (200, {}, {"choices": None}),
        (200, {}, {"choices": []}),
        (200, {}, {"choices": [{}]}),
        (200, {}, {"choices": [{"message": None}]}),
        (200, {}, {"choices": [{"message": {"content": 7}}]}),
        (200, {}, error_body("the upstream provider failed")),
        (200, {"Content-Encoding": "gzip"}, "not gzip at all"),
    ],
    ids=str,
)
def test_a_fault_costs_another_attempt_and_no_answer(
    server: LoopbackServer, store_path: Path, fault: Any
) -> None:
    server.answer = once(fault)
    run = Run(scenes(12), server.url, store_path)
    assert run.texts == ["re first", *(f"re scene {n}" for n in range(1, 12))]
    assert run.stats.retries == 4
    assert len(server.bodies) == 16
    sent = len(server.bodies)
    assert Run(scenes(12), server.url, store_path).texts == run.texts
    assert len(server.bodies) == sent


@contextmanager
def raw_server(replies: Sequence[bytes]) -> Iterator[str]:
    """A server that sends given bytes to one connection after another, then a good answer."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(PATIENCE_S)
    good = json.dumps(chat_completion("whole")).encode()
    last = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
    closing = threading.Event()

    def serve() -> None:
        for reply in [*replies, *[last % (len(good), good)] * 20]:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                if closing.is_set():
                    return
                received = b""
                while b'"messages"' not in received:
                    received += connection.recv(65536)
                connection.sendall(reply)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        closing.set()
        with socket.create_connection(listener.getsockname()):
            pass
        thread.join(PATIENCE_S)
        listener.close()


_BODY = json.dumps(chat_completion("whole")).encode()
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HTTP/1.1 200",
        b"\x16\x03\x01 what is this?\r\n\r\n",
        _HEAD,
        _HEAD + b"Content-Length: 5000\r\n\r\n" + _BODY,
        _HEAD + b"Transfer-Encoding: chunked\r\n\r\n20\r\n" + _BODY[:32] + b"\r\n",
        _HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + _BODY,
        _HEAD
        + b"Content-Encoding: gzip\r\nConnection: close\r\n\r\n"
        + gzip.compress(_BODY, mtime=0)[:40],
        b"HTTP/1.1 500 Oh\r\nContent-Length: 50\r\n\r\nshort",
    ],
    ids=str,
)
def test_a_reply_cut_off_or_garbled_on_the_wire_costs_another_attempt(
    store_path: Path, reply: bytes
) -> None:
    with raw_server([reply]) as url:
        run = Run([job("first")], url, store_path)
    assert run.texts == ["whole"]
    assert run.stats.retries == 1


def test_retry_after_is_obeyed_by_all_requests(server: LoopbackServer, store_path: Path) -> None:
    arrived: dict[str, list[float]] = {}

    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        times = arrived.setdefault(asked(body), [])
        times.append(asyncio.get_running_loop().time())
        if asked(body) == "limited" and len(times) == 1:
            return (429, {"Retry-After": "1"}, error_body("slow down"))
        return well(body)

    server.answer = answer
    jobs = [job("first"), job("limited"), *(job(f"scene {n}") for n in range(40))]
    run = Run(jobs, server.url, store_path, max_concurrency=2)
    assert len(run.texts) == 42
    first, again = arrived["limited"]
    assert again - first >= 1
    # At most one other was under way when the 429 came.
    assert sum(times[0] - first < 1 for name, times in arrived.items() if "scene" in name) <= 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": " 2.5 "}, 2.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "x", "retry-after": "9"}, 9.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after-ms": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0.0),
        ({"retry-after": "Fri, 99 Dec 1999 23:59:59 GMT"}, None),
    ],
)
def test_retry_after_is_read_in_seconds_milliseconds_or_not_at_all(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_is_read_as_a_date_too() -> None:
    when = datetime.now(timezone.utc) + timedelta(seconds=100)
    seconds = retry_after({"retry-after": format_datetime(when, usegmt=True)})
    assert seconds is not None
    assert 90 < seconds <= 100


def test_retry_after_as_a_date_holds_back(server: LoopbackServer, store_path: Path) -> None:
    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        if len(server.bodies) > 1:
            return well(body)
        when = datetime.now(timezone.utc) + timedelta(seconds=2)
        return (429, {"Retry-After": format_datetime(when, usegmt=True)}, error_body("slow"))

    server.answer = answer
    assert Run([job("first")], server.url, store_path).texts == ["re first"]
    assert len(server.bodies) == 2


def test_an_answer_that_takes_too_long_is_asked_for_again(
    server: LoopbackServer, store_path: Path
) -> None:
    async def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        if asked(body) == "scene 3" and server.asked.count("scene 3") == 1:
            await asyncio.sleep(30)
        return well(body)

    server.answer = answer
    run = Run(scenes(8), server.url, store_path, timeout_s=0.5)
    assert len(run.texts) == 8
    assert server.asked.count("scene 3") == 2


def test_a_server_that_only_trickles_is_given_up_on_in_time(store_path: Path) -> None:
    # Some servers send white space while a request waits; without an end, that is no answer.
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def trickle() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(_HEAD + b"Content-Length: 100000\r\n\r\n")
            while not stop.wait(0.05):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

    thread = threading.Thread(target=trickle, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        with pytest.raises(RunStopped, match=r"no answer within 0\.5 s"):
            Run([job("first")], url, store_path, policy=RetryPolicy(0), timeout_s=0.5)
    finally:
        stop.set()
        thread.join(PATIENCE_S)
        listener.close()


def test_nobody_listening_stops_the_run_with_words(store_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    policy = RetryPolicy(base_s=0.01)
    with pytest.raises(RunStopped, match=rf"http://127\.0\.0\.1:{port}/v1: Cannot connect"):
        Run(scenes(20), f"http://127.0.0.1:{port}", store_path, policy=policy)


def test_a_server_that_goes_away_and_comes_back_costs_nothing(store_path: Path) -> None:
    with LoopbackServer(lambda server, body: well(body)) as before:
        Run(scenes(5), before.url, store_path)
        port = before.port
    with pytest.raises(RunStopped, match="Cannot connect"):
        Run(scenes(10), f"http://127.0.0.1:{port}", store_path)
    again = LoopbackServer(lambda server, body: well(body))
    again.port = port
    with again:
        assert len(Run(scenes(10), again.url, store_path).texts) == 10
    assert sorted(again.asked) == [f"scene {n}" for n in range(5, 10)]


@pytest.mark.parametrize(
    ("message", "finish", "expected"),
    [
        ({"content": "half a", "extra": {"field": [1]}}, "length", ("half a", "length")),
        ({"content": ""}, "content_filter", ("", "content_filter")),
        ({"content": None, "refusal": "I can't."}, "stop", ("I can't.", "content_filter")),
        ({"content": "half a"}, "model_length", ("half a", "length")),
        ({"content": "half a"}, "MAX_TOKENS", ("half a", "length")),
        ({"content": "half a"}, "model_context_window_exceeded", ("half a", "length")),
        ({"content": ""}, "sensitive", ("", "content_filter")),
        (None, "content_filter", ("", "content_filter")),
        ({"content": "x"}, "eos_token", ("x", "stop")),
        ({"content": "x"}, "odd", ("x", "other")),
        ({"content": "x"}, {"type": "stop", "matched": 151645}, ("x", "stop")),
        ({"content": None}, "RECITATION", ("", "content_filter")),
        ({"content": "A dog."}, None, ("A dog.", "stop")),
        ({"content": "A dog and a"}, None, ("A dog and a", "length")),
        ("A dog.", "stop", ("A dog.", "stop")),
        ({"content": ["A ", "dog."]}, "stop", ("A dog.", "stop")),
        ({"content": {"type": "output_text", "text": "A dog."}}, "stop", ("A dog.", "stop")),
        ({"content": None, "reasoning_content": "Hm."}, "stop", ("", "stop")),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
                    {"type": "text", "text": "A "},
                    {"type": "text", "text": "dog."},
                ]
            },
            "stop",
            ("A dog.", "stop"),
        ),
        ({"content": []}, "length", ("", "length")),
    ],
    ids=str,
)
def test_whatever_ends_an_answer_it_is_an_answer_and_is_paid_for_once(
    server: LoopbackServer,
    store_path: Path,
    message: dict[str, Any] | str | None,
    finish: str | dict[str, Any] | None,
    expected: tuple[str, str],
) -> None:
    server.answer = lambda server, body: {
        "choices": [{"message": message, "finish_reason": finish}]
    }
    for _ in range(2):
        (outcome,) = Run([job("first")], server.url, store_path).outcomes
        assert isinstance(outcome, Answered)
        assert (outcome.completion.text, outcome.completion.finish_reason) == expected
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "finish", ["error", "abort", "insufficient_system_resource", "network_error"]
)
def test_an_answer_that_the_server_gave_up_on_is_asked_for_again(
    server: LoopbackServer, store_path: Path, finish: str
) -> None:
    server.answer = well_but(chat_completion("re first, half a", finish_reason=finish))
    run = Run([job("first")], server.url, store_path)
    assert run.texts == ["re first"]
    assert run.stats.retries == 1


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [],
        "many",
        {"prompt_tokens": 0, "completion_tokens": 0},
        {"prompt_tokens": -1, "completion_tokens": -1},
        {"prompt_tokens": 2**32 - 1, "completion_tokens": 20},
        {"prompt_tokens": 100, "completion_tokens": 2**64 - 1},
        {"prompt_tokens": 1e300, "completion_tokens": 20},
        {"prompt_tokens": 100, "completion_tokens": None},
        {"prompt_tokens": float("nan"), "completion_tokens": 20},
        {"prompt_tokens": 100, "completion_tokens": float("inf")},
    ],
    ids=str,
)
def test_an_answer_is_worth_no_less_for_a_usage_that_cannot_be_true(
    server: LoopbackServer, store_path: Path, usage: object
) -> None:
    server.answer = lambda server, body: {**well(body), "usage": usage}
    run = Run(scenes(3), server.url, store_path)
    assert run.texts == ["re first", "re scene 1", "re scene 2"]
    assert len(server.bodies) == 3
    assert (run.stats.prompt_tokens, run.stats.completion_tokens) == (0, 0)


def test_a_usage_in_floats_is_one(server: LoopbackServer, store_path: Path) -> None:
    usage = {"prompt_tokens": 100.0, "completion_tokens": 20.0}
    server.answer = lambda server, body: {**well(body), "usage": usage}
    (outcome,) = Run([job("first")], server.url, store_path).outcomes
    assert isinstance(outcome, Answered)
    assert outcome.completion.prompt_tokens == 100
    assert isinstance(outcome.completion.prompt_tokens, int)


@pytest.mark.parametrize(
    ("total", "answer"), [(1120, 1020), (120, 20), (90, 20), (None, 20), ("many", 0), (2**70, 20)]
)
def test_what_a_model_thought_counts_where_only_the_total_has_it(
    server: LoopbackServer, store_path: Path, total: object, answer: int
) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": total}
    server.answer = lambda server, body: {**well(body), "usage": usage}
    assert Run([job("first")], server.url, store_path).stats.completion_tokens == answer


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ({"code": 402, "message": "Insufficient credits"}, "402: Insufficient credits"),
        ({"code": "401", "message": "No such key"}, "401: No such key"),
    ],
    ids=str,
)
def test_an_error_within_a_200_stops_the_run_as_its_status_would(
    server: LoopbackServer, store_path: Path, error: dict[str, Any], words: str
) -> None:
    server.answer = lambda server, body: {"error": error}
    with pytest.raises(RunStopped, match=words):
        Run(scenes(20), server.url, store_path)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "error",
    [{"code": 502, "message": "Bad gateway"}, {"message": "busy"}, "busy", {"code": [1]}],
    ids=str,
)
def test_an_error_within_a_200_is_tried_again_and_costs_nothing(
    server: LoopbackServer, store_path: Path, error: object
) -> None:
    server.answer = well_but({"error": error, "choices": None})
    budget = Budget(max_requests=3)
    backend = OpenAIBackend(BackendOptions(model="m", base_urls=(server.url,)), api_key=None)
    with Client(backend, ResponseStore(store_path), policy=QUICK, budget=budget) as client:
        outcomes = client.submit(scenes(3)).result(PATIENCE_S)
    assert all(isinstance(outcome, Answered) for outcome in outcomes)
    assert budget.spent.requests == 3
    assert len(server.bodies) == 4


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"message": {"content": "half"}, "error": {"code": 502, "message": "gone"}}]},
        {"choices": [{"message": {"content": ""}, "finish_reason": "stop"}], "error": "busy"},
        {"choices": [{"message": {"content": "half a"}}], "error": {"message": "gone"}},
    ],
    ids=str,
)
def test_an_error_beside_an_answer_that_is_none_is_tried_again(
    server: LoopbackServer, store_path: Path, body: dict[str, Any]
) -> None:
    server.answer = well_but(body)
    assert Run([job("first")], server.url, store_path).texts == ["re first"]
    assert Run([job("first")], server.url, store_path).texts == ["re first"]
    assert len(server.bodies) == 2


def test_an_answer_beside_an_empty_or_odd_error_is_an_answer(
    server: LoopbackServer, store_path: Path
) -> None:
    odd: list[object] = [None, {}, "", [1], False]
    server.answer = lambda server, body: {**well(body), "error": odd.pop()}
    assert len(Run(scenes(5), server.url, store_path).texts) == 5


def test_a_cost_is_bounded_where_the_server_does_not_count(
    server: LoopbackServer, store_path: Path
) -> None:
    usage = {"prompt_tokens": 0, "completion_tokens": 0}
    server.answer = lambda server, body: {**well(body), "usage": usage}
    budget = Budget(max_cost_usd=0.5, usd_per_completion_token=0.1 / Sampling(0.0).max_tokens)
    backend = OpenAIBackend(BackendOptions(model="m", base_urls=(server.url,)), api_key=None)
    with (
        pytest.raises(RunStopped, match="max_cost"),
        Client(backend, ResponseStore(store_path), policy=QUICK, budget=budget) as client,
    ):
        client.submit(scenes(12)).result(PATIENCE_S)
    assert len(server.bodies) == 5


def test_half_a_character_costs_no_other_attempt(server: LoopbackServer, store_path: Path) -> None:
    body = json.dumps(chat_completion("a \ud83d dog \U0001f600"))  # ASCII, with escapes
    server.answer = lambda server, asked: (200, {}, body)
    run = Run([job("first")], server.url, store_path)
    assert run.texts == ["a \ufffd dog \U0001f600"]
    assert run.stats.retries == 0


@pytest.mark.parametrize("status", [400, 413, 422])
def test_one_refused_request_costs_one_attempt_and_shows_the_servers_words(
    server: LoopbackServer, store_path: Path, status: int
) -> None:
    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        if asked(body) == "scene 7":
            return (status, {}, error_body("this picture is not for us"))
        return well(body)

    server.answer = answer
    run = Run(scenes(20), server.url, store_path)
    assert len(run.texts) == 19
    (failed,) = run.failures
    assert failed.cause == "refused"
    assert failed.message == f"{server.url} answered {status}: this picture is not for us"
    assert len(server.bodies) == 20


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_no_key_no_credit_no_permission_or_no_model_stops_the_run_after_one_attempt(
    server: LoopbackServer, store_path: Path, status: int
) -> None:
    server.answer = lambda server, body: (status, {}, error_body("the server's words"))
    with pytest.raises(RunStopped, match=rf"answered {status}: the server's words"):
        Run(scenes(20), server.url, store_path)
    assert len(server.bodies) == 1


@pytest.mark.parametrize("status", [400, 422])
def test_requests_that_are_all_refused_stop_the_run_after_three(
    server: LoopbackServer, store_path: Path, status: int
) -> None:
    server.answer = lambda server, body: (status, {}, {"detail": "no field 'messages', please"})
    with pytest.raises(RunStopped, match=rf"answered {status}: no field 'messages', please"):
        Run(scenes(20), server.url, store_path)
    assert len(server.bodies) == 3


@pytest.mark.parametrize("field", ["code", "type"])
def test_an_exhausted_quota_stops_the_run_though_it_is_a_429(
    server: LoopbackServer, store_path: Path, field: str
) -> None:
    body = {"error": {"message": "You exceeded your current quota", field: "insufficient_quota"}}
    server.answer = lambda server, _: (429, {}, body)
    with pytest.raises(RunStopped, match=r"current quota; the account has no credit left"):
        Run(scenes(20), server.url, store_path)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "body",
    [
        error_body("This model's maximum context length is 4096 tokens."),
        error_body("Input is long.", code="context_length_exceeded"),
        {"error": {"message": "the request exceeds the available context size, try increasing it"}},
        {"object": "error", "message": "prompt is too long for max_model_len 4096"},
        error_body("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096."),
    ],
    ids=str,
)
def test_a_prompt_too_long_for_the_server_is_sent_in_its_shorter_form(
    server: LoopbackServer, store_path: Path, body: dict[str, Any]
) -> None:
    server.answer = lambda server, asked_for: (
        (400, {}, body) if "long" in asked(asked_for) else well(asked_for)
    )
    for _ in range(2):
        run = Run([job("first"), job("a long one", "a short one")], server.url, store_path)
        assert run.texts == ["re first", "re a short one"]
    assert server.asked.count("a short one") == 1


@pytest.mark.parametrize(
    ("words", "asked_for"),
    [
        (
            "'max_tokens' is too large: 1024. This model's maximum context length is 1000 tokens "
            "and your request has 400 input tokens (1024 > 1000 - 400).",
            [("long", 1024), ("long", 600)],
        ),
        (
            "This model's maximum context length is 1000 tokens. However, you requested 1424 "
            "tokens (400 in the messages, 1024 in the completion).",
            [("long", 1024), ("long", 600)],
        ),
        (
            "This model's maximum context length is 1000 tokens. However, you requested 1024 "
            "output tokens and your prompt contains at least 1 input tokens.",
            [("long", 1024), ("short", 1024)],
        ),
        (
            "This model's maximum context length is 1000 tokens and your request has 1200 input "
            "tokens.",
            [("so much longer than it may be", 1024), ("short", 1024)],
        ),
    ],
    ids=["vllm", "openai", "vllm_at_least", "no_room"],
)
def test_the_room_that_a_server_tells_bounds_the_answer_before_the_prompt_is_cut(
    server: LoopbackServer, store_path: Path, words: str, asked_for: list[tuple[str, int]]
) -> None:
    server.answer = lambda server, body: (
        (400, {}, error_body(words))
        if (asked(body), body["max_tokens"]) == asked_for[0]
        else well(body)
    )
    assert len(Run([job(asked_for[0][0], "short")], server.url, store_path).texts) == 1
    assert [(asked(body), body["max_tokens"]) for body in server.bodies] == asked_for


def test_a_prompt_too_long_in_every_form_is_rejected_in_the_servers_words(
    server: LoopbackServer, store_path: Path
) -> None:
    body = error_body("maximum context length is 12 tokens")
    server.answer = lambda server, asked: (400, {}, body)
    (failed,) = Run([job("long", "short")], server.url, store_path).failures
    assert failed.rejected
    assert failed.message.endswith("answered 400: maximum context length is 12 tokens")


def test_a_model_that_knows_the_limit_under_its_newer_name_only_gets_that(
    server: LoopbackServer, store_path: Path
) -> None:
    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        if "max_tokens" in body:
            return (400, {}, error_body("Use 'max_completion_tokens' instead of 'max_tokens'."))
        return well(body)

    server.answer = answer
    run = Run(scenes(20), server.url, store_path)
    assert len(run.texts) == 20
    assert len(server.bodies) == 21
    assert [b.get("max_completion_tokens") for b in server.bodies] == [None] + [1024] * 20


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("fussy", [("top_p",), ("temperature", "top_p", "max_tokens")], ids=str)
def test_a_model_that_takes_no_sampling_of_ours_gets_none_where_that_means_the_same(
    server: LoopbackServer, store_path: Path, fussy: tuple[str, ...], status: int
) -> None:
    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        for name in fussy:
            if name in body:
                instead = " Use 'max_completion_tokens'." if name == "max_tokens" else ""
                words = f"Unsupported parameter: '{name}' is not supported.{instead}"
                return (status, {}, {"detail": words} if status == 422 else error_body(words))
        return well(body)

    server.answer = answer
    jobs = [job(f"scene {n}", sampling=Sampling(1.0)) for n in range(20)]
    assert len(Run(jobs, server.url, store_path).texts) == 20
    assert len(server.bodies) == 20 + len(fussy)


def test_a_model_that_takes_no_temperature_of_ours_is_told_of_with_what_to_do(
    server: LoopbackServer, store_path: Path
) -> None:
    refusal = error_body(
        "'temperature' does not support 0.7.", param="temperature", code="unsupported_value"
    )
    server.answer = lambda server, body: (400, {}, refusal)
    jobs = [job(f"scene {n}", sampling=Sampling(0.7)) for n in range(20)]
    with pytest.raises(RunStopped, match=r"does not support 0\.7\. \(give --temperature 1\)"):
        Run(jobs, server.url, store_path)
    assert len(server.bodies) == 1


def test_no_more_requests_are_in_flight_than_asked_for(
    server: LoopbackServer, store_path: Path
) -> None:
    seen: set[str] = set()

    async def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        await asyncio.sleep(0.05)
        text = asked(body)
        if text not in seen and text.endswith("7"):
            seen.add(text)
            return (500, {}, error_body("once"))
        return well(body)

    server.answer = answer
    run = Run(scenes(200), server.url, store_path, max_concurrency=7)
    assert len(run.texts) == 200
    assert server.max_in_flight == 7


def test_sampling_travels_and_a_seed_only_if_there_is_one(
    server: LoopbackServer, store_path: Path
) -> None:
    given = Sampling(temperature=0.3, top_p=0.8, max_tokens=55, seed=9)
    Run([job("a", sampling=given), job("b", sampling=Sampling(0.0))], server.url, store_path)
    first, second = sorted(server.bodies, key=asked)
    assert first == {
        "model": "m",
        "messages": [{"role": "user", "content": "a"}],
        "temperature": 0.3,
        "top_p": 0.8,
        "max_tokens": 55,
        "seed": 9,
    }
    assert "seed" not in second


def test_a_key_is_sent_as_bearer_and_without_one_nothing_is(
    server: LoopbackServer, store_path: Path
) -> None:
    Run([job("a")], server.url, store_path, api_key=KEY)
    Run([job("b")], server.url, store_path)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert "Authorization" not in server.headers[1]


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/", "/v1/chat/completions", "/v1/?a=b"])
def test_the_base_url_is_taken_in_every_spelling(
    server: LoopbackServer, store_path: Path, tail: str
) -> None:
    server.answer = lambda server, body: well(body)
    url = f"http://127.0.0.1:{server.port}{tail}"
    assert Run([job("first")], url, store_path).texts == ["re first"]
    # All are the same endpoint.
    assert Run([job("first")], server.url, store_path).texts == ["re first"]
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("given", "root"),
    [
        (None, "https://api.openai.com/v1"),
        ("http://localhost:8000", "http://localhost:8000/v1"),
        (" http://localhost:8000/v1/ ", "http://localhost:8000/v1"),
        ("https://h/api/v1/completions", "https://h/api/v1"),
        ("https://h/v1beta/openai/", "https://h/v1beta/openai"),
        ("https://h/some/path", "https://h/some/path/v1"),
        ("https://u:p@h/v1?k=v#f", "https://u:p@h/v1?k=v"),
        ("https://h/v1.5/openai", "https://h/v1.5/openai"),
        ("https://h/inference/chat/completions", "https://h/inference"),
        (
            "https://h/openai/deployments/m/chat/completions?api-version=1",
            "https://h/openai/deployments/m?api-version=1",
        ),
    ],
)
def test_a_base_url_becomes_the_root_of_the_api(given: str | None, root: str) -> None:
    assert normal_base_url(given) == root


@pytest.mark.parametrize(
    "given",
    [
        "",
        "localhost:8000",
        "ftp://h/v1",
        "http://",
        "/v1",
        "h",
        "http://h:port/v1",
        "http://a..b/v1",
        f"http://{'a' * 70}.org/v1",
    ],
)
def test_what_is_no_http_url_is_refused_with_an_example(given: str) -> None:
    with pytest.raises(UsageError, match=r"expected something like http://localhost:8000/v1"):
        normal_base_url(given)


def test_a_public_url_names_neither_user_nor_token() -> None:
    assert public_url("https://user:pass@Host:8/v1?token=secret#x") == "https://host:8/v1"
    assert "pass" not in public_url("http://user:p@ss@host/v1")


@pytest.mark.parametrize("key", ["sk-a\nb", "sk-a b", "sk-\u200bab", "sk-é"], ids=ascii)
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UsageError, match="OPENAI_API_KEY: expected") as raised:
        create(BackendOptions(model="m"))
    assert key[:4] not in str(raised.value)


def test_the_line_break_after_a_key_is_not_part_of_it(
    server: LoopbackServer, monkeypatch: pytest.MonkeyPatch, store_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    backend = create(BackendOptions(model="m", base_urls=(server.url,)))
    with Client(backend, ResponseStore(store_path), policy=QUICK) as client:
        client.submit([job("first")]).result(PATIENCE_S)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("retries", [0, 3])
def test_a_server_that_asks_for_a_pause_of_hours_ends_the_run(
    server: LoopbackServer, store_path: Path, retries: int
) -> None:
    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        if asked(body) == "first":
            return well(body)
        return (429, {"Retry-After": "86400"}, error_body("that was all for today"))

    server.answer = answer
    with pytest.raises(RunStopped, match=r"all for today; the server asks for a pause of 24\.0 h"):
        Run(scenes(20), server.url, store_path, policy=RetryPolicy(max_retries=retries))


def test_user_password_and_query_of_the_url_reach_the_server_and_nobody_else(
    server: LoopbackServer, store_path: Path
) -> None:
    url = f"http://user:secret-password@127.0.0.1:{server.port}/v1?token=secret-token"
    server.answer = lambda server, body: (
        well(body) if asked(body) == "first" else (400, {}, error_body(f"no: {KEY} {url}"))
    )
    run = Run(scenes(2), url, store_path, api_key=KEY)
    assert server.headers[0]["Authorization"] == "Basic dXNlcjpzZWNyZXQtcGFzc3dvcmQ="
    assert server.queries[0] == "token=secret-token"
    assert run.texts == ["re first"]
    for secret in ("secret", KEY):
        assert secret not in run.failures[0].message


@pytest.mark.parametrize(
    "fault",
    [
        (400, {}, error_body("x" * 490 + KEY)),
        (400, {}, error_body("Incorrect key " + KEY)),
        (400, {}, KEY),
        (500, {}, {"error": KEY}),
        (200, {}, f"key {KEY}"),
        (200, {}, {"error": {"message": KEY}}),
        (200, {}, "y" * 490 + KEY),
    ],
    ids=lambda fault: str(fault)[:60],
)
def test_a_key_that_the_server_repeats_is_not_shown(
    server: LoopbackServer, store_path: Path, fault: Any
) -> None:
    server.answer = lambda server, body: well(body) if asked(body) == "first" else fault
    run = Run(scenes(2), server.url, store_path, api_key=KEY)
    (failed,) = run.failures
    assert KEY[:6] not in failed.message
    assert "***" in failed.message


def test_everything_at_once_loses_nothing(server: LoopbackServer, store_path: Path) -> None:
    faults: list[Any] = [
        (500, {}, error_body("x")),
        (429, {"Retry-After": "0.02"}, error_body("x")),
        DROP,
        (200, {}, "{"),
        (200, {}, {"choices": []}),
    ]
    attempts: dict[str, int] = {}

    async def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        text = asked(body)
        number = sum(text.encode())
        attempts[text] = attempts.get(text, 0) + 1
        await asyncio.sleep(number % 5 / 500)
        if text != "first" and attempts[text] <= number % 3:
            return faults[(number + attempts[text]) % len(faults)]
        if number % 17 == 0 and text != "first":
            return (400, {}, error_body("not this one"))
        return well(body)

    server.answer = answer
    run = Run(scenes(400), server.url, store_path, max_concurrency=50)
    refused = [f for f in run.failures if f.cause == "refused"]
    assert len(run.texts) + len(refused) == 400
    assert len(run.failures) == len(refused) > 0
    # What has been answered or refused was not asked for again.
    assert len(server.bodies) == run.stats.sent == 400 + run.stats.retries
    with ResponseStore(store_path) as store:
        assert len(store) == len(run.texts)


def replicas(*urls: str, **options: Any) -> OpenAIBackend:
    """A backend with several endpoints."""
    return OpenAIBackend(BackendOptions(model="m", base_urls=urls, **options), api_key=None)


def nowhere() -> str:
    """A URL where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return f"http://127.0.0.1:{closed.getsockname()[1]}/v1"


def test_of_two_servers_one_killed_in_mid_run_costs_no_answer_and_no_retry_of_a_request(
    server: LoopbackServer, store_path: Path
) -> None:
    async def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        await asyncio.sleep(0.02)
        return well(body)

    server.answer = answer
    other = LoopbackServer(answer)
    with other:
        backend, stats = replicas(server.url, other.url, max_concurrency=16), Stats()
        # A request that loses its server has no retry of its own to spend.
        policy = RetryPolicy(max_retries=0)
        with Client(backend, ResponseStore(store_path), policy=policy, stats=stats) as client:
            futures = [
                client.submit([job(f"scene {n}") for n in range(b, b + 20)])
                for b in range(0, 400, 20)
            ]

            async def die(server: LoopbackServer, body: dict[str, Any]) -> Any:
                return DROP

            while len(other.bodies) < 50:
                time.sleep(0.005)
            other.answer = die
            outcomes = [o for future in futures for o in future.result(PATIENCE_S)]
    assert all(isinstance(outcome, Answered) for outcome in outcomes)
    assert len(server.bodies) + len(other.bodies) == stats.sent == 400 + stats.retries
    # Those in flight as it died, and a probe now and then.
    assert stats.retries <= 16 + 5
    assert stats.failed == {}
    assert backend.identity()["endpoint"] == server.url
    assert backend.replicas[0] is backend
    assert backend.endpoints == (server.url, other.url)


def test_a_server_that_is_down_from_the_start_is_done_without(
    server: LoopbackServer, store_path: Path
) -> None:
    server.answer = lambda server, body: well(body)
    backend, stats = replicas(nowhere(), server.url), Stats()
    with Client(backend, ResponseStore(store_path), policy=QUICK, stats=stats) as client:
        outcomes = client.submit(scenes(40)).result(PATIENCE_S)
    assert all(isinstance(outcome, Answered) for outcome in outcomes)
    assert len(server.bodies) == 40
    assert stats.retries <= 5


@pytest.mark.parametrize("order", [1, -1])
def test_a_server_without_the_model_is_done_without(
    server: LoopbackServer, store_path: Path, order: int, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer = lambda server, body: well(body)
    unknown = (404, {}, error_body("no model 'm' here"))
    with LoopbackServer(lambda server, body: unknown) as other:
        backend, stats = replicas(*[server.url, other.url][::order]), Stats()
        with Client(backend, ResponseStore(store_path), policy=QUICK, stats=stats) as client:
            outcomes = client.submit(scenes(40)).result(PATIENCE_S)
    assert all(isinstance(outcome, Answered) for outcome in outcomes)
    assert (len(server.bodies), stats.failed) == (40, {})
    assert caplog.text.count("no model 'm' here") == 1


def test_two_servers_without_the_model_stop_the_run_at_once(
    server: LoopbackServer, store_path: Path
) -> None:
    unknown = (404, {}, error_body("no model 'm' here"))
    server.answer = lambda server, body: unknown
    with (
        LoopbackServer(lambda server, body: unknown) as other,
        pytest.raises(RunStopped, match="no model 'm' here"),
        Client(replicas(server.url, other.url), ResponseStore(store_path), policy=QUICK) as client,
    ):
        client.submit(scenes(40)).result(PATIENCE_S)
    assert len(server.bodies) == len(other.bodies) == 1


def test_two_servers_that_are_both_down_stop_the_run_after_a_few_attempts(store_path: Path) -> None:
    backend, stats = replicas(nowhere(), nowhere()), Stats()
    with (
        pytest.raises(RunStopped, match="Cannot connect"),
        Client(backend, ResponseStore(store_path), policy=QUICK, stats=stats) as client,
    ):
        client.submit(scenes(40)).result(PATIENCE_S)
    assert stats.sent <= 6


def test_an_allowance_in_the_headers_is_kept_to(server: LoopbackServer, store_path: Path) -> None:
    level, at = 20.0, 0.0

    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        nonlocal level, at
        now = asyncio.get_running_loop().time()
        level = min(20.0, level + (now - (at or now)) * 20)
        at = now
        full_s = f"{(20 - max(0.0, level - 1)) / 20 * 1000:.0f}ms"
        headers = {"x-ratelimit-limit-requests": "20", "x-ratelimit-reset-requests": full_s}
        if level < 1:
            return (429, {**headers, "x-ratelimit-remaining-requests": "0"}, error_body("slow"))
        level -= 1
        return (200, {**headers, "x-ratelimit-remaining-requests": str(int(level))}, well(body))

    server.answer = answer
    run = Run(scenes(60), server.url, store_path)
    assert len(run.texts) == 60
    assert run.stats.retries <= 2


def test_a_request_that_takes_too_long_is_asked_as_often_of_several_servers_as_of_one(
    store_path: Path,
) -> None:
    async def slow(server: LoopbackServer, body: dict[str, Any]) -> Any:
        if asked(body) == "slow":
            await asyncio.sleep(PATIENCE_S)
        return well(body)

    with LoopbackServer(slow) as one, LoopbackServer(slow) as other:
        backend = replicas(one.url, other.url, timeout_s=0.3)
        with Client(backend, ResponseStore(store_path), policy=QUICK) as client:
            (answer,) = client.submit([job("first")]).result(PATIENCE_S)
            (failure,) = client.submit([job("slow")]).result(PATIENCE_S)
        times = (one.asked + other.asked).count("slow")
    assert isinstance(answer, Answered)
    assert isinstance(failure, Failed) and failure.cause == "timeout"
    assert times == 3


@pytest.mark.parametrize("pause_s", [30, 4000])
def test_a_pause_that_one_of_several_servers_asks_for_binds_no_other(
    server: LoopbackServer, store_path: Path, pause_s: int
) -> None:
    server.answer = lambda server, body: well(body)
    refusal = (429, {"Retry-After": str(pause_s)}, error_body("slow down"))
    with LoopbackServer(lambda server, body: refusal) as other:
        backend = replicas(other.url, server.url)
        started = time.monotonic()
        with Client(backend, ResponseStore(store_path), policy=QUICK) as client:
            outcomes = client.submit(scenes(40)).result(PATIENCE_S)
        assert time.monotonic() - started < 30  # a pause, not how fast it is
    assert all(isinstance(outcome, Answered) for outcome in outcomes)
    assert len(server.bodies) == 40


def test_servers_that_all_ask_for_a_pause_of_hours_end_the_run(store_path: Path) -> None:
    refusal = (429, {"Retry-After": "4000"}, error_body("slow down"))
    with (
        LoopbackServer(lambda server, body: refusal) as one,
        LoopbackServer(lambda server, body: refusal) as other,
        pytest.raises(RunStopped, match="pause of 1.1 hours"),
        Client(replicas(one.url, other.url), ResponseStore(store_path), policy=QUICK) as client,
    ):
        client.submit(scenes(4)).result(PATIENCE_S)
    assert len(one.bodies) == len(other.bodies) == 1


def frames(*events: Any) -> str:
    """Server-sent events."""
    return ": wait\n\n" + "".join(f"data: {json.dumps(e)}\n\n" for e in events) + "data: [DONE]\n\n"


def piece(text: str, finish: str | None = None) -> dict[str, Any]:
    """A piece of a streamed answer."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"text": "A dog\tsat.", "finish_reason": "stop"}]},
        json.dumps(chat_completion("A dog\tsat.")).replace("\\t", "\t"),
        frames(chat_completion("A dog\tsat.")),
        frames(piece("A dog"), piece("\tsat."), piece("", "stop"), {"choices": [], "usage": {}}),
    ],
    ids=["completion", "raw_tab", "one_event", "stream"],
)
def test_an_answer_in_another_form_is_read(
    server: LoopbackServer, store_path: Path, body: Any
) -> None:
    server.answer = lambda server, asked_for: body
    assert Run([job("first")], server.url, store_path).texts == ["A dog\tsat."]
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "raw",
    [
        gzip.compress(json.dumps(chat_completion("A dog.")).encode(), mtime=0),
        json.dumps(chat_completion("A dog.")).replace("loopback", "caf\xe9").encode("latin-1"),
    ],
    ids=["gzip_unlabelled", "latin1"],
)
def test_an_answer_in_another_encoding_is_read(store_path: Path, raw: bytes) -> None:
    with raw_server([_HEAD + b"Content-Length: %d\r\n\r\n" % len(raw) + raw]) as url:
        assert Run([job("first")], url, store_path).texts == ["A dog."]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("<html><title>Open WebUI</title>Sign in</html>", "Open WebUI Sign in; no OpenAI API at"),
        ('{"answer": "in a form of its own"}', "not a chat completion: .*in a form of its own"),
    ],
    ids=["page", "own_form"],
)
def test_a_body_that_never_gets_better_ends_the_run_after_two_tries(
    server: LoopbackServer, store_path: Path, body: str, words: str
) -> None:
    server.answer = lambda server, asked_for: (200, {}, body)
    with pytest.raises(RunStopped, match=words):
        Run(scenes(20), server.url, store_path)
    assert server.asked == ["first", "first"]


def test_half_a_stream_is_asked_for_again(server: LoopbackServer, store_path: Path) -> None:
    server.answer = well_but((200, {}, frames(piece("half an ans"))))
    assert Run([job("first")], server.url, store_path).texts == ["re first"]


@pytest.mark.parametrize("status", [404, 405, 501])
def test_an_address_without_the_api_is_asked_once(
    server: LoopbackServer, store_path: Path, status: int
) -> None:
    server.answer = lambda server, asked_for: (status, {}, {"detail": "not here"})
    with pytest.raises(RunStopped, match="no OpenAI API at this address; some have it at /api/v1"):
        Run(scenes(20), server.url, store_path)
    assert len(server.bodies) == 1


def test_a_redirect_keeps_the_prompt_on_the_same_server(
    server: LoopbackServer, store_path: Path
) -> None:
    here = f"{server.url}/chat/completions"
    server.answer = lambda server, body: (
        (302, {"Location": f"{here}?moved=1"}, "")
        if "moved" not in server.queries[-1]
        else well(body)
    )
    assert len(Run(scenes(5), server.url, store_path).texts) == 5
    assert len(server.bodies) == 6
    server.answer = lambda server, body: (
        307,
        {"Location": here.replace("127.0.0.1", "localhost")},
        "",
    )
    with pytest.raises(RunStopped, match=r"redirects to http://localhost:.*where the prompts"):
        Run([job("new")], server.url, store_path)


def test_a_prompt_that_a_filter_takes_is_its_rows_refusal_and_is_asked_once(
    server: LoopbackServer, store_path: Path
) -> None:
    filtered = (400, {}, error_body("not for us, says the policy", code="content_filter"))
    server.answer = lambda server, body: filtered if asked(body) < "scene 2" else well(body)
    for _ in range(2):
        outcomes = Run(scenes(4), server.url, store_path).outcomes
        found = [(o.completion.finish_reason, o.completion.text) for o in outcomes]  # type: ignore[union-attr]
        refused = ("content_filter", "not for us, says the policy")
        assert found == [refused, refused, ("stop", "re scene 2"), ("stop", "re scene 3")]
    assert len(server.bodies) == 4


def test_an_empty_answer_is_asked_for_again_by_the_next_run(
    server: LoopbackServer, store_path: Path
) -> None:
    server.answer = lambda server, body: chat_completion("")
    (failed,) = Run([job("first")], server.url, store_path).failures
    assert (failed.cause, failed.message) == ("empty", "the server's answer is empty")
    server.answer = lambda server, body: well(body)
    assert Run([job("first")], server.url, store_path).texts == ["re first"]
    assert len(server.bodies) == 2


def test_a_rerun_asks_for_all_that_are_always_empty_where_most_are_answered(
    server: LoopbackServer, store_path: Path
) -> None:
    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        empty = asked(body).endswith(("007", "207", "407", "607", "807"))
        return chat_completion("") if empty else well(body)

    server.answer = answer
    for sent in (6500, 32):
        server.bodies.clear()
        run = Run(scenes(6500), server.url, store_path)
        assert Counter(failure.cause for failure in run.failures) == {"empty": 32}
        assert len(server.bodies) == sent


def test_a_window_is_learnt_once_for_prompts_that_are_clearly_longer(
    server: LoopbackServer, store_path: Path
) -> None:
    refusal = (400, {}, error_body("Prompt exceeds max length"))
    server.answer = lambda server, body: refusal if asked(body).count("word") > 25 else well(body)
    jobs = [job(*(f"{n} " + "word " * length for length in (90, 60, 30, 10))) for n in range(40)]
    assert len(Run(jobs, server.url, store_path).texts) == 40
    lengths = [text.count("word") for text in server.asked]
    assert lengths[:4] == [90, 60, 30, 10]
    assert lengths.count(90) + lengths.count(60) == 2
    assert lengths.count(10) == 40


def test_a_system_prompt_that_is_refused_goes_before_the_first_words_for_good(
    server: LoopbackServer, store_path: Path
) -> None:
    server.answer = lambda server, body: (
        (400, {}, error_body("System role not supported"))
        if body["messages"][0]["role"] == "system"
        else well(body)
    )
    messages = (Message("system", "Be brief."), Message("user", "What is it?"))
    prompt = Prompt(messages, few_shots=0)
    jobs = [Job(lambda: iter([prompt]), Sampling(0.0, seed=n), 1) for n in range(3)]
    texts = Run(jobs, server.url, store_path).texts
    assert texts == ["re Be brief.\n\nWhat is it?"] * 3
    assert len(server.bodies) == 4


@pytest.mark.parametrize(
    ("asked_for", "answers", "stops"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.2", ["gpt-4o"], True),
        ("m", ["gpt-4o", "meta-llama/llama-3-8b"], True),
        ("m", ["gemma-3-1b-it-qat:2"], False),
        ("gpt-4o", ["gpt-4o-2024-08-06"], False),
        ("mistral-small", ["/models/Mistral-Small-24B.gguf"], False),
    ],
)
def test_another_model_than_the_one_asked_for_ends_the_run(
    server: LoopbackServer, store_path: Path, asked_for: str, answers: list[str], stops: bool
) -> None:
    server.answer = lambda server, body: {
        **well(body),
        "model": answers[len(server.bodies) % len(answers)],
    }
    options = BackendOptions(model=asked_for, base_urls=(server.url,))
    with Client(OpenAIBackend(options, api_key=None), ResponseStore(store_path)) as client:
        future = client.submit(scenes(6))
        if not stops:
            assert len(future.result(PATIENCE_S)) == 6
            return
        with pytest.raises(RunStopped, match="rows can name one model and its terms"):
            future.result(PATIENCE_S)


def test_prompts_that_a_server_cuts_are_warned_of_and_then_end_the_run(
    server: LoopbackServer, store_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    usage = {"prompt_tokens": 1026, "completion_tokens": 20}
    server.answer = lambda server, body: {**well(body), "usage": usage}
    jobs = [job(f"{n} " + "word " * 2000) for n in range(100)]
    with pytest.raises(
        RunStopped, match="counts 1,026 tokens in every prompt.*--context_window 1026"
    ):
        Run(jobs, server.url, store_path, max_concurrency=1)
    assert [r.message.partition(" tokens")[0] for r in caplog.records] == [
        "the server counts 1,026"
    ]
    assert len(server.bodies) <= 32


def test_one_request_that_hangs_first_holds_up_no_other(
    server: LoopbackServer, store_path: Path
) -> None:
    others_done = asyncio.Event()

    async def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        if asked(body) == "first":
            await others_done.wait()
        elif asked(body) == "scene 4":
            others_done.set()
        return well(body)

    server.answer = answer
    run = Run(scenes(5), server.url, store_path, policy=IMPATIENT, max_concurrency=2)
    assert len(run.texts) == 5
    assert server.asked.count("first") == 1


def test_once_a_slow_first_request_is_answered_none_waits_for_the_one_that_came_beside_it(
    server: LoopbackServer, store_path: Path
) -> None:
    beside, others_done = asyncio.Event(), asyncio.Event()

    async def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        number = len(server.bodies)
        if number == 1:
            await beside.wait()
        elif number == FAILED_AT_START:  # the last that may try beside it
            beside.set()
            await asyncio.wait_for(others_done.wait(), 30)
        elif number == 8:
            others_done.set()
        return well(body)

    server.answer = answer
    run = Run(scenes(8), server.url, store_path, policy=IMPATIENT, max_concurrency=8)
    assert len(run.texts) == 8
    assert len(server.bodies) == 8


@pytest.mark.parametrize("cause", [500, "page"])
def test_what_fails_alone_is_given_up_while_others_are_answered(
    server: LoopbackServer, store_path: Path, cause: object
) -> None:
    fault = (
        (500, {}, error_body("list index out of range")) if cause == 500 else (200, {}, "<html>")
    )
    server.answer = lambda server, body: fault if asked(body) == "scene 3" else well(body)
    policy = RetryPolicy(max_retries=50, base_s=0.01, cap_s=0.05)
    run = Run(scenes(9), server.url, store_path, policy=policy)
    assert [len(run.texts), len(run.failures)] == [8, 1]
    assert server.asked.count("scene 3") == 5
    assert run.stats.retried_for == ("500" if cause == 500 else "no api")


@pytest.mark.parametrize(("max_pause_s", "waits"), [(1.0, False), (3.0, True)])
def test_a_pause_is_kept_to_unless_it_is_longer_than_it_may_be(
    server: LoopbackServer, store_path: Path, max_pause_s: float, waits: bool
) -> None:
    server.answer = well_but((429, {"Retry-After": "2"}, error_body("slow down")))
    policy = RetryPolicy(base_s=0.01, max_pause_s=max_pause_s)
    if waits:
        assert Run([job("first")], server.url, store_path, policy=policy).texts == ["re first"]
        return
    with pytest.raises(RunStopped, match=r"until \d\d:\d\d; --max_pause 2 waits for it"):
        Run([job("first")], server.url, store_path, policy=policy)


@pytest.mark.parametrize("reset", ["2h", "99999999"])
def test_an_allowance_that_is_used_up_for_hours_ends_the_run(
    server: LoopbackServer, store_path: Path, reset: str
) -> None:
    told = {"x-ratelimit-limit-requests": "50", "x-ratelimit-remaining-requests": "0"}
    told["x-ratelimit-reset-requests"] = reset
    server.answer = lambda server, body: (200, told, well(body))
    with pytest.raises(RunStopped, match="allowance is used up until .*--max_pause"):
        Run(scenes(5), server.url, store_path)


def test_a_higher_limit_pays_for_answers_that_were_cut_alone(
    server: LoopbackServer, store_path: Path
) -> None:
    server.answer = lambda server, body: chat_completion(
        f"re {asked(body)}", finish_reason="length" if asked(body) == "scene 1" else "stop"
    )
    for limit, sent in ((100, 3), (200, 4), (50, 7)):
        scope = Scope("config", "conversation", "m", limit)
        jobs = [
            replace(job(f"scene {n}", sampling=Sampling(0.0, 1.0, limit)), scope=scope)
            for n in range(3)
        ]
        assert len(Run(jobs, server.url, store_path).texts) == 3
        assert len(server.bodies) == sent


def test_another_order_of_servers_pays_for_nothing(
    server: LoopbackServer, store_path: Path
) -> None:
    server.answer = lambda server, body: well(body)
    with LoopbackServer(lambda server, body: well(body)) as other:
        for urls in ((server.url, other.url), (other.url, server.url)):
            options = BackendOptions(model="m", base_urls=urls)
            with Client(OpenAIBackend(options, api_key=None), ResponseStore(store_path)) as client:
                assert len(client.submit(scenes(8)).result(PATIENCE_S)) == 8
            assert len(server.bodies) + len(other.bodies) == 8


def test_further_fields_and_headers_are_sent_and_known_but_for_secrets(
    server: LoopbackServer, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_KEY", "gateway-secret-1")
    engine = {
        "extra_body": '{"chat_template_kwargs": {"enable_thinking": false}}',
        "header": ["api-key=$GATEWAY_KEY", "x-team=vision"],
    }
    bare = BackendOptions(model="m", base_urls=(server.url,))
    identity = OpenAIBackend(bare, api_key=None).identity()
    assert identity.keys() == {"backend", "endpoint", "model"}
    backend = OpenAIBackend(replace(bare, engine=engine), api_key=None)
    assert backend.identity() == {
        **identity,
        "extra_body": '{"chat_template_kwargs":{"enable_thinking":false}}',
        "header": '["x-team=vision"]',
    }
    server.answer = lambda server, body: (400, {}, error_body("no gateway-secret-1 here"))
    with (
        pytest.raises(RunStopped, match=r"no \*\*\* here"),
        Client(backend, ResponseStore(store_path), policy=QUICK) as client,
    ):
        client.submit(scenes(4)).result(PATIENCE_S)
    assert server.bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert server.headers[0]["api-key"] == "gateway-secret-1"
    assert server.headers[0]["x-team"] == "vision"


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"extra_body": "{no json"}, "extra_body: not JSON"),
        ({"extra_body": "[1]"}, "extra_body: "),
        ({"extra_body": {"temperature": 0}}, "'temperature' is said with --temperature"),
        ({"extra_body": "missing.json"}, "extra_body: .*No such file"),
        ({"header": ["api-key=sk-written-out"]}, r"--header 'api-key=\$VARIABLE'"),
        ({"header": ["x-team"]}, "expected NAME=VALUE"),
        ({"header": ["api-key=$NOT_SET_ANYWHERE"]}, "variable .NOT_SET_ANYWHERE is not set"),
    ],
    ids=str,
)
def test_fields_and_headers_that_cannot_be_sent_are_refused(
    engine: dict[str, Any], words: str
) -> None:
    options = BackendOptions(model="m", base_urls=("http://h/v1",), engine=engine)
    with pytest.raises(UsageError, match=words) as caught:
        create(options)
    assert "written-out" not in str(caught.value)
