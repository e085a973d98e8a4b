"""What a builder is asked for, by name."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import datasets

from mminstruct import backends, licenses, prompts, sources, splits
from mminstruct.backends import BackendOptions
from mminstruct.completions.buckets import Rates
from mminstruct.errors import (
    UsageError,
    did_you_mean,
)
from mminstruct.licenses import Part, Registry, Tally, Verdict
from mminstruct.prompts.config import PromptConfig
from mminstruct.rows.contexts import contexts_dataset, media_licenses
from mminstruct.rows.plan import code_version
from mminstruct.schema import Option, Sampling, digest
from mminstruct.sources import Files, ReadReport, Source
from mminstruct.sources._annotation_file import not_found
from mminstruct.transport import LONGEST_WAIT_S

_log = logging.getLogger(__name__)

SHARDS = 64
ALIASES = {
    "model_source": "backend",
    "openai_base_url": "base_url",
    "tgi_url": "base_url",
    "dataset_storage_path": "data_dir",
    "timeout": "timeout_s",
}
"""Names that a flag and an argument of `load_dataset` have -> the argument's own."""


@dataclass
class InstructConfig(datasets.BuilderConfig):
    """The arguments of `load_dataset` for an instruction builder.

    Annotation files are taken from ``data_dir`` where it is given, and from nowhere else.

    Attributes:
        source: set by the builder.
        prompt_config: set by the builder; a name or a path.
        types: instruction types; None is all of the prompt config.
        splits: splits to generate, or ``all``; each costs money, so only ``train`` by default.
        limit: images per split, the first ones by id; None is all.
        backend: a model source, such as ``openai``, ``tgi`` or ``llama_cpp``.
        model: a name at a server, or a file; None is the backend's default.
        base_url: of a server, with or without ``/v1``; several are replicas of the first.
        context_window: tokens that prompt and answer may take together; None asks the model.
        temperature: 0 is greedy.
        top_p: nucleus mass.
        max_tokens: upper bound of an answer.
        seed: for sampling and for the choice of questions; None sends none.
        max_concurrency: requests in flight at most, over all processes and servers.
        requests_per_minute: sent at most, likewise; None finds out what servers take.
        tokens_per_minute: of prompts and answers, likewise.
        timeout_s: longest wait for an answer, seconds.
        max_retries: tries after a request's first.
        max_pause_s: longest pause that a server may ask for, seconds; a longer one ends the run.
        batch_api: ask through OpenAI's Batch API: half the price, within a day.
        partial: send nothing; the rows are those whose answers are in the store by now.
        max_requests: answers that a run pays for at most; None is any number.
        max_cost: USD that a run costs at most; None is any.
        price_in: USD per million prompt tokens; None takes the price list.
        price_out: USD per million completion tokens; None takes the price list.
        response_store: file of finished completions; None is the one in the Hugging Face cache.
        engine: the backend's own options (its ``OPTIONS``); each is an argument by itself, too, but
            for ``trust_remote_code``, which `load_dataset` keeps to itself.
        source_options: the source's own options (its ``OPTIONS``); each is an argument, too.
        licenses: file with licence entries of one's own, over those of the package.
        model_id: exact Hub id of the model, where it can't be told from its files or name.
        default_dir: where they are looked for before a download, if no ``data_dir`` is given.
        commercial: images that may be used commercially alone, and only if the rows may be too.
    """

    source: str = ""
    prompt_config: str = ""
    types: list[str] | None = None
    splits: list[str] | None = None
    limit: int | None = None
    backend: str = "llama_cpp"
    model: str | None = None
    base_url: str | list[str] | None = dataclasses.field(default=None, repr=False)  # has secrets
    context_window: int | None = None
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 1024
    seed: int | None = None
    max_concurrency: int = 256
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout_s: float = 600.0
    max_retries: int = 8
    max_pause_s: float = LONGEST_WAIT_S
    batch_api: bool = False
    partial: bool = False
    max_requests: int | None = None
    max_cost: float | None = None
    price_in: float | None = None
    price_out: float | None = None
    response_store: str | None = None
    engine: dict[str, Any] = dataclasses.field(default_factory=dict)
    source_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    licenses: str | None = None
    model_id: str | None = None
    default_dir: str | None = None
    commercial: bool = False

    def create_config_id(
        self, config_kwargs: dict[str, Any], custom_features: datasets.Features | None = None
    ) -> str:
        """``<name>-<digest>`` over everything that changes rows, and over nothing else."""
        self.check()
        source, config = self.open_source(), self.open_prompts()
        types = prompts.type_names(config, self.type_names())
        splits = self.split_names(source)
        backend = backends.create(self.backend, self.backend_options())
        registry, verdict = self.registry(), self.verdict()
        if self.commercial:
            licenses.check_commercial(registry, verdict)
        rows = [
            code_version(),
            source.info,
            sources.chosen_options(source),
            [self.fingerprint(source, split) for split in splits],
            splits,
            config.hash,
            types,
            backend.identity(),
            registry.endpoint_names(backend.endpoints),
            self.sampling(),
            self.context_window,
            self.limit,
            [verdict.license, verdict.commercial, registry.image_use(), self.commercial],
            *self.own_store(),
            None if custom_features is None else custom_features.to_dict(),
        ]
        return f"{self.name}-{digest(rows)[:16]}"

    def own_store(self) -> list[str]:
        """The store's path if one was given: whoever gives a new one wants to ask again."""
        if self.response_store is None:
            return []
        return [str(Path(self.response_store).expanduser().resolve())]

    def check(self) -> None:
        """Raise UsageError for a value of another type or out of range."""
        self._check_types()
        for field, low, high in (
            ("limit", 1, None),
            ("max_tokens", 1, 2**31 - 1),  # what its column holds
            ("max_concurrency", 1, None),
            ("requests_per_minute", 0.001, None),
            ("tokens_per_minute", 1, None),
            ("context_window", 1, None),
            ("max_retries", 0, None),
            ("max_pause_s", 0, None),
            ("max_requests", 0, None),
            ("max_cost", 0, None),
            ("price_in", 0, None),
            ("price_out", 0, None),
            ("temperature", 0, None),
            ("timeout_s", 0.001, None),
            ("top_p", 0.0, 1.0),
        ):
            value = getattr(self, field)
            if value is None:
                continue
            if not low <= value or (high is not None and value > high):
                bound = f"at least {low}" if high is None else f"between {low} and {high}"
                raise UsageError(f"{field}: expected {bound}, got {value}")
        if self.batch_api:
            backend = backends.create(self.backend, self.backend_options())
            if backend.name != "openai":
                raise UsageError(
                    f"batch_api: the model source {backend.name!r} has no Batch API; "
                    "use the model source 'openai' or leave it out"
                )
            for field in ("requests_per_minute", "tokens_per_minute"):
                if getattr(self, field) is not None:
                    raise UsageError(
                        f"{field}: requests of the Batch API go up in files, at no rate of ours; "
                        f"leave out {field} or batch_api"
                    )

    def _check_types(self) -> None:
        """Raise UsageError for a single value of another type than its argument has."""
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(InstructConfig):
            kinds = get_args(hints[field.name]) or (hints[field.name],)
            if set(kinds) <= {*_KINDS, type(None)}:
                _check_type(field.name, getattr(self, field.name), kinds)
        for name in ("types", "splits", "base_url"):
            several = getattr(self, name)
            if several is not None and not isinstance(several, str):
                is_list = isinstance(several, (list, tuple))
                if not is_list or not all(isinstance(one, str) for one in several):
                    raise UsageError(f"{name}: expected a list of texts, got {several!r}")
        for field_name, options in OWN_OPTIONS.items():
            known, given = options(), getattr(self, field_name)
            if not isinstance(given, dict):
                raise UsageError(f"{field_name}: expected a dict of options, got {given!r}")
            for name, value in given.items():
                if name in known:
                    _check_type(name, value, (known[name][0].type,))

    def open_source(self) -> Source:
        """The source of the contexts."""
        return sources.get(self.source, self.source_options)

    def open_prompts(self) -> PromptConfig:
        """The prompt config, read again each time, as its file may have been edited."""
        return prompts.load(self.prompt_config)

    def type_names(self) -> tuple[str, ...] | None:
        """The chosen instruction types, or None for all."""
        chosen = [self.types] if isinstance(self.types, str) else self.types
        return tuple(chosen) if chosen else None

    def split_names(self, source: Source) -> tuple[str, ...]:
        """The chosen splits in the source's order.

        Raises:
            UsageError: the source has no such split.
        """
        chosen = [self.splits] if isinstance(self.splits, str) else self.splits
        chosen = list(chosen or source.info.splits[:1])
        if splits.ALL in chosen:
            return source.info.splits
        for split in chosen:
            if split not in source.info.splits:
                raise UsageError(
                    f"{source.info.name} has no split {split!r}"
                    f"{did_you_mean(split, source.info.splits)}"
                )
        return tuple(split for split in source.info.splits if split in chosen)

    def fingerprint(self, source: Source, split: str) -> str:
        """Digest of the split's annotations: of the files, or of the archive to be downloaded."""
        files = self.locate(source, split)
        return files.fingerprint if files else digest(source.downloads(split))

    def locate(self, source: Source, split: str) -> Files | None:
        """The split's files under ``data_dir``; without one None, if they have to be downloaded.

        Raises:
            SourceError: a ``data_dir`` is given and doesn't have them.
        """
        places = self.places()
        files = source.locate(places, split)
        if files is None and self.data_dir:
            parts = sources.members(source, split)
            part, own = next(m for m in parts if m[0].locate(places, m[1]) is None)
            others = [s for s in part.info.splits if s != own and part.locate(places, s)]
            name = f"{part.info.name}, split {own!r}"
            raise not_found(name, places, part.file_names(own).values(), others)
        return files

    def places(self) -> list[Path]:
        """Where annotation files are looked for."""
        given = self.data_dir or self.default_dir
        return [Path(given).expanduser()] if given else []

    def contexts(
        self, source: Source, files: Files, split: str, cache_dir: Path
    ) -> tuple[datasets.Dataset, ReadReport]:
        """The split's contexts that rows are asked for, and what reading left out.

        Raises:
            UsageError: there is none.
        """
        contexts, report = contexts_dataset(source, files, split, cache_dir)
        for reason in report.skipped:
            level = logging.INFO if reason in report.harmless else logging.WARNING
            words = f"{source.info.name}, split {split!r}: left out {report.line(reason)}"
            _log.log(level, words)
        if not len(contexts):
            lines = "; ".join(map(report.line, report.skipped)) or "there is none in the files"
            raise UsageError(
                f"{source.info.name}, split {split!r}: no {source.info.modality} is left to write "
                f"about: {lines}"
            )
        if self.commercial:
            contexts = self._commercial(source, split, contexts, report)
        if self.limit is not None:
            contexts = contexts.select(range(min(self.limit, len(contexts))))
        return contexts, report

    def _commercial(
        self, source: Source, split: str, contexts: datasets.Dataset, report: ReadReport
    ) -> datasets.Dataset:
        """The contexts whose images (motions ...) may be used commercially; others are reported.

        Raises:
            UsageError: there is none.
        """
        registry = self.registry()
        found = list(media_licenses(contexts))
        kept = contexts.select([n for n, name in enumerate(found) if registry.allows(name)])
        left_out = Counter(name for name in found if not registry.allows(name))
        kind, said = source.info.modality, []
        for name, count in left_out.most_common():
            why = f"under {name or 'an unknown licence'} ({licenses.why_not(registry, name)})"
            report.skip(f"{kind} {why}", count, harmless=True)
            said.append(f"{count} {why}")
        outcome = (
            f"{source.info.name}, split {split!r}: {len(kept)} of {len(contexts)} {kind}s may be "
            f"used commercially; left out: {', '.join(said) or 'none'}"
        )
        if not len(kept):
            raise UsageError(outcome)
        _log.info(outcome)
        return kept

    def expect(
        self, tally: Tally, media_licenses: Mapping[str | None, int], text: bool | None
    ) -> None:
        """Count rows that are to come about images under these licences, with such a text."""
        types = prompts.type_names(self.open_prompts(), self.type_names())
        tally.kinds.add(self.open_source().info.modality)
        tally.expect(media_licenses, len(types), text, self.registry().allows)

    def registry(self) -> Registry:
        """The facts about licences, with the user's own, read again each time."""
        return licenses.load(self.licenses)

    def text_parts(self, registry: Registry) -> list[Part]:
        """Whatever rows are made of besides a model's words, with its licence."""
        source, config = self.open_source().info, self.open_prompts()
        parts = [licenses.prompt_part(registry, name=config.name, license=config.license)]
        for info in source.parts or (source,):
            parts += licenses.annotation_parts(
                registry, source=info.name, title=info.title, license=info.license
            )
        return parts

    def verdict(self) -> Verdict:
        """What the text of the rows may be used for; images are not part of them."""
        registry = self.registry()
        backend = backends.create(self.backend, self.backend_options())
        path = Path(self.model or "").expanduser() if backend.repo_id is None else None
        model = licenses.model_parts(
            registry,
            name=backend.model,
            repo_id=self.model_id or backend.repo_id,
            files=licenses.declared(path) if self.model and path and path.exists() else None,
            endpoints=backend.endpoints,
            given=self.model_id is not None,
        )
        return licenses.compose(registry, [*self.text_parts(registry), *model])

    def sampling(self) -> Sampling:
        """How completions are drawn."""
        return Sampling(float(self.temperature), float(self.top_p), self.max_tokens, self.seed)

    def rates(self, share: float = 1.0) -> Rates:
        """What may be sent a minute, with a share of it for one of several processes."""
        asked = (self.requests_per_minute, self.tokens_per_minute)
        return Rates(*(None if rate is None else rate * share for rate in asked))

    def backend_options(self, share: float = 1.0) -> BackendOptions:
        """The backend's options, with a share of the concurrency for one of several processes."""
        urls = [self.base_url] if isinstance(self.base_url, str) else self.base_url
        return BackendOptions(
            model=self.model,
            base_urls=tuple(urls or ()),
            context_window=self.context_window,
            timeout_s=self.timeout_s,
            max_concurrency=max(1, math.floor(self.max_concurrency * share)),
            engine=self.engine,
        )


# The types of single values: which are taken, and what they are called. A bool is no number here,
# and a number of NumPy can't be written into the name of a cache.
_KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "True or False"),
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
    str: ((str, type(Path())), "text"),
    list: ((list, tuple), "a list of texts"),
    dict: ((dict, str), "a dict, JSON or a file with it"),
}


def _check_type(name: str, value: Any, kinds: Iterable[type]) -> None:
    """Raise UsageError for a value of none of these types; None is let through."""
    named = {kind: _KINDS[kind] for kind in kinds if kind in _KINDS}
    if value is None or any(type(value) in taken for taken, _ in named.values()):
        return
    expected = " or ".join(words for _, words in named.values())
    raise UsageError(f"{name}: expected {expected}, got {value!r}")


# Arguments that backends and sources declare, and the field of the config that collects them.
OWN_OPTIONS: dict[str, Callable[[], Mapping[str, tuple[Option, tuple[str, ...]]]]] = {
    "engine": backends.engine_options,
    "source_options": sources.options,
}
