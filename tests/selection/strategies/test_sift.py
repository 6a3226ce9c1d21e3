"""SIFT against a dense float64 brute force of the paper's eq. 2, and the properties that its theory
predicts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from selection.strategies.posterior import Posterior
from selection.strategies.sift import irreducible, should_stop, sift
from tests.selection.strategies.vectors import unit_vectors

Matrix = npt.NDArray[np.float64]

_QUICK = settings(max_examples=40, deadline=None)
_REGULARISATIONS = st.sampled_from([0.01, 0.1, 1.0, 10.0])
_SEEDS = st.integers(0, 2**32 - 1)


def variance(
    candidates_KD: Matrix,
    targets_TD: Matrix,
    picks: list[int],
    regularisation: float,
) -> float:
    """The trace over targets of the posterior variance given the picks, by eq. 2 as written."""
    prior = float(np.einsum("td,td->", targets_TD, targets_TD))
    if not picks:
        return prior
    chosen_ND = candidates_KD[picks]
    gram_NN = chosen_ND @ chosen_ND.T + regularisation * np.eye(len(picks))
    cross_NT = chosen_ND @ targets_TD.T
    return prior - float(np.einsum("nt,nt->", cross_NT, np.linalg.solve(gram_NN, cross_NT)))


def after_each(
    candidates_KD: Matrix,
    targets_TD: Matrix,
    picks: list[int],
    regularisation: float,
) -> Matrix:
    """The variance after picking each candidate next."""
    return np.array(
        [
            variance(candidates_KD, targets_TD, [*picks, j], regularisation)
            for j in range(len(candidates_KD))
        ]
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


def has_no_ties(
    candidates_KD: Matrix, targets_TD: Matrix, steps: int, regularisation: float
) -> bool:
    """Whether the best candidate leads by more than rounding errors at every step."""
    picks, _ = brute_force(candidates_KD, targets_TD, steps, regularisation)
    for n in range(steps):
        best, second = np.sort(after_each(candidates_KD, targets_TD, picks[:n], regularisation))[:2]
        if second - best < 1e-5:
            return False
    return True


def residual(candidates_KD: Matrix, targets_TD: Matrix) -> float:
    """The share of the targets' length outside the span of the candidates, by least squares."""
    combination_KT = np.linalg.lstsq(candidates_KD.T, targets_TD.T, rcond=None)[0]
    missing_DT = targets_TD.T - candidates_KD.T @ combination_KT
    return float(np.linalg.norm(missing_DT) / np.linalg.norm(targets_TD))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Matrix, Matrix]:
    """Candidates and targets of any length and sign, with ties and zeros."""
    dimension = draw(st.integers(1, 5))
    elements = st.floats(-1, 1, width=32).map(lambda x: x if abs(x) > 1e-6 else 0.0)
    candidates_KD = draw(
        arrays(np.float64, (draw(st.integers(1, 7)), dimension), elements=elements)
    )
    targets_TD = draw(arrays(np.float64, (draw(st.integers(1, 3)), dimension), elements=elements))
    assume(np.einsum("td,td->", targets_TD, targets_TD) > 1e-2)
    return candidates_KD, targets_TD


@_QUICK
@given(_SEEDS, st.integers(2, 25), st.integers(2, 12), st.integers(1, 4), _REGULARISATIONS)
def test_picks_and_uncertainties_are_those_of_brute_force(
    seed: int, candidates: int, dimension: int, targets: int, regularisation: float
) -> None:
    # Arrange: vectors without ties, so that every step has one best candidate.
    vectors = unit_vectors(seed, candidates + targets, dimension)
    candidates_KD, targets_TD = vectors[:candidates], vectors[candidates:]
    expected_picks, expected_sigmas = brute_force(candidates_KD, targets_TD, 6, regularisation)

    choice = sift(candidates_KD, targets_TD, steps=6, regularisation=regularisation)

    assert list(choice.picks) == expected_picks
    np.testing.assert_allclose(
        np.square(choice.uncertainty), np.square(expected_sigmas), rtol=1e-9, atol=1e-12
    )


@_QUICK
@given(problems(), _REGULARISATIONS)
def test_no_candidate_would_have_been_better_at_any_step(
    problem: tuple[Matrix, Matrix], regularisation: float
) -> None:
    candidates_KD, targets_TD = problem

    choice = sift(candidates_KD, targets_TD, steps=5, regularisation=regularisation)

    prior = variance(candidates_KD, targets_TD, [], regularisation)
    assert len(choice.picks) == 5
    for n, pick in enumerate(choice.picks):
        tried_K = after_each(candidates_KD, targets_TD, list(choice.picks[:n]), regularisation)
        assert tried_K[pick] <= tried_K.min() + 1e-9 * prior
        assert choice.uncertainty[n + 1] ** 2 == pytest.approx(tried_K[pick] / prior, abs=1e-9)


