"""The only numba import: SIFT's greedy choice for one prompt over NumPy arrays, compiled.

The mathematics of `selection.strategies.sift.Posterior`, line by line, without a call of NumPy for
each line: among a few hundred candidates the calls cost more than the arithmetic. It knows no
batches and no tensors, and refuses nothing.

Two things are done in its own way. A step that needs the inner products of a new pick takes those
of the next best two as well: that costs little more, since what takes time is to read the
embeddings, and most of them are picked later. And they are summed here and not by BLAS: equal
candidates get equal scores wherever they stand, and no thread of BLAS wakes.

It is done in parts, and what it knows lies in arrays between them, so that whoever waits for it can
break it off.

Compiling takes a second or two, when a process first chooses from float32 or float64; the machine
code is kept in `__pycache__` beside this file, else in the user's cache folder (`NUMBA_CACHE_DIR`
names another).

Shapes: K candidates, T targets (embeddings of a prompt), D embedding dimensions, n picks, N the
most picks, M rows of the kernel.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

_PART = 1 << 26  # multiplications in one part: some hundredths of a second
_loop: Callable[[Callable[..., Any]], Any] = numba.njit(nogil=True)
# The terms of a sum may be reordered and fused, so that it uses the whole width of the machine; NaN
# stays NaN.
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
    nugget: float,
    alpha: float | None,
    between: Callable[[], None] = lambda: None,
) -> tuple[list[int], list[float]]:
    """Picks [n] and sigma_0 .. sigma_n as `selection.strategies.sift.sift` returns them; n < steps
    where ADAPTIVE SIFT stopped.

    Args:
        candidates_KD: embeddings of the candidates, of any dtype and layout; inner products are
            taken in float32 if both are of no more than that, else in float64.
        targets_TD: embeddings of the prompt.
        prior: squared length of all targets together, positive.
        steps: the most picks, not negative.
        regularisation: lambda', positive.
        nugget: as in `selection.strategies.sift.sift`, not negative.
        alpha: of ADAPTIVE SIFT; None never stops early.
        between: called before each part of the work; what it raises ends it.
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
    remaining, n, known, done = prior, 0, 0, False
    part = max(_PART // max(count * (2 * targets + dimension + steps), 1), 1)
    while not done:
        between()
        until = min(n + part, steps)
        done, n, known, remaining = choose(
            *embeddings, prior, until, steps, regularisation, nugget, alpha or 0.0, *state, picks_N, sigmas,
            remaining, n, known,
        )  # fmt: skip
    return picks_N[:n].tolist(), sigmas[: n + 1].tolist()


@functools.cache
def _compiled(floats: Any) -> Any:
    """`_choose` for embeddings of that type."""
    given = numba.types.Array(floats, 2, "C", readonly=True)  # writable ones fit too
    row, matrix = numba.types.Array(numba.float64, 1, "C"), numba.types.Array(numba.float64, 2, "C")
    rows, places = numba.types.Array(floats, 2, "C"), numba.types.Array(numba.int64, 1, "C")
    numbers = (numba.float64, numba.int64, numba.int64, numba.float64, numba.float64, numba.float64)
    state = (
        row,
        matrix,
        matrix,
        rows,
        places,
        places,
        row,
        numba.float64,
        numba.int64,
        numba.int64,
    )
    signature = (given, given, *numbers, *state)
    options = {"nogil": True, "error_model": "numpy"}  # checked divisions would not be vectorised
    try:
        return numba.njit(signature, cache=True, **options)(_choose)
    # Nowhere to keep the machine code, or what is kept there is damaged: for this process only.
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
    """Three rows of the kernel. A function of its own: within `_choose` the same loop takes twice
    as long.
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
def _largest(score_K: Any) -> Any:
    """The first largest. Floats that are not negative are ordered as their bits are, and those are
    compared faster.
    """
    bits_K = score_K.view(np.int64)
    most = bits_K[0]
    for k in range(len(bits_K)):
        most = max(most, bits_K[k])
    for k in range(len(bits_K)):
        if bits_K[k] == most:
            return k
    return 0


@_loop
def _take_off(row_K: Any, a_K: Any, b_K: Any, c_K: Any, d_K: Any, pick: int) -> None:
    """Four earlier rows at once off a new one."""
    a, b, c, d = a_K[pick], b_K[pick], c_K[pick], d_K[pick]
    for k in range(len(row_K)):
        row_K[k] -= (a * a_K[k] + b * b_K[k]) + (c * c_K[k] + d * d_K[k])


def _choose(
    candidates_KD: Any,
    targets_TD: Any,
    prior: float,
    until: int,
    steps: int,
    regularisation: float,
    nugget: float,
    alpha: float,
    variance_K: Any,
    covariance_TK: Any,
    factor_NK: Any,
    kernel_MK: Any,
    place_K: Any,  # of each candidate's row in the kernel
    picks_N: Any,
    sigmas: Any,
    remaining: float,
    n: int,
    known: int,
) -> Any:
    """Go on until there are so many picks; whether that was all, and what changed that is no array."""
    count, targets = len(candidates_KD), len(targets_TD)
    if n == 0:
        sigmas[0] = 1.0
        for k in range(count):
            variance_K[k] = _product(candidates_KD[k], candidates_KD[k]) + nugget
            for t in range(targets):
                covariance_TK[t, k] = _product(targets_TD[t], candidates_KD[k])
    # Well aligned, as given arrays may not be.
    best_3D = np.empty((3, candidates_KD.shape[1]), candidates_KD.dtype)
    score_K = np.empty(count)
    # `selection.strategies.sift.has_stalled`.
    while n < until and count > 0 and not sigmas[n] * alpha * n > 1.0:
        score_K[:] = 0.0
        for t in range(targets):
            for k in range(count):
                score_K[k] += covariance_TK[t, k] * covariance_TK[t, k]
        for k in range(count):
            score_K[k] /= variance_K[k] + regularisation
        pick = _largest(score_K)

        if place_K[pick] < 0:
            for k in range(count):
                if place_K[k] >= 0:
                    score_K[k] = -1.0
            # The first of them is the pick; where fewer are left, one comes again.
            for i in range(3):
                best = _largest(score_K)
                place_K[best] = known + i
                score_K[best] = -1.0
                best_3D[i] = candidates_KD[best]
            _rows(best_3D, candidates_KD, kernel_MK[known : known + 3])
            known += 3

        # The pivot's; a product is cheaper than a quotient.
        scale = 1.0 / math.sqrt(variance_K[pick] + regularisation)
        row_K = factor_NK[n]
        row_K[:] = kernel_MK[place_K[pick]]
        row_K[pick] += nugget
        for m in range(0, n - 3, 4):
            _take_off(
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
    return n < until or until == steps, n, known, remaining
