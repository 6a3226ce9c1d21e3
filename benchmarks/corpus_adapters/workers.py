"""Workers: passages that are scored in processes of their own, one core each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from benchmarks.corpus_adapters.arms import Start, Training
from benchmarks.corpus_adapters.quality import QualityRunner, Scores
from benchmarks.harness.measures import TimeLimit
from benchmarks.harness.processes import openmp_threads
from benchmarks.quality.passages import Passage

# Kind of corpus, passage, and name of the corpus.
Task: TypeAlias = tuple[str, Passage, str]

# Each process has one.
_runner: QualityRunner | None = None


class Workers:
    """Processes that score passages, within a `with` block.

    Args:
        count: number of processes.
        model, homes, trainings, prefix: as for `QualityRunner`.
    """

    def __init__(
        self,
        count: int,
        model: str,
        homes: Mapping[Start, Path],
        trainings: Sequence[Training],
        prefix: int,
    ) -> None:
        self._count, self._stack = count, ExitStack()
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(
            count, context, _open_runner, (model, dict(homes), trainings, prefix)
        )

    def __enter__(self) -> Self:
        self._stack.enter_context(openmp_threads(1))
        self._stack.enter_context(self._pool)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def measure(
        self, tasks: Iterable[Task], limit: TimeLimit
    ) -> Iterator[tuple[str, Passage, Scores]]:
        """Score passages, as many at once as there are processes; none begins after the limit."""
        waiting = iter(tasks)
        running: dict[Future[Scores], Task] = {}
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


def _open_runner(
    model: str, homes: Mapping[Start, Path], trainings: Sequence[Training], prefix: int
) -> None:
    global _runner
    _runner = QualityRunner(model, homes, trainings, prefix)


def _measure(passage: Passage, corpus: str) -> Scores:
    assert _runner is not None, "the process was initialised"
    return _runner.measure(passage, corpus)
