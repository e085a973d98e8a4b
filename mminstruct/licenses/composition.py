"""What rows made of several things may be used for: the strictest of all their parts.

Pure: registry entries in, a `Verdict` out. It fails closed. A part of unknown terms makes
``commercial`` None at best; the Hub id is one that covers every part, or ``other``, or ``unknown``.

Text that goes into the rows is merged, so licences that each ask for themselves exclude each other.
Images that are shipped stay works of their own, so theirs never do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mminstruct.errors import UsageError
from mminstruct.licenses.entries import Evidence, License, Obligation, OutputTraining, Terms
from mminstruct.licenses.registry import Registry, together, usable

Role = Literal["annotations", "prompts", "images", "model", "service"]
_ROLES: tuple[Role, ...] = get_args(Role)
# From free to barred; what isn't known stands between what is allowed and what is not.
STRICTNESS: tuple[OutputTraining, ...] = get_args(OutputTraining)
_SAYS: dict[OutputTraining, str] = {
    "allowed": "outputs may train any model",
    "conditional": "outputs may train any model, on conditions",
    "unknown": "what they say about outputs is not known here",
    "same-family-only": "outputs may train models of the same family only",
    "research-only": "outputs may be used for research only",
    "forbidden": "outputs may not train models of others",
}
EVIDENCE: dict[Evidence, str] = {
    "primary": "read there",
    "secondary": "as quoted by others",
    "known": "as widely known, not read again",
    "not-found": "looked for and not found",
}


@dataclass(frozen=True, slots=True)
class Part:
    """Something that rows are made of or come with.

    Attributes:
        role: what it does there.
        what: it, in words.
        by: its licence; for a model or a service, its terms; None is unknown.
        note: what else to say about where that comes from.
        repo_id: of a model, its exact id, or None.
    """

    role: Role
    what: str
    by: License | Terms | None
    note: str = ""
    repo_id: str | None = None

    @property
    def commercial(self) -> bool | None:
        """Whether any model may be trained on it commercially, obligations aside."""
        if isinstance(self.by, License):
            return usable(self.by)
        answers = {"allowed": True, "conditional": True, "unknown": None}
        return answers.get(self.by.output_training, False) if self.by else None

    @property
    def output_training(self) -> OutputTraining:
        """What the terms of a model or a service say about outputs."""
        return self.by.output_training if isinstance(self.by, Terms) else "unknown"

    @property
    def redistribution(self) -> bool:
        """Whether text made of it, or by it, may be passed on to everyone everywhere."""
        allows = self.by is None or self.by.redistribution
        return allows and not (isinstance(self.by, License) and self.by.derivatives is False)

    @property
    def terms(self) -> str:
        """Its terms and what they say, in a few words."""
        if self.by is None:
            return "the terms are not known here"
        if isinstance(self.by, License):
            return f"{self.by.title}, {_summarize(self.by)}"
        kept = "" if self.by.redistribution else ", and not be passed on to everyone everywhere"
        return f"{self.by.title}, {_SAYS[self.by.output_training]}{kept}"

    @property
    def reason(self) -> str:
        """What it contributes, in words."""
        said = self.terms
        if self.by is not None:
            seen = f"{EVIDENCE[self.by.evidence]}, {self.by.checked_on}"
            said += f" [{self.by.clause}; {self.by.source_url}; {seen}]"
            said += f"; {self.by.note}" if self.by.note else ""
        return f"{self.what}: {said}{self.note}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What rows may be used for, and why.

    Attributes:
        license: Hub id; ``other`` comes with a name and a link.
        license_name: of ``other``, else None.
        license_link: of ``other``; ``LICENSE`` is the file beside the card.
        commercial: whether the rows may train any model commercially, obligations aside; None if
            that isn't known.
        output_training: the strictest of what models and services say; ``allowed`` without any.
        redistribution: whether the text of the rows may be passed on, to everyone everywhere and
            changed as it is.
        obligations: of all parts.
        reasons: one a part, and the conclusion.
        parts: what it was made from, in a fixed order.
    """

    license: str
    license_name: str | None
    license_link: str | None
    commercial: bool | None
    output_training: OutputTraining
    redistribution: bool
    obligations: tuple[Obligation, ...]
    reasons: tuple[str, ...]
    parts: tuple[Part, ...]

    @property
    def hub_metadata(self) -> dict[str, str]:
        """The licence fields of a card's front matter."""
        fields = {
            "license": self.license,
            "license_name": self.license_name,
            "license_link": self.license_link,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def as_json(self) -> dict[str, Any]:
        """Plain data: the Hub's fields (None where there is none), then what follows from them."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "parts"}
        obligations = [duty.model_dump() for duty in self.obligations]
        return {**fields, "obligations": obligations, "reasons": list(self.reasons)}

    @property
    def name(self) -> str:
        """The Hub id, with what an ``other`` is called."""
        return f"{self.license} ({self.license_name})" if self.license_name else self.license

    def __str__(self) -> str:
        use = {True: "yes", False: "no", None: "not known"}[self.commercial]
        return f"{self.name}; commercial use of the text: {use}"


def compose(registry: Registry, parts: Iterable[Part]) -> Verdict:
    """The verdict on rows of these parts, in whatever order they are given.

    Raises:
        UsageError: the texts' licences exclude each other, so that no licence is possible.
    """
    ordered = tuple(sorted(set(parts), key=lambda p: (_ROLES.index(p.role), p.reason)))
    if not any(part.role == "annotations" for part in ordered):
        raise ValueError("rows are made from annotations, and none are among the parts")
    commercial = together(*(part.commercial for part in ordered))
    license, name, link = _choose_hub_license(registry, ordered)
    return Verdict(
        license=license,
        license_name=name,
        license_link=link,
        commercial=commercial,
        output_training=_find_strictest(ordered),
        redistribution=all(part.redistribution for part in ordered if part.role != "images"),
        obligations=tuple(
            dict.fromkeys(duty for part in ordered if part.by for duty in part.by.obligations)
        ),
        reasons=(*(part.reason for part in ordered), _conclude(ordered, commercial)),
        parts=ordered,
    )


def _choose_hub_license(
    registry: Registry, parts: tuple[Part, ...]
) -> tuple[str, str | None, str | None]:
    """Hub id, name and link.

    Raises:
        UsageError: the texts' licences exclude each other.
    """
    works = {p.by.id: p.by for p in parts if isinstance(p.by, License)}
    texts = {p.by.id: p.by for p in parts if isinstance(p.by, License) and p.role != "images"}
    if not _find_covering(registry, texts) and any(text.share_alike for text in texts.values()):
        raise UsageError(
            f"licences: {' and '.join(sorted(t.title for t in texts.values()))} exclude each "
            "other, as one of them asks that all text be under itself; leave a source out"
        )
    if any(part.by is None or _is_unknown(part.by) for part in parts):
        return "unknown", None, None
    binding = {
        p.by.id: p.by
        for p in parts
        if isinstance(p.by, Terms)
        and not (p.by.output_training == "allowed" and p.by.redistribution)
    }
    covering = _find_covering(registry, works)
    if covering and not binding:
        return _name_alone(covering[0])
    if covering:
        works = {covering[0].id: covering[0]}
    together = [*sorted(_drop_covered(registry, works)), *sorted(binding)]
    return "other", "-and-".join(dict.fromkeys(together)), "LICENSE"


def _name_alone(entry: License) -> tuple[str, str | None, str | None]:
    return ("other", entry.id, entry.url) if entry.hub == "other" else (entry.hub, None, None)


def _find_covering(registry: Registry, needed: Iterable[str]) -> list[License]:
    """The licences under which text under all of these may be released; the freest first."""
    found = [name for name, covered in registry.covered.items() if covered.issuperset(needed)]
    # Whatever covers a licence covers what that covers: the freest is covered by most.
    found.sort(key=lambda name: -sum(name in registry.covered[other] for other in found))
    return [registry.licenses[name] for name in found]


def _drop_covered(registry: Registry, names: Iterable[str]) -> list[str]:
    """Those that none of the others covers."""
    names = set(names)
    return [n for n in names if not any(n in registry.covered[other] for other in names - {n})]


def _find_strictest(parts: tuple[Part, ...]) -> OutputTraining:
    says: list[OutputTraining] = ["allowed"]
    for part in parts:
        if part.role in ("model", "service"):
            says.append(part.output_training)
    return max(says, key=STRICTNESS.index)


def _is_unknown(by: License | Terms) -> bool:
    if isinstance(by, Terms):
        return by.output_training == "unknown"
    return usable(by) is None


def why_not(registry: Registry, name: str | None) -> str:
    """Why something under a licence, as rows name it, may not be used commercially, in words."""
    entry = registry.license(name)
    return _summarize(entry) if entry else "terms that are not known here"


def _summarize(by: License) -> str:
    against = [
        word
        for answer, word in (
            (by.commercial, "commercial use"),
            (by.derivatives, "changes"),
            (by.redistribution, "passing it on"),
        )
        if answer is False
    ]
    if against:
        return f"without {' and '.join(against)}"
    return "free for commercial use" if usable(by) else "with terms that are not known here"


def _conclude(parts: tuple[Part, ...], commercial: bool | None) -> str:
    what = "text and images" if any(part.role == "images" for part in parts) else "the text"
    if commercial:
        return f"so {what} may train any model commercially, obligations aside"
    at_fault = ", ".join(part.what for part in parts if part.commercial is commercial)
    if commercial is None:
        return f"so it is not known whether {what} may be used commercially, because of {at_fault}"
    return f"so {what} may not be used commercially, because of {at_fault}"
