"""The values that travel down the line, from a source's Context to a Completion.

All records are frozen. `Context` is what a source yields and what a prompt config renders; it is
serialised as JSON (`encode_context`), so that one Arrow column carries any modality. Captions and
boxes have fields of their own; every other kind of annotation is a module of
`mminstruct.annotations` and goes into ``Context.annotations`` under its name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "content_filter", "other"]


class Box(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One annotated object, or a group of them.

    A flag is None where nobody said: unknown is not false.

    Attributes:
        label: category name in words, such as ``traffic light``.
        bbox_xyxy_norm: min_x, min_y, max_x, max_y as fractions of width and height, 0..1,
            origin at the top left, with min < max on both axes.
        is_group: the box covers several touching objects of the label (COCO ``iscrowd``).
        is_occluded: something in front hides a part of it.
        is_truncated: it goes on beyond the image's edge.
        is_depiction: a drawing, a toy or a picture of the thing, not the thing.
        is_inside: seen from the inside, such as a car's cabin.
    """

    label: str
    bbox_xyxy_norm: tuple[float, float, float, float]
    is_group: bool | None = False
    is_occluded: bool | None = None
    is_truncated: bool | None = None
    is_depiction: bool | None = None
    is_inside: bool | None = None

    @property
    def area(self) -> float:
        """Fraction of the image that the box covers, 0..1."""
        min_x, min_y, max_x, max_y = self.bbox_xyxy_norm
        return (max_x - min_x) * (max_y - min_y)


class Media(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The image, motion, sound ... that the annotations describe; never its content.

    Attributes:
        file_name: name in its release, such as ``000000000042.jpg``.
        modality: what it is, in a word: ``image``, ``motion`` ...
        url: where the publisher serves it, or None.
        landing_url: the page of the original upload, or None.
        width: pixels.
        height: pixels.
        license: identifier of the media's own licence (SPDX where one exists), or None if unknown.
        license_url: the licence's text, or None.
        author: who made it, as far as its release says.
        author_url: the author's page.
        title: the author's title.
        rotation_deg: degrees counter-clockwise by which the published file must be turned to be
            upright; boxes, width and height are those of the upright image.
        duration_s: length in seconds, of what has one.
    """

    file_name: str
    modality: str = "image"
    url: str | None = None
    landing_url: str | None = None
    width: int | None = None
    height: int | None = None
    license: str | None = None
    license_url: str | None = None
    author: str | None = None
    author_url: str | None = None
    title: str | None = None
    rotation_deg: int = 0
    duration_s: float | None = None


class Context(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """All annotations of one image, motion, sound ..., as a source gives them.

    Attributes:
        id: its identifier in its source, unique there and stable, such as ``000000000042``.
        media: the image itself.
        captions: stripped, distinct, in the source's order.
        boxes: in the source's order.
        annotations: further ones by kind, each a module of `mminstruct.annotations`; the items are
            of its ``Item`` type (as plain mappings once they have been through JSON).
    """

    id: str
    media: Media
    captions: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    annotations: dict[str, tuple[Any, ...]] = {}


@dataclass(frozen=True, slots=True)
class Option:
    """Something that some sources, or some backends, can be asked for and others can't.

    Attributes:
        type: of its value; ``bool`` makes a flag without a value, ``list`` one that may be given
            again, ``dict`` takes JSON or a file with it.
        help: in a line.
        choices: the values it takes, or None for any.
    """

    type: type[bool] | type[int] | type[float] | type[str] | type[list[str]] | type[dict[str, Any]]
    help: str
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat, in the roles of the OpenAI chat format."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One question about the image and its answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a completion is drawn.

    Attributes:
        temperature: 0 is greedy.
        top_p: nucleus mass, 0..1.
        max_tokens: upper bound of the answer, in the model's tokens.
        seed: None leaves the choice to the engine.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 1024
    seed: int | None = None


NEUTRAL_AT_ONE = ("temperature", "top_p")
"""The fields of `Sampling` that change nothing where they are 1."""


@dataclass(frozen=True, slots=True)
class Request:
    """One chat completion to ask for."""

    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished answer.

    Attributes:
        text: the answer; empty is an answer too.
        finish_reason: ``length`` means that max_tokens or the window cut it.
        prompt_tokens: as the engine counted them, or None.
        completion_tokens: as the engine counted them, or None.
        model: what the engine says answered, or None.
        only_thoughts: the server gave what the model thought, and no text.
    """

    text: str
    finish_reason: FinishReason = "stop"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    model: str | None = None
    only_thoughts: bool = False


_context_encoder = msgspec.json.Encoder()
_context_decoder = msgspec.json.Decoder(Context)
_canonical_encoder = msgspec.json.Encoder(order="deterministic")


def encode_context(context: Context) -> str:
    """The context as JSON; `decode_context` gives an equal value back."""
    return _context_encoder.encode(context).decode()


def append_context(context: Context, text: bytearray) -> int:
    """The length of the text once the context, as `encode_context` has it, is at its end."""
    _context_encoder.encode_into(context, text, -1)
    return len(text)


def decode_context(text: str | bytes) -> Context:
    """The context that `encode_context` wrote."""
    return _context_decoder.decode(text)


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no white space: equal values give equal bytes."""
    return _canonical_encoder.encode(value)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value, in hex (64 characters)."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
