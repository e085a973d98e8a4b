"""Prompt configs: strict YAML -> PromptConfig; Context -> the messages a model gets.

Few-shot examples are structured data and go through the same two functions as real contexts and
real answers (`render_context`, `format_turns`), so their format can't drift from what the model is
later shown, or from what `mminstruct.answers.parse` reads.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress
from operator import attrgetter
from typing import Any

from mminstruct import annotations as kinds
from mminstruct.prompts.config import PromptConfig, Rendering
from mminstruct.schema import Box, Context, Message

_MAX_DECIMALS = 9
_FLAGS = {
    "is_group": "group",
    "is_depiction": "depiction",
    "is_inside": "seen from inside",
    "is_occluded": "partly hidden",
    "is_truncated": "cut off by the edge",
}
_read_flags = attrgetter(*_FLAGS)


@dataclass(frozen=True, slots=True)
class Draw:
    """What chance goes by in the prompt of a row: the same in every process.

    Attributes:
        sample_id: of the row.
        seed: of the run.
    """

    sample_id: str = ""
    seed: int = 0

    def random(self, what: str = "") -> random.Random:
        """A generator for one of the things that are drawn."""
        return random.Random(f"{self.seed}/{self.sample_id}{what}")  # noqa: S311 (drawn again alike, no secret)

    def fit(self, context: Context, config: PromptConfig) -> PromptConfig:
        """The config in the words for what a context has, and in one of its draws."""
        drawn = config.fit(context).drawn
        # A generator takes ten times as long for one number.
        drawing = hashlib.blake2b(f"{self.seed}/{self.sample_id}".encode(), digest_size=8)
        return drawn[int.from_bytes(drawing.digest(), "big") % len(drawn)]

    def question(self, config: PromptConfig, type_name: str) -> str | None:
        """The question that a ``text`` answer is paired with; the other forms have none."""
        questions = config.types[type_name].questions
        return self.random().choice(questions) if questions else None


_ANY_DRAW = Draw()


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
    boxes = _pick_largest(context.boxes, min(limits) if limits else None)
    if boxes:
        heading = rendering.boxes_heading
        if len(boxes) < len(context.boxes):
            heading = (
                f"{heading.removesuffix(':')} (the {len(boxes)} largest of {len(context.boxes)}):"
            )
        lines = _write_boxes(boxes, context.boxes, rendering)
        sections.append((kinds.BOXES_ORDER, "\n".join([heading, *lines])))
    for kind, items in context.annotations.items():
        if section := _render_section(kind, items, rendering):
            sections.append((kinds.order(kind), section))
    return "\n\n".join(text for _, text in sorted(sections))


def _render_section(kind: str, items: Sequence[Any], rendering: Rendering) -> str:
    """The heading and the lines of a kind of annotation, or nothing if there are none."""
    heading = rendering.headings.get(kind) or kinds.heading(kind)
    limit = rendering.max_items.get(kind, len(items))
    if limit < len(items):
        heading = f"{heading.removesuffix(':')} (the first {limit} of {len(items)}):"
    lines = kinds.lines(kind, items[:limit])
    return "\n".join([heading, *lines]) if lines else ""


def render(
    context: Context,
    config: PromptConfig,
    type_name: str,
    draw: Draw = _ANY_DRAW,
    *,
    drop_few_shots: int = 0,
    drop_boxes: int = 0,
) -> Prompt:
    """The messages for a context: the last examples and the smallest boxes dropped as asked."""
    config = draw.fit(context, config)
    few_shots = len(config.types[type_name].examples) - drop_few_shots
    max_boxes = _count_shown_boxes(context, config) - drop_boxes if drop_boxes else None
    shown = render_context(context, config.rendering, max_boxes=max_boxes)
    question = draw.question(config, type_name)
    return Prompt(
        messages=(
            *_make_opening(config, type_name)[: 1 + 2 * few_shots],
            Message("user", _add_question(shown, question, config.rendering)),
        ),
        few_shots=few_shots,
        dropped_few_shots=drop_few_shots,
        dropped_boxes=drop_boxes,
    )


def reductions(
    context: Context, config: PromptConfig, type_name: str, draw: Draw = _ANY_DRAW
) -> Iterator[Prompt]:
    """Ever shorter prompts for a context: whole, fewer examples, then fewer boxes down to none.

    Boxes go in steps that double, smallest boxes first, so that few prompts have to be tried.
    """
    config = draw.fit(context, config)
    examples = len(config.types[type_name].examples)
    for dropped in range(examples + 1):
        yield render(context, config, type_name, draw, drop_few_shots=dropped)
    boxes = _count_shown_boxes(context, config)
    step = 1
    while boxes:
        yield render(
            context,
            config,
            type_name,
            draw,
            drop_few_shots=examples,
            drop_boxes=min(step, boxes),
        )
        if step >= boxes:
            return
        step *= 2


def _add_question(shown: str, question: str | None, rendering: Rendering) -> str:
    """The annotations, and below them what will have been asked, if the config shows it."""
    heading = rendering.question_heading
    return f"{shown}\n\n{heading}\n{question}" if heading and question else shown


# `_make_opening` alone writes it, in any thread: two would write equal messages.
_openings: dict[tuple[int, str], tuple[PromptConfig, tuple[Message, ...]]] = {}


def _make_opening(config: PromptConfig, type_name: str) -> tuple[Message, ...]:
    """System message and examples: the same objects for all requests of a type."""
    key = (id(config), type_name)
    cached = _openings.get(key)
    if cached is None or cached[0] is not config:
        kind = config.types[type_name]
        messages = [Message("system", kind.system)]
        for example in kind.examples:
            shown = render_context(example.context(), config.rendering)
            question = Draw(example.text or "").question(config, type_name)
            messages.append(Message("user", _add_question(shown, question, config.rendering)))
            messages.append(Message("assistant", example.answer()))
        cached = _openings[key] = (config, tuple(messages))
    return cached[1]


def _count_shown_boxes(context: Context, config: PromptConfig) -> int:
    limit = config.rendering.max_boxes
    return len(context.boxes) if limit is None else min(limit, len(context.boxes))


def _pick_largest(boxes: tuple[Box, ...], count: int | None) -> tuple[Box, ...]:
    """The largest boxes by area, in their original order."""
    if count is None or count >= len(boxes):
        return boxes
    ranked = sorted(range(len(boxes)), key=lambda i: (-boxes[i].area, i))
    return tuple(boxes[i] for i in sorted(ranked[:count]))


def _write_boxes(boxes: Sequence[Box], known: Sequence[Box], rendering: Rendering) -> Iterable[str]:
    """A line for each box, or for each label; labels of many boxes have one, with their number.

    A line's boxes may differ in what is known of them. A group stands apart, as it has no number.

    Args:
        boxes: those shown.
        known: all of them.
        rendering: says from which number on labels are counted.
    """
    least = rendering.count_from
    there, shown = (
        Counter(box.label for box in some if least and not box.is_group) for some in (known, boxes)
    )
    lines: dict[tuple[str, int], str] = {}
    for number, box in enumerate(boxes):
        bbox, flags = _write_bbox(box, rendering.box_decimals), _describe_flags(box)
        if least and not box.is_group and there[box.label] >= least:
            count, of = shown[box.label], there[box.label]
            head = f"{box.label} ({count if count == of else f'{count} of {of}'})"
            key, text, between = (head, -1), bbox + flags, ", "
        else:
            head = box.label + flags
            key, text, between = (head, -1 if rendering.one_line_per_label else number), bbox, " "
        lines[key] = f"{lines[key]}{between}{text}" if key in lines else f"{head}: {text}"
    return lines.values()


def _describe_flags(box: Box) -> str:
    """What is known of the box, such as `` (group, partly hidden)``, or nothing."""
    flags = _read_flags(box)
    return f" ({', '.join(compress(_FLAGS.values(), flags))})" if any(flags) else ""


def _write_bbox(box: Box, decimals: int) -> str:
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
