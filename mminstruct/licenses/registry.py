"""The facts about licences and terms: the YAML files beside this module, and a user's own entries.

Every entry says where it is from, which clause, when it was checked and how: read in the primary
text, quoted by a third party, widely known, or not found. Nothing is freed by a pattern: a model
is looked up by its repository id, spelled as the Hub takes it, and what isn't there is unknown.
"""

from __future__ import annotations

import difflib
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from mminstruct import strict_yaml
from mminstruct.errors import ConfigError, did_you_mean
from mminstruct.licenses import hosts
from mminstruct.licenses.entries import (
    Endpoint,
    Evidence,
    Family,
    File,
    License,
    MadeElsewhere,
    ModelGroup,
    PackagedFile,
    RepackGroup,
    Terms,
    Work,
)
from mminstruct.licenses.names import Words, hub_id, index_phrases, plain_name

_log = logging.getLogger(__name__)
UNREGISTERED = "an unregistered server"
PUBLIC = "an unregistered public service"
ENDPOINTS_JOINT = ", "
"""What is between several endpoints of one row."""


@dataclass(frozen=True, slots=True)
class Model:
    """A registered model.

    Attributes:
        repo_id: exact.
        vendor: who made it.
        terms: id of the terms of its outputs.
        size_b: billions of parameters, or None.
        chat: whether it follows instructions.
        base: what it was fine-tuned or repacked from, or None.
        source_url: where it says that it is under those terms.
        evidence: how that was checked.
        note: what else there is to say, or None.
        family: what it and its like are called.
    """

    repo_id: str
    vendor: str
    terms: str
    size_b: float | None
    chat: bool
    base: str | None
    source_url: str
    evidence: Evidence
    note: str | None = None
    family: str = ""


