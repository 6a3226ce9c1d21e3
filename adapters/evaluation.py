"""Evaluation: losses under adapters that are being trained, without learning: looks on the way, and
the last judgement.

A look scores the text that a request watches, and sets the adapter's weights apart where they are
the best so far. At the end it is settled which weights of a request are handed over, if any are
worth it. It decides nothing about who goes on, and knows no threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from adapters.model.base_model import BaseModel
from adapters.model.lora import LoraBank
from adapters.scheduler import Job, Times

# Times the loss of guessing: no adapter worth having makes such a loss of what it learns.
_EXPLODED = 3.0


class Evaluation:
    """Scores adapters in the slots of a bank, and tells how long that took.

    Args:
        base: the model.
        bank: its slots; the one after `slots` is the guest's, of jobs that have none of their own.
        times: told how long looks took.
    """

    def __init__(self, base: BaseModel, bank: LoraBank, guest: int, times: Times) -> None:
        self._base, self._bank, self._guest, self._times = base, bank, guest, times

    def is_sound(self, loss: float) -> bool:
        """Whether an adapter that makes this loss of its text may be worth something."""
        return math.isfinite(loss) and loss <= _EXPLODED * math.log(self._base.vocabulary)

    def slot(self, job: Job) -> int:
        """Where the adapter of a job lies: of one without a slot, in the guest's."""
        return self._guest if job.slot is None else job.slot

    @torch.no_grad()
    def look(self, jobs: Sequence[Job]) -> list[Job]:
        """Score what these jobs watch; those whose adapter makes no sound loss of it."""
        begun = time.perf_counter()
        rows = [job.probe.tokens for job in jobs if job.probe]
        with self._bank.bind([self.slot(job) for job in jobs]):
            losses = self._base.losses(rows).tolist()
        unsound = [job for job, loss in zip(jobs, losses, strict=True) if not self._see(job, loss)]
        self._times.look.observe(len(rows) * max(map(len, rows)), time.perf_counter() - begun)
        return unsound

    @torch.no_grad()
    def settle(self, jobs: Sequence[Job]) -> dict[Job, tuple[int, int]]:
        """Of jobs that end after a step or more: put the weights to be handed over in place.

        These are the last, or those of the best look where a gain was watched. An adapter that
        makes no sound loss of what it has just learnt would fail in its answer, too: it is not
        handed over.

        Returns:
            How many sequences and steps have made these weights; a job without sound ones is left
            out.
        """
        rows = [(job, row) for job in jobs for row in job.closing]
        with self._bank.bind([self.slot(job) for job, _ in rows]):
            losses = iter(self._base.losses([row for _, row in rows]).tolist())
        settled = {}
        for job in jobs:
            unseen = job.is_unseen
            sound = self.is_sound(next(losses))
            if unseen:
                sound = self._see(job, next(losses), sound)
            best = job.stopping.best if job.stopping.gain is not None else None
            if best is not None and best.used < job.used:
                self._bank.restore(self.slot(job))
                settled[job] = best.used, best.steps
            elif sound:
                settled[job] = job.used, len(job.losses)
        return settled

    def _see(self, job: Job, loss: float, sound: bool = True) -> bool:
        """Remember a look, and the weights if they are the best so far, where they are sound;
        whether they are.
        """
        looks = job.stopping.looks
        if not math.isfinite(loss) or (looks and not self.is_sound(loss) and loss > looks[0].loss):
            sound = False
        if (
            sound
            and job.stopping.see(job.used, len(job.losses), loss)
            and job.stopping.gain is not None
        ):
            self._bank.keep(self.slot(job))
        return sound
