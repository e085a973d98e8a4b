"""Whether a question and its answer have the form of a row; each filter has a name to count by.

A prompt config chooses among them (``filters``). They look at the words alone: whether these are
true of the image is not theirs to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from mminstruct.answers.flaws import Rejected, is_long
from mminstruct.schema import Turn

Examples = frozenset[tuple[str, str]]
"""The (question, answer) pairs of a type's examples."""
Filter = Callable[[Turn, Examples], str | None]


def _compile(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


_FIRST_PERSON = r"\bI(?:['\u2019]m|\ am|['\u2019]ve|\ have|['\u2019]d|\ would|\ do|\ can|\ could)?"
_REFUSAL = _compile(
    rf"{_FIRST_PERSON} ?(?:not able|unable|cannot|can['\u2019]t|won['\u2019]t|will not|not allowed)"
    r" (?:to )?(?:help|assist|answer|provide|identify|comply|discuss|comment|share|do that|fulfil)",
    r"\bI(?:['\u2019]m| am) sorry,? but\b",
    r"\b(?:sorry|apologi[sz]e)\b[^.!?]{0,40}\b(?:can['\u2019]t|cannot|unable|not able)\b",
    r"\bagainst (?:my|the) (?:guidelines|polic\w+|programming)",
)
_AS_AI = _compile(
    r"\bas an? (?:AI|artificial|(?:large |text[- ]based |visual )?language model|(?:virtual |AI )?assistant|chatbot)\b",
    r"\bI(?:['\u2019]m| am) (?:just |only )?an? (?:AI|artificial|language model|(?:virtual |AI )?assistant|chatbot)\b",
    r"\bmy training data\b",
)
_CANNOT_SEE = _compile(
    r"\b(?:can(?:not|['\u2019]t| not)|do(?:n['\u2019]t| not)|unable to|not able to|no way to)"
    r" (?:actually |directly |physically )?(?:see|view|look at|access|open|display)"
    r" (?:the|an|any|this|that|your)? ?(?:actual )?(?:image|picture|photo\w*)s?\b",
    r"\bno (?:image|picture|photo\w*) (?:is|was|has been|were) (?:provided|attached|given|shared|included)\b",
    r"\bwithout (?:actually )?(?:seeing|access to|being able to see) (?:the|an|this|any) (?:image|picture|photo)",
)
_GIVEN = (
    r"(?:captions?|descriptions?|sentences?|annotations?|labels?|lists?|data|metadata|input|text)"
)
_SAYS = (
    r"(?:says?|states?|stated|mentions?|mentioned|describes?|described|indicates?|lists?|listed|tells?"
    r"|specif(?:y|ies|ied)|suggests?|gives?|given|provided|note[sd]?|do(?:es)?(?:n['\u2019]t| not) \w+)"
)
_LEAK = _compile(
    r"\b[xy](?:_?(?:min|max|cent(?:er|re)))? ?[=:] ?-?\d*\.?\d+",
    r"(?<![\d.:$\u20ac\u00a3])0?\.\d{2,}\s*(?:,|and|to|by|-|\u2013|x|\u00d7)\s*(?:[xy]\s*)?0?\.\d{2,}",
    r"\d\s*(?:%|percent) (?:of the way|from the|(?:in|down|across) from|(?:of|across|down) the"
    r" (?:image|picture|photo\w*|frame)(?:['\u2019]s)? ?(?:width|height|from)?)",
    r"\bnormali[sz]ed (?:coordinates?|units?|position)",
    r"\b(?:bounding[- ]box(?:es)?|object data|box (?:data|coordinates)|detected objects?|detections?\b(?= show| list))",
    rf"\b(?:the|these|those|your|both|all|each|several|some|most|one|two|three|four|five|first|second|third|fourth|last"
    rf"|other)(?: of)?(?: the| these| your)? (?:provided |given |first |second |third |object |input |above )?{_GIVEN}"
    rf"(?: (?:above|provided|given))? {_SAYS}\b",
    rf"\b(?:according to|based on|from|per) (?:the|these|your) (?:provided |given |object |input |listed )*{_GIVEN}\b(?! of (?:contents|law))",
    rf"\b(?:provided|given|supplied|input) {_GIVEN}\b",
    r"\b(?:COCO|LVIS|Open ?Images|Visual Genome|Localized Narratives|HumanML3D)\b(?= |\.|,|['\u2019])(?! (?:beach|chanel|puffs|pops))",
    r"\b(?:train(?:ing)?|validation|test) (?:set|split)\b",
    r"\bimage(?: id)? #?\d{2,}\b",
)
_UNANSWERABLE = _compile(
    r"\b(?:not|n['\u2019]t|im)\s?possible to (?:determine|tell|say|know|identify|see)\b",
    r"\b(?:cannot|can['\u2019]t|can not|could not|couldn['\u2019]t) be (?:determined|known|seen|identified|inferred|answered|told)\b",
    r"\b(?:is|are|was)(?: not|n['\u2019]t) (?:clear|known|specified|stated|mentioned|given|provided|indicated|described)\b",
    r"\b(?:unclear|unknown|unspecified|not (?:stated|specified|mentioned|given))\b(?=[.,;]| from| in| whether| what| how| who)",
    r"\b(?:there is )?(?:no|not enough|insufficient) (?:information|details?|context|mention|indication)\b",
)
_MARKUP = _compile(
    r"<image\d*>|\[/?(?:IMG|IMAGE)\]|<\|?image[\w ]*\|?>|<img\b",
    r"</?(?:p|div|span|br|b|i|em|strong|a|ul|ol|li|h[1-6]|table|tr|td|code|pre)\b[^<>]*>",
    r"!?\[[^\]\n]*\]\([^)\n]+\)",
    r"\bhttps?://|\bwww\.\w",
    r"(?m:^\s{0,3}#{1,6} +\S)",
    r"```|(?m:^\s*\|.*\|\s*$)",
)
_PERSONAL = _compile(
    r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b",
    r"(?<![\d.,])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?|\d{2,4}[ .-])\d{3,4}[ .-]\d{2,4}(?:[ .-]\d{2,4})?(?![\d.,]\d)",
    r"\b\d{1,5} (?-i:[A-Z])[\w.]+ (?:(?-i:[A-Z])\w+ )?(?:street|avenue|road|lane|drive|boulevard|court|st\.|ave\.|rd\.)"
    r",? (?-i:[A-Z])\w+",
)
_EMPHASIS = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]{4,}|\d+|[^\W_]{2,}")
_FIRST_SENTENCE = re.compile(r"[^.!?\n]*[.!?\n]?")
# Of a hundred: how alike a copy is, and a question that is only repeated.
_COPY = 85
_LEAST_LANGUAGE_CHARACTERS = 40
_SURE = 15.0  # of log probabilities; English beats the next language by more in 40 characters
_LONGEST_WORD = 45