@dataclass(frozen=True)
class Registry:
    """All entries by id; a user's own replace those of the package.

    Attributes:
        families: whose names stand for closed models.
        datasets: made elsewhere, by their ids.
        repacks: which of the models are repacks, and where that is said.
        entered: (section, id) of what is from the user's file.
        user_file: its name, or None.
    """

    licenses: Mapping[str, License]
    terms: Mapping[str, Terms]
    annotations: Mapping[str, Work]
    images: Mapping[str, Work]
    models: Mapping[str, Model]
    endpoints: Mapping[str, Endpoint]
    left_out: Mapping[str, str]
    hub_licenses: frozenset[str]
    families: tuple[Family, ...] = ()
    datasets: Mapping[str, MadeElsewhere] = field(default_factory=dict)
    repacks: Mapping[str, RepackGroup] = field(default_factory=dict)
    entered: frozenset[tuple[str, str]] = frozenset()
    user_file: str | None = None

    @cached_property
    def by_name(self) -> dict[str, License]:
        """Licences by their own ids and by SPDX ids, in lower case."""
        spdx = {entry.spdx.lower(): entry for entry in self.licenses.values() if entry.spdx}
        return {**spdx, **self.licenses}

    @cached_property
    def barred(self) -> dict[str, str]:
        """Ids of models whose terms forbid training, by their plain names."""
        return {
            plain_name(id): id
            for id, model in self.models.items()
            if self.terms[model.terms].output_training == "forbidden"
        }

    @cached_property
    def covered(self) -> dict[str, frozenset[str]]:
        """Licence -> all licences whose text may be released under it, itself included."""

        def reach(name: str, seen: frozenset[str]) -> frozenset[str]:
            for inner in self.licenses[name].covers:
                if inner not in seen:
                    seen = reach(inner, seen | {inner})
            return seen

        return {name: reach(name, frozenset({name})) for name in self.licenses}

    def license(self, name: str | None) -> License | None:
        """The licence of that id or SPDX id, or None."""
        return self.by_name.get((name or "").lower())

    def near(self, model: str) -> list[str]:
        """Ids of models that may be meant by one that isn't here, the likeliest first.

        Those that are only served are the least likely, and then what was made from others.
        """
        asked = model.casefold()
        models = sorted(self.models.values(), key=lambda m: (m.terms in self._served, bool(m.base)))
        names = {m.repo_id: m.repo_id.casefold() for m in models}
        last = {id: name.rpartition("/")[2] for id, name in names.items()}
        return (
            [id for id in names if asked in (names[id], last[id])]
            + [id for id in names if last[id].startswith(f"{asked}-") and id not in self.repacks]
        ) or difflib.get_close_matches(model, names, n=1, cutoff=0.9)

    @cached_property
    def _served(self) -> set[str | None]:
        """The terms of services with models of their own, which nobody else has."""
        return {entry.terms for entry in self.endpoints.values() if entry.own_models}

    @cached_property
    def _folded(self) -> dict[str, Model]:
        return {repo_id.casefold(): model for repo_id, model in self.models.items()}

    def find_model(self, text: str) -> Model | None:
        """The model of an id as the Hub takes it: in any case, with a revision, or its address."""
        found = hub_id(text)
        return self._folded.get((found[0] if found else text.strip()).casefold())

    def chain_of(self, model: Model) -> list[Model]:
        """The model with its registered bases."""
        chain = [model]
        while base := self._folded.get((chain[-1].base or "").casefold()):
            chain.append(base)
        return chain

    @cached_property
    def phrases(self) -> dict[Words, list[Model]]:
        """What names models and families inside other names -> the models that may be meant.

        Models that are only served are in nobody's files, and repacks are called like models.
        """
        return index_phrases(
            (model, model.repo_id.rpartition("/")[2], model.family, model.base is None)
            for model in self.models.values()
            if model.terms not in self._served and model.repo_id not in self.repacks
        )

    def named(self, name: str) -> list[str]:
        """Exact ids of the models that a name stands for: one's own, or all with that last part."""
        asked = name.strip().casefold()
        names = {id: id.casefold() for id in self.models}
        if "/" not in asked:
            names = {id: own.rpartition("/")[2] for id, own in names.items()}
        found = [id for id, own in names.items() if own == asked]
        return [id for id in found if id not in self.repacks] or found

    def annotation(self, source: str) -> Work | None:
        """The annotations of the source of that name on the command line, or None."""
        named = (work for work in self.annotations.values() if source.upper() in work.sources)
        return max(named, key=lambda work: ("annotations", work.id) in self.entered, default=None)

    def image_works(self, source: str) -> list[Work]:
        """The kinds of images that a source has, by licence; none where that isn't known."""
        return [work for work in self.images.values() if source.upper() in work.sources]

    def endpoint(self, url: str) -> Endpoint | None:
        """The registered service behind an API's URL, or None."""
        host = hosts.find_host(url)
        found = [entry for entry in self.endpoints.values() if entry.pattern(host)]
        return max(
            found,
            key=lambda e: (("endpoints", e.id) in self.entered, e.pattern(host) == host),
            default=None,
        )

    def endpoint_name(self, url: str) -> str:
        """The URL of a registered service; any other may be private and is not named.

        Nor is an account's own host at a service: it goes by the pattern of such hosts.
        """
        service = self.endpoint(url)
        if service is None:
            return PUBLIC if hosts.is_public(url) else UNREGISTERED
        if service.own_server:
            return UNREGISTERED
        pattern = str(service.pattern(hosts.find_host(url)))
        return f"https://{pattern}" if "*" in pattern else url

    def endpoint_names(self, urls: Iterable[str]) -> str | None:
        """The names of all that may have answered, or None if that is this process."""
        return ENDPOINTS_JOINT.join(dict.fromkeys(map(self.endpoint_name, urls))) or None

    def origin(self, section: str, id: str) -> str:
        """`` (entered in FILE)`` if the entry is the user's, else nothing."""
        return f" (entered in {self.user_file})" if (section, id) in self.entered else ""

    def allows(self, name: str | None) -> bool | None:
        """Whether an image under that licence may be used commercially; None is unknown."""
        return usable(self.license(name))

    def image_use(self) -> dict[str, bool | None]:
        """Image licence in lower case -> whether the image may be used commercially."""
        return {name: usable(entry) for name, entry in sorted(self.by_name.items())}


def usable(license: License | None) -> bool | None:
    """Whether something may be used commercially and changed; None is unknown.

    What was learnt from an image counts as changed.
    """
    if license is None:
        return None
    return together(license.commercial, license.derivatives)


