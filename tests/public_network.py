"""Runs the command line in a network of its own, in which public addresses are this machine, too.

Nothing leaves it: it has no other interface than loopback. At port 80 of each of its addresses a
server answers ``/1.jpg`` with a picture and ``/to/HOST`` with a redirect to ``http://HOST/1.jpg``.
Printed is the exit code and what was asked for, as ``[address, path]``. Exits with 77 where no such
network may be made. Linux alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import socket
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from image_server import picture

NOT_ALLOWED = 77
ADDRESSES = ("8.8.8.8", "169.254.169.254", "10.1.2.3")  # beside 127.0.0.1
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000  # linux/sched.h
_SET_FLAGS, _SET_ADDRESS, _IS_UP = 0x8914, 0x8916, 1  # linux/sockios.h, linux/if.h


def enter() -> None:
    """Go into a new network that has loopback under these addresses.

    Raises:
        OSError: that isn't allowed here.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_USER | _NEW_NETWORK):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        fcntl.ioctl(handle, _SET_FLAGS, struct.pack("16sH14x", b"lo", _IS_UP))
        for number, address in enumerate(ADDRESSES):
            name, packed = f"lo:{number}".encode(), socket.inet_aton(address)
            fcntl.ioctl(
                handle, _SET_ADDRESS, struct.pack("16sH2x4s8x", name, socket.AF_INET, packed)
            )


class Answers(BaseHTTPRequestHandler):
    """Pictures, and redirects to other hosts."""

    asked: list[tuple[str, str]] = []

    def do_GET(self) -> None:
        """Answer."""
        self.asked.append((self.connection.getsockname()[0], self.path))
        host, body = self.path.removeprefix("/to/"), picture()
        self.send_response(200 if host == self.path else 302)
        self.send_header("Location", f"http://{host}/1.jpg")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    try:
        enter()
    except OSError as error:
        sys.stdout.write(f"{error}\n")
        sys.exit(NOT_ALLOWED)
    server = ThreadingHTTPServer(("0.0.0.0", 80), Answers)  # noqa: S104
    threading.Thread(target=server.serve_forever, daemon=True).start()
    from mminstruct import cli

    with contextlib.redirect_stdout(sys.stderr):
        code = cli.run(sys.argv[1:])
    sys.stdout.write(json.dumps({"code": code, "asked": sorted(Answers.asked)}))
