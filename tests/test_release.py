"""Releases as files: what is written, what reads it back, and what the card says."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from huggingface_hub import DatasetCard

from mminstruct import licenses, prompts, release, sources
from mminstruct.errors import UsageError
from mminstruct.generate import FEATURES, Report
from mminstruct.licenses import Part
from mminstruct.release import Origin
from mminstruct.sources import SourceInfo

TYPES = ("conversation", "detail", "complex_reasoning")
COCO = SourceInfo(
    name="COCO2017",
    title="COCO 2017",
    description="Invented facts about a real source.",
    homepage="https://example.org/coco",
    citation="@misc{coco,\n  title = {COCO}\n}",
    license="CC-BY-4.0",
    license_url="https://creativecommons.org/licenses/by/4.0/",
    attribution="The annotations are by the COCO Consortium, CC BY 4.0.",
    media_license="each image has its own licence, see `image_license`",
    splits=("train", "validation"),
    version="1.0.0",
)
QUESTION, ANSWER = (
    "Was steht vor dem Caf\u00e9?",
    "Ein roter Bus \U0001f68c, \u8d64\u3044\u30d0\u30b9.",
)


def row(
    image: int, kind: str = "conversation", *, turns: int = 2, **changes: Any
) -> dict[str, Any]:
    """A row as `generate` makes it."""
    messages = [
        {"role": role, "content": f"{text} {number}"}
        for number in range(1, turns + 1)
        for role, text in (("user", QUESTION), ("assistant", ANSWER))
    ]
    return {
        "id": f"coco2017-{image:012d}-{kind}",
        "source": "COCO2017",
        "image_id": f"{image:012d}",
        "modality": "image",
        "media": f"{image:012d}.jpg",
        "image": f"{image:012d}.jpg",
        "image_url": f"http://images.cocodataset.org/train2017/{image:012d}.jpg",
        "width": 640,
        "height": 480,
        "image_license": "CC-BY-2.0",
        "type": kind,
        "messages": messages,
        "image_credit": dict.fromkeys(
            ("author", "author_url", "title", "landing_url", "license_url"), "somewhere"
        ),
        "license": "cc-by-4.0",
        "commercial_use": True,
        "provenance": {
            "backend": "fake",
            "model": "fake",
            "endpoint": None,
            "prompt_config": "llava",
            "prompt_version": "1.0.0",
            "prompt_hash": "0123456789abcdef",
            "temperature": 0.7,
            "top_p": 1.0,
            "max_tokens": 1024,
            "seed": None,
            "few_shots": 3,
            "dropped_few_shots": 0,
            "dropped_boxes": 0,
            "finish_reason": "stop",
            "prompt_tokens": 1900,
            "completion_tokens": 300,
            "notes": [],
        },
        **changes,
    }


def dataset(rows: list[dict[str, Any]]) -> datasets.Dataset:
    if not rows:
        return datasets.Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES)
    return datasets.Dataset.from_list(rows, features=FEATURES)


def rows_of(images: range, types: tuple[str, ...] = TYPES) -> list[dict[str, Any]]:
    return [row(image, kind) for kind in types for image in images]


def report_of(splits: dict[str, datasets.Dataset], **changes: Any) -> Report:
    report = Report(**changes)
    for rows in splits.values():
        report.rows.update(rows["type"])
    return report


def origin(model: str = "mistralai/Mistral-7B-Instruct-v0.2", **changes: Any) -> Origin:
    registry = licenses.load()
    parts = [
        *licenses.annotation_parts(
            registry, source=COCO.name, title=COCO.title, license=COCO.license
        ),
        *changes.pop("terms", licenses.model_parts(registry, name=model, repo_id=model)),
    ]
    values: dict[str, Any] = {
        "sources": (COCO,),
        "config": prompts.load("llava"),
        "types": TYPES,
        "backend": "openai",
        "model": model,
        "verdict": licenses.compose(registry, parts),
        "settings": {"backend": "openai", "model": model, "temperature": "0.7", "seed": "None"},
        "skipped": {},
    }
    return Origin(**{**values, **changes})


def write(
    path: Path,
    splits: dict[str, datasets.Dataset],
    output_format: release.OutputFormat = "dataset",
    *,
    by: Origin | None = None,
    **report: Any,
) -> Path:
    release.check_output(path, output_format)
    release.write(splits, path, output_format, by or origin(), report_of(splits, **report))
    return path


def rejected(number: int, reason: str = "leak", kind: str = "conversation") -> dict[str, Any]:
    return {
        "id": f"coco2017-{number:012d}-{kind}",
        "type": kind,
        "outcome": "rejected",
        "reason": reason,
        "detail": f"phrase 'the caption' \u2013 {number}",
    }


def json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def sorted_rows(rows: Any) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda r: r["id"])


def files_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def without_digests(files: list[str]) -> list[str]:
    return [re.sub(r"-[0-9a-f]{16}\.parquet$", ".parquet", file) for file in files]


# --- JSON lines and LLaVA -----------------------------------------------------------------------


def test_json_lines_hold_all_rows_of_all_splits_in_order(tmp_path: Path) -> None:
    train, validation = rows_of(range(1, 4)), rows_of(range(7, 9))
    path = write(
        tmp_path / "out.jsonl",
        {"train": dataset(train), "validation": dataset(validation)},
        "jsonl",
    )
    assert json_lines(path) == [*train, *validation]


def test_a_line_of_json_is_readable_in_any_language(tmp_path: Path) -> None:
    path = write(tmp_path / "out.jsonl", {"train": dataset([row(1)])}, "jsonl")
    assert ANSWER in path.read_text(encoding="utf-8")


def test_the_file_for_llava_is_one_array_of_alternating_turns(tmp_path: Path) -> None:
    path = write(tmp_path / "out.json", {"train": dataset([row(33471), row(42)])}, "llava-instruct")
    assert json.loads(path.read_text(encoding="utf-8")) == [
        {
            "id": f"coco2017-{image:012d}-conversation",
            "image": f"{image:012d}.jpg",
            "conversations": [
                {"from": "human", "value": f"<image>\n{QUESTION} 1"},
                {"from": "gpt", "value": f"{ANSWER} 1"},
                {"from": "human", "value": f"{QUESTION} 2"},
                {"from": "gpt", "value": f"{ANSWER} 2"},
            ],
        }
        for image in (33471, 42)
    ]
    assert ANSWER in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("turns", [1, 2, 7])
def test_a_record_for_llava_shows_its_image_once_at_the_start_of_the_first_turn(turns: int) -> None:
    conversations = release.llava_record(row(1, turns=turns))["conversations"]
    assert [turn["from"] for turn in conversations] == ["human", "gpt"] * turns
    assert conversations[0]["value"].startswith("<image>\n")
    assert "".join(turn["value"] for turn in conversations).count("<image>") == 1


def test_an_image_placeholder_that_a_model_wrote_itself_does_not_ask_for_another_image() -> None:
    messages = [
        {"role": "user", "content": "<image>\nWhat is in this <image>?"},
        {"role": "assistant", "content": "A bus. <image>"},
    ]
    conversations = release.llava_record(row(1, messages=messages))["conversations"]
    assert [turn["value"] for turn in conversations] == ["<image>\nWhat is in this ?", "A bus."]


def test_the_ids_of_all_splits_and_types_are_unique_in_the_file_for_llava(tmp_path: Path) -> None:
    splits = {"train": dataset(rows_of(range(1, 9))), "validation": dataset(rows_of(range(9, 12)))}
    path = write(tmp_path / "out.json", splits, "llava-instruct")
    records = json.loads(path.read_text(encoding="utf-8"))
    assert len({record["id"] for record in records}) == len(records) == 33


@pytest.mark.parametrize("output_format", ["jsonl", "llava-instruct"])
def test_no_rows_are_still_a_valid_file(
    tmp_path: Path, output_format: release.OutputFormat
) -> None:
    path = write(tmp_path / "out", {"train": dataset([])}, output_format)
    text = path.read_text(encoding="utf-8")
    assert (json.loads(text) == []) if output_format == "llava-instruct" else (text == "")


@pytest.mark.parametrize("output_format", ["jsonl", "llava-instruct"])
def test_what_gave_no_row_stands_beside_the_file_until_a_run_without_any(
    tmp_path: Path, output_format: release.OutputFormat
) -> None:
    splits = {"train": dataset([row(1)])}
    path = write(tmp_path / "out.x", splits, output_format, details=[rejected(2), rejected(3)])
    beside = tmp_path / "out.x.rejected.jsonl"
    assert json_lines(beside) == [rejected(2), rejected(3)]
    write(path, splits, output_format)
    assert files_below(tmp_path) == ["out.x"]


@pytest.mark.parametrize("output_format", ["jsonl", "llava-instruct"])
def test_an_interrupted_write_of_a_file_leaves_the_old_one(
    tmp_path: Path, output_format: release.OutputFormat
) -> None:
    path = write(tmp_path / "out.x", {"train": dataset([row(1)])}, output_format)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        release.write(Interrupted(), path, output_format, origin(), Report())
    assert path.read_bytes() == before
    write(path, {"train": dataset([row(2)])}, output_format)
    assert files_below(tmp_path) == ["out.x"]
    assert path.read_bytes() != before


class Interrupted(dict[str, datasets.Dataset]):
    """Splits whose second one never comes."""

    def values(self) -> Iterator[datasets.Dataset]:  # type: ignore[override]
        yield dataset([row(8)])
        raise KeyboardInterrupt

    def items(self) -> Iterator[tuple[str, datasets.Dataset]]:  # type: ignore[override]
        yield "train", dataset([row(8)])
        raise KeyboardInterrupt


# --- where it may be written --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["notes.txt", ".git/config", "data/train.parquet", "README.md"])
def test_a_foreign_folder_that_is_not_empty_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="not empty and was not written by mminstruct"):
        release.check_output(tmp_path, "dataset")
    assert files_below(tmp_path) == [name]


def test_an_empty_or_absent_folder_is_taken_and_left_empty(tmp_path: Path) -> None:
    for folder in (tmp_path / "empty", tmp_path / "a" / "b"):
        release.check_output(folder, "dataset")
        assert list(folder.iterdir()) == []


def test_a_folder_in_which_a_first_run_was_interrupted_is_taken(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        release.write(Interrupted(), tmp_path, "dataset", origin(), Report())
    assert write(tmp_path, {"train": dataset([row(1)])}) == tmp_path
    assert len(datasets.load_dataset(str(tmp_path), split="train")) == 1


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UsageError, match="expected a folder, got a file"):
        release.check_output(file, "dataset")
    for output_format in ("jsonl", "llava-instruct"):
        with pytest.raises(UsageError, match="expected a file, got a folder"):
            release.check_output(tmp_path, output_format)
    for output_format in release.FORMATS:
        with pytest.raises(UsageError, match="output path"):
            release.check_output(file / "below", output_format)
    assert file.read_text() == "mine"


def test_a_file_may_be_in_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    path = write(tmp_path / "new" / "out.jsonl", {"train": dataset([row(1)])}, "jsonl")
    assert files_below(tmp_path) == ["new/out.jsonl"]
    assert len(json_lines(path)) == 1


# --- the dataset repository ---------------------------------------------------------------------


def test_a_repository_is_read_back_whole_and_by_type(tmp_path: Path) -> None:
    rows = rows_of(range(1, 6))
    path = write(tmp_path / "out", {"train": dataset(rows)})
    everything = datasets.load_dataset(str(path))
    assert list(everything) == ["train"]
    assert everything["train"].features == FEATURES
    assert sorted_rows(everything["train"]) == sorted_rows(rows)
    assert set(datasets.get_dataset_config_names(str(path))) == {"default", *TYPES}
    for kind in TYPES:
        found = list(datasets.load_dataset(str(path), kind, split="train"))
        assert found == [r for r in rows if r["type"] == kind]


def test_a_repository_holds_data_card_licence_and_provenance_and_nothing_else(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "out", {"train": dataset(rows_of(range(1, 3)))})
    assert without_digests(files_below(path)) == [
        "LICENSE",
        "README.md",
        *(f"data/{kind}/train-00000-of-00001.parquet" for kind in sorted(TYPES)),
        "provenance.json",
    ]


def test_every_split_has_its_own_files(tmp_path: Path) -> None:
    train = rows_of(range(1, 4))
    validation = rows_of(range(7, 9), ("detail",))
    path = write(tmp_path / "out", {"train": dataset(train), "validation": dataset(validation)})
    everything = datasets.load_dataset(str(path))
    assert sorted_rows(everything["train"]) == sorted_rows(train)
    assert list(everything["validation"]) == validation
    assert set(datasets.load_dataset(str(path), "detail")) == {"train", "validation"}
    assert set(datasets.load_dataset(str(path), "conversation")) == {"train"}


def test_a_type_without_rows_has_no_files_but_is_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "out",
        {"train": dataset(rows_of(range(1, 3), ("detail",)))},
        rejected={"conversation": Counter(leak=2)},
    )
    assert set(datasets.get_dataset_config_names(str(path))) == {"default", "detail"}
    card = (path / "README.md").read_text(encoding="utf-8")
    assert 'load_dataset("out", "detail")' in card
    assert "| conversation | 0 | leak 2 | none |" in card
    assert "| detail | 2 | none | none |" in card


def test_rows_that_were_selected_or_shuffled_go_to_the_files_of_their_type(tmp_path: Path) -> None:
    rows = rows_of(range(1, 6))
    some = dataset(rows).select([14, 3, 7, 0, 11])
    path = write(tmp_path / "out", {"train": some})
    for kind in TYPES:
        found = list(datasets.load_dataset(str(path), kind, split="train"))
        assert found == [r for r in (rows[i] for i in (14, 3, 7, 0, 11)) if r["type"] == kind]


def test_many_rows_are_spread_over_files(tmp_path: Path) -> None:
    ids = [str(number) for number in range(100_001)]
    many = datasets.Dataset.from_dict({"id": ids, "type": ["detail"] * len(ids)})
    path = write(tmp_path / "out", {"train": many})
    assert without_digests(files_below(path / "data" / "detail")) == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    assert list(datasets.load_dataset(str(path), split="train")["id"]) == ids


def test_writing_over_an_own_folder_replaces_everything(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path, {"train": dataset(rows_of(range(1, 9)))}, details=[rejected(9)])
    write(path, {"validation": dataset([row(2, "detail")])})
    assert without_digests(files_below(path)) == [
        "LICENSE",
        "README.md",
        "data/detail/validation-00000-of-00001.parquet",
        "provenance.json",
    ]
    assert list(datasets.load_dataset(str(path))["validation"]) == [row(2, "detail")]


def test_an_older_release_of_the_same_name_is_not_read_back_from_the_cache(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        path = write(tmp_path / str(number % 2) / "out", {"train": dataset([row(number)])})
        assert list(datasets.load_dataset(str(path), split="train")) == [row(number)]
        found = datasets.load_dataset(str(path), "conversation", split="train")
        assert list(found) == [row(number)]


def test_the_same_rows_give_the_same_files(tmp_path: Path) -> None:
    one, two = (
        write(tmp_path / name, {"train": dataset(rows_of(range(1, 4)))}) for name in ("a", "b")
    )
    assert files_below(one) == files_below(two)


def test_an_interrupted_write_of_a_repository_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path, {"train": dataset([row(1)])}, details=[rejected(9)])
    before = {name: (path / name).read_bytes() for name in files_below(path)}
    with pytest.raises(KeyboardInterrupt):
        release.write(Interrupted(), path, "dataset", origin(), Report())
    assert {name: (path / name).read_bytes() for name in before} == before
    assert list(datasets.load_dataset(str(path), split="train")) == [row(1)]
    write(path, {"train": dataset([row(2)])})
    assert not (path / ".partial").exists()
    assert list(datasets.load_dataset(str(path), split="train")) == [row(2)]


def test_what_gave_no_row_is_listed_in_the_repository(tmp_path: Path) -> None:
    splits = {"train": dataset([row(1)])}
    path = write(tmp_path / "out", splits, details=[rejected(2), rejected(3, "too_short")])
    assert json_lines(path / "rejected.jsonl") == [rejected(2), rejected(3, "too_short")]
    assert len(datasets.load_dataset(str(path), split="train")) == 1
    write(path, splits)
    assert not (path / "rejected.jsonl").exists()


def test_provenance_says_what_the_rows_depend_on(tmp_path: Path) -> None:
    path = write(
        tmp_path / "out",
        {"train": dataset([row(1)])},
        by=origin(skipped={"no captions": 3}),
        truncated=1,
        failed={"detail": Counter(timeout=4)},
    )
    found = json.loads((path / "provenance.json").read_text(encoding="utf-8"))
    config = prompts.load("llava")
    assert found["prompt_hash"] == config.hash
    assert found["prompt_version"] == config.version
    assert found["sources"] == ["COCO2017"]
    assert found["rows"] == {"conversation": 1}
    assert found["failed"] == {"detail": {"timeout": 4}}
    assert found["skipped"] == {"no captions": 3}
    assert found["settings"]["temperature"] == "0.7"


# --- the card ---------------------------------------------------------------------------------

FILES = {
    "conversation": {"train": ["data/conversation/train-00000-of-00001.parquet"]},
    "detail": {
        "train": ["data/detail/train-00000-of-00001.parquet"],
        "validation": ["data/detail/validation-00000-of-00001.parquet"],
    },
}


def card_of(by: Origin, report: Report | None = None, path: Path = Path("out")) -> str:
    return release.card(path, by, report or Report(rows=Counter(conversation=5)), FILES)


def metadata_of(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(re.split("^---\n", card, flags=re.MULTILINE)[1])
    return found


def tables_of(card: str) -> list[list[list[str]]]:
    """The cells of every table, as GitHub's Markdown splits them."""
    blocks = re.findall(r"(?:^\|.*\n)+", card + "\n", re.MULTILINE)
    return [
        [re.split(r"(?<!\\)\|", line.strip()[1:-1]) for line in block.splitlines()]
        for block in blocks
    ]


