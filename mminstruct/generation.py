"""What ``mminstruct generate`` does, from Python too: sources and a model -> rows, and a release.

The same steps in the same order: everything that can go wrong for free does so before anything is
paid for, and what was paid for is kept.
"""

from __future__ import annotations

import datetime
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from mminstruct import export, loading, prompts, resources, sources
from mminstruct.builder import InstructBuilder, announce, count_together, make
from mminstruct.completions.store import ResponseStore, default_path
from mminstruct.errors import NoRows, StoreUnusable, UsageError, did_you_mean
from mminstruct.licenses import Verdict
from mminstruct.recipe import Read, Recipe, compose_verdict
from mminstruct.releases import parts, repository
from mminstruct.releases.contents import measure
from mminstruct.releases.notices import license_text
from mminstruct.releases.origin import MadeRows, Origin, name_contents
from mminstruct.reports import notes
from mminstruct.reports.estimate import Estimate
from mminstruct.reports.quality import Quality
from mminstruct.rows import columns, replacing
from mminstruct.rows.plan import Plan
from mminstruct.rows.report import REJECTED, Report
from mminstruct.schema import Context
from mminstruct.sources import SourceInfo, find_infos
from mminstruct.sources.own import of_rows
from mminstruct.splits import Shard
from mminstruct.version import __version__

# What is worked out here for each builder.
_OWN = {"config_name", "hash", "like", "source"}
_FORMAT_OF_SUFFIX = {".jsonl": "jsonl", ".json": "llava-instruct"}


@dataclass(frozen=True, slots=True)
class Generated(MadeRows):
    """What a run has made: a sequence of rows, with how they came about.

    Attributes:
        builders: one for each source; their counters say what was sent and paid.
        written: what was written, or None.
        quality: what the rows are like; None where none were written, or a part.
        unfinished: of merged parts the shards that have requests without an answer, and more than
            refused ones.
    """

    builders: tuple[InstructBuilder, ...]
    written: export.Outcome | None = None
    quality: Quality | None = None
    unfinished: tuple[str, ...] = ()

    @property
    def dataset(self) -> datasets.Dataset:
        """The rows of all splits, one after the other."""
        return datasets.concatenate_datasets(list(self.rows.values()))

    def __len__(self) -> int:
        return self.report.rows.total()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        return self.dataset[key]


