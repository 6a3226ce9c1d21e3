"""Strategies that SIFT is measured against, under the same interface; each is also a request's
option.

Pure arrays, as in `sift`: NumPy or torch, one prompt at a time. They report the same uncertainties,
of their own picks, so that curves can be compared. None has a stopping rule. From the paper:
nearest neighbours and its failure mode (section 2.1), uncertainty sampling and random choice (table
1). HullFT is arXiv 2605.30337.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from selection.strategies.sift import Choice, Floats, Posterior

Between: TypeAlias = Callable[[], None]  # called between parts of the work; what it raises ends it
_FRANK_WOLFE_ROUNDS = 250
_FRANK_WOLFE_GAP = 1e-5


def nearest_neighbours(
    candidates_KD: Floats,
    targets_TD: Floats,
    *,
    steps: int,
    regularisation: float,
    between: Between = lambda: None,
) -> Choice:
    """NN: the candidates most similar to the targets (mean inner product), nearest first, without
    repeats.

    Args and raised errors: as `selection.strategies.sift.sift`.
    """
    picks = _nearest(candidates_KD, targets_TD)[: max(steps, 0)]
    return _account(candidates_KD, targets_TD, picks, regularisation, between)


def nearest_repeated(
    candidates_KD: Floats,
    targets_TD: Floats,
    *,
    steps: int,
    regularisation: float,
    between: Between = lambda: None,
) -> Choice:
    """NN-F, the failure mode of NN: the nearest candidate again and again, as in a corpus full of
    its copies.
    """
    nearest = _nearest(candidates_KD, targets_TD)[:1]
    return _account(candidates_KD, targets_TD, nearest * steps, regularisation, between)


def uncertainty_sampling(
    candidates_KD: Floats,
    targets_TD: Floats,
    *,
    steps: int,
    regularisation: float,
    between: Between = lambda: None,
) -> Choice:
    """US: each time the candidate that is itself most uncertain given those before, whatever the
    prompt asks.
    """
    posterior = Posterior(candidates_KD[None], targets_TD[None], regularisation, max(steps, 0))
    picks, uncertainty = [], posterior.sigma
    for _ in range(steps if len(candidates_KD) else 0):
        between()
        pick_B = posterior.variance_BK.argmax(1)
        posterior.pick(pick_B)
        picks.append(int(pick_B[0]))
        uncertainty += posterior.sigma
    return Choice(tuple(picks), tuple(uncertainty), "steps")


def random_choice(
    candidates_KD: Floats,
    targets_TD: Floats,
    *,
    steps: int,
    regularisation: float,
    seed: int = 0,
    between: Between = lambda: None,
) -> Choice:
    """Candidates at random, none twice: what preselection alone is worth."""
    order = np.random.default_rng(seed).permutation(len(candidates_KD))[: max(steps, 0)]
    return _account(candidates_KD, targets_TD, order.tolist(), regularisation, between)


def hull(
    candidates_KD: Floats,
    targets_TD: Floats,
    *,
    steps: int,
    regularisation: float,
    between: Between = lambda: None,
) -> Choice:
    """HullFT: the multiset of `steps` candidates whose mean comes closest to the prompt's
    embedding.

    Frank-Wolfe with exact line search finds convex weights of at most `steps` candidates; they
    become whole numbers by rounding down, filling up with whatever brings the mean closest, and
    swaps until none helps; the authors swap within the support only. Several targets are met by
    their mean. Those used most come first; repeats stand together.
    """
    candidates = _numpy(candidates_KD)
    target_D = _numpy(targets_TD).mean(axis=0)
    if steps <= 0 or not len(candidates):
        return _account(candidates_KD, targets_TD, [], regularisation, between)
    counts_K = _whole(
        candidates, target_D, _frank_wolfe(candidates, target_D, steps, between), steps, between
    )
    order = np.argsort(-counts_K, kind="stable")
    picks = np.repeat(order, counts_K[order]).tolist()
    return _account(candidates_KD, targets_TD, picks, regularisation, between)


def _frank_wolfe(
    candidates_KD: npt.NDArray[np.float64],
    target_D: npt.NDArray[np.float64],
    most: int,
    between: Between,
) -> Floats:
    """Convex weights [K], at most `most` of them not zero, of the point of the hull near the
    target.
    """
    weights_K = np.zeros(len(candidates_KD))
    weights_K[np.argmax(candidates_KD @ target_D)] = 1.0
    point_D = weights_K @ candidates_KD
    for _ in range(_FRANK_WOLFE_ROUNDS):
        between()
        residual_D = target_D - point_D
        slopes_K = candidates_KD @ residual_D
        if np.count_nonzero(weights_K) >= most:  # no new support; the old may still be balanced
            slopes_K[weights_K == 0] = -np.inf
        best = int(np.argmax(slopes_K))
        direction_D = candidates_KD[best] - point_D
        gap = float(residual_D @ direction_D)
        if gap <= _FRANK_WOLFE_GAP:
            break
        step = min(gap / float(direction_D @ direction_D), 1.0)
        weights_K *= 1.0 - step
        weights_K[best] += step
        point_D = point_D + step * direction_D
    return weights_K


def _whole(
    candidates_KD: npt.NDArray[np.float64],
    target_D: npt.NDArray[np.float64],
    weights_K: npt.NDArray[np.float64],
    total: int,
    between: Between,
) -> npt.NDArray[np.int64]:
    """Whole numbers near total * weights that sum to total, chosen for the distance of their mean
    to the target.
    """
    counts_K: npt.NDArray[np.int64] = np.floor(total * weights_K / weights_K.sum()).astype(np.int64)
    missing_D = total * target_D - counts_K @ candidates_KD
    halves_K = np.einsum("kd,kd->k", candidates_KD, candidates_KD) / 2

    def cost_of_adding() -> npt.NDArray[np.float64]:
        """Half the change of |missing|^2 when one more of each is taken."""
        return np.asarray(halves_K - candidates_KD @ missing_D)

    while counts_K.sum() < total:
        between()
        best = int(np.argmin(cost_of_adding()))
        counts_K[best] += 1
        missing_D = missing_D - candidates_KD[best]
    swapped = True
    while swapped:  # ends: every swap comes closer
        swapped = False
        for i in np.flatnonzero(counts_K):
            between()
            missing_D = missing_D + candidates_KD[i]
            costs_K = cost_of_adding()
            best = int(np.argmin(costs_K))
            better = costs_K[best] < costs_K[i] - 1e-12
            best = best if better else int(i)
            counts_K[i] -= 1
            counts_K[best] += 1
            missing_D = missing_D - candidates_KD[best]
            swapped |= better
    return counts_K


def _nearest(candidates_KD: Floats, targets_TD: Floats) -> list[int]:
    similarity_K = _numpy(targets_TD @ candidates_KD.T).mean(axis=0)
    order: list[int] = np.argsort(-similarity_K, kind="stable").tolist()
    return order


def _account(
    candidates_KD: Floats,
    targets_TD: Floats,
    picks: Iterable[int],
    regularisation: float,
    between: Between,
) -> Choice:
    """The picks with the uncertainty they leave after each."""
    picks = tuple(picks)
    posterior = Posterior(candidates_KD[None], targets_TD[None], regularisation, len(picks))
    uncertainty = posterior.sigma
    for pick in picks:
        between()
        posterior.pick([pick])
        uncertainty += posterior.sigma
    return Choice(picks, tuple(uncertainty), "steps")


def _numpy(array: Floats) -> npt.NDArray[np.float64]:
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array, dtype=np.float64)