ALLOWED = origin("mistralai/Mistral-7B-Instruct-v0.2")
UNKNOWN = origin("someone/finetune")
OPENAI = licenses.load().terms["openai-terms"]
FORBIDDEN = origin("gpt", terms=[Part("service", "the OpenAI API", OPENAI)])
FAMILY = origin("meta-llama/Llama-2-7b-chat-hf")
every_licence = pytest.mark.parametrize("by", [ALLOWED, UNKNOWN, FORBIDDEN, FAMILY])


@every_licence
def test_the_front_matter_of_a_card_is_read_by_the_hub(by: Origin) -> None:
    card = DatasetCard(card_of(by))
    assert card.data.to_dict() == metadata_of(card_of(by))
    assert card.text.lstrip().startswith("# COCO 2017 instructions by ")
    assert card.data.language == ["en"]
    assert card.data.size_categories == ["n<1K"]
    assert card.data.source_datasets == ["coco2017"]
    assert card.data.annotations_creators == ["machine-generated"]
    assert "image-text-to-text" in card.data.task_categories


def test_the_front_matter_has_a_config_for_everything_and_one_for_each_type() -> None:
    configs = metadata_of(card_of(ALLOWED))["configs"]
    assert [config["config_name"] for config in configs] == ["default", "conversation", "detail"]
    assert configs[0]["data_files"] == [
        {
            "split": "train",
            "path": [*FILES["conversation"]["train"], *FILES["detail"]["train"]],
        },
        {"split": "validation", "path": FILES["detail"]["validation"]},
    ]
    assert configs[2]["data_files"] == [
        {"split": split, "path": paths} for split, paths in FILES["detail"].items()
    ]


