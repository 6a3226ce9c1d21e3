"""Vectors of the index's tests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def units(seed: int, count: int, dimension: int = 8) -> Floats:
    rows = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def ids(count: int) -> npt.NDArray[np.int64]:
    return np.arange(count, dtype=np.int64) * 3 + 100


def clustered(seed: int, count: int) -> Floats:
    """Unit vectors in a hundred clusters that overlap."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((100, 16))
    rows = centres[generator.integers(0, 100, count)] + 0.4 * generator.standard_normal((count, 16))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)
