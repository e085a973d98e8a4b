"""Why a text that was read whole is still no row."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from mminstruct.prompts.config import InstructionType, PromptConfig

# In words. "It is on the left." may well be said twice.
_SHORT_ANSWER = 5
_SHORT_SENTENCE = 10
REPEATS = 4
# Of 40 words of prose, more than 25 are distinct; of 400, more than 160. Loops go below a fifth.
_MANY_WORDS = 12
_LEAST_DISTINCT = 0.25


# No English sentence ends with one of these; a line of more words than that ends with a mark.
_NEVER_LAST = frozenset(
    """a an and any are as at because but by each every for from his if into is its my nor of or our
    several such than that's the their this to was were where which while who whose with your
    """.split()  # noqa: SIM905 (a list of strings takes ten lines)
)
_LONGEST_UNMARKED = 12
_LIST_ITEM = re.compile(r"\s*(?:[-*+\u2022|#>]|\w{1,3}[.):]|[^:]{1,40}: )")
_ENDS = tuple(".!?\u2026\u3002\uff01\uff1f\u0964)]\"'\u201d\u2019\u00bb\u300d\u300f*_`:")


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why an answer gives no row: a reason to count by, and the detail of this one."""

    reason: str
    detail: str = ""


def is_long(answer: str) -> bool:
    """Whether an answer says enough that nobody would say it twice, unlike "Yes."."""
    return len(answer.split()) > _SHORT_ANSWER


def reject_leak(config: PromptConfig, text: str) -> Rejected | None:
    """A rejection if the text shows what only the prompt could say."""
    leak = config.find_leak(text)
    return Rejected("leak", leak) if leak else None


def reject_cut(text: str) -> Rejected | None:
    """A rejection if a text stops in the middle of a sentence, though the server says it ended."""
    last = text[text.rfind("\n") + 1 :].rstrip()
    if last.endswith(_ENDS) or _LIST_ITEM.match(last):
        return None
    words = last.split()
    if len(words) > _LONGEST_UNMARKED or (
        len(words) > 2 and (words[-1].lower() in _NEVER_LAST or words[-1].endswith((",", ";")))
    ):
        return Rejected("cut_sentence", f"it ends with {' '.join(words[-4:])!r}")
    return None


def find_flaw(answer: str, kind: InstructionType, *, question: str = "") -> Rejected | None:
    """A rejection if an answer that was read whole is too poor for a row."""
    lower = answer.lower()
    words = lower.split()
    if len(words) < kind.min_words:
        return Rejected("too_short", f"{len(words)} words, at least {kind.min_words}")
    if (count := len(words)) >= _MANY_WORDS:
        least = _LEAST_DISTINCT * count
        # Half of nearly every text has enough.
        if len(set(words[: count // 2])) < least and (distinct := len(set(words))) < least:
            return Rejected("repetition", f"{distinct} distinct words among {count}")
    # A pattern that splits at any of these takes ten times as long.
    pieces = lower.replace("!", ".").replace("?", ".").replace("\n", ".").split(".")
    sentences = (
        [s for s in map(str.lstrip, pieces) if len(s) > _SHORT_SENTENCE]
        if len(pieces) >= REPEATS
        else []
    )
    if len(sentences) - len(set(sentences)) >= REPEATS - 1:
        most = max(Counter(sentences).values())
        if most >= REPEATS:
            return Rejected("repetition", f"one sentence {most} times")
    if is_long(answer) and (question, answer) in kind.example_turns:
        return Rejected("copied_example", "the answer is a few-shot example's")
    return None
