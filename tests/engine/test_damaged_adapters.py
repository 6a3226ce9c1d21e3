"""Damaged adapters do not load, while those of concurrent requests do, and none remains."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load, save
from transformers import AutoConfig

from adapters.adapter import Adapter
from serving.engine.trial_adapter import trial_adapter
from serving.errors import StartError
from tests.engine.conftest import SLOTS, Server

DAMAGED = 200
_BODY: dict[str, Any] = {
    "model": "nano",
    "prompt": "class Route:\n",
    "max_tokens": 6,
    "temperature": 0,
}


def truncated(weights: bytes, draw: random.Random) -> bytes:
    return weights[: draw.randrange(len(weights))]


def with_noise(weights: bytes, draw: random.Random) -> bytes:
    """Noise over the beginning of the header, which contains its length."""
    return draw.randbytes(16) + weights[16:]


def renamed(weights: bytes, draw: random.Random) -> bytes:
    """One tensor is for a projection that the model does not have."""
    tensors = load(weights)
    name = draw.choice(sorted(tensors))
    tensors[name.replace("_proj", "_other")] = tensors.pop(name)
    return save(tensors)


def misplaced(weights: bytes, _draw: random.Random) -> bytes:
    """The layers have another path than those of the model; vLLM would silently use no weights."""
    return save(
        {name.replace(".layers.", ".blocks."): tensor for name, tensor in load(weights).items()}
    )


def of_a_deeper_model(weights: bytes, _draw: random.Random) -> bytes:
    """There are weights for one layer more than the model has."""
    tensors = load(weights)
    first = {name: tensor.clone() for name, tensor in tensors.items() if ".layers.0." in name}
    return save(
        {
            **tensors,
            **{name.replace(".layers.0.", ".layers.99."): tensor for name, tensor in first.items()},
        }
    )


def too_wide(weights: bytes, draw: random.Random) -> bytes:
    """The factors of one projection are those of a larger model."""
    tensors = load(weights)
    name = draw.choice(sorted(tensors))
    return save({**tensors, name: tensors[name].repeat(2, 2)})


_DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [
    truncated,
    with_noise,
    renamed,
    misplaced,
    of_a_deeper_model,
    too_wide,
]


async def test_damaged_adapters_affect_no_other_request(server: Server) -> None:
    async with server.client() as client:
        weights = await _weights(client, server)
        alone = [await _ask(client, budget) for budget in ("none", "steps=2")]
        draw, slots, stop = random.Random(0), asyncio.Semaphore(SLOTS - 2), asyncio.Event()
        healthy: list[tuple[str, str]] = []

        async def load_damaged(number: int) -> None:
            adapter = _adapter(
                server, f"damaged-{number}", _DAMAGES[number % len(_DAMAGES)](weights, draw)
            )
            async with slots:
                with pytest.raises(Exception):  # noqa: B017, PT011  vLLM raises errors of many types
                    await server.engine.unload(await server.engine.load(adapter))

        async def keep_asking(budget: str) -> None:
            while not stop.is_set():
                healthy.append((budget, await _ask(client, budget)))

        clients = [asyncio.create_task(keep_asking(budget)) for budget in ("none", "steps=2")]
        await asyncio.gather(*(load_damaged(number) for number in range(DAMAGED)))
        stop.set()
        await asyncio.gather(*clients)

        assert set(healthy) == set(zip(("none", "steps=2"), alone, strict=True))
        # An answer ends before its adapter is unloaded.
        for _ in range(100):
            if not server.engine.live():
                break
            await asyncio.sleep(0.1)
        assert (
            server.engine.live(),
            server.engine.staging.names(),
            await server.engine.loaded(),
        ) == (0, [], [])
        # All slots are free again.
        answers = await asyncio.gather(*(_ask(client, "steps=2") for _ in range(SLOTS + 2)))
        assert set(answers) == {alone[1]}


async def test_weights_that_vllm_would_ignore_are_named(server: Server) -> None:
    async with server.client() as client:
        weights = misplaced(await _weights(client, server), random.Random(0))

    with pytest.raises(
        Exception,
        match=r"vLLM has no modules model\.blocks\.0\..* and \d+ more, which the adapter has",
    ):
        await server.engine.load(_adapter(server, "misplaced", weights))


async def test_a_start_names_projections_that_vllm_lacks(
    server: Server, nano: str, tmp_path: Path
) -> None:
    # The trainer's model has one layer more than the engine's.
    config = AutoConfig.from_pretrained(nano)
    config.num_hidden_layers += 1
    config.save_pretrained(tmp_path)
    deeper = replace(server.engine.config, model=str(tmp_path))

    with pytest.raises(
        StartError, match=r"vLLM cannot serve adapters of .* no modules model\.layers\.6\.mlp\."
    ):
        await server.engine.check_adapter(trial_adapter(deeper))
    await server.engine.check_adapter(trial_adapter(server.engine.config))

    assert (server.engine.staging.names(), await server.engine.loaded()) == ([], [])


def _adapter(server: Server, name: str, weights: bytes) -> Adapter:
    return Adapter(
        name=name,
        base_model=server.trainer.model,
        rank=server.trainer.rank or 16,
        scale_numerator=16.0,
        targets=server.trainer.targets,
        weights=weights,
        losses=(),
    )


async def _ask(client: httpx.AsyncClient, budget: str) -> str:
    reply = await client.post("/v1/completions", json=_BODY, headers={"Compute-Budget": budget})
    assert reply.status_code == 200, reply.text
    assert reply.json()["adaptation"]["adapted"] is (budget != "none")
    text: str = reply.json()["choices"][0]["text"]
    return text


async def _weights(client: httpx.AsyncClient, server: Server) -> bytes:
    """The weights of an undamaged adapter, read while its answer is streamed."""
    body = {**_BODY, "max_tokens": 200, "ignore_eos": True, "stream": True}
    async with client.stream(
        "POST", "/v1/completions", json=body, headers={"Compute-Budget": "steps=1"}
    ) as stream:
        async for _ in stream.aiter_lines():
            (name,) = server.engine.staging.names()
            file: Path = server.engine.staging.path / name / "adapter_model.safetensors"
            return await asyncio.to_thread(file.read_bytes)
    raise AssertionError("the stream is empty")
