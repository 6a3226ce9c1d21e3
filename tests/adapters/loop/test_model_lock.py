"""ModelLock: its owner computes with its share of the machine's cores."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from adapters.core_share import CoreShare
from adapters.loop.model_lock import ModelLock
from tests.core_members import busy_elsewhere, sees_busy


@pytest.fixture(autouse=True)
def same_threads_after() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_its_owner_computes_with_the_cores_that_others_leave(tmp_path: Path) -> None:
    file = tmp_path / "cores.lock"
    lock = ModelLock(CoreShare(file, 1, 2))

    with lock, lock:
        alone = torch.get_num_threads()
        is_seen = sees_busy(file)
    with busy_elsewhere(file), lock:
        beside = torch.get_num_threads()

    assert (alone, is_seen, beside) == (2, True, 1)
    assert not sees_busy(file)


def test_without_a_share_the_number_of_threads_stays() -> None:
    before = torch.get_num_threads()

    with ModelLock():
        assert torch.get_num_threads() == before


def test_it_is_free_again_where_its_share_fails(tmp_path: Path) -> None:
    cores = CoreShare(tmp_path / "cores.lock", 1, 2)
    os.close(cores._file)
    lock, was_free = ModelLock(cores), threading.Event()

    def take() -> None:
        with suppress(OSError), lock:
            pass
        was_free.set()

    with pytest.raises(OSError, match="Bad file descriptor"), lock:
        pass
    threading.Thread(target=take, daemon=True).start()

    assert was_free.wait(10)
