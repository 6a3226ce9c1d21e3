"""Database: one corpus in a PostgreSQL database: its transactions, its metadata, its errors.

A transaction that changes the corpus locks its row of `corpora` first, so the changes of one corpus
follow one another, whatever process makes them. Every query gets the corpus's number as
`%(corpus)s`. Use it from one thread at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, LiteralString

import psycopg

from selection.corpus.contents import taken
from selection.corpus.postgres.connections import ANSWER_SECONDS, pool_of
from selection.corpus.postgres.errors import translated
from selection.corpus.postgres.outage import BoundedConnection
from selection.errors import CorpusError, CorpusNotFoundError
from selection.location import DatabasePlace

_PRESENT: LiteralString = "SELECT 1 FROM corpora WHERE id = %(corpus)s"
_META: LiteralString = "SELECT generation, meta FROM corpora WHERE id = %(corpus)s"


class Database:
    """The corpus of one name, which need not exist before `create`.

    Raises:
        CorpusError: the database cannot be used.
    """

    def __init__(self, place: DatabasePlace) -> None:
        self.place, self.name = place, place.name
        self._pool = pool_of(place.parent)
        # The connection that is used while it is not None: that of a transaction, or of `pinned`.
        self._held: BoundedConnection | None = None
        self._in_transaction = False
        # The row of `_META` in the state that a transaction reads.
        self._meta_read: tuple[object, ...] | None = None
        self._corpus: int | None = None
        self._find()

    def _find(self) -> None:
        with self.errors(), self._connection(ANSWER_SECONDS) as connection:
            row = connection.execute(
                "SELECT id FROM corpora WHERE name = %s", (self.name,)
            ).fetchone()
        self._corpus = None if row is None else int(str(row[0]))

    @property
    def corpus_id(self) -> int | None:
        """The number of the corpus; None before it was created."""
        return self._corpus

    def create(self, meta: Mapping[str, str]) -> None:
        """Create the corpus with that metadata, unless there is one with metadata."""
        with self.errors(), self._connection() as connection:
            connection.execute(
                "INSERT INTO corpora (name, meta) VALUES (%(name)s, %(meta)s) "
                "ON CONFLICT (name) DO UPDATE SET meta = excluded.meta WHERE corpora.meta = '{}'",
                {"name": self.name, "meta": json.dumps(dict(meta))},
            )
        self._find()

    @property
    def is_in_place(self) -> bool:
        """Whether the corpus was neither removed nor replaced since it was opened; any thread may
        ask.
        """
        # Another thread may ask, so never over a connection that a transaction uses.
        with self.errors(), self._pool.connection(ANSWER_SECONDS) as connection:
            return connection.execute(_PRESENT, {"corpus": self._corpus}).fetchone() is not None

    def rows(self, query: LiteralString, **values: Any) -> list[Any]:
        """Run one statement and return its rows.

        Raises:
            CorpusNotFoundError: the corpus was removed.
        """
        values["corpus"] = self._corpus
        with self.errors(), self._connection() as connection:
            if self._in_transaction:
                return connection.execute(query, values).fetchall()
            with connection.pipeline():
                present = connection.execute(_PRESENT, values)
                result = connection.execute(query, values)
            if present.fetchone() is None:
                raise self._removed()
            return result.fetchall()

    def stream(self, query: LiteralString, **values: Any) -> Iterator[Any]:
        """Run one statement and yield its rows as they are read. Within a transaction, nothing else
        may run until the last one was read.
        """
        values["corpus"] = self._corpus
        with self.errors(), self._connection() as connection, connection.cursor() as cursor:
            try:
                yield from cursor.stream(query, values)
            finally:
                # libpq would return the results of a pipeline that comes next row by row as well.
                with suppress(psycopg.Error):
                    connection.execute("")

    def copy(self, query: LiteralString, **values: Any) -> Iterator[bytes]:
        """Yield what a COPY sends, within `reading`."""
        values["corpus"] = self._corpus
        with (
            self.errors(),
            self._connection() as connection,
            connection.cursor() as cursor,
            cursor.copy(query, values) as copy,
        ):
            yield from map(bytes, copy)

    def execute(self, query: LiteralString, **values: Any) -> int:
        """Run one statement that changes something, within `writing`; returns how many rows."""
        assert self._held is not None
        return self._held.execute(query, {**values, "corpus": self._corpus}).rowcount

    def execute_many(self, query: LiteralString, rows: Iterable[Mapping[str, Any]]) -> None:
        """Run one statement per row, within `writing` or `pinned`."""
        assert self._held is not None
        with self._held.cursor() as cursor:
            cursor.executemany(query, [{**row, "corpus": self._corpus} for row in rows])

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction that changes the corpus.

        Raises:
            CorpusError: it could not be written; nothing was changed.
            CorpusNotFoundError: the corpus was removed.
        """
        assert not self._in_transaction
        with self._transaction("BEGIN", "SELECT id FROM corpora WHERE id = %(corpus)s FOR UPDATE"):
            yield

    @contextmanager
    def changing(self) -> Iterator[None]:
        """As `writing`, or a part of the transaction that is under way."""
        if self._in_transaction:
            yield
            return
        with self.writing():
            yield

    @contextmanager
    def creating(self) -> Iterator[None]:
        """One transaction that creates the corpus, without metadata at first.

        Raises:
            CorpusError: there is one of that name, or it could not be written; nothing was changed.
        """
        assert not self._in_transaction
        insert: LiteralString = (
            "INSERT INTO corpora (name) VALUES (%(name)s) ON CONFLICT DO NOTHING RETURNING id"
        )
        before = self._corpus
        try:
            with self._transaction("BEGIN", insert, self._taken) as row:
                self._corpus = int(str(row[0]))
                yield
        except BaseException:
            self._corpus = before
            raise

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One consistent state, whatever others write in the meantime; within another `reading`,
        the same state.
        """
        if self._in_transaction:
            yield
            return
        begin: LiteralString = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
        with self._transaction(begin, _META, answer_seconds=ANSWER_SECONDS) as self._meta_read:
            try:
                yield
            finally:
                self._meta_read = None

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Use one connection within the `with` block, so that its temporary tables are there."""
        assert self._held is None
        with self.errors(), self._pool.connection() as connection:
            self._held = connection
            try:
                yield
            finally:
                self._held = None

    @contextmanager
    def _transaction(
        self,
        begin: LiteralString,
        first: LiteralString,
        absent: Callable[[], CorpusError] | None = None,
        answer_seconds: float | None = None,
    ) -> Iterator[tuple[object, ...]]:
        """A transaction, with the row of its first statement, which the server has that long to
        answer; without a row, `absent` is raised, by default that the corpus was removed.
        """
        before = self._held
        with self.errors(), self._connection() as connection:
            self._held, self._in_transaction = connection, True
            try:
                with connection.answering(answer_seconds), connection.pipeline():
                    connection.execute(begin)
                    present = connection.execute(first, {"corpus": self._corpus, "name": self.name})
                row = present.fetchone()
                if row is None:
                    raise (absent or self._removed)()
                yield row
                connection.execute("COMMIT")
            except BaseException:
                # The server rolls back what a lost connection has begun.
                with suppress(psycopg.Error):
                    connection.execute("ROLLBACK")
                raise
            finally:
                self._held, self._in_transaction = before, False

    def meta(self) -> dict[str, str]:
        """The corpus's metadata, such as `id`, `uuid` and `generation`."""
        row = self._meta_read
        if row is None:
            with self.errors(), self._connection(ANSWER_SECONDS) as connection:
                row = connection.execute(_META, {"corpus": self._corpus}).fetchone()
        if row is None:
            raise self._removed()
        generation, meta = row
        assert isinstance(meta, dict)
        return {**meta, "generation": str(generation)}

    def update_meta(self, changes: Mapping[str, str]) -> None:
        """Add or replace entries of the metadata, within `writing`."""
        self.execute(
            "UPDATE corpora SET meta = meta || %(changes)s::jsonb WHERE id = %(corpus)s",
            changes=json.dumps(dict(changes)),
        )

    def advance_generation(self) -> int:
        """Count the generation up by one, within `writing`; returns it."""
        ((generation,),) = self.rows(
            "UPDATE corpora SET generation = generation + 1 WHERE id = %(corpus)s "
            "RETURNING generation"
        )
        return int(generation)

    def recount_bytes(self) -> None:
        """Count the bytes of all sequences again, within `writing`."""
        self.execute(
            "UPDATE corpora SET bytes = (SELECT coalesce(sum(octet_length(text) "
            "+ octet_length(tokens) + 4 * (corpora.meta ->> 'dimension')::bigint), 0) "
            "FROM sequences WHERE corpus = %(corpus)s) WHERE id = %(corpus)s"
        )

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn PostgreSQL's errors into CorpusErrors that say what to do."""
        with translated(self.place.parent, f"corpus {self.name!r}"):
            yield

    def damaged(self, why: str) -> CorpusError:
        """The error for a damaged corpus."""
        return self.unusable(f"is damaged: {why}; remove it and add its documents again")

    def unusable(self, why: str) -> CorpusError:
        """The error for a corpus that cannot be used, with its database as a note."""
        problem = CorpusError(f"corpus {self.name!r} {why}")
        problem.add_note(f"its database is {self.place.parent}")
        return problem

    def _taken(self) -> CorpusError:
        return taken(self.name)

    def _removed(self) -> CorpusNotFoundError:
        return CorpusNotFoundError(f"corpus {self.name!r} was removed in the meantime")

    @contextmanager
    def _connection(self, answer_seconds: float | None = None) -> Iterator[BoundedConnection]:
        if self._held is not None:
            yield self._held
            return
        with self._pool.connection(answer_seconds) as connection:
            yield connection