@pytest.mark.parametrize("regularisation", [1.0, 0.1, 0.01, 1e-3, 1e-6])
@pytest.mark.parametrize("copies", [1, 10])
def test_at_full_size_every_prefix_follows_the_dense_formula(
    regularisation: float, copies: int
) -> None:
    # Arrange: 200 candidates, all different or twenty with ten copies each.
    vectors = unit_vectors(9, 202, 64)
    candidates_KD, targets_TD = np.repeat(vectors[: 200 // copies], copies, axis=0), vectors[200:]

    choice = sift(candidates_KD, targets_TD, steps=50, regularisation=regularisation)

    prior = variance(candidates_KD, targets_TD, [], regularisation)
    prefixes = [list(choice.picks[:n]) for n in range(51)]
    dense = [
        variance(candidates_KD, targets_TD, picks, regularisation) / prior for picks in prefixes
    ]
    np.testing.assert_allclose(np.square(choice.uncertainty), dense, rtol=1e-9, atol=1e-12)


@_QUICK
@given(_SEEDS, _REGULARISATIONS)
def test_the_first_pick_has_the_largest_cosine_in_absolute_value(
    seed: int, regularisation: float
) -> None:
    vectors = np.random.default_rng(seed).standard_normal((21, 6))  # both signs
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    choice = sift(vectors[:20], vectors[20:], steps=1, regularisation=regularisation)

    assert choice.picks == (int(np.argmax(np.abs(vectors[:20] @ vectors[20]))),)


@_QUICK
@given(_SEEDS, _REGULARISATIONS)
def test_the_second_pick_follows_the_closed_form(seed: int, regularisation: float) -> None:
    # Paper section C.1, "2nd point", with the inverse of the 2 x 2 matrix written out.
    vectors = unit_vectors(seed, 21, 6)
    candidates_KD, target_D = vectors[:20], vectors[20]
    assume(has_no_ties(candidates_KD, vectors[20:], 2, regularisation))
    cosine_K = candidates_KD @ target_D
    first = int(np.argmax(np.abs(cosine_K)))
    between_K = candidates_KD @ candidates_KD[first]
    own, other_K = cosine_K[first], cosine_K
    numerator_K = (1 + regularisation) * (own**2 + other_K**2) - 2 * between_K * own * other_K
    reduction_K = numerator_K / ((1 + regularisation) ** 2 - between_K**2)

    choice = sift(candidates_KD, vectors[20:], steps=2, regularisation=regularisation)

    assert choice.picks == (first, int(np.argmax(reduction_K)))
    assert choice.uncertainty[2] ** 2 == pytest.approx(1 - reduction_K.max(), abs=1e-9)


@_QUICK
@given(st.floats(0.05, 0.65), st.floats(1e-3, 100.0))
def test_an_orthogonal_candidate_is_preferred_if_its_relevance_passes_the_threshold(
    cosine: float, regularisation: float
) -> None:
    # Paper section C.1: x, orthogonal to x_1, is preferred iff cos(x)^2 > lambda' / (2 + lambda')
    # cos(x_1)^2.
    target_TD = np.array([[0.7, cosine, np.sqrt(1 - 0.49 - cosine**2)]])
    threshold = regularisation / (2 + regularisation) * 0.49
    assume(abs(cosine**2 - threshold) > 1e-6)

    choice = sift(np.eye(3)[:2], target_TD, steps=2, regularisation=regularisation)

    assert choice.picks == (0, 1 if cosine**2 > threshold else 0)


@_QUICK
@given(problems(), _REGULARISATIONS)
def test_uncertainty_starts_at_one_and_never_grows(
    problem: tuple[Matrix, Matrix], regularisation: float
) -> None:
    candidates_KD, targets_TD = problem

    choice = sift(candidates_KD, targets_TD, steps=12, regularisation=regularisation)

    assert choice.uncertainty[0] == 1.0
    assert len(choice.uncertainty) == len(choice.picks) + 1
    assert all(
        later <= earlier
        for earlier, later in zip(choice.uncertainty, choice.uncertainty[1:], strict=False)
    )
    assert choice.uncertainty[-1] >= 0.0


def test_the_prompt_itself_as_the_only_candidate_follows_the_closed_form() -> None:
    # n noisy observations of the target leave lambda' / (n + lambda') of its variance.
    target_TD = unit_vectors(1, 1, 8)

    choice = sift(target_TD, target_TD, steps=20, regularisation=0.3)

    assert choice.picks == (0,) * 20
    np.testing.assert_allclose(
        choice.uncertainty, [np.sqrt(0.3 / (n + 0.3)) for n in range(21)], rtol=1e-12
    )


@_QUICK
@given(_SEEDS)
def test_rotating_the_space_changes_nothing(seed: int) -> None:
    vectors = unit_vectors(seed, 21, 6)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((6, 6)))

    choice = sift(vectors[:20], vectors[20:], steps=8, regularisation=0.1)
    rotated = sift(vectors[:20] @ rotation, vectors[20:] @ rotation, steps=8, regularisation=0.1)

    assert rotated.picks == choice.picks
    np.testing.assert_allclose(rotated.uncertainty, choice.uncertainty, rtol=1e-7)


@_QUICK
@given(_SEEDS)
def test_the_order_of_candidates_does_not_matter(seed: int) -> None:
    vectors = unit_vectors(seed, 21, 6)
    order = np.random.default_rng(seed).permutation(20)

    choice = sift(vectors[:20], vectors[20:], steps=8, regularisation=0.1)
    shuffled = sift(vectors[:20][order], vectors[20:], steps=8, regularisation=0.1)

    assert tuple(int(order[pick]) for pick in shuffled.picks) == choice.picks
    np.testing.assert_allclose(shuffled.uncertainty, choice.uncertainty, rtol=1e-9)


@_QUICK
@given(_SEEDS, st.integers(2, 4))
def test_the_order_of_candidates_only_breaks_ties(seed: int, copies: int) -> None:
    vectors = unit_vectors(seed, 9, 6)
    candidates_KD = np.repeat(vectors[:8], copies, axis=0)
    assume(has_no_ties(vectors[:8], vectors[8:], 6, 0.1))
    order = np.random.default_rng(seed).permutation(len(candidates_KD))

    choice = sift(candidates_KD, vectors[8:], steps=6, regularisation=0.1)
    shuffled = sift(candidates_KD[order], vectors[8:], steps=6, regularisation=0.1)

    np.testing.assert_array_equal(
        candidates_KD[order][list(shuffled.picks)], candidates_KD[list(choice.picks)]
    )
    np.testing.assert_allclose(shuffled.uncertainty, choice.uncertainty, rtol=1e-9)


@_QUICK
@given(_SEEDS, st.integers(1, 5))
def test_copies_in_the_corpus_change_nothing(seed: int, copies: int) -> None:
    vectors = unit_vectors(seed, 9, 6)
    assume(has_no_ties(vectors[:8], vectors[8:], 6, 0.1))
    with_copies_KD = np.concatenate([vectors[:8], np.repeat(vectors[:3], copies, axis=0)])

    choice = sift(vectors[:8], vectors[8:], steps=6, regularisation=0.1)
    crowded = sift(with_copies_KD, vectors[8:], steps=6, regularisation=0.1)

    np.testing.assert_array_equal(with_copies_KD[list(crowded.picks)], vectors[list(choice.picks)])
    np.testing.assert_allclose(crowded.uncertainty, choice.uncertainty, rtol=1e-9)


@_QUICK
@given(_SEEDS)
def test_a_negated_candidate_is_as_informative(seed: int) -> None:
    vectors = unit_vectors(seed, 22, 6)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(22, 1))

    choice = sift(vectors[:20], vectors[20:], steps=8, regularisation=0.1)
    mirrored = sift(
        signs[:20] * vectors[:20], signs[20:] * vectors[20:], steps=8, regularisation=0.1
    )

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
    vectors = unit_vectors(seed, 21, 6)
    similarity_K = np.sort(np.abs(vectors[:20] @ vectors[20]))
    assume(similarity_K[-1] - similarity_K[-2] > 1e-3)

    choice = sift(vectors[:20], vectors[20:], steps=10, regularisation=1e6)

    assert set(choice.picks) == {int(np.argmax(np.abs(vectors[:20] @ vectors[20])))}


