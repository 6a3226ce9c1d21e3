"""FairLock: a reentrant lock that threads get in the order in which they asked for it.

A thread that releases a plain lock and takes it again at once, as a training does between two
steps, often has it again before a waiting thread has woken up.
"""

from __future__ import annotations

import threading
from collections import deque


class FairLock:
    """A reentrant lock for `with` statements, first come, first served."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._waiting: deque[int] = deque()
        self._owner: int | None = None
        self._depth = 0

    @property
    def waiting(self) -> int:
        """Number of threads that wait for it."""
        return len(self._waiting)

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._changed:
            if self._owner != me:
                self._waiting.append(me)
                self._changed.wait_for(lambda: self._owner is None and self._waiting[0] == me)
                self._waiting.popleft()
                self._owner = me
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            assert self._owner == threading.get_ident(), "released by a thread that has not got it"
            self._depth -= 1
            if self._depth == 0:
                self._owner = None
                self._changed.notify_all()
