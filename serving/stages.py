"""The selector and the trainer as stages of a server: asynchronous, one call at a time, cancellable.

Plain classes that work without Ray; `serving.app` makes deployments of them. The work itself runs in a thread,
so that the event loop stays free to hear of a cancelled request.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Sequence
from typing import TypeVar

from adapters.trainer import Trainer, TrainerConfig, Training
from selection.selector import Selection, Selector, SelectorConfig

Result = TypeVar("Result")


class SelectStage:
    """A selector."""

    def __init__(self, config: SelectorConfig) -> None:
        self._selector = Selector(config)
        self._one_at_a_time = asyncio.Lock()

    async def select(
        self, prompts: Sequence[str], corpus: str, *, steps: int, alpha: float | None = None, strategy: str = "sift"
    ) -> Selection:
        """As `Selector.select`."""
        async with self._one_at_a_time:
            work = asyncio.create_task(
                asyncio.to_thread(self._selector.select, prompts, corpus, steps=steps, alpha=alpha, strategy=strategy)
            )
            return await _held(work)


class TrainStage:
    """A trainer."""

    def __init__(self, config: TrainerConfig) -> None:
        self._trainer = Trainer(config)
        self._one_at_a_time = asyncio.Lock()

    async def train(
        self, sequences: Sequence[Sequence[int]], *, seed: int = 0, seconds: float | None = None
    ) -> Training:
        """As `Trainer.train`. Waiting for one's turn counts towards the seconds; cancelling ends it within a step."""
        called = time.monotonic()
        async with self._one_at_a_time:
            left = math.inf if seconds is None else seconds - (time.monotonic() - called)
            cancelled = threading.Event()
            work = asyncio.create_task(
                asyncio.to_thread(self._trainer.train, sequences, seed=seed, seconds=left, cancelled=cancelled)
            )
            return await _held(work, cancelled)


async def _held(work: asyncio.Task[Result], cancelled: threading.Event | None = None) -> Result:
    """The result of work in a thread; whoever is cancelled, however often, keeps the turn until the thread ends."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        if cancelled is not None:
            cancelled.set()
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([work])
        raise
