"""Workers of the stages of an adaptation: selector and trainer, asynchronous and cancellable.

The work itself runs in threads, so that the event loop stays free to notice a cancelled request.
Selections and trainings of several requests run together and take turns.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from adapters.config import TrainerConfig
from adapters.core_share import CoreShare
from adapters.model.row import Row
from adapters.training import TrainingProgress, TrainingRequest, TrainingResult
from selection.access import Principal
from selection.corpus.lookup import find_corpus
from selection.corpus.shards import ShardCall
from selection.corpus.trained.manifest import CorpusStart, CorpusWeights, LearntCorpus, StartFound
from selection.embedding import Prompt
from selection.errors import CorpusError, CorpusNotFoundError
from selection.limit import Limit
from selection.request import SelectionRequest
from selection.selector import Selection, Selector, SelectorConfig
from selection.threaded_embedder import ThreadedEmbedder
from serving.calls import wait_until_ended
from serving.errors import TrainerFailedError
from serving.observability.startup_progress import report_startup, reported_startup

# Maximum number of calls to a worker at the same time. Ray Serve admits no more, and each selection
# or search occupies a thread, also while it waits for its turn.
MAX_CALLS = 256

Result = TypeVar("Result")


class SelectorWorker:
    """A selector.

    Args:
        config, shards, embedder: as for `Selector`.
    """

    def __init__(
        self,
        config: SelectorConfig,
        shards: Sequence[ShardCall] = (),
        embedder: ThreadedEmbedder | None = None,
    ) -> None:
        self._selector = Selector(config, shards, embedder)
        # Asyncio's own pool has six threads on two cores, which large requests would all occupy.
        self._threads = ThreadPoolExecutor(MAX_CALLS, "selection")

    async def select(self, request: SelectionRequest, seconds: float | None = None) -> Selection:
        """As `Selector.select`, within `seconds` from now. Cancelling ends it within a unit of its
        work.
        """
        cancelled = threading.Event()
        select = partial(self._selector.select, request, Limit(seconds, cancelled))
        return await self.run_in_thread(select, cancelled)

    async def start(self, request: SelectionRequest, seconds: float | None = None) -> StartFound:
        """As `Selector.start`, within `seconds` from now, and cancelled as `select`."""
        cancelled = threading.Event()
        find = partial(self._selector.start, request, Limit(seconds, cancelled))
        return await self.run_in_thread(find, cancelled)

    async def start_weights(self, corpus: str, start: CorpusStart) -> CorpusWeights:
        """As `Selector.start_weights`, cancelled as `select`."""
        cancelled = threading.Event()
        limit = Limit(None, cancelled)
        read = partial(self._selector.start_weights, corpus, start, limit)
        return await self.run_in_thread(read, cancelled)

    async def learnt_corpora(self, principal: Principal) -> tuple[LearntCorpus, ...]:
        """As `Selector.learnt_corpora`."""
        return await asyncio.to_thread(self._selector.learnt_corpora, principal)

    async def sees(self, corpus: str, principal: Principal) -> bool:
        """Whether a principal sees a corpus of this name or id."""
        try:
            await asyncio.to_thread(find_corpus, self._selector.config.root, corpus, principal)
        except CorpusNotFoundError:
            return False
        # Several have this name: the request itself is refused for that.
        except CorpusError:
            return True
        return True

    async def warm_up(self, corpus: str | None) -> None:
        """Select once from a corpus, if one is named, so that it is open and its index loaded."""
        if corpus is not None:
            prompt = Prompt("a first prompt, so that no request pays for the first search")
            await self.select(SelectionRequest([prompt], corpus, steps=1))

    async def ready(self, corpus: str | None) -> None:
        """Check that the corpus, if one is named, can be selected from.

        Raises:
            CorpusError: the corpus cannot be selected from.
        """
        if corpus is not None:
            await asyncio.to_thread(self._selector.check, corpus)

    async def run_in_thread(self, work: Callable[[], Result], cancelled: threading.Event) -> Result:
        """The result of work in a thread; `cancelled` is set if the caller is cancelled."""
        run = partial(contextvars.copy_context().run, work)
        running = asyncio.get_running_loop().run_in_executor(self._threads, run)
        return await wait_until_ended(running, cancelled)


# A trainer counts as hanging after STALL_SECONDS, and STALL_FACTOR times the longest pause so far,
# without a finished step.
STALL_SECONDS, STALL_FACTOR = 20.0, 10.0
# Number of consecutive requests whose training fails before its first step, after which the trainer
# counts as broken: a GPU that has failed once fails for good. The trainings of corpora do not
# count, since one corpus is tried again and again.
FAILURES = 3


class TrainerWorker:
    """A trainer: requests train together.

    Args:
        config: of the trainer.
        clock: seconds that only grow.
        cores: as for `Trainer`.
    """

    def __init__(
        self,
        config: TrainerConfig,
        clock: Callable[[], float] = time.monotonic,
        cores: CoreShare | None = None,
    ) -> None:
        self._clock = clock
        started = clock()
        report_startup("trainer", "loading the base model")
        with reported_startup("trainer"):
            from adapters.trainer import Trainer

            self._trainer = Trainer(config, cores=cores)
        # When a step or a training last ended, a training was submitted to an idle trainer, or all
        # trainings were seen to give way.
        self._last_progress = clock()
        # The longest time between two such events; at first, of loading and a few steps.
        self._longest_pause = self._last_progress - started
        self._is_hanging = False
        self._failures = 0
        # One future for each training, done once the training is given up.
        self._trainings: set[asyncio.Future[None]] = set()

    async def check_health(self) -> None:
        """Check that steps end and trainings succeed. Ray Serve replaces the replica otherwise; a
        thread may wait forever in a library that got no memory.

        Raises:
            TrainerFailedError: no step has ended for far too long, and the waiting trainings are
                given up; or the last trainings all failed before their first step.
        """
        if self._failures >= FAILURES:
            raise TrainerFailedError(
                f"the trainer is broken: the last {self._failures} trainings failed before their "
                "first step"
            )
        if self._trainer.gives_way:
            self._last_progress = self._clock()
        pause = self._clock() - self._last_progress
        if self._trainings and pause > max(STALL_SECONDS, STALL_FACTOR * self._longest_pause):
            self._is_hanging = True
        # Until something ends: otherwise it would be healthy as soon as no request waits any more.
        if self._is_hanging:
            for given_up in self._trainings:
                if not given_up.done():
                    given_up.set_result(None)
            raise TrainerFailedError(f"the trainer hangs: no step has ended for {pause:.0f} s")

    async def warm_up(self) -> None:
        """As `Trainer.warm_up`: step times measured while other processes started would be too
        long.
        """
        await asyncio.to_thread(self._trainer.warm_up)

    async def ready(self) -> None:
        """Nothing to check: the model is loaded when the worker is created."""

    async def train(
        self,
        request: TrainingRequest,
        on_step: Callable[[TrainingProgress], None] | None = None,
    ) -> TrainingResult:
        """As `Trainer.train`; `on_step` is called in the event loop. Cancelling ends it within a
        step.

        A learning rate of the server's settings has priority over that of a request's corpus.

        Raises:
            TrainerFailedError: the trainer hangs.
        """
        if self._trainer.config.learning_rate:
            request = replace(request, learning_rate=None)
        loop, cancelled = asyncio.get_running_loop(), threading.Event()

        def handle_step(progress: TrainingProgress) -> None:
            self._note_progress()
            self._failures = 0
            if on_step is not None and not cancelled.is_set():
                loop.call_soon_threadsafe(on_step, progress)

        given_up: asyncio.Future[None] = loop.create_future()
        if not self._trainings or self._trainer.gives_way:
            self._last_progress = self._clock()
        training = self._trainer.submit(request, cancelled=cancelled, on_step=handle_step)
        training.add_done_callback(partial(self._handle_end, counts=not request.background))
        self._trainings.add(given_up)
        try:
            result = _unless_given_up(asyncio.wrap_future(training), given_up)
            return await wait_until_ended(asyncio.create_task(result), cancelled)
        finally:
            self._trainings.remove(given_up)

    async def stream(
        self, request: TrainingRequest
    ) -> AsyncIterator[TrainingProgress | TrainingResult]:
        """`train` as a stream of steps, with the result last, for callers in other processes."""
        steps: asyncio.Queue[TrainingProgress | None] = asyncio.Queue()
        task = asyncio.create_task(self.train(request, steps.put_nowait))
        task.add_done_callback(lambda _: steps.put_nowait(None))
        try:
            while (progress := await steps.get()) is not None:
                yield progress
            yield await task
        finally:
            # If it still runs, the caller has gone.
            task.cancel()
            await asyncio.wait([task])

    async def loss(self, rows: Sequence[Row], weights: bytes | None = None) -> float:
        """As `Trainer.loss`. Cancelling ends it within a row."""
        cancelled = threading.Event()
        loss = asyncio.to_thread(self._trainer.loss, rows, weights, cancelled)
        return await wait_until_ended(asyncio.create_task(loss), cancelled)

    async def compare(
        self, rows: Sequence[Row], adapters: Sequence[bytes | None]
    ) -> tuple[tuple[float, ...], ...]:
        """As `Trainer.compare`. Cancelling ends it within a row."""
        cancelled = threading.Event()
        compare = asyncio.to_thread(self._trainer.compare, rows, adapters, cancelled)
        return await wait_until_ended(asyncio.create_task(compare), cancelled)

    async def give_way(self, seconds: float) -> None:
        """As `Trainer.give_way`."""
        if self._trainer.gives_way:
            self._last_progress = self._clock()
        self._trainer.give_way(seconds)

    async def learning_rate(self) -> float:
        """As `Trainer.learning_rate`."""
        return self._trainer.learning_rate

    async def count(self) -> int:
        """The number of trainers: this one."""
        return 1

    async def corpus_rates(self) -> tuple[float, float]:
        """As `Trainer.corpus_rates`."""
        return self._trainer.corpus_rates

    def _handle_end(self, training: Future[TrainingResult], *, counts: bool) -> None:
        if counts and not training.cancelled() and training.exception() is not None:
            self._failures += 1
        self._note_progress()

    def _note_progress(self) -> None:
        now = self._clock()
        self._longest_pause = max(self._longest_pause, now - self._last_progress)
        self._last_progress, self._is_hanging = now, False


async def _unless_given_up(
    training: asyncio.Future[TrainingResult], given_up: asyncio.Future[None]
) -> TrainingResult:
    both: list[asyncio.Future[Any]] = [given_up, training]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if not training.done():
        raise TrainerFailedError("the trainer hangs")
    return training.result()
