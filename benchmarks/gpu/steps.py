"""The training step as one graph: what CUDA graphs and torch.compile would save on padded shapes.

The trainer launches its operations one by one and has no option for either. What is measured here
is therefore the step itself, outside of the trainer: forward, backward and Adam for rows that are
all padded to the same length, one adapter each, first as the trainer computes it (`eager`), then
with the decoder compiled (`compiled`), then captured once and replayed (`cuda graph`), and both.
Each way's gradients are compared with those of `eager`; a way that fails says why.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from adapters import TrainerConfig
from adapters.model.base_model import BaseModel
from adapters.model.lora import LoraBank
from adapters.model.loss import cross_entropy
from benchmarks.gpu.main import Measured
from benchmarks.harness.measures import spread
from benchmarks.training.peft_loop import (
    GPU_SUBJECTS,
    SMOLLM2,
    SUBJECTS,
    device,
    draw_sequences,
    folder_of,
    synchronize,
)

ROWS, STEPS, REPEATS = (1, 8, 32), 10, 3
# Relative difference of gradients in bfloat16 that another order of operations may make.
MAX_DIFFERENCE = 0.1
_WARM_UPS = 3
_LEARNING_RATE = 5e-4


def measure(budget: str) -> Measured:
    """Seconds of a step by model, rows and way of computing it."""
    small = budget == "small"
    for subject in SUBJECTS[:1] if small else (SUBJECTS[0], SMOLLM2, GPU_SUBJECTS[0]):
        rows, tokens = ((2,), 32) if small else (ROWS, subject.tokens)
        with folder_of(subject) as folder:
            # In bfloat16, rounding alone changes the gradients of few tokens by more than
            # MAX_DIFFERENCE.
            base = BaseModel(folder, device(), "float32" if device() == "cpu" else "auto")
        config = TrainerConfig(folder)
        bank = LoraBank(base.model, config.rank, 1.0, config.targets, max(rows))
        for count in rows:
            for way, make in WAYS.items():
                key = f"{subject.name}, {count} rows of {tokens}, {way}"
                yield key, _measure_way(StaticStep(base, bank, count, tokens), make, small)


class StaticStep:
    """A step of training on the same rows again and again, in memory that stays in place."""

    def __init__(self, base: BaseModel, bank: LoraBank, rows: int, tokens: int) -> None:
        self.decoder: Any = base.model.base_model
        self._output = base.model.get_output_embeddings()
        self._bank, self._rows = bank, rows
        self._ids_MS = torch.tensor(
            draw_sequences(rows, tokens, base.vocabulary), device=base.device
        )
        self.reset()

    def reset(self) -> None:
        """Fresh adapters in all slots."""
        for slot in range(self._rows):
            self._bank.reset(slot, slot)

    def __call__(self) -> torch.Tensor:
        """Take the step; returns the buffer of gradients [M, P]."""
        slots = list(range(self._rows))
        with self._bank.bind(slots) as gradients_MP:
            hidden_MSH = self.decoder(self._ids_MS, use_cache=False).last_hidden_state
            predicted = self._ids_MS.shape[1] - 1
            nats_N = cross_entropy(
                hidden_MSH[:, :-1].flatten(0, 1),
                self._output.weight,
                self._output.bias,
                self._ids_MS[:, 1:].flatten(),
                [predicted] * self._rows,
            )
            (nats_N.sum() / predicted).backward()  # type: ignore[no-untyped-call]
        for slot in slots:
            self._bank.step(slot, gradients_MP[slot], _LEARNING_RATE)
        return gradients_MP


# Takes one step, and returns the gradients.
Call = Callable[[], torch.Tensor]


def _compiled(step: StaticStep) -> Call:
    torch._dynamo.reset()
    # Without a GPU, only whether the step can be traced is of interest.
    backend = "aot_eager" if device() == "cpu" else "inductor"
    step.decoder = torch.compile(step.decoder, dynamic=False, backend=backend)
    return step


def _captured(step: StaticStep) -> Call:
    if device() == "cpu":
        raise RuntimeError("needs a GPU")
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    # Libraries allocate their workspaces on first use, which cannot be captured.
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradients_MP = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return gradients_MP

    return replay


def _compiled_and_captured(step: StaticStep) -> Call:
    _compiled(step)
    return _captured(step)


WAYS: dict[str, Callable[[StaticStep], Call]] = {
    "eager": lambda step: step,
    "compiled": _compiled,
    "cuda graph": _captured,
    "compiled and cuda graph": _compiled_and_captured,
}


def _measure_way(
    step: StaticStep, make: Callable[[StaticStep], Call], small: bool
) -> dict[str, Any]:
    """Seconds of a step, and how far its first gradients are from those of `eager`."""
    expected_MP = step().clone()
    started = time.perf_counter()
    try:
        call = make(step)
        call()
        synchronize(device())
        preparing = time.perf_counter() - started
        step.reset()
        found_MP = call().clone()
    # Compilers raise anything; the other ways are still worth measuring.
    except Exception as problem:
        torch._dynamo.reset()
        return {"failed": f"{type(problem).__name__}: {problem}"[:500]}
    difference = float((found_MP - expected_MP).norm() / expected_MP.norm())
    seconds = []
    steps, repeats = (1, 1) if small else (STEPS, REPEATS)
    for _ in range(repeats):
        synchronize(device())
        started = time.perf_counter()
        for _ in range(steps):
            call()
        synchronize(device())
        seconds.append((time.perf_counter() - started) / steps)
    return {
        "seconds_per_step": spread(seconds),
        "preparing_seconds": preparing,
        "gradient_difference": difference,
        "holds": difference <= MAX_DIFFERENCE,
    }
