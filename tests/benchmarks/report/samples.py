"""Results in the format of the benchmarks, and the repository's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.latency.stages import by_stage
from benchmarks.report.main import BENCHMARKS

RESULTS = BENCHMARKS / "results"
REPORT_STAGES = {
    "queue": 0.001,
    "embed": 0.03,
    "search": 0.002,
    "select": 0.001,
    "train": 0.6,
    "load": 0.05,
}
CLIENT_STAGES = {"first token": 0.8, "per token": 0.01, "whole": 1.1}


def make_cell(
    server: str, budget: str | None, at_once: int | None, *, checked: bool = True, **more: Any
) -> dict[str, Any]:
    """A cell in the format of `benchmarks/latency/main.py`; Mayfly's requests are adapted."""
    adapted = server == "mayfly" and budget != "none"
    stages = [
        CLIENT_STAGES | (REPORT_STAGES | {"loaded to first token": 0.1} if adapted else {})
        for _ in range(3)
    ]
    check = {
        "failed": 1,
        "per_second": 0.9,
        "stages": {},
        "steps_missing": 5 if adapted else None,
        "counted": {},
    }
    return {
        "server": server, "budget": budget, "requests": 3, "prompt": 128, "answer": 32,
        "at_once": at_once, "rate": None, "model": "nano", "corpus": None, "short": 0,
        "per_second": 0.91, "prompt_tokens": 128.0, "stages": by_stage(stages), "counted": {},
        "steps_train_whole": [], "vllm_bench_serve": check if checked else None,
        "agreement": {"first token": 1.25, "whole": 1.1} if checked else {}, **more,
    }  # fmt: skip


def stored_results(*names: str) -> Mapping[str, Any]:
    return {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in names}
