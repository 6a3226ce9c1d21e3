"""Training speed on the GPU: the trainer beside a PEFT loop, by model and concurrent requests.

As `benchmarks/training/main.py` measures it (`peft`), on the bundled model, one of SmolLM2's shape
and one of a billion parameters.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.gpu.main import Measured
from benchmarks.training.peft_loop import GPU_SUBJECTS, QUICK_SUBJECTS, SMOLLM2, SUBJECTS, race

CONCURRENCIES = (1, 8, 32)
STEPS, PAIRS = 10, 2


def measure(budget: str) -> Measured:
    """Tokens per second by model."""
    subjects = [
        replace(each, steps=STEPS, pairs=PAIRS, concurrencies=CONCURRENCIES)
        for each in (SUBJECTS[0], SMOLLM2, GPU_SUBJECTS[0])
    ]
    if budget == "small":
        subjects = [replace(QUICK_SUBJECTS[0], steps=2, pairs=1, concurrencies=(1, 4))]
    for subject in subjects:
        yield subject.name, race(subject)
