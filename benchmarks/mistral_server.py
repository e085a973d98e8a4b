"""A server that does what vLLM with a 7B model on one GPU does, only faster; a process of its own.

An answer takes 0.15 s and 20 ms a token, twice as much with 256 requests in flight, divided by
``--speed``; it is about as long as the examples of the prompts, is made of what the image has, and
is the same whenever it is asked for. Some are as models' answers are at times: cut off, without
labels, a refusal, or about a thing that isn't there. Some requests meet an error or a dropped
connection, and once all do, for a while. GET /count tells what there was.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import time
import zlib
from collections import Counter
from typing import Any

from aiohttp import web
from coco_files import LABELS
from server import serve

# Tokens of an answer, as the mean of the logarithm's distribution, by turns in the examples.
LENGTHS = {"conversation": 190, "detail_description": 130, "complex_reasoning": 150}
SPREAD = 0.3
COUNTS = ("requests", "asked", "in_flight", "answered", "errors", "dropped", "prompt_tokens",
          "completion_tokens")  # fmt: skip
OUTAGE_S = 60
BROKEN, DROPPED = 0.004, 0.002
CUT, REFUSED, UNLABELLED, INVENTED = 0.004, 0.003, 0.004, 0.03
_OPENINGS = ("Overall it", "To the eye it", "In this light it", "At a glance it", "From here it",
             "On the whole it", "At this hour it", "With so much around it, the view")  # fmt: skip
_VERBS = ("looks", "seems", "appears", "feels", "comes across as")
_KINDS = ("calm", "busy", "ordinary", "cheerful", "plain", "orderly", "lively", "cramped", "quiet")
_REASONS = ("since nothing is out of place", "as the colors go well together",
            "because little is in motion", "although much goes on at once",
            "which suits such a place", "so that one would want to look twice",
            "as everything is near at hand", "since the light is even")  # fmt: skip
_ENDINGS = ("and that gives a good idea of the moment", "and it leaves room for other details",
            "but it says little about what came before", "and that is what most people would note",
            "even if parts are hard to make out", "and there is no hint of haste")  # fmt: skip
_TOKEN = re.compile(r"\d|[^\W\d_]{1,7}|[^\w\s]")
_LABEL = re.compile(r"^([a-z ]+)(?: \(\w+\))?: \[", re.MULTILINE)


def count_tokens(text: str) -> int:
    """About as Mistral's tokenizer counts: digits and marks one by one, words in pieces."""
    return len(_TOKEN.findall(text))


def kind_of(body: dict[str, Any]) -> str:
    """The instruction type, by how many questions the first example has."""
    first = next(m["content"] for m in body["messages"] if m["role"] == "assistant")
    questions = first.count("Question:")
    return list(LENGTHS)[2 if questions == 1 else 0 if questions else 1]


def answer(kind: str, shown: str) -> tuple[str, str]:
    """Text and finish reason for what the last message shows."""
    rng = random.Random(zlib.crc32(f"{kind} {shown}".encode()))
    chance = rng.random()
    if chance < REFUSED:
        return "I'm sorry, but I can't help with that request.", "stop"
    captions = re.findall(r"^- (.*)$", shown.partition("\nObjects:")[0], re.MULTILINE)
    labels = list(dict.fromkeys(_LABEL.findall(shown)))
    words = LENGTHS[kind] * rng.lognormvariate(0, SPREAD) / 1.2
    sentences = [rng.choice(captions).rstrip(" .") + "."]
    while sum(map(len, sentences)) < words * 5.5:
        sentences.append(_sentence(rng))
    if kind == "conversation":
        text = _turns(sentences, labels, rng)
    else:
        text = " ".join(sentences)
        if kind == "complex_reasoning":
            text = f"Question: What can be said of the {(labels or ['scene'])[0]}?\nAnswer: {text}"
    if chance < REFUSED + CUT:
        return text[: len(text) // 2], "length"
    if chance < REFUSED + CUT + UNLABELLED:
        return text.replace("Question: ", "").replace("Answer: ", ""), "stop"
    return text, "stop"


def _sentence(rng: random.Random) -> str:
    words = (rng.choice(part) for part in (_OPENINGS, _VERBS, _KINDS, _REASONS, _ENDINGS))
    opening, verb, kind, reason, ending = words
    return f"{opening} {verb} {kind} {reason}, {ending}."


def _turns(sentences: list[str], labels: list[str], rng: random.Random) -> str:
    """Four to six, of which each has some sentences; one says that a thing is there."""
    asked = ["What does the picture show?", "What is the mood like?", "What stands out most?",
             "How would you put it in other words?", "What else is worth a remark?"]  # fmt: skip
    count = rng.randint(3, 5)
    turns = [f"Question: {asked[n]}\nAnswer: {' '.join(sentences[n::count])}" for n in range(count)
             if sentences[n::count]]  # fmt: skip
    label = rng.choice(LABELS if rng.random() < INVENTED or not labels else labels)
    turns.append(f"Question: Is there a {label} to be seen?\nAnswer: Yes, there is a {label}.")
    return "\n\n".join(turns)


def main() -> None:
    """Serve until killed; prints the port."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--speed", type=float, default=10)
    parser.add_argument("--outage_after", type=int, default=0, help="requests")
    args = parser.parse_args()
    counts = Counter(dict.fromkeys(COUNTS, 0))
    seen: set[int] = set()
    of_examples: dict[str, int] = {}
    chances = random.Random(7)
    ends = 0.0

    def is_out() -> bool:
        nonlocal ends
        if not ends and args.outage_after and counts["requests"] >= args.outage_after:
            ends = time.monotonic() + OUTAGE_S / args.speed
        return time.monotonic() < ends

    async def chat(request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        counts["requests"] += 1
        *examples, last = body["messages"]
        kind = kind_of(body)
        key = hash((kind, last["content"]))
        counts["asked"] += key not in seen
        seen.add(key)
        chance = chances.random()
        if is_out() or chance < DROPPED:
            return _drop(request, counts)
        if chance < DROPPED + BROKEN:
            counts["errors"] += 1
            return web.json_response({"error": {"message": "the engine has failed"}}, status=500)
        text, reason = answer(kind, last["content"])
        named = f"{kind} {len(examples)}"
        if named not in of_examples:
            of_examples[named] = sum(count_tokens(m["content"]) + 4 for m in examples)
        used = {
            "prompt_tokens": of_examples[named] + count_tokens(last["content"]),
            "completion_tokens": count_tokens(text),
        }
        counts["in_flight"] += 1
        crowd = 1 + counts["in_flight"] / 256
        await asyncio.sleep((0.15 + 0.02 * used["completion_tokens"] * crowd) / args.speed)
        counts["in_flight"] -= 1
        if is_out():
            return _drop(request, counts)
        counts["answered"] += 1
        counts.update(used)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        usage = {**used, "total_tokens": sum(used.values())}
        told = {"id": "chatcmpl-1", "object": "chat.completion", "model": body["model"]}
        return web.json_response({**told, "choices": [choice], "usage": usage})

    asyncio.run(serve(chat, counts, lambda port: print(port, flush=True)))


def _drop(request: web.Request, counts: Counter[str]) -> web.StreamResponse:
    """Close the connection without an answer."""
    counts["dropped"] += 1
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


if __name__ == "__main__":
    main()
