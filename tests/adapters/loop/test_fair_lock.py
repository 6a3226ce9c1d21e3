"""FairLock: reentrant, and first come, first served."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from adapters.loop.fair_lock import FairLock
from tests.adapters.trainers import TIMEOUT, wait_until


def take(lock: FairLock) -> bool:
    """Whether another thread gets the lock."""

    def enter() -> bool:
        with lock:
            return True

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(enter).result(TIMEOUT)


def test_a_waiting_thread_comes_before_the_one_that_releases() -> None:
    lock, order = FairLock(), list[str]()

    def wait() -> None:
        with lock:
            order.append("waiting")

    with ThreadPoolExecutor(1) as threads:
        with lock:
            done = threads.submit(wait)
            wait_until(lambda: lock.waiting == 1)
        with lock:
            order.append("again")
        done.result(TIMEOUT)

    assert order == ["waiting", "again"]


def test_its_owner_may_take_it_again() -> None:
    lock = FairLock()

    with lock, lock:
        pass

    assert take(lock)


def test_an_error_releases_it() -> None:
    lock = FairLock()

    with pytest.raises(ValueError, match="inside"), lock:
        raise ValueError("inside")

    assert take(lock)


def test_only_its_owner_releases_it() -> None:
    lock, taken, done = FairLock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            assert done.wait(TIMEOUT)

    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(hold)
        assert taken.wait(TIMEOUT)
        with pytest.raises(AssertionError, match="has not got it"):
            lock.__exit__(None, None, None)
        done.set()
        held.result(TIMEOUT)
