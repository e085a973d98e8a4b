"""What rows are made from, looked up once from the names in an `InstructConfig`.

Whoever needs more than a name takes it from here, so that a file that is edited while rows are made
changes none of them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from mminstruct import backends, benchmarks, licenses, prompts, sources, splits
from mminstruct.backends import Backend
from mminstruct.checks import Vocabulary
from mminstruct.completions.prices import Price, price_of
from mminstruct.config import InstructConfig
from mminstruct.errors import UsageError, did_you_mean
from mminstruct.licenses import Part, Registry, Tally, Verdict
from mminstruct.prompts.config import PromptConfig
from mminstruct.resources import count_of, shown
from mminstruct.rows.contexts import (
    Contexts,
    NamedMedia,
    contexts_key,
    media_licenses,
    read_contexts,
    read_vocabulary,
)
from mminstruct.rows.plan import Plan, code_version
from mminstruct.schema import Sampling, digest
from mminstruct.sources import Files, ReadReport, Source, SourceInfo
from mminstruct.sources._annotation_file import not_found
from mminstruct.splits import Shard
from mminstruct.version import __version__

if TYPE_CHECKING:
    import datasets

    from mminstruct.completions.budget import Budget

_log = logging.getLogger(__name__)


class Read(NamedTuple):
    """A split as it was read.

    Attributes:
        requests: as `requests_dataset` gives them.
        key: digest of what they depend on.
        report: what was left out.
        vocabulary: how the labels are called.
        whole_key: digest of what the requests of all shards depend on.
        contexts: which of so many this run asks about.
        total: how many there are.
    """

    requests: datasets.Dataset
    key: str
    report: ReadReport
    vocabulary: Vocabulary
    whole_key: str
    contexts: range
    total: int


@dataclass(frozen=True, eq=False)
class Recipe:
    """What the rows of a source are made from.

    Attributes:
        config: the names.
        source: of the contexts.
        prompts: the prompt config.
        types: instruction types, in its order.
        splits: in the source's order.
        registry: what is known about licences.
        like: of another source, made in the same run: what the model is, was looked up there.
    """

    config: InstructConfig
    source: Source
    prompts: PromptConfig
    types: tuple[str, ...]
    splits: tuple[str, ...]
    registry: Registry
    like: Recipe | None = None

    @classmethod
    def of(cls, config: InstructConfig, like: Recipe | None = None) -> Recipe:
        """What the names stand for.

        Raises:
            UsageError: a name stands for nothing, or a value can't be used.
            ConfigError: a file of prompts or licences is broken.
        """
        config.validate()
        source = sources.get(config.source, config.source_options)
        own = prompts.load(config.prompt_config)
        own = own if source.info.fitted else own.whole
        found = cls(
            config,
            source,
            own,
            prompts.type_names(own, tuple(_list_all(config.types)) or None),
            _split_names(config, source),
            like.registry if like else licenses.load(config.licenses, sources.names()),
            like,
        )
        found._check_declared()
        if config.batch_api:
            found._check_batch_api()
        if config.engine == "ray":
            found._check_ray()
        return found

    def _check_declared(self) -> None:
        """Raise UsageError for a declared licence that nobody knows."""
        info = self.source.info
        for part, name in ((p, n) for p in info.parts or (info,) for n in p.declared):
            if self.registry.license(name) is None:
                raise UsageError(
                    f"{part.name}: got the licence {name!r} against one that is known expected"
                    f"{did_you_mean(name.lower(), self.registry.by_name)}. Without one it isn't "
                    "known what rows may be used for; enter another one (--licenses FILE)"
                )

    def _check_batch_api(self) -> None:
        if self.backend.name != "openai":
            raise UsageError(
                f"batch_api: the model source {self.backend.name!r} has no Batch API; "
                "use the model source 'openai' or leave it out"
            )
        if self.config.check == "reask":
            raise UsageError(
                "check: reask asks again within the run, which batches can't; answer them with "
                "check report first, then run again with reask and without batch_api: what is "
                "stored is not asked for again"
            )
        for field in ("requests_per_minute", "tokens_per_minute"):
            if getattr(self.config, field) is not None:
                raise UsageError(
                    f"{field}: requests of the Batch API go up in files, at no rate of ours; "
                    f"leave out {field} or batch_api"
                )

    def _check_ray(self) -> None:
        if self.config.batch_api:
            raise UsageError(
                "engine: the Batch API answers at the provider, and there is nothing for ray to "
                "do; leave out engine or batch_api"
            )
        if find_spec("ray") is None:
            raise UsageError("engine: ray is not installed; pip install 'mminstruct[ray]'")

    def __getstate__(self) -> dict[str, Any]:
        """All but the backend: another process makes its own, and for its share of requests."""
        return {**{n: v for n, v in vars(self).items() if n != "backend"}, "like": None}

    @cached_property
    def backend(self) -> Backend:
        """What is asked about the model; never opened."""
        if self.like:
            return self.like.backend
        return backends.create(self.config.backend, self.config.backend_options())

    @property
    def identity(self) -> dict[str, str]:
        """What the model is, for others to read: of a private server no address."""
        endpoint = {} if self.plan.endpoint is None else {"endpoint": self.plan.endpoint}
        return self.backend.identity() | endpoint

    def make_backend(self, share: float = 1.0) -> Backend:
        """One to be opened, with a share of the concurrency for one of several processes.

        Raises:
            UsageError: server or environment have changed, and rows would name another model.
        """
        name, options = self.config.backend, self.config.backend_options(share)
        return backends.create_again(name, options, self.backend.identity())

    @cached_property
    def text_parts(self) -> list[Part]:
        """Whatever rows are made of besides a model's words, with its licence."""
        name, license = self.prompts.name, self.prompts.license
        prompt = licenses.prompt_part(self.registry, name=name, license=license)
        return [prompt, *find_annotation_parts(self.registry, self.source.info)]

    @cached_property
    def model_parts(self) -> tuple[Part, ...]:
        """The terms of the model's outputs, looked up once in a run."""
        if self.like:
            return self.like.model_parts
        config, backend = self.config, self.backend
        path = Path(config.model or "").expanduser() if backend.repo_id is None else None
        return licenses.model_parts(
            self.registry,
            name=backend.model,
            repo_id=config.model_id or backend.repo_id,
            files=licenses.declared(path) if config.model and path and path.exists() else None,
            endpoints=backend.endpoints,
            given=config.model_id is not None,
        )

    @cached_property
    def verdict(self) -> Verdict:
        """What the text of the rows may be used for; images are not part of them."""
        return licenses.compose(self.registry, [*self.text_parts, *self.model_parts])

    @cached_property
    def plan(self) -> Plan:
        """All that the rows depend on besides contexts and completions."""
        config = self.config
        sampling: dict[str, Any] = {f.name: getattr(config, f.name) for f in fields(Sampling)}
        # 1 and 1.0 would be two keys of one answer.
        sampling |= {f.name: float(sampling[f.name]) for f in fields(Sampling) if f.type == "float"}
        return Plan(
            source=self.source.info,
            config=self.prompts,
            sampling=Sampling(**sampling),
            backend=self.backend.name,
            model=self.backend.model,
            endpoint=self.registry.endpoint_names(self.backend.endpoints),
            license=self.verdict.license,
            commercial=self.verdict.commercial,
            image_use=self.registry.image_use(),
            check=config.check,
        )

    @cached_property
    def price(self) -> Price | None:
        """What the model's tokens cost, or None if it isn't known."""
        given = {name: getattr(self.config, name) for name in ("price_in", "price_out")}
        return price_of(self.backend.model, self.backend.endpoints, **given)

    def make_budget(self) -> Budget:
        """What a run may ask for.

        Raises:
            UsageError: a cost is bounded, but nobody knows the price.
        """
        from mminstruct.completions.budget import Budget  # which takes a while, as those below

        price, config = self.price, self.config
        if config.max_cost is not None and price is None:
            raise UsageError(
                f"max_cost: the price of {self.backend.model} is not known here; give --price_in "
                "and --price_out, in USD per million tokens, or bound the answers with "
                "--max_requests"
            )
        # Where no price of batches is known, the usual one is no less.
        tokens_usd = price.tokens_usd(batch=config.batch_api) if price else (0.0, 0.0)
        return Budget(config.max_requests, config.max_cost, *tokens_usd)

    @property
    def store(self) -> Path:
        """The file of finished answers."""
        from mminstruct.completions.store import default_path

        chosen = self.config.response_store
        return Path(chosen).expanduser() if chosen else default_path()

    @property
    def own_store(self) -> list[str]:
        """The store's path if one was given: whoever gives a new one wants to ask again."""
        return [str(self.store.resolve())] if self.config.response_store else []

    @property
    def shard(self) -> Shard | None:
        """Which part of each split is asked about; None is all of it."""
        return None if self.config.shard is None else Shard.of(self.config.shard)

    def describe(self) -> dict[str, Any]:
        """What the rows depend on besides annotations, by name, for people."""
        plan, prompt = self.plan, self.prompts
        return {
            "version": f"{__version__} (code {code_version()})",
            "prompt config": f"{prompt.name} {prompt.version} ({prompt.hash})",
            "model": self.identity,
            "sampling": asdict(plan.sampling),
            "types": self.types,
            "splits": self.splits,
            "options": [sources.chosen_options(self.source), self.config.context_window],
            "check": plan.check,
            "source or licences": plan.digest(),
        }

    def digest(self, custom_features: datasets.Features | None = None) -> str:
        """Digest of everything that changes rows, and of nothing else."""
        return digest(
            [
                self.plan.digest(),
                sources.chosen_options(self.source),
                [self._fingerprint(split) for split in self.splits],
                self.splits,
                self.types,
                self.backend.identity(),
                [self.config.context_window, self.config.limit, self.config.commercial],
                *self._exclusion,
                *self.own_store,
                *([] if self.shard is None else [str(self.shard)]),
                None if custom_features is None else custom_features.to_dict(),
            ]
        )[:16]

    def _fingerprint(self, split: str) -> str:
        """Digest of the split's annotations: of the files, or of the archive to be downloaded."""
        files = self.locate(split)
        return files.fingerprint if files else digest(self.source.downloads(split))

    @property
    def places(self) -> list[Path]:
        """Where annotation files are looked for."""
        given = self.config.data_dir or self.config.default_dir
        return [Path(given).expanduser()] if given else []

    def locate(self, split: str) -> Files | None:
        """The split's files under ``data_dir``; without one None, if they have to be downloaded.

        Raises:
            SourceError: a ``data_dir`` is given and doesn't have them.
        """
        places = self.places
        files = self.source.locate(places, split)
        if files is None and self.config.data_dir:
            parts = sources.members(self.source, split)
            part, own = next(m for m in parts if m[0].locate(places, m[1]) is None)
            others = [s for s in part.info.splits if s != own and part.locate(places, s)]
            name = f"{part.info.name}, split {own!r}"
            raise not_found(name, places, part.file_names(own).values(), others)
        return files

    def fetch(self, split: str, downloads: Path, *, sending: bool = False) -> Files:
        """The split's files, of which those that are missing are downloaded.

        Raises:
            BackendUnusable: answers are going to be asked for, and there is no server.
        """
        from mminstruct.fetching.archives import fetch, is_fetched

        files, source = self.locate(split), self.source
        if files is None:
            places = self.places
            for part, own in sources.members(source, split):
                if part.locate(places, own) is None:
                    for place in self.places:
                        _log.info(
                            f"{part.info.name}: no annotation files of split {own!r} in "
                            f"{shown(place)}; taking downloaded ones"
                        )
                    missing = part.downloads(own)
                    if sending and not all(is_fetched(one, downloads) for one in missing):
                        backends.probe(self.config.backend, self.config.backend_options())
                    places += [fetch(download, downloads).parent for download in missing]
            files = source.locate(places, split)
        if files is None:
            raise UsageError(f"{source.info.name}: the downloaded files lack split {split!r}")
        return files

    def read(self, downloads: Path, cache_dir: Path, *, sending: bool = False) -> dict[str, Read]:
        """The requests of each split, in their order; fetches annotation files that are missing.

        Raises:
            BackendUnusable: they are going to be sent, and before a download no server is found.
        """
        from mminstruct.rows.requests import requests_dataset

        found = {}
        kept = self.registry.image_use() if self.config.commercial else None
        for split in self.splits:
            files = self.fetch(split, downloads, sending=sending)
            found_there = self.choose_contexts(files, split, cache_dir)
            contexts = found_there.dataset()
            read = contexts_key(self.source, files)
            whole = digest([read, len(contexts), self.types, kept, *self._exclusion])[:16]
            vocabulary = read_vocabulary(self.source, files, split, cache_dir)
            total, mine, key = len(contexts), range(len(contexts)), whole
            if self.shard is not None:
                mine = self.shard.cut(total)
                contexts, key = contexts.select(mine), f"{whole}-{mine.start}-{mine.stop}"
            requests = requests_dataset(contexts, self.types, key)
            found[split] = Read(requests, key, found_there.report, vocabulary, whole, mine, total)
        return found

    def choose_contexts(self, files: Files, split: str, cache_dir: Path) -> Contexts:
        """The split's contexts that rows are asked for, and what was left out.

        Raises:
            UsageError: there is none.
        """
        info = self.source.info
        where = f"{info.name}, split {split!r}"
        contexts = read_contexts(self.source, files, split, cache_dir)
        report = contexts.report
        for reason in report.skipped:
            level = logging.INFO if reason in report.harmless else logging.WARNING
            _log.log(level, f"{where}: left out {report.line(reason)}")
        if not contexts.numbers:
            lines = "; ".join(map(report.line, report.skipped)) or "there is none in the files"
            raise UsageError(f"{where}: no {info.modality} is left to write about: {lines}")
        if self.config.commercial:
            contexts = _leave_out(
                where, info.modality, contexts, self._why_not_commercial, "may be used commercially"
            )
        if self._excluded:
            contexts = _leave_out(
                where, info.modality, contexts, self._find_list, "are on no list to exclude"
            )
        return replace(contexts, numbers=contexts.numbers[: self.config.limit])

    def _why_not_commercial(self, media: NamedMedia) -> str | None:
        if self.registry.allows(media.license):
            return None
        why = licenses.why_not(self.registry, media.license)
        return f"under {media.license or 'an unknown licence'} ({why})"

    def _find_list(self, media: NamedMedia) -> str | None:
        """The list that an image is on."""
        key = benchmarks.image_key(media.file_name)
        return next((f"of {name}" for name, keys in self._excluded.items() if key in keys), None)

    @cached_property
    def _excluded(self) -> dict[str, frozenset[str]]:
        """Images that are left out, by the title of the list that names them."""
        return benchmarks.find_images(_list_all(self.config.exclude))

    @property
    def _exclusion(self) -> list[str]:
        """Digest of what is left out, if anything is."""
        lists = {title: sorted(images) for title, images in self._excluded.items()}
        return [digest(lists)] if lists else []

    def expect(
        self, tally: Tally, media_licenses: Mapping[str | None, int], text: bool | None
    ) -> None:
        """Count rows that are to come about images under these licences, with such a text."""
        tally.kinds.add(self.source.info.modality)
        tally.expect(media_licenses, len(self.types), text, self.registry.allows)


