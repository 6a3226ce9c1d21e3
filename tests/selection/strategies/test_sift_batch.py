"""SIFT for many prompts at once gives the choices of SIFT for each alone, on arrays and tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selection.strategies.sift import sift
from selection.strategies.sift_batch import sift_batch
from tests.selection.strategies.vectors import unit_vectors

Matrix = npt.NDArray[np.float64]

_QUICK = settings(max_examples=40, deadline=None)
_SEEDS = st.integers(0, 2**32 - 1)
_DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


@_QUICK
@given(_SEEDS, st.integers(1, 5), st.integers(1, 3), st.sampled_from([None, 0.05, 0.2, 0.5, 2.0]))
def test_prompts_in_a_batch_get_the_choices_of_each_alone(
    seed: int, prompts: int, targets: int, alpha: float | None
) -> None:
    vectors = unit_vectors(seed, prompts * (20 + targets), 6)
    candidates_BKD = vectors[: prompts * 20].reshape(prompts, 20, 6)
    targets_BTD = vectors[prompts * 20 :].reshape(prompts, targets, 6)

    batched = sift_batch(candidates_BKD, targets_BTD, steps=12, regularisation=0.1, alpha=alpha)

    assert len(batched) == prompts
    for choice, candidates_KD, targets_TD in zip(batched, candidates_BKD, targets_BTD, strict=True):
        alone = sift(candidates_KD, targets_TD, steps=12, regularisation=0.1, alpha=alpha)
        assert (choice.picks, choice.stop) == (alone.picks, alone.stop)
        np.testing.assert_allclose(choice.uncertainty, alone.uncertainty, rtol=1e-9)


@pytest.mark.parametrize("array", [np.asarray, torch.tensor])
def test_each_prompt_stops_by_its_own_uncertainty(array: Any) -> None:
    # Arrange: the first prompt is among its candidates, the second partly, the third not at all.
    target_TD = np.array([[1.0, 0.0, 0.0]])
    candidates_BKD = np.array([[[1.0, 0.0, 0.0]], [[0.8, 0.6, 0.0]], [[0.0, 1.0, 0.0]]])

    full, half, nothing = sift_batch(
        array(candidates_BKD),
        array(np.stack([target_TD] * 3)),
        steps=9,
        regularisation=0.1,
        alpha=0.4,
    )

    assert (len(full.picks), full.stop) == (9, "steps")
    assert 3 < len(half.picks) < 9
    assert half.stop == nothing.stop == "alpha"
    assert nothing.uncertainty == (1.0, 1.0, 1.0, 1.0)


def test_no_prompts_give_no_choices() -> None:
    assert (
        sift_batch(np.empty((0, 5, 4)), np.empty((0, 1, 4)), steps=3, regularisation=0.1, alpha=0.1)
        == []
    )


@pytest.mark.parametrize("device", _DEVICES)
@pytest.mark.parametrize("alpha", [None, 0.2])
def test_tensors_give_the_choices_of_arrays(device: str, alpha: float | None) -> None:
    vectors = unit_vectors(10, 3 * 32, 16)
    candidates_BKD, targets_BTD = vectors[:90].reshape(3, 30, 16), vectors[90:].reshape(3, 2, 16)
    expected = sift_batch(candidates_BKD, targets_BTD, steps=15, regularisation=0.1, alpha=alpha)

    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        candidates, targets = (
            torch.tensor(a, dtype=dtype, device=device) for a in (candidates_BKD, targets_BTD)
        )
        batched = sift_batch(candidates, targets, steps=15, regularisation=0.1, alpha=alpha)

        for choice, expected_choice in zip(batched, expected, strict=True):
            assert choice.picks == expected_choice.picks
            assert choice.stop == expected_choice.stop
            np.testing.assert_allclose(
                choice.uncertainty, expected_choice.uncertainty, atol=tolerance
            )
            assert all(type(sigma) is float for sigma in choice.uncertainty)


def test_invalid_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="expected embeddings"):
        sift_batch(np.ones((2, 3, 4)), np.ones((3, 1, 4)), steps=1, regularisation=0.1)
    with pytest.raises(ValueError, match="all target embeddings of a prompt are zero"):
        sift_batch(
            np.ones((2, 3, 4)),
            np.stack([np.ones((1, 4)), np.zeros((1, 4))]),
            steps=1,
            regularisation=0.1,
        )
