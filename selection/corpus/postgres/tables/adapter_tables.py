"""AdapterTables: the adapter of a corpus in PostgreSQL: manifests, which are replaced at once, and
files, which manifests name. It knows nothing of what they mean (`selection.corpus.trained`).

Files are stored in pieces, since a value has at most a gigabyte, each in a transaction of its own:
they count for nothing until a manifest names them, and no change of the corpus waits for them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psycopg

from selection.corpus.postgres.database import Database
from selection.corpus.postgres.tables.training_lock import TrainingLock
from selection.errors import CorpusError

_PIECE = 8 << 20


class AdapterTables:
    """The adapter of one corpus.

    Every method raises CorpusError if the database cannot be used.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = TrainingLock(database)

    def version(self, kind: str) -> int | None:
        """A number that changes when a manifest is replaced; None if there is none."""
        rows = self._database.rows(
            "SELECT version FROM adapter_manifests WHERE corpus = %(corpus)s AND kind = %(kind)s",
            kind=kind,
        )
        return rows[0][0] if rows else None

    def manifest(self, kind: str) -> dict[str, Any] | None:
        """A manifest; None if there is none."""
        rows = self._database.rows(
            "SELECT body FROM adapter_manifests WHERE corpus = %(corpus)s AND kind = %(kind)s",
            kind=kind,
        )
        return dict(json.loads(rows[0][0])) if rows else None

    def replace(
        self,
        kind: str,
        body: Mapping[str, Any] | None,
        prefix: str | None = None,
        kept: Collection[str] = (),
    ) -> None:
        """Replace a manifest, and delete the files that it does not name any more.

        Args:
            kind: the manifest.
            body: its content, as JSON; None deletes it.
            prefix: the beginning of the names of its files; None for a manifest without files.
            kept: the files of that prefix that stay.
        """
        self._lock.check()
        with self._database.changing():
            self._database.execute(
                "DELETE FROM adapter_manifests WHERE corpus = %(corpus)s AND kind = %(kind)s",
                kind=kind,
            )
            if body is not None:
                self._database.execute(
                    "INSERT INTO adapter_manifests (corpus, kind, body) "
                    "VALUES (%(corpus)s, %(kind)s, %(body)s)",
                    kind=kind,
                    body=json.dumps(body),
                )
            if prefix is not None:
                self._database.execute(
                    "DELETE FROM adapter_files WHERE corpus = %(corpus)s "
                    "AND starts_with(name, %(prefix)s) AND NOT name = ANY(%(kept)s::text[])",
                    prefix=prefix,
                    kept=[*kept],
                )
        self._lock.saved()

    def write(self, files: Mapping[str, bytes]) -> None:
        """Store new files, or nothing of them."""
        self._lock.check()
        try:
            for name, content in files.items():
                for number, start in enumerate(range(0, max(1, len(content)), _PIECE)):
                    self._database.rows(
                        "INSERT INTO adapter_files (corpus, name, number, content) "
                        "SELECT id, %(name)s, %(number)s, %(content)s FROM corpora "
                        "WHERE id = %(corpus)s RETURNING number",
                        name=name,
                        number=number,
                        content=content[start : start + _PIECE],
                    )
        except BaseException:
            # Within a transaction, its end deletes them.
            with suppress(CorpusError, psycopg.Error):
                self._database.rows(
                    "DELETE FROM adapter_files WHERE corpus = %(corpus)s "
                    "AND name = ANY(%(names)s::text[]) RETURNING number",
                    names=[*files],
                )
            raise

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if it does not exist."""
        rows = self._database.rows(
            "SELECT content FROM adapter_files WHERE corpus = %(corpus)s AND name = %(name)s "
            "ORDER BY number",
            name=name,
        )
        return b"".join(row[0] for row in rows) if rows else None

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the lock of the one process that trains the corpus within the `with` block; False if
        another one has it. Until its end, `write` and `replace` check that it is still held.
        """
        with self._lock.hold() as held:
            yield held
