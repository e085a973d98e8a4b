"""Nothing stale and nothing twice: what gets new answers, and what costs nothing again."""

from __future__ import annotations

import itertools
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from conftest import coco_files
from dummy_data import write_all
from loopback import LoopbackServer, chat_completion, turns_for

import mminstruct  # registers the builders
from mminstruct import prompts, sources
from mminstruct.builder import IncompleteWarning, make
from mminstruct.rows.plan import code_version, digest_of_code

IMAGES = 6
REQUESTS = 3 * IMAGES


class Loader:
    """Loads the dataset as a user does, in caches of its own.

    Attributes:
        sent: requests that the last call cost.
    """

    def __init__(self, folder: Path, server: LoopbackServer) -> None:
        self._folder = folder
        self._server = server
        self.sent: list[dict[str, Any]] = []

    def __call__(self, data: Path, **options: Any) -> datasets.Dataset:
        """The rows of the train split."""
        self._server.bodies.clear()
        rows = datasets.load_dataset(
            "builders/coco2017_llava",
            split="train",
            **{
                "data_dir": str(data),
                "cache_dir": str(self._folder / "cache"),
                "response_store": str(self._folder / "r.sqlite"),
                "backend": "openai",
                "base_url": self._server.url,
                "model": "m",
                **options,
            },
        )
        self.sent = list(self._server.bodies)
        return rows


@pytest.fixture(autouse=True)
def progress_is_silent() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def load(tmp_path: Path, server: LoopbackServer) -> Loader:
    return Loader(tmp_path, server)


def texts(rows: datasets.Dataset) -> dict[str, str]:
    """All that was said, by the row's id."""
    return {row["id"]: str(row["messages"]) for row in rows}


def test_loading_again_sends_nothing_and_gives_the_same_rows(
    load: Loader, tiny_coco: Path, tmp_path: Path
) -> None:
    first = load(tiny_coco)
    assert len(load.sent) == REQUESTS
    again = load(tiny_coco)
    assert load.sent == []
    # Neither is anything sent where only the store is left.
    from_store = load(tiny_coco, cache_dir=str(tmp_path / "another"))
    assert load.sent == []
    assert list(again) == list(from_store) == list(first)


@pytest.mark.parametrize(
    "options",
    [
        {"max_concurrency": 3},
        {"timeout_s": 30.0},
        {"max_retries": 1},
        {"max_concurrency": 1, "timeout_s": 5.0, "max_retries": 0},
    ],
    ids=str,
)
def test_how_to_run_changes_no_row_and_costs_nothing(
    load: Loader, tiny_coco: Path, options: dict[str, Any]
) -> None:
    first = load(tiny_coco)
    again = load(tiny_coco, **options)
    assert load.sent == []
    assert again.cache_files == first.cache_files


@pytest.mark.parametrize(
    "options",
    [
        {"model": "another"},
        {"temperature": 0.1},
        {"top_p": 0.5},
        {"max_tokens": 900},
        {"seed": 1},
    ],
    ids=str,
)
def test_another_model_or_sampling_value_gets_new_answers(
    load: Loader, server: LoopbackServer, tiny_coco: Path, options: dict[str, Any]
) -> None:
    load(tiny_coco)
    server.answer = lambda server, body: chat_completion(f"{turns_for(body)} This one is new.")
    rows = load(tiny_coco, **options)
    assert len(load.sent) == len(rows) == REQUESTS
    assert all("This one is new." in text for text in texts(rows).values())
    load(tiny_coco, **options)
    assert load.sent == []
    # And the old ones are still there.
    old = load(tiny_coco)
    assert load.sent == []
    assert not any("This one is new." in text for text in texts(old).values())


def test_another_endpoint_gets_new_answers(load: Loader, tiny_coco: Path) -> None:
    load(tiny_coco)
    answer = lambda server, body: chat_completion(f"{turns_for(body)} From elsewhere.")  # noqa: E731
    with LoopbackServer(answer) as elsewhere:
        rows = load(tiny_coco, base_url=elsewhere.url)
        assert len(elsewhere.bodies) == len(rows) == REQUESTS
    assert load.sent == []
    assert all("From elsewhere." in text for text in texts(rows).values())


def test_another_spelling_of_the_endpoint_is_the_same_one(
    load: Loader, server: LoopbackServer, tiny_coco: Path
) -> None:
    load(tiny_coco)
    for url in (f"{server.url}/", server.url.removesuffix("/v1"), f"{server.url}?token=abc"):
        load(tiny_coco, base_url=url)
        assert load.sent == []


def test_a_service_that_is_entered_later_is_named_in_rows_without_new_answers(
    load: Loader, tiny_coco: Path, tmp_path: Path
) -> None:
    entries = tmp_path / "mine.yaml"
    entry = (
        "endpoints: [{id: mine, name: mine, hosts: [%s], own_models: false, terms: null,"
        " source_url: https://example.org, checked_on: 2026-01-01}]"
    )
    named = []
    for host in ("elsewhere.example", "127.0.0.1"):
        entries.write_text(entry % host)
        rows = load(tiny_coco, licenses=str(entries))
        named.append({row["provenance"]["endpoint"] for row in rows})
    assert load.sent == []
    assert named[0] != named[1] and "127.0.0.1" in str(named[1])


