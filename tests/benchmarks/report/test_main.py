"""The report: sections from results in the format of their benchmarks, and the script where nothing
is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from benchmarks.latency.growth import Point, fitted
from benchmarks.latency.plan import PLANS
from benchmarks.latency.stages import by_stage
from benchmarks.quality.tables import summary
from benchmarks.quality.variants import Variant
from benchmarks.report.formatting import Plots, provenance_line
from benchmarks.report.latency import agreement, latency
from benchmarks.report.latency_growth import growth, line_at
from benchmarks.report.main import HERE, written
from benchmarks.report.promises import PROMISES, promises
from benchmarks.report.quality import quality
from benchmarks.report.selection import selection
from benchmarks.report.training import training
from tests.benchmarks.quality.test_tables import rows

RESULTS = HERE / "results"
REPORT = {
    "queue": 0.001,
    "embed": 0.03,
    "search": 0.002,
    "select": 0.001,
    "train": 0.6,
    "load": 0.05,
}
SEEN = {"first token": 0.8, "per token": 0.01, "whole": 1.1}


class Sketches(Plots):
    """Plots that are drawn on axes of matplotlib's that take everything: matplotlib is not
    installed here.
    """

    def draw(self, what: str, alt: str, paint: Callable[..., None], panels: int = 1) -> str:
        """Keep no drawing."""
        paint(*(MagicMock() for _ in range(panels)))
        return f"![{alt}](plots/{self._name}-{what}.svg)"


def sketches(name: str) -> Sketches:
    return Sketches(HERE, name, "results")


def cell(
    server: str, budget: str | None, at_once: int | None, *, checked: bool = True, **more: Any
) -> dict[str, Any]:
    """As `benchmarks/latency/main.py` measures one; Mayfly's are adapted."""
    adapted = server == "mayfly" and budget != "none"
    stages = [SEEN | (REPORT | {"loaded to first token": 0.1} if adapted else {}) for _ in range(3)]
    check = {
        "failed": 1,
        "per_second": 0.9,
        "stages": {},
        "steps_missing": 5 if adapted else None,
        "counted": {},
    }
    return {
        "server": server, "budget": budget, "requests": 3, "prompt": 128, "answer": 32, "at_once": at_once,
        "rate": None, "model": "nano", "corpus": None, "short": 0, "per_second": 0.91, "prompt_tokens": 128.0,
        "stages": by_stage(stages), "counted": {}, "steps_train_whole": [],
        "vllm_bench_serve": check if checked else None,
        "agreement": {"first token": 1.25, "whole": 1.1} if checked else {}, **more,
    }  # fmt: skip


@pytest.fixture
def measured() -> dict[str, Any]:
    """Of a small plan with one more length, in the format of --out."""
    cells = [
        cell("vllm", None, 1),
        cell("resident", None, 1),
        *(cell("mayfly", budget, 1) for budget in ("none", "steps=5")),
        cell("vllm", None, 4, checked=False),
        cell("mayfly", "steps=5", 4, checked=False, short=2),
        cell("mayfly", "steps=5", 1, prompt=512, answer=64),
        cell("mayfly", "steps=5", None, rate=0.64, checked=False),
    ]
    hot = {
        "hot_load_ratio": 1.39, "ratios": (1.39, 1.2, 1.6), "pairs": 10, "short": 0, "prompt_tokens": 128,
        "ready_to_first_seconds": (0.07, 0.06, 0.09), "resident_first_seconds": (0.05, 0.04, 0.06),
        "load_seconds": (0.02, 0.01, 0.03),
    }  # fmt: skip
    raced = {
        "speedup_vs_naive": 0.96, "speedup_vs_naive_pool": 5.5, "ratios": {"naive": [0.96], "naive pool": [5.5]},
        "per_second": {"mayfly": [1.0], "naive": [1.04], "naive pool": [0.18]},
        "short": {"mayfly": 0, "naive": 3, "naive pool": 0},
        "load": {"budget": "steps=10", "at_once": 8, "requests": 8},
        "seconds": {"naive": {"train": 0.7}, "naive pool": {"train": 0.9}},
        "processes_and_threads": {"naive": (1, 1), "naive pool": (2, 1)},
    }  # fmt: skip
    grown: dict[str, list[Point]] = {
        "steps": [(5, 0.6), (20, 2.1), (20, 2.2)],
        "million parameters, a step": [(5.6, 0.1), (5.6, 0.2)],
        "sequence tokens": [],
    }
    result = {
        "command": "python -m benchmarks.latency.main --budget small", "commit": "0123456789abcdef",
        "machine": {"processor": "a CPU", "cores": 2, "system": "Linux"}, "versions": {"python": "3.11.7"},
        "budget": "small", "plan": asdict(PLANS["small"]) | {"lengths": [(512, 64)]},
        "cells": {str(number): each for number, each in enumerate(cells)}, "short": 12,
        "hot_load_ratio": 1.39, "hot_load": {"128": hot}, "naive": raced, "growth": fitted(grown),
    }  # fmt: skip
    kept: dict[str, Any] = json.loads(json.dumps(result))
    return kept