def generate(
    sources: str | Sequence[str] | Iterable[Mapping[str, Any] | Context] | datasets.Dataset,
    *,
    output_path: str | Path | None = None,
    output_format: str | None = None,
    overwrite: bool = False,
    agree: Callable[[Estimate], None] | None = None,
    prepare: Callable[[InstructBuilder], None] | None = None,
    command: Callable[[Recipe], str] | None = None,
    **arguments: Any,
) -> Generated:
    """Make the rows of one or more sources, and a release of them, as ``mminstruct generate`` does.

    Args:
        sources: names, such as ``COCO2017`` or ``COCO2017+LVIS``, or paths; or data, in any event
            loop: dicts such as a line of a table is, contexts, or a `Dataset`, images of which
            aren't copied. Data is kept in ``cache_dir`` as a table, which the same data finds
            again; ``source_name``, ``source_license`` and the like say what it is.
        output_path: of the release; with neither this nor a format, none is written.
        output_format: ``dataset`` or a name in `export.FORMATS`; None is told by the path's end.
        overwrite: replace what another model, prompt config or sampling made there, or has more.
        agree: is told what it will take before anything is sent; may raise.
        prepare: has a builder make its rows, for who shows how far it is.
        command: what makes the rows again, for others to read.
        arguments: as `load_dataset` takes them: the names of the flags, and ``cache_dir``.

    Raises:
        UsageError: an argument is wrong; nothing was sent.
        RunStopped: the run had to stop. The same call goes on.
        NoRows: no answer gave a row.
    """
    for name in sorted(arguments.keys() & _OWN):
        raise UsageError(f"unknown argument {name!r}")
    notes.show()
    path, shard = None, arguments.get("shard")
    infos = find_infos(_find_names(sources, arguments.get("cache_dir")), arguments)
    if output_path is not None or output_format is not None:
        output_format, path = choose_output(output_path, output_format)
        if shard is not None:
            path = _choose_part(path, output_format, Shard.of(shard))
            arguments.setdefault("response_store", str(path / parts.STORE))
        else:
            _check_output(list(infos.values()), path, output_format)
    day = _read_day()
    builders = make_builders(infos, arguments)
    recipes = [builder.recipe for builder in builders]
    made = _describe(recipes)

    def check_replacing() -> None:
        if path is not None and shard is None:
            module = repository if output_format == "dataset" else export
            replacing.check(path, module.made_at(path), made, overwrite=overwrite)

    check_replacing()
    # What can't be read, fetched or replaced is told before anything is paid for.
    asked = [b.read(sending=not b.config.partial) for b in builders]
    made = {**made, "requests": sum(len(r.requests) for some in asked for r in some.values())}
    check_replacing()
    estimate = announce(builders)
    if agree is not None:
        agree(estimate)
    claim: AbstractContextManager[parts.Writer | None] = nullcontext()
    if path is not None and shard is not None:
        claim = parts.claim(path, _describe_part(recipes, asked), overwrite=overwrite)
    with claim as write_part:
        prepared, report = _prepare(builders, asked, prepare, path)
        again = None if command is None else command(recipes[0])
        origin = _origin_of(builders, compose_verdict(recipes), again, day)
        rows = datasets.DatasetDict(
            {
                split: datasets.concatenate_datasets([p[split] for p in prepared if split in p])
                for split in dict.fromkeys(split for some in prepared for split in some)
            }
        )
        written, quality = None, None
        if path is not None and write_part is not None:
            pieces = [
                (some.get(split), builder.reports.get(split, Report()))
                for builder, found, some in zip(builders, asked, prepared, strict=True)
                for split in found
            ]
            write_part(origin, pieces)
            written = export.Outcome(path, report.rows.total())
        elif path is not None and output_format == "dataset":
            quality = repository.write(rows, path, origin, report, overwrite=overwrite)
            written = export.Outcome(path, report.rows.total())
        elif path is not None and output_format is not None:
            written = export.write(
                rows,
                path,
                output_format,
                report,
                export.Terms(
                    partial(license_text, origin),
                    origin.verdict.commercial,
                    origin.registry.allows,
                ),
                {**made, "requests": report.requests},
                left_out=origin.left_out,
                overwrite=overwrite,
            )
            quality = measure(rows, report)
    return Generated(rows, report, origin, name_contents(rows), tuple(builders), written, quality)


def _prepare(
    builders: Sequence[InstructBuilder],
    asked: Sequence[Mapping[str, Read]],
    prepare: Callable[[InstructBuilder], None] | None,
    path: Path | None,
) -> tuple[list[Mapping[str, datasets.Dataset]], Report]:
    """The rows of each builder by split, and what became of all requests."""
    budget, report = builders[0].budget, Report()
    prepared: list[Mapping[str, datasets.Dataset]] = []
    with count_together(builders[0]):
        for builder, found in zip(builders, asked, strict=True):
            builder.budget, builder.tells = budget, path is None
            if not any(len(read.requests) for read in found.values()):  # of a shard
                prepared.append({})
                continue
            try:
                (prepare or InstructBuilder.download_and_prepare)(builder)
            except NoRows as error:
                if path is None:
                    raise
                raise NoRows(f"{error}. {_say_where_answers_are(path, builder.report)}") from None
            report.add(builder.report)
            prepared.append(builder.as_dataset())
    return prepared, report


def _choose_part(path: Path, output_format: str, shard: Shard) -> Path:
    """The folder of a part of a release.

    Raises:
        UsageError: another form is asked for, or it can't be written.
    """
    if output_format != "dataset":
        raise UsageError(
            f"shard: a part of a release, which 'mminstruct merge' puts together, is no "
            f"{output_format}; give a folder and no format, and export the release"
        )
    place = parts.find_place(path, shard)
    resources.check_writable(place, place)
    return place


def _describe_part(recipes: Sequence[Recipe], asked: Sequence[Mapping[str, Read]]) -> parts.Part:
    """What a shard of a run is a part of, and which."""
    pieces = [
        parts.Piece(
            recipe.source.info.name,
            split,
            recipe.types,
            read.contexts.start,
            read.contexts.stop,
            read.total,
        )
        for recipe, found in zip(recipes, asked, strict=True)
        for split, read in found.items()
    ]
    plan = {
        f"{name} of {recipe.source.info.name}" if len(recipes) > 1 else name: value
        for recipe, found in zip(recipes, asked, strict=True)
        for name, value in {
            **recipe.describe(),
            f"number of {recipe.source.info.modality}s": {
                s: read.total for s, read in found.items()
            },
            "annotations": {split: read.whole_key for split, read in found.items()},
        }.items()
    }
    return parts.Part(parts.to_plan(plan), str(recipes[0].shard), tuple(pieces))


