"""Scheduler: which requests take their next step together.

Earliest deadline first, where a deadline counts as at most PATIENCE seconds after arrival, so that
no request starves behind more urgent ones. When no slot is free, an urgent request preempts the
least urgent one, which continues later from where it stopped. The most urgent request is always in
the batch; others join in order of urgency as long as the batch stays within its tokens and memory,
has little padding, and makes no request miss its deadline. A request's first step is started if
such steps typically end in time, a later one only if they nearly always do. `Scheduler` itself
works on numbers alone: no tensors, no threads, no clock of its own.
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
from adapters.step_time import StepTime, TrainingTimes
from adapters.training import (
    Probe,
    TrainingProgress,
    TrainingRequest,
    TrainingResult,
    TrainingState,
    TrainingStop,
)

# Seconds after its arrival by which a job is due at the latest.
PATIENCE = 60.0
# The largest share of padding in a batch.
_MAX_PADDING = 0.25
# Finished requests that are handled before the next batch.
_MAX_FINISHED = 2


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
        deadline, or its arrival plus PATIENCE.
        """
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
        count = self.probe_due + (due_after and self.probe.gain is not None)
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
        )


class Scheduler:
    """The requests that train, and those that wait for a slot.

    Args:
        slots: Number of requests that train at once.
        max_tokens: Maximum number of tokens of a batch, padding included. A single request may
            exceed it.
        times: Predicted times.
        fits_memory: Whether a number of rows of a number of tokens fits into memory.
    """

    def __init__(
        self,
        slots: int,
        max_tokens: int,
        times: TrainingTimes,
        fits_memory: Callable[[int, int], bool] = lambda rows, tokens: True,
    ) -> None:
        self._free = list(range(slots))
        self._waiting: list[Job] = []
        self._active: list[Job] = []
        self._max_tokens, self._times, self._fits_memory = max_tokens, times, fits_memory

    def __len__(self) -> int:
        return len(self._waiting) + len(self._active)

    def add(self, job: Job) -> None:
        """Let a job wait for a slot."""
        self._waiting.append(job)

    def preempt(self) -> list[tuple[Job, int]]:
        """Take slots from jobs that are less urgent than waiting ones.

        Returns:
            The preempted jobs, which wait again, and the slots they had.
        """
        preempted = []
        for job in sorted(self._waiting, key=lambda job: job.due)[len(self._free) :]:
            last = max(self._active, key=lambda job: job.due, default=None)
            if last is None or job.due >= last.due:
                break
            preempted.append((last, last.assigned_slot))
            self.remove(last)
            self._waiting.append(last)
        return preempted

    def admit(self) -> list[Job]:
        """Give the free slots to the most urgent waiting jobs, and return these jobs."""
        self._waiting.sort(key=lambda job: job.due)
        admitted = self._waiting[: len(self._free)]
        del self._waiting[: len(admitted)]
        for job in admitted:
            job.slot = self._free.pop(0)
        self._active += admitted
        return admitted

    def remove(self, job: Job) -> None:
        """Remove a job and free its slot, if it has one."""
        if job.slot is None:
            self._waiting.remove(job)
        else:
            self._active.remove(job)
            self._free = sorted([*self._free, job.slot])
            job.slot = None

    def clear(self) -> list[Job]:
        """Remove all jobs, and return them."""
        jobs = [*self._active, *self._waiting]
        for job in jobs:
            self.remove(job)
        return jobs

    def finished(self, now: float) -> list[tuple[Job, TrainingStop]]:
        """Jobs that take no further step, with the reason: CANCELLED, STEPS, GAIN or SECONDS.

        At most _MAX_FINISHED at a time, earliest deadlines first, because later jobs wait for their
        final evaluations. A job without time for both its first step and its probe loses the probe.
        """
        found = []
        for job in [*self._active, *self._waiting]:
            if job.cancelled is not None and job.cancelled.is_set():
                found.append((job, TrainingStop.CANCELLED))
            elif len(job.losses) == len(job.steps):
                found.append((job, TrainingStop.STEPS))
            elif job.stopping.has_stalled:
                found.append((job, TrainingStop.GAIN))
            else:
                self._drop_late_probe(job, now)
                if self._is_late(job, now):
                    found.append((job, TrainingStop.SECONDS))
        return sorted(found, key=lambda pair: pair[0].deadline)[:_MAX_FINISHED]

    def batch(self, now: float) -> list[Job]:
        """The jobs that take a step now."""
        chosen: list[Job] = []
        # A batch must not make any job miss its deadline, whether it is in the batch or not.
        first = min((job.deadline for job in [*self._active, *self._waiting]), default=math.inf)
        for job in sorted(self._active, key=lambda job: job.due):
            wider = [*chosen, job]
            if not chosen or (self._fits(wider) and now + self._seconds(wider) <= first):
                chosen = wider
        return chosen

    def _fits(self, jobs: Sequence[Job]) -> bool:
        rows = [len(row) for job in jobs for row in job.rows]
        longest = max(rows, default=0)
        padded = len(rows) * longest
        return (
            padded <= self._max_tokens
            and padded - sum(rows) <= _MAX_PADDING * padded
            and self._fits_memory(len(rows), longest)
        )

    def _drop_late_probe(self, job: Job, now: float) -> None:
        """Drop a job's probe if there is no time to evaluate it beside the first step."""
        if not job.losses and not job.stopping.evaluations and self._is_late(job, now):
            job.probe = None

    def _is_late(self, job: Job, now: float) -> bool:
        """Whether a job has no time for another step and the evaluations beside it."""
        predict = StepTime.upper if job.losses else StepTime.mean
        return now + self._seconds([job], predict) > job.deadline

    def _seconds(
        self, jobs: Sequence[Job], predict: Callable[[StepTime, int], float] = StepTime.upper
    ) -> float:
        """Predicted seconds of a step of these jobs, its probes, and one final evaluation."""
        rows = [len(row) for job in jobs for row in job.rows]
        probes = [tokens for job in jobs for tokens in job.probe_tokens]
        seconds = predict(self._times.step, len(rows) * max(rows, default=0))
        if probes:
            seconds += predict(self._times.probe, len(probes) * max(probes))
        return seconds + predict(self._times.final, max(job.max_final_tokens for job in jobs))
