"""Replication: as `selection.corpus.tables.replication`, in PostgreSQL, whose corpora are searched
whole: nothing is imported into it.

Shapes: K candidates.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from selection.corpus.postgres.database import Database
from selection.corpus.tables.replication import DocumentReplica


class Replication:
    """What shards would need of one corpus."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def export(self, document: int) -> DocumentReplica | None:
        """Refused: see `import_`."""
        raise self._refusal()

    def import_(self, replica: DocumentReplica) -> None:
        """Refused: a corpus in PostgreSQL is not divided into shards."""
        raise self._refusal()

    def present(self, sequences: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of these sequences exist [K]."""
        rows = self._database.rows(
            "SELECT id FROM sequences WHERE corpus = %(corpus)s AND id = ANY(%(ids)s::bigint[])",
            ids=sequences.tolist(),
        )
        return np.isin(sequences, np.fromiter((row[0] for row in rows), np.int64))

    def _refusal(self) -> Exception:
        return self._database.unusable(
            "is in PostgreSQL, where it is not divided into shards: serve it without --shards"
        )
