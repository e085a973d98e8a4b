"""Every line of docs/servers.md, run against a server that behaves as the one it is for."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pytest
from aiohttp import web
from dummy_data import write_all
from loopback import LoopbackServer, chat_completion, turns_for
from tgi_server import turns_server

from mminstruct import cli
from mminstruct.cli.console import DONE

DOC = (Path(__file__).parents[1] / "docs" / "servers.md").read_text(encoding="utf-8")
LINES = dict(re.findall(r"^# ([\w.]+).*\n(mminstruct .*)$", DOC, re.MULTILINE))
KEY = "sk-for-the-loopback-server"
THOUGHT = "SECRETTHOUGHT"
Body = dict[str, Any]
Reply = tuple[int, dict[str, str], Any]


@dataclass(frozen=True)
class Behaviour:
    """What is particular about a server.

    Attributes:
        path: where its API is.
        headers: that have to come.
        query: likewise.
        refuses: its error for a request, or None.
        form: its answer, from that of OpenAI's API.
        told: headers of its answers.
    """

    path: str = "/v1/chat/completions"
    headers: dict[str, str] = field(default_factory=dict)
    query: str = ""
    refuses: Callable[[Body], Reply | None] = lambda body: None
    form: Callable[[Body, Body], Any] = lambda answer, body: answer
    told: dict[str, str] = field(default_factory=dict)


def with_message(answer: Body, **more: Any) -> Body:
    """An answer whose message has other fields."""
    answer["choices"][0]["message"].update(more)
    return answer


def thinking(answer: Body, body: Body) -> Body:
    """Of vLLM: thoughts alone, unless the template is told not to think."""
    if body.get("chat_template_kwargs") == {"enable_thinking": False}:
        return with_message(answer, reasoning_content=None, tool_calls=[])
    return with_message(answer, content=None, reasoning_content=THOUGHT)


def openai(body: Body) -> Reply | None:
    """Of OpenAI's thinking models."""
    for name, words in (
        ("max_tokens", "Use 'max_completion_tokens' instead."),
        ("temperature", "Only the default (1) value is supported."),
        ("top_p", "Only the default (1) value is supported."),
    ):
        if name in body:
            error = {"message": f"Unsupported: '{name}'. {words}", "param": name}
            return 400, {}, {"error": {**error, "code": "unsupported_parameter"}}
    assert body["reasoning_effort"] == "low"
    return None


def mistral(body: Body) -> Reply | None:
    """Of Mistral, which knows no seed by that name."""
    detail = [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs"}]
    return (422, {}, {"detail": detail}) if "seed" in body else None


def parts(answer: Body, body: Body) -> Body:
    """Of Mistral: thoughts and text as parts of the content."""
    text = answer["choices"][0]["message"]["content"]
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}
    return with_message(answer, content=[thought, {"type": "text", "text": text}])


def matched(answer: Body, body: Body) -> Body:
    """Of SGLang, by some versions of which an end has parts."""
    answer["choices"][0]["finish_reason"] = {"type": "stop", "matched": 128009}
    return answer


BEARER = {"Authorization": f"Bearer {KEY}"}
LIMITS = {"x-ratelimit-limit": "600", "x-ratelimit-remaining": "599", "x-ratelimit-reset": "1"}
BEHAVIOURS = {
    "vLLM": Behaviour(form=thinking),
    "SGLang": Behaviour(form=matched),
    "Ollama": Behaviour(form=lambda a, b: {**a, "system_fingerprint": "fp_ollama"}),
    "LM": Behaviour(form=lambda a, b: {**a, "stats": {}, "model": "gemma-3-12b-it-qat"}),
    "llama.cpp": Behaviour(form=lambda a, b: {**a, "timings": {"cache_n": 1}, "usage": None}),
    "LiteLLM": Behaviour(headers=BEARER, form=lambda a, b: {**a, "service_tier": None}),
    "OpenAI": Behaviour(headers=BEARER, refuses=openai),
    "Azure": Behaviour(
        path="/openai/deployments/gpt-4o/chat/completions",
        headers={"api-key": "azure-key-123456"},
        query="api-version=2024-10-21",
        form=lambda a, b: {**a, "model": "gpt-4o-2024-08-06", "prompt_filter_results": []},
    ),
    "OpenRouter": Behaviour(
        path="/api/v1/chat/completions",
        headers=BEARER,
        form=lambda a, b: " \n\n" * 9 + json.dumps(with_message(a, reasoning=None)),
    ),
    "Together": Behaviour(headers=BEARER, told=LIMITS),
    "Groq": Behaviour(
        path="/openai/v1/chat/completions",
        headers=BEARER,
        told={f"{name}-requests": value for name, value in LIMITS.items()},
        form=lambda a, b: {**a, "x_groq": {"id": "req_1"}},
    ),
    "DeepSeek": Behaviour(headers=BEARER, form=lambda a, b: "\n" * 5 + json.dumps(a)),
    "Mistral": Behaviour(headers=BEARER, refuses=mistral, form=parts),
}


class Provider(LoopbackServer):
    """A server that answers at its own address alone, and only to who has its key."""

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__()
        self.behaviour = behaviour
        self.paths: list[str] = []

    def _add_routes(self, app: web.Application) -> None:
        app.router.add_route("*", "/{tail:.*}", self._answer)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.method != "POST":
            return web.Response(status=404, text="not here")
        self.paths.append(request.path)
        its = self.behaviour
        if (request.path, request.query_string) != (its.path, its.query):
            return web.Response(status=404, text="<html>Not Found</html>")
        if any(request.headers.get(name) != value for name, value in its.headers.items()):
            return web.json_response({"error": {"message": "who are you?"}}, status=401)
        self.answer = self._reply
        return await self._handle(request)

    def _reply(self, server: LoopbackServer, body: Body) -> Any:
        refusal = self.behaviour.refuses(body)
        answer = chat_completion(turns_for(body), model=body["model"])
        return refusal or (200, self.behaviour.told, self.behaviour.form(answer, body))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "azure-key-123456")
    write_all(tmp_path / "cache", 1)
    return tmp_path


def test_every_server_has_a_line_and_a_behaviour() -> None:
    assert LINES.keys() == {*BEHAVIOURS, "TGI"}


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_the_line_for_a_server_generates(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour = BEHAVIOURS[name]
    if "Authorization" in behaviour.headers:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
    else:
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Provider(behaviour) as server:
        root = f"http://127.0.0.1:{server.port}"
        monkeypatch.setenv("OPENAI_BASE_URL", f"{root}/v1")
        line = re.sub(
            r"https?://[^/]+(?=/(?:api/|openai/)?(?:v1|deployments)\b)", root, LINES[name]
        )
        arguments = [
            *shlex.split(line)[1:],
            "--response_store",
            "r.sqlite",
            "--output_path",
            "out.jsonl",
        ]
        assert cli.run(arguments) == DONE
    rows = (place / "out.jsonl").read_text("utf-8")
    assert len(rows.splitlines()) == 3
    assert THOUGHT not in rows
    assert set(server.paths) == {behaviour.path}
    assert all(KEY not in text for text in [rows, (place / "out.jsonl.LICENSE").read_text("utf-8")])


def test_the_line_for_tgi_generates(place: Path) -> None:
    pytest.importorskip("text_generation", reason="the extra tgi isn't installed")
    with turns_server() as server:
        line = LINES["TGI"].replace("http://localhost:8080", server.url)
        assert cli.run([*shlex.split(line)[1:], "--response_store", "r.sqlite"]) == DONE
