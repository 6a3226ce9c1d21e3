"""Schema: the tables of a corpus's database, and what was added later without a new version."""

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
    "start INTEGER NOT NULL, text TEXT NOT NULL, tokens BLOB NOT NULL, embedding BLOB NOT NULL, "
    "example TEXT, scored TEXT)",
    "CREATE INDEX sequences_by_document ON sequences(document)",
    "CREATE TABLE removed (sequence INTEGER PRIMARY KEY, generation INTEGER NOT NULL)",
    "CREATE TABLE reembedded (sequence INTEGER PRIMARY KEY, embedding BLOB NOT NULL)",
)
# An existing corpus of this version may lack these, so each statement does nothing where it was
# executed before.
ADDITIONS = (*attachments.POSITIONS, *file_batches.TABLES)
# Columns of `sequences` that it may lack, too.
ADDED_COLUMNS = {
    name: f"ALTER TABLE sequences ADD COLUMN {name} TEXT" for name in ("example", "scored")
}
