"""Profiles the engine of a running Mayfly over HTTP, by the time of short and long answers.

Prompts of two lengths give the cost of a prompt token; answers of two lengths, one at a time and
CONCURRENCY at once, give the cost of an answer token. If the server has a corpus, a few adapted
answers give the time to load an adapter and how much slower tokens with an adapter are; all tokens
are assumed to be that slow. Prompts are random tokens, so that no prefix cache contains them. The
server should have nothing else to do.
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

from serving.capacity.cost_model import CONCURRENCY, fit_line
from serving.client import Report, Server

Item = TypeVar("Item")

_REPEATS = 5
# Tokens of a long answer beyond the first one.
_ANSWER_TOKENS = 32
# Tokens of a short prompt.
_SHORT_PROMPT = 16


@dataclass(frozen=True)
class EngineCosts:
    """The engine's part of a `CostModel`; `load` is None if the server has no corpus."""

    decode_fixed: float
    decode_per_answer: float
    prefill_per_token: float
    answer_fixed: float
    load: float | None


def profile_engine(
    server: Server,
    vocabulary: int,
    prompt_tokens: int,
    clock: Callable[[], float] = time.perf_counter,
) -> EngineCosts:
    """Measure the costs of an engine.

    Args:
        server: The server of the engine.
        vocabulary: Number of tokens in its model's vocabulary.
        prompt_tokens: Tokens of the longer prompts.
        clock: Seconds.

    Raises:
        AnswerError: the server does not answer, or answers with an error.
    """
    model, random = server.first_model(), np.random.default_rng()

    def prompts(tokens: int, count: int = _REPEATS + 1) -> list[list[int]]:
        drawn: list[list[int]] = random.integers(
            0, max(vocabulary // 2, 1), (count, tokens)
        ).tolist()
        return drawn

    def complete(prompt: Sequence[int], answer: int, budget: str = "none") -> dict[str, Any]:
        """Request an answer of `answer` tokens, and return the server's report."""
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": answer,
            "ignore_eos": True,
            "compute_budget": budget,
        }
        events = list(server.stream("completions", body))
        return next((event.fields for event in events if isinstance(event, Report)), {})

    def seconds(answer: int, prompt: int = _SHORT_PROMPT) -> float:
        return median_seconds(partial(complete, answer=answer), prompts(prompt), clock)

    def seconds_together(answer: int) -> float:
        batches = [prompts(_SHORT_PROMPT, CONCURRENCY) for _ in range(_REPEATS + 1)]
        with ThreadPoolExecutor(CONCURRENCY) as clients:
            return median_seconds(
                lambda batch: list(clients.map(partial(complete, answer=answer), batch)),
                batches,
                clock,
            )

    long_answer = 1 + _ANSWER_TOKENS
    added_tokens = max(prompt_tokens, 4 * _SHORT_PROMPT) - _SHORT_PROMPT
    short = seconds(1)
    long_prompt = seconds(1, _SHORT_PROMPT + added_tokens)
    long = seconds(long_answer)
    prefill = max(long_prompt - short, 0.0) / added_tokens
    token_alone = max(long - short, 0.0) / _ANSWER_TOKENS
    tokens_together = max(seconds_together(long_answer) - seconds_together(1), 0.0) / _ANSWER_TOKENS
    decode_fixed, decode_per_answer = fit_line(token_alone, tokens_together, CONCURRENCY)
    load, slowdown = _measure_loading(
        partial(complete, answer=long_answer, budget="steps=1"),
        prompts(_SHORT_PROMPT),
        short,
        long,
        clock,
    )
    return EngineCosts(
        slowdown * decode_fixed,
        slowdown * decode_per_answer,
        prefill,
        max(short - _SHORT_PROMPT * prefill - token_alone, 0.0),
        load,
    )


def median_seconds(
    work: Callable[[Item], object],
    items: Sequence[Item],
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Median seconds of `work` on each item but the first."""
    seconds = []
    for item in items:
        started = clock()
        work(item)
        seconds.append(clock() - started)
    return statistics.median(seconds[1:])


def _measure_loading(
    complete: Callable[[list[int]], dict[str, Any]],
    prompts: Sequence[list[int]],
    short: float,
    long: float,
    clock: Callable[[], float],
) -> tuple[float | None, float]:
    """Seconds to load an adapter, and the slowdown of tokens with one; None, 1 without a corpus.

    Args:
        complete: Requests a long adapted answer, and returns the report.
        prompts: The prompts to use.
        short, long: Seconds of a short and of a long answer without an adapter.
        clock: Seconds.
    """
    loads, answers = [], []
    for prompt in prompts:
        started = clock()
        report = complete(prompt)
        seconds = clock() - started
        if report.get("adapted"):
            loads.append(float(report["seconds"]["load"]))
            answers.append(seconds - float(report["spent"]["seconds"]))
    if not loads:
        return None, 1.0
    slowdown = (statistics.median(answers) - short) / (long - short) if long > short else 1.0
    return statistics.median(loads), max(slowdown, 1.0)
