"""Training plans: every sequence is used once and in order."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.step_plan import BATCH, PLANS, REFRESH, Step, steps_of

SEQUENCES = st.lists(st.integers(0, 4), max_size=40)


@given(st.sampled_from(PLANS), SEQUENCES)
def test_every_position_is_used_once_and_in_order(name: str, sequences: list[int]) -> None:
    used = [position for step in steps_of(name, sequences) for position in step.sequences]

    assert used == list(range(len(sequences)))


@given(SEQUENCES)
def test_sequential_has_one_step_per_sequence(sequences: list[int]) -> None:
    assert steps_of("sequential", sequences) == [
        Step((position,)) for position in range(len(sequences))
    ]


@given(SEQUENCES)
def test_batched_has_one_step_per_five_sequences(sequences: list[int]) -> None:
    steps = steps_of("batched", sequences)

    assert len(steps) == math.ceil(len(sequences) / BATCH)
    assert all(len(step.sequences) == BATCH for step in steps[:-1])
    assert all(step.gradient_of is None and not step.gradient_is_kept for step in steps)


@given(SEQUENCES)
def test_reuse_takes_gradients_only_from_the_same_sequence(sequences: list[int]) -> None:
    steps = steps_of("reuse", sequences)

    for position, step in enumerate(steps):
        assert step.sequences == (position,)
        if step.gradient_of is not None:
            source = steps[step.gradient_of]
            assert step.gradient_of < position
            assert sequences[step.gradient_of] == sequences[position]
            assert source.gradient_is_kept
            assert source.gradient_of is None


@given(SEQUENCES)
def test_reuse_computes_every_third_gradient_and_uses_the_latest(
    sequences: list[int],
) -> None:
    steps = steps_of("reuse", sequences)

    seen: Counter[int] = Counter()
    latest: dict[int, int] = {}
    for position, (sequence, step) in enumerate(zip(sequences, steps, strict=True)):
        if seen[sequence] % REFRESH == 0:
            assert step.gradient_of is None
            latest[sequence] = position
        else:
            assert step.gradient_of == latest[sequence]
        seen[sequence] += 1
    assert sum(step.gradient_of is None for step in steps) == sum(
        math.ceil(count / REFRESH) for count in seen.values()
    )


@given(SEQUENCES)
def test_reuse_saves_only_gradients_that_are_reused(sequences: list[int]) -> None:
    steps = steps_of("reuse", sequences)

    assert {position for position, step in enumerate(steps) if step.gradient_is_kept} == {
        step.gradient_of for step in steps if step.gradient_of is not None
    }


def test_different_sequences_share_no_gradient() -> None:
    assert steps_of("reuse", [(1, 2), (1, 2, 3), (1,), (2, 1)]) == steps_of(
        "sequential", [0, 1, 2, 3]
    )


@pytest.mark.parametrize("name", ["", "Sequential", "random"])
def test_an_unknown_plan_is_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"unknown plan '{name}': one of sequential, batched, reuse"
    ):
        steps_of(name, [1, 2])
