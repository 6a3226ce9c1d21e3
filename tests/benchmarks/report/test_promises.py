"""The section of promises."""

from __future__ import annotations

from benchmarks.report.promises import PROMISES, promises
from tests.benchmarks.report.samples import stored_results
from tests.benchmarks.sketches import sketches


def test_broken_promises_stand_out() -> None:
    results = dict(stored_results(*(promise.name for promise in PROMISES)))
    intact = promises(results, sketches("promises"))
    results["abuse"] = {**results["abuse"], "leaked": 3}
    results["overhead"] = {**results["overhead"], "ttft_ratio": 1.2}
    results["compat"] = {"results": [{"client": "llm", "not_installed": "no network", "cases": []}]}
    broken = promises(results, sketches("promises"))

    assert {line.split(" | ")[-1] for line in intact[2:-1]} == {
        f"{promise.name}.json |" for promise in PROMISES
    }
    failed_files = [
        line.split(" | ")[-1]
        for line in broken
        if "**does not hold**" in line and line not in intact
    ]
    assert failed_files == ["overhead.json |", "abuse.json |"]
    assert any("llm works | not installed | no failure | not measured |" in line for line in broken)
