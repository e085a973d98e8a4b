"""Reading prompt configs strictly, and writing contexts for a model."""

from __future__ import annotations

import copy
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mminstruct import prompts, resources, strict_yaml
from mminstruct.annotations import labels, narratives
from mminstruct.errors import ConfigError, UsageError
from mminstruct.prompts.config import Example, ExampleBox, ExampleTurn, InstructionType, Rendering
from mminstruct.schema import Box, Context, Media, Message, Turn

MINIMAL: dict[str, Any] = {
    "name": "tiny",
    "version": "1.0.0",
    "license": "CC0-1.0",
    "description": "For tests.",
    "types": {"talk": {"system": "Talk.", "answer_form": "turns"}},
}
FULL: dict[str, Any] = {
    **MINIMAL,
    "rendering": {
        "captions_heading": "What people say:",
        "boxes_heading": "What there is:",
        "box_decimals": 4,
        "one_line_per_label": True,
        "max_captions": 3,
        "max_boxes": 9,
    },
    "forbidden_phrases": ["the caption"],
    "forbid_coordinates": True,
    "min_answer_tokens": 100,
    "types": {
        "talk": {
            "system": "Talk.",
            "answer_form": "turns",
            "min_words": 2,
            "examples": [
                {
                    "captions": ["A dog runs.", "A running dog."],
                    "boxes": [{"label": "dog", "bbox": [0.1, 0.2, 0.3, 0.4], "group": False}],
                    "turns": [{"question": "What runs?", "answer": "A dog."}],
                }
            ],
        },
        "describe": {
            "system": "Describe.",
            "answer_form": "text",
            "questions": ["What is it?", "What can be seen?"],
            "examples": [{"captions": ["A cat."], "text": "It is a cat."}],
        },
    },
}
BOX = {"label": "dog", "bbox": [0.1, 0.2, 0.3, 0.4]}
TURN = {"question": "What runs?", "answer": "A dog."}


