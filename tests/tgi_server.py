"""A TGI server on loopback: its API and its checks, without a model.

**Source:** the OpenAPI description of text-generation-inference 3.3 (``docs/openapi.json``) for
paths, fields, error bodies and status codes, and its documentation for what it refuses.
"""

from __future__ import annotations

import inspect
import json
import random
import re
import zlib
from collections.abc import Callable
from typing import Any

from aiohttp import web
from loopback import DROP, LoopbackServer, turns_for

SHA = "4b9adef1a4b3d0e1b3f2a7c65b0b2f9f7c3f0d21"
_TOKEN = re.compile(r"<\|im_\w+\|>|\w+|[^\w\s]")
_WORDS = ("a", "carrot", "is", "the", "root", "of", "plants", "that", "people", "eat")
# However long an answer may become, TGI sets aside no more than this at first.
_SET_ASIDE = 1024

Reply = Callable[[dict[str, Any]], Any]


def error(status: int, error_type: str, words: str) -> tuple[int, dict[str, str], dict[str, str]]:
    """A refusal as TGI writes it."""
    return status, {}, {"error": words, "error_type": error_type}


GENERATION = error(424, "generation", "Request failed during generation: Server error: CANCELLED")
INCOMPLETE = error(500, "incomplete_generation", "Incomplete generation")
OVERLOADED = error(429, "overloaded", "Model is overloaded")
UNHEALTHY = error(503, "healthcheck", "unhealthy")
TEMPLATE = error(422, "template_error", "Template error: template not found")
# A field of the wrong type: not JSON, and no error of TGI's own.
UNREADABLE = (422, {}, "Failed to deserialize the JSON body into the target type: seed")


def templated(messages: list[dict[str, str]]) -> str:
    """The prompt that a chat becomes."""
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


def prompt_tokens(messages: list[dict[str, str]]) -> int:
    """How many tokens of this server's tokenizer a chat has."""
    return len(_TOKEN.findall(templated(messages)))


def words_for(body: dict[str, Any]) -> str:
    """An answer that depends on the question, and on the seed unless it is greedy."""
    greedy = body.get("temperature") == 0.0 and body.get("top_p") is None
    seed = 0 if greedy else body.get("seed", random.getrandbits(63))
    mark = zlib.crc32(f"{seed} {body['messages'][-1]['content']}".encode())
    return " ".join(random.Random(mark).choices(_WORDS, k=30))  # noqa: S311


