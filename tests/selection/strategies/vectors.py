"""Random vectors that the tests of strategies share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def unit_vectors(seed: int, count: int, dimension: int) -> npt.NDArray[np.float64]:
    """Random unit vectors around a common direction, as sentence embeddings are."""
    rows = np.random.default_rng(seed).standard_normal((count, dimension)) + 0.5
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
