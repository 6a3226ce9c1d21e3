"""The selector, the library, shards and the trainer as stages of a server: asynchronous and
cancellable.

Plain classes that work without Ray; `serving.app` makes deployments of them. The work itself runs
in a thread, so that the event loop stays free to hear of a cancelled request. Selections, searches
and trainings of several requests run together, each in turns with the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from transformers import AutoTokenizer

from adapters.trainer import Trainer, TrainerConfig
from adapters.training import TrainingProgress, TrainingRequest, TrainingResult
from selection.corpus.shards import Shard, ShardCall
from selection.embedding import Prompt
from selection.library.library import Library
from selection.limit import Limit
from selection.request import SelectionRequest
from selection.selector import Selection, Selector, SelectorConfig
from selection.threaded_embedder import ThreadedEmbedder
from serving.errors import HangingError
from serving.observability.startup_progress import report_startup, reported_startup

THREADS = 256  # of selections and searches that wait for their turns, as many as Ray Serve lets in

Owner = TypeVar("Owner")
P = ParamSpec("P")
Result = TypeVar("Result")


class SelectorWorker:
    """A selector; `embedder` is as in `Selector`."""

    def __init__(
        self,
        config: SelectorConfig,
        shards: Sequence[ShardCall] = (),
        embedder: ThreadedEmbedder | None = None,
    ) -> None:
        self._selector = Selector(config, shards, embedder)
        # Not asyncio's own, which on two cores has six: large requests would keep them all from a
        # small one.
        self._threads = ThreadPoolExecutor(THREADS, "selection")

    async def select(self, request: SelectionRequest, seconds: float | None = None) -> Selection:
        """As `Selector.select`, within `seconds` from now. Cancelling ends it within a unit of its
        work.
        """
        abandoned = threading.Event()
        return await self._at_once(
            partial(self._selector.select, request, Limit(seconds, abandoned)), abandoned
        )

    async def warm_up(self, corpus: str | None) -> None:
        """Choose once from that corpus, if one is named: it is open then, its index loaded, and a
        search has run.
        """
        if corpus is not None:
            prompt = Prompt("a first prompt, so that no request pays for the first search")
            await self.select(SelectionRequest([prompt], corpus, steps=1))

    async def ready(self, corpus: str | None) -> None:
        """Raise unless prompts could be given data: of that corpus, if one is named."""
        if corpus is not None:
            await asyncio.to_thread(self._selector.check, corpus)

    async def _at_once(self, work: Callable[[], Result], abandoned: threading.Event) -> Result:
        """The result of work that others may do at the same time."""
        run = partial(contextvars.copy_context().run, work)
        return await _held(
            asyncio.get_running_loop().run_in_executor(self._threads, run), abandoned
        )


class SerialExecutor(Generic[Owner]):
    """What only one thread at a time may use, such as a library or a shard."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self._one_at_a_time = asyncio.Lock()

    async def ask(
        self, method: Callable[Concatenate[Owner, P], Result], /, *args: P.args, **kwargs: P.kwargs
    ) -> Result:
        """What a method answers. The function itself is handed over: it survives pickling by its
        name.
        """
        async with self._one_at_a_time:
            return await _held(
                asyncio.create_task(asyncio.to_thread(method, self.owner, *args, **kwargs))
            )


class ShardWorker(SerialExecutor[Shard]):
    """A shard of corpora, in the folder that holds them."""

    def __init__(self, root: Path) -> None:
        super().__init__(Shard(root))


