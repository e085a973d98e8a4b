"""Prompt configs: strict YAML -> PromptConfig; Context -> the messages a model gets.

Few-shot examples are structured data and go through the same two functions as real contexts and
real answers (`render_context`, `format_turns`), so their format can't drift from what the model is
later shown, or from what `mminstruct.parse` reads.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mminstruct import annotations as kinds
from mminstruct import resources, strict_yaml
from mminstruct.errors import ConfigError, UsageError, did_you_mean, lacking
from mminstruct.schema import Box, Context, Media, Message, Turn, digest
from mminstruct.strict_yaml import Strict

AnswerForm = Literal["turns", "turn", "text"]
# YAML has numbers and truth values of its own; "3" isn't 3, nor is true 1.
Count = Annotated[int, Field(strict=True)]
Truth = Annotated[bool, Field(strict=True)]
Fraction = Annotated[float, Field(ge=0, le=1, strict=True)]

# One way only to match a number: two would take exponential time on a long list that never closes.
_FRACTION = r"[01]?\.\d+"
_COORDINATES = re.compile(
    rf"[\[(]\s*(?:{_FRACTION}|[01])\s*(?:,\s*(?:{_FRACTION}|[01])\s*)+[\])]"
    rf"|{_FRACTION}(?:\s*,\s*{_FRACTION}){{2,}}"
)
_DECIMAL = re.compile(r"\.\d")
_MAX_DECIMALS = 9
_IDENTITY = ("name", "version", "description")


class ExampleBox(Strict):
    """A box of a few-shot example; ``bbox`` is min_x, min_y, max_x, max_y in 0..1."""

    label: str = Field(min_length=1)
    bbox: tuple[Fraction, Fraction, Fraction, Fraction]
    group: Truth = False
    occluded: Truth | None = None
    truncated: Truth | None = None
    depiction: Truth | None = None
    inside: Truth | None = None

    @model_validator(mode="after")
    def _min_before_max(self) -> ExampleBox:
        min_x, min_y, max_x, max_y = self.bbox
        if not (min_x < max_x and min_y < max_y):
            raise ValueError(
                f"bbox is [min_x, min_y, max_x, max_y] and needs min < max, got {list(self.bbox)}"
            )
        return self

    def box(self) -> Box:
        """The box as a source would give it."""
        return Box(
            label=self.label,
            bbox_xyxy_norm=self.bbox,
            is_group=self.group,
            is_occluded=self.occluded,
            is_truncated=self.truncated,
            is_depiction=self.depiction,
            is_inside=self.inside,
        )


class ExampleTurn(Strict):
    """A question and its answer."""

    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)


class Example(Strict):
    """A few-shot example: annotations, and the answer we would like for them."""

    captions: tuple[str, ...] = ()
    boxes: tuple[ExampleBox, ...] = ()
    annotations: dict[str, tuple[dict[str, Any], ...]] = {}
    turns: tuple[ExampleTurn, ...] = ()
    text: str | None = None

    @model_validator(mode="after")
    def _shows_something(self) -> Example:
        if not (self.captions or self.boxes or any(self.annotations.values())):
            raise ValueError("an example needs captions, boxes or annotations")
        try:
            for kind, items in self.annotations.items():
                kinds.items(kind, items)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return self

    def context(self) -> Context:
        """The annotations as a source would give them."""
        return Context(
            id="example",
            media=Media(file_name="example"),
            captions=self.captions,
            boxes=tuple(box.box() for box in self.boxes),
            annotations={k: kinds.items(k, items) for k, items in self.annotations.items()},
        )

    def answer(self) -> str:
        """The answer in the text form that the model is asked for."""
        if self.text is not None:
            return self.text
        return format_turns(Turn(t.question, t.answer) for t in self.turns)


class Rendering(Strict):
    """How annotations are written for the model."""

    captions_heading: str = Field(default="Captions:", min_length=1)
    boxes_heading: str = Field(default="Objects:", min_length=1)
    box_decimals: Count = Field(default=3, ge=1, le=6)
    one_line_per_label: Truth = False
    max_captions: Count | None = Field(default=None, ge=1)
    max_boxes: Count | None = Field(default=None, ge=0)
    headings: dict[str, str] = {}
    max_items: dict[str, Annotated[Count, Field(ge=0)]] = {}

    @model_validator(mode="after")
    def _kinds_exist(self) -> Rendering:
        for kind in (*self.headings, *self.max_items):
            if kind not in kinds.names():
                hint = did_you_mean(kind, kinds.names())
                raise ValueError(f"unknown kind of annotation {kind!r}{hint}")
        return self


class InstructionType(Strict):
    """One kind of instruction that is asked for, such as ``conversation``."""

    system: str = Field(min_length=1)
    answer_form: AnswerForm
    questions: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    min_words: Count = Field(default=1, ge=1)
    examples: tuple[Example, ...] = ()

    @cached_property
    def example_turns(self) -> frozenset[tuple[str, str]]:
        """(question, answer) of all examples; the question of a text is empty."""
        turns = {(t.question, t.answer) for example in self.examples for t in example.turns}
        return frozenset(turns | {("", example.text) for example in self.examples if example.text})

    @model_validator(mode="after")
    def _consistent(self) -> InstructionType:
        if (self.answer_form == "text") != bool(self.questions):
            raise ValueError(
                "'questions' are what a 'text' answer is paired with: give them for answer_form "
                f"'text' and for no other, got answer_form {self.answer_form!r} with "
                f"{len(self.questions)} questions"
            )
        for number, example in enumerate(self.examples, 1):
            if self.answer_form == "text":
                fits = example.text is not None and not example.turns
            else:
                fits = example.text is None and len(example.turns) >= 1
            if self.answer_form == "turn":
                fits = fits and len(example.turns) == 1
            if not fits:
                raise ValueError(
                    f"example {number} does not fit answer_form {self.answer_form!r}: "
                    "'turns' needs turns, 'turn' exactly one of them, 'text' needs text"
                )
        return self


class PromptConfig(Strict):
    """A whole prompt config, after ``extends`` has been resolved. README.md explains every key."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    license: str = Field(min_length=1)
    description: str = Field(min_length=1)
    rendering: Rendering = Rendering()
    forbidden_phrases: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    forbid_coordinates: Truth = True
    min_answer_tokens: Count = Field(default=400, ge=1)
    types: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], InstructionType] = Field(
        min_length=1
    )

    @model_validator(mode="after")
    def _no_type_is_called_default(self) -> PromptConfig:
        if "default" in self.types:
            raise ValueError("types: 'default' names all types together; choose another name")
        return self

    @model_validator(mode="after")
    def _examples_obey_own_rules(self) -> PromptConfig:
        for name, kind in self.types.items():
            for number, question in enumerate(kind.questions, 1):
                if leak := find_leak(self, question):
                    raise ValueError(f"types.{name}: question {number} breaks a rule: {leak}")
            for number, example in enumerate(kind.examples, 1):
                if leak := find_leak(self, example.answer()):
                    raise ValueError(f"types.{name}: example {number} breaks a rule: {leak}")
                answers = [example.text or "", *(turn.answer for turn in example.turns)]
                if any(0 < len(answer.split()) < kind.min_words for answer in answers):
                    raise ValueError(f"types.{name}: example {number} is under min_words")
        return self

    @cached_property
    def hash(self) -> str:
        """Digest of everything in the config, 16 hex characters."""
        return digest(self.model_dump(mode="json"))[:16]


