"""Training: the trainer against a plain PEFT loop and the machine, in company, with deadlines, and
in a long row.

There may be several runs: each row names its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness.thresholds import MAX_LATE_STEPS
from benchmarks.report.formatting import Plots, Result, cell, table, titled, whether


def training(results: Mapping[str, Result], plots: Plots) -> list[str]:
    """All runs, beside each other."""
    runs = results.items()
    return [
        *table(
            ["run", "threads", "device", "commit"],
            [
                [name, str(run["threads"]), run["device"], str(run["commit"])[:10]]
                for name, run in runs
            ],
        ),
        *_raced({name: run["peft"] for name, run in runs if "peft" in run}),
        *plots.drawn(
            "training.svg", "Training tokens a second by requests at once, and a plain PEFT loop's"
        ),
        *titled(
            "Against the machine",
            "Share of the rate at which the same run multiplies matrices in the reference precision: median, least "
            "and most. Eight requests at once.",
            ["run", "model", "precision", "share", "reference", "share of its own precision's"],
            [row for name, run in runs for row in _rates(name, run.get("gemm", {}))],
        ),
        *titled(
            "In company",
            "Seconds of a whole adaptation.",
            ["run", "model", "at once", "adaptations", "steps", "p50", "p99"],
            [row for name, run in runs for row in _in_company(name, run.get("latency", {}))],
        ),
        *titled(
            "Deadlines",
            f"At most {MAX_LATE_STEPS:g} step late is wanted.",
            ["run", "with a deadline", "late at all", "p99, steps", "most, steps", ""],
            [[name, *_late(run["deadlines"])] for name, run in runs if "deadlines" in run],
        ),
        *titled(
            "In a row",
            "Growth of the memory since it was warm, and of a step's time from the first tenth to the last.",
            ["run", "adaptations", "memory", "time of a step"],
            [[name, *_endured(run["memory"])] for name, run in runs if "memory" in run],
        ),
    ]


def _raced(runs: Mapping[str, Any]) -> list[str]:
    trained = [
        (name, model, row, precision, cells)
        for name, raced in runs.items()
        for model, row in raced.items()
        for precision, cells in row["trainer"].items()
    ]
    counts = sorted({int(n) for *_, cells in trained for n in cells})
    return titled(
        "Against a plain loop",
        "Times the training tokens a second of transformers, PEFT and Adam on the same sequences, by requests at once; "
        "in brackets the precision that the trainer does not choose by itself.",
        ["run", "model", "precision", "plain loop, tokens/s", *(f"{n} at once" for n in counts)],
        [
            [
                name,
                model,
                precision if precision == row["chosen_precision"] else f"({precision})",
                f"{row['plain_tokens_per_second'][0]:,.0f}",
                *(f"{cells[str(n)]['speedup'][0]:.2f}" if str(n) in cells else "" for n in counts),
            ]
            for name, model, row, precision, cells in trained
        ],
    )


def _rates(run: str, measured: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            run,
            model,
            precision,
            cell(found["fraction"], 2),
            row["reference_precision"],
            cell(found["fraction_of_its_own_precision"], 2),
        ]
        for model, row in measured.items()
        for precision, found in row["trainer"].items()
    ]


def _in_company(run: str, measured: Mapping[str, Any]) -> list[list[str]]:
    return [
        [run, model, n, str(row["requests"]), str(found["steps"])]
        + [f"{row[f'{p}_seconds']:.2f}" for p in ("p50", "p99")]
        for model, found in measured.items()
        for n, row in found["by_concurrency"].items()
    ]


def _late(row: Mapping[str, Any]) -> list[str]:
    most = row["largest_overrun_steps"]
    shares = [f"{row['with_deadline']} of {row['requests']}", f"{row['overran_share']:.0%}"]
    return [
        *shares,
        f"{row['p99_overrun_steps']:.2f}",
        f"{most:.2f}",
        whether(most <= MAX_LATE_STEPS),
    ]


def _endured(row: Mapping[str, Any]) -> list[str]:
    return [
        f"{row['adaptations']:,}",
        *(f"{100 * row[key]:+.2f} %" for key in ("rss_growth", "step_time_growth")),
    ]