class CorporaWorker(SelectorWorker):
    """A selector and a library over the same corpora: they share the embedder and the open indexes."""

    def __init__(
        self,
        config: SelectorConfig,
        shards: Sequence[ShardCall] = (),
        embedder: ThreadedEmbedder | None = None,
    ) -> None:
        super().__init__(config, shards, embedder)
        assert config.base_model is not None, "a library needs the tokenizer of the base model"
        tokenizer = AutoTokenizer.from_pretrained(config.base_model)
        files = config.root.parent / "files"
        selector = self._selector
        self._library = SerialExecutor(
            Library(config.root, selector.embedder, tokenizer, files, selector.corpora)
        )

    async def ask(
        self,
        method: Callable[Concatenate[Library, P], Result],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Result:
        """As `SerialExecutor.ask`, of the library; a search, which may be long, waits for no other
        call and holds none up.
        """
        if method is not Library.search:
            return await self._library.ask(method, *args, **kwargs)
        abandoned = threading.Event()
        search: Callable[..., Result] = method
        limit = Limit(abandoned=abandoned)
        return await self._at_once(
            partial(search, self._library.owner, *args, **kwargs, limit=limit), abandoned
        )


# A trainer hangs after so long without a step, and so many longest pauses.
STILL_SECONDS, STILL_TIMES = 20.0, 10.0
# Trainings in a row, without a step between: a GPU that has failed once fails for good.
FAILURES = 3


class TrainerWorker:
    """A trainer: requests train together."""

    def __init__(self, config: TrainerConfig) -> None:
        begun = time.monotonic()
        report_startup("trainer", "loading the base model")
        with reported_startup("trainer"):
            self._trainer = Trainer(config)
        # When a step or a training last ended, or the first of several came.
        self._moved = time.monotonic()
        # From one such time to the next; at first, of loading and a few steps.
        self._longest = self._moved - begun
        self._hangs = False
        self._failures = 0  # since the last step
        self._trainings: set[asyncio.Future[None]] = set()  # done when there is no hope for them

    async def check_health(self) -> None:
        """Raise if no step has ended for far too long, and end whatever waits for one; or if each
        training fails.

        Ray Serve replaces the replica then. It may be a thread that waits for ever in a library
        that got no memory.
        """
        if self._failures >= FAILURES:
            raise HangingError(
                f"the trainer is broken: the last {self._failures} trainings failed at once"
            )
        still = time.monotonic() - self._moved
        if self._trainings and still > max(STILL_SECONDS, STILL_TIMES * self._longest):
            self._hangs = True
        # Until something ends; else it would be well as soon as nobody waits any more.
        if self._hangs:
            for hopeless in self._trainings:
                if not hopeless.done():
                    hopeless.set_result(None)
            raise HangingError(f"the trainer hangs: no step has ended for {still:.0f} s")

    async def warm_up(self) -> None:
        """As `Trainer.warm_up`: what was measured while other processes started would be too slow
        later.
        """
        await asyncio.to_thread(self._trainer.warm_up)

    async def ready(self) -> None:
        """That it answers is enough: the model is loaded before there is a stage."""

    async def train(
        self,
        request: TrainingRequest,
        on_step: Callable[[TrainingProgress], None] | None = None,
    ) -> TrainingResult:
        """As `Trainer.train`; `on_step` is called in the event loop. Cancelling ends it within a
        step.

        A learning rate that the server was started with goes before that of a request's corpus.
        """
        if self._trainer.config.learning_rate:
            request = replace(request, learning_rate=None)
        loop, cancelled = asyncio.get_running_loop(), threading.Event()

        def stepped(progress: TrainingProgress) -> None:
            self._move()
            self._failures = 0
            if on_step is not None and not cancelled.is_set():
                loop.call_soon_threadsafe(on_step, progress)

        hopeless: asyncio.Future[None] = loop.create_future()
        if not self._trainings:
            self._moved = time.monotonic()
        training = self._trainer.submit(request, cancelled=cancelled, on_step=stepped)
        training.add_done_callback(self._ended)
        self._trainings.add(hopeless)
        try:
            return await _held(
                asyncio.create_task(self._unless(hopeless, asyncio.wrap_future(training))),
                cancelled,
            )
        finally:
            self._trainings.remove(hopeless)

    async def training(
        self, request: TrainingRequest
    ) -> AsyncIterator[TrainingProgress | TrainingResult]:
        """`train`, told step by step as it goes, the Training last; for callers in other processes."""
        told: asyncio.Queue[TrainingProgress | None] = asyncio.Queue()
        task = asyncio.create_task(self.train(request, told.put_nowait))
        task.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while (progress := await told.get()) is not None:
                yield progress
            yield await task
        finally:
            task.cancel()  # whoever asked has gone, if it still runs
            await asyncio.wait([task])

    async def _unless(
        self, hopeless: asyncio.Future[None], training: asyncio.Future[TrainingResult]
    ) -> TrainingResult:
        both: list[asyncio.Future[Any]] = [hopeless, training]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not training.done():
            raise HangingError("the trainer hangs")
        return training.result()

    def _ended(self, training: Future[TrainingResult]) -> None:
        if not training.cancelled() and training.exception() is not None:
            self._failures += 1
        self._move()

    def _move(self) -> None:
        now = time.monotonic()
        self._longest, self._moved, self._hangs = max(self._longest, now - self._moved), now, False


async def _held(work: asyncio.Future[Result], cancelled: threading.Event | None = None) -> Result:
    """The result of work in a thread; whoever is cancelled, however often, waits until the work has
    ended.
    """
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        if cancelled is not None:
            cancelled.set()
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # of which nobody wants to hear
        raise
