"""Request rates: how many requests a key may make in a minute, also the number that may come at
once.

`LocalRates` counts the requests of this process. Where the corpora are in a database, `SharedRates`
counts those of all servers there. While the database is away, or slow, each process counts alone,
so that a limit holds at least for each, and no request waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from selection.errors import CorpusError
from selection.location import DatabaseLocation, Location
from serving.errors import RateLimitError

if TYPE_CHECKING:
    from selection.corpus.postgres.rates import Rates

log = logging.getLogger(__name__)

# Seconds that a request waits for the database, and after which it is asked again once it was away.
_WAIT_SECONDS, _AWAY_SECONDS = 1.0, 10.0


class RequestRates(Protocol):
    """The rates of all keys. They belong to one event loop."""

    async def count(self, key: str, limit: int | None) -> None:
        """Count a request of a key.

        Args:
            key: name of the key.
            limit: requests a minute; None for no limit.

        Raises:
            RateLimitError: the key has made too many requests; says when it may make the next.
        """


def rates_at(corpora: Location) -> RequestRates:
    """The rates of a server whose corpora are at a location."""
    return LocalRates() if isinstance(corpora, Path) else SharedRates(corpora)


class LocalRates:
    """Rates of the requests of this process.

    Args:
        clock: monotonic clock, seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Requests that each key may still make at once, and when that was computed.
        self._allowances: dict[str, tuple[float, float]] = {}

    async def count(self, key: str, limit: int | None) -> None:
        """As `RequestRates.count`."""
        if limit is None:
            return
        now = self._clock()
        allowance, computed_at = self._allowances.get(key, (limit, now))
        allowance = min(limit, allowance + (now - computed_at) * limit / 60)
        if allowance < 1:
            raise _too_many(limit, (1 - allowance) * 60 / limit)
        self._allowances[key] = (allowance - 1, now)


class SharedRates:
    """Rates of the requests of all servers of a database.

    Args:
        location: the database.
        clock: monotonic clock, seconds.
    """

    def __init__(
        self, location: DatabaseLocation, clock: Callable[[], float] = time.monotonic
    ) -> None:
        # PostgreSQL's client is imported only where it is needed.
        from selection.corpus.postgres.rates import Rates

        self._table: Rates = Rates(location)
        self._local, self._clock = LocalRates(clock), clock
        self._away_until = 0.0

    async def count(self, key: str, limit: int | None) -> None:
        """As `RequestRates.count`."""
        if limit is None:
            return
        if self._clock() >= self._away_until:
            try:
                asking = asyncio.to_thread(self._table.take, key, limit)
                seconds = await asyncio.wait_for(asking, _WAIT_SECONDS)
            except (CorpusError, TimeoutError) as problem:
                self._away_until = self._clock() + _AWAY_SECONDS
                log.warning(
                    "requests of keys are counted by each server alone: %s",
                    str(problem) or "the corpora's database is slow",
                )
            else:
                if seconds is not None:
                    raise _too_many(limit, seconds)
                return
        await self._local.count(key, limit)


def _too_many(limit: int, seconds: float) -> RateLimitError:
    return RateLimitError(f"this API key is limited to {limit} requests a minute", seconds)
