"""Rates: how many requests each API key may still make, counted for all servers of a database.

The table is not written to the log (UNLOGGED), so a request waits for no disk; after a crash of the
server, counting begins anew.
"""

from __future__ import annotations

from typing import LiteralString

from selection.corpus.postgres.connections import ANSWER_SECONDS, pool_of
from selection.corpus.postgres.errors import translated
from selection.location import DatabaseLocation

# What may be made now. Times of several connections may come in another order.
_ALLOWANCE: LiteralString = (
    "least(%(limit)s, r.allowance + %(limit)s / 60.0 * "
    "greatest(0, extract(epoch FROM clock_timestamp() - r.computed)))"
)
_TAKE: LiteralString = (
    "INSERT INTO request_rates AS r (key, allowance, computed) "
    "VALUES (%(key)s, %(limit)s - 1, clock_timestamp()) ON CONFLICT (key) DO UPDATE "
    "SET allowance = " + _ALLOWANCE + " - 1, computed = clock_timestamp() "
    "WHERE " + _ALLOWANCE + " >= 1 RETURNING r.key"
)
_WAIT: LiteralString = (
    "SELECT greatest(0, (1 - " + _ALLOWANCE + ") * 60.0 / %(limit)s)::float8 "
    "FROM request_rates r WHERE key = %(key)s"
)


class Rates:
    """The rates of the keys in one database."""

    def __init__(self, location: DatabaseLocation) -> None:
        self._location = location

    def take(self, key: str, limit: int) -> float | None:
        """Count a request of a key.

        Args:
            key: name of the key.
            limit: requests a minute, also the number that may come at once.

        Returns:
            None if it may be made; else the seconds until the next one may be, and nothing is
            counted.

        Raises:
            CorpusError: the database cannot be used.
        """
        pool, values = pool_of(self._location), {"key": key, "limit": limit}
        with translated(self._location), pool.connection(ANSWER_SECONDS) as connection:
            if connection.execute(_TAKE, values).fetchone() is not None:
                return None
            row = connection.execute(_WAIT, values).fetchone()
        return 0.0 if row is None else float(str(row[0]))
