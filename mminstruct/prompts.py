"""Prompt configs: strict YAML -> PromptConfig; Context -> the messages a model gets.

Few-shot examples are structured data and go through the same two functions as real contexts and
real answers (`render_context`, `format_turns`), so their format can't drift from what the model is
later shown, or from what `mminstruct.parse` reads.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mminstruct import resources
from mminstruct.errors import ConfigError, UsageError, did_you_mean
from mminstruct.schema import Box, Context, Media, Message, Turn, digest

AnswerForm = Literal["turns", "turn", "text"]
Fraction = Annotated[float, Field(ge=0, le=1)]

# One way only to match a number: two would take exponential time on a long list that never closes.
_FRACTION = r"[01]?\.\d+"
_COORDINATES = re.compile(
    rf"[\[(]\s*(?:{_FRACTION}|[01])\s*(?:,\s*(?:{_FRACTION}|[01])\s*)+[\])]"
    rf"|{_FRACTION}(?:\s*,\s*{_FRACTION}){{2,}}"
)
_DECIMAL = re.compile(r"\.\d")
_MAX_DECIMALS = 9
_IDENTITY = ("name", "version", "description")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class ExampleBox(_Strict):
    """A box of a few-shot example; ``bbox`` is min_x, min_y, max_x, max_y in 0..1."""

    label: str = Field(min_length=1)
    bbox: tuple[Fraction, Fraction, Fraction, Fraction]
    group: bool = False

    @model_validator(mode="after")
    def _min_before_max(self) -> ExampleBox:
        min_x, min_y, max_x, max_y = self.bbox
        if not (min_x < max_x and min_y < max_y):
            raise ValueError(
                f"bbox is [min_x, min_y, max_x, max_y] and needs min < max, got {list(self.bbox)}"
            )
        return self


class ExampleTurn(_Strict):
    """A question and its answer."""

    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)


class Example(_Strict):
    """A few-shot example: annotations, and the answer we would like for them."""

    captions: tuple[str, ...] = Field(min_length=1)
    boxes: tuple[ExampleBox, ...] = ()
    turns: tuple[ExampleTurn, ...] = ()
    text: str | None = None

    def context(self) -> Context:
        """The annotations as a source would give them."""
        return Context(
            id="example",
            media=Media(file_name="example"),
            captions=self.captions,
            boxes=tuple(
                Box(label=b.label, bbox_xyxy_norm=b.bbox, is_group=b.group) for b in self.boxes
            ),
        )

    def answer(self) -> str:
        """The answer in the text form that the model is asked for."""
        if self.text is not None:
            return self.text
        return format_turns(Turn(t.question, t.answer) for t in self.turns)


class Rendering(_Strict):
    """How annotations are written for the model."""

    captions_heading: str = Field(default="Captions:", min_length=1)
    boxes_heading: str = Field(default="Objects:", min_length=1)
    box_decimals: int = Field(default=3, ge=1, le=6)
    one_line_per_label: bool = False
    max_captions: int | None = Field(default=None, ge=1)
    max_boxes: int | None = Field(default=None, ge=0)


class InstructionType(_Strict):
    """One kind of instruction that is asked for, such as ``conversation``."""

    system: str = Field(min_length=1)
    answer_form: AnswerForm
    questions: tuple[str, ...] = ()
    min_words: int = Field(default=1, ge=1)
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


class PromptConfig(_Strict):
    """A whole prompt config, after ``extends`` has been resolved. README.md explains every key."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    license: str = Field(min_length=1)
    description: str = Field(min_length=1)
    rendering: Rendering = Rendering()
    forbidden_phrases: tuple[str, ...] = ()
    forbid_coordinates: bool = True
    min_answer_tokens: int = Field(default=400, ge=1)
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
    raise UsageError(f"no prompt config {name!r}{did_you_mean(stem, names())}, or give a file")


def load(name: str) -> PromptConfig:
    """The prompt config of that name or path, validated.

    Raises:
        UsageError: there is none.
        ConfigError: it breaks the schema, or can't be read.
    """
    path = find(name)
    return parse(_read_with_parents(path), where=path.name)


def parse(data: Mapping[str, Any], *, where: str) -> PromptConfig:
    """A validated prompt config from plain data; ``where`` names it in errors.

    Raises:
        ConfigError: with every violation, one a line.
    """
    try:
        return PromptConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, where))) from error


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


class _UniqueKeyLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """SafeLoader that refuses a key given twice, where YAML loaders keep the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def _read_with_parents(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path in seen:
        raise ConfigError(f"{path.name}: 'extends' goes in a circle")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)  # noqa: S506
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path.name}: not readable as YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path.name}: expected a mapping at the top, got {type(data).__name__}")
    parent = data.pop("extends", None)
    if parent is None:
        return data
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


def _explain(error: ValidationError, where: str) -> Iterator[str]:
    for item in error.errors():
        location = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            key = str(item["loc"][-1])
            hint = did_you_mean(key, _keys_at(item["loc"][:-1]))
            inside = location.rpartition(".")[0]
            yield f"{where}: unknown key {key!r}{' in ' + inside if inside else ''}{hint}"
        elif item["type"] == "missing":
            yield f"{where}: {location}: this key is missing"
        else:
            message = item["msg"].removeprefix("Value error, ")
            got = item["input"]
            shown = f", got {got!r}" if isinstance(got, str | int | float | bool) else ""
            # Our own rules about the whole name the place themselves.
            place = location or ("" if item["type"] == "value_error" else "the top")
            yield f"{where}: {place + ': ' if place else ''}{message}{shown}"


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the schema knows at a place in the file."""
    tail = [part for part in location if not isinstance(part, int)]
    models: dict[str, type[_Strict]] = {
        "rendering": Rendering,
        "examples": Example,
        "boxes": ExampleBox,
        "turns": ExampleTurn,
    }
    if not tail:
        return ["extends", *PromptConfig.model_fields]
    if len(tail) == 2 and tail[0] == "types":
        return list(InstructionType.model_fields)
    model = models.get(str(tail[-1]))
    return list(model.model_fields) if model else []


# --- from annotations to messages -------------------------------------------------------------


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
    """The annotations as the model reads them: a section for captions, one for objects.

    Where not all boxes are shown (the config's bound, or ``max_boxes`` if that is less), the
    heading says so, as a model would otherwise count what it sees.
    """
    sections = []
    if context.captions:
        captions = context.captions[: rendering.max_captions]
        sections.append("\n".join([rendering.captions_heading, *(f"- {c}" for c in captions)]))
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
        sections.append("\n".join([heading, *lines]))
    return "\n\n".join(sections)


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
    return any(word in lower_text for word in _longest_words(phrases))


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
    return f"{box.label} (group)" if box.is_group else box.label


def _bbox(box: Box, decimals: int) -> str:
    """The box in text, with as many more decimals as a tiny one needs to keep its two sides."""
    while True:
        value = f"%.{decimals}f"
        text = f"{value}, {value}, {value}, {value}" % box.bbox_xyxy_norm
        min_x, min_y, max_x, max_y = text.split(", ")
        if (min_x != max_x and min_y != max_y) or decimals >= _MAX_DECIMALS:
            return f"[{text}]"
        decimals += 1
