"""ApiKeys: the API keys in a database, which are valid on all of its servers.

The secret of a key is not here, only its digest. What its entries mean, and whether they are valid,
is known to the servers (`serving.api_keys`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

from selection.corpus.postgres.connections import ANSWER_SECONDS, pool_of
from selection.corpus.postgres.errors import translated
from selection.corpus.postgres.migration import Connection
from selection.location import DatabaseLocation

# The digest of all rows, in whatever way they were changed.
_CHANGED: LiteralString = """
WITH now AS (
    SELECT encode(sha256(convert_to(coalesce(string_agg(k::text, '' ORDER BY k.name), ''), 'UTF8')),
        'hex') AS version
    FROM api_keys k)
SELECT now.version, k.name, k.sha256, k.entries
FROM now LEFT JOIN api_keys k ON now.version <> %(known)s ORDER BY k.name
"""
_PUT: LiteralString = (
    "INSERT INTO api_keys (name, sha256, entries) VALUES (%(name)s, %(sha256)s, %(entries)s) "
    "ON CONFLICT (name) DO UPDATE SET sha256 = excluded.sha256, entries = excluded.entries"
)


@dataclass(frozen=True)
class StoredKey:
    """One key.

    Attributes:
        name: its name.
        sha256: digest of its secret, in lower-case hexadecimal.
        entries: its other entries.
    """

    name: str
    sha256: str
    entries: Mapping[str, Any]


class KeyChange:
    """A transaction that changes keys; no other does meanwhile."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def all(self) -> dict[str, StoredKey]:
        """Every key by its name, in the order of names."""
        rows = self._connection.execute("SELECT name, sha256, entries FROM api_keys ORDER BY name")
        return {key.name: key for key in map(_key, rows)}

    def put(self, keys: Iterable[StoredKey]) -> None:
        """Add keys, or replace those of the same names. From the first one on, servers of the
        database need keys.
        """
        for key in keys:
            entries = json.dumps(dict(key.entries))
            self._connection.execute(
                _PUT, {"name": key.name, "sha256": key.sha256, "entries": entries}
            )
            self._connection.execute(
                "INSERT INTO api_keys_required VALUES (true) ON CONFLICT DO NOTHING"
            )

    def remove(self, name: str) -> bool:
        """Remove a key; False if there is none of that name."""
        removed = self._connection.execute("DELETE FROM api_keys WHERE name = %s", (name,))
        return removed.rowcount > 0


class ApiKeys:
    """The keys of one database.

    Every method raises CorpusError if it cannot be used.
    """

    def __init__(self, location: DatabaseLocation) -> None:
        self._location = location

    def changed(self, known: str = "") -> tuple[str, list[StoredKey]] | None:
        """The version of the keys, and every key, in the order of names; None if the version is the
        one that is known already.
        """
        pool = pool_of(self._location)
        with translated(self._location), pool.connection(ANSWER_SECONDS) as connection:
            rows = connection.execute(_CHANGED, {"known": known}).fetchall()
        version = str(rows[0][0])
        if version == known:
            return None
        return version, [_key(row[1:]) for row in rows if row[1] is not None]

    def required(self) -> bool:
        """Whether the database has, or has had, a key."""
        pool = pool_of(self._location)
        with translated(self._location), pool.connection(ANSWER_SECONDS) as connection:
            row = connection.execute(
                "SELECT EXISTS (SELECT FROM api_keys) OR EXISTS (SELECT FROM api_keys_required)"
            ).fetchone()
        return row == (True,)

    @contextmanager
    def changing(self) -> Iterator[KeyChange]:
        """One transaction that changes keys, within the `with` block."""
        pool = pool_of(self._location)
        with (
            translated(self._location, "the list of API keys"),
            pool.connection() as connection,
            connection.transaction(),
        ):
            connection.execute("LOCK TABLE api_keys IN SHARE ROW EXCLUSIVE MODE")
            yield KeyChange(connection)


def _key(row: Iterable[Any]) -> StoredKey:
    name, sha256, entries = row
    return StoredKey(name, sha256, entries)
