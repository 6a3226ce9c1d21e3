"""What requests to a running server cost: adaptations of twenty steps, and tokens.

A token's time is taken while all requests of a round decode, so that neither a prompt nor a
training is counted.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import httpx

from benchmarks.side_by_side.passages import Passage
from benchmarks.side_by_side.server import RunningServer

STEPS = 20
AT_ONCE = (1, 8)
_BUDGET = f"steps={STEPS}, seconds=60"
# Tokens of each request while all requests decode; then the clients disconnect.
_TOKENS = 40
# An adapted request may wait this many tokens of another one for its own adapter.
_MAX_TOKENS = 800
_ROUNDS = 2


def adapt(server: RunningServer, passages: Sequence[Passage]) -> list[dict[str, Any]]:
    """Adapt to the prefix of each passage; seconds, steps, and bits per byte of its suffix."""
    server.complete("steps=1", prompt="def main", max_tokens=1)
    measured = []
    for passage in passages:
        fields = {
            "prompt": list(passage.tokens),
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 0,
            "adaptation": {"prompt": passage.prefix, "seed": 0, "required": True},
        }
        answer = server.complete(_BUDGET, **fields)
        del fields["adaptation"]
        base = server.complete("none", **fields)
        bits, base_bits = (
            passage.bits_per_byte(each["choices"][0]["prompt_logprobs"]) for each in (answer, base)
        )
        report = answer["adaptation"]
        measured.append(
            {
                "passage": passage.name,
                "steps": report["spent"]["steps"],
                "seconds": report["spent"]["seconds"],
                "stages": report["seconds"],
                "percent_of_base": 100 * bits / base_bits,
            }
        )
    return measured


def token_seconds(server: RunningServer) -> dict[str, dict[str, list[float]]]:
    """Seconds per token of each request, by requests at once, of alternating rounds with the base
    model and with an adapter for each request.
    """
    measured: dict[str, dict[str, list[float]]] = {}
    for at_once in AT_ONCE:
        rounds = measured[str(at_once)] = {"base": [], "adapted": []}
        for number in range(_ROUNDS):
            for kind, budget in (("base", "none"), ("adapted", "steps=1, seconds=60")):
                answers = asyncio.run(_stream_all(server, budget, at_once, number))
                rounds[kind].append(_seconds_per_token(answers))
    return measured


async def _stream_all(
    server: RunningServer, budget: str, at_once: int, number: int
) -> list[list[float]]:
    """The moments of the tokens of each request; all requests are sent at the same time."""
    limits = httpx.Limits(max_connections=at_once)
    url = server.client.base_url
    moments: list[list[float]] = [[] for _ in range(at_once)]
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        prompts = [f"def step_{number}_{each}(tokens, adapters):\n" for each in range(at_once)]
        await asyncio.gather(
            *(
                _stream(client, server.model, budget, prompt, own, moments)
                for prompt, own in zip(prompts, moments, strict=True)
            )
        )
    return moments


async def _stream(
    client: httpx.AsyncClient,
    model: str,
    budget: str,
    prompt: str,
    moments: list[float],
    all_moments: Sequence[list[float]],
) -> None:
    """Add the moment of each token to `moments`, until all requests have decoded together."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "max_tokens": _MAX_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    if budget != "none":
        body["adaptation"] = {"required": True}
    headers, together = {"Compute-Budget": budget}, 0
    async with client.stream("POST", "/v1/completions", json=body, headers=headers) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {") and json.loads(line[6:]).get("choices"):
                moments.append(time.perf_counter())
                together += all(all_moments)
                if together > _TOKENS:
                    return


def _seconds_per_token(answers: Sequence[Sequence[float]]) -> float:
    """Median time between two tokens of a request while all requests decode."""
    first = max(answer[0] for answer in answers)
    last = min(answer[-1] for answer in answers)
    gaps = [
        after - before
        for answer in answers
        for before, after in pairwise(answer)
        if first <= before and after <= last
    ]
    if len(gaps) < _TOKENS // 4:
        raise RuntimeError(f"the requests decoded only {len(gaps)} tokens at the same time")
    return statistics.median(gaps)
