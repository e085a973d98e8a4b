"""Downloads over a real socket, from a server on this machine that misbehaves as told."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import pytest

from mminstruct.errors import DownloadError
from mminstruct.fetching import archives
from mminstruct.fetching.archives import RETRY, fetch
from mminstruct.sources import Download

BODY = random.Random(1).randbytes(3_000_000)
MD5 = hashlib.md5(BODY, usedforsecurity=False).hexdigest()

WAITS_S = [RETRY.base_s * 2**retry for retry in range(RETRY.max_retries)]


@dataclass
class Script:
    """How the server behaves, and what it was asked.

    Attributes:
        body: what it serves.
        statuses: answers of the first requests, before it serves anything.
        drop_after: bytes after which connections are cut; one entry per served request.
        ranges: whether it knows Range requests.
        length: whether it tells Content-Length.
        headers: more headers of every answer.
        asked: the Range header of each request so far, None where there was none.
        asked_if: the If-Range header of each, likewise; one that doesn't hold gets the whole file.
        head_status: the answer to HEAD requests.
        gate: answers wait for it.
        heads: HEAD requests so far.
    """

    body: bytes = BODY
    statuses: list[int] = field(default_factory=list)
    drop_after: list[int] = field(default_factory=list)
    ranges: bool = True
    length: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[str | None] = field(default_factory=list)
    asked_if: list[str | None] = field(default_factory=list)
    head_status: int = 200
    gate: threading.Event = field(default_factory=threading.Event)
    request_seen: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    heads: int = 0

    @property
    def download(self) -> Download:
        """What the publisher says about the file, whatever is served."""
        return Download(f"{self.url}/files/archive.zip", len(BODY), MD5)


class Handler(BaseHTTPRequestHandler):
    script: Script

    def do_GET(self) -> None:  # noqa: N802
        script = self.script
        script.asked.append(self.headers["Range"])
        script.asked_if.append(self.headers["If-Range"])
        script.request_seen.set()
        assert script.gate.wait(timeout=30)
        if script.statuses:
            self.answer(script.statuses.pop(0), b"", {"Content-Length": "0"})
            return
        known = self.headers["If-Range"] in (None, *script.headers.values())
        ranges = script.ranges and known and self.headers["Range"]
        first = int(self.headers["Range"][6:-1]) if ranges else 0
        total = len(script.body)
        if first >= total:
            self.answer(416, b"", {"Content-Range": f"bytes */{total}"})
            return
        rest = script.body[first:]
        headers = {"Content-Length": str(len(rest))} if script.length else {}
        if ranges:
            headers["Content-Range"] = f"bytes {first}-{total - 1}/{total}"
        status = 206 if "Content-Range" in headers else 200
        body = rest[: script.drop_after.pop(0)] if script.drop_after else rest
        self.answer(status, body, headers)

    def do_HEAD(self) -> None:  # noqa: N802
        script = self.script
        script.heads += 1
        headers = {"Content-Length": str(len(script.body))} if script.length else {}
        self.answer(script.head_status, b"", headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | self.script.headers).items():
            self.send_header(name, value)
        self.end_headers()
        # The client may have hung up on purpose.
        try:
            self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps the test's output quiet."""


@pytest.fixture(autouse=True)
def plain_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a proxy nor the offline mode of the machine the tests run on."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)


@pytest.fixture
def server() -> Iterator[Script]:
    script = Script()
    script.gate.set()
    handler = type("ScriptedHandler", (Handler,), {"script": script})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        script.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield script
        script.gate.set()
        http.shutdown()
        thread.join()


@pytest.fixture
def waits() -> list[float]:
    return []


def get(server: Script, cache_dir: Path, waits: list[float] | None = None, **options: Any) -> Path:
    sleep = waits.append if waits is not None else (lambda _: None)
    return fetch(server.download, cache_dir, progress=False, sleep=sleep, **options)


def target(cache_dir: Path) -> Path:
    return cache_dir / MD5 / "archive.zip"