def _leave_out(
    where: str,
    kind: str,
    contexts: Contexts,
    find_reason: Callable[[NamedMedia], str | None],
    condition: str,
) -> Contexts:
    """The contexts that there is no reason to leave out; others are reported.

    Raises:
        UsageError: there is none.
    """
    reasons = dict(zip(contexts.numbers, map(find_reason, contexts.read_media()), strict=True))
    kept = [number for number, reason in reasons.items() if reason is None]
    said = []
    for reason, count in Counter(filter(None, reasons.values())).most_common():
        contexts.report.skip(f"{kind} {reason}", count, harmless=True)
        said.append(f"{count} {reason}")
    outcome = (
        f"{where}: {len(kept):,} of {count_of(len(reasons), kind)} {condition}; left out: "
        f"{', '.join(said) or 'none'}"
    )
    if not kept:
        raise UsageError(outcome)
    _log.info(outcome)
    return replace(contexts, numbers=kept)


def _list_all(given: str | Sequence[str] | None) -> list[str]:
    """What an argument names that takes one or several."""
    return [given] if isinstance(given, str) else list(given or ())


def _split_names(config: InstructConfig, source: Source) -> tuple[str, ...]:
    """The chosen splits in the source's order.

    Raises:
        UsageError: the source has no such split.
    """
    known = source.info.splits
    chosen = _list_all(config.splits) or known[:1]
    if splits.ALL in chosen:
        return known
    for split in chosen:
        if split not in known:
            raise UsageError(
                f"{source.info.name} has no split {split!r}{did_you_mean(split, known)}"
            )
    return tuple(split for split in known if split in chosen)


