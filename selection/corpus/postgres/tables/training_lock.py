"""TrainingLock: the lock of the one process that trains a corpus in PostgreSQL.

It ends with its connection, which a restart of the server, for example, ends while a training goes
on. So it is checked before anything is saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, LiteralString

import psycopg

from selection.corpus.postgres.connections import ANSWER_SECONDS, pool_of
from selection.corpus.postgres.database import Database
from selection.corpus.postgres.outage import BoundedConnection

_KEY: LiteralString = "hashtextextended('adapter of corpus ' || %(id)s, 0)"


class TrainingLock:
    """The lock of one corpus. Use it from one thread at a time.

    Every method raises CorpusError if the database cannot be used.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._is_held = False
        # The connection that has the lock; none while it has to be taken again.
        self._connection: BoundedConnection | None = None
        # What gives that connection back.
        self._stack = ExitStack()
        # The manifests as they were when this process saved last.
        self._known: list[Any] = []

    @contextmanager
    def hold(self) -> Iterator[bool]:
        """Hold the lock within the `with` block; False if another process has it."""
        self._is_held = self._take()
        try:
            if self._is_held:
                self.saved()
            yield self._is_held
        finally:
            self._is_held = False
            self._give_back()

    def check(self) -> None:
        """If the lock is held, make sure of it, before something is saved: take it again if its
        connection was lost.

        Raises:
            CorpusError: another process has trained the corpus in the meantime, or does so now.
        """
        if not self._is_held:
            return
        if self._connection is not None and not _is_alive(self._connection):
            self._give_back()
        if (self._connection is None and not self._take()) or self._manifests() != self._known:
            raise self._database.unusable(
                "lost the lock of its training with the connection to its database, and another "
                "process may have trained it since: nothing was saved; train it again once no "
                "other process does"
            )

    def saved(self) -> None:
        """Remember what this process has saved, if it holds the lock."""
        if self._is_held:
            self._known = self._manifests()

    def _take(self) -> bool:
        values = {"id": self._database.corpus_id}
        with self._database.errors(), ExitStack() as stack:
            pool = pool_of(self._database.place.parent)
            connection = stack.enter_context(pool.connection())
            query: LiteralString = f"SELECT pg_try_advisory_lock({_KEY})"
            if connection.execute(query, values).fetchone() != (True,):
                return False
            self._connection, self._stack = connection, stack.pop_all()
        return True

    def _give_back(self) -> None:
        if self._connection is None:
            return
        # Without the connection the lock has ended, too.
        with suppress(psycopg.Error):
            unlock: LiteralString = f"SELECT pg_advisory_unlock({_KEY})"
            self._connection.execute(unlock, {"id": self._database.corpus_id})
        self._connection = None
        self._stack.close()

    def _manifests(self) -> list[Any]:
        """The versions of what trainings save."""
        return self._database.rows(
            "SELECT kind, version FROM adapter_manifests WHERE corpus = %(corpus)s "
            "AND kind <> 'record' ORDER BY kind"
        )


def _is_alive(connection: BoundedConnection) -> bool:
    try:
        with connection.answering(ANSWER_SECONDS):
            connection.execute("SELECT 1")
    except psycopg.Error:
        return False
    return True