def test_latency_is_told_by_server_budget_and_load(measured: dict[str, Any]) -> None:
    told = latency({"latency": measured}, sketches("latency"))

    def line(start: str) -> str:
        return next(each for each in told if each.startswith(start))

    one = "800 / 800 / 800\\*"
    assert f"| plain vLLM | 1 | 3 | 0.91 |  |  |  |  | {one} |" in line("| plain vLLM | 1 |")
    # Embed, search and select.
    assert "| 33.0 / 33.0 / 33.0\\* | 600 / 600 / 600\\* |" in line("| `steps=5` | 1 |")
    assert line("| `steps=5` | 4 |").startswith("| `steps=5` | 4 | 3, 2 not as asked |")
    assert [
        each.split("|")[1:3] for each in told if each.startswith(("| 128 | 32 |", "| 512 | 64 |"))
    ] == [
        [" 128 ", " 32 "],
        [" 512 ", " 64 "],
    ]
    assert line("| `steps=5` | 0.64 |")
    assert "5 of 8 cells" in line("Cross-check")
    assert "first token 1.25 (1.25 to 1.25)" in line("Cross-check")
    assert "5 failed, and 10 steps" in line("Cross-check")


def test_what_does_not_hold_stays_in(measured: dict[str, Any]) -> None:
    told = "\n".join(latency({"latency": measured}, sketches("latency")))

    assert "**1.39**; at most 1.15 is wanted: **does not hold**" in told
    assert (
        "**0.96** times the naive way's (**does not hold**) and **5.50** times the naive pool way's (holds)"
        in told
    )
    assert "| steps | training | 5 | 20 | 2 | 3 |" in told
    assert "| 5.6 | 5.6 | 1 | 2 |  | no line |" in told
    assert "sequence tokens" not in told  # nothing was answered as asked


def test_a_run_of_usual_lengths_in_closed_loops_has_no_tables_of_others(
    measured: dict[str, Any],
) -> None:
    usual = {
        name: each
        for name, each in measured["cells"].items()
        if each["prompt"] == 128 and each["rate"] is None and not each["vllm_bench_serve"]
    }
    told = latency({"latency": {**measured, "cells": usual}}, sketches("latency"))

    assert not any(each.startswith(("### Lengths", "### Open")) for each in told)
    assert "for no cell" in agreement(list(usual.values()))


def test_a_bent_line_goes_through_its_points() -> None:
    points: list[Point] = [
        (x, max(1.0, 0.25 * x) + wobble) for x in (1, 2, 4, 8, 16) for wobble in (-0.01, 0.0, 0.01)
    ]
    grown = fitted({"concurrency": points})

    found = grown["concurrency"]
    assert [line_at(found, x) for x in (0, 4, 16)] == pytest.approx([1.0, 1.0, 4.0], abs=0.02)
    assert found["fit"]["intercept"] == pytest.approx(line_at(found, 0.0))
    assert any("| 4 | 250 |" in each for each in growth(grown, sketches("latency")))


