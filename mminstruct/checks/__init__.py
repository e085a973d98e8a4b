"""Whether what answers say agrees with the annotations they were written from.

Each thing that is said gets a verdict, on a CPU and without a model. What annotations don't tell
is *unknown*, never wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

from mminstruct.checks.findings import Finding, Kind, Spoken, Verdict, verdict_of
from mminstruct.checks.mentions import Mention, find_mentions
from mminstruct.checks.objects import Known, check_objects
from mminstruct.checks.places import check_places
from mminstruct.checks.vocabulary import Vocabulary
from mminstruct.schema import Context

__all__ = [
    "VERSION",
    "Checker",
    "Finding",
    "Kind",
    "Known",
    "Mention",
    "Spoken",
    "Verdict",
    "Vocabulary",
    "find_mentions",
    "verdict_of",
]

VERSION = "1"
"""Of what judges; rows say by which they were judged."""


class Checker:
    """Judges the turns of one run."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._last: Known | None = None

    def know(self, context: Context) -> Known:
        """What a context says; of rows about one image, which follow each other, read once."""
        if self._last is None or self._last.context != context:
            self._last = Known.of(context, self.vocabulary)
        return self._last

    def check(self, context: Context, turns: Sequence[Spoken]) -> list[Finding]:
        """What the turns of a row say, in their order, and what the context says to it."""
        known = self.know(context)
        findings: list[Finding] = []
        for number, turn in enumerate(turns):
            mentions = known.find_mentions(turn.answer)
            said = (number, turn.question, turn.answer, mentions)
            findings += check_objects(known, *said)
            findings += check_places(known, *said)
        return findings
