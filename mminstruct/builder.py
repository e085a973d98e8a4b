"""`InstructBuilder`: one source and one prompt config as a Hugging Face dataset builder.

A builder script names the two and nothing else. Everything that changes rows is in the cache path:
the annotation files' content, the prompt config's, model and endpoint, sampling, types, splits,
limit, and the code. What doesn't (concurrency, timeouts, retries, where the store is) is not, so
that changing it reuses what is there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import types
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import datasets
from datasets.exceptions import DatasetsError

from mminstruct import backends, licenses, prompts, splits
from mminstruct.checks import Checker, Vocabulary
from mminstruct.completions.budget import Budget
from mminstruct.completions.client import Client
from mminstruct.completions.job import Failed
from mminstruct.completions.stats import Stats
from mminstruct.completions.store import ResponseStore
from mminstruct.config import InstructConfig, read_arguments
from mminstruct.errors import (
    MMInstructError,
    NoRows,
    UsageError,
    did_you_mean,
    to_tell,
)
from mminstruct.recipe import Read, Recipe, introduce
from mminstruct.reports import estimate, notes
from mminstruct.reports.estimate import Estimate
from mminstruct.resources import count_of, shown, write_lines
from mminstruct.rows.assembly import has_failures, row_from, rows_from
from mminstruct.rows.columns import FEATURES
from mminstruct.rows.mapping import WholeStream, map_requests, stream_requests
from mminstruct.rows.plan import Plan
from mminstruct.rows.processes import end_in_order, end_with_this, watch_parent
from mminstruct.rows.report import LEFT_OUT, REJECTED, Report, is_unfinished, summary
from mminstruct.rows.requests import jobs
from mminstruct.schema import digest
from mminstruct.sources import ReadReport
from mminstruct.transport import RetryPolicy

if TYPE_CHECKING:
    from mminstruct.backends.openai import OpenAIBackend
    from mminstruct.completions.batch_api.drafts import Limits

_log = logging.getLogger(__name__)
_REPORTS = "report-*.json"

SHARDS = 64


class IncompleteWarning(UserWarning):
    """Some requests got no answer; loading again asks for those, and for no other."""


@dataclass
class BuilderConfig(InstructConfig, datasets.BuilderConfig):
    """An `InstructConfig` that looks up what it names when `datasets` asks it for its id.

    Attributes:
        like: the recipe of another builder of the same run, with the same model.
        recipe: what the names stand for, once that was looked up.
    """

    like: Recipe | None = field(default=None, repr=False, compare=False)
    recipe: Recipe = field(init=False, repr=False, compare=False)

    def create_config_id(
        self, config_kwargs: dict[str, Any], custom_features: datasets.Features | None = None
    ) -> str:
        """``<name>-<digest>`` over everything that changes rows, and over nothing else."""
        self.recipe = Recipe.of(self, self.like)
        if self.commercial:
            licenses.check_commercial(self.recipe.registry, self.recipe.verdict)
        return f"{self.name}-{self.recipe.digest(custom_features)}"


class InstructBuilder(datasets.GeneratorBasedBuilder):
    """Base of all builders under ``builders/``; a subclass sets SOURCE and PROMPT_CONFIG.

    Attributes:
        stats: counters of a run in this process, for a progress display.
        recipe: what the rows are made from.
        policy: retries of a run in this process; None takes ``max_retries`` of the config.
        batch_limits: what a batch may hold, and how often to look at it; None is as OpenAI has it.
        report: what became of the requests, once prepared.
        reports: the same by split.
        read_report: what reading the annotations left out, by split, once read.
        announced: whether it has been said what the run will ask for.
        tells: whether to say at the end what became of the requests, as the command line does.
    """

    SOURCE: ClassVar[str]
    PROMPT_CONFIG: ClassVar[str]
    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = BuilderConfig
    DEFAULT_CONFIG_NAME = "default"
    batch_limits: Limits | None = None
    tells: bool = True

    def __init_subclass__(cls, types: Iterable[str] | None = None) -> None:
        """Offer ``default`` (all types) and one config for each type, if not for these alone."""
        types = prompts.load(cls.PROMPT_CONFIG).types if types is None else types
        cls.BUILDER_CONFIGS = [
            BuilderConfig(
                name=name,
                version=cls.VERSION,
                source=cls.SOURCE,
                prompt_config=cls.PROMPT_CONFIG,
                types=None if name == "default" else [name],
            )
            for name in ("default", *types)
        ]

    def __init__(
        self,
        *args: Any,
        config_name: str | None = None,
        split: Any = None,
        like: Recipe | None = None,
        **kwargs: Any,
    ) -> None:
        self.announced = False
        self._read: dict[str, Read] = {}
        self._split = splits.specs(split)
        names = [splits.name_of(spec) for spec in self._split]
        if names and kwargs.get("splits") is None:
            kwargs["splits"] = names
        self.stats = Stats()
        self.policy: RetryPolicy | None = None
        self._requests: list[datasets.Dataset] = []
        # If known, nothing is sent: what the store lacks fails as it says here, or is unsent.
        self._failures: dict[bytes, Failed] | None = None
        self.report = Report()
        self.reports: dict[str, Report] = {}
        self.read_report: dict[str, ReadReport] = {}
        if kwargs.get("data_files") is not None:
            raise UsageError(
                "data_files: files aren't named one by one here; give the folder that has them, or "
                "one file that is all of a split, as data_dir"
            )
        if not isinstance(like, Recipe | None):
            raise UsageError("unknown argument 'like'")
        kwargs = read_arguments(kwargs)
        config_name = _choose_config(type(self), config_name, kwargs)
        # With an argument, even None, `datasets` copies the class's config.
        super().__init__(*args, config_name=config_name, like=like, **kwargs)
        splits.check_generated(names, self.recipe.splits)

    @property
    def recipe(self) -> Recipe:
        """What the rows are made from, looked up when this was made."""
        recipe: Recipe = self.config.recipe
        return recipe

    def _info(self) -> datasets.DatasetInfo:
        recipe, source = self.recipe, self.recipe.source.info
        return datasets.DatasetInfo(
            description=(
                f"{recipe.prompts.description} Written by {recipe.backend.model} from the "
                f"annotations of {source.title}."
            ),
            citation=source.citation,
            homepage=source.homepage,
            license=recipe.verdict.license,
            features=FEATURES,
        )

    @cached_property
    def budget(self) -> Budget:
        """What a run may ask for; several builders may share the one of the first.

        Raises:
            UsageError: a cost is bounded, but nobody knows the price.
        """
        return self.recipe.make_budget()

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
        with _Plainly(), end_in_order(), end_with_this(), count_together(self):
            super().download_and_prepare(output_dir, *args, **kwargs)
            self._read_reports(Path(self._output_dir))
        if self.tells:
            files = (Path(self._output_dir) / name for name in (REJECTED, LEFT_OUT))
            listed = ", ".join(shown(file) for file in files if file.is_file())
            _log.info(
                f"{self.dataset_name}: {summary(self.report)}{tell_cost([self])}; licence of the "
                f"text: {self.recipe.verdict}; of text and image: column commercial_use"
                f"{listed and f'; what is missing, and why: {listed}'}"
            )

    def _prepare_split_single(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """As in `datasets`; a process of a pool passes on no more than the error itself."""
        with _Plainly():
            yield from super()._prepare_split_single(*args, **kwargs)

    def left_out(self) -> list[dict[str, Any]]:
        """What reading left out, once read: an entry for each split and reason."""
        return [
            {"source": self.recipe.source.info.name, "split": split, **entry}
            for split, report in self.read_report.items()
            for entry in report.entries()
        ]

    def _read_reports(self, folder: Path) -> None:
        parts = {split: Report.read_all(folder, split) for split in self.recipe.splits}
        empty = {
            s: p.explain_no_row(f"split {s!r}") for s, p in parts.items() if not p.rows.total()
        }
        self.report, self.reports = Report(), parts
        for split, part in parts.items():
            self.report.add(part)
            self.read_report[split] = ReadReport.read(folder / f"read-{split}.json")
        rejected = folder / REJECTED
        if not rejected.is_file():
            write_lines(rejected, self.report.entries())
            write_lines(folder / LEFT_OUT, self.left_out())
        self.report.files = [rejected] if rejected.is_file() else []
        if not self.report.rows.total():
            where = f" The answers are in {shown(rejected)}." if self.tells else ""
            stop = self.report.stop("; ".join(empty.values()), where)
            is_part = self.recipe.shard is not None and not self.tells  # others may have rows
            if not is_part or not isinstance(stop, NoRows | UsageError):
                raise stop
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
        splits.check_whole(self._split)
        if dl_manager.is_streaming and (self.config.batch_api or self.config.engine == "ray"):
            how = "batch_api" if self.config.batch_api else "engine ray"
            raise UsageError(
                f"{how}: answers don't come one by one to this process, which is no stream; "
                f"leave out streaming or {how}"
            )
        downloads = Path(
            dl_manager.download_config.cache_dir or datasets.config.DOWNLOADED_DATASETS_PATH
        )
        generators = []
        read = self._read_once(downloads, sending=not self.config.partial)
        for split, found in read.items():
            if not dl_manager.is_streaming:
                found.report.write(Path(self._output_dir) / f"read-{split}.json")
            if not len(found.requests):  # of a shard
                continue
            shards = _ranges(len(found.requests), SHARDS)
            generators.append(
                datasets.SplitGenerator(
                    name=split,
                    gen_kwargs={
                        "split": split,
                        "key": found.key,
                        "vocabulary": found.vocabulary,
                        "requests": found.requests,
                        # A list is what `datasets` deals out to processes.
                        "ranges": tuple(shards) if self.config.engine == "ray" else shards,
                        "total": len(shards),
                        "streaming": dl_manager.is_streaming,
                    },
                )
            )
        if not generators:
            total, kind = sum(one.total for one in read.values()), self.recipe.source.info.modality
            raise UsageError(f"shard: {self.recipe.shard} of {total} {kind}s is none; take fewer")
        if self.stats.total is None:
            self.stats.total = sum(len(g.gen_kwargs["requests"]) for g in generators)
        if not self.announced:
            announce([self])
        self._read = {}  # else each process would get them once more
        self._failures = {} if self.config.partial else None
        if self.config.batch_api:
            self._requests = [g.gen_kwargs["requests"] for g in generators]
        return generators

    def _get_examples_iterable_for_split(self, split: datasets.SplitGenerator) -> WholeStream:
        """As in `datasets`, of what isn't dealt out to nodes."""
        return WholeStream(self._generate_examples, split.gen_kwargs)

    def _prepare_split(self, *args: Any, **kwargs: Any) -> None:
        """As in `datasets`; batches are answered before, for all splits and processes at once."""
        if self.config.batch_api and self._failures is None:
            requests, self._requests = self._requests, []
            self._failures = _answer_in_batches(self, requests)
        super()._prepare_split(*args, **kwargs)

    def read(self, *, sending: bool = False) -> dict[str, Read]:
        """The requests of each split, in their order; fetches annotation files that are missing.

        Raises:
            UsageError: they are going to be sent, and there is no key.
            BackendUnusable: likewise, and before a download no server is found.
        """
        return self._read_once(Path(datasets.config.DOWNLOADED_DATASETS_PATH), sending=sending)

    def requests(self) -> dict[str, datasets.Dataset]:
        """The requests of each split, as `read` finds them."""
        return {split: found.requests for split, found in self.read().items()}

    def _read_once(self, downloads: Path, *, sending: bool) -> dict[str, Read]:
        """What `Recipe.read` gives, kept until the run begins."""
        if sending:
            # Before anything is fetched: what is missing may be all in the user's hands.
            backends.check(self.config.backend, self.config.backend_options())
        if not self._read:
            cache_dir = Path(self._cache_dir_root)
            self._read = self.recipe.read(downloads, cache_dir, sending=sending)
            self.read_report |= {split: found.report for split, found in self._read.items()}
        return self._read

    def _generate_examples(
        self,
        split: str,
        key: str,
        vocabulary: Vocabulary,
        requests: datasets.Dataset,
        ranges: Sequence[tuple[int, int]],
        total: int,
        streaming: bool,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        start, stop = ranges[0][0], ranges[-1][1]
        mine = requests.select(range(start, stop))
        share = len(ranges) / total
        report = Report()
        plan = replace(self.recipe.plan, checker=Checker(vocabulary))
        if streaming:
            with _Plainly(), self._client(share) as client:
                for result in stream_requests(mine, plan, client):
                    report.count(result)
                    if result["reason"] is None:
                        yield result["id"], row_from(result)
            self.report.add(report)
            if report.failures:
                warnings.warn(summary(report), IncompleteWarning, stacklevel=2)
            return
        results = self._mapped(mine, plan, f"{key}-{start}-{stop}", share)
        counts = Path(self._output_dir) / f"report-{split}-{start:09d}.json"
        with counts.with_suffix(".jsonl").open("w", encoding="utf-8") as lines:
            yield from rows_from(results, report, self.info.features, lines)
        report.write(counts)

    def _mapped(
        self, requests: datasets.Dataset, plan: Plan, key: str, share: float
    ) -> datasets.Dataset:
        """The results of requests as a dataset; cached, unless some requests got no answer."""
        recipe = self.recipe
        asked = [plan.digest(), key, recipe.backend.identity(), self.config.context_window]
        fingerprint = digest([*asked, *recipe.own_store])[:16]
        cache_file = Path(self._cache_dir_root) / "mminstruct" / "maps" / f"{fingerprint}.arrow"
        if cache_file.is_file():
            results = datasets.Dataset.from_file(str(cache_file))
            if not has_failures(results):
                return results
            cache_file.unlink()  # what failed is asked for again
        if self.config.engine == "ray" and self._failures is None:
            from mminstruct import cluster

            with end_in_order():
                return cluster.map_requests(
                    requests,
                    plan,
                    recipe,
                    policy=self.policy or self.config.retry_policy(),
                    budget=self.budget,
                    stats=self.stats,
                    cache_file=cache_file,
                )
        with end_in_order(), self._client(share) as client:
            return map_requests(
                requests, plan, client, fingerprint=fingerprint, cache_file=cache_file
            )

    def _client(self, share: float) -> Client:
        failures, stats = self._failures, self.stats
        if failures is not None and not self.config.partial:
            # Of batches all but what parsing rejects is counted already.
            stats = Stats(rejected=stats.rejected)
        return Client(
            self.recipe.make_backend(share),
            ResponseStore(self.recipe.store),
            policy=self.policy or self.config.retry_policy(),
            stats=stats,
            rates=self.config.rates(share),
            budget=self.budget,
            failures=failures,
        )


def _choose_config(
    cls: type[InstructBuilder], name: str | None, arguments: dict[str, Any]
) -> str | None:
    """The config of the class to start from; another prompt config's is one of its types."""
    if name in (None, cls.DEFAULT_CONFIG_NAME):
        return name
    asked = arguments.pop("types", None) or name
    if asked not in (name, [name], (name,)):
        raise UsageError(
            f"types: the config {name!r} is that type alone, got {asked!r}; leave out the one or "
            "the other"
        )
    known = [config.name for config in cls.BUILDER_CONFIGS]
    if name in known:
        return name
    if not arguments.get("prompt_config"):
        raise UsageError(f"{cls.__name__} has no config {name!r}{did_you_mean(str(name), known)}")
    arguments["types"] = [name]
    return cls.DEFAULT_CONFIG_NAME


def _answer_in_batches(
    builder: InstructBuilder, requests: Sequence[datasets.Dataset]
) -> dict[bytes, Failed]:
    """What got no answer from the Batch API; all other answers are in the store."""
    from mminstruct.completions.batch_api import drafts, run

    recipe = builder.recipe
    return run.answer(
        lambda: (job for part in requests for job in jobs(part, recipe.plan)),
        cast("OpenAIBackend", recipe.make_backend()),  # a recipe lets no other through
        recipe.store,
        policy=builder.policy or recipe.config.retry_policy(),
        limits=builder.batch_limits or drafts.Limits(),
        stats=builder.stats,
        budget=builder.budget,
    )


@contextlib.contextmanager
def count_together(builder: InstructBuilder) -> Iterator[None]:
    """Sum the counts of all processes of a run, if there is a bound."""
    budget = builder.budget
    if not budget.bounded or budget.ledger is not None or builder.config.batch_api:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        budget.ledger = Path(folder) / "spent.json"
        try:
            yield
        finally:
            budget.ledger = None


def announce(builders: Sequence[InstructBuilder]) -> Estimate:
    """Say what a run's rows may be used for, what it will ask for, and what that costs.

    With ``partial`` nothing is asked for, and nothing said of it.

    Args:
        builders: of one model; nothing has been sent for any of them.
    """
    found = [(builder.recipe, list(builder.requests().values())) for builder in builders]
    for line in introduce(found):
        _log.warning(line)
    glance = estimate.glance(found)
    if not builders[0].config.partial:
        _log.warning(glance.line())  # seen by whoever has set up logging, too
    for builder in builders:
        builder.announced = True
    return glance


def make(source: str, prompt_config: str, name: str) -> type[InstructBuilder]:
    """A builder class for a pair that has no script; its cache folder is called ``name``.

    It offers the config ``default`` alone.
    """
    # `datasets` imports the module that a builder is from, and names the cache after it.
    for module in ("mminstruct_adhoc", f"mminstruct_adhoc.{name}"):
        sys.modules.setdefault(module, types.ModuleType(module))
    members = {"SOURCE": source, "PROMPT_CONFIG": prompt_config, "__module__": module}
    cls = type("AdHocBuilder", (InstructBuilder,), members, types=())
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


def tell_cost(builders: Sequence[InstructBuilder]) -> str:
    """What this process paid for answers, as the rest of a sentence; nothing if that isn't known.

    Args:
        builders: prepared ones, all with the same model.
    """
    price, usd, answers = builders[0].recipe.price, 0.0, 0
    if price is not None:
        in_usd, out_usd = price.tokens_usd(batch=builders[0].config.batch_api)
        for stats in (builder.stats for builder in builders):
            usd += stats.prompt_tokens * in_usd + stats.completion_tokens * out_usd
            answers += stats.answered
    return f"; {count_of(answers, 'answer')} cost about ${usd:.2g}" if usd else ""


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=watch_parent)


def _ranges(length: int, parts: int) -> list[tuple[int, int]]:
    """Contiguous (start, stop) pairs of nearly equal length that cover 0..length."""
    parts = max(1, min(parts, length))
    edges = [length * part // parts for part in range(parts + 1)]
    return list(zip(edges, edges[1:], strict=False))
