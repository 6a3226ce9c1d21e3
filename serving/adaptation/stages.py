"""The stages of an adaptation as protocols, and the time that one may take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from adapters.adapter import Adapter
from adapters.model.row import Row
from adapters.training import TrainingProgress, TrainingRequest, TrainingResult
from selection.corpus.trained.manifest import CorpusStart, CorpusWeights, StartFound
from selection.library.library import Library
from selection.request import SelectionRequest
from selection.selector import Selection
from serving.adaptation.fallback_reasons import (
    NoAdapterError,
    fresh_start_reason,
    no_adapter_reason,
)
from serving.budget import Budget
from serving.engine.current_request import LoadedAdapter
from serving.report import StopReason

# Grace on top of the budget: one step already running, plus transport.
GRACE_SECONDS = 10.0
P = ParamSpec("P")
Result = TypeVar("Result")


class Selects(Protocol):
    """Stage 1."""

    async def select(self, request: SelectionRequest, seconds: float | None) -> Selection:
        """As `selection.selector.Selector.select`, within `seconds`; cancelling ends it."""

    async def start(self, request: SelectionRequest, seconds: float | None) -> StartFound:
        """As `selection.selector.Selector.start`, within `seconds`; cancelling ends it."""

    async def start_weights(self, corpus: str, start: CorpusStart) -> CorpusWeights:
        """As `selection.selector.Selector.start_weights`."""


class Trains(Protocol):
    """Stage 2."""

    async def train(
        self, request: TrainingRequest, on_step: Callable[[TrainingProgress], None] | None
    ) -> TrainingResult:
        """As `adapters.trainer.Trainer.train`; waiting counts towards the seconds; cancelling ends
        it.
        """

    async def loss(self, rows: Sequence[Row], weights: bytes | None) -> float:
        """As `adapters.trainer.Trainer.loss`; cancelling ends it."""

    async def compare(
        self, rows: Sequence[Row], adapters: Sequence[bytes | None]
    ) -> tuple[tuple[float, ...], ...]:
        """As `adapters.trainer.Trainer.compare`; cancelling ends it."""

    async def give_way(self, seconds: float) -> None:
        """As `adapters.trainer.Trainer.give_way`."""


class Loads(Protocol):
    """Stage 3."""

    async def load(self, adapter: Adapter) -> LoadedAdapter:
        """As `serving.engine.engine.Engine.load`."""

    async def unload(self, loaded: LoadedAdapter, *, keeps: bool = False) -> None:
        """As `serving.engine.engine.Engine.unload`."""


class LibraryExecutor(Protocol):
    """Calls the library of corpora."""

    async def call(
        self,
        method: Callable[Concatenate[Library, P], Result],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Result:
        """Return the result of a method of `Library`."""


class OverdueError(Exception):
    """A stage exceeded the seconds of the budget and the grace."""


async def in_time(
    work: Coroutine[Any, Any, Result], seconds: float | None, grace: float | None = None
) -> Result:
    """The result of a stage within the seconds left and the grace: its process may hang, or be
    restarting.

    Args:
        work: the stage.
        seconds: seconds left; None without a limit.
        grace: seconds beyond these; None for GRACE_SECONDS.

    Raises:
        OverdueError: it exceeded them.
    """
    task = asyncio.create_task(work)
    # An overdue stage may still raise, which nothing awaits.
    task.add_done_callback(lambda task: task.cancelled() or task.exception())
    grace = GRACE_SECONDS if grace is None else grace
    timeout = None if seconds is None else max(0.0, seconds) + grace
    try:
        await asyncio.wait([task], timeout=timeout)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task])
        raise
    if not task.done():
        task.cancel()
        raise OverdueError
    return task.result()


async def train_in_time(
    trainer: Trains,
    request: TrainingRequest,
    on_step: Callable[[TrainingProgress], None] | None,
    budget: Budget,
    selection: Selection,
) -> TrainingResult:
    """The result of a training that has made an adapter, within its seconds and the grace.

    Args:
        trainer, request, on_step: as for `Trains.train`.
        budget, selection: limits of the request, and what it trains on, for the error.

    Raises:
        NoAdapterError: it ended without an adapter, or exceeded them.
    """
    try:
        training = await in_time(trainer.train(request, on_step), request.seconds)
    except OverdueError:
        reason = "the seconds were spent before the trainer answered"
        raise NoAdapterError(reason, StopReason.SECONDS, selection) from None
    if training.adapter is None:
        reason = no_adapter_reason(training.stop, budget, request.seconds)
        if training.comparison is not None and not training.comparison.uses_start:
            reason = f"{reason}; {fresh_start_reason(training.comparison)}"
        raise NoAdapterError(reason, StopReason(training.stop), selection, training)
    return training
