"""What a run would ask for, take and cost; nothing is sent to any model.

Requests, their keys and their lengths come from the code that a run uses, so what is counted is
what would be sent: prompts are counted by the backend's own tokenizer and looked up in the response
store, which is only read. Of a large source a sample of each instruction type is looked at, and
figures are intervals that hold the true one with 95 %. Everywhere a figure that is known exactly is
an interval of one point.

The lengths of answers are those of the finished answers to the same prompt config, type and model;
where the store has too few, half the shortest to one and a half times the longest answer among the
type's own few-shot examples, which is what models imitate. Retries are not in the estimate, nor is
what a server charges for an answer that never arrived.

A run begins with a glance at the same: fewer requests, prompts counted approximately, and no server
asked, so that it takes a moment whatever the size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import datasets

from mminstruct import licenses
from mminstruct.backends import ROUGH_ERROR, Counting, Remote, rough_tokens
from mminstruct.completions.client import find_stored, identities_of
from mminstruct.completions.job import Attempt
from mminstruct.completions.store import Lengths, ResponseStore, Scope
from mminstruct.errors import UsageError
from mminstruct.recipe import Found, Recipe
from mminstruct.reports.intervals import (
    Interval,
    estimate_count,
    estimate_mean,
    exactly,
    format_interval,
    format_usd,
    format_whole,
    spread_sample,
    t_quantile,
)
from mminstruct.resources import count_of
from mminstruct.rows.plan import Plan
from mminstruct.rows.requests import jobs
from mminstruct.schema import Completion, Message

_CHUNK = 500
FEWEST_ANSWERS = 5
# Counts within this of the engine's own are given as they are, not as an interval.
NEGLIGIBLE = 0.01
ASKED_TWICE = "answers that the annotations contradict are asked for once more"
# A run that may ask for more, at somebody's price, is large.
_LARGE_USD = 20.0
_LARGE_REQUESTS = 20_000


class _Sizes(NamedTuple):
    """How many requests are looked at: each up to a number, else a sample, and a pilot of it."""

    all_up_to: float = 2000
    sample: int = 600
    sample_of_type: int = 100  # at least
    pilot: int = 50  # of each type


_ALL = _Sizes(math.inf)
_GLANCE = _Sizes(600, 300, 20, 50)
_NONE = _Sizes(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Part:
    """An instruction type of a split of a source.

    Attributes:
        type: instruction type.
        requests: how many there are.
        looked_at: how many of them the figures come from.
        stored: those whose answers are in the store.
        too_long: those that fit no window; they are not asked for.
        left: those that would be sent.
        prompt_tokens: of all but the too long ones.
        prompt_tokens_left: of those that would be sent.
        completion_tokens: of all answers.
        completion_tokens_left: of those that would be sent.
        scaled_by: stored answers whose usage corrected the count of prompt tokens; 0 is none.
        answers: finished answers that the lengths of others are taken from; 0 is the examples.
    """

    type: str
    requests: int
    looked_at: int
    stored: Interval
    too_long: Interval
    left: Interval
    prompt_tokens: Interval
    prompt_tokens_left: Interval
    completion_tokens: Interval
    completion_tokens_left: Interval
    scaled_by: int
    answers: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would ask for, take and cost.

    Attributes:
        parts: by source, split and type.
        recipe: of the first source, whose model and bounds are those of all.
        token_error: of the count of prompt tokens, as in `Backend.token_error`.
        in_store: answers in the store, whatever they are to.
        requests_per_second: throughput to expect, or None if unknown.
    """

    parts: tuple[Part, ...]
    recipe: Recipe
    token_error: float | None
    in_store: int
    requests_per_second: float | None = None

    @property
    def requests(self) -> int:
        """Of the whole run."""
        return sum(part.requests for part in self.parts)

    @property
    def sampled(self) -> bool:
        """Whether not all requests were looked at."""
        return any(part.looked_at < part.requests for part in self.parts)

    def total(self, figure: str) -> Interval:
        """The sum of a figure of all parts."""
        found = sum((getattr(part, figure) for part in self.parts), Interval())
        if figure == "stored":  # what a sample says of each part may be more than there is
            found = Interval(found.low, max(found.low, min(found.high, self.in_store)))
        return found

    @property
    def cost_usd(self) -> Interval | None:
        """Of what is not in the store; None if the price isn't known."""
        return self._cost(None if self.recipe.price is None else self.recipe.price.cost_usd)

    @property
    def batch_cost_usd(self) -> Interval | None:
        """The same through the Batch API; None if there is none, or its price isn't known."""
        if self.recipe.price is None or self.recipe.price.batch is None:
            return None
        return self._cost(self.recipe.price.batch_cost_usd)

    def _cost(self, price: Any) -> Interval | None:
        prompt, answer = self.total("prompt_tokens_left"), self.total("completion_tokens_left")
        if self.total("left").high == 0:
            return Interval()
        if price is None:
            return None
        return Interval(price(prompt.low, answer.low), price(prompt.high, answer.high))

    @property
    def seconds(self) -> Interval | None:
        """Time for what is not in the store, which a bound on what is sent may stretch.

        None if neither a throughput nor a bound is given; with a bound alone it takes at least so
        long.
        """
        left = self.total("left")
        if not left.high:
            return Interval()
        tokens = self.total("prompt_tokens_left") + self.total("completion_tokens_left")
        per_second = [
            (left, self.requests_per_second),
            (left, _per_second(self.recipe.config.rates().requests_per_minute)),
            (tokens, _per_second(self.recipe.config.rates().tokens_per_minute)),
        ]
        times = [(x.low / rate, x.high / rate) for x, rate in per_second if rate is not None]
        return Interval(*map(max, zip(*times, strict=True))) if times else None

    @property
    def stops_at(self) -> str | None:
        """The bound that the run may come to before its end, as its flag is written."""
        most, most_usd, cost = (
            self.recipe.config.max_requests,
            self.recipe.config.max_cost,
            self.own_cost_usd,
        )
        if most is not None and most < self.total("left").high:
            return f"--max_requests {most:,}"
        if most_usd is not None and cost is not None and most_usd < cost.high:
            return f"--max_cost {most_usd:g}"
        return None

    @property
    def own_cost_usd(self) -> Interval | None:
        """What it costs in the way it goes, through the Batch API or not; None if unknown."""
        return (self.batch_cost_usd if self.recipe.config.batch_api else None) or self.cost_usd

    @property
    def is_charged(self) -> bool:
        """Whether somebody charges for requests: where no price is known, all but own servers."""
        if self.recipe.price is not None:
            return self.recipe.price.cost_usd(1, 1) > 0
        return any(map(licenses.is_public, self.recipe.backend.endpoints))

    @property
    def is_large(self) -> bool:
        """Whether it may cost more, or ask a paid API for more, than one would by mistake."""
        config, cost = self.recipe.config, self.own_cost_usd or Interval()
        return self.is_charged and any(
            high > bound and (most is None or most > bound)
            for high, most, bound in (
                (self.total("left").high, config.max_requests, _LARGE_REQUESTS),
                (cost.high, config.max_cost, _LARGE_USD),
            )
        )

    def line(self) -> str:
        """How many requests, what is stored of them, and what the rest costs, in one line."""
        stored, cost = self.total("stored"), self.own_cost_usd
        to = f"{count_of(self.requests, 'request')} to {self.recipe.backend.model}"
        said = [f"{to}, {format_whole(stored)} stored"]
        if not self.total("left").high:
            return f"{said[0]}: none is left to send"
        if cost is None:
            said.append("cost unknown" + " (--price_in, --price_out)" * self.is_charged)
        else:
            said.append(f"cost {format_interval(cost, format_usd)}" if cost.high else "no cost")
        if self.recipe.config.check == "reask":
            said.append(ASKED_TWICE)
        if bound := self.stops_at:
            said.append(f"stops at {bound}")
        return ", ".join(said)

    def as_json(self) -> dict[str, Any]:
        """A number where it is known exactly, ``[low, high]`` where not, None where unknown."""

        def figures(parts: Sequence[Part]) -> dict[str, Any]:
            only = replace(self, parts=tuple(parts))
            return {
                "requests": only.requests,
                "stored": only.total("stored").plain(),
                "prompt_tokens": only.total("prompt_tokens").plain(),
                "completion_tokens": only.total("completion_tokens").plain(),
            }

        types = dict.fromkeys(part.type for part in self.parts)
        return {
            **figures(self.parts),
            "cost_usd": None if self.cost_usd is None else self.cost_usd.plain(6),
            "batch_cost_usd": None if self.batch_cost_usd is None else self.batch_cost_usd.plain(6),
            "seconds": None if self.seconds is None else self.seconds.plain(1),
            "stops_at": self.stops_at,
            "left": {
                "requests": self.total("left").plain(),
                "prompt_tokens": self.total("prompt_tokens_left").plain(),
                "completion_tokens": self.total("completion_tokens_left").plain(),
            },
            "too_long": self.total("too_long").plain(),
            "types": {name: figures([p for p in self.parts if p.type == name]) for name in types},
            "model": self.recipe.backend.model,
            "token_error": self.token_error,
            "sampled": sum(p.looked_at for p in self.parts) if self.sampled else None,
            "price": None
            if self.recipe.price is None
            else {
                "in": self.recipe.price.usd_per_prompt_token * 1e6,
                "out": self.recipe.price.usd_per_completion_token * 1e6,
                "origin": self.recipe.price.origin,
            },
        }


