"""PostgresStore: one corpus in a PostgreSQL database, as `selection.corpus.sqlite_store` has one
in a file.

Shapes: N sequences, D embedding dimensions.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from selection.corpus.filters import Filter, Scalar
from selection.corpus.positions import new_id
from selection.corpus.postgres.database import Database
from selection.corpus.postgres.filters import fields_of, to_postgres
from selection.corpus.postgres.schema import CORPUS_TABLES
from selection.corpus.postgres.tables.adapter_tables import AdapterTables
from selection.corpus.postgres.tables.attachments import Attachments
from selection.corpus.postgres.tables.deletion import delete_document, delete_named
from selection.corpus.postgres.tables.file_batches import FileBatches
from selection.corpus.postgres.tables.reembedding import Reembedding
from selection.corpus.postgres.tables.replication import Replication
from selection.corpus.postgres.tables.retokenization import Retokenization
from selection.corpus.postgres.tables.sequence_ids import SequenceIds
from selection.corpus.postgres.tables.transfer import Transfer
from selection.corpus.sequences import (
    Chunk,
    DocumentInfo,
    Source,
    StoredSequence,
    check_addition,
)
from selection.corpus.tables.attachment import DetachedError
from selection.corpus.tables.common import DatabaseStore
from selection.embedding import Embeddings
from selection.location import DatabasePlace

Ids: TypeAlias = npt.NDArray[np.int64]

_META = {"id", "created", "embedder", "revision", "dimension", "tokenizer", "generation", "uuid"}


class PostgresStore(DatabaseStore[Database]):
    """The documents and sequences of one corpus.

    Raises:
        CorpusError: the database cannot be used.
    """

    def __init__(self, place: DatabasePlace) -> None:
        super().__init__(Database(place))
        self._cache = place.parent.cache / place.name
        self.attachments = Attachments(self.database)
        self.file_batches = FileBatches(self.database, self.attachments)
        self.reembedding = Reembedding(self.database)
        self.retokenization = Retokenization(self.database)
        self.replication = Replication(self.database)
        self.sequence_ids = SequenceIds(self.database)
        self.transfer = Transfer(self.database)
        self.adapter_tables = AdapterTables(self.database)

    @property
    def folder(self) -> Path:
        """The folder on this machine for what is derived from the corpus, which may be deleted at
        any time: this creates it.
        """
        self._cache.mkdir(parents=True, exist_ok=True)
        return self._cache

    def initialise(self, meta: Mapping[str, str]) -> None:
        """Record the corpus's metadata, unless that was done before."""
        identity, created = new_id("vs_")
        defaults = {"id": identity, "created": str(created)}
        self.database.create({**defaults, **meta, "uuid": uuid.uuid4().hex})

    def check_version(self) -> None:
        """Check that the corpus is complete.

        Raises:
            CorpusError: it is damaged.
        """
        if not self.meta().keys() >= _META:
            raise self.database.damaged("it lacks metadata")

    def close(self) -> None:
        """Nothing to do: connections belong to the process."""

    def remove(self) -> None:
        """Delete the corpus, and what is derived from it on this machine."""
        with self.database.writing():
            # In bulk, instead of row by row.
            for table in CORPUS_TABLES:
                self.database.execute(f"DELETE FROM {table} WHERE corpus = %(corpus)s")  # noqa: S608
            self.database.execute("DELETE FROM corpora WHERE id = %(corpus)s")
        shutil.rmtree(self._cache, ignore_errors=True)

    def size(self) -> int:
        """The size of its texts, tokens and embeddings in bytes."""
        ((size,),) = self.database.rows("SELECT bytes FROM corpora WHERE id = %(corpus)s")
        return int(size)

    def add(
        self,
        name: str,
        sha256: str,
        chunks: Sequence[Chunk],
        embeddings_ND: Embeddings,
        metadata: Mapping[str, Scalar],
        embedding_uuid: str,
        file: str | None = None,
        tokenizer: str | None = None,
        template: str | None = None,
    ) -> int:
        """As `SQLiteStore.add`."""
        # A filter could not compare NaN.
        metadata_json = json.dumps(dict(metadata), allow_nan=False)
        with self.database.writing():
            meta = self.meta()
            changes = check_addition(
                self.name,
                name,
                meta,
                chunks,
                embedding_uuid=embedding_uuid,
                tokenizer=tokenizer,
                template=template,
            )
            if changes:
                self.database.update_meta(changes)
            if file is not None and not self.attachments.is_in_progress(file):
                raise DetachedError(f"{file} is no longer in progress in {self.name!r}")
            assert embeddings_ND.shape == (len(chunks), int(meta["dimension"]))
            delete_named(self.database, name)
            rows = [
                {
                    "start": chunk.start,
                    "text": chunk.text,
                    "tokens": np.array(chunk.tokens, np.int32).tobytes(),
                    "embedding": row,
                    "example": chunk.example,
                    "scored": None if chunk.scored is None else json.dumps(chunk.scored),
                }
                for chunk, row in zip(chunks, embeddings_ND.astype(np.float32), strict=True)
            ]
            ((document, last),) = self.database.rows(
                "UPDATE corpora SET generation = generation + 1, bytes = bytes + %(bytes)s, "
                "last_document = last_document + 1, last_sequence = last_sequence + %(count)s "
                "WHERE id = %(corpus)s RETURNING last_document, last_sequence",
                bytes=sum(len(c.text.encode()) + 4 * len(c.tokens) for c in chunks)
                + 4 * embeddings_ND.size,
                count=len(rows),
            )
            self.database.execute(
                "INSERT INTO documents (corpus, id, name, sha256, metadata, fields, file) "
                "VALUES (%(corpus)s, %(id)s, %(name)s, %(sha256)s, %(metadata)s, %(fields)s, "
                "%(file)s)",
                id=document,
                name=name,
                sha256=sha256,
                metadata=metadata_json,
                fields=json.dumps(fields_of(metadata)),
                file=file,
            )
            for sequence, values in enumerate(rows, last - len(rows) + 1):
                values.update(document=document, sequence=sequence)
            self.database.execute_many(
                "INSERT INTO sequences (corpus, id, document, start, text, tokens, example, "
                "scored) VALUES (%(corpus)s, %(sequence)s, %(document)s, %(start)s, %(text)s, "
                "%(tokens)s, %(example)s, %(scored)s)",
                rows,
            )
            self.database.execute_many(
                "INSERT INTO embeddings (corpus, sequence, embedding) "
                "VALUES (%(corpus)s, %(sequence)s, %(embedding)s)",
                rows,
            )
        return int(document)

    def delete(self, document: str | int) -> bool:
        """Delete a document by name or id; False if it does not exist."""
        with self.database.writing():
            if isinstance(document, str):
                deleted = delete_named(self.database, document)
            else:
                deleted = delete_document(self.database, document)
            if deleted:
                self.database.advance_generation()
        return deleted

    def has(self, name: str, sha256: str) -> bool:
        """Whether a document of that name and content exists."""
        rows = self.database.rows(
            "SELECT sha256 FROM documents WHERE corpus = %(corpus)s "
            "AND name_digest(name) = name_digest(%(name)s)",
            name=name,
        )
        return rows == [(sha256,)]

    def has_name(self, name: str) -> bool:
        """Whether a document of that name exists."""
        rows = self.database.rows(
            "SELECT 1 FROM documents WHERE corpus = %(corpus)s "
            "AND name_digest(name) = name_digest(%(name)s)",
            name=name,
        )
        return bool(rows)

    def names(self, file: str) -> list[str]:
        """The names of the documents that belong to an attachment."""
        rows = self.database.rows(
            "SELECT name FROM documents WHERE corpus = %(corpus)s AND file = %(file)s", file=file
        )
        return [row[0] for row in rows]

    def counts(self) -> tuple[int, int]:
        """The numbers of documents and of sequences."""
        ((documents, sequences),) = self.database.rows(
            "SELECT (SELECT count(*) FROM documents WHERE corpus = %(corpus)s), "
            "(SELECT count(*) FROM sequences WHERE corpus = %(corpus)s)"
        )
        return documents, sequences

    def documents(self) -> list[DocumentInfo]:
        """Every document, by name."""
        rows = self.database.rows(
            "SELECT d.id, d.name, (SELECT count(*) FROM sequences s "
            "WHERE s.corpus = d.corpus AND s.document = d.id), d.metadata, d.added "
            "FROM documents d WHERE d.corpus = %(corpus)s ORDER BY d.name"
        )
        return [
            DocumentInfo(i, name, count, json.loads(metadata), added)
            for i, name, count, metadata, added in rows
        ]

    def token_sequences(self, name: str | None = None) -> Iterator[bytes]:
        """The tokens of every sequence, or of one document's, as the bytes of int32 values."""
        rows = self.database.stream(
            "SELECT s.tokens FROM sequences s "
            "JOIN documents d ON d.corpus = s.corpus AND d.id = s.document "
            "WHERE s.corpus = %(corpus)s AND (%(name)s::text IS NULL "
            "OR name_digest(d.name) = name_digest(%(name)s))",
            name=name,
        )
        for (tokens,) in rows:
            yield bytes(tokens)

    def sequences_of(self, document: int) -> list[int]:
        """Ids of a document's sequences, in order."""
        rows = self.database.rows(
            "SELECT id FROM sequences WHERE corpus = %(corpus)s AND document = %(document)s "
            "ORDER BY id",
            document=document,
        )
        return [row[0] for row in rows]

    def read(self, sequences: Sequence[int]) -> dict[int, StoredSequence]:
        """Sequences by id; ids that do not exist are left out."""
        wanted = [*dict.fromkeys(sequences)]
        # One lookup by primary key for each, also before PostgreSQL knows the size of the tables: a
        # join would read all documents.
        rows = self.database.rows(
            "SELECT s.id, s.document, d.name, s.start, s.text, d.metadata, s.example, s.tokens, "
            "s.scored FROM unnest(%(ids)s::bigint[]) AS wanted (id) CROSS JOIN LATERAL "
            "(SELECT * FROM sequences WHERE corpus = %(corpus)s AND id = wanted.id LIMIT 1) s "
            "CROSS JOIN LATERAL "
            "(SELECT * FROM documents WHERE corpus = %(corpus)s AND id = s.document LIMIT 1) d",
            ids=wanted,
        )
        found = {}
        for sequence, document, name, start, text, metadata, example, tokens, scored in rows:
            fields = json.loads(metadata)
            found[sequence] = StoredSequence(
                Source(sequence, document, name, start, text, fields, example),
                tuple(np.frombuffer(tokens, np.int32).tolist()),
                None if scored is None else tuple(map(tuple, json.loads(scored))),
            )
        return {each: found[each] for each in wanted if each in found}

    def matching(self, filter: Filter) -> Ids:
        """Ids of the sequences whose document passes a filter (`selection.corpus.filters`)."""
        condition, values = to_postgres(filter, "d.fields")
        rows = self.database.rows(
            "SELECT s.id FROM sequences s "  # noqa: S608
            "JOIN documents d ON d.corpus = s.corpus AND d.id = s.document "
            "WHERE s.corpus = %(corpus)s AND d.corpus = %(corpus)s AND " + condition,
            **values,
        )
        return np.sort(np.fromiter((row[0] for row in rows), np.int64))

    def embeddings(self, after: int = 0) -> tuple[Ids, Embeddings]:
        """Ids above `after`, ascending [N], and their vectors [N, D].

        Raises:
            CorpusError: the corpus is damaged.
        """
        with self.reading():
            ((count,),) = self.database.rows(
                "SELECT count(*) FROM embeddings WHERE corpus = %(corpus)s "
                "AND sequence > %(after)s",
                after=after,
            )
            ids_N = np.empty(count, np.int64)
            vectors_ND = np.empty((count, int(self.meta()["dimension"])), np.float32)
            row = 0
            for ids_B, vectors_BD in self.sequence_ids.embeddings(after):
                ids_N[row : row + len(ids_B)] = ids_B
                vectors_ND[row : row + len(ids_B)] = vectors_BD
                row += len(ids_B)
        return ids_N, vectors_ND

    def removed(self, since: int) -> Ids:
        """Ids of the sequences removed after that generation."""
        rows = self.database.rows(
            "SELECT sequence FROM removed WHERE corpus = %(corpus)s AND generation > %(since)s "
            "ORDER BY sequence",
            since=since,
        )
        return np.fromiter((row[0] for row in rows), np.int64)
