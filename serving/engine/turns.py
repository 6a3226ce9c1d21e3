"""Turns: how the generations of one request share the engine with those of others.

A completion may have thousands of prompts, and vLLM serves what it is given in order of arrival. So
a request has a few generations in the engine at once, not all of its slots; its first prompt has
the priority of any first prompt, its second that of any second; what is computed for each prompt in
the event loop is computed one at a time, so that other requests are heard in between; and prompts
are tokenised in turns with those of others. Knows nothing of vLLM.
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

_SHARE = 0.75  # of the engine's sequences, that one request may have at once


class Turn:
    """One request's generations.

    Args:
        at_once: how many may be in the engine.
    """

    def __init__(self, at_once: int) -> None:
        self._numbers = itertools.count()
        self._engine = asyncio.Semaphore(at_once)
        self._loop = asyncio.Lock()

    def number(self) -> int:
        """Of a generation, from 0, in the order in which they begin."""
        return next(self._numbers)

    @asynccontextmanager
    async def in_the_loop(self) -> AsyncIterator[None]:
        """The time for a piece of work in the event loop, one a round for each request."""
        async with self._loop:
            await asyncio.sleep(0)
            yield

    @asynccontextmanager
    async def in_the_engine(self) -> AsyncIterator[None]:
        """A place in the engine, for the length of a generation."""
        async with self._engine:
            yield


class Turns:
    """All requests' generations.

    Args:
        sequences: how many the engine runs at once.
    """

    def __init__(self, sequences: int) -> None:
        self._at_once = max(int(_SHARE * sequences), 1)
        self._of: WeakKeyDictionary[object, Turn] = WeakKeyDictionary()

    def of(self, request: object) -> Turn:
        """Those of a request, as long as it is there."""
        if request not in self._of:
            self._of[request] = Turn(self._at_once)
        return self._of[request]


class TurnsExecutor(Executor):
    """One thread that does the work of several owners in turns, a piece of each.

    Args:
        owner: whose work is being submitted, asked in the thread that submits it.
    """

    def __init__(self, owner: Callable[[], object]) -> None:
        self._owner = owner
        # By owner, in the order of their turns: what is to be done, and the future of its result.
        self._waiting: dict[object, deque[tuple[Future[Any], Callable[[], Any]]]] = {}
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="turns", daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As `concurrent.futures.Executor.submit`."""
        done: Future[Any] = Future()
        with self._changed:
            if self._ended:
                raise RuntimeError("the executor was shut down")
            self._waiting.setdefault(self._owner(), deque()).append(
                (done, partial(fn, *args, **kwargs))
            )
            self._changed.notify()
        return done

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As `concurrent.futures.Executor.shutdown`."""
        with self._changed:
            self._ended = True
            if cancel_futures:
                for done, _ in itertools.chain.from_iterable(self._waiting.values()):
                    done.cancel()
            self._changed.notify()
        if wait:
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._ended:
                    self._changed.wait()
                if not self._waiting:
                    return
                owner = next(iter(self._waiting))
                pieces = self._waiting.pop(owner)
                done, piece = pieces.popleft()
                if pieces:
                    self._waiting[owner] = pieces  # behind the others
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(piece())
                except BaseException as problem:
                    done.set_exception(problem)
