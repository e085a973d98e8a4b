"""What is said about a release: the card, LICENSE, ATTRIBUTION.md, provenance and Croissant."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources as package_files
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from dummy_data import write_all
from huggingface_hub import DatasetCard, DatasetCardData
from huggingface_hub.repocard import metadata_load
from hypothesis import given, settings
from hypothesis import strategies as st
from instruct_rows import TYPES, dataset, row
from markdown_it import MarkdownIt
from markdown_it.token import Token
from origins import COCO, DAY, origin

from mminstruct import cli, licenses, loading, prompts, resources, sources
from mminstruct.cli import app, generate
from mminstruct.errors import ConfigError
from mminstruct.licenses import Part, Use
from mminstruct.releases import cards, croissant, markdown, notices, pages, repository
from mminstruct.releases.origin import Contents, DataFile, Origin
from mminstruct.rows import columns
from mminstruct.rows.columns import FEATURES
from mminstruct.rows.report import Report

TEMPLATE = (resources.folder("cards") / "template.md").read_text(encoding="utf-8")
PAGE = pages.Page(about="Invented.", uses="Nothing.", limits="All.")
FILES = {
    "conversation": {"train": ["data/conversation/train-00000-of-00001.parquet"]},
    "detail": {
        "train": ["data/detail/train-00000-of-00001.parquet"],
        "validation": ["data/detail/validation-00000-of-00001.parquet"],
    },
}


def contents_of(rows: int = 5, **changes: Any) -> Contents:
    """Contents with some rows of type conversation in the first of three files."""
    files = tuple(
        DataFile(path, kind, split, rows if kind == "conversation" else 0, 10, 20, "ab" * 32)
        for kind, by_split in FILES.items()
        for split, (path,) in by_split.items()
    )
    values: dict[str, Any] = {
        "features": FEATURES,
        "files": files,
        "media": {"CC-BY-2.0": (3, 9), None: (1, 2)},
        "use": Use(True, {"free": 3, "unknown": 1}, {"free": 9, "unknown": 2}),
        "generation": {"temperature": ("0.7",)},
        "examples": {"conversation": row(1)},
    }
    return Contents(**{**values, **changes})


def card_of(by: Origin, report: Report | None = None, name: str = "out", **contents: Any) -> str:
    pages = [PAGE] * len(by.sources)
    return cards.card(TEMPLATE, pages, name, by, contents_of(**contents), report or Report())


def metadata_of(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(re.split("^---\n", card, flags=re.MULTILINE)[1])
    return found


def tokens_of(markdown: str) -> list[Token]:
    """As a page shows it, with GitHub's tables."""
    body = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.DOTALL)
    return MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)


def shown(token: Token) -> str:
    """The words of a paragraph, cell or heading."""
    return "".join(t.content for t in token.children or () if t.type in ("text", "code_inline"))


def tables_of(card: str) -> list[list[list[str]]]:
    """The cells of every table as a page shows them, by line."""
    tables: list[list[list[str]]] = []
    for before, token in zip(tokens_of(card), tokens_of(card)[1:], strict=False):
        if before.type == "table_open":
            tables.append([])
        if before.type == "tr_open":
            tables[-1].append([])
        if before.type in ("th_open", "td_open"):
            tables[-1][-1].append(shown(token))
    return tables


def table_of(card: str, first: str) -> list[list[str]]:
    """The lines of the table with that first column, without its head."""
    (found,) = (lines[1:] for lines in tables_of(card) if lines[0][0] == first)
    return found


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
    assert card.data.task_categories == ["visual-question-answering", "image-text-to-text"]


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


def vocabulary(name: str) -> Any:
    """The values that the Hub takes, as `datasets` has them."""
    text = (package_files.files("datasets.utils.resources") / f"{name}.json").read_text("utf-8")
    return json.loads(text)


