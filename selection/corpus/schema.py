"""Schema: the tables of a corpus's database, and those that a corpus of an earlier version lacks."""

from __future__ import annotations

from selection.corpus import attachments, batches

VERSION = 3
TABLES = (
    attachments.TABLE,
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE documents ("
    "id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, sha256 TEXT NOT NULL, metadata TEXT NOT NULL, "
    "added INTEGER NOT NULL DEFAULT (unixepoch()), file TEXT REFERENCES attachments(id))",
    "CREATE INDEX documents_by_file ON documents(file)",
    "CREATE TABLE sequences ("
    "id INTEGER PRIMARY KEY AUTOINCREMENT, document INTEGER NOT NULL REFERENCES documents(id) ON DELETE CASCADE, "
    "start INTEGER NOT NULL, text TEXT NOT NULL, tokens BLOB NOT NULL, embedding BLOB NOT NULL)",
    "CREATE INDEX sequences_by_document ON sequences(document)",
    "CREATE TABLE removed (sequence INTEGER PRIMARY KEY, generation INTEGER NOT NULL)",
    "CREATE TABLE reembedded (sequence INTEGER PRIMARY KEY, embedding BLOB NOT NULL)",
)
# Each does nothing where it was done: a corpus of this version may have been made before there were
# any of them.
ADDITIONS = (*attachments.POSITIONS, *batches.TABLES)