def estimate(
    found: Found, *, exact: bool = False, requests_per_second: float | None = None
) -> Estimate:
    """What asking for all of it would take.

    Args:
        found: each recipe with the requests of its splits; all of one model.
        exact: look at every request, however many there are.
        requests_per_second: throughput to expect.

    Raises:
        UsageError: an argument is wrong.
        StoreError: the response store can't be read.
    """
    if requests_per_second is not None and not requests_per_second > 0:
        raise UsageError(f"requests_per_second: expected more than 0, got {requests_per_second}")
    backend = found[0][0].backend
    estimated = _estimate(found, backend, backend, _ALL if exact else _Sizes())
    return replace(estimated, requests_per_second=requests_per_second)


def glance(found: Found) -> Estimate:
    """As `estimate`, within a moment and with wider intervals; no server is asked.

    Nor is a model in this process, which may take long to load, and costs nothing: of its answers
    it is known how many there are of a kind.

    Raises:
        StoreError: the response store can't be read.
    """
    recipe = found[0][0]
    sizes = _GLANCE if isinstance(recipe.backend, Remote) else _NONE
    by_guess = _ByGuess(recipe.config.context_window)
    return _estimate(found, by_guess, by_guess, sizes)


def _estimate(found: Found, fitted: Counting, counted: Counting, sizes: _Sizes) -> Estimate:
    recipe = found[0][0]
    asked = [
        (of, name, requests.select(range(number * size, (number + 1) * size)))
        for of, splits in found
        for requests in splits
        for size in [len(requests) // len(of.types)]
        for number, name in enumerate(of.types)
    ]
    look_at_all = sum(len(requests) for *_, requests in asked) <= sizes.all_up_to
    size = max(sizes.sample_of_type, sizes.sample // max(1, len(asked)))
    with ResponseStore(recipe.store, read_only=True) as store:
        look = _Look(identities_of(recipe.backend), fitted, counted, store, sizes.pilot)
        parts = tuple(
            _part(look, of.plan, name, requests, len(requests) if look_at_all else size)
            for of, name, requests in asked
        )
        return Estimate(parts, recipe, counted.token_error, len(store))


def _per_second(per_minute: float | None) -> float | None:
    return None if per_minute is None else per_minute / 60


@dataclass(frozen=True, slots=True)
class _Seen:
    """A request as it would be sent; without tokens if it fits no window."""

    tokens: int
    fits: bool
    repeated: bool
    stored: Completion | None


@dataclass(frozen=True, slots=True)
class _ByGuess:
    """Counts as for a model that nothing is known about, and sends no prompt to be counted."""

    context_window: int | None
    token_error: float = ROUGH_ERROR

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return rough_tokens(messages)


@dataclass
class _Look:
    """What requests are looked at with, and the keys of those seen before."""

    identities: Sequence[Mapping[str, str]]
    fitted: Counting  # what prompts have to fit
    counted: Counting  # what counts their tokens
    store: ResponseStore
    pilot: int
    keys: set[bytes] = field(default_factory=set)

    def at(self, requests: datasets.Dataset, plan: Plan) -> Iterator[_Seen]:
        """Each request, in their order."""
        for start in range(0, len(requests), _CHUNK):
            some = requests.select(range(start, min(start + _CHUNK, len(requests))))
            attempts = [Attempt(job, self.fitted, self.identities[0]) for job in jobs(some, plan)]
            found = find_stored(self.store, attempts, self.identities)
            for attempt, stored in zip(attempts, found, strict=True):
                if attempt.key is None or attempt.prompt is None:
                    yield _Seen(0, False, False, None)
                    continue
                tokens = self.counted.count_tokens(attempt.prompt.messages)
                yield _Seen(tokens, True, attempt.key in self.keys, stored)
                self.keys.add(attempt.key)


def _part(look: _Look, plan: Plan, name: str, requests: datasets.Dataset, size: int) -> Part:
    """The figures of one type, from ``size`` of its requests."""
    total = len(requests)
    chosen = spread_sample(total, size, seed=name)
    seen = list(look.at(requests.select(chosen), plan))
    pilot: list[_Seen] = []
    if len(chosen) < total:
        # A trial run with --limit leaves its answers here, where a sample would hardly hit them.
        pilot = list(look.at(requests.select(range(min(look.pilot, total))), plan))
    lengths = look.store.lengths(
        Scope(plan.config.hash, name, plan.model, plan.sampling.max_tokens)
    )
    each = _answer_length(look.counted, plan, name, lengths)
    scale, scaled_by = _scale([*seen, *pilot], look.counted.token_error)
    if len(chosen) == total:
        figures = _figures_of_all(seen, scale, each)
    else:
        most_stored = len(look.store) if chosen else lengths.count
        figures = _figures_of_sample(seen, pilot, total, most_stored, scale, each)
    return Part(
        type=name,
        requests=total,
        looked_at=len(chosen),
        scaled_by=scaled_by,
        answers=lengths.count if lengths.count >= FEWEST_ANSWERS else 0,
        **figures,
    )


_Length = Callable[[Interval], Interval]


def _figures_of_all(seen: Sequence[_Seen], scale: Interval, length: _Length) -> dict[str, Interval]:
    """The figures where every request was looked at."""
    fitting = [one for one in seen if one.fits]
    left = [one for one in fitting if one.stored is None and not one.repeated]
    known = [
        one.stored.completion_tokens
        for one in fitting
        if one.stored is not None and one.stored.completion_tokens is not None
    ]
    return {
        "stored": exactly(sum(one.stored is not None for one in seen)),
        "too_long": exactly(len(seen) - len(fitting)),
        "left": exactly(len(left)),
        "prompt_tokens": exactly(sum(one.tokens for one in fitting)).times(scale),
        "prompt_tokens_left": exactly(sum(one.tokens for one in left)).times(scale),
        "completion_tokens": exactly(sum(known)) + length(exactly(len(fitting) - len(known))),
        "completion_tokens_left": length(exactly(len(left))),
    }


def _figures_of_sample(
    seen: Sequence[_Seen],
    pilot: Sequence[_Seen],
    total: int,
    most_stored: int,
    scale: Interval,
    length: _Length,
) -> dict[str, Interval]:
    """The figures where a sample was looked at, and the first few requests."""
    fit = [one.fits for one in seen]
    too_long = Interval() if all(fit) else estimate_count([not one for one in fit], total)
    stored = estimate_count([one.stored is not None for one in seen], total)
    found = sum(one.stored is not None for one in pilot)
    # A sample without a hit says little; how much there is in the store at all says more.
    most = min(max(stored.high, found), most_stored)
    stored = Interval(min(max(stored.low, found), most), most)
    left = Interval(max(0.0, total - stored.high - too_long.high), total - stored.low)
    fitting = Interval(total - too_long.high, total - too_long.low)
    tokens = estimate_mean([one.tokens for one in seen if one.fits]).times(scale)
    return {
        "stored": stored,
        "too_long": too_long,
        "left": left,
        "prompt_tokens": fitting.times(tokens),
        "prompt_tokens_left": left.times(tokens),
        "completion_tokens": length(fitting),
        "completion_tokens_left": length(left),
    }


def _scale(seen: Iterable[_Seen], error: float | None) -> tuple[Interval, int]:
    """By what counts have to be multiplied, and the number of stored answers that this is from.

    A server's own usage figures put a count right that is not exact.
    """
    ratios = [
        one.stored.prompt_tokens / one.tokens
        for one in seen
        if one.stored is not None and one.stored.prompt_tokens and one.tokens
    ]
    if error == 0.0:
        return exactly(1.0), 0
    if len(ratios) >= FEWEST_ANSWERS:
        found = estimate_mean(ratios)
        if error is None or error > NEGLIGIBLE or abs(found.low - 1) > error:
            return found, len(ratios)
    if error is None or error <= NEGLIGIBLE:
        return exactly(1.0), 0
    return Interval(1 - error, 1 + error), 0


def _answer_length(counted: Counting, plan: Plan, name: str, lengths: Lengths) -> _Length:
    """Gives the tokens of so many answers; from finished ones, or else from the type's examples."""
    if lengths.count < FEWEST_ANSWERS:
        return _example_length(counted, plan, name).times
    most = plan.sampling.max_tokens
    mean = lengths.total / lengths.count
    variance = max(0.0, lengths.squares - lengths.count * mean**2) / (lengths.count - 1)

    def half(answers: float) -> float:
        spread = variance * (answers + answers**2 / lengths.count)
        return t_quantile(lengths.count - 1) * math.sqrt(spread)

    def total(count: Interval) -> Interval:
        low = count.low * mean - half(count.low)
        high = count.high * mean + half(count.high)
        return Interval(max(0.0, low), min(high, count.high * most))

    return total


def _example_length(counted: Counting, plan: Plan, name: str) -> Interval:
    """Tokens that an answer may have, going by the few-shot examples of its type."""
    kind, most = plan.config.types[name], plan.sampling.max_tokens
    empty = counted.count_tokens([Message("user", "")])
    lengths = [
        counted.count_tokens([Message("user", example.answer())]) - empty
        for example in kind.examples
    ]
    low = min(lengths) / 2 if lengths else kind.min_words
    high = 1.5 * max(lengths) if lengths else most
    return Interval(min(low, most), min(high, most))
