"""The Gaussian-process posterior of prompts and candidates given the candidates picked so far
(paper eq. 2).

`sift_batch` on tensors, the baselines, and the tests as a reference use it; SIFT for one prompt is
compiled (`selection.strategies.sift_numba`).

A partial Cholesky factor of the candidates' kernel matrix plus lambda' I grows by one row per pick,
so a step costs O(K (D + n + T)) and no K x K matrix is formed. Inner products of embeddings are
taken in the embeddings' own precision; everything that accumulates over picks is float64. Works on
NumPy arrays, and on torch tensors on any device.

Shapes: B prompts, K candidates, T targets (embeddings of a prompt), D embedding dimensions, n picks
so far, N the maximum number of picks.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

Floats: TypeAlias = Any  # a NumPy array or a torch tensor


class Posterior:
    """The posteriors of B prompts, each with its own candidates and targets.

    Keeps, per candidate, the covariance with each target and the variance, both given the picks,
    and the rows of the partial Cholesky factor.

    Args:
        candidates_BKD: embeddings of each prompt's candidates.
        targets_BTD: embeddings of each prompt.
        regularisation: lambda', the variance of the observation noise.
        steps: maximum number of picks.

    Raises:
        ValueError: as `validated_prior`.
    """

    def __init__(
        self, candidates_BKD: Floats, targets_BTD: Floats, regularisation: float, steps: int
    ) -> None:
        self._prior_B = validated_prior(candidates_BKD, targets_BTD, regularisation)
        prompts, candidates, _ = candidates_BKD.shape
        self._xp = _array_module(candidates_BKD)
        device = {"device": candidates_BKD.device}
        self._candidates_BKD = candidates_BKD
        self._regularisation = regularisation
        # For one prompt a slice selects the same as [0], and is the faster index.
        self._prompts = slice(None) if prompts == 1 else self._xp.arange(prompts, **device)
        self._factor_BNK = self._xp.empty(
            (prompts, steps, candidates), dtype=self._xp.float64, **device
        )
        self._picks = 0
        self.covariance_BTK = self._float64(targets_BTD @ candidates_BKD.swapaxes(1, 2))
        self.variance_BK = self._float64(
            self._xp.einsum("bkd,bkd->bk", candidates_BKD, candidates_BKD)
        )
        self._remaining_B = self._float64(self._prior_B)

    @property
    def sigma(self) -> list[float]:
        """Uncertainty about each prompt's targets [B]: the root of the posterior's trace,
        normalised to sigma_0 = 1.
        """
        shares = (self._remaining_B / self._prior_B).tolist()
        return [math.sqrt(max(share, 0.0)) for share in shares]

    def reductions(self) -> Floats:
        """By how much picking each candidate [B, K] next would reduce the trace of the targets'
        posterior.
        """
        informed_BK = (self.covariance_BTK * self.covariance_BTK).sum(1)
        return informed_BK / (self.variance_BK + self._regularisation)

    def pick(self, picks_B: Floats) -> None:
        """Condition each prompt on one of its candidates; the same one may be picked again."""
        b, n = self._prompts, self._picks
        if len(picks_B) == 1:
            picks_B = int(picks_B[0])
        pivots_B = (self.variance_BK[b, picks_B] + self._regularisation) ** 0.5
        picked_BD = self._candidates_BKD[b, picks_B]
        rows_BK = self._float64((self._candidates_BKD @ picked_BD[:, :, None])[:, :, 0])
        if n:
            earlier_BnK = self._factor_BNK[:, :n]
            rows_BK -= (earlier_BnK[b, :, picks_B][:, None, :] @ earlier_BnK)[:, 0]
        rows_BK /= pivots_B[:, None]
        columns_BT = self.covariance_BTK[b, :, picks_B] / pivots_B[:, None]
        self._remaining_B -= (columns_BT * columns_BT).sum(1)
        self.covariance_BTK -= columns_BT[:, :, None] * rows_BK[:, None, :]
        self.variance_BK = (self.variance_BK - rows_BK * rows_BK).clip(0.0)
        self._factor_BNK[:, n] = rows_BK
        self._picks += 1

    def _float64(self, array: Floats) -> Floats:
        """A float64 copy."""
        return self._xp.asarray(array, dtype=self._xp.float64, copy=True)


def validated_prior(candidates_BKD: Floats, targets_BTD: Floats, regularisation: float) -> Floats:
    """Check the arguments, and return the prior's trace [B] in float64: the squared length of each
    prompt's targets together.

    Raises:
        ValueError: the shapes do not match, lambda' is not positive, or a prompt's targets are all
            zero.
    """
    if not regularisation > 0:  # NaN too
        raise ValueError(f"lambda' must be positive, got {regularisation}")
    shape, target_shape = tuple(candidates_BKD.shape), tuple(targets_BTD.shape)
    if (
        len(shape) != 3
        or len(target_shape) != 3
        or shape[0] != target_shape[0]
        or shape[2] != target_shape[2]
    ):
        raise ValueError(
            "expected embeddings [K, D] and [T, D] for each prompt, "
            f"got {shape[1:]} and {target_shape[1:]}"
        )
    xp = _array_module(candidates_BKD)
    targets_BTD = xp.asarray(targets_BTD, dtype=xp.float64)
    prior_B = (targets_BTD * targets_BTD).sum((1, 2))
    if not bool((prior_B > 0).all()):
        raise ValueError("all target embeddings of a prompt are zero")
    return prior_B


def _array_module(array: Floats) -> Any:
    """NumPy for an array, torch for a tensor; torch is imported only for tensors."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch
