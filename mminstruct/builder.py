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
import os
import sys
import tempfile
import types
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import datasets
from datasets.exceptions import DatasetsError

from mminstruct import backends, licenses, prompts, sources, splits
from mminstruct.backends import Backend
from mminstruct.completions.budget import Budget
from mminstruct.completions.client import Client
from mminstruct.completions.job import Failed
from mminstruct.completions.prices import Price, price_of
from mminstruct.completions.stats import Stats
from mminstruct.completions.store import ResponseStore, default_path
from mminstruct.config import ALIASES, OWN_OPTIONS, SHARDS, InstructConfig
from mminstruct.errors import (
    MMInstructError,
    NoRows,
    RunStopped,
    UsageError,
    did_you_mean,
    to_tell,
)
from mminstruct.fetching.archives import fetch, is_fetched
from mminstruct.licenses import Tally, Use, Verdict
from mminstruct.reports import estimate, notes
from mminstruct.reports.estimate import Asked, Estimate, Terms
from mminstruct.resources import shown, write_lines
from mminstruct.rows.assembly import has_failures, row_from, rows_from
from mminstruct.rows.columns import FEATURES
from mminstruct.rows.contexts import contexts_key, media_licenses
from mminstruct.rows.mapping import map_requests, stream_requests
from mminstruct.rows.plan import Plan
from mminstruct.rows.processes import end_in_order, end_with_this, watch_parent
from mminstruct.rows.report import Report, is_unfinished, summary
from mminstruct.rows.requests import jobs, requests_dataset
from mminstruct.schema import digest
from mminstruct.sources import Files, ReadReport, Source
from mminstruct.transport import RetryPolicy

if TYPE_CHECKING:
    from mminstruct.backends.openai import OpenAIBackend
    from mminstruct.completions.batch_api.drafts import Limits

_log = logging.getLogger(__name__)
_REPORTS = "report-*.json"

REJECTED = "rejected.jsonl"
"""What gave no row, and why; with the answers, which stay on this machine."""

LEFT_OUT = "left_out.jsonl"
"""What reading the annotations left out, with examples, which stay on this machine."""


class IncompleteWarning(UserWarning):
    """Some requests got no answer; loading again asks for those, and for no other."""


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
        for field, options in OWN_OPTIONS.items():
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
            known += [*ALIASES, *(name for options in OWN_OPTIONS.values() for name in options())]
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
            features=FEATURES,
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
        if any(is_unfinished(Report.read(path)) for path in sorted(ready.glob(_REPORTS))):
            kwargs["download_mode"] = datasets.DownloadMode.REUSE_CACHE_IF_EXISTS
            # What was read from the cache folder is of the last time, and lost our class.
            self.info.splits = None
            if self.info.features == FEATURES:
                self.info.features = FEATURES
        with _Plainly(), end_in_order(), end_with_this(), self._ledger():
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
            shards: Any = _ranges(len(requests), SHARDS)
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
        from mminstruct.completions.batch_api import drafts, run

        plan, (requests, self._requests) = self.plan(), (self._requests, [])
        return run.answer(
            lambda: (job for part in requests for job in jobs(part, plan)),
            cast("OpenAIBackend", self._backend()),  # `check` lets no other through
            self.store_path(),
            policy=self._policy(),
            limits=self.batch_limits or drafts.Limits(),
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
        counts = Counter(chain.from_iterable(map(media_licenses, first)))
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
        read = contexts_key(source, files)
        key = digest([read, len(contexts), types, kept])[:16]
        return requests_dataset(contexts, types, key), key, report

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
                        yield result["id"], row_from(result)
            self.report.add(report)
            if report.failures:
                warnings.warn(summary(report), IncompleteWarning, stacklevel=2)
            return
        results = self._mapped(mine, f"{key}-{start}-{stop}", share)
        counts = Path(self._output_dir) / f"report-{split}-{start:09d}.json"
        with counts.with_suffix(".jsonl").open("w", encoding="utf-8") as lines:
            yield from rows_from(results, report, self.info.features, lines)
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
            if not has_failures(results):
                return results
            cache_file.unlink()  # what failed is asked for again
        with end_in_order(), self._client(backend, share) as client:
            return map_requests(
                requests, plan, client, fingerprint=fingerprint, cache_file=cache_file
            )

    def _stream(self, requests: datasets.Dataset, share: float) -> Iterator[dict[str, Any]]:
        with self._client(self._backend(share), share) as client:
            yield from stream_requests(requests, self.plan(), client)

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


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=watch_parent)


def _ranges(length: int, parts: int) -> list[tuple[int, int]]:
    """Contiguous (start, stop) pairs of nearly equal length that cover 0..length."""
    parts = max(1, min(parts, length))
    edges = [length * part // parts for part in range(parts + 1)]
    return list(zip(edges, edges[1:], strict=False))
