"""SequenceIds: which sequences a corpus has, by document, and the mean embeddings of groups of
them, read in bulk without their texts.

Shapes: N sequences, G groups, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from selection.corpus.tables.database import Database
from selection.embedding import Embeddings

_BATCH = 1024


class SequenceIds:
    """The sequences of one corpus's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> npt.NDArray[np.int64]:
        """The document [N, 0] and the id [N, 1] of each sequence, in order."""
        # An index contains all of it, so that texts and embeddings are not read.
        rows = self._database.rows("SELECT document, id FROM sequences ORDER BY document, id")
        return np.array(rows, np.int64).reshape(-1, 2)

    def count(self) -> int:
        """The number of sequences."""
        ((count,),) = self._database.rows("SELECT count(*) FROM sequences")
        return int(count)

    def contents(self) -> dict[int, str]:
        """The digest of each document's content."""
        return dict(self._database.rows("SELECT id, sha256 FROM documents"))

    def centroids(self, groups: Sequence[npt.NDArray[np.int64]]) -> Embeddings:
        """The mean embeddings [G, D] of disjoint groups of sequences, scaled to unit length.

        Raises:
            CorpusError: the corpus is damaged.
        """
        dimension = int(self._database.meta()["dimension"])
        sums_GD = np.zeros((len(groups), dimension), np.float32)
        ids_N = np.concatenate([*groups, np.empty(0, np.int64)])
        group_N = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        order_N = np.argsort(ids_N)
        ids_N, group_N = ids_N[order_N], group_N[order_N]
        if not len(ids_N):
            return sums_GD
        rows = self._database.stream(
            "SELECT id, embedding FROM sequences WHERE id BETWEEN ? AND ?",
            (int(ids_N[0]), int(ids_N[-1])),
        )
        while batch := list(islice(rows, _BATCH)):
            if any(not isinstance(row[1], bytes) or len(row[1]) != 4 * dimension for row in batch):
                raise self._database.damaged("embeddings are missing")
            read_B = np.array([row[0] for row in batch])
            vectors_BD = np.frombuffer(b"".join(row[1] for row in batch), np.float32)
            at_B = np.searchsorted(ids_N, read_B).clip(max=len(ids_N) - 1)
            wanted_B = ids_N[at_B] == read_B
            np.add.at(
                sums_GD,
                group_N[at_B[wanted_B]],
                vectors_BD.reshape(-1, dimension)[wanted_B],
            )
        if not np.isfinite(sums_GD).all():
            raise self._database.damaged("it contains NaN or infinite embeddings")
        norms_G1 = np.linalg.norm(sums_GD, axis=1, keepdims=True)
        means_GD: Embeddings = sums_GD / np.maximum(norms_G1, np.finfo(np.float32).tiny)
        return means_GD
