"""Counts of broken promises."""

from __future__ import annotations

from benchmarks.harness.violations import MEMORY_BYTES, Violations


def test_violations_are_counted_by_kind_and_category() -> None:
    violations = Violations()

    violations.check(True, "wrong", "valid", "holds")
    violations.record("leaked", "connections", "3 after 30 s", 3)
    violations.check_memory(10**9, 10**9 + MEMORY_BYTES)
    assert violations.summary()["wrong"] == 0
    assert violations.summary()["leaked"] == 3

    violations.check_memory(10**9, 10**9 + MEMORY_BYTES + 1)
    assert violations.summary()["by_category"]["leaked"] == {"connections": 3, "memory": 1}
    assert violations.examples == [
        "leaked, connections: 3 after 30 s",
        "leaked, memory: 134 MB more; at most 134 are allowed",
    ]
