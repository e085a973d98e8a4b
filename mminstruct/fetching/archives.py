"""Fetches a published file once: resumed, verified, and shared by all runs and processes.

Why not the download manager of `datasets`: it opens its ``.incomplete`` file with ``w+b``, so every
dropped connection and every new run starts from zero, and it can't check an MD5. An annotation
archive has a quarter of a gigabyte and comes from one slow server.

A file lives at ``<cache_dir>/<md5>/<name>``, with these beside it: ``<name>.part`` until it is
complete, ``<name>.version`` for what the server calls the version that the part is of,
``<name>.lock`` against a second process, ``<name>.md5`` once its bytes were verified. Where the
publisher states no MD5, a digest of the URL takes its place in the path, and the server is asked
for size and MD5 first (Google's storage sends both, others at least the size).
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urljoin, urlsplit

import httpx2
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from mminstruct.errors import DownloadError, causes
from mminstruct.resources import shown
from mminstruct.sources import Download
from mminstruct.transport import PASSING_STATUS, Passing, Retries, RetryPolicy, retry_after

logger = logging.getLogger(__name__)

RETRY = RetryPolicy(max_retries=5, base_s=1.0, max_pause_s=60.0)
"""Attempts in a row that get nowhere; one more failure ends the download."""

_PROGRESS_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 18
_WEB = ("http", "https")
# What can go into a header: an ETag in its quotes, or a date.
_VERSION = re.compile(r'"[\x21\x23-\x7e]*"|[\w ,:+-]+', re.ASCII)


def fetch(
    download: Download,
    cache_dir: Path,
    *,
    progress: bool = True,
    timeout_s: float = 30.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """The published file, complete and verified, below ``cache_dir``.

    A file that was verified before is returned without touching the network. Otherwise what an
    earlier run left is continued. A file put there by hand is used, too, and verified as far as
    publisher or server state its size and MD5; it is taken as it is where neither says anything.

    Args:
        download: what to fetch; http and https only.
        cache_dir: made if need be.
        progress: show a bar on stderr.
        timeout_s: longest silence of the server before the connection counts as dropped.
        sleep: called between attempts with the seconds to wait.

    Raises:
        DownloadError: the server doesn't have it, stays unreachable, or sends other bytes; the
            disk is full; or downloads are switched off and the file is not there.
    """
    if urlsplit(download.url).scheme not in _WEB:
        raise DownloadError(
            f"{download.url}: can't be fetched, got another scheme against http or https "
            "expected. Fetch it by hand."
        )
    target = _target(download, cache_dir)
    if _is_verified(target, download):
        return target
    import datasets  # which takes a second

    if datasets.config.HF_HUB_OFFLINE:
        if _is_taken(target, download):
            return target
        raise DownloadError(
            f"{download.url}: not fetched, because HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set, "
            f"and there is no such file{_state(download)} at {shown(target)}. Unset the variable, "
            "or fetch the URL by hand and put it there."
        )
    with _make_client(download.url, timeout_s) as client:
        try:
            known = _ask_facts(client, download, target, sleep)
        except DownloadError:
            if _is_taken(target, download):
                return target
            raise
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _lock(target):
                if not _is_verified(target, known):
                    _Transfer(client, known, target).run(progress, sleep)
        except OSError as error:
            raise DownloadError(
                f"{shown(target)}: can't be written, got '{error.strerror or error}' against room "
                f"for {known.size_bytes} bytes expected. Free some space there or choose "
                "another cache directory, and run again: it continues where it stopped."
            ) from error
    return target


def is_fetched(download: Download, cache_dir: Path) -> bool:
    """Whether `fetch` would touch no network."""
    return _is_verified(_target(download, cache_dir), download)


def _target(download: Download, cache_dir: Path) -> Path:
    folder = download.md5 or hashlib.sha256(download.url.encode()).hexdigest()[:32]
    return cache_dir / folder / _file_name(download.url)


def _state(download: Download) -> str:
    """What the publisher says about the file, for errors."""
    facts = []
    if download.size_bytes is not None:
        facts.append(f"{download.size_bytes} bytes")
    if download.md5 is not None:
        facts.append(f"MD5 {download.md5}")
    return f" with {' and '.join(facts)}" if facts else ""


def _ask_facts(
    client: httpx2.Client, download: Download, target: Path, sleep: Callable[[float], None]
) -> Download:
    """The download with what its publisher leaves out, as the server says it."""
    size_bytes, md5 = download.size_bytes, download.md5
    if size_bytes is not None and md5 is not None:
        return download

    def ask() -> httpx2.Headers:
        with _ask(client, "HEAD", download.url, target, {}) as response:
            return response.headers

    retries = Retries(RETRY)
    try:
        headers = retries.run(ask, sleep, partial(logger.info, "%s: %s", download.url))
    except Passing as failure:
        raise DownloadError(
            f"{download.url}: given up after {retries.failures} attempts (last: {failure}). "
            f"Run again, or fetch it by hand and put it at {shown(target)}."
        ) from failure
    length = headers.get("Content-Length", "")
    if size_bytes is None and not length.isdigit():
        raise DownloadError(
            f"{download.url}: the server states no size, got Content-Length {length!r}. Fetch it "
            f"by hand and put it at {shown(target)}."
        )
    found = re.search(r"md5=([A-Za-z0-9+/]{22}==)", headers.get("x-goog-hash", ""))
    if md5 is None and found:
        md5 = base64.b64decode(found[1]).hex()
    return Download(download.url, int(length) if size_bytes is None else size_bytes, md5)


def _file_name(url: str) -> str:
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    return name if name.strip(".") else "download"


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)


def _is_verified(target: Path, download: Download) -> bool:
    """Whether the whole file is there; its bytes are read only the first time."""
    size = target.stat().st_size if target.is_file() else 0
    if not size or download.size_bytes not in (None, size):
        return False
    mark = _beside(target, ".md5")
    if mark.is_file():
        marked, _, name = mark.read_text(encoding="utf-8").partition("  ")
        if name == f"{target.name}\n" and download.md5 in (None, marked):
            return True
    if download.size_bytes is None or download.md5 not in (None, md5 := _md5(target)):
        return False
    # A shared cache may be read-only: then the bytes are read again next time.
    with suppress(OSError):
        mark.write_text(_md5_line(target, md5), encoding="utf-8")
    return True


def _is_taken(target: Path, download: Download) -> bool:
    """Whether there is a file of which nobody says how large it is: whoever put it there knows."""
    has_content = target.is_file() and target.stat().st_size > 0
    return has_content and download.size_bytes is None and download.md5 is None


def _md5_line(target: Path, md5: str) -> str:
    return f"{md5}  {target.name}\n"


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    lock = FileLock(_beside(target, ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for another process that downloads %s", target.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _Transfer:
    """A file on its way to its place, continued where an earlier connection or run ended.

    Args:
        client: asks the server.
        download: whose size is known; its MD5 may be neither stated nor sent.
        target: where the file goes.
    """

    def __init__(self, client: httpx2.Client, download: Download, target: Path) -> None:
        assert download.size_bytes is not None
        self._client = client
        self._url, self._md5 = download.url, download.md5
        self._size_bytes = download.size_bytes
        self._target = target
        self._part = _beside(target, ".part")
        self._version_file = _beside(target, ".version")

    def run(self, progress: bool, sleep: Callable[[float], None]) -> None:
        """Receive what is missing and verify the whole; a lock keeps other processes out.

        Raises:
            DownloadError: the server doesn't have it, stays unreachable, or sends other bytes.
        """
        self._part.touch()
        # Whether it would be noticed that the server's file is no longer the one the part is of.
        may_continue = self._md5 is not None or self._read_kept_version() is not None
        if (had := self._had()) > self._size_bytes or not may_continue:
            if had:
                logger.info(
                    f"{self._target.name}: started anew, as nobody can tell whether the {had:,} "
                    "bytes that are there are of the same version"
                )
            os.truncate(self._part, 0)
        with tqdm(
            desc=self._target.name,
            total=self._size_bytes,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            disable=not progress,
        ) as bar:
            self._receive_all(bar, sleep)
        with self._part.open("rb+") as file:
            os.fsync(file.fileno())
        if (got := _md5(self._part)) != (self._md5 or got):
            raise self._refuse_bytes(f"MD5 {got}", f"MD5 {self._md5}")
        self._part.replace(self._target)
        self._version_file.unlink(missing_ok=True)
        _beside(self._target, ".md5").write_text(_md5_line(self._target, got), encoding="utf-8")

    def _had(self) -> int:
        """Bytes that are there already."""
        return self._part.stat().st_size

    def _receive_all(self, bar: Any, sleep: Callable[[float], None]) -> None:
        """Connect until the part has its full size, each time where the last connection ended."""
        retries, most_bytes = Retries(RETRY), self._had()

        def receive() -> None:
            nonlocal most_bytes
            try:
                if self._had() < self._size_bytes:
                    self._receive(bar)
            except Passing:
                # A long file over a bad line is fine as long as every few attempts get somewhere.
                if self._had() >= most_bytes + _PROGRESS_BYTES:
                    retries.failures = 0
                most_bytes = max(most_bytes, self._had())
                raise

        try:
            retries.run(receive, sleep, partial(logger.info, "%s: %s", self._url))
        except Passing as failure:
            raise DownloadError(
                f"{self._url}: given up after {retries.failures} attempts, got {self._had()} bytes "
                f"(last: {failure}) against {self._size_bytes} expected. Run again to continue "
                f"where it stopped, or fetch it by hand and put it at {shown(self._target)}."
            ) from failure

    def _receive(self, bar: Any) -> None:
        """One connection; what arrives is appended to the part.

        Raises:
            Passing: it ended before the part was complete.
        """
        had, version = self._had(), self._read_kept_version()
        headers = {"Range": f"bytes={had}-"} if had else {}
        if had and version is not None:
            headers["If-Range"] = version
        with _ask(self._client, "GET", self._url, self._target, headers) as response:
            bar.n = size = self._first_byte(response, had, version)
            bar.refresh()
            with self._part.open("ab" if size else "wb", buffering=0) as file:
                if not size:
                    self._version_file.write_text(_read_version(response), encoding="utf-8")
                chunks = response.iter_raw()
                while size < self._size_bytes:
                    if not (chunk := next(chunks, b"")):
                        raise Passing(f"connection closed after {size} bytes")
                    _write(file, chunk[: self._size_bytes - size])
                    size += len(chunk)
                    bar.update(len(chunk))
        if size > self._size_bytes:
            raise self._refuse_bytes(f"more than {self._size_bytes} bytes", "exactly as many")

    def _first_byte(self, response: httpx2.Response, had: int, version: str | None) -> int:
        """Where in the file the answer starts: ``had``, or 0 where the server starts over."""
        first, total = 0, response.headers.get("Content-Length", "")
        if response.status_code == 206:
            given = response.headers.get("Content-Range", "")
            content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", given)
            if content_range is None or int(content_range[1]) != had:
                os.truncate(self._part, 0)
                raise Passing("the server answered with another range than asked for")
            sent = {response.headers.get(name) for name in ("ETag", "Last-Modified")} - {None}
            if version is not None and sent and version not in sent:
                os.truncate(self._part, 0)
                raise Passing("the file on the server has changed")
            first, total = had, content_range[2]
        if total.isdigit() and int(total) != self._size_bytes:
            raise self._refuse_bytes(f"{total} bytes", f"{self._size_bytes} bytes")
        return first

    def _read_kept_version(self) -> str | None:
        """The version that the part is of, or None if nobody knows."""
        try:
            text = self._version_file.read_text(encoding="utf-8")
        except (FileNotFoundError, UnicodeDecodeError):
            return None
        return text if _VERSION.fullmatch(text) else None

    def _refuse_bytes(self, got: str, expected: str) -> DownloadError:
        self._part.unlink(missing_ok=True)
        self._version_file.unlink(missing_ok=True)
        return DownloadError(
            f"{self._url}: other bytes than published, got {got} against {expected} expected. The "
            "incomplete file was removed; run again, and if it stays so, the publisher has changed "
            "the file or a proxy answers in its place."
        )


def _read_version(response: httpx2.Response) -> str:
    """The ETag or else the date of what is sent; empty if there is neither.

    An ETag that starts with W/ is of no use: the bytes may differ under it.
    """
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def _write(file: IO[bytes], chunk: bytes) -> None:
    """All of the chunk: an unbuffered write may stop short when the disk is nearly full."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]


