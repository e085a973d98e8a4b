"""What a model says beside its answer: headings, remarks, preambles, closing words."""

from __future__ import annotations

import re

NUMBERS = "one|two|three|four|five|six|seven|eight|nine|ten"
_ORDINALS = "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|next|last|final"
_TURN = rf"""(?:(?:turn|round|exchange|pair|conversation|dialogue)\s*(?:\#?\d+|{NUMBERS})
        |(?:{_ORDINALS}|\d+(?:st|nd|rd|th))\s+(?:turn|exchange|conversation|dialogue))\b
        [*_]{{0,3}}(?:\W*|\s*[:(\u2013\u2014-](?!\W*\d).{{0,80}}(?<![.!]))$"""
SEPARATOR = re.compile(
    rf"""^\s*(?:={{3,}}(?:[^=\n]{{1,40}}={{3,}})?|-{{3,}}|\*{{3,}}|_{{3,}})\s*$
    |^\W*(?:turn|round|exchange|pair|conversation|dialogue)\s*\#?\d+\W*$
    |^\s*(?P<titled>\#|\*\*|__)\W*{_TURN}""",
    re.IGNORECASE | re.VERBOSE,
)
_HEADING = re.compile(r"^\#{1,6}\s+\S")
_TURN_HEADING = re.compile(rf"^\W*{_TURN}", re.IGNORECASE | re.VERBOSE)
_BOLD_HEADING = re.compile(r"^(?:\d+[.)]\s*)?(\*{2,3}|__)[^*_]{1,80}(?<![.!])\1:?$")
_REMARK = re.compile(
    r"""^(?P<lead>[\s*_(\[>\#-]*)(?:
        (?:please\ )?(?:let\ me\ know|feel\ free\ to\ (?:ask|let|adjust|modify|edit|change|reach))\b
        |(?:I\ )?hope\ (?:this|that|these|it)\b(?:\ [\w'\u2019]{1,20}){0,3}?
          \ (?:meets?\b|what\ you\b
            |(?:help(?:s|ful)?|works?|useful)\b(?=\W*$|[!.,]|\ (?:you|for|with|in)\b))
        |(?:would\ you\ like|do\ you\ want)\ me\ to\b
        |is\ there\ anything\ else\ (?:you|I)\b
        |if\ you(?:['\u2019]d\ like|\ (?:need|want|would\ like|have))\b.{0,120}\b(?:let\ me\ know
          |feel\ free\ to\ (?:ask|let|reach)|just\ ask|I(?:['\u2019]d|\ would)\ be\ happy)\b
        |note[*_]*:.{0,200}?\b(?:I|provided|based\ on|(?:the|this)\ (?:description|conversation))\b
        |(?P<bracketed>note[*_]*:.{0,200}?\b(?:my|given|details|(?:description|conversation|question
          |answer|response|turn|caption|annotation|instruction)s?)\b)
        |(?<=[(\[]).{0,120}\b(?:captions?|descriptions?|annotations?|bounding\ box(?:es)?)\b
          .{0,120}[)\]]\W*$
        |word\ count\b[*_:\s]*[~\d]|[~\d]\d+\ words\W*$
        |(?:the\ )?end(?:\ of\ (?:the\ )?(?:conversation|dialogue|description|turns?))?\W*$)""",
    re.IGNORECASE | re.VERBOSE,
)
# What is said about an answer: "Explanation: ...", "**Check:**", with all that follows.
_COMMENTARY = re.compile(
    r"^[^\w\n\"'\u201c]*(?:explanation|evaluation|exercise|instruction|notes\ on\b[^:\n]{1,40}"
    r"|key\ considerations\b[^:\n]{0,40}|reasoning|rationale|justification"
    r"|(?:question\ )?type|category|confidence|difficulty|(?:self-?)?check|summary"
    r"|revised\ (?:version|answer)|evidence|topic)"
    r"(?:\ \d+)?[*_\s]*(?:\([^()\n]{1,40}\)[*_\s]*)?[:\uff1a]",
    re.IGNORECASE,
)
# A paragraph about the questions and answers themselves.
_ABOUT_ITSELF = re.compile(
    r"^[\W_]*(?:(?:please\ )?note\ that\ )?(?:(?:I|we)(?:['\u2019]ve|\ have)?\ (?:tried|made"
    r"|kept|avoided|focus\w+|aimed|included|wrote|used|based|asked)"
    r"|(?:this|these|all|both|my|the\ above)(?:\ [\w-]+){0,3}?)"
    r"\ (?:[\w-]+\ ){0,4}?(?:questions|answers|turns|conversation|dialogue|instructions)\ \w",
    re.IGNORECASE,
)
_BRACKETED_HEADING = re.compile(r"^[\[(][^\[\]()]{1,60}[\])]$")
_RULE = re.compile(r"(?:[-\u2013\u2014\u2e3b*_=~\#>\u2022.\s]|&nbsp;)*$")
_SENTENCE_ENDS = ".!?\u2026\u3002\uff01\uff1f\u0964)]\"'\u201d\u2019\u00bb\u300d\u300f"
_YES = r"(?:sure|certainly|of\ course|okay|ok|absolutely)"
PREAMBLE = re.compile(
    rf"""(?:(?:{_YES}\b[!,.]?\s*)?
          (?:here(?:['\u2019]s|\ is)|(?:below|this|the\ following)\ is)\b
          (?:\ (?!(?:with|without|and|of|in|on|by|for)\b)[\w-]+,?){{0,5}}?\ description
          (?:\ of\ (?:the|this|your)\ (?:image|picture|photo(?:graph)?|scene))?:[*_]*\s*
        |I(?:['\u2019]d|\ would)\ be\ (?:happy|glad|pleased|delighted)\ to
          \ (?:help|assist|do|describe|give|provide|write)\b
          [^\n.!:]{{0,120}}(?:[.!:](?:\s+|$)(?!(?-i:[a-z]))|\n+)
        |{_YES}(?:\ thing)?[!,.]*[ \t]*(?:\n\s*|$)
        |{_YES}(?:[!,.]|\ [\u2013\u2014-]|(?=\ (?:here|below|this\ is|I)\b))
          [^\n]{{0,120}}:[*_]*[ \t]*(?:\n\s*|$)
        |{_YES}[!,.]?\ (?:[\u2013\u2014-]\ )?
          (?:I(?:['\u2019]\w+|\ (?:can|will|would|have|am))\b|let\ me\b
          |(?:here(?:['\u2019]s|\ (?:is|are|you|it))|below\ is|the\ following\ is)\b[^\n]{{0,80}}?
            \b(?:descri\w+|image|picture|photo|you\ asked|go|it\ is)\b)[^\n]{{0,120}}\n\s*
        |{_YES}[!,.]\ +(?=[*_"\u201c]{{0,3}}(?-i:[^\W\d_a-z]))
        |(\*\*|__)(?:title:[^*_\n]{{1,80}}|response:?
          |(?:detailed\ )?(?:image\ )?description(?:\ of\ the\ (?:image|scene))?:?)\1:?[ \t]*\n\s*
        |(?:here(?:['\u2019]s|\ is|\ are)\b[^\n]{{0,120}}:
          |(?:detailed\ )?(?:description|answer)\s*[:\uff1a])\s*(?:\n+|$))""",
    re.IGNORECASE | re.VERBOSE,
)
_TITLE = re.compile(
    r"\#{1,6}[ \t]+(?P<title>[^\n]{1,120})\n\s*(?=[*_\"'(\u201c\u2018]{0,3}(?P<next>\w))"
)
_SECTION = re.compile(
    r"^(?:\#{1,6}[ \t]+\S|(\*\*|__)[^*_\n]{1,80}\1:?[ \t]*$|(\*\*|__)[^*_\n]{1,80}:\2)",
    re.MULTILINE,
)
TEXT_LABEL = re.compile(
    r"^[#*\s]*(?:detailed )?(?:image )?(?:description|answer|assistant)\**"
    r"(?:[:\uff1a]\**\s*|\s*\n)",
    re.IGNORECASE,
)


