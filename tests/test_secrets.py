"""No key, token or home path in what a run prints, stores, caches or writes."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import coco_files
from loopback import LoopbackServer, chat_completion, turns_for
from running import Ended, Place

from mminstruct.backends import BackendOptions
from mminstruct.backends.openai import create
from mminstruct.config import InstructConfig
from mminstruct.schema import Message, Request, Sampling

KEY = "sk-planted-0123456789abcdef"
TOKEN = "hf_plantedTokenOfTheHub"  # noqa: S105
PASSWORD = "planted-password"  # noqa: S105
QUERY = "planted-query-token"
HOME = "home-of-planted-person"
PLANTED = (KEY, TOKEN, PASSWORD, QUERY, HOME, "planted")


def test_neither_a_log_nor_a_configs_text_shows_what_is_secret_in_a_url(
    server: LoopbackServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    caplog.set_level("INFO", logger="httpx2")
    url = with_secrets(server)
    options = BackendOptions(model="m", base_urls=(url,))
    request = Request((Message("user", "A dog."),), Sampling(0.7, 1.0, 10, None))

    async def ask() -> None:
        async with create(options) as backend:
            await backend.complete(request)
        await create(options).probe()

    server.answer = lambda server, body: chat_completion("A dog.")
    asyncio.run(ask())
    assert server.queries == [f"token={QUERY}"] * 2  # what looks for the API asks without a word
    assert f"HTTP Request: POST http://127.0.0.1:{server.port}/v1/chat/completions" in caplog.text
    config = InstructConfig(source="SAMPLE", prompt_config="llava", base_url=url)
    said = caplog.text + repr(config) + repr(options)
    assert [secret for secret in PLANTED if secret in said] == []


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A home folder with everything in it, as a user has."""
    home = tmp_path / HOME
    home.mkdir()
    return Place(home / "work", coco_files(home / "coco", 4))


def environment(place: Place) -> dict[str, str]:
    """What the user's shell has set."""
    return {"OPENAI_API_KEY": KEY, "HF_TOKEN": TOKEN, "HOME": str(place.folder.parent)}


def with_secrets(server: LoopbackServer) -> str:
    """The server's URL with a user, a password and a token."""
    return f"http://user:{PASSWORD}@127.0.0.1:{server.port}/v1?token={QUERY}"


def leaks(place: Place, ended: Ended) -> Iterator[str]:
    """Where a planted value is found."""
    # A path that was given on the command line may be repeated on the screen.
    said = ended.err.replace(str(place.data), "").replace(str(place.output), "")
    written = {"stdout": ended.out.encode(), "stderr": said.encode()}
    for path in place.folder.rglob("*"):
        name = str(path.relative_to(place.folder))
        if path.parent == place.folder / "hf" / "datasets" and path.suffix == ".lock":
            assert path.read_bytes() == b""
            continue  # `datasets` names its locks by the folder, which is the user's own
        yield from (f"path {name}: {secret}" for secret in PLANTED if secret in name)
        if path.is_file():
            written[name] = path.read_bytes()
    forms = {secret.encode() for secret in PLANTED}
    forms |= {base64.b64encode(f"user:{PASSWORD}".encode())}
    for name, content in written.items():
        yield from (f"{name}: {form.decode()}" for form in forms if form in content)


def test_a_run_that_succeeds_gives_nothing_away(place: Place, server: LoopbackServer) -> None:
    for more in ((), ("--output_format", "jsonl"), ("--output_format", "llava-instruct")):
        if more:
            place.output.rename(place.output.with_name(f"before-{more[1]}"))
        ended = place.run(with_secrets(server), "--show", "2", *more, env=environment(place))
        assert ended.code == 0, ended.err
        assert list(leaks(place, ended)) == []
    assert len(server.bodies) == 12
    assert set(server.queries) == {f"token={QUERY}"}


def test_the_key_reaches_the_server_and_nothing_else(place: Place, server: LoopbackServer) -> None:
    ended = place.run(server.url, env=environment(place))
    assert ended.code == 0, ended.err
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert list(leaks(place, ended)) == []
    sent = str(server.bodies) + str([{**h, "Authorization": ""} for h in server.headers])
    assert not any(secret in sent for secret in PLANTED)


@pytest.mark.parametrize(
    ("status", "code"), [(401, 3), (400, 3), (404, 3), (500, 3), (200, 3)], ids=str
)
def test_a_server_that_repeats_the_secrets_does_not_get_them_shown(
    place: Place, server: LoopbackServer, status: int, code: int
) -> None:
    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        words = f"you sent {KEY}, {PASSWORD} and {QUERY} " + "x" * 600
        return (status, {}, {"error": {"message": words}})

    server.answer = answer
    ended = place.run(with_secrets(server), "--max_retries", "0", env=environment(place))
    assert ended.code == code
    assert "you sent ***, *** and ***" in ended.err
    assert list(leaks(place, ended)) == []


def test_what_is_kept_of_a_single_refusal_gives_nothing_away(
    place: Place, server: LoopbackServer
) -> None:
    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        if "scene 3," in body["messages"][-1]["content"]:
            return (400, {}, {"error": {"message": f"not with {KEY} of {PASSWORD} at {QUERY}"}})
        return chat_completion(turns_for(body))

    server.answer = answer
    ended = place.run(with_secrets(server), env=environment(place))
    assert ended.code == 1, ended.err
    assert list(leaks(place, ended)) == []


def test_a_server_that_is_down_gives_nothing_away(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"http://user:{PASSWORD}@127.0.0.1:{port}/v1?token={QUERY}"
    ended = place.run(url, "--max_retries", "0", env=environment(place))
    assert ended.code == 3
    assert f"http://127.0.0.1:{port}/v1: Cannot connect" in ended.err
    assert list(leaks(place, ended)) == []


@pytest.mark.parametrize(
    "url",
    [f"ftp://user:{PASSWORD}@h/v1?token={QUERY}", f"http://user:{PASSWORD}@h:port/v1", f"u:{KEY}@"],
)
def test_a_wrong_url_gives_nothing_away(place: Place, url: str) -> None:
    ended = place.run(url, env=environment(place))
    assert ended.code == 2
    assert "base URL" in ended.err
    assert list(leaks(place, ended)) == []


@pytest.mark.parametrize("what", ["store", "annotations"])
def test_a_damaged_file_is_named_without_the_home_folder(
    place: Place, server: LoopbackServer, what: str
) -> None:
    if what == "store":
        place.store.parent.mkdir(parents=True)
        place.store.write_text("not a database " * 100)
    else:
        (place.data / "annotations" / "captions_train2017.json").write_text('{"images": [')
    ended = place.run(server.url, env=environment(place))
    assert ended.code in (2, 3)
    assert "Traceback" not in ended.err
    assert list(leaks(place, ended)) == []