class TGIServer(LoopbackServer):
    """Loaded with a model that never was.

    Attributes:
        info: what ``/info`` says.
        max_input_tokens: longest prompt.
        max_total_tokens: longest prompt with its answer.
        reply: the text that answers a chat that has passed the checks, or what `LoopbackServer`
            takes from `answer`: a (status, headers, body) triple, or DROP. May sleep.
        healthy: whether ``/health`` says so.
        peers: addresses that chats came from: one for each connection.
        counted: how many chats were tokenized on request.
        busy: what the next requests to tokenize get instead, one each.
        paths: what was asked for, in order.
    """

    def __init__(self, reply: Reply = words_for, **info: Any) -> None:
        super().__init__(lambda server, body: self._checked(body))
        self.reply = reply
        self.info: dict[str, Any] = {
            "model_id": "org/model",
            "model_sha": SHA,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": 512,
            "max_best_of": 2,
            "max_stop_sequences": 4,
            "max_input_tokens": 8191,
            "max_total_tokens": 8192,
            "validation_workers": 2,
            "max_client_batch_size": 4,
            "router": "text-generation-router",
            "version": "3.3.6-dev0",
            "sha": None,
            "docker_label": None,
            **info,
        }
        self.healthy = True
        self.peers: set[Any] = set()
        self.counted = 0
        self.busy: list[Any] = []
        self.paths: list[str] = []

    @property
    def url(self) -> str:
        """The root, which is what TGI is known by."""
        return f"http://127.0.0.1:{self.port}"

    def _add_routes(self, app: web.Application) -> None:
        super()._add_routes(app)
        app.router.add_get("/health", self._health)
        app.router.add_get("/info", self._info)
        app.router.add_post("/chat_tokenize", self._tokenize)

    async def _health(self, request: web.Request) -> web.Response:
        self._note(request)
        return _response((200, {}, "")) if self.healthy else _response(UNHEALTHY)

    async def _info(self, request: web.Request) -> web.Response:
        self._note(request)
        return _response((200, {}, self.info))

    async def _tokenize(self, request: web.Request) -> web.Response:
        self._note(request)
        if self.info["version"].startswith("2.2"):
            return web.Response(status=404)  # no such path yet
        if self.busy:
            return _response(self.busy.pop(0))
        self.counted += 1
        text = templated((await request.json())["messages"])
        tokens = [
            {"id": zlib.crc32(m[0].encode()), "text": m[0], "start": m.start(), "stop": m.end()}
            for m in _TOKEN.finditer(text)
        ]
        return _response((200, {}, {"tokenize_response": tokens, "templated_text": text}))

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self._note(request)
        if request.transport is not None:
            self.peers.add(request.transport.get_extra_info("peername"))
        return await super()._handle(request)

    def _note(self, request: web.Request) -> None:
        self.paths.append(request.path)

    async def _checked(self, body: dict[str, Any]) -> Any:
        """The completion, or TGI's refusal."""
        if self.in_flight > self.info["max_concurrent_requests"]:
            return OVERLOADED
        tokens = prompt_tokens(body["messages"])
        refusal = self._refusal(body, tokens)
        if refusal:
            return error(422, "validation", f"Input validation error: {refusal}")
        answer = self.reply(body)
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, tuple) or answer == DROP:
            return answer
        return self._cut(answer, tokens, body["max_tokens"])

    def _refusal(self, body: dict[str, Any], tokens: int) -> str | None:
        temperature, top_p = body.get("temperature"), body.get("top_p")
        longest, total = self.info["max_input_tokens"], self.info["max_total_tokens"]
        aside = min(body["max_tokens"], _SET_ASIDE)
        if temperature is not None and temperature < 0.0:
            return "`temperature` must be strictly positive"
        if top_p is not None and not 0.0 < top_p < 1.0:
            return "`top_p` must be > 0.0 and < 1.0"
        if aside == 0:
            return "`max_new_tokens` must be strictly positive"
        if tokens + aside > total:
            return (
                f"`inputs` tokens + `max_new_tokens` must be <= {total}. "
                f"Given: {tokens} `inputs` tokens and {aside} `max_new_tokens`"
            )
        if tokens > longest:
            return f"`inputs` must have less than {longest} tokens. Given: {tokens}"
        return None

    def _cut(self, text: str, tokens: int, max_tokens: int) -> dict[str, Any]:
        """The text up to the limit or to the end of the window, as the body of a 200."""
        most = min(max_tokens, self.info["max_total_tokens"] - tokens)
        pieces = list(_TOKEN.finditer(text))
        is_cut = len(pieces) > most
        count = most if is_cut else len(pieces)
        return {
            "object": "chat.completion",
            "id": "",
            "created": 1735689600,
            "model": self.info["model_id"],
            "system_fingerprint": f"{self.info['version']}-native",
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": text[: pieces[most - 1].end()] if is_cut else text,
                    },
                    "logprobs": None,
                    "finish_reason": "length" if is_cut else "stop",
                }
            ],
            "usage": {
                "prompt_tokens": tokens,
                "completion_tokens": count,
                "total_tokens": tokens + count,
            },
        }


def turns_server() -> TGIServer:
    """A server whose answers every prompt config accepts."""
    return TGIServer(turns_for)


def _response(answer: tuple[int, dict[str, str], Any]) -> web.Response:
    status, headers, content = answer
    text = content if isinstance(content, str) else json.dumps(content)
    return web.Response(status=status, headers=headers, text=text, content_type="application/json")
