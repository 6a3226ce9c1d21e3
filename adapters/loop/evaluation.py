"""Evaluator: losses under adapters in training, without learning.

Before the first step, it puts a fresh adapter in the place of a start that does not lower the loss
of a request's probe. On the way, it evaluates the probes of requests and snapshots an adapter's
weights when they are the best so far. At the end, it selects the weights that a request receives,
if any are sound. It does not decide which requests go on, and does not depend on threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from adapters.loop.job import Job
from adapters.model.base_model import BaseModel
from adapters.model.lora import LoraBank
from adapters.model.row import Row
from adapters.step_time import TrainingTimes
from adapters.training import StartComparison

# Multiple of the loss of guessing above which an adapter is taken to have diverged.
_EXPLODED = 3.0


class Evaluator:
    """Evaluates the adapters in the slots of a bank, and records the time this takes.

    Args:
        base: The base model.
        bank: The adapters.
        scratch_slot: The slot in which adapters are evaluated whose request has no slot.
        times: Receives the time of evaluations.
        clock: Seconds.
    """

    def __init__(
        self,
        base: BaseModel,
        bank: LoraBank,
        scratch_slot: int,
        times: TrainingTimes,
        clock: Callable[[], float],
    ) -> None:
        self._base, self._bank, self._scratch_slot = base, bank, scratch_slot
        self._times, self._clock = times, clock

    def is_sound(self, loss: float) -> bool:
        """Whether a loss is finite and not far worse than guessing."""
        return math.isfinite(loss) and loss <= _EXPLODED * math.log(self._base.vocabulary)

    def slot(self, job: Job) -> int:
        """The slot of a job's adapter; the scratch slot for a job that has none."""
        return self._scratch_slot if job.slot is None else job.slot

    @torch.no_grad()
    def evaluate_probes(self, jobs: Sequence[Job]) -> list[Job]:
        """Evaluate the probes of these jobs, and compare the starts that are to be compared.

        Returns:
            The jobs whose adapter has diverged.
        """
        with self._bank.bind([self.slot(job) for job in jobs]):
            losses = self._probe_losses(jobs)
        comparing = [job for job in jobs if job.comparison_due]
        for job, fresh_loss in self._probe_losses(comparing).items():
            job.comparison = StartComparison(losses[job], fresh_loss)
            if not job.comparison.uses_start:
                self._bank.reset(self.slot(job), job.request.seed)
                losses[job] = fresh_loss
        return [job for job, loss in losses.items() if not self._record(job, loss)]

    def _probe_losses(self, jobs: Sequence[Job]) -> dict[Job, float]:
        """The loss of each job's probe, under the adapters that are bound."""
        rows = [Row.of(job.probe.tokens) for job in jobs if job.probe]
        if not rows:
            return {}
        started = self._clock()
        losses = self._base.losses(rows).tolist()
        self._times.probe.observe(len(rows) * max(map(len, rows)), self._clock() - started)
        return dict(zip(jobs, losses, strict=True))

    @torch.no_grad()
    def select_weights(self, jobs: Sequence[Job]) -> dict[Job, tuple[int, int]]:
        """Put the weights that each job receives into its slot, after at least one step.

        These are the last weights or, for a probe with a gain, those of the best evaluation. An
        adapter with an unsound loss on the sequence it has just learnt would fail in its answer,
        too: it is not selected.

        Returns:
            The number of sequences and steps behind the selected weights; a job without sound
            weights is left out.
        """
        rows = [(job, row) for job in jobs for row in job.final_rows]
        with self._bank.bind([self.slot(job) for job, _ in rows]):
            losses = iter(self._base.losses([row for _, row in rows]).tolist())
        selected = {}
        for job in jobs:
            has_probe_row = job.probe_outdated
            sound = self.is_sound(next(losses))
            if has_probe_row:
                sound = self._record(job, next(losses), sound)
            best = job.stopping.best if job.stopping.gain is not None else None
            if best is not None and best.sequences < job.sequences_used:
                self._bank.restore(self.slot(job))
                selected[job] = best.sequences, best.steps
            elif sound:
                selected[job] = job.sequences_used, len(job.losses)
        return selected

    def _record(self, job: Job, loss: float, sound: bool = True) -> bool:
        """Record a probe loss if it is sound, and snapshot the weights if they are the best so far.

        Returns:
            Whether the adapter is sound.
        """
        evaluations = job.stopping.evaluations
        if not math.isfinite(loss) or (
            evaluations and not self.is_sound(loss) and loss > evaluations[0].loss
        ):
            sound = False
        if (
            sound
            and job.stopping.record(job.sequences_used, len(job.losses), loss)
            and job.stopping.gain is not None
        ):
            self._bank.snapshot(self.slot(job))
        return sound
