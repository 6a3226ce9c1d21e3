"""SIFT: choose the candidates that leave the least uncertainty about the response to a prompt.

Pure arrays: embeddings in, positions and uncertainties out, independent of texts, index and model.
`sift` checks its arguments and runs the greedy choice, which is compiled in `sift_numba.py`. Its
mathematics is that of `selection.strategies.posterior.Posterior`, and tests compare the two. For
many prompts at once, see `selection.strategies.sift_batch`. Source: Hübotter et al., "Efficiently
Learning at Test-Time", eq. 2, SIFT(lambda') in section 4, ADAPTIVE SIFT in section 6, the
irreducible uncertainty in section C.2.

Shapes: K candidates, T targets (embeddings of a prompt), D embedding dimensions, n picks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from selection.strategies.posterior import validated_prior

Array: TypeAlias = npt.NDArray[np.floating]
_JITTER = 1e-10  # keeps a Gram matrix with duplicates solvable
_NEGLIGIBLE = 1e-4  # share of the targets' length below which an irreducible uncertainty is 0
_BLOCK_ROWS = 1 << 14  # rows converted to float64 at once, to bound memory


@dataclass(frozen=True)
class Choice:
    """Candidates in the order in which they were chosen.

    Attributes:
        picks: positions among the candidates; a position may repeat.
        uncertainty: sigma_0 .. sigma_n, one entry more than `picks`; sigma_0 is 1.
        stop: why the choice ended: "steps", or "alpha" for ADAPTIVE SIFT.
    """

    picks: tuple[int, ...]
    uncertainty: tuple[float, ...]
    stop: str


def should_stop(sigma: float, n: int, alpha: float | None) -> bool:
    """Whether ADAPTIVE SIFT stops after n picks: sigma_n > 1 / (alpha n) (paper section 6).

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
    check_cancelled: Callable[[], None] = lambda: None,
) -> Choice:
    """Choose up to `steps` candidates, each the one that most reduces the uncertainty about the
    targets.

    Args:
        candidates_KD: embeddings of the candidates, unit length for the paper's setting.
        targets_TD: embeddings of the prompt; of several targets the trace of their posterior is
            reduced.
        steps: maximum number of picks.
        regularisation: lambda'; larger prefers relevance, smaller diversity.
        alpha: the stop of ADAPTIVE SIFT; None never stops early. Nothing is computed beyond the
            stop.
        check_cancelled: called between units of work; an exception that it raises ends the choice.

    Raises:
        ValueError: the shapes do not match, lambda' or alpha is not positive, or all targets are
            zero.
    """
    from selection.strategies.sift_numba import greedy  # numba takes a third of a second to import

    require_positive(alpha)
    (prior,) = validated_prior(candidates_KD[None], targets_TD[None], regularisation).tolist()
    picks, sigmas = greedy(
        candidates_KD,
        targets_TD,
        prior,
        steps=max(steps, 0),
        regularisation=regularisation,
        alpha=alpha,
        check_cancelled=check_cancelled,
    )
    stop = "alpha" if len(picks) < steps and len(candidates_KD) else "steps"
    return Choice(tuple(picks), tuple(sigmas), stop)


def require_positive(alpha: float | None) -> None:
    """Raise ValueError for an alpha that is not positive."""
    if alpha is not None and not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")


def irreducible(
    candidates_KD: Array,
    targets_TD: Array,
    check_cancelled: Callable[[], None] = lambda: None,
) -> float:
    """sigma_infinity: the uncertainty that is left when every candidate has been seen infinitely
    often (paper section C.2).

    It is the part of the targets outside the candidates' span, with sigma_0 normalised to 1: the
    limit of eq. 2 for all candidates as lambda' goes to 0, taken at lambda' = 1e-10. Accurate to
    1e-4, and 0 where a combination of the candidates comes that close to the targets.
    `check_cancelled` is as in `sift`.

    Raises:
        ValueError: all targets are zero.
    """
    targets64_TD = np.asarray(targets_TD, dtype=np.float64)
    prior = float((targets64_TD * targets64_TD).sum())
    if not prior > 0:
        raise ValueError("all target embeddings of a prompt are zero")
    count, dimension = candidates_KD.shape
    if count <= dimension:
        candidates64_KD = np.asarray(candidates_KD, dtype=np.float64)
        gram_KK = candidates64_KD @ candidates64_KD.T + _JITTER * np.eye(count)
        cross_KT = candidates64_KD @ targets64_TD.T
        explained = float((cross_KT * np.linalg.solve(gram_KK, cross_KT)).sum())
        return math.sqrt(max(1.0 - explained / prior, 0.0))
    if _spans(candidates_KD, targets64_TD, _NEGLIGIBLE * math.sqrt(prior)):
        return 0.0
    system_DD = _JITTER * np.eye(dimension)
    for start in range(0, count, _BLOCK_ROWS):
        check_cancelled()
        block = np.asarray(candidates_KD[start : start + _BLOCK_ROWS], dtype=np.float64)
        system_DD = system_DD + block.T @ block
    residual_DT = _JITTER * np.linalg.solve(system_DD, targets64_TD.T)
    return math.sqrt(min(max(float((targets64_TD.T * residual_DT).sum()) / prior, 0.0), 1.0))


def _spans(candidates_KD: Array, targets_TD: Array, tolerance: float) -> bool:
    """Whether a combination of D of the K > D candidates equals the targets [float64], up to a
    residual of length `tolerance`.

    The combination is solved for in float32 and corrected once; its residual is computed in
    float64. Candidates are sorted by similarity, so duplicates stand side by side: the D candidates
    are taken at equal distances.
    """
    from scipy.linalg import lapack  # three times as fast as NumPy's

    count, dimension = candidates_KD.shape
    basis_DD = candidates_KD[:: count // dimension][:dimension].T
    *factors, singular = lapack.sgetrf(basis_DD)
    if singular:
        return False
    basis64_DD = basis_DD.astype(np.float64)
    residual_DT = targets_TD.T
    for _ in range(2):
        weights_DT = lapack.sgetrs(*factors, residual_DT)[0].astype(np.float64)
        residual_DT = residual_DT - basis64_DD @ weights_DT
    return float((residual_DT * residual_DT).sum()) <= tolerance**2
