"""Limit: how long a request's work may go on: until its seconds are over, or until nobody waits for
it any more.

Work that may take long is done in units (a few texts embedded, one search, some steps of a choice),
and looks at its limit between them. Knows nothing of what is done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOOK_SECONDS = 0.05


class SecondsSpentError(Exception):
    """The seconds of the work were over before it ended."""


class AbandonedError(Exception):
    """The result of the work is not wanted any more."""


class Limit:
    """The seconds that work may take from now on, and a flag that ends it earlier.

    Args:
        seconds: None for no limit.
        abandoned: set by another thread once the result is not wanted any more.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        seconds: float | None = None,
        abandoned: threading.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._end = None if seconds is None else clock() + seconds
        self._abandoned = abandoned

    def check(self) -> None:
        """Return if the work may go on.

        Raises:
            AbandonedError: the flag is set.
            SecondsSpentError: the seconds are over.
        """
        if self._abandoned is not None and self._abandoned.is_set():
            raise AbandonedError("the result is not wanted any more")
        if self._end is not None and self._clock() >= self._end:
            raise SecondsSpentError("the seconds were spent")

    @contextmanager
    def holding(self, lock: threading.Lock) -> Iterator[None]:
        """Hold a lock for the length of a `with`; waiting for it counts.

        Raises:
            AbandonedError, SecondsSpentError: as `check`, without the lock.
        """
        self.acquire(lock)
        try:
            yield
        finally:
            lock.release()

    def acquire(self, lock: threading.Lock) -> None:
        """As `holding`, for a lock that is released elsewhere."""
        self.check()
        while not lock.acquire(timeout=_LOOK_SECONDS):
            self.check()


UNLIMITED = Limit()
