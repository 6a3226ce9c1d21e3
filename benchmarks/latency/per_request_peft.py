"""The naive way: what one writes without Mayfly, against Mayfly, in requests a second.

Per request a new PEFT adapter on transformers' own model, Adam over the sequences one at a time,
`save_pretrained` into shared memory, /v1/load_lora_adapter of a `vllm serve`, the completion,
/v1/unload_lora_adapter. Processes train, one request each at a time; clients wait for them, load
and ask. What is not naive is given to it: the sequences that Mayfly's selector would have chosen,
for nothing, before the clock starts; a model that stays loaded in every process; Mayfly's plugin
for LoRA on a CPU, without which vLLM is slower. Mayfly selects within its time. Both have the same
model, rank, steps and sizes of vLLM; the loop is in float32 on a CPU, as Mayfly's trainer is where
the processor has no units for bfloat16.

There are two: `naive` trains in one process with as many threads as Mayfly's trainer, `naive pool`
in a process on every core, which is more than Mayfly's trainer has. Rounds of the three take turns;
a ratio is that of one round.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import torch

from adapters import TrainerConfig
from adapters.model_defaults import for_model
from benchmarks.harness.command_line import progress
from benchmarks.harness.thresholds import MIN_SPEEDUP
from benchmarks.latency.bench_serve import (
    PATIENCE_SECONDS,
    Answer,
    Load,
    ask,
    ask_all,
    environment,
    pieces,
)
from benchmarks.training.peft_loop import device
from selection import Selector, SelectorConfig
from selection.embedding import Prompt
from selection.request import SelectionRequest
from serving.config import bundled_model

LEARNING_RATE = 3e-3  # the time depends neither on it nor on LoRA's alpha
Sequences = Sequence[Sequence[int]]


class PeftLoop:
    """transformers, PEFT and Adam, as by hand; an adapter for each request."""

    def __init__(self, config: TrainerConfig) -> None:
        from peft import LoraConfig
        from transformers import AutoModelForCausalLM

        dtype = torch.float32 if device() == "cpu" else torch.bfloat16
        model: Any = AutoModelForCausalLM.from_pretrained(config.model, dtype=dtype)
        self._model = model.to(device())
        self._lora = LoraConfig(
            r=config.rank,
            lora_alpha=config.rank,
            target_modules=list(config.targets),
            task_type="CAUSAL_LM",
        )

    def train(self, sequences: Sequences, folder: Path) -> dict[str, float]:
        """A new adapter, a step on each sequence, written into the folder; seconds of the three."""
        from peft import get_peft_model

        begun = time.perf_counter()
        peft: Any = get_peft_model(self._model, self._lora)
        adam = torch.optim.Adam([p for p in peft.parameters() if p.requires_grad], lr=LEARNING_RATE)
        made = time.perf_counter()
        for sequence in sequences:
            ids = torch.tensor([sequence], device=device())
            adam.zero_grad()
            peft(input_ids=ids, labels=ids).loss.backward()
            adam.step()
        trained = time.perf_counter()
        peft.save_pretrained(folder)
        saved = time.perf_counter()
        self._model = peft.unload()
        return {"make": made - begun, "train": trained - made, "save": saved - trained}


_loop: PeftLoop | None = None  # of a process of the pool


def train(sequences: Sequences, folder: Path) -> dict[str, float]:
    """As `PeftLoop.train`, by the loop of this process, which is made when it is first needed."""
    global _loop
    if _loop is None:
        _loop = PeftLoop(for_model(bundled_model()))
    return _loop.train(sequences, folder)


@dataclass(frozen=True)
class Asked:
    """What the naive way made of a load: its answers, seconds by stage of each, and of it all."""

    answers: list[Answer]
    stages: list[dict[str, float]]
    seconds: float


def chosen(home: Path, corpus: str, prompts: Sequence[str], steps: int) -> list[Sequences]:
    """What Mayfly's selector chooses for each prompt."""
    selector = Selector(SelectorConfig(home / "corpora", base_model=bundled_model()))
    return [
        selector.select(SelectionRequest([Prompt(prompt)], corpus, steps=steps)).sequences
        for prompt in prompts
    ]


def naive(
    url: str, load: Load, prompts: Sequence[str], sequences: Sequence[Sequences], pool: Any
) -> Asked:
    """A load of a closed loop, asked the naive way: every adapter is loaded into, and unloaded
    from, this server.
    """
    return asyncio.run(_naive(url, load, prompts, sequences, pool))


