"""Merging: the weighted average of adapters, and weights that follow from similarity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from selection.corpus.trained.merge import MAX_MERGED, TEMPERATURE, merged, mixture, name_of
from tests.selection.trained_helpers import SHAPE, weights


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=12))
def test_the_nearest_parts_are_mixed_with_weights_that_add_up_to_one(
    similarities: list[float],
) -> None:
    mixed = mixture(np.array(similarities, np.float32))

    assert sum(weight for _, weight in mixed) == pytest.approx(1)
    assert 1 <= len(mixed) <= MAX_MERGED
    assert len({part for part, _ in mixed}) == len(mixed)
    # A part that is left out, or has less weight, is not nearer; its share is that of a softmax up
    # to the rounding.
    nearest = sorted(similarities, reverse=True)[:MAX_MERGED]
    softmax = np.exp((np.array(nearest) - max(nearest)) / TEMPERATURE)
    weights_P = np.zeros(len(similarities))
    for part, weight in mixed:
        weights_P[part] = weight
    ranked = np.argsort(-np.array(similarities, np.float32), kind="stable")
    np.testing.assert_allclose(
        weights_P[ranked][: len(nearest)], softmax / softmax.sum(), atol=0.05 + 1e-6
    )


def test_a_part_that_is_clearly_nearest_is_used_alone() -> None:
    assert mixture(np.array([0.3, 0.6, 0.31], np.float32)) == [(1, 1.0)]


def test_the_average_is_that_of_each_tensor() -> None:
    files = [weights(seed) for seed in range(3)]
    shares = [0.5, 0.3, 0.2]

    average = load(merged(list(zip(files, shares, [1.0] * 3, strict=True))))

    tensors = [load(file) for file in files]
    assert average.keys() == tensors[0].keys()
    for name, tensor in average.items():
        expected = sum(share * each[name] for share, each in zip(shares, tensors, strict=True))
        np.testing.assert_allclose(tensor, expected, rtol=1e-5, atol=1e-6)


def test_one_part_is_used_as_it_is() -> None:
    assert merged([(weights(1), 1.0, 1.0)]) == weights(1)


def test_what_a_part_adds_to_the_base_model_is_scaled() -> None:
    whole, scaled = load(weights(1)), load(merged([(weights(1), 1.0, 0.7)]))

    added, less = (
        [
            tensors[f"base_model.model.layers.0.{target}.lora_B.weight"]
            @ tensors[f"base_model.model.layers.0.{target}.lora_A.weight"]
            for target in SHAPE.targets
        ]
        for tensors in (whole, scaled)
    )

    np.testing.assert_allclose(less, 0.7 * np.array(added), rtol=1e-5)


def test_adapters_of_other_tensors_are_not_averaged() -> None:
    other = save({"base_model.model.lora_A.weight": np.zeros((2, 4), np.float32)})

    with pytest.raises(ValueError, match="other tensors"):
        merged([(weights(1), 0.5, 1.0), (other, 0.5, 1.0)])


def test_a_mixture_has_one_name_for_its_parts_and_weights() -> None:
    assert name_of([("corpus-a", 1.0)]) == "corpus-a"
    one, same = name_of([("a", 0.75), ("b", 0.25)]), name_of([("b", 0.25), ("a", 0.75)])
    assert one == same
    assert one != name_of([("a", 0.7), ("b", 0.3)])
    assert one.startswith("corpus-")
    assert len(one) == len("corpus-") + 32
