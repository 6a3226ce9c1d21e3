"""Replication: documents of one store exported into another, to be searched there under the same
ids.

A shard's partition of a corpus (`selection.corpus.shards`) holds ids, vectors and metadata; texts
and tokens stay in the original.

Shapes: N sequences, K candidates, D embedding dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from selection.corpus.filters import Scalar
from selection.corpus.tables.database import Database


@dataclass(frozen=True)
class DocumentReplica:
    """A document without its texts and tokens.

    Attributes:
        id: id of the document.
        name: name of the document.
        sha256: digest of its content.
        metadata: its metadata.
        sequences: ids of its sequences [N], ascending.
        starts: where each sequence starts in the document, in characters [N].
        vectors: their embeddings [N, D].
    """

    id: int
    name: str
    sha256: str
    metadata: Mapping[str, Scalar]
    sequences: tuple[int, ...]
    starts: tuple[int, ...]
    vectors: npt.NDArray[np.float32]


class Replication:
    """Exports documents of one store and imports those of another.

    Args:
        database: the store's database.
        delete_document: deletes the document of a name, within a transaction.
    """

    def __init__(self, database: Database, delete_document: Callable[[str], object]) -> None:
        self._database, self._delete_document = database, delete_document

    def export(self, document: int) -> DocumentReplica | None:
        """The document of that id, or None if it does not exist."""
        with self._database.reading():
            rows = self._database.rows(
                "SELECT name, sha256, metadata FROM documents WHERE id = ?", (document,)
            )
            sequences = self._database.rows(
                "SELECT id, start, embedding FROM sequences WHERE document = ? ORDER BY id",
                (document,),
            )
        if not rows:
            return None
        name, sha256, metadata = rows[0]
        vectors = np.frombuffer(b"".join(row[2] for row in sequences), np.float32)
        return DocumentReplica(
            document,
            name,
            sha256,
            json.loads(metadata),
            tuple(row[0] for row in sequences),
            tuple(row[1] for row in sequences),
            vectors.reshape(len(sequences), len(vectors) // max(len(sequences), 1)),
        )

    def import_(self, replica: DocumentReplica) -> None:
        """Add a document of another store, replacing the one of the same name; documents must be
        imported in ascending order of their ids.
        """
        with self._database.writing():
            self._delete_document(replica.name)
            self._database.execute(
                "INSERT INTO documents (id, name, sha256, metadata) VALUES (?, ?, ?, ?)",
                (replica.id, replica.name, replica.sha256, json.dumps(dict(replica.metadata))),
            )
            self._database.execute_many(
                "INSERT INTO sequences (id, document, start, text, tokens, embedding) VALUES (?, "
                "?, ?, '', x'', ?)",
                [
                    (sequence, replica.id, start, row.tobytes())
                    for sequence, start, row in zip(
                        replica.sequences, replica.starts, replica.vectors, strict=True
                    )
                ],
            )
            self._database.advance_generation()

    def present(self, sequences: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of these sequences exist [K]."""
        # One JSON value instead of K parameters, whose number SQLite limits.
        ids = json.dumps(sequences.tolist())
        rows = self._database.rows(
            "SELECT id FROM sequences WHERE id IN (SELECT value FROM json_each(?))", (ids,)
        )
        return np.isin(sequences, np.fromiter((row[0] for row in rows), np.int64))
