"""Fetches the images that rows are about: each once, checked, and kept when a run is interrupted.

An image is written only when all of it is there and Pillow has decoded it. A run that is repeated
asks only for what is missing, or was put there by somebody else and is no whole image. Bodies are
bounded in bytes and, against decompression bombs, in pixels. Whatever name or redirect leads to
this machine or into a private network is not followed there. Files of annotations go through
`archives` instead: few and large ones, which are worth continuing in the middle.
"""

from __future__ import annotations

import asyncio
import errno
import io
import ipaddress
import os
import random
import re
import socket
import struct
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import aiohttp
import httpx2
from PIL import Image, ImageOps

from mminstruct.errors import RunStopped, UsageError
from mminstruct.transport import PASSING_STATUS, Passing, Retries, RetryPolicy, retry_after

FORMATS = ("JPEG", "PNG", "WEBP")
"""What an image may be, as Pillow names it."""

_OPENED = (*FORMATS, "BMP", "GIF", "TIFF")
_GIVE_UP_AFTER = 20
# Each may have a third of a gigabyte in pixels.
_DECODED_AT_ONCE = 4
# What a folder can't have as a name, or not beside what it has: a row's fault, not the disk's.
_NO_SUCH_NAME = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL)
_TURNS = {
    90: Image.Transpose.ROTATE_90,  # counter-clockwise
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}
# What Pillow raises for bytes that are no image, or only the beginning of one.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True, slots=True)
class Fetching:
    """How images are fetched.

    Attributes:
        max_concurrency: images under way at once.
        timeout_s: longest time for one attempt at one image, from its first byte to its last.
        max_bytes: a longer body is given up.
        max_size: longer side in pixels that an image is made smaller to, or None.
        private_addresses: ask this machine and private networks, too.
        retry: when and how often an attempt is repeated that met 429, 5xx or a dropped connection.
    """

    max_concurrency: int = 16
    timeout_s: float = 60.0
    max_bytes: int = 64 * 2**20
    max_size: int | None = None
    private_addresses: bool = False
    retry: RetryPolicy = RetryPolicy(max_retries=5, base_s=1.0, max_pause_s=120.0)

    def __post_init__(self) -> None:
        for name in ("max_concurrency", "timeout_s", "max_bytes", "max_size"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name}: expected more than 0, got {value}")
        if self.retry.max_retries < 0:
            raise UsageError(f"max_retries: expected 0 or more, got {self.retry.max_retries}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image to fetch.

    Attributes:
        file: its name in the folder.
        url: where it is.
        rotation_deg: degrees counter-clockwise by which it has to be turned, by quarters.
    """

    file: str
    url: str
    rotation_deg: int = 0


class _Lost(Exception):
    """An image that can't be had; its text is the reason."""


class _Private(OSError):
    """An address that isn't of the public internet."""


def fetch(
    wanted: Iterable[Wanted],
    folder: Path,
    fetching: Fetching,
    done: Callable[[str, str | None], None],
) -> None:
    """Fetch images that are not in the folder yet, or not whole.

    Args:
        wanted: the images, each file once.
        folder: where they go; made if need be.
        fetching: how.
        done: called with a name and None, or the reason why there is no such image; in another
            thread, while this one waits.

    Raises:
        RunStopped: the first images, or many in a row, could not be reached at all.
    """
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[None] | None]] = Future()

    async def run() -> None:
        started.set_result((asyncio.get_running_loop(), asyncio.current_task()))
        await _fetch_all(wanted, folder, fetching, done)

    # In a thread of its own: a signal's exception in the middle of a loop leaves it in a mess.
    with warnings.catch_warnings(), ThreadPoolExecutor(1) as thread:
        # Pillow only warns about images up to twice its bound.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        running = thread.submit(asyncio.run, run())
        try:
            running.result()
        except KeyboardInterrupt:
            loop, task = started.result()
            assert task is not None
            with suppress(RuntimeError):  # it ended by itself just now
                loop.call_soon_threadsafe(task.cancel)
            raise


def place(image: Path, target: Path, max_size: int | None) -> None:
    """Put an image of this machine where a fetched one would be, unless one is there."""
    if flaw(target) is not None:
        _keep(target, checked(image.read_bytes(), max_size))


def checked(body: bytes, max_size: int | None, rotation_deg: int = 0) -> bytes:
    """The bytes of a whole image, turned, and made smaller if larger than ``max_size`` pixels.

    What is made smaller is turned upright as its EXIF says, unless ``rotation_deg`` says how. An
    image to which nothing has to be done is left as it came.

    Raises:
        _Lost: they are something else, a part of one, or too many pixels.
    """
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as image:
            image.verify()  # checksums; the image can't be used after it
        with Image.open(io.BytesIO(body), formats=FORMATS) as image:
            image.load()
            is_large = max_size is not None and max(image.size) > max_size
            if not is_large and not rotation_deg:
                return body
            if rotation_deg:
                changed = image.transpose(_TURNS[rotation_deg])
            else:
                changed = ImageOps.exif_transpose(image)
            if max_size is not None and is_large:
                if changed.mode == "P":  # indices can't be averaged
                    changed = changed.convert("RGBA")
                changed.thumbnail((max_size, max_size), Image.Resampling.LANCZOS)
            target = io.BytesIO()
            profile = image.info.get("icc_profile")
            changed.save(target, format=image.format, quality=95, icc_profile=profile, exif=b"")
            return target.getvalue()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _Lost(f"more than {Image.MAX_IMAGE_PIXELS} pixels") from error
    except _DAMAGED as error:
        raise _Lost(f"not a whole image ({', '.join(FORMATS)})") from error


