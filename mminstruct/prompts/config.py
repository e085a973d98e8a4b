"""The form of a prompt config."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain, groupby
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import Field, model_validator

from mminstruct import annotations as kinds
from mminstruct.errors import UsageError, did_you_mean
from mminstruct.prompts import leaks
from mminstruct.schema import Box, Context, Media, Turn, digest
from mminstruct.strict_yaml import Strict

Lacking = Literal["captions", "boxes"] | None
# A line of a system prompt that begins so is for the contexts that fit: what they may lack.
_MARK = re.compile(r"\{if ([^}]*)\} ")
_FITTING: dict[str, tuple[Lacking, ...]] = {
    "captions and boxes": (None,),
    "captions": (None, "boxes"),
    "boxes": (None, "captions"),
    "no captions": ("captions",),
    "no boxes": ("boxes",),
}
# Of the lines next to each other that begin so, a draw has half.
_SOME = "{some} "
# What was added to configs when some had been used: left out of the hash where it has its default.
_LATER = (
    *("filters", "draws", "examples_without", "examples_shown"),
    *("count_from", "question_heading", "max_absent"),
)
_T = TypeVar("_T")
AnswerForm = Literal["turns", "turn", "text"]
# YAML has numbers and truth values of its own; "3" isn't 3, nor is true 1.
Count = Annotated[int, Field(strict=True)]
Truth = Annotated[bool, Field(strict=True)]
Fraction = Annotated[float, Field(ge=0, le=1, strict=True)]


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
        flags = self.model_dump(exclude={"label", "bbox"})
        return Box(self.label, self.bbox, **{f"is_{name}": is_so for name, is_so in flags.items()})


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


FilterName = Literal[
    "refusal",
    "as_ai",
    "cannot_see",
    "leak",
    "unanswerable",
    "markup",
    "personal_data",
    "copied_example",
    "echoed_question",
    "gibberish",
    "repeated_question",
    "too_short",
    "language",
]
"""What an answer must not have to become a row; `answers.filters` looks for it."""


class Rendering(Strict):
    """How annotations are written for the model."""

    captions_heading: str = Field(default="Captions:", min_length=1)
    boxes_heading: str = Field(default="Objects:", min_length=1)
    box_decimals: Count = Field(default=3, ge=1, le=6)
    one_line_per_label: Truth = False
    max_captions: Count | None = Field(default=None, ge=1)
    max_boxes: Count | None = Field(default=None, ge=0)
    count_from: Count | None = Field(default=None, ge=2)
    question_heading: str | None = Field(default=None, min_length=1)
    max_absent: Count = Field(default=0, ge=0)
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
    examples_shown: Count | None = Field(default=None, ge=1)
    examples_without: dict[Literal["captions", "boxes"], tuple[Example, ...]] = {}

    @property
    def every_example(self) -> tuple[Example, ...]:
        """The examples for all kinds of contexts."""
        return tuple(chain(self.examples, *self.examples_without.values()))

    def fit(self, lacking: Lacking) -> InstructionType:
        """This as it is for contexts that lack one of two things, or none.

        With a system prompt that says the same to all, such as another config's, it is as for none.
        """
        lines = [(_MARK.match(line), line) for line in self.system.split("\n")]
        fitting = (e for e in lines if e[0] is None or lacking in _FITTING[e[0][1]])
        system = "\n".join(line[mark.end() :] if mark else line for mark, line in fitting)
        examples = self.examples
        if lacking is not None and system != self.system:
            examples = self.examples_without.get(lacking, examples)
        kept = self.model_dump(exclude={"system", "examples", "examples_without"})
        return InstructionType(system=system, examples=examples, **kept)

    @property
    def is_drawn(self) -> bool:
        """Whether not all of it is in every draw."""
        return self.examples_shown is not None or _SOME in self.system

    def draw(self, number: int, draws: int) -> InstructionType:
        """This with the examples and the marked lines of one of several draws."""
        lines: list[str] = []
        for is_some, block in groupby(self.system.split("\n"), lambda x: x.startswith(_SOME)):
            texts = [line.removeprefix(_SOME) for line in block]
            lines += _take(texts, -(-len(texts) // 2), number, draws) if is_some else texts
        shown = _take(self.examples, self.examples_shown, number, draws)
        kept = self.model_dump(exclude={"system", "examples", "examples_shown"})
        return InstructionType(system="\n".join(lines), examples=tuple(shown), **kept)

    @model_validator(mode="after")
    def _marks_are_known(self) -> InstructionType:
        for mark in filter(None, map(_MARK.match, self.system.split("\n"))):
            if mark[1] not in _FITTING:
                raise ValueError(f"system: '{{if {mark[1]}}}'{did_you_mean(mark[1], _FITTING)}")
        return self

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
        for number, example in enumerate(self.every_example, 1):
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
    filters: tuple[FilterName, ...] = get_args(FilterName)
    min_answer_tokens: Count = Field(default=400, ge=1)
    draws: Count = Field(default=1, ge=1)
    types: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], InstructionType] = Field(
        min_length=1
    )

    @model_validator(mode="after")
    def _no_type_is_called_default(self) -> PromptConfig:
        if "default" in self.types:
            raise ValueError("types: 'default' names all types together; choose another name")
        return self

    def find_leak(self, text: str) -> str | None:
        """Why a text gives away that its writer saw annotations, or None."""
        phrases, coordinates = self.forbidden_phrases, self.forbid_coordinates
        return leaks.find_leak(text, phrases, coordinates=coordinates)

    @model_validator(mode="after")
    def _examples_obey_own_rules(self) -> PromptConfig:
        for name, kind in self.types.items():
            for number, question in enumerate(kind.questions, 1):
                if leak := self.find_leak(question):
                    raise ValueError(f"types.{name}: question {number} breaks a rule: {leak}")
            for number, example in enumerate(kind.every_example, 1):
                if leak := self.find_leak(example.answer()):
                    raise ValueError(f"types.{name}: example {number} breaks a rule: {leak}")
                answers = [example.text or "", *(turn.answer for turn in example.turns)]
                if any(0 < len(answer.split()) < kind.min_words for answer in answers):
                    raise ValueError(f"types.{name}: example {number} is under min_words")
        return self

    @model_validator(mode="after")
    def _draws_show_all(self) -> PromptConfig:
        for name, kind in self.types.items():
            if self.draws == 1 and kind.is_drawn:
                raise ValueError(
                    f"draws: 1 would never show all of types.{name}, which has "
                    "'examples_shown' or '{some}'; give more"
                )
        return self

    @cached_property
    def hash(self) -> str:
        """Digest of everything in the config, 16 hex characters."""
        content = self.model_dump(mode="json")
        kinds = ((kind, content["types"][name]) for name, kind in self.types.items())
        for part, held in ((self, content), (self.rendering, content["rendering"]), *kinds):
            for name in held.keys() & _LATER:
                if getattr(part, name) == type(part).model_fields[name].default:
                    del held[name]
        return digest(content)[:16]

    def _replace(self, types: Mapping[str, InstructionType], **more: Any) -> PromptConfig:
        rest = {name: getattr(self, name) for name in type(self).model_fields}
        return PromptConfig(**{**rest, "types": types, **more})

    @cached_property
    def _fitted(self) -> dict[Lacking, PromptConfig]:
        """By what contexts lack, this as it is for those, where it is another."""
        kinds: tuple[Lacking, ...] = (None, "captions", "boxes")
        fitted = ((k, {n: kind.fit(k) for n, kind in self.types.items()}) for k in kinds)
        return {k: self._replace(own) for k, own in fitted if own != self.types}

    @property
    def drawn(self) -> tuple[PromptConfig, ...]:
        """This, once fitted, as it is in each of its draws, of which chance gives a row one."""
        return self._drawn if self.draws > 1 else (self,)

    @cached_property
    def _drawn(self) -> tuple[PromptConfig, ...]:
        numbers = range(self.draws)
        by_number = ({n: k.draw(i, self.draws) for n, k in self.types.items()} for i in numbers)
        return tuple(self._replace(types, draws=1) for types in by_number)

    @property
    def whole(self) -> PromptConfig:
        """This as it is for contexts that have both captions and boxes."""
        return self._fitted.get(None, self)

    def fit(self, context: Context) -> PromptConfig:
        """This in the words, and with the examples, for what a context has."""
        lacking: Lacking = None
        if bool(context.captions) != bool(context.boxes):
            lacking = "boxes" if context.captions else "captions"
        return self._fitted.get(lacking, self)


def format_turns(turns: Iterable[Turn]) -> str:
    """Turns in the labelled form that the model is asked for and `parse` reads."""
    return "\n\n".join(f"Question: {t.question}\nAnswer: {t.answer}" for t in turns)


def _take(items: Sequence[_T], count: int | None, number: int, draws: int) -> Sequence[_T]:
    """So many of the items, or all: the first draw from the first on, the others from later ones.

    What is over the end goes on at the beginning, so that all items come equally often.
    """
    if count is None:
        return items
    start = number * len(items) // draws
    return [*items[start:], *items[:start]][:count]