def find_title(text: str, start: int) -> re.Match[str] | None:
    """The heading that a text begins with, unless it is a sentence or the first of several."""
    title = _TITLE.match(text, start)
    if title is None or not title["next"].isalpha() or title["next"].islower():
        return None
    if title["title"].rstrip(" *_#").endswith((".", "!", "?")):
        return None
    return None if _SECTION.search(text, title.end()) else title


def drop_tail(lines: list[str], notes: list[str], *, between: bool = False) -> list[str]:
    """The lines without those at the end that are no part of what is said, which are noted.

    Such are headings of the next turn and remarks to the reader. The first line always stays.

    Args:
        lines: of an answer or text.
        notes: gets the note.
        between: a question follows, so that a bold line or "Turn 2: Place" is its heading, unless
            it belongs to a list.
    """
    first = lines[0].strip()
    for number in range(1, len(lines)):
        if _COMMENTARY.match(lines[number]) and _ends_above(lines, number):
            notes.append("commentary")
            lines = lines[:number]
            break
    asides: list[int] = []
    kept = len(lines)
    for number in range(len(lines) - 1, 0, -1):
        line = lines[number].strip()
        if line and not _RULE.match(line):
            if not _is_aside(lines, number, first, between=between):
                break
            asides.append(number)
        elif not asides:
            kept = number
    for number in reversed(asides):
        if _ends_above(lines, number):
            notes.append("stray_text")
            kept = number
            break
    while kept > 1 and _RULE.match(lines[kept - 1]):
        kept -= 1
    return lines[:kept]


