"""Outcomes -> turns with what the annotations say to them, or why there are none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import dropwhile

from mminstruct import prompts
from mminstruct.answers.flaws import Rejected
from mminstruct.answers.parse import Parsed, parse
from mminstruct.checks import Finding
from mminstruct.completions.client import Client
from mminstruct.completions.job import Answered, Failed, Job
from mminstruct.prompts.messages import Prompt
from mminstruct.rows.plan import Plan
from mminstruct.rows.requests import Chunk
from mminstruct.schema import Message

CONTRADICTED = "contradicted"
"""The reason by which turns that the annotations contradict are counted."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The turns of an answer, and what the annotations say to them.

    Attributes:
        answered: with the completion.
        parsed: the turns.
        findings: about them, in their order.
        left_out: turns that were left out: the first that the annotations contradict, and on.
    """

    answered: Answered
    parsed: Parsed
    findings: tuple[Finding, ...]
    left_out: int = 0

    @property
    def wrong(self) -> list[Finding]:
        """What the annotations contradict."""
        return [finding for finding in self.findings if finding.verdict == CONTRADICTED]


@dataclass(frozen=True, slots=True)
class Useless:
    """An answer that gives no row, and why."""

    answered: Answered
    why: Rejected


async def ask(chunk: Chunk, plan: Plan, client: Client) -> list[Judged | Useless | Failed]:
    """What becomes of the requests of a chunk: asked, judged, and where need be asked once more."""
    outcomes = await client.complete(chunk.jobs)
    found = [_judge(plan, chunk, number, outcome) for number, outcome in enumerate(outcomes)]
    if plan.check == "report":
        return found
    wrong = {n: one for n, one in enumerate(found) if isinstance(one, Judged) and one.wrong}
    found = [_drop_wrong(one) for one in found]
    if plan.check == "reask" and wrong:
        client.stats.expect(len(wrong))
        jobs = [_ask_again(chunk.jobs[number], one) for number, one in wrong.items()]
        for number, outcome in zip(wrong, await client.complete(jobs), strict=True):
            second = _drop_wrong(_judge(plan, chunk, number, outcome))
            if isinstance(second, Judged):
                notes = (*second.parsed.notes, "asked_again")
                found[number] = replace(second, parsed=replace(second.parsed, notes=notes))
            elif isinstance(second, Failed) and not second.rejected:
                found[number] = second  # the next run asks for it
    return found


def _judge(
    plan: Plan, chunk: Chunk, number: int, outcome: Answered | Failed
) -> Judged | Useless | Failed:
    if isinstance(outcome, Failed):
        return outcome
    name, context = chunk.types[number], chunk.contexts[number]
    draw = prompts.Draw(chunk.ids[number], plan.sampling.seed or 0)
    config = draw.fit(context, plan.config)
    question = draw.question(config, name)
    parsed = parse(outcome.completion, config, name, question=question)
    if isinstance(parsed, Rejected):
        return Useless(outcome, parsed)
    return Judged(outcome, parsed, tuple(plan.checker.check(context, parsed.turns)))


def _drop_wrong(one: Judged | Useless | Failed) -> Judged | Useless | Failed:
    """The turns before the first that the annotations contradict: others may refer to it."""
    if not isinstance(one, Judged) or not one.wrong:
        return one
    turns, notes = one.parsed.turns, one.parsed.notes
    kept = min(finding.turn for finding in one.wrong)
    if not kept:
        return Useless(one.answered, Rejected(CONTRADICTED, "; ".join(_describe(one))))
    findings = tuple(finding for finding in one.findings if finding.turn < kept)
    parsed = Parsed(turns[:kept], (*notes, CONTRADICTED))
    return Judged(one.answered, parsed, findings, len(turns) - kept)


def _ask_again(job: Job, one: Judged) -> Job:
    """What asks for an answer once more, and says what was wrong with it."""
    said = "\n".join(f"- {line}" for line in _describe(one))
    more = (
        Message("assistant", one.answered.completion.text),
        Message(
            "user",
            f"Some of this is not true:\n{said}\n\nWrite all of it once more in the same form, "
            "with this put right. Say nothing about what was wrong, or how you know.",
        ),
    )

    def prompts() -> Iterator[Prompt]:
        # What was too long before is too long with more.
        answered = one.answered.prompt.messages
        for prompt in dropwhile(lambda prompt: prompt.messages != answered, job.prompts()):
            yield replace(prompt, messages=(*prompt.messages, *more))

    # The lengths of such answers are none to expect of others.
    return replace(job, prompts=prompts, scope=None)


def _describe(one: Judged) -> list[str]:
    return list(dict.fromkeys(f'"{finding.said}": {finding.known}' for finding in one.wrong))