def leave_part(cache_dir: Path, content: bytes) -> Path:
    part = target(cache_dir).with_name("archive.zip.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    return part


def test_a_file_arrives_under_its_own_name_and_nothing_incomplete_stays(
    server: Script, tmp_path: Path
) -> None:
    path = get(server, tmp_path / "made" / "on demand")
    assert path == target(tmp_path / "made" / "on demand")
    assert path.read_bytes() == BODY
    assert not list(tmp_path.rglob("*.part"))
    assert server.asked == [None]


def test_a_verified_file_is_used_again_without_a_connection(
    server: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = get(server, tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert get(server, tmp_path) == first
    assert len(server.asked) == 1


def test_a_dropped_connection_is_continued_where_it_ended(
    server: Script, tmp_path: Path, waits: list[float]
) -> None:
    server.drop_after = [100_000, 200_000]
    assert get(server, tmp_path, waits).read_bytes() == BODY
    assert server.asked == [None, "bytes=100000-", "bytes=300000-"]
    assert waits == WAITS_S[:2]


def test_a_later_run_continues_what_an_earlier_one_left(server: Script, tmp_path: Path) -> None:
    leave_part(tmp_path, BODY[:2_000_000])
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.asked == ["bytes=2000000-"]


def test_a_complete_part_is_verified_without_a_connection(server: Script, tmp_path: Path) -> None:
    leave_part(tmp_path, BODY)
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.asked == []


def test_a_part_that_is_too_long_is_started_over(server: Script, tmp_path: Path) -> None:
    leave_part(tmp_path, BODY + b"more")
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.asked == [None]


def test_a_server_that_ignores_ranges_makes_it_start_over(server: Script, tmp_path: Path) -> None:
    server.ranges = False
    leave_part(tmp_path, b"x" * 1000)
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.asked == ["bytes=1000-"]


def test_an_answer_with_another_range_makes_it_start_over(server: Script, tmp_path: Path) -> None:
    server.headers = {"Content-Range": f"bytes 5-{len(BODY) - 1}/{len(BODY)}"}
    server.drop_after = [0, len(BODY)]
    leave_part(tmp_path, BODY[:1000])
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.asked == ["bytes=1000-", None]


def test_a_server_that_drops_every_connection_early_is_given_up(
    server: Script, tmp_path: Path, waits: list[float]
) -> None:
    server.drop_after = [10] * 100
    with pytest.raises(DownloadError, match="given up after 6 attempts, got 60 bytes") as caught:
        get(server, tmp_path, waits)
    assert f"against {len(BODY)} expected. Run again to continue" in str(caught.value)
    assert str(target(tmp_path)) in str(caught.value)
    assert waits == WAITS_S
    server.drop_after = []
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.asked[-1] == "bytes=60-"


def test_attempts_are_not_used_up_while_the_file_grows(
    server: Script, tmp_path: Path, waits: list[float]
) -> None:
    server.body = BODY * 4
    md5 = hashlib.md5(server.body, usedforsecurity=False).hexdigest()
    download = Download(server.download.url, len(server.body), md5)
    server.drop_after = [1_300_000] * 9
    path = fetch(download, tmp_path, progress=False, sleep=waits.append)
    assert path.read_bytes() == server.body
    assert waits == [WAITS_S[0]] * 9


def test_a_server_without_ranges_that_drops_in_the_middle_is_given_up(
    server: Script, tmp_path: Path
) -> None:
    server.ranges = False
    server.drop_after = [1_500_000, 10] * 100
    with pytest.raises(DownloadError, match="given up"):
        get(server, tmp_path)
    assert len(server.asked) < 10


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_troubles_of_the_server_are_tried_again(
    server: Script, tmp_path: Path, status: int, waits: list[float]
) -> None:
    server.statuses = [status, status]
    assert get(server, tmp_path, waits).read_bytes() == BODY
    assert waits == WAITS_S[:2]


def test_the_wait_that_a_server_asks_for_is_kept_within_a_minute(
    server: Script, tmp_path: Path, waits: list[float]
) -> None:
    server.statuses, server.headers = [503], {"Retry-After": "20"}
    get(server, tmp_path / "a", waits)
    server.statuses, server.headers = [503], {"Retry-After": "86400"}
    get(server, tmp_path / "b", waits)
    assert waits == [20.0, 60.0]


def test_a_server_in_lasting_trouble_is_given_up(
    server: Script, tmp_path: Path, waits: list[float]
) -> None:
    server.statuses = [503] * 100
    with pytest.raises(DownloadError, match=r"given up after 6 attempts.*\(last: HTTP 503\)"):
        get(server, tmp_path, waits)
    assert len(server.asked) == 6


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_file_that_is_not_served_is_an_error_at_once(
    server: Script, tmp_path: Path, status: int, waits: list[float]
) -> None:
    server.statuses = [status]
    with pytest.raises(DownloadError, match=f"not served, got HTTP {status}") as caught:
        get(server, tmp_path, waits)
    assert server.download.url in str(caught.value)
    assert waits == []


def test_a_server_that_nobody_runs_is_given_up(tmp_path: Path, waits: list[float]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        download = Download(f"http://127.0.0.1:{port}/archive.zip", 1, MD5)
        with pytest.raises(DownloadError, match=r"given up after 6 attempts.*refused"):
            fetch(download, tmp_path, progress=False, sleep=waits.append)
    assert waits == WAITS_S


def test_a_server_that_falls_silent_counts_as_dropped(
    server: Script, tmp_path: Path, waits: list[float]
) -> None:
    server.gate.clear()

    def sleep_then_wake_the_server(delay_s: float) -> None:
        waits.append(delay_s)
        server.gate.set()

    path = fetch(
        server.download,
        tmp_path,
        progress=False,
        timeout_s=0.2,
        sleep=sleep_then_wake_the_server,
    )
    assert path.read_bytes() == BODY
    assert waits[0] == WAITS_S[0]


def test_other_bytes_are_an_error_and_the_part_is_removed(server: Script, tmp_path: Path) -> None:
    server.body = BODY[:-1] + bytes([BODY[-1] ^ 1])
    got = hashlib.md5(server.body, usedforsecurity=False).hexdigest()
    with pytest.raises(DownloadError, match=f"got MD5 {got} against MD5 {MD5} expected"):
        get(server, tmp_path)
    assert not list(tmp_path.rglob("archive.zip*.part"))
    assert not target(tmp_path).exists()
    server.body = BODY
    assert get(server, tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("change", [-1, 1])
def test_another_size_is_an_error_before_anything_is_written(
    server: Script, tmp_path: Path, change: int
) -> None:
    server.body = (BODY + b"x")[: len(BODY) + change]
    expected = f"got {len(BODY) + change} bytes against {len(BODY)} bytes expected"
    with pytest.raises(DownloadError, match=expected):
        get(server, tmp_path)
    assert not list(tmp_path.rglob("*.part"))


def test_another_size_is_noticed_when_continuing(server: Script, tmp_path: Path) -> None:
    leave_part(tmp_path, BODY[:1000])
    server.body = BODY + b"x"
    with pytest.raises(DownloadError, match=f"got {len(BODY) + 1} bytes against"):
        get(server, tmp_path)
    assert not list(tmp_path.rglob("*.part"))


def test_a_file_that_became_shorter_on_the_server_is_noticed(
    server: Script, tmp_path: Path
) -> None:
    leave_part(tmp_path, BODY[:1000])
    server.body = BODY[:500]
    with pytest.raises(DownloadError, match="got 500 bytes against"):
        get(server, tmp_path)
    assert server.asked == ["bytes=1000-", None]


def test_a_server_that_does_not_tell_the_size_may_not_send_more(
    server: Script, tmp_path: Path
) -> None:
    server.length = False
    assert get(server, tmp_path / "exact").read_bytes() == BODY
    server.body = BODY + b"more"
    with pytest.raises(DownloadError, match=f"got more than {len(BODY)} bytes"):
        get(server, tmp_path / "longer")
    assert not list((tmp_path / "longer").rglob("*.part"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a Linux device")
def test_a_full_disk_is_an_error_that_says_how_much_room_is_needed(
    server: Script, tmp_path: Path
) -> None:
    part = target(tmp_path).with_name("archive.zip.part")
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    with pytest.raises(DownloadError, match="No space left on device") as caught:
        get(server, tmp_path)
    assert f"against room for {len(BODY)} bytes expected. Free some space" in str(caught.value)


def test_a_cache_folder_that_cannot_be_made_is_an_error(server: Script, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match="can't be written, got '(Not a directory|File exists)"):
        get(server, tmp_path / "file")


def test_offline_mode_says_what_to_fetch_and_where_to_put_it(
    server: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE or HF_DATASETS_OFFLINE") as caught:
        get(server, tmp_path)
    message = str(caught.value)
    assert f"at {target(tmp_path)}. Unset the variable, or fetch the URL by hand" in message
    assert server.download.url in message
    assert server.asked == []


def test_a_file_put_there_by_hand_is_verified_and_used_offline(
    server: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    target(tmp_path).parent.mkdir()
    target(tmp_path).write_bytes(BODY[:-1] + b"?")
    with pytest.raises(DownloadError, match="no such file"):
        get(server, tmp_path)
    target(tmp_path).write_bytes(BODY)
    assert get(server, tmp_path) == target(tmp_path)


def test_a_damaged_file_is_replaced(server: Script, tmp_path: Path) -> None:
    target(tmp_path).parent.mkdir()
    target(tmp_path).write_bytes(BODY[:1000])
    assert get(server, tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/a.zip", "archive.zip"])
def test_only_web_addresses_are_fetched(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadError, match="against http or https expected"):
        fetch(Download(url, 1, MD5), tmp_path, progress=False)


def test_redirects_are_followed_but_not_out_of_the_web(server: Script, tmp_path: Path) -> None:
    server.statuses, server.headers = [302], {"Location": f"{server.url}/elsewhere"}
    assert get(server, tmp_path / "a").read_bytes() == BODY
    server.statuses, server.headers = [302], {"Location": "file:///etc/hostname"}
    with pytest.raises(DownloadError, match="HTTP 302"):
        get(server, tmp_path / "b")


def test_a_redirect_that_leads_round_in_circles_is_told_at_once(
    server: Script, tmp_path: Path
) -> None:
    server.statuses, server.headers = [302] * 200, {"Location": f"{server.url}/round"}
    with pytest.raises(DownloadError, match="leads to the next without an end"):
        get(server, tmp_path)
    assert len(server.asked) < 30


def test_the_proxy_that_the_environment_names_is_asked(
    server: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    download = Download("http://files.example/archive.zip", len(BODY), MD5)
    assert fetch(download, tmp_path, progress=False).read_bytes() == BODY


def test_a_proxy_that_speaks_no_http_is_an_error_in_words(
    server: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://127.0.0.1:1")
    with pytest.raises(DownloadError, match="can't be fetched through the proxy in the env"):
        get(server, tmp_path)


def test_the_name_in_the_cache_is_the_last_part_of_the_address(
    server: Script, tmp_path: Path
) -> None:
    for path, name in (("/a/b%20c.zip?x=/d", "b c.zip"), ("/", "download"), ("/..%2F..", "..")):
        download = Download(f"{server.url}{path}", len(BODY), MD5)
        got = fetch(download, tmp_path / str(len(name)), progress=False)
        assert got.parent == tmp_path / str(len(name)) / MD5
        assert got.name == ("download" if name == ".." else name)


def test_two_processes_fetch_a_file_once(server: Script, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mminstruct.fetching.archives import fetch;"
        "from mminstruct.sources import Download;"
        "url, size, md5, cache = sys.argv[1:];"
        "print('ready', flush=True);"
        "fetch(Download(url, int(size), md5), Path(cache), progress=False)"
    )
    arguments = [server.download.url, str(len(BODY)), MD5, str(tmp_path)]
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, env=environment
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    server.gate.clear()
    with start() as first:
        assert server.request_seen.wait(timeout=60)
        with start() as second:
            server.gate.set()
            assert second.wait(timeout=60) == 0
        assert first.wait(timeout=60) == 0
    assert server.asked == [None]
    assert target(tmp_path).read_bytes() == BODY


def test_a_second_fetch_waits_for_the_first_and_says_so(
    server: Script, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.gate.clear()
    said = threading.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "waiting for another process" in record.getMessage():
                said.set()

    listener = Listener()
    archives.logger.addHandler(listener)
    caplog.set_level(logging.INFO, logger=archives.logger.name)
    threads = [threading.Thread(target=get, args=(server, tmp_path)) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        assert said.wait(timeout=30)
        server.gate.set()
    finally:
        for thread in threads:
            thread.join()
        archives.logger.removeHandler(listener)
    assert server.asked == [None]


def test_progress_is_counted_in_bytes_from_where_it_continues(
    server: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_part(tmp_path, BODY[:1_500_000])
    fetch(server.download, tmp_path)
    shown = capsys.readouterr().err
    assert "archive.zip:  50%" in shown
    assert "archive.zip: 100%" in shown
    assert "2.86M/2.86M" in shown


def google(server: Script, md5: str = MD5) -> Download:
    """A file of which nothing is stated but the URL, on a server that sends its MD5."""
    encoded = base64.b64encode(bytes.fromhex(md5)).decode()
    server.headers["x-goog-hash"] = f"crc32c=AAAAAA==,md5={encoded}"
    return Download(f"{server.url}/files/table.csv")


def test_size_and_md5_that_are_not_stated_are_asked_from_the_server(
    server: Script, tmp_path: Path
) -> None:
    path = fetch(google(server), tmp_path, progress=False)
    assert path.name == "table.csv"
    assert path.read_bytes() == BODY
    asked = len(server.asked), server.heads
    assert fetch(google(server), tmp_path, progress=False) == path
    assert (len(server.asked), server.heads) == asked == (1, 1)


def test_bytes_that_differ_from_the_md5_the_server_sent_are_refused(
    server: Script, tmp_path: Path
) -> None:
    with pytest.raises(DownloadError, match="other bytes than published"):
        fetch(google(server, "0" * 32), tmp_path, progress=False)


def test_a_server_that_sends_no_md5_is_believed_about_the_size(
    server: Script, tmp_path: Path
) -> None:
    path = fetch(Download(f"{server.url}/files/table.csv"), tmp_path, progress=False)
    assert path.read_bytes() == BODY


def test_a_server_that_states_no_size_either_is_an_error(server: Script, tmp_path: Path) -> None:
    server.length = False
    with pytest.raises(DownloadError, match="states no size"):
        fetch(Download(f"{server.url}/files/table.csv"), tmp_path, progress=False)


TABLE = random.Random(2).randbytes(len(BODY))


def unstated(server: Script) -> Download:
    """A file of which nobody states more than where it is."""
    return Download(f"{server.url}/files/table.csv")


def fetch_unstated(server: Script, cache_dir: Path, waits: list[float] | None = None) -> Path:
    sleep = waits.append if waits is not None else (lambda _: None)
    return fetch(unstated(server), cache_dir, progress=False, sleep=sleep)


def place_of(server: Script, cache_dir: Path) -> Path:
    """Where such a file goes, as an error says it."""
    server.head_status = 403
    with pytest.raises(DownloadError, match="not served, got HTTP 403") as caught:
        fetch_unstated(server, cache_dir)
    server.head_status = 200
    return Path(str(caught.value).rpartition("put it at ")[2].removesuffix("."))


def interrupted(server: Script, cache_dir: Path) -> Path:
    """The part of 1,000 bytes that a run left which was given up."""
    part = place_of(server, cache_dir)
    server.drop_after = [1000]
    stop = lambda _: (_ for _ in ()).throw(KeyboardInterrupt)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        fetch(unstated(server), cache_dir, progress=False, sleep=stop)
    server.asked.clear()
    server.asked_if.clear()
    return part.with_name(f"{part.name}.part")


def test_a_file_put_where_an_error_said_is_taken_where_nothing_is_stated_about_it(
    server: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place_of(server, tmp_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    server.head_status, server.heads = 403, 0
    with pytest.raises(DownloadError, match="HTTP 403"):
        fetch_unstated(server, tmp_path)
    path.write_bytes(b"id,name\n")
    assert fetch_unstated(server, tmp_path) == path
    server.length = False
    server.head_status = 200
    assert fetch_unstated(server, tmp_path) == path
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert fetch_unstated(server, tmp_path) == path


def test_a_file_put_there_by_hand_that_is_cut_off_is_fetched_where_the_server_knows_its_size(
    server: Script, tmp_path: Path
) -> None:
    path = place_of(server, tmp_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(BODY[:1000])
    assert fetch_unstated(server, tmp_path).read_bytes() == server.body
    # What was verified is asked about no more.
    server.heads = 0
    assert fetch_unstated(server, tmp_path) == path
    assert server.heads == 0


def test_offline_mode_names_no_size_and_no_md5_that_nobody_states(
    server: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match=r"there is no such file at .*table.csv\. Unset"):
        fetch_unstated(server, tmp_path)
    some = Download(f"{server.url}/files/table.csv", 12)
    with pytest.raises(DownloadError, match="there is no such file with 12 bytes at "):
        fetch(some, tmp_path, progress=False)


def test_the_place_for_a_file_is_named_when_its_size_can_not_be_asked(
    server: Script, tmp_path: Path, waits: list[float]
) -> None:
    path = place_of(server, tmp_path)
    server.length = False
    with pytest.raises(DownloadError, match="states no size") as caught:
        fetch_unstated(server, tmp_path)
    assert f"put it at {path}." in str(caught.value)
    server.head_status = 503
    with pytest.raises(DownloadError, match="given up") as caught:
        fetch_unstated(server, tmp_path, waits)
    assert f"put it at {path}." in str(caught.value)


def test_a_head_request_refused_as_a_range_is_an_error_in_words(
    server: Script, tmp_path: Path
) -> None:
    server.head_status = 416
    with pytest.raises(DownloadError, match="not served, got HTTP 416"):
        fetch_unstated(server, tmp_path)


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"one"'},
        {"Last-Modified": "Sat, 01 Aug 2026 10:00:00 GMT"},
        {"ETag": 'W/"weak"', "Last-Modified": "Sat, 01 Aug 2026 10:00:00 GMT"},
    ],
    ids=str,
)
def test_a_part_is_continued_if_the_server_still_has_its_version(
    server: Script, tmp_path: Path, headers: dict[str, str]
) -> None:
    server.headers = headers
    part = interrupted(server, tmp_path)
    assert fetch_unstated(server, tmp_path).read_bytes() == BODY
    assert server.asked == ["bytes=1000-"]
    assert server.asked_if == [list(headers.values())[-1]]
    assert sorted(path.suffix for path in part.parent.iterdir()) == [".csv", ".lock", ".md5"]


def test_two_versions_of_a_file_are_never_mixed(server: Script, tmp_path: Path) -> None:
    server.headers = {"ETag": '"one"'}
    interrupted(server, tmp_path)
    server.body, server.headers = TABLE, {"ETag": '"two"'}
    assert fetch_unstated(server, tmp_path).read_bytes() == TABLE
    assert server.asked_if == ['"one"']


def test_a_server_that_ignores_the_version_asked_for_does_not_mix_two_either(
    server: Script, tmp_path: Path
) -> None:
    server.headers = {"ETag": '"one"'}
    interrupted(server, tmp_path)
    server.body, server.headers = TABLE, {"ETag": '"two"', "X-Also-Fine": '"one"'}
    assert fetch_unstated(server, tmp_path).read_bytes() == TABLE
    assert server.asked == ["bytes=1000-", None]


@pytest.mark.parametrize("kept", [None, "", "a\r\nHost: b", "\xff"])
def test_a_part_of_a_version_that_nobody_knows_is_started_anew(
    server: Script, tmp_path: Path, kept: str | None
) -> None:
    part = interrupted(server, tmp_path)
    part.write_bytes(BODY)
    version = part.with_suffix(".version")
    version.unlink() if kept is None else version.write_text(kept, encoding="latin-1")
    server.body = TABLE
    assert fetch_unstated(server, tmp_path).read_bytes() == TABLE
    assert server.asked == [None]
