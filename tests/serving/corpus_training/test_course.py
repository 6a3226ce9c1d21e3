"""The course of a part: which phases it has, and what its held-out documents decide."""

from __future__ import annotations

import json
import math

import pytest

from serving.corpus_training.course import (
    MAX_PASSES,
    TRIAL_SEQUENCES,
    Course,
    GoOn,
    Phase,
    Position,
)

RATES = (1.0, 0.5)
LEARN = tuple(range(1, 101))
HELD_OUT = (101, 102, 103)


def follow(course: Course, losses: list[float]) -> list[tuple[Phase, int, float, GoOn]]:
    """The phases of a course to its end, for these losses at the ends of those that are judged:
    phase, number, learning rate, and with which adapter it begins.
    """
    position, adapter = course.first((5.0,)), GoOn.START
    phases = []
    while True:
        phases.append((position.phase, position.number, position.rate, adapter))
        loss = losses.pop(0) if course.is_judged(position) else None
        decision = course.after(position, loss)
        if decision.position is None:
            assert not losses
            return phases
        position, adapter = decision.position, decision.adapter


def test_the_lower_rate_goes_on_unless_it_is_clearly_worse() -> None:
    first, second = (
        follow(Course(LEARN, RATES, HELD_OUT, passes=1), [*trials, 3.0])
        for trials in ((4.0, 4.1), (4.0, 4.03))
    )

    trials = [(Phase.RATE, 0, 1.0, GoOn.START), (Phase.RATE, 1, 0.5, GoOn.START)]
    assert first == [
        *trials,
        (Phase.PASS, 0, 1.0, GoOn.KEPT),
        (Phase.HELD_OUT, 0, 1.0, GoOn.CURRENT),
    ]
    assert second == [
        *trials,
        (Phase.PASS, 0, 0.5, GoOn.CURRENT),
        (Phase.HELD_OUT, 0, 0.5, GoOn.CURRENT),
    ]


@pytest.mark.parametrize(
    ("losses", "passes", "adapter"),
    [
        ([4.99], 1, GoOn.CURRENT),
        ([4.0, 3.99], 2, GoOn.CURRENT),
        ([4.0, 4.1], 1, GoOn.KEPT),
        ([4.0, 3.0, 2.0], MAX_PASSES, GoOn.CURRENT),
        ([4.0, 3.0, 3.1], 2, GoOn.KEPT),
    ],
)
def test_passes_follow_while_they_lower_the_loss(
    losses: list[float], passes: int, adapter: GoOn
) -> None:
    course = Course(LEARN, RATES, HELD_OUT, rate=1.0)
    position = course.first((5.0,))
    for loss in losses:
        decision = course.after(position, loss)
        assert decision.position is not None
        position = decision.position

    assert (position.phase, position.passes, decision.adapter) == (Phase.HELD_OUT, passes, adapter)
    assert position.losses == (5.0, *losses)


def test_nothing_is_chosen_without_held_out_documents() -> None:
    assert [phase for phase, *_ in follow(Course(LEARN, RATES), [])] == [Phase.PASS, Phase.HELD_OUT]
    given = Course(LEARN, RATES, HELD_OUT, rate=0.5, passes=2)
    assert follow(given, []) == [
        (Phase.PASS, 0, 0.5, GoOn.START),
        (Phase.PASS, 1, 0.5, GoOn.CURRENT),
        (Phase.HELD_OUT, 0, 0.5, GoOn.CURRENT),
    ]


def test_a_rate_that_diverges_loses() -> None:
    course = Course(LEARN, RATES, HELD_OUT, passes=1)

    phases = follow(course, [math.inf, 4.0, 3.0])

    assert phases[2] == (Phase.PASS, 0, RATES[1], GoOn.CURRENT)


def test_what_was_learnt_includes_the_adapter_that_is_kept() -> None:
    course = Course(LEARN, RATES, HELD_OUT)
    learnt = [
        course.learnt(Position(phase, number, done=10, missing=(3,)))
        for phase, number in (
            (Phase.RATE, 0),
            (Phase.RATE, 1),
            (Phase.PASS, 0),
            (Phase.PASS, 1),
            (Phase.HELD_OUT, 0),
        )
    ]

    assert [len(ids) for ids in learnt] == [9, TRIAL_SEQUENCES - 1, 9, 99, 102]
    assert not any(3 in ids for ids in learnt)


def test_progress_grows_to_the_total() -> None:
    course = Course(LEARN, RATES, HELD_OUT)
    trial = len(course.sequences(Phase.RATE))
    total = trial + len(LEARN) + len(HELD_OUT)

    assert course.count(course.first()) == (0, total)
    assert course.count(Position(Phase.RATE, 1, 10)) == (trial + 10, total)
    assert course.count(Position(Phase.PASS, 0, trial)) == (2 * trial, total)
    assert course.count(Position(Phase.PASS, 1, 5)) == (trial + 105, total + 100)
    assert course.count(Position(Phase.HELD_OUT, done=3, passes=2)) == (total + 100, total + 100)


def test_a_position_survives_json() -> None:
    position = Position(Phase.PASS, 1, 7, 0.5, 1, (5.0, 4.0), 4.0, (3, 9))

    assert Position.from_dict(json.loads(json.dumps(position.as_dict()))) == position
