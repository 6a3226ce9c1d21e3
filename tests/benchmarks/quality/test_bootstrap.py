"""Bootstrap intervals."""

from __future__ import annotations

from benchmarks.quality.bootstrap import interval


def test_groups_are_drawn_whole() -> None:
    assert interval([1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "b"]) == (2.0, 1.0, 5.0)
