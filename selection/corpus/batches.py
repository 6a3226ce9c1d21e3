"""Batches: files that were attached to a corpus together, and what became of each; tables of the
corpus's database.

A batch is an object of its own. Its members outlive their attachments: a file may be detached,
deleted, or attached again by others, and the batch goes on telling what became of it. As long as a
member is in progress it shares the fate of its file, whoever attached that last; once it has ended,
nothing changes it any more.

Triggers write the members from what happens to `attachments`, whichever version of Mayfly, or
process, does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from selection.corpus.attachments import STATES, Attachment, Attachments
from selection.corpus.positions import Position

_MEMBER = "name, attributes, max_length, overlap, status, code, message"
_RECORD = f"""
    INSERT INTO batches (id, created) VALUES (new.batch, unixepoch()) ON CONFLICT DO NOTHING;
    INSERT INTO batch_files (batch, file, {_MEMBER})
    VALUES (new.batch, new.id, new.name, new.attributes, new.max_length, new.overlap, new.status, NULL, NULL)
    ON CONFLICT (batch, file) DO UPDATE SET name = excluded.name, attributes = excluded.attributes,
    max_length = excluded.max_length, overlap = excluded.overlap WHERE status = 'in_progress';
"""  # noqa: S608
# Corpora of earlier versions lack them; batches of theirs are known by the attachments that name
# them.
TABLES = (
    "CREATE TABLE IF NOT EXISTS batches "
    "(id TEXT PRIMARY KEY, created INTEGER NOT NULL, cancelled INTEGER NOT NULL DEFAULT 0)",
    # The number of a row is its place in the batch: rows are never deleted.
    "CREATE TABLE IF NOT EXISTS batch_files (number INTEGER PRIMARY KEY, "
    "batch TEXT NOT NULL REFERENCES batches(id), file TEXT NOT NULL, name TEXT NOT NULL, attributes TEXT NOT NULL, "
    "max_length INTEGER, overlap INTEGER, status TEXT NOT NULL, code TEXT, message TEXT, UNIQUE (batch, file))",
    "CREATE INDEX IF NOT EXISTS batch_files_by_file ON batch_files(file)",
    "INSERT INTO batches SELECT batch, min(attached), max(status = 'cancelled') FROM attachments "
    "WHERE batch IS NOT NULL GROUP BY batch ON CONFLICT DO NOTHING",
    f"INSERT INTO batch_files (batch, file, {_MEMBER}) SELECT batch, id, {_MEMBER} FROM attachments "  # noqa: S608
    "WHERE batch IS NOT NULL ORDER BY attached, rowid ON CONFLICT DO NOTHING",
    "CREATE TRIGGER IF NOT EXISTS batch_begins AFTER INSERT ON attachments WHEN new.batch IS NOT NULL "
    f"BEGIN {_RECORD} END",
    "CREATE TRIGGER IF NOT EXISTS batch_takes_over AFTER UPDATE OF batch, name, attributes, max_length, overlap "
    f"ON attachments WHEN new.batch IS NOT NULL BEGIN {_RECORD} END",
    "CREATE TRIGGER IF NOT EXISTS batch_file_ends AFTER UPDATE OF status ON attachments "
    "WHEN new.status <> 'in_progress' BEGIN "
    "UPDATE batch_files SET status = new.status, code = new.code, message = new.message "
    "WHERE file = new.id AND status = 'in_progress'; END",
    "CREATE TRIGGER IF NOT EXISTS batch_file_goes AFTER DELETE ON attachments BEGIN "
    "UPDATE batch_files SET status = 'cancelled' WHERE file = old.id AND status = 'in_progress'; END",
)


class Batches:
    """The batches of one corpus.

    Args:
        ask: runs a statement of SQL with its parameters; gives the rows.
        writing: begins a transaction.
        attachments: the files of the corpus.
    """

    def __init__(
        self,
        ask: Callable[[str, Sequence[Any]], list[Any]],
        writing: Callable[[], AbstractContextManager[None]],
        attachments: Attachments,
    ) -> None:
        self._ask, self._writing, self._attachments = ask, writing, attachments

    def get(self, batch: str) -> tuple[int, bool] | None:
        """When a batch was made, in seconds since 1970, UTC, and whether it was cancelled; None if
        there is none.
        """
        rows = self._ask("SELECT created, cancelled FROM batches WHERE id = ?", (batch,))
        return (rows[0][0], bool(rows[0][1])) if rows else None

    def counts(self, batch: str) -> dict[str, int]:
        """How many of its files are in each state."""
        rows = self._ask(
            "SELECT status, count(*) FROM batch_files WHERE batch = ? GROUP BY status", (batch,)
        )
        return {**dict.fromkeys(STATES, 0), **dict(rows)}

    def listed(self, batch: str, status: str | None = None) -> dict[str, Position]:
        """Its files, of one status, with their positions, in the order in which they were attached."""
        query = "SELECT file, number FROM batch_files WHERE batch = ?1 AND (?2 IS NULL OR status = ?2) ORDER BY number"
        return {file: (number,) for file, number in self._ask(query, (batch, status))}

    def member(self, batch: str, file: str) -> Attachment:
        """A file of a batch, which must have it: as it was attached with it, and what became of
        that.
        """
        query = (
            f"SELECT {_MEMBER}, (SELECT created FROM batches WHERE id = batch) "  # noqa: S608
            "FROM batch_files WHERE batch = ? AND file = ?"
        )
        return self._attachments.made_of(file, self._ask(query, (batch, file))[0], batch)

    def cancel(self, batch: str) -> None:
        """End what is still in progress of a batch; a file that was attached again since is read
        on.
        """
        with self._writing():
            reading = self._ask(
                "SELECT a.id FROM attachments a JOIN batch_files f ON f.file = a.id AND f.batch = a.batch "
                "WHERE a.batch = ? AND a.status = 'in_progress' AND f.status = 'in_progress'",
                (batch,),
            )
            ended = self._ask(
                "UPDATE batch_files SET status = 'cancelled' WHERE batch = ? AND status = 'in_progress' RETURNING file",
                (batch,),
            )
            if ended:
                self._ask("UPDATE batches SET cancelled = 1 WHERE id = ?", (batch,))
            self._attachments.end_within([file for (file,) in reading], "cancelled")
