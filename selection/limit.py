"""Limit: how long a request's work may take: until its seconds are over, or until it is abandoned.

Work that may take long is done in units (a few texts embedded, one search, some steps of a choice),
and checks its limit between them. This module is independent of the work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_POLL_SECONDS = 0.05


class SecondsSpentError(Exception):
    """The seconds of the work were over before it ended."""


class AbandonedError(Exception):
    """The work was abandoned: its result is not needed any more."""


class Limit:
    """The seconds that work may take from now on, and a flag that ends it earlier.

    Args:
        seconds: None for no limit.
        abandoned: set by another thread when the result is not needed any more.
        clock: monotonic seconds.
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
        """Return if the work may continue.

        Raises:
            AbandonedError: the flag is set.
            SecondsSpentError: the seconds are over.
        """
        if self._abandoned is not None and self._abandoned.is_set():
            raise AbandonedError("the work was abandoned")
        if self._end is not None and self._clock() >= self._end:
            raise SecondsSpentError("the seconds were spent")

    @contextmanager
    def holding(self, lock: threading.Lock) -> Iterator[None]:
        """Hold a lock within the `with` block; the wait for it counts towards the limit.

        Raises:
            AbandonedError, SecondsSpentError: as `check`; the lock was not acquired.
        """
        self.acquire(lock)
        try:
            yield
        finally:
            lock.release()

    def acquire(self, lock: threading.Lock) -> None:
        """As `holding`, for a lock that is released elsewhere."""
        self.check()
        while not lock.acquire(timeout=_POLL_SECONDS):
            self.check()


UNLIMITED = Limit()
