"""Hot-loading: what an adapter that has just been trained costs to the first token, over one that
vLLM holds anyway.

Mayfly is asked with a small budget. Of its time to the first token, as a client sees it, what
passed from the request's arrival to the end of training is taken off by its own report; HTTP both
ways, staging, loading, vLLM's queue and prefill stay. The other server is a plain `vllm serve` that
got the adapter with `--lora-modules`, with the same model, sizes, threads and, on a CPU, Mayfly's
plugin for LoRA: without it that server is slower, which would flatter us. Both are up, one is asked
at a time, in pairs that begin with either in turn; a ratio is that of one pair, and the first pairs
are warm-up. Both are asked the same prompt, which neither has seen.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from adapters.model_defaults import for_model
from benchmarks.harness.command_line import progress
from benchmarks.latency.bench_serve import PATIENCE_SECONDS, Answer, Load, ask, pieces
from benchmarks.latency.per_request_peft import PeftLoop, Sequences
from benchmarks.harness.measures import spread
from benchmarks.harness.thresholds import MAX_HOT_LOAD_RATIO
from serving.config import bundled_model
from serving.engine.config import EngineConfig

WARM = 2  # pairs


def with_adapters(names: Sequence[str], folder: Path, sequences: Sequences) -> list[str]:
    """Flags of a `vllm serve` that holds an adapter under these names, with as many slots as
    Mayfly's engine has.

    The adapter is trained by hand into the folder, unless it is there.
    """
    trainer, slots = for_model(bundled_model()), EngineConfig("", "", 0, ()).adapters + 1
    if not folder.exists():
        PeftLoop(trainer).train(sequences, folder)
    sizes = ["--max-loras", str(slots), "--max-lora-rank", str(trainer.rank)]
    modules = [f"{name}={folder}" for name in names]
    return [
        "--enable-lora",
        *sizes,
        "--lora-target-modules",
        *trainer.targets,
        "--lora-modules",
        *modules,
    ]


def ready_to_first(answer: Answer) -> float:
    """Seconds to the first token without those from arrival to the end of training."""
    adapter_ready = float(answer.report["spent"]["seconds"]) - float(
        answer.report["seconds"]["load"]
    )
    return answer.first - adapter_ready


def hot_load(mayfly: str, lora: str, resident: str, load: Load, seed: int) -> dict[str, Any]:
    """The ratio over so many pairs as the load has requests.

    Args:
        mayfly, lora: the servers' addresses.
        resident: the name of the adapter that `lora` holds.
        load: with a budget of steps.
        seed: of the prompts.
    """
    return asyncio.run(_hot_load(mayfly, lora, resident, load, seed))


async def _hot_load(mayfly: str, lora: str, resident: str, load: Load, seed: int) -> dict[str, Any]:
    prompts = pieces(replace(load, requests=WARM + load.requests), seed)
    plain = replace(load, model=resident, budget=None)
    found: list[tuple[float, float, float]] = []
    short = 0
    async with (
        httpx.AsyncClient(base_url=mayfly, timeout=PATIENCE_SECONDS) as ours,
        httpx.AsyncClient(base_url=lora, timeout=PATIENCE_SECONDS) as theirs,
    ):
        for number, prompt in enumerate(prompts):
            progress(f"hot-loading: pair {number + 1} of {len(prompts)}")
            if number % 2:
                hot = await ask(ours, load, prompt)
                held = await ask(theirs, plain, prompt)
            else:
                held = await ask(theirs, plain, prompt)
                hot = await ask(ours, load, prompt)
            if hot.falls_short(load) or held.status != 200:
                short += 1
            elif number >= WARM:
                found.append(
                    (ready_to_first(hot), held.first, float(hot.report["seconds"]["load"]))
                )
    if not found:
        raise RuntimeError(f"not one of {len(prompts)} pairs was answered as asked")
    hot_seconds, held_seconds, loading = zip(*found, strict=True)
    ratios = [hot / held for hot, held, _ in found]
    return {
        "hot_load_ratio": statistics.median(ratios),
        "ratios": spread(ratios),
        "pairs": len(found),
        "short": short,
        "prompt_tokens": load.prompt,
        "ready_to_first_seconds": spread(hot_seconds),
        "resident_first_seconds": spread(held_seconds),
        "load_seconds": spread(loading),
    }


def in_words(found: Mapping[str, Any]) -> str:
    """A result, for people."""
    _, least, most = found["ratios"]
    return (
        f"hot-loading, prompts of {found['prompt_tokens']} tokens: from the trained adapter to the first token "
        f"{found['hot_load_ratio']:.2f} times a resident one's (wanted {MAX_HOT_LOAD_RATIO}; median of {found['pairs']} "
        f"pairs, {least:.2f} to {most:.2f}; {found['short']} pairs not as asked)"
    )
