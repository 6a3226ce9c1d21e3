"""Deletion of documents, within a transaction: their sequences are recorded as removed in the next
generation, which the caller begins.
"""

from __future__ import annotations

from selection.corpus.postgres.database import Database

_LARGEST = (1 << 63) - 1


def delete_document(database: Database, document: int) -> bool:
    """Delete a document by id; False if it does not exist."""
    if abs(document) > _LARGEST:
        return False
    values = {"document": document}
    rows = database.rows(
        "SELECT added, file FROM documents WHERE corpus = %(corpus)s AND id = %(document)s",
        **values,
    )
    for added, file in rows:
        database.execute(
            "INSERT INTO removed (corpus, sequence, generation) "
            "SELECT c.id, s.id, c.generation + 1 "
            "FROM sequences s JOIN corpora c ON c.id = s.corpus "
            "WHERE s.corpus = %(corpus)s AND s.document = %(document)s",
            **values,
        )
        database.execute(
            "UPDATE corpora SET bytes = bytes - (SELECT coalesce(sum(octet_length(text) "
            "+ octet_length(tokens) + 4 * (corpora.meta ->> 'dimension')::bigint), 0) "
            "FROM sequences WHERE corpus = %(corpus)s AND document = %(document)s) "
            "WHERE id = %(corpus)s",
            **values,
        )
        database.execute(
            "DELETE FROM documents WHERE corpus = %(corpus)s AND id = %(document)s", **values
        )
        if file is None:
            # Its position in the list of files stays known.
            database.execute(
                "INSERT INTO detached (corpus, kind, number, added, id) VALUES (%(corpus)s, 1, "
                "%(document)s, %(added)s, %(id)s) ON CONFLICT DO NOTHING",
                **values,
                added=added,
                id=f"doc-{document}",
            )
    return bool(rows)


def delete_named(database: Database, name: str) -> bool:
    """Delete a document by name; False if it does not exist."""
    rows = database.rows(
        "SELECT id FROM documents WHERE corpus = %(corpus)s "
        "AND name_digest(name) = name_digest(%(name)s)",
        name=name,
    )
    return bool(rows) and delete_document(database, rows[0][0])


def delete_of_file(database: Database, file: str) -> None:
    """Delete the documents of an attachment, and begin the next generation if there are any."""
    documents = database.rows(
        "SELECT id FROM documents WHERE corpus = %(corpus)s AND file = %(file)s", file=file
    )
    for (document,) in documents:
        delete_document(database, document)
    if documents:
        database.advance_generation()
