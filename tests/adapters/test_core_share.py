"""CoreShare: a process that computes alone takes all cores, beside another one its share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adapters.core_share import CoreShare
from tests.core_members import busy_elsewhere, sees_busy

SHARED, ALONE = 3, 8


@pytest.fixture(autouse=True)
def same_threads_after() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "home" / "cores.lock"


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def threads_within(cores: CoreShare) -> int:
    """The number of threads of a computation."""
    with cores.computing():
        return torch.get_num_threads()


def test_a_process_that_computes_alone_takes_all_cores(file: Path) -> None:
    assert threads_within(CoreShare(file, SHARED, ALONE)) == ALONE


def test_beside_another_process_it_takes_its_share(file: Path) -> None:
    cores = CoreShare(file, SHARED, ALONE)

    with busy_elsewhere(file):
        beside = threads_within(cores)

    assert (beside, threads_within(cores)) == (SHARED, ALONE)


def test_a_process_that_was_killed_no_longer_counts(file: Path) -> None:
    cores = CoreShare(file, SHARED, ALONE)

    with busy_elsewhere(file) as other:
        other.kill()
        other.wait()

        assert threads_within(cores) == ALONE


def test_the_process_that_it_computes_for_does_not_count(file: Path) -> None:
    with busy_elsewhere(file) as other:
        cores = CoreShare(file, SHARED, ALONE, member=other.pid)

        assert threads_within(cores) == ALONE


def test_it_is_busy_until_the_last_of_its_blocks_ends(file: Path) -> None:
    cores = CoreShare(file, SHARED, ALONE)

    with cores.busy():
        with cores.busy():
            pass
        assert sees_busy(file)

    assert not sees_busy(file)


def test_after_an_error_it_is_no_longer_busy(file: Path) -> None:
    cores = CoreShare(file, SHARED, ALONE)

    with pytest.raises(ValueError, match="inside"), cores.busy():
        raise ValueError("inside")

    assert not sees_busy(file)


def test_where_it_had_to_wait_for_cores_it_takes_fewer_each_time_for_longer(file: Path) -> None:
    clock, thread_clock = Clock(), Clock()
    cores = CoreShare(file, SHARED, ALONE, clock=clock, thread_clock=thread_clock)

    def compute(share: float) -> int:
        """A computation of a second, of which the thread computes a share."""
        with cores.computing():
            threads = torch.get_num_threads()
            clock.now += 1.0
            thread_clock.now += share
        return threads

    assert compute(0.5) == ALONE
    clock.now += 9.0
    assert threads_within(cores) == SHARED
    clock.now += 1.0
    assert compute(0.5) == ALONE
    clock.now += 19.0
    assert threads_within(cores) == SHARED
    clock.now += 1.0
    # The other program has ended.
    assert compute(0.9) == ALONE
    assert compute(0.5) == ALONE
    clock.now += 10.0
    assert threads_within(cores) == ALONE


def test_waiting_for_a_process_that_began_meanwhile_is_no_reason_for_caution(file: Path) -> None:
    clock, thread_clock = Clock(), Clock()
    cores = CoreShare(file, SHARED, ALONE, clock=clock, thread_clock=thread_clock)

    computing = cores.computing()
    computing.__enter__()
    clock.now += 1.0
    with busy_elsewhere(file):
        computing.__exit__(None, None, None)

    assert threads_within(cores) == ALONE


@pytest.mark.parametrize(
    ("load", "threads"),
    [
        ("0.50 0.40 0.30 1/345 6789\n", ALONE),
        ("0.50 0.40 0.30 2/345 6789\n", SHARED),
        ("unknown\n", SHARED),
        (None, SHARED),
    ],
)
def test_it_may_look_whether_anything_else_runs(
    load: str | None, threads: int, file: Path, tmp_path: Path
) -> None:
    loadavg = tmp_path / "loadavg"
    if load is not None:
        loadavg.write_text(load)

    assert threads_within(CoreShare(file, SHARED, ALONE, load=loadavg)) == threads
