"""Scheduler: which requests take their next step together.

Earliest deadline first, where a deadline counts as at most PATIENCE seconds after arrival, so that
no request starves behind more urgent ones. When no slot is free, an urgent request preempts the
least urgent one, which continues later from where it stopped. The most urgent request is always in
the batch; others join in order of urgency as long as the batch stays within its tokens and memory,
has little padding, and makes no request miss its deadline. A request's first step is started if
such steps typically end in time, a later one only if they nearly always do.

A job in the background takes steps alone, and only while there is no other job and nobody has asked
it to give way. It ends then, too, unless it is cancelled.

`Scheduler` itself works on numbers alone: no tensors, no threads, no clock of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from adapters.loop.job import Job
from adapters.step_time import StepTime, TrainingTimes
from adapters.training import TrainingStop

# The largest share of padding in a batch.
_MAX_PADDING = 0.25
# Finished requests that are handled before the next batch.
_MAX_FINISHED = 2


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
        self._background_from = -math.inf
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

    def give_way_until(self, time: float) -> None:
        """Let no background job compute before this time."""
        self._background_from = max(self._background_from, time)

    def background_wait(self, now: float) -> float:
        """Seconds until the background may compute; infinite while there are other jobs."""
        return math.inf if self._foreground else max(0.0, self._background_from - now)

    @property
    def _foreground(self) -> list[Job]:
        return [job for job in [*self._active, *self._waiting] if not job.request.background]

    def finished(self, now: float) -> list[tuple[Job, TrainingStop]]:
        """Jobs that take no further step, with the reason: CANCELLED, STEPS, GAIN or SECONDS.

        At most _MAX_FINISHED at a time, earliest deadlines first, because later jobs wait for their
        final evaluations. A job without time for both its first step and its probe loses the probe.
        """
        found = []
        background_waits = self.background_wait(now) > 0
        for job in [*self._active, *self._waiting]:
            if job.cancelled is not None and job.cancelled.is_set():
                found.append((job, TrainingStop.CANCELLED))
            elif job.request.background and background_waits:
                continue
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
        """The jobs that take a step now; none if all give way."""
        if not (foreground := self._foreground):
            waits = self.background_wait(now) > 0
            # A request that comes during the step waits for it, so it is the step of a single job.
            return [] if waits else sorted(self._active, key=lambda job: job.arrived)[:1]
        chosen: list[Job] = []
        # A batch must not make any job miss its deadline, whether it is in the batch or not.
        first = min(job.deadline for job in foreground)
        active = (job for job in foreground if job.slot is not None)
        for job in sorted(active, key=lambda job: job.due):
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
