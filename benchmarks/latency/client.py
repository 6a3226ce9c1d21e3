"""The benchmark's own client: loads, and what became of each request of them.

`vllm bench serve` keeps neither headers nor reports, so this client sends the same load once more
and keeps them. The prompts are other excerpts of the same text each time, since a server finds
prefixes that it has seen before in its prefix cache. The client runs on the machine that it
measures, so every time includes what it costs.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpx

from benchmarks.harness.provenance import ROOT
from benchmarks.harness.server import MODEL
from serving.config import bundled_model

TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class Load:
    """A load on a server.

    Attributes:
        budget: Compute-Budget header; None for a server without budgets.
        requests: number of requests.
        prompt: tokens of a prompt, to within a few.
        answer: tokens of an answer.
        at_once: concurrent requests of a closed loop; None for an open loop.
        rate: requests per second of an open loop (Poisson); None for a closed loop.
        model: requested model.
        corpus: requested corpus; None for the server's default.
        base: folder of the server's base model, whose tokenizer counts the tokens of a prompt; None
            for the bundled one.
    """

    budget: str | None
    requests: int
    prompt: int
    answer: int
    at_once: int | None = 1
    rate: float | None = None
    model: str = MODEL
    corpus: str | None = None
    base: str | None = None

    @property
    def base_folder(self) -> str:
        """Folder of the server's base model."""
        return self.base or bundled_model()

    @property
    def steps(self) -> int | None:
        """Steps that each request must take; None where the budget leaves them open."""
        name, _, count = (self.budget or "none").partition("=")
        return int(count) if name == "steps" else 0 if name in ("none", "instant") else None


@dataclass(frozen=True)
class Answer:
    """The outcome of a request.

    Attributes:
        status: HTTP status; 0 for a response that never came or broke off.
        first: seconds from sending the request to the first token.
        last: seconds from sending the request to the last token.
        tokens: tokens of the answer, by the server's count.
        prompt: tokens of the prompt, by the server's count.
        report: adaptation report; empty without one.
    """

    status: int
    first: float = math.nan
    last: float = math.nan
    tokens: int = 0
    prompt: int = 0
    report: Mapping[str, Any] = field(default_factory=dict)

    def stages(self) -> dict[str, float]:
        """Seconds by stage, from the report and as the client measured them."""
        stages = {"first token": self.first, "whole": self.last}
        if self.tokens > 1:
            stages["per token"] = (self.last - self.first) / (self.tokens - 1)
        # The rest up to the first token: HTTP both ways, vLLM's queue and prefill.
        if self.report.get("adapted"):
            stages["loaded to first token"] = self.first - float(self.report["spent"]["seconds"])
        return {**self.report.get("seconds", {}), **stages}

    def is_short(self, load: Load) -> bool:
        """Whether the request failed, got no adapter, or took fewer steps than its budget."""
        if self.status != 200 or self.tokens < load.answer:
            return True
        if load.budget == "instant" and not self.report.get("adapted"):
            return True
        steps = self.report["spent"]["steps"] if self.report else 0
        return steps == 0 if load.steps is None else steps != load.steps


def send_load(url: str, load: Load, seed: int) -> tuple[list[Answer], float]:
    """Send a load; returns every answer, and the seconds that all took."""
    return asyncio.run(_send_load(url, load, seed))


async def _send_load(url: str, load: Load, seed: int) -> tuple[list[Answer], float]:
    rng, prompts = random.Random(seed), excerpts(load, seed)  # noqa: S311
    semaphore = asyncio.Semaphore(load.at_once or load.requests)

    async def send_when_free(prompt: str) -> Answer:
        async with semaphore:
            return await send(client, load, prompt)

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_SECONDS, limits=limits) as client:
        started = moment = time.perf_counter()
        tasks = []
        for prompt in prompts:
            await asyncio.sleep(moment - time.perf_counter())
            tasks.append(asyncio.create_task(send_when_free(prompt)))
            moment += rng.expovariate(load.rate) if load.rate else 0.0
        answers = await asyncio.gather(*tasks)
    return answers, time.perf_counter() - started


async def send(client: httpx.AsyncClient, load: Load, prompt: str) -> Answer:
    """Request one completion as a stream."""
    body = {
        "model": load.model,
        "prompt": prompt,
        "max_tokens": load.answer,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"adaptation": {"corpus": load.corpus}} if load.corpus else {}),
    }
    headers = {} if load.budget is None else {"Compute-Budget": load.budget}
    first = last = math.nan
    usage: Mapping[str, int] = {}
    report: Mapping[str, Any] = {}
    started = time.perf_counter()
    try:
        async with client.stream("POST", "/v1/completions", json=body, headers=headers) as response:
            if response.status_code != 200:
                return Answer(response.status_code)
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                now, chunk = time.perf_counter() - started, json.loads(line.removeprefix("data: "))
                report = chunk.get("adaptation", report)
                usage = chunk.get("usage") or usage
                if chunk.get("choices"):
                    first, last = now if math.isnan(first) else first, now
    except httpx.HTTPError:
        return Answer(0)
    if not usage:
        return Answer(0)
    return Answer(200, first, last, usage["completion_tokens"], usage["prompt_tokens"], report)


def excerpts(load: Load, seed: int) -> Sequence[str]:
    """Prompts of a load: random excerpts of the package `serving`, which is in no corpus."""
    tokenizer, ids = _source_tokens(load.base_folder)
    rng = random.Random(f"{seed} {load.prompt}")  # noqa: S311
    offsets = [rng.randrange(len(ids) - load.prompt) for _ in range(load.requests)]
    return [str(tokenizer.decode(ids[start : start + load.prompt])) for start in offsets]


@cache
def _source_tokens(base: str) -> tuple[Any, list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    text = "\n".join(file.read_text() for file in sorted((ROOT / "serving").rglob("*.py")))
    return tokenizer, tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
