"""What a builder is asked for, by name; `mminstruct.recipe` looks up what the names stand for."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mminstruct import backends, sources, splits
from mminstruct.backends import BackendOptions
from mminstruct.completions.buckets import Rates
from mminstruct.errors import UsageError, did_you_mean
from mminstruct.rows.plan import OnContradiction
from mminstruct.schema import Option
from mminstruct.transport import LONGEST_WAIT_S, RetryPolicy

Group = Literal["model", "content", "sampling", "runtime", "budget"]


@dataclass(frozen=True, slots=True)
class Flag:
    """How a field of `InstructConfig` is asked for on the command line.

    Attributes:
        group: where it stands there.
        metavar: what stands for its value.
        name: where it isn't the field's, without its unit.
        owners: the model sources that have a server with such an address; empty is no address.
        help: where it isn't what the config's docstring says of the field.
    """

    group: Group
    metavar: str | None = None
    name: str | None = None
    owners: tuple[str, ...] = ()
    help: str | None = None


def _field(
    default: Any,
    group: Group,
    metavar: str | None = None,
    *,
    name: str | None = None,
    owners: tuple[str, ...] = (),
    more: tuple[Flag, ...] = (),
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """A field with its flag, more flags for it, and the bounds of its value."""
    return dataclasses.field(
        default=default,
        repr=not owners,  # addresses have secrets in them
        metadata={
            "flags": (Flag(group, metavar, name, owners), *more),
            "least": least,
            "most": most,
        },
    )


@dataclass
class InstructConfig:
    """The arguments of `load_dataset` for an instruction builder; ``--help`` shows these words.

    Annotation files are taken from ``data_dir`` where it is given, and from nowhere else. Limits
    and rates are for all processes and servers together.

    Attributes:
        source: set by the builder.
        backend: openai (any OpenAI-compatible server), tgi (text-generation-inference), llama.cpp
            (a GGUF file; default), huggingface (transformers) or fake.
        model: model name, GGUF file, Hugging Face repository or folder, or TGI server; llama.cpp
            without one runs SmolLM2-135M.
        base_url: server of the model source, as --openai_base_url or --tgi_url have it.
        model_id: the model's exact id on the Hub, if its terms can't be found by name or file.
        licenses: YAML with licences and terms of your own, over those that are known here.
        context_window: room for prompt and answer together (default: the model's, as far as it is
            known).
        engine_options: the backend's own options (its ``OPTIONS``), also to be given as ``engine``;
            each is an argument by itself, too, but for ``trust_remote_code``, which `load_dataset`
            keeps to itself.
        source_options: the source's own options (its ``OPTIONS``); each is an argument, too.
        prompt_config: name or YAML file (default: the source's own; llava for COCO).
        types: instruction types (default: all).
        splits: splits (default: train alone).
        limit: first N images of each split.
        commercial: only images that may be used commercially, and only if the model's terms and all
            other licences allow the same of the rows.
        check: what becomes of turns that the annotations contradict: report (marked in the column
            checks; default), drop, or reask (ask once more, saying what is wrong; then drop).
        exclude: images that aren't asked about: those of benchmarks (pope, llava_bench_coco,
            karpathy, karpathy_val, karpathy_test, flickr30k), or of a text file that names one a
            line; several with commas between.
        default_dir: where annotation files are looked for before a download, if no ``data_dir`` is
            given.
        temperature: 0 is greedy (default: 0.7).
        top_p: nucleus mass (default: 1).
        max_tokens: longest answer (default: 1024).
        seed: for sampling and choice of questions (default: none).
        max_concurrency: requests in flight at most; a server gets as many of them as it is found to
            take (default: 256).
        requests_per_minute: requests sent a minute at most (default: what the server is found to
            take).
        tokens_per_minute: tokens of prompts and answers a minute at most (default: what the server
            says).
        timeout_s: longest wait for one answer in seconds (default: 600).
        max_retries: tries after the first (default: 8).
        max_pause_s: longest pause a server may ask for in seconds; a longer one ends the run
            (default: 3600).
        engine: where requests are sent from and models run: local (this process; default), or ray:
            every node of the Ray cluster that RAY_ADDRESS names, or every GPU of it.
        batch_api: openai: through the Batch API, half the price, within a day; may be stopped and
            run again at any time.
        partial: send nothing: write what is complete by now; the same command without it makes the
            rest.
        shard: only images of part I of N of each split, counted from 0, such as 2/4; on the command
            line a part of a release, which merge puts together, and auto takes both from a Slurm
            array or from RANK and WORLD_SIZE; rates and budget are each part's own.
        response_store: finished answers (default: mminstruct/responses.sqlite in the Hugging Face
            cache).
        max_requests: stop after N paid answers.
        max_cost: stop before a run costs more.
        price_in: price of a million prompt tokens (default: from a price list, for the APIs that it
            knows).
        price_out: price of a million answer tokens.
    """

    data_dir: str | None = None
    source: str = ""
    backend: str = _field("llama_cpp", "model", "NAME", name="model_source")
    model: str | None = _field(None, "model")
    base_url: str | list[str] | None = _field(
        None,
        "model",
        "URL",
        owners=("openai", "tgi"),
        more=(
            Flag(
                "model",
                "URL",
                "openai_base_url",
                ("openai",),
                "server, with or without /v1, or, where the API isn't there, its whole address "
                "with /chat/completions (default: OpenAI's, with the key in OPENAI_API_KEY); "
                "given again: one more with the same model",
            ),
            Flag(
                "model",
                "URL",
                "tgi_url",
                ("tgi",),
                "TGI server, such as http://localhost:8080 (a key, if it wants one, comes from "
                "TGI_API_KEY, or from HF_TOKEN for an endpoint at Hugging Face)",
            ),
        ),
    )
    model_id: str | None = _field(None, "model", "ORG/NAME")
    licenses: str | None = _field(None, "model", "FILE")
    context_window: int | None = _field(None, "model", "TOKENS", least=1)
    engine_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    source_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    prompt_config: str = _field("", "content", "NAME")
    types: list[str] | None = _field(None, "content", "TYPE")
    splits: list[str] | None = _field(None, "content", "SPLIT")
    limit: int | None = _field(None, "content", "N", least=1)
    commercial: bool = _field(False, "content")
    check: OnContradiction = _field("report", "content")
    exclude: str | list[str] | None = _field(None, "content", "NAME")
    default_dir: str | None = None
    temperature: float = _field(0.7, "sampling", least=0)
    top_p: float = _field(1.0, "sampling", least=0.0, most=1.0)
    # At most what its column holds.
    max_tokens: int = _field(1024, "sampling", least=1, most=2**31 - 1)
    seed: int | None = _field(None, "sampling")
    max_concurrency: int = _field(256, "runtime", "N", least=1)
    requests_per_minute: float | None = _field(None, "runtime", "N", least=0.001)
    tokens_per_minute: float | None = _field(None, "runtime", "N", least=1)
    timeout_s: float = _field(600.0, "runtime", "S", least=0.001)
    max_retries: int = _field(8, "runtime", "N", least=0)
    max_pause_s: float = _field(LONGEST_WAIT_S, "runtime", "S", least=0)
    engine: Literal["local", "ray"] = _field("local", "runtime")
    batch_api: bool = _field(False, "runtime")
    partial: bool = _field(False, "runtime")
    shard: str | tuple[int, int] | None = _field(None, "runtime", "I/N")
    response_store: str | None = _field(None, "runtime", "FILE")
    max_requests: int | None = _field(None, "budget", "N", least=0)
    max_cost: float | None = _field(None, "budget", "USD", least=0)
    price_in: float | None = _field(None, "budget", "USD", least=0)
    price_out: float | None = _field(None, "budget", "USD", least=0)

    def validate(self) -> None:
        """Raise UsageError for a value of another type or out of range."""
        self._check_types()
        if self.shard is not None:
            splits.Shard.of(self.shard)
        for field in dataclasses.fields(InstructConfig):
            value, bounds = getattr(self, field.name), field.metadata
            choices = choices_of(field)
            if choices and value not in choices:
                raise UsageError(f"{field.name} {value!r}{did_you_mean(str(value), choices)}")
            low, high = bounds.get("least"), bounds.get("most")
            if value is None or low is None:
                continue
            if not low <= value or (high is not None and value > high):
                bound = f"at least {low}" if high is None else f"between {low} and {high}"
                raise UsageError(f"{field.name}: expected {bound}, got {value}")

    def _check_types(self) -> None:
        """Raise UsageError for a single value of another type than its argument has."""
        for field in dataclasses.fields(InstructConfig):
            kinds = kinds_of(field)
            if set(kinds) <= {*_KINDS, type(None)}:
                _check_type(field.name, getattr(self, field.name), kinds)
        for name in ("types", "splits", "exclude", "base_url"):
            several = getattr(self, name)
            if several is not None and not isinstance(several, str):
                is_list = isinstance(several, (list, tuple))
                if not is_list or not all(isinstance(one, str) for one in several):
                    raise UsageError(f"{name}: expected a list of texts, got {several!r}")
        for field_name, options in OWN_OPTIONS.items():
            given = getattr(self, field_name)
            if not isinstance(given, dict):
                raise UsageError(f"{field_name}: expected a dict of options, got {given!r}")
            known = options() if given else {}
            for name, value in given.items():
                if name in known:
                    _check_type(name, value, (known[name][0].type,))

    def rates(self, share: float = 1.0) -> Rates:
        """What may be sent a minute, with a share of it for one of several processes."""
        asked = (self.requests_per_minute, self.tokens_per_minute)
        return Rates(*(None if rate is None else rate * share for rate in asked))

    def retry_policy(self) -> RetryPolicy:
        """How often and how long a request is tried."""
        return RetryPolicy(self.max_retries, max_pause_s=self.max_pause_s, finish_s=self.timeout_s)

    def backend_options(self, share: float = 1.0) -> BackendOptions:
        """The backend's options, with a share of the concurrency for one of several processes."""
        urls = [self.base_url] if isinstance(self.base_url, str) else self.base_url
        return BackendOptions(
            model=self.model,
            base_urls=tuple(urls or ()),
            context_window=self.context_window,
            timeout_s=self.timeout_s,
            max_concurrency=max(1, math.floor(self.max_concurrency * share)),
            engine=self.engine_options,
        )


