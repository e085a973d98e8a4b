"""Where things are said to be, and which is larger, held against the boxes.

It is known of a thing that has one box in the image, and left open what is near the line between
two answers. Somebody's own left ("in her left hand", "to the man's left") is no place in the image,
and isn't looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mminstruct.checks.findings import Finding, Kind, Verdict
from mminstruct.checks.mentions import Mention
from mminstruct.checks.objects import Known
from mminstruct.schema import Box

_CLEAR = 0.05  # between two centres, of the image's width or height
_TWICE = 2.0  # a larger box has at least so many times the area, as near things seem larger
_THIRD = 1 / 3

_MARKS = 0xE000  # characters that stand for mentions begin here
_THING = "[\ue000-\uf8ff]"
_SENTENCE = re.compile(r"[^.!?\n]+")
_BREAK = re.compile(r"[,;:(\u2013\u2014]|\b(?:and|but|while|whereas)\b")
_NOT = re.compile(r"\b(?:not|never)\b|n['\u2019]t\b")
_NOUN = (
    r"(?:(?:the|a|an|this|that|his|her|their|its|another|one|some) )?"
    r"(?:(?!(?:of|with|and|or|in|on|at|to|from|by|near|that|who|which|is|are|\w+ing)\b)[\w-]+ )"
    rf"{{0,3}}(?P<thing>{_THING})(?!['\u2019]s\b|-|\s?{_THING})"
)
# What comes after "To the left of the car" at a sentence's beginning.
_FOLLOWING = re.compile(
    r",? ?(?:(?:there|we|you|one|i)(?: can)? )?(?:(?:is|are|see|sees|stands?|sits?|lies|hangs) )?"
    rf"{_NOUN}",
    re.IGNORECASE,
)
# What says it of something before: ", which is just", or nothing.
_GOES_ON = re.compile(
    r"\s*(?:(?:which|who|that) )?(?:(?:is|are|was|stands?|sits?|lies|can be) (?:\w+ ){0,2})?",
    re.IGNORECASE,
)
_BESIDE = re.compile(
    r"(?:(?:\b(?:to|on|at|towards?) the (?:far |immediate |front |back )?"
    r"|(?<!the )(?<!his )(?<!her )(?<!its )(?<!their )(?<!'s )\b)"
    r"(?P<side>left|right)(?:(?:[- ]hand)? side)? of"
    rf"|\b(?P<level>above|below|beneath|underneath|under|on top of)) {_NOUN}",
    re.IGNORECASE,
)
_THAN = re.compile(rf"\b(?P<size>larger|bigger|smaller)(?: in size)? than {_NOUN}", re.IGNORECASE)
_FREE = (
    rf"(?=\s*(?:[,;:)]|$|{_THING}|(?:is|are|was|has|and|while|with|who|that|which|in|on|at|near|an?|"
    r"next|behind|there|the|we|you|\w+ing|(?:appear|seem|look|stand|sit)s?|lies)\b))"
)
_WITHIN = re.compile(
    r"\b(?:in|on|at|(?P<toward>to|towards?|near|along|around)) the (?:far |extreme |very )?"
    r"(?:(?P<high>top|upper|bottom|lower)\b)?[- ]?"
    r"(?:(?P<across>left|right|center|centre|middle)\b)?(?:[- ]hand)?"
    r"(?: (?:side|corner|part|half|third|portion|edge|area|section))?"
    r"(?: (?:of|in) (?:the|this) (?P<of>image|picture|photo|photograph|frame|scene|shot|view)\b"
    rf"|{_FREE})",
    re.IGNORECASE,
)
# Parts of words without which nothing here is said.
_TELLING = (
    *("left", "right", "above", "below", "beneath", "under", "top", "upper", "bottom", "lower"),
    *("cent", "middle", "larger", "bigger", "smaller"),
)
_YES_NO = re.compile(r"\s*(yes|no)\b", re.IGNORECASE)
_SAME = {
    **dict.fromkeys(("beneath", "underneath", "under"), "below"),
    "on top of": "above",
    "upper": "top",
    "lower": "bottom",
    "bigger": "larger",
    **dict.fromkeys(("center", "middle"), "centre"),
}
_FIRST = ("left", "above", "top")  # of their pairs, in the order of pixels


def check_places(
    known: Known, turn: int, question: str, answer: str, mentions: Sequence[Mention]
) -> Iterator[Finding]:
    """What one turn says of where things are and how large, and what their boxes say to it."""
    said = _YES_NO.match(answer)
    restated = bool(said) and _may_tell(question)
    if not known.boxes or not (restated or _may_tell(answer)):
        return
    asked = known.find_mentions(question) if restated or question[:5].lower() == "where" else []
    yield from _Claims(known, turn, answer, mentions, asked).read()
    if said and restated:
        for finding in _Claims(known, turn, question, asked).read():
            yield _turn_round(finding) if said[1].lower() == "no" else finding


def _may_tell(text: str) -> bool:
    lower = text.lower()
    return any(map(lower.__contains__, _TELLING))


def _turn_round(finding: Finding) -> Finding:
    """What is found where somebody says that something isn't so."""
    turned: dict[Verdict, Verdict] = {"supported": "contradicted", "contradicted": "supported"}
    verdict = turned.get(finding.verdict, finding.verdict)
    return Finding(
        finding.turn, finding.kind, verdict, f"not {finding.said}", finding.label, finding.known
    )


