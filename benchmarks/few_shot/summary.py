"""What the arms score: exact match with intervals, the chosen arm, seconds to the first token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any, TypeAlias

import numpy as np

from benchmarks.few_shot.arms import ARMS, CHOSEN, IN_CONTEXT

# The answers of each arm by task, and of each task an arm's answers in the order of its queries.
Answers: TypeAlias = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
_DRAWS = 1000


def interval(
    values_by_task: Sequence[Sequence[float]], seed: int = 0
) -> tuple[float, float, float]:
    """Mean over tasks, and a 90 % bootstrap interval.

    Tasks are drawn, and for each drawn task its queries, since other tasks and other queries could
    have been asked.
    """
    rng = np.random.default_rng(seed)
    count = len(values_by_task)
    drawn = [
        [
            rng.choice(values_by_task[task], len(values_by_task[task])).mean()
            for task in rng.integers(0, count, count)
        ]
        for _ in range(_DRAWS)
    ]
    low, high = np.quantile(np.mean(drawn, axis=1), [0.05, 0.95])
    return mean(map(mean, values_by_task)), float(low), float(high)


def exact_match(answers: Answers, arm: str) -> list[list[float]]:
    """100 for each right answer of an arm, 0 for each wrong one, by task."""
    return [[100.0 * answer["right"] for answer in by_arm[arm]] for by_arm in answers.values()]


def by_task(answers: Answers) -> dict[str, dict[str, float]]:
    """Exact match in per cent by task and arm."""
    return {
        task: {arm: 100 * mean(each["right"] for each in found) for arm, found in by_arm.items()}
        for task, by_arm in answers.items()
    }


def summary(answers: Answers) -> dict[str, Any]:
    """The numbers that the benchmark ends with."""
    paired = [
        [mine - other for mine, other in zip(*task, strict=True)]
        for task in zip(
            exact_match(answers, CHOSEN.name), exact_match(answers, IN_CONTEXT.name), strict=True
        )
    ]
    return {
        "exact_match": {arm.name: interval(exact_match(answers, arm.name)) for arm in ARMS},
        "best_trained": CHOSEN.name,
        "best_trained_minus_in_context": interval(paired),
        "seconds_to_first_token": {arm.name: _seconds(answers, arm.name) for arm in ARMS},
    }


def _seconds(answers: Answers, arm: str) -> dict[str, float]:
    """Median over tasks of the first request's seconds, and over the later ones asked alone."""
    first, later = [], []
    for by_arm in answers.values():
        timed = [each["seconds"] for each in by_arm[arm] if each["seconds"] is not None]
        first.append(timed[0])
        later += timed[1:]
    return {"first": median(first), "later": median(later)}
