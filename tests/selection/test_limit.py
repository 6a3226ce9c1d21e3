"""How long work may go on: by its seconds, by a flag, and while it waits for a lock."""

from __future__ import annotations

import threading

import pytest

from selection.limit import UNLIMITED, AbandonedError, Limit, SecondsSpentError


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_work_goes_on_until_its_seconds_are_over() -> None:
    clock = Clock()
    limit = Limit(2.0, clock=clock)

    clock.now += 1.9
    limit.check()
    clock.now += 0.1
    with pytest.raises(SecondsSpentError):
        limit.check()


@pytest.mark.parametrize("seconds", [0.0, -3.0])
def test_without_seconds_nothing_is_begun(seconds: float) -> None:
    with pytest.raises(SecondsSpentError):
        Limit(seconds, clock=Clock()).check()


def test_what_nobody_waits_for_ends_before_its_seconds() -> None:
    abandoned = threading.Event()
    limit = Limit(60.0, abandoned)
    limit.check()

    abandoned.set()

    with pytest.raises(AbandonedError):
        limit.check()


def test_waiting_for_a_lock_counts_and_a_lock_that_was_not_got_is_not_given_back() -> None:
    lock, clock = threading.Lock(), Clock()
    limit = Limit(2.0, clock=clock)
    with limit.holding(lock):
        assert lock.locked()
        late = Limit(0.0, clock=clock)
        with pytest.raises(SecondsSpentError), late.holding(lock):
            pass
        assert lock.locked()
    assert not lock.locked()


def test_what_is_abandoned_while_it_waits_for_a_lock_stops_waiting() -> None:
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


def test_no_limit_never_ends() -> None:
    UNLIMITED.check()
