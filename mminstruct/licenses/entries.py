"""The form of an entry: what each says, and where it is from.

Strictly read; a missing fact is not known.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from mminstruct.licenses import hosts
from mminstruct.strict_yaml import Strict

OutputTraining = Literal[
    "allowed", "conditional", "unknown", "same-family-only", "research-only", "forbidden"
]
Evidence = Literal["primary", "secondary", "known", "not-found"]
Id = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
RepoId = Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
Billions = Annotated[float, Field(gt=0)]
SourceName = Annotated[str, StringConstraints(to_upper=True, min_length=1)]
"""As on the command line, where case does not matter."""


def _fold_names(names: dict[str, str]) -> dict[str, str]:
    folded = {name.casefold(): id for name, id in names.items()}
    if len(folded) < len(names):
        raise ValueError("a name is given twice, in lower case and in capitals; leave one out")
    return folded


Host = Annotated[str, AfterValidator(hosts.check)]


class Obligation(Strict):
    """Something to do, and when; ``value`` is a prefix or words that have to be used."""

    when: Literal["always", "rows-shared", "model-distributed", "materials-distributed"]
    kind: Literal[
        "attribution",
        "display",
        "name-prefix",
        "notice",
        "pass-on",
        "scale",
        "share-alike",
        "territory",
        "use-policy",
    ]
    value: str | None = None
    text: str = Field(min_length=1)

    def __str__(self) -> str:
        words = f" ({self.value!r})" if self.value else ""
        return f"{_WHEN[self.when]}{self.text}{words}"


_WHEN = {
    "always": "",
    "rows-shared": "when the rows are shared: ",
    "model-distributed": "when a model trained on the rows is distributed: ",
    "materials-distributed": "when the generating model itself is distributed: ",
}


class _Fact(Strict):
    source_url: str = Field(min_length=1)
    checked_on: datetime.date
    note: str | None = None


class _Clause(_Fact):
    id: Id
    title: str = Field(min_length=1)
    clause: str = Field(min_length=1)
    evidence: Evidence


class _Text(_Clause):
    spdx: str | None = None
    hub: str
    url: str = Field(min_length=1)
    obligations: tuple[Obligation, ...] = ()


class License(_Text):
    """A licence of annotations, images or prompts; ``null`` is not known.

    ``covers`` are licences whose text may be released under this one. ``redistribution`` is whether
    what is made of it may be passed on at all.
    """

    commercial: bool | None
    derivatives: bool | None
    redistribution: bool = True
    share_alike: bool = False
    covers: tuple[Id, ...] = ()


class Terms(_Text):
    """What a model's or a service's terms say about outputs.

    ``redistribution`` is whether these may be passed on to everyone everywhere.
    """

    output_training: OutputTraining
    redistribution: bool = True


class Work(_Clause):
    """Annotations, or a kind of image, and the licence it is under; ``null`` is not known."""

    license: Id | None
    sources: tuple[SourceName, ...] = ()


class ModelGroup(_Fact):
    """Models under the same terms: repository id -> billions of parameters.

    Without ``vendor`` they are of many, each of the one whose name its id begins with.
    """

    name: str = Field(min_length=1)
    vendor: str | None = Field(default=None, min_length=1)
    terms: Id
    chat: dict[RepoId, Billions | None] = {}
    pretrained: dict[RepoId, Billions | None] = {}
    bases: dict[RepoId, RepoId] = {}
    evidence: Evidence


class RepackGroup(_Fact):
    """What one maker packed anew, in another format or precision: repository id -> the model's."""

    maker: str = Field(min_length=1)
    ids: dict[RepoId, RepoId] = Field(min_length=1)
    evidence: Evidence


class Endpoint(_Fact):
    """A service, by the hosts of its API.

    ``terms: null`` are terms that were not read; ``own_server`` is a server of the user's, which
    has none; without ``hosts``, it is any of them that names its models like this. ``models`` says
    what a name stands for there, capitals aside; ``spellings`` how the service writes names, with a
    ``*`` for that name or exact id (``us.*``, ``*:free``).
    """

    id: Id
    name: str = Field(min_length=1)
    hosts: tuple[Host, ...] = ()
    own_models: bool = False
    own_server: bool = False
    terms: Id | None = None
    models: Annotated[dict[str, RepoId], AfterValidator(_fold_names)] = {}
    spellings: tuple[Annotated[str, Field(pattern=r"^[^*]+\*[^*]*$|^\*[^*]+$")], ...] = ()

    @model_validator(mode="after")
    def _no_terms_of_ones_own(self) -> Endpoint:
        if self.own_server and (self.own_models or self.terms):
            raise ValueError("own_server: it has neither terms nor models of its own")
        if not self.hosts and not (self.own_server and self.models):
            raise ValueError("hosts: expected the host of its API, got none")
        return self

    def pattern(self, host: str) -> str | None:
        """Which of its hosts this one is, itself before a pattern; or None."""
        if host in self.hosts:
            return host
        return next((pattern for pattern in self.hosts if hosts.fits(host, pattern)), None)


class Family(_Fact):
    """Words that are in the names of a maker's closed models alone: they bar, and free nothing."""

    title: str = Field(min_length=1)
    words: tuple[str, ...] = Field(min_length=1)
    terms: Id
    evidence: Evidence


class MadeElsewhere(_Fact):
    """A data set that is known by its id on the Hub: who wrote it, under which licence.

    ``names`` are its files'. ``license: null`` is not known.
    """

    id: RepoId
    generators: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    license: Id | None
    evidence: Evidence


class HubLicenses(_Fact):
    """The ids of licences that the Hub accepts on a card, between blanks."""

    ids: str


class LeftOut(Strict):
    """Something that was looked at and has no entry."""

    id: Id
    reason: str = Field(min_length=1)


class File(Strict):
    """A file of entries, such as a user's."""

    licenses: tuple[License, ...] = ()
    terms: tuple[Terms, ...] = ()
    annotations: tuple[Work, ...] = ()
    images: tuple[Work, ...] = ()
    models: tuple[ModelGroup, ...] = ()
    repacks: tuple[RepackGroup, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()


class PackagedFile(File):
    """All files of the package together."""

    hub_licenses: HubLicenses | None = None
    left_out: tuple[LeftOut, ...] = ()
    families: tuple[Family, ...] = ()
    datasets: tuple[MadeElsewhere, ...] = ()
