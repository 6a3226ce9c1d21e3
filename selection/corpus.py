"""Corpus: documents, their token sequences and embeddings, durable in one folder.

SQLite (WAL, synchronous FULL) is the truth; the FAISS index beside it is derived, and rebuilt when it is
missing, stale or damaged. A document is added in one transaction: after it returns, the document survives
kill -9 and power cuts; before that, it leaves no trace. A corpus remembers the embedder and the tokenizer
it was built with and refuses another.

It knows nothing of files on disk (see `documents`) or of what is chosen from it (see `selector`).
One flat index, rebuilt whole after a change: right up to some 100,000 sequences.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selection.embedding import Embedder, Embeddings
from selection.index import Ids, Index

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS documents (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, sha256 TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sequences (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    document INTEGER NOT NULL REFERENCES documents(id) ON DELETE CASCADE,
    start INTEGER NOT NULL, text TEXT NOT NULL, tokens BLOB NOT NULL, embedding BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS sequences_by_document ON sequences(document);
"""
_META = ("embedder", "revision", "dimension", "tokenizer", "generation")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class CorpusError(ValueError):
    """A corpus that cannot be used as asked; the message says what to do."""


class CorpusNotFoundError(CorpusError):
    """No corpus of that name."""


@dataclass(frozen=True)
class Piece:
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


