"""File batches: files that were attached to a corpus together, and the outcome of each; tables of
the corpus's database.

A batch outlives the attachments of its members: a file may be detached, deleted, or attached again
separately, and the batch still reports its outcome. While a member is in progress it follows the
status of its file, whichever request attached it last; once it has ended, its status is final.

Triggers update the members from changes to `attachments`, whichever version of Mayfly, or process,
makes them.
"""

from __future__ import annotations

from selection.corpus.positions import Position
from selection.corpus.tables.attachment import STATUSES, Attachment
from selection.corpus.tables.attachments import Attachments
from selection.corpus.tables.database import Database

_MEMBER = "name, attributes, max_length, overlap, status, code, message"
_RECORD = f"""
    INSERT INTO batches (id, created) VALUES (new.batch, unixepoch()) ON CONFLICT DO NOTHING;
    INSERT INTO batch_files (batch, file, {_MEMBER})
    VALUES (new.batch, new.id, new.name, new.attributes, new.max_length, new.overlap, new.status,
    NULL, NULL)
    ON CONFLICT (batch, file) DO UPDATE SET name = excluded.name, attributes = excluded.attributes,
    max_length = excluded.max_length, overlap = excluded.overlap WHERE status = 'in_progress';
"""  # noqa: S608
# Corpora of earlier versions lack these tables; their batches are reconstructed from the
# attachments that refer to them.
TABLES = (
    "CREATE TABLE IF NOT EXISTS batches "
    "(id TEXT PRIMARY KEY, created INTEGER NOT NULL, cancelled INTEGER NOT NULL DEFAULT 0)",
    # The number of a row is its position in the batch: rows are never deleted.
    "CREATE TABLE IF NOT EXISTS batch_files (number INTEGER PRIMARY KEY, "
    "batch TEXT NOT NULL REFERENCES batches(id), file TEXT NOT NULL, name TEXT NOT NULL, "
    "attributes TEXT NOT NULL, "
    "max_length INTEGER, overlap INTEGER, status TEXT NOT NULL, code TEXT, message TEXT, UNIQUE "
    "(batch, file))",
    "CREATE INDEX IF NOT EXISTS batch_files_by_file ON batch_files(file)",
    "INSERT INTO batches SELECT batch, min(attached), max(status = 'cancelled') FROM attachments "
    "WHERE batch IS NOT NULL GROUP BY batch ON CONFLICT DO NOTHING",
    f"INSERT INTO batch_files (batch, file, {_MEMBER}) SELECT batch, id, {_MEMBER} FROM "  # noqa: S608
    "attachments "
    "WHERE batch IS NOT NULL ORDER BY attached, rowid ON CONFLICT DO NOTHING",
    "CREATE TRIGGER IF NOT EXISTS batch_begins AFTER INSERT ON attachments WHEN new.batch IS NOT "
    "NULL "
    f"BEGIN {_RECORD} END",
    "CREATE TRIGGER IF NOT EXISTS batch_takes_over AFTER UPDATE OF batch, name, attributes, "
    "max_length, overlap "
    f"ON attachments WHEN new.batch IS NOT NULL BEGIN {_RECORD} END",
    "CREATE TRIGGER IF NOT EXISTS batch_file_ends AFTER UPDATE OF status ON attachments "
    "WHEN new.status <> 'in_progress' BEGIN "
    "UPDATE batch_files SET status = new.status, code = new.code, message = new.message "
    "WHERE file = new.id AND status = 'in_progress'; END",
    "CREATE TRIGGER IF NOT EXISTS batch_file_goes AFTER DELETE ON attachments BEGIN "
    "UPDATE batch_files SET status = 'cancelled' WHERE file = old.id AND status = 'in_progress'; "
    "END",
)


class FileBatches:
    """The file batches of one corpus.

    Args:
        database: the corpus's database.
        attachments: the files of the corpus.
    """

    def __init__(self, database: Database, attachments: Attachments) -> None:
        self._database, self._attachments = database, attachments

    def get(self, batch: str) -> tuple[int, bool] | None:
        """When a batch was created, in seconds since 1970, UTC, and whether it was cancelled; None
        if it does not exist.
        """
        rows = self._database.rows("SELECT created, cancelled FROM batches WHERE id = ?", (batch,))
        return (rows[0][0], bool(rows[0][1])) if rows else None

    def counts(self, batch: str) -> dict[str, int]:
        """The number of its files of each status."""
        rows = self._database.rows(
            "SELECT status, count(*) FROM batch_files WHERE batch = ? GROUP BY status", (batch,)
        )
        return {**dict.fromkeys(STATUSES, 0), **dict(rows)}

    def positions(self, batch: str, status: str | None = None) -> dict[str, Position]:
        """Ids and positions of its files, or of those of one status, in the order of attachment."""
        query = (
            "SELECT file, number FROM batch_files "
            "WHERE batch = ?1 AND (?2 IS NULL OR status = ?2) ORDER BY number"
        )
        return {file: (number,) for file, number in self._database.rows(query, (batch, status))}

    def member(self, batch: str, file: str) -> Attachment:
        """A file of a batch, which must contain it: as it was attached with it, and its outcome."""
        query = (
            f"SELECT {_MEMBER}, (SELECT created FROM batches WHERE id = batch) "  # noqa: S608
            "FROM batch_files WHERE batch = ? AND file = ?"
        )
        return self._attachments.from_row(file, self._database.rows(query, (batch, file))[0], batch)

    def cancel(self, batch: str) -> None:
        """Cancel the files of a batch that are in progress; a file that was attached again since
        stays in progress outside the batch.
        """
        with self._database.writing():
            in_progress = self._database.rows(
                "SELECT a.id FROM attachments a JOIN batch_files f ON f.file = a.id AND f.batch = "
                "a.batch "
                "WHERE a.batch = ? AND a.status = 'in_progress' AND f.status = 'in_progress'",
                (batch,),
            )
            cancelled = self._database.rows(
                "UPDATE batch_files SET status = 'cancelled' WHERE batch = ? AND status = "
                "'in_progress' RETURNING file",
                (batch,),
            )
            if cancelled:
                self._database.execute("UPDATE batches SET cancelled = 1 WHERE id = ?", (batch,))
            self._attachments.set_status([file for (file,) in in_progress], "cancelled")