class _Claims:
    """The claims that one text makes.

    Args:
        known: the boxes.
        turn: index of the turn.
        text: a question or an answer.
        mentions: in the text.
        asked: what "it" is at its beginning.
    """

    def __init__(
        self,
        known: Known,
        turn: int,
        text: str,
        mentions: Sequence[Mention],
        asked: Sequence[Mention] = (),
    ) -> None:
        self._known, self._turn, self._asked = known, turn, asked
        self._named = {chr(_MARKS + n): mention for n, mention in enumerate(mentions)}
        self._said = {mark: text[m.noun_start : m.end] for mark, m in self._named.items()}
        pieces: list[str] = []
        end = 0
        for mark, mention in self._named.items():
            pieces += (text[end : mention.noun_start], mark)
            end = mention.end
        self._text = "".join([*pieces, text[end:]])

    def read(self) -> Iterator[Finding]:
        """What is found, sentence by sentence."""
        for found in _SENTENCE.finditer(self._text):
            sentence = found[0]
            if not _may_tell(sentence):
                self._asked = ()
                continue
            for claim in _BESIDE.finditer(sentence):
                word = (claim["side"] or claim["level"]).lower()
                yield from self._judge("side", sentence, claim, (_SAME.get(word, word),))
            for claim in _THAN.finditer(sentence):
                word = claim["size"].lower()
                yield from self._judge("size", sentence, claim, (_SAME.get(word, word),))
            for claim in _WITHIN.finditer(sentence):
                words = [w.lower() for w in (claim["high"], claim["across"]) if w]
                sides = tuple(_SAME.get(word, word) for word in words)
                sides = (*sides, "midway") if sides == ("centre",) else sides
                # "At the top" may be of a hill, and "to the left" of anything.
                is_whole = sides[-1:] in (("left",), ("right",)) and not claim["toward"]
                if sides and (claim["of"] or is_whole):
                    yield from self._judge("side", sentence, claim, sides)
            self._asked = ()

    def _judge(
        self, kind: Kind, sentence: str, claim: re.Match[str], words: tuple[str, ...]
    ) -> Iterator[Finding]:
        subjects, start, end = self._find_subjects(sentence, claim)
        if not subjects:
            return
        other = self._named[claim["thing"]] if "thing" in claim.re.groupindex else None
        found = [self._look(subject, words, other) for subject in subjects]
        # Where it isn't clear of which thing it is said, it has to be so of each.
        verdicts = {verdict for verdict, _ in found}
        verdict, known = found[-1] if len(verdicts) == 1 else ("unknown", "")
        if verdict == "contradicted" and any(m.supposed for m in (*subjects, other) if m):
            verdict = "supposed"
        said = "".join(self._said.get(c, c) for c in sentence[start:end]).strip()
        yield Finding(self._turn, kind, verdict, said, self._label(subjects[-1]), known)

    def _find_subjects(self, sentence: str, claim: re.Match[str]) -> tuple[list[Mention], int, int]:
        """The things of which something may be said, and the words with which it is."""
        start, end = claim.span()
        clause = max((found.end() for found in _BREAK.finditer(sentence, 0, start)), default=0)
        own = sentence[clause:start]
        if _NOT.search(own):
            return [], start, end
        marks = [c for c in own if c in self._named]
        if not marks and _GOES_ON.fullmatch(own):
            if not own.strip() and (following := _FOLLOWING.match(sentence, end)):
                marks, end = [following["thing"]], following.end()
            else:
                marks, clause = [c for c in sentence[:start] if c in self._named], 0
        if marks:
            before = sentence.find(marks[-1], clause, start)
            return [self._named[c] for c in marks], start if before < 0 else before, end
        is_it = re.match(r"\s*(?:(?:it|he|she) |$)", own, re.IGNORECASE)
        return list(self._asked if is_it else ()), clause, end

    def _label(self, mention: Mention) -> str:
        """The label of the boxes that a mention is about."""
        alone = self._known.alone
        return next((s.label for s in mention.senses if s.label in alone), mention.label)

    def _box(self, mention: Mention) -> Box | None:
        """The box of the only thing that a mention can be about."""
        labels = [s.label for s in mention.senses if self._known.boxes[s.label]]
        is_one = len(labels) == 1 and not mention.plural and (mention.number or 1) == 1
        is_there = not (mention.negated or mention.likeness)
        return self._known.alone.get(labels[0]) if is_one and is_there else None

    def _look(
        self, subject: Mention, words: tuple[str, ...], other: Mention | None
    ) -> tuple[Verdict, str]:
        """The verdict of the boxes on what is said of a thing, and what they say."""
        box = self._box(subject)
        beside = None if other is None else self._box(other)
        if box is None or (other is not None and beside is None):
            return "unknown", ""
        than = "the middle of the image" if other is None else self._label(other)
        verdict: Verdict = "supported"
        for word in words:
            is_so, truth = _compare(word, box, beside)
            known = f"{self._label(subject)} is {truth} {than}"
            if is_so is False:
                return "contradicted", known
            verdict = verdict if is_so else "unknown"
        return verdict, known if verdict == "supported" else ""


def _compare(word: str, box: Box, other: Box | None) -> tuple[bool | None, str]:
    """Whether a word holds of a thing, or None where that is left open; and what holds of it."""
    if other is not None and word in ("larger", "smaller"):
        ratio = box.area / other.area
        truth = "larger than" if ratio > 1 else "smaller than"
        return (truth.startswith(word) if max(ratio, 1 / ratio) > _TWICE else None), truth
    axis = word in ("above", "below", "top", "bottom", "midway")
    (low, high), (start, end) = (
        b.bbox_xyxy_norm[axis::2] if b else (_THIRD, 1 - _THIRD) for b in (box, other)
    )
    apart = (start + end - low - high) / 2
    truth = (("left of", "right of"), ("above", "below"))[axis][apart < 0]
    if word in ("centre", "midway"):
        is_out = high < start or low > end
        return (False if is_out else start < (low + high) / 2 < end or None), truth
    is_clear = abs(apart) > _CLEAR and (start - low) * apart > 0 and (end - high) * apart > 0
    return ((apart > 0) is (word in _FIRST) if is_clear else None), truth
