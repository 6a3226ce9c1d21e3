"""The trainer's rate against that of torch's matrix products, and a profile of the rest.

The machine's rate is the best of a few large products, taken before every measurement of the
trainer. The trainer's is 4 x parameters x tokens per second: two operations per parameter forward,
two for the gradients of its inputs, none for its own, which is frozen. Only parameters that
multiply count: all but the embedding, which counts where it is tied to the output layer. Attention
and LoRA are not counted. The tokens are those of eight concurrent requests.

The profile is that of `benchmarks.training.step_profile`, of a few such steps.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.harness.measures import spread
from benchmarks.training.peft_loop import (
    CONCURRENCY,
    STEPS,
    Subject,
    device,
    draw_sequences,
    steps_per_second,
    synchronize,
    trainers,
)
from benchmarks.training.step_profile import profile_shares

_MEASURED_STEPS = 3
_REPEATS = 4
# Of matrix products.
_SHAPES = {
    "cpu": ((1024, 1024, 1024), (2048, 2048, 2048), (2048, 1024, 4096)),
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 4096, 4096)),
}


def gemm(subject: Subject) -> dict[str, Any]:
    """Share of the matrix-product rate that the trainer reaches, and its profile, by precision."""
    device_name = device()
    reference = "float32" if device_name == "cpu" else "bfloat16"
    with trainers(subject) as (_, by_precision):
        default = next(iter(by_precision.values()))
        multiplying = multiplying_parameters(default.base.model)
        sequences = draw_sequences(STEPS, subject.tokens, default.base.vocabulary)
        rates: dict[str, list[float]] = {precision: [] for precision in (reference, *by_precision)}
        speeds: dict[str, list[float]] = {precision: [] for precision in by_precision}
        for _ in range(subject.pairs):
            for precision, values in rates.items():
                values.append(matrix_rate(precision, device_name))
            for precision, trainer in by_precision.items():
                speed = steps_per_second(trainer, sequences, CONCURRENCY, _MEASURED_STEPS)
                speeds[precision].append(subject.tokens * speed)
        profiles = {
            precision: profile_shares(trainer, sequences, CONCURRENCY)
            for precision, trainer in by_precision.items()
        }

    def fraction(precision: str, of: str) -> tuple[float, float, float]:
        pairs = zip(speeds[precision], rates[of], strict=True)
        return spread([4 * multiplying * speed / rate for speed, rate in pairs])

    return {
        "multiplying_parameters": multiplying,
        "requests": CONCURRENCY,
        "chosen_precision": default.base.precision,
        "reference_precision": reference,
        "matrix_operations_per_second": {
            precision: spread(values) for precision, values in rates.items()
        },
        "trainer": {
            precision: {
                "tokens_per_second": spread(values),
                "fraction": fraction(precision, reference),
                "fraction_of_its_own_precision": fraction(precision, precision),
                "profile_share": profiles[precision],
            }
            for precision, values in speeds.items()
        },
    }


def multiplying_parameters(model: Any) -> int:
    """Number of parameters, without those of an embedding that is not tied to the output layer."""
    total: int = sum(parameter.numel() for parameter in model.parameters())
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return total if embedding is output else total - int(embedding.numel())


def matrix_rate(precision: str, device_name: str) -> float:
    """Best rate of torch's matrix products, in operations per second."""
    best = 0.0
    for m, k, n in _SHAPES[device_name]:
        a_MK, b_KN = (
            torch.randn(shape, device=device_name).to(getattr(torch, precision))
            for shape in ((m, k), (k, n))
        )
        torch.mm(a_MK, b_KN)
        for _ in range(_REPEATS):
            synchronize(device_name)
            started = time.perf_counter()
            torch.mm(a_MK, b_KN)
            synchronize(device_name)
            best = max(best, 2 * m * k * n / (time.perf_counter() - started))
    return best
