"""Text-generation-inference, against a loopback server written from its published API."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from loopback import DROP

pytest.importorskip("text_generation", reason="the extra tgi (text-generation) isn't installed")

import tgi_server
from loopback import turns_for
from tgi_server import SHA, TGIServer

from mminstruct import backends, cli
from mminstruct.backends import Backend, BackendOptions, tgi
from mminstruct.completions.client import Client
from mminstruct.completions.job import Answered, Attempt, Job
from mminstruct.completions.store import ResponseStore
from mminstruct.errors import (
    BackendUnusable,
    ContextTooLong,
    MMInstructError,
    RequestRefused,
    TransientError,
    UsageError,
)
from mminstruct.prompts.messages import Prompt
from mminstruct.schema import Completion, Message, Request, Sampling
from mminstruct.transport import RetryPolicy

MESSAGES = (Message("system", "You name things."), Message("user", "A fruit, please?"))
SECRET = "hf_verysecretkey"


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, and no server known from another test that had the same port."""
    for name in ("TGI_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    tgi.served.cache_clear()


@pytest.fixture
def server() -> Iterator[TGIServer]:
    """A TGI server that answers everything well."""
    with TGIServer() as running:
        yield running


def backend_of(server: TGIServer, model: str | None = None, **options: Any) -> Backend:
    return backends.create(
        "tgi",
        BackendOptions(model=model, base_urls=(server.url,), **{"timeout_s": 20.0, **options}),
    )


def complete(backend: Backend, *requests: Request) -> list[Completion]:
    async def run() -> list[Completion]:
        async with backend:
            return [await backend.complete(request) for request in requests]

    return asyncio.run(run())


def failure(backend: Backend, request: Request | None = None) -> MMInstructError:
    with pytest.raises(MMInstructError) as caught:
        complete(backend, request or Request(MESSAGES))
    return caught.value


@pytest.mark.parametrize(
    ("sampling", "fields"),
    [
        (Sampling(0.0, 1.0, 7), {"temperature": 0.0, "max_tokens": 7}),
        # With a top-p beside it, TGI would sample at a temperature of 1.
        (Sampling(0.0, 0.5, 7, 3), {"temperature": 0.0, "max_tokens": 7, "seed": 3}),
        (Sampling(0.7, 1.0, 9), {"temperature": 0.7, "max_tokens": 9}),
        (Sampling(0.7, 0.9, 9, 0), {"temperature": 0.7, "top_p": 0.9, "max_tokens": 9, "seed": 0}),
    ],
)
def test_sampling_is_said_as_tgi_takes_it(
    sampling: Sampling, fields: dict[str, Any], server: TGIServer
) -> None:
    (answer,) = complete(backend_of(server), Request(MESSAGES, sampling))
    assert answer.text
    assert server.bodies == [
        {
            "model": "tgi",
            "stream": False,
            "messages": [{"role": m.role, "content": m.content} for m in MESSAGES],
            **fields,
        }
    ]


def test_answers_are_greedy_at_a_temperature_of_zero_and_drawn_by_their_seed_elsewhere(
    server: TGIServer,
) -> None:
    asked = [Request(MESSAGES, Sampling(0.0, 0.5, 20, seed)) for seed in (1, 2)]
    asked += [Request(MESSAGES, Sampling(1.0, 1.0, 20, seed)) for seed in (1, 2, 1)]
    answers = complete(backend_of(server), *asked)
    assert answers[0] == answers[1]
    assert answers[2] == answers[4] != answers[3]
    assert answers[0].model == "org/model"


def test_a_model_is_known_by_its_revision_wherever_it_is_served(server: TGIServer) -> None:
    with TGIServer() as elsewhere:
        here, there = backend_of(server), backend_of(elsewhere)
        assert here.identity() == there.identity()
    assert here.identity() == {"backend": "tgi", "model": "org/model", "revision": SHA}
    assert (here.model, here.repo_id) == ("org/model", "org/model")
    assert server.paths == ["/health", "/info"]  # asked once, whoever wants to know what
    assert here.endpoints == (server.url,)


@pytest.mark.parametrize(
    ("named", "model", "repo_id"),
    [(None, "repository", None), ("org/tuned", "org/tuned", "org/tuned")],
)
def test_weights_from_a_folder_are_known_by_their_server(
    named: str | None, model: str, repo_id: str | None
) -> None:
    with TGIServer(model_id="/data/models/repository", model_sha=None) as server:
        backend = backend_of(server, named)
        assert backend.identity() == {"backend": "tgi", "model": model, "endpoint": server.url}
        assert (backend.model, backend.repo_id) == (model, repo_id)
        (answer,) = complete(backend, Request(MESSAGES))
    assert answer.model == model


def test_a_server_with_another_model_than_the_one_named_is_refused(server: TGIServer) -> None:
    assert backend_of(server, "org/model").model == "org/model"
    with pytest.raises(UsageError, match="'org/other': http.* runs org/model; leave --model out"):
        backend_of(server, "org/other").identity()


def test_a_server_that_has_been_restarted_with_other_weights_gives_no_answer(
    server: TGIServer,
) -> None:
    backend = backend_of(server)
    before = backend.identity()
    server.info["model_sha"] = "0" * 40
    error = failure(backend)
    assert isinstance(error, BackendUnusable)
    assert "run or load again" in str(error)
    assert not server.bodies
    assert backend_of(server).identity()["revision"] == "0" * 40 != before["revision"]


def test_a_server_that_comes_back_with_other_weights_gives_no_answer(server: TGIServer) -> None:
    async def run() -> None:
        async with backend_of(server) as backend:
            await backend.complete(Request(MESSAGES))
            server.reply = lambda body: DROP
            with pytest.raises(TransientError, match="http://127"):
                await backend.complete(Request(MESSAGES))
            server.info["model_sha"] = "0" * 40
            with pytest.raises(BackendUnusable, match=f"runs org/model {'0' * 40}, and .*{SHA}"):
                await backend.complete(Request(MESSAGES))

    asyncio.run(run())
    assert len(server.bodies) == 2


def test_replicas_answer_for_the_same_model_and_may_be_down_at_first(server: TGIServer) -> None:
    async def run() -> list[str]:
        backend = backends.create(
            "tgi", BackendOptions(base_urls=("http://127.0.0.1:9", server.url, other.url))
        )
        assert isinstance(backend, tgi.TGIBackend)
        first, second, third = backend.replicas
        assert first is backend
        assert backend.endpoints == ("http://127.0.0.1:9", server.url, other.url)
        assert second.identity() == backend.identity() == backend_of(server).identity()
        async with first, second, third:
            with pytest.raises(TransientError) as caught:
                await first.complete(Request(MESSAGES))
            assert caught.value.cause == "unreachable"
            with pytest.raises(BackendUnusable, match="all servers have to run the same"):
                await third.complete(Request(MESSAGES))
            return [(await second.complete(Request(MESSAGES))).text]

    with TGIServer(model_sha="1" * 40) as other:
        assert asyncio.run(run())[0]
    assert not other.bodies


def test_a_server_whose_model_changes_in_the_run_ends_it(server: TGIServer) -> None:
    def another(body: dict[str, Any]) -> str:
        server.info["model_id"] = "org/other"
        return "text"

    server.reply = another
    error = failure(backend_of(server))
    assert isinstance(error, BackendUnusable)
    assert f"runs org/other, and the run began with org/model {SHA}" in str(error)


def test_tokens_are_counted_before_opening_as_usage_has_them_afterwards(server: TGIServer) -> None:
    chats = [
        MESSAGES,
        (Message("user", "word " * 700 + "0.25, [0.1] 'é' 木"),),
        (*MESSAGES, Message("assistant", "<|im_end|> an apple\n\n"), MESSAGES[1]),
    ]
    backend = backend_of(server)
    assert backend.token_error == 0.0
    counts = [backend.count_tokens(chat) for chat in chats]
    answers = complete(backend, *(Request(chat, Sampling(0.0, max_tokens=2)) for chat in chats))
    assert counts == [answer.prompt_tokens for answer in answers]
    assert counts == [backend.count_tokens(list(chat)) for chat in chats]
    assert server.counted == 3  # each once


def test_a_server_too_old_to_count_says_so() -> None:
    with TGIServer(version="2.2.0") as server:
        backend = backend_of(server)
        with pytest.raises(BackendUnusable, match=r"404.*counts tokens from 2\.3 on"):
            backend.count_tokens(MESSAGES)
        assert complete(backend, Request(MESSAGES))[0].text


def test_a_busy_server_is_asked_for_a_count_again(server: TGIServer) -> None:
    pauses: list[float] = []
    endpoint = tgi.endpoint(server.url, {})
    backend = tgi.TGIBackend([endpoint], BackendOptions(timeout_s=20.0), sleep=pauses.append)
    server.busy = [tgi_server.OVERLOADED, (503, {"Retry-After": "7"}, "busy"), (429, {}, "")]
    assert backend.count_tokens(MESSAGES) == complete(backend, Request(MESSAGES))[0].prompt_tokens
    assert pauses == [0.5, 7.0, 2.0]
    server.busy = [tgi_server.OVERLOADED] * 6
    with pytest.raises(BackendUnusable, match="429: Model is overloaded"):
        backend.count_tokens(MESSAGES[:1])
    assert len(server.busy) == 1


def job(*texts: str, max_tokens: int, min_answer_tokens: int) -> Job:
    prompts = [
        Prompt((Message("user", text),), few_shots=0, dropped_boxes=number)
        for number, text in enumerate(texts)
    ]
    return Job(lambda: iter(prompts), Sampling(0.0, 1.0, max_tokens), min_answer_tokens)


def test_a_run_fills_the_window_without_counting_and_an_estimate_sees_the_same(
    tmp_path: Path,
) -> None:
    """Prompts of 92, 62 and 12 tokens in a window of 80."""
    texts = [" ".join(["word"] * (count - 5)) for count in (92, 62, 12)]
    jobs = [job(*texts, max_tokens=40, min_answer_tokens=needed) for needed in (15, 30)]
    with TGIServer(max_total_tokens=80, max_input_tokens=79) as server:
        backend = backend_of(server)
        with Client(backend, ResponseStore(tmp_path / "s.sqlite")) as client:
            outcomes = client.submit(jobs).result(60)
            assert backend.context_window is None
        assert server.counted == 0
        # With the window known beforehand, as for an estimate.
        assert backend.context_window == 80
        attempts = [Attempt(job, backend, backend.identity()) for job in jobs]
    assert [a.prompt for a in attempts] == [o.prompt for o in outcomes if isinstance(o, Answered)]
    asked = [a.request for a in attempts if a.request]
    sent = [(backend_tokens(r), r.sampling.max_tokens) for r in asked]
    assert sent == [(62, 18), (12, 40)]
    with ResponseStore(tmp_path / "s.sqlite") as store:
        assert len(store.get_many([a.key for a in attempts if a.key])) == 2


def backend_tokens(request: Request) -> int:
    return tgi_server.prompt_tokens(
        [{"role": m.role, "content": m.content} for m in request.messages]
    )


def test_a_prompt_above_the_longest_input_is_shortened(tmp_path: Path) -> None:
    texts = [" ".join(["word"] * count) for count in (50, 20)]
    with TGIServer(max_total_tokens=80, max_input_tokens=30) as server:
        error = failure(
            backend_of(server), Request((Message("user", texts[0]),), Sampling(0, 1, 9))
        )
        assert isinstance(error, ContextTooLong)
        assert error.room is None
        assert "must have less than 30 tokens. Given: 55" in str(error)
        with Client(backend_of(server), ResponseStore(tmp_path / "s.sqlite")) as client:
            (outcome,) = client.submit([job(*texts, max_tokens=9, min_answer_tokens=9)]).result(60)
    assert isinstance(outcome, Answered)
    assert outcome.prompt.dropped_boxes == 1


def test_a_window_of_ones_own_is_refused(server: TGIServer) -> None:
    with pytest.raises(UsageError, match="takes no context window"):
        backend_of(server, context_window=512)


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (tgi_server.GENERATION, "http_424", "Request failed during generation"),
        (tgi_server.INCOMPLETE, "http_500", "Incomplete generation"),
        (tgi_server.OVERLOADED, "http_429", "Model is overloaded"),
        (tgi_server.UNHEALTHY, "http_503", "unhealthy"),
        ((424, {}, "shard is not ready"), "http_424", "shard is not ready"),
        ((504, {}, "<html>Gateway\nTimeout</html>"), "http_504", "Gateway Timeout"),
        ((502, {}, ""), "http_502", "(no words)"),
        ((200, {}, "<html>welcome</html>"), "no_api", "no TGI server at this address"),
        ((200, {}, '{"id": "'), "bad_body", "not a chat completion"),
        (DROP, "dropped", "http://127.0.0.1"),
    ],
)
def test_what_may_pass_is_worth_another_try(
    reply: Any, kind: str, words: str, server: TGIServer
) -> None:
    server.reply = lambda body: reply
    error = failure(backend_of(server))
    assert isinstance(error, TransientError)
    assert error.cause == kind
    assert words in str(error)


