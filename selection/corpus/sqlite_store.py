"""SQLiteStore: the single source of truth of one corpus: documents, their sequences, their
embeddings.

Every change is one durable transaction (`tables.database`). Changes of documents and embeddings
advance the generation, and the ids of removed sequences are recorded, so that a reader can catch up
from any generation to the latest. Ids are never reused.

It does not depend on embedders or indexes (`selection.corpus.corpus`). Use it from one thread at a
time.

Shapes: N sequences, D embedding dimensions.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from selection.corpus.filters import Filter, Scalar, to_sql
from selection.corpus.positions import new_id
from selection.corpus.sequences import Chunk as Chunk
from selection.corpus.sequences import DocumentInfo as DocumentInfo
from selection.corpus.sequences import Source as Source
from selection.corpus.sequences import StoredSequence as StoredSequence
from selection.corpus.sequences import check_addition
from selection.corpus.tables.attachment import DetachedError
from selection.corpus.tables.attachments import Attachments
from selection.corpus.tables.common import DatabaseStore
from selection.corpus.tables.database import FILE, Database
from selection.corpus.tables.deletion import delete_document
from selection.corpus.tables.file_batches import FileBatches
from selection.corpus.tables.reembedding import Reembedding
from selection.corpus.tables.replication import Replication
from selection.corpus.tables.retokenization import Retokenization
from selection.corpus.tables.schema import ADDED_COLUMNS, ADDITIONS, TABLES, VERSION
from selection.corpus.tables.sequence_ids import SequenceIds
from selection.corpus.tables.transfer import Transfer
from selection.errors import CorpusError as CorpusError
from selection.errors import CorpusNotFoundError as CorpusNotFoundError

Ids: TypeAlias = npt.NDArray[np.int64]
Embeddings: TypeAlias = npt.NDArray[np.float32]

_META = {"id", "created", "embedder", "revision", "dimension", "tokenizer", "generation", "uuid"}


class SQLiteStore(DatabaseStore[Database]):
    """The documents and sequences of one corpus, and what is derived from them, in one folder."""

    # The adapter is in the folder.
    adapter_tables = None

    def __init__(self, folder: Path) -> None:
        super().__init__(Database(folder))
        self.folder = folder
        self.attachments = Attachments(self.database)
        self.file_batches = FileBatches(self.database, self.attachments)
        self.reembedding = Reembedding(self.database)
        self.retokenization = Retokenization(self.database)
        self.replication = Replication(self.database, partial(delete_document, self.database))
        self.sequence_ids = SequenceIds(self.database)
        self.transfer = Transfer(self.database)

    def initialise(self, meta: Mapping[str, str]) -> None:
        """Create the tables and record the corpus's metadata, unless that was done before."""
        with self.database.writing():
            if not self.database.version() and not self.database.rows(
                "SELECT 1 FROM sqlite_master LIMIT 1"
            ):
                self.create_tables()
                identity, created = new_id("vs_")
                defaults = {"id": identity, "created": str(created)}
                fixed = {"generation": "0", "uuid": uuid.uuid4().hex}
                self.database.update_meta({**defaults, **meta, **fixed})

    def create_tables(self) -> None:
        """Create the tables of an empty database, within `Database.writing`."""
        for statement in (*TABLES, *ADDITIONS):
            self.database.execute(statement)
        self.database.execute(f"PRAGMA user_version = {VERSION}")

    def check_version(self) -> None:
        """Check that this version of Mayfly can use the database, and add the tables and columns it
        lacks.

        Raises:
            CorpusError: the database is damaged, incomplete or another version's.
        """
        with self.database.errors():
            usable = self.database.version() == VERSION and self.meta().keys() >= _META
        if not usable:
            raise self.database.unusable(
                "is damaged, incomplete, or was made by another version of Mayfly: "
                "delete its folder and add its documents again"
            )
        added = self.database.rows(
            "SELECT 1 FROM sqlite_master WHERE name IN ('detached', 'batch_files')"
        )
        if len(added) < 2 or self._missing_columns():
            with self.database.writing():
                for statement in (*ADDITIONS, *self._missing_columns()):
                    self.database.execute(statement)

    def _missing_columns(self) -> list[str]:
        """The statements that add the columns that the database lacks."""
        present = {row[1] for row in self.database.rows("PRAGMA table_info(sequences)")}
        return [statement for name, statement in ADDED_COLUMNS.items() if name not in present]

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def remove(self) -> None:
        """Close the database and delete the folder.

        Raises:
            OSError: it could not be deleted; the corpus is gone unless it `is_in_place`.
        """
        self.close()
        # The database goes first: without its log, killed half way, it would be an older state.
        (self.folder / FILE).unlink()
        # A reader that closes the database meanwhile deletes its log itself.
        while self.folder.exists():
            with suppress(FileNotFoundError):
                shutil.rmtree(self.folder)

    def size(self) -> int:
        """The size of the database in bytes."""
        return sum(file.stat().st_size for file in self.folder.glob(f"{FILE}*"))

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
        """Add a document, replacing the one of the same name; returns its id.

        Args:
            name: name of the document.
            sha256: digest of its content.
            chunks: its sequences, in order.
            embeddings_ND: one vector per chunk.
            metadata: its metadata.
            embedding_uuid: the corpus's `uuid` when the vectors were computed.
            file: the attachment it belongs to.
            tokenizer: digest of the tokenizer of the chunks' tokens; None skips its check.
            template: digest of the template that rendered the examples among the chunks; the first
                example makes it the corpus's.

        Raises:
            CorpusError: the corpus was re-embedded or retokenized since, or has examples of another
                template, or could not be written.
            DetachedError: the attachment is no longer in progress.
            ValueError: the metadata is not valid JSON.
        """
        # NaN would pass here, but SQLite's JSON functions reject it, so every filter would fail.
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
            self.database.update_meta(changes)
            if file is not None and not self.attachments.is_in_progress(file):
                raise DetachedError(f"{file} is no longer in progress in {self.database.name!r}")
            assert embeddings_ND.shape == (len(chunks), int(meta["dimension"]))
            delete_document(self.database, name)
            document = self.database.execute(
                "INSERT INTO documents (name, sha256, metadata, file) VALUES (?, ?, ?, ?)",
                (name, sha256, metadata_json, file),
            ).lastrowid
            assert document is not None
            self.database.execute_many(
                "INSERT INTO sequences (document, start, text, tokens, embedding, example, scored) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        document,
                        chunk.start,
                        chunk.text,
                        np.array(chunk.tokens, np.int32).tobytes(),
                        row.tobytes(),
                        chunk.example,
                        None if chunk.scored is None else json.dumps(chunk.scored),
                    )
                    for chunk, row in zip(chunks, embeddings_ND.astype(np.float32), strict=True)
                ],
            )
            self.database.advance_generation()
        return document

    def delete(self, document: str | int) -> bool:
        """Delete a document by name or id; False if it does not exist."""
        with self.database.writing():
            deleted = delete_document(self.database, document)
            if deleted:
                self.database.advance_generation()
        return deleted

    def has(self, name: str, sha256: str) -> bool:
        """Whether a document of that name and content exists."""
        rows = self.database.rows("SELECT sha256 FROM documents WHERE name = ?", (name,))
        return rows == [(sha256,)]

    def has_name(self, name: str) -> bool:
        """Whether a document of that name exists."""
        return bool(self.database.rows("SELECT 1 FROM documents WHERE name = ?", (name,)))

    def names(self, file: str) -> list[str]:
        """The names of the documents that belong to an attachment."""
        rows = self.database.rows("SELECT name FROM documents WHERE file = ?", (file,))
        return [row[0] for row in rows]

    def counts(self) -> tuple[int, int]:
        """The numbers of documents and of sequences."""
        ((documents, sequences),) = self.database.rows(
            "SELECT (SELECT count(*) FROM documents), (SELECT count(*) FROM sequences)"
        )
        return documents, sequences

    def documents(self) -> list[DocumentInfo]:
        """Every document, by name."""
        rows = self.database.rows(
            "SELECT d.id, d.name, (SELECT count(*) FROM sequences s WHERE s.document = d.id), "
            "d.metadata, d.added "
            "FROM documents d ORDER BY d.name"
        )
        with self.database.errors():
            return [
                DocumentInfo(i, name, count, json.loads(metadata), added)
                for i, name, count, metadata, added in rows
            ]

    def token_sequences(self, name: str | None = None) -> Iterator[bytes]:
        """The tokens of every sequence, or of one document's, as the bytes of int32 values."""
        condition, values = ("WHERE d.name = ?", (name,)) if name is not None else ("", ())
        query = (
            f"SELECT s.tokens FROM sequences s JOIN documents d ON d.id = s.document "  # noqa: S608
            f"{condition}"
        )
        for (tokens,) in self.database.stream(query, values):
            yield tokens

    def sequences_of(self, document: int) -> list[int]:
        """Ids of a document's sequences, in order."""
        query = "SELECT id FROM sequences WHERE document = ? ORDER BY id"
        return [row[0] for row in self.database.rows(query, (document,))]

    def read(self, sequences: Sequence[int]) -> dict[int, StoredSequence]:
        """Sequences by id; ids that do not exist are left out."""
        found: dict[int, StoredSequence] = {}
        query = (
            "SELECT s.document, d.name, s.start, s.text, d.metadata, s.example, s.tokens, s.scored "
            "FROM sequences s JOIN documents d ON d.id = s.document WHERE s.id = ?"
        )
        with self.reading():
            for sequence in dict.fromkeys(sequences):
                for row in self.database.rows(query, (sequence,)):
                    document, name, start, text, metadata, example, tokens, scored = row
                    if (
                        not isinstance(tokens, bytes)
                        or len(tokens) % 4
                        or not isinstance(metadata, str)
                    ):
                        raise self.database.damaged("tokens are missing")
                    fields = json.loads(metadata)
                    found[sequence] = StoredSequence(
                        Source(sequence, document, name, start, text, fields, example),
                        tuple(np.frombuffer(tokens, np.int32).tolist()),
                        None if scored is None else tuple(map(tuple, json.loads(scored))),
                    )
        return found

    def matching(self, filter: Filter) -> Ids:
        """Ids of the sequences whose document passes a filter (`selection.corpus.filters`)."""
        condition, values = to_sql(filter, "d.metadata")
        query = (
            f"SELECT s.id FROM sequences s JOIN documents d ON d.id = s.document WHERE "  # noqa: S608
            f"{condition}"
        )
        return np.fromiter((row[0] for row in self.database.rows(query, values)), np.int64)

    def embeddings(self, after: int = 0) -> tuple[Ids, Embeddings]:
        """Ids above `after`, ascending [N], and their vectors [N, D].

        Raises:
            CorpusError: the corpus is damaged.
        """
        ((count,),) = self.database.rows("SELECT count(*) FROM sequences WHERE id > ?", (after,))
        ids_N = np.empty(count, np.int64)
        vectors_ND = np.empty((count, int(self.meta()["dimension"])), np.float32)
        rows = self.database.stream(
            "SELECT id, embedding FROM sequences WHERE id > ? ORDER BY id", (after,)
        )
        for row, (sequence, blob) in enumerate(rows):
            if row >= count or not isinstance(blob, bytes) or len(blob) != vectors_ND[0].nbytes:
                raise self.database.damaged("embeddings are missing")
            ids_N[row] = sequence
            vectors_ND[row] = np.frombuffer(blob, np.float32)
        if not np.isfinite(vectors_ND).all():
            raise self.database.damaged("it contains NaN or infinite embeddings")
        return ids_N, vectors_ND

    def removed(self, since: int) -> Ids:
        """Ids of the sequences removed after that generation."""
        rows = self.database.rows("SELECT sequence FROM removed WHERE generation > ?", (since,))
        return np.fromiter((row[0] for row in rows), np.int64)
