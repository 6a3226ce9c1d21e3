"""Attachments: the files of a corpus and how far each has been ingested; a table of its database.

A file is attached first and ingested afterwards, so its status is as durable as its documents: what
a kill interrupted is found here as "in_progress" and ingested again. Documents refer to their
attachment; they are written only while it is in progress, and are deleted with it in one
transaction. A document that was added otherwise is listed as a file of its own, `doc-<its id>`,
with status "completed".

A detached file leaves its position behind, for cursors that refer to it; attached again, it takes
the same position.

This module does not depend on where files are stored (`selection.library.uploads`), what ingests
them (`ingest_worker`), or which were attached together (`file_batches`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from selection.corpus.positions import Position
from selection.corpus.tables.attachment import (
    DOCUMENT_ID,
    FILE_ID,
    STATUSES,
    Attachment,
    AttachmentStatuses,
    attachment_from_row,
)
from selection.corpus.tables.database import Database
from selection.corpus.tables.deletion import delete_of_file

TABLE = """
CREATE TABLE attachments (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, attributes TEXT NOT NULL,
    max_length INTEGER, overlap INTEGER, batch TEXT, status TEXT NOT NULL, code TEXT, message TEXT,
    attached INTEGER NOT NULL DEFAULT (unixepoch()))
"""
# Corpora of earlier versions lack this table. Triggers fill it, so that it is complete whichever
# version of Mayfly deletes something.
POSITIONS = (
    "CREATE TABLE IF NOT EXISTS detached (added INTEGER NOT NULL, kind INTEGER NOT NULL, number "
    "INTEGER NOT NULL, "
    "id TEXT NOT NULL, PRIMARY KEY (kind, number)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS detached_by_id ON detached(id)",
    "CREATE TRIGGER IF NOT EXISTS attachment_goes AFTER DELETE ON attachments BEGIN "
    "INSERT INTO detached VALUES (old.attached, 0, old.rowid, old.id) "
    "ON CONFLICT DO UPDATE SET added = excluded.added, id = excluded.id; END",
    "CREATE TRIGGER IF NOT EXISTS document_goes AFTER DELETE ON documents WHEN old.file IS NULL "
    "BEGIN "
    "INSERT INTO detached VALUES (old.added, 1, old.id, 'doc-' || old.id) ON CONFLICT DO NOTHING; "
    "END",
)
_ALL = """
SELECT id, status, attached AS added, 0 AS kind, rowid AS number FROM attachments
UNION ALL SELECT 'doc-' || id, 'completed', added, 1, id FROM documents WHERE file IS NULL
"""


class Attachments(AttachmentStatuses[Database]):
    """The files of one corpus."""

    def attach(self, files: Sequence[Attachment]) -> None:
        """Attach files, or attach them again: they are in progress. A file keeps the position of
        its first time in the list.

        With a new position, a client that attaches again each file that it lists would never reach
        the end of the list.
        """
        with self._database.writing():
            for f in files:
                self._database.execute(
                    "INSERT INTO attachments "
                    "(rowid, attached, id, name, attributes, max_length, overlap, batch, status) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'in_progress') ON CONFLICT (id) DO UPDATE SET "
                    "name = excluded.name, attributes = excluded.attributes, max_length = "
                    "excluded.max_length, "
                    "overlap = excluded.overlap, batch = excluded.batch, status = 'in_progress', "
                    "code = NULL, "
                    "message = NULL",
                    (
                        *self._row_for(f.id),
                        f.id,
                        f.name,
                        json.dumps(dict(f.attributes)),
                        *(f.chunking or (None, None)),
                        f.batch,
                    ),
                )
                self._database.execute("DELETE FROM detached WHERE id = ?", (f.id,))

    def get(self, file: str) -> Attachment | None:
        """The attachment of that id, or None."""
        document = DOCUMENT_ID.fullmatch(file)
        if document:
            query = "SELECT name, metadata, added FROM documents WHERE id = ? AND file IS NULL"
            for name, metadata, added in self._database.rows(query, (int(document[1]),)):
                size = self._size("document = ?", int(document[1]))
                return Attachment(
                    file, name, json.loads(metadata), status="completed", created=added, bytes=size
                )
            return None
        rows = FILE_ID.fullmatch(file) and self._database.rows(
            "SELECT name, attributes, max_length, overlap, status, code, message, attached, batch "
            "FROM attachments WHERE id = ?",
            (file,),
        )
        return self.from_row(file, rows[0][:-1], rows[0][-1]) if rows else None

    def from_row(self, file: str, row: Sequence[Any], batch: str | None) -> Attachment:
        """As `attachment_from_row`, with the size of its documents."""
        size = self._size("document IN (SELECT id FROM documents WHERE file = ?)", file)
        return attachment_from_row(file, row, batch, size)

    def positions(self, status: str | None = None) -> dict[str, Position]:
        """Ids and positions of all files, or of those of one status; oldest first."""
        rows = self._database.rows(
            f"SELECT id, added, kind, number FROM ({_ALL}) WHERE ?1 IS NULL OR status = ?1 "  # noqa: S608
            ""
            "ORDER BY added, kind, number",
            (status,),
        )
        return {row[0]: tuple(row[1:]) for row in rows}

    def position(self, file: str) -> Position | None:
        """The position of a file in the list, also after it was detached; None for an id that was
        never in the list.
        """
        if not (FILE_ID.fullmatch(file) or DOCUMENT_ID.fullmatch(file)):
            return None
        rows = self._database.rows(
            f"SELECT added, kind, number FROM ({_ALL}) WHERE id = ?1 "  # noqa: S608
            "UNION ALL SELECT added, kind, number FROM detached WHERE id = ?1",
            (file,),
        )
        return tuple(rows[0]) if rows else None

    def counts(self) -> dict[str, int]:
        """The number of files of each status."""
        rows = self._database.rows(f"SELECT status, count(*) FROM ({_ALL}) GROUP BY status")  # noqa: S608
        return {**dict.fromkeys(STATUSES, 0), **dict(rows)}

    def is_in_progress(self, file: str) -> bool:
        """Whether a file is still to be ingested."""
        query = "SELECT 1 FROM attachments WHERE id = ? AND status = 'in_progress'"
        return bool(self._database.rows(query, (file,)))

    def any_in_progress(self) -> bool:
        """Whether a file, any of them, is still to be ingested."""
        query = "SELECT 1 FROM attachments WHERE status = 'in_progress' LIMIT 1"
        return bool(self._database.rows(query))

    def detach(self, file: str) -> bool:
        """Remove a file and its documents from the corpus; False if it is not attached."""
        with self._database.writing():
            delete_of_file(self._database, file)
            deleted = self._database.rows(
                "DELETE FROM attachments WHERE id = ? RETURNING id", (file,)
            )
            return bool(deleted)

    def texts(self, file: str) -> list[str]:
        """The texts of a file's sequences, in order."""
        document = DOCUMENT_ID.fullmatch(file)
        condition, value = ("d.id = ?", int(document[1])) if document else ("d.file = ?", file)
        rows = self._database.rows(
            f"SELECT s.text FROM sequences s JOIN documents d ON d.id = s.document WHERE "  # noqa: S608
            f"{condition} ORDER BY s.id",
            (value,),
        )
        return [row[0] for row in rows]

    def files_of(self, documents: Iterable[int]) -> dict[int, tuple[str, str]]:
        """Id and name of the file that each of these documents belongs to."""
        files = {}
        for document in set(documents):
            query = (
                "SELECT coalesce(a.id, 'doc-' || d.id), coalesce(a.name, d.name) "
                "FROM documents d LEFT JOIN attachments a ON a.id = d.file WHERE d.id = ?"
            )
            for file, name in self._database.rows(query, (document,)):
                files[document] = (file, name)
        return files

    def _end(self, file: str, status: str, code: str | None, message: str | None) -> None:
        if status != "completed":
            delete_of_file(self._database, file)
        self._database.execute(
            "UPDATE attachments SET status = ?, code = ?, message = ? WHERE id = ?",
            (status, code, message, file),
        )

    def _row_for(self, file: str) -> tuple[int, int]:
        """Row number and time of attachment for a file: those of its first time, or new ones."""
        earlier = self._database.rows(
            "SELECT number, added FROM detached WHERE id = ? AND number NOT IN (SELECT rowid FROM "
            "attachments)",
            (file,),
        )
        new = (
            "SELECT 1 + max(coalesce((SELECT max(rowid) FROM attachments), 0), "
            "coalesce((SELECT max(number) FROM detached WHERE kind = 0), 0)), unixepoch()"
        )
        return tuple(earlier[0] if earlier else self._database.rows(new)[0])

    def _size(self, condition: str, value: str | int) -> int:
        ((total,),) = self._database.rows(
            "SELECT coalesce(sum(length(CAST(text AS BLOB)) + length(tokens) + "  # noqa: S608
            "length(embedding)), 0) "
            f"FROM sequences WHERE {condition}",
            (value,),
        )
        return int(total)
