"""What sentences say of a model: against some use, of a licence, of what it was made from.

All that is found like this may bar, and frees nothing. Where it isn't clear what a sentence says
of a model that it names, that counts; one that it only compares with doesn't.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

# Whose use it is for alone: "for academic and research use only".
_WHOSE = "(?:research|academic|education|educational|scientific|evaluation|personal|hobby)"
_PURPOSE = (
    rf"(?:{_WHOSE}|use|usage|uses|purposes?|and|or|non profit|teaching|testing|learning|study|"
    r"studies|development|demonstration|projects?|applications?|settings?|students?|institutions?|"
    r"at|in|by|the|universit\w+)"
)
_NO = r"(?:not(?! only| just| restricted| limited)|prohibited|forbidden|excluded|disallowed)"
# Words that keep some use out: "CC BY-NC", "for research purposes only". A blank here is whatever
# stands between two words of a sentence, and WORD is any word.
_LIMIT = re.compile(
    r"(?<!WORD)(?:non ?commercial(?:ly)?|nc|(?:no|without) COMMERCIAL|"
    r"not(?! only| just) (?:WORD+ ){0,6}COMMERCIAL|"
    rf"COMMERCIAL(?: WORD+){{0,4}} (?:{_NO}|contact)|"
    r"(?:contact|permission)(?: WORD+){0,5} for COMMERCIAL|"
    r"research preview|research(?: WORD+)? licen[cs]e|"
    rf"{_WHOSE}(?: {_PURPOSE}){{0,6}} only|"
    rf"(?<!not.)only (?:(?:WORD+ ){{0,3}}(?:for|in|to|at) (?:WORD+ ){{0,3}})?{_WHOSE})"
    r"(?!WORD)|非商|禁止商|仅供(?:学术|研究)"
    # Who is better than commercial models says nothing about use.
    .replace("COMMERCIAL", "commercial(?:ly)?(?! (?:models?|llms?|systems?|apis?|ones|offerings))")
    .replace("WORD", r"[^\W_]")
    .replace(" ?", r"(?:[^\w.;!?]|_)*")
    .replace(" ", r"(?:[^\w.;!?]|_)+"),
    re.IGNORECASE,
)
_LICENCE = re.compile(r"licen[cs]|(?<!in )\bterms\b|agreement", re.IGNORECASE)
_MAKING = (
    r"\b(?:based|build|built|trained|training|fine-?\s?tun\w+|finetun\w+|tuned?|tuning|distill\w*|"
    r"deriv\w*|initiali[sz]\w+|adapt(?:ed|er)\b|convert\w*|conversion|creat\w+|"
    r"made|merg\w+|quanti[sz]\w*|start(?:s|ed|ing)|develop\w+|upcycl\w+|prun\w+|generated|"
    r"(?:base|original|parent|source|teacher|foundation) models?|backbone|weights|checkpoints?|"
    r"(?:its|our|the) (?:base|parent|teacher|original|predecessor)|"
    r"lora|(?:version|variant|fork|repack|gguf|awq|gptq) of)"
)
_FROM = r"(?:from|on|upon|of|with|using|by|via|to)"
_COMPARING = (
    r"\b(?:(?:better|stronger|faster|slower|smaller|larger|bigger|higher|lower|greater|cheaper|"
    r"more \w+|less \w+) than|outperform\w*|surpass\w*|exceed\w*|beat(?:s|ing)?|rival\w*|"
    r"compar(?:ed|able|es|ing) (?:to|with)|competitive with|on par with|versus|vs|"
    r"unlike|ahead of)\b"
)
# What is compared with goes on to the sentence's end, or to what it was really made from.
_COMPARED = re.compile(
    rf"{_COMPARING}(?:(?!{_MAKING}).)*"
    rf"(?=$|{_MAKING}\W+(?:\w+\W+){{0,2}}?{_FROM}\W+\w)",
    re.IGNORECASE,
)
MAKES = re.compile(_MAKING, re.IGNORECASE)
"""What a model is made from."""
WRITES = re.compile(
    r"\b(?:generat|writ|rewrit|creat|produc|synthe|distill|annotat|caption|translat|augment|label)"
    rf"\w*\W+(?:\w+\W+){{0,4}}?{_FROM}\b",
    re.IGNORECASE,
)
"""Who wrote rows."""
_LONGEST = 1000  # characters
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\n+")
_UNREAD = re.compile(
    r"\A\ufeff?---\r?\n.*?\n---\s*$|^\s*(```|~~~).*?(?:^\s*\1|\Z)|<!--.*?-->|<[^>\n]*>",
    re.DOTALL | re.MULTILINE,
)
_BREAK = re.compile(r"\n(?=\s*(?:\n|[-*+#|>]|\d+[.)]))")


def find_limit(text: str, around: int = 20) -> str | None:
    """What a text says against some use, with characters around it, or None."""
    found = _LIMIT.search(text)
    return text[max(0, found.start() - around) : found.end() + around].strip() if found else None


def drop_comparisons(text: str) -> str:
    """The text without what it only compares with, in sentences that aren't about a licence."""
    sentences = _SENTENCE_END.split(text)
    return " ".join(s if _LICENCE.search(s) else _COMPARED.sub(" ", s) for s in sentences)


def list_claims(body: str, makes: re.Pattern[str] = MAKES) -> Iterator[str]:
    """The sentences of a card that say against what use, under what or from what something is.

    And its title. Front matter and blocks of code are left out, and tables, which are of results,
    are read for limits and licences alone.
    """
    for number, block in enumerate(_BREAK.split(_UNREAD.sub("\n", body).strip())):
        is_table = block.lstrip().startswith("|")
        for sentence in _SENTENCE_END.split(" ".join(block.split())):
            cues = (_LIMIT, _LICENCE) if is_table else (_LIMIT, _LICENCE, makes)
            is_title = number == 0 and sentence.startswith("#")
            if is_title or any(cue.search(sentence) for cue in cues):
                yield from textwrap.wrap(sentence, _LONGEST)
