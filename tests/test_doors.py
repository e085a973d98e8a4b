"""What comes in is bounded: bodies of servers, files of a user's; prompts go nowhere else."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import yaml

from mminstruct import backends, sources, strict_yaml
from mminstruct.backends import BackendOptions
from mminstruct.errors import BackendUnusable, ConfigError, SourceError, TransientError
from mminstruct.schema import Message, Request, Sampling
from mminstruct.sources._unpacked import bound_unpacking

REQUEST = Request((Message("user", "A secret dog."),), Sampling(0.7, 1.0, 10, None))
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def body(content: bytes, *headers: str, status: str = "200 OK") -> Answer:
    """Answers with these bytes."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        head = [
            f"HTTP/1.1 {status}",
            f"Content-Length: {len(content)}",
            "Connection: close",
            *headers,
            "",
            "",
        ]
        writer.write("\r\n".join(head).encode() + content)
        await writer.drain()

    return answer


async def endless(writer: asyncio.StreamWriter) -> None:
    """A body that has no end."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        await writer.drain()


BOMB = gzip.compress(bytes(40 * 2**20))


async def ask(name: str, answer: Answer, *, info: Answer | None = None) -> None:
    """Send the request to a server that answers so, or so when it is asked what it is."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length or 0))
        try:
            await (info(writer) if head.startswith(b"GET") else answer(writer))
        except ConnectionError:
            pass
        finally:
            writer.close()

    if name == "tgi":
        pytest.importorskip("text_generation", reason="the extra tgi isn't installed")
    told = {"model_id": "m", "max_total_tokens": 1000, "max_concurrent_requests": 4}
    info = info or body(
        json.dumps({**told, "version": "3.0"}).encode(), "Content-Type: application/json"
    )
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    backend = backends.create(name, BackendOptions(model="m", base_urls=(url,)))

    async def complete() -> None:
        async with backend:
            await backend.complete(REQUEST)

    try:
        await asyncio.to_thread(asyncio.run, complete())
    finally:
        server.close()


@pytest.mark.parametrize("name", ["openai", "tgi"])
@pytest.mark.parametrize(
    "answer",
    [
        endless,
        body(BOMB, "Content-Encoding: gzip"),
        body(BOMB, "Content-Encoding: gzip", status="400 Bad Request"),
        body(b" " * 40 * 2**20),
    ],
    ids=["endless", "a bomb", "a bomb of an error", "long"],
)
def test_an_answer_without_bound_is_given_up(name: str, answer: Answer) -> None:
    with pytest.raises(TransientError, match="the answer is longer than 33,554,432 bytes") as got:
        asyncio.run(ask(name, answer))
    assert got.value.cause == "bad_body"


@pytest.mark.parametrize("name", ["openai", "tgi"])
@pytest.mark.parametrize(
    "status", ["302 Found", "307 Temporary Redirect", "308 Permanent Redirect"]
)
def test_prompts_follow_no_redirect_to_somebody_else(name: str, status: str) -> None:
    stolen: list[bytes] = []

    async def steal() -> None:
        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            stolen.append(await reader.read(10_000))
            writer.close()

        thief = await asyncio.start_server(take, "127.0.0.1", 0)
        port = thief.sockets[0].getsockname()[1]
        to = f"Location: http://user:secret@127.0.0.1:{port}/v1/chat/completions?key=secret"
        try:
            await ask(name, body(b"", to, status=status))
        finally:
            thief.close()

    with pytest.raises(BackendUnusable, match="redirects to http://127.0.0.1:.*if that is") as got:
        asyncio.run(steal())
    assert stolen == []
    assert "secret" not in str(got.value)


def test_what_a_server_says_of_itself_is_bounded_too() -> None:
    with pytest.raises(BackendUnusable, match="/health: the answer is longer than"):
        asyncio.run(ask("tgi", endless, info=endless))


def test_annotations_that_unpack_out_of_proportion_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "coco.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("captions_train2017.json", "{}")
        archive.writestr("instances_train2017.json", b'{"images": [' + b" " * 80 * 2**20)
    with pytest.raises(SourceError, match="json: unpacks to more than 67,108,864 bytes"):
        sources.get("COCO2017").locate([path], "train")


def test_what_is_in_proportion_is_unpacked_as_it_is() -> None:
    content = os.urandom(3 * 2**20) + b"a\nb"
    with bound_unpacking(io.BytesIO(content), 1, "x") as file:
        assert file.read() == content
    with bound_unpacking(io.BytesIO(b"a\nb"), 1, "x") as file:
        assert list(file) == [b"a\n", b"b"]


LAUGHS = "\n".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" if before else f"{name}: &{name} [lol]"
    for before, name in zip(["", *"abcdefghi"], "abcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, r"'\*a' repeats a list or mapping; write it out.*line 2"),
        ("a: " + "[" * 500, "more than 100 lists and mappings in each other"),
        ("a: " + "x" * (5 * 2**20), "longer than 4,194,304 characters"),
        ("a: 2026-02-31", "a value that makes no sense: day"),
        ("a: !!timestamp soon", "a value that makes no sense"),
        ("a: !!bool maybe", "a value that makes no sense: 'maybe'"),
        ("a: " + "9" * 5000, "a value that makes no sense: Exceeds the limit"),
        ("a: {b: 1, b: 2}", "key 'b' is given twice.*line 1, column 11"),
        ("? [a]\n: 1", "a value that makes no sense: unhashable"),
        ("a: *b", r"'\*b' stands for nothing.*line 1"),
        ("--- {a: 1}\n--- {b: 2}", "expected one document, got more.*line 2"),
    ],
    ids=["laughs", "deep", "long", "date", "timestamp", "bool", "number"]
    + ["twice", "list", "nothing", "documents"],
)
def test_a_yaml_file_that_would_take_much_or_makes_no_sense_is_a_config_error(
    text: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"(?s)p.yaml: not readable as YAML: .*{words}"):
        strict_yaml.read(path)


def test_a_text_may_be_repeated_by_an_alias(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("a: &again some words\nb: *again\nc: &list [1]\n")
    assert strict_yaml.read(path) == {"a": "some words", "b": "some words", "c": [1]}


def test_a_text_is_read_as_pyyaml_reads_it() -> None:
    values = "1 -2.5 .inf 0x1F 1_000 ~ yes Off 2026-11-30 '1' !!str 1 ! 12 1e3 1.5e+3 012 1:30 a#b"
    lists = "\n".join(f"- {value}" for value in re.split(r"(?<!!str)(?<!!) ", values))
    blocks = "a: |\n  x\n  y\nb: >-\n  z\n  w\n? c\n: [1, {d: }]\n~: &x 1\ntrue: *x\n2026-01-01:\n"
    for text in ("", "# nothing", "a", "--- a\n...\n", "a: !!binary aGk=", lists, blocks):
        assert repr(strict_yaml.load(text)) == repr(yaml.safe_load(text))


def test_the_card_of_a_model_that_is_a_bomb_is_named_within_half_a_gigabyte(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{LAUGHS}\nbase_model: *j\n---\n")
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_DATA, (2**29, 2**29)); "
        "from pathlib import Path; from mminstruct.licenses import lineage; "
        f"lineage.declared(Path({str(tmp_path)!r}))"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert "README.md: its front matter is not readable as YAML: '*a' repeats" in ended.stderr
