"""IngestQueue: which attached files are to be ingested, for the workers of all servers.

Attaching a file adds a row in the same transaction. A worker locks the row of its file for as long
as it ingests it, and the others skip it; the lock ends with the connection, so the file of a worker
that was killed is free at once. Only workers delete rows: no other change of a corpus waits for an
ingestion.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import LiteralString

from selection.corpus.postgres.connections import pool_of
from selection.corpus.postgres.errors import translated
from selection.errors import CorpusUnavailableError
from selection.location import DatabaseLocation

# Of several rows of one file, which was attached again, the first is first: otherwise two workers
# might ingest it at once, as it was attached before and after.
_TAKE: LiteralString = """
SELECT q.number, q.file, c.name FROM ingest_queue q LEFT JOIN corpora c ON c.id = q.corpus
WHERE NOT q.number = ANY(%(left_out)s::bigint[]) AND NOT EXISTS (
    SELECT FROM ingest_queue earlier WHERE earlier.corpus = q.corpus AND earlier.file = q.file
    AND earlier.number < q.number)
ORDER BY q.number LIMIT 1 FOR UPDATE OF q SKIP LOCKED
"""
_MOVE_BEHIND: LiteralString = "UPDATE ingest_queue SET number = DEFAULT WHERE number = %s"


@dataclass(frozen=True)
class QueuedFile:
    """A file to be ingested.

    Attributes:
        number: its place in the queue.
        file: its id.
        corpus: name of its corpus; None if that was removed.
    """

    number: int
    file: str
    corpus: str | None


class IngestQueue:
    """The queue in one database."""

    def __init__(self, location: DatabaseLocation) -> None:
        self._location = location

    @contextmanager
    def taken(self, left_out: frozenset[int] = frozenset()) -> Iterator[QueuedFile | None]:
        """Take the first file that no other worker has, within the `with` block; it leaves the
        queue unless the block fails. None if there is no such file.

        If the block fails because the database cannot be used, the file goes behind the others: a
        cause that lies in the file must not keep them from being ingested.

        Args:
            left_out: numbers of files that are left to others.

        Raises:
            CorpusError: the database cannot be used.
        """
        pool = pool_of(self._location)
        unavailable: CorpusUnavailableError | None = None
        with (
            translated(self._location, "the queue of files"),
            pool.connection() as connection,
            connection.transaction(),
        ):
            # A file may take longer than a transaction is allowed to do nothing.
            connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            row = connection.execute(_TAKE, {"left_out": [*left_out]}).fetchone()
            if row is None:
                yield None
                return
            number, file, corpus = row
            assert isinstance(number, int)
            try:
                yield QueuedFile(number, str(file), None if corpus is None else str(corpus))
                connection.execute("DELETE FROM ingest_queue WHERE number = %s", (number,))
            except CorpusUnavailableError as problem:
                unavailable = problem
                connection.execute(_MOVE_BEHIND, (number,))
        if unavailable is not None:
            raise unavailable