def together(*answers: bool | None) -> bool | None:
    """Whether all of them are yes; one no bars the whole, and else what isn't known makes it so."""
    return False if False in answers else None if None in answers else True


def text_of(license: License) -> str | None:
    """The text of a licence that has to go with what is under it, or None if it isn't here."""
    path = Path(__file__).parent / "texts" / f"{license.id}.txt"
    return path.read_text(encoding="utf-8") if path.is_file() else None


def load(user_file: str | Path | None = None, sources: Collection[str] | None = None) -> Registry:
    """The registry, with a user's own entries over ours.

    Args:
        user_file: their file.
        sources: the names of all that the user's entries may be about; None doesn't ask.

    Raises:
        ConfigError: the user's file can't be read, breaks the schema, names what isn't there, or
            says what would change nothing.
    """
    own = _load_packaged()
    if user_file is None:
        return own
    path = Path(user_file).expanduser()
    added = strict_yaml.validate(File, strict_yaml.read(path), where=path.name)
    merged = _merge(own, added, path.name)
    _check_entered(merged, path.name, sources)
    return merged


@lru_cache(maxsize=1)
def _load_packaged() -> Registry:
    data: dict[str, Any] = {}
    for path in sorted(Path(__file__).parent.glob("*.yaml")):
        for section, added in strict_yaml.read(path).items():
            data[section] = [*data.get(section, ()), *added] if isinstance(added, list) else added
    file = strict_yaml.validate(PackagedFile, data, where="mminstruct/licenses")
    hub = file.hub_licenses.ids.split() if file.hub_licenses else ()
    left_out = {entry.id: entry.reason for entry in file.left_out}
    known = {entry.id: entry for entry in file.datasets}
    empty = Registry({}, {}, {}, {}, {}, {}, left_out, frozenset(hub), file.families, known)
    return _merge(empty, file, None)


def _merge(registry: Registry, file: File, where: str | None) -> Registry:
    """The registry with a file's entries over it; ``where`` is the user's file."""
    own = {model.repo_id: model for model in _read_models(file.models, where)}
    packed = {id: group for group in file.repacks for id in group.ids}
    _check_once([*own, *(id for group in file.repacks for id in group.ids)], "models", where)
    repacks = {id: group for id, group in registry.repacks.items() if id not in own} | packed
    known = {**registry.models, **own}
    whole = {id: model for id, model in known.items() if id not in repacks}
    models = whole | {id: _repack(id, group, whole, where) for id, group in repacks.items()}
    sections: dict[str, dict[str, Any]] = {}
    for section in ("licenses", "terms", "annotations", "images", "endpoints"):
        entries = getattr(file, section)
        _check_once([entry.id for entry in entries], section, where)
        sections[section] = {entry.id: entry for entry in entries}
    named = {**sections, "models": own | packed}
    entered = frozenset((section, id) for section, added in named.items() for id in added)
    merged = replace(
        registry,
        **{section: getattr(registry, section) | added for section, added in sections.items()},
        models=models,
        repacks=repacks,
        entered=entered if where else frozenset(),
        user_file=where,
    )
    _check(merged, where or "mminstruct/licenses")
    return merged


def _repack(id: str, group: RepackGroup, whole: Mapping[str, Model], where: str | None) -> Model:
    """The model of another id, under exactly its terms and with its bases behind it."""
    base = group.ids[id]
    if base not in whole:
        raise ConfigError(
            f"{where or 'mminstruct/licenses'}: repacks: {id!r} is of {base!r}, which has no entry "
            "in 'models'; enter that first"
        )
    return replace(
        whole[base],
        repo_id=id,
        vendor=group.maker,
        base=base,
        source_url=group.source_url,
        evidence=group.evidence,
        note=f"a repack of {base}",
    )


