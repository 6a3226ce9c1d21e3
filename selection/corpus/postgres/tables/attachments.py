"""Attachments: as `selection.corpus.tables.attachments`, which documents it, in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, LiteralString

from selection.corpus.positions import Position
from selection.corpus.postgres.database import Database
from selection.corpus.postgres.tables.deletion import delete_of_file
from selection.corpus.tables.attachment import (
    DOCUMENT_ID,
    FILE_ID,
    STATUSES,
    Attachment,
    AttachmentStatuses,
    attachment_from_row,
)

_ALL: LiteralString = """
SELECT id, status, attached AS added, 0 AS kind, number
FROM attachments WHERE corpus = %(corpus)s
UNION ALL SELECT 'doc-' || id, 'completed', added, 1, id
FROM documents WHERE corpus = %(corpus)s AND file IS NULL
"""
_SIZE: LiteralString = """
SELECT coalesce(sum(octet_length(s.text) + octet_length(s.tokens)), 0), count(*)
FROM sequences s JOIN documents d ON d.corpus = s.corpus AND d.id = s.document
WHERE s.corpus = %(corpus)s AND
"""


class Attachments(AttachmentStatuses[Database]):
    """The files of one corpus."""

    def attach(self, files: Sequence[Attachment]) -> None:
        """Attach files, or attach them again: they are in progress."""
        with self._database.writing():
            for f in files:
                number, attached = self._row_for(f.id)
                length, overlap = f.chunking or (None, None)
                values = {
                    "id": f.id,
                    "number": number,
                    "attached": attached,
                    "name": f.name,
                    "attributes": json.dumps(dict(f.attributes)),
                    "length": length,
                    "overlap": overlap,
                    "batch": f.batch,
                }
                self._database.execute(
                    "INSERT INTO attachments (corpus, id, number, attached, name, attributes, "
                    "max_length, overlap, batch, status) VALUES (%(corpus)s, %(id)s, %(number)s, "
                    "%(attached)s, %(name)s, %(attributes)s, %(length)s, %(overlap)s, %(batch)s, "
                    "'in_progress') ON CONFLICT (corpus, id) DO UPDATE SET name = excluded.name, "
                    "attributes = excluded.attributes, max_length = excluded.max_length, "
                    "overlap = excluded.overlap, batch = excluded.batch, status = 'in_progress', "
                    "code = NULL, message = NULL",
                    **values,
                )
                self._database.execute(
                    "DELETE FROM detached WHERE corpus = %(corpus)s AND id = %(id)s", id=f.id
                )
                self._database.execute(
                    "INSERT INTO ingest_queue (corpus, file) VALUES (%(corpus)s, %(id)s)", id=f.id
                )
                if f.batch is not None:
                    self._record_in_batch(values)

    def _record_in_batch(self, values: Mapping[str, Any]) -> None:
        """Make a file a member of the batch it is attached with."""
        self._database.execute(
            "INSERT INTO batches (corpus, id) VALUES (%(corpus)s, %(batch)s) "
            "ON CONFLICT DO NOTHING",
            batch=values["batch"],
        )
        ((number,),) = self._database.rows(
            "UPDATE corpora SET last_batch_file = last_batch_file + 1 WHERE id = %(corpus)s "
            "RETURNING last_batch_file"
        )
        self._database.execute(
            "INSERT INTO batch_files (corpus, number, batch, file, name, attributes, max_length, "
            "overlap, status) VALUES (%(corpus)s, %(member)s, %(batch)s, %(id)s, %(name)s, "
            "%(attributes)s, %(length)s, %(overlap)s, 'in_progress') "
            "ON CONFLICT (corpus, batch, file) DO UPDATE SET name = excluded.name, "
            "attributes = excluded.attributes, max_length = excluded.max_length, "
            "overlap = excluded.overlap WHERE batch_files.status = 'in_progress'",
            **values,
            member=number,
        )

    def get(self, file: str) -> Attachment | None:
        """The attachment of that id, or None."""
        document = DOCUMENT_ID.fullmatch(file)
        if document:
            number = int(document[1])
            rows = self._database.rows(
                "SELECT name, metadata, added FROM documents "
                "WHERE corpus = %(corpus)s AND id = %(id)s AND file IS NULL",
                id=number,
            )
            for name, metadata, added in rows:
                size = self._size("d.id = %(value)s", number)
                return Attachment(
                    file, name, json.loads(metadata), status="completed", created=added, bytes=size
                )
            return None
        rows = (
            self._database.rows(
                "SELECT name, attributes, max_length, overlap, status, code, message, attached, "
                "batch FROM attachments WHERE corpus = %(corpus)s AND id = %(id)s",
                id=file,
            )
            if FILE_ID.fullmatch(file)
            else []
        )
        return self.from_row(file, rows[0][:-1], rows[0][-1]) if rows else None

    def from_row(self, file: str, row: Sequence[Any], batch: str | None) -> Attachment:
        """As `attachment_from_row`, with the size of its documents."""
        return attachment_from_row(file, row, batch, self._size("d.file = %(value)s", file))

    def positions(self, status: str | None = None) -> dict[str, Position]:
        """Ids and positions of all files, or of those of one status; oldest first."""
        rows = self._database.rows(
            "SELECT id, added, kind, number FROM (" + _ALL + ") a "  # noqa: S608
            "WHERE %(status)s::text IS NULL OR status = %(status)s ORDER BY added, kind, number",
            status=status,
        )
        return {row[0]: tuple(row[1:]) for row in rows}

    def position(self, file: str) -> Position | None:
        """The position of a file in the list, also after it was detached."""
        if not (FILE_ID.fullmatch(file) or DOCUMENT_ID.fullmatch(file)):
            return None
        rows = self._database.rows(
            "SELECT added, kind, number FROM (" + _ALL + ") a WHERE id = %(id)s "  # noqa: S608
            "UNION ALL SELECT added, kind, number FROM detached "
            "WHERE corpus = %(corpus)s AND id = %(id)s",
            id=file,
        )
        return tuple(rows[0]) if rows else None

    def counts(self) -> dict[str, int]:
        """The number of files of each status."""
        rows = self._database.rows(
            "SELECT status, count(*) FROM (" + _ALL + ") a GROUP BY status"  # noqa: S608
        )
        return {**dict.fromkeys(STATUSES, 0), **dict(rows)}

    def is_in_progress(self, file: str) -> bool:
        """Whether a file is still to be ingested."""
        rows = self._database.rows(
            "SELECT 1 FROM attachments WHERE corpus = %(corpus)s AND id = %(id)s "
            "AND status = 'in_progress'",
            id=file,
        )
        return bool(rows)

    def any_in_progress(self) -> bool:
        """Whether a file, any of them, is still to be ingested."""
        rows = self._database.rows(
            "SELECT 1 FROM attachments WHERE corpus = %(corpus)s AND status = 'in_progress' LIMIT 1"
        )
        return bool(rows)

    def detach(self, file: str) -> bool:
        """Remove a file and its documents from the corpus; False if it is not attached."""
        with self._database.writing():
            delete_of_file(self._database, file)
            deleted = self._database.rows(
                "DELETE FROM attachments WHERE corpus = %(corpus)s AND id = %(id)s "
                "RETURNING number, attached",
                id=file,
            )
            for number, attached in deleted:
                self._database.execute(
                    "INSERT INTO detached (corpus, kind, number, added, id) "
                    "VALUES (%(corpus)s, 0, %(number)s, %(added)s, %(id)s) "
                    "ON CONFLICT (corpus, kind, number) DO UPDATE SET added = excluded.added, "
                    "id = excluded.id",
                    number=number,
                    added=attached,
                    id=file,
                )
                self._database.execute(
                    "UPDATE batch_files SET status = 'cancelled' "
                    "WHERE corpus = %(corpus)s AND file = %(id)s AND status = 'in_progress'",
                    id=file,
                )
            return bool(deleted)

    def texts(self, file: str) -> list[str]:
        """The texts of a file's sequences, in order."""
        document = DOCUMENT_ID.fullmatch(file)
        rows = self._database.rows(
            "SELECT s.text FROM sequences s "
            "JOIN documents d ON d.corpus = s.corpus AND d.id = s.document "
            "WHERE s.corpus = %(corpus)s AND (d.id = %(id)s OR d.file = %(file)s) ORDER BY s.id",
            id=int(document[1]) if document else None,
            file=file,
        )
        return [row[0] for row in rows]

    def files_of(self, documents: Iterable[int]) -> dict[int, tuple[str, str]]:
        """Id and name of the file that each of these documents belongs to."""
        rows = self._database.rows(
            "SELECT d.id, coalesce(a.id, 'doc-' || d.id), coalesce(a.name, d.name) "
            "FROM documents d LEFT JOIN attachments a ON a.corpus = d.corpus AND a.id = d.file "
            "WHERE d.corpus = %(corpus)s AND d.id = ANY(%(ids)s::bigint[])",
            ids=[*set(documents)],
        )
        return {document: (file, name) for document, file, name in rows}

    def _end(self, file: str, status: str, code: str | None, message: str | None) -> None:
        if status != "completed":
            delete_of_file(self._database, file)
        values = {"id": file, "status": status, "code": code, "message": message}
        self._database.execute(
            "UPDATE attachments SET status = %(status)s, code = %(code)s, message = %(message)s "
            "WHERE corpus = %(corpus)s AND id = %(id)s",
            **values,
        )
        self._database.execute(
            "UPDATE batch_files SET status = %(status)s, code = %(code)s, message = %(message)s "
            "WHERE corpus = %(corpus)s AND file = %(id)s AND status = 'in_progress'",
            **values,
        )

    def _row_for(self, file: str) -> tuple[int, int]:
        """Number and time of attachment for a file: those of its first time, or new ones."""
        earlier = self._database.rows(
            "SELECT number, added FROM detached WHERE corpus = %(corpus)s AND id = %(id)s "
            "AND kind = 0",
            id=file,
        ) or self._database.rows(
            "UPDATE corpora SET last_attachment = last_attachment + 1 WHERE id = %(corpus)s "
            "RETURNING last_attachment, floor(extract(epoch FROM clock_timestamp()))::bigint"
        )
        return earlier[0][0], earlier[0][1]

    def _size(self, condition: LiteralString, value: str | int) -> int:
        ((texts, count),) = self._database.rows(_SIZE + condition, value=value)
        return int(texts) + 4 * int(count) * int(self._database.meta()["dimension"])
