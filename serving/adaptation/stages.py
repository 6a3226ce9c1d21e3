"""The stages of an adaptation as protocols, and the time that one may take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from adapters.adapter import Adapter
from adapters.model.row import Row
from adapters.training import TrainingProgress, TrainingRequest, TrainingResult
from selection.access import Principal
from selection.corpus.calibration import Calibration
from selection.request import SelectionRequest
from selection.selector import Selection
from serving.engine.current_request import LoadedAdapter

# Grace on top of the budget: one step already running, plus transport.
GRACE_SECONDS = 10.0
Result = TypeVar("Result")


class Selects(Protocol):
    """Stage 1."""

    async def select(self, request: SelectionRequest, seconds: float | None) -> Selection:
        """As `selection.selector.Selector.select`, within `seconds`; cancelling ends it."""

    async def calibration(
        self, corpus: str, principal: Principal, seconds: float | None
    ) -> Calibration | None:
        """As `selection.selector.Selector.calibration`, within `seconds`; cancelling ends it."""


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

    async def give_way(self, seconds: float) -> None:
        """As `adapters.trainer.Trainer.give_way`."""


class Loads(Protocol):
    """Stage 3."""

    async def load(self, adapter: Adapter) -> LoadedAdapter:
        """As `serving.engine.engine.Engine.load`."""

    async def unload(self, loaded: LoadedAdapter) -> None:
        """As `serving.engine.engine.Engine.unload`."""


class OverdueError(Exception):
    """A stage exceeded the seconds of the budget and the grace."""


async def in_time(work: Coroutine[Any, Any, Result], seconds: float | None) -> Result:
    """The result of a stage within the seconds left and the grace: its process may hang, or be
    restarting.

    Raises:
        OverdueError: it exceeded them.
    """
    task = asyncio.create_task(work)
    # An overdue stage may still raise, which nothing awaits.
    task.add_done_callback(lambda task: task.cancelled() or task.exception())
    timeout = None if seconds is None else max(0.0, seconds) + GRACE_SECONDS
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
