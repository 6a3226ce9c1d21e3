"""Diagnostics of the quality tables, after the paper's figures 6 and 8.

By distinct sequences: the paper's SIFT is ahead of nearest neighbours where it selects few distinct
sequences (figure 6). Reliability: bits per byte after n steps by the uncertainty sigma. In
proportion: the gain after n steps of the passages that a stopping rule lets train that far; where a
rule knows when to stop, it is below that of all passages. Pure: measurements in, numbers out.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.quality.bootstrap import interval
from benchmarks.quality.measurements import Measurement
from benchmarks.quality.stopping_rules import TARGET_STEPS, Rule

PARTS, BINS = 3, 10


def by_distinct(
    sift: Mapping[str, Measurement], nearest: Mapping[str, Measurement]
) -> list[dict[str, Any]]:
    """SIFT minus nearest neighbours, in equal parts by the number of distinct sequences.

    Args:
        sift: measurements of SIFT by passage.
        nearest: measurements of nearest neighbours by passage.
    """
    ordered = sorted(
        (row for passage, row in sift.items() if passage in nearest), key=lambda row: row.distinct
    )
    result = []
    for part in np.array_split(np.arange(len(ordered)), min(PARTS, len(ordered)) or 1):
        if not len(part):
            continue
        rows = [ordered[number] for number in part]
        differences = [percent(row) - percent(nearest[row.passage]) for row in rows]
        result.append(
            {
                "passages": len(rows),
                "distinct": [
                    rows[0].distinct,
                    statistics.median(row.distinct for row in rows),
                    rows[-1].distinct,
                ],
                "minus_nn": interval(differences, [row.document for row in rows]),
            }
        )
    return result


def reliability(rows: Sequence[Measurement]) -> dict[str, Any]:
    """Bits per byte after n steps by x, which is sigma_n times the base model's bits per byte.

    Returns:
        "points": mean x and mean bits per byte of each of BINS equal parts of all passages and
        steps; "slope" and "intercept": the line through all.
    """
    points = np.array(
        [
            (row.sigma[int(n)] * row.base, bits)
            for row in rows
            for n, bits in row.bits.items()
            if n != "0"
        ]
    )
    slope, intercept = np.polyfit(points[:, 0], points[:, 1], 1)
    bins = np.array_split(points[np.argsort(points[:, 0])], min(BINS, len(points)))
    return {
        "points": [[float(mean) for mean in part.mean(axis=0)] for part in bins],
        "slope": float(slope),
        "intercept": float(intercept),
    }


def in_proportion(
    rows: Sequence[Measurement], rule: Rule, parameter: float
) -> dict[str, tuple[int, float]]:
    """By steps: how many passages the rule lets train that far, and their per cent of base."""
    stops = [rule.stop(row, parameter)[0] for row in rows]
    result = {}
    for n in sorted({int(n) for row in rows for n in row.bits}):
        percents = [
            100 * row.bits[str(n)] / row.base
            for row, stop in zip(rows, stops, strict=True)
            if stop >= n
        ]
        if percents:
            result[str(n)] = len(percents), statistics.fmean(percents)
    return result


def parameter_at_a_third(points: Sequence[tuple[float, float, float]]) -> float:
    """The parameter with which a rule takes about a third of the steps.

    Args:
        points: the rule's points from `stopping_rules.compare`.
    """
    return min(points, key=lambda point: abs(point[1] - TARGET_STEPS))[0]


def percent(row: Measurement) -> float:
    """Per cent of base after all steps."""
    return 100 * row.last / row.base