@every_licence
def test_every_value_of_the_front_matter_is_one_that_the_hub_takes(by: Origin) -> None:
    data = metadata_of(card_of(by))
    assert data["license"] in licenses.load().hub_licenses
    assert (data["license"] == "other") == ("license_name" in data) == ("license_link" in data)
    assert set(data["size_categories"]) <= set(vocabulary("size_categories"))
    assert set(data["language"]) <= set(vocabulary("languages"))
    assert set(data["multilinguality"]) <= set(vocabulary("multilingualities"))
    assert set(data["annotations_creators"]) <= set(vocabulary("creators")["annotations"])
    assert set(data["language_creators"]) <= set(vocabulary("creators")["language"])


@pytest.mark.parametrize(
    ("modality", "tasks"),
    [
        ("image", ["visual-question-answering", "image-text-to-text"]),
        ("motion", ["text-generation"]),
        ("video", ["video-text-to-text", "text-generation"]),
        ("smell", ["text-generation"]),
    ],
)
def test_the_tasks_fit_what_the_annotations_describe(modality: str, tasks: list[str]) -> None:
    data = metadata_of(card_of(origin(sources=(replace(COCO, modality=modality),))))
    assert data["task_categories"] == tasks
    assert modality in data["tags"]


def test_the_parts_of_a_joined_source_are_sources_of_their_own() -> None:
    joined = sources.get("COCO2017+LVIS+LN").info
    card = card_of(origin(sources=(joined,)))
    assert metadata_of(card)["source_datasets"] == ["coco2017", "lvis", "ln"]
    for part in joined.parts:
        assert part.license_url in card
        assert part.attribution.split(" (")[0] in card


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
    data = metadata_of(card_of(ALLOWED, rows=rows))
    assert data["size_categories"] == [category]
    assert data["dataset_info"][1]["splits"][0]["num_examples"] == rows


