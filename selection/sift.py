"""SIFT: choose the candidates that leave the least uncertainty about the response to a prompt.

Pure arrays: embeddings in, positions and uncertainties out. It knows no texts, no index and no model.
Source: Hübotter et al., "Efficiently Learning at Test-Time", eq. 2, SIFT(lambda') in section 4 and
ADAPTIVE SIFT in section 6.

The greedy choice is exact. A partial Cholesky factor of K_X + lambda' I grows by one row per pick, so a
step costs O(K (d + n)) and no K x K matrix is formed. All of it is done in float64.

Shapes: K candidates, T targets (embeddings of the prompt), D embedding dimensions, n picks so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Choice:
    """Candidates in the order they were chosen.

    Attributes:
        picks: positions among the candidates; the same one may come again.
        uncertainty: sigma_0 .. sigma_n, one entry more than picks; sigma_0 is 1.
        stop: what ended the choice: "steps", or "alpha" for ADAPTIVE SIFT.
    """

    picks: tuple[int, ...]
    uncertainty: tuple[float, ...]
    stop: str


class Posterior:
    """The Gaussian-process posterior of candidates and targets, given the picks so far (paper eq. 2).

    Keeps, per candidate, the covariance with each target and the variance, both given the picks, and the
    rows of the partial Cholesky factor.
    """

    def __init__(self, candidates_KD: Array, targets_TD: Array, regularisation: float) -> None:
        if not regularisation > 0:  # NaN too
            raise ValueError(f"lambda' must be positive, got {regularisation}")
        if candidates_KD.ndim != 2 or targets_TD.ndim != 2 or candidates_KD.shape[1] != targets_TD.shape[1]:
            raise ValueError(f"expected [K, D] and [T, D], got {candidates_KD.shape} and {targets_TD.shape}")
        self._candidates_KD = candidates_KD.astype(np.float64)
        targets = targets_TD.astype(np.float64)
        self._regularisation = regularisation
        self._factor_rows: list[npt.NDArray[np.float64]] = []
        self.covariance_TK = targets @ self._candidates_KD.T
        self.variance_K = np.einsum("kd,kd->k", self._candidates_KD, self._candidates_KD)
        self._prior = float(np.einsum("td,td->", targets, targets))
        self._remaining = self._prior
        if self._prior <= 0:
            raise ValueError("a target embedding is zero")

    @property
    def sigma(self) -> float:
        """Uncertainty about the targets, the root of the posterior's trace, normalised so that sigma_0 = 1."""
        return float(np.sqrt(max(self._remaining, 0.0) / self._prior))

    def reductions(self) -> npt.NDArray[np.float64]:
        """What each candidate [K] would take off the trace of the targets' posterior, if picked next."""
        informed_K = np.einsum("tk,tk->k", self.covariance_TK, self.covariance_TK)
        reductions_K: npt.NDArray[np.float64] = informed_K / (self.variance_K + self._regularisation)
        return reductions_K

    def pick(self, j: int) -> None:
        """Condition on candidate j, once more if it was picked before."""
        pivot = float(np.sqrt(self.variance_K[j] + self._regularisation))
        row_K = self._candidates_KD @ self._candidates_KD[j]
        for earlier_K in self._factor_rows:
            row_K -= earlier_K[j] * earlier_K
        row_K /= pivot
        column_T = self.covariance_TK[:, j] / pivot
        self._remaining -= float(column_T @ column_T)
        self.covariance_TK -= np.outer(column_T, row_K)
        self.variance_K = np.maximum(self.variance_K - row_K**2, 0.0)
        self._factor_rows.append(row_K)


def has_stalled(sigma: float, n: int, alpha: float | None) -> bool:
    """Whether n picks are enough for ADAPTIVE SIFT: sigma_n > 1 / (alpha n) (paper section 6).

    Never before the first pick: 1 / (alpha 0) is infinite.
    """
    return alpha is not None and n > 0 and sigma * alpha * n > 1.0


def sift(
    candidates_KD: Array,
    targets_TD: Array,
    *,
    steps: int,
    regularisation: float,
    alpha: float | None = None,
) -> Choice:
    """Choose up to `steps` candidates, each the one that most reduces the uncertainty about the targets.

    Args:
        candidates_KD: embeddings of the candidates, unit length for the paper's setting.
        targets_TD: embeddings of the prompt; of several targets the trace of their posterior is reduced.
        steps: the most picks.
        regularisation: lambda'; larger prefers relevance, smaller diversity.
        alpha: stop as ADAPTIVE SIFT does; None never stops early. Nothing is chosen beyond the stop.

    Raises:
        ValueError: shapes that do not fit, lambda' or alpha not positive, a target of length zero.
    """
    if alpha is not None and not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    posterior = Posterior(candidates_KD, targets_TD, regularisation)
    picks: list[int] = []
    uncertainty = [posterior.sigma]
    while len(picks) < steps and len(candidates_KD):
        if has_stalled(uncertainty[-1], len(picks), alpha):
            return Choice(tuple(picks), tuple(uncertainty), "alpha")
        j = int(np.argmax(posterior.reductions()))
        posterior.pick(j)
        picks.append(j)
        uncertainty.append(posterior.sigma)
    return Choice(tuple(picks), tuple(uncertainty), "steps")
