"""Transfer: as `selection.corpus.tables.transfer`, in PostgreSQL."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, LiteralString

import numpy as np

from selection.corpus.contents import Row
from selection.corpus.postgres.database import Database
from selection.corpus.postgres.filters import fields_of
from selection.corpus.tables.transfer import UNCOPIED

_BATCH = 500
# A vector in binary begins with the number of dimensions and an unused number.
_VECTOR_HEADER = 4
_EXPORTS: Mapping[str, LiteralString] = {
    "batches": "SELECT id, cancelled::int, created FROM batches WHERE corpus = %(corpus)s "
    'ORDER BY id COLLATE "C"',
    "batch_files": "SELECT number, batch, file, name, attributes, max_length, overlap, status, "
    "code, message FROM batch_files WHERE corpus = %(corpus)s ORDER BY number",
    "attachments": "SELECT number, id, attached, name, attributes, max_length, overlap, batch, "
    "status, code, message FROM attachments WHERE corpus = %(corpus)s ORDER BY number",
    "detached": "SELECT kind, number, added, id FROM detached WHERE corpus = %(corpus)s "
    "ORDER BY kind, number",
    "documents": "SELECT id, name, sha256, metadata, file, added FROM documents "
    "WHERE corpus = %(corpus)s ORDER BY id",
    "sequences": "SELECT s.id, s.document, s.start, s.text, s.tokens, vector_send(e.embedding), "
    "s.example, s.scored FROM sequences s "
    "JOIN embeddings e ON e.corpus = s.corpus AND e.sequence = s.id "
    "WHERE s.corpus = %(corpus)s ORDER BY s.id",
    "removed": "SELECT sequence, generation FROM removed WHERE corpus = %(corpus)s "
    "ORDER BY sequence",
}
# Columns of a row are parameters by their position; what is derived from them has a name.
_IMPORTS: Mapping[str, tuple[LiteralString, ...]] = {
    "batches": (
        "INSERT INTO batches (corpus, id, cancelled, created) "
        "VALUES (%(corpus)s, %(0)s, %(1)s <> 0, %(2)s)",
    ),
    "batch_files": (
        "INSERT INTO batch_files (corpus, number, batch, file, name, attributes, max_length, "
        "overlap, status, code, message) VALUES (%(corpus)s, %(0)s, %(1)s, %(2)s, %(3)s, %(4)s, "
        "%(5)s, %(6)s, %(7)s, %(8)s, %(9)s)",
    ),
    "attachments": (
        "INSERT INTO attachments (corpus, number, id, attached, name, attributes, max_length, "
        "overlap, batch, status, code, message) VALUES (%(corpus)s, %(0)s, %(1)s, %(2)s, %(3)s, "
        "%(4)s, %(5)s, %(6)s, %(7)s, %(8)s, %(9)s, %(10)s)",
    ),
    "detached": (
        "INSERT INTO detached (corpus, kind, number, added, id) "
        "VALUES (%(corpus)s, %(0)s, %(1)s, %(2)s, %(3)s)",
    ),
    "documents": (
        "INSERT INTO documents (corpus, id, name, sha256, metadata, fields, file, added) "
        "VALUES (%(corpus)s, %(0)s, %(1)s, %(2)s, %(3)s, %(fields)s, %(4)s, %(5)s)",
    ),
    "sequences": (
        "INSERT INTO sequences (corpus, id, document, start, text, tokens, example, scored) "
        "VALUES (%(corpus)s, %(0)s, %(1)s, %(2)s, %(3)s, %(4)s, %(6)s, %(7)s)",
        "INSERT INTO embeddings (corpus, sequence, embedding) "
        "VALUES (%(corpus)s, %(0)s, %(vector)s)",
    ),
    "removed": (
        "INSERT INTO removed (corpus, sequence, generation) VALUES (%(corpus)s, %(0)s, %(1)s)",
    ),
}
_COUNT: LiteralString = (
    "UPDATE corpora SET last_document = %(documents)s, last_sequence = %(sequences)s, "
    "last_attachment = (SELECT coalesce(max(number), 0) FROM (SELECT number FROM attachments "
    "WHERE corpus = %(corpus)s UNION ALL SELECT number FROM detached WHERE corpus = %(corpus)s "
    "AND kind = 0) a), last_batch_file = (SELECT coalesce(max(number), 0) FROM batch_files "
    "WHERE corpus = %(corpus)s) WHERE id = %(corpus)s"
)


class Transfer:
    """The tables of one corpus in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def export(self, table: str) -> Iterator[Row]:
        """The rows of a table, within a transaction."""
        if table == "meta":
            meta = self._database.meta()
            return iter(sorted(item for item in meta.items() if item[0] not in UNCOPIED))
        if table == "counters":
            ((documents, sequences),) = self._database.rows(
                "SELECT last_document, last_sequence FROM corpora WHERE id = %(corpus)s"
            )
            return iter([("documents", documents), ("sequences", sequences)])
        rows = self._database.stream(_EXPORTS[table])
        return _with_embedding(rows) if table == "sequences" else rows

    def import_(self, table: str, rows: Iterable[Row]) -> None:
        """Fill an empty table, within `Database.creating`."""
        if table == "meta":
            meta = {str(key): str(value) for key, value in rows}
            self._database.execute(
                "UPDATE corpora SET generation = %(generation)s WHERE id = %(corpus)s",
                generation=int(meta.pop("generation")),
            )
            self._database.update_meta({**meta, "uuid": uuid.uuid4().hex})
            return
        if table == "counters":
            self._database.execute(_COUNT, **{str(name): last for name, last in rows})
            self._database.recount_bytes()
            return
        remaining = iter(rows)
        while batch := list(islice(remaining, _BATCH)):
            values = [_parameters(table, row) for row in batch]
            for query in _IMPORTS[table]:
                self._database.execute_many(query, values)


def _with_embedding(rows: Iterable[Any]) -> Iterator[Row]:
    for *before, vector, example, scored in rows:
        embedding = np.frombuffer(vector, ">f4", offset=_VECTOR_HEADER).astype(np.float32)
        yield (*before, embedding.tobytes(), example, scored)


def _parameters(table: str, row: Row) -> dict[str, Any]:
    values: dict[str, Any] = {str(position): value for position, value in enumerate(row)}
    if table == "documents":
        values["fields"] = json.dumps(fields_of(json.loads(str(row[3]))))
    elif table == "sequences":
        assert isinstance(row[5], bytes)
        values["vector"] = np.frombuffer(row[5], np.float32)
    return values
