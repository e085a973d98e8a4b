"""A loopback server with the files and batches of OpenAI's API, which fails where a test says.

**Source:** https://developers.openai.com/api/reference/resources/batches (objects and statuses)
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from aiohttp import web
from loopback import DROP, LoopbackServer, chat_completion, turns_for

KILL = "kill"

Refusal = tuple[int, dict[str, str], Any]
Event = Callable[[str, int], "str | Refusal | None"]


def error_body(message: str, code: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    return {"error": {"message": message, "type": "invalid_request_error", "code": code}}


class BatchServer(LoopbackServer):
    """Answers batches as `line` says, and keeps all that was submitted.

    Attributes:
        files: what was uploaded or written as a result, by id.
        batches: by id, in order of creation.
        submitted: the custom ids of each batch that was created, in that order.
        bodies_of: body of each custom id's last line.
        uploads: names of all uploaded files.
        event: called with a step (``upload:before``, ``create:after`` ...) and how often it has
            come; may return DROP, KILL (of the process ``victim``) or a (status, headers, body).
        line: a request's body -> (status, body), or a line as it stands, or None for no line.
        end: a batch -> the status that it ends in.
        errors: what is wrong with a batch that ends as ``failed``.
        polls: looks at a batch before it ends; a test may change it at any time.
        page: entries of a list at most.
        lag_s: how long a new batch is in no list.
        hides_metadata: whether batches come without the metadata they were created with.
        hides_counts: whether they come without the counts of their requests.
        zero_counts: whether these are all zero.
        page_for: name of a file in whose place a web page comes.
        output_looks: looks at a batch that has ended before its output file is named.
        victim: process id.
        steps: how often each step has come.
    """

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, dict[str, Any]] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.submitted: list[list[str]] = []
        self.bodies_of: dict[str, dict[str, Any]] = {}
        self.uploads: list[str] = []
        self.authorizations: set[str | None] = set()
        self.event: Event = lambda step, number: None
        self.line: Callable[[dict[str, Any]], Any] = lambda body: (
            200,
            chat_completion(turns_for(body)),
        )
        self.end: Callable[[dict[str, Any]], str] = lambda batch: "completed"
        self.errors: list[dict[str, Any]] = []
        self.polls = 1
        self.page = 100
        self.lag_s = 0.0
        self.hides_metadata = False
        self.hides_counts = self.zero_counts = False
        self.output_looks = 0
        self.page_for = ""
        self.victim: int | None = None
        self.steps: Counter[str] = Counter()

    @property
    def answered(self) -> Counter[str]:
        """How often each custom id got an answer in a result file that ever was."""
        found: Counter[str] = Counter()
        for batch in self.batches.values():
            found.update(batch["answered"])
        return found

    @property
    def left(self) -> list[str]:
        """Names of the files that are still here."""
        return [file["filename"] for file in self.files.values()]

    def add_routes(self, app: web.Application) -> None:
        """Files and batches."""
        app.router.add_post("/v1/files", self._step("upload", self._upload))
        app.router.add_get("/v1/files", self._step("list_files", self._list_files))
        app.router.add_get("/v1/files/{id}/content", self._content)
        app.router.add_delete("/v1/files/{id}", self._step("delete", self._delete))
        app.router.add_post("/v1/batches", self._step("create", self._create))
        app.router.add_get("/v1/batches", self._step("list_batches", self._list_batches))
        app.router.add_get("/v1/batches/{id}", self._step("retrieve", self._retrieve))
        app.router.add_post("/v1/batches/{id}/cancel", self._step("cancel", self._cancel))

    def _step(self, name: str, act: Any) -> Any:
        async def handle(request: web.Request) -> web.StreamResponse:
            self.authorizations.add(request.headers.get("Authorization"))
            early = await self._happens(f"{name}:before", request)
            if early is not None:
                return early
            status, body = await act(request)
            late = await self._happens(f"{name}:after", request)
            return late if late is not None else web.json_response(body, status=status)

        return handle

    async def _happens(self, step: str, request: web.Request) -> web.StreamResponse | None:
        self.steps[step] += 1
        result = self.event(step, self.steps[step])
        if result is None:
            return None
        if isinstance(result, tuple):
            status, headers, body = result
            text = body if isinstance(body, str) else json.dumps(body)
            kind = "text/html" if text.startswith("<") else "application/json"
            return web.Response(text=text, status=status, headers=headers, content_type=kind)
        if result == KILL:
            while self.victim is None:  # the test writes it down right after the start
                await asyncio.sleep(0.01)
            os.kill(self.victim, signal.SIGKILL)
            self.victim = None
        assert result in (DROP, KILL)
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    def _add_file(self, name: str, purpose: str, content: bytes) -> str:
        file_id = f"file-{len(self.uploads)}-{len(self.files)}-{self.steps.total()}"
        self.files[file_id] = {
            "id": file_id,
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": name,
            "purpose": purpose,
            "status": "processed",
            "content": content,
        }
        return file_id

    def _shown(self, file_id: str) -> dict[str, Any]:
        return {name: v for name, v in self.files[file_id].items() if name != "content"}

    async def _upload(self, request: web.Request) -> tuple[int, Any]:
        form = await request.post()
        file = form["file"]
        assert isinstance(file, web.FileField)
        assert form["purpose"] == "batch"
        self.uploads.append(file.filename)
        return 200, self._shown(self._add_file(file.filename, "batch", file.file.read()))

    async def _list_files(self, request: web.Request) -> tuple[int, Any]:
        shown = [self._shown(i) for i, f in self.files.items() if f["purpose"] == "batch"]
        return 200, self._page(request, shown)

    async def _delete(self, request: web.Request) -> tuple[int, Any]:
        if self.files.pop(request.match_info["id"], None) is None:
            return 404, error_body("no such file")
        return 200, {"id": request.match_info["id"], "object": "file", "deleted": True}

    async def _content(self, request: web.Request) -> web.StreamResponse:
        early = await self._happens("content:before", request)
        if early is not None:
            return early
        file = self.files.get(request.match_info["id"])
        if file is None:
            return web.json_response(error_body("no such file"), status=404)
        content = file["content"]
        if file["filename"] == self.page_for:
            content = b"<html>\nPlease log in\n</html>\n" * 9
        response = web.StreamResponse()
        response.content_length = len(content)
        await response.prepare(request)
        await response.write(content[: len(content) // 2])
        late = await self._happens("content:middle", request)
        if late is not None:
            return late
        await response.write(content[len(content) // 2 :])
        await response.write_eof()
        return response

    async def _create(self, request: web.Request) -> tuple[int, Any]:
        body = await request.json()
        assert body["completion_window"] == "24h"
        assert body["endpoint"] == "/v1/chat/completions"
        file = self.files.get(body["input_file_id"])
        if file is None:
            return 400, error_body(f"Invalid file {body['input_file_id']}")
        lines = [json.loads(line) for line in file["content"].splitlines()]
        ids = [line["custom_id"] for line in lines]
        assert len(set(ids)) == len(ids)
        assert all(len(custom_id) <= 64 for custom_id in ids)
        assert all(line["method"] == "POST" for line in lines)
        assert all(line["url"] == "/v1/chat/completions" for line in lines)
        batch_id = f"batch_{len(self.batches) + 1}"
        self.batches[batch_id] = {
            "id": batch_id,
            "object": "batch",
            "endpoint": body["endpoint"],
            "completion_window": "24h",
            "input_file_id": body["input_file_id"],
            "created_at": int(time.time()),
            "status": "validating",
            "metadata": body.get("metadata"),
            "output_file_id": None,
            "error_file_id": None,
            "errors": None,
            "request_counts": {"total": len(ids), "completed": 0, "failed": 0},
            "lines": lines,
            "looks": 0,
            "ended": None,
            "listed_at": time.monotonic() + self.lag_s,
            "answered": [],
        }
        self.submitted.append(ids)
        self.bodies_of.update({line["custom_id"]: line["body"] for line in lines})
        return 200, self._public(self.batches[batch_id])

    def _public(self, batch: dict[str, Any]) -> dict[str, Any]:
        hidden = {"lines", "looks", "listed_at", "answered", "ended"}
        if self.hides_metadata:
            hidden.add("metadata")
        if self.hides_counts:
            hidden.add("request_counts")
        shown = {name: value for name, value in batch.items() if name not in hidden}
        if self.zero_counts:
            shown["request_counts"] = dict.fromkeys(batch["request_counts"], 0)
        if batch["ended"] is not None and batch["looks"] < batch["ended"] + self.output_looks:
            shown["output_file_id"] = None
        return shown

    async def _list_batches(self, request: web.Request) -> tuple[int, Any]:
        listed = [b for b in self.batches.values() if b["listed_at"] <= time.monotonic()]
        return 200, self._page(request, [self._public(b) for b in reversed(listed)])

    def _page(self, request: web.Request, entries: list[dict[str, Any]]) -> dict[str, Any]:
        after = request.query.get("after")
        if after is not None:
            entries = entries[[entry["id"] for entry in entries].index(after) + 1 :]
        size = min(self.page, int(request.query.get("limit", 100)))
        return {"object": "list", "data": entries[:size], "has_more": len(entries) > size}

    async def _retrieve(self, request: web.Request) -> tuple[int, Any]:
        batch = self.batches.get(request.match_info["id"])
        if batch is None:
            return 404, error_body("no such batch")
        batch["looks"] += 1
        if batch["status"] == "cancelling":
            self._finish(batch, "cancelled")
        elif batch["status"] in ("validating", "in_progress"):
            if batch["looks"] > self.polls:
                self._finish(batch, self.end(batch))
            else:
                batch["status"] = "in_progress"
        return 200, self._public(batch)

    async def _cancel(self, request: web.Request) -> tuple[int, Any]:
        batch = self.batches[request.match_info["id"]]
        batch["status"] = "cancelling"
        return 200, self._public(batch)

    def _finish(self, batch: dict[str, Any], status: str) -> None:
        batch["status"], batch["ended"] = status, batch["looks"]
        if status == "failed":
            batch["errors"] = {"object": "list", "data": self.errors}
            return
        batch["answered"] = []
        output: list[str] = []
        errors: list[str] = []
        for line in batch["lines"]:
            result = self.line(line["body"])
            if isinstance(result, str):
                output.append(result)
            elif isinstance(result, dict):
                errors.append(_result(line, None, result))
            elif result is not None:
                code, body = result
                response = {"status_code": code, "request_id": "r", "body": body}
                (output if code == 200 else errors).append(_result(line, response, None))
                if code == 200:
                    batch["answered"].append(line["custom_id"])
        batch["request_counts"] = {
            "total": len(batch["lines"]),
            "completed": len(batch["answered"]),
            "failed": len(batch["lines"]) - len(batch["answered"]),
        }
        for name, lines in (("output", output), ("error", errors)):
            if lines:
                content = "".join(f"{line}\n" for line in lines).encode()
                file_id = self._add_file(f"{batch['id']}_{name}.jsonl", "batch_output", content)
                batch[f"{name}_file_id"] = file_id


def _result(line: dict[str, Any], response: Any, error: Any) -> str:
    shown = {"id": "req", "custom_id": line["custom_id"], "response": response, "error": error}
    return json.dumps(shown, ensure_ascii=False)
