"""Store: the truth of one corpus, in SQLite: documents, their token sequences, their embeddings.

Every change is one transaction (WAL, synchronous FULL): after it returns, it survives kill -9 and
power cuts; before that, it leaves no trace. Each change counts the generation up, and what it
removed is remembered by number, so that a reader can follow from any generation to the latest.
Numbers are never given twice.

It knows nothing of embedders or indexes (see `corpus`). Use it from one thread at a time.

Shapes: N sequences, D embedding dimensions.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from selection.corpus.attachments import Attachments, DetachedError
from selection.corpus.batches import Batches
from selection.corpus.filters import Filter, Scalar, to_sql
from selection.corpus.positions import new_id
from selection.corpus.replication import Copies
from selection.corpus.schema import ADDITIONS, TABLES, VERSION
from selection.errors import CorpusError as CorpusError
from selection.errors import CorpusNotFoundError as CorpusNotFoundError

Ids: TypeAlias = npt.NDArray[np.int64]
Embeddings: TypeAlias = npt.NDArray[np.float32]

_META = {"id", "created", "embedder", "revision", "dimension", "tokenizer", "generation", "uuid"}


@dataclass(frozen=True)
class Chunk:
    """A piece of a document: its text, where it starts there (characters), and its tokens."""

    start: int
    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """Where a chosen sequence comes from."""

    sequence: int
    document: int
    name: str
    start: int
    text: str
    metadata: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A document as a corpus lists it; `added` in seconds since 1970, UTC."""

    id: int
    name: str
    sequences: int
    metadata: Mapping[str, Scalar]
    added: int


