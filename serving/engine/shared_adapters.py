"""SharedAdapters: each adapter is loaded once, for all requests that use it at the same time.

An adapter is identified by its name, which no other adapter has. When the last request that uses it
has ended, it is unloaded, or kept for the next one: the last few that were used, until a request
needs a slot. A later request may load it again. This module does not know vLLM.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from weakref import WeakValueDictionary

from adapters.adapter import Adapter
from serving.engine.current_request import LoadedAdapter


class SharedAdapters:
    """The loaded adapters; belongs to one event loop.

    Args:
        load: loads an adapter.
        unload: unloads it; no request uses it any more.
        slots: largest number of adapters that are loaded, being loaded or being unloaded.
        resident: largest number of adapters that stay loaded while no request uses them.
    """

    def __init__(
        self,
        load: Callable[[Adapter], Awaitable[LoadedAdapter]],
        unload: Callable[[LoadedAdapter], Awaitable[None]],
        slots: int,
        resident: int = 0,
    ) -> None:
        self._load, self._unload, self._resident = load, unload, resident
        self._slots, self._waiting = asyncio.Semaphore(slots), 0
        self._loaded: dict[str, LoadedAdapter] = {}
        self._users: Counter[str] = Counter()
        # Names of adapters without users, in the order of their last use, the least recent first.
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._retiring: set[asyncio.Task[None]] = set()
        # One by name: an adapter is not loaded again while it is being unloaded.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def acquire(self, adapter: Adapter) -> LoadedAdapter:
        """The adapter, loaded unless it is, once there is a slot for it; `release` must follow."""
        name = adapter.name
        async with self._lock(name):
            if name not in self._loaded:
                await self._take_slot()
                try:
                    self._loaded[name] = await self._load(adapter)
                except BaseException:
                    self._slots.release()
                    raise
            self._idle.pop(name, None)
            self._users[name] += 1
            return self._loaded[name]

    async def release(self, loaded: LoadedAdapter, *, keeps: bool = False) -> None:
        """Unload an adapter, unless another request uses it, or it is to be kept and no request
        waits for a slot.
        """
        name = loaded.name
        async with self._lock(name):
            self._users[name] -= 1
            if self._users[name] > 0:
                return
            del self._users[name]
            if not keeps or self._resident == 0 or self._waiting > 0:
                await self._drop(name)
                return
            self._idle[name] = None
        if len(self._idle) > self._resident:
            await asyncio.shield(self.retire(next(iter(self._idle))))

    def retire(self, name: str) -> asyncio.Task[None]:
        """Unload an adapter that is kept, unless a request has begun to use it, in a task that may
        be awaited or not; a request that waits for it may be cancelled.
        """
        # Nothing else may choose it now: otherwise two could wait for each other.
        self._idle.pop(name, None)
        task = asyncio.create_task(self._evict(name))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        # Where nothing awaits it, an engine that has stopped is noticed by others.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return task

    async def _evict(self, name: str) -> None:
        async with self._lock(name):
            if name in self._loaded and name not in self._users:
                await self._drop(name)

    async def _take_slot(self) -> None:
        """Wait for a slot. While a request waits, no adapter is kept."""
        self._waiting += 1
        try:
            while self._slots.locked() and self._idle:
                await asyncio.shield(self.retire(next(iter(self._idle))))
            await self._slots.acquire()
        finally:
            self._waiting -= 1

    async def _drop(self, name: str) -> None:
        loaded = self._loaded.pop(name)
        self._idle.pop(name, None)
        try:
            await self._unload(loaded)
        finally:
            self._slots.release()

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())
