"""What a token costs, from the price list that the package ``genai-prices`` ships.

The list is the one in the installed package: nothing is fetched, and upgrading the package updates
it. A price belongs to the server that asks for it, not to the model's name: a server that the list
doesn't know has no known price, whatever its models are called. Where prices change with the hour,
the dearest of a day counts, so that a bound on costs holds whenever a run starts.

**Source:** https://github.com/pydantic/genai-prices (MIT)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from importlib.metadata import version

from mminstruct.errors import UsageError

_MILLION = 1_000_000
# Some prices rise with the length of a prompt; ours are short.
_TOKENS = 1000
_BATCH_DISCOUNT = 0.5
# Hours at which the list changes a price are full or half ones.
_HALF_HOURS = [timedelta(minutes=30) * number for number in range(48)]
_OFFICIAL = "https://api.openai.com/"


@dataclass(frozen=True, slots=True)
class Price:
    """What a model's tokens cost, and how that is known.

    Attributes:
        usd_per_prompt_token: of what is sent.
        usd_per_completion_token: of what is answered.
        origin: in words.
        batch: prompt's and completion's price through the Batch API; None where there is none.
    """

    usd_per_prompt_token: float
    usd_per_completion_token: float
    origin: str
    batch: tuple[float, float] | None = None

    def tokens_usd(self, *, batch: bool) -> tuple[float, float]:
        """The price of a prompt's and a completion's token; the usual one if batches have none."""
        usual = self.usd_per_prompt_token, self.usd_per_completion_token
        return self.batch or usual if batch else usual

    def cost_usd(self, prompt_tokens: float, completion_tokens: float) -> float:
        """What so many tokens cost."""
        return (
            prompt_tokens * self.usd_per_prompt_token
            + completion_tokens * self.usd_per_completion_token
        )

    def batch_cost_usd(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """What they cost through the Batch API, or None where there is none."""
        if self.batch is None:
            return None
        return prompt_tokens * self.batch[0] + completion_tokens * self.batch[1]


def price_of(
    model: str,
    endpoints: Sequence[str],
    *,
    price_in: float | None = None,
    price_out: float | None = None,
) -> Price | None:
    """The price of a model at its servers, or None if it isn't known.

    A model in this process (no endpoint) costs 0: nobody charges for its tokens. Of several servers
    the dearest counts.

    Args:
        model: its name there.
        endpoints: base URLs; none is in process.
        price_in: USD per million prompt tokens, if the user says so; goes before the list.
        price_out: likewise for completion tokens.

    Raises:
        UsageError: only one of the two prices is given.
    """
    if price_in is not None and price_out is not None:
        batch = bool(endpoints) and all(url.startswith(_OFFICIAL) for url in endpoints)
        return Price(
            price_in / _MILLION,
            price_out / _MILLION,
            "as given",
            (price_in * _BATCH_DISCOUNT / _MILLION, price_out * _BATCH_DISCOUNT / _MILLION)
            if batch
            else None,
        )
    if price_in is not None or price_out is not None:
        raise UsageError(
            "price_in, price_out: expected both, in USD per million tokens, got one; give the other"
        )
    if not endpoints:
        return Price(0.0, 0.0, "it runs in this process")
    prices = [_look_up(model, url) for url in endpoints]
    known = [price for price in prices if price is not None]
    if len(known) < len(prices):
        return None
    return max(known, key=lambda price: price.cost_usd(1, 1))


def _look_up(model: str, url: str) -> Price | None:
    """The price that the list gives for a model at a server."""
    usual = _find_dearest(model, url, {})
    if usual is None:
        return None
    (prompt, completion), changes = usual
    batch = _find_dearest(model, url, {"processing": "batch"})
    origin = f"price list of genai-prices {version('genai-prices')}"
    return Price(
        prompt,
        completion,
        f"{origin}, at the dearest hour of the day" if changes else origin,
        # Where the list has no such price, it answers with the usual one.
        batch=batch[0] if batch is not None and batch != usual else None,
    )


def _find_dearest(
    model: str, url: str, context: dict[str, str]
) -> tuple[tuple[float, float], bool] | None:
    """What a prompt's and a completion's token cost at most today, and whether that changes."""
    hour = datetime.now(timezone.utc).replace(minute=0, second=0, microsecond=0)
    prices = {_calculate(model, url, context, hour + later) for later in _HALF_HOURS}
    known = [price for price in prices if price is not None]
    if len(known) < len(prices):
        return None
    prompts, completions = zip(*known, strict=True)
    return (max(prompts), max(completions)), len(known) > 1


def _calculate(
    model: str, url: str, context: dict[str, str], when: datetime
) -> tuple[float, float] | None:
    from genai_prices import Usage, calc_price
    from genai_prices.types import ModelPrice

    try:
        price = calc_price(
            Usage(input_tokens=_TOKENS, output_tokens=_TOKENS),
            model,
            provider_api_url=url,
            genai_request_timestamp=when,
            price_context=context,
        )
    except LookupError:
        return None
    if price.total_price != price.input_price + price.output_price:
        return None  # there is a charge for each request, too
    listed = price.model_price
    if listed != ModelPrice() and None in (listed.input_mtok, listed.output_mtok):
        return None  # what the list leaves out it counts as 0; free models have no price at all
    return float(price.input_price) / _TOKENS, float(price.output_price) / _TOKENS
