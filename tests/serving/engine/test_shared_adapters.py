"""Adapters that several requests use: loaded once, and unloaded after the last one, or when their
slot is needed.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.adapter import Adapter
from serving.engine.current_request import LoadedAdapter
from serving.engine.shared_adapters import SharedAdapters


def adapter(name: str) -> Adapter:
    return Adapter(name, "nano", 16, 16.0, ("q_proj",), b"", ())


class Engine:
    """Records what is loaded and unloaded; unloading ends only while `may_unload` is set."""

    def __init__(self, slots: int = 8, resident: int = 2) -> None:
        self.calls: list[str] = []
        self.loaded: set[str] = set()
        self.most = 0
        self.fails = False
        self.may_unload = asyncio.Event()
        self.may_unload.set()
        self.adapters = SharedAdapters(self._load, self._unload, slots, resident)

    async def _load(self, adapter: Adapter) -> LoadedAdapter:
        await asyncio.sleep(0)
        if self.fails:
            raise RuntimeError("full")
        self.calls.append(f"load {adapter.name}")
        assert adapter.name not in self.loaded
        self.loaded.add(adapter.name)
        self.most = max(self.most, len(self.loaded))
        return LoadedAdapter(adapter.name, len(self.calls), Path("/staged") / adapter.name)

    async def _unload(self, loaded: LoadedAdapter) -> None:
        self.calls.append(f"begin to unload {loaded.name}")
        await asyncio.sleep(0)
        await self.may_unload.wait()
        self.calls.append(f"unload {loaded.name}")
        self.loaded.remove(loaded.name)

    async def use(self, name: str, *, keeps: bool = True) -> None:
        await self.adapters.release(await self.adapters.acquire(adapter(name)), keeps=keeps)


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


async def test_an_adapter_that_is_kept_is_not_loaded_again() -> None:
    engine = Engine()

    await engine.use("a")
    await engine.use("a")

    assert engine.calls == ["load a"]


async def test_of_the_kept_adapters_the_last_ones_used_stay() -> None:
    engine = Engine(resident=2)

    for name in ("a", "b", "a", "c"):
        await engine.use(name)

    assert engine.loaded == {"a", "c"}


async def test_a_request_that_needs_a_slot_takes_that_of_a_kept_adapter() -> None:
    engine = Engine(slots=2, resident=2)
    for name in ("a", "b"):
        await engine.use(name)

    first = await engine.adapters.acquire(adapter("c"))
    second = await engine.adapters.acquire(adapter("d"))

    assert engine.loaded == {"c", "d"}
    assert engine.most == 2
    # While a request waits, nothing is kept.
    third = asyncio.create_task(engine.adapters.acquire(adapter("e")))
    await asyncio.sleep(0)
    await engine.adapters.release(first, keeps=True)
    assert (await third).name == "e"
    await engine.adapters.release(second, keeps=True)
    assert engine.loaded == {"d", "e"}


async def test_a_retired_adapter_is_unloaded_once_no_request_uses_it() -> None:
    engine = Engine()
    await engine.use("a")
    used = await engine.adapters.acquire(adapter("b"))

    await asyncio.gather(*(engine.adapters.retire(name) for name in ("a", "b", "unknown")))
    assert engine.loaded == {"b"}
    await engine.adapters.release(used)

    assert engine.loaded == set()


async def test_a_request_that_is_cancelled_while_it_evicts_does_not_interrupt_that() -> None:
    engine = Engine(slots=1, resident=1)
    await engine.use("a")
    engine.may_unload.clear()

    waiting = asyncio.create_task(engine.adapters.acquire(adapter("b")))
    while "begin to unload a" not in engine.calls:  # noqa: ASYNC110  no event
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    engine.may_unload.set()
    await engine.use("c")

    assert engine.loaded == {"c"}
    assert engine.most == 1


class Client:
    """A request: it acquires an adapter, uses it for some turns of the loop, and releases it."""

    def __init__(self, name: str, starts: int, turns: int, keeps: bool, cancels: int) -> None:
        self.name, self.starts, self.turns, self.keeps = name, starts, turns, keeps
        self.cancels = cancels

    async def run(self, engine: Engine) -> None:
        for _ in range(self.starts):
            await asyncio.sleep(0)
        acquiring = asyncio.create_task(engine.adapters.acquire(adapter(self.name)))
        # Of four, one leaves early; as in the server, what it has acquired by then is released.
        for _ in range(self.cancels or 10_000):
            if acquiring.done():
                break
            await asyncio.sleep(0)
        acquiring.cancel()
        (loaded,) = await asyncio.gather(acquiring, return_exceptions=True)
        if not isinstance(loaded, LoadedAdapter):
            assert self.cancels, f"{self.name} was never loaded: {engine.calls}"
            return
        for _ in range(self.turns):
            assert self.name in engine.loaded
            await asyncio.sleep(0)
        await engine.adapters.release(loaded, keeps=self.keeps)


_CLIENTS = st.builds(
    Client,
    name=st.sampled_from("abcdef"),
    starts=st.integers(0, 30),
    turns=st.integers(0, 12),
    keeps=st.booleans(),
    cancels=st.sampled_from((0, 0, 0, 1, 2, 4)),
)


@settings(max_examples=300, deadline=None)
@given(
    slots=st.integers(1, 4),
    resident=st.integers(0, 3),
    clients=st.lists(_CLIENTS, min_size=1, max_size=25),
    retired=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 40)), max_size=5),
)
def test_every_request_gets_its_adapter_and_no_slot_is_lost(
    slots: int, resident: int, clients: list[Client], retired: list[tuple[str, int]]
) -> None:
    async def retire(engine: Engine, name: str, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await engine.adapters.retire(name)

    async def run() -> None:
        engine = Engine(slots, min(resident, slots - 1))
        await asyncio.gather(
            *(client.run(engine) for client in clients),
            *(retire(engine, name, turns) for name, turns in retired),
        )
        assert engine.most <= slots
        assert len(engine.loaded) <= min(resident, slots - 1)
        # All slots are free again, or can be made so.
        loaded = [await engine.adapters.acquire(adapter(f"last-{n}")) for n in range(slots)]
        assert engine.loaded == {each.name for each in loaded}

    asyncio.run(run())
