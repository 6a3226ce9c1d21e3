"""Threads of vLLM's steps on a CPU: all cores while the trainer rests."""

from __future__ import annotations

from typing import Any

from adapters.core_share import CoreShare


def share_cores(runner: Any, cores: CoreShare) -> None:
    """Make a class compute each step with its share of the machine's cores.

    Args:
        runner: vLLM's `CPUModelRunner`.
        cores: the engine's share.
    """
    if hasattr(runner, "cores"):
        return
    vllm_execute = runner.execute_model

    def execute_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        with cores.computing():
            return vllm_execute(self, *args, **kwargs)

    runner.cores = cores
    runner.execute_model = execute_model
