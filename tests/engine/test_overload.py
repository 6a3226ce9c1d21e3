"""A server with more to do than it takes on: who gets fewer steps, who is turned away, and that it
passes.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, RateLimitError

from serving.adaptation.admission import Capacity
from tests.engine.conftest import Server

STEPS = 24


async def test_beyond_its_capacity_steps_are_shared_and_the_rest_is_turned_away(
    server: Server,
) -> None:
    async with (
        server.door(capacity=Capacity(requests=4, adaptations=3, undegraded=1)) as url,
        httpx.AsyncClient(base_url=url, timeout=120) as client,
    ):
        replies = await asyncio.gather(*(_ask(client, number) for number in range(8)))
        afterwards = await _ask(client, 8)

    answered = [reply.json()["adaptation"] for reply in replies if reply.status_code == 200]
    assert sorted(report["spent"]["steps"] for report in answered) == [
        STEPS // 3,
        STEPS // 2,
        STEPS,
    ]
    assert all(
        (report["degraded"] is None) is (report["spent"]["steps"] == STEPS) for report in answered
    )
    turned_away = [reply for reply in replies if reply.status_code != 200]
    assert len(turned_away) == 5
    for reply in turned_away:
        assert reply.status_code == 429
        assert int(reply.headers["retry-after"]) > 0
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert afterwards.json()["adaptation"]["spent"]["steps"] == STEPS


async def test_a_required_adapter_gives_up_no_step(server: Server) -> None:
    async with (
        server.door(capacity=Capacity(requests=4, adaptations=2, undegraded=1)) as url,
        httpx.AsyncClient(base_url=url, timeout=120) as client,
    ):
        replies = await asyncio.gather(
            *(_ask(client, number, required=True) for number in range(2))
        )
    assert [reply.json()["adaptation"]["spent"]["steps"] for reply in replies] == [STEPS, STEPS]


async def test_the_base_model_still_answers_while_no_adaptation_is_taken_on(server: Server) -> None:
    async with (
        server.door(capacity=Capacity(requests=8, adaptations=1, undegraded=1)) as url,
        httpx.AsyncClient(base_url=url, timeout=120) as client,
    ):
        first = asyncio.create_task(_ask(client, 1))
        await _under_way(client)
        plain = await _ask(client, 2, budget="none")
        openai = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(RateLimitError):
            await openai.completions.create(
                model="nano", prompt="import", extra_headers={"Compute-Budget": "auto"}
            )
        assert plain.status_code == 200
        assert not first.done()
        assert (await first).json()["adaptation"]["adapted"] is True


async def _ask(
    client: httpx.AsyncClient, seed: int, budget: str = f"steps={STEPS}", **wish: Any
) -> httpx.Response:
    body = {
        "model": "nano",
        "prompt": "class Route:\n",
        "max_tokens": 4,
        "adaptation": {"seed": seed, **wish},
    }
    return await client.post("/v1/completions", headers={"Compute-Budget": budget}, json=body)


async def _under_way(client: httpx.AsyncClient) -> None:
    for _ in range(200):
        if re.search(
            r'mayfly_requests_in_stage\{.*stage="train"\} 1\.0', (await client.get("/metrics")).text
        ):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("no adaptation got under way")


async def test_a_small_request_is_answered_before_a_large_one_that_came_earlier(
    server: Server,
) -> None:
    # Arrange: 70 prompts of nearly the whole context, each with a beginning of its own.
    words = "the trains of number {} ran on rails over the hills and whales sang in the sea below them all day long. "
    prompts = [f"{number} {words.format(number) * 24}" for number in range(70)]
    async with server.client() as client:
        large = asyncio.create_task(_complete(client, prompts, "seconds=0.5", 1))
        await asyncio.sleep(0.5)

        small = await _complete(client, "import os\n", "steps=2", 4)
        first = not large.done()
        reply = await large

    assert first
    assert small.json()["adaptation"]["spent"]["steps"] == 2
    assert len(reply.json()["choices"]) == 70
    report = reply.json()["adaptation"]
    if report["seconds"]:  # else its seconds were over before it had chosen
        assert report["targets"] == {"used": 32, "of": 70, "unit": "prompts"}


async def _complete(
    client: httpx.AsyncClient, prompt: Any, budget: str, tokens: int
) -> httpx.Response:
    body = {"model": "nano", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    reply = await client.post(
        "/v1/completions", headers={"Compute-Budget": budget}, json=body, timeout=300
    )
    assert reply.status_code == 200, reply.text
    return reply
