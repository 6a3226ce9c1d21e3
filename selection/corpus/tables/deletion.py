"""Deletion of documents, within a transaction: their sequences are recorded as removed in the next
generation, which the caller begins.
"""

from __future__ import annotations

from selection.corpus.tables.database import Database


def delete_document(database: Database, document: str | int) -> bool:
    """Delete a document by name or id; False if it does not exist."""
    # SQLite converts the text to a number where the column is one; a number beyond 64 bits,
    # which cannot be bound directly, is simply not found.
    column = "name" if isinstance(document, str) else "id"
    rows = database.rows(f"SELECT id FROM documents WHERE {column} = ?", (str(document),))  # noqa: S608
    if not rows:
        return False
    generation = int(database.meta()["generation"]) + 1
    database.execute(
        "INSERT INTO removed SELECT id, ? FROM sequences WHERE document = ?",
        (generation, rows[0][0]),
    )
    database.execute("DELETE FROM documents WHERE id = ?", rows[0])
    return True


def delete_of_file(database: Database, file: str) -> None:
    """Delete the documents of an attachment, and begin the next generation if there are any."""
    documents = database.rows("SELECT id FROM documents WHERE file = ?", (file,))
    for (document,) in documents:
        delete_document(database, document)
    if documents:
        database.advance_generation()
