"""`InstructBuilder`: one source and one prompt config as a Hugging Face dataset builder.

A builder script names the two and nothing else. Everything that changes rows is in the cache path:
the annotation files' content, the prompt config's, model and endpoint, sampling, types, splits,
limit, and the code. What doesn't (concurrency, timeouts, retries, where the store is) is not, so
that changing it reuses what is there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import signal
import sys
import tempfile
import threading
import time
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast, get_args, get_type_hints

import datasets
import multiprocess
from datasets.exceptions import DatasetsError

from mminstruct import backends, estimate, generate, licenses, notes, prompts, sources, splits
from mminstruct.backends import Backend, BackendOptions
from mminstruct.client import LONGEST_WAIT_S, NOT_SENT, Client, Failed, RetryPolicy, Stats
from mminstruct.download import fetch, is_fetched
from mminstruct.errors import (
    MMInstructError,
    NoRows,
    RunStopped,
    UsageError,
    did_you_mean,
    to_tell,
)
from mminstruct.estimate import Asked, Estimate, Terms
from mminstruct.generate import Plan, Report
from mminstruct.licenses import Part, Registry, Tally, Use, Verdict
from mminstruct.limits import Budget, Rates
from mminstruct.pricing import Price, price_of
from mminstruct.prompts import PromptConfig
from mminstruct.resources import shown, write_lines
from mminstruct.responses import ResponseStore, default_path
from mminstruct.schema import Option, Sampling, digest
from mminstruct.sources import Files, ReadReport, Source
from mminstruct.sources._annotation_file import not_found

if TYPE_CHECKING:
    from mminstruct.backends.openai import OpenAIBackend
    from mminstruct.batch import Limits

_SHARDS = 64
_log = logging.getLogger(__name__)
_REPORTS = "report-*.json"

REJECTED = "rejected.jsonl"
"""What gave no row, and why; with the answers, which stay on this machine."""

LEFT_OUT = "left_out.jsonl"
"""What reading the annotations left out, with examples, which stay on this machine."""


ALIASES = {
    "model_source": "backend",
    "openai_base_url": "base_url",
    "tgi_url": "base_url",
    "dataset_storage_path": "data_dir",
    "timeout": "timeout_s",
}
"""Names that a flag and an argument of `load_dataset` have -> the argument's own."""


class IncompleteWarning(UserWarning):
    """Some requests got no answer; loading again asks for those, and for no other."""


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
            generate.code_version(),
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
        for field_name, options in _OWN_OPTIONS.items():
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
        contexts, report = generate.contexts_dataset(source, files, split, cache_dir)
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
        found = list(generate.media_licenses(contexts))
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