def merge(
    folders: str | Path | Iterable[str | Path],
    output_path: str | Path,
    *,
    response_store: str | Path | None = None,
    overwrite: bool = False,
) -> Generated:
    """Put the parts of a release together that shards of a run made, as ``mminstruct merge`` does.

    The release is the one that the run in one piece would have written, and of this day.

    Args:
        folders: of all parts, in any order; addresses as `fsspec` takes them are copied first, one
            of which may be that of all.
        output_path: of the release.
        response_store: gets the answers that are in the parts' folders, so that no run that has it
            asks for them again; None is the usual one.
        overwrite: replace what another run made there, or has more.

    Raises:
        UsageError: they are of different runs, are not finished, lack images or have some twice;
            or no answer about a source is there yet.
        RunStopped: the folder can't be written.
        StoreError: the store can't be written, or a part's can't be read.
        NoRows: no answer about a source gave a row.
    """
    _, path = choose_output(output_path, "dataset")
    repository.check_output(path)
    store = Path(response_store).expanduser() if response_store else default_path()
    here = parts.fetch([folders] if isinstance(folders, str | Path) else folders)
    gathered = parts.gather(here)
    report, command = gathered.report, _name_output(gathered.origin.command, path)
    origin = replace(gathered.origin, command=command, written_on=_read_day())
    with ResponseStore(store) as answers:
        for folder, other in gathered.stores.items():
            try:
                answers.copy(other)
            except StoreUnusable as error:
                raise StoreUnusable(
                    f"part {folder}: its answers can't be read: {error.__cause__ or error}; copy "
                    f"the part again, or remove its {parts.STORE}: its rows are there, and only "
                    "another run would ask for those answers again"
                ) from error
    quality = repository.write(gathered.rows, path, origin, report, overwrite=overwrite)
    # Those of the parts may be in copies.
    report.files = [file for file in (path / REJECTED,) if file.is_file()]
    return Generated(
        gathered.rows,
        report,
        origin,
        name_contents(gathered.rows),
        (),
        export.Outcome(path, report.rows.total()),
        quality,
        gathered.unfinished,
    )


def _name_output(command: str | None, path: Path) -> str | None:
    """A command of ours as it would write there; another one as it is."""
    words = resources.split_command(command or "")
    if words[:2] != ["mminstruct", "generate"]:
        return command
    flag, name = "--output_path", path.resolve().name
    at = words.index(flag) if flag in words else len(words)
    _, before = choose_output(next(iter(words[at + 1 :]), None))
    if before.name != name:
        words[at : at + 2] = [flag, name]
    return shlex.join(words)


def _origin_of(
    builders: Sequence[InstructBuilder], verdict: Verdict, command: str | None, day: datetime.date
) -> Origin:
    """How the rows of prepared builders came about."""
    recipes = [builder.recipe for builder in builders]
    plan = recipes[0].plan
    skipped: Counter[str] = Counter()
    for report in (report for builder in builders for report in builder.read_report.values()):
        skipped.update(report.skipped)
    return Origin(
        sources=tuple(recipe.source.info for recipe in recipes),
        configs=tuple(recipe.prompts for recipe in recipes),
        types=tuple(dict.fromkeys(name for recipe in recipes for name in recipe.types)),
        backend=plan.backend,
        model=plan.model,
        verdict=verdict,
        registry=recipes[0].registry,
        settings={
            **recipes[0].identity,
            "model": plan.model,
            "seed": _seed_of(plan),
            **_name_check(plan),
            "mminstruct": __version__,
        },
        skipped=skipped,
        left_out=[entry for builder in builders for entry in builder.left_out()],
        command=command,
        written_on=day,
    )


