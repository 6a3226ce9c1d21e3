"""Fair sharing of the engine between requests.

A completion request may have thousands of prompts, and vLLM serves generations in their order of
arrival. So each request runs a limited number of generations at the same time. Its first prompt has
the same priority as the first prompt of every other request, its second the same as every second.
Work in the event loop is done for one prompt of a request at a time, so that other requests get
their turn in between, and prompts of different requests are tokenized alternately. This module is
independent of vLLM.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

# The share of the engine's sequences that one request may use at the same time.
_SHARE = 0.75


class RequestShare:
    """The share of one request.

    Args:
        max_generations: largest number of its generations in the engine at the same time.
    """

    def __init__(self, max_generations: int) -> None:
        self._priorities = itertools.count()
        self._engine = asyncio.Semaphore(max_generations)
        self._event_loop = asyncio.Lock()

    def next_priority(self) -> int:
        """Priority of the request's next generation: 0 for the first, 1 for the second."""
        return next(self._priorities)

    @asynccontextmanager
    async def event_loop_slot(self) -> AsyncIterator[None]:
        """Hold the event loop for one piece of work; a request gets one per round of the loop."""
        async with self._event_loop:
            await asyncio.sleep(0)
            yield

    @asynccontextmanager
    async def engine_slot(self) -> AsyncIterator[None]:
        """Hold one of the request's places in the engine within the `async with` block."""
        async with self._engine:
            yield


class FairShares:
    """The shares of all requests.

    Args:
        sequences: number of sequences that the engine runs at the same time.
    """

    def __init__(self, sequences: int) -> None:
        self._max_generations = max(int(_SHARE * sequences), 1)
        self._shares: WeakKeyDictionary[object, RequestShare] = WeakKeyDictionary()

    def of(self, request: object) -> RequestShare:
        """The share of a request; it is forgotten together with the request."""
        if request not in self._shares:
            self._shares[request] = RequestShare(self._max_generations)
        return self._shares[request]


class RoundRobinExecutor(Executor):
    """One thread that runs one task of each owner in turn.

    Args:
        owner: gives the owner of a task; called in the thread that submits the task.
    """

    def __init__(self, owner: Callable[[], object]) -> None:
        self._owner = owner
        # The tasks of each owner with the futures of their results; the next owner comes first.
        self._waiting: dict[object, deque[tuple[Future[Any], Callable[[], Any]]]] = {}
        self._changed = threading.Condition()
        self._shut_down = False
        self._thread = threading.Thread(target=self._work, name="round robin", daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As `concurrent.futures.Executor.submit`."""
        future: Future[Any] = Future()
        with self._changed:
            if self._shut_down:
                raise RuntimeError("the executor was shut down")
            self._waiting.setdefault(self._owner(), deque()).append(
                (future, partial(fn, *args, **kwargs))
            )
            self._changed.notify()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As `concurrent.futures.Executor.shutdown`."""
        with self._changed:
            self._shut_down = True
            if cancel_futures:
                for future, _ in itertools.chain.from_iterable(self._waiting.values()):
                    future.cancel()
            self._changed.notify()
        if wait:
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._shut_down:
                    self._changed.wait()
                if not self._waiting:
                    return
                owner = next(iter(self._waiting))
                tasks = self._waiting.pop(owner)
                future, task = tasks.popleft()
                if tasks:
                    # The owner goes to the end of the queue.
                    self._waiting[owner] = tasks
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(task())
                except BaseException as problem:
                    future.set_exception(problem)
