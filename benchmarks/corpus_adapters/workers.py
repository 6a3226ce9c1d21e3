"""Workers: passages that are measured in processes of their own, one core each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from typing import Any, Protocol, Self, TypeAlias

from benchmarks.harness.measures import TimeLimit
from benchmarks.harness.processes import openmp_threads
from benchmarks.quality.passages import Passage

# Kind of corpus, passage, and name of the corpus.
Task: TypeAlias = tuple[str, Passage, str]


class Runner(Protocol):
    """Measures passages, in one process."""

    def measure(self, passage: Passage, corpus: str) -> Any:
        """What was measured on a passage that was held out of a corpus, for JSON."""


# Each process has one.
_runner: Runner | None = None


class Workers:
    """Processes that measure passages, within a `with` block.

    Args:
        count: number of processes.
        open_runner: makes the runner of a process; it is sent there.
    """

    def __init__(self, count: int, open_runner: Callable[[], Runner]) -> None:
        self._count, self._stack = count, ExitStack()
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(count, context, _open, (open_runner,))

    def __enter__(self) -> Self:
        self._stack.enter_context(openmp_threads(1))
        self._stack.enter_context(self._pool)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(
        self, tasks: Iterable[Task], limit: TimeLimit
    ) -> Iterator[tuple[str, Passage, Any]]:
        """Measure passages, as many at once as there are processes; none begins after the limit."""
        waiting = iter(tasks)
        running: dict[Future[Any], Task] = {}
        while True:
            while len(running) < self._count and not limit.is_over:
                task = next(waiting, None)
                if task is None:
                    break
                running[self._pool.submit(_measure, *task[1:])] = task
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                kind, passage, _ = running.pop(done)
                yield kind, passage, done.result()


def _open(open_runner: Callable[[], Runner]) -> None:
    global _runner
    _runner = open_runner()


def _measure(passage: Passage, corpus: str) -> Any:
    assert _runner is not None, "the process was initialised"
    return _runner.measure(passage, corpus)
