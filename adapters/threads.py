"""Threads: with how many threads of the processor a step is computed.

A step of few tokens is many small operations, and on some machines the threads cost more in meeting than they save in
computing: measured once on two virtual cores, a step of 256 tokens took half as long again with both as with one. So
one thread and all threads are tried, on steps that double in size, until all are faster; smaller steps take one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

_TRIES = 2  # of each, the faster counts
_LONG = 0.5  # seconds; of a step that takes so long one try is enough
_SECONDS = 3.0  # for all tries; sizes that are not reached take all threads


class Threads:
    """One thread or all, by the tokens of a step.

    Args:
        most: how many all are.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.alone_up_to = 0  # tokens

    def measure(self, step: Callable[[int], None], sizes: Sequence[int], seconds: float = _SECONDS) -> None:
        """Try steps of these sizes, in tokens, ascending, for no longer than so many seconds or one size."""
        begun = time.perf_counter()
        for tokens in sizes if self.most > 1 else ():
            if time.perf_counter() - begun > seconds:
                return
            if self._took(step, tokens, self.most) < self._took(step, tokens, 1):
                return
            self.alone_up_to = tokens

    @contextmanager
    def of(self, tokens: int) -> Iterator[None]:
        """Within a `with` a step of so many tokens is computed by its number of threads."""
        with _threads(1 if tokens <= self.alone_up_to else self.most, self.most):
            yield

    def _took(self, step: Callable[[int], None], tokens: int, threads: int) -> float:
        seconds = []
        with _threads(threads, self.most):
            for _ in range(_TRIES):
                begun = time.perf_counter()
                step(tokens)
                seconds.append(time.perf_counter() - begun)
                if seconds[-1] > _LONG:
                    break
        return min(seconds)


@contextmanager
def _threads(number: int, before: int) -> Iterator[None]:
    if number == before:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)  # a thread that begins meanwhile would keep the other number