def flags() -> dict[str, tuple[dataclasses.Field[Any], Flag]]:
    """Name -> the flag and its field, in their order."""
    entries = inspect.cleandoc(InstructConfig.__doc__ or "").partition("Attributes:")[2]
    words = dict(entry.split(": ", 1) for entry in re.split(r"\n {4}(?=\w)", entries)[1:])
    helps = {name: " ".join(text.split()).removesuffix(".") for name, text in words.items()}
    return {
        flag.name or field.name.removesuffix("_s"): (
            field,
            dataclasses.replace(flag, help=flag.help or helps.get(field.name)),
        )
        for field in dataclasses.fields(InstructConfig)
        for flag in field.metadata.get("flags", ())
    }


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(InstructConfig)


def kinds_of(field: dataclasses.Field[Any]) -> tuple[Any, ...]:
    """The types that a field's value may have."""
    hint = _hints()[field.name]
    return get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)


def choices_of(field: dataclasses.Field[Any]) -> tuple[str, ...] | None:
    """The values that a field may have, or None for any of its types."""
    hint = _hints()[field.name]
    return get_args(hint) if get_origin(hint) is Literal else None


ALIASES = {
    **{name: field.name for name, (field, _) in flags().items() if name != field.name},
    "dataset_storage_path": "data_dir",
}
"""Names that a flag and an argument of `load_dataset` have -> the argument's own."""
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
    "engine_options": backends.engine_options,
    "source_options": sources.options,
}


