"""Small measures: how long a call takes and a run may, and the spread of repeated measurements."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

_Result = TypeVar("_Result")
Spread = tuple[float, float, float]  # median, least, most


class TimeLimit:
    """The time in which further measurements may begin.

    Args:
        seconds: from now on; None for no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        self._end = math.inf if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until the end; infinite without a limit."""
        return max(0.0, self._end - time.monotonic())

    @property
    def is_over(self) -> bool:
        """Whether no further measurement is to begin."""
        return not self.left


def spread(values: Sequence[float]) -> Spread:
    """Median, least and most."""
    return statistics.median(values), min(values), max(values)


def timed(work: Callable[..., _Result], *arguments: Any, **options: Any) -> tuple[float, _Result]:
    """Seconds that a call took, and its result."""
    started = time.perf_counter()
    result = work(*arguments, **options)
    return time.perf_counter() - started, result