@pytest.mark.parametrize(
    ("by", "fields"),
    [
        (ALLOWED, {"license": "cc-by-4.0"}),
        (UNKNOWN, {"license": "unknown"}),
        (
            FORBIDDEN,
            {
                "license": "other",
                "license_name": "cc-by-4.0-and-openai-terms",
                "license_link": "LICENSE",
            },
        ),
        (
            FAMILY,
            {
                "license": "other",
                "license_name": "cc-by-4.0-and-llama2",
                "license_link": "LICENSE",
            },
        ),
    ],
)
def test_the_licence_fields_follow_from_annotations_and_model_terms(
    by: Origin, fields: dict[str, str]
) -> None:
    metadata = metadata_of(card_of(by))
    assert {k: v for k, v in metadata.items() if k.startswith("license")} == fields


@pytest.mark.parametrize(
    ("by", "reason"),
    [
        (ALLOWED, "so the rows may train any model commercially, obligations aside"),
        (UNKNOWN, "the terms are not known here; no entry has this exact id"),
        (FORBIDDEN, "outputs may not train models of others"),
        (FAMILY, "outputs may train models of the same family only"),
    ],
)
def test_card_and_licence_file_say_why(tmp_path: Path, by: Origin, reason: str) -> None:
    path = write(tmp_path / "out", {"train": dataset([row(1)])}, by=by)
    for name in ("README.md", "LICENSE"):
        text = (path / name).read_text(encoding="utf-8")
        assert reason in text
        assert COCO.attribution in text
        assert COCO.media_license in text
        assert by.verdict.license in text
        assert "name the author and the licence" in text
        for part in by.verdict.parts:
            assert part.by is None or part.by.source_url in text
    found = json.loads((path / "provenance.json").read_text(encoding="utf-8"))
    assert found["licensing"] == by.verdict.as_json()


