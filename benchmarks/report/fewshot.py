"""Ten examples of an invented format: shown, trained on, or both."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.harness.thresholds import MIN_FEWSHOT_GAIN
from benchmarks.report.formatting import (
    Plots,
    Result,
    holds_or_not,
    interval_cell,
    table,
    titled_table,
)


def fewshot(results: Mapping[str, Result], _: Plots) -> list[str]:
    """Tables of exact match by arm and task, and of seconds to the first token."""
    result = results["fewshot"]
    reported = result["by_task"]
    gain = result["best_trained_minus_in_context"]
    arms = result["exact_match"]
    return [
        f"Model: {result['model']}. Ten examples and 40 queries of each of {len(reported)} "
        "invented formats, without instructions; an answer must equal the only right one. "
        "Intervals are of 90 %, over tasks and queries. The trained arm that is compared was "
        "chosen on other formats.",
        "",
        *table(
            ["chosen arm minus in context, points", "measured", "threshold", ""],
            [
                [
                    result["best_trained"],
                    interval_cell(gain),
                    f"at least {MIN_FEWSHOT_GAIN:g}",
                    holds_or_not(gain[0] >= MIN_FEWSHOT_GAIN),
                ]
            ],
        ),
        *table(
            ["arm", "exact match, %", "first request, s", "later requests, s"],
            [
                [
                    arm,
                    interval_cell(found),
                    *(f"{result['seconds_to_first_token'][arm][key]:.2f}" for key in _TIMES),
                ]
                for arm, found in arms.items()
            ],
        ),
        "Seconds are medians to the first token, one request at a time; the first request of a "
        "task trains, and later ones reuse its adapter.",
        "",
        *titled_table(
            "By format",
            "Exact match in per cent.",
            ["format", *arms],
            [[task, *(f"{by_arm[arm]:.0f}" for arm in arms)] for task, by_arm in reported.items()],
        ),
    ]


_TIMES = ("first", "later")
