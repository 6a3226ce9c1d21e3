"""Why the base model answered in place of an adapter, in words that say what to do about it, and
why a training did not start from the adapter of its corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adapters.training import TrainingStop
from serving.budget import Budget
from serving.report import StopReason

if TYPE_CHECKING:
    from adapters.training import StartComparison, TrainingResult
    from selection.selector import Selection

FAILED = "the adaptation failed; the server's log says why"


class NoAdapterError(Exception):
    """The adaptation ends without an adapter: the reason, what ended it, and its results so far."""

    def __init__(
        self,
        reason: str,
        stop: StopReason,
        selection: Selection | None = None,
        training: TrainingResult | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.stop = reason, stop
        self.selection, self.training = selection, training


def no_step_reason(budget: Budget, clamped: Sequence[str]) -> str:
    """The reason of a budget without a step.

    Args:
        budget: the request's budget, within the limits.
        clamped: names of the limits that the request exceeded.
    """
    if budget.declined:
        return "no adaptation was asked for"
    if "steps" in clamped:
        return (
            "the limits allow no step (`--max-steps` of the server, or `max_steps` of the API key)"
        )
    return "the budget allows no step: ask for steps=1 or more"


def no_adapter_reason(stop: TrainingStop, budget: Budget, seconds_left: float | None) -> str:
    """The reason of a training that ended without an adapter.

    Args:
        stop: what ended the training.
        budget: the request's budget.
        seconds_left: seconds of the budget when the training was submitted; None without a limit.
    """
    if stop == TrainingStop.SECONDS and budget.seconds is not None:
        left = f"{max(seconds_left or 0.0, 0.0):.2f} of {budget.seconds:g}"
        return (
            "the seconds were spent before the first step could end: "
            f"{left} were left for training; allow more"
        )
    if stop == TrainingStop.DIVERGED:
        return (
            "training diverged: its losses were not finite, or exploded; "
            "try a lower --learning-rate of the server"
        )
    if stop == TrainingStop.OUT_OF_MEMORY:
        return (
            "training ran out of memory: use shorter sequences "
            "(`mayfly corpus add --max-length`) or a lower --rank"
        )
    return f"training ended without an adapter ({stop})"


def fresh_start_reason(comparison: StartComparison) -> str:
    """Why a training that compared both did not start from the adapter of its corpus."""
    losses = f"{comparison.fresh_loss:.3f} against {comparison.start_loss:.3f}"
    return (
        "the base model expects the prompt at least as well as the adapter of the corpus does "
        f"({losses} nats per token)"
    )
