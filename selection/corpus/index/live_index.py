"""LiveIndex: an index together with what was added to the corpus and removed from it since.

The index of a large corpus takes minutes to build, so it is not rebuilt for every document. Newer
sequences are searched in a flat index beside it, and removed ones are masked; the result is that of
a fresh index.

Shapes: N sequences in the index, K candidates, T targets, D embedding dimensions.
"""

from __future__ import annotations

import numpy as np

from selection.corpus.index.faiss_index import Ids, Index, Mask
from selection.embedding import Embeddings


class LiveIndex:
    """An index and the changes since it was built.

    Attributes:
        built: the corpus's generation from which the index was built.
        generation: the corpus's generation up to which changes were applied.
    """

    def __init__(self, generation: int, index: Index) -> None:
        self.generation = generation
        self.built = generation
        self._indexes = [
            index,
            Index(np.empty(0, np.int64), np.empty((0, index.dimension), np.float32)),
        ]
        self._present: list[Mask | None] = [None, None]
        self._removed = 0

    @property
    def newest(self) -> int:
        """The largest sequence id it contains; ids only grow."""
        return max((int(index.ids_N[-1]) for index in self._indexes if len(index)), default=0)

    @property
    def changes(self) -> int:
        """The number of sequences added and removed since the index was built."""
        return len(self._indexes[1]) + self._removed

    def apply(self, generation: int, added: Ids, embeddings_ND: Embeddings, removed: Ids) -> None:
        """Apply the changes up to a later generation.

        Args:
            generation: that generation.
            added: ids above `newest`, ascending [N].
            embeddings_ND: their unit vectors.
            removed: ids removed since `generation` was last applied.
        """
        if len(added):
            tail = self._indexes[1]
            ids = np.concatenate([tail.ids_N, added])
            self._indexes[1] = Index(ids, np.concatenate([tail.vectors(), embeddings_ND]))
            if self._present[1] is not None:
                self._present[1] = np.concatenate([self._present[1], np.ones(len(added), np.bool_)])
        for i, index in enumerate(self._indexes):
            gone_N = np.isin(index.ids_N, removed) if len(removed) else None
            if gone_N is not None and gone_N.any():
                before = self._present[i]
                self._present[i] = ~gone_N if before is None else before & ~gone_N
                self._removed += int(np.count_nonzero(gone_N))
        self.generation = generation

    def nearest(
        self, targets_TD: Embeddings, k: int | None, allowed: Ids | None = None
    ) -> tuple[Ids, Embeddings]:
        """The k sequences of largest absolute similarity to any target, nearest first: ids [K],
        embeddings [K, D].

        Args:
            targets_TD: unit vectors.
            k: number of sequences; None returns all.
            allowed: ids to choose from; None allows all.
        """
        found = []
        for index, present_N in zip(self._indexes, self._present, strict=True):
            mask = present_N
            if allowed is not None:
                allowed_N = np.isin(index.ids_N, allowed)
                mask = allowed_N if mask is None else mask & allowed_N
            found.append(index.nearest(targets_TD, len(index) if k is None else k, mask))
        ids = np.concatenate([ids for ids, _, _ in found])
        similarity = np.concatenate([similarity for _, _, similarity in found])
        best = np.lexsort((ids, -similarity))[:k]
        return ids[best], np.concatenate([vectors for _, vectors, _ in found])[best]