def names() -> list[str]:
    """The prompt configs that come with the package."""
    return sorted(p.stem for p in resources.folder("prompt_configs").glob("*.yaml"))


def find(name: str) -> Path:
    """The file of a prompt config given by name, path, or the old ``prompt_config_<name>.yaml``.

    Raises:
        UsageError: there is none.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    stem = path.name.removesuffix(".yaml").removesuffix(".yml").removeprefix("prompt_config_")
    if stem in names() and path.parent == Path():
        return resources.folder("prompt_configs") / f"{stem}.yaml"
    hint = did_you_mean(stem, names())
    raise UsageError(f"no prompt config {name!r}{lacking(path)}{hint}, or give a file")


def load(name: str) -> PromptConfig:
    """The prompt config of that name or path, validated.

    Raises:
        UsageError: there is none.
        ConfigError: it breaks the schema, has another name than its file, or can't be read.
    """
    path = find(name)
    data = _read_with_parents(path)
    content = (path.name, repr(data))
    if content not in _loaded:
        config = parse(data, where=path.name)
        if config.name != path.stem:
            raise ConfigError(
                f"{path.name}: name: expected {path.stem!r}, as the file is called, got "
                f"{config.name!r}; change the one or the other"
            )
        _loaded[content] = config
    return _loaded[content]


# By what was read: files are read again each time, as they may have been edited.
_loaded: dict[tuple[str, str], PromptConfig] = {}


def parse(data: Mapping[str, Any], *, where: str) -> PromptConfig:
    """A validated prompt config from plain data; ``where`` names it in errors.

    Raises:
        ConfigError: with every violation, one a line.
    """
    return strict_yaml.validate(PromptConfig, data, where=where, more_keys=["extends"])


def type_names(config: PromptConfig, chosen: tuple[str, ...] | None) -> tuple[str, ...]:
    """The instruction types to generate: the chosen ones in the config's order, or all.

    Raises:
        UsageError: one of them isn't in the config.
    """
    for name in chosen or ():
        if name not in config.types:
            raise UsageError(
                f"prompt config {config.name!r} has no instruction type {name!r}"
                f"{did_you_mean(name, config.types)}"
            )
    return tuple(name for name in config.types if not chosen or name in chosen)


def _read_with_parents(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path in seen:
        raise ConfigError(f"{path.name}: 'extends' goes in a circle")
    data = strict_yaml.read(path)
    parent = data.pop("extends", None)
    if parent is None:
        return data
    if isinstance(parent, list | dict):
        raise ConfigError(
            f"{path.name}: extends: expected one prompt config's name or path, got {parent!r}"
        )
    for key in _IDENTITY:
        if key not in data:
            raise ConfigError(f"{path.name}: {key}: this key is missing ('extends' leaves it out)")
    beside = (path.parent / f"{parent}.yaml", path.parent / str(parent))
    parent_path = next((p for p in beside if p.is_file()), None) or find(str(parent))
    return _merged(_read_with_parents(parent_path, (*seen, path)), data)


def _merged(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    """Child over parent: mappings are merged key by key, everything else is replaced."""
    merged = dict(parent)
    for key, value in child.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merged(old, value)
        merged[key] = value
    return merged


@dataclass(frozen=True, slots=True)
class Prompt:
    """The messages for one context and type, and what had to be left out to fit.

    Attributes:
        messages: system, then user/assistant pairs of the examples, then the user's context.
        few_shots: how many examples are in it.
        dropped_few_shots: how many were left out to fit the window.
        dropped_boxes: how many of the smallest boxes were left out to fit the window.
    """

    messages: tuple[Message, ...]
    few_shots: int
    dropped_few_shots: int = 0
    dropped_boxes: int = 0


def render_context(context: Context, rendering: Rendering, *, max_boxes: int | None = None) -> str:
    """The annotations as the model reads them: a section for each kind, in the kinds' order.

    Where not all boxes are shown (the config's bound, or ``max_boxes`` if that is less), the
    heading says so, as a model would otherwise count what it sees.
    """
    sections: list[tuple[int, str]] = []
    if context.captions:
        captions = context.captions[: rendering.max_captions]
        text = "\n".join([rendering.captions_heading, *(f"- {c}" for c in captions)])
        sections.append((kinds.CAPTIONS_ORDER, text))
    limits = [n for n in (rendering.max_boxes, max_boxes) if n is not None]
    boxes = _largest(context.boxes, min(limits) if limits else None)
    if boxes:
        heading = rendering.boxes_heading
        if len(boxes) < len(context.boxes):
            heading = (
                f"{heading.removesuffix(':')} (the {len(boxes)} largest of {len(context.boxes)}):"
            )
        if rendering.one_line_per_label:
            lines = _lines_per_label(boxes, rendering.box_decimals)
        else:
            lines = [f"{_label(box)}: {_bbox(box, rendering.box_decimals)}" for box in boxes]
        sections.append((kinds.BOXES_ORDER, "\n".join([heading, *lines])))
    for kind, items in context.annotations.items():
        if section := _section(kind, items, rendering):
            sections.append((kinds.order(kind), section))
    return "\n\n".join(text for _, text in sorted(sections))


def _section(kind: str, items: Sequence[Any], rendering: Rendering) -> str:
    """The heading and the lines of a kind of annotation, or nothing if there are none."""
    heading = rendering.headings.get(kind) or kinds.heading(kind)
    limit = rendering.max_items.get(kind, len(items))
    if limit < len(items):
        heading = f"{heading.removesuffix(':')} (the first {limit} of {len(items)}):"
    lines = kinds.lines(kind, items[:limit])
    return "\n".join([heading, *lines]) if lines else ""


def format_turns(turns: Iterable[Turn]) -> str:
    """Turns in the labelled form that the model is asked for and `parse` reads."""
    return "\n\n".join(f"Question: {t.question}\nAnswer: {t.answer}" for t in turns)


def render(
    context: Context,
    config: PromptConfig,
    type_name: str,
    *,
    drop_few_shots: int = 0,
    drop_boxes: int = 0,
) -> Prompt:
    """The messages for a context: the last examples and the smallest boxes dropped as asked."""
    few_shots = len(config.types[type_name].examples) - drop_few_shots
    max_boxes = _shown_boxes(context, config) - drop_boxes if drop_boxes else None
    return Prompt(
        messages=(
            *_opening(config, type_name)[: 1 + 2 * few_shots],
            Message("user", render_context(context, config.rendering, max_boxes=max_boxes)),
        ),
        few_shots=few_shots,
        dropped_few_shots=drop_few_shots,
        dropped_boxes=drop_boxes,
    )


def reductions(context: Context, config: PromptConfig, type_name: str) -> Iterator[Prompt]:
    """Ever shorter prompts for a context: whole, fewer examples, then fewer boxes down to none.

    Boxes go in steps that double, smallest boxes first, so that few prompts have to be tried.
    """
    examples = len(config.types[type_name].examples)
    for dropped in range(examples + 1):
        yield render(context, config, type_name, drop_few_shots=dropped)
    boxes = _shown_boxes(context, config)
    step = 1
    while boxes:
        yield render(
            context, config, type_name, drop_few_shots=examples, drop_boxes=min(step, boxes)
        )
        if step >= boxes:
            return
        step *= 2


def question_for(config: PromptConfig, type_name: str, *, sample_id: str, seed: int) -> str:
    """The question that a ``text`` answer is paired with, drawn by sample id and seed."""
    questions = config.types[type_name].questions
    return random.Random(f"{seed}/{sample_id}").choice(questions)  # noqa: S311


def find_leak(config: PromptConfig, text: str) -> str | None:
    """Why a text gives away that its writer saw annotations rather than the image, or None."""
    # The first pattern is a cheap hint: nearly all texts end there.
    hinted = config.forbid_coordinates and _DECIMAL.search(text)
    if hinted and (match := _COORDINATES.search(text)):
        return f"coordinates {match.group()!r}"
    pattern = _forbidden(config.forbidden_phrases)
    if pattern is None or not _might_match(config.forbidden_phrases, text.lower()):
        return None
    match = pattern.search(text)
    return f"phrase {match.group().lower()!r}" if match else None


def _might_match(phrases: tuple[str, ...], lower_text: str) -> bool:
    """Whether the longest word of a phrase occurs; ten times as fast as the pattern."""
    for word in _longest_words(phrases):  # noqa: SIM110 (`any` takes half as long again)
        if word in lower_text:
            return True
    return False


@lru_cache(maxsize=32)
def _longest_words(phrases: tuple[str, ...]) -> tuple[str, ...]:
    words = {max(re.split(r"['\s]", phrase.lower()), key=len) for phrase in phrases}
    # A word that contains another one of them can't match where that one doesn't.
    return tuple(w for w in sorted(words) if not any(o != w and o in w for o in words))


@lru_cache(maxsize=32)
def _forbidden(phrases: tuple[str, ...]) -> re.Pattern[str] | None:
    if not phrases:
        return None
    spelled = (
        r"\s+".join(re.escape(word).replace("'", "['\u2019]") for word in phrase.split())
        for phrase in phrases
    )
    return re.compile(rf"(?<!\w)(?:{'|'.join(spelled)})(?!\w)", re.IGNORECASE)


_openings: dict[tuple[int, str], tuple[PromptConfig, tuple[Message, ...]]] = {}


def _opening(config: PromptConfig, type_name: str) -> tuple[Message, ...]:
    """System message and examples: the same objects for all requests of a type."""
    key = (id(config), type_name)
    cached = _openings.get(key)
    if cached is None or cached[0] is not config:
        kind = config.types[type_name]
        messages = [Message("system", kind.system)]
        for example in kind.examples:
            messages.append(Message("user", render_context(example.context(), config.rendering)))
            messages.append(Message("assistant", example.answer()))
        cached = _openings[key] = (config, tuple(messages))
    return cached[1]


def _shown_boxes(context: Context, config: PromptConfig) -> int:
    limit = config.rendering.max_boxes
    return len(context.boxes) if limit is None else min(limit, len(context.boxes))


def _largest(boxes: tuple[Box, ...], count: int | None) -> tuple[Box, ...]:
    """The largest boxes by area, in their original order."""
    if count is None or count >= len(boxes):
        return boxes
    ranked = sorted(range(len(boxes)), key=lambda i: (-boxes[i].area, i))
    return tuple(boxes[i] for i in sorted(ranked[:count]))


def _lines_per_label(boxes: tuple[Box, ...], decimals: int) -> list[str]:
    by_label: dict[str, list[str]] = {}
    for box in boxes:
        by_label.setdefault(_label(box), []).append(_bbox(box, decimals))
    return [f"{label}: {' '.join(bboxes)}" for label, bboxes in by_label.items()]


def _label(box: Box) -> str:
    """The label with what is known of the box, such as ``dog (group, partly hidden)``."""
    if not (
        box.is_group or box.is_depiction or box.is_inside or box.is_occluded or box.is_truncated
    ):
        return box.label
    flags = (
        (box.is_group, "group"),
        (box.is_depiction, "depiction"),
        (box.is_inside, "seen from inside"),
        (box.is_occluded, "partly hidden"),
        (box.is_truncated, "cut off by the edge"),
    )
    return f"{box.label} ({', '.join(words for is_so, words in flags if is_so)})"


def _bbox(box: Box, decimals: int) -> str:
    """The box in text, with as many more decimals as a tiny one needs to keep its two sides."""
    left, top, right, bottom = box.bbox_xyxy_norm
    while True:
        pattern, apart = _bbox_pattern(decimals)
        text = pattern % box.bbox_xyxy_norm
        if right - left > apart and bottom - top > apart:
            return text
        min_x, min_y, max_x, max_y = text[1:-1].split(", ")
        if (min_x != max_x and min_y != max_y) or decimals >= _MAX_DECIMALS:
            return text
        decimals += 1


@lru_cache(maxsize=16)
def _bbox_pattern(decimals: int) -> tuple[str, float]:
    """How four numbers are written, and how far two may be apart and still look the same."""
    return f"[{', '.join([f'%.{decimals}f'] * 4)}]", 1.5 * 10.0**-decimals
