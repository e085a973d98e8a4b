"""Whether a question and its answer have the form of a row; each filter has a name to count by.

A prompt config chooses among them (``filters``). They look at the words alone: whether these are
true of the image is not theirs to say.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial

from mminstruct.answers.flaws import REPEATS, Rejected, is_long
from mminstruct.schema import Turn

Examples = frozenset[tuple[str, str]]
"""The (question, answer) pairs of a type's examples."""

_NOT_ABLE = (
    r"(?:not (?:able|allowed|comfortable)|unable|cannot|can['\u2019]t|can not|won['\u2019]t"
    r"|will not|do(?:es)?(?:n['\u2019]t| not)|no way)(?: to)?"
)
_AN_AI = (
    r"an? (?:(?:[\w-]+ )?AI\b|artificial|(?:large |text[- ]based |visual )?language model|chatbot"
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
_DIGITS = "0 1 2 3 4 5 6 7 8 9"
_DECIMALS = ".0 .1 .2 .3 .4 .5 .6 .7 .8 .9"
# To find these costs a tenth of what it takes to try all patterns.
_TOKEN = re.compile(r"[a-z]+|\.[0-9]|[0-9<\[#@%`|]")
# Name of a filter -> tokens of which a text has at least one, and the pattern tried in such a text.
_PATTERNS: dict[str, tuple[tuple[str, str], ...]] = {
    "refusal": (
        ("sorry", r"\bI(?:['\u2019]m| am) sorry,? but\b"),
        ("sorry apologize apologise", rf"\b(?:sorry|apologi[sz]e)\b[^.!?]{{0,40}}\b{_NOT_ABLE}\b"),
        (
            "i",
            rf"\bI(?:['\u2019]m| am)? {_NOT_ABLE} (?:help|assist|answer|provide|identify|comply"
            r"|discuss|comment|share|fulfil|(?:make|draw) (?:\w+ )?inferences|infer|speculat|engage"
            r"|recogni[sz]e)",
        ),
        (
            "i appropriate inappropriate",
            r"\bI (?:(?:must|have to|will) (?:\w+ )?decline|(?:would )?(?:prefer|rather) not)\b"
            r"|\b(?:in|not )appropriate (?:for me )?to (?:speculat|guess|identify|comment|answer)",
        ),
        ("against", r"\bagainst (?:my|the) (?:guidelines|polic\w+|programming)"),
    ),
    "as_ai": (
        ("ai artificial language chatbot assistant", rf"\b(?:as|being) {_AN_AI}"),
        ("i", r"\bI do(?:n['\u2019]t| not) have (?:any )?(?:personal |feelings|opinions)"),
        ("i", rf"\bI(?:['\u2019]m| am) (?:just |only )?{_AN_AI}"),
        ("training", r"\bmy training data\b"),
    ),
    "cannot_see": (
        (
            "i being way",
            rf"\b(?:(?:I(?:['\u2019]m| am)?|being) {_NOT_ABLE}|no way to)"
            r" (?:actually |directly |physically )?(?:have (?:the ability to )?)?"
            r"(?:see|view|look at|access(?: to)?|open)"
            rf" (?:(?:the|an|any|this|that|your) (?:actual )?)?{_PICTURE}",
        ),
        ("please", rf"\bplease (?:provide|upload|share)(?: me with)? (?:the|an|your) {_PICTURE}"),
        (
            "provided attached given shared included",
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
            "x y xmin ymin xmax ymax xcenter ycenter xcentre ycentre",
            r"\b[xy](?:_?(?:min|max|cent(?:er|re)))? ?[=:] ?-?\d*\.\d+",
        ),
        (
            _DECIMALS,
            rf"{_FRACTION}\s*(?:,|and|to|by|-|\u2013|x|\u00d7)\s*(?:[xy]\s*)?0?\.\d{{2,}}",
        ),
        (
            "% percent",
            r"\d\s*(?:%|percent) (?:of the way|from the|(?:in|down|across) from"
            r"|(?:of|across|down) the (?:image|picture|photo\w*|frame)(?:['\u2019]s)?"
            r" (?:width|height|from))",
        ),
        ("normalized normalised", r"\bnormali[sz]ed (?:coordinates?|units?|position)"),
        (
            "bounding box object",
            r"\b(?:bounding[- ]box(?:es)?|object data|box (?:data|coordinates))\b",
        ),
        ("detected detection detections", r"\b(?:detected objects?|detections? (?:show|list))"),
        (
            "caption captions description descriptions sentence sentences annotation annotations"
            " label labels list lists data metadata input text",
            rf"\b{_WHICH} {_WRITTEN}(?: (?:above|provided|given))? {_SAYS}"
            rf"|\b(?:mentioned|described|stated|noted|listed|specified|given) (?:in|by) {_WHICH}"
            rf" (?:sentence|{_WRITTEN})\b"
            rf"|\b(?:according to|based on|from|per) (?:the|these|your)"
            rf"(?: provided| given| object| input| listed)* {_GIVEN}\b(?! of (?:contents|law))"
            rf"|\b(?:provided|given|supplied|input) {_GIVEN}\b",
        ),
        # On a screen or under a picture there may be captions, too.
        (
            "caption captions annotation annotations",
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
            "coco lvis images openimages genome narratives humanml",
            r"\b(?-i:COCO|LVIS|Open ?Images|Visual Genome|Localized Narratives|HumanML3D)\b",
        ),
        (
            "mention turn turns list listed given provided",
            r"\b(?:never|do(?:n['\u2019]t| not)) mention (?!it\b)|\bobject list\b"
            r"|\bwrite (?:each|\d+(?: to \d+)?) turns?\b|\blisted among the (?:objects|items)\b"
            r"|\b(?:given|provided) (?:context|information|details)\b",
        ),
        ("set split", r"\b(?:(?:training|validation) set|(?:train|validation|test) split)\b"),
        (
            _DIGITS,
            # To begin with a letter is three times as fast.
            r"(?-i:[Ii])(?<!\w.)mage(?: id)? #?\d{2,}\b",
        ),
    ),
    "markup": (
        ("<", r"<image\d*>|<\|?image[\w ]*\|?>|<img\b"),
        (
            "<",
            r"</?(?:p|div|span|br|b|i|em|strong|a|ul|ol|li|h[1-6]|table|tr|td|code|pre)\b[^<>]*>",
        ),
        ("[", r"\[/?(?:IMG|IMAGE)\]|!?\[[^\[\]\n]*\]\([^()\n]+\)"),
        ("http https www", r"\bhttps?://|\bwww\.\w"),
        ("#", r"(?m:^\s{0,3}#{1,6} +\S)"),
        ("`", "```"),
        ("|", r"(?m:^\s*\|.*\|\s*$)"),
    ),
    "personal_data": (
        ("@", r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b"),
        (
            _DIGITS,
            # To begin with the digit is ten times as fast.
            r"\d(?<![\d.,]\d)\d{1,3}(?:\)[ .-]?|[ .-])\d{3,4}[ .-]\d{3,4}(?![\d.,]\d)",
        ),
        (
            "street avenue road lane drive boulevard st ave rd",
            r"\d(?<!\w\d)\d{0,4} (?-i:[A-Z])[\w.]+ (?:(?-i:[A-Z])\w+ )?(?:street|avenue|road|lane"
            r"|drive|boulevard|st\.|ave\.|rd\.),? (?-i:[A-Z])\w+",
        ),
    ),
    # Of the first sentence of an answer alone: the others may well say what isn't known.
    "unanswerable": (
        (
            "possible impossible",
            r"\b(?:not|n['\u2019]t|im)\s?possible to (?:determine|tell|say|know|identify|see)\b",
        ),
        (
            "determined known seen identified inferred answered told",
            r"\b(?:can(?:not|['\u2019]t| not)|could(?: not|n['\u2019]t)) be (?:determined|known"
            r"|seen|identified|inferred|answered|told)\b",
        ),
        (
            "clear known specified stated mentioned given provided indicated described",
            r"\b(?:is|are|was)(?: not|n['\u2019]t)(?: \w+ or)? (?:clear|known|specified|stated"
            r"|mentioned|given|provided|indicated|described)\b"
            r"|\bnot (?:stated|specified|mentioned|given)(?=[.,;]| (?:from|in|whether|what|how)\b)",
        ),
        (
            "unclear unknown unspecified",
            r"\b(?:unclear|unknown|unspecified)(?=[.,;]| from| in| whether| what| how| who)",
        ),
        (
            "information context mention indication",
            r"(?:\bno|(?:\bnot|n['\u2019]t)(?: \w+){0,2}? (?:enough|this|that)|insufficient"
            r"|not sufficient) (?:information|context|mention|indication)\b",
        ),
        (
            "way i we does doesn",
            r"\b(?:no way to|(?:I|we) can(?:not|['\u2019]t)) (?:determine|know|identify)\b"
            r"|(?m:^\W*I do(?:n['\u2019]t| not) know\b)"
            r"|\b(?:image|picture|photo) does(?:n['\u2019]t| not) (?:say|state|specify|reveal"
            r"|mention)\b",
        ),
        ("n", r"(?m:^\W*n/a\W*$)"),
    ),
}
_EMPHASIS = re.compile(r"(\*\*|__)(?=\S)((?:(?!\1).)+)(?<=\S)\1", re.DOTALL)
_MEANT = re.compile(r"[\w\s]+")
_PLAIN = f"{string.ascii_letters}{string.digits}{string.whitespace}".encode()
_MARKS = string.punctuation + string.whitespace
_LETTERS = re.compile(r"\w+")
_OF_BEGINNINGS = "unanswerable"
_FIRST_SENTENCE = re.compile(r"[^.!?\n]*[.!?\n]?")
# Of a hundred: how alike a copy is, and a question that is only repeated.
_COPY = 85
# "It is black and white." is like "Its coat is black and white." by chance.
_WORDS_OF_A_COPY = 10
# A conversation in which nobody says more teaches nothing.
_FEWEST_WORDS = 3
_LEAST_LANGUAGE_CHARACTERS = 40
_MOST_LANGUAGE_CHARACTERS = 400
# Words of no other language; most English texts have a quarter.
_ENGLISH = frozenset(
    """the and are of with that there their from which this what how who its has have can be been
    while behind near
    """.split()  # noqa: SIM905 (a list of strings takes ten lines)
)
_MUCH_ENGLISH = 0.12
_SURE = 15.0  # of log probabilities; English beats the next language by more in 40 characters
_LONGEST_WORD = 45


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


@lru_cache(maxsize=64)
def _compare_with(examples: Examples) -> Callable[[str], tuple[str, float, int] | None]:
    """Finds which long answer of the examples a text is, but for a few words."""
    from rapidfuzz import fuzz, process

    answers = [answer for _, answer in examples if len(answer.split()) > _WORDS_OF_A_COPY]
    return partial(process.extractOne, choices=answers, scorer=fuzz.ratio, score_cutoff=_COPY)


def _find_copy(turn: Turn, examples: Examples) -> str | None:
    copied = _compare_with(examples)(turn.answer)
    return copied and f"it is an example's, nearly word for word: {copied[0][:60]!r}"


def _find_echo(turn: Turn, examples: Examples) -> str | None:
    # Most differ in their last letter.
    asked, said = (text.strip(_MARKS).lower() for text in (turn.question, turn.answer))
    if asked[-1:] != said[-1:] or _LETTERS.findall(asked) != _LETTERS.findall(said):
        return None
    return "the answer is the question" if asked else None


def _find_gibberish(turn: Turn, examples: Examples) -> str | None:
    text = turn.answer
    if "\ufffd" in text:
        return "it has characters that could not be decoded"
    longest = max(map(len, text.split()), default=0)
    if longest > _LONGEST_WORD and text.isascii():
        return f"a word of {longest} characters"
    few = len(text) * 0.3
    # Bytes are counted ten times as fast, and are no fewer.
    if len(text) <= _LONGEST_WORD or len(text.encode().translate(None, _PLAIN)) <= few:
        return None
    if (marks := len(_MEANT.sub("", text))) > few:
        return f"{marks} of {len(text)} characters are no letters, digits or blanks"
    return None


_CHECKS: dict[str, Callable[[Turn, Examples], str | None]] = {
    "copied_example": _find_copy,
    "echoed_question": _find_echo,
    "gibberish": _find_gibberish,
}
_RULES: list[tuple[str, list[str], re.Pattern[str]]] = [
    (name, hints.split(), re.compile(rule, re.IGNORECASE))
    for name, rules in _PATTERNS.items()
    for hints, rule in rules
]
_BY_TOKEN: dict[str, list[int]] = {}
for _number, _rule in enumerate(_RULES):
    for _hint in _rule[1]:
        _BY_TOKEN.setdefault(_hint, []).append(_number)
FILTERS = (*_PATTERNS, *_CHECKS)
"""Of a turn by itself; ``repeated_question`` is `asks_again`, the others are in `reject_whole`."""


def find_suspects(turns: Iterable[Turn], names: Iterable[str]) -> tuple[str, ...]:
    """The filters that have to look at each of some turns: most find nothing in all of them."""
    found = _search("\n".join([f"{turn.answer}\n{turn.question}" for turn in turns]))
    found |= _search("\n".join(map(_first_sentence, turns)), of_beginnings=True)
    return tuple(name for name in names if name in _CHECKS or name in found)


def _first_sentence(turn: Turn) -> str:
    return turn.answer[: _FIRST_SENTENCE.match(turn.answer).end()]  # type: ignore[union-attr]  # it matches any text


def _search(text: str, *, of_beginnings: bool = False) -> dict[str, str]:
    """The names of the filters whose patterns find something in a text, and what.

    Args:
        text: all of some turns, or how their answers begin.
        of_beginnings: look for what matters there alone, and else for all the rest.
    """
    found: dict[str, str] = {}
    tokens = _BY_TOKEN.keys() & set(_TOKEN.findall(text.lower()))
    for number in sorted({number for token in tokens for number in _BY_TOKEN[token]}):
        name, _, pattern = _RULES[number]
        if name in found or (name == _OF_BEGINNINGS) is not of_beginnings:
            continue
        if match := pattern.search(text):
            found[name] = repr(match.group())
    return found


def reject_form(turn: Turn, names: Iterable[str], examples: Examples) -> Rejected | None:
    """A rejection by the first of some filters that finds something in a turn, or None."""
    patterns: dict[str, str] | None = None
    for name in names:
        detail: str | None
        if name in _CHECKS:
            detail = _CHECKS[name](turn, examples)
        elif name == _OF_BEGINNINGS:
            detail = _search(_first_sentence(turn), of_beginnings=True).get(name)
        else:
            if patterns is None:
                patterns = _search(f"{turn.answer}\n{turn.question}")
            detail = patterns.get(name)
        if detail:
            return Rejected(name, detail)
    return None


def drop_emphasis(text: str) -> str:
    """The text without bold type."""
    return _EMPHASIS.sub(r"\2", text) if "**" in text or "__" in text else text


_QUESTION_WORD = re.compile(r"[\w'\u2019]+")
_QUESTION_WORDS = frozenset(
    """a an and any are at be can could describe did do does for has have image in is it its me of
    on or photo picture please scene see shown tell than that the their there these they this to
    visible was were what which with would you
    """.split()  # noqa: SIM905 (a list of strings takes ten lines)
)


@lru_cache(maxsize=4096)
def _read_question(question: str) -> tuple[str, frozenset[str]]:
    """A question in lower case, and its words that matter."""
    lower = " ".join(question.lower().split())
    words = (word.removesuffix("'s") for word in _QUESTION_WORD.findall(lower))
    return lower, frozenset(word.rstrip("s") for word in words if word not in _QUESTION_WORDS)


def asks_again(question: str, asked: Iterable[str], *, alike: bool = True) -> bool:
    """Whether a question is one of those before it, or has the same words that matter if alike."""
    mine, words = _read_question(question)
    for other, others in map(_read_question, asked):
        is_alike = alike and words and len(words & others) * 3 >= len(words | others) * 2
        if mine == other or is_alike:
            return True
    return False


def reject_again(turn: Turn, before: Sequence[Turn], *, alike: bool) -> Rejected | None:
    """A rejection of a turn that one before it has said.

    Args:
        turn: to look at.
        before: in the same conversation.
        alike: a question with the same words that matter is the same.
    """
    if asks_again(turn.question, [other.question for other in before], alike=alike):
        return Rejected("repetition", f"question asked twice: {turn.question!r}")
    again = sum(turn.answer == other.answer for other in before)
    if again >= (1 if is_long(turn.answer) else REPEATS - 1):
        return Rejected("repetition", f"answer given again: {turn.answer!r}")
    return None
