"""File batches: as `selection.corpus.tables.file_batches`, which documents it, in PostgreSQL.

`Attachments` records the members of a batch and their outcome.
"""

from __future__ import annotations

from selection.corpus.positions import Position
from selection.corpus.postgres.database import Database
from selection.corpus.postgres.tables.attachments import Attachments
from selection.corpus.tables.attachment import STATUSES, Attachment


class FileBatches:
    """The file batches of one corpus."""

    def __init__(self, database: Database, attachments: Attachments) -> None:
        self._database, self._attachments = database, attachments

    def get(self, batch: str) -> tuple[int, bool] | None:
        """When a batch was created, and whether it was cancelled; None if it does not exist."""
        rows = self._database.rows(
            "SELECT created, cancelled FROM batches WHERE corpus = %(corpus)s AND id = %(batch)s",
            batch=batch,
        )
        return (rows[0][0], rows[0][1]) if rows else None

    def counts(self, batch: str) -> dict[str, int]:
        """The number of its files of each status."""
        rows = self._database.rows(
            "SELECT status, count(*) FROM batch_files "
            "WHERE corpus = %(corpus)s AND batch = %(batch)s GROUP BY status",
            batch=batch,
        )
        return {**dict.fromkeys(STATUSES, 0), **dict(rows)}

    def positions(self, batch: str, status: str | None = None) -> dict[str, Position]:
        """Ids and positions of its files, or of those of one status, in the order of attachment."""
        rows = self._database.rows(
            "SELECT file, number FROM batch_files WHERE corpus = %(corpus)s "
            "AND batch = %(batch)s AND (%(status)s::text IS NULL OR status = %(status)s) "
            "ORDER BY number",
            batch=batch,
            status=status,
        )
        return {file: (number,) for file, number in rows}

    def member(self, batch: str, file: str) -> Attachment:
        """A file of a batch, which must contain it: as it was attached with it, and its outcome."""
        ((*row, created),) = self._database.rows(
            "SELECT f.name, f.attributes, f.max_length, f.overlap, f.status, f.code, f.message, "
            "b.created FROM batch_files f JOIN batches b ON b.corpus = f.corpus AND b.id = f.batch "
            "WHERE f.corpus = %(corpus)s AND f.batch = %(batch)s AND f.file = %(file)s",
            batch=batch,
            file=file,
        )
        return self._attachments.from_row(file, [*row, created], batch)

    def cancel(self, batch: str) -> None:
        """Cancel the files of a batch that are in progress; a file that was attached again since
        stays in progress outside the batch.
        """
        with self._database.writing():
            in_progress = self._database.rows(
                "SELECT a.id FROM attachments a JOIN batch_files f ON f.corpus = a.corpus "
                "AND f.file = a.id AND f.batch = a.batch WHERE a.corpus = %(corpus)s "
                "AND a.batch = %(batch)s AND a.status = 'in_progress' "
                "AND f.status = 'in_progress'",
                batch=batch,
            )
            cancelled = self._database.execute(
                "UPDATE batch_files SET status = 'cancelled' WHERE corpus = %(corpus)s "
                "AND batch = %(batch)s AND status = 'in_progress'",
                batch=batch,
            )
            if cancelled:
                self._database.execute(
                    "UPDATE batches SET cancelled = true "
                    "WHERE corpus = %(corpus)s AND id = %(batch)s",
                    batch=batch,
                )
            self._attachments.set_status([file for (file,) in in_progress], "cancelled")
