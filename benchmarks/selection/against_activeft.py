"""SIFT against activeft 0.1.1, the library of the paper's authors: same picks, and time.

activeft is not a dependency of Mayfly. Its exact path is VTL, which its `Retriever` uses unless it
is told to be fast. Two of its times are taken: "retriever", what `Retriever.search` itself reports
for SIFT, without FAISS; and "greedy", the loop over picks alone, without the data loader and the
process that `Retriever` starts for it at every search. VTL is exact only within one mini-batch of
1,000 candidates; here the mini-batch holds all.

Shapes: K candidates, T targets (one here), D embedding dimensions.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.harness.measures import spread
from selection.embedding import Embeddings
from selection.strategies.posterior import Posterior
from selection.strategies.sift import sift

STEPS, DIMENSION, REGULARISATION = 50, 1024, 0.1
PAIRS = {200: 20, 1_000: 10, 10_000: 1}  # by K
_TIE = 1e-5  # relative difference of sigma^2 that float32 cannot resolve


class Activeft:
    """activeft's exact path, on the CPU."""

    def __init__(self, regularisation: float, candidates: int) -> None:
        # activeft imports wandb at every pick. Where it is missing, that takes a fifth of the time
        # at K = 200, unless it fails at once.
        sys.modules.setdefault("wandb", None)  # type: ignore[arg-type]
        import torch
        from activeft.acquisition_functions.vtl import VTL  # type: ignore[import-not-found]
        from activeft.sift import Retriever  # type: ignore[import-not-found]

        self._tensor = torch.from_numpy
        self._device = torch.device("cpu")
        self._retriever = Retriever
        self._function = VTL(
            target=torch.Tensor(),
            num_workers=1,
            subsample=False,
            noise_std=math.sqrt(regularisation),
            mini_batch_size=max(candidates, 1_000),
        )

    def greedy(self, candidates_KD: Embeddings, targets_TD: Embeddings, steps: int) -> list[int]:
        """Picks of the greedy loop alone."""
        self._function.set_target(self._tensor(targets_TD))
        candidates = self._tensor(candidates_KD)
        picks, _ = self._function.select_from_minibatch(steps, None, candidates, self._device)
        return [int(pick) for pick in picks]

    def retriever_seconds(
        self, candidates_KD: Embeddings, targets_TD: Embeddings, steps: int
    ) -> float:
        """Time of SIFT by `Retriever`'s own report, over an index of these candidates."""
        import faiss

        index: Any = faiss.IndexFlatIP(candidates_KD.shape[1])
        index.add(candidates_KD)
        retriever = self._retriever(index, self._function, device=self._device)
        return float(retriever.search(targets_TD, steps, len(candidates_KD))[3].sift)


def problem(
    generator: np.random.Generator, k: int, dimension: int, clustered: bool
) -> tuple[Embeddings, Embeddings]:
    """Unit vectors: candidates [K, D], and a target [1, D] near one of them.

    The candidates are uniform, or in clusters of five on average.
    """
    candidates_KD = generator.standard_normal((k, dimension))
    if clustered:
        centres = generator.standard_normal((max(k // 5, 1), dimension))
        candidates_KD = centres[generator.integers(0, len(centres), k)] + 0.5 * candidates_KD
    target_D = candidates_KD[generator.integers(k)] + generator.standard_normal(dimension)
    return _unit(candidates_KD), _unit(target_D[None])


def compare_picks(problems: int) -> dict[str, Any]:
    """Shares of random and clustered problems with the same picks, in the same order."""
    generator = np.random.default_rng(0)
    identical = ties = 0
    for number in range(problems):
        k, steps = int(generator.integers(50, 201)), int(generator.integers(10, 21))
        regularisation = float(generator.choice([0.001, 0.01, 0.1, 1.0]))
        dimension = int(generator.choice([64, 384, 1024]))
        candidates_KD, targets_TD = problem(generator, k, dimension, clustered=number % 2 == 1)
        mayfly_picks = sift(
            candidates_KD, targets_TD, steps=steps, regularisation=regularisation
        ).picks
        activeft_picks = Activeft(regularisation, k).greedy(candidates_KD, targets_TD, steps)
        if list(mayfly_picks) == activeft_picks:
            identical += 1
        elif all(
            _is_greedy(candidates_KD, targets_TD, regularisation, picks)
            for picks in (mayfly_picks, activeft_picks)
        ):
            ties += 1
    return {
        "problems": problems,
        "strictly": identical / problems,
        "up_to_ties": (identical + ties) / problems,
    }


def compare_speed_by_candidates(max_seconds: float) -> dict[str, dict[str, Any]]:
    """`compare_speed` by K."""
    # Retriever starts a process at every search. In a spawned process it would spawn, which is
    # slower than its default, to fork.
    multiprocessing.set_start_method("fork", force=True)
    return {str(k): compare_speed(k, pairs, max_seconds) for k, pairs in PAIRS.items()}


def compare_speed(k: int, pairs: int, max_seconds: float) -> dict[str, Any]:
    """Milliseconds of both among K candidates, measured in turn.

    Mayfly is measured alone where activeft would take more than `max_seconds`.
    """
    candidates_KD, targets_TD = problem(np.random.default_rng(k), k, DIMENSION, clustered=True)
    activeft = Activeft(REGULARISATION, k)

    def mayfly_seconds() -> float:
        started = time.perf_counter()
        sift(candidates_KD, targets_TD, steps=STEPS, regularisation=REGULARISATION)
        return time.perf_counter() - started

    def greedy_seconds(steps: int = STEPS) -> float:
        started = time.perf_counter()
        activeft.greedy(candidates_KD, targets_TD, steps)
        return time.perf_counter() - started

    mayfly_seconds()
    first, second = greedy_seconds(1), greedy_seconds(2)
    if first + (STEPS - 1) * (second - first) > max_seconds:
        return {"mayfly_milliseconds": 1e3 * statistics.median(mayfly_seconds() for _ in range(5))}
    rows = [
        (
            mayfly_seconds(),
            greedy_seconds(),
            activeft.retriever_seconds(candidates_KD, targets_TD, STEPS),
        )
        for _ in range(pairs)
    ]
    return {
        "pairs": pairs,
        "mayfly_milliseconds": 1e3 * statistics.median(row[0] for row in rows),
        "greedy_milliseconds": 1e3 * statistics.median(row[1] for row in rows),
        "retriever_milliseconds": 1e3 * statistics.median(row[2] for row in rows),
        "greedy_ratio": spread([row[1] / row[0] for row in rows]),
        "retriever_ratio": spread([row[2] / row[0] for row in rows]),
    }


def _is_greedy(
    candidates_KD: Embeddings, targets_TD: Embeddings, regularisation: float, picks: Sequence[int]
) -> bool:
    """Whether each pick leaves the least variance given those before, up to ties, in float64."""
    posterior = Posterior(
        candidates_KD[None].astype(np.float64),
        targets_TD[None].astype(np.float64),
        regularisation,
        len(picks),
    )
    for pick in picks:
        left_K = posterior.sigma[0] ** 2 - posterior.reductions()[0]
        if left_K[pick] > left_K.min() * (1 + _TIE):
            return False
        posterior.pick(np.array([pick]))
    return True


def _unit(vectors: np.ndarray[Any, np.dtype[np.float64]]) -> Embeddings:
    unit: Embeddings = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit
