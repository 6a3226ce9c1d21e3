"""The tables that the latency benchmark prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness.thresholds import MIN_P99_REQUESTS
from benchmarks.latency import hot_load, per_request_peft
from benchmarks.latency.growth import ANSWER, PROMPT, growth_table
from benchmarks.latency.vllm_cli import PERCENTILES

_COLUMNS = {
    "queue": ("queue",),
    "select": ("embed", "search", "select"),
    "train": ("train",),
    "load": ("load",),
    "first": ("first token",),
    "token": ("per token",),
}


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print the tables: medians of stages in milliseconds, the cross-check, growth."""
    stages = Table("ms, p50", *_COLUMNS, "whole", "p95", "p99", box=None, pad_edge=False)
    check = Table(
        *("cross-check", "per second", "short", "bench serve", "failed", "steps missing"),
        *("first", "token", "whole"),
        box=None,
        pad_edge=False,
    )
    for column in (*stages.columns, check.columns[0]):
        column.no_wrap = True
    for name, cell in result["cells"].items():
        label = name.removeprefix("mayfly, ").removesuffix(f", {PROMPT}/{ANSWER} tokens")
        stages.add_row(label, *_medians(cell["stages"]), *_whole(cell["stages"]))
        bench, agreement = cell["vllm_bench_serve"], cell["agreement"]
        ratios = (
            f"{agreement[stage]:.2f}" if stage in agreement else ""
            for stage in ("first token", "per token", "whole")
        )
        counts = ("", "", "")
        if bench is not None:
            counts = (
                f"{bench['per_second']:.2f}",
                str(bench["failed"]),
                str(bench["steps_missing"]),
            )
        check.add_row(label, f"{cell['per_second']:.2f}", str(cell["short"]), *counts, *ratios)
    for table in (stages, check, growth_table(result["growth"])):
        console.print(table, "")
    console.print(
        "cross-check: requests per second and short answers by our client; requests per second, "
        "failures and missing steps by `vllm bench serve`; our median over its\n"
        f"* a p99 of fewer than {MIN_P99_REQUESTS} requests, close to the maximum",
        highlight=False,
    )
    for measured in result["hot_load"].values():
        console.print(hot_load.describe(measured), highlight=False)
    console.print(per_request_peft.describe(result["naive"]), highlight=False)


def _medians(stages: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The median of each column, in milliseconds, which may be the sum of several stages."""
    columns = [
        [stages[stage]["p50"] for stage in names if stage in stages] for names in _COLUMNS.values()
    ]
    return [f"{1e3 * sum(medians):.0f}" if medians else "" for medians in columns]


def _whole(stages: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Percentiles of the whole answer in milliseconds; those of few requests are marked."""
    if not stages:
        return [""] * len(PERCENTILES)
    cells = [f"{1e3 * stages['whole'][f'p{p}']:.0f}" for p in PERCENTILES]
    if stages["whole"]["n"] < MIN_P99_REQUESTS:
        cells[-1] += "*"
    return cells
