"""Files: the table of uploaded files, which belong to no corpus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, LiteralString

from selection.corpus.postgres.connections import pool_of
from selection.corpus.postgres.errors import translated
from selection.location import DatabaseLocation

# Id, name, size, purpose, time of creation and owner.
_RECORD: LiteralString = "id, name, bytes, purpose, created, owner"


class Files:
    """The uploaded files of one database.

    Every method raises CorpusError if it cannot be used.
    """

    def __init__(self, location: DatabaseLocation) -> None:
        self._location = location

    def add(self, record: Mapping[str, Any], content: bytes) -> None:
        """Store a file, durably.

        Args:
            record: its id, name, bytes, purpose, created and owner.
            content: its content.
        """
        self._rows(
            "INSERT INTO files (id, name, bytes, purpose, created, owner, content) VALUES (%(id)s, "
            "%(name)s, %(bytes)s, %(purpose)s, %(created)s, %(owner)s, %(content)s) RETURNING id",
            {**record, "content": content},
        )

    def get(self, file: str) -> tuple[Any, ...] | None:
        """The record of a file; None if it does not exist."""
        rows = self._rows(
            "SELECT " + _RECORD + " FROM files WHERE id = %(id)s",  # noqa: S608
            {"id": file},
        )
        return rows[0] if rows else None

    def all(self) -> list[tuple[Any, ...]]:
        """The records of all files."""
        return self._rows("SELECT " + _RECORD + " FROM files", {})  # noqa: S608

    def content(self, file: str) -> bytes | None:
        """The content of a file; None if it does not exist."""
        rows = self._rows("SELECT content FROM files WHERE id = %(id)s", {"id": file})
        return bytes(rows[0][0]) if rows else None

    def delete(self, file: str) -> bool:
        """Delete a file; False if it does not exist."""
        return bool(self._rows("DELETE FROM files WHERE id = %(id)s RETURNING id", {"id": file}))

    def _rows(self, query: LiteralString, values: Mapping[str, Any]) -> list[Any]:
        pool = pool_of(self._location)
        with translated(self._location, "the file"), pool.connection() as connection:
            return connection.execute(query, values).fetchall()
