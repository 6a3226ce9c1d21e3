"""Attachments: the files of a corpus, and how far each has been read into it; a table of the
corpus's database.

A file is attached first and read afterwards, so its state is as durable as the documents that come
of it: what a kill broke off is found here as "in_progress" and read again. Documents know the
attachment they belong to; they are written only while it is in progress, and go with it in one
transaction. A document that was added otherwise is listed as a file of its own, `doc-<its id>`,
completed.

What is detached leaves its position behind, for cursors that name it; attached again, it is where
it was.

It knows nothing of where files are kept (see `uploads`), who reads them (`intake`), or which came
together (`batches`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from selection.corpus.filters import Scalar
from selection.corpus.positions import Position

TABLE = """
CREATE TABLE attachments (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, attributes TEXT NOT NULL, max_length INTEGER, overlap INTEGER,
    batch TEXT, status TEXT NOT NULL, code TEXT, message TEXT, attached INTEGER NOT NULL DEFAULT (unixepoch()))
"""
# Corpora of earlier versions lack it; triggers, so that it is written whichever version deletes
# something.
POSITIONS = (
    "CREATE TABLE IF NOT EXISTS detached (added INTEGER NOT NULL, kind INTEGER NOT NULL, number INTEGER NOT NULL, "
    "id TEXT NOT NULL, PRIMARY KEY (kind, number)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS detached_by_id ON detached(id)",
    "CREATE TRIGGER IF NOT EXISTS attachment_goes AFTER DELETE ON attachments BEGIN "
    "INSERT INTO detached VALUES (old.attached, 0, old.rowid, old.id) "
    "ON CONFLICT DO UPDATE SET added = excluded.added, id = excluded.id; END",
    "CREATE TRIGGER IF NOT EXISTS document_goes AFTER DELETE ON documents WHEN old.file IS NULL BEGIN "
    "INSERT INTO detached VALUES (old.added, 1, old.id, 'doc-' || old.id) ON CONFLICT DO NOTHING; END",
)
STATES = ("in_progress", "completed", "failed", "cancelled")

_FILE, _DOCUMENT = re.compile(r"file-[0-9a-f]{24}"), re.compile(r"doc-([0-9]{1,18})")
_ALL = """
SELECT id, status, attached AS added, 0 AS kind, rowid AS number FROM attachments
UNION ALL SELECT 'doc-' || id, 'completed', added, 1, id FROM documents WHERE file IS NULL
"""


class DetachedError(Exception):
    """The file that a document belongs to is not being read any more: it was detached, cancelled or
    settled.
    """


@dataclass(frozen=True)
class Problem:
    """Why a file could not be read: OpenAI's code (server_error, unsupported_file, invalid_file)
    and a message.
    """

    code: str
    message: str


@dataclass(frozen=True)
class Attachment:
    """A file of a corpus.

    Attributes:
        id: of the uploaded file, or `doc-<id>`.
        name: the file's.
        attributes: the metadata of its documents.
        cut: tokens of a sequence and of their overlap; None where the corpus does not know.
        batch: the id of the batch it was attached with.
        status: one of STATES.
        problem: where it failed.
        created: seconds since 1970, UTC.
        bytes: of its sequences' texts, tokens and embeddings.
        documents: how many of its documents were added, replaced, there already, empty, or rows
            without a text, when it was read last; None before that, and where an earlier version
            read it.
    """

    id: str
    name: str
    attributes: Mapping[str, Scalar] = field(default_factory=dict)
    cut: tuple[int, int] | None = None
    batch: str | None = None
    status: str = "in_progress"
    problem: Problem | None = None
    created: int = 0
    bytes: int = 0
    documents: Mapping[str, int] | None = None


class Attachments:
    """The files of one corpus.

    Args:
        ask: runs a statement of SQL with its parameters; gives the rows.
        writing: begins a transaction.
        forget: deletes, within it, the documents of a file.
    """

    def __init__(
        self,
        ask: Callable[[str, Sequence[Any]], list[Any]],
        writing: Callable[[], AbstractContextManager[None]],
        forget: Callable[[str], None],
    ) -> None:
        self._ask, self._writing, self._forget = ask, writing, forget

    def attach(self, files: Sequence[Attachment]) -> None:
        """Attach files, or attach them anew: they are in progress. Their place in the list is that
        of the first time.

        Were it another, a client that attaches anew what it lists would never come to the end of
        the list.
        """
        with self._writing():
            for f in files:
                self._ask(
                    "INSERT INTO attachments "
                    "(rowid, attached, id, name, attributes, max_length, overlap, batch, status) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'in_progress') ON CONFLICT (id) DO UPDATE SET "
                    "name = excluded.name, attributes = excluded.attributes, max_length = excluded.max_length, "
                    "overlap = excluded.overlap, batch = excluded.batch, status = 'in_progress', code = NULL, "
                    "message = NULL",
                    (
                        *self._place(f.id),
                        f.id,
                        f.name,
                        json.dumps(dict(f.attributes)),
                        *(f.cut or (None, None)),
                        f.batch,
                    ),
                )
                self._ask("DELETE FROM detached WHERE id = ?", (f.id,))

    def get(self, file: str) -> Attachment | None:
        """The attachment of that id, or None."""
        document = _DOCUMENT.fullmatch(file)
        if document:
            query = "SELECT name, metadata, added FROM documents WHERE id = ? AND file IS NULL"
            for name, metadata, added in self._ask(query, (int(document[1]),)):
                size = self._size("document = ?", int(document[1]))
                return Attachment(
                    file, name, json.loads(metadata), status="completed", created=added, bytes=size
                )
            return None
        rows = _FILE.fullmatch(file) and self._ask(
            "SELECT name, attributes, max_length, overlap, status, code, message, attached, batch "
            "FROM attachments WHERE id = ?",
            (file,),
        )
        return self.made_of(file, rows[0][:-1], rows[0][-1]) if rows else None

    def made_of(self, file: str, row: Sequence[Any], batch: str | None) -> Attachment:
        """An attachment of its columns from the name on: its own, or what a batch keeps of it."""
        name, attributes, max_length, overlap, status, code, message, attached = row
        cut = None if max_length is None else (max_length, overlap)
        problem = None if code is None else Problem(code, message)
        size = self._size("document IN (SELECT id FROM documents WHERE file = ?)", file)
        # A file that could be read has no code; its message, which earlier versions do not look at,
        # holds the counts.
        documents = json.loads(message) if code is None and message is not None else None
        return Attachment(
            file,
            name,
            json.loads(attributes),
            cut,
            batch,
            status,
            problem,
            attached,
            size,
            documents,
        )

    def listed(self, status: str | None = None) -> dict[str, Position]:
        """Every file's id, of one status, with its position; oldest first."""
        rows = self._ask(
            f"SELECT id, added, kind, number FROM ({_ALL}) WHERE ?1 IS NULL OR status = ?1 "  # noqa: S608
            "ORDER BY added, kind, number",
            (status,),
        )
        return {row[0]: tuple(row[1:]) for row in rows}

    def ids(self, status: str | None = None) -> list[str]:
        """Every file's id, oldest first; of one status."""
        return list(self.listed(status))

    def position(self, file: str) -> Position | None:
        """Where a file stands in the list, or stood when it was there; None for what never was."""
        if not (_FILE.fullmatch(file) or _DOCUMENT.fullmatch(file)):
            return None
        rows = self._ask(
            f"SELECT added, kind, number FROM ({_ALL}) WHERE id = ?1 "  # noqa: S608
            "UNION ALL SELECT added, kind, number FROM detached WHERE id = ?1",
            (file,),
        )
        return tuple(rows[0]) if rows else None

    def counts(self) -> dict[str, int]:
        """How many files are in each state."""
        rows = self._ask(f"SELECT status, count(*) FROM ({_ALL}) GROUP BY status", ())  # noqa: S608
        return {**dict.fromkeys(STATES, 0), **dict(rows)}

    def reading(self, file: str) -> bool:
        """Whether a file is still to be read."""
        query = "SELECT 1 FROM attachments WHERE id = ? AND status = 'in_progress'"
        return bool(self._ask(query, (file,)))

    def settle(
        self,
        seen: Attachment,
        status: str,
        problem: Problem | None = None,
        documents: Mapping[str, int] | None = None,
    ) -> None:
        """End the reading of a file, unless it was ended or begun anew since; but for "completed"
        nothing is left.
        """
        with self._writing():
            now = self.get(seen.id)
            if (
                now is not None
                and now.status == "in_progress"
                and replace(now, bytes=seen.bytes) == seen
            ):
                self.end_within([seen.id], status, problem, documents)

    def cancel(self) -> None:
        """End the reading of every file."""
        with self._writing():
            self.end_within(self.ids("in_progress"), "cancelled")

    def end_within(
        self,
        files: Iterable[str],
        status: str,
        problem: Problem | None = None,
        documents: Mapping[str, int] | None = None,
    ) -> None:
        """End the reading of files, within a transaction; but for "completed" nothing is left of
        them.
        """
        message = problem.message if problem else documents and json.dumps(dict(documents))
        for file in files:
            if status != "completed":
                self._forget(file)
            self._ask(
                "UPDATE attachments SET status = ?, code = ?, message = ? WHERE id = ?",
                (status, problem and problem.code, message, file),
            )

    def detach(self, file: str) -> bool:
        """Take a file and its documents out of the corpus; False if there is none."""
        with self._writing():
            self._forget(file)
            return bool(self._ask("DELETE FROM attachments WHERE id = ? RETURNING id", (file,)))

    def texts(self, file: str) -> list[str]:
        """The texts of a file's sequences, in order."""
        document = _DOCUMENT.fullmatch(file)
        of, value = ("d.id = ?", int(document[1])) if document else ("d.file = ?", file)
        rows = self._ask(
            f"SELECT s.text FROM sequences s JOIN documents d ON d.id = s.document WHERE {of} ORDER BY s.id",  # noqa: S608
            (value,),
        )
        return [row[0] for row in rows]

    def holding(self, documents: Iterable[int]) -> dict[int, tuple[str, str]]:
        """Id and name of the file that each of these documents belongs to."""
        found = {}
        for document in set(documents):
            query = (
                "SELECT coalesce(a.id, 'doc-' || d.id), coalesce(a.name, d.name) "
                "FROM documents d LEFT JOIN attachments a ON a.id = d.file WHERE d.id = ?"
            )
            for file, name in self._ask(query, (document,)):
                found[document] = (file, name)
        return found

    def _place(self, file: str) -> tuple[int, int]:
        """The number and the time that a file gets when it is attached: those it had, or new ones."""
        had = self._ask(
            "SELECT number, added FROM detached WHERE id = ? AND number NOT IN (SELECT rowid FROM attachments)",
            (file,),
        )
        new = (
            "SELECT 1 + max(coalesce((SELECT max(rowid) FROM attachments), 0), "
            "coalesce((SELECT max(number) FROM detached WHERE kind = 0), 0)), unixepoch()"
        )
        return tuple(had[0] if had else self._ask(new, ())[0])

    def _size(self, of: str, value: str | int) -> int:
        ((total,),) = self._ask(
            "SELECT coalesce(sum(length(CAST(text AS BLOB)) + length(tokens) + length(embedding)), 0) "  # noqa: S608
            f"FROM sequences WHERE {of}",
            (value,),
        )
        return int(total)
