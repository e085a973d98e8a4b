"""The client above all backends: what it sends, holds back, stores, gives up and never loses."""

from __future__ import annotations

import asyncio
import gc
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mminstruct.backends import BackendOptions
from mminstruct.backends.fake import FakeBackend
from mminstruct.completions.budget import Budget
from mminstruct.completions.client import Client
from mminstruct.completions.job import Answered, Failed, Job, Outcome
from mminstruct.completions.store import Lengths, ResponseStore, Scope, key_of
from mminstruct.errors import (
    BackendUnusable,
    ContextTooLong,
    MMInstructError,
    RequestRefused,
    RunStopped,
    StoreError,
    TransientError,
)
from mminstruct.prompts.messages import Prompt
from mminstruct.schema import Completion, Message, Request, Sampling
from mminstruct.transport import RetryPolicy

QUICK = RetryPolicy(max_retries=4, base_s=0.001, cap_s=0.002)
# Bounds hangs, nothing else.
PATIENCE_S = 60


def prompt_of(text: str, shorter: int = 0) -> Prompt:
    """A prompt of one message."""
    return Prompt((Message("user", text),), few_shots=0, dropped_boxes=shorter)


def job(text: str, *shorter: str, max_tokens: int = 100, min_answer_tokens: int = 10) -> Job:
    """A request for something, and the shorter forms it could take."""
    prompts = [prompt_of(form, number) for number, form in enumerate((text, *shorter))]
    return Job(lambda: iter(prompts), Sampling(0.0, 1.0, max_tokens), min_answer_tokens)


def text_of(request: Request) -> str:
    """What was asked."""
    return request.messages[-1].content


class Asked:
    """A script that notes what it is asked and answers as it is told to.

    Attributes:
        texts: what was asked, in order of arrival.
        at_s: when, monotonic.
        requests: the requests themselves.
    """

    def __init__(self, answer: Callable[[str, int], str] = lambda text, _: f"re {text}") -> None:
        self.answer = answer
        self.texts: list[str] = []
        self.at_s: list[float] = []
        self.requests: list[Request] = []

    def __call__(self, request: Request) -> Completion:
        """Answer with the text asked about and how often it was asked before."""
        text = text_of(request)
        before = self.texts.count(text)
        self.texts.append(text)
        self.at_s.append(time.monotonic())
        self.requests.append(request)
        return Completion(self.answer(text, before), prompt_tokens=3, completion_tokens=5)


class Backend(FakeBackend):
    """The fake one, counting what is in flight."""

    def __init__(
        self,
        script: Callable[[Request], Completion],
        *,
        parallel: int = 8,
        window: int | None = None,
        latency_s: float = 0.0,
    ) -> None:
        options = BackendOptions(max_concurrency=parallel, context_window=window)
        super().__init__(options, script, latency_s)
        self.in_flight = 0
        self.max_in_flight = 0

    async def complete(self, request: Request) -> Completion:
        """As the fake one."""
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            return await super().complete(request)
        finally:
            self.in_flight -= 1


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    return tmp_path / "r.sqlite"


def stored(path: Path) -> int:
    """How many answers a closed store holds."""
    with ResponseStore(path) as store:
        return len(store)


def ask(client: Client, jobs: Sequence[Job]) -> list[Outcome]:
    """The outcomes of one batch."""
    return client.submit(jobs).result(PATIENCE_S)


def answer_text(outcome: Outcome) -> str:
    """The text of an outcome that must be an answer."""
    assert isinstance(outcome, Answered), outcome
    return outcome.completion.text


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once it holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def test_outcomes_come_in_the_order_of_the_jobs(store_path: Path) -> None:
    script = Asked()
    with Client(Backend(script), ResponseStore(store_path)) as client:
        outcomes = ask(client, [job(f"scene {n}") for n in range(40)])
    assert [answer_text(o) for o in outcomes] == [f"re scene {n}" for n in range(40)]
    assert (client.stats.answered, client.stats.sent, client.stats.done) == (40, 40, 40)
    assert (client.stats.prompt_tokens, client.stats.completion_tokens) == (120, 200)


def test_stored_answers_are_never_asked_for(store_path: Path) -> None:
    jobs = [job(f"scene {n}") for n in range(40)]
    with Client(Backend(Asked()), ResponseStore(store_path)) as client:
        first = ask(client, jobs)
    script = Asked()
    with Client(Backend(script), ResponseStore(store_path)) as client:
        again = ask(client, [*jobs, job("scene 40")])
    assert again[:-1] == first
    assert script.texts == ["scene 40"]
    assert (client.stats.stored, client.stats.answered) == (40, 1)


def test_jobs_have_answers_only_if_none_of_them_would_be_sent(store_path: Path) -> None:
    script = Asked()
    with Client(Backend(script, window=100), ResponseStore(store_path)) as client:
        too_long = job(" ".join(["word"] * 200))
        ask(client, [job("scene 1"), job("scene 2")])
        assert client.has_answers([job("scene 1"), too_long, job("scene 2")])
        assert not client.has_answers([job("scene 1"), job("scene 3")])
        assert client.has_answers([])
    assert script.texts == ["scene 1", "scene 2"]
    assert client.stats.stored == 0


