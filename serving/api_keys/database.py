"""The API keys in the database of the corpora: whether there are any, and following their changes.

They are valid on every server of the database, beside those of its command line and key file.
PostgreSQL's client is imported only where the corpora are in a database.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selection.errors import CorpusError
from selection.location import DatabaseLocation, Location
from serving.api_keys.keys import Keys
from serving.errors import KeysUnavailableError, in_full

if TYPE_CHECKING:
    from selection.corpus.postgres.api_keys import ApiKeys, StoredKey

log = logging.getLogger(__name__)

# Seconds between reads, and seconds that a request waits for the first one.
_CHECK_SECONDS, _WAIT_SECONDS = 1.0, 2.0


def key_table(location: DatabaseLocation) -> ApiKeys:
    """The keys in a database.

    Raises:
        CorpusError: PostgreSQL's client is not installed.
    """
    from selection.corpus.stores.places import postgres_client

    with postgres_client():
        from selection.corpus.postgres.api_keys import ApiKeys
    return ApiKeys(location)


def keys_required(corpora: Location) -> bool:
    """Whether the place of the corpora has, or has had, API keys, so that its servers need them.

    Raises:
        CorpusError: the database cannot be used.
    """
    return not isinstance(corpora, Path) and key_table(corpora).required()


def check_keys(keys: Keys, corpora: Location) -> None:
    """Check the keys in the database of the corpora, if there is one, beside the other keys.

    Raises:
        SettingsError: one is invalid, or has the name or the secret of another key.
        CorpusError: the database cannot be used.
    """
    if not isinstance(corpora, Path) and (changed := key_table(corpora).changed()):
        keys.check_stored(tables_of(changed[1]))


def tables_of(rows: Iterable[StoredKey]) -> dict[str, dict[str, Any]]:
    """Keys as a key file has them: their entries by name."""
    return {row.name: {**row.entries, "sha256": row.sha256} for row in rows}


class DatabaseKeys:
    """Follows the keys in a database.

    Args:
        location: the database.
        on_change: called with all of them, as `tables_of`, whenever they have changed.
    """

    def __init__(
        self, location: DatabaseLocation, on_change: Callable[[dict[str, dict[str, Any]]], None]
    ) -> None:
        self._table, self._on_change = key_table(location), on_change
        self._version, self._is_away = "", False
        # Set by the first read, whether it succeeds or not.
        self._tried = asyncio.Event()

    @property
    def is_read(self) -> bool:
        """Whether the keys have been read."""
        return bool(self._version)

    async def wait(self) -> None:
        """Wait for the keys to be read for the first time.

        Raises:
            KeysUnavailableError: the database cannot be read now.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self._tried.wait(), _WAIT_SECONDS)
        if not self.is_read:
            raise KeysUnavailableError(
                "the database of API keys cannot be read at the moment; try again"
            )

    async def follow(self) -> None:
        """Read the keys now, and again every second."""
        while True:
            await self.read()
            await asyncio.sleep(_CHECK_SECONDS)

    async def read(self) -> None:
        """Read the keys if they have changed. While that fails, those read last stay valid."""
        try:
            changed = await asyncio.to_thread(self._table.changed, self._version)
            if changed is not None:
                self._on_change(tables_of(changed[1]))
                self._version = changed[0]
        # Also after a bug the next read must follow: a key that was removed would stay valid.
        except Exception as problem:
            if not self._is_away:
                log.warning(
                    "the API keys of the database cannot be read; those read last stay valid: %s",
                    in_full(problem),
                    exc_info=not isinstance(problem, CorpusError),
                )
            self._is_away = True
        else:
            if self._is_away:
                log.warning("the API keys of the database are read again")
            self._is_away = False
        finally:
            self._tried.set()
