"""One context as its source gives it, and the messages that a model would get for it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from mminstruct.errors import UsageError
from mminstruct.recipe import Recipe
from mminstruct.rows.requests import prompts_of
from mminstruct.schema import Context, Message, decode_context

_NEAREST_AMONG = 2000
_NEAREST = 3


@dataclass(frozen=True, slots=True)
class Preview:
    """A context and its messages.

    Attributes:
        context: as the source gives it.
        messages: by instruction type, whole: neither examples nor boxes left out.
    """

    context: Context
    messages: dict[str, tuple[Message, ...]]

    def as_json(self) -> str:
        """For machines: ``context``, and ``messages`` by instruction type."""
        context: Any = msgspec.to_builtins(self.context)
        messages: Any = msgspec.to_builtins(self.messages)
        return json.dumps({"context": context, "messages": messages}, indent=2)

    def as_text(self) -> str:
        """For people."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        media = self.context.media
        yield f"{media.modality} {self.context.id} ({media.file_name})"
        facts = (
            ("licence", media.license or media.license_url),
            ("author", media.author),
            ("title", media.title),
            ("at", media.url or media.landing_url),
            ("size", f"{media.width} x {media.height}" if media.width else None),
            ("turned by", f"{media.rotation_deg} degrees" if media.rotation_deg else None),
            ("length", f"{media.duration_s:.1f} s" if media.duration_s else None),
        )
        yield from (f"  {name}: {value}" for name, value in facts if value)
        for name, messages in self.messages.items():
            yield f"\n=== {name}"
            for message in messages:
                yield f"\n--- {message.role}\n{message.content}"


def preview(recipe: Recipe, splits: Iterable[datasets.Dataset], context_id: str | None) -> Preview:
    """The context of that id, or the first one, in one of the splits.

    A number may lack its leading zeros.

    Raises:
        UsageError: there is none.
    """
    known: list[str] = []
    made = recipe.source.info, recipe.prompts, recipe.config.seed
    for requests in splits:
        ids = requests.data.column("id")
        row = 0 if context_id is None else _row(ids, context_id)
        if row >= 0:
            context = decode_context(requests[row]["context"])
            return Preview(
                context,
                {name: next(prompts_of(context, name, *made)).messages for name in recipe.types},
            )
        known += ids.slice(0, _NEAREST_AMONG).to_pylist()
    source = recipe.source.info.name
    raise UsageError(f"{source} has no context {context_id!r}{_hint(context_id or '', known)}")


def _row(ids: pa.ChunkedArray, context_id: str) -> int:
    """The first row of that id, or -1."""
    row: int = pc.index(ids, context_id).as_py()
    if row < 0 and context_id.isdecimal():
        row = pc.index(ids, context_id.zfill(len(ids[0].as_py()))).as_py()
    return row


def _hint(context_id: str, known: Sequence[str]) -> str:
    """The ids nearest to one, if these are all; else what they look like."""
    wanted = context_id.zfill(len(known[0])) if context_id.isdecimal() else context_id
    near = difflib.get_close_matches(wanted, dict.fromkeys(known), n=_NEAREST)
    if len(known) >= _NEAREST_AMONG or not near:
        return f"; ids look like {known[0]!r}"
    return f" (did you mean {' or '.join(map(repr, near))}?)"