def find_annotation_parts(registry: Registry, source: SourceInfo) -> list[Part]:
    """The annotations of a source, or of all parts of a joined one, with their licences."""
    known = sources.names()
    return [
        part
        for info in source.parts or (source,)
        for part in licenses.annotation_parts(
            registry,
            source=info.name,
            title=info.title,
            license=info.license,
            plain=sources.get(info.name).info.license if info.name in known else info.license,
        )
    ]


def compose_verdict(recipes: Sequence[Recipe]) -> Verdict:
    """What the text of the rows of several sources together may be used for."""
    parts = [part for recipe in recipes for part in recipe.verdict.parts]
    return licenses.compose(recipes[0].registry, parts)


Found: TypeAlias = "Sequence[tuple[Recipe, Sequence[datasets.Dataset]]]"
"""The recipe of each source of a run, with the requests of its splits."""


def introduce(found: Found) -> tuple[str, str]:
    """What the rows to come may be used for, text and images together; and the model."""
    tally = Tally()
    for recipe, requests in found:
        # Each type asks about all images; the first is enough to count these.
        first = (part.select(range(len(part) // len(recipe.types))) for part in requests)
        counts = Counter(chain.from_iterable(map(media_licenses, first)))
        recipe.expect(tally, counts, recipe.verdict.commercial)
    verdict = compose_verdict([recipe for recipe, _ in found])
    use = tally.use(verdict.commercial, recipe.registry.allows)
    return str(use), f"model {recipe.backend.model}; licence of the text: {verdict.name}"
