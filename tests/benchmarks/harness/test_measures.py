"""The time in which further measurements may begin."""

from __future__ import annotations

import math

from benchmarks.harness.measures import TimeLimit


def test_without_seconds_there_is_no_limit() -> None:
    limit = TimeLimit(None)

    assert limit.left == math.inf
    assert not limit.is_over


def test_a_limit_is_over_when_its_seconds_have_passed() -> None:
    assert TimeLimit(0).is_over
    assert 0 < TimeLimit(60).left <= 60
