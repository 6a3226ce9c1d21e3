"""Tables of quality: rows of measurement -> means with 90 % bootstrap intervals over documents, and
their printing.

Per cent of base is bits per byte after adaptation over those of the base model, of each passage;
means are over passages. Differences are of the same passage. "At equal seconds" takes, of each
passage, the last measured point that is reached after so many seconds of choosing and training, by
the median times of the passages that were adapted alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.quality import diagnostics as insight
from benchmarks.quality import stopping_rules as stopping
from benchmarks.quality.bootstrap import interval
from benchmarks.quality.diagnostics import percent
from benchmarks.quality.variants import Row, Variant

Triple = tuple[float, float, float]
SECONDS = tuple(round(float(each), 2) for each in np.geomspace(0.1, 20, 24))
SIFT, NN = "SIFT", "NN"


def summary(
    rows: Sequence[Row], strategies: Sequence[str], axes: Mapping[str, Sequence[Variant]]
) -> dict[str, Any]:
    """All that is told of a run."""
    by_variant: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_variant.setdefault(row.variant, {})[row.passage] = row
    main = {name: list(by_variant[name].values()) for name in strategies}
    sift = main[SIFT]
    trained = {
        name: found for name, found in main.items() if all(row.step_seconds for row in found)
    }
    times = {name: _times([row for row in found if row.alone]) for name, found in trained.items()}
    steps = sorted({int(step) for row in sift for step in row.bits} - {0})
    rules = stopping.compare(sift)
    groups = list(dict.fromkeys(row.group for row in sift))
    return {
        "passages": len(sift),
        "documents": len({row.document for row in sift}),
        "base_bits_per_byte": _mean(sift, lambda row: row.base),
        "percent_of_base": {name: _mean(found, percent) for name, found in main.items()},
        "sift_minus_nn": difference(by_variant[SIFT], by_variant[NN]),
        "by_steps": {name: _by_steps(found, steps) for name, found in trained.items()},
        "by_domain": {
            group: {
                "passages": sum(row.group == group for row in sift),
                "base_bits_per_byte": _mean(
                    [row for row in sift if row.group == group], lambda row: row.base
                ),
                "percent_of_base": {
                    name: _mean([row for row in found if row.group == group], percent)
                    for name, found in main.items()
                },
            }
            for group in groups
        },
        "seconds": {
            name: statistics.median(
                row.choosing_seconds + row.step_seconds[-1] for row in found if row.alone
            )
            for name, found in trained.items()
        },
        "at_equal_seconds": {
            name: {
                f"{seconds:g}": _mean(found, partial(_percent_after, seconds, times[name]))
                for seconds in SECONDS
            }
            for name, found in trained.items()
        },
        "correlation": stopping.correlations(sift),
        "by_distinct": insight.by_distinct(by_variant[SIFT], by_variant[NN]),
        "reliability": insight.reliability(sift),
        "in_proportion": {
            rule.name: insight.in_proportion(sift, rule, insight.at_a_third(rules[rule.name]))
            for rule in stopping.RULES
            if rule.name in (stopping.FIXED, stopping.ALPHA, stopping.AUTO)
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


def difference(ours: Mapping[str, Row], theirs: Mapping[str, Row]) -> Triple:
    """Points of per cent of base, ours less theirs, on the passages that both have."""
    both = [ours[passage] for passage in ours if passage in theirs]
    return _mean(both, lambda row: percent(row) - percent(theirs[row.passage]))


def show(result: Mapping[str, Any], console: Console) -> None:
    """The tables for people."""
    names = list(result["percent_of_base"])
    console.print(
        f"{result['passages']} passages of {result['documents']} documents, corpus of {result['corpus_sequences']} "
        f"sequences; base model {_cell(result['base_bits_per_byte'], 3)} bits per byte; in per cent of it:",
        highlight=False,
    )
    table = Table("domain", "base", *names, box=None, pad_edge=False)
    for domain, part in result["by_domain"].items():
        cells = [f"{part['percent_of_base'][name][0]:.1f}" for name in names]
        table.add_row(domain, f"{part['base_bits_per_byte'][0]:.2f}", *cells)
    table.add_row(
        "all",
        f"{result['base_bits_per_byte'][0]:.2f}",
        *(_cell(result["percent_of_base"][name]) for name in names),
    )
    console.print(table)
    parts = "; ".join(
        "{:.0f} to {:.0f} different sequences {}".format(
            part["distinct"][0], part["distinct"][2], _cell(part["minus_nn"])
        )
        for part in result["by_distinct"]
    )
    console.print(
        f"SIFT minus NN: {_cell(result['sift_minus_nn'])} points ({parts})", highlight=False
    )
    table = Table("steps", *result["by_steps"], box=None, pad_edge=False)
    for step in result["by_steps"][SIFT]:
        table.add_row(
            step,
            *(
                f"{found[step][0]:.1f}" if step in found else ""
                for found in result["by_steps"].values()
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
        for name, found in variants.items():
            table.add_row(
                name, *(_cell(found[key]) for key in ("percent_of_base", "minus_sift", "minus_nn"))
            )
        console.print(table)
    console.print("in brackets: 90 % bootstrap intervals over documents", highlight=False)


def _mean(rows: Sequence[Row], value: Callable[[Row], float]) -> Triple:
    return interval([value(row) for row in rows], [row.document for row in rows])


def _by_steps(rows: Sequence[Row], steps: Sequence[int]) -> dict[str, Triple]:
    return {str(step): _mean(rows, lambda row, step=step: _percent_at(row, step)) for step in steps}  # type: ignore[misc]


def _percent_at(row: Row, step: int) -> float:
    return 100 * row.bits[str(max(int(each) for each in row.bits if int(each) <= step))] / row.base


def _times(alone: Sequence[Row]) -> tuple[float, ...]:
    """Seconds until 0, 1, ... steps have been taken."""
    ends = zip(
        *((row.choosing_seconds + seconds for seconds in row.step_seconds) for row in alone),
        strict=True,
    )
    return 0.0, *map(statistics.median, ends)


def _percent_after(seconds: float, times: Sequence[float], row: Row) -> float:
    return 100 * row.bits[str(max(int(n) for n in row.bits if times[int(n)] <= seconds))] / row.base


def _cell(triple: Sequence[float], digits: int = 1) -> str:
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*triple, d=digits)
