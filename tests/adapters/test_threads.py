"""Threads: small steps take one where that was faster, large ones all, and nobody else's number is changed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from adapters.threads import Threads


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_steps_take_one_thread_up_to_the_size_from_which_all_are_faster() -> None:
    """Meeting costs 20 ms, computing 0.1 ms a token, in half the time with two."""
    threads, tried = Threads(2), []

    def step(tokens: int) -> None:
        both = torch.get_num_threads() == 2
        tried.append(tokens)
        time.sleep(0.02 + tokens * 5e-5 if both else tokens * 1e-4)

    threads.measure(step, [100, 200, 800, 1600])

    assert threads.alone_up_to == 200
    assert 1600 not in tried
    numbers = []
    for tokens in (1, 200, 201):
        with threads.of(tokens):
            numbers.append(torch.get_num_threads())
    assert numbers == [1, 1, 2]
    assert torch.get_num_threads() == 2


def test_what_was_not_tried_takes_all() -> None:
    threads = Threads(2)

    threads.measure(lambda tokens: time.sleep(0.01), [100, 200], seconds=0.0)

    assert threads.alone_up_to in (0, 100)
    with threads.of(200):
        assert torch.get_num_threads() == 2


def test_a_step_that_fails_leaves_the_number_as_it_was() -> None:
    threads = Threads(2)
    threads.alone_up_to = 100

    with pytest.raises(ZeroDivisionError), threads.of(50):
        raise ZeroDivisionError

    assert torch.get_num_threads() == 2


def test_one_thread_is_never_measured() -> None:
    torch.set_num_threads(1)
    Threads(1).measure(lambda tokens: pytest.fail("measured"), [100])
