"""Gradients of one step of several jobs in one batch, each with its own adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from adapters.loop.job import Job
from adapters.model.activation_memory import ActivationMemory
from adapters.model.base_model import BaseModel
from adapters.model.lora import LoraBank

# The gradient of all parameters [P], and the loss.
Gradient = tuple[torch.Tensor, float]


def gradients(
    base: BaseModel, bank: LoraBank, memory: ActivationMemory, jobs: Sequence[Job]
) -> dict[Job, Gradient]:
    """The gradient of each job's mean loss over its rows, and that loss.

    The gradients are valid until the next call. The loss is NaN if the gradient is not finite.
    """
    if not jobs:
        return {}
    counts = [len(job.rows) for job in jobs]
    slots = [
        job.assigned_slot for job, count in zip(jobs, counts, strict=True) for _ in range(count)
    ]
    weights_M = torch.tensor(
        [1 / count for count in counts for _ in range(count)], device=base.device
    )
    rows = [row for job in jobs for row in job.rows]
    checkpoint = not memory.fits(len(rows), max(map(len, rows)))
    with bank.bind(slots) as gradients_MP, memory.checkpointing(checkpoint):
        losses_M = base.losses(rows) * weights_M
        losses_M.sum().backward()  # type: ignore[no-untyped-call]
    by_job = [
        part[0] if len(part) == 1 else part.sum(0) for part in torch.split(gradients_MP, counts)
    ]
    losses = torch.stack([part.sum() for part in torch.split(losses_M.detach(), counts)]).tolist()
    finite = torch.stack([gradient_P.norm() for gradient_P in by_job]).isfinite().tolist()
    return {
        job: (gradient_P, loss if is_finite else math.nan)
        for job, gradient_P, loss, is_finite in zip(jobs, by_job, losses, finite, strict=True)
    }