@_QUICK
@given(_SEEDS)
def test_a_tiny_regularisation_takes_every_candidate_before_it_repeats_one(seed: int) -> None:
    vectors = unit_vectors(seed, 7, 10)
    unrepeated = sift(vectors[:6], vectors[6:], steps=6, regularisation=1e-9).uncertainty
    assume(min(-np.diff(np.square(unrepeated))) > 1e-6)  # each of them is still informative

    choice = sift(vectors[:6], vectors[6:], steps=6, regularisation=1e-9)

    assert sorted(choice.picks) == list(range(6))


def test_a_small_regularisation_visits_each_part_of_the_prompt_before_it_repeats() -> None:
    target_TD = np.array([[0.8, 0.5, 0.33]])
    target_TD /= np.linalg.norm(target_TD)

    exploring = sift(np.eye(3), target_TD, steps=3, regularisation=0.01)
    repeating = sift(np.eye(3), target_TD, steps=3, regularisation=10.0)

    assert exploring.picks == (0, 1, 2)
    assert repeating.picks == (0, 0, 0)


@_QUICK
@given(_SEEDS, st.floats(0.02, 3.0), _REGULARISATIONS)
def test_the_adaptive_stop_is_the_first_n_where_the_rule_holds(
    seed: int, alpha: float, regularisation: float
) -> None:
    vectors = unit_vectors(seed, 21, 6)
    unstopped = sift(vectors[:20], vectors[20:], steps=25, regularisation=regularisation)
    sigma = unstopped.uncertainty
    expected = next((n for n in range(1, 25) if sigma[n] > 1 / (alpha * n)), 25)

    choice = sift(vectors[:20], vectors[20:], steps=25, regularisation=regularisation, alpha=alpha)

    assert choice.picks == unstopped.picks[:expected]
    assert choice.uncertainty == unstopped.uncertainty[: expected + 1]
    assert choice.stop == ("alpha" if expected < 25 else "steps")


