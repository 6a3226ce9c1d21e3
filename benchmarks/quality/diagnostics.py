"""Insight: what explains the tables of quality, after the paper's figures 6 and 8. Pure: rows in,
numbers out.

By how many different sequences SIFT chose: the paper has it ahead of nearest neighbours where these
are few (figure 6). Reliability: bits per byte after n steps by what sigma foretold. In proportion:
what has been gained after n steps by those passages that a stopping rule lets learn that far; where
a rule knows when to stop it falls below all passages'.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.quality import stopping_rules as stopping
from benchmarks.quality.bootstrap import interval
from benchmarks.quality.variants import Row

PARTS, BINS = 3, 10


def by_distinct(sift: Mapping[str, Row], nearest: Mapping[str, Row]) -> list[dict[str, Any]]:
    """Passages in equal parts by how many different sequences SIFT chose: how many, and SIFT less
    nearest neighbours.

    Args:
        sift, nearest: by passage.
    """
    ordered = sorted(
        (row for passage, row in sift.items() if passage in nearest), key=lambda row: row.distinct
    )
    found = []
    for part in np.array_split(np.arange(len(ordered)), min(PARTS, len(ordered)) or 1):
        if not len(part):
            continue
        rows = [ordered[number] for number in part]
        less = [percent(row) - percent(nearest[row.passage]) for row in rows]
        found.append(
            {
                "passages": len(rows),
                "distinct": [
                    rows[0].distinct,
                    statistics.median(row.distinct for row in rows),
                    rows[-1].distinct,
                ],
                "minus_nn": interval(less, [row.document for row in rows]),
            }
        )
    return found


def reliability(rows: Sequence[Row]) -> dict[str, Any]:
    """Means over bins of equally many points (passages and steps) by sigma_n times bits per byte of
    the base model.

    Returns:
        "points": of each bin the mean of that product and of bits per byte after n steps; "slope"
        and "intercept" of the line through all points.
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
    rows: Sequence[Row], rule: stopping.Rule, parameter: float
) -> dict[str, tuple[int, float]]:
    """By steps: how many passages the rule lets learn that far, and their per cent of base then."""
    stops = [rule.ends(row, parameter)[0] for row in rows]
    found = {}
    for n in sorted({int(n) for row in rows for n in row.bits}):
        still = [
            100 * row.bits[str(n)] / row.base
            for row, stop in zip(rows, stops, strict=True)
            if stop >= n
        ]
        if still:
            found[str(n)] = len(still), statistics.fmean(still)
    return found


def at_a_third(points: Sequence[tuple[float, float, float]]) -> float:
    """The parameter with which a rule takes about a third of the steps; its points as of
    `stopping.compare`.
    """
    return min(points, key=lambda point: abs(point[1] - stopping.TARGET_STEPS))[0]


def percent(row: Row) -> float:
    """Of base, after all steps."""
    return 100 * row.last / row.base