def test_a_changed_caption_costs_its_images_requests_and_no_other(
    load: Loader, tmp_path: Path
) -> None:
    def edit(captions: dict[str, Any], instances: dict[str, Any]) -> None:
        captions["annotations"][4]["caption"] = "Something else altogether."

    before = load(coco_files(tmp_path / "coco", IMAGES))
    after = load(coco_files(tmp_path / "coco", IMAGES, edit=edit))
    assert len(load.sent) == 3
    assert all("else altogether" in b["messages"][-1]["content"] for b in load.sent)
    changed = {i for i, text in texts(after).items() if text != texts(before)[i]}
    assert {i.split("-")[1] for i in changed} == {"000000000003"}
    assert len(changed) == 3


def test_a_moved_box_costs_its_images_requests_and_no_other(load: Loader, tmp_path: Path) -> None:
    def edit(captions: dict[str, Any], instances: dict[str, Any]) -> None:
        instances["annotations"][0]["bbox"] = [300.0, 100.0, 50.0, 60.0]

    load(coco_files(tmp_path / "coco", IMAGES))
    shown_boxes = sum("dog" in b["messages"][-1]["content"] for b in load.sent) // IMAGES
    load(coco_files(tmp_path / "coco", IMAGES, edit=edit))
    assert 0 < len(load.sent) == shown_boxes


def test_one_image_more_costs_its_own_requests_and_no_other(load: Loader, tmp_path: Path) -> None:
    before = load(coco_files(tmp_path / "coco", IMAGES))
    after = load(coco_files(tmp_path / "coco", IMAGES + 1))
    assert len(load.sent) == 3
    assert all(f"scene {IMAGES + 1}," in b["messages"][-1]["content"] for b in load.sent)
    assert len(after) == REQUESTS + 3
    assert texts(before).items() <= texts(after).items()


def test_a_split_of_the_work_costs_nothing_twice(load: Loader, tiny_coco: Path) -> None:
    load(tiny_coco, limit=2)
    assert len(load.sent) == 6
    load(tiny_coco, types=["conversation"])
    assert len(load.sent) == IMAGES - 2
    load(tiny_coco)
    assert len(load.sent) == REQUESTS - 6 - (IMAGES - 2)


@pytest.mark.parametrize(
    ("change", "cost"),
    [
        (lambda text: text + "\n# a comment\n", 0),
        (lambda text: _reworded(text), REQUESTS),
    ],
    ids=["comment", "wording"],
)
def test_an_edited_prompt_config_gets_new_answers_where_the_prompt_changes(
    load: Loader, tiny_coco: Path, tmp_path: Path, change: Callable[[str], str], cost: int
) -> None:
    path = tmp_path / "mine.yaml"
    shipped = prompts.find("llava").read_text(encoding="utf-8")
    original = shipped.replace("name: llava", "name: mine", 1)
    path.write_text(original, encoding="utf-8")
    load(tiny_coco, prompt_config=str(path))
    assert len(load.sent) == REQUESTS
    path.write_text(change(original), encoding="utf-8")
    assert len(load(tiny_coco, prompt_config=str(path))) == REQUESTS
    assert len(load.sent) == cost


def _reworded(text: str) -> str:
    """A config whose system prompts all say one thing more."""
    lines = []
    for line in text.splitlines():
        lines.append(line)
        if line.strip().startswith("system:"):
            indent = len(line) - len(line.lstrip()) + 2
            lines.append(" " * indent + "Be brief in everything you write.")
    assert len(lines) > len(text.splitlines())
    return "\n".join(lines) + "\n"


def test_one_refusal_costs_one_row_and_one_attempt_and_is_asked_for_again_later(
    load: Loader, server: LoopbackServer, tiny_coco: Path
) -> None:
    well = server.answer

    def answer(server: LoopbackServer, body: dict[str, Any]) -> Any:
        if "scene 4," in body["messages"][-1]["content"] and "Question:" not in str(body):
            return (400, {}, {"error": {"message": "not this one"}})
        return well(server, body)

    server.answer = answer
    with pytest.warns(IncompleteWarning, match=r"failed \(refused \d\). Load again"):
        rows = load(tiny_coco)
    assert len(rows) == REQUESTS - 1
    assert len(load.sent) == REQUESTS

    # It is still refused: one more attempt, and the same rows.
    with pytest.warns(IncompleteWarning):
        again = load(tiny_coco)
    assert len(load.sent) == 1
    assert list(again) == list(rows)

    # The server has recovered.
    server.answer = well
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = load(tiny_coco)
    assert len(load.sent) == 1
    assert len(whole) == REQUESTS
    assert texts(rows).items() <= texts(whole).items()
    load(tiny_coco)
    assert load.sent == []


