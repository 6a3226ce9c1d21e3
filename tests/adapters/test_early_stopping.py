"""When training stops and which adapter is the best, by given losses of a probe."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.early_stopping import PATIENCE, EarlyStopping, ProbeEvaluation, has_stalled

_MAX_SEQUENCES = 200


def trained(
    loss: Callable[[int], float], gain: float | None, max_sequences: int = _MAX_SEQUENCES
) -> tuple[EarlyStopping, int]:
    """Simulate a training with this probe loss after n sequences.

    Returns:
        Its early stopping, and the number of sequences it used.
    """
    stopping = EarlyStopping(gain)
    for sequences in range(max_sequences + 1):
        if stopping.probe_due(sequences):
            stopping.record(sequences, sequences, loss(sequences))
        if stopping.has_stalled:
            return stopping, sequences
    return stopping, max_sequences


def test_a_stagnating_loss_stops_soon_after_a_large_gain() -> None:
    # The loss falls to a quarter within ten sequences; the average gain of fifty would still be 1.5
    # per cent each.
    stopping, sequences = trained(lambda n: 4.0 - 0.3 * min(n, 10), gain=0.4)

    assert 10 < sequences <= 22
    assert stopping.best == ProbeEvaluation(10, 10, 1.0)


def test_a_falling_loss_goes_on() -> None:
    stopping, sequences = trained(lambda n: 4.0 * 0.99**n, gain=0.1)

    assert sequences == _MAX_SEQUENCES
    assert stopping.best is stopping.evaluations[-1]


def test_the_best_evaluation_is_the_lowest_when_the_loss_rises_again() -> None:
    stopping, sequences = trained(lambda n: 2.0 + 0.01 * (n - 12) ** 2, gain=0.4)

    assert stopping.best is not None
    assert stopping.best.sequences == 12
    assert 12 < sequences < 40


def test_a_first_step_that_hurts_does_not_stop() -> None:
    # Adam's first steps are as long as the rate, whatever the gradient.
    rises_then_falls = {0: 3.0, 2: 3.3, 4: 2.9, 6: 2.4, 8: 2.1}

    _, sequences = trained(
        lambda n: rises_then_falls.get(n, 2.1 - 0.05 * (n - 8)), gain=0.4, max_sequences=30
    )

    assert sequences == 30


def test_the_gain_is_per_cent_of_the_first_loss_per_sequence() -> None:
    # The loss falls by 0.5 per cent of the first loss with each sequence.
    for gain, goes_on in ((0.49, True), (0.51, False)):
        _, sequences = trained(lambda n: 8.0 - 0.04 * n, gain, max_sequences=60)

        assert (sequences == 60) == goes_on


def test_no_stop_before_there_are_enough_evaluations() -> None:
    stopping, _ = trained(lambda n: 1.0 + n, gain=0.4)

    assert len(stopping.evaluations) == PATIENCE + 1
    assert stopping.best == stopping.evaluations[1]


def test_intervals_between_evaluations_grow() -> None:
    stopping, _ = trained(lambda n: 1.0 / (1 + n), gain=1e-9)

    sequences = [each.sequences for each in stopping.evaluations]
    assert sequences[:5] == [0, 2, 4, 6, 8]
    assert all(later - earlier >= earlier // 4 for earlier, later in itertools.pairwise(sequences))
    assert len(sequences) < 25


def test_without_a_gain_the_last_evaluation_is_the_best() -> None:
    stopping, sequences = trained(lambda n: 1.0 + n, gain=None)
    assert ([each.sequences for each in stopping.evaluations], sequences) == ([0], _MAX_SEQUENCES)

    assert stopping.record(_MAX_SEQUENCES, _MAX_SEQUENCES, 9.0)
    assert stopping.best == ProbeEvaluation(_MAX_SEQUENCES, _MAX_SEQUENCES, 9.0)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=40), st.floats(1e-3, 10))
def test_an_evaluation_is_the_best_exactly_if_it_is_the_lowest_so_far(
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
def test_a_constant_loss_stops_after_any_history(gain: float) -> None:
    for fell in range(0, 60, 5):
        stopping, sequences = trained(lambda n, fell=fell: 3.0 * 0.9 ** min(n, fell), gain)  # type: ignore[misc]

        assert sequences < _MAX_SEQUENCES
        assert sum(each.sequences > fell for each in stopping.evaluations) <= PATIENCE + 1


@given(
    st.lists(st.floats(0.01, 10), min_size=1, max_size=40), st.floats(1e-3, 10), st.floats(1, 10)
)
def test_a_higher_gain_stops_no_later(losses: list[float], gain: float, factor: float) -> None:
    evaluations = [(2 * n, loss) for n, loss in enumerate(losses)]

    assert has_stalled(evaluations, factor * gain) or not has_stalled(evaluations, gain)


@given(st.lists(st.floats(0.01, 10), min_size=PATIENCE + 1, max_size=40), st.floats(1e-9, 10))
def test_harm_stops_whatever_was_gained_before(losses: list[float], gain: float) -> None:
    worse = [min(losses) + n for n in range(PATIENCE)]
    evaluations = [(2 * n, loss) for n, loss in enumerate([*losses, *worse])]

    assert has_stalled(evaluations, gain)


@given(st.lists(st.floats(0.5, 3), min_size=1, max_size=30), st.floats(0.01, 2))
def test_a_gain_that_never_falls_short_goes_on(factors: list[float], gain: float) -> None:
    # Each interval gains at least half as much again as required.
    evaluations = [(0, 1000.0)]
    for factor in factors:
        sequences, loss = evaluations[-1]
        evaluations.append((sequences + 2, loss - (1 + factor) * 2 * gain * 1000.0 / 100))

        assert not has_stalled(evaluations, gain)


def test_old_gains_are_forgotten() -> None:
    # A fall of 30 per cent in the first ten sequences, and a twentieth of a per cent each after it.
    def loss(n: int) -> float:
        return 10.0 - 0.3 * min(n, 10) - 0.005 * max(n - 10, 0)

    stopping, sequences = trained(loss, gain=0.25)

    assert 15 < sequences < 40
    assert stopping.best is stopping.evaluations[-1]
