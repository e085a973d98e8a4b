"""What a model's outputs are under: its own terms, its bases' and its services'.

A model with an entry is what the entry says; another one what all evidence says together: its own
files or its card on the Hub, and those of what it was made from. A fine-tune inherits, and whoever
names no licence has granted nothing. The strictest counts, so all that is said is told.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mminstruct.errors import UsageError
from mminstruct.licenses import cards
from mminstruct.licenses.cards import Declared, declared
from mminstruct.licenses.composition import EVIDENCE, STRICTNESS, Part
from mminstruct.licenses.entries import Terms
from mminstruct.licenses.names import (
    Words,
    bare_address,
    find_phrases,
    hub_id,
    is_finer,
    licence_words,
    split_words,
)
from mminstruct.licenses.prose import drop_comparisons, find_limit
from mminstruct.licenses.registry import Model, Registry
from mminstruct.licenses.services import find_local, find_services

_UNREGISTERED = "no entry has this exact id"
# How far bases are followed from card to card, and how many models in all.
_DEEPEST, _MOST = 8, 32
_LONGEST = 80  # characters of a text that are shown


def model_parts(
    registry: Registry,
    *,
    name: str,
    repo_id: str | None = None,
    files: Declared | None = None,
    endpoints: Iterable[str] = (),
    given: bool = False,
    read_cards: bool = True,
) -> tuple[Part, ...]:
    """The terms that a model's outputs are under: its own, its bases' and its services'.

    The card of an id without an entry is read from the Hub's cache, or from the Hub.

    Args:
        registry: the facts.
        name: what the model is called, for people.
        repo_id: its exact id, or None.
        files: what its own files say.
        endpoints: URLs of the APIs that serve it; none if it runs in this process.
        given: the id is the user's word, which stands above what the files say.
        read_cards: whether cards may be read.
    """
    asked = name if given or repo_id is None else repo_id
    served = find_services(registry, endpoints, None if files else asked, given=given)
    if served.is_whole:
        return served.parts
    trace, ids, note = _Trace(registry, read_cards), dict(served.models), served.note
    if repo_id is not None and given:
        word = "; the model is this one by your word (--model_id)"
        if files is not None and (named := [*files.parents, *files.licenses]):
            word += f", while {files.where} names {', '.join(named)}"
        ids[repo_id], files = word, None
    elif repo_id is not None and not ids:
        ids[repo_id] = ""
    elif repo_id is None:
        trace.names[name] = ""
    if not ids and files is None:
        trace.add(f"model {name}", None, note)
    for id, word in ids.items():
        trace.follow(id, note + word)
    if files is not None:
        trace.declare(name, files, note)
    trace.add_names()
    return (*served.parts, *trace.parts)


def named_model(registry: Registry, model: str, model_id: str | None = None) -> tuple[Part, ...]:
    """The terms of a model in this process or on a server of one's own: a path or an exact id.

    Raises:
        UsageError: its files can't be read, or are damaged.
    """
    path = Path(model).expanduser()
    files = declared(path) if path.exists() else None
    repo_id = model_id or (None if files else model)
    name = path.absolute().name if files else model
    return model_parts(registry, name=name, repo_id=repo_id, files=files, given=bool(model_id))


def find_terms(registry: Registry, name: str) -> Terms | None:
    """The terms of that id, SPDX id or title, as cards and GGUF files name them, or None."""
    spdx = {entry.spdx.lower(): entry for entry in registry.terms.values() if entry.spdx}
    exact, said = registry.terms.get(name.lower()) or spdx.get(name.lower()), licence_words(name)
    alike = [
        entry
        for entry in registry.terms.values()
        if said in map(licence_words, (entry.id, entry.title, entry.spdx or entry.id))
    ]
    return exact or (alike[0] if len(alike) == 1 else None)


def find_terms_at(registry: Registry, address: str) -> Terms | None:
    """The terms at that address, or that the end of it names, or None."""
    link = bare_address(address)
    for entry in registry.terms.values():
        if link in (bare_address(entry.url), bare_address(entry.source_url)):
            return entry
    ends = [end for end in link.split("/") if licence_words(end)]
    return find_terms(registry, ends[-1]) if ends else None


class _Trace:
    """What is found on the way from a model to all that it was made from.

    Attributes:
        parts: the terms.
        names: what models on the way are called -> where that is said, if it isn't in their ids.
    """

    def __init__(self, registry: Registry, read_cards: bool) -> None:
        self.registry, self.read_cards = registry, read_cards
        self.parts: list[Part] = []
        self.names: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._seen: set[str] = set()
        self._certain: list[Words] = []  # names of registered models and licences

    def add(self, what: str, by: Terms | None, note: str, repo_id: str | None = None) -> None:
        """Add terms; None are unknown."""
        note += self.registry.origin("terms", by.id) if by else ""
        self.parts.append(Part("model", what, by, note, repo_id))

    def follow(self, text: str, note: str, of: str = "", path: tuple[str, ...] = ()) -> None:
        """Add the terms of a model by its id, and of its bases; of each model once.

        Args:
            text: the id.
            note: what to say about where it comes from.
            of: what it is to the model that is asked about: nothing, or a base.
            path: ids that led there, in lower case.
        """
        model, asked = self.registry.find_model(text), hub_id(text)
        repo_id = model.repo_id if model else asked[0] if asked else text
        what, key = f"{of}model {repo_id}", repo_id.casefold()
        if key in path:
            self.add(what, None, f"{note}; the bases go in a circle", repo_id)
        elif key in self._seen:
            return
        elif model:
            self._follow_entry(model, note, of, (*path, key))
        else:
            self.names[text if asked is None else repo_id] = ""
            if asked is None or not self.read_cards:
                self.add(what, None, f"{note}; {_UNREGISTERED}", repo_id)
            elif len(path) >= _DEEPEST or len(self._seen) >= _MOST:
                self.add(what, None, f"{note}; bases are followed no further", repo_id)
            else:
                self._seen.add(key)
                self._follow_card(repo_id, asked[1], note, of, (*path, key))

    def _follow_entry(self, model: Model, note: str, of: str, path: tuple[str, ...]) -> None:
        registry, repo_id = self.registry, model.repo_id
        self._seen.add(path[-1])
        self._certain.append(split_words(repo_id))
        terms = registry.terms[model.terms]
        origin = registry.origin("models", repo_id) or registry.origin("terms", terms.id)
        elsewhere = f"; see {model.source_url} ({EVIDENCE[model.evidence]})"
        source = "" if model.source_url == terms.source_url else elsewhere
        source += f"; {model.note}" if model.note else ""
        said = note + source + origin
        self.parts.append(Part("model", f"{of}model {repo_id}", terms, said, repo_id))
        if model.base:
            self.follow(model.base, f"; {repo_id} was made from it", "base ", path)

    def _follow_card(
        self, repo_id: str, revision: str | None, note: str, of: str, path: tuple[str, ...]
    ) -> None:
        try:
            files = cards.read_hub_card(repo_id, revision)
        except UsageError as error:
            self.add(f"{of}model {repo_id}", None, f"{note}; {_UNREGISTERED}, and {error}", repo_id)
            return
        if files.repo_id and self.registry.find_model(files.repo_id):
            self.follow(files.repo_id, f"; {repo_id} is called so now", of, path)
        else:
            self.names |= {files.repo_id: f"{repo_id}, called so now,"} if files.repo_id else {}
            self.declare(repo_id, files, note, of, path)

    def declare(
        self, name: str, files: Declared, note: str, of: str = "", path: tuple[str, ...] = ()
    ) -> None:
        """Add all that a model's own files say, and the terms of what it was made from."""
        registry, what = self.registry, f"{of}model {name}"
        said = f"{note}; as {files.where} says"
        self.names |= dict.fromkeys(files.names, files.where)
        self._tags |= dict.fromkeys(files.tags, files.where)
        before = len(self.parts)
        made_from = bool(files.parents or files.unnamed_parents)
        says_more = made_from or files.licenses or files.links
        if files.repo_id and (registry.find_model(files.repo_id) or not says_more):
            self.follow(files.repo_id, said, of, path)
        for license in files.licenses:
            by = find_terms(registry, license)
            self._certain += [split_words(license)] if by else []
            self.add(f"{what}, licence {license}", by, said)
        for link in files.links:
            self._add_linked(name, files, link, said, what)
        granted = len(self.parts) > before
        if made_from and not (granted or files.is_copy):
            why = "names what it was made from and no licence of its own, so none is granted"
            self.add(what, None, f"{note}; {files.where} {why}")
        for parent in files.parents:
            self.follow(parent, said, "base ", path)
        for unnamed in files.unnamed_parents:
            if found := find_local(registry, unnamed):
                self.follow(found, f"{said}, which has {unnamed}", "base ", path)
                continue
            self.add(f"base model {unnamed}", None, f"{said}, which is no exact id")
            self.names[unnamed] = files.where
        if not (granted or made_from):
            hint = "neither licence nor base model; name the model with --model_id"
            self.add(what, None, f"{note}; {files.where} names {hint}")

    def _add_linked(self, name: str, files: Declared, link: str, said: str, what: str) -> None:
        """Add the terms at the address of a licence, unless they are among the model's own."""
        repo = hub_id(link)
        if repo is None:
            by = find_terms_at(self.registry, link)
        elif repo[0].rpartition("/")[2] == name.rpartition("/")[2] or repo[0] in files.parents:
            return
        else:
            model = self.registry.find_model(repo[0])
            by = self.registry.terms[model.terms] if model else None
        self.add(f"{what}, licence at {link}", by, said)

    def add_names(self) -> None:
        """Add what names say, where that is stricter or obliges to more than all else says.

        A tag or another text is coarse: of Llama 3.1, "llama-3" is no other model.
        """
        for name, where in (*self.names.items(), *self._tags.items()):
            shown = name.rpartition("/")[2] if hub_id(name) else name
            called = f"{shown[:_LONGEST]!r}{f' in {where}' if where else ''}"
            exact = self.registry.find_model(name)
            meant = [[exact]] if exact else []
            said = shown if name in self.names else drop_comparisons(shown)
            for phrase in find_phrases(said, self.registry.phrases):
                if name in self.names or not self._is_coarse(phrase):
                    meant.append(self.registry.phrases[phrase])
            for models in meant:
                self._add_least(models, called)
            if name not in self.names:
                self._add_limit(name, where)

    def _is_coarse(self, phrase: Words) -> bool:
        return any(is_finer(phrase, certain) for certain in self._certain)

    def _strictest(self) -> int:
        return max(STRICTNESS.index(part.output_training) for part in self.parts)

    def _add_limit(self, text: str, where: str) -> None:
        """Add the licence that a tag names, or words against some use, which leave it unknown."""
        by = find_terms(self.registry, text)
        limit = text if by else find_limit(text)
        if limit is None or (by and self._is_coarse(split_words(text))):
            return
        known = max(self._strictest(), STRICTNESS.index("conditional"))
        if STRICTNESS.index(by.output_training if by else "unknown") > known:
            self.add(f"model, with {limit!r} in {where}", by, "; such words bar, and free nothing")

    def _add_least(self, models: list[Model], called: str) -> None:
        """Add the terms of the freest of the models that a name may mean."""

        def terms_of(model: Model) -> list[Terms]:
            return [self.registry.terms[each.terms] for each in self.registry.chain_of(model)]

        def rank(all_terms: list[Terms]) -> tuple[int, int]:
            return (
                max(STRICTNESS.index(terms.output_training) for terms in all_terms),
                len({duty for terms in all_terms for duty in terms.obligations}),
            )

        meant = min(models, key=lambda model: rank(terms_of(model)))
        strictest = self._strictest()
        duties = {duty for part in self.parts if part.by for duty in part.by.obligations}
        for terms in terms_of(meant):
            if rank([terms])[0] > strictest or not duties.issuperset(terms.obligations):
                note = f"; a name like {meant.repo_id}, which may bar and oblige, and frees nothing"
                self.add(f"model called {called}", terms, note)
