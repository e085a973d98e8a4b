"""Prices: whose they are, where none is known, and what is said then."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import time, timezone
from decimal import Decimal

import pytest
from genai_prices import data_snapshot
from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    TimeOfDateConstraint,
)

from mminstruct.completions.prices import price_of
from mminstruct.errors import UsageError

OPENAI = "https://api.openai.com/v1"


def test_a_model_of_openai_at_openai_has_its_listed_price_and_half_of_it_in_batches() -> None:
    price = price_of("gpt-4o-mini", [OPENAI])
    assert price is not None
    # 0.15 and 0.60 USD per million tokens since the model came out.
    assert price.cost_usd(1_000_000, 0) == pytest.approx(0.15)
    assert price.cost_usd(0, 1_000_000) == pytest.approx(0.60)
    assert price.batch_cost_usd(2_000_000, 1_000_000) == pytest.approx(0.45)
    assert price.origin.startswith("price list of genai-prices ")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/v1", "https://llm.example.org/v1", "https://openai.example/v1"]
)
def test_a_server_of_ones_own_has_no_price_whatever_its_model_is_called(url: str) -> None:
    assert price_of("gpt-4o-mini", [url]) is None


def test_another_provider_has_a_price_of_its_own_and_no_batches() -> None:
    price = price_of("openai/gpt-4o-mini", ["https://openrouter.ai/api/v1"])
    assert price is not None
    assert price.cost_usd(1, 1) > 0
    assert price.batch_cost_usd(1, 1) is None


@pytest.mark.parametrize("model", ["", "no-such-model", "org/model", "ft:gpt-4o-mini:acme::1"])
def test_a_model_that_the_list_lacks_has_no_known_price(model: str) -> None:
    assert price_of(model, [OPENAI]) is None


@pytest.fixture
def listed() -> Iterator[list[ModelInfo]]:
    """The models of the one provider on a price list of our own."""
    models: list[ModelInfo] = []
    provider = Provider("here", "Here", "https://here\\.example", models=models)
    data_snapshot.set_custom_snapshot(data_snapshot.DataSnapshot([provider], False))
    yield models
    data_snapshot.set_custom_snapshot(None)


def usd(prompt: str | None, completion: str | None) -> ModelPrice:
    prices = {"input_mtok": prompt, "output_mtok": completion}
    return ModelPrice(**{name: Decimal(price) for name, price in prices.items() if price})


@pytest.mark.parametrize("hour", [0, 7, 12, 15, 23])
def test_a_price_is_that_of_the_dearest_hour_whatever_the_hour_is(
    hour: int, listed: list[ModelInfo]
) -> None:
    usual = ConditionalPrice(prices=usd("1", "4"))
    first, last = time(hour, 30, tzinfo=timezone.utc), time((hour + 1) % 24, tzinfo=timezone.utc)
    dear = ConditionalPrice(TimeOfDateConstraint(first, last), prices=usd("2", "3"))
    listed.append(ModelInfo("m", ClauseEquals("m"), prices=[usual, dear]))
    price = price_of("m", ["https://here.example/v1"])
    assert price is not None
    assert price.cost_usd(1_000_000, 0) == pytest.approx(2.0)
    assert price.cost_usd(0, 1_000_000) == pytest.approx(4.0)
    assert price.origin.endswith(", at the dearest hour of the day")
    assert price.batch_cost_usd(1, 1) is None


def test_prices_that_are_the_same_all_day_say_nothing_of_hours() -> None:
    price = price_of("gpt-4o-mini", [OPENAI])
    assert price is not None
    assert "hour" not in price.origin


@pytest.mark.parametrize("prices", [usd("1", None), usd(None, "1")], ids=["prompt", "answer"])
def test_a_model_with_half_a_price_on_the_list_has_no_known_price(
    prices: ModelPrice, listed: list[ModelInfo]
) -> None:
    listed.append(ModelInfo("m", ClauseEquals("m"), prices=prices))
    assert price_of("m", ["https://here.example/v1"]) is None


def test_a_model_that_the_list_has_without_any_price_is_free(listed: list[ModelInfo]) -> None:
    listed.append(ModelInfo("m", ClauseEquals("m"), prices=ModelPrice()))
    price = price_of("m", ["https://here.example/v1"])
    assert price is not None
    assert price.cost_usd(1, 1) == 0.0


def test_of_several_servers_the_dearest_counts() -> None:
    routers = [
        f"https://router.huggingface.co/{provider.id.removeprefix('huggingface_')}/v1"
        for provider in data_snapshot.get_snapshot().providers
        if provider.id.startswith("huggingface_")
    ]
    model = "openai/gpt-oss-120b"
    prices = {
        url: price.cost_usd(1, 1)
        for url in routers
        if (price := price_of(model, [url])) is not None
    }
    cheap, dear = min(prices, key=prices.__getitem__), max(prices, key=prices.__getitem__)
    assert prices[cheap] < prices[dear]
    for urls in ([cheap, dear], [dear, cheap]):
        both = price_of(model, urls)
        assert both is not None
        assert both.cost_usd(1, 1) == prices[dear]


def test_one_server_of_unknown_price_makes_the_price_unknown() -> None:
    assert price_of("gpt-4o-mini", [OPENAI, "http://127.0.0.1:8000/v1"]) is None


def test_a_model_in_this_process_costs_nothing() -> None:
    price = price_of("anything.gguf", [])
    assert price is not None
    assert price.cost_usd(1e9, 1e9) == 0.0
    assert price.batch_cost_usd(1, 1) is None


def test_prices_that_are_given_go_before_the_list() -> None:
    price = price_of("gpt-4o-mini", [OPENAI], price_in=2.0, price_out=8.0)
    assert price is not None
    assert price.cost_usd(1_000_000, 1_000_000) == pytest.approx(10.0)
    assert price.batch_cost_usd(1_000_000, 1_000_000) == pytest.approx(5.0)
    at_home = price_of("m", ["http://127.0.0.1:1/v1"], price_in=0.0, price_out=1.0)
    assert at_home is not None
    assert at_home.cost_usd(5, 1_000_000) == pytest.approx(1.0)
    assert at_home.batch_cost_usd(1, 1) is None


@pytest.mark.parametrize("given", [{"price_in": 1.0}, {"price_out": 1.0}])
def test_half_a_price_is_a_usage_error(given: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"price_in, price_out: expected both.* give the other"):
        price_of("gpt-4o-mini", [OPENAI], **given)
