"""The printed tables."""

from __future__ import annotations

import io

from rich.console import Console

from benchmarks.latency.client import Answer, Load
from benchmarks.latency.growth import growth_table
from benchmarks.latency.stages import by_stage
from benchmarks.latency.tables import show

LOAD = Load("steps=5", 1, 64, 3)
REPORT = {
    "adapted": True,
    "spent": {"steps": 5, "seconds": 0.7},
    "seconds": {"embed": 0.03, "train": 0.6, "load": 0.05},
}


def test_tables_mark_a_p99_of_few_requests_and_a_missing_line() -> None:
    stages = by_stage([Answer(200, 0.8, 1.2, 3, 64, REPORT).stages()])
    bench = {"per_second": 1.0, "failed": 0, "steps_missing": 0}
    cell = {
        "requests": 1, "stages": stages, "counted": {"prefill": {"n": 1, "mean": 0.0123}},
        "short": 0, "per_second": 1.0, "vllm_bench_serve": bench, "agreement": {"whole": 1.07},
    }  # fmt: skip
    unchecked_cell = {**cell, "vllm_bench_serve": None, "agreement": {}}
    hot = {
        "hot_load_ratio": 1.4,
        "ratios": (1.4, 1.2, 1.6),
        "pairs": 3,
        "short": 0,
        "prompt_tokens": 128,
    }
    peft = {
        "ratios": {"naive": [1.9, 2.1]}, "short": {"mayfly": 0},
        "seconds": {"naive": {"train": 1.0}}, "load": {"budget": "steps=10", "at_once": 8},
        "processes_and_threads": {"naive": (1, 2)},
    }  # fmt: skip
    output = io.StringIO()

    show(
        {
            "cells": {"one": cell, "two": unchecked_cell},
            "growth": {"steps": {"fit": None}},
            "hot_load": {"128": hot},
            "naive": peft,
        },
        Console(file=output, width=300),
    )

    for words in (
        "1200*",
        "1.00",
        "1.07",
        "no line",
        "1.40 times",
        "2.00 times",
        "fewer than 20",
    ):
        assert words in output.getvalue()
    assert growth_table({"steps": {"fit": None}}).row_count == 1
