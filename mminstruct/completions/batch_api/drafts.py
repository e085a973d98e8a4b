"""The file of requests that a batch is made of, and the provider's limits on it."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

CHAT_PATH: Literal["/v1/chat/completions"] = "/v1/chat/completions"
INTENT_NAME, DIGEST_NAME, STORE_NAME = "mminstruct_intent", "mminstruct_digest", "mminstruct_store"


@dataclass(frozen=True, slots=True)
class Limits:
    """The provider's limits, and how patient to be with it.

    Attributes:
        requests: in a file.
        file_bytes: of a file.
        poll_s: longest wait between two looks at the batches; the first waits are shorter.
        settle_s: after this long, what a list lacks was never created.
        gone_after_s: a younger file that isn't there is not there yet, or nobody knows why.
        impatient_s: longest wait for a call that the run can do without.
    """

    requests: int = 50_000
    file_bytes: int = 200_000_000
    poll_s: float = 60.0
    settle_s: float = 60.0
    gone_after_s: float = 2 * 86400.0
    impatient_s: float = 5.0


class Draft:
    """A file of requests on its way up.

    Attributes:
        file: the lines so far; it has no name, and is gone once it is closed.
        bytes: their length.
        store: name of the store that the answers are for.
        limit_field: name of the field for the answer's longest length.
        keys: of the requests.
    """

    def __init__(self, store: str, limit_field: str) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
        self.bytes = 0
        self.store = store
        self.limit_field = limit_field
        self.keys: list[bytes] = []
        self._digest = hashlib.sha256()

    def is_full(self, line_bytes: int, requests: int, file_bytes: int) -> bool:
        """Whether another line would be more than so many requests or bytes."""
        return bool(self.keys) and (
            len(self.keys) >= requests or self.bytes + line_bytes > file_bytes
        )

    def add(self, key: bytes, line: bytes) -> None:
        """Add a request's line."""
        self.keys.append(key)
        self.bytes += len(line)
        self._digest.update(line)
        self.file.write(line)

    @property
    def digest(self) -> str:
        """SHA-256 of the content."""
        return self._digest.hexdigest()

    @property
    def name(self) -> str:
        """As the server lists it."""
        return f"mminstruct-{self.store}-{self.digest}.jsonl"


def encode_line(key: bytes, body: dict[str, Any]) -> bytes:
    """A request as a line of the input file."""
    request = {"custom_id": key.hex(), "method": "POST", "url": CHAT_PATH, "body": body}
    return msgspec.json.encode(request) + b"\n"
