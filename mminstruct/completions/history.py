"""What a limiter changed, and why: the reasons that a run is slow, which ``--verbose`` shows."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass

_log = logging.getLogger(__name__)

_CHANGES_KEPT = 200
_UNITS = {"pace": "/s", "window": " at once", "pause": " s"}


@dataclass(frozen=True, slots=True)
class Change:
    """Something that a limiter changed."""

    at_s: float  # by the limiter's clock
    what: str  # "pace" (requests a second), "window" (requests in flight) or "pause" (seconds)
    before: float
    after: float
    why: str  # in words


class History:
    """The last changes of the limiter of a server, which are logged as they come."""

    def __init__(self, server: str = "") -> None:
        self.changes: deque[Change] = deque(maxlen=_CHANGES_KEPT)
        self._server = f"{server}: " if server else ""

    def note(self, now: float, what: str, before: float, after: float, why: str) -> None:
        """Keep and log a `Change`."""
        self.changes.append(Change(now, what, before, after, why))
        words, unit = "%s%s %.1f -> %.1f%s: %s", _UNITS[what]
        _log.debug(words, self._server, what, before, after, unit, why)
