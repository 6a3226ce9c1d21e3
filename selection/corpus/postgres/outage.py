"""Outages: what keeps callers from waiting for a database that does not answer: one after the
other for a connection, or without end for the answer to a short query.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg

# Seconds for which callers are refused at once after one has waited in vain.
_OUTAGE_SECONDS = 1.0

Result = TypeVar("Result")


class NoAnswerError(psycopg.OperationalError):
    """The server has not answered for too long; the connection is closed."""


class Outage:
    """Remembers for a moment that a database could not be reached. Any thread may use it.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # The error of the last caller that has waited in vain, and when that was.
        self._last: tuple[psycopg.Error, float] | None = None

    def check(self) -> None:
        """Return unless a caller has just waited in vain.

        Raises:
            psycopg.Error: that caller's error.
        """
        with self._lock:
            last = self._last
        if last is not None and self._clock() - last[1] < _OUTAGE_SECONDS:
            # An error of its own for each thread, without the traceback of another.
            raise type(last[0])(*last[0].args)

    def remember(self, problem: psycopg.Error) -> None:
        """Refuse callers from now on, for a moment."""
        with self._lock:
            self._last = problem, self._clock()

    def end(self) -> None:
        """Refuse nobody any more: the database has answered."""
        with self._lock:
            self._last = None


class BoundedConnection(psycopg.Connection[tuple[object, ...]]):
    """A connection that can be told how long to wait for answers."""

    _answer_seconds: float | None = None

    @contextmanager
    def answering(self, seconds: float | None) -> Iterator[None]:
        """Within the `with` block, close the connection if the server sends nothing for that long
        while a query waits for it; None for no limit.

        Raises:
            NoAnswerError: it was closed.
        """
        before, self._answer_seconds = self._answer_seconds, seconds
        try:
            yield
        finally:
            self._answer_seconds = before

    def wait(self, gen: Generator[Any, Any, Result], *args: Any, **options: Any) -> Result:
        """As psycopg's: run what every use of the connection consists of."""
        if self._answer_seconds is not None:
            gen = _bounded(gen, self._answer_seconds)
        try:
            return super().wait(gen, *args, **options)
        except NoAnswerError:
            # Whatever comes later would be the answer to this query.
            self.close()
            raise


def _bounded(gen: Generator[Any, Any, Result], seconds: float) -> Generator[Any, Any, Result]:
    """A generator that psycopg resumes when the server has sent something, and a few times a second
    with 0.
    """
    end = time.monotonic() + seconds
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if ready:
                end = time.monotonic() + seconds
            elif time.monotonic() >= end:
                raise NoAnswerError(f"no answer within {seconds:g} seconds")
            wanted = gen.send(ready)
    except StopIteration as ended:
        result: Result = ended.value
        return result
