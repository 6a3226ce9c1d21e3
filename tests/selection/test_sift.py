"""SIFT against a dense float64 brute force of the paper's eq. 2, and what its theory says must hold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from selection.sift import has_stalled, sift

Matrix = npt.NDArray[np.float64]

_QUICK = settings(max_examples=40, deadline=None)
_REGULARISATIONS = st.sampled_from([0.01, 0.1, 1.0, 10.0])
_SEEDS = st.integers(0, 2**32 - 1)


def variance(candidates_KD: Matrix, targets_TD: Matrix, picks: list[int], regularisation: float) -> float:
    """Eq. 2, as it stands there: the trace over targets of the posterior variance given the picks."""
    prior = float(np.einsum("td,td->", targets_TD, targets_TD))
    if not picks:
        return prior
    chosen_ND = candidates_KD[picks]
    gram_NN = chosen_ND @ chosen_ND.T + regularisation * np.eye(len(picks))
    cross_NT = chosen_ND @ targets_TD.T
    return prior - float(np.einsum("nt,nt->", cross_NT, np.linalg.solve(gram_NN, cross_NT)))


def after_each(candidates_KD: Matrix, targets_TD: Matrix, picks: list[int], regularisation: float) -> Matrix:
    """The variance after picking each candidate next."""
    return np.array(
        [variance(candidates_KD, targets_TD, [*picks, j], regularisation) for j in range(len(candidates_KD))]
    )


def brute_force(
    candidates_KD: Matrix, targets_TD: Matrix, steps: int, regularisation: float
) -> tuple[list[int], list[float]]:
    """The greedy choice by trying every candidate at every step; repeats allowed."""
    picks: list[int] = []
    variances = [variance(candidates_KD, targets_TD, picks, regularisation)]
    for _ in range(steps):
        tried_K = after_each(candidates_KD, targets_TD, picks, regularisation)
        picks.append(int(np.argmin(tried_K)))
        variances.append(float(tried_K.min()))
    return picks, [float(np.sqrt(v / variances[0])) for v in variances]


def units(seed: int, count: int, dimension: int) -> Matrix:
    """Random unit vectors around a common direction, as sentence embeddings are."""
    rows = np.random.default_rng(seed).standard_normal((count, dimension)) + 0.5
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Matrix, Matrix]:
    """Candidates and targets of any length and sign, ties and zeros among them."""
    dimension = draw(st.integers(1, 5))
    elements = st.floats(-1, 1, width=32).map(lambda x: x if abs(x) > 1e-6 else 0.0)
    candidates_KD = draw(arrays(np.float64, (draw(st.integers(1, 7)), dimension), elements=elements))
    targets_TD = draw(arrays(np.float64, (draw(st.integers(1, 3)), dimension), elements=elements))
    assume(np.einsum("td,td->", targets_TD, targets_TD) > 1e-2)
    return candidates_KD, targets_TD


@_QUICK
@given(_SEEDS, st.integers(2, 25), st.integers(2, 12), st.integers(1, 4), _REGULARISATIONS)
def test_picks_and_uncertainties_are_those_of_brute_force(
    seed: int, candidates: int, dimension: int, targets: int, regularisation: float
) -> None:
    # Arrange: vectors without ties, so that every step has one best candidate.
    vectors = units(seed, candidates + targets, dimension)
    candidates_KD, targets_TD = vectors[:candidates], vectors[candidates:]
    expected_picks, expected_sigmas = brute_force(candidates_KD, targets_TD, 6, regularisation)

    choice = sift(candidates_KD, targets_TD, steps=6, regularisation=regularisation)

    assert list(choice.picks) == expected_picks
    np.testing.assert_allclose(np.square(choice.uncertainty), np.square(expected_sigmas), rtol=1e-9, atol=1e-12)


@_QUICK
@given(problems(), _REGULARISATIONS)
def test_no_candidate_would_have_been_better_at_any_step(problem: tuple[Matrix, Matrix], regularisation: float) -> None:
    candidates_KD, targets_TD = problem

    choice = sift(candidates_KD, targets_TD, steps=5, regularisation=regularisation)

    prior = variance(candidates_KD, targets_TD, [], regularisation)
    assert len(choice.picks) == 5
    for n, pick in enumerate(choice.picks):
        tried_K = after_each(candidates_KD, targets_TD, list(choice.picks[:n]), regularisation)
        assert tried_K[pick] <= tried_K.min() + 1e-9 * prior
        assert choice.uncertainty[n + 1] ** 2 == pytest.approx(tried_K[pick] / prior, abs=1e-9)


@_QUICK
@given(problems(), _REGULARISATIONS)
def test_uncertainty_starts_at_one_and_never_grows(problem: tuple[Matrix, Matrix], regularisation: float) -> None:
    candidates_KD, targets_TD = problem

    choice = sift(candidates_KD, targets_TD, steps=12, regularisation=regularisation)

    assert choice.uncertainty[0] == 1.0
    assert len(choice.uncertainty) == len(choice.picks) + 1
    assert all(later <= earlier for earlier, later in zip(choice.uncertainty, choice.uncertainty[1:], strict=False))
    assert choice.uncertainty[-1] >= 0.0


def test_the_prompt_itself_as_the_only_candidate_follows_the_closed_form() -> None:
    # n noisy looks at the target leave lambda' / (n + lambda') of its variance.
    target_TD = units(1, 1, 8)

    choice = sift(target_TD, target_TD, steps=20, regularisation=0.3)

    assert choice.picks == (0,) * 20
    np.testing.assert_allclose(choice.uncertainty, [np.sqrt(0.3 / (n + 0.3)) for n in range(21)], rtol=1e-12)


@_QUICK
@given(_SEEDS)
def test_rotating_the_space_changes_nothing(seed: int) -> None:
    vectors = units(seed, 21, 6)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((6, 6)))

    choice = sift(vectors[:20], vectors[20:], steps=8, regularisation=0.1)
    rotated = sift(vectors[:20] @ rotation, vectors[20:] @ rotation, steps=8, regularisation=0.1)

    assert rotated.picks == choice.picks
    np.testing.assert_allclose(rotated.uncertainty, choice.uncertainty, rtol=1e-7)


@_QUICK
@given(_SEEDS)
def test_the_order_of_candidates_does_not_matter(seed: int) -> None:
    vectors = units(seed, 21, 6)
    order = np.random.default_rng(seed).permutation(20)

    choice = sift(vectors[:20], vectors[20:], steps=8, regularisation=0.1)
    shuffled = sift(vectors[:20][order], vectors[20:], steps=8, regularisation=0.1)

    assert tuple(int(order[pick]) for pick in shuffled.picks) == choice.picks
    np.testing.assert_allclose(shuffled.uncertainty, choice.uncertainty, rtol=1e-9)


@_QUICK
@given(_SEEDS)
def test_a_candidate_informs_as_much_from_the_other_side(seed: int) -> None:
    vectors = units(seed, 22, 6)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(22, 1))

    choice = sift(vectors[:20], vectors[20:], steps=8, regularisation=0.1)
    mirrored = sift(signs[:20] * vectors[:20], signs[20:] * vectors[20:], steps=8, regularisation=0.1)

    assert mirrored.picks == choice.picks
    np.testing.assert_allclose(mirrored.uncertainty, choice.uncertainty, rtol=1e-9)


def test_the_opposite_of_the_prompt_beats_a_vaguely_similar_text() -> None:
    target_TD = np.array([[1.0, 0.0]])
    candidates_KD = np.array([[0.6, 0.8], [-0.9, np.sqrt(1 - 0.81)]])

    choice = sift(candidates_KD, target_TD, steps=1, regularisation=0.1)

    assert choice.picks == (1,)


@_QUICK
@given(_SEEDS)
def test_a_huge_regularisation_repeats_the_most_similar_candidate(seed: int) -> None:
    vectors = units(seed, 21, 6)
    similarity_K = np.sort(np.abs(vectors[:20] @ vectors[20]))
    assume(similarity_K[-1] - similarity_K[-2] > 1e-3)

    choice = sift(vectors[:20], vectors[20:], steps=10, regularisation=1e6)

    assert set(choice.picks) == {int(np.argmax(np.abs(vectors[:20] @ vectors[20])))}


def test_a_small_regularisation_visits_each_part_of_the_prompt_before_it_repeats() -> None:
    target_TD = np.array([[0.8, 0.5, 0.33]])
    target_TD /= np.linalg.norm(target_TD)

    exploring = sift(np.eye(3), target_TD, steps=3, regularisation=0.01)
    repeating = sift(np.eye(3), target_TD, steps=3, regularisation=10.0)

    assert exploring.picks == (0, 1, 2)
    assert repeating.picks == (0, 0, 0)


@_QUICK
@given(_SEEDS, st.floats(0.02, 3.0), _REGULARISATIONS)
def test_the_adaptive_stop_is_the_first_n_where_the_rule_holds(seed: int, alpha: float, regularisation: float) -> None:
    vectors = units(seed, 21, 6)
    unstopped = sift(vectors[:20], vectors[20:], steps=25, regularisation=regularisation)
    sigma = unstopped.uncertainty
    expected = next((n for n in range(1, 25) if sigma[n] > 1 / (alpha * n)), 25)

    choice = sift(vectors[:20], vectors[20:], steps=25, regularisation=regularisation, alpha=alpha)

    assert choice.picks == unstopped.picks[:expected]
    assert choice.uncertainty == unstopped.uncertainty[: expected + 1]
    assert choice.stop == ("alpha" if expected < 25 else "steps")


@pytest.mark.parametrize(
    ("sigma", "n", "alpha", "stalled"),
    [
        (1.0, 0, 1e9, False),  # 1 / (alpha 0) is infinite: one pick at least
        (1.0, 100, None, False),
        (0.5, 4, 0.5, False),  # exactly 1 / (alpha n)
        (0.51, 4, 0.5, True),
        (0.49, 4, 0.5, False),
    ],
)
def test_the_stopping_rule(sigma: float, n: int, alpha: float | None, stalled: bool) -> None:
    assert has_stalled(sigma, n, alpha) is stalled


def test_a_larger_alpha_never_chooses_more() -> None:
    vectors = units(3, 41, 12)

    lengths = [
        len(sift(vectors[:40], vectors[40:], steps=50, regularisation=0.1, alpha=alpha).picks)
        for alpha in (0.05, 0.1, 0.2, 0.4, 0.8, 5.0)
    ]

    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1] == 1


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_exactly_the_steps_asked_for_are_taken(steps: int) -> None:
    vectors = units(4, 6, 4)

    choice = sift(vectors[:5], vectors[5:], steps=steps, regularisation=0.1)

    assert (len(choice.picks), choice.stop) == (steps, "steps")


def test_without_candidates_nothing_is_chosen() -> None:
    choice = sift(np.empty((0, 4)), units(5, 1, 4), steps=10, regularisation=0.1)

    assert (choice.picks, choice.uncertainty) == ((), (1.0,))


def test_float32_embeddings_are_left_as_they_were_and_give_the_choice_of_float64() -> None:
    vectors = units(6, 31, 8).astype(np.float32)
    before = vectors.copy()

    choice = sift(vectors[:30], vectors[30:], steps=10, regularisation=0.1)

    wide = vectors.astype(np.float64)
    assert choice == sift(wide[:30], wide[30:], steps=10, regularisation=0.1)
    np.testing.assert_array_equal(vectors, before)


@pytest.mark.parametrize(
    ("candidates_KD", "targets_TD", "regularisation", "alpha"),
    [
        (np.eye(3), np.eye(3), 0.0, None),
        (np.eye(3), np.eye(3), -1.0, None),
        (np.eye(3), np.eye(3), np.nan, None),
        (np.eye(3), np.eye(3), 0.1, 0.0),
        (np.eye(3), np.eye(3), 0.1, np.nan),
        (np.eye(3), np.eye(3), 0.1, -0.5),
        (np.eye(3), np.eye(4), 0.1, None),
        (np.eye(3), np.ones(3), 0.1, None),
        (np.ones(3), np.eye(3), 0.1, None),
        (np.eye(3), np.zeros((1, 3)), 0.1, None),
        (np.eye(3), np.empty((0, 3)), 0.1, None),
    ],
)
def test_what_makes_no_sense_is_refused(
    candidates_KD: Matrix, targets_TD: Matrix, regularisation: float, alpha: float | None
) -> None:
    with pytest.raises(ValueError, match=r"lambda'|alpha|expected|zero"):
        sift(candidates_KD, targets_TD, steps=3, regularisation=regularisation, alpha=alpha)