@every_licence
def test_every_slot_of_a_card_is_filled(by: Origin) -> None:
    card = card_of(by)
    assert "$" not in card
    assert "\n\n\n" not in card
    assert "None" not in card.replace("None that are known.", "")
    assert len(tables_of(card)) == 6
    for table in tables_of(card):
        assert len(table) > 1
        assert len({len(line) for line in table}) == 1


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            TEMPLATE + "$titel",
            r"cards/template.md: unknown slot '\$titel' \(did you mean 'title'\?\)",
        ),
        (TEMPLATE + "${own}", "unknown slot '\\$own'"),
        (TEMPLATE.replace("$about", ""), "the slot '\\$about' is missing"),
        (TEMPLATE + "5 $ each", "write \\$\\$ for a dollar sign"),
    ],
)
def test_a_template_with_a_slot_too_many_or_too_few_is_refused(template: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cards.card(template, [PAGE], "out", ALLOWED, contents_of())


def test_the_licence_table_has_every_part_with_its_day_and_what_it_allows() -> None:
    lines = table_of(card_of(FAMILY), "part")
    assert [line[:3] for line in lines] == [
        ["annotations of COCO 2017", "CC BY 4.0", "yes"],
        ["model meta-llama/Llama-2-7b-chat-hf", "the Llama 2 licence", "no"],
    ]
    assert {line[3].split(",")[0] for line in lines} == {"2026-11-22"}
    assert table_of(card_of(UNKNOWN), "part")[1] == [
        *("model someone/finetune", "not known", "not known", "")
    ]


def test_the_obligations_of_all_parts_are_in_the_card() -> None:
    for by in (ALLOWED, FAMILY):
        for duty in by.verdict.obligations:
            assert f"- {duty}".replace("'", "") in card_of(by).replace("'", "")


def test_the_histogram_of_image_licences_says_what_each_allows() -> None:
    media = {
        "CC-BY-2.0": (3, 9),
        "CC-BY-NC-ND-2.0": (5, 15),
        "LicenseRef-US-Government-Work": (1, 3),
        "Somebody's": (1, 2),
        None: (1, 1),
    }
    assert table_of(card_of(ALLOWED, media=media), "licence") == [
        ["CC BY-NC-ND 2.0", "5", "15", "no (non-commercial, no derivatives)"],
        ["CC BY 2.0", "3", "9", "yes"],
        ["not known", "1", "1", "not known"],
        ["United States government work", "1", "3", "yes"],
        ["Somebody's", "1", "2", "not known"],
    ]


def test_a_licence_of_the_users_own_counts_in_the_histogram(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "licenses: [{id: club, title: the club's, hub: other, url: 'https://x.test', commercial: "
        "true, derivatives: true, source_url: 'https://x.test', clause: '1', checked_on: "
        "2026-01-01, evidence: primary}]"
    )
    by = origin(registry=licenses.load(own))
    assert table_of(card_of(by, media={"club": (1, 1)}), "licence") == [
        ["the club's", "1", "1", "yes"]
    ]


def test_a_card_counts_what_was_left_out() -> None:
    report = Report(
        rejected={"conversation": Counter(leak=3, too_short=1)},
        failed={"detail": Counter(http_500=7)},
    )
    by = origin(skipped={"image without captions": 4, "box without area": 6})
    card = card_of(by, report, truncated={"conversation": 2})
    assert table_of(card, "type") == [
        ["conversation", "5", "2", "leak 3, too_short 1", "none"],
        ["detail", "0", "0", "none", "http_500 7"],
        ["complex_reasoning", "0", "0", "none", "none"],
    ]
    assert "6 x box without area, 4 x image without captions" in card


def test_what_was_not_recorded_is_not_claimed() -> None:
    card = cards.card(TEMPLATE, [PAGE], "out", ALLOWED, contents_of())
    assert table_of(card, "type")[0] == ["conversation", "5", "0", "not recorded", "not recorded"]
    assert "The command that made it was not recorded." in card
    found = json.loads(notices.provenance(ALLOWED, contents_of()))
    assert found["rejected"] is found["failed"] is found["command"] is None


def test_a_card_names_all_sources_and_cites_each_work_once() -> None:
    sample = sources.get("SAMPLE").info
    other = replace(COCO, name="COCO2014", title="COCO 2014")
    by = origin(sources=(COCO, other, sample), configs=ALLOWED.configs * 3)
    pages = [PAGE, PAGE, replace(PAGE, about="Drawn.")]
    card = cards.card(TEMPLATE, pages, "out", by, contents_of())
    assert metadata_of(card)["source_datasets"] == ["coco2017", "coco2014", "sample"]
    assert card.count("@misc{coco,") == 1
    assert sample.attribution.split(" (")[0] in card
    assert "*the mminstruct sample.* Drawn." in card
    assert card.count(" instructions by ") == 2


def test_without_anything_to_cite_a_card_says_so() -> None:
    card = card_of(origin(sources=(sources.get("SAMPLE").info,)))
    assert card.endswith("## Citation\n\nNothing to cite.\n")


def test_the_card_shows_one_row_of_each_of_three_types_and_long_ones_shortened() -> None:
    long = row(1, "detail", turns=40)
    examples = {"conversation": row(1), "detail": long, "brief": row(1, "brief")}
    kinds = (*examples, "more")
    files = tuple(DataFile(f"data/{k}/x", k, "train", 1, 1, 1, "0") for k in kinds)
    card = card_of(origin(types=kinds), examples={**examples, "more": row(1, "more")}, files=files)
    blocks = [t.content for t in tokens_of(card) if t.type == "fence" and t.info == "text"]
    assert len(blocks) == 3
    assert blocks[0].startswith("user: Was steht vor dem Caf\u00e9? 1\nassistant: Ein roter Bus")
    assert "more messages]" in blocks[1]
    assert max(len(line) for block in blocks for line in block.splitlines()) <= 90
    assert max(map(len, blocks)) < 2000


def test_the_command_is_shown_as_it_has_to_be_typed() -> None:
    command = "mminstruct generate COCO2017 --model 'a model' --openai_base_url URL"
    card = card_of(origin(command=command))
    assert f"with your own in the place of `URL`:\n\n```bash\n{command}\n```" in card
    assert "in the place of" not in card_of(origin(command="mminstruct generate COCO2017"))


@pytest.mark.parametrize("flag", ["", " --a_flag with --another one" * 4])
@pytest.mark.parametrize(
    "command", ["python it's.py", 'make "rows', "", "make && push", "one line\nand `another`"]
)
def test_a_command_that_only_a_shell_can_read_is_shown_as_it_is(command: str, flag: str) -> None:
    assert f"rows again:\n\n```bash\n{command}{flag}\n```" in card_of(
        origin(command=command + flag)
    )


def test_a_release_for_the_hub_is_read_from_there() -> None:
    by = origin(repo_id="somebody/something")
    assert 'load_dataset("somebody/something", "conversation")' in card_of(by)
    found = json.loads(croissant.croissant([PAGE], "out", by, contents_of()))
    assert found["url"] == "https://huggingface.co/datasets/somebody/something"
    assert found["creator"]["name"] == "somebody"


@pytest.mark.parametrize("name", ["out", "my data", 'say "hi"', "back\\slash", "d\u00e9j\u00e0"])
def test_the_example_in_a_card_is_valid_python_for_any_folder(name: str) -> None:
    card = card_of(ALLOWED, name=name)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    calls = [line.partition("load_dataset")[2] for line in code.splitlines() if " = " in line]
    assert [ast.literal_eval(call.replace(")", ",)")) for call in calls] == [
        (name,),
        (name, "conversation"),
    ]


def test_every_column_of_a_row_is_described() -> None:
    assert [line[0] for line in table_of(card_of(ALLOWED), "column")] == list(FEATURES)


def test_every_builder_has_a_page_and_every_page_a_builder() -> None:
    pages = {path.stem for path in resources.folder("cards").glob("*.md")} - {"template"}
    assert pages == WITH_PAGES


# What is said of your own data is what you say of it.
WITH_PAGES = {*loading.names()} - {"own_llava"}


@pytest.mark.parametrize("name", sorted(WITH_PAGES))
def test_a_page_says_what_it_is_what_it_is_good_for_and_its_limits(name: str) -> None:
    text = (resources.folder("cards") / f"{name}.md").read_text(encoding="utf-8")
    page = pages.parse_page(text, name)
    assert min(map(len, (page.about, page.uses, page.limits))) > 50
    assert {token.type for token in tokens_of(text)} <= {
        *("heading_open", "heading_close", "inline", "paragraph_open", "paragraph_close")
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Words.",
        "## What it is\nA\n\n## Good for\nB\n",
        "## What it is\nA\n\n## Good for\nB\n\n## Known limits\n",
        "## Good for\nB\n\n## What it is\nA\n\n## Known limits\nC\n",
        "Words.\n\n## What it is\nA\n\n## Good for\nB\n\n## Known limits\nC\n",
        "## What it is\nA\n\n## Good for\nB\n\n## Known limits\nC\n\n## More\nD\n",
    ],
)
def test_a_page_with_other_sections_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="cards/x.md: got .* against What it is, Good for, Known"):
        pages.parse_page(text, "cards/x.md")