@pytest.mark.parametrize(
    ("sigma", "n", "alpha", "stops"),
    [
        (1.0, 0, 1e9, False),  # 1 / (alpha 0) is infinite: one pick at least
        (1.0, 100, None, False),
        (0.5, 4, 0.5, False),  # exactly 1 / (alpha n)
        (0.51, 4, 0.5, True),
        (0.49, 4, 0.5, False),
    ],
)
def test_the_stopping_rule(sigma: float, n: int, alpha: float | None, stops: bool) -> None:
    assert should_stop(sigma, n, alpha) is stops


def test_a_larger_alpha_never_chooses_more() -> None:
    vectors = unit_vectors(3, 41, 12)

    lengths = [
        len(sift(vectors[:40], vectors[40:], steps=50, regularisation=0.1, alpha=alpha).picks)
        for alpha in (0.05, 0.1, 0.2, 0.4, 0.8, 5.0)
    ]

    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1] == 1


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_exactly_the_requested_steps_are_taken(steps: int) -> None:
    vectors = unit_vectors(4, 6, 4)

    choice = sift(vectors[:5], vectors[5:], steps=steps, regularisation=0.1)

    assert (len(choice.picks), choice.stop) == (steps, "steps")


def test_without_candidates_nothing_is_chosen() -> None:
    choice = sift(np.empty((0, 4)), unit_vectors(5, 1, 4), steps=10, regularisation=0.1)

    assert (choice.picks, choice.uncertainty) == ((), (1.0,))


@_QUICK
@given(_SEEDS, _REGULARISATIONS)
def test_float32_embeddings_are_not_modified_and_give_the_choice_of_float64(
    seed: int, regularisation: float
) -> None:
    vectors = unit_vectors(seed, 31, 8).astype(np.float32)
    before, wide = vectors.copy(), vectors.astype(np.float64)
    assume(has_no_ties(wide[:30], wide[30:], 10, regularisation))

    choice = sift(vectors[:30], vectors[30:], steps=10, regularisation=regularisation)

    expected = sift(wide[:30], wide[30:], steps=10, regularisation=regularisation)
    assert choice.picks == expected.picks
    np.testing.assert_allclose(choice.uncertainty, expected.uncertainty, atol=3e-6)
    np.testing.assert_array_equal(vectors, before)


@_QUICK
@given(_SEEDS, st.integers(1, 12), st.integers(2, 12), st.integers(1, 3), st.booleans())
def test_the_irreducible_uncertainty_is_the_residual_of_least_squares(
    seed: int, candidates: int, dimension: int, targets: int, copies: bool
) -> None:
    vectors = unit_vectors(seed, candidates + targets, dimension)
    distinct_KD, targets_TD = vectors[:candidates], vectors[candidates:]
    scale = np.linalg.svd(distinct_KD, compute_uv=False)
    assume(scale[-1] > 0.05)  # near the span, rounding decides
    candidates_KD = np.repeat(distinct_KD, 3, axis=0) if copies else distinct_KD

    limit = irreducible(candidates_KD, targets_TD)

    assert limit == pytest.approx(residual(distinct_KD, targets_TD), abs=3e-4)
    narrow = irreducible(candidates_KD.astype(np.float32), targets_TD.astype(np.float32))
    assert narrow == pytest.approx(limit, abs=1e-3)


