"""A server beyond its capacity: which requests get fewer steps, which are rejected, and that it
recovers.
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


async def test_beyond_the_capacity_steps_are_shared_and_further_requests_are_rejected(
    server: Server,
) -> None:
    async with (
        server.gateway(capacity=Capacity(requests=4, adaptations=3, undegraded=1)) as url,
        httpx.AsyncClient(base_url=url, timeout=120) as client,
    ):
        replies = await asyncio.gather(*(_complete_route(client, number) for number in range(8)))
        afterwards = await _complete_route(client, 8)

    answered = [reply.json()["adaptation"] for reply in replies if reply.status_code == 200]
    assert sorted(report["spent"]["steps"] for report in answered) == [
        STEPS // 3,
        STEPS // 2,
        STEPS,
    ]
    assert all(
        (report["degraded"] is None) is (report["spent"]["steps"] == STEPS) for report in answered
    )
    rejected = [reply for reply in replies if reply.status_code != 200]
    assert len(rejected) == 5
    for reply in rejected:
        assert reply.status_code == 429
        assert int(reply.headers["retry-after"]) > 0
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert afterwards.json()["adaptation"]["spent"]["steps"] == STEPS


async def test_a_required_adapter_keeps_all_steps(server: Server) -> None:
    async with (
        server.gateway(capacity=Capacity(requests=4, adaptations=2, undegraded=1)) as url,
        httpx.AsyncClient(base_url=url, timeout=120) as client,
    ):
        replies = await asyncio.gather(
            *(_complete_route(client, number, required=True) for number in range(2))
        )
    assert [reply.json()["adaptation"]["spent"]["steps"] for reply in replies] == [STEPS, STEPS]


async def test_the_base_model_still_answers_while_adaptations_are_rejected(server: Server) -> None:
    async with (
        server.gateway(capacity=Capacity(requests=8, adaptations=1, undegraded=1)) as url,
        httpx.AsyncClient(base_url=url, timeout=120) as client,
    ):
        first = asyncio.create_task(_complete_route(client, 1))
        await _training_started(client)
        plain = await _complete_route(client, 2, budget="none")
        openai = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(RateLimitError):
            await openai.completions.create(
                model="nano", prompt="import", extra_headers={"Compute-Budget": "auto"}
            )
        assert plain.status_code == 200
        assert not first.done()
        assert (await first).json()["adaptation"]["adapted"] is True


async def _complete_route(
    client: httpx.AsyncClient, seed: int, budget: str = f"steps={STEPS}", **options: Any
) -> httpx.Response:
    body = {
        "model": "nano",
        "prompt": "class Route:\n",
        "max_tokens": 4,
        "adaptation": {"seed": seed, **options},
    }
    return await client.post("/v1/completions", headers={"Compute-Budget": budget}, json=body)


async def _training_started(client: httpx.AsyncClient) -> None:
    for _ in range(200):
        if re.search(
            r'mayfly_requests_in_stage\{.*stage="train"\} 1\.0', (await client.get("/metrics")).text
        ):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("no training started")


async def test_a_small_request_is_answered_before_an_earlier_large_one(
    server: Server,
) -> None:
    # 70 prompts of nearly the whole context that differ from their first token on.
    words = (
        "the trains of number {} ran on rails over the hills and whales sang in the sea below "
        "them all day long. "
    )
    prompts = [f"{number} {words.format(number) * 24}" for number in range(70)]
    async with server.client() as client:
        large = asyncio.create_task(_complete(client, prompts, "seconds=0.5", 1))
        await asyncio.sleep(0.5)

        small = await _complete(client, "import os\n", "steps=2", 4)
        small_is_first = not large.done()
        reply = await large

    assert small_is_first
    assert small.json()["adaptation"]["spent"]["steps"] == 2
    assert len(reply.json()["choices"]) == 70
    report = reply.json()["adaptation"]
    # Without stages, its seconds were over before anything was selected.
    if report["seconds"]:
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
