"""What has become of the requests so far, for those who show it."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field

NOT_SENT = "not_sent"
"""The cause of a failure where nothing was to be sent and the store lacks the answer."""


@dataclass(slots=True)
class Stats:
    """Counters of a run, read by the progress line while they grow.

    The client's loop writes them; the thread that makes the rows counts in ``rejected``, too.

    Attributes:
        total: requests in the run, with those that ask once more; None while unknown.
        stored: answers that were in the store already.
        answered: answers that were paid for in this run.
        sent: attempts, retries included.
        retries: attempts after a request's first.
        retried_for: why, the last time, in a word or a status.
        in_flight: attempts being waited for now.
        rejected: answers that gave no row, by reason.
        failed: requests without an answer, by cause.
        prompt_tokens: of the answers paid for, as far as engines count them.
        completion_tokens: likewise.
        started_s: monotonic time of the first request.
        waiting_for: what holds the whole run up, in parts of the progress line.
        held_by: what holds requests back at present, such as ``paced 5.0/s``; empty if nothing.
        paused_until_s: monotonic time until which a server wants to be left alone.
        waiting_since_s: monotonic times at which the requests in flight were sent.
    """

    total: int | None = None
    stored: int = 0
    answered: int = 0
    sent: int = 0
    retries: int = 0
    retried_for: str = ""
    in_flight: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    started_s: float | None = None
    waiting_for: tuple[str, ...] = ()
    held_by: str = ""
    paused_until_s: float = -math.inf
    waiting_since_s: dict[object, float] = field(default_factory=dict)

    def expect(self, more: int) -> None:
        """Note that a run, whose number of requests may be known, asks more."""
        self.total = None if self.total is None else self.total + more

    @property
    def oldest_s(self) -> float:
        """Seconds for which the oldest request in flight has been waiting; 0 without any."""
        now = time.monotonic()
        return now - min((now, *self.waiting_since_s.copy().values()))

    @property
    def done(self) -> int:
        """Requests that have come to an end, whichever."""
        return self.stored + self.answered + self.failed.total() + self.rejected["too_long"]