@_QUICK
@given(problems(), _REGULARISATIONS)
def test_no_choice_gets_below_the_irreducible_uncertainty(
    problem: tuple[Matrix, Matrix], regularisation: float
) -> None:
    candidates_KD, targets_TD = problem

    sigmas = sift(candidates_KD, targets_TD, steps=30, regularisation=regularisation).uncertainty

    assert min(sigmas) >= irreducible(candidates_KD, targets_TD) - 1e-9


@_QUICK
@given(_SEEDS, st.integers(1, 6), st.integers(1, 2))
def test_many_steps_with_little_noise_come_down_to_the_irreducible_uncertainty(
    seed: int, candidates: int, targets: int
) -> None:
    vectors = unit_vectors(seed, candidates + targets, 10)
    candidates_KD, targets_TD = vectors[:candidates], vectors[candidates:]
    assume(np.linalg.svd(candidates_KD, compute_uv=False)[-1] > 0.05)

    choice = sift(candidates_KD, targets_TD, steps=60, regularisation=1e-7)

    assert choice.uncertainty[-1] == pytest.approx(irreducible(candidates_KD, targets_TD), abs=1e-3)


@pytest.mark.parametrize("candidates", [5, 20])
def test_a_prompt_among_its_candidates_leaves_no_uncertainty(candidates: int) -> None:
    vectors = unit_vectors(12, candidates, 8)

    assert irreducible(vectors, vectors[:1]) < 1e-4
    assert irreducible(np.repeat(vectors, 3, axis=0), vectors[1:3]) < 1e-4


def test_more_candidates_than_dimensions_leave_no_uncertainty_unless_they_lie_in_a_subspace() -> (
    None
):
    vectors = unit_vectors(15, 41, 16)
    flat_KD = vectors[:40] * (np.arange(16) < 12)
    outside = float(np.linalg.norm(vectors[40, 12:]))

    assert irreducible(vectors[:40], vectors[40:]) == 0.0
    assert irreducible(np.repeat(vectors[:20], 2, axis=0), vectors[40:]) == 0.0
    assert irreducible(np.repeat(vectors[:20], 20, axis=0), vectors[40:]) < 1e-4
    assert irreducible(flat_KD, vectors[40:]) == pytest.approx(outside, abs=1e-4)


def test_without_informative_candidates_all_uncertainty_is_irreducible() -> None:
    target_TD = unit_vectors(13, 1, 4)

    assert irreducible(np.empty((0, 4)), target_TD) == 1.0
    assert irreducible(np.zeros((3, 4)), target_TD) == 1.0
    assert irreducible(np.zeros((9, 4)), target_TD) == 1.0
    assert irreducible(np.eye(4)[:3], np.eye(4)[3:]) == 1.0


def test_the_irreducible_uncertainty_of_half_a_question_is_the_other_half() -> None:
    targets_TD = np.array([[0.6, 0.8, 0.0], [0.8, 0.6, 0.0]])
    candidates_KD = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])

    assert irreducible(candidates_KD, targets_TD[:1]) == pytest.approx(0.8)
    assert irreducible(candidates_KD, targets_TD) == pytest.approx(np.sqrt((0.64 + 0.36) / 2))


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
def test_invalid_arguments_are_refused(
    candidates_KD: Matrix, targets_TD: Matrix, regularisation: float, alpha: float | None
) -> None:
    with pytest.raises(ValueError, match=r"lambda'|alpha|expected|zero"):
        sift(candidates_KD, targets_TD, steps=3, regularisation=regularisation, alpha=alpha)


def test_a_posterior_gives_the_reduction_by_each_candidate() -> None:
    vectors = unit_vectors(14, 9, 5)
    candidates_KD, targets_TD = vectors[:7], vectors[7:]
    posterior = Posterior(candidates_KD[None], targets_TD[None], 0.1, 4)

    picked: list[int] = []
    for pick in (3, 3, 0, 5):
        remaining = variance(candidates_KD, targets_TD, picked, 0.1)
        reduction_K = remaining - after_each(candidates_KD, targets_TD, picked, 0.1)
        np.testing.assert_allclose(posterior.reductions()[0], reduction_K, rtol=1e-9)
        posterior.pick(np.array([pick]))
        picked.append(pick)
