"""Nearest neighbours, the baseline of SIFT: order, no repeats, and the uncertainty of its own picks."""

from __future__ import annotations

import numpy as np
import pytest

from selection.baselines import nearest_neighbours
from selection.sift import Posterior, sift


def vectors(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    rows = np.random.default_rng(11).standard_normal((count, 5)) + 0.4
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_the_most_similar_come_first_and_none_twice() -> None:
    rows = vectors(13)
    candidates_KD, targets_TD = rows[:12], rows[12:]

    choice = nearest_neighbours(candidates_KD, targets_TD, steps=12, regularisation=0.1)

    similarity = (candidates_KD @ targets_TD[0])[list(choice.picks)]
    assert sorted(choice.picks) == list(range(12))
    assert list(similarity) == sorted(similarity, reverse=True)
    assert choice.stop == "steps"


def test_several_targets_are_served_by_their_mean_similarity() -> None:
    candidates_KD = np.array([[1.0, 0.0], [0.0, 1.0], [np.sqrt(0.5), np.sqrt(0.5)]])

    choice = nearest_neighbours(candidates_KD, np.eye(2), steps=1, regularisation=0.1)

    assert choice.picks == (2,)


def test_its_uncertainty_is_that_of_its_own_picks() -> None:
    rows = vectors(9)
    posterior = Posterior(rows[:8], rows[8:], 0.1)

    choice = nearest_neighbours(rows[:8], rows[8:], steps=5, regularisation=0.1)

    for n, pick in enumerate(choice.picks):
        assert choice.uncertainty[n] == posterior.sigma
        posterior.pick(pick)
    assert choice.uncertainty[5] == posterior.sigma
    assert len(choice.uncertainty) == 6


def test_it_falls_for_duplicates_where_sift_does_not() -> None:
    # The failure mode of paper section 2.1: near copies of one answer crowd out the other half of the question.
    target_TD = np.array([[0.8, 0.6]])
    candidates_KD = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])

    nearest = nearest_neighbours(candidates_KD, target_TD, steps=2, regularisation=0.01)
    chosen = sift(candidates_KD, target_TD, steps=2, regularisation=0.01)

    assert 3 not in nearest.picks
    assert 3 in chosen.picks
    assert chosen.uncertainty[-1] < 0.2 < 0.5 < nearest.uncertainty[-1]


def test_fewer_candidates_than_steps_are_taken_once_each() -> None:
    choice = nearest_neighbours(np.eye(3), np.ones((1, 3)), steps=10, regularisation=0.1)

    assert sorted(choice.picks) == [0, 1, 2]


@pytest.mark.parametrize("steps", [0, -1, -3])
def test_without_steps_nothing_is_chosen(steps: int) -> None:
    choice = nearest_neighbours(np.eye(3), np.ones((1, 3)), steps=steps, regularisation=0.1)

    assert (choice.picks, choice.uncertainty) == ((), (1.0,))


def test_it_has_no_stopping_rule() -> None:
    with pytest.raises(ValueError, match="no stopping rule"):
        nearest_neighbours(np.eye(3), np.eye(3), steps=3, regularisation=0.1, alpha=0.1)
