"""The selector, the library and the trainer as stages of a server: asynchronous, one call at a time, cancellable.

Plain classes that work without Ray; `serving.app` makes deployments of them. The work itself runs in a thread,
so that the event loop stays free to hear of a cancelled request.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from transformers import AutoTokenizer

from adapters.trainer import Trainer, TrainerConfig, Training
from selection.embedding import Prompt
from selection.filters import Filter
from selection.library import Library
from selection.selector import Selection, Selector, SelectorConfig

P = ParamSpec("P")
Result = TypeVar("Result")


class SelectStage:
    """A selector."""

    def __init__(self, config: SelectorConfig) -> None:
        self._selector = Selector(config)
        self._one_at_a_time = asyncio.Lock()

    async def select(
        self,
        prompts: Sequence[Prompt],
        corpus: str,
        *,
        steps: int,
        alpha: float | None = None,
        strategy: str = "sift",
        only: Filter | None = None,
        seed: int = 0,
    ) -> Selection:
        """As `Selector.select`."""
        options = {"steps": steps, "alpha": alpha, "strategy": strategy, "only": only, "seed": seed}
        async with self._one_at_a_time:
            return await _held(
                asyncio.create_task(asyncio.to_thread(self._selector.select, prompts, corpus, **options))  # type: ignore[arg-type]
            )


class LibraryStage:
    """A library."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._one_at_a_time = asyncio.Lock()

    async def ask(
        self, method: Callable[Concatenate[Library, P], Result], /, *args: P.args, **kwargs: P.kwargs
    ) -> Result:
        """What a method of `Library` answers. The function itself is handed over: it survives pickling by its name."""
        async with self._one_at_a_time:
            return await _held(asyncio.create_task(asyncio.to_thread(method, self._library, *args, **kwargs)))


class CorporaStage(SelectStage):
    """A selector and a library over the same corpora: they share the embedder and the open indexes."""

    def __init__(self, config: SelectorConfig) -> None:
        super().__init__(config)
        assert config.base_model is not None, "a library needs the tokenizer of the base model"
        tokenizer = AutoTokenizer.from_pretrained(config.base_model)
        files = config.root.parent / "files"
        selector = self._selector
        self._library = LibraryStage(Library(config.root, selector.embedder, tokenizer, files, selector.corpora))

    async def ask(
        self, method: Callable[Concatenate[Library, P], Result], /, *args: P.args, **kwargs: P.kwargs
    ) -> Result:
        """As `LibraryStage.ask`."""
        return await self._library.ask(method, *args, **kwargs)


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
