"""The service behind a URL, what its terms say of outputs, and what its models' names stand for.

A service's name for a model is looked up in the table of its entry, then as an exact id. A name
that is neither may still bar: services and gateways write the names of closed models with dates,
versions and prefixes of their own, and a model whose terms forbid training is known by such a
name, too. Nothing is freed like this: a model of others behind an API that has none but its own,
by its terms, is no evidence of whose weights answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mminstruct.licenses.composition import Part
from mminstruct.licenses.entries import Endpoint, Family
from mminstruct.licenses.hosts import is_public
from mminstruct.licenses.names import bare_address, find_phrases, plain_name, plain_words
from mminstruct.licenses.registry import PUBLIC, UNREGISTERED, Registry

_ENTER_IT = (
    "; enter what its terms say with --licenses, or that it is a server of your own (own_server)"
)


@dataclass(frozen=True, slots=True)
class Served:
    """What answers at some URLs.

    Attributes:
        parts: the services' terms.
        is_whole: these are all there is to know, whatever the model is.
        note: a word on servers of one's own.
        models: exact ids that the model's name stands for there -> a word on how it was read.
    """

    parts: tuple[Part, ...]
    is_whole: bool
    note: str
    models: dict[str, str]


def find_services(
    registry: Registry, endpoints: Iterable[str], name: str | None, *, given: bool = False
) -> Served:
    """The services behind some URLs, and the model that a name stands for there.

    Args:
        registry: the facts.
        endpoints: URLs of the APIs; none if the model runs in this process.
        name: what the model is called there; None if its own files say what it is.
        given: the user says which model it is, which stands above the name at servers of one's own.
    """
    urls, parts, note, is_whole = list(endpoints), list[Part](), "", True
    models: dict[str, str] = {}
    for url in urls:
        service = registry.endpoint(url)
        # Its URL may be private, and this goes into releases.
        if service is None and (url == PUBLIC or is_public(url)):
            parts.append(Part("service", PUBLIC, None, _ENTER_IT))
            is_whole = False
        elif service is None or service.own_server:
            note = f"; it was served by {UNREGISTERED}, which adds no terms that are known here"
            note += registry.origin("endpoints", service.id) if service else ""
            known = [service, *(e for e in registry.endpoints.values() if not e.hosts)]
            models |= {} if given else _read_name(registry, filter(None, known), name)
            continue
        else:
            parts.append(_terms_part(registry, service))
            is_whole &= service.own_models
            is_whole &= not (parts[-1].commercial and _names_barred(registry, service, name or ""))
        models |= _read_name(registry, [service] if service else [], name)
    if not urls and name and "/" not in name and not given:
        models |= _read_name(registry, [], name)
    return Served(tuple(parts), bool(parts) and is_whole and not note, note, models)


def name_at(registry: Registry, service: Endpoint | None, name: str) -> str | None:
    """The exact id behind a service's name for a model, or None; without a service, anybody's."""
    forms = [name.strip().casefold()]
    for form in forms:  # grows, as a name may be written in several ways at once
        forms += [inner for inner in _unwrap(service, form) if inner not in forms]
    if found := next(filter(None, map((service.models if service else {}).get, forms)), None):
        return found
    if model := next(filter(None, map(registry.find_model, forms)), None):
        return model.repo_id
    return None if service else registry.barred.get(plain_name(name))


def find_local(registry: Registry, address: str) -> str | None:
    """The exact id behind an address in a library of models for local servers, or None."""
    for entry in registry.endpoints.values():
        library, asked = bare_address(entry.source_url), bare_address(address)
        if not entry.hosts and asked.startswith(f"{library}/"):
            return name_at(registry, entry, asked.removeprefix(f"{library}/"))
    return None


def _read_name(
    registry: Registry, services: Iterable[Endpoint], name: str | None
) -> dict[str, str]:
    """The exact id that a name stands for -> a word on how it was read; else nothing."""
    for service in [*services, None] if name else []:
        id = name_at(registry, service, str(name))
        if id and id.casefold() == str(name).casefold():
            return {id: ""}
        if id and service:
            return {id: f"; {service.name} has {name} as it, {service.checked_on}"}
        if id:
            return {id: f"; {name} is read as it"}
    return {}


def _names_barred(registry: Registry, service: Endpoint, name: str) -> bool:
    """Whether a name is that of a model whose terms are stricter than those of free services."""
    id, phrases = (
        name_at(registry, service, name) or name_at(registry, None, name),
        registry.phrases,
    )
    groups = [phrases[phrase] for phrase in find_phrases(name.rpartition("/")[2], phrases)]
    groups += [[registry.models[one]] for one in (id, *registry.named(name)) if one]
    free = ("allowed", "conditional")
    return bool(find_family(registry, name)) or any(
        all(
            any(registry.terms[m.terms].output_training not in free for m in registry.chain_of(one))
            for one in group
        )
        for group in groups
    )


def find_family(registry: Registry, name: str) -> Family | None:
    """The closed family whose words are in a name one after the other, or None.

    In an id they are at the beginning: what was tuned on a model's words is called after it.
    """
    words = plain_words(name.rpartition("/")[2])
    starts = 1 if "/" in name else len(words)
    for family in registry.families:
        for run in map(plain_words, family.words):
            if any(words[at : at + len(run)] == run for at in range(starts)):
                return family
    return None


def _terms_part(registry: Registry, service: Endpoint) -> Part:
    terms = registry.terms[service.terms] if service.terms else None
    said = f"; {service.note}" if service.note else ""
    said += registry.origin("endpoints", service.id)
    if terms is None:
        said += f"; read {service.source_url} and enter what it says with --licenses"
    return Part("service", service.name, terms, said)


def _unwrap(service: Endpoint | None, name: str) -> Iterable[str]:
    """What a name is without something that the service writes around names."""
    for spelling in service.spellings if service else ():
        before, _, after = spelling.casefold().partition("*")
        if name.startswith(before) and name.endswith(after) and len(name) > len(before + after):
            yield name[len(before) : len(name) - len(after)]
