"""The latency section."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from benchmarks.latency.growth import Point, fitted
from benchmarks.latency.plan import PLANS
from benchmarks.report.latency import cross_check, latency
from benchmarks.report.latency_growth import growth, line_at
from tests.benchmarks.report.samples import make_cell
from tests.benchmarks.sketches import sketches


@pytest.fixture
def latency_result() -> dict[str, Any]:
    """The result of a small plan with one further length, in the format of `--out`."""
    cells = [
        make_cell("vllm", None, 1),
        make_cell("resident", None, 1),
        *(make_cell("mayfly", budget, 1) for budget in ("none", "steps=5")),
        make_cell("vllm", None, 4, checked=False),
        make_cell("mayfly", "steps=5", 4, checked=False, short=2),
        make_cell("mayfly", "steps=5", 1, prompt=512, answer=64),
        make_cell("mayfly", "steps=5", None, rate=0.64, checked=False),
    ]
    hot_load = {
        "hot_load_ratio": 1.39, "ratios": (1.39, 1.2, 1.6), "pairs": 10, "short": 0,
        "prompt_tokens": 128, "ready_to_first_seconds": (0.07, 0.06, 0.09),
        "resident_first_seconds": (0.05, 0.04, 0.06), "load_seconds": (0.02, 0.01, 0.03),
    }  # fmt: skip
    peft = {
        "speedup_vs_naive": 0.96, "speedup_vs_naive_pool": 5.5,
        "ratios": {"naive": [0.96], "naive pool": [5.5]},
        "per_second": {"mayfly": [1.0], "naive": [1.04], "naive pool": [0.18]},
        "short": {"mayfly": 0, "naive": 3, "naive pool": 0},
        "load": {"budget": "steps=10", "at_once": 8, "requests": 8},
        "seconds": {"naive": {"train": 0.7}, "naive pool": {"train": 0.9}},
        "processes_and_threads": {"naive": (1, 1), "naive pool": (2, 1)},
    }  # fmt: skip
    curves: dict[str, list[Point]] = {
        "steps": [(5, 0.6), (20, 2.1), (20, 2.2)],
        "million parameters, a step": [(5.6, 0.1), (5.6, 0.2)],
        "sequence tokens": [],
    }
    result = {
        "command": "python -m benchmarks.latency.main --budget small", "commit": "0123456789abcdef",
        "machine": {"processor": "a CPU", "cores": 2, "system": "Linux"},
        "versions": {"python": "3.11.7"}, "budget": "small",
        "plan": asdict(PLANS["small"]) | {"lengths": [(512, 64)]},
        "cells": {str(number): cell for number, cell in enumerate(cells)}, "short": 12,
        "hot_load_ratio": 1.39, "hot_load": {"128": hot_load}, "naive": peft,
        "growth": fitted(curves),
    }  # fmt: skip
    stored: dict[str, Any] = json.loads(json.dumps(result))
    return stored


def test_latency_is_shown_by_server_budget_and_load(latency_result: dict[str, Any]) -> None:
    lines = latency({"latency": latency_result}, sketches("latency"))

    def find(start: str) -> str:
        return next(line for line in lines if line.startswith(start))

    times = "800 / 800 / 800\\*"
    assert f"| plain vLLM | 1 | 3 | 0.91 |  |  |  |  | {times} |" in find("| plain vLLM | 1 |")
    # Embed, search and select.
    assert "| 33.0 / 33.0 / 33.0\\* | 600 / 600 / 600\\* |" in find("| `steps=5` | 1 |")
    assert find("| `steps=5` | 4 |").startswith("| `steps=5` | 4 | 3, 2 short |")
    assert [
        line.split("|")[1:3] for line in lines if line.startswith(("| 128 | 32 |", "| 512 | 64 |"))
    ] == [
        [" 128 ", " 32 "],
        [" 512 ", " 64 "],
    ]
    assert find("| `steps=5` | 0.64 |")
    assert "5 of 8 cells" in find("Cross-check")
    assert "first token 1.25 (1.25 to 1.25)" in find("Cross-check")
    assert "5 failed, and 10 steps" in find("Cross-check")


def test_missed_thresholds_are_shown(latency_result: dict[str, Any]) -> None:
    lines = "\n".join(latency({"latency": latency_result}, sketches("latency")))

    assert "**1.39**; threshold 1.15: **does not hold**" in lines
    assert "**0.96** times those of 1 x 1 (**does not hold**)" in lines
    assert "**5.50** times those of 2 x 1 (holds); threshold 5" in lines
    assert "| steps | training | 5 | 20 | 2 | 3 |" in lines
    assert "| 5.6 | 5.6 | 1 | 2 |  | no line |" in lines
    assert "sequence tokens" not in lines  # no request succeeded


def test_a_run_of_default_lengths_in_closed_loops_has_no_further_tables(
    latency_result: dict[str, Any],
) -> None:
    default_cells = {
        name: cell
        for name, cell in latency_result["cells"].items()
        if cell["prompt"] == 128 and cell["rate"] is None and not cell["vllm_bench_serve"]
    }
    lines = latency({"latency": {**latency_result, "cells": default_cells}}, sketches("latency"))

    assert not any(line.startswith(("### Lengths", "### Open")) for line in lines)
    assert "measured no cell" in cross_check(list(default_cells.values()))


def test_a_bent_line_goes_through_its_points() -> None:
    points: list[Point] = [
        (x, max(1.0, 0.25 * x) + wobble) for x in (1, 2, 4, 8, 16) for wobble in (-0.01, 0.0, 0.01)
    ]
    curves = fitted({"concurrency": points})

    curve = curves["concurrency"]
    assert [line_at(curve, x) for x in (0, 4, 16)] == pytest.approx([1.0, 1.0, 4.0], abs=0.02)
    assert curve["fit"]["intercept"] == pytest.approx(line_at(curve, 0.0))
    assert any("| 4 | 250 |" in line for line in growth(curves, sketches("latency")))
