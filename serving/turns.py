"""Turns: how the generations of one request share the engine with those of others.

A completion may have thousands of prompts, and vLLM serves what it is given in order of arrival. So a request has a few
generations in the engine at once, not all of its slots; its first prompt has the priority of any first prompt, its
second that of any second; and what is computed for each prompt in the event loop is computed one at a time, so that
other requests are heard in between. Knows nothing of vLLM.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
