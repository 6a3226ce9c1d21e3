"""SIFT on the GPU: whether it chooses what the CPU chooses, and how fast.

Candidates are unit vectors of the embedder's dimension around a query, as a search would find them.
On the CPU SIFT is compiled and takes one prompt after the other; on the GPU all prompts take each
step together.
"""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import torch

from benchmarks.gpu.main import Measured
from benchmarks.harness.measures import spread, timed
from benchmarks.training.peft_loop import device, synchronize
from selection.strategies.registry import REGULARISATION
from selection.strategies.sift_batch import sift_batch

DIMENSION, STEPS, REPEATS = 384, 50, 3
PROMPTS, CANDIDATES = (1, 8, 64), (200, 1000, 10_000)
_MAX_NUMBERS = 1 << 30  # of candidates, in all


def measure(budget: str) -> Measured:
    """Agreement and seconds by number of prompts and candidates."""
    generator = np.random.default_rng(0)
    small = budget == "small"
    sizes = ((2, 200),) if small else itertools.product(PROMPTS, CANDIDATES)
    for prompts, candidates in sizes:
        if prompts * candidates * DIMENSION > _MAX_NUMBERS:
            continue
        queries_B1D = generator.standard_normal((prompts, 1, DIMENSION), dtype=np.float32)
        spread_BKD = generator.standard_normal((prompts, candidates, DIMENSION), dtype=np.float32)
        candidates_BKD = queries_B1D + 1.5 * spread_BKD
        for vectors in (queries_B1D, candidates_BKD):
            vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        on_device = [torch.from_numpy(each).to(device()) for each in (candidates_BKD, queries_B1D)]
        choose = partial(sift_batch, steps=STEPS, regularisation=REGULARISATION)
        # Once each, for compilation and the allocator.
        expected = choose(candidates_BKD, queries_B1D)
        found = choose(*on_device)
        seconds: dict[str, list[float]] = {"cpu": [], "device": []}
        for _ in range(REPEATS):
            seconds["cpu"].append(timed(choose, candidates_BKD, queries_B1D)[0])
            synchronize(device())
            seconds["device"].append(timed(choose, *on_device)[0])
        # Picks may differ where two candidates are equally good but for rounding.
        same_picks = [a.picks == b.picks for a, b in zip(found, expected, strict=True)]
        same_uncertainty = all(
            np.allclose(a.uncertainty, b.uncertainty, atol=1e-4)
            for a, b in zip(found, expected, strict=True)
        )
        yield (
            f"{prompts} prompts, {candidates} candidates",
            {
                "picks": STEPS,
                "cpu_seconds": spread(seconds["cpu"]),
                "device_seconds": spread(seconds["device"]),
                "equal_choices": float(np.mean(same_picks)),
                "holds": same_uncertainty,
            },
        )