def test_an_answer_that_gives_no_row_is_paid_for_once(
    load: Loader, server: LoopbackServer, tiny_coco: Path
) -> None:
    well = server.answer
    server.answer = lambda server, body: (
        chat_completion("No.")
        if "scene 4," in body["messages"][-1]["content"]
        else well(server, body)
    )
    assert len(load(tiny_coco)) == REQUESTS - 3
    assert len(load.sent) == REQUESTS
    assert len(load(tiny_coco)) == REQUESTS - 3
    assert load.sent == []


def test_equal_images_are_asked_about_once(load: Loader, tmp_path: Path) -> None:
    def edit(captions: dict[str, Any], instances: dict[str, Any]) -> None:
        for annotation in captions["annotations"]:
            annotation["caption"] = "The same scene everywhere."
        for annotation in instances["annotations"]:
            annotation["bbox"] = [10.0, 20.0, 100.0, 200.0]

    nothing_drawn = Path(__file__).parent / "goldens" / "prompts" / "llava.yaml"
    data = coco_files(tmp_path / "coco", IMAGES, edit=edit)
    rows = load(data, prompt_config=str(nothing_drawn))
    assert len(rows) == REQUESTS
    assert len(load.sent) == 3


OPTIONS = [
    (owner, name)
    for name, (_, owners) in sources.options().items()
    for owner in owners
    if owner in sources.names()  # those of own data have tests of their own
]


@pytest.fixture
def every_file(tmp_path: Path) -> Path:
    """Files of all sources, with those that only their options ask for."""
    folder = write_all(tmp_path / "data", 3)
    (folder / "oidv7-train-annotations-machine-imagelabels.csv").write_text(
        f"ImageID,Source,LabelName,Confidence\n{1:016x},machine,/m/00001,0.8\n"
    )
    motions = folder / "HumanML3D"
    names = (motions / "train.txt").read_text().split()
    (motions / "train.txt").write_text("\n".join([*names, *(f"M{name}" for name in names)]))
    (motions / "new_joints").mkdir()
    for name in names:
        shutil.copy(motions / "texts" / f"{name}.txt", motions / "texts" / f"M{name}.txt")
        for copy in (name, f"M{name}"):
            np.save(motions / "new_joints" / f"{copy}.npy", np.ones((40, 22, 3)))
    return folder


def asked_about(source: str, data: Path, cache: Path, **options: Any) -> list[str]:
    """What the requests of the source's train split are about, read through a cache."""
    builder = make(source, sources.get(source).info.prompt_config, "stale")(
        backend="fake", data_dir=str(data), cache_dir=str(cache), **options
    )
    return list(builder.requests()["train"]["context"])


@pytest.mark.parametrize("joined", ["", "+LN"])
@pytest.mark.parametrize(("source", "option"), OPTIONS)
def test_an_option_of_a_source_takes_effect_in_a_cache_that_was_filled_without_it(
    every_file: Path, tmp_path: Path, source: str, option: str, joined: str
) -> None:
    for split in ("train", "val"):  # an empty source joins with everything
        (every_file / f"coco_{split}_captions.jsonl").write_text("")
    name, chosen = source + joined, {option: True}
    plain = asked_about(name, every_file, tmp_path / "plain")
    asked = asked_about(name, every_file, tmp_path / "asked", **chosen)
    assert plain != asked
    for order in itertools.permutations([({}, plain), (chosen, asked)]):
        cache = tmp_path / f"shared-{len(order[0][0])}"
        for options, expected in order:
            assert asked_about(name, every_file, cache, **options) == expected


# No change of these changes a row whose answer is the same; a new module is named in `MAKES_ROWS`
# or here.
MAKES_NO_ROWS = {
    *("__init__.py", "__main__.py", "version.py", "errors.py", "resources.py", "loading.py"),
    *("plugins.py", "testing.py", "datafiles.py", "cluster.py", "late.py", "benchmarks/"),
    *("config.py", "generation.py", "transport.py", "backends/", "cli/", "completions/", "export/"),
    *("fetching/", "licenses/", "releases/", "reports/"),
}


def test_the_version_of_the_code_goes_by_all_that_makes_rows_and_by_nothing_else(
    tmp_path: Path,
) -> None:
    package = tmp_path / "mminstruct"
    shutil.copytree(Path(mminstruct.__file__).parent, package)
    before = code_version()
    assert digest_of_code(package) == before
    unseen = set()
    for module in sorted(package.rglob("*.py")):
        with module.open("a", encoding="utf-8") as file:
            file.write("# edited\n")
        after = digest_of_code(package)
        if after == before:
            name = module.relative_to(package).as_posix()
            unseen.add(next((f for f in MAKES_NO_ROWS if name.startswith(f)), name))
        before = after
    assert unseen == MAKES_NO_ROWS
