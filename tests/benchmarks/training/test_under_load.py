"""The trainer under load: the time of its steps."""

from __future__ import annotations

import pytest

from benchmarks.training.under_load import StepTimer


def test_the_time_of_a_step_is_that_of_recent_batches() -> None:
    timer, now = StepTimer(), 5.0
    for seconds in [3.0] + [0.1] * 20:  # the first is slow, and soon no longer recent
        now += seconds
        for _ in range(4):
            timer.record_step(now)
            now += 1e-5

    assert timer.step_seconds == pytest.approx(0.1, abs=1e-4)
    assert len(timer.all_steps) == 20  # the time of the first step is unknown