class InstructBuilder(datasets.GeneratorBasedBuilder):
    """Base of all builders under ``builders/``; a subclass sets SOURCE and PROMPT_CONFIG.

    Attributes:
        stats: counters of a run in this process, for a progress display.
        policy: retries of a run in this process; None takes ``max_retries`` of the config.
        batch_limits: what a batch may hold, and how often to look at it; None is as OpenAI has it.
        report: what became of the requests, once prepared.
        read_report: what reading the annotations left out, by split, once read.
        announced: whether it has been said what the run will ask for.
        tells: whether to say at the end what became of the requests, as the command line does.
    """

    SOURCE: ClassVar[str]
    PROMPT_CONFIG: ClassVar[str]
    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = InstructConfig
    DEFAULT_CONFIG_NAME = "default"
    batch_limits: Limits | None = None
    tells: bool = True

    def __init_subclass__(cls) -> None:
        """Offer ``default`` (all types) and one config for each type."""
        types = prompts.load(cls.PROMPT_CONFIG).types
        cls.BUILDER_CONFIGS = [
            InstructConfig(
                name=name,
                version=cls.VERSION,
                source=cls.SOURCE,
                prompt_config=cls.PROMPT_CONFIG,
                types=None if name == "default" else [name],
            )
            for name in ("default", *types)
        ]

    def __init__(
        self, *args: Any, config_name: str | None = None, split: Any = None, **kwargs: Any
    ) -> None:
        self.announced = False
        self._read_splits: dict[str, tuple[datasets.Dataset, str, ReadReport]] = {}
        self._split = splits.specs(split)
        names = [splits.name_of(spec) for spec in self._split]
        if names and kwargs.get("splits") is None:
            kwargs["splits"] = names
        self.stats = Stats()
        self.policy: RetryPolicy | None = None
        self._budget: Budget | None = None
        self._requests: list[datasets.Dataset] = []
        # If known, nothing is sent: what the store lacks fails as it says here, or is unsent.
        self._failures: dict[bytes, Failed] | None = None
        self.report = Report()
        self.read_report: dict[str, ReadReport] = {}
        if kwargs.get("data_files") is not None:
            raise UsageError(
                "data_files: files aren't named one by one here; give the folder that has them, or "
                "one file that is all of a split, as data_dir"
            )
        for field, options in _OWN_OPTIONS.items():
            own = {name: kwargs.pop(name) for name in list(kwargs) if name in options()}
            if own:
                kwargs[field] = {**kwargs.get(field, {}), **own}
        for name, ours in ALIASES.items():
            if kwargs.get(name) is not None and kwargs.get(ours) is not None:
                raise UsageError(f"{name}: another name of {ours}; give one of them")
            if (value := kwargs.pop(name, None)) is not None:
                kwargs[ours] = value
        unknown = sorted(
            set(kwargs)
            - {field.name for field in dataclasses.fields(InstructConfig)}
            - _BUILDER_ARGUMENTS
        )
        if unknown:
            known = [field.name for field in dataclasses.fields(InstructConfig)]
            known += [*ALIASES, *(name for options in _OWN_OPTIONS.values() for name in options())]
            raise UsageError(f"unknown argument {unknown[0]!r}{did_you_mean(unknown[0], known)}")
        if config_name not in (None, self.DEFAULT_CONFIG_NAME):
            asked = kwargs.pop("types", None) or config_name
            if asked not in (config_name, [config_name], (config_name,)):
                raise UsageError(
                    f"types: the config {config_name!r} is that type alone, got {asked!r}; leave "
                    "out the one or the other"
                )
        known_names = [config.name for config in self.BUILDER_CONFIGS]
        if config_name is not None and config_name not in known_names:
            if not kwargs.get("prompt_config"):
                raise UsageError(
                    f"{type(self).__name__} has no config {config_name!r}"
                    f"{did_you_mean(config_name, known_names)}"
                )
            # Another prompt config has types of its own.
            config_name, kwargs["types"] = "default", [config_name]
        super().__init__(*args, config_name=config_name, **kwargs)
        generated = self.config.split_names(self.config.open_source())
        for name in names:
            if name not in (*generated, splits.ALL):
                raise UsageError(
                    f"split: expected some of splits={list(generated)}, got {name!r}; leave out "
                    "splits, or name it there"
                )

    def _info(self) -> datasets.DatasetInfo:
        source, config = self.config.open_source(), self.config.open_prompts()
        return datasets.DatasetInfo(
            description=(
                f"{config.description} Written by {self._model_name()} from the annotations of "
                f"{source.info.title}."
            ),
            citation=source.info.citation,
            homepage=source.info.homepage,
            license=self.config.verdict().license,
            features=generate.FEATURES,
        )

    def plan(self) -> Plan:
        """All that the rows depend on besides contexts and completions."""
        backend = backends.create(self.config.backend, self.config.backend_options())
        verdict, registry = self.config.verdict(), self.config.registry()
        return Plan(
            source=self.config.open_source().info,
            config=self.config.open_prompts(),
            sampling=self.config.sampling(),
            backend=backend.name,
            model=backend.model,
            endpoint=registry.endpoint_names(backend.endpoints),
            license=verdict.license,
            commercial=verdict.commercial,
            image_use=registry.image_use(),
        )

    @property
    def budget(self) -> Budget:
        """What a run may ask for; several builders may share the one of the first.

        Raises:
            UsageError: a cost is bounded, but nobody knows the price.
        """
        if self._budget is None:
            price, config = self.price(), self.config
            if config.max_cost is not None and price is None:
                raise UsageError(
                    f"max_cost: the price of {self._model_name()} is not known here; give "
                    "--price_in and --price_out, in USD per million tokens, or bound the answers "
                    "with --max_requests"
                )
            # Where no price of batches is known, the usual one is no less.
            tokens_usd = price.tokens_usd(batch=config.batch_api) if price else (0.0, 0.0)
            self._budget = Budget(config.max_requests, config.max_cost, *tokens_usd)
        return self._budget

    @budget.setter
    def budget(self, shared: Budget) -> None:
        self._budget = shared

    @contextlib.contextmanager
    def _ledger(self) -> Iterator[None]:
        """Has all processes of a run count in one place, if there is a bound."""
        if not self.budget.bounded or self.budget.ledger is not None or self.config.batch_api:
            yield
            return
        with tempfile.TemporaryDirectory() as folder:
            self.budget.ledger = Path(folder) / "spent.json"
            try:
                yield
            finally:
                self.budget.ledger = None

    def price(self) -> Price | None:
        """What the model's tokens cost, or None if it isn't known."""
        backend = self._backend()
        return price_of(
            backend.model,
            backend.endpoints,
            price_in=self.config.price_in,
            price_out=self.config.price_out,
        )

    def terms(self) -> Terms:
        """Under which a run asks for answers."""
        config = self.config
        return Terms(
            backend=self._backend(),
            store=self.store_path(),
            price=self.price(),
            context_window=config.context_window,
            rates=config.rates(),
            max_requests=config.max_requests,
            max_cost_usd=config.max_cost,
            batch_api=config.batch_api,
        )

    def identity(self) -> dict[str, str]:
        """What the answers depend on besides messages and sampling."""
        return self._backend().identity()

    def download_and_prepare(
        self, output_dir: str | None = None, *args: Any, **kwargs: Any
    ) -> None:
        """As in `datasets`, but requests that got no answer last time are asked for again.

        Raises:
            MMInstructError: the run can't go on; without what `datasets` wraps it in.
            RunStopped: there is no row at all.
        """
        notes.show()
        ready = Path(output_dir or self._output_dir)
        if any(_unfinished(Report.read(path)) for path in sorted(ready.glob(_REPORTS))):
            kwargs["download_mode"] = datasets.DownloadMode.REUSE_CACHE_IF_EXISTS
            # What was read from the cache folder is of the last time, and lost our class.
            self.info.splits = None
            if self.info.features == generate.FEATURES:
                self.info.features = generate.FEATURES
        with _Plainly(), _ending_in_order(), _ending_with_this(), self._ledger():
            super().download_and_prepare(output_dir, *args, **kwargs)
            self._read_reports(Path(self._output_dir))
        if self.tells:
            files = (Path(self._output_dir) / name for name in (REJECTED, LEFT_OUT))
            listed = ", ".join(shown(file) for file in files if file.is_file())
            _log.info(
                f"{self.dataset_name}: {summary(self.report)}{cost([self])}; licence of the text: "
                f"{self.config.verdict()}{listed and f'; what is missing, and why: {listed}'}"
            )

    def _prepare_split_single(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """As in `datasets`; a process of a pool passes on no more than the error itself."""
        with _Plainly():
            yield from super()._prepare_split_single(*args, **kwargs)

    def left_out(self) -> list[dict[str, Any]]:
        """What reading left out, once read: an entry for each split and reason."""
        source = self.config.open_source().info.name
        return [
            {"source": source, "split": split, **entry}
            for split, report in self.read_report.items()
            for entry in report.entries()
        ]

    def _read_reports(self, folder: Path) -> None:
        self.report, empty = Report(), {}
        for split in self.config.split_names(self.config.open_source()):
            part = Report()
            for path in sorted(folder.glob(f"report-{split}-*.json")):
                part.add(Report.read(path))
            self.report.add(part)
            self.read_report[split] = ReadReport.read(folder / f"read-{split}.json")
            if not part.rows.total():
                first = next((f"; the first: {e['detail']}" for e in part.entries()), "")
                empty[split] = f"no row in split {split!r}: {summary(part)}{first}"
        rejected = folder / REJECTED
        if not rejected.is_file():
            write_lines(rejected, self.report.entries())
            write_lines(folder / LEFT_OUT, self.left_out())
        self.report.files = [rejected] if rejected.is_file() else []
        if not self.report.rows.total():
            words = "; ".join(empty.values())
            if self.report.failures.total() > self.report.unsent:
                raise RunStopped(words)
            if not self.report.rejections:
                raise UsageError(f"{words}; leave out partial (--partial) to ask for them")
            where = f" The answers are in {shown(rejected)}." if self.tells else ""
            raise NoRows(
                f"{words}.{where} The same run gives the same again: take another model, context "
                "window, prompt config or sampling; or, if the server was at fault and is "
                "repaired, give another, new --response_store"
            )
        for split, words in empty.items():
            _log.warning(f"{words}; the split is left out")
            if self.info.splits is not None:
                self.info.splits.pop(split, None)
        if self.report.failures:
            again = "without partial " if self.report.unsent else ""
            warnings.warn(
                f"{summary(self.report)}. Load again {again}to ask for what failed, and for that "
                "alone.",
                IncompleteWarning,
                stacklevel=2,
            )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        notes.show()
        for spec in self._split:
            if spec != (name := splits.name_of(spec)):
                raise UsageError(
                    f"split: {spec!r} is a part of what would have to be generated whole; give "
                    f"split={name!r} and limit=N for its first N images, or load it whole once, "
                    "after which a part costs nothing"
                )
        if self.config.batch_api and dl_manager.is_streaming:
            raise UsageError(
                "batch_api: answers come in batches after hours, which is no stream; "
                "leave out streaming or batch_api"
            )
        downloads = Path(
            dl_manager.download_config.cache_dir or datasets.config.DOWNLOADED_DATASETS_PATH
        )
        generators, sending = [], not self.config.partial
        for split, (requests, key, read_report) in self._read_all(
            downloads, sending=sending
        ).items():
            if not dl_manager.is_streaming:
                read_report.write(Path(self._output_dir) / f"read-{split}.json")
            shards: Any = _ranges(len(requests), _SHARDS)
            generators.append(
                datasets.SplitGenerator(
                    name=split,
                    gen_kwargs={
                        "split": split,
                        "key": key,
                        "requests": requests,
                        # A list is what `datasets` deals out to processes; a stream is one piece.
                        "ranges": tuple(shards) if dl_manager.is_streaming else shards,
                        "total": len(shards),
                        "streaming": dl_manager.is_streaming,
                    },
                )
            )
        if self.stats.total is None:
            self.stats.total = sum(len(g.gen_kwargs["requests"]) for g in generators)
        if not self.announced:
            announce([self])
        self._read_splits = {}  # else each process would get them once more
        self._failures = {} if self.config.partial else None
        if self.config.batch_api:
            self._requests = [g.gen_kwargs["requests"] for g in generators]
        return generators

    def _prepare_split(self, *args: Any, **kwargs: Any) -> None:
        """As in `datasets`; batches are answered before, for all splits and processes at once."""
        if self.config.batch_api and self._failures is None:
            self._failures = self._answered_in_batches()
        super()._prepare_split(*args, **kwargs)

    def _answered_in_batches(self) -> dict[bytes, Failed]:
        """What got no answer from the Batch API; all other answers are in the store."""
        from mminstruct import batch  # with the SDK, which is not for `import mminstruct`

        plan, (requests, self._requests) = self.plan(), (self._requests, [])
        return batch.answer(
            lambda: (job for part in requests for job in generate.jobs(part, plan)),
            cast("OpenAIBackend", self._backend()),  # `check` lets no other through
            self.store_path(),
            policy=self._policy(),
            limits=self.batch_limits or batch.Limits(),
            stats=self.stats,
            budget=self.budget,
        )

    def requests(self, *, sending: bool = False) -> dict[str, datasets.Dataset]:
        """The requests of each split, in their order; fetches annotation files that are missing.

        Raises:
            UsageError: they are going to be sent, and there is no key.
            BackendUnusable: likewise, and before a download no server is found.
        """
        downloads = Path(datasets.config.DOWNLOADED_DATASETS_PATH)
        found = self._read_all(downloads, sending=sending)
        return {split: requests for split, (requests, *_) in found.items()}

    def expect(self, tally: Tally, requests: Iterable[datasets.Dataset]) -> None:
        """Count the rows that the requests may give, by what they may be used for."""
        types = prompts.type_names(self.config.open_prompts(), self.config.type_names())
        # Each type asks about all images; the first is enough to count these.
        first = (part.select(range(len(part) // len(types))) for part in requests)
        counts = Counter(chain.from_iterable(map(generate.media_licenses, first)))
        self.config.expect(tally, counts, self.config.verdict().commercial)

    def asked(self) -> list[Asked]:
        """The requests by split and instruction type."""
        plan = self.plan()
        names = prompts.type_names(plan.config, self.config.type_names())
        return [
            Asked(plan, name, requests.select(range(number * size, (number + 1) * size)))
            for requests in self.requests().values()
            for size in [len(requests) // len(names)]
            for number, name in enumerate(names)
        ]

    def _read_all(
        self, downloads: Path, *, sending: bool
    ) -> dict[str, tuple[datasets.Dataset, str, ReadReport]]:
        """What `_read` gives for each split, read once until the run begins."""
        if sending:
            # Before anything is fetched: what is missing may be all in the user's hands.
            backends.check(self.config.backend, self.config.backend_options())
        if not self._read_splits:
            self._read_splits = {
                split: self._read(split, downloads, sending=sending)
                for split in self.config.split_names(self.config.open_source())
            }
        return self._read_splits

    def _read(
        self, split: str, downloads: Path, *, sending: bool
    ) -> tuple[datasets.Dataset, str, ReadReport]:
        """A split's requests, a digest of what they depend on, and what reading left out."""
        source, config = self.config.open_source(), self.config.open_prompts()
        types = prompts.type_names(config, self.config.type_names())
        files = self._files(source, split, downloads, sending=sending)
        contexts, report = self.config.contexts(source, files, split, Path(self._cache_dir_root))
        self.read_report[split] = report
        kept = self.config.registry().image_use() if self.config.commercial else None
        read = generate.contexts_key(source, files)
        key = digest([read, len(contexts), types, kept])[:16]
        return generate.requests_dataset(contexts, types, key), key, report

    def _files(self, source: Source, split: str, downloads: Path, *, sending: bool) -> Files:
        files: Files | None = self.config.locate(source, split)
        if files is None:
            places = self.config.places()
            for part, own in sources.members(source, split):
                if part.locate(places, own) is None:
                    for place in self.config.places():
                        _log.info(
                            f"{part.info.name}: no annotation files of split {own!r} in "
                            f"{shown(place)}; taking downloaded ones"
                        )
                    missing = part.downloads(own)
                    if sending and not all(is_fetched(one, downloads) for one in missing):
                        backends.probe(self.config.backend, self.config.backend_options())
                    fetched = [fetch(download, downloads) for download in missing]
                    places += [path.parent for path in fetched]
            files = source.locate(places, split)
        if files is None:
            raise UsageError(f"{source.info.name}: the downloaded files lack split {split!r}")
        return files

    def _generate_examples(
        self,
        split: str,
        key: str,
        requests: datasets.Dataset,
        ranges: list[tuple[int, int]] | tuple[tuple[int, int], ...],
        total: int,
        streaming: bool,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        start, stop = ranges[0][0], ranges[-1][1]
        mine = requests.select(range(start, stop))
        share = len(ranges) / total
        report = Report()
        if streaming:
            with _Plainly():
                for result in self._stream(mine, share):
                    report.count(result)
                    if result["reason"] is None:
                        yield result["id"], generate.row_from(result)
            self.report.add(report)
            if report.failures:
                warnings.warn(summary(report), IncompleteWarning, stacklevel=2)
            return
        results = self._mapped(mine, f"{key}-{start}-{stop}", share)
        counts = Path(self._output_dir) / f"report-{split}-{start:09d}.json"
        with counts.with_suffix(".jsonl").open("w", encoding="utf-8") as lines:
            yield from generate.rows_from(results, report, self.info.features, lines)
        report.write(counts)

    def _mapped(self, requests: datasets.Dataset, key: str, share: float) -> datasets.Dataset:
        """The results of requests as a dataset; cached, unless some requests got no answer."""
        plan, backend = self.plan(), self._backend(share)
        asked = [plan.digest(), key, backend.identity(), self.config.context_window]
        asked += self.config.own_store()
        fingerprint = digest(asked)[:16]
        cache_file = Path(self._cache_dir_root) / "mminstruct" / "maps" / f"{fingerprint}.arrow"
        if cache_file.is_file():
            results = datasets.Dataset.from_file(str(cache_file))
            if not generate.has_failures(results):
                return results
            cache_file.unlink()  # what failed is asked for again
        with _ending_in_order(), self._client(backend, share) as client:
            return generate.map_requests(
                requests, plan, client, fingerprint=fingerprint, cache_file=cache_file
            )

    def _stream(self, requests: datasets.Dataset, share: float) -> Iterator[dict[str, Any]]:
        with self._client(self._backend(share), share) as client:
            yield from generate.stream_requests(requests, self.plan(), client)

    def _client(self, backend: Backend, share: float) -> Client:
        failures, stats = self._failures, self.stats
        if failures is not None and not self.config.partial:
            # Of batches all but what parsing rejects is counted already.
            stats = Stats(rejected=stats.rejected)
        store = ResponseStore(self.store_path())
        return Client(
            backend,
            store,
            policy=self._policy(),
            stats=stats,
            rates=self.config.rates(share),
            budget=self.budget,
            failures=failures,
        )

    def _policy(self) -> RetryPolicy:
        config = self.config
        return self.policy or RetryPolicy(
            config.max_retries, max_pause_s=config.max_pause_s, finish_s=config.timeout_s
        )

    def store_path(self) -> Path:
        """The file of finished answers."""
        chosen = self.config.response_store
        return Path(chosen).expanduser() if chosen else default_path()

    def _backend(self, share: float = 1.0) -> Backend:
        return backends.create(self.config.backend, self.config.backend_options(share))

    def _model_name(self) -> str:
        return self._backend().model


def verdict_of(configs: Sequence[InstructConfig]) -> Verdict:
    """What the text of the rows of several sources together may be used for."""
    parts = [part for config in configs for part in config.verdict().parts]
    return licenses.compose(configs[0].registry(), parts)


def use_of(builders: Sequence[InstructBuilder], verdict: Verdict) -> Use:
    """What the rows to come may be used for, text and images together."""
    tally = Tally()
    for builder in builders:
        builder.expect(tally, builder.requests().values())
    return tally.use(verdict.commercial, builders[0].config.registry().allows)


def announce(builders: Sequence[InstructBuilder]) -> Estimate:
    """Say what a run's rows may be used for, what it will ask for, and what that costs.

    With ``partial`` nothing is asked for, and nothing said of it.

    Args:
        builders: of one model; nothing has been sent for any of them.
    """
    configs, plan = [builder.config for builder in builders], builders[0].plan()
    verdict = verdict_of(configs)
    _log.warning(str(use_of(builders, verdict)))
    _log.warning(f"model {plan.model}; licence of the text: {verdict.name}")
    asked = [part for builder in builders for part in builder.asked()]
    found = estimate.glance(asked, builders[0].terms())
    if not configs[0].partial:
        _log.warning(found.line())  # seen by whoever has set up logging, too
    for builder in builders:
        builder.announced = True
    return found


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
_OWN_OPTIONS: dict[str, Callable[[], Mapping[str, tuple[Option, tuple[str, ...]]]]] = {
    "engine": backends.engine_options,
    "source_options": sources.options,
}

_BUILDER_ARGUMENTS = {
    "cache_dir",
    "dataset_name",
    "hash",
    "base_path",
    "info",
    "features",
    "token",
    "repo_id",
    "data_files",
    "data_dir",
    "storage_options",
    "writer_batch_size",
    "config_id",
}


def make(source: str, prompt_config: str, name: str) -> type[InstructBuilder]:
    """A builder class for a pair that has no script; its cache folder is called ``name``."""
    # `datasets` imports the module that a builder is from, and names the cache after it.
    for module in ("mminstruct_adhoc", f"mminstruct_adhoc.{name}"):
        sys.modules.setdefault(module, types.ModuleType(module))
    members = {"SOURCE": source, "PROMPT_CONFIG": prompt_config, "__module__": module}
    cls = type("AdHocBuilder", (InstructBuilder,), members)
    setattr(sys.modules[module], cls.__name__, cls)
    return cls


# A terminal and whoever started the run may both pass a Ctrl-C on.
_SAME_SIGNAL_S = 0.5
_LOOK_AT_PARENT_S = 1.0


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Being terminated waits for the answers in flight, as Ctrl-C does, and then terminates.

    A pool whose parent is interrupted terminates its processes at once. They wait as long as a run
    in one process does, also where the parent died. A second Ctrl-C ends the wait.

    Elsewhere than in a pool, a handler of the user's is left as it is.
    """
    in_pool = multiprocess.parent_process() is not None
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not (in_pool or signal.getsignal(signal.SIGTERM) is signal.SIG_DFL):
        yield
        return
    if in_pool and not _watching.is_set():  # a process that was spawned, not forked
        _end_with(multiprocess.parent_process().is_alive)
    heard_s, terminated = -math.inf, False

    def end(number: int, frame: Any) -> None:
        nonlocal heard_s, terminated
        terminated |= number == signal.SIGTERM
        now = time.monotonic()
        is_first, is_new = heard_s == -math.inf, now - heard_s > _SAME_SIGNAL_S
        if is_first or (number == signal.SIGINT and is_new):
            heard_s = now
            raise KeyboardInterrupt

    heard = (signal.SIGTERM, signal.SIGINT) if in_pool else (signal.SIGTERM,)
    before = [(n, signal.signal(n, end)) for n in heard]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler or signal.SIG_DFL)
        if terminated:
            os.kill(os.getpid(), signal.SIGTERM)


class _Plainly:
    """Raises the error to tell the user alone: `datasets` would have it in the middle of others.

    (What `contextlib` makes of a generator gives an error its long traceback back.)
    """

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, MMInstructError | DatasetsError):
            plain = to_tell(error)
            if plain is not None:
                _log.debug("what led to the error:", exc_info=error)
                raise plain.with_traceback(None) from None


def cost(builders: Sequence[InstructBuilder]) -> str:
    """What this process paid for answers, as the rest of a sentence; nothing if that isn't known.

    Args:
        builders: prepared ones, all with the same model.
    """
    price, usd, answers = builders[0].price(), 0.0, 0
    if price is not None:
        in_usd, out_usd = price.tokens_usd(batch=builders[0].config.batch_api)
        for stats in (builder.stats for builder in builders):
            usd += stats.prompt_tokens * in_usd + stats.completion_tokens * out_usd
            answers += stats.answered
    return f"; {answers:,} answers cost about ${usd:.2g}" if usd else ""


# The process whose pool, and its manager, this thread forks.
_pool_of = threading.local()
_watching = threading.Event()


@contextlib.contextmanager
def _ending_with_this() -> Iterator[None]:
    """Processes that this thread forks meanwhile are terminated soon after this one has died."""
    _pool_of.pid = os.getpid()
    try:
        yield
    finally:
        _pool_of.pid = None


def _watch_parent() -> None:
    """In a process that was just forked."""
    parent = getattr(_pool_of, "pid", None)
    if parent is not None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler is for the parent
        _end_with(lambda: os.getppid() == parent)


def _end_with(is_parent_alive: Callable[[], bool]) -> None:
    def watch() -> None:
        while is_parent_alive():
            time.sleep(_LOOK_AT_PARENT_S)
        os.kill(os.getpid(), signal.SIGTERM)

    _watching.set()
    threading.Thread(target=watch, name="parent", daemon=True).start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_watch_parent)


def summary(report: Report, rows: str | None = None) -> str:
    """Rows, rejections and failures in a line; ``rows`` are the words about the first."""
    parts = [rows or f"{report.rows.total()} rows"]
    if report.unsent:
        parts.append(f"{report.unsent} of {report.requests} requests not asked yet")
    failures = Counter({c: n for c, n in report.failures.items() if c != NOT_SENT})
    for word, counts in (("rejected", report.rejections), ("failed", failures)):
        if counts:
            causes = ", ".join(f"{cause} {count}" for cause, count in counts.most_common())
            parts.append(f"{counts.total()} {word} ({causes})")
    return ", ".join(parts)


def _unfinished(report: Report) -> bool:
    return bool(report.failures) or not report.rows.total()


def _ranges(length: int, parts: int) -> list[tuple[int, int]]:
    """Contiguous (start, stop) pairs of nearly equal length that cover 0..length."""
    parts = max(1, min(parts, length))
    edges = [length * part // parts for part in range(parts + 1)]
    return list(zip(edges, edges[1:], strict=False))