def _find_names(given: Any, cache_dir: str | None) -> Sequence[str]:
    """The names of sources; data becomes one."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, list | tuple) and all(isinstance(name, str) for name in given):
        return given
    if isinstance(given, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise UsageError(f"sources: expected one split, got {', '.join(map(str, given))}; give one")
    return [of_rows(given, cache_dir=Path(cache_dir or datasets.config.HF_DATASETS_CACHE))]


def make_builders(
    infos: Mapping[str, SourceInfo], arguments: Mapping[str, Any]
) -> list[InstructBuilder]:
    """A builder for each source, with the model looked up once.

    Args:
        infos: as from `find_infos`.
        arguments: of all; an option of a source is for those that have it.
    """
    builders: list[InstructBuilder] = []
    given = dict(arguments)
    prompt_config = given.pop("prompt_config", None)
    options = {name: sources.options_of(name) for name in infos}
    for source, info in infos.items():
        others = set().union(*options.values()) - options[source]
        builder = _find_class(source, info, prompt_config)(
            config_name="default",
            like=builders[0].recipe if builders else None,
            **{name: value for name, value in given.items() if name not in others},
        )
        builders.append(builder)
    return builders


def _find_class(
    name: str, source: SourceInfo, prompt_config: str | None
) -> Callable[..., InstructBuilder]:
    """What makes the builder for a source with a prompt config, or with the source's own."""
    asked = prompt_config or source.prompt_config
    path = prompts.find(asked)
    is_ours = path.parent == resources.folder("prompt_configs")
    if is_ours and (found := loading.find_builder(source.name, path.stem)):
        script, cls = found
        return partial(cls, hash=loading.script_hash(script))
    return make(name, asked, re.sub(r"\W", "_", f"{source.name}_{path.stem}".lower()))


def choose_output(
    output_path: str | Path | None, output_format: str | None = None
) -> tuple[str, Path]:
    """The form of the output and its path; without one, it is here."""
    known = ("dataset", *export.FILE_FORMATS)
    if output_format is not None and output_format not in known:
        raise UsageError(f"format {output_format!r}{did_you_mean(output_format, known)}")
    given = Path(output_path or "").expanduser()
    chosen = output_format or _FORMAT_OF_SUFFIX.get(given.suffix, "dataset")
    if chosen == "dataset":
        export.check_folder_name(given, chosen)
    if output_path:
        return chosen, given
    name = "instruct"
    return chosen, Path(name) if chosen == "dataset" else export.default_output(name, chosen)


def _check_output(infos: Sequence[SourceInfo], path: Path, output_format: str) -> None:
    """Raise UsageError if the rows can't be written there in that form."""
    if output_format == "dataset":
        repository.check_output(path)
        return
    export.check_output(path, output_format)
    for info in infos:
        if info.modality != "image" and not export.FORMATS[output_format].any_modality:
            raise UsageError(
                f"--output_format {output_format} holds images, and {info.name} is about "
                f"{info.modality}; use jsonl or dataset"
            )


def _describe(recipes: Sequence[Recipe]) -> replacing.Made:
    """How the rows will be made, as far as it is known before anything is read."""
    plan = recipes[0].plan
    values = {name: [str(getattr(plan.sampling, name))] for name in columns.SAMPLING}
    return {
        "sources": [recipe.source.info.name for recipe in recipes],
        "backend": plan.backend,
        "model": plan.model,
        "prompt_configs": list(dict.fromkeys(recipe.prompts.hash for recipe in recipes)),
        "prompt_names": {r.prompts.hash: f"{r.prompts.name} {r.prompts.version}" for r in recipes},
        "sampling": replacing.sampling(values, _seed_of(plan)),
        **_name_check(plan),
        "types": sorted({name for recipe in recipes for name in recipe.types}),
        "splits": sorted({split for recipe in recipes for split in recipe.splits}),
    }


def _name_check(plan: Plan) -> dict[str, str]:
    """What becomes of contradicted turns, where it isn't the usual."""
    return {} if plan.check == "report" else {"check": plan.check}


def _seed_of(plan: Plan) -> str:
    return "none" if plan.sampling.seed is None else str(plan.sampling.seed)


def _say_where_answers_are(path: Path, report: Report) -> str:
    """Where the answers of a run can be read that gave no row at all."""
    if report.files:
        return f"The answers are in {export.write_rejected(path, report)}"
    return "To read the answers, run the same command with --partial, which sends nothing"


def _read_day() -> datetime.date:
    """The day, UTC; that of SOURCE_DATE_EPOCH where files are to be the same on any day."""
    seconds = os.environ.get("SOURCE_DATE_EPOCH")
    if seconds is None:
        return datetime.datetime.now(datetime.timezone.utc).date()
    try:
        return datetime.datetime.fromtimestamp(int(seconds), datetime.timezone.utc).date()
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(
            f"SOURCE_DATE_EPOCH: expected seconds since 1970, got {seconds!r}; unset it"
        ) from error