def test_an_empty_answer_is_stored_like_any_other(store_path: Path) -> None:
    for expected in (["scene"], []):
        script = Asked(lambda *_: "")
        with Client(Backend(script), ResponseStore(store_path)) as client:
            assert answer_text(ask(client, [job("scene")])[0]) == ""
        assert script.texts == expected


def test_equal_requests_at_the_same_time_are_asked_for_once(store_path: Path) -> None:
    script = Asked(lambda text, before: f"answer {before}")
    with Client(Backend(script, latency_s=0.02), ResponseStore(store_path)) as client:
        ask(client, [job("first")])
        futures = [client.submit([job("scene"), job("scene")]) for _ in range(5)]
        texts = {answer_text(o) for future in futures for o in future.result(PATIENCE_S)}
    assert script.texts == ["first", "scene"]
    assert texts == {"answer 0"}
    assert (client.stats.answered, client.stats.stored, client.stats.done) == (2, 9, 11)


def test_equal_requests_that_are_refused_cost_one_attempt(store_path: Path) -> None:
    def answer(text: str, before: int) -> str:
        if text == "scene":
            raise RequestRefused("never")
        return text

    script = Asked(answer)
    with Client(Backend(script, latency_s=0.02), ResponseStore(store_path)) as client:
        ask(client, [job("first")])
        outcomes = ask(client, [job("scene"), job("scene")])
    assert script.texts == ["first", "scene"]
    assert outcomes == [Failed("refused", "never")] * 2


def test_transient_failures_are_tried_again_until_they_succeed(store_path: Path) -> None:
    def answer(text: str, before: int) -> str:
        if before < 3:
            raise TransientError("later", cause="http_503")
        return text

    script = Asked(answer)
    with Client(Backend(script), ResponseStore(store_path), policy=QUICK) as client:
        outcomes = ask(client, [job(f"scene {n}") for n in range(20)])
    assert [answer_text(o) for o in outcomes] == [f"scene {n}" for n in range(20)]
    assert Counter(script.texts) == {f"scene {n}": 4 for n in range(20)}
    assert client.stats.retries == 60


def test_what_fails_every_time_costs_its_retries_and_its_row_alone(store_path: Path) -> None:
    def answer(text: str, before: int) -> str:
        if text == "bad":
            raise TransientError("broken", cause="http_500")
        return text

    script = Asked(answer)
    with Client(Backend(script), ResponseStore(store_path), policy=QUICK) as client:
        outcomes = ask(client, [job("a"), job("bad"), job("b")])
    assert outcomes[1] == Failed("http_500", "broken")
    assert [answer_text(outcomes[i]) for i in (0, 2)] == ["a", "b"]
    assert Counter(script.texts) == {"a": 1, "bad": 1 + QUICK.max_retries, "b": 1}
    assert client.stats.failed == {"http_500": 1}
    assert stored(store_path) == 2


def test_a_request_that_waits_for_its_retry_holds_up_nobody(store_path: Path) -> None:
    def answer(text: str, before: int) -> str:
        if text == "bad" and before == 0:
            raise TransientError("later", cause="http_500")
        return text

    policy = RetryPolicy(base_s=1000.0, cap_s=1000.0)
    backend = Backend(Asked(answer), parallel=1)
    with Client(backend, ResponseStore(store_path), policy=policy) as client:
        ask(client, [job("first")])
        waiting = client.submit([job("bad")])
        wait_until(lambda: client.stats.retries == 1)
        assert answer_text(ask(client, [job("scene")])[0]) == "scene"
        assert not waiting.done()


def test_waits_double_and_vary_up_to_the_cap() -> None:
    policy, rng = RetryPolicy(base_s=1.0, cap_s=60.0), random.Random(0)
    for retry, mean in ((0, 1.0), (1, 2.0), (4, 16.0), (10, 60.0)):
        waits = [policy.wait_s(retry, None, rng) for _ in range(200)]
        assert 0.75 * mean <= min(waits) < 0.8 * mean
        assert 1.2 * mean < max(waits) <= 1.25 * mean
    asked = [policy.wait_s(0, 7.0, rng) for _ in range(200)]
    assert min(asked) >= 7.0
    assert len(set(asked)) > 1


def test_retry_after_holds_back_every_request(store_path: Path) -> None:
    def answer(text: str, before: int) -> str:
        if text == "limited" and before == 0:
            raise TransientError("slow down", cause="http_429", retry_after_s=0.6)
        return text

    script = Asked(answer)
    with Client(Backend(script), ResponseStore(store_path), policy=QUICK) as client:
        ask(client, [job("first")])
        waiting = client.submit([job("limited")])
        wait_until(lambda: "limited" in script.texts)
        ask(client, [job(f"scene {n}") for n in range(20)])
        waiting.result(PATIENCE_S)
    limited_s = script.at_s[1]
    assert script.texts[1] == "limited"
    assert min(script.at_s[2:]) - limited_s >= 0.6