def changed(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of the data with another value at a path such as ``types.talk.examples.0.text``."""
    result = copy.deepcopy(data)
    *parents, last = path.split(".")
    place: Any = result
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[int(last) if isinstance(place, list) else last] = value
    return result


def without(data: dict[str, Any], path: str) -> dict[str, Any]:
    """A copy of the data without a key."""
    result = copy.deepcopy(data)
    *parents, last = path.split(".")
    place: Any = result
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    del place[last]
    return result


def error_of(data: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        prompts.parse(data, where="my.yaml")
    return str(caught.value)


def write(folder: Path, name: str, text: str) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return str(path)


def test_a_minimal_and_a_full_config_are_valid() -> None:
    assert prompts.parse(MINIMAL, where="x").rendering == Rendering()
    full = prompts.parse(FULL, where="x")
    assert list(full.types) == ["talk", "describe"]
    assert full.types["talk"].examples[0].context().boxes == (Box("dog", (0.1, 0.2, 0.3, 0.4)),)


EXAMPLE = "types.talk.examples.0"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("discription", "unknown key 'discription' (did you mean 'description'?)"),
        ("extend", "unknown key 'extend' (did you mean 'extends'?)"),
        ("rendering.decimals", "unknown key 'decimals' in rendering (did you mean 'box_decimals'?"),
        ("rendering.maxboxes", "unknown key 'maxboxes' in rendering (did you mean 'max_boxes'?)"),
        ("types.talk.sytem", "unknown key 'sytem' in types.talk (did you mean 'system'?)"),
        ("types.talk.stopwords", "unknown key 'stopwords' in types.talk; choose from: answer_form"),
        (f"{EXAMPLE}.caption", f"unknown key 'caption' in {EXAMPLE} (did you mean 'captions'?)"),
        (
            f"{EXAMPLE}.boxes.0.box",
            f"unknown key 'box' in {EXAMPLE}.boxes.0 (did you mean 'bbox'?)",
        ),
        (
            f"{EXAMPLE}.turns.0.anwser",
            f"unknown key 'anwser' in {EXAMPLE}.turns.0 (did you mean 'answer'?)",
        ),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest_known_one(
    path: str, message: str
) -> None:
    assert f"my.yaml: {message}" in error_of(changed(FULL, path, "anything"))


@pytest.mark.parametrize(
    "path",
    [
        *("name", "version", "license", "description", "types"),
        *("types.talk.system", "types.talk.answer_form"),
        *(f"{EXAMPLE}.boxes.0.label", f"{EXAMPLE}.boxes.0.bbox"),
        *(f"{EXAMPLE}.turns.0.question", f"{EXAMPLE}.turns.0.answer"),
    ],
)
def test_a_missing_key_is_an_error_that_says_where(path: str) -> None:
    assert f"my.yaml: {path}: this key is missing" in error_of(without(FULL, path))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(("name", bad) for bad in ("", "Has Space", "llava-2", 1, None, ["tiny"])),
        *(("version", bad) for bad in ("1.0", "1.0.0-beta", "v1.0.0", 1.0, 1, None)),
        *(("description", bad) for bad in ("", "   ", None, {"en": "For tests."})),
        *(("license", bad) for bad in ("", 1, None)),
        *(("types", bad) for bad in ({}, [], None, "talk", {"talk": None}, {"talk": "Talk."})),
        *(("types", {bad: MINIMAL["types"]["talk"]}) for bad in ("Talk", "a-b", "", "2nd")),
        *(("rendering", bad) for bad in (None, [], "short")),
        *(("rendering.box_decimals", bad) for bad in (0, 7, "two", 2.5, None)),
        *(("rendering.max_boxes", bad) for bad in (-1, "all")),
        *(("rendering.max_captions", bad) for bad in (0, -1)),
        *(("rendering.captions_heading", bad) for bad in ("", None)),
        *(("forbidden_phrases", bad) for bad in ("the caption", None, [1], {"a": "b"})),
        *(("forbid_coordinates", bad) for bad in ("sometimes", None, [])),
        *(("min_answer_tokens", bad) for bad in (0, -5, "many", None)),
        *(("types.talk.answer_form", bad) for bad in ("dialogue", None, "")),
        *(("types.talk.system", bad) for bad in ("", " \n", None, ["Talk."])),
        *(("types.talk.min_words", bad) for bad in (0, None)),
        *(("types.talk.examples", bad) for bad in ("none", None, {}, [None])),
        *((f"{EXAMPLE}.captions", bad) for bad in ("A dog runs.", None, [1])),
        *((f"{EXAMPLE}.boxes.0.label", bad) for bad in ("", None, 3)),
        *(
            (f"{EXAMPLE}.boxes.0.bbox", bad)
            for bad in (
                [0.1, 0.2, 0.3],
                [0.1, 0.2, 0.3, 0.4, 0.5],
                [0.1, 0.2, 1.3, 0.4],
                [-0.1, 0.2, 0.3, 0.4],
                [0.1, 0.2, float("nan"), 0.4],
                ["left", 0.2, 0.3, 0.4],
                "0.1 0.2 0.3 0.4",
            )
        ),
        *((f"{EXAMPLE}.turns.0", bad) for bad in (None, "What runs?", ["What runs?", "A dog."])),
        *((f"{EXAMPLE}.turns.0.answer", bad) for bad in ("", None, 2)),
    ],
)
def test_a_value_of_a_wrong_type_or_range_is_an_error_that_says_where(
    path: str, value: Any
) -> None:
    message = error_of(changed(FULL, path, value))
    assert f"my.yaml: {path}" in message
    assert "Traceback" not in message
    assert "pydantic" not in message


@pytest.mark.parametrize("top", [None, [], "text", 3, {}])
def test_something_else_than_a_mapping_is_an_error(top: Any) -> None:
    assert error_of(top).startswith("my.yaml: ")


@pytest.mark.parametrize(
    "bbox",
    [[0.326, 0.612, 0.1, 0.108], [0.3, 0.2, 0.1, 0.4], [0.1, 0.4, 0.3, 0.2], [0.1, 0.2, 0.1, 0.4]],
)
def test_a_bbox_that_is_empty_or_not_from_min_to_max_is_an_error_that_shows_it(
    bbox: list[float],
) -> None:
    message = error_of(changed(FULL, f"{EXAMPLE}.boxes.0.bbox", bbox))
    assert f"my.yaml: {EXAMPLE}.boxes.0: " in message
    assert f"[min_x, min_y, max_x, max_y] and needs min < max, got {bbox}" in message


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("rendering.box_decimals", True, "Input should be a valid integer, got True"),
        ("rendering.max_boxes", "9", "Input should be a valid integer, got '9'"),
        ("rendering.one_line_per_label", "yes", "Input should be a valid boolean, got 'yes'"),
        ("forbid_coordinates", 1, "Input should be a valid boolean, got 1"),
        ("min_answer_tokens", 100.0, "Input should be a valid integer, got 100.0"),
        ("types.talk.min_words", "3", "Input should be a valid integer, got '3'"),
        (f"{EXAMPLE}.boxes.0.group", "false", "Input should be a valid boolean, got 'false'"),
        (f"{EXAMPLE}.boxes.0.bbox.0", "0.1", "Input should be a valid number, got '0.1'"),
        ("forbidden_phrases.0", "", "String should have at least 1 character, got ''"),
        ("forbidden_phrases.0", "  ", "String should have at least 1 character, got '  '"),
        ("types", None, "expected a mapping, got nothing"),
        ("types", ["talk"], "expected a mapping, got a list"),
        ("types.talk", None, "expected a mapping, got nothing"),
        ("rendering", "short", "expected a mapping, got 'short'"),
        ("types.talk.examples", {"a": 1}, "expected a list, got a mapping"),
        ("forbidden_phrases", "the caption", "expected a list, got 'the caption'"),
        ("license", None, "Input should be a valid string, got nothing"),
        ("types.describe.questions.0", "", "String should have at least 1 character, got ''"),
        ("types.describe.questions.1", " ", "String should have at least 1 character, got ' '"),
    ],
)
def test_a_value_that_only_looks_right_is_an_error(path: str, value: Any, message: str) -> None:
    assert f"my.yaml: {path}: {message}" in error_of(changed(FULL, path, value))


def test_numbers_without_a_fraction_are_numbers() -> None:
    whole = changed(FULL, f"{EXAMPLE}.boxes.0.bbox", [0, 0, 1, 1])
    (example,) = prompts.parse(whole, where="x").types["talk"].examples
    assert example.boxes[0].bbox == (0.0, 0.0, 1.0, 1.0)


def test_all_errors_are_reported_at_once() -> None:
    data = changed(without(FULL, "license"), "rendering.box_decimals", 9)
    lines = error_of(changed(data, "temprature", 1)).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("my.yaml: ") for line in lines)


@pytest.mark.parametrize(
    ("form", "example"),
    [
        ("turns", {"text": "A dog."}),
        ("turns", {"turns": []}),
        ("turns", {"turns": [TURN], "text": "A dog."}),
        ("turn", {"turns": []}),
        ("turn", {"turns": [TURN, {"question": "What else?", "answer": "Nothing."}]}),
        ("turn", {"text": "A dog."}),
        ("text", {"turns": [TURN]}),
        ("text", {"turns": [TURN], "text": "A dog."}),
        ("text", {}),
    ],
)
def test_an_example_that_does_not_fit_the_answer_form_is_an_error(
    form: str, example: dict[str, Any]
) -> None:
    kind: dict[str, Any] = {"system": "Go.", "answer_form": form}
    if form == "text":
        kind["questions"] = ["What is it?"]
    good = {"captions": ["A dog."], **({"text": "Dog."} if form == "text" else {"turns": [TURN]})}
    kind["examples"] = [good, {"captions": ["A dog runs."], **example}]
    message = error_of({**MINIMAL, "types": {"talk": kind}})
    assert f"types.talk: example 2 does not fit answer_form {form!r}" in message


@pytest.mark.parametrize("kind", ["turns", "turn"])
def test_questions_are_for_text_answers_only(kind: str) -> None:
    data = changed(
        MINIMAL, "types.talk", {"system": "Go.", "answer_form": kind, "questions": ["?"]}
    )
    assert "'questions' are what a 'text' answer is paired with" in error_of(data)


def test_a_text_answer_needs_questions() -> None:
    data = changed(MINIMAL, "types.talk", {"system": "Go.", "answer_form": "text"})
    assert "with 0 questions" in error_of(data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (f"{EXAMPLE}.turns.0.answer", "The caption says dog.", "talk: example 1 breaks a rule"),
        (f"{EXAMPLE}.turns.0.question", "What is at [0.1, 0.2]?", "talk: example 1 breaks a rule"),
        ("types.describe.examples.0.text", "See the caption.", "describe: example 1 breaks a rule"),
        ("types.describe.questions.1", "Repeat the caption.", "describe: question 2 breaks a rule"),
        (f"{EXAMPLE}.turns.0.answer", "Dog.", "talk: example 1 is under min_words"),
    ],
)
def test_examples_and_questions_have_to_obey_the_rules_of_their_config(
    path: str, value: str, message: str
) -> None:
    assert f"my.yaml: types.{message}" in error_of(changed(FULL, path, value))


def test_a_type_cannot_take_the_name_of_all_types_together() -> None:
    data = {**MINIMAL, "types": {"default": MINIMAL["types"]["talk"]}}
    assert "'default' names all types together" in error_of(data)


def test_type_names_come_in_the_order_of_the_config() -> None:
    config = prompts.parse(FULL, where="x")
    assert prompts.type_names(config, None) == ("talk", "describe")
    assert prompts.type_names(config, ("describe", "talk")) == ("talk", "describe")
    assert prompts.type_names(config, ("describe",)) == ("describe",)
    with pytest.raises(UsageError, match=r"no instruction type 'tlak' \(did you mean 'talk'\?\)"):
        prompts.type_names(config, ("tlak",))


PARENT = """\
    name: parent
    version: 1.0.0
    license: CC0-1.0
    description: The parent.
    rendering: {box_decimals: 2, max_boxes: 5}
    types:
      talk: {system: Talk., answer_form: turns, min_words: 3}
      describe: {system: Describe., answer_form: text, questions: [One?, Two?]}
"""
CHILD = "name: child\nversion: 2.0.0\ndescription: The child.\n"


@pytest.mark.parametrize("name", prompts.names())
def test_a_shipped_config_is_found_by_name_and_by_its_old_file_name(name: str) -> None:
    path = resources.folder("prompt_configs") / f"{name}.yaml"
    for spelled in (name, f"{name}.yaml", f"prompt_config_{name}.yaml", f"prompt_config_{name}"):
        assert prompts.find(spelled) == path
        assert prompts.load(spelled).name == name


def test_the_old_file_name_of_the_small_context_config_is_known() -> None:
    found = prompts.load("prompt_config_llava_smallcontext.yaml")
    assert found == prompts.load("llava_smallcontext")


def test_a_config_is_found_by_path(tmp_path: Path) -> None:
    path = write(tmp_path, "parent", PARENT)
    assert prompts.find(path) == Path(path)
    assert prompts.load(path).name == "parent"


def test_a_config_is_called_as_its_file(tmp_path: Path) -> None:
    path = write(tmp_path, "own", PARENT)
    with pytest.raises(ConfigError, match=r"^own\.yaml: name: expected 'own', as the file is call"):
        prompts.load(path)
    # What it extends is none of its business.
    child = CHILD.replace("child", "mine") + "extends: own\n"
    assert prompts.load(write(tmp_path, "mine", child)).name == "mine"
    other = Path(path).with_suffix(".yml")
    other.write_text(textwrap.dedent(PARENT).replace("parent", "own"), encoding="utf-8")
    assert prompts.load(str(other)).name == "own"


def test_a_file_in_the_working_directory_goes_before_a_shipped_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "llava", PARENT.replace("parent", "llava"))
    assert list(prompts.load("llava.yaml").types) == ["talk", "describe"]
    assert "conversation" in prompts.load("llava").types


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lava", "did you mean 'llava'?"),
        ("llava_smalcontext", "did you mean 'llava_smallcontext'?"),
        ("zzz", "choose from: llava, llava_joined"),
        ("", "choose from: "),
        ("no/such/llava.yaml", "or give a file"),
        ("/llava", "or give a file"),
        ("../llava", "or give a file"),
        (".", "or give a file"),
    ],
)
def test_an_unknown_name_is_an_error_with_what_there_is(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        prompts.find(name)
    assert repr(name) in str(caught.value)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "name: [unclosed",
        "name: tiny\n  version: 1.0.0",
        "\tname: tiny",
        "name: *nowhere",
        "name: !!python/object/apply:os.getcwd []",
        "a: 1\n---\nb: 2",
        "? [a]\n: b",
    ],
)
def test_a_file_that_is_not_yaml_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"^bad\.yaml: not readable as YAML: "):
        prompts.load(str(path))


def test_a_file_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"^bad\.yaml: not readable as YAML: "):
        prompts.load(str(path))


@pytest.mark.parametrize(
    ("text", "got"), [("", "NoneType"), ("- a\n- b", "list"), ("text", "str"), ("3", "int")]
)
def test_a_file_without_a_mapping_at_the_top_is_an_error(
    tmp_path: Path, text: str, got: str
) -> None:
    path = write(tmp_path, "bad", text)
    with pytest.raises(ConfigError, match=f"expected a mapping at the top, got {got}"):
        prompts.load(path)


@pytest.mark.parametrize(
    ("twice", "key"),
    [
        ("name: again\n", "name"),
        ("rendering: {box_decimals: 1, box_decimals: 2}\n", "box_decimals"),
        ("'name': again\n", "name"),
    ],
)
def test_a_key_that_is_given_twice_is_an_error(tmp_path: Path, twice: str, key: str) -> None:
    path = write(tmp_path, "bad", textwrap.dedent(PARENT).replace("rendering", "#") + twice)
    with pytest.raises(ConfigError, match=f"key '{key}' is given twice"):
        prompts.load(path)


def test_a_merge_key_of_yaml_is_said_not_to_be_supported(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\n")
    with pytest.raises(ConfigError, match="'<<' is not supported; write the keys out") as caught:
        strict_yaml.read(path)
    assert "line 2" in str(caught.value)
    path.write_text("b: {<<: {x: 1}, y: 2}\n")
    with pytest.raises(ConfigError, match=r"'<<' is not supported; write the keys out"):
        strict_yaml.read(path)
    path.write_text("a: &a text\nb: *a\n'<<': 3\n")
    assert strict_yaml.read(path) == {"a": "text", "b": "text", "<<": 3}


def test_extends_merges_mappings_and_replaces_everything_else(tmp_path: Path) -> None:
    write(tmp_path, "parent", PARENT)
    child = CHILD + textwrap.dedent(
        """\
        extends: parent
        rendering: {max_boxes: null, box_decimals: 4}
        types:
          describe: {questions: [Three?]}
          point: {system: Point., answer_form: turn}
        """
    )
    config = prompts.load(write(tmp_path, "child", child))
    assert (config.name, config.version, config.license) == ("child", "2.0.0", "CC0-1.0")
    assert config.rendering == Rendering(box_decimals=4, max_boxes=None)
    assert list(config.types) == ["talk", "describe", "point"]
    assert config.types["talk"] == prompts.load(str(tmp_path / "parent.yaml")).types["talk"]
    assert config.types["describe"].questions == ("Three?",)
    assert config.types["describe"].system == "Describe."


@pytest.mark.parametrize(
    "parent", ["parent", "parent.yaml", "./parent.yaml", "{folder}/parent.yaml"]
)
def test_extends_takes_a_name_or_a_path_seen_from_the_file(tmp_path: Path, parent: str) -> None:
    write(tmp_path, "parent", PARENT)
    extends = f"extends: {parent.format(folder=tmp_path)}\n"
    assert prompts.load(write(tmp_path, "child", CHILD + extends)).name == "child"


def test_extends_takes_a_shipped_config_from_anywhere(tmp_path: Path) -> None:
    config = prompts.load(write(tmp_path, "child", CHILD + "extends: llava\n"))
    assert config.types == prompts.load("llava").types


def test_extends_goes_over_several_generations(tmp_path: Path) -> None:
    write(tmp_path, "parent", PARENT)
    write(tmp_path, "child", CHILD + "extends: parent\nmin_answer_tokens: 7\n")
    text = CHILD.replace("child", "grandchild") + "extends: child\nlicense: MIT\n"
    config = prompts.load(write(tmp_path, "grandchild", text))
    assert (config.min_answer_tokens, config.license) == (7, "MIT")
    assert config.rendering.max_boxes == 5


@pytest.mark.parametrize("key", ["name", "version", "description"])
def test_what_extends_another_names_and_describes_itself(tmp_path: Path, key: str) -> None:
    write(tmp_path, "parent", PARENT)
    lines = [line for line in CHILD.splitlines() if not line.startswith(key)]
    path = write(tmp_path, "child", "\n".join([*lines, "extends: parent"]))
    with pytest.raises(ConfigError, match=rf"^child\.yaml: {key}: this key is missing"):
        prompts.load(path)


@pytest.mark.parametrize("circle", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_extends_in_a_circle_is_an_error(tmp_path: Path, circle: list[str]) -> None:
    for name, parent in zip(circle, [*circle[1:], circle[0]], strict=True):
        write(tmp_path, name, f"{CHILD}extends: {parent}\n")
    with pytest.raises(ConfigError, match="'extends' goes in a circle"):
        prompts.load(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("parent", ["nobody", "no/where.yaml", "5", "''"])
def test_extending_what_is_not_there_is_an_error(tmp_path: Path, parent: str) -> None:
    path = write(tmp_path, "child", f"{CHILD}extends: {parent}\n")
    with pytest.raises(UsageError, match="no prompt config"):
        prompts.load(path)


@pytest.mark.parametrize("parent", ["[llava]", "{name: llava}"])
def test_only_one_config_is_extended(tmp_path: Path, parent: str) -> None:
    path = write(tmp_path, "child", f"{CHILD}extends: {parent}\n")
    with pytest.raises(ConfigError, match=r"^child\.yaml: extends: expected one prompt config's"):
        prompts.load(path)


def test_an_error_in_a_merged_config_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    write(tmp_path, "parent", PARENT)
    path = write(tmp_path, "child", CHILD + "extends: parent\nrendering: {decimals: 3}\n")
    with pytest.raises(ConfigError, match=r"^child\.yaml: unknown key 'decimals' in rendering"):
        prompts.load(path)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested data that holds no other, with its path."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in items:
        here = f"{path}.{key}" if path else str(key)
        if isinstance(child, dict | list):
            yield from leaves(child, here)
        else:
            yield here, child


OTHER: dict[str, Any] = {"version": "1.0.1", "types.talk.min_words": 1}


def another(path: str, value: Any) -> Any:
    if path in OTHER:
        return OTHER[path]
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return value + 0.01
    return value + 1 if isinstance(value, int) else f"{value}_x"


@pytest.mark.parametrize(
    ("path", "value"), [leaf for leaf in leaves(FULL) if "answer_form" not in leaf[0]]
)
def test_the_hash_changes_with_every_value(path: str, value: Any) -> None:
    before = prompts.parse(FULL, where="x")
    after = prompts.parse(changed(FULL, path, another(path, value)), where="x")
    assert after.hash != before.hash


@pytest.mark.parametrize(
    "path",
    [
        *("types.describe", f"{EXAMPLE}.boxes", "types.talk.examples", "forbidden_phrases"),
        *("rendering.max_boxes", "rendering", "types.talk.min_words"),
    ],
)
def test_the_hash_changes_with_everything_that_is_taken_away(path: str) -> None:
    before = prompts.parse(FULL, where="x")
    assert prompts.parse(without(FULL, path), where="x").hash != before.hash


def test_the_hash_changes_with_the_order_of_captions() -> None:
    captions = FULL["types"]["talk"]["examples"][0]["captions"][::-1]
    before = prompts.parse(FULL, where="x")
    after = prompts.parse(changed(FULL, f"{EXAMPLE}.captions", captions), where="x")
    assert after.hash != before.hash


def test_the_hash_goes_by_content_and_not_by_spelling(tmp_path: Path) -> None:
    spelled = changed(FULL, "rendering.box_decimals", 4)
    spelled = changed(spelled, "types.talk.system", "Talk.\n")
    first, second = prompts.parse(FULL, where="x"), prompts.parse(spelled, where="y")
    assert first.hash == second.hash
    assert len(first.hash) == 16
    assert (
        prompts.parse(MINIMAL, where="x").hash
        == prompts.parse({**MINIMAL, "rendering": {}, "forbid_coordinates": True}, where="x").hash
    )


HARBOUR = Context(
    id="7",
    media=Media(file_name="7.jpg", width=640, height=480),
    captions=(
        "Two boats lie in a harbour.",
        "boats at a pier, people on it",
        "A gull sits on a post.",
        "A calm harbour.",
        "Boats.",
        "Evening at sea.",
    ),
    boxes=(
        Box("boat", (0.1, 0.4, 0.5, 0.8)),
        Box("person", (0.6, 0.5, 0.9, 0.7), is_group=True),
        Box("boat", (0.05, 0.45, 1 / 3, 2 / 3)),
        Box("bird", (0.7001, 0.2001, 0.7004, 0.2004)),
        Box("person", (0.25, 0.5, 0.3, 0.6)),
    ),
)
HARBOUR_LLAVA = """\
Captions:
- Two boats lie in a harbour.
- boats at a pier, people on it
- A gull sits on a post.
- A calm harbour.
- Boats.
- Evening at sea.

Objects:
boat: [0.100, 0.400, 0.500, 0.800]
person (group): [0.600, 0.500, 0.900, 0.700]
boat: [0.050, 0.450, 0.333, 0.667]
bird: [0.7001, 0.2001, 0.7004, 0.2004]
person: [0.250, 0.500, 0.300, 0.600]"""
HARBOUR_SMALL = """\
Captions:
- Two boats lie in a harbour.
- boats at a pier, people on it
- A gull sits on a post.
- A calm harbour.
- Boats.

Objects:
boat: [0.10, 0.40, 0.50, 0.80] [0.05, 0.45, 0.33, 0.67]
person (group): [0.60, 0.50, 0.90, 0.70]
bird: [0.7001, 0.2001, 0.7004, 0.2004]
person: [0.25, 0.50, 0.30, 0.60]"""


@pytest.mark.parametrize(
    ("name", "expected"), [("llava", HARBOUR_LLAVA), ("llava_smallcontext", HARBOUR_SMALL)]
)
def test_a_context_is_written_as_the_shipped_configs_say(name: str, expected: str) -> None:
    assert prompts.render_context(HARBOUR, prompts.load(name).rendering) == expected


def test_a_bounded_rendering_keeps_the_largest_boxes_in_their_order_and_says_so() -> None:
    rendering = Rendering(max_captions=1, max_boxes=3, box_decimals=1)
    assert prompts.render_context(HARBOUR, rendering) == (
        "Captions:\n- Two boats lie in a harbour.\n\nObjects (the 3 largest of 5):\n"
        "boat: [0.1, 0.4, 0.5, 0.8]\nperson (group): [0.6, 0.5, 0.9, 0.7]\n"
        "boat: [0.1, 0.5, 0.3, 0.7]"
    )


def test_the_smaller_of_two_bounds_counts() -> None:
    for ours, theirs in ((2, 4), (4, 2), (2, None), (None, 2)):
        text = prompts.render_context(HARBOUR, Rendering(max_boxes=ours), max_boxes=theirs)
        assert "Objects (the 2 largest of 5):\n" in text
        assert text.count("[") == 2


def test_a_bound_that_takes_nothing_away_is_not_mentioned() -> None:
    assert "largest" not in prompts.render_context(HARBOUR, Rendering(max_boxes=5), max_boxes=9)


def test_equal_boxes_are_kept_in_their_order() -> None:
    boxes = tuple(Box(label, (0.1, 0.1, 0.2, 0.2)) for label in "abc")
    context = Context(id="1", media=HARBOUR.media, boxes=boxes)
    text = prompts.render_context(context, Rendering(max_boxes=2, box_decimals=1))
    assert text.splitlines()[1:] == ["a: [0.1, 0.1, 0.2, 0.2]", "b: [0.1, 0.1, 0.2, 0.2]"]


def test_headings_are_those_of_the_config() -> None:
    rendering = Rendering(captions_heading="Said:", boxes_heading="Seen:", max_boxes=1)
    text = prompts.render_context(HARBOUR, rendering)
    assert text.startswith("Said:\n- Two")
    assert "\n\nSeen (the 1 largest of 5):\n" in text


@pytest.mark.parametrize(
    ("context", "rendering"),
    [
        (Context(id="1", media=HARBOUR.media, captions=("A gull.",)), Rendering()),
        (Context("1", HARBOUR.media, ("A gull.",), HARBOUR.boxes), Rendering(max_boxes=0)),
    ],
)
def test_without_boxes_there_is_no_heading_for_them(context: Context, rendering: Rendering) -> None:
    assert prompts.render_context(context, rendering) == "Captions:\n- A gull."


def test_without_captions_there_is_no_heading_for_them() -> None:
    context = Context(id="1", media=HARBOUR.media, boxes=HARBOUR.boxes[:1])
    text = prompts.render_context(context, Rendering(box_decimals=1))
    assert text == "Objects:\nboat: [0.1, 0.4, 0.5, 0.8]"


def test_a_group_stands_apart_from_single_objects_of_its_label() -> None:
    boxes = (
        Box("person", (0.1, 0.1, 0.2, 0.2)),
        Box("person", (0.2, 0.1, 0.9, 0.9), is_group=True),
        Box("person", (0.3, 0.1, 0.4, 0.2)),
    )
    context = Context(id="1", media=HARBOUR.media, boxes=boxes)
    text = prompts.render_context(context, Rendering(box_decimals=1, one_line_per_label=True))
    assert text.splitlines()[1:] == [
        "person: [0.1, 0.1, 0.2, 0.2] [0.3, 0.1, 0.4, 0.2]",
        "person (group): [0.2, 0.1, 0.9, 0.9]",
    ]


@settings(deadline=None, max_examples=100, derandomize=True, database=None)
@given(
    st.floats(0, 0.999),
    st.floats(0, 0.999),
    st.floats(1e-6, 0.5),
    st.floats(1e-6, 0.5),
    st.integers(1, 6),
)
def test_a_tiny_box_keeps_two_sides_when_written(
    min_x: float, min_y: float, width: float, height: float, decimals: int
) -> None:
    corners = (min_x, min_y, min(1.0, min_x + width), min(1.0, min_y + height))
    context = Context(id="1", media=HARBOUR.media, boxes=(Box("speck", corners),))
    text = prompts.render_context(context, Rendering(box_decimals=decimals))
    numbers = text.partition("[")[2].removesuffix("]").split(", ")
    assert numbers[0] != numbers[2]
    assert numbers[1] != numbers[3]
    assert len({len(number) for number in numbers}) == 1
    assert all(
        abs(float(n) - c) <= 0.5 * 10**-decimals for n, c in zip(numbers, corners, strict=True)
    )


def test_turns_are_written_as_labelled_lines() -> None:
    turns = [Turn("Who?", "A gull."), Turn("Where?", "On a post.\nAlone.")]
    assert prompts.format_turns(turns) == (
        "Question: Who?\nAnswer: A gull.\n\nQuestion: Where?\nAnswer: On a post.\nAlone."
    )
    assert prompts.format_turns([]) == ""


def config_with_examples(count: int, **rendering: Any) -> prompts.PromptConfig:
    examples = tuple(
        Example(
            captions=(f"Scene {n}.",),
            boxes=(ExampleBox(label="dog", bbox=(0.1, 0.2, 0.3, 0.4)),),
            turns=(ExampleTurn(question=f"What is scene {n}?", answer=f"It is {n}."),),
        )
        for n in range(1, count + 1)
    )
    kind = InstructionType(system="Talk.", answer_form="turns", examples=examples)
    return prompts.PromptConfig(
        **{**MINIMAL, "types": {"talk": kind}}, rendering=Rendering(box_decimals=1, **rendering)
    )


def test_a_prompt_goes_from_system_through_examples_to_the_context() -> None:
    prompt = prompts.render(HARBOUR, config_with_examples(2), "talk")
    assert prompt.messages[:3] == (
        Message("system", "Talk."),
        Message("user", "Captions:\n- Scene 1.\n\nObjects:\ndog: [0.1, 0.2, 0.3, 0.4]"),
        Message("assistant", "Question: What is scene 1?\nAnswer: It is 1."),
    )
    assert [m.role for m in prompt.messages] == ["system", *["user", "assistant"] * 2, "user"]
    assert prompt.messages[-1].content.startswith("Captions:\n- Two boats")
    assert (prompt.few_shots, prompt.dropped_few_shots, prompt.dropped_boxes) == (2, 0, 0)


def test_prompts_of_one_type_share_their_opening() -> None:
    config = config_with_examples(2)
    one = prompts.render(HARBOUR, config, "talk").messages
    two = prompts.render(Context("8", HARBOUR.media, ("Else.",)), config, "talk").messages
    assert all(a is b for a, b in zip(one[:-1], two[:-1], strict=True))


def test_reductions_drop_the_last_examples_first_and_then_boxes_in_doubling_steps() -> None:
    found = list(prompts.reductions(HARBOUR, config_with_examples(3), "talk"))
    dropped = [(p.few_shots, p.dropped_few_shots, p.dropped_boxes) for p in found]
    assert dropped == [
        *[(3, 0, 0), (2, 1, 0), (1, 2, 0), (0, 3, 0)],
        *[(0, 3, 1), (0, 3, 2), (0, 3, 4), (0, 3, 5)],
    ]
    whole = found[0].messages
    for prompt in found[:4]:
        assert prompt.messages == (*whole[: 1 + 2 * prompt.few_shots], whole[-1])


def test_reductions_drop_the_smallest_boxes_first_and_at_last_all() -> None:
    found = list(prompts.reductions(HARBOUR, config_with_examples(0), "talk"))
    shown = [p.messages[-1].content.partition("Objects")[2].splitlines() for p in found]
    labels = [[line.partition(":")[0] for line in lines[1:]] for lines in shown]
    assert labels == [
        ["boat", "person (group)", "boat", "bird", "person"],
        ["boat", "person (group)", "boat", "person"],
        ["boat", "person (group)", "boat"],
        ["boat"],
        [],
    ]
    assert [lines[0] if lines else "" for lines in shown] == [
        ":",
        *(f" (the {n} largest of 5):" for n in (4, 3, 1)),
        "",
    ]


def test_reductions_count_from_the_boxes_that_the_config_shows() -> None:
    found = list(prompts.reductions(HARBOUR, config_with_examples(0, max_boxes=2), "talk"))
    assert [p.dropped_boxes for p in found] == [0, 1, 2]
    assert [p.messages[-1].content.count("[") for p in found] == [2, 1, 0]


def test_without_examples_and_boxes_there_is_one_prompt() -> None:
    bare = Context(id="1", media=HARBOUR.media, captions=("A gull.",))
    (prompt,) = prompts.reductions(bare, config_with_examples(0), "talk")
    assert prompt == prompts.render(bare, config_with_examples(0), "talk")


@settings(deadline=None, max_examples=50, derandomize=True, database=None)
@given(st.integers(0, 4), st.integers(0, 70))
def test_reductions_get_ever_shorter_and_are_few(examples: int, boxes: int) -> None:
    corners = [(n / 100, 0.1, n / 100 + 0.01 + n / 1000, 0.9) for n in range(boxes)]
    context = Context("1", HARBOUR.media, ("A gull.",), tuple(Box("gull", c) for c in corners))
    found = list(prompts.reductions(context, config_with_examples(examples), "talk"))
    amounts = [(len(p.messages), p.messages[-1].content.count("[")) for p in found]
    assert len(set(amounts)) == len(amounts)
    assert all(b[0] <= a[0] and b[1] <= a[1] for a, b in zip(amounts, amounts[1:], strict=False))
    assert amounts[-1] == (2, 0)
    assert len(found) <= 1 + examples + 8


def questions_of(count: int) -> prompts.PromptConfig:
    questions = [f"Question {n}?" for n in range(count)]
    kind = {"system": "Describe.", "answer_form": "text", "questions": questions}
    return prompts.parse({**MINIMAL, "types": {"describe": kind}}, where="x")


def test_the_question_for_a_text_is_the_same_in_every_process() -> None:
    config = questions_of(10)
    drawn = [
        prompts.Draw(f"coco2017-{n}-describe", seed).question(config, "describe") or ""
        for seed in (0, 1)
        for n in range(4)
    ]
    assert [int(question.split()[1].rstrip("?")) for question in drawn] == [6, 4, 3, 3, 8, 7, 3, 1]


def test_questions_spread_over_samples_and_seeds() -> None:
    config = questions_of(10)

    def drawn(seed: int) -> list[str]:
        ids = (f"coco2017-{n}-describe" for n in range(1000))
        return [prompts.Draw(i, seed).question(config, "describe") or "" for i in ids]

    counts = Counter(drawn(0))
    assert len(counts) == 10
    assert all(60 <= count <= 140 for count in counts.values())
    assert drawn(0) != drawn(1)


STRICT = prompts.parse(
    {**MINIMAL, "forbidden_phrases": ["the caption", "isn't specified", "c++ (code)"]}, where="x"
)


@pytest.mark.parametrize(
    ("text", "leak"),
    [
        ("THE CAPTION says so.", "phrase 'the caption'"),
        ("Look at the\n  caption.", "phrase 'the\\n  caption'"),
        ("'The caption' says so.", "phrase 'the caption'"),
        ("It isn't specified.", 'phrase "isn\'t specified"'),
        ("It isn\u2019t specified.", "phrase 'isn\u2019t specified'"),
        ("This is C++ (code).", "phrase 'c++ (code)'"),
        ("It is at [0.1, 0.25, 0.3, 0.4].", "coordinates '[0.1, 0.25, 0.3, 0.4]'"),
        ("It is at (0.12, 0.3).", "coordinates '(0.12, 0.3)'"),
        ("It is at [ .5 , 1.0 ].", "coordinates '[ .5 , 1.0 ]'"),
        ("It is at [0, 0.2, 1, 0.9].", "coordinates '[0, 0.2, 1, 0.9]'"),
        ("Its box is 0.1, 0.2, 0.3, 0.4 wide.", "coordinates '0.1, 0.2, 0.3, 0.4'"),
        ("from 0.1,0.2,0.3 on", "coordinates '0.1,0.2,0.3'"),
    ],
)
def test_what_gives_the_annotations_away_is_found(text: str, leak: str) -> None:
    assert STRICT.find_leak(text) == leak


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The captions differ.",
        "He breathes captionless.",
        "bathe captions",
        "The score is 0.5 to 1.5.",
        "It costs 0.99, or 1.50 with sugar.",
        "A group (about 10) waits at platform [3].",
        "The years (1998, 2004) are on the plate.",
        "It is 7.30, and the sign says 12.5, 14.5, 16.5.",
        "Two options (a, b) are given.",
    ],
)
def test_what_only_looks_like_a_leak_is_none(text: str) -> None:
    assert STRICT.find_leak(text) is None


def test_coordinates_can_be_allowed() -> None:
    config = prompts.parse({**MINIMAL, "forbid_coordinates": False}, where="x")
    assert config.find_leak("It is at [0.1, 0.2, 0.3, 0.4].") is None


@pytest.mark.parametrize("opening", ["[", "(", "", "at [["])
@pytest.mark.parametrize("number", ["0.1", "0.123456", "1", ".5", "0.1 "])
def test_a_list_of_numbers_that_never_closes_is_searched_in_linear_time(
    opening: str, number: str
) -> None:
    """A pattern with two ways to match a number would take years for this."""
    text = f"{opening}{', '.join([number] * 2000)} and"
    leak = STRICT.find_leak(text)
    assert (leak is None) == (number == "1")


def test_an_example_that_shows_nothing_is_an_error() -> None:
    shown = {"captions": [], "boxes": [], "annotations": {"labels": []}}
    data = changed(FULL, EXAMPLE, {**FULL["types"]["talk"]["examples"][0], **shown})
    assert "needs captions, boxes or annotations" in error_of(data)


def test_annotations_of_examples_are_checked_by_their_kind() -> None:
    wrong = changed(FULL, f"{EXAMPLE}.annotations", {"labels": [{"lable": "dog"}]})
    assert f"my.yaml: {EXAMPLE}" in error_of(wrong)
    assert "an item has label" in error_of(wrong)
    unknown = changed(FULL, f"{EXAMPLE}.annotations", {"label": []})
    assert "did you mean 'labels'" in error_of(unknown)


@pytest.mark.parametrize("key", ["headings", "max_items"])
def test_rendering_names_kinds_that_exist(key: str) -> None:
    value = {"lables": "Here:" if key == "headings" else 3}
    assert "did you mean 'labels'" in error_of(changed(FULL, f"rendering.{key}", value))


RICH = Context(
    id="1",
    media=HARBOUR.media,
    captions=("A dog.",),
    boxes=(Box("dog", (0.1, 0.2, 0.3, 0.4), True, is_occluded=True, is_depiction=False),),
    annotations={
        "labels": (labels.Item("dog"), labels.Item("cat", present=False)),
        "narratives": (narratives.Item("There is a dog."), narratives.Item("A dog, I think.")),
        "relations": (),
    },
)


def test_every_kind_gets_a_section_at_its_place() -> None:
    assert prompts.render_context(RICH, Rendering()).split("\n\n") == [
        "Captions:\n- A dog.",
        "Spoken descriptions:\n- There is a dog.\n- A dog, I think.",
        "Objects:\ndog (group, partly hidden): [0.100, 0.200, 0.300, 0.400]",
        "Checked for the whole image:\n- There: dog\n- Not there: cat",
    ]


def test_a_config_gives_kinds_its_own_headings_and_bounds() -> None:
    rendering = Rendering(
        headings={"narratives": "Said:"}, max_items={"narratives": 1, "labels": 0}
    )
    sections = prompts.render_context(RICH, rendering).split("\n\n")
    assert "Said (the first 1 of 2):\n- There is a dog." in sections
    assert not any("whole image" in section for section in sections)


MARKED = "Talk.\n{if captions} Of captions.\n{if no captions} Of boxes alone.\nEnd."


def test_an_unknown_mark_is_an_error_with_the_nearest() -> None:
    data = {**MINIMAL, "types": {"talk": {"system": "{if box} Talk.", "answer_form": "turns"}}}
    with pytest.raises(ConfigError, match="system: '{if box}'.*did you mean 'boxes'"):
        prompts.parse(data, where="tiny.yaml")


def test_examples_without_something_obey_the_rules_of_all() -> None:
    leak = {"captions": ["A gull."], "turns": [{"question": "Who?", "answer": "[0.1, 0.2] is it."}]}
    kind = {"system": MARKED, "answer_form": "turns", "examples_without": {"boxes": [leak]}}
    with pytest.raises(ConfigError, match="example 1 breaks a rule: coordinates"):
        prompts.parse({**MINIMAL, "types": {"talk": kind}}, where="tiny.yaml")


def test_what_a_context_lacks_decides_on_words_examples_and_how_many_can_be_dropped() -> None:
    shown = {"boxes": [{"label": "dog", "bbox": [0.1, 0.2, 0.3, 0.4]}]}
    shown["turns"] = [{"question": "What is it?", "answer": "It is a dog."}]
    kind = config_with_examples(2).types["talk"].model_dump() | {"system": MARKED}
    kind["examples_without"] = {"captions": [shown]}
    config = prompts.parse({**MINIMAL, "types": {"talk": kind}}, where="tiny.yaml")
    boxed = Context("8", HARBOUR.media, boxes=HARBOUR.boxes[:1])
    first, second, *_ = prompts.reductions(boxed, config, "talk")
    assert first.messages[0].content == "Talk.\nOf boxes alone.\nEnd."
    assert (first.few_shots, second.few_shots, second.dropped_few_shots) == (1, 0, 1)
    captioned = Context("9", HARBOUR.media, ("A gull.",))
    for context in (captioned, HARBOUR):
        prompt = prompts.render(context, config, "talk")
        assert prompt.messages[0].content == "Talk.\nOf captions.\nEnd."
        assert prompt.few_shots == 2
    assert config.hash != config.whole.hash


def test_a_prompt_that_says_the_same_to_all_keeps_its_examples_whatever_its_parent_has() -> None:
    kind = config_with_examples(2).types["talk"].model_dump()
    kind["examples_without"] = {"boxes": []}
    config = prompts.parse({**MINIMAL, "types": {"talk": kind}}, where="tiny.yaml")
    captioned = Context("9", HARBOUR.media, ("A gull.",))
    assert prompts.render(captioned, config, "talk").few_shots == 2


MANY = tuple(
    Box(label, (n / 10, 0.1, n / 10 + 0.05, 0.2 + n / 20), **flags)
    for n, (label, flags) in enumerate(
        [
            ("cup", {}),
            ("person", {"is_group": True}),
            ("cup", {"is_occluded": True}),
            ("dog", {}),
            ("person", {}),
            ("dog", {}),
            ("cup", {}),
        ]
    )
)


def test_labels_of_many_boxes_are_one_line_with_their_number() -> None:
    context = Context("1", HARBOUR.media, boxes=MANY)
    for one_line in (False, True):
        rendering = Rendering(box_decimals=2, count_from=3, one_line_per_label=one_line)
        lines = prompts.render_context(context, rendering).splitlines()[1:]
        assert lines[:2] == [
            "cup (3): [0.00, 0.10, 0.05, 0.20], [0.20, 0.10, 0.25, 0.30] (partly hidden), "
            "[0.60, 0.10, 0.65, 0.50]",
            "person (group): [0.10, 0.10, 0.15, 0.25]",
        ]
        assert ("dog: [0.30, 0.10, 0.35, 0.35] [0.50, 0.10, 0.55, 0.45]" in lines) == one_line
        assert "person: [0.40, 0.10, 0.45, 0.40]" in lines


def test_a_number_of_boxes_is_that_of_all_where_only_the_largest_are_shown() -> None:
    context = Context("1", HARBOUR.media, boxes=MANY)
    text = prompts.render_context(context, Rendering(box_decimals=2, count_from=2, max_boxes=4))
    assert text.splitlines() == [
        "Objects (the 4 largest of 7):",
        "dog (2): [0.30, 0.10, 0.35, 0.35], [0.50, 0.10, 0.55, 0.45]",
        "person: [0.40, 0.10, 0.45, 0.40]",
        "cup (1 of 3): [0.60, 0.10, 0.65, 0.50]",
    ]


def drawn_config(draws: int = 4, **more: Any) -> prompts.PromptConfig:
    kind = config_with_examples(5).types["talk"].model_dump() | {
        "system": "Talk of\n{some} - one\n{if captions} {some} - two\n{some} - three\nEnd.",
        "examples_shown": 2,
    }
    return prompts.parse(
        {**MINIMAL, "types": {"talk": {**kind, **more}}, "draws": draws}, where="tiny.yaml"
    )


def test_a_draw_has_some_of_the_examples_and_half_of_the_marked_lines() -> None:
    drawn = drawn_config().fit(HARBOUR).drawn
    systems = [one.types["talk"].system.split("\n") for one in drawn]
    assert systems == [
        ["Talk of", "- one", "- two", "End."],
        ["Talk of", "- one", "- two", "End."],
        ["Talk of", "- two", "- three", "End."],
        ["Talk of", "- three", "- one", "End."],
    ]
    shown = [[e.captions[0] for e in one.types["talk"].examples] for one in drawn]
    assert shown == [[f"Scene {n}." for n in pair] for pair in ((1, 2), (2, 3), (3, 4), (4, 5))]


def test_rows_are_spread_over_the_draws_and_share_the_opening_of_theirs() -> None:
    config, openings = drawn_config(), Counter[tuple[int, ...]]()
    for number in range(400):
        draw = prompts.Draw(f"coco2017-{number}-talk", 7)
        first, *others = prompts.reductions(HARBOUR, config, "talk", draw)
        openings[tuple(map(id, first.messages[:-1]))] += 1
        assert first == prompts.render(HARBOUR, config, "talk", draw)
        assert [p.few_shots for p in (first, *others[:2])] == [2, 1, 0]
    assert len(openings) == 4
    assert all(70 <= count <= 130 for count in openings.values())
    other_seed = prompts.Draw("coco2017-1-talk", 8)
    seeds = {prompts.render(HARBOUR, config, "talk", other_seed).messages[0].content}
    seeds |= {
        prompts.render(HARBOUR, config, "talk", prompts.Draw("coco2017-1-talk", n))
        .messages[0]
        .content
        for n in range(20)
    }
    assert len(seeds) == 3


@pytest.mark.parametrize("more", [{"examples_shown": None}, {"system": "Talk."}])
def test_what_only_draws_can_show_needs_several_of_them(more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="draws: 1 would never show all of types.talk"):
        drawn_config(draws=1, **more)
    assert len(drawn_config(draws=2, **more).fit(HARBOUR).drawn) == 2


def test_a_question_is_shown_below_the_annotations_of_an_image_and_of_each_example() -> None:
    questions = [f"Describe it in {n} ways." for n in range(9)]
    examples = [{"captions": [f"Scene {n}."], "text": f"It is scene {n}."} for n in range(3)]
    kind = {"system": "X.", "answer_form": "text", "questions": questions, "examples": examples}
    data = {**MINIMAL, "types": {"tell": kind}}
    config = prompts.parse({**data, "rendering": {"question_heading": "Asked:"}}, where="x")
    for number in range(5):
        draw = prompts.Draw(str(number))
        shown = [m.content for m in prompts.render(HARBOUR, config, "tell", draw).messages[1::2]]
        plain = prompts.render(HARBOUR, prompts.parse(data, where="x"), "tell", draw)
        for text, without in zip(shown, plain.messages[1::2], strict=True):
            before, heading, asked = text.rpartition("\n\nAsked:\n")
            assert (before, heading) == (without.content, "\n\nAsked:\n")
            assert asked in questions
        assert asked == draw.question(config, "tell")
        assert len(set(shown)) == 4