@pytest.mark.parametrize("name", ["LVIS", "COCO2014+LN", "HUMANML3D"])
def test_a_pair_without_a_builder_gets_words_from_the_source_itself(name: str) -> None:
    source = sources.get(name).info
    page = pages.general_page(source, prompts.load(source.prompt_config))
    for part in source.parts or (source,):
        assert part.description.split(".")[0] in page.about
    assert f"{source.modality}s" in page.limits


PAIRS = [
    *((b.SOURCE, b.PROMPT_CONFIG, name) for name in loading.names()
      for b in [loading.builder_class(loading.script_of(f"builders/{name}") or Path())]
      if b.SOURCE),
    ("COCO2014+LN", "llava_joined", None),
    ("COCO2014", "openimagesv7", None),
]  # fmt: skip


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """A release of every builder, and of pairs that have none."""
    folder = tmp_path_factory.mktemp("releases")
    data = write_all(folder / "data", 3)
    found = {}
    for source, config, _ in PAIRS:
        out = folder / f"{source}-{config}".lower().replace("+", "_")
        arguments = ["generate", source, "--prompt_config", config, "--dry_run", "--limit", "2"]
        arguments += ["--dataset_storage_path", str(data), "--output_path", str(out)]
        assert cli.run(arguments) == 0
        found[source, config] = out
    return found