def test_no_more_requests_are_in_flight_than_the_backend_takes(store_path: Path) -> None:
    def answer(text: str, before: int) -> str:
        if before == 0 and int(text) % 3 == 0:
            raise TransientError("later", cause="http_500")
        return text

    backend = Backend(Asked(answer), parallel=5, latency_s=0.005)
    with Client(backend, ResponseStore(store_path), policy=QUICK) as client:
        futures = [client.submit([job(str(20 * b + n)) for n in range(20)]) for b in range(10)]
        for future in futures:
            future.result(PATIENCE_S)
    assert backend.max_in_flight == 5
    assert client.stats.answered == 200


def test_one_refusal_costs_one_row_and_one_attempt(store_path: Path) -> None:
    def answer(text: str, before: int) -> str:
        if text == "scene 17":
            raise RequestRefused("http://h answered 400: not this one")
        return text

    script = Asked(answer)
    with Client(Backend(script), ResponseStore(store_path)) as client:
        outcomes = ask(client, [job(f"scene {n}") for n in range(40)])
    assert [i for i, o in enumerate(outcomes) if isinstance(o, Failed)] == [17]
    assert outcomes[17] == Failed("refused", "http://h answered 400: not this one")
    assert len(script.texts) == len(set(script.texts)) == 40
    assert stored(store_path) == 39


def test_refusals_at_the_start_stop_the_run_after_a_few_attempts(store_path: Path) -> None:
    def answer(text: str, before: int) -> str:
        raise RequestRefused("http://h answered 400: no such parameter")

    script = Asked(answer)
    with (
        pytest.raises(RunStopped, match="no such parameter"),
        Client(Backend(script), ResponseStore(store_path)) as client,
    ):
        ask(client, [job(f"scene {n}") for n in range(100)])
    assert len(script.texts) == 3


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_unknown_model_or_a_forbidden_one_stops_the_run_after_one_attempt(
    store_path: Path, status: int
) -> None:
    def answer(text: str, before: int) -> str:
        raise RequestRefused(f"http://h answered {status}: not for you", unknown_here=True)

    script = Asked(answer)
    with (
        pytest.raises(RunStopped, match="not for you"),
        Client(Backend(script), ResponseStore(store_path)) as client,
    ):
        ask(client, [job(f"scene {n}") for n in range(100)])
    assert len(script.texts) == 1


def test_failures_of_the_very_first_requests_are_no_more_than_their_own(store_path: Path) -> None:
    def answer(text: str, before: int) -> str:
        if text == "scene 0":
            raise TransientError("crashed", cause="http_500")
        if text == "scene 1":
            raise RequestRefused("http://h answered 400: not this one")
        return text

    script = Asked(answer)
    with Client(Backend(script), ResponseStore(store_path), policy=QUICK) as client:
        outcomes = ask(client, [job(f"scene {n}") for n in range(20)])
    assert [type(o) for o in outcomes] == [Failed, Failed] + [Answered] * 18


def test_a_server_that_answers_500_to_everything_stops_the_run(store_path: Path) -> None:
    def answer(text: str, before: int) -> str:
        raise TransientError("http://h answered 500: broken", cause="http_500")

    script = Asked(answer)
    with (
        pytest.raises(RunStopped, match="answered 500: broken"),
        Client(Backend(script), ResponseStore(store_path), policy=QUICK) as client,
    ):
        ask(client, [job(f"scene {n}") for n in range(100)])
    # No request is sent more than twice for nothing.
    assert script.texts == [f"scene {n}" for n in (0, 0, 1, 1, 2, 2)]


def test_a_wrong_key_stops_the_run_at_once(store_path: Path) -> None:
    def answer(text: str, before: int) -> str:
        raise BackendUnusable("http://h answered 401: wrong key")

    script = Asked(answer)
    with (
        pytest.raises(RunStopped, match="wrong key") as caught,
        Client(Backend(script), ResponseStore(store_path)) as client,
    ):
        ask(client, [job(f"scene {n}") for n in range(100)])
    assert len(script.texts) == 1
    assert isinstance(caught.value.__cause__, BackendUnusable)


def test_a_client_that_is_closed_in_its_own_thread_does_not_wait_for_itself(
    store_path: Path,
) -> None:
    # The garbage collector may find a stream that was left in any thread.
    threads: list[threading.Thread] = []

    def answer(text: str, before: int) -> str:
        if not threads:
            threads.append(threading.current_thread())
            asyncio.get_running_loop().call_soon(client.__exit__, GeneratorExit, None, None)
        return text

    script = Asked(answer)
    client = Client(Backend(script, latency_s=0.2), ResponseStore(store_path)).__enter__()
    future = client.submit([job(f"scene {n}") for n in range(8)])
    wait_until(lambda: len(threads) > 0)
    threads[0].join(PATIENCE_S)
    assert not threads[0].is_alive()
    assert future.done()
    assert stored(store_path) == len(script.texts) > 0


