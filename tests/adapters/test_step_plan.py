"""Plans: every sequence is learnt from once, in order, whatever a step is."""

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
def test_sequential_is_a_step_for_each(sequences: list[int]) -> None:
    assert steps_of("sequential", sequences) == [
        Step((position,)) for position in range(len(sequences))
    ]


@given(SEQUENCES)
def test_batched_is_a_step_for_each_five(sequences: list[int]) -> None:
    steps = steps_of("batched", sequences)

    assert len(steps) == math.ceil(len(sequences) / BATCH)
    assert all(len(step.sequences) == BATCH for step in steps[:-1])
    assert all(step.reused is None and not step.is_reused for step in steps)


@given(SEQUENCES)
def test_reuse_takes_again_only_what_the_same_sequence_gave_before(sequences: list[int]) -> None:
    steps = steps_of("reuse", sequences)

    for position, step in enumerate(steps):
        assert step.sequences == (position,)
        if step.reused is not None:
            source = steps[step.reused]
            assert step.reused < position
            assert sequences[step.reused] == sequences[position]
            assert source.is_reused
            assert source.reused is None


@given(SEQUENCES)
def test_reuse_computes_every_third_time_anew_and_never_older_ones_after(
    sequences: list[int],
) -> None:
    steps = steps_of("reuse", sequences)

    seen: Counter[int] = Counter()
    latest: dict[int, int] = {}
    for position, (sequence, step) in enumerate(zip(sequences, steps, strict=True)):
        if seen[sequence] % REFRESH == 0:
            assert step.reused is None
            latest[sequence] = position
        else:
            assert step.reused == latest[sequence]
        seen[sequence] += 1
    assert sum(step.reused is None for step in steps) == sum(
        math.ceil(count / REFRESH) for count in seen.values()
    )


@given(SEQUENCES)
def test_reuse_keeps_nothing_that_nobody_takes(sequences: list[int]) -> None:
    steps = steps_of("reuse", sequences)

    assert {position for position, step in enumerate(steps) if step.is_reused} == {
        step.reused for step in steps if step.reused is not None
    }


def test_sequences_that_differ_are_never_taken_for_one_another() -> None:
    assert steps_of("reuse", [(1, 2), (1, 2, 3), (1,), (2, 1)]) == steps_of(
        "sequential", [0, 1, 2, 3]
    )


@pytest.mark.parametrize("name", ["", "Sequential", "random"])
def test_a_plan_that_there_is_none_of_is_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"unknown plan '{name}': one of sequential, batched, reuse"
    ):
        steps_of(name, [1, 2])
