"""Work in fresh processes, with a set number of OpenMP threads."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

_Result = TypeVar("_Result")


@contextlib.contextmanager
def openmp_threads(threads: int) -> Iterator[None]:
    """Within the `with` block, new processes start with this many OpenMP threads.

    Libraries read the number when they are loaded, so this process keeps its own.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def in_fresh_process(threads: int, work: Callable[..., _Result], *arguments: Any) -> _Result:
    """Call a function in a new process with this many threads, and return its result."""
    context = multiprocessing.get_context("spawn")
    with openmp_threads(threads), ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()