def line_above(lines: list[str], number: int) -> str:
    """The nearest line above that isn't empty or a rule, or nothing."""
    above = (lines[n].strip() for n in range(number - 1, -1, -1))
    return next((line for line in above if not _RULE.match(line)), "")


def _ends_above(lines: list[str], number: int) -> bool:
    """Whether what stands above a line is whole; what follows an open quote or sentence isn't."""
    before = "\n".join(lines[:number])
    curly = sum(map(before.count, "\u201c\u00ab")) - sum(map(before.count, "\u201d\u00bb"))
    above = line_above(lines, number).rstrip("*_ ")
    return not before.count('"') % 2 and curly <= 0 and above[-1:] in _SENTENCE_ENDS


def _is_remark(line: str) -> bool:
    remark = _REMARK.match(line)
    if remark is None:
        return False
    return not remark["bracketed"] or "(" in remark["lead"] or "[" in remark["lead"]


def _is_aside(lines: list[str], number: int, first: str, *, between: bool) -> bool:
    """Whether that line is a heading or a remark to the reader rather than a part of a list."""
    line = lines[number].strip()
    above = line_above(lines, number)
    if _HEADING.match(line):
        level = "#" * (len(line) - len(line.lstrip("#"))) + " "
        return _TURN_HEADING.match(line) is not None or not above.startswith(level)
    if _is_remark(line):
        return True
    apart = bool(above) and not lines[number - 1].strip()
    if apart and (_ABOUT_ITSELF.match(line) or (between and _BRACKETED_HEADING.match(line))):
        return True
    bold = apart and _BOLD_HEADING.match(line)
    pattern = _BOLD_HEADING if bold else _TURN_HEADING
    if not (between and pattern.match(line)):
        return False
    return above == first or not pattern.match(above)


def split_parts(text: str) -> list[str]:
    """What stands between separators, without what is empty."""
    parts: list[list[str]] = [[]]
    for line in text.split("\n"):
        if (separator := SEPARATOR.match(line)) and not separator.group("titled"):
            parts.append([])
        else:
            parts[-1].append(line)
    return [part for part in ("\n".join(lines).strip() for lines in parts) if part]
