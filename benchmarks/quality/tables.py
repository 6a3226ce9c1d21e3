"""Tables of quality: means of measurements with 90 % bootstrap intervals over documents.

Per cent of base is bits per byte after adaptation over those of the base model, for each passage;
means are over passages. Differences are of the same passage. "At equal seconds" takes, for each
passage, the last measured point within a time of selection and training, by the median times of the
passages that were adapted alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.quality import diagnostics, stopping_rules
from benchmarks.quality.bootstrap import interval
from benchmarks.quality.diagnostics import percent
from benchmarks.quality.measurements import Measurement
from benchmarks.quality.variants import Variant

Triple = tuple[float, float, float]
SECONDS = tuple(round(float(each), 2) for each in np.geomspace(0.1, 20, 24))
SIFT, NN = "SIFT", "NN"


def summary(
    rows: Sequence[Measurement], strategies: Sequence[str], axes: Mapping[str, Sequence[Variant]]
) -> dict[str, Any]:
    """Everything in the result of a run."""
    by_variant: dict[str, dict[str, Measurement]] = {}
    for row in rows:
        by_variant.setdefault(row.variant, {})[row.passage] = row
    main = {name: list(by_variant[name].values()) for name in strategies}
    sift = main[SIFT]
    trained = {
        name: measurements
        for name, measurements in main.items()
        if all(row.step_seconds for row in measurements)
    }
    times = {
        name: _times([row for row in measurements if row.alone])
        for name, measurements in trained.items()
    }
    steps = sorted({int(step) for row in sift for step in row.bits} - {0})
    rules = stopping_rules.compare(sift)
    groups = list(dict.fromkeys(row.group for row in sift))
    return {
        "passages": len(sift),
        "documents": len({row.document for row in sift}),
        "base_bits_per_byte": _mean(sift, lambda row: row.base),
        "percent_of_base": {
            name: _mean(measurements, percent) for name, measurements in main.items()
        },
        "sift_minus_nn": difference(by_variant[SIFT], by_variant[NN]),
        "by_steps": {
            name: _by_steps(measurements, steps) for name, measurements in trained.items()
        },
        "by_domain": {
            group: {
                "passages": sum(row.group == group for row in sift),
                "base_bits_per_byte": _mean(
                    [row for row in sift if row.group == group], lambda row: row.base
                ),
                "percent_of_base": {
                    name: _mean([row for row in measurements if row.group == group], percent)
                    for name, measurements in main.items()
                },
            }
            for group in groups
        },
        "seconds": {
            name: statistics.median(
                row.choosing_seconds + row.step_seconds[-1] for row in measurements if row.alone
            )
            for name, measurements in trained.items()
        },
        "at_equal_seconds": {
            name: {
                f"{seconds:g}": _mean(measurements, partial(_percent_after, seconds, times[name]))
                for seconds in SECONDS
            }
            for name, measurements in trained.items()
        },
        "correlation": stopping_rules.correlations(sift),
        "by_distinct": diagnostics.by_distinct(by_variant[SIFT], by_variant[NN]),
        "reliability": diagnostics.reliability(sift),
        "in_proportion": {
            rule.name: diagnostics.in_proportion(
                sift, rule, diagnostics.parameter_at_a_third(rules[rule.name])
            )
            for rule in stopping_rules.RULES
            if rule.name in (stopping_rules.FIXED, stopping_rules.ALPHA, stopping_rules.AUTO)
        },
        "axes": {
            axis: {
                variant.name: {
                    "percent_of_base": _mean(list(by_variant[variant.name].values()), percent),
                    "minus_sift": difference(by_variant[variant.name], by_variant[SIFT]),
                    "minus_nn": difference(by_variant[variant.name], by_variant[NN]),
                    "by_steps": _by_steps(list(by_variant[variant.name].values()), steps),
                }
                for variant in variants
            }
            for axis, variants in axes.items()
        },
        "sift_minus_nn_alike": {
            setting: difference(by_variant[f"{SIFT}{setting}"], by_variant[f"{NN}{setting}"])
            for setting in (
                name.removeprefix(SIFT) for name in by_variant if name.startswith(f"{SIFT},")
            )
            if f"{NN}{setting}" in by_variant
        },
        "points": [
            {"variant": row.variant, "passage": row.passage, "group": row.group, "bits": row.bits}
            | (
                {"sigma": {n: row.sigma[int(n)] for n in row.bits}, "prompt": row.prompt}
                if row.variant == SIFT
                else {}
            )
            for row in rows
        ],
    }


def difference(left: Mapping[str, Measurement], right: Mapping[str, Measurement]) -> Triple:
    """Per cent of base, left minus right, on the passages that both have."""
    common = [left[passage] for passage in left if passage in right]
    return _mean(common, lambda row: percent(row) - percent(right[row.passage]))


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print the tables."""
    names = list(result["percent_of_base"])
    console.print(
        f"{result['passages']} passages of {result['documents']} documents, corpus of "
        f"{result['corpus_sequences']} sequences; base model "
        f"{_cell(result['base_bits_per_byte'], 3)} bits per byte; in per cent of it:",
        highlight=False,
    )
    table = Table("domain", "base", *names, box=None, pad_edge=False)
    for domain, part in result["by_domain"].items():
        percents = [f"{part['percent_of_base'][name][0]:.1f}" for name in names]
        table.add_row(domain, f"{part['base_bits_per_byte'][0]:.2f}", *percents)
    table.add_row(
        "all",
        f"{result['base_bits_per_byte'][0]:.2f}",
        *(_cell(result["percent_of_base"][name]) for name in names),
    )
    console.print(table)
    by_distinct = "; ".join(
        "{:.0f} to {:.0f} different sequences {}".format(
            part["distinct"][0], part["distinct"][2], _cell(part["minus_nn"])
        )
        for part in result["by_distinct"]
    )
    console.print(
        f"SIFT minus NN: {_cell(result['sift_minus_nn'])} points ({by_distinct})", highlight=False
    )
    table = Table("steps", *result["by_steps"], box=None, pad_edge=False)
    for step in result["by_steps"][SIFT]:
        table.add_row(
            step,
            *(
                f"{measurements[step][0]:.1f}" if step in measurements else ""
                for measurements in result["by_steps"].values()
            ),
        )
    table.add_row("seconds", *(f"{seconds:.1f}" for seconds in result["seconds"].values()))
    console.print(table)
    console.print(
        f"correlation of sigma with bits per byte {result['correlation']['sigma']:.2f}, "
        f"of sigma times base {result['correlation']['sigma_times_base']:.2f}",
        highlight=False,
    )
    for axis, variants in result["axes"].items():
        table = Table(axis, "% of base", "minus SIFT", "minus NN", box=None, pad_edge=False)
        for name, measurements in variants.items():
            table.add_row(
                name,
                *(
                    _cell(measurements[key])
                    for key in ("percent_of_base", "minus_sift", "minus_nn")
                ),
            )
        console.print(table)
    console.print("in brackets: 90 % bootstrap intervals over documents", highlight=False)


def _mean(rows: Sequence[Measurement], value: Callable[[Measurement], float]) -> Triple:
    return interval([value(row) for row in rows], [row.document for row in rows])


def _by_steps(rows: Sequence[Measurement], steps: Sequence[int]) -> dict[str, Triple]:
    return {str(step): _mean(rows, lambda row, step=step: _percent_at(row, step)) for step in steps}  # type: ignore[misc]


def _percent_at(row: Measurement, step: int) -> float:
    return 100 * row.bits[str(max(int(each) for each in row.bits if int(each) <= step))] / row.base


def _times(timed: Sequence[Measurement]) -> tuple[float, ...]:
    """Median seconds until the end of 0, 1, ... steps."""
    step_ends = zip(
        *((row.choosing_seconds + seconds for seconds in row.step_seconds) for row in timed),
        strict=True,
    )
    return 0.0, *map(statistics.median, step_ends)


def _percent_after(seconds: float, times: Sequence[float], row: Measurement) -> float:
    return 100 * row.bits[str(max(int(n) for n in row.bits if times[int(n)] <= seconds))] / row.base


def _cell(triple: Sequence[float], digits: int = 1) -> str:
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*triple, d=digits)