@pytest.mark.parametrize(("source", "config", "name"), PAIRS)
def test_the_card_of_a_run_is_whole_and_read_by_the_hub(
    source: str, config: str, name: str | None, releases: dict[tuple[str, str], Path]
) -> None:
    path = releases[source, config]
    text = (path / "README.md").read_text(encoding="utf-8")
    card = DatasetCard.load(path / "README.md")
    data = metadata_load(path / "README.md")
    assert data is not None
    assert card.data.to_dict() == data == DatasetCardData(**data).to_dict() == metadata_of(text)
    assert {t.type for t in inline(tokens_of(text))} <= INLINE
    if name is not None:
        page = (resources.folder("cards") / f"{name}.md").read_text(encoding="utf-8")
        assert pages.parse_page(page, name).about in text
    info = sources.get(source).info
    for part in info.parts or (info,):
        assert part.attribution.split(" (")[0] in (path / "ATTRIBUTION.md").read_text("utf-8")
    rows = datasets.load_dataset(str(path), split="train")
    assert len(rows) == 6
    assert set(data["config_name"] for data in data["configs"]) == {"default", *rows["type"]}


VALIDATE = """
import json, sys
import mlcroissant
plain = lambda v: v.decode() if isinstance(v, bytes) else v
for path in sys.argv[1:]:
    found = mlcroissant.Dataset(path)
    assert not found.metadata.ctx.issues.warnings, found.metadata.ctx.issues.report()
    sets = {s.id: list(found.records(s.id)) for s in found.metadata.record_sets}
    print(json.dumps(
        {name: [
            [plain(r[f"{name}/id"]),
             [plain(m[f"{name}/messages/content"]) for m in r[f"{name}/messages"]],
             plain(r[f"{name}/provenance"][f"{name}/provenance/model"])]
            for r in records
        ] for name, records in sets.items()}
    ))
"""


def test_mlcroissant_validates_every_description_and_reads_the_rows_by_it(
    releases: dict[tuple[str, str], Path],
) -> None:
    """In a process of its own: what it imports warns, and warnings are errors here."""
    files = [str(path / "croissant.json") for path in releases.values()]
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", VALIDATE, *files], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    for path, line in zip(releases.values(), lines, strict=True):
        for kind, records in json.loads(line).items():
            rows = datasets.load_dataset(str(path), kind, split="train")
            assert records == [
                [r["id"], [m["content"] for m in r["messages"]], r["provenance"]["model"]]
                for r in rows
            ]


def test_the_command_line_of_mlcroissant_validates_a_description(
    releases: dict[tuple[str, str], Path],
) -> None:
    path = releases["COCO2017", "llava"] / "croissant.json"
    script = "from mlcroissant.scripts.cli import main; main()"
    command = [sys.executable, "-W", "ignore", "-c", script, "validate", "--jsonld", str(path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_the_columns_of_croissant_are_those_of_the_rows() -> None:
    described = json.loads(croissant.croissant([PAGE], "out", ALLOWED, contents_of()))
    for records in described["recordSet"]:
        fields = {field["name"]: field for field in records["field"]}
        assert list(fields) == list(FEATURES)
        members = {f["name"] for f in fields["provenance"]["subField"]}
        assert members == set(FEATURES["provenance"])
    assert described["datePublished"] == DAY.isoformat()
    assert described["license"] == ["https://creativecommons.org/licenses/by/4.0/"]


def test_columns_that_croissant_has_no_word_for_are_left_out() -> None:
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "scores": [datasets.Value("float32")],
            "thumbnail": datasets.Value("binary"),
            "at": datasets.Value("timestamp[s]"),
        }
    )
    described = json.loads(
        croissant.croissant([PAGE], "out", ALLOWED, contents_of(features=features))
    )
    fields = described["recordSet"][0]["field"]
    assert [field["name"] for field in fields] == ["id", "scores"]
    assert (fields[1]["dataType"], fields[1]["isArray"]) == ("sc:Float", True)


def test_several_sources_are_told_of_each_with_its_own_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_all(tmp_path / "data", 3)
    arguments = ["generate", "HUMANML3D", "COCO2017", "--dry_run"]
    arguments += ["--dataset_storage_path", str(data), "--output_path", str(tmp_path / "out")]
    assert cli.run(arguments) == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "*HumanML3D.* Conversations" in card
    assert "*COCO 2017.* Conversations" in card
    assert "### Licences of the media" in card
    found = json.loads((tmp_path / "out" / "provenance.json").read_text(encoding="utf-8"))
    assert [config["name"] for config in found["prompt_configs"]] == ["motion", "llava"]
    assert found["generation"]["prompt_config"] == ["motion", "llava"]


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ("", ""),
        ("--limit 3 --types detail_description", "--types detail_description --limit 3"),
        ("--max_concurrency 4 --timeout 9 --show 0 --response_store PLACE/store.sqlite", ""),
        ("--model org/name --model_source fake", "--model_source fake --model org/name"),
        ("--licenses PLACE/own.yaml --temperature 0", "--licenses own.yaml --temperature 0.0"),
        ("--prompt_config PLACE/mine.yaml --seed 7", "--prompt_config mine.yaml --seed 7"),
    ],
)
def test_a_card_has_the_command_that_makes_the_rows_again(
    arguments: str, command: str, tmp_path: Path
) -> None:
    place = tmp_path / "home-of-somebody"
    place.mkdir()
    (place / "own.yaml").write_text("licenses: []")
    text = (resources.folder("prompt_configs") / "llava.yaml").read_text(encoding="utf-8")
    (place / "mine.yaml").write_text(text.replace("name: llava", "name: mine"))
    given = arguments.replace("PLACE", str(place)).split()
    given += ["--dry_run"] if "--model_source" not in given else []
    out = place / "out"
    assert cli.run(["generate", "SAMPLE", *given, "--output_path", str(out)]) == 0
    found = json.loads((out / "provenance.json").read_text(encoding="utf-8"))
    dry = "" if "--model_source" in given else "--dry_run"
    words = sorted(f"mminstruct generate SAMPLE {command} {dry} --output_path out".split())
    assert sorted(found["command"].split()) == words
    said = (out / "README.md").read_text(encoding="utf-8") + json.dumps(found)
    assert "home-of-somebody" not in said


