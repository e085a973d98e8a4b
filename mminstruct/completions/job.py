"""A request on its way: what is asked for, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from mminstruct.backends import Counting, most_tokens
from mminstruct.completions.store import Scope, key_of
from mminstruct.prompts.messages import Prompt
from mminstruct.schema import Completion, Request, Sampling


@dataclass(frozen=True, slots=True)
class Job:
    """A request in all the lengths it could be sent in.

    Attributes:
        prompts: gives an iterator over ever shorter prompts, the whole one first.
        sampling: how to draw the answer.
        min_answer_tokens: room that a prompt has to leave in the window.
        scope: what the answer's length is counted under; None is nowhere.
    """

    prompts: Callable[[], Iterator[Prompt]]
    sampling: Sampling
    min_answer_tokens: int
    scope: Scope | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """A completion, and the prompt that led to it."""

    prompt: Prompt
    completion: Completion


@dataclass(frozen=True, slots=True)
class Failed:
    """A request without an answer.

    Attributes:
        cause: short and countable, such as ``http_500``, ``refused`` or ``too_long``.
        message: the last error in words.
        rejected: a defined outcome that a rerun would repeat (the prompt fits no window), not a
            failure.
        room: for a prompt that is too long, as in `ContextTooLong`.
    """

    cause: str
    message: str
    rejected: bool = False
    room: int | None = None


Outcome = Answered | Failed


class Attempt:
    """A job at its present length: the longest prompt that fits and hasn't been refused.

    Prompt, request and key are None once no length is left.
    """

    def __init__(self, job: Job, backend: Counting, identity: Mapping[str, str]) -> None:
        self._job, self._backend, self._identity = job, backend, identity
        self._prompts = job.prompts()
        self.scope = job.scope
        self.prompt: Prompt | None = None
        self.request: Request | None = None
        self.key: bytes | None = None
        self.why_too_long = "there is no shorter prompt"
        self.shorten()

    def shorten(self, room: int | None = None, refusal: str = "") -> None:
        """Go on to the next prompt that fits, or stay with this one if its room is enough.

        Args:
            room: tokens for an answer to this prompt, as the server that refused it says.
            refusal: in words.
        """
        if refusal:
            self.why_too_long = f"even the shortest prompt is too long: {refusal}"
        if room is not None and self.prompt and self.request:
            sampling = self.request.sampling
            if self.wanted <= room < sampling.max_tokens:
                self._take(self.prompt, replace(sampling, max_tokens=room))
                return
        self.prompt, self.request, self.key = None, None, None
        for prompt in self._prompts:
            fitting = self._sampling_in_window(prompt)
            if fitting is not None:
                self._take(prompt, fitting)
                return

    def _take(self, prompt: Prompt, sampling: Sampling) -> None:
        self.prompt = prompt
        self.request = Request(prompt.messages, sampling)
        self.key = key_of(self._identity, self.request)

    @property
    def wanted(self) -> int:
        """Tokens that an answer has to have room for."""
        return min(self._job.min_answer_tokens, self._job.sampling.max_tokens)

    def _sampling_in_window(self, prompt: Prompt) -> Sampling | None:
        """The sampling with max_tokens bounded by the window, or None if the prompt is too long."""
        window, sampling = self._backend.context_window, self._job.sampling
        if window is None:
            return sampling
        tokens = most_tokens(self._backend, prompt.messages)
        room = window - tokens
        if room < self.wanted:
            self.why_too_long = (
                f"the shortest prompt has {tokens} tokens, which leaves {max(room, 0)} of the "
                f"window's {window} for an answer that needs {self.wanted}"
            )
            return None
        return sampling if room >= sampling.max_tokens else replace(sampling, max_tokens=room)
