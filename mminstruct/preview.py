"""One context as its source gives it, and the messages that a model would get for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow.compute as pc

from mminstruct import prompts
from mminstruct.builder import InstructBuilder
from mminstruct.errors import UsageError, did_you_mean
from mminstruct.schema import Context, Message, decode_context

_NEAREST_AMONG = 2000


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
        return json.dumps({"context": context, "messages": messages}, ensure_ascii=False, indent=2)

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


def preview(builder: InstructBuilder, context_id: str | None) -> Preview:
    """The context of that id, or the first one, in one of the builder's splits.

    Raises:
        UsageError: there is none.
    """
    config = builder.config.open_prompts()
    known: list[str] = []
    for requests in builder.requests().values():
        ids = requests.data.column("id")
        row = 0 if context_id is None else pc.index(ids, context_id).as_py()
        if row >= 0:
            context = decode_context(requests[row]["context"])
            types = prompts.type_names(config, builder.config.type_names())
            return Preview(
                context, {name: prompts.render(context, config, name).messages for name in types}
            )
        known += ids.slice(0, _NEAREST_AMONG).to_pylist()
    source = builder.config.open_source().info.name
    hint = did_you_mean(context_id or "", set(known)) if len(known) < _NEAREST_AMONG else ""
    raise UsageError(
        f"{source} has no context {context_id!r}{hint or f'; ids look like {known[0]!r}'}"
    )
