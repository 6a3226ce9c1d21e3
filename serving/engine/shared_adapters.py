"""SharedAdapters: each adapter is loaded once, for all requests that use it at the same time.

An adapter is identified by its name, which no other adapter has. When the last request that uses it
has ended, it is unloaded; a later request may load it again. This module does not know vLLM.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from weakref import WeakValueDictionary

from adapters.adapter import Adapter
from serving.engine.current_request import LoadedAdapter


class SharedAdapters:
    """The loaded adapters.

    Args:
        load: loads an adapter.
        unload: unloads it; no request uses it any more.
    """

    def __init__(
        self,
        load: Callable[[Adapter], Awaitable[LoadedAdapter]],
        unload: Callable[[LoadedAdapter], Awaitable[None]],
    ) -> None:
        self._load, self._unload = load, unload
        self._loaded: dict[str, LoadedAdapter] = {}
        self._users: Counter[str] = Counter()
        # One by name: an adapter is not loaded again while it is being unloaded.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def acquire(self, adapter: Adapter) -> LoadedAdapter:
        """The adapter, loaded unless it is; `release` must follow."""
        async with self._lock(adapter.name):
            if adapter.name not in self._loaded:
                self._loaded[adapter.name] = await self._load(adapter)
            self._users[adapter.name] += 1
            return self._loaded[adapter.name]

    async def release(self, loaded: LoadedAdapter) -> None:
        """Unload an adapter, unless another request uses it."""
        async with self._lock(loaded.name):
            self._users[loaded.name] -= 1
            if self._users[loaded.name] > 0:
                return
            del self._users[loaded.name], self._loaded[loaded.name]
            await self._unload(loaded)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())
