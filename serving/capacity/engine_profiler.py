"""Measures the engine of a running Mayfly over HTTP: by how long answers of one token and of more
take.

Prompts of two lengths tell what a token of a prompt costs, answers of two lengths what a token of
an answer does, alone and AT_ONCE together. Where the server has a corpus, a few adapted answers
tell how long an adapter takes to load, and how much longer a token takes with one; all tokens are
taken to take that long. Prompts are random tokens, so that no prefix cache knows them. The server
should have nothing else to do.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from serving.capacity.cost_model import AT_ONCE, line
from serving.client import Report, Server

Item = TypeVar("Item")

_REPEATS = 5
_ANSWER = 32  # tokens beyond the first
_SHORT = 16  # tokens of a prompt


@dataclass(frozen=True)
class EngineCosts:
    """As in `serving.capacity.cost_model.CostModel`; None where the server has no corpus."""

    decode_fixed: float
    decode_each: float
    prefill_token: float
    answer_fixed: float
    load: float | None


def ask_engine(server: Server, vocabulary: int, prompt_tokens: int) -> EngineCosts:
    """Measure it.

    Args:
        server: that is asked.
        vocabulary: how many tokens its model has.
        prompt_tokens: of the longer prompts.

    Raises:
        AnswerError: it does not answer, or not as it should.
    """
    # Prompts that no prefix cache knows.
    model, random = server.first_model(), np.random.default_rng()

    def prompts(tokens: int, count: int = _REPEATS + 1) -> list[list[int]]:
        drawn: list[list[int]] = random.integers(
            0, max(vocabulary // 2, 1), (count, tokens)
        ).tolist()
        return drawn

    def ask(prompt: Sequence[int], answer: int, budget: str = "none") -> dict[str, Any]:
        """What the server reports of an answer."""
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": answer,
            "ignore_eos": True,
            "compute_budget": budget,
        }
        told = list(server.stream("completions", body))
        return next((each.fields for each in told if isinstance(each, Report)), {})

    def together(answer: int) -> float:
        several = [prompts(_SHORT, AT_ONCE) for _ in range(_REPEATS + 1)]
        with ThreadPoolExecutor(AT_ONCE) as clients:
            return usual(lambda each: list(clients.map(partial(ask, answer=answer), each)), several)

    more = max(prompt_tokens, 4 * _SHORT) - _SHORT
    one = usual(partial(ask, answer=1), prompts(_SHORT))
    far = usual(partial(ask, answer=1), prompts(_SHORT + more))
    whole = usual(partial(ask, answer=1 + _ANSWER), prompts(_SHORT))
    prefill, alone = max(far - one, 0.0) / more, max(whole - one, 0.0) / _ANSWER
    full = max(together(1 + _ANSWER) - together(1), 0.0) / _ANSWER
    decode_fixed, decode_each = line(alone, full, AT_ONCE)
    load, slower = _load(
        partial(ask, answer=1 + _ANSWER, budget="steps=1"), prompts(_SHORT), one, whole
    )
    return EngineCosts(
        slower * decode_fixed,
        slower * decode_each,
        prefill,
        max(one - _SHORT * prefill - alone, 0.0),
        load,
    )


def usual(work: Callable[[Item], object], items: Sequence[Item]) -> float:
    """The median seconds of this work, the first time left out."""
    seconds = []
    for item in items:
        begun = time.perf_counter()
        work(item)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])


def _load(
    ask: Callable[[list[int]], dict[str, Any]],
    prompts: Sequence[list[int]],
    one: float,
    whole: float,
) -> tuple[float | None, float]:
    """Seconds to load an adapter, and how many times longer a token takes with one; None and 1
    where there is none.
    """
    loads, answers = [], []
    for prompt in prompts:
        begun = time.perf_counter()
        report = ask(prompt)
        seconds = time.perf_counter() - begun
        if report.get("adapted"):
            loads.append(float(report["seconds"]["load"]))
            answers.append(seconds - float(report["spent"]["seconds"]))
    if not loads:
        return None, 1.0
    slower = (statistics.median(answers) - one) / (whole - one) if whole > one else 1.0
    return statistics.median(loads), max(slower, 1.0)
