"""Job: the state of one request's training.

It knows the request's next step, its probe evaluations and its progress. It decides nothing about
other requests, and touches no tensor.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from adapters.adapter import Adapter
from adapters.early_stopping import FIRST_INTERVAL, EarlyStopping
from adapters.model.row import Row
from adapters.step_plan import Step, steps_of
from adapters.training import (
    Probe,
    StartComparison,
    TrainingProgress,
    TrainingRequest,
    TrainingResult,
    TrainingState,
    TrainingStop,
)

# Seconds after its arrival by which a job is due at the latest.
PATIENCE = 60.0


@dataclass(eq=False)
class Job:
    """The state of one request's training.

    Attributes:
        request: The sequences and how to train on them.
        arrived: Time of submission, on the scheduler's clock.
        cancelled: Set once the result is no longer wanted.
        on_step: Called after each step.
        done: Receives the result.
        sequences: The request's sequences, with their scored tokens.
        steps: Steps of the request's plan, in order.
        deadline: On the scheduler's clock; infinite for a request without a time limit.
        probe: The request's probe; None once there is no time to evaluate it beside a step.
        stopping: Evaluations of the probe.
        comparison: The probe's losses under the request's start and a fresh adapter; None before
            they are compared, and if they are not.
        started: Time of the first step, on the scheduler's clock; infinite before it.
        slot: Slot of the adapter; None while the job waits for one.
        losses: Losses of the steps taken.
        sequences_used: Number of sequences that the steps taken have trained on.
        saved_gradients: Gradients and losses for later steps, by position of the step.
        preempted_state: State of the adapter's slot while the job waits for a slot again.
    """

    request: TrainingRequest
    arrived: float
    cancelled: threading.Event | None = None
    on_step: Callable[[TrainingProgress], None] | None = None
    done: Future[TrainingResult] = field(default_factory=Future)
    started: float = math.inf
    slot: int | None = None
    losses: list[float] = field(default_factory=list)
    sequences_used: int = 0
    saved_gradients: dict[int, tuple[Any, float]] = field(default_factory=dict)
    preempted_state: Any = None
    comparison: StartComparison | None = None
    sequences: Sequence[Row] = field(init=False)
    steps: Sequence[Step] = field(init=False)
    deadline: float = field(init=False)
    probe: Probe | None = field(init=False)
    stopping: EarlyStopping = field(init=False)

    def __post_init__(self) -> None:
        request = self.request
        self.sequences = request.rows
        self.steps = steps_of(request.plan, self.sequences)
        self.deadline = self.arrived + (math.inf if request.seconds is None else request.seconds)
        self.probe = request.probe
        self.stopping = EarlyStopping(request.probe.gain if request.probe else None)

    @property
    def assigned_slot(self) -> int:
        """The slot of a job that has one."""
        assert self.slot is not None
        return self.slot

    @property
    def due(self) -> float:
        """The time by which the job should be done, the earliest being the most urgent: its
        deadline, or its arrival plus PATIENCE; infinite for a job in the background.
        """
        if self.request.background:
            return math.inf
        return min(self.deadline, self.arrived + PATIENCE)

    @property
    def step_sizes(self) -> set[tuple[int, int]]:
        """Number of sequences and longest sequence of each step."""
        return {
            (len(step.sequences), max(len(self.sequences[i]) for i in step.sequences))
            for step in self.steps
        }

    @property
    def step(self) -> Step:
        """The next step."""
        return self.steps[len(self.losses)]

    @property
    def rows(self) -> list[Row]:
        """The sequences that the next step computes; none if it reuses a gradient."""
        if self.step.gradient_of is not None:
            return []
        return [self.sequences[position] for position in self.step.sequences]

    @property
    def probe_due(self) -> bool:
        """Whether to evaluate the probe before the next step."""
        return self.probe is not None and self.stopping.probe_due(self.sequences_used)

    @property
    def comparison_due(self) -> bool:
        """Whether to compare the start with a fresh adapter at the next evaluation of the probe."""
        return self.request.start_if_better and self.probe is not None and self.comparison is None

    @property
    def learning_rate_factor(self) -> float:
        """Factor on the learning rate: the request's, but 1 for a fresh adapter in place of its
        start.
        """
        factor = self.request.learning_rate_factor
        assert factor is not None, "the trainer has put its own there"
        is_fresh = self.comparison is not None and not self.comparison.uses_start
        return 1.0 if is_fresh else factor

    @property
    def probe_outdated(self) -> bool:
        """Whether steps have been taken since the last evaluation of the probe."""
        evaluations = self.stopping.evaluations
        return (
            self.probe is not None
            and bool(evaluations)
            and evaluations[-1].sequences < self.sequences_used
        )

    @property
    def probe_tokens(self) -> list[int]:
        """Tokens of each probe evaluation before or after the next step."""
        if self.probe is None:
            return []
        after = self.sequences_used + len(self.step.sequences)
        due_after = (
            self.stopping.probe_due(after) if self.stopping.evaluations else after >= FIRST_INTERVAL
        )
        due_after = due_after and self.probe.gain is not None
        count = self.probe_due + self.comparison_due + due_after
        return [len(self.probe.tokens)] * count

    @property
    def final_rows(self) -> list[Row]:
        """Rows of the final evaluation: the last sequence and, if outdated, the probe."""
        return [
            self.sequences[self.sequences_used - 1],
            *([Row.of(self.probe.tokens)] if self.probe and self.probe_outdated else []),
        ]

    @property
    def max_final_tokens(self) -> int:
        """Maximum number of tokens of the final evaluation, padding included."""
        lengths = [
            max(map(len, self.sequences), default=0),
            *([len(self.probe.tokens)] if self.probe else []),
        ]
        return len(lengths) * max(lengths)

    def progress(self, now: float) -> TrainingProgress:
        """The progress after at least one step."""
        spent, steps, total = now - self.arrived, len(self.losses), len(self.steps)
        left = min(spent / steps * (total - steps), self.deadline - now)
        evaluations = self.stopping.evaluations
        return TrainingProgress(
            steps=steps,
            total_steps=total,
            sequences_used=self.sequences_used,
            loss=self.losses[-1],
            seconds=spent,
            seconds_left=max(left, 0.0),
            slot=self.assigned_slot,
            probe_loss=evaluations[-1].loss if evaluations else None,
        )

    def result(
        self,
        adapter: Adapter | None,
        stop: TrainingStop,
        now: float,
        adapter_sequences: int,
        state: TrainingState | None,
    ) -> TrainingResult:
        """The result; arguments as in `TrainingResult`."""
        return TrainingResult(
            adapter=adapter,
            losses=tuple(self.losses),
            sequences_used=self.sequences_used,
            stop=stop,
            seconds=now - self.arrived,
            waited=min(self.started, now) - self.arrived,
            probe_losses=tuple((each.sequences, each.loss) for each in self.stopping.evaluations),
            adapter_sequences=adapter_sequences,
            state=state,
            comparison=self.comparison,
        )
