"""What the trainer makes of the machine: its rate against that of torch's matrix products, and
where the rest goes.

The part of `benchmarks/training/main.py` about the hardware. The machine's rate is the best among a few
large products, taken before every measurement of the trainer. The trainer's is 4 x parameters x
tokens a second: two operations for each parameter forward, two for the gradients of its inputs,
none for its own, which is frozen. Parameters are those that multiply: all but the embedding, which
counts where it is tied and so is the output layer, too. Attention and LoRA are not counted. The
tokens are those of eight requests that train together, in their midst.

The profile is torch's own, of a few such steps: shares of time by what operations are for, which it
reads off the names of the trainer's autograd functions. Profiling makes small operations look
longer than they are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from adapters import Trainer, TrainingProgress
from benchmarks.training.peft_loop import (
    SETTLED,
    STEPS,
    TOGETHER,
    Sequences,
    Subject,
    device,
    draw,
    spread,
    steps_per_second,
    train,
    trainers,
    wait,
)

KINDS = ("base products", "LoRA", "attention", "element-wise", "loss", "Adam", "rest")
_MEASURED, _PROFILED = 3, 2  # steps
_REPEATS = 4
_SHAPES = {  # of matrix products
    "cpu": ((1024, 1024, 1024), (2048, 2048, 2048), (2048, 1024, 4096)),
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 4096, 4096)),
}
_PARTS = {  # in the names of operations or of what called them
    "_CrossEntropy": "loss",
    "_CausalAttention": "attention",
    "scaled_dot_product": "attention",
    "_fused_adam": "Adam",
}
_BASE_PRODUCTS = ("aten::mm", "aten::addmm", "aten::linear", "aten::matmul")


def gemm(subject: Subject) -> dict[str, Any]:
    """By precision of the trainer: the share of the matrix-product rate that its steps reach, and
    their profile.
    """
    where = device()
    reference = "float32" if where == "cpu" else "bfloat16"
    with trainers(subject) as (_, by_precision):
        chosen = next(iter(by_precision.values()))
        multiplying = multiplying_parameters(chosen.base.model)
        sequences = draw(STEPS, subject.tokens, chosen.base.vocabulary)
        rates: dict[str, list[float]] = {precision: [] for precision in (reference, *by_precision)}
        speeds: dict[str, list[float]] = {precision: [] for precision in by_precision}
        for _ in range(subject.pairs):
            for precision, found in rates.items():
                found.append(matrix_rate(precision, where))
            for precision, trainer in by_precision.items():
                speed = steps_per_second(trainer, sequences, TOGETHER, _MEASURED)
                speeds[precision].append(subject.tokens * speed)
        profiles = {
            precision: shares(trainer, sequences) for precision, trainer in by_precision.items()
        }

    def fraction(precision: str, of: str) -> tuple[float, float, float]:
        pairs = zip(speeds[precision], rates[of], strict=True)
        return spread([4 * multiplying * speed / rate for speed, rate in pairs])

    return {
        "multiplying_parameters": multiplying,
        "requests": TOGETHER,
        "chosen_precision": chosen.base.precision,
        "reference_precision": reference,
        "matrix_operations_per_second": {
            precision: spread(found) for precision, found in rates.items()
        },
        "trainer": {
            precision: {
                "tokens_per_second": spread(found),
                "fraction": fraction(precision, reference),
                "fraction_of_its_own_precision": fraction(precision, precision),
                "profile_share": profiles[precision],
            }
            for precision, found in speeds.items()
        },
    }


def multiplying_parameters(model: Any) -> int:
    """All parameters but those of an embedding that is not the output layer, too; adapters are none
    of the model's.
    """
    everything: int = sum(parameter.numel() for parameter in model.parameters())
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return everything if embedding is output else everything - int(embedding.numel())


def matrix_rate(precision: str, where: str) -> float:
    """Operations a second of torch's matrix products, at their best."""
    best = 0.0
    for m, k, n in _SHAPES[where]:
        a_MK, b_KN = (
            torch.randn(shape, device=where).to(getattr(torch, precision))
            for shape in ((m, k), (k, n))
        )
        torch.mm(a_MK, b_KN)
        for _ in range(_REPEATS):
            wait(where)
            begun = time.perf_counter()
            torch.mm(a_MK, b_KN)
            wait(where)
            best = max(best, 2 * m * k * n / (time.perf_counter() - begun))
    return best


def shares(trainer: Trainer, sequences: Sequences) -> dict[str, float]:
    """Of the time of a few steps, by kind; "rest" is Python and waiting."""
    on_gpu = device() != "cpu"
    profiler = profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    )
    with profile(activities=[ProfilerActivity.CPU]):
        pass  # its first use must be in the main thread
    seconds = 0.0

    def hear_first(
        progress: TrainingProgress,
    ) -> None:  # in the trainer's thread, which alone is profiled
        nonlocal seconds
        if progress.steps == SETTLED:
            profiler.start()
            seconds -= time.perf_counter()
        elif progress.steps == SETTLED + _PROFILED:
            wait(device())
            seconds += time.perf_counter()
            profiler.stop()

    rest = [lambda _progress: None] * (TOGETHER - 1)
    train(trainer, sequences, [hear_first, *rest], SETTLED + _PROFILED)
    found = dict.fromkeys(KINDS, 0.0)
    events: Any = profiler.events()  # type: ignore[no-untyped-call]
    for event in events:
        if event.device_type.name != "CPU":
            continue  # a GPU's work counts where it was asked for
        callers, caller = [], event.cpu_parent
        while caller is not None:
            callers.append(caller.name)
            caller = caller.cpu_parent
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        found[kind(event.name, callers)] += 1e-6 * spent / seconds
    found["rest"] = max(1.0 - sum(share for name, share in found.items() if name != "rest"), 0.0)
    return found


def kind(name: str, callers: Sequence[str]) -> str:
    """What an operation is for, by its name and those of what called it."""
    for part, found in _PARTS.items():
        if any(part in each for each in (name, *callers)):
            return found
    if name in _BASE_PRODUCTS:
        return "base products"
    if not name.startswith("aten::"):
        return "rest"
    return "LoRA" if any("_Projection" in each for each in callers) else "element-wise"
