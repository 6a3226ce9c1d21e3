"""Hot-loading: the time from a trained adapter to the first token, over that of a resident adapter.

Mayfly gets a small budget. Its report gives the time from the request's arrival to the end of
training, which is subtracted from the time to the first token as the client sees it; HTTP both
ways, staging, loading, vLLM's queue and prefill remain. The other server is a plain `vllm serve`
with the adapter in `--lora-modules`, and the same model, sizes, threads and, on a CPU, Mayfly's
plugin for LoRA, without which it would be slower. Both are up, and only one at a time gets a
request, in pairs that begin with either in turn; a ratio is that of one pair. The first pairs are a
warm-up. Both get the same prompts, which are new to them.
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
from benchmarks.harness.measures import spread
from benchmarks.harness.thresholds import MAX_HOT_LOAD_RATIO
from benchmarks.latency.client import TIMEOUT_SECONDS, Answer, Load, excerpts, send
from benchmarks.latency.per_request_peft import PeftLoop, Sequences
from serving.engine.config import EngineConfig

WARM_UP_PAIRS = 2


def resident_adapter_flags(
    names: Sequence[str], folder: Path, sequences: Sequences, base: str
) -> list[str]:
    """Flags of a `vllm serve` with resident adapters, and as many slots as Mayfly's engine.

    Args:
        names: names under which one adapter is served.
        folder: folder of the adapter, which is trained on `sequences` unless it exists.
        sequences: training data.
        base: folder of the base model.
    """
    trainer, slots = for_model(base), EngineConfig("", "", 0, ()).adapters + 1
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
    """Seconds from the end of training to the first token."""
    adapter_ready = float(answer.report["spent"]["seconds"]) - float(
        answer.report["seconds"]["load"]
    )
    return answer.first - adapter_ready


def hot_load(
    mayfly_url: str, resident_url: str, resident: str, load: Load, seed: int
) -> dict[str, Any]:
    """Compare the time from a trained adapter to the first token with that of a resident one.

    Args:
        mayfly_url: base URL of Mayfly.
        resident_url: base URL of the server with resident adapters.
        resident: name of one of them.
        load: load with a budget of steps; one pair per request.
        seed: seed of the prompts.
    """
    return asyncio.run(_hot_load(mayfly_url, resident_url, resident, load, seed))


async def _hot_load(
    mayfly_url: str, resident_url: str, resident: str, load: Load, seed: int
) -> dict[str, Any]:
    prompts = excerpts(replace(load, requests=WARM_UP_PAIRS + load.requests), seed)
    resident_load = replace(load, model=resident, budget=None)
    pairs: list[tuple[float, float, float]] = []
    short_count = 0
    async with (
        httpx.AsyncClient(base_url=mayfly_url, timeout=TIMEOUT_SECONDS) as mayfly_client,
        httpx.AsyncClient(base_url=resident_url, timeout=TIMEOUT_SECONDS) as vllm_client,
    ):
        for number, prompt in enumerate(prompts):
            progress(f"hot-loading: pair {number + 1} of {len(prompts)}")
            if number % 2:
                hot_answer = await send(mayfly_client, load, prompt)
                resident_answer = await send(vllm_client, resident_load, prompt)
            else:
                resident_answer = await send(vllm_client, resident_load, prompt)
                hot_answer = await send(mayfly_client, load, prompt)
            if hot_answer.is_short(load) or resident_answer.status != 200:
                short_count += 1
            elif number >= WARM_UP_PAIRS:
                pairs.append(
                    (
                        ready_to_first(hot_answer),
                        resident_answer.first,
                        float(hot_answer.report["seconds"]["load"]),
                    )
                )
    if not pairs:
        raise RuntimeError(f"none of {len(prompts)} pairs succeeded")
    hot_seconds, resident_seconds, load_seconds = zip(*pairs, strict=True)
    ratios = [hot / resident for hot, resident, _ in pairs]
    return {
        "hot_load_ratio": statistics.median(ratios),
        "ratios": spread(ratios),
        "pairs": len(pairs),
        "short": short_count,
        "prompt_tokens": load.prompt,
        "ready_to_first_seconds": spread(hot_seconds),
        "resident_first_seconds": spread(resident_seconds),
        "load_seconds": spread(load_seconds),
    }


def describe(result: Mapping[str, Any]) -> str:
    """A result as one line of text."""
    _, least, most = result["ratios"]
    return (
        f"hot-loading, prompts of {result['prompt_tokens']} tokens: from the trained adapter to "
        f"the first token {result['hot_load_ratio']:.2f} times a resident adapter's (threshold "
        f"{MAX_HOT_LOAD_RATIO}; median of {result['pairs']} pairs, {least:.2f} to {most:.2f}; "
        f"{result['short']} failed pairs)"
    )
