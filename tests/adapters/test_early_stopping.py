"""When training stops and which adapter is the best, by numbers alone: losses of a text that nobody
trains on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.early_stopping import WINDOW, EarlyStopping, ProbeEvaluation

_MOST = 200  # sequences


def trained(
    loss: Callable[[int], float], gain: float | None, most: int = _MOST
) -> tuple[EarlyStopping, int]:
    """A training whose text has this loss after n sequences: its looks, and how many sequences it
    took.
    """
    stopping = EarlyStopping(gain)
    for sequences in range(most + 1):
        if stopping.probe_due(sequences):
            stopping.record(sequences, sequences, loss(sequences))
        if stopping.has_stalled:
            return stopping, sequences
    return stopping, most


def test_what_gained_much_at_first_and_then_nothing_is_stopped_soon_after() -> None:
    # The loss falls to a quarter within ten sequences; the average gain of fifty would still be 1.5
    # per cent each.
    stopping, sequences = trained(lambda n: 4.0 - 0.3 * min(n, 10), gain=0.4)

    assert 10 < sequences <= 22
    assert stopping.best == ProbeEvaluation(10, 10, 1.0)


def test_what_goes_on_falling_goes_on() -> None:
    stopping, sequences = trained(lambda n: 4.0 * 0.99**n, gain=0.1)

    assert sequences == _MOST
    assert stopping.best is stopping.evaluations[-1]


def test_the_best_adapter_is_that_of_the_lowest_look_where_going_on_hurts() -> None:
    stopping, sequences = trained(lambda n: 2.0 + 0.01 * (n - 12) ** 2, gain=0.4)

    assert stopping.best is not None
    assert stopping.best.sequences == 12
    assert 12 < sequences < 40


def test_a_first_step_that_hurts_does_not_end_it() -> None:
    # Adam's first steps are as long as the rate, whatever the gradient.
    rises_then_falls = {0: 3.0, 2: 3.3, 4: 2.9, 6: 2.4, 8: 2.1}

    _, sequences = trained(
        lambda n: rises_then_falls.get(n, 2.1 - 0.05 * (n - 8)), gain=0.4, most=30
    )

    assert sequences == 30


def test_the_gain_is_per_cent_of_the_first_loss_for_each_sequence_over_the_last_looks() -> None:
    # It falls by 0.5 per cent of the first loss with each sequence, at every look.
    for gain, goes_on in ((0.49, True), (0.51, False)):
        _, sequences = trained(lambda n: 8.0 - 0.04 * n, gain, most=60)

        assert (sequences == 60) == goes_on


def test_nothing_is_decided_before_there_are_enough_looks() -> None:
    stopping, _ = trained(lambda n: 1.0 + n, gain=0.4)

    assert len(stopping.evaluations) == WINDOW + 1
    assert stopping.best == stopping.evaluations[1]


def test_looks_grow_rare() -> None:
    stopping, _ = trained(lambda n: 1.0 / (1 + n), gain=1e-9)

    sequences = [look.sequences for look in stopping.evaluations]
    assert sequences[:5] == [0, 2, 4, 6, 8]
    assert all(later - earlier >= earlier // 4 for earlier, later in itertools.pairwise(sequences))
    assert len(sequences) < 25


def test_without_a_gain_it_is_looked_at_once_before_and_the_last_is_the_best() -> None:
    stopping, sequences = trained(lambda n: 1.0 + n, gain=None)
    assert ([look.sequences for look in stopping.evaluations], sequences) == ([0], _MOST)

    assert stopping.record(_MOST, _MOST, 9.0)
    assert stopping.best == ProbeEvaluation(_MOST, _MOST, 9.0)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=40), st.floats(1e-3, 10))
def test_a_look_is_worth_keeping_exactly_where_it_is_the_lowest_so_far(
    losses: list[float], gain: float
) -> None:
    stopping, lowest = EarlyStopping(gain), float("inf")
    stopping.record(0, 0, losses[0])
    for n, loss in enumerate(losses[1:], 1):
        assert stopping.record(2 * n, n, loss) == (loss < lowest)
        lowest = min(lowest, loss)

        assert stopping.best is not None
        assert stopping.best.loss == lowest


@given(
    st.lists(st.floats(0.01, 10), min_size=1, max_size=60), st.floats(1e-3, 10), st.floats(0.1, 10)
)
def test_the_unit_of_the_loss_does_not_matter(
    losses: list[float], gain: float, times: float
) -> None:
    one, other = EarlyStopping(gain), EarlyStopping(gain)
    for n, loss in enumerate(losses):
        one.record(2 * n, n, loss)
        other.record(2 * n, n, loss * 2 ** round(times))

        assert one.has_stalled == other.has_stalled


@pytest.mark.parametrize("gain", [0.05, 0.4, 2.0])
def test_a_loss_that_stands_still_ends_it_whatever_came_before(gain: float) -> None:
    for fell in range(0, 60, 5):
        stopping, sequences = trained(lambda n, fell=fell: 3.0 * 0.9 ** min(n, fell), gain)  # type: ignore[misc]

        assert sequences < _MOST
        assert sum(look.sequences > fell for look in stopping.evaluations) <= WINDOW + 1
