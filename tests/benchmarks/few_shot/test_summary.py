"""The numbers of the benchmark, on made-up answers, and what the requests of an arm ask for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from benchmarks.few_shot.arms import ARMS, CHOSEN, IN_CONTEXT, TRAINED, ZERO_SHOT
from benchmarks.few_shot.summary import Answers, by_task, interval, summary
from benchmarks.few_shot.task import Pair, Task
from benchmarks.report.fewshot import fewshot
from tests.benchmarks.sketches import sketches

_TASK = Task("any", (Pair("a", "1"), Pair("b", "2")), (Pair("c", "3"),))


def _answers(right: Mapping[str, float], tasks: int = 4, queries: int = 10) -> Answers:
    """Answers of all arms, of which the given share is right; the first two of each are timed."""
    return {
        f"task {n}": {
            arm.name: [
                {
                    "right": q < queries * right.get(arm.name, 0),
                    "seconds": {0: 5.0 + n, 1: 0.5}.get(q),
                }
                for q in range(queries)
            ]
            for arm in ARMS
        }
        for n in range(tasks)
    }


def test_the_chosen_arm_is_compared_whatever_the_others_reach() -> None:
    other = TRAINED[0].name

    found = summary(_answers({CHOSEN.name: 0.5, other: 0.9, IN_CONTEXT.name: 0.4}))

    assert found["best_trained"] == CHOSEN.name
    assert found["best_trained_minus_in_context"][0] == pytest.approx(10)
    assert found["exact_match"][other][0] == pytest.approx(90)
    assert found["exact_match"][ZERO_SHOT.name] == (0.0, 0.0, 0.0)


def test_the_report_shows_arms_and_formats() -> None:
    answers = _answers({CHOSEN.name: 1.0})
    result = {"model": "smollm2", **summary(answers), "by_task": by_task(answers)}

    lines = fewshot({"fewshot": json.loads(json.dumps(result))}, sketches("fewshot"))

    gain = "100.0 (100.0 to 100.0) | at least 20 | holds |"
    assert f"| {CHOSEN.name} | {gain}" in lines
    assert f"| {CHOSEN.name} | 100.0 (100.0 to 100.0) | 6.50 | 0.50 |" in lines
    assert any(re.fullmatch(r"\| task 3( \| 0)+ \| 100 \|", line) for line in lines)


def test_the_first_request_of_a_task_is_timed_apart() -> None:
    found = summary(_answers({}))

    assert found["seconds_to_first_token"][TRAINED[0].name] == {"first": 6.5, "later": 0.5}


def test_an_interval_counts_tasks_and_queries() -> None:
    _, low, high = interval([[0.0] * 40, [100.0] * 40])
    assert (low, high) == (0.0, 100.0)

    mean, low, high = interval([[0.0, 100.0] * 20] * 8)
    assert mean == 50
    assert 40 < low < 50 < high < 60


def test_the_base_model_is_shown_the_demonstrations_as_earlier_turns() -> None:
    assert ZERO_SHOT.fields(_TASK, "c") == {"messages": [{"role": "user", "content": "c"}]}
    messages = IN_CONTEXT.fields(_TASK, "c")["messages"]

    assert [each["role"] for each in messages] == ["user", "assistant"] * 2 + ["user"]
    assert (ZERO_SHOT.budget, IN_CONTEXT.budget) == ("none", "none")


@pytest.mark.parametrize("arm", TRAINED, ids=lambda arm: arm.name)
def test_a_trained_arm_brings_the_demonstrations_as_examples(arm: Any) -> None:
    fields = arm.fields(_TASK, "c")

    assert fields["messages"] == [{"role": "user", "content": "c"}]
    assert fields["adaptation"]["examples"][0] == {"prompt": "a", "completion": "1"}
    assert fields["adaptation"]["show"] == (2 if arm.shown else 0)
    assert arm.budget == f"steps={arm.steps}"