@pytest.mark.parametrize(
    ("reply", "unknown_here", "words"),
    [
        (tgi_server.UNREADABLE, False, "Failed to deserialize the JSON body"),
        (tgi_server.TEMPLATE, True, "template not found"),
        (tgi_server.error(422, "tool_error", "Tool error: none"), False, "Tool error"),
        ((400, {}, {"error": "odd"}), False, "answered 400: odd"),
        ((404, {}, ""), True, "answered 404: (no words)"),
        ((403, {}, {"error": "no"}), True, "set TGI_API_KEY"),
    ],
)
def test_what_will_not_pass_is_refused_with_its_reason(
    reply: Any, unknown_here: bool, words: str, server: TGIServer
) -> None:
    server.reply = lambda body: reply
    error = failure(backend_of(server))
    assert isinstance(error, RequestRefused)
    assert not isinstance(error, ContextTooLong)
    assert error.unknown_here == unknown_here
    assert words in str(error)


def test_what_tgi_itself_checks_is_refused_with_its_words(server: TGIServer) -> None:
    error = failure(backend_of(server), Request(MESSAGES, Sampling(-0.5)))
    assert isinstance(error, RequestRefused)
    assert "422: Input validation error: `temperature` must be strictly positive" in str(error)


def test_a_body_too_large_for_the_server_is_a_prompt_too_long(server: TGIServer) -> None:
    server.reply = lambda body: (413, {}, "length limit exceeded")
    assert isinstance(failure(backend_of(server)), ContextTooLong)


