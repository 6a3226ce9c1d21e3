"""SequenceIds: as `selection.corpus.tables.sequence_ids`, in PostgreSQL; and the embeddings of a
corpus, read in the binary format of COPY.

Shapes: N sequences, G groups, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from selection.corpus.postgres.database import Database
from selection.embedding import Embeddings

# A binary copy begins with a signature, flags and the length of further headers, none of which are
# sent; it ends with a count of columns of -1.
_HEADER, _TRAILER = 19, 2
_BLOCK_BYTES = 1 << 22


class SequenceIds:
    """The sequences of one corpus's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> npt.NDArray[np.int64]:
        """The document [N, 0] and the id [N, 1] of each sequence, in order."""
        rows = self._database.rows(
            "SELECT document, id FROM sequences WHERE corpus = %(corpus)s ORDER BY document, id"
        )
        return np.array(rows, np.int64).reshape(-1, 2)

    def count(self) -> int:
        """The number of sequences."""
        ((count,),) = self._database.rows(
            "SELECT count(*) FROM sequences WHERE corpus = %(corpus)s"
        )
        return int(count)

    def contents(self) -> dict[int, str]:
        """The digest of each document's content."""
        return dict(
            self._database.rows("SELECT id, sha256 FROM documents WHERE corpus = %(corpus)s")
        )

    def centroids(self, groups: Sequence[npt.NDArray[np.int64]]) -> Embeddings:
        """The mean embeddings [G, D] of disjoint groups of sequences, scaled to unit length.

        Raises:
            CorpusError: the corpus is damaged.
        """
        with self._database.reading():
            dimension = int(self._database.meta()["dimension"])
            sums_GD = np.zeros((len(groups), dimension), np.float32)
            ids_N = np.concatenate([*groups, np.empty(0, np.int64)])
            if not len(ids_N):
                return sums_GD
            group_N = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
            order_N = np.argsort(ids_N)
            ids_N, group_N = ids_N[order_N], group_N[order_N]
            for read_B, vectors_BD in self.embeddings(int(ids_N[0]) - 1, int(ids_N[-1])):
                at_B = np.searchsorted(ids_N, read_B).clip(max=len(ids_N) - 1)
                wanted_B = ids_N[at_B] == read_B
                np.add.at(sums_GD, group_N[at_B[wanted_B]], vectors_BD[wanted_B])
        norms_G1 = np.linalg.norm(sums_GD, axis=1, keepdims=True)
        means_GD: Embeddings = sums_GD / np.maximum(norms_G1, np.finfo(np.float32).tiny)
        return means_GD

    def embeddings(
        self, after: int, up_to: int = (1 << 63) - 1
    ) -> Iterator[tuple[npt.NDArray[np.int64], Embeddings]]:
        """The ids above `after`, ascending [N], and their vectors [N, D], in blocks; within
        `reading`.

        Raises:
            CorpusError: the corpus is damaged.
        """
        dimension = int(self._database.meta()["dimension"])
        row = _row_type(dimension)
        buffer, skip = bytearray(), _HEADER
        for data in self._database.copy(
            "COPY (SELECT sequence, embedding FROM embeddings WHERE corpus = %(corpus)s "
            "AND sequence > %(after)s AND sequence <= %(up_to)s ORDER BY sequence) "
            "TO STDOUT (FORMAT binary)",
            after=after,
            up_to=up_to,
        ):
            buffer += data
            if len(buffer) > skip + _BLOCK_BYTES:
                yield self._parsed(buffer, skip, row, dimension)
                skip = 0
        yield self._parsed(buffer, skip, row, dimension)
        if len(buffer) != _TRAILER:
            raise self._database.damaged("embeddings are of another dimension")

    def _parsed(
        self, buffer: bytearray, skip: int, row: np.dtype[np.void], dimension: int
    ) -> tuple[npt.NDArray[np.int64], Embeddings]:
        """Take the complete rows out of a buffer, behind what is to be skipped."""
        del buffer[:skip]
        count = len(buffer) // row.itemsize
        rows_N = np.frombuffer(bytes(buffer[: count * row.itemsize]), row)
        if (rows_N["dimension"] != dimension).any():
            raise self._database.damaged("embeddings are of another dimension")
        del buffer[: count * row.itemsize]
        return rows_N["id"].astype(np.int64), rows_N["vector"].astype(np.float32)


def _row_type(dimension: int) -> np.dtype[np.void]:
    """A row of a binary copy of a bigint and a vector, as `vector_send` of pgvector writes it."""
    return np.dtype(
        [
            ("columns", ">i2"),
            ("id length", ">i4"),
            ("id", ">i8"),
            ("vector length", ">i4"),
            ("dimension", ">i2"),
            ("unused", ">i2"),
            ("vector", ">f4", (dimension,)),
        ]
    )
