"""Schema: the tables of a corpus's database, and those added later without a new version."""

from __future__ import annotations

from selection.corpus.tables import attachments, file_batches

VERSION = 3
TABLES = (
    attachments.TABLE,
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE documents ("
    "id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, sha256 TEXT NOT NULL, "
    "metadata TEXT NOT NULL, "
    "added INTEGER NOT NULL DEFAULT (unixepoch()), file TEXT REFERENCES attachments(id))",
    "CREATE INDEX documents_by_file ON documents(file)",
    "CREATE TABLE sequences ("
    "id INTEGER PRIMARY KEY AUTOINCREMENT, document INTEGER NOT NULL REFERENCES documents(id) ON "
    "DELETE CASCADE, "
    "start INTEGER NOT NULL, text TEXT NOT NULL, tokens BLOB NOT NULL, embedding BLOB NOT NULL)",
    "CREATE INDEX sequences_by_document ON sequences(document)",
    "CREATE TABLE removed (sequence INTEGER PRIMARY KEY, generation INTEGER NOT NULL)",
    "CREATE TABLE reembedded (sequence INTEGER PRIMARY KEY, embedding BLOB NOT NULL)",
)
# An existing corpus of this version may lack these, so each statement does nothing where it was
# executed before.
ADDITIONS = (*attachments.POSITIONS, *file_batches.TABLES)