def _read_models(groups: Iterable[ModelGroup], where: str | None) -> list[Model]:
    models = [
        Model(
            repo_id=repo_id,
            vendor=group.vendor or repo_id.partition("/")[0],
            terms=group.terms,
            size_b=size,
            chat=chat,
            base=group.bases.get(repo_id),
            source_url=group.source_url,
            evidence=group.evidence,
            note=group.note,
            family=group.name,
        )
        for group in groups
        for chat, listed in ((True, group.chat), (False, group.pretrained))
        for repo_id, size in listed.items()
    ]
    _check_once([model.repo_id for model in models], "models", where)
    known = {model.repo_id for model in models}
    for group in groups:
        for repo_id in group.bases:
            if repo_id not in known:
                raise ConfigError(
                    f"{where}: models: {group.name!r} has a base for {repo_id!r}, which is neither "
                    "in its 'chat' nor in its 'pretrained'"
                )
    return models


def _check_once(ids: list[str], section: str, where: str | None) -> None:
    for id, count in Counter(ids).items():
        if count > 1:
            raise ConfigError(f"{where}: {section}: {id!r} is given twice")


def _check_entered(registry: Registry, where: str, sources: Collection[str] | None) -> None:
    """Raise ConfigError for entries of the user's that would change nothing; say which may not."""
    owners: dict[str, str] = {}
    used = {model.terms for model in registry.models.values()}
    used |= {endpoint.terms for endpoint in registry.endpoints.values() if endpoint.terms}
    for section, id in sorted(registry.entered):
        what = f"{where}: {section}: {id!r}"
        if section == "terms" and id not in used:
            _log.warning(f"{what}: no model or service is under them; a model's own files may be")
        if section == "images":
            _log.warning(f"{what}: for 'mminstruct license' alone; rows have what their files name")
        elif section != "annotations":
            continue
        names = getattr(registry, section)[id].sources
        if not names:
            raise ConfigError(f"{what} has no sources, so nothing is under it; name some")
        for name in names:
            if "+" in name:
                raise ConfigError(
                    f"{what} has the joined source {name!r}, whose parts have licences of their "
                    f"own; name {' or '.join(name.split('+'))}"
                )
            if sources is not None and name not in sources:
                raise ConfigError(
                    f"{what} has the source {name!r}, which is not known"
                    f"{did_you_mean(name, sources)}"
                )
            if section == "annotations" and owners.setdefault(name, id) != id:
                raise ConfigError(
                    f"{what} has the source {name!r}, as {owners[name]!r} has; keep one of them"
                )


def _check(registry: Registry, where: str | None) -> None:
    """Raise ConfigError for a name that stands for nothing, or bases that go in a circle."""

    def check(section: str, id: str, key: str, name: str | None, known: Iterable[str]) -> None:
        if name is not None and name not in known:
            raise ConfigError(
                f"{where}: {section}: {id!r} has {key} {name!r}, which is not known"
                f"{did_you_mean(name, known)}"
            )

    for section, texts in (("licenses", registry.licenses), ("terms", registry.terms)):
        named: dict[str, str] = {}
        for text in texts.values():
            for name in {text.id, (text.spdx or text.id).lower()}:
                if (other := named.setdefault(name, text.id)) != text.id:
                    raise ConfigError(
                        f"{where}: {section}: {text.id!r} and {other!r} are both called {name!r}; "
                        "let an entry that replaces another have its id"
                    )
    for entry in registry.licenses.values():
        check("licenses", entry.id, "hub", entry.hub, registry.hub_licenses)
        for covered in entry.covers:
            check("licenses", entry.id, "covers", covered, registry.licenses)
    for terms in registry.terms.values():
        check("terms", terms.id, "hub", terms.hub, registry.hub_licenses)
    for section, works in (("annotations", registry.annotations), ("images", registry.images)):
        for work in works.values():
            check(section, work.id, "license", work.license, registry.licenses)
    for model in registry.models.values():
        check("models", model.repo_id, "terms", model.terms, registry.terms)
        bases = [model.repo_id]
        while (base := registry.models[bases[-1]].base) in registry.models:
            if base in bases:
                raise ConfigError(f"{where}: models: the bases of {model.repo_id!r} go in a circle")
            bases.append(str(base))
    for family in registry.families:
        check("families", family.title, "terms", family.terms, registry.terms)
    for dataset in registry.datasets.values():
        check("datasets", dataset.id, "license", dataset.license, registry.licenses)
    for endpoint in registry.endpoints.values():
        check("endpoints", endpoint.id, "terms", endpoint.terms, registry.terms)
