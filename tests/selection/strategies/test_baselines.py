"""The baselines of SIFT: the picks of each, checked by brute force, and the uncertainty that they
leave.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations_with_replacement, product

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selection.strategies.posterior import Posterior
from selection.strategies.registry import STRATEGIES, choose
from selection.strategies.sift import Choice, sift
from tests.selection.strategies.vectors import unit_vectors

Matrix = npt.NDArray[np.float64]

_QUICK = settings(max_examples=40, deadline=None)
_SEEDS = st.integers(0, 2**32 - 1)
_BASELINES = [name for name in STRATEGIES if name != "sift"]


def run(
    strategy: str,
    candidates_KD: Matrix,
    targets_TD: Matrix,
    steps: int,
    regularisation: float = 0.1,
    seed: int = 0,
) -> Choice:
    """The choice of a baseline."""
    return choose(strategy, candidates_KD, targets_TD, steps, regularisation, seed=seed)


def distance(candidates_KD: Matrix, targets_TD: Matrix, picks: tuple[int, ...]) -> float:
    """How far the mean of the picks is from the mean of the targets."""
    return float(np.linalg.norm(candidates_KD[list(picks)].mean(axis=0) - targets_TD.mean(axis=0)))


def posterior_variances(candidates_KD: Matrix, picks: list[int], regularisation: float) -> Matrix:
    """Eq. 2 for every candidate as the target."""
    chosen_ND = candidates_KD[picks]
    gram_NN = chosen_ND @ chosen_ND.T + regularisation * np.eye(len(picks))
    cross_NK = chosen_ND @ candidates_KD.T
    explained_K = np.einsum("nk,nk->k", cross_NK, np.linalg.solve(gram_NN, cross_NK))
    return np.asarray(np.einsum("kd,kd->k", candidates_KD, candidates_KD) - explained_K)


# All baselines.


@pytest.mark.parametrize("strategy", _BASELINES)
@pytest.mark.parametrize("targets", [1, 2])
def test_the_uncertainty_is_that_of_its_own_picks(strategy: str, targets: int) -> None:
    vectors = unit_vectors(11, 8 + targets, 5)
    candidates_KD, targets_TD = vectors[:8], vectors[8:]
    posterior = Posterior(candidates_KD[None], targets_TD[None], 0.1, 5)

    choice = run(strategy, candidates_KD, targets_TD, steps=5)

    for n, pick in enumerate(choice.picks):
        assert choice.uncertainty[n] == pytest.approx(posterior.sigma[0], rel=1e-12)
        posterior.pick(np.array([pick]))
    assert choice.uncertainty[5] == pytest.approx(posterior.sigma[0], rel=1e-12)
    assert len(choice.uncertainty) == 6
    assert choice.stop == "steps"


@pytest.mark.parametrize("strategy", _BASELINES)
@pytest.mark.parametrize("steps", [0, -1, -3])
def test_without_steps_nothing_is_chosen(strategy: str, steps: int) -> None:
    choice = run(strategy, np.eye(3), np.ones((1, 3)), steps=steps)

    assert (choice.picks, choice.uncertainty, choice.stop) == ((), (1.0,), "steps")


@pytest.mark.parametrize("strategy", _BASELINES)
def test_without_candidates_nothing_is_chosen(strategy: str) -> None:
    choice = run(strategy, np.empty((0, 3)), np.ones((1, 3)), steps=5)

    assert (choice.picks, choice.uncertainty) == ((), (1.0,))


@pytest.mark.parametrize("strategy", ["nn", "random"])
def test_fewer_candidates_than_steps_are_taken_once_each(strategy: str) -> None:
    choice = run(strategy, np.eye(3), np.ones((1, 3)), steps=10)

    assert sorted(choice.picks) == [0, 1, 2]
    assert len(choice.uncertainty) == 4


@pytest.mark.parametrize("strategy", ["nn-f", "us", "hull"])
@pytest.mark.parametrize("candidates", [1, 3])
def test_fewer_candidates_than_steps_are_repeated(strategy: str, candidates: int) -> None:
    choice = run(strategy, np.eye(3)[:candidates], np.ones((1, 3)), steps=10)

    assert len(choice.picks) == 10
    assert set(choice.picks) <= set(range(candidates))


@pytest.mark.parametrize("strategy", _BASELINES)
@pytest.mark.parametrize(
    ("targets_TD", "regularisation"),
    [
        (np.zeros((1, 3)), 0.1),
        (np.ones((1, 4)), 0.1),
        (np.ones((1, 3)), 0.0),
        (np.ones((1, 3)), np.nan),
    ],
)
def test_invalid_arguments_are_refused(
    strategy: str, targets_TD: Matrix, regularisation: float
) -> None:
    with pytest.raises(ValueError, match=r"lambda'|expected|zero"):
        run(strategy, np.eye(3), targets_TD, steps=2, regularisation=regularisation)


# Nearest neighbours and their failure mode.


def test_nearest_neighbours_come_by_similarity_without_repeats() -> None:
    vectors = unit_vectors(11, 13, 5)
    candidates_KD, targets_TD = vectors[:12], vectors[12:]

    choice = run("nn", candidates_KD, targets_TD, steps=12)

    similarity = (candidates_KD @ targets_TD[0])[list(choice.picks)]
    assert sorted(choice.picks) == list(range(12))
    assert list(similarity) == sorted(similarity, reverse=True)


def test_nearest_neighbours_of_several_targets_have_the_largest_mean_similarity() -> None:
    candidates_KD = np.array([[1.0, 0.0], [0.0, 1.0], [np.sqrt(0.5), np.sqrt(0.5)]])

    choice = run("nn", candidates_KD, np.eye(2), steps=1)

    assert choice.picks == (2,)


def test_the_failure_mode_repeats_the_nearest_candidate() -> None:
    vectors = unit_vectors(13, 9, 5)
    nearest = run("nn", vectors[:8], vectors[8:], steps=1).picks

    choice = run("nn-f", vectors[:8], vectors[8:], steps=6)

    assert choice.picks == nearest * 6
    cosine = float(vectors[nearest[0]] @ vectors[8])  # n noisy observations of one candidate
    expected = [1 - cosine**2 * n / (n + 0.1) for n in range(7)]
    np.testing.assert_allclose(np.square(choice.uncertainty), expected, rtol=1e-9)


@pytest.mark.parametrize("copies", [2, 20, 150])
def test_copies_of_one_answer_crowd_out_the_other_from_nn_but_not_from_sift(copies: int) -> None:
    # Paper figure 3: "What is the age of Michael Jordan and how many kids does he have?" The
    # question has two aspects, the first a little stronger. Many texts give the age, in nearly the
    # same words; one is about the kids.
    rng = np.random.default_rng(3)
    age_D, kids_D, player_D = np.eye(16)[:3]
    question_TD = (0.75 * age_D + 0.6 * kids_D + 0.3 * player_D)[None]
    ages_KD = age_D + 0.3 * player_D + 0.01 * rng.standard_normal((copies, 16))
    # These are about the player, or about nothing in the question.
    others_KD = rng.standard_normal((20, 16)) * np.r_[0.02, 0.02, 0.3, np.ones(13)]
    candidates_KD = np.concatenate([ages_KD, (kids_D + 0.3 * player_D)[None], others_KD])
    candidates_KD /= np.linalg.norm(candidates_KD, axis=1, keepdims=True)
    question_TD /= np.linalg.norm(question_TD)

    nearest = run("nn", candidates_KD, question_TD, steps=2)
    failing = run("nn-f", candidates_KD, question_TD, steps=2)
    chosen = sift(candidates_KD, question_TD, steps=2, regularisation=0.1)

    assert max(nearest.picks) < copies  # the age twice
    assert chosen.picks[0] < copies == chosen.picks[1]  # the age, then the kids
    # The first pick is the same.
    assert chosen.uncertainty[1] == pytest.approx(nearest.uncertainty[1])
    assert nearest.uncertainty[2] > 0.6 > 0.45 > chosen.uncertainty[2]
    # The copies were worth no more.
    assert failing.uncertainty[2] == pytest.approx(nearest.uncertainty[2], abs=0.01)


# Uncertainty sampling and random choice.


@_QUICK
@given(_SEEDS, st.integers(1, 15), st.integers(1, 8), st.sampled_from([0.01, 0.1, 1.0]))
def test_uncertainty_sampling_picks_the_most_uncertain_candidate(
    seed: int, candidates: int, dimension: int, regularisation: float
) -> None:
    vectors = unit_vectors(seed, candidates + 1, dimension)
    candidates_KD = vectors[:candidates]

    choice = run("us", candidates_KD, vectors[candidates:], steps=7, regularisation=regularisation)

    assert len(choice.picks) == 7
    for n, pick in enumerate(choice.picks):
        left_K = posterior_variances(candidates_KD, list(choice.picks[:n]), regularisation)
        assert left_K[pick] >= left_K.max() - 1e-9  # unit vectors tie at first


def test_uncertainty_sampling_does_not_depend_on_the_prompt() -> None:
    vectors = unit_vectors(14, 22, 6) * np.linspace(0.5, 1.5, 22)[:, None]

    one = run("us", vectors[:20], vectors[20:21], steps=8)
    other = run("us", vectors[:20], vectors[21:], steps=8)

    assert one.picks == other.picks
    assert one.uncertainty != other.uncertainty


def test_random_choice_is_seeded_and_has_no_repeats() -> None:
    vectors = unit_vectors(15, 31, 5)

    first, again, other = (
        run("random", vectors[:30], vectors[30:], steps=20, seed=seed) for seed in (1, 1, 2)
    )

    assert first == again
    assert first.picks != other.picks
    assert len(set(first.picks)) == 20


def test_random_choice_picks_all_candidates_equally_often() -> None:
    counts = Counter(
        run("random", np.eye(5), np.ones((1, 5)), steps=1, seed=seed).picks[0]
        for seed in range(1000)
    )

    assert set(counts) == set(range(5))
    assert 140 < min(counts.values()) <= max(counts.values()) < 260


# HullFT.


@_QUICK
@given(_SEEDS, st.integers(1, 8), st.integers(1, 6), st.integers(1, 2), st.integers(1, 6))
def test_the_hull_picks_exactly_the_steps_and_groups_repeats_most_used_first(
    seed: int, candidates: int, dimension: int, targets: int, steps: int
) -> None:
    vectors = unit_vectors(seed, candidates + targets, dimension)

    choice = run("hull", vectors[:candidates], vectors[candidates:], steps=steps)

    times = Counter(choice.picks)
    assert len(choice.picks) == steps
    # Repeats stand together.
    assert list(choice.picks) == [pick for pick in times for _ in range(times[pick])]
    assert list(times.values()) == sorted(times.values(), reverse=True)


@_QUICK
@given(_SEEDS, st.integers(1, 8), st.integers(2, 6), st.integers(1, 2), st.integers(1, 5))
def test_no_swap_would_bring_the_hull_closer(
    seed: int, candidates: int, dimension: int, targets: int, steps: int
) -> None:
    vectors = unit_vectors(seed, candidates + targets, dimension)
    candidates_KD, targets_TD = vectors[:candidates], vectors[candidates:]

    choice = run("hull", candidates_KD, targets_TD, steps=steps)

    reached = distance(candidates_KD, targets_TD, choice.picks)
    for i in range(steps):
        for other in range(candidates):
            swapped = (*choice.picks[:i], other, *choice.picks[i + 1 :])
            assert distance(candidates_KD, targets_TD, swapped) >= reached - 1e-9


def test_the_hull_comes_closer_than_nearest_neighbours() -> None:
    for seed, steps in product(range(20), (1, 2, 5, 20, 50)):
        vectors = unit_vectors(seed, 201, 64)
        candidates_KD, targets_TD = vectors[:200], vectors[200:]
        nearest = run("nn", candidates_KD, targets_TD, steps=steps)

        choice = run("hull", candidates_KD, targets_TD, steps=steps)

        closest = distance(candidates_KD, targets_TD, nearest.picks)
        assert distance(candidates_KD, targets_TD, choice.picks) <= closest + 1e-9


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50])
def test_the_hull_finds_the_multiset_whose_mean_is_the_target(steps: int) -> None:
    for seed in range(10):
        candidates_KD = unit_vectors(seed, 200, 384)
        mixed = sorted(np.random.default_rng(seed).integers(0, 12, steps).tolist())
        target_TD = candidates_KD[mixed].mean(axis=0, keepdims=True)

        choice = run("hull", candidates_KD, target_TD, steps=steps)

        assert sorted(choice.picks) == mixed


def test_the_hull_represents_several_targets_by_their_mean() -> None:
    candidates_KD = np.concatenate([np.eye(4), unit_vectors(16, 1, 4)])

    choice = run("hull", candidates_KD, np.eye(4)[:2], steps=4)

    assert Counter(choice.picks) == {0: 2, 1: 2}


def test_the_hull_often_finds_the_best_multiset() -> None:
    found = 0
    for seed in range(40):
        vectors = unit_vectors(seed, 7, 5)
        candidates_KD, targets_TD = vectors[:6], vectors[6:]
        best = min(
            distance(candidates_KD, targets_TD, p)
            for p in combinations_with_replacement(range(6), 4)
        )

        choice = run("hull", candidates_KD, targets_TD, steps=4)

        found += distance(candidates_KD, targets_TD, choice.picks) <= best + 1e-9

    assert found >= 34


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_the_hull_of_copies_is_one_point(steps: int) -> None:
    vectors = unit_vectors(17, 2, 4)

    choice = run("hull", np.repeat(vectors[:1], 5, axis=0), vectors[1:], steps=steps)

    assert len(choice.picks) == steps
    assert set(choice.picks) <= set(range(5))