def test_a_wait_that_the_server_asks_for_is_passed_on(server: TGIServer) -> None:
    status, _, body = tgi_server.OVERLOADED
    server.reply = lambda _: (status, {"Retry-After": "7"}, body)
    error = failure(backend_of(server))
    assert isinstance(error, TransientError)
    assert error.retry_after_s == 7.0


def test_an_answer_that_never_comes_is_a_timeout(server: TGIServer) -> None:
    async def never(body: dict[str, Any]) -> str:
        await asyncio.sleep(3600)
        return ""

    server.reply = never
    error = failure(backend_of(server, timeout_s=0.2))
    assert isinstance(error, TransientError)
    words = f"{server.url}: no answer within 0.2 s (--timeout)"
    assert (error.cause, str(error)) == ("timeout", words)


def test_a_server_that_goes_away_is_unreachable() -> None:
    async def run(server: TGIServer) -> None:
        async with backend_of(server) as backend:
            await asyncio.to_thread(server.__exit__)
            with pytest.raises(TransientError) as caught:
                await backend.complete(Request(MESSAGES))
            assert caught.value.cause == "unreachable"

    asyncio.run(run(TGIServer().__enter__()))


def test_failures_that_pass_cost_nothing_but_time(server: TGIServer, tmp_path: Path) -> None:
    """Each kind once for each of 40 requests, then the answer."""
    failures = [
        *(tgi_server.GENERATION, tgi_server.INCOMPLETE, tgi_server.OVERLOADED),
        *(tgi_server.UNHEALTHY, DROP),
    ]
    seen: dict[str, int] = {}

    def reply(body: dict[str, Any]) -> Any:
        text = body["messages"][-1]["content"]
        seen[text] = seen.get(text, 0) + 1
        return failures[seen[text] - 1] if seen[text] <= len(failures) else f"re {text}"

    server.reply = reply
    jobs = [job(f"scene {number}", max_tokens=9, min_answer_tokens=1) for number in range(40)]
    policy = RetryPolicy(max_retries=8, base_s=0.001, cap_s=0.01)
    store = ResponseStore(tmp_path / "s.sqlite")
    with Client(backend_of(server), store, policy=policy) as client:
        outcomes = client.submit(jobs).result(120)
    texts = [o.completion.text for o in outcomes if isinstance(o, Answered)]
    assert texts == [f"re scene {number}" for number in range(40)]
    assert set(seen.values()) == {len(failures) + 1}


