"""Answers of a running server to the queries of a task, and seconds to their first tokens."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.few_shot.arms import Arm
from benchmarks.few_shot.task import Pair, Task

# Queries that are asked one after the other; their times count. The first of them trains.
TIMED = 6
# The others, that many at a time.
AT_ONCE = 8
_MAX_TOKENS = 64


@dataclass(frozen=True)
class Answer:
    """The answer to one query.

    Attributes:
        text: the answer.
        right: whether it is the only right one, character by character.
        seconds: to its first token; None for a query that was asked beside others.
    """

    text: str
    right: bool
    seconds: float | None


def answer_queries(url: str, model: str, task: Task, arm: Arm) -> list[Answer]:
    """The answers to all queries of a task, in order.

    Raises:
        httpx.HTTPError: a request failed.
        RuntimeError: an answer is not from the adapter that its arm trains once for all queries.
    """
    return asyncio.run(_answer_queries(url, model, task, arm))


async def _answer_queries(url: str, model: str, task: Task, arm: Arm) -> list[Answer]:
    free = asyncio.Semaphore(AT_ONCE)

    async def beside_others(query: Pair) -> Answer:
        async with free:
            text, _ = await _ask(client, model, task, arm, query.question, reused=bool(arm.steps))
        return Answer(text, text == query.answer, None)

    answers = []
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        for number, query in enumerate(task.queries[:TIMED]):
            reused = bool(arm.steps and number)
            text, seconds = await _ask(client, model, task, arm, query.question, reused)
            answers.append(Answer(text, text == query.answer, seconds))
        return answers + await asyncio.gather(*map(beside_others, task.queries[TIMED:]))


async def _ask(
    client: httpx.AsyncClient, model: str, task: Task, arm: Arm, question: str, reused: bool
) -> tuple[str, float]:
    body = {
        "model": model,
        "max_tokens": _MAX_TOKENS,
        "temperature": 0,
        "stream": True,
        **arm.fields(task, question),
    }
    text, seconds, report = "", None, None
    started = time.perf_counter()
    headers = {"Compute-Budget": arm.budget}
    async with client.stream(
        "POST", "/v1/chat/completions", headers=headers, json=body
    ) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{arm.name}: {(await response.aread()).decode()[:500]}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk: dict[str, Any] = json.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(f"{arm.name}: {chunk['error']}")
            report = report or chunk.get("adaptation")
            for choice in chunk.get("choices", ()):
                if content := choice["delta"].get("content"):
                    seconds = seconds or time.perf_counter() - started
                    text += content
    _check(arm, report or {}, reused)
    return text.strip(), time.perf_counter() - started if seconds is None else seconds


def _check(arm: Arm, report: dict[str, Any], reused: bool) -> None:
    found = bool(report.get("adapted")), bool(report.get("reused"))
    if found != (bool(arm.steps), reused):
        raise RuntimeError(f"{arm.name}: the answer is not from the adapter it asked for: {report}")
