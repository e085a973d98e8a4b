"""The service behind a URL, what its terms say of outputs, and what its models' names stand for.

A service's name for a model is looked up in the table of its entry, then as an exact id. A name
that is neither may still bar: services and gateways write the names of closed models with dates,
versions and prefixes of their own, and a model whose terms forbid training is known by such a
name, too. Nothing is freed like this.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mminstruct.licenses.composition import Part
from mminstruct.licenses.entries import Endpoint
from mminstruct.licenses.hosts import is_public
from mminstruct.licenses.names import plain_name
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