def test_what_is_asked_after_the_end_reads_no_store(store_path: Path) -> None:
    # It is closed by another thread then, and SQLite takes the process along.
    class Store(ResponseStore):
        read = 0

        def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Completion]:
            self.read += 1
            return super().get_many(keys)

    store = Store(store_path)
    with pytest.raises(RunStopped), Client(Backend(Asked()), store) as client:
        assert len(ask(client, [job("before")])) == store.read == 1
        client.stop()
        ask(client, [job("after")])
    assert store.read == 1


def test_a_stream_in_a_cycle_is_closed_when_the_garbage_collector_finds_it(
    store_path: Path,
) -> None:
    threads: list[threading.Thread] = []

    def answer(text: str, before: int) -> str:
        threads.append(threading.current_thread())
        return f"re {text}"

    def stream() -> Iterator[str]:
        with Client(Backend(Asked(answer)), ResponseStore(store_path)) as client:
            yield answer_text(ask(client, [job("a scene")])[0])

    def leave() -> None:
        left: list[Any] = [stream()]
        left.append(left)
        assert next(left[0]) == "re a scene"

    leave()
    gc.collect()
    threads[0].join(PATIENCE_S)
    assert not threads[0].is_alive()
    assert stored(store_path) == 1


def test_a_run_in_a_thread_goes_on_after_the_main_one_has_ended(store_path: Path) -> None:
    program = f"""
import threading, time
from pathlib import Path
from test_client import Asked, Backend, Client, ResponseStore, ask, job
def work():
    store = ResponseStore(Path({str(store_path)!r}))
    with Client(Backend(Asked(), latency_s=0.1), store) as client:
        for n in range(10):
            ask(client, [job(f"scene {{n}}")])
threading.Thread(target=work).start()
"""
    subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, check=True, timeout=PATIENCE_S
    )
    assert stored(store_path) == 10


def test_half_a_character_in_a_servers_words_costs_its_row_alone(store_path: Path) -> None:
    def answer(text: str, before: int) -> str:
        if text == "scene 1":
            raise RequestRefused("Input rejected: \ud83d")
        return text

    with Client(Backend(Asked(answer)), ResponseStore(store_path)) as client:
        outcomes = ask(client, [job(f"scene {n}") for n in range(3)])
    assert outcomes[1] == Failed("refused", "Input rejected: ?")


def test_a_key_withdrawn_on_the_way_stops_the_run_and_keeps_the_answers(store_path: Path) -> None:
    def answer(text: str, before: int) -> str:
        if len(script.texts) > 30:
            raise BackendUnusable("http://h answered 401: wrong key")
        return text

    script = Asked(answer)
    with (
        pytest.raises(RunStopped, match="wrong key"),
        Client(Backend(script, parallel=4), ResponseStore(store_path)) as client,
    ):
        ask(client, [job(f"scene {n}") for n in range(100)])
    assert len(script.texts) <= 34
    assert stored(store_path) == 30


def test_nobody_listening_stops_the_run_after_a_few_attempts(store_path: Path) -> None:
    def answer(text: str, before: int) -> str:
        raise TransientError("http://h: connection refused", cause="unreachable")

    script = Asked(answer)
    policy = RetryPolicy(max_retries=8, base_s=0.001)
    with (
        pytest.raises(RunStopped, match="connection refused"),
        Client(Backend(script), ResponseStore(store_path), policy=policy) as client,
    ):
        ask(client, [job(f"scene {n}") for n in range(100)])
    assert len(script.texts) == 3


def test_a_hundred_failures_in_a_row_stop_the_run(store_path: Path) -> None:
    def answer(text: str, before: int) -> str:
        if int(text) >= 20:
            raise RequestRefused("http://h answered 400: no credit")
        return text

    script = Asked(answer)
    with (
        pytest.raises(RunStopped, match=r"100 requests in a row failed; the last: .*no credit"),
        Client(Backend(script, parallel=4), ResponseStore(store_path)) as client,
    ):
        ask(client, [job(f"{n}") for n in range(20)])
        ask(client, [job(f"{n}") for n in range(20, 1000)])
    assert 120 <= len(script.texts) <= 124
    assert stored(store_path) == 20


@pytest.mark.parametrize(
    ("error", "each"),
    [
        (RequestRefused("no"), 20),
        (RequestRefused("no"), 3),
        (TransientError("no", cause="http_500"), 20),
    ],
)
def test_what_failed_for_good_does_not_keep_a_rerun_from_its_end(
    store_path: Path, error: MMInstructError, each: int
) -> None:
    # In a rerun nothing but the failures is asked for, so that they come in a row.
    def answer(text: str, before: int) -> str:
        if int(text) % each == 0:
            raise error
        return text

    sent = []
    for _ in range(2):
        script = Asked(answer)
        with Client(Backend(script), ResponseStore(store_path), policy=QUICK) as client:
            batches = [[job(f"{20 * b + n}") for n in range(20)] for b in range(150)]
            futures = [client.submit(batch) for batch in batches]
            outcomes = [o for future in futures for o in future.result(PATIENCE_S)]
        failed = [i for i, o in enumerate(outcomes) if isinstance(o, Failed)]
        assert failed == list(range(0, 3000, each))
        sent.append(set(script.texts))
    assert sent[1] == {str(n) for n in failed}


