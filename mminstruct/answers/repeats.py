"""Which answers say, word for word, what another row says."""

from __future__ import annotations

from mminstruct.answers.flaws import is_long

# Below that many rows a share tells little.
_ENOUGH_ROWS = 100
_MANY = 0.05
# Hashes, of which a million take 70 MB.
_MOST = 1_000_000


class Repeats:
    """What was said so far, by its hash; what comes after the first million is not remembered."""

    def __init__(self) -> None:
        self._said: set[int] = set()

    def is_repeat(self, kind: str, text: str) -> bool:
        """Whether the same was said before of that kind, and is long enough to be no chance."""
        key = hash((kind, text))
        if key in self._said:
            return is_long(text)
        if len(self._said) < _MOST:
            self._said.add(key)
        return False


def are_many(repeated: int, rows: int) -> bool:
    """Whether so many repeats among so many rows have to be told."""
    return rows >= _ENOUGH_ROWS and repeated > rows * _MANY
