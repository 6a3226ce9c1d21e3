"""Measures the pieces of a plan on this machine: selector, trainer, matrix products, and the engine
of a server.

The real parts, loaded here, on as many threads as `mayfly serve` gives each of its processes; half
a minute for the bundled model, longer for larger ones. vLLM alone would take as long to start, so
the engine is that of a running server (`serving.capacity.engine_profiler`). Without one it is
estimated: a token of a prompt by half of what training takes (two operations for each parameter,
not four) in the engine's precision, a step by reading all weights, the rest by nothing.
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

from adapters import Trainer, TrainerConfig, TrainingProgress
from adapters.training import TrainingRequest
from selection import Prompt, Selector, SelectorConfig
from selection.embedding import load_embedder
from selection.request import SelectionRequest
from selection.threaded_embedder import ThreadedEmbedder
from serving.capacity.cost_model import ADAPTER_NUMBER, FORWARD, PASSES, TRAINING, CostModel, line
from serving.capacity.engine_profiler import EngineCosts, ask_engine, usual
from serving.client import Server
from serving.errors import PlanError

_REPEATS = 5
_STEPS, _LEAST_STEPS, _SETTLED = 10, 4, 2  # steps that are measured; until all train together
_FULL_SECONDS = 8.0  # about what measuring full steps may take
_LETTERS = 4  # of a token, about


@dataclass(frozen=True)
class Asked:
    """What is measured.

    Attributes:
        trainer: of the model.
        selector: with its embedder.
        corpus: to choose from; None measures the embedder alone.
        server: whose engine it is; None estimates it.
        steps, sequence_tokens, prompt_tokens: as in `serving.capacity.planner.Workload`.
    """

    trainer: TrainerConfig
    selector: SelectorConfig
    corpus: str | None
    server: Server | None
    steps: int
    sequence_tokens: int
    prompt_tokens: int


def measure(asked: Asked, on_part: Callable[[str], None] = lambda part: None) -> CostModel:
    """The pieces.

    Args:
        asked: what is measured.
        on_part: told what comes next.

    Raises:
        PlanError: a model or embedder that cannot be loaded, or sequences that memory does not
            suffice for.
        CorpusError: no such corpus, or one of another embedder or tokenizer.
        AnswerError: no server there, or one that does not answer.
    """
    threads = max(1, (os.cpu_count() or 1) // 2)
    torch.set_num_threads(threads)
    if asked.server is not None:
        asked.server.first_model()  # what would else fail later fails now
    on_part("choosing")
    select, dimension = _choose(asked)
    on_part("training")
    trainer = Trainer(asked.trainer)
    base, tokens = trainer.base, min(asked.sequence_tokens, trainer.base.context)
    rows, alone, together, numbers = _train(trainer, tokens)
    step_fixed, step_row = line(alone, together, rows)
    on_part("multiplying")
    engine_precision, engine_bytes = ("float32", 4) if base.device == "cpu" else ("bfloat16", 2)
    with ThreadPoolExecutor(1) as thread:  # one that ends, as in the trainer
        trainer_flops, engine_flops = thread.map(
            _multiply, (base.precision, engine_precision), (base.device,) * 2
        )
        bandwidth = thread.submit(_read, base.device).result()
    # Noise must not make it free.
    step_token = step_row / tokens or TRAINING * base.parameters / trainer_flops
    half = step_token * FORWARD / TRAINING * trainer_flops / engine_flops
    engine = EngineCosts(base.parameters * engine_bytes / bandwidth, half, half, 0.0, None)
    if asked.server is not None:
        on_part("answering")
        engine = ask_engine(asked.server, base.vocabulary, asked.prompt_tokens)
    loading = PASSES * ADAPTER_NUMBER * numbers / bandwidth
    not_measured = {
        "the engine": asked.server is None,
        "loading an adapter": engine.load is None,
        "search and SIFT (taken as nothing)": asked.corpus is None,
    }
    model = asked.trainer.model
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
        step_token=step_token,
        decode_fixed=engine.decode_fixed,
        decode_each=engine.decode_each or half,
        prefill_token=engine.prefill_token or half,
        answer_fixed=engine.answer_fixed,
        load=loading if engine.load is None else engine.load,
        select=select,
        engine_bytes=engine_bytes,
        trainer_bytes=2 if base.precision == "bfloat16" else 4,
        adapter_numbers=numbers,
        rank=asked.trainer.rank,
        cache_bytes=_cached_numbers(base.model.config) * engine_bytes,
        kept_bytes=trainer.kept_bytes(tokens) / tokens,
        dimension=dimension,
        estimated=tuple(what for what, holds in not_measured.items() if holds),
    )


def _choose(asked: Asked) -> tuple[float, int]:
    """Seconds to embed a prompt and choose for it, and the embeddings' dimension."""
    letters, config = _LETTERS * asked.prompt_tokens, asked.selector
    source = Path(__file__).read_text()
    text = source * (2 + letters // len(source))
    prompts = [Prompt(text[start : start + letters]) for start in range(_REPEATS + 1)]
    if asked.corpus is None:
        embedder = ThreadedEmbedder(
            partial(load_embedder, config.embedder, base_model=config.base_model)
        )
        return usual(
            lambda prompt: embedder.embed(embedder.windows(prompt)), prompts
        ), embedder.dimension
    selector = Selector(config)
    corpus, steps = asked.corpus, max(asked.steps, 1)
    return usual(
        lambda prompt: selector.select(SelectionRequest([prompt], corpus, steps)), prompts
    ), selector.embedder.dimension


def _train(trainer: Trainer, tokens: int) -> tuple[int, float, float, int]:
    """Sequences in a full step, seconds of a step alone and of a full one, and numbers in an
    adapter.
    """
    drawn = np.random.default_rng(0).integers(0, trainer.base.vocabulary, (_STEPS, tokens)).tolist()
    alone, _, numbers = _steps(trainer, drawn, 1)
    slots = trainer.config.slots
    steps = min(max(int(_FULL_SECONDS / (slots * alone)), _LEAST_STEPS), _STEPS)
    together, rows, _ = _steps(trainer, drawn[:steps], slots)
    return rows, alone, together, numbers


def _steps(
    trainer: Trainer, sequences: Sequence[Sequence[int]], requests: int
) -> tuple[float, int, int]:
    """While so many requests train: seconds of a step, sequences in it, both medians; and numbers
    in an adapter.
    """
    told, enough = 0, threading.Event()
    # At the first one's steps, which is in every batch: when, and steps till then.
    marks: list[tuple[float, int]] = []

    def hear(_progress: TrainingProgress) -> None:
        nonlocal told
        told += 1

    def hear_first(progress: TrainingProgress) -> None:
        marks.append((time.perf_counter(), told))
        hear(progress)

    first = trainer.submit(TrainingRequest(sequences), on_step=hear_first)
    others = [
        trainer.submit(TrainingRequest(sequences, seed=seed), cancelled=enough, on_step=hear)
        for seed in range(1, requests)
    ]
    training = first.result()
    enough.set()
    for other in others:
        other.result()
    if training.adapter is None:
        raise PlanError(
            f"training ended by '{training.stop}': try fewer --sequence-tokens, or a smaller --model"
        )
    pairs = list(pairwise(marks[_SETTLED - 1 :]))
    seconds = statistics.median(after[0] - before[0] for before, after in pairs)
    rows = statistics.median_low(after[1] - before[1] for before, after in pairs)
    # Its header is next to nothing.
    return seconds, rows, len(training.adapter.weights) // ADAPTER_NUMBER


def _multiply(precision: str, device: str) -> float:
    """Operations a second of torch's matrix products, at their best."""
    side = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device).to(getattr(torch, precision)) for _ in range(2))
    return 2 * side**3 / _best(lambda: torch.mm(a, b), device)


def _read(device: str) -> float:
    """Bytes a second of a product of a matrix, larger than caches hold, with a vector."""
    matrix = torch.ones(8192 if device == "cpu" else 65536, 16384, device=device)
    vector = torch.ones(16384, device=device)
    return matrix.nbytes / _best(lambda: torch.mv(matrix, vector), device)


def _best(compute: Callable[[], object], device: str) -> float:
    """The least seconds that this takes."""
    seconds = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        compute()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def _cached_numbers(config: Any) -> int:
    """Of a token in a KV cache."""
    heads = int(config.num_attention_heads)
    shared = int(getattr(config, "num_key_value_heads", None) or heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return 2 * int(config.num_hidden_layers) * shared * width