def _search(pattern: re.Pattern[str]) -> Filter:
    def look(turn: Turn, examples: Examples) -> str | None:
        found = pattern.search(turn.answer) or pattern.search(turn.question)
        return repr(found.group()) if found else None

    return look


def _find_unanswered(turn: Turn, examples: Examples) -> str | None:
    """An answer whose first sentence says that there is none."""
    first = _FIRST_SENTENCE.match(turn.answer)
    found = _UNANSWERABLE.search(first.group()) if first else None
    return repr(found.group()) if found else None


def _find_language(turn: Turn, examples: Examples) -> str | None:
    text = f"{turn.question} {turn.answer}"
    if text.isascii() and len(text) < _LEAST_LANGUAGE_CHARACTERS:
        return None
    language, sure = rank_language(text)
    return f"{language} rather than English" if language != "en" and sure else None


def rank_language(text: str) -> tuple[str, bool]:
    """The language that a text is in most likely, and whether that is sure against English.

    By https://pypi.org/project/py3langid/ (BSD), a naive Bayes over 1 to 4 bytes.
    """
    import py3langid

    ranked = dict(py3langid.rank(text))
    best = max(ranked, key=lambda name: ranked[name])
    return best, ranked[best] - ranked["en"] > _SURE


def _find_copy(turn: Turn, examples: Examples) -> str | None:
    """A long answer that is an example's, but for a few words."""
    from rapidfuzz import fuzz

    for _, answer in examples:
        if is_long(answer) and fuzz.ratio(turn.answer, answer, score_cutoff=_COPY):
            return f"it is an example's, nearly word for word: {answer[:60]!r}"
    return None


def _find_echo(turn: Turn, examples: Examples) -> str | None:
    asked, said = (" ".join(_WORD.findall(t.lower())) for t in (turn.question, turn.answer))
    return "the answer is the question" if asked and asked == said else None


def _find_gibberish(turn: Turn, examples: Examples) -> str | None:
    text = turn.answer
    if "\ufffd" in text:
        return "it has characters that could not be decoded"
    longest = max(text.split(), key=len, default="")
    if len(longest) > _LONGEST_WORD and longest.isascii():
        return f"a word of {len(longest)} characters"
    meant = sum(c.isalnum() or c.isspace() for c in text)
    if len(text) > _LONGEST_WORD and meant * 10 < len(text) * 7:
        return f"{meant} of {len(text)} characters are letters, digits or blanks"
    return None


FILTERS: dict[str, Filter] = {
    "refusal": _search(_REFUSAL),
    "as_ai": _search(_AS_AI),
    "cannot_see": _search(_CANNOT_SEE),
    "leak": _search(_LEAK),
    "unanswerable": _find_unanswered,
    "markup": _search(_MARKUP),
    "personal_data": _search(_PERSONAL),
    "copied_example": _find_copy,
    "echoed_question": _find_echo,
    "gibberish": _find_gibberish,
    "language": _find_language,
}
"""By name, the cheap ones first."""


def reject_form(turn: Turn, names: Iterable[str], examples: Examples) -> Rejected | None:
    """A rejection by the first of some filters that finds something, or None."""
    for name in names:
        if detail := FILTERS[name](turn, examples):
            return Rejected(name, detail)
    return None


def drop_emphasis(text: str) -> str:
    """The text without bold type, which says nothing."""
    return _EMPHASIS.sub(r"\2", text) if "**" in text or "__" in text else text


_QUESTION_WORDS = frozenset(
    """a an and any are at be can could describe did do does for has have how image in is it its of on
    or photo picture please scene shown tell than that the their there these they this to visible was
    were what where which who with would you see me does
    """.split()  # noqa: SIM905
)


@lru_cache(maxsize=4096)
def _content_of(question: str) -> frozenset[str]:
    words = (w.removesuffix("'s") for w in re.findall(r"[\w'\u2019]+", question.lower()))
    return frozenset(word.rstrip("s") for word in words if word not in _QUESTION_WORDS)


def asks_again(question: str, asked: Sequence[str]) -> bool:
    """Whether a question has the same words that matter as one of those before it."""
    words = _content_of(question)
    if not words:
        return False
    return any(
        len(words & other) * 3 >= len(words | other) * 2 for other in map(_content_of, asked)
    )
