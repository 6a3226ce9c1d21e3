"""A real model: this version beside an earlier commit, both measured in the same run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness.thresholds import (
    MAX_ADAPTED_TOKEN_RATIO,
    MIN_BASE_TOKEN_SPEEDUP,
    MIN_INGEST_SPEEDUP,
    MIN_NEIGHBOUR_RECALL,
    MIN_STEP_SPEEDUP,
)
from benchmarks.report.formatting import (
    Plots,
    Result,
    holds_or_not,
    interval_cell,
    table,
    titled_table,
)


def real_model(results: Mapping[str, Result], _: Plots) -> list[str]:
    """Tables of what was measured."""
    result = results["real-model"]
    return [
        f"Model: {result['model']}; beside commit `{result['against']}`.",
        "",
        *table(["ratio", "measured", "threshold", ""], _ratios(result)),
        *titled_table(
            "What twenty steps gain",
            "Bits per byte of held-out continuations in per cent of the base model's, with 90 % "
            "intervals; the difference is paired by passage.",
            ["model", "earlier", "now", "difference"],
            [
                [model, *(interval_cell(found[key]) for key in ("old", "new", "difference"))]
                for model, found in result.get("percent_of_base", {}).items()
            ],
        ),
        *titled_table(
            "Start",
            "Seconds from the command until all parts of the server answer.",
            ["model", "earlier", "now"],
            [
                [model, *(f"{seconds[tree]:.1f}" for tree in ("old", "new"))]
                for model, seconds in result.get("ready_seconds", {}).items()
            ],
        ),
        *_memory(result.get("resident_bytes", {})),
    ]


def _ratios(result: Result) -> list[list[str]]:
    rows: list[tuple[str, float, str, bool]] = []
    for model, speedup in result.get("step_speedup", {}).items():
        least = MIN_STEP_SPEEDUP["nano" if model == "nano" else "real"]
        name = f"twenty steps on {model}, arrival to loaded adapter: times as fast"
        rows.append((name, speedup, f"at least {least:g}", speedup >= least))
    for count, ratio in result.get("adapted_token_ratio", {}).items():
        name = f"time of a token with an adapter over one of the base model, {count} at once"
        most = MAX_ADAPTED_TOKEN_RATIO
        rows.append((name, ratio, f"at most {most:g}", ratio <= most))
    for key, name, least in (
        ("base_token_speedup", "tokens of the base model: times as fast", MIN_BASE_TOKEN_SPEEDUP),
        ("ingest_speedup", "sequences added: times as fast", MIN_INGEST_SPEEDUP),
        ("neighbour_recall", "recall of the 200 nearest neighbours", MIN_NEIGHBOUR_RECALL),
    ):
        if key in result:
            rows.append((name, result[key], f"at least {least:g}", result[key] >= least))
    return [
        [name, f"{value:.3g}", threshold, holds_or_not(holds)]
        for name, value, threshold, holds in rows
    ]


def _memory(by_model: Mapping[str, Any]) -> list[str]:
    lines = []
    for model, trees in by_model.items():
        names = dict.fromkeys([*trees["new"], *trees["old"]])
        lines += titled_table(
            f"Memory at rest, {model}",
            "Resident memory by process in MiB; pages that processes share count for each.",
            ["process", "earlier", "now"],
            [
                [name, *(f"{trees[tree].get(name, 0) / 2**20:,.0f}" for tree in ("old", "new"))]
                for name in names
            ],
        )
    return lines
