"""What a run may spend, and has spent."""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from filelock import FileLock

from mminstruct.backends import Backend, most_tokens
from mminstruct.errors import (
    RunStopped,
)
from mminstruct.resources import count_of, shown
from mminstruct.schema import Completion, Request


@dataclass(slots=True)
class Spent:
    """What a run has paid for, and what may still be added by the requests in flight.

    Attributes:
        requests: attempts that were paid for.
        usd: their price.
        in_flight: attempts whose end isn't known yet.
        reserved_usd: what those cost at most.
    """

    requests: int = 0
    usd: float = 0.0
    in_flight: int = 0
    reserved_usd: float = 0.0

    def add(self, most_usd: float) -> None:
        """One more attempt of at most this price is in flight."""
        self.in_flight += 1
        self.reserved_usd += most_usd


@dataclass
class Budget:
    """The most that a run may ask for; one object for all its splits.

    An attempt is admitted only if what was spent, the worst case of all in flight and its own
    fit, so that the bound holds whatever the answers' lengths.

    Attributes:
        max_requests: attempts that are paid for at most; None is any number.
        max_cost_usd: their price at most; None is any.
        usd_per_prompt_token: price.
        usd_per_completion_token: price.
        ledger: file that the totals are kept in where several processes share them; else None.
    """

    max_requests: int | None = None
    max_cost_usd: float | None = None
    usd_per_prompt_token: float = 0.0
    usd_per_completion_token: float = 0.0
    ledger: Path | None = None
    _spent: Spent = field(default_factory=Spent, init=False)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        """All but the lock, which is each process's own."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    @property
    def bounded(self) -> bool:
        """Whether there is a bound at all."""
        return self.max_requests is not None or self.max_cost_usd is not None

    @property
    def spent(self) -> Spent:
        """The totals by now."""
        with self._totals() as totals:
            return totals

    def cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The price of an answer."""
        return (
            prompt_tokens * self.usd_per_prompt_token
            + completion_tokens * self.usd_per_completion_token
        )

    @property
    def left(self) -> float:
        """The share of the bound that is neither spent nor reserved, from 1 down to 0."""
        spent, shares = self.spent, [1.0]
        for bound, used in (
            (self.max_requests, spent.requests + spent.in_flight),
            (self.max_cost_usd, spent.usd + spent.reserved_usd),
        ):
            if bound is not None:
                shares.append(max(0.0, 1.0 - used / bound) if bound else 0.0)
        return min(shares)

    def admit(self, most_usd: float) -> bool:
        """Whether one more attempt of at most this price fits; if so, it is in flight now."""
        with self._totals() as totals:
            if is_in := self._fits(totals, most_usd):
                totals.add(most_usd)
        return is_in

    def is_used_up(self, most_usd: float) -> bool:
        """Whether one more attempt doesn't fit, and nothing is in flight that may leave room."""
        with self._totals() as totals:
            return not totals.in_flight and not self._fits(totals, most_usd)

    def _fits(self, totals: Spent, most_usd: float) -> bool:
        requests, most = totals.requests + totals.in_flight, totals.usd + totals.reserved_usd
        if self.max_requests is not None and requests >= self.max_requests:
            return False
        # Sums of prices are exact to the picodollar at best.
        return self.max_cost_usd is None or most + most_usd <= self.max_cost_usd + 1e-12

    def count(self, most_usd: float) -> None:
        """One more attempt is in flight, whether it fits or not: it was sent before."""
        with self._totals() as totals:
            totals.add(most_usd)

    def settle(self, most_usd: float, paid_usd: float | None) -> None:
        """The end of an admitted attempt: its price, or None if it cost nothing."""
        with self._totals() as totals:
            totals.in_flight -= 1
            totals.reserved_usd = max(0.0, totals.reserved_usd - most_usd)
            if paid_usd is not None:
                totals.requests += 1
                totals.usd += paid_usd

    def reached(self, what: str = "the next request would exceed") -> str:
        """The bound, in words, what was spent and how to go on."""
        bounds = []
        if self.max_requests is not None:
            bounds.append(f"max_requests {self.max_requests:,}")
        if self.max_cost_usd is not None:
            bounds.append(f"max_cost ${self.max_cost_usd:,.4g}")
        spent = self.spent
        paid = count_of(spent.requests, "request")
        if self.max_cost_usd is not None or spent.usd:
            paid += f" for ${spent.usd:,.4f}"
        return (
            f"{what} {' or '.join(bounds)}: this run paid for {paid}; "
            "run again with a fresh or higher bound to go on from there"
        )

    @contextlib.contextmanager
    def _totals(self) -> Iterator[Spent]:
        """The totals, to be read and changed by nobody else meanwhile."""
        with self._lock:
            if self.ledger is None:
                yield self._spent
                return
            try:
                with FileLock(self.ledger.with_suffix(".lock")):
                    totals = Spent()
                    if self.ledger.exists():
                        totals = Spent(**json.loads(self.ledger.read_text("utf-8")))
                    yield totals
                    # At one blow: whoever is killed here leaves a whole one.
                    new = self.ledger.with_suffix(".new")
                    new.write_text(json.dumps(asdict(totals)), encoding="utf-8")
                    new.replace(self.ledger)
            except OSError as error:
                raise RunStopped(
                    f"what was spent can't be written to {shown(self.ledger)}: {error.strerror}; "
                    "the bound could not be kept to"
                ) from error


def worst_case_usd(budget: Budget, backend: Backend, request: Request) -> float:
    """What a request costs at most, in USD; 0 where no cost is bounded."""
    if budget.max_cost_usd is None:
        return 0.0
    if backend.token_error is None:
        tokens = most_tokens(backend, request.messages)
    else:
        tokens = math.ceil(backend.count_tokens(request.messages) * (1 + backend.token_error))
    return budget.cost_usd(tokens, request.sampling.max_tokens)


def price_usd(budget: Budget | None, completion: Completion, most_usd: float) -> float:
    """What an answer cost, or cost at most where the engine doesn't count its tokens."""
    prompt, answer = completion.prompt_tokens, completion.completion_tokens
    if budget is None or prompt is None or answer is None:
        return most_usd
    return budget.cost_usd(prompt, answer)


def used_tokens(completion: Completion) -> float | None:
    """Tokens of prompt and answer together, if the server counted them."""
    prompt, answer = completion.prompt_tokens, completion.completion_tokens
    return None if prompt is None or answer is None else float(prompt + answer)
