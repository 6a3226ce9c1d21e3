"""A PEFT loop per request: the straightforward alternative, against Mayfly, in requests per second.

Each request takes a new PEFT adapter on transformers' own model, Adam over the sequences one at a
time, `save_pretrained` into shared memory, /v1/load_lora_adapter of a `vllm serve`, the completion,
and /v1/unload_lora_adapter. Worker processes train, one request each at a time; clients wait for
them, load the adapter and send the completion. The baseline has every advantage: the sequences that
Mayfly's selector would choose, at no cost; a model that stays loaded in each process; Mayfly's
plugin for LoRA on a CPU, without which vLLM is slower. Mayfly's time includes selection. Both have
the same model, rank, steps and sizes of vLLM; the loop is in float32 on a CPU, as Mayfly's trainer
is where the processor has no bfloat16 units.

There are two baselines: `naive` trains in one process with as many threads as Mayfly's trainer,
`naive pool` in one process per core, which is more than Mayfly's trainer has. (The names are those
of the result's fields.) Rounds of the three take turns; a ratio is that of one round.
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
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import torch

from adapters import TrainerConfig
from adapters.model_defaults import for_model
from benchmarks.harness.command_line import progress
from benchmarks.harness.measures import TimeLimit, timed
from benchmarks.harness.thresholds import MIN_SPEEDUP
from benchmarks.latency.client import TIMEOUT_SECONDS, Answer, Load, excerpts, send, send_load
from benchmarks.latency.vllm_cli import vllm_environment
from benchmarks.training.peft_loop import load_base, lora_config, train_plainly
from selection import Selector, SelectorConfig
from selection.embedding import Prompt
from selection.request import SelectionRequest

LEARNING_RATE = 3e-3  # the time depends on neither it nor LoRA's alpha
Sequences = Sequence[Sequence[int]]


class PeftLoop:
    """A plain loop of transformers, PEFT and Adam, with a new adapter for each request."""

    def __init__(self, config: TrainerConfig) -> None:
        self._model, self._lora = load_base(config.model), lora_config(config)

    def train(self, sequences: Sequences, folder: Path) -> dict[str, float]:
        """Create an adapter, take a step on each sequence, and save it; seconds of each part."""
        from peft import get_peft_model

        make_seconds, peft = timed(get_peft_model, self._model, self._lora)
        train_seconds, _ = timed(train_plainly, peft, sequences, LEARNING_RATE)
        save_seconds, _ = timed(peft.save_pretrained, folder)
        self._model = peft.unload()
        return {"make": make_seconds, "train": train_seconds, "save": save_seconds}


@cache
def _loop_of(base: str) -> PeftLoop:
    """The loop of this process, for a base model's folder."""
    return PeftLoop(for_model(base))


def train(base: str, sequences: Sequences, folder: Path) -> dict[str, float]:
    """Call `PeftLoop.train` of this process's loop, which the first call creates."""
    return _loop_of(base).train(sequences, folder)


@dataclass(frozen=True)
class BaselineRun:
    """The outcome of a load: answers, seconds by stage of each, and seconds of all together."""

    answers: list[Answer]
    stages: list[dict[str, float]]
    seconds: float


def select_sequences(
    home: Path, corpus: str, prompts: Sequence[str], steps: int, base: str
) -> list[Sequences]:
    """The sequences that Mayfly's selector chooses for each prompt, with a base model's folder."""
    selector = Selector(SelectorConfig(home / "corpora", base_model=base))
    return [
        selector.select(SelectionRequest([Prompt(prompt)], corpus, steps=steps)).sequences
        for prompt in prompts
    ]


def run_baseline(
    url: str, load: Load, prompts: Sequence[str], sequences: Sequence[Sequences], pool: Any
) -> BaselineRun:
    """Run a closed loop with a PEFT loop per request.

    Args:
        url: base URL of the server that loads each adapter.
        load: the closed loop.
        prompts: prompt of each request.
        sequences: training data of each request.
        pool: pool of training processes.
    """
    return asyncio.run(_run_baseline(url, load, prompts, sequences, pool))


async def _run_baseline(
    url: str, load: Load, prompts: Sequence[str], sequences: Sequence[Sequences], pool: Any
) -> BaselineRun:
    semaphore, loop = asyncio.Semaphore(load.at_once or load.requests), asyncio.get_running_loop()

    async def run_one(number: int) -> tuple[Answer, dict[str, float]]:
        async with semaphore:
            folder = Path(tempfile.mkdtemp(prefix="naive-", dir="/dev/shm"))
            started = time.perf_counter()
            seconds = await loop.run_in_executor(
                pool, train, load.base_folder, sequences[number], folder
            )
            trained = time.perf_counter()
            await _post(
                client,
                "/v1/load_lora_adapter",
                {"lora_name": folder.name, "lora_path": str(folder)},
            )
            loaded = time.perf_counter()
            answer = await send(
                client, replace(load, model=folder.name, budget=None), prompts[number]
            )
            answered = time.perf_counter()
            await _post(client, "/v1/unload_lora_adapter", {"lora_name": folder.name})
            seconds["unload"] = time.perf_counter() - answered
            shutil.rmtree(folder)
            seconds |= {
                "wait": trained - started - sum(seconds[part] for part in ("make", "train", "save"))
            }
            return answer, seconds | {"load": loaded - trained, "answer": answered - loaded}

    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_SECONDS) as client:
        started = time.perf_counter()
        results = await asyncio.gather(*map(run_one, range(len(prompts))))
        seconds = time.perf_counter() - started
    return BaselineRun(
        [answer for answer, _ in results], [stages for _, stages in results], seconds
    )


async def _post(client: httpx.AsyncClient, path: str, body: dict[str, str]) -> None:
    response = await client.post(path, json=body)
    if response.status_code != 200:
        raise RuntimeError(f"{path} returned {response.status_code}: {response.text[:300]}")


def race(
    mayfly_url: str,
    lora_url: str,
    load: Load,
    home: Path,
    corpus: str,
    rounds: int,
    seed: int,
    steps: int | None = None,
    loop_requests: int | None = None,
    limit: TimeLimit | None = None,
) -> dict[str, Any]:
    """Run rounds of the same load on Mayfly and both baselines, in turn.

    Args:
        mayfly_url: base URL of Mayfly.
        lora_url: base URL of the server that loads the baselines' adapters.
        load: the closed loop.
        home: home of the corpus.
        corpus: the corpus.
        rounds: largest number of rounds.
        seed: seed of the prompts.
        steps: steps of the baselines; None takes those of the load.
        loop_requests: requests of a round of each baseline, where a slow model takes long for
            those of the load, which None takes; there is one for each process in any case.
        limit: no round begins that would end later, if it took as long as the longest one so far;
            there is at least one. None for no limit.

    Returns:
        The ratios of requests per second, and what they are made of.
    """
    steps = steps or load.steps
    assert steps, "the baselines take a fixed number of steps"
    limit = limit or TimeLimit(None)
    cores, before = os.cpu_count() or 1, dict(os.environ)
    requests = load.requests if loop_requests is None else max(loop_requests, cores)
    loop_load = replace(load, requests=requests)
    progress("selecting for the baselines")
    prompts = [text for n in range(rounds) for text in excerpts(loop_load, seed + n)]
    selections = select_sequences(home, corpus, prompts, steps, load.base_folder)
    # Number of processes, and threads of each.
    workers = {"naive": (1, max(1, cores // 2)), "naive pool": (cores, 1)}
    names = ["mayfly", *workers]
    rounds_per_second: list[dict[str, float]] = []
    short_counts = Counter(dict.fromkeys(names, 0))
    stages: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
    longest = 0.0
    os.environ.update(vllm_environment())  # inherited by the pools' processes
    try:
        with ExitStack() as stack:
            pools = {name: stack.enter_context(_pool(*each)) for name, each in workers.items()}
            for name, (processes, _) in workers.items():  # warm
                run_baseline(
                    lora_url,
                    loop_load,
                    excerpts(loop_load, seed - 1)[:processes],
                    selections[:processes],
                    pools[name],
                )
            for number in range(rounds):
                if number and limit.left < longest:
                    break
                per_second, started = {}, time.monotonic()
                for name in names[number % 3 :] + names[: number % 3]:
                    progress(f"PEFT loop per request: round {number + 1} of {rounds}, {name}")
                    if name == "mayfly":
                        requests = load.requests
                        answers, seconds = send_load(mayfly_url, load, seed + number)
                        short_counts[name] += sum(each.is_short(load) for each in answers)
                    else:
                        requests = loop_load.requests
                        chosen = slice(number * requests, (number + 1) * requests)
                        baseline = run_baseline(
                            lora_url, loop_load, prompts[chosen], selections[chosen], pools[name]
                        )
                        seconds = baseline.seconds
                        stages[name] += baseline.stages
                        short_counts[name] += sum(
                            each.is_short(replace(load, budget=None)) for each in baseline.answers
                        )
                    per_second[name] = requests / seconds
                longest = max(longest, time.monotonic() - started)
                rounds_per_second.append(per_second)
    finally:
        os.environ.clear()
        os.environ.update(before)
    ratios = {
        name: [per_second["mayfly"] / per_second[name] for per_second in rounds_per_second]
        for name in workers
    }
    return {
        **{
            f"speedup_vs_{name.replace(' ', '_')}": statistics.median(each)
            for name, each in ratios.items()
        },
        "ratios": ratios,
        "per_second": {
            name: [per_second[name] for per_second in rounds_per_second] for name in names
        },
        "short": short_counts,
        "seconds": {
            name: {stage: statistics.median(each[stage] for each in result) for stage in result[0]}
            for name, result in stages.items()
        },
        "load": {
            "budget": load.budget,
            "at_once": load.at_once,
            "requests": load.requests,
            "loop_requests": loop_load.requests,
            "loop_steps": steps,
        },
        "processes_and_threads": workers,
    }


def _pool(processes: int, threads: int) -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(
        processes, spawn, initializer=torch.set_num_threads, initargs=(threads,)
    )


def describe(result: Mapping[str, Any]) -> str:
    """A result as text."""
    load, lines = result["load"], []
    for name, ratios in result["ratios"].items():
        processes, threads = result["processes_and_threads"][name]
        stages = ", ".join(
            f"{stage} {seconds:.2f}" for stage, seconds in result["seconds"][name].items()
        )
        lines.append(
            f"{statistics.median(ratios):.2f} times the requests per second of a PEFT loop per "
            f"request in {processes} processes with {threads} threads (threshold "
            f"{MIN_SPEEDUP:.0f}; {load['budget']}, {load['at_once']} at once, {len(ratios)} "
            "rounds, "
            f"{min(ratios):.2f} to {max(ratios):.2f}), whose median seconds are: {stages}"
        )
    return "\n".join([*lines, f"failed or short: {result['short']}"])
