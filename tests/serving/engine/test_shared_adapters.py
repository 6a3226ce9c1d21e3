"""Adapters that several requests use: loaded once, and unloaded after the last one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from adapters.adapter import Adapter
from serving.engine.current_request import LoadedAdapter
from serving.engine.shared_adapters import SharedAdapters


def adapter(name: str) -> Adapter:
    return Adapter(name, "nano", 16, 16.0, ("q_proj",), b"", ())


class Engine:
    """Records what is loaded and unloaded; unloading ends only while `may_unload` is set."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails = False
        self.may_unload = asyncio.Event()
        self.may_unload.set()
        self.adapters = SharedAdapters(self._load, self._unload)

    async def _load(self, adapter: Adapter) -> LoadedAdapter:
        await asyncio.sleep(0)
        if self.fails:
            raise RuntimeError("full")
        self.calls.append(f"load {adapter.name}")
        return LoadedAdapter(adapter.name, len(self.calls), Path("/staged") / adapter.name)

    async def _unload(self, loaded: LoadedAdapter) -> None:
        self.calls.append(f"begin to unload {loaded.name}")
        await asyncio.sleep(0)
        await self.may_unload.wait()
        self.calls.append(f"unload {loaded.name}")


async def test_requests_at_the_same_time_share_an_adapter() -> None:
    engine = Engine()

    loaded = await asyncio.gather(*(engine.adapters.acquire(adapter("a")) for _ in range(3)))
    for each in loaded[:2]:
        await engine.adapters.release(each)

    assert len({each.id for each in loaded}) == 1
    assert engine.calls == ["load a"]
    await engine.adapters.release(loaded[2])
    assert engine.calls == ["load a", "begin to unload a", "unload a"]


async def test_an_adapter_is_loaded_again_only_once_it_is_unloaded() -> None:
    engine = Engine()
    first = await engine.adapters.acquire(adapter("a"))

    _, second = await asyncio.gather(
        engine.adapters.release(first), engine.adapters.acquire(adapter("a"))
    )

    assert engine.calls == ["load a", "begin to unload a", "unload a", "load a"]
    assert (second.name, second.folder) == (first.name, first.folder)
    assert second.id != first.id


async def test_adapters_of_other_names_do_not_wait() -> None:
    engine = Engine()
    first = await engine.adapters.acquire(adapter("a"))

    engine.may_unload.clear()
    unloading = asyncio.create_task(engine.adapters.release(first))
    await engine.adapters.acquire(adapter("b"))
    engine.may_unload.set()
    await unloading

    assert engine.calls == ["load a", "begin to unload a", "load b", "unload a"]


async def test_an_adapter_that_could_not_be_loaded_is_loaded_by_the_next_request() -> None:
    engine = Engine()
    engine.fails = True
    with pytest.raises(RuntimeError, match="full"):
        await engine.adapters.acquire(adapter("a"))
    engine.fails = False

    loaded = await engine.adapters.acquire(adapter("a"))
    await engine.adapters.release(loaded)

    assert engine.calls == ["load a", "begin to unload a", "unload a"]
