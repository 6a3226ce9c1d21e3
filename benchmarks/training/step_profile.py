"""Where the time of a training step goes, by purpose of its operations.

One request trains by itself on sequences of 256 tokens. Its seconds per step are measured first,
without a profiler. The shares are those of torch's own profiler over a few further steps, by the
names of the trainer's autograd functions. Profiling makes small operations look longer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch.profiler import ProfilerActivity, profile

from adapters import Trainer, TrainingProgress
from adapters.model_defaults import for_model
from benchmarks.harness.measures import spread
from benchmarks.training.peft_loop import (
    SETTLING_STEPS,
    Sequences,
    device,
    draw_sequences,
    synchronize,
    train,
)

KINDS = (
    "base products, forward",
    "base products, backward",
    "LoRA",
    "attention",
    "element-wise",
    "loss",
    "Adam",
    "rest",
)
_TOKENS = 256
_MEASURED_STEPS, _PROFILED_STEPS = 10, 2
# By a part of the operation's name or of its callers'.
_KIND_BY_NAME = {
    "_CrossEntropy": "loss",
    "_CausalAttention": "attention",
    "scaled_dot_product": "attention",
    "_fused_adam": "Adam",
}
_BASE_PRODUCTS = ("aten::mm", "aten::addmm", "aten::linear", "aten::matmul")


def step_profile(folder: str) -> dict[str, Any]:
    """Seconds of a step of one request, and of its parts, with the model's default settings."""
    trainer = Trainer(for_model(folder))
    sequences = draw_sequences(SETTLING_STEPS + _MEASURED_STEPS, _TOKENS, trainer.base.vocabulary)
    times: list[float] = []
    train(trainer, sequences, [lambda _: times.append(time.perf_counter())], len(sequences))
    settled = times[SETTLING_STEPS - 1 :]
    seconds = spread([end - start for start, end in pairwise(settled)])
    shares = profile_shares(trainer, sequences, 1)
    return {
        "parameters": trainer.base.parameters,
        "precision": trainer.base.precision,
        "rank": trainer.config.rank,
        "sequence_tokens": _TOKENS,
        "step_seconds": seconds,
        "part_seconds": {kind: share * seconds[0] for kind, share in shares.items()},
    }


def profile_shares(trainer: Trainer, sequences: Sequences, requests: int) -> dict[str, float]:
    """Shares of the time of a few steps of concurrent requests; "rest" is Python and waiting."""
    on_gpu = device() != "cpu"
    profiler = profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    )
    with profile(activities=[ProfilerActivity.CPU]):
        pass  # the profiler's first use must be in the main thread
    seconds = 0.0

    # Called in the trainer's thread, the only one that is profiled.
    def profile_steps(progress: TrainingProgress) -> None:
        nonlocal seconds
        if progress.steps == SETTLING_STEPS:
            profiler.start()
            seconds -= time.perf_counter()
        elif progress.steps == SETTLING_STEPS + _PROFILED_STEPS:
            synchronize(device())
            seconds += time.perf_counter()
            profiler.stop()

    rest = [lambda _progress: None] * (requests - 1)
    train(trainer, sequences, [profile_steps, *rest], SETTLING_STEPS + _PROFILED_STEPS)
    values = dict.fromkeys(KINDS, 0.0)
    events: Any = profiler.events()  # type: ignore[no-untyped-call]
    for event in events:
        if event.device_type.name != "CPU":
            continue  # a GPU's work counts for the operation that launched it
        callers, caller = [], event.cpu_parent
        while caller is not None:
            callers.append(caller.name)
            caller = caller.cpu_parent
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        values[kind_of_operation(event.name, callers)] += 1e-6 * microseconds / seconds
    values["rest"] = max(1.0 - sum(share for name, share in values.items() if name != "rest"), 0.0)
    return values


def kind_of_operation(name: str, callers: Sequence[str]) -> str:
    """Kind of an operation, by its name and those of its callers."""
    for part, values in _KIND_BY_NAME.items():
        if any(part in each for each in (name, *callers)):
            return values
    if name in _BASE_PRODUCTS:
        is_backward = any("Backward" in caller for caller in callers)
        return f"base products, {'backward' if is_backward else 'forward'}"
    if not name.startswith("aten::"):
        return "rest"
    return "LoRA" if any("_Projection" in each for each in callers) else "element-wise"
