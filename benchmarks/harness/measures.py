"""Small measures: how long a call takes, and the median and range of repeated measurements."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

_Result = TypeVar("_Result")
Spread = tuple[float, float, float]  # median, least, most


def spread(values: Sequence[float]) -> Spread:
    """Median, least and most."""
    return statistics.median(values), min(values), max(values)


def timed(work: Callable[..., _Result], *arguments: Any, **options: Any) -> tuple[float, _Result]:
    """Seconds that a call took, and its result."""
    started = time.perf_counter()
    result = work(*arguments, **options)
    return time.perf_counter() - started, result
