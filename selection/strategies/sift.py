"""SIFT: choose the candidates that leave the least uncertainty about the response to a prompt.

Pure arrays: embeddings in, positions and uncertainties out. It knows no texts, no index and no
model. `Posterior` is the mathematics, on NumPy arrays, and on torch tensors where they lie. `sift`
follows it on tensors, and on NumPy arrays runs the same compiled
(`selection.strategies.sift_numba`); tests hold the two together. Source: Hübotter et al.,
"Efficiently Learning at Test-Time", eq. 2, SIFT(lambda') in section 4, ADAPTIVE SIFT in section 6,
the irreducible uncertainty in section C.2.

The greedy choice is exact. A partial Cholesky factor of K_X + lambda' I grows by one row per pick,
so a step costs O(K (D + n)) and no K x K matrix is formed. Inner products of embeddings are taken
in the embeddings' own precision, everything that accumulates over picks in float64.

A nugget is what an embedding does not tell of a sequence: the kernel among candidates becomes
k(x, x') = phi(x) . phi(x') + nugget [x is x'], where a copy at another position is another
candidate; what they tell of the targets stays. So a sequence picked again tells less than another
one as near. The paper has none: 0.

Shapes: B prompts, K candidates, T targets (embeddings of a prompt), D embedding dimensions, n picks
so far, N the most picks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.floating]
Floats: TypeAlias = Any  # a NumPy array or a torch tensor
_JITTER = 1e-10  # keeps a Gram matrix with duplicates solvable
_NOTHING = 1e-4  # of the targets' length: an irreducible uncertainty below it is none
_ROWS = 1 << 14  # widened at once, to bound memory


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
    """The Gaussian-process posteriors of B prompts' candidates and targets, given the picks so far
    (paper eq. 2).

    Keeps, per candidate, the covariance with each target and the variance, both given the picks,
    and the rows of the partial Cholesky factor.
    """

    def __init__(
        self,
        candidates_BKD: Floats,
        targets_BTD: Floats,
        regularisation: float,
        steps: int,
        nugget: float = 0.0,
    ) -> None:
        self._prior_B = _prior(candidates_BKD, targets_BTD, regularisation, nugget)
        shape = candidates_BKD.shape
        self._xp = _module(candidates_BKD)
        self._device = {"device": candidates_BKD.device}
        self._candidates_BKD = candidates_BKD
        self._regularisation = regularisation
        self._nugget = nugget
        # A slice is the faster index where there is one prompt, and means the same.
        self._prompts = slice(None) if shape[0] == 1 else self._xp.arange(shape[0], **self._device)
        self._factor_BNK = self._xp.empty(
            (shape[0], steps, shape[1]), dtype=self._xp.float64, **self._device
        )
        self._picked = 0
        self.covariance_BTK = self._wide(targets_BTD @ candidates_BKD.swapaxes(1, 2))
        self.variance_BK = (
            self._wide(self._xp.einsum("bkd,bkd->bk", candidates_BKD, candidates_BKD)) + nugget
        )
        self._remaining_B = self._wide(self._prior_B)

    @property
    def sigma(self) -> list[float]:
        """Uncertainty about each prompt's targets: the root of the posterior's trace, normalised to
        sigma_0 = 1.
        """
        return [
            math.sqrt(max(share, 0.0)) for share in (self._remaining_B / self._prior_B).tolist()
        ]

    def reductions(self) -> Floats:
        """What each candidate [B, K] would take off the trace of the targets' posterior, if picked
        next.
        """
        informed_BK = (self.covariance_BTK * self.covariance_BTK).sum(1)
        return informed_BK / (self.variance_BK + self._regularisation)

    def pick(self, picks_B: Floats) -> None:
        """Condition each prompt on one of its candidates, once more if it was picked before."""
        b, n = self._prompts, self._picked
        if len(picks_B) == 1:
            picks_B = int(picks_B[0])
        pivots_B = (self.variance_BK[b, picks_B] + self._regularisation) ** 0.5
        chosen_BD = self._candidates_BKD[b, picks_B]
        rows_BK = self._wide((self._candidates_BKD @ chosen_BD[:, :, None])[:, :, 0])
        rows_BK[b, picks_B] += self._nugget
        if n:
            earlier_BnK = self._factor_BNK[:, :n]
            rows_BK -= (earlier_BnK[b, :, picks_B][:, None, :] @ earlier_BnK)[:, 0]
        rows_BK /= pivots_B[:, None]
        columns_BT = self.covariance_BTK[b, :, picks_B] / pivots_B[:, None]
        self._remaining_B -= (columns_BT * columns_BT).sum(1)
        self.covariance_BTK -= columns_BT[:, :, None] * rows_BK[:, None, :]
        self.variance_BK = (self.variance_BK - rows_BK * rows_BK).clip(0.0)
        self._factor_BNK[:, n] = rows_BK
        self._picked += 1

    def _wide(self, array: Floats) -> Floats:
        """A float64 copy."""
        return self._xp.asarray(array, dtype=self._xp.float64, copy=True)


def has_stalled(sigma: float, n: int, alpha: float | None) -> bool:
    """Whether n picks are enough for ADAPTIVE SIFT: sigma_n > 1 / (alpha n) (paper section 6).

    Never before the first pick: 1 / (alpha 0) is infinite.
    """
    return alpha is not None and n > 0 and sigma * alpha * n > 1.0


def sift(
    candidates_KD: Floats,
    targets_TD: Floats,
    *,
    steps: int,
    regularisation: float,
    alpha: float | None = None,
    nugget: float = 0.0,
    between: Callable[[], None] = lambda: None,
) -> Choice:
    """Choose up to `steps` candidates, each the one that most reduces the uncertainty about the
    targets.

    Args:
        candidates_KD: embeddings of the candidates, unit length for the paper's setting.
        targets_TD: embeddings of the prompt; of several targets the trace of their posterior is
            reduced.
        steps: the most picks.
        regularisation: lambda'; larger prefers relevance, smaller diversity.
        alpha: stop as ADAPTIVE SIFT does; None never stops early. Nothing is chosen beyond the
            stop.
        nugget: the variance of a candidate that its embedding does not tell.
        between: called between parts of the work; what it raises ends it.

    Raises:
        ValueError: shapes that do not fit, lambda' or alpha not positive, nugget negative, a target
            of length zero.
    """
    return sift_batch(
        candidates_KD[None],
        targets_TD[None],
        steps=steps,
        regularisation=regularisation,
        alpha=alpha,
        nugget=nugget,
        between=between,
    )[0]


def sift_batch(
    candidates_BKD: Floats,
    targets_BTD: Floats,
    *,
    steps: int,
    regularisation: float,
    alpha: float | None = None,
    nugget: float = 0.0,
    between: Callable[[], None] = lambda: None,
) -> list[Choice]:
    """`sift` for several prompts at once, each with its own K candidates and T targets; the same
    choices as alone.
    """
    if alpha is not None and not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    if isinstance(candidates_BKD, np.ndarray):
        return _compiled_batch(
            candidates_BKD, targets_BTD, max(steps, 0), regularisation, alpha, nugget, between
        )
    posterior = Posterior(candidates_BKD, targets_BTD, regularisation, max(steps, 0), nugget)
    picks: list[list[int]] = [[] for _ in range(len(targets_BTD))]
    uncertainty = [[sigma] for sigma in posterior.sigma]
    stalled = [False for _ in picks]
    for n in range(steps if candidates_BKD.shape[1] else 0):
        stalled = [has_stalled(row[-1], n, alpha) for row in uncertainty]
        if all(stalled):
            break
        between()
        picks_B = posterior.reductions().argmax(1)
        posterior.pick(picks_B)
        for b, (pick, sigma) in enumerate(zip(picks_B.tolist(), posterior.sigma, strict=True)):
            if not stalled[b]:
                picks[b].append(pick)
                uncertainty[b].append(sigma)
    return [
        Choice(tuple(chosen), tuple(sigmas), "alpha" if done else "steps")
        for chosen, sigmas, done in zip(picks, uncertainty, stalled, strict=True)
    ]


def _compiled_batch(
    candidates_BKD: Array,
    targets_BTD: Array,
    steps: int,
    regularisation: float,
    alpha: float | None,
    nugget: float,
    between: Callable[[], None],
) -> list[Choice]:
    from selection.strategies.sift_numba import greedy  # numba takes a third of a second to import

    prior_B = _prior(candidates_BKD, targets_BTD, regularisation, nugget)
    choices = []
    for candidates_KD, targets_TD, prior in zip(
        candidates_BKD, targets_BTD, prior_B.tolist(), strict=True
    ):
        picks, sigmas = greedy(
            candidates_KD,
            targets_TD,
            prior,
            steps=steps,
            regularisation=regularisation,
            nugget=nugget,
            alpha=alpha,
            between=between,
        )
        stop = "alpha" if len(picks) < steps and len(candidates_KD) else "steps"
        choices.append(Choice(tuple(picks), tuple(sigmas), stop))
    return choices


def irreducible(
    candidates_KD: Floats, targets_TD: Floats, between: Callable[[], None] = lambda: None
) -> float:
    """sigma_infinity: what stays uncertain when every candidate has been seen infinitely often
    (paper section C.2).

    It is the part of the targets outside the candidates' span, with sigma_0 normalised to 1: the
    limit of eq. 2 for all candidates as lambda' goes to 0, taken at lambda' = 1e-10. Right to 1e-4;
    0 where a combination of the candidates comes as close to the targets as that. `between` is
    called between parts of the work, and may raise.

    Raises:
        ValueError: a target of length zero.
    """
    xp = _module(candidates_KD)
    wide_TD = xp.asarray(targets_TD, dtype=xp.float64)
    prior = float((wide_TD * wide_TD).sum())
    if not prior > 0:
        raise ValueError("a target embedding is zero")
    count, dimension = candidates_KD.shape
    if count <= dimension:
        wide_KD = xp.asarray(candidates_KD, dtype=xp.float64)
        system = wide_KD @ wide_KD.T + _JITTER * _eye(xp, wide_KD, count)
        right_KT = wide_KD @ wide_TD.T
        explained = float((right_KT * xp.linalg.solve(system, right_KT)).sum())
        return math.sqrt(max(1.0 - explained / prior, 0.0))
    if _combine(candidates_KD, wide_TD, _NOTHING * math.sqrt(prior)):
        return 0.0
    system = _JITTER * _eye(xp, candidates_KD, dimension)
    for start in range(0, count, _ROWS):
        between()
        part = xp.asarray(candidates_KD[start : start + _ROWS], dtype=xp.float64)
        system = system + part.T @ part
    residual_DT = _JITTER * xp.linalg.solve(system, wide_TD.T)
    return math.sqrt(min(max(float((wide_TD.T * residual_DT).sum()) / prior, 0.0), 1.0))


def _combine(candidates_KD: Floats, targets_TD: Floats, tolerance: float) -> bool:
    """Whether some D of the K > D candidates combine to the targets [float64], but for a rest of
    that length.

    A combination solved for in float32 and corrected once; what it leaves is computed in float64.
    Copies stand together among candidates in the order of their similarity, so the D are taken at
    equal distances.
    """
    count, dimension = candidates_KD.shape
    some_DD = candidates_KD[:: count // dimension][:dimension].T
    if isinstance(some_DD, np.ndarray):
        from scipy.linalg import lapack  # three times as fast as NumPy's

        *factors, singular = lapack.sgetrf(some_DD)
        wide_DD: Floats = some_DD.astype(np.float64)
    else:
        import torch

        *factors, singular = torch.linalg.lu_factor_ex(some_DD.float())
        wide_DD = some_DD.double()
    if int(singular):
        return False
    rest_DT = targets_TD.T
    for _ in range(2):
        if isinstance(rest_DT, np.ndarray):
            shares_DT = lapack.sgetrs(*factors, rest_DT)[0].astype(np.float64)
        else:
            shares_DT = torch.linalg.lu_solve(*factors, rest_DT.float()).double()
        rest_DT = rest_DT - wide_DD @ shares_DT
    return float((rest_DT * rest_DT).sum()) <= tolerance**2


def _prior(
    candidates_BKD: Floats, targets_BTD: Floats, regularisation: float, nugget: float
) -> Floats:
    """The squared length of each prompt's targets [B], in float64; refuses what makes no sense."""
    if not regularisation > 0:  # NaN too
        raise ValueError(f"lambda' must be positive, got {regularisation}")
    if not 0 <= nugget < math.inf:
        raise ValueError(f"the nugget must be 0 or more, got {nugget}")
    shape, target_shape = tuple(candidates_BKD.shape), tuple(targets_BTD.shape)
    if (
        len(shape) != 3
        or len(target_shape) != 3
        or shape[0] != target_shape[0]
        or shape[2] != target_shape[2]
    ):
        raise ValueError(
            f"expected embeddings [K, D] and [T, D] a prompt, got {shape[1:]} and {target_shape[1:]}"
        )
    xp = _module(candidates_BKD)
    wide_BTD = xp.asarray(targets_BTD, dtype=xp.float64)
    prior_B = (wide_BTD * wide_BTD).sum((1, 2))
    if not bool((prior_B > 0).all()):
        raise ValueError("a target embedding is zero")
    return prior_B


def _eye(xp: Any, like: Floats, size: int) -> Floats:
    return xp.eye(size, dtype=xp.float64, device=like.device)


def _module(array: Floats) -> Any:
    """NumPy or torch: whichever the array is of. torch is imported by whoever made the tensor."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch
