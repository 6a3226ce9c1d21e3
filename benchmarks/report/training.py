"""Training: the trainer against a plain PEFT loop and the machine, under load, and in long runs.

There may be several runs; each row names its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness.thresholds import MAX_LATE_STEPS
from benchmarks.report.formatting import (
    Plots,
    Result,
    holds_or_not,
    interval_cell,
    table,
    titled_table,
)


def training(results: Mapping[str, Result], plots: Plots) -> list[str]:
    """Tables of all runs."""
    runs = results.items()
    return [
        *table(
            ["run", "threads", "device", "commit"],
            [
                [name, str(run["threads"]), run["device"], str(run["commit"])[:10]]
                for name, run in runs
            ],
        ),
        *_speedups({name: run["peft"] for name, run in runs if "peft" in run}),
        *plots.drawn_by_benchmark(
            "training.svg",
            "Training tokens per second by concurrency, and those of a plain PEFT loop",
        ),
        *titled_table(
            "Against the machine",
            "Share of the matrix-product rate of the same run in the reference precision: median, "
            "least "
            "and most. Eight concurrent requests.",
            ["run", "model", "precision", "share", "reference", "share in its own precision"],
            [row for name, run in runs for row in _rates(name, run.get("gemm", {}))],
        ),
        *_step_parts({name: run["profile"] for name, run in runs if "profile" in run}),
        *titled_table(
            "Concurrent requests",
            "Seconds of a whole adaptation.",
            ["run", "model", "concurrency", "adaptations", "steps", "p50", "p99"],
            [row for name, run in runs for row in _concurrent(name, run.get("latency", {}))],
        ),
        *titled_table(
            "Deadlines",
            f"Threshold: at most {MAX_LATE_STEPS:g} step late.",
            ["run", "with a deadline", "late", "p99, steps", "most, steps", ""],
            [[name, *_late(run["deadlines"])] for name, run in runs if "deadlines" in run],
        ),
        *titled_table(
            "Long runs",
            "Growth of the memory since warm-up, and of the time of a step from the first tenth "
            "to the "
            "last.",
            ["run", "adaptations", "memory", "time of a step"],
            [[name, *_long_run(run["memory"])] for name, run in runs if "memory" in run],
        ),
    ]


def _speedups(runs: Mapping[str, Any]) -> list[str]:
    rows_of_models = [
        (name, model, row, precision, cells)
        for name, by_model in runs.items()
        for model, row in by_model.items()
        for precision, cells in row["trainer"].items()
    ]
    counts = sorted({int(n) for *_, cells in rows_of_models for n in cells})
    return titled_table(
        "Against a plain loop",
        "Training tokens per second over those of transformers, PEFT and Adam on the same "
        "sequences, "
        "by concurrency; in brackets the precision that is not the trainer's default.",
        ["run", "model", "precision", "plain loop, tokens/s", *(f"{n} requests" for n in counts)],
        [
            [
                name,
                model,
                precision if precision == row["chosen_precision"] else f"({precision})",
                f"{row['plain_tokens_per_second'][0]:,.0f}",
                *(f"{cells[str(n)]['speedup'][0]:.2f}" if str(n) in cells else "" for n in counts),
            ]
            for name, model, row, precision, cells in rows_of_models
        ],
    )


def _rates(run: str, by_model: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            run,
            model,
            precision,
            interval_cell(measurement["fraction"], 2),
            row["reference_precision"],
            interval_cell(measurement["fraction_of_its_own_precision"], 2),
        ]
        for model, row in by_model.items()
        for precision, measurement in row["trainer"].items()
    ]


def _step_parts(runs: Mapping[str, Any]) -> list[str]:
    rows = [
        (name, model, row) for name, by_model in runs.items() for model, row in by_model.items()
    ]
    parts = list(dict.fromkeys(part for *_, row in rows for part in row["part_seconds"]))
    return titled_table(
        "Where a step's time goes",
        "Milliseconds of a step of one request on one sequence, and of its parts by torch's "
        "profiler.",
        ["run", "model", "precision", "rank", "tokens", "step", *parts],
        [
            [
                name,
                model,
                row["precision"],
                str(row["rank"]),
                str(row["sequence_tokens"]),
                f"{1e3 * row['step_seconds'][0]:.1f}",
                *(f"{1e3 * row['part_seconds'].get(part, 0.0):.1f}" for part in parts),
            ]
            for name, model, row in rows
        ],
    )


def _concurrent(run: str, by_model: Mapping[str, Any]) -> list[list[str]]:
    return [
        [run, model, n, str(row["requests"]), str(measurement["steps"])]
        + [f"{row[f'{p}_seconds']:.2f}" for p in ("p50", "p99")]
        for model, measurement in by_model.items()
        for n, row in measurement["by_concurrency"].items()
    ]


def _late(row: Mapping[str, Any]) -> list[str]:
    largest = row["largest_overrun_steps"]
    shares = [f"{row['with_deadline']} of {row['requests']}", f"{row['overran_share']:.0%}"]
    return [
        *shares,
        f"{row['p99_overrun_steps']:.2f}",
        f"{largest:.2f}",
        holds_or_not(largest <= MAX_LATE_STEPS),
    ]


def _long_run(row: Mapping[str, Any]) -> list[str]:
    return [
        f"{row['adaptations']:,}",
        *(f"{100 * row[key]:+.2f} %" for key in ("rss_growth", "step_time_growth")),
    ]
