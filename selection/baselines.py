"""Strategies that SIFT is measured against, under the same interface.

Pure arrays, as in `sift`. They report the same uncertainties, of their own picks, so that curves can be
compared. Here: nearest neighbours (paper section 2.1).
"""

from __future__ import annotations

import numpy as np

from selection.sift import Array, Choice, Posterior


def nearest_neighbours(
    candidates_KD: Array, targets_TD: Array, *, steps: int, regularisation: float, alpha: float | None = None
) -> Choice:
    """The candidates most similar to the targets (mean inner product), nearest first, without repeats.

    Args and raised errors: as `selection.sift.sift`. NN has no stopping rule: `alpha` must be None.
    """
    if alpha is not None:
        raise ValueError("nearest neighbours has no stopping rule; leave alpha out")
    posterior = Posterior(candidates_KD, targets_TD, regularisation)
    order = np.argsort(-posterior.covariance_TK.mean(axis=0), kind="stable")[: max(steps, 0)]
    uncertainty = [posterior.sigma]
    for j in order:
        posterior.pick(int(j))
        uncertainty.append(posterior.sigma)
    return Choice(tuple(int(j) for j in order), tuple(uncertainty), "steps")
