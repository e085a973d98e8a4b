"""What a builder is asked for, by name; `mminstruct.recipe` looks up what the names stand for."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import datasets

from mminstruct import backends, sources
from mminstruct.backends import BackendOptions
from mminstruct.completions.buckets import Rates
from mminstruct.errors import UsageError, did_you_mean
from mminstruct.schema import Option
from mminstruct.transport import LONGEST_WAIT_S, RetryPolicy

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

    def _check_types(self) -> None:
        """Raise UsageError for a single value of another type than its argument has."""
        hints = get_type_hints(InstructConfig)
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


def read_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `load_dataset` by the names of the config's fields.

    Raises:
        UsageError: one is unknown, or given by two names.
    """
    found = dict(given)
    for field, options in OWN_OPTIONS.items():
        own = {name: found.pop(name) for name in given if name in options()}
        if own:
            found[field] = {**found.get(field, {}), **own}
    for name, ours in ALIASES.items():
        if found.get(name) is not None and found.get(ours) is not None:
            raise UsageError(f"{name}: another name of {ours}; give one of them")
        if (value := found.pop(name, None)) is not None:
            found[ours] = value
    fields = [field.name for field in dataclasses.fields(InstructConfig)]
    of_datasets = inspect.signature(datasets.DatasetBuilder).parameters
    for unknown in sorted(found.keys() - {*fields, *of_datasets}):
        known = [*fields, *ALIASES]
        known += [name for options in OWN_OPTIONS.values() for name in options()]
        raise UsageError(f"unknown argument {unknown!r}{did_you_mean(unknown, known)}")
    return found
