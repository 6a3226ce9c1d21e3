"""The hardware that this process may use: CPU cores and GPUs."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from adapters.model_defaults import parameters_of

# Names in /dev of the devices without which torch finds no GPU.
_GPU_DEVICES = ("nvidia[0-9]*", "nvidiactl", "nvhost-gpu", "dxg", "kfd")
# The fewest parameters of a model whose steps are faster with more threads (benchmarks/README.md).
_MIN_PARAMETERS = 50_000_000


def available_gpus(devices: Path = Path("/dev")) -> int:
    """Number of GPUs that torch can use; torch is imported only if the machine has a GPU device."""
    if not any(next(devices.glob(pattern), None) for pattern in _GPU_DEVICES):
        return 0
    import torch

    return torch.cuda.device_count()


def available_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Number of CPU cores that this process may use, within the limit of its control group."""
    cores = len(os.sched_getaffinity(0))
    # Without a control group the file is missing; without a limit the quota is "max".
    with suppress(OSError, ValueError):
        quota, period = map(int, (cgroup / "cpu.max").read_text().split())
        cores = min(cores, max(1, quota // period))
    return cores


def cores_to_take(cores: int, model: Path | None) -> int:
    """Number of threads of the engine, and of the trainer, while the other one rests.

    Args:
        cores: number of cores that they may use.
        model: folder of the base model; None if there is none.

    Returns:
        0 for a small model, or one of unknown size: no more than while it computes.
    """
    parameters = None if model is None else parameters_of(model)
    return cores if parameters and parameters >= _MIN_PARAMETERS else 0
