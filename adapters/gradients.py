"""Gradients: those of a step, of several jobs in one batch, each with its own adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from adapters.model.activation_memory import ActivationMemory
from adapters.model.base_model import BaseModel
from adapters.model.lora import LoraBank
from adapters.scheduler import Job

Gradient = tuple[torch.Tensor, float]  # of all parameters [P], and the loss


def gradients(
    base: BaseModel, bank: LoraBank, memory: ActivationMemory, jobs: Sequence[Job]
) -> dict[Job, Gradient]:
    """For each job the gradient of its rows' mean loss, valid until the next call, and that loss.

    The loss is NaN where the gradient is not finite.
    """
    if not jobs:
        return {}
    counts = [len(job.rows) for job in jobs]
    slots = [job.place for job, count in zip(jobs, counts, strict=True) for _ in range(count)]
    shares = torch.tensor([1 / count for count in counts for _ in range(count)], device=base.device)
    rows = [row for job in jobs for row in job.rows]
    saving = not memory.holds(len(rows), max(map(len, rows)))
    with bank.bind(slots) as gradients_MP, memory.saving(saving):
        losses_M = base.losses(rows) * shares
        losses_M.sum().backward()  # type: ignore[no-untyped-call]
    found = [
        part[0] if len(part) == 1 else part.sum(0) for part in torch.split(gradients_MP, counts)
    ]
    losses = torch.stack([part.sum() for part in torch.split(losses_M.detach(), counts)]).tolist()
    sound = torch.stack([gradient_P.norm() for gradient_P in found]).isfinite().tolist()
    told = zip(jobs, found, losses, sound, strict=True)
    return {job: (gradient_P, loss if ok else math.nan) for job, gradient_P, loss, ok in told}
