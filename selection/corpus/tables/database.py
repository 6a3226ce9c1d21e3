"""Database: the connection to one corpus's SQLite file, its transactions, its metadata, its errors.

Every change is one transaction (WAL, synchronous FULL): once it returns, it survives kill -9 and
power cuts; before that, it leaves no trace. SQLite's errors become CorpusErrors that say what to
do. Use it from one thread at a time.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selection.errors import CorpusError, CorpusNotFoundError

FILE = "corpus.db"


class Database:
    """The file `corpus.db` in a corpus's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        with self.errors():
            self._connection = sqlite3.connect(
                folder / FILE, timeout=30, check_same_thread=False, isolation_level=None
            )
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute("PRAGMA foreign_keys=ON")
        self._inode = self._inode_on_disk()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @property
    def is_in_place(self) -> bool:
        """Whether the file was neither deleted nor replaced since it was opened."""
        return self._inode_on_disk() == self._inode

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """Run one statement and return its rows."""
        with self.errors():
            if not self._connection.in_transaction:
                self._check_in_place()
            return self._connection.execute(query, values).fetchall()

    def stream(self, query: str, values: Sequence[Any] = ()) -> Generator[Any, None, None]:
        """Run one statement and yield its rows as they are read."""
        with self.errors():
            yield from self._connection.execute(query, values)

    def execute(self, query: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run one statement that changes something, within `writing`."""
        return self._connection.execute(query, values)

    def execute_many(self, query: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run one statement per row, within `writing`."""
        self._connection.executemany(query, rows)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction that changes something.

        Raises:
            CorpusError: it could not be written; nothing was changed.
        """
        with self.errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._check_in_place()
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite rolls back by itself when the disk is full.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One consistent state, whatever other processes write in the meantime; within another
        `reading`, the same state.
        """
        if self._connection.in_transaction:
            yield
            return
        with self.errors():
            self._connection.execute("BEGIN")
            try:
                self._check_in_place()
                yield
            finally:
                self._connection.execute("COMMIT")

    def meta(self) -> dict[str, str]:
        """The corpus's metadata, such as `id`, `uuid` and `generation`."""
        return dict(self.rows("SELECT key, value FROM meta"))

    def update_meta(self, changes: Mapping[str, str]) -> None:
        """Add or replace entries of the metadata, within `writing`."""
        self.execute_many("INSERT OR REPLACE INTO meta VALUES (?, ?)", changes.items())

    def advance_generation(self) -> None:
        """Count the generation up by one, within `writing`."""
        self.execute("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'generation'")

    def version(self) -> int:
        """The version of the schema; 0 for a database without one."""
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn SQLite's errors into CorpusErrors that say what to do."""
        try:
            yield
        except sqlite3.ProgrammingError:
            # A bug of ours, not a damaged file.
            raise
        except sqlite3.DatabaseError as problem:
            if getattr(problem, "sqlite_errorcode", 0) & 0xFF in (
                sqlite3.SQLITE_CORRUPT,
                sqlite3.SQLITE_NOTADB,
            ):
                raise self.damaged(str(problem)) from problem
            # The rest of that message quotes the stored text, which not every client may read.
            if "Could not decode" in str(problem):
                raise self.damaged("it contains invalid text") from problem
            raise self.unusable(f"was not changed: {problem}") from problem
        except (UnicodeDecodeError, json.JSONDecodeError) as problem:
            raise self.damaged("it contains invalid text") from problem

    def damaged(self, why: str) -> CorpusError:
        """The error for a damaged corpus."""
        return self.unusable(f"is damaged: {why}; delete its folder and add its documents again")

    def unusable(self, why: str) -> CorpusError:
        """The error for a corpus that cannot be used, with its folder as a note."""
        problem = CorpusError(f"corpus {self.name!r} {why}")
        problem.add_note(f"its folder is {self.folder}")
        return problem

    def _check_in_place(self) -> None:
        """Refuse to use a deleted file: writes to it would be lost, and another corpus may have
        taken its name.
        """
        if not self.is_in_place:
            raise CorpusNotFoundError(f"corpus {self.name!r} was removed in the meantime")

    def _inode_on_disk(self) -> int:
        try:
            return (self.folder / FILE).stat().st_ino
        except OSError:
            return -1