def test_failures_that_end_last_as_they_were_retried_do_not_stop_the_run(
    store_path: Path,
) -> None:
    def answer(text: str, before: int) -> str:
        if int(text) % 10 == 9:
            raise TransientError("no", cause="http_500")
        return text

    policy = RetryPolicy(max_retries=3, base_s=0.2)
    backend = Backend(Asked(answer), parallel=64)
    with Client(backend, ResponseStore(store_path), policy=policy) as client:
        outcomes = ask(client, [job(str(n)) for n in range(1500)])
    assert sum(isinstance(o, Failed) for o in outcomes) == 150


def test_prompts_too_long_for_the_server_are_shortened_until_they_fit(store_path: Path) -> None:
    def answer(text: str, before: int) -> str:
        if len(text.split()) > 3:
            raise ContextTooLong("http://h answered 400: maximum context length")
        return text

    script = Asked(answer)
    jobs = [job("a b c d e", "a b c d", "a b c", "a b"), job("f g h i"), job("j k")]
    with Client(Backend(script), ResponseStore(store_path)) as client:
        outcomes = ask(client, jobs)
    assert isinstance(outcomes[0], Answered)
    assert outcomes[0].prompt == prompt_of("a b c", 2)
    assert isinstance(outcomes[1], Failed)
    assert outcomes[1].cause == "too_long"
    assert outcomes[1].rejected
    assert outcomes[1].message.startswith("even the shortest prompt is too long: ")
    assert answer_text(outcomes[2]) == "j k"
    assert sorted(script.texts) == ["a b c", "a b c d", "a b c d e", "f g h i", "j k"]
    assert client.stats.rejected == {"too_long": 1}

    with Client(Backend(script), ResponseStore(store_path)) as client:
        assert ask(client, jobs[:1]) == outcomes[:1]
    assert script.texts.count("a b c") == 1


def test_a_prompt_keeps_its_form_if_the_server_says_there_is_room_enough(
    store_path: Path,
) -> None:
    """The server has a window of 40, and counts words as the fake backend does."""

    def script(request: Request) -> Completion:
        tokens = len(text_of(request).split())
        if tokens + request.sampling.max_tokens > 40:
            raise ContextTooLong("too long", room=40 - tokens)
        asked.append((tokens, request.sampling.max_tokens))
        return Completion("fine", "stop", tokens, 1)

    asked: list[tuple[int, int]] = []
    forms = [" ".join(["word"] * count) for count in (39, 28, 10)]
    jobs = [job(*forms, max_tokens=100, min_answer_tokens=12)]
    for backend in (Backend(script), Backend(script, window=40)):
        with Client(backend, ResponseStore(store_path)) as client:
            (outcome,) = ask(client, jobs)
        assert isinstance(outcome, Answered)
        assert outcome.prompt.dropped_boxes == 1
    # The second run, with a window of its own, has found the answer of the first.
    assert asked == [(28, 12)]


def test_a_prompt_is_sent_in_the_longest_form_that_fits_the_window(store_path: Path) -> None:
    script = Asked()
    forms = [" ".join(["word"] * count) for count in (30, 20, 10)]
    jobs = [
        job(*forms, max_tokens=100, min_answer_tokens=15),
        job(*forms, max_tokens=16, min_answer_tokens=15),
        job("word", max_tokens=16, min_answer_tokens=15),
        # An answer can't need more room than max_tokens gives it.
        job(" ".join(["other"] * 30), max_tokens=5, min_answer_tokens=15),
    ]
    with Client(Backend(script, window=36), ResponseStore(store_path)) as client:
        outcomes = ask(client, jobs)
    assert [o.prompt.dropped_boxes for o in outcomes if isinstance(o, Answered)] == [1, 1, 0, 0]
    sent = {(len(text_of(r).split()), r.sampling.max_tokens) for r in script.requests}
    # Tokens of the prompt, max_tokens: the second bounded by what the first leaves of 36.
    assert sent == {(20, 16), (1, 16), (30, 5)}


def test_what_fits_no_window_is_rejected_without_a_request(store_path: Path) -> None:
    script = Asked()
    with Client(Backend(script, window=20), ResponseStore(store_path)) as client:
        (outcome,) = ask(client, [job("a " * 40, "a " * 15)])
    assert outcome == Failed(
        "too_long",
        "the shortest prompt has 15 tokens, which leaves 5 of the window's 20 for an answer "
        "that needs 10",
        rejected=True,
    )
    assert script.texts == []


