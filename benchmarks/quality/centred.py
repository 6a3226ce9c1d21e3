"""Centred embeddings: another embedder's, minus their mean over a corpus, normalised again.

A setting of the quality benchmark; the paper centres nothing. Vectors that are in the corpus are
not computed again.

Shapes: N texts, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selection.corpus.corpus import Corpus
from selection.embedding import Embedder, Embeddings, Prompt


class Centred:
    """An embedder that centres another one on a corpus of the latter."""

    def __init__(self, base: Embedder, corpus: Corpus) -> None:
        self._base = base
        self.name, self.revision, self.dimension = (
            f"{base.name}, centred",
            base.revision,
            base.dimension,
        )
        ids_N, vectors_ND = corpus.nearest(base.embed(["any text"]), None)
        self._mean_D = vectors_ND.mean(0)
        sequences = corpus.read(ids_N.tolist())
        self._vectors = {
            sequences[i].source.text: vector_D
            for i, vector_D in zip(ids_N.tolist(), vectors_ND, strict=True)
        }

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Unit vectors [N, D] of texts."""
        missing = [text for text in texts if text not in self._vectors]
        computed = dict(zip(missing, self._base.embed(missing), strict=True)) if missing else {}
        vectors_ND = np.stack(
            [self._vectors[text] if text in self._vectors else computed[text] for text in texts]
        )
        centred_ND = vectors_ND - self._mean_D
        unit_ND: Embeddings = centred_ND / np.linalg.norm(centred_ND, axis=1, keepdims=True)
        return unit_ND

    def windows(self, prompt: Prompt) -> list[str]:
        """Windows of a prompt, as the other embedder makes them."""
        return self._base.windows(prompt)
