"""Why the base model answered: true, and with what to do about it."""

from __future__ import annotations

import pytest

from adapters.training import TrainingStop
from serving.adaptation.reasons import no_adapter, no_step
from serving.budget import NONE, Budget, parse_budget

_AUTO, _LIMITS = Budget(50, gain=0.4), Budget(20, 60.0)


@pytest.mark.parametrize("text", ["none", " none "])
def test_who_asks_for_none_is_not_told_of_a_limit(text: str) -> None:
    budget, cut = parse_budget(text, _AUTO, _AUTO, _LIMITS).cut_to(_LIMITS)

    assert no_step(budget, cut) == "no adaptation was asked for"


def test_none_is_no_steps_where_places_are_compared() -> None:
    no_steps = parse_budget("steps=0", _AUTO, _AUTO, _LIMITS)

    assert no_steps == NONE
    assert no_step(no_steps, ()) == "the budget allows no step: ask for steps=1 or more"


def test_limits_that_allow_nothing_are_named() -> None:
    budget, cut = Budget(5).cut_to(Budget(0, 60.0))

    assert "--max-steps" in no_step(budget, cut)


def test_seconds_that_do_not_suffice_are_counted() -> None:
    reason = no_adapter(TrainingStop.SECONDS, Budget(20, 5.0), 2.1)

    assert reason == (
        "the seconds were spent before the first step could end: 2.10 of 5 were left for training; allow more"
    )
    assert "0.00 of 0.5 were left" in no_adapter(TrainingStop.SECONDS, Budget(20, 0.5), -0.3)


@pytest.mark.parametrize(
    ("stop", "advice"),
    [
        (TrainingStop.DIVERGED, "--learning-rate"),
        (TrainingStop.OUT_OF_MEMORY, "--max-length"),
        (TrainingStop.STEPS, "(steps)"),
    ],
)
def test_what_else_ends_a_training_says_what_to_do(stop: TrainingStop, advice: str) -> None:
    assert advice in no_adapter(stop, Budget(20), None)
