"""Centred embeddings: another embedder's, less their mean over a corpus, of length 1 again.

An axis of the quality benchmark (the paper centres nothing). Vectors that the corpus holds are not
computed again.

Shapes: N texts, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selection.corpus.corpus import Corpus
from selection.embedding import Embedder, Embeddings, Prompt


class Centred:
    """An embedder over another one, and over a corpus that was embedded by it."""

    def __init__(self, base: Embedder, corpus: Corpus) -> None:
        self._base = base
        self.name, self.revision, self.dimension = (
            f"{base.name}, centred",
            base.revision,
            base.dimension,
        )
        ids_N, vectors_ND = corpus.nearest(base.embed(["any text"]), None)
        self._mean_D = vectors_ND.mean(0)
        read = corpus.read(ids_N.tolist())
        self._known = {
            read[i][0].text: vector_D
            for i, vector_D in zip(ids_N.tolist(), vectors_ND, strict=True)
        }

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Unit vectors [N, D] of texts."""
        unknown = [text for text in texts if text not in self._known]
        new = dict(zip(unknown, self._base.embed(unknown), strict=True)) if unknown else {}
        vectors_ND = np.stack(
            [self._known[text] if text in self._known else new[text] for text in texts]
        )
        centred_ND = vectors_ND - self._mean_D
        unit_ND: Embeddings = centred_ND / np.linalg.norm(centred_ND, axis=1, keepdims=True)
        return unit_ND

    def windows(self, prompt: Prompt) -> list[str]:
        """As the other embedder's."""
        return self._base.windows(prompt)
