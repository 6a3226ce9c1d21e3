"""Reembedding: new embeddings of all sequences, collected in a table of their own until they are
complete and replace the old ones in one transaction.

A run that was interrupted resumes with the first sequence that has no new embedding.

Shapes: N sequences, D embedding dimensions.
"""

from __future__ import annotations

import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from selection.corpus.tables.common import AnyDatabase, DatabaseTable
from selection.corpus.tables.database import Database
from selection.embedding import Embedder, Embeddings
from selection.errors import CorpusError

# The key of the metadata that says for which embedder new embeddings are collected.
REEMBEDDING = "reembedding"


def identity_of(embedder: Embedder) -> dict[str, str]:
    """The entries of a corpus's metadata that say which embedder it was made with."""
    return {
        "embedder": embedder.name,
        "revision": embedder.revision,
        "dimension": str(embedder.dimension),
    }


def check_identity(corpus: str, meta: Mapping[str, str], embedder: Embedder) -> None:
    """Refuse an embedder other than the one that a corpus was made with.

    Args:
        corpus: name of the corpus.
        meta: its metadata.
        embedder: the embedder.

    Raises:
        CorpusError: they differ; the message names both and what to do.
    """
    for key, given in identity_of(embedder).items():
        if meta[key] != given:
            raise CorpusError(
                f"corpus {corpus!r} was made with {key} {_short(meta[key])!r}, not "
                f"{_short(given)!r}: use that embedder, or run `mayfly corpus reembed {corpus}`"
            )


def _short(value: str) -> str:
    """An embedder's name for a message; of a path only the last part, because not every client may
    see the server's folders.
    """
    return Path(value).name if Path(value).is_absolute() else value


class ReembeddingRun(DatabaseTable[AnyDatabase], ABC):
    """The embedder that one corpus collects new embeddings for; `identity` is its `identity_of`."""

    def begin(self, identity: Mapping[str, str]) -> None:
        """Resume an interrupted run for the same embedder, or else start from scratch."""
        with self._database.writing():
            if not self._is_for(identity):
                self._forget()
                self._database.update_meta({REEMBEDDING: json.dumps(identity)})

    def _is_for(self, identity: Mapping[str, str]) -> bool:
        return self._database.meta().get(REEMBEDDING) == json.dumps(identity)

    def _check(self, identity: Mapping[str, str]) -> None:
        if not self._is_for(identity):
            raise CorpusError(
                f"corpus {self._database.name!r} is being re-embedded, or was in the meantime, "
                "by another process"
            )

    @abstractmethod
    def _forget(self) -> None:
        """Delete the new embeddings that were collected, within `writing`."""


class Reembedding(ReembeddingRun[Database]):
    """The replacement of one corpus's embeddings."""

    def count(self, identity: Mapping[str, str]) -> int:
        """The number of new embeddings collected for this embedder so far."""
        if not self._is_for(identity):
            return 0
        ((count,),) = self._database.rows("SELECT count(*) FROM reembedded")
        return int(count)

    def pending(self, limit: int) -> list[tuple[int, str, str | None]]:
        """Ids, ascending, texts and examples, as JSON, of the first sequences without a new
        embedding.
        """
        return self._database.rows(
            "SELECT id, text, example FROM sequences WHERE id > "
            "(SELECT coalesce(max(sequence), 0) FROM reembedded) ORDER BY id LIMIT ?",
            (limit,),
        )

    def save(
        self, identity: Mapping[str, str], ids: Sequence[int], embeddings_ND: Embeddings
    ) -> None:
        """Collect the new embeddings of the first pending sequences.

        Raises:
            CorpusError: another process re-embeds the corpus.
        """
        rows = [
            (i, row.tobytes()) for i, row in zip(ids, embeddings_ND.astype(np.float32), strict=True)
        ]
        with self._database.writing():
            self._check(identity)
            self._database.execute_many("INSERT OR REPLACE INTO reembedded VALUES (?, ?)", rows)

    def finish(self, identity: Mapping[str, str]) -> bool:
        """Replace all embeddings at once; False, without a change, if some are still pending.

        Raises:
            CorpusError: another process re-embeds the corpus.
        """
        with self._database.writing():
            self._check(identity)
            if self.pending(1):
                return False
            self._database.execute(
                "UPDATE sequences SET embedding = (SELECT embedding FROM reembedded r WHERE "
                "r.sequence = sequences.id)"
            )
            self._database.execute("DELETE FROM reembedded")
            self._database.execute("DELETE FROM meta WHERE key = ?", (REEMBEDDING,))
            # The new uuid invalidates everything derived from the old embeddings.
            self._database.update_meta({**identity, "uuid": uuid.uuid4().hex})
            self._database.advance_generation()
        return True

    def _forget(self) -> None:
        self._database.execute("DELETE FROM reembedded")
