"""View: what of a corpus can be searched at one moment: the index, what came after it, and what
went.

The index of a large corpus takes minutes to build, so it is not built anew for every document. What
was added since is searched flat beside it, what was deleted is masked; the answer is that of a
fresh index.

Shapes: N sequences in the index, K candidates, T targets, D embedding dimensions.
"""

from __future__ import annotations

import numpy as np

from selection.corpus.faiss_index import Ids, Index, Mask
from selection.embedding import Embeddings


class LiveIndex:
    """An index and the changes since. `built` and `generation` are the corpus's, of the index and
    of the view.
    """

    def __init__(self, generation: int, index: Index) -> None:
        self.generation = generation
        self.built = generation
        self._parts = [
            index,
            Index(np.empty(0, np.int64), np.empty((0, index.dimension), np.float32)),
        ]
        self._alive: list[Mask | None] = [None, None]
        self._gone = 0

    @property
    def newest(self) -> int:
        """The largest sequence id it knows; ids only grow."""
        return max((int(part.ids_N[-1]) for part in self._parts if len(part)), default=0)

    @property
    def changes(self) -> int:
        """How many sequences came or went since the index was built."""
        return len(self._parts[1]) + self._gone

    def follow(self, generation: int, added: Ids, embeddings_ND: Embeddings, removed: Ids) -> None:
        """Go on to a later generation: ids above `newest`, ascending, and ids that are gone."""
        if len(added):
            tail = self._parts[1]
            ids = np.concatenate([tail.ids_N, added])
            self._parts[1] = Index(ids, np.concatenate([tail.vectors(), embeddings_ND]))
            if self._alive[1] is not None:
                self._alive[1] = np.concatenate([self._alive[1], np.ones(len(added), np.bool_)])
        for i, part in enumerate(self._parts):
            dead = np.isin(part.ids_N, removed) if len(removed) else None
            if dead is not None and dead.any():
                before = self._alive[i]
                self._alive[i] = ~dead if before is None else before & ~dead
                self._gone += int(np.count_nonzero(dead))
        self.generation = generation

    def nearest(
        self, targets_TD: Embeddings, k: int | None, allowed: Ids | None = None
    ) -> tuple[Ids, Embeddings]:
        """The k sequences of largest absolute similarity to any target, nearest first: ids [K],
        embeddings [K, D].

        Args:
            targets_TD: unit vectors.
            k: None takes all.
            allowed: ids to choose among, None for all.
        """
        found = []
        for part, alive_N in zip(self._parts, self._alive, strict=True):
            mask = alive_N
            if allowed is not None:
                permitted = np.isin(part.ids_N, allowed)
                mask = permitted if mask is None else mask & permitted
            found.append(part.nearest(targets_TD, len(part) if k is None else k, mask))
        ids = np.concatenate([ids for ids, _, _ in found])
        similarity = np.concatenate([similarity for _, _, similarity in found])
        best = np.lexsort((ids, -similarity))[:k]
        return ids[best], np.concatenate([vectors for _, vectors, _ in found])[best]
