"""Work in fresh processes."""

from __future__ import annotations

import os

import pytest

from benchmarks.harness.measures import spread, timed
from benchmarks.harness.processes import in_fresh_process, openmp_threads


def test_a_fresh_process_gets_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")

    assert in_fresh_process(3, os.getenv, "OMP_NUM_THREADS") == "3"
    assert in_fresh_process(1, os.getpid) != os.getpid()
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_an_unset_number_of_threads_is_unset_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    with openmp_threads(2):
        assert os.environ["OMP_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS" not in os.environ


def test_measures() -> None:
    assert spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    seconds, result = timed(int, "11", base=2)
    assert result == 3
    assert seconds >= 0
