"""Calls of work in threads from an event loop, which end only once the work has ended."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Concatenate, Generic, ParamSpec, TypeVar

Owner = TypeVar("Owner")
P = ParamSpec("P")
Result = TypeVar("Result")


class SerialExecutor(Generic[Owner]):
    """Calls the methods of an object that only one thread at a time may use, such as a library or a
    shard.
    """

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self._turn = asyncio.Lock()

    async def call(
        self, method: Callable[Concatenate[Owner, P], Result], /, *args: P.args, **kwargs: P.kwargs
    ) -> Result:
        """The result of a method, given as a function of its class, which can be pickled."""
        async with self._turn:
            return await wait_until_ended(
                asyncio.create_task(asyncio.to_thread(method, self.owner, *args, **kwargs))
            )


async def wait_until_ended(
    work: asyncio.Future[Result], cancelled: threading.Event | None = None
) -> Result:
    """The result of work in a thread. Cancelling, however often, sets `cancelled` and takes effect
    once the work has ended.
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
            # Retrieved, so that asyncio does not report it: nothing awaits it any more.
            work.exception()
        raise
