"""The profile of a real engine over HTTP."""

from __future__ import annotations

import asyncio
from contextlib import closing

from serving.capacity.engine_profiler import profile_engine
from serving.client import Server as Client
from tests.engine.conftest import Server


async def test_a_real_engine_is_profiled(server: Server) -> None:
    with closing(Client(f"{server.url}/v1")) as client:
        engine = await asyncio.to_thread(profile_engine, client, 4096, 128)

    # The server has a corpus.
    assert engine.load is not None
    assert 0 < engine.load < 10
    # Seconds of a token.
    assert 1e-4 < engine.decode_fixed + engine.decode_per_answer < 1
    assert 0 <= engine.prefill_per_token < 0.1
    assert 0 <= engine.answer_fixed < 10
