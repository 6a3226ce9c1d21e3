"""Authentication: which key a request has, on a server that needs one.

A server needs keys if it has any when it starts, or once the database of the corpora has one. It
never becomes open again: without a key that is left, it refuses every request.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from selection.location import Location
from serving.api_keys.database import DatabaseKeys
from serving.api_keys.key import Key
from serving.api_keys.keys import Keys
from serving.errors import UnauthorizedError
from serving.request_rates import rates_at

log = logging.getLogger(__name__)


def authentication_of(keys: Keys, corpora: Location, required: bool) -> Authentication | None:
    """The authentication of a server, see `Authentication`; None if it never needs a key: it has
    none, nor a database that may get one.
    """
    if required or not isinstance(corpora, Path):
        return Authentication(keys, corpora, required)
    return None


class Authentication:
    """The keys of one server, and how many requests each has made. It belongs to one event loop.

    Args:
        keys: the keys of the command line and of the key file, which get those of the database.
        corpora: where the corpora are; if that is a database, it may have keys, too.
        required: whether requests need a key from the start.
    """

    def __init__(self, keys: Keys, corpora: Location, required: bool) -> None:
        self._keys, self._required = keys, required
        self._rates = rates_at(corpora)
        self._database: DatabaseKeys | None = None
        if not isinstance(corpora, Path):
            self._database = DatabaseKeys(corpora, self._replace)
            self._following = asyncio.create_task(self._database.follow())

    def end(self) -> None:
        """Follow the database no longer."""
        if self._database is not None:
            self._following.cancel()

    async def key_of(self, authorization: str | None) -> Key | None:
        """The key of a request, which is counted; None where it needs none.

        Args:
            authorization: the Authorization header.

        Raises:
            UnauthorizedError: it is missing, or the key is unknown.
            KeysUnavailableError: the database, which may have the key, has not been read yet.
            RateLimitError: the key has made too many requests.
        """
        database = self._database
        if database is not None and not database.is_read and not self._knows(authorization):
            await database.wait()
        if not self._required:
            return None
        key = self._keys.find(authorization)
        await self._rates.count(key.name, key.requests_per_minute)
        return key

    def _knows(self, authorization: str | None) -> bool:
        try:
            self._keys.find(authorization)
        except UnauthorizedError:
            return False
        return True

    def _replace(self, tables: dict[str, dict[str, Any]]) -> None:
        self._keys.replace_stored(tables)
        if tables and not self._required:
            self._required = True
            log.warning("the database of the corpora has API keys now: requests need one")
        if self._required and self._keys.are_none:
            log.warning("there is no API key: every request is refused until one is made")
