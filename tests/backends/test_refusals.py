"""What servers say when they refuse, and what that is taken to mean."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest

from mminstruct.backends._chat import read_body
from mminstruct.backends._refusals import Dialect, advice, error_of, kind_of, read_refusal
from mminstruct.errors import (
    BackendError,
    BackendUnusable,
    ContextTooLong,
    RequestRefused,
    TransientError,
)
from mminstruct.schema import Sampling

OURS = Sampling(0.7, 1.0, 1024)


def said(status: int, body: Any) -> Any:
    """A refusal in a body."""
    return read_refusal(
        status, body.encode() if isinstance(body, str) else json.dumps(body).encode()
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "no", "code": 1}}, "no"),
        ({"error": "no"}, "no"),
        ([{"error": {"message": "no"}}], "no"),
        ({"object": "error", "message": "no", "code": 40303}, "no"),
        ({"detail": "no"}, "no"),
        ({"msg": "no"}, "no"),
        ({"error": {"message": {"detail": "no"}}}, "no"),
        ({"error": {"code": 7}}, '{"error": {"code": 7}}'),
        ("no\n  way", "no way"),
        ("", "(no words)"),
        ("<!DOCTYPE html><head><style>a {}</style><title>Sign in</title></head>", "Sign in"),
    ],
    ids=str,
)
def test_the_words_of_an_error_are_found_in_every_form(body: Any, words: str) -> None:
    assert said(400, body).words == words


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "Prompt is too long: 9000 tokens > 8192 maximum"),
        (
            400,
            "Please reduce the length of the messages. Current length is 9000 while limit is 8192",
        ),
        (400, "Invalid request: Your request exceeded model token limit: 8192"),
        (400, "The input token count (9000) exceeds the maximum number of tokens allowed (8192)."),
        (400, "Range of input length should be [1, 8192]"),
        (422, "Input is too long for this model, shorten your input"),
        (400, "Cannot truncate prompt with n_keep (9000) >= n_ctx (8192)"),
        (400, "max_tokens must be at least 1, got -808."),
        (422, "`inputs` tokens + `max_new_tokens` must be <= 8192. Given: 9000 `inputs` tokens"),
        (400, "context window exceeds limit (2013)"),
        (413, "Request Entity Too Large"),
        (500, "Internal Server Error: prompt is too long"),
        (200, "This model's maximum context length is 4096 tokens."),
        (429, "Request too large on tokens per min (TPM): Limit 2500, Requested 3000."),
    ],
    ids=str,
)
def test_a_prompt_that_is_too_long_is_known_by_a_bound_and_a_length(
    status: int, words: str
) -> None:
    assert isinstance(
        error_of(said(status, {"error": {"message": words}}), {}, where="h"), ContextTooLong
    )


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "max_tokens is too large: 1024. This model supports at most 512 completion tokens."),
        (422, "Input validation error: `top_p` must be > 0.0 and < 1.0"),
        (422, "Input validation error: `max_new_tokens` must be <= 512. Given: 1024"),
        (400, "[{'loc': ['max_tokens'], 'msg': 'Input should be less than or equal to 512'}]"),
        (400, "Conversation roles must alternate user/assistant"),
    ],
    ids=str,
)
def test_a_bound_on_something_else_is_no_prompt_that_is_too_long(status: int, words: str) -> None:
    assert kind_of(said(status, {"error": {"message": words, "type": "invalid"}})) == "refused"


@pytest.mark.parametrize(
    ("words", "room"),
    [
        ("maximum context length is 1000 tokens and your request has 400 input tokens", 600),
        (
            "You passed 1200 input tokens. However, the context length is only 1000 tokens, "
            "resulting in a maximum input length of 0 tokens",
            -200,
        ),
        ("on tokens per minute (TPM): Limit 2500, Requested 3000", 524),
        ("`inputs` tokens must be <= 1000. Given: 400 `inputs` tokens", 600),
        ("Prompt of 1200 tokens is longer than max_kv_size 1000", None),
    ],
)
def test_the_room_for_an_answer_is_told_where_window_and_prompt_are(
    words: str, room: int | None
) -> None:
    error = error_of(said(413, {"error": words}), {}, where="h", sampling=OURS)
    assert isinstance(error, ContextTooLong)
    assert error.room == room


DAY = {
    "error": {
        "message": "You exceeded your current quota, please check your plan and billing details.",
        "details": [{"quotaId": "GenerateRequestsPerDayPerProject"}, {"retryDelay": "34s"}],
    }
}
MINUTE = json.loads(json.dumps(DAY).replace("PerDay", "PerMinute"))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (402, {"error": "pay"}),
        (429, {"error": {"message": "out", "code": "insufficient_quota"}}),
        (429, {"error": {"code": "1113", "message": "Insufficient balance. Please recharge."}}),
        (400, {"error": {"message": "Budget has been exceeded!", "type": "budget_exceeded"}}),
        (400, {"error": {"message": "Your credit balance is too low to access the API."}}),
        (403, {"code": 30001, "message": "Sorry, your account balance is insufficient"}),
        (403, {"error": {"message": "Billing is not active on your account"}}),
        (429, [DAY]),
        (429, {"error": "Rate limit reached on requests per day (RPD). Please try again in 9s."}),
    ],
    ids=str,
)
def test_an_allowance_that_is_used_up_ends_the_run(status: int, body: Any) -> None:
    assert isinstance(error_of(said(status, body), {}, where="h"), BackendUnusable)


@pytest.mark.parametrize(
    ("body", "headers", "wait_s"),
    [
        ([MINUTE], {}, 34.0),
        (
            {"error": "Rate limit reached on tokens per min (TPM). Please try again in 900ms."},
            {},
            0.9,
        ),
        ({"error": "Limit per day (TPD) reached. Please try again in 1h12m43.4s."}, {}, 4363.4),
        ({"error": "Limit per day reached"}, {"retry-after": "7200"}, 7200.0),
        ({"error": "Call rate limit exceeded. Please retry after 25 seconds."}, {}, 25.0),
        ({"error": "Rate limit exceeded for your account"}, {}, None),
        ({"error": "slow down"}, {"retry-after": "3"}, 3.0),
    ],
    ids=str,
)
def test_a_wait_is_read_wherever_it_is_told(
    body: Any, headers: dict[str, str], wait_s: float | None
) -> None:
    error = error_of(said(429, body), headers, where="h")
    assert isinstance(error, TransientError)
    assert error.retry_after_s == wait_s


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"message": "filtered", "code": "content_filter"}}, "withheld"),
        (400, {"error": {"message": "Content Exists Risk"}}, "withheld"),
        (400, {"error": {"code": "data_inspection_failed", "message": "Input"}}, "withheld"),
        (403, {"error": {"message": "Your input was flagged"}}, "withheld"),
        (403, {"error": {"message": "Your account was flagged: usage policies"}}, "refused"),
        (401, {"error": "who are you"}, "key"),
        (404, "<html>Not Found</html>", "no_api"),
        (404, {"detail": "Not Found"}, "no_api"),
        (404, {"error": "model 'm' not found, try pulling it first"}, "refused"),
        (405, {"detail": "Method Not Allowed"}, "no_api"),
        (501, "Unsupported method ('POST')", "no_api"),
        (200, "<html>Open WebUI</html>", "no_api"),
        (403, "<html>Just a moment...</html>", "again"),
        (502, "<html>Bad Gateway</html>", "again"),
        (424, {"error": "CUDA out of memory"}, "again"),
        (400, {"object": "error", "message": "", "code": 50001}, "again"),
        (400, {"error": "There was an error parsing the body"}, "again"),
        (500, {"error": "list index out of range"}, "again"),
        (500, {"error": "maximum recursion depth exceeded while reading input"}, "again"),
        (503, {"error": "The request queue is full: max size 128 exceeded"}, "again"),
        (400, {"error": "no such field"}, "refused"),
    ],
    ids=str,
)
def test_every_refusal_has_one_meaning(status: int, body: Any, kind: str) -> None:
    assert kind_of(said(status, body)) == kind


@pytest.mark.parametrize(
    ("words", "sampling", "learnt"),
    [
        ("Use 'max_completion_tokens' instead.", OURS, {"limit_field": "max_completion_tokens"}),
        ("`temperature` and `top_p` cannot both be specified", OURS, {"implied": {"top_p"}}),
        ("'temperature' is refused", replace(OURS, temperature=1.0), {"implied": {"temperature"}}),
        ("System role not supported", OURS, {"system": False}),
        ("roles must alternate user/assistant", OURS, {"system": False}),
        ("'messages[0].role' does not support 'system' with this model", OURS, {"system": False}),
        ("This model only support stream mode", OURS, {"stream": True}),
        ("'temperature' is not supported", OURS, {}),
        ("'max_tokens' or 'max_completion_tokens' is too large: 9. The maximum context length is 8 "
         "tokens", OURS, {}),
    ],
    ids=str,
)  # fmt: skip
def test_what_changes_no_answer_is_done_as_the_server_asks(
    words: str, sampling: Sampling, learnt: dict[str, Any]
) -> None:
    expected = {n: frozenset(v) if isinstance(v, set) else v for n, v in learnt.items()}
    found = Dialect().learn(said(400, {"error": {"message": words}}), sampling)
    assert found == replace(Dialect(), **expected)
    assert bool(found.news(Dialect())) == bool(learnt)


@pytest.mark.parametrize(
    ("words", "sampling", "flag"),
    [
        ("invalid temperature: only 0.6 is allowed for this model", OURS, "--temperature 0.6"),
        ("'temperature' 0.7: Only the default (1) value is supported", OURS, "--temperature 1"),
        ("`temperature` is deprecated for this model.", OURS, "--temperature 1"),
        ("temperature and top_p together", replace(OURS, top_p=0.9), "--top_p 1"),
        ("max_tokens is too large: 1024. It supports at most 512 tokens", OURS, "--max_tokens 512"),
        ("Unrecognized request argument supplied: seed", replace(OURS, seed=1), "leave --seed out"),
        ("parameter.enable_thinking must be set to false", OURS, '{"enable_thinking": false}'),
        ("no such field", OURS, ""),
    ],
)
def test_what_changes_answers_ends_with_the_flag_to_type(
    words: str, sampling: Sampling, flag: str
) -> None:
    refusal = said(400, {"error": {"message": words}})
    assert flag in advice(refusal, sampling)
    error = error_of(refusal, {}, where="h", sampling=sampling)
    assert isinstance(error, RequestRefused)
    assert error.unknown_here == bool(flag)


BODIES = [
    {"choices": [{"message": {"role": "assistant", "content": "A dog."}, "finish_reason": "stop"}],
     "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}, "model": "m"},
    {"choices": [{"message": {"content": [{"type": "text", "text": "A dog."}]}}]},
    {"error": {"message": "This model's maximum context length is 512 tokens", "code": 400}},
    {"object": "error", "detail": [{"loc": ["body"], "msg": "no"}], "status": 422},
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BODIES)))
def test_no_mutated_body_ends_in_another_error_than_ours(number: int) -> None:
    random_, whole = random.Random(number), json.dumps(BODIES[number]).encode()
    pieces = (
        b"null",
        b"[]",
        b"{}",
        b"-1e999",
        b'"\\ud800"',
        b"\xff\x00\x1b",
        b'data: {"',
        b"<html>",
    )
    answered = 0
    for _ in range(400):
        body = bytearray(whole)
        for _ in range(random_.randint(1, 4)):
            at, end = sorted(random_.choices(range(len(body) + 1), k=2))
            body[at : min(end, at + 12)] = random_.choice((*pieces, b"", body[at:end]))
        try:
            assert isinstance(read_body(bytes(body)).text, str)
            answered += 1
        except BackendError as error:
            assert str(error)
        for status in (200, 400, 404, 429, 500):
            refusal = read_refusal(status, bytes(body))
            assert isinstance(error_of(refusal, {}, where="here", sampling=OURS), BackendError)
            Dialect().learn(refusal, OURS)
    assert answered < 400
