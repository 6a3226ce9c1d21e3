"""Admission: how many requests one replica takes on, and what an adaptation gets while many are
under way.

Two bounds, kept at the door before any compute: requests in all, and adaptations among them. Beyond
them a request is refused, with the time after which a place is likely to be free. Within them, a
rule shares the trainer: while more than `undegraded` adaptations have not got their adapter yet,
each new one that does not require its own gets that share of its steps, undegraded / learning, at
least one. So the work that waits is bounded too, and with it how long an answer takes.

It counts; it does not queue. Those admitted wait where the work is: the trainer's schedule, the
engine's slots, vLLM.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serving.errors import BusyError

_RECENT = 64  # requests whose time in the house is remembered
_GUESS = 1.0  # seconds, before any has ended


@dataclass(frozen=True)
class Capacity:
    """What one replica takes on.

    Attributes:
        requests: at once, answers of the base model included.
        adaptations: at once, from their arrival to the end of their answer, or until there will be
            no adapter.
        undegraded: adaptations that learn at once and get all their steps.
    """

    requests: int = 128
    adaptations: int = 16
    undegraded: int = 4

    @classmethod
    def of(cls, cores: int, gpus: int) -> Capacity:
        """What such a machine takes on: on a CPU, where all stages share the cores, so little that
        the p99 of all that is accepted under overload stays within twice the unloaded one (measured
        on two, benchmarks/README.md).
        """
        if gpus:
            return cls()
        return cls(min(128, 8 * cores), min(16, cores), min(4, max(1, cores // 2)))


@dataclass(frozen=True)
class Place:
    """What an admitted adaptation finds.

    Attributes:
        learning: adaptations without their adapter yet, this one included.
        undegraded: as in `Capacity`.
    """

    learning: int
    undegraded: int

    def steps(self, wished: int) -> int:
        """How many of so many steps it gets."""
        if self.learning <= self.undegraded:
            return wished
        return max(wished * self.undegraded // self.learning, min(wished, 1))


class Admission:
    """Counts the requests of one replica; belongs to one event loop."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self.requests = self.adaptations = self.rejected = 0
        self._seconds: dict[bool, deque[float]] = {
            adapts: deque(maxlen=_RECENT) for adapts in (True, False)
        }

    @contextmanager
    def admit(self, adapts: bool) -> Iterator[Callable[[], None]]:
        """A place for the length of a `with`; what it gives returns the place among adaptations
        earlier, once.

        Args:
            adapts: whether the request wishes an adapter.

        Raises:
            BusyError: there is none.
        """
        capacity = self._capacity
        if self.requests >= capacity.requests:
            raise self._busy(
                f"{self.requests} requests are under way, as many as this server takes", False
            )
        if adapts and self.adaptations >= capacity.adaptations:
            raise self._busy(
                f"{self.adaptations} adaptations are under way, as many as this server takes", True
            )
        self.requests += 1
        self.adaptations += adapts
        held = adapts

        def end_adaptation() -> None:
            nonlocal held
            self.adaptations -= held
            held = False

        begun = time.monotonic()
        try:
            yield end_adaptation
        finally:
            self.requests -= 1
            end_adaptation()
            self._seconds[adapts].append(time.monotonic() - begun)

    def _busy(self, message: str, adapts: bool) -> BusyError:
        self.rejected += 1
        recent = self._seconds[adapts]
        seconds = sum(recent) / len(recent) if recent else _GUESS
        return BusyError(
            f"{message}; try again later", seconds, "adaptations" if adapts else "requests"
        )
