"""SIFT's greedy choice for one prompt over NumPy arrays, compiled by numba.

The mathematics of `selection.strategies.posterior.Posterior`, line by line, without one NumPy call
per line: with a few hundred candidates the calls cost more than the arithmetic. It supports neither
batches nor tensors, and does not validate its arguments.

Two things differ. A step that needs the inner products of a new pick computes those of the next
best two candidates as well: reading the embeddings is what takes time, so they cost little more,
and most of them are picked later. And the products are summed here and not by BLAS: equal
candidates get equal scores at any position, and no BLAS thread wakes up.

The choice runs in units of work, with its state in arrays between them, so that a caller can cancel
it.

Compilation takes a second or two, the first time a process chooses from float32 or float64. The
machine code is cached in `__pycache__` beside this file, else in the user's cache folder
(`NUMBA_CACHE_DIR` names another).

Shapes: K candidates, T targets (embeddings of a prompt), D embedding dimensions, n picks, N the
maximum number of picks, M cached rows of the kernel.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

_UNIT_PRODUCTS = 1 << 26  # multiplications in one unit of work: some hundredths of a second
_loop: Callable[[Callable[..., Any]], Any] = numba.njit(nogil=True)
# The terms of a sum may be reordered and fused, so that it uses full SIMD width; NaN stays NaN.
_sum: Callable[[Callable[..., Any]], Any] = numba.njit(
    nogil=True, fastmath={"reassoc", "contract", "nsz"}
)


def greedy(
    candidates_KD: npt.NDArray[np.floating],
    targets_TD: npt.NDArray[np.floating],
    prior: float,
    *,
    steps: int,
    regularisation: float,
    alpha: float | None,
    check_cancelled: Callable[[], None] = lambda: None,
) -> tuple[list[int], list[float]]:
    """Picks [n] and sigma_0 .. sigma_n, as `selection.strategies.sift.sift` returns them; n < steps
    if ADAPTIVE SIFT stopped.

    Args:
        candidates_KD: embeddings of the candidates, of any dtype and layout. Inner products are
            computed in float64 if either array is float64, else in float32.
        targets_TD: embeddings of the prompt.
        prior: squared length of all targets together, positive.
        steps: maximum number of picks, not negative.
        regularisation: lambda', positive.
        alpha: the stop of ADAPTIVE SIFT; None never stops early.
        check_cancelled: called before each unit of work; an exception that it raises ends the
            choice.
    """
    dtype = np.result_type(candidates_KD, targets_TD, np.float32)
    embeddings = [np.ascontiguousarray(array, dtype) for array in (candidates_KD, targets_TD)]
    (count, dimension), targets = candidates_KD.shape, len(targets_TD)
    choose = _compiled(numba.from_dtype(dtype))
    picks_N, sigmas = np.empty(steps, np.int64), np.empty(steps + 1)
    state = (
        np.empty(count),
        np.empty((targets, count)),
        np.empty((steps, count)),
        np.empty((3 * min(steps, (count + 2) // 3), count), dtype),
        np.full(count, -1),
    )
    remaining, n, cached, done = prior, 0, 0, False
    unit = max(_UNIT_PRODUCTS // max(count * (2 * targets + dimension + steps), 1), 1)
    while not done:
        check_cancelled()
        stop_at = min(n + unit, steps)
        done, n, cached, remaining = choose(
            *embeddings, prior, stop_at, steps, regularisation, alpha or 0.0, *state, picks_N,
            sigmas, remaining, n, cached,
        )  # fmt: skip
    return picks_N[:n].tolist(), sigmas[: n + 1].tolist()


@functools.cache
def _compiled(floats: Any) -> Any:
    """`_choose`, compiled for embeddings of that type."""
    embeddings = numba.types.Array(floats, 2, "C", readonly=True)  # accepts writable ones too
    row, matrix = numba.types.Array(numba.float64, 1, "C"), numba.types.Array(numba.float64, 2, "C")
    kernel, positions = numba.types.Array(floats, 2, "C"), numba.types.Array(numba.int64, 1, "C")
    numbers = (numba.float64, numba.int64, numba.int64, numba.float64, numba.float64)
    state = (
        row,
        matrix,
        matrix,
        kernel,
        positions,
        positions,
        row,
        numba.float64,
        numba.int64,
        numba.int64,
    )
    signature = (embeddings, embeddings, *numbers, *state)
    options = {"nogil": True, "error_model": "numpy"}  # checked divisions would not be vectorised
    try:
        return numba.njit(signature, cache=True, **options)(_choose)
    # No folder for the cache is writable, or the cached machine code is damaged: compile for this
    # process only.
    except Exception:
        return numba.njit(signature, **options)(_choose)


@_sum
def _product(a_D: Any, x_D: Any) -> Any:
    total = x_D.dtype.type(0)
    for i in range(len(x_D)):
        total += a_D[i] * x_D[i]
    return total


@_sum
def _products(a_D: Any, b_D: Any, c_D: Any, x_D: Any, y_D: Any) -> Any:
    ax = bx = cx = ay = by = cy = x_D.dtype.type(0)
    for i in range(len(x_D)):
        ax += a_D[i] * x_D[i]
        bx += b_D[i] * x_D[i]
        cx += c_D[i] * x_D[i]
        ay += a_D[i] * y_D[i]
        by += b_D[i] * y_D[i]
        cy += c_D[i] * y_D[i]
    return ax, bx, cx, ay, by, cy


@_loop
def _rows(best_3D: Any, candidates_KD: Any, kernel_3K: Any) -> None:
    """Compute three rows of the kernel.

    A separate function, because within `_choose` the same loop takes twice as long.
    """
    a_D, b_D, c_D = best_3D[0], best_3D[1], best_3D[2]
    a_K, b_K, c_K = kernel_3K[0], kernel_3K[1], kernel_3K[2]
    last = len(candidates_KD) - 1
    half = last // 2 + 1
    for k in range(half):
        j = min(k + half, last)
        a_K[k], b_K[k], c_K[k], a_K[j], b_K[j], c_K[j] = _products(
            a_D, b_D, c_D, candidates_KD[k], candidates_KD[j]
        )


@_loop
def _argmax(score_K: Any) -> Any:
    """The position of the largest score, the first of equals.

    Non-negative floats have the order of their bits, which are faster to compare.
    """
    bits_K = score_K.view(np.int64)
    largest = bits_K[0]
    for k in range(len(bits_K)):
        largest = max(largest, bits_K[k])
    for k in range(len(bits_K)):
        if bits_K[k] == largest:
            return k
    return 0


@_loop
def _subtract_rows(row_K: Any, a_K: Any, b_K: Any, c_K: Any, d_K: Any, pick: int) -> None:
    """Subtract the shares of four earlier rows of the factor from a new one."""
    a, b, c, d = a_K[pick], b_K[pick], c_K[pick], d_K[pick]
    for k in range(len(row_K)):
        row_K[k] -= (a * a_K[k] + b * b_K[k]) + (c * c_K[k] + d * d_K[k])


def _choose(
    candidates_KD: Any,
    targets_TD: Any,
    prior: float,
    stop_at: int,
    steps: int,
    regularisation: float,
    alpha: float,
    variance_K: Any,
    covariance_TK: Any,
    factor_NK: Any,
    kernel_MK: Any,
    kernel_row_K: Any,
    picks_N: Any,
    sigmas: Any,
    remaining: float,
    n: int,
    cached: int,
) -> Any:
    """Continue until there are `stop_at` picks.

    `kernel_row_K` is each candidate's row in `kernel_MK`, -1 where it is not cached; `cached` is
    the number of rows in use. Returns whether the choice is complete, and the new n, `cached` and
    `remaining`.
    """
    count, targets = len(candidates_KD), len(targets_TD)
    if n == 0:
        sigmas[0] = 1.0
        for k in range(count):
            variance_K[k] = _product(candidates_KD[k], candidates_KD[k])
            for t in range(targets):
                covariance_TK[t, k] = _product(targets_TD[t], candidates_KD[k])
    # A copy is well aligned, which the given arrays may not be.
    best_3D = np.empty((3, candidates_KD.shape[1]), candidates_KD.dtype)
    score_K = np.empty(count)
    # The condition of `selection.strategies.sift.should_stop`.
    while n < stop_at and count > 0 and not sigmas[n] * alpha * n > 1.0:
        score_K[:] = 0.0
        for t in range(targets):
            for k in range(count):
                score_K[k] += covariance_TK[t, k] * covariance_TK[t, k]
        for k in range(count):
            score_K[k] /= variance_K[k] + regularisation
        pick = _argmax(score_K)

        if kernel_row_K[pick] < 0:
            for k in range(count):
                if kernel_row_K[k] >= 0:
                    score_K[k] = -1.0
            # The first of the three is the pick; where fewer candidates are left, one repeats.
            for i in range(3):
                best = _argmax(score_K)
                kernel_row_K[best] = cached + i
                score_K[best] = -1.0
                best_3D[i] = candidates_KD[best]
            _rows(best_3D, candidates_KD, kernel_MK[cached : cached + 3])
            cached += 3

        # The inverse of the pivot, because a product is cheaper than a quotient.
        scale = 1.0 / math.sqrt(variance_K[pick] + regularisation)
        row_K = factor_NK[n]
        row_K[:] = kernel_MK[kernel_row_K[pick]]
        for m in range(0, n - 3, 4):
            _subtract_rows(
                row_K, factor_NK[m], factor_NK[m + 1], factor_NK[m + 2], factor_NK[m + 3], pick
            )
        for m in range(n - n % 4, n):
            share = factor_NK[m, pick]
            for k in range(count):
                row_K[k] -= share * factor_NK[m, k]
        for k in range(count):
            row_K[k] *= scale
            variance_K[k] = max(variance_K[k] - row_K[k] * row_K[k], 0.0)
        for t in range(targets):
            column = covariance_TK[t, pick] * scale
            remaining -= column * column
            for k in range(count):
                covariance_TK[t, k] -= column * row_K[k]
        picks_N[n] = pick
        n += 1
        sigmas[n] = math.sqrt(max(remaining / prior, 0.0))
    return n < stop_at or stop_at == steps, n, cached, remaining
