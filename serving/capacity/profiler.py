"""Profiler: measures the costs of Mayfly's stages on this machine, for a plan.

It loads the real selector and trainer, with as many threads as `mayfly serve` gives each of its
processes; this takes half a minute for the bundled model, longer for larger ones. Starting vLLM
would take as long again, so the engine is profiled on a running server
(`serving.capacity.engine_profiler`). Without one it is estimated: a prompt token takes half of a
training token (two operations per parameter instead of four), in the engine's precision; an engine
step takes the time to read all weights; everything else takes no time.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adapters import Trainer, TrainerConfig, TrainingProgress, TrainingRequest
from selection import Prompt, SelectionRequest, Selector, SelectorConfig
from selection.embedding import load_embedder
from selection.threaded_embedder import ThreadedEmbedder
from serving.capacity.cost_model import (
    FORWARD_FLOPS,
    LOAD_PASSES,
    TRAINING_FLOPS,
    WEIGHT_BYTES,
    CostModel,
    fit_line,
)
from serving.capacity.engine_profiler import EngineCosts, median_seconds, profile_engine
from serving.client import Server
from serving.errors import PlanError

_REPEATS = 5
# Training steps that are measured, and the fewest of them.
_STEPS, _MIN_STEPS = 10, 4
# Steps until all requests train together.
_SETTLED = 2
# Approximate limit on the time to measure full steps.
_FULL_STEPS_SECONDS = 8.0
# Approximate characters per token.
_CHARACTERS = 4


@dataclass(frozen=True)
class ProfilerConfig:
    """What to measure.

    Attributes:
        trainer: Configuration of the trainer, with the model.
        selector: Configuration of the selector, with its embedder.
        corpus: Corpus to select from; None measures the embedder alone.
        server: Server whose engine is measured; None estimates the engine.
        steps, sequence_tokens, prompt_tokens: As in `serving.capacity.planner.Workload`.
    """

    trainer: TrainerConfig
    selector: SelectorConfig
    corpus: str | None
    server: Server | None
    steps: int
    sequence_tokens: int
    prompt_tokens: int


def profile(
    config: ProfilerConfig, on_stage: Callable[[str], None] = lambda stage: None
) -> CostModel:
    """Measure the costs of all stages.

    Args:
        config: What to measure.
        on_stage: Called with the name of each stage before it is measured.

    Raises:
        PlanError: training ends early, for example because memory does not suffice.
        BaseModelError: the model cannot be loaded.
        CorpusError: unknown corpus, or one of another embedder or tokenizer.
        AnswerError: no server there, or one that does not answer.
    """
    threads = max(1, (os.cpu_count() or 1) // 2)
    torch.set_num_threads(threads)
    # A server that is not there is an error before anything is loaded.
    if config.server is not None:
        config.server.first_model()
    on_stage("selection")
    select, dimension = _measure_selection(config)
    on_stage("training")
    trainer = Trainer(config.trainer)
    base, tokens = trainer.base, min(config.sequence_tokens, trainer.base.context)
    rows, alone, together, adapter_parameters = _measure_training(trainer, tokens)
    step_fixed, step_per_row = fit_line(alone, together, rows)
    on_stage("matrix products")
    engine_precision, engine_bytes = ("float32", 4) if base.device == "cpu" else ("bfloat16", 2)
    # As in the trainer, computing threads end, so that they do not slow down later ones.
    with ThreadPoolExecutor(1) as thread:
        trainer_flops, engine_flops = thread.map(
            _matmul_flops, (base.precision, engine_precision), (base.device,) * 2
        )
        bandwidth = thread.submit(_memory_bandwidth, base.device).result()
    # Noise may make the time per row zero, which no step can be.
    step_per_token = step_per_row / tokens or TRAINING_FLOPS * base.parameters / trainer_flops
    forward = step_per_token * FORWARD_FLOPS / TRAINING_FLOPS * trainer_flops / engine_flops
    engine = EngineCosts(base.parameters * engine_bytes / bandwidth, forward, forward, 0.0, None)
    if config.server is not None:
        on_stage("answers")
        engine = profile_engine(config.server, base.vocabulary, config.prompt_tokens)
    loading = LOAD_PASSES * WEIGHT_BYTES * adapter_parameters / bandwidth
    not_measured = {
        "the engine": config.server is None,
        "loading an adapter": engine.load is None,
        "search and SIFT (taken to need no time)": config.corpus is None,
    }
    model = config.trainer.model
    return CostModel(
        model=Path(model).name if Path(model).is_dir() else model,
        parameters=base.parameters,
        processor="cpu" if base.device == "cpu" else "cuda",
        cores=threads,
        trainer_flops=trainer_flops,
        engine_flops=engine_flops,
        bandwidth=bandwidth,
        rows=rows,
        step_fixed=step_fixed,
        step_per_token=step_per_token,
        decode_fixed=engine.decode_fixed,
        decode_per_answer=engine.decode_per_answer or forward,
        prefill_per_token=engine.prefill_per_token or forward,
        answer_fixed=engine.answer_fixed,
        load=loading if engine.load is None else engine.load,
        select=select,
        engine_bytes=engine_bytes,
        trainer_bytes=2 if base.precision == "bfloat16" else 4,
        adapter_parameters=adapter_parameters,
        rank=config.trainer.rank,
        cache_bytes=_cache_numbers_per_token(base.model.config) * engine_bytes,
        activation_bytes=trainer.activation_bytes(tokens) / tokens,
        dimension=dimension,
        estimated=tuple(name for name, missing in not_measured.items() if missing),
    )


def _measure_selection(config: ProfilerConfig) -> tuple[float, int]:
    """Seconds to embed a prompt and select data for it, and the embeddings' dimension."""
    characters, selector_config = _CHARACTERS * config.prompt_tokens, config.selector
    source = Path(__file__).read_text()
    text = source * (2 + characters // len(source))
    prompts = [Prompt(text[start : start + characters]) for start in range(_REPEATS + 1)]
    if config.corpus is None:
        embedder = ThreadedEmbedder(
            partial(load_embedder, selector_config.embedder, base_model=selector_config.base_model)
        )
        seconds = median_seconds(lambda prompt: embedder.embed(embedder.windows(prompt)), prompts)
        return seconds, embedder.dimension
    selector, corpus, steps = Selector(selector_config), config.corpus, max(config.steps, 1)
    seconds = median_seconds(
        lambda prompt: selector.select(SelectionRequest([prompt], corpus, steps)), prompts
    )
    return seconds, selector.embedder.dimension


def _measure_training(trainer: Trainer, tokens: int) -> tuple[int, float, float, int]:
    """Measure training steps of one request and of all slots.

    Returns:
        Sequences in a full step, seconds of a step of one request, seconds of a full step, and
        number of parameters of an adapter.
    """
    sequences = (
        np.random.default_rng(0).integers(0, trainer.base.vocabulary, (_STEPS, tokens)).tolist()
    )
    alone, _, adapter_parameters = _measure_steps(trainer, sequences, 1)
    slots = trainer.config.slots
    steps = min(max(int(_FULL_STEPS_SECONDS / (slots * alone)), _MIN_STEPS), _STEPS)
    together, rows, _ = _measure_steps(trainer, sequences[:steps], slots)
    return rows, alone, together, adapter_parameters


def _measure_steps(
    trainer: Trainer, sequences: Sequence[Sequence[int]], requests: int
) -> tuple[float, int, int]:
    """Train `requests` requests at once.

    Returns:
        Median seconds of a step, median number of sequences in it, and number of parameters of an
        adapter.
    """
    total_steps, enough = 0, threading.Event()
    # Time and total number of steps at each step of the first request, which is in every batch.
    marks: list[tuple[float, int]] = []

    def count(_progress: TrainingProgress) -> None:
        nonlocal total_steps
        total_steps += 1

    def mark(progress: TrainingProgress) -> None:
        marks.append((time.perf_counter(), total_steps))
        count(progress)

    first = trainer.submit(TrainingRequest(sequences), on_step=mark)
    others = [
        trainer.submit(TrainingRequest(sequences, seed=seed), cancelled=enough, on_step=count)
        for seed in range(1, requests)
    ]
    result = first.result()
    enough.set()
    for other in others:
        other.result()
    if result.adapter is None:
        raise PlanError(
            f"the training that is measured ended early ({result.stop}): try fewer "
            "--sequence-tokens, or a smaller --model"
        )
    pairs = list(pairwise(marks[_SETTLED - 1 :]))
    seconds = statistics.median(after[0] - before[0] for before, after in pairs)
    rows = statistics.median_low(after[1] - before[1] for before, after in pairs)
    # The header of the safetensors file is negligible.
    return seconds, rows, len(result.adapter.weights) // WEIGHT_BYTES


def _matmul_flops(precision: str, device: str) -> float:
    """Operations per second of torch's matrix products, at their best."""
    side = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device).to(getattr(torch, precision)) for _ in range(2))
    return 2 * side**3 / _min_seconds(lambda: torch.mm(a, b), device)


def _memory_bandwidth(device: str) -> float:
    """Bytes per second of a matrix-vector product, with a matrix larger than the caches."""
    matrix = torch.ones(8192 if device == "cpu" else 65536, 16384, device=device)
    vector = torch.ones(16384, device=device)
    return matrix.nbytes / _min_seconds(lambda: torch.mv(matrix, vector), device)


def _min_seconds(compute: Callable[[], object], device: str) -> float:
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        compute()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _cache_numbers_per_token(config: Any) -> int:
    """Numbers in the KV cache per token."""
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return 2 * int(config.num_hidden_layers) * kv_heads * head_size
