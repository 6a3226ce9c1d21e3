"""Reasons: why the base model answered in the place of an adapter, in words that say what to do
about it.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapters.training import TrainingStop
from serving.budget import Budget


def no_step(budget: Budget, cut: Sequence[str]) -> str:
    """The budget has no step.

    Args:
        budget: within the limits.
        cut: names of what was cut to the limits.
    """
    if budget.declined:
        return "no adaptation was asked for"
    if "steps" in cut:
        return (
            "the limits allow no step (`--max-steps` of the server, or `max_steps` of the API key)"
        )
    return "the budget allows no step: ask for steps=1 or more"


def no_adapter(stop: TrainingStop, budget: Budget, left: float | None) -> str:
    """Training ended without an adapter.

    Args:
        stop: what ended the training.
        budget: of the request.
        left: seconds that training had; None without a limit.
    """
    if stop == TrainingStop.SECONDS and budget.seconds is not None:
        had = f"{max(left or 0.0, 0.0):.2f} of {budget.seconds:g} were left for training"
        return f"the seconds were spent before the first step could end: {had}; allow more"
    if stop == TrainingStop.DIVERGED:
        return "training diverged: its losses were not finite, or exploded; try a lower --learning-rate of the server"
    if stop == TrainingStop.OUT_OF_MEMORY:
        return "training ran out of memory: use shorter sequences (`mayfly corpus add --max-length`) or a lower --rank"
    return f"training ended without an adapter ({stop})"
