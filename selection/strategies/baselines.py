"""The strategies that SIFT is compared with, each a rule that yields one pick after the other.

`choose_by` runs any rule and reports the uncertainty that its picks leave, so that the curves of
all strategies can be compared. None has a stopping rule. From the paper: nearest neighbours and its
failure mode (section 2.1), uncertainty sampling and random choice (table 1). HullFT is arXiv
2605.30337.

Shapes: K candidates, T targets (embeddings of a prompt), D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, repeat
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from selection.strategies.posterior import Posterior
from selection.strategies.sift import Array, Choice

_FRANK_WOLFE_ROUNDS = 250
_FRANK_WOLFE_GAP = 1e-5


@dataclass(frozen=True)
class Problem:
    """What a rule chooses from.

    Attributes:
        candidates: embeddings [K, D] of the candidates, at least one.
        targets: embeddings [T, D] of the prompt.
        steps: maximum number of picks, at least one.
        posterior: given the picks that the rule has yielded so far.
        seed: seed of random choices.
        check_cancelled: called between units of work; an exception that it raises ends the choice.
    """

    candidates: Array
    targets: Array
    steps: int
    posterior: Posterior
    seed: int
    check_cancelled: Callable[[], None]


Rule: TypeAlias = Callable[[Problem], Iterable[int]]


def choose_by(
    rule: Rule,
    candidates_KD: Array,
    targets_TD: Array,
    *,
    steps: int,
    regularisation: float,
    seed: int = 0,
    check_cancelled: Callable[[], None] = lambda: None,
) -> Choice:
    """The first `steps` picks of a rule, or all of them if there are fewer.

    Args:
        rule: yields positions among the candidates.
        seed: seed of random choices.
        candidates_KD, targets_TD, steps, regularisation, check_cancelled: as in
            `selection.strategies.sift.sift`.

    Raises:
        ValueError: as `selection.strategies.sift.sift`.
    """
    steps = max(steps, 0) if len(candidates_KD) else 0
    posterior = Posterior(candidates_KD[None], targets_TD[None], regularisation, steps)
    picks, uncertainty = [], posterior.sigma
    if steps:
        problem = Problem(candidates_KD, targets_TD, steps, posterior, seed, check_cancelled)
        for pick in islice(rule(problem), steps):
            check_cancelled()
            posterior.pick([pick])
            picks.append(int(pick))
            uncertainty += posterior.sigma
    return Choice(tuple(picks), tuple(uncertainty), "steps")


def nearest_neighbours(problem: Problem) -> Iterable[int]:
    """NN: the candidates most similar to the targets (mean inner product), nearest first, without
    repeats.
    """
    similarity_K = (problem.targets @ problem.candidates.T).astype(np.float64).mean(axis=0)
    picks: list[int] = np.argsort(-similarity_K, kind="stable").tolist()
    return picks


def nearest_repeated(problem: Problem) -> Iterable[int]:
    """NN-F, the failure mode of NN: the nearest candidate again and again, as in a corpus full of
    its copies.
    """
    return repeat(next(iter(nearest_neighbours(problem))))


def uncertainty_sampling(problem: Problem) -> Iterator[int]:
    """US: the candidate that is itself most uncertain given the picks so far."""
    while True:
        yield int(problem.posterior.variance_BK[0].argmax())


def random_choice(problem: Problem) -> Iterable[int]:
    """Random candidates without repeats: the value of preselection alone."""
    order: list[int] = (
        np.random.default_rng(problem.seed).permutation(len(problem.candidates)).tolist()
    )
    return order


def hull(problem: Problem) -> Iterable[int]:
    """HullFT: the multiset of `steps` candidates whose mean comes closest to the prompt's
    embedding.

    Frank-Wolfe with exact line search finds convex weights of at most `steps` candidates. They
    become integers by rounding down, adding the candidates that bring the mean closest, and swaps
    until none helps; the authors swap within the support only. Several targets are represented by
    their mean. The candidates used most come first, and repeats stand together.
    """
    candidates_KD = problem.candidates.astype(np.float64)
    target_D = problem.targets.astype(np.float64).mean(axis=0)
    total, check_cancelled = problem.steps, problem.check_cancelled
    weights_K = _frank_wolfe(candidates_KD, target_D, total, check_cancelled)
    counts_K = _integer_counts(candidates_KD, target_D, weights_K, total, check_cancelled)
    order = np.argsort(-counts_K, kind="stable")
    picks: list[int] = np.repeat(order, counts_K[order]).tolist()
    return picks


def _frank_wolfe(
    candidates_KD: npt.NDArray[np.float64],
    target_D: npt.NDArray[np.float64],
    max_support: int,
    check_cancelled: Callable[[], None],
) -> npt.NDArray[np.float64]:
    """Convex weights [K], at most `max_support` of them not zero, of a point of the hull near the
    target.
    """
    weights_K = np.zeros(len(candidates_KD))
    weights_K[np.argmax(candidates_KD @ target_D)] = 1.0
    point_D = weights_K @ candidates_KD
    for _ in range(_FRANK_WOLFE_ROUNDS):
        check_cancelled()
        residual_D = target_D - point_D
        slopes_K = candidates_KD @ residual_D
        if np.count_nonzero(weights_K) >= max_support:  # only rebalances the support
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


def _integer_counts(
    candidates_KD: npt.NDArray[np.float64],
    target_D: npt.NDArray[np.float64],
    weights_K: npt.NDArray[np.float64],
    total: int,
    check_cancelled: Callable[[], None],
) -> npt.NDArray[np.int64]:
    """Integers near total * weights that sum to `total`, chosen to bring their mean close to the
    target.
    """
    counts_K: npt.NDArray[np.int64] = np.floor(total * weights_K / weights_K.sum()).astype(np.int64)
    missing_D = total * target_D - counts_K @ candidates_KD
    halves_K = np.einsum("kd,kd->k", candidates_KD, candidates_KD) / 2

    def cost_of_adding() -> npt.NDArray[np.float64]:
        """Half the change of |missing|^2 when one more of each candidate is taken."""
        return np.asarray(halves_K - candidates_KD @ missing_D)

    while counts_K.sum() < total:
        check_cancelled()
        best = int(np.argmin(cost_of_adding()))
        counts_K[best] += 1
        missing_D = missing_D - candidates_KD[best]
    swapped = True
    while swapped:  # terminates, because every swap comes closer
        swapped = False
        for i in np.flatnonzero(counts_K):
            check_cancelled()
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