def test_a_file_of_this_machine_is_named_without_its_place(tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").touch()
    parser = app.make_parser()
    for model, named in ((tmp_path / "weights.gguf", "weights.gguf"), (tmp_path, "DIR")):
        args = parser.parse_args(["generate", "SAMPLE", "--model", str(model)])
        command = generate.command_again(args, licenses.load(), None)
        assert command == f"mminstruct generate SAMPLE --model {named}"


def test_a_private_server_is_not_named_and_a_known_service_is() -> None:
    parser = app.make_parser()
    urls = {
        "http://10.1.2.3:8000/v1": "URL",
        "https://user:secret@llm.corp.test/v1?token=t": "URL",
        "https://user:secret@api.openai.com/v1?token=t": "https://api.openai.com/v1",
    }
    for url, named in urls.items():
        arguments = ["generate", "SAMPLE", "--model_source", "openai", "--openai_base_url", url]
        args = parser.parse_args([*arguments, "--openai_base_url", "http://other.test"])
        command = generate.command_again(args, licenses.load(), None)
        assert command.split()[3:] == ["--model_source", "openai", "--openai_base_url", named]


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("http://10.1.2.3:8000/v1", "URL"),
        ("https://openrouter.ai/api/v1", "https://openrouter.ai/api/v1"),
    ],
)
def test_a_server_from_the_environment_is_in_the_command_that_makes_it_again(
    url: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    args = app.make_parser().parse_args(["generate", "SAMPLE", "--model_source", "openai"])
    registry = licenses.load()
    command = generate.command_again(args, registry, registry.endpoint_names([url]))
    assert command.split()[3:] == ["--model_source", "openai", "--openai_base_url", named]


@pytest.mark.parametrize("seconds", ["", "yesterday", "1e400", str(10**30)])
def test_a_wrong_date_is_refused_before_anything_is_asked(
    seconds: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("SOURCE_DATE_EPOCH", seconds)
    out = tmp_path / "out"
    assert cli.run(["generate", "SAMPLE", "--dry_run", "--output_path", str(out)]) == 2
    assert "SOURCE_DATE_EPOCH: expected seconds since 1970" in capsys.readouterr().err
    assert not out.exists()


def test_the_day_is_that_of_the_environment_if_it_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert cli.run(["generate", "SAMPLE", "--dry_run", "--output_path", str(tmp_path)]) == 0
    assert "1970-01-02 (UTC)" in (tmp_path / "README.md").read_text(encoding="utf-8")


INLINE = {
    *("text", "softbreak", "code_inline", "strong_open", "strong_close", "em_open", "em_close"),
    *("link_open", "link_close"),
}
FRAGMENTS = [
    *("---", "\n---\n", "```", "````\n", "~~~", "|", "\\|", "\\", "`", "``", "*", "**", "_", "__"),
    *(
        "<b>",
        "</script>",
        "<!--",
        "-->",
        "<https://x.test>",
        "&lt;",
        "&#124;",
        "]",
        "](x)",
        "![a](",
    ),
    *("\n", "\r\n", "\r", "\t", "\n\n", "\u2028", "\x85", "\x00", "\x1b[2J", "\ufeff", "\u202e"),
    *(
        '"',
        "'",
        "''",
        '"""',
        "# ",
        "## Good for\n",
        "- ",
        "1. ",
        "1) ",
        "> ",
        "+ ",
        "=== ",
        "    x",
    ),
    *("javascript:alert(1)", "data:text/html,x", "[a](javascript:b)", "[a]: javascript:b\n"),
    *("$", "$x", "${y}", "$$", "%", "@", ": ", "key: v", "!!python/none", "{", "[1, ", "&a", "*a"),
    *("https://x.test/a|b", "https://x.test/)", "http://[", "~~s~~", ":---:", "\n| a | b |\n|---|"),
    *(
        "\u05e9\u05dc\u05d5\u05dd",
        "\u0645\u0631\u062d\u0628\u0627",
        "\U0001f468\u200d\U0001f467",
        "e\u0301",
    ),
]
outside = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), min_size=1, max_size=6).map(
    "".join
)


def inline(tokens: list[Token]) -> Iterator[Token]:
    """What paragraphs, cells and headings are made of."""
    for token in tokens:
        yield from token.children or ()


def shape(markdown: str) -> list[str]:
    """The blocks of a page."""
    return [f"{token.type} {token.markup if token.type != 'fence' else token.info}"
            for token in tokens_of(markdown)]  # fmt: skip


def told(words: list[str]) -> tuple[Origin, Contents, Report]:
    """A release in which everything that comes from outside is one of the words."""
    model, question, answer, media, title, author, url, license, reason, key = words
    by = origin(
        model,
        settings={"model": model, f"k {key}": url},
        skipped={reason: 2},
        command=f"mminstruct generate COCO2017 --model {json.dumps(model)}",
    )
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    credit = dict.fromkeys(columns.CREDITS, "x") | {
        "media": f"m {media}", "title": f"t {title}", "author": f"a {author}",
        "landing_url": url, "author_url": url, "image_license": f"l {license}", "license_url": url,
    }  # fmt: skip
    contents = contents_of(
        examples={"conversation": row(1, media=f"m {media}", messages=messages)},
        media={f"l {license}": (1, 2)},
        credits=(credit,),
        credit_count=1,
        generation={"model": (model,)},
    )
    report = Report(rejected={"conversation": Counter({f"r {reason}": 1})})
    return by, contents, report