def test_the_failure_of_one_job_loses_no_other_of_its_batch(store_path: Path) -> None:
    class Unforeseen(Exception):
        pass

    def answer(text: str, before: int) -> str:
        if text == "bad":
            raise Unforeseen
        return text

    script = Asked(answer)
    jobs = [job("first"), job("bad"), *(job(f"scene {n}") for n in range(20))]
    with Client(Backend(script, latency_s=0.01), ResponseStore(store_path)) as client:
        with pytest.raises(Unforeseen):
            ask(client, jobs)
        wait_until(lambda: client.stats.answered == 21)
    assert stored(store_path) == 21


def test_cancelling_a_future_leaves_its_requests_to_be_answered_and_stored(
    store_path: Path,
) -> None:
    script = Asked()
    with Client(Backend(script, latency_s=0.05), ResponseStore(store_path)) as client:
        ask(client, [job("first")])
        future = client.submit([job(f"scene {n}") for n in range(20)])
        wait_until(lambda: client.stats.in_flight > 0)
        assert future.cancel()
        with pytest.raises(CancelledError):
            future.result(PATIENCE_S)
        wait_until(lambda: client.stats.answered == 21)
    assert stored(store_path) == 21


def test_an_interrupted_run_stores_the_answers_in_flight_and_sends_no_more(
    store_path: Path,
) -> None:
    script = Asked()
    backend = Backend(script, parallel=6, latency_s=0.4)
    with (
        pytest.raises(KeyboardInterrupt),
        Client(backend, ResponseStore(store_path)) as client,
    ):
        ask(client, [job("first")])
        future = client.submit([job(f"scene {n}") for n in range(100)])
        wait_until(lambda: client.stats.in_flight == 6)
        raise KeyboardInterrupt
    assert future.done()
    assert (client.stats.sent, client.stats.in_flight) == (7, 0)
    assert stored(store_path) == 7


def test_an_interrupted_run_waits_no_longer_than_told_to(store_path: Path) -> None:
    backend = Backend(Asked(), latency_s=3600.0)
    policy = RetryPolicy(drain_s=0.1)
    with (
        pytest.raises(KeyboardInterrupt),
        Client(backend, ResponseStore(store_path), policy=policy) as client,
    ):
        client.submit([job("scene")])
        wait_until(lambda: client.stats.in_flight == 1)
        raise KeyboardInterrupt


