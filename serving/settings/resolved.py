"""Resolved: the settings whose defaults depend on something, with their values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resolved:
    """Values of the settings of these names, with the defaults of model, corpus and machine."""

    model: str
    served_model_name: list[str]
    rank: int
    allowed_host: tuple[str, ...]
    allowed_origin: tuple[str, ...]
    max_requests: int
    max_adaptations: int
    undegraded: int
    threads: int
    cores: int
    engine_gpus: float
    trainer_gpus: float
    gpu_memory_utilization: float
