"""Reembedding: as `selection.corpus.tables.reembedding`, which documents it, in PostgreSQL.

Shapes: N sequences, D embedding dimensions.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

import numpy as np

from selection.corpus.postgres.database import Database
from selection.corpus.tables.reembedding import REEMBEDDING, ReembeddingRun
from selection.embedding import Embeddings


class Reembedding(ReembeddingRun[Database]):
    """The replacement of one corpus's embeddings."""

    def count(self, identity: Mapping[str, str]) -> int:
        """The number of new embeddings collected for this embedder so far."""
        if not self._is_for(identity):
            return 0
        ((count,),) = self._database.rows(
            "SELECT count(*) FROM reembedded WHERE corpus = %(corpus)s"
        )
        return int(count)

    def pending(self, limit: int) -> list[tuple[int, str, str | None]]:
        """Ids, ascending, texts and examples, as JSON, of the first sequences without a new
        embedding.
        """
        return self._database.rows(
            "SELECT id, text, example FROM sequences WHERE corpus = %(corpus)s AND id > "
            "(SELECT coalesce(max(sequence), 0) FROM reembedded WHERE corpus = %(corpus)s) "
            "ORDER BY id LIMIT %(limit)s",
            limit=limit,
        )

    def save(
        self, identity: Mapping[str, str], ids: Sequence[int], embeddings_ND: Embeddings
    ) -> None:
        """Collect the new embeddings of the first pending sequences."""
        rows = [
            {"sequence": i, "embedding": row}
            for i, row in zip(ids, embeddings_ND.astype(np.float32), strict=True)
        ]
        with self._database.writing():
            self._check(identity)
            self._database.execute_many(
                "INSERT INTO reembedded (corpus, sequence, embedding) "
                "VALUES (%(corpus)s, %(sequence)s, %(embedding)s) "
                "ON CONFLICT (corpus, sequence) DO UPDATE SET embedding = excluded.embedding",
                rows,
            )

    def finish(self, identity: Mapping[str, str]) -> bool:
        """Replace all embeddings at once; False, without a change, if some are still pending."""
        with self._database.writing():
            self._check(identity)
            if self.pending(1):
                return False
            self._database.execute("DELETE FROM embeddings WHERE corpus = %(corpus)s")
            # Sequences may have been removed since.
            self._database.execute(
                "INSERT INTO embeddings (corpus, sequence, embedding) "
                "SELECT r.corpus, r.sequence, r.embedding FROM reembedded r "
                "JOIN sequences s ON s.corpus = r.corpus AND s.id = r.sequence "
                "WHERE r.corpus = %(corpus)s"
            )
            self._database.execute("DELETE FROM reembedded WHERE corpus = %(corpus)s")
            self._database.execute(
                "UPDATE corpora SET meta = meta - %(key)s WHERE id = %(corpus)s", key=REEMBEDDING
            )
            # The new uuid invalidates everything derived from the old embeddings.
            self._database.update_meta({**identity, "uuid": uuid.uuid4().hex})
            self._database.advance_generation()
            self._database.recount_bytes()
        return True

    def _forget(self) -> None:
        self._database.execute("DELETE FROM reembedded WHERE corpus = %(corpus)s")