class Store:
    """One database, `corpus.db` in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        with self._errors():
            self._db = sqlite3.connect(
                folder / "corpus.db", timeout=30, check_same_thread=False, isolation_level=None
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA foreign_keys=ON")
        self.attachments = Attachments(self._ask, self.writing, self._forget)
        self.batches = Batches(self._ask, self.writing, self.attachments)
        self.copies = Copies(
            self._ask,
            self.reading,
            self.writing,
            lambda name: self._delete("name", name),
            self._advance,
        )
        self._inode = self._inode_on_disk()

    def initialise(self, meta: Mapping[str, str]) -> None:
        """Make the tables and remember `meta`, unless that was done before; the id is given for
        good.
        """
        with self.writing():
            if (
                self._version() == 0
                and not self._db.execute("SELECT 1 FROM sqlite_master").fetchone()
            ):
                for statement in (*TABLES, *ADDITIONS):
                    self._db.execute(statement)
                identity, created = new_id("vs_")
                meta = {
                    "id": identity,
                    "created": str(created),
                    **meta,
                    "generation": "0",
                    "uuid": uuid.uuid4().hex,
                }
                self._db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
                self._db.execute(f"PRAGMA user_version = {VERSION}")

    def check_version(self) -> None:
        """Refuse a database that is damaged, was never finished, or is another version's; add what
        is new to it.
        """
        with self._errors():
            usable = self._version() == VERSION and self.meta().keys() >= _META
        if not usable:
            raise self._unusable(
                "is damaged, was made by another version of Mayfly, or making it was broken off: "
                "delete its folder and add its documents again"
            )
        if (
            len(self._ask("SELECT 1 FROM sqlite_master WHERE name IN ('detached', 'batch_files')"))
            < 2
        ):
            with self.writing():
                for statement in ADDITIONS:
                    self._db.execute(statement)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def meta(self) -> dict[str, str]:
        """What the corpus remembers of itself; `id`, `generation` and `uuid` among it."""
        return dict(self._ask("SELECT key, value FROM meta"))

    def remember(self, changes: Mapping[str, str]) -> None:
        """Change what the corpus remembers of itself."""
        with self.writing():
            self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", changes.items())

    def add(
        self,
        name: str,
        sha256: str,
        pieces: Sequence[Chunk],
        embeddings_ND: Embeddings,
        metadata: Mapping[str, Scalar],
        made_for: str,
        file: str | None = None,
    ) -> int:
        """Add a document, replacing the one of the same name; returns its id. `made_for` is the
        uuid of its vectors.
        """
        # SQLite's JSON has no NaN: every filter would fail.
        described = json.dumps(dict(metadata), allow_nan=False)
        with self.writing():
            meta = self.meta()
            if meta["uuid"] != made_for:
                raise CorpusError(
                    f"corpus {self.name!r} was embedded anew meanwhile: add {name!r} again"
                )
            if file is not None and not self.attachments.reading(file):
                raise DetachedError(f"{file} is not being read into corpus {self.name!r} any more")
            assert embeddings_ND.shape == (len(pieces), int(meta["dimension"]))
            self._delete("name", name)
            document = self._db.execute(
                "INSERT INTO documents (name, sha256, metadata, file) VALUES (?, ?, ?, ?)",
                (name, sha256, described, file),
            ).lastrowid
            assert document is not None
            self._db.executemany(
                "INSERT INTO sequences (document, start, text, tokens, embedding) VALUES (?, ?, ?, ?, ?)",
                [
                    (
                        document,
                        piece.start,
                        piece.text,
                        np.array(piece.tokens, np.int32).tobytes(),
                        row.tobytes(),
                    )
                    for piece, row in zip(pieces, embeddings_ND.astype(np.float32), strict=True)
                ],
            )
            self._advance()
        return document

    def delete(self, document: str | int) -> bool:
        """Delete a document by name or id; False if there is none."""
        with self.writing():
            gone = self._delete("name" if isinstance(document, str) else "id", document)
            if gone:
                self._advance()
        return gone

    def has(self, name: str, sha256: str) -> bool:
        """Whether this very document is there."""
        return self._ask("SELECT sha256 FROM documents WHERE name = ?", (name,)) == [(sha256,)]

    def holds(self, name: str) -> bool:
        """Whether a document of that name is there."""
        return bool(self._ask("SELECT 1 FROM documents WHERE name = ?", (name,)))

    def names(self, file: str) -> list[str]:
        """The names of the documents that belong to an attachment."""
        return [row[0] for row in self._ask("SELECT name FROM documents WHERE file = ?", (file,))]

    def counts(self) -> tuple[int, int]:
        """Documents and sequences."""
        ((documents, sequences),) = self._ask(
            "SELECT (SELECT count(*) FROM documents), (SELECT count(*) FROM sequences)"
        )
        return documents, sequences

    def documents(self) -> list[Entry]:
        """Every document, by name."""
        rows = self._ask(
            "SELECT d.id, d.name, (SELECT count(*) FROM sequences s WHERE s.document = d.id), d.metadata, d.added "
            "FROM documents d ORDER BY d.name"
        )
        with self._errors():
            return [
                Entry(i, name, count, json.loads(metadata), added)
                for i, name, count, metadata, added in rows
            ]

    def token_sequences(self, name: str | None = None) -> Iterator[bytes]:
        """The tokens of every sequence, or of one document's, int32, as bytes."""
        only, values = ("WHERE d.name = ?", (name,)) if name is not None else ("", ())
        query = f"SELECT s.tokens FROM sequences s JOIN documents d ON d.id = s.document {only}"  # noqa: S608
        with self._errors():
            for (tokens,) in self._db.execute(query, values):
                yield tokens

    def read(self, sequences: Sequence[int]) -> dict[int, tuple[Source, tuple[int, ...]]]:
        """Provenance and tokens of sequences by id; one that is not there is left out."""
        found: dict[int, tuple[Source, tuple[int, ...]]] = {}
        with self.reading():
            for sequence in set(sequences):
                row = self._db.execute(
                    "SELECT s.document, d.name, s.start, s.text, s.tokens, d.metadata FROM sequences s "
                    "JOIN documents d ON d.id = s.document WHERE s.id = ?",
                    (sequence,),
                ).fetchone()
                if row is not None:
                    document, name, start, text, tokens, metadata = row
                    if (
                        not isinstance(tokens, bytes)
                        or len(tokens) % 4
                        or not isinstance(metadata, str)
                    ):
                        raise self.damaged("it lacks tokens")
                    ids = tuple(np.frombuffer(tokens, np.int32).tolist())
                    found[sequence] = (
                        Source(sequence, document, name, start, text, json.loads(metadata)),
                        ids,
                    )
        return found

    def matching(self, only: Filter) -> Ids:
        """Sequences of the documents whose metadata pass a filter (`selection.corpus.filters`)."""
        condition, values = to_sql(only, "d.metadata")
        query = (
            f"SELECT s.id FROM sequences s JOIN documents d ON d.id = s.document WHERE {condition}"  # noqa: S608
        )
        return np.fromiter((row[0] for row in self._ask(query, values)), np.int64)

    def embeddings(self, after: int = 0) -> tuple[Ids, Embeddings]:
        """Ids above `after`, ascending [N], and their vectors [N, D]."""
        ((count,),) = self._ask("SELECT count(*) FROM sequences WHERE id > ?", (after,))
        ids_N = np.empty(count, np.int64)
        vectors_ND = np.empty((count, int(self.meta()["dimension"])), np.float32)
        with self._errors():
            rows = self._db.execute(
                "SELECT id, embedding FROM sequences WHERE id > ? ORDER BY id", (after,)
            )
            for row, (sequence, blob) in enumerate(rows):
                ids_N[row] = sequence
                if row >= count or not isinstance(blob, bytes) or len(blob) != vectors_ND[0].nbytes:
                    raise self.damaged("it lacks embeddings")
                vectors_ND[row] = np.frombuffer(blob, np.float32)
        if not np.isfinite(vectors_ND).all():
            raise self.damaged("it contains NaN or infinite embeddings")
        return ids_N, vectors_ND

    def removed(self, since: int) -> Ids:
        """Sequences removed after that generation."""
        rows = self._ask("SELECT sequence FROM removed WHERE generation > ?", (since,))
        return np.fromiter((row[0] for row in rows), np.int64)

    def begin_reembedding(self, identity: Mapping[str, str]) -> None:
        """Go on replacing embeddings where it was broken off, if it was for the same embedder; else
        begin anew.
        """
        with self.writing():
            if self.meta().get("reembedding") != json.dumps(identity):
                self._db.execute("DELETE FROM reembedded")
                self._db.execute(
                    "INSERT OR REPLACE INTO meta VALUES ('reembedding', ?)", (json.dumps(identity),)
                )

    def reembedded(self, identity: Mapping[str, str]) -> int:
        """How many embeddings were replaced before it was broken off, if that was for the same
        embedder.
        """
        if self.meta().get("reembedding") != json.dumps(identity):
            return 0
        ((count,),) = self._ask("SELECT count(*) FROM reembedded")
        return int(count)

    def not_reembedded(self, limit: int) -> list[tuple[int, str]]:
        """Ids, ascending, and texts of the first sequences that wait for their new embedding."""
        return self._ask(
            "SELECT id, text FROM sequences WHERE id > (SELECT coalesce(max(sequence), 0) FROM reembedded) "
            "ORDER BY id LIMIT ?",
            (limit,),
        )

    def keep_reembedded(
        self, identity: Mapping[str, str], ids: Sequence[int], embeddings_ND: Embeddings
    ) -> None:
        """Put new embeddings of the first that wait aside, until all are there."""
        rows = [
            (i, row.tobytes()) for i, row in zip(ids, embeddings_ND.astype(np.float32), strict=True)
        ]
        with self.writing():
            self._check_reembedding(identity)
            self._db.executemany("INSERT OR REPLACE INTO reembedded VALUES (?, ?)", rows)

    def finish_reembedding(self, identity: Mapping[str, str]) -> bool:
        """Replace all embeddings at once; False, and nothing done, where some are missing."""
        with self.writing():
            self._check_reembedding(identity)
            if self.not_reembedded(1):
                return False
            self._db.execute(
                "UPDATE sequences SET embedding = (SELECT embedding FROM reembedded r WHERE r.sequence = sequences.id)"
            )
            self._db.execute("DELETE FROM reembedded")
            self._db.execute("DELETE FROM meta WHERE key = 'reembedding'")
            # Whatever came of the old embeddings is nobody's now.
            new = {**identity, "uuid": uuid.uuid4().hex}
            self._db.executemany(
                "UPDATE meta SET value = ? WHERE key = ?", [(v, k) for k, v in new.items()]
            )
            self._advance()
        return True

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction that changes something."""
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._check_in_place()
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has rolled back by itself
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One consistent state, whatever others write meanwhile."""
        with self._errors():
            self._db.execute("BEGIN")
            try:
                self._check_in_place()
                yield
            finally:
                self._db.execute("COMMIT")

    def _delete(self, column: str, value: str | int) -> bool:
        # Compared as text, which SQLite makes a number of: one that is too large for it is only not
        # found.
        query = f"SELECT id FROM documents WHERE {column} = ?"  # noqa: S608
        row = self._db.execute(query, (str(value),)).fetchone()
        if row is None:
            return False
        generation = int(self.meta()["generation"]) + 1
        self._db.execute(
            "INSERT INTO removed SELECT id, ? FROM sequences WHERE document = ?",
            (generation, row[0]),
        )
        self._db.execute("DELETE FROM documents WHERE id = ?", row)
        return True

    def _forget(self, file: str) -> None:
        documents = self._ask("SELECT id FROM documents WHERE file = ?", (file,))
        for (document,) in documents:
            self._delete("id", document)
        if documents:
            self._advance()

    def _advance(self) -> None:
        self._db.execute(
            "UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'generation'"
        )

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _check_reembedding(self, identity: Mapping[str, str]) -> None:
        if self.meta().get("reembedding") != json.dumps(identity):
            raise CorpusError(
                f"corpus {self.name!r} is, or was meanwhile, embedded anew by another process"
            )

    def _check_in_place(self) -> None:
        """What is written to a deleted file is lost, and who removes a corpus may make another in
        its place.
        """
        if self._inode_on_disk() != self._inode:
            raise CorpusNotFoundError(f"corpus {self.name!r} was removed meanwhile")

    def _inode_on_disk(self) -> int:
        try:
            return (self.folder / "corpus.db").stat().st_ino
        except OSError:
            return -1

    def _ask(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._errors():
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's complaints in words that say what to do."""
        try:
            yield
        except sqlite3.ProgrammingError:  # ours
            raise
        except sqlite3.DatabaseError as problem:
            if getattr(problem, "sqlite_errorcode", 0) & 0xFF in (
                sqlite3.SQLITE_CORRUPT,
                sqlite3.SQLITE_NOTADB,
            ):
                raise self.damaged(str(problem)) from problem
            # And then what it holds, which is not for everyone.
            if "Could not decode" in str(problem):
                raise self.damaged("it holds text that is none") from problem
            raise self._unusable(f"is as it was: {problem}") from problem
        except (UnicodeDecodeError, json.JSONDecodeError) as problem:
            raise self.damaged("it holds text that is none") from problem

    def damaged(self, why: str) -> CorpusError:
        """The error that says so."""
        return self._unusable(f"is damaged: {why}; delete its folder and add its documents again")

    def _unusable(self, why: str) -> CorpusError:
        problem = CorpusError(f"corpus {self.name!r} {why}")
        problem.add_note(f"its folder is {self.folder}")
        return problem
