"""Fallback reasons: each says what to do."""

from __future__ import annotations

import pytest

from adapters.training import TrainingStop
from serving.adaptation.fallback_reasons import no_adapter_reason, no_step_reason
from serving.budget import NONE, Budget, parse_budget

_AUTO, _LIMITS = Budget(50, gain=0.4), Budget(20, 60.0)


@pytest.mark.parametrize("text", ["none", " none "])
def test_the_reason_of_a_declined_adaptation_names_no_limit(text: str) -> None:
    budget, cut = parse_budget(text, _AUTO, _AUTO, _LIMITS).clamp(_LIMITS)

    assert no_step_reason(budget, cut) == "no adaptation was asked for"


def test_none_equals_zero_steps() -> None:
    no_steps = parse_budget("steps=0", _AUTO, _AUTO, _LIMITS)

    assert no_steps == NONE
    assert no_step_reason(no_steps, ()) == "the budget allows no step: ask for steps=1 or more"


def test_limits_that_allow_no_step_are_named() -> None:
    budget, cut = Budget(5).clamp(Budget(0, 60.0))

    assert "--max-steps" in no_step_reason(budget, cut)


def test_the_seconds_left_for_training_are_in_the_reason() -> None:
    reason = no_adapter_reason(TrainingStop.SECONDS, Budget(20, 5.0), 2.1)

    assert reason == (
        "the seconds were spent before the first step could end: "
        "2.10 of 5 were left for training; allow more"
    )
    assert "0.00 of 0.5 were left" in no_adapter_reason(TrainingStop.SECONDS, Budget(20, 0.5), -0.3)


@pytest.mark.parametrize(
    ("stop", "advice"),
    [
        (TrainingStop.DIVERGED, "--learning-rate"),
        (TrainingStop.OUT_OF_MEMORY, "--max-length"),
        (TrainingStop.STEPS, "(steps)"),
    ],
)
def test_the_reason_says_what_to_do(stop: TrainingStop, advice: str) -> None:
    assert advice in no_adapter_reason(stop, Budget(20), None)
