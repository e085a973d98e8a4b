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

_NOT_ABLE = (
    r"(?:not (?:able|allowed|comfortable)|unable|cannot|can['\u2019]t|can not|won['\u2019]t"
    r"|will not|do(?:es)?(?:n['\u2019]t| not)|no way)(?: to)?"
)
_AN_AI = (
    r"an? (?:AI\b|artificial|(?:large |text[- ]based |visual )?language model|chatbot"
    r"|(?:virtual |AI )?assistant\b)"
)
_PICTURE = r"(?:image|picture|photo(?:graph)?)s?\b"
_GIVEN = (
    r"(?:captions?|descriptions?|sentences?|annotations?|labels?|lists?|data|metadata|input|text)"
)
# "The label says" may be of a bottle.
_WRITTEN = r"(?:captions?|descriptions?|sentences|annotations?|labels|lists|data|metadata|input)"
_WHICH = (
    r"(?:the|these|those|your|both|all|each|several|some|most|one|two|three|four|five|first|second"
    r"|third|fourth|last|other)(?: of)?(?: the| these| your)?"
    r"(?: provided| given| first| second| third| object| input| above)?"
)
_SAYS = (
    r"(?:says?|state[sd]?|mention(?:s|ed)?|describe[sd]?|indicates?|list(?:s|ed)?|tells?|suggests?"
    r"|specif(?:y|ies|ied)|gives?|given|provided|note[sd]?|do(?:es)?(?:n['\u2019]t| not) \w+)\b"
)
_FRACTION = r"(?<![\d.:$\u20ac\u00a3])0?\.\d{2,}"
# Name of a filter -> what it finds, and words of which a text with that has at least one.
_PATTERNS: dict[str, tuple[tuple[str, str], ...]] = {
    "refusal": (
        ("sorry", r"\bI(?:['\u2019]m| am) sorry,? but\b"),
        ("sorry|apolog", rf"\b(?:sorry|apologi[sz]e)\b[^.!?]{{0,40}}\b{_NOT_ABLE}\b"),
        (
            "i'm|i\u2019m|i am|i can|i won|i will|i do",
            rf"\bI(?:['\u2019]m| am)? {_NOT_ABLE} (?:help|assist|answer|provide|identify|comply"
            r"|discuss|comment|share|fulfil|(?:make|draw) (?:\w+ )?inferences|infer|speculat|engage"
            r"|recogni[sz]e)",
        ),
        ("against", r"\bagainst (?:my|the) (?:guidelines|polic\w+|programming)"),
    ),
    "as_ai": (
        ("as a|being a", rf"\b(?:as|being) {_AN_AI}"),
        ("have", r"\bI do(?:n['\u2019]t| not) have (?:any )?(?:personal |feelings|opinions)"),
        ("i'm |i\u2019m |i am ", rf"\bI(?:['\u2019]m| am) (?:just |only )?{_AN_AI}"),
        ("training", r"\bmy training data\b"),
    ),
    "cannot_see": (
        (
            "image|picture|photo",
            rf"\b(?:(?:I(?:['\u2019]m| am)?|being) {_NOT_ABLE}|no way to)"
            r" (?:actually |directly |physically )?(?:have (?:the ability to )?)?"
            r"(?:see|view|look at|access(?: to)?|open)"
            rf" (?:(?:the|an|any|this|that|your) (?:actual )?)?{_PICTURE}",
        ),
        ("please", rf"\bplease (?:provide|upload|share)(?: me with)? (?:the|an|your) {_PICTURE}"),
        (
            "no image|no pic|no photo",
            rf"\bno {_PICTURE} (?:is|was|has been|were)"
            r" (?:provided|attached|given|shared|included)",
        ),
        (
            "without",
            r"\bwithout (?:actually )?(?:seeing|access to|being able to see) (?:the|an|this|any)"
            rf" {_PICTURE}",
        ),
    ),
    "leak": (
        (
            "x=|y=|x =|y =|x:|y:|x_|y_|n=|r=|e=|e =|r =|n =",
            r"\b[xy](?:_?(?:min|max|cent(?:er|re)))? ?[=:] ?-?\d*\.\d+",
        ),
        (
            "0.|.0|.1|.2|.3|.4|.5|.6|.7|.8|.9",
            rf"{_FRACTION}\s*(?:,|and|to|by|-|\u2013|x|\u00d7)\s*(?:[xy]\s*)?0?\.\d{{2,}}",
        ),
        (
            "%|percent",
            r"\d\s*(?:%|percent) (?:of the way|from the|(?:in|down|across) from"
            r"|(?:of|across|down) the (?:image|picture|photo\w*|frame)(?:['\u2019]s)?"
            r" (?:width|height|from))",
        ),
        ("normali", r"\bnormali[sz]ed (?:coordinates?|units?|position)"),
        (
            "bounding|box data|box coord|object data",
            r"\b(?:bounding[- ]box(?:es)?|object data|box (?:data|coordinates))\b",
        ),
        ("detect", r"\b(?:detected objects?|detections? (?:show|list))"),
        (
            "caption|description|sentence|annotation|label| list|data|input|text",
            rf"\b{_WHICH} {_WRITTEN}(?: (?:above|provided|given))? {_SAYS}"
            rf"|\b(?:mentioned|described|stated|noted|listed|specified|given) (?:in|by) {_WHICH}"
            rf" (?:sentence|{_WRITTEN})\b"
            rf"|\b(?:according to|based on|from|per) (?:the|these|your)"
            rf"(?: provided| given| object| input| listed)* {_GIVEN}\b(?! of (?:contents|law))"
            rf"|\b(?:provided|given|supplied|input) {_GIVEN}\b",
        ),
        # On a screen or under a picture there may be captions, too.
        (
            "caption|annotation",
            r"\b(?:captions?|annotations?) (?:#|no\. ?)?(?:\d+|one|two|three|four|five)\b"
            r"|\b(?:one|two|three|four|five|both|all|each|every|several|multiple|various|different"
            r"|another|most|first|second|third|fourth|fifth|last|other)(?: of)?(?: the| these)?"
            r" (?:captions?|annotations?)\b(?! (?:on|at|under|below|beneath|beside|next)\b)"
            r"|\b(?:the|these|this) (?:captions?|annotations?) (?:also |only |all |both )?"
            r"(?:shows?|calls?|puts?|names?|(?:dis)?agrees?|differs?|confirms?|refers?|implies|imply"
            r"|speaks?|talks?|hints?|points?|uses?|makes?)\b"
            r"|\b(?:in|by|from|per|to) (?:the|these|its|their) (?:captions?|annotations?)"
            r"(?=[.,;:?!]| (?:it|that|we|and|as|is|are|there)\b|$)",
        ),
        (
            "annotated",
            r"\b(?:is|are|was|were|been|being|has|have) (?:\w+ly )?annotated (?:as|in|by)\b",
        ),
        (
            "coordinates",
            r"\b(?:its|their|these|box) coordinates\b"
            r"|\b(?:from|by|using|on|to|in) the coordinates\b"
            r"|\bthe coordinates (?:show|say|tell|indicate|suggest|place|put|of)\b",
        ),
        (
            "coco|lvis|open images|openimages|visual genome|localized narr|humanml",
            r"\b(?-i:COCO|LVIS|Open ?Images|Visual Genome|Localized Narratives|HumanML3D)\b",
        ),
        (" set| split", r"\b(?:(?:training|validation) set|(?:train|validation|test) split)\b"),
        ("image", r"\bimage(?: id)? #?\d{2,}\b"),
    ),
    "markup": (
        ("<", r"<image\d*>|<\|?image[\w ]*\|?>|<img\b"),
        (
            "<",
            r"</?(?:p|div|span|br|b|i|em|strong|a|ul|ol|li|h[1-6]|table|tr|td|code|pre)\b[^<>]*>",
        ),
        ("[", r"\[/?(?:IMG|IMAGE)\]|!?\[[^\[\]\n]*\]\([^()\n]+\)"),
        ("http|www.", r"\bhttps?://|\bwww\.\w"),
        ("#", r"(?m:^\s{0,3}#{1,6} +\S)"),
        ("```", "```"),
        (" | ", r"(?m:^\s*\|.*\|\s*$)"),
    ),
    "personal_data": (
        ("@", r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b"),
        (
            "0|1|2|3|4|5|6|7|8|9",
            r"(?<![\d.,])(?:\+\d{1,3}[ .-])?(?:\(\d{2,4}\)[ .-]?|\d{2,4}[ .-])\d{3,4}[ .-]\d{3,4}"
            r"(?![\d.,]\d)",
        ),
        (
            "0|1|2|3|4|5|6|7|8|9",
            r"\b\d{1,5} (?-i:[A-Z])[\w.]+ (?:(?-i:[A-Z])\w+ )?(?:street|avenue|road|lane|drive"
            r"|boulevard|st\.|ave\.|rd\.),? (?-i:[A-Z])\w+",
        ),
    ),
}
_UNANSWERABLE = re.compile(
    r"\b(?:not|n['\u2019]t|im)\s?possible to (?:determine|tell|say|know|identify|see)\b"
    r"|\b(?:cannot|can['\u2019]t|can not|could not|couldn['\u2019]t) be (?:determined|known|seen"
    r"|identified|inferred|answered|told)\b"
    r"|\b(?:is|are|was)(?: not|n['\u2019]t) (?:clear|known|specified|stated|mentioned"
    r"|given|provided|indicated|described)\b"
    r"|\b(?:unclear|unknown|unspecified|not (?:stated|specified|mentioned|given))\b"
    r"(?=[.,;]| from| in| whether| what| how| who)"
    r"|(?:\bno|(?:\bnot|n['\u2019]t)(?: \w+)? enough|insufficient|not sufficient)"
    r" (?:information|context|mention|indication)\b"
    r"|\b(?:no way to|I can(?:not|['\u2019]t)) (?:determine|know|identify)\b"
    r"|\b(?:image|picture|photo) does(?:n['\u2019]t| not) (?:say|state|specify|reveal|mention)\b"
    r"|^\W*n/a\W*$",
    re.IGNORECASE,
)
# What finds something there has one of these.
_DENIALS = ("no", "n't", "n\u2019t", "possible", "unclear", "unspecified", "insufficient", "n/a")
_EMPHASIS = re.compile(r"(\*\*|__)(?=\S)((?:(?!\1).)+)(?<=\S)\1", re.DOTALL)
_MEANT = re.compile(r"[\w\s]+")
_LETTERS = re.compile(r"\w+")
_FIRST_SENTENCE = re.compile(r"[^.!?\n]*[.!?\n]?")
# Of a hundred: how alike a copy is, and a question that is only repeated.
_COPY = 85
# A conversation in which nobody says more teaches nothing.
_FEWEST_WORDS = 3
_LEAST_LANGUAGE_CHARACTERS = 40
_MOST_LANGUAGE_CHARACTERS = 400
# Words of no other language; most English texts have a quarter.
_ENGLISH = frozenset(
    "the and are of with that there their from which this what how who its".split()  # noqa: SIM905
)
_MUCH_ENGLISH = 0.12
_SURE = 15.0  # of log probabilities; English beats the next language by more in 40 characters
_LONGEST_WORD = 45


def _search(rules: Iterable[tuple[str, str]]) -> Filter:
    """A filter by patterns, each of which is tried where one of its words occurs."""
    ready = [(words.split("|"), re.compile(rule, re.IGNORECASE)) for words, rule in rules]

    def look(turn: Turn, examples: Examples) -> str | None:
        text = f"{turn.answer}\n{turn.question}"
        lower = text.lower()
        for words, pattern in ready:
            for word in words:
                if word in lower:
                    if found := pattern.search(text):
                        return repr(found.group())
                    break
        return None

    return look


def _find_unanswered(turn: Turn, examples: Examples) -> str | None:
    """An answer whose first sentence says that there is none."""
    if not any(map(turn.answer.lower().__contains__, _DENIALS)):
        return None
    first = _FIRST_SENTENCE.match(turn.answer)
    found = _UNANSWERABLE.search(first.group()) if first else None
    return repr(found.group()) if found else None


def reject_whole(turns: Sequence[Turn], names: Iterable[str]) -> Rejected | None:
    """A rejection by the filters of all turns together: ``too_short`` and ``language``."""
    names = set(names)
    is_short = len(turns) > 1 and all(len(t.answer.split()) < _FEWEST_WORDS for t in turns)
    if is_short and "too_short" in names:
        return Rejected("too_short", f"no answer has {_FEWEST_WORDS} words")
    return _reject_language(turns) if "language" in names else None


def _reject_language(turns: Sequence[Turn]) -> Rejected | None:
    """A rejection if what was written, all together, is surely not English.

    By https://pypi.org/project/py3langid/ (BSD), naive Bayes over up to four bytes.
    """
    text = " ".join(f"{turn.question} {turn.answer}" for turn in turns)
    words = text.lower().split()
    if text.isascii() and (
        len(text) < _LEAST_LANGUAGE_CHARACTERS
        or sum(map(_ENGLISH.__contains__, words)) > len(words) * _MUCH_ENGLISH
    ):
        return None
    import py3langid

    ranked = dict(py3langid.rank(text[:_MOST_LANGUAGE_CHARACTERS]))
    best = max(ranked, key=lambda name: ranked[name])
    if ranked[best] - ranked["en"] <= _SURE:
        return None
    return Rejected("language", f"{best} rather than en")


def _find_copy(turn: Turn, examples: Examples) -> str | None:
    """A long answer that is an example's, but for a few words."""
    from rapidfuzz import fuzz

    for _, answer in examples:
        if fuzz.ratio(turn.answer, answer, score_cutoff=_COPY) and is_long(answer):
            return f"it is an example's, nearly word for word: {answer[:60]!r}"
    return None


def _find_echo(turn: Turn, examples: Examples) -> str | None:
    if len(turn.answer) > 2 * len(turn.question):
        return None
    asked, said = (_LETTERS.findall(text.lower()) for text in (turn.question, turn.answer))
    return "the answer is the question" if asked and asked == said else None


def _find_gibberish(turn: Turn, examples: Examples) -> str | None:
    text = turn.answer
    if "\ufffd" in text:
        return "it has characters that could not be decoded"
    longest = max(text.split(), key=len, default="")
    if len(longest) > _LONGEST_WORD and longest.isascii():
        return f"a word of {len(longest)} characters"
    meant = len(_MEANT.sub("", text)) if len(text) > _LONGEST_WORD else 0
    if meant * 10 > len(text) * 3:
        return f"{meant} of {len(text)} characters are no letters, digits or blanks"
    return None


FILTERS: dict[str, Filter] = {
    **{name: _search(rules) for name, rules in _PATTERNS.items()},
    "unanswerable": _find_unanswered,
    "copied_example": _find_copy,
    "echoed_question": _find_echo,
    "gibberish": _find_gibberish,
}
"""By name, of a turn by itself; ``repeated_question`` is `asks_again`, the others are in
`reject_whole`."""


def reject_form(turn: Turn, names: Iterable[str], examples: Examples) -> Rejected | None:
    """A rejection by the first of some filters that finds something in a turn, or None."""
    for name in names:
        if name in FILTERS and (detail := FILTERS[name](turn, examples)):
            return Rejected(name, detail)
    return None


def drop_emphasis(text: str) -> str:
    """The text without bold type."""
    return _EMPHASIS.sub(r"\2", text) if "**" in text or "__" in text else text


_QUESTION_WORDS = frozenset(
    """a an and any are at be can could describe did do does for has have image in is it its me of
    on or photo picture please scene see shown tell than that the their there these they this to
    visible was were what which with would you
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
