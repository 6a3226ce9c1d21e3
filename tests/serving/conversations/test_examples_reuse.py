"""ExamplesReuse: requests with the same examples at the same time train once."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from adapters.adapter import Adapter
from serving.conversations.adapter_cache import AdapterCache, AdapterCacheConfig
from serving.conversations.cached_adapter import CacheScope, ExamplesAdapter
from serving.conversations.examples_reuse import ExamplesReuse

ANN = CacheScope("ann", None, "nano")
MADE = ExamplesAdapter(Adapter("made", "nano", 4, 8.0, (), b"w", (2.0, 1.0)), ())


@pytest.fixture
def cache() -> AdapterCache:
    return AdapterCache(AdapterCacheConfig())


def reuse(cache: AdapterCache, scope: CacheScope = ANN) -> ExamplesReuse:
    return ExamplesReuse(cache, b"digest", scope)


async def claimed(each: ExamplesReuse, corpus: str | None = None) -> ExamplesAdapter | None:
    return await each.claim(corpus, None, None, is_shared=True)


async def test_the_others_wait_for_the_adapter_of_the_first(cache: AdapterCache) -> None:
    first = reuse(cache)
    assert await claimed(first) is None
    waiting = [asyncio.create_task(claimed(reuse(cache))) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)

    first.store(None, MADE)
    first.release()

    assert await asyncio.gather(*waiting) == [MADE] * 3
    assert cache.in_training == {}


async def test_where_the_first_fails_the_others_train_their_own(cache: AdapterCache) -> None:
    first, second, third = reuse(cache), reuse(cache), reuse(cache)
    assert await claimed(first) is None
    waiting = [asyncio.create_task(claimed(each)) for each in (second, third)]
    await asyncio.sleep(0)

    first.release()

    assert await asyncio.gather(*waiting) == [None, None]
    # A request that comes later waits for one of them.
    later = asyncio.create_task(claimed(reuse(cache)))
    second.store(None, MADE)
    third.release()
    second.release()
    assert await later == MADE


async def test_it_waits_no_longer_than_its_own_seconds(cache: AdapterCache) -> None:
    first = reuse(cache)
    await claimed(first)

    for seconds in (0.01, -1.0):
        assert await reuse(cache).claim(None, None, seconds, is_shared=True) is None

    first.release()
    assert cache.in_training == {}


async def test_nobody_waits_for_an_adapter_that_is_not_stored_or_not_theirs(
    cache: AdapterCache,
) -> None:
    await reuse(cache).claim(None, None, None, is_shared=False)

    for each, corpus in ((reuse(cache), None), (reuse(cache), "zoo")):
        assert await claimed(each, corpus) is None
    assert await claimed(reuse(cache, replace(ANN, key="bob"))) is None
