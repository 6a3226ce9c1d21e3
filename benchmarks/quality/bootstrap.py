"""Bootstrap intervals, of means and of paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.quality.measurements import Measurement
from benchmarks.quality.passages import Passage


def interval(
    values: Sequence[float], groups: Sequence[str] | None = None, seed: int = 0
) -> tuple[float, float, float]:
    """Mean and 90 % bootstrap interval with 1,000 samples, as the paper reports them.

    Where values belong to groups, such as passages to files, whole groups are drawn.
    """
    members: dict[str, list[float]] = {}
    for value, group in zip(values, groups or map(str, range(len(values))), strict=True):
        members.setdefault(group, []).append(value)
    sums, counts = np.array([(sum(m), len(m)) for m in members.values()], np.float64).T
    drawn = np.random.default_rng(seed).integers(0, len(sums), (1000, len(sums)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [0.05, 0.95])
    return float(np.mean(values)), float(low), float(high)


def paired_means(
    rows: Sequence[Measurement],
    passages: Sequence[Passage],
    reference: str,
    steps: Sequence[int],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Per cent of base by variant and steps, and how much that is more than the reference's.

    Each is a mean with its interval; a difference is over the passages of both.

    Args:
        rows: measurements of several variants.
        passages: those that count.
        reference: variant that the others are compared with.
        steps: numbers of steps.
    """
    keys = {passage.key for passage in passages}
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for name in dict.fromkeys(row.variant for row in rows):
        for step in map(str, steps):
            values, others = (
                {
                    row.passage: 100 * row.bits[step] / row.base
                    for row in rows
                    if row.variant == variant and row.passage in keys and step in row.bits
                }
                for variant in (name, reference)
            )
            if not values:
                continue
            paired = [values[key] - others[key] for key in values if key in others]
            result.setdefault(name, {})[step] = {
                "passages": len(values),
                "percent_of_base": interval(list(values.values())),
                "difference": interval(paired) if paired and name != reference else None,
            }
    return result
