"""A scripted, deterministic backend: for ``--dry_run``, for tests, for trying a prompt config.

It answers in the labelled form that our prompts ask for, with text that depends on the prompt and
the seed alone. Its sentences are the same for every picture: nobody should train on them.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Literal

from mminstruct.backends import BackendOptions, Opened
from mminstruct.schema import Completion, Message, Request

Script = Callable[[Request], Completion]


def create(options: BackendOptions) -> FakeBackend:
    """The backend; its model name defaults to ``scripted``."""
    return FakeBackend(options)


def scripted(request: Request) -> Completion:
    """Two labelled turns, or a paragraph where the prompt shows no labels; stable per request."""
    asked = "\x1f".join(m.content for m in request.messages) + f"\x1f{request.sampling}"
    mark = hashlib.sha256(asked.encode()).hexdigest()[:8]
    labelled = "Question:" in "".join(m.content for m in request.messages if m.role != "user")
    if labelled:
        text = "\n\n".join(
            f"Question: What is part {part} of picture {mark}?\nAnswer: {_prose(mark, part)}"
            for part in (1, 2)
        )
    else:
        text = _prose(mark, 1)
    return Completion(
        text=text,
        prompt_tokens=sum(len(m.content.split()) for m in request.messages),
        completion_tokens=len(text.split()),
        model="scripted",
    )


_WORDS = (
    "amber", "bridge", "candle", "daisy", "engine", "forest", "garden", "harbour", "island",
    "jacket", "kettle", "lantern", "meadow", "needle", "orchard", "pebble", "quarry", "ribbon",
    "saddle", "timber", "umbrella", "valley", "window", "yellow", "anchor", "basket", "copper",
    "drawer", "ember", "feather", "gravel", "hammer", "ivory", "jungle", "kitten", "ladder",
)  # fmt: skip


def _prose(mark: str, part: int) -> str:
    """Four sentences of fifteen words, varied enough to pass for prose."""
    return " ".join(
        f"Sentence {number} of part {part} in script {mark} names "
        f"{', '.join(_WORDS[9 * number - 9 : 9 * number - 1])} and {_WORDS[9 * number - 1]}."
        for number in range(1, 5)
    )


class FakeBackend(Opened):
    """Answers from a script, one word a token.

    Args:
        options: model name (for rows and keys), context window and concurrency.
        script: request -> completion; may raise what a real backend raises.
        latency_s: how long each answer takes.
    """

    name: Literal["fake"] = "fake"
    repo_id: str | None = None
    token_error = 0.0
    endpoints: tuple[str, ...] = ()

    def __init__(
        self, options: BackendOptions, script: Script = scripted, latency_s: float = 0.0
    ) -> None:
        self._script = script
        self._latency_s = latency_s
        self.model = options.model or "scripted"
        self.parallel = options.max_concurrency
        self.context_window = options.context_window

    def identity(self) -> dict[str, str]:
        """Backend and model name."""
        return {"backend": self.name, "model": self.model}

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """White-space separated words."""
        return sum(len(m.content.split()) for m in messages)

    async def complete(self, request: Request) -> Completion:
        """What the script says."""
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        return self._script(request)
