"""SIFT against activeft 0.1.1, the library of the paper's authors, side by side: the same picks,
and the time.

The part of `benchmarks/selection/main.py` that needs activeft, which Mayfly does not depend on. Its
exact path is VTL, what its `Retriever` uses unless told to be fast. Two of its times are taken:
"retriever", what `Retriever.search` itself reports for SIFT, without FAISS; and "greedy", the loop
over picks alone, which leaves out the data loader and the process that `Retriever` starts for it at
every search. VTL takes 1,000 candidates at a time, and is not exact beyond; here it is told to take
all.

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

from selection.embedding import Embeddings
from selection.strategies.posterior import Posterior
from selection.strategies.sift import sift

STEPS, DIMENSION, REGULARISATION = 50, 1024, 0.1
PAIRS = {200: 20, 1_000: 10, 10_000: 1}  # repetitions, by K
_TIE = 1e-5  # relative, of sigma^2: what float32 cannot tell apart


class Rival:
    """activeft's exact path, on the CPU."""

    def __init__(self, regularisation: float, candidates: int) -> None:
        # activeft looks for wandb at every pick. Where there is none, the search takes a fifth of
        # its time at K = 200: let it fail at once.
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
        """Its picks, from the loop alone."""
        self._function.set_target(self._tensor(targets_TD))
        candidates = self._tensor(candidates_KD)
        picks, _ = self._function.select_from_minibatch(steps, None, candidates, self._device)
        return [int(pick) for pick in picks]

    def retriever_seconds(
        self, candidates_KD: Embeddings, targets_TD: Embeddings, steps: int
    ) -> float:
        """What `Retriever` says that SIFT took, over an index of these candidates alone."""
        import faiss

        index: Any = faiss.IndexFlatIP(candidates_KD.shape[1])
        index.add(candidates_KD)
        retriever = self._retriever(index, self._function, device=self._device)
        return float(retriever.search(targets_TD, steps, len(candidates_KD))[3].sift)


def problem(
    generator: np.random.Generator, k: int, dimension: int, clustered: bool
) -> tuple[Embeddings, Embeddings]:
    """Unit vectors: candidates [K, D], uniform or in clusters of five on average, and a target [1,
    D] near one.
    """
    candidates_KD = generator.standard_normal((k, dimension))
    if clustered:
        centres = generator.standard_normal((max(k // 5, 1), dimension))
        candidates_KD = centres[generator.integers(0, len(centres), k)] + 0.5 * candidates_KD
    target_D = candidates_KD[generator.integers(k)] + generator.standard_normal(dimension)
    return _unit(candidates_KD), _unit(target_D[None])


def identical(problems: int) -> dict[str, Any]:
    """On how many random and clustered problems both choose the same, in the same order."""
    generator = np.random.default_rng(0)
    strict = tied = 0
    for number in range(problems):
        k, steps = int(generator.integers(50, 201)), int(generator.integers(10, 21))
        regularisation = float(generator.choice([0.001, 0.01, 0.1, 1.0]))
        dimension = int(generator.choice([64, 384, 1024]))
        candidates_KD, targets_TD = problem(generator, k, dimension, clustered=number % 2 == 1)
        ours = sift(candidates_KD, targets_TD, steps=steps, regularisation=regularisation).picks
        theirs = Rival(regularisation, k).greedy(candidates_KD, targets_TD, steps)
        if list(ours) == theirs:
            strict += 1
        elif all(
            _is_greedy(candidates_KD, targets_TD, regularisation, picks) for picks in (ours, theirs)
        ):
            tied += 1
    return {
        "problems": problems,
        "strictly": strict / problems,
        "up_to_ties": (strict + tied) / problems,
    }


def races(patience_seconds: float) -> dict[str, dict[str, Any]]:
    """`race` for each K, by K."""
    # A spawned process would spawn too, and Retriever starts a process at every search: it shall
    # fork, as by itself.
    multiprocessing.set_start_method("fork", force=True)
    return {str(k): race(k, pairs, patience_seconds) for k, pairs in PAIRS.items()}


def race(k: int, pairs: int, patience_seconds: float) -> dict[str, Any]:
    """Milliseconds of both among K candidates, taken in turn; Mayfly's alone where activeft would
    outlast patience.
    """
    candidates_KD, targets_TD = problem(np.random.default_rng(k), k, DIMENSION, clustered=True)
    rival = Rival(REGULARISATION, k)

    def ours() -> float:
        started = time.perf_counter()
        sift(candidates_KD, targets_TD, steps=STEPS, regularisation=REGULARISATION)
        return time.perf_counter() - started

    def theirs(steps: int = STEPS) -> float:
        started = time.perf_counter()
        rival.greedy(candidates_KD, targets_TD, steps)
        return time.perf_counter() - started

    ours()
    first, second = theirs(1), theirs(2)
    if first + (STEPS - 1) * (second - first) > patience_seconds:
        return {"mayfly_milliseconds": 1e3 * statistics.median(ours() for _ in range(5))}
    rows = [
        (ours(), theirs(), rival.retriever_seconds(candidates_KD, targets_TD, STEPS))
        for _ in range(pairs)
    ]
    return {
        "pairs": pairs,
        "mayfly_milliseconds": 1e3 * statistics.median(row[0] for row in rows),
        "greedy_milliseconds": 1e3 * statistics.median(row[1] for row in rows),
        "retriever_milliseconds": 1e3 * statistics.median(row[2] for row in rows),
        "greedy_ratio": _spread([row[1] / row[0] for row in rows]),
        "retriever_ratio": _spread([row[2] / row[0] for row in rows]),
    }


def _is_greedy(
    candidates_KD: Embeddings, targets_TD: Embeddings, regularisation: float, picks: Sequence[int]
) -> bool:
    """Whether each pick leaves the least variance, up to ties, given those before it; computed in
    float64.
    """
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


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and most."""
    return statistics.median(values), min(values), max(values)


def _unit(vectors: np.ndarray[Any, np.dtype[np.float64]]) -> Embeddings:
    unit: Embeddings = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit
