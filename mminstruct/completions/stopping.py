"""When a run ends by itself: counts of what came back go in, what it ends with comes out.

A wrong key, a server that is down, answers that are all empty, prompts that are cut without a word:
such a run would cost much and give no row. The rules hold no client; `Ending` is how they end one.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from mminstruct.answers.parse import ONLY_THOUGHTS
from mminstruct.answers.repeats import Repeats, are_many
from mminstruct.completions.stats import Stats
from mminstruct.errors import MMInstructError, NoRows, RequestRefused, RunStopped, TransientError
from mminstruct.schema import Completion, Turn
from mminstruct.transport import until

_log = logging.getLogger(__name__)

FAILED_AT_START = 3
_FAILED_IN_A_ROW = 100
_EMPTY_IN_A_ROW = 30
# Prompts in a row of which a server counts the same, no more than this share of our count, and no
# less than the smallest window: one that says 100 each time doesn't count.
_CUT_SHARE = 0.7
_LEAST_WINDOW = 512
_CUT_TOLD = 5
_CUT_IN_A_ROW = 30
_USELESS = 100
# Rows of a type, and the share of them that only repeat another one's answers.
_ROWS_TO_JUDGE = 200
_REPEATED_SHARE = 0.3
_OTHERWISE = (
    "Try another model, prompt config or sampling with --limit 5, or leave the type out with "
    "--types"
)


class Ending:
    """Why a run ends, once it does; written on the client's loop alone.

    Attributes:
        reason: None while the run goes on.
        come: done from then on.
        listeners: are told at once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.reason: MMInstructError | None = None
        self.come: asyncio.Future[None] = loop.create_future()
        self.listeners: list[Callable[[RunStopped], None]] = []

    def stop(self, error: MMInstructError) -> RunStopped:
        """End the run, if it hasn't ended yet; what whoever goes on has to raise."""
        if self.reason is None:
            self.reason = error
            self.come.set_result(None)
            for tell in self.listeners:
                tell(RunStopped(str(error)))
        return RunStopped(str(self.reason))

    def check(self) -> None:
        """Raise RunStopped if the run has ended."""
        if self.reason is not None:
            raise RunStopped(str(self.reason)) from self.reason

    async def pause(self, seconds: float) -> None:
        """Sleep, unless the run ends meanwhile."""
        await asyncio.wait([self.come], timeout=seconds)
        self.check()


class StopRules:
    """What answers and failures in a row tell; on the client's loop alone.

    Attributes:
        started: whether one was answered, so that failures are no longer taken for the server's.
        answers: that have come.
    """

    def __init__(self) -> None:
        self.started = False
        self.answers = 0
        self._failed_at_start = 0
        self._failed_in_a_row = Counter[bool]()  # by whether it is refused by itself
        self._empty_in_a_row = 0
        self._cut_at, self._cut_in_a_row = 0, 0

    def count_answer(self) -> None:
        """Note that a request was answered."""
        self.answers += 1
        self._failed_in_a_row.clear()

    def is_hopeless(self, error: RequestRefused | TransientError, before: bool) -> bool:
        """Count a failure at the start: whether it says that no request can succeed.

        Where this model answered others ``before``, those left may be the ones that fail for good.
        """
        self._failed_at_start += 1
        if isinstance(error, TransientError):
            known = error.cause == "unreachable" or (
                error.cause in ("timeout", "bad_body", "no_api") and not before
            )
        else:
            # Moderation refuses single requests with a 403, too, which a rerun may begin with.
            known = error.unknown_here and not (before and error.status == 403)
        return known or (not before and self._failed_at_start >= FAILED_AT_START)

    def count_failure(
        self, error: Exception, answers_before: int, stored: int
    ) -> RunStopped | None:
        """Whether nothing but failures has come back for long.

        A failure tells nothing about the server if there are more answers than before its first
        attempt: what fails again and again comes to its end last. And a rerun asks for nothing but
        what failed before, so the more is stored, the more of that there may be: a tenth, or of
        what is refused by itself, which is at once and costs nothing, as much. Either is counted
        apart, as the few that fail otherwise come last.
        """
        if self.answers > answers_before:
            return None
        refused = isinstance(error, RequestRefused) and (
            not error.unknown_here or error.status == 403  # see is_hopeless
        )
        self._failed_in_a_row[refused] += 1
        count = self._failed_in_a_row[refused]
        if count < max(_FAILED_IN_A_ROW, stored if refused else stored // 10):
            return None
        return RunStopped(f"{count} requests in a row failed; the last: {error}")

    def look_for_text(
        self, completion: Completion, max_tokens: int, stored: int = 0
    ) -> NoRows | None:
        """Whether one answer after another is empty: they are paid for, and give no row.

        What counts as none a rerun asks for again, so the more is ``stored``, the more of that.
        It is paid for each time, unlike failures, so no more than one in a hundred.
        """
        self._empty_in_a_row = 0 if completion.text.strip() else self._empty_in_a_row + 1
        if self._empty_in_a_row < max(_EMPTY_IN_A_ROW, stored // 100):
            return None
        words = f"{self._empty_in_a_row} answers in a row were empty"
        if completion.finish_reason == "length":
            words += (
                f"; the model used up max_tokens ({max_tokens:,}) before it wrote any text, as "
                "models do that think first: raise --max_tokens"
            )
        elif completion.only_thoughts:
            words += f"; {ONLY_THOUGHTS}"
        else:
            words += "; has the server the chat template of its model?"
        return NoRows(f"{words} (finish reason {completion.finish_reason!r})")

    def look_for_cuts(self, counted: int, ours: int) -> NoRows | None:
        """Warn, then stop, where a server counts the same for prompts that are longer by far."""
        if not _LEAST_WINDOW <= counted <= _CUT_SHARE * ours:
            return None
        self._cut_in_a_row = self._cut_in_a_row + 1 if counted == self._cut_at else 1
        self._cut_at = counted
        words = (
            f"the server counts {counted:,} tokens in every prompt, where there are about {ours:,}:"
            " it leaves the rest out. Start it with a larger context (OLLAMA_CONTEXT_LENGTH for "
            f"Ollama), or give --context_window {counted}"
        )
        if self._cut_in_a_row == _CUT_TOLD:
            _log.warning(words)
        if self._cut_in_a_row < _CUT_IN_A_ROW:
            return None
        return NoRows(f"{words}; a new --response_store asks again for what was answered")


class RowRules:
    """What answers that give no row tell; on the client's loop alone, once it is expected."""

    def __init__(self, stats: Stats, stop: Callable[[NoRows], None]) -> None:
        self._stats, self._answered_before, self._stop = stats, stats.answered, stop
        self._left: Counter[str] = Counter()
        self._useless: dict[str, Counter[str]] = {}
        self._useful: Counter[str] = Counter()
        self._repeated: Counter[str] = Counter()
        self._repeats, self._told = Repeats(), set[str]()

    def expect(self, kinds: Mapping[str, int]) -> None:
        """Note how many requests there are of each instruction type."""
        self._left.update(kinds)

    def count_useful(self, kind: str, turns: Iterable[Turn]) -> None:
        """Note that an answer of an instruction type gave a row with these turns.

        Where many rows have one and the same answers, the run says so once, and ends if it would
        pay for more of them.
        """
        self._left[kind] -= 1
        self._useful[kind] += 1
        said = "\n".join(turn.answer for turn in turns)
        self._repeated[kind] += self._repeats.is_repeat(kind, said)
        repeated, rows = self._repeated[kind], self._useful[kind]
        if not are_many(repeated, rows):
            return
        words = f"{repeated} of the first {rows} rows of type {kind!r} have another row's answers"
        if kind not in self._told:
            self._told.add(kind)
            _log.warning(f"{words}, word for word; look at them before you pay for more")
        is_useless = rows >= _ROWS_TO_JUDGE and repeated > rows * _REPEATED_SHARE
        if is_useless and self._left[kind] > 0 and self._buys():
            self._stop(NoRows(f"{words}, word for word. {_OTHERWISE}"))

    def count_useless(self, kind: str, reason: str, detail: str) -> None:
        """Note that an answer of an instruction type gave no row.

        If none of the first hundred did and as many are still to come, the run ends: they would be
        paid for in vain. Answers of other runs count, but don't end one that buys nothing.
        """
        self._left[kind] -= 1
        if kind in self._useful:
            return
        reasons = self._useless.setdefault(kind, Counter())
        reasons[reason] += 1
        if not self._buys() or min(reasons.total(), self._left[kind]) < _USELESS:
            return
        words = ", ".join(f"{name} {count}" for name, count in reasons.most_common())
        error = NoRows(
            f"the first {reasons.total()} answers of type {kind!r} gave no row ({words}; the last: "
            f"{detail}). {_OTHERWISE}"
        )
        self._stop(error)

    def _buys(self) -> bool:
        return self._stats.answered > self._answered_before


def too_long_a_pause(error: TransientError) -> RunStopped:
    """What a run ends with whose server asks for hours."""
    wait_s = error.retry_after_s or 0.0
    return RunStopped(
        f"{error}; the server asks for a pause of {wait_s / 3600:.1f} hours, until "
        f"{until(wait_s)}; --max_pause {math.ceil(wait_s)} waits for it"
    )