def _make_client(url: str, timeout_s: float) -> httpx2.Client:
    """Speaks http and https, through the usual proxies; a redirect can't lead to another scheme."""
    try:
        return httpx2.Client(
            headers={"User-Agent": "mminstruct", "Accept-Encoding": "identity"},
            timeout=timeout_s,
            follow_redirects=True,
            event_hooks={"response": [_check_status]},
        )
    except (ImportError, ValueError) as error:
        raise DownloadError(
            f"{url}: can't be fetched through the proxy in the environment ({error}). Give one "
            "that speaks HTTP, or fetch it by hand."
        ) from error


def _check_status(response: httpx2.Response) -> None:
    """Raise HTTPStatusError for errors, and for redirects that lead out of the web."""
    led = urlsplit(urljoin(str(response.url), response.headers.get("Location", "")))
    if not (response.has_redirect_location and led.scheme in _WEB):
        response.raise_for_status()


@contextmanager
def _ask(
    client: httpx2.Client, method: str, url: str, target: Path, headers: dict[str, str]
) -> Iterator[httpx2.Response]:
    """A server's answer, whose body is yet to be read.

    Raises:
        Passing: it failed, now or while it is read, and is worth another attempt.
        DownloadError: the server doesn't have the file or isn't trusted.
    """
    try:
        with client.stream(method, url, headers=headers) as response:
            yield response
    except httpx2.HTTPStatusError as error:
        status = error.response.status_code
        if status == 416 and "Range" in headers:
            os.truncate(_beside(target, ".part"), 0)
            raise Passing("HTTP 416: the file on the server is shorter") from error
        if status in PASSING_STATUS:
            raise Passing(f"HTTP {status}", retry_after(error.response.headers)) from error
        raise DownloadError(
            f"{url}: not served, got HTTP {status} ({error.response.reason_phrase}) against 200 "
            "expected. Check the address in a browser, or get the file elsewhere and put it at "
            f"{shown(target)}."
        ) from error
    except httpx2.TooManyRedirects as error:
        raise DownloadError(
            f"{url}: not served, as one address leads to the next without an end. Get the file "
            f"elsewhere and put it at {shown(target)}."
        ) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        for cause in causes(error):
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise DownloadError(
                    f"{url}: the server's certificate is not trusted, got "
                    f"'{cause.verify_message}' against a valid one expected. "
                    "Check the machine's clock and its CA certificates."
                ) from error
        raise Passing(str(error) or type(error).__name__) from error
