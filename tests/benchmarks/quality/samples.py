"""Measurements with known results."""

from __future__ import annotations

from benchmarks.quality.measurements import Measurement
from benchmarks.quality.variants import SCORED_STEPS, STEPS


def measurements(variant: str, percent: float, seconds: float = 0.1) -> list[Measurement]:
    """Four passages of two domains, which reach `percent` of base linearly over all steps."""
    result = []
    for number in range(4):
        base = 2.0 + number
        bits = {str(n): base * (1 - (1 - percent / 100) * n / STEPS) for n in SCORED_STEPS}
        alone = number == 0
        # The seconds of passages that were not adapted alone must not count.
        each = seconds if alone else 9 * seconds
        result.append(
            Measurement(
                variant=variant,
                group=("legal", "Rust")[number % 2],
                document=f"document {number}",
                passage=f"document {number}@0",
                prompt={"0": 2.5, "50": 2.0},
                bits=bits,
                sigma=tuple(1 / (1 + n) for n in range(STEPS + 1)),
                irreducible=0.1,
                losses=(1.0,) * STEPS,
                choosing_seconds=0.05,
                step_seconds=tuple(each * (n + 1) for n in range(STEPS)),
                alone=alone,
                distinct=STEPS,
            )
        )
    return result
