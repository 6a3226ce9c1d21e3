"""Limits of work: by seconds, by a flag, and during the wait for a lock."""

from __future__ import annotations

import threading

import pytest

from selection.limit import UNLIMITED, AbandonedError, Limit, SecondsSpentError


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_work_may_continue_until_its_seconds_are_over() -> None:
    clock = Clock()
    limit = Limit(2.0, clock=clock)

    clock.now += 1.9
    limit.check()
    clock.now += 0.1
    with pytest.raises(SecondsSpentError):
        limit.check()


@pytest.mark.parametrize("seconds", [0.0, -3.0])
def test_without_seconds_no_work_is_started(seconds: float) -> None:
    with pytest.raises(SecondsSpentError):
        Limit(seconds, clock=Clock()).check()


def test_abandoned_work_ends_before_its_seconds() -> None:
    abandoned = threading.Event()
    limit = Limit(60.0, abandoned)
    limit.check()

    abandoned.set()

    with pytest.raises(AbandonedError):
        limit.check()


def test_the_wait_for_a_lock_counts_and_only_an_acquired_lock_is_released() -> None:
    lock, clock = threading.Lock(), Clock()
    limit = Limit(2.0, clock=clock)
    with limit.holding(lock):
        assert lock.locked()
        late = Limit(0.0, clock=clock)
        with pytest.raises(SecondsSpentError), late.holding(lock):
            pass
        assert lock.locked()
    assert not lock.locked()


def test_abandoned_work_stops_waiting_for_a_lock() -> None:
    lock, abandoned, ended = threading.Lock(), threading.Event(), threading.Event()

    def wait() -> None:
        with pytest.raises(AbandonedError), Limit(abandoned=abandoned).holding(lock):
            pass
        ended.set()

    with lock:
        thread = threading.Thread(target=wait)
        thread.start()
        abandoned.set()
        assert ended.wait(30)
        thread.join()


def test_unlimited_work_never_ends() -> None:
    UNLIMITED.check()
