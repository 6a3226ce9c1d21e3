"""A run: its journal, and the result that is put together from it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.latency.growth import growth_table
from benchmarks.latency.journal import Journal
from benchmarks.latency.main import run
from benchmarks.latency.plan import PLANS, cells


def test_a_journal_measures_nothing_twice(tmp_path: Path) -> None:
    file = tmp_path / "measured.json"

    def fail() -> Any:
        raise RuntimeError("the server died")

    journal = Journal(file)
    first = journal.once("a", lambda: {"at": (1, 2)})
    with pytest.raises(RuntimeError, match="died"):
        journal.once("b", fail)

    resumed = Journal(file)
    assert first == resumed.once("a", fail) == {"at": [1, 2]}  # the same types, measured or read
    assert resumed.once("b", lambda: 3) == 3
    assert json.loads(file.read_text()) == {"a": {"at": [1, 2]}, "b": 3}


def test_a_run_combines_all_measurements(tmp_path: Path) -> None:
    # The small plan: some cells are not cross-checked, and a single model gives no line.
    plan = PLANS["small"]
    journal: dict[str, Any] = {
        "corpora": None,
        "growth, nano": {"step": [(5.6, 0.1), (5.6, 0.2)], "token": [(5.6, 0.01)]},
    }
    journal |= {
        f"growth, {what}": [(1, 0.1), (8, 0.2)] for what in ("tokens", "corpus", "adapters")
    }
    journal |= {"hot-loading, 128 tokens": {"hot_load_ratio": 1.1, "short": 2}}
    journal |= {
        "naive": {
            "speedup_vs_naive": 4.0,
            "speedup_vs_naive_pool": 6.0,
            "short": {"mayfly": 0, "naive": 1},
        }
    }
    for cell in cells(plan):
        steps = cell.load.steps or 0
        journal[cell.name] = {
            **asdict(cell.load), "rate": 0.5 if cell.load.at_once is None else None, "short": 0,
            "per_second": 1.0, "vllm_bench_serve": {"failed": 1} if cell.checked else None,
            "steps_train_whole": [(steps, 0.1 * steps, 1)],
        }  # fmt: skip

    result = run(plan, tmp_path, 0, lambda name, measure: journal[name])

    assert result["short"] == len(plan.budgets) + 2 + 2 + 1  # each failed once where it was checked
    assert result["holds"] == {"hot_load": True, "naive": False}
    assert result["growth"]["million parameters, a step"]["fit"] is None
    assert result["growth"]["steps"]["fit"]["slope"] == pytest.approx(0.1)
    assert result["growth"]["concurrency"]["fit"]["values"] == 2
    assert growth_table(result["growth"]).row_count == len(result["growth"])
