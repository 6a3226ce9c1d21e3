"""The pieces of a plan that a real engine tells over HTTP."""

from __future__ import annotations

import asyncio
from contextlib import closing

from serving.capacity.engine_profiler import ask_engine
from serving.client import Server as Client
from tests.engine.conftest import Server


async def test_an_engine_is_measured(server: Server) -> None:
    with closing(Client(f"{server.url}/v1")) as client:
        engine = await asyncio.to_thread(ask_engine, client, 4096, 128)

    assert engine.load is not None  # the server has a corpus
    assert 0 < engine.load < 10
    assert 1e-4 < engine.decode_fixed + engine.decode_each < 1  # seconds of a token
    assert 0 <= engine.prefill_token < 0.1
    assert 0 <= engine.answer_fixed < 10