@every_licence
def test_every_slot_of_a_card_is_filled(by: Origin) -> None:
    card = card_of(by)
    assert "$" not in card
    assert "\n\n\n" not in card
    assert "None" not in card.replace("| seed | None |", "")
    for table in tables_of(card):
        assert len(table) > 2
        assert len({len(line) for line in table}) == 1


@pytest.mark.parametrize(
    ("rows", "category"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (158_000, "100K<n<1M"),
        (1_000_000, "1M<n<10M"),
    ],
)
def test_the_size_category_counts_the_rows_of_all_types(rows: int, category: str) -> None:
    report = Report(rows=Counter(conversation=rows // 2, detail=rows - rows // 2))
    assert metadata_of(card_of(ALLOWED, report))["size_categories"] == [category]


def test_a_card_counts_what_was_left_out() -> None:
    report = Report(
        rows=Counter(conversation=5),
        truncated=2,
        rejected={"conversation": Counter(leak=3, too_short=1)},
        failed={"detail": Counter(http_500=7)},
    )
    by = origin(skipped={"image without captions": 4, "box without area": 6})
    card = card_of(by, report)
    assert "| conversation | 5 | leak 3, too_short 1 | none |" in card
    assert "| detail | 0 | none | http_500 7 |" in card
    assert "2 answers were cut off" in card
    assert "6 x box without area, 4 x image without captions" in card


def test_a_card_names_all_sources_and_cites_each_work_once() -> None:
    sample = sources.get("SAMPLE").info
    other = replace(COCO, name="COCO2014", title="COCO 2014")
    card = card_of(origin(sources=(COCO, other, sample)))
    assert metadata_of(card)["source_datasets"] == ["coco2017", "coco2014", "sample"]
    assert card.count("@misc{coco,") == 1
    assert sample.attribution in card
    for source in (COCO, other, sample):
        assert f"| annotations of {source.title} | [{source.license}]" in card
        assert f"| images of {source.title}, not included |" in card


def test_without_anything_to_cite_a_card_says_so() -> None:
    card = card_of(origin(sources=(sources.get("SAMPLE").info,)))
    assert card.endswith("## Citation\n\nNothing to cite.\n")


HOSTILE = [
    "a|b",
    "||",
    "a\\|b",
    "a\nb",
    "a\r\n\r\n| x | y |",
    "---\nlicense: mit\n---",
    "# heading",
    "**bold** `code` [link](https://example.org) <b>",
    "$model ${title} $$",
    "model: 'quoted' \"twice\"",
    "@misc{x}",
    "- !!python/none",
    "\u6a21\u578b \U0001f999",
    "{'a': [1]}",
    "\\",
    "`",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_from_outside_cannot_break_a_card(name: str) -> None:
    report = Report(rows=Counter(conversation=5), rejected={"conversation": Counter({name: 1})})
    by = origin(name, settings={"model": name, name: "x"}, skipped={name: 2})
    card, plain = card_of(by, report), card_of(UNKNOWN)
    shape = [(len(table), {len(cells) for cells in table}) for table in tables_of(card)]
    assert (
        shape[:2]
        == [(len(table), {len(cells) for cells in table}) for table in tables_of(plain)][:2]
    )
    assert shape[2] == (4, {2})
    metadata = metadata_of(card)
    assert metadata["pretty_name"] == f"COCO 2017 instructions by {' '.join(name.split())}"
    assert metadata.keys() == metadata_of(plain).keys()
    assert metadata["license"] == "unknown"
    assert len(re.findall("^#", card, re.MULTILINE)) == len(re.findall("^#", plain, re.MULTILINE))
    assert DatasetCard(card).data.to_dict() == metadata


def test_what_is_escaped_is_read_as_it_was() -> None:
    model = "some\\one|else/Model*1_b[x]"
    (cell,) = (
        cells[0]
        for table in tables_of(card_of(origin(model)))
        for cells in table
        if cells[0].startswith(" outputs of")
    )
    assert re.sub(r"\\(.)", r"\1", cell) == f" outputs of model {model} "


@pytest.mark.parametrize("name", ["out", "my data", 'say "hi"', "back\\slash", "d\u00e9j\u00e0"])
def test_the_example_in_a_card_is_valid_python_for_any_folder(tmp_path: Path, name: str) -> None:
    card = card_of(ALLOWED, path=tmp_path / name)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    calls = [line.partition("load_dataset")[2] for line in code.splitlines() if " = " in line]
    assert [ast.literal_eval(call.replace(")", ",)")) for call in calls] == [
        (name,),
        (name, "conversation"),
    ]


def test_a_card_names_the_folder_even_if_it_is_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert f'load_dataset("{tmp_path.name}")' in card_of(ALLOWED, path=Path())


def test_no_file_of_a_repository_names_a_path_of_this_machine(tmp_path: Path) -> None:
    path = write(tmp_path / "out", {"train": dataset([row(1)])}, details=[rejected(2)])
    content = b"".join((path / name).read_bytes() for name in files_below(path))
    for root in (tmp_path, Path.home(), Path(release.__file__).parents[1]):
        assert str(root).encode() not in content