def documents(words: list[str]) -> dict[str, str]:
    """All that is written about a release."""
    by, contents, report = told(words)
    return {
        "README.md": cards.card(TEMPLATE, [PAGE], "out", by, contents, report),
        "ATTRIBUTION.md": notices.attribution(by, contents),
        "LICENSE": notices.license_text(by, contents.use),
        "provenance.json": notices.provenance(by, contents, report),
        "croissant.json": croissant.croissant([PAGE], "out", by, contents),
    }


PLAIN = documents(["x"] * 10)


@settings(deadline=None, max_examples=150)
@given(st.lists(outside, min_size=10, max_size=10))
def test_nothing_that_comes_from_outside_can_break_what_is_written(words: list[str]) -> None:
    written = documents(words)
    by, contents, _ = told(words)
    card = DatasetCard(written["README.md"])
    assert card.data.to_dict() == cards.metadata(by, contents).to_dict()
    assert card.data.to_dict() == metadata_of(written["README.md"])
    assert card.data.to_dict().keys() == metadata_of(PLAIN["README.md"]).keys()
    assert card.data.license == "unknown"
    for name in ("README.md", "ATTRIBUTION.md"):
        assert shape(written[name]) == shape(PLAIN[name])
        assert {t.type for t in inline(tokens_of(written[name]))} <= INLINE
        assert all(
            str(t.attrs["href"]).startswith(("http://", "https://"))
            for t in inline(tokens_of(written[name]))
            if t.type == "link_open"
        )
    for name, lines in ((n, text.count("\n")) for n, text in PLAIN.items()):
        if name == "LICENSE":
            assert written[name].count("\n") == lines == len(written[name].splitlines())
    assert json.loads(written["provenance.json"])["model"] == words[0]
    assert (
        json.loads(written["croissant.json"]).keys() == json.loads(PLAIN["croissant.json"]).keys()
    )


@settings(deadline=None, max_examples=300)
@given(outside)
def test_escaped_text_is_read_as_it_was(text: str) -> None:
    line = markdown.to_line(text)
    head = f"| h |\n|---|\n| {markdown.to_markdown(text)} |\n"
    (cell,) = (shown_all(t) for t in tokens_of(head) if t.type == "inline" and t.content != "h")
    assert cell == line
    (words, *more) = (t for t in tokens_of(markdown.to_markdown(text) or "x") if t.type == "inline")
    assert not more
    assert shown_all(words) == (line or "x")


def shown_all(token: Token) -> str:
    return "".join(t.content for t in token.children or ())


@settings(deadline=None, max_examples=300)
@given(st.text(), st.sampled_from(["text", "bash"]))
def test_a_block_of_code_ends_where_its_text_does(text: str, language: str) -> None:
    text = "\n".join(map(markdown.to_line, text.splitlines()))
    (fence,) = tokens_of(markdown.fence(text, language))
    assert (fence.type, fence.info, fence.content) == ("fence", language, f"{text}\n")


def test_overrides_of_the_direction_of_text_are_not_passed_on() -> None:
    card = card_of(origin("gpt\u202eevil"), examples={"conversation": row(1, media="a\u2066b")})
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", card)


def test_a_release_of_hostile_rows_is_loaded_and_validated(tmp_path: Path) -> None:
    words = ["".join(FRAGMENTS)] * 10
    by, _, report = told(words)
    messages = [{"role": "user", "content": words[0]}, {"role": "assistant", "content": words[0]}]
    rows = [row(n, kind, messages=messages, media=words[0]) for n in (1, 2) for kind in TYPES]
    repository.write({"train": dataset(rows)}, tmp_path, by, report)
    assert len(datasets.load_dataset(str(tmp_path), "detail", split="train")) == 2
    command = [sys.executable, "-W", "ignore", "-c", VALIDATE, str(tmp_path / "croissant.json")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["detail"][0][1] == [words[0], words[0]]
