"""The section of promises."""

from __future__ import annotations

from benchmarks.report.promises import PROMISES, promises
from tests.benchmarks.report.samples import stored_results
from tests.benchmarks.sketches import sketches


def test_broken_promises_stand_out() -> None:
    results = dict(stored_results(*(promise.name for promise in PROMISES)))
    with_rows = {each.name for each in PROMISES if each.rows(results[each.name])}
    intact = promises(results, sketches("promises"))
    results["abuse"] = {**results["abuse"], "leaked": 3}
    results["overhead"] = {**results["overhead"], "ttft_ratio": 1.2}
    results["compat"] = {"results": [{"client": "llm", "not_installed": "no network", "cases": []}]}
    broken = promises(results, sketches("promises"))

    # The file of corpora in PostgreSQL need not have the part that holds a promise.
    assert {line.split(" | ")[-1] for line in intact[2:-1]} == {
        f"{name}.json |" for name in with_rows
    }
    assert {each.name for each in PROMISES} - with_rows <= {"postgres"}
    failed_files = [
        line.split(" | ")[-1]
        for line in broken
        if "**does not hold**" in line and line not in intact
    ]
    assert failed_files == ["overhead.json |", "abuse.json |"]
    assert any("llm works | not installed | no failure | not measured |" in line for line in broken)


def test_requests_under_kills_of_the_database_hold_or_not() -> None:
    found = {
        "injected": 50, "recovered": 50, "requests": 4321, "wrong": 0, "late": 0, "hung": 0,
        "left": 0, "recovery_seconds": {"p50": 0.8, "max": 2.5},
    }  # fmt: skip

    def line(**changes: int) -> str:
        result = {"requests_under_kills": {**found, **changes}}
        return promises({"postgres": result}, sketches("promises"))[2]

    assert (
        "4,321 requests: 0 wrong, 0 late, 0 hung, 0 left; adapted again 50 of 50 times (p50 0.8 s "
        "and max 2.5 s)" in line()
    )
    assert "| holds |" in line()
    for broken in ({"wrong": 1}, {"late": 1}, {"hung": 1}, {"left": 1}, {"recovered": 49}):
        assert "| **does not hold** |" in line(**broken)