def test_a_server_that_is_not_ready_is_told_from_one_that_is_not_there(server: TGIServer) -> None:
    server.healthy = False
    with pytest.raises(BackendUnusable, match="503 .*unhealthy.*still loading or has died"):
        backend_of(server).identity()
    assert server.paths == ["/health"]
    server.healthy = True
    assert backend_of(server).identity()["model"] == "org/model"

    gone = BackendOptions(base_urls=("http://127.0.0.1:9",))
    with pytest.raises(BackendUnusable, match="no TGI server answers .*once the model is loaded"):
        backends.create("tgi", gone).identity()


def test_another_kind_of_server_is_named_as_such(server: TGIServer) -> None:
    server.info = {"detail": "Not Found"}
    with pytest.raises(BackendUnusable, match="not a TGI server .*--model_source openai"):
        backend_of(server).identity()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (BackendOptions(), "needs a server; give one with --tgi_url"),
        (BackendOptions(model="org/model"), "needs a server"),
        (BackendOptions(base_urls=("localhost:8080",)), "http://localhost:8080, got 'localhost"),
        (BackendOptions(base_urls=("http://h:8x/",)), "got 'http://h:8x/'"),
        (BackendOptions(base_urls=("http://u:pw@h/?k=1",)), "got 'h/'"),
        (BackendOptions(model="http://a", base_urls=("http://b",)), "give all servers with"),
    ],
)
def test_a_server_is_needed_and_has_to_be_a_url(options: BackendOptions, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        backends.create("tgi", options)


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/", "/v1/chat/completions", "/generate"])
def test_the_url_is_taken_in_every_spelling(tail: str, server: TGIServer) -> None:
    backend = backends.create("tgi", BackendOptions(model=server.url + tail))
    assert complete(backend, Request(MESSAGES))[0].text


def test_a_key_is_sent_and_never_shown(
    server: TGIServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TGI_API_KEY", SECRET)
    backend = backend_of(server)
    complete(backend, Request(MESSAGES))
    assert server.headers[-1]["Authorization"] == f"Bearer {SECRET}"
    server.reply = lambda body: (400, {}, {"error": f"what is {SECRET}?"})
    error = failure(backend)
    assert "what is ***?" in str(error)
    server.reply = lambda body: (401, {}, "")
    assert "the key in TGI_API_KEY is not accepted" in str(failure(backend))
    shown = [repr(backend), str(backend.identity()), *backend.endpoints, caplog.text]
    shown.append(repr(tgi.endpoint(server.url, {"TGI_API_KEY": SECRET})))
    assert SECRET not in "".join(shown)


@pytest.mark.parametrize("key", ["sekret\nb", "sekr\u00e9t"], ids=ascii)
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(UsageError, match="TGI_API_KEY: expected") as raised:
        tgi.endpoint("http://h", {"TGI_API_KEY": key})
    assert "sekr" not in str(raised.value)


def test_the_line_break_after_a_key_is_not_part_of_it() -> None:
    assert tgi.endpoint("http://h", {"TGI_API_KEY": "key\n"}).authorization == "Bearer key"


def test_user_and_password_of_a_url_are_sent_and_never_shown(server: TGIServer) -> None:
    url = server.url.replace("http://", "http://user:longpassword@")
    backend = backends.create("tgi", BackendOptions(model=url))
    complete(backend, Request(MESSAGES))
    assert server.headers[-1]["Authorization"].startswith("Basic ")
    server.reply = lambda body: (500, {}, {"error": "longpassword"})
    shown = [str(failure(backend)), str(backend.identity()), *backend.endpoints]
    assert "longpassword" not in "".join(shown)


@pytest.mark.parametrize(
    ("url", "environment", "sent"),
    [
        ("http://host:8080", {"HF_TOKEN": SECRET}, None),
        ("https://host", {"HF_TOKEN": SECRET, "TGI_API_KEY": ""}, None),
        ("http://x.endpoints.huggingface.cloud", {"HF_TOKEN": SECRET}, None),
        ("https://evil-endpoints.huggingface.cloud.example.com", {"HF_TOKEN": SECRET}, None),
        ("https://a.us-east-1.aws.endpoints.huggingface.cloud", {"HF_TOKEN": SECRET}, SECRET),
        ("https://x.endpoints.huggingface.cloud", {"HF_TOKEN": "t", "TGI_API_KEY": "k"}, "k"),
        ("http://host:8080", {"TGI_API_KEY": "k"}, "k"),
    ],
)
def test_the_token_of_the_hub_goes_nowhere_else(
    url: str, environment: dict[str, str], sent: str | None
) -> None:
    assert tgi.endpoint(url, environment).authorization == (sent and f"Bearer {sent}")


def test_hundreds_in_flight_share_their_connections_and_none_fails() -> None:
    """3,000 requests, and 256 of them in flight at any time."""
    waiting = 0

    async def reply(body: dict[str, Any]) -> str:
        nonlocal waiting
        waiting += 1
        if waiting == 256:
            full.set()
        await asyncio.wait_for(full.wait(), 60)
        return "fine"

    async def run() -> set[str]:
        async with backend_of(server, max_concurrency=256) as backend:
            limit = asyncio.Semaphore(backend.parallel)

            async def ask(number: int) -> str:
                async with limit:
                    chat = (Message("user", f"scene {number}"),)
                    return (await backend.complete(Request(chat, Sampling(0.0)))).text

            return set(await asyncio.gather(*(ask(number) for number in range(3000))))

    full = asyncio.Event()
    with TGIServer(reply) as server:
        assert asyncio.run(run()) == {"fine"}
    assert len(server.bodies) == 3000
    assert server.max_in_flight == 256
    assert len(server.peers) == 256


def test_no_more_is_in_flight_than_the_server_takes() -> None:
    with TGIServer(max_concurrent_requests=3) as server:
        assert backend_of(server, max_concurrency=64).parallel == 3
        assert backend_of(server, max_concurrency=2).parallel == 2
        several = backends.create("tgi", BackendOptions(base_urls=(server.url, server.url + "/v1")))
        assert isinstance(several, tgi.TGIBackend)
        assert [replica.parallel for replica in several.replicas] == [6, 3]


@pytest.mark.parametrize("flag", ["--tgi_url", "--model"])
def test_an_estimate_has_the_prompt_tokens_of_the_run_to_the_token(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    with TGIServer(turns_for) as server:
        asked = ["SAMPLE", "--model_source", "tgi", flag, server.url, "--seed", "1"]
        asked += ["--response_store", "s.sqlite"]
        assert cli.run(["estimate", *asked, "--json"]) == 0
        before = json.loads(capsys.readouterr().out)
        assert not server.bodies
        assert cli.run(["generate", *asked, "--output_path", "out"]) == 0
        assert "model org/model" in capsys.readouterr().err
        assert cli.run(["generate", *asked, "--output_path", "out"]) == 0
        assert len(server.bodies) == before["requests"] > 10  # and none of the second run
        capsys.readouterr()
        assert cli.run(["estimate", *asked, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["stored"] == before["requests"]
    with contextlib.closing(sqlite3.connect("s.sqlite")) as store:
        values = [json.loads(value) for (value,) in store.execute("SELECT value FROM completions")]
    assert before["prompt_tokens"] == sum(value["prompt_tokens"] for value in values) > 1000
    assert SHA in (tmp_path / "out" / "README.md").read_text()
