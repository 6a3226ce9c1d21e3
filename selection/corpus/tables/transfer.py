"""Transfer: the tables of a corpus's database as every store has them
(`selection.corpus.contents`).
"""

from __future__ import annotations

import uuid
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice

import numpy as np

from selection.corpus.contents import Row
from selection.corpus.tables.database import Database
from selection.corpus.tables.reembedding import REEMBEDDING

# Entries of the metadata that are no part of the content.
UNCOPIED = ("uuid", REEMBEDDING)
_BATCH = 500
_MEMBER = "name, attributes, max_length, overlap"
_OUTCOME = "status, code, message"
_COLUMNS = {
    "batches": "id, cancelled, created",
    "batch_files": f"number, batch, file, {_MEMBER}, {_OUTCOME}",
    "attachments": f"rowid, id, attached, {_MEMBER}, batch, {_OUTCOME}",
    "detached": "kind, number, added, id",
    "documents": "id, name, sha256, metadata, file, added",
    "sequences": "id, document, start, text, tokens, embedding, example, scored",
    "removed": "sequence, generation",
}


class Transfer:
    """The tables of one corpus's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def export(self, table: str) -> Iterator[Row]:
        """The rows of a table, within `reading` or `writing`.

        Raises:
            CorpusError: the corpus is damaged.
        """
        if table == "meta":
            meta = self._database.meta()
            return iter(sorted(item for item in meta.items() if item[0] not in UNCOPIED))
        if table == "counters":
            last = dict(self._database.rows("SELECT name, seq FROM sqlite_sequence"))
            return iter([(name, last.get(name, 0)) for name in ("documents", "sequences")])
        columns = _COLUMNS[table]
        order = "kind, number" if table == "detached" else columns.partition(",")[0]
        query = f"SELECT {columns} FROM {table} ORDER BY {order}"  # noqa: S608
        rows = self._database.stream(query)
        return self._checked(rows) if table == "sequences" else rows

    def import_(self, table: str, rows: Iterable[Row]) -> None:
        """Fill an empty table, within `writing`."""
        if table == "meta":
            self._database.update_meta({"uuid": uuid.uuid4().hex})
            query = "INSERT INTO meta VALUES (?, ?)"
        elif table == "counters":
            self._database.execute(
                "DELETE FROM sqlite_sequence WHERE name IN ('documents', 'sequences')"
            )
            query = "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)"
        else:
            columns = _COLUMNS[table]
            marks = ", ".join("?" * (columns.count(",") + 1))
            query = f"INSERT INTO {table} ({columns}) VALUES ({marks})"  # noqa: S608
        remaining = iter(rows)
        while batch := list(islice(remaining, _BATCH)):
            self._database.execute_many(query, batch)

    def _checked(self, rows: Generator[Row, None, None]) -> Iterator[Row]:
        dimension = int(self._database.meta()["dimension"])
        with closing(rows):
            for row in rows:
                tokens, embedding = row[4:6]
                if not isinstance(tokens, bytes) or len(tokens) % 4:
                    raise self._database.damaged("tokens are missing")
                if not isinstance(embedding, bytes) or len(embedding) != 4 * dimension:
                    raise self._database.damaged("embeddings are missing")
                if not np.isfinite(np.frombuffer(embedding, np.float32)).all():
                    raise self._database.damaged("it contains NaN or infinite embeddings")
                yield row