# The id is worked out from what changes rows; the other stands for arguments of any name.
_NOT_TAKEN = {"config_id", "config_kwargs"}


def read_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `load_dataset` by the names of the config's fields.

    An address alone is of a model source that has one: `openai`, unless it is called a ``tgi_url``.

    Raises:
        UsageError: one is unknown, or given by two names.
    """
    found = dict(given)
    if isinstance(found.get("engine"), dict):
        found["engine_options"] = found.pop("engine")
    for field, options in OWN_OPTIONS.items():
        known_here = options()
        own = {name: found.pop(name) for name in given if name in known_here}
        if own:
            found[field] = {**found.get(field, {}), **own}
    if "backend" not in found and "model_source" not in found:
        asked = (flag.owners[0] for n, (_, flag) in flags().items() if flag.owners and given.get(n))
        found |= dict(zip(["backend"], asked, strict=False))
    for name, ours in ALIASES.items():
        if found.get(name) is not None and found.get(ours) is not None:
            raise UsageError(f"{name}: another name of {ours}; give one of them")
        if (value := found.pop(name, None)) is not None:
            found[ours] = value
    import datasets  # which takes a second

    configs = (datasets.BuilderConfig, InstructConfig)
    fields = [field.name for config in configs for field in dataclasses.fields(config)]
    of_datasets = inspect.signature(datasets.DatasetBuilder).parameters.keys() - _NOT_TAKEN
    for unknown in sorted(found.keys() - {*fields, *of_datasets}):
        known = {*fields, *ALIASES}
        known |= {name for options in OWN_OPTIONS.values() for name in options()}
        raise UsageError(f"unknown argument {unknown!r}{did_you_mean(unknown, known)}")
    return found