async def _naive(
    url: str, load: Load, prompts: Sequence[str], sequences: Sequence[Sequences], pool: Any
) -> Asked:
    places, loop = asyncio.Semaphore(load.at_once or load.requests), asyncio.get_running_loop()

    async def one(number: int) -> tuple[Answer, dict[str, float]]:
        async with places:
            folder = Path(tempfile.mkdtemp(prefix="naive-", dir="/dev/shm"))
            begun = time.perf_counter()
            seconds = await loop.run_in_executor(pool, train, sequences[number], folder)
            trained = time.perf_counter()
            await _told(
                client,
                "/v1/load_lora_adapter",
                {"lora_name": folder.name, "lora_path": str(folder)},
            )
            loaded = time.perf_counter()
            answer = await ask(
                client, replace(load, model=folder.name, budget=None), prompts[number]
            )
            answered = time.perf_counter()
            await _told(client, "/v1/unload_lora_adapter", {"lora_name": folder.name})
            seconds["unload"] = time.perf_counter() - answered
            shutil.rmtree(folder)
            seconds |= {
                "wait": trained - begun - sum(seconds[part] for part in ("make", "train", "save"))
            }
            return answer, seconds | {"load": loaded - trained, "answer": answered - loaded}

    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS) as client:
        begun = time.perf_counter()
        done = await asyncio.gather(*map(one, range(len(prompts))))
        took = time.perf_counter() - begun
    return Asked([answer for answer, _ in done], [stages for _, stages in done], took)


async def _told(client: httpx.AsyncClient, path: str, body: dict[str, str]) -> None:
    reply = await client.post(path, json=body)
    if reply.status_code != 200:
        raise RuntimeError(f"{path} answered {reply.status_code}: {reply.text[:300]}")


def race(
    mayfly: str, lora: str, load: Load, home: Path, corpus: str, rounds: int, seed: int
) -> dict[str, Any]:
    """Rounds of the same load, Mayfly and the naive ways in turn; the ratios of their requests a
    second.
    """
    assert load.steps, "the naive way takes a given number of steps"
    progress("choosing for the naive way")
    every = chosen(
        home, corpus, [text for n in range(rounds) for text in pieces(load, seed + n)], load.steps
    )
    cores, before = os.cpu_count() or 1, dict(os.environ)
    # Processes, and threads of each.
    workers = {"naive": (1, max(1, cores // 2)), "naive pool": (cores, 1)}
    names = ["mayfly", *workers]
    speeds: list[dict[str, float]] = []
    short = Counter(dict.fromkeys(names, 0))
    stages: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
    os.environ.update(environment())  # of the processes, which are started when they are needed
    try:
        with ExitStack() as stack:
            pools = {name: stack.enter_context(_pool(*each)) for name, each in workers.items()}
            for name, (processes, _) in workers.items():  # warm
                naive(
                    lora, load, pieces(load, seed - 1)[:processes], every[:processes], pools[name]
                )
            for number in range(rounds):
                speed = {}
                for name in names[number % 3 :] + names[: number % 3]:
                    progress(f"naive: round {number + 1} of {rounds}, {name}")
                    if name == "mayfly":
                        answers, seconds = ask_all(mayfly, load, seed + number)
                        short[name] += sum(each.falls_short(load) for each in answers)
                    else:
                        sequences = every[number * load.requests :][: load.requests]
                        asked = naive(
                            lora, load, pieces(load, seed + number), sequences, pools[name]
                        )
                        seconds = asked.seconds
                        stages[name] += asked.stages
                        short[name] += sum(
                            each.falls_short(replace(load, budget=None)) for each in asked.answers
                        )
                    speed[name] = load.requests / seconds
                speeds.append(speed)
    finally:
        os.environ.clear()
        os.environ.update(before)
    ratios = {name: [speed["mayfly"] / speed[name] for speed in speeds] for name in workers}
    return {
        **{
            f"speedup_vs_{name.replace(' ', '_')}": statistics.median(each)
            for name, each in ratios.items()
        },
        "ratios": ratios,
        "per_second": {name: [speed[name] for speed in speeds] for name in names},
        "short": short,
        "seconds": {
            name: {stage: statistics.median(each[stage] for each in found) for stage in found[0]}
            for name, found in stages.items()
        },
        "load": {"budget": load.budget, "at_once": load.at_once, "requests": load.requests},
        "processes_and_threads": workers,
    }


def _pool(processes: int, threads: int) -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(
        processes, spawn, initializer=torch.set_num_threads, initargs=(threads,)
    )


def in_words(found: Mapping[str, Any]) -> str:
    """A result, for people."""
    load, lines = found["load"], []
    for name, ratios in found["ratios"].items():
        (processes, threads), seconds = found["processes_and_threads"][name], found["seconds"][name]
        parts = ", ".join(f"{stage} {value:.2f}" for stage, value in seconds.items())
        lines.append(
            f"{statistics.median(ratios):.2f} times the requests a second of the {name} ({processes} x {threads} "
            f"threads; wanted {MIN_SPEEDUP:.0f}; {load['budget']}, {load['at_once']} at once, {len(ratios)} rounds, "
            f"{min(ratios):.2f} to {max(ratios):.2f}), whose median seconds are: {parts}"
        )
    return "\n".join([*lines, f"not as asked: {found['short']}"])
