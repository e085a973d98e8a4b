"""What rows are like, measured on a few of which each figure is known by hand."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from dummy_data import write_all

from mminstruct import cli, generate
from mminstruct.benchmarks import find_images, known
from mminstruct.checks import Finding
from mminstruct.errors import UsageError
from mminstruct.reports import quality_text
from mminstruct.reports.quality import SAMPLE_ROWS, Judged, Measures, Meter, kind_of
from mminstruct.reports.rows import Row, to_row


def row(*turns: tuple[str, str], kind: str = "conversation", image: str = "1.jpg") -> Row:
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    found = to_row({"type": kind, "image": image, "messages": messages})
    assert found is not None
    return found


def measured(*rows: Row | Judged) -> Measures:
    meter = Meter()
    for one in rows:
        meter.add(one if isinstance(one, Judged) else Judged.of(one))
    return meter.read({}).all


def test_words_are_those_of_an_answer() -> None:
    answers = [" ".join(["word"] * count) for count in range(1, 101)]
    found = measured(*(row(("What?", answer)) for answer in answers))
    assert found.words == (5, 50, 95)
    assert (found.rows, found.turns) == (100, 100)


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("how many dogs are there?", "how many"),
        ("is the dog asleep?", "yes or no"),
        ("aren't the lights on?", "yes or no"),
        ("in the picture, are there dogs?", "yes or no"),
        ("what is on the table?", "what"),
        ("what's on the table?", "what"),
        ("on the table, what is there?", "what"),
        ("where could the dog be?", "where"),
        ("why might they wait?", "why"),
        ("can you describe the image?", "request"),
        ("describe the image.", "request"),
        ("dogs?", "other"),
    ],
)
def test_questions_have_a_kind(question: str, kind: str) -> None:
    assert kind_of(question) == kind


def test_yes_and_no_are_counted_where_the_question_asks_for_them() -> None:
    found = measured(
        row(("Is it red?", "Yes, it is."), ("Is it blue?", "No."), ("Is it old?", "It may be.")),
        row(("What is it?", "No dog is there.")),
    )
    assert (found.yes, found.no, found.questions) == (1, 1, {"yes or no": 3, "what": 1})


def test_questions_are_the_same_whatever_their_case_and_signs() -> None:
    found = measured(row(("What is it?", "A cat.")), row(("what is it", "A dog.")))
    assert (found.asked, found.distinct_questions) == (2, 1)


def test_rows_that_were_said_before_are_counted_and_the_most_frequent_named() -> None:
    same = row(("What is it?", "A cat."), ("Asleep?", "Yes."))
    found = measured(same, same, same, row(("What is it?", "A cat.")))
    assert (found.repeated_rows, found.most_repeated) == (2, ("A cat. Yes.", 3))


def test_what_is_said_before_in_a_row_of_another_type_is_named_too() -> None:
    meter = Meter()
    for kind in ("conversation", "detail", "complex_reasoning", "more"):
        meter.add(Judged.of(row(("What is it?", "A cat."), kind=kind)))
    found = meter.read({})
    assert quality_text.find_worst(found) == "rows said before: 75.0 % (4 x 'A cat.')"
    assert {m.most_repeated for m in found.types.values()} == {("", 0)}


def test_distinct_pairs_of_words_are_a_share_of_all() -> None:
    # a b, b a, a b
    assert measured(row(("What?", "A b a b."))).distinct_2 == 0.667
    # No pair goes from an answer to the next.
    assert measured(row(("What?", "A b."), ("What?", "A b."))).distinct_2 == 0.5


def test_distinct_pairs_do_not_fall_with_the_number_of_rows() -> None:
    random = Random(1)
    words = [f"word{number}" for number in range(20)]
    rows = [row(("What?", " ".join(random.choices(words, k=5)))) for _ in range(SAMPLE_ROWS * 30)]
    few, many = measured(*rows[:SAMPLE_ROWS]), measured(*rows)
    assert few.distinct_2 is not None
    assert many.distinct_2 == pytest.approx(few.distinct_2, abs=0.05)


def test_openings_and_answers_about_the_image_are_counted() -> None:
    answers = ("The image shows a cat.", "In this picture, a cat sleeps.", "The cat sleeps.")
    found = measured(*(row(("What?", answer)) for answer in answers))
    assert found.on_the_image == 2
    assert found.openings == {"the image shows": 1, "in this picture": 1, "the cat sleeps": 1}


def test_a_leak_is_counted_by_rows() -> None:
    leaking = "A cat is at [0.12, 0.34, 0.56, 0.78]."
    found = measured(row(("What?", leaking), ("And?", leaking)), row(("What?", "A cat.")))
    assert found.flaws == {"leak": 1}


def test_findings_are_counted_by_kind_and_verdict() -> None:
    findings = [
        Finding(0, "object", "supported", "cat", "cat"),
        Finding(0, "object", "supposed", "owner", "person"),
        Finding(1, "object", "contradicted", "dog", "dog"),
        Finding(1, "count", "contradicted", "two cats", "cat"),
        Finding(1, "count", "supported", "one cat", "cat"),
        Finding(1, "side", "unknown", "left of", "cat"),
    ]
    fine = [Finding(0, "object", "supported", "cat", "cat")]
    one = row(("What?", "A cat."), ("And?", "A dog."))
    found = measured(
        Judged(one, findings, frozenset({"cat", "bowl", "tree"})),
        Judged(one, fine, frozenset({"cat"})),
        Judged(one, is_lost=True),
    )
    assert found.checked_rows == 2
    assert found.verdicts == {
        "object": {"supported": 2, "supposed": 1, "contradicted": 1},
        "count": {"contradicted": 1, "supported": 1},
        "side": {"unknown": 1},
    }
    assert (found.unknown_rows, found.contradicted_rows) == (1, 1)
    assert found.named == {"cat": 2, "person": 1, "dog": 1}
    assert (found.boxed, found.unmentioned) == (4, 2)


def test_the_images_of_benchmarks_are_found_by_their_names() -> None:
    assert {name: len(one.keys) for name, one in known().items()} == {
        "flickr30k_test": 1000,
        "flickr30k_val": 1000,
        "karpathy_test": 5000,
        "karpathy_val": 5000,
        "llava_bench_coco": 30,
        "pope": 500,
    }
    meter = Meter()
    for image in ("COCO_val2014_000000310196.jpg", "val2017/000000310196.jpg", "310196.jpg"):
        meter.add(Judged.of(row(("What?", "A cat."), image=image)))
    found = meter.read({})
    assert found.benchmarks["pope"].images == 1  # one image, and one of somebody else's
    assert found.images == 2


def test_images_to_leave_out_are_named_by_benchmark_group_or_file(tmp_path: Path) -> None:
    listed = tmp_path / "refcoco.txt"
    listed.write_text("COCO_train2014_000000000009.jpg\n25\n\n", "utf-8")
    assert find_images([str(listed)]) == {"refcoco.txt": frozenset({"9", "25"})}
    assert sorted(map(len, find_images(["karpathy,pope"]).values())) == [500, 5000, 5000]
    with pytest.raises(UsageError, match=r"got 'pop' \(did you mean 'pope'\?\)"):
        find_images(["pop"])


def write_rows(path: Path) -> Path:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
    rows = [{"image": f"{number:012d}.jpg", "conversations": turns} for number in (1, 2)]
    path.write_text(json.dumps(rows), "utf-8")
    return path


def test_files_are_shown_side_by_side_in_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(write_rows(tmp_path / name)) for name in ("one.json", "two.json")]
    assert cli.run(["report", *paths]) == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80
    line = next(line for line in told.splitlines() if line.startswith("rows said before"))
    assert line.split()[3:] == ["50.0", "%", "50.0", "%"]
    assert "said most often: 2 x 'A cat.'" in told


def test_a_number_and_its_percent_sign_are_on_one_line() -> None:
    for length in range(1, 20):
        said = [f"{word * length} here now" for word in "abcde"]
        meter = Meter()
        for text in said:
            meter.add(Judged.of(row(("What?", text))))
        lines = quality_text.as_text({"x": meter.read({})}).splitlines()
        assert max(map(len, lines)) <= 80
        assert [line for line in lines if line.lstrip().startswith("%")] == []
        assert "20.0 %" in lines[-1]


def test_json_has_the_same_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_rows(tmp_path / "one.json"))
    assert cli.run(["report", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[path]
    assert found["all"]["rows"] == 2
    assert found["all"]["words"] == [2, 2, 2]
    assert found["images"] == 2


def test_what_rows_say_is_held_against_annotations_that_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_all(tmp_path, 1)
    path = str(write_rows(tmp_path / "one.json"))
    about = ["--annotations", "COCO2017", "--dataset_storage_path", str(folder)]
    assert cli.run(["report", path, "--json", *about]) == 0
    found = json.loads(capsys.readouterr().out)[path]
    assert (found["all"]["checked_rows"], found["without_context"]) == (1, 1)
    assert sum(found["all"]["verdicts"]["object"].values()) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--machine_labels", "--machine_labels is an option of OPENIMAGESV7, got no such source"),
        ("--splits train", "add --annotations SOURCE, or leave them out"),
        ("--dataset_storage_path coco", "add --annotations SOURCE, or leave them out"),
    ],
)
def test_what_is_said_of_annotations_without_naming_any_is_refused(
    flags: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_rows(tmp_path / "one.json"))
    assert cli.run(["report", path, *flags.split()]) == 2
    assert words in capsys.readouterr().err


def made(folder: Path, **more: Any) -> Any:
    data = write_all(folder / "data", 3)
    names = {"data_dir": str(data), "cache_dir": str(folder / "cache"), "backend": "fake"}
    return generate("COCO2017", response_store=str(folder / "store.sqlite"), **names, **more)


def test_excluded_images_are_asked_nothing_about_and_named_on_the_card(tmp_path: Path) -> None:
    listed = tmp_path / "mine.txt"
    listed.write_text("000000000002.jpg\n", "utf-8")
    whole = made(tmp_path)
    found = made(tmp_path, exclude=[str(listed)], output_path=tmp_path / "out")
    assert {one["image_id"] for one in whole} - {one["image_id"] for one in found} == {
        "000000000002"
    }
    assert "1 x image of mine.txt" in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_a_run_whose_images_are_all_excluded_is_refused(tmp_path: Path) -> None:
    listed = tmp_path / "mine.txt"
    listed.write_text("1\n2\n3\n", "utf-8")
    with pytest.raises(
        UsageError, match="0 of 3 images are on no list to exclude; left out: 3 of mine"
    ):
        made(tmp_path, exclude=str(listed))


def test_a_card_has_the_table_and_a_run_ends_with_three_lines_of_it(tmp_path: Path) -> None:
    found = made(tmp_path, output_path=tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    table = card.partition("### Measured")[2].partition("###")[0]
    types = " | ".join(found.quality.types)
    assert f"| | all | {types} |" in table
    assert "| rows checked | 100 % | 100 % | 100 % | 100 % |" in table
    assert quality_text.REFERENCE_TITLE in table
    lengths, checked, look = quality_text.in_short(found.quality, "mminstruct report out")
    assert lengths.startswith("rows: ")
    assert "contradicted" in checked
    assert look.endswith("; more: mminstruct report out")


def test_what_is_furthest_from_tolerable_is_looked_at_first() -> None:
    meter = Meter()
    for _ in range(4):
        meter.add(Judged.of(row(("What?", "A cat."), kind="conversation")))
    quality = meter.read({})
    assert quality_text.find_worst(quality) == "rows said before: 75.0 % (4 x 'A cat.')"
    distinct = Meter()
    for number in range(4):
        distinct.add(Judged.of(row((f"What is {number}?", f"A cat {number}."))))
    assert quality_text.find_worst(distinct.read({})) is None


def test_one_case_of_few_is_nothing_to_look_at() -> None:
    meter = Meter()
    for number, verdict in enumerate(("contradicted", "supported")):
        found = [Finding(0, "object", verdict, "cat", "cat")]
        meter.add(Judged(row((f"What is {number}?", f"A cat {number}.")), found))
    assert quality_text.find_worst(meter.read({})) is None
    for number in range(2, 4):
        found = [Finding(0, "object", "contradicted", "cat", "cat")]
        meter.add(Judged(row((f"What is {number}?", f"A cat {number}.")), found))
    assert quality_text.find_worst(meter.read({})) == "contradicted: 75.0 %"


def test_rejected_answers_have_their_rates() -> None:
    meter = Meter()
    for number in range(3):
        meter.add(Judged.of(row(("What?", f"A cat {number}."))))
    told = list(quality_text.details(meter.read({"conversation": {"leak": 1}})))
    assert told[-1] == "rejected of conversation: leak 1 (25.0 %)"
