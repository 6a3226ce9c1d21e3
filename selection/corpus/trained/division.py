"""Division of a corpus's documents into parts of similar documents, for one adapter each.

It is computed from sizes and embeddings alone.

Shapes: N documents, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from selection.embedding import Embeddings

# The number of sequences of a part: at least, and about.
PART_MIN, PART_SIZE = 200, 400
_ITERATIONS, _TINY = 20, 1e-30


def divide(sizes: Sequence[int], centroids_ND: Embeddings, parts: int) -> list[list[int]]:
    """Divide documents into parts of similar documents and about the same number of sequences.

    The documents are halved along the direction in which they differ most, and the halves again.

    Args:
        sizes: number of sequences of each document.
        centroids_ND: mean embedding of each document, of unit length.
        parts: number of parts; there are fewer if one would have less than PART_MIN sequences.

    Returns:
        The indices of the documents of each part, ascending.
    """
    sizes_N = np.array(sizes, np.int64)
    todo = [(np.arange(len(sizes_N)), parts)]
    done: list[list[int]] = []
    while todo:
        chosen_N, count = todo.pop()
        halves = _halved(chosen_N, sizes_N, centroids_ND, count)
        if halves is None:
            done.append(sorted(chosen_N.tolist()))
        else:
            todo += [(halves[1], count - count // 2), (halves[0], count // 2)]
    return done


def _halved(
    chosen_N: npt.NDArray[np.int64],
    sizes_N: npt.NDArray[np.int64],
    centroids_ND: Embeddings,
    parts: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """The two halves of some documents; None if they stay together."""
    if parts < 2:
        return None
    centred_ND = centroids_ND[chosen_N] - centroids_ND[chosen_N].mean(axis=0)
    ordered_N = chosen_N[np.argsort(centred_ND @ _widest_direction(centred_ND), kind="stable")]
    before_N = np.cumsum(sizes_N[ordered_N])
    total = int(before_N[-1])
    cuts = np.flatnonzero((before_N >= PART_MIN) & (total - before_N >= PART_MIN))
    if not len(cuts):
        return None
    wanted = total * (parts // 2) / parts
    cut = int(cuts[np.argmin(np.abs(before_N[cuts] - wanted))]) + 1
    return ordered_N[:cut], ordered_N[cut:]


def _widest_direction(centred_ND: Embeddings) -> npt.NDArray[np.float32]:
    """The direction of about the largest variance, by power iteration."""
    direction_D: npt.NDArray[np.float32] = centred_ND[np.argmax(np.linalg.norm(centred_ND, axis=1))]
    for _ in range(_ITERATIONS):
        direction_D = centred_ND.T @ (centred_ND @ direction_D)
        direction_D = direction_D / max(float(np.linalg.norm(direction_D)), _TINY)
    return direction_D
