"""What a check finds: one thing said in a turn, and what the annotations say to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

import msgspec

Verdict = Literal["supported", "contradicted", "supposed", "unknown"]
Kind = Literal["object", "presence", "count", "side", "size"]

_WORST_FIRST: tuple[Verdict, ...] = ("contradicted", "supposed", "unknown", "supported")


class Finding(msgspec.Struct, frozen=True, gc=False):
    """One thing said in one turn, and what the annotations say to it.

    Attributes:
        turn: index of the turn, from 0; its question and answer are judged together.
        kind: ``object`` is a thing that is named, ``presence`` one that is said not to be there.
        verdict: see docs/answers.md.
        said: the words it is about, such as ``forty-seven people``.
        label: the vocabulary's name for them, such as ``person``.
        known: what the annotations say, in words; empty where they say nothing.
    """

    turn: int
    kind: Kind
    verdict: Verdict
    said: str
    label: str
    known: str = ""


class Spoken(Protocol):
    """A question and its answer, such as a `Turn`."""

    @property
    def question(self) -> str:
        """What is asked."""
        ...

    @property
    def answer(self) -> str:
        """What is answered."""
        ...


def verdict_of(findings: Iterable[Finding], turn: int) -> Verdict:
    """The worst verdict of a turn; one in which nothing was found is supported."""
    found = {finding.verdict for finding in findings if finding.turn == turn}
    return next((verdict for verdict in _WORST_FIRST if verdict in found), "supported")
