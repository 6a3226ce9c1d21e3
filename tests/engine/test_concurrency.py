"""Many requests at the same time, of which some clients disconnect: none affects another, and no
adapter remains.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import httpx
import numpy as np
import psutil

from tests.engine.conftest import SLOTS, Server

# The tokens of an answer, and the log-probability of the first.
Answer = tuple[tuple[str, ...], float]
# Four times as many as the engine has slots for adapters, so that every slot is used again.
REQUESTS = 4 * SLOTS
TOPICS = [
    "import os\n",
    "class Route:\n",
    "def get(self):\n",
    "async def app(scope):\n",
    "    return Response(",
    "x = {\n",
]


async def test_concurrent_requests_get_the_same_answers_as_alone(server: Server) -> None:
    # Two of three requests are adapted, each with its own seed and so its own adapter.
    async with server.client() as client:
        requests = [(TOPICS[i % len(TOPICS)], i, i % 3 > 0) for i in range(REQUESTS)]
        alone = [await _ask(client, *request) for request in requests]
        slots = asyncio.Semaphore(SLOTS)

        async def ask_in_slot(request: tuple[str, int, bool]) -> Answer:
            async with slots:
                return await _ask(client, *request)

        together = await asyncio.gather(*(ask_in_slot(request) for request in requests))
    assert [tokens for tokens, _ in together] == [tokens for tokens, _ in alone]
    assert np.allclose([first for _, first in together], [first for _, first in alone], atol=1e-3)
    # The adapters differ.
    assert len({round(first, 4) for _, first in alone}) > 0.6 * REQUESTS
    assert await server.engine.loaded() == []


async def test_no_adapter_remains_after_many_requests_of_which_some_disconnect(
    server: Server,
) -> None:
    processes = _processes()
    limits = asyncio.Semaphore(12)

    async def one(number: int) -> None:
        async with limits, server.client() as client:
            if number % 5 == 1:
                await _disconnect_during_training(client, 0.4)
            elif number % 5 == 3:
                await _disconnect_during_answer(client)
            else:
                await _ask(client, TOPICS[number % len(TOPICS)], number, True, steps=1)

    await asyncio.gather(*(one(number) for number in range(2 * REQUESTS)))
    for _ in range(100):
        if not server.engine.staging.names() and not await server.engine.loaded():
            break
        await asyncio.sleep(0.1)

    assert server.engine.staging.names() == []
    assert await server.engine.loaded() == []
    assert _processes() == processes
    # All slots are free again.
    async with server.client() as client:
        answers = await asyncio.gather(
            *(_ask(client, "import os\n", 1, True) for _ in range(SLOTS + 2))
        )
    assert len({tokens for tokens, _ in answers}) == 1


async def _ask(
    client: httpx.AsyncClient, prompt: str, seed: int, adapted: bool, steps: int = 2
) -> Answer:
    reply = await client.post(
        "/v1/completions",
        headers={"Compute-Budget": f"steps={steps}" if adapted else "none"},
        json={
            "model": "nano",
            "prompt": prompt,
            "max_tokens": 10,
            "temperature": 0,
            "logprobs": 1,
            "adaptation": {"seed": seed},
        },
    )
    assert reply.status_code == 200, reply.text
    assert reply.json()["adaptation"]["adapted"] is adapted
    logprobs = reply.json()["choices"][0]["logprobs"]
    return tuple(logprobs["tokens"]), logprobs["token_logprobs"][0]


async def _disconnect_during_training(client: httpx.AsyncClient, seconds: float) -> None:
    body = {"model": "nano", "prompt": "class Leaving:\n", "max_tokens": 4}
    try:
        await client.post(
            "/v1/completions", headers={"Compute-Budget": "steps=50"}, json=body, timeout=seconds
        )
    except httpx.ReadTimeout:
        return
    raise AssertionError("the answer came before the client disconnected")


async def _disconnect_during_answer(client: httpx.AsyncClient) -> None:
    body: dict[str, Any] = {
        "model": "nano",
        "prompt": "class Leaving:\n",
        "max_tokens": 500,
        "ignore_eos": True,
    }
    async with client.stream(
        "POST",
        "/v1/completions",
        headers={"Compute-Budget": "steps=1"},
        json={**body, "stream": True},
    ) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                return


def _processes() -> set[int]:
    return {child.pid for child in psutil.Process(os.getpid()).children(recursive=True)}
