"""RequestPriority: lets the training of a corpus give way to requests.

A training in the background takes no step while another training waits. Requests that are being
answered, or have nothing to train, compete with it for the same processor, too: as long as some are
under way, the trainer is told again and again to begin no step of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from serving.adaptation.stages import Trains

log = logging.getLogger(__name__)

# The trainer begins no step within GIVE_WAY_SECONDS from the last look for requests, one of which
# is taken every LOOK_SECONDS and when a request arrives.
GIVE_WAY_SECONDS, LOOK_SECONDS = 2.0, 1.0


class RequestPriority:
    """The priority of one server process's requests; belongs to one event loop.

    Args:
        trainer: the trainer.
        is_training: whether a corpus is being trained, by this process or another one.
        is_busy: whether requests are under way.
    """

    def __init__(
        self, trainer: Trains, is_training: Callable[[], bool], is_busy: Callable[[], bool]
    ) -> None:
        self._trainer, self._is_training, self._is_busy = trainer, is_training, is_busy
        self._arrived = asyncio.Event()

    def notice(self) -> None:
        """Look for requests at once, since one has arrived."""
        self._arrived.set()

    async def work(self) -> None:
        """Look for requests until it is cancelled."""
        while True:
            self._arrived.clear()
            if self._is_training() and self._is_busy():
                try:
                    await self._trainer.give_way(GIVE_WAY_SECONDS)
                except Exception as problem:
                    # The trainer may be restarting.
                    log.debug("the trainer could not be told to give way: %s", problem)
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._arrived.wait()
            except TimeoutError:
                continue
