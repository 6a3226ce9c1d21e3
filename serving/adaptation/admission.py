"""Admission: how many requests one replica takes on, and how it sheds load.

Two bounds hold before any compute: on requests in all, and on adaptations among them. Beyond them a
request is refused, with the time after which it is likely to be admitted. Within them, one rule
shares the trainer: while more than `undegraded` adaptations wait for their adapter, each new one
gets undegraded / pending of its steps, at least one, unless its request requires an adapter. So the
work that waits is bounded, and with it the time to an answer. The gateway counts the pending ones,
and `AdaptationRequest.shed_load` applies the rule.

Admission counts; it does not queue. Admitted requests wait where the work is: in the trainer's
schedule, for the engine's slots, in vLLM.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serving.errors import BusyError

# Requests whose durations make the estimate of the next free place.
_RECENT = 64
# Seconds, the estimate before any request has ended.
_FIRST_ESTIMATE = 1.0


@dataclass(frozen=True)
class Capacity:
    """What one replica takes on.

    Attributes:
        requests: requests at once, those answered by the base model included.
        adaptations: adaptations at once, from their arrival to the end of their answer, or until it
            is clear that they get no adapter.
        undegraded: adaptations that may wait for their adapter at once with all their steps.
    """

    requests: int = 128
    adaptations: int = 16
    undegraded: int = 4

    @classmethod
    def for_machine(cls, cores: int, gpus: int) -> Capacity:
        """The default of a machine.

        On a CPU, where all stages share the cores, it is so low that the p99 latency of admitted
        requests under overload stays within twice the unloaded one (measured on two cores,
        benchmarks/README.md).
        """
        if gpus:
            return cls()
        return cls(min(128, 8 * cores), min(16, cores), min(4, max(1, cores // 2)))


@dataclass(frozen=True)
class TrainerLoad:
    """The load that an admitted adaptation meets.

    Attributes:
        pending: adaptations that wait for their adapter, this one included.
        undegraded: as in `Capacity`.
    """

    pending: int
    undegraded: int

    def steps(self, asked: int) -> int:
        """The number of steps that an adaptation gets of those it asks for."""
        if self.pending <= self.undegraded:
            return asked
        return max(asked * self.undegraded // self.pending, min(asked, 1))


class Admission:
    """Counts the requests of one replica; belongs to one event loop.

    Args:
        capacity: the bounds.
        clock: seconds that only grow.
    """

    def __init__(self, capacity: Capacity, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity, self._clock = capacity, clock
        self.requests = self.adaptations = 0
        self._durations: dict[bool, deque[float]] = {
            adapts: deque(maxlen=_RECENT) for adapts in (True, False)
        }

    @contextmanager
    def admit(self, adapts: bool) -> Iterator[Callable[[], None]]:
        """Count a request within the `with` block, whose function ends its count as an adaptation
        earlier; further calls have no effect.

        Args:
            adapts: whether the request is to get an adapter.

        Raises:
            BusyError: the replica is full.
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
        counted = adapts

        def end_adaptation() -> None:
            nonlocal counted
            self.adaptations -= counted
            counted = False

        started = self._clock()
        try:
            yield end_adaptation
        finally:
            self.requests -= 1
            end_adaptation()
            self._durations[adapts].append(self._clock() - started)

    def _busy(self, message: str, adapts: bool) -> BusyError:
        recent = self._durations[adapts]
        seconds = sum(recent) / len(recent) if recent else _FIRST_ESTIMATE
        return BusyError(
            f"{message}; try again later", seconds, "adaptations" if adapts else "requests"
        )