def flaw(path: Path) -> str | None:
    """Why a file is no image that can be opened and read to its end, or None.

    JPEGs are decoded only if they don't end as they should, which takes a fiftieth of the time.
    """
    try:
        with Image.open(path, formats=_OPENED) as image:
            form = image.format
            image.verify()
        if form == "PNG" or (form == "JPEG" and _read_end(path) == b"\xff\xd9"):
            return None
        with Image.open(path, formats=_OPENED) as image:
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels"
    except _DAMAGED as error:
        return getattr(error, "strerror", None) or f"not a whole image ({', '.join(_OPENED)})"
    return None


def _read_end(path: Path) -> bytes:
    """The last two bytes of a file."""
    with path.open("rb") as file:
        file.seek(-2, os.SEEK_END)
        return file.read()


async def _fetch_all(
    wanted: Iterable[Wanted],
    folder: Path,
    fetching: Fetching,
    done: Callable[[str, str | None], None],
) -> None:
    shared, unreachable = iter(wanted), 0
    headers = {"User-Agent": "mminstruct", "Accept-Encoding": "identity"}
    # What goes through a proxy, the proxy asks for.
    is_guarded = not fetching.private_addresses and not {"http", "https", "all"} & {*getproxies()}

    async def work() -> None:
        nonlocal unreachable
        loop = asyncio.get_running_loop()
        for image in shared:
            if await loop.run_in_executor(threads, flaw, folder / image.file) is None:
                done(image.file, None)
                continue
            lost = await _fetch_one(client, threads, image, folder, fetching)
            done(image.file, None if lost is None else str(lost))
            unreachable = unreachable + 1 if isinstance(lost, Passing) else 0
            if unreachable >= _GIVE_UP_AFTER:
                raise RunStopped(
                    f"images: {unreachable} in a row could not be fetched (last: {image.url}: "
                    f"{lost}); check the network and the address"
                )

    with ThreadPoolExecutor(min(_DECODED_AT_ONCE, os.cpu_count() or 1)) as threads:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=fetching.max_concurrency,
                ssl=httpx2.create_ssl_context(),
                socket_factory=_make_public_socket if is_guarded else None,
            ),
            timeout=aiohttp.ClientTimeout(total=None),  # one attempt has a time, see below
            headers=headers,
            trust_env=True,
        ) as client:
            workers = [asyncio.create_task(work()) for _ in range(fetching.max_concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)


async def _fetch_one(
    client: aiohttp.ClientSession,
    threads: ThreadPoolExecutor,
    wanted: Wanted,
    folder: Path,
    fetching: Fetching,
) -> _Lost | Passing | None:
    """None if the image is in the folder now, else why not."""
    retries = Retries(fetching.retry, random.Random())
    while True:
        try:
            body = await asyncio.wait_for(
                _read_body(client, wanted.url, fetching), fetching.timeout_s
            )
            image = await asyncio.get_running_loop().run_in_executor(
                threads, checked, body, fetching.max_size, wanted.rotation_deg
            )
        except _Lost as lost:
            return lost
        except asyncio.TimeoutError:  # noqa: UP041 (another class before Python 3.11)
            failure = Passing(f"not there after {fetching.timeout_s:g} s")
        except Passing as error:
            failure = error
        else:  # a disk that is too slow is no server that is
            return _keep(folder / wanted.file, image)
        if (wait_s := retries.wait_s(failure)) is None:
            return failure
        await asyncio.sleep(wait_s)


def _make_public_socket(info: tuple[Any, ...]) -> socket.socket:
    """A socket for what an address stands for in the end.

    Raises:
        _Private: it is this machine or in a private network.
    """
    family, kind, protocol, _, where = info
    address = ipaddress.ip_address(where[0])
    address = getattr(address, "ipv4_mapped", None) or address
    if not address.is_global or address.is_multicast:
        raise _Private(
            "its address leads into this machine or a private network (--private_addresses allows "
            "that)"
        )
    return socket.socket(family, kind, protocol)


async def _read_body(client: aiohttp.ClientSession, url: str, fetching: Fetching) -> bytes:
    try:
        if not re.match("https?://", url, re.IGNORECASE):
            raise _Lost("no http or https address")
        async with client.get(url) as response:
            if response.status in PASSING_STATUS:
                raise Passing(f"HTTP {response.status}", retry_after(response.headers))
            if response.status != 200:
                raise _Lost(f"HTTP {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > fetching.max_bytes:
                    raise _Lost(f"more than {fetching.max_bytes} bytes")
            return bytes(body)
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
        raise _Lost("no http or https address") from error
    except aiohttp.TooManyRedirects as error:
        raise _Lost("too many redirects") from error
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, _Private):
            raise _Lost(str(error.os_error)) from error
        raise Passing(str(error)) from error
    except aiohttp.ClientError as error:
        raise Passing(str(error) or type(error).__name__) from error


def _keep(path: Path, image: bytes) -> _Lost | None:
    """Write the file in one step: another process may be at it too. Why that is no name for one."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(image)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        if error.errno not in _NO_SUCH_NAME:
            raise
        return _Lost(f"its name can't be a file's ({error.strerror})")
    return None