def test_a_run_that_stops_by_itself_waits_for_all_answers_on_their_way(
    store_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class SlowBackend(Backend):
        async def complete(self, request: Request) -> Completion:
            text = request.messages[-1].content
            if text.startswith("scene"):
                under_way.append(text)
                if len(under_way) == 6:
                    all_sent.set()
                await asyncio.sleep(takes_s)
            if text == "bad":
                await all_sent.wait()
                raise BackendUnusable("no credit left")
            return await super().complete(request)

    jobs = [job("first"), job("bad"), *(job(f"scene {n}") for n in range(6))]
    for finish_s, stored in ((0.1, 1), (30.0, 7)):
        takes_s = 3600.0 if stored == 1 else 0.5
        under_way: list[str] = []
        all_sent = asyncio.Event()
        policy = RetryPolicy(drain_s=0.1, finish_s=finish_s)
        path = store_path.with_name(f"{finish_s}.sqlite")
        backend = SlowBackend(Asked(), parallel=8)
        with (
            pytest.raises(RunStopped, match="no credit left"),
            Client(backend, ResponseStore(path), policy=policy) as client,
        ):
            ask(client, jobs)
        assert client.stats.answered == stored
        given_up = "answers given up on their way, after 0 s: 6" in caplog.text
        assert given_up == (stored == 1)
        caplog.clear()


def test_interrupting_ends_the_wait_of_a_retry_at_once(store_path: Path) -> None:
    def answer(text: str, before: int) -> str:
        raise TransientError("later", cause="http_429", retry_after_s=3600.0)

    with (
        pytest.raises(KeyboardInterrupt),
        Client(Backend(Asked(answer)), ResponseStore(store_path)) as client,
    ):
        future = client.submit([job("scene")])
        wait_until(lambda: client.stats.retries == 1)
        raise KeyboardInterrupt
    assert isinstance(future.exception(PATIENCE_S), RunStopped)


class FullStore(ResponseStore):
    """A store whose disk is full from the n-th answer on."""

    def __init__(self, path: Path, room: int) -> None:
        super().__init__(path)
        self.room = room

    async def put(self, key: bytes, completion: Completion, scope: Scope | None = None) -> None:
        """As usual, until there is no room left."""
        self.room -= 1
        if self.room < 0:
            raise StoreError("disk full")
        await super().put(key, completion, scope)


def test_nothing_is_sent_any_more_once_answers_cannot_be_stored(store_path: Path) -> None:
    script = Asked()
    with (
        pytest.raises(StoreError, match="disk full"),
        Client(Backend(script, parallel=4, latency_s=0.01), FullStore(store_path, 30)) as client,
    ):
        futures = [client.submit([job(f"{10 * b + n}") for n in range(10)]) for b in range(20)]
        wait_until(lambda: all(future.done() for future in futures))
        for future in futures:
            future.result()
    # Thirty are stored; lost are those in flight when the first could not be.
    assert stored(store_path) == 30
    assert len(script.texts) <= 30 + 2 * 4


def test_nothing_is_sent_any_more_once_the_store_cannot_be_read(store_path: Path) -> None:
    class Unread(ResponseStore):
        def lengths(self, scope: Scope) -> Lengths:
            raise StoreError("damaged")

    def answer(text: str, before: int) -> str:
        raise RequestRefused("http://h answered 400: not this one")

    script = Asked(answer)
    jobs = [replace(job(f"scene {n}"), scope=Scope("p", "t", "m", 100)) for n in range(20)]
    with (
        pytest.raises(StoreError, match="damaged"),
        Client(Backend(script), Unread(store_path)) as client,
    ):
        ask(client, jobs)
    assert len(script.texts) == 1


def test_a_store_that_cannot_be_opened_leaves_nothing_running(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    before = threading.active_count()
    client = Client(Backend(Asked()), ResponseStore(tmp_path / "file" / "r.sqlite"))
    with pytest.raises(StoreError):
        client.__enter__()
    assert threading.active_count() == before


def test_a_backend_that_cannot_be_opened_leaves_nothing_running(store_path: Path) -> None:
    class Closed(Backend):
        async def __aenter__(self) -> Backend:
            raise BackendUnusable("no model here")

    before = threading.active_count()
    client = Client(Closed(Asked()), ResponseStore(store_path))
    with pytest.raises(BackendUnusable):
        client.__enter__()
    assert threading.active_count() == before


def test_what_is_asked_and_how_to_draw_it_is_what_the_key_covers(store_path: Path) -> None:
    script = Asked()
    backend = Backend(script)
    with Client(backend, ResponseStore(store_path)) as client:
        ask(client, [job("scene", max_tokens=77)])
    keys = [key_of(backend.identity(), request) for request in script.requests]
    with ResponseStore(store_path) as store:
        assert [answer.text for answer in store.get_many(keys).values()] == ["re scene"]


def priced(**bounds: Any) -> Budget:
    """A budget at a cent a prompt token and two an answer token."""
    return Budget(usd_per_prompt_token=0.01, usd_per_completion_token=0.02, **bounds)


def test_a_budget_is_never_exceeded_and_a_rerun_goes_on_where_it_ended(store_path: Path) -> None:
    script = Asked()
    jobs = [job(f"scene {n}", max_tokens=10) for n in range(40)]
    # An answer costs 0.03 + 0.10 and may cost 0.02 + 0.20.
    for _ in range(2):
        budget = priced(max_cost_usd=1.0)
        with (
            pytest.raises(RunStopped, match=r"max_cost \$1: this run paid for \d+ requests"),
            Client(
                Backend(script, latency_s=0.01), ResponseStore(store_path), budget=budget
            ) as client,
        ):
            ask(client, jobs)
        assert 1.0 - 0.22 < budget.spent.usd <= 1.0
        assert budget.spent.in_flight == 0
        assert budget.spent.requests == client.stats.answered
    assert stored(store_path) == len(script.texts) == len(set(script.texts))


def test_a_budget_of_requests_counts_answers_and_not_failed_attempts(store_path: Path) -> None:
    def answer(text: str, before: int) -> str:
        if before == 0:
            raise TransientError("later", cause="http_500")
        return text

    script, budget = Asked(answer), Budget(max_requests=10)
    with (
        pytest.raises(RunStopped, match=r"max_requests 10: this run paid for 10 requests"),
        Client(Backend(script), ResponseStore(store_path), policy=QUICK, budget=budget) as client,
    ):
        ask(client, [job(f"scene {n}") for n in range(40)])
    assert stored(store_path) == 10


def test_a_shorter_prompt_that_another_request_waits_to_ask_for_holds_up_neither(
    store_path: Path,
) -> None:
    def refuse_long(text: str, before: int) -> str:
        if text == "long":
            raise ContextTooLong("too long")
        return f"re {text}"

    asked = Asked(refuse_long)
    with Client(Backend(asked, latency_s=0.01), ResponseStore(store_path)) as client:
        outcomes = ask(client, [job("long", "short"), job("short")])
    assert [answer_text(outcome) for outcome in outcomes] == ["re short"] * 2
    assert asked.texts == ["long", "short"]


class Crowded(Budget):
    """One that another process has used up, whose request is refused a moment later."""

    def admit(self, most_usd: float) -> bool:
        is_in = super().admit(most_usd)
        if not is_in:
            self.settle(0.0, None)
        return is_in


def test_what_another_process_gives_back_is_not_taken_for_used_up(store_path: Path) -> None:
    budget = Crowded(max_requests=1)
    budget.count(0.0)
    with Client(Backend(Asked()), ResponseStore(store_path), budget=budget) as client:
        ask(client, [job("a scene")])
    assert stored(store_path) == 1


@pytest.mark.parametrize(("waits_s", "tries"), [(0.0, 3), (60.0, 5)])
def test_a_gateway_that_waits_in_vain_is_asked_no_more_often_than_one_that_times_out(
    store_path: Path, waits_s: float, tries: int
) -> None:
    def answer(text: str, before: int) -> str:
        if text == "slow":
            raise TransientError("Gateway Timeout", cause="http_504")
        return text

    policy = replace(QUICK, gateway_waits_s=waits_s)
    script, budget = Asked(answer), Budget(max_requests=20)
    with Client(Backend(script), ResponseStore(store_path), policy=policy, budget=budget) as client:
        outcomes = ask(client, [job("a scene"), job("slow")])
    assert isinstance(outcomes[1], Failed)
    assert script.texts.count("slow") == tries
    assert budget.spent.requests == 1 + (tries if waits_s == 0 else 0)


@pytest.mark.parametrize("cause", ["timeout", "dropped", "http_504", "http_524", "http_408"])
def test_an_attempt_that_may_have_been_paid_for_counts_with_its_worst_case(
    store_path: Path, cause: str
) -> None:
    def answer(text: str, before: int) -> str:
        if before == 0 and text != "first":
            raise TransientError("no answer in time", cause=cause)
        return text

    budget, policy = priced(max_cost_usd=100.0), replace(QUICK, gateway_waits_s=0.0)
    with Client(
        Backend(Asked(answer)), ResponseStore(store_path), policy=policy, budget=budget
    ) as client:
        ask(client, [job("first", max_tokens=10)])
        ask(client, [job("a scene", max_tokens=10)])
    assert budget.spent.requests == 3
    assert budget.spent.usd == pytest.approx((0.02 + 0.20) + 2 * (0.03 + 0.10))


def test_an_answer_is_stored_though_what_it_cost_cannot_be_noted(
    store_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "ledger"
    folder.mkdir()

    def answer(text: str, before: int) -> str:
        if text == "scene 2":  # in the place of the file that is to be written
            (folder / "spent.new").mkdir()
        return f"re {text}"

    asked = Asked(answer)
    budget = Budget(max_requests=9, ledger=folder / "spent.json")
    with (
        pytest.raises(RunStopped, match=r"what was spent can't be written .*spent\.json"),
        Client(Backend(asked, parallel=1), ResponseStore(store_path), budget=budget) as client,
    ):
        client.submit([job(f"scene {n}") for n in range(5)]).result(PATIENCE_S)
    assert asked.texts == ["scene 0", "scene 1", "scene 2"]
    with ResponseStore(store_path, read_only=True) as store:
        assert len(store) == 3


def test_many_loops_can_complete_at_once(store_path: Path) -> None:
    script = Asked()
    with Client(Backend(script, latency_s=0.01), ResponseStore(store_path)) as client:
        texts: list[str] = []

        def run(name: str) -> None:
            outcomes = asyncio.run(client.complete([job(f"{name} {n}") for n in range(10)]))
            texts.extend(answer_text(o) for o in outcomes)

        threads = [threading.Thread(target=run, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert sorted(texts) == sorted(f"re {name} {n}" for name in "abc" for n in range(10))


_NOISY = """
import asyncio, gc, signal, sys, threading
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_client import *

mode, path = sys.argv[1], Path(sys.argv[2])

def answer(text, before):
    if text == "bad":
        raise BackendUnusable("wrong key")
    if text == "limited":
        raise TransientError("later", cause="http_429", retry_after_s=3600.0)
    return text

backend = Backend(Asked(answer), parallel=5, latency_s=60.0 if mode == "twice" else 0.05)
policy = RetryPolicy(drain_s=30.0)
try:
    with Client(backend, ResponseStore(path), policy=policy) as client:
        if mode != "twice":
            ask(client, [job("first")])
        kept = [client.submit([job(f"{{10 * b + n}}") for n in range(10)]) for b in range(20)]
        dropped = client.submit([job("dropped")])
        dropped.cancel()
        wait_until(lambda: client.stats.in_flight > 0)
        if mode == "unusable":
            ask(client, [job("bad")])
        if mode == "limited":
            kept.append(client.submit([job("limited")]))
            wait_until(lambda: client.stats.retries > 0)
        if mode == "twice":
            main = threading.get_ident()
            threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT)).start()
        if mode != "nothing":
            raise KeyboardInterrupt
except (KeyboardInterrupt, RunStopped) as error:
    print(type(error).__name__)
del kept, client, backend
gc.collect()
"""


@pytest.mark.parametrize(
    ("mode", "ends_with"),
    [
        ("nothing", ""),
        ("twice", "KeyboardInterrupt\n"),
        ("unusable", "RunStopped\n"),
        ("limited", "KeyboardInterrupt\n"),
    ],
)
def test_a_run_that_ends_early_ends_without_noise(
    store_path: Path, mode: str, ends_with: str
) -> None:
    code = _NOISY.format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code, mode, str(store_path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    noise = [line for line in done.stderr.splitlines() if "took" not in line]
    assert (done.returncode, done.stdout, noise) == (0, ends_with, [])