def test_quality_is_told_of_what_its_tables_sum_up() -> None:
    everything = [*rows("SIFT", 80), *rows("NN", 85)]
    size = {"axis_measured": 2, "domains": ["legal", "Rust"]}
    settings = {"rank": [Variant("rank 4", rank=4)]}
    result = {
        **summary([*everything, *rows("rank 4", 82)], ["SIFT", "NN"], settings),
        "corpus_sequences": 9,
        "model": "nano",
        "size": size,
    }

    told = quality({"quality": json.loads(json.dumps(result))}, sketches("quality"))

    assert "SIFT minus nearest neighbours: **-5.0 (-5.0 to -5.0) points**." in told
    assert any(each.startswith("| **all** | 4 |") for each in told)
    assert "| 50 to 50 (50) | 2 | -5.0 (-5.0 to -5.0) |" in told
    assert "| rank 4 | 82.0 (82.0 to 82.0) | 2.0 (2.0 to 2.0) | -3.0 (-3.0 to -3.0) |" in told


def kept(*names: str) -> Mapping[str, Any]:
    return {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in names}


def test_kept_results_of_training_are_told_beside_each_other() -> None:
    told = training(
        kept("training", "training-float32", "training-two-threads"), sketches("training")
    )

    assert any(each.startswith("| training | 150M | bfloat16 |") for each in told)
    assert any(each.startswith("| training | nano | (float32) |") for each in told)
    assert any("(results/training.svg)" in each for each in told)
    late = {
        each.split(" | ")[0]: each
        for each in told[told.index("### Deadlines") :]
        if each.count("|") == 7
    }
    assert late["| training"].endswith("| holds |")
    assert late["| training-two-threads"].endswith("| **does not hold** |")


def test_kept_results_of_selection_are_told() -> None:
    told = selection(kept("selection"), sketches("selection"))

    assert any(each.startswith("| 1,000,000 |") for each in told)
    assert any("(results/overhead.svg)" in each for each in told)


def test_a_promise_that_is_broken_stands_out() -> None:
    results = dict(kept(*(promise.name for promise in PROMISES)))
    sound = promises(results, sketches("promises"))
    results["abuse"] = {**results["abuse"], "leaked": 3}
    results["overhead"] = {**results["overhead"], "ttft_ratio": 1.2}
    results["compat"] = {"results": [{"client": "llm", "not_installed": "no network", "cases": []}]}
    broken = promises(results, sketches("promises"))

    assert {each.split(" | ")[-1] for each in sound[2:-1]} == {
        f"{promise.name}.json |" for promise in PROMISES
    }
    blamed = [
        each.split(" | ")[-1]
        for each in broken
        if "**does not hold**" in each and each not in sound
    ]
    assert blamed == ["overhead.json |", "abuse.json |"]
    assert any("llm works | not installed | no failure | not measured |" in each for each in broken)


def test_where_numbers_are_from(measured: dict[str, Any]) -> None:
    assert provenance_line(measured, "latency", "results") == (
        "<sub>[latency.json](results/latency.json); `python -m benchmarks.latency.main --budget small`; commit 0123456789; "
        "a CPU, 2 cores; python 3.11.7.</sub>"
    )


def test_a_report_of_nothing_says_how_to_measure(tmp_path: Path) -> None:
    told = written(tmp_path, tmp_path)

    assert "Not measured here: `make bench-latency`." in told
    assert "Not measured here: `make abuse`." in told


def test_the_script_runs_where_nothing_is_installed(tmp_path: Path) -> None:
    """No site-packages, so neither Mayfly nor matplotlib, of which these results need no plot."""
    (tmp_path / "results").mkdir()
    for name in ("abuse", "selection"):
        (tmp_path / "results" / f"{name}.json").write_bytes((RESULTS / f"{name}.json").read_bytes())
    places = ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "R.md")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    subprocess.run(
        [sys.executable, "-S", "-m", "benchmarks.report.main", *places],
        check=True,
        cwd=HERE.parent,
        env=environment,
    )

    told = (tmp_path / "R.md").read_text()
    for words in (
        "[abuse.json](results/abuse.json)",
        "make bench-quality",
        "| 1,000,000 |",
        "malformed requests",
    ):
        assert words in told


def test_kept_results_of_quality_and_latency_are_told() -> None:
    what_it_buys = quality(kept("quality"), sketches("quality"))
    what_it_costs = latency(kept("latency"), sketches("latency"))

    assert any(each.startswith("SIFT minus nearest neighbours: **") for each in what_it_buys)
    assert any(each.startswith("| NN, every sequence 5 times |") for each in what_it_buys)
    assert any(each.startswith("| `auto` | 16 |") for each in what_it_costs)
    assert any("times the naive way's" in each for each in what_it_costs)