class Corpus:
    """One folder of documents. Open it with `create` or `open`; use it from one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self._db = sqlite3.connect(folder / "corpus.db", timeout=30, check_same_thread=False, isolation_level=None)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA foreign_keys=ON")
        except sqlite3.DatabaseError as problem:
            raise CorpusError(f"corpus {self.name!r} is damaged: {problem}; delete {folder} and add again") from problem
        self._index: tuple[int, Index] | None = None

    @classmethod
    def create(cls, root: Path, name: str, embedder: Embedder, tokenizer: str) -> Corpus:
        """Make an empty corpus, or open the one that is there if it was made with the same embedder and tokenizer.

        Args:
            root: the folder of all corpora.
            name: letters, digits, '.', '_' and '-'; 64 at most.
            embedder: the embedder whose vectors it will hold.
            tokenizer: an identity of the tokenizer, such as a digest of its file.

        Raises:
            CorpusError: a name that is not one, or a corpus made with another embedder or tokenizer.
        """
        if not _NAME.fullmatch(name):
            raise CorpusError(f"{name!r} is not a corpus name: use letters, digits, '.', '_' and '-', 64 at most")
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        corpus = cls(folder)
        identity = {**_identity(embedder), "tokenizer": tokenizer, "generation": "0"}
        try:
            corpus._db.executescript(_SCHEMA)
            with corpus._writing():
                corpus._db.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", identity.items())
            corpus.check(embedder, tokenizer)
        except sqlite3.DatabaseError as problem:
            corpus.close()
            raise CorpusError(f"corpus {name!r} is damaged: {problem}; delete {folder} and add again") from problem
        except CorpusError:
            corpus.close()
            raise
        return corpus

    @classmethod
    def open(cls, root: Path, name: str) -> Corpus:
        """Open the corpus of that name.

        Raises:
            CorpusNotFoundError: there is none.
            CorpusError: its database is damaged or was never finished.
        """
        folder = root / name
        if not _NAME.fullmatch(name) or not (folder / "corpus.db").is_file():
            known = ", ".join(list_corpora(root)) or "none yet"
            raise CorpusNotFoundError(
                f"there is no corpus {name!r} (there are: {known}); `mayfly corpus add` makes one"
            )
        corpus = cls(folder)
        try:
            finished = corpus._db.execute("SELECT count(*) FROM meta").fetchone()[0] == len(_META)
        except sqlite3.DatabaseError:
            finished = False
        if not finished:
            corpus.close()
            raise CorpusError(
                f"corpus {name!r} is damaged, or making it was broken off: add documents again, or delete {folder}"
            )
        return corpus

    def close(self) -> None:
        """Close the database; the corpus stays on disk."""
        self._db.close()

    def remove(self) -> None:
        """Delete the corpus and everything in it from disk."""
        self.close()
        shutil.rmtree(self.folder)

    def check(self, embedder: Embedder, tokenizer: str | None = None) -> None:
        """Refuse an embedder or tokenizer other than the one this corpus was made with.

        Raises:
            CorpusError: naming both, and what to do.
        """
        mine = dict(self._db.execute("SELECT key, value FROM meta"))
        for key, theirs in _identity(embedder).items():
            if mine[key] != theirs:
                raise CorpusError(
                    f"corpus {self.name!r} was made with {key} {mine[key]!r}, not {theirs!r}: "
                    f"serve it with that embedder, or remove it and add its documents again"
                )
        if tokenizer is not None:
            self.check_tokenizer(tokenizer)

    def check_tokenizer(self, tokenizer: str) -> None:
        """Refuse a tokenizer other than the one this corpus was made with, as `check` does."""
        mine = self._db.execute("SELECT value FROM meta WHERE key = 'tokenizer'").fetchone()[0]
        if mine != tokenizer:
            raise CorpusError(
                f"corpus {self.name!r} holds the tokens of another model's tokenizer: "
                "serve that model, or add the documents to a new corpus with --model"
            )

    def add(self, name: str, sha256: str, pieces: Sequence[Piece], embeddings_ND: Embeddings) -> int:
        """Add a document, replacing the one of the same name; returns its id. Durable once it returns.

        Args:
            name: the document's name, unique in the corpus.
            sha256: digest of its content, so that `has` can tell a change.
            pieces: its sequences, in order.
            embeddings_ND: one unit vector a piece.
        """
        assert len(pieces) == len(embeddings_ND)
        with self._writing():
            self._db.execute("DELETE FROM documents WHERE name = ?", (name,))
            document = self._db.execute("INSERT INTO documents (name, sha256) VALUES (?, ?)", (name, sha256)).lastrowid
            assert document is not None
            self._db.executemany(
                "INSERT INTO sequences (document, start, text, tokens, embedding) VALUES (?, ?, ?, ?, ?)",
                [
                    (document, piece.start, piece.text, np.array(piece.tokens, np.int32).tobytes(), row.tobytes())
                    for piece, row in zip(pieces, embeddings_ND.astype(np.float32), strict=True)
                ],
            )
            self._advance()
        return document

    def delete(self, name: str) -> bool:
        """Delete a document by name; False if there is none."""
        with self._writing():
            gone = self._db.execute("DELETE FROM documents WHERE name = ?", (name,)).rowcount > 0
            if gone:
                self._advance()
        return gone

    def has(self, name: str, sha256: str) -> bool:
        """Whether this very document is there already, so that adding can resume."""
        row = self._db.execute("SELECT sha256 FROM documents WHERE name = ?", (name,)).fetchone()
        return row is not None and row[0] == sha256

    def counts(self) -> tuple[int, int]:
        """Documents and sequences."""
        documents, sequences = self._db.execute(
            "SELECT (SELECT count(*) FROM documents), (SELECT count(*) FROM sequences)"
        ).fetchone()
        return documents, sequences

    def documents(self) -> list[tuple[int, str, int]]:
        """Id, name and number of sequences of every document, by name."""
        return self._db.execute(
            "SELECT d.id, d.name, count(s.id) FROM documents d LEFT JOIN sequences s ON s.document = d.id "
            "GROUP BY d.id ORDER BY d.name"
        ).fetchall()

    @property
    def embedder(self) -> str:
        """Name of the embedder it was made with."""
        return str(self._db.execute("SELECT value FROM meta WHERE key = 'embedder'").fetchone()[0])

    def nearest(self, targets_TD: Embeddings, k: int) -> tuple[Ids, Embeddings]:
        """The k sequences of largest absolute similarity to any target: ids [K], embeddings [K, D]."""
        return self._current_index().nearest(targets_TD, k)

    def read(self, sequences: Sequence[int]) -> dict[int, tuple[Source, tuple[int, ...]]]:
        """Provenance and tokens of sequences by id; one deleted meanwhile is left out."""
        found: dict[int, tuple[Source, tuple[int, ...]]] = {}
        for sequence in set(sequences):
            row = self._db.execute(
                "SELECT s.document, d.name, s.start, s.text, s.tokens FROM sequences s "
                "JOIN documents d ON d.id = s.document WHERE s.id = ?",
                (sequence,),
            ).fetchone()
            if row is not None:
                document, name, start, text, tokens = row
                ids = tuple(np.frombuffer(tokens, np.int32).tolist())
                found[sequence] = (Source(sequence, document, name, start, text), ids)
        return found

    def build_index(self) -> None:
        """Bring the index on disk up to date with the documents, if it is not."""
        self._current_index()

    def _current_index(self) -> Index:
        generation = self._generation()
        if self._index is None or self._index[0] != generation:
            index = Index.load(self.folder, generation)
            if index is None:
                with self._reading():
                    generation = self._generation()
                    rows = self._db.execute("SELECT id, embedding FROM sequences ORDER BY id").fetchall()
                dimension = int(self._db.execute("SELECT value FROM meta WHERE key = 'dimension'").fetchone()[0])
                vectors = np.frombuffer(b"".join(row[1] for row in rows), np.float32).reshape(-1, dimension)
                index = Index.build(np.array([row[0] for row in rows], np.int64), vectors)
                index.save(self.folder, generation)
            self._index = (generation, index)
        return self._index[1]

    def _generation(self) -> int:
        return int(self._db.execute("SELECT value FROM meta WHERE key = 'generation'").fetchone()[0])

    def _advance(self) -> None:
        self._db.execute("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'generation'")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("COMMIT")


def list_corpora(root: Path) -> list[str]:
    """Names of the corpora under a folder, sorted."""
    return sorted(path.parent.name for path in root.glob("*/corpus.db"))


def _identity(embedder: Embedder) -> dict[str, str]:
    return {"embedder": embedder.name, "revision": embedder.revision, "dimension": str(embedder.dimension)}
