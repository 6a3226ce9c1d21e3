"""Helpers of the stores' tests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from selection.corpus.filters import Scalar
from selection.corpus.sequences import Chunk
from selection.corpus.stores.protocols import CorpusStore

META = {"embedder": "words", "revision": "1", "dimension": "4", "tokenizer": "t"}


def vectors(count: int, value: float = 1.0, dimension: int = 4) -> npt.NDArray[np.float32]:
    return np.full((count, dimension), value, np.float32)


def add(store: CorpusStore, name: str, *texts: str, value: float = 1.0, **metadata: Scalar) -> int:
    """Add a document of one sequence per text, whose tokens are code points."""
    chunks = [Chunk(10 * i, text, tuple(map(ord, text))) for i, text in enumerate(texts)]
    return store.add(
        name,
        f"digest of {texts}",
        chunks,
        vectors(len(texts), value),
        metadata,
        store.meta()["uuid"],
    )


def generation(store: CorpusStore) -> int:
    return int(store.meta()["generation"])
