"""SIFT for many prompts at once: NumPy arrays on the CPU, or torch tensors on any device.

On tensors all prompts take each step together, which is what a GPU is fast at. On NumPy arrays the
compiled choice runs for one prompt after the other, which is what a CPU is fast at. Both give the
choices of `selection.strategies.sift.sift`.

Shapes: B prompts, K candidates, T targets (embeddings of a prompt), D embedding dimensions.
"""

from __future__ import annotations

import numpy as np

from selection.strategies.posterior import Floats, Posterior, validated_prior
from selection.strategies.sift import Choice, require_positive, should_stop, sift


def sift_batch(
    candidates_BKD: Floats,
    targets_BTD: Floats,
    *,
    steps: int,
    regularisation: float,
    alpha: float | None = None,
) -> list[Choice]:
    """`sift` for several prompts, each with its own K candidates and T targets.

    Args and raised errors: as `selection.strategies.sift.sift`, for each prompt.
    """
    require_positive(alpha)
    if isinstance(candidates_BKD, np.ndarray):
        # Checks all prompts before the first choice.
        validated_prior(candidates_BKD, targets_BTD, regularisation)
        return [
            sift(candidates_KD, targets_TD, steps=steps, regularisation=regularisation, alpha=alpha)
            for candidates_KD, targets_TD in zip(candidates_BKD, targets_BTD, strict=True)
        ]
    posterior = Posterior(candidates_BKD, targets_BTD, regularisation, max(steps, 0))
    picks: list[list[int]] = [[] for _ in range(len(targets_BTD))]
    uncertainty = [[sigma] for sigma in posterior.sigma]
    stopped = [False for _ in picks]
    for n in range(steps if candidates_BKD.shape[1] else 0):
        stopped = [should_stop(sigmas[-1], n, alpha) for sigmas in uncertainty]
        if all(stopped):
            break
        picks_B = posterior.reductions().argmax(1)
        posterior.pick(picks_B)
        for b, (pick, sigma) in enumerate(zip(picks_B.tolist(), posterior.sigma, strict=True)):
            if not stopped[b]:
                picks[b].append(pick)
                uncertainty[b].append(sigma)
    return [
        Choice(tuple(picks[b]), tuple(uncertainty[b]), "alpha" if stopped[b] else "steps")
        for b in range(len(picks))
    ]
